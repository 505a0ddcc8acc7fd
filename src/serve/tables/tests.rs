use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::rows::{flat, records};
use super::*;
use crate::clock::{SECOND, rfc3339};

const DAY: Micros = 86_400 * SECOND;
const NOW: Micros = 1_800_000_000 * SECOND;

fn now() -> Wall {
    Wall(NOW)
}

fn tables(bounds: Bounds) -> Tables {
    Tables::new(bounds, Limits::default(), now).unwrap()
}

fn put(tables: &Tables, source: Source, offset: i64, key: &str, record: &Value) -> Taken {
    let payload = record.to_string();
    let record =
        Record { partition: 0, offset, key: Some(key.as_bytes()), kind: None, payload: Some(payload.as_bytes()) };
    tables.take(source, record).unwrap()
}

fn signal(tenant: &str, n: i64, kind: &str, at: Micros) -> Value {
    json!({
        "signal_id": format!("s-{n}"), "kind": kind, "mode": "BLOCK", "tenant_id": tenant, "policy_id": "p", "policy_version": 1,
        "limit_id": "l", "limit_type": "TOKENS_PER_RUN", "category": "BUDGET", "metric": "run_tokens",
        "scope": {"kind": "RUN", "id": format!("r-{n}")}, "run_id": format!("r-{n}"), "value": 8.5, "limit": 10, "near": 0.8,
        "window_start": rfc3339(at - SECOND), "window_end": rfc3339(at + SECOND),
        "event_time": rfc3339(at), "decided_at": rfc3339(at + 1), "lag_ms": 0, "complete": true, "is_synthetic": false,
        "violation": {"violation_type": "quota", "source": "runtime", "severity": 0.5, "violation_kind": "STANDARD"},
        "contributors": [{"policy_id": "p", "gave": ["max"]}], "evidence": {"first": null, "last": null},
    })
}

fn intervention(tenant: &str, id: &str, revision: u64, state: &str) -> Value {
    json!({
        "intervention_id": id, "revision": revision, "state": state, "type": "CANCEL_TASK", "tenant_id": tenant,
        "target": {"kind": "TASK", "id": "t-1"}, "authority_level": 4, "created_at": rfc3339(NOW - SECOND), "reason": "stuck",
    })
}

async fn ask(tables: &Tables, scope: &Scope, sql: &str) -> Vec<Value> {
    flat(&tables.query(scope, sql, Vec::new()).await.unwrap_or_else(|e| panic!("{sql}: {e}")))
}

#[tokio::test]
async fn a_tenant_sees_its_own_rows_and_those_that_concern_everyone_whatever_it_asks() {
    let tables = tables(Bounds::default());
    for (n, tenant) in ["acme", "other", "acme"].into_iter().enumerate() {
        let n = i64::try_from(n).unwrap();
        put(&tables, Source::Signals, n, tenant, &signal(tenant, n, "NEAR", NOW - SECOND));
    }
    for (n, tenant) in ["*", "acme", "other"].into_iter().enumerate() {
        let record = json!({"override_id": tenant, "revision": 1, "tenant_id": tenant, "granted_at": rfc3339(NOW)});
        let key = format!("{}/override/{tenant}", tenant.replace('*', "%2A"));
        put(&tables, Source::Policies, i64::try_from(n).unwrap(), &key, &record);
    }
    let acme = Scope::of("acme");
    let count = "SELECT count(*) AS n FROM signals";
    assert_eq!(ask(&tables, &acme, count).await, [json!({"n": 2})]);
    assert_eq!(ask(&tables, &Scope::of("*"), count).await, [json!({"n": 3})]);
    for sql in [
        "SELECT tenant_id FROM signals WHERE tenant_id = 'other'",
        "SELECT tenant_id FROM signals WHERE tenant_id <> 'acme' OR true ORDER BY 1 DESC LIMIT 1",
        "SELECT tenant_id FROM violations WHERE tenant_id = 'other'",
        "SELECT b.tenant_id FROM signals a JOIN public.signals b ON a.metric = b.metric WHERE b.tenant_id <> a.tenant_id",
        "SELECT tenant_id FROM (SELECT * FROM threshold_signals UNION ALL SELECT * FROM datafusion.public.signals) WHERE tenant_id = 'other'",
        "SELECT tenant_id FROM policy_override_records WHERE tenant_id = 'other'",
    ] {
        let rows = ask(&tables, &acme, sql).await;
        assert!(rows.iter().all(|row| row["tenant_id"] == "acme"), "{sql}: {rows:?}");
    }
    let of = ask(&tables, &acme, "SELECT tenant_id FROM overrides ORDER BY 1").await;
    assert_eq!(of, [json!({"tenant_id": "*"}), json!({"tenant_id": "acme"})]);
}

