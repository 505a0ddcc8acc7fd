use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, Response, StatusCode, header};
use axum::{Extension, Router};
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use http_body_util::BodyExt as _;
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use prometheus::Registry;
use prost::Message as _;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tower::ServiceExt as _;

use super::Receiver;
use crate::clock::Wall;
use crate::config::Config;
use crate::kafka::outbox::Outbox;
use crate::kafka::reader::read_topic;
use crate::kafka::{ClientSettings, Mock};
use crate::metrics::Metrics;
use crate::metrics::labels::{OtlpCode, OtlpSignal, SpanRejected};
use crate::serve::access::{Access, Caller};
use crate::serve::api::Peer;
use crate::serve::http;
use crate::telemetry::otlp::Mapper;

const TOPIC: &str = "runs.telemetry";
const TOKEN: &str = "a token of acme's workers";

struct Edge {
    mock: Mock,
    metrics: Arc<Metrics>,
    routes: Router,
}

/// A receiver in front of a broker in this process, or of none.
fn edge_of(client: Option<ClientSettings>, bytes: (usize, usize)) -> Edge {
    let mock = Mock::start().unwrap();
    mock.create_topic(TOPIC, 1).unwrap();
    let client = client.unwrap_or_else(|| mock.settings());
    let metrics = Arc::new(Metrics::register(&Registry::new(), &[]).unwrap());
    let mapper = Arc::new(Mapper::new(Config::default().mapping()));
    let outbox = Arc::new(Outbox::new(&client, Duration::from_millis(2_000)).unwrap());
    let access = Access::new(false).with(TOKEN, Caller::new("worker", 1, "acme"));
    let receiver = Receiver::new(mapper, outbox, TOPIC.into(), access, bytes, Arc::clone(&metrics), Wall::now);
    Edge { mock, metrics, routes: receiver.routes() }
}

