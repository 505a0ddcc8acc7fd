//! Levels: where each (limit, scope) stands, and when that changes (`contracts.md`, *Levels*; S1, S2).
//!
//! A rise passes through every level; at a level nothing repeats. Tumbling and session windows have one level per window,
//! which ends with its window. A hopping metric has one level per (limit, scope), which ends when a window closes under NEAR
//! later than every window that has reached NEAR. Decides nothing about signals' contents or actions: see `signals`.
//!
//! Invariant: the changes depend on the sequence of observations only, not on how they were batched.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::clock::Micros;
use crate::decide::id;
use crate::decide::records::{Ended, Kind};
use crate::policy::{Amount, EffectiveLimit};

/// How a metric's windows relate to levels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// One window at a time per group; its level ends with it.
    Tumble,
    /// Overlapping windows; one level over all of them.
    Hop,
    /// A window that can grow and merge.
    Session,
}

/// A limit on one scope: the line a value is held against. The order puts all limits of a (tenant, metric, scope) together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Line {
    /// Tenant.
    pub tenant: String,
    /// Metric name.
    pub metric: String,
    /// Value of the scope's key field.
    pub scope_id: String,
    /// Tenant of the policy (`*`: every tenant).
    pub policy_tenant: String,
    /// Policy id.
    pub policy_id: String,
    /// Limit id.
    pub limit_id: String,
    /// A new version of a policy starts its own levels.
    pub policy_version: u32,
}

/// A level that is up.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Up {
    /// NEAR or BREACH.
    pub level: Kind,
    /// The window as last seen.
    pub window: (Micros, Micros),
    /// Starts of the windows in which it rose: several after sessions merged. With the line they name the level, whatever
    /// its window becomes.
    pub began: BTreeSet<Micros>,
    /// Hopping: the latest end among all windows whose value has reached NEAR.
    pub hot_until: Micros,
    /// The highest value at a crossing or a close so far.
    pub peak: Amount,
    /// The limit as it was when the level rose.
    pub limit: Arc<EffectiveLimit>,
    /// Agent of the run, for correlation.
    pub agent: Option<String>,
    /// The crossing row was synthetic.
    pub is_synthetic: bool,
}

/// What a result row says of one limit.
#[derive(Debug, Clone)]
pub struct Judged {
    /// The limit.
    pub limit: Arc<EffectiveLimit>,
    /// `None` is below NEAR.
    pub level: Option<Kind>,
    /// value ÷ max
    pub utilization: Option<Amount>,
    /// value − max when positive
    pub overshoot: Option<Amount>,
    /// At the rate so far; `None`: nothing can be said.
    pub minutes_to_limit: Option<f64>,
    /// The forecast raised the level, not the value.
    pub forecast: bool,
}

/// One result of one group, early (after a row) or final (its window closed).
#[derive(Debug, Clone)]
pub struct Observation<'a> {
    /// Tenant.
    pub tenant: &'a str,
    /// Metric name.
    pub metric: &'a str,
    /// Its shape.
    pub shape: Shape,
    /// Value of the scope's key field.
    pub scope_id: &'a str,
    /// `[start, end)`; a run window ends at its marker.
    pub window: (Micros, Micros),
    /// Whether the window closed.
    pub closed: bool,
    /// Whether a closed session ended at its marker.
    pub run_ended: bool,
    /// Whether the window saw every row of its time. One that may lack rows can raise a level, never lower one.
    pub complete: bool,
    /// Agent of the run or the scope.
    pub agent: Option<&'a str>,
    /// The row was synthetic.
    pub is_synthetic: bool,
    /// Null when the window closed without a row.
    pub value: Option<Amount>,
    /// One entry per effective limit of the metric.
    pub judged: Vec<Judged>,
}

/// A change of a level.
#[derive(Debug, Clone)]
pub enum Change {
    /// It rose to `kind`.
    Raised {
        /// Which line.
        line: Line,
        /// Start of the window in which the level rose first.
        began: Micros,
        /// NEAR or BREACH.
        kind: Kind,
        /// With which figures.
        judged: Judged,
    },
    /// It ended.
    Ended {
        /// Which line.
        line: Line,
        /// The level as it stood.
        up: Box<Up>,
        /// Why.
        reason: Ended,
    },
}

/// All levels that are up, of one partition.
#[derive(Debug, Default)]
pub struct Levels {
    up: BTreeMap<Line, Vec<Up>>,
    dirty: BTreeSet<Line>,
}

impl Levels {
    /// Takes one observation and gives the changes it makes, in order.
    pub fn observe(&mut self, seen: &Observation<'_>) -> Vec<Change> {
        let mut changes = Vec::new();
        let mut judged_lines = BTreeSet::new();
        for judged in &seen.judged {
            let line = line(seen, &judged.limit);
            self.judge(seen, &line, judged, &mut changes);
            judged_lines.insert(line);
        }
        if seen.closed {
            self.close_rest(seen, &judged_lines, &mut changes);
        }
        changes
    }

