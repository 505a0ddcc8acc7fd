//! One partition: its state and its step.
//!
//! Order inside a step (`architecture.md`, decision 2): commands, outcomes, due timers (idle clocks), own telemetry, re-keyed
//! telemetry. Decides by calling the rooms that do: `stream` for windows, the threshold SQL for near and past, `decide` for
//! levels, alerts and interventions. Invariant: (state, step input) → (state', decisions), nothing else.

mod adopt;
mod around;
mod decide;
mod rows;

use std::collections::BTreeSet;
use std::sync::Arc;

use datafusion::arrow::record_batch::RecordBatch;
use serde::{Deserialize, Serialize};

use crate::clock::{Micros, Wall};
use crate::decide::blindness::{Bounds, Sights};
use crate::decide::breaker::{Breakers, Share};
use crate::decide::correlation::{Correlation, View};
use crate::decide::interventions::{Acting, Interventions};
use crate::decide::lessons::Lessons;
use crate::decide::level;
use crate::decide::levels::Levels;
use crate::decide::overall::Overall;
use crate::decide::records::{Decision, Live};
use crate::decide::respond::Responses;
use crate::decide::sql::Prepared;
use crate::kafka::core::{CoreError, Input, InputBatch, OutRecord, StepInput};
use crate::pipeline::activity::Activity;
use crate::pipeline::clocks::{Clocks, EndClock};
use crate::pipeline::conditions::Standing;
use crate::pipeline::ends::NotesOfRuns;
use crate::pipeline::entries::Entries;
use crate::pipeline::intake::{InputNames, Own};
use crate::pipeline::judge::{self, MetricPlan};
use crate::pipeline::limits::{LimitSets, MetricInfo};
use crate::pipeline::live::LiveWindows;
use crate::pipeline::rollups::Rollups;
use crate::pipeline::runs::RunTable;
use crate::pipeline::terms::Tuning;
use crate::pipeline::watch::{Phase, Watch};
use crate::pipeline::watcher::GroupCache;
use crate::pipeline::writer::Writer;
use crate::policy::{Scope, Silence, Snapshot, Terms};
use crate::stream::{Emit, Engine, Metric, Query, Window};
use crate::telemetry::{DeadLetter, Decoder, Dedup, Origin, Reason};

pub(super) use self::around::Around;

/// Everything a core is made from; shared by the partitions of a process.
pub struct Settings {
    /// The metric queries.
    pub metrics: Vec<Arc<Metric>>,
    /// Text of `queries/decide/thresholds.sql`.
    pub thresholds: String,
    /// Text of `queries/decide/level.sql`.
    pub level: String,
    /// `queries/decide/correlation.sql`, compiled.
    pub correlation: Arc<Query>,
    /// The policies that should be in force.
    pub snapshot: Arc<Snapshot>,
    /// The queries, prices and decision settings that all of this was made from.
    pub terms: Arc<Terms>,
    /// What it was tuned by: the writer judges sets under the same.
    pub tuning: Arc<Tuning>,
    /// Whether the terms are those of the policies topic ([`Partition::follow`]), and `snapshot` counts for nothing; otherwise
    /// `snapshot` is adopted at the first step.
    pub follows: bool,
    /// How windows are kept.
    pub stream: crate::stream::Settings,
    /// How long runs are remembered after their last event, µs.
    pub run_retention: Micros,
    /// How records are decoded.
    pub decoder: Arc<crate::telemetry::Settings>,
    /// `[time] dedup-horizon`, µs, and the cap on ids held.
    pub dedup: (Micros, usize),
    /// `[time] idle-timeout`, µs.
    pub idle_timeout: Micros,
    /// `[alerts]`
    pub alerting: Alerting,
    /// `[interventions]`
    pub acting: Acting,
    /// `[breaker]`
    pub breaker: Share,
    /// `[blindness]`
    pub blindness: Bounds,
    /// Input topics, for the origin of rows.
    pub inputs: InputNames,
    /// CloudEvents source of this deployment.
    pub source: String,
    /// Whether a step hands out every final result (`simulate`).
    pub finals: bool,
    /// `simulate` and `run --until-end`: the step's clock is the highest event time so far, and idle tenants wait for the end.
    pub event_clock: bool,
    /// What `future` compares with; `None`: the step's clock.
    pub future_at: Option<Wall>,
}

