//! A compile-time refusal with its reason, the clause it is about, and the fix.

use datafusion::common::DataFusionError;

/// Why a query was refused.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Reject {
    /// FROM, WHERE, GROUP BY, …
    pub clause: &'static str,
    /// What is wrong.
    pub message: String,
    /// What to write instead.
    pub help: String,
}

/// A [`Reject`] that can travel through DataFusion's planner.
pub fn reject(clause: &'static str, message: impl Into<String>, help: impl Into<String>) -> DataFusionError {
    DataFusionError::External(Box::new(Reject { clause, message: message.into(), help: help.into() }))
}
