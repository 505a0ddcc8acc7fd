//! Lessons (E1–E6): what failures, near misses and effortless successes teach, so that the next limit is better.
//!
//! Detects, debounces, keeps and changes lessons; who may ask for a change is the caller's business. A lesson is unique by (tenant,
//! source event, type): its id is made of them. Nothing here fails loudly: what cannot be recorded is counted (E5).

mod draft;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::clock::{Micros, SECOND, Wall};
use crate::decide::id::{self, time};
use crate::policy::Amount;

pub use self::draft::{command_id, draft};

/// Most lessons of a tenant. Beyond it those that are done with are forgotten, the oldest first; their records stay on the topic.
const MOST: usize = 10_000;
/// Near-threshold lessons and those of success are not repeated within this, of event time.
const DEBOUNCE: Micros = 24 * 3_600 * SECOND;
/// Most groups that debouncing remembers of a tenant.
const REMEMBERED: usize = 50_000;
/// Longest title and description, in characters (the columns of the seed).
const TITLE: usize = 500;
const TEXT: usize = 4_096;
/// A run that completes within this, of event time, has a success to show.
pub const QUICK: Micros = 5 * SECOND;
/// Highest utilisation of such a run, in percent.
pub const EASY: i128 = 30;
/// From this utilisation on, in percent, a limit is nearly reached.
pub const NEARLY: i128 = 85;

/// What a lesson is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LessonType {
    /// A run failed.
    Failure,
    /// A limit was nearly reached.
    NearThreshold,
    /// A run succeeded quickly and well below its limits.
    CriticalSuccess,
}

impl LessonType {
    /// Every type.
    pub const ALL: [Self; 3] = [Self::Failure, Self::NearThreshold, Self::CriticalSuccess];

    /// The JSON name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Failure => "failure",
            Self::NearThreshold => "near_threshold",
            Self::CriticalSuccess => "critical_success",
        }
    }
}

/// Where a lesson stands (E3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LessonStatus {
    /// Waits for a person.
    Pending,
    /// A draft proposal was made of it.
    ConvertedToDraft,
    /// Put off until a date.
    Deferred,
    /// Nothing will be made of it.
    Dismissed,
}

impl LessonStatus {
    /// The JSON name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::ConvertedToDraft => "converted_to_draft",
            Self::Deferred => "deferred",
            Self::Dismissed => "dismissed",
        }
    }

    fn is_terminal(self) -> bool {
        matches!(self, Self::ConvertedToDraft | Self::Dismissed)
    }
}

/// A lesson: the columns of the seed's `lessons_learned`, and a revision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Lesson {
    /// UUIDv5 of (tenant, source event, type).
    pub id: String,
    /// 1, 2, 3 …
    pub revision: u64,
    /// Tenant.
    pub tenant_id: String,
    /// failure near_threshold critical_success
    pub lesson_type: LessonType,
    /// CRITICAL HIGH MEDIUM LOW NONE, or null.
    pub severity: Option<String>,
    /// What it was learned from.
    pub source_event_id: String,
    /// run signal incident
    pub source_event_type: String,
    /// The run, if it was one.
    pub source_run_id: Option<String>,
    /// One line.
    pub title: String,
    /// In words, with the figures.
    pub description: String,
    /// What could be done.
    pub proposed_action: Option<String>,
    /// The figures; of a near threshold `{metric, band, limit_id, utilization_percent, current_value, threshold_value}`.
    pub detected_pattern: Value,
    /// pending converted_to_draft deferred dismissed
    pub status: LessonStatus,
    /// The proposal that was made of it.
    pub draft_proposal_id: Option<String>,
    /// The step's clock.
    #[serde(with = "time")]
    pub created_at: Micros,
    /// When a proposal was made of it.
    #[serde(with = "time::option")]
    pub converted_at: Option<Micros>,
    /// Until when it is put off.
    #[serde(with = "time::option")]
    pub deferred_until: Option<Micros>,
    /// When it was dismissed.
    #[serde(with = "time::option")]
    pub dismissed_at: Option<Micros>,
    /// By whom.
    pub dismissed_by: Option<String>,
    /// Why.
    pub dismissed_reason: Option<String>,
    /// Made up for a test.
    pub is_synthetic: bool,
    /// Of which scenario.
    pub synthetic_scenario_id: Option<String>,
}

