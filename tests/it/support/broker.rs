//! A real Apache Kafka as a child process: one node, from the jars `scripts/kafka install` fetched.
//!
//! Tests that need it run when `RUNWARDEN_TEST_KAFKA_HOME` (the directory with `libs/*.jar`) or `RUNWARDEN_TEST_BROKERS` (a
//! broker that is up) is set; otherwise they say that they were skipped.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use runwarden::kafka::provision::{Broker as Admin, create_and_verify};
use runwarden::kafka::{ClientSettings, Topics};

/// A broker for the tests of this process to share, if there is one.
pub fn shared() -> Option<String> {
    static SHARED: OnceLock<Option<Mutex<Broker>>> = OnceLock::new();
    if let Ok(brokers) = std::env::var("RUNWARDEN_TEST_BROKERS")
        && !brokers.is_empty()
    {
        return Some(brokers);
    }
    let broker = SHARED.get_or_init(|| Broker::start_with(SWEEP_OFTEN).map(Mutex::new));
    broker.as_ref().map(|broker| broker.lock().unwrap().bootstrap())
}

/// Says why a test did nothing.
pub fn skipped(test: &str) {
    println!("skipped: {test} needs RUNWARDEN_TEST_KAFKA_HOME (see scripts/kafka install) or RUNWARDEN_TEST_BROKERS");
}

/// Topics of their own for a test, created.
pub fn fresh_topics(client: &ClientSettings, test: &str, partitions: i32) -> Topics {
    fresh_topics_replicated(client, test, partitions, 1)
}

pub fn fresh_topics_replicated(client: &ClientSettings, test: &str, partitions: i32, replication: i32) -> Topics {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let prefix = format!("{test}-{}-{n}-", std::process::id());
    let topics = Topics { partitions, replication, ..Topics::with_prefix(&prefix) };
    create_and_verify(&Admin::new(client.clone()), &topics).unwrap();
    topics
}

/// One node; killed with the value.
pub struct Broker {
    child: Option<Child>,
    /// Ends the broker and removes its data when this process is gone, however it went.
    leash: Option<Child>,
    port: u16,
    jars: String,
    dir: tempfile::TempDir,
    /// See [`Broker::lost_markers`].
    lost: bool,
}

impl Broker {
    /// Starts a node on free ports; `None` without jars.
    pub fn start() -> Option<Self> {
        Self::start_with("")
    }

    fn start_with(settings: &str) -> Option<Self> {
        let home = PathBuf::from(std::env::var_os("RUNWARDEN_TEST_KAFKA_HOME").filter(|home| !home.is_empty())?);
        let jars = format!("{}/*", home.join("libs").display());
        let dir = tempfile::tempdir().unwrap();
        let (port, controller) = (free_port(), free_port());
        let properties = properties(dir.path(), port, controller) + settings;
        fs::write(dir.path().join("server.properties"), properties).unwrap();
        fs::write(dir.path().join("log4j2.properties"), LOGGING).unwrap();
        let mut broker = Self { child: None, leash: None, port, jars, dir, lost: false };
        let mut format = broker.java("128m");
        format.args(["kafka.tools.StorageTool", "format", "--standalone", "-t", "MkU3OEVBNTcwNTJENDM2Qg", "-c"]);
        let output = format.arg(broker.dir.path().join("server.properties")).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        broker.up();
        Some(broker)
    }

    pub fn bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Whether this broker ended a transaction without its markers, as its log then says. A single node of Kafka 4.3.1 that was
    /// killed between the two and starts slowly takes its own partitions, which have no leader yet, for deleted; one that is
    /// stopped may do so at its end. What `read_committed` shows from then on is not what was committed, and offsets may stay pending forever.
    pub fn lost_markers(&mut self) -> bool {
        let text = fs::read_to_string(self.dir.path().join("server.log")).unwrap_or_default();
        self.lost |= text.contains("Couldn't find leader endpoint for partitions");
        self.lost
    }

    /// Starts the process again on the same data.
    pub fn up(&mut self) {
        self.lost_markers();
        let log = self.dir.path().join("server.log");
        let out = File::create(&log).unwrap();
        let properties = self.dir.path().join("server.properties");
        let child = self.java("512m").arg("kafka.Kafka").arg(properties).stdout(out).stderr(Stdio::null()).spawn();
        let child = child.unwrap();
        let leash = Command::new("sh")
            .args(["-c", "read -r _; kill -9 \"$1\" 2>/dev/null; sleep 1; rm -rf \"$2\"", "leash"])
            .arg(child.id().to_string())
            .arg(self.dir.path())
            .stdin(Stdio::piped())
            .spawn();
        self.leash = Some(leash.unwrap());
        self.child = Some(child);
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let text = fs::read_to_string(&log).unwrap_or_default();
            if text.contains("Kafka Server started") {
                return;
            }
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < deadline, "the broker did not start:\n{text}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// SIGTERM, and wait.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            signal(&child, "TERM");
            child.wait().unwrap();
            self.unleash();
        }
    }

    /// SIGKILL, and wait.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
            self.unleash();
        }
    }

    fn unleash(&mut self) {
        if let Some(mut leash) = self.leash.take() {
            leash.kill().unwrap();
            leash.wait().unwrap();
        }
    }

    fn java(&self, heap: &str) -> Command {
        let mut command = Command::new("java");
        let logging = self.dir.path().join("log4j2.properties");
        command.arg("-Xms64m").arg(format!("-Xmx{heap}")).arg("-XX:+UseG1GC");
        command.arg(format!("-Dlog4j2.configurationFile={}", logging.display()));
        command.arg("-cp").arg(&self.jars).stdin(Stdio::null());
        command
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking()
            && let Some(keep) = std::env::var_os("RUNWARDEN_TEST_KEEP")
        {
            // For a look at the logs with Kafka's own tools.
            let copied = Command::new("cp").arg("-r").arg(self.dir.path()).arg(keep).status();
            println!("broker data kept: {copied:?}");
        }
    }
}

