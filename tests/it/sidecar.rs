//! The shell with the real core on the in-process Kafka: telemetry in, and on the topics what `simulate` says of the same
//! events, every bad record as one dead letter, and nothing of what must not travel.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use runwarden::clock::{SECOND, Wall};
use runwarden::decide::records::Decision;
use runwarden::kafka::core::Core;
use runwarden::kafka::produce::{Producer, Send};
use runwarden::kafka::reader::{OwnedRecord, read_topic};
use runwarden::kafka::status::LogObserver;
use runwarden::kafka::{CoreFactory, Ended, Mock, Shell, ShellConfig, Topics};
use runwarden::pipeline::simulate::{Report, Simulation};
use runwarden::pipeline::{Own, Partition, Settings};
use runwarden::telemetry::redact::FORBIDDEN;
use runwarden::telemetry::tenant_partition;
use serde_json::{Value, json};

use crate::support::{load_settings, texts};

const SOON: Duration = Duration::from_secs(60);
const PARTITIONS: i32 = 3;
const TENANTS: [&str; 4] = ["acme", "globex", "initech", "umbrella"];
/// The first event, ms.
const START: i64 = 1_700_000_000_000;
/// Stands in every field that must not travel.
const SENTINEL: &str = "SENTINEL-my-private-prompt";
/// Largest record of these tests, bytes.
const LARGEST: usize = 16 * 1024;

const POLICIES: &[(&str, &str)] = &[(
    "p.yaml",
    r#"
id: run
name: Run
enforcement_mode: BLOCK
limits:
  - {id: tokens, limit_type: TOKENS_PER_RUN, category: BUDGET, metric: run_tokens, max: 900, on_breach: STOP}
  - {id: cost, limit_type: COST_PER_RUN, category: BUDGET, metric: run_cost_usd, max: 1.5, on_breach: KILL}
---
id: agent
name: Agent
enforcement_mode: WARN
limits:
  - {id: minute, limit_type: TOKENS_PER_MINUTE, category: RATE, metric: agent_tokens_1m, max: 1200}
  - {id: failures, limit_type: FAILURES, metric: agent_failures_5m, max: 2}
---
id: tenant
name: Tenant, in shadow
limits:
  - {id: burn, limit_type: TOKENS_PER_5M, category: RATE, metric: tenant_tokens_5m, max: 5000, on_breach: PAUSE}
  - {id: p95, limit_type: LATENCY, metric: latency_p95_ms, max: 400}
"#,
)];

fn settings(lateness: Option<i64>) -> Arc<Settings> {
    let mut settings = load_settings(&texts(POLICIES));
    // which run is one too many depends on the order of the runs
    settings.breaker.percent = 100;
    settings.event_clock = true;
    settings.future_at = Some(Wall((START + 3_600_000) * 1_000));
    if let Some(lateness) = lateness {
        settings.stream.lateness = lateness;
    }
    let decoder = runwarden::telemetry::Settings { max_record_bytes: LARGEST, ..(*settings.decoder).clone() };
    settings.decoder = Arc::new(decoder);
    Arc::new(settings)
}

/// A record to produce.
struct Input {
    payload: Option<Vec<u8>>,
    tenant: &'static str,
    run: String,
    good: bool,
}

/// Every field that must not travel, at the top, inside `attributes` and inside unknown objects.
fn poisoned(event: &mut Value) {
    let Some(event) = event.as_object_mut() else { return };
    for name in FORBIDDEN {
        event.insert(name.trim_end_matches(".*").to_owned(), json!({ "text": [SENTINEL] }));
    }
    event.insert("an_unknown_field".into(), json!(SENTINEL));
    event.insert("gen_ai".into(), json!({"input": {"messages": [{"content": SENTINEL}]}}));
    let inside: BTreeMap<&str, &str> = FORBIDDEN.iter().map(|name| (*name, SENTINEL)).collect();
    event.insert("attributes".into(), json!({"nested": inside, "prompt": SENTINEL, "unlisted": SENTINEL}));
}

