//! What time demands: expiry, time-outs and the ladder, auto-rollback, forgetting.

use serde_json::json;

use crate::clock::{Micros, Wall};
use crate::decide::records::{Intervention, InterventionState as State};

use super::{Interventions, Live, Order, Slot, life};

/// Who acts where nobody asked.
pub(super) const OURSELVES: &str = "system:runwarden";

impl Interventions {
    /// When time demands something next.
    pub fn next_due(&self) -> Option<Micros> {
        let first = self.due.first().map(|(at, _)| *at);
        first.into_iter().chain(self.stopped.next_end(&self.acting)).min()
    }

    /// What time demands at `now`. `ended` says whether a run has ended by itself since an instant.
    pub fn pass(&mut self, now: Wall, ended: &dyn Fn(&str, &str, Micros) -> bool) -> Vec<Intervention> {
        let mut said = Vec::new();
        while let Some((_, slot)) = self.due.first().filter(|(at, _)| *at <= now.0).cloned() {
            let Some(live) = self.slots.get(&slot) else {
                self.due.pop_first();
                continue;
            };
            let live = live.clone();
            match live.record.state {
                State::Proposed => {
                    said.extend(self.step(&slot, State::Expired, now, |r| {
                        r.audit_log.results = json!({"expired": "nobody approved it in time"});
                    }));
                }
                State::Issued | State::Acknowledged => said.extend(self.time_out(&slot, &live, now, ended)),
                _ => said.extend(self.outlive(&slot, &live, now)),
            }
        }
        self.stopped.expire(&self.acting, now);
        said
    }

    /// Nobody acknowledged it, or reported its end.
    fn time_out(
        &mut self,
        slot: &Slot,
        live: &Live,
        now: Wall,
        ended: &dyn Fn(&str, &str, Micros) -> bool,
    ) -> Vec<Intervention> {
        let record = &live.record;
        let since = record.issued_at.unwrap_or(record.created_at);
        let over = slot.target.kind == "RUN" && ended(&slot.tenant, &slot.target.id, since);
        if over && record.state == State::Issued {
            let results = json!({"superseded_by": "the run ended by itself"});
            return self.step(slot, State::Superseded, now, |r| r.audit_log.results = results).into_iter().collect();
        }
        if over && life::ends_runs(&slot.kind) {
            let done = self.step(slot, State::Succeeded, now, |r| {
                r.executed_at = Some(now.0);
                r.audit_log.results = json!({"observed": "the run ended after it was acknowledged"});
            });
            return done.map(|record| self.settle(slot, record, now.0, now)).unwrap_or_default();
        }
        let (what, within) = match record.state {
            State::Issued => ("acknowledged", self.acting.acknowledge_within),
            _ => ("reported as done", self.acting.complete_within),
        };
        let why = format!("{} was not {what} within {} s", slot.kind, within / crate::clock::SECOND);
        let results = json!({"timed_out": why});
        let Some(gone) = self.step(slot, State::TimedOut, now, |r| r.audit_log.results = results) else {
            return Vec::new();
        };
        let id = gone.intervention_id.clone();
        let mut said = vec![gone];
        let rung = life::next_rung(&slot.kind).filter(|_| self.acting.escalate);
        if let Some(kind) = rung {
            let next = slot.beside(kind);
            let identity = format!("escalated/{id}");
            let order = Order {
                run_id: record.run_id.clone(),
                signal_id: record.signal_id.clone(),
                initiated_by: record.initiated_by.clone(),
                principal: OURSELVES.into(),
                authority: record.authority_level,
                parameters: record.parameters.clone(),
                parent: record.parent_intervention_id.clone(),
                ..Order::of_policy(next.clone(), &record.policy_id, &identity, format!("{why}: {}", record.reason))
            };
            let mut escalated = order.record(now);
            escalated.supersedes = Some(id);
            if self.slots.get(&next).is_some_and(Live::is_live) {
                // a harsher one is under way: it holds for these causes too
                for cause in &live.causes {
                    said.extend(self.order(escalated.clone(), Some(cause.clone()), live.care, now));
                }
            } else {
                said.extend(self.begin(next, escalated, live.causes.clone(), live.care, now));
            }
        } else if slot.target.kind == "RUN" && life::ends_runs(&slot.kind) {
            // nothing harsher is left: whatever it still sends orders it again
            self.stopped.mark(&said[0], now.0, now);
        }
        said
    }

    /// It succeeded long ago: it is taken back, or forgotten.
    fn outlive(&mut self, slot: &Slot, live: &Live, now: Wall) -> Vec<Intervention> {
        let rollback = live.care.rollback.zip(live.record.executed_at).map(|(after, at)| at.saturating_add(after));
        if rollback.is_some_and(|at| at <= now.0) {
            let minutes = live.care.rollback.unwrap_or_default() / super::MINUTE;
            let why = format!("auto-rollback after {minutes} minutes");
            return self.take_back(slot, OURSELVES, &why, now);
        }
        self.take(slot);
        self.drop_causes(slot, &live.causes);
        Vec::new()
    }
}
