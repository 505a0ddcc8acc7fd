//! The main job on an hour of real LLM traffic, against computations that share no code with the engine.

use std::collections::BTreeMap;

use runwarden::clock::Wall;
use runwarden::decide::id;
use runwarden::decide::records::{Decision, Kind};
use runwarden::pipeline::simulate::{FinalWindow, Report, Simulation, windows};
use runwarden::telemetry::{Decoder, Origin};
use serde_json::Value;

use crate::support::{REAL_POLICIES, assert_same, essences, real_hour, simulation};

fn simulate(lines: &[String], batch: usize) -> Report {
    let mut simulation = Simulation::new(simulation(REAL_POLICIES)).unwrap();
    for chunk in lines.chunks(batch) {
        simulation.push(chunk.iter().map(|l| l.as_bytes())).unwrap();
    }
    simulation.finish().unwrap()
}

#[test]
fn final_windows_of_all_default_metrics_equal_batch_sql_over_the_whole_file() {
    let Some(lines) = real_hour() else { return };
    let report = simulate(lines, 4096);
    assert!(report.dead.is_empty(), "{:?}", report.dead.first().map(|d| (d.reason, &d.message)));
    assert_eq!(report.counts.decoded as usize, lines.len());

    let settings = simulation(REAL_POLICIES);
    let mut decoder = Decoder::new(settings.decoder.clone());
    for (offset, line) in (0i64..).zip(lines) {
        let origin = Origin { input: 2, topic: "file".into(), partition: 0, offset };
        decoder.push(origin, offset, Some(line.as_bytes()), Wall(i64::MAX));
    }
    let all = decoder.finish().batch.rows;
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    assert_eq!(settings.metrics.len(), 14);
    for metric in &settings.metrics {
        let rows = runtime.block_on(metric.query.run_batch(vec![all.clone()])).unwrap();
        let mut expected = Vec::new();
        windows(&metric.name, metric.scope.key(), &rows, &mut expected);
        expected.sort_by(|a, b| (a.end, &a.keys, a.start).cmp(&(b.end, &b.keys, b.start)));
        let given: Vec<&FinalWindow> = report.windows.iter().filter(|w| w.metric == metric.name).collect();
        if !["run_risk_max", "agent_anomaly_max_5m"].contains(&metric.name.as_str()) {
            assert!(!expected.is_empty(), "{} has no window in the real hour", metric.name);
        }
        assert_eq!(given.len(), expected.len(), "windows of {}", metric.name);
        for (given, expected) in given.iter().zip(&expected) {
            assert_eq!(
                (&given.keys, given.start, given.end),
                (&expected.keys, expected.start, expected.end),
                "{}",
                metric.name
            );
            assert!(close(&given.value, &expected.value), "{}: {given:?} {expected:?}", metric.name);
        }
    }
}

fn close(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => (a - b).abs() <= 1e-9 * a.abs().max(b.abs()),
        _ => a == b,
    }
}

