//! Records that somebody waits for: sent together, answered when Kafka has all of them.
//!
//! `acks=all`, and one request at a time to a broker, which keeps the order; without idempotence, so that nothing ends the client for good.
//! What is sent again is told by its event id.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer as _, ProducerContext, ThreadedProducer};
use tokio::sync::oneshot;

use super::client::{ClientSettings, log_line};
use super::errors::Error;

/// One record to send.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names of Kafka's own fields")]
pub struct Outgoing {
    pub topic: Arc<str>,
    pub key: Vec<u8>,
    pub payload: Vec<u8>,
    pub headers: Vec<(String, Vec<u8>)>,
}

impl Outgoing {
    /// Bytes of key, value and headers.
    pub fn size(&self) -> usize {
        let headers: usize = self.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
        self.key.len() + self.payload.len() + headers
    }
}

/// What is waited for.
struct Parcel {
    left: AtomicUsize,
    failed: Mutex<Option<KafkaError>>,
    /// Taken by the last of them.
    done: Mutex<Option<Done>>,
}

/// Who is told, and what is held until then.
struct Done {
    told: oneshot::Sender<Result<(), Error>>,
    held: Box<dyn Send>,
}

impl Parcel {
    fn fail(&self, error: &KafkaError) {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| error.clone());
    }

    /// Some of it is answered.
    fn answered(&self, records: usize) {
        if self.left.fetch_sub(records, Ordering::AcqRel) > records {
            return;
        }
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner).take();
        let outcome = failed.map_or(Ok(()), |e| Err(Error::broker("telemetry was not delivered".to_owned(), e)));
        let done = self.done.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Done { told, held }) = done {
            drop(held);
            // whoever gave up waiting hears nothing
            told.send(outcome).unwrap_or_default();
        }
    }
}

struct Reports;

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log_line(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", %error, reason, "producer error");
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = Arc<Parcel>;

    fn delivery(&self, result: &DeliveryResult<'_>, parcel: Arc<Parcel>) {
        if let Err((error, _)) = result {
            parcel.fail(error);
        }
        parcel.answered(1);
    }
}

/// Sends records. A thread of its own hears what became of them.
pub struct Outbox(ThreadedProducer<Reports>);

impl Outbox {
    /// Creates a client; it connects when it has something to send. What is not delivered `within` this time is given up.
    ///
    /// # Errors
    /// Settings.
    pub fn new(client: &ClientSettings, within: Duration) -> Result<Self, Error> {
        let mut config = client.producer();
        config
            .set("client.id", "runwarden-edge")
            .set("enable.idempotence", "false")
            .set("acks", "all")
            .set("max.in.flight.requests.per.connection", "1")
            .set("linger.ms", "2")
            .set("message.timeout.ms", within.as_millis().to_string());
        Ok(Self(config.create_with_context(Reports).map_err(Error::settings)?))
    }

    /// Sends records, and answers when all are acknowledged or one is not. `held` is dropped then. What cannot be queued now is refused
    /// like what is not delivered.
    pub fn send(&self, records: &[Outgoing], held: impl Send + 'static) -> oneshot::Receiver<Result<(), Error>> {
        let (told, receiver) = oneshot::channel();
        // one more than there are, so that it is not answered before all are queued
        let left = AtomicUsize::new(records.len() + 1);
        let done = Mutex::new(Some(Done { told, held: Box::new(held) }));
        let parcel = Arc::new(Parcel { left, failed: Mutex::default(), done });
        let mut queued = 0;
        for record in records {
            let headers =
                record.headers.iter().fold(OwnedHeaders::new_with_capacity(record.headers.len()), |all, h| {
                    all.insert(Header { key: &h.0, value: Some(&h.1) })
                });
            let mut next = BaseRecord::with_opaque_to(&record.topic, Arc::clone(&parcel))
                .key(record.key.as_slice())
                .payload(record.payload.as_slice());
            if !record.headers.is_empty() {
                next = next.headers(headers);
            }
            if let Err((error, _)) = self.0.send(next) {
                parcel.fail(&error);
                break;
            }
            queued += 1;
        }
        parcel.answered(records.len() - queued + 1);
        receiver
    }

    /// Waits until everything that was sent is answered.
    ///
    /// # Errors
    /// The time is over.
    pub fn flush(&self, within: Duration) -> Result<(), Error> {
        self.0.flush(within).map_err(|e| Error::broker("cannot deliver in time".to_owned(), e))
    }
}

/// Whether a queue is full for now.
pub fn is_full(error: &Error) -> bool {
    matches!(error, Error::Broker { source: KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), .. })
}
