//! Traces of steps: what a running sidecar exports, what its records say of it, and that nothing waits for a collector.

use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;
use std::time::Duration;

use prometheus::Registry;
use rdkafka::Offset;
use runwarden::config::{Secret, Share};
use runwarden::kafka::client::Isolation;
use runwarden::kafka::produce::{Producer, Send};
use runwarden::kafka::reader::{Next, OwnedRecord, Reader, read_topic};
use runwarden::kafka::{ClientSettings, Ended, Mock, ShellConfig, Topics};
use runwarden::metrics::Metrics;
use runwarden::metrics::labels::SpanDropped;
use runwarden::traces::{Exporter, Settings, Tracer};

use crate::end_to_end::{Running, Site};
use crate::support::broker::{fresh_topics, shared, skipped};
use crate::support::child::{Orders, SidecarChild};
use crate::support::collector::{Collector, attribute, hex};
use crate::support::sidecar::{Sidecar, Traffic, eventually};
use crate::support::toy::{Output, Toy};

const SOON: Duration = Duration::from_secs(20);

fn settings(endpoint: &str, topics: &Topics) -> Settings {
    Settings {
        endpoint: endpoint.to_owned(),
        headers: vec![("x-tenant".to_owned(), Secret::new("acme"))],
        timeout: Duration::from_secs(5),
        share: Share::WHOLE,
        decided_per_second: 0,
        group: "g".to_owned(),
        topic: topics.telemetry.clone(),
        instance: "a".to_owned(),
    }
}

fn tracer(settings: Settings) -> (Arc<Tracer>, Exporter, Arc<Metrics>) {
    let metrics = Arc::new(Metrics::register(&Registry::new(), &[]).unwrap());
    let (tracer, exporter) = runwarden::traces::start(settings, Arc::clone(&metrics)).unwrap();
    (tracer, exporter, metrics)
}

fn topics(partitions: i32) -> Topics {
    Topics { partitions, ..Topics::default() }
}

/// `traceparent` of a record.
fn parent(record: &OwnedRecord) -> Option<String> {
    let header = record.headers.iter().find(|(name, _)| name == "traceparent");
    header.map(|(_, value)| String::from_utf8(value.clone()).unwrap())
}

/// The trace and the span that a `traceparent` names.
fn ids(parent: &str) -> (&str, &str) {
    let parts: Vec<&str> = parent.split('-').collect();
    let [version, trace, span, flags] = parts.as_slice() else { panic!("{parent}") };
    assert_eq!((*version, *flags), ("00", "01"));
    (trace, span)
}

#[test]
fn each_step_is_a_trace_from_the_poll_to_the_commit_and_its_records_name_it() {
    let topics = topics(2);
    let mock = Mock::with_topics(&topics).unwrap();
    let collector = Collector::start();
    let (tracer, exporter, metrics) = tracer(settings(collector.endpoint(), &topics));
    let mut traffic = Traffic::new(&mock.settings(), &topics, 7);
    let config = ShellConfig::new(mock.settings(), "g", "a", topics.clone());
    let sidecar = Sidecar::traced(config, Toy::default(), Some(tracer));
    for _ in 0..5 {
        traffic.send(100);
        traffic.settle(&mock.settings(), &topics, SOON);
    }
    let counters = Arc::clone(&sidecar.status);
    assert_eq!(sidecar.drain(SOON), Ended::Drained);
    drop(exporter);

    let traces = collector.traces();
    assert_eq!(traces.len() as u64, counters.counters.steps.get(), "one for each step");
    let mut events = 0;
    for trace in traces.values() {
        for name in ["runwarden.consume", "runwarden.core", "runwarden.produce", "runwarden.commit"] {
            assert_eq!(trace.names().iter().filter(|n| **n == name).count(), 1, "{name} in {:?}", trace.names());
        }
        assert_eq!(trace.root.name, "runwarden.step");
        assert_eq!(attribute(&trace.root, "messaging.system").as_deref(), Some("kafka"));
        assert_eq!(attribute(&trace.root, "messaging.destination.name"), Some(topics.telemetry.clone()));
        let partition = attribute(&trace.root, "messaging.destination.partition.id").unwrap();
        assert!(attribute(&trace.root, "runwarden.step").unwrap().starts_with(&format!("{partition}/")));
        let consume = trace.child("runwarden.consume");
        let first = attribute(consume, "messaging.kafka.offset");
        let range = attribute(&trace.root, "runwarden.offsets.telemetry");
        assert_eq!(first, range.map(|range| range.split('-').next().unwrap().to_owned()));
        let order = ["consume", "core", "produce", "commit"].map(|name| {
            let span = trace.child(&format!("runwarden.{name}"));
            (span.start_time_unix_nano, span.end_time_unix_nano)
        });
        assert!(order.windows(2).all(|two| two[0].1 <= two[1].0), "one after the other: {order:?}");
        events += attribute(&trace.root, "runwarden.events").unwrap().parse::<usize>().unwrap();
    }
    assert_eq!(events, traffic.total());
    for record in read_topic(&mock.settings(), &topics.signals).unwrap() {
        let parent = parent(&record).expect("every step is traced");
        let (trace, span) = ids(&parent);
        assert_eq!(hex(&traces[trace].child("runwarden.produce").span_id), span);
    }
    assert_eq!(metrics.traces.exported.get(), collector.spans().len() as u64);
    assert_eq!(metrics.traces.dropped.total(), 0);
}

