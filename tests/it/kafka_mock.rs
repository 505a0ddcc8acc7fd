//! The shell on the in-process mock: plumbing end to end. Exactly-once under crashes is `kafka_real`'s.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use runwarden::kafka::core::Topic;
use runwarden::kafka::provision::{Provisioner, create_and_verify, describe, verify};
use runwarden::kafka::reader::read_topic;
use runwarden::kafka::{Ended, Error, Mock, ShellConfig, Topics};

use crate::support::sidecar::{Sidecar, Traffic, eventually};
use crate::support::toy::Toy;

const SOON: Duration = Duration::from_secs(20);

fn topics(partitions: i32) -> Topics {
    Topics { partitions, ..Topics::default() }
}

fn config(mock: &Mock, topics: &Topics, slot: &str) -> ShellConfig {
    ShellConfig::new(mock.settings(), "g", slot, topics.clone())
}

#[test]
fn records_come_out_once_and_a_clean_restart_keeps_the_counts() {
    let topics = topics(3);
    let mock = Mock::with_topics(&topics).unwrap();
    let mut traffic = Traffic::new(&mock.settings(), &topics, 7);
    let first = Sidecar::start(config(&mock, &topics, "a"), Toy::default());
    traffic.send(2_000);
    traffic.settle(&mock.settings(), &topics, SOON);
    assert!(first.status.ready());
    assert_eq!(*first.status.owned(), [0, 1, 2]);
    assert_eq!(first.drain(SOON), Ended::Drained);

    traffic.send(500);
    let second = Sidecar::start(config(&mock, &topics, "a"), Toy::default());
    traffic.settle(&mock.settings(), &topics, SOON);
    assert_eq!(second.status.counters.replayed_steps.get(), 0, "a drain leaves nothing to re-run");
    assert_eq!(second.status.counters.records_in.get(), 500);
    assert_eq!(second.drain(SOON), Ended::Drained);
}

#[test]
fn without_a_checkpoint_the_recorded_steps_are_run_again() {
    let topics = topics(2);
    let mock = Mock::with_topics(&topics).unwrap();
    let mut traffic = Traffic::new(&mock.settings(), &topics, 5);
    let never = |slot: &str| ShellConfig {
        checkpoint_interval: Duration::from_secs(3_600),
        commit_interval: Duration::from_millis(20),
        ..config(&mock, &topics, slot)
    };
    let toy = Toy { tick: Some(30_000), ..Toy::default() };
    let first = Sidecar::start(never("a"), toy);
    for _ in 0..5 {
        traffic.send(200);
        traffic.settle(&mock.settings(), &topics, SOON);
    }
    first.drain(Duration::ZERO);

    let second = Sidecar::start(never("a"), toy);
    traffic.send(300);
    traffic.settle(&mock.settings(), &topics, SOON);
    let counters = &second.status.counters;
    assert!(counters.replayed_steps.get() > 0, "there was no checkpoint to start from");
    assert_eq!(counters.replay_mismatches.get(), 0);
    assert_eq!(counters.history_gone.get(), 0);
    second.drain(SOON);
    let ticks = read_topic(&mock.settings(), &topics.alerts).unwrap();
    let mut ids: Vec<_> = ticks.iter().map(|t| t.key.clone().unwrap()).collect();
    ids.sort();
    ids.dedup();
    // The mock shows the transaction that was open at the end as well, so repeats prove nothing here; gaps would.
    for partition in 0..2 {
        let of = |n: usize| format!("{partition}/{n}").into_bytes();
        let count = ids.iter().filter(|id| id.starts_with(format!("{partition}/").as_bytes())).count();
        assert!(count > 2 && (1..=count).all(|n| ids.contains(&of(n))), "numbered without a gap: {count}");
    }
}

