//! Every panel on a small set of rows made by hand.

use serde_json::{Value, json};

use super::files::Source;
use super::testing::{Memory, rows, tables};
use crate::clock::{Micros, SECOND, Wall, rfc3339};
use crate::serve::tables::Scope;

const HOUR: Micros = 3_600 * SECOND;

struct Golden {
    tables: Memory,
    now: Micros,
}

impl Golden {
    /// What a panel gives, only these columns of it.
    fn gives(&self, panel: &str, columns: &[&str], scope: &Scope) -> Vec<Value> {
        let loaded = Source::Shipped.load().unwrap();
        let sql = loaded.sql(loaded.registry.get(panel).unwrap()).to_owned();
        let all = rows(&self.tables, scope, &sql);
        let only = |row: &Value| {
            let mut row = row.as_object().unwrap().clone();
            row.retain(|name, _| columns.contains(&name.as_str()));
            Value::Object(row)
        };
        all.iter().map(only).collect()
    }

    /// The first column that is named, of every row.
    fn ids(&self, panel: &str, column: &str) -> Vec<String> {
        let rows = self.gives(panel, &[column], &Scope::All);
        rows.iter().map(|row| row[column].as_str().unwrap().to_owned()).collect()
    }

    fn ago(&self, hours: i64) -> String {
        rfc3339(self.now - hours * HOUR)
    }
}

