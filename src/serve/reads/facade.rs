//! What is summed up (seed 003 §12.3, §14.6): the state of the policy layer, its metrics, conflicts, dependencies, and counts of lessons and
//! proposals.

use std::collections::{BTreeMap, BTreeSet};

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse as _;
use axum::routing::get;
use axum::{Json, Router};
use datafusion::scalar::ScalarValue;
use serde_json::{Map, Value, json};

use super::{Answer, Asked, Asking, ask, asking, unanswered};
use crate::clock::{SECOND, rfc3339};
use crate::policy::{Conflict, ConflictSeverity, Relation};
use crate::serve::access::Caller;
use crate::serve::http::{Views, problem};
use crate::serve::tables::{QueryError, Scope};

pub(super) fn routes() -> Router<Views> {
    let mut router = Router::new()
        .route("/api/v1/policies/state", get(state))
        .route("/api/v1/policies/metrics", get(metrics))
        .route("/api/v1/policies/conflicts", get(conflicts))
        .route("/api/v1/policies/dependencies", get(dependencies))
        .route("/api/v1/policy-proposals/stats/summary", get(proposals));
    for path in ["/api/v1/lessons/stats", "/api/v1/policies/lessons/stats", "/policy-layer/lessons/stats"] {
        router = router.route(path, get(lessons));
    }
    router
}

const PLAIN: [&str; 2] = ["tenant_id", "after"];

/// `name` of the first row; null without one.
fn first(rows: &[Value], name: &str) -> Value {
    rows.first().map_or(Value::Null, |row| row[name].clone())
}

/// How much there is of everything, and what waits (panel ACT-O4).
async fn state(State(views): State<Views>, caller: Caller, asked: Asked) -> Answer {
    let asking = asking(&views, &caller, asked, &PLAIN).await?;
    let sum = async || -> Result<Value, QueryError> {
        let policies = asking
            .flat("SELECT count(*) AS total, count(*) FILTER (WHERE status = 'ACTIVE' AND enforcement_mode <> 'DISABLED') AS active, max(changed_at) AS changed FROM policies", vec![])
            .await?;
        let drafts = asking.count("SELECT count(*) FROM proposals WHERE draft_version IS NOT NULL", vec![]).await?;
        let since = ask::at(asking.now.0 - 24 * 3_600 * SECOND);
        let violations = asking
            .flat("SELECT count(*) AS total, max(decided_at) AS latest FROM violations WHERE is_synthetic IS NOT TRUE AND detected_at >= $1", vec![since])
            .await?;
        let lessons = asking
            .flat("SELECT count(*) FILTER (WHERE status = 'pending') AS pending, max(created_at) AS latest FROM lessons WHERE is_synthetic IS NOT TRUE", vec![])
            .await?;
        let times = [first(&policies, "changed"), first(&violations, "latest"), first(&lessons, "latest")];
        let latest = times.iter().filter_map(Value::as_str).max();
        Ok(json!({
            "total_policies": first(&policies, "total"),
            "active_policies": first(&policies, "active"),
            "drafts_pending_review": drafts,
            "conflicts_detected": of_scope(&asking).len(),
            "violations_24h": first(&violations, "total"),
            "lessons_pending_action": first(&lessons, "pending"),
            "last_updated": latest,
        }))
    };
    Ok(Json(sum().await.map_err(|error| unanswered(&error))?).into_response())
}

