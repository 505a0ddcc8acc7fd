//! The parameters of actions (`contracts.md`, *Intervention*): which an action takes, and what they may be.

/// What a parameter may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// An id, or a template of one.
    Text,
    /// A list of names.
    Texts,
    /// A whole number.
    Whole { least: i64 },
    /// One of these.
    OneOf(&'static [&'static str]),
}

/// One parameter of an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Parameter {
    pub name: &'static str,
    pub kind: Kind,
}

/// Priorities of tasks.
pub(super) const PRIORITIES: &[&str] = &["CRITICAL", "HIGH", "MEDIUM", "LOW"];

/// The parameters an action takes; none is required in a policy, for the approval may give it.
pub(super) fn of(action: &str) -> &'static [Parameter] {
    const fn text(name: &'static str) -> Parameter {
        Parameter { name, kind: Kind::Text }
    }
    match action {
        "restart_team" => &[Parameter { name: "stagger_seconds", kind: Kind::Whole { least: 0 } }],
        "reassign_task" => const { &[text("to_agent_id")] },
        "override_priority" => &[Parameter { name: "new_priority", kind: Kind::OneOf(PRIORITIES) }],
        "reallocate_capacity" => {
            const {
                &[
                    text("from_agent_id"),
                    text("to_agent_id"),
                    Parameter { name: "capacity", kind: Kind::Whole { least: 1 } },
                ]
            }
        }
        "notify" => &[Parameter { name: "channels", kind: Kind::Texts }],
        _ => &[],
    }
}
