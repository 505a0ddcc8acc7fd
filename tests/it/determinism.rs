//! The core alone, no Kafka: the same input gives the same decisions whatever the batch cuts, crash points, checkpoint times and
//! partition counts.
//!
//! More cases: `PROPTEST_CASES=5000 cargo test --test it determinism`.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use proptest::prelude::*;
use runwarden::clock::{SECOND, Wall};
use runwarden::kafka::core::{Core, Input, InputBatch, OutRecord, Record, StepInput, Topic};
use runwarden::pipeline::{Own, Partition, Settings};
use runwarden::telemetry::tenant_partition;

use crate::support::{assert_same, load_settings, texts};

const POLICIES: &[(&str, &str)] = &[(
    "p.yaml",
    r#"
id: run
name: Run
enforcement_mode: BLOCK
limits:
  - {id: tokens, limit_type: TOKENS_PER_RUN, category: BUDGET, metric: run_tokens, max: 500, on_breach: STOP}
  - {id: steps, limit_type: RUNS_STEPS, metric: run_steps, max: 9, on_breach: PAUSE}
---
id: agent
name: Agent
enforcement_mode: WARN
limits:
  - {id: minute, limit_type: TOKENS_PER_MINUTE, category: RATE, metric: agent_tokens_1m, max: 900}
  - {id: failures, limit_type: FAILURES, metric: agent_failures_5m, max: 2}
---
id: tenant
name: Tenant
limits:
  - {id: burn, limit_type: TOKENS_PER_5M, category: RATE, metric: tenant_tokens_5m, max: 4000}
  - {id: p95, limit_type: LATENCY, metric: latency_p95_ms, max: 700}
---
id: condition
name: Condition
enforcement_mode: BLOCK
condition: {type: sql, expression: "run.total_tokens > 150 AND agent.event_type <> 'run.failed'"}
actions: [{type: notify, parameters: {channels: [ui]}}, {type: quarantine_agent}]
---
id: shadow-condition
name: Condition in shadow
condition: {type: field_comparison, field: agent.event_type, operator: ==, value: run.failed}
actions: [{type: quarantine_agent}]
"#,
)];

fn settings() -> Arc<Settings> {
    static SETTINGS: OnceLock<Arc<Settings>> = OnceLock::new();
    let make = || {
        let mut settings = load_settings(&texts(POLICIES));
        settings.event_clock = true;
        settings.future_at = Some(Wall(i64::MAX));
        Arc::new(settings)
    };
    Arc::clone(SETTINGS.get_or_init(make))
}

/// One event, small numbers: (tenant, agent, run, kind, seconds since the last, seconds of disorder, tokens).
type Shape = (u8, u8, u8, u8, u8, u8, u16);

fn shapes() -> impl Strategy<Value = Vec<Shape>> {
    let one = (0..3u8, 0..2u8, 0..4u8, 0..16u8, 0..25u8, 0..12u8, 0..200u16);
    prop::collection::vec(one, 20..160)
}

fn events(shapes: &[Shape]) -> Vec<(String, Vec<u8>)> {
    let mut clock = 1_700_000_000;
    let mut all = Vec::new();
    for (n, (tenant, agent, run, kind, later, disorder, tokens)) in shapes.iter().enumerate() {
        clock += i64::from(*later);
        let at = clock - i64::from(*disorder);
        let kind = match kind {
            0 => "run.started",
            1 => "run.completed",
            2 | 3 => "run.failed",
            _ => "run.step",
        };
        let tenant = format!("tenant-{tenant}");
        let event = serde_json::json!({
            "event_id": format!("e{n}"), "event_time": at * 1000, "event_type": kind, "tenant_id": tenant,
            "run_id": format!("r{run}"), "agent_id": format!("a{agent}"), "input_tokens": tokens, "latency_ms": tokens * 5,
            "api_key_id": "k", "human_actor_id": "h", "provider": "p", "cost_usd": 0.25,
        });
        all.push((tenant, event.to_string().into_bytes()));
        if n % 17 == 3 {
            let duplicate = all[n / 2].clone();
            all.push(duplicate);
        }
    }
    all
}

fn partition(own: i32, of: i32) -> Partition {
    Partition::new(settings(), Own { partition: own, partitions: of }).unwrap()
}

