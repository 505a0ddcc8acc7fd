//! From window results to observations: which results reach the threshold SQL, and what it says of them.
//!
//! Early results of groups below every NEAR line of theirs are left out (by comparing with the lowest line of their limit set);
//! everything else is decided by `queries/decide/thresholds.sql`. The order of the observations is the order of the input rows
//! that caused them, so it does not depend on how a poll cut the batches.

use std::collections::HashSet;
use std::sync::Arc;

use datafusion::arrow::array::{
    Array, AsArray, Decimal128Array, Float64Array, Int64Array, RecordBatch, StringArray, UInt32Array,
};
use datafusion::arrow::compute::{CastOptions, cast_with_options};
use datafusion::arrow::datatypes::{
    DataType, Decimal128Type, Field, Float64Type, Int32Type, Int64Type, Schema, SchemaRef,
};
use datafusion::arrow::error::ArrowError;

use crate::clock::{Micros, SECOND};
use crate::decide::levels::{Judged, Levels, Shape};
use crate::decide::records::Kind;
use crate::decide::sql::{Prepared, Slot};
use crate::pipeline::limits::{LimitSets, lookup_schema};
use crate::policy::{Amount, Scope};
use crate::stream::{Empty, QueryRows, Window};

/// What the pipeline needs to know of a metric.
#[derive(Debug, Clone)]
pub struct MetricPlan {
    /// Name.
    pub name: String,
    /// Scope of its groups.
    pub scope: Scope,
    /// Window shape.
    pub shape: Shape,
    /// Whether early results may raise.
    pub early: bool,
    /// Whether the metric is over anomaly scores.
    pub anomaly: bool,
    /// Whether the value grows with what happens (a count, a sum), so that its rate says when it reaches a limit.
    pub cumulative: bool,
}

impl MetricPlan {
    /// Shape of a window.
    pub fn shape_of(window: &Window) -> Shape {
        match window {
            Window::Tumble { .. } => Shape::Tumble,
            Window::Hop { .. } => Shape::Hop,
            Window::Session { .. } | Window::SessionUntil { .. } => Shape::Session,
        }
    }
}

/// A result row on its way to the levels.
#[derive(Debug, Clone)]
pub struct Item {
    /// Input row that caused it; `u32::MAX` for clocks and the end.
    pub at: u32,
    /// The window closed.
    pub closed: bool,
    /// Index of the metric.
    pub metric: usize,
    /// Tenant.
    pub tenant: Arc<str>,
    /// Value of the scope's key field.
    pub scope_id: Arc<str>,
    /// Window.
    pub window: (Micros, Micros),
    /// `None`: the window closed without a row.
    pub value: Option<Amount>,
    /// Lowest and highest position that fed it.
    pub evidence: (i64, i64),
    /// Whether the window is whole.
    pub complete: bool,
    /// The metric's `cost_provenance`.
    pub cost_provenance: Option<String>,
    /// The metric's `is_synthetic`: what a decision at close goes by, which no single row makes.
    pub is_synthetic: Option<bool>,
    /// Units a minute so far, and the minutes until its window ends; `None`: nothing can be forecast of it.
    pub pace: Option<(f64, Option<f64>)>,
    /// Its limit set.
    pub limit_set: u32,
    /// What the threshold SQL says.
    pub judged: Vec<Judged>,
}

impl Item {
    /// Observations are taken in this order: by input row, early before closed, then by group, then the largest value first
    /// (the row that decides a hopping group), earliest window first on ties.
    pub fn order(&self, other: &Self) -> std::cmp::Ordering {
        let head = |i: &Self| (i.at, i.closed, i.metric);
        head(self)
            .cmp(&head(other))
            .then_with(|| self.tenant.cmp(&other.tenant))
            .then_with(|| self.scope_id.cmp(&other.scope_id))
            .then_with(|| if self.closed { std::cmp::Ordering::Equal } else { other.value.cmp(&self.value) })
            .then_with(|| (self.window.1, self.window.0).cmp(&(other.window.1, other.window.0)))
    }
}

/// A rate over less than this, µs of event time, says nothing yet.
const LEAST: Micros = 30 * SECOND;

impl Item {
    /// Notes how fast the value has grown since its window began, at a row of event time `at` (X6).
    pub fn paced(&mut self, plan: &MetricPlan, at: Micros) {
        let (start, end) = self.window;
        let elapsed = at.saturating_sub(start);
        let (Some(value), true, true) = (self.value, plan.cumulative && !self.closed, elapsed >= LEAST) else { return };
        let minutes = |micros: Micros| micros as f64 / (60 * SECOND) as f64;
        let left = match plan.shape {
            // it starts anew when the window ends
            Shape::Tumble => Some(minutes(end.saturating_sub(at))),
            Shape::Session => None,
            // what leaves a hopping window is not known beforehand
            Shape::Hop => return,
        };
        self.pace = Some((value.to_f64() / minutes(elapsed), left));
    }
}

