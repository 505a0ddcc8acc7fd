//! Made-up run telemetry: healthy agents, and five that misbehave in ways a reader recognises.
//!
//! A small simulation: every agent has its own random stream and its own next moment, so the events depend on the seed and the
//! start alone, not on how calls to [`Traffic::until`] cut the time. Event time is given by the caller.
//!
//! | who | what | from | metric that sees it |
//! |---|---|---|---|
//! | `acme-planner-loop` | its context grows with every step and never ends | 3 s | `run_tokens` |
//! | `initech-mailer` | every run fails after a moment, and its anomaly score climbs | 4 s | `agent_failures_5m`, `agent_anomaly_max_5m` |
//! | `globex-researcher` | an expensive model, no cached tokens | 5 s | `run_cost_usd` |
//! | `acme-key-ci` | one key asks 25 times a second | 6 s | `api_key_requests_1m` |
//! | a producer with a bug | a record that is not an event, every 7 s | 7 s | dead letters |

use std::collections::BTreeSet;

use chrono::{DateTime, SecondsFormat};
use serde_json::{Map, Value, json};

use crate::clock::{Micros, SECOND};

use super::random::Random;

const MILLISECOND: Micros = SECOND / 1_000;
/// Every agent says how it is this often.
const HEARTBEAT: Micros = 2 * SECOND;
/// Most events one call returns; call again for the rest.
pub const MAX_BATCH: usize = 10_000;
/// The tenants, in the order in which they are used.
const TENANTS: &[&str] = &["acme", "globex", "initech", "umbrella", "hooli", "stark", "wayne", "tyrell"];
/// What healthy agents do for a living.
const TRADES: &[&str] = &["coder", "writer", "support", "analyst", "reviewer", "translator"];

/// How much traffic, of whom, from when.
#[derive(Debug, Clone)]
pub struct Config {
    /// Same seed, same traffic.
    pub seed: u64,
    /// Tenants, 3 to 8; the misbehaving agents live at the first three.
    pub tenants: usize,
    /// Healthy agents of each tenant.
    pub agents: usize,
    /// Steps per second of all healthy agents together.
    pub rate: i64,
    /// Event time of the first events.
    pub start: Micros,
}

impl Config {
    /// The demo's traffic: about 90 events and 35 kB a second, all tenants together.
    pub fn demo(start: Micros) -> Self {
        Self { seed: 20_260, tenants: 3, agents: 8, rate: 40, start }
    }
}

/// One record to produce: keyed by its tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Record key.
    pub tenant: String,
    /// When it happened, as in the payload.
    pub time: Micros,
    /// The JSON object (or, from the producer with a bug, something that is none).
    pub payload: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Behaviour {
    Healthy,
    RunawayLoop,
    CostSpike,
    Failing,
    ChattyKey,
    BrokenProducer,
}

#[derive(Debug)]
struct Run {
    id: String,
    steps: i64,
    length: i64,
    said_first_token: bool,
}

#[derive(Debug)]
struct Agent {
    id: String,
    tenant: String,
    key: String,
    human: String,
    project: String,
    behaviour: Behaviour,
    random: Random,
    /// Mean time between steps.
    pace: Micros,
    runs: u64,
    events: u64,
    run: Option<Run>,
    next_heartbeat: Micros,
    /// Anomaly score × 100, and how often in a row it was high.
    anomaly: i64,
    readings: i64,
}

/// The generator.
#[derive(Debug)]
pub struct Traffic {
    agents: Vec<Agent>,
    /// Next moment of each agent.
    agenda: BTreeSet<(Micros, usize)>,
}

