//! What is decided from window results and limits, and from conditions: levels and signals, correlated alerts, interventions.
//!
//! Pure: no I/O, no clock, no randomness. Everything here is a function of (state, input); ids are derived from what they
//! identify. The comparisons themselves are SQL (`queries/decide/`), so that people can read and change them.

pub mod actions;
pub mod blindness;
pub mod breaker;
pub mod commands;
pub mod conditions;
pub mod correlation;
pub mod entities;
pub mod id;
pub mod interventions;
pub mod lessons;
pub mod level;
pub mod levels;
pub mod overall;
pub mod records;
pub mod respond;
pub mod signals;
pub mod sql;
pub mod verdict;

pub use id::of;
