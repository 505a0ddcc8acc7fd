//! What is asked of a sidecar while it decides, and of a month of violations.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use runwarden::clock::Wall;
use runwarden::kafka::produce::{Producer, Send};
use runwarden::telemetry::format_micros;
use serde_json::{Value, json};

use crate::measures::{Feed, RATE, Watch};
use crate::reference;
use crate::rig::{self, Bar, Broker, LONG, Row, Sidecar, Site};

/// Requests a second.
const ASKED: usize = 200;
/// Connections that ask.
const ASKERS: usize = 16;
const DAY: i64 = 86_400_000_000;

/// A connection that is kept.
struct Asker(BufReader<TcpStream>);

impl Asker {
    fn new(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        Self(BufReader::new(stream))
    }

    /// Status and body.
    fn ask(&mut self, path: &str) -> (u16, Vec<u8>) {
        write!(self.0.get_mut(), "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let (mut status, mut length, mut line) = (0, 0, String::new());
        loop {
            line.clear();
            assert!(self.0.read_line(&mut line).unwrap() > 0, "{path}: the connection ended");
            let line = line.trim().to_ascii_lowercase();
            if let Some(rest) = line.strip_prefix("http/1.1 ") {
                status = rest.split(' ').next().unwrap().parse().unwrap();
            } else if let Some(bytes) = line.strip_prefix("content-length: ") {
                length = bytes.parse().unwrap();
            } else if line.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).unwrap();
        (status, body)
    }
}

fn panels(port: u16) -> Vec<String> {
    let (status, body) = Asker::new(port).ask("/api/v1/panels?limit=100");
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(status, 200, "{body}");
    let ids = body["items"].as_array().unwrap().iter().map(|panel| panel["panel_id"].as_str().unwrap());
    ids.map(|id| format!("/api/v1/panels/{id}/rows?limit=50")).collect()
}

/// Asks at a fixed pace; each answer's milliseconds since it was due, in order of length, and how many were refused. A request that waits for
/// a free connection waits from when it was due, so that a slow answer cannot hide the ones behind it.
fn at_a_pace(port: u16, paths: &[String], seconds: u64) -> (Vec<f64>, usize) {
    let (took, next, refused) = (Mutex::new(Vec::new()), AtomicUsize::new(0), AtomicUsize::new(0));
    let (begun, all) = (Instant::now(), ASKED * seconds as usize);
    std::thread::scope(|scope| {
        for _ in 0..ASKERS {
            scope.spawn(|| {
                let mut asker = Asker::new(port);
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= all {
                        return;
                    }
                    let due = begun + Duration::from_secs_f64(n as f64 / ASKED as f64);
                    std::thread::sleep(due.saturating_duration_since(Instant::now()));
                    let (status, body) = asker.ask(&paths[n % paths.len()]);
                    if status != 200 {
                        refused.fetch_add(1, Ordering::Relaxed);
                        assert!(matches!(status, 429 | 503), "{status}: {}", String::from_utf8_lossy(&body));
                    }
                    took.lock().unwrap().push(due.elapsed().as_secs_f64() * 1e3);
                }
            });
        }
    });
    let mut took = took.into_inner().unwrap();
    took.sort_by(f64::total_cmp);
    (took, refused.into_inner())
}

/// Panels asked for beside the reference job: what they take, and what decisions take without and with them.
pub fn beside(broker: &Broker, seconds: u64) -> Vec<Row> {
    let site = Site::with_roles(broker, "panels", &["core", "edge", "serve"]);
    let mut sidecar = site.sidecar("a");
    sidecar.await_ready();
    let watch = Watch::start(&site);
    let feed = Feed::start(&site);
    std::thread::sleep(Duration::from_secs(15));
    let decided = |from: i64| {
        std::thread::sleep(Duration::from_secs(1));
        let mut took: Vec<f64> = watch.since(from).iter().map(|a| (a.seen - a.sent) as f64 / 1e3).collect();
        took.sort_by(f64::total_cmp);
        took
    };
    let (from, lonely) = (Wall::now().0, sidecar.processor());
    std::thread::sleep(Duration::from_secs(seconds));
    let (without, lonely) = (decided(from), (sidecar.processor() - lonely) / (seconds + 1) as f64);
    let paths = panels(sidecar.port());
    let (from, busy) = (Wall::now().0, sidecar.processor());
    let begun = Instant::now();
    let (asked, refused) = at_a_pace(sidecar.port(), &paths, seconds);
    let busy = (sidecar.processor() - busy) / begun.elapsed().as_secs_f64();
    let with = decided(from);
    let late = feed.end();
    let memory = sidecar.resident();
    sidecar.terminate();
    eprintln!(
        "   {} panels, {} answers of which {refused} refused; {} decisions without and {} with them; {RATE} events/s, late {late} times; \
         the sidecar took {:.0} % of its core without and {:.0} % with them",
        paths.len(),
        asked.len(),
        without.len(),
        with.len(),
        100.0 * lonely,
        100.0 * busy,
    );
    let of = rig::percentile;
    vec![
        Row::new("a panel's rows, 200 requests/s, p50", of(&asked, 0.5), "ms", None),
        Row::new("a panel's rows, 200 requests/s, p99", of(&asked, 0.99), "ms", None),
        Row::new("of these refused", refused as f64, "", Some((Bar::Most, 0.0))),
        Row::new(
            "event to committed intervention, without them, p50",
            of(&without, 0.5),
            "ms",
            Some((Bar::Most, 40.0)),
        ),
        Row::new("event to committed intervention, with them, p50", of(&with, 0.5), "ms", Some((Bar::Most, 40.0))),
        Row::new(
            "event to committed intervention, without them, p99",
            of(&without, 0.99),
            "ms",
            Some((Bar::Most, 150.0)),
        ),
        Row::new("event to committed intervention, with them, p99", of(&with, 0.99), "ms", Some((Bar::Most, 150.0))),
        Row::new("resident memory, with serve, beside the reference job", memory, "MB", None),
    ]
}

