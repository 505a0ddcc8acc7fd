//! The telemetry event: decoding, redaction, cost, de-duplication and recorded files.
//!
//! One record in, one row of a [`Batch`] or one [`DeadLetter`] out, never neither and never both. Nothing here reads a
//! clock or asks a broker: `now` and the record's [`Origin`] are arguments. Content that must not travel (prompts, PII,
//! fields nobody listed) is gone before the row or the dead letter exists.

mod cloudevent;
mod dead;
mod decode;
pub mod dedup;
mod encode;
pub mod files;
mod money;
mod murmur;
pub mod otlp;
mod parse;
pub mod prices;
pub mod redact;
pub mod schema;
mod time;

use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;

pub use self::dead::{DeadLetter, Reason};
pub use self::decode::{Decoded, Decoder, Pushed, Settings, Tally};
pub use self::dedup::Dedup;
pub use self::encode::{Encoder, redacted_json};
pub use self::murmur::tenant_partition;
pub use self::prices::Prices;
pub use self::time::{format_micros, parse_time};

/// Where a record came from. Cheap to clone; the topic is shared.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Origin {
    /// `kafka::core::Input as u8`; for files, that of telemetry.
    pub input: u8,
    /// Topic, or the file's name.
    pub topic: Arc<str>,
    /// Partition, or the position of the file among the files read.
    pub partition: i32,
    /// Offset, or the line (row for Parquet), from 1.
    pub offset: i64,
}

/// Decoded rows and where each came from. `rows`, `positions` and `origins` have the same length and order.
#[derive(Debug, Clone)]
pub struct Batch {
    /// The rows, in [`schema::SCHEMA`].
    pub rows: RecordBatch,
    /// The caller's opaque number per row.
    pub positions: Vec<i64>,
    /// Origin per row.
    pub origins: Vec<Origin>,
}
