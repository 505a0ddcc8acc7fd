//! `runwarden explain ID`: why something was decided, and whether it is decided again (X9).
//!
//! From the record of the decision to the signal it rests on, to the terms in force then, to the recorded steps and their input. The steps
//! are run again, exactly as they were cut, on a core that is empty and under those terms; everything the window rests on lies
//! within them.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::sync::Arc;

use datafusion::arrow::array::{Array as _, AsArray as _};
use serde_json::{Value, json};

use crate::cli::{ExplainArguments, Failure, load};
use crate::clock::Wall;
use crate::decide::records::{Decision, Place, Signal};
use crate::kafka::core::Input;
use crate::kafka::recorded::{Recorded, Stretch, Unavailable, again, read, search};
use crate::kafka::{Error, ShellConfig};
use crate::pipeline::intake::Rows;
use crate::pipeline::terms::{self, Texts, Tuning};
use crate::pipeline::{Own, Partition, Settings};
use crate::policy::{EffectiveLimit, Snapshot, Terms};
use crate::serve::reads::explain::{Explainer, Unexplained};
use crate::telemetry::{self, Decoder, Origin, redacted_json};

/// Events shown at each end of the list.
const SHOWN: usize = 5;

/// Runs the subcommand.
pub(super) fn main(arguments: &ExplainArguments) -> Result<ExitCode, Failure> {
    let config = load::config(arguments.config.path())?;
    if let Ok(filter) = std::env::var("RUST_LOG") {
        crate::logging::init(&config.log, Some(&filter)).map_err(Failure::invalid)?;
    }
    let site = Site { shell: load::shell(&config), tuning: load::tuning(&config) };
    let explained = site.explain(&arguments.id)?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&explained.to_json()).unwrap_or_default());
    } else {
        print!("{}", explained.to_text());
    }
    Ok(if matches!(explained.again, Again::Otherwise(_)) { ExitCode::from(1) } else { ExitCode::SUCCESS })
}

/// What explains the decisions of a running process.
pub(super) fn explainer(shell: ShellConfig, tuning: Tuning) -> Explainer {
    let site = Site { shell, tuning };
    Explainer::new(Arc::new(move |id| match site.explain(id) {
        Ok(explained) => Ok(explained.to_json()),
        Err(Failure::Invalid(why)) => Err(Unexplained::Unknown(why)),
        Err(Failure::Reach(why)) => Err(Unexplained::Failed(why)),
    }))
}

struct Site {
    shell: ShellConfig,
    tuning: Tuning,
}

/// What is known of a decision.
struct Explained {
    /// Signal, intervention, alert, audit.
    what: &'static str,
    /// The record as it stands on its topic.
    decision: Value,
    /// The signal it rests on.
    signal: Option<Value>,
    sql: Option<String>,
    policy: Option<Value>,
    considered: Vec<Value>,
    /// Events of the scope within the window, and how many there are.
    events: (usize, Vec<Value>),
    again: Again,
}

/// What running it again gave.
enum Again {
    /// The same signal; of how many steps and records, by which version then.
    Same { steps: usize, records: usize, first: u64, last: u64, version: String },
    /// Something else.
    Otherwise(String),
    /// It cannot be run again, and why.
    Not(String),
}

impl Site {
    fn explain(&self, id: &str) -> Result<Explained, Failure> {
        let (what, decision) = self.find(id)?;
        let signal = match what {
            "signal" => Some(decision.clone()),
            "alert" => self.signal(decision["members"][0].as_str())?,
            _ => self.signal(decision["signal_id"].as_str().or(decision["after"]["signal_id"].as_str()))?,
        };
        let mut explained = Explained {
            what,
            decision,
            signal: signal.clone(),
            sql: None,
            policy: None,
            considered: Vec::new(),
            events: (0, Vec::new()),
            again: Again::Not("it rests on no signal: its reason says what it rests on".into()),
        };
        let Some(signal) = signal else { return Ok(explained) };
        let signal: Signal =
            serde_json::from_value(signal).map_err(|e| Failure::Invalid(format!("not a signal of ours: {e}")))?;
        let Some(snapshot) = self.snapshot(&signal.snapshot_id)? else {
            explained.again = Again::Not(format!(
                "expired: snapshot {} is no longer on {}",
                signal.snapshot_id, self.shell.topics.policies
            ));
            return Ok(explained);
        };
        explained.sql = snapshot.metrics().values().find(|text| declares(text, &signal.metric)).cloned();
        let policies = snapshot.policies().iter();
        explained.policy = policies.filter(|p| *p.id == *signal.policy_id).map(|p| json!(p)).next();
        self.run_again(&signal, snapshot, &mut explained)?;
        Ok(explained)
    }

