//! A partition whose steps are counted.
//!
//! Counting, measuring and logging stand outside the core, so the core stays a function of its input; steps run again after a restart
//! are not counted twice.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::cli::governing::Governed;
use crate::cli::load;
use crate::cli::unmatched::{Looked, Policies};
use crate::clock::{Micros, Wall};
use crate::decide::records::{AlertStatus, CommandResult, Decision, Kind};
use crate::kafka::core::{Core, CoreError, Fact, Input, Part, StateChange, StepInput, StepOutput, Topic};
use crate::logging::Limiter;
use crate::metrics::labels::{self, Label};
use crate::metrics::{Held, Metrics};
use crate::pipeline::{InForce, Partition, Phase, Step, Watch};
use crate::policy::Snapshot;
use crate::serve::verdicts::Verdicts;

/// Between two lines about interventions, µs: a storm must not fill the log.
const LINE_EVERY: Micros = 100_000;
/// How often a partition says what it holds.
const GAUGE_EVERY: Duration = Duration::from_secs(1);

/// What the partitions of a process count into.
pub(super) struct Counting {
    metrics: Arc<Metrics>,
    /// What is decided here is known here before it is committed.
    verdicts: Option<Arc<Verdicts>>,
    /// Policies in force that no limit set holds so far, by (tenant, id).
    unmatched: Mutex<Policies>,
    /// Whether the parts of steps are measured, for traces.
    measures: bool,
    lines: Limiter,
}

impl Counting {
    /// Under `snapshot`; `verdicts` are told of what is decided.
    pub(super) fn new(metrics: Arc<Metrics>, snapshot: &Snapshot, verdicts: Option<Arc<Verdicts>>) -> Self {
        let lines = Limiter::new(LINE_EVERY);
        let counting = Self { metrics, verdicts, unmatched: Mutex::default(), measures: false, lines };
        counting.expect(snapshot);
        counting
    }

    /// Measures the parts of steps, for traces.
    pub(super) fn measuring(mut self, measures: bool) -> Self {
        self.measures = measures;
        self
    }

    /// Other policies are in force: each is unmatched until an event meets it.
    pub(super) fn expect(&self, snapshot: &Snapshot) {
        let policies = load::in_force(snapshot);
        self.metrics.unmatched_policies.set(i64::try_from(policies.len()).unwrap_or(i64::MAX));
        *self.unmatched.lock().unwrap_or_else(PoisonError::into_inner) = policies;
    }
}

/// A partition whose steps are counted.
pub(super) struct Metered {
    number: i32,
    partition: Partition,
    counting: Arc<Counting>,
    /// The terms to work under; `None`: those the partition was made with.
    governed: Option<Arc<Governed>>,
    /// The revision that could not be followed.
    unfollowed: Option<u64>,
    /// The metrics in order.
    names: Vec<String>,
    gauged: Option<Instant>,
    /// Limit sets looked at for the policies they hold.
    looked: Looked,
    /// What the partition has forgotten because of its bounds, as counted.
    forgotten: (u64, u64),
    /// Time spent on each tenant since its last roll-up.
    spent: HashMap<Arc<str>, Duration>,
    /// The last live step, until it is told.
    untold: Option<Step>,
}

/// When the parts of a step began.
#[derive(Default, Clone)]
struct Marks(Arc<Mutex<Vec<(Phase, Instant)>>>);

impl Marks {
    fn watch(&self) -> Watch {
        let marks = self.clone();
        Watch::new(move |phase| {
            let mut marks = marks.0.lock().unwrap_or_else(PoisonError::into_inner);
            if marks.last().is_none_or(|(last, _)| *last != phase) {
                marks.push((phase, Instant::now()));
            }
        })
    }

    /// The parts, each up to the next; then those of encoding, which ended now.
    fn parts(&self, decided: Instant) -> Vec<Part> {
        let marks = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let ends = marks.iter().skip(1).map(|(_, from)| *from).chain([decided]);
        let parts = marks.iter().zip(ends).map(|((phase, from), to)| Part { name: phase.as_str(), from: *from, to });
        let encoded = Part { name: "encode", from: decided, to: Instant::now() };
        parts.chain([encoded]).collect()
    }
}