fn golden() -> Golden {
    let now = Wall::now().0;
    let ago = |hours: i64| rfc3339(now - hours * HOUR);
    let policy = |id: &str, tenant: &str, rule_type: &str, source: &str, status: &str| {
        let row = json!({
            "policy_id": id, "name": format!("the {id}"), "tenant_id": tenant, "version": 2, "status": status, "rule_type": rule_type,
            "source": source, "enforcement_mode": "BLOCK", "scope_level": "TENANT", "precedence": 10, "depends_on": "[\"base\"]",
            "changed_at": ago(40), "changed_by": "user:ada",
        });
        ("policies", row)
    };
    let limit = |id: &str, kind: &str, category: &str, status: &str| {
        let row = json!({
            "limit_id": id, "policy_id": "safe", "tenant_id": "acme", "limit_type": kind, "category": category, "metric": "m", "max": 5.0,
            "near": 0.8, "status": status, "enforcement": "BLOCK", "on_breach": "STOP", "cooldown_seconds": 60,
        });
        ("limits", row)
    };
    let proposal = |id: &str, status: &str, hours: i64, draft: Option<i64>| {
        let row = json!({
            "proposal_id": id, "tenant_id": "acme", "policy_id": format!("of-{id}"), "status": status, "rationale": "why",
            "created_at": ago(hours), "created_by": "user:ada", "draft_version": draft, "versions": 2,
        });
        ("proposals", row)
    };
    let version = |proposal: &str, version: i64, current: bool, hours: i64| {
        let row = json!({
            "proposal_id": proposal, "tenant_id": "acme", "version": version, "is_current": current, "status": "DRAFT",
            "created_at": ago(hours), "created_by": "user:bob", "policy_id": format!("of-{proposal}"), "policy": "{\"id\":\"x\"}",
        });
        ("policy_versions", row)
    };
    let signal = |id: &str,
                  tenant: &str,
                  hours: i64,
                  kind: &str,
                  source: &str,
                  violation_kind: &str,
                  synthetic: bool| {
        let row = json!({
            "signal_id": id, "tenant_id": tenant, "kind": kind, "event_time": ago(hours), "decided_at": ago(hours), "source": source,
            "violation_type": if source == "cost" { "cost" } else { "quota" }, "violation_kind": violation_kind, "severity": 0.8,
            "value": 6.0, "limit_value": 5.0, "is_synthetic": synthetic,
        });
        ("signals", row)
    };
    let lesson = |id: &str, status: &str, hours: i64, more: Value| {
        let mut row = json!({
            "id": id, "tenant_id": "acme", "lesson_type": "failure", "severity": "HIGH", "status": status, "title": "t",
            "detected_pattern": "{\"band\":\"85-90\"}", "created_at": ago(hours),
        });
        row.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        ("lessons", row)
    };
    let evaluation = |tenant: &str,
                      hours: i64,
                      (evaluations, blocks, allows): (i64, i64, i64),
                      actions: &str,
                      us: i64| {
        let row = json!({
            "tenant_id": tenant, "minute": ago(hours), "evaluations": evaluations, "blocks": blocks, "allows": allows, "by_action": actions,
            "time_spent_us": us,
        });
        ("evaluations", row)
    };
    let rows = [
        policy("safe", "acme", "SAFETY", "MANUAL", "ACTIVE"),
        policy("fair", "acme", "ETHICAL", "LEARNED", "RETIRED"),
        policy("guard", "*", "SYSTEM", "SYSTEM", "ACTIVE"),
        policy("night", "zeta", "TEMPORAL", "MANUAL", "ACTIVE"),
        limit("ceiling", "RISK_CEILING", "THRESHOLD", "ACTIVE"),
        limit("budget", "COST_DAILY", "BUDGET", "ACTIVE"),
        limit("old-budget", "COST_DAILY", "BUDGET", "DISABLED"),
        limit("runs", "RUNS_DAILY", "RATE", "ACTIVE"),
        limit("runsx", "RUNSX", "RATE", "ACTIVE"),
        limit("tokens", "TOKENS_PER_RUN", "THRESHOLD", "ACTIVE"),
        limit("pause", "COOLDOWN", "RATE", "ACTIVE"),
        proposal("p-draft", "DRAFT", 3, Some(1)),
        proposal("p-live", "ACTIVE", 9, Some(2)),
        proposal("p-no", "REJECTED", 5, None),
        proposal("p-gone", "RETIRED", 7, None),
        version("p-draft", 1, true, 3),
        version("p-live", 1, true, 9),
        version("p-live", 2, false, 8),
        signal("v-cost", "acme", 1, "BREACH", "cost", "STANDARD", false),
        signal("v-run", "zeta", 2, "NEAR", "runtime", "ANOMALY", false),
        signal("v-sim", "acme", 3, "NEAR", "sim", "DIVERGENCE", false),
        signal("v-made-up", "acme", 4, "BREACH", "sim", "STANDARD", true),
        signal("v-over", "acme", 2, "RESOLVED", "cost", "STANDARD", false),
        signal("v-old", "acme", 30, "BREACH", "cost", "ANOMALY", false),
        lesson("l-new", "pending", 1, json!({"lesson_type": "near_threshold"})),
        lesson("l-made-up", "pending", 1, json!({"is_synthetic": true})),
        lesson("l-done", "converted_to_draft", 6, json!({"converted_at": ago(4), "draft_proposal_id": "p-draft"})),
        lesson("l-later", "deferred", 7, json!({"deferred_until": ago(-24)})),
        lesson(
            "l-never",
            "dismissed",
            8,
            json!({"dismissed_at": ago(2), "dismissed_by": "user:ada", "dismissed_reason": "noise"}),
        ),
        evaluation("acme", 1, (100, 4, 96), "{\"STOP\":3,\"PAUSE\":1}", 200_000),
        evaluation("zeta", 2, (60, 2, 58), "{\"STOP\":2}", 120_000),
        evaluation("acme", 30, (999, 9, 990), "{\"KILL\":9}", 1),
        (
            "conflicts",
            json!({"tenant_id": "acme", "policy_a_id": "a", "policy_b_id": "b", "conflict_type": "SCOPE_OVERLAP", "severity": "WARNING"}),
        ),
        (
            "conflicts",
            json!({"tenant_id": "acme", "policy_a_id": "c", "policy_b_id": "d", "conflict_type": "THRESHOLD_CONTRADICTION",
                   "severity": "BLOCKING"}),
        ),
        (
            "dependencies",
            json!({"tenant_id": "acme", "from_policy_id": "safe", "to_policy_id": "base", "dependency_type": "EXPLICIT",
                   "explanation": "depends_on"}),
        ),
    ];
    Golden { tables: tables(&rows), now }
}

#[test]
fn the_panels_of_what_is_active_give_what_stands() {
    let golden = golden();
    assert_eq!(golden.ids("POL-GOV-ACT-O1", "proposal_id"), ["p-draft", "p-no", "p-gone", "p-live"]);
    let columns = ["total_proposals", "drafts", "active", "rejected", "retired", "waiting_for_review", "approval_rate"];
    assert_eq!(
        golden.gives("POL-GOV-ACT-O2", &columns, &Scope::All),
        [json!({"total_proposals": 4, "drafts": 1, "active": 1, "rejected": 1, "retired": 1, "waiting_for_review": 2,
                "approval_rate": 2.0 / 3.0})]
    );
    // the version that waits longest comes first, and says who asked for it
    let requests =
        golden.gives("POL-GOV-ACT-O3", &["request_id", "requested_by", "requested_at", "draft_version"], &Scope::All);
    assert_eq!(
        requests,
        [
            json!({"request_id": "p-live", "requested_by": "user:bob", "requested_at": golden.ago(8), "draft_version": 2}),
            json!({"request_id": "p-draft", "requested_by": "user:bob", "requested_at": golden.ago(3), "draft_version": 1}),
        ]
    );
    let state = |total, active, drafts, conflicts, violations, lessons| {
        json!({"total_policies": total, "active_policies": active, "drafts_pending_review": drafts, "conflicts_detected": conflicts,
               "violations_24h": violations, "lessons_pending_action": lessons, "last_updated": golden.ago(1)})
    };
    let columns: Vec<String> = state(0, 0, 0, 0, 0, 0).as_object().unwrap().keys().cloned().collect();
    let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
    assert_eq!(golden.gives("POL-GOV-ACT-O4", &columns, &Scope::All), [state(4, 3, 2, 2, 3, 1)]);
    // a tenant sees its own, and what is shared
    let acme = Scope::Tenant("acme".into());
    assert_eq!(golden.gives("POL-GOV-ACT-O4", &columns, &acme), [state(3, 2, 2, 2, 2, 1)]);
}

