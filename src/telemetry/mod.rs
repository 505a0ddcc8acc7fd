//! The telemetry event in Arrow: schema, decoders, redaction, prices.

pub mod schema;
