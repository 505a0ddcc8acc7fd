//! The transactional producer: what goes into a transaction, and how it ends.
//!
//! Invariants: a commit drains first (rdkafka's own flush costs 100 ms a call), always carries offsets and fresh group
//! metadata (the fence against zombies), and its outcome is either known or reported as fatal. Nothing is ever purged.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};
use rdkafka::{ClientConfig, TopicPartitionList};

use super::client::log_line;
use super::delivery;
use super::errors::{Class, classify, is_poison, is_stale_member};

const CALL_TIMEOUT: Duration = Duration::from_secs(5);
const RETRY_LIMIT: Duration = Duration::from_secs(30);
/// Between two attempts to end a transaction.
const RETRY: Duration = Duration::from_millis(5);

/// Identifies a record of the open transaction in delivery reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tag {
    /// Input partition whose step made it.
    pub partition: i32,
    /// Which of the partition's records.
    pub place: Place,
}

/// Which record of a partition's work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The n-th output.
    Output(usize),
    /// The step record: its offset is remembered.
    Steps,
    /// The n-th record of the checkpoint.
    Checkpoint(usize),
}

const KIND_SHIFT: u32 = 30;
const INDEX_MASK: usize = (1 << KIND_SHIFT) - 1;

impl Tag {
    fn pack(self) -> usize {
        let (kind, index) = match self.place {
            Place::Output(n) => (0, n & INDEX_MASK),
            Place::Steps => (1, 0),
            Place::Checkpoint(n) => (2, n & INDEX_MASK),
        };
        (self.partition.unsigned_abs() as usize) << 32 | kind << KIND_SHIFT | index
    }

    fn unpack(packed: usize) -> Self {
        let index = packed & INDEX_MASK;
        let place = match packed >> KIND_SHIFT & 3 {
            0 => Place::Output(index),
            1 => Place::Steps,
            _ => Place::Checkpoint(index),
        };
        Self { partition: i32::try_from(packed >> 32).unwrap_or_default(), place }
    }
}

/// A record on its way out.
#[derive(Debug, Clone, Copy)]
pub struct Outgoing<'a> {
    /// Topic.
    pub topic: &'a str,
    /// Explicit partition, or by key.
    pub partition: Option<i32>,
    /// Key.
    pub key: Option<&'a [u8]>,
    /// Value.
    pub payload: Option<&'a [u8]>,
    /// Headers.
    pub headers: &'a [(String, Vec<u8>)],
}

/// How an attempt to end a transaction failed.
#[derive(Debug)]
pub enum Failed {
    /// Abort and send again. `stale`: the group has moved on without us.
    Abort {
        /// Why.
        reason: String,
        /// Whether our group membership is out of date.
        stale: bool,
    },
    /// The producer is to be rebuilt.
    Rebuild {
        /// Why.
        reason: String,
        /// Whether a newer holder of the id fenced us.
        fenced: bool,
    },
    /// Not authorised.
    Denied(KafkaError),
    /// The deadline of a drain passed.
    Deadline,
}

impl Failed {
    fn from_error(context: &str, error: KafkaError) -> Self {
        let reason = format!("{context}: {error}");
        match classify(&error) {
            Class::Abort | Class::Retry => Self::Abort { reason, stale: is_stale_member(&error) },
            Class::Fenced => Self::Rebuild { reason, fenced: true },
            Class::Fatal => Self::Rebuild { reason, fenced: false },
            Class::Denied => Self::Denied(error),
        }
    }
}

/// The transactional producer of one shell.
pub struct Writer {
    producer: BaseProducer<Reports>,
    open: bool,
    failed: Option<Failed>,
}

impl Writer {
    /// Creates the client; no network yet.
    pub fn new(config: &ClientConfig) -> KafkaResult<Self> {
        Ok(Self { producer: config.create_with_context(Reports::default())?, open: false, failed: None })
    }

    /// Registers the transactional id: fences older holders and aborts what they left open. Retriable errors may be
    /// called again.
    pub fn init(&self, timeout: Duration) -> KafkaResult<()> {
        self.producer.init_transactions(timeout)
    }

    /// Whether records were sent since the last commit or abort.
    pub const fn is_open(&self) -> bool {
        self.open
    }