/// The `value` column of results as exact amounts; what does not fit is null.
pub fn values(rows: &RecordBatch) -> Result<Option<Decimal128Array>, ArrowError> {
    let Some(column) = rows.column_by_name("value") else { return Ok(None) };
    let options = CastOptions { safe: true, ..CastOptions::default() };
    let cast = cast_with_options(column, &DataType::Decimal128(38, 9), &options)?;
    Ok(cast.as_primitive_opt::<Decimal128Type>().cloned())
}

/// A text column of results.
pub fn texts<'a>(rows: &'a RecordBatch, name: &str) -> Option<&'a StringArray> {
    rows.column_by_name(name).and_then(|c| c.as_string_opt::<i32>())
}

/// Text of a row, if any.
pub fn text(column: Option<&StringArray>, row: usize) -> Option<&str> {
    column.filter(|c| row < c.len() && !c.is_null(row)).map(|c| c.value(row))
}

/// Result rows as items, without their limit sets.
pub fn items(
    rows: &QueryRows,
    metric: usize,
    plan: &MetricPlan,
    closed: bool,
    out: &mut Vec<Item>,
) -> Result<(), ArrowError> {
    let values = values(&rows.rows)?;
    let tenants = texts(&rows.rows, "tenant_id");
    let scopes = texts(&rows.rows, plan.scope.field());
    let provenance = texts(&rows.rows, "cost_provenance");
    let synthetic = rows.rows.column_by_name("is_synthetic").and_then(|c| c.as_boolean_opt());
    for row in 0..rows.rows.num_rows() {
        let (Some(tenant), Some(scope_id)) = (text(tenants, row), text(scopes, row)) else { continue };
        let value = values.as_ref().filter(|v| !v.is_null(row)).map(|v| Amount(v.value(row)));
        out.push(Item {
            at: rows.at.get(row).copied().unwrap_or(u32::MAX),
            closed,
            metric,
            tenant: tenant.into(),
            scope_id: scope_id.into(),
            window: rows.window.get(row).copied().unwrap_or_default(),
            value,
            evidence: rows.evidence.get(row).copied().unwrap_or((i64::MAX, i64::MIN)),
            complete: rows.complete.get(row).copied().unwrap_or(true),
            cost_provenance: text(provenance, row).map(Into::into),
            is_synthetic: synthetic.filter(|c| c.is_valid(row)).map(|c| c.value(row)),
            pace: None,
            limit_set: u32::MAX,
            judged: Vec::new(),
        });
    }
    Ok(())
}

/// Windows that closed without a row, as items. `whole` says of a tenant and a window's start whether the window saw every row
/// of its time.
pub fn empty_items(
    empty: &Empty,
    metric: usize,
    plan: &MetricPlan,
    whole: impl Fn(&str, Micros, u32) -> bool,
    out: &mut Vec<Item>,
) {
    let tenants = texts(&empty.keys, "tenant_id");
    let scopes = texts(&empty.keys, plan.scope.field());
    for (row, (window, at)) in empty.window.iter().zip(&empty.at).enumerate() {
        let (Some(tenant), Some(scope_id)) = (text(tenants, row), text(scopes, row)) else { continue };
        out.push(Item {
            at: *at,
            closed: true,
            metric,
            tenant: tenant.into(),
            scope_id: scope_id.into(),
            window: *window,
            value: None,
            evidence: (i64::MAX, i64::MIN),
            complete: whole(tenant, window.0, *at),
            cost_provenance: None,
            is_synthetic: None,
            pace: None,
            limit_set: u32::MAX,
            judged: Vec::new(),
        });
    }
}

/// Leaves out the items that can change no level: those that have not reached a NEAR line, unless they close a window of a
/// group whose level is up or rises within these items.
pub fn keep_what_matters(items: &mut Vec<Item>, plans: &[MetricPlan], limits: &LimitSets, levels: &Levels) {
    let reached = |item: &Item| {
        let floor = limits.get(item.limit_set).and_then(|s| s.floors.get(item.metric).copied().flatten());
        matches!((item.value, floor), (Some(value), Some((floor, _))) if value.0 >= floor)
    };
    let group = |item: &Item| (item.metric, Arc::clone(&item.tenant), Arc::clone(&item.scope_id));
    let rising: HashSet<_> = items.iter().filter(|i| reached(i)).map(group).collect();
    items.retain(|item| {
        let up = || levels.any(&item.tenant, &plans[item.metric].name, &item.scope_id);
        reached(item) || (item.closed && (rising.contains(&group(item)) || up()))
    });
}

/// Schema of the `results` table of the threshold SQL.
pub fn results_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("row", DataType::Int64, false),
        Field::new("limit_set", DataType::UInt32, false),
        Field::new("metric", DataType::Utf8, false),
        Field::new("tenant_id", DataType::Utf8, false),
        Field::new("scope_kind", DataType::Utf8, false),
        Field::new("scope_id", DataType::Utf8, false),
        Field::new("closed", DataType::Boolean, false),
        Field::new("value", DataType::Decimal128(38, 9), true),
        Field::new("per_minute", DataType::Float64, true),
        Field::new("minutes_left", DataType::Float64, true),
    ]))
}

