use std::sync::Arc;

use axum::body::Body;
use axum::http::{Request as HttpRequest, StatusCode};
use prometheus::Registry;
use serde_json::{Value, json};
use tower::ServiceExt as _;

use super::*;
use crate::clock::rfc3339;
use crate::metrics::Metrics;
use crate::serve::Health;
use crate::serve::access::Access;
use crate::serve::api::Peer;
use crate::serve::reads::events::News;
use crate::serve::tables::schema::Source;
use crate::serve::tables::{Bounds, Limits, Record};

const NOW: i64 = 1_800_000_000 * SECOND;
const HOUR: i64 = 3_600 * SECOND;

fn now() -> Wall {
    Wall(NOW)
}

/// What is described and served by others.
const ELSEWHERE: [&str; 6] = ["verdict", "policy-level", "events", "explain", "/commands/", "/panels"];

struct Site {
    tables: Tables,
    news: News,
    router: Router,
    offset: std::cell::Cell<i64>,
}

fn site() -> Site {
    let tables = Tables::new(Bounds::default(), Limits::default(), now).unwrap();
    tables.filled();
    let health = Arc::new(Health::new(now()));
    let metrics = Arc::new(Metrics::register(&Registry::new(), &[]).unwrap());
    let of = |name: &str, tenant: &str| Caller::new(name, 1, tenant);
    let access = Access::new(false)
        .with("a token of everyone's", of("everyone", "*"))
        .with("a token of acme alone", of("acme", "acme"))
        .with("a token of the other", of("other", "other"));
    let news = News::default();
    let views = Views::new(health, metrics, now)
        .with_api(Arc::default(), Arc::default(), access)
        .with_tables(tables.clone(), news.clone());
    let peer = Peer("127.0.0.1:5".parse().unwrap());
    let router = routes().with_state(views).layer(axum::Extension(peer));
    Site { tables, news, router, offset: std::cell::Cell::new(0) }
}

impl Site {
    fn put(&self, source: Source, key: &str, record: &Value) {
        let payload = record.to_string();
        let offset = self.offset.replace(self.offset.get() + 1);
        let (key, payload) = (Some(key.as_bytes()), Some(payload.as_bytes()));
        self.tables.take(source, Record { partition: 0, offset, key, kind: None, payload }).unwrap();
    }

