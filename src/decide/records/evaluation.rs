//! The record of `runwarden.evaluations`: what was judged of a tenant within a minute.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::clock::Micros;
use crate::decide::id::time;

/// What the policies made of a tenant's events within one minute of its clock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evaluation {
    /// The tenant.
    pub tenant_id: String,
    /// The beginning of the minute, in event time.
    #[serde(with = "time")]
    pub minute: Micros,
    /// Events that at least one policy covers.
    pub evaluations: u64,
    /// Times that a policy held something back or ordered that work be held or ended.
    pub blocks: u64,
    /// Evaluations that led to no block.
    pub allows: u64,
    /// What was done, by action; `WARN` and `AUDIT` where the policy's mode does no more than say so.
    pub by_action: BTreeMap<String, u64>,
    /// Events that no policy covers.
    pub uncovered: u64,
}
