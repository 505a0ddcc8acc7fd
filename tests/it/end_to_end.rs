//! The shipped binary on a real Apache Kafka: what it decides is what a simulation of the same telemetry decides, exactly once,
//! however often it is killed. Needs a broker, see `support::broker`.
//!
//! The long form of the crash test: `RUNWARDEN_KILL_ROUNDS=50 cargo test --test it end_to_end::kill -- --nocapture`.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use runwarden::cli::load::{self, Texts};
use runwarden::clock::{SECOND, Wall};
use runwarden::config::Config;
use runwarden::decide::records::Decision;
use runwarden::demo::traffic::{self, Traffic};
use runwarden::kafka::client::Isolation;
use runwarden::kafka::produce::{Producer, Send};
use runwarden::kafka::reader::{Ends, OwnedRecord, Reader, read_topic};
use runwarden::kafka::{ClientSettings, Topics};
use runwarden::pipeline::simulate::{Report, Simulation};
use serde_json::Value;

use crate::support::broker::{shared, signal, skipped};
use crate::support::sidecar::eventually;
use crate::support::{assert_same, real_hour, root};

const LONG: Duration = Duration::from_secs(120);
/// Lines of the real hour used here.
const LINES: usize = 8_000;

/// Tighter than `REAL_POLICIES`, so that a quarter of an hour gives some thousand decisions: a crash should hit one.
const POLICIES: &str = r#"
id: run-ceiling
name: Run token ceiling
enforcement_mode: BLOCK
limits:
  - {id: run-tokens, limit_type: TOKENS_PER_RUN, category: BUDGET, metric: run_tokens, max: 12000, enforcement: BLOCK, on_breach: STOP}
  - {id: run-cost, limit_type: COST_PER_RUN, category: BUDGET, metric: run_cost_usd, max: 0.06, enforcement: BLOCK, on_breach: KILL}
---
id: agent-rate
name: Agent token rate
enforcement_mode: BLOCK
limits:
  - {id: agent-tokens, limit_type: TOKENS_PER_MINUTE, category: RATE, metric: agent_tokens_1m, max: 20000, enforcement: REJECT}
---
id: tenant-burn
name: Tenant burn rate
enforcement_mode: WARN
limits:
  - {id: burn, limit_type: TOKENS_PER_5M, category: RATE, metric: tenant_tokens_5m, max: 700000}
  - {id: p95, limit_type: LATENCY, metric: latency_p95_ms, max: 9000}
---
id: shadow-steps
name: Steps of a run, in shadow
limits:
  - {id: steps, limit_type: RUNS_STEPS, metric: run_steps, max: 20, enforcement: BLOCK, on_breach: STOP}
"#;

/// The begin of the real hour, its two tenants made six; where it is absent, as many events of the demo.
fn lines() -> Vec<String> {
    let split = |line: &String| {
        let mut event: Value = serde_json::from_str(line).unwrap();
        let agent = event["agent_id"].as_str().unwrap().bytes().last().unwrap();
        event["tenant_id"] = format!("{}-{}", event["tenant_id"].as_str().unwrap(), agent % 3).into();
        event.to_string()
    };
    match real_hour() {
        Some(hour) => hour.iter().take(LINES).map(split).collect(),
        None => {
            let mut traffic = Traffic::new(&traffic::Config::demo(1_700_000_000 * SECOND));
            let events = traffic.until((1_700_000_000 + 15 * 60) * SECOND).into_iter().map(|e| e.payload);
            // the demo's buggy producer is not wanted here
            events.filter(|e| serde_json::from_str::<Value>(e).is_ok_and(|e| e.is_object())).take(LINES).collect()
        }
    }
}

/// Where one test works: its topics, its files, its configuration.
pub struct Site {
    pub brokers: String,
    pub client: ClientSettings,
    pub topics: Topics,
    pub dir: tempfile::TempDir,
    pub lines: Vec<String>,
}

