//! Following topics as they grow, from the start, outside any consumer group: what the demo's screen and its worker do.

use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Offset, TopicPartitionList};

use super::client::{ClientSettings, Isolation, Logged};
use super::errors::Error;
use super::reader::OwnedRecord;

/// How long the broker may take to describe a topic.
const METADATA: Duration = Duration::from_secs(10);

/// Reads committed records of some topics, in the order in which they arrive.
pub struct Follower {
    consumer: BaseConsumer<Logged>,
}

impl Follower {
    /// Starts at the beginning of every partition that the topics have now.
    ///
    /// # Errors
    /// Settings, or a broker that does not know the topics.
    pub fn new(client: &ClientSettings, name: &str, topics: &[&str]) -> Result<Self, Error> {
        let config = client.reader(name, Isolation::Committed);
        let consumer: BaseConsumer<Logged> = config.create_with_context(Logged).map_err(Error::Settings)?;
        let mut partitions = TopicPartitionList::new();
        for topic in topics {
            let failed = |e| Error::broker(format!("cannot follow {topic}"), e);
            let metadata = consumer.fetch_metadata(Some(topic), METADATA).map_err(failed)?;
            for partition in metadata.topics().iter().flat_map(|t| t.partitions()) {
                partitions.add_partition_offset(topic, partition.id(), Offset::Beginning).map_err(failed)?;
            }
        }
        consumer.assign(&partitions).map_err(|e| Error::broker("cannot follow topics".to_owned(), e))?;
        Ok(Self { consumer })
    }

    /// The next record, if one arrives within `wait`. Trouble with the broker is waited out.
    pub fn next(&mut self, wait: Duration) -> Option<OwnedRecord> {
        match self.consumer.poll(wait)? {
            Ok(message) => Some(OwnedRecord::from_message(&message)),
            Err(_) => None,
        }
    }
}
