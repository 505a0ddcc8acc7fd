//! A plain idempotent producer for `replay`, the demo and tests: keyed records placed as Java clients place them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, ProducerContext};

use super::client::{ClientSettings, log_line};
use super::delivery;
use super::errors::Error;

/// Sends records; bounded queue, so a slow broker slows the caller.
pub struct Producer {
    inner: BaseProducer<Reports>,
    reports: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    delivered: AtomicU64,
    failed: Mutex<Option<KafkaError>>,
}

struct Reports(Arc<Counts>);

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log_line(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", %error, reason, "producer error");
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        match result {
            Ok(_) => drop(self.0.delivered.fetch_add(1, Ordering::Relaxed)),
            Err((error, _)) => {
                let mut failed = self.0.failed.lock().unwrap_or_else(PoisonError::into_inner);
                failed.get_or_insert_with(|| error.clone());
            }
        }
    }
}

/// One record to send.
#[derive(Debug, Clone, Copy, Default)]
pub struct Send<'a> {
    /// Topic.
    pub topic: &'a str,
    /// Explicit partition, or by murmur2 of the key.
    pub partition: Option<i32>,
    /// Key; `None` spreads.
    pub key: Option<&'a [u8]>,
    /// Value; `None` is a tombstone.
    pub payload: Option<&'a [u8]>,
    /// Headers.
    pub headers: &'a [(&'a str, &'a [u8])],
    /// Timestamp, µs; `None`: the time of sending.
    pub timestamp: Option<i64>,
}

impl Producer {
    /// Creates a client; no network yet.
    pub fn new(client: &ClientSettings) -> Result<Self, Error> {
        Self::with(&client.producer())
    }

    /// For a record now and then of which a copy does no harm: an idempotent producer waits a second for its id first.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn courier(client: &ClientSettings) -> Result<Self, Error> {
        let mut config = client.producer();
        config.set("enable.idempotence", "false").set("linger.ms", "0");
        Self::with(&config)
    }

    fn with(config: &ClientConfig) -> Result<Self, Error> {
        let reports = Arc::new(Counts::default());
        let inner = config.create_with_context(Reports(Arc::clone(&reports))).map_err(Error::settings)?;
        Ok(Self { inner, reports })
    }

    /// Queues a keyed record, waiting while the queue is full.
    pub fn send(&self, topic: &str, key: &[u8], payload: &[u8]) -> Result<(), Error> {
        self.send_record(Send { topic, key: Some(key), payload: Some(payload), ..Send::default() })
    }

    /// Queues a record, waiting while the queue is full.
    ///
    /// # Errors
    /// The record cannot be sent, or an earlier one was not delivered.
    pub fn send_record(&self, record: Send<'_>) -> Result<(), Error> {
        let mut next = BaseRecord::<[u8], [u8]>::to(record.topic);
        next.partition = record.partition;
        next.key = record.key;
        next.payload = record.payload;
        next.timestamp = record.timestamp.map(|t| t.div_euclid(1000));
        if !record.headers.is_empty() {
            let headers = OwnedHeaders::new_with_capacity(record.headers.len());
            next.headers = Some(
                record
                    .headers
                    .iter()
                    .fold(headers, |all, (key, value)| all.insert(Header { key, value: Some(*value) })),
            );
        }
        loop {
            match self.inner.send(next) {
                Ok(()) => {
                    self.inner.poll(Duration::ZERO);
                    return self.check(record.topic);
                }
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    delivery::serve(&self.inner);
                    delivery::rest();
                    self.check(record.topic)?;
                    next = back;
                }
                Err((error, _)) => return Err(Error::broker(format!("cannot send to {}", record.topic), error)),
            }
        }
    }

    /// Waits until everything queued is delivered.
    ///
    /// # Errors
    /// A record was not delivered, or the time is over.
    pub fn flush(&self, within: Duration) -> Result<(), Error> {
        let deadline = Instant::now() + within;
        delivery::drain(&self.inner, || {
            self.check("the topic")?;
            if Instant::now() >= deadline {
                let error = KafkaError::Flush(RDKafkaErrorCode::OperationTimedOut);
                return Err(Error::broker("cannot deliver in time", error));
            }
            Ok(())
        })?;
        self.check("the topic")
    }

    /// Records confirmed so far.
    pub fn delivered(&self) -> u64 {
        self.reports.delivered.load(Ordering::Relaxed)
    }

    fn check(&self, topic: &str) -> Result<(), Error> {
        let mut failed = self.reports.failed.lock().unwrap_or_else(PoisonError::into_inner);
        match failed.take() {
            Some(error) => Err(Error::broker(format!("a record for {topic} was not delivered"), error)),
            None => Ok(()),
        }
    }
}
