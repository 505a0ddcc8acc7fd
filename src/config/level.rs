//! `[level]` and `[respond]`: when a tenant stands GREEN, YELLOW or RED, and what is done about it.

use std::path::PathBuf;
use std::time::Duration;

use super::reader::Section;
use super::{DAY, YEAR, seconds};

/// A percentage in thousandths, so that configurations compare exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Percent(pub u32);

impl Percent {
    /// As a number from 0 to 100.
    pub fn as_f64(self) -> f64 {
        f64::from(self.0) / 1_000.0
    }
}

/// `[level]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Level {
    /// RED below.
    pub red_integrity: Percent,
    /// RED below.
    pub red_consensus: Percent,
    /// RED from here on.
    pub red_responses: u32,
    /// YELLOW below.
    pub yellow_integrity: Percent,
    /// YELLOW below.
    pub yellow_consensus: Percent,
    /// YELLOW below.
    pub yellow_reputation: Percent,
    /// YELLOW from here on.
    pub yellow_responses: u32,
    /// How old an input may be on its tenant's clock.
    pub max_age: Duration,
    /// A Markdown file in which the marker of the last decision is kept.
    pub marker_file: Option<PathBuf>,
}

/// At which level an action of the user runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActionLevel {
    /// RED
    Red,
    /// YELLOW
    Yellow,
}

/// Names of runwarden's own actions, which those of the user must not have.
pub const OWN_ACTIONS: [&str; 5] = [
    "integrity-schema-check",
    "state-schema-check",
    "full-integrity-check",
    "cold-storage-verification",
    "anchor-mirror",
];

/// What an action of the user may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActionKind {
    /// Changes nothing.
    ReadOnly,
    /// Changes something, and has a command that takes it back.
    Reversible,
}

/// `[[respond.actions]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Action {
    /// Its name, unlike any other.
    pub name: String,
    /// At which level it runs.
    pub level: ActionLevel,
    /// Program and arguments.
    pub command: Vec<String>,
    /// What it may do.
    pub kind: ActionKind,
    /// Program and arguments that take it back.
    pub undo: Vec<String>,
    /// How long it may take.
    pub timeout: Duration,
}

/// `[respond]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Respond {
    /// Whether a change of level is answered by more than a preview.
    pub auto_apply: bool,
    /// Most responses applied in 24 hours.
    pub max_responses: u32,
    /// Most trust locks lifted by hand in a day.
    pub max_unlocks: u32,
    /// Files of integrity data, `.csv` or `.json`.
    pub integrity_data: Vec<PathBuf>,
    /// Columns or fields that each must have.
    pub integrity_columns: Vec<String>,
    /// The integrity anchor that is mirrored; none by default.
    pub anchor_file: Option<PathBuf>,
    /// The user's actions.
    pub actions: Vec<Action>,
}

pub(super) fn level(s: &mut Section<'_, '_>) -> Level {
    let level = Level {
        red_integrity: s.percent("red-integrity", 90),
        red_consensus: s.percent("red-consensus", 85),
        red_responses: s.number("red-responses", 8, 1..=1_000_000),
        yellow_integrity: s.percent("yellow-integrity", 95),
        yellow_consensus: s.percent("yellow-consensus", 90),
        yellow_reputation: s.percent("yellow-reputation", 80),
        yellow_responses: s.number("yellow-responses", 4, 1..=1_000_000),
        max_age: s.duration("max-age", DAY, seconds(1)..=YEAR),
        marker_file: s.optional_path("marker-file"),
    };
    if level.yellow_integrity < level.red_integrity {
        s.refuse("yellow-integrity", "must not be below level.red-integrity");
    }
    if level.yellow_consensus < level.red_consensus {
        s.refuse("yellow-consensus", "must not be below level.red-consensus");
    }
    if level.yellow_responses > level.red_responses {
        s.refuse("yellow-responses", "must not be above level.red-responses");
    }
    level
}

pub(super) fn respond(s: &mut Section<'_, '_>) -> Respond {
    use ActionLevel::{Red, Yellow};
    let respond = Respond {
        auto_apply: s.flag("auto-apply", false),
        max_responses: s.number("max-responses", 10, 0..=1_000),
        max_unlocks: s.number("max-unlocks", 3, 0..=1_000),
        integrity_data: s.texts("integrity-data", &[]).into_iter().map(PathBuf::from).collect(),
        integrity_columns: s.texts("integrity-columns", &["timestamp", "integrity_score"]),
        anchor_file: s.optional_path("anchor-file"),
        actions: s.entries("actions", |a| {
            let name = a.required("name");
            let level = a.choice("level", Red, &[("RED", Red), ("YELLOW", Yellow)]);
            let kind = a.choice(
                "kind",
                ActionKind::ReadOnly,
                &[("read-only", ActionKind::ReadOnly), ("reversible", ActionKind::Reversible)],
            );
            let (command, undo) = (a.texts("command", &[]), a.texts("undo", &[]));
            let timeout = a.duration("timeout", seconds(60), seconds(1)..=seconds(3_600));
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            if name.as_ref().is_some_and(|name| name.len() > 64 || !name.chars().all(plain)) {
                a.refuse("name", "must be at most 64 of letters, digits, '-', '_' and '.'");
            }
            if command.is_empty() {
                a.refuse("command", "must be a program and its arguments");
            }
            if kind == ActionKind::Reversible && undo.is_empty() {
                a.refuse("undo", "is needed: what is reversible names the command that takes it back");
            }
            Some(Action { name: name?, level, command, kind, undo, timeout })
        }),
    };
    let mut names: Vec<&str> = OWN_ACTIONS.into_iter().chain(respond.actions.iter().map(|a| a.name.as_str())).collect();
    let all = names.len();
    names.sort_unstable();
    names.dedup();
    if names.len() < all || respond.actions.len() > 100 {
        s.refuse("actions", "at most 100, and their names must differ from each other and from those of runwarden");
    }
    respond
}
