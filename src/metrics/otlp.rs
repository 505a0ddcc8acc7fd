//! Figures of what comes in as OTLP. They keep the names that OTLP receivers are known by, without the prefix of the others.

use prometheus::{Histogram, IntCounter, IntGauge, Registry, Result};

use super::family::Family;
use super::labels::{BridgedOutcome, OtlpCode, OtlpSignal, SpanRejected};
use super::{LATENCY, counter, gauge, histogram};

/// What is counted of OTLP.
#[derive(Debug)]
pub struct Otlp {
    /// Requests, by status.
    pub requests: Family<OtlpCode>,
    /// Time a request took, Kafka's acknowledgement included.
    pub duration: Histogram,
    /// Bytes of requests as they were sent.
    pub bytes: IntCounter,
    /// Spans that became events, over HTTP and from the collector's topic.
    pub accepted: IntCounter,
    /// Spans that say nothing of runs.
    pub ignored: IntCounter,
    /// Spans that were to become events and cannot, by reason.
    pub rejected: Family<SpanRejected>,
    /// Events that Kafka has acknowledged.
    pub events: IntCounter,
    /// Data points and log records, which are not taken.
    pub refused: Family<OtlpSignal>,
    /// Bytes of requests and their events that are held now.
    pub in_flight: IntGauge,
    /// Records of the collector's topic, by what became of them.
    pub bridged: Family<BridgedOutcome>,
}

impl Otlp {
    pub(super) fn register(r: &Registry) -> Result<Self> {
        Ok(Self {
            requests: Family::register(r, "otlp_requests_total", "OTLP requests, by status")?,
            duration: histogram(r, "otlp_request_duration_seconds", "Time an OTLP request took", LATENCY)?,
            bytes: counter(r, "otlp_received_bytes_total", "Bytes of OTLP requests as they were sent")?,
            accepted: counter(r, "otlp_accepted_spans_total", "Spans that became events")?,
            ignored: counter(r, "otlp_ignored_spans_total", "Spans that say nothing of runs")?,
            rejected: Family::register(r, "otlp_rejected_spans_total", "Spans that cannot become events, by reason")?,
            events: counter(r, "otlp_events_total", "Events of spans that Kafka has acknowledged")?,
            refused: Family::register(
                r,
                "otlp_refused_items_total",
                "Data points and log records, which are not taken",
            )?,
            in_flight: gauge(r, "otlp_in_flight_bytes", "Bytes of OTLP requests and their events held now")?,
            bridged: Family::register(r, "otlp_bridged_records_total", "Records of the collector's topic")?,
        })
    }
}