impl Site {
    /// `settings`: TOML that follows `[time]`. `None`, said, without a broker.
    pub fn new(test: &str, partitions: i32, time: &str) -> Option<Self> {
        let Some(brokers) = shared() else {
            skipped(test);
            return None;
        };
        let lines = lines();
        let prefix = format!("{test}-{}-", std::process::id());
        let topics = Topics { partitions, replication: 1, ..Topics::with_prefix(&prefix) };
        let dir = tempfile::tempdir().unwrap();
        let policies = dir.path().join("policies");
        fs::create_dir(&policies).unwrap();
        fs::write(policies.join("policies.yaml"), POLICIES).unwrap();
        fs::write(dir.path().join("telemetry.jsonl"), lines.join("\n")).unwrap();
        let names: String = topics.specs().iter().map(|s| format!("{} = {:?}\n", s.key, s.name)).collect();
        let root = root().display();
        let config = format!(
            "[paths]
queries = \"{root}/queries\"
policies = \"{}\"
prices = \"{root}/config/prices.toml\"
[kafka]
brokers = \"{brokers}\"
group = \"{prefix}group\"
slot = \"a\"
checkpoint-interval = \"1s\"
drain-timeout = \"30s\"
[topics]
{names}partitions = {partitions}
replication = 1
[time]
{time}
[interventions]
acknowledge-within = \"24h\"
[breaker]
percent = 100
[http]
listen = \"127.0.0.1:0\"
[sql]
listen = \"127.0.0.1:0\"
[otlp]
listen = \"127.0.0.1:0\"
",
            policies.display()
        );
        fs::write(dir.path().join("runwarden.toml"), config).unwrap();
        let site = Self { client: ClientSettings::new(&brokers), brokers, topics, dir, lines };
        site.done(&["topics", "create", "--config"]);
        Some(site)
    }

    pub fn config(&self) -> PathBuf {
        self.dir.path().join("runwarden.toml")
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_runwarden"));
        command.args(arguments).current_dir(self.dir.path()).stdin(Stdio::null());
        if arguments.last() == Some(&"--config") {
            command.arg(self.config());
        }
        command
    }

