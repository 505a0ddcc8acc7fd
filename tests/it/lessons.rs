//! Lessons in the core (E1–E6): detected from telemetry, debounced, decided on by people, and turned into drafts.

use std::collections::BTreeMap;

use runwarden::decide::commands::Command;
use runwarden::kafka::core::Topic;
use serde_json::{Value, json};

use crate::support::desk::{DAY, Desk, Said, event, on, step_of, tuning};

const RATE: &str = "{id: rate, name: Rate, limits: [{id: minute, limit_type: TOKENS_PER_MINUTE, metric: agent_tokens_1m, max: 100000}]}";
const RUN: &str = "{id: run, name: Run, limits: [{id: tokens, limit_type: T, metric: run_tokens, max: 1000}]}";

fn lessons(said: &[Said]) -> Vec<Value> {
    on(said, Topic::Lessons)
}

fn used(at: i64, agent: &str, tokens: i64) -> Value {
    event(at, "run.step", json!({"run_id": format!("r{at}"), "agent_id": agent, "input_tokens": tokens}))
}

/// What the rule says of a series of (time, value): each band once in a rolling day.
fn rule(series: &[(i64, i64)]) -> Vec<(i64, &'static str)> {
    let mut last: BTreeMap<&str, i64> = BTreeMap::new();
    let mut due = Vec::new();
    for (at, value) in series {
        let band = match value {
            85_000..90_000 => "85-90",
            90_000..95_000 => "90-95",
            95_000..100_000 => "95-100",
            _ => continue,
        };
        if last.get(band).is_none_or(|last| at - last >= 24 * 3_600) {
            last.insert(band, *at);
            due.push((*at, band));
        }
    }
    due
}

#[test]
fn a_day_of_oscillation_gives_exactly_the_lessons_that_the_rule_says() {
    let mut desk = Desk::new(RATE);
    let mut series = Vec::new();
    let mut given = Vec::new();
    // a minute each, for 26 hours, between 84 and 101 percent
    for minute in 0..26 * 60_i64 {
        let percent = 84_000 + (minute * 7_919) % 17_001;
        let at = minute * 60;
        series.push((at, percent));
        for lesson in lessons(&desk.telemetry(at, &[used(at, "a", percent)])) {
            let band = lesson["detected_pattern"]["band"].as_str().unwrap().to_owned();
            given.push((at, band));
        }
        if minute % 500 == 7 {
            desk.crash();
        }
    }
    let expected = rule(&series);
    assert_eq!(given, expected.iter().map(|(at, band)| (*at, (*band).to_owned())).collect::<Vec<_>>());
    assert!((5..=6).contains(&given.len()), "three bands, and again after a day: {given:?}");
}

#[test]
fn a_limit_that_is_near_late_teaches_all_the_same_and_a_jump_past_it_does_not() {
    let late = "{id: run, name: Run, limits: [{id: tokens, limit_type: T, metric: run_tokens, max: 1000, near: 0.99}]}";
    let mut desk = Desk::new(late);
    let said = desk.telemetry(0, &[step_of(0, "r", 870)]);
    assert!(on(&said, Topic::Signals).is_empty());
    assert_eq!(lessons(&said)[0]["detected_pattern"]["band"], "85-90");
    assert!(lessons(&desk.telemetry(1, &[step_of(1, "s", 5_000)])).is_empty());
}

#[test]
fn a_metric_that_decides_at_close_teaches_at_close() {
    let p95 = "{id: p, name: P, limits: [{id: p95, limit_type: L, metric: latency_p95_ms, max: 1000}]}";
    let mut desk = Desk::new(p95);
    let slow = |at| event(at, "run.step", json!({"run_id": "r", "latency_ms": 920}));
    assert!(lessons(&desk.telemetry(0, &[slow(0), slow(1)])).is_empty());
    let said = desk.telemetry(60, &[slow(60)]);
    assert_eq!(lessons(&said)[0]["detected_pattern"]["metric"], "latency_p95_ms");
}

