//! A compiled query: its window, keys, aggregates and output as physical expressions, and the same text as a batch plan.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, SchemaRef};
use datafusion::execution::SessionState;
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;
use sha2::{Digest, Sha256};

use super::window::Window;

/// An expression and its text over the input's columns. Equal texts mean equal expressions.
#[derive(Debug, Clone)]
pub(super) struct Expression {
    /// Runnable form.
    pub(super) physical: Arc<dyn PhysicalExpr>,
    /// Identity across queries and versions.
    pub(super) text: String,
    /// Result type.
    pub(super) ty: DataType,
}

impl PartialEq for Expression {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text && self.ty == other.ty
    }
}
impl Eq for Expression {}
impl Hash for Expression {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

/// One aggregate call.
#[derive(Debug, Clone)]
pub(super) struct AggregateCall {
    /// Runnable form.
    pub(super) call: Arc<AggregateFunctionExpr>,
    /// Arguments, then ORDER BY columns.
    pub(super) args: Vec<Expression>,
    /// FILTER (WHERE …).
    pub(super) filter: Option<Expression>,
    /// Identity: function, distinct, order, arguments, filter, types of the state.
    pub(super) text: String,
}

/// What a column of the aggregate's output is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GroupColumn {
    /// The i-th key of the query.
    Key(usize),
    /// `window_start`
    Start,
    /// `window_end`
    End,
}

/// A compiled query. Immutable and shared by all engines.
pub struct Query {
    pub(super) name: String,
    pub(super) sql: String,
    pub(super) window: Window,
    pub(super) key_names: Vec<String>,
    pub(super) keys: Vec<Expression>,
    pub(super) group_columns: Vec<GroupColumn>,
    pub(super) marker: Option<Expression>,
    /// Conjuncts a row must satisfy to take part in windows at all.
    pub(super) below: Vec<Expression>,
    /// Conjuncts a row must satisfy to feed the aggregates.
    pub(super) between: Vec<Expression>,
    pub(super) aggregates: Vec<AggregateCall>,
    /// Schema of (group columns, aggregates).
    pub(super) aggregate_schema: SchemaRef,
    pub(super) having: Vec<Arc<dyn PhysicalExpr>>,
    pub(super) output: Vec<Arc<dyn PhysicalExpr>>,
    pub(super) output_schema: SchemaRef,
    pub(super) value: Option<usize>,
    pub(super) not_early: Option<String>,
    /// HAVING or a computed output column reads a window column: equal contents give different rows.
    pub(super) window_dependent: bool,
    pub(super) fingerprint: u64,
    pub(super) input: SchemaRef,
    pub(super) table: String,
    pub(super) plan: LogicalPlan,
    pub(super) state: Arc<SessionState>,
}

impl std::fmt::Debug for Query {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Query").field("name", &self.name).field("window", &self.window).finish_non_exhaustive()
    }
}

impl Query {
    /// The name given to [`super::Compiler::compile`].
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The SQL text.
    pub fn sql(&self) -> &str {
        &self.sql
    }

    /// Output names of the GROUP BY keys in GROUP BY order, without the window columns. A key that is not selected keeps
    /// the text of its expression.
    pub fn keys(&self) -> &[String] {
        &self.key_names
    }

    /// The window.
    pub fn window(&self) -> &Window {
        &self.window
    }

    /// Whether the output column `value` only rises while rows arrive, so that results before the close may raise a level.
    pub fn early(&self) -> bool {
        self.not_early.is_none()
    }

    /// Why [`Query::early`] is false.
    pub fn why_not_early(&self) -> Option<&str> {
        self.not_early.as_deref()
    }

    /// Columns of a result.
    pub fn output_schema(&self) -> &SchemaRef {
        &self.output_schema
    }

    /// Position of the output column `value`.
    pub fn value_column(&self) -> Option<usize> {
        self.value
    }

    /// Identity of the state this query keeps: keys, window, filters and aggregates with their types, and the major version
    /// of the engine that wrote it. Another alias, projection or HAVING leaves it as it is, except where a hop begins or ceases
    /// to compute with its window columns.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }
}

/// The first eight bytes of a SHA-256 over the parts, each ended by a byte that no text holds.
pub(super) fn fingerprint<'a>(parts: impl IntoIterator<Item = &'a str>) -> u64 {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(part.as_bytes());
        hasher.update([0xff]);
    }
    let digest = hasher.finalize();
    let mut first = [0u8; 8];
    first.copy_from_slice(&digest[..8]);
    u64::from_be_bytes(first)
}