/// What policies did (panel ACT-O5).
async fn metrics(State(views): State<Views>, caller: Caller, asked: Asked) -> Answer {
    let asking = asking(&views, &caller, asked, &["tenant_id", "after", "hours"]).await?;
    let hours =
        asking.given.number("hours", 1, 720).map_err(|why| problem(StatusCode::BAD_REQUEST, &why))?.unwrap_or(24);
    let since = || vec![ask::at(asking.now.0 - i64::from(hours) * 3_600 * SECOND)];
    let sum = async || -> Result<Value, QueryError> {
        let sums = asking
            .flat("SELECT coalesce(sum(evaluations), 0) AS evaluations, coalesce(sum(blocks), 0) AS blocks, coalesce(sum(allows), 0) AS allows, coalesce(sum(uncovered), 0) AS uncovered, coalesce(sum(time_spent_us), 0) AS us FROM evaluations WHERE minute >= $1", since())
            .await?;
        let actions = asking
            .flat("SELECT by_action, count(*) AS times FROM evaluations WHERE minute >= $1 GROUP BY by_action", since())
            .await?;
        let mut by_action: BTreeMap<String, i64> = BTreeMap::new();
        for row in &actions {
            let times = row["times"].as_i64().unwrap_or_default();
            for (action, count) in row["by_action"].as_object().into_iter().flatten() {
                *by_action.entry(action.clone()).or_default() += times * count.as_i64().unwrap_or_default();
            }
        }
        let types = asking
            .flat("SELECT violation_type, count(*) AS n FROM violations WHERE is_synthetic IS NOT TRUE AND detected_at >= $1 GROUP BY violation_type ORDER BY violation_type", since())
            .await?;
        let number = |name: &str| first(&sums, name).as_f64().unwrap_or_default();
        let ratio = |part: f64, whole: f64| if whole > 0.0 { part / whole } else { 0.0 };
        Ok(json!({
            "total_evaluations": first(&sums, "evaluations"),
            "total_blocks": first(&sums, "blocks"),
            "total_allows": first(&sums, "allows"),
            "block_rate": ratio(number("blocks"), number("evaluations")),
            "avg_evaluation_ms": ratio(number("us") / 1_000.0, number("evaluations")),
            "violations_by_type": counts(&types, "violation_type"),
            "evaluations_by_action": by_action,
            "events_no_policy_covered": first(&sums, "uncovered"),
            "window_hours": hours,
        }))
    };
    Ok(Json(sum().await.map_err(|error| unanswered(&error))?).into_response())
}

fn counts(rows: &[Value], name: &str) -> Value {
    let pairs = rows.iter().map(|row| (row[name].as_str().unwrap_or("unknown").to_owned(), row["n"].clone()));
    Value::Object(pairs.collect::<Map<_, _>>())
}

/// Whether something of a tenant, or of everyone, is shown to whom asks.
fn shown(scope: &Scope, tenants: [&str; 2]) -> bool {
    match scope {
        Scope::All => true,
        Scope::Tenant(own) => tenants.iter().all(|tenant| *tenant == "*" || *tenant == &**own),
    }
}

fn of_scope(asking: &Asking) -> Vec<Conflict> {
    let known = asking.tables.known();
    let all = known.conflicts.conflicts.iter();
    all.filter(|c| shown(&asking.scope, [&c.policy_a_tenant, &c.policy_b_tenant])).cloned().collect()
}

/// What contradicts what (panel DFT-O4).
async fn conflicts(State(views): State<Views>, caller: Caller, asked: Asked) -> Answer {
    let bad = |why: &str| problem(StatusCode::BAD_REQUEST, why);
    let asking = asking(&views, &caller, asked, &["tenant_id", "after", "include_resolved", "severity"]).await?;
    let resolved = asking.given.flag("include_resolved").map_err(|why| bad(&why))?.unwrap_or(false);
    let severity = match asking.given.get("severity") {
        None => None,
        Some(text) if text.eq_ignore_ascii_case("BLOCKING") => Some(ConflictSeverity::Blocking),
        Some(text) if text.eq_ignore_ascii_case("WARNING") => Some(ConflictSeverity::Warning),
        Some(text) => return Err(bad(&format!("severity is one of BLOCKING WARNING, not {text:?}"))),
    };
    let known = asking.tables.known();
    let all = of_scope(&asking);
    let unresolved = all.iter().filter(|c| c.severity == ConflictSeverity::Blocking).count();
    let item = |c: &Conflict| {
        let at = known.together([(&c.policy_a_tenant, &c.policy_a_id), (&c.policy_b_tenant, &c.policy_b_id)]);
        let mut item = serde_json::to_value(c).unwrap_or_default();
        item["detected_at"] = json!(rfc3339(at));
        item["resolved"] = json!(false);
        item
    };
    let items: Vec<Value> = all.iter().filter(|c| severity.is_none_or(|s| c.severity == s)).map(item).collect();
    let mut applied = Map::new();
    applied.insert("include_resolved".to_owned(), json!(resolved));
    if let Some(severity) = severity {
        applied.insert("severity".to_owned(), json!(severity.as_str()));
    }
    Ok(Json(json!({
        "total": items.len(), "items": items, "unresolved_count": unresolved, "complete": known.conflicts.complete,
        "filters_applied": asking.applied(applied),
    }))
    .into_response())
}

