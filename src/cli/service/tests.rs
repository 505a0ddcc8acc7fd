//! A whole sidecar on the in-process Kafka, looked at over HTTP.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Instant;

use serde_json::Value;

use super::*;
use crate::cli::load::{self, Texts};
use crate::kafka::produce::Producer;
use crate::kafka::provision::create_and_verify;
use crate::kafka::{Mock, Topics};

const SOON: Duration = Duration::from_secs(20);

fn deciding(loaded: Loaded, shell: ShellConfig, governance: Governance) -> Deciding {
    Deciding { loaded, shell, governance, traces: None }
}

fn start(mock: &Mock, topics: &Topics, slot: &str) -> Service {
    let loaded = load::build(&Texts::demo(), load::defaults()).unwrap();
    let shell = ShellConfig {
        checkpoint_interval: Duration::from_millis(200),
        ..ShellConfig::new(mock.settings(), "readiness", slot, topics.clone())
    };
    let roles = crate::config::Config::default().roles;
    Service::start(
        Some(deciding(loaded, shell, Governance::Files)),
        &roles,
        listen((Ipv4Addr::LOCALHOST, 0).into()).unwrap(),
        "test",
        None,
        None,
    )
    .unwrap()
}

fn get(service: &Service, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(service.address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let status = text.split(' ').nth(1).unwrap().parse().unwrap();
    (status, text.split_once("\r\n\r\n").unwrap().1.to_owned())
}

/// The reasons against readiness; empty when ready.
fn reasons(service: &Service) -> Vec<String> {
    let (status, body) = get(service, "/readyz");
    let body: Value = serde_json::from_str(&body).unwrap();
    let reasons: Vec<String> = body["reasons"].as_object().unwrap().keys().cloned().collect();
    assert_eq!(status == 200, reasons.is_empty(), "{body}");
    reasons
}

fn partitions(service: &Service) -> usize {
    let status: Value = serde_json::from_str(&get(service, "/status.json").1).unwrap();
    status["partitions"].as_array().unwrap().len()
}

fn metric(service: &Service, name: &str) -> f64 {
    let text = get(service, "/metrics").1;
    let line = text.lines().find(|l| l.split(' ').next() == Some(name));
    line.map_or(f64::NAN, |l| l.rsplit(' ').next().unwrap().parse().unwrap())
}

fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !check() {
        assert!(Instant::now() < deadline, "not within {SOON:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn ready_means_the_group_has_answered_and_everything_assigned_is_restored() {
    let topics = Topics { partitions: 1, replication: 1, ..Topics::default() };
    let mock = Mock::start().unwrap();
    let first = start(&mock, &topics, "a");
    eventually("it waits for its topics", || reasons(&first) == ["kafka"]);
    create_and_verify(&mock, &topics).unwrap();
    eventually("the owner is ready", || reasons(&first).is_empty());
    assert_eq!(partitions(&first), 1);
    let second = start(&mock, &topics, "b");
    eventually("one that owns nothing is ready too", || reasons(&second).is_empty());
    assert_eq!(partitions(&first) + partitions(&second), 1, "one partition has one owner");
    first.drain(SOON).unwrap();
    eventually("it takes over", || partitions(&second) == 1 && reasons(&second).is_empty());
    second.drain(SOON).unwrap();
    eventually("who has left is not ready", || !reasons(&second).is_empty());
}

#[test]
fn what_goes_in_shows_in_the_metrics() {
    let topics = Topics { partitions: 2, replication: 1, ..Topics::default() };
    let mock = Mock::with_topics(&topics).unwrap();
    let service = start(&mock, &topics, "a");
    let producer = Producer::new(&mock.settings()).unwrap();
    let now = Wall::now().0 / 1_000;
    let mut bytes = 0;
    for n in 0..50 {
        let event = serde_json::json!({
            "event_id": format!("e{n}"), "event_time": now + n, "event_type": "run.step", "tenant_id": "acme", "run_id": "r",
            "agent_id": "a", "input_tokens": 3_000,
        })
        .to_string();
        bytes += event.len() + "acme".len();
        producer.send(&topics.telemetry, b"acme", event.as_bytes()).unwrap();
    }
    producer.send(&topics.telemetry, b"x", b"{").unwrap();
    producer.flush(SOON).unwrap();
    eventually("all consumed", || metric(&service, "runwarden_input_records_total{input=\"telemetry\"}") == 51.0);
    eventually("a checkpoint", || metric(&service, "runwarden_checkpoint_records_total") > 1.0);
    eventually("lag is known", || metric(&service, "runwarden_consumer_lag_records{partition=\"1\"}") == 0.0);
    let is = |name: &str, value: f64| assert_eq!(metric(&service, name), value, "{name}");
    is("runwarden_decoded_records_total", 50.0);
    is("runwarden_input_bytes_total{input=\"telemetry\"}", (bytes + 2) as f64);
    is("runwarden_dead_letter_records_total{reason=\"decode\"}", 1.0);
    is("runwarden_output_records_total{topic=\"dead-letter\"}", 1.0);
    is("runwarden_signals_total{kind=\"BREACH\",mode=\"BLOCK\"}", 1.0);
    is("runwarden_interventions_total{mode=\"enforced\",type=\"STOP\"}", 1.0);
    assert!(metric(&service, "runwarden_checkpoints_total") >= 1.0);
    assert!(metric(&service, "runwarden_step_record_bytes_total") > 0.0);
    eventually("windows are open", || metric(&service, "runwarden_open_windows{metric=\"run_tokens\"}") == 1.0);
    assert!(metric(&service, "runwarden_live_keys") > 0.0);
    assert!(metric(&service, "runwarden_state_bytes") > 0.0);
    // every policy of the demo is for all tenants, so one event of a run meets all those of runs
    let unmatched = metric(&service, "runwarden_unmatched_policies");
    assert!(unmatched < crate::demo::policies::FILES.len() as f64 * 2.0, "{unmatched}");
    service.drain(SOON).unwrap();
}

/// A process with these roles and no broker anywhere.
fn without_core(roles: &[Role]) -> Service {
    let roles = roles.iter().copied().collect();
    Service::start(None, &roles, listen((Ipv4Addr::LOCALHOST, 0).into()).unwrap(), "test", None, None).unwrap()
}

fn role_gauges(service: &Service) -> Vec<f64> {
    let roles = ["edge", "core", "serve", "channels"];
    roles.map(|role| metric(service, &format!("runwarden_role_enabled{{role=\"{role}\"}}"))).to_vec()
}

#[test]
fn without_core_a_process_needs_no_broker_and_is_ready_at_once() {
    let service = without_core(&[Role::Serve]);
    eventually("ready", || reasons(&service).is_empty());
    assert_eq!(get(&service, "/healthz").0, 200);
    assert_eq!((get(&service, "/").0, partitions(&service)), (200, 0));
    assert_eq!(role_gauges(&service), [0.0, 0.0, 1.0, 0.0]);
    assert!(service.wait(Duration::ZERO).is_none(), "it goes on until it is asked to end");
    assert_eq!(service.drain(Duration::from_secs(1)).unwrap(), Ended::Drained);
}

#[test]
fn without_serve_what_watches_a_process_is_there_and_the_page_says_how_to_get_it() {
    let service = without_core(&[Role::Edge, Role::Channels]);
    for path in ["/", "/console/console.css", "/console/console.js"] {
        let (status, body) = get(&service, path);
        assert_eq!(status, 404, "{path}");
        assert!(body.contains("role serve is off") && body.contains("[roles] enabled"), "{body}");
    }
    for path in ["/metrics", "/healthz", "/readyz", "/status.json"] {
        assert_eq!(get(&service, path).0, 200, "{path}");
    }
    let status: Value = serde_json::from_str(&get(&service, "/status.json").1).unwrap();
    assert_eq!(status["roles"], serde_json::json!(["edge", "channels"]));
    assert_eq!(role_gauges(&service), [1.0, 0.0, 0.0, 1.0]);
}

#[test]
fn core_alone_owns_partitions_and_shows_no_page() {
    let topics = Topics { partitions: 1, replication: 1, ..Topics::default() };
    let mock = Mock::with_topics(&topics).unwrap();
    let loaded = load::build(&Texts::demo(), load::defaults()).unwrap();
    let shell = ShellConfig::new(mock.settings(), "roles", "a", topics);
    let listener = listen((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let service = Service::start(
        Some(deciding(loaded, shell, Governance::Files)),
        &[Role::Core].into(),
        listener,
        "test",
        None,
        None,
    )
    .unwrap();
    eventually("it owns", || partitions(&service) == 1 && reasons(&service).is_empty());
    assert_eq!(get(&service, "/").0, 404);
    service.drain(SOON).unwrap();
}

#[test]
fn a_broker_that_is_not_there_keeps_a_process_alive_and_not_ready() {
    let loaded = load::build(&Texts::demo(), load::defaults()).unwrap();
    let shell = ShellConfig::new(crate::kafka::ClientSettings::new("127.0.0.1:1"), "g", "a", Topics::default());
    let listener = listen((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let service = Service::start(
        Some(deciding(loaded, shell, Governance::Files)),
        &[Role::Core, Role::Serve].into(),
        listener,
        "test",
        None,
        None,
    )
    .unwrap();
    eventually("it says what it waits for", || reasons(&service) == ["kafka"]);
    assert!(get(&service, "/readyz").1.contains("127.0.0.1:1"), "the address is named");
    assert_eq!(get(&service, "/healthz").0, 200);
    assert_eq!(service.drain(Duration::from_secs(10)).unwrap(), Ended::Drained);
}
