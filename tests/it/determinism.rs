//! The core alone, no Kafka: the same input gives the same decisions whatever the batch cuts, crash points, checkpoint times and
//! partition counts, each alone and all at once, and whatever the producers' keys.
//!
//! Thousands of cases: `PROPTEST_CASES=1000 cargo test --release --test it determinism` (so many of each test).

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use proptest::prelude::*;
use runwarden::clock::{SECOND, Wall};
use runwarden::kafka::core::{Core, Input, InputBatch, OutRecord, Record, StepInput, Topic};
use runwarden::pipeline::{Own, Partition, Settings};
use runwarden::telemetry::tenant_partition;

use crate::support::{assert_same, cases, load_settings, texts};

mod resize;

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

/// Decided records in order of content; positions of re-keyed rows and step-wide texts left out.
fn said(records: impl IntoIterator<Item = OutRecord>) -> Vec<String> {
    let mut all: Vec<String> = records
        .into_iter()
        .filter(|r| !matches!(r.topic, Topic::Policies | Topic::Repartition | Topic::DeadLetter | Topic::Live))
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

/// What was produced to a partition: telemetry, and what others moved there.
#[derive(Default, Clone)]
struct Log {
    telemetry: Vec<Vec<u8>>,
    repartition: Vec<Vec<u8>>,
}

/// A step as `runwarden.steps` would record it.
struct Recorded {
    number: u64,
    telemetry: std::ops::Range<usize>,
    repartition: std::ops::Range<usize>,
    finish: bool,
    digest: u64,
}

/// [`Owner::act`]: die and come back.
const CRASH: u8 = 7;

/// Who owns a partition: its core, its last checkpoint and the steps since.
struct Owner {
    settings: Arc<Settings>,
    own: Own,
    core: Partition,
    checkpoint: BTreeMap<Vec<u8>, Vec<u8>>,
    since: Vec<Recorded>,
    /// Offsets of the next records: telemetry, repartition.
    at: (usize, usize),
    number: u64,
    /// With `Settings::finals`: the windows that closed.
    finals: Vec<String>,
}

impl Owner {
    fn new(partition: i32, partitions: i32) -> Self {
        Self::with(&settings(), partition, partitions)
    }

    fn with(settings: &Arc<Settings>, partition: i32, partitions: i32) -> Self {
        let own = Own { partition, partitions };
        Self {
            core: Partition::new(Arc::clone(settings), own).unwrap(),
            settings: Arc::clone(settings),
            own,
            checkpoint: BTreeMap::new(),
            since: Vec::new(),
            at: (0, 0),
            number: 0,
            finals: Vec::new(),
        }
    }

    /// Takes the next records of both inputs, at most so many.
    fn take(&mut self, log: &Log, (telemetry, repartition): (usize, usize)) -> Vec<OutRecord> {
        let until = |at: usize, more: usize, len: usize| at.saturating_add(more).min(len);
        let to =
            (until(self.at.0, telemetry, log.telemetry.len()), until(self.at.1, repartition, log.repartition.len()));
        let (telemetry, repartition) = (self.at.0..to.0, self.at.1..to.1);
        self.at = to;
        self.step(log, telemetry, repartition, false)
    }

    fn finish(&mut self, log: &Log) -> Vec<OutRecord> {
        self.step(log, self.at.0..self.at.0, self.at.1..self.at.1, true)
    }

    fn step(
        &mut self,
        log: &Log,
        telemetry: std::ops::Range<usize>,
        repartition: std::ops::Range<usize>,
        finish: bool,
    ) -> Vec<OutRecord> {
        self.number += 1;
        let mut step = Recorded { number: self.number, telemetry, repartition, finish, digest: 0 };
        let (records, digest) = self.run(log, &step, false);
        step.digest = digest;
        self.since.push(step);
        records
    }

    fn run(&mut self, log: &Log, step: &Recorded, replaying: bool) -> (Vec<OutRecord>, u64) {
        let batch = |input: Input, range: &std::ops::Range<usize>, log: &'_ [Vec<u8>]| -> Vec<(Input, i64, Vec<u8>)> {
            range.clone().map(|i| (input, i as i64, log[i].clone())).collect()
        };
        let of = [
            batch(Input::Telemetry, &step.telemetry, &log.telemetry),
            batch(Input::Repartition, &step.repartition, &log.repartition),
        ];
        let inputs = of
            .iter()
            .filter(|records| !records.is_empty())
            .map(|records| InputBatch {
                input: records[0].0,
                records: records
                    .iter()
                    .map(|(_, offset, payload)| Record {
                        offset: *offset,
                        timestamp: 0,
                        key: None,
                        payload: Some(payload),
                        headers: &[],
                    })
                    .collect(),
                at_end: false,
            })
            .collect();
        let now = Wall(1_700_000_000 * SECOND);
        let input = StepInput { number: step.number, now, inputs, replaying, finish: step.finish };
        if self.settings.finals {
            let out = self.core.advance(&input).unwrap();
            if !replaying {
                self.note(&out.finals);
            }
            let mut records = out.rekeyed;
            records.extend(out.dead.iter().map(|dead| OutRecord {
                topic: Topic::DeadLetter,
                partition: None,
                key: Vec::new(),
                payload: Some(dead.value.clone()),
                headers: Vec::new(),
            }));
            return (records, 0);
        }
        let out = self.core.step(&input).unwrap();
        (out.records, out.digest)
    }

    fn note(&mut self, finals: &[(usize, datafusion::arrow::array::RecordBatch)]) {
        let mut windows = Vec::new();
        for (metric, rows) in finals {
            let metric = &self.settings.metrics[*metric];
            runwarden::pipeline::simulate::windows(&metric.name, metric.scope.key(), rows, &mut windows);
        }
        self.finals.extend(windows.iter().map(|w| w.to_json().to_string()));
    }

    /// A checkpoint (0, 1), a crash (7) or nothing.
    fn act(&mut self, act: u8, log: &Log) -> Result<(), TestCaseError> {
        // the adopting step must be followed by a checkpoint at once
        if act < 2 || self.core.wants_checkpoint() {
            for change in self.core.take_changes() {
                match change.value {
                    Some(value) => self.checkpoint.insert(change.key, value),
                    None => self.checkpoint.remove(&change.key),
                };
            }
            self.since.clear();
        }
        if act == CRASH {
            self.core = Partition::new(Arc::clone(&self.settings), self.own).unwrap();
            for (key, value) in &self.checkpoint {
                self.core.restore(key, value).unwrap();
            }
            self.core.restored().unwrap();
            let since = std::mem::take(&mut self.since);
            for s in &since {
                let (_, digest) = self.run(log, s, true);
                prop_assert_eq!(digest, s.digest, "step {} decides otherwise when run again", s.number);
            }
            self.since = since;
        }
        Ok(())
    }
}

