use super::client::{Client, Told};
use super::{ACME, ALL, served};
use crate::serve::sql::{Ended, Limits};

const TEXT: u32 = 25;
const INT4: u32 = 23;
const INT8: u32 = 20;
const FLOAT8: u32 = 701;
const TIMESTAMPTZ: u32 = 1184;

fn code(result: Result<Client, Told>) -> String {
    result.map_or_else(|(code, _)| code, |_| String::new())
}

#[tokio::test]
async fn a_token_is_the_password_and_nothing_else_is() {
    let served = served(false, Limits::default()).await;
    let with = |password, settings| Client::log_in(served.address, "runwarden", password, settings);
    assert_eq!(code(with(Some(ACME), &[]).await), "");
    assert_eq!(code(with(Some("a token of tenant acm"), &[]).await), "28P01");
    assert_eq!(code(with(Some(""), &[]).await), "28P01");
    assert_eq!(code(with(None, &[]).await), "asked");
    assert_eq!(code(with(Some(ACME), &[("database", "postgres")]).await), "3D000");
    assert_eq!(code(with(Some(ACME), &[("database", "runwarden"), ("replication", "true")]).await), "0A000");
    assert_eq!(served.sql.counts().denied(), 2);
}

#[tokio::test]
async fn where_loopback_is_open_one_user_needs_no_password_and_others_do() {
    let served = served(true, Limits::default()).await;
    let with = |user, password| Client::log_in(served.address, user, password, &[]);
    let mut open = with("runwarden", None).await.unwrap();
    assert_eq!(open.simple("SELECT count(*) FROM signals").await.value(), "4");
    assert_eq!(code(with("tenant:acme", None).await), "asked");
    let mut acme = with("somebody", Some(ACME)).await.unwrap();
    assert_eq!(acme.simple("SELECT count(*) FROM signals").await.value(), "3");
}

#[tokio::test]
async fn a_session_sees_its_tenant_and_can_only_see_less() {
    let served = served(false, Limits::default()).await;
    let mut acme = Client::of(served.address, ACME).await;
    assert_eq!(acme.simple("SELECT DISTINCT tenant_id FROM signals").await.value(), "acme");
    assert_eq!(acme.simple("SET runwarden.tenant = 'globex'").await.code(), "42501");
    assert_eq!(acme.simple("SET runwarden.tenant = '*'").await.code(), "42501");
    assert_eq!(acme.simple("RESET runwarden.tenant").await.code(), "42501");
    assert_eq!(acme.simple("SET runwarden.tenant = 'acme'").await.tags, ["SET"]);

    let mut all = Client::of(served.address, ALL).await;
    assert_eq!(all.simple("SELECT count(*) FROM signals").await.value(), "4");
    all.parse("wide", "SELECT count(*) FROM signals", &[]).await;
    assert_eq!(all.sync().await.code(), "");
    assert_eq!(all.simple("SET runwarden.tenant = 'globex'; SELECT signal_id FROM signals").await.value(), "s-4");
    all.bind("", "wide", &[]).await;
    assert_eq!(all.sync().await.code(), "26000", "what was planned with more to see is forgotten");
    for widening in ["SET runwarden.tenant = '*'", "RESET runwarden.tenant", "SET \"runwarden\".\"Tenant\" TO 'acme'"] {
        assert_eq!(all.simple(widening).await.code(), "42501", "{widening}");
    }
    all.simple("RESET ALL; DISCARD ALL").await;
    assert_eq!(all.simple("SELECT count(*) FROM signals").await.value(), "1");
    assert_eq!(all.simple("SHOW runwarden.tenant").await.value(), "globex");

    let narrowed = [("options", "-c runwarden.tenant=acme -c statement_timeout=5s")];
    let mut narrowed = Client::log_in(served.address, "x", Some(ALL), &narrowed).await.unwrap();
    assert_eq!(narrowed.simple("SELECT count(*) FROM signals").await.value(), "3");
    assert_eq!(narrowed.simple("SHOW statement_timeout").await.value(), "5s");
    let wider = [("runwarden.tenant", "globex")];
    assert_eq!(code(Client::log_in(served.address, "x", Some(ACME), &wider).await), "42501");
}

