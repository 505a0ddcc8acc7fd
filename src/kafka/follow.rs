//! Following topics as they grow, outside any consumer group: from the start (the demo's screen and its worker, the terms in force) or
//! from now on (whoever waits for an answer).

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};

use super::client::{BrokerKind, ClientSettings, Isolation, Logged};
use super::errors::Error;
use super::reader::{OwnedRecord, patiently};

/// How long the broker may take to describe a topic.
const METADATA: Duration = Duration::from_secs(10);

/// Where a follower starts.
#[derive(Debug, Clone, Copy)]
enum From {
    Beginning,
    End,
    /// Milliseconds since 1970.
    Time(i64),
}

/// Reads committed records of some topics, in the order in which they arrive.
pub struct Follower {
    consumer: BaseConsumer<Logged>,
    /// Partitions that are followed, and those whose end was met. Of several topics the numbers are mixed up.
    followed: BTreeSet<i32>,
    ended: BTreeSet<i32>,
}

impl Follower {
    /// Starts at the beginning of every partition that the topics have now.
    ///
    /// # Errors
    /// Settings, or a broker that does not know the topics.
    pub fn new(client: &ClientSettings, name: &str, topics: &[&str]) -> Result<Self, Error> {
        Self::start(client, name, topics, From::Beginning)
    }

    /// Starts behind what one topic holds now: what is written from here on is seen.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn from_now_on(client: &ClientSettings, name: &str, topic: &str) -> Result<Self, Error> {
        Self::start(client, name, &[topic], From::End)
    }

    /// Starts at the first record of one topic that the broker took at `since` (milliseconds) or later.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn since(client: &ClientSettings, name: &str, topic: &str, since: i64) -> Result<Self, Error> {
        Self::start(client, name, &[topic], From::Time(since))
    }

    fn start(client: &ClientSettings, name: &str, topics: &[&str], start: From) -> Result<Self, Error> {
        let mut config = client.reader(name, Isolation::Committed);
        if client.kind == BrokerKind::Real {
            // whoever follows for long lets the broker wait; what is committed shows at the end of a wait only
            config.set("fetch.wait.max.ms", "50");
        }
        let consumer: BaseConsumer<Logged> = config.create_with_context(Logged).map_err(Error::Settings)?;
        let mut partitions = TopicPartitionList::new();
        let mut followed = BTreeSet::new();
        for topic in topics {
            let failed = |e| Error::broker(format!("cannot follow {topic}"), e);
            let until = Instant::now() + METADATA;
            let metadata = patiently(until, || consumer.fetch_metadata(Some(topic), METADATA)).map_err(failed)?;
            let known = metadata.topics().iter().filter(|t| t.error().is_none() && !t.partitions().is_empty());
            let known: Vec<i32> = known.flat_map(|t| t.partitions()).map(|p| p.id()).collect();
            if known.is_empty() {
                return Err(Error::MissingTopic((*topic).to_owned()));
            }
            for partition in known {
                // asked for now: a logical end would be looked up when the first record is fetched
                let end = || {
                    let ends = patiently(until, || consumer.fetch_watermarks(topic, partition, METADATA));
                    ends.map(|(_, end)| Offset::Offset(end))
                };
                let from = match start {
                    From::Beginning => Offset::Beginning,
                    // the mock knows no times
                    From::Time(_) if client.kind != BrokerKind::Real => Offset::Beginning,
                    From::End => end().map_err(failed)?,
                    From::Time(since) => {
                        let mut asked = TopicPartitionList::new();
                        asked.add_partition_offset(topic, partition, Offset::Offset(since)).map_err(failed)?;
                        let found = patiently(until, || consumer.offsets_for_times(asked.clone(), METADATA));
                        let found = found.map_err(failed)?;
                        match found.find_partition(topic, partition).map(|p| p.offset()) {
                            Some(Offset::Offset(offset)) => Offset::Offset(offset),
                            _ => end().map_err(failed)?,
                        }
                    }
                };
                partitions.add_partition_offset(topic, partition, from).map_err(failed)?;
                followed.insert(partition);
            }
        }
        consumer.assign(&partitions).map_err(|e| Error::broker("cannot follow topics".to_owned(), e))?;
        Ok(Self { consumer, followed, ended: BTreeSet::new() })
    }

    /// The next record, if one arrives within `wait`. Trouble with the broker is waited out.
    pub fn next(&mut self, wait: Duration) -> Option<OwnedRecord> {
        match self.consumer.poll(wait)? {
            Ok(message) => Some(OwnedRecord::from_message(&message)),
            Err(KafkaError::PartitionEOF(partition)) => {
                self.ended.insert(partition);
                None
            }
            Err(_) => None,
        }
    }

    /// Whether the end of every partition, as it was when reached, has been met once. For one topic.
    pub fn caught_up(&self) -> bool {
        self.ended.len() == self.followed.len()
    }
}
