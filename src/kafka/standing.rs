//! For how many partitions a checkpoint stands, and checkpoints read without a core.
//!
//! A tenant's partition depends on how many there are. State of another number of partitions is not damaged, only elsewhere,
//! and must not be taken for all there is.

use rdkafka::Offset;

use super::checkpoint::{Assembly, Checkpoint, Mark};
use super::errors::Error;
use super::reader::Ends;
use super::restore::{Job, Plan, Restore, Stop};

/// The checkpoint of a partition, without a core.
pub(super) fn checkpoint_of(plan: &Plan, readers: &Ends, job: &Job) -> Result<Checkpoint, Error> {
    let mut restore = Restore::new(plan, readers, job);
    restore.await_stable(&plan.config.topics.checkpoint)?;
    Ok(restore.read_checkpoint()?)
}

/// The mark of a partition's checkpoint.
pub(super) fn mark_of(plan: &Plan, readers: &Ends, job: &Job) -> Result<Option<Mark>, Error> {
    let mut restore = Restore::new(plan, readers, job);
    restore.await_stable(&plan.config.topics.checkpoint)?;
    Ok(restore.read_mark(job.partition)?)
}

impl Restore<'_> {
    /// Refuses state that stands for another number of partitions. A partition without any state is asked about too: it may
    /// be new, and the state that belongs here still with the others.
    pub(super) fn check_count(&mut self, mark: Option<&Mark>, committed: &[Option<i64>]) -> Result<(), Stop> {
        let Job { partition, partitions, .. } = *self.job;
        let mut found = (partition, mark.and_then(|mark| mark.partitions));
        if mark.is_none() && committed.iter().all(Option::is_none) {
            let telemetry = self.plan.config.topics.telemetry.as_str();
            let first = self.retry("read committed offsets", |r| r.committed.first_committed(telemetry, partition))?;
            if let Some(other) = first {
                found = (other, self.read_mark(other)?.and_then(|mark| mark.partitions));
            }
        }
        match found {
            (partition, Some(found)) if found != partitions => {
                Err(Error::Resized { partition, partitions, found }.into())
            }
            _ => Ok(()),
        }
    }

    fn read_mark(&mut self, partition: i32) -> Result<Option<Mark>, Stop> {
        let mut assembly = Assembly::default();
        self.read_of(&self.plan.config.topics.checkpoint, partition, Offset::Beginning, |key, value| {
            if Assembly::is_mark(key) && assembly.add(key, value).is_err() {
                tracing::debug!(partition, "a mark is damaged or of an unknown layout");
            }
        })?;
        Ok(assembly.mark().cloned())
    }
}
