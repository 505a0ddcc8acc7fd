//! The engine against itself: other batch cuts, other partition counts.

use super::*;

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

proptest! {
    #![proptest_config(cases(32))]

    #[test]
    fn cuts_of_the_input_change_nothing(
        rows in rows(80, 25 * S, 3),
        list in prop::collection::vec(exact_sql(panes()), 1..4),
        cuts in prop::collection::vec(0usize..1000, 0..6),
        lateness in prop::sample::select(vec![0, 3 * S, 8 * S]),
        all_finals: bool,
    ) {
        check_cuts(&list, &rows, &cuts, lateness, all_finals)?;
    }
}

proptest! {
    #![proptest_config(cases(64))]

    #[test]
    fn cuts_of_the_input_change_no_session(
        rows in rows(80, 12 * S, 2),
        list in prop::collection::vec(exact_sql(sessions()), 1..4),
        cuts in prop::collection::vec(0usize..1000, 0..6),
        lateness in prop::sample::select(vec![0, 2 * S, 8 * S, 30 * S]),
    ) {
        check_cuts(&list, &rows, &cuts, lateness, true)?;
    }
}

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn the_number_of_partitions_changes_nothing(
        rows in rows(80, 12 * S, 2),
        list in prop::collection::vec(exact_sql(any_window()), 1..4),
        owners in prop::array::uniform3(0usize..3),
        lateness in prop::sample::select(vec![0, 3 * S, 15 * S]),
    ) {
        let settings = settings(lateness);
        let queries: Vec<_> = list.iter().map(|q| compile(q, &settings)).collect();
        let mut one = Engine::new(queries.clone(), settings.clone()).unwrap();
        let mut whole = feed(&mut one, &rows, &[], &mut All);
        whole.push((0, one.close_all().unwrap()));
        let mut engines: Vec<Engine> = (0..3).map(|_| Engine::new(queries.clone(), settings.clone()).unwrap()).collect();
        let mut split: Vec<(usize, Output)> = Vec::new();
        for (i, row) in rows.iter().enumerate() {
            let owner = &mut engines[owners[row.tenant as usize]];
            split.push((i, owner.push(&batch(std::slice::from_ref(row)), &[i as i64], &mut All).unwrap()));
        }
        split.extend(engines.iter_mut().map(|e| (0, e.close_all().unwrap())));
        prop_assert_eq!(story(&whole), story(&split));
        prop_assert_eq!(traces(&whole), traces(&split));
    }
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

#[test]
fn the_trace_of_a_state_that_hits_its_cap_is_the_same_for_every_cut() {
    let settings = Settings { max_state_bytes_per_key: 1_000, ..settings(0) };
    for window in [WINDOWS[0], WINDOWS[2], SESSIONS[2]] {
        let sql = format!(
            "SELECT tenant_id, window_start, window_end, count(distinct n) AS value FROM {window} GROUP BY tenant_id, window_start, window_end"
        );
        let query = compile(&sql, &settings);
        assert!(query.early());
        let rows: Vec<Row> = (0..100).map(|i| Row { n: Some(i * 7), ..one(i * 10_000, 0, 0) }).collect();
        let run = |cuts: &[usize]| {
            let mut engine = Engine::new(vec![Arc::clone(&query)], settings.clone()).unwrap();
            let mut outputs = feed(&mut engine, &rows, cuts, &mut All);
            outputs.push((0, engine.close_all().unwrap()));
            let capped = engine.stats().capped;
            (story(&outputs), traces(&outputs), capped)
        };
        let (story, steps, capped) = run(&(0..100).collect::<Vec<_>>());
        assert_eq!(capped, 1, "{window}: a state that stopped is counted once, however often it is looked at");
        for cuts in [&[][..], &[5], &[20, 60], &[3, 20, 25, 90]] {
            assert_eq!((story.clone(), steps.clone(), capped), run(cuts), "{window} {cuts:?}");
        }
    }
}