    /// Runs a subcommand that has to succeed.
    fn done(&self, arguments: &[&str]) {
        let output = self.command(arguments).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "runwarden {arguments:?}: {}\n{errors}", output.status);
        assert_sound(&errors);
    }

    fn replay(&self, key: &str) {
        let topic = &self.topics.telemetry;
        let to = ["--brokers", &self.brokers, "--topic", topic, "--key", key];
        self.done(&[&["replay", "--telemetry", "telemetry.jsonl"], to.as_slice()].concat());
        assert_eq!(self.read(topic).len(), self.lines.len());
    }

    pub fn read(&self, topic: &str) -> Vec<OwnedRecord> {
        read_topic(&self.client, topic).unwrap()
    }

    /// How many records each telemetry partition holds.
    fn ends(&self) -> Vec<i64> {
        let ends = Ends::new(&self.client, "test").unwrap();
        (0..self.topics.partitions).map(|p| ends.written(&self.topics.telemetry, p).unwrap()).collect()
    }

    /// How far the group has come in each telemetry partition.
    fn committed(&self) -> Vec<i64> {
        let group = self.topics.telemetry.replace("runs.telemetry", "group");
        let reader = Reader::new(&self.client, &group, Isolation::Committed).unwrap();
        let of = |p| reader.committed(&[&self.topics.telemetry], p).unwrap()[0].unwrap_or(0);
        (0..self.topics.partitions).map(of).collect()
    }

    /// The decisions on the topics that others see.
    fn said(&self) -> Vec<Said> {
        let t = &self.topics;
        let topics =
            [("signal", &t.signals), ("intervention", &t.interventions), ("alert", &t.alerts), ("audit", &t.audit)];
        let topics = topics.into_iter().chain([("lesson", &t.lessons), ("run", &t.runs)]);
        let of = |(what, topic): (&'static str, &String)| {
            let parse = move |r: OwnedRecord| Said::new(what, serde_json::from_slice(&r.payload.unwrap()).unwrap());
            self.read(topic).into_iter().map(parse).collect::<Vec<_>>()
        };
        // that the sidecars' files were put in force is no decision about telemetry
        let applied = |said: &Said| said.value.get("kind").is_some_and(|kind| kind == "policy_set.applied");
        topics.flat_map(of).filter(|said| !applied(said)).collect()
    }

    /// A simulation with the same configuration of the same lines.
    fn simulated(&self) -> Report {
        let config = Config::load(Some(&self.config()), Vec::new()).unwrap();
        let paths = &config.paths;
        let texts = Texts::read(&paths.queries, &paths.policies, &paths.prices).unwrap();
        let mut settings = load::build(&texts, load::tuning(&config)).unwrap().settings;
        settings.event_clock = true;
        settings.future_at = Some(Wall(i64::MAX));
        let mut simulation = Simulation::new(Arc::new(settings)).unwrap();
        for chunk in self.lines.chunks(1_000) {
            simulation.push(chunk.iter().map(|l| l.as_bytes())).unwrap();
        }
        let report = simulation.finish().unwrap();
        assert!(report.dead.is_empty());
        report
    }

    /// What the simulation decides; the minutes of its roll-ups are apart, since a live run may stop within one.
    fn oracle(&self) -> Vec<Said> {
        let said = |d: &Decision| match d {
            Decision::Signal(s) => Said::new("signal", serde_json::to_value(&**s).unwrap()),
            Decision::Alert(a) => Said::new("alert", serde_json::to_value(&**a).unwrap()),
            Decision::Intervention(i) => Said::new("intervention", serde_json::to_value(&**i).unwrap()),
            Decision::Guardian(g) => Said::new("intervention", g.payload.clone()),
            Decision::Lesson(l) => Said::new("lesson", serde_json::to_value(&**l).unwrap()),
            Decision::Run(r) => Said::new("run", serde_json::to_value(&**r).unwrap()),
            Decision::Audit(a) => Said::new("audit", serde_json::to_value(&**a).unwrap()),
            Decision::Command(_) | Decision::CommandResult(_) | Decision::Policy(_) => panic!("nobody sent a command"),
            Decision::Level(_) | Decision::Response(_) => panic!("there are no samples"),
            Decision::Evaluation(_) => unreachable!("left out below"),
        };
        let decisions = self.simulated().decisions;
        decisions.iter().filter(|d| !matches!(d, Decision::Evaluation(_))).map(said).collect()
    }

    /// The roll-ups on their topic are those of the simulation, and each says what time was spent.
    fn evaluations_are_those_of_the_simulation(&self) {
        let decisions = self.simulated().decisions;
        let wanted = decisions.iter().filter_map(|d| match d {
            Decision::Evaluation(e) => Some(serde_json::to_value(&**e).unwrap().to_string()),
            _ => None,
        });
        let (mut wanted, mut spent): (Vec<String>, u64) = (wanted.collect(), 0);
        let mut found: Vec<String> = Vec::new();
        for record in self.read(&self.topics.evaluations) {
            let mut value: Value = serde_json::from_slice(&record.payload.unwrap()).unwrap();
            spent += value.as_object_mut().unwrap().remove("time_spent_us").unwrap().as_u64().unwrap();
            found.push(value.to_string());
        }
        wanted.sort_unstable();
        found.sort_unstable();
        assert!(wanted.len() > 5 && spent > 0, "{} roll-ups, {spent} µs", wanted.len());
        assert_same(&found, &wanted, "roll-ups");
    }

    /// A sidecar that runs until it is told to stop; `life` numbers its log.
    pub fn sidecar(&self, life: usize) -> Running {
        self.sidecar_of(&self.config().display().to_string(), life)
    }

    /// One with another configuration.
    pub fn sidecar_of(&self, config: &str, life: usize) -> Running {
        let log = self.dir.path().join(format!("run-{life}.log"));
        let child = self
            .command(&["run", "--config", config])
            .stdout(Stdio::null())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Running { child, log }
    }

    /// Sends the lines in order over `over`.
    fn feed(&self, over: Duration) {
        self.feed_lines(&self.lines, over);
    }

    pub fn feed_lines(&self, lines: &[String], over: Duration) {
        let producer = Producer::new(&self.client).unwrap();
        let begun = Instant::now();
        for (n, line) in lines.iter().enumerate() {
            let event: Value = serde_json::from_str(line).unwrap();
            let tenant = event["tenant_id"].as_str().unwrap();
            let due = begun + over.mul_f64(n as f64 / lines.len() as f64);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            producer.send(&self.topics.telemetry, tenant.as_bytes(), line.as_bytes()).unwrap();
        }
        producer.flush(LONG).unwrap();
    }

    /// What the topic holds gives the windows and signals that the file it was filled from gives.
    fn simulates_alike_from_file_and_topic(&self) {
        let at = |name: &str| self.dir.path().join(name).display().to_string();
        let (queries, prices) = (root().join("queries"), root().join("config/prices.toml"));
        let common = [
            "--policies",
            &at("policies"),
            "--queries",
            queries.to_str().unwrap(),
            "--prices",
            prices.to_str().unwrap(),
        ];
        let simulate = |out: &str, more: &[&str]| {
            let out = at(out);
            self.done(&[&["simulate", "--out", &out], common.as_slice(), more].concat());
            fs::read_to_string(format!("{out}/windows.jsonl")).unwrap()
        };
        let file = simulate("of-file", &["--telemetry", "telemetry.jsonl"]);
        let topic = simulate("of-topic", &["--from-topic", "--config", &at("runwarden.toml")]);
        assert!(file.lines().count() > 1_000 && file == topic, "final windows of file and topic differ");
        let signals = |out: &str| {
            let text = fs::read_to_string(at(out) + "/signals.jsonl").unwrap();
            let one = |line: &str| Said::new("signal", serde_json::from_str(line).unwrap());
            texts(text.lines().map(one).collect::<Vec<_>>().iter())
        };
        assert_same(&signals("of-topic"), &signals("of-file"), "signals of topic and file");
        let since = ["--from-topic", "--since", "2100-01-01T00:00:00Z", "--config", &at("runwarden.toml")];
        let (code, _, errors) = self.run(&[&["simulate", "--out", &at("of-none")], common.as_slice(), &since].concat());
        assert!(code == Some(1) && errors.contains("no valid row in topic"), "{code:?} {errors}");
    }

    /// Waits until everything on the telemetry topic is processed.
    fn await_read(&self, partitions: i32) {
        let group = format!("{}group", self.topics.telemetry.strip_suffix("runs.telemetry").unwrap());
        let reader = Reader::new(&self.client, &group, Isolation::Committed).unwrap();
        let telemetry = self.topics.telemetry.as_str();
        let read = |partition| {
            let (_, high) = reader.watermarks(telemetry, partition).unwrap();
            reader.committed(&[telemetry], partition).unwrap()[0].unwrap_or(0) >= high
        };
        eventually("telemetry is processed", LONG, || (0..partitions).all(read));
    }

    /// Runs a subcommand: its exit code, standard output and error.
    pub fn run(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        let output = self.command(arguments).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    }

    /// Waits until the signals topic holds everything that is decided while rows arrive.
    fn await_raised(&self, wanted: &[Said]) {
        let wanted = texts(wanted.iter().filter(|s| s.raised_by_rows() && s.what == "signal"));
        let deadline = Instant::now() + LONG;
        loop {
            let found = texts(self.said().iter().filter(|s| s.raised_by_rows() && s.what == "signal"));
            if found.len() >= wanted.len() || Instant::now() > deadline {
                return assert_same(&found, &wanted, "raised signals");
            }
            std::thread::sleep(Duration::from_millis(300));
        }
    }

    /// Everything said live was said once, belongs to the simulation, and nothing that rows raise is missing.
    fn assert_live(&self, wanted: &[Said]) {
        let found = self.said();
        let mut ids = BTreeSet::new();
        for said in &found {
            assert!(ids.insert((said.what, said.id())), "said twice: {} {}", said.what, said.value);
        }
        let live = |all: &[Said]| texts(all.iter().filter(|s| s.raised_by_rows()));
        assert_same(&live(&found), &live(wanted), "raised signals, interventions, audit");
        let all = texts(wanted.iter());
        let signals = texts(found.iter().filter(|s| s.what == "signal"));
        let foreign: Vec<_> = signals.iter().filter(|s| all.binary_search(s).is_err()).take(3).collect();
        assert!(foreign.is_empty(), "not in the simulation: {foreign:#?}");
        assert!(self.read(&self.topics.dead_letter).is_empty());
    }
}

