//! What governs a run: policies as read from files, the snapshot they form, and the limits a snapshot gives to one run or one
//! group of a metric.
//!
//! Decides: whether a policy file is valid ([`parse`], [`PolicySet`]), what is wrong with a set as a whole ([`check`]), which
//! policies match and how limits that compete are arbitrated ([`Snapshot::effective`], [`BoundTerms::effective`]). Leaves to
//! others: when a limit is reached (`decide`), when a snapshot is adopted (`pipeline`), files and topics (the shell).
//!
//! Conditions and actions are read, validated in structure and kept with the policy; they are not evaluated here yet.
//!
//! Pure: no I/O, no clock, no randomness; nothing depends on the order of files or on hash iteration.

mod active;
mod amount;
mod arbitrate;
mod fault;
mod model;
mod names;
mod read;
mod scope;
mod set;
mod snapshot;
#[cfg(test)]
mod tests;
mod yaml;

pub use active::{Active, Day, Hours};
pub use amount::{Amount, AmountError};
pub use arbitrate::{Ambiguity, Considered, Contributor, EffectiveLimit, LimitSet};
pub use fault::Fault;
pub use model::{
    Alerts, Binding, Category, Enforcement, Limit, LimitStatus, Mode, Monitor, OnBreach, OnFailure, OverrideRule, Place,
    Policy, Rollback, RuleType, Source, Status, Strategy,
};
pub use read::parse;
pub use scope::{Level, Scope, Selector, Subject, Who};
pub use set::{Finding, PolicySet, Severity, check};
pub use snapshot::{BoundTerms, Snapshot, SnapshotError};
