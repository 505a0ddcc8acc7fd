//! The group consumer's context: notes rebalances for the loop to serve, keeps end offsets from the client's statistics.
//!
//! A rebalance is only noted here, on the polling thread; the loop answers it right after the poll returns, with all of its
//! state at hand. Invariant: every noted event is answered with an (un)assign before the next poll for messages matters.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rdkafka::bindings;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, RebalanceProtocol};
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{Statistics, TopicPartitionList};

use super::client::log_line;

/// What the group decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    /// These telemetry partitions are ours now.
    Assign(Vec<i32>),
    /// These are to be given up; `lost`: they already belong to someone else.
    Revoke { partitions: Vec<i32>, lost: bool },
}

/// Context of the group consumer.
#[derive(Debug, Default)]
pub(super) struct Group {
    changes: Mutex<VecDeque<Change>>,
    ends: Mutex<HashMap<(String, i32), i64>>,
    fresh_ends: AtomicBool,
    closing: AtomicBool,
}

impl Group {
    /// The oldest unanswered change.
    pub(super) fn next(&self) -> Option<Change> {
        lock(&self.changes).pop_front()
    }

    /// Whether partitions were lost and this is still unanswered.
    pub(super) fn has_lost(&self) -> bool {
        lock(&self.changes).iter().any(|change| matches!(change, Change::Revoke { lost: true, .. }))
    }

    /// From now on rebalances are answered at once: everything is committed and the consumer is about to close.
    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::Release);
    }

    /// End offsets a read_committed consumer may see, when the statistics have news.
    pub(super) fn take_ends(&self) -> Option<HashMap<(String, i32), i64>> {
        self.fresh_ends.swap(false, Ordering::AcqRel).then(|| lock(&self.ends).clone())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The generation (member epoch) of a group's member; 0 or less before the group has answered.
///
/// With KIP-848 a member that gets no partition hears of no rebalance at all: this is how it knows that it belongs.
#[expect(unsafe_code, reason = "the generation of a consumer is not wrapped, and its getter not even bound")]
pub(super) fn generation(consumer: &BaseConsumer<Group>) -> i32 {
    unsafe extern "C" {
        fn rd_kafka_consumer_group_metadata_generation_id(
            metadata: *const bindings::rd_kafka_consumer_group_metadata_t,
        ) -> i32;
    }
    // SAFETY: the client outlives the calls; the metadata is ours, checked, read once and destroyed once.
    unsafe {
        let metadata = bindings::rd_kafka_consumer_group_metadata(consumer.client().native_ptr());
        if metadata.is_null() {
            return -1;
        }
        let generation = rd_kafka_consumer_group_metadata_generation_id(metadata);
        bindings::rd_kafka_consumer_group_metadata_destroy(metadata);
        generation
    }
}

impl ClientContext for Group {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log_line(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", %error, reason, "consumer error");
    }

    fn stats(&self, statistics: Statistics) {
        let mut ends = lock(&self.ends);
        for (name, topic) in statistics.topics {
            for (partition, known) in topic.partitions {
                let end = if known.ls_offset >= 0 { known.ls_offset } else { known.hi_offset };
                if partition >= 0 && end >= 0 {
                    ends.insert((name.clone(), partition), end);
                }
            }
        }
        self.fresh_ends.store(true, Ordering::Release);
    }
}

impl ConsumerContext for Group {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, err: RDKafkaRespErr, list: &mut TopicPartitionList) {
        let partitions: Vec<i32> = list.elements().iter().map(|e| e.partition()).collect();
        let assign = err == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
        if self.closing.load(Ordering::Acquire) {
            let answer = match (consumer.rebalance_protocol(), assign) {
                (_, true) => Ok(()),
                (RebalanceProtocol::Cooperative, false) => consumer.incremental_unassign(list),
                (_, false) => consumer.unassign(),
            };
            if let Err(error) = answer {
                tracing::debug!(%error, "closing");
            }
            return;
        }
        let lost = !assign && consumer.assignment_lost();
        let change = if assign { Change::Assign(partitions) } else { Change::Revoke { partitions, lost } };
        lock(&self.changes).push_back(change);
    }
}
