//! Behaviour tests: one binary, one module per behaviour.

mod kafka_mock;
mod kafka_real;
mod support;
