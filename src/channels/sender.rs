//! One channel's way to its receiver: a message in, what came of it out.

use std::collections::VecDeque;

use serde_json::Value;

use super::http::{Answer, Http};
use super::mail::Mailer;
use super::payload::alertmanager::{self, Firing};
use super::payload::{Texts, email, pagerduty, slack, webhook};
use super::secrets::{Secrets, Unusable};
use super::{Attempt, Message};
use crate::clock::{SECOND, Wall};
use crate::config::{Channel, ChannelKind, Secret};
use crate::decide::records::Alert;

/// A cluster of Alertmanagers.
struct Managers {
    http: Http,
    urls: Vec<Secret>,
    token: Option<Secret>,
    firing: Firing,
    /// What is still to be posted again.
    due: VecDeque<Value>,
}

/// How a channel is reached.
pub struct Sender {
    texts: Texts,
    way: Way,
}

enum Way {
    Webhook { http: Http, url: Secret, signer: webhook::Signer },
    Slack { http: Http, url: Secret },
    Pagerduty { http: Http, url: String, key: Secret },
    Alertmanager(Box<Managers>),
    Email(Box<Mailer>),
}

impl Sender {
    /// Of a channel and its secrets. Nothing is connected to yet.
    ///
    /// # Errors
    /// What is not what it has to be.
    pub fn new(channel: &Channel, secrets: &Secrets) -> Result<Self, Unusable> {
        let http = || Http::new(channel.timeout, channel.reach, secrets.ca.as_deref());
        let url = || secrets.urls.first().cloned().ok_or_else(|| Unusable::wrong("the address", "is missing"));
        let secret = || secrets.secrets.first().cloned().ok_or_else(|| Unusable::wrong("the secret", "is missing"));
        let way = match channel.kind {
            ChannelKind::Webhook => {
                Way::Webhook { http: http()?, url: url()?, signer: webhook::Signer::new(&secrets.secrets)? }
            }
            ChannelKind::Slack => Way::Slack { http: http()?, url: url()? },
            ChannelKind::Pagerduty => {
                let base = secrets.urls.first().map_or(pagerduty::URL, Secret::expose);
                let url = format!("{}{}", base.trim_end_matches('/'), pagerduty::PATH);
                Way::Pagerduty { http: http()?, url, key: secret()? }
            }
            ChannelKind::Alertmanager => {
                let urls = secrets.urls.iter();
                let urls =
                    urls.map(|u| Secret::new(format!("{}{}", u.expose().trim_end_matches('/'), alertmanager::PATH)));
                let (urls, token) = (urls.collect(), secrets.secrets.first().cloned());
                let (firing, due) = (Firing::default(), VecDeque::new());
                Way::Alertmanager(Box::new(Managers { http: http()?, urls, token, firing, due }))
            }
            ChannelKind::Email => {
                let email = channel.email.as_ref().ok_or_else(|| Unusable::wrong("the mail server", "is missing"))?;
                Way::Email(Box::new(Mailer::new(email, secrets, channel.timeout)?))
            }
        };
        Ok(Self { texts: Texts { title: channel.title.clone(), text: channel.text.clone() }, way })
    }

    /// One attempt.
    pub fn send(&mut self, partition: i32, message: &Message, now: Wall) -> Attempt {
        let alert = &message.alert;
        match &mut self.way {
            Way::Webhook { http, url, signer } => {
                let (id, body) = (webhook::id(&message.id), webhook::body(alert));
                let seconds = now.0 / SECOND;
                let (stamp, signature) = (seconds.to_string(), signer.sign(&id, seconds, &body));
                let headers =
                    [("webhook-id", &*id), ("webhook-timestamp", &*stamp), ("webhook-signature", &*signature)];
                match http.post(url.expose(), &headers, &body, now) {
                    Ok(answer) if answer.status == 410 => Attempt::Gone,
                    outcome => judge(outcome, |answer| (200..300).contains(&answer.status)),
                }
            }
            Way::Slack { http, url } => {
                let outcome = http.post(url.expose(), &[], &slack::body(alert, &self.texts), now);
                judge(outcome, |answer| answer.status == 200 && answer.body.trim() == "ok")
            }
            Way::Pagerduty { http, url, key } => {
                let outcome = http.post(url, &[], &pagerduty::body(alert, &self.texts, key), now);
                judge(outcome, |answer| answer.status == 202)
            }
            Way::Alertmanager(managers) => {
                managers.firing.take(partition, alert, &self.texts, now);
                managers.post(&managers.firing.of(&alert.alert_id, now), now)
            }
            Way::Email(mailer) => mailer.send(email::mail(&message.id, alert, &self.texts)),
        }
    }

