//! What is live: windows on their way to a limit, agents and tasks, once a second, and off when it is over.

use std::collections::BTreeMap;
use std::sync::Arc;

use runwarden::clock::{SECOND, Wall};
use runwarden::kafka::core::{Core, Input, InputBatch, Record, StepInput, Topic};
use runwarden::pipeline::{Own, Partition};
use serde_json::{Value, json};

use crate::decisions::{DAY, Desk, Said, event, settings, step_of};

const RUN_TOKENS: &str = "
id: run
name: Run
enforcement_mode: WARN
limits:
  - {id: tokens, limit_type: TOKENS_PER_RUN, metric: run_tokens, max: 1000}
  - {id: more, limit_type: TOKENS_PER_RUN, metric: run_tokens, max: 4000}
";

/// Key and record of what is live; null: taken off.
fn live(said: &[Said]) -> BTreeMap<String, Value> {
    let live = said.iter().filter(|s| s.0.topic == Topic::Live);
    live.map(|s| {
        let value = if s.0.payload.is_some() { s.value() } else { Value::Null };
        (String::from_utf8(s.0.key.clone()).unwrap(), value)
    })
    .collect()
}

#[test]
fn a_window_is_shown_from_half_of_its_nearest_limit_on_once_a_second() {
    let mut desk = Desk::new(RUN_TOKENS);
    let said = desk.telemetry(1, &[step_of(0, "r", 300), step_of(0, "s", 499)]);
    assert!(live(&said).is_empty(), "less than half");
    let said = desk.telemetry(120, &[step_of(120, "r", 300)]);
    let shown = live(&said);
    let (key, window) = shown.first_key_value().unwrap();
    assert_eq!((shown.len(), key.as_str()), (1, "acme/window/run_tokens/r"));
    for (field, value) in [
        ("value", json!(600)),
        ("limit", json!(1000)),
        ("limit_id", json!("tokens")),
        ("utilization", json!(0.6)),
        ("level", json!(null)),
        ("scope", json!({"kind": "RUN", "id": "r"})),
        ("run_id", json!("r")),
        // 600 in two minutes, and 400 are left
        ("minutes_to_limit", json!(1.3)),
        ("updated_at", json!("2026-01-05T00:02:00.000000Z")),
    ] {
        assert_eq!(window[field], value, "{field}");
    }
    // within the second the latest waits, and the core says until when
    assert!(live(&desk.telemetry(120, &[step_of(120, "r", 10)])).is_empty());
    assert!(live(&desk.telemetry(120, &[step_of(120, "r", 290)])).is_empty());
    assert_eq!(desk.core.deadline(), Some(Wall((DAY + 121) * SECOND)));
    let shown = live(&desk.telemetry(121, &[]));
    assert_eq!((&shown[key]["value"], &shown[key]["level"]), (&json!(900), &json!("NEAR")));
    assert!(live(&desk.telemetry(130, &[])).is_empty(), "nothing has changed");
}

#[test]
fn a_window_that_ended_is_taken_off_also_by_whoever_took_the_partition_over() {
    let end = || event(5, "run.completed", json!({"run_id": "r"}));
    let later = || step_of(600, "other", 1);
    let mut desk = Desk::new(RUN_TOKENS);
    assert_eq!(live(&desk.telemetry(3, &[step_of(2, "r", 700)])).len(), 1);
    let changes = desk.core.take_changes();
    let mut said = desk.telemetry(5, &[end(), later()]);
    said.extend(desk.telemetry(7, &[]));
    let off = BTreeMap::from([("acme/window/run_tokens/r".to_owned(), Value::Null)]);
    assert_eq!(live(&said), off);
    assert!(desk.core.take_changes().iter().any(|c| c.key.starts_with(b"F") && c.value.is_none()), "and forgotten");

    let mut next = Desk::new(RUN_TOKENS);
    for change in changes {
        if let Some(value) = change.value {
            next.core.restore(&change.key, &value).unwrap();
        }
    }
    next.core.restored().unwrap();
    let mut said = next.telemetry(5, &[end(), later()]);
    said.extend(next.telemetry(7, &[]));
    assert_eq!(live(&said), off);
}

#[test]
fn a_window_whose_limit_is_no_longer_in_force_is_taken_off() {
    let pace = "
id: pace
name: Pace
enforcement_mode: WARN
limits:
  - {id: minute, limit_type: TOKENS_PER_MINUTE, metric: agent_tokens_1m, max: 100}
";
    let used = |at, tokens| event(at, "run.step", json!({"agent_id": "a", "run_id": "r", "input_tokens": tokens}));
    let key = "acme/window/agent_tokens_1m/a";
    let mut desk = Desk::new(pace);
    assert_eq!(live(&desk.telemetry(3, &[used(2, 60)]))[key]["utilization"], 0.6);
    desk.core.request_snapshot(Arc::clone(&settings(&pace.replace("max: 100", "max: 1000")).snapshot));
    // nobody sent anything
    assert_eq!(live(&desk.telemetry(5, &[])), BTreeMap::from([(key.to_owned(), Value::Null)]));
    assert_eq!(live(&desk.telemetry(7, &[used(7, 500)]))[key]["limit"], 1000);
}