/// A decision as JSON.
struct Said {
    what: &'static str,
    value: Value,
    text: String,
}

impl Said {
    fn new(what: &'static str, value: Value) -> Self {
        let mut timeless = value.clone();
        // when it was decided, and where its rows lay, differ between a topic and a file
        for name in ["evidence", "decided_at", "lag_ms", "created_at", "issued_at", "deadline", "at"] {
            timeless.as_object_mut().unwrap().remove(name);
        }
        Self { what, text: format!("{what} {timeless}"), value }
    }

    fn text_of(&self, pointer: &str) -> &str {
        self.value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    }

    fn id(&self) -> String {
        let id = if self.what == "lesson" { "id".to_owned() } else { format!("{}_id", self.what) };
        let id = self.value.get(&id).unwrap_or_else(|| panic!("no {id} in {}", self.value));
        format!("{id} {}", self.value.get("revision").unwrap_or(&Value::Null))
    }

    /// Decided by the row that crosses a line, not by a clock that closes a window.
    fn raised_by_rows(&self) -> bool {
        match self.what {
            "signal" => self.text_of("/kind") != "RESOLVED" && self.text_of("/metric") != "latency_p95_ms",
            "intervention" => true,
            "audit" => self.value.pointer("/metric").is_none_or(|m| m != "latency_p95_ms"),
            _ => false,
        }
    }

