//! What the process shows of itself over HTTP: metrics, liveness, readiness, a console, and verdicts.
//!
//! Reads never touch the core: everything here is read from [`Health`] (atomics and small maps that the shell fills) and from
//! the metrics registry, so a slow reader cannot slow a decision.

pub mod access;
pub mod api;
pub mod commands;
mod console;
pub mod health;
pub mod http;
pub mod level;
pub mod levels;
pub mod panels;
pub mod reads;
pub mod respond;
pub mod sql;
pub mod tables;
pub mod tls;
pub mod verdicts;

pub use health::Health;
