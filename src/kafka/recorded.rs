//! A stretch of a partition's history as it was processed: its recorded steps with the input of each. What `explain` runs again.

use std::collections::BTreeMap;

use rdkafka::Offset;
use rdkafka::error::KafkaError;
use rdkafka::message::Message;

use crate::clock::{Micros, Wall};

use super::client::{ClientSettings, Isolation};
use super::core::{Input, InputBatch, Record, StepInput};
use super::errors::Error;
use super::reader::{Next, OwnedRecord, RangeError, Reader, micros};
use super::steps::{self, Step};
use super::topics::Topics;

const INPUTS: usize = Input::ALL.len();
/// Steps are looked for from so long before the first record on: clocks of producers and brokers differ.
const BEFORE: Micros = 60 * crate::clock::SECOND;

/// Where a stretch begins and ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stretch {
    /// The partition.
    pub partition: i32,
    /// The first record.
    pub input: Input,
    /// Its offset.
    pub offset: i64,
    /// The clock of the last step.
    pub until: Wall,
}

/// Recorded steps and what they read.
#[derive(Debug)]
pub struct Recorded {
    /// How many partitions the telemetry topic has.
    pub partitions: i32,
    /// Version of the core that took the last step.
    pub version: String,
    /// In order.
    pub steps: Vec<Step>,
    /// The records by `Input as usize`, in offset order.
    pub records: [Vec<OwnedRecord>; INPUTS],
}

/// Why a stretch cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    /// What it takes is no longer kept.
    #[error("expired: {0}")]
    Expired(String),
    /// The broker.
    #[error(transparent)]
    Broker(#[from] Error),
}

fn expired(what: impl Into<String>) -> Unavailable {
    Unavailable::Expired(what.into())
}

/// Reads it.
///
/// # Errors
/// Telemetry or steps of the stretch are gone, or the broker cannot be reached.
pub fn read(client: &ClientSettings, topics: &Topics, stretch: &Stretch) -> Result<Recorded, Unavailable> {
    let reader = Reader::new(client, "runwarden-explain", Isolation::Committed)?;
    let failed = |topic: &str| {
        let topic = topic.to_owned();
        move |e: KafkaError| Unavailable::Broker(Error::broker(format!("cannot read topic {topic}"), e))
    };
    let of_first = topics.input(stretch.input);
    let partitions = reader.partitions(&topics.telemetry).map_err(failed(&topics.telemetry))?;
    let (low, _) = reader.watermarks(of_first, stretch.partition).map_err(failed(of_first))?;
    if low > stretch.offset {
        return Err(expired(format!(
            "{of_first}, partition {}, begins at offset {low}, and the first record it rests on was {}",
            stretch.partition, stretch.offset
        )));
    }
    let mut begun = None;
    let first = |message: &rdkafka::message::BorrowedMessage<'_>| {
        begun = Some(micros(message));
        Next::Stop
    };
    reader
        .to_end(of_first, stretch.partition, Offset::Offset(stretch.offset), || false, first)
        .map_err(failed(of_first))?;
    let begun = begun.ok_or_else(|| expired("the first record it rests on is gone"))?;
    let (version, steps) = steps_of(&reader, topics, stretch, begun)?;
    let mut records: [Vec<OwnedRecord>; INPUTS] = Default::default();
    for input in [Input::Telemetry, Input::Repartition] {
        let ranges: Vec<_> = steps.iter().map(|s| s.ranges[input as usize]).filter(|r| !r.is_empty()).collect();
        let (Some(from), Some(to)) = (ranges.first().map(|r| r.from), ranges.last().map(|r| r.to)) else { continue };
        let topic = topics.input(input);
        let mut queues = reader.open(&[(topic, stretch.partition, from)]).map_err(failed(topic))?;
        for queue in &mut queues {
            records[input as usize] = queue.until(to, &reader, || false).map_err(|error| match error {
                RangeError::Gone | RangeError::Cancelled => {
                    expired(format!("records of {topic} below offset {to} are gone"))
                }
                RangeError::Client(error) => failed(topic)(error),
            })?;
        }
        drop(queues);
        reader.close().map_err(failed(topic))?;
    }
    Ok(Recorded { partitions, version, steps, records })
}

impl Recorded {
    /// What one of the steps read, by `Input as usize`.
    pub fn of(&self, step: &Step) -> [&[OwnedRecord]; INPUTS] {
        std::array::from_fn(|input| {
            let (records, range) = (&self.records[input], step.ranges[input]);
            let at = |offset| records.partition_point(|r| r.offset < offset);
            records.get(at(range.from)..at(range.to)).unwrap_or_default()
        })
    }
}