/// `[alerts]`: how alerts live, µs of event time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alerting {
    /// How long an alert stays open after the last thing in it has ended.
    pub keep_firing_for: Micros,
    /// How long an external alert that nobody clears is up.
    pub external_timeout: Micros,
}

impl Default for Alerting {
    fn default() -> Self {
        Self { keep_firing_for: 0, external_timeout: 24 * 3_600 * crate::clock::SECOND }
    }
}

/// What one step gave, before it is encoded.
#[derive(Debug, Default)]
pub struct Step {
    /// The step's clock.
    pub now: Wall,
    /// In order.
    pub decisions: Vec<Decision>,
    /// What could not be processed.
    pub dead: Vec<DeadLetter>,
    /// What is live now, as far as it has changed: a view, outside the digest.
    pub live: Vec<Live>,
    /// Records for the repartition topic.
    pub rekeyed: Vec<OutRecord>,
    /// The snapshot of [`Settings`] adopted by this step; one that was followed is on the topic already.
    pub adopted: Option<Arc<Snapshot>>,
    /// With [`Settings::finals`]: (metric, rows) of closed windows.
    pub finals: Vec<(usize, RecordBatch)>,
    /// What to count.
    pub counts: Counts,
    /// Tenants whose rows were taken, and how many.
    pub heard: Vec<(Arc<str>, u32)>,
    /// Who measures the step.
    pub watch: Watch,
}

/// Figures of a step, for metrics and summaries.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Counts {
    /// Records by [`Input`].
    pub records: [u64; 4],
    /// Rows decoded.
    pub decoded: u64,
    /// Duplicates dropped.
    pub duplicates: u64,
    /// Rows late for at least one window, by metric.
    pub late: Vec<u64>,
    /// Windows closed, by metric.
    pub closed: Vec<u64>,
    /// Early results of touched groups, by metric.
    pub early: Vec<u64>,
    /// Rows of runs that no policy covers.
    pub uncovered: u64,
    /// Lessons that could not be recorded, by type.
    pub lessons_failed: [u64; 3],
    /// Rows of windows on their way to a limit that are not shown, because there are too many.
    pub unshown: u64,
    /// Rows some windows refused because their tenant has too many live keys.
    pub overflow_rows: u64,
}

/// Terms in force, as everyone follows them.
#[derive(Clone)]
pub struct InForce {
    /// How often the snapshot in force has changed.
    pub revision: u64,
    /// The policies.
    pub snapshot: Arc<Snapshot>,
    /// Made from the snapshot's queries, prices and decision settings.
    pub settings: Arc<Settings>,
    /// What nobody is told of, and for how long.
    pub silences: Arc<Vec<Silence>>,
}

/// A partition's state.
pub struct Partition {
    pub(super) settings: Arc<Settings>,
    pub(super) own: Own,
    pub(super) plans: Arc<Vec<MetricPlan>>,
    pub(super) engine: Engine,
    pub(super) limits: LimitSets,
    pub(super) groups: GroupCache,
    pub(super) levels: Levels,
    pub(super) correlation: Correlation,
    pub(super) interventions: Interventions,
    pub(super) standing: Standing,
    pub(super) lessons: Lessons,
    pub(super) breakers: Breakers,
    pub(super) activity: Activity,
    pub(super) notes: NotesOfRuns,
    pub(super) sights: Sights,
    pub(super) rollups: Rollups,
    /// How each tenant stands, and, at the owner of `*`, how all do and what is done about it.
    pub(super) tenant_levels: level::Levels,
    pub(super) overall: Overall,
    pub(super) responses: Responses,
    pub(super) responses_dirty: bool,
    pub(super) runs: RunTable,
    pub(super) clocks: Clocks,
    pub(super) meta: Meta,
    pub(super) dedup: Dedup,
    pub(super) dirty_snapshots: BTreeSet<Arc<str>>,
    pub(super) adopt: Option<Arc<Snapshot>>,
    /// Revision of the snapshot to adopt, when it was followed.
    pub(super) adopt_revision: Option<u64>,
    /// Silences in force, and those to adopt with the revision.
    pub(super) silences: Arc<Vec<Silence>>,
    pub(super) adopt_silences: Option<Arc<Vec<Silence>>>,
    pub(super) silences_dirty: bool,
    pub(super) writer: Writer,
    pub(super) checkpoint_due: bool,
    /// Keys that ended before other settings came in force: the checkpoint topic may hold them still.
    pub(super) gone: Vec<Vec<u8>>,
    pub(super) live: LiveWindows,
    decoder: Decoder,
    pub(super) thresholds: Prepared,
}