    /// What does not depend on the order in which the rows of one window arrived.
    fn orderless(&self) -> Option<String> {
        let of = |names: &[&str]| {
            let text = |n: &&str| self.value.pointer(n).map(Value::to_string).unwrap_or_default();
            names.iter().map(text).collect::<Vec<_>>().join(" ")
        };
        let level = ["/tenant_id", "/scope/kind", "/scope/id", "/policy_id", "/limit_id", "/kind", "/mode"];
        match self.what {
            "signal" if self.text_of("/kind") == "RESOLVED" => {
                Some(format!("{} {}", of(&level), of(&["/final_value", "/reason", "/window_end"])))
            }
            "signal" => Some(of(&level)),
            // what makes another needless depends on which comes first
            "intervention" if self.value["revision"] != 1 => None,
            "intervention" => Some(of(&["/tenant_id", "/type", "/target", "/policy_id", "/state"])),
            _ => None,
        }
    }
}

fn texts<'a>(all: impl Iterator<Item = &'a Said>) -> Vec<String> {
    let mut all: Vec<String> = all.map(|s| s.text.clone()).collect();
    all.sort_unstable();
    all
}

fn orderless(all: &[Said]) -> Vec<String> {
    let mut all: Vec<String> = all.iter().filter_map(Said::orderless).collect();
    all.sort_unstable();
    all
}

/// Nothing a sidecar says may tell of a determinism fault or of lost history.
fn assert_sound(log: &str) {
    for alarm in ["ERROR", "mismatch", "history", "panicked"] {
        assert!(!log.contains(alarm), "{alarm} in:\n{log}");
    }
}