/// Decided records in order of content; positions of re-keyed rows and step-wide texts left out.
fn said(records: impl IntoIterator<Item = OutRecord>) -> Vec<String> {
    let mut all: Vec<String> = records
        .into_iter()
        .filter(|r| !matches!(r.topic, Topic::Policies | Topic::Repartition | Topic::DeadLetter))
        .map(|r| {
            let mut value: serde_json::Value = serde_json::from_slice(r.payload.as_deref().unwrap()).unwrap();
            if let Some(object) = value.as_object_mut() {
                object.remove("evidence");
            }
            brief(r.topic, &value)
        })
        .collect();
    all.sort_unstable();
    all
}

/// What a record says, short enough to read in a failure.
fn brief(topic: Topic, v: &serde_json::Value) -> String {
    let fields: &[&str] = match topic {
        Topic::Signals => &[
            "event_time",
            "kind",
            "metric",
            "mode",
            "limit_id",
            "value",
            "window_start",
            "window_end",
            "reason",
            "complete",
            "overshoot",
            "peak_utilization",
            "signal_id",
        ],
        Topic::Alerts => &["status", "correlation_key", "revision", "alert_count", "severity", "last_seen", "alert_id"],
        Topic::Interventions => &["type", "reason", "intervention_id"],
        _ => &["kind", "reason", "audit_id"],
    };
    let scope = v.pointer("/scope/id").or_else(|| v.pointer("/target/id")).or_else(|| v.pointer("/subject/id"));
    let shown: Vec<String> = fields.iter().map(|f| v.get(*f).unwrap_or(&serde_json::Value::Null).to_string()).collect();
    format!("{topic:?} {} {} {}", v["tenant_id"], scope.unwrap_or(&serde_json::Value::Null), shown.join(" "))
}

struct Recorded {
    from: usize,
    to: usize,
    number: u64,
    digest: u64,
    finish: bool,
}

fn step(core: &mut Partition, rows: &[(String, Vec<u8>)], s: &Recorded, replaying: bool) -> (Vec<OutRecord>, u64) {
    let records = (s.from..s.to)
        .map(|i| Record {
            offset: i as i64,
            timestamp: 0,
            key: None,
            payload: Some(rows[i].1.as_slice()),
            headers: &[],
        })
        .collect();
    let inputs = vec![InputBatch { input: Input::Telemetry, records, at_end: false }];
    let now = Wall(1_700_000_000 * SECOND);
    let out = core.step(&StepInput { number: s.number, now, inputs, replaying, finish: s.finish }).unwrap();
    (out.records, out.digest)
}

fn whole(rows: &[(String, Vec<u8>)], cut: usize) -> Vec<String> {
    let mut core = partition(0, 1);
    let mut all = Vec::new();
    let (mut at, mut number) = (0, 0);
    while at < rows.len() {
        number += 1;
        let to = (at + cut).min(rows.len());
        let s = Recorded { from: at, to, number, digest: 0, finish: false };
        all.extend(step(&mut core, rows, &s, false).0);
        at = to;
    }
    let s = Recorded { from: at, to: at, number: number + 1, digest: 0, finish: true };
    all.extend(step(&mut core, rows, &s, false).0);
    said(all)
}

