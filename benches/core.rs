//! The whole core on the reference job, beside decoding alone, in one run: `cargo bench --bench core`.
//!
//! 350-byte events of 100 tenants and 10,000 live runs, the 14 default metrics with early results, 100 policies. Prints events
//! per second of both and their ratio (bars: 400,000 events/s and 20 % of decoding alone, on one core in release).
#![allow(clippy::unwrap_used, clippy::panic, reason = "a bench that cannot go on should stop")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use runwarden::cli::load::{self, Texts};
use runwarden::clock::Wall;
use runwarden::kafka::core::{Input, InputBatch, Record, StepInput};
use runwarden::pipeline::{Own, Partition, Settings};
use runwarden::telemetry::{Decoder, Origin};

const TENANTS: usize = 100;
const RUNS: usize = 10_000;
const POLICIES: usize = 100;
const BATCH: usize = 4_096;
const WARM: usize = 10;
const MEASURED: usize = 30;

fn event(n: usize) -> Vec<u8> {
    let run = n * 7_919 % RUNS;
    // 10,000 events a second
    let micros = 1_800_000_000_000_000 + n as i64 * 100;
    let mut text = format!(
        r#"{{"event_id":"e-{n}","event_time":"{}","event_type":"run.step","tenant_id":"tenant-{:03}","run_id":"run-{run:05}","agent_id":"agent-{:02}","api_key_id":"key-{:02}","human_actor_id":"user-{:02}","project_id":"project-{}","provider":"azure","model":"chat-large","input_tokens":{},"output_tokens":{},"cost_usd":0.0{:04},"latency_ms":{}"#,
        runwarden::telemetry::format_micros(micros),
        run % TENANTS,
        run % 24,
        run % 8,
        run % 12,
        run % 3,
        n % 4_000,
        n % 700,
        n % 9_999,
        20 + n % 9_000,
    );
    let pad = 350usize.saturating_sub(text.len() + 15);
    text.push_str(&format!(r#","error_code":"{}"}}"#, "x".repeat(pad)));
    text.into_bytes()
}

fn policies() -> Vec<(String, String)> {
    let metrics = ["run_tokens", "run_cost_usd", "run_steps", "agent_tokens_1m", "tenant_tokens_5m"];
    let one = |n: usize| {
        let metric = metrics[n % metrics.len()];
        format!(
            "id: p{n}\nname: P{n}\nenforcement_mode: BLOCK\nlimits:\n  - {{id: l, limit_type: T, metric: {metric}, max: {}}}\n",
            900_000_000 + n
        )
    };
    vec![("bench.yaml".into(), (0..POLICIES).map(one).collect::<Vec<_>>().join("---\n"))]
}

fn settings() -> Arc<Settings> {
    let texts = Texts { policies: policies(), ..Texts::demo() };
    let mut settings = load::build(&texts, load::defaults()).unwrap_or_else(|e| panic!("{e:?}")).settings;
    settings.event_clock = true;
    settings.future_at = Some(Wall(i64::MAX));
    Arc::new(settings)
}

fn main() {
    // `cargo test --benches` only wants to know that it builds
    if std::env::args().any(|a| a == "--test") {
        return;
    }
    let events: Vec<Vec<u8>> = (0..(WARM + MEASURED) * BATCH).map(event).collect();
    let bytes = events.iter().map(Vec::len).sum::<usize>() / events.len();
    let settings = settings();

    let topic: Arc<str> = "runs.telemetry".into();
    let mut decoder = Decoder::new(Arc::clone(&settings.decoder));
    let mut decode = |events: &[Vec<u8>]| {
        for (offset, payload) in (0i64..).zip(events) {
            let origin = Origin { input: 2, topic: Arc::clone(&topic), partition: 0, offset };
            decoder.push(origin, offset, Some(payload), Wall(i64::MAX));
        }
        black_box(decoder.finish().batch.rows.num_rows())
    };
    let mut core = Partition::new(Arc::clone(&settings), Own { partition: 0, partitions: 1 }).unwrap();
    let mut step = |number: usize, events: &[Vec<u8>]| {
        let records = (0i64..)
            .zip(events)
            .map(|(i, payload)| Record {
                offset: (number * BATCH) as i64 + i,
                timestamp: 0,
                key: None,
                payload: Some(payload),
                headers: &[],
            })
            .collect();
        let inputs = vec![InputBatch { input: Input::Telemetry, records, at_end: false }];
        let input = StepInput { number: number as u64 + 1, now: Wall(0), inputs, replaying: false, finish: false };
        black_box(core.advance(&input).unwrap().counts.decoded)
    };
    let (mut alone, mut whole) = (0.0, 0.0);
    // in turns, so that both see the same machine
    for (number, chunk) in events.chunks(BATCH).enumerate() {
        let start = Instant::now();
        decode(chunk);
        let decoded = start.elapsed().as_secs_f64();
        let start = Instant::now();
        step(number, chunk);
        let stepped = start.elapsed().as_secs_f64();
        if number >= WARM {
            alone += decoded;
            whole += stepped;
        }
    }
    let count = (MEASURED * BATCH) as f64;
    println!("events of {bytes} bytes, {TENANTS} tenants, {RUNS} runs, 14 metrics, {POLICIES} policies");
    println!("decode alone   {:>10.0} events/s", count / alone);
    println!(
        "whole core     {:>10.0} events/s  ({:.0} % of decoding alone; bars 400,000 and 20 %)",
        count / whole,
        100.0 * alone / whole
    );
}
