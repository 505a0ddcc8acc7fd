//! A partition's state as keyed bytes and back.
//!
//! A key is a tag byte and the parts of what it names, percent-encoded and joined by `/`; window and duplicate state keep their
//! own keys behind their tag. A value is `[version][crc32][payload]`; another version is refused with a clear message and a
//! wrong checksum is an error: state is never misread.

use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::clock::Micros;
use crate::decide::blindness::Sight;
use crate::decide::breaker::{Governed, Lately};
use crate::decide::correlation::Open;
use crate::decide::entities::Entity;
use crate::decide::id::part;
use crate::decide::interventions::stopped::Stopped;
use crate::decide::interventions::{Live, Slot};
use crate::decide::lessons::{Group, Lesson, Seen};
use crate::decide::level::TenantLevel;
use crate::decide::levels::{Line, Up};
use crate::kafka::core::{CoreError, StateChange};
use crate::pipeline::activity::Active;
use crate::pipeline::clocks::Clock;
use crate::pipeline::ends::Notes;
use crate::pipeline::partition::{Meta, Partition};
use crate::pipeline::rollups::Minutes;
use crate::pipeline::runs::Run;
use crate::pipeline::writer::Answer;
use crate::policy::{Entity as EntityKind, Item, Snapshot};

/// Version of the payloads written here.
const VERSION: u8 = 1;

pub(super) const WINDOWS: u8 = b'W';
pub(super) const MEMBERS: u8 = b'C';
pub(super) const DEDUP: u8 = b'D';
pub(super) const ALERTS: u8 = b'A';
pub(super) const INTERVENTIONS: u8 = b'I';
pub(super) const BREAKERS: u8 = b'X';
/// What was said and done about a run.
pub(super) const NOTES: u8 = b'O';
/// Runs that are active.
pub(super) const ACTIVITY: u8 = b'H';
pub(super) const LESSONS: u8 = b'N';
/// When a lesson was learned last.
pub(super) const DEBOUNCE: u8 = b'B';
/// Runs that were stopped.
pub(super) const STOPPED: u8 = b'Z';
pub(super) const LEVELS: u8 = b'L';
/// Windows that the live topic shows.
pub(super) const LIVE: u8 = b'F';
pub(super) const ENTITIES: u8 = b'E';
pub(super) const RUNS: u8 = b'R';
pub(super) const CLOCKS: u8 = b'T';
pub(super) const SNAPSHOTS: u8 = b'S';
pub(super) const META: u8 = b'P';
/// The register of policies: of the owner of `*` only.
pub(super) const REGISTER: u8 = b'G';
/// The silences in force.
pub(super) const SILENCES: u8 = b'Q';
/// The answers to commands, by key and id.
pub(super) const ANSWERS: u8 = b'K';

/// How each tenant stands.
pub(super) const TENANT_LEVELS: u8 = b'V';
/// How well each tenant is seen.
pub(super) const SIGHTS: u8 = b'U';
/// What was done in minutes that are not over.
pub(super) const ROLLUPS: u8 = b'J';
/// How all stand, and what is done about it: of the owner of `*` only.
pub(super) const OVERALL: u8 = b'Y';

fn key(tag: u8, parts: &[&str]) -> Vec<u8> {
    let mut key = vec![tag];
    key.extend(parts.iter().map(|p| part(p)).collect::<Vec<_>>().join("/").into_bytes());
    key
}

pub(super) fn raw_key(tag: u8, rest: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(rest.len() + 1);
    key.push(tag);
    key.extend_from_slice(rest);
    key
}

fn wrap(payload: &[u8]) -> Vec<u8> {
    let mut value = Vec::with_capacity(payload.len() + 5);
    value.push(VERSION);
    value.extend_from_slice(&crc32fast::hash(payload).to_le_bytes());
    value.extend_from_slice(payload);
    value
}

pub(super) fn refuse(message: impl Into<String>) -> CoreError {
    CoreError { context: "cannot take checkpointed state back", message: message.into() }
}

fn unwrap(value: &[u8]) -> Result<&[u8], CoreError> {
    let Some((&version, rest)) = value.split_first() else { return Err(refuse("an empty value")) };
    if version != VERSION {
        return Err(refuse(format!("state of version {version}; this program reads version {VERSION}")));
    }
    let Some((crc, payload)) = rest.split_first_chunk::<4>() else { return Err(refuse("a truncated value")) };
    if crc32fast::hash(payload) != u32::from_le_bytes(*crc) {
        return Err(refuse("the checksum does not match"));
    }
    Ok(payload)
}

fn json<T: Serialize>(value: &T) -> Result<Vec<u8>, CoreError> {
    serde_json::to_vec(value).map(|p| wrap(&p)).map_err(|e| refuse(e.to_string()))
}

