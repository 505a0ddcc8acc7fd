use prometheus::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

use super::super::health::{Owned, STARTING};
use super::*;

const T0: Wall = Wall(1_700_000_000 * SECOND);

fn t0() -> Wall {
    T0
}

fn a_minute_later() -> Wall {
    Wall(T0.0 + 60 * SECOND)
}

struct Running {
    address: SocketAddr,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    stop: watch::Sender<bool>,
    server: JoinHandle<io::Result<()>>,
}

async fn start(clock: fn() -> Wall) -> Running {
    let health = Arc::new(Health::new(T0));
    let metrics = Arc::new(Metrics::register(&Registry::new(), &["run_tokens"]).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = watch::channel(false);
    let server = tokio::spawn(serve(listener, None, Views::new(health.clone(), metrics.clone(), clock), stopped));
    Running { address, health, metrics, stop, server }
}

/// Sends `request` as it is and reads until the server closes.
async fn raw(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    // a server that refuses early may reset the connection: what arrived before counts
    let _ended = stream.read_to_end(&mut answer).await;
    String::from_utf8(answer).unwrap()
}

/// Status, headers and body of a request.
async fn send(address: SocketAddr, method: &str, path: &str) -> (u16, String, String) {
    let request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let answer = raw(address, request.as_bytes()).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head[9..12].parse().unwrap(), head.to_lowercase(), body.to_owned())
}

async fn get_json(address: SocketAddr, path: &str) -> (u16, Value) {
    let (status, _, body) = send(address, "GET", path).await;
    (status, serde_json::from_str(&body).unwrap())
}

#[tokio::test]
async fn readyz_is_503_with_reasons_until_nothing_is_missing() {
    let r = start(t0).await;
    let (status, body) = get_json(r.address, "/readyz").await;
    assert_eq!((status, &body["ready"]), (503, &json!(false)));
    assert_eq!(body["reasons"], json!({"starting": "the process is starting"}));
    r.health.ready(STARTING);
    r.health.not_ready("policies", "generation 3 was refused");
    let (status, body) = get_json(r.address, "/readyz").await;
    assert_eq!((status, &body["reasons"]), (503, &json!({"policies": "generation 3 was refused"})));
    r.health.ready("policies");
    let (status, body) = get_json(r.address, "/readyz").await;
    assert_eq!((status, body), (200, json!({"ready": true, "reasons": {}})));
}

#[tokio::test]
async fn healthz_turns_503_when_the_loop_no_longer_comes_round() {
    let live = start(t0).await;
    assert_eq!(get_json(live.address, "/healthz").await, (200, json!({"status": "ok", "heartbeat_age_seconds": 0.0})));
    let stalled = start(a_minute_later).await;
    let expected = json!({"status": "stalled", "heartbeat_age_seconds": 60.0});
    assert_eq!(get_json(stalled.address, "/healthz").await, (503, expected));
    stalled.health.beat(a_minute_later());
    assert_eq!(get_json(stalled.address, "/healthz").await.0, 200);
}

#[tokio::test]
async fn metrics_are_prometheus_text_of_the_live_registry() {
    let r = start(t0).await;
    r.metrics.decoded.inc_by(42);
    let (status, head, body) = send(r.address, "GET", "/metrics").await;
    assert_eq!(status, 200);
    assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    assert!(body.lines().any(|l| l == "runwarden_decoded_records_total 42"));
    assert!(body.lines().any(|l| l == "runwarden_up 1"));
    let (status, _, body) = send(r.address, "HEAD", "/metrics").await;
    assert_eq!((status, body.as_str()), (200, ""));
}

#[tokio::test]
async fn status_json_sums_what_the_page_shows() {
    let r = start(a_minute_later).await;
    r.health.beat(a_minute_later());
    r.health.ready(STARTING);
    r.health.set_partition(0, Owned { lag: Some(5), restoring: false });
    r.health.set_partition(7, Owned { lag: Some(6), restoring: false });
    r.metrics.set_config_hash("c0ffee");
    r.metrics.signals.get(SignalKind::Breach, metrics::labels::Mode::Block).inc_by(3);
    let (status, body) = get_json(r.address, "/status.json").await;
    assert_eq!(status, 200);
    assert_eq!(body["started_at"], "2023-11-14T22:13:20.000000Z");
    assert_eq!((&body["uptime_seconds"], &body["lag"]), (&json!(60.0), &json!(11)));
    assert_eq!((&body["ready"], &body["config_hash"]), (&json!(true), &json!("c0ffee")));
    assert_eq!(body["partitions"][1], json!({"partition": 7, "lag": 6, "restoring": false}));
    assert_eq!(body["counts"]["signals_breach"], 3);
    r.health.set_partition(8, Owned { lag: None, restoring: false });
    let (_, body) = get_json(r.address, "/status.json").await;
    assert_eq!(body["lag"], Value::Null, "one unknown lag makes the sum unknown, not smaller");
}

