//! A core whose steps are made by hand: telemetry, outcomes, commands and time in, records out.

use std::collections::BTreeMap;
use std::sync::Arc;

use runwarden::cli::load;
use runwarden::clock::{SECOND, Wall};
use runwarden::decide::commands::{Command, Keyring};
use runwarden::kafka::core::{Core, Input, InputBatch, OutRecord, Record, StepInput, Topic};
use runwarden::pipeline::terms::Tuning;
use runwarden::pipeline::{Own, Partition, Settings};
use serde_json::{Value, json};

use super::texts;
use runwarden::cli::load::Texts;

/// 2026-01-05T00:00:00Z, a Monday, in seconds.
pub const DAY: i64 = 1_767_571_200;

/// What a step said.
pub struct Said(pub OutRecord);

impl Said {
    pub fn value(&self) -> Value {
        self.0.payload.as_deref().map_or(Value::Null, |payload| serde_json::from_slice(payload).unwrap())
    }

    pub fn kind(&self) -> String {
        let found = self.0.headers.iter().find(|(name, _)| name == "ce_type");
        found.map(|(_, value)| String::from_utf8_lossy(value).into_owned()).unwrap_or_default()
    }
}

/// The values on a topic.
pub fn on(said: &[Said], topic: Topic) -> Vec<Value> {
    said.iter().filter(|s| s.0.topic == topic).map(Said::value).collect()
}

/// `TYPE target STATE` of the interventions, without the guardian's events.
pub fn acts(said: &[Said]) -> Vec<String> {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let brief = |v: &Value| format!("{} {} {}", text(&v["type"]), text(&v["target"]["id"]), text(&v["state"]));
    on(said, Topic::Interventions).iter().filter(|v| v.get("revision").is_some()).map(brief).collect()
}

/// Tuning with the keys that [`Desk`] signs with.
pub fn tuning() -> Tuning {
    let mut keys = Keyring::default();
    keys.add("k", b"a key that both sides know", 5);
    keys.sign_own_with("k");
    Tuning { keys: Arc::new(keys), ..load::defaults() }
}

pub struct Desk {
    pub core: Partition,
    settings: Arc<Settings>,
    number: u64,
    offset: i64,
    commands: u64,
    pub at_end: bool,
    /// When what is read was appended, µs; 0: the broker does not say.
    pub appended: i64,
}

impl Desk {
    /// Under these policies.
    pub fn new(policies: &str) -> Self {
        Self::tuned(policies, tuning())
    }

    /// Under these policies and this tuning.
    pub fn tuned(policies: &str, tuning: Tuning) -> Self {
        let files: &[(&str, &str)] = &[("p.yaml", policies)];
        let files = if policies.is_empty() { &[] } else { files };
        Self::of(&texts(files), tuning)
    }

    /// Under all these files.
    pub fn of(texts: &Texts, tuning: Tuning) -> Self {
        let mut settings = load::build(texts, tuning).unwrap_or_else(|e| panic!("{e:?}")).settings;
        settings.future_at = Some(Wall(i64::MAX));
        let settings = Arc::new(settings);
        let core = Partition::new(Arc::clone(&settings), Own { partition: 0, partitions: 1 }).unwrap();
        Self { core, settings, number: 0, offset: 0, commands: 0, at_end: false, appended: 0 }
    }

    /// One step of records of one input, at `now` seconds after [`DAY`].
    pub fn step(&mut self, now: i64, input: Input, key: &str, payloads: &[Vec<u8>]) -> Vec<Said> {
        let mut records = Vec::new();
        for payload in payloads {
            let key = Some(key.as_bytes());
            records.push(Record {
                offset: self.offset,
                timestamp: self.appended,
                key,
                payload: Some(payload),
                headers: &[],
            });
            self.offset += 1;
        }
        self.number += 1;
        let inputs = vec![InputBatch { input, records, at_end: self.at_end }];
        let now = Wall((DAY + now) * SECOND);
        let input = StepInput { number: self.number, now, inputs, replaying: false, finish: false };
        self.core.step(&input).unwrap().records.into_iter().map(Said).collect()
    }

    pub fn telemetry(&mut self, now: i64, events: &[Value]) -> Vec<Said> {
        let payloads: Vec<Vec<u8>> = events.iter().map(|e| e.to_string().into_bytes()).collect();
        self.step(now, Input::Telemetry, "acme", &payloads)
    }

    pub fn report(&mut self, now: i64, intervention: &str, state: &str) -> Vec<Said> {
        let outcome = json!({"intervention_id": intervention, "state": state, "executor": "worker-1"});
        self.step(now, Input::Outcomes, "acme", &[outcome.to_string().into_bytes()])
    }

    /// A step in which only time passes.
    pub fn pass(&mut self, now: i64) -> Vec<Said> {
        self.telemetry(now, &[])
    }

    /// A signed command of tenant acme; its answer, and everything said.
    pub fn command(&mut self, now: i64, kind: &str, authority: u8, body: Value) -> (Value, Vec<Said>) {
        self.command_by(now, kind, "user:ada", authority, body)
    }

    pub fn command_by(
        &mut self,
        now: i64,
        kind: &str,
        principal: &str,
        authority: u8,
        body: Value,
    ) -> (Value, Vec<Said>) {
        self.commands += 1;
        let everyone = runwarden::decide::commands::known(kind)
            .is_some_and(|(writer, _)| writer == runwarden::decide::commands::Writer::Everyone);
        let command = Command {
            command_id: format!("c-{}", self.commands),
            kind: kind.into(),
            tenant_id: "acme".into(),
            principal: principal.into(),
            authority,
            issued_at: (DAY + now) * SECOND,
            body,
            key_id: None,
        };
        let payload = tuning().keys.sign(command, "k").unwrap();
        let said = self.step(now, Input::Commands, if everyone { "*" } else { "acme" }, &[payload]);
        let answer = on(&said, Topic::CommandResults).pop().unwrap();
        (answer, said)
    }

    /// Loses the process: a new one takes the checkpointed state back.
    pub fn crash(&mut self) {
        self.core.mark_all_dirty();
        let changes = self.core.take_changes();
        let mut core = Partition::new(Arc::clone(&self.settings), Own { partition: 0, partitions: 1 }).unwrap();
        for change in changes {
            if let Some(value) = change.value {
                core.restore(&change.key, &value).unwrap();
            }
        }
        core.restored().unwrap();
        self.core = core;
    }
}

/// An event of tenant acme at `at` seconds after [`DAY`].
pub fn event(at: i64, kind: &str, fields: Value) -> Value {
    let mut event = json!({"event_time": (DAY + at) * 1000, "event_type": kind, "tenant_id": "acme"});
    event.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    event
}

pub fn step_of(at: i64, run: &str, tokens: i64) -> Value {
    event(at, "run.step", json!({"run_id": run, "input_tokens": tokens}))
}

/// How often each text is there.
pub fn counted(texts: impl IntoIterator<Item = String>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for text in texts {
        *counts.entry(text).or_default() += 1;
    }
    counts
}
