//! Single cases, each with its numbers.

use super::*;

const RUN: &str = "SELECT tenant_id, k, window_start, window_end, count(*) AS value FROM \
    session(telemetry, event_time, INTERVAL '60 seconds', kind = 'end') GROUP BY tenant_id, k, window_start, window_end";

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

#[test]
fn a_run_that_ends_again_and_again_leaves_no_trail() {
    let settings = settings(0);
    let mut engine = Engine::new(vec![compile(RUN, &settings)], settings).unwrap();
    // ends every 10 ms, far more often than once a gap
    let rows: Vec<Row> = (0..5_000).map(|i| one(i * 10_000, 0, 3)).collect();
    let positions: Vec<i64> = (0..5_000).collect();
    let out = engine.push(&batch(&rows), &positions, &mut NoWatch).unwrap();
    assert_eq!(out.closed.iter().map(|c| c.at.len()).sum::<usize>(), 4_999 + 1);
    let saved: usize = engine.take_changes().iter().map(|(k, v)| k.len() + v.as_ref().map_or(0, Vec::len)).sum();
    assert!(saved < 1_000, "{saved} bytes of one run");
    let out = engine.push(&batch(&[one(25 * S, 0, 0), one(25 * S, 0, 3)]), &[0, 1], &mut NoWatch).unwrap();
    assert_eq!(out.late.len(), 2, "what lies between closed runs is late");
}

#[test]
fn a_row_that_no_query_takes_is_late_everywhere_also_where_another_window_has_gaps() {
    let settings = settings(0);
    let sql = |window: &str| {
        format!(
            "SELECT tenant_id, window_start, window_end, count(*) AS value FROM {window} GROUP BY tenant_id, window_start, window_end"
        )
    };
    // [0, 4), [10, 14), …
    let queries = vec![compile(&sql(WINDOWS[0]), &settings), compile(&sql(WINDOWS[4]), &settings)];
    let mut engine = Engine::new(queries, settings).unwrap();
    let rows = [one(25 * S, 0, 0), one(7 * S, 0, 0), one(2 * S, 0, 0)];
    let out = engine.push(&batch(&rows), &[0, 1, 2], &mut NoWatch).unwrap();
    let late: Vec<_> = out.late.iter().map(|l| (l.row, l.queries.clone(), l.everywhere)).collect();
    assert_eq!(late, [(1, vec![0], true), (2, vec![0, 1], true)]);
}

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
