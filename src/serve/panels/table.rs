//! The table `panels`: every panel and how it is.

use std::sync::{Arc, LazyLock};

use datafusion::arrow::array::{
    ArrayRef, BooleanArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};

use super::Shown;
use crate::clock::Micros;

/// The columns of the table.
pub static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    let time = || DataType::Timestamp(TimeUnit::Microsecond, Some(Arc::from("UTC")));
    let columns = [
        ("panel_id", DataType::Utf8, false),
        ("question", DataType::Utf8, false),
        ("topic", DataType::Utf8, false),
        ("endpoint", DataType::Utf8, false),
        ("capability_id", DataType::Utf8, false),
        ("capability_status", DataType::Utf8, false),
        ("health", DataType::Utf8, false),
        ("last_checked_at", time(), true),
        ("row_count", DataType::Int64, true),
        ("last_result_at", time(), true),
        ("alert_enabled", DataType::Boolean, false),
        ("alert_type", DataType::Utf8, true),
    ];
    Arc::new(Schema::new(columns.map(|(name, kind, nullable)| Field::new(name, kind, nullable)).to_vec()))
});

/// The rows.
pub(super) fn batch(panels: &[Shown]) -> RecordBatch {
    let text = |of: fn(&Shown) -> &str| Arc::new(StringArray::from_iter_values(panels.iter().map(of))) as ArrayRef;
    let time = |of: fn(&Shown) -> Option<Micros>| {
        let times: TimestampMicrosecondArray = panels.iter().map(of).collect();
        Arc::new(times.with_timezone("UTC")) as ArrayRef
    };
    let rows = panels.iter().map(|shown| shown.state.rows.and_then(|rows| i64::try_from(rows).ok()));
    let enabled: Vec<bool> = panels.iter().map(|shown| shown.panel.invariant.alert_enabled).collect();
    let kinds = panels.iter().map(|shown| shown.alert_type().map(|kind| kind.as_str()));
    let columns = vec![
        text(|shown| &shown.panel.id),
        text(|shown| &shown.panel.question),
        text(|shown| &shown.panel.topic),
        text(|shown| &shown.panel.endpoint),
        text(|shown| &shown.panel.capability.id),
        text(|shown| &shown.panel.capability.status),
        text(|shown| shown.health().as_str()),
        time(|shown| shown.state.last_checked),
        Arc::new(rows.collect::<Int64Array>()),
        time(|shown| shown.state.last_result),
        Arc::new(BooleanArray::from(enabled)),
        Arc::new(kinds.collect::<StringArray>()),
    ];
    // every column has as many values as there are panels, of the type that the schema says
    RecordBatch::try_new(Arc::clone(&SCHEMA), columns).unwrap_or_else(|_| RecordBatch::new_empty(Arc::clone(&SCHEMA)))
}