/// Appends what a step moved to the logs of its owners; gives these.
fn repartition(out: &[OutRecord], logs: &mut [Log]) -> Vec<usize> {
    let moved = out.iter().filter(|r| r.topic == Topic::Repartition);
    moved
        .map(|r| {
            let to = r.partition.unwrap() as usize;
            logs[to].repartition.push(r.payload.clone().unwrap());
            to
        })
        .collect()
}

/// What producers key their records by.
#[derive(Debug, Clone, Copy)]
enum Keys {
    Run,
    Nothing,
    /// Half of them by the tenant and another hash function (CRC-32, as librdkafka does unless told otherwise).
    TwoHashes,
    /// Some right, some anywhere.
    Any(u64),
}

fn keys() -> impl Strategy<Value = Keys> {
    prop_oneof![Just(Keys::Run), Just(Keys::Nothing), Just(Keys::TwoHashes), any::<u64>().prop_map(Keys::Any)]
}

impl Keys {
    /// Where record `i` lies.
    fn place(self, i: usize, payload: &[u8], partitions: i32) -> usize {
        let event: serde_json::Value = serde_json::from_slice(payload).unwrap();
        let (tenant, run) = (event["tenant_id"].as_str().unwrap(), event["run_id"].as_str().unwrap());
        let spread = i as i32 % partitions;
        let place = match self {
            Self::Run => tenant_partition(run, partitions),
            Self::Nothing => spread,
            Self::TwoHashes if i.is_multiple_of(2) => (crc32fast::hash(tenant.as_bytes()) % partitions as u32) as i32,
            Self::TwoHashes => tenant_partition(tenant, partitions),
            Self::Any(bits) if (bits >> (i % 60)) & 1 == 0 => tenant_partition(tenant, partitions),
            Self::Any(_) => spread,
        };
        place as usize
    }
}

fn whole(rows: &[(String, Vec<u8>)], cut: usize) -> Vec<String> {
    let log = Log { telemetry: rows.iter().map(|r| r.1.clone()).collect(), ..Log::default() };
    let mut owner = Owner::new(0, 1);
    let mut all = Vec::new();
    while owner.at.0 < rows.len() {
        all.extend(owner.take(&log, (cut, 0)));
    }
    all.extend(owner.finish(&log));
    said(all)
}