    /// The latest record with this id.
    fn find(&self, id: &str) -> Result<(&'static str, Value), Failure> {
        let t = &self.shell.topics;
        let places = [
            ("signal", &t.signals, "signal_id"),
            ("intervention", &t.interventions, "intervention_id"),
            ("alert", &t.alerts, "alert_id"),
            ("audit", &t.audit, "audit_id"),
        ];
        for (what, topic, field) in places {
            if let Some(value) = self.latest(topic, field, id)? {
                return Ok((what, value));
            }
        }
        Err(Failure::Invalid(format!(
            "there is no decision {id} on {}, {}, {} or {}: it is unknown, or expired (they keep 30 days, the audit a year)",
            t.signals, t.interventions, t.alerts, t.audit
        )))
    }

    fn latest(&self, topic: &str, field: &str, id: &str) -> Result<Option<Value>, Failure> {
        let parse = |payload: &[u8]| serde_json::from_slice::<Value>(payload).ok().filter(|v| v[field] == *id);
        // a search for bytes first: parsing everything would take its time
        let wanted = |_: &[u8], payload: &[u8]| {
            payload.windows(id.len()).any(|w| w == id.as_bytes()) && parse(payload).is_some()
        };
        let found = search(&self.shell.client, topic, 1, wanted).map_err(reach)?;
        Ok(found.last().and_then(|r| r.payload.as_deref()).and_then(parse))
    }

    fn signal(&self, id: Option<&str>) -> Result<Option<Value>, Failure> {
        match id {
            Some(id) => self.latest(&self.shell.topics.signals, "signal_id", id),
            None => Ok(None),
        }
    }

    fn snapshot(&self, id: &str) -> Result<Option<Snapshot>, Failure> {
        let key = format!("*/snapshot/{id}");
        let found =
            search(&self.shell.client, &self.shell.topics.policies, 1, |k, _| k == key.as_bytes()).map_err(reach)?;
        let text = found.last().and_then(|r| r.payload.as_deref()).map(String::from_utf8_lossy);
        text.map(|text| Snapshot::from_json(&text).map_err(Failure::unreadable)).transpose()
    }

    fn run_again(&self, signal: &Signal, snapshot: Snapshot, explained: &mut Explained) -> Result<(), Failure> {
        let Some(first) = &signal.evidence.first else {
            explained.again = Again::Not("it rests on no record of its window".into());
            return Ok(());
        };
        let input = if first.topic == self.shell.topics.repartition { Input::Repartition } else { Input::Telemetry };
        let until = Wall(signal.decided_at);
        let stretch = Stretch { partition: first.partition, input, offset: first.offset, until };
        let recorded = match read(&self.shell.client, &self.shell.topics, &stretch) {
            Ok(recorded) => recorded,
            Err(gone @ Unavailable::Expired(_)) => {
                explained.again = Again::Not(gone.to_string());
                return Ok(());
            }
            Err(Unavailable::Broker(error)) => return Err(reach(error)),
        };
        explained.events = events(signal, &recorded, &Arc::new(self.tuning.telemetry.clone()));
        let core = match settings(snapshot, &self.tuning) {
            Ok(settings) => {
                let own = Own { partition: stretch.partition, partitions: recorded.partitions };
                Partition::new(Arc::new(settings), own).map_err(Failure::invalid)?
            }
            Err(why) => {
                explained.again = Again::Not(format!("the queries of then do not compile in this version: {why}"));
                return Ok(());
            }
        };
        let (said, considered) = replay(core, &recorded, signal)?;
        explained.considered = considered;
        explained.again = judge(signal, said, recorded);
        Ok(())
    }
}

fn reach(error: Error) -> Failure {
    Failure::reach(error)
}

fn declares(text: &str, metric: &str) -> bool {
    text.lines().any(|line| {
        line.trim()
            .strip_prefix("--")
            .and_then(|l| l.trim().strip_prefix("metric:"))
            .is_some_and(|m| m.trim() == metric)
    })
}

/// Settings under a snapshot of then.
fn settings(snapshot: Snapshot, tuning: &Tuning) -> Result<Settings, String> {
    let terms = Terms {
        queries: snapshot.metrics().clone(),
        prices: snapshot.prices().to_owned(),
        settings: snapshot.settings().to_owned(),
    };
    let loaded =
        terms::build(&Texts::of(&terms)?, tuning.clone().deciding(&terms.settings)).map_err(|f| f.join("; "))?;
    Ok(Settings { snapshot: Arc::new(snapshot), ..loaded.settings })
}