#[tokio::test]
async fn simple_queries_hold_none_one_or_several_statements() {
    let served = served(false, Limits::default()).await;
    let mut client = Client::of(served.address, ACME).await;
    for nothing in ["", ";", "-- ping", " /* nothing */ ; "] {
        let answer = client.simple(nothing).await;
        assert_eq!((answer.empty, answer.tags.len(), answer.status), (1, 0, Some('I')), "{nothing:?}");
    }
    let several =
        client.simple("SELECT 1; SET a.b = 'c'; SHOW a.b; SELECT kind FROM signals ORDER BY event_time").await;
    assert_eq!(several.tags, ["SELECT 1", "SET", "SHOW", "SELECT 3"]);
    assert_eq!(several.first(), ["1", "c", "NEAR", "BREACH", "RESOLVED"]);
    let halfway = client.simple("SELECT 1; SELECT nothing FROM signals; SELECT 2").await;
    assert_eq!((halfway.tags.len(), halfway.rows.len(), halfway.code(), halfway.status), (1, 1, "42703", Some('I')));
    let refused = client.simple("SELECT 1; DELETE FROM signals").await;
    assert_eq!((refused.rows.len(), refused.code()), (0, "25006"), "nothing is run where one is refused");
    assert_eq!(served.sql.counts().ended(Ended::Refused), 1);
    assert_eq!(served.sql.counts().ended(Ended::Failed), 1);
}

#[tokio::test]
async fn errors_say_what_was_wrong_by_their_code() {
    let served = served(false, Limits::default()).await;
    let mut client = Client::of(served.address, ACME).await;
    for (sql, code) in [
        ("SELEC 1", "42601"),
        ("SELECT * FROM nothing", "42P01"),
        ("SELECT nothing FROM signals", "42703"),
        ("SELECT s.nothing FROM signals s", "42703"),
        ("SELECT run_id FROM signals JOIN runs ON true", "42702"),
        ("SELECT no_such_function(1)", "42883"),
        ("SELECT current_setting('no.such')", "42704"),
        ("SHOW no_such", "42704"),
        ("SELECT 'x'::bigint", "22000"),
        ("SELECT * FROM '/etc/passwd'", "42501"),
        ("INSERT INTO signals (signal_id) VALUES ('x')", "25006"),
        ("CREATE TABLE x (a int)", "25006"),
        ("COPY signals TO STDOUT", "25006"),
        ("EXPLAIN ANALYZE SELECT 1", "42501"),
        ("DECLARE c CURSOR FOR SELECT 1", "0A000"),
    ] {
        let answer = client.simple(sql).await;
        assert_eq!((answer.code(), answer.status), (code, Some('I')), "{sql}: {answer:?}");
    }
    assert_eq!(client.simple("SELECT 1").await.value(), "1", "and the connection goes on");
}

#[tokio::test]
async fn a_transaction_that_failed_takes_its_end_only() {
    let served = served(false, Limits::default()).await;
    let mut client = Client::of(served.address, ACME).await;
    assert_eq!(client.simple("BEGIN").await.status, Some('T'));
    assert_eq!(client.simple("SELECT 1").await.status, Some('T'));
    assert_eq!(client.simple("SELECT nothing").await.status, Some('E'));
    assert_eq!(client.simple("SELECT 1").await.code(), "25P02");
    let end = client.simple("COMMIT").await;
    assert_eq!((end.tags, end.status), (vec!["ROLLBACK".to_owned()], Some('I')));
    assert_eq!(client.simple("BEGIN READ ONLY; SELECT 1; COMMIT").await.tags, ["BEGIN", "SELECT 1", "COMMIT"]);
}

#[tokio::test]
async fn parameters_are_of_the_types_that_clients_say_or_that_the_query_asks_for() {
    let served = served(false, Limits::default()).await;
    let mut client = Client::of(served.address, ALL).await;
    let ids = "SELECT signal_id FROM signals WHERE";
    let order = "ORDER BY signal_id";
    for (sql, types, values, found) in [
        (format!("{ids} tenant_id = $1 AND value > $2 {order}"), vec![], vec!["acme", "50"], vec!["s-1", "s-2"]),
        (format!("{ids} value > $1 {order}"), vec![INT4], vec!["100"], vec!["s-2", "s-4"]),
        (format!("{ids} value > $1 {order} LIMIT $2"), vec![FLOAT8, 21], vec!["1.5", "1"], vec!["s-1"]),
        (
            format!("{ids} event_time >= $1 {order}"),
            vec![TIMESTAMPTZ],
            vec!["2026-08-01 14:01:00+02"],
            vec!["s-3", "s-4"],
        ),
        (format!("{ids} event_time >= $1 {order}"), vec![], vec!["2026-08-01T12:01:00Z"], vec!["s-3", "s-4"]),
        (format!("{ids} policy_version = $1 AND kind = $2 {order}"), vec![INT8, TEXT], vec!["3", "NEAR"], vec!["s-1"]),
        (format!("{ids} kind = ANY($1) {order}"), vec![1009], vec!["{NEAR,RESOLVED}"], vec!["s-1", "s-3"]),
        (format!("{ids} kind = ANY($1) {order}"), vec![], vec!["{NEAR,RESOLVED}"], vec!["s-1", "s-3"]),
        (
            format!("{ids} is_synthetic = $1 AND kind <> $2 {order}"),
            vec![16, 0],
            vec!["f", "BREACH"],
            vec!["s-1", "s-3"],
        ),
    ] {
        let values: Vec<_> = values.into_iter().map(Some).collect();
        let answer = client.extended(&sql, &types, &values).await;
        assert_eq!(answer.first(), found, "{sql}");
        assert_eq!(answer.tags, [format!("SELECT {}", found.len())]);
    }
    let echoed = client.extended("SELECT $1, $2::bigint, $3", &[0, 0, INT4], &[Some("x"), Some("5"), None]).await;
    assert_eq!(echoed.rows, [[Some("x".to_owned()), Some("5".to_owned()), None]]);
    let types: Vec<_> = echoed.columns.iter().map(|(_, oid)| *oid).collect();
    assert_eq!(types, [TEXT, INT8, INT8]);
}

