//! The summary for people.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::compare::money;
use super::held::Usage;
use super::summary::Summary;

/// As text, a line a figure, then a line a policy.
pub(super) fn of(summary: &Summary) -> String {
    let mut text = String::new();
    let counts = |map: &BTreeMap<String, u64>| {
        let parts: Vec<String> = map.iter().map(|(k, v)| format!("{k} {v}")).collect();
        if parts.is_empty() { "none".to_owned() } else { parts.join(", ") }
    };
    let usage = |usage: &Usage| {
        let unknown = match usage.cost_unknown {
            0 => String::new(),
            n => format!(" ({n} steps of unknown cost)"),
        };
        format!("{} steps, {} tokens, {} USD{unknown}", usage.events, usage.tokens, money(usage.cost_usd))
    };
    let mut line = |name: &str, value: String| {
        // writing to a String cannot fail
        writeln!(text, "{name:<18}{value}").unwrap_or_default();
    };
    line("events", summary.events.to_string());
    line("duplicates", summary.duplicates.to_string());
    line("dead letters", counts(&summary.dead_letters));
    line("late rows", counts(&summary.late));
    line("windows", summary.windows.values().sum::<u64>().to_string());
    line("signals", counts(&summary.signals));
    line("alerts", counts(&summary.alerts));
    line("interventions", counts(&summary.interventions));
    line("shadow", counts(&summary.shadow));
    line("lessons", counts(&summary.lessons));
    line("runs held", summary.held_runs.to_string());
    line("held back", usage(&summary.held_back));
    line("shadow, held back", usage(&summary.shadow_held_back));
    line("without a policy", format!("{} events", summary.uncovered_events));
    if !summary.unmatched_policies.is_empty() {
        line("matched nothing", summary.unmatched_policies.join(", "));
    }
    if summary.policies.is_empty() {
        return text;
    }
    let width = summary.policies.keys().map(String::len).max().unwrap_or(0).max(6);
    writeln!(
        text,
        "\n{:<width$}  {:>6} {:>7} {:>9} {:>7} {:>7} {:>12} {:>10}  lead seconds min/median/max",
        "policy", "NEAR", "BREACH", "RESOLVED", "orders", "shadow", "tokens held", "USD held"
    )
    .unwrap_or_default();
    for (id, p) in &summary.policies {
        let lead = p.lead_seconds.map_or("-".to_owned(), |l| format!("{:.1}/{:.1}/{:.1}", l.min, l.median, l.max));
        let mut held = p.held_back;
        held.add(&p.shadow_held_back);
        writeln!(
            text,
            "{id:<width$}  {:>6} {:>7} {:>9} {:>7} {:>7} {:>12} {:>10}  {lead}",
            p.near,
            p.breach,
            p.resolved,
            p.interventions,
            p.shadow,
            held.tokens,
            money(held.cost_usd)
        )
        .unwrap_or_default();
    }
    text
}
