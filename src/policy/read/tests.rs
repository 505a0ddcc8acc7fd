use std::fs;
use std::path::Path;

use super::keys::MAX_CONDITION;
use super::*;
use crate::policy::{
    Alerts, Binding, Category, Condition, Day, Enforcement, Junction, OnBreach, OnFailure, OverrideRule, Rollback,
    RuleType, Selector, Snapshot, Source, Status, Strategy,
};

/// The YAML block of a text that begins with `first`.
fn block<'t>(text: &'t str, first: &str) -> &'t str {
    text.split("```").find_map(|part| part.strip_prefix("yaml\n").filter(|yaml| yaml.starts_with(first))).unwrap()
}

/// A text of the shared folder, or `None`, said aloud, where there is none.
fn shared(path: &str) -> Option<String> {
    let full = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared").join(path);
    let text = fs::read_to_string(&full).ok();
    if text.is_none() {
        eprintln!("skipped: {} is not here", full.display());
    }
    text
}

fn faults(text: &str) -> Vec<String> {
    parse("p.yaml", text).unwrap_err().iter().map(ToString::to_string).collect()
}

const MINIMAL: &str = "id: a\nname: A\nlimits:\n- {id: l, limit_type: X, metric: m, max: 1}\n";

#[test]
fn the_example_that_shows_every_key_is_read_whole() {
    let Some(text) = shared("spec/policies.md") else { return };
    let read = parse("policies.md", block(&text, "id: run-token-ceiling")).unwrap();
    let policy = &read[0];
    assert_eq!((&*policy.id, &*policy.tenant, policy.enforcement_mode), ("run-token-ceiling", "acme", Mode::Block));
    assert_eq!(policy.scope.ids, ["planner"]);
    let active = policy.active.as_ref().unwrap();
    assert_eq!((active.from, active.until), (Some(1_767_225_600_000_000), None));
    assert_eq!(active.days, [Day::Mon, Day::Tue]);
    assert_eq!(policy.limits[0].max, Amount::from_int(200_000));
    assert_eq!(policy.limits[0].near.to_string(), "0.8");
    let Some(Condition::Composite { conditions, .. }) = &policy.condition else { panic!("composite") };
    assert_eq!(conditions.len(), 3);
    assert_eq!(policy.actions[0].target.as_deref(), Some("${agent.id}"));
    assert_eq!(policy.monitor.signals, ["tokens", "cost", "burn_rate"]);
    let snapshot = Snapshot::new(read, Default::default(), "", "");
    assert_eq!(Snapshot::from_json(&snapshot.to_json()).unwrap(), snapshot);
}

#[test]
fn what_is_left_out_has_the_default_of_the_manual() {
    let policy = &parse("p.yaml", MINIMAL).unwrap()[0];
    assert_eq!(&*policy.tenant, "*");
    assert_eq!((policy.status, policy.rule_type, policy.source), (Status::Active, RuleType::System, Source::Manual));
    assert_eq!(policy.enforcement_mode, Mode::Audit, "nothing is stopped until someone says so");
    assert_eq!(policy.scope, Selector::default());
    assert_eq!((policy.precedence, policy.conflict_strategy), (100, Strategy::MostRestrictive));
    assert_eq!((policy.binding, policy.on_failure), (Binding::EachStep, OnFailure::Open));
    assert_eq!((policy.min_authority, policy.active.is_none()), (4, true));
    assert_eq!(
        policy.alerts,
        Alerts { channels: vec!["ui".into()], max_alerts_per_run: 20, min_alert_interval_seconds: 30 }
    );
    assert_eq!(policy.override_rule, OverrideRule { min_authority: 4, max_minutes: 60 });
    assert_eq!(policy.rollback, Rollback { enabled: false, auto_rollback_after_minutes: 60 });
    let limit = &policy.limits[0];
    assert_eq!((limit.category, limit.near), (Category::Threshold, "0.8".parse().unwrap()));
    assert_eq!((limit.enforcement, limit.on_breach), (Enforcement::Block, OnBreach::Stop));
    assert_eq!((limit.cooldown_seconds, limit.near_forecast_minutes), (0, None));
    let reject = MINIMAL.replace("max: 1", "max: 1, enforcement: REJECT");
    assert_eq!(
        parse("p.yaml", &reject).unwrap()[0].limits[0].on_breach,
        OnBreach::None,
        "STOP is the default with BLOCK only"
    );
}

