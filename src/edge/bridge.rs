//! Spans that a collector exports to Kafka: its records become events, at least once, and by their ids once.
//!
//! A record is committed, in a consumer group of its own, when Kafka has acknowledged what came of it: its events, or a dead letter where
//! it cannot be read.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::oneshot::error::TryRecvError;

use super::{Said, count, outgoing};
use crate::clock::{Wall, rfc3339};
use crate::kafka::outbox::{Outbox, Outgoing};
use crate::kafka::reader::OwnedRecord;
use crate::kafka::subscribe::{Heard, Start, Subscriber};
use crate::kafka::{Error, ShellConfig};
use crate::metrics::Metrics;
use crate::metrics::labels::{BridgedOutcome, DeadLetterReason, Label as _};
use crate::telemetry::otlp::{Encoding, Mapper, Unreadable};
use crate::telemetry::{DeadLetter, Origin, Reason};

/// How long one look at the topic may take: a shutdown is noticed after it.
const LOOK: Duration = Duration::from_millis(100);
/// Between attempts.
const RETRY: Duration = Duration::from_secs(1);
/// Between two looks whether Kafka has it.
const BEAT: Duration = Duration::from_millis(2);
/// Records and bytes that are mapped and committed together.
const RECORDS: usize = 500;
const BYTES: usize = 4 << 20;
/// Longest record that is kept in a dead letter as it is: broker limits begin at 1 MB.
const KEPT: usize = 512 << 10;

/// Reads the topic of a collector.
pub struct Bridge {
    /// Where it is, and this process's place in a group.
    pub shell: ShellConfig,
    /// The group that reads it.
    pub group: String,
    /// Its name.
    pub topic: String,
    /// How its records are written.
    pub encoding: Encoding,
    /// Maps them.
    pub mapper: Arc<Mapper>,
    /// Sends what comes of them.
    pub outbox: Arc<Outbox>,
    /// Where events go.
    pub telemetry: Arc<str>,
    /// Where what cannot be read goes.
    pub dead_letter: Arc<str>,
    /// Whether that is kept as it is.
    pub keep_undecodable: bool,
    /// CloudEvents source of dead letters.
    pub source: String,
    /// Where it counts.
    pub metrics: Arc<Metrics>,
}

/// What was read.
#[derive(Default)]
struct Gathered {
    records: Vec<OwnedRecord>,
    /// Partitions to let go of.
    gone: Vec<i32>,
}

/// What records gave.
#[derive(Default)]
struct Batch {
    out: Vec<Outgoing>,
    events: u64,
    next: BTreeMap<i32, i64>,
}

impl Bridge {
    /// Reads until it is told to stop.
    pub fn run(self, stop: &AtomicBool) {
        let (said, mut trouble) = (Said::default(), String::new());
        while !stop.load(Ordering::Acquire) {
            match self.read(&said, &mut trouble, stop) {
                Ok(()) => return,
                Err(error) => tell(&error, &mut trouble, "the topic of the collector cannot be read, trying again"),
            }
            pause(stop);
        }
    }

    /// Reads as one member of the group, until it is told to stop.
    fn read(&self, said: &Said, trouble: &mut String, stop: &AtomicBool) -> Result<(), Error> {
        let mut member = Subscriber::new(&self.shell, &self.group, &self.topic, Start::Beginning)?;
        while !stop.load(Ordering::Acquire) {
            let Gathered { records, gone } = self.gather(&mut member)?;
            if !records.is_empty() {
                trouble.clear();
                let batch = self.map(&records, said);
                if !self.deliver(&batch.out, stop) {
                    return Ok(());
                }
                self.metrics.otlp.events.inc_by(batch.events);
                if let Err(error) = member.commit(&batch.next) {
                    tell(&error, trouble, "spans that were taken may come again");
                }
            }
            if !gone.is_empty() {
                member.release(&gone)?;
            }
        }
        Ok(())
    }

    /// Waits for a record, and takes what is there with it, up to a change of partitions: what is to be let go of is committed first.
    fn gather(&self, member: &mut Subscriber) -> Result<Gathered, Error> {
        let (mut gathered, mut bytes, mut wait) = (Gathered::default(), 0, LOOK);
        while gathered.records.len() < RECORDS && bytes < BYTES {
            match member.next(wait)? {
                Some(Heard::Record(record)) => {
                    bytes += record.payload.as_ref().map_or(0, Vec::len);
                    gathered.records.push(*record);
                }
                Some(Heard::Assigned { .. }) => {}
                Some(Heard::Revoked { partitions, .. }) => {
                    gathered.gone = partitions;
                    break;
                }
                None => break,
            }
            wait = Duration::ZERO;
        }
        Ok(gathered)
    }

