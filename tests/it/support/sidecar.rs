//! Runs shells with the toy core in this process, feeds them, and checks what a read_committed consumer sees.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use runwarden::kafka::produce::Producer;
use runwarden::kafka::reader::read_topic;
use runwarden::kafka::{
    ClientSettings, CoreFactory, Ended, Error, Event, Handle, Observer, Shell, ShellConfig, Status, Topics,
};
use runwarden::traces::Tracer;

use super::toy::{Output, Toy};

/// Remembers events as text, and commit times.
#[derive(Default)]
pub struct Witness {
    pub events: Mutex<Vec<String>>,
    /// (commit took, oldest record to commit confirmed)
    pub commits: Mutex<Vec<(Duration, Duration)>>,
}

impl Observer for Witness {
    fn on(&self, event: Event<'_>) {
        match event {
            Event::Stepped { .. } => {}
            Event::Committed(committed) => {
                if committed.oldest > 0 {
                    let age = u64::try_from(committed.at.0 - committed.oldest).unwrap_or_default();
                    self.commits.lock().unwrap().push((committed.commit_took, Duration::from_micros(age)));
                }
            }
            event => {
                if std::env::var_os("RUNWARDEN_TEST_VERBOSE").is_some() {
                    eprintln!("{} {event:?}", runwarden::clock::Wall::now().0 / 1000);
                }
                self.events.lock().unwrap().push(format!("{event:?}"));
            }
        }
    }
}

impl Witness {
    pub fn saw(&self, text: &str) -> bool {
        self.events.lock().unwrap().iter().any(|event| event.contains(text))
    }
}

/// A shell on a thread.
pub struct Sidecar {
    pub handle: Handle,
    pub status: Arc<Status>,
    pub witness: Arc<Witness>,
    thread: JoinHandle<Result<Ended, Error>>,
}

pub fn factory(toy: Toy) -> CoreFactory {
    Arc::new(move |partition, partitions| Ok(toy.core(partition, partitions)))
}

impl Sidecar {
    pub fn start(config: ShellConfig, toy: Toy) -> Self {
        Self::traced(config, toy, None)
    }

    pub fn traced(config: ShellConfig, toy: Toy, tracer: Option<Arc<Tracer>>) -> Self {
        if std::env::var_os("RUNWARDEN_TEST_VERBOSE").is_some() {
            // A second call finds the subscriber in place.
            let _already = tracing_subscriber::fmt().with_env_filter("runwarden=debug,librdkafka=debug").try_init();
        }
        let witness = Arc::new(Witness::default());
        let shell = Shell::traced(config, factory(toy), Arc::clone(&witness) as Arc<dyn Observer>, tracer);
        let handle = shell.handle();
        let status = handle.status();
        let thread = std::thread::spawn(move || shell.run());
        Self { handle, status, witness, thread }
    }

    /// Asks for a drain and waits for the end.
    pub fn drain(self, within: Duration) -> Ended {
        self.handle.drain(within);
        self.join().unwrap()
    }

    pub fn join(self) -> Result<Ended, Error> {
        self.thread.join().unwrap()
    }

    pub fn is_running(&self) -> bool {
        !self.thread.is_finished()
    }
}

/// How much longer than usual a condition may take: other tests share the machine.
const PATIENCE: u32 = 4;