    async fn ask(&self, token: &str, path: &str) -> (StatusCode, Value) {
        let request = HttpRequest::get(path).header("authorization", format!("Bearer {token}"));
        let response = self.router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        let status = response.status();
        let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    async fn everyone(&self, path: &str) -> Value {
        let (status, body) = self.ask("a token of everyone's", path).await;
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    async fn ids(&self, path: &str, id: &str) -> Vec<String> {
        let body = self.everyone(path).await;
        let of = |item: &Value| id.split('.').fold(item, |value, name| &value[name]).as_str().unwrap().to_owned();
        body["items"].as_array().unwrap().iter().map(of).collect()
    }
}

fn policy(tenant: &str, id: &str, more: Value) -> Value {
    let mut record = json!({
        "policy_id": id, "tenant_id": tenant, "revision": 1, "origin": "SET", "proposal_id": null,
        "changed_at": rfc3339(NOW - 2 * HOUR), "changed_by": "system:files",
        "id": id, "name": id.to_uppercase(), "tenant": tenant, "version": 1, "status": "ACTIVE", "rule_type": "SYSTEM", "source": "MANUAL",
        "enforcement_mode": "BLOCK", "scope": {"level": "TENANT", "level_ids": [], "who": "ALL_RUNS", "ids": []}, "precedence": 100,
        "conflict_strategy": "MOST_RESTRICTIVE", "binding": "RUN_START", "on_failure": "fail_open", "depends_on": [], "active": null,
        "limits": [], "condition": null, "actions": [], "min_authority": 1,
        "monitor": {"signals": [], "allow_prompt_logging": false, "allow_pii_capture": false},
        "alerts": {"channels": ["ui"], "max_alerts_per_run": 20, "min_alert_interval_seconds": 30},
        "override": {"min_authority": 4, "max_minutes": 60}, "rollback": {"enabled": false, "auto_rollback_after_minutes": 60},
    });
    record.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    record
}

fn limit(tenant: &str, policy: &str, id: &str, kind: &str, category: &str, status: &str) -> Value {
    json!({
        "limit_id": id, "policy_id": policy, "tenant_id": tenant, "revision": 1, "limit_type": kind, "category": category,
        "metric": "run_tokens", "max": 100, "near": 0.8, "status": status, "enforcement": "BLOCK", "on_breach": "STOP",
        "cooldown_seconds": 0,
    })
}

fn signal(tenant: &str, id: &str, kind: &str, more: Value) -> Value {
    let mut record = json!({
        "signal_id": id, "kind": kind, "mode": "BLOCK", "tenant_id": tenant, "policy_id": "p-1", "policy_version": 1, "limit_id": "l-1",
        "limit_type": "TOKENS_PER_RUN", "category": "BUDGET", "metric": "run_tokens", "scope": {"kind": "RUN", "id": id},
        "run_id": id, "value": 120, "limit": 100, "utilization": 1.2, "overshoot": 20, "event_time": rfc3339(NOW - HOUR),
        "window_end": "2096-10-02T07:06:40.000000Z", "decided_at": rfc3339(NOW - HOUR), "is_synthetic": false, "snapshot_id": "s-1",
        "violation": {"violation_type": "quota", "source": "runtime", "severity": 0.8, "violation_kind": "STANDARD"},
    });
    record.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    record
}

/// One of everything that a filter can tell apart.
fn filled() -> Site {
    let site = site();
    let records = [
        ("*/policy/p-1", policy("*", "p-1", json!({}))),
        (
            "acme/policy/p-2",
            policy(
                "acme",
                "p-2",
                json!({
                    "rule_type": "SAFETY", "source": "SYSTEM", "status": "RETIRED", "enforcement_mode": "WARN", "changed_at": rfc3339(NOW - 30 * HOUR),
                    "scope": {"level": "AGENT", "level_ids": ["a"], "who": "ALL_RUNS", "ids": []},
                }),
            ),
        ),
        ("other/policy/p-3", policy("other", "p-3", json!({"rule_type": "ETHICAL"}))),
        ("*/limit/p-1/l-1", limit("*", "p-1", "l-1", "TOKENS_PER_RUN", "BUDGET", "ACTIVE")),
        ("acme/limit/p-2/l-2", limit("acme", "p-2", "l-2", "RUNS_PER_HOUR", "RATE", "DISABLED")),
        ("acme/limit/p-2/l-3", limit("acme", "p-2", "l-3", "RISK_CEILING", "THRESHOLD", "ACTIVE")),
        ("other/limit/p-3/l-1", limit("other", "p-3", "l-1", "COST_PER_DAY", "BUDGET", "DISABLED")),
        (
            "acme/proposal/d-1",
            json!({"proposal_id": "d-1", "revision": 1, "tenant_id": "acme", "policy_id": "p-9", "status": "DRAFT",
            "created_at": rfc3339(NOW - HOUR), "created_by": "user:ada", "draft_version": 1, "current_version": 1, "versions": 2}),
        ),
        (
            "acme/proposal/d-2",
            json!({"proposal_id": "d-2", "revision": 2, "tenant_id": "acme", "policy_id": "p-2", "status": "REJECTED",
            "created_at": rfc3339(NOW - 2 * HOUR), "created_by": "user:ada", "draft_version": null, "current_version": 1, "versions": 1}),
        ),
        (
            "acme/version/d-1/1",
            json!({"proposal_id": "d-1", "version": 1, "is_current": true, "status": "DRAFT", "created_at": rfc3339(NOW),
            "policy": {"id": "p-9", "tenant": "acme"}}),
        ),
        (
            "acme/version/d-1/2",
            json!({"proposal_id": "d-1", "version": 2, "is_current": false, "status": "DRAFT", "created_at": rfc3339(NOW),
            "policy": {"id": "p-9", "tenant": "acme"}}),
        ),
        (
            "acme/override/o-1",
            json!({"override_id": "o-1", "revision": 1, "tenant_id": "acme", "policy_id": "p-1", "status": "ACTIVE", "granted_at": rfc3339(NOW)}),
        ),
        (
            "acme/silence/m-1",
            json!({"silence_id": "m-1", "revision": 1, "tenant_id": "acme", "status": "ACTIVE", "author": "user:ada", "starts_at": rfc3339(NOW), "matchers": []}),
        ),
    ];
    for (key, record) in &records {
        site.put(Source::Policies, key, record);
    }
    let signals = [
        signal("acme", "s-1", "BREACH", json!({})),
        signal(
            "acme",
            "s-2",
            "NEAR",
            json!({"violation": {"violation_type": "cost", "source": "cost", "severity": 0.5, "violation_kind": "ANOMALY"}, "utilization": 0.9}),
        ),
        signal("acme", "s-3", "RESOLVED", json!({"event_time": rfc3339(NOW - HOUR / 2)})),
        signal(
            "acme",
            "s-4",
            "BREACH",
            json!({"is_synthetic": true, "violation": {"violation_type": "quota", "source": "sim", "severity": 1.0, "violation_kind": "STANDARD"}}),
        ),
        signal("acme", "s-5", "NEAR", json!({"event_time": rfc3339(NOW - 48 * HOUR)})),
        signal(
            "other",
            "s-6",
            "BREACH",
            json!({"policy_id": "p-3", "mode": "AUDIT", "violation": {"violation_type": "ethical", "source": "runtime", "severity": 0.8, "violation_kind": "DIVERGENCE"}}),
        ),
    ];
    for record in &signals {
        site.put(Source::Signals, record["tenant_id"].as_str().unwrap(), record);
    }
    for (id, kind, status, synthetic) in [
        ("e-1", "failure", "pending", false),
        ("e-2", "near_threshold", "dismissed", false),
        ("e-3", "failure", "pending", true),
    ] {
        let record = json!({"id": id, "revision": 1, "tenant_id": "acme", "lesson_type": kind, "severity": "HIGH", "status": status,
            "created_at": rfc3339(NOW), "is_synthetic": synthetic, "detected_pattern": {"metric": "m"}});
        site.put(Source::Lessons, &format!("acme/{id}"), &record);
    }
    for (id, status, severity) in [("a-1", "OPEN", "HIGH"), ("a-2", "UPDATED", "LOW"), ("a-3", "RESOLVED", "HIGH")] {
        let record = json!({"alert_id": id, "revision": 1, "status": status, "severity": severity, "tenant_id": "acme", "correlation_key": id,
            "last_seen": rfc3339(NOW), "members": ["s-1"], "is_synthetic": false});
        site.put(Source::Alerts, "acme", &record);
    }
    for (id, kind, state) in [("i-1", "STOP", "ISSUED"), ("i-2", "CANCEL_TASK", "SUCCEEDED")] {
        let record = json!({"intervention_id": id, "revision": 1, "state": state, "type": kind, "tenant_id": "acme", "policy_id": "p-1",
            "target": {"kind": "TASK", "id": "t-1"}, "created_at": rfc3339(NOW), "initiated_by": "user:ada", "authority_level": 4});
        site.put(Source::Interventions, "acme", &record);
    }
    site.put(Source::Runs, "acme", &json!({"run_id": "r-1", "tenant_id": "acme", "status": "FAILED", "agent_id": "planner", "ended_at": rfc3339(NOW)}));
    site.put(
        Source::Audit,
        "acme",
        &json!({"audit_id": "x-1", "tenant_id": "acme", "at": rfc3339(NOW), "kind": "command.refused", "refused": true,
        "principal": "user:ada", "subject": {"kind": "policy", "id": "p-1"}}),
    );
    for (minute, by_action) in [(1, json!({"STOP": 2})), (2, json!({"STOP": 1, "WARN": 3})), (3, json!({"STOP": 2}))] {
        site.put(
            Source::Evaluations,
            "acme",
            &json!({"tenant_id": "acme", "minute": rfc3339(NOW - minute * 60 * SECOND), "evaluations": 10,
            "blocks": 2, "allows": 8, "by_action": by_action, "uncovered": 1, "time_spent_us": 5_000}),
        );
    }
    let at = rfc3339(NOW - SECOND);
    for (metric, id, utilization, level) in [
        ("run_tokens", "r-9", 0.55, None),
        ("run_tokens", "r-1", 0.9, Some("NEAR")),
        ("agent_cost_1d", "planner", 1.1, Some("BREACH")),
    ] {
        let (kind, run) = if metric == "run_tokens" { ("RUN", Some(id)) } else { ("AGENT", None) };
        let record = json!({"metric": metric, "tenant_id": "acme", "scope": {"kind": kind, "id": id}, "run_id": run, "value": 9,
            "limit": 10, "utilization": utilization, "level": level, "policy_id": "p-1", "minutes_to_limit": 3.5, "updated_at": at});
        site.put(Source::Live, &format!("acme/window/{metric}/{id}"), &record);
    }
    // a day old: it is not live
    let old = json!({"metric": "run_tokens", "tenant_id": "acme", "scope": {"kind": "RUN", "id": "old"}, "utilization": 1, "updated_at": rfc3339(NOW - 25 * HOUR)});
    site.put(Source::Live, "acme/window/run_tokens/old", &old);
    for (id, health, team) in [("g-1", "healthy", "red"), ("g-2", "failed", "blue")] {
        let record = json!({"agent_id": id, "tenant_id": "acme", "team_id": team, "health_status": health, "open_tasks": 1, "last_seen": at, "updated_at": at});
        site.put(Source::Live, &format!("acme/agent/{id}"), &record);
    }
    for (id, status, open) in [("t-1", "running", true), ("t-2", "completed", false)] {
        let record = json!({"task_id": id, "tenant_id": "acme", "run_id": "r-1", "agent_id": "g-1", "task_status": status, "priority": "HIGH",
            "open": open, "last_seen": at, "updated_at": at});
        site.put(Source::Live, &format!("acme/task/{id}"), &record);
    }
    site
}

#[tokio::test]
async fn every_filter_of_every_list_lets_through_what_it_names_and_nothing_else() {
    let site = filled();
    let expected: &[(&str, &str, &[&str])] = &[
        ("/api/v1/policies", "policy_id", &["p-1", "p-2", "p-3"]),
        ("/api/v1/policies/rules", "rule_id", &["p-1", "p-3", "p-2"]),
        ("/api/v1/policies/rules?rule_type=SAFETY", "rule_id", &["p-2"]),
        ("/api/v1/policies/rules?rule_type=ethical", "rule_id", &["p-3"]),
        ("/api/v1/policies/rules?status=RETIRED", "rule_id", &["p-2"]),
        ("/api/v1/policies/rules?source=SYSTEM", "rule_id", &["p-2"]),
        ("/api/v1/policies/rules?enforcement_mode=warn", "rule_id", &["p-2"]),
        ("/api/v1/policies/rules?scope=AGENT", "rule_id", &["p-2"]),
        ("/api/v1/policies/rules?created_before=2027-01-14T12:00:00Z", "rule_id", &["p-2"]),
        ("/api/v1/policies/rules?created_after=2027-01-14T12:00:00Z", "rule_id", &["p-1", "p-3"]),
        ("/api/v1/policies/limits?limit_type=RUNS_*", "limit_id", &["l-2"]),
        ("/api/v1/policies/limits?limit_type=TOKENS_PER_RUN", "limit_id", &["l-1"]),
        ("/api/v1/policies/limits?limit_type=R*", "limit_id", &["l-2", "l-3"]),
        ("/api/v1/policies/limits?category=THRESHOLD", "limit_id", &["l-3"]),
        ("/api/v1/policies/limits?scope=AGENT&status=ACTIVE", "limit_id", &["l-3"]),
        ("/api/v1/policies/limits?enforcement=BLOCK&policy_id=p-2", "limit_id", &["l-2", "l-3"]),
        ("/api/v1/policies/budgets", "policy_id", &["p-1"]),
        ("/api/v1/policies/budgets?status=DISABLED", "policy_id", &["p-3"]),
        ("/api/v1/policies/violations", "violation_id", &["s-1", "s-2", "s-6"]),
        ("/api/v1/policies/violations?source=cost", "violation_id", &["s-2"]),
        ("/api/v1/policies/violations?source=sim", "violation_id", &[]),
        ("/api/v1/policies/violations?source=sim&include_synthetic=true", "violation_id", &["s-4"]),
        ("/api/v1/policies/violations?violation_kind=ANOMALY", "violation_id", &["s-2"]),
        ("/api/v1/policies/violations?violation_kind=DIVERGENCE", "violation_id", &["s-6"]),
        ("/api/v1/policies/violations?severity_min=0.8", "violation_id", &["s-1", "s-6"]),
        ("/api/v1/policies/violations?hours=720", "violation_id", &["s-1", "s-2", "s-6", "s-5"]),
        ("/api/v1/policies/violations?violation_type=ethical", "violation_id", &["s-6"]),
        ("/api/v1/policies/requests", "proposal_id", &["d-1"]),
        ("/api/v1/policies/overrides?status=ACTIVE", "override_id", &["o-1"]),
        ("/api/v1/policy-proposals", "proposal_id", &["d-1", "d-2"]),
        ("/api/v1/policy-proposals?status=draft", "proposal_id", &["d-1"]),
        ("/api/v1/policy-proposals/versions?is_current=true", "policy_id", &["p-9"]),
        ("/api/v1/lessons", "id", &["e-1", "e-2"]),
        ("/api/v1/policies/lessons?status=PENDING", "id", &["e-1"]),
        ("/policy-layer/lessons?lesson_type=failure&include_synthetic=true", "id", &["e-1", "e-3"]),
        ("/api/v1/alerts?status=open", "alert_id", &["a-1", "a-2"]),
        ("/api/v1/alerts?severity=HIGH&status=RESOLVED", "alert_id", &["a-3"]),
        ("/api/v1/interventions?state=issued", "intervention_id", &["i-1"]),
        ("/api/v1/interventions?target_id=t-1&type=CANCEL_TASK", "intervention_id", &["i-2"]),
        ("/api/v1/guardian/actions", "id", &["i-2"]),
        ("/api/v1/guardian/actions?limit=100&action_type=cancel_task", "id", &["i-2"]),
        ("/api/v1/guardian/actions?action_type=override_priority", "id", &[]),
        ("/api/v1/silences?status=ACTIVE", "silence_id", &["m-1"]),
        ("/api/v1/signals?kind=RESOLVED", "signal_id", &["s-3"]),
        ("/api/v1/limits-up", "signal_id", &["s-1", "s-6", "s-5", "s-2"]),
        ("/api/v1/live-windows", "scope.id", &["planner", "r-1", "r-9"]),
        ("/api/v1/live-windows?level=near", "scope.id", &["r-1"]),
        ("/api/v1/live-windows?scope_kind=AGENT&metric=agent_cost_1d", "scope.id", &["planner"]),
        ("/api/v1/live-windows?run_id=r-9&policy_id=p-1", "scope.id", &["r-9"]),
        ("/api/v1/live-windows?scope_id=r-1", "scope.id", &["r-1"]),
        ("/api/v1/agents", "agent_id", &["g-1", "g-2"]),
        ("/api/v1/agents?health_status=FAILED", "agent_id", &["g-2"]),
        ("/api/v1/agents?team_id=red", "agent_id", &["g-1"]),
        ("/api/v1/tasks?open=true", "task_id", &["t-1"]),
        ("/api/v1/tasks?task_status=completed&priority=high", "task_id", &["t-2"]),
        ("/api/v1/tasks?agent_id=g-1&run_id=r-1", "task_id", &["t-1", "t-2"]),
        ("/api/v1/runs?agent_id=planner&status=failed", "run_id", &["r-1"]),
        ("/api/v1/audit?refused=true", "audit_id", &["x-1"]),
        ("/api/v1/audit?refused=false", "audit_id", &[]),
    ];
    for (path, id, ids) in expected {
        assert_eq!(site.ids(path, id).await, *ids, "{path}");
    }
}

#[tokio::test]
async fn pages_say_how_many_there_are_and_whether_there_are_more() {
    let site = site();
    for n in 0..150 {
        site.put(Source::Signals, "acme", &signal("acme", &format!("s-{n:03}"), "NEAR", json!({})));
    }
    let page = async |query: &str| {
        let body = site.everyone(&format!("/api/v1/policies/violations{query}")).await;
        let items = body["items"].as_array().unwrap();
        let first = items.first().map(|item| item["violation_id"].as_str().unwrap().to_owned());
        (items.len(), body["total"].as_i64().unwrap(), body["has_more"].as_bool().unwrap(), first.unwrap_or_default())
    };
    assert_eq!(page("").await, (50, 150, true, "s-000".into()), "the seed's default");
    assert_eq!(page("?limit=100&offset=50").await, (100, 150, false, "s-050".into()));
    assert_eq!(page("?limit=100&offset=100").await, (50, 150, false, "s-100".into()));
    assert_eq!(page("?offset=150").await, (0, 150, false, String::new()));
    let applied = site.everyone("/api/v1/policies/violations?hours=2&tenant_id=acme").await["filters_applied"].clone();
    assert_eq!(applied, json!({"tenant_id": "acme", "hours": 2, "include_synthetic": false}));
}

#[tokio::test]
async fn on_every_route_nobody_sees_what_is_another_s() {
    let site = filled();
    let document = openapi::for_tests(&site.tables).await;
    let paths: Vec<String> = document["paths"].as_object().unwrap().keys().cloned().collect();
    let here = |path: &&String| {
        document["paths"][*path]["get"].is_object() && !ELSEWHERE.iter().any(|elsewhere| path.contains(elsewhere))
    };
    let served: Vec<&String> = paths.iter().filter(here).collect();
    assert!(served.len() > 30);
    for path in served {
        for id in
            ["p-1", "p-2", "l-2", "d-1", "e-1", "a-1", "i-1", "i-2", "m-1", "s-1", "r-1", "x-1", "o-1", "g-1", "t-1"]
        {
            let path = path.replace("{id}", id);
            for wide in ["", "?hours=720", "?include_synthetic=true"] {
                let (status, body) = site.ask("a token of the other", &format!("{path}{wide}")).await;
                assert!(matches!(status.as_u16(), 200 | 400 | 404), "{path}: {status} {body}");
                assert!(!body.to_string().contains("acme"), "{path}{wide}: {body}");
            }
            let (status, _) = site.ask("a token of the other", &format!("{path}?tenant_id=acme")).await;
            assert_eq!(status, 403, "{path}");
            assert_eq!(site.ask("no token of ours", &path).await.0, 401, "{path}");
        }
    }
}

#[tokio::test]
async fn what_is_one_of_something_is_found_by_its_id_and_several_are_told_apart() {
    let site = filled();
    for (path, name, value) in [
        ("/api/v1/policies/rules/p-2", "rule_type", "SAFETY"),
        ("/api/v1/policies/p-2", "policy_id", "p-2"),
        ("/api/v1/policies/limits/l-2", "limit_type", "RUNS_PER_HOUR"),
        ("/api/v1/policies/limits/l-1?policy_id=p-3", "limit_type", "COST_PER_DAY"),
        ("/api/v1/policy-proposals/d-2", "status", "REJECTED"),
        ("/policy-layer/lessons/e-2", "status", "dismissed"),
        ("/api/v1/alerts/a-2", "status", "UPDATED"),
        ("/api/v1/guardian/actions/i-2", "action_type", "cancel_task"),
        ("/api/v1/interventions/i-1", "state", "ISSUED"),
    ] {
        assert_eq!(site.everyone(path).await[name], value, "{path}");
    }
    assert_eq!(site.everyone("/api/v1/interventions/i-1").await["target"], json!({"kind": "TASK", "id": "t-1"}));
    let (status, body) = site.ask("a token of everyone's", "/api/v1/policies/limits/l-1").await;
    assert!(status == 409 && body["detail"].as_str().unwrap().contains("policy_id"), "{body}");
    let (status, body) = site.ask("a token of everyone's", "/api/v1/lessons/nothing").await;
    assert_eq!((status.as_u16(), &body["title"]), (404, &json!("Not Found")));
}

#[tokio::test]
async fn what_is_summed_up_has_the_seed_s_fields_and_the_right_figures() {
    let site = filled();
    assert_eq!(
        site.everyone("/api/v1/policies/state?tenant_id=acme").await,
        json!({"total_policies": 2, "active_policies": 1, "drafts_pending_review": 1, "conflicts_detected": 0, "violations_24h": 2,
            "lessons_pending_action": 1, "last_updated": rfc3339(NOW)})
    );
    assert_eq!(
        site.everyone("/api/v1/policies/metrics?hours=1").await,
        json!({"total_evaluations": 30, "total_blocks": 6, "total_allows": 24, "block_rate": 0.2, "avg_evaluation_ms": 0.5,
            "violations_by_type": {"cost": 1, "ethical": 1, "quota": 1}, "evaluations_by_action": {"STOP": 5, "WARN": 3},
            "events_no_policy_covered": 3, "window_hours": 1})
    );
    let stats = site.everyone("/policy-layer/lessons/stats").await;
    assert_eq!(
        (&stats["total"], &stats["by_type"]["failure"], &stats["by_status"]["deferred"]),
        (&json!(2), &json!(1), &json!(0))
    );
    let summary = site.everyone("/api/v1/policy-proposals/stats/summary").await;
    assert_eq!(
        (&summary["total"], &summary["pending"], &summary["approval_rate"]),
        (&json!(2), &json!(1), &json!(0.0))
    );
    let evidence = site.everyone("/api/v1/policies/rules/p-1/evidence").await;
    assert_eq!(evidence["violations"].as_array().unwrap().len(), 4, "{evidence}");
    assert_eq!(
        (&evidence["interventions"][0]["policy_id"], &evidence["audit"][0]["kind"]),
        (&json!("p-1"), &json!("command.refused"))
    );
    let breaches = site.everyone("/api/v1/policies/limits/l-1/evidence?policy_id=p-1&limit=2").await;
    assert_eq!(
        (&breaches["total"], &breaches["has_more"], &breaches["limit"]["limit_id"]),
        (&json!(4), &json!(true), &json!("l-1"))
    );
    let nothing = super::tests::site().everyone("/api/v1/policies/metrics").await;
    assert_eq!((&nothing["block_rate"], &nothing["window_hours"]), (&json!(0.0), &json!(24)));
}

#[tokio::test]
async fn conflicts_and_dependencies_are_those_of_the_policies_there_are() {
    let site = site();
    let modes = [("safety-baseline", "BLOCK"), ("rate-limit-warning", "DISABLED"), ("ethical-ai", "WARN")];
    for (id, mode) in modes {
        let kind = if id == "ethical-ai" { "ETHICAL" } else { "SAFETY" };
        site.put(
            Source::Policies,
            &format!("*/policy/{id}"),
            &policy("*", id, json!({"enforcement_mode": mode, "rule_type": kind})),
        );
    }
    // the seed's own test (14.7)
    let conflicts = site.everyone("/api/v1/policies/conflicts").await;
    assert_eq!((&conflicts["total"], &conflicts["unresolved_count"]), (&json!(1), &json!(0)), "{conflicts}");
    let one = &conflicts["items"][0];
    for (name, value) in [
        ("conflict_type", "SCOPE_OVERLAP"),
        ("severity", "WARNING"),
        ("policy_a_id", "safety-baseline"),
        ("policy_b_id", "rate-limit-warning"),
    ] {
        assert_eq!(one[name], value);
    }
    for name in ["policy_a_name", "policy_b_name", "explanation", "recommended_action", "detected_at"] {
        assert!(one[name].as_str().is_some_and(|text| !text.is_empty()), "{name}");
    }
    assert_eq!(site.everyone("/api/v1/policies/conflicts?severity=blocking").await["total"], 0);
    let graph = site.everyone("/api/v1/policies/dependencies").await;
    assert_eq!((graph["nodes"].as_array().unwrap().len(), graph["edges"].as_array().unwrap().len()), (3, 2));
    assert!(
        graph["edges"]
            .as_array()
            .unwrap()
            .iter()
            .all(|e| e["dependency_type"] == "IMPLICIT_SCOPE" && e["computed_at"].is_string())
    );
    let gone =
        Record { partition: 0, offset: 99, key: Some(b"*/policy/rate-limit-warning"), kind: None, payload: None };
    site.tables.take(Source::Policies, gone).unwrap();
    assert_eq!(site.everyone("/api/v1/policies/conflicts").await["total"], 0);
}

#[tokio::test]
async fn a_wrong_parameter_is_named_with_what_there_is() {
    let site = filled();
    for (path, said) in [
        ("/api/v1/policies/rules?type=ETHICAL", "rule_type"),
        ("/api/v1/policies/rules?rule_type=GOOD", "SYSTEM SAFETY ETHICAL TEMPORAL"),
        ("/api/v1/policies/rules?limit=101", "1 to 100"),
        ("/api/v1/policies/rules?limit=1&limit=2", "twice"),
        ("/api/v1/policies/violations?hours=721", "1 to 720"),
        ("/api/v1/policies/violations?severity_min=2", "0 to 1"),
        ("/api/v1/policies/violations?include_synthetic=yes", "true or false"),
        ("/api/v1/policies/limits?created_after=yesterday", "RFC 3339"),
        ("/api/v1/policies/conflicts?severity=LOW", "BLOCKING WARNING"),
        ("/api/v1/policies/metrics?hours=0", "1 to 720"),
        ("/api/v1/events?kind=everything", "alert"),
    ] {
        let (status, body) = site.ask("a token of everyone's", path).await;
        assert_eq!(status, 400, "{path}");
        assert!(body["detail"].as_str().unwrap().contains(said), "{path}: {body}");
    }
}

#[tokio::test]
async fn as_long_as_the_topics_are_being_read_whoever_asks_is_told_to_come_again() {
    let site = site();
    let fresh = Tables::new(Bounds::default(), Limits::default(), now).unwrap();
    let health = Arc::new(Health::new(now()));
    let metrics = Arc::new(Metrics::register(&Registry::new(), &[]).unwrap());
    let access = Access::new(false).with("a token of everyone's", Caller::new("e", 1, "*"));
    let views = Views::new(health, metrics, now)
        .with_api(Arc::default(), Arc::default(), access)
        .with_tables(fresh.clone(), News::default());
    let router = routes().with_state(views).layer(axum::Extension(Peer("127.0.0.1:5".parse().unwrap())));
    let site = Site { router, tables: fresh, ..site };
    assert_eq!(site.ask("a token of everyone's", "/api/v1/alerts").await.0, 503);
    site.tables.filled();
    assert_eq!(site.ask("a token of everyone's", "/api/v1/alerts").await.0, 200);
    assert_eq!(site.ask("a token of everyone's", "/api/v1/alerts?after=7").await.0, 503, "nothing is read any more");
    site.tables.seen(Wall(NOW + SECOND));
    assert_eq!(site.ask("a token of everyone's", "/api/v1/alerts?after=7").await.0, 200);
}

#[tokio::test]
async fn a_listener_hears_of_its_own_tenant_what_it_asked_for() {
    use http_body_util::BodyExt as _;
    let site = site();
    let request =
        HttpRequest::get("/api/v1/events?kind=alert,signal").header("authorization", "Bearer a token of acme alone");
    let response = site.router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    let mut body = response.into_body();
    let mut next =
        async || String::from_utf8(body.frame().await.unwrap().unwrap().into_data().unwrap().to_vec()).unwrap();
    assert_eq!(next().await, "event: listening\ndata: {}\n\n");
    assert!(site.news.is_heard());
    for (name, record) in [
        ("alert", "{\"tenant_id\":\"other\"}"),
        ("lesson", "{\"tenant_id\":\"acme\"}"),
        ("alert", "no record"),
        ("signal", "{\"tenant_id\":\"acme\",\n\"kind\":\"BREACH\"}"),
    ] {
        site.news.tell(name, record.as_bytes());
    }
    assert_eq!(next().await, "event: signal\ndata: {\"tenant_id\":\"acme\", \"kind\":\"BREACH\"}\n\n");
}

/// Whether a value fits a schema of ours: types, required fields, references.
fn fits(document: &Value, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
    if let Some(name) = schema["$ref"].as_str().and_then(|r| r.strip_prefix("#/components/schemas/")) {
        return fits(document, &document["components"]["schemas"][name], value, at);
    }
    let types: Vec<&str> = match &schema["type"] {
        Value::String(one) => vec![one],
        Value::Array(some) => some.iter().filter_map(Value::as_str).collect(),
        _ => return Ok(()),
    };
    let is = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    if !(types.contains(&is) || (is == "integer" && types.contains(&"number"))) {
        return Err(format!("{at} is {is}, not {types:?}"));
    }
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if value.is_object() && value.get(name).is_none() {
            return Err(format!("{at} lacks {name}"));
        }
    }
    for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
        if let Some(value) = value.get(name) {
            fits(document, inner, value, &format!("{at}.{name}"))?;
        }
    }
    if let Some(known) = schema["properties"].as_object()
        && let Some(stranger) = value.as_object().into_iter().flatten().find(|(name, _)| !known.contains_key(*name))
    {
        return Err(format!("{at} has {}, which is not described", stranger.0));
    }
    value
        .as_array()
        .into_iter()
        .flatten()
        .try_for_each(|item| fits(document, &schema["items"], item, &format!("{at}[]")))
}

