//! What the shell says, as metrics, health and log lines.
//!
//! Events take readiness away at once; only the sampler of [`crate::cli::service`] gives it back, when the shell's own status
//! says that the group has answered and everything assigned is restored. So no order of events can leave it wrong.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::clock::{Micros, Wall};
use crate::kafka::core::{Input, Topic};
use crate::kafka::status::LogObserver;
use crate::kafka::{Event, Observer, Status};
use crate::metrics::Metrics;
use crate::metrics::labels::{self, Label};
use crate::serve::Health;
use crate::serve::health::{Owned, STARTING};

/// Reason code of `/readyz`: the broker does not answer, or the clients are being rebuilt.
const KAFKA: &str = "kafka";
/// Reason code of `/readyz`: the group has not said which partitions are ours.
const GROUP: &str = "group";
const JOINING: &str = "this process has no part in the consumer group (yet, or any more)";

/// Takes the shell's events.
pub(super) struct Watching {
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    log: LogObserver,
}

impl Watching {
    /// Feeds these.
    pub(super) fn new(metrics: Arc<Metrics>, health: Arc<Health>) -> Self {
        Self { metrics, health, log: LogObserver }
    }

    fn give_up(&self, partition: i32) {
        self.health.forget_partition(partition);
        self.metrics.release(partition);
    }
}

fn duration(d: std::time::Duration) -> Micros {
    Micros::try_from(d.as_micros()).unwrap_or(Micros::MAX)
}

impl Observer for Watching {
    fn on(&self, event: Event<'_>) {
        let (m, health) = (&self.metrics, &self.health);
        match &event {
            Event::Waiting { reason, .. } => {
                // a loop that waits for its broker is alive
                health.beat(Wall::now());
                health.not_ready(KAFKA, *reason);
                health.ready(STARTING);
            }
            Event::Connected => {
                health.not_ready(GROUP, JOINING);
                health.ready(KAFKA);
                health.ready(STARTING);
            }
            Event::Assigned(partitions) => {
                for partition in *partitions {
                    health.set_partition(*partition, Owned { lag: None, restoring: true });
                }
            }
            Event::Revoked { partitions, lost } => {
                partitions.iter().for_each(|partition| self.give_up(*partition));
                if *lost {
                    m.lost_partitions.inc_by(partitions.len() as u64);
                }
            }
            Event::Restored { partition, took, steps, .. } => {
                // a restore may end after its partition was taken away
                health.update_partition(*partition, |owned| owned.restoring = false);
                Metrics::observe(&m.restore_duration, duration(*took));
                m.replayed_steps.inc_by(*steps);
            }
            Event::ReplayMismatch { .. } => m.replay_mismatches.inc(),
            Event::HistoryGone { .. } => m.history_gone.inc(),
            Event::KeyRefused { .. } => m.refused_keys.inc(),
            Event::Stepped { took, .. } => {
                m.steps.inc();
                Metrics::observe(&m.step_duration, duration(*took));
            }
            Event::Committed(committed) => {
                m.transactions.get(labels::TransactionOutcome::Committed).inc();
                for topic in Topic::ALL {
                    if let Some(label) = labels::Output::parse(topic.key()) {
                        m.output_records.get(label).inc_by(committed.records_out[topic as usize]);
                    }
                }
                if committed.oldest > 0 {
                    Metrics::observe(&m.event_to_commit, committed.at.0.saturating_sub(committed.oldest));
                }
            }
            Event::Aborted { .. } => {
                m.transactions.get(labels::TransactionOutcome::Aborted).inc();
                m.transactions.get(labels::TransactionOutcome::Resent).inc();
            }
            Event::Rebuilding { reason, fenced } => {
                health.not_ready(KAFKA, format!("the clients are being rebuilt: {reason}"));
                health.partitions().keys().for_each(|partition| self.give_up(*partition));
                m.restarts.inc();
                if *fenced {
                    m.transactions.get(labels::TransactionOutcome::Fenced).inc();
                }
            }
            Event::DeadLettered { .. } => m.dead_letters.get(labels::DeadLetterReason::Oversize).inc(),
            _ => {}
        }
        self.log.on(event);
    }
}

/// Copies the shell's status into health and metrics; called every second or so, by one thread.
pub(super) struct Sampler {
    status: Arc<Status>,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    /// Partitions whose lag is shown.
    shown: BTreeSet<i32>,
}

impl Sampler {
    /// From `status` into the others.
    pub(super) fn new(status: Arc<Status>, metrics: Arc<Metrics>, health: Arc<Health>) -> Self {
        Self { status, metrics, health, shown: BTreeSet::new() }
    }

