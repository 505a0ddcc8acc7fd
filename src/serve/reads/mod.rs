//! Reads below `/api/v1`: lists, their items, evidence, and what is summed up. Writes are commands, elsewhere.
//!
//! A caller sees its own tenant's rows, and one of all tenants those of the tenant it names, or all (`tables` keeps them apart). Nothing here
//! touches the core: a slow reader is slow alone.

pub mod ask;
pub mod events;
pub mod explain;
mod facade;
pub mod lists;
pub mod openapi;
pub mod simulate;

use std::time::Duration;

use axum::Router;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Json, extract::Request};
use datafusion::scalar::ScalarValue;
use serde_json::{Map, Value, json};

use self::ask::{COMMON, Conditions, Given, Part, items, number, page};
use self::lists::{LISTS, List, Shape};
use super::access::{Caller, Denied};
use super::api::denied;
use super::http::{Views, problem};
use super::tables::{NOT_WHOLE, QueryError, Scope, Tables};
use crate::clock::{SECOND, Wall};

/// How long a read waits for what a write did.
const PATIENCE: Duration = Duration::from_secs(5);
/// What a transaction commits shows on all its topics within this time, µs.
const SPREAD: i64 = 150_000;
/// Most lines of each kind in evidence.
const EVIDENCE: u32 = 50;

/// What a request may give.
type Asked = Result<Query<Vec<(String, String)>>, QueryRejection>;
/// An answer either way.
type Answer = Result<Response, Response>;

/// The routes.
pub(super) fn routes() -> Router<Views> {
    let mut router = Router::new();
    for list in &LISTS {
        for path in list.paths {
            router = router.route(path, get(move |state, caller, asked| many(state, caller, asked, list)));
            if !list.id.is_empty() {
                let one_of = move |state, caller, id, asked| one(state, caller, id, asked, list);
                router = router.route(&format!("{path}/{{id}}"), get(one_of));
            }
        }
    }
    router
        .route("/api/v1/policies/rules/{id}/evidence", get(rule_evidence))
        .route("/api/v1/policies/limits/{id}/evidence", get(limit_evidence))
        .route("/api/v1/policy-proposals/{id}/versions", get(versions))
        .merge(facade::routes())
        .merge(openapi::routes())
        .merge(events::routes())
        .merge(explain::routes())
        .merge(simulate::routes())
        .route("/policy-layer/{*rest}", get(elsewhere))
}

/// The other names of the policy layer that the seed has, and where they went.
async fn elsewhere(request: Request) -> Response {
    let path = request.uri().path();
    problem(
        StatusCode::NOT_FOUND,
        &format!("there is no {path}: what the policy layer shows is below /api/v1/policies"),
    )
}

/// Whoever asks, and for whom.
pub(super) struct Asking {
    pub(super) tables: Tables,
    pub(super) scope: Scope,
    pub(super) given: Given,
    pub(super) now: Wall,
    tenant: String,
}

/// Reads the parameters and waits for what `after` names.
pub(super) async fn asking(views: &Views, caller: &Caller, asked: Asked, known: &[&str]) -> Result<Asking, Response> {
    let bad = |why: &str| problem(StatusCode::BAD_REQUEST, why);
    let Query(pairs) = asked.map_err(|wrong| bad(&wrong.body_text()))?;
    let given = Given::read(pairs, known).map_err(|why| bad(&why))?;
    let tenant = given.get("tenant_id").unwrap_or(&caller.tenant).to_owned();
    if !caller.sees(&tenant) {
        return Err(denied(Denied::Tenant));
    }
    let tables = views.tables.clone().ok_or_else(|| {
        problem(
            StatusCode::NOT_FOUND,
            "the role serve is off in this process, so it has no tables; ask one that plays it",
        )
    })?;
    if !tables.is_filled() {
        return Err(again(StatusCode::SERVICE_UNAVAILABLE, NOT_WHOLE, "1"));
    }
    let now = (views.clock)();
    if given.get("after").is_some() {
        given.number("after", 0, u32::MAX).map_err(|why| bad(&why))?;
        // what was answered was committed: whatever lies on the topics some moments later holds it
        if !tables.wait_for(Wall(now.0 + SPREAD), PATIENCE).await {
            return Err(again(StatusCode::SERVICE_UNAVAILABLE, "what was written is not in the tables yet", "1"));
        }
    }
    Ok(Asking { tables, scope: Scope::of(&tenant), given, now, tenant })
}

/// A problem that passes.
pub(in crate::serve) fn again(status: StatusCode, why: &str, seconds: &'static str) -> Response {
    let mut response = problem(status, why);
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static(seconds));
    response
}