impl Traffic {
    /// A generator that stands at `config.start`. Tenants and agents out of range are brought into it.
    pub fn new(config: &Config) -> Self {
        let tenants = &TENANTS[..config.tenants.clamp(3, TENANTS.len())];
        let healthy = config.agents.clamp(1, 1_000);
        let count = i64::try_from(tenants.len() * healthy).unwrap_or(i64::MAX);
        let pace = (count * SECOND / config.rate.clamp(1, 1_000_000)).max(MILLISECOND);
        let mut plan = Vec::new();
        for tenant in tenants {
            for n in 0..healthy {
                let id = format!("{tenant}-{}-{}", TRADES[n % TRADES.len()], n / TRADES.len() + 1);
                plan.push((*tenant, id, format!("{tenant}-key-{n}"), Behaviour::Healthy, pace, 0));
            }
        }
        for (tenant, id, key, behaviour, pace_ms, from) in [
            ("acme", "acme-planner-loop", "acme-key-planner", Behaviour::RunawayLoop, 250, 3),
            ("initech", "initech-mailer", "initech-key-mail", Behaviour::Failing, 700, 4),
            ("globex", "globex-researcher", "globex-key-research", Behaviour::CostSpike, 600, 5),
            ("acme", "acme-ci-bot", "acme-key-ci", Behaviour::ChattyKey, 40, 6),
            ("globex", "globex-legacy", "globex-key-legacy", Behaviour::BrokenProducer, 7_000, 7),
        ] {
            plan.push((tenant, id.to_owned(), key.to_owned(), behaviour, pace_ms * MILLISECOND, from));
        }
        let mut agents = Vec::new();
        let mut agenda = BTreeSet::new();
        for (index, (tenant, id, key, behaviour, pace, from)) in plan.into_iter().enumerate() {
            let mut random = Random::new(config.seed, index as u64);
            // healthy agents do not all start at once
            let delay = if behaviour == Behaviour::Healthy { random.between(0, pace) } else { from * SECOND };
            let start = config.start + delay;
            agents.push(Agent {
                human: format!("{tenant}-user-{}", index % 4),
                project: format!("{tenant}-project-{}", index % 2),
                id,
                tenant: tenant.to_owned(),
                key,
                behaviour,
                random,
                pace,
                runs: 0,
                events: 0,
                run: None,
                next_heartbeat: start,
                anomaly: 5,
                readings: 0,
            });
            agenda.insert((start, index));
        }
        Self { agents, agenda }
    }

    /// The events up to and including `now` that were not returned before, by event time; at most [`MAX_BATCH`] and a few.
    pub fn until(&mut self, now: Micros) -> Vec<Event> {
        let mut out = Vec::new();
        while out.len() < MAX_BATCH {
            let Some(&(time, index)) = self.agenda.first().filter(|(time, _)| *time <= now) else { break };
            self.agenda.pop_first();
            let next = self.agents[index].act(time, &mut out);
            self.agenda.insert((next, index));
        }
        out
    }

    /// What a worker does when it is told to stop a run: the run ends at `now`. Returns the last event, or `None` when the run
    /// is not (or no longer) one of ours. The agent starts its next run later, as it always does.
    pub fn stop_run(&mut self, run_id: &str, now: Micros) -> Option<Event> {
        let (index, agent) =
            self.agents.iter_mut().enumerate().find(|(_, a)| a.run.as_ref().is_some_and(|r| r.id == run_id))?;
        let mut out = Vec::new();
        agent.fail(now, "STOPPED", "LOW", "stopped by an intervention", &mut out);
        self.rest(index, now);
        out.pop()
    }

    /// What a worker does when it is told to pause an agent: it rests for a while. `false` when the agent is not ours.
    pub fn pause_agent(&mut self, agent_id: &str, now: Micros) -> bool {
        let index = self.agents.iter().position(|a| a.id == agent_id);
        if let Some(index) = index {
            self.rest(index, now);
        }
        index.is_some()
    }

    fn rest(&mut self, index: usize, now: Micros) {
        self.agenda.retain(|(_, i)| *i != index);
        self.agenda.insert((now + 20 * SECOND, index));
    }
}

impl Agent {
    /// Everything the agent does at `time`; returns its next moment.
    fn act(&mut self, time: Micros, out: &mut Vec<Event>) -> Micros {
        if self.behaviour == Behaviour::BrokenProducer {
            let payload =
                format!("{{\"event_time\": \"{}\", \"event_type\": \"run.step\", tenant: globex", stamp(time));
            out.push(Event { tenant: self.tenant.clone(), time, payload });
            return time + self.pace;
        }
        if time >= self.next_heartbeat {
            self.heartbeat(time, out);
            self.next_heartbeat = time + HEARTBEAT;
        }
        let Some(run) = &mut self.run else {
            self.start(time, out);
            return time + self.random.around(300 * MILLISECOND, 50).min(self.pace);
        };
        if !run.said_first_token {
            run.said_first_token = true;
            self.emit(time, "run.first_token", Map::new(), out);
            return time + self.random.around(self.pace / 4, 40);
        }
        if self.behaviour == Behaviour::Failing {
            self.fail(time, "SMTP_TIMEOUT", "HIGH", "the mail server does not answer", out);
            return time + self.random.around(self.pace, 20);
        }
        self.step(time, out);
        let done = self.run.as_ref().is_some_and(|run| run.steps >= run.length);
        if !done {
            return time + self.random.around(self.pace, 40);
        }
        self.emit(time, "run.completed", Map::new(), out);
        self.run = None;
        // 1 in 3 healthy agents thinks a little longer before its next run
        let rests = if self.behaviour == Behaviour::Healthy { self.random.between(1, 3) } else { 8 };
        time + rests * self.pace
    }