fn with_finals(lateness: i64) -> Arc<Settings> {
    let mut settings = load_settings(&texts(POLICIES));
    settings.event_clock = true;
    settings.future_at = Some(Wall(i64::MAX));
    settings.finals = true;
    settings.stream.all_finals = true;
    settings.stream.lateness = lateness;
    // what is a duplicate near the horizon depends on the order of arrival
    settings.dedup.0 = 86_400 * SECOND;
    Arc::new(settings)
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
    #![proptest_config(cases(12))]

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
        let log = Log { telemetry: rows.iter().map(|r| r.1.clone()).collect(), ..Log::default() };
        let mut owner = Owner::new(0, 1);
        let mut all = Vec::new();
        let (mut acts, mut cuts) = (acts.iter().cycle(), cuts.iter().cycle());
        while owner.at.0 < rows.len() {
            all.extend(owner.take(&log, (*cuts.next().unwrap(), 0)));
            owner.act(*acts.next().unwrap(), &log)?;
        }
        all.extend(owner.finish(&log));
        owner.act(CRASH, &log)?;
        assert_same(&said(all), &whole(&rows, rows.len()), "after crashes");
    }

    #[test]
    fn partitions_cuts_crashes_and_checkpoints_all_at_once_change_nothing(
        shapes in shapes(),
        partitions in 1i32..6,
        turns in prop::collection::vec((any::<prop::sample::Index>(), 1usize..30, 0u8..8), 200),
    ) {
        let rows = events(&shapes);
        let mut logs = vec![Log::default(); partitions as usize];
        for (tenant, payload) in &rows {
            logs[tenant_partition(tenant, partitions) as usize].telemetry.push(payload.clone());
        }
        let mut owners: Vec<Owner> = (0..partitions).map(|p| Owner::new(p, partitions)).collect();
        let mut all = Vec::new();
        let mut turns = turns.iter().cycle();
        loop {
            let open: Vec<usize> = (0..logs.len()).filter(|p| owners[*p].at.0 < logs[*p].telemetry.len()).collect();
            if open.is_empty() {
                break;
            }
            // the partitions advance as unevenly as it happens
            let (pick, cut, act) = turns.next().unwrap();
            let p = open[pick.index(open.len())];
            all.extend(owners[p].take(&logs[p], (*cut, 0)));
            owners[p].act(*act, &logs[p])?;
        }
        for (owner, log) in owners.iter_mut().zip(&logs) {
            all.extend(owner.finish(log));
            owner.act(CRASH, log)?;
        }
        assert_same(&said(all), &whole(&rows, rows.len()), "all at once");
    }

    /// Each record is taken, and where it was misplaced taken again by its owner, before the next: then the decisions are the
    /// same to the last value.
    #[test]
    fn wrong_keys_and_crashes_change_nothing(
        shapes in shapes(),
        partitions in 2i32..6,
        keys in keys(),
        acts in prop::collection::vec(0u8..32, 200),
    ) {
        let rows = events(&shapes);
        let mut logs = vec![Log::default(); partitions as usize];
        let mut owners: Vec<Owner> = (0..partitions).map(|p| Owner::new(p, partitions)).collect();
        let mut all = Vec::new();
        let mut acts = acts.iter().cycle();
        let mut moved = 0;
        for (i, (tenant, payload)) in rows.iter().enumerate() {
            let (p, right) = (keys.place(i, payload, partitions), tenant_partition(tenant, partitions) as usize);
            logs[p].telemetry.push(payload.clone());
            let out = owners[p].take(&logs[p], (1, 0));
            let rekeyed = repartition(&out, &mut logs);
            prop_assert_eq!(&rekeyed, &if p == right { vec![] } else { vec![right] }, "moved once, to its owner");
            moved += rekeyed.len();
            all.extend(out);
            owners[p].act(*acts.next().unwrap(), &logs[p])?;
            for to in rekeyed {
                let out = owners[to].take(&logs[to], (0, 1));
                prop_assert!(out.iter().all(|r| r.topic != Topic::Repartition), "and not again");
                all.extend(out);
                owners[to].act(*acts.next().unwrap(), &logs[to])?;
            }
        }
        for (owner, log) in owners.iter_mut().zip(&logs) {
            all.extend(owner.finish(log));
        }
        prop_assert_eq!(moved, logs.iter().map(|l| l.repartition.len()).sum::<usize>());
        assert_same(&said(all), &whole(&rows, rows.len()), "wrong keys");
    }

    /// Partitions advance unevenly and re-keyed records come later than others, all within the allowed lateness: the order in
    /// which a tenant's rows meet is another, the windows are the same.
    #[test]
    fn wrong_keys_under_skew_change_no_final_window(
        shapes in shapes(),
        partitions in 2i32..6,
        keys in keys(),
        turns in prop::collection::vec((any::<prop::sample::Index>(), 1usize..12, 0u8..32), 300),
    ) {
        let rows = events(&shapes);
        let mut logs = vec![Log::default(); partitions as usize];
        let mut times = vec![Vec::new(); logs.len()];
        for (i, (_, payload)) in rows.iter().enumerate() {
            let p = keys.place(i, payload, partitions);
            logs[p].telemetry.push(payload.clone());
            times[p].push(i);
        }
        // no partition is more than so many records ahead of what another, or a re-keyed record, waits with
        const AHEAD: usize = 10;
        // at most 24 s lie between two records, which are up to 11 s out of order
        let settings = with_finals((AHEAD as i64 * 24 + 12) * SECOND);
        let mut owners: Vec<Owner> = (0..partitions).map(|p| Owner::with(&settings, p, partitions)).collect();
        let mut turns = turns.iter().cycle();
        let mut moved = vec![Vec::new(); logs.len()];
        loop {
            // records re-keyed by several partitions wait in any order: the oldest counts, wherever it stands
            let waiting = |p: usize| moved[p].iter().skip(owners[p].at.1).min().copied();
            let next = |p: usize| [times[p].get(owners[p].at.0).copied(), waiting(p)];
            let Some(behind) = (0..logs.len()).flat_map(next).flatten().min() else { break };
            let may = |p: &usize| next(*p).iter().flatten().any(|i| *i <= behind + AHEAD);
            let open: Vec<usize> = (0..logs.len()).filter(may).collect();
            let (pick, cut, act) = turns.next().unwrap();
            let p = open[pick.index(open.len())];
            let from = owners[p].at.0;
            let telemetry = times[p][from..].iter().take_while(|i| **i <= behind + AHEAD).count().min(*cut);
            let out = owners[p].take(&logs[p], (telemetry, *cut));
            prop_assert!(out.iter().all(|r| r.topic != Topic::DeadLetter), "nothing is late");
            prop_assert_eq!(owners[p].core.windows().stats().partly_late, 0, "nor late for some of its windows");
            let misplaced = times[p][from..from + telemetry].iter().filter(|i| tenant_partition(&rows[**i].0, partitions) as usize != p);
            for (to, i) in repartition(&out, &mut logs).into_iter().zip(misplaced) {
                moved[to].push(*i);
            }
            owners[p].act(*act, &logs[p])?;
        }
        let mut given: Vec<String> = owners.iter_mut().zip(&logs).flat_map(|(owner, log)| {
            owner.finish(log);
            owner.finals.clone()
        }).collect();
        given.sort_unstable();
        let mut expected = Owner::with(&settings, 0, 1);
        let log = Log { telemetry: rows.into_iter().map(|r| r.1).collect(), ..Log::default() };
        expected.take(&log, (usize::MAX, 0));
        expected.finish(&log);
        expected.finals.sort_unstable();
        assert_same(&given, &expected.finals, "final windows");
    }
}

