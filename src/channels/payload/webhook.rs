//! Standard Webhooks 1.0: `{type, timestamp, data}` and its three headers.

use serde::Serialize;
use standardwebhooks::Webhook;

use crate::channels::secrets::Unusable;
use crate::clock::rfc3339;
use crate::config::Secret;
use crate::decide::records::Alert;

/// Longest body that the specification advises, bytes.
pub const LONGEST: usize = 20_000;
/// Entries of lists that stay when the body would be longer.
const FEW: usize = 10;
/// Characters of texts that stay then.
const SHORT: usize = 1_000;
/// Secrets that sign at a time.
const SECRETS: usize = 8;

/// The body: the whole alert, or its beginning where that would be too long (`members_total` counts on).
pub fn body(alert: &Alert) -> Vec<u8> {
    let whole = encode(alert);
    if whole.len() <= LONGEST {
        return whole;
    }
    let mut short = alert.clone();
    short.members.truncate(FEW);
    for names in [&mut short.runs, &mut short.agents, &mut short.metrics, &mut short.channels] {
        *names = names.iter().take(FEW).map(|name| crate::config::cut(name, 256)).collect();
    }
    for mutes in [&mut short.silenced_by, &mut short.inhibited_by] {
        mutes.truncate(FEW);
    }
    for text in [&mut short.title, &mut short.description, &mut short.correlation_key] {
        *text = crate::config::cut(text, SHORT);
    }
    encode(&short)
}

fn encode(alert: &Alert) -> Vec<u8> {
    let kind = format!("runwarden.alert.{}", crate::channels::status(alert.status).to_lowercase());
    let body = Body { kind, timestamp: rfc3339(alert.last_seen), data: alert };
    // an alert was JSON before it came here
    serde_json::to_vec(&body).unwrap_or_default()
}

#[derive(Serialize)]
struct Body<'a> {
    #[serde(rename = "type")]
    kind: String,
    timestamp: String,
    data: &'a Alert,
}

/// What signs; several secrets sign side by side while they are being replaced.
pub struct Signer(Vec<Webhook>);

impl Signer {
    /// Of secrets as they are shown, `whsec_…`.
    ///
    /// # Errors
    /// None, too many, or one that is not base64 of 24 to 64 bytes.
    pub fn new(secrets: &[Secret]) -> Result<Self, Unusable> {
        let wrong = || {
            Unusable::wrong(
                "the secret",
                format!("must be whsec_ and base64 of 24 to 64 bytes; at most {SECRETS} of them"),
            )
        };
        if secrets.is_empty() || secrets.len() > SECRETS {
            return Err(wrong());
        }
        let one = |secret: &Secret| {
            let encoded = secret.expose().strip_prefix("whsec_").ok_or_else(wrong)?;
            let bytes = encoded.trim_end_matches('=').len() * 3 / 4;
            if !(24..=64).contains(&bytes) {
                return Err(wrong());
            }
            Webhook::new(secret.expose()).map_err(|_| wrong())
        };
        Ok(Self(secrets.iter().map(one).collect::<Result<_, _>>()?))
    }

    /// The value of `webhook-signature` of an attempt at `seconds`. The id has no dot in it.
    pub fn sign(&self, id: &str, seconds: i64, body: &[u8]) -> String {
        let signatures = self.0.iter().filter_map(|secret| secret.sign(id, seconds, body).ok());
        signatures.collect::<Vec<_>>().join(" ")
    }
}

/// The value of `webhook-id`: the record's id, without what the specification forbids.
pub fn id(id: &str) -> String {
    id.chars().map(|c| if c.is_ascii_graphic() && c != '.' { c } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channels::examples::alert;

    #[test]
    fn a_body_says_what_happened_and_holds_the_alert() {
        for (status, kind) in [("OPEN", "open"), ("UPDATED", "updated"), ("RESOLVED", "resolved")] {
            let alert = alert("a", 1, status, "HIGH");
            let body: serde_json::Value = serde_json::from_slice(&body(&alert)).unwrap();
            assert_eq!(body["type"], format!("runwarden.alert.{kind}"));
            assert_eq!(body["timestamp"], "2026-01-05T00:01:00.000000Z");
            assert_eq!(body["data"], serde_json::to_value(&alert).unwrap());
        }
    }

    #[test]
    fn a_body_is_bounded_whatever_the_alert_holds() {
        let mut a = alert("a", 1, "OPEN", "HIGH");
        a.members = (0..100).map(|n| format!("{n:036}")).collect();
        a.runs = (0..100).map(|n| format!("{n:0256}")).collect();
        a.metrics = (0..100).map(|n| format!("{n:0256}")).collect();
        a.description = "é".repeat(10_000);
        let body = body(&a);
        assert!(body.len() <= LONGEST, "{}", body.len());
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["data"]["members"].as_array().unwrap().len(), FEW);
    }

    #[test]
    fn every_secret_signs_as_the_specification_shows() {
        let secret = |text: &str| Secret::new(text);
        let old = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
        let signer = Signer::new(&[secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"), secret(old)]).unwrap();
        let body = br#"{"email":"test@example.com","username":"test_user"}"#;
        let signed = signer.sign("msg_27UH4WbU6Z5A5EzD8u03UvzRbpk", 1_649_367_553, body);
        let signed: Vec<&str> = signed.split(' ').collect();
        assert_eq!(signed.len(), 2);
        assert_eq!(signed[1], "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=", "the vector of the reference library");
        for bad in ["whsec_c2hvcnQ=", "whsec_???", "plain"] {
            assert!(Signer::new(&[secret(bad)]).is_err(), "{bad}");
        }
        assert!(Signer::new(&[]).is_err());
        assert_eq!(id("a.b c/1"), "a_b_c/1");
    }
}
