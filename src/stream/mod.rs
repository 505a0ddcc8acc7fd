//! Incremental windowed SQL over Arrow.
//!
//! A [`Query`] is a SELECT with one windowed aggregation, compiled once by a [`Compiler`]. An [`Engine`] keeps the state of
//! several queries and is pushed record batches in order; it answers with results of windows still open (for queries whose
//! value can only rise), final results when windows close, and what came too late. The same text also runs as a batch query
//! ([`Query::run_batch`]), which is the oracle of the tests. The room knows nothing of where rows come from.
//!
//! ```sql
//! SELECT tenant_id, run_id, window_start, window_end, sum(total_tokens) AS value
//! FROM hop(telemetry, event_time, INTERVAL '10 seconds', INTERVAL '5 minutes')   -- slide, size
//! GROUP BY tenant_id, run_id, window_start, window_end
//! ```
//!
//! # Windows
//! `tumble(t, time, size)` · `hop(t, time, slide, size)` · `session(t, time, gap)` · `session(t, time, gap, marker)`, a session
//! that also ends at a row for which `marker` is true (its time included). As sugar the function may stand in GROUP BY:
//! `FROM telemetry GROUP BY tenant_id, tumble(event_time, INTERVAL '1 minute')`. Windows are aligned to the Unix epoch in UTC
//! and half open. Any DataFusion aggregate works, with FILTER and HAVING, and `quantile(x, q)` beside them: a
//! mergeable sketch within 1 % of the value at rank ⌈q·n⌉. Refusals (joins, OVER, ORDER BY, DISTINCT, now(), …) say
//! what to write instead ([`CompileError`]).
//!
//! # Time
//! Each distinct value of the clock column has its own watermark: the highest event time seen so far, per row in order, minus
//! the lateness. A row is late for a window that ends at or before the watermark at that row; for a session, also when its time
//! is at or before watermark − gap or it would join a closed session. A row late for all its windows is reported
//! ([`Late`]), one late for some is counted. [`Engine::advance`] moves a watermark without rows.
//!
//! # What never depends on how the input is cut into batches
//! Final results with the row that closed them, late rows, traces, and the state itself, bit for bit: old state is merged
//! first and rows are applied in order; panes and tree nodes are folded in time order; a batch is cut only before a row that
//! would change a pane of a window that closed earlier in it. Results before the close ([`Output::early`]) are per sub-batch,
//! and an upper bound of every value in it, except where a session was split: those groups are always traced.
//!
//! # How much is kept
//! A clock holds at most [`Settings::max_live_keys`] keys; rows of further keys are refused, and the clock's results say that
//! they may lack rows until there is room again. Whether a row is refused depends on rows and watermarks before it only.
//!
//! # How state is kept
//! Queries with equal keys share one interning of keys per batch; queries with equal keys, window and filter share one store,
//! in which equal aggregates exist once. A store keeps state per (key, pane) or per session in slots of plain columns.
//! Checkpoints are keyed records of what changed ([`Engine::take_changes`]), restored by [`Engine::restore`].
//!
//! | file | what it decides |
//! |---|---|
//! | `sql`, `assign`, `flatten`, `compile` | text → expressions over the table and over the aggregate |
//! | `monotone` | whether a value can only rise |
//! | `window`, `time` | window arithmetic, watermarks |
//! | `keys`, `columns`, `pool`, `native` | ids of keys, columns of state, folding |
//! | `budget`, `admit` | how many keys a clock may hold, which rows are taken |
//! | `panes`, `tree` | tumble and hop; long windows |
//! | `sessions` | sessions and run windows under disorder |
//! | `engine`, `emit` | a push; HAVING and output columns |
//! | `checkpoint`, `persist`, `compact` | what changed; records out and in |
//! | `split` | the whole state, taken apart by clock |
//! | `batch` | the same text as a batch query |
//! | `metric` | metric files |

use crate::clock::Micros;

mod admit;
mod assign;
mod batch;
mod budget;
mod checkpoint;
mod columns;
mod compact;
mod compile;
mod emit;
mod engine;
mod flatten;
mod keys;
mod metric;
mod monotone;
mod native;
mod output;
mod panes;
mod persist;
mod pool;
mod quantile;
mod query;
mod reject;
mod sessions;
mod split;
mod sql;
mod time;
mod tree;
mod window;

pub use compile::{CompileError, Compiler, explain};
pub use engine::Engine;
pub use metric::{Emit, Metric, MetricError, Scope, parse_metric, parse_metrics};
pub use output::{Empty, Late, NO_ROW, NoWatch, Output, Overflow, QueryRows, QueryStats, Stats, Trace, Watch};
pub use persist::RestoreError;
pub use query::Query;
pub use split::StateRecord;
pub use window::{MAX_PANES, Window};

/// Why an engine stopped. No row causes one: what a row can break becomes NULL, late or counted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An aggregate or expression failed.
    #[error("a query failed: {0}")]
    Query(#[from] datafusion::common::DataFusionError),
    /// An Arrow operation failed.
    #[error("a query failed: {0}")]
    Arrow(#[from] datafusion::arrow::error::ArrowError),
    /// The input does not fit the queries.
    #[error("the input does not fit: {0}")]
    Input(String),
    /// State of an unexpected shape.
    #[error("state does not fit: {0}")]
    State(String),
}

/// What all queries of an engine share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Name of the input table in SQL.
    pub table: String,
    /// The event time column: `Timestamp(Microsecond)` without a zone.
    pub time_column: String,
    /// The clock column (Utf8): each distinct value has its own watermark, and every GROUP BY must hold it.
    pub clock_column: String,
    /// Watermark = highest event time − lateness.
    pub lateness: Micros,
    /// The most bytes one aggregate may keep per key and pane (or session) when its state grows with its input; a session
    /// keeps as much of rows that its watermark has not passed.
    pub max_state_bytes_per_key: usize,
    /// The most keys one clock may hold over all queries, keys of the clock alone not counted; rows of further keys are refused
    /// ([`Output::refused`]). `usize::MAX`: any number.
    pub max_live_keys: usize,
    /// Report every window of a hopping group, not only the first of a run of equal contents.
    pub all_finals: bool,
    /// Input columns that are never negative.
    pub non_negative: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        let non_negative = [
            "input_tokens",
            "output_tokens",
            "cached_tokens",
            "reasoning_tokens",
            "total_tokens",
            "cost_usd",
            "latency_ms",
            "risk_score",
            "anomaly_score",
            "consecutive_anomalous_readings",
            "capacity",
            "running_duration_seconds",
            "timeout_seconds",
            "integrity_score",
            "consensus_pct",
            "reputation_score",
            "recent_responses",
        ];
        Self {
            table: "telemetry".to_owned(),
            time_column: "event_time".to_owned(),
            clock_column: "tenant_id".to_owned(),
            lateness: 10 * crate::clock::SECOND,
            max_state_bytes_per_key: 1 << 20,
            max_live_keys: usize::MAX,
            all_finals: false,
            non_negative: non_negative.map(str::to_owned).to_vec(),
        }
    }
}