/// Small state of the partition as a whole.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Meta {
    /// Clock of the last step.
    pub now: Micros,
    /// Time spent at the end of the input.
    pub end: EndClock,
    /// Id of the snapshot in force.
    pub snapshot: String,
    /// Its revision; 0 before any was followed.
    #[serde(default)]
    pub revision: u64,
    /// Clock of the last look at the lag that found something to say.
    #[serde(default)]
    pub lag_looked: Micros,
}

/// The plans of the metrics, in order.
pub fn plans(metrics: &[Arc<Metric>]) -> Vec<MetricPlan> {
    metrics
        .iter()
        .map(|m| MetricPlan {
            name: m.name.clone(),
            scope: scope_of(m.scope),
            shape: MetricPlan::shape_of(m.query.window()),
            early: m.query.early() && m.emit == Emit::Changes,
            anomaly: m.sql.contains("anomaly_score"),
            cumulative: m.query.early() && !m.sql.to_lowercase().contains("max("),
        })
        .collect()
}

/// The scope of a metric file as policies know it: the same closed list, by name.
pub fn scope_of(scope: crate::stream::Scope) -> Scope {
    Scope::parse(scope.name()).unwrap_or(Scope::Tenant)
}

/// How long runs are remembered: at least until every window of theirs has closed, whatever is asked for.
fn run_retention(settings: &Settings) -> Micros {
    let gap = |m: &Arc<Metric>| match m.query.window() {
        Window::Session { gap } | Window::SessionUntil { gap } => *gap,
        Window::Tumble { .. } | Window::Hop { .. } => 0,
    };
    let longest = settings.metrics.iter().map(gap).max().unwrap_or_default();
    settings.run_retention.max(longest.saturating_add(settings.stream.lateness))
}

fn core_error(context: &'static str) -> impl Fn(&dyn std::fmt::Display) -> CoreError {
    move |e| CoreError { context, message: e.to_string() }
}