    /// Says again what is due because time passes, a batch at a time; what fails is said again in a minute.
    pub fn refresh(&mut self, now: Wall) -> Option<Attempt> {
        let Way::Alertmanager(managers) = &mut self.way else { return None };
        if managers.due.is_empty() {
            managers.due.extend(managers.firing.due(now));
        }
        let batch = managers.due.pop_front()?;
        Some(managers.post(&batch, now))
    }

    /// Whether what was told before has to be known.
    pub const fn remembers(&self) -> bool {
        matches!(self.way, Way::Alertmanager(_))
    }

    /// An alert that was told before this process began.
    pub fn recall(&mut self, partition: i32, alert: &Alert, now: Wall) {
        if let Way::Alertmanager(managers) = &mut self.way {
            managers.firing.take(partition, alert, &self.texts, now);
        }
    }

    /// Nothing that was told before is known any more.
    pub fn clear(&mut self) {
        if let Way::Alertmanager(managers) = &mut self.way {
            managers.firing = Firing::default();
            managers.due.clear();
        }
    }

    /// A partition is another's now.
    pub fn forget(&mut self, partition: i32) {
        if let Way::Alertmanager(managers) = &mut self.way {
            managers.firing.forget(partition);
            managers.due.clear();
        }
    }
}

impl Managers {
    /// To every member at once; one that takes it is enough, since what fires is posted to all again.
    fn post(&self, alerts: &Value, now: Wall) -> Attempt {
        let body = alerts.to_string();
        let bearer = self.token.as_ref().map(|token| format!("Bearer {}", token.expose()));
        let headers: Vec<(&str, &str)> = bearer.iter().map(|bearer| ("authorization", bearer.as_str())).collect();
        let one = &|url: &Secret| {
            let outcome = self.http.post(url.expose(), &headers, body.as_bytes(), now);
            judge(outcome, |answer| (200..300).contains(&answer.status))
        };
        let attempts: Vec<Attempt> = std::thread::scope(|scope| {
            let asked: Vec<_> = self.urls.iter().map(|url| scope.spawn(move || one(url))).collect();
            asked.into_iter().filter_map(|thread| thread.join().ok()).collect()
        });
        let taken = attempts.iter().filter(|attempt| **attempt == Attempt::Done).count();
        if taken > 0 && taken < self.urls.len() {
            tracing::debug!(taken, members = self.urls.len(), "not every Alertmanager took it");
        }
        let best = |attempt: &Attempt| match attempt {
            Attempt::Done => 0,
            Attempt::Later { .. } => 1,
            Attempt::Never(_) | Attempt::Gone => 2,
        };
        let why = "no member could be asked".to_owned();
        attempts.into_iter().min_by_key(best).unwrap_or(Attempt::Later { why, after: None })
    }
}

/// What an answer means: taken, worth another attempt, or never.
fn judge(outcome: Result<Answer, String>, taken: impl Fn(&Answer) -> bool) -> Attempt {
    match outcome {
        Err(why) => Attempt::Later { why, after: None },
        Ok(answer) if taken(&answer) => Attempt::Done,
        Ok(Answer { status, retry_after, body }) => {
            // a plain word, as Slack says it; anything else may repeat what was sent
            let word = body.trim();
            let plain = word.len() <= 64 && word.chars().all(|c| c.is_ascii_lowercase() || c == '_');
            let why =
                if plain && !word.is_empty() { format!("status {status}: {word}") } else { format!("status {status}") };
            // who may, and where, can be set right while alerts wait; what was said cannot
            let later =
                matches!(status, 200..=399 | 401 | 403 | 404 | 407 | 408 | 409 | 421 | 425 | 429) || status >= 500;
            if later { Attempt::Later { why, after: retry_after } } else { Attempt::Never(why) }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn answers_are_taken_tried_again_or_given_up() {
        let answer = |status, body: &str| {
            Ok(Answer { status, retry_after: Some(Duration::from_secs(7)), body: body.to_owned() })
        };
        let slack = |answer: &Answer| answer.status == 200 && answer.body == "ok";
        assert_eq!(judge(answer(200, "ok"), slack), Attempt::Done);
        let later = |why: &str| Attempt::Later { why: why.to_owned(), after: Some(Duration::from_secs(7)) };
        assert_eq!(judge(answer(200, "<html>secret"), slack), later("status 200"));
        for status in [302, 404, 429, 500, 503] {
            assert_eq!(judge(answer(status, ""), slack), later(&format!("status {status}")));
        }
        assert_eq!(judge(answer(400, "invalid_payload"), slack), Attempt::Never("status 400: invalid_payload".into()));
        assert_eq!(judge(answer(413, "You sent whsec_hush"), slack), Attempt::Never("status 413".into()));
        assert!(matches!(judge(Err("timed out".into()), slack), Attempt::Later { after: None, .. }));
    }
}
