//! Reading one topic as a member of a group that commits what it is done with: what is not committed comes again, to this member or
//! to another.
//!
//! A group that has no position begins where it is told, at the beginning of the topic or at its end as it is when a member first gets the
//! partition, and that place is committed at once: what is written while everybody is away is not skipped.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message as _;
use rdkafka::{Offset, TopicPartitionList};

use super::client::{ClientSettings, Isolation, ShellConfig};
use super::errors::{Error, is_transient};
use super::group::{Change, Group};
use super::reader::{Next, OwnedRecord, Reader, patiently};

/// How long the broker may take to say where a partition begins, ends, and was left.
const ANSWER: Duration = Duration::from_secs(10);
/// Prefetch of one topic, KiB.
const PREFETCH: usize = 2_048;

/// Where a group begins that has no position yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// With what the topic holds.
    Beginning,
    /// With what is written from then on.
    End,
}

/// What a member hears.
#[derive(Debug)]
pub enum Heard {
    /// A record.
    Record(Box<OwnedRecord>),
    /// A partition is ours, from this offset on.
    Assigned {
        /// Partition.
        partition: i32,
        /// First offset.
        from: i64,
    },
    /// These partitions are to be let go with [`Subscriber::release`]; `lost`: they are another's already.
    Revoked {
        /// Partitions.
        partitions: Vec<i32>,
        /// Nothing of them can be committed any more.
        lost: bool,
    },
}

/// A member of a group.
pub struct Subscriber {
    consumer: BaseConsumer<Group>,
    topic: String,
    start: Start,
    owned: BTreeSet<i32>,
    assigned: VecDeque<(i32, i64)>,
    paused: bool,
    ends: BTreeMap<i32, i64>,
    /// The trouble that was logged last.
    said: String,
}

impl Subscriber {
    /// Joins `group`, with the membership of `shell`.
    ///
    /// # Errors
    /// Settings that are not accepted.
    pub fn new(shell: &ShellConfig, group: &str, topic: &str, start: Start) -> Result<Self, Error> {
        let config = ShellConfig { group: group.to_owned(), prefetch_kbytes: PREFETCH, ..shell.clone() }.consumer(1);
        let consumer: BaseConsumer<Group> = config.create_with_context(Group::default()).map_err(Error::settings)?;
        consumer.subscribe(&[topic]).map_err(|e| Error::broker(format!("cannot subscribe to {topic}"), e))?;
        Ok(Self {
            consumer,
            topic: topic.to_owned(),
            start,
            owned: BTreeSet::new(),
            assigned: VecDeque::new(),
            paused: false,
            ends: BTreeMap::new(),
            said: String::new(),
        })
    }

    /// What is heard within `wait`; trouble that passes is waited out, and logged once.
    ///
    /// # Errors
    /// Trouble after which a new member has to be made.
    pub fn next(&mut self, wait: Duration) -> Result<Option<Heard>, Error> {
        if let Some(heard) = self.change()? {
            return Ok(Some(heard));
        }
        match self.consumer.poll(wait) {
            Some(Ok(message)) => {
                if self.owned.contains(&message.partition()) {
                    self.said.clear();
                    return Ok(Some(Heard::Record(Box::new(OwnedRecord::from_message(&message)))));
                }
            }
            Some(Err(KafkaError::PartitionEOF(_))) | None => {}
            Some(Err(error)) if is_transient(&error) => {
                let trouble = error.to_string();
                if trouble != self.said {
                    tracing::warn!(error = trouble, topic = self.topic, "cannot read now, trying again");
                    self.said = trouble;
                }
            }
            Some(Err(error)) => return Err(Error::broker(format!("cannot read {}", self.topic), error)),
        }
        self.change()
    }

    fn change(&mut self) -> Result<Option<Heard>, Error> {
        if let Some((partition, from)) = self.assigned.pop_front() {
            return Ok(Some(Heard::Assigned { partition, from }));
        }
        match self.consumer.context().next() {
            None => Ok(None),
            Some(Change::Revoke { partitions, lost }) => Ok(Some(Heard::Revoked { partitions, lost })),
            Some(Change::Assign(partitions)) => {
                self.assign(&partitions)?;
                Ok(self.assigned.pop_front().map(|(partition, from)| Heard::Assigned { partition, from }))
            }
        }
    }