pub(super) fn from_json<T: DeserializeOwned>(value: &[u8]) -> Result<T, CoreError> {
    serde_json::from_slice(unwrap(value)?).map_err(|e| refuse(e.to_string()))
}

#[derive(Default)]
pub(super) struct Changes(pub(super) Vec<StateChange>);

impl Changes {
    /// What cannot be encoded is left out of the checkpoint: the older value and the recorded steps still give it back.
    fn put<T: Serialize>(&mut self, key: Vec<u8>, value: Option<&T>) {
        match value.map(json) {
            Some(Ok(value)) => self.0.push(StateChange { key, value: Some(value) }),
            Some(Err(error)) => tracing::error!(%error, "a state record was left out of the checkpoint"),
            None => self.0.push(StateChange { key, value: None }),
        }
    }

    fn raw(&mut self, tag: u8, changes: Vec<(Vec<u8>, Option<Vec<u8>>)>) {
        let change = |(k, value): (Vec<u8>, _)| StateChange { key: raw_key(tag, &k), value };
        self.0.extend(changes.into_iter().map(change));
    }
}

impl Partition {
    /// Everything that changed since the last call.
    pub(super) fn changes(&mut self) -> Vec<StateChange> {
        let mut out = Changes::default();
        out.raw(WINDOWS, self.engine.take_changes());
        out.raw(MEMBERS, self.correlation.take_window_changes());
        self.other_changes(&mut out);
        if !self.gone.is_empty() {
            let known: std::collections::HashSet<&[u8]> = out.0.iter().map(|c| c.key.as_slice()).collect();
            let gone: Vec<Vec<u8>> = std::mem::take(&mut self.gone);
            let gone: Vec<Vec<u8>> = gone.into_iter().filter(|key| !known.contains(key.as_slice())).collect();
            out.0.extend(gone.into_iter().map(|key| StateChange { key, value: None }));
        }
        out.0
    }

    /// Those outside the windows.
    pub(super) fn other_changes(&mut self, out: &mut Changes) {
        out.raw(DEDUP, self.dedup.take_changes());
        for ((tenant, correlation_key), open) in self.correlation.take_changes() {
            let value = open.map(|o| (tenant.clone(), correlation_key.clone(), o));
            out.put(key(ALERTS, &[&tenant, &correlation_key]), value.as_ref());
        }
        for (slot, live) in self.interventions.take_changes() {
            let name = key(INTERVENTIONS, &[&slot.tenant, &slot.kind, &slot.target.kind, &slot.target.id]);
            out.put(name, live.map(|l| (&slot, l)).as_ref());
        }
        for ((tenant, run), mark) in self.interventions.take_stopped() {
            out.put(key(STOPPED, &[&tenant, &run]), mark.map(|m| (&tenant, &run, m)).as_ref());
        }
        for ((tenant, run), notes) in self.notes.take_changes() {
            out.put(key(NOTES, &[&tenant, &run]), notes.map(|notes| (&tenant, &run, notes)).as_ref());
        }
        for (tenant, active) in self.activity.take_changes() {
            out.put(key(ACTIVITY, &[&tenant]), active.map(|active| (&tenant, active)).as_ref());
        }
        for (policy, lately) in self.breakers.take_changes() {
            let name = key(BREAKERS, &[&policy.tenant, &policy.policy_tenant, &policy.policy_id]);
            out.put(name, lately.map(|lately| (&policy, lately)).as_ref());
        }
        for ((tenant, id), lesson) in self.lessons.take_changes() {
            out.put(key(LESSONS, &[&tenant, &id]), lesson);
        }
        for (group, seen) in self.lessons.take_groups() {
            let name = key(DEBOUNCE, &[&group.tenant, group.kind.as_str(), &group.of, &group.band]);
            out.put(name, seen.map(|seen| (&group, seen)).as_ref());
        }
        for (line, ups) in self.levels.take_changes() {
            let version = line.policy_version.to_string();
            let parts = [
                &line.tenant,
                &line.metric,
                &line.scope_id,
                &line.policy_tenant,
                &line.policy_id,
                &line.limit_id,
                &version,
            ];
            out.put(key(LEVELS, &parts.map(String::as_str)), ups.map(|u| (&line, u)).as_ref());
        }
        for (name, window) in self.live.take_changes(&self.plans) {
            let parts = name.each_ref().map(String::as_str);
            out.put(key(LIVE, &parts), window.map(|window| (&name, window)).as_ref());
        }
        for ((tenant, run), state) in self.runs.take_changes() {
            out.put(key(RUNS, &[&tenant, &run]), state.map(|s| (&tenant, &run, s)).as_ref());
        }
        for ((tenant, kind, id), entity) in self.standing.entities.take_changes() {
            let name = key(ENTITIES, &[&tenant, kind.as_str(), &id]);
            out.put(name, entity.map(|e| (&tenant, kind, &id, e)).as_ref());
        }
        for (tenant, clock) in self.clocks.take_changes() {
            out.put(key(CLOCKS, &[&tenant]), Some(&(&tenant, clock)));
        }
        for id in std::mem::take(&mut self.dirty_snapshots) {
            let held = self.limits.snapshots().find(|s| *s.id() == id).map(|s| s.to_json());
            out.put(key(SNAPSHOTS, &[&id]), held.as_ref());
        }
        for (name, item) in self.writer.register.take_changes() {
            let parts: Vec<&str> = name.iter().map(String::as_str).collect();
            out.put(key(REGISTER, &parts), item.as_ref());
        }
        for ((tenant, id), answer) in self.writer.take_answers() {
            out.put(key(ANSWERS, &[&tenant, &id]), answer);
        }
        for (tenant, level) in self.tenant_levels.take_changes() {
            out.put(key(TENANT_LEVELS, &[&tenant]), Some(&(&tenant, level)));
        }
        for (tenant, sight) in self.sights.take_changes() {
            out.put(key(SIGHTS, &[&tenant]), sight.map(|sight| (&tenant, sight)).as_ref());
        }
        for (tenant, minutes) in self.rollups.take_changes() {
            out.put(key(ROLLUPS, &[&tenant]), minutes.map(|minutes| (&tenant, minutes)).as_ref());
        }
        for (tenant, kept) in self.overall.take_changes() {
            out.put(key(OVERALL, &["*", "tenant", &tenant]), Some(&("tenant", kept)));
        }
        if std::mem::take(&mut self.overall.last_dirty) {
            let last = self.overall.last.as_ref().map(|last| ("level", last));
            out.put(key(OVERALL, &["*", "level"]), last.as_ref());
        }
        if std::mem::take(&mut self.responses_dirty) {
            out.put(key(OVERALL, &["*", "responses"]), Some(&("responses", &self.responses)));
        }
        if self.silences_dirty {
            out.put(key(SILENCES, &["in-force"]), Some(&*self.silences));
            self.silences_dirty = false;
        }
        out.put(key(META, &["partition"]), Some(&self.meta));
        self.checkpoint_due = false;
    }

