//! One tenant's flood or key explosion: what is refused, what is said, and that nobody else notices.
//!
//! The core alone. More cases: `PROPTEST_CASES=2000 cargo test --test it bounds`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use runwarden::clock::{SECOND, Wall};
use runwarden::kafka::core::{Core, Input, InputBatch, OutRecord, Record, StepInput, Topic};
use runwarden::pipeline::{Own, Partition, Settings};
use serde_json::{Value, json};

use crate::support::{assert_same, load_settings, texts};

const POLICIES: &[(&str, &str)] = &[(
    "p.yaml",
    r#"
id: run
name: Run
enforcement_mode: BLOCK
limits:
  - {id: tokens, limit_type: TOKENS_PER_RUN, category: BUDGET, metric: run_tokens, max: 500, on_breach: STOP}
---
id: agent
name: Agent
enforcement_mode: WARN
limits:
  - {id: minute, limit_type: TOKENS_PER_MINUTE, category: RATE, metric: agent_tokens_1m, max: 300}
---
id: tenant
name: Tenant
enforcement_mode: WARN
limits:
  - {id: burn, limit_type: TOKENS_PER_5M, category: RATE, metric: tenant_tokens_5m, max: 4000}
"#,
)];
const START: i64 = 1_700_000_000;
/// The steps' clock.
const NOW: i64 = (START + 1_000_000) * SECOND;
/// Live keys of a tenant in these tests.
const MOST: usize = 24;

fn settings(most: usize) -> Arc<Settings> {
    let mut settings = load_settings(&texts(POLICIES));
    settings.future_at = Some(Wall(i64::MAX));
    settings.stream.max_live_keys = most;
    // sixteen rows of a run are kept apart until the watermark has passed them
    settings.stream.max_state_bytes_per_key = 1_024;
    Arc::new(settings)
}

fn partition(settings: &Arc<Settings>) -> Partition {
    Partition::new(Arc::clone(settings), Own { partition: 0, partitions: 1 }).unwrap()
}

/// A record with its place on the topic, which stays the same when others are left out.
#[derive(Clone)]
struct Row {
    offset: i64,
    tenant: &'static str,
    payload: Vec<u8>,
}

fn event(tenant: &str, at: i64, run: &str, agent: &str, tokens: u16, kind: &str) -> Vec<u8> {
    let event = json!({
        "event_time": at * 1000, "event_type": kind, "tenant_id": tenant, "run_id": run, "agent_id": agent,
        "input_tokens": tokens, "latency_ms": tokens, "api_key_id": "k", "human_actor_id": "h", "provider": "p",
    });
    event.to_string().into_bytes()
}

/// Whose, which id, what kind, seconds since the last, seconds of disorder, tokens.
type Shape = (u8, u8, u8, u32, u8, u16);

fn shapes() -> impl Strategy<Value = Vec<Shape>> {
    let one = (
        0..6u8,
        any::<u8>(),
        0..12u8,
        prop_oneof![40 => 0..6u32, 4 => 0..900u32, 1 => 50_000..250_000u32],
        0..14u8,
        0..200u16,
    );
    prop::collection::vec(one, 60..260)
}

/// Half of the rows are of a tenant with ever new ids, the others of two calm ones.
fn rows(shapes: &[Shape]) -> Vec<Row> {
    let mut clock = START;
    let shape = |(n, (who, id, kind, later, disorder, tokens)): (usize, &Shape)| {
        clock += i64::from(*later);
        let tenant = ["flood", "flood", "flood", "calm-1", "calm-2", "calm-2"][usize::from(*who)];
        let ids = if tenant == "flood" { 45 } else { 3 };
        let (run, agent) = (format!("r{}", u32::from(*id) % ids), format!("a{}", u32::from(*id / 2) % ids));
        let kind = if *kind == 0 { "run.completed" } else { "run.step" };
        let payload = event(tenant, clock - i64::from(*disorder), &run, &agent, *tokens, kind);
        Row { offset: n as i64, tenant, payload }
    };
    shapes.iter().enumerate().map(shape).collect()
}

struct Cut {
    from: usize,
    to: usize,
    number: u64,
    finish: bool,
}

