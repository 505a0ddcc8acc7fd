//! Many alerts of few causes (A1): what belongs together is one alert, held against an independent computation.

use std::collections::{BTreeMap, BTreeSet};

use runwarden::kafka::core::Topic;
use serde_json::{Value, json};

use crate::support::desk::{Desk, event, on};

const CAUSES: usize = 5;
const ALERTS: usize = 1_000;
const GAP: i64 = 300;

/// 1,000 alerts within five minutes: each of five causes shows in the failures of one agent and the alerts of one fingerprint.
/// (seconds, cause, event)
fn storm() -> Vec<(i64, usize, Value)> {
    // a fixed linear congruence: the same storm on every machine
    let mut state: u64 = 42;
    let mut next = |bound: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % bound
    };
    let mut all = Vec::new();
    for n in 0..ALERTS {
        let cause = next(CAUSES as u64) as usize;
        let at = (n as i64 * GAP) / ALERTS as i64;
        let severity = ["LOW", "MEDIUM", "HIGH", "CRITICAL"][next(4) as usize];
        let agent = format!("agent-{cause}");
        let event = if next(2) == 0 {
            let fields = json!({
                "event_id": format!("f{n}"), "run_id": format!("run-{n}"), "agent_id": agent, "severity": severity,
                "error_code": format!("E{cause}"),
            });
            event(at, "run.failed", fields)
        } else {
            let fields = json!({
                "event_id": format!("x{n}"), "alert_id": format!("x{n}"), "source": "prometheus", "title": format!("cause {cause}"),
                "fingerprint": format!("fp-{n}"), "agent_id": agent, "severity": severity,
            });
            event(at, "alert.raised", fields)
        };
        all.push((at, cause, event));
    }
    all
}

/// The latest record of each alert.
fn latest(said: &[Value]) -> BTreeMap<String, Value> {
    said.iter().map(|a| (a["alert_id"].as_str().unwrap().to_owned(), a.clone())).collect()
}

#[test]
fn a_storm_of_a_thousand_alerts_of_five_causes_is_five_alerts() {
    let storm = storm();
    let mut desk = Desk::new("");
    let mut records = Vec::new();
    for (n, (at, _, event)) in storm.iter().enumerate() {
        records.extend(on(&desk.telemetry(*at, std::slice::from_ref(event)), Topic::Alerts));
        if n == 500 {
            desk.crash();
        }
    }
    // an independent computation: alerts of one agent, each within five minutes of the last, in plain code
    let mut groups: BTreeMap<String, Vec<&Value>> = BTreeMap::new();
    for (_, _, event) in &storm {
        groups.entry(format!("AGENT:{}", event["agent_id"].as_str().unwrap())).or_default().push(event);
    }
    let found = latest(&records);
    assert_eq!(found.len(), groups.len(), "one alert for each cause");
    for alert in found.values() {
        let group = &groups[alert["correlation_key"].as_str().unwrap()];
        // the last record told may be some members behind: what came after is suppressed until the next
        let told = alert["members_total"].as_u64().unwrap() as usize;
        assert!(told <= group.len() && told + 250 > group.len(), "{told} of {}", group.len());
        let runs: BTreeSet<&str> = group[..told].iter().filter_map(|e| e["run_id"].as_str()).collect();
        assert_eq!(alert["runs"].as_array().unwrap().len(), runs.len().min(100));
    }
    // when all is cleared and quiet, each resolves with every member
    let clear = |event: &Value| {
        let at = 400;
        let fields = json!({"fingerprint": event["fingerprint"], "source": "prometheus"});
        crate::support::desk::event(at, "alert.cleared", fields)
    };
    let raised = storm.iter().filter(|(_, _, e)| e["event_type"] == "alert.raised");
    let cleared: Vec<Value> = raised.map(|(_, _, e)| clear(e)).collect();
    let mut said = on(&desk.telemetry(400, &cleared), Topic::Alerts);
    said.extend(on(&desk.telemetry(1_000, &[event(1_000, "run.step", json!({"run_id": "later"}))]), Topic::Alerts));
    let resolved: BTreeMap<String, Value> = said
        .into_iter()
        .filter(|a| a["status"] == "RESOLVED")
        .map(|a| (a["correlation_key"].as_str().unwrap().to_owned(), a))
        .collect();
    assert_eq!(resolved.len(), CAUSES);
    for (key, group) in &groups {
        let alert = &resolved[key];
        assert_eq!(alert["members_total"], group.len(), "{key}");
        assert_eq!(alert["alert_count"], group.len());
        let worst = |e: &&Value| ["LOW", "MEDIUM", "HIGH", "CRITICAL"].iter().position(|s| e["severity"] == *s);
        let worst = group.iter().max_by_key(|e| worst(e)).unwrap();
        assert_eq!(alert["severity"], worst["severity"], "{key}");
    }
    // precision and recall of pairs against the generator's truth
    let truth: BTreeMap<String, usize> =
        storm.iter().map(|(_, cause, e)| (format!("AGENT:{}", e["agent_id"].as_str().unwrap()), *cause)).collect();
    let pairs = |sizes: &mut dyn Iterator<Item = usize>| sizes.map(|n| n * (n - 1) / 2).sum::<usize>();
    let together = pairs(&mut groups.values().map(Vec::len));
    let mut by_cause: BTreeMap<usize, usize> = BTreeMap::new();
    storm.iter().for_each(|(_, cause, _)| *by_cause.entry(*cause).or_default() += 1);
    let same = pairs(&mut by_cause.into_values());
    let right: usize = groups.iter().map(|(key, g)| (truth[key], g.len())).map(|(_, n)| n * (n - 1) / 2).sum();
    let (precision, recall) = (right as f64 / together as f64, right as f64 / same as f64);
    println!(
        "{ALERTS} alerts of {CAUSES} causes: {} alerts, precision {precision:.3}, recall {recall:.3}",
        resolved.len()
    );
    let suppressed: u64 = resolved.values().map(|a| a["suppressed_count"].as_u64().unwrap()).sum();
    println!("records told {}, suppressed and counted {suppressed}", records.len());
    assert!(precision > 0.99 && recall > 0.99);
    assert!(records.len() < 100, "{} records are told of 1,000", records.len());
}
