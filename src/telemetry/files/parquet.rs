//! Parquet: each row becomes the flat JSON record, whatever physical types its columns have.
//!
//! Times may be timestamps of any unit or zone, or what JSON takes; money may be decimals; `labels` and `attributes` may be
//! JSON text, maps or structs. Null is missing.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Field, Float64Type, Int64Type, Schema, TimestampMicrosecondType};
use datafusion::arrow::error::ArrowError;
use datafusion::arrow::json::LineDelimitedWriter;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::{Error, Payload, Reader};
use crate::telemetry::encode::member;
use crate::telemetry::format_micros;
use crate::telemetry::parse::{Kind, column, kind, object};
use crate::telemetry::redact::write_string;
use crate::telemetry::schema::TIME;

const BATCH: usize = 1_024;

/// Runs the Parquet library, which may panic on a malformed file.
fn guarded<T>(path: &str, read: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| {
        Err(Error::Format { path: path.to_owned(), message: "it is malformed: reading it failed".to_owned() })
    })
}

/// Reads one file.
pub(super) struct Rows {
    reader: ParquetRecordBatchReader,
    path: String,
    size: u64,
    rows: u64,
    row: u64,
    cells: Vec<(String, Cells)>,
    at: usize,
    in_batch: usize,
    json: String,
}

/// One column of the batch in hand.
enum Cells {
    Text(StringArray),
    /// JSON as it stands: numbers, and objects.
    Raw(StringArray),
    Count(Int64Array),
    Float(Float64Array),
    Flag(BooleanArray),
    Time(TimestampMicrosecondArray),
    Nested(Vec<Option<String>>),
}

impl Rows {
    pub(super) fn open(file: File, path: String, size: u64) -> Result<Self, Error> {
        let refused = |message: String| Error::Format { path: path.clone(), message };
        let (rows, reader) = guarded(&path, || {
            let builder = ParquetRecordBatchReaderBuilder::try_new(file)
                .map_err(|error| refused(format!("it is not Parquet: {error}")))?;
            let rows = u64::try_from(builder.metadata().file_metadata().num_rows()).unwrap_or(0);
            Ok((rows, builder.with_batch_size(BATCH).build().map_err(|error| refused(error.to_string()))?))
        })?;
        let json = String::new();
        Ok(Self { reader, path, size, rows, row: 0, cells: Vec::new(), at: 0, in_batch: 0, json })
    }

    fn take(&mut self, batch: &RecordBatch) -> Result<(), ArrowError> {
        self.at = 0;
        self.in_batch = batch.num_rows();
        self.cells.clear();
        for (field, array) in batch.schema().fields().iter().zip(batch.columns()) {
            let cells = cells(array, column(field.name()).map(kind))?;
            self.cells.push((field.name().clone(), cells));
        }
        Ok(())
    }

    fn convert(&mut self) {
        let (json, row) = (&mut self.json, self.at);
        json.clear();
        json.push('{');
        for (name, cells) in &self.cells {
            match cells {
                Cells::Text(array) if array.is_valid(row) => {
                    member(json, name);
                    write_string(json, array.value(row));
                }
                Cells::Raw(array) if array.is_valid(row) => {
                    member(json, name);
                    let text = array.value(row);
                    if serde_json::from_str::<IgnoredAny>(text).is_ok() {
                        json.push_str(text);
                    } else {
                        write_string(json, text);
                    }
                }
                Cells::Count(array) if array.is_valid(row) => {
                    member(json, name);
                    json.push_str(&array.value(row).to_string());
                }
                Cells::Float(array) if array.is_valid(row) => {
                    member(json, name);
                    let value = array.value(row);
                    if value.is_finite() {
                        json.push_str(&value.to_string());
                    } else {
                        write_string(json, &value.to_string());
                    }
                }
                Cells::Flag(array) if array.is_valid(row) => {
                    member(json, name);
                    json.push_str(if array.value(row) { "true" } else { "false" });
                }
                Cells::Time(array) if array.is_valid(row) => {
                    member(json, name);
                    write_string(json, &format_micros(array.value(row)));
                }
                Cells::Nested(values) => {
                    if let Some(Some(value)) = values.get(row) {
                        member(json, name);
                        json.push_str(value);
                    }
                }
                _ => {}
            }
        }
        json.push('}');
    }
}

fn cells(array: &ArrayRef, kind: Option<Kind>) -> Result<Cells, ArrowError> {
    let to = |ty: &DataType| cast(array, ty);
    Ok(match array.data_type() {
        DataType::Boolean => Cells::Flag(array.as_boolean().clone()),
        DataType::UInt64
        | DataType::Decimal32(..)
        | DataType::Decimal64(..)
        | DataType::Decimal128(..)
        | DataType::Decimal256(..) => Cells::Raw(to(&DataType::Utf8)?.as_string::<i32>().clone()),
        ty if ty.is_integer() => Cells::Count(to(&DataType::Int64)?.as_primitive::<Int64Type>().clone()),
        ty if ty.is_floating() => Cells::Float(to(&DataType::Float64)?.as_primitive::<Float64Type>().clone()),
        DataType::Timestamp(..) => Cells::Time(to(&TIME)?.as_primitive::<TimestampMicrosecondType>().clone()),
        DataType::Struct(_)
        | DataType::Map(..)
        | DataType::List(_)
        | DataType::LargeList(_)
        | DataType::FixedSizeList(..) => Cells::Nested(nested(array)?),
        _ => {
            let text = to(&DataType::Utf8)?.as_string::<i32>().clone();
            if kind == Some(Kind::Object) { Cells::Raw(text) } else { Cells::Text(text) }
        }
    })
}

/// Nested values as JSON text.
fn nested(array: &ArrayRef) -> Result<Vec<Option<String>>, ArrowError> {
    let schema = Arc::new(Schema::new(vec![Field::new("v", array.data_type().clone(), true)]));
    let batch = RecordBatch::try_new(schema, vec![Arc::clone(array)])?;
    let mut bytes = Vec::new();
    let mut writer = LineDelimitedWriter::new(&mut bytes);
    writer.write(&batch)?;
    writer.finish()?;
    drop(writer);
    let text = String::from_utf8_lossy(&bytes);
    let value =
        |line| object(line).and_then(|members| members.first().map(|(_, raw): &(_, &RawValue)| raw.get().to_owned()));
    Ok(text.lines().map(value).collect())
}

impl Reader for Rows {
    fn advance(&mut self) -> Result<bool, Error> {
        self.at += 1;
        while self.at >= self.in_batch {
            let path = self.path.clone();
            let refused = |error: ArrowError| Error::Format { path: path.clone(), message: error.to_string() };
            let more = guarded(&path, || match self.reader.next() {
                Some(batch) => self.take(&batch.map_err(refused)?).map_err(refused).map(|()| true),
                None => Ok(false),
            })?;
            if !more {
                return Ok(false);
            }
        }
        self.row += 1;
        self.convert();
        Ok(true)
    }

    fn line(&self) -> i64 {
        i64::try_from(self.row).unwrap_or(i64::MAX)
    }

    fn payload(&self) -> Payload<'_> {
        Payload::Json(self.json.as_bytes())
    }

    fn bytes_read(&self) -> u64 {
        if self.rows == 0 {
            return self.size;
        }
        let share = u128::from(self.size) * u128::from(self.row) / u128::from(self.rows);
        u64::try_from(share).unwrap_or(self.size)
    }
}
