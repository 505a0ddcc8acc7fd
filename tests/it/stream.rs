//! The engine against the batch oracle, and against itself under other cuts, restarts and partition counts.
//!
//! More cases: `PROPTEST_CASES=2000 cargo test --release --test it stream::`.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
    UInt32Array,
};
use datafusion::arrow::compute::{concat_batches, take_record_batch};
use datafusion::arrow::datatypes::{DataType, Field, Float64Type, Schema, SchemaRef, TimeUnit};
use datafusion::arrow::util::display::array_value_to_string;
use proptest::prelude::*;
use runwarden::stream::{Compiler, Engine, NoWatch, Output, Query, QueryRows, Settings, Watch, Window};

use crate::support::cases;

mod batch;
mod cuts;
mod edges;
mod grammar;
mod restarts;

use grammar::*;

const S: i64 = 1_000_000;

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("event_time", DataType::Timestamp(TimeUnit::Microsecond, None), true),
        Field::new("tenant_id", DataType::Utf8, true),
        Field::new("k", DataType::Utf8, true),
        Field::new("kind", DataType::Utf8, true),
        Field::new("n", DataType::Int64, true),
        Field::new("f", DataType::Float64, true),
    ]))
}

fn settings(lateness: i64) -> Settings {
    Settings { lateness, all_finals: true, non_negative: vec!["n".into(), "f".into()], ..Settings::default() }
}

#[derive(Debug, Clone)]
struct Row {
    time: Option<i64>,
    tenant: u8,
    key: Option<u8>,
    kind: u8,
    n: Option<i64>,
    f: Option<f64>,
}

const KINDS: [&str; 4] = ["step", "step", "started", "end"];

fn batch(rows: &[Row]) -> RecordBatch {
    let columns: Vec<ArrayRef> = vec![
        Arc::new(rows.iter().map(|r| r.time).collect::<TimestampMicrosecondArray>()),
        Arc::new(rows.iter().map(|r| Some(format!("t{}", r.tenant))).collect::<StringArray>()),
        Arc::new(rows.iter().map(|r| r.key.map(|k| format!("k{k}"))).collect::<StringArray>()),
        Arc::new(rows.iter().map(|r| Some(KINDS[r.kind as usize])).collect::<StringArray>()),
        Arc::new(rows.iter().map(|r| r.n).collect::<Int64Array>()),
        Arc::new(rows.iter().map(|r| r.f).collect::<Float64Array>()),
    ];
    RecordBatch::try_new(schema(), columns).unwrap()
}

/// What is wrong with a row's time.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Odd {
    Not,
    Missing,
    YearsLater,
}

/// Rows in arrival order: time drifts forward, each row up to `disorder` behind it.
fn rows(max: usize, disorder: i64, keys: u8) -> impl Strategy<Value = Vec<Row>> {
    rows_every(3_000_000, max, disorder, keys)
}

fn rows_every(step: i64, max: usize, disorder: i64, keys: u8) -> impl Strategy<Value = Vec<Row>> {
    let row = (
        0i64..step,
        0i64..=disorder,
        (0u8..3, prop::option::weighted(0.9, 0..keys)),
        0u8..4,
        prop::option::weighted(0.9, 0i64..100),
        prop::option::weighted(0.9, 0u16..1000),
        prop::sample::select(
            vec![Odd::Not; 250].into_iter().chain([Odd::Missing; 5]).chain([Odd::YearsLater]).collect::<Vec<_>>(),
        ),
    );
    (-100i64..100, prop::collection::vec(row, 1..max)).prop_map(|(start, list)| {
        let mut now = start * S;
        list.into_iter()
            .map(|(step, behind, (tenant, key), kind, n, f, odd)| {
                now += if odd == Odd::YearsLater { 900_000_000 * S } else { step };
                // quarter seconds: many equal timestamps, exact boundaries
                let time = (now - behind).div_euclid(250_000) * 250_000;
                Row {
                    time: (odd != Odd::Missing).then_some(time),
                    tenant,
                    key,
                    kind,
                    n,
                    f: f.map(|f| f64::from(f) / 8.0),
                }
            })
            .collect()
    })
}

fn compile(sql: &str, settings: &Settings) -> Arc<Query> {
    Arc::new(Compiler::new(schema(), settings).compile("q", sql).unwrap_or_else(|e| panic!("{sql}: {e:?}")))
}

/// Rows as text, sorted, floats rounded to nine digits.
fn texts(batch: &RecordBatch) -> Vec<String> {
    let mut out: Vec<String> = (0..batch.num_rows())
        .map(|row| {
            batch
                .columns()
                .iter()
                .map(|c| match c.as_primitive_opt::<Float64Type>() {
                    Some(f) if f.is_valid(row) => format!("{:.6e}", f.value(row)),
                    _ => array_value_to_string(c, row).unwrap(),
                })
                .collect::<Vec<_>>()
                .join("|")
        })
        .collect();
    out.sort();
    out
}

