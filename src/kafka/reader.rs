//! Reading partitions to their end without a group: for restore, tests, the demo's printout and offline tools.
//!
//! The end is the client's end-of-partition event, never a comparison of positions: transaction markers and compaction leave
//! gaps that no position shows.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::{Offset, TopicPartitionList};

use super::client::{ClientSettings, Isolation, Logged};
use super::errors::{Error, is_transient};
use super::refusal;

const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long is listened to what a client logged.
const HEED: Duration = Duration::from_millis(100);
/// Longest wait for the next record of a partition that has one.
const SILENCE: Duration = Duration::from_secs(30);

/// A record read back, owned.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names of Kafka's own fields")]
pub struct OwnedRecord {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    /// Broker timestamp, µs; 0 when there is none.
    pub timestamp: i64,
    pub key: Option<Vec<u8>>,
    pub payload: Option<Vec<u8>>,
    pub headers: Vec<(String, Vec<u8>)>,
}

impl OwnedRecord {
    /// Copies a message.
    pub fn from_message(message: &impl Message) -> Self {
        let headers = message.headers().map_or_else(Vec::new, |headers| {
            headers.iter().map(|h| (h.key.to_owned(), h.value.unwrap_or_default().to_vec())).collect()
        });
        Self {
            topic: message.topic().to_owned(),
            partition: message.partition(),
            offset: message.offset(),
            timestamp: micros(message),
            key: message.key().map(<[u8]>::to_vec),
            payload: message.payload().map(<[u8]>::to_vec),
            headers,
        }
    }
}

/// A message's broker timestamp in µs; 0 when there is none.
pub fn micros(message: &impl Message) -> i64 {
    message.timestamp().to_millis().map_or(0, |ms| ms.saturating_mul(1000))
}

/// Hears why a call to the broker failed: what a client logs waits until it is polled. Not where partitions are assigned, whose records would
/// be lost.
pub(super) fn heed(consumer: &BaseConsumer<Logged>) {
    if consumer.assignment().is_ok_and(|assigned| assigned.count() == 0) {
        let until = Instant::now() + HEED;
        while refusal::recent().is_none() && Instant::now() < until {
            drop(consumer.poll(Duration::from_millis(5)));
        }
    }
}

/// Reads assigned partitions; joins no group, commits nothing.
pub struct Reader {
    consumer: Arc<BaseConsumer<Logged>>,
}

impl Reader {
    /// Creates a client. `group` is only a name for access control.
    pub fn new(client: &ClientSettings, group: &str, isolation: Isolation) -> Result<Self, Error> {
        let config = client.reader(group, isolation);
        let consumer = config.create_with_context(Logged).map_err(Error::settings)?;
        Ok(Self { consumer: Arc::new(consumer) })
    }

    /// Low and high watermark; the high one is the last stable offset for a read_committed reader.
    pub fn watermarks(&self, topic: &str, partition: i32) -> Result<(i64, i64), KafkaError> {
        self.consumer.fetch_watermarks(topic, partition, CALL_TIMEOUT)
    }

    /// Partition counts of all topics.
    pub fn partition_counts(&self) -> Result<BTreeMap<String, i32>, KafkaError> {
        let metadata = self.consumer.fetch_metadata(None, CALL_TIMEOUT).inspect_err(|_| heed(&self.consumer))?;
        let known = metadata.topics().iter().filter(|t| t.error().is_none());
        Ok(known.map(|t| (t.name().to_owned(), i32::try_from(t.partitions().len()).unwrap_or(i32::MAX))).collect())
    }

    /// Partition count of a topic; 0 when it does not exist.
    pub fn partitions(&self, topic: &str) -> Result<i32, KafkaError> {
        let metadata = self.consumer.fetch_metadata(Some(topic), CALL_TIMEOUT)?;
        let count = metadata.topics().iter().find(|t| t.name() == topic && t.error().is_none());
        Ok(count.map_or(0, |t| i32::try_from(t.partitions().len()).unwrap_or(i32::MAX)))
    }

    /// The group's committed offsets, waiting for transactions that hold some back. `None`: not committed.
    pub fn committed(&self, topics: &[&str], partition: i32) -> Result<Vec<Option<i64>>, KafkaError> {
        let mut list = TopicPartitionList::new();
        for topic in topics {
            list.add_partition(topic, partition);
        }
        let list = self.consumer.committed_offsets(list, CALL_TIMEOUT)?;
        let offset = |topic: &&str| {
            let found = list.find_partition(topic, partition)?;
            found.offset().to_raw().filter(|&raw| raw >= 0)
        };
        list.elements().iter().try_for_each(|e| e.error())?;
        Ok(topics.iter().map(offset).collect())
    }

