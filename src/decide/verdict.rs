//! Verdicts (I8): what holds a run now, as whoever asks before its next step must know it.
//!
//! A scope (a run, its agent, key, person, project, provider, tenant) is held by interventions on it and by limits that hold new work
//! back (QUEUE, DEGRADE, REJECT); the verdict on a run is the harshest over its scopes. Pure: records in, standing out. Records may come
//! twice and late, from the owner before they are committed and from the topics after: older ones change nothing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::clock::{Micros, SECOND};
use crate::decide::id::time;
use crate::decide::records::{Intervention, InterventionState as State, Kind, Signal};

/// What whoever asks is to do; the order is that of harshness.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Go on.
    Allow,
    /// Wait for a place.
    Queue,
    /// Go on with the fallback model.
    Degrade,
    /// Begin nothing new.
    Reject,
    /// Wait until resumed.
    Pause,
    /// End in good order.
    Stop,
    /// End at once.
    Kill,
}

impl Verdict {
    /// Every verdict, mildest first.
    pub const ALL: [Self; 7] =
        [Self::Allow, Self::Queue, Self::Degrade, Self::Reject, Self::Pause, Self::Stop, Self::Kill];

    /// The JSON name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Queue => "queue",
            Self::Degrade => "degrade",
            Self::Reject => "reject",
            Self::Pause => "pause",
            Self::Stop => "stop",
            Self::Kill => "kill",
        }
    }

    /// What an intervention of a type means for work of its target; `None`: nothing.
    fn of_intervention(kind: &str) -> Option<Self> {
        match kind {
            "PAUSE" | "AGENT_QUARANTINE" => Some(Self::Pause),
            "STOP" => Some(Self::Stop),
            "KILL" => Some(Self::Kill),
            _ => None,
        }
    }

    /// What the enforcement of a limit means for new work of its scope; `None`: nothing.
    fn of_enforcement(enforcement: &str) -> Option<Self> {
        match enforcement {
            "QUEUE" => Some(Self::Queue),
            "DEGRADE" => Some(Self::Degrade),
            "REJECT" => Some(Self::Reject),
            _ => None,
        }
    }
}

/// What holds a scope, and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Held {
    /// What follows.
    pub verdict: Verdict,
    /// In words.
    pub reason: String,
    /// The policy; empty: none.
    pub policy_id: String,
    /// The BREACH.
    pub signal_id: Option<String>,
    /// The intervention.
    pub intervention_id: Option<String>,
    /// Until when at the latest, where that is known.
    #[serde(with = "time::option")]
    pub until: Option<Micros>,
    /// For DEGRADE.
    pub fallback_model: Option<String>,
    /// When it was decided.
    #[serde(with = "time")]
    pub decided_at: Micros,
}

impl Held {
    /// Seconds until it ends by itself, rounded up.
    pub fn retry_after(&self, now: Micros) -> Option<i64> {
        self.until.map(|until| until.saturating_sub(now).max(0).saturating_add(SECOND - 1) / SECOND)
    }
}

/// Levels remembered of a scope, and interventions; those that are over go first.
const REMEMBERED: usize = 64;

#[derive(Debug, Clone, PartialEq)]
struct Order {
    revision: u64,
    created_at: Micros,
    /// A RESUME came after it.
    resumed: bool,
    /// `None`: it holds nothing, or no more; its revision is remembered.
    held: Option<Held>,
}

#[derive(Debug, Clone, PartialEq)]
struct Level {
    policy_id: String,
    limit_id: String,
    /// The BREACH.
    signal_id: String,
    window_end: Micros,
    ended: bool,
    /// Where the limit holds new work back.
    held: Option<Held>,
}

/// What holds one scope.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Holds {
    /// By intervention.
    orders: BTreeMap<String, Order>,
    /// In the order in which they were raised.
    levels: Vec<Level>,
    /// Of a run: what stopped it stands until it is reverted, whatever becomes of the level.
    is_run: bool,
    /// When something was last said of it.
    heard: Micros,
}

impl Holds {
    /// Of a scope of this kind.
    pub fn of(kind: &str) -> Self {
        Self { is_run: kind == "RUN", ..Self::default() }
    }

    /// Whether a record of an intervention can say anything here.
    pub fn concerns(record: &Intervention) -> bool {
        Verdict::of_intervention(&record.kind).is_some() || record.kind == "RESUME"
    }