#[test]
fn a_step_is_linked_with_the_traces_of_those_who_produced_its_records() {
    let topics = topics(1);
    let mock = Mock::with_topics(&topics).unwrap();
    let collector = Collector::start();
    let producer = Producer::new(&mock.settings()).unwrap();
    let given = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let send = |headers: &[(&str, &[u8])]| {
        let record =
            Send { topic: &topics.telemetry, key: Some(b"k"), payload: Some(b"1"), headers, ..Send::default() };
        producer.send_record(record).unwrap();
    };
    send(&[("traceparent", given.as_bytes()), ("tracestate", b"vendor=1")]);
    send(&[("traceparent", given.as_bytes())]);
    send(&[("traceparent", b"nonsense")]);
    send(&[]);
    producer.flush(SOON).unwrap();
    let (tracer, exporter, _) = tracer(settings(collector.endpoint(), &topics));
    let config = ShellConfig::new(mock.settings(), "g", "a", topics.clone());
    let sidecar = Sidecar::traced(config, Toy::default(), Some(tracer));
    eventually("all are taken", SOON, || sidecar.status.counters.records_in.get() == 4);
    sidecar.drain(SOON);
    drop(exporter);
    let links: Vec<_> = collector.traces().into_values().flat_map(|trace| trace.root.links).collect();
    let named: BTreeSet<_> = links.iter().map(|link| (hex(&link.trace_id), hex(&link.span_id))).collect();
    let (trace, span) = ids(given);
    assert_eq!(named, BTreeSet::from([(trace.to_owned(), span.to_owned())]));
    assert_eq!(links[0].trace_state, "vendor=1");
}

#[test]
fn a_collector_that_is_away_delays_nothing_and_its_spans_are_counted() {
    let topics = topics(1);
    let mock = Mock::with_topics(&topics).unwrap();
    let away = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (tracer, exporter, metrics) = tracer(settings(&format!("http://{away}/v1/traces"), &topics));
    let mut traffic = Traffic::new(&mock.settings(), &topics, 5);
    let config = ShellConfig::new(mock.settings(), "g", "a", topics.clone());
    let sidecar = Sidecar::traced(config, Toy::default(), Some(tracer));
    traffic.send(1_000);
    traffic.settle(&mock.settings(), &topics, SOON);
    eventually("it is given up", SOON, || metrics.traces.dropped.get(SpanDropped::Unreachable).get() > 0);
    traffic.send(1_000);
    traffic.settle(&mock.settings(), &topics, SOON);
    assert_eq!(sidecar.drain(SOON), Ended::Drained);
    drop(exporter);
    assert_eq!(metrics.traces.exported.get(), 0);
}

#[test]
fn a_share_of_none_is_none_but_for_steps_that_decided_something_urgent() {
    for (decided_per_second, urgent) in [(0, true), (5, false), (5, true)] {
        let topics = topics(1);
        let mock = Mock::with_topics(&topics).unwrap();
        let collector = Collector::start();
        let settings = Settings { share: Share(0), decided_per_second, ..settings(collector.endpoint(), &topics) };
        let (tracer, exporter, _) = tracer(settings);
        let mut traffic = Traffic::new(&mock.settings(), &topics, 5);
        let config = ShellConfig::new(mock.settings(), "g", "a", topics.clone());
        let sidecar = Sidecar::traced(config, Toy { urgent, ..Toy::default() }, Some(tracer));
        traffic.send(500);
        traffic.settle(&mock.settings(), &topics, SOON);
        sidecar.drain(SOON);
        drop(exporter);
        let wanted = decided_per_second > 0 && urgent;
        assert_eq!(!collector.traces().is_empty(), wanted, "{decided_per_second} a second, urgent: {urgent}");
    }
}

/// Every record of a topic's only partition, those of aborted transactions too, or not.
fn written(client: &ClientSettings, topic: &str, isolation: Isolation) -> Vec<OwnedRecord> {
    let reader = Reader::new(client, "traces-test", isolation).unwrap();
    let mut found = Vec::new();
    let took = |message: &rdkafka::message::BorrowedMessage<'_>| {
        found.push(OwnedRecord::from_message(message));
        Next::More
    };
    reader.to_end(topic, 0, Offset::Beginning, || false, took).unwrap();
    found
}

