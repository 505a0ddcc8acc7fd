//! What an engine says: results, traces, late rows, freed ids.

use datafusion::arrow::array::RecordBatch;

use crate::clock::Micros;

/// `at` of results that no row caused ([`super::Engine::advance`], [`super::Engine::close_all`]).
pub const NO_ROW: u32 = u32::MAX;

/// Results of one query. All vectors have one entry per row of `rows`.
#[derive(Debug, Clone)]
pub struct QueryRows {
    /// Index of the query in the engine.
    pub query: usize,
    /// The results, in the query's output schema.
    pub rows: RecordBatch,
    /// The input row of the pushed batch that caused each result, or [`NO_ROW`].
    pub at: Vec<u32>,
    /// Dense id of the key within the query's key set.
    pub group: Vec<u32>,
    /// Window start and end.
    pub window: Vec<(Micros, Micros)>,
    /// Lowest and highest position that fed the window.
    pub evidence: Vec<(i64, i64)>,
    /// False when the window may lack rows: the query was added while it was open, its state hit its cap, or its clock held
    /// too many keys.
    pub complete: Vec<bool>,
}

/// The history of one group within a sub-batch: for each input row that touched it, in offset order, one result per window
/// that was open and held the row (tumble and session: one; hop: all). Rows whose result HAVING filters give none.
#[derive(Debug, Clone)]
pub struct Trace {
    /// Index of the query.
    pub query: usize,
    /// The group.
    pub group: u32,
    /// The results; `at` is the input row.
    pub steps: QueryRows,
}

/// Windows that closed without a row: a hopping group ran empty, or HAVING filtered the result. One entry per window in each
/// vector. Windows of groups that never gave a row are among them.
#[derive(Debug, Clone)]
pub struct Empty {
    /// Index of the query.
    pub query: usize,
    /// The key columns, named and ordered as [`super::Query::keys`].
    pub keys: RecordBatch,
    /// Dense ids of the keys.
    pub group: Vec<u32>,
    /// Window start and end.
    pub window: Vec<(Micros, Micros)>,
    /// The input row whose arrival closed the window, or [`NO_ROW`].
    pub at: Vec<u32>,
}

/// A row that came too late for every window it belongs to in some queries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Late {
    /// The input row.
    pub row: u32,
    /// Indices of the queries it was late for, ascending.
    pub queries: Vec<u16>,
    /// No query took the row.
    pub everywhere: bool,
}

/// What one call gave. At one input row, `early` and `traces` come before `closed` and `empty`.
#[derive(Debug, Default)]
pub struct Output {
    /// Results of windows still open at their row, of queries with [`super::Query::early`]; several entries per query when
    /// the batch was cut.
    pub early: Vec<QueryRows>,
    /// Histories that [`Watch::select`] asked for, and those of groups whose session was split: there an earlier value may
    /// have been higher than the one in `early`.
    pub traces: Vec<Trace>,
    /// Final results, ordered by (row, window end, key) per query and sub-batch.
    pub closed: Vec<QueryRows>,
    /// Windows that closed without a row.
    pub empty: Vec<Empty>,
    /// Late rows, ascending.
    pub late: Vec<Late>,
    /// Rows without a usable event time, ascending. They touched nothing.
    pub null_time: Vec<u32>,
    /// Rows that some windows refused because their clock holds its most keys ([`super::Settings::max_live_keys`]), ascending.
    pub refused: Vec<u32>,
    /// Per row of the batch, until when windows of its clock may lack rows of refused keys; empty when that did not change in it.
    pub dark: Vec<Micros>,
    /// Clocks that came to hold too many keys, or no longer do, in the order in which they did.
    pub overflows: Vec<Overflow>,
    /// (key set, group id): the key has no state left, its id may name another key from the next call on.
    pub freed: Vec<(usize, u32)>,
}

/// A clock came to hold too many keys, or no longer does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overflow {
    /// The clock.
    pub clock: String,
    /// Whether it began; otherwise it is over.
    pub began: bool,
    /// How often it has happened to this clock, this time included.
    pub episode: u64,
    /// Keys it holds.
    pub keys: usize,
    /// The input row at which it did, or [`NO_ROW`].
    pub at: u32,
}

/// Chooses the groups whose per-row history is wanted.
pub trait Watch {
    /// Called once per sub-batch with the results of every touched group of the early queries. Returns (index into `early`,
    /// row) pairs.
    fn select(&mut self, early: &[QueryRows]) -> Vec<(usize, usize)>;
}

/// Wants no history.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoWatch;

impl Watch for NoWatch {
    fn select(&mut self, _: &[QueryRows]) -> Vec<(usize, usize)> {
        Vec::new()
    }
}

/// Sizes and counts of an engine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// One entry per query.
    pub queries: Vec<QueryStats>,
    /// Keys with state, over all key sets.
    pub keys: usize,
    /// Clocks that hold too many keys now.
    pub overflowing: usize,
    /// Rows refused because of it, ever, once per key set.
    pub refused: u64,
    /// Rough bytes of state, keys included.
    pub state_bytes: usize,
    /// Rows without a usable event time, ever.
    pub null_time: u64,
    /// Rows late for some but not all windows of a query, ever.
    pub partly_late: u64,
    /// Rows in no window of a hop whose slide is longer than its size, ever.
    pub gap_rows: u64,
    /// States that hit their cap, ever.
    pub capped: u64,
    /// Rows or results for which an expression failed (division by zero …); their value is NULL. Ever.
    pub expression_errors: u64,
}

/// Per-query part of [`Stats`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QueryStats {
    /// Name of the query.
    pub name: String,
    /// Panes or sessions that hold state (shared by queries with equal keys, window and filter).
    pub open: usize,
    /// Keys with state.
    pub keys: usize,
    /// Rows late for all their windows, ever.
    pub late: u64,
}
