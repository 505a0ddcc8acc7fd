//! What fills the tables: one thread that follows the topics they are read from, from where they are sealed.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::cli::keys::Keys;
use crate::cli::simulate::asked;
use crate::cli::{Chain, Failure, explain, load, paneled, securing};
use crate::clock::Wall;
use crate::config::{Config, Listen, Role};
use crate::kafka::follow::{Follower, Start};
use crate::kafka::reader::OwnedRecord;
use crate::kafka::{ClientSettings, ShellConfig, Topics};
use crate::metrics::Metrics;
use crate::metrics::labels::{self, Label as _};
use crate::serve::access::Access;
use crate::serve::panels;
use crate::serve::reads::events::News;
use crate::serve::reads::explain::Explainer;
use crate::serve::reads::simulate::Simulator;
use crate::serve::sql::{self, Ended, Sql};
use crate::serve::tables::schema::Source;
use crate::serve::tables::{Bounds, Limits, Record, SEALED, Tables, Taken};
use crate::serve::tls::Speaks;

/// How long one look at the topics may take: a shutdown is noticed after it.
const LOOK: Duration = Duration::from_millis(100);
/// A look that found nothing says that what was committed so long before it began is here, µs.
const BEHIND: i64 = 100_000;
/// How long the folder of sealed tables is waited for while another process holds it: the one before may be at its end.
const YIELDED: Duration = Duration::from_secs(15);
/// Between attempts to reach the topics.
const RETRY: Duration = Duration::from_secs(1);
/// How often it is looked whether there is enough to seal, and what there is is counted.
const TIDY: Duration = Duration::from_secs(2);
/// How often everything is sealed: what a restart has to read again.
const SEAL: Duration = Duration::from_secs(3_600);

/// Where the tables come from.
pub(super) struct Tabling {
    client: ClientSettings,
    topics: Topics,
    /// Where they are sealed; `None`: nowhere.
    dir: Option<PathBuf>,
    bounds: Bounds,
    limits: Limits,
    /// Where the process is, for its commands.
    pub(super) shell: ShellConfig,
    /// What its commands are signed with.
    pub(super) keys: Arc<Keys>,
    /// The panels.
    pub(super) panels: panels::files::Source,
    /// An alert about a panel is said again after so long.
    pub(super) renew: Duration,
    /// What explains decisions.
    pub(super) explainer: Explainer,
    /// What says what policies would have done.
    pub(super) simulator: Simulator,
    /// Where SQL is answered.
    sql: Listen,
    /// A free port does where that one is taken.
    any_port: bool,
}

impl Tabling {
    /// Of a configuration; `None`: the process does not play the role serve.
    pub(super) fn of(config: &Config, keys: &Arc<Keys>) -> Option<Self> {
        config.roles.contains(&Role::Serve).then(|| {
            let shell = load::shell(config);
            let (client, topics, slot) = (shell.client.clone(), shell.topics.clone(), shell.slot.clone());
            let l = &config.limits;
            let bounds = Bounds { rows: l.table_rows, keys: l.table_keys, bytes: l.table_bytes, ..Bounds::default() };
            let limits = Limits { time: l.query_time, memory: l.query_bytes, rows: l.query_rows, ..Limits::default() };
            // two processes may share a data directory, and never a slot
            let dir = Some(config.paths.data.join(SEALED).join(slot));
            let explainer = explain::explainer(shell.clone(), load::tuning(config));
            let simulator = asked::simulator(shell.clone(), load::tuning(config));
            let (panels, renew) = (paneled::source(config), config.alerts.external_timeout / 2);
            let (keys, sql) = (Arc::clone(keys), config.sql.clone());
            Self {
                client,
                topics,
                dir,
                bounds,
                limits,
                shell,
                keys,
                panels,
                renew,
                explainer,
                simulator,
                sql,
                any_port: false,
            }
        })
    }