#[tokio::test]
async fn nothing_but_a_question_is_answered_and_no_file_is_read() {
    let tables = tables(Bounds::default());
    for sql in [
        "CREATE TABLE t AS SELECT 1",
        "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '/etc/passwd'",
        "INSERT INTO signals SELECT * FROM signals",
        "COPY (SELECT 1) TO '/tmp/x.parquet'",
        "DROP TABLE signals",
        "SET datafusion.execution.batch_size = 1",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT nothing FROM signals",
        "SELECT",
    ] {
        let error = tables.query(&Scope::All, sql, Vec::new()).await.unwrap_err();
        assert!(matches!(error, QueryError::Invalid(_) | QueryError::Refused(_)), "{sql}: {error:?}");
    }
}

#[tokio::test]
async fn what_takes_too_long_or_too_much_is_told_so_and_too_many_are_told_to_come_again() {
    let limits = Limits { time: Duration::from_millis(200), memory: 4 << 20, rows: 1_000, running: 1, waiting: 0 };
    let tables = Tables::new(Bounds::default(), limits, now).unwrap();
    let numbers = |n: u32| format!("SELECT value AS v FROM generate_series(1, {n})");
    let ask = |sql: String| async { tables.query(&Scope::All, &{ sql }, Vec::new()).await };
    assert!(matches!(ask(numbers(1_001)).await, Err(QueryError::TooMuch(_))));
    let sorted = format!("SELECT v, repeat('x', 100) AS x FROM ({}) ORDER BY x, v DESC LIMIT 500000", numbers(500_000));
    assert!(matches!(ask(sorted).await, Err(QueryError::TooMuch(_))));
    let slow = format!("SELECT count(*) FROM ({}) a", numbers(2_000_000_000));
    let (slow, busy) = futures::join!(ask(slow), ask(numbers(1)));
    assert_eq!(busy.unwrap_err(), QueryError::Busy);
    assert_eq!(slow.unwrap_err(), QueryError::TooLong(limits.time));
    // the one that was given up ends where it next comes up for air, and then the next one is answered
    let again = async {
        while ask(numbers(3)).await == Err(QueryError::Busy) {
            tokio::task::yield_now().await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(60), again).await.is_ok());
}

#[tokio::test]
async fn the_latest_of_each_key_is_shown_and_a_tombstone_takes_it_away() {
    let tables = tables(Bounds::default());
    put(&tables, Source::Interventions, 0, "acme", &intervention("acme", "i-1", 1, "ISSUED"));
    put(&tables, Source::Interventions, 1, "acme", &intervention("acme", "i-1", 2, "ACKNOWLEDGED"));
    let rows = ask(&tables, &Scope::All, "SELECT id, action_type, target_entity, state FROM guardian_actions").await;
    assert_eq!(
        rows,
        [json!({"id": "i-1", "action_type": "cancel_task", "target_entity": "t-1", "state": "ACKNOWLEDGED"})]
    );
    let limit = json!({"limit_id": "l", "policy_id": "p", "tenant_id": "acme", "revision": 1, "max": 5});
    put(&tables, Source::Policies, 0, "acme/limit/p/l", &limit);
    assert_eq!(ask(&tables, &Scope::All, "SELECT max FROM limits").await, [json!({"max": 5.0})]);
    let gone = Record { partition: 0, offset: 1, key: Some(b"acme/limit/p/l"), kind: None, payload: None };
    assert_eq!(tables.take(Source::Policies, gone).unwrap(), Taken::Row);
    assert!(ask(&tables, &Scope::All, "SELECT max FROM limits").await.is_empty());
}

