//! runwarden: a sidecar stream processor that holds LLM runs within their limits.
//!
//! Telemetry flows in from Kafka, through windowed SQL, past the policies, and leaves as signals, alerts and
//! interventions: one deterministic core per partition ([`pipeline`]), an exactly-once Kafka shell around it ([`kafka`]),
//! and read-only views behind it ([`serve`]). `ARCHITECTURE.md` follows one record through the process.
//!
//! Dependencies point one way: `cli` → shell (`kafka`, `serve`, `edge`) → `pipeline` → `decide` → `policy`, `stream`, `telemetry`.
//! What decides does no I/O, asks no clock and uses no randomness.

pub mod channels;
pub mod cli;
pub mod clock;
pub mod config;
pub mod decide;
pub mod demo;
pub mod edge;
pub mod kafka;
pub mod logging;
pub mod metrics;
pub mod pipeline;
pub mod policy;
pub mod serve;
pub mod stream;
pub mod telemetry;
pub mod traces;
