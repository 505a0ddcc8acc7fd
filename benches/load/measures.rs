//! The measurements, one function each.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::message::Message;
use rdkafka::{Offset, consumer::BaseConsumer};
use runwarden::clock::Wall;
use runwarden::kafka::ClientSettings;
use runwarden::kafka::produce::{Producer, Send};
use runwarden::telemetry::tenant_partition;
use serde_json::Value;

use crate::reference::{self, TENANTS};
use crate::rig::{self, Bar, Broker, LONG, PARTITIONS, Row, Sidecar, Site};

/// Events per second of the steady job.
pub const RATE: usize = 10_000;
/// One of so many events is past its limit.
const HOT: usize = 500;

/// Size of the binary as shipped.
pub fn size() -> Vec<Row> {
    let bytes = std::fs::metadata(rig::binary()).unwrap().len();
    vec![Row::new("release binary, stripped", bytes as f64 / 1e6, "MB", Some((Bar::Most, 100.0)))]
}

/// Start to ready with topics there and no state; the median of five.
pub fn start(broker: &Broker) -> Vec<Row> {
    let mut took: Vec<f64> = (0..5)
        .map(|n| {
            // a group of its own each time: nobody's place has to be waited for
            let site = Site::new(broker, &format!("start{n}"));
            let mut sidecar = site.sidecar("a");
            let took = sidecar.await_ready().as_secs_f64();
            sidecar.terminate();
            took
        })
        .collect();
    took.sort_by(f64::total_cmp);
    vec![Row::new("start to ready, no state (median of 5)", took[2], "s", Some((Bar::Most, 1.0)))]
}

fn produce(site: &Site, count: usize, event: impl Fn(usize) -> Vec<u8>) -> Duration {
    let producer = Producer::new(&site.client).unwrap();
    let begun = Instant::now();
    for n in 0..count {
        producer.send(&site.topics.telemetry, reference::tenant(n).as_bytes(), &event(n)).unwrap();
    }
    producer.flush(LONG).unwrap();
    begun.elapsed()
}

const RECORDS: &str = "runwarden_input_records_total";

/// A backlog of the reference job, Kafka to Kafka.
pub fn throughput(broker: &Broker, count: usize) -> Vec<Row> {
    let site = Site::new(broker, "throughput");
    let start = Wall::now().0 - count as i64 * 100;
    let took = produce(&site, count, |n| reference::event(n, start + n as i64 * 100));
    eprintln!("   {count} events produced in {took:.1?}");
    let plain = rig::plain_consume_rate(&site.client, &site.topics.telemetry, count);
    let mut sidecar = site.sidecar("a");
    let read = |s: &Sidecar| s.metric(RECORDS, "telemetry");
    let mut first = None;
    let mut rate = 0.0;
    sidecar.until("processed", |s| {
        let now = read(s);
        let (begun, from) = *first.get_or_insert((Instant::now(), now));
        if from == 0.0 {
            // the clock starts with the first commit
            first = None;
            return false;
        }
        rate = (now - from) / begun.elapsed().as_secs_f64();
        std::thread::sleep(Duration::from_millis(95));
        now >= count as f64
    });
    let memory = sidecar.resident();
    let committed = sidecar.metric("runwarden_transactions_total", "committed");
    sidecar.terminate();
    eprintln!("   plain consumer {plain:.0} records/s; {committed} transactions");
    vec![
        Row::new("Kafka to Kafka, exactly once, one core", rate, "events/s", Some((Bar::Least, 150_000.0))),
        Row::new("of the plain consume rate", 100.0 * rate / plain, "%", Some((Bar::Least, 15.0))),
        Row::new("resident memory, full speed through a backlog", memory, "MB", None),
    ]
}

/// Sends the reference job at its pace until dropped.
pub struct Feed {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<u64>>,
}