#[test]
fn the_panel_of_metrics_sums_the_last_day_and_always_gives_a_row() {
    let golden = golden();
    let columns = [
        "total_evaluations",
        "total_blocks",
        "total_allows",
        "block_rate",
        "avg_evaluation_ms",
        "violations_by_type",
        "evaluations_by_action",
        "window_hours",
        "last_evaluation_at",
    ];
    assert_eq!(
        golden.gives("POL-GOV-ACT-O5", &columns, &Scope::All),
        [json!({
            "total_evaluations": 160, "total_blocks": 6, "total_allows": 154, "block_rate": 6.0 / 160.0, "avg_evaluation_ms": 2.0,
            "violations_by_type": {"cost": 1, "quota": 2}, "evaluations_by_action": {"PAUSE": 1, "STOP": 5}, "window_hours": 24,
            "last_evaluation_at": golden.ago(1),
        })]
    );
    let nobody = Scope::Tenant("nobody".into());
    assert_eq!(
        golden.gives("POL-GOV-ACT-O5", &columns, &nobody),
        [json!({
            "total_evaluations": 0, "total_blocks": 0, "total_allows": 0, "block_rate": 0.0, "avg_evaluation_ms": 0.0,
            "violations_by_type": {}, "evaluations_by_action": {}, "window_hours": 24,
        })]
    );
}

#[test]
fn the_panels_of_drafts_give_proposals_versions_conflicts_and_dependencies() {
    let golden = golden();
    assert_eq!(
        golden.gives("POL-GOV-DFT-O1", &["proposal_id", "lesson_id"], &Scope::All),
        [json!({"proposal_id": "p-draft", "lesson_id": "l-done"})]
    );
    assert_eq!(
        golden.gives("POL-GOV-DFT-O2", &["proposal_id", "version", "is_current"], &Scope::All),
        [
            json!({"proposal_id": "p-draft", "version": 1, "is_current": true}),
            json!({"proposal_id": "p-live", "version": 2, "is_current": false}),
            json!({"proposal_id": "p-live", "version": 1, "is_current": true}),
        ]
    );
    assert_eq!(
        golden.gives("POL-GOV-DFT-O3", &["proposal_id", "version", "policy"], &Scope::All),
        [
            json!({"proposal_id": "p-draft", "version": 1, "policy": {"id": "x"}}),
            json!({"proposal_id": "p-live", "version": 1, "policy": {"id": "x"}}),
        ]
    );
    assert_eq!(golden.ids("POL-GOV-DFT-O4", "conflict_type"), ["THRESHOLD_CONTRADICTION", "SCOPE_OVERLAP"]);
    assert_eq!(
        golden.gives(
            "POL-GOV-DFT-O5",
            &["from_policy_id", "to_policy_id", "dependency_type", "explanation"],
            &Scope::All
        ),
        [
            json!({"from_policy_id": "safe", "to_policy_id": "base", "dependency_type": "EXPLICIT", "explanation": "depends_on"})
        ]
    );
}

#[test]
fn the_panels_of_the_library_are_filters_on_the_rules() {
    let golden = golden();
    for (panel, rules) in [
        ("POL-GOV-LIB-O1", &["safe"][..]),
        ("POL-GOV-LIB-O2", &["fair"]),
        ("POL-GOV-LIB-O3", &["guard", "safe", "night"]),
        ("POL-GOV-LIB-O4", &["guard"]),
        ("POL-GOV-LIB-O5", &["night"]),
    ] {
        assert_eq!(golden.ids(panel, "rule_id"), rules, "{panel}");
    }
    let columns = ["rule_id", "name", "scope", "version", "depends_on", "created_at", "created_by"];
    assert_eq!(
        golden.gives("POL-GOV-LIB-O1", &columns, &Scope::All),
        [json!({"rule_id": "safe", "name": "the safe", "scope": "TENANT", "version": 2, "depends_on": ["base"],
                "created_at": golden.ago(40), "created_by": "user:ada"})]
    );
    let zeta = Scope::Tenant("zeta".into());
    let seen = golden.gives("POL-GOV-LIB-O3", &["rule_id"], &zeta);
    assert_eq!(seen, [json!({"rule_id": "guard"}), json!({"rule_id": "night"})], "its own, and what is shared");
}