#[test]
fn json_is_read_as_well() {
    let json = r#"{"id": "a", "name": "A", "tenant": null,
        "limits": [{"id": "l", "limit_type": "X", "metric": "m", "max": 0.3, "near": 1}]}"#;
    let policy = &parse("p.json", json).unwrap()[0];
    assert_eq!(policy.limits[0].max.to_string(), "0.3");
    assert_eq!(&*policy.tenant, "*", "null is absent");
}

#[test]
fn every_fault_of_a_file_comes_at_once_with_its_place_and_the_way_out() {
    let found = faults(
        "id: a\nname: A\nenforcment_mode: BLOCK\nlimits:\n- id: l\n  limit_type: X\n  metric: m\n  max: 0\n  near: 1.2\n  enforcement: blok\n\
         ---\nid: 7\nname: B\nscope: {who: AGNT}\nlimits: [{id: l, limit_type: X, metric: m, max: ten}]\n",
    );
    let expected = [
        "p.yaml:3:1: enforcment_mode: unknown key (did you mean `enforcement_mode`?)",
        "p.yaml:8:3: limits[0].max: must be above 0 (to allow nothing, use the smallest amount above 0)",
        "p.yaml:9:3: limits[0].near: must be above 0 and at most 1 (a ratio: 0.80 is 80 %)",
        "p.yaml:10:16: limits[0].enforcement: `blok` is not known (did you mean BLOCK?)",
        "p.yaml:12:5: id: expected a text, found a number (put it in quotes)",
        "p.yaml:14:14: scope.who: `AGNT` is not known (did you mean AGENT?)",
        "p.yaml:15:49: limits[0].max: expected a number, found a text",
    ];
    assert_eq!(found, expected);
}

#[test]
fn each_rule_of_the_file_has_its_fault() {
    let with = |more: &str| format!("{MINIMAL}{more}\n");
    let limit = |more: &str| MINIMAL.replace("max: 1", more);
    for (text, expected) in [
        ("id: a\nname: A\n".to_owned(), "the policy says nothing"),
        ("id: a\nname: A\nlimits: []\n".to_owned(), "the policy says nothing"),
        ("name: A\nlimits: [{id: l, limit_type: X, metric: m, max: 1}]\n".to_owned(), "id: is required"),
        (with("id: b"), "the key is there twice"),
        (with("actions: [{type: notify}]"), "actions without a `condition`"),
        (with("condition: {type: sql, expression: x}"), "a condition without `actions`"),
        (with("min_authority: 6"), "a whole number from 1 to 5"),
        (with("scope: {ids: [a]}"), "ALL_RUNS takes no ids"),
        (with("scope: {level: GLOBAL, level_ids: [a]}"), "GLOBAL takes no ids"),
        (with("active: {hours: \"9-17\"}"), "not of the form"),
        (with("active: {timezone: Europe/Zürich}"), "did you mean Europe/Zurich?"),
        (with("active: {from: 2026-01-01}"), "not an RFC 3339 time"),
        (with("active: {from: 2026-01-02T00:00:00Z, until: 2026-01-01T00:00:00Z}"), "never active"),
        (with("on_failure: closed"), "did you mean fail_closed?"),
        (with("alerts: {max_alerts_per_run: -1}"), "out of range"),
        (with("monitor: {allow_pii_capture: yes}"), "expected true or false"),
        (limit("max: 1e40"), "too large"),
        (limit("max: 0.0000000001"), "finer than nine digits"),
        (limit("max: 1, enforcement: WARN, on_breach: STOP"), "needs `enforcement: BLOCK`"),
        (limit("max: 1, enforcement: DEGRADE"), "needs the model to fall back to"),
        (limit("max: 1, near_forecast_minutes: 0"), "from 1 to"),
        (limit("near: 0.5"), "limits[0].max: is required"),
        (MINIMAL.replace("limits:", "limits:\n- {id: l, limit_type: X, metric: n, max: 2}"), "is there twice"),
        ("- a\n- b\n".to_owned(), "expected a map of keys, found a list"),
        (with("tenant: \"a\\u0007\""), "control characters"),
    ] {
        let found = faults(&text);
        assert!(found.iter().any(|f| f.contains(expected)), "{expected}: {found:#?}");
    }
}

