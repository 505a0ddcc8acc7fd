//! Blindness (X5): what is not seen makes policies UNKNOWN; who fails closed lets no new run begin until sight is back.

use runwarden::decide::blindness::Bounds;
use runwarden::kafka::core::Topic;
use runwarden::pipeline::terms::Tuning;
use serde_json::{Value, json};

use crate::support::desk::{DAY, Desk, Said, acts, event, on, step_of, tuning};

/// A policy that fails closed, and one that fails open.
const CLOSED: &str = "
id: closed
name: Closed
enforcement_mode: BLOCK
on_failure: fail_closed
limits:
  - {id: t, limit_type: TOKENS_PER_RUN, category: BUDGET, metric: run_tokens, max: 1000000, enforcement: BLOCK, on_breach: STOP}
---
id: open
name: Open
enforcement_mode: BLOCK
limits:
  - {id: s, limit_type: STEPS_PER_RUN, category: BUDGET, metric: run_steps, max: 1000000, enforcement: BLOCK, on_breach: STOP}
";

const OPEN: &str = "
id: open
name: Open
enforcement_mode: BLOCK
limits:
  - {id: t, limit_type: TOKENS_PER_RUN, category: BUDGET, metric: run_tokens, max: 1000000, enforcement: BLOCK, on_breach: STOP}
";

fn began(at: i64, run: &str) -> Value {
    event(at, "run.started", json!({"run_id": run}))
}

/// Cause and severity of the alerts of blindness.
fn alerts(said: &[Said]) -> Vec<(String, String, String)> {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let of = on(said, Topic::Alerts).into_iter().filter(|a| a["sources"] == json!(["blindness"]));
    of.map(|a| (text(&a["status"]), text(&a["severity"]), text(&a["title"]))).collect()
}

/// Kind and cause of what the audit says of blindness.
fn audits(said: &[Said]) -> Vec<(String, String)> {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let of = on(said, Topic::Audit).into_iter().filter(|a| text(&a["kind"]).starts_with("blindness"));
    of.map(|a| (text(&a["kind"]), text(&a["after"]["cause"]))).collect()
}

fn pair(kind: &str, cause: &str) -> Vec<(String, String)> {
    vec![(format!("blindness.{kind}"), cause.to_owned())]
}

/// Telemetry appended `ago` seconds before the step's clock, with more to come.
fn behind(desk: &mut Desk, now: i64, ago: i64, events: &[Value]) -> Vec<Said> {
    (desk.appended, desk.at_end) = ((DAY + now - ago) * 1_000_000, false);
    desk.telemetry(now, events)
}

#[test]
fn a_lag_makes_policies_unknown_and_who_fails_closed_pauses_new_runs_until_it_is_over() {
    let mut desk = Desk::new(CLOSED);
    behind(&mut desk, 0, 1, &[began(0, "a"), step_of(0, "a", 10)]);
    let said = behind(&mut desk, 60, 60, &[began(1, "b")]);
    assert!(audits(&said).is_empty() && acts(&said).is_empty(), "60 s is no more than the bound");
    let said = behind(
        &mut desk,
        70,
        61,
        &[step_of(2, "a", 10), began(2, "c"), event(3, "run.completed", json!({"run_id": "gone"}))],
    );
    assert_eq!(audits(&said), pair("began", "LAG"));
    let audit = on(&said, Topic::Audit).into_iter().find(|a| a["kind"] == "blindness.began").unwrap();
    assert_eq!(
        (&audit["after"]["policies"], &audit["after"]["affected"], &audit["after"]["fail_closed"]),
        (&json!("UNKNOWN"), &json!(["closed", "open"]), &json!(["closed"]))
    );
    let told = alerts(&said);
    assert_eq!((told.len(), told[0].0.as_str(), told[0].1.as_str()), (1, "OPEN", "CRITICAL"), "{told:?}");
    assert_eq!(acts(&said), ["PAUSE c ISSUED"], "the runs that are under way go on");
    // a crash changes nothing
    desk.crash();
    let said = behind(&mut desk, 71, 99, &[began(4, "d")]);
    assert_eq!((audits(&said).len(), acts(&said)), (0, vec!["PAUSE d ISSUED".to_owned()]));
    let id = on(&said, Topic::Interventions)[0]["intervention_id"].as_str().unwrap().to_owned();
    desk.report(72, &id, "SUCCEEDED");
    let said = behind(&mut desk, 73, 40, &[step_of(5, "a", 1)]);
    assert!(audits(&said).is_empty(), "over at half the bound");
    desk.at_end = true;
    let said = desk.telemetry(75, &[step_of(6, "a", 1), began(6, "e")]);
    assert_eq!(audits(&said), pair("ended", "LAG"));
    let resumed = acts(&said);
    assert_eq!(
        resumed,
        ["PAUSE c REVERTED", "RESUME c ISSUED", "PAUSE d REVERTED", "RESUME d ISSUED"],
        "what waits goes on, and new runs begin"
    );
    assert!(alerts(&said).iter().all(|(status, ..)| status == "RESOLVED"), "{:?}", alerts(&said));
}