/// Three nodes, replication 3, min.insync.replicas 2: run by `scripts/kafka`, killed with the value.
pub struct Cluster {
    bootstrap: String,
    dir: tempfile::TempDir,
    home: PathBuf,
    leash: Child,
}

impl Cluster {
    /// Starts the nodes; `None` without jars.
    pub fn start() -> Option<Self> {
        let home = PathBuf::from(std::env::var_os("RUNWARDEN_TEST_KAFKA_HOME").filter(|home| !home.is_empty())?);
        let dir = tempfile::tempdir().unwrap();
        let leash = Command::new("sh")
            .args([
                "-c",
                "read -r _; for p in \"$1\"/[123]/pid; do kill -9 $(cat \"$p\"); done; sleep 1; rm -rf \"$1\"",
                "leash",
            ])
            .arg(dir.path())
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let mut cluster = Self { bootstrap: String::new(), dir, home, leash: leash.unwrap() };
        cluster.up();
        Some(cluster)
    }

    pub fn bootstrap(&self) -> &str {
        &self.bootstrap
    }

    /// Starts the nodes that are down.
    pub fn up(&mut self) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/kafka");
        let output =
            Command::new(script).arg("start3").arg(self.dir.path()).env("RUNWARDEN_KAFKA_HOME", &self.home).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        self.bootstrap = String::from_utf8(output.stdout).unwrap().trim().to_owned();
    }

    /// The partitions that are not on every node, Kafka's own topics included: with those, losing one more may end in a wait
    /// for that very one.
    pub fn behind(&self) -> Vec<String> {
        let client: BaseConsumer = ClientConfig::new().set("bootstrap.servers", &self.bootstrap).create().unwrap();
        let Ok(metadata) = client.fetch_metadata(None, Duration::from_secs(5)) else {
            return vec!["no metadata".into()];
        };
        let partitions = metadata.topics().iter().flat_map(|t| t.partitions().iter().map(move |p| (t.name(), p)));
        let behind = partitions.filter(|(_, p)| p.isr().len() < 3 || p.error().is_some());
        behind.map(|(topic, p)| format!("{topic}/{}: in sync {:?}", p.id(), p.isr())).collect()
    }

    /// SIGKILL for one node.
    pub fn kill(&mut self, node: u32) {
        let pid = fs::read_to_string(self.dir.path().join(node.to_string()).join("pid")).unwrap();
        assert!(Command::new("kill").args(["-9", pid.trim()]).status().unwrap().success());
        std::thread::sleep(Duration::from_millis(100));
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Closing its input lets the leash end the nodes.
        drop(self.leash.stdin.take());
        self.leash.wait().unwrap();
    }
}

/// Sends a signal to a child.
pub fn signal(child: &Child, name: &str) {
    let status = Command::new("kill").arg(format!("-{name}")).arg(child.id().to_string()).status().unwrap();
    assert!(status.success());
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn properties(dir: &Path, port: u16, controller: u16) -> String {
    let data = dir.join("data");
    let data = data.display();
    format!(
        "process.roles=broker,controller
node.id=1
controller.quorum.bootstrap.servers=127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
inter.broker.listener.name=PLAINTEXT
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
log.dirs={data}
auto.create.topics.enable=false
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
share.coordinator.state.topic.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.min.isr=1
offsets.topic.num.partitions=4
transaction.state.log.num.partitions=4
group.initial.rebalance.delay.ms=0
group.consumer.min.session.timeout.ms=6000
group.consumer.session.timeout.ms=6000
group.consumer.min.heartbeat.interval.ms=500
group.consumer.heartbeat.interval.ms=500
log.cleaner.backoff.ms=1000
"
    )
}

/// Ends transactions of dead producers soon after their time-out. Not for brokers that are restarted: a sweep this early in
/// a start of 4.3.1 declares a transaction aborted without writing its markers (the coordinator takes partitions it does not
/// know yet for deleted ones), and the next transaction of that producer then commits the old records.
const SWEEP_OFTEN: &str = "transaction.abort.timed.out.transaction.cleanup.interval.ms=1000\n";

/// The broker says its last words itself: Log4j's own hook would silence it when its shutdown begins.
const LOGGING: &str = "shutdownHook = disable
rootLogger.level = WARN
rootLogger.appenderRefs = console
rootLogger.appenderRef.console.ref = console
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d %p %c{1}: %m%n
logger.server.name = kafka.server.KafkaRaftServer
logger.server.level = INFO
logger.txn.name = kafka.coordinator.transaction
logger.txn.level = INFO
";