/// What a lesson says, before it is one.
#[derive(Debug, Clone, PartialEq)]
pub struct Learned {
    /// Its type.
    pub kind: LessonType,
    /// Tenant.
    pub tenant: String,
    /// What it was learned from.
    pub source_event_id: String,
    /// run signal incident
    pub source_event_type: &'static str,
    /// The run.
    pub run: Option<String>,
    /// CRITICAL HIGH MEDIUM LOW NONE
    pub severity: Option<String>,
    /// One line.
    pub title: String,
    /// In words.
    pub description: String,
    /// What could be done.
    pub proposed_action: Option<String>,
    /// The figures.
    pub pattern: Value,
    /// Made up for a test.
    pub is_synthetic: bool,
    /// Of which scenario.
    pub scenario: Option<String>,
}

/// A band of utilisation, in percent: `[from, to)`.
pub fn band(value: Amount, max: Amount) -> Option<&'static str> {
    let reaches = |percent: i128| {
        // exact, as long as that fits; beyond it a few units of 10⁻⁹ do not matter
        match (value.0.checked_mul(100), max.0.checked_mul(percent)) {
            (Some(value), Some(line)) => value >= line,
            _ => value.0 / percent >= max.0 / 100,
        }
    };
    if max.0 <= 0 || reaches(100) || !reaches(NEARLY) {
        return None;
    }
    Some(match (reaches(95), reaches(90)) {
        (true, _) => "95-100",
        (_, true) => "90-95",
        _ => "85-90",
    })
}

/// What is not repeated within [`DEBOUNCE`]: of a near threshold the metric and the band, of a success the agent.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Group {
    /// Tenant.
    pub tenant: String,
    /// The type.
    pub kind: LessonType,
    /// Metric or agent.
    pub of: String,
    /// Band; empty for successes.
    pub band: String,
}

/// What debouncing remembers of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Event time of the latest lesson.
    pub at: Micros,
    /// How often it would have been repeated since.
    pub repeats: u64,
}

/// Why a lesson is not changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotChanged {
    /// There is no such lesson.
    Missing,
    /// It stands where there is no such step (E3).
    Illegal(LessonStatus),
    /// A date that has passed.
    Past,
}

/// The lessons of one partition.
#[derive(Debug, Default)]
pub struct Lessons {
    lessons: BTreeMap<(String, String), Lesson>,
    /// How many lessons a tenant has, and how many of them are done with.
    counts: BTreeMap<String, (usize, usize)>,
    seen: BTreeMap<Group, Seen>,
    /// Groups remembered, by tenant.
    groups: BTreeMap<String, usize>,
    deferred: BTreeSet<(Micros, (String, String))>,
    dirty: BTreeSet<(String, String)>,
    dirty_groups: BTreeSet<Group>,
    failed: [u64; 3],
}

impl Lessons {
    /// Records a lesson, unless it is known; `None`: it is, or there is no room, which is counted.
    pub fn record(&mut self, learned: Learned, now: Wall) -> Option<Lesson> {
        let Learned { kind, tenant, source_event_id, source_event_type, run, severity, .. } = learned;
        let lesson_id = id::of(&[&tenant, &source_event_id, kind.as_str()]);
        let key = (tenant, lesson_id);
        if self.lessons.contains_key(&key) {
            return None;
        }
        let (all, done) = self.counts.get(&key.0).copied().unwrap_or_default();
        if all >= MOST && (done == 0 || !self.forget_one(&key.0)) {
            self.failed[kind as usize] += 1;
            return None;
        }
        let cut = |text: String, most: usize| text.chars().take(most).collect::<String>();
        let lesson = Lesson {
            id: key.1.clone(),
            revision: 1,
            tenant_id: key.0.clone(),
            lesson_type: kind,
            severity,
            source_event_id,
            source_event_type: source_event_type.to_owned(),
            source_run_id: run,
            title: cut(learned.title, TITLE),
            description: cut(learned.description, TEXT),
            proposed_action: learned.proposed_action.map(|text| cut(text, TEXT)),
            detected_pattern: learned.pattern,
            status: LessonStatus::Pending,
            draft_proposal_id: None,
            created_at: now.0,
            converted_at: None,
            deferred_until: None,
            dismissed_at: None,
            dismissed_by: None,
            dismissed_reason: None,
            is_synthetic: learned.is_synthetic,
            synthetic_scenario_id: learned.scenario,
        };
        self.dirty.insert(key);
        self.restore(lesson.clone());
        Some(lesson)
    }

