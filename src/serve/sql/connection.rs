//! One connection: its messages, in order, each within its limits; and simple queries.

use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use pgwire::api::portal::Format;
use pgwire::messages::response::{CommandComplete, EmptyQueryResponse, ReadyForQuery, TransactionStatus};
use pgwire::messages::startup::ParameterStatus;
use pgwire::messages::{PgWireBackendMessage as Out, PgWireFrontendMessage as In};
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::admit::{self, Admitted};
use super::cancel::Key;
use super::counts::{Counts, Ended};
use super::errors::{SqlError, WireError, fatal};
use super::extended::Store;
use super::results::{Rows, description};
use super::session::Session;
use super::settings::{Settings, TENANT};
use super::startup;
use super::wire::{Reader, Writer};
use super::{DRAIN, MAX_MESSAGE, Sql};

/// Time for a client to take what it is told outside statements.
const TAKE: Duration = Duration::from_secs(10);

/// Why a message was not answered as asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    /// The client is told, and the connection goes on.
    #[error(transparent)]
    Sql(#[from] SqlError),
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("the client is gone")]
    Gone,
    #[error("the server stops")]
    Stopping,
}

impl From<std::io::Error> for Trouble {
    fn from(error: std::io::Error) -> Self {
        Self::Wire(error.into())
    }
}

impl From<datafusion::error::DataFusionError> for Trouble {
    fn from(error: datafusion::error::DataFusionError) -> Self {
        Self::Sql(error.into())
    }
}

/// A connection after the log-in.
pub(super) struct Connection {
    pub(super) sql: Arc<Sql>,
    pub(super) reader: Reader,
    pub(super) writer: Writer,
    pub(super) session: Session,
    pub(super) store: Store,
    pub(super) status: TransactionStatus,
    pub(super) key: Key,
    stopping: watch::Receiver<bool>,
    /// After an error of the extended protocol, all until Sync is passed over.
    until_sync: bool,
}

/// Serves a client until it goes, or has to.
pub(super) async fn serve(sql: Arc<Sql>, stream: TcpStream, peer: IpAddr, mut stopping: watch::Receiver<bool>) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection of SQL");
    }
    let (read, write) = stream.into_split();
    let (mut reader, mut writer) = (Reader::new(read), Writer::new(write));
    let opened = tokio::select! {
        opened = tokio::time::timeout(sql.limits.startup, startup::open(&sql, &mut reader, &mut writer, peer)) => opened,
        _ = stopping.wait_for(|stop| *stop) => return,
    };
    let opened = match opened {
        Ok(Ok(Some(opened))) => opened,
        Ok(Ok(None)) => return,
        Ok(Err(error)) => {
            tracing::debug!(%error, %peer, "a client of SQL did not get a session");
            return part(&mut writer, "08P01", "this was not understood as a request for a session").await;
        }
        Err(_) => return part(&mut writer, "08006", "the log-in took too long").await,
    };
    let (session, key) = (opened.session, opened.key);
    let (store, status) = (Store::default(), TransactionStatus::Idle);
    let mut connection = Connection { sql, reader, writer, session, store, status, key, stopping, until_sync: false };
    match connection.talk().await {
        Ok(()) | Err(Trouble::Gone) => {}
        Err(Trouble::Stopping) => {
            part(&mut connection.writer, "57P01", "terminating connection: the server stops").await;
        }
        Err(Trouble::Wire(WireError::Io(error))) => tracing::debug!(%error, "a connection of SQL ended"),
        Err(Trouble::Wire(error)) => part(&mut connection.writer, "08P01", &error.to_string()).await,
        Err(Trouble::Sql(error)) => part(&mut connection.writer, error.code(), &error.to_string()).await,
    }
}

/// Takes leave of a client.
pub(super) async fn part(writer: &mut Writer, code: &str, message: &str) {
    let told = async {
        writer.put(&Out::ErrorResponse(fatal(code, message)))?;
        writer.close().await.map_err(WireError::from)
    };
    match tokio::time::timeout(TAKE, told).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, code, "a client of SQL was not told why it was left"),
        Err(_) => tracing::debug!(code, "a client of SQL did not take why it was left"),
    }
}