fn input_label(input: Input) -> labels::Input {
    match input {
        Input::Commands => labels::Input::Commands,
        Input::Outcomes => labels::Input::Outcomes,
        Input::Telemetry => labels::Input::Telemetry,
        Input::Repartition => labels::Input::Repartition,
    }
}

impl Metered {
    /// Wraps partition `number`.
    pub(super) fn new(
        number: i32,
        partition: Partition,
        counting: Arc<Counting>,
        governed: Option<Arc<Governed>>,
    ) -> Self {
        let names = names(&partition);
        let (gauged, looked) = (None, Looked::default());
        Self {
            number,
            partition,
            counting,
            governed,
            unfollowed: None,
            names,
            gauged,
            looked,
            forgotten: (0, 0),
            spent: HashMap::new(),
            untold: None,
        }
    }

    /// Terms that are newer than the partition's and can be taken.
    fn newer(&self) -> Option<Arc<InForce>> {
        let in_force = self.governed.as_ref()?.in_force()?;
        (self.unfollowed != Some(in_force.revision) && self.partition.is_behind(&in_force)).then_some(in_force)
    }

    fn follow(&mut self) {
        let Some(in_force) = self.newer() else { return };
        match self.partition.follow(&in_force) {
            Ok(()) => {
                self.names = names(&self.partition);
                self.looked = Looked::default();
            }
            Err(error) => {
                tracing::error!(%error, partition = self.number, revision = in_force.revision, "cannot work under the policies in force; the ones before stay");
                self.unfollowed = Some(in_force.revision);
            }
        }
    }

    /// The time of a step is shared by the tenants of its rows.
    fn spend(&mut self, step: &Step, took: Duration) {
        let rows: u32 = step.heard.iter().map(|(_, rows)| *rows).sum();
        let Some(each) = took.checked_div(rows) else { return };
        for (tenant, rows) in &step.heard {
            *self.spent.entry(Arc::clone(tenant)).or_default() += each * *rows;
        }
    }

    /// Adds the time spent to the roll-ups of a step: measured, so it is no part of what is decided, nor of the digest. What was spent
    /// before a restart is not in it.
    fn tell_time(&mut self, output: &mut StepOutput) {
        for record in output.records.iter_mut().filter(|record| record.topic == Topic::Evaluations) {
            let Some(payload) = record.payload.as_mut() else { continue };
            let tenant = std::str::from_utf8(&record.key).unwrap_or_default();
            let spent = self.spent.remove(tenant).unwrap_or_default();
            if payload.last() == Some(&b'}') {
                payload.pop();
                payload.extend_from_slice(format!(",\"time_spent_us\":{}}}", spent.as_micros()).as_bytes());
            }
        }
    }

    fn count_input(&self, input: &StepInput<'_>) {
        let m = &self.counting.metrics;
        for batch in &input.inputs {
            let length = |field: Option<&[u8]>| field.map_or(0, |f| f.len() as u64);
            let bytes = batch.records.iter().map(|r| length(r.key) + length(r.payload)).sum();
            m.input_records.get(input_label(batch.input)).inc_by(batch.records.len() as u64);
            m.input_bytes.get(input_label(batch.input)).inc_by(bytes);
        }
    }

