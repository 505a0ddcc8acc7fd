//! From records to rows and back: a column's path says where its value is in a record, and where it goes again in an answer.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use datafusion::arrow::array::{
    Array, ArrayRef, AsArray as _, BooleanBuilder, Float64Builder, Int64Builder, RecordBatch, StringBuilder,
    TimestampMicrosecondBuilder,
};
use datafusion::arrow::datatypes::{DataType, Float64Type, Int64Type, TimeUnit, TimestampMicrosecondType};
use datafusion::arrow::error::ArrowError;
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
use serde_json::{Map, Value};

use super::schema::{Column, Kind, TABLES, Table};
use crate::clock::rfc3339;
use crate::telemetry::parse_time;

/// Rows that are not a batch yet.
pub(super) struct Rows {
    table: &'static Table,
    columns: Vec<Builder>,
    len: usize,
}

enum Builder {
    Text(StringBuilder),
    Time(TimestampMicrosecondBuilder),
    Number(Float64Builder),
    Count(Int64Builder),
    Flag(BooleanBuilder),
}

impl Builder {
    fn new(kind: Kind) -> Self {
        match kind {
            Kind::Text | Kind::Json => Self::Text(StringBuilder::new()),
            Kind::Time => Self::Time(TimestampMicrosecondBuilder::new().with_timezone("UTC")),
            Kind::Number => Self::Number(Float64Builder::new()),
            Kind::Count => Self::Count(Int64Builder::new()),
            Kind::Flag => Self::Flag(BooleanBuilder::new()),
        }
    }

    fn finish(&mut self) -> ArrayRef {
        match self {
            Self::Text(b) => std::sync::Arc::new(b.finish()),
            Self::Time(b) => std::sync::Arc::new(b.finish()),
            Self::Number(b) => std::sync::Arc::new(b.finish()),
            Self::Count(b) => std::sync::Arc::new(b.finish()),
            Self::Flag(b) => std::sync::Arc::new(b.finish()),
        }
    }

    fn append(&mut self, kind: Kind, value: &Value) {
        match self {
            Self::Text(b) => match value {
                Value::Null => b.append_null(),
                Value::String(text) if kind == Kind::Text => b.append_value(text),
                other => b.append_value(other.to_string()),
            },
            Self::Time(b) => b.append_option(value.as_str().and_then(parse_time)),
            Self::Number(b) => b.append_option(value.as_f64()),
            Self::Count(b) => b.append_option(value.as_i64().or_else(|| value.as_u64().map(|_| i64::MAX))),
            Self::Flag(b) => b.append_option(value.as_bool()),
        }
    }
}

impl Rows {
    pub(super) fn new(table: &'static Table) -> Self {
        Self { table, columns: table.columns.iter().map(|column| Builder::new(column.kind)).collect(), len: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// One more row. What a record does not have is null.
    pub(super) fn push(&mut self, record: &Value) {
        for (builder, column) in self.columns.iter_mut().zip(self.table.columns) {
            // everything is somebody's
            if column.name == "tenant_id" && find(record, column.path).as_str().is_none() {
                builder.append(Kind::Text, &Value::String(String::new()));
                continue;
            }
            builder.append(column.kind, find(record, column.path));
        }
        self.len += 1;
    }

    /// All of them as a batch; there are none then.
    pub(super) fn finish(&mut self) -> Result<RecordBatch, ArrowError> {
        self.len = 0;
        RecordBatch::try_new(self.table.schema(), self.columns.iter_mut().map(Builder::finish).collect())
    }
}

/// What is at a path; null where it is not.
pub(super) fn find<'v>(record: &'v Value, path: &str) -> &'v Value {
    path.split('.').fold(record, |value, name| &value[name])
}

/// The rows of a table as the records they came from, with the fields that the table keeps.
pub fn records(table: &Table, batches: &[RecordBatch]) -> Vec<Value> {
    let place = |name: &str| {
        let column: Option<&Column> = table.columns.iter().find(|column| column.name == name);
        column.map_or_else(|| name.to_owned(), |column| column.path.to_owned())
    };
    objects(batches, place)
}

/// Rows as flat objects: what is text in JSON in a table is JSON again.
pub fn flat(batches: &[RecordBatch]) -> Vec<Value> {
    objects(batches, str::to_owned)
}

