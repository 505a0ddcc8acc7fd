//! Decoding alone: 350-byte events as in the reference job, records a second and bytes a second.
//!
//! `cargo bench --bench decode`

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use runwarden::clock::Wall;
use runwarden::telemetry::{Decoder, Dedup, Origin, Settings, redacted_json};

const EVENTS: usize = 4_096;

fn events() -> Vec<Vec<u8>> {
    (0..EVENTS)
        .map(|i| {
            let run = i % 1_000;
            format!(
                concat!(
                    r#"{{"event_id":"tenant-{t:02}-run-{run:05}-{i:06}","event_time":"2026-01-01T00:{m:02}:{s:02}.{i:06}Z","#,
                    r#""event_type":"run.step","run_id":"tenant-{t:02}-run-{run:05}","tenant_id":"tenant-{t:02}","#,
                    r#""agent_id":"agent-{a:02}","api_key_id":"key-{k}","human_actor_id":"user-{k}","project_id":"p-{k}","#,
                    r#""provider":"azure","model":"code-large","input_tokens":{inp},"output_tokens":{out},"#,
                    r#""cost_usd":0.0{i:05},"latency_ms":{lat}}}"#
                ),
                t = i % 100,
                run = run,
                i = i,
                m = i / 60 % 60,
                s = i % 60,
                a = i % 24,
                k = i % 6,
                inp = 1_000 + i,
                out = i % 700,
                lat = 20 + 30 * (i % 700),
            )
            .into_bytes()
        })
        .collect()
}

fn decode(c: &mut Criterion) {
    let events = events();
    let bytes: usize = events.iter().map(Vec::len).sum();
    let topic: Arc<str> = Arc::from("runs.telemetry");
    let now = Wall(1_900_000_000_000_000);
    let origin = |offset| Origin { input: 2, topic: Arc::clone(&topic), partition: 0, offset };
    let mut decoder = Decoder::new(Arc::new(Settings::default()));

    let mut group = c.benchmark_group("decode");
    group.throughput(Throughput::Elements(EVENTS as u64));
    group.bench_function(format!("{}-byte events", bytes / EVENTS), |b| {
        b.iter(|| {
            for (event, offset) in events.iter().zip(0_i64..) {
                decoder.push(origin(offset), offset, Some(event), now);
            }
            black_box(decoder.finish().batch.rows.num_rows())
        });
    });
    for (event, offset) in events.iter().zip(0_i64..) {
        decoder.push(origin(offset), offset, Some(event), now);
    }
    let batch = decoder.finish().batch;
    group.bench_function("encode one row", |b| b.iter(|| black_box(redacted_json(&batch.rows, 7))));
    group.bench_function("dedup", |b| {
        let mut dedup = Dedup::new(300_000_000, 4_000_000);
        let ids: Vec<(String, String)> =
            (0..EVENTS).map(|i| (format!("tenant-{:02}", i % 100), format!("tenant-run-{i:06}"))).collect();
        let mut at = 0;
        b.iter(|| {
            let mut twice = 0;
            for (tenant, id) in &ids {
                at += 100;
                twice += usize::from(dedup.seen(tenant, id, at, at));
            }
            black_box(twice)
        });
    });
    group.finish();
}

criterion_group!(benches, decode);
criterion_main!(benches);