    fn count(&self, step: &Step) {
        let m = &self.counting.metrics;
        m.decoded.inc_by(step.counts.decoded);
        m.duplicates.inc_by(step.counts.duplicates);
        m.rekeyed.inc_by(step.rekeyed.len() as u64);
        m.uncovered_events.inc_by(step.counts.uncovered);
        for (kind, failed) in LESSONS.into_iter().zip(step.counts.lessons_failed) {
            m.lessons_failed.get(kind).inc_by(failed);
        }
        m.key_overflow_rows.inc_by(step.counts.overflow_rows);
        m.live_unshown.inc_by(step.counts.unshown);
        for (query, name) in self.names.iter().enumerate() {
            let of = |counts: &[u64]| counts.get(query).copied().unwrap_or(0);
            m.late_rows.get(name).inc_by(of(&step.counts.late));
            m.windows_closed.get(name).inc_by(of(&step.counts.closed));
            m.early_results.get(name).inc_by(of(&step.counts.early));
        }
        for letter in &step.dead {
            if let Some(reason) = labels::DeadLetterReason::parse(letter.reason.as_str()) {
                m.dead_letters.get(reason).inc();
            }
        }
        for decision in &step.decisions {
            count_decision(m, decision);
            self.log(decision);
        }
    }

    /// What is ordered is worth a line, the rest for those who look; `runwarden explain` takes each id.
    fn log(&self, decision: &Decision) {
        match decision {
            Decision::Intervention(i) if i.revision == 1 => {
                let Some(held_back) = self.counting.lines.allow("intervention", Wall::now()) else { return };
                let (id, tenant, target) = (i.intervention_id.as_str(), i.tenant_id.as_str(), i.target.id.as_str());
                let (kind, of, state) = (i.kind.as_str(), i.target.kind.as_str(), i.state.as_str());
                tracing::info!(decision_id = id, tenant, kind, of, target, state, held_back, "an intervention");
            }
            Decision::Signal(s) => {
                let (id, kind, scope) = (s.signal_id.as_str(), s.kind.as_str(), s.scope.id.as_str());
                tracing::debug!(decision_id = id, tenant = s.tenant_id, kind, metric = s.metric, scope, "a signal");
            }
            Decision::Alert(a) => {
                let (id, status) = (a.alert_id.as_str(), a.status.as_str());
                tracing::debug!(decision_id = id, tenant = a.tenant_id, status, "an alert");
            }
            _ => {}
        }
    }

    /// What a trace says of a step.
    fn facts(&self, step: &Step) -> Vec<(&'static str, Fact)> {
        let late: u64 = step.counts.late.iter().sum();
        let mut facts = vec![
            ("runwarden.rows", Fact::Count(step.counts.decoded)),
            ("runwarden.duplicates", Fact::Count(step.counts.duplicates)),
            ("runwarden.late_rows", Fact::Count(late)),
            ("runwarden.tenants", Fact::Count(step.heard.len() as u64)),
            ("runwarden.decisions", Fact::Count(step.decisions.len() as u64)),
            ("runwarden.dead_letters", Fact::Count(step.dead.len() as u64)),
        ];
        let watermarks = step.heard.iter().filter_map(|(tenant, _)| self.partition.windows().watermark(tenant));
        let lowest = watermarks.min().filter(|w| *w > Micros::MIN && *w < Micros::MAX);
        facts.extend(lowest.map(|lowest| ("runwarden.watermark", Fact::Time(lowest))));
        facts
    }

    fn tell_verdicts(&self, step: &Step) {
        let Some(verdicts) = &self.counting.verdicts else { return };
        for decision in &step.decisions {
            match decision {
                Decision::Intervention(record) => verdicts.intervention(record, Wall::now()),
                Decision::Signal(signal) => verdicts.signal(signal, Wall::now()),
                _ => {}
            }
        }
    }

    /// Takes the policies of new limit sets from those that matched nothing.
    fn match_policies(&mut self) {
        let limits = self.partition.limits();
        if !self.looked.is_behind(limits) {
            return;
        }
        let mut unmatched = self.counting.unmatched.lock().unwrap_or_else(PoisonError::into_inner);
        self.looked.look(limits, &mut unmatched);
        self.counting.metrics.unmatched_policies.set(i64::try_from(unmatched.len()).unwrap_or(i64::MAX));
    }