    /// The loop's heartbeat, and whether the group has answered.
    pub(super) fn beat(&self) {
        if let Some(at) = self.status.heartbeat() {
            self.health.beat(at);
        }
        if self.status.ready() {
            self.health.ready(GROUP);
        } else if self.health.reasons(Wall::now()).is_empty() {
            // nobody else says why: before the group has answered, between two answers, or after the end
            self.health.not_ready(GROUP, JOINING);
        }
    }

    /// Lag of the owned partitions, and counters of the shell that no event carries.
    pub(super) fn sample(&mut self) {
        let mut shown = BTreeSet::new();
        let lag = self.status.lag();
        for partition in self.health.partitions().into_keys() {
            let of = |input: Input| lag.iter().filter(move |l| l.partition == partition && l.input == input);
            let telemetry = || of(Input::Telemetry).chain(of(Input::Repartition));
            if telemetry().next().is_none() {
                continue;
            }
            let records = telemetry().map(|l| l.records).sum();
            self.health.update_partition(partition, |owned| owned.lag = Some(records));
            self.metrics.lag.set(partition, records);
            self.metrics.lag_age.set(partition, telemetry().map(|l| l.behind).max().unwrap_or(0));
            shown.insert(partition);
        }
        for gone in self.shown.difference(&shown) {
            self.metrics.lag.forget(*gone);
            self.metrics.lag_age.forget(*gone);
        }
        self.shown = shown;
        let (m, counters) = (&self.metrics, &self.status.counters);
        for (shown, counted) in [
            (&m.checkpoints, &counters.checkpoints),
            (&m.checkpoint_bytes, &counters.checkpoint_bytes),
            (&m.checkpoint_records, &counters.checkpoint_records),
            (&m.step_bytes, &counters.step_bytes),
        ] {
            shown.inc_by(counted.get().saturating_sub(shown.get()));
        }
    }
}

#[cfg(test)]
mod tests {
    use prometheus::Registry;

    use super::*;

    fn watching() -> (Watching, Arc<Metrics>, Arc<Health>) {
        let metrics = Arc::new(Metrics::register(&Registry::new(), &[]).unwrap());
        let health = Arc::new(Health::new(Wall(0)));
        (Watching::new(Arc::clone(&metrics), Arc::clone(&health)), metrics, health)
    }

    fn reasons(health: &Health) -> Vec<&'static str> {
        health.reasons(Wall(1)).into_keys().collect()
    }

    fn restored(partition: i32) -> Event<'static> {
        let took = std::time::Duration::from_millis(3);
        Event::Restored { partition, keys: 1, bytes: 1, steps: 2, records: 3, took }
    }

    #[test]
    fn nobody_is_ready_before_the_group_has_answered() {
        let (watching, _, health) = watching();
        assert_eq!(reasons(&health), [STARTING]);
        watching.on(Event::Waiting { reason: "no broker", again: 0 });
        assert_eq!(reasons(&health), [KAFKA]);
        watching.on(Event::Connected);
        assert_eq!(reasons(&health), [GROUP]);
    }

    #[test]
    fn nothing_sticks_of_partitions_taken_away_while_they_restore() {
        let (watching, metrics, health) = watching();
        watching.on(Event::Connected);
        watching.on(Event::Assigned(&[0, 1, 2]));
        watching.on(restored(0));
        watching.on(Event::Revoked { partitions: &[1], lost: true });
        watching.on(restored(1));
        assert_eq!(health.partitions().into_keys().collect::<Vec<_>>(), [0, 2], "a late restore brings nothing back");
        assert_eq!(metrics.lost_partitions.get(), 1);
        watching.on(Event::Rebuilding { reason: "fatal", fenced: false });
        assert!(health.partitions().is_empty());
        assert_eq!(reasons(&health), [GROUP, KAFKA]);
        watching.on(Event::Connected);
        watching.on(Event::Assigned(&[2]));
        assert_eq!(reasons(&health), [GROUP, "restoring"]);
        watching.on(restored(2));
        assert_eq!(reasons(&health), [GROUP], "the sampler lifts it when the shell says so");
    }

    #[test]
    fn what_the_shell_refuses_or_loses_is_counted() {
        let (watching, metrics, _) = watching();
        watching.on(Event::HistoryGone { partition: 0, reason: "gone" });
        watching.on(Event::KeyRefused { partition: 0, reason: "another version" });
        watching.on(Event::DeadLettered { topic: "runwarden.signals", bytes: 9, reason: "too large" });
        let counted = [&metrics.history_gone, &metrics.refused_keys].map(prometheus::IntCounter::get);
        assert_eq!(counted, [1, 1]);
        assert_eq!(metrics.dead_letters.get(labels::DeadLetterReason::Oversize).get(), 1);
    }
}
