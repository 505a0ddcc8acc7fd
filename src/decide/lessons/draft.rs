//! The draft that a lesson is converted to (E4): a policy with a limit from the data, and the reasoning for it.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::decide::id;
use crate::policy::Amount;

use super::{Lesson, LessonType, Seen};

/// A limit is suggested such that what was seen stands at so much of it, in percent.
const NEAR: i128 = 80;
/// Least number of failures that a suggested limit allows.
const FAILURES: u64 = 3;

/// A policy to propose, and why. `seen` is what debouncing remembers of the lesson's group: how often it repeated since.
pub fn draft(lesson: &Lesson, seen: Option<&Seen>) -> (Value, String) {
    let pattern = &lesson.detected_pattern;
    let text = |name: &str| pattern.get(name).and_then(Value::as_str).unwrap_or_default();
    let amount = |name: &str| pattern.get(name).and_then(|value| serde_json::from_value::<Amount>(value.clone()).ok());
    let repeats = seen.map_or(0, |seen| seen.repeats);
    let mut why = format!("{} {}", lesson.title, lesson.description);
    if repeats > 0 {
        // writing to a String cannot fail
        write!(why, " The same was seen {repeats} more times within 24 hours.").unwrap_or_default();
    }
    let (metric, max, who) = match lesson.lesson_type {
        LessonType::NearThreshold => {
            let value = amount("current_value").unwrap_or(Amount::ZERO);
            let max = above(value, NEAR);
            let old = amount("threshold_value").unwrap_or(Amount::ZERO);
            let said = format!(" At a limit of {max} instead of {old} this value stands at {NEAR} %.");
            why.push_str(&said);
            (text("metric").to_owned(), max, None)
        }
        LessonType::CriticalSuccess => {
            let value = amount("current_value").unwrap_or(Amount::ZERO);
            let max = above(value, NEAR / 2);
            let old = amount("threshold_value").unwrap_or(Amount::ZERO);
            why.push_str(&format!(" A limit of {max} instead of {old} leaves twice the room that it needed."));
            (text("metric").to_owned(), max, Some(text("agent_id").to_owned()).filter(|agent| !agent.is_empty()))
        }
        LessonType::Failure => {
            let failures = pattern.get("failures").and_then(Value::as_u64).unwrap_or(1).saturating_add(repeats);
            let max = failures.max(FAILURES);
            let agent = text("agent_id").to_owned();
            why.push_str(&format!(
                " A limit of {max} failures in 5 minutes tells of a series and forgives a single one."
            ));
            let max = Amount(i128::from(max).saturating_mul(1_000_000_000));
            ("agent_failures_5m".to_owned(), max, Some(agent).filter(|agent| !agent.is_empty()))
        }
    };
    let scope = who.map_or_else(|| json!({}), |agent| json!({"who": "AGENT", "ids": [agent]}));
    let policy = json!({
        "id": format!("learned-{}", lesson.id),
        "name": format!("Learned: {}", lesson.title.chars().take(120).collect::<String>()),
        "tenant": lesson.tenant_id,
        "source": "LEARNED",
        "enforcement_mode": "AUDIT",
        "scope": scope,
        "limits": [{"id": "suggested", "limit_type": metric.to_uppercase(), "metric": metric, "max": max, "enforcement": "ALERT"}],
    });
    (policy, why)
}

/// The command that proposes it: the same for the same lesson, so that it counts once.
pub fn command_id(lesson: &Lesson) -> String {
    id::of(&[&lesson.tenant_id, "proposal.create", &lesson.id])
}

/// The least whole amount at which `value` stands at or below `percent` of it.
fn above(value: Amount, percent: i128) -> Amount {
    const ONE: i128 = 1_000_000_000;
    let exact = value.0.saturating_mul(100).saturating_add(percent - 1) / percent;
    // amounts below ten keep two digits: money
    let unit = if exact < 10 * ONE { ONE / 100 } else { ONE };
    Amount((exact.saturating_add(unit - 1) / unit * unit).max(unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_seen_stands_at_the_given_share_of_what_is_suggested() {
        let amount = |text: &str| text.parse::<Amount>().unwrap();
        assert_eq!(above(amount("170000"), 80), amount("212500"));
        assert_eq!(above(amount("0.17"), 80), amount("0.22"));
        assert_eq!(above(Amount::ZERO, 80), amount("0.01"), "a limit is above nothing");
    }
}
