//! Tables over what runwarden says: read from its topics, recent rows in memory, older ones sealed as Parquet, asked with SQL.
//!
//! `contracts.md` names the tables. Who fills them is a follower of the topics; nothing here reads Kafka, and nothing here reaches into a
//! partition's state. Questions run on threads of their own, within bounds of time, memory, rows and number, so that whoever asks too much is
//! told so and nobody else waits.

mod catalog;
pub mod graph;
mod memory;
pub mod rows;
pub mod schema;
pub mod sealed;
mod store;
mod views;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::{CatalogProvider as _, MemoryCatalogProvider, SchemaProvider};
use datafusion::error::DataFusionError;
use datafusion::execution::context::SQLOptions;
use datafusion::execution::memory_pool::GreedyMemoryPool;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::{SessionState, SessionStateBuilder};
use datafusion::prelude::{SessionConfig, SessionContext};
use datafusion::scalar::ScalarValue;
use futures::StreamExt as _;
use tokio::sync::{Semaphore, watch};

use self::catalog::{CATALOG, SCHEMA, Scoped};
use self::graph::Known;
use self::schema::{Source, Table};
pub use self::sealed::SealError;
use self::store::Store;
pub use self::store::{Bounds, Record, Taken};
pub use self::views::VIEWS;
use crate::clock::{Micros, Wall};

/// The folder of sealed tables in the data directory: a folder for each slot in it, and one for each table in these.
pub const SEALED: &str = "tables";

/// What whoever asks is told until the topics were read to their ends once.
pub const NOT_WHOLE: &str = "the tables are still being read from the topics: what is shown would not be whole";

/// Whose rows are seen.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Everybody's.
    All,
    /// Of one tenant, and what concerns every tenant.
    Tenant(Arc<str>),
}

impl Scope {
    /// Of a tenant; `*` is all.
    pub fn of(tenant: &str) -> Self {
        if tenant == "*" { Self::All } else { Self::Tenant(Arc::from(tenant)) }
    }
}

/// Why a question has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// The SQL is wrong.
    #[error("{0}")]
    Invalid(String),
    /// It is not a question.
    #[error("{0}")]
    Refused(String),
    /// It takes more memory, or has more rows, than a question may.
    #[error("{0}")]
    TooMuch(String),
    /// It takes longer than a question may.
    #[error("the question took longer than {} s: ask for less", .0.as_secs())]
    TooLong(Duration),
    /// Too many ask already.
    #[error("too many questions wait already")]
    Busy,
    /// It could have been answered.
    #[error("{0}")]
    Internal(String),
}

impl From<DataFusionError> for QueryError {
    fn from(error: DataFusionError) -> Self {
        let root = error.find_root();
        let text = root.strip_backtrace();
        match root {
            DataFusionError::ResourcesExhausted(_) => Self::TooMuch("the question takes too much memory".to_owned()),
            DataFusionError::SQL(..)
            | DataFusionError::Plan(_)
            | DataFusionError::SchemaError(..)
            | DataFusionError::NotImplemented(_)
            | DataFusionError::Diagnostic(..)
            | DataFusionError::Configuration(_) => Self::Invalid(text),
            // what an expression makes of a value: a cast, a division by zero, a time that is none
            DataFusionError::ArrowError(..) | DataFusionError::Execution(_) => Self::Invalid(text),
            _ => Self::Internal(text),
        }
    }
}

/// What questions may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How long one may take.
    pub time: Duration,
    /// Memory of all that run at once, in bytes.
    pub memory: usize,
    /// Rows of an answer.
    pub rows: usize,
    /// How many run at once.
    pub running: usize,
    /// How many wait.
    pub waiting: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { time: Duration::from_secs(10), memory: 128 << 20, rows: 100_000, running: 2, waiting: 128 }
    }
}

/// Makes a table as a scope sees it.
pub type Make = Box<dyn Fn(&Scope) -> RecordBatch + Send + Sync>;