/// Token totals of each run by plain addition: where they cross 80 % and 100 % of the ceiling.
#[test]
fn near_and_breach_of_a_run_are_raised_at_the_event_that_crosses() {
    let Some(lines) = real_hour() else { return };
    const MAX: i64 = 40_000;
    let mut totals: BTreeMap<String, i64> = BTreeMap::new();
    let mut expected: BTreeMap<(String, &str), (i64, usize)> = BTreeMap::new();
    for (row, line) in lines.iter().enumerate() {
        let event: Value = serde_json::from_str(line).unwrap();
        let (Some(input), Some(output)) = (event["input_tokens"].as_i64(), event["output_tokens"].as_i64()) else {
            continue;
        };
        let run = event["run_id"].as_str().unwrap().to_owned();
        let total = totals.entry(run.clone()).or_default();
        *total += input + output;
        for (kind, line) in [("NEAR", MAX * 8 / 10), ("BREACH", MAX)] {
            if *total >= line {
                expected.entry((run.clone(), kind)).or_insert((*total, row));
            }
        }
    }
    assert!(expected.len() > 10, "the policy must be one that the hour trips");

    let report = simulate(lines, 1000);
    let mut given = BTreeMap::new();
    for decision in &report.decisions {
        let Decision::Signal(s) = decision else { continue };
        if s.limit_id == "run-tokens" && s.kind != Kind::Resolved {
            let value: i64 = s.value.unwrap().to_string().parse().unwrap();
            let last = s.evidence.last.as_ref().unwrap().offset as usize;
            let repeated = given.insert((s.run_id.clone().unwrap(), s.kind.as_str()), (value, last));
            assert!(repeated.is_none(), "a level is raised once");
            let over = s.overshoot.map(|o| o.to_string().parse::<i64>().unwrap());
            assert_eq!(over, (value > MAX).then_some(value - MAX), "overshoot is what is past the limit");
        }
    }
    let differing = expected.iter().find(|(k, v)| given.get(*k) != Some(v));
    assert_eq!(differing, None, "given instead: {:?}", differing.map(|(k, _)| given.get(k)));
    assert_eq!(given.len(), expected.len());
    let stopped: Vec<_> = report
        .decisions
        .iter()
        .filter_map(|d| if let Decision::Intervention(i) = d { Some(i) } else { None })
        .filter(|i| i.kind == "STOP" && i.revision == 1)
        .map(|i| i.target.id.clone())
        .collect();
    let breached: Vec<_> = expected.keys().filter(|(_, k)| *k == "BREACH").map(|(r, _)| r.clone()).collect();
    let mut sorted = stopped.clone();
    sorted.sort();
    assert_eq!(sorted, breached, "every breach stops its run, once");
}

#[test]
fn decisions_do_not_depend_on_how_the_input_was_cut() {
    let Some(lines) = real_hour() else { return };
    let lines = &lines[..6000.min(lines.len())];
    let whole = simulate(lines, lines.len());
    let expected = essences(&whole.decisions);
    assert!(expected.len() > 20, "only {} decisions", expected.len());
    for batch in [1, 7, 100, 1000] {
        let cut = simulate(if batch == 1 { &lines[..1500] } else { lines }, batch);
        if batch == 1 {
            let expected = essences(&simulate(&lines[..1500], 1500).decisions);
            assert_same(&essences(&cut.decisions), &expected, "single rows");
        } else {
            assert_same(&essences(&cut.decisions), &expected, &format!("batches of {batch}"));
        }
    }
}

#[test]
fn every_level_that_rises_ends_and_every_alert_is_resolved() {
    let Some(lines) = real_hour() else { return };
    let report = simulate(lines, 4096);
    let mut up: BTreeMap<String, i64> = BTreeMap::new();
    let mut alerts: BTreeMap<String, &str> = BTreeMap::new();
    for decision in &report.decisions {
        match decision {
            Decision::Signal(s) => {
                let level =
                    up.entry(format!("{} {} {} {}", s.policy_id, s.limit_id, s.tenant_id, s.scope.id)).or_default();
                match s.kind {
                    Kind::Near => *level += 1,
                    Kind::Breach => {}
                    Kind::Resolved => *level -= 1,
                }
            }
            Decision::Alert(a) => {
                alerts.insert(a.alert_id.clone(), a.status.as_str());
            }
            _ => {}
        }
    }
    assert!(up.len() > 10 && alerts.len() > 3, "{} levels, {} alerts", up.len(), alerts.len());
    assert_eq!(up.iter().find(|(_, n)| **n != 0), None, "a level that rose has not ended");
    assert_eq!(alerts.iter().find(|(_, s)| **s != "RESOLVED"), None, "an alert is still open");
}

/// An alert: tenant, key, count and total of members, times of the first and the last, ids.
type Group<'a> = (&'a str, &'a str, u64, u64, i64, i64, Vec<&'a str>);

/// What enters the alerts: tenant, key, event time, id.
type Entered = (String, String, i64, String);