fn step(core: &mut Partition, rows: &[Row], cut: &Cut, replaying: bool) -> (Vec<OutRecord>, u64) {
    let record = |row: &Row| (row.offset, row.payload.clone());
    let taken: Vec<_> = rows[cut.from..cut.to].iter().map(record).collect();
    let records = taken
        .iter()
        .map(|(offset, payload)| Record {
            offset: *offset,
            timestamp: 0,
            key: None,
            payload: Some(payload),
            headers: &[],
        })
        .collect();
    let inputs = vec![InputBatch { input: Input::Telemetry, records, at_end: false }];
    let now = Wall(NOW);
    let input = StepInput { number: cut.number, now, inputs, replaying, finish: cut.finish };
    let out = core.step(&input).unwrap();
    (out.records, out.digest)
}

/// Every record but the snapshot's and the late rows', whole.
fn said(records: &[OutRecord]) -> Vec<String> {
    let told = records.iter().filter(|r| !matches!(r.topic, Topic::Policies | Topic::DeadLetter | Topic::Live));
    let mut all: Vec<String> = told
        .map(|r| format!("{:?} {}", r.topic, String::from_utf8_lossy(r.payload.as_deref().unwrap_or_default())))
        .collect();
    all.sort_unstable();
    all
}

fn run(settings: &Arc<Settings>, rows: &[Row], cut: usize) -> Vec<OutRecord> {
    let mut core = partition(settings);
    let mut all = Vec::new();
    let mut number = 0;
    for from in (0..rows.len()).step_by(cut) {
        number += 1;
        let to = (from + cut).min(rows.len());
        all.extend(step(&mut core, rows, &Cut { from, to, number, finish: false }, false).0);
    }
    let end = Cut { from: rows.len(), to: rows.len(), number: number + 1, finish: true };
    all.extend(step(&mut core, rows, &end, false).0);
    all
}

fn of(records: &[OutRecord], flood: bool) -> Vec<String> {
    said(records).into_iter().filter(|r| r.contains("\"tenant_id\":\"flood\"") == flood).collect()
}

fn payloads(records: &[OutRecord], topic: Topic) -> Vec<Value> {
    let of = records.iter().filter(|r| r.topic == topic);
    of.map(|r| serde_json::from_slice(r.payload.as_deref().unwrap()).unwrap()).collect()
}

fn turns(records: &[OutRecord]) -> Vec<String> {
    let audits = payloads(records, Topic::Audit);
    audits
        .iter()
        .filter(|a| a["kind"] == "key_overflow")
        .map(|a| a["after"]["state"].as_str().unwrap().into())
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 60, cases: std::env::var("PROPTEST_CASES").ok().and_then(|c| c.parse().ok()).unwrap_or(16), ..ProptestConfig::default() })]

    #[test]
    fn what_is_refused_does_not_depend_on_batch_cuts(shapes in shapes(), cut in 1usize..40) {
        let (settings, rows) = (settings(MOST), rows(&shapes));
        assert_same(&said(&run(&settings, &rows, cut)), &said(&run(&settings, &rows, rows.len())), "cut");
    }

    #[test]
    fn nor_on_crashes_and_checkpoints(
        shapes in shapes(),
        cuts in prop::collection::vec(1usize..30, 60),
        acts in prop::collection::vec(0u8..8, 60),
    ) {
        let (settings, rows) = (settings(MOST), rows(&shapes));
        let expected = said(&run(&settings, &rows, rows.len()));
        let mut core = partition(&settings);
        let mut checkpoint: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        let mut since: Vec<(Cut, u64)> = Vec::new();
        let mut all = Vec::new();
        let (mut at, mut number) = (0, 0u64);
        let (mut acts, mut cuts) = (acts.iter().cycle(), cuts.iter().cycle());
        loop {
            number += 1;
            let finish = at == rows.len();
            let cut = Cut { from: at, to: (at + cuts.next().unwrap()).min(rows.len()), number, finish };
            let (records, digest) = step(&mut core, &rows, &cut, false);
            all.extend(records);
            at = cut.to;
            since.push((cut, digest));
            let act = acts.next().unwrap();
            if *act == 2 {
                core.mark_all_dirty();
            }
            if *act < 3 || core.wants_checkpoint() {
                for change in core.take_changes() {
                    match change.value {
                        Some(value) => checkpoint.insert(change.key, value),
                        None => checkpoint.remove(&change.key),
                    };
                }
                since.clear();
            }
            if *act == 7 {
                core = partition(&settings);
                for (key, value) in &checkpoint {
                    core.restore(key, value).unwrap();
                }
                core.restored().unwrap();
                for (cut, recorded) in &since {
                    let (_, digest) = step(&mut core, &rows, cut, true);
                    prop_assert_eq!(digest, *recorded, "step {} decides otherwise when run again", cut.number);
                }
            }
            if finish {
                break;
            }
        }
        assert_same(&said(&all), &expected, "after crashes");
    }

    #[test]
    fn the_others_say_the_same_with_and_without_a_flood(shapes in shapes(), cut in 1usize..60) {
        let (settings, rows) = (settings(MOST), rows(&shapes));
        let calm: Vec<Row> = rows.iter().filter(|r| r.tenant != "flood").cloned().collect();
        let with = of(&run(&settings, &rows, cut), false);
        assert_same(&with, &said(&run(&settings, &calm, cut)), "flood");
    }

    #[test]
    fn no_tenant_holds_more_keys_than_it_may(shapes in shapes()) {
        let (settings, rows) = (settings(MOST), rows(&shapes));
        let flood: Vec<Row> = rows.into_iter().filter(|r| r.tenant == "flood").collect();
        let mut core = partition(&settings);
        for n in 0..flood.len() {
            step(&mut core, &flood, &Cut { from: n, to: n + 1, number: n as u64 + 1, finish: false }, false);
            // the tenant itself is one key more
            prop_assert!(core.windows().stats().keys <= MOST + 1, "{}", core.windows().stats().keys);
        }
    }
}

