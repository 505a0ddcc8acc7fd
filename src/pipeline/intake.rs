//! From raw records to the batch that counts: decode, re-key what belongs to another partition, drop duplicates.

use std::sync::Arc;

use datafusion::arrow::array::{Array, AsArray, BooleanArray, RecordBatch};
use datafusion::arrow::compute::filter_record_batch;
use datafusion::arrow::datatypes::TimestampMicrosecondType;

use hashbrown::HashMap;
use rustc_hash::FxBuildHasher;

use crate::clock::{Micros, Wall};
use crate::kafka::core::{CoreError, Input, InputBatch, OutRecord, Record, Topic};
use crate::telemetry::schema::col;
use crate::telemetry::{Batch, DeadLetter, Decoder, Dedup, Origin, redacted_json, tenant_partition};

/// Bits of a position that hold the offset; the input is above them.
const OFFSET_BITS: u32 = 56;
/// Of a position on a partition that had this state before a resize, below the sign: generation, partition, input, offset.
const MOVED_OFFSET_BITS: u32 = 43;
const MOVED_INPUT_BITS: u32 = 2;
const MOVED_PARTITION_BITS: u32 = 14;
const MOVED_GENERATION_SHIFT: u32 = MOVED_OFFSET_BITS + MOVED_INPUT_BITS + MOVED_PARTITION_BITS;
/// The generation of positions moved by the latest resize; those of earlier ones are below.
const NEWEST: i64 = 15;
/// A moved position that does not fit: before all others, and nobody's place.
const FORGOTTEN: i64 = i64::MIN + 1;

/// The opaque place of a row: input and offset in one number, in processing order of inputs.
pub fn position(input: Input, offset: i64) -> i64 {
    (i64::from(input as u8) << OFFSET_BITS) | (offset & mask(OFFSET_BITS))
}

const fn mask(bits: u32) -> i64 {
    (1 << bits) - 1
}

fn input_of(number: i64) -> Option<Input> {
    Input::ALL.into_iter().find(|i| i64::from(*i as u8) == number)
}

/// Partition, input and offset of a position in the state of partition `own`.
pub fn place(position: i64, own: i32) -> Option<(i32, Input, i64)> {
    if position >= 0 {
        return Some((own, input_of(position >> OFFSET_BITS)?, position & mask(OFFSET_BITS)));
    }
    let input = input_of((position >> MOVED_OFFSET_BITS) & mask(MOVED_INPUT_BITS))?;
    let partition = (position >> (MOVED_OFFSET_BITS + MOVED_INPUT_BITS)) & mask(MOVED_PARTITION_BITS);
    // only telemetry, own or re-keyed, feeds windows
    let fed = matches!(input, Input::Telemetry | Input::Repartition);
    fed.then_some((i32::try_from(partition).ok()?, input, position & mask(MOVED_OFFSET_BITS)))
}

/// A position of partition `own` as state that leaves it keeps it (`topics resize`): it still names its record, and it is
/// before every position on the partition the state goes to.
pub fn moved(position: i64, own: i32) -> i64 {
    if position < 0 {
        if position == FORGOTTEN || position == i64::MIN {
            return position;
        }
        // moved before: one generation older
        let generation = (position >> MOVED_GENERATION_SHIFT) & NEWEST;
        return if generation == 0 { position } else { position - (1 << MOVED_GENERATION_SHIFT) };
    }
    let (input, offset) = (position >> OFFSET_BITS, position & mask(OFFSET_BITS));
    let own = i64::from(own);
    if input > mask(MOVED_INPUT_BITS) || offset > mask(MOVED_OFFSET_BITS) || own > mask(MOVED_PARTITION_BITS) {
        return FORGOTTEN;
    }
    let place = (own << MOVED_INPUT_BITS | input) << MOVED_OFFSET_BITS | offset;
    i64::MIN | NEWEST << MOVED_GENERATION_SHIFT | place
}

/// Columns every row is read through.
pub struct Rows<'a> {
    /// `tenant_id`
    pub tenant: &'a datafusion::arrow::array::StringArray,
    /// `event_time`
    pub time: &'a datafusion::arrow::array::TimestampMicrosecondArray,
    batch: &'a RecordBatch,
}

impl<'a> Rows<'a> {
    /// Of a batch in the event schema.
    pub fn new(batch: &'a RecordBatch) -> Self {
        Self {
            tenant: batch.column(col::TENANT_ID).as_string(),
            time: batch.column(col::EVENT_TIME).as_primitive::<TimestampMicrosecondType>(),
            batch,
        }
    }

    /// A text column of the event schema.
    pub fn text(&self, column: usize) -> &'a datafusion::arrow::array::StringArray {
        self.batch.column(column).as_string()
    }

    /// `is_synthetic`
    pub fn synthetic(&self, row: usize) -> bool {
        let column = self.batch.column(col::IS_SYNTHETIC).as_boolean();
        column.is_valid(row) && column.value(row)
    }
}

