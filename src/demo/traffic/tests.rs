use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::policies;
use super::*;

const START: Micros = 1_800_000_000 * SECOND;

fn demo() -> Traffic {
    Traffic::new(&Config::demo(START))
}

fn after(seconds: i64) -> Micros {
    START + seconds * SECOND
}

fn parsed(events: &[Event]) -> Vec<Value> {
    events.iter().filter_map(|e| serde_json::from_str(&e.payload).ok()).collect()
}

/// What the demo's metrics come to on these events, by (metric, scope id), each window taken as long as the events last.
fn metrics(events: &[Event]) -> BTreeMap<(&'static str, String), f64> {
    let mut values: BTreeMap<(&'static str, String), f64> = BTreeMap::new();
    for e in parsed(events) {
        let id = |field: &str| e[field].as_str().unwrap_or_default().to_owned();
        let mut add = |metric, id, by| *values.entry((metric, id)).or_default() += by;
        match e["event_type"].as_str().unwrap() {
            "run.step" => {
                let tokens = (e["input_tokens"].as_i64().unwrap() + e["output_tokens"].as_i64().unwrap()) as f64;
                add("run_tokens", id("run_id"), tokens);
                add("run_cost_usd", id("run_id"), e["cost_usd"].as_f64().unwrap());
                add("api_key_requests_1m", id("api_key_id"), 1.0);
                add("tenant_tokens_5m", id("tenant_id"), tokens);
            }
            "run.failed" => add("agent_failures_5m", id("agent_id"), 1.0),
            "agent.heartbeat" => {
                let score = e["anomaly_score"].as_f64().unwrap();
                let max = values.entry(("agent_anomaly_max_5m", id("agent_id"))).or_default();
                *max = max.max(score);
            }
            _ => {}
        }
    }
    values
}

fn breached(seconds: i64) -> Vec<String> {
    let limits = policies::limits();
    let values = metrics(&demo().until(after(seconds)));
    let over = values.into_iter().filter(|((metric, _), value)| *value >= limits[*metric]);
    over.map(|((metric, id), _)| format!("{metric} {id}")).collect()
}

#[test]
fn within_twenty_seconds_each_misbehaviour_passes_its_limit_and_nobody_else_does() {
    assert_eq!(
        breached(20),
        [
            "agent_anomaly_max_5m initech-mailer",
            "agent_failures_5m initech-mailer",
            "api_key_requests_1m acme-key-ci",
            "run_cost_usd globex-researcher-run-1",
            "run_tokens acme-planner-loop-run-1",
            "tenant_tokens_5m acme",
            "tenant_tokens_5m globex",
            "tenant_tokens_5m initech",
        ]
    );
}

#[test]
fn the_first_seconds_are_quiet() {
    assert!(breached(3).is_empty());
}

#[test]
fn a_minute_of_healthy_work_reaches_no_enforced_limit() {
    let limits = policies::limits();
    let healthy = demo();
    let names: Vec<String> =
        healthy.agents.iter().filter(|a| a.behaviour == Behaviour::Healthy).map(|a| a.id.clone()).collect();
    assert_eq!(names.len(), 24);
    let mut healthy = healthy;
    let events = healthy.until(after(60));
    let events: Vec<Event> = events
        .into_iter()
        .filter(|e| names.iter().any(|n| e.payload.contains(&format!("\"agent_id\":\"{n}\""))))
        .collect();
    for ((metric, id), value) in metrics(&events) {
        if metric != "tenant_tokens_5m" {
            assert!(value < 0.8 * limits[metric], "{metric} of {id} is {value}");
        }
    }
}

#[test]
fn the_demo_stays_under_the_pace_that_the_mock_holds() {
    let events = demo().until(after(60));
    let bytes: usize = events.iter().map(|e| e.payload.len() + e.tenant.len()).sum();
    let (events, bytes) = (events.len() / 60, bytes / 60);
    assert!((60..130).contains(&events), "{events} events/s");
    assert!(bytes < 50_000, "{bytes} bytes/s, all tenants together");
}

#[test]
fn events_are_ordered_complete_and_unique() {
    let events = demo().until(after(30));
    assert!(events.windows(2).all(|pair| pair[0].time <= pair[1].time));
    let good = parsed(&events);
    assert_eq!(events.len() - good.len(), 4, "the producer with a bug sent 4 records by second 30");
    let mut ids: Vec<&str> = good.iter().map(|e| e["event_id"].as_str().unwrap()).collect();
    ids.sort_unstable();
    let count = ids.len();
    ids.dedup();
    assert_eq!(ids.len(), count);
    for (e, raw) in good.iter().zip(events.iter().filter(|e| e.payload.ends_with('}'))) {
        assert_eq!(e["event_time"].as_str().unwrap(), stamp(raw.time));
        assert_eq!(e["tenant_id"].as_str().unwrap(), raw.tenant);
        assert!(e["agent_id"].is_string());
        assert_eq!(e["run_id"].is_string(), e["event_type"] != "agent.heartbeat");
    }
    let text: String = events.iter().map(|e| e.payload.as_str()).collect();
    for kind in ["run.started", "run.first_token", "run.step", "run.completed", "run.failed", "agent.heartbeat"] {
        assert!(text.contains(kind), "{kind}");
    }
}

#[test]
fn a_stopped_run_ends_at_once_and_its_agent_rests() {
    let mut traffic = demo();
    traffic.until(after(8));
    let last = traffic.stop_run("acme-planner-loop-run-1", after(8)).unwrap();
    let event: Value = serde_json::from_str(&last.payload).unwrap();
    assert_eq!((&event["event_type"], &event["error_code"]), (&json!("run.failed"), &json!("STOPPED")));
    assert_eq!(event["run_id"], "acme-planner-loop-run-1");
    let quiet = traffic.until(after(27));
    assert!(!quiet.iter().any(|e| e.payload.contains("acme-planner-loop")));
    assert!(traffic.until(after(30)).iter().any(|e| e.payload.contains("acme-planner-loop-run-2")));
    assert_eq!(traffic.stop_run("acme-planner-loop-run-1", after(31)), None, "it is over");
    assert_eq!(traffic.stop_run("someone-elses-run", after(31)), None);
}

#[test]
fn a_paused_agent_rests() {
    let mut traffic = demo();
    traffic.until(after(12));
    assert!(traffic.pause_agent("initech-mailer", after(12)));
    assert!(!traffic.until(after(31)).iter().any(|e| e.payload.contains("initech-mailer")));
    assert!(!traffic.pause_agent("nobody", after(12)));
}

#[test]
fn a_caller_who_was_away_gets_the_events_in_bounded_portions() {
    let mut traffic = demo();
    let first = traffic.until(after(600)).len();
    assert!((MAX_BATCH..MAX_BATCH + 10).contains(&first), "{first}");
    assert!(!traffic.until(after(600)).is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn the_traffic_does_not_depend_on_how_the_time_is_cut(
        seed in any::<u64>(), tenants in 0_usize..12, cuts in proptest::collection::vec(0_i64..15_000, 0..40)
    ) {
        let config = Config { seed, tenants, agents: 3, rate: 30, start: START };
        let whole = Traffic::new(&config).until(after(15));
        let mut cuts = cuts;
        cuts.sort_unstable();
        let mut traffic = Traffic::new(&config);
        let mut parts = Vec::new();
        for cut in cuts {
            parts.extend(traffic.until(START + cut * MILLISECOND));
        }
        parts.extend(traffic.until(after(15)));
        prop_assert_eq!(parts, whole);
    }
}