    /// Forgets the oldest lesson of a tenant that is done with.
    fn forget_one(&mut self, tenant: &str) -> bool {
        let of_tenant = self.lessons.range((tenant.to_owned(), String::new())..).take_while(|((t, _), _)| t == tenant);
        let done = of_tenant.filter(|(_, lesson)| lesson.status.is_terminal());
        let Some(key) = done.min_by_key(|(_, lesson)| lesson.created_at).map(|(key, _)| key.clone()) else {
            return false;
        };
        self.lessons.remove(&key);
        if let Some((all, done)) = self.counts.get_mut(tenant) {
            (*all, *done) = (all.saturating_sub(1), done.saturating_sub(1));
        }
        self.dirty.insert(key);
        true
    }

    /// Whether a group is due for another lesson at event time `at`; it then is not for 24 hours. What is not due is counted.
    pub fn is_due(&mut self, group: Group, at: Micros) -> bool {
        match self.seen.get_mut(&group) {
            Some(seen) if at < seen.at.saturating_add(DEBOUNCE) => {
                seen.repeats += 1;
                self.dirty_groups.insert(group);
                return false;
            }
            Some(seen) => *seen = Seen { at, repeats: 0 },
            None => {
                let held = self.groups.entry(group.tenant.clone()).or_default();
                if *held >= REMEMBERED {
                    self.failed[group.kind as usize] += 1;
                    return false;
                }
                *held += 1;
                self.seen.insert(group.clone(), Seen { at, repeats: 0 });
            }
        }
        self.dirty_groups.insert(group);
        true
    }

    /// Forgets groups of a tenant that are due anyway at its clock.
    pub fn expire(&mut self, tenant: &str, clock: Micros) {
        if !self.groups.contains_key(tenant) {
            return;
        }
        let from =
            Group { tenant: tenant.to_owned(), kind: LessonType::Failure, of: String::new(), band: String::new() };
        // long after: what is a little late must not teach again what was taught
        let over = |seen: &Seen| seen.at.saturating_add(2 * DEBOUNCE) <= clock;
        let of_tenant = self.seen.range(from..).take_while(|(group, _)| group.tenant == tenant);
        let gone: Vec<Group> = of_tenant.filter(|(_, seen)| over(seen)).map(|(group, _)| group.clone()).collect();
        for group in gone {
            self.seen.remove(&group);
            if let Some(held) = self.groups.get_mut(tenant) {
                *held = held.saturating_sub(1);
                if *held == 0 {
                    self.groups.remove(tenant);
                }
            }
            self.dirty_groups.insert(group);
        }
    }

    /// What debouncing remembers of a group.
    pub fn seen(&self, group: &Group) -> Option<&Seen> {
        self.seen.get(group)
    }

    /// A lesson.
    pub fn get(&self, tenant: &str, lesson_id: &str) -> Option<&Lesson> {
        self.lessons.get(&(tenant.to_owned(), lesson_id.to_owned()))
    }

    fn change(
        &mut self,
        tenant: &str,
        lesson_id: &str,
        from: &[LessonStatus],
        change: impl FnOnce(&mut Lesson),
    ) -> Result<Lesson, NotChanged> {
        let key = (tenant.to_owned(), lesson_id.to_owned());
        let lesson = self.lessons.get_mut(&key).ok_or(NotChanged::Missing)?;
        if !from.contains(&lesson.status) {
            return Err(NotChanged::Illegal(lesson.status));
        }
        if let Some(until) = lesson.deferred_until {
            self.deferred.remove(&(until, key.clone()));
        }
        lesson.revision += 1;
        change(lesson);
        let lesson = lesson.clone();
        if lesson.status.is_terminal() {
            self.counts.entry(key.0.clone()).or_default().1 += 1;
        }
        if let Some(until) = lesson.deferred_until.filter(|_| lesson.status == LessonStatus::Deferred) {
            self.deferred.insert((until, key.clone()));
        }
        self.dirty.insert(key);
        Ok(lesson)
    }

    /// A draft proposal is made of it.
    ///
    /// # Errors
    /// It is not pending.
    pub fn convert(&mut self, tenant: &str, lesson_id: &str, proposal: &str, now: Wall) -> Result<Lesson, NotChanged> {
        self.change(tenant, lesson_id, &[LessonStatus::Pending], |lesson| {
            lesson.status = LessonStatus::ConvertedToDraft;
            lesson.converted_at = Some(now.0);
            lesson.draft_proposal_id = Some(proposal.to_owned());
        })
    }