#[test]
fn a_checkpoint_larger_than_a_transaction_goes_ahead_of_its_mark() {
    let topics = topics(1);
    let mock = Mock::with_topics(&topics).unwrap();
    let mut traffic = Traffic::new(&mock.settings(), &topics, 200);
    let small = || ShellConfig {
        checkpoint_interval: Duration::from_millis(50),
        commit_interval: Duration::from_millis(10),
        checkpoint_chunk: 100,
        ..config(&mock, &topics, "a")
    };
    let first = Sidecar::start(small(), Toy::default());
    traffic.send(600);
    traffic.settle(&mock.settings(), &topics, SOON);
    eventually("a whole checkpoint", SOON, || first.status.counters.checkpoints.get() >= 1);
    let counters = &first.status.counters;
    assert!(counters.transactions_committed.get() > 25, "200 keys, six to a transaction");
    // The next one is on its way when the end comes.
    traffic.send(600);
    let committed = counters.transactions_committed.get();
    eventually("begun", SOON, || counters.transactions_committed.get() > committed + 10);
    first.drain(Duration::ZERO);

    let second = Sidecar::start(small(), Toy::default());
    traffic.send(200);
    traffic.settle(&mock.settings(), &topics, SOON);
    assert_eq!(second.status.counters.replay_mismatches.get(), 0);
    assert_eq!(second.status.counters.history_gone.get(), 0);
    second.drain(SOON);
}

#[test]
fn what_was_taken_over_between_two_steps_is_on_the_topic_with_the_step_that_did() {
    let topics = topics(2);
    let mock = Mock::with_topics(&topics).unwrap();
    let mut traffic = Traffic::new(&mock.settings(), &topics, 200);
    let terms: &'static AtomicU64 = Box::leak(Box::new(AtomicU64::new(1)));
    let toy = Toy { terms: Some(terms), urgent: true, ..Toy::default() };
    let small = |commit_interval| ShellConfig {
        checkpoint_interval: Duration::from_millis(50),
        commit_interval,
        urgent_interval: Duration::ZERO,
        checkpoint_chunk: 100,
        ..config(&mock, &topics, "a")
    };
    // parts are far from each other: a checkpoint is on its way nearly always
    for life in 1..=4 {
        let sidecar = Sidecar::start(small(Duration::from_millis(40)), toy);
        let counters = &sidecar.status.counters;
        traffic.send(400);
        eventually("a checkpoint is under way", SOON, || counters.checkpoint_records.get() > 10);
        terms.fetch_add(1, Ordering::SeqCst);
        traffic.send(20 * life);
        // committed, since the mock shows what is not
        eventually("steps by the new terms", SOON, || counters.records_in.get() == 400 + 20 * life as u64);
        assert_eq!((counters.replay_mismatches.get(), counters.history_gone.get()), (0, 0), "in life {life}");
        sidecar.drain(Duration::ZERO);
    }
    let last = Sidecar::start(small(Duration::from_millis(10)), toy);
    traffic.send(200);
    traffic.settle(&mock.settings(), &topics, SOON);
    let counters = &last.status.counters;
    assert_eq!((counters.replay_mismatches.get(), counters.history_gone.get()), (0, 0));
    last.drain(SOON);
}

#[test]
fn joining_and_leaving_instances_lose_and_repeat_nothing() {
    let topics = topics(6);
    let mock = Mock::with_topics(&topics).unwrap();
    let mut traffic = Traffic::new(&mock.settings(), &topics, 40);
    let a = Sidecar::start(config(&mock, &topics, "a"), Toy::default());
    traffic.send(1_000);
    eventually("a owns all", SOON, || a.status.owned().len() == 6 && a.status.ready());
    let b = Sidecar::start(config(&mock, &topics, "b"), Toy::default());
    for _ in 0..20 {
        traffic.send(200);
        std::thread::sleep(Duration::from_millis(20));
    }
    eventually("b takes its share", SOON, || b.status.owned().len() == 3 && b.status.ready());
    traffic.send(1_000);
    assert_eq!(a.drain(SOON), Ended::Drained);
    for _ in 0..20 {
        traffic.send(100);
        std::thread::sleep(Duration::from_millis(20));
    }
    eventually("b takes all", SOON, || b.status.owned().len() == 6 && b.status.ready());
    traffic.settle(&mock.settings(), &topics, SOON);
    assert_eq!(b.status.counters.history_gone.get(), 0);
    assert_eq!(b.drain(SOON), Ended::Drained);
}

