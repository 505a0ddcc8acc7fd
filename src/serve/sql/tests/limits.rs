use std::time::Duration;

use tokio::io::AsyncWriteExt as _;

use super::client::Client;
use super::{ACME, Served, served};
use crate::serve::sql::{Ended, Limits};

/// It would take days.
const ENDLESS: &str = "SELECT count(*) FROM generate_series(1, 1000000000000000) a WHERE a.value % 7 = 3";

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waited = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waited).await.unwrap_or_else(|_| panic!("{what} did not come"));
}

fn running(served: &Served) -> usize {
    served.sql.limits.statements - served.sql.running.available_permits()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_ends_when_its_time_is_over() {
    let served = served(false, Limits { statement: Duration::from_millis(300), ..Limits::default() }).await;
    let mut client = Client::of(served.address, ACME).await;
    let answer = client.simple(ENDLESS).await;
    assert_eq!((answer.code(), answer.status), ("57014", Some('I')));
    assert_eq!(client.extended(ENDLESS, &[], &[]).await.code(), "57014");
    assert_eq!(client.simple(&format!("SET statement_timeout = '50ms'; {ENDLESS}")).await.code(), "57014");
    assert_eq!((served.sql.counts().ended(Ended::Stopped), running(&served)), (3, 0));
    assert_eq!(client.simple("SELECT 1").await.value(), "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_is_cancelled_by_who_knows_the_key() {
    let served = served(false, Limits::default()).await;
    let mut client = Client::of(served.address, ACME).await;
    let (id, secret) = client.key;
    client.send('Q', format!("{ENDLESS}\0").as_bytes()).await;
    until("the statement", || running(&served) == 1).await;
    for secret in [secret.wrapping_add(1), secret] {
        let mut other = tokio::net::TcpStream::connect(served.address).await.unwrap();
        let request = [16, 80_877_102, id, secret].map(i32::to_be_bytes).concat();
        other.write_all(&request).await.unwrap();
    }
    let answer = client.answer().await;
    assert_eq!((answer.code(), answer.status), ("57014", Some('I')));
    assert_eq!(client.simple("SELECT 1").await.value(), "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_ends_when_its_client_is_gone() {
    let served = served(false, Limits::default()).await;
    for takes_leave in [false, true] {
        let mut client = Client::of(served.address, ACME).await;
        client.send('Q', format!("{ENDLESS}\0").as_bytes()).await;
        until("the statement", || running(&served) == 1).await;
        if takes_leave {
            client.send('X', &[]).await;
        }
        drop(client);
        until("its end", || running(&served) == 0 && served.sql.counts().open() == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_beyond_the_limits_is_cut_and_the_client_is_told() {
    let served = served(false, Limits { rows: 1_000, bytes: 100_000, ..Limits::default() }).await;
    let mut client = Client::of(served.address, ACME).await;
    let rows = client.simple("SELECT value FROM generate_series(1, 1000000000)").await;
    assert_eq!((rows.rows.len(), rows.code(), rows.status), (1_000, "54000", Some('I')));
    let long = "x".repeat(1_000);
    let bytes = client.simple(&format!("SELECT '{long}' FROM generate_series(1, 1000000000)")).await;
    assert_eq!((bytes.rows.len() < 100, bytes.code()), (true, "54000"));
    assert_eq!(client.extended("SELECT value FROM generate_series(1, 1001)", &[], &[]).await.code(), "54000");
    assert_eq!(client.simple("SELECT value FROM generate_series(1, 1000)").await.rows.len(), 1_000);
}

#[tokio::test]
async fn one_client_too_many_is_told_so_and_can_cancel_still() {
    let served = served(false, Limits { connections: 2, ..Limits::default() }).await;
    let mut first = Client::of(served.address, ACME).await;
    let second = Client::of(served.address, ACME).await;
    let third = Client::log_in(served.address, "x", Some(ACME), &[]).await;
    assert_eq!(third.err().map(|(code, _)| code).as_deref(), Some("53300"));
    assert_eq!((served.sql.counts().open(), served.sql.counts().turned_away()), (2, 1));
    drop(second);
    until("a place", || served.sql.counts().open() == 1).await;
    assert_eq!(Client::of(served.address, ACME).await.simple("SELECT 1").await.value(), "1");
    assert_eq!(first.simple("SELECT 1").await.value(), "1");
}

#[tokio::test]
async fn who_does_not_log_in_and_who_says_nothing_more_is_left() {
    let limits = Limits { startup: Duration::from_millis(100), idle: Duration::from_millis(100), ..Limits::default() };
    let served = served(false, limits).await;
    let mut slow = Client {
        stream: tokio::net::TcpStream::connect(served.address).await.unwrap(),
        key: (0, 0),
        parameters: vec![],
    };
    assert_eq!(slow.answer().await.code(), "08006");
    let mut idle = Client::of(served.address, ACME).await;
    let left = idle.answer().await;
    assert_eq!((left.code(), left.status), ("57P05", None));
}

#[tokio::test]
async fn a_message_that_is_too_long_is_not_even_read() {
    let served = served(false, Limits::default()).await;
    // before the log-in, instead of the password
    let mut stream = tokio::net::TcpStream::connect(served.address).await.unwrap();
    stream.write_all(b"\0\0\0\x10\0\x03\0\0user\0x\0\0").await.unwrap();
    let mut client = Client { stream, key: (0, 0), parameters: vec![] };
    assert_eq!(client.read().await.unwrap().0, 'R');
    client.stream.write_all(b"Q\x3f\xff\xff\xff").await.unwrap();
    assert_eq!(client.answer().await.code(), "08P01");
    // after it
    let mut client = Client::of(served.address, ACME).await;
    client.stream.write_all(b"Q\x3f\xff\xff\xff").await.unwrap();
    let left = client.answer().await;
    assert_eq!((left.code(), left.status), ("08P01", None));
    // a first message that is none
    let mut client = Client {
        stream: tokio::net::TcpStream::connect(served.address).await.unwrap(),
        key: (0, 0),
        parameters: vec![],
    };
    client.stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    assert_eq!(client.answer().await.code(), "08P01");
}

#[tokio::test]
async fn what_a_connection_prepares_is_bounded() {
    let served = served(false, Limits::default()).await;
    let mut client = Client::of(served.address, ACME).await;
    for n in 0..256 {
        client.parse(&format!("s{n}"), "SELECT 1", &[]).await;
    }
    assert_eq!(client.sync().await.code(), "");
    client.parse("one more", "SELECT 1", &[]).await;
    assert_eq!(client.sync().await.code(), "53400");
    client.simple("DEALLOCATE ALL; BEGIN").await;
    client.parse("s", "SELECT 1", &[]).await;
    for n in 0..65 {
        client.bind(&format!("p{n}"), "s", &[]).await;
    }
    assert_eq!(client.sync().await.code(), "53400");
}

#[tokio::test]
async fn answers_that_are_not_asked_for_are_sent_and_not_kept() {
    let served = served(false, Limits::default()).await;
    let mut client = Client::of(served.address, ACME).await;
    client.parse("s", "SELECT * FROM signals", &[]).await;
    for _ in 0..100 {
        client.describe('S', "s").await;
    }
    // no Sync, no Flush: some of them come nevertheless
    assert_eq!(client.read().await.map(|(kind, _)| kind), Some('1'));
    assert_eq!(client.sync().await.code(), "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_deepest_statements_that_are_admitted_do_not_end_the_process() {
    let served = served(false, Limits::default()).await;
    let mut client = Client::of(served.address, ACME).await;
    let sums = format!("SELECT value{} FROM signals", " + value".repeat(98));
    let either = format!("SELECT count(*) FROM signals WHERE {}", vec!["kind = 'x'"; 240].join(" OR "));
    let each = format!("SELECT count(*) FROM signals WHERE {}", vec!["is_synthetic"; 390].join(" OR "));
    let unions = format!("SELECT kind FROM signals{}", " UNION ALL SELECT kind FROM signals".repeat(31));
    let casts = format!("SELECT value{} FROM signals", "::text::float8".repeat(48));
    let calls = format!("SELECT {}value{} FROM signals", "abs(".repeat(10), ")".repeat(10));
    let cases = format!("SELECT {}value{} FROM signals", "CASE WHEN value > 1 THEN ".repeat(20), " END".repeat(20));
    let queries = format!("SELECT * FROM {}signals{}", "(SELECT * FROM ".repeat(7), " s)".repeat(7));
    let scalar = format!(
        "SELECT {}1{}",
        "(SELECT max(value) + value + 1 + ".repeat(7),
        " FROM signals GROUP BY value LIMIT 1)".repeat(7)
    );
    let joins = (1..24).map(|n| format!(" JOIN runs r{n} ON r{n}.run_id = r0.run_id")).collect::<String>();
    let joins = format!("SELECT count(*) FROM runs r0{joins}");
    for deep in [sums, either, each, unions, casts, calls, cases, queries, scalar, joins] {
        let answer = client.simple(&deep).await;
        assert_eq!((answer.code(), answer.status), ("", Some('I')), "{}: {:?}", &deep[..40], answer.errors);
    }
    assert_eq!(client.simple("SELECT 1").await.value(), "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_shutdown_idle_clients_are_told_and_a_statement_may_finish() {
    let served = served(false, Limits::default()).await;
    let mut idle = Client::of(served.address, ACME).await;
    let mut busy = Client::of(served.address, ACME).await;
    busy.send('Q', format!("{ENDLESS}\0").as_bytes()).await;
    until("the statement", || running(&served) == 1).await;
    served.stop.send(true).unwrap();
    assert_eq!(idle.answer().await.code(), "57P01");
    assert_eq!(busy.answer().await.code(), "57P01");
    tokio::time::timeout(Duration::from_secs(20), served.server).await.unwrap().unwrap().unwrap();
    assert!(tokio::net::TcpStream::connect(served.address).await.is_err());
}