    /// It is put off until a date.
    ///
    /// # Errors
    /// It is not pending, or the date has passed.
    pub fn defer(&mut self, tenant: &str, lesson_id: &str, until: Micros, now: Wall) -> Result<Lesson, NotChanged> {
        if until <= now.0 {
            return Err(NotChanged::Past);
        }
        self.change(tenant, lesson_id, &[LessonStatus::Pending], |lesson| {
            lesson.status = LessonStatus::Deferred;
            lesson.deferred_until = Some(until);
        })
    }

    /// Nothing will be made of it.
    ///
    /// # Errors
    /// It is not pending.
    pub fn dismiss(
        &mut self,
        tenant: &str,
        lesson_id: &str,
        by: &str,
        reason: &str,
        now: Wall,
    ) -> Result<Lesson, NotChanged> {
        self.change(tenant, lesson_id, &[LessonStatus::Pending], |lesson| {
            lesson.status = LessonStatus::Dismissed;
            lesson.dismissed_at = Some(now.0);
            lesson.dismissed_by = Some(by.to_owned());
            lesson.dismissed_reason = Some(reason.chars().take(TEXT).collect());
        })
    }

    /// It waits for a person again.
    ///
    /// # Errors
    /// It is not deferred.
    pub fn reactivate(&mut self, tenant: &str, lesson_id: &str) -> Result<Lesson, NotChanged> {
        self.change(tenant, lesson_id, &[LessonStatus::Deferred], |lesson| {
            lesson.status = LessonStatus::Pending;
            lesson.deferred_until = None;
        })
    }

    /// When a deferred one comes back next, of the step clock.
    pub fn next_due(&self) -> Option<Micros> {
        self.deferred.first().map(|(at, _)| *at)
    }

    /// Those whose date has passed, which wait for a person again.
    pub fn pass(&mut self, now: Wall) -> Vec<Lesson> {
        let mut back = Vec::new();
        while let Some((_, key)) = self.deferred.first().filter(|(at, _)| *at <= now.0).cloned() {
            match self.reactivate(&key.0, &key.1) {
                Ok(lesson) => back.push(lesson),
                Err(_) => drop(self.deferred.pop_first()),
            }
        }
        back
    }

    /// How many could not be recorded since the last call, by type (`lessons_creation_failed_total`).
    pub fn take_failed(&mut self) -> [u64; 3] {
        std::mem::take(&mut self.failed)
    }

    /// How many are kept.
    pub fn len(&self) -> usize {
        self.lessons.len()
    }

    /// Whether none is kept.
    pub fn is_empty(&self) -> bool {
        self.lessons.is_empty()
    }

    /// Lessons changed since the last call; `None`: forgotten.
    pub fn take_changes(&mut self) -> Vec<((String, String), Option<&Lesson>)> {
        let dirty = std::mem::take(&mut self.dirty);
        dirty.into_iter().map(|key| (key.clone(), self.lessons.get(&key))).collect()
    }

    /// Groups changed since the last call; `None`: forgotten.
    pub fn take_groups(&mut self) -> Vec<(Group, Option<Seen>)> {
        let dirty = std::mem::take(&mut self.dirty_groups);
        dirty.into_iter().map(|group| (group.clone(), self.seen.get(&group).copied())).collect()
    }

    /// Makes the next `take_*` full ones.
    pub fn mark_all_dirty(&mut self) {
        self.dirty.extend(self.lessons.keys().cloned());
        self.dirty_groups.extend(self.seen.keys().cloned());
    }

    /// Takes one back.
    pub fn restore(&mut self, lesson: Lesson) {
        let key = (lesson.tenant_id.clone(), lesson.id.clone());
        let (all, done) = self.counts.entry(key.0.clone()).or_default();
        *all += 1;
        *done += usize::from(lesson.status.is_terminal());
        if let Some(until) = lesson.deferred_until.filter(|_| lesson.status == LessonStatus::Deferred) {
            self.deferred.insert((until, key.clone()));
        }
        self.lessons.insert(key, lesson);
    }