    fn gauge(&mut self) {
        self.gauged = Some(Instant::now());
        let stats = self.partition.windows().stats();
        let names = self.names.iter().zip(&stats.queries);
        let lowest = self.partition.windows().watermarks().map(|(_, watermark, _)| watermark).min();
        let lowest = lowest.filter(|w| *w > Micros::MIN && *w < Micros::MAX);
        let held = Held {
            keys: stats.keys as u64,
            state_bytes: stats.state_bytes as u64,
            overflowed: stats.overflowing as u64,
            blind: self.partition.blind(),
            open_windows: names.map(|(name, query)| (name.clone(), query.open as u64)).collect(),
            watermark_age: lowest.map(|w| Wall::now().0.saturating_sub(w)),
        };
        let m = &self.counting.metrics;
        m.hold(self.number, held);
        let (runs, ids) = self.partition.forgotten();
        m.forgotten_runs.inc_by(runs.saturating_sub(self.forgotten.0));
        m.forgotten_ids.inc_by(ids.saturating_sub(self.forgotten.1));
        self.forgotten = (runs, ids);
    }
}

/// In the order of [`crate::decide::lessons::LessonType`].
const LESSONS: [labels::LessonType; 3] =
    [labels::LessonType::Failure, labels::LessonType::NearThreshold, labels::LessonType::CriticalSuccess];

fn count_decision(m: &Metrics, decision: &Decision) {
    match decision {
        Decision::Signal(s) => {
            let kind = match s.kind {
                Kind::Near => labels::SignalKind::Near,
                Kind::Breach => labels::SignalKind::Breach,
                Kind::Resolved => labels::SignalKind::Resolved,
            };
            if let Some(mode) = labels::Mode::parse(&s.mode) {
                m.signals.get(kind, mode).inc();
            }
            if s.kind != Kind::Resolved {
                Metrics::observe(&m.event_to_decision, s.decided_at.saturating_sub(s.event_time).max(0));
            }
        }
        Decision::Alert(a) => {
            let status = match a.status {
                AlertStatus::Open => labels::AlertStatus::Open,
                AlertStatus::Updated => labels::AlertStatus::Updated,
                AlertStatus::Resolved => labels::AlertStatus::Resolved,
            };
            m.alerts.get(status).inc();
        }
        Decision::Intervention(i) => {
            if let Some(kind) = labels::InterventionType::parse(&i.kind).filter(|_| i.revision == 1) {
                m.interventions.get(kind, labels::Effect::Enforced).inc();
            }
        }
        Decision::Audit(a) => {
            m.audit.inc();
            if a.kind == "breaker.tripped" {
                m.breakers_tripped.inc();
                tracing::warn!(decision_id = a.audit_id, tenant = a.tenant_id, policy = a.subject.id, "{}", a.reason);
            }
            if a.kind == "blindness.began" {
                let cause = a.after.get("cause").and_then(serde_json::Value::as_str).unwrap_or_default();
                if let Some(cause) = labels::BlindCause::parse(cause) {
                    m.blindness.get(cause).inc();
                }
                tracing::warn!(decision_id = a.audit_id, tenant = a.tenant_id, cause, policies = %a.after["affected_total"], "{}: its policies are UNKNOWN", a.reason);
            }
            if a.kind == "key_overflow" {
                tracing::warn!(decision_id = a.audit_id, tenant = a.tenant_id, live_keys = %a.after["live_keys"], "{}", a.reason);
            }
            let would = a.after.get("would").and_then(serde_json::Value::as_str).unwrap_or_default();
            if let Some(kind) = labels::InterventionType::parse(would) {
                m.interventions.get(kind, labels::Effect::Shadow).inc();
            }
        }
        Decision::CommandResult(r) => count_answer(m, r),
        Decision::Lesson(l) => {
            if l.revision == 1 {
                m.lessons.get(LESSONS[l.lesson_type as usize]).inc();
            }
        }
        Decision::Command(_) | Decision::Guardian(_) | Decision::Policy(_) | Decision::Run(_) => {}
        Decision::Level(_) | Decision::Response(_) | Decision::Evaluation(_) => {}
    }
}