impl Connection {
    async fn talk(&mut self) -> Result<(), Trouble> {
        loop {
            let next = tokio::time::timeout(self.sql.limits.idle, self.reader.message(MAX_MESSAGE));
            let next = tokio::select! {
                next = next => next,
                _ = self.stopping.wait_for(|stop| *stop) => return Err(Trouble::Stopping),
            };
            let Ok(next) = next else {
                part(&mut self.writer, "57P05", "terminating connection due to idle-session timeout").await;
                return Ok(());
            };
            match next? {
                None | Some(In::Terminate(_)) => return Ok(()),
                Some(In::Sync(_)) => {
                    self.until_sync = false;
                    self.store.end_of_batch(self.status);
                    self.ready().await?;
                }
                Some(_) if self.until_sync => {}
                Some(In::Query(query)) => self.simple(&query.query).await?,
                Some(In::Flush(_)) => self.flush().await?,
                Some(message @ (In::Parse(_) | In::Bind(_) | In::Describe(_) | In::Execute(_) | In::Close(_))) => {
                    match self.extended(message).await {
                        Err(Trouble::Sql(error)) => {
                            self.fail(&error)?;
                            self.until_sync = true;
                        }
                        other => other?,
                    }
                    // a client need not ask for its answers; they are not kept for it
                    tokio::time::timeout(TAKE, self.writer.make_room()).await.map_err(|_| Trouble::Gone)??;
                }
                Some(_) => return Err(WireError::Protocol("a message that is not expected here".to_owned()).into()),
            }
        }
    }

    async fn simple(&mut self, text: &str) -> Result<(), Trouble> {
        match admit::read(text) {
            Err(error) => self.fail(&error)?,
            Ok(statements) if statements.is_empty() => {
                self.writer.put(&Out::EmptyQueryResponse(EmptyQueryResponse::new()))?
            }
            Ok(statements) => {
                let text = Some(text).filter(|_| statements.len() == 1);
                for statement in statements {
                    match self.one(statement, text).await {
                        Err(Trouble::Sql(error)) => {
                            self.fail(&error)?;
                            break;
                        }
                        other => other?,
                    }
                }
            }
        }
        self.ready().await
    }

    async fn one(&mut self, statement: Admitted, text: Option<&str>) -> Result<(), Trouble> {
        self.alive(&statement)?;
        if !has_rows(&statement) {
            let tag = self.quick(statement)?;
            return self.complete(tag);
        }
        let Self { sql, reader, writer, session, key, stopping, .. } = self;
        let limit = session.settings().timeout(sql.limits.statement);
        let tag = guarded(reader, key, stopping, limit, async {
            let _place = place(sql).await?;
            let planned = session.plan(statement, text).await?;
            let ended = planned.clone();
            let mut rows = session.run(planned, &Format::UnifiedText).await?;
            writer.put(&Out::RowDescription(description(rows.fields())))?;
            let (count, _) = send(&mut rows, writer, usize::MAX, &sql.counts).await?;
            Ok(ended.tag(count))
        });
        let tag = tag.await?;
        self.complete(tag)
    }

    /// Does what has no rows; the tag of it.
    pub(super) fn quick(&mut self, statement: Admitted) -> Result<String, Trouble> {
        Ok(match statement {
            Admitted::Set(name, value) => {
                self.session.set(&name, value.as_deref())?;
                if name == TENANT {
                    // what was planned before sees what was seen before
                    self.store = Store::default();
                }
                self.report(&name)?;
                if value.is_some() { "SET" } else { "RESET" }.to_owned()
            }
            Admitted::ResetAll => {
                self.session.settings().reset();
                self.report("application_name")?;
                "RESET".to_owned()
            }
            Admitted::DiscardAll => {
                self.store.forget(None);
                self.session.settings().reset();
                "DISCARD ALL".to_owned()
            }
            Admitted::Deallocate(name) => {
                self.store.forget(name.as_deref());
                if name.is_some() { "DEALLOCATE" } else { "DEALLOCATE ALL" }.to_owned()
            }
            Admitted::Begin => {
                self.status = TransactionStatus::Transaction;
                "BEGIN".to_owned()
            }
            Admitted::Commit | Admitted::Rollback => {
                let failed = std::mem::replace(&mut self.status, TransactionStatus::Idle) == TransactionStatus::Error;
                if failed || statement == Admitted::Rollback { "ROLLBACK" } else { "COMMIT" }.to_owned()
            }
            Admitted::RollbackTo => {
                self.status = TransactionStatus::Transaction;
                "ROLLBACK".to_owned()
            }
            Admitted::Nothing(tag) => tag.to_owned(),
            Admitted::Query(_) | Admitted::Explain(_) | Admitted::Show(_) => return Err(SqlError::Internal.into()),
        })
    }

    /// In a transaction that failed only its end is taken.
    pub(super) fn alive(&self, statement: &Admitted) -> Result<(), SqlError> {
        let ends = matches!(statement, Admitted::Commit | Admitted::Rollback | Admitted::RollbackTo);
        if self.status == TransactionStatus::Error && !ends { Err(SqlError::FailedTransaction) } else { Ok(()) }
    }