    /// Takes what debouncing remembers of a group back.
    pub fn restore_group(&mut self, group: Group, seen: Seen) {
        *self.groups.entry(group.tenant.clone()).or_default() += 1;
        self.seen.insert(group, seen);
    }
}

/// A result that stands in a band of a limit.
#[derive(Debug, Clone)]
pub struct Near<'a> {
    /// Tenant.
    pub tenant: &'a str,
    /// Metric.
    pub metric: &'a str,
    /// Whom it is about.
    pub scope: (&'a str, &'a str),
    /// Its run.
    pub run: Option<&'a str>,
    /// Policy and limit.
    pub limit: (&'a str, &'a str),
    /// The band.
    pub band: &'static str,
    /// The value.
    pub value: Amount,
    /// The limit.
    pub max: Amount,
    /// What names the window.
    pub window: (Micros, Micros),
    /// Made up for a test.
    pub is_synthetic: bool,
}

impl Near<'_> {
    /// The lesson.
    pub fn learned(&self) -> Learned {
        let (scope_kind, scope_id) = self.scope;
        let (policy, limit) = self.limit;
        let percent = percent(self.value, self.max);
        let severity = match self.band {
            "95-100" => "HIGH",
            "90-95" => "MEDIUM",
            _ => "LOW",
        };
        let bounds = [self.window.0, self.window.1].map(id::rfc3339);
        let source =
            id::of(&[self.tenant, policy, limit, self.metric, scope_kind, scope_id, &bounds[0], &bounds[1], self.band]);
        Learned {
            kind: LessonType::NearThreshold,
            tenant: self.tenant.to_owned(),
            source_event_id: source,
            source_event_type: "signal",
            run: self.run.map(str::to_owned),
            severity: Some(severity.into()),
            title: format!("{} of {scope_kind} {scope_id} stands at {} % of its limit", self.metric, self.band),
            description: format!(
                "{} reached {} of {} ({percent:.1} %) under policy {policy}, limit {limit}, without passing it.",
                self.metric, self.value, self.max
            ),
            proposed_action: Some(
                "Convert it to a draft to review a limit at which this use stands at 80 %, or dismiss it if the limit is meant to be close."
                    .into(),
            ),
            pattern: json!({
                "metric": self.metric, "band": self.band, "limit_id": limit, "utilization_percent": round(percent),
                "current_value": self.value, "threshold_value": self.max,
            }),
            is_synthetic: self.is_synthetic,
            scenario: None,
        }
    }
}

/// value ÷ max in percent, for people.
pub fn percent(value: Amount, max: Amount) -> f64 {
    if max.0 == 0 { 0.0 } else { value.0 as f64 * 100.0 / max.0 as f64 }
}

fn round(percent: f64) -> f64 {
    (percent * 100.0).round() / 100.0
}

/// A run that completed quickly and far below its limits.
#[derive(Debug, Clone)]
pub struct Success<'a> {
    /// Tenant.
    pub tenant: &'a str,
    /// Run.
    pub run: &'a str,
    /// Agent; empty: none.
    pub agent: &'a str,
    /// How long it took.
    pub took: Micros,
    /// The metric that came nearest to a limit, its value and the limit.
    pub highest: (&'a str, Amount, Amount),
    /// Event time of its end.
    pub ended: Micros,
    /// Made up for a test.
    pub is_synthetic: bool,
}

impl Success<'_> {
    /// The lesson.
    pub fn learned(&self) -> Learned {
        let (metric, value, max) = self.highest;
        let percent = percent(value, max);
        let took = self.took / 1_000;
        Learned {
            kind: LessonType::CriticalSuccess,
            tenant: self.tenant.to_owned(),
            source_event_id: self.run.to_owned(),
            source_event_type: "run",
            run: Some(self.run.to_owned()),
            severity: Some("NONE".into()),
            title: format!("run {} completed within {took} ms at {percent:.1} % of its limits", self.run),
            description: format!("It took {took} ms; nearest to a limit was {metric}: {value} of {max}."),
            proposed_action: Some(
                "Keep what it does as a practice; a tighter limit would hold it just as well.".into(),
            ),
            pattern: json!({
                "success_type": "quick_and_cheap", "agent_id": self.agent, "duration_ms": took, "metric": metric,
                "utilization_percent": round(percent), "current_value": value, "threshold_value": max,
            }),
            is_synthetic: self.is_synthetic,
            scenario: None,
        }
    }
}