#[tokio::test]
async fn what_cannot_be_read_is_said_and_what_belongs_to_no_table_is_passed_over() {
    let tables = tables(Bounds { keys: 1, ..Bounds::default() });
    let record = |offset, key: &'static [u8], kind: Option<&'static [u8]>, payload: &'static [u8]| Record {
        partition: 0,
        offset,
        key: Some(key),
        kind,
        payload: Some(payload),
    };
    let take = |source, record| tables.take(source, record).unwrap();
    assert_eq!(take(Source::Signals, record(0, b"acme", None, b"no json")), Taken::Unread);
    assert_eq!(
        take(Source::Interventions, record(0, b"a", Some(b"guardian.intervention.started"), b"{}")),
        Taken::Other
    );
    assert_eq!(
        take(Source::PolicyLevel, record(0, b"*/response", Some(b"runwarden.response.v1"), b"{}")),
        Taken::Other
    );
    assert_eq!(take(Source::Policies, record(0, b"*/snapshot/s", None, b"{}")), Taken::Other);
    assert_eq!(take(Source::Policies, record(1, b"*/policy/p", None, b"{}")), Taken::Unread, "a row, but no policy");
    assert_eq!(take(Source::Lessons, record(0, b"a/l-1", None, b"{\"id\": \"l-1\"}")), Taken::Row);
    assert_eq!(take(Source::Lessons, record(1, b"a/l-2", None, b"{\"id\": \"l-2\"}")), Taken::Full);
    assert_eq!(take(Source::Lessons, record(2, b"a/l-1", None, b"{\"id\": \"l-1\"}")), Taken::Row);
}

#[tokio::test]
async fn sealed_rows_and_those_in_memory_are_one_table_and_a_restart_reads_on_from_where_they_end() {
    let dir = tempfile::tempdir().unwrap();
    let open = |bounds| {
        let tables = tables(bounds);
        let next: Vec<BTreeMap<i32, i64>> = [Source::Signals, Source::Interventions]
            .into_iter()
            .map(|source| tables.open(source, dir.path(), source.as_str(), "cluster-1").unwrap())
            .collect();
        (tables, next)
    };
    let bounds = Bounds { rows: 100, ..Bounds::default() };
    let (tables, next) = open(bounds);
    assert!(next.iter().all(BTreeMap::is_empty));
    for n in 0..1_000 {
        put(&tables, Source::Signals, n, "acme", &signal("acme", n, "NEAR", NOW - DAY + n * SECOND));
        tables.tidy(Source::Signals, false).unwrap();
    }
    for (n, state) in [(0, "SUCCEEDED"), (1, "ISSUED"), (2, "FAILED")] {
        put(&tables, Source::Interventions, n, "acme", &intervention("acme", &format!("i-{n}"), 1, state));
    }
    assert!(tables.tidy(Source::Interventions, true).unwrap());
    let (files, bytes) = tables.sealed();
    assert!(files > 1 && files < 10 && bytes > 0, "small files are joined: {files}");
    let check = async |tables: &Tables| {
        let all = "SELECT count(*) AS n, count(DISTINCT signal_id) AS ids, min(scope_id) AS first, max(value) AS v FROM signals";
        assert_eq!(ask(tables, &Scope::All, all).await, [json!({"n": 1_000, "ids": 1_000, "first": "r-0", "v": 8.5})]);
        let whole = "SELECT * FROM signals WHERE signal_id = 's-7'";
        let rows = tables.query(&Scope::of("acme"), whole, Vec::new()).await.unwrap();
        let rows = records(schema::table("signals").unwrap(), &rows);
        let sent = signal("acme", 7, "NEAR", NOW - DAY + 7 * SECOND);
        let fields = sent.as_object().unwrap();
        assert!(
            fields.iter().all(|(name, value)| rows[0][name] == *value || value.as_f64() == rows[0][name].as_f64()),
            "{rows:?}"
        );
        let states = ask(tables, &Scope::All, "SELECT intervention_id AS i, state FROM interventions ORDER BY 1").await;
        states.iter().map(|row| format!("{} {}", row["i"], row["state"])).collect::<Vec<_>>()
    };
    let before = check(&tables).await;
    let in_memory = tables.sizes().iter().find(|(name, ..)| *name == "signals").unwrap().1;
    assert!(in_memory < 100);
    drop(tables);
    let (tables, next) = open(bounds);
    assert_eq!(next, [BTreeMap::from([(0, 1_000 - i64::try_from(in_memory).unwrap())]), BTreeMap::from([(0, 3)])]);
    // the topic is read again from there, and a little before: nothing is there twice
    for n in next[0][&0] - 5..1_000 {
        put(&tables, Source::Signals, n, "acme", &signal("acme", n, "NEAR", NOW - DAY + n * SECOND));
    }
    assert_eq!(check(&tables).await, before);
    // what was sealed and what was put aside both change
    put(&tables, Source::Interventions, 3, "acme", &intervention("acme", "i-0", 2, "REVERTED"));
    put(&tables, Source::Interventions, 4, "acme", &intervention("acme", "i-1", 2, "SUCCEEDED"));
    let after = ["\"i-0\" \"REVERTED\"", "\"i-1\" \"SUCCEEDED\"", "\"i-2\" \"FAILED\""];
    assert_eq!(check(&tables).await, after);
    assert!(tables.tidy(Source::Interventions, true).unwrap());
    assert_eq!(check(&tables).await, after);
}