/// Runs of two agents a tenant; some use too much, fail too often or are too slow.
fn good(count: usize) -> Vec<Input> {
    let mut all = Vec::new();
    for n in 0..count {
        let (tenant, agent) = (n % TENANTS.len(), n / TENANTS.len() % 2);
        let step = n / (TENANTS.len() * 2);
        let (run, of_run) = (step / 15, step % 15);
        let id = format!("{}-{agent}-{run}", TENANTS[tenant]);
        let greedy = tenant == 0 && agent == 0;
        let kind = match of_run {
            0 => "run.started",
            14 if tenant == 1 => "run.failed",
            14 => "run.completed",
            _ => "run.step",
        };
        // out of order within the allowed lateness
        let time = START + n as i64 * 400 - (n * 7 % 11) as i64 * 300;
        let mut event = json!({
            "event_id": format!("e{n}"), "event_time": time, "event_type": kind, "tenant_id": TENANTS[tenant], "run_id": id,
            "agent_id": format!("{}-agent-{agent}", TENANTS[tenant]), "api_key_id": format!("key-{agent}"),
            "human_actor_id": "h", "provider": "p", "model": "m",
            "input_tokens": if greedy { 90 + n % 30 } else { 20 + n % 40 }, "output_tokens": n % 9,
            "cost_usd": if tenant == 2 { 0.15 } else { 0.01 }, "latency_ms": if tenant == 3 { 500 } else { 100 + n % 50 },
        });
        if n % 5 == 0 {
            poisoned(&mut event);
        }
        all.push(Input { payload: Some(event.to_string().into_bytes()), tenant: TENANTS[tenant], run: id, good: true });
    }
    all
}

/// A bad record: one of every kind in turn, at the time of its good neighbours.
fn bad(n: usize, time: i64) -> Option<Vec<u8>> {
    let tenant = TENANTS[n % TENANTS.len()];
    let base = || {
        let mut event = json!({"event_time": time, "event_type": "run.step", "tenant_id": tenant, "run_id": "bad", "input_tokens": 1});
        poisoned(&mut event);
        event
    };
    let with = |name: &str, value: Value| {
        let mut event = base();
        event[name] = value;
        Some(event.to_string().into_bytes())
    };
    let without = |name: &str| {
        let mut event = base();
        event.as_object_mut()?.remove(name);
        Some(event.to_string().into_bytes())
    };
    let text = base().to_string();
    // a prompt where a number, a score, a flag, a time or a name from a list belongs
    let prompt = || json!(format!("{SENTINEL}, please"));
    match n % 40 {
        0 => Some(Vec::new()),
        1 => None,
        2 => Some(format!("{SENTINEL} is no JSON").into_bytes()),
        3 => Some([b"\xff\xfe".as_slice(), SENTINEL.as_bytes(), b"\xc3"].concat()),
        4 => Some(format!("[\"{SENTINEL}\"]").into_bytes()),
        5 => Some(b"null".to_vec()),
        6 => Some(text.as_bytes()[..text.len() / 2].to_vec()),
        7 => Some(format!("{text}{text}").into_bytes()),
        8 => Some("[".repeat(8_000).into_bytes()),
        9 => without("event_time"),
        10 => without("event_type"),
        11 => without("tenant_id"),
        12 => with("tenant_id", json!("")),
        13 => with("tenant_id", Value::Null),
        14 => with("tenant_id", json!("*")),
        15 => with("tenant_id", json!(7)),
        16 => with("event_type", json!("run.exploded")),
        17 => with("event_time", json!("yesterday")),
        18 => with("event_time", json!("2023-11-14T22:13:20")),
        19 => with("input_tokens", json!("many")),
        20 => with("input_tokens", json!(-1)),
        21 => with("input_tokens", json!(9_223_372_036_854_775_808_u64)),
        22 => with("cost_usd", json!(-0.5)),
        23 => with("risk_score", json!(1.5)),
        24 => with("agent_id", json!("x".repeat(300))),
        25 => with("severity", json!("AWFUL")),
        26 => with("labels", json!({ "a": [1] })),
        27 => with("event_time", json!(START + 2 * 3_600_000)),
        // three days behind everything: late for every window
        28 => with("event_time", json!(START - 3 * 24 * 3_600_000)),
        30 => with("event_time", prompt()),
        31 => with("event_type", prompt()),
        32 => with("severity", prompt()),
        33 => with("latency_ms", prompt()),
        34 => with("cost_usd", json!([prompt()])),
        35 => with("risk_score", json!({ "prompt": prompt() })),
        36 => with("is_synthetic", prompt()),
        37 => with("labels", prompt()),
        38 => with("attributes", prompt()),
        39 => with("run_id", json!({ "text": prompt() })),
        _ => with("title", json!("y".repeat(LARGEST))),
    }
}

