//! The life cycle as a state machine (I4; `contracts.md`, *Intervention*), and how long each state may last.

use serde::{Deserialize, Serialize};

use crate::clock::{Micros, SECOND};
use crate::decide::records::InterventionState as State;

/// `[interventions]` and its bounds, µs of the step clock unless stated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acting {
    /// How long a proposed one waits for approval.
    pub approve_within: Micros,
    /// How long an issued one waits to be acknowledged.
    pub acknowledge_within: Micros,
    /// How long an acknowledged one waits for its end.
    pub complete_within: Micros,
    /// Whether PAUSE that times out becomes STOP, and STOP becomes KILL.
    pub escalate: bool,
    /// Event time a stopped run has to fall silent.
    pub stop_grace: Micros,
    /// How long what has ended is remembered.
    pub kept: Micros,
    /// Generations of children that a stopped run takes with it.
    pub cascade_depth: usize,
    /// How long agents and tasks are remembered after their last event, µs of event time.
    pub agents_kept: Micros,
}

impl Default for Acting {
    fn default() -> Self {
        Self {
            approve_within: 3_600 * SECOND,
            acknowledge_within: 30 * SECOND,
            complete_within: 300 * SECOND,
            escalate: true,
            stop_grace: 30 * SECOND,
            kept: 7 * 24 * 3_600 * SECOND,
            cascade_depth: 16,
            agents_kept: 7 * 24 * 3_600 * SECOND,
        }
    }
}

/// Whether a step from one state to another is legal.
pub fn legal(from: State, to: State) -> bool {
    use State::{Acknowledged, Expired, Failed, Issued, Proposed, Rejected, Reverted, Succeeded, Superseded, TimedOut};
    matches!(
        (from, to),
        (Proposed, Issued | Rejected | Expired)
            | (Issued, Acknowledged | TimedOut | Superseded)
            | (Acknowledged, Succeeded | Failed | TimedOut)
            | (Issued | Acknowledged | Succeeded, Reverted)
    )
}

/// Whether something is still to be done or decided in a state.
pub fn is_pending(state: State) -> bool {
    matches!(state, State::Proposed | State::Issued | State::Acknowledged)
}

/// What is ordered next when nobody obeys.
pub fn next_rung(kind: &str) -> Option<&'static str> {
    match kind {
        "PAUSE" => Some("STOP"),
        "STOP" => Some("KILL"),
        _ => None,
    }
}

/// The kinds that a kind makes needless while they are not acknowledged.
pub fn milder(kind: &str) -> &'static [&'static str] {
    match kind {
        "STOP" | "RESUME" => &["PAUSE"],
        "KILL" => &["STOP", "PAUSE"],
        "PAUSE" => &["RESUME"],
        _ => &[],
    }
}

/// Whether a kind holds a run and what it started.
pub fn holds_runs(kind: &str) -> bool {
    matches!(kind, "PAUSE" | "STOP" | "KILL")
}

/// Whether a kind ends a run.
pub fn ends_runs(kind: &str) -> bool {
    matches!(kind, "STOP" | "KILL")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_ended_stays_so_but_for_reverting_what_succeeded() {
        let ends =
            [State::Failed, State::TimedOut, State::Rejected, State::Expired, State::Superseded, State::Reverted];
        for (from, to) in State::ALL.into_iter().flat_map(|from| State::ALL.map(|to| (from, to))) {
            if ends.contains(&from) || from == to {
                assert!(!legal(from, to), "{from:?} → {to:?}");
            }
        }
        let after_success: Vec<State> = State::ALL.into_iter().filter(|to| legal(State::Succeeded, *to)).collect();
        assert_eq!(after_success, [State::Reverted]);
    }

    #[test]
    fn every_ladder_ends_with_kill_and_makes_the_lower_rungs_needless() {
        assert_eq!(next_rung("PAUSE").and_then(next_rung), Some("KILL"));
        assert_eq!(next_rung("KILL"), None);
        assert!(milder("KILL").contains(&"PAUSE") && milder("AGENT_RESTART").is_empty());
    }
}