/// What a question that has no answer comes to. The text of ours is not the caller's, so what is wrong with it is our fault.
pub(super) fn unanswered(error: &QueryError) -> Response {
    match error {
        QueryError::Busy => again(StatusCode::SERVICE_UNAVAILABLE, &error.to_string(), "1"),
        QueryError::TooLong(_) => again(StatusCode::SERVICE_UNAVAILABLE, &error.to_string(), "5"),
        QueryError::TooMuch(why) => problem(StatusCode::UNPROCESSABLE_ENTITY, why),
        QueryError::Invalid(_) | QueryError::Refused(_) | QueryError::Internal(_) => {
            tracing::error!(%error, "a question of ours was not answered");
            problem(StatusCode::INTERNAL_SERVER_ERROR, "the question could not be answered; the log says why")
        }
    }
}

impl Asking {
    /// The rows of a question, as flat objects.
    pub(super) async fn flat(&self, sql: &str, values: Vec<ScalarValue>) -> Result<Vec<Value>, QueryError> {
        Ok(items(Shape::Flat, &self.tables.query(&self.scope, sql, values).await?))
    }

    /// The number that a question gives.
    pub(super) async fn count(&self, sql: &str, values: Vec<ScalarValue>) -> Result<i64, QueryError> {
        Ok(number(&self.tables.query(&self.scope, sql, values).await?))
    }

    /// `filters_applied` begins with whose rows they are.
    pub(super) fn applied(&self, mut filters: Map<String, Value>) -> Value {
        filters.insert("tenant_id".to_owned(), json!(self.tenant));
        Value::Object(filters)
    }
}

fn known(list: &List) -> Vec<&'static str> {
    COMMON.iter().map(|(name, _)| *name).chain(list.filters.iter().map(|filter| filter.name)).collect()
}

async fn many(State(views): State<Views>, caller: Caller, asked: Asked, list: &'static List) -> Answer {
    let asking = asking(&views, &caller, asked, &known(list)).await?;
    let bad = |why: String| problem(StatusCode::BAD_REQUEST, &why);
    let conditions = Conditions::of(list, &asking.given, asking.now).map_err(bad)?;
    let part = Part::of(&asking.given, list.limit).map_err(bad)?;
    let page = page(&asking.tables, &asking.scope, list, &conditions, part).await;
    let mut page = page.map_err(|error| unanswered(&error))?;
    page.insert("filters_applied".to_owned(), asking.applied(conditions.applied));
    Ok(Json(page).into_response())
}

/// The one item of an id. Ids of policies are unique within a tenant, those of limits within a policy.
async fn find(asking: &Asking, list: &List, id: &str) -> Result<Value, Response> {
    let mut conditions = Conditions::default();
    conditions.add(&format!("{} = {{}}", list.id), ScalarValue::from(id));
    if let Some(policy) = asking.given.get("policy_id") {
        conditions.add("policy_id = {}", ScalarValue::from(policy));
    }
    let sql = format!("SELECT * FROM {}{} ORDER BY {} LIMIT 2", list.from, conditions.text(), list.order);
    let rows = asking.tables.query(&asking.scope, &sql, conditions.values).await.map_err(|error| unanswered(&error))?;
    let mut found = items(list.shape, &rows);
    match found.len() {
        0 => Err(problem(StatusCode::NOT_FOUND, &format!("there is no {} {id:?} here", list.id))),
        1 => Ok(found.remove(0)),
        _ => {
            let name = if list.id == "limit_id" { "policy_id, or tenant_id," } else { "tenant_id" };
            Err(problem(StatusCode::CONFLICT, &format!("there are several of {} {id:?}: name {name} too", list.id)))
        }
    }
}

/// Parameters of one item.
const OF_ONE: [&str; 3] = ["tenant_id", "after", "policy_id"];

async fn one(
    State(views): State<Views>,
    caller: Caller,
    Path(id): Path<String>,
    asked: Asked,
    list: &'static List,
) -> Answer {
    let known = if list.id == "limit_id" { &OF_ONE[..] } else { &OF_ONE[..2] };
    let asking = asking(&views, &caller, asked, known).await?;
    Ok(Json(find(&asking, list, &id).await?).into_response())
}

fn list(path: &str) -> &'static List {
    // asked for by paths of this file alone; a test goes over them
    LISTS.iter().find(|list| list.paths.contains(&path)).unwrap_or(&LISTS[0])
}

