//! Silences (A3): made and ended by people, ended by time.

use serde_json::json;

use crate::clock::Micros;
use crate::policy::silence::{Matcher, Silence, SilenceStatus};

use super::{Act, By, Change, Effects, MOST, Refusal, Register, authority, within};

/// Least authority of who mutes notices (MONITOR).
const MONITOR: u8 = 3;

impl Register {
    /// Mutes the notices of a tenant's alerts that match, `*`: of everyone's, from now until `ends_at`.
    ///
    /// # Errors
    /// A matcher that can match nothing or everything, an end that has passed, no comment, less authority.
    pub fn silence(
        &mut self,
        tenant: &str,
        matchers: Vec<Matcher>,
        (starts_at, ends_at): (Micros, Micros),
        by: &By,
    ) -> Result<Effects, Refusal> {
        within(by, tenant)?;
        authority(by, MONITOR)?;
        if by.reason.is_empty() {
            return Err(Refusal::new("comment", "a silence says why: give `comment`"));
        }
        if let Some(fault) = Silence::fault(&matchers) {
            return Err(Refusal::new("matchers", fault));
        }
        if ends_at <= by.at.max(starts_at) {
            return Err(Refusal::new("ends_at", "a silence ends after it begins, and later than now"));
        }
        if self.silences.len() >= MOST {
            return Err(Refusal::new("too_many", format!("there are {MOST} silences")));
        }
        let silence = Silence {
            silence_id: by.command_id.clone(),
            revision: 0,
            tenant_id: tenant.to_owned(),
            status: SilenceStatus::Active,
            matchers,
            author: by.principal.clone(),
            comment: by.reason.clone(),
            starts_at: starts_at.max(by.at),
            ends_at,
            ended_by: None,
        };
        let result = json!({"silence_id": silence.silence_id, "ends_at": crate::clock::rfc3339(ends_at)});
        let mut effects = Effects { result, ..Effects::default() };
        self.write_silence("silence.created", silence, &by.reason, None, &mut effects);
        self.settle(by, &mut effects);
        Ok(effects)
    }

    /// Ends a silence before its time.
    ///
    /// # Errors
    /// It is not there or has ended, or less authority.
    pub fn unsilence(&mut self, silence_id: &str, by: &By) -> Result<Effects, Refusal> {
        authority(by, MONITOR)?;
        let held = self.silences.get(silence_id).filter(|s| by.tenant == "*" || by.tenant == s.tenant_id);
        let held = held.filter(|s| s.status == SilenceStatus::Active);
        let missing = || Refusal::new("not_found", format!("there is no silence {silence_id} that holds"));
        let ended = Silence {
            status: SilenceStatus::Expired,
            ends_at: by.at,
            ended_by: Some(by.principal.clone()),
            ..held.ok_or_else(missing)?.clone()
        };
        let result = json!({"silence_id": silence_id, "status": "EXPIRED"});
        let mut effects = Effects { result, ..Effects::default() };
        self.write_silence("silence.expired", ended, &by.reason, None, &mut effects);
        self.settle(by, &mut effects);
        Ok(effects)
    }

    /// Ends those whose time is over, and forgets those that ended long ago.
    pub(super) fn expire_silences(&mut self, by: &By, effects: &mut Effects) {
        let over = |s: &&Silence| s.status == SilenceStatus::Active && s.ends_at <= by.at;
        let over: Vec<Silence> = self.silences.values().filter(over).cloned().collect();
        for silence in over {
            let ended = Silence { status: SilenceStatus::Expired, ..silence };
            self.write_silence("silence.expired", ended, &by.reason, Some(&by.principal), effects);
        }
        let old =
            |s: &&Silence| s.status == SilenceStatus::Expired && s.ends_at.saturating_add(super::ENDED_KEPT) <= by.at;
        let old: Vec<(String, String)> =
            self.silences.values().filter(old).map(|s| (s.tenant_id.clone(), s.silence_id.clone())).collect();
        for (tenant, id) in old {
            self.silences.remove(&id);
            self.dirty.insert(vec!["silence".into(), id.clone()]);
            effects.changes.push(Change::gone(tenant, "silence", vec![id]));
        }
    }

    /// Those that hold, or will.
    pub(super) fn silences_in_force(&self) -> Vec<Silence> {
        self.silences.values().filter(|s| s.status == SilenceStatus::Active).cloned().collect()
    }

    fn write_silence(
        &mut self,
        kind: &'static str,
        mut silence: Silence,
        reason: &str,
        principal: Option<&str>,
        effects: &mut Effects,
    ) {
        silence.revision += 1;
        let (tenant, id) = (silence.tenant_id.clone(), silence.silence_id.clone());
        effects.changes.push(Change::of(&tenant, "silence", vec![id.clone()], silence.revision, &silence));
        effects.acts.push(Act {
            kind,
            subject: "silence",
            id: id.clone(),
            tenant,
            principal: principal.map(str::to_owned),
            before: self.silences.get(&id).map_or(serde_json::Value::Null, |s| json!(s)),
            after: json!(silence),
            reason: reason.to_owned(),
        });
        self.dirty.insert(vec!["silence".into(), id.clone()]);
        self.silences.insert(id, silence);
    }
}