#[test]
fn an_aborted_transaction_is_sent_again_without_touching_the_state() {
    let topics = topics(1);
    let mock = Mock::with_topics(&topics).unwrap();
    let mut traffic = Traffic::new(&mock.settings(), &topics, 3);
    let sidecar = Sidecar::start(config(&mock, &topics, "a"), Toy::default());
    traffic.send(100);
    traffic.settle(&mock.settings(), &topics, SOON);
    let errors = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION; 2];
    mock.cluster().unwrap().request_errors(RDKafkaApiKey::TxnOffsetCommit, &errors);
    traffic.send(50);
    eventually("two aborts", SOON, || sidecar.status.counters.transactions_aborted.get() == 2);
    eventually("committed", SOON, || sidecar.status.counters.records_in.get() == 150);
    // The mock shows aborted records too: three times the same 50, and the numbers go on as if nothing had happened.
    traffic.send(1);
    eventually("all out", SOON, || traffic.seen(&mock.settings(), &topics) == 100 + 3 * 50 + 1);
    let records = read_topic(&mock.settings(), &topics.signals).unwrap();
    let mut distinct: Vec<_> = records.iter().map(|r| r.payload.clone().unwrap()).collect();
    distinct.sort();
    distinct.dedup();
    assert_eq!(distinct.len(), 151);
    assert!(sidecar.is_running());
    assert_eq!(sidecar.status.counters.transactions_fenced.get(), 0);
    sidecar.drain(SOON);
}

#[test]
fn a_fatal_producer_error_rebuilds_and_restores() {
    let topics = topics(2);
    let mock = Mock::with_topics(&topics).unwrap();
    let mut traffic = Traffic::new(&mock.settings(), &topics, 3);
    let sidecar = Sidecar::start(config(&mock, &topics, "a"), Toy::default());
    traffic.send(100);
    traffic.settle(&mock.settings(), &topics, SOON);
    let fenced = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_PRODUCER_FENCED];
    mock.cluster().unwrap().request_errors(RDKafkaApiKey::EndTxn, &fenced);
    traffic.send(60);
    eventually("fenced", SOON, || sidecar.status.counters.transactions_fenced.get() == 1);
    eventually("back", SOON, || sidecar.status.ready() && sidecar.status.counters.records_in.get() >= 160);
    assert!(sidecar.is_running());
    mock.cluster().unwrap().request_errors(RDKafkaApiKey::EndTxn, &fenced);
    traffic.send(10);
    let error = sidecar.join().unwrap_err();
    assert!(matches!(&error, Error::FencedTwice { id } if id == "runwarden-g-a-0"), "{error}");
}

#[test]
fn a_record_the_broker_never_takes_becomes_a_described_dead_letter() {
    let topics = topics(1);
    let mock = Mock::with_topics(&topics).unwrap();
    let mut traffic = Traffic::new(&mock.settings(), &topics, 3);
    let mut config = config(&mock, &topics, "a");
    config.client.properties.insert("message.max.bytes".into(), "1000000".into());
    let sidecar = Sidecar::start(config, Toy::default());
    traffic.send(10);
    traffic.send_one("k0", "huge");
    traffic.send(10);
    eventually("all processed", SOON, || sidecar.status.counters.records_in.get() == 21);
    let letters = read_topic(&mock.settings(), &topics.dead_letter).unwrap();
    assert_eq!(letters.len(), 1);
    let header = |name: &str| letters[0].headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_slice());
    assert_eq!(header("__connect.errors.topic"), Some(topics.output(Topic::Signals).as_bytes()));
    assert_eq!(header("runwarden-reason"), Some(b"oversize".as_slice()));
    let value: serde_json::Value = serde_json::from_slice(letters[0].payload.as_deref().unwrap()).unwrap();
    assert!(value["bytes"].as_u64().unwrap() > 3 << 20);
    assert_eq!(read_topic(&mock.settings(), &topics.signals).unwrap().len(), 20);
    sidecar.drain(SOON);
}