struct Inner {
    stores: Vec<(Source, Mutex<Store>)>,
    clock: fn() -> Wall,
    limits: Limits,
    runtime: Arc<RuntimeEnv>,
    /// Tables of others, by name.
    more: Mutex<BTreeMap<&'static str, Make>>,
    /// Whether the topics were read to their ends once.
    filled: AtomicBool,
    /// Until when (wall time, µs) everything that was committed is in the tables, as far as is known.
    seen: watch::Sender<Micros>,
    contexts: Mutex<HashMap<Scope, SessionContext>>,
    running: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    workers: Mutex<Option<tokio::runtime::Runtime>>,
    handle: tokio::runtime::Handle,
}

/// Contexts of tenants that are kept ready.
const CONTEXTS: usize = 64;

impl Drop for Inner {
    fn drop(&mut self) {
        // may be dropped where blocking is not allowed
        if let Some(workers) = self.workers.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            workers.shutdown_background();
        }
    }
}

/// The tables. Clones share them.
#[derive(Clone)]
pub struct Tables(Arc<Inner>);

impl Tables {
    /// Empty tables. `clock` is [`Wall::now`] outside tests.
    ///
    /// # Errors
    /// No threads to be had.
    pub fn new(bounds: Bounds, limits: Limits, clock: fn() -> Wall) -> Result<Self, QueryError> {
        let internal = |e: &dyn std::fmt::Display| QueryError::Internal(e.to_string());
        let runtime = RuntimeEnvBuilder::new()
            .with_memory_pool(Arc::new(GreedyMemoryPool::new(limits.memory)))
            .build_arc()
            .map_err(|e| internal(&e))?;
        let workers = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(limits.running)
            .thread_name("tables")
            .enable_time()
            .build()
            .map_err(|e| internal(&e))?;
        Ok(Self(Arc::new(Inner {
            stores: Source::ALL.into_iter().map(|source| (source, Mutex::new(Store::new(source, bounds)))).collect(),
            clock,
            limits,
            runtime,
            more: Mutex::default(),
            filled: AtomicBool::new(false),
            seen: watch::Sender::new(Micros::MIN),
            contexts: Mutex::default(),
            running: Arc::new(Semaphore::new(limits.running)),
            waiting: Arc::new(Semaphore::new(limits.running + limits.waiting)),
            handle: workers.handle().clone(),
            workers: Mutex::new(Some(workers)),
        })))
    }

    /// Adds a table that `make` computes when somebody asks. Where it has `tenant_id`, tenants are kept apart by it.
    pub fn add(&self, name: &'static str, make: Make) {
        self.0.more.lock().unwrap_or_else(PoisonError::into_inner).insert(name, make);
    }

    /// Takes up what is sealed of a topic. By partition, where the topic is to be read from; at the beginning where nothing is said.
    ///
    /// # Errors
    /// Files.
    pub fn open(
        &self,
        source: Source,
        dir: &Path,
        topic: &str,
        cluster: &str,
    ) -> Result<BTreeMap<i32, i64>, SealError> {
        self.0.with(source, |store| store.open(dir, topic, cluster))
    }

    /// Forgets what is in memory of a topic; what is sealed can be taken up again.
    pub fn forget(&self, source: Source) {
        self.0.with(source, Store::forget);
    }

    /// Forgets what is known of a topic: it is read from its beginning.
    ///
    /// # Errors
    /// Files.
    pub fn restart(&self, source: Source) -> Result<(), SealError> {
        self.0.with(source, Store::restart)
    }

    /// Takes a record of a topic.
    ///
    /// # Errors
    /// Files, when too much of what is sealed has changed.
    pub fn take(&self, source: Source, record: Record<'_>) -> Result<Taken, SealError> {
        self.0.with(source, |store| store.take(record))
    }

    /// Seals what is in memory of a topic when it is enough, or when `all`. True: something was sealed.
    ///
    /// # Errors
    /// Files.
    pub fn tidy(&self, source: Source, all: bool) -> Result<bool, SealError> {
        let now = (self.0.clock)().0;
        self.0.with(source, |store| store.tidy(now, all))
    }