/// Signals and failures, from the signals and the lines alone: of the run's agent, or else of whom it is about.
fn entered(lines: &[String], report: &Report) -> Vec<Entered> {
    let agents: BTreeMap<String, String> = lines
        .iter()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter_map(|e| Some((e["run_id"].as_str()?.to_owned(), e["agent_id"].as_str()?.to_owned())))
        .collect();
    let mut all = Vec::new();
    for line in lines.iter().filter(|line| line.contains("run.failed")) {
        let e: Value = serde_json::from_str(line).unwrap();
        let text = |name: &str| e[name].as_str().unwrap_or_default().to_owned();
        if text("severity") == "NONE" {
            continue;
        }
        let time = chrono::DateTime::parse_from_rfc3339(&text("event_time")).unwrap().timestamp_micros();
        let (tenant, event) = (text("tenant_id"), text("event_id"));
        let own = if event.is_empty() { format!("RUN:{}", text("run_id")) } else { event };
        let id = id::of(&[&tenant, "run.failed", &own, &id::rfc3339(time)]);
        all.push((tenant, format!("AGENT:{}", agents[&text("run_id")]), time, id));
    }
    for decision in &report.decisions {
        let Decision::Signal(s) = decision else { continue };
        if s.kind == Kind::Resolved || s.mode == "AUDIT" {
            continue;
        }
        let own = (s.scope.kind == "AGENT").then(|| s.scope.id.clone());
        let agent = own.or_else(|| agents.get(s.run_id.as_deref()?).cloned());
        let key = agent.map_or_else(|| format!("{}:{}", s.scope.kind, s.scope.id), |agent| format!("AGENT:{agent}"));
        all.push((s.tenant_id.clone(), key, s.event_time, s.signal_id.clone()));
    }
    all
}

#[test]
fn alerts_of_the_hour_are_the_groups_of_an_independent_computation() {
    let Some(lines) = real_hour() else { return };
    const GAP: i64 = 300_000_000;
    let report = simulate(lines, 4096);
    let mut entered = entered(lines, &report);
    entered.sort_by(|a, b| (&a.0, &a.1, a.2).cmp(&(&b.0, &b.1, b.2)));
    // plain code: of one tenant and key, each within five minutes of the last
    type Members = Vec<(i64, String)>;
    let mut groups: Vec<(String, String, Members)> = Vec::new();
    for (tenant, key, time, id) in &entered {
        match groups
            .last_mut()
            .filter(|(t, k, members)| (t, k) == (tenant, key) && time - members[members.len() - 1].0 < GAP)
        {
            Some((.., members)) => members.push((*time, id.clone())),
            None => groups.push((tenant.clone(), key.clone(), vec![(*time, id.clone())])),
        }
    }
    let mut last: BTreeMap<&str, &runwarden::decide::records::Alert> = BTreeMap::new();
    for decision in &report.decisions {
        if let Decision::Alert(a) = decision {
            let known = |source: &String| matches!(source.as_str(), "signal" | "failure");
            assert!(a.sources.iter().all(known), "{:?}", a.sources);
            last.insert(&a.alert_id, a);
        }
    }
    let mut found: Vec<Group<'_>> = last
        .values()
        .map(|a| {
            let mut members: Vec<&str> = a.members.iter().map(String::as_str).collect();
            members.sort_unstable();
            (&*a.tenant_id, &*a.correlation_key, a.alert_count, a.members_total, a.first_seen, a.last_seen, members)
        })
        .collect();
    let mut wanted: Vec<Group<'_>> = groups
        .iter()
        .map(|(tenant, key, members)| {
            assert!(members.len() <= 100, "all members are listed");
            let count = members.len() as u64;
            let mut ids: Vec<&str> = members.iter().map(|(_, id)| id.as_str()).collect();
            ids.sort_unstable();
            (tenant.as_str(), key.as_str(), count, count, members[0].0, members[members.len() - 1].0, ids)
        })
        .collect();
    found.sort();
    wanted.sort();
    assert!(wanted.len() > 3, "only {} groups", wanted.len());
    let largest = wanted.iter().map(|w| w.2).max().unwrap();
    println!(
        "{} signals and failures of the hour are {} alerts, the largest of {largest} members",
        entered.len(),
        wanted.len()
    );
    assert_eq!(found.iter().find(|f| !wanted.contains(f)), None, "an alert that should not be");
    assert_eq!(wanted.iter().find(|w| !found.contains(w)), None, "an alert that is missing");
    assert_eq!(found.len(), wanted.len());
}