impl Partition {
    /// An empty partition.
    pub fn new(settings: Arc<Settings>, own: Own) -> Result<Self, CoreError> {
        let plans = Arc::new(plans(&settings.metrics));
        let queries = settings.metrics.iter().map(|m| Arc::clone(&m.query)).collect();
        let engine =
            Engine::new(queries, settings.stream.clone()).map_err(|e| core_error("cannot set up the windows")(&e))?;
        let infos = plans.iter().map(|p| MetricInfo { name: p.name.clone(), scope: p.scope }).collect();
        let thresholds =
            judge::prepare(&settings.thresholds).map_err(|e| core_error("cannot prepare the thresholds")(&e))?;
        let correlation = Correlation::new(Arc::clone(&settings.correlation))
            .map_err(|e| core_error("cannot set up the correlation")(&e))?;
        let tenant_levels = level::Levels::new(settings.tuning.leveling, &settings.level)
            .map_err(|e| core_error("cannot prepare the policy level")(&e))?;
        let key_sets = (0..plans.len()).map(|q| engine.key_set(q)).collect();
        let snapshot = Arc::clone(&settings.snapshot);
        let mut standing = Standing::new(&snapshot, plans.iter().map(|p| p.name.clone()));
        // nobody looks at a replay of files
        standing.entities.follow(!settings.event_clock);
        Ok(Self {
            own,
            engine,
            limits: LimitSets::new(infos, Arc::clone(&snapshot)),
            groups: GroupCache::new(key_sets),
            levels: Levels::default(),
            correlation,
            interventions: Interventions::new(settings.acting, !settings.event_clock),
            lessons: Lessons::default(),
            breakers: Breakers::new(settings.breaker),
            activity: Activity::default(),
            notes: NotesOfRuns::default(),
            sights: Sights::new(settings.blindness),
            rollups: Rollups::default(),
            standing,
            tenant_levels,
            overall: Overall::default(),
            responses: Responses::default(),
            responses_dirty: false,
            runs: RunTable::new(run_retention(&settings), settings.stream.max_live_keys.saturating_mul(2)),
            clocks: Clocks::default(),
            meta: Meta { snapshot: snapshot.id().to_string(), ..Meta::default() },
            dedup: Dedup::new(settings.dedup.0, settings.dedup.1),
            dirty_snapshots: BTreeSet::from([Arc::clone(snapshot.id())]),
            adopt: (!settings.follows).then_some(snapshot),
            adopt_revision: None,
            silences: Arc::default(),
            adopt_silences: None,
            silences_dirty: false,
            writer: Writer::default(),
            checkpoint_due: false,
            gone: Vec::new(),
            live: LiveWindows::default(),
            decoder: Decoder::new(Arc::clone(&settings.decoder)),
            thresholds,
            plans,
            settings,
        })
    }

    /// Runs one step.
    pub fn advance(&mut self, input: &StepInput<'_>) -> Result<Step, CoreError> {
        self.advance_watched(input, Watch::default())
    }

    /// Runs one step, and tells `watch` of its parts.
    pub fn advance_watched(&mut self, input: &StepInput<'_>, watch: Watch) -> Result<Step, CoreError> {
        let mut step = Step { watch, ..Step::default() };
        step.watch.enter(Phase::Command);
        step.counts.late = vec![0; self.plans.len()];
        step.counts.closed = vec![0; self.plans.len()];
        step.counts.early = vec![0; self.plans.len()];
        let now = if self.settings.event_clock { Wall(self.meta.now) } else { Wall(input.now.0.max(self.meta.now)) };
        self.meta.now = now.0;
        let tick = self.meta.end.step(now, !self.settings.event_clock && at_end(&input.inputs));
        if self.limits.crowded() {
            self.limits.start_over();
            self.runs.rebind();
            self.groups.forget();
        }
        let mut entries = Entries::default();
        if !input.replaying {
            self.adopt_snapshot(now, &mut step, &mut entries);
        }
        for batch in &input.inputs {
            step.counts.records[batch.input as usize] += batch.records.len() as u64;
        }
        self.take_commands(&input.inputs, now, &mut step, &mut entries);
        self.end_terms(now, &mut step);
        self.take_outcomes(&input.inputs, now, &mut step, &mut entries);
        self.pass_deadlines(now, &mut step, &mut entries);
        self.return_lessons(now, &mut step);
        self.watch_lag(&input.inputs, now, &mut step, &mut entries);
        let idle = if tick { self.clocks.idle(self.settings.idle_timeout, &self.meta.end) } else { Vec::new() };
        for (tenant, clock) in &idle {
            let watermark = clock.saturating_sub(self.settings.stream.lateness);
            self.dedup.expire(tenant, watermark);
            self.runs.expire(tenant, *clock);
            self.lessons.expire(tenant, *clock);
            self.age_level(tenant, *clock, now, &mut step, &mut entries);
            self.watch_silence(tenant, *clock, now, &mut step, &mut entries);
            self.clocks.pass(tenant, *clock);
            for (tenant, run) in self.runs.take_denied() {
                self.interventions.admit(&tenant, &run);
            }
            step.watch.enter(Phase::Evaluate);
            let output =
                self.engine.advance(tenant, watermark).map_err(|e| core_error("cannot advance the windows")(&e))?;
            self.decide(output, &mut Around::none(now), &mut step, &mut entries)?;
        }
        self.take_telemetry(&input.inputs, now, &mut step, &mut entries)?;
        if input.finish {
            step.watch.enter(Phase::Evaluate);
            let output = self.engine.close_all().map_err(|e| core_error("cannot close the windows")(&e))?;
            self.decide(output, &mut Around::none(Wall(self.meta.now)), &mut step, &mut entries)?;
        }
        self.roll_up(input.finish, &mut step);
        self.runs.settle();
        step.counts.lessons_failed = self.lessons.take_failed();
        step.watch.enter(Phase::Correlate);
        let clocks = &self.clocks;
        let clock_of = |tenant: &str| {
            let idled = idle.iter().find(|(t, _)| **t == *tenant).map(|(_, c)| *c);
            clocks.highest(tenant).into_iter().chain(idled).max()
        };
        let runs = &mut self.runs;
        let mut view = View {
            now: Wall(self.meta.now),
            silences: &self.silences,
            keep_firing_for: self.settings.alerting.keep_firing_for,
            told: &mut |tenant, run, most| runs.told(tenant, run, most),
        };
        let alerts = self
            .correlation
            .step(entries.into_all(), &mut view, clock_of, input.finish)
            .map_err(|e| core_error("cannot correlate alerts")(&e))?;
        step.decisions.extend(alerts.into_iter().map(|a| Decision::Alert(Box::new(a))));
        step.counts.unshown = self.live.take_unshown();
        if !input.replaying && !self.settings.event_clock {
            self.show(&mut step)?;
        }
        step.now = Wall(self.meta.now);
        Ok(step)
    }

