use super::*;

fn code(text: &str) -> &'static str {
    match read(text) {
        Ok(_) => "",
        Err(error) => error.code(),
    }
}

#[test]
fn what_reads_is_admitted() {
    for text in [
        "SELECT 1",
        "select * from signals where kind = 'BREACH' -- a comment; DROP TABLE signals",
        "WITH a AS (SELECT 1 AS x), b AS (SELECT x FROM a) SELECT * FROM b UNION ALL SELECT 2 ORDER BY 1",
        "VALUES (1, 'a'), (2, 'b')",
        "(SELECT 1)",
        "SELECT ';DELETE FROM signals' AS x, $1::text, E'it\\'s', $$DROP TABLE x$$",
        "SELECT * FROM generate_series(1, 5) AS g(i) JOIN pg_catalog.pg_class c ON c.oid = g.i",
        "SELECT * FROM signals s, LATERAL (SELECT 1) l WHERE s.tenant_id = ANY(ARRAY['a', 'b'])",
        "/* a */ SELECT /* b; */ 1 /* c */;",
    ] {
        assert!(matches!(read(text).as_deref(), Ok([Admitted::Query(_)])), "{text}: {:?}", read(text));
    }
    for text in ["EXPLAIN SELECT 1", "EXPLAIN (VERBOSE, ANALYZE false, FORMAT TEXT) SELECT 1"] {
        assert!(matches!(read(text).as_deref(), Ok([Admitted::Explain(_)])), "{text}: {:?}", read(text));
    }
}

#[test]
fn what_writes_is_refused_wherever_it_stands() {
    for text in [
        "INSERT INTO signals VALUES (1)",
        "INSERT INTO signals SELECT * FROM signals",
        "UPDATE signals SET kind = 'NEAR'",
        "DELETE FROM signals",
        "TRUNCATE signals",
        "CREATE TABLE x (a int)",
        "CREATE TABLE x AS SELECT 1",
        "CREATE VIEW x AS SELECT 1",
        "CREATE EXTERNAL TABLE x STORED AS CSV LOCATION '/etc/passwd'",
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE ROLE x",
        "DROP TABLE signals",
        "DROP VIEW threshold_signals",
        "ALTER TABLE signals ADD COLUMN x int",
        "COPY signals TO '/tmp/x'",
        "COPY signals FROM STDIN",
        "COPY (SELECT 1) TO STDOUT",
        "GRANT SELECT ON signals TO x",
        "REVOKE SELECT ON signals FROM x",
        "SELECT * INTO x FROM signals",
        "SELECT 1 UNION SELECT 2 AS y FROM (SELECT * INTO z FROM signals) q",
        "WITH a AS (INSERT INTO signals VALUES (1) RETURNING *) SELECT * FROM a",
        "WITH a AS (WITH b AS (DELETE FROM signals RETURNING *) SELECT * FROM b) SELECT * FROM a",
        "WITH a AS (SELECT 1) INSERT INTO signals SELECT * FROM a",
        "SELECT (WITH a AS (UPDATE signals SET kind = '' RETURNING 1) SELECT * FROM a)",
        "SELECT * FROM signals WHERE EXISTS (SELECT * INTO y FROM signals)",
        "SELECT * FROM signals FOR UPDATE",
        "SELECT * FROM (SELECT * FROM signals FOR SHARE) s",
        "MERGE INTO signals USING runs ON true WHEN MATCHED THEN DELETE",
        "EXPLAIN DELETE FROM signals",
        "EXPLAIN INSERT INTO signals SELECT 1",
        "SELECT 1; DROP TABLE signals",
        "BEGIN; SELECT 1; DELETE FROM signals; COMMIT",
        "/* SELECT */ DELETE FROM signals -- SELECT",
    ] {
        let code = code(text);
        // what the parser does not know at all is a mistake in it; that is no less refused
        assert!(code == "25006" || (code == "42601" && text.contains("EXTERNAL")), "{text}: {code:?} {:?}", read(text));
    }
}