#[tokio::test]
async fn every_answer_is_as_the_description_of_the_api_says() {
    let site = filled();
    let document = site.everyone("/api/v1/openapi.json").await;
    let mut seen = 0;
    for (path, methods) in document["paths"].as_object().unwrap() {
        let schema = &methods["get"]["responses"]["200"]["content"]["application/json"]["schema"];
        if schema.is_null() || ELSEWHERE.iter().any(|elsewhere| path.contains(elsewhere)) {
            continue;
        }
        let mut answered = path.contains("{id}").then_some(0);
        for id in ["p-2", "l-2", "d-1", "e-1", "a-1", "i-2", "m-1", "s-1", "r-1", "x-1", "o-1", "g-1", "t-1"] {
            let (status, body) = site.ask("a token of everyone's", &path.replace("{id}", id)).await;
            if status == 404 && answered.is_some() {
                continue;
            }
            assert_eq!(status, 200, "{path} {id}: {body}");
            fits(&document, schema, &body, path).unwrap();
            answered = answered.map(|n| n + 1);
            seen += 1;
        }
        assert_ne!(answered, Some(0), "{path}: nothing was found");
        let (status, _) =
            site.ask("a token of everyone's", &format!("{}?nothing=1", path.replace("{id}", "p-2"))).await;
        assert_eq!(status, 400, "{path}");
    }
    assert!(seen > 200);
    let (status, _) = site.ask("a token of everyone's", "/docs").await;
    assert_eq!(status, 200);
}

#[test]
fn paths_that_are_looked_up_are_lists() {
    for path in [
        "/api/v1/policies/rules",
        "/api/v1/policies/limits",
        "/api/v1/policies/violations",
        "/api/v1/policy-proposals",
        "/api/v1/policy-proposals/versions",
    ] {
        assert_eq!(list(path).paths[0], path);
    }
}