    /// Makes the next [`Self::changes`] a full one.
    pub(super) fn all_dirty(&mut self) {
        self.engine.mark_all_dirty();
        self.correlation.mark_all_dirty();
        self.dedup.mark_all_dirty();
        self.interventions.mark_all_dirty();
        self.lessons.mark_all_dirty();
        self.breakers.mark_all_dirty();
        self.activity.mark_all_dirty();
        self.notes.mark_all_dirty();
        self.levels.mark_all_dirty();
        self.live.mark_all_dirty();
        self.standing.entities.mark_all_dirty();
        self.runs.mark_all_dirty();
        self.clocks.mark_all_dirty();
        self.writer.mark_all_dirty();
        self.tenant_levels.mark_all_dirty();
        self.overall.mark_all_dirty();
        self.sights.mark_all_dirty();
        self.rollups.mark_all_dirty();
        self.responses_dirty = true;
        self.silences_dirty = true;
        let ids = self.limits.snapshots().map(|s| Arc::clone(s.id())).collect::<Vec<_>>();
        self.dirty_snapshots.extend(ids);
    }

    /// Takes one key back.
    pub(super) fn take_back(&mut self, key: &[u8], value: &[u8]) -> Result<(), CoreError> {
        let Some((&tag, rest)) = key.split_first() else { return Err(refuse("an empty key")) };
        match tag {
            WINDOWS => self.engine.restore(rest, value).map_err(|e| refuse(e.to_string())),
            MEMBERS => self.correlation.restore_window(rest, value).map_err(|e| refuse(e.to_string())),
            DEDUP => self.dedup.restore(rest, value).map_err(|e| refuse(e.to_string())),
            ALERTS => {
                let (tenant, name, open): (String, String, Vec<Open>) = from_json(value)?;
                self.correlation.restore((tenant, name), open);
                Ok(())
            }
            INTERVENTIONS => {
                let (slot, live): (Slot, Live) = from_json(value)?;
                self.interventions.restore(slot, live);
                Ok(())
            }
            NOTES => {
                let (tenant, run, notes): (String, String, Notes) = from_json(value)?;
                self.notes.restore((tenant, run), notes);
                Ok(())
            }
            ACTIVITY => {
                let (tenant, active): (Box<str>, Active) = from_json(value)?;
                self.activity.restore(tenant, active);
                Ok(())
            }
            BREAKERS => {
                let (policy, lately): (Governed, Lately) = from_json(value)?;
                self.breakers.restore(policy, lately);
                Ok(())
            }
            LESSONS => {
                self.lessons.restore(from_json::<Lesson>(value)?);
                Ok(())
            }
            DEBOUNCE => {
                let (group, seen): (Group, Seen) = from_json(value)?;
                self.lessons.restore_group(group, seen);
                Ok(())
            }
            STOPPED => {
                let (tenant, run, mark): (Box<str>, Box<str>, Stopped) = from_json(value)?;
                self.interventions.restore_stopped((tenant, run), mark);
                Ok(())
            }
            LEVELS => {
                let (line, ups): (Line, Vec<Up>) = from_json(value)?;
                self.levels.restore(line, ups);
                Ok(())
            }
            LIVE => {
                let (name, window): ([String; 3], (Micros, Micros)) = from_json(value)?;
                self.live.restore(name, window, &self.plans);
                Ok(())
            }
            RUNS => {
                let (tenant, id, run): (String, String, Run) = from_json(value)?;
                self.runs.restore(&tenant, &id, run);
                Ok(())
            }
            ENTITIES => {
                let (tenant, kind, id, entity): (String, EntityKind, String, Entity) = from_json(value)?;
                self.standing.entities.restore(&tenant, kind, &id, entity);
                Ok(())
            }
            CLOCKS => {
                let (tenant, clock): (String, Clock) = from_json(value)?;
                self.clocks.restore(&tenant, clock);
                Ok(())
            }
            SNAPSHOTS => {
                let text: String = from_json(value)?;
                let snapshot = Snapshot::from_json(&text).map_err(|e| refuse(e.to_string()))?;
                self.limits.hold(Arc::new(snapshot));
                Ok(())
            }
            REGISTER => {
                self.writer.restore_item(from_json::<Item>(value)?);
                Ok(())
            }
            ANSWERS => {
                self.writer.restore_answer(from_json::<Answer>(value)?);
                Ok(())
            }
            SILENCES => {
                self.silences = Arc::new(from_json(value)?);
                Ok(())
            }
            TENANT_LEVELS => {
                let (tenant, level): (String, TenantLevel) = from_json(value)?;
                self.tenant_levels.restore(&tenant, level);
                Ok(())
            }
            SIGHTS => {
                let (tenant, sight): (Box<str>, Sight) = from_json(value)?;
                self.sights.restore(tenant, sight);
                Ok(())
            }
            ROLLUPS => {
                let (tenant, minutes): (Box<str>, Minutes) = from_json(value)?;
                self.rollups.restore(tenant, minutes);
                Ok(())
            }
            OVERALL => {
                let (what, part): (String, serde_json::Value) = from_json(value)?;
                let wrong = |e: serde_json::Error| refuse(e.to_string());
                match what.as_str() {
                    "tenant" => self.overall.restore(serde_json::from_value(part).map_err(wrong)?),
                    "level" => self.overall.last = Some(serde_json::from_value(part).map_err(wrong)?),
                    "responses" => self.responses = serde_json::from_value(part).map_err(wrong)?,
                    other => return Err(refuse(format!("{other} is no part of the level of all"))),
                }
                Ok(())
            }
            META => {
                self.meta = from_json::<Meta>(value)?;
                Ok(())
            }
            other => Err(refuse(format!("state of a kind this program does not know ({:?})", char::from(other)))),
        }
    }