#[test]
fn neither_files_nor_other_sessions_nor_the_session_itself_are_reached() {
    for text in [
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM \"/etc/passwd\"",
        "SELECT * FROM \"s3://bucket/x.parquet\"",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM parquet_metadata('/data/x')",
        "SELECT * FROM pg_ls_dir('/')",
        "SELECT repeat('x', 2000000000)",
        "SELECT length(pg_catalog.LPAD('x', 2000000000))",
        "SELECT unnest(generate_series(1, 1000000000))",
        "SELECT 1 FROM signals WHERE array_repeat(1, 1000000000) IS NULL",
        "SELECT 1 FROM signals JOIN LATERAL read_parquet('x') r ON true",
        "EXPLAIN ANALYZE SELECT 1",
        "EXPLAIN (ANALYZE) SELECT 1",
        "EXPLAIN (ANALYZE true, VERBOSE) SELECT 1",
        "CALL x()",
        "SET ROLE postgres",
        "SET SESSION AUTHORIZATION postgres",
        "LISTEN x",
        "NOTIFY x",
        "USE other",
        "KILL 5",
        "SHOW TABLES",
        "SHOW COLUMNS FROM signals",
        "DESCRIBE signals",
        "INSTALL x",
        "ATTACH DATABASE 'x' AS y",
    ] {
        assert!(["42501", "42601"].contains(&code(text)), "{text}: {:?}", read(text));
    }
    for text in ["PREPARE p AS SELECT 1", "EXECUTE p", "DECLARE c CURSOR FOR SELECT 1", "FETCH 5 FROM c", "CLOSE c"] {
        assert!(["0A000", "42601"].contains(&code(text)), "{text}: {:?}", read(text));
    }
}

#[test]
fn what_clients_say_of_session_and_transaction_is_accepted() {
    let one = |text: &str| match read(text).unwrap_or_else(|error| panic!("{text}: {error}")).as_slice() {
        [one] => one.clone(),
        other => panic!("{text}: {other:?}"),
    };
    let set = |name: &str, value: &str| Admitted::Set(name.to_owned(), Some(value.to_owned()));
    assert_eq!(one("SET application_name = 'x'"), set("application_name", "x"));
    assert_eq!(one("set session DateStyle to ISO, MDY"), set("datestyle", "ISO, MDY"));
    assert_eq!(one("SET runwarden.tenant = 'acme'"), set("runwarden.tenant", "acme"));
    assert_eq!(one("SET statement_timeout = 5000"), set("statement_timeout", "5000"));
    assert_eq!(one("SET TIME ZONE 'Europe/Berlin'"), set("timezone", "Europe/Berlin"));
    assert_eq!(one("SET NAMES utf8"), set("client_encoding", "utf8"));
    assert_eq!(one("SET search_path TO DEFAULT"), Admitted::Set("search_path".into(), None));
    assert_eq!(one("RESET search_path"), Admitted::Set("search_path".into(), None));
    assert_eq!(one("RESET ALL"), Admitted::ResetAll);
    assert_eq!(one("SHOW server_version"), Admitted::Show("server_version".into()));
    assert_eq!(one("SHOW TRANSACTION ISOLATION LEVEL"), Admitted::Show("transaction_isolation".into()));
    assert_eq!(one("SHOW TIME ZONE"), Admitted::Show("timezone".into()));
    assert_eq!(one("SHOW runwarden.tenant"), Admitted::Show("runwarden.tenant".into()));
    assert_eq!(one("BEGIN READ ONLY"), Admitted::Begin);
    assert_eq!(one("START TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"), Admitted::Begin);
    assert_eq!((one("COMMIT"), one("END"), one("ROLLBACK")), (Admitted::Commit, Admitted::Commit, Admitted::Rollback));
    assert_eq!(one("ABORT"), Admitted::Rollback);
    assert_eq!(one("ROLLBACK TO SAVEPOINT a"), Admitted::RollbackTo);
    assert_eq!(
        (one("SAVEPOINT a"), one("RELEASE SAVEPOINT a")),
        (Admitted::Nothing("SAVEPOINT"), Admitted::Nothing("RELEASE"))
    );
    assert_eq!(one("DEALLOCATE ALL"), Admitted::Deallocate(None));
    assert_eq!(one("DEALLOCATE \"_pg3_0\""), Admitted::Deallocate(Some("_pg3_0".into())));
    assert_eq!(one("DISCARD ALL"), Admitted::DiscardAll);
    assert_eq!(one("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY"), Admitted::Nothing("SET"));
}

