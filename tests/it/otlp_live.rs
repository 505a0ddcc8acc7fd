//! OTLP into whole sidecars on a real broker: a worker with the OpenTelemetry SDK that a policy stops, content that goes nowhere, and a
//! collector's topic read through kills. Needs a broker, see `support::broker`; the worker also opentelemetry-sdk (`RUNWARDEN_TEST_PYTHON`).

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message as _;
use runwarden::clock::Wall;
use runwarden::kafka::produce::{Producer, Send};
use runwarden::kafka::provision::{Broker, Provisioner as _};
use runwarden::kafka::reader::OwnedRecord;
use runwarden::kafka::topics::{Cleanup, TopicSpec};
use serde_json::{Value, json};

use crate::end_to_end::{Running, Site};
use crate::support::root;
use crate::support::sidecar::eventually;

const SOON: Duration = Duration::from_secs(60);
const POLICY: &str = "id: run\nname: Run\nenforcement_mode: BLOCK\nlimits:\n- {id: tokens, limit_type: TOKENS_PER_RUN, metric: run_tokens, max: 100000}\n";
/// Stands wherever a worker may put what people say.
const SENTINEL: &str = "SENTINEL-what-somebody-asked";

/// A site that stops runs, open to this host.
fn site(test: &str, more: &str) -> Option<Site> {
    let site = Site::new(test, 2, "")?;
    fs::write(site.dir.path().join("policies/policies.yaml"), POLICY).unwrap();
    let config = fs::read_to_string(site.config()).unwrap();
    fs::write(site.config(), format!("{config}[auth]\nloopback = \"open\"\n{more}")).unwrap();
    Some(site)
}

/// What a sidecar says of where it listens.
fn address(running: &Running, what: &str) -> String {
    let needle = format!("{what}=");
    let found = || {
        let said = running.said();
        said.split(&needle).nth(1).and_then(|rest| rest.split_whitespace().next()).map(str::to_owned)
    };
    eventually("it listens", SOON, || found().is_some());
    found().unwrap()
}

fn http(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

fn values(site: &Site, topic: &str) -> Vec<Value> {
    site.read(topic).into_iter().filter_map(|r| serde_json::from_slice(&r.payload?).ok()).collect()
}

/// The topics, files, logs and pages in which the sentinel stands.
fn found_in(site: &Site, running: &Running) -> Vec<String> {
    let holds = |bytes: &[u8]| bytes.windows(SENTINEL.len()).any(|part| part == SENTINEL.as_bytes());
    let mut found = Vec::new();
    let mut records = 0;
    for spec in site.topics.specs() {
        for record in site.read(spec.name) {
            records += 1;
            let parts =
                [record.key, record.payload].into_iter().flatten().chain(record.headers.into_iter().map(|h| h.1));
            if parts.into_iter().any(|part| holds(&part)) {
                found.push(format!("{}@{}", spec.name, record.offset));
            }
        }
    }
    assert!(records > 10, "there is something to look at");
    let mut files = vec![site.dir.path().to_owned()];
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if fs::read(&path).is_ok_and(|bytes| holds(&bytes)) {
            found.push(path.display().to_string());
        }
    }
    let listens = address(running, "address");
    let pages = [
        "/metrics",
        "/status.json",
        "/api/v1/policies/violations?limit=100&hours=720",
        "/api/v1/interventions?limit=100",
    ];
    for page in pages.into_iter().chain(["/api/v1/alerts?limit=100", "/api/v1/lessons?limit=100"]) {
        let text = http(&listens, &format!("GET {page} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"));
        assert!(text.starts_with("HTTP/1.1 200"), "{page}: {text}");
        if holds(text.as_bytes()) {
            found.push(page.to_owned());
        }
    }
    found.extend(sql(&address(running, "sql")).filter(|text| holds(text.as_bytes())).map(|_| "SQL".to_owned()));
    found
}

