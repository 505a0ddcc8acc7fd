//! OTLP traces as telemetry: spans that follow the GenAI conventions become events of the contract.
//!
//! Pure, and an allow-list: of a span only its ids, its times, whether it failed, and the attributes that a [`Mapper`] wants are read at
//! all. Names of spans, events, links, status messages and every other attribute are skipped unread, so prompts and messages have no way
//! through. What comes out is what [`super::Decoder`] takes. `docs/otlp.md` is the manual.

mod json;
mod map;
mod names;
mod proto;
mod refused;
mod span;

use std::collections::BTreeMap;

pub use self::map::{AgentUsage, Mapper, Names, Settings};
pub use self::refused::{Items, items};

/// How a request is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// Protobuf.
    Proto,
    /// JSON as OTLP maps it.
    Json,
}

/// Why a request as a whole is refused. Says where, never what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// Not protobuf.
    #[error("the request is not an OTLP protobuf message")]
    Proto,
    /// Not JSON.
    #[error("the request is not JSON, at line {line} column {column}")]
    Json {
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
    },
    /// JSON of another shape.
    #[error("the request is not OTLP JSON: a message is not an object, or a list is not an array")]
    Shape,
    /// More spans than are taken at once.
    #[error("the request has more than {0} spans ([otlp] request-spans)")]
    TooMany(usize),
}

/// Why a span that would count cannot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rejected {
    /// Its ids are missing, zero, or of another length.
    Id,
    /// It has no start or end, or ends before it starts.
    Time,
    /// Its tenant is not that of the token, or reserved.
    Tenant,
    /// A count or a cost is negative or no number, or an id is longer than 256 bytes.
    OutOfRange,
}

impl Rejected {
    /// Every reason.
    pub const ALL: [Self; 4] = [Self::Id, Self::Time, Self::Tenant, Self::OutOfRange];

    /// The name in metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Id => "id",
            Self::Time => "time",
            Self::Tenant => "tenant",
            Self::OutOfRange => "out_of_range",
        }
    }

    /// What a sender is told.
    pub const fn says(self) -> &'static str {
        match self {
            Self::Id => "a trace or span id is missing, zero or of another length",
            Self::Time => "a span has no start or end, or ends before it starts",
            Self::Tenant => "a span is of a tenant that the token may not write for",
            Self::OutOfRange => "a count or cost is negative or no number, or an id has more than 256 bytes",
        }
    }
}

/// An event of the telemetry topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its key.
    pub tenant: String,
    /// One flat JSON object.
    pub value: Vec<u8>,
    /// The span it came from, as a W3C `traceparent`.
    pub context: String,
}

/// What became of a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mapped {
    /// In order of event time.
    pub records: Vec<Record>,
    /// Spans that became events.
    pub accepted: u64,
    /// Spans that say nothing of runs.
    pub ignored: u64,
    /// Spans that were to become events and cannot.
    pub rejected: BTreeMap<Rejected, u64>,
}

impl Mapped {
    /// How many were rejected.
    pub fn rejections(&self) -> u64 {
        self.rejected.values().sum()
    }

    /// Why, for the sender; empty if none were.
    pub fn message(&self) -> String {
        let said: Vec<String> = self.rejected.iter().map(|(why, n)| format!("{n}: {}", why.says())).collect();
        said.join("; ")
    }
}

#[cfg(test)]
mod tests;