#[test]
fn every_failed_run_is_a_lesson_whatever_its_severity_and_synthetic_ones_are_marked() {
    let mut desk = Desk::new("");
    let failed = |at, run: &str, more: Value| {
        let mut fields = json!({"run_id": run, "agent_id": "a", "error_code": "TIMEOUT"});
        fields.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        event(at, "run.failed", fields)
    };
    let said = desk.telemetry(
        0,
        &[
            failed(0, "r1", json!({"severity": "LOW", "error_message": "took too long"})),
            failed(1, "r2", json!({"severity": "NONE"})),
            failed(2, "r3", json!({"is_synthetic": true, "synthetic_scenario_id": "s-1"})),
            failed(3, "r1", json!({"severity": "HIGH"})),
        ],
    );
    let all = lessons(&said);
    let brief: Vec<_> = all.iter().map(|l| (l["source_run_id"].as_str().unwrap(), l["severity"].as_str())).collect();
    assert_eq!(brief, [("r1", Some("LOW")), ("r2", Some("NONE")), ("r3", None)], "unique by run and type");
    assert_eq!((&all[2]["is_synthetic"], &all[2]["synthetic_scenario_id"]), (&json!(true), &json!("s-1")));
    assert!(all[0]["description"].as_str().unwrap().contains("TIMEOUT: took too long"));
    assert_eq!(all[1]["detected_pattern"]["failures"], 2);
}