/// Runs the steps; the signals with this id or of this level, and the policies that were considered for its limit.
fn replay(mut core: Partition, recorded: &Recorded, signal: &Signal) -> Result<(Vec<Signal>, Vec<Value>), Failure> {
    let (mut said, mut considered) = (Vec::new(), Vec::new());
    for step in &recorded.steps {
        let done = again(step, recorded.of(step), false, |input| core.advance(input)).map_err(Failure::invalid)?;
        said.extend(done.decisions.into_iter().filter_map(|decision| match decision {
            Decision::Signal(s) if s.signal_id == signal.signal_id => Some(*s),
            _ => None,
        }));
        let of = |limit: &&Arc<EffectiveLimit>| {
            *limit.policy_id == *signal.policy_id
                && *limit.limit_id == *signal.limit_id
                && *limit.metric == *signal.metric
        };
        if !said.is_empty() && considered.is_empty() {
            let sets = core.limits().sets().0;
            let limit = sets.iter().flat_map(|set| &set.limits).find(of);
            considered = limit.map(|l| l.considered.iter().map(|c| json!(c)).collect()).unwrap_or_default();
        }
    }
    Ok((said, considered))
}

fn judge(signal: &Signal, said: Vec<Signal>, recorded: Recorded) -> Again {
    let steps = recorded.steps.len();
    let records = recorded.records.iter().map(Vec::len).sum();
    let number = |step: Option<&crate::kafka::steps::Step>| step.map_or(0, |s| s.number);
    let (first, last) = (number(recorded.steps.first()), number(recorded.steps.last()));
    match said.first() {
        None => Again::Otherwise(format!(
            "steps {first} to {last} of the partition ({records} records), run again from an empty state, give no such signal: its level \
             may rest on records before them"
        )),
        Some(again) if again.value == signal.value && again.kind == signal.kind && again.limit == signal.limit => {
            Again::Same { steps, records, first, last, version: recorded.version }
        }
        Some(again) => Again::Otherwise(format!(
            "run again it is {} at {} of {}, and was {} at {} of {}: rows may have been late or duplicates then",
            again.kind.as_str(),
            text(&json!(again.value)),
            text(&json!(again.limit)),
            signal.kind.as_str(),
            text(&json!(signal.value)),
            text(&json!(signal.limit)),
        )),
    }
}

/// The field of an event that holds the id of a scope.
fn field(kind: &str) -> &'static str {
    match kind {
        "RUN" => "run_id",
        "AGENT" => "agent_id",
        "API_KEY" => "api_key_id",
        "HUMAN_ACTOR" => "human_actor_id",
        "TASK" => "task_id",
        "PROJECT" => "project_id",
        "PROVIDER" => "provider",
        _ => "tenant_id",
    }
}