/// Waits for a condition that usually holds `within`; panics with `what` after [`PATIENCE`] times as long.
pub fn eventually(what: &str, within: Duration, mut check: impl FnMut() -> bool) {
    let deadline = Instant::now() + within * PATIENCE;
    while !check() {
        assert!(Instant::now() < deadline, "not within {within:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Sends numbered records and knows what must come out.
pub struct Traffic {
    producer: Producer,
    topic: String,
    keys: usize,
    next: usize,
    pub sent: BTreeMap<String, Vec<String>>,
}

impl Traffic {
    pub fn new(client: &ClientSettings, topics: &Topics, keys: usize) -> Self {
        let producer = Producer::new(client).unwrap();
        Self { producer, topic: topics.telemetry.clone(), keys, next: 0, sent: BTreeMap::new() }
    }

    /// Sends `count` records, spread over the keys.
    pub fn send(&mut self, count: usize) {
        for _ in 0..count {
            let key = format!("k{}", self.next % self.keys);
            let seq = self.next.to_string();
            self.send_one(&key, &seq);
        }
        self.flush();
    }

    pub fn send_one(&mut self, key: &str, seq: &str) {
        self.next += 1;
        self.producer.send(&self.topic, key.as_bytes(), seq.as_bytes()).unwrap();
        let real = key.strip_prefix("move:").unwrap_or(key).to_owned();
        self.sent.entry(real).or_default().push(seq.to_owned());
    }

    pub fn flush(&self) {
        self.producer.flush(Duration::from_secs(60)).unwrap();
    }

    pub fn total(&self) -> usize {
        self.sent.values().map(Vec::len).sum()
    }

    /// Every record once, numbered 1, 2, 3 … per key in the order sent.
    pub fn check(&self, client: &ClientSettings, topics: &Topics) -> Result<(), String> {
        let mut found: BTreeMap<String, Vec<Output>> = BTreeMap::new();
        for record in read_topic(client, &topics.signals).map_err(|e| e.to_string())? {
            let output: Output = serde_json::from_slice(record.payload.as_deref().unwrap_or_default())
                .map_err(|e| format!("{}@{}: {e}", record.partition, record.offset))?;
            found.entry(output.key.clone()).or_default().push(output);
        }
        let mut faults = Vec::new();
        for (key, sent) in &self.sent {
            let outputs = found.remove(key).unwrap_or_default();
            let expected = sent.iter().zip(1..).map(|(seq, n)| Output { key: key.clone(), n, seq: seq.clone() });
            let expected: Vec<_> = expected.collect();
            if outputs != expected {
                let at = outputs.iter().zip(&expected).position(|(a, b)| a != b);
                let at = at.unwrap_or(outputs.len().min(expected.len()));
                faults.push(format!(
                    "{key}: {} of {} outputs, first difference at {at}: {:?} instead of {:?}",
                    outputs.len(),
                    expected.len(),
                    outputs.get(at),
                    expected.get(at)
                ));
            }
        }
        faults.extend(found.keys().map(|key| format!("{key}: nobody sent it")));
        if faults.is_empty() { Ok(()) } else { Err(faults.join("\n")) }
    }

    /// Every record once and each key numbered without a gap, in whatever order its records came.
    pub fn check_orderless(&self, client: &ClientSettings, topics: &Topics) -> Result<(), String> {
        let mut found: BTreeMap<String, (Vec<u64>, Vec<String>)> = BTreeMap::new();
        for record in read_topic(client, &topics.signals).map_err(|e| e.to_string())? {
            let output: Output =
                serde_json::from_slice(record.payload.as_deref().unwrap_or_default()).map_err(|e| e.to_string())?;
            let (numbers, seqs) = found.entry(output.key).or_default();
            numbers.push(output.n);
            seqs.push(output.seq);
        }
        for (key, sent) in &self.sent {
            let (mut numbers, mut seqs) = found.remove(key).unwrap_or_default();
            numbers.sort_unstable();
            seqs.sort_unstable();
            let mut sent = sent.clone();
            sent.sort_unstable();
            if seqs != sent || numbers.iter().zip(1..).any(|(n, expected)| *n != expected) {
                return Err(format!("{key}: {} of {} outputs, numbered {numbers:?}", seqs.len(), sent.len()));
            }
        }
        if found.is_empty() { Ok(()) } else { Err(format!("nobody sent {:?}", found.keys())) }
    }

    /// How many outputs there are.
    pub fn seen(&self, client: &ClientSettings, topics: &Topics) -> usize {
        read_topic(client, &topics.signals).map_or(0, |records| records.len())
    }

    /// Waits until everything sent came out, then checks it.
    pub fn settle(&self, client: &ClientSettings, topics: &Topics, within: Duration) {
        let deadline = Instant::now() + within;
        while self.seen(client, topics) < self.total() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(100));
        }
        if let Err(faults) = self.check(client, topics) {
            panic!("{faults}");
        }
    }
}