#[test]
fn a_group_whose_window_ends_and_begins_again_within_a_second_has_one_record() {
    let pace = "
id: pace
name: Pace
enforcement_mode: WARN
limits:
  - {id: minute, limit_type: TOKENS_PER_MINUTE, metric: agent_tokens_1m, max: 100}
";
    let used = |at, agent: &str, tokens| {
        event(at, "run.step", json!({"agent_id": agent, "run_id": "r", "input_tokens": tokens}))
    };
    let mut desk = Desk::new(pace);
    assert_eq!(live(&desk.telemetry(75, &[used(50, "b", 60)])).len(), 1);
    // noted, over, and noted again before the next round
    for row in [used(51, "a", 90), used(72, "c", 1), used(73, "a", 60)] {
        assert!(live(&desk.telemetry(75, &[row])).is_empty());
    }
    let said = desk.telemetry(76, &[]);
    assert_eq!(said.iter().filter(|s| s.0.topic == Topic::Live).count(), 2, "each key once");
    let shown = live(&said);
    assert_eq!(shown["acme/window/agent_tokens_1m/a"]["value"], 60);
    assert_eq!(shown["acme/window/agent_tokens_1m/b"], Value::Null);
}

#[test]
fn agents_and_tasks_are_shown_as_they_last_were() {
    let mut desk = Desk::new(RUN_TOKENS);
    let beat = |at, status: &str| {
        let said =
            json!({"agent_id": "a", "team_id": "red", "health_status": status, "anomaly_score": 0.25, "capacity": 4});
        event(at, "agent.heartbeat", said)
    };
    let task = |at, status: &str| {
        let said =
            json!({"task_id": "t/1", "agent_id": "a", "run_id": "r", "task_status": status, "timeout_seconds": 60});
        event(at, "task.updated", said)
    };
    let shown = live(&desk.telemetry(2, &[beat(0, "failed"), beat(1, "healthy"), task(1, "running")]));
    assert_eq!(shown.keys().collect::<Vec<_>>(), ["acme/agent/a", "acme/task/t%2F1"]);
    let agent = &shown["acme/agent/a"];
    assert_eq!(
        (&agent["health_status"], &agent["open_tasks"], &agent["anomaly_score"]),
        (&json!("healthy"), &json!(1), &json!(0.25))
    );
    assert_eq!((&agent["team_id"], &agent["last_seen"]), (&json!("red"), &json!("2026-01-05T00:00:01.000000Z")));
    let shown = live(&desk.telemetry(4, &[task(3, "completed")]));
    let done = &shown["acme/task/t%2F1"];
    assert_eq!(
        (&done["open"], &done["task_status"], &done["agent_id"]),
        (&json!(false), &json!("completed"), &json!("a"))
    );
    assert_eq!(shown["acme/agent/a"]["open_tasks"], 0, "its work has changed, so it is shown again");
}

#[test]
fn what_is_too_much_for_a_round_waits_its_turn_and_no_one_is_passed_over() {
    let mut desk = Desk::new(RUN_TOKENS);
    let rows = |at| (0..2_500).map(|n| step_of(at, &format!("r{n}"), 600)).collect::<Vec<_>>();
    let first = live(&desk.telemetry(2, &rows(1)));
    assert_eq!(first.len(), 2_000);
    // everyone has news again: those that wait come first
    let mut second = live(&desk.telemetry(3, &rows(2)));
    second.retain(|key, _| !first.contains_key(key));
    assert_eq!(second.len(), 500);
}

#[test]
fn a_step_has_the_same_digest_whatever_is_live_and_a_replay_shows_nothing() {
    let event = step_of(1, "r", 700).to_string();
    let step = |core: &mut Partition, now: i64, replaying| {
        let payload = Some(event.as_bytes());
        let records = vec![Record { offset: 0, timestamp: 0, key: Some(b"acme"), payload, headers: &[] }];
        let inputs = vec![InputBatch { input: Input::Telemetry, records, at_end: false }];
        let now = Wall((DAY + now) * SECOND);
        core.step(&StepInput { number: 1, now, inputs, replaying, finish: false }).unwrap()
    };
    let core = || {
        let mut core = Partition::new(Arc::new(settings(RUN_TOKENS)), Own { partition: 0, partitions: 1 }).unwrap();
        let input = StepInput { number: 0, now: Wall(DAY * SECOND), inputs: vec![], replaying: false, finish: false };
        core.step(&input).unwrap();
        core
    };
    let (first, again) = (step(&mut core(), 2, false), step(&mut core(), 2, true));
    let shows = |records: &[runwarden::kafka::core::OutRecord]| records.iter().any(|r| r.topic == Topic::Live);
    assert!(shows(&first.records) && !shows(&again.records));
    assert_eq!(first.digest, again.digest);
}
