//! Asking the tables: what the panels want of them, one look at a panel, and which alerts about panels are open.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::{Array as _, RecordBatch};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, SchemaRef, TimeUnit};
use datafusion::scalar::ScalarValue;

use super::monitor::{AlertType, Answer, Open, Seen};
use super::registry::Panel;
use crate::clock::Micros;
use crate::serve::tables::{QueryError, Scope, Tables};

/// Alerts about panels that are looked at.
const MAX_ALERTS: usize = 1_000;
/// How the correlation key of an alert about a panel begins.
const KEY: &str = "PANEL:";

/// What the panels ask of the tables.
#[async_trait]
pub trait Ask: Send + Sync {
    /// Runs a SELECT.
    async fn query(
        &self,
        scope: &Scope,
        sql: &str,
        parameters: Vec<ScalarValue>,
    ) -> Result<Vec<RecordBatch>, QueryError>;

    /// Whether what is shown is whole: the topics were read to their ends once.
    fn is_whole(&self) -> bool;

    /// What a SELECT would give, without running it.
    async fn plan(&self, scope: &Scope, sql: &str) -> Result<SchemaRef, QueryError>;
}

#[async_trait]
impl Ask for Tables {
    async fn query(
        &self,
        scope: &Scope,
        sql: &str,
        parameters: Vec<ScalarValue>,
    ) -> Result<Vec<RecordBatch>, QueryError> {
        Self::query(self, scope, sql, parameters).await
    }

    fn is_whole(&self) -> bool {
        self.is_filled()
    }

    async fn plan(&self, scope: &Scope, sql: &str) -> Result<SchemaRef, QueryError> {
        Self::plan(self, scope, sql).await
    }
}

/// Something over the result of a panel. The line break ends a comment that the query may end with.
pub(super) fn over(what: &str, sql: &str) -> String {
    format!("SELECT {what} FROM ({}\n) AS panel", sql.trim_end().trim_end_matches(';'))
}

/// A name as SQL reads it, whatever is in it.
pub(super) fn name(column: &str) -> String {
    format!("\"{}\"", column.replace('"', "\"\""))
}

/// Looks at a panel over all tenants: how many rows, the value, the newest, and what its invariant asks beside.
pub(super) async fn look(tables: &dyn Ask, panel: &Panel, sql: &str) -> Seen {
    // what is not read yet is not missing
    if !tables.is_whole() {
        return Seen::Unasked("the tables are not read to their ends yet".to_owned());
    }
    match answer(tables, panel, sql).await {
        Ok(answer) => Seen::Answer(answer),
        Err(QueryError::Busy) => Seen::Unasked(QueryError::Busy.to_string()),
        Err(error) => Seen::Broken(error.to_string()),
    }
}

/// What a panel gives and what its invariant asks beside.
pub(super) async fn answer(tables: &dyn Ask, panel: &Panel, sql: &str) -> Result<Answer, QueryError> {
    let invariant = &panel.invariant;
    let highest = |column: &str| format!("max({})", name(column));
    let value = invariant.min_value.as_ref().map_or_else(|| "NULL".to_owned(), |min| highest(&min.column));
    let newest = invariant.freshness.as_ref().map_or_else(|| "NULL".to_owned(), |fresh| highest(&fresh.column));
    // columns that must be there are named, so that one that is gone breaks the query
    let needed = panel.columns.iter().enumerate().map(|(n, column)| format!(", count({}) AS needed_{n}", name(column)));
    let needed: String = needed.collect();
    let figures = over(&format!("count(*) AS found, {value} AS value, {newest} AS newest{needed}"), sql);
    let row = tables.query(&Scope::All, &figures, Vec::new()).await?;
    let mut answer = Answer {
        rows: cell(&row, 0, &DataType::Int64)?.map_or(0, |rows| match rows {
            ScalarValue::Int64(Some(rows)) => u64::try_from(rows).unwrap_or_default(),
            _ => 0,
        }),
        value: cell(&row, 1, &DataType::Float64)?.and_then(|value| match value {
            ScalarValue::Float64(value) => value,
            _ => None,
        }),
        newest: time(&row, 2)?,
        active: true,
        empty_since: None,
    };
    if let Some(sql) = &invariant.only_while {
        let row = tables.query(&Scope::All, sql, Vec::new()).await?;
        answer.active = matches!(cell(&row, 0, &DataType::Boolean)?, Some(ScalarValue::Boolean(Some(true))));
    }
    if let Some(sql) = &invariant.empty_since {
        answer.empty_since = time(&tables.query(&Scope::All, sql, Vec::new()).await?, 0)?;
    }
    Ok(answer)
}

/// The times that panels work with: µs, UTC.
fn micros() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some(Arc::from("UTC")))
}

fn time(rows: &[RecordBatch], column: usize) -> Result<Option<Micros>, QueryError> {
    Ok(cell(rows, column, &micros())?.and_then(|value| match value {
        ScalarValue::TimestampMicrosecond(at, _) => at,
        _ => None,
    }))
}

/// A cell of the first row as a type; `None`: there is no row, or it is null.
fn cell(rows: &[RecordBatch], column: usize, kind: &DataType) -> Result<Option<ScalarValue>, QueryError> {
    let wrong = |error: &dyn std::fmt::Display| QueryError::Invalid(format!("column {}: {error}", column + 1));
    let Some(batch) = rows.iter().find(|batch| batch.num_rows() > 0) else { return Ok(None) };
    let Some(values) = batch.columns().get(column) else { return Err(wrong(&"there is none")) };
    let values = cast(&values.slice(0, 1), kind).map_err(|error| wrong(&error))?;
    if values.is_null(0) {
        return Ok(None);
    }
    ScalarValue::try_from_array(&values, 0).map(Some).map_err(|error| wrong(&error))
}

/// How many rows there are.
pub(super) async fn count(tables: &dyn Ask, scope: &Scope, sql: &str) -> Result<i64, QueryError> {
    let rows = tables.query(scope, &over("count(*)", sql), Vec::new()).await?;
    Ok(match cell(&rows, 0, &DataType::Int64)? {
        Some(ScalarValue::Int64(Some(rows))) => rows,
        _ => 0,
    })
}

/// Which alerts about panels are open of a tenant, by panel.
pub(super) async fn open_alerts(tables: &dyn Ask, tenant: &str) -> Result<BTreeMap<String, Open>, QueryError> {
    let sql = format!(
        "SELECT correlation_key, first_seen FROM alerts \
         WHERE tenant_id = $1 AND status <> 'RESOLVED' AND starts_with(correlation_key, '{KEY}') LIMIT {MAX_ALERTS}"
    );
    let batches = tables.query(&Scope::All, &sql, vec![ScalarValue::from(tenant)]).await?;
    let mut open: BTreeMap<String, Open> = BTreeMap::new();
    for row in batches.iter().flat_map(|batch| (0..batch.num_rows()).map(|row| batch.slice(row, 1))) {
        let row = [row];
        let Some(ScalarValue::Utf8(Some(key))) = cell(&row, 0, &DataType::Utf8)? else { continue };
        let Some((panel, kind)) = key.strip_prefix(KEY).and_then(|key| key.rsplit_once('/')) else { continue };
        let kind = AlertType::ALL.into_iter().find(|known| known.as_str() == kind);
        if let (Some(kind), Some(first_seen)) = (kind, time(&row, 1)?) {
            open.entry(panel.to_owned()).or_default().insert(kind, first_seen);
        }
    }
    Ok(open)
}