    /// Ends every level whose limit `keep` refuses (another snapshot is in force).
    pub fn retain(&mut self, keep: impl Fn(&Line, &Up) -> bool) -> Vec<Change> {
        let mut changes = Vec::new();
        for (line, ups) in &mut self.up {
            let mut stay = Vec::new();
            for up in ups.drain(..) {
                if keep(line, &up) {
                    stay.push(up);
                } else {
                    self.dirty.insert(line.clone());
                    changes.push(Change::Ended { line: line.clone(), up: Box::new(up), reason: Ended::PolicyChanged });
                }
            }
            *ups = stay;
        }
        self.up.retain(|_, ups| !ups.is_empty());
        changes
    }

    /// Whether any limit of this (tenant, metric, scope) is up.
    pub fn any(&self, tenant: &str, metric: &str, scope_id: &str) -> bool {
        !self.up.is_empty() && self.lines_of(tenant, metric, scope_id).next().is_some()
    }

    /// How many levels are up.
    pub fn len(&self) -> usize {
        self.up.values().map(Vec::len).sum()
    }

    /// Whether none is up.
    pub fn is_empty(&self) -> bool {
        self.up.is_empty()
    }

    /// Whether a row of this (not hopping) window can change nothing any more: all `limits` of it are breached, so that the
    /// group's history need not be traced. Levels of limits that hold no longer do not count.
    pub fn settled<'l>(
        &self,
        tenant: &str,
        metric: &str,
        scope_id: &str,
        window: (Micros, Micros),
        limits: impl Iterator<Item = &'l EffectiveLimit>,
    ) -> bool {
        let breached: Vec<&Line> = self
            .lines_of(tenant, metric, scope_id)
            .filter(|(_, ups)| ups.iter().any(|u| u.level == Kind::Breach && u.window.0 == window.0))
            .map(|(line, _)| line)
            .collect();
        let mut limits = limits.peekable();
        limits.peek().is_some() && limits.all(|limit| breached.iter().any(|line| line.is_of(limit)))
    }

    fn lines_of<'a>(
        &'a self,
        tenant: &str,
        metric: &str,
        scope_id: &str,
    ) -> impl Iterator<Item = (&'a Line, &'a Vec<Up>)> + use<'a> {
        let from = Line {
            tenant: tenant.into(),
            metric: metric.into(),
            scope_id: scope_id.into(),
            policy_tenant: String::new(),
            policy_id: String::new(),
            limit_id: String::new(),
            policy_version: 0,
        };
        let key = (from.tenant.clone(), from.metric.clone(), from.scope_id.clone());
        self.up.range(from..).take_while(move |(l, _)| l.tenant == key.0 && l.metric == key.1 && l.scope_id == key.2)
    }

    fn judge(&mut self, seen: &Observation<'_>, line: &Line, judged: &Judged, changes: &mut Vec<Change>) {
        let Some(value) = seen.value else { return };
        if self.up.get(line).is_none_or(Vec::is_empty) && judged.level.is_none() {
            return;
        }
        let ups = self.up.entry(line.clone()).or_default();
        self.dirty.insert(line.clone());
        let at = absorb(ups, seen);
        if let Some(level) = judged.level {
            let at = at.unwrap_or_else(|| {
                ups.push(Up {
                    level: Kind::Near,
                    window: seen.window,
                    began: BTreeSet::from([seen.window.0]),
                    hot_until: seen.window.1,
                    peak: value,
                    limit: Arc::clone(&judged.limit),
                    agent: seen.agent.map(Into::into),
                    is_synthetic: seen.is_synthetic,
                });
                changes.push(raised(line, seen.window.0, Kind::Near, judged));
                ups.len() - 1
            });
            if let Some(up) = ups.get_mut(at) {
                up.hot_until = up.hot_until.max(seen.window.1);
                up.limit = Arc::clone(&judged.limit);
                // rows between crossings are not always traced, so they do not count: the peak is of crossings and finals
                if level > up.level || seen.closed {
                    up.peak = up.peak.max(value);
                }
                if level > up.level {
                    up.level = level;
                    let began = up.began.first().copied().unwrap_or(up.window.0);
                    changes.push(raised(line, began, level, judged));
                }
            }
        }
        let ends = seen.closed
            && match seen.shape {
                Shape::Hop => judged.level.is_none() && seen.complete,
                Shape::Tumble | Shape::Session => true,
            };
        if ends {
            let reason = match judged.level {
                None if seen.complete => Ended::Fixed,
                _ if seen.run_ended => Ended::RunEnded,
                _ => Ended::WindowReset,
            };
            end(ups, seen, line, reason, changes);
        }
        if self.up.get(line).is_some_and(Vec::is_empty) {
            self.up.remove(line);
        }
    }

    /// A window closed: levels of it that no judged limit stands for any more end with it, and so do those of a window that
    /// closed without a row.
    fn close_rest(&mut self, seen: &Observation<'_>, judged: &BTreeSet<Line>, changes: &mut Vec<Change>) {
        if seen.shape == Shape::Hop && seen.value.is_none() && !seen.complete {
            return;
        }
        let rest: Vec<Line> = self
            .lines_of(seen.tenant, seen.metric, seen.scope_id)
            .map(|(l, _)| l.clone())
            .filter(|l| !judged.contains(l))
            .collect();
        for line in rest {
            let reason = match seen.value {
                None if seen.complete => Ended::Fixed,
                None if seen.run_ended => Ended::RunEnded,
                None => Ended::WindowReset,
                Some(_) => Ended::PolicyChanged,
            };
            if let Some(ups) = self.up.get_mut(&line) {
                end(ups, seen, &line, reason, changes);
                if ups.is_empty() {
                    self.up.remove(&line);
                }
            }
            self.dirty.insert(line);
        }
    }

    /// Lines changed since the last call, with their state; `None`: nothing is up any more.
    pub fn take_changes(&mut self) -> Vec<(Line, Option<&Vec<Up>>)> {
        let dirty = std::mem::take(&mut self.dirty);
        dirty
            .into_iter()
            .map(|l| {
                let ups = self.up.get(&l);
                (l, ups)
            })
            .collect()
    }

    /// Makes the next [`Self::take_changes`] a full one.
    pub fn mark_all_dirty(&mut self) {
        self.dirty.extend(self.up.keys().cloned());
    }

    /// Takes a line back from a checkpoint.
    pub fn restore(&mut self, line: Line, ups: Vec<Up>) {
        self.up.insert(line, ups);
    }
}

