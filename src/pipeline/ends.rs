//! The ends of runs: one summary each, and what a quick and cheap success teaches (E1).
//!
//! A run's end is the close of its window, when every figure of it is final. A marker that comes too late for its window still ends
//! the run, without figures.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use datafusion::arrow::array::AsArray;
use serde::{Deserialize, Serialize};

use crate::clock::{Micros, Wall};
use crate::decide::lessons::{EASY, Group, LessonType, QUICK, Success};
use crate::decide::levels::Shape;
use crate::decide::records::{Decision, RunStatus, RunSummary};
use crate::pipeline::entries::Entries;
use crate::pipeline::intake::{self, Rows};
use crate::pipeline::judge::Item;
use crate::pipeline::partition::{Around, Partition, Step};
use crate::pipeline::runs::Run;
use crate::policy::{Amount, Scope};
use crate::telemetry::Batch;
use crate::telemetry::schema::col;

/// Most interventions listed of a run.
const LISTED: usize = 16;

/// What was said and done about a run whose window is open. Kept apart from what rows say of the run: that is read for a whole batch
/// before anything is decided, and these follow the decisions.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Notes {
    near: u32,
    breach: u32,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    interventions: Vec<String>,
}

/// Row, tenant, run and window of an end.
type EndKey = (u32, Arc<str>, Arc<str>, (Micros, Micros));

/// The notes of all runs, by tenant and run.
#[derive(Debug, Default)]
pub(super) struct NotesOfRuns {
    notes: BTreeMap<(String, String), Notes>,
    dirty: BTreeSet<(String, String)>,
}

impl NotesOfRuns {
    fn of(&mut self, tenant: &str, run: &str) -> &mut Notes {
        let key = (tenant.to_owned(), run.to_owned());
        self.dirty.insert(key.clone());
        self.notes.entry(key).or_default()
    }

    /// Notes a signal.
    pub(super) fn signal(&mut self, tenant: &str, run: &str, breach: bool) {
        let notes = self.of(tenant, run);
        let count = if breach { &mut notes.breach } else { &mut notes.near };
        *count = count.saturating_add(1);
    }

    /// Notes an intervention.
    pub(super) fn intervention(&mut self, tenant: &str, run: &str, id: &str) {
        let notes = self.of(tenant, run);
        if notes.interventions.len() < LISTED {
            notes.interventions.push(id.to_owned());
        }
    }

    /// Those of a run that has ended.
    fn take(&mut self, tenant: &str, run: &str) -> Notes {
        let key = (tenant.to_owned(), run.to_owned());
        let Some(notes) = self.notes.remove(&key) else { return Notes::default() };
        self.dirty.insert(key);
        notes
    }

    /// What changed since the last call; `None`: gone.
    pub(super) fn take_changes(&mut self) -> Vec<((String, String), Option<&Notes>)> {
        let dirty = std::mem::take(&mut self.dirty);
        dirty.into_iter().map(|key| (key.clone(), self.notes.get(&key))).collect()
    }

    /// Makes the next [`Self::take_changes`] a full one.
    pub(super) fn mark_all_dirty(&mut self) {
        self.dirty.extend(self.notes.keys().cloned());
    }

    /// Takes one back.
    pub(super) fn restore(&mut self, key: (String, String), notes: Notes) {
        self.notes.insert(key, notes);
    }
}

/// A run whose windows closed, and the figures of them.
pub(super) struct Ended {
    at: u32,
    tenant: Arc<str>,
    run: Arc<str>,
    window: (Micros, Micros),
    metrics: BTreeMap<String, Option<Amount>>,
    /// The metric that came nearest to a limit of it, its value, and the limit.
    highest: Option<(String, Amount, Amount)>,
    complete: bool,
    is_synthetic: bool,
}

impl Ended {
    /// Takes one limit into account.
    fn measure(&mut self, metric: &str, value: Amount, max: Amount) {
        let nearer = |(_, v, m): &(String, Amount, Amount)| value.ratio(max) > v.ratio(*m);
        if self.highest.as_ref().is_none_or(nearer) {
            self.highest = Some((metric.to_owned(), value, max));
        }
    }

    /// Whether it came nowhere near any limit, and there is one.
    fn was_easy(&self) -> bool {
        let easy = |value: Amount, max: Amount| {
            value.0.checked_mul(100).zip(max.0.checked_mul(EASY)).is_some_and(|(value, line)| value < line)
        };
        self.highest.as_ref().is_some_and(|(_, value, max)| easy(*value, *max))
    }
}

impl Partition {
    /// The runs whose windows closed, from all results, before those are left out that change no level.
    pub(super) fn ended(&self, items: &[Item], around: &Around) -> VecDeque<Ended> {
        let mut ended: Vec<Ended> = Vec::new();
        let mut known: BTreeMap<EndKey, usize> = BTreeMap::new();
        for item in items.iter().filter(|item| item.closed) {
            let Some(plan) = self.plans.get(item.metric) else { continue };
            if plan.scope != Scope::Run || plan.shape != Shape::Session {
                continue;
            }
            let key = (item.at, Arc::clone(&item.tenant), Arc::clone(&item.scope_id), item.window);
            let place = *known.entry(key).or_insert_with(|| {
                ended.push(Ended {
                    at: item.at,
                    tenant: Arc::clone(&item.tenant),
                    run: Arc::clone(&item.scope_id),
                    window: item.window,
                    metrics: BTreeMap::new(),
                    highest: None,
                    complete: true,
                    is_synthetic: false,
                });
                ended.len() - 1
            });
            let Some(end) = ended.get_mut(place) else { continue };
            end.metrics.insert(plan.name.clone(), item.value);
            end.complete &= item.complete;
            end.is_synthetic |= around.synthetic(item);
            if let (Some(value), Some(set)) = (item.value, self.limits.get(item.limit_set)) {
                for limit in set.limits.iter().filter(|limit| *limit.metric == *plan.name) {
                    end.measure(&plan.name, value, limit.max);
                }
            }
        }
        ended.sort_by(|a, b| (a.at, &a.tenant, &a.run, a.window).cmp(&(b.at, &b.tenant, &b.run, b.window)));
        ended.into()
    }