#[test]
fn a_text_without_a_statement_holds_none_and_one_with_several_all_of_them() {
    for text in ["", ";", " ; ;\n", "-- ping", "/* nothing */", "-- a\n-- b\n;"] {
        assert_eq!(read(text), Ok(vec![]), "{text:?}");
    }
    assert_eq!(read("BEGIN; SELECT 1; SELECT 2;; COMMIT;").map(|all| all.len()), Ok(4));
    assert_eq!(code(&"SELECT 1;".repeat(101)), "54001");
    for text in ["SELEC 1", "SELECT 1 FROM", "SELECT 'a", "SELECT /* ", "SELECT (1", "SELECT 1 2 3"] {
        assert_eq!(code(text), "42601", "{text}");
    }
}

#[test]
fn a_text_that_is_too_long_or_too_deep_is_refused_and_a_long_list_is_not() {
    let in_list = format!("SELECT 1 FROM signals WHERE run_id IN ({}'x')", "'some-run-id',".repeat(50_000));
    assert_eq!(code(&in_list), "");
    let alternatives = format!("SELECT 1 WHERE {}", vec!["a = 'x'"; 240].join(" OR "));
    assert_eq!(code(&alternatives), "");
    assert_eq!(code(&format!("SELECT '{}'", "x".repeat(MAX_SQL))), "54000");
    for deep in [
        format!("SELECT {}1{}", "(".repeat(1_000), ")".repeat(1_000)),
        format!("SELECT {}1", "1+".repeat(100_000)),
        format!("SELECT {}true", "NOT ".repeat(5_000)),
        format!("SELECT {}1", "- ".repeat(5_000)),
        format!("SELECT 1{}", "::int".repeat(2_000)),
        format!("SELECT a{}", "[1]".repeat(2_000)),
        format!("SELECT a{}", " IS NULL".repeat(2_000)),
        format!("SELECT 1{}", " UNION SELECT 1".repeat(1_000)),
        format!("SELECT 1 FROM a{}", " JOIN a USING (x)".repeat(1_000)),
        format!("SELECT {}1{}", "(SELECT ".repeat(60), ")".repeat(60)),
        format!("SELECT {}1{}", "abs(1 + ".repeat(400), ")".repeat(400)),
        format!("SELECT {}1{}", "CASE WHEN true THEN ".repeat(200), " END".repeat(200)),
        format!("WITH {} SELECT 1", vec!["a AS (SELECT 1 FROM b)"; 70].join(", ")),
        format!("SELECT {}1{}", "ARRAY[".repeat(300), "]".repeat(300)),
        format!("SELECT {}1{}", "abs(".repeat(11), ")".repeat(11)),
        format!("SELECT * FROM {}signals{}", "(SELECT * FROM ".repeat(9), " s)".repeat(9)),
        format!("SELECT 1{}", " + 1".repeat(120)),
        format!("SELECT 1{}", "::text".repeat(120)),
        format!("SELECT 1{}", " UNION SELECT 1".repeat(120)),
    ] {
        let begin: String = deep.chars().take(40).collect();
        assert!(["54001", "42601"].contains(&code(&deep)), "{begin}: {}", code(&deep));
    }
}

#[test]
fn the_commas_of_a_list_do_not_hide_the_depth_of_what_it_stands_in() {
    // each level is short, all of them together are not
    let deep = (0..90).fold("1".to_owned(), |inner, _| format!("f(1, {}{inner})", "1+".repeat(12)));
    assert_eq!(code(&format!("SELECT {deep}")), "54001");
}