/// A sidecar process.
pub struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    /// Of the process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    pub fn await_restored(&mut self, partitions: i32) {
        let deadline = Instant::now() + LONG;
        while self.said().matches("partition restored").count() < partitions as usize {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < deadline, "not restored ({ended:?}):\n{}", self.said());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        assert_sound(&self.said());
    }

    /// SIGTERM; it has to end well.
    pub fn terminate(mut self) -> Duration {
        let begun = Instant::now();
        signal(&self.child, "TERM");
        let status = self.child.wait().unwrap();
        let took = begun.elapsed();
        assert!(status.success(), "{status} after {took:?}:\n{}", self.said());
        assert_sound(&self.said());
        took
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // what the process itself has to say about it
            eprintln!("{}:\n{}", self.log.display(), fs::read_to_string(&self.log).unwrap_or_default());
        }
        if let Ok(None) = self.child.try_wait() {
            self.child.kill().unwrap();
            self.child.wait().unwrap();
        }
    }
}

fn until_end_equals_simulate(test: &str, partitions: i32) {
    let Some(site) = Site::new(test, partitions, "") else { return };
    let wanted = site.oracle();
    assert!(wanted.len() > 100, "only {} decisions", wanted.len());
    site.replay("tenant");
    let begun = Instant::now();
    site.done(&["run", "--until-end", "--config"]);
    let took = begun.elapsed();
    let found = site.said();
    assert_same(&texts(found.iter()), &texts(wanted.iter()), "topics and simulation");
    assert!(site.read(&site.topics.dead_letter).is_empty() && site.read(&site.topics.repartition).is_empty());
    site.evaluations_are_those_of_the_simulation();
    println!("{partitions} partitions: {} events, {} decisions equal, in {took:?}", site.lines.len(), found.len());
    // a second run finds nothing left to do
    site.done(&["run", "--until-end", "--config"]);
    assert_eq!(site.said().len(), found.len(), "a second run says nothing anew");
    site.simulates_alike_from_file_and_topic();
}

#[test]
fn until_end_on_one_partition_is_what_a_simulation_says() {
    until_end_equals_simulate("until-end-1", 1);
}

#[test]
fn until_end_on_six_partitions_is_what_a_simulation_says() {
    until_end_equals_simulate("until-end-6", 6);
}

/// Sends the telemetry so that at least `share` of it is misplaced; gives what was said and what a simulation says.
fn until_end_on_misplaced_records(test: &str, send: impl FnOnce(&Site), share: f64) -> Option<(Vec<Said>, Vec<Said>)> {
    // the order between partitions is nobody's promise, so nothing may be late here
    let site = Site::new(test, 6, "allowed-lateness = \"2h\"")?;
    let wanted = site.oracle();
    send(&site);
    site.done(&["run", "--until-end", "--config"]);
    let (moved, all) = (site.read(&site.topics.repartition).len(), site.lines.len());
    assert!(moved as f64 > all as f64 * share, "only {moved} of {all} were misplaced");
    assert!(site.read(&site.topics.dead_letter).is_empty());
    let found = site.said();
    assert_same(&orderless(&found), &orderless(&wanted), "levels and interventions");
    println!("{test}: {moved} of {all} moved");
    Some((found, wanted))
}

#[test]
fn until_end_on_records_keyed_by_run_says_of_each_run_what_a_simulation_says() {
    let Some((found, wanted)) = until_end_on_misplaced_records("keyed-by-run", |site| site.replay("run"), 0.5) else {
        return;
    };
    // a run's own order is kept, and with it every value and id
    let of_runs = |all: &[Said]| texts(all.iter().filter(|s| s.what == "signal" && s.text_of("/scope/kind") == "RUN"));
    assert!(of_runs(&wanted).len() > 30, "only {} signals of runs", of_runs(&wanted).len());
    assert_same(&of_runs(&found), &of_runs(&wanted), "signals of runs");
}