    fn start(&mut self, time: Micros, out: &mut Vec<Event>) {
        self.runs += 1;
        let length = match self.behaviour {
            Behaviour::RunawayLoop => 60,
            Behaviour::CostSpike => 24,
            Behaviour::ChattyKey => 400,
            _ => self.random.between(4, 12),
        };
        let id = format!("{}-run-{}", self.id, self.runs);
        self.run = Some(Run { id, steps: 0, length, said_first_token: false });
        self.emit(time, "run.started", Map::new(), out);
    }

    fn step(&mut self, time: Micros, out: &mut Vec<Event>) {
        let Some(run) = &mut self.run else { return };
        run.steps += 1;
        let n = run.steps;
        let r = &mut self.random;
        // (provider, model, input, cached, output, micro-USD per thousand tokens of input and output)
        let (provider, model, input, cached, output, price_in, price_out) = match self.behaviour {
            // every turn sends the whole conversation again
            Behaviour::RunawayLoop => ("nimbus", "nimbus-2", 900 * n, 700 * (n - 1), r.around(250, 30), 800, 4_000),
            Behaviour::CostSpike => {
                ("meridian", "meridian-ultra", r.around(3_000, 20), 0, r.around(800, 20), 100_000, 400_000)
            }
            Behaviour::ChattyKey => ("nimbus", "nimbus-mini", r.around(120, 30), 0, r.around(10, 50), 100, 400),
            _ => {
                let input = 600 + 250 * n;
                ("nimbus", "nimbus-2", r.around(input, 20), input / 2, r.around(300, 40), 800, 4_000)
            }
        };
        let cached = cached.min(input);
        // cached tokens cost a tenth
        let cost = ((input - cached) * price_in + cached * price_in / 10 + output * price_out) / 1_000;
        let latency = 40 + output * 8 + r.between(0, 60);
        let risk = if self.behaviour == Behaviour::RunawayLoop { (10 + n).min(60) } else { r.between(1, 20) };
        let usage = json!({
            "provider": provider, "model": model, "input_tokens": input, "cached_tokens": cached,
            "output_tokens": output, "cost_usd": fraction(cost, 1_000_000), "latency_ms": latency,
            "risk_score": fraction(risk, 100),
        });
        let Value::Object(usage) = usage else { return };
        self.emit(time, "run.step", usage, out);
    }

    fn fail(&mut self, time: Micros, code: &str, severity: &str, message: &str, out: &mut Vec<Event>) {
        let more = json!({"error_code": code, "severity": severity, "error_message": message});
        if let Value::Object(more) = more {
            self.emit(time, "run.failed", more, out);
        }
        self.run = None;
    }

    fn heartbeat(&mut self, time: Micros, out: &mut Vec<Event>) {
        if self.behaviour == Behaviour::Failing {
            self.anomaly = (self.anomaly + 15).min(97);
        } else {
            self.anomaly = self.random.between(2, 30);
        }
        self.readings = if self.anomaly >= 50 { self.readings + 1 } else { 0 };
        let status = if self.anomaly >= 80 {
            "failed"
        } else if self.anomaly >= 50 {
            "degraded"
        } else {
            "healthy"
        };
        let more = json!({
            "health_status": status, "anomaly_score": fraction(self.anomaly, 100),
            "consecutive_anomalous_readings": self.readings, "capacity": 8,
        });
        let Value::Object(more) = more else { return };
        let run = self.run.take();
        self.emit(time, "agent.heartbeat", more, out);
        self.run = run;
    }

    fn emit(&mut self, time: Micros, event_type: &str, mut fields: Map<String, Value>, out: &mut Vec<Event>) {
        self.events += 1;
        let mut put = |name: &str, value: String| fields.insert(name.to_owned(), Value::String(value));
        put("event_id", format!("{}-{}", self.id, self.events));
        put("event_time", stamp(time));
        put("event_type", event_type.to_owned());
        put("tenant_id", self.tenant.clone());
        put("agent_id", self.id.clone());
        if let Some(run) = &self.run {
            put("run_id", run.id.clone());
            put("api_key_id", self.key.clone());
            put("human_actor_id", self.human.clone());
            put("project_id", self.project.clone());
        }
        out.push(Event { tenant: self.tenant.clone(), time, payload: Value::Object(fields).to_string() });
    }
}

/// RFC 3339 with exactly six decimals.
fn stamp(time: Micros) -> String {
    DateTime::from_timestamp_micros(time).unwrap_or_default().to_rfc3339_opts(SecondsFormat::Micros, true)
}

#[allow(clippy::cast_precision_loss, reason = "amounts of the demo stay far below 2^53")]
fn fraction(amount: i64, per: i64) -> f64 {
    amount as f64 / per as f64
}

#[cfg(test)]
mod tests;