    fn map(&self, records: &[OwnedRecord], said: &Said) -> Batch {
        let mut batch = Batch::default();
        for record in records {
            batch.next.insert(record.partition, record.offset + 1);
            // a tombstone says nothing
            let Some(payload) = &record.payload else { continue };
            match self.mapper.map(payload, self.encoding, None) {
                Ok(mut mapped) => {
                    count(&mapped, &self.metrics, said);
                    self.metrics.otlp.bridged.get(BridgedOutcome::Mapped).inc();
                    batch.events += u64::try_from(mapped.records.len()).unwrap_or_default();
                    batch.out.extend(outgoing(std::mem::take(&mut mapped.records), &self.telemetry));
                }
                Err(why) => {
                    self.metrics.otlp.bridged.get(BridgedOutcome::Dead).inc();
                    if said.first("dead") {
                        let (topic, partition, offset) = (&record.topic, record.partition, record.offset);
                        tracing::warn!(
                            topic,
                            partition,
                            offset,
                            "a record of the collector is dead: {why}; this is said once"
                        );
                    }
                    batch.out.push(self.dead(record, payload, why));
                }
            }
        }
        batch
    }

    fn dead(&self, record: &OwnedRecord, payload: &[u8], why: Unreadable) -> Outgoing {
        let reason = if matches!(why, Unreadable::TooMany(_)) { Reason::Oversize } else { Reason::Decode };
        if let Some(label) = DeadLetterReason::parse(reason.as_str()) {
            self.metrics.dead_letters.get(label).inc();
        }
        // not an input of the core
        let input = u8::MAX;
        let (topic, partition, offset) = (record.topic.as_str(), record.partition, record.offset);
        let origin = Origin { input, topic: topic.into(), partition, offset };
        let keep = self.keep_undecodable && payload.len() <= KEPT;
        let letter = DeadLetter::of_bytes(origin, reason, why.to_string(), payload, keep);
        let mut headers = letter.headers();
        let place = format!("{topic}/{partition}/{offset}");
        let kept = if keep { "application/octet-stream" } else { "application/json" };
        let head = [
            ("ce_id", place.clone()),
            ("ce_source", self.source.clone()),
            ("ce_type", format!("runwarden.dead-letter.{}", reason.as_str())),
            ("ce_specversion", "1.0".to_owned()),
            ("ce_time", rfc3339(Wall::now().0)),
            ("ce_subject", place.replace('/', "%2F")),
            ("content-type", kept.to_owned()),
        ];
        headers.extend(head.map(|(name, value)| (name.to_owned(), value.into_bytes())));
        Outgoing {
            topic: Arc::clone(&self.dead_letter),
            key: record.key.clone().unwrap_or_default(),
            payload: letter.value,
            headers,
        }
    }

    /// Sends until Kafka has it all. False: told to stop before.
    fn deliver(&self, out: &[Outgoing], stop: &AtomicBool) -> bool {
        let mut trouble = String::new();
        loop {
            let mut receipt = self.outbox.send(out, ());
            let outcome = loop {
                match receipt.try_recv() {
                    Ok(outcome) => break Some(outcome),
                    Err(TryRecvError::Closed) => break None,
                    Err(TryRecvError::Empty) if stop.load(Ordering::Acquire) => return false,
                    Err(TryRecvError::Empty) => std::thread::sleep(BEAT),
                }
            };
            match outcome {
                Some(Ok(())) => return true,
                Some(Err(error)) => {
                    tell(&error, &mut trouble, "spans wait: Kafka does not take their events, trying again")
                }
                None => {}
            }
            pause(stop);
            if stop.load(Ordering::Acquire) {
                return false;
            }
        }
    }
}

fn pause(stop: &AtomicBool) {
    let until = Instant::now() + RETRY;
    while Instant::now() < until && !stop.load(Ordering::Acquire) {
        std::thread::sleep(LOOK.min(until.saturating_duration_since(Instant::now())));
    }
}

/// Says each cause once, until another comes.
fn tell(error: &Error, said: &mut String, what: &str) {
    let why = std::error::Error::source(error).map_or_else(String::new, |source| format!(": {source}"));
    let error = format!("{error}{why}");
    if error != *said {
        tracing::warn!(error, "{what}");
        *said = error;
    }
}