    /// The first offset of a partition whose broker timestamp is not before `since` (milliseconds); `None`: all are.
    pub fn first_since(&self, topic: &str, partition: i32, since: i64) -> Result<Option<i64>, KafkaError> {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Offset(since))?;
        let found = self.consumer.offsets_for_times(list, CALL_TIMEOUT)?;
        let element = found.find_partition(topic, partition);
        element.as_ref().map_or(Ok(()), |e| e.error())?;
        Ok(element.and_then(|e| e.offset().to_raw()).filter(|raw| *raw >= 0))
    }

    /// The first partition of a topic below `below` at which the group has a committed offset.
    pub fn first_committed(&self, topic: &str, below: i32) -> Result<Option<i32>, KafkaError> {
        let mut list = TopicPartitionList::new();
        for partition in 0..below {
            list.add_partition(topic, partition);
        }
        if list.count() == 0 {
            return Ok(None);
        }
        let list = self.consumer.committed_offsets(list, CALL_TIMEOUT)?;
        let elements = list.elements();
        elements.iter().try_for_each(|e| e.error())?;
        let committed = elements.iter().filter(|e| e.offset().to_raw().is_some_and(|raw| raw >= 0));
        Ok(committed.map(|e| e.partition()).min())
    }

    /// The members a group has now, as (client id, host). A group of the KIP-848 protocol does not show them.
    pub fn members(&self, group: &str) -> Result<Vec<(String, String)>, KafkaError> {
        let list = self.consumer.fetch_group_list(Some(group), CALL_TIMEOUT)?;
        let members = list.groups().iter().filter(|g| g.name() == group).flat_map(|g| g.members());
        Ok(members.map(|m| (m.client_id().to_owned(), m.client_host().to_owned())).collect())
    }

    /// Commits an offset as nobody's member: works only while the group has no member, whatever its protocol.
    pub fn commit_alone(&self, topic: &str, partition: i32, offset: i64) -> Result<(), KafkaError> {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Offset(offset))?;
        self.consumer.commit(&list, CommitMode::Sync)
    }

    /// Calls `each` for every record of one partition from `from` to the end as it is when reached. Stops early when `each`
    /// says so, and while waiting when `cancelled` says so.
    pub fn to_end(
        &self,
        topic: &str,
        partition: i32,
        from: Offset,
        cancelled: impl Fn() -> bool,
        mut each: impl FnMut(&BorrowedMessage<'_>) -> Next,
    ) -> Result<(), KafkaError> {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, from)?;
        self.consumer.assign(&list)?;
        let outcome = loop {
            match self.consumer.poll(Duration::from_millis(100)) {
                None => {
                    if cancelled() {
                        break Ok(());
                    }
                }
                Some(Ok(message)) => {
                    if message.topic() == topic && message.partition() == partition && each(&message) == Next::Stop {
                        break Ok(());
                    }
                }
                Some(Err(KafkaError::PartitionEOF(p))) if p == partition => break Ok(()),
                Some(Err(error)) if passing(&error) => {}
                Some(Err(error)) => break Err(error),
            }
        };
        self.consumer.unassign()?;
        outcome
    }

    /// Opens several inputs at given offsets, each with its own queue.
    pub fn open(&self, inputs: &[(&str, i32, i64)]) -> Result<Vec<InputQueue>, KafkaError> {
        let mut list = TopicPartitionList::new();
        let mut queues = Vec::with_capacity(inputs.len());
        for &(topic, partition, from) in inputs {
            list.add_partition_offset(topic, partition, Offset::Offset(from))?;
            let queue = self
                .consumer
                .split_partition_queue(topic, partition)
                .ok_or(KafkaError::MetadataFetch(RDKafkaErrorCode::UnknownPartition))?;
            queues.push(InputQueue { queue, ended: false, ahead: None });
        }
        self.consumer.assign(&list)?;
        Ok(queues)
    }

    /// Serves the client's own events while queues are read.
    pub fn serve(&self) {
        while let Some(event) = self.consumer.poll(Duration::ZERO) {
            if let Err(error) = event {
                tracing::debug!(%error, "reader");
            }
        }
    }

    /// Lets go of what [`Reader::open`] opened.
    pub fn close(&self) -> Result<(), KafkaError> {
        self.consumer.unassign()
    }
}

/// Whether a reader goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Go on.
    More,
    /// Enough.
    Stop,
}

fn passing(error: &KafkaError) -> bool {
    is_transient(error)
        && !matches!(
            error.rdkafka_error_code(),
            Some(
                RDKafkaErrorCode::AutoOffsetReset
                    | RDKafkaErrorCode::OffsetOutOfRange
                    | RDKafkaErrorCode::UnknownTopicOrPartition
            )
        )
}

/// The queue of one opened partition.
pub struct InputQueue {
    queue: PartitionQueue<Logged>,
    ended: bool,
    ahead: Option<OwnedRecord>,
}

/// Why a range could not be read.
#[derive(Debug)]
pub enum RangeError {
    /// Records of it are gone.
    Gone,
    /// The caller asked to stop.
    Cancelled,
    /// The client failed.
    Client(KafkaError),
}

