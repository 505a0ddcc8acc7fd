//! Alerts about panels as commands to the core: `alert.raise` and `alert.clear`.
//!
//! Every sidecar with the role serve looks at the panels, and all would send the same. So the id of a command is that of panel, type and
//! first seen, and its body has nothing in it that two of them could see differently: one counts, the others get its answer.
//!
//! They are about tenant `*`, unless told otherwise: panels are looked at over all tenants, and an alert of `*` is seen by those who see
//! all tenants and by nobody else. No name of a tenant would do: any could be one's own.

use serde_json::json;

use super::monitor::{AlertType, Event};
use super::registry::Panel;
use crate::clock::{Micros, Wall, rfc3339};
use crate::decide;
use crate::decide::commands::{Command, SYSTEM};
use crate::decide::level::OVERALL;

/// Whose alerts about panels are, unless told otherwise: those of all.
pub const TENANT: &str = OVERALL;

/// Who sends commands, and whose alerts they raise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sender {
    /// `system:serve@<slot>`
    pub principal: String,
    /// Whose the alerts are: [`TENANT`].
    pub tenant: String,
}

/// The name of what is up, the same for every alert of a panel and type.
pub(super) fn fingerprint(panel: &str, kind: AlertType) -> String {
    format!("{panel}/{}", kind.as_str())
}

/// The command that an event asks for, if it asks for one. `question`: of the panel; none when it is no more.
pub(super) fn command(sender: &Sender, panel: &str, known: Option<&Panel>, event: Event, now: Wall) -> Option<Command> {
    let (verb, kind, first_seen, round) = match event {
        Event::Raise { kind, first_seen } => ("alert.raise", kind, first_seen, 0),
        Event::Renew { kind, first_seen, round } => ("alert.raise", kind, first_seen, round),
        Event::Clear { kind, first_seen } => ("alert.clear", kind, first_seen, 0),
        Event::Unhealthy(_) | Event::Recovered(_) => return None,
    };
    let since = rfc3339(first_seen);
    let body = match (verb, known) {
        ("alert.raise", known) => json!({
            "source": "panel", "fingerprint": fingerprint(panel, kind), "severity": kind.severity(),
            "title": title(panel, kind),
            "description": known.map_or_else(String::new, |known| description(known, kind, &since)),
        }),
        _ => json!({"source": "panel", "fingerprint": fingerprint(panel, kind)}),
    };
    Some(Command {
        command_id: decide::of(&[verb, &sender.tenant, panel, kind.as_str(), &since, &round.to_string()]),
        kind: verb.to_owned(),
        tenant_id: sender.tenant.clone(),
        principal: sender.principal.clone(),
        authority: SYSTEM,
        issued_at: now.0,
        body,
        key_id: None,
    })
}

fn title(panel: &str, kind: AlertType) -> String {
    match kind {
        AlertType::EmptyPanel => format!("panel {panel} is empty"),
        AlertType::StalePanel => format!("panel {panel} is stale"),
        AlertType::FilterBreak => format!("the query of panel {panel} fails"),
    }
}

fn description(panel: &Panel, kind: AlertType, since: &str) -> String {
    let invariant = &panel.invariant;
    let what = match kind {
        AlertType::EmptyPanel => match &invariant.min_value {
            Some(min) => format!("{} is below {} since {since}", min.column, min.value),
            None => format!("it has fewer than {} rows since {since}", invariant.min_rows),
        },
        AlertType::StalePanel => match &invariant.freshness {
            Some(fresh) => format!("{} is older than {} s since {since}", fresh.column, seconds(fresh.within)),
            None => format!("it is too old since {since}"),
        },
        AlertType::FilterBreak => format!("{} cannot be run since {since}; the log has its error", panel.query),
    };
    format!("{} ({}): {what}", panel.question, kind.as_str())
}

fn seconds(span: Micros) -> i64 {
    span / crate::clock::SECOND
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::panels::registry::Registry;

    const TEXT: &str = "panels: [{id: P-1, question: 'Who?', topic: t, query: panels/p.sql, endpoint: /p, columns: [a], \
                        capability: {id: c, status: OBSERVED}, invariant: {min_rows: 2, alert_enabled: true}}]";

    fn sender(slot: &str) -> Sender {
        Sender { principal: format!("system:serve@{slot}"), tenant: TENANT.into() }
    }

    #[test]
    fn the_commands_of_two_sidecars_about_one_episode_are_one() {
        let registry = Registry::parse("p.yaml", TEXT).unwrap();
        let panel = registry.get("P-1");
        let raise = Event::Raise { kind: AlertType::EmptyPanel, first_seen: 300_000_000 };
        let of = |slot, event, now| command(&sender(slot), "P-1", panel, event, Wall(now)).unwrap();
        let (a, b) = (of("a", raise, 1), of("b", raise, 2_000_000));
        assert_eq!((&a.command_id, &a.body, &a.tenant_id), (&b.command_id, &b.body, &b.tenant_id));
        assert_eq!((a.kind.as_str(), a.key(), a.authority), ("alert.raise", "*", SYSTEM));
        assert_eq!(a.body["severity"], "WARNING");
        assert_eq!(
            a.body["description"],
            "Who? (EMPTY_PANEL): it has fewer than 2 rows since 1970-01-01T00:05:00.000000Z"
        );
        let others = [
            Event::Raise { kind: AlertType::StalePanel, first_seen: 300_000_000 },
            Event::Raise { kind: AlertType::EmptyPanel, first_seen: 600_000_000 },
            Event::Renew { kind: AlertType::EmptyPanel, first_seen: 300_000_000, round: 1 },
            Event::Clear { kind: AlertType::EmptyPanel, first_seen: 300_000_000 },
        ];
        for event in others {
            assert_ne!(of("a", event, 1).command_id, a.command_id, "{event:?}");
        }
    }

    #[test]
    fn what_is_cleared_is_what_was_raised_and_what_is_only_said_is_no_command() {
        let (kind, first_seen) = (AlertType::FilterBreak, 0);
        let of = |event| command(&sender("a"), "P-1", None, event, Wall(0));
        let (raised, cleared) =
            (of(Event::Raise { kind, first_seen }).unwrap(), of(Event::Clear { kind, first_seen }).unwrap());
        assert_eq!((raised.body["severity"].as_str(), cleared.kind.as_str()), (Some("CRITICAL"), "alert.clear"));
        assert_eq!(raised.body["fingerprint"], cleared.body["fingerprint"]);
        assert_eq!(raised.body["source"], cleared.body["source"]);
        assert!(of(Event::Unhealthy(kind)).is_none() && of(Event::Recovered(kind)).is_none());
    }
}