/// Gives a recorded step, with the records that it read, to `run`.
pub fn again<T>(
    step: &Step,
    records: [&[OwnedRecord]; INPUTS],
    replaying: bool,
    run: impl FnOnce(&StepInput<'_>) -> T,
) -> T {
    let headers = records.map(|records| records.iter().map(header_pairs).collect::<Vec<_>>());
    let inputs = Input::ALL.into_iter().enumerate().map(|(i, input)| InputBatch {
        input,
        at_end: step.at_end[i],
        records: records[i]
            .iter()
            .zip(&headers[i])
            .map(|(r, headers)| Record {
                offset: r.offset,
                timestamp: r.timestamp,
                key: r.key.as_deref(),
                payload: r.payload.as_deref(),
                headers,
            })
            .collect(),
    });
    let (number, now, finish) = (step.number, step.now, step.finish);
    run(&StepInput { number, now, inputs: inputs.collect(), replaying, finish })
}

fn header_pairs(record: &OwnedRecord) -> Vec<(&str, &[u8])> {
    record.headers.iter().map(|(key, value)| (key.as_str(), value.as_slice())).collect()
}

/// The recorded steps from the one that read the first record to the last that the stretch takes.
fn steps_of(
    reader: &Reader,
    topics: &Topics,
    stretch: &Stretch,
    begun: Micros,
) -> Result<(String, Vec<Step>), Unavailable> {
    let topic = &topics.steps;
    let failed = |e| Unavailable::Broker(Error::broker(format!("cannot read topic {topic}"), e));
    let since = begun.saturating_sub(BEFORE) / 1_000;
    let from = reader.first_since(topic, stretch.partition, since).map_err(failed)?;
    let mut found: BTreeMap<u64, (String, Step)> = BTreeMap::new();
    let begins = |step: &Step| {
        let range = step.ranges[stretch.input as usize];
        (range.from..range.to).contains(&stretch.offset)
    };
    if let Some(from) = from {
        let each = |message: &rdkafka::message::BorrowedMessage<'_>| {
            let Some(record) = message.payload().and_then(|p| steps::decode(p).ok()) else { return Next::More };
            let mut after = false;
            for step in record.steps {
                after |= step.now > stretch.until;
                // a number that comes again was taken anew by another owner: the later one counts
                if begins(&step) || !found.is_empty() && step.now <= stretch.until {
                    found.insert(step.number, (record.version.clone(), step));
                }
            }
            if after && !found.is_empty() { Next::Stop } else { Next::More }
        };
        reader.to_end(topic, stretch.partition, Offset::Offset(from), || false, each).map_err(failed)?;
    }
    let version = found.values().next_back().map(|(version, _)| version.clone());
    let version = version.ok_or_else(|| {
        expired(format!("no step on {topic}, partition {}, read the first record it rests on", stretch.partition))
    })?;
    Ok((version, found.into_values().map(|(_, step)| step).collect()))
}

/// The committed records of a topic that `wanted` says yes to by key and value, at most `most` of the last ones.
///
/// # Errors
/// The broker cannot be reached, or has no such topic.
pub fn search(
    client: &ClientSettings,
    topic: &str,
    most: usize,
    mut wanted: impl FnMut(&[u8], &[u8]) -> bool,
) -> Result<Vec<OwnedRecord>, Error> {
    let reader = Reader::new(client, "runwarden-explain", Isolation::Committed)?;
    let failed = |e| Error::broker(format!("cannot read topic {topic}"), e);
    let partitions = reader.partitions(topic).map_err(failed)?;
    if partitions == 0 {
        return Err(Error::MissingTopic(topic.to_owned()));
    }
    let mut found = Vec::new();
    for partition in 0..partitions {
        let (low, high) = reader.watermarks(topic, partition).map_err(failed)?;
        if low == high {
            continue;
        }
        let each = |message: &rdkafka::message::BorrowedMessage<'_>| {
            if wanted(message.key().unwrap_or_default(), message.payload().unwrap_or_default()) {
                found.push(OwnedRecord::from_message(message));
                if found.len() > most {
                    found.remove(0);
                }
            }
            Next::More
        };
        reader.to_end(topic, partition, Offset::Offset(low), || false, each).map_err(failed)?;
    }
    Ok(found)
}