#[tokio::test]
async fn the_page_fetches_nothing_from_elsewhere_and_its_parts_exist() {
    let r = start(t0).await;
    let (status, head, body) = send(r.address, "GET", "/").await;
    assert_eq!(status, 200);
    assert!(head.contains("content-security-policy: default-src 'none'"), "{head}");
    assert!(!body.contains("http://") && !body.contains("https://"));
    for part in body.split('"').filter(|p| p.starts_with('/') && p.len() > 1) {
        let wanted = if part == "/readyz" { 503 } else { 200 };
        assert_eq!(send(r.address, "GET", part).await.0, wanted, "{part}");
    }
}

#[tokio::test]
async fn the_scripts_load_only_what_is_served_here_and_never_write_markup() {
    let r = start(t0).await;
    for (path, kind, content) in console::FILES {
        let (status, head, body) = send(r.address, "GET", path).await;
        assert_eq!((status, body.as_str()), (200, content), "{path}");
        assert!(head.contains(&format!("content-type: {kind}")), "{head}");
        assert!(!content.contains("http://") && !content.contains("https://"), "{path}");
        for markup in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
            assert!(!content.contains(markup), "{path} has {markup}");
        }
        let imported = content.split(" from './").skip(1).filter_map(|rest| rest.split('\'').next());
        for file in imported {
            assert!(console::FILES.iter().any(|(path, ..)| *path == format!("/console/{file}")), "{path}: {file}");
        }
    }
    for wrong in [" style=", " onclick=", "<script>", "<style"] {
        assert!(!console::HTML.contains(wrong), "the policy of content forbids {wrong}");
    }
}

#[tokio::test]
async fn what_is_not_there_or_not_a_read_is_a_problem_document() {
    let r = start(t0).await;
    for (method, path, expected) in [("GET", "/nothing", 404), ("POST", "/readyz", 405), ("DELETE", "/", 405)] {
        let (status, head, body) = send(r.address, method, path).await;
        assert_eq!(status, expected, "{method} {path}");
        assert!(head.contains("content-type: application/problem+json"), "{head}");
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(body["status"], expected);
    }
}

#[tokio::test]
async fn oversized_heads_and_bodies_are_refused() {
    let r = start(t0).await;
    let head = format!("GET / HTTP/1.1\r\nHost: x\r\nX-Big: {}\r\n\r\n", "a".repeat(2 * MAX_HEAD));
    assert!(raw(r.address, head.as_bytes()).await.starts_with("HTTP/1.1 431"));
    let many: String = (0..=MAX_HEADERS).map(|i| format!("X-{i}: 1\r\n")).collect();
    assert!(raw(r.address, format!("GET / HTTP/1.1\r\n{many}\r\n").as_bytes()).await.starts_with("HTTP/1.1 431"));
    let body = format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", MAX_BODY + 1);
    let mut stream = TcpStream::connect(r.address).await.unwrap();
    stream.write_all(body.as_bytes()).await.unwrap();
    let mut first = [0_u8; 12];
    stream.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 413");
    assert_eq!(send(r.address, "GET", "/healthz").await.0, 200, "the server goes on");
}

#[tokio::test]
async fn clients_beyond_the_limit_wait_for_a_place() {
    let r = start(t0).await;
    let mut held = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        let mut stream = TcpStream::connect(r.address).await.unwrap();
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut first = [0_u8; 12];
        stream.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"HTTP/1.1 200");
        held.push(stream);
    }
    let waiting = tokio::spawn(send_owned(r.address));
    let early = tokio::time::timeout(Duration::from_millis(100), async {
        while !waiting.is_finished() {
            tokio::task::yield_now().await
        }
    })
    .await;
    assert!(early.is_err(), "no place is free yet");
    drop(held.pop());
    assert_eq!(waiting.await.unwrap(), 200);
}