/// Text of a row, if any.
pub fn get(column: &datafusion::arrow::array::StringArray, row: usize) -> Option<&str> {
    column.is_valid(row).then(|| column.value(row))
}

/// What came in.
pub struct Taken {
    /// The rows that count, in processing order.
    pub batch: Batch,
    /// What could not be processed.
    pub dead: Vec<DeadLetter>,
    /// Rows of other partitions' tenants, as records of the repartition topic.
    pub rekeyed: Vec<OutRecord>,
    /// Rows decoded, before re-keying and duplicates.
    pub decoded: usize,
    /// Duplicates dropped.
    pub duplicates: usize,
}

/// Names of the input topics, for the origin of rows.
#[derive(Debug, Clone)]
pub struct InputNames {
    /// `[topics] telemetry`
    pub telemetry: Arc<str>,
    /// `[topics] repartition`
    pub repartition: Arc<str>,
    /// `[topics] outcomes`
    pub outcomes: Arc<str>,
    /// `[topics] commands`
    pub commands: Arc<str>,
}

impl InputNames {
    /// Topic of an input that carries telemetry.
    pub fn of(&self, input: Input) -> &Arc<str> {
        if input == Input::Repartition { &self.repartition } else { &self.telemetry }
    }
}

/// Where this core stands among the partitions.
#[derive(Debug, Clone, Copy)]
pub struct Own {
    /// This partition.
    pub partition: i32,
    /// How many there are.
    pub partitions: i32,
}

/// Header of a re-keyed record that is not telemetry: the input it is of.
const OF: &str = "runwarden_input";

/// Whether a re-keyed record is of an input other than telemetry.
fn is_of(record: &Record<'_>, input: Input) -> bool {
    record.headers.contains(&(OF, input.key().as_bytes()))
}

/// The outcomes or commands of a step: (where it was read, key, record). One that stands on a partition which is not its tenant's
/// (its producer did not know of a resize yet) is re-keyed, as telemetry is. What is keyed `*` is the owner of `*`'s.
pub fn addressed<'a>(
    wanted: Input,
    inputs: &'a [InputBatch<'a>],
    own: Own,
    rekeyed: &mut Vec<OutRecord>,
) -> Vec<(Input, Option<&'a str>, &'a Record<'a>)> {
    let mut ours = Vec::new();
    for input in inputs.iter().filter(|i| i.input == wanted || i.input == Input::Repartition) {
        for record in input.records.iter().filter(|r| input.input == wanted || is_of(r, wanted)) {
            let tenant = record.key.and_then(|k| std::str::from_utf8(k).ok());
            let place = tenant.map_or(own.partition, |tenant| tenant_partition(tenant, own.partitions));
            let (Some(tenant), true) = (tenant, place != own.partition) else {
                ours.push((input.input, tenant, record));
                continue;
            };
            rekeyed.push(OutRecord {
                topic: Topic::Repartition,
                partition: Some(place),
                key: tenant.as_bytes().to_vec(),
                payload: record.payload.map(<[u8]>::to_vec),
                headers: vec![(OF.to_owned(), wanted.key().as_bytes().to_vec())],
            });
        }
    }
    ours
}