    /// Whether the open transaction can only be aborted.
    pub const fn has_failed(&self) -> bool {
        self.failed.is_some()
    }

    /// Sends a record in the open transaction, beginning one if there is none. Waits while the queue is full: a slow
    /// broker slows intake, and nothing is dropped. `expired` is asked meanwhile: whether the deadline of a drain has passed.
    /// After a failure it does nothing: the caller keeps the record and learns of the failure at the commit.
    ///
    /// # Errors
    /// A record this client can never take (too large): the code.
    pub fn send(&mut self, record: Outgoing<'_>, tag: Tag, expired: &dyn Fn() -> bool) -> Result<(), RDKafkaErrorCode> {
        self.begin();
        if self.failed.is_some() {
            return Ok(());
        }
        let mut next = BaseRecord::<[u8], [u8], usize>::with_opaque_to(record.topic, tag.pack());
        next.partition = record.partition;
        next.key = record.key;
        next.payload = record.payload;
        if !record.headers.is_empty() {
            let headers = OwnedHeaders::new_with_capacity(record.headers.len());
            next.headers = Some(
                record.headers.iter().fold(headers, |all, (key, value)| all.insert(Header { key, value: Some(value) })),
            );
        }
        loop {
            match self.producer.send(next) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    delivery::serve(&self.producer);
                    delivery::rest();
                    if let Err(deadline) = check(expired) {
                        self.failed = Some(deadline);
                        return Ok(());
                    }
                    next = back;
                }
                Err((KafkaError::MessageProduction(code), _)) if is_poison(code) => return Err(code),
                Err((error, _)) => {
                    self.failed = Some(match self.fatal() {
                        Some(fatal) => fatal,
                        None => {
                            Failed::Abort { reason: format!("cannot send to {}: {error}", record.topic), stale: false }
                        }
                    });
                    return Ok(());
                }
            }
        }
    }

    /// Begins a transaction unless one is open.
    pub fn begin(&mut self) {
        if self.open {
            return;
        }
        self.open = true;
        if let Err(error) = self.producer.begin_transaction() {
            self.failed = Some(Failed::from_error("begin", error));
        }
    }

    /// Serves delivery reports; without it they count as queued.
    pub fn poll(&self) {
        delivery::serve(&self.producer);
    }

    /// Commits what was sent together with `offsets`. `expired`: whether the deadline of a drain has passed. On [`Failed::Abort`] call [`Writer::abort`], then send again.
    pub fn commit(
        &mut self,
        offsets: &TopicPartitionList,
        group: &ConsumerGroupMetadata,
        expired: &dyn Fn() -> bool,
    ) -> Result<(), Failed> {
        self.begin();
        if let Some(failed) = self.failed.take() {
            return Err(failed);
        }
        self.drain(expired)?;
        if let Some((tag, code)) = self.first_failure() {
            let reason = format!("a record of partition {} was not delivered: {code}", tag.partition);
            // After a time-out this client may never send to the partition again (librdkafka 2.12.1 stays at the old
            // sequence after a broker restart), and whether the record is stored is unknown: start over.
            let timed_out = self.reports().failures.iter().any(|&(_, c)| c == RDKafkaErrorCode::MessageTimedOut);
            return Err(match self.fatal() {
                Some(fatal) => fatal,
                None if timed_out => Failed::Rebuild { reason, fenced: false },
                None => Failed::Abort { reason, stale: false },
            });
        }
        let give_up = GiveUp(Instant::now() + RETRY_LIMIT);
        loop {
            match self.producer.send_offsets_to_transaction(offsets, group, CALL_TIMEOUT) {
                Ok(()) => break,
                Err(error) if classify(&error) == Class::Retry => {
                    check(expired)?;
                    give_up.check("send offsets", &error)?;
                }
                Err(error) => return Err(Failed::from_error("send offsets", error)),
            }
        }
        loop {
            match self.producer.commit_transaction(CALL_TIMEOUT) {
                Ok(()) => break,
                Err(error) if classify(&error) == Class::Retry => {
                    check(expired)?;
                    give_up.check("commit", &error)?;
                    self.drain(expired)?;
                }
                Err(error) => return Err(Failed::from_error("commit", error)),
            }
        }
        self.open = false;
        Ok(())
    }

    /// Ends the open transaction without effect. Gives the records that had failed before, and why; those that were merely
    /// thrown away with the transaction are not among them.
    pub fn abort(&mut self, expired: &dyn Fn() -> bool) -> Result<Vec<(Tag, RDKafkaErrorCode)>, Failed> {
        self.failed = None;
        if self.open {
            let give_up = Instant::now() + Duration::from_secs(30);
            loop {
                match self.producer.abort_transaction(Duration::from_millis(50)) {
                    Ok(()) => break,
                    Err(error) => match classify(&error) {
                        Class::Retry | Class::Abort if Instant::now() < give_up => {
                            check(expired)?;
                            delivery::serve(&self.producer);
                            std::thread::sleep(RETRY);
                        }
                        Class::Fenced => return Err(Failed::from_error("abort", error)),
                        _ => return Err(Failed::Rebuild { reason: format!("abort: {error}"), fenced: false }),
                    },
                }
            }
            self.open = false;
        }
        // Reports of this transaction must not be taken for the next one's.
        self.drain(expired)?;
        let failures = std::mem::take(&mut self.reports().failures);
        let purged =
            |code: RDKafkaErrorCode| matches!(code, RDKafkaErrorCode::PurgeQueue | RDKafkaErrorCode::PurgeInflight);
        Ok(failures
            .into_iter()
            .filter(|&(_, code)| !purged(code))
            .map(|(tag, code)| (Tag::unpack(tag), code))
            .collect())
    }

    /// Offset of the last delivered step record of a partition.
    pub fn steps_offset(&self, partition: i32) -> Option<i64> {
        self.reports().steps.get(&partition).copied()
    }

    fn first_failure(&self) -> Option<(Tag, RDKafkaErrorCode)> {
        self.reports().failures.first().map(|&(tag, code)| (Tag::unpack(tag), code))
    }

    fn fatal(&self) -> Option<Failed> {
        let (code, reason) = self.producer.client().fatal_error()?;
        let fenced = matches!(
            code,
            RDKafkaErrorCode::Fenced | RDKafkaErrorCode::ProducerFenced | RDKafkaErrorCode::InvalidProducerEpoch
        );
        Some(Failed::Rebuild { reason, fenced })
    }

    /// Waits until nothing is in flight. Messages leave the queue delivered or timed out (within the transaction time-out), so this ends.
    pub fn drain(&self, expired: &dyn Fn() -> bool) -> Result<(), Failed> {
        delivery::drain(&self.producer, || check(expired))
    }

    fn reports(&self) -> std::sync::MutexGuard<'_, ReportState> {
        self.producer.context().state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// When calling again has lasted long enough: the broker has ended the transaction one way or the other by then, and reading
