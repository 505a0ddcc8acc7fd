//! What governs a run: policies as read from files, the snapshot they form, and the limits a snapshot gives to one run
//! or one group of a metric.
//!
//! Decides: whether a policy file is valid ([`parse`], [`PolicySet`]), what is wrong with a set as a whole ([`check`]),
//! which policies match and how limits that compete are arbitrated ([`Snapshot::effective`], [`effective_run`]). Leaves to
//! others: when a limit is reached (`decide`), when a snapshot is adopted (`pipeline`), files and topics (the shell).
//!
//! Conditions are compiled and evaluated here over rows of entity state ([`Conditions`]); what the state is, and what follows when a
//! condition turns true, is `decide`'s.
//!
//! Pure: no I/O, no clock, no randomness; nothing depends on the order of files or on hash iteration.

mod active;
mod amount;
mod arbitrate;
mod case;
mod check;
mod condition;
mod conflict;
mod depend;
mod effective;
mod fault;
mod guardian;
mod index;
mod model;
mod names;
mod parameters;
mod reach;
mod read;
mod register;
mod schema;
mod scope;
mod set;
mod silence;
mod snapshot;
mod yaml;

#[cfg(test)]
#[path = "mutations/tests.rs"]
mod mutations;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod testing;

pub use active::{Active, Day, Hours};
pub use amount::{Amount, AmountError};
pub use arbitrate::{Ambiguity, Considered, Contributor, EffectiveLimit, LimitSet, Outcome};
pub use case::{Case, Expected, What, cases, differences};
pub use check::{Finding, Severity, check, check_apart, check_conditions};
pub use condition::{
    Action, Comparison, Compiled, Condition, Conditions, Entity, Fields, Input, Junction, Origin, Truth,
};
pub use conflict::{Conflict, ConflictSeverity, ConflictType, Conflicts, MAX_CONFLICTS, conflicts, conflicts_with};
pub use depend::{
    Dependencies, DependencyEdge, DependencyKind, DependencyNode, Relation, dependencies, dependency_faults, dependents,
};
pub use effective::{BoundTerms, effective_run};
pub use fault::Fault;
pub use model::{
    Alerts, Binding, Category, Enforcement, Limit, LimitStatus, Mode, Monitor, OnBreach, OnFailure, OverrideRule,
    Place, Policy, Rollback, RuleType, Source, Status, Strategy,
};
pub use reach::Witness;
pub use read::parse;
pub use register::proposals::About;
pub use register::{
    Act, By, Change, Effects, Held, Item, Order, Override, OverrideStatus, Proposal, ProposalStatus, Provenance,
    Refusal, Register, SetInfo, SetOrder, Terms, Toggle, Version,
};
pub use schema::{schema, schema_text};
pub use scope::{Level, Scope, Selector, Subject, Who};
pub use set::{FileSummary, PolicySet};
pub use silence::{Compare, MATCHED, Matcher, Silence, SilenceStatus};
pub use snapshot::{Snapshot, SnapshotError, Suspension, namespace};

// other YAML files are read in the same way
pub(crate) use fault::{nearest, quoted};
pub(crate) use read::{Fields as Keys, Reader};
pub(crate) use yaml::{Node, Value, documents};
