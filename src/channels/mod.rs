//! Alert channels (A4): who is told of alerts, how, and what became of it.
//!
//! Each channel is a thread and a consumer group of its own on the alerts topic ([`worker`]), so a dead one delays nobody. Which records
//! a channel tells is decided by [`route`], in which order and when by [`queue`] and [`pace`], what is said by [`payload`]; these are
//! pure. [`sender`] does the talking, [`record`] keeps what came of it for the audit.

pub mod http;
pub mod mail;
pub mod pace;
pub mod payload;
pub mod queue;
pub mod record;
pub mod route;
pub mod secrets;
pub mod sender;
pub mod worker;

use std::time::Duration;

use crate::clock::Micros;
use crate::decide::records::{Alert, AlertStatus};

/// One thing to tell.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// `ce_id` of its record: the same with every attempt.
    pub id: String,
    /// The alert as it was then.
    pub alert: Alert,
    /// When the broker took the record, µs.
    pub at: Micros,
}

impl Message {
    /// Of a record of the alerts topic; `None`: it is no alert.
    pub fn read(id: Option<&[u8]>, payload: Option<&[u8]>, at: Micros) -> Option<Self> {
        let alert: Alert = serde_json::from_slice(payload?).ok()?;
        let id = id.and_then(|id| std::str::from_utf8(id).ok()).filter(|id| !id.is_empty() && id.len() <= 256);
        let id = id.map_or_else(|| format!("{}/{}", alert.alert_id, alert.revision), str::to_owned);
        Some(Self { id, alert, at })
    }

    /// Whether it says that the alert has ended.
    pub fn is_end(&self) -> bool {
        self.alert.status == AlertStatus::Resolved
    }
}

/// What came of one attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attempt {
    /// It was taken.
    Done,
    /// It may be taken later.
    Later {
        /// Why not now, without secrets.
        why: String,
        /// When the receiver wants to be asked again.
        after: Option<Duration>,
    },
    /// It will never be taken.
    Never(String),
    /// Nothing will be taken there any more.
    Gone,
}

/// The value of a status in records.
pub fn status(status: AlertStatus) -> &'static str {
    match status {
        AlertStatus::Open => "OPEN",
        AlertStatus::Updated => "UPDATED",
        AlertStatus::Resolved => "RESOLVED",
    }
}

#[cfg(test)]
pub(crate) mod examples;