#[test]
fn who_fails_open_is_told_and_nothing_is_held_and_without_policies_nobody_cares() {
    let mut desk = Desk::new(OPEN);
    behind(&mut desk, 0, 1, &[began(0, "a")]);
    let said = behind(&mut desk, 70, 69, &[step_of(1, "a", 1), began(1, "b")]);
    assert_eq!(audits(&said), pair("began", "LAG"));
    assert_eq!((alerts(&said)[0].1.as_str(), acts(&said).len()), ("HIGH", 0));
    let mut desk = Desk::new("");
    behind(&mut desk, 0, 1, &[began(0, "a")]);
    let said = behind(&mut desk, 70, 69, &[step_of(1, "a", 1)]);
    assert!(audits(&said).is_empty() && alerts(&said).is_empty());
}

#[test]
fn a_shadow_that_fails_closed_says_what_it_would_pause() {
    let mut desk = Desk::new(&OPEN.replace("BLOCK\nlimits", "AUDIT\non_failure: fail_closed\nlimits"));
    behind(&mut desk, 0, 1, &[began(0, "a")]);
    let said = behind(&mut desk, 70, 69, &[began(1, "b")]);
    let shadow = on(&said, Topic::Audit).into_iter().find(|a| a["kind"] == "shadow_decision").unwrap();
    assert_eq!((&shadow["after"]["would"], &shadow["subject"]["id"]), (&json!("PAUSE"), &json!("b")));
    assert!(acts(&said).is_empty());
}

#[test]
fn the_breaker_keeps_blindness_from_pausing_the_fleet() {
    let mut desk = Desk::new(CLOSED);
    behind(&mut desk, 0, 1, &[began(0, "a")]);
    let fleet: Vec<Value> = (0..100).map(|n| began(1, &format!("r{n}"))).collect();
    let said = behind(&mut desk, 70, 69, &fleet);
    let paused = acts(&said).iter().filter(|a| a.starts_with("PAUSE")).count();
    assert!((4..=50).contains(&paused), "{paused} of 100 runs were paused");
    let tripped = on(&said, Topic::Audit).into_iter().filter(|a| a["kind"] == "breaker.tripped").count();
    assert_eq!(tripped, 1);
    println!("blindness under fail_closed paused {paused} of 100 new runs, then the breaker tripped");
}

#[test]
fn a_silence_with_runs_under_way_is_blindness_and_one_without_is_a_quiet_day() {
    let mut desk = Desk::new(CLOSED);
    desk.at_end = true;
    desk.telemetry(0, &[began(0, "a"), step_of(0, "a", 10)]);
    let quiet = desk.telemetry(1, &[event(1, "run.completed", json!({"run_id": "b"}))]);
    assert!(audits(&quiet).is_empty());
    // time passes at the end of the input
    assert!(audits(&desk.pass(300)).is_empty());
    let said = desk.pass(602);
    assert_eq!(audits(&said), pair("began", "SILENCE"));
    assert!(audits(&desk.pass(700)).is_empty(), "once");
    desk.crash();
    assert!(audits(&desk.pass(800)).is_empty());
    // the row that breaks the silence is seen, and so is the run that begins with it
    let said = desk.telemetry(801, &[began(801, "c")]);
    assert_eq!((audits(&said), acts(&said).len()), (pair("ended", "SILENCE"), 0));
    // all runs have ended
    let mut desk = Desk::new(CLOSED);
    desk.at_end = true;
    desk.telemetry(0, &[began(0, "a"), event(1, "run.completed", json!({"run_id": "a"}))]);
    assert!([300, 700, 4_000].into_iter().all(|now| audits(&desk.pass(now)).is_empty()));
}

#[test]
fn many_late_rows_are_blindness_from_the_row_that_is_too_much_however_batches_are_cut() {
    let events: Vec<Value> = (0..400_i64)
        .map(|n| {
            if n >= 100 && n % 3 == 0 {
                step_of(n / 10 - 30 * 86_400, "late", 1)
            } else {
                began(3_600 + n / 10, &format!("r{n}"))
            }
        })
        .collect();
    let run = |cut: usize| {
        let mut settings = tuning();
        settings.breaker.runs = 1_000_000;
        let mut desk = Desk::tuned(CLOSED, settings);
        let mut said = Vec::new();
        for chunk in events.chunks(cut) {
            said.extend(desk.telemetry(4_000, chunk));
        }
        (audits(&said), acts(&said))
    };
    let (audits, held) = run(400);
    assert_eq!(audits, pair("began", "LATE"));
    // the twentieth late row is row 159: only runs after it wait
    assert_eq!(held.first().map(String::as_str), Some("PAUSE r160 ISSUED"));
    assert_eq!(held.len(), 160);
    for cut in [1, 7, 150] {
        assert_eq!(run(cut), (audits.clone(), held.clone()), "batches of {cut}");
    }
}

#[test]
fn too_many_live_keys_are_blindness_too_and_every_bound_can_be_switched_off() {
    let keys = Tuning { live_keys: 3, ..tuning() };
    let mut desk = Desk::tuned(OPEN, keys);
    let runs: Vec<Value> = (0..10).map(|n| step_of(n, &format!("r{n}"), 1)).collect();
    let said = desk.telemetry(0, &runs);
    assert_eq!(audits(&said), pair("began", "OVERFLOW"));
    let off = Bounds { lag: 0, silence: 0, late_percent: 0, late_rows: 1 };
    let mut desk = Desk::tuned(CLOSED, Tuning { blindness: off, ..tuning() });
    behind(&mut desk, 0, 1, &[began(0, "a")]);
    let mut said = behind(&mut desk, 900, 899, &[began(7_000, "b"), step_of(1, "c", 1)]);
    desk.at_end = true;
    said.extend(desk.pass(1_000));
    said.extend(desk.pass(9_000));
    assert!(audits(&said).is_empty());
}