/// the committed offsets tells which.
struct GiveUp(Instant);

impl GiveUp {
    fn check(&self, context: &str, error: &KafkaError) -> Result<(), Failed> {
        tracing::warn!(%error, context, "calling again");
        if Instant::now() < self.0 {
            return Ok(());
        }
        Err(Failed::Rebuild { reason: format!("{context} again and again: {error}"), fenced: false })
    }
}

fn check(expired: &dyn Fn() -> bool) -> Result<(), Failed> {
    if expired() { Err(Failed::Deadline) } else { Ok(()) }
}

/// Collects delivery reports.
#[derive(Default)]
struct Reports {
    state: Mutex<ReportState>,
}

#[derive(Default)]
struct ReportState {
    failures: Vec<(usize, RDKafkaErrorCode)>,
    steps: HashMap<i32, i64>,
}

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log_line(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", %error, reason, "producer error");
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, packed: usize) {
        let tag = Tag::unpack(packed);
        match result {
            Ok(message) if tag.place == Place::Steps => {
                let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                state.steps.insert(tag.partition, message.offset());
            }
            Ok(_) => {}
            Err((error, _)) => {
                let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown);
                let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                state.failures.push((packed, code));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_survives_its_packing() {
        for partition in [0, 1, 63, 1_000_000] {
            for place in [Place::Output(0), Place::Output(20_000), Place::Steps, Place::Checkpoint(77)] {
                let tag = Tag { partition, place };
                assert_eq!(Tag::unpack(tag.pack()), tag);
            }
        }
    }
}