    /// Takes a record of an intervention on the scope, at wall time `now`.
    pub fn intervention(&mut self, record: &Intervention, now: Micros) {
        self.heard = self.heard.max(now);
        if record.kind == "RESUME" {
            if matches!(record.state, State::Issued | State::Acknowledged | State::Succeeded) {
                let paused = |order: &&mut Order| {
                    let pauses = order.held.as_ref().is_some_and(|held| held.verdict == Verdict::Pause);
                    pauses && order.created_at <= record.created_at
                };
                self.orders.values_mut().filter(paused).for_each(|order| order.resumed = true);
            }
            return;
        }
        let Some(verdict) = Verdict::of_intervention(&record.kind) else { return };
        let known = self.orders.get(&record.intervention_id);
        if known.is_some_and(|order| order.revision >= record.revision) {
            return;
        }
        // one that nobody obeyed, or that failed, still says what should be
        let holds = match record.state {
            State::Issued | State::Acknowledged | State::Succeeded | State::TimedOut | State::Failed => true,
            State::Proposed | State::Rejected | State::Expired | State::Superseded | State::Reverted => false,
        };
        let order = Order {
            revision: record.revision,
            created_at: record.created_at,
            resumed: known.is_some_and(|order| order.resumed),
            held: holds.then(|| Held {
                verdict,
                reason: record.reason.clone(),
                policy_id: record.policy_id.clone(),
                signal_id: record.signal_id.clone(),
                intervention_id: Some(record.intervention_id.clone()),
                until: None,
                fallback_model: None,
                decided_at: record.created_at,
            }),
        };
        self.orders.insert(record.intervention_id.clone(), order);
        if self.orders.len() > REMEMBERED {
            let over = |order: &Order| order.held.is_none() || order.resumed;
            let first = self.orders.iter().min_by_key(|(_, order)| (!over(order), order.created_at));
            if let Some(id) = first.map(|(id, _)| id.clone()) {
                self.orders.remove(&id);
            }
        }
    }

    /// Takes a signal about the scope, at wall time `now`.
    pub fn signal(&mut self, signal: &Signal, now: Micros) {
        self.heard = self.heard.max(now);
        match signal.kind {
            Kind::Near => {}
            Kind::Resolved => {
                // the end of an earlier window is not the end of a later one
                let of = |level: &&mut Level| {
                    level.policy_id == signal.policy_id
                        && level.limit_id == signal.limit_id
                        && level.window_end <= signal.window_end
                };
                self.levels.iter_mut().filter(of).for_each(|level| level.ended = true);
            }
            Kind::Breach if self.levels.iter().any(|level| level.signal_id == signal.signal_id) => {}
            Kind::Breach => {
                if self.levels.len() >= REMEMBERED {
                    let first = self.levels.iter().position(|level| level.ended).unwrap_or_default();
                    self.levels.remove(first);
                }
                let verdict = Verdict::of_enforcement(&signal.enforcement).filter(|_| signal.mode == "BLOCK");
                let value = signal.value.map_or_else(|| "unknown".to_owned(), |value| value.to_string());
                self.levels.push(Level {
                    policy_id: signal.policy_id.clone(),
                    limit_id: signal.limit_id.clone(),
                    signal_id: signal.signal_id.clone(),
                    window_end: signal.window_end,
                    ended: false,
                    held: verdict.map(|verdict| Held {
                        verdict,
                        reason: format!("{} is {value}, limit {}", signal.metric, signal.limit),
                        policy_id: signal.policy_id.clone(),
                        signal_id: Some(signal.signal_id.clone()),
                        intervention_id: None,
                        until: signal.reject_until,
                        fallback_model: signal.fallback_model.clone(),
                        decided_at: signal.decided_at,
                    }),
                });
            }
        }
    }

    /// What holds the scope most.
    pub fn worst(&self, now: Micros) -> Option<&Held> {
        let ended = |held: &Held| {
            let of = |id: &String| self.levels.iter().any(|level| level.ended && level.signal_id == *id);
            !self.is_run && held.signal_id.as_ref().is_some_and(of)
        };
        let orders = self.orders.values().filter(|order| !order.resumed).filter_map(|order| order.held.as_ref());
        let levels = self.levels.iter().filter_map(|level| {
            let held = level.held.as_ref()?;
            (!level.ended || held.until.is_some_and(|until| until > now)).then_some(held)
        });
        // of equals the one that came first
        let harsher = |a: &&Held, b: &&Held| (a.verdict, b.decided_at).cmp(&(b.verdict, a.decided_at));
        orders.filter(|held| !ended(held)).chain(levels).max_by(harsher)
    }

    /// Whether nothing need be known of the scope any more: nothing holds it and nothing was said since `quiet`, or nothing was said
    /// since `forgotten`.
    pub fn is_over(&self, now: Micros, quiet: Micros, forgotten: Micros) -> bool {
        self.heard < forgotten || (self.heard < quiet && self.worst(now).is_none())
    }
}

#[cfg(test)]
mod tests;