/// `count` runs and agents of one tenant, a second apart.
fn explosion(from: i64, count: i64) -> Vec<Row> {
    let row = |n| {
        let (run, agent) = (format!("r{n}"), format!("a{n}"));
        Row { offset: n, tenant: "flood", payload: event("flood", START + n, &run, &agent, 150, "run.step") }
    };
    (from..from + count).map(row).collect()
}

#[test]
fn an_explosion_of_keys_is_said_once_counted_and_over_when_there_is_room_again() {
    let settings = settings(MOST);
    let mut rows = explosion(0, 100);
    let known = event("flood", START + 100, "r0", "a0", 600, "run.step");
    rows.push(Row { offset: 100, tenant: "flood", payload: known });
    let refused = event("flood", START + 100, "r50", "a50", 600, "run.step");
    rows.push(Row { offset: 101, tenant: "flood", payload: refused });
    // three days later everything has closed
    let late = START + 3 * 86_400;
    for (n, (run, tokens)) in [("x", 10), ("y", 600)].into_iter().enumerate() {
        let payload = event("flood", late + n as i64, run, "a", tokens, "run.step");
        rows.push(Row { offset: 102 + n as i64, tenant: "flood", payload });
    }
    let records = run(&settings, &rows, 16);
    assert_eq!(turns(&records), ["BEGAN", "ENDED"]);
    let began = payloads(&records, Topic::Audit);
    assert_eq!((&began[0]["tenant_id"], &began[0]["after"]["live_keys"]), (&json!("flood"), &json!(MOST)));
    assert!(began[0]["reason"].as_str().unwrap().contains("[limits] live-keys"), "the remedy is named");

    let signals = payloads(&records, Topic::Signals);
    let of = |run: &str, kind: &str| -> Value {
        let found = signals.iter().find(|s| s["run_id"] == run && s["kind"] == kind);
        found.unwrap_or_else(|| panic!("{kind} of {run}: {signals:#?}")).clone()
    };
    assert_eq!(
        of("r0", "BREACH")["complete"],
        false,
        "a key that is known is still judged, and says that more may be missing"
    );
    assert_eq!(of("y", "BREACH")["complete"], true, "a run of later on lacks nothing");
    let burn = signals.iter().find(|s| s["metric"] == "tenant_tokens_5m" && s["kind"] == "BREACH");
    assert_eq!(burn.unwrap()["value"], json!(4050), "the tenant's own total counts every row");
    assert!(!signals.iter().any(|s| s["run_id"] == "r50"), "a refused run is not judged");
}

#[test]
fn a_row_counts_as_refused_once_and_the_tenant_shows_as_overflowed() {
    let settings = settings(MOST);
    let mut core = partition(&settings);
    let rows = explosion(0, 60);
    let records = rows
        .iter()
        .map(|r| Record { offset: r.offset, timestamp: 0, key: None, payload: Some(&r.payload), headers: &[] })
        .collect();
    let inputs = vec![InputBatch { input: Input::Telemetry, records, at_end: false }];
    let input = StepInput { number: 1, now: Wall(START * SECOND), inputs, replaying: false, finish: false };
    let step = core.advance(&input).unwrap();
    // k and h are shared; each second row takes a run and an agent, the one at the edge fits by half
    assert_eq!(step.counts.overflow_rows, 60 - (MOST as u64 - 3) / 2, "{:?}", step.counts);
    let stats = core.windows().stats();
    assert_eq!(stats.overflowing, 1);
    assert!(stats.refused >= step.counts.overflow_rows);
}

