//! Beside a worker: OTLP in, over HTTP ([`receiver`]) and from a collector's topic ([`bridge`]).
//!
//! Nothing is kept here: a request is answered when Kafka has its events, a record is committed when Kafka has them, and both may come
//! again without harm, since the same span gives the same `event_id`.

mod answer;
mod body;
pub mod bridge;
pub mod receiver;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use crate::kafka::outbox::Outgoing;
use crate::metrics::Metrics;
use crate::metrics::labels::{Label as _, SpanRejected};
use crate::telemetry::otlp::{Mapped, Record};

pub use self::bridge::Bridge;
pub use self::receiver::Receiver;

/// What was said once and is not said again.
#[derive(Debug, Default)]
struct Said(Mutex<BTreeSet<String>>);

/// Causes that are remembered: texts of clients are not among them.
const CAUSES: usize = 100;

impl Said {
    fn first(&self, cause: &str) -> bool {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        said.len() < CAUSES && said.insert(cause.to_owned())
    }
}

/// Counts what became of spans, and says each cause of a rejection once.
fn count(mapped: &Mapped, metrics: &Metrics, said: &Said) {
    metrics.otlp.accepted.inc_by(mapped.accepted);
    metrics.otlp.ignored.inc_by(mapped.ignored);
    for (why, spans) in &mapped.rejected {
        if let Some(label) = SpanRejected::parse(why.as_str()) {
            metrics.otlp.rejected.get(label).inc_by(*spans);
        }
        if said.first(why.as_str()) {
            tracing::warn!(reason = why.as_str(), "spans are rejected: {}; this is said once", why.says());
        }
    }
}

/// Events as records for the telemetry topic.
fn outgoing(records: Vec<Record>, topic: &Arc<str>) -> Vec<Outgoing> {
    let one = |record: Record| Outgoing {
        topic: Arc::clone(topic),
        key: record.tenant.into_bytes(),
        payload: record.value,
        // the step that takes it is linked with the worker's trace
        headers: vec![("traceparent".to_owned(), record.context.into_bytes())],
    };
    records.into_iter().map(one).collect()
}
