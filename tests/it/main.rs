//! Behaviour tests: one binary, one module per behaviour.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on should say so and fail"
)]

mod acting;
mod asyncapi;
mod blind_live;
mod blindness;
mod bounds;
mod channels_live;
mod commands;
mod conditions;
mod decisions;
mod demo_traffic;
mod determinism;
mod end_to_end;
mod evaluations;
mod fuzz;
mod governance;
mod governed;
mod kafka_bounds;
mod kafka_mock;
mod kafka_real;
mod lessons;
mod level;
mod level_files;
mod level_live;
mod live_topic;
mod manual;
mod observability;
mod otlp_live;
mod policy_tests;
mod real_hour;
mod respond;
mod respond_files;
mod rest_writes;
mod secrets;
mod sidecar;
mod simulation;
mod storm;
mod stream;
mod support;
mod tables_live;
mod telemetry;
mod tls;
mod traces;
mod verdicts;
mod walls;
mod workers;
