//! The only clock: everything else gets the time as an argument.
//!
//! Two kinds of time exist and are never mixed. *Event time* comes from records and is an `i64` of microseconds since the
//! Unix epoch, UTC. *Wall time* is read here, at the edge, and travels inward as [`Wall`].

use std::time::{SystemTime, UNIX_EPOCH};

/// Event time: microseconds since the Unix epoch, UTC. The engine's unit; finer digits are truncated.
pub type Micros = i64;

/// One second in [`Micros`].
pub const SECOND: Micros = 1_000_000;

/// Wall time, microseconds since the Unix epoch, as read at the edge of the process (or recorded by a step).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Wall(pub Micros);

impl Wall {
    /// Reads the system clock. Times before 1970 read as 0.
    #[allow(clippy::disallowed_methods, reason = "this is the one place that asks the clock")]
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
    }
}