/// Final windows as the engine reports them, in order of text.
fn finals(rows: &[(String, Vec<u8>)], cut: usize, all: bool) -> Vec<String> {
    let mut settings = load_settings(&texts(POLICIES));
    settings.event_clock = true;
    settings.future_at = Some(Wall(i64::MAX));
    settings.finals = true;
    settings.stream.all_finals = all;
    let mut simulation = runwarden::pipeline::simulate::Simulation::new(Arc::new(settings)).unwrap();
    for chunk in rows.chunks(cut) {
        simulation.push(chunk.iter().map(|r| r.1.as_slice())).unwrap();
    }
    let mut all: Vec<String> = simulation.finish().unwrap().windows.iter().map(|w| w.to_json().to_string()).collect();
    all.sort_unstable();
    all
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 40, cases: std::env::var("PROPTEST_CASES").ok().and_then(|c| c.parse().ok()).unwrap_or(24), ..ProptestConfig::default() })]

    #[test]
    fn batch_cuts_change_no_final_window(shapes in shapes(), cut in 1usize..40, all in any::<bool>()) {
        let rows = events(&shapes);
        assert_same(&finals(&rows, cut, all), &finals(&rows, rows.len(), all), "finals");
    }

    #[test]
    fn batch_cuts_change_nothing(shapes in shapes(), cut in 1usize..40) {
        let rows = events(&shapes);
        assert_same(&whole(&rows, cut), &whole(&rows, rows.len()), "cut");
    }

    #[test]
    fn crashes_and_checkpoints_anywhere_change_nothing(
        shapes in shapes(),
        cuts in prop::collection::vec(1usize..30, 200),
        acts in prop::collection::vec(0u8..8, 200),
    ) {
        let rows = events(&shapes);
        let expected = whole(&rows, rows.len());
        let mut core = partition(0, 1);
        let mut checkpoint: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        let mut since: Vec<Recorded> = Vec::new();
        let mut all = Vec::new();
        let (mut at, mut number) = (0, 0u64);
        let mut acts = acts.iter().cycle();
        let mut cuts = cuts.iter().cycle();
        loop {
            number += 1;
            let finish = at == rows.len();
            let to = (at + cuts.next().unwrap()).min(rows.len());
            let mut s = Recorded { from: at, to, number, digest: 0, finish };
            let (records, digest) = step(&mut core, &rows, &s, false);
            s.digest = digest;
            all.extend(records);
            at = to;
            since.push(s);
            let act = acts.next().unwrap();
            // the adopting step must be followed by a checkpoint at once
            if *act < 2 || core.wants_checkpoint() {
                for change in core.take_changes() {
                    match change.value {
                        Some(value) => checkpoint.insert(change.key, value),
                        None => checkpoint.remove(&change.key),
                    };
                }
                since.clear();
            }
            if *act == 7 {
                core = partition(0, 1);
                for (key, value) in &checkpoint {
                    core.restore(key, value).unwrap();
                }
                core.restored().unwrap();
                for s in &since {
                    let (_, digest) = step(&mut core, &rows, s, true);
                    prop_assert_eq!(digest, s.digest, "step {} decides otherwise when run again", s.number);
                }
            }
            if finish {
                break;
            }
        }
        assert_same(&said(all), &expected, "after crashes");
    }

    #[test]
    fn partition_counts_and_wrong_keys_change_nothing(shapes in shapes(), partitions in 2i32..5, spread in any::<u64>()) {
        let rows = events(&shapes);
        let expected = whole(&rows, rows.len());
        let mut cores: Vec<Partition> = (0..partitions).map(|p| partition(p, partitions)).collect();
        let mut all = Vec::new();
        let mut rekeyed: Vec<i64> = vec![0; cores.len()];
        for (i, row) in rows.iter().enumerate() {
            // some records lie on their tenant's partition, some anywhere
            let right = tenant_partition(&row.0, partitions);
            let place = if (spread >> (i % 60)) & 1 == 0 { right } else { (i as i32) % partitions };
            let record = Record { offset: i as i64, timestamp: 0, key: None, payload: Some(&row.1), headers: &[] };
            let inputs = vec![InputBatch { input: Input::Telemetry, records: vec![record], at_end: false }];
            let input = StepInput { number: i as u64 + 1, now: Wall(0), inputs, replaying: false, finish: false };
            let out = cores[place as usize].step(&input).unwrap();
            for moved in out.records.iter().filter(|r| r.topic == Topic::Repartition) {
                let to = moved.partition.unwrap();
                prop_assert_eq!(to, right);
                let offset = &mut rekeyed[to as usize];
                let record = Record { offset: *offset, timestamp: 0, key: None, payload: moved.payload.as_deref(), headers: &[] };
                *offset += 1;
                let inputs = vec![InputBatch { input: Input::Repartition, records: vec![record], at_end: false }];
                let input = StepInput { number: 0, now: Wall(0), inputs, replaying: false, finish: false };
                all.extend(cores[to as usize].step(&input).unwrap().records);
            }
            all.extend(out.records);
        }
        for core in &mut cores {
            let input = StepInput { number: u64::MAX, now: Wall(0), inputs: vec![], replaying: false, finish: true };
            all.extend(core.step(&input).unwrap().records);
        }
        assert_same(&said(all), &expected, "partitions");
    }
}