    /// By table: its rows in memory, and their bytes.
    pub fn sizes(&self) -> Vec<(&'static str, usize, usize)> {
        let sizes = |(source, _): &(Source, Mutex<Store>)| {
            self.0.with(*source, |store| {
                store.rows().map(|(table, rows, bytes)| (table.name, rows, bytes)).collect::<Vec<_>>()
            })
        };
        self.0.stores.iter().flat_map(sizes).collect()
    }

    /// Files that are sealed, and their bytes.
    pub fn sealed(&self) -> (usize, u64) {
        let each = self.0.stores.iter().map(|(source, _)| self.0.with(*source, |store| store.sealed()));
        each.fold((0, 0), |(files, bytes), (f, b)| (files + f, bytes + b))
    }

    /// What contradicts what, and what depends on what.
    pub fn known(&self) -> Arc<Known> {
        self.0.known()
    }

    /// Says that the topics were read to their ends once: what is shown is whole.
    pub fn filled(&self) {
        self.0.filled.store(true, Ordering::Release);
    }

    /// Whether what is shown is whole.
    pub fn is_filled(&self) -> bool {
        self.0.filled.load(Ordering::Acquire)
    }

    /// Says that everything that was committed until `at` is in the tables.
    pub fn seen(&self, at: Wall) {
        self.0.seen.send_if_modified(|seen| {
            let newer = at.0 > *seen;
            *seen = at.0.max(*seen);
            newer
        });
    }

    /// Waits until everything that was committed until `at` is in the tables; false: not within `patience`.
    pub async fn wait_for(&self, at: Wall, patience: Duration) -> bool {
        let mut seen = self.0.seen.subscribe();
        tokio::time::timeout(patience, seen.wait_for(|seen| *seen >= at.0)).await.is_ok_and(|seen| seen.is_ok())
    }

    /// A session that sees all tables and views of a scope. What it may do is up to whoever runs its statements.
    ///
    /// # Errors
    /// None that a session without files has.
    pub fn session(&self, scope: &Scope) -> Result<SessionContext, QueryError> {
        let plain = self.state(scope, None);
        Ok(SessionContext::new_with_state(self.state(scope, Some(plain))))
    }

    fn state(&self, scope: &Scope, views: Option<SessionState>) -> SessionState {
        let config = SessionConfig::new()
            .with_default_catalog_and_schema(CATALOG, SCHEMA)
            .with_create_default_catalog_and_schema(false)
            .with_information_schema(true)
            .with_target_partitions(1)
            .set_bool("datafusion.execution.parquet.pushdown_filters", true)
            .set_bool("datafusion.sql_parser.map_string_types_to_utf8view", false);
        let state = SessionStateBuilder::new()
            .with_config(config)
            .with_runtime_env(Arc::clone(&self.0.runtime))
            .with_default_features()
            .build();
        let scoped: Arc<dyn SchemaProvider> =
            Arc::new(Scoped { inner: Arc::downgrade(&self.0), scope: scope.clone(), views });
        let catalog = MemoryCatalogProvider::new();
        match catalog.register_schema(SCHEMA, scoped) {
            Ok(_) => drop(state.catalog_list().register_catalog(CATALOG.to_owned(), Arc::new(catalog))),
            Err(error) => tracing::error!(%error, "a session has no tables"),
        }
        state
    }

    fn context(&self, scope: &Scope) -> Result<SessionContext, QueryError> {
        let mut contexts = self.0.contexts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(context) = contexts.get(scope) {
            return Ok(context.clone());
        }
        let context = self.session(scope)?;
        if contexts.len() >= CONTEXTS {
            contexts.clear();
        }
        contexts.insert(scope.clone(), context.clone());
        Ok(context)
    }

