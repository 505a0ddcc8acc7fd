//! What the core says in the corners of `contracts.md` and `policies.md`: one partition, steps by hand.

use std::sync::Arc;

use runwarden::clock::{SECOND, Wall};
use runwarden::kafka::core::{Core, Input, InputBatch, OutRecord, Record, StepInput, Topic};
use runwarden::pipeline::{Own, Partition, Settings};
use runwarden::policy::{PolicySet, Snapshot};
use serde_json::{Value, json};

use crate::support::{load_settings, texts};

/// 2026-01-05T00:00:00Z, a Monday.
pub(crate) const DAY: i64 = 1_767_571_200;

/// One partition and its steps, whose times are seconds after [`DAY`].
pub(crate) struct Desk {
    pub(crate) core: Partition,
    number: u64,
    offset: i64,
    /// Whether its steps stand at the end of the input, so that time spent there makes tenants idle.
    at_end: bool,
}

impl Desk {
    pub(crate) fn new(policies: &str) -> Self {
        Self::over(settings(policies))
    }

    pub(crate) fn over(settings: Settings) -> Self {
        let core = Partition::new(Arc::new(settings), Own { partition: 0, partitions: 1 }).unwrap();
        Self { core, number: 0, offset: 0, at_end: false }
    }

    /// A step with these records of one input at `now`.
    fn step(&mut self, now: i64, input: Input, key: &str, values: &[Value]) -> Vec<Said> {
        let payloads: Vec<Vec<u8>> = values.iter().map(|v| v.to_string().into_bytes()).collect();
        let payloads: Vec<&[u8]> = payloads.iter().map(Vec::as_slice).collect();
        self.raw(now, input, key, &payloads)
    }

    fn raw(&mut self, now: i64, input: Input, key: &str, payloads: &[&[u8]]) -> Vec<Said> {
        let mut records = Vec::new();
        for payload in payloads {
            let key = Some(key.as_bytes());
            records.push(Record { offset: self.offset, timestamp: 0, key, payload: Some(payload), headers: &[] });
            self.offset += 1;
        }
        let mut inputs = vec![InputBatch { input, records, at_end: self.at_end }];
        if input != Input::Telemetry {
            inputs.push(InputBatch { input: Input::Telemetry, records: vec![], at_end: self.at_end });
        }
        self.number += 1;
        let now = Wall((DAY + now) * SECOND);
        let input = StepInput { number: self.number, now, inputs, replaying: false, finish: false };
        self.core.step(&input).unwrap().records.into_iter().map(Said).collect()
    }

    pub(crate) fn telemetry(&mut self, now: i64, events: &[Value]) -> Vec<Said> {
        self.step(now, Input::Telemetry, "acme", events)
    }

    /// Lets the consumer stand at the end, a step every 10 s, from `from` to `to`.
    fn wait(&mut self, from: i64, to: i64) -> Vec<Said> {
        let mut said = Vec::new();
        self.at_end = true;
        for now in (from..=to).step_by(10) {
            said.extend(self.telemetry(now, &[]));
        }
        self.at_end = false;
        said
    }
}

pub(crate) fn settings(policies: &str) -> Settings {
    let mut settings = load_settings(&texts(&[("p.yaml", policies)]));
    settings.future_at = Some(Wall(i64::MAX));
    settings
}

pub(crate) struct Said(pub(crate) OutRecord);

impl Said {
    pub(crate) fn value(&self) -> Value {
        serde_json::from_slice(self.0.payload.as_deref().unwrap()).unwrap()
    }

    fn header(&self, name: &str) -> Option<String> {
        let found = self.0.headers.iter().find(|(n, _)| n == name);
        found.map(|(_, v)| String::from_utf8_lossy(v).into_owned())
    }
}

fn on(said: &[Said], topic: Topic) -> Vec<Value> {
    said.iter().filter(|s| s.0.topic == topic).map(Said::value).collect()
}

/// `kind metric` of the signals.
fn signals(said: &[Said]) -> Vec<String> {
    let brief = |v: &Value| format!("{} {}", v["kind"].as_str().unwrap(), v["metric"].as_str().unwrap());
    on(said, Topic::Signals).iter().map(brief).collect()
}

