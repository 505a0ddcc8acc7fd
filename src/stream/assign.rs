//! The logical node that gives each row its window, and the planner that reads it from SQL.
//!
//! `tumble(t, time, size)`, `hop(t, time, slide, size)`, `session(t, time, gap[, marker])` in FROM become a
//! [`WindowAssign`]: the input's columns plus `window_start` and `window_end`. What the node means is decided elsewhere (the
//! stores when streaming, `batch` for the oracle); here it only has a shape.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, Field, TimeUnit};
use datafusion::common::{DFSchema, DFSchemaRef, DataFusionError, Result, ScalarValue};
use datafusion::logical_expr::planner::{PlannedRelation, RelationPlanner, RelationPlannerContext, RelationPlanning};
use datafusion::logical_expr::{Expr, Extension, LogicalPlan, UserDefinedLogicalNodeCore};
use datafusion::sql::sqlparser::ast::{self, FunctionArg, FunctionArgExpr, TableFactor};

use crate::clock::Micros;

use super::reject::reject;
use super::window::{Grid, MAX_PANES, Window};

/// The column a window starts in.
pub const START: &str = "window_start";
/// The column a window ends in.
pub const END: &str = "window_end";
/// The names of the table functions.
pub const FUNCTIONS: [&str; 3] = ["tumble", "hop", "session"];

/// Input columns plus `window_start`, `window_end`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct WindowAssign {
    /// Where the rows come from.
    pub input: LogicalPlan,
    /// The event time of a row.
    pub time: Expr,
    /// What ends a session besides silence.
    pub marker: Option<Expr>,
    /// The window.
    pub window: Window,
    schema: DFSchemaRef,
}

impl WindowAssign {
    fn new(input: LogicalPlan, time: Expr, marker: Option<Expr>, window: Window) -> Result<Self> {
        let ty = DataType::Timestamp(TimeUnit::Microsecond, None);
        let qualifier = input.schema().iter().next().and_then(|(q, _)| q.cloned());
        let mut fields: Vec<_> = input.schema().iter().map(|(q, f)| (q.cloned(), Arc::clone(f))).collect();
        for name in [START, END] {
            fields.push((qualifier.clone(), Arc::new(Field::new(name, ty.clone(), false))));
        }
        let schema = Arc::new(DFSchema::new_with_metadata(fields, input.schema().metadata().clone())?);
        Ok(Self { input, time, marker, window, schema })
    }
}

impl PartialOrd for WindowAssign {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        self.window.partial_cmp(&other.window)
    }
}

impl UserDefinedLogicalNodeCore for WindowAssign {
    fn name(&self) -> &str {
        "WindowAssign"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.input]
    }

    fn schema(&self) -> &DFSchemaRef {
        &self.schema
    }

    fn expressions(&self) -> Vec<Expr> {
        std::iter::once(self.time.clone()).chain(self.marker.clone()).collect()
    }

    fn prevent_predicate_push_down_columns(&self) -> HashSet<String> {
        self.schema.fields().iter().map(|f| f.name().clone()).collect()
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WindowAssign: {:?} time={}", self.window, self.time)
    }

    fn with_exprs_and_inputs(&self, mut exprs: Vec<Expr>, mut inputs: Vec<LogicalPlan>) -> Result<Self> {
        let marker = if self.marker.is_some() { exprs.pop() } else { None };
        match (exprs.pop(), inputs.pop()) {
            (Some(time), Some(input)) => Self::new(input, time, marker, self.window),
            _ => Err(DataFusionError::Internal("WindowAssign takes one input and a time".into())),
        }
    }
}

/// Turns the table functions into [`WindowAssign`].
#[derive(Debug)]
pub struct WindowPlanner;

