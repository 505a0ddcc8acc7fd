//! Responses to the level of all (L3): the gates, and what is done at which level. Kept by the owner of `*`; the actions are executed
//! by a `serve` process that claims the response, so that one of them does.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::clock::{Micros, SECOND, Wall};
use crate::decide::id;
use crate::decide::records::{Level, ResponseOutcome, ResponsePlan};

/// A day.
const DAY: Micros = 24 * 3_600 * SECOND;

/// The actions that runwarden itself knows, with their levels, in order.
pub const ACTIONS: [(&str, Level); 5] = [
    ("integrity-schema-check", Level::Yellow),
    ("state-schema-check", Level::Yellow),
    ("full-integrity-check", Level::Red),
    ("cold-storage-verification", Level::Red),
    ("anchor-mirror", Level::Red),
];

/// `[respond]`, as far as decisions depend on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Responding {
    /// Whether a change of level is answered by more than a preview.
    pub auto_apply: bool,
    /// Most responses applied in 24 hours.
    pub max_responses: u32,
    /// Most trust locks lifted by hand in a day (UTC).
    pub max_unlocks: u32,
    /// The user's actions, with their levels, in order.
    pub actions: Vec<(String, Level)>,
}

impl Default for Responding {
    fn default() -> Self {
        Self { auto_apply: false, max_responses: 10, max_unlocks: 3, actions: Vec::new() }
    }
}

impl Responding {
    /// What is done at a level, ours first.
    pub fn actions_at(&self, level: Level) -> Vec<String> {
        let ours = ACTIONS.iter().filter(|(_, at)| *at == level).map(|(name, _)| (*name).to_owned());
        ours.chain(self.actions.iter().filter(|(_, at)| *at == level).map(|(name, _)| name.clone())).collect()
    }
}

/// A response whose actions are to be executed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Running {
    planned_at: Micros,
    /// Who executes it.
    executor: Option<String>,
    finished: bool,
}

/// Why a report of a response does not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    /// Nothing is known of it.
    #[error("no response of this id was to be applied within 24 hours")]
    Unknown,
    /// Another process executes it.
    #[error("{0} executes it")]
    Claimed(String),
    /// It has ended.
    #[error("it has ended")]
    Finished,
}

/// Why a response is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Cause<'a> {
    /// What makes it this one: the command's id, or the revision of the level.
    pub id: &'a str,
    /// Who asks.
    pub principal: &'a str,
    /// Why.
    pub reason: &'a str,
}

/// The state of responses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Responses {
    /// Whether nothing is applied at all.
    pub brake: bool,
    day: i64,
    unlocks: u32,
    applied: Vec<Micros>,
    revision: u64,
    running: BTreeMap<String, Running>,
}

impl Responses {
    /// Forgets what is older than a day.
    fn pass(&mut self, now: Wall) {
        let since = now.0.saturating_sub(DAY);
        self.applied.retain(|at| *at > since);
        self.running.retain(|_, running| running.planned_at > since);
        let day = now.0.div_euclid(DAY);
        if self.day != day {
            (self.day, self.unlocks) = (day, 0);
        }
    }

    /// The gates that are closed, in the order in which they are looked at: trust, brake, rate, unlocks.
    pub fn closed(&mut self, locked: &[&str], now: Wall, settings: &Responding) -> Vec<String> {
        self.pass(now);
        let (most, unlocks) = (settings.max_responses, settings.max_unlocks);
        let rate = self.applied.len() >= usize::try_from(most).unwrap_or(usize::MAX);
        let gates = [
            (!locked.is_empty()).then(|| {
                let (some, more) = locked.split_at(locked.len().min(5));
                let more = if more.is_empty() { String::new() } else { format!(" and {} more", more.len()) };
                format!("trust_locked: trust is locked ({}{more})", some.join(", "))
            }),
            self.brake.then(|| "safety_brake: the safety brake is on".to_owned()),
            rate.then(|| format!("rate_limit: {} responses in 24 hours, at most {most}", self.applied.len())),
            (self.unlocks > unlocks)
                .then(|| format!("manual_unlocks: {} manual unlocks today, at most {unlocks}", self.unlocks)),
        ];
        gates.into_iter().flatten().collect()
    }

    /// What is to be done at a level. One that is applied counts from here on.
    pub fn plan(
        &mut self,
        level: Level,
        apply: bool,
        locked: &[&str],
        now: Wall,
        settings: &Responding,
        cause: &Cause<'_>,
    ) -> ResponsePlan {
        let actions = settings.actions_at(level);
        let blocked_by = if actions.is_empty() { Vec::new() } else { self.closed(locked, now, settings) };
        let outcome = match (actions.is_empty(), apply, blocked_by.is_empty()) {
            (true, ..) => ResponseOutcome::Nothing,
            (_, false, _) => ResponseOutcome::Preview,
            (_, true, false) => ResponseOutcome::Blocked,
            (_, true, true) => ResponseOutcome::Apply,
        };
        let response_id = id::of(&["*", "respond", cause.id]);
        self.revision += 1;
        if outcome == ResponseOutcome::Apply {
            self.applied.push(now.0);
            let running = Running { planned_at: now.0, executor: None, finished: false };
            self.running.insert(response_id.clone(), running);
        }
        ResponsePlan {
            response_id,
            revision: self.revision,
            outcome,
            level,
            apply,
            actions,
            blocked_by,
            planned_at: now.0,
            principal: cause.principal.to_owned(),
            reason: cause.reason.to_owned(),
            reasons: Vec::new(),
        }
    }

    /// Counts an unlock, if there may be one more today; else how many there were.
    ///
    /// # Errors
    /// There were as many as there may be.
    pub fn unlock(&mut self, now: Wall, settings: &Responding) -> Result<u32, u32> {
        self.pass(now);
        if self.unlocks >= settings.max_unlocks {
            return Err(self.unlocks);
        }
        self.unlocks += 1;
        Ok(self.unlocks)
    }

    /// Lets the unlocks of the day begin anew; says how many there were.
    pub fn reset_unlocks(&mut self, now: Wall) -> u32 {
        self.pass(now);
        std::mem::take(&mut self.unlocks)
    }

    /// One process wants to execute a response: the first that does may.
    ///
    /// # Errors
    /// It is not to be executed, or another process does.
    pub fn claim(&mut self, response: &str, executor: &str, now: Wall) -> Result<(), Misfit> {
        self.pass(now);
        let running = self.running.get_mut(response).ok_or(Misfit::Unknown)?;
        match &running.executor {
            _ if running.finished => Err(Misfit::Finished),
            Some(other) if other != executor => Err(Misfit::Claimed(other.clone())),
            _ => {
                running.executor = Some(executor.to_owned());
                Ok(())
            }
        }
    }

    /// The process that claimed it has executed it.
    ///
    /// # Errors
    /// It had not claimed it, or has said so before.
    pub fn finish(&mut self, response: &str, executor: &str, now: Wall) -> Result<(), Misfit> {
        self.claim(response, executor, now)?;
        if let Some(running) = self.running.get_mut(response) {
            running.finished = true;
        }
        Ok(())
    }
}