    fn report(&mut self, name: &str) -> Result<(), WireError> {
        let Some(name) = Settings::is_reported(name) else { return Ok(()) };
        let value = self.session.settings().get(name).unwrap_or_default();
        self.writer.put(&Out::ParameterStatus(ParameterStatus::new(name.to_owned(), value)))
    }

    pub(super) fn complete(&mut self, tag: String) -> Result<(), Trouble> {
        self.sql.counts.end(Ended::Done);
        Ok(self.writer.put(&Out::CommandComplete(CommandComplete::new(tag)))?)
    }

    fn fail(&mut self, error: &SqlError) -> Result<(), Trouble> {
        tracing::debug!(code = error.code(), %error, "a statement over SQL");
        self.sql.counts.end(match error {
            SqlError::ReadOnly(_) | SqlError::NotAllowed(_) => Ended::Refused,
            SqlError::TimedOut | SqlError::Cancelled => Ended::Stopped,
            _ => Ended::Failed,
        });
        if self.status == TransactionStatus::Transaction {
            self.status = TransactionStatus::Error;
        }
        Ok(self.writer.put(&Out::ErrorResponse(error.response()))?)
    }

    async fn ready(&mut self) -> Result<(), Trouble> {
        self.writer.put(&Out::ReadyForQuery(ReadyForQuery::new(self.status)))?;
        self.flush().await
    }

    async fn flush(&mut self) -> Result<(), Trouble> {
        tokio::time::timeout(TAKE, self.writer.flush()).await.map_err(|_| Trouble::Gone)??;
        Ok(())
    }

    /// Does one thing of the extended protocol within the limits of a statement.
    async fn extended(&mut self, message: In) -> Result<(), Trouble> {
        match message {
            In::Parse(parse) => self.parse(parse).await,
            In::Bind(bind) => self.bind(&bind).await,
            In::Describe(describe) => self.describe(&describe),
            In::Execute(execute) => self.execute(&execute).await,
            In::Close(close) => self.close(&close),
            _ => Ok(()),
        }
    }

    pub(super) fn watched(&mut self) -> (Watched<'_>, &mut Writer, &mut Session, &mut Store) {
        let Self { sql, reader, writer, session, store, key, stopping, .. } = self;
        let limit = session.settings().timeout(sql.limits.statement);
        (Watched { reader, key, stopping, limit }, writer, session, store)
    }
}

/// By what a statement is stopped.
pub(super) struct Watched<'a> {
    reader: &'a mut Reader,
    key: &'a Key,
    stopping: &'a mut watch::Receiver<bool>,
    limit: Duration,
}

impl Watched<'_> {
    pub(super) async fn during<T>(self, work: impl Future<Output = Result<T, Trouble>>) -> Result<T, Trouble> {
        guarded(self.reader, self.key, self.stopping, self.limit, work).await
    }
}

pub(super) fn has_rows(statement: &Admitted) -> bool {
    matches!(statement, Admitted::Query(_) | Admitted::Explain(_) | Admitted::Show(_))
}

/// Waits for a place among the statements that run.
pub(super) async fn place(sql: &Sql) -> Result<tokio::sync::SemaphorePermit<'_>, SqlError> {
    sql.running.acquire().await.map_err(|_| SqlError::Internal)
}

/// Works until it is done, until its time is over, until it is cancelled, or until nobody waits for it.
async fn guarded<T>(
    reader: &mut Reader,
    key: &Key,
    stopping: &mut watch::Receiver<bool>,
    limit: Duration,
    work: impl Future<Output = Result<T, Trouble>>,
) -> Result<T, Trouble> {
    let stopped = async {
        if stopping.wait_for(|stop| *stop).await.is_ok() {
            tokio::time::sleep(DRAIN).await;
        }
    };
    tokio::select! {
        biased;
        () = key.asked() => Err(SqlError::Cancelled.into()),
        () = tokio::time::sleep(limit) => Err(SqlError::TimedOut.into()),
        () = reader.gone() => Err(Trouble::Gone),
        () = stopped => Err(Trouble::Stopping),
        // last: work that is never short of something to do takes all that a turn may take, and leaves nothing to those after it
        done = work => done,
    }
}

/// Sends rows, and says how many and whether there may be more.
pub(super) async fn send(
    rows: &mut Rows,
    writer: &mut Writer,
    most: usize,
    counts: &Counts,
) -> Result<(usize, bool), Trouble> {
    let mut sent = 0;
    while sent < most {
        let Some(row) = rows.next().await? else { return Ok((sent, false)) };
        counts.row(row.data.len() as u64);
        writer.put(&Out::DataRow(row))?;
        writer.make_room().await?;
        sent += 1;
    }
    Ok((sent, true))
}
