//! The core over recorded telemetry, all at once: what `simulate` runs, and the oracle of the tests.
//!
//! One partition holds every tenant. The clock is the highest event time so far; at the end every window closes.

use std::sync::Arc;

use datafusion::arrow::array::{Array, AsArray, RecordBatch};
use datafusion::arrow::datatypes::{
    DataType, Decimal128Type, Float64Type, Int64Type, TimestampMicrosecondType, UInt64Type,
};
use serde_json::{Map, Value};

use crate::clock::{Micros, Wall};
use crate::decide::id::rfc3339;
use crate::decide::records::Decision;
use crate::kafka::core::{CoreError, Input, InputBatch, Record, StepInput};
use crate::pipeline::intake::Own;
use crate::pipeline::limits::LimitSets;
use crate::pipeline::partition::{Counts, Partition, Settings};
use crate::policy::Amount;
use crate::telemetry::DeadLetter;

/// A final result, for `windows.jsonl`.
#[derive(Debug, Clone, PartialEq)]
pub struct FinalWindow {
    /// Metric name.
    pub metric: String,
    /// `tenant_id` and the scope's key field, as (name, value).
    pub keys: Vec<(String, String)>,
    /// Start, µs.
    pub start: Micros,
    /// End, µs.
    pub end: Micros,
    /// The metric's value.
    pub value: Value,
}

impl FinalWindow {
    /// The flat JSON object of `contracts.md`.
    pub fn to_json(&self) -> Value {
        let mut object = Map::new();
        object.insert("metric".into(), self.metric.clone().into());
        for (name, value) in &self.keys {
            object.insert(name.clone(), value.clone().into());
        }
        object.insert("window_start".into(), rfc3339(self.start).into());
        object.insert("window_end".into(), rfc3339(self.end).into());
        object.insert("value".into(), self.value.clone());
        Value::Object(object)
    }
}

/// What a simulation gave.
#[derive(Debug, Default)]
pub struct Report {
    /// Final results, ordered by metric, window end, keys.
    pub windows: Vec<FinalWindow>,
    /// Decisions, in order.
    pub decisions: Vec<Decision>,
    /// What could not be processed; `origin.offset` is the sequence number of the record.
    pub dead: Vec<DeadLetter>,
    /// Sums over the steps.
    pub counts: Counts,
}

/// A simulation under way.
pub struct Simulation {
    partition: Partition,
    settings: Arc<Settings>,
    report: Report,
    step: u64,
    next: i64,
}

impl Simulation {
    /// Over `settings`, whose `finals` says whether windows are collected.
    pub fn new(settings: Arc<Settings>) -> Result<Self, CoreError> {
        let partition = Partition::new(Arc::clone(&settings), Own { partition: 0, partitions: 1 })?;
        Ok(Self { partition, settings, report: Report::default(), step: 0, next: 0 })
    }

    /// Takes a batch of records in order.
    pub fn push<'a>(&mut self, payloads: impl IntoIterator<Item = &'a [u8]>) -> Result<(), CoreError> {
        let mut records = Vec::new();
        for payload in payloads {
            records.push(Record { offset: self.next, timestamp: 0, key: None, payload: Some(payload), headers: &[] });
            self.next += 1;
        }
        self.run(records, false)
    }

    /// The limit sets so far, to look at.
    pub fn limits(&self) -> &LimitSets {
        self.partition.limits()
    }

    /// Closes every window and gives the report.
    pub fn finish(mut self) -> Result<Report, CoreError> {
        self.run(Vec::new(), true)?;
        self.report
            .windows
            .sort_by(|a, b| (&a.metric, a.end, &a.keys, a.start).cmp(&(&b.metric, b.end, &b.keys, b.start)));
        Ok(self.report)
    }

    fn run(&mut self, records: Vec<Record<'_>>, finish: bool) -> Result<(), CoreError> {
        self.step += 1;
        let inputs = vec![InputBatch { input: Input::Telemetry, records, at_end: false }];
        let input = StepInput { number: self.step, now: Wall(0), inputs, replaying: false, finish };
        let step = self.partition.advance(&input)?;
        for (metric, rows) in &step.finals {
            let Some(metric) = self.settings.metrics.get(*metric) else { continue };
            windows(&metric.name, metric.scope.key(), rows, &mut self.report.windows);
        }
        self.report.decisions.extend(step.decisions);
        self.report.dead.extend(step.dead);
        add(&mut self.report.counts, &step.counts);
        Ok(())
    }
}

fn add(sum: &mut Counts, step: &Counts) {
    for (a, b) in sum.records.iter_mut().zip(step.records) {
        *a += b;
    }
    sum.decoded += step.decoded;
    sum.duplicates += step.duplicates;
    sum.uncovered += step.uncovered;
    sum.overflow_rows += step.overflow_rows;
    for (sums, steps) in [(&mut sum.late, &step.late), (&mut sum.closed, &step.closed), (&mut sum.early, &step.early)] {
        sums.resize(steps.len(), 0);
        for (a, b) in sums.iter_mut().zip(steps) {
            *a += b;
        }
    }
}

/// Result rows as [`FinalWindow`]s.
pub fn windows(metric: &str, key_field: &str, rows: &RecordBatch, out: &mut Vec<FinalWindow>) {
    let time =
        |name: &str| rows.column_by_name(name).and_then(|c| c.as_primitive_opt::<TimestampMicrosecondType>()).cloned();
    let (Some(starts), Some(ends), Some(values)) =
        (time("window_start"), time("window_end"), rows.column_by_name("value"))
    else {
        return;
    };
    let mut names = vec!["tenant_id"];
    if key_field != "tenant_id" {
        names.push(key_field);
    }
    let columns: Vec<_> = names
        .iter()
        .filter_map(|n| rows.column_by_name(n).and_then(|c| c.as_string_opt::<i32>()).map(|c| (*n, c)))
        .collect();
    for row in 0..rows.num_rows() {
        let value = json_value(values, row);
        if value.is_null() {
            continue;
        }
        out.push(FinalWindow {
            metric: metric.to_owned(),
            keys: columns.iter().map(|(n, c)| ((*n).to_owned(), c.value(row).to_owned())).collect(),
            start: starts.value(row),
            end: ends.value(row),
            value,
        });
    }
}

/// A cell as JSON: integers and floats as they are, decimals as exact as a JSON number of this writer can be.
fn json_value(column: &dyn Array, row: usize) -> Value {
    if column.is_null(row) {
        return Value::Null;
    }
    match column.data_type() {
        DataType::Int64 => column.as_primitive::<Int64Type>().value(row).into(),
        DataType::UInt64 => column.as_primitive::<UInt64Type>().value(row).into(),
        DataType::Float64 => column.as_primitive::<Float64Type>().value(row).into(),
        DataType::Decimal128(_, 9) => {
            serde_json::to_value(Amount(column.as_primitive::<Decimal128Type>().value(row))).unwrap_or(Value::Null)
        }
        DataType::Utf8 => column.as_string::<i32>().value(row).into(),
        _ => datafusion::arrow::util::display::array_value_to_string(column, row)
            .map_or(Value::Null, |text| serde_json::from_str(&text).unwrap_or_else(|_| text.into())),
    }
}
