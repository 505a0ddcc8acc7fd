//! The core: one partition's state and its `step`; checkpoint out and in.
//!
//! Pure and deterministic: no I/O, no clock, no randomness. The live shell, `simulate`, the tests and recovery call the very same
//! [`Partition`]. What a step says is a list of [`crate::decide::records::Decision`]s; [`Partition`] as a
//! [`crate::kafka::core::Core`] gives them encoded, with a digest.

mod acting;
mod activity;
mod blinding;
mod breaking;
pub mod checkpoint;
pub mod clocks;
mod conditions;
mod core;
pub mod encode;
mod ends;
mod entries;
pub mod happenings;
pub mod intake;
pub mod judge;
mod leveling;
pub mod limits;
mod live;
pub mod overflow;
pub mod partition;
mod rollups;
pub mod runs;
pub mod simulate;
mod split;
mod teaching;
pub mod terms;
mod watch;
pub mod watcher;
mod writer;

pub use intake::{InputNames, Own};
pub use limits::LimitSets;
pub use partition::{Alerting, Counts, InForce, Partition, Settings, Step};
pub use watch::{Phase, Watch};
