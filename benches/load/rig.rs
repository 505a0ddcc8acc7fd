//! What the measurements stand on: a broker, a site with topics and configuration, sidecars as child processes, figures.

use std::fmt;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use runwarden::kafka::{ClientSettings, Topics};

use crate::reference;

/// Partitions of every topic.
pub const PARTITIONS: i32 = 6;
/// The sidecar's core.
pub const CORE: &str = "0";
/// Longest wait for anything.
pub const LONG: Duration = Duration::from_secs(300);

/// A figure beside its bar.
pub struct Row {
    what: String,
    measured: f64,
    unit: &'static str,
    bar: Option<(Bar, f64)>,
}

/// Which side of a bar is met.
#[derive(Clone, Copy)]
pub enum Bar {
    /// At least.
    Least,
    /// At most.
    Most,
}

impl Row {
    /// `bar`: `None` for what has none.
    pub fn new(what: impl Into<String>, measured: f64, unit: &'static str, bar: Option<(Bar, f64)>) -> Self {
        Self { what: what.into(), measured, unit, bar }
    }

    fn met(&self) -> Option<bool> {
        self.bar.map(|(side, bar)| match side {
            Bar::Least => self.measured >= bar,
            Bar::Most => self.measured <= bar,
        })
    }

    /// For programs.
    pub fn json(&self) -> serde_json::Value {
        let bar = self.bar.map(|(_, bar)| bar);
        serde_json::json!({"what": self.what, "measured": self.measured, "unit": self.unit, "bar": bar, "met": self.met()})
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = if self.measured < 10.0 { 2 } else { usize::from(self.measured < 1000.0) };
        let measured = format!("{:.digits$} {}", self.measured, self.unit);
        let bar = match self.bar {
            Some((Bar::Least, bar)) => format!("≥ {bar}"),
            Some((Bar::Most, bar)) => format!("≤ {bar}"),
            None => String::new(),
        };
        let verdict = match self.met() {
            Some(true) => "met",
            Some(false) => "MISSED",
            None => "",
        };
        write!(f, "{:<58} {measured:>22} {bar:>14}  {verdict}", self.what)
    }
}

/// A broker of our own, or the one given.
pub struct Broker {
    bootstrap: String,
    dir: Option<tempfile::TempDir>,
}

/// The sidecar: this build's, or the one at `RUNWARDEN_BENCH_BINARY`.
pub fn binary() -> PathBuf {
    std::env::var_os("RUNWARDEN_BENCH_BINARY").map_or_else(|| env!("CARGO_BIN_EXE_runwarden").into(), PathBuf::from)
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/kafka")
}

/// A command on all cores but the sidecar's.
fn beside(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if cores < 2 {
        return Command::new(program);
    }
    let mut command = Command::new("taskset");
    command.args(["-c", &format!("1-{}", cores - 1)]).arg(program);
    command
}

impl Broker {
    pub fn start() -> Self {
        if let Ok(bootstrap) = std::env::var("RUNWARDEN_TEST_BROKERS") {
            return Self { bootstrap, dir: None };
        }
        let dir = tempfile::tempdir().unwrap();
        let mut command = beside(script());
        if let Some(home) = std::env::var_os("RUNWARDEN_TEST_KAFKA_HOME") {
            command.env("RUNWARDEN_KAFKA_HOME", home);
        }
        let out = command.arg("start").arg(dir.path()).env("KAFKA_HEAP", "1g").output().unwrap();
        assert!(out.status.success(), "scripts/kafka start: {}", String::from_utf8_lossy(&out.stderr));
        let bootstrap = String::from_utf8_lossy(&out.stdout).lines().last().unwrap().trim().to_owned();
        Self { bootstrap, dir: Some(dir) }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Some(dir) = &self.dir {
            let stopped = Command::new(script()).arg("stop").arg(dir.path()).status();
            assert!(stopped.is_ok_and(|s| s.success()), "the broker in {} did not stop", dir.path().display());
        }
    }
}

/// Topics and configuration of one measurement.
pub struct Site {
    pub client: ClientSettings,
    pub topics: Topics,
    dir: tempfile::TempDir,
}

impl Site {
    pub fn new(broker: &Broker, name: &str) -> Self {
        Self::with_roles(broker, name, &["core", "edge"])
    }

