//! `/api/v1/panels`: what there is, how it is, and what it gives. Whoever asks sees the rows of its own tenant only; how a panel is, over
//! all tenants, is told in numbers only to who sees all tenants.

use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use datafusion::arrow::array::RecordBatch;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::answers::Question;
use super::monitor::Health;
use super::registry::Panel;
use super::{Panels, Shown};
use crate::clock::{SECOND, rfc3339};
use crate::serve::access::{ALL, Caller, Denied};
use crate::serve::api::{denied, parameters};
use crate::serve::http::{Views, problem};
use crate::serve::reads::again;
use crate::serve::tables::rows::flat;
use crate::serve::tables::{NOT_WHOLE, QueryError, Scope};

/// Rows of a page, unless told otherwise.
const PAGE: usize = 50;
/// Rows of a page at most.
const MOST: usize = 100;

/// Which panels.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    tenant_id: Option<String>,
    topic: Option<String>,
    health: Option<String>,
    alert_enabled: Option<bool>,
    limit: Option<usize>,
    offset: Option<usize>,
}

/// Which rows.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Page {
    tenant_id: Option<String>,
    limit: Option<usize>,
    offset: Option<usize>,
}

type Asked<T> = Result<Query<T>, QueryRejection>;

/// What the panels add to `/api/v1`.
pub(in crate::serve) fn routes() -> Router<Views> {
    Router::new()
        .route("/api/v1/panels", get(list))
        .route("/api/v1/panels/{id}", get(one))
        .route("/api/v1/panels/{id}/rows", get(rows))
}

#[expect(clippy::result_large_err, reason = "an answer is what comes of a request either way, once")]
fn panels(views: &Views) -> Result<&Arc<Panels>, Response> {
    let none = || problem(StatusCode::SERVICE_UNAVAILABLE, "this process watches no panels; the role serve does");
    views.panels.as_ref().ok_or_else(none)
}

#[expect(clippy::result_large_err, reason = "an answer is what comes of a request either way, once")]
fn page(limit: Option<usize>, offset: Option<usize>) -> Result<(usize, usize), Response> {
    let limit = limit.unwrap_or(PAGE);
    if (1..=MOST).contains(&limit) {
        return Ok((limit, offset.unwrap_or(0)));
    }
    Err(problem(StatusCode::BAD_REQUEST, &format!("limit is from 1 to {MOST}")))
}

#[expect(clippy::result_large_err, reason = "an answer is what comes of a request either way, once")]
fn health_named(text: &str) -> Result<Health, Response> {
    let known = Health::ALL.into_iter().find(|known| known.as_str().eq_ignore_ascii_case(text));
    let names = Health::ALL.map(Health::as_str).join(" ");
    known.ok_or_else(|| problem(StatusCode::BAD_REQUEST, &format!("health is one of {names}")))
}

/// `GOVERNANCE/ACTIVE`, or `GOVERNANCE` for all below it.
fn is_about(panel: &Panel, topic: &str) -> bool {
    let begins = panel.topic.get(..topic.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(topic));
    begins && matches!(panel.topic.get(topic.len()..), Some(rest) if rest.is_empty() || rest.starts_with('/'))
}

async fn list(State(views): State<Views>, caller: Caller, wanted: Asked<Wanted>) -> Result<Response, Response> {
    let Wanted { tenant_id, topic, health, alert_enabled, limit, offset } =
        parameters(wanted, "tenant_id topic health alert_enabled limit offset")?;
    let tenant = tenant_id.filter(|tenant| !tenant.is_empty()).unwrap_or_else(|| caller.tenant.clone());
    if !caller.sees(&tenant) {
        return Err(denied(Denied::Tenant));
    }
    let (limit, offset) = page(limit, offset)?;
    let health = health.as_deref().map(health_named).transpose()?;
    let shown: Vec<Shown> = panels(&views)?
        .list()
        .into_iter()
        .filter(|shown| topic.as_deref().is_none_or(|topic| is_about(&shown.panel, topic)))
        .filter(|shown| health.is_none_or(|health| shown.health() == health))
        .filter(|shown| alert_enabled.is_none_or(|enabled| shown.panel.invariant.alert_enabled == enabled))
        .collect();
    let all = tenant == ALL;
    let items: Vec<Value> = shown.iter().skip(offset).take(limit).map(|shown| item(shown, all).into()).collect();
    let mut filters = Map::new();
    filters.insert("tenant_id".to_owned(), tenant.into());
    filters.extend(topic.map(|topic| ("topic".to_owned(), topic.into())));
    filters.extend(health.map(|health| ("health".to_owned(), health.as_str().into())));
    filters.extend(alert_enabled.map(|enabled| ("alert_enabled".to_owned(), enabled.into())));
    Ok(Json(Listed::new(&items, shown.len(), offset, filters)).into_response())
}

/// A page of a list.
#[derive(Serialize)]
struct Listed<'a> {
    items: &'a [Value],
    total: usize,
    has_more: bool,
    filters_applied: Map<String, Value>,
}

impl<'a> Listed<'a> {
    fn new(items: &'a [Value], total: usize, offset: usize, filters_applied: Map<String, Value>) -> Self {
        let has_more = offset.saturating_add(items.len()) < total && !items.is_empty();
        Self { items, total, has_more, filters_applied }
    }
}