#[test]
fn lost_and_damaged_window_state_is_told_and_the_rest_goes_on() {
    let shapes: Vec<Shape> = (0..80).map(|n| (n % 3, n % 2, n % 4, 4 + n % 12, 1, 0, 150)).collect();
    let rows = events(&shapes);
    let log = Log { telemetry: rows.iter().map(|r| r.1.clone()).collect(), ..Log::default() };
    let mut owner = Owner::new(0, 1);
    owner.take(&log, (40, 0));
    owner.act(0, &log).unwrap();
    // window state: panes and sessions
    let windows: Vec<Vec<u8>> =
        owner.checkpoint.keys().filter(|k| k.starts_with(b"Wp") || k.starts_with(b"Ws")).cloned().collect();
    assert!(windows.len() > 10, "{}", windows.len());
    let mut core = Partition::new(settings(), owner.own).unwrap();
    let mut refused = 0;
    for (key, value) in &owner.checkpoint {
        let mut value = value.clone();
        if *key == windows[0] {
            continue;
        }
        if *key == windows[windows.len() / 2] {
            *value.last_mut().unwrap() ^= 1;
        }
        refused += usize::from(core.restore(key, &value).is_err());
    }
    assert_eq!(refused, 1);
    assert!(core.restored().unwrap_err().to_string().contains("checkpoint holds"));
    owner.core = core;
    let mut all = owner.take(&log, (usize::MAX, 0));
    all.extend(owner.finish(&log));
    let complete =
        |r: &OutRecord| serde_json::from_slice::<serde_json::Value>(r.payload.as_deref()?).ok()?["complete"].as_bool();
    let said: Vec<bool> = all.iter().filter(|r| r.topic == Topic::Signals).filter_map(complete).collect();
    assert!(said.contains(&false), "windows that were open say that they are incomplete: {said:?}");
}
