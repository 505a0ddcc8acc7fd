//! The core with its figures counted, and the shell's events as metrics, health and logs.
//!
//! Counting stands outside the core, so the core stays a function of its input; steps run again after a restart are not
//! counted twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::clock::{Micros, Wall};
use crate::decide::records::{AlertStatus, Decision, Kind};
use crate::kafka::core::{Core, CoreError, StateChange, StepInput, StepOutput, Topic};
use crate::kafka::status::LogObserver;
use crate::kafka::{Event, Observer};
use crate::metrics::Metrics;
use crate::metrics::labels::{self, Label};
use crate::pipeline::{Partition, Step};
use crate::serve::Health;
use crate::serve::health::{Owned, STARTING};

/// A partition whose steps are counted.
pub(super) struct Metered {
    partition: Partition,
    metrics: Arc<Metrics>,
    names: Vec<String>,
}

impl Metered {
    /// Wraps a partition; `names` are its metrics in order.
    pub(super) fn new(partition: Partition, metrics: Arc<Metrics>, names: Vec<String>) -> Self {
        Self { partition, metrics, names }
    }

    fn count(&self, step: &Step) {
        let m = &self.metrics;
        for (input, records) in [
            (labels::Input::Commands, step.counts.records[0]),
            (labels::Input::Outcomes, step.counts.records[1]),
            (labels::Input::Telemetry, step.counts.records[2]),
            (labels::Input::Repartition, step.counts.records[3]),
        ] {
            m.input_records.get(input).inc_by(records);
        }
        m.decoded.inc_by(step.counts.decoded);
        m.duplicates.inc_by(step.counts.duplicates);
        m.rekeyed.inc_by(step.rekeyed.len() as u64);
        m.uncovered_events.inc_by(step.counts.uncovered);
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
            self.count_decision(decision);
        }
    }

    fn count_decision(&self, decision: &Decision) {
        let m = &self.metrics;
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
                let would = a.after.get("would").and_then(serde_json::Value::as_str).unwrap_or_default();
                if let Some(kind) = labels::InterventionType::parse(would) {
                    m.interventions.get(kind, labels::Effect::Shadow).inc();
                }
            }
            Decision::CommandResult(_) => {}
        }
    }

    fn gauge(&self) {
        let stats = self.partition.windows().stats();
        self.metrics.live_keys.set(i64::try_from(stats.keys).unwrap_or(i64::MAX));
        self.metrics.state_bytes.set(i64::try_from(stats.state_bytes).unwrap_or(i64::MAX));
        for (query, name) in self.names.iter().enumerate() {
            let open = stats.queries.get(query).map_or(0, |q| q.open);
            self.metrics.windows_open.get(name).set(i64::try_from(open).unwrap_or(i64::MAX));
        }
        let lowest = self.partition.windows().watermarks().map(|(_, watermark, _)| watermark).min();
        if let Some(lowest) = lowest.filter(|w| *w > Micros::MIN && *w < Micros::MAX) {
            self.metrics.set_watermark_age(Wall::now().0.saturating_sub(lowest));
        }
    }
}

impl Core for Metered {
    fn version(&self) -> &str {
        self.partition.version()
    }

    fn step(&mut self, input: &StepInput<'_>) -> Result<StepOutput, CoreError> {
        let step = self.partition.advance(input)?;
        if !input.replaying {
            self.count(&step);
        }
        self.partition.encode(&step)
    }

    fn take_changes(&mut self) -> Vec<StateChange> {
        let changes = self.partition.take_changes();
        self.metrics.checkpoint_records.inc_by(changes.len() as u64);
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
        self.metrics.restored_records.inc();
        self.partition.restore(key, value)
    }

    fn restored(&mut self) -> Result<(), CoreError> {
        self.partition.restored()
    }

    fn next_deadline(&self) -> Option<Wall> {
        self.partition.next_deadline()
    }
}

/// Shell events as metrics, health and log lines.
pub(super) struct Watching {
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    restoring: AtomicU64,
    log: LogObserver,
}

/// Reason codes of `/readyz`.
const KAFKA: &str = "kafka";
const RESTORING: &str = "restoring";

impl Watching {
    /// Feeds these.
    pub(super) fn new(metrics: Arc<Metrics>, health: Arc<Health>) -> Self {
        Self { metrics, health, restoring: AtomicU64::new(0), log: LogObserver }
    }

    fn restored(&self) {
        if self.restoring.load(Ordering::Relaxed) == 0 {
            self.health.ready(RESTORING);
            self.health.ready(STARTING);
        }
    }
}

fn duration(d: std::time::Duration) -> Micros {
    Micros::try_from(d.as_micros()).unwrap_or(Micros::MAX)
}

impl Observer for Watching {
    fn on(&self, event: Event<'_>) {
        let m = &self.metrics;
        match &event {
            Event::Waiting { reason } => self.health.not_ready(KAFKA, *reason),
            Event::Connected => self.health.ready(KAFKA),
            Event::Assigned(partitions) => {
                for partition in *partitions {
                    self.restoring.fetch_add(1, Ordering::Relaxed);
                    self.health.set_partition(*partition, Owned { lag: None, restoring: true });
                }
                if partitions.is_empty() {
                    self.restored();
                } else {
                    self.health.not_ready(RESTORING, format!("{} partitions", partitions.len()));
                }
            }
            Event::Revoked { partitions, .. } => {
                for partition in *partitions {
                    self.health.forget_partition(*partition);
                    m.lag.forget(*partition);
                }
            }
            Event::Restored { partition, took, steps, .. } => {
                let left = self.restoring.load(Ordering::Relaxed).saturating_sub(1);
                self.restoring.store(left, Ordering::Relaxed);
                self.health.set_partition(*partition, Owned { lag: None, restoring: false });
                Metrics::observe(&m.restore_duration, duration(*took));
                m.replayed_steps.inc_by(*steps);
                self.restored();
            }
            Event::ReplayMismatch { .. } => m.replay_mismatches.inc(),
            Event::Stepped { took, .. } => {
                m.steps.inc();
                Metrics::observe(&m.step_duration, duration(*took));
                self.health.beat(Wall::now());
            }
            Event::Committed(committed) => {
                m.transactions.get(labels::TransactionOutcome::Committed).inc();
                m.checkpoint_bytes.inc_by(committed.checkpoint_bytes as u64);
                for topic in Topic::ALL {
                    if let Some(label) = labels::Output::parse(topic.key()) {
                        m.output_records.get(label).inc_by(committed.records_out[topic as usize]);
                    }
                }
                if committed.oldest > 0 {
                    Metrics::observe(&m.event_to_commit, committed.at.0.saturating_sub(committed.oldest).max(0));
                }
                self.health.beat(committed.at);
            }
            Event::Aborted { .. } => {
                m.transactions.get(labels::TransactionOutcome::Aborted).inc();
                m.transactions.get(labels::TransactionOutcome::Resent).inc();
            }
            Event::Rebuilding { fenced, .. } => {
                m.restarts.inc();
                self.restoring.store(0, Ordering::Relaxed);
                if *fenced {
                    m.transactions.get(labels::TransactionOutcome::Fenced).inc();
                }
            }
            _ => {}
        }
        self.log.on(event);
    }
}
