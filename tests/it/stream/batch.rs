//! Final results against DataFusion's batch SQL on the same rows.

use super::*;

/// 180 panes a window: folded through the tree once a group is dense.
const LONG: [&str; 1] = ["hop(telemetry, event_time, INTERVAL '1 seconds', INTERVAL '180 seconds')"];

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn finals_of_panes_equal_the_batch_query(
        rows in rows(120, 20 * S, 4),
        list in prop::collection::vec(sql(panes()), 1..4),
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
    #![proptest_config(cases(64))]

    #[test]
    fn finals_of_sessions_equal_the_batch_query(
        rows in rows(100, 20 * S, 3),
        list in prop::collection::vec(sql(sessions()), 1..4),
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
}

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn the_first_of_equal_windows_stands_for_all_up_to_the_next(
        rows in rows(90, 12 * S, 3),
        (slide, size) in (1i64..25, 1i64..50),
        value in prop::sample::select(&EXACT[..]),
        cuts in prop::collection::vec(0usize..1000, 0..4),
    ) {
        prop_assume!(slide != size);
        let settings = Settings { all_finals: false, ..settings(12 * S) };
        let sql = format!("SELECT tenant_id, k, window_start, window_end, {value} AS value FROM hop(telemetry, event_time, {}, {}) GROUP BY tenant_id, k, window_start, window_end", half(slide), half(size));
        let query = compile(&sql, &settings);
        let mut engine = Engine::new(vec![Arc::clone(&query)], settings).unwrap();
        let mut outputs: Vec<Output> = feed(&mut engine, &rows, &cuts, &mut NoWatch).into_iter().map(|o| o.1).collect();
        outputs.push(engine.close_all().unwrap());
        // per key, the value from a window end on; `None`: no row
        let mut changes: BTreeMap<String, BTreeMap<i64, Option<String>>> = BTreeMap::new();
        let text = |columns: &[ArrayRef], i: usize| columns.iter().map(|c| array_value_to_string(c, i).unwrap()).collect::<Vec<_>>().join("|");
        for o in &outputs {
            for c in &o.closed {
                for i in 0..c.at.len() {
                    let columns = c.rows.columns();
                    let value = array_value_to_string(&columns[4], i).unwrap();
                    let before = changes.entry(text(&columns[..2], i)).or_default().insert(c.window[i].1, Some(value));
                    prop_assert!(before.is_none(), "a window is reported once");
                }
            }
            for e in &o.empty {
                for i in 0..e.at.len() {
                    let before = changes.entry(text(e.keys.columns(), i)).or_default().insert(e.window[i].1, None);
                    prop_assert!(before.is_none(), "a window is reported once");
                }
            }
        }
        let (slide, size) = if let Window::Hop { slide, size } = query.window() { (*slide, *size) } else { unreachable!() };
        let mut got: Vec<(String, i64, String)> = Vec::new();
        for (key, ends) in &changes {
            let after: Vec<i64> = ends.keys().skip(1).copied().collect();
            prop_assert!(ends.values().last().is_some_and(Option::is_none), "in the end there is no row");
            for ((end, value), next) in ends.iter().zip(after) {
                if let Some(value) = value {
                    let mut at = *end;
                    while at < next {
                        got.push((key.clone(), at, value.clone()));
                        at += slide;
                    }
                }
            }
        }
        got.sort();
        let oracle = run_batch(&query, &rows);
        let ends = oracle.column(3).as_primitive::<datafusion::arrow::datatypes::TimestampMicrosecondType>();
        let mut want: Vec<(String, i64, String)> = (0..oracle.num_rows())
            .map(|i| (text(&oracle.columns()[..2], i), ends.value(i), array_value_to_string(oracle.column(4), i).unwrap()))
            .collect();
        want.sort();
        prop_assert_eq!(got, want, "size {}", size);
    }
}

proptest! {
    #![proptest_config(cases(32))]

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

proptest! {
    #![proptest_config(cases(12))]

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

#[test]
fn a_dense_group_whose_events_lie_years_apart_costs_no_room_between_them() {
    let settings = settings(60 * S);
    let sql = format!(
        "SELECT tenant_id, window_start, window_end, count(*) AS value FROM {} GROUP BY tenant_id, window_start, window_end",
        LONG[0]
    );
    let query = compile(&sql, &settings);
    let years = 50 * 365 * 86_400 * S;
    let times = (0..100).chain([50]).map(|i| i * S).chain((0..100).map(|i| years + i * S));
    let rows: Vec<Row> = times.map(|t| one(t, 0, 0)).collect();
    let by_one: Vec<usize> = (0..rows.len()).collect();
    for cuts in [&[][..], &[90, 150], &by_one] {
        let mut engine = Engine::new(vec![Arc::clone(&query)], settings.clone()).unwrap();
        let mut outputs = feed(&mut engine, &rows, cuts, &mut NoWatch);
        outputs.push((0, engine.close_all().unwrap()));
        let outputs: Vec<Output> = outputs.into_iter().map(|o| o.1).collect();
        assert_eq!(texts(&finals(0, query.output_schema(), &outputs)), texts(&run_batch(&query, &rows)));
        assert_eq!(engine.stats().keys, 0);
    }
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