/// An event of tenant acme at `at` seconds after [`DAY`].
pub(crate) fn event(at: i64, kind: &str, fields: Value) -> Value {
    let mut event = json!({"event_time": (DAY + at) * 1000, "event_type": kind, "tenant_id": "acme"});
    event.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    event
}

pub(crate) fn step_of(at: i64, run: &str, tokens: i64) -> Value {
    event(at, "run.step", json!({"run_id": run, "input_tokens": tokens}))
}

fn agent_step(at: i64, agent: &str, tokens: i64) -> Value {
    event(at, "run.step", json!({"run_id": format!("of-{agent}"), "agent_id": agent, "input_tokens": tokens}))
}

const RUN_TOKENS: &str = "
id: run
name: Run
enforcement_mode: BLOCK
limits:
  - {id: tokens, limit_type: TOKENS_PER_RUN, metric: run_tokens, max: 100}
";

#[test]
fn an_alert_is_not_lost_when_a_tenants_records_arrive_after_it_went_idle() {
    let mut desk = Desk::new(RUN_TOKENS);
    let said = desk.telemetry(0, &[step_of(0, "r1", 200)]);
    assert_eq!(on(&said, Topic::Alerts).len(), 1, "opened at the BREACH: that it was NEAR at once says nothing more");
    // two silent hours, the first run's level up; then records that a cut-off worker had kept
    desk.wait(10, 7200);
    let said = desk.telemetry(7210, &[step_of(60, "r2", 200)]);
    assert_eq!(signals(&said), ["NEAR run_tokens", "BREACH run_tokens"]);
    let alerts = on(&said, Topic::Alerts);
    assert!(alerts.iter().any(|a| a["correlation_key"] == "RUN:r2" && a["status"] == "OPEN"), "{alerts:?}");
}

