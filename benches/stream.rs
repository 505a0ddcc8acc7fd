//! What pushing costs, per window kind and for all default metrics, and how work per event grows with window length.
//!
//! The reference job: 100 tenants, 10,000 live runs, batches of 8,192 rows, early results on.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BatchSize, Criterion, Throughput, criterion_group};
use datafusion::arrow::array::{
    ArrayRef, Decimal128Array, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
    new_null_array,
};
use runwarden::stream::{Compiler, Engine, NoWatch, Query, Settings};
use runwarden::telemetry::schema::{SCHEMA, col};

const ROWS: usize = 8_192;
const SECOND: i64 = 1_000_000;

/// A small generator: the same rows in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// `count` batches of events, `rate` a second, up to two seconds out of order.
fn batches(count: usize, rate: i64) -> Vec<RecordBatch> {
    let mut dice = Dice(7);
    let mut now = 1_800_000_000 * SECOND;
    (0..count)
        .map(|_| {
            let runs: Vec<u64> = (0..ROWS).map(|_| dice.below(10_000)).collect();
            let kinds: Vec<&str> = (0..ROWS)
                .map(|_| match dice.below(40) {
                    0 => "run.started",
                    1 => "run.completed",
                    2 => "run.failed",
                    3 => "agent.heartbeat",
                    _ => "run.step",
                })
                .collect();
            let times: Vec<i64> = (0..ROWS)
                .map(|_| {
                    now += SECOND / rate;
                    now - i64::try_from(dice.below(2_000_000)).unwrap_or(0)
                })
                .collect();
            let text = |f: &dyn Fn(u64) -> String| -> ArrayRef {
                Arc::new(runs.iter().map(|r| Some(f(*r))).collect::<StringArray>())
            };
            let mut columns: Vec<ArrayRef> =
                SCHEMA.fields().iter().map(|f| new_null_array(f.data_type(), ROWS)).collect();
            columns[col::EVENT_TIME] = Arc::new(TimestampMicrosecondArray::from(times));
            columns[col::EVENT_TYPE] = Arc::new(StringArray::from(kinds));
            columns[col::TENANT_ID] = text(&|r| format!("tenant-{:03}", r % 100));
            columns[col::RUN_ID] = text(&|r| format!("run-{r:08}-0000-4000-8000-000000000000"));
            columns[col::AGENT_ID] = text(&|r| format!("agent-{:04}", r % 1_000));
            columns[col::API_KEY_ID] = text(&|r| format!("key-{:04}", r % 400));
            columns[col::HUMAN_ACTOR_ID] = text(&|r| format!("human-{:04}", r % 2_000));
            columns[col::PROVIDER] = text(&|r| format!("provider-{}", r % 5));
            columns[col::TOTAL_TOKENS] =
                Arc::new((0..ROWS).map(|_| i64::try_from(dice.below(4_000)).ok()).collect::<Int64Array>());
            columns[col::LATENCY_MS] =
                Arc::new((0..ROWS).map(|_| i64::try_from(dice.below(9_000)).ok()).collect::<Int64Array>());
            let cost: Decimal128Array = (0..ROWS).map(|_| Some(i128::from(dice.below(1_000_000)))).collect();
            columns[col::COST_USD] =
                Arc::new(cost.with_precision_and_scale(18, 9).unwrap_or_else(|_| unreachable!("18 digits hold it")));
            columns[col::COST_PROVENANCE] = text(&|_| "reported".to_owned());
            let scores: Float64Array = (0..ROWS).map(|_| Some(dice.below(1_000) as f64 / 1_000.0)).collect();
            columns[col::RISK_SCORE] = Arc::new(scores.clone());
            columns[col::ANOMALY_SCORE] = Arc::new(scores);
            RecordBatch::try_new(Arc::clone(&SCHEMA), columns)
                .unwrap_or_else(|e| unreachable!("the columns fit the schema: {e}"))
        })
        .collect()
}

fn compile(name: &str, sql: &str) -> Arc<Query> {
    let compiler = Compiler::new(Arc::clone(&SCHEMA), &Settings::default());
    Arc::new(compiler.compile(name, sql).unwrap_or_else(|e| unreachable!("{e}")))
}