#[tokio::test]
async fn a_prepared_statement_says_its_types_and_a_portal_is_read_in_parts() {
    let served = served(false, Limits::default()).await;
    let mut client = Client::of(served.address, ALL).await;
    client.parse("s", "SELECT signal_id, value, event_time FROM signals WHERE value < $1 ORDER BY 1", &[]).await;
    client.describe('S', "s").await;
    let described = client.sync().await;
    assert_eq!(described.asked, [FLOAT8]);
    let columns: Vec<_> = described.columns.iter().map(|(name, oid)| (name.as_str(), *oid)).collect();
    assert_eq!(columns, [("signal_id", TEXT), ("value", FLOAT8), ("event_time", TIMESTAMPTZ)]);

    assert_eq!(client.simple("BEGIN").await.status, Some('T'));
    client.bind("p", "s", &[Some("1000")]).await;
    client.execute("p", 3).await;
    let part = client.sync().await;
    assert_eq!((part.rows.len(), part.suspended, part.tags.len()), (3, 1, 0));
    client.execute("p", 3).await;
    let rest = client.sync().await;
    assert_eq!((rest.rows.len(), rest.suspended, rest.tags), (1, 0, vec!["SELECT 1".to_owned()]));
    client.execute("p", -5).await;
    assert_eq!(client.sync().await.tags, ["SELECT 0"]);
    client.simple("COMMIT").await;
    client.execute("p", 0).await;
    assert_eq!(client.sync().await.code(), "", "the transaction's end does not take it; Sync does");
    client.execute("p", 0).await;
    assert_eq!(client.sync().await.code(), "34000");

    assert_eq!(client.simple("DEALLOCATE s").await.tags, ["DEALLOCATE"]);
    client.bind("", "s", &[Some("1")]).await;
    client.execute("", 0).await;
    let gone = client.sync().await;
    assert_eq!((gone.code(), gone.status), ("26000", Some('I')), "what follows an error is passed over until Sync");
}

#[tokio::test]
async fn the_extended_protocol_is_as_strict_as_the_simple_one() {
    let served = served(false, Limits::default()).await;
    let mut client = Client::of(served.address, ACME).await;
    assert_eq!(client.extended("DELETE FROM signals", &[], &[]).await.code(), "25006");
    assert_eq!(client.extended("SELECT 1; SELECT 2", &[], &[]).await.code(), "42601");
    assert_eq!(client.extended("SELECT $1::text", &[], &[]).await.code(), "08P01");
    assert_eq!(client.extended("SELECT $5000", &[], &[]).await.code(), "53400");
    assert_eq!(client.extended("SELECT $x", &[], &[]).await.code(), "42601");
    assert_eq!(client.extended("-- ping", &[], &[]).await.empty, 1);
    assert_eq!(client.extended("SHOW server_version_num", &[], &[]).await.value(), "160006");
    assert_eq!(client.extended("SET a.b = 'c'", &[], &[]).await.tags, ["SET"]);
    assert_eq!(client.extended("BEGIN", &[], &[]).await.status, Some('T'));
    assert_eq!(client.extended("SELECT nothing", &[], &[]).await.status, Some('E'));
    assert_eq!(client.extended("SELECT 1", &[], &[]).await.code(), "25P02");
    assert_eq!(client.extended("ROLLBACK", &[], &[]).await.status, Some('I'));

    // more formats than there are columns, and fewer
    client.parse("", "SELECT 1, 2", &[]).await;
    client.send('B', b"\0\0\0\0\0\0\0\x03\0\0\0\0\0\0").await;
    assert_eq!(client.sync().await.code(), "08P01");
    client.parse("", "SELECT 1, 2, 3", &[]).await;
    client.send('B', b"\0\0\0\0\0\0\0\x02\0\0\0\0").await;
    assert_eq!(client.sync().await.code(), "08P01");
    client.parse("", "SELECT 1", &[]).await;
    client.send('B', b"\0\0\0\0\0\0\0\x01\0\x07").await;
    assert_eq!(client.sync().await.code(), "22023");
}