/// What depends on what (panel DFT-O5).
async fn dependencies(State(views): State<Views>, caller: Caller, asked: Asked) -> Answer {
    let asking = asking(&views, &caller, asked, &PLAIN).await?;
    let known = asking.tables.known();
    let (graph, since) = (&known.dependencies, rfc3339(known.since));
    let sees = |tenant: &str| shown(&asking.scope, [tenant, "*"]);
    let names = |relations: &[Relation]| -> Vec<Value> {
        relations.iter().filter(|r| sees(&r.tenant)).map(|r| serde_json::to_value(r).unwrap_or_default()).collect()
    };
    let nodes: Vec<Value> = graph
        .nodes
        .iter()
        .filter(|node| sees(&node.tenant))
        .map(|node| {
            let mut item = serde_json::to_value(node).unwrap_or_default();
            item["depends_on"] = Value::Array(names(&node.depends_on));
            item["required_by"] = Value::Array(names(&node.required_by));
            item
        })
        .collect();
    let edges: Vec<Value> = graph
        .edges
        .iter()
        .filter(|edge| shown(&asking.scope, [&edge.from_tenant, &edge.to_tenant]))
        .map(|edge| {
            let mut item = serde_json::to_value(edge).unwrap_or_default();
            item["computed_at"] = json!(since);
            item
        })
        .collect();
    Ok(Json(json!({"nodes": nodes, "edges": edges, "computed_at": since, "complete": graph.complete})).into_response())
}

/// How many lessons there are of what (panel LES-O2).
async fn lessons(State(views): State<Views>, caller: Caller, asked: Asked) -> Answer {
    let known = ["tenant_id", "after", "include_synthetic"];
    let asking = asking(&views, &caller, asked, &known).await?;
    let synthetic = asking.given.flag("include_synthetic").map_err(|why| problem(StatusCode::BAD_REQUEST, &why))?;
    let only = if synthetic == Some(true) { "" } else { " WHERE is_synthetic IS NOT TRUE" };
    let sql = format!(
        "SELECT lesson_type, status, coalesce(severity, 'NONE') AS severity, count(*) AS n FROM lessons{only} GROUP BY lesson_type, status, coalesce(severity, 'NONE')"
    );
    let rows = asking.flat(&sql, vec![]).await.map_err(|error| unanswered(&error))?;
    let by = |name: &str, words: &[&str]| {
        let mut sums: BTreeMap<&str, i64> = words.iter().map(|word| (*word, 0)).collect();
        for row in &rows {
            *sums.entry(row[name].as_str().unwrap_or("unknown")).or_default() += row["n"].as_i64().unwrap_or_default();
        }
        json!(sums)
    };
    let total: i64 = rows.iter().filter_map(|row| row["n"].as_i64()).sum();
    Ok(Json(json!({
        "total": total,
        "by_type": by("lesson_type", &["failure", "near_threshold", "critical_success"]),
        "by_status": by("status", &["pending", "converted_to_draft", "deferred", "dismissed"]),
        "by_severity": by("severity", &["CRITICAL", "HIGH", "MEDIUM", "LOW", "NONE"]),
    }))
    .into_response())
}

/// How many proposals there are, and what became of them (panel ACT-O2).
async fn proposals(State(views): State<Views>, caller: Caller, asked: Asked) -> Answer {
    let asking = asking(&views, &caller, asked, &PLAIN).await?;
    let sum = async || -> Result<Value, QueryError> {
        let rows = asking.flat("SELECT status, count(*) AS n, count(*) FILTER (WHERE draft_version IS NOT NULL) AS waiting, min(created_at) FILTER (WHERE draft_version IS NOT NULL) AS oldest FROM proposals GROUP BY status ORDER BY status", Vec::<ScalarValue>::new()).await?;
        let known: BTreeSet<&str> = ["DRAFT", "ACTIVE", "REJECTED", "RETIRED"].into();
        let mut by_status: BTreeMap<&str, i64> = known.iter().map(|status| (*status, 0)).collect();
        for row in &rows {
            *by_status.entry(row["status"].as_str().unwrap_or("unknown")).or_default() +=
                row["n"].as_i64().unwrap_or_default();
        }
        let total: i64 = by_status.values().sum();
        let decided = total - by_status.get("DRAFT").copied().unwrap_or_default();
        let approved = decided - by_status.get("REJECTED").copied().unwrap_or_default();
        #[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
        let rate = if decided > 0 { json!(approved as f64 / decided as f64) } else { Value::Null };
        let waiting: i64 = rows.iter().filter_map(|row| row["waiting"].as_i64()).sum();
        let oldest = rows.iter().filter_map(|row| row["oldest"].as_str()).min();
        Ok(json!({
            "total": total, "by_status": by_status, "reviewed": decided, "pending": waiting, "approval_rate": rate,
            "oldest_pending_at": oldest,
        }))
    };
    Ok(Json(sum().await.map_err(|error| unanswered(&error))?).into_response())
}