fn engine(queries: &[Arc<Query>]) -> Engine {
    Engine::new(queries.to_vec(), Settings::default()).unwrap_or_else(|e| unreachable!("{e}"))
}

fn feed(engine: &mut Engine, batches: &[RecordBatch], positions: &[i64]) -> usize {
    let mut results = 0;
    for batch in batches {
        let out = engine.push(batch, positions, &mut NoWatch).unwrap_or_else(|e| unreachable!("{e}"));
        results += out.early.iter().chain(&out.closed).map(|r| r.at.len()).sum::<usize>();
    }
    results
}

fn metric_files() -> Vec<(String, String)> {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/queries/metrics");
    let mut files: Vec<(String, String)> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|e| {
            Some((e.path().file_stem()?.to_string_lossy().into_owned(), std::fs::read_to_string(e.path()).ok()?))
        })
        .collect();
    files.sort();
    files
}

fn push(c: &mut Criterion) {
    let group_by = "GROUP BY tenant_id, agent_id, window_start, window_end";
    let select = "SELECT tenant_id, agent_id, window_start, window_end, sum(total_tokens) AS value FROM";
    let mut jobs: Vec<(&str, Vec<Arc<Query>>)> = vec![
        (
            "tumble_1m_by_agent",
            vec![compile("t", &format!("{select} tumble(telemetry, event_time, INTERVAL '1 minute') {group_by}"))],
        ),
        (
            "hop_10s_5m_by_agent",
            vec![compile(
                "h",
                &format!("{select} hop(telemetry, event_time, INTERVAL '10 seconds', INTERVAL '5 minutes') {group_by}"),
            )],
        ),
    ];
    let metrics: Vec<(String, Arc<Query>)> =
        metric_files().into_iter().map(|(name, sql)| (name.clone(), compile(&name, &sql))).collect();
    jobs.push(("run_tokens", metrics.iter().filter(|(n, _)| n == "run_tokens").map(|(_, q)| Arc::clone(q)).collect()));
    jobs.push(("all_metrics", metrics.into_iter().map(|(_, q)| q).collect()));
    let input = batches(48, 10_000);
    let positions: Vec<i64> = (0..ROWS as i64).collect();
    let mut group = c.benchmark_group("push");
    group.sample_size(10).measurement_time(Duration::from_secs(8)).throughput(Throughput::Elements((32 * ROWS) as u64));
    for (name, queries) in jobs {
        group.bench_function(name, |b| {
            b.iter_batched(
                || {
                    let mut engine = engine(&queries);
                    feed(&mut engine, &input[..16], &positions);
                    engine
                },
                |mut engine| black_box(feed(&mut engine, &input[16..], &positions)),
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

/// Rows of 100 dense keys (nine in ten rows) and 10,000 sparse ones.
fn dense_and_sparse(count: usize, rate: i64) -> Vec<RecordBatch> {
    let mut dice = Dice(11);
    batches(count, rate)
        .into_iter()
        .map(|batch| {
            let keys: StringArray = (0..ROWS)
                .map(|_| {
                    let sparse = dice.below(10) == 0;
                    Some(if sparse {
                        format!("sparse-{}", dice.below(10_000))
                    } else {
                        format!("dense-{}", dice.below(100))
                    })
                })
                .collect();
            let tenants: StringArray = (0..ROWS).map(|_| Some("tenant")).collect();
            let mut columns = batch.columns().to_vec();
            columns[col::AGENT_ID] = Arc::new(keys);
            columns[col::TENANT_ID] = Arc::new(tenants);
            RecordBatch::try_new(batch.schema(), columns).unwrap_or_else(|e| unreachable!("{e}"))
        })
        .collect()
}

/// Prints the time per event of a 24-hour hop over that of a 1-minute hop, both sliding by 10 s; the bar is 1.5.
fn window_length() {
    let query = |size: &str| {
        compile(
            "w",
            &format!(
                "SELECT tenant_id, agent_id, window_start, window_end, sum(total_tokens) AS value FROM hop(telemetry, event_time, \
                 INTERVAL '10 seconds', INTERVAL '{size}') GROUP BY tenant_id, agent_id, window_start, window_end"
            ),
        )
    };
    // five events a second: a batch is half an hour, a day is 53 batches
    let input = dense_and_sparse(120, 5);
    let positions: Vec<i64> = (0..ROWS as i64).collect();
    let cost = |size: &str| {
        let mut best = f64::MAX;
        for _ in 0..3 {
            let mut engine = engine(&[query(size)]);
            feed(&mut engine, &input[..60], &positions);
            let start = Instant::now();
            black_box(feed(&mut engine, &input[60..], &positions));
            best = best.min(start.elapsed().as_secs_f64() / (60 * ROWS) as f64);
        }
        best
    };
    // and at the reference rate, where a batch is under a second
    let fast = dense_and_sparse(60, 10_000);
    let warm = dense_and_sparse(60, 5);
    let reference = |size: &str| {
        let mut best = f64::MAX;
        for _ in 0..3 {
            let mut engine = engine(&[query(size)]);
            feed(&mut engine, &warm, &positions);
            let last = engine.watermarks().next().map_or(0, |w| w.2);
            let shifted: Vec<RecordBatch> =
                fast.iter().map(|b| shift(b, last + 3 * SECOND - 1_800_000_000 * SECOND)).collect();
            let start = Instant::now();
            black_box(feed(&mut engine, &shifted, &positions));
            best = best.min(start.elapsed().as_secs_f64() / (60 * ROWS) as f64);
        }
        best
    };
    for (name, long, short) in [
        ("5 events/s", cost("24 hours"), cost("1 minute")),
        ("10,000 events/s", reference("24 hours"), reference("1 minute")),
    ] {
        println!(
            "window length, {name}: 24 h {:.0} ns, 1 min {:.0} ns per event, ratio {:.2} (bar 1.5)",
            long * 1e9,
            short * 1e9,
            long / short
        );
    }
}

fn shift(batch: &RecordBatch, by: i64) -> RecordBatch {
    use datafusion::arrow::array::AsArray;
    use datafusion::arrow::datatypes::TimestampMicrosecondType;
    let times = batch.column(col::EVENT_TIME).as_primitive::<TimestampMicrosecondType>();
    let mut columns = batch.columns().to_vec();
    columns[col::EVENT_TIME] =
        Arc::new(times.values().iter().map(|t| Some(t + by)).collect::<TimestampMicrosecondArray>());
    RecordBatch::try_new(batch.schema(), columns).unwrap_or_else(|e| unreachable!("{e}"))
}

/// Prints what a checkpoint every five seconds takes per event of the reference job; events are 350 bytes.
fn checkpoint_size() {
    let metrics: Vec<Arc<Query>> = metric_files().into_iter().map(|(name, sql)| compile(&name, &sql)).collect();
    let input = batches(24, 10_000);
    let positions: Vec<i64> = (0..ROWS as i64).collect();
    let mut engine = engine(&metrics);
    let (mut bytes, mut records, mut events) = (0, 0, 0);
    for (i, chunk) in input.chunks(6).enumerate() {
        feed(&mut engine, chunk, &positions);
        let start = Instant::now();
        let changes = engine.take_changes();
        // the first ones hold what every later one only changes
        if i >= 2 {
            bytes += changes.iter().map(|(k, v)| k.len() + v.as_ref().map_or(0, Vec::len)).sum::<usize>();
            records += changes.len();
            events += chunk.len() * ROWS;
            println!("checkpoint: {} records in {:.1} ms", changes.len(), start.elapsed().as_secs_f64() * 1e3);
        }
    }
    println!(
        "checkpoint: {:.1} bytes per event ({:.1} % of 350), {:.2} records per event, {:.1} MB of state",
        bytes as f64 / events as f64,
        bytes as f64 / events as f64 / 3.5,
        records as f64 / events as f64,
        engine.stats().state_bytes as f64 / 1e6
    );
}

criterion_group!(benches, push);

fn main() {
    benches();
    checkpoint_size();
    window_length();
}
