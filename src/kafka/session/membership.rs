//! What the group gives and takes: partitions assigned, restored, revoked, lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};

use crate::kafka::core::Input;
use crate::kafka::errors::Error;
use crate::kafka::group::{Change, Group, generation};
use crate::kafka::partition::{Active, Cancel, Checkpoints, Feed, INPUTS, Owned};
use crate::kafka::restore::{Job, Outcome, Restored};
use crate::kafka::status::Event;

use super::commit::Checkpointing;
use super::{Failure, Session, rebuild};

/// How often a member without partitions asks whether the group has answered.
const MEMBERSHIP_LOOK: Duration = Duration::from_millis(100);
/// Belonging to the group for so long without partitions means that there are none for us.
const MEMBERSHIP_SETTLED: Duration = Duration::from_secs(1);

/// How long looking up a topic in advance may take.
const LOOK_UP: Duration = Duration::from_secs(1);

impl Session<'_> {
    pub(super) fn serve_changes(&mut self) -> Result<(), Failure> {
        while let Some(change) = self.consumer.context().next() {
            match change {
                Change::Assign(partitions) => self.assigned(&partitions)?,
                Change::Revoke { partitions, lost } => self.revoked(&partitions, lost)?,
            }
            self.publish_owned();
        }
        Ok(())
    }

    /// A member that gets no partition may never hear so: belonging for a while without any is an answer too.
    pub(super) fn look_for_membership(&mut self) {
        let (looked, since) = &mut self.membership;
        if self.joined || looked.elapsed() < MEMBERSHIP_LOOK {
            return;
        }
        *looked = Instant::now();
        if generation(&self.consumer) <= 0 {
            *since = None;
        } else if since.get_or_insert(*looked).elapsed() >= MEMBERSHIP_SETTLED {
            self.joined = true;
            self.publish_owned();
        }
    }

    pub(super) fn assigned(&mut self, partitions: &[i32]) -> Result<(), Failure> {
        let topic = &self.config().topics.telemetry;
        if let Some(partition) = partitions.iter().find(|p| **p >= self.partitions) {
            let reason = format!("{topic} has grown: partition {partition} is new");
            return Err(Failure::Rebuild { reason, fenced: false });
        }
        if self.owned.is_empty() {
            // the client looks up a topic it does not know once a second: known in advance, commands are read at once
            for input in [Input::Commands, Input::Outcomes, Input::Repartition] {
                let name = self.config().topics.input(input);
                if let Err(error) = self.consumer.fetch_metadata(Some(name), LOOK_UP) {
                    tracing::debug!(%error, topic = name, "not looked up in advance");
                }
            }
        }
        let mut list = TopicPartitionList::new();
        for &partition in partitions {
            let telemetry = self.split(topic, partition)?;
            list.add_partition_offset(topic, partition, Offset::Beginning).map_err(|e| rebuild("assign", &e))?;
            let cancel = Arc::new(AtomicBool::new(false));
            let job = Job {
                partition,
                partitions: self.partitions,
                cancel: Arc::clone(&cancel),
                session: self.id,
                keep_keys: false,
            };
            self.owned.insert(partition, Owned::Restoring { cancel: Cancel(cancel), telemetry });
            if self.jobs.send(job).is_err() {
                return Err(Failure::Rebuild { reason: "the restore threads are gone".into(), fenced: false });
            }
        }
        self.consumer.incremental_assign(&list).map_err(|e| rebuild("assign", &e))?;
        if !partitions.is_empty() {
            self.consumer.pause(&list).map_err(|e| rebuild("pause", &e))?;
            self.plan.observer.on(Event::Assigned(partitions));
        }
        self.joined = true;
        Ok(())
    }

    pub(super) fn split(&self, topic: &str, partition: i32) -> Result<PartitionQueue<Group>, Failure> {
        let mut queue = self.consumer.split_partition_queue(topic, partition).ok_or_else(|| Failure::Rebuild {
            reason: format!("no queue for {topic}, partition {partition}"),
            fenced: false,
        })?;
        let control = Arc::clone(self.control);
        queue.set_nonempty_callback(move || control.wake());
        Ok(queue)
    }

    pub(super) fn revoked(&mut self, partitions: &[i32], lost: bool) -> Result<(), Failure> {
        let settled = if lost {
            self.plan.status.counters.partitions_lost.add(partitions.len() as u64);
            self.drop_work(partitions)
        } else {
            self.commit(Checkpointing::These(partitions))
        };
        // The group waits for this answer whatever came of the commit; closing the consumer would wait for it forever.
        self.unassign(partitions)?;
        settled?;
        self.plan.observer.on(Event::Revoked { partitions, lost });
        Ok(())
    }

    /// Drops the partitions' state and gives them back to the group.
    pub(super) fn unassign(&mut self, partitions: &[i32]) -> Result<(), Failure> {
        let topics = &self.config().topics;
        let mut list = TopicPartitionList::new();
        for &partition in partitions {
            match self.owned.remove(&partition) {
                None => {}
                Some(Owned::Restoring { .. }) => {
                    list.add_partition(&topics.telemetry, partition);
                }
                Some(Owned::Active(_)) => {
                    for input in Input::ALL {
                        list.add_partition(topics.input(input), partition);
                    }
                }
            }
        }
        self.consumer.incremental_unassign(&list).map_err(|e| rebuild("unassign", &e))
    }

    /// Forgets uncommitted work of partitions that belong to others now; what remains is sent again.
    pub(super) fn drop_work(&mut self, partitions: &[i32]) -> Result<(), Failure> {
        if self.writer.is_open() {
            self.abort("partitions were lost")?;
        }
        for partition in partitions {
            if let Some(Owned::Active(active)) = self.owned.get_mut(partition) {
                active.work = Default::default();
            }
        }
        if self.actives().all(|active| active.work.is_empty()) {
            self.reset_open();
        }
        Ok(())
    }

    pub(super) fn serve_restored(&mut self) -> Result<(), Failure> {
        while let Ok(Outcome { session, partition, cancel, result }) = self.outcomes.try_recv() {
            if session != self.id || cancel.load(Ordering::Acquire) {
                continue;
            }
            match result {
                Ok(Some(restored)) => self.activate(*restored)?,
                Ok(None) => {}
                Err(Error::Broker { context, source }) => {
                    return Err(rebuild(&format!("restore of partition {partition}: {context}"), &source));
                }
                Err(Error::Refusal(refused)) => {
                    let context = format!("restore of partition {partition}: {}", refused.context);
                    return Err(rebuild(&context, &refused.source));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    pub(super) fn activate(&mut self, restored: Restored) -> Result<(), Failure> {
        let partition = restored.partition;
        let Some(Owned::Restoring { telemetry, cancel }) = self.owned.remove(&partition) else { return Ok(()) };
        drop(cancel);
        let topics = &self.config().topics;
        let mut list = TopicPartitionList::new();
        let mut queues = Vec::with_capacity(INPUTS);
        let mut telemetry = Some(telemetry);
        for (i, input) in Input::ALL.into_iter().enumerate() {
            if input == Input::Telemetry
                && let Some(queue) = telemetry.take()
            {
                queues.push(queue);
                continue;
            }
            queues.push(self.split(topics.input(input), partition)?);
            list.add_partition_offset(topics.input(input), partition, Offset::Offset(restored.offsets[i]))
                .map_err(|e| rebuild("assign", &e))?;
        }
        let mut feeds =
            queues.into_iter().enumerate().map(|(i, q)| Feed::new(q, restored.offsets[i], restored.limits[i]));
        let (Some(a), Some(b), Some(c), Some(d)) = (feeds.next(), feeds.next(), feeds.next(), feeds.next()) else {
            return Ok(());
        };
        self.consumer.incremental_assign(&list).map_err(|e| rebuild("assign", &e))?;
        let start = restored.offsets[Input::Telemetry as usize];
        let mut own = TopicPartitionList::new();
        own.add_partition(&topics.telemetry, partition);
        // Resume before seek: a seek on a paused partition does not wake the fetcher.
        self.consumer.resume(&own).map_err(|e| rebuild("resume", &e))?;
        seek(&self.consumer, &topics.telemetry, partition, start).map_err(|e| rebuild("seek", &e))?;
        let interval = self.config().checkpoint_interval;
        let share = interval * partition.unsigned_abs() / self.partitions.unsigned_abs().max(1);
        let now = Instant::now();
        let at = if restored.checkpoint_now { now.checked_sub(interval) } else { now.checked_sub(share) };
        let checkpoints = Checkpoints {
            number: restored.checkpoint,
            step: if restored.checkpoint_now { Checkpoints::LOST } else { restored.checkpoint_step },
            slots: restored.slots,
            at: at.unwrap_or(now),
            pending: None,
            steps_from: restored.steps_from,
            bytes: 0,
            bytes_in: 0,
        };
        let active = Active::new(partition, restored.core, [a, b, c, d], (restored.number, restored.now), checkpoints);
        self.owned.insert(partition, Owned::Active(Box::new(active)));
        self.publish_owned();
        Ok(())
    }

    /// Answers changes up to the loss of partitions. A revocation before it is moot: its owner is another by now.
    pub(super) fn serve_lost(&mut self) -> Result<(), Failure> {
        while self.consumer.context().has_lost() {
            match self.consumer.context().next() {
                Some(Change::Assign(partitions)) => self.assigned(&partitions)?,
                Some(Change::Revoke { partitions, .. }) => self.revoked(&partitions, true)?,
                None => break,
            }
        }
        self.publish_owned();
        Ok(())
    }
}

pub(super) fn seek(consumer: &BaseConsumer<Group>, topic: &str, partition: i32, offset: i64) -> Result<(), KafkaError> {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, partition, Offset::Offset(offset))?;
    let done = consumer.seek_partitions(list, Duration::from_secs(10))?;
    done.elements().iter().try_for_each(|element| element.error())
}
