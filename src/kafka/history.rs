//! What a topic holds, read once in order of event time: for simulations.
//!
//! Like several files: each partition keeps its own order, and among their next records the one with the earliest event time
//! comes first. The range is fixed when it is looked up, so it can be read again and gives the same.

use std::sync::Arc;

use crate::clock::Micros;

use super::client::{ClientSettings, Isolation};
use super::errors::Error;
use super::reader::{InputQueue, OwnedRecord, Reader};

/// The records of a partition from one offset up to another, exclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// Partition.
    pub partition: i32,
    /// First offset.
    pub from: i64,
    /// The offset after the last.
    pub to: i64,
}

/// A topic's history, as it is now.
#[derive(Debug, Clone)]
pub struct History {
    client: ClientSettings,
    topic: Arc<str>,
    ranges: Vec<Range>,
}

impl History {
    /// Looks up what the topic holds that is committed; with `since`, from the first record of that broker time (µs) on.
    ///
    /// # Errors
    /// The broker cannot be reached, or has no such topic.
    pub fn find(client: &ClientSettings, topic: &str, since: Option<Micros>) -> Result<Self, Error> {
        let failed = |e| Error::broker(format!("look up what topic {topic} holds"), e);
        let reader = Reader::new(client, "runwarden-simulate", Isolation::Committed)?;
        let partitions = reader.partitions(topic).map_err(failed)?;
        if partitions == 0 {
            return Err(Error::MissingTopic(topic.to_owned()));
        }
        let mut ranges = Vec::new();
        for partition in 0..partitions {
            let (low, to) = reader.watermarks(topic, partition).map_err(failed)?;
            let from = match since {
                Some(since) => {
                    reader.first_since(topic, partition, since / 1_000).map_err(failed)?.unwrap_or(to).max(low)
                }
                None => low,
            };
            if from < to {
                ranges.push(Range { partition, from, to });
            }
        }
        Ok(Self { client: client.clone(), topic: topic.into(), ranges })
    }

    /// The topic.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// How many offsets the ranges span: at least the number of records.
    pub fn span(&self) -> u64 {
        self.ranges.iter().map(|r| r.from.abs_diff(r.to)).sum()
    }

    /// Reads it from the beginning. `event_time` looks a record's event time up; one without goes where the last of its
    /// partition went.
    ///
    /// # Errors
    /// The client cannot be set up.
    pub fn read(&self, event_time: fn(&[u8]) -> Option<Micros>) -> Result<Records, Error> {
        let reader = Reader::new(&self.client, "runwarden-simulate", Isolation::Committed)?;
        let inputs: Vec<_> = self.ranges.iter().map(|r| (&*self.topic, r.partition, r.from)).collect();
        let failed = |e| Error::broker(format!("read topic {}", self.topic), e);
        let queues = reader.open(&inputs).map_err(failed)?;
        let lane = |(queue, range)| Lane { queue, range, head: None, time: Micros::MIN, done: false };
        let lanes = queues.into_iter().zip(self.ranges.iter().copied()).map(lane).collect();
        let mut records = Records { reader, topic: Arc::clone(&self.topic), lanes, event_time, passed: 0 };
        for lane in 0..records.lanes.len() {
            records.step(lane)?;
        }
        Ok(records)
    }
}

struct Lane {
    queue: InputQueue,
    range: Range,
    head: Option<OwnedRecord>,
    time: Micros,
    done: bool,
}

/// A history being read.
pub struct Records {
    reader: Reader,
    topic: Arc<str>,
    lanes: Vec<Lane>,
    event_time: fn(&[u8]) -> Option<Micros>,
    passed: u64,
}

impl Records {
    /// Offsets passed so far.
    pub const fn passed(&self) -> u64 {
        self.passed
    }

    /// The next record; `None` at the end.
    ///
    /// # Errors
    /// Records of the range are gone meanwhile, or the broker cannot be reached.
    #[allow(clippy::should_implement_trait, reason = "an error ends it")]
    pub fn next(&mut self) -> Result<Option<OwnedRecord>, Error> {
        let first =
            self.lanes.iter().enumerate().filter(|(_, lane)| lane.head.is_some()).min_by_key(|(n, l)| (l.time, *n));
        let Some((n, _)) = first else { return Ok(None) };
        let record = self.lanes[n].head.take();
        self.step(n)?;
        Ok(record)
    }

    fn step(&mut self, n: usize) -> Result<(), Error> {
        let lane = &mut self.lanes[n];
        if lane.done {
            return Ok(());
        }
        let failed = |e| Error::broker(format!("read topic {}, partition {}", self.topic, lane.range.partition), e);
        let next = lane.queue.next(&self.reader).map_err(failed)?;
        let before = lane.range.from;
        match next.filter(|record| record.offset < lane.range.to) {
            Some(record) => {
                if let Some(time) = record.payload.as_deref().and_then(self.event_time) {
                    lane.time = time;
                }
                lane.range.from = record.offset + 1;
                lane.head = Some(record);
            }
            None => {
                lane.range.from = lane.range.to;
                lane.done = true;
            }
        }
        self.passed += before.abs_diff(lane.range.from);
        Ok(())
    }
}
