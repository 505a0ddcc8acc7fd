//! The engine against the batch oracle, and against itself under other cuts.

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
use runwarden::stream::{Compiler, Engine, NoWatch, Output, Query, QueryRows, Settings, Watch};

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

/// Rows in arrival order: time drifts forward, each row up to `disorder` behind it.
fn rows(max: usize, disorder: i64, keys: u8) -> impl Strategy<Value = Vec<Row>> {
    rows_every(3_000_000, max, disorder, keys)
}

fn rows_every(step: i64, max: usize, disorder: i64, keys: u8) -> impl Strategy<Value = Vec<Row>> {
    let row = (
        0i64..step,
        0i64..=disorder,
        (0u8..2, prop::option::weighted(0.9, 0..keys)),
        0u8..4,
        prop::option::weighted(0.9, 0i64..100),
        prop::option::weighted(0.9, 0u16..1000),
        prop::bool::weighted(0.02),
    );
    (-100i64..100, prop::collection::vec(row, 1..max)).prop_map(|(start, list)| {
        let mut now = start * S;
        list.into_iter()
            .map(|(step, behind, (tenant, key), kind, n, f, missing)| {
                now += step;
                // quarter seconds: many equal timestamps, exact boundaries
                let time = (now - behind).div_euclid(250_000) * 250_000;
                Row { time: (!missing).then_some(time), tenant, key, kind, n, f: f.map(|f| f64::from(f) / 8.0) }
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

const WINDOWS: [&str; 6] = [
    "tumble(telemetry, event_time, INTERVAL '10 seconds')",
    "tumble(telemetry, event_time, INTERVAL '7 seconds')",
    "hop(telemetry, event_time, INTERVAL '2 seconds', INTERVAL '10 seconds')",
    "hop(telemetry, event_time, INTERVAL '4 seconds', INTERVAL '10 seconds')",
    "hop(telemetry, event_time, INTERVAL '10 seconds', INTERVAL '4 seconds')",
    "hop(telemetry, event_time, INTERVAL '1 seconds', INTERVAL '90 seconds')",
];
const SESSIONS: [&str; 4] = [
    "session(telemetry, event_time, INTERVAL '3 seconds')",
    "session(telemetry, event_time, INTERVAL '3 seconds', kind = 'end')",
    "session(telemetry, event_time, INTERVAL '20 seconds', kind = 'end')",
    "session(telemetry, event_time, INTERVAL '1 seconds', kind IN ('end', 'started'))",
];
const VALUES: [&str; 14] = [
    "count(*)",
    "sum(n)",
    "sum(f)",
    "max(n)",
    "min(f)",
    "avg(n)",
    "count(distinct kind)",
    "count(distinct n)",
    "sum(n) FILTER (WHERE kind = 'step')",
    "median(f)",
    "approx_distinct(n)",
    "bool_or(n > 50)",
    "coalesce(sum(n), 0) + count(*) * 2",
    "quantile(f, 0.95)",
];
const WHERES: [&str; 4] = ["", "WHERE k IS NOT NULL", "WHERE kind = 'step' AND n > 10", "WHERE k <> 'k1'"];
const KEYS: [&str; 3] = ["tenant_id", "tenant_id, k", "tenant_id, k, n % 3"];
const HAVINGS: [&str; 4] =
    ["", "HAVING count(*) > 2", "HAVING sum(n) < 100", "HAVING window_end > TIMESTAMP '1970-01-01T00:00:20'"];

fn sql(windows: &'static [&'static str]) -> impl Strategy<Value = String> {
    (
        prop::sample::select(windows),
        prop::sample::subsequence(VALUES.to_vec(), 1..4),
        prop::sample::select(&WHERES[..]),
        prop::sample::select(&KEYS[..]),
        prop::sample::select(&HAVINGS[..]),
    )
        .prop_map(|(window, values, filter, keys, having)| {
            let extra: Vec<String> = values.iter().enumerate().skip(1).map(|(i, v)| format!(", {v} AS x{i}")).collect();
            format!(
                "SELECT {keys}, window_start, window_end, {} AS value{} FROM {window} {filter} GROUP BY {keys}, window_start, window_end {having}",
                values[0],
                extra.concat()
            )
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn finals_of_panes_equal_the_batch_query(
        rows in rows(120, 20 * S, 4),
        list in prop::collection::vec(sql(&WINDOWS), 1..4),
        cuts in prop::collection::vec(0usize..1000, 0..6),
    ) {
        let settings = settings(20 * S);
        let queries: Vec<_> = list.iter().map(|q| compile(q, &settings)).collect();
        let mut engine = Engine::new(queries.clone(), settings).unwrap();
        let mut outputs: Vec<Output> = feed(&mut engine, &rows, &cuts, &mut NoWatch).into_iter().map(|o| o.1).collect();
        outputs.push(engine.close_all().unwrap());
        prop_assert!(outputs.iter().all(|o| o.late.is_empty()), "all rows are within the lateness");
        for (i, query) in queries.iter().enumerate() {
            let got = texts(&finals(i, query.output_schema(), &outputs));
            let want = texts(&run_batch(query, &rows));
            prop_assert_eq!(got, want, "{}", list[i]);
        }
        prop_assert_eq!(engine.stats().keys, 0, "everything closed and freed");
        prop_assert!(engine.stats().queries.iter().all(|q| q.open == 0 && q.keys == 0));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn finals_of_sessions_equal_the_batch_query(
        rows in rows(100, 20 * S, 3),
        list in prop::collection::vec(sql(&SESSIONS), 1..4),
        cuts in prop::collection::vec(0usize..1000, 0..6),
        lateness in prop::sample::select(vec![21 * S, 60 * S]),
    ) {
        let settings = settings(lateness);
        let queries: Vec<_> = list.iter().map(|q| compile(q, &settings)).collect();
        let mut engine = Engine::new(queries.clone(), settings).unwrap();
        let mut outputs: Vec<Output> = feed(&mut engine, &rows, &cuts, &mut NoWatch).into_iter().map(|o| o.1).collect();
        outputs.push(engine.close_all().unwrap());
        prop_assert!(outputs.iter().all(|o| o.late.is_empty()), "all rows are within the lateness");
        for (i, query) in queries.iter().enumerate() {
            let got = texts(&finals(i, query.output_schema(), &outputs));
            let want = texts(&run_batch(query, &rows));
            prop_assert_eq!(got, want, "{}", list[i]);
        }
        prop_assert!(engine.stats().queries.iter().all(|q| q.open == 0));
    }

    #[test]
    fn sessions_of_the_rows_that_were_not_late_equal_the_batch_query(
        rows in rows(150, 20 * S, 2),
        window in prop::sample::select(&SESSIONS[..]),
        cuts in prop::collection::vec(0usize..1000, 0..6),
        lateness in prop::sample::select(vec![0, S, 5 * S]),
    ) {
        let settings = settings(lateness);
        let sql = format!("SELECT tenant_id, k, window_start, window_end, sum(n) AS value, count(*) AS c FROM {window} GROUP BY tenant_id, k, window_start, window_end");
        let query = compile(&sql, &settings);
        let mut engine = Engine::new(vec![Arc::clone(&query)], settings).unwrap();
        let mut outputs = feed(&mut engine, &rows, &cuts, &mut NoWatch);
        outputs.push((0, engine.close_all().unwrap()));
        let late: Vec<usize> = outputs.iter().flat_map(|(from, o)| o.late.iter().map(move |l| from + l.row as usize)).collect();
        let kept: Vec<Row> = rows.iter().enumerate().filter(|(i, _)| !late.contains(i)).map(|(_, r)| r.clone()).collect();
        let outputs: Vec<Output> = outputs.into_iter().map(|o| o.1).collect();
        let got = texts(&finals(0, query.output_schema(), &outputs));
        prop_assert_eq!(got, texts(&run_batch(&query, &kept)));
    }

    #[test]
    fn cuts_of_the_input_change_no_session(
        rows in rows(80, 12 * S, 2),
        list in prop::collection::vec(exact_sql(&SESSIONS), 1..4),
        cuts in prop::collection::vec(0usize..1000, 0..6),
        lateness in prop::sample::select(vec![0, 2 * S, 8 * S, 30 * S]),
    ) {
        check_cuts(&list, &rows, &cuts, lateness, true)?;
    }
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

fn check_cuts(
    list: &[String],
    rows: &[Row],
    cuts: &[usize],
    lateness: i64,
    all_finals: bool,
) -> Result<(), TestCaseError> {
    let settings = Settings { all_finals, ..settings(lateness) };
    let queries: Vec<_> = list.iter().map(|q| compile(q, &settings)).collect();
    let run = |cuts: &[usize]| {
        let mut engine = Engine::new(queries.clone(), settings.clone()).unwrap();
        let mut outputs = feed(&mut engine, rows, cuts, &mut All);
        outputs.push((0, engine.close_all().unwrap()));
        outputs
    };
    let ones: Vec<usize> = (0..rows.len()).collect();
    let by_one = run(&ones);
    for other in [run(&[]), run(cuts)] {
        prop_assert_eq!(story(&by_one), story(&other));
        prop_assert_eq!(traces(&by_one), traces(&other));
    }
    // early results of single rows are the largest value of the row's trace
    for (_, o) in &by_one {
        for early in &o.early {
            let value = queries[early.query].value_column().unwrap();
            for i in 0..early.at.len() {
                let best = o
                    .traces
                    .iter()
                    .filter(|t| t.query == early.query && t.group == early.group[i])
                    .flat_map(|t| {
                        let hop = queries[t.query].window().is_hop();
                        (0..t.steps.at.len())
                            .filter(move |s| hop || t.steps.window[*s] == early.window[i])
                            .map(|s| (number(t.steps.rows.column(value), s), t.steps.window[s]))
                    })
                    .reduce(|a, b| if b.0 > a.0 || (b.0 == a.0 && b.1.1 < a.1.1) { b } else { a });
                prop_assert_eq!(best, Some((number(early.rows.column(value), i), early.window[i])));
            }
        }
    }
    Ok(())
}

fn number(column: &ArrayRef, row: usize) -> f64 {
    if column.is_null(row) { -1.0 } else { array_value_to_string(column, row).unwrap().parse().unwrap() }
}

const EXACT: [&str; 7] =
    ["count(*)", "sum(n)", "max(n)", "count(distinct n)", "sum(f)", "quantile(f, 0.5)", "coalesce(sum(n), 0) + 1"];

fn exact_sql(windows: &'static [&'static str]) -> impl Strategy<Value = String> {
    (prop::sample::select(windows), prop::sample::select(&EXACT[..]), prop::sample::select(&WHERES[..]), prop::sample::select(&KEYS[..2]), prop::sample::select(&HAVINGS[..2]))
        .prop_map(|(window, value, filter, keys, having)| {
            format!("SELECT {keys}, window_start, window_end, {value} AS value FROM {window} {filter} GROUP BY {keys}, window_start, window_end {having}")
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn cuts_of_the_input_change_nothing(
        rows in rows(80, 25 * S, 3),
        list in prop::collection::vec(exact_sql(&WINDOWS), 1..4),
        cuts in prop::collection::vec(0usize..1000, 0..6),
        lateness in prop::sample::select(vec![0, 3 * S, 8 * S]),
        all_finals: bool,
    ) {
        check_cuts(&list, &rows, &cuts, lateness, all_finals)?;
    }

    #[test]
    fn a_late_row_counts_in_the_windows_still_open(
        rows in rows(120, 30 * S, 2),
        lateness in prop::sample::select(vec![0, 2 * S, 9 * S]),
        cuts in prop::collection::vec(0usize..1000, 0..6),
    ) {
        let settings = settings(lateness);
        let (slide, size) = (2 * S, 10 * S);
        let query = compile("SELECT tenant_id, k, window_start, window_end, count(*) AS value FROM \
            hop(telemetry, event_time, INTERVAL '2 seconds', INTERVAL '10 seconds') GROUP BY tenant_id, k, window_start, window_end", &settings);
        let mut engine = Engine::new(vec![Arc::clone(&query)], settings).unwrap();
        let mut outputs: Vec<Output> = feed(&mut engine, &rows, &cuts, &mut NoWatch).into_iter().map(|o| o.1).collect();
        outputs.push(engine.close_all().unwrap());
        let mut high: BTreeMap<u8, i64> = BTreeMap::new();
        let mut want: BTreeMap<(String, i64), i64> = BTreeMap::new();
        let mut late = 0;
        for row in &rows {
            let Some(time) = row.time else { continue };
            let watermark = high.get(&row.tenant).map(|h| h - lateness);
            let mut start = time.div_euclid(slide) * slide;
            let mut open = 0;
            while start > time - size {
                if watermark.is_none_or(|w| start + size > w) {
                    open += 1;
                    *want.entry((format!("t{}|{}", row.tenant, row.key.map(|k| format!("k{k}")).unwrap_or_default()), start + size)).or_default() += 1;
                }
                start -= slide;
            }
            late += usize::from(open == 0);
            let h = high.entry(row.tenant).or_insert(time);
            *h = (*h).max(time);
        }
        let got: BTreeMap<(String, i64), i64> = outputs.iter().flat_map(|o| &o.closed).flat_map(|c| (0..c.at.len()).map(move |i| {
            let text = |n: usize| array_value_to_string(c.rows.column(n), i).unwrap();
            ((format!("{}|{}", text(0), text(1)), c.window[i].1), text(4).parse().unwrap())
        })).collect();
        prop_assert_eq!(got, want);
        prop_assert_eq!(outputs.iter().map(|o| o.late.len()).sum::<usize>(), late);
    }
}

#[test]
fn a_row_is_taken_late_or_without_time() {
    let settings = settings(0);
    let query = compile(
        "SELECT tenant_id, window_start, window_end, count(*) AS value FROM tumble(telemetry, event_time, INTERVAL '10 seconds') GROUP BY tenant_id, window_start, window_end",
        &settings,
    );
    let mut engine = Engine::new(vec![query], settings).unwrap();
    let row = |time: Option<i64>| Row { time, tenant: 0, key: None, kind: 0, n: None, f: None };
    let rows = [row(Some(5 * S)), row(None), row(Some(10 * S)), row(Some(9 * S)), row(Some(10 * S))];
    let out = engine.push(&batch(&rows), &[0, 1, 2, 3, 4], &mut NoWatch).unwrap();
    assert_eq!(out.null_time, vec![1]);
    assert_eq!(out.late.len(), 1);
    assert_eq!((out.late[0].row, out.late[0].everywhere), (3, true), "9 s belongs to a window that closed at 10 s");
    assert_eq!(out.closed[0].at, vec![2], "the row at 10 s closes [0, 10)");
    let closed = engine.advance("t0", 20 * S).unwrap();
    assert_eq!(closed.closed[0].evidence, vec![(2, 4)]);
    assert_eq!(closed.freed.len(), 1);
    let _ = take_record_batch(&closed.closed[0].rows, &UInt32Array::from(vec![0])).unwrap();
}

/// Pushes `rows`, moving to a new engine restored from checkpoints before each of the rows in `crashes`.
fn run_with_crashes(
    queries: &[Arc<Query>],
    settings: &Settings,
    rows: &[Row],
    crashes: &[usize],
) -> Vec<(usize, Output)> {
    let mut engine = Engine::new(queries.to_vec(), settings.clone()).unwrap();
    let mut store: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    let mut outputs = Vec::new();
    let whole = batch(rows);
    for (from, to) in cut(rows, crashes) {
        let positions: Vec<i64> = (from as i64..to as i64).collect();
        outputs.push((from, engine.push(&whole.slice(from, to - from), &positions, &mut All).unwrap()));
        save(&mut engine, &mut store);
        let mut next = Engine::new(queries.to_vec(), settings.clone()).unwrap();
        for (key, value) in &store {
            next.restore(key, value).unwrap();
        }
        next.finish_restore().unwrap();
        assert!(next.take_changes().is_empty(), "nothing changed by restoring");
        let open = |e: &Engine| e.stats().queries.iter().map(|q| (q.open, q.keys)).collect::<Vec<_>>();
        assert_eq!(open(&next), open(&engine));
        next.mark_all_dirty();
        let again: BTreeMap<_, _> = next.take_changes().into_iter().map(|(k, v)| (k, v.unwrap())).collect();
        assert_eq!(again, store, "what is restored is what was saved");
        engine = next;
    }
    outputs.push((0, engine.close_all().unwrap()));
    save(&mut engine, &mut store);
    assert!(store.keys().all(|k| k[0] != b'p'), "closed panes leave no record");
    outputs
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

const SOME: [&str; 6] = [WINDOWS[0], WINDOWS[2], WINDOWS[5], SESSIONS[0], SESSIONS[1], SESSIONS[2]];

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_restored_engine_goes_on_as_if_nothing_happened(
        rows in rows(70, 12 * S, 3),
        list in prop::collection::vec(exact_sql(&SOME), 1..4),
        crashes in prop::collection::vec(0usize..1000, 0..5),
        lateness in prop::sample::select(vec![0, 3 * S, 15 * S]),
        all_finals: bool,
    ) {
        let settings = Settings { all_finals, ..settings(lateness) };
        // the state of count(distinct) is a set without an order
        let list: Vec<String> = list.into_iter().map(|q| q.replace("count(distinct n)", "min(n)")).collect();
        let queries: Vec<_> = list.iter().map(|q| compile(q, &settings)).collect();
        let mut engine = Engine::new(queries.clone(), settings.clone()).unwrap();
        let mut plain = feed(&mut engine, &rows, &[], &mut All);
        plain.push((0, engine.close_all().unwrap()));
        let crashed = run_with_crashes(&queries, &settings, &rows, &crashes);
        prop_assert_eq!(story(&plain), story(&crashed));
        prop_assert_eq!(traces(&plain), traces(&crashed));
    }

    #[test]
    fn damaged_state_is_refused_and_never_panics(
        rows in rows(30, 5 * S, 2),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0u8..8, any::<bool>()), 1..20),
    ) {
        let settings = settings(10 * S);
        let list = [
            format!("SELECT tenant_id, k, window_start, window_end, sum(n) AS value, count(distinct kind) AS d FROM {} GROUP BY tenant_id, k, window_start, window_end", SESSIONS[1]),
            format!("SELECT tenant_id, window_start, window_end, quantile(f, 0.5) AS value, array_agg(n) AS a FROM {} GROUP BY tenant_id, window_start, window_end", WINDOWS[2]),
        ];
        let queries: Vec<_> = list.iter().map(|q| compile(q, &settings)).collect();
        let mut engine = Engine::new(queries.clone(), settings.clone()).unwrap();
        feed(&mut engine, &rows, &[], &mut NoWatch);
        prop_assume!(rows.iter().any(|r| r.time.is_some()));
        let saved: Vec<(Vec<u8>, Vec<u8>)> = engine.take_changes().into_iter().map(|(k, v)| (k, v.unwrap())).collect();
        for (record, at, bit, truncate) in damage {
            let (key, value) = &saved[record.index(saved.len())];
            let mut value = value.clone();
            let at = at.index(value.len());
            if truncate { value.truncate(at) } else { value[at] ^= 1 << bit }
            let mut next = Engine::new(queries.clone(), settings.clone()).unwrap();
            prop_assert!(next.restore(key, &value).is_err());
        }
        // and one record missing is noticed
        for missing in (0..saved.len()).filter(|i| saved[*i].0[0] != b'l').take(6) {
            let mut next = Engine::new(queries.clone(), settings.clone()).unwrap();
            for (i, (key, value)) in saved.iter().enumerate() {
                if i != missing {
                    next.restore(key, value).unwrap();
                }
            }
            prop_assert!(next.finish_restore().is_err(), "{:?}", saved[missing].0);
        }
    }
}

#[test]
fn an_added_query_is_incomplete_until_its_first_full_window_and_the_others_keep_their_state() {
    let settings = settings(0);
    let sql = |value: &str| {
        format!(
            "SELECT tenant_id, window_start, window_end, {value} AS value FROM {} GROUP BY tenant_id, window_start, window_end",
            WINDOWS[0]
        )
    };
    let (count, sum) = (compile(&sql("count(*)"), &settings), compile(&sql("sum(n)"), &settings));
    let row = |time: i64| Row { time: Some(time * S), tenant: 0, key: None, kind: 0, n: Some(1), f: None };
    let mut first = Engine::new(vec![Arc::clone(&count)], settings.clone()).unwrap();
    first.push(&batch(&[row(1), row(2)]), &[0, 1], &mut NoWatch).unwrap();
    let mut second = Engine::new(vec![sum, count], settings.clone()).unwrap();
    for (key, value) in first.take_changes() {
        second.restore(&key, &value.unwrap()).unwrap();
    }
    second.finish_restore().unwrap();
    let out = second.push(&batch(&[row(3), row(11), row(21)]), &[2, 3, 4], &mut NoWatch).unwrap();
    let flat: Vec<_> = out
        .closed
        .iter()
        .flat_map(|c| (0..c.at.len()).map(move |i| (c.query, number(c.rows.column(3), i), c.complete[i])))
        .collect();
    assert_eq!(flat, vec![(0, 1.0, false), (0, 1.0, true), (1, 3.0, true), (1, 1.0, true)]);
}

#[test]
fn a_removed_query_leaves_tombstones_and_the_rest_alone() {
    let settings = settings(0);
    let sql = |window: &str| {
        format!(
            "SELECT tenant_id, window_start, window_end, count(*) AS value FROM {window} GROUP BY tenant_id, window_start, window_end"
        )
    };
    let (tumble, session) = (compile(&sql(WINDOWS[0]), &settings), compile(&sql(SESSIONS[0]), &settings));
    let row = Row { time: Some(S), tenant: 0, key: None, kind: 0, n: Some(1), f: None };
    let mut both = Engine::new(vec![Arc::clone(&tumble), session], settings.clone()).unwrap();
    both.push(&batch(&[row]), &[0], &mut NoWatch).unwrap();
    let saved = both.take_changes();
    let mut one = Engine::new(vec![tumble], settings).unwrap();
    for (key, value) in &saved {
        one.restore(key, value.as_ref().unwrap()).unwrap();
    }
    one.finish_restore().unwrap();
    let gone: Vec<_> = one.take_changes().into_iter().filter(|(_, v)| v.is_none()).map(|(k, _)| k).collect();
    assert_eq!(gone.iter().map(|k| k[0]).collect::<Vec<_>>(), [b'l', b's']);
    let out = one.close_all().unwrap();
    assert_eq!(number(out.closed[0].rows.column(3), 0), 1.0);
}

#[test]
fn list_like_state_stops_at_its_cap_at_the_same_row_for_every_cut() {
    let settings = Settings { max_state_bytes_per_key: 200, ..settings(0) };
    let sql = format!(
        "SELECT tenant_id, window_start, window_end, count(distinct n) AS value, count(*) AS c FROM {} GROUP BY tenant_id, window_start, window_end",
        WINDOWS[2]
    );
    let query = compile(&sql, &settings);
    let rows: Vec<Row> = (0..100)
        .map(|i| Row { time: Some(i * 10_000), tenant: 0, key: None, kind: 0, n: Some(i * 7), f: None })
        .collect();
    let run = |cuts: &[usize]| {
        let mut engine = Engine::new(vec![Arc::clone(&query)], settings.clone()).unwrap();
        let mut outputs = feed(&mut engine, &rows, cuts, &mut All);
        outputs.push((0, engine.close_all().unwrap()));
        assert!(engine.stats().capped > 0);
        (story(&outputs), traces(&outputs))
    };
    let whole = run(&[]);
    assert_eq!(whole, run(&[13, 50, 51, 52]));
    assert!(whole.0.iter().all(|line| line.ends_with("false") || line.contains("empty")), "{:?}", whole.0);
    assert!(whole.0.iter().any(|line| line.contains("|100 ")), "other aggregates go on");
}

/// 180 panes a window: folded through the tree once a group is dense.
const LONG: [&str; 1] = ["hop(telemetry, event_time, INTERVAL '1 seconds', INTERVAL '180 seconds')"];

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn windows_of_many_panes_equal_the_batch_query_for_every_cut(
        rows in rows_every(2_000_000, 260, 6 * S, 1).prop_filter("dense", |r| r.len() > 200),
        value in prop::sample::select(vec!["sum(f)", "sum(n)", "max(n)", "quantile(f, 0.9)", "count(distinct kind)"]),
        cuts in prop::collection::vec(0usize..1000, 0..6),
        all_finals: bool,
    ) {
        let sql = format!("SELECT tenant_id, window_start, window_end, {value} AS value FROM {} GROUP BY tenant_id, window_start, window_end", LONG[0]);
        let settings = Settings { all_finals, ..settings(6 * S) };
        let query = compile(&sql, &settings);
        let run = |cuts: &[usize], watch: &mut dyn Watch| {
            let mut engine = Engine::new(vec![Arc::clone(&query)], settings.clone()).unwrap();
            let mut outputs = feed(&mut engine, &rows, cuts, watch);
            outputs.push((0, engine.close_all().unwrap()));
            assert_eq!(engine.stats().keys, 0);
            outputs
        };
        let ones: Vec<usize> = (0..rows.len()).collect();
        let by_one = run(&ones, &mut NoWatch);
        prop_assert_eq!(story(&by_one), story(&run(&cuts, &mut NoWatch)));
        if all_finals {
            let outputs: Vec<Output> = by_one.into_iter().map(|o| o.1).collect();
            prop_assert_eq!(texts(&finals(0, query.output_schema(), &outputs)), texts(&run_batch(&query, &rows)));
        } else {
            // the last rows only: a trace of 180 windows a row is long
            let tail = rows.len() - 25;
            let some = |cuts: &[usize]| {
                let mut engine = Engine::new(vec![Arc::clone(&query)], settings.clone()).unwrap();
                feed(&mut engine, &rows[..tail], &[], &mut NoWatch);
                traces(&feed(&mut engine, &rows[tail..], cuts, &mut All))
            };
            prop_assert_eq!(some(&ones), some(&cuts));
        }
    }
}

fn one(time: i64, key: u8, kind: u8) -> Row {
    Row { time: Some(time), tenant: 0, key: Some(key), kind, n: Some(1), f: None }
}

const RUN: &str = "SELECT tenant_id, k, window_start, window_end, count(*) AS value FROM \
    session(telemetry, event_time, INTERVAL '60 seconds', kind = 'end') GROUP BY tenant_id, k, window_start, window_end";

#[test]
fn a_marker_that_arrives_late_splits_the_session_at_its_time() {
    let settings = settings(10 * S);
    let mut engine = Engine::new(vec![compile(RUN, &settings)], settings).unwrap();
    let rows = [one(S, 0, 0), one(3 * S, 0, 0), one(5 * S, 0, 0), one(3 * S, 0, 3)];
    let out = engine.push(&batch(&rows), &[0, 1, 2, 3], &mut NoWatch).unwrap();
    assert_eq!(out.traces.len(), 1, "a split group is always traced: its value was 3 before");
    let steps = &out.traces[0].steps;
    let values: Vec<_> =
        (0..steps.at.len()).map(|i| (steps.at[i], steps.window[i].1 / S, number(steps.rows.column(4), i))).collect();
    assert_eq!(values, [(0, 61, 1.0), (1, 63, 2.0), (2, 65, 3.0), (3, 3, 3.0), (3, 65, 1.0)]);
    let out = engine.push(&batch(&[one(13 * S, 1, 0)]), &[4], &mut NoWatch).unwrap();
    assert_eq!(
        (out.closed[0].window[0], out.closed[0].at[0]),
        ((S, 3 * S), 0),
        "the run ends at its marker, once passed"
    );
    assert_eq!(number(out.closed[0].rows.column(4), 0), 3.0);
    // the closed run takes no more rows, the split-off part goes on
    let out = engine.push(&batch(&[one(13 * S, 0, 0), one(3 * S, 0, 0)]), &[5, 6], &mut NoWatch).unwrap();
    assert_eq!(out.late.iter().map(|l| l.row).collect::<Vec<_>>(), [1]);
    assert_eq!(number(out.early[0].rows.column(4), 0), 2.0);
}

#[test]
fn after_close_all_the_watermark_stands_at_the_highest_time_and_closed_windows_stay_closed() {
    let settings = settings(10 * S);
    let hop = "SELECT tenant_id, k, window_start, window_end, count(*) AS value FROM \
        hop(telemetry, event_time, INTERVAL '10 seconds', INTERVAL '30 seconds') GROUP BY tenant_id, k, window_start, window_end";
    let mut engine = Engine::new(vec![compile(hop, &settings), compile(RUN, &settings)], settings.clone()).unwrap();
    engine.push(&batch(&[one(25 * S, 0, 0)]), &[0], &mut NoWatch).unwrap();
    assert_eq!(engine.watermark("t0"), Some(15 * S));
    let out = engine.close_all().unwrap();
    assert_eq!(out.closed.iter().map(|c| c.at.len()).collect::<Vec<_>>(), [3, 1]);
    assert_eq!(engine.watermarks().collect::<Vec<_>>(), [("t0", 25 * S, 25 * S)]);
    let mut store = BTreeMap::new();
    save(&mut engine, &mut store);
    let mut next = Engine::new(engine.queries().to_vec(), settings).unwrap();
    for (key, value) in &store {
        next.restore(key, value).unwrap();
    }
    next.finish_restore().unwrap();
    for engine in [&mut engine, &mut next] {
        let out = engine.push(&batch(&[one(26 * S, 0, 0), one(31 * S, 0, 0)]), &[1, 2], &mut NoWatch).unwrap();
        assert_eq!(
            out.late.iter().map(|l| (l.row, l.queries.clone(), l.everywhere)).collect::<Vec<_>>(),
            [(0, vec![0, 1], true), (1, vec![1], false)]
        );
        let out = engine.close_all().unwrap();
        assert_eq!(out.closed[0].window, [(30 * S, 60 * S)], "windows that started by 25 s are closed already");
    }
}

#[test]
fn silence_closes_sessions_by_advance_and_frees_their_keys_one_gap_later() {
    let settings = settings(0);
    let mut engine = Engine::new(vec![compile(RUN, &settings)], settings).unwrap();
    let out = engine.push(&batch(&[one(0, 7, 0)]), &[40], &mut NoWatch).unwrap();
    let group = out.early[0].group[0];
    assert!(engine.advance("t0", 59 * S).unwrap().closed.is_empty());
    let out = engine.advance("t0", 60 * S).unwrap();
    assert_eq!((out.closed[0].window[0], out.closed[0].evidence[0]), ((0, 60 * S), (40, 40)));
    assert!(out.freed.is_empty(), "the closed bounds still make rows late");
    assert!(engine.advance("t0", 59 * S).unwrap().closed.is_empty(), "a watermark never goes back");
    assert_eq!(engine.advance("t0", 120 * S).unwrap().freed, [(0, group)]);
    assert_eq!(engine.stats().keys, 0);
}

#[test]
fn a_hopping_group_that_runs_empty_says_so_once() {
    let settings = Settings { all_finals: false, ..settings(0) };
    let hop = "SELECT tenant_id, k, window_start, window_end, count(*) AS value FROM \
        hop(telemetry, event_time, INTERVAL '10 seconds', INTERVAL '30 seconds') GROUP BY tenant_id, k, window_start, window_end";
    let mut engine = Engine::new(vec![compile(hop, &settings)], settings).unwrap();
    let out = engine.push(&batch(&[one(5 * S, 0, 0), one(100 * S, 1, 0)]), &[0, 1], &mut NoWatch).unwrap();
    assert_eq!(out.closed[0].window, [(-20 * S, 10 * S)], "equal contents are reported once, at the first window");
    assert_eq!((out.empty[0].window.as_slice(), out.empty[0].at.as_slice()), (&[(10 * S, 40 * S)][..], &[1][..]));
    assert_eq!(array_value_to_string(out.empty[0].keys.column(1), 0).unwrap(), "k0");
}

#[test]
fn queries_with_equal_keys_share_ids_and_a_hundred_thousand_keys_come_and_go() {
    let settings = settings(0);
    let sql = |value: &str, window: &str, keys: &str| {
        format!(
            "SELECT {keys}, window_start, window_end, {value} AS value FROM {window} GROUP BY {keys}, window_start, window_end"
        )
    };
    let queries = vec![
        compile(&sql("count(*)", WINDOWS[0], "tenant_id, n"), &settings),
        compile(&sql("sum(n)", WINDOWS[2], "tenant_id, n"), &settings),
        compile(&sql("sum(n)", WINDOWS[2], "tenant_id, k"), &settings),
    ];
    let mut engine = Engine::new(queries, settings).unwrap();
    assert_eq!(engine.key_set(0), engine.key_set(1));
    assert_ne!(engine.key_set(0), engine.key_set(2));
    let rows: Vec<Row> = (0..100_000).map(|i| Row { n: Some(i), ..one(i * 100, 0, 0) }).collect();
    let positions: Vec<i64> = (0..100_000).collect();
    let out = engine.push(&batch(&rows), &positions, &mut NoWatch).unwrap();
    assert!(out.late.is_empty());
    assert_eq!(engine.stats().keys, 100_001);
    let out = engine.close_all().unwrap();
    assert_eq!(out.freed.len(), 100_001);
    assert_eq!(engine.stats().keys, 0);
}

#[test]
fn a_row_an_expression_fails_on_is_null_and_counted() {
    let settings = settings(0);
    let sql = format!(
        "SELECT tenant_id, window_start, window_end, sum(100 / n) AS value, count(*) AS c FROM {} GROUP BY tenant_id, window_start, window_end",
        WINDOWS[0]
    );
    let mut engine = Engine::new(vec![compile(&sql, &settings)], settings).unwrap();
    let rows = [Row { n: Some(0), ..one(S, 0, 0) }, Row { n: Some(5), ..one(S, 0, 0) }];
    engine.push(&batch(&rows), &[0, 1], &mut NoWatch).unwrap();
    let out = engine.close_all().unwrap();
    assert_eq!((number(out.closed[0].rows.column(3), 0), number(out.closed[0].rows.column(4), 0)), (20.0, 2.0));
    assert_eq!(engine.stats().expression_errors, 1);
}

#[test]
fn the_default_metrics_run_together_and_equal_their_batch_queries() {
    use runwarden::stream::parse_metrics;
    use runwarden::telemetry::schema::{SCHEMA, col};
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/queries/metrics");
    let mut files: Vec<(String, String)> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .map(|p| (p.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read_to_string(&p).unwrap()))
        .collect();
    files.sort();
    let settings = Settings { all_finals: true, ..Settings::default() };
    let compiler = Compiler::new(Arc::clone(&SCHEMA), &settings);
    let (metrics, errors) = parse_metrics(files.iter().map(|(f, t)| (f.as_str(), t.as_str())), &compiler);
    assert_eq!(errors, vec![]);
    let rows = 600usize;
    let pick = |i: usize, n: usize, list: &[&str]| Some(list[(i * 7 + i / 5) % n % list.len()].to_owned());
    let mut columns: Vec<ArrayRef> =
        SCHEMA.fields().iter().map(|f| datafusion::arrow::array::new_null_array(f.data_type(), rows)).collect();
    let text =
        |f: &dyn Fn(usize) -> Option<String>| -> ArrayRef { Arc::new((0..rows).map(f).collect::<StringArray>()) };
    let time = |i: usize| Some(1_800_000_000 * S + i as i64 * 1_300_000 - (i as i64 * 37 % 9) * S);
    columns[col::EVENT_TIME] = Arc::new((0..rows).map(time).collect::<TimestampMicrosecondArray>());
    let kinds = ["run.step", "run.step", "run.started", "run.step", "run.completed", "run.failed", "agent.heartbeat"];
    columns[col::EVENT_TYPE] = text(&|i| pick(i, 7, &kinds));
    columns[col::TENANT_ID] = text(&|i| Some(format!("t{}", i % 2)));
    columns[col::RUN_ID] = text(&|i| (i % 11 != 0).then(|| format!("r{}", i % 13)));
    columns[col::AGENT_ID] = text(&|i| (i % 5 != 0).then(|| format!("a{}", i % 3)));
    columns[col::API_KEY_ID] = text(&|i| Some(format!("key{}", i % 4)));
    columns[col::HUMAN_ACTOR_ID] = text(&|i| Some(format!("h{}", i % 4)));
    columns[col::PROVIDER] = text(&|i| Some(format!("p{}", i % 2)));
    columns[col::TOTAL_TOKENS] = Arc::new((0..rows).map(|i| (i % 9 != 0).then_some(i as i64)).collect::<Int64Array>());
    columns[col::LATENCY_MS] = Arc::new((0..rows).map(|i| Some(i as i64 * 3 % 701)).collect::<Int64Array>());
    let cost: datafusion::arrow::array::Decimal128Array =
        (0..rows).map(|i| (i % 4 != 0).then_some(i as i128 * 1_000_007)).collect();
    columns[col::COST_USD] = Arc::new(cost.with_precision_and_scale(18, 9).unwrap());
    columns[col::COST_PROVENANCE] = text(&|i| pick(i, 5, &["reported", "table:2026", "unknown", "reported"]));
    columns[col::RISK_SCORE] = Arc::new((0..rows).map(|i| Some(i as f64 / 600.0)).collect::<Float64Array>());
    columns[col::ANOMALY_SCORE] = Arc::new((0..rows).map(|i| Some(1.0 - i as f64 / 600.0)).collect::<Float64Array>());
    let batch = RecordBatch::try_new(Arc::clone(&SCHEMA), columns).unwrap();

    let queries: Vec<Arc<Query>> = metrics.iter().map(|m| Arc::clone(&m.query)).collect();
    let mut engine = Engine::new(queries.clone(), settings).unwrap();
    let positions: Vec<i64> = (0..rows as i64).collect();
    let mut outputs: Vec<Output> = (0..rows)
        .step_by(50)
        .map(|from| engine.push(&batch.slice(from, 50), &positions[from..from + 50], &mut All).unwrap())
        .collect();
    outputs.push(engine.close_all().unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for (i, query) in queries.iter().enumerate() {
        let got = texts(&finals(i, query.output_schema(), &outputs));
        assert!(!got.is_empty(), "{}", query.name());
        if metrics[i].scope == runwarden::stream::Scope::Run {
            continue; // rows after a run's marker are late here; sessions have their own tests
        }
        let want = texts(&runtime.block_on(query.run_batch(vec![batch.clone()])).unwrap());
        assert_eq!(got, want, "{}", query.name());
    }
}