async fn send_owned(address: SocketAddr) -> u16 {
    send(address, "GET", "/healthz").await.0
}

#[tokio::test]
async fn shutdown_closes_idle_connections_and_ends_the_server() {
    let r = start(t0).await;
    let mut idle = TcpStream::connect(r.address).await.unwrap();
    idle.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut first = [0_u8; 12];
    idle.read_exact(&mut first).await.unwrap();
    r.stop.send(true).unwrap();
    r.server.await.unwrap().unwrap();
    let mut rest = Vec::new();
    idle.read_to_end(&mut rest).await.unwrap();
    assert!(TcpStream::connect(r.address).await.is_err(), "nothing listens any more");
}

#[tokio::test]
async fn a_vanished_owner_ends_the_server_too() {
    let r = start(t0).await;
    drop(r.stop);
    r.server.await.unwrap().unwrap();
}

const TOKEN: &str = "a token of some length";

/// One whose API answers to one token of tenant acme.
async fn start_api() -> (Running, Arc<Verdicts>) {
    let health = Arc::new(Health::new(T0));
    let metrics = Arc::new(Metrics::register(&Registry::new(), &["run_tokens"]).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = watch::channel(false);
    let acme = super::super::access::Caller::new("a", 1, "acme");
    let verdicts = Arc::new(Verdicts::default());
    let views = Views::new(health.clone(), metrics.clone(), t0);
    let views = views.with_api(verdicts.clone(), Arc::default(), Access::new(false).with(TOKEN, acme));
    let server = tokio::spawn(serve(listener, None, views, stopped));
    (Running { address, health, metrics, stop, server }, verdicts)
}

async fn ask(address: SocketAddr, path: &str) -> (u16, Value) {
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nConnection: close\r\n\r\n");
    let answer = raw(address, request.as_bytes()).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head[9..12].parse().unwrap(), serde_json::from_str(body).unwrap())
}

#[tokio::test]
async fn what_nobody_fills_is_not_there_and_what_is_not_known_yet_is_not_allowed() {
    let without = start(t0).await;
    for path in ["/api/v1/runs/r/verdict", "/api/v1/verdicts", "/api/v1/policy-level"] {
        assert_eq!(send(without.address, "GET", path).await.0, 404, "{path}");
    }
    let (r, _verdicts) = start_api().await;
    r.health.not_ready(api::VERDICTS, "they are being read");
    let (status, body) = ask(r.address, "/api/v1/runs/r/verdict").await;
    assert_eq!((status, &body["detail"]), (503, &json!("they are being read")));
    r.health.ready(api::VERDICTS);
    let (status, body) = ask(r.address, "/api/v1/runs/r/verdict").await;
    assert_eq!((status, &body["verdict"], &body["run_id"]), (200, &json!("allow"), &json!("r")));
    assert_eq!(r.metrics.verdicts.get(metrics::labels::Verdict::Allow).get(), 1);
    assert_eq!(send(r.address, "GET", "/api/v1/runs/r/verdict").await.0, 401, "without a token");
}

#[tokio::test]
async fn the_level_is_the_callers_own_and_unknown_where_none_was_seen() {
    let (r, _verdicts) = start_api().await;
    let (status, body) = ask(r.address, "/api/v1/policy-level").await;
    assert_eq!((status, &body["policy"], &body["tenant_id"]), (200, &json!("UNKNOWN"), &json!("acme")));
    assert_eq!(ask(r.address, "/api/v1/policy-level?tenant_id=*").await.0, 403);
    assert_eq!(ask(r.address, "/api/v1/policy-level?tenant=acme").await.0, 400);
}

#[tokio::test]
async fn who_listens_takes_no_place_of_who_asks() {
    let (r, _verdicts) = start_api().await;
    let mut listening = Vec::new();
    for n in 0..=MAX_STREAMS {
        let mut stream = TcpStream::connect(r.address).await.unwrap();
        let request = format!("GET /api/v1/verdicts HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut first = [0_u8; 12];
        stream.read_exact(&mut first).await.unwrap();
        let wanted = if n < MAX_STREAMS { b"HTTP/1.1 200" } else { b"HTTP/1.1 503" };
        assert_eq!(&first, wanted, "listener {n}");
        listening.push(stream);
    }
    assert_eq!(ask(r.address, "/api/v1/runs/r/verdict").await.0, 200);
}