/// A panel as it is shown. `all`: to who sees all tenants.
fn item(shown: &Shown, all: bool) -> Map<String, Value> {
    let Shown { panel, state } = shown;
    let invariant = &panel.invariant;
    let seconds = |span: i64| span / SECOND;
    let value = json!({
        "panel_id": &*panel.id,
        "question": panel.question,
        "topic": panel.topic,
        "endpoint": panel.endpoint,
        "capability_id": panel.capability.id,
        "capability_status": panel.capability.status,
        "health": shown.health().as_str(),
        "last_checked_at": state.last_checked.map(rfc3339),
        "row_count": state.rows.filter(|_| all),
        "last_result_at": state.last_result.filter(|_| all).map(rfc3339),
        "alert_enabled": invariant.alert_enabled,
        "alert_type": shown.alert_type().map(|kind| kind.as_str()),
        "columns": panel.columns,
        "invariant": {
            "min_rows": invariant.min_rows,
            "min_value": invariant.min_value.as_ref().map(|min| json!({"column": min.column, "value": min.value})),
            "freshness": invariant.freshness.as_ref()
                .map(|fresh| json!({"column": fresh.column, "within_seconds": seconds(fresh.within)})),
            "while": invariant.only_while,
            "empty_since": invariant.empty_since,
            "warmup_seconds": seconds(invariant.warmup),
            "alert_after_seconds": seconds(invariant.alert_after),
            "alert_enabled": invariant.alert_enabled,
        },
    });
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

#[expect(clippy::result_large_err, reason = "an answer is what comes of a request either way, once")]
fn found(panels: &Panels, id: &str) -> Result<Shown, Response> {
    panels.get(id).ok_or_else(|| problem(StatusCode::NOT_FOUND, "there is no such panel; /api/v1/panels lists them"))
}

async fn one(State(views): State<Views>, caller: Caller, Path(id): Path<String>) -> Result<Response, Response> {
    let panels = panels(&views)?;
    let shown = found(panels, &id)?;
    let all = caller.tenant == ALL;
    let mut item = item(&shown, all);
    item.insert("query".into(), shown.panel.query.clone().into());
    item.insert("sql".into(), panels.loaded().sql(&shown.panel).into());
    let state = &shown.state;
    let check = json!({
        "at": state.last_checked.map(rfc3339),
        "row_count": state.rows.filter(|_| all),
        "error": state.error.as_ref().filter(|_| all),
        "wrong": state.wrong().map(|(kind, since)| {
            json!({"alert_type": kind.as_str(), "severity": kind.severity(), "since": rfc3339(since)})
        }),
    });
    item.insert("last_check".into(), check);
    Ok(Json(Value::Object(item)).into_response())
}

async fn rows(
    State(views): State<Views>,
    caller: Caller,
    Path(id): Path<String>,
    asked: Asked<Page>,
) -> Result<Response, Response> {
    let Page { tenant_id, limit, offset } = parameters(asked, "tenant_id limit offset")?;
    let (limit, offset) = page(limit, offset)?;
    let tenant = tenant_id.filter(|tenant| !tenant.is_empty());
    let scope = match &tenant {
        None if caller.tenant == ALL => Scope::All,
        named => Scope::Tenant(Arc::from(caller.tenant(named.as_deref()).map_err(denied)?)),
    };
    let panels = panels(&views)?;
    let shown = found(panels, &id)?;
    let loaded = panels.loaded();
    let sql = loaded.sql(&shown.panel);
    let tables = panels.tables.as_ref();
    if !tables.is_whole() {
        return Err(again(StatusCode::SERVICE_UNAVAILABLE, NOT_WHOLE, "1"));
    }
    let question = Question { scope, sql: sql.to_owned(), limit, offset };
    let page = panels.answers.get(tables, question, (views.clock)()).await.map_err(|error| failed(&error))?;
    let mut filters = Map::new();
    filters.extend(tenant.map(|tenant| ("tenant_id".to_owned(), tenant.into())));
    Ok(Json(Listed::new(&page.items, page.total, offset, filters)).into_response())
}

/// Why a panel gives nothing.
fn failed(error: &QueryError) -> Response {
    let status = match error {
        QueryError::Invalid(_) | QueryError::Refused(_) => StatusCode::UNPROCESSABLE_ENTITY,
        QueryError::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    let why = format!("the query of this panel fails: {error}");
    if status == StatusCode::SERVICE_UNAVAILABLE { again(status, &why, "5") } else { problem(status, &why) }
}

/// Columns that panels make as text in JSON: they are shown as what they hold, like those of tables.
const NESTED: [&str; 2] = ["violations_by_type", "evaluations_by_action"];

/// Rows as objects.
pub(super) fn objects(batches: &[RecordBatch]) -> Vec<Value> {
    let mut rows = flat(batches);
    for row in rows.iter_mut().filter_map(Value::as_object_mut) {
        for name in NESTED {
            let Some(value) = row.get_mut(name) else { continue };
            if let Some(held) = value.as_str().and_then(|text| serde_json::from_str(text).ok()) {
                *value = held;
            }
        }
    }
    rows
}