fn signal(n: usize, at: i64) -> Vec<u8> {
    let kind = ["quota", "cost", "rate", "temporal", "safety", "ethical"][n % 6];
    let source = ["guard", "cost", "runtime"][n % 3];
    let (run, tenant) = (format!("run-{:05}", n % reference::RUNS), reference::tenant(n));
    json!({
        "signal_id": format!("{n:08x}-0000-5000-8000-{n:012x}"), "kind": if n.is_multiple_of(2) { "BREACH" } else { "NEAR" }, "mode": "BLOCK",
        "tenant_id": tenant, "policy_id": format!("policy-{}", n % reference::POLICIES), "policy_version": 3, "snapshot_id": "",
        "contributors": [{"policy_id": format!("policy-{}", n % reference::POLICIES), "policy_version": 3, "limit_id": "l", "gave": ["max"]}],
        "limit_id": "l", "limit_type": "TOKENS_PER_RUN", "category": "BUDGET", "metric": "run_tokens",
        "scope": {"kind": "RUN", "id": run}, "run_id": run, "window_start": format_micros(at - 60_000_000),
        "window_end": format_micros(at), "value": 900.5 + n as f64, "limit": 1_000, "near": 0.8, "utilization": 0.9,
        "event_time": format_micros(at), "decided_at": format_micros(at + 3_000), "lag_ms": 3, "complete": true, "is_synthetic": false,
        "violation": {"violation_type": kind, "source": source, "severity": (n % 100) as f64 / 100.0, "violation_kind": "STANDARD"},
        "evidence": {"first": {"topic": "runwarden.telemetry", "partition": 0, "offset": n}, "last": {"topic": "runwarden.telemetry", "partition": 0, "offset": n}, "count": 1},
    })
    .to_string()
    .into_bytes()
}

/// So many violations of a month: reading them from their topic, and what questions about them take.
pub fn month(broker: &Broker, count: usize) -> Vec<Row> {
    let site = Site::with_roles(broker, "month", &["serve"]);
    let mut client = site.client.clone();
    client.properties.insert("compression.type".into(), "lz4".into());
    let producer = Producer::new(&client).unwrap();
    let end = Wall::now().0 - 3_600_000_000;
    let start = end - 29 * DAY;
    for n in 0..count {
        let at = start + (end - start) / count as i64 * n as i64;
        let (tenant, payload) = (reference::tenant(n), signal(n, at));
        let send = Send {
            topic: &site.topics.signals,
            key: Some(tenant.as_bytes()),
            payload: Some(&payload),
            timestamp: Some(at),
            ..Send::default()
        };
        producer.send_record(send).unwrap();
    }
    producer.flush(LONG).unwrap();
    drop(producer);
    let mut sidecar = site.sidecar("a");
    let ready = |sidecar: &Sidecar| Asker::new(sidecar.port()).ask("/api/v1/policies/violations").0 == 200;
    let begun = Instant::now();
    sidecar.await_ready();
    sidecar.until("whole", ready);
    let read = begun.elapsed().as_secs_f64();
    let mut rows = vec![Row::new(format!("reading {count} violations from their topic"), read, "s", None)];
    let mut asker = Asker::new(sidecar.port());
    for (what, query) in [
        ("the newest 50", "hours=720"),
        ("the newest 50 of a tenant", "hours=720&tenant_id=tenant-007"),
        ("the newest 50 by type, source and severity", "hours=720&violation_type=cost&source=cost&severity_min=0.9"),
        // as far as the API turns pages
        ("the page that is farthest", &format!("hours=720&limit=50&offset={}", (count / 2).min(100_000))),
        ("all of a run", "hours=720&run_id=run-00042"),
        ("of a day", "hours=24"),
    ] {
        let path = format!("/api/v1/policies/violations?{query}");
        let mut took: Vec<f64> = (0..21)
            .map(|_| {
                let begun = Instant::now();
                let (status, body) = asker.ask(&path);
                assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
                let body: Value = serde_json::from_slice(&body).unwrap();
                assert!(!body["items"].as_array().unwrap().is_empty(), "{path}: {body}");
                begun.elapsed().as_secs_f64() * 1e3
            })
            .collect();
        took.sort_by(f64::total_cmp);
        let what = format!("30 days of violations, {what}: median of 21");
        rows.push(Row::new(what, took[took.len() / 2], "ms", Some((Bar::Most, 200.0))));
        eprintln!("   {query}: slowest {:.0} ms", took[took.len() - 1]);
    }
    rows.push(Row::new(format!("resident memory, {count} violations in tables"), sidecar.resident(), "MB", None));
    sidecar.terminate();
    let mut again = site.sidecar("a");
    let begun = Instant::now();
    again.await_ready();
    again.until("whole", ready);
    rows.push(Row::new("reading them again after a restart", begun.elapsed().as_secs_f64(), "s", None));
    again.terminate();
    rows
}
