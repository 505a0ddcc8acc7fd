//! SQL over the wire protocol of Postgres (V5): the tables, for psql, drivers and Grafana. Everything is a read.
//!
//! It listens on loopback unless told otherwise. With a certificate ([`super::tls`]) sessions are given over TLS only; without one a request
//! for it is declined, and beyond loopback a TLS proxy belongs before it. The password is one of the bearer tokens, and is sent as it is: of
//! a token given by its SHA-256 no other proof can be checked (SCRAM and md5 need what the server does not have).
//!
//! A session sees what its token's tenant sees. What is admitted is said in one place ([`admit`]); what is not is refused before it is
//! planned. Bounded against any client: connections (one too many is told so), the time of a log-in, of idling and of a statement,
//! the statements that run at once, the bytes of a message, the depth of a statement, what is prepared, and the rows and bytes of a result,
//! which is sent while it is made and never kept. The memory of queries is the pool of the tables.
//!
//! The messages are pgwire's, and the catalog mostly `datafusion_pg_catalog`'s; the loop over messages is ours, for the limits.

mod admit;
mod cancel;
mod catalog;
mod connection;
mod counts;
mod errors;
mod extended;
mod functions;
mod results;
mod rewrite;
mod session;
mod settings;
mod startup;
mod wire;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use datafusion_pg_catalog::pg_catalog::PgCatalogStaticTables;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::access::Access;
use super::tables::Tables;
use super::tls::Tls;
use cancel::Cancels;
pub use counts::{Counts, Ended};
use rewrite::Rewriter;

/// Bytes of a text of SQL.
pub const MAX_SQL: usize = 1024 * 1024;
/// Bytes of a message after the log-in: a text of SQL and its parameters.
const MAX_MESSAGE: usize = 2 * MAX_SQL;
/// After shutdown was asked for, a statement that runs has this long to end.
const DRAIN: Duration = Duration::from_secs(2);
/// Clients that are told at once that there is no place for them; more are cut without a word.
const MAX_TURNED_AWAY: usize = 64;
/// The database, and the user that needs no password where none is needed.
const DATABASE: &str = "runwarden";
/// The version whose catalog and behaviour are shown.
const SERVER_VERSION: &str = "16.6";
const SERVER_VERSION_NUM: &str = "160006";

/// How much of anything there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once.
    pub connections: usize,
    /// Statements that run at once; others wait, and the wait counts as their time.
    pub statements: usize,
    /// From the first byte to the end of the log-in.
    pub startup: Duration,
    /// Between two messages of a client.
    pub idle: Duration,
    /// For a statement, with the time that its client takes to read the rows.
    pub statement: Duration,
    /// Rows of a result.
    pub rows: u64,
    /// Bytes of a result.
    pub bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 64,
            statements: 8,
            startup: Duration::from_secs(10),
            idle: Duration::from_secs(600),
            statement: Duration::from_secs(30),
            rows: 1_000_000,
            bytes: 256 * 1024 * 1024,
        }
    }
}

/// What sessions are made of.
pub struct Sql {
    tables: Arc<Tables>,
    access: Arc<Access>,
    limits: Limits,
    running: Semaphore,
    cancels: Arc<Cancels>,
    catalog: Arc<PgCatalogStaticTables>,
    rewriter: Rewriter,
    counts: Counts,
    tls: Option<Arc<Tls>>,
}

impl Sql {
    /// Sessions over these tables, for whom `access` lets in.
    ///
    /// # Errors
    /// The tables of the Postgres catalog cannot be read.
    pub fn new(tables: Arc<Tables>, access: Arc<Access>, limits: Limits) -> io::Result<Self> {
        let catalog = Arc::new(PgCatalogStaticTables::try_new().map_err(io::Error::other)?);
        let (running, cancels, rewriter) = (Semaphore::new(limits.statements), Arc::default(), Rewriter::new());
        let counts = Counts::default();
        Ok(Self { tables, access, limits, running, cancels, catalog, rewriter, counts, tls: None })
    }

    /// Sessions are given over TLS, and not otherwise; `None`: in clear.
    #[must_use]
    pub fn with_tls(self, tls: Option<Arc<Tls>>) -> Self {
        Self { tls, ..self }
    }

    /// What it counts of itself.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }
}

/// Serves `sql` on `listener` until `shutdown` becomes true (or its sender is gone); then stops accepting, ends idle connections, lets
/// statements finish for some seconds, and returns.
///
/// # Errors
/// When the listener itself fails; a failing connection is only logged.
pub async fn serve(listener: TcpListener, sql: Arc<Sql>, mut shutdown: watch::Receiver<bool>) -> io::Result<()> {
    let places = Arc::new(Semaphore::new(sql.limits.connections));
    let refusals = Arc::new(Semaphore::new(MAX_TURNED_AWAY));
    let mut connections = JoinSet::new();
    let stopping = shutdown.clone();
    loop {
        let accepted = tokio::select! {
            // an error means the sender is gone: nobody could ask for a shutdown any more
            _ = shutdown.wait_for(|stop| *stop) => break,
            accepted = accept(&listener) => accepted,
            Some(ended) = connections.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "a connection of SQL failed");
                }
                continue;
            }
        };
        let (stream, peer) = accepted?;
        let (sql, stopping) = (sql.clone(), stopping.clone());
        match places.clone().try_acquire_owned() {
            Ok(place) => {
                connections.spawn(async move {
                    let open = sql.counts.connection();
                    connection::serve(sql.clone(), stream, peer.ip(), stopping).await;
                    drop((open, place));
                });
            }
            Err(_) => {
                sql.counts.turn_away();
                if let Ok(place) = refusals.clone().try_acquire_owned() {
                    connections.spawn(async move {
                        turn_away(&sql, stream).await;
                        drop(place);
                    });
                }
            }
        }
    }
    drop(listener);
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN + Duration::from_secs(1), drained).await.is_err() {
        tracing::warn!("connections of SQL were cut at shutdown");
    }
    Ok(())
}

/// Tells a client that there are too many. It is heard first: an answer to a client that still speaks would be lost.
async fn turn_away(sql: &Sql, stream: TcpStream) {
    let (read, write) = stream.into_split();
    let (mut reader, mut writer) = (wire::Reader::new(read), wire::Writer::new(write));
    match tokio::time::timeout(Duration::from_secs(2), startup::hear(sql, &mut reader, &mut writer)).await {
        Ok(Ok(true)) => connection::part(&mut writer, "53300", "sorry, too many clients already").await,
        Ok(Ok(false)) | Err(_) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a client of SQL was turned away"),
    }
}

async fn accept(listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    loop {
        match listener.accept().await {
            // the peer went away before it was accepted, or descriptors ran out: neither ends the server
            Err(error) if super::http::is_passing(&error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            accepted => return accepted,
        }
    }
}

#[cfg(test)]
mod tests;
