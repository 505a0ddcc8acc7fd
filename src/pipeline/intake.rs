//! From raw records to the batch that counts: decode, re-key what belongs to another partition, drop duplicates.

use std::sync::Arc;

use datafusion::arrow::array::{Array, AsArray, BooleanArray, RecordBatch};
use datafusion::arrow::compute::filter_record_batch;
use datafusion::arrow::datatypes::TimestampMicrosecondType;

use hashbrown::HashMap;
use rustc_hash::FxBuildHasher;

use crate::clock::{Micros, Wall};
use crate::kafka::core::{CoreError, Input, InputBatch, OutRecord, Topic};
use crate::telemetry::schema::col;
use crate::telemetry::{Batch, DeadLetter, Decoder, Dedup, Origin, redacted_json, tenant_partition};

/// Bits of a position that hold the offset; the input is above them.
const OFFSET_BITS: u32 = 56;

/// The opaque place of a row: input and offset in one number, in processing order of inputs.
pub fn position(input: Input, offset: i64) -> i64 {
    (i64::from(input as u8) << OFFSET_BITS) | (offset & ((1 << OFFSET_BITS) - 1))
}

/// Input and offset of a position.
pub fn place(position: i64) -> Option<(Input, i64)> {
    let input = u8::try_from(position >> OFFSET_BITS).ok()?;
    let input = Input::ALL.into_iter().find(|i| *i as u8 == input)?;
    Some((input, position & ((1 << OFFSET_BITS) - 1)))
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
        for record in &input.records {
            let origin = Origin {
                input: input.input as u8,
                topic: Arc::clone(topic),
                partition: own.partition,
                offset: record.offset,
            };
            decoder.push(origin, position(input.input, record.offset), record.payload, now);
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
            assert_eq!(place(position(input, offset)), Some((input, offset)));
        }
        assert!(position(Input::Telemetry, 9) < position(Input::Repartition, 0), "own telemetry comes first");
        assert_eq!(place(i64::MAX), None, "no evidence is no place");
        assert_eq!(place(i64::MIN), None);
    }
}
