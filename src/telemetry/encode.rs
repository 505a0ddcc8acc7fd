//! Rows back to records: flat JSON that decodes to the same row.
//!
//! A cost is written only where it was reported; one from a price table is derived again by whoever decodes, so that its
//! provenance stays true.

use datafusion::arrow::array::{
    Array, AsArray, BooleanArray, Decimal128Array, Float64Array, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};
use datafusion::arrow::datatypes::{Decimal128Type, Float64Type, Int64Type, TimestampMicrosecondType};

use super::money;
use super::redact::write_string;
use super::schema::{COLUMNS, col};
use super::time::format_micros;

enum Column<'a> {
    Text(&'a StringArray),
    Json(&'a StringArray),
    Count(&'a Int64Array),
    Float(&'a Float64Array),
    Flag(&'a BooleanArray),
    Money(&'a Decimal128Array),
    Time(&'a TimestampMicrosecondArray),
}

/// Writes rows of one batch as records.
pub struct Encoder<'a> {
    columns: Vec<(usize, Column<'a>)>,
    provenance: Option<&'a StringArray>,
}

impl<'a> Encoder<'a> {
    /// For a batch in [`super::schema::SCHEMA`]; columns of another type or position are left out.
    pub fn new(rows: &'a RecordBatch) -> Self {
        let column = |at: usize| -> Option<Column<'a>> {
            let array = rows.columns().get(at)?.as_ref();
            if array.null_count() == array.len() {
                return None;
            }
            Some(match at {
                col::LABELS | col::ATTRIBUTES => Column::Json(array.as_string_opt::<i32>()?),
                col::COST_PROVENANCE => return None,
                _ => array
                    .as_string_opt::<i32>()
                    .map(Column::Text)
                    .or_else(|| array.as_primitive_opt::<Int64Type>().map(Column::Count))
                    .or_else(|| array.as_primitive_opt::<Float64Type>().map(Column::Float))
                    .or_else(|| array.as_boolean_opt().map(Column::Flag))
                    .or_else(|| array.as_primitive_opt::<Decimal128Type>().map(Column::Money))
                    .or_else(|| array.as_primitive_opt::<TimestampMicrosecondType>().map(Column::Time))?,
            })
        };
        Self {
            columns: (0..COLUMNS.len()).filter_map(|at| Some((at, column(at)?))).collect(),
            provenance: rows.columns().get(col::COST_PROVENANCE).and_then(|array| array.as_string_opt::<i32>()),
        }
    }

    /// One row as a JSON object without nulls. `row` must be within the batch.
    pub fn row(&self, row: usize) -> Vec<u8> {
        let mut out = String::from("{");
        for (at, column) in &self.columns {
            let name = COLUMNS[*at].0;
            match column {
                Column::Text(array) if array.is_valid(row) => {
                    member(&mut out, name);
                    write_string(&mut out, array.value(row));
                }
                Column::Json(array) if array.is_valid(row) => {
                    member(&mut out, name);
                    out.push_str(array.value(row));
                }
                Column::Count(array) if array.is_valid(row) => {
                    member(&mut out, name);
                    out.push_str(&array.value(row).to_string());
                }
                Column::Float(array) if array.is_valid(row) => {
                    member(&mut out, name);
                    out.push_str(&array.value(row).to_string());
                }
                Column::Flag(array) if array.is_valid(row) => {
                    member(&mut out, name);
                    out.push_str(if array.value(row) { "true" } else { "false" });
                }
                Column::Money(array) if array.is_valid(row) && self.reported(row) => {
                    member(&mut out, name);
                    out.push_str(&money::format(array.value(row)));
                }
                Column::Time(array) if array.is_valid(row) => {
                    member(&mut out, name);
                    out.push('"');
                    out.push_str(&format_micros(array.value(row)));
                    out.push('"');
                }
                _ => {}
            }
        }
        out.push('}');
        out.into_bytes()
    }

    fn reported(&self, row: usize) -> bool {
        self.provenance.is_some_and(|array| array.is_valid(row) && array.value(row) == "reported")
    }
}

/// One row of a batch as a record: redacted, as the row is. For several rows make one [`Encoder`].
pub fn redacted_json(rows: &RecordBatch, row: usize) -> Vec<u8> {
    Encoder::new(rows).row(row)
}

/// Starts a member of the object under construction.
pub(super) fn member(out: &mut String, name: &str) {
    if out.len() > 1 {
        out.push(',');
    }
    write_string(out, name);
    out.push(':');
}