/// Good records with bad ones among them.
fn mixed(good_count: usize, bad_count: usize) -> Vec<Input> {
    let mut all = Vec::new();
    let (each, mut made) = (bad_count.div_ceil(good_count), 0);
    for (n, input) in good(good_count).into_iter().enumerate() {
        all.push(input);
        // an older record is late only after the tenant has been heard
        for _ in 0..if n < 8 { 0 } else { each } {
            if made < bad_count {
                let tenant = TENANTS[made % TENANTS.len()];
                all.push(Input { payload: bad(made, START + n as i64 * 400), tenant, run: "bad".into(), good: false });
                made += 1;
            }
        }
    }
    while made < bad_count {
        let tenant = TENANTS[made % TENANTS.len()];
        all.push(Input { payload: bad(made, START), tenant, run: "bad".into(), good: false });
        made += 1;
    }
    all
}

/// How the producer places records.
#[derive(Clone, Copy, PartialEq)]
enum Keys {
    Tenant,
    Run,
    Spread,
    /// Half of the producers hash the tenant another way (CRC-32, as librdkafka does unless told otherwise).
    TwoHashes,
}

/// Produces and gives each record's place.
fn produce(mock: &Mock, topics: &Topics, inputs: &[Input], keys: Keys, next: &mut [i64]) -> Vec<(i32, i64)> {
    let producer = Producer::new(&mock.settings()).unwrap();
    let mut places = Vec::new();
    for (n, input) in inputs.iter().enumerate() {
        let key = match keys {
            Keys::Tenant | Keys::TwoHashes => Some(input.tenant),
            Keys::Run => Some(input.run.as_str()),
            Keys::Spread => None,
        };
        let other = keys == Keys::TwoHashes && n % 2 == 0;
        let partition = match key {
            Some(key) if other => (crc32fast::hash(key.as_bytes()) % PARTITIONS as u32) as i32,
            Some(key) => tenant_partition(key, PARTITIONS),
            None => n as i32 % PARTITIONS,
        };
        let record = Send {
            topic: &topics.telemetry,
            partition: Some(partition),
            key: key.map(str::as_bytes),
            payload: input.payload.as_deref(),
            ..Send::default()
        };
        producer.send_record(record).unwrap();
        let offset = &mut next[partition as usize];
        places.push((partition, *offset));
        *offset += 1;
    }
    producer.flush(SOON).unwrap();
    places
}

/// One sidecar's life. `until`: drained after so many records; otherwise it runs until the end of the topics.
fn run(mock: &Mock, topics: &Topics, settings: &Arc<Settings>, until: Option<u64>) {
    let config =
        ShellConfig { until_end: until.is_none(), ..ShellConfig::new(mock.settings(), "g", "a", topics.clone()) };
    let settings = Arc::clone(settings);
    let factory: CoreFactory = Arc::new(move |partition, partitions| {
        let core = Partition::new(Arc::clone(&settings), Own { partition, partitions })?;
        Ok(Box::new(core) as Box<dyn Core>)
    });
    let shell = Shell::new(config, factory, Arc::new(LogObserver));
    let (handle, status) = (shell.handle(), shell.handle().status());
    let thread = std::thread::spawn(move || shell.run());
    if let Some(count) = until {
        let deadline = Instant::now() + SOON;
        while status.counters.records_in.get() < count && !thread.is_finished() {
            assert!(Instant::now() < deadline, "{} of {count} records", status.counters.records_in.get());
            std::thread::sleep(Duration::from_millis(10));
        }
        handle.drain(SOON);
    }
    let ended = thread.join().unwrap().unwrap();
    assert_eq!(ended, if until.is_some() { Ended::Drained } else { Ended::Finished });
    let counters = &status.counters;
    assert_eq!((counters.transactions_aborted.get(), counters.replay_mismatches.get()), (0, 0));
    assert_eq!(counters.history_gone.get(), 0);
}

