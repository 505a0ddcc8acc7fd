//! Why a broker and this process do not come to an understanding: the password, the certificates, the kind of port.
//!
//! librdkafka's calls say only that they failed or that time ran out; the cause stands in its log. So that is read here, and what it said
//! last is remembered for the whole process, which talks to one cluster: an error of a call a moment later carries it, with a remedy. It is
//! said once a minute, not with each of the attempts that follow.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// An error so long after it may have another cause.
const FRESH: Duration = Duration::from_secs(15);
/// The same is said again after so long.
const AGAIN: Duration = Duration::from_secs(60);
/// Bytes that are kept of what librdkafka says.
const MOST: usize = 500;

/// Who refuses what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The broker: this user or password.
    Credentials,
    /// The broker: this way to log in.
    Mechanism,
    /// This process: the broker's certificate.
    Broker,
    /// The broker: to go on without a certificate of this client, or with this one.
    Client,
    /// Neither: the port speaks no TLS.
    Clear,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Credentials => {
                "the broker refuses the user or the password: check \"sasl.username\" in [kafka.client] and \
                 RUNWARDEN_KAFKA_CLIENT__SASL_PASSWORD, and that the broker knows the user for this \"sasl.mechanism\""
            }
            Self::Mechanism => {
                "the broker does not take this \"sasl.mechanism\": choose one in [kafka.client] that it supports"
            }
            Self::Broker => {
                "the broker's certificate is not believed: name the certificate of the authority that signed it (PEM) as \"ssl.ca.location\" \
                 in [kafka.client], and the brokers in [kafka] brokers as their certificates do"
            }
            Self::Client => {
                "the broker wants a certificate of this client that it believes: name one, and its key, as \"ssl.certificate.location\" and \
                 \"ssl.key.location\" in [kafka.client]"
            }
            Self::Clear => {
                "this port of the broker speaks no TLS: name its TLS listener in [kafka] brokers, or choose another \"security.protocol\" in \
                 [kafka.client]"
            }
        })
    }
}

impl Refusal {
    /// What a line of librdkafka's log says, if it is that.
    fn of(line: &str) -> Option<Self> {
        const LINES: [(&str, Refusal); 10] = [
            ("SASL authentication error", Refusal::Credentials),
            ("Unsupported SASL mechanism", Refusal::Mechanism),
            ("certificate verify failed", Refusal::Broker),
            ("PLAINTEXT broker listener", Refusal::Clear),
            ("alert bad certificate", Refusal::Client),
            ("alert certificate required", Refusal::Client),
            ("alert certificate unknown", Refusal::Client),
            ("alert certificate expired", Refusal::Client),
            ("alert certificate revoked", Refusal::Client),
            ("alert unknown ca", Refusal::Client),
        ];
        LINES.into_iter().find(|(part, _)| line.contains(part)).map(|(_, refusal)| refusal)
    }
}

/// What was said, and when.
#[derive(Debug)]
struct Heard {
    refusal: Refusal,
    said: String,
    at: Instant,
    told: Instant,
}

#[derive(Debug)]
struct Last(Mutex<Option<Heard>>);

static LAST: Last = Last(Mutex::new(None));

impl Last {
    /// Whether a line is a refusal, and if so whether it is to be told now.
    fn hear(&self, line: &str, now: Instant) -> Option<(Refusal, bool)> {
        let refusal = Refusal::of(line)?;
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = last.as_ref().filter(|heard| heard.refusal == refusal).map(|heard| heard.told);
        let told = before.filter(|told| now.duration_since(*told) < AGAIN);
        *last = Some(Heard { refusal, said: bare(line), at: now, told: told.unwrap_or(now) });
        Some((refusal, told.is_none()))
    }

    fn recent(&self, now: Instant) -> Option<(Refusal, String)> {
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let heard = last.as_ref().filter(|heard| now.duration_since(heard.at) < FRESH)?;
        Some((heard.refusal, heard.said.clone()))
    }
}

