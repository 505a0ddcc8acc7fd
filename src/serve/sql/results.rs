//! Rows of a result, one after the other and within limits: never all of them at once.

use std::sync::Arc;

use arrow_pg::datatypes::arrow_schema_to_pg_fields;
use arrow_pg::row_encoder::RowEncoder;
use datafusion::arrow::array::{ArrayRef, RecordBatch, StringArray};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::StreamExt as _;
use pgwire::api::portal::Format;
use pgwire::api::results::FieldInfo;
use pgwire::messages::data::{DataRow, FieldDescription, RowDescription};

use super::errors::SqlError;

/// How much of a result there may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Most {
    pub(super) rows: u64,
    pub(super) bytes: u64,
}

/// A result that is being read.
pub(super) struct Rows {
    fields: Arc<Vec<FieldInfo>>,
    batches: SendableRecordBatchStream,
    current: Option<RowEncoder>,
    most: Most,
    rows: u64,
    bytes: u64,
}

impl Rows {
    pub(super) fn new(batches: SendableRecordBatchStream, format: &Format, most: Most) -> Result<Self, SqlError> {
        let fields = Arc::new(fields(&batches.schema(), format)?);
        Ok(Self { fields, batches, current: None, most, rows: 0, bytes: 0 })
    }

    /// Rows of text that are here already.
    pub(super) fn of_text(
        columns: &[&str],
        rows: &[Vec<String>],
        format: &Format,
        most: Most,
    ) -> Result<Self, SqlError> {
        let schema = text_schema(columns);
        let column = |n: usize| {
            let texts = rows.iter().map(|row| row.get(n).map(String::as_str));
            Arc::new(texts.collect::<StringArray>()) as ArrayRef
        };
        let batch = RecordBatch::try_new(schema.clone(), (0..columns.len()).map(column).collect());
        let batch = batch.map_err(|error| SqlError::Data(error.to_string()))?;
        let batches = futures::stream::iter([Ok(batch)]);
        Self::new(Box::pin(RecordBatchStreamAdapter::new(schema, batches)), format, most)
    }

    /// Its columns.
    pub(super) fn fields(&self) -> &[FieldInfo] {
        &self.fields
    }

    /// The next row. May be given up at any time.
    pub(super) async fn next(&mut self) -> Result<Option<DataRow>, SqlError> {
        loop {
            if let Some(row) = self.current.as_mut().and_then(RowEncoder::next_row) {
                let row = row?;
                self.rows += 1;
                self.bytes += row.data.len() as u64;
                if self.rows > self.most.rows || self.bytes > self.most.bytes {
                    let Most { rows, bytes } = self.most;
                    return Err(SqlError::TooMuch(format!("the result is larger than {rows} rows or {bytes} bytes")));
                }
                return Ok(Some(row));
            }
            self.current = None;
            let Some(batch) = self.batches.next().await.transpose()? else { return Ok(None) };
            if batch.num_columns() != self.fields.len() {
                return Err(SqlError::Internal);
            }
            self.current = Some(RowEncoder::new(batch, self.fields.clone()));
        }
    }
}

/// Columns of text.
pub(super) fn text_schema(columns: &[&str]) -> SchemaRef {
    Arc::new(Schema::new(columns.iter().map(|name| Field::new(*name, DataType::Utf8, true)).collect::<Vec<_>>()))
}

/// How columns are sent.
pub(super) fn fields(schema: &Schema, format: &Format) -> Result<Vec<FieldInfo>, SqlError> {
    if i16::try_from(schema.fields().len()).is_err() {
        return Err(SqlError::TooMuch("the result has too many columns".to_owned()));
    }
    Ok(arrow_schema_to_pg_fields(schema, format, None)?)
}

/// What a client is told of them.
pub(super) fn description(fields: &[FieldInfo]) -> RowDescription {
    RowDescription::new(fields.iter().map(FieldDescription::from).collect())
}
