//! What several behaviour tests need.

pub mod broker;
pub mod child;
pub mod sidecar;
pub mod toy;