#[test]
fn the_panels_of_thresholds_are_filters_on_the_limits() {
    let golden = golden();
    for (panel, limits) in [
        ("POL-LIM-THR-O1", &["ceiling"][..]),
        ("POL-LIM-THR-O2", &["budget"]),
        ("POL-LIM-THR-O3", &["runs"]),
        ("POL-LIM-THR-O4", &["tokens"]),
        ("POL-LIM-THR-O5", &["pause"]),
    ] {
        assert_eq!(golden.ids(panel, "limit_id"), limits, "{panel}");
    }
    let columns =
        ["limit_id", "policy_name", "max", "near", "scope", "policy_status", "cooldown_seconds", "created_at"];
    assert_eq!(
        golden.gives("POL-LIM-THR-O5", &columns, &Scope::All),
        [
            json!({"limit_id": "pause", "policy_name": "the safe", "max": 5.0, "near": 0.8, "scope": "TENANT", "policy_status": "ACTIVE",
                "cooldown_seconds": 60, "created_at": golden.ago(40)})
        ]
    );
}

#[test]
fn the_panels_of_violations_leave_out_what_is_over_old_or_made_up() {
    let golden = golden();
    for (panel, violations) in [
        ("POL-LIM-VIO-O1", &["v-cost", "v-run", "v-sim"][..]),
        ("POL-LIM-VIO-O2", &["v-cost"]),
        ("POL-LIM-VIO-O3", &["v-sim", "v-made-up"]),
        ("POL-LIM-VIO-O4", &["v-run"]),
        ("POL-LIM-VIO-O5", &["v-sim"]),
    ] {
        assert_eq!(golden.ids(panel, "violation_id"), violations, "{panel}");
    }
    let zeta = Scope::Tenant("zeta".into());
    assert_eq!(golden.gives("POL-LIM-VIO-O1", &["violation_id"], &zeta), [json!({"violation_id": "v-run"})]);
}

#[test]
fn the_panels_of_lessons_follow_their_life() {
    let golden = golden();
    assert_eq!(golden.ids("POL-GOV-LES-O1", "id"), ["l-new"]);
    let columns = [
        "total_lessons",
        "pending",
        "converted_to_draft",
        "deferred",
        "dismissed",
        "failure",
        "near_threshold",
        "critical_success",
        "conversion_rate",
        "last_created_at",
    ];
    assert_eq!(
        golden.gives("POL-GOV-LES-O2", &columns, &Scope::All),
        [
            json!({"total_lessons": 4, "pending": 1, "converted_to_draft": 1, "deferred": 1, "dismissed": 1, "failure": 3,
                "near_threshold": 1, "critical_success": 0, "conversion_rate": 0.5, "last_created_at": golden.ago(1)})
        ]
    );
    assert_eq!(golden.ids("POL-GOV-LES-O3", "id"), ["l-new", "l-done", "l-later", "l-never"]);
    assert_eq!(
        golden.gives("POL-GOV-LES-O3", &["detected_pattern"], &Scope::All)[0],
        json!({"detected_pattern": {"band": "85-90"}})
    );
    assert_eq!(
        golden.gives("POL-GOV-LES-O4", &["id", "draft_proposal_id", "policy_id", "proposal_status"], &Scope::All),
        [
            json!({"id": "l-done", "draft_proposal_id": "p-draft", "policy_id": "of-p-draft", "proposal_status": "DRAFT"})
        ]
    );
    assert_eq!(
        golden.gives("POL-GOV-LES-O5", &["id", "status", "deferred_until", "dismissed_reason"], &Scope::All),
        [
            json!({"id": "l-later", "status": "deferred", "deferred_until": golden.ago(-24)}),
            json!({"id": "l-never", "status": "dismissed", "dismissed_reason": "noise"}),
        ]
    );
}

#[test]
fn only_the_panels_that_sum_up_give_a_row_when_there_is_nothing() {
    let empty = tables(&[]);
    let loaded = Source::Shipped.load().unwrap();
    let mut always = Vec::new();
    for panel in loaded.registry.panels() {
        let given = rows(&empty, &Scope::All, loaded.sql(panel));
        if !given.is_empty() {
            always.push((&*panel.id, given.len()));
        }
    }
    assert_eq!(always, [("POL-GOV-ACT-O2", 1), ("POL-GOV-ACT-O4", 1), ("POL-GOV-ACT-O5", 1), ("POL-GOV-LES-O2", 1)]);
}