    pub fn with_roles(broker: &Broker, name: &str, roles: &[&str]) -> Self {
        let prefix = format!("{name}-{}-", std::process::id());
        let topics = Topics { partitions: PARTITIONS, replication: 1, ..Topics::with_prefix(&prefix) };
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("policies")).unwrap();
        fs::write(dir.path().join("policies/reference.yaml"), reference::policies()).unwrap();
        let names: String = topics.specs().iter().map(|s| format!("{} = {:?}\n", s.key, s.name)).collect();
        let root = env!("CARGO_MANIFEST_DIR");
        let config = format!(
            "[roles]\nenabled = {roles:?}\n[paths]\npanels = \"{root}/config/panels.yaml\"\nqueries = \"{root}/queries\"\npolicies = \"policies\"\nprices = \
             \"{root}/config/prices.toml\"\n[kafka]\nbrokers = \"{}\"\ngroup = \"{prefix}group\"\n[topics]\n{names}partitions = \
             {PARTITIONS}\nreplication = 1\n[auth]\nloopback = \"open\"\n",
            broker.bootstrap
        );
        fs::write(dir.path().join("runwarden.toml"), config).unwrap();
        let site = Self { client: ClientSettings::new(&broker.bootstrap), topics, dir };
        let out = site.command().args(["topics", "create", "--config", "runwarden.toml"]).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        site
    }

    fn command(&self) -> Command {
        let mut command = Command::new(binary());
        command.current_dir(self.dir.path()).stdin(Stdio::null());
        command
    }

    /// Starts the sidecar that holds this slot, on its core.
    pub fn sidecar(&self, slot: &str) -> Sidecar {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let log = self.dir.path().join(format!("{slot}-{port}.log"));
        let mut command = Command::new("taskset");
        command.args(["-c", CORE]).arg(binary()).args(["run", "--config", "runwarden.toml"]);
        command.env("RUNWARDEN_KAFKA__SLOT", slot).env("RUNWARDEN_HTTP__LISTEN", format!("127.0.0.1:{port}"));
        command.env("RUNWARDEN_SQL__LISTEN", "127.0.0.1:0");
        command.env("RUNWARDEN_OTLP__LISTEN", "127.0.0.1:0");
        command.current_dir(self.dir.path()).stdin(Stdio::null()).stdout(Stdio::null());
        let begun = Instant::now();
        let child = command.stderr(File::create(&log).unwrap()).spawn().unwrap();
        Sidecar { child, port, log, begun }
    }
}

/// A running sidecar.
pub struct Sidecar {
    child: Child,
    port: u16,
    log: PathBuf,
    pub begun: Instant,
}

impl Sidecar {
    fn get(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        let status = text.split(' ').nth(1)?.parse().ok()?;
        Some((status, text))
    }

    /// Waits until it is ready; the time since its start.
    pub fn await_ready(&mut self) -> Duration {
        self.until("ready", |sidecar| sidecar.get("/readyz").is_some_and(|(status, _)| status == 200));
        self.begun.elapsed()
    }