#[test]
fn a_quick_and_cheap_success_is_a_lesson_once_a_day_for_each_agent() {
    let mut desk = Desk::new(RUN);
    let run = |at: i64, run: &str, agent: &str, tokens: i64, took: i64| {
        let fields = |more: Value| {
            let mut fields = json!({"run_id": run, "agent_id": agent});
            fields.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            fields
        };
        [
            event(at, "run.started", fields(json!({}))),
            event(at + 1, "run.step", fields(json!({"input_tokens": tokens}))),
            event(at + took, "run.completed", fields(json!({}))),
        ]
    };
    let mut events = Vec::new();
    events.extend(run(0, "good", "a", 100, 4));
    events.extend(run(0, "dear", "b", 300, 4));
    events.extend(run(0, "slow", "c", 100, 6));
    events.extend(run(10, "again", "a", 100, 4));
    events.extend(run(10, "other", "d", 299, 5));
    events.push(step_of(60, "later", 1));
    let said = desk.telemetry(60, &events);
    let runs: Vec<_> = lessons(&said).iter().map(|l| l["source_run_id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(runs, ["good", "other"]);
    let pattern = &lessons(&said)[0]["detected_pattern"];
    assert_eq!((&pattern["metric"], &pattern["utilization_percent"]), (&json!("run_tokens"), &json!(10.0)));
    // each run's end is said once, with its figures
    let ends = on(&said, Topic::Runs);
    assert_eq!(ends.len(), 5);
    let good = ends.iter().find(|r| r["run_id"] == "good").unwrap();
    assert_eq!((&good["status"], &good["tokens"], &good["steps"]), (&json!("COMPLETED"), &json!(100), &json!(1)));
    assert_eq!((&good["duration_ms"], &good["agent_id"]), (&json!(4_000), &json!("a")));
}

#[test]
fn a_run_says_at_its_end_what_was_said_and_done_about_it() {
    let stop = "{id: run, name: Run, enforcement_mode: BLOCK, limits: [{id: tokens, limit_type: T, metric: run_tokens, max: 100}]}";
    let mut desk = Desk::new(stop);
    let said = desk.telemetry(0, &[step_of(0, "r", 90), step_of(1, "r", 90)]);
    let id = on(&said, Topic::Interventions)[0]["intervention_id"].clone();
    desk.crash();
    let said = desk.telemetry(20, &[event(5, "run.failed", json!({"run_id": "r"})), step_of(20, "x", 1)]);
    let end = &on(&said, Topic::Runs)[0];
    assert_eq!((&end["status"], &end["signals"]), (&json!("FAILED"), &json!({"NEAR": 1, "BREACH": 1})));
    assert_eq!((&end["interventions"], &end["metrics"]["run_steps"]), (&json!([id]), &json!(2)));
    // a marker that comes too late for its window still ends its run, without figures
    desk.telemetry(40, &[step_of(40, "late", 1)]);
    desk.telemetry(60, &[event(41, "run.completed", json!({"run_id": "late"})), step_of(60, "x", 1)]);
    let said = desk.telemetry(61, &[event(45, "run.completed", json!({"run_id": "late"}))]);
    let late = on(&said, Topic::Runs);
    assert_eq!((&late[0]["complete"], &late[0]["tokens"]), (&json!(false), &Value::Null), "{late:?}");
}

#[test]
fn people_decide_on_lessons_and_every_step_is_answered_and_audited() {
    let mut desk = Desk::new("");
    let failed = |at, run: &str| event(at, "run.failed", json!({"run_id": run, "agent_id": "a"}));
    let made = lessons(&desk.telemetry(0, &[failed(0, "r1"), failed(1, "r2"), failed(2, "r3")]));
    let id = |n: usize| made[n]["id"].clone();
    let until = (DAY + 600) * 1_000;
    let (answer, said) = desk.command(1, "lesson.defer", 3, json!({"lesson_id": id(0), "defer_until": until}));
    assert_eq!((&answer["status"], &lessons(&said)[0]["status"]), (&json!("ACCEPTED"), &json!("deferred")), "{answer}");
    assert_eq!(on(&said, Topic::Audit)[0]["kind"], "lesson.deferred");
    let (answer, _) = desk.command(2, "lesson.dismiss", 3, json!({"lesson_id": id(0), "reason": "known"}));
    assert_eq!(answer["code"], "state");
    desk.crash();
    assert_eq!(desk.core.deadline().unwrap().0, (DAY + 600) * 1_000_000, "the process wakes for it");
    let said = desk.pass(600);
    assert_eq!((&lessons(&said)[0]["status"], &lessons(&said)[0]["revision"]), (&json!("pending"), &json!(3)));
    let (answer, _) = desk.command(601, "lesson.dismiss", 3, json!({"lesson_id": id(1)}));
    assert_eq!(answer["code"], "reason");
    let (answer, _) = desk.command(602, "lesson.dismiss", 2, json!({"lesson_id": id(1), "reason": "known"}));
    assert_eq!((&answer["code"], &answer["required_authority"]), (&json!("authority"), &json!(3)));
    let (answer, _) = desk.command(603, "lesson.dismiss", 3, json!({"lesson_id": id(1), "reason": "known"}));
    assert_eq!(answer["result"]["status"], "dismissed");
    let (answer, _) = desk.command(604, "lesson.reactivate", 3, json!({"lesson_id": id(1)}));
    assert_eq!(answer["code"], "state", "dismissed is for good");
    let (answer, _) =
        desk.command(605, "lesson.defer", 3, json!({"lesson_id": id(2), "defer_until": "2001-01-01T00:00:00Z"}));
    assert_eq!(answer["code"], "defer_until");
    let (answer, _) =
        desk.command(606, "lesson.defer", 3, json!({"lesson_id": "unheard-of", "defer_until": until * 2}));
    assert_eq!(answer["code"], "not_found");
}

#[test]
fn a_converted_lesson_becomes_a_draft_by_a_signed_command_that_counts_once() {
    let mut desk = Desk::new(RATE);
    let made = lessons(&desk.telemetry(0, &[used(0, "a", 96_000)])).remove(0);
    let (answer, said) = desk.command(1, "lesson.convert", 3, json!({"lesson_id": made["id"]}));
    assert_eq!(answer["result"]["status"], "converted_to_draft", "{answer}");
    let sent: Vec<&Said> = said.iter().filter(|s| s.0.topic == Topic::Commands).collect();
    let payload = sent[0].0.payload.clone().unwrap();
    assert_eq!(sent[0].0.key, b"*", "policies have one writer");
    let received = tuning().keys.read(&payload).unwrap();
    assert_eq!((received.unsigned, received.authority), (None, 5));
    let command: Command = received.command;
    assert_eq!((command.kind.as_str(), &command.body["lesson_id"]), ("proposal.create", &made["id"]));
    assert_eq!(answer["result"]["draft_proposal_id"], command.command_id);
    assert_eq!(command.body["policy"]["limits"][0]["max"], 120_000, "96,000 stands at 80 % of it");
    let (again, said) = desk.command(2, "lesson.convert", 3, json!({"lesson_id": made["id"]}));
    assert_eq!((&again["code"], said.iter().any(|s| s.0.topic == Topic::Commands)), (&json!("state"), false));
}

#[test]
fn lessons_found_elsewhere_are_made_once() {
    let mut desk = Desk::new("");
    let body = json!({
        "lesson_type": "failure", "source_event_id": "old-run", "title": "run old-run failed", "description": "It failed.",
        "severity": "HIGH", "is_synthetic": true,
    });
    let (answer, said) = desk.command(1, "lesson.create", 3, body.clone());
    assert_eq!((&answer["result"]["exists"], lessons(&said).len()), (&json!(false), 1), "{answer}");
    let (answer, said) = desk.command(2, "lesson.create", 3, body);
    assert_eq!((&answer["result"]["exists"], lessons(&said).len()), (&json!(true), 0));
    let code = |desk: &mut Desk, body: Value| desk.command(3, "lesson.create", 3, body).0["code"].clone();
    assert_eq!(code(&mut desk, json!({"lesson_type": "wisdom"})), "lesson_type");
    assert_eq!(code(&mut desk, json!({"lesson_type": "failure", "severity": "BAD"})), "severity");
    assert_eq!(code(&mut desk, json!({"lesson_type": "failure", "source_event_type": "dream"})), "source_event_type");
    assert_eq!(code(&mut desk, json!({"lesson_type": "failure", "source_event_id": "x"})), "body");
}
