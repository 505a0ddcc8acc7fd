//! What is said, for each kind of channel. Pure: an alert in, bytes out.

pub mod alertmanager;
pub mod email;
pub mod pagerduty;
pub mod slack;
pub mod webhook;

use super::status;
use crate::clock::rfc3339;
use crate::config::Template;
use crate::decide::records::Alert;

/// The title and the text of a channel.
#[derive(Debug, Clone)]
pub struct Texts {
    /// One line.
    pub title: Template,
    /// What follows it.
    pub text: Template,
}

impl Texts {
    /// The title, on one line.
    pub fn title(&self, alert: &Alert, most: usize) -> String {
        let title = self.title.render(|name| field(alert, name), 4 * most);
        crate::config::cut(&line(&title), most)
    }

    /// The text.
    pub fn text(&self, alert: &Alert, most: usize) -> String {
        self.text.render(|name| field(alert, name), most)
    }
}

/// One line without control characters.
pub fn line(text: &str) -> String {
    let plain: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    plain.trim().to_owned()
}

/// Names of a list that are said.
const LISTED: usize = 10;

fn list<'a>(names: impl ExactSizeIterator<Item = &'a String>) -> String {
    let more = names.len().saturating_sub(LISTED);
    let listed: Vec<&str> = names.take(LISTED).map(String::as_str).collect();
    if more == 0 { listed.join(", ") } else { format!("{} and {more} more", listed.join(", ")) }
}

/// The value of a placeholder; empty where there is none.
pub fn field(alert: &Alert, name: &str) -> String {
    match name {
        "agents" => list(alert.agents.iter()),
        "alert_count" => alert.alert_count.to_string(),
        "alert_id" => alert.alert_id.clone(),
        "correlation_key" => alert.correlation_key.clone(),
        "current_value" => alert.current_value.as_ref().and_then(|v| serde_json::to_string(v).ok()).unwrap_or_default(),
        "description" => alert.description.clone(),
        "first_seen" => rfc3339(alert.first_seen),
        "last_seen" => rfc3339(alert.last_seen),
        "metrics" => list(alert.metrics.iter()),
        "minutes_to_limit" => alert.minutes_to_limit.map(|m| format!("{m:.1}")).unwrap_or_default(),
        "resolve_reason" => alert.resolve_reason.clone().unwrap_or_default(),
        "revision" => alert.revision.to_string(),
        "runs" => list(alert.runs.iter()),
        "severity" => alert.severity.as_str().to_owned(),
        "sources" => list(alert.sources.iter()),
        "status" => status(alert.status).to_owned(),
        "tenant_id" => alert.tenant_id.clone(),
        "title" => alert.title.clone(),
        _ => String::new(),
    }
}

/// What is worth saying of an alert beside its text, by name.
pub fn facts(alert: &Alert) -> Vec<(&'static str, String)> {
    let names = [
        ("Tenant", "tenant_id"),
        ("Severity", "severity"),
        ("Status", "status"),
        ("Metrics", "metrics"),
        ("Value", "current_value"),
        ("Minutes to limit", "minutes_to_limit"),
        ("Runs", "runs"),
        ("Agents", "agents"),
        ("First seen", "first_seen"),
        ("Why it ended", "resolve_reason"),
    ];
    let facts = names.into_iter().map(|(label, name)| (label, field(alert, name)));
    facts.filter(|(_, value)| !value.is_empty()).collect()
}

#[cfg(test)]
pub(super) fn texts() -> Texts {
    let text = "[[channels.to]]\nname = \"ops\"\ntype = \"slack\"\nurl = \"https://e.com\"\n";
    let channel = crate::config::Config::from_toml(text, "c.toml", []).unwrap().channels.to.remove(0);
    Texts { title: channel.title, text: channel.text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channels::examples::alert;

    #[test]
    fn every_field_of_templates_is_known_here() {
        let mut a = alert("a", 1, "RESOLVED", "HIGH");
        a.minutes_to_limit = Some(4.0);
        for name in crate::config::FIELDS {
            assert!(!field(&a, name).is_empty(), "{name}");
        }
    }

    #[test]
    fn a_title_is_one_line_and_lists_are_short() {
        let mut a = alert("a", 1, "OPEN", "HIGH");
        a.title = "a\r\nBcc: all@example.com".into();
        assert_eq!(texts().title(&a, 200), "[OPEN] HIGH: a  Bcc: all@example.com");
        a.runs = (0..25).map(|n| format!("r-{n:02}")).collect();
        assert!(field(&a, "runs").ends_with("r-09 and 15 more"));
    }
}