#[test]
fn a_clock_that_stands_still_does_not_make_a_run_grow() {
    let settings = settings(MOST);
    let (mut core, mut said) = (partition(&settings), Vec::new());
    let row = |n| Row { offset: n, tenant: "calm-1", payload: event("calm-1", START, "r", "a", 1, "run.step") };
    let rows: Vec<Row> = (0..3_000).map(row).collect();
    let mut sizes = Vec::new();
    for (number, from) in (1..).zip((0..rows.len()).step_by(100)) {
        said.extend(step(&mut core, &rows, &Cut { from, to: from + 100, number, finish: false }, false).0);
        core.mark_all_dirty();
        sizes.push(core.take_changes().iter().filter_map(|c| c.value.as_ref()).map(Vec::len).sum::<usize>());
    }
    assert!(sizes[29] < sizes[9] + 200, "nothing grows with the rows: {sizes:?}");
    let breach =
        payloads(&said, Topic::Signals).into_iter().find(|s| s["kind"] == "BREACH" && s["metric"] == "run_tokens");
    assert_eq!(breach.unwrap()["value"], json!(500), "and every row counts");
}

/// Rows of calm tenants for a step.
fn calm(step: i64, rows: i64) -> Vec<Row> {
    let row = |n: i64| {
        let at = START + 4_000 + step * 2 + n * 2 / rows;
        let payload = event("calm-1", at, &format!("r{}", n % 50), &format!("a{}", n % 20), 1, "run.step");
        Row { offset: step * rows + n, tenant: "calm-1", payload }
    };
    (0..rows).map(row).collect()
}

/// The shortest time of a step: what disturbs a machine only makes it longer.
fn least(core: &mut Partition, batches: &[Vec<Row>], number: &mut u64) -> Duration {
    let mut least = Duration::MAX;
    for batch in batches {
        *number += 1;
        let cut = Cut { from: 0, to: batch.len(), number: *number, finish: false };
        let started = Instant::now();
        step(core, batch, &cut, false);
        least = least.min(started.elapsed());
    }
    least
}

#[test]
fn what_a_flood_has_left_does_not_slow_the_others() {
    const STEPS: i64 = 12;
    let settings = settings(20_000);
    let quiet: Vec<Vec<Row>> = (0..STEPS).map(|s| calm(s, 500)).collect();
    let (mut alone, mut flooded, mut numbers) = (partition(&settings), partition(&settings), [0, 0]);
    for chunk in explosion(0, 12_000).chunks(2_000) {
        numbers[1] += 1;
        let cut = Cut { from: 0, to: chunk.len(), number: numbers[1], finish: false };
        step(&mut flooded, chunk, &cut, false);
    }
    assert!(flooded.windows().stats().keys > 3_000, "{:?}", flooded.windows().stats());
    let calm_alone = least(&mut alone, &quiet, &mut numbers[0]);
    let beside = least(&mut flooded, &quiet, &mut numbers[1]);
    // far from one: work that grew with what others hold would be tens of times as much
    assert!(beside < calm_alone * 4, "{calm_alone:?} alone, {beside:?} beside what a flood left");
}

#[test]
fn silent_tenants_cost_a_step_little_however_many_there_are() {
    let settings = settings(20_000);
    let mut least_of = [Duration::MAX; 2];
    for (tenants, least) in [10i64, 4_000].into_iter().zip(&mut least_of) {
        let mut core = partition(&settings);
        let rows: Vec<Row> = (0..tenants)
            .map(|n| Row { offset: n, tenant: "", payload: event(&format!("t{n}"), START, "r", "a", 1, "run.step") })
            .collect();
        step(&mut core, &rows, &Cut { from: 0, to: rows.len(), number: 1, finish: false }, false);
        let mut wall = NOW;
        for number in 2..40 {
            // a minute after the last record everybody is idle, and after some days everything has closed
            wall += if number < 7 { 86_400 * SECOND } else { SECOND / 100 };
            let inputs = vec![InputBatch { input: Input::Telemetry, records: vec![], at_end: true }];
            let input = StepInput { number, now: Wall(wall), inputs, replaying: false, finish: false };
            let started = Instant::now();
            core.step(&input).unwrap();
            if number >= 7 {
                *least = (*least).min(started.elapsed());
            }
        }
        assert_eq!(core.windows().stats().keys, 0, "all closed");
    }
    assert!(least_of[1] < least_of[0] * 20 + Duration::from_millis(2), "{least_of:?}");
}