#[test]
fn a_record_the_broker_refuses_is_found_among_its_batch() {
    let topics = topics(1);
    let mock = Mock::with_topics(&topics).unwrap();
    let mut traffic = Traffic::new(&mock.settings(), &topics, 3);
    // The linger leaves time to inject the fault between our own produce request and the sidecar's.
    let config = ShellConfig {
        step_linger: Duration::from_millis(800),
        checkpoint_interval: Duration::from_secs(3_600),
        ..config(&mock, &topics, "a")
    };
    let sidecar = Sidecar::start(config, Toy::default());
    let counters = &sidecar.status.counters;
    let batch = |traffic: &mut Traffic, faults: &[RDKafkaRespErr]| {
        let before = counters.records_in.get();
        traffic.send(1);
        eventually("stepped", SOON, || counters.records_in.get() == before + 1);
        traffic.send(3);
        mock.cluster().unwrap().request_errors(RDKafkaApiKey::Produce, faults);
        eventually("committed", SOON, || counters.records_in.get() == before + 4);
    };
    // A batch is refused whole; sent alone, every record passes: none was at fault.
    batch(&mut traffic, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_INVALID_RECORD]);
    let aborted = counters.transactions_aborted.get();
    assert!(aborted > 0);
    assert_eq!(counters.dead_letters.get(), 0);
    // One is refused alone too: that one becomes the dead letter.
    batch(&mut traffic, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_INVALID_RECORD; 2]);
    assert!(counters.transactions_aborted.get() >= aborted + 2);
    assert_eq!(counters.dead_letters.get(), 1);
    sidecar.drain(SOON);
}

#[test]
fn a_drain_under_load_is_clean_and_the_next_start_goes_on() {
    let topics = topics(4);
    let mock = Mock::with_topics(&topics).unwrap();
    let mut traffic = Traffic::new(&mock.settings(), &topics, 11);
    let first = Sidecar::start(config(&mock, &topics, "a"), Toy { urgent: true, ..Toy::default() });
    traffic.send(3_000);
    eventually("it works", SOON, || first.status.counters.records_in.get() > 0);
    traffic.send(3_000);
    let started = std::time::Instant::now();
    assert_eq!(first.drain(SOON), Ended::Drained);
    assert!(started.elapsed() < Duration::from_secs(5));
    let second = Sidecar::start(config(&mock, &topics, "a"), Toy::default());
    traffic.settle(&mock.settings(), &topics, SOON);
    second.drain(SOON);
}

#[test]
fn until_end_reads_what_was_there_and_what_was_re_keyed_then_finishes_each_partition_once() {
    let topics = topics(3);
    let mock = Mock::with_topics(&topics).unwrap();
    let mut traffic = Traffic::new(&mock.settings(), &topics, 5);
    for n in 0..300 {
        let key = if n % 3 == 0 { format!("move:m{}", n % 7) } else { format!("k{}", n % 5) };
        traffic.send_one(&key, &n.to_string());
    }
    traffic.flush();
    let run = || {
        let config = ShellConfig { until_end: true, ..config(&mock, &topics, "a") };
        Sidecar::start(config, Toy::default()).join().unwrap()
    };
    assert_eq!(run(), Ended::Finished);
    let outputs = read_topic(&mock.settings(), &topics.signals).unwrap();
    assert_eq!(outputs.len(), traffic.total());
    let finishes = read_topic(&mock.settings(), &topics.runs).unwrap();
    assert_eq!(finishes.len(), 3);
    assert_eq!(run(), Ended::Finished, "a second run has nothing to read");
    assert_eq!(read_topic(&mock.settings(), &topics.signals).unwrap().len(), traffic.total());
}

#[test]
fn an_absent_broker_is_waited_for_and_a_stop_ends_the_wait() {
    let client = runwarden::kafka::ClientSettings::new("127.0.0.1:1");
    let sidecar = Sidecar::start(ShellConfig::new(client, "g", "a", topics(1)), Toy::default());
    eventually("says so", SOON, || sidecar.witness.saw("Waiting"));
    assert!(!sidecar.status.ready() && !sidecar.status.connected());
    assert_eq!(sidecar.drain(Duration::from_secs(10)), Ended::Drained);
}

#[test]
fn topics_are_created_and_a_partition_count_that_cannot_work_is_refused_by_name() {
    let topics = topics(3);
    let mock = Mock::start().unwrap();
    assert!(matches!(verify(&mock, &topics), Err(Error::MissingTopic(name)) if name == "runs.telemetry"));
    mock.create_topic("runwarden.steps", 5).unwrap();
    let error = create_and_verify(&mock, &topics).unwrap_err().to_string();
    assert!(error.contains("runwarden.steps has 5") && error.contains("runs.telemetry has 3"), "{error}");
    assert_eq!(describe(&mock, &topics).unwrap().iter().filter(|d| d.partitions.is_some()).count(), 18);
    assert_eq!(mock.create(&topics.specs(), 3, 1).unwrap(), Vec::<String>::new(), "creating again changes nothing");
}
