//! A plain member of a consumer group, beside the group that owns partitions: at least once, offsets committed by whoever acts on records.

use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::{Offset, TopicPartitionList};

use super::client::{ClientSettings, Logged};
use super::errors::Error;
use super::reader::OwnedRecord;

/// Reads its share of a topic.
pub struct Member(BaseConsumer<Logged>);

impl Member {
    /// Joins a group for one topic, as `instance` where that is a name stable over restarts; where nothing was committed it begins at the
    /// beginning.
    ///
    /// # Errors
    /// Settings.
    pub fn join(client: &ClientSettings, group: &str, instance: Option<&str>, topic: &str) -> Result<Self, Error> {
        let consumer: BaseConsumer<Logged> =
            client.member(group, instance).create_with_context(Logged).map_err(Error::Settings)?;
        consumer.subscribe(&[topic]).map_err(|e| Error::broker(format!("cannot subscribe to {topic}"), e))?;
        Ok(Self(consumer))
    }

    /// The next record, if one arrives within `wait`; an error is what the broker says, and passes or not.
    ///
    /// # Errors
    /// What the client reports, such as a topic that does not exist.
    pub fn next(&self, wait: Duration) -> Result<Option<OwnedRecord>, Error> {
        match self.0.poll(wait) {
            None => Ok(None),
            Some(Ok(message)) => Ok(Some(OwnedRecord::from_message(&message))),
            Some(Err(e)) => Err(Error::broker("cannot read spans".to_owned(), e)),
        }
    }

    /// Commits that everything of these partitions before these offsets is done.
    ///
    /// # Errors
    /// The group does not take it: the partitions belong to another member now, or the broker cannot be reached.
    pub fn commit(&self, topic: &str, next: impl IntoIterator<Item = (i32, i64)>) -> Result<(), Error> {
        let failed = |e| Error::broker(format!("cannot commit offsets of {topic}"), e);
        let mut offsets = TopicPartitionList::new();
        for (partition, next) in next {
            offsets.add_partition_offset(topic, partition, Offset::Offset(next)).map_err(failed)?;
        }
        self.0.commit(&offsets, CommitMode::Sync).map_err(failed)
    }
}
