//! Terms that come in force: asked for between two steps, adopted at the next one that is not a replay.

use std::sync::Arc;

use crate::clock::Wall;
use crate::kafka::core::CoreError;
use crate::pipeline::entries::Entries;
use crate::policy::{Scope, Snapshot};

use super::around::Around;
use super::{InForce, Partition, Settings, Step};

impl Partition {
    /// Asks for another snapshot: adopted at the next step that is not a replay.
    pub fn request_snapshot(&mut self, snapshot: Arc<Snapshot>) {
        self.adopt = Some(snapshot);
    }

    /// Whether these terms are newer than those here.
    pub fn is_behind(&self, in_force: &InForce) -> bool {
        let known = self.adopt_revision.unwrap_or(self.meta.revision);
        in_force.revision > known
            || (in_force.revision == known && *self.meta.snapshot != **in_force.snapshot.id() && self.adopt.is_none())
    }

    /// Whether there are terms to decide by: a snapshot that was followed, or that of the settings.
    pub fn is_governed(&self) -> bool {
        !self.settings.follows || self.meta.revision > 0
    }

    /// Asks for the terms of the policies topic: adopted at the next step that is not a replay. With other queries, prices or
    /// settings the state is carried over as through a checkpoint: what the new terms still know of it goes on as it was.
    ///
    /// # Errors
    /// The new terms cannot be set up; the old ones stay.
    pub fn follow(&mut self, in_force: &InForce) -> Result<(), CoreError> {
        if !self.is_behind(in_force) {
            return Ok(());
        }
        if *in_force.settings.terms != *self.settings.terms {
            self.rebuild(Arc::clone(&in_force.settings))?;
        }
        self.adopt = Some(Arc::clone(&in_force.snapshot));
        self.adopt_revision = Some(in_force.revision);
        self.adopt_silences = Some(Arc::clone(&in_force.silences));
        Ok(())
    }

    fn rebuild(&mut self, settings: Arc<Settings>) -> Result<(), CoreError> {
        let next = self.rebuilt(settings);
        let mut next = match next {
            Ok(next) => next,
            Err(error) => {
                // whoever stays has everything to checkpoint: what was taken out went nowhere
                self.all_dirty();
                return Err(error);
            }
        };
        next.all_dirty();
        *self = next;
        Ok(())
    }

    /// A partition of other settings with what they know of this one's state.
    fn rebuilt(&mut self, settings: Arc<Settings>) -> Result<Self, CoreError> {
        let mut next = Self::new(settings, self.own)?;
        self.all_dirty();
        for change in self.changes() {
            match change.value {
                Some(value) => next.take_back(&change.key, &value)?,
                None => next.gone.push(change.key),
            }
        }
        if let Err(error) = next.taken_back() {
            let partition = self.own.partition;
            tracing::warn!(%error, partition, "other queries are in force, and not all state could be carried over");
        }
        Ok(next)
    }

    pub(super) fn adopt_snapshot(&mut self, now: Wall, step: &mut Step, entries: &mut Entries) {
        let Some(snapshot) = self.adopt.take() else { return };
        let id: Arc<str> = Arc::clone(snapshot.id());
        self.meta.snapshot = id.to_string();
        let followed = self.adopt_revision.take();
        self.meta.revision = followed.unwrap_or(self.meta.revision);
        if let Some(silences) = self.adopt_silences.take() {
            self.silences = silences;
            self.silences_dirty = true;
            self.checkpoint_due = true;
        }
        if followed.is_some() && *self.limits.current().id() == id {
            // the same terms, other silences
            return;
        }
        self.dirty_snapshots.insert(id);
        let before = Arc::clone(self.limits.current());
        self.limits.adopt(Arc::clone(&snapshot));
        self.mend_breakers(&before, &snapshot, now, step, entries);
        self.runs.rebind();
        self.groups.forget();
        let used = self.runs.snapshots();
        self.dirty_snapshots.extend(self.limits.release(&used));
        let (limits, plans) = (&self.limits, &self.plans);
        let ended = self.levels.retain(|line, up| {
            let holds =
                |s: &Snapshot| s.holds(&line.policy_tenant, &line.policy_id, line.policy_version, &line.limit_id);
            // a run keeps the terms it is bound to; a wider group is under those of the step
            let bound = plans.iter().any(|p| p.name == line.metric && p.scope == Scope::Run);
            let held = if bound { limits.snapshots().any(|s| holds(s)) } else { holds(limits.current()) };
            let suspended = limits.current().suspends(&line.tenant, &line.policy_tenant, &line.policy_id);
            held && !suspended && *up.limit.metric == *line.metric
        });
        let around = Around::none(now);
        for change in ended {
            self.say(change, None, &around, step, entries);
        }
        self.adopt_conditions(&snapshot, now, step, entries);
        self.live.look_again();
        self.checkpoint_due = true;
        step.adopted = followed.is_none().then_some(snapshot);
    }
}