fn run_batch(query: &Query, rows: &[Row]) -> RecordBatch {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(query.run_batch(vec![batch(rows)])).unwrap()
}

fn finals(query: usize, schema: &SchemaRef, outputs: &[Output]) -> RecordBatch {
    let parts: Vec<&RecordBatch> =
        outputs.iter().flat_map(|o| &o.closed).filter(|c| c.query == query).map(|c| &c.rows).collect();
    concat_batches(schema, parts).unwrap()
}

fn cut(rows: &[Row], cuts: &[usize]) -> Vec<(usize, usize)> {
    let mut bounds: Vec<usize> = cuts.iter().map(|c| c % (rows.len() + 1)).collect();
    bounds.extend([0, rows.len()]);
    bounds.sort_unstable();
    bounds.dedup();
    bounds.windows(2).map(|w| (w[0], w[1])).collect()
}

fn feed(engine: &mut Engine, rows: &[Row], cuts: &[usize], watch: &mut dyn Watch) -> Vec<(usize, Output)> {
    let whole = batch(rows);
    cut(rows, cuts)
        .into_iter()
        .map(|(from, to)| {
            let positions: Vec<i64> = (from as i64..to as i64).collect();
            (from, engine.push(&whole.slice(from, to - from), &positions, watch).unwrap())
        })
        .collect()
}

/// All finals with the input row that closed each, late rows and empties, as text: equal for every cut.
fn story(outputs: &[(usize, Output)]) -> Vec<String> {
    let mut out = Vec::new();
    let row =
        |from: usize, at: u32| if at == u32::MAX { "end".to_owned() } else { format!("{:05}", from + at as usize) };
    for (from, o) in outputs {
        for c in &o.closed {
            for i in 0..c.at.len() {
                let text = c
                    .rows
                    .columns()
                    .iter()
                    .map(|col| array_value_to_string(col, i).unwrap())
                    .collect::<Vec<_>>()
                    .join("|");
                out.push(format!(
                    "{} closed {} {text} {:?} {:?} {}",
                    row(*from, c.at[i]),
                    c.query,
                    c.window[i],
                    c.evidence[i],
                    c.complete[i]
                ));
            }
        }
        for e in &o.empty {
            for i in 0..e.at.len() {
                let key = e
                    .keys
                    .columns()
                    .iter()
                    .map(|col| array_value_to_string(col, i).unwrap())
                    .collect::<Vec<_>>()
                    .join("|");
                out.push(format!("{} empty {} {key} {:?}", row(*from, e.at[i]), e.query, e.window[i]));
            }
        }
        for l in &o.late {
            out.push(format!("{} late {:?} {}", row(*from, l.row), l.queries, l.everywhere));
        }
    }
    out.sort();
    out
}

/// Asks for the history of every group.
struct All;
impl Watch for All {
    fn select(&mut self, early: &[QueryRows]) -> Vec<(usize, usize)> {
        early.iter().enumerate().flat_map(|(e, rows)| (0..rows.group.len()).map(move |r| (e, r))).collect()
    }
}

fn traces(outputs: &[(usize, Output)]) -> Vec<String> {
    let mut out = Vec::new();
    for (from, o) in outputs {
        for t in &o.traces {
            for i in 0..t.steps.at.len() {
                let text = t
                    .steps
                    .rows
                    .columns()
                    .iter()
                    .map(|c| array_value_to_string(c, i).unwrap())
                    .collect::<Vec<_>>()
                    .join("|");
                out.push(format!(
                    "{:05} {} {text} {:?} {:?}",
                    from + t.steps.at[i] as usize,
                    t.query,
                    t.steps.window[i],
                    t.steps.evidence[i]
                ));
            }
        }
    }
    out.sort();
    out
}

fn number(column: &ArrayRef, row: usize) -> f64 {
    if column.is_null(row) { -1.0 } else { array_value_to_string(column, row).unwrap().parse().unwrap() }
}

fn save(engine: &mut Engine, store: &mut BTreeMap<Vec<u8>, Vec<u8>>) {
    for (key, value) in engine.take_changes() {
        match value {
            Some(value) => {
                store.insert(key, value);
            }
            None => assert!(store.remove(&key).is_some(), "only what was saved is deleted"),
        }
    }
}

fn one(time: i64, key: u8, kind: u8) -> Row {
    Row { time: Some(time), tenant: 0, key: Some(key), kind, n: Some(1), f: None }
}