    /// In memory alone, for as long as the process lives.
    pub(super) fn passing(shell: &ShellConfig, keys: &Arc<Keys>) -> Self {
        let (client, topics) = (shell.client.clone(), shell.topics.clone());
        let explainer = explain::explainer(shell.clone(), load::defaults());
        let simulator = asked::simulator(shell.clone(), load::defaults());
        let (bounds, limits, config) = (Bounds::default(), Limits::default(), Config::default());
        let (shell, keys, panels) = (shell.clone(), Arc::clone(keys), panels::files::Source::Shipped);
        let (renew, sql) = (config.alerts.external_timeout / 2, config.sql.clone());
        Self {
            client,
            topics,
            dir: None,
            bounds,
            limits,
            shell,
            keys,
            panels,
            renew,
            explainer,
            simulator,
            sql,
            any_port: true,
        }
    }

    fn listen(&self) -> Result<std::net::TcpListener, Failure> {
        let address = self.sql.address;
        match std::net::TcpListener::bind(address) {
            Err(e) if self.any_port && e.kind() == std::io::ErrorKind::AddrInUse => {
                std::net::TcpListener::bind((address.ip(), 0)).map_err(Failure::reach)
            }
            bound => bound.map_err(|e| {
                Failure::Reach(format!("cannot listen on {address} for SQL: {e}; choose another with [sql] listen"))
            }),
        }
    }
}

fn topic(topics: &Topics, source: Source) -> &str {
    match source {
        Source::Signals => &topics.signals,
        Source::Alerts => &topics.alerts,
        Source::Interventions => &topics.interventions,
        Source::Runs => &topics.runs,
        Source::Lessons => &topics.lessons,
        Source::Policies => &topics.policies,
        Source::PolicyLevel => &topics.policy_level,
        Source::Evaluations => &topics.evaluations,
        Source::Audit => &topics.audit,
        Source::Live => &topics.live,
    }
}

/// The threads; they end when this is dropped.
pub(super) struct Filling {
    /// Where SQL is answered.
    pub(super) sql: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    answering: Option<(watch::Sender<bool>, JoinHandle<()>)>,
}

impl Drop for Filling {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some((stop, thread)) = self.answering.take() {
            if stop.send(true).is_err() {
                tracing::debug!("SQL had ended before");
            }
            if thread.join().is_err() {
                tracing::error!("the thread that answers SQL panicked");
            }
        }
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that fills the tables panicked");
        }
    }
}

/// Answers SQL on threads of its own: a statement may take long, and nobody who asks otherwise waits for it.
fn answer(listener: std::net::TcpListener, sql: Arc<Sql>) -> Result<(watch::Sender<bool>, JoinHandle<()>), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().thread_name("sql").build();
    let runtime = runtime.map_err(Failure::reach)?;
    listener.set_nonblocking(true).map_err(Failure::reach)?;
    let listener = {
        let _inside = runtime.enter();
        tokio::net::TcpListener::from_std(listener).map_err(Failure::reach)?
    };
    let (stop, stopped) = watch::channel(false);
    let body = move || {
        if let Err(error) = runtime.block_on(sql::serve(listener, sql, stopped)) {
            tracing::error!(%error, "SQL is no longer answered");
        }
        // a statement that does not come up for air is not waited for
        runtime.shutdown_background();
    };
    let thread = std::thread::Builder::new().name("sql-main".into()).spawn(body).map_err(Failure::reach)?;
    Ok((stop, thread))
}

/// Begins to fill tables, and to answer SQL over them.
pub(super) fn fill(
    tabling: Tabling,
    news: News,
    access: Arc<Access>,
    metrics: &Arc<Metrics>,
) -> Result<(Tables, Filling), Failure> {
    let tables = Tables::new(tabling.bounds, tabling.limits, Wall::now).map_err(Failure::reach)?;
    let limits = sql::Limits { statement: tabling.limits.time.max(Duration::from_secs(30)), ..sql::Limits::default() };
    let tls = securing::tls(tabling.sql.tls.as_ref(), Speaks::Postgres)?;
    let sql = Arc::new(Sql::new(Arc::new(tables.clone()), access, limits).map_err(Failure::reach)?.with_tls(tls));
    let listener = tabling.listen()?;
    let address = listener.local_addr().map_err(Failure::reach)?;
    let answering = Some(answer(listener, Arc::clone(&sql))?);
    let stop = Arc::new(AtomicBool::new(false));
    let filler = Filler {
        sql,
        told: SqlTold::default(),
        tabling,
        tables: tables.clone(),
        news,
        metrics: Arc::clone(metrics),
        stop: Arc::clone(&stop),
        sources: BTreeMap::new(),
        said: Vec::new(),
        unsealed: String::new(),
        lock: None,
        begun: Instant::now(),
    };
    let thread = std::thread::Builder::new().name("tables-fill".into()).spawn(move || filler.run());
    Ok((tables, Filling { sql: address, stop, thread: Some(thread.map_err(Failure::reach)?), answering }))
}