fn simulate(settings: &Arc<Settings>, inputs: &[Input]) -> Report {
    let mut simulation = Simulation::new(Arc::clone(settings)).unwrap();
    for batch in inputs.chunks(1_000) {
        // a tombstone reads as nothing at all
        simulation.push(batch.iter().map(|i| i.payload.as_deref().unwrap_or_default())).unwrap();
    }
    simulation.finish().unwrap()
}

/// A decision without what says when and from which offsets it was decided.
fn timeless(mut value: Value) -> Value {
    if let Some(object) = value.as_object_mut() {
        for name in ["evidence", "decided_at", "lag_ms", "created_at", "issued_at", "deadline", "at"] {
            object.remove(name);
        }
    }
    value
}

fn sorted(values: impl Iterator<Item = (&'static str, Value)>) -> Vec<String> {
    let mut all: Vec<String> = values.map(|(what, value)| format!("{what} {}", timeless(value))).collect();
    all.sort_unstable();
    all
}

fn expected(report: &Report) -> Vec<String> {
    // what was heard in which minute depends on the order of the rows, and keys may change that
    let said = report.decisions.iter().filter(|d| !matches!(d, Decision::Evaluation(_)));
    sorted(said.map(|d| match d {
        Decision::Signal(s) => ("signal", serde_json::to_value(&**s).unwrap()),
        Decision::Alert(a) => ("alert", serde_json::to_value(&**a).unwrap()),
        Decision::Intervention(i) => ("intervention", serde_json::to_value(&**i).unwrap()),
        Decision::Guardian(g) => ("intervention", g.payload.clone()),
        Decision::Lesson(l) => ("lesson", serde_json::to_value(&**l).unwrap()),
        Decision::Run(r) => ("run", serde_json::to_value(&**r).unwrap()),
        Decision::Audit(a) => ("audit", serde_json::to_value(&**a).unwrap()),
        Decision::Command(_) => panic!("nobody sent a command"),
        Decision::CommandResult(r) => ("result", serde_json::to_value(&**r).unwrap()),
        Decision::Policy(p) => ("policy", serde_json::from_str(p.record.as_deref().unwrap()).unwrap()),
        Decision::Level(_) | Decision::Response(_) => panic!("there are no samples"),
        Decision::Evaluation(_) => unreachable!("left out above"),
    }))
}

fn read(mock: &Mock, topic: &str) -> Vec<OwnedRecord> {
    read_topic(&mock.settings(), topic).unwrap()
}

fn said(mock: &Mock, topics: &Topics) -> Vec<String> {
    let of = |what: &'static str, topic: &str| {
        let parse = |r: OwnedRecord| serde_json::from_slice::<Value>(r.payload.as_deref().unwrap()).unwrap();
        read(mock, topic).into_iter().map(move |r| (what, parse(r))).collect::<Vec<_>>()
    };
    let all = [
        of("signal", &topics.signals),
        of("alert", &topics.alerts),
        of("intervention", &topics.interventions),
        of("audit", &topics.audit),
        of("lesson", &topics.lessons),
        of("run", &topics.runs),
        of("result", &topics.command_results),
    ];
    sorted(all.into_iter().flatten())
}

fn header(record: &OwnedRecord, name: &str) -> String {
    let value = record.headers.iter().find(|(key, _)| key == name);
    String::from_utf8(value.unwrap_or_else(|| panic!("no header {name}")).1.clone()).unwrap()
}

/// What this process logged since it began to be watched.
#[derive(Clone, Default)]
struct Logged(Arc<Mutex<Vec<u8>>>);

