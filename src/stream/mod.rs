//! Incremental windowed SQL over Arrow.
//!
//! A [`Query`] is a SELECT with one windowed aggregation, compiled once by a [`Compiler`]. An [`Engine`] keeps the state of
//! several queries and is pushed record batches in order; it answers with results before the close of a window (for queries
//! whose value only rises), final results, and what was late. The same text also runs as a batch query
//! ([`Query::run_batch`]), which is the oracle of the tests.

use crate::clock::Micros;

mod assign;
mod batch;
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
mod sql;
mod time;
mod tree;
mod window;

pub use compile::{CompileError, Compiler};
pub use engine::Engine;
pub use metric::{Emit, Metric, MetricError, Scope, parse_metric, parse_metrics};
pub use output::{Empty, Late, NO_ROW, NoWatch, Output, QueryRows, QueryStats, Stats, Trace, Watch};
pub use persist::RestoreError;
pub use query::Query;
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
    /// The most bytes one aggregate may keep per key and pane (or session) when its state grows with its input.
    pub max_state_bytes_per_key: usize,
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
            all_finals: false,
            non_negative: non_negative.map(str::to_owned).to_vec(),
        }
    }
}