fn line(seen: &Observation<'_>, limit: &EffectiveLimit) -> Line {
    Line {
        tenant: seen.tenant.into(),
        metric: seen.metric.into(),
        scope_id: seen.scope_id.into(),
        policy_tenant: limit.policy_tenant.to_string(),
        policy_id: limit.policy_id.to_string(),
        limit_id: limit.limit_id.to_string(),
        policy_version: limit.policy_version,
    }
}

impl Line {
    fn is_of(&self, limit: &EffectiveLimit) -> bool {
        self.policy_version == limit.policy_version
            && self.limit_id == *limit.limit_id
            && self.policy_id == *limit.policy_id
            && self.policy_tenant == *limit.policy_tenant
    }
}

/// What names one level for those that act upon it: its line and a window in which it rose. Unlike the window it does not
/// change while the level is up, and two windows of one line that overlap in time have two.
pub fn cause(line: &Line, began: Micros) -> String {
    let version = line.policy_version.to_string();
    let began = began.to_string();
    let Line { policy_tenant, policy_id, limit_id, metric, scope_id, .. } = line;
    [policy_tenant, policy_id, limit_id, &version, metric, scope_id, &began].map(|p| id::part(p)).join("/")
}

fn raised(line: &Line, began: Micros, kind: Kind, judged: &Judged) -> Change {
    Change::Raised { line: line.clone(), began, kind, judged: judged.clone() }
}

/// Whether the level that began in the window starting at `start` belongs to the window now seen.
fn belongs(seen: &Observation<'_>, up: &Up) -> bool {
    let (start, end) = seen.window;
    let began = up.window.0;
    match seen.shape {
        Shape::Hop => true,
        Shape::Tumble => began == start,
        // a session's first row stays in it whatever merges; a part split off begins after the marker
        Shape::Session => began == start || (start < began && began < end) || (seen.run_ended && began == end),
    }
}

/// Makes one level of all that belong to the observed window (merged sessions keep the higher one) and gives its index.
fn absorb(ups: &mut Vec<Up>, seen: &Observation<'_>) -> Option<usize> {
    let mut first: Option<usize> = None;
    let mut i = 0;
    while i < ups.len() {
        if !belongs(seen, &ups[i]) {
            i += 1;
            continue;
        }
        match first {
            None => {
                first = Some(i);
                i += 1;
            }
            Some(at) => {
                let other = ups.remove(i);
                let kept = &mut ups[at];
                kept.hot_until = kept.hot_until.max(other.hot_until);
                kept.peak = kept.peak.max(other.peak);
                kept.began.extend(other.began);
                if other.level > kept.level {
                    kept.level = other.level;
                    kept.limit = other.limit;
                }
            }
        }
    }
    if let Some(at) = first
        && seen.shape != Shape::Hop
    {
        ups[at].window = seen.window;
        if let (Some(value), true) = (seen.value, seen.closed) {
            ups[at].peak = ups[at].peak.max(value);
        }
    }
    first
}

fn end(ups: &mut Vec<Up>, seen: &Observation<'_>, line: &Line, reason: Ended, changes: &mut Vec<Change>) {
    let mut stay = Vec::with_capacity(ups.len());
    for up in ups.drain(..) {
        let over = belongs(seen, &up) && (seen.shape != Shape::Hop || seen.window.1 > up.hot_until);
        if over {
            changes.push(Change::Ended { line: line.clone(), up: Box::new(up), reason });
        } else {
            stay.push(up);
        }
    }
    *ups = stay;
}