/// The two rules that cannot be switched off are logged by their names (P11).
fn count_answer(m: &Metrics, r: &CommandResult) {
    let accepted = r.status == "ACCEPTED";
    m.commands.get(if accepted { labels::CommandStatus::Accepted } else { labels::CommandStatus::Refused }).inc();
    let (command, id, reason) = (r.command.as_str(), r.command_id.as_str(), r.reason.as_str());
    match (command, r.code.as_str()) {
        (_, "conflict") => tracing::warn!(command, id, reason, "GOV-POL-001_ACTIVATION_BLOCKED"),
        (_, "dependents") => tracing::warn!(command, id, reason, "GOV-POL-002_DELETION_BLOCKED"),
        ("policy_set.apply" | "proposal.approve" | "limit.enable", "ok") => {
            tracing::info!(command, id, "GOV-POL-001_CONFLICT_CHECK_PASSED");
        }
        ("policy.delete" | "rule.retire", "ok") => tracing::info!(command, id, "GOV-POL-002_DELETION_ALLOWED"),
        (_, code) if !accepted => tracing::warn!(command, id, code, reason, "a command was refused"),
        _ => tracing::info!(command, id, "a command was accepted"),
    }
}

fn names(partition: &Partition) -> Vec<String> {
    partition.metrics().iter().map(|m| m.name.clone()).collect()
}

impl Core for Metered {
    fn version(&self) -> &str {
        self.partition.version()
    }

    fn step(&mut self, input: &StepInput<'_>) -> Result<StepOutput, CoreError> {
        if !input.replaying {
            self.follow();
        }
        let marks = (self.counting.measures && !input.replaying).then(Marks::default);
        let watch = marks.as_ref().map(Marks::watch).unwrap_or_default();
        let began = Instant::now();
        let step = self.partition.advance_watched(input, watch)?;
        let decided = Instant::now();
        self.spend(&step, decided.saturating_duration_since(began));
        if !input.replaying {
            self.tell_verdicts(&step);
            self.count_input(input);
        }
        self.match_policies();
        if !input.replaying && self.gauged.is_none_or(|at| at.elapsed() >= GAUGE_EVERY) {
            self.gauge();
        }
        let mut output = self.partition.encode(&step)?;
        self.tell_time(&mut output);
        if let Some(marks) = marks {
            output.parts = marks.parts(decided);
            output.facts = self.facts(&step);
        }
        self.untold = (!input.replaying).then_some(step);
        Ok(output)
    }

    fn tell(&mut self) {
        if let Some(step) = self.untold.take() {
            self.count(&step);
        }
    }

    fn take_changes(&mut self) -> Vec<StateChange> {
        let changes = self.partition.take_changes();
        self.gauge();
        changes
    }

    fn mark_all_dirty(&mut self) {
        self.partition.mark_all_dirty();
    }

    fn wants_checkpoint(&self) -> bool {
        self.partition.wants_checkpoint()
    }

    fn restore(&mut self, key: &[u8], value: &[u8]) -> Result<(), CoreError> {
        self.counting.metrics.restored_records.inc();
        self.partition.restore(key, value)
    }

    fn restored(&mut self) -> Result<(), CoreError> {
        // also those that are older than what the topics are followed for
        if let Some(verdicts) = &self.counting.verdicts {
            self.partition.intervention_records().for_each(|record| verdicts.intervention(record, Wall::now()));
        }
        self.partition.restored()
    }

    fn history_gone(&mut self, reason: &str) {
        self.partition.history_gone(reason);
    }

    fn split(&mut self, partitions: i32) -> Result<Vec<Vec<StateChange>>, CoreError> {
        self.partition.split(partitions)
    }

    fn join(&mut self, shares: Vec<Vec<StateChange>>) -> Result<(), CoreError> {
        self.partition.join(shares)
    }

    fn takes_telemetry(&self) -> bool {
        self.governed.as_ref().is_none_or(|governed| governed.released() && self.partition.is_governed())
    }

    fn next_deadline(&self) -> Option<Wall> {
        match self.newer() {
            Some(_) => Some(Wall(0)),
            None => self.partition.next_deadline(),
        }
    }
}
