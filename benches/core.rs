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

#[path = "reference/mod.rs"]
mod reference;
use reference::{POLICIES, RUNS, TENANTS};

const BATCH: usize = 4_096;
const WARM: usize = 10;
const MEASURED: usize = 30;

/// 10,000 events a second.
fn event(n: usize) -> Vec<u8> {
    reference::event(n, 1_800_000_000_000_000 + n as i64 * 100)
}

fn settings() -> Arc<Settings> {
    let texts = Texts { policies: vec![("bench.yaml".into(), reference::policies())], ..Texts::demo() };
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
