//! The telemetry of a step: each row is told to clocks, runs, conditions and windows, and what it says beside its values waits in order.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::clock::Wall;
use crate::kafka::core::{CoreError, InputBatch};
use crate::pipeline::blinding;
use crate::pipeline::entries::Entries;
use crate::pipeline::happenings::{self, Happening, What};
use crate::pipeline::intake::{self, Rows};
use crate::pipeline::leveling;
use crate::pipeline::runs::{Bound, Seen};
use crate::pipeline::watch::Phase;
use crate::pipeline::watcher::Watcher;
use crate::policy::{Mode, Scope};
use crate::telemetry::schema::col;
use crate::telemetry::{Batch, DeadLetter, Reason, redacted_json};

use super::around::Around;
use super::{Partition, Step, core_error};

/// Scopes of the groups an event belongs to, in the order of the fields of [`Seen`].
const GROUPS: [Scope; 5] = [Scope::Project, Scope::Agent, Scope::ApiKey, Scope::HumanActor, Scope::Provider];

impl Partition {
    pub(super) fn take_telemetry(
        &mut self,
        inputs: &[InputBatch<'_>],
        now: Wall,
        step: &mut Step,
        entries: &mut Entries,
    ) -> Result<(), CoreError> {
        step.watch.enter(Phase::Decode);
        let engine = &self.engine;
        let taken = intake::take(
            inputs,
            self.settings.future_at.unwrap_or(now),
            self.own,
            &self.settings.inputs,
            &mut self.decoder,
            &mut self.dedup,
            self.settings.stream.lateness,
            |tenant| engine.watermark(tenant),
        )?;
        step.counts.decoded += taken.decoded as u64;
        step.counts.duplicates += taken.duplicates as u64;
        step.dead.extend(taken.dead);
        step.rekeyed.extend(taken.rekeyed);
        let batch = taken.batch;
        if batch.rows.num_rows() == 0 {
            return Ok(());
        }
        step.watch.enter(Phase::Evaluate);
        let mut around = self.observe_runs(&batch, now, step);
        let turned = self.turned(&batch.rows, &around.clocks)?;
        around.happenings.extend(turned.into_iter().map(|turn| {
            let row = u32::try_from(turn.row()).unwrap_or(u32::MAX);
            let (tenant, run) = (Box::from(&**turn.tenant()), "".into());
            Happening { row, tenant, run, time: 0, what: What::Turned(Box::new(turn)) }
        }));
        around.happenings.make_contiguous().sort_by_key(|happening| happening.row);
        self.live.begin();
        let mut watcher = Watcher {
            plans: &self.plans,
            limits: &mut self.limits,
            runs: &self.runs,
            run_sets: &around.run_sets,
            levels: &self.levels,
            groups: &mut self.groups,
            changed: &around.changed,
            live: (!self.settings.event_clock).then_some(&mut self.live),
        };
        let output = self
            .engine
            .push(&batch.rows, &batch.positions, &mut watcher)
            .map_err(|e| core_error("cannot evaluate the windows")(&e))?;
        for early in &output.early {
            step.counts.early[early.query] += early.rows.num_rows() as u64;
        }
        for late in &output.late {
            for query in &late.queries {
                if let Some(count) = step.counts.late.get_mut(usize::from(*query)) {
                    *count += 1;
                }
            }
            self.end_late(&batch, late.row as usize, &around, step);
            if late.everywhere {
                step.dead.push(late_letter(&batch, late.row as usize));
            }
        }
        self.watch_rows(&batch, &output.late, &output.overflows, &mut around);
        around.batch = Some(batch);
        self.decide(output, &mut around, step, entries)?;
        self.settle_happenings(u32::MAX, &mut around, step, entries);
        entries.at(None, None);
        let tenants: BTreeSet<Arc<str>> = std::mem::take(&mut around.tenants);
        for tenant in tenants {
            self.clocks.touch(&tenant);
            let rows = self.clocks.take_fresh(&tenant);
            step.heard.push((tenant, rows));
        }
        Ok(())
    }

    /// Tells clocks and runs of every row, and finds each row's limit set.
    fn observe_runs(&mut self, batch: &Batch, now: Wall, step: &mut Step) -> Around {
        let rows = Rows::new(&batch.rows);
        let snapshot: Arc<str> = Arc::clone(self.limits.current().id());
        let (runs, types, parents) =
            (rows.text(col::RUN_ID), rows.text(col::EVENT_TYPE), rows.text(col::PARENT_RUN_ID));
        let fields =
            [col::PROJECT_ID, col::AGENT_ID, col::API_KEY_ID, col::HUMAN_ACTOR_ID, col::PROVIDER].map(|c| rows.text(c));
        let count = batch.rows.num_rows();
        let (timed, ambiguous) = (self.limits.timed(), self.limits.may_be_ambiguous());
        let holds = self.limits.current().policies().iter().any(|p| p.counts() && p.enforcement_mode == Mode::Block);
        let fails_closed = !self.settings.event_clock && blinding::fails_closed(self.limits.current());
        let mut around = Around::none(now);
        around.clocks.reserve(count);
        around.run_sets.reserve(count);
        for row in 0..count {
            let (tenant, time) = (rows.tenant.value(row), rows.time.value(row));
            let clock = self.clocks.hear(tenant, time, &self.meta.end);
            around.clocks.push(clock);
            if self.settings.event_clock {
                self.meta.now = self.meta.now.max(time);
                around.row_now.push(self.meta.now);
            }
            if !around.tenants.contains(tenant) {
                around.tenants.insert(tenant.into());
                let row = u32::try_from(row).unwrap_or(u32::MAX);
                around.happenings.extend(self.hears(tenant, row, time));
            }
            // also by rows without a run: a tenant may send nothing else
            self.runs.expire(tenant, clock);
            for (tenant, run) in self.runs.take_denied() {
                let row = u32::try_from(row).unwrap_or(u32::MAX);
                around.happenings.push_back(Happening { row, tenant, run, time, what: What::Admitted });
            }
            let event_type = intake::get(types, row).unwrap_or_default();
            let at = u32::try_from(row).unwrap_or(u32::MAX);
            let sample = (event_type == "governance.sample").then(|| leveling::sample(&batch.rows, row)).flatten();
            if sample.is_some() || self.tenant_levels.is_due(tenant, clock) {
                let now = around.row_now.get(row).map_or(now, |at| Wall(*at));
                let locks = sample.as_ref().is_some_and(|sample| sample.trust_locked == Some(true));
                let looked = self.tenant_levels.look(tenant, sample.map(|sample| (sample, time)), clock, now);
                around.happenings.extend(looked.filter(|looked| looked.changed || locks).map(|looked| {
                    let what = What::Level(Box::new(looked));
                    Happening { row: at, tenant: tenant.into(), run: "".into(), time, what }
                }));
            }
            let alert = happenings::may_alert(event_type)
                .then(|| happenings::alert(&batch.rows, row, time, self.settings.alerting.external_timeout))
                .flatten();
            let fields = fields.map(|c| intake::get(c, row));
            let Some(run_id) = intake::get(runs, row) else {
                let said = |what| Happening { row: at, tenant: tenant.into(), run: "".into(), time, what };
                around.happenings.extend(alert.map(said));
                around.run_sets.push(u32::MAX);
                around.run_agents.push(None);
                let groups = GROUPS.into_iter().zip(fields).filter_map(|(scope, id)| Some((scope, id?)));
                if !self.limits.cover(tenant, groups) {
                    step.counts.uncovered += 1;
                    self.clocks.uncovered(tenant);
                }
                continue;
            };
            if holds {
                around.active.resize(row, 0);
                around.active.push(self.activity.take(tenant, run_id, time));
            }
            let seen = Seen { tenant, run: run_id, parent: intake::get(parents, row), event_type, time, fields };
            let (bound, run) = self.runs.observe(seen, &snapshot);
            let news = std::mem::take(&mut run.has_new_parent);
            let parent = run.parent.as_deref().filter(|_| news);
            let zombie = self.interventions.is_zombie(tenant, run_id, time)
                && matches!(event_type, "run.started" | "run.first_token" | "run.step");
            let whats =
                parent.map(|parent| What::Child(parent.into())).into_iter().chain(zombie.then_some(What::Zombie));
            let said = |what| Happening { row: at, tenant: tenant.into(), run: run_id.into(), time, what };
            around.happenings.extend(whats.map(said));
            if event_type == "run.failed" {
                let failure = happenings::failure(&batch.rows, row, run.fields.agent.as_deref());
                around.happenings.push_back(said(What::Failure(Box::new(failure))));
            }
            if let Some(mut what) = alert {
                if let What::Alert(member) = &mut what {
                    let agent = || run.fields.agent.as_deref().map(str::to_owned);
                    member.agent_id = member.agent_id.take().or_else(agent);
                }
                around.happenings.push_back(said(what));
            }
            if let Some(before) = run.before.take()
                && let Ok(row) = u32::try_from(row)
            {
                around.history.entry((tenant.into(), run_id.into())).or_default().push((row, before));
            }
            around.run_agents.push(run.fields.agent.clone());
            let set = match run.limit_set {
                Some(set) if !timed => set,
                _ => {
                    let set = self.limits.of_run(tenant, run, timed.then_some(time));
                    run.limit_set = (!timed).then_some(set);
                    set
                }
            };
            // what is late does not begin now
            if fails_closed && bound == Bound::New && time >= clock.saturating_sub(self.settings.stream.lateness) {
                let failing = blinding::failing(&seen, run, set, &mut self.limits);
                let what = failing.map(|failing| What::Began(Box::new(failing)));
                around.happenings.extend(what.map(|what| Happening {
                    row: at,
                    tenant: tenant.into(),
                    run: run_id.into(),
                    time,
                    what,
                }));
            }
            if bound == Bound::Changed {
                around.changed.insert((tenant.into(), run_id.into()));
                // only where limits have times are lines of runs remembered by group
                if timed {
                    self.groups.forget();
                }
            }
            if self.limits.get(set).is_none_or(|s| s.limits.is_empty() && s.ambiguous.is_empty()) {
                let groups = run.fields.groups();
                let groups = groups.iter().filter_map(|(scope, id)| Some((*scope, id.as_deref()?)));
                let limits = &mut self.limits;
                let covered = *run.covered.get_or_insert_with(|| limits.cover(tenant, groups));
                if !covered {
                    step.counts.uncovered += 1;
                    self.clocks.uncovered(tenant);
                }
            }
            if (ambiguous || run.denied)
                && let Ok(row) = u32::try_from(row)
                && let Some(judged) = happenings::judge(row, &seen, run, &mut self.limits)
            {
                self.runs.touch(tenant, run_id);
                around.happenings.push_back(judged);
            }
            around.run_sets.push(set);
        }
        for (tenant, run) in self.runs.take_denied() {
            let (row, time) =
                (u32::try_from(count).unwrap_or(u32::MAX), self.clocks.highest(&tenant).unwrap_or_default());
            around.happenings.push_back(Happening { row, tenant, run, time, what: What::Admitted });
        }
        around
    }
}

fn late_letter(batch: &Batch, row: usize) -> DeadLetter {
    let tenant = Rows::new(&batch.rows).tenant.value(row).to_owned();
    DeadLetter {
        origin: batch.origins[row].clone(),
        reason: Reason::Late,
        message: "every window this record belongs to has closed".into(),
        key: Some(tenant.as_bytes().to_vec()),
        tenant_id: Some(tenant),
        value: redacted_json(&batch.rows, row),
    }
}
