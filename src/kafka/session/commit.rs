//! How uncommitted work becomes a transaction: outputs, step records, checkpoints, offsets; and what follows a failure.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rdkafka::consumer::{CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};

use crate::clock::Wall;
use crate::kafka::core::Input;
use crate::kafka::errors::{Error, is_poison};
use crate::kafka::partition::{self, Active, Checkpoints, Owned};
use crate::kafka::status::{Committed, Event};
use crate::kafka::transaction::{Failed, Outgoing, Place, Tag};
use crate::kafka::{deadletter, steps};

use super::{Failure, Session, failure, rebuild};

/// Abortable failures in a row that are sent again before the clients are rebuilt.
const MAX_ATTEMPTS: u32 = 10;
/// The same while the group is rebalancing, when membership is stale.
const MAX_STALE_ATTEMPTS: u32 = 200;

/// Least bytes of a checkpoint in a transaction, unless less is left of it.
const LEAST_PART: usize = 128 << 10;

/// Which partitions are checkpointed with a commit.
#[derive(Debug, Clone, Copy)]
pub(super) enum Checkpointing<'a> {
    /// Those whose time has come.
    Due,
    /// These as well.
    These(&'a [i32]),
    /// All.
    All,
}

impl Checkpointing<'_> {
    /// Whether a partition is checkpointed at once.
    fn forces(self, partition: i32) -> bool {
        match self {
            Self::All => true,
            Self::These(partitions) => partitions.contains(&partition),
            Self::Due => false,
        }
    }
}

