//! Conditions in a step: entities follow the rows of a batch, and what turns becomes interventions, shadow decisions, or lines of
//! the audit.

use std::sync::Arc;

use datafusion::arrow::record_batch::RecordBatch;

use crate::clock::{Micros, Wall};
use crate::decide::actions::{Taken, cause};
use crate::decide::breaker::Governed;
use crate::decide::conditions::{Turn, Watch};
use crate::decide::entities::Entities;
use crate::decide::interventions::{Care, life};
use crate::decide::records::Decision;
use crate::kafka::core::CoreError;
use crate::pipeline::entries::Entries;
use crate::pipeline::partition::{Around, Partition, Step};
use crate::policy::{Fields, Mode, Snapshot};
use crate::telemetry::schema::SCHEMA;

/// The conditions in force, and what is known of the entities they read.
pub(super) struct Standing {
    fields: Fields,
    snapshot: Arc<str>,
    watch: Watch,
    pub entities: Entities,
}

impl Standing {
    /// Of a snapshot, with the names of the metrics.
    pub fn new(snapshot: &Snapshot, metrics: impl IntoIterator<Item = String>) -> Self {
        let fields = Fields::new(Arc::clone(&SCHEMA), metrics);
        let watch = compile(snapshot, &fields);
        Self { fields, snapshot: Arc::clone(snapshot.id()), watch, entities: Entities::default() }
    }

    /// Puts the conditions of another snapshot in force.
    pub fn adopt(&mut self, snapshot: &Snapshot) {
        if self.snapshot != *snapshot.id() {
            self.watch = compile(snapshot, &self.fields);
            self.snapshot = Arc::clone(snapshot.id());
        }
    }
}

fn compile(snapshot: &Snapshot, fields: &Fields) -> Watch {
    let (watch, faults) = Watch::new(snapshot, fields);
    for fault in faults {
        // `check` refuses such a set; one that another version wrote may still come out of a checkpoint
        tracing::error!(%fault, snapshot = %snapshot.id(), "a condition in force does not compile and is not evaluated");
    }
    watch
}

impl Partition {
    /// The snapshot in force has other conditions: what they no longer hold up ends.
    pub(super) fn adopt_conditions(&mut self, snapshot: &Snapshot, now: Wall, step: &mut Step, entries: &mut Entries) {
        self.standing.adopt(snapshot);
        let turned = self.standing.watch.settle(&mut self.standing.entities);
        self.act(turned, now, &Around::none(now), step, entries);
    }

    /// What turned in a batch; `clocks` is each row's tenant's clock.
    pub(super) fn turned(&mut self, rows: &RecordBatch, clocks: &[Micros]) -> Result<Vec<Turn>, CoreError> {
        let runs = &self.runs;
        let identity = |tenant: &str, run: &str| {
            let f = &runs.get(tenant, run)?.fields;
            Some([f.project.clone(), f.agent.clone(), f.api_key.clone(), f.human.clone(), f.provider.clone()])
        };
        let Standing { watch, entities, .. } = &mut self.standing;
        let turned = watch
            .observe(rows, clocks, entities, &identity)
            .map_err(|e| CoreError { context: "cannot evaluate the conditions", message: e.to_string() })?;
        let refused = entities.take_refused();
        if refused > 0 {
            tracing::warn!(
                refused,
                "a tenant has too many runs, agents or tasks; conditions know nothing of the new ones"
            );
        }
        Ok(turned)
    }

    /// Does what follows.
    pub(super) fn act(
        &mut self,
        turned: Vec<Turn>,
        now: Wall,
        around: &Around,
        step: &mut Step,
        entries: &mut Entries,
    ) {
        for turn in turned {
            match turn {
                Turn::Up(taken) => {
                    let row = u32::try_from(taken.row).unwrap_or(u32::MAX);
                    let now = around.row_now.get(taken.row).map_or(now, |at| Wall(*at));
                    let (active, clock) = (around.active_at(row), around.clock_at(row, taken.time));
                    self.take_actions(&taken, (active, clock), now, step, entries);
                }
                Turn::Down { tenant, policy_tenant, policy_id, about, row: _ } => {
                    self.interventions.release(&tenant, &cause(&policy_tenant, &policy_id, &about));
                }
            }
        }
    }

    fn take_actions(
        &mut self,
        taken: &Taken,
        (active, clock): (usize, Micros),
        now: Wall,
        step: &mut Step,
        entries: &mut Entries,
    ) {
        let (tenant, policy) = (&taken.tenant, &taken.policy);
        if self.limits.current().suspends(tenant, &policy.tenant, &policy.id) {
            return;
        }
        if taken.policy.enforcement_mode != Mode::Block {
            self.rollups.act(tenant, clock, taken.policy.enforcement_mode.as_str(), false);
            step.decisions.extend(taken.shadows(now).into_iter().map(|a| Decision::Audit(Box::new(a))));
            return;
        }
        for (number, action) in taken.policy.actions.iter().enumerate() {
            match taken.order(action) {
                Ok(order) => {
                    let mut record = taken.intervention(order, now);
                    self.complete(&mut record);
                    let governed = Governed {
                        tenant: tenant.to_string(),
                        policy_tenant: policy.tenant.to_string(),
                        policy_id: policy.id.to_string(),
                    };
                    let holds = life::holds_runs(&record.kind);
                    if holds && !self.may_hold(&governed, &record.target, (taken.time, active), now, step, entries) {
                        let mut shadow =
                            taken.impossible(number, action, "the breaker has put its policy in shadow", now);
                        shadow.after["breaker"] = true.into();
                        self.rollups.act(tenant, clock, "AUDIT", false);
                        step.decisions.push(Decision::Audit(Box::new(shadow)));
                        continue;
                    }
                    self.rollups.act(tenant, clock, &record.kind, holds);
                    let care = Care::of(&taken.policy);
                    let said = self.interventions.order(record, Some(taken.cause()), care, now);
                    self.publish(said, now, step, entries);
                }
                Err(why) => {
                    let refused = taken.impossible(number, action, &why, now);
                    step.decisions.push(Decision::Audit(Box::new(refused)));
                }
            }
        }
    }
}