    /// Says what became of those that ended before row `until`.
    pub(super) fn end_runs(
        &mut self,
        ended: &mut VecDeque<Ended>,
        until: u32,
        around: &mut Around,
        step: &mut Step,
        entries: &mut Entries,
    ) {
        while let Some(end) = ended.pop_front_if(|end| end.at < until || until == u32::MAX) {
            // what rows up to its close say is done before, what later ones say is not
            self.settle_happenings(end.at, around, step, entries);
            let as_of = around.run_as_of(end.at, &end.tenant, &end.run);
            let Some(run) = as_of.or_else(|| self.runs.get(&end.tenant, &end.run)) else { continue };
            let status = match (run.ends.contains(&end.window.1), run.failures.contains(&end.window.1)) {
                (false, _) => RunStatus::Silent,
                (true, true) => RunStatus::Failed,
                (true, false) => RunStatus::Completed,
            };
            let mut summary = summary(&end.tenant, &end.run, run, status, end.window);
            let notes = self.notes.take(&end.tenant, &end.run);
            summary.signals = [("NEAR", notes.near), ("BREACH", notes.breach)].map(|(k, n)| (k.to_owned(), n)).into();
            summary.interventions = notes.interventions;
            let value = |name: &str| end.metrics.get(name).copied().flatten();
            (summary.tokens, summary.cost_usd, summary.steps) =
                (value("run_tokens"), value("run_cost_usd"), value("run_steps"));
            (summary.complete, summary.is_synthetic) = (end.complete, end.is_synthetic);
            summary.metrics.clone_from(&end.metrics);
            let agent = summary.agent_id.clone().unwrap_or_default();
            step.decisions.push(Decision::Run(Box::new(summary)));
            if status == RunStatus::Completed && end.complete {
                self.learn_success(&end, &agent, around.now_at(end.at), step);
            }
        }
    }

    fn learn_success(&mut self, end: &Ended, agent: &str, now: Wall, step: &mut Step) {
        let took = end.window.1.saturating_sub(end.window.0);
        let (true, true, Some((metric, value, max))) = (took <= QUICK, end.was_easy(), &end.highest) else { return };
        let group = Group {
            tenant: end.tenant.to_string(),
            kind: LessonType::CriticalSuccess,
            of: agent.to_owned(),
            band: String::new(),
        };
        if !self.lessons.is_due(group, end.window.1) {
            return;
        }
        let success = Success {
            tenant: &end.tenant,
            run: &end.run,
            agent,
            took,
            highest: (metric, *value, *max),
            ended: end.window.1,
            is_synthetic: end.is_synthetic,
        };
        self.learn(success.learned(), now, step);
    }

    /// A marker that is late for its window still ends its run.
    pub(super) fn end_late(&mut self, batch: &Batch, row: usize, around: &Around, step: &mut Step) {
        let rows = Rows::new(&batch.rows);
        let text = |column: usize| intake::get(rows.text(column), row);
        let status = match text(col::EVENT_TYPE) {
            Some("run.completed") => RunStatus::Completed,
            Some("run.failed") => RunStatus::Failed,
            _ => return,
        };
        let (Some(tenant), Some(id)) = (text(col::TENANT_ID), text(col::RUN_ID)) else { return };
        let at = u32::try_from(row).unwrap_or(u32::MAX);
        let run = around.run_as_of(at, tenant, id).or_else(|| self.runs.get(tenant, id));
        let Some(run) = run else { return };
        // its beginning is as unknown as its figures: later rows of the batch may have told of an earlier one
        let time = rows.time.value(row);
        let mut summary = summary(tenant, id, run, status, (time, time));
        summary.complete = false;
        summary.is_synthetic = batch.rows.column(col::IS_SYNTHETIC).as_boolean().values().value(row);
        step.decisions.push(Decision::Run(Box::new(summary)));
    }
}

fn summary(tenant: &str, id: &str, run: &Run, status: RunStatus, window: (Micros, Micros)) -> RunSummary {
    let owned = |text: &Option<Arc<str>>| text.as_deref().map(str::to_owned);
    RunSummary {
        run_id: id.to_owned(),
        tenant_id: tenant.to_owned(),
        parent_run_id: owned(&run.parent),
        agent_id: owned(&run.fields.agent),
        project_id: owned(&run.fields.project),
        api_key_id: owned(&run.fields.api_key),
        human_actor_id: owned(&run.fields.human),
        provider: owned(&run.fields.provider),
        status,
        started_at: window.0,
        ended_at: window.1,
        duration_ms: window.1.saturating_sub(window.0) / 1_000,
        tokens: None,
        cost_usd: None,
        steps: None,
        metrics: BTreeMap::new(),
        signals: BTreeMap::new(),
        interventions: Vec::new(),
        snapshot_id: run.run_start.to_string(),
        complete: true,
        is_synthetic: false,
    }
}