    /// The metrics, in the order of the counts.
    pub fn metrics(&self) -> &[Arc<Metric>] {
        &self.settings.metrics
    }

    /// The windows, to look at.
    pub fn windows(&self) -> &Engine {
        &self.engine
    }

    /// Runs and event ids forgotten before their time because of the bounds, since the start.
    pub fn forgotten(&self) -> (u64, u64) {
        (self.runs.forgotten(), self.dedup.forgotten())
    }

    /// The latest record of each intervention that is live, or remembered to be reverted.
    pub fn intervention_records(&self) -> impl Iterator<Item = &crate::decide::records::Intervention> {
        self.interventions.records()
    }

    /// The limit sets, to look at.
    pub fn limits(&self) -> &LimitSets {
        &self.limits
    }

    /// Wall time at which a step without input would close something.
    pub fn deadline(&self) -> Option<Wall> {
        let waits = self.engine.is_open() || !self.correlation.is_empty() || self.clocks.is_counting();
        let tick = self.meta.end.since.filter(|_| waits).map(|since| since.saturating_add(crate::clock::SECOND));
        let mute =
            self.correlation.next_mute(&self.silences, Wall(self.meta.now)).filter(|_| !self.settings.event_clock);
        let due = self.interventions.next_due().into_iter().chain(self.lessons.next_due()).min();
        let due = due.filter(|_| !self.settings.event_clock);
        let level = self.next_ageing().filter(|_| !self.settings.event_clock);
        let terms = self.writer.next_end().filter(|_| !self.settings.event_clock);
        let round = self.next_round().filter(|_| !self.settings.event_clock);
        // another snapshot waits for a step
        let adopt = self.adopt_revision.map(|_| self.meta.now);
        tick.into_iter().chain(terms).chain(level).chain(mute).chain(due).chain(round).chain(adopt).min().map(Wall)
    }

    /// A command that is none goes where what cannot be decoded goes.
    pub(super) fn reject_command(&mut self, origin: Origin, reason: Reason, message: &str, payload: &[u8]) {
        self.decoder.reject(origin, reason, message, payload);
    }
}

fn at_end(inputs: &[InputBatch<'_>]) -> bool {
    let mut telemetry = inputs.iter().filter(|i| matches!(i.input, Input::Telemetry | Input::Repartition)).peekable();
    telemetry.peek().is_some() && telemetry.all(|i| i.at_end)
}
