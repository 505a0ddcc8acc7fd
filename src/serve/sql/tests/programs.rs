//! psql, and psycopg, where the environment names them: `RUNWARDEN_TEST_PSQL` (a psql), `RUNWARDEN_TEST_PYTHON` (a Python with psycopg).

use std::process::{Command, Output};

use super::{ACME, ALL, Served, served};
use crate::serve::sql::Limits;

/// What a program said, run where the server is not held up by it.
async fn run(mut command: Command) -> Output {
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

fn program(variable: &str) -> Option<String> {
    let named = std::env::var(variable).ok().filter(|named| !named.is_empty());
    if named.is_none() {
        eprintln!("skipped: {variable} is not set");
    }
    named
}

async fn psql(served: &Served, program: &str, token: &str, commands: &[&str]) -> (String, String) {
    let mut command = Command::new(program);
    let address = served.address;
    command.args([
        "-X",
        "-h",
        "127.0.0.1",
        "-p",
        &address.port().to_string(),
        "-U",
        "runwarden",
        "-d",
        "runwarden",
        "-w",
    ]);
    command.env("PGPASSWORD", token).env("PAGER", "cat");
    for one in commands {
        command.args(["-c", one]);
    }
    let output = run(command).await;
    (String::from_utf8_lossy(&output.stdout).into_owned(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn psql_lists_and_describes_tables_and_is_refused_writes() {
    let Some(program) = program("RUNWARDEN_TEST_PSQL") else { return };
    let served = served(false, Limits::default()).await;
    let (out, err) = psql(&served, &program, ACME, &["\\dt", "\\d", "\\dn", "\\l", "\\dx", "\\conninfo"]).await;
    assert_eq!(err, "");
    assert!(out.contains("| signals") && out.contains("| policy_level"), "{out}");
    let (out, err) = psql(&served, &program, ACME, &["\\d signals", "\\dt+", "\\d runs"]).await;
    assert_eq!(err, "");
    assert!(
        out.contains("event_time") && out.contains("timestamp with time zone") && out.contains("double precision"),
        "{out}"
    );
    let (out, err) = psql(&served, &program, ACME, &["SELECT count(*) FROM signals", "DELETE FROM signals"]).await;
    assert!(out.contains("3") && err.contains("cannot execute DELETE: this server only reads"), "{out} {err}");
    let (_, err) = psql(&served, &program, "wrong", &["SELECT 1"]).await;
    assert!(err.contains("password authentication failed"), "{err}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn psycopg_queries_with_parameters_over_both_protocols() {
    let Some(python) = program("RUNWARDEN_TEST_PYTHON") else { return };
    let served = served(false, Limits::default()).await;
    let script = r#"
import sys, datetime, psycopg
utc = datetime.timezone.utc
with psycopg.connect(host="127.0.0.1", port=int(sys.argv[1]), user="runwarden", password=sys.argv[2], dbname="runwarden",
                     options="-c runwarden.tenant=acme") as c:
    # often enough that psycopg prepares it
    for _ in range(8):
        rows = c.execute("SELECT signal_id, value, event_time, policy_version, is_synthetic FROM signals "
                         "WHERE tenant_id = %s AND value > %s AND event_time < %s AND kind = ANY(%s) ORDER BY 1 LIMIT %s",
                         ("acme", 50, datetime.datetime(2026, 8, 1, 12, 5, tzinfo=utc), ["NEAR", "BREACH"], 10)).fetchall()
    assert rows == [("s-1", 82.5, datetime.datetime(2026, 8, 1, 12, 0, 0, 250000, tzinfo=utc), 3, False),
                    ("s-2", 101.0, datetime.datetime(2026, 8, 1, 12, 0, 30, tzinfo=utc), 3, False)], rows
    cursor = psycopg.ClientCursor(c)
    assert cursor.execute("SELECT count(*) FROM signals WHERE kind <> %s", ("NEAR",)).fetchone() == (2,)
    binary = c.cursor(binary=True)
    assert binary.execute("SELECT value, event_time, kind, policy_version FROM signals WHERE signal_id = %s", ("s-2",)).fetchall() == \
        [(101.0, datetime.datetime(2026, 8, 1, 12, 0, 30, tzinfo=utc), "BREACH", 3)]
    with c.transaction():
        with c.transaction():
            assert c.execute("SELECT %s::bigint + 1", (41,)).fetchone() == (42,)
    c.commit()
    try:
        c.execute("INSERT INTO signals (signal_id) VALUES (%s)", ("x",))
        raise SystemExit("an INSERT was taken")
    except psycopg.errors.ReadOnlySqlTransaction:
        c.rollback()
    try:
        c.execute("SELECT nothing FROM signals WHERE kind = %s", ("x",))
        raise SystemExit("an unknown column was found")
    except psycopg.errors.UndefinedColumn:
        c.rollback()
    assert c.execute("SELECT 1").fetchone() == (1,)
    assert c.info.server_version == 160006, c.info.server_version
"#;
    let mut command = Command::new(python);
    command.args(["-c", script, &served.address.port().to_string(), ALL]);
    let output = run(command).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