fn verdict_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("row", DataType::Int64, true),
        Field::new("limit_no", DataType::Int32, true),
        Field::new("level", DataType::Utf8, true),
        Field::new("utilization", DataType::Float64, true),
        Field::new("overshoot", DataType::Decimal128(38, 9), true),
        Field::new("minutes_to_limit", DataType::Float64, true),
        Field::new("raised_by", DataType::Utf8, true),
    ]))
}

/// Compiles the threshold SQL.
pub fn prepare(sql: &str) -> Result<Prepared, crate::decide::sql::Error> {
    let slots = [
        Slot { name: "results", schema: results_schema(), lookup: false },
        Slot { name: "limits", schema: lookup_schema(), lookup: true },
    ];
    Prepared::new("queries/decide/thresholds.sql", sql, &slots, &verdict_schema())
}

/// Why judging failed: the SQL, or Arrow.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The threshold SQL failed on data.
    #[error(transparent)]
    Sql(#[from] crate::decide::sql::Error),
    /// A batch could not be made.
    #[error(transparent)]
    Arrow(#[from] ArrowError),
}

/// Runs the threshold SQL over `items` and notes what it says in each.
pub fn judge(
    items: &mut [Item],
    plans: &[MetricPlan],
    limits: &mut LimitSets,
    sql: &mut Prepared,
) -> Result<(), Error> {
    let with_value: Vec<usize> = (0..items.len()).filter(|i| items[*i].value.is_some()).collect();
    if with_value.is_empty() {
        return Ok(());
    }
    let plan = |i: &usize| &plans[items[*i].metric];
    let text = |f: &dyn Fn(&usize) -> String| -> StringArray { with_value.iter().map(|i| Some(f(i))).collect() };
    let amounts: Decimal128Array = with_value.iter().map(|i| items[*i].value.map(|v| v.0)).collect();
    let results = RecordBatch::try_new(
        results_schema(),
        vec![
            Arc::new(with_value.iter().map(|i| i64::try_from(*i).ok()).collect::<Int64Array>()),
            Arc::new(with_value.iter().map(|i| Some(items[*i].limit_set)).collect::<UInt32Array>()),
            Arc::new(text(&|i| plan(i).name.clone())),
            Arc::new(text(&|i| items[*i].tenant.to_string())),
            Arc::new(text(&|i| plan(i).scope.as_str().to_owned())),
            Arc::new(text(&|i| items[*i].scope_id.to_string())),
            Arc::new(
                with_value.iter().map(|i| Some(items[*i].closed)).collect::<datafusion::arrow::array::BooleanArray>(),
            ),
            Arc::new(amounts.with_precision_and_scale(38, 9)?),
            Arc::new(with_value.iter().map(|i| items[*i].pace.map(|pace| pace.0)).collect::<Float64Array>()),
            Arc::new(with_value.iter().map(|i| items[*i].pace.and_then(|pace| pace.1)).collect::<Float64Array>()),
        ],
    )?;
    let verdicts = sql.run(vec![results, limits.lookup(with_value.iter().map(|i| items[*i].limit_set))?])?;
    let rows = verdicts.column(0).as_primitive::<Int64Type>();
    let numbers = verdicts.column(1).as_primitive::<Int32Type>();
    let levels = verdicts.column(2).as_string::<i32>();
    let utilizations = verdicts.column(3).as_primitive::<Float64Type>();
    let overshoots = verdicts.column(4).as_primitive::<Decimal128Type>();
    let minutes = verdicts.column(5).as_primitive::<Float64Type>();
    let raised_by = verdicts.column(6).as_string::<i32>();
    let mut said: Vec<(usize, usize, Judged)> = Vec::with_capacity(verdicts.num_rows());
    for i in 0..verdicts.num_rows() {
        let (Ok(row), Ok(number)) = (usize::try_from(rows.value(i)), usize::try_from(numbers.value(i))) else {
            continue;
        };
        let Some(item) = items.get(row) else { continue };
        let Some(limit) = limits.get(item.limit_set).and_then(|s| s.limits.get(number)) else { continue };
        let level = match levels.is_valid(i).then(|| levels.value(i)) {
            Some("BREACH") => Some(Kind::Breach),
            Some("NEAR") => Some(Kind::Near),
            _ => None,
        };
        said.push((
            row,
            number,
            Judged {
                limit: Arc::clone(limit),
                level,
                utilization: utilizations.is_valid(i).then(|| Amount::from_f64(utilizations.value(i))).flatten(),
                overshoot: overshoots.is_valid(i).then(|| Amount(overshoots.value(i))),
                minutes_to_limit: minutes.is_valid(i).then(|| minutes.value(i)).filter(|m| m.is_finite()),
                forecast: raised_by.is_valid(i) && raised_by.value(i) == "forecast",
            },
        ));
    }
    // a join promises no order
    said.sort_by_key(|(row, number, _)| (*row, *number));
    for (row, _, judged) in said {
        items[row].judged.push(judged);
    }
    Ok(())
}