#[tokio::test]
async fn a_directory_of_another_cluster_or_with_a_file_gone_or_cut_is_begun_anew() {
    for damage in ["cluster", "gone", "cut", "manifest"] {
        let dir = tempfile::tempdir().unwrap();
        let fill = |tables: &Tables| {
            for n in 0..10 {
                put(tables, Source::Signals, n, "acme", &signal("acme", n, "NEAR", NOW - SECOND));
            }
        };
        let first = tables(Bounds::default());
        first.open(Source::Signals, dir.path(), "signals", "cluster-1").unwrap();
        fill(&first);
        assert!(first.tidy(Source::Signals, true).unwrap());
        let signals = dir.path().join("signals");
        let file = signals.join("000000000001.parquet");
        assert_eq!(sealed::verify(&signals).unwrap(), (1, vec![]));
        let cluster = if damage == "cluster" { "cluster-2" } else { "cluster-1" };
        match damage {
            "gone" => std::fs::remove_file(&file).unwrap(),
            "cut" => std::fs::write(&file, b"PAR1").unwrap(),
            "manifest" => std::fs::write(signals.join("manifest.json"), b"{").unwrap(),
            _ => {}
        }
        if damage == "cut" || damage == "gone" {
            assert_eq!(sealed::verify(&signals).unwrap().1.len(), 1, "{damage}");
        }
        let second = tables(Bounds::default());
        assert_eq!(second.open(Source::Signals, dir.path(), "signals", cluster).unwrap(), BTreeMap::new(), "{damage}");
        fill(&second);
        assert_eq!(ask(&second, &Scope::All, "SELECT count(*) AS n FROM signals").await, [json!({"n": 10})]);
        assert!(second.tidy(Source::Signals, true).unwrap());
    }
}