    /// After the last key: puts the restored snapshot in force; the configured one follows at the next live step if it is
    /// another. An error says what is missing: its results are incomplete, the rest is as it was.
    pub(super) fn taken_back(&mut self) -> Result<(), CoreError> {
        let (windows, members) = (self.engine.finish_restore(), self.correlation.restored());
        let restored = self.limits.snapshots().find(|s| **s.id() == *self.meta.snapshot).cloned();
        if let Some(restored) = restored {
            self.limits.adopt(Arc::clone(&restored));
            self.standing.adopt(&restored);
            self.adopt = self.adopt.take().filter(|wanted| wanted.id() != restored.id());
            // the one it was made with is nobody's
            let used = self.runs.snapshots();
            self.dirty_snapshots.extend(self.limits.release(&used));
        }
        self.writer.register.restored();
        self.runs.rebind();
        self.groups.forget();
        windows.and(members).map_err(|e| refuse(e.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_version_a_flipped_bit_and_a_cut_are_refused_by_name() {
        let good = json(&7u32).unwrap();
        assert_eq!(from_json::<u32>(&good).unwrap(), 7);
        let mut older = good.clone();
        older[0] = 0;
        assert!(from_json::<u32>(&older).unwrap_err().to_string().contains("version 0"));
        let mut flipped = good.clone();
        *flipped.last_mut().unwrap() ^= 1;
        assert!(from_json::<u32>(&flipped).unwrap_err().to_string().contains("checksum"));
        assert!(from_json::<u32>(&good[..3]).is_err());
        assert!(from_json::<u32>(&[]).is_err());
    }
}