/// What was told of SQL to the metrics.
#[derive(Default)]
struct SqlTold {
    ended: [u64; 4],
    connections: [u64; 3],
    rows: u64,
}

struct Filler {
    sql: Arc<Sql>,
    told: SqlTold,
    tabling: Tabling,
    tables: Tables,
    news: News,
    metrics: Arc<Metrics>,
    stop: Arc<AtomicBool>,
    /// By topic.
    sources: BTreeMap<String, Source>,
    /// What was said once already.
    said: Vec<(Source, Taken)>,
    /// Why rows could not be sealed, as it was said last.
    unsealed: String,
    /// Held while the folder of sealed tables is this process's.
    lock: Option<File>,
    begun: Instant,
}

/// The folder of sealed tables for this process alone; `None`: another process has it.
fn lock(dir: &Path) -> std::io::Result<Option<File>> {
    std::fs::create_dir_all(dir)?;
    let file = File::create(dir.join("lock"))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

impl Filler {
    fn run(mut self) {
        self.sources = Source::ALL.into_iter().map(|s| (topic(&self.tabling.topics, s).to_owned(), s)).collect();
        let Some(mut follower) = self.follower() else { return };
        let (mut tidied, mut sealed) = (Instant::now(), Instant::now());
        while !self.stop.load(Ordering::Acquire) {
            match follower.next(Duration::ZERO) {
                Some(record) => self.record(&record),
                None => {
                    let before = Wall::now();
                    if follower.caught_up() {
                        self.tables.filled();
                    }
                    match follower.next(LOOK) {
                        Some(record) => self.record(&record),
                        None => self.tables.seen(Wall(before.0 - BEHIND)),
                    }
                }
            }
            if tidied.elapsed() >= TIDY {
                tidied = Instant::now();
                let all = sealed.elapsed() >= SEAL;
                if all {
                    sealed = Instant::now();
                }
                self.tidy(all);
            }
        }
    }

    /// Opens what is sealed and follows the topics from there.
    fn follower(&mut self) -> Option<Follower> {
        let mut said = String::new();
        while !self.stop.load(Ordering::Acquire) {
            match self.start() {
                Ok(follower) => return Some(follower),
                Err(error) if error != said => {
                    tracing::warn!(error, "the tables cannot be filled yet, trying again");
                    said = error;
                }
                Err(_) => {}
            }
            let until = Instant::now() + RETRY;
            while Instant::now() < until && !self.stop.load(Ordering::Acquire) {
                std::thread::sleep(LOOK.min(until.saturating_duration_since(Instant::now())));
            }
        }
        None
    }

    fn start(&mut self) -> Result<Follower, String> {
        self.own_folder()?;
        let name = "runwarden-tables";
        let cluster = match &self.tabling.dir {
            None => String::new(),
            Some(_) => Follower::cluster(&self.tabling.client).map_err(|e| Chain(&e).to_string())?,
        };
        let mut starts = Vec::new();
        for source in Source::ALL {
            let topic = topic(&self.tabling.topics, source);
            let mut next = Start::new();
            // a second attempt begins anew: what the first one read is read again
            self.tables.forget(source);
            if let Some(dir) = &self.tabling.dir {
                next = self.tables.open(source, dir, topic, &cluster).map_err(|e| e.to_string())?;
            }
            starts.push((topic, next));
        }
        let (follower, beyond) =
            Follower::at(&self.tabling.client, name, &starts).map_err(|e| Chain(&e).to_string())?;
        for topic in beyond {
            // the log is shorter than what was read of it: it is another one
            if let Some(source) = self.sources.get(&topic) {
                tracing::warn!(topic, "the topic was made anew: what was sealed of it is forgotten");
                self.tables.restart(*source).map_err(|e| e.to_string())?;
            }
        }
        Ok(follower)
    }

    /// Takes the folder of sealed tables for this process, or does without it.
    fn own_folder(&mut self) -> Result<(), String> {
        let Some(dir) = self.tabling.dir.as_ref().filter(|_| self.lock.is_none()) else { return Ok(()) };
        let said = dir.display().to_string();
        self.lock = lock(dir).map_err(|error| format!("{said}: {error}"))?;
        if self.lock.is_some() {
            return Ok(());
        }
        if self.begun.elapsed() < YIELDED {
            return Err(format!("another process has {said}"));
        }
        tracing::warn!(
            folder = said,
            "another process has the folder of sealed tables: these are kept in memory alone. Give each process a [kafka] slot of its own"
        );
        self.tabling.dir = None;
        Ok(())
    }

    fn record(&mut self, record: &OwnedRecord) {
        let Some(source) = self.sources.get(&record.topic).copied() else { return };
        let kind = record.headers.iter().find(|(name, _)| name == "ce_type").map(|(_, value)| value.as_slice());
        let taken = self.tables.take(
            source,
            Record {
                partition: record.partition,
                offset: record.offset,
                key: record.key.as_deref(),
                kind,
                payload: record.payload.as_deref(),
            },
        );
        match taken {
            Ok(Taken::Row) => {
                if self.news.is_heard()
                    && let (Some(name), Some(payload)) = (News::name(source), &record.payload)
                {
                    self.news.tell(name, payload);
                }
            }
            Ok(Taken::Other) => {}
            Ok(missed @ (Taken::Unread | Taken::Full)) => {
                let label = if missed == Taken::Full { labels::Untabled::Full } else { labels::Untabled::Unread };
                self.metrics.untabled.get(label).inc();
                if !self.said.contains(&(source, missed)) {
                    self.said.push((source, missed));
                    let why = if missed == Taken::Full {
                        "the table has no room for more keys ([limits] table-keys)"
                    } else {
                        "this version cannot read it"
                    };
                    tracing::warn!(
                        topic = record.topic,
                        partition = record.partition,
                        offset = record.offset,
                        why,
                        "a record is in no table; further ones are counted"
                    );
                }
            }
            Err(error) => tracing::error!(%error, topic = record.topic, "a table cannot be begun anew"),
        }
    }

    fn tell_of_sql(&mut self) {
        let (counts, m, told) = (self.sql.counts(), &self.metrics, &mut self.told);
        m.sql_connections.set(i64::try_from(counts.open()).unwrap_or(i64::MAX));
        let more = |now: u64, before: &mut u64| now - std::mem::replace(before, now);
        for (how, before) in Ended::ALL.into_iter().zip(&mut told.ended) {
            if let Some(label) = labels::SqlEnded::parse(how.as_str()) {
                m.sql_statements.get(label).inc_by(more(counts.ended(how), before));
            }
        }
        let [accepted, turned_away, denied] = &mut told.connections;
        m.sql_logins.get(labels::SqlLogin::Accepted).inc_by(more(counts.accepted(), accepted));
        m.sql_logins.get(labels::SqlLogin::TurnedAway).inc_by(more(counts.turned_away(), turned_away));
        m.sql_logins.get(labels::SqlLogin::Denied).inc_by(more(counts.denied(), denied));
        m.sql_rows.inc_by(more(counts.rows(), &mut told.rows));
    }

    fn tidy(&mut self, all: bool) {
        for source in Source::ALL {
            if let Err(error) = self.tables.tidy(source, all) {
                self.metrics.seal_failures.inc();
                let error = error.to_string();
                if self.unsealed != error {
                    tracing::warn!(
                        error,
                        "rows cannot be sealed; they stay in memory, and further attempts are counted"
                    );
                    self.unsealed = error;
                }
            }
        }
        self.tell_of_sql();
        for (name, rows, _) in self.tables.sizes() {
            if let Some(label) = labels::TableName::parse(name) {
                self.metrics.table_rows.get(label).set(i64::try_from(rows).unwrap_or(i64::MAX));
            }
        }
        let (files, bytes) = self.tables.sealed();
        self.metrics.sealed_files.set(i64::try_from(files).unwrap_or(i64::MAX));
        self.metrics.sealed_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_of_sealed_tables_is_one_process_s_until_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("tables/slot");
        let first = lock(&folder).unwrap();
        assert!(first.is_some() && lock(&folder).unwrap().is_none());
        drop(first);
        assert!(lock(&folder).unwrap().is_some());
    }
}