#[test]
fn whether_a_policy_is_active_is_judged_at_the_windows_end_when_it_decides_at_close() {
    let mut desk = Desk::new(
        "
id: slow
name: Slow
enforcement_mode: WARN
active: {hours: \"12:00-13:00\"}
limits:
  - {id: p95, limit_type: LATENCY, metric: latency_p95_ms, max: 100}
",
    );
    let noon = 12 * 3600;
    let slow = |at| event(at, "run.step", json!({"run_id": "r", "latency_ms": 500}));
    desk.telemetry(noon + 600, &[slow(noon + 600)]);
    // the row that closes the windows comes when the policy sleeps again
    let said = desk.telemetry(noon + 7200, &[event(noon + 7200, "run.started", json!({"run_id": "s"}))]);
    assert_eq!(signals(&said)[..2], ["NEAR latency_p95_ms", "BREACH latency_p95_ms"]);

    let mut desk = Desk::new(
        "
id: slow
name: Slow
enforcement_mode: WARN
active: {hours: \"14:00-15:00\"}
limits:
  - {id: p95, limit_type: LATENCY, metric: latency_p95_ms, max: 100}
",
    );
    desk.telemetry(noon, &[slow(noon)]);
    let said = desk.telemetry(noon + 8000, &[event(noon + 8000, "run.started", json!({"run_id": "s"}))]);
    assert_eq!(signals(&said), [""; 0], "the windows ended before the policy was active");
}

const P95: &str = "
id: slow
name: Slow
enforcement_mode: WARN
limits:
  - {id: p95, limit_type: LATENCY, metric: latency_p95_ms, max: 100}
";

#[test]
fn a_decision_at_close_is_synthetic_when_its_window_is_not_when_the_closing_row_is() {
    let slow = |at, synthetic: bool| {
        event(at, "run.step", json!({"run_id": "r", "latency_ms": 500, "is_synthetic": synthetic}))
    };
    for (window, closing) in [(false, true), (true, false)] {
        let mut desk = Desk::new(P95);
        desk.telemetry(0, &[slow(0, window)]);
        let other = json!({"run_id": "s", "is_synthetic": closing});
        let said = desk.telemetry(3600, &[event(3600, "run.started", other)]);
        let raised = on(&said, Topic::Signals);
        assert_eq!(raised[1]["kind"], "BREACH");
        assert_eq!(raised[1]["is_synthetic"], window, "window {window}, closing row {closing}");
        assert_eq!(raised[1]["violation"]["source"], if window { "sim" } else { "runtime" });
    }
    let mut desk = Desk::new(P95);
    desk.telemetry(0, &[slow(0, true), slow(1, false)]);
    let said = desk.wait(10, 600);
    assert_eq!(on(&said, Topic::Signals)[1]["is_synthetic"], false, "real rows are among them");
}

#[test]
fn an_intervention_stays_live_while_any_window_that_asked_for_it_is_breached() {
    let mut desk = Desk::new(
        "
id: pace
name: Pace
enforcement_mode: BLOCK
limits:
  - {id: minute, limit_type: TOKENS_PER_MINUTE, metric: agent_tokens_1m, max: 100, on_breach: PAUSE}
",
    );
    // the second window breaches while the first is still open
    let said = desk.telemetry(61, &[agent_step(30, "a", 200), agent_step(61, "a", 200)]);
    let issued = on(&said, Topic::Interventions);
    assert_eq!(issued.len(), 1, "one of a kind per target: {issued:?}");
    let said = desk.telemetry(72, &[agent_step(72, "a", 1)]);
    assert_eq!(signals(&said), ["RESOLVED agent_tokens_1m"]);
    let outcome = json!({"intervention_id": issued[0]["intervention_id"], "state": "ACKNOWLEDGED", "executor": "w"});
    let said = desk.step(73, Input::Outcomes, "acme", &[outcome]);
    let revised = on(&said, Topic::Interventions);
    assert_eq!(revised.len(), 1, "the second window still asks for it");
    assert_eq!((&revised[0]["revision"], &revised[0]["state"]), (&json!(2), &json!("ACKNOWLEDGED")));
    // both windows closed and it is done: nothing holds it any more, the next breach is ordered anew
    let outcome = json!({"intervention_id": issued[0]["intervention_id"], "state": "SUCCEEDED", "executor": "w"});
    desk.step(74, Input::Outcomes, "acme", &[outcome]);
    desk.telemetry(150, &[agent_step(150, "a", 1)]);
    let said = desk.telemetry(200, &[agent_step(200, "a", 200)]);
    assert_eq!(on(&said, Topic::Interventions)[0]["state"], "ISSUED");
}

#[test]
fn an_alert_stays_open_while_the_level_of_a_later_window_is_up() {
    let mut desk = Desk::new(
        "
id: daily
name: Daily
enforcement_mode: WARN
limits:
  - {id: day, limit_type: TOKENS_PER_DAY, metric: human_tokens_1d, max: 100}
",
    );
    let used =
        |at, tokens| event(at, "run.step", json!({"run_id": "r", "human_actor_id": "ann", "input_tokens": tokens}));
    let midnight = 24 * 3600;
    let said = desk.telemetry(midnight + 5, &[used(midnight - 5, 200), used(midnight + 5, 200)]);
    let opened = on(&said, Topic::Alerts)[0]["alert_id"].clone();
    let mut said = desk.telemetry(midnight + 12, &[used(midnight + 12, 1)]);
    assert_eq!(signals(&said), ["RESOLVED human_tokens_1d"], "the first day");
    said.extend(desk.telemetry(midnight + 1200, &[used(midnight + 1200, 1)]));
    let ended =
        |said: &[Said]| on(said, Topic::Alerts).iter().any(|a| a["status"] == "RESOLVED" && a["alert_id"] == opened);
    assert!(!ended(&said), "the second day's level is up");
    said.extend(desk.telemetry(2 * midnight + 20, &[used(2 * midnight + 20, 1)]));
    assert!(ended(&said), "nothing is up any more");
}

#[test]
fn windows_that_may_lack_rows_raise_but_never_lower_a_level() {
    let policies = "
id: failing
name: Failing
enforcement_mode: WARN
limits:
  - {id: failures, limit_type: FAILURES, metric: agent_failures_5m, max: 3}
";
    let failed = |at| event(at, "run.failed", json!({"run_id": format!("r{at}"), "agent_id": "a"}));
    let mut desk = Desk::new(policies);
    let other = |at| event(at, "run.started", json!({"run_id": "other"}));
    let said = desk.telemetry(200, &[failed(91), failed(92), failed(93), other(200)]);
    assert_eq!(signals(&said), ["NEAR agent_failures_5m", "BREACH agent_failures_5m"]);
    // the metric is edited: its windows start over, and count less than there was
    let mut edited = texts(&[("p.yaml", policies)]);
    for (name, text) in &mut edited.metrics {
        if name.contains("agent_failures_5m") {
            *text = text.replace("event_type = 'run.failed'", "event_type IN ('run.failed', 'run.crashed')");
        }
    }
    let mut settings = load_settings(&edited);
    settings.future_at = Some(Wall(i64::MAX));
    let changes = desk.core.take_changes();
    let mut desk = Desk { number: desk.number, offset: desk.offset, ..Desk::over(settings) };
    for change in changes {
        if let Some(value) = change.value {
            desk.core.restore(&change.key, &value).unwrap();
        }
    }
    desk.core.restored().unwrap();
    // hot until 390; the windows that end at 420, 450 and 480 began before the edit and prove nothing
    let mut said = desk.telemetry(205, &[failed(205)]);
    said.extend(desk.telemetry(495, &[failed(431), other(495)]));
    assert_eq!(signals(&said), [""; 0]);
    said.extend(desk.telemetry(1200, &[other(1200)]));
    let ended = on(&said, Topic::Signals);
    assert_eq!(signals(&said), ["RESOLVED agent_failures_5m"]);
    assert_eq!((&ended[0]["complete"], &ended[0]["reason"]), (&json!(true), &json!("fixed")));
}

#[test]
fn another_version_of_a_wider_limit_ends_the_old_level_although_a_run_is_bound_to_it() {
    let policies = |max: u32| {
        format!(
            "
id: pace
name: Pace
enforcement_mode: WARN
binding: RUN_START
limits:
  - {{id: minute, limit_type: TOKENS_PER_MINUTE, metric: agent_tokens_1m, max: {max}}}
"
        )
    };
    let mut desk = Desk::new(&policies(1000));
    let said = desk.telemetry(10, &[agent_step(10, "a", 1200)]);
    assert_eq!(signals(&said), ["NEAR agent_tokens_1m", "BREACH agent_tokens_1m"]);
    let set = PolicySet::from_files(&[("p.yaml".into(), policies(1500))]).unwrap();
    let next = set.following(desk.core.limits().current()).into_policies();
    assert_eq!(next[0].version, 2);
    desk.core.request_snapshot(Arc::new(Snapshot::new(next, Default::default(), "", "")));
    let said = desk.telemetry(12, &[agent_step(12, "a", 1)]);
    assert_eq!(signals(&said), ["RESOLVED agent_tokens_1m", "NEAR agent_tokens_1m"]);
    assert_eq!(on(&said, Topic::Signals)[0]["reason"], "policy_changed");
    let said = desk.telemetry(14, &[agent_step(14, "a", 400)]);
    assert_eq!(signals(&said), ["BREACH agent_tokens_1m"], "found at the row, not at the window's end");
}

#[test]
fn a_shadow_signal_says_when_it_diverges_from_what_is_enforced() {
    let mut desk = Desk::new(
        "
id: enforced
name: Enforced
enforcement_mode: BLOCK
limits:
  - {id: tokens, limit_type: TOKENS_PER_RUN, metric: run_tokens, max: 1000}
---
id: trial
name: Trial
limits:
  - {id: tokens, limit_type: TOKENS_PER_RUN, metric: run_tokens, max: 500}
",
    );
    let kinds = |said: &[Said]| -> Vec<String> {
        let brief = |s: &Value| {
            let text = |v: &Value| v.as_str().unwrap().to_owned();
            format!("{} {} {}", text(&s["policy_id"]), text(&s["kind"]), text(&s["violation"]["violation_kind"]))
        };
        on(said, Topic::Signals).iter().map(brief).collect()
    };
    let said = desk.telemetry(0, &[step_of(0, "r", 600)]);
    assert_eq!(kinds(&said), ["trial NEAR DIVERGENCE", "trial BREACH DIVERGENCE"]);
    let said = desk.telemetry(1, &[step_of(1, "r", 600)]);
    assert_eq!(kinds(&said), ["enforced NEAR STANDARD", "enforced BREACH STANDARD"]);
    // one jump past both: they agree
    let said = desk.telemetry(2, &[step_of(2, "s", 2000)]);
    assert!(kinds(&said).iter().all(|k| k.ends_with("STANDARD")), "{:?}", kinds(&said));
}

/// Limits that differ in what FAIL_CLOSED compares, but not in `max`: those the conflict check would refuse.
const AMBIGUOUS: &str = "
id: one
name: One
enforcement_mode: BLOCK
conflict_strategy: FAIL_CLOSED
active: {from: 2020-01-01T00:00:00Z}
limits:
  - {id: tokens, limit_type: TOKENS_PER_RUN, metric: run_tokens, max: 100}
---
id: two
name: Two
enforcement_mode: BLOCK
conflict_strategy: FAIL_CLOSED
scope: {who: AGENT, ids: [a]}
active: {from: 2020-01-01T00:00:00Z, until: 2026-01-05T06:00:00Z}
limits:
  - {id: tokens, limit_type: TOKENS_PER_RUN, metric: run_tokens, max: 100, near: 0.5}
---
id: wide
name: Wide
enforcement_mode: BLOCK
conflict_strategy: FAIL_CLOSED
active: {from: 2020-01-01T00:00:00Z}
scope: {who: API_KEY, ids: [k]}
limits:
  - {id: pace, limit_type: REQUESTS, metric: api_key_requests_1m, max: 10, on_breach: PAUSE}
---
id: wider
name: Wider
enforcement_mode: BLOCK
conflict_strategy: FAIL_CLOSED
active: {from: 2020-01-01T00:00:00Z}
scope: {who: API_KEY}
limits:
  - {id: pace, limit_type: REQUESTS, metric: api_key_requests_1m, max: 10, on_breach: KILL}
";

#[test]
fn terms_that_fail_closed_cannot_order_stop_the_run_at_binding_without_a_signal() {
    let mut desk = Desk::new(AMBIGUOUS);
    let said = desk.telemetry(0, &[agent_step(0, "a", 1), agent_step(0, "b", 1), agent_step(1, "a", 500)]);
    let stops = on(&said, Topic::Interventions);
    assert_eq!(stops.len(), 1, "once, and only the run that both match: {stops:?}");
    assert_eq!((&stops[0]["type"], &stops[0]["state"]), (&json!("STOP"), &json!("ISSUED")));
    assert_eq!(stops[0]["target"], json!({"kind": "RUN", "id": "of-a"}));
    assert_eq!(stops[0]["run_id"], "of-a");
    assert!(stops[0]["reason"].as_str().unwrap().starts_with("ambiguous"), "{}", stops[0]["reason"]);
    assert_eq!(stops[0]["policy_id"], "one");
    assert_eq!(stops[0]["signal_id"], Value::Null);
    assert_eq!(signals(&said), [""; 0]);
    // it is stopped, and the id is used again: that run is bound anew
    let outcome = json!({"intervention_id": stops[0]["intervention_id"], "state": "SUCCEEDED", "executor": "w"});
    desk.step(4, Input::Outcomes, "acme", &[outcome]);
    let end = event(5, "run.completed", json!({"run_id": "of-a", "agent_id": "a"}));
    let said = desk.telemetry(6, &[end, agent_step(6, "a", 1)]);
    let again = on(&said, Topic::Interventions);
    assert_eq!(again.len(), 1);
    assert_ne!(again[0]["intervention_id"], stops[0]["intervention_id"]);
    // from six o'clock only one of the two is active
    let six = 6 * 3600;
    let said = desk.telemetry(six, &[agent_step(six, "a", 1), agent_step(six + 1, "a2", 1)]);
    let ordered = on(&said, Topic::Interventions);
    assert!(
        ordered.iter().all(|i| i["revision"] != 1 || !i["reason"].as_str().unwrap().starts_with("ambiguous")),
        "{ordered:?}"
    );
    let later = event(six + 2, "run.step", json!({"run_id": "new", "agent_id": "a", "input_tokens": 150}));
    assert_eq!(signals(&desk.telemetry(six, &[later])), ["NEAR run_tokens", "BREACH run_tokens"]);
}

#[test]
fn a_run_whose_wider_limits_are_ambiguous_is_stopped_too() {
    let mut desk = Desk::new(AMBIGUOUS);
    let of_key = |at, run: &str, key: &str| event(at, "run.step", json!({"run_id": run, "api_key_id": key}));
    let said = desk.telemetry(0, &[of_key(0, "r1", "k"), of_key(1, "r2", "other"), of_key(2, "r1", "k")]);
    let stops = on(&said, Topic::Interventions);
    assert_eq!(stops.len(), 1, "{stops:?}");
    assert_eq!(stops[0]["target"], json!({"kind": "RUN", "id": "r1"}));
}

#[test]
fn what_is_written_for_others_is_a_cloud_event_snapshots_and_dead_letters_included() {
    let mut desk = Desk::new(RUN_TOKENS);
    let mut said = desk.raw(0, Input::Telemetry, "acme", &[b"not json", b"{\"tenant_id\":\"acme\"}"]);
    said.extend(desk.telemetry(1, &[step_of(1, "r", 200)]));
    let command = json!({
        "command_id": "c-1", "type": "unheard.of", "tenant_id": "acme", "principal": "user:eve", "authority": 5,
        "issued_at": "2026-01-01T00:00:00Z", "body": {},
    });
    said.extend(desk.step(2, Input::Commands, "acme", &[command]));
    let mut ids = std::collections::BTreeSet::new();
    for record in &said {
        for name in ["ce_id", "ce_source", "ce_type", "ce_specversion", "ce_time", "ce_subject", "content-type"] {
            assert!(record.header(name).is_some(), "{name} of a record on {:?}", record.0.topic);
        }
        assert!(ids.insert(record.header("ce_id").unwrap()), "ids are unique per record");
        assert!(record.header("ce_time").unwrap().ends_with('Z'));
    }
    let topics: std::collections::BTreeSet<Topic> = said.iter().map(|s| s.0.topic).collect();
    assert!(topics.contains(&Topic::Policies) && topics.contains(&Topic::DeadLetter), "{topics:?}");
    assert!(topics.contains(&Topic::CommandResults), "{topics:?}");
}

#[test]
fn reports_of_executors_that_cannot_be_read_are_kept_as_dead_letters() {
    let mut desk = Desk::new(RUN_TOKENS);
    desk.telemetry(0, &[]);
    let wrong = json!({"intervention_id": "i", "state": "DONE", "message": "a secret prompt"});
    let mut said = desk.raw(1, Input::Outcomes, "acme", &[b"\xff\xfe"]);
    said.extend(desk.step(1, Input::Outcomes, "acme", &[wrong]));
    let dead: Vec<&Said> = said.iter().filter(|s| s.0.topic == Topic::DeadLetter).collect();
    assert_eq!(dead.len(), 2);
    for (n, letter) in dead.iter().enumerate() {
        assert_eq!(letter.header("runwarden-reason").as_deref(), Some("decode"));
        assert_eq!(letter.header("__connect.errors.topic").as_deref(), Some("runwarden.outcomes"));
        assert_eq!(letter.header("__connect.errors.offset"), Some(n.to_string()));
        assert!(letter.value()["sha256"].is_string(), "described, not shown: {}", letter.value());
    }
}

#[test]
fn an_event_is_covered_when_any_policy_governs_any_group_it_belongs_to() {
    let mut desk = Desk::new(
        "
id: agents
name: Agents
scope: {who: AGENT, ids: [a]}
limits:
  - {id: failures, limit_type: FAILURES, metric: agent_failures_5m, max: 3}
",
    );
    let heartbeat = |agent: &str| event(0, "agent.heartbeat", json!({"agent_id": agent, "anomaly_score": 0.1}));
    let events = [
        agent_step(0, "a", 1),
        agent_step(0, "a", 2),
        agent_step(0, "b", 1),
        heartbeat("a"),
        heartbeat("b"),
        step_of(0, "r", 1),
    ];
    let payloads: Vec<Vec<u8>> = events.iter().map(|v| v.to_string().into_bytes()).collect();
    let record = |(n, p): (usize, &'static [u8])| Record {
        offset: n as i64,
        timestamp: 0,
        key: None,
        payload: Some(p),
        headers: &[],
    };
    let payloads: Vec<&'static [u8]> = payloads.into_iter().map(|p| &*p.leak()).collect();
    let records = payloads.into_iter().enumerate().map(record).collect();
    let inputs = vec![InputBatch { input: Input::Telemetry, records, at_end: true }];
    let input = StepInput { number: 1, now: Wall(DAY * SECOND), inputs, replaying: false, finish: false };
    let step = desk.core.advance(&input).unwrap();
    assert_eq!(step.counts.uncovered, 3, "agent b's step and heartbeat, and the run without an agent");
}

#[test]
fn a_limit_that_yields_to_a_sleeping_policy_is_found_at_the_row_that_crosses_it() {
    let mut desk = Desk::new(
        "
id: first
name: First by day
enforcement_mode: BLOCK
conflict_strategy: EXPLICIT_PRIORITY
precedence: 1
active: {hours: \"08:00-20:00\"}
limits:
  - {id: tokens, limit_type: TOKENS_PER_RUN, metric: run_tokens, max: 1000}
---
id: second
name: Second
enforcement_mode: BLOCK
conflict_strategy: EXPLICIT_PRIORITY
precedence: 2
limits:
  - {id: tokens, limit_type: TOKENS_PER_RUN, metric: run_tokens, max: 100}
",
    );
    assert_eq!(signals(&desk.telemetry(0, &[step_of(0, "night", 150)])), ["NEAR run_tokens", "BREACH run_tokens"]);
    let noon = 12 * 3600;
    assert_eq!(signals(&desk.telemetry(noon, &[step_of(noon, "day", 150)])), [""; 0]);
}

/// Everything decided about `rows`, taken `cut` at a time; after every `restart` steps by a core made from the checkpoint.
fn decided(settings: &Arc<Settings>, rows: &[Vec<u8>], cut: usize, restart: usize) -> Vec<String> {
    let fresh = || Partition::new(Arc::clone(settings), Own { partition: 0, partitions: 1 }).unwrap();
    let mut core = fresh();
    let mut kept = std::collections::BTreeMap::new();
    let mut said = Vec::new();
    let chunks: Vec<&[Vec<u8>]> = rows.chunks(cut).chain([&[][..]]).collect();
    for (n, chunk) in chunks.iter().enumerate() {
        let record = |(i, payload): (usize, &'_ Vec<u8>)| -> (i64, Vec<u8>) { ((n * cut + i) as i64, payload.clone()) };
        let owned: Vec<(i64, Vec<u8>)> = chunk.iter().enumerate().map(record).collect();
        let records = owned
            .iter()
            .map(|(offset, p)| Record { offset: *offset, timestamp: 0, key: None, payload: Some(p), headers: &[] })
            .collect();
        let inputs = vec![InputBatch { input: Input::Telemetry, records, at_end: false }];
        let finish = n + 1 == chunks.len();
        let number = n as u64 + 1;
        let out = core.step(&StepInput { number, now: Wall(0), inputs, replaying: false, finish }).unwrap();
        let lasting = out.records.iter().filter(|r| r.topic != Topic::Policies);
        said.extend(
            lasting.map(|r| format!("{:?} {}", r.topic, String::from_utf8_lossy(r.payload.as_deref().unwrap()))),
        );
        for change in core.take_changes() {
            match change.value {
                Some(value) => kept.insert(change.key, value),
                None => kept.remove(&change.key),
            };
        }
        if n % restart == restart - 1 {
            core = fresh();
            kept.iter().for_each(|(key, value)| core.restore(key, value).unwrap());
            core.restored().unwrap();
        }
    }
    said.sort_unstable();
    said
}

#[test]
fn ambiguous_and_timed_terms_decide_the_same_for_any_cut_and_restart() {
    let mut settings = settings(AMBIGUOUS);
    settings.event_clock = true;
    let settings = Arc::new(settings);
    // runs change agents and keys, end, come back, and cross the moment from which one policy sleeps
    let mut seed = 7_u64;
    let mut random = |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    let mut at = 6 * 3600 - 600;
    let rows: Vec<Vec<u8>> = (0..400)
        .map(|_| {
            at += i64::try_from(random(5)).unwrap();
            let kind = ["run.step", "run.step", "run.step", "run.step", "run.started", "run.completed"];
            let (run, tokens) = (format!("r{}", random(6)), random(40));
            let (agent, key) = (["a", "b"][random(2) as usize], ["k", "l", "m"][random(3) as usize]);
            let fields = json!({"run_id": run, "agent_id": agent, "input_tokens": tokens, "api_key_id": key});
            let disorder = i64::try_from(random(8)).unwrap();
            event(at - disorder, kind[random(6) as usize], fields).to_string().into_bytes()
        })
        .collect();
    let whole = decided(&settings, &rows, rows.len(), usize::MAX);
    for of in ["\"type\":\"STOP\"", "ambiguous", "BREACH", "run_tokens", "\"status\":\"RESOLVED\""] {
        assert!(whole.iter().any(|s| s.contains(of)), "the rows must lead to {of}");
    }
    for (cut, restart) in [(1, usize::MAX), (7, usize::MAX), (1, 1), (13, 2), (50, 3)] {
        crate::support::assert_same(&decided(&settings, &rows, cut, restart), &whole, &format!("cut {cut}, {restart}"));
    }
}

#[test]
fn a_tenant_that_sends_nothing_but_heartbeats_forgets_its_runs_too() {
    let mut desk = Desk::new(RUN_TOKENS);
    desk.telemetry(0, &[step_of(0, "r", 1)]);
    let before = desk.core.take_changes();
    let run: Vec<Vec<u8>> = before.into_iter().map(|c| c.key).filter(|k| k.ends_with(b"r")).collect();
    assert!(!run.is_empty(), "the run is state");
    let two_days = 2 * 24 * 3600;
    let heartbeat = event(two_days, "agent.heartbeat", json!({"agent_id": "a", "anomaly_score": 0.1}));
    desk.telemetry(two_days, &[heartbeat]);
    let gone: Vec<Vec<u8>> =
        desk.core.take_changes().into_iter().filter(|c| c.value.is_none()).map(|c| c.key).collect();
    for key in run {
        assert!(gone.contains(&key), "{} stays", String::from_utf8_lossy(&key));
    }
}

#[test]
fn a_near_may_be_raised_by_forecast_and_says_when_the_limit_is_reached() {
    let policies = "
id: run
name: Run
enforcement_mode: WARN
limits:
  - {id: tokens, limit_type: TOKENS_PER_RUN, metric: run_tokens, max: 1000, near_forecast_minutes: 3}
  - {id: minute, limit_type: TOKENS_PER_MINUTE, metric: agent_tokens_1m, max: 1000, near_forecast_minutes: 5}
";
    let mut desk = Desk::new(policies);
    // 100 at once and 100 a minute: after six minutes 700 at 116.7 a minute, so 2.6 minutes are left
    let mut near = Vec::new();
    for minute in 0..7 {
        let at = minute * 60;
        let said = desk.telemetry(at, &[step_of(at, "r", 100)]);
        near.extend(on(&said, Topic::Signals).into_iter().map(|s| (minute, s)));
    }
    let (minute, signal) = &near[0];
    assert_eq!((*minute, &signal["kind"], &signal["raised_by"]), (6, &json!("NEAR"), &json!("forecast")), "{near:?}");
    assert_eq!((&signal["value"], &signal["minutes_to_limit"]), (&json!(700), &json!(2.6)));
    assert_eq!(near.len(), 1, "at a level nothing repeats");
    // in a window that ends before, nothing is forecast; and a value at the line is one, not a forecast
    let said = desk.telemetry(600, &[agent_step(605, "a", 300)]);
    let later = desk.telemetry(640, &[agent_step(640, "a", 100)]);
    assert!(on(&said, Topic::Signals).is_empty());
    assert!(!signals(&later).iter().any(|s| s.contains("agent_tokens_1m")), "{:?}", signals(&later));
    let said = desk.telemetry(645, &[agent_step(645, "a", 450)]);
    let agent = on(&said, Topic::Signals).into_iter().find(|s| s["metric"] == "agent_tokens_1m").unwrap();
    assert_eq!((&agent["raised_by"], &agent["kind"]), (&json!("value"), &json!("NEAR")));
}