fn edge() -> Edge {
    edge_of(None, (1 << 20, 4 << 20))
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

impl Edge {
    fn ask(&self, peer: &str, request: Request<Body>) -> Response<Body> {
        let peer: SocketAddr = peer.parse().unwrap();
        block_on(self.routes.clone().layer(Extension(Peer(peer))).oneshot(request)).unwrap()
    }

    fn send(&self, request: Request<Body>) -> (StatusCode, Vec<u8>) {
        let response = self.ask("127.0.0.1:5", request);
        (response.status(), bytes(response))
    }

    fn events(&self) -> Vec<Value> {
        let records = read_topic(&self.mock.settings(), TOPIC).unwrap();
        records.into_iter().map(|record| serde_json::from_slice(&record.payload.unwrap()).unwrap()).collect()
    }

    fn answered(&self, code: OtlpCode) -> u64 {
        self.metrics.otlp.requests.get(code).get()
    }
}

fn bytes(response: Response<Body>) -> Vec<u8> {
    block_on(response.into_body().collect()).unwrap().to_bytes().to_vec()
}

fn to(path: &str, kind: &str, body: impl Into<Body>) -> Request<Body> {
    let request = Request::post(path).header(header::HOST, "localhost:4318").header(header::CONTENT_TYPE, kind);
    request.body(body.into()).unwrap()
}

const JSON: &str = "application/json";
const PROTO: &str = "application/x-protobuf";

/// A call of 7 tokens, as JSON.
fn call(span: u8, more: &Value) -> Value {
    let mut attributes = vec![
        json!({"key": "gen_ai.operation.name", "value": {"stringValue": "chat"}}),
        json!({"key": "gen_ai.usage.input_tokens", "value": {"intValue": "7"}}),
    ];
    for (key, value) in more.as_object().unwrap() {
        attributes.push(json!({"key": key, "value": {"stringValue": value}}));
    }
    json!({"traceId": "5b8efff798038103d269b633813fc60c", "spanId": format!("{span:016x}"), "parentSpanId": "eee19b7ec3c1b173",
        "name": "chat gpt", "kind": 3, "startTimeUnixNano": "1544712660000000000", "endTimeUnixNano": "1544712661000000000", "attributes": attributes})
}

fn spans(spans: &[Value]) -> String {
    json!({"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]}).to_string()
}

fn as_proto(json: &str) -> Vec<u8> {
    let mut value: Value = serde_json::from_str(json).unwrap();
    // the generated types want every member that the specification leaves to the sender
    for span in value["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array_mut().unwrap() {
        span["traceState"] = "".into();
    }
    serde_json::from_value::<ExportTraceServiceRequest>(value).unwrap().encode_to_vec()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn spans_in_either_encoding_packed_or_not_become_events_before_they_are_answered() {
    let edge = edge();
    let (first, second) = (spans(&[call(1, &json!({}))]), spans(&[call(2, &json!({}))]));
    assert_eq!(
        edge.send(to("/v1/traces", "application/json; charset=utf-8", first.clone())),
        (StatusCode::OK, b"{}".to_vec())
    );
    assert_eq!(edge.events().len(), 1, "acknowledged before it is answered");
    assert_eq!(edge.send(to("/v1/traces", PROTO, as_proto(&second))), (StatusCode::OK, Vec::new()));
    let mut packed = to("/v1/traces", JSON, gzip(spans(&[call(3, &json!({}))]).as_bytes()));
    packed.headers_mut().insert(header::CONTENT_ENCODING, "gzip".parse().unwrap());
    packed.headers_mut().insert(header::ACCEPT_ENCODING, "gzip, deflate".parse().unwrap());
    let response = edge.ask("127.0.0.1:5", packed);
    assert_eq!(
        (response.status(), &response.headers()[header::CONTENT_ENCODING]),
        (StatusCode::OK, &"gzip".parse().unwrap())
    );
    let mut text = String::new();
    GzDecoder::new(bytes(response).as_slice()).read_to_string(&mut text).unwrap();
    assert_eq!(text, "{}");
    let ids: Vec<Value> = edge.events().iter().map(|event| event["event_id"].clone()).collect();
    let id = |n| format!("5b8efff798038103d269b633813fc60c/{n:016x}/run.step");
    assert_eq!(ids, [id(1), id(2), id(3)]);
    assert_eq!(edge.send(to("/v1/traces", PROTO, "")).0, StatusCode::OK, "an empty request is a success");
    let otlp = &edge.metrics.otlp;
    assert_eq!((edge.answered(OtlpCode::Ok), otlp.accepted.get(), otlp.events.get()), (4, 3, 3));
    assert_eq!((otlp.in_flight.get(), otlp.duration.get_sample_count()), (0, 4));
}

#[test]
fn a_bad_span_is_rejected_and_the_others_are_taken() {
    let edge = edge();
    let mut bad = call(2, &json!({}));
    bad["spanId"] = "00".into();
    let body = spans(&[call(1, &json!({})), bad]);
    let (status, answer) = edge.send(to("/v1/traces", JSON, body.clone()));
    let answer: Value = serde_json::from_slice(&answer).unwrap();
    assert_eq!((status, &answer["partialSuccess"]["rejectedSpans"]), (StatusCode::OK, &json!("1")));
    assert!(answer["partialSuccess"]["errorMessage"].as_str().unwrap().contains("span id"), "{answer}");
    let (_, answer) = edge.send(to("/v1/traces", PROTO, as_proto(&body)));
    let partial = ExportTraceServiceResponse::decode(answer.as_slice()).unwrap().partial_success.unwrap();
    assert_eq!(partial.rejected_spans, 1);
    assert_eq!((edge.events().len(), edge.metrics.otlp.rejected.get(SpanRejected::Id).get()), (2, 2));
}

#[test]
fn what_is_too_large_is_refused_packed_or_not() {
    let edge = edge_of(None, (1_000, 10_000));
    let large = format!("{{\"x\":\"{}\"}}", "x".repeat(2_000));
    let (status, answer) = edge.send(to("/v1/traces", JSON, large.clone()));
    let answer: Value = serde_json::from_slice(&answer).unwrap();
    assert_eq!((status, &answer["code"]), (StatusCode::PAYLOAD_TOO_LARGE, &json!(8)));
    let chunks = futures::stream::iter((0..3).map(|_| Ok::<_, std::io::Error>(vec![b' '; 600])));
    assert_eq!(
        edge.send(to("/v1/traces", JSON, Body::from_stream(chunks))).0,
        StatusCode::PAYLOAD_TOO_LARGE,
        "undeclared"
    );
    let mut packed = to("/v1/traces", JSON, gzip(large.as_bytes()));
    packed.headers_mut().insert(header::CONTENT_ENCODING, "gzip".parse().unwrap());
    assert_eq!(edge.send(packed).0, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!((edge.answered(OtlpCode::TooLarge), edge.metrics.otlp.in_flight.get()), (3, 0));
}

#[test]
fn where_there_is_no_room_or_no_broker_the_client_is_told_to_come_again() {
    let busy = edge_of(None, (10_000, 100));
    let response = busy.ask("127.0.0.1:5", to("/v1/traces", JSON, spans(&[call(1, &json!({}))])));
    assert_eq!(
        (response.status(), &response.headers()[header::RETRY_AFTER]),
        (StatusCode::TOO_MANY_REQUESTS, &"1".parse().unwrap())
    );
    assert_eq!(busy.metrics.otlp.in_flight.get(), 0);
    let gone = edge_of(Some(ClientSettings::new("127.0.0.1:1")), (1 << 20, 4 << 20));
    let response = gone.ask("127.0.0.1:5", to("/v1/traces", JSON, spans(&[call(1, &json!({}))])));
    assert_eq!(
        (response.status(), &response.headers()[header::RETRY_AFTER]),
        (StatusCode::SERVICE_UNAVAILABLE, &"1".parse().unwrap())
    );
    assert_eq!(
        (gone.metrics.otlp.accepted.get(), gone.metrics.otlp.in_flight.get()),
        (0, 0),
        "nothing is taken, nothing is held"
    );
}

#[test]
fn what_is_no_request_is_refused_in_its_encoding() {
    let edge = edge();
    let code = |request| {
        let (status, answer) = edge.send(request);
        (status.as_u16(), serde_json::from_slice::<Value>(&answer).unwrap()["code"].as_i64().unwrap())
    };
    assert_eq!(code(to("/v1/traces", JSON, "{")), (400, 3));
    assert_eq!(code(to("/v1/traces", "text/plain", "{}")), (415, 3));
    assert_eq!(code(to("/v1/other", JSON, "{}")), (404, 5));
    let get = Request::get("/v1/traces").header(header::HOST, "localhost").body(Body::empty()).unwrap();
    assert_eq!(code(get), (405, 12));
    let mut odd = to("/v1/traces", JSON, "{}");
    odd.headers_mut().insert(header::CONTENT_ENCODING, "br".parse().unwrap());
    assert_eq!(code(odd), (415, 3));
    let mut broken = to("/v1/traces", JSON, "not gzip");
    broken.headers_mut().insert(header::CONTENT_ENCODING, "gzip".parse().unwrap());
    assert_eq!(code(broken), (400, 3));
    let (status, answer) = edge.send(to("/v1/traces", PROTO, "\u{ff}"));
    assert_eq!((status, &answer[..2]), (StatusCode::BAD_REQUEST, &[8, 3][..]), "google.rpc.Status with code 3");
    assert!(String::from_utf8_lossy(&answer).contains("not an OTLP protobuf message"));
}

#[test]
fn who_sends_from_elsewhere_needs_a_token_and_writes_for_its_tenant_only() {
    let edge = edge();
    let ask = |peer: &str, token: Option<&str>, tenant: &str| {
        let more = if tenant.is_empty() { json!({}) } else { json!({"runwarden.tenant_id": tenant}) };
        let mut request = to("/v1/traces", JSON, spans(&[call(1, &more)]));
        if let Some(token) = token {
            request.headers_mut().insert(header::AUTHORIZATION, format!("Bearer {token}").parse().unwrap());
        }
        let response = edge.ask(peer, request);
        (response.status().as_u16(), String::from_utf8(bytes(response)).unwrap())
    };
    assert_eq!(ask("10.0.0.9:5", None, "acme").0, 401);
    assert_eq!(ask("10.0.0.9:5", Some("another token altogether"), "acme").0, 401);
    assert_eq!(
        ask("127.0.0.1:5", Some("another token altogether"), "acme").0,
        401,
        "a wrong one is refused from here too"
    );
    assert_eq!(ask("10.0.0.9:5", Some(TOKEN), ""), (200, "{}".into()));
    let (status, answer) = ask("10.0.0.9:5", Some(TOKEN), "globex");
    assert!(status == 200 && answer.contains("may not write"), "{answer}");
    assert_eq!(ask("127.0.0.1:5", None, "globex"), (200, "{}".into()));
    let tenants: Vec<Value> = edge.events().iter().map(|event| event["tenant_id"].clone()).collect();
    assert_eq!(tenants, ["acme", "globex"]);
    assert_eq!(edge.metrics.otlp.rejected.get(SpanRejected::Tenant).get(), 1);
    let mut elsewhere = to("/v1/traces", JSON, "{}");
    elsewhere.headers_mut().insert(header::HOST, "evil.example".parse().unwrap());
    assert_eq!(edge.send(elsewhere).0, StatusCode::FORBIDDEN, "a page that a browser was made to load");
}

#[test]
fn metrics_and_logs_are_rejected_politely_and_counted() {
    let edge = edge();
    let logs = r#"{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"body":{"stringValue":"S"}},{}]}]}]}"#;
    let (status, answer) = edge.send(to("/v1/logs", JSON, logs));
    let answer: Value = serde_json::from_slice(&answer).unwrap();
    assert_eq!((status, &answer["partialSuccess"]["rejectedLogRecords"]), (StatusCode::OK, &json!("2")));
    let metrics = r#"{"resourceMetrics":[{"scopeMetrics":[{"metrics":[{"gauge":{"dataPoints":[{}]}}]}]}]}"#;
    let (_, answer) = edge.send(to("/v1/metrics", JSON, metrics));
    assert!(String::from_utf8(answer).unwrap().contains(r#""rejectedDataPoints":"1""#));
    assert_eq!(edge.send(to("/v1/metrics", PROTO, "")), (StatusCode::OK, Vec::new()));
    let refused = &edge.metrics.otlp.refused;
    assert_eq!((refused.get(OtlpSignal::Logs).get(), refused.get(OtlpSignal::Metrics).get()), (2, 1));
    assert!(edge.events().is_empty());
}

#[test]
fn a_request_under_way_is_answered_before_the_end() {
    let edge = edge();
    let routes = edge.routes.clone();
    let answer = block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = watch::channel(false);
        let server = tokio::spawn(http::listen(listener, None, routes, stopped));
        let body = spans(&[call(1, &json!({}))]);
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = format!(
            "POST /v1/traces HTTP/1.1\r\nHost: localhost\r\nContent-Type: {JSON}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&body.as_bytes()[..20]).await.unwrap();
        // it is being read when the end is asked for
        while edge.metrics.otlp.in_flight.get() == 0 {
            tokio::task::yield_now().await;
        }
        stop.send(true).unwrap();
        stream.write_all(&body.as_bytes()[20..]).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        server.await.unwrap().unwrap();
        answer
    });
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(edge.events().len(), 1);
}