    /// Waits for a condition; ends the run with the log when the sidecar ends before.
    pub fn until(&mut self, what: &str, mut condition: impl FnMut(&Self) -> bool) {
        let begun = Instant::now();
        while !condition(self) {
            let ended = self.child.try_wait().unwrap();
            let log = || fs::read_to_string(&self.log).unwrap_or_default();
            assert!(ended.is_none() && begun.elapsed() < LONG, "not {what} ({ended:?}):\n{}", log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The sum of a metric's samples whose labels contain `label`.
    pub fn metric(&self, name: &str, label: &str) -> f64 {
        let (_, text) = self.get("/metrics").unwrap_or_default();
        let of = |line: &str| {
            let rest = line.strip_prefix(name)?;
            let labels_end = rest.rfind(' ')?;
            let (labels, value) = rest.split_at(labels_end);
            ((labels.is_empty() || labels.starts_with('{')) && labels.contains(label))
                .then(|| value.trim().parse::<f64>().ok())?
        };
        text.lines().filter_map(of).sum()
    }

    /// Quantile of a histogram, from its buckets (the upper bound of the bucket it falls into), in the metric's unit.
    pub fn quantile(&self, name: &str, of: f64) -> f64 {
        let (_, text) = self.get("/metrics").unwrap_or_default();
        let prefix = format!("{name}_bucket{{le=\"");
        let bucket = |line: &str| {
            let (bound, count) = line.strip_prefix(&prefix)?.split_once("\"} ")?;
            Some((bound.parse::<f64>().unwrap_or(f64::INFINITY), count.parse::<f64>().ok()?))
        };
        let buckets: Vec<_> = text.lines().filter_map(bucket).collect();
        let total = buckets.last().map_or(0.0, |b| b.1);
        buckets.iter().find(|(_, count)| *count >= total * of).map_or(f64::NAN, |b| b.0)
    }

    /// Resident memory, MB.
    pub fn resident(&self) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").trim().parse::<f64>().unwrap() * 1024.0 / 1e6
    }

    /// Processor time so far, s.
    pub fn processor(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        // behind the name, which may hold anything: user and system time are the 12th and the 13th; 100 ticks a second
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
    }

    /// Where it listens for HTTP.
    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn kill(mut self) -> Instant {
        self.child.kill().unwrap();
        let at = Instant::now();
        self.child.wait().unwrap();
        at
    }

    /// SIGTERM; how long it took to end, and that it ended well.
    pub fn terminate(mut self) -> Duration {
        let begun = Instant::now();
        assert!(Command::new("kill").arg(self.child.id().to_string()).status().unwrap().success());
        let status = self.child.wait().unwrap();
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        assert!(status.success(), "{status}:\n{log}");
        begun.elapsed()
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            let last: Vec<&str> = log.lines().rev().take(30).collect();
            eprintln!("{:?}", self.child.try_wait());
            last.iter().rev().for_each(|line| eprintln!("   {line}"));
        }
        // killed or ended already, unless a measurement failed
        let _already = self.child.kill();
        let _reaped = self.child.wait();
    }
}

const CONSUME: &str = "RUNWARDEN_BENCH_CONSUME";

/// Brokers, topic and count when this process is the plain consumer.
pub fn consume_orders() -> Option<String> {
    std::env::var(CONSUME).ok()
}

/// Runs [`consume`] on the sidecar's core; events per second.
pub fn plain_consume_rate(client: &ClientSettings, topic: &str, count: usize) -> f64 {
    let out = Command::new("taskset")
        .args(["-c", CORE])
        .arg(std::env::current_exe().unwrap())
        .env(CONSUME, format!("{} {topic} {count}", client.brokers))
        .output()
        .unwrap();
    String::from_utf8_lossy(&out.stdout).trim().parse().unwrap_or_else(|_| panic!("{out:?}"))
}

/// Reads so many records of a topic as fast as the client library gives them; prints records per second.
pub fn consume(orders: &str) {
    let [brokers, topic, count] = orders.split(' ').collect::<Vec<_>>()[..] else { panic!("{orders}") };
    let count: usize = count.parse().unwrap();
    let consumer = follow(brokers, topic, Offset::Beginning);
    let (mut seen, mut bytes, mut begun) = (0, 0, None);
    while seen < count {
        if let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) {
            begun.get_or_insert_with(Instant::now);
            bytes += message.payload().map_or(0, <[u8]>::len);
            seen += 1;
        }
    }
    std::hint::black_box(bytes);
    println!("{}", count as f64 / begun.unwrap().elapsed().as_secs_f64());
}

/// A read_committed consumer of all partitions of a topic.
pub fn follow(brokers: &str, topic: &str, from: Offset) -> BaseConsumer {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("group.id", "bench").set("isolation.level", "read_committed");
    config.set("enable.auto.commit", "false").set("fetch.wait.max.ms", "5").set("queued.min.messages", "100000");
    config.set("socket.nagle.disable", "true");
    let consumer: BaseConsumer = config.create().unwrap();
    let mut list = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        let at = match from {
            Offset::End => {
                let (_, high) = consumer.fetch_watermarks(topic, partition, Duration::from_secs(30)).unwrap();
                Offset::Offset(high)
            }
            other => other,
        };
        list.add_partition_offset(topic, partition, at).unwrap();
    }
    consumer.assign(&list).unwrap();
    consumer
}

/// Percentile of durations in milliseconds.
pub fn percentile(sorted: &[f64], of: f64) -> f64 {
    sorted.get(((sorted.len() as f64 * of) as usize).min(sorted.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}