    /// Asks one question within the limits. `$1`, `$2` … are the parameters.
    ///
    /// # Errors
    /// See [`QueryError`].
    pub async fn query(
        &self,
        scope: &Scope,
        sql: &str,
        parameters: Vec<ScalarValue>,
    ) -> Result<Vec<RecordBatch>, QueryError> {
        // more than may wait are told to come again
        let waiting = Arc::clone(&self.0.waiting).try_acquire_owned().map_err(|_| QueryError::Busy)?;
        let (context, running, limits) = (self.context(scope)?, Arc::clone(&self.0.running), self.0.limits);
        let sql = sql.to_owned();
        let asked = async move {
            let _waiting = waiting;
            let Ok(_running) = running.acquire_owned().await else { return Err(QueryError::Busy) };
            run(&context, &sql, parameters, limits).await
        };
        // whoever went away, or is told that it takes too long, is not worked for: the work ends where it next comes up for air
        let task = AbortOnDrop(self.0.handle.spawn(asked));
        tokio::time::timeout(limits.time, task).await.unwrap_or(Err(QueryError::TooLong(limits.time)))
    }

    /// The columns of an answer, without asking.
    ///
    /// # Errors
    /// See [`QueryError`].
    pub async fn plan(&self, scope: &Scope, sql: &str) -> Result<SchemaRef, QueryError> {
        let frame = self.context(scope)?.sql_with_options(sql, reads_only()).await?;
        Ok(Arc::new(frame.schema().as_arrow().clone()))
    }
}

struct AbortOnDrop(tokio::task::JoinHandle<Result<Vec<RecordBatch>, QueryError>>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Future for AbortOnDrop {
    type Output = Result<Vec<RecordBatch>, QueryError>;

    fn poll(mut self: std::pin::Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> std::task::Poll<Self::Output> {
        std::pin::Pin::new(&mut self.0).poll(cx).map(|ended| match ended {
            Ok(answer) => answer,
            Err(error) => Err(QueryError::Internal(format!("the question ended: {error}"))),
        })
    }
}

fn reads_only() -> SQLOptions {
    SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false)
}

async fn run(
    context: &SessionContext,
    sql: &str,
    parameters: Vec<ScalarValue>,
    limits: Limits,
) -> Result<Vec<RecordBatch>, QueryError> {
    let frame = context.sql_with_options(sql, reads_only()).await?;
    let frame = if parameters.is_empty() { frame } else { frame.with_param_values(parameters)? };
    let mut stream = frame.execute_stream().await?;
    let (mut batches, mut rows) = (Vec::new(), 0);
    while let Some(batch) = stream.next().await {
        let batch = batch?;
        rows += batch.num_rows();
        if rows > limits.rows {
            return Err(QueryError::TooMuch(format!("an answer has at most {} rows: ask for less", limits.rows)));
        }
        batches.push(batch);
    }
    Ok(batches)
}

impl Inner {
    fn with<T>(&self, source: Source, act: impl FnOnce(&mut Store) -> T) -> T {
        // every source has its place, in the order of `Source::ALL`
        let (_, store) = &self.stores[source as usize];
        act(&mut store.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn snapshot(&self, table: &'static Table) -> Result<store::Snapshot, DataFusionError> {
        let now = (self.clock)().0;
        Ok(self.with(table.source, |store| store.snapshot(table, now))?)
    }

    fn known(&self) -> Arc<Known> {
        self.with(Source::Policies, |store| store.graph.known())
    }

    fn whole_names(&self) -> Vec<String> {
        let more = self.more.lock().unwrap_or_else(PoisonError::into_inner);
        ["conflicts", "dependencies"].into_iter().chain(more.keys().copied()).map(str::to_owned).collect()
    }

    fn whole(&self, name: &str, scope: &Scope) -> Result<Option<RecordBatch>, DataFusionError> {
        let batch = match name {
            "conflicts" => graph::conflicts_batch(&self.known())?,
            "dependencies" => graph::dependencies_batch(&self.known())?,
            _ => {
                let more = self.more.lock().unwrap_or_else(PoisonError::into_inner);
                let Some(make) = more.get(name) else { return Ok(None) };
                make(scope)
            }
        };
        Ok(Some(batch))
    }
}

#[cfg(test)]
mod tests;