/// What a rule led to: the context of its enforcement.
async fn rule_evidence(State(views): State<Views>, caller: Caller, Path(id): Path<String>, asked: Asked) -> Answer {
    let known = ["tenant_id", "after", "hours"];
    let asking = asking(&views, &caller, asked, &known).await?;
    let hours =
        asking.given.number("hours", 1, 720).map_err(|why| problem(StatusCode::BAD_REQUEST, &why))?.unwrap_or(720);
    let rule = find(&asking, list("/api/v1/policies/rules"), &id).await?;
    let since = ask::at(asking.now.0 - i64::from(hours) * 3_600 * SECOND);
    let values = || vec![ScalarValue::from(id.as_str()), since.clone()];
    let within = async || -> Result<Value, QueryError> {
        let violations = asking
            .flat(&format!("SELECT * FROM violations WHERE policy_id = $1 AND detected_at >= $2 ORDER BY detected_at DESC, violation_id LIMIT {EVIDENCE}"), values())
            .await?;
        let kinds = asking
            .flat("SELECT kind, mode, count(*) AS count, count(DISTINCT run_id) AS runs, max(detected_at) AS latest FROM violations WHERE policy_id = $1 AND detected_at >= $2 GROUP BY kind, mode ORDER BY kind, mode", values())
            .await?;
        let interventions = format!(
            "SELECT * FROM interventions WHERE policy_id = $1 AND created_at >= $2 ORDER BY created_at DESC, intervention_id LIMIT {EVIDENCE}"
        );
        let interventions = asking.tables.query(&asking.scope, &interventions, values()).await?;
        let audit = format!(
            "SELECT * FROM audit WHERE subject_id = $1 AND at >= $2 ORDER BY at DESC, audit_id LIMIT {EVIDENCE}"
        );
        let audit = asking.tables.query(&asking.scope, &audit, values()).await?;
        let snapshots = asking
            .flat("SELECT snapshot_id, policy_version, min(event_time) AS first, max(event_time) AS last, count(*) AS signals FROM signals WHERE policy_id = $1 AND event_time >= $2 GROUP BY snapshot_id, policy_version ORDER BY last DESC LIMIT 50", values())
            .await?;
        Ok(json!({
            "rule": rule, "hours": hours, "summary": kinds, "violations": violations,
            "interventions": items(Shape::Record("interventions"), &interventions),
            "audit": items(Shape::Record("audit"), &audit), "snapshots": snapshots,
        }))
    };
    Ok(Json(within().await.map_err(|error| unanswered(&error))?).into_response())
}

/// How often a limit was neared and breached.
async fn limit_evidence(State(views): State<Views>, caller: Caller, Path(id): Path<String>, asked: Asked) -> Answer {
    let bad = |why: String| problem(StatusCode::BAD_REQUEST, &why);
    let known = ["tenant_id", "after", "policy_id", "hours", "limit", "offset"];
    let asking = asking(&views, &caller, asked, &known).await?;
    let hours = asking.given.number("hours", 1, 720).map_err(bad)?.unwrap_or(720);
    let part = Part::of(&asking.given, 50).map_err(bad)?;
    let limit = find(&asking, list("/api/v1/policies/limits"), &id).await?;
    let mut conditions = Conditions::default();
    conditions.add("limit_id = {}", ScalarValue::from(id.as_str()));
    conditions.add("policy_id = {}", ScalarValue::from(limit["policy_id"].as_str().unwrap_or_default()));
    conditions.add("detected_at >= {}", ask::at(asking.now.0 - i64::from(hours) * 3_600 * SECOND));
    conditions.applied.insert("hours".to_owned(), json!(hours));
    let violations = list("/api/v1/policies/violations");
    let sums = format!(
        "SELECT kind, count(*) AS count, max(utilization) AS peak_utilization, max(overshoot) AS peak_overshoot, min(detected_at) AS first, max(detected_at) AS last FROM violations{} GROUP BY kind ORDER BY kind",
        conditions.text()
    );
    let sums = asking.flat(&sums, conditions.values.clone()).await.map_err(|error| unanswered(&error))?;
    let page = page(&asking.tables, &asking.scope, violations, &conditions, part).await;
    let mut page = page.map_err(|error| unanswered(&error))?;
    page.insert("limit".to_owned(), limit);
    page.insert("summary".to_owned(), Value::Array(sums));
    page.insert("filters_applied".to_owned(), asking.applied(conditions.applied));
    Ok(Json(page).into_response())
}

/// The versions of a proposal.
async fn versions(State(views): State<Views>, caller: Caller, Path(id): Path<String>, asked: Asked) -> Answer {
    let bad = |why: String| problem(StatusCode::BAD_REQUEST, &why);
    let asking = asking(&views, &caller, asked, &["tenant_id", "after", "is_current", "limit", "offset"]).await?;
    find(&asking, list("/api/v1/policy-proposals"), &id).await?;
    let versions = list("/api/v1/policy-proposals/versions");
    let mut conditions = Conditions::of(versions, &asking.given, asking.now).map_err(bad)?;
    conditions.add("proposal_id = {}", ScalarValue::from(id.as_str()));
    let part = Part::of(&asking.given, versions.limit).map_err(bad)?;
    let page = page(&asking.tables, &asking.scope, versions, &conditions, part).await;
    let mut page = page.map_err(|error| unanswered(&error))?;
    page.insert("filters_applied".to_owned(), asking.applied(conditions.applied));
    Ok(Json(page).into_response())
}

#[cfg(test)]
mod tests;
