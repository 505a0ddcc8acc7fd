//! Slack: `text`, which notifications show, and blocks, within their limits.

use serde_json::{Value, json};

use super::{Texts, facts};
use crate::config::cut;
use crate::decide::records::{Alert, AlertStatus, Severity};

const HEADER: usize = 150;
const SECTION: usize = 3_000;
const FIELD: usize = 2_000;
const FIELDS: usize = 10;

/// The three characters that mean something in mrkdwn; cut before they are escaped, so that no escape is cut.
fn escape(text: &str, most: usize) -> String {
    let mut out = String::new();
    let mut left = most;
    for c in text.chars() {
        let said = match c {
            '&' => "&amp;",
            '<' => "&lt;",
            '>' => "&gt;",
            _ => "",
        };
        let length = if said.is_empty() { 1 } else { said.len() };
        if length > left.saturating_sub(1) {
            out.push('…');
            break;
        }
        left -= length;
        if said.is_empty() { out.push(c) } else { out.push_str(said) }
    }
    out
}

fn sign(alert: &Alert) -> &'static str {
    match (alert.status, alert.severity) {
        (AlertStatus::Resolved, _) => ":white_check_mark:",
        (_, Severity::Critical) => ":rotating_light:",
        (_, Severity::High) => ":red_circle:",
        (_, Severity::Medium) => ":large_orange_circle:",
        (_, Severity::Low) => ":large_blue_circle:",
    }
}

/// The body.
pub fn body(alert: &Alert, texts: &Texts) -> Vec<u8> {
    let title = texts.title(alert, HEADER);
    let text = texts.text(alert, SECTION);
    let mut blocks = vec![json!({"type": "header", "text": {"type": "plain_text", "text": cut(&title, HEADER)}})];
    if !text.trim().is_empty() {
        let text = format!("{} {}", sign(alert), escape(&text, SECTION - 40));
        blocks.push(json!({"type": "section", "text": {"type": "mrkdwn", "text": text}}));
    }
    let field = |(label, value): &(&str, String)| json!({"type": "mrkdwn", "text": format!("*{label}*\n{}", escape(value, FIELD - 40))});
    let fields: Vec<Value> = facts(alert).iter().take(FIELDS).map(field).collect();
    blocks.push(json!({"type": "section", "fields": fields}));
    let context = format!("runwarden alert {} revision {}", alert.alert_id, alert.revision);
    blocks.push(json!({"type": "context", "elements": [{"type": "mrkdwn", "text": escape(&context, FIELD)}]}));
    json!({"text": escape(&title, SECTION), "blocks": blocks}).to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::super::texts;
    use super::*;
    use crate::channels::examples::alert;

    #[test]
    fn a_message_is_blocks_with_what_others_wrote_escaped() {
        let body: Value = serde_json::from_slice(&body(&alert("a", 3, "RESOLVED", "HIGH"), &texts())).unwrap();
        let fact = |label: &str, value: &str| json!({"type": "mrkdwn", "text": format!("*{label}*\n{value}")});
        assert_eq!(
            body,
            json!({
                "text": "[RESOLVED] HIGH: run_tokens of RUN r-1 is over its limit",
                "blocks": [
                    {"type": "header", "text": {"type": "plain_text", "text": "[RESOLVED] HIGH: run_tokens of RUN r-1 is over its limit"}},
                    {"type": "section", "text": {"type": "mrkdwn", "text": ":white_check_mark: 120 of &lt;100&gt; &amp; more"}},
                    {"type": "section", "fields": [
                        fact("Tenant", "acme"), fact("Severity", "HIGH"), fact("Status", "RESOLVED"), fact("Metrics", "run_tokens"),
                        fact("Value", "120"), fact("Runs", "r-1"), fact("Agents", "a-1"),
                        fact("First seen", "2026-01-05T00:00:00.000000Z"), fact("Why it ended", "fixed"),
                    ]},
                    {"type": "context", "elements": [{"type": "mrkdwn", "text": "runwarden alert a revision 3"}]},
                ],
            })
        );
    }

    #[test]
    fn nothing_is_longer_than_slack_takes() {
        let mut a = alert("a", 1, "OPEN", "CRITICAL");
        a.title = "<!channel> ".repeat(400);
        a.description = "<&>".repeat(4_000);
        a.runs = (0..100).map(|n| format!("<{n:0500}")).collect();
        let body: Value = serde_json::from_slice(&body(&a, &texts())).unwrap();
        let length = |value: &Value| value.as_str().unwrap().chars().count();
        assert!(length(&body["text"]) <= SECTION && !body["text"].as_str().unwrap().contains('<'));
        let blocks = body["blocks"].as_array().unwrap();
        assert!(length(&blocks[0]["text"]["text"]) <= HEADER && length(&blocks[1]["text"]["text"]) <= SECTION);
        for field in blocks[2]["fields"].as_array().unwrap() {
            assert!(length(&field["text"]) <= FIELD && !field["text"].as_str().unwrap().contains('<'));
        }
    }

    #[test]
    fn no_escape_is_cut() {
        assert_eq!(escape("a&b", 4), "a…");
        assert_eq!(escape("a&b", 8), "a&amp;b");
    }
}