/// Decodes the telemetry of a step. `watermark` gives a tenant's watermark before the step; from there it follows each record,
/// `lateness` behind the highest event time, so that the duplicates' horizon does not depend on how a poll cut the batches.
#[expect(clippy::too_many_arguments, reason = "one call, from one place, of parts that are borrowed apart")]
pub fn take(
    inputs: &[InputBatch<'_>],
    now: Wall,
    own: Own,
    names: &InputNames,
    decoder: &mut Decoder,
    dedup: &mut Dedup,
    lateness: Micros,
    watermark: impl Fn(&str) -> Option<Micros>,
) -> Result<Taken, CoreError> {
    for input in inputs.iter().filter(|i| matches!(i.input, Input::Telemetry | Input::Repartition)) {
        let topic = names.of(input.input);
        for record in input
            .records
            .iter()
            .filter(|r| input.input != Input::Repartition || !(is_of(r, Input::Outcomes) || is_of(r, Input::Commands)))
        {
            let origin = Origin {
                input: input.input as u8,
                topic: Arc::clone(topic),
                partition: own.partition,
                offset: record.offset,
            };
            decoder.push_with(origin, position(input.input, record.offset), record.payload, record.headers, now);
        }
    }
    let decoded = decoder.finish();
    let (batch, dead) = (decoded.batch, decoded.dead);
    let count = batch.rows.num_rows();
    let mut keep = vec![true; count];
    let mut rekeyed = Vec::new();
    let mut duplicates = 0;
    let rows = Rows::new(&batch.rows);
    let ids = rows.text(col::EVENT_ID);
    let mut marks: HashMap<&str, Micros, FxBuildHasher> = HashMap::default();
    for (row, keep) in keep.iter_mut().enumerate() {
        let tenant = rows.tenant.value(row);
        let place = tenant_partition(tenant, own.partitions);
        if place != own.partition {
            *keep = false;
            rekeyed.push(OutRecord {
                topic: Topic::Repartition,
                partition: Some(place),
                key: tenant.as_bytes().to_vec(),
                payload: Some(redacted_json(&batch.rows, row)),
                headers: Vec::new(),
            });
            continue;
        }
        let time = rows.time.value(row);
        let reached = marks.entry(tenant).or_insert_with(|| watermark(tenant).unwrap_or(Micros::MIN));
        if let Some(id) = get(ids, row)
            && dedup.seen(tenant, id, time, *reached)
        {
            *keep = false;
            duplicates += 1;
        } else {
            *reached = (*reached).max(time.saturating_sub(lateness));
        }
    }
    drop(marks);
    let batch = if keep.iter().all(|k| *k) { batch } else { filter(batch, &keep)? };
    Ok(Taken { batch, dead, rekeyed, decoded: count, duplicates })
}

fn filter(batch: Batch, keep: &[bool]) -> Result<Batch, CoreError> {
    let rows = filter_record_batch(&batch.rows, &BooleanArray::from(keep.to_vec()))
        .map_err(|e| CoreError { context: "cannot filter a batch", message: e.to_string() })?;
    let mut kept = keep.iter();
    let positions = batch.positions.into_iter().filter(|_| kept.next().copied().unwrap_or(false)).collect();
    let mut kept = keep.iter();
    let origins = batch.origins.into_iter().filter(|_| kept.next().copied().unwrap_or(false)).collect();
    Ok(Batch { rows, positions, origins })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_gives_back_its_input_and_offset() {
        for (input, offset) in [(Input::Telemetry, 0), (Input::Repartition, (1 << 56) - 1), (Input::Commands, 7)] {
            assert_eq!(place(position(input, offset), 3), Some((3, input, offset)));
        }
        assert!(position(Input::Telemetry, 9) < position(Input::Repartition, 0), "own telemetry comes first");
        assert_eq!(place(i64::MAX, 3), None, "no evidence is no place");
        assert_eq!(place(i64::MIN, 3), None);
    }

    #[test]
    fn an_outcome_on_another_partition_reaches_its_tenant_through_re_keying() {
        let tenant = "acme";
        let owner = tenant_partition(tenant, 5);
        let record = |headers| Record { offset: 0, timestamp: 0, key: Some(b"acme"), payload: Some(b"{}"), headers };
        let batch = |input, records| vec![InputBatch { input, records, at_end: false }];
        let own = |partition| Own { partition, partitions: 5 };
        let mut rekeyed = Vec::new();
        let there = batch(Input::Outcomes, vec![record(&[])]);
        assert_eq!(addressed(Input::Outcomes, &there, own(owner), &mut rekeyed).len(), 1);
        assert!(rekeyed.is_empty());
        assert!(addressed(Input::Outcomes, &there, own((owner + 1) % 5), &mut rekeyed).is_empty());
        let moved = rekeyed.pop().unwrap();
        assert_eq!((moved.topic, moved.partition), (Topic::Repartition, Some(owner)));
        let headers: Vec<(&str, &[u8])> = moved.headers.iter().map(|(k, v)| (k.as_str(), v.as_slice())).collect();
        let arrived = batch(Input::Repartition, vec![record(&headers), record(&[])]);
        let ours = addressed(Input::Outcomes, &arrived, own(owner), &mut rekeyed);
        assert!(ours.len() == 1 && rekeyed.is_empty(), "telemetry is no outcome");
    }

    #[test]
    fn a_moved_position_still_names_its_record_and_comes_before_later_ones() {
        let native = position(Input::Telemetry, 0);
        let mut earlier = Vec::new();
        for resize in 0..5_i32 {
            earlier = earlier.into_iter().map(|(at, place)| (moved(at, resize), place)).collect();
            for (input, offset) in [(Input::Telemetry, 7), (Input::Telemetry, 1 << 40), (Input::Repartition, 3)] {
                earlier.push((moved(position(input, offset), resize), (resize, input, offset)));
            }
            assert!(earlier.is_sorted_by(|a, b| a.0 < b.0), "order is kept");
            assert!(earlier.iter().all(|(at, place)| *at < native && super::place(*at, 99) == Some(*place)));
        }
        for _ in 0..30 {
            earlier = earlier.into_iter().map(|(at, place)| (moved(at, 0), place)).collect();
        }
        assert!(earlier.iter().all(|(at, place)| super::place(*at, 99) == Some(*place)), "however often");
        let far = moved(position(Input::Telemetry, 1 << 50), 0);
        assert!(far < earlier[0].0 && place(far, 0).is_none(), "what does not fit is no false place");
        assert_eq!(moved(far, 1), far);
    }
}