impl RelationPlanner for WindowPlanner {
    fn plan_relation(
        &self,
        relation: TableFactor,
        context: &mut dyn RelationPlannerContext,
    ) -> Result<RelationPlanning> {
        let TableFactor::Table { name, alias, args: Some(args), .. } = &relation else {
            return Ok(RelationPlanning::Original(Box::new(relation)));
        };
        let function = name.to_string().to_ascii_lowercase();
        if !FUNCTIONS.contains(&function.as_str()) {
            return Ok(RelationPlanning::Original(Box::new(relation)));
        }
        let mut exprs = Vec::with_capacity(args.args.len());
        for arg in &args.args {
            match arg {
                FunctionArg::Unnamed(FunctionArgExpr::Expr(e)) => exprs.push(e.clone()),
                other => {
                    return Err(reject(
                        "FROM",
                        format!("{function}(): `{other}` is not a plain argument"),
                        usage(&function),
                    ));
                }
            }
        }
        let wanted: &[usize] = match function.as_str() {
            "tumble" => &[3],
            "hop" => &[4],
            _ => &[3, 4],
        };
        if !wanted.contains(&exprs.len()) {
            return Err(reject("FROM", format!("{function}() was given {} arguments", exprs.len()), usage(&function)));
        }
        let ast::Expr::Subquery(source) = exprs[0].clone() else {
            return Err(reject("FROM", format!("the first argument of {function}() is not a table"), usage(&function)));
        };
        let inner_alias = match source.body.as_ref() {
            ast::SetExpr::Select(select) => match select.from.as_slice() {
                [ast::TableWithJoins { relation: TableFactor::Table { name, .. }, joins }] if joins.is_empty() => {
                    name.0.last().and_then(|part| part.as_ident().cloned())
                }
                _ => None,
            },
            _ => None,
        };
        let inner_alias = inner_alias.map(|name| ast::TableAlias { explicit: true, name, columns: vec![], at: None });
        let input = context.plan(TableFactor::Derived {
            lateral: false,
            subquery: source,
            alias: inner_alias,
            sample: None,
        })?;
        let schema = Arc::clone(input.schema());
        let time = context.sql_to_expr(exprs[1].clone(), &schema)?;
        let length = |context: &mut dyn RelationPlannerContext, at: usize, what: &str| -> Result<Micros> {
            let expr = context.sql_to_expr(exprs[at].clone(), &DFSchema::empty())?;
            micros(&expr, &function, what)
        };
        let mut marker = None;
        let window = match function.as_str() {
            "tumble" => Window::Tumble { size: length(context, 2, "size")? },
            "hop" => {
                let window = Window::Hop { slide: length(context, 2, "slide")?, size: length(context, 3, "size")? };
                if let Window::Hop { slide, size } = window {
                    let panes = size / Grid::new(slide, size).pane;
                    if panes > MAX_PANES {
                        return Err(reject(
                            "FROM",
                            format!("hop() would cut each window into {panes} panes; at most {MAX_PANES} are allowed"),
                            "choose a slide that divides the size into fewer pieces",
                        ));
                    }
                }
                window
            }
            _ => {
                let gap = length(context, 2, "gap")?;
                if exprs.len() == 4 {
                    marker = Some(context.sql_to_expr(exprs[3].clone(), &schema)?);
                    Window::SessionUntil { gap }
                } else {
                    Window::Session { gap }
                }
            }
        };
        let node = WindowAssign::new(input, time, marker, window)?;
        let plan = LogicalPlan::Extension(Extension { node: Arc::new(node) });
        Ok(RelationPlanning::Planned(Box::new(PlannedRelation::new(plan, alias.clone()))))
    }
}

fn usage(function: &str) -> &'static str {
    match function {
        "tumble" => "write tumble(telemetry, event_time, INTERVAL '1 minute')",
        "hop" => "write hop(telemetry, event_time, INTERVAL '10 seconds', INTERVAL '5 minutes'): slide, then size",
        _ => "write session(telemetry, event_time, INTERVAL '30 minutes' [, boolean marker])",
    }
}

/// The length of a literal interval in microseconds.
fn micros(expr: &Expr, function: &str, what: &str) -> Result<Micros> {
    let bad = |why: &str| reject("FROM", format!("{function}(): {what} {why}"), usage(function));
    let Expr::Literal(value, _) = expr else {
        return Err(bad("is not a literal INTERVAL"));
    };
    let (months, days, nanos) = match value {
        ScalarValue::IntervalMonthDayNano(Some(v)) => (v.months, v.days, v.nanoseconds),
        ScalarValue::IntervalDayTime(Some(v)) => (0, v.days, i64::from(v.milliseconds) * 1_000_000),
        ScalarValue::IntervalYearMonth(Some(m)) => (*m, 0, 0),
        _ => return Err(bad("is not a literal INTERVAL")),
    };
    if months != 0 {
        return Err(bad("has months, which have no fixed length; use days"));
    }
    if nanos % 1_000 != 0 {
        return Err(bad("is not a whole number of microseconds"));
    }
    let total = i64::from(days) * 86_400_000_000 + nanos / 1_000;
    if total <= 0 {
        return Err(bad("must be longer than nothing"));
    }
    if total > 3_660 * 86_400_000_000 {
        return Err(bad("is longer than ten years"));
    }
    Ok(total)
}
