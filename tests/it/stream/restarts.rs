//! State out and in: restarts with the same and with other queries, and damage.

use super::*;

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

/// What closed: the query's number, whether it says it is complete, and the whole result as text.
fn results(outputs: &[(usize, Output)], ids: &[usize]) -> Vec<(usize, bool, String)> {
    let mut out = Vec::new();
    for (from, o) in outputs {
        for c in &o.closed {
            for i in 0..c.at.len() {
                let at = if c.at[i] == u32::MAX { usize::MAX } else { from + c.at[i] as usize };
                let columns: Vec<String> =
                    c.rows.columns().iter().map(|column| array_value_to_string(column, i).unwrap()).collect();
                let line = format!("{at} {} {:?} {:?}", columns.join("|"), c.window[i], c.evidence[i]);
                out.push((ids[c.query], c.complete[i], line));
            }
        }
    }
    out
}

/// Restores what `from` saved into an engine of these queries.
fn restored(
    from: &mut Engine,
    queries: Vec<Arc<Query>>,
    settings: &Settings,
    store: &mut BTreeMap<Vec<u8>, Vec<u8>>,
) -> Engine {
    save(from, store);
    let mut next = Engine::new(queries, settings.clone()).unwrap();
    for (key, value) in &*store {
        next.restore(key, value).unwrap();
    }
    next.finish_restore().unwrap();
    next
}

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn a_restored_engine_goes_on_as_if_nothing_happened(
        rows in rows(70, 12 * S, 3),
        list in prop::collection::vec(exact_sql(any_window()), 1..4),
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
            // the name is under the checksum too
            let mut renamed = key.clone();
            let at = at % renamed.len();
            if truncate { renamed.truncate(at) } else { renamed[at] ^= 1 << bit }
            prop_assert!(next.restore(&renamed, &saved[record.index(saved.len())].1).is_err());
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

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn queries_that_come_and_go_at_restarts_leave_the_others_alone_and_never_claim_what_they_missed(
        rows in rows(70, 12 * S, 3),
        list in prop::collection::vec(exact_sql(any_window()), 2..5),
        present in prop::array::uniform3(0u8..16),
        restarts in prop::array::uniform2(0usize..1000),
        lateness in prop::sample::select(vec![0, 3 * S, 15 * S]),
        all_finals: bool,
    ) {
        let settings = Settings { all_finals, ..settings(lateness) };
        let list: Vec<String> = list.into_iter().map(|q| q.replace("count(distinct n)", "min(n)")).collect();
        let queries: Vec<_> = list.iter().map(|q| compile(q, &settings)).collect();
        // the first query always runs
        let of = |mask: u8| -> Vec<usize> { (0..queries.len()).filter(|q| *q == 0 || mask >> q & 1 == 1).collect() };
        let mut bounds: Vec<usize> = restarts.iter().map(|r| r % (rows.len() + 1)).collect();
        bounds.sort_unstable();
        let bounds = [0, bounds[0], bounds[1], rows.len()];

        let mut plain = Engine::new(queries.clone(), settings.clone()).unwrap();
        let mut always = feed(&mut plain, &rows, &[], &mut NoWatch);
        always.push((0, plain.close_all().unwrap()));
        let every: Vec<usize> = (0..queries.len()).collect();
        let whole = results(&always, &every);

        let mut store: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        let mut given = Vec::new();
        let whole_batch = batch(&rows);
        for (phase, mask) in present.into_iter().enumerate() {
            let ids = of(mask);
            let mut engine = Engine::new(ids.iter().map(|q| Arc::clone(&queries[*q])).collect(), settings.clone()).unwrap();
            for (key, value) in &store {
                engine.restore(key, value).unwrap();
            }
            engine.finish_restore().unwrap();
            let (from, to) = (bounds[phase], bounds[phase + 1]);
            let positions: Vec<i64> = (from as i64..to as i64).collect();
            let mut outputs = vec![(from, engine.push(&whole_batch.slice(from, to - from), &positions, &mut NoWatch).unwrap())];
            if phase == 2 {
                outputs.push((0, engine.close_all().unwrap()));
            }
            save(&mut engine, &mut store);
            given.extend(results(&outputs, &ids));
        }
        let first = |all: &[(usize, bool, String)]| {
            let mut lines: Vec<String> = all.iter().filter(|r| r.0 == 0).map(|r| r.2.clone()).collect();
            lines.sort();
            lines
        };
        prop_assert_eq!(first(&given), first(&whole), "{}", list[0]);
        for (query, complete, line) in &given {
            prop_assert!(!complete || whole.iter().any(|w| w.0 == *query && w.2 == *line), "{} {}", list[*query], line);
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
fn a_query_that_was_away_says_it_is_incomplete_also_for_a_tenant_that_was_silent_meanwhile() {
    let settings = settings(0);
    let sql = |value: &str, window: &str| {
        format!(
            "SELECT tenant_id, window_start, window_end, {value} AS value FROM {window} GROUP BY tenant_id, window_start, window_end"
        )
    };
    let (kept, away) =
        (compile(&sql("count(*)", WINDOWS[0]), &settings), compile(&sql("sum(n)", WINDOWS[1]), &settings));
    let both = vec![Arc::clone(&kept), away];
    let mut store = BTreeMap::new();
    let mut engine = Engine::new(both.clone(), settings.clone()).unwrap();
    engine.push(&batch(&[one(S, 0, 0)]), &[0], &mut NoWatch).unwrap();
    // nothing of the tenant arrives while the query is away
    let mut without = restored(&mut engine, vec![kept], &settings, &mut store);
    let mut back = restored(&mut without, both, &settings, &mut store);
    let out = back.push(&batch(&[one(2 * S, 0, 0), one(30 * S, 0, 0)]), &[1, 2], &mut NoWatch).unwrap();
    let complete: Vec<(usize, bool)> = out.closed.iter().map(|c| (c.query, c.complete[0])).collect();
    assert_eq!(complete, [(0, true), (1, false)]);
}

#[test]
fn a_hop_that_begins_to_read_its_window_columns_says_it_is_incomplete() {
    let settings = settings(0);
    let sql = |having: &str| {
        format!(
            "SELECT tenant_id, window_start, window_end, count(*) AS value FROM {} GROUP BY tenant_id, window_start, window_end {having}",
            WINDOWS[2]
        )
    };
    let before = compile(&sql(""), &settings);
    let after = compile(&sql("HAVING window_end > TIMESTAMP '1970-01-01T00:00:00'"), &settings);
    let other = compile(&sql("HAVING count(*) > 0"), &settings);
    assert_eq!(before.fingerprint(), other.fingerprint());
    for (edited, complete) in [(after, false), (other, true)] {
        let mut engine = Engine::new(vec![Arc::clone(&before)], settings.clone()).unwrap();
        engine.push(&batch(&[one(S, 0, 0)]), &[0], &mut NoWatch).unwrap();
        let mut next = restored(&mut engine, vec![edited], &settings, &mut BTreeMap::new());
        let out = next.push(&batch(&[one(2 * S, 0, 0), one(6 * S, 0, 0)]), &[1, 2], &mut NoWatch).unwrap();
        let closed = out.closed.first().unwrap();
        assert!(closed.complete.iter().all(|c| *c == complete), "{complete}: {:?}", closed.complete);
    }
}