/// Every table as psql shows it, where there is a psql.
fn sql(address: &str) -> Option<String> {
    let psql = std::env::var("RUNWARDEN_TEST_PSQL").unwrap_or_else(|_| "psql".to_owned());
    let tables =
        ["signals", "alerts", "interventions", "runs", "lessons", "audit", "evaluations", "agents", "live_windows"];
    let ask: Vec<String> = tables.iter().flat_map(|t| ["-c".to_owned(), format!("SELECT * FROM {t}")]).collect();
    let url = format!("postgres://runwarden@{address}/runwarden");
    match Command::new(&psql).args(["-At", "-d", &url]).args(&ask).output() {
        Ok(output) => Some(String::from_utf8_lossy(&output.stdout).into_owned()),
        Err(_) => {
            println!("skipped: SQL from outside ({psql} is not there)");
            None
        }
    }
}

#[test]
fn a_worker_with_the_opentelemetry_sdk_is_stopped_by_a_policy_and_its_prompts_go_nowhere() {
    let python = std::env::var("RUNWARDEN_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
    let import = "import opentelemetry.sdk.trace, opentelemetry.exporter.otlp.proto.http";
    if !Command::new(&python).args(["-c", import]).output().is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: {python} has no opentelemetry-sdk (RUNWARDEN_TEST_PYTHON names one that has)");
        return;
    }
    let Some(site) = site("otlpworker", "") else { return };
    let mut running = site.sidecar(1);
    running.await_restored(2);
    let output = Command::new(&python)
        .arg(root().join("examples/otlp_worker.py"))
        .args(["--sidecar", &format!("http://{}", address(&running, "address")), "--prompt", SENTINEL])
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{}", address(&running, "otlp")))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success() && said.contains("was stopped: stop"),
        "{said}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let run = said.split_whitespace().nth(1).unwrap().to_owned();
    let stop = |v: &Value| v["type"] == "STOP" && v["target"]["id"] == run.as_str() && v["state"] == "ISSUED";
    let ordered = values(&site, &site.topics.interventions);
    assert!(ordered.iter().any(stop), "{ordered:?}");
    assert_eq!(get_open(&running, &format!("/api/v1/runs/{run}/verdict?tenant_id=acme"))["verdict"], "stop");
    eventually("the run's end is told", SOON, || {
        values(&site, &site.topics.runs).iter().any(|r| r["run_id"] == run.as_str())
    });
    let telemetry = values(&site, &site.topics.telemetry);
    let of = |kind: &str| telemetry.iter().filter(|e| e["event_type"] == kind).count();
    assert_eq!((of("run.started"), of("run.failed"), of("run.completed")), (1, 1, 0));
    assert!(telemetry.iter().any(|e| e["error_code"] == "not_found"), "the tool failed");
    assert_eq!(found_in(&site, &running), Vec::<String>::new(), "what was asked stays where it was asked");
    running.terminate();
}

fn get_open(running: &Running, path: &str) -> Value {
    let text = http(
        &address(running, "address"),
        &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"),
    );
    serde_json::from_str(text.split_once("\r\n\r\n").unwrap().1).unwrap_or_else(|e| panic!("{e}: {text}"))
}

/// A span as OTLP JSON, with the sentinel wherever it may stand.
fn span(trace: &str, id: usize, parent: Option<usize>, more: &[(&str, Value)]) -> Value {
    let start = (Wall::now().0 - 2_000_000) * 1_000;
    let secret = json!({"stringValue": SENTINEL});
    let mut attributes: Vec<Value> = more.iter().map(|(key, value)| json!({"key": key, "value": value})).collect();
    for key in [
        "gen_ai.input.messages",
        "gen_ai.output.messages",
        "gen_ai.tool.call.arguments",
        "gen_ai.prompt",
        "user.email",
        SENTINEL,
    ] {
        attributes.push(json!({"key": key, "value": secret}));
    }
    json!({
        "traceId": trace, "spanId": format!("{id:016x}"), "parentSpanId": parent.map_or(String::new(), |p| format!("{p:016x}")),
        "traceState": SENTINEL, "name": SENTINEL, "kind": 1, "startTimeUnixNano": start.to_string(), "endTimeUnixNano": (start + 1_000_000_000).to_string(),
        "attributes": attributes, "events": [{"timeUnixNano": "1", "name": SENTINEL, "attributes": [{"key": "gen_ai.prompt", "value": secret}]}],
        "status": {"code": 2, "message": SENTINEL},
    })
}