impl Session<'_> {
    pub(super) fn commit_due(&self) -> bool {
        let config = self.config();
        if self.writer.has_failed() {
            return true;
        }
        match self.opened {
            Some(opened) => {
                opened.elapsed() >= config.commit_interval
                    || self.urgent && self.last_commit.elapsed() >= config.urgent_interval
                    || self.open_bytes >= config.max_transaction_bytes
                    || self.open_records >= config.max_transaction_records
            }
            None => self.actives().any(|active| checkpoint_due(active, config.checkpoint_interval)),
        }
    }

    /// Commits everything uncommitted, with checkpoints as asked; sends it again after abortable failures.
    pub(super) fn commit(&mut self, which: Checkpointing<'_>) -> Result<(), Failure> {
        self.prepare(which);
        let began = Instant::now();
        let mut attempts = 0;
        loop {
            let offsets = self.offsets().map_err(|e| rebuild("offsets", &e))?;
            if offsets.count() == 0 {
                self.reset_open();
                return Ok(());
            }
            let started = Instant::now();
            self.send_all()?;
            let Some(group) = self.consumer.group_metadata() else {
                return Err(Failure::Rebuild { reason: "the consumer has no group".into(), fenced: false });
            };
            let control = Arc::clone(self.control);
            match self.writer.commit(&offsets, &group, &|| control.waited_out()) {
                Ok(()) => {
                    if self.config().is_mock() {
                        self.mirror(&offsets);
                    }
                    self.committed(started, (began, attempts + 1));
                    return Ok(());
                }
                Err(Failed::Abort { reason, stale }) => {
                    attempts += 1;
                    let limit = if stale { MAX_STALE_ATTEMPTS } else { MAX_ATTEMPTS };
                    let failures = self.abort(&reason)?;
                    if attempts > limit {
                        return Err(Failure::Rebuild { reason, fenced: false });
                    }
                    self.isolate(&failures)?;
                    std::thread::sleep(Duration::from_millis(
                        if stale { 20 } else { 10 } * u64::from(attempts.min(10)),
                    ));
                    self.poll_group()?;
                    if self.consumer.context().has_lost() {
                        self.serve_lost()?;
                    }
                    if self.control.expired() {
                        return Err(Failure::Deadline);
                    }
                }
                Err(failed) => return Err(failure(failed)),
            }
        }
    }

    pub(super) fn abort(&mut self, reason: &str) -> Result<Vec<(Tag, RDKafkaErrorCode)>, Failure> {
        self.plan.status.counters.transactions_aborted.add(1);
        self.plan.observer.on(Event::Aborted { reason });
        let control = Arc::clone(self.control);
        let failures = self.writer.abort(&|| control.waited_out()).map_err(failure)?;
        self.open_records = 0;
        for owned in self.owned.values_mut() {
            if let Owned::Active(active) = owned {
                active.work.sent = 0;
            }
        }
        Ok(failures)
    }

    /// Encodes step records and checkpoints of what is about to be committed.
    ///
    /// A checkpoint is spread over half of its interval, so that no transaction is much longer for it, and decisions that are urgent do not
    /// carry one. One that is asked for goes out whole, with what is left of the one before it: what a core takes over between two steps (other
    /// terms) is in no input, so the step that did and the state it left have to be committed together, or a replay would decide by the
    /// terms before.
    pub(super) fn prepare(&mut self, which: Checkpointing<'_>) {
        let config = self.config();
        let interval = config.checkpoint_interval;
        let turns = (interval / 2).div_duration_f64(config.commit_interval.max(Duration::from_millis(1)));
        let waits = self.urgent && self.last_part.elapsed() < config.commit_interval;
        let mut written = false;
        for owned in self.owned.values_mut() {
            let Owned::Active(active) = owned else { continue };
            if active.work.step_record.is_none() && !active.work.steps.is_empty() {
                active.work.step_record = Some(steps::encode(active.core.version(), &active.work.steps));
            }
            if active.work.checkpoint.is_some() {
                continue;
            }
            let behind = active.checkpoints.step != active.number;
            let whole = behind && (which.forces(active.partition) || active.owes_checkpoint());
            let mut records = Vec::new();
            if whole {
                records = active.end_pending();
            }
            if active.checkpoints.pending.is_none() && (whole || checkpoint_due(active, interval)) {
                active.capture(self.partitions, self.writer.steps_offset(active.partition));
            }
            if let Some(pending) = &mut active.checkpoints.pending
                && (whole || !waits)
            {
                let most = if whole { usize::MAX } else { part(pending.bytes, turns).min(config.checkpoint_chunk) };
                records.extend(pending.take(most));
                active.work.checkpoint = Some(records);
                written = true;
            }
        }
        if written {
            self.last_part = Instant::now();
        }
    }

    /// Next offsets of every input of every partition with work: also when a step read nothing, because offsets are what
    /// the group checks membership by.
    pub(super) fn offsets(&self) -> Result<TopicPartitionList, KafkaError> {
        let topics = &self.config().topics;
        let mut list = TopicPartitionList::new();
        for active in self.actives().filter(|active| !active.work.is_empty()) {
            for (input, next) in Input::ALL.into_iter().zip(active.offsets()) {
                list.add_partition_offset(topics.input(input), active.partition, Offset::Offset(next))?;
            }
        }
        Ok(list)
    }

    pub(super) fn send_all(&mut self) -> Result<(), Failure> {
        let partitions: Vec<i32> = self.owned.keys().copied().collect();
        for partition in partitions {
            self.send_outputs(partition)?;
            let topics = &self.plan.config.topics;
            let Some(Owned::Active(active)) = self.owned.get(&partition) else { continue };
            let step_record = active.work.step_record.iter().map(|bytes| Outgoing {
                topic: &topics.steps,
                partition: Some(partition),
                key: None,
                payload: Some(bytes),
                headers: &[],
            });
            let checkpoint = active.work.checkpoint.iter().flatten().map(|(key, value)| Outgoing {
                topic: &topics.checkpoint,
                partition: Some(partition),
                key: Some(key),
                payload: value.as_deref(),
                headers: &[],
            });
            let step_record = step_record.map(|r| (Place::Steps, r));
            let checkpoint = checkpoint.enumerate().map(|(n, r)| (Place::Checkpoint(n), r));
            for (place, outgoing) in step_record.chain(checkpoint) {
                let expired = || self.control.waited_out();
                if self.writer.send(outgoing, Tag { partition, place }, &expired).is_err() {
                    let bytes = outgoing.payload.map_or(0, <[u8]>::len);
                    return Err(Error::InternalRecord { topic: outgoing.topic.to_owned(), bytes }.into());
                }
            }
        }
        Ok(())
    }

    /// Finds the records at fault: one that failed among others is sent alone next time, one that fails alone becomes a
    /// dead letter.
    pub(super) fn isolate(&mut self, failures: &[(Tag, RDKafkaErrorCode)]) -> Result<(), Failure> {
        let topics = &self.plan.config.topics;
        for (tag, code) in failures.iter().filter(|(_, code)| is_poison(*code)) {
            let Some(Owned::Active(active)) = self.owned.get_mut(&tag.partition) else { continue };
            let Place::Output(n) = tag.place else {
                let topic = if tag.place == Place::Steps { &topics.steps } else { &topics.checkpoint };
                return Err(Error::InternalRecord { topic: topic.clone(), bytes: 0 }.into());
            };
            if failures.len() > 1 && active.work.suspects.insert(n) {
                continue;
            }
            let Some(output) = active.work.outputs.get_mut(n) else { continue };
            let Some(letter) = deadletter::refused(topics, output, &code.to_string()) else {
                let bytes = partition::size(output);
                return Err(Error::InternalRecord { topic: topics.dead_letter.clone(), bytes }.into());
            };
            deadletter::report(self.plan, output, &code.to_string());
            *output = letter;
            active.work.suspects.remove(&n);
        }
        Ok(())
    }

    /// The mock keeps no transactional offsets: commit the same ones plainly.
    pub(super) fn mirror(&mut self, offsets: &TopicPartitionList) {
        for _ in 0..3 {
            match self.consumer.commit(offsets, CommitMode::Sync) {
                Ok(()) => return,
                Err(error) => self.trouble(&format!("mirror of offsets: {error}")),
            }
        }
    }

    /// `attempt`: when the first was made, and the how many-th this one is.
    pub(super) fn committed(&mut self, started: Instant, attempt: (Instant, u32)) {
        let traces = self.traces();
        let mut traced = Vec::new();
        let status = &self.plan.status;
        let at = Wall::now();
        let mut event = Committed {
            urgent: self.urgent,
            at,
            open_for: self.opened.unwrap_or(started).elapsed(),
            commit_took: started.elapsed(),
            ..Committed::default()
        };
        let counters = &status.counters;
        for owned in self.owned.values_mut() {
            let Owned::Active(active) = owned else { continue };
            let work = std::mem::take(&mut active.work);
            event.steps += work.steps.len();
            traced.extend(work.traces.into_iter().map(|trace| (active.partition, trace)));
            event.records_in += work.records_in;
            if work.oldest != 0 {
                event.oldest = if event.oldest == 0 { work.oldest } else { event.oldest.min(work.oldest) };
                event.newest = event.newest.max(work.newest);
            }
            for output in &work.outputs {
                event.records_out[output.topic as usize] += 1;
                counters.bytes_out.add(partition::size(output) as u64);
            }
            counters.records_out.add(work.outputs.len() as u64);
            counters.bytes_in.add(work.bytes_in as u64);
            counters.step_bytes.add(work.step_record.map_or(0, |r| r.len()) as u64);
            if let Some(records) = work.checkpoint {
                let bytes: usize = records.iter().map(|(k, v)| k.len() + v.as_ref().map_or(0, Vec::len)).sum();
                event.checkpoint_bytes += bytes;
                counters.checkpoint_records.add(records.len() as u64);
                let checkpoints = &mut active.checkpoints;
                if let Some(whole) = checkpoints.pending.take_if(|pending| pending.records.is_empty()) {
                    counters.checkpoints.add(1);
                    checkpoints.number += 1;
                    checkpoints.step = whole.step;
                    checkpoints.at = Instant::now();
                }
            }
        }
        let (began, attempts) = attempt;
        let times = (began, Instant::now());
        for (partition, trace) in traced {
            if let Some(traces) = traces {
                traces.committed(trace, partition, (attempts, event.steps), times);
            }
        }
        counters.checkpoint_bytes.add(event.checkpoint_bytes as u64);
        counters.records_in.add(event.records_in as u64);
        counters.transactions_committed.add(1);
        status.last_commit.store(at.0, Ordering::Relaxed);
        status.connected.store(true, Ordering::Release);
        self.plan.observer.on(Event::Committed(&event));
        self.reset_open();
        self.last_commit = Instant::now();
    }

    pub(super) fn reset_open(&mut self) {
        self.opened = None;
        self.urgent = false;
        self.open_bytes = 0;
        self.open_records = 0;
    }
}

/// Bytes of a checkpoint of so many that go into one of so many transactions.
#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rough share"
)]
fn part(bytes: usize, turns: f64) -> usize {
    ((bytes as f64 / turns.max(1.0)) as usize).max(LEAST_PART)
}

fn checkpoint_due(active: &Active, interval: Duration) -> bool {
    let Checkpoints { pending, step, .. } = &active.checkpoints;
    pending.is_some() || *step != active.number && (active.checkpoints.is_due(interval) || active.owes_checkpoint())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_goes_out_over_many_transactions_in_parts_that_are_worth_it() {
        assert_eq!(part(100 << 20, 25.0), 4 << 20);
        assert_eq!(part(1 << 20, 25.0), LEAST_PART);
        assert_eq!(part(10 << 20, 0.0), 10 << 20, "an interval shorter than that of commits");
    }
}