#[tokio::test]
async fn expressions_of_many_types_are_sent_as_postgres_writes_them() {
    let served = served(false, Limits::default()).await;
    let mut client = Client::of(served.address, ALL).await;
    for (sql, oid, value) in [
        ("SELECT true", 16, "t"),
        ("SELECT 5::bigint", INT8, "5"),
        ("SELECT 2.5::double precision", FLOAT8, "2.5"),
        ("SELECT 'x'::text", TEXT, "x"),
        ("SELECT event_time FROM signals WHERE signal_id = 's-1'", TIMESTAMPTZ, "2026-08-01 12:00:00.250000+00"),
        (
            "SELECT date_trunc('hour', event_time) FROM signals WHERE signal_id = 's-1'",
            TIMESTAMPTZ,
            "2026-08-01 12:00:00.000000+00",
        ),
        ("SELECT event_time::date FROM signals WHERE signal_id = 's-1'", 1082, "2026-08-01"),
        ("SELECT sum(value) FROM signals WHERE tenant_id = 'globex'", FLOAT8, "140.0"),
        ("SELECT avg(policy_version) FROM signals", FLOAT8, "3.0"),
        ("SELECT count(*) FROM signals", INT8, "4"),
        ("SELECT array_agg(kind ORDER BY kind) FROM signals WHERE tenant_id = 'acme'", 1009, "{BREACH,NEAR,RESOLVED}"),
        ("SELECT interval '90 seconds'", 1186, "00:01:30"),
        ("SELECT max(event_time) - min(event_time) FROM signals", 1186, "00:05:59.750000"),
        ("SELECT 1.25::decimal(5,2)", 1700, "1.25"),
        ("SELECT NULL::text", TEXT, "NULL"),
    ] {
        let answer = client.simple(sql).await;
        assert_eq!(
            (answer.columns.first().map(|(_, oid)| *oid), answer.errors.len()),
            (Some(oid), 0),
            "{sql}: {answer:?}"
        );
        assert_eq!(answer.value(), value, "{sql}");
    }
}

#[tokio::test]
async fn a_client_is_told_at_the_begin_what_it_needs_to_know() {
    let served = served(false, Limits::default()).await;
    let mut client = Client::log_in(served.address, "x", Some(ACME), &[("application_name", "test")]).await.unwrap();
    let told = |name: &str| client.parameters.iter().find(|(told, _)| told == name).map(|(_, value)| value.as_str());
    assert_eq!((told("client_encoding"), told("standard_conforming_strings")), (Some("UTF8"), Some("on")));
    assert_eq!((told("server_version"), told("TimeZone")), (Some("16.6"), Some("UTC")));
    assert_eq!((told("application_name"), told("session_authorization")), (Some("test"), Some("x")));
    assert!(client.simple("SELECT version()").await.value().starts_with("PostgreSQL 16.6"));
    assert_eq!(client.simple("SELECT current_user").await.value(), "x");
    assert_eq!(client.simple("SELECT current_database()").await.value(), "runwarden");
    let plan = client.simple("EXPLAIN SELECT kind FROM signals WHERE value > 5").await;
    assert_eq!((plan.columns[0].0.as_str(), plan.tags[0].as_str()), ("QUERY PLAN", "EXPLAIN"));
    assert!(plan.first().iter().any(|line| line.contains("TableScan: signals")), "{plan:?}");
    assert!(client.simple("SHOW ALL").await.rows.len() > 20);
}

#[tokio::test]
async fn encryption_is_declined_and_an_older_protocol_is_agreed_upon() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let served = served(false, Limits::default()).await;
    let mut stream = tokio::net::TcpStream::connect(served.address).await.unwrap();
    for request in [80_877_104_i32, 80_877_103] {
        stream.write_all(&[8_i32.to_be_bytes(), request.to_be_bytes()].concat()).await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'N');
    }
    let body = [&[0, 3, 0, 2], b"user\0x\0_pq_.new\0on\0\0".as_slice()].concat();
    let length = i32::try_from(body.len() + 4).unwrap();
    stream.write_all(&[&length.to_be_bytes(), body.as_slice()].concat()).await.unwrap();
    let mut client = Client { stream, key: (0, 0), parameters: vec![] };
    let (kind, body) = client.read().await.unwrap();
    assert_eq!((kind, &body[..4]), ('v', [0, 3, 0, 0].as_slice()));
    assert!(body.ends_with(b"_pq_.new\0"));
    assert_eq!(client.read().await.unwrap().0, 'R');
}