/// Events of the signal's scope and window up to its last record, with their places: how many, and the first and last ones. They are
/// shown as they were decoded: what is not kept of telemetry is not shown either.
fn events(signal: &Signal, recorded: &Recorded, decoder: &Arc<telemetry::Settings>) -> (usize, Vec<Value>) {
    let last = signal.evidence.last.as_ref();
    let mut decoder = Decoder::new(Arc::clone(decoder));
    for (input, records) in (0_u8..).zip(&recorded.records) {
        for record in records {
            let past =
                |l: &Place| l.topic == record.topic && l.partition == record.partition && record.offset > l.offset;
            if last.is_none_or(|l| !past(l)) {
                let topic: Arc<str> = record.topic.as_str().into();
                let origin = Origin { input, topic, partition: record.partition, offset: record.offset };
                let headers = record.headers.iter().map(|(name, value)| (name.as_str(), value.as_slice()));
                let headers: Vec<(&str, &[u8])> = headers.collect();
                let now = Wall(signal.decided_at);
                decoder.push_with(origin, record.offset, record.payload.as_deref(), &headers, now);
            }
        }
    }
    let batch = decoder.finish().batch;
    let rows = Rows::new(&batch.rows);
    let scope = batch.rows.column_by_name(field(&signal.scope.kind)).and_then(|column| column.as_string_opt::<i32>());
    let found: Vec<usize> = (0..batch.rows.num_rows())
        .filter(|row| {
            let within = (signal.window_start..=signal.window_end).contains(&rows.time.value(*row));
            let ours = scope.is_some_and(|s| s.is_valid(*row) && s.value(*row) == signal.scope.id);
            within && ours && rows.tenant.value(*row) == signal.tenant_id
        })
        .collect();
    let ends = found.iter().take(SHOWN).chain(found.iter().skip(SHOWN.max(found.len().saturating_sub(SHOWN))));
    let shown = ends.filter_map(|row| {
        let origin = batch.origins.get(*row)?;
        let event: Value = serde_json::from_slice(&redacted_json(&batch.rows, *row)).ok()?;
        Some(json!({"topic": &*origin.topic, "partition": origin.partition, "offset": origin.offset, "event": event}))
    });
    (found.len(), shown.collect())
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

impl Explained {
    fn to_json(&self) -> Value {
        let again = match &self.again {
            Again::Same { steps, records, first, last, version } => {
                json!({"same": true, "steps": steps, "records": records, "first_step": first, "last_step": last, "version": version})
            }
            Again::Otherwise(why) => json!({"same": false, "why": why}),
            Again::Not(why) => json!({"same": null, "why": why}),
        };
        json!({
            "what": self.what, "decision": self.decision, "signal": self.signal, "sql": self.sql, "policy": self.policy,
            "considered": self.considered, "events": {"count": self.events.0, "shown": self.events.1}, "again": again,
        })
    }

    fn to_text(&self) -> String {
        let mut out = String::new();
        self.write(&mut out).unwrap_or_default();
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        let d = &self.decision;
        let id = match self.what {
            "signal" => "signal_id",
            "intervention" => "intervention_id",
            "alert" => "alert_id",
            _ => "audit_id",
        };
        writeln!(out, "{:<14}{}", self.what, text(&d[id]))?;
        match self.what {
            "intervention" => {
                let target = &d["target"];
                writeln!(
                    out,
                    "  {} of {} {}, {}",
                    text(&d["type"]),
                    text(&target["kind"]),
                    text(&target["id"]),
                    text(&d["state"])
                )?;
            }
            "alert" => writeln!(out, "  {} {}: {}", text(&d["status"]), text(&d["severity"]), text(&d["title"]))?,
            "audit" => writeln!(
                out,
                "  {} on {} {}",
                text(&d["kind"]),
                text(&d["subject"]["kind"]),
                text(&d["subject"]["id"])
            )?,
            _ => {}
        }
        if !d["reason"].is_null() && self.what != "signal" {
            writeln!(out, "  {}", text(&d["reason"]))?;
        }
        let Some(s) = &self.signal else { return self.write_again(out) };
        writeln!(out, "\nsignal        {}", text(&s["signal_id"]))?;
        writeln!(
            out,
            "  {} {} of {} {}, tenant {}: {} of {} ({} mode, {})",
            text(&s["kind"]),
            text(&s["metric"]),
            text(&s["scope"]["kind"]),
            text(&s["scope"]["id"]),
            text(&s["tenant_id"]),
            text(&s["value"]),
            text(&s["limit"]),
            text(&s["mode"]),
            text(&s["enforcement"]),
        )?;
        writeln!(out, "  window [{}, {})", text(&s["window_start"]), text(&s["window_end"]))?;
        writeln!(
            out,
            "  event at {}, decided at {} ({} ms later)",
            text(&s["event_time"]),
            text(&s["decided_at"]),
            text(&s["lag_ms"])
        )?;
        writeln!(
            out,
            "\nterms         policy {} version {}, limit {}, snapshot {}",
            text(&s["policy_id"]),
            text(&s["policy_version"]),
            text(&s["limit_id"]),
            text(&s["snapshot_id"])
        )?;
        for contributor in s["contributors"].as_array().into_iter().flatten() {
            let gave: Vec<String> = contributor["gave"].as_array().into_iter().flatten().map(text).collect();
            writeln!(out, "  {} gave {}", text(&contributor["policy_id"]), gave.join(", "))?;
        }
        for c in &self.considered {
            writeln!(
                out,
                "  considered {}/{} (precedence {}, max {}): {}: {}",
                text(&c["policy_id"]),
                text(&c["limit_id"]),
                text(&c["precedence"]),
                text(&c["max"]),
                text(&c["outcome"]),
                text(&c["why"])
            )?;
        }
        if let Some(sql) = &self.sql {
            writeln!(out, "\nsql")?;
            for line in sql.lines() {
                writeln!(out, "  {line}")?;
            }
        }
        let (count, events) = &self.events;
        if *count > 0 {
            writeln!(out, "\nevents        {count} of this {} within the window", text(&s["scope"]["kind"]))?;
            for (n, event) in events.iter().enumerate() {
                if n == SHOWN && *count > 2 * SHOWN {
                    writeln!(out, "  … {} more", count - 2 * SHOWN)?;
                }
                let place =
                    format!("{}/{}@{}", text(&event["topic"]), text(&event["partition"]), text(&event["offset"]));
                writeln!(out, "  {place}  {}", event["event"])?;
            }
        }
        self.write_again(out)
    }

    fn write_again(&self, out: &mut String) -> std::fmt::Result {
        match &self.again {
            Again::Same { steps, records, first, last, version } => {
                writeln!(
                    out,
                    "\nrun again     the same: {steps} steps ({first} to {last}, taken by {version}), {records} records"
                )
            }
            Again::Otherwise(why) => writeln!(out, "\nrun again     NOT the same: {why}"),
            Again::Not(why) => writeln!(out, "\nrun again     not possible: {why}"),
        }
    }
}
