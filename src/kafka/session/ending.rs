//! How a session ends well: drains, and runs to the end.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rdkafka::Offset;
use rdkafka::error::KafkaError;

use crate::clock::Wall;
use crate::kafka::core::Input;
use crate::kafka::partition::{Active, Bounds, Owned, StepKind};
use crate::kafka::reader::{Ends, Next};

use super::commit::Checkpointing;
use super::{Failure, Session, rebuild};

impl Session<'_> {
    /// Before a drain's last commit: takes what is there already, for a quarter of the time a drain has, so that whoever follows
    /// has only to take what arrived since.
    pub(super) fn catch_up(&mut self) -> Result<(), Failure> {
        let until = Instant::now() + self.control.left() / 4;
        let mut behind: Vec<i32> = self.actives().map(|active| active.partition).collect();
        while Instant::now() < until {
            self.plan.status.heartbeat.store(Wall::now().0, Ordering::Relaxed);
            self.poll_group()?;
            self.serve_changes()?;
            let busy = self.step_all()?;
            self.writer.poll();
            let at_end = |active: &Active| active.feeds.iter().all(|feed| feed.at_end);
            behind.retain(|partition| match self.owned.get(partition) {
                Some(Owned::Active(active)) => !at_end(active),
                Some(Owned::Restoring { .. }) | None => false,
            });
            if behind.is_empty() {
                break;
            }
            if !busy {
                self.wait();
            }
        }
        Ok(())
    }

    /// Until-end runs: whether every partition is ours and everything there was at the start, and everything re-keyed
    /// since, is processed and committed.
    pub(super) fn at_the_end(&mut self) -> Result<bool, Failure> {
        let repartition = Input::Repartition as usize;
        let total = usize::try_from(self.partitions).unwrap_or_default();
        let read = |active: &Active| {
            Input::ALL.iter().all(|&input| {
                let feed = &active.feeds[input as usize];
                if input == Input::Repartition { feed.at_end } else { feed.done }
            })
        };
        if self.actives().filter(|active| read(active)).count() < total {
            return Ok(false);
        }
        if self.opened.is_some() {
            self.commit(Checkpointing::Due)?;
        }
        if self.end_checked.elapsed() < Duration::from_millis(20) {
            return Ok(false);
        }
        self.end_checked = Instant::now();
        let config = self.config();
        let ends = match self.ends.take() {
            Some(ends) => ends,
            None => Ends::new(&config.client, &config.group)?,
        };
        let looked = self.actives().try_fold(false, |rest, active| {
            Ok(rest || self.has_re_keyed(&ends, active.partition, active.feeds[repartition].next)?)
        });
        self.ends = Some(ends);
        let rest = looked.map_err(|e: KafkaError| rebuild("look for re-keyed records", &e))?;
        Ok(!rest && !self.control.stopping())
    }

    /// Whether re-keyed records from `next` on wait for a partition, or may: their transaction is committed, but its marker
    /// is not written yet.
    pub(super) fn has_re_keyed(&self, ends: &Ends, partition: i32, next: i64) -> Result<bool, KafkaError> {
        let topic = &self.config().topics.repartition;
        let written = ends.written(topic, partition)?;
        if written <= next {
            return Ok(false);
        }
        if ends.stable(topic, partition)? < written {
            return Ok(true);
        }
        let mut found = false;
        ends.committed.to_end(
            topic,
            partition,
            Offset::Offset(next),
            || self.control.stopping(),
            |_| {
                found = true;
                Next::Stop
            },
        )?;
        Ok(found)
    }

    pub(super) fn finish(&mut self) -> Result<(), Failure> {
        let bounds = Bounds { records: 0, bytes: 0, linger: Duration::ZERO, traces: self.traces() };
        let partitions: Vec<i32> = self.owned.keys().copied().collect();
        for partition in partitions {
            self.step(partition, &bounds, StepKind::Finish)?;
        }
        self.commit(Checkpointing::All)
    }
}