fn objects(batches: &[RecordBatch], place: impl Fn(&str) -> String) -> Vec<Value> {
    let mut rows = Vec::with_capacity(batches.iter().map(RecordBatch::num_rows).sum());
    for batch in batches {
        let schema = batch.schema();
        let places: Vec<String> = schema.fields().iter().map(|field| place(field.name())).collect();
        for row in 0..batch.num_rows() {
            let mut object = Map::new();
            for ((field, place), array) in schema.fields().iter().zip(&places).zip(batch.columns()) {
                put(&mut object, place, value(field.name(), array, row));
            }
            rows.push(Value::Object(object));
        }
    }
    rows
}

fn put(object: &mut Map<String, Value>, place: &str, value: Value) {
    match place.split_once('.') {
        None => drop(object.insert(place.to_owned(), value)),
        Some((first, rest)) => {
            let inner = object.entry(first).or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(inner) = inner {
                put(inner, rest, value);
            }
        }
    }
}

/// The names of columns whose text is JSON.
fn in_json() -> &'static BTreeSet<&'static str> {
    static NAMES: OnceLock<BTreeSet<&'static str>> = OnceLock::new();
    NAMES.get_or_init(|| {
        let columns = TABLES.iter().flat_map(|table| table.columns);
        columns.filter(|column| column.kind == Kind::Json).map(|column| column.name).collect()
    })
}

/// One value as JSON.
pub fn value(name: &str, array: &ArrayRef, row: usize) -> Value {
    if array.is_null(row) {
        return Value::Null;
    }
    match array.data_type() {
        DataType::Boolean => array.as_boolean().value(row).into(),
        DataType::Int64 => array.as_primitive::<Int64Type>().value(row).into(),
        DataType::Float64 => array.as_primitive::<Float64Type>().value(row).into(),
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            rfc3339(array.as_primitive::<TimestampMicrosecondType>().value(row)).into()
        }
        DataType::Utf8 => text(name, array.as_string::<i32>().value(row)),
        DataType::Utf8View => text(name, array.as_string_view().value(row)),
        DataType::LargeUtf8 => text(name, array.as_string::<i64>().value(row)),
        _ => {
            // other types come of expressions only
            let shown = ArrayFormatter::try_new(array, &FormatOptions::default()).map(|f| f.value(row).to_string());
            let shown = shown.unwrap_or_default();
            match array.data_type() {
                t if t.is_numeric() => serde_json::from_str(&shown).unwrap_or(Value::String(shown)),
                _ => Value::String(shown),
            }
        }
    }
}

fn text(name: &str, text: &str) -> Value {
    if in_json().contains(name)
        && let Ok(value) = serde_json::from_str(text)
    {
        return value;
    }
    Value::String(text.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::super::schema::table;
    use super::*;

    fn back(table: &'static Table, record: &Value) -> Value {
        let mut rows = Rows::new(table);
        rows.push(record);
        records(table, &[rows.finish().unwrap()]).remove(0)
    }

    #[test]
    fn a_record_becomes_a_row_and_the_row_the_record_again() {
        let record = json!({
            "policy": "RED", "evaluated_at": "2026-11-28T01:02:03.000004Z", "tenant_id": "acme", "revision": 7,
            "inputs": {"trust_locked": true, "integrity_score": 91.5, "consensus_pct": 90.0, "reputation_score": 80.0,
                "forecast_risk": "low", "recent_responses": 3},
            "thresholds": {"red_integrity": 90.0}, "reasons": ["trust is locked"], "missing": [],
        });
        assert_eq!(back(table("policy_level").unwrap(), &record), record);
    }

    #[test]
    fn a_field_that_is_missing_or_of_another_type_is_null_and_a_tenant_never_is() {
        let row = back(table("audit").unwrap(), &json!({"at": 5, "authority": "much", "refused": "yes", "subject": 1}));
        for name in ["at", "authority", "refused", "audit_id"] {
            assert_eq!(row[name], Value::Null, "{name}");
        }
        assert_eq!((&row["tenant_id"], &row["subject"]["id"]), (&json!(""), &Value::Null));
    }

    proptest! {
        #[test]
        fn whatever_a_record_holds_it_is_a_row(text in ".{0,20}", number in any::<f64>(), whole in any::<u64>()) {
            let number = json!(number);
            let record = json!({"kind": text, "tenant_id": text, "value": number, "lag_ms": whole, "contributors": [text],
                "scope": text, "violation": {"severity": text}});
            let row = back(table("signals").unwrap(), &record);
            prop_assert_eq!(&row["kind"], &record["kind"]);
            prop_assert_eq!(&row["contributors"], &record["contributors"]);
            prop_assert_eq!(row["value"].as_f64(), number.as_f64());
        }
    }
}
