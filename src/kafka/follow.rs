//! Following topics as they grow, outside any consumer group: from the start (the demo's screen and its worker, the terms in force) or
//! from now on (whoever waits for an answer).

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};

use super::client::{BrokerKind, ClientSettings, Isolation, Logged};
use super::errors::Error;
use super::reader::{OwnedRecord, heed, patiently};

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

/// Where a topic is followed from: by partition, the first offset. Partitions that are not named are followed from their beginning.
pub type Start = BTreeMap<i32, i64>;

/// A partition that is read to the end that it had at the start.
#[derive(Debug)]
struct Behind {
    topic: String,
    partition: i32,
    end: i64,
    /// When its last record was seen.
    last: Instant,
    /// The end of a partition of this number was met since.
    met: bool,
}

/// So long without a record, at an end, and a partition is read: markers of transactions at its end are never seen.
const QUIET: Duration = Duration::from_secs(2);

/// Reads committed records of some topics, in the order in which they arrive.
pub struct Follower {
    consumer: BaseConsumer<Logged>,
    /// Of several topics: what is still to be read of what was there at the start.
    behind: Option<Vec<Behind>>,
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

    /// Starts in each topic where it says. Also names the topics that end before: they are not what they were, and are followed from their
    /// beginning.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn at(client: &ClientSettings, name: &str, starts: &[(&str, Start)]) -> Result<(Self, Vec<String>), Error> {
        let consumer = consumer(client, name)?;
        let mut partitions = TopicPartitionList::new();
        let (mut behind, mut beyond) = (Vec::new(), Vec::new());
        for (topic, start) in starts {
            let failed = |e| Error::broker(format!("cannot follow {topic}"), e);
            let until = Instant::now() + METADATA;
            let mut found = Vec::new();
            for partition in partitions_of(&consumer, topic)? {
                let ends =
                    patiently(until, || consumer.fetch_watermarks(topic, partition, METADATA)).map_err(failed)?;
                found.push((partition, ends));
            }
            let next = |partition: i32| start.get(&partition).copied();
            let anew = found.iter().any(|(partition, (_, end))| next(*partition).is_some_and(|next| next > *end));
            if anew {
                beyond.push((*topic).to_owned());
            }
            for (partition, (begin, end)) in found {
                let from = next(partition).filter(|_| !anew).map_or(begin, |next| next.max(begin));
                partitions.add_partition_offset(topic, partition, Offset::Offset(from)).map_err(failed)?;
                if from < end {
                    let (topic, last) = ((*topic).to_owned(), Instant::now());
                    behind.push(Behind { topic, partition, end, last, met: false });
                }
            }
        }
        consumer.assign(&partitions).map_err(|e| Error::broker("cannot follow topics".to_owned(), e))?;
        Ok((Self { consumer, behind: Some(behind), followed: BTreeSet::new(), ended: BTreeSet::new() }, beyond))
    }

    /// The id of the cluster.
    ///
    /// # Errors
    /// A broker that does not say it.
    pub fn cluster(client: &ClientSettings) -> Result<String, Error> {
        let consumer = consumer(client, "runwarden-cluster")?;
        let until = Instant::now() + METADATA;
        patiently(until, || consumer.fetch_metadata(None, METADATA))
            .inspect_err(|_| heed(&consumer))
            .map_err(|e| Error::broker("cannot reach the cluster".to_owned(), e))?;
        Ok(consumer.client().fetch_cluster_id(METADATA).unwrap_or_default())
    }

    fn start(client: &ClientSettings, name: &str, topics: &[&str], start: From) -> Result<Self, Error> {
        let consumer = consumer(client, name)?;
        let mut partitions = TopicPartitionList::new();
        let mut followed = BTreeSet::new();
        for topic in topics {
            let failed = |e| Error::broker(format!("cannot follow {topic}"), e);
            let until = Instant::now() + METADATA;
            let known = partitions_of(&consumer, topic)?;
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
        Ok(Self { consumer, behind: None, followed, ended: BTreeSet::new() })
    }

    /// The next record, if one arrives within `wait`. Trouble with the broker is waited out.
    pub fn next(&mut self, wait: Duration) -> Option<OwnedRecord> {
        match self.consumer.poll(wait)? {
            Ok(message) => {
                let record = OwnedRecord::from_message(&message);
                if let Some(behind) = &mut self.behind {
                    behind.retain_mut(|one| {
                        let of = one.partition == record.partition && one.topic == record.topic;
                        if of {
                            one.last = Instant::now();
                        }
                        !(of && record.offset + 1 >= one.end)
                    });
                }
                Some(record)
            }
            Err(KafkaError::PartitionEOF(partition)) => {
                self.ended.insert(partition);
                // which topic's, is not said
                for one in self.behind.iter_mut().flatten().filter(|one| one.partition == partition) {
                    one.met = true;
                }
                None
            }
            Err(_) => None,
        }
    }

    /// Whether the end of every partition, as it was at the start or when reached, has been met once.
    pub fn caught_up(&mut self) -> bool {
        match &mut self.behind {
            None => self.ended.len() == self.followed.len(),
            Some(behind) => {
                behind.retain(|one| !(one.met && one.last.elapsed() >= QUIET));
                behind.is_empty()
            }
        }
    }
}

fn consumer(client: &ClientSettings, name: &str) -> Result<BaseConsumer<Logged>, Error> {
    let mut config = client.reader(name, Isolation::Committed);
    if client.kind == BrokerKind::Real {
        // whoever follows for long lets the broker wait; what is committed shows at the end of a wait only
        config.set("fetch.wait.max.ms", "50");
    }
    config.create_with_context(Logged).map_err(Error::settings)
}

fn partitions_of(consumer: &BaseConsumer<Logged>, topic: &str) -> Result<Vec<i32>, Error> {
    let failed = |e| Error::broker(format!("cannot follow {topic}"), e);
    let metadata = patiently(Instant::now() + METADATA, || consumer.fetch_metadata(Some(topic), METADATA))
        .inspect_err(|_| heed(consumer))
        .map_err(failed)?;
    let known = metadata.topics().iter().filter(|t| t.error().is_none() && !t.partitions().is_empty());
    let known: Vec<i32> = known.flat_map(|t| t.partitions()).map(|p| p.id()).collect();
    if known.is_empty() { Err(Error::MissingTopic(topic.to_owned())) } else { Ok(known) }
}