#[test]
fn a_step_taken_again_after_a_death_has_the_ids_it_had() {
    let Some(brokers) = shared() else {
        return skipped("a_step_taken_again_after_a_death_has_the_ids_it_had");
    };
    let client = ClientSettings::new(&brokers);
    let topics = fresh_topics(&client, "tracesagain", 1);
    let collector = Collector::start();
    let traces = Some(collector.endpoint().to_owned());
    let orders = Orders { tick: None, traces, ..Orders::new(&brokers, &topics, "a") };
    let dir = tempfile::tempdir().unwrap();
    let mut traffic = Traffic::new(&client, &topics, 5);
    let dying = SidecarChild::start(&Orders { die: Some((3, 30_000)), ..orders.clone() }, &dir, 0);
    for _ in 0..40 {
        traffic.send(10);
    }
    dying.mourn();
    let again = SidecarChild::start(&orders, &dir, 1);
    traffic.settle(&client, &topics, SOON * 3);
    let (clean, said) = again.stop();
    assert!(clean, "{said}");

    let output = |record: &OwnedRecord| -> Output { serde_json::from_slice(record.payload.as_ref().unwrap()).unwrap() };
    let committed = written(&client, &topics.signals, Isolation::Committed);
    let offsets: BTreeSet<i64> = committed.iter().map(|record| record.offset).collect();
    let all = written(&client, &topics.signals, Isolation::Uncommitted);
    let Some(lost) = all.iter().find(|record| !offsets.contains(&record.offset)) else {
        // it died between two transactions
        return println!("nothing was under way when it died");
    };
    let redone = committed.iter().find(|record| output(record) == output(lost)).unwrap();
    assert_eq!(parent(lost), parent(redone));
    let parent = parent(redone).unwrap();
    let (trace, span) = ids(&parent);
    let traces = collector.traces();
    assert_eq!(hex(&traces[trace].child("runwarden.produce").span_id), span, "and only what is committed is exported");
}

/// Names of the threads of a process.
fn threads(running: &Running) -> BTreeSet<String> {
    let tasks = fs::read_dir(format!("/proc/{}/task", running.id())).unwrap();
    tasks.filter_map(|task| Some(fs::read_to_string(task.ok()?.path().join("comm")).ok()?.trim().to_owned())).collect()
}

#[test]
fn a_line_about_an_intervention_leads_to_its_explanation_and_to_its_trace() {
    let Some(site) = Site::new("tracesline", 1, "") else { return };
    let plain = fs::read_to_string(site.config()).unwrap();
    let mut off = site.sidecar(0);
    off.await_restored(1);
    assert!(threads(&off).contains("kafka") && !threads(&off).contains("traces"), "{:?}", threads(&off));
    off.terminate();

    let collector = Collector::start();
    let traces = format!(
        "[traces]\nendpoint = \"{}\"\nsample = 0\ndecided-per-second = 1000\n[log]\nformat = \"json\"\n",
        collector.endpoint()
    );
    fs::write(site.config(), plain + &traces).unwrap();
    let mut running = site.sidecar(1);
    running.await_restored(1);
    assert!(threads(&running).contains("traces"), "{:?}", threads(&running));
    site.feed_lines(&site.lines[..2_000], Duration::ZERO);
    let line = || -> Option<serde_json::Value> {
        let said = running.said();
        let lines = said.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        lines.into_iter().find(|line| line["message"] == "an intervention")
    };
    eventually("an intervention is logged", SOON, || line().is_some());
    let line = line().unwrap();
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_else(|| panic!("{line}")).to_owned();
    let (trace, step) = (text(&line["span"]["trace_id"]), text(&line["span"]["step"]));
    let traced = || collector.traces().contains_key(&trace);
    eventually("its trace is exported", SOON, traced);
    let traces = collector.traces();
    let of = &traces[&trace];
    assert_eq!(attribute(&of.root, "runwarden.step"), Some(step));
    for name in ["consume", "decode", "evaluate", "decide", "correlate", "encode", "produce", "commit"] {
        of.child(&format!("runwarden.{name}"));
    }
    assert!(attribute(&of.root, "runwarden.watermark").is_some() && attribute(&of.root, "runwarden.rows").is_some());
    let id = text(&line["decision_id"]);
    let record = |r: &OwnedRecord| {
        let value: serde_json::Value = serde_json::from_slice(r.payload.as_ref().unwrap()).unwrap();
        value["intervention_id"] == id.as_str()
    };
    let orders = site.read(&site.topics.interventions);
    let order = orders.iter().find(|r| record(r)).expect("what is logged is on its topic");
    assert_eq!(ids(&parent(order).unwrap()).0, trace);
    running.terminate();
    let (code, said, errors) = site.run(&["explain", &id, "--config", &site.config().display().to_string()]);
    assert_eq!(code, Some(0), "{said}{errors}");
}
