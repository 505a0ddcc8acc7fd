//! Figures of what is exported as traces.

use prometheus::{IntCounter, Registry, Result};

use super::counter;
use super::family::Family;
use super::labels::SpanDropped;

/// What is counted of traces.
#[derive(Debug)]
pub struct Traces {
    /// Spans that a collector took.
    pub exported: IntCounter,
    /// Spans that nobody got, by cause.
    pub dropped: Family<SpanDropped>,
}

impl Traces {
    pub(super) fn register(r: &Registry) -> Result<Self> {
        Ok(Self {
            exported: counter(r, "runwarden_trace_spans_exported_total", "Spans of traces that a collector took")?,
            dropped: Family::register(
                r,
                "runwarden_trace_spans_dropped_total",
                "Spans of traces that nobody got, by cause",
            )?,
        })
    }
}
