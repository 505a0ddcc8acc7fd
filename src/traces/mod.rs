//! Traces of steps, for OpenTelemetry: which steps are traced, what their spans are called by, and how these get to a collector.
//!
//! Ids are hashes of what they identify, so that a step that is taken again has the ids it had, and any two processes agree on which
//! steps are traced. What is traced never waits for whoever collects it: spans go through a bounded queue to a thread of its own, and
//! what finds no room or nobody to take it is dropped and counted by cause. Without an endpoint there is no thread and no [`Tracer`].

mod context;
mod export;
mod id;
mod sample;
mod tracer;

pub use self::context::Context;
pub use self::export::{Exporter, Settings, start};
pub use self::id::{SpanId, StepKey, TraceId};
pub use self::tracer::{Candidate, Kind, Trace, Tracer, number, text};
