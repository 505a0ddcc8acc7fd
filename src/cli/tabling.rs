//! What fills the tables: one thread that follows the topics they are read from, from where they are sealed.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::cli::{Chain, Failure, load};
use crate::clock::Wall;
use crate::config::{Config, Role};
use crate::kafka::follow::{Follower, Start};
use crate::kafka::reader::OwnedRecord;
use crate::kafka::{ClientSettings, ShellConfig, Topics};
use crate::metrics::Metrics;
use crate::metrics::labels::{self, Label as _};
use crate::serve::reads::events::News;
use crate::serve::tables::schema::Source;
use crate::serve::tables::{Bounds, Limits, Record, Tables, Taken};

/// How long one look at the topics may take: a shutdown is noticed after it.
const LOOK: Duration = Duration::from_millis(100);
/// A look that found nothing says that what was committed so long before it began is here, µs.
const BEHIND: i64 = 100_000;
/// Between attempts to reach the topics.
const RETRY: Duration = Duration::from_secs(1);
/// How often it is looked whether there is enough to seal.
const TIDY: Duration = Duration::from_secs(10);
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
}

impl Tabling {
    /// Of a configuration; `None`: the process does not play the role serve.
    pub(super) fn of(config: &Config) -> Option<Self> {
        config.roles.contains(&Role::Serve).then(|| {
            let ShellConfig { client, topics, slot, .. } = load::shell(config);
            let l = &config.limits;
            let bounds = Bounds { keys: l.table_keys, bytes: l.table_bytes, ..Bounds::default() };
            let limits = Limits { time: l.query_time, memory: l.query_bytes, rows: l.query_rows, ..Limits::default() };
            // two processes may share a data directory, and never a slot
            let dir = Some(config.paths.data.join("tables").join(slot));
            Self { client, topics, dir, bounds, limits }
        })
    }

    /// In memory alone, for as long as the process lives.
    pub(super) fn passing(client: &ClientSettings, topics: &Topics) -> Self {
        let (client, topics) = (client.clone(), topics.clone());
        Self { client, topics, dir: None, bounds: Bounds::default(), limits: Limits::default() }
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
    }
}

/// The thread; it ends when this is dropped.
pub(super) struct Filling {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Filling {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that fills the tables panicked");
        }
    }
}

/// Begins to fill tables.
pub(super) fn fill(tabling: Tabling, news: News, metrics: &Arc<Metrics>) -> Result<(Tables, Filling), Failure> {
    let tables = Tables::new(tabling.bounds, tabling.limits, Wall::now).map_err(Failure::reach)?;
    let stop = Arc::new(AtomicBool::new(false));
    let filler = Filler {
        tabling,
        tables: tables.clone(),
        news,
        metrics: Arc::clone(metrics),
        stop: Arc::clone(&stop),
        sources: BTreeMap::new(),
        said: Vec::new(),
    };
    let thread = std::thread::Builder::new().name("tables-fill".into()).spawn(move || filler.run());
    Ok((tables, Filling { stop, thread: Some(thread.map_err(Failure::reach)?) }))
}

struct Filler {
    tabling: Tabling,
    tables: Tables,
    news: News,
    metrics: Arc<Metrics>,
    stop: Arc<AtomicBool>,
    /// By topic.
    sources: BTreeMap<String, Source>,
    /// What was said once already.
    said: Vec<(Source, Taken)>,
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
    fn follower(&self) -> Option<Follower> {
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

    fn start(&self) -> Result<Follower, String> {
        let name = "runwarden-tables";
        let cluster = match &self.tabling.dir {
            None => String::new(),
            Some(_) => Follower::cluster(&self.tabling.client).map_err(|e| Chain(&e).to_string())?,
        };
        let mut starts = Vec::new();
        for source in Source::ALL {
            let topic = topic(&self.tabling.topics, source);
            let mut next = BTreeMap::new();
            // a second attempt begins anew: what the first one read is read again
            self.tables.forget(source);
            if let Some(dir) = &self.tabling.dir {
                next = self.tables.open(source, dir, topic, &cluster).map_err(|e| e.to_string())?;
            }
            starts.push((topic, Start { next, whole: source.is_compacted() }));
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

    fn tidy(&self, all: bool) {
        for source in Source::ALL {
            if let Err(error) = self.tables.tidy(source, all) {
                self.metrics.seal_failures.inc();
                tracing::warn!(%error, "rows cannot be sealed; they stay in memory");
            }
        }
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