impl InputQueue {
    /// The next record; `None` at the end of the partition as it is when reached.
    pub fn next(&mut self, reader: &Reader) -> Result<Option<OwnedRecord>, KafkaError> {
        if let Some(ahead) = self.ahead.take() {
            return Ok(Some(ahead));
        }
        let deadline = Instant::now() + SILENCE;
        loop {
            match self.queue.poll(Duration::from_millis(50)) {
                Some(Ok(message)) => return Ok(Some(OwnedRecord::from_message(&message))),
                Some(Err(KafkaError::PartitionEOF(_))) => return Ok(None),
                Some(Err(error)) if passing(&error) && Instant::now() < deadline => {}
                Some(Err(error)) => return Err(error),
                None if Instant::now() < deadline => reader.serve(),
                None => return Err(KafkaError::MessageConsumption(RDKafkaErrorCode::OperationTimedOut)),
            }
        }
    }

    /// Reads the records with offsets below `to`; the one at `to - 1` must exist.
    pub fn until(
        &mut self,
        to: i64,
        reader: &Reader,
        cancelled: impl Fn() -> bool,
    ) -> Result<Vec<OwnedRecord>, RangeError> {
        let mut records = Vec::new();
        if let Some(ahead) = self.ahead.take() {
            if ahead.offset >= to {
                self.ahead = Some(ahead);
                return Err(RangeError::Gone);
            }
            records.push(ahead);
        }
        while records.last().is_none_or(|last: &OwnedRecord| last.offset + 1 < to) {
            match self.queue.poll(Duration::from_millis(50)) {
                Some(Ok(message)) if message.offset() >= to => {
                    self.ahead = Some(OwnedRecord::from_message(&message));
                    return Err(RangeError::Gone);
                }
                Some(Ok(message)) => records.push(OwnedRecord::from_message(&message)),
                Some(Err(KafkaError::PartitionEOF(_))) => self.ended = true,
                Some(Err(error)) if passing(&error) => {}
                Some(Err(error)) => match error.rdkafka_error_code() {
                    Some(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange) => {
                        return Err(RangeError::Gone);
                    }
                    _ => return Err(RangeError::Client(error)),
                },
                None if self.ended => return Err(RangeError::Gone),
                None => {
                    if cancelled() {
                        return Err(RangeError::Cancelled);
                    }
                    reader.serve();
                }
            }
        }
        Ok(records)
    }
}

/// Two views of one topic, to find its end.
///
/// A commit is confirmed before its markers stand in every partition. Until they do, a read_committed reader meets the end
/// before the committed records: what ends there is not the topic but what is visible of it so far.
pub struct Ends {
    /// Reads what is committed.
    pub committed: Reader,
    /// Reads whatever is written.
    pub uncommitted: Reader,
}

impl Ends {
    /// Creates the clients. `group` is only a name for access control.
    pub fn new(client: &ClientSettings, group: &str) -> Result<Self, Error> {
        Ok(Self {
            committed: Reader::new(client, group, Isolation::Committed)?,
            uncommitted: Reader::new(client, group, Isolation::Uncommitted)?,
        })
    }

    /// One past the last record written, committed or not.
    pub fn written(&self, topic: &str, partition: i32) -> Result<i64, KafkaError> {
        self.uncommitted.watermarks(topic, partition).map(|(_, high)| high)
    }

    /// One past the last record whose fate is known: what a read_committed reader may see.
    pub fn stable(&self, topic: &str, partition: i32) -> Result<i64, KafkaError> {
        self.committed.watermarks(topic, partition).map(|(_, high)| high)
    }
}

/// Asks again while the answer is one that passes: a topic just made has no leader for a moment.
pub(super) fn patiently<T>(deadline: Instant, mut ask: impl FnMut() -> Result<T, KafkaError>) -> Result<T, KafkaError> {
    loop {
        match ask() {
            Err(error) if is_transient(&error) && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
            }
            outcome => return outcome,
        }
    }
}

/// Reads every committed record of a topic, all partitions, from the start to the end as it is now; ordered by partition and
/// offset. Waits, at most half a minute, for transactions that are being written or committed.
pub fn read_topic(client: &ClientSettings, topic: &str) -> Result<Vec<OwnedRecord>, Error> {
    let ends = Ends::new(client, "runwarden-read")?;
    let reader = &ends.committed;
    let context = |what: &str| format!("cannot {what} topic {topic}");
    let deadline = Instant::now() + Duration::from_secs(30);
    let partitions = patiently(deadline, || reader.partitions(topic)).map_err(|e| Error::broker(context("find"), e))?;
    if partitions == 0 {
        return Err(Error::MissingTopic(topic.to_owned()));
    }
    let mut records = Vec::new();
    for partition in 0..partitions {
        let failed = |e| Error::broker(context("read"), e);
        let written = patiently(deadline, || ends.written(topic, partition)).map_err(failed)?;
        while patiently(deadline, || ends.stable(topic, partition)).map_err(failed)? < written
            && Instant::now() < deadline
        {
            std::thread::sleep(Duration::from_millis(10));
        }
        let (low, high) = patiently(deadline, || reader.watermarks(topic, partition)).map_err(failed)?;
        if low == high {
            continue;
        }
        let read = reader.to_end(
            topic,
            partition,
            Offset::Offset(low),
            || false,
            |message| {
                records.push(OwnedRecord::from_message(message));
                Next::More
            },
        );
        read.map_err(failed)?;
    }
    Ok(records)
}
