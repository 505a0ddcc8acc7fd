//! Roll-ups per tenant and minute: rows judged, rows nobody judges, and what came of them.

use runwarden::clock::SECOND;
use runwarden::kafka::core::Topic;
use serde_json::{Value, json};

use crate::support::desk::{DAY, Desk, Said, event, on, step_of, tuning};
use crate::support::texts;

const POLICIES: &str = "
id: stop
name: Stop
tenant: acme
enforcement_mode: BLOCK
limits:
  - {id: t, limit_type: TOKENS_PER_RUN, category: BUDGET, metric: run_tokens, max: 100, enforcement: BLOCK, on_breach: STOP}
---
id: warn
name: Warn
tenant: acme
enforcement_mode: WARN
limits:
  - {id: s, limit_type: STEPS_PER_RUN, category: BUDGET, metric: run_steps, max: 3, enforcement: BLOCK, on_breach: PAUSE}
---
id: shadow
name: Shadow
tenant: acme
enforcement_mode: AUDIT
limits:
  - {id: u, limit_type: TOKENS_PER_RUN, category: BUDGET, metric: run_tokens, max: 50, enforcement: BLOCK, on_breach: KILL}
";

fn rolled(said: &[Said]) -> Vec<Value> {
    on(said, Topic::Evaluations)
}

#[test]
fn each_minute_of_a_tenant_is_rolled_up_once_it_is_over_also_after_a_crash() {
    let other = |at: i64| {
        let mut event = event(at, "run.step", json!({"run_id": "x"}));
        event["tenant_id"] = "other".into();
        event
    };
    let mut desk = Desk::new(POLICIES);
    // at most 60 tokens a step: the shadow is past after one, the stop after two, the warning after three steps
    let said = desk.telemetry(0, &[step_of(0, "a", 60), step_of(1, "a", 60), other(2), step_of(59, "b", 1)]);
    assert!(rolled(&said).is_empty(), "the minute is not over");
    desk.crash();
    let said = desk.telemetry(61, &[step_of(61, "a", 1), other(62), other(200)]);
    let minutes = rolled(&said);
    assert_eq!(minutes.len(), 3);
    let acme = minutes.iter().find(|m| m["tenant_id"] == "acme").unwrap();
    assert_eq!(
        *acme,
        json!({
            "tenant_id": "acme", "minute": "2026-01-05T00:00:00.000000Z", "evaluations": 3, "blocks": 1, "allows": 2,
            "by_action": {"STOP": 1, "AUDIT": 1}, "uncovered": 0,
        })
    );
    let others: Vec<(&Value, &Value, &Value)> = minutes
        .iter()
        .filter(|m| m["tenant_id"] == "other")
        .map(|m| (&m["minute"], &m["evaluations"], &m["uncovered"]))
        .collect();
    let (first, second) = (json!("2026-01-05T00:00:00.000000Z"), json!("2026-01-05T00:01:00.000000Z"));
    assert_eq!(others, [(&first, &json!(0), &json!(1)), (&second, &json!(0), &json!(1))]);
    // what is up in silence: the clock of who says nothing moves on at the end of the input
    desk.at_end = true;
    let mut said = desk.pass(70);
    said.extend(desk.pass(130));
    said.extend(desk.pass(200));
    let minutes = rolled(&said);
    let acme: Vec<&Value> = minutes.iter().filter(|m| m["tenant_id"] == "acme").collect();
    assert_eq!(acme.len(), 1, "{minutes:?}");
    assert_eq!((&acme[0]["evaluations"], &acme[0]["by_action"]), (&json!(1), &json!({"WARN": 1})));
}

#[test]
fn the_last_minute_of_a_tenant_is_over_in_silence_though_no_window_waits_for_it() {
    let mut files = texts(&[]);
    files.metrics.clear();
    let mut desk = Desk::of(&files, tuning());
    desk.at_end = true;
    let mut said = desk.telemetry(0, &[step_of(5, "a", 1)]);
    assert!(!desk.core.windows().is_open() && rolled(&said).is_empty());
    // a sidecar steps when the core says that something is due, and at no other time
    let mut steps = 0;
    while let Some(due) = desk.core.deadline() {
        steps += 1;
        assert!(steps < 300, "it comes to rest");
        said.extend(desk.pass((due.0 - DAY * SECOND + SECOND - 1) / SECOND));
    }
    let minutes = rolled(&said);
    assert_eq!(minutes.len(), 1);
    assert_eq!(minutes[0]["minute"], "2026-01-05T00:00:00.000000Z");
}