#[tokio::test]
async fn rows_older_than_the_topic_keeps_are_not_answered_and_their_files_go() {
    static CLOCK: AtomicI64 = AtomicI64::new(NOW);
    let dir = tempfile::tempdir().unwrap();
    let tables = Tables::new(Bounds::default(), Limits::default(), || Wall(CLOCK.load(Ordering::Relaxed))).unwrap();
    tables.open(Source::Signals, dir.path(), "signals", "cluster-1").unwrap();
    for day in 0..3 {
        put(&tables, Source::Signals, day, "acme", &signal("acme", day, "NEAR", NOW - 29 * DAY + day * DAY));
        assert!(tables.tidy(Source::Signals, true).unwrap());
    }
    let count = "SELECT count(*) AS n FROM signals";
    assert_eq!(ask(&tables, &Scope::All, count).await, [json!({"n": 3})]);
    CLOCK.store(NOW + 2 * DAY, Ordering::Relaxed);
    assert_eq!(ask(&tables, &Scope::All, count).await, [json!({"n": 2})]);
    put(&tables, Source::Signals, 3, "acme", &signal("acme", 3, "NEAR", NOW));
    assert!(tables.tidy(Source::Signals, true).unwrap());
    assert_eq!((tables.sealed().0, ask(&tables, &Scope::All, count).await), (3, vec![json!({"n": 3})]));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    /// The oracle is a map: whatever is sealed, restarted and read again in between, the answer is the same.
    #[test]
    fn wherever_it_is_sealed_cut_and_begun_again_the_rows_are_the_same(
        steps in proptest::collection::vec((0_usize..6, 0_u8..10), 1..80),
    ) {
        const STATES: [&str; 3] = ["ISSUED", "SUCCEEDED", "REVERTED"];
        let dir = tempfile::tempdir().unwrap();
        let bounds = Bounds { rows: 3, ..Bounds::default() };
        let open = || {
            let tables = tables(bounds);
            let next = tables.open(Source::Interventions, dir.path(), "interventions", "c").unwrap();
            (tables, next.get(&0).copied().unwrap_or_default())
        };
        let (mut tables, _) = open();
        let mut log: Vec<Value> = Vec::new();
        let mut expected: BTreeMap<String, (u64, &str)> = BTreeMap::new();
        for (id, what) in steps {
            match what {
                0 => drop(tables.tidy(Source::Interventions, true).unwrap()),
                1 => drop(tables.tidy(Source::Interventions, false).unwrap()),
                2 => {
                    let (again, next) = open();
                    tables = again;
                    for (offset, record) in log.iter().enumerate().skip(usize::try_from(next).unwrap()) {
                        put(&tables, Source::Interventions, i64::try_from(offset).unwrap(), "t", record);
                    }
                }
                _ => {
                    let id = format!("i-{id}");
                    let entry = expected.entry(id.clone()).or_insert((0, ""));
                    *entry = (entry.0 + 1, STATES[usize::from(what) % 3]);
                    let record = intervention("t", &id, entry.0, entry.1);
                    put(&tables, Source::Interventions, i64::try_from(log.len()).unwrap(), "t", &record);
                    log.push(record);
                }
            }
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let rows = runtime.block_on(ask(&tables, &Scope::All, "SELECT intervention_id AS i, revision AS r, state AS s FROM interventions ORDER BY 1"));
        let found: Vec<(String, u64, String)> = rows
            .iter()
            .map(|row| (row["i"].as_str().unwrap().into(), row["r"].as_u64().unwrap(), row["s"].as_str().unwrap().into()))
            .collect();
        let expected: Vec<(String, u64, String)> = expected.into_iter().map(|(i, (r, s))| (i, r, s.to_owned())).collect();
        prop_assert_eq!(found, expected);
    }
}

#[tokio::test]
async fn every_view_can_be_planned_and_read_and_has_a_name_of_its_own() {
    let tables = tables(Bounds::default());
    for (name, ..) in VIEWS {
        assert!(schema::table(name).is_none(), "{name}");
        assert!(ask(&tables, &Scope::of("acme"), &format!("SELECT * FROM {name}")).await.is_empty(), "{name}");
    }
    for name in ["conflicts", "dependencies"] {
        assert!(ask(&tables, &Scope::of("acme"), &format!("SELECT * FROM {name}")).await.is_empty(), "{name}");
    }
}

#[tokio::test]
async fn a_question_may_wait_until_what_was_committed_is_there() {
    let tables = tables(Bounds::default());
    assert!(!tables.wait_for(Wall(5), Duration::ZERO).await);
    tables.seen(Wall(6));
    tables.seen(Wall(4));
    assert!(tables.wait_for(Wall(5), Duration::ZERO).await);
}