#[test]
fn conditions_are_checked_in_structure() {
    let with = |condition: &str| {
        let text = format!("id: a\nname: A\ncondition: {condition}\nactions: [{{type: notify}}]\n");
        parse("p.yaml", &text).map(|_| ()).map_err(|f| f[0].to_string())
    };
    for good in [
        "{type: field_comparison, field: run.model, operator: in, value: [a, b]}",
        "{type: field_comparison, field: run.model, operator: exists}",
        "{type: field_comparison, field: run.model, operator: matches, value: 'gpt-.*'}",
        "{type: composite, operator: NOT, conditions: [{type: sql, expression: 'run.cost_usd > 1'}]}",
    ] {
        assert_eq!(with(good), Ok(()), "{good}");
    }
    for (bad, expected) in [
        ("{type: sql}", "condition.expression: is required"),
        ("{type: sqll, expression: x}", "did you mean sql?"),
        ("{type: composite, operator: NOT, conditions: []}", "no conditions"),
        (
            "{type: composite, operator: NOT, conditions: [{type: sql, expression: a}, {type: sql, expression: b}]}",
            "exactly one",
        ),
        ("{type: composite, operator: XOR, conditions: [{type: sql, expression: a}]}", "is not known"),
        ("{type: field_comparison, field: model, operator: ==, value: 1}", "not a field of run, agent or task"),
        ("{type: field_comparison, field: run.model, operator: in, value: a}", "takes a list"),
        ("{type: field_comparison, field: run.model, operator: '>='}", "takes one text, number or boolean"),
        ("{type: field_comparison, field: run.model, operator: exists, value: 1}", "takes no value"),
    ] {
        let found = with(bad).unwrap_err();
        assert!(found.contains(expected), "{bad}: {found}");
    }
    let wide = vec!["{type: sql, expression: x}"; MAX_CONDITION].join(", ");
    assert!(
        with(&format!("{{type: composite, operator: OR, conditions: [{wide}]}}"))
            .unwrap_err()
            .contains("at most 256 parts")
    );
}

#[test]
fn the_guardian_file_of_the_seed_is_read_as_written() {
    let Some(text) = shared("seeds/001_6a7f67e816f6ab21.txt") else { return };
    let policy = &parse("emergency.yaml", block(&text, "policy:")).unwrap()[0];
    assert_eq!(
        (&*policy.id, policy.enforcement_mode, policy.min_authority),
        ("emergency_cancellation", Mode::Audit, 4)
    );
    let Some(Condition::Composite { operator: Junction::Or, conditions }) = &policy.condition else { panic!("OR") };
    assert_eq!(
        conditions[0],
        Condition::Sql {
            expression: "task.running_duration > task.timeout_seconds * 2".into(),
            label: Some("task_timeout".into()),
            place: Place { line: 7, column: 18 },
        }
    );
    assert_eq!(policy.actions[0].action, "cancel_task");
    assert!(!policy.actions[0].approval_required);
    assert_eq!(policy.actions[1].parameters["channels"], serde_json::json!(["slack", "pagerduty"]));
    assert_eq!(policy.rollback, Rollback { enabled: true, auto_rollback_after_minutes: 60 });
}

#[test]
fn a_guardian_action_without_auto_approve_false_needs_no_approval() {
    let text = |approve: &str| {
        format!("policy: {{name: g, triggers: [{{condition: x}}], actions: [{{type: cancel_task{approve}}}]}}\n")
    };
    assert!(!parse("g.yaml", &text("")).unwrap()[0].actions[0].approval_required);
    assert!(parse("g.yaml", &text(", auto_approve: false")).unwrap()[0].actions[0].approval_required);
    let found = faults("policy: {name: g, trigers: [], actions: []}\n");
    assert!(found.iter().any(|f| f.contains("did you mean `triggers`?")), "{found:?}");
    assert!(found.iter().any(|f| f.contains("policy.triggers: at least one")), "{found:?}");
}

#[test]
fn the_number_of_faults_is_bounded_and_the_rest_counted() {
    let text: String = (0..300).map(|n| format!("key{n}: 1\n")).collect();
    let found = faults(&text);
    assert_eq!(found.len(), MAX_FAULTS + 1);
    assert!(found.last().unwrap().contains("more faults"));
}
