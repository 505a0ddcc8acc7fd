//! A mail: subject, plain text, and ids that stay the same over attempts and revisions.

use super::{Texts, facts, line};
use crate::config::cut;
use crate::decide::records::Alert;

const SUBJECT: usize = 200;
const TEXT: usize = 16_384;

/// What a mail says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mail {
    /// One line.
    pub subject: String,
    /// Plain text.
    pub body: String,
    /// `Message-ID`: one per record, so that a second copy can be told.
    pub message_id: String,
    /// `References`: one per alert, so that readers thread it.
    pub thread: String,
}

/// The mail about an alert's state; `id` is that of the record.
pub fn mail(id: &str, alert: &Alert, texts: &Texts) -> Mail {
    let safe = |text: &str| -> String {
        let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '.' };
        cut(&text.chars().map(plain).collect::<String>(), 200).replace('…', "")
    };
    let mut body = texts.text(alert, TEXT);
    body.push_str("\n\n");
    for (label, value) in facts(alert) {
        body.push_str(&format!("{label}: {}\n", cut(&line(&value), 2_000)));
    }
    body.push_str(&format!("\nrunwarden alert {} revision {}\n", alert.alert_id, alert.revision));
    Mail {
        subject: texts.title(alert, SUBJECT),
        body,
        message_id: format!("<{}@runwarden.invalid>", safe(id)),
        thread: format!("<{}@runwarden.invalid>", safe(&alert.alert_id)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::texts;
    use super::*;
    use crate::channels::examples::alert;

    #[test]
    fn a_mail_says_it_in_plain_text_under_ids_that_stay() {
        let mail = mail("a/2", &alert("a", 2, "UPDATED", "HIGH"), &texts());
        assert_eq!(mail.subject, "[UPDATED] HIGH: run_tokens of RUN r-1 is over its limit");
        assert_eq!(
            (mail.message_id.as_str(), mail.thread.as_str()),
            ("<a.2@runwarden.invalid>", "<a@runwarden.invalid>")
        );
        assert_eq!(
            mail.body,
            "120 of <100> & more\n\nTenant: acme\nSeverity: HIGH\nStatus: UPDATED\nMetrics: run_tokens\nValue: 120\nRuns: r-1\n\
             Agents: a-1\nFirst seen: 2026-01-05T00:00:00.000000Z\n\nrunwarden alert a revision 2\n"
        );
    }

    #[test]
    fn nothing_that_others_wrote_becomes_a_header() {
        let mut a = alert("a\r\nX: y", 1, "OPEN", "HIGH");
        a.title = "x\r\nBcc: everyone@example.com\r\n\r\nhello".into();
        let mail = mail("a>\r\nX", &a, &texts());
        for text in [&mail.subject, &mail.message_id, &mail.thread] {
            assert!(!text.chars().any(char::is_control), "{text:?}");
        }
        assert_eq!(mail.message_id, "<a...X@runwarden.invalid>");
    }
}