/// As [`Last::hear`], for the process.
pub(super) fn hear(line: &str) -> Option<(Refusal, bool)> {
    LAST.hear(line, Instant::now())
}

/// What a call that failed just now may have failed of, and librdkafka's words for it.
pub(super) fn recent() -> Option<(Refusal, String)> {
    LAST.recent(Instant::now())
}

/// A line without the thread that says it and how long it took.
fn bare(line: &str) -> String {
    let line = line.strip_prefix('[').and_then(|rest| rest.split_once("]: ")).map_or(line, |(_, rest)| rest);
    let line = line.rsplit_once(" (after ").map_or(line, |(rest, _)| rest);
    line.chars().take(MOST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As librdkafka 2.12 logs it against Kafka 4.
    const LINES: [(&str, Refusal); 5] = [
        (
            "[thrd:sasl_ssl://h:1/bootstrap]: sasl_ssl://h:1/bootstrap: SASL authentication error: Authentication failed during authentication \
             due to invalid credentials with SASL mechanism SCRAM-SHA-512 (after 302ms in state AUTH_REQ)",
            Refusal::Credentials,
        ),
        (
            "[thrd:sasl_ssl://h:1/bootstrap]: sasl_ssl://h:1/bootstrap: SASL PLAIN mechanism handshake failed: Broker: Unsupported SASL \
             mechanism: broker's supported mechanisms: SCRAM-SHA-512 (after 301ms in state AUTH_HANDSHAKE)",
            Refusal::Mechanism,
        ),
        (
            "[thrd:ssl://h:1/bootstrap]: ssl://h:1/bootstrap: SSL handshake failed: error:0A000086:SSL routines::certificate verify failed: \
             broker certificate could not be verified, verify that ssl.ca.location is correctly configured or root CA certificates are \
             installed (install ca-certificates package) (after 5ms in state SSL_HANDSHAKE)",
            Refusal::Broker,
        ),
        (
            "[thrd:ssl://h:1/bootstrap]: ssl://h:1/bootstrap: Receive failed: error:0A000412:SSL routines::ssl/tls alert bad certificate: SSL \
             alert number 42 (after 3ms in state APIVERSION_QUERY)",
            Refusal::Client,
        ),
        (
            "[thrd:ssl://h:1/bootstrap]: ssl://h:1/bootstrap: SSL handshake failed: Disconnected: connecting to a PLAINTEXT broker listener? \
             (after 5ms in state SSL_HANDSHAKE)",
            Refusal::Clear,
        ),
    ];

    #[test]
    fn what_librdkafka_says_of_a_refusal_is_understood_and_other_lines_are_none() {
        for (line, refusal) in LINES {
            assert_eq!(Refusal::of(line), Some(refusal), "{line}");
            assert!(!bare(line).contains("thrd") && !bare(line).contains("in state"), "{}", bare(line));
        }
        let away = "[thrd:h:1/bootstrap]: h:1/bootstrap: Connect to ipv4#127.0.0.1:1 failed: Connection refused (after 0ms in state CONNECT)";
        assert_eq!(Refusal::of(away), None);
    }

    #[test]
    fn it_is_told_once_a_minute_and_forgotten_when_it_is_old() {
        let (last, now) = (Last(Mutex::new(None)), Instant::now());
        let after = |seconds| now + Duration::from_secs(seconds);
        assert_eq!(last.recent(now), None);
        assert_eq!(last.hear("anything else", now), None);
        assert_eq!(last.hear(LINES[0].0, now), Some((Refusal::Credentials, true)));
        assert_eq!(last.hear(LINES[0].0, after(10)), Some((Refusal::Credentials, false)));
        assert_eq!(last.recent(after(20)).map(|(refusal, _)| refusal), Some(Refusal::Credentials));
        assert_eq!(last.recent(after(60)), None);
        assert_eq!(last.hear(LINES[0].0, after(61)), Some((Refusal::Credentials, true)));
        assert_eq!(last.hear(LINES[3].0, after(62)), Some((Refusal::Client, true)), "another cause is told at once");
    }
}