impl Write for Logged {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn watch_logs() -> Logged {
    static LOGGED: OnceLock<Logged> = OnceLock::new();
    let logged = LOGGED.get_or_init(|| {
        let logged = Logged::default();
        let writer = logged.clone();
        tracing_subscriber::fmt()
            .with_env_filter("debug,runwarden=trace")
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .init();
        logged
    });
    logged.clone()
}

fn assert_same(found: &[String], expected: &[String]) {
    let (a, b): (BTreeSet<_>, BTreeSet<_>) = (found.iter().collect(), expected.iter().collect());
    let only = |x: &BTreeSet<&String>, y: &BTreeSet<&String>| {
        x.difference(y).take(3).map(|s| format!("\n  {s}")).collect::<String>()
    };
    assert!(
        found == expected,
        "{} said, {} expected; only said:{}\nonly expected:{}",
        found.len(),
        expected.len(),
        only(&a, &b),
        only(&b, &a)
    );
}

fn topics() -> Topics {
    Topics { partitions: PARTITIONS, replication: 1, ..Topics::default() }
}

#[test]
fn topics_hold_what_a_simulation_says_and_each_bad_record_once_and_no_prompt_anywhere() {
    let logged = watch_logs();
    let (topics, settings) = (topics(), settings(None));
    let inputs = mixed(600, 10_000);
    let report = simulate(&settings, &inputs);
    // the good ones count as if the bad ones were not there
    let alone: Vec<Input> = mixed(600, 10_000).into_iter().filter(|i| i.good).collect();
    assert_same(&expected(&report), &expected(&simulate(&settings, &alone)));
    assert_eq!(report.counts.decoded as usize, alone.len() + 10_000 / 40, "those that are only late are decoded too");
    let mock = Mock::with_topics(&topics).unwrap();
    let mut next = vec![0; PARTITIONS as usize];
    let half = inputs.len() / 2;
    let mut places = produce(&mock, &topics, &inputs[..half], Keys::Tenant, &mut next);
    run(&mock, &topics, &settings, Some(half as u64));
    places.extend(produce(&mock, &topics, &inputs[half..], Keys::Tenant, &mut next));
    run(&mock, &topics, &settings, None);

    let (found, wanted) = (said(&mock, &topics), expected(&report));
    for kind in ["NEAR", "BREACH", "RESOLVED", "\"type\":\"STOP\"", "\"type\":\"KILL\"", "shadow_decision", "OPEN"] {
        assert!(wanted.iter().any(|d| d.contains(kind)), "these events should give {kind}");
    }
    assert_same(&found, &wanted);

    let dead = read(&mock, &topics.dead_letter);
    let mut letters: BTreeMap<(i32, i64), &OwnedRecord> = BTreeMap::new();
    for letter in &dead {
        assert_eq!(header(letter, "__connect.errors.topic"), topics.telemetry);
        let place = ["__connect.errors.partition", "__connect.errors.offset"].map(|name| header(letter, name));
        let place = (place[0].parse().unwrap(), place[1].parse().unwrap());
        assert!(letters.insert(place, letter).is_none(), "{place:?} twice");
    }
    let bad: BTreeSet<_> = inputs.iter().zip(&places).filter(|(i, _)| !i.good).map(|(_, place)| *place).collect();
    let lettered: BTreeSet<_> = letters.keys().copied().collect();
    assert_eq!(lettered, bad, "exactly the bad records are dead letters");
    assert_eq!(dead.len(), 10_000);
    let described =
        |reason: &str, message: &str, value: &[u8]| format!("{reason} {message} {}", String::from_utf8_lossy(value));
    let simulated: BTreeMap<(i32, i64), String> = report
        .dead
        .iter()
        .map(|d| (places[d.origin.offset as usize], described(d.reason.as_str(), &d.message, &d.value)))
        .collect();
    let mut reasons = BTreeMap::new();
    for (place, letter) in &letters {
        let (reason, message) =
            (header(letter, "runwarden-reason"), header(letter, "__connect.errors.exception.message"));
        // a file cannot hold a tombstone
        if message != "the record has no value" {
            assert_eq!(described(&reason, &message, letter.payload.as_deref().unwrap_or_default()), simulated[place]);
        }
        *reasons.entry(reason).or_insert(0) += 1;
    }
    for reason in ["decode", "missing_field", "out_of_range", "future", "late", "oversize"] {
        assert!(reasons.contains_key(reason), "no {reason} among {reasons:?}");
    }

    let sent = read(&mock, &topics.telemetry);
    assert!(sent.iter().any(|r| holds(r.payload.as_deref().unwrap_or_default(), SENTINEL)), "nothing to find");
    for spec in topics.specs() {
        for record in read(&mock, spec.name).iter().filter(|_| spec.name != topics.telemetry) {
            let headers = record.headers.iter().flat_map(|(name, value)| [name.as_bytes(), value]);
            let parts = [record.key.as_deref(), record.payload.as_deref()].into_iter().flatten().chain(headers);
            for part in parts {
                assert!(!holds(part, SENTINEL), "{} holds the prompt: {}", spec.name, String::from_utf8_lossy(part));
            }
        }
    }
    let log = logged.0.lock().unwrap();
    assert!(holds(&log, "partition restored"), "the log was watched");
    assert!(!holds(&log, SENTINEL), "the log holds the prompt");
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

/// What a level says that does not depend on the order in which rows of one window arrived.
fn orderless(decision: &str) -> Option<String> {
    let (what, value) = decision.split_once(' ')?;
    let value: Value = serde_json::from_str(value).ok()?;
    let text = |pointer: &str| value.pointer(pointer).map(Value::to_string).unwrap_or_default();
    let of = |names: &[&str]| names.iter().map(|name| text(name)).collect::<Vec<_>>().join(" ");
    let scope = ["/tenant_id", "/scope/kind", "/scope/id", "/policy_id", "/limit_id", "/kind", "/mode"];
    match what {
        "signal" if value["kind"] == "RESOLVED" => {
            Some(format!("{} {}", of(&scope), of(&["/final_value", "/reason", "/window_end"])))
        }
        "signal" => Some(of(&scope)),
        "intervention" => Some(of(&["/tenant_id", "/type", "/target", "/policy_id", "/state"])),
        _ => None,
    }
}

fn orderless_all(decisions: &[String]) -> Vec<String> {
    let mut all: Vec<String> = decisions.iter().filter_map(|d| orderless(d)).collect();
    all.sort_unstable();
    all
}

#[test]
fn records_keyed_by_run_not_at_all_or_by_two_hash_functions_reach_the_owner_of_their_tenant() {
    // the order between partitions is nobody's promise, so nothing may be late here
    let settings = settings(Some(3_600 * SECOND));
    let inputs = good(600);
    let wanted = expected(&simulate(&settings, &inputs));
    let orderless_wanted = orderless_all(&wanted);
    assert!(orderless_wanted.len() > 20, "{}", orderless_wanted.len());
    for keys in [Keys::Run, Keys::Spread, Keys::TwoHashes] {
        let topics = topics();
        let mock = Mock::with_topics(&topics).unwrap();
        let mut next = vec![0; PARTITIONS as usize];
        let places = produce(&mock, &topics, &inputs, keys, &mut next);
        run(&mock, &topics, &settings, None);
        let wrong =
            inputs.iter().zip(&places).filter(|(i, (p, _))| tenant_partition(i.tenant, PARTITIONS) != *p).count();
        assert!(wrong > 100, "{wrong} of {} records are misplaced", inputs.len());
        assert_eq!(read(&mock, &topics.repartition).len(), wrong, "each is moved once");
        assert!(read(&mock, &topics.dead_letter).is_empty());
        let found = said(&mock, &topics);
        assert_same(&orderless_all(&found), &orderless_wanted);
        if keys == Keys::Run {
            // a run's own order is kept, and with it every value and id
            let of_runs = |all: &[String]| -> Vec<String> {
                let runs = all.iter().filter(|d| d.starts_with("signal") && d.contains("\"kind\":\"RUN\""));
                runs.cloned().collect()
            };
            assert!(!of_runs(&wanted).is_empty());
            assert_same(&of_runs(&found), &of_runs(&wanted));
        }
    }
}