fn chat(trace: &str, id: usize, parent: usize) -> Value {
    let more = [
        ("gen_ai.operation.name", json!({"stringValue": "chat"})),
        ("gen_ai.usage.input_tokens", json!({"intValue": "7"})),
        ("runwarden.tenant_id", json!({"stringValue": "acme"})),
    ];
    span(trace, id, Some(parent), &more)
}

fn root_span(trace: &str, id: usize) -> Value {
    let more = [
        ("gen_ai.operation.name", json!({"stringValue": "invoke_agent"})),
        ("gen_ai.usage.input_tokens", json!({"intValue": "99999"})),
        ("runwarden.tenant_id", json!({"stringValue": "acme"})),
    ];
    span(trace, id, None, &more)
}

fn request(spans: &[Value]) -> Value {
    json!({"resourceSpans": [{"resource": {"attributes": [{"key": "host.name", "value": {"stringValue": SENTINEL}}]},
        "scopeSpans": [{"scope": {"name": SENTINEL}, "spans": spans}]}]})
}

#[test]
fn what_people_say_is_in_no_topic_no_table_no_log_and_no_page() {
    let Some(site) = site("otlpsecret", "") else { return };
    let mut running = site.sidecar(1);
    running.await_restored(2);
    let (otlp, trace) = (address(&running, "otlp"), "0af7651916cd43dd8448eb211c80319c");
    let post = |body: &str| {
        let head = format!(
            "POST /v1/traces HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        http(&otlp, &(head + body))
    };
    let mut bad = chat(trace, 9, 1);
    bad["endTimeUnixNano"] = "1".into();
    let spans: Vec<Value> = (2..8).map(|id| chat(trace, id, 1)).chain([bad, root_span(trace, 1)]).collect();
    let answer = post(&request(&spans).to_string());
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains(r#""rejectedSpans":"1""#), "{answer}");
    let broken = request(&spans).to_string().replace("\"spans\":[", "\"spans\":{");
    let refused = post(&broken);
    assert!(refused.starts_with("HTTP/1.1 400") && !refused.contains(SENTINEL), "{refused}");
    eventually("the run's end is told", SOON, || values(&site, &site.topics.runs).iter().any(|r| r["run_id"] == trace));
    let events = site.read(&site.topics.telemetry);
    assert_eq!(events.len(), 8, "six calls, a start and an end");
    let of_trace = format!("00-{trace}-");
    let names_span =
        |r: &OwnedRecord| r.headers.iter().any(|h| h.0 == "traceparent" && h.1.starts_with(of_trace.as_bytes()));
    assert!(events.iter().all(names_span), "each names the span it came from");
    assert_eq!(found_in(&site, &running), Vec::<String>::new());
    let metrics =
        http(&address(&running, "address"), "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    for series in [
        "otlp_accepted_spans_total 7",
        "otlp_rejected_spans_total{reason=\"time\"} 1",
        "otlp_requests_total{code=\"400\"} 1",
    ] {
        assert!(metrics.contains(series), "{series}");
    }
    running.terminate();
}

/// Records of a collector, in the encoding that a site reads, through two kills.
fn bridged(test: &str, encoding: &str) {
    const RECORDS: usize = 60;
    const EACH: usize = 5;
    // a member that died is waited for, and what waited with it is not to be late
    let Some(site) = Site::new(test, 2, "allowed-lateness = \"2m\"") else { return };
    fs::write(site.dir.path().join("policies/policies.yaml"), POLICY).unwrap();
    let topic = format!("{}otlp_spans", site.topics.telemetry.strip_suffix("runs.telemetry").unwrap());
    let config = fs::read_to_string(site.config()).unwrap();
    let config = config.replace("[otlp]\n", &format!("[otlp]\ntopic = \"{topic}\"\nencoding = \"{encoding}\"\n"));
    assert!(config.contains(&topic));
    fs::write(site.config(), config).unwrap();
    let spec = TopicSpec {
        key: "otlp",
        name: &topic,
        cleanup: Cleanup::Delete(1),
        co_partitioned: false,
        settings: Vec::new(),
    };
    Broker::new(site.client.clone()).create(&[spec], 2, 1).unwrap();
    let producer = Producer::new(&site.client).unwrap();
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let send = |payload: &[u8]| {
        producer.send_record(Send { topic: &topic, payload: Some(payload), ..Send::default() }).unwrap();
        producer.flush(SOON).unwrap();
    };
    let written = |spans: &[Value]| match encoding {
        "otlp_json" => request(spans).to_string().into_bytes(),
        _ => serde_json::from_value::<ExportTraceServiceRequest>(request(spans)).unwrap().encode_to_vec(),
    };
    let ids = || {
        let all = values(&site, &site.topics.telemetry);
        all.iter().map(|e| e["event_id"].as_str().unwrap().to_owned()).collect::<BTreeSet<String>>()
    };
    let mut running = Some(site.sidecar(0));
    for record in 0..RECORDS {
        let spans: Vec<Value> = (0..EACH).map(|n| chat(trace, 2 + record * EACH + n, 1)).collect();
        send(&written(&spans));
        if record == RECORDS / 3 || record == 2 * RECORDS / 3 {
            eventually("some of it is taken", SOON, || ids().len() > record);
            running.take().unwrap().kill();
            running = Some(site.sidecar(record));
        }
    }
    send(b"\xff not a request");
    send(&written(&[root_span(trace, 1)]));
    eventually("all of it is taken", SOON, || ids().len() == RECORDS * EACH + 2);
    // what comes later closes the run's window: nobody has to wait for as long as rows may be late
    let mut later = chat("0af7651916cd43dd8448eb211c80319c", 2, 1);
    let nanos = u64::try_from(Wall::now().0).unwrap() * 1_000 + 180_000_000_000;
    later["startTimeUnixNano"] = nanos.to_string().into();
    later["endTimeUnixNano"] = nanos.to_string().into();
    send(&written(&[later]));
    let end = || values(&site, &site.topics.runs).into_iter().find(|r| r["run_id"] == trace);
    eventually("the run's end is told", SOON, || end().is_some());
    let end = end().unwrap();
    assert_eq!(
        (&end["steps"], &end["tokens"]),
        (&json!(RECORDS * EACH), &json!(RECORDS * EACH * 7)),
        "each span counts once: {end}"
    );
    let dead: Vec<_> = site.read(&site.topics.dead_letter);
    assert!(!dead.is_empty());
    for letter in &dead {
        let header = |name: &str| {
            letter.headers.iter().find(|h| h.0 == name).map(|h| String::from_utf8_lossy(&h.1).into_owned())
        };
        assert_eq!(
            (header("__connect.errors.topic"), header("runwarden-reason")),
            (Some(topic.clone()), Some("decode".into()))
        );
        assert!(header("ce_type").is_some_and(|t| t == "runwarden.dead-letter.decode"));
    }
    running.unwrap().terminate();
}

#[test]
fn a_collector_s_records_in_protobuf_count_once_though_it_is_killed() {
    bridged("otlpproto", "otlp_proto");
}

#[test]
fn a_collector_s_records_in_json_count_once_though_it_is_killed() {
    bridged("otlpjson", "otlp_json");
}

#[test]
fn a_process_without_the_role_takes_no_spans_and_one_with_it_alone_does() {
    let Some(site) = site("otlproles", "[roles]\nenabled = [\"edge\"]\n") else { return };
    let running = site.sidecar(1);
    let otlp = address(&running, "otlp");
    let body = request(&[chat("4bf92f3577b34da6a3ce929d0e0e4736", 2, 1)]).to_string();
    let head = format!(
        "POST /v1/traces HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    assert!(http(&otlp, &(head + &body)).starts_with("HTTP/1.1 200"));
    assert_eq!(values(&site, &site.topics.telemetry).len(), 1);
    running.terminate();
    let config = fs::read_to_string(site.config()).unwrap().replace("\"edge\"", "\"serve\"");
    fs::write(site.config(), config).unwrap();
    let running = site.sidecar(2);
    eventually("it is up", SOON, || running.said().contains("runwarden is up"));
    assert!(!running.said().contains("otlp="), "{}", running.said());
    running.terminate();
}
