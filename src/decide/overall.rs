//! The level of all (L1): that of the samples sent under tenant `*`, else that of the worst tenant. Kept by the owner of `*`, to
//! which every tenant's owner reports by `level.report`.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::clock::{Micros, Wall};
use crate::decide::level::{Levels, OVERALL};
use crate::decide::records::{Level, PolicyLevel};

/// What is reported of a tenant: body of `level.report`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// How it stands.
    pub level: PolicyLevel,
    /// Event time of the latest word on its trust lock, µs.
    pub trust_at: Option<Micros>,
}

/// A report, and what was done about its trust lock.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    report: Report,
    /// The lock said at this event time, or before, is lifted: until a later sample says otherwise.
    lifted: Option<Micros>,
}

impl Kept {
    fn is_locked(&self) -> bool {
        self.report.level.inputs.trust_locked && !self.is_lifted()
    }

    fn is_lifted(&self) -> bool {
        self.report.level.inputs.trust_locked
            && self.lifted.is_some_and(|lifted| self.report.trust_at.is_none_or(|at| at <= lifted))
    }
}

/// What is known of all tenants.
#[derive(Default)]
pub struct Overall {
    tenants: BTreeMap<String, Kept>,
    dirty: BTreeSet<String>,
    /// As last published.
    pub last: Option<PolicyLevel>,
    /// Whether that changed since it was last written away.
    pub last_dirty: bool,
}

impl Overall {
    /// Takes a report. `false`: it is known, or an older one.
    pub fn take(&mut self, report: Report) -> bool {
        let tenant = report.level.tenant_id.clone();
        let rank = |r: &Report| (r.level.revision, r.trust_at);
        let known = self.tenants.get(&tenant);
        if known.is_some_and(|kept| rank(&kept.report) >= rank(&report)) {
            return false;
        }
        let lifted = known.and_then(|kept| kept.lifted);
        self.dirty.insert(tenant.clone());
        self.tenants.insert(tenant, Kept { report, lifted });
        true
    }

    /// Whether samples are sent under tenant `*`.
    pub fn is_sampled(&self) -> bool {
        self.tenants.contains_key(OVERALL)
    }

    /// Who has trust locked: of samples under `*` that one, else each tenant.
    pub fn locked(&self) -> Vec<&str> {
        let counts = |tenant: &str| !self.is_sampled() || tenant == OVERALL;
        let locked = self.tenants.iter().filter(|(tenant, kept)| counts(tenant) && kept.is_locked());
        locked.map(|(tenant, _)| tenant.as_str()).collect()
    }

    /// Lifts the trust lock of all, until a later sample says otherwise; says whose it was.
    pub fn lift(&mut self) -> Vec<String> {
        let mut lifted = Vec::new();
        for (tenant, kept) in &mut self.tenants {
            if kept.is_locked() {
                kept.lifted = Some(kept.report.trust_at.unwrap_or(Micros::MAX));
                self.dirty.insert(tenant.clone());
                lifted.push(tenant.clone());
            }
        }
        lifted
    }

    /// How all stand now, if that differs from what was published last: it counts as published then.
    pub fn next(&mut self, levels: &mut Levels, now: Wall) -> Option<(PolicyLevel, Option<Level>)> {
        let mut standing = |kept: &Kept| {
            let mut level = kept.report.level.clone();
            if kept.is_lifted() {
                level.inputs.trust_locked = false;
                (level.policy, level.reasons) = levels.judge(&level.inputs, level.missing.len());
                level.reasons.push("the trust lock was lifted by hand".to_owned());
            }
            level
        };
        let own = self.tenants.get(OVERALL).map(&mut standing);
        let worst = |standing: &mut dyn FnMut(&Kept) -> PolicyLevel| {
            let others = self.tenants.iter().filter(|(tenant, _)| *tenant != OVERALL);
            others.map(|(_, kept)| standing(kept)).min_by_key(|level| level.policy.rank())
        };
        // blind samples of all say nothing that tenants do not say better
        let chosen = match own {
            Some(own) if own.policy != Level::Unknown => Some(own),
            own => worst(&mut standing).or(own),
        };
        let mut level = chosen?;
        if level.tenant_id != OVERALL {
            let tenant = std::mem::replace(&mut level.tenant_id, OVERALL.to_owned());
            level.reasons = level.reasons.iter().map(|reason| format!("{tenant}: {reason}")).collect();
        }
        level.evaluated_at = now.0;
        level.revision = self.last.as_ref().map_or(1, |last| last.revision + 1);
        let said = |l: &PolicyLevel| (l.policy, l.inputs.clone(), l.thresholds, l.reasons.clone(), l.missing.clone());
        if self.last.as_ref().is_some_and(|last| said(last) == said(&level)) {
            return None;
        }
        let before = self.last.as_ref().map(|last| last.policy);
        self.last = Some(level.clone());
        self.last_dirty = true;
        Some((level, before))
    }

    /// The tenants whose reports changed since the last call.
    pub fn take_changes(&mut self) -> Vec<(String, &Kept)> {
        let dirty = std::mem::take(&mut self.dirty);
        let tenants = &self.tenants;
        dirty.into_iter().filter_map(|tenant| tenants.get(&tenant).map(|kept| (tenant, kept))).collect()
    }

    /// Makes the next [`Self::take_changes`] a full one.
    pub fn mark_all_dirty(&mut self) {
        self.dirty.extend(self.tenants.keys().cloned());
        self.last_dirty = self.last.is_some();
    }

    /// Takes a report back.
    pub fn restore(&mut self, kept: Kept) {
        self.tenants.insert(kept.report.level.tenant_id.clone(), kept);
    }
}
