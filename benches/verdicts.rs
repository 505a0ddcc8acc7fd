//! What a verdict costs (I8): `cargo bench --bench verdicts`.
//!
//! A million scopes, of which every tenth is held. Prints the time of a look-up over seven scopes (bar: under 5 µs), and, over one HTTP
//! connection kept alive on loopback, the percentiles of a request from the first byte sent to the last one read (bar: p99 under 1 ms).
#![allow(clippy::unwrap_used, clippy::panic, reason = "a bench that cannot go on should stop")]

use std::hint::black_box;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus::Registry;
use runwarden::clock::Wall;
use runwarden::decide::records::Intervention;
use runwarden::metrics::Metrics;
use runwarden::serve::Health;
use runwarden::serve::access::{Access, Caller};
use runwarden::serve::health::STARTING;
use runwarden::serve::http::{self, Views};
use runwarden::serve::verdicts::Verdicts;
use serde_json::json;

const SCOPES: usize = 1_000_000;
const LOOKUPS: usize = 1_000_000;
const REQUESTS: usize = 20_000;
const TOKEN: &str = "a token of some length";

fn order(n: usize) -> Intervention {
    let kind = if n.is_multiple_of(10) { "STOP" } else { "PAUSE" };
    let state = if n.is_multiple_of(10) { "ISSUED" } else { "REVERTED" };
    let target = if n.is_multiple_of(3) { "AGENT" } else { "RUN" };
    serde_json::from_value(json!({
        "intervention_id": format!("i-{n}"), "revision": 1, "state": state, "mode": "enforced", "type": kind,
        "target": {"kind": target, "id": format!("id-{n}")}, "parameters": {}, "tenant_id": format!("tenant-{}", n % 100),
        "run_id": null, "policy_id": "p", "signal_id": null, "reason": "run_tokens is 210000, limit 200000", "authority_level": 5,
        "initiated_by": "policy:p", "principal": "runwarden", "approval_required": false, "approved_by": null,
        "created_at": "2026-01-05T00:00:00Z", "issued_at": null, "deadline": null, "executed_at": null, "reverted_at": null,
        "reverted_by": null, "supersedes": null, "parent_intervention_id": null,
        "audit_log": {"before": null, "after": null, "parameters": {}, "results": null},
    }))
    .unwrap()
}

fn main() {
    // `cargo test --benches` only wants to know that it builds
    if std::env::args().any(|a| a == "--test") {
        return;
    }
    let verdicts = Arc::new(Verdicts::default());
    let now = Wall::now();
    (0..SCOPES).for_each(|n| verdicts.intervention(&order(n), now));
    let mut held = 0;
    let names: Vec<(String, String)> =
        (0..10_000).map(|n| (format!("id-{}", n * 97 % SCOPES), format!("tenant-{}", n * 97 % 100))).collect();
    let begun = Instant::now();
    for n in 0..LOOKUPS {
        let (id, tenant) = &names[n % names.len()];
        let id = Some(id.as_str());
        let answer = verdicts.ask(tenant, [id, id, Some("k"), Some("h"), Some("p"), Some("v"), Some(tenant)], now);
        held += usize::from(black_box(answer).intervention_id.is_some());
    }
    let each = begun.elapsed() / LOOKUPS as u32;
    println!("look-up over 7 scopes among {SCOPES}: {each:?} ({held} of {LOOKUPS} held); bar 5 µs");
    over_http(verdicts, &names);
}

fn over_http(verdicts: Arc<Verdicts>, names: &[(String, String)]) {
    let metrics = Arc::new(Metrics::register(&Registry::new(), &[]).unwrap());
    let health = Arc::new(Health::new(Wall::now()));
    health.ready(STARTING);
    let everyone = Caller::new("bench", 1, "*");
    let access = Access::new(false).with(TOKEN, everyone);
    let views = Views::new(health, metrics, Wall::now).with_api(verdicts, Arc::default(), access);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let server = runtime.spawn(http::serve(listener, None, views, stopped));
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    let mut took: Vec<Duration> = Vec::with_capacity(REQUESTS);
    let mut buffer = vec![0_u8; 16 << 10];
    for n in 0..REQUESTS {
        let (id, tenant) = &names[n % names.len()];
        let request = format!(
            "GET /api/v1/runs/{id}/verdict?tenant_id={tenant}&agent_id={id}&api_key_id=k HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
        );
        let begun = Instant::now();
        stream.write_all(request.as_bytes()).unwrap();
        let mut length = 0;
        loop {
            length += stream.read(&mut buffer[length..]).unwrap();
            if whole(&buffer[..length]) {
                break;
            }
        }
        took.push(begun.elapsed());
        assert!(buffer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&buffer[..length]));
    }
    took.sort_unstable();
    let at = |share: f64| took[((REQUESTS - 1) as f64 * share) as usize];
    println!(
        "HTTP keep-alive, {REQUESTS} requests: p50 {:?}, p99 {:?}, p99.9 {:?}; bar p99 1 ms",
        at(0.5),
        at(0.99),
        at(0.999)
    );
    stop.send(true).unwrap();
    runtime.block_on(server).unwrap().unwrap();
}

/// Whether an answer has all of its body.
fn whole(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.to_lowercase().lines().find_map(|l| l.strip_prefix("content-length: ").map(str::to_owned));
    body.len() >= length.and_then(|l| l.trim().parse().ok()).unwrap_or(usize::MAX)
}