#[test]
fn until_end_on_records_without_a_key_says_the_same_of_every_limit() {
    until_end_on_misplaced_records("keyed-by-nothing", |site| site.replay("none"), 0.5);
}

#[test]
fn until_end_on_records_keyed_by_two_hash_functions_says_the_same_of_every_limit() {
    // every other record comes from a client that places by CRC-32 of the key, as librdkafka does unless told otherwise
    let send = |site: &Site| {
        let producer = Producer::new(&site.client).unwrap();
        for (n, line) in site.lines.iter().enumerate() {
            let event: Value = serde_json::from_str(line).unwrap();
            let key = event["tenant_id"].as_str().unwrap().as_bytes();
            let crc = crc32fast::hash(key) % site.topics.partitions.unsigned_abs();
            let partition = (n % 2 == 1).then(|| i32::try_from(crc).unwrap());
            let topic = &site.topics.telemetry;
            let record = Send { topic, partition, key: Some(key), payload: Some(line.as_bytes()), ..Send::default() };
            producer.send_record(record).unwrap();
        }
        producer.flush(LONG).unwrap();
    };
    until_end_on_misplaced_records("keyed-by-two-hashes", send, 0.25);
}

#[test]
fn kill_minus_nine_at_random_moments_loses_and_repeats_no_decision() {
    const PARTITIONS: i32 = 3;
    // wall-clock silence while the sidecar is down must not close windows
    let Some(site) = Site::new("sidecar-kill", PARTITIONS, "idle-timeout = \"1h\"") else { return };
    let wanted = site.oracle();
    let rounds: u32 = std::env::var("RUNWARDEN_KILL_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(4);
    let mut dice = 7_u64;
    let mut roll = move |below: u64| {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        Duration::from_millis((dice >> 33) % below)
    };
    let mut starts = Vec::new();
    let last = std::thread::scope(|scope| {
        scope.spawn(|| site.feed(Duration::from_secs(5) * rounds.max(4)));
        let mut sidecar = site.sidecar(0);
        sidecar.await_restored(PARTITIONS);
        for round in 1..=rounds {
            // every fourth dies while it starts
            if round % 4 != 0 {
                sidecar.await_restored(PARTITIONS);
            }
            std::thread::sleep(roll(3_000));
            sidecar.kill();
            starts.push(Wall::now());
            sidecar = site.sidecar(round as usize);
        }
        sidecar
    });
    site.await_raised(&wanted);
    let took = last.terminate();
    site.assert_live(&wanted);
    let mut decided: Vec<i64> = site.said().iter().filter_map(decided_at).collect();
    decided.sort_unstable();
    let first = |start: &Wall| decided.iter().find(|at| **at > start.0).map(|at| (at - start.0) / 1_000);
    let mut resumed: Vec<i64> = starts.iter().filter_map(first).collect();
    resumed.sort_unstable();
    println!(
        "{rounds} kills, {} decisions; restart to first decision, ms: {resumed:?}; SIGTERM {took:?}",
        decided.len()
    );
}

/// A sidecar reads up to `read`, the stream goes on to `sent` without one, then come the resize, the rest, and the end.
fn resize_equals_simulate(test: &str, read: usize, sent: usize, orders: &[&str]) -> Option<(Site, Vec<Said>)> {
    let time =
        if orders.is_empty() { "idle-timeout = \"1h\"" } else { "idle-timeout = \"1h\"\nallowed-lateness = \"2h\"" };
    let site = Site::new(test, 2, time)?;
    let wanted = site.oracle();
    let lines = &site.lines;
    let part = |n: usize| lines.len() * n / 10;
    let mut sidecar = site.sidecar(0);
    sidecar.await_restored(2);
    site.feed_lines(&lines[..part(read)], Duration::ZERO);
    site.await_read(2);
    sidecar.terminate();
    site.feed_lines(&lines[part(read)..part(sent)], Duration::ZERO);
    let command = |more: &[&str]| site.run(&[&["topics", "resize", "--partitions", "5"], more, &["--config"]].concat());
    let (code, out, errors) = command(&["--dry-run"]);
    assert!(code == Some(0) && out.starts_with("dry run"), "{code:?}\n{out}\n{errors}");
    let (code, out, errors) = command(orders);
    assert_eq!(code, Some(0), "{out}\n{errors}");
    println!("{out}{errors}");
    assert!(out.contains("2 before, 5 after"), "{out}");
    let (code, again, errors) = command(&[]);
    assert!(code == Some(0) && again.starts_with("nothing to do"), "{code:?} {again}\n{errors}");
    let (code, _, errors) = site.run(&["topics", "resize", "--partitions", "3", "--config"]);
    assert!(code == Some(1) && errors.contains("cannot take any away"), "{code:?} {errors}");
    site.feed_lines(&lines[part(sent)..], Duration::ZERO);
    site.done(&["run", "--until-end", "--config"]);
    Some((site, wanted))
}

#[test]
fn a_resize_between_the_halves_of_a_stream_changes_no_decision() {
    let Some((site, wanted)) = resize_equals_simulate("resize-drained", 5, 5, &[]) else { return };
    assert_same(&texts(site.said().iter()), &texts(wanted.iter()), "topics and simulation");
}

#[test]
fn a_resize_before_unread_records_changes_no_decision() {
    let Some((site, wanted)) = resize_equals_simulate("resize-backlog", 4, 6, &[]) else { return };
    assert_same(&texts(site.said().iter()), &texts(wanted.iter()), "topics and simulation");
}

#[test]
fn a_resize_that_leaves_unread_records_to_the_sidecars_loses_none() {
    // left behind, they come after newer ones: nothing may be late here
    let Some((site, wanted)) = resize_equals_simulate("resize-left", 4, 6, &["--leave-backlog"]) else { return };
    assert!(!site.read(&site.topics.repartition).is_empty() && site.read(&site.topics.dead_letter).is_empty());
    assert_same(&orderless(&site.said()), &orderless(&wanted), "levels and interventions");
}

fn decided_at(said: &Said) -> Option<i64> {
    let text = said.value.get("decided_at")?.as_str()?;
    runwarden::telemetry::parse_time(text)
}

#[test]
fn sigterm_under_load_ends_well_in_five_seconds_and_the_next_start_repeats_nothing() {
    const PARTITIONS: i32 = 2;
    let Some(site) = Site::new("sidecar-term", PARTITIONS, "idle-timeout = \"1h\"") else { return };
    let wanted = site.oracle();
    let (last, took) = std::thread::scope(|scope| {
        scope.spawn(|| site.feed(Duration::from_secs(20)));
        let mut took = Vec::new();
        for life in 0..3 {
            let mut sidecar = site.sidecar(life);
            sidecar.await_restored(PARTITIONS);
            // what was sent while nobody ran
            let backlog = site.ends();
            eventually("caught up", LONG, || site.committed().iter().zip(&backlog).all(|(now, then)| now >= then));
            let there = site.ends();
            // what is on its way from the broker at the signal counts as arrived since
            std::thread::sleep(Duration::from_millis(250));
            took.push(sidecar.terminate());
            for (partition, (end, committed)) in there.iter().zip(site.committed()).enumerate() {
                assert!(
                    committed >= *end,
                    "partition {partition}: {end} records were there, {committed} are processed"
                );
            }
        }
        (site.sidecar(3), took)
    });
    site.await_raised(&wanted);
    last.terminate();
    site.assert_live(&wanted);
    println!("SIGTERM under load: {took:?}");
    // the middle one: machines that run all tests at once stall now and then
    let mut sorted = took;
    sorted.sort();
    assert!(sorted[1] < Duration::from_secs(5), "{sorted:?}");
}