impl Feed {
    pub fn start(site: &Site) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&stop);
        let mut client: ClientSettings = site.client.clone();
        client.properties.insert("linger.ms".into(), "1".into());
        let topic = site.topics.telemetry.clone();
        let feed = move || {
            let producer = Producer::new(&client).unwrap();
            let begun = Instant::now();
            let (mut sent, mut late) = (0, 0);
            while !ended.load(Ordering::Relaxed) {
                let due = (begun.elapsed().as_secs_f64() * RATE as f64) as usize;
                late += u64::from(due.saturating_sub(sent) > RATE / 10);
                while sent < due {
                    let micros = Wall::now().0;
                    // hot runs go round the tenants too
                    let of = if sent % HOT == 0 { sent / HOT } else { sent };
                    let event = match sent % HOT {
                        0 => reference::hot(of, micros, &format!("hot-{sent}-{micros}")),
                        _ => reference::event(sent, micros),
                    };
                    let tenant = reference::tenant(of);
                    let send =
                        Send { topic: &topic, key: Some(tenant.as_bytes()), payload: Some(&event), ..Send::default() };
                    producer.send_record(send).unwrap();
                    sent += 1;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            producer.flush(LONG).unwrap();
            late
        };
        Self { stop, thread: Some(std::thread::spawn(feed)) }
    }

    /// Ends; how often the feed was more than a tenth of a second behind.
    pub fn end(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map_or(0, |t| t.join().unwrap())
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// An intervention as a read_committed consumer saw it, µs.
#[derive(Debug, Clone, Copy)]
pub struct Arrival {
    pub sent: i64,
    pub seen: i64,
    partition: i32,
}

/// Collects the interventions on hot runs until dropped.
pub struct Watch {
    stop: Arc<AtomicBool>,
    arrivals: Arc<Mutex<Vec<Arrival>>>,
}

impl Watch {
    pub fn start(site: &Site) -> Self {
        let consumer = rig::follow(&site.client.brokers, &site.topics.interventions, Offset::End);
        let watch = Self { stop: Arc::default(), arrivals: Arc::default() };
        let (stop, arrivals) = (Arc::clone(&watch.stop), Arc::clone(&watch.arrivals));
        std::thread::spawn(move || collect(&consumer, &stop, &arrivals));
        watch
    }

    pub fn since(&self, sent: i64) -> Vec<Arrival> {
        self.arrivals.lock().unwrap().iter().copied().filter(|a| a.sent >= sent).collect()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn collect(consumer: &BaseConsumer, stop: &AtomicBool, arrivals: &Mutex<Vec<Arrival>>) {
    // nobody acknowledges: after its time each run is ordered about again, which answers no event
    let mut known = HashSet::new();
    while !stop.load(Ordering::Relaxed) {
        let Some(Ok(message)) = consumer.poll(Duration::from_millis(50)) else { continue };
        let seen = Wall::now().0;
        let value: Value = serde_json::from_slice(message.payload().unwrap()).unwrap();
        let run = value["run_id"].as_str().unwrap_or_default();
        let sent = run.strip_prefix("hot-").and_then(|r| r.split('-').nth(1)).and_then(|m| m.parse().ok());
        if let (Some(sent), "ISSUED") = (sent, value["state"].as_str().unwrap_or_default())
            && known.insert(run.to_owned())
        {
            let partition = tenant_partition(value["tenant_id"].as_str().unwrap_or_default(), PARTITIONS);
            arrivals.lock().unwrap().push(Arrival { sent, seen, partition });
        }
    }
}

/// 10,000 events a second: latency, bytes, memory.
pub fn steady(broker: &Broker, seconds: u64) -> Vec<Row> {
    let site = Site::new(broker, "steady");
    let mut sidecar = site.sidecar("a");
    sidecar.await_ready();
    std::thread::sleep(Duration::from_secs(5));
    let idle = sidecar.resident();
    let watch = Watch::start(&site);
    let feed = Feed::start(&site);
    // every live run is there, every kind of window open, the first checkpoints written
    std::thread::sleep(Duration::from_secs(15));
    let figures = |s: &Sidecar| {
        let of = |name: &str| s.metric(name, "");
        (
            of("runwarden_input_bytes_total"),
            of("runwarden_checkpoint_bytes_total"),
            of("runwarden_step_record_bytes_total"),
        )
    };
    let (before, from) = (figures(&sidecar), Wall::now().0);
    std::thread::sleep(Duration::from_secs(seconds));
    let after = figures(&sidecar);
    let busy = sidecar.resident();
    let late = feed.end();
    std::thread::sleep(Duration::from_secs(2));
    let mut took: Vec<f64> = watch.since(from).iter().map(|a| (a.seen - a.sent) as f64 / 1e3).collect();
    took.sort_by(f64::total_cmp);
    let decided = "runwarden_event_to_decision_seconds";
    let decision = |of| sidecar.quantile(decided, of) * 1e3;
    let (p50, p99) = (decision(0.5), decision(0.99));
    let step = sidecar.quantile("runwarden_step_duration_seconds", 0.999) * 1e3;
    sidecar.terminate();
    eprintln!(
        "   {} interventions; the feed was late {late} times; a step in the core ≤ {step} ms at p99.9",
        took.len()
    );
    let input = after.0 - before.0;
    let share = |a: f64, b: f64| 100.0 * (a - b) / input;
    let (checkpoints, steps) = (share(after.1, before.1), share(after.2, before.2));
    vec![
        Row::new("event to committed intervention, p50", rig::percentile(&took, 0.5), "ms", Some((Bar::Most, 40.0))),
        Row::new("event to committed intervention, p99", rig::percentile(&took, 0.99), "ms", Some((Bar::Most, 150.0))),
        Row::new("event to decision at the owner, p50 (bucket)", p50, "ms", Some((Bar::Most, 5.0))),
        Row::new("event to decision at the owner, p99 (bucket)", p99, "ms", Some((Bar::Most, 20.0))),
        Row::new("bytes of checkpoints, of the input", checkpoints, "%", None),
        Row::new("bytes of step records, of the input", steps, "%", None),
        Row::new("bytes of both, of the input", checkpoints + steps, "%", Some((Bar::Most, 15.0))),
        Row::new("resident memory, idle", idle, "MB", Some((Bar::Most, 48.0))),
        Row::new("resident memory, reference job", busy, "MB", Some((Bar::Most, 128.0))),
    ]
}

/// How long after `at` each partition had a decision on something sent after `at`.
fn first_after(watch: &Watch, at: i64) -> BTreeMap<i32, f64> {
    let mut first = BTreeMap::new();
    for arrival in watch.since(at) {
        first.entry(arrival.partition).or_insert((arrival.seen - at) as f64 / 1e6);
    }
    first
}

/// Seconds until one partition has such a decision, and until all have.
fn await_all(sidecar: &mut Sidecar, watch: &Watch, at: i64) -> (f64, f64) {
    sidecar.until("deciding for every partition", |_| first_after(watch, at).len() == PARTITIONS as usize);
    first_after(watch, at).into_values().fold((f64::MAX, 0.0), |(least, most), s| (s.min(least), s.max(most)))
}

/// kill -9 under the reference job.
pub fn takeover(broker: &Broker) -> Vec<Row> {
    let site = Site::new(broker, "takeover");
    let mut a = site.sidecar("a");
    a.await_ready();
    let watch = Watch::start(&site);
    let feed = Feed::start(&site);
    std::thread::sleep(Duration::from_secs(20));
    let mut restarts = Vec::new();
    for _ in 0..3 {
        a.kill();
        let at = Wall::now().0;
        a = site.sidecar("a");
        restarts.push(await_all(&mut a, &watch, at));
        std::thread::sleep(Duration::from_secs(10));
    }
    let mut b = site.sidecar("b");
    b.await_ready();
    b.until("an owner", |s| s.metric("runwarden_steps_total", "") > 20.0);
    std::thread::sleep(Duration::from_secs(10));
    a.kill();
    let at = Wall::now().0;
    let next = await_all(&mut b, &watch, at);
    feed.end();
    b.terminate();
    let of = |pick: fn(&(f64, f64)) -> f64| {
        let mut all: Vec<f64> = restarts.iter().map(pick).collect();
        all.sort_by(f64::total_cmp);
        all[1]
    };
    let (first, all) = (of(|r| r.0), of(|r| r.1));
    vec![
        Row::new("kill -9, same slot: first decision (median of 3)", first, "s", Some((Bar::Most, 5.0))),
        Row::new("kill -9, same slot: decisions of all partitions", all, "s", None),
        Row::new("kill -9, the next owner: decisions of all partitions", next.1, "s", Some((Bar::Most, 30.0))),
    ]
}

/// So many live runs: memory and restore.
pub fn million(broker: &Broker, count: usize) -> Vec<Row> {
    let site = Site::new(broker, "million");
    let start = Wall::now().0 - count as i64 * 20;
    produce(&site, count, |n| reference::step(n, start + n as i64 * 20, &format!("m-{n:07}"), 1_000));
    let mut sidecar = site.sidecar("a");
    sidecar.until("processed", |s| s.metric(RECORDS, "telemetry") >= count as f64);
    let written = |s: &Sidecar| s.metric("runwarden_checkpoint_records_total", "");
    let mut last = (0.0, Instant::now());
    sidecar.until("checkpointed", |s| {
        std::thread::sleep(Duration::from_millis(200));
        let now = written(s);
        // the partition's own record is written with every checkpoint
        if now > last.0 + 100.0 {
            last = (now, Instant::now());
        }
        last.1.elapsed() > Duration::from_secs(8)
    });
    let held = sidecar.resident();
    let keys = sidecar.metric("runwarden_live_keys", "");
    let drained = sidecar.terminate().as_secs_f64();
    let mut again = site.sidecar("a");
    let ready = again.await_ready().as_secs_f64();
    let restored = again.resident();
    again.terminate();
    eprintln!(
        "   {count} runs, {keys} live keys, {} checkpoint records; drained in {drained:.1} s; {TENANTS} tenants",
        last.0
    );
    let what = |text: &str| format!("{text}, {count} live runs");
    vec![
        Row::new(what("resident memory"), held, "MB", Some((Bar::Most, 1200.0))),
        Row::new(what("resident memory after a restore"), restored, "MB", Some((Bar::Most, 1200.0))),
        Row::new(what("start to ready (restore)"), ready, "s", Some((Bar::Most, 20.0))),
    ]
}