    fn assign(&mut self, partitions: &[i32]) -> Result<(), Error> {
        let failed = |e| Error::broker(format!("cannot find the position in {}", self.topic), e);
        let mut asked = TopicPartitionList::new();
        for partition in partitions {
            asked.add_partition(&self.topic, *partition);
        }
        let until = Instant::now() + ANSWER;
        let known = if partitions.is_empty() {
            asked
        } else {
            patiently(until, || self.consumer.committed_offsets(asked.clone(), ANSWER)).map_err(failed)?
        };
        let (mut list, mut begun) = (TopicPartitionList::new(), TopicPartitionList::new());
        for partition in partitions {
            let (low, high) =
                patiently(until, || self.consumer.fetch_watermarks(&self.topic, *partition, ANSWER)).map_err(failed)?;
            let known = known.find_partition(&self.topic, *partition).and_then(|p| p.offset().to_raw());
            let known = known.filter(|offset| *offset >= 0);
            if let Some(gone) = known.filter(|known| *known < low) {
                tracing::warn!(
                    topic = self.topic,
                    partition,
                    records = low - gone,
                    "records were deleted before they were read"
                );
            }
            let first = if self.start == Start::Beginning { low } else { high };
            let from = known.unwrap_or(first).max(low);
            if known != Some(from) {
                begun.add_partition_offset(&self.topic, *partition, Offset::Offset(from)).map_err(failed)?;
            }
            list.add_partition_offset(&self.topic, *partition, Offset::Offset(from)).map_err(failed)?;
            self.owned.insert(*partition);
            self.assigned.push_back((*partition, from));
        }
        self.consumer.incremental_assign(&list).map_err(failed)?;
        if begun.count() > 0 {
            self.consumer.commit(&begun, CommitMode::Sync).map_err(failed)?;
        }
        if self.paused {
            self.consumer.pause(&list).map_err(failed)?;
        }
        Ok(())
    }

    /// Gives revoked partitions back.
    ///
    /// # Errors
    /// The client does not take it.
    pub fn release(&mut self, partitions: &[i32]) -> Result<(), Error> {
        let mut list = TopicPartitionList::new();
        for partition in partitions {
            self.owned.remove(partition);
            self.ends.remove(partition);
            list.add_partition(&self.topic, *partition);
        }
        self.assigned.retain(|(partition, _)| !partitions.contains(partition));
        self.consumer.incremental_unassign(&list).map_err(|e| Error::broker("cannot let go of partitions", e))
    }

    /// Commits positions, by partition the next offset to read.
    ///
    /// # Errors
    /// They are not committed; the records after the ones before come again.
    pub fn commit(&self, positions: &BTreeMap<i32, i64>) -> Result<(), Error> {
        let failed = |e| Error::broker(format!("cannot commit the position in {}", self.topic), e);
        let mut list = TopicPartitionList::new();
        for (partition, offset) in positions.iter().filter(|(partition, _)| self.owned.contains(partition)) {
            list.add_partition_offset(&self.topic, *partition, Offset::Offset(*offset)).map_err(failed)?;
        }
        if list.count() == 0 { Ok(()) } else { self.consumer.commit(&list, CommitMode::Sync).map_err(failed) }
    }

    /// Stops or goes on taking records; the membership lives on as long as [`Self::next`] is called.
    ///
    /// # Errors
    /// The client does not take it.
    pub fn pause(&mut self, paused: bool) -> Result<(), Error> {
        if self.paused == paused {
            return Ok(());
        }
        let mut list = TopicPartitionList::new();
        for partition in &self.owned {
            list.add_partition(&self.topic, *partition);
        }
        let done = if paused { self.consumer.pause(&list) } else { self.consumer.resume(&list) };
        done.map_err(|e| Error::broker(format!("cannot pause {}", self.topic), e))?;
        self.paused = paused;
        Ok(())
    }

    /// How many records lie behind these positions.
    pub fn lag(&mut self, positions: &BTreeMap<i32, i64>) -> i64 {
        if let Some(ends) = self.consumer.context().take_ends() {
            let ours = ends.into_iter().filter(|((topic, _), _)| *topic == self.topic);
            self.ends = ours.map(|((_, partition), end)| (partition, end)).collect();
        }
        let behind = |(partition, next): (&i32, &i64)| self.ends.get(partition).map_or(0, |end| (end - next).max(0));
        positions.iter().map(behind).sum()
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.consumer.context().close();
    }
}

/// Calls `each` for the records of a partition below `to` that the broker took at `since` (ms) or later, or until it is `false`.
///
/// # Errors
/// The broker does not give them.
pub fn look_back(
    client: &ClientSettings,
    topic: &str,
    (partition, to): (i32, i64),
    since: i64,
    mut each: impl FnMut(OwnedRecord) -> bool,
) -> Result<(), Error> {
    let failed = |e| Error::broker(format!("cannot look back in {topic}"), e);
    let reader = Reader::new(client, "runwarden-look-back", Isolation::Committed)?;
    let until = Instant::now() + ANSWER;
    let first = patiently(until, || reader.first_since(topic, partition, since)).map_err(failed)?;
    let Some(first) = first.filter(|first| *first < to) else { return Ok(()) };
    let seen = reader.to_end(
        topic,
        partition,
        Offset::Offset(first),
        || Instant::now() >= until,
        |message| {
            let record = OwnedRecord::from_message(message);
            let offset = record.offset;
            if offset >= to || !each(record) || offset + 1 >= to { Next::Stop } else { Next::More }
        },
    );
    seen.map_err(failed)
}
