//! Behaviour tests: one binary, one module per behaviour.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod kafka_mock;
mod kafka_real;
mod support;
