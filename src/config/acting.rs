//! `[alerts]`, `[interventions]`, `[breaker]` and `[blindness]`: how long things may take, and what follows when they take longer.

use std::time::Duration;

use super::reader::Section;
use super::{DAY, YEAR, seconds};

/// `[alerts]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alerts {
    /// How long an alert stays open after the last thing in it has ended.
    pub keep_firing_for: Duration,
    /// How long an external alert that nobody clears is up.
    pub external_timeout: Duration,
}

/// `[interventions]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interventions {
    /// How long a proposed one waits for approval.
    pub approve_within: Duration,
    /// How long an issued one waits to be acknowledged.
    pub acknowledge_within: Duration,
    /// How long an acknowledged one waits for its end.
    pub complete_within: Duration,
    /// Whether PAUSE that nobody acknowledges becomes STOP, and STOP becomes KILL.
    pub escalate: bool,
}

/// `[breaker]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Breaker {
    /// A policy may hold so many percent of a tenant's runs within a minute.
    pub percent: u32,
    /// Or fewer runs than this.
    pub runs: u32,
}

/// `[blindness]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blindness {
    /// Longest lag; none: never blind by it.
    pub lag: Duration,
    /// Longest silence of a tenant with runs under way; none: never blind by it.
    pub silence: Duration,
    /// Most late rows within a minute, in percent; 0: never blind by them.
    pub late_percent: u32,
    /// Fewer late rows than this are none.
    pub late_rows: u32,
}

pub(super) fn blindness(s: &mut Section<'_, '_>) -> Blindness {
    Blindness {
        lag: s.duration("lag", seconds(60), Duration::ZERO..=DAY),
        silence: s.duration("silence", seconds(600), Duration::ZERO..=DAY),
        late_percent: s.number("late-percent", 10, 0..=100),
        late_rows: s.number("late-rows", 20, 1..=1_000_000),
    }
}

pub(super) fn breaker(s: &mut Section<'_, '_>) -> Breaker {
    Breaker { percent: s.number("percent", 50, 1..=100), runs: s.number("runs", 5, 1..=1_000_000) }
}

pub(super) fn alerts(s: &mut Section<'_, '_>) -> Alerts {
    Alerts {
        keep_firing_for: s.duration("keep-firing-for", Duration::ZERO, Duration::ZERO..=DAY),
        external_timeout: s.duration("external-timeout", DAY, seconds(60)..=YEAR),
    }
}

pub(super) fn interventions(s: &mut Section<'_, '_>) -> Interventions {
    Interventions {
        approve_within: s.duration("approve-within", seconds(3_600), seconds(1)..=YEAR),
        acknowledge_within: s.duration("acknowledge-within", seconds(30), seconds(1)..=DAY),
        complete_within: s.duration("complete-within", seconds(300), seconds(1)..=DAY),
        escalate: s.flag("escalate", true),
    }
}
