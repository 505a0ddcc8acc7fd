//! What the shell bounds, on the in-process mock: one partition's backlog, a slow broker, one that is not there yet.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use runwarden::kafka::reader::read_topic;
use runwarden::kafka::{Ended, Event, Mock, Observer, Shell, ShellConfig, Topics};
use runwarden::telemetry::tenant_partition;

use crate::support::sidecar::{Sidecar, Traffic, eventually, factory};
use crate::support::toy::Toy;

const SOON: Duration = Duration::from_secs(20);

/// Remembers steps and the size of transactions.
#[derive(Default)]
struct Recorder {
    /// (partition, records)
    steps: Mutex<Vec<(i32, usize)>>,
    /// (records consumed, records produced)
    commits: Mutex<Vec<(usize, u64)>>,
}

impl Observer for Recorder {
    fn on(&self, event: Event<'_>) {
        match event {
            Event::Stepped { partition, records, .. } if records > 0 => {
                self.steps.lock().unwrap().push((partition, records));
            }
            Event::Committed(c) => self.commits.lock().unwrap().push((c.records_in, c.records_out.iter().sum())),
            _ => {}
        }
    }
}

/// A key of this partition.
fn key(partition: i32, of: i32) -> String {
    (0..).map(|n| format!("k{n}")).find(|k| tenant_partition(k, of) == partition).unwrap()
}

#[test]
fn a_backlog_of_one_partition_does_not_keep_the_others_waiting() {
    const BACKLOG: usize = 6_000;
    let topics = Topics { partitions: 2, ..Topics::default() };
    let mock = Mock::with_topics(&topics).unwrap();
    let mut traffic = Traffic::new(&mock.settings(), &topics, 1);
    let (flooded, calm) = (key(0, 2), key(1, 2));
    for n in 0..BACKLOG {
        traffic.send_one(&flooded, &n.to_string());
    }
    for n in 0..100 {
        traffic.send_one(&calm, &n.to_string());
    }
    traffic.flush();
    let config = ShellConfig {
        max_step_records: 20,
        step_linger: Duration::from_millis(10),
        ..ShellConfig::new(mock.settings(), "g", "a", topics.clone())
    };
    let recorder = Arc::new(Recorder::default());
    let shell = Shell::new(config, factory(Toy::default()), Arc::clone(&recorder) as Arc<dyn Observer>);
    let handle = shell.handle();
    let thread = std::thread::spawn(move || shell.run());
    let total = || recorder.steps.lock().unwrap().iter().map(|s| s.1).sum::<usize>();
    eventually("all consumed", SOON, || total() == BACKLOG + 100);
    handle.drain(SOON);
    assert_eq!(thread.join().unwrap().unwrap(), Ended::Drained);
    let steps = recorder.steps.lock().unwrap();
    assert!(steps.iter().all(|s| s.1 <= 20), "a step has a bound");
    let last = steps.iter().rposition(|s| s.0 == 1).unwrap();
    let before: usize = steps[..last].iter().filter(|s| s.0 == 0).map(|s| s.1).sum();
    assert!(before < BACKLOG / 2, "{before} of {BACKLOG} went before the last of the other partition");
}

#[test]
fn a_slow_broker_slows_intake_and_what_waits_for_it_stays_bounded() {
    let topics = Topics { partitions: 2, ..Topics::default() };
    let mock = Mock::with_topics(&topics).unwrap();
    let mut traffic = Traffic::new(&mock.settings(), &topics, 9);
    traffic.send(4_000);
    let mut client = mock.settings();
    // a queue that is full most of the time
    client.properties.insert("queue.buffering.max.messages".into(), "50".into());
    let config = ShellConfig {
        max_step_records: 100,
        max_transaction_records: 300,
        ..ShellConfig::new(client, "g", "a", topics.clone())
    };
    mock.cluster().unwrap().broker_round_trip_time(1, Duration::from_millis(15)).unwrap();
    let recorder = Arc::new(Recorder::default());
    let shell = Shell::new(config, factory(Toy::default()), Arc::clone(&recorder) as Arc<dyn Observer>);
    let handle = shell.handle();
    let thread = std::thread::spawn(move || shell.run());
    let consumed = || recorder.commits.lock().unwrap().iter().map(|c| c.0).sum::<usize>();
    eventually("all came through", SOON * 3, || consumed() == 4_000);
    mock.cluster().unwrap().broker_round_trip_time(1, Duration::ZERO).unwrap();
    handle.drain(SOON);
    assert_eq!(thread.join().unwrap().unwrap(), Ended::Drained);
    traffic.settle(&mock.settings(), &topics, SOON);
    let commits = recorder.commits.lock().unwrap();
    let most = commits.iter().map(|c| c.1).max().unwrap();
    assert!(most <= 300 + 100, "a transaction of {most} records");
}

#[test]
fn a_broker_that_comes_later_is_waited_for_and_each_cause_is_told_from_the_next() {
    let topics = Topics { partitions: 1, ..Topics::default() };
    let mock = Mock::with_topics(&topics).unwrap();
    mock.cluster().unwrap().broker_down(1).unwrap();
    let mut traffic = Traffic::new(&mock.settings(), &topics, 3);
    let sidecar = Sidecar::start(ShellConfig::new(mock.settings(), "g", "a", topics.clone()), Toy::default());
    eventually("says so", SOON, || sidecar.witness.saw("Waiting") && sidecar.witness.saw("again: 0"));
    assert!(!sidecar.status.ready() && !sidecar.status.connected());
    mock.cluster().unwrap().broker_up(1).unwrap();
    eventually("goes on by itself", SOON, || sidecar.status.ready());
    traffic.send(30);
    traffic.settle(&mock.settings(), &topics, SOON);
    let events = sidecar.witness.events.lock().unwrap().clone();
    let waited: Vec<&String> = events.iter().filter(|e| e.starts_with("Waiting")).collect();
    let reason = |event: &str| event.split(", again").next().unwrap().to_owned();
    for (n, event) in waited.iter().enumerate() {
        let before = waited[..n].iter().filter(|e| reason(e) == reason(event)).count();
        assert!(event.contains(&format!("again: {before} ")), "{waited:#?}");
    }
    assert_eq!(sidecar.drain(SOON), Ended::Drained);
    assert_eq!(read_topic(&mock.settings(), &topics.signals).unwrap().len(), 30);
}
