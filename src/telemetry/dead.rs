//! Records that could not become a row: why, whence, and what may be kept of them.
//!
//! Invariant: neither `message` nor `value` holds content of a forbidden or unknown field. Messages name fields, not values.

use std::fmt::Write as _;

use sha2::{Digest, Sha256};

use super::Origin;

/// Longest message, bytes.
const MAX_MESSAGE: usize = 512;

/// Why a record is a dead letter; the names of `contracts.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// Not JSON, a wrong type, an unknown event type or enumeration value, a reserved tenant.
    Decode,
    /// A required field is absent, null or empty.
    MissingField,
    /// Negative, outside its range, beyond 64 bits, an id too long.
    OutOfRange,
    /// Further ahead of the step's clock than allowed.
    Future,
    /// Late for every window it could belong to.
    Late,
    /// Larger than the configured bound.
    Oversize,
    /// On the wrong partition and impossible to re-key.
    MisroutedUnroutable,
}

impl Reason {
    /// Every reason, in the order of their counters.
    pub const ALL: [Self; 7] = [
        Self::Decode,
        Self::MissingField,
        Self::OutOfRange,
        Self::Future,
        Self::Late,
        Self::Oversize,
        Self::MisroutedUnroutable,
    ];

    /// The name in headers and metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Decode => "decode",
            Self::MissingField => "missing_field",
            Self::OutOfRange => "out_of_range",
            Self::Future => "future",
            Self::Late => "late",
            Self::Oversize => "oversize",
            Self::MisroutedUnroutable => "misrouted_unroutable",
        }
    }
}

/// What goes to the dead-letter topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// Where the record was read.
    pub origin: Origin,
    /// Why it is dead.
    pub reason: Reason,
    /// For people: at most 512 bytes, names fields, never values.
    pub message: String,
    /// The record's tenant, when that could be read and is a possible one.
    pub tenant_id: Option<String>,
    /// The redacted JSON, or `{"length":…,"sha256":…}` of bytes that cannot be read.
    pub value: Vec<u8>,
    /// Key for the dead-letter topic; the caller sets it (the tenant, or the original key).
    pub key: Option<Vec<u8>>,
}

impl DeadLetter {
    /// A dead letter without key; the message is cut to its bound.
    pub fn new(
        origin: Origin,
        reason: Reason,
        message: impl Into<String>,
        tenant_id: Option<String>,
        value: Vec<u8>,
    ) -> Self {
        let mut message = message.into();
        message.truncate(cut(&message, MAX_MESSAGE).len());
        Self { origin, reason, message, tenant_id, value, key: None }
    }

    /// A dead letter of bytes that cannot be read: they are described, or kept.
    pub fn of_bytes(origin: Origin, reason: Reason, message: impl Into<String>, bytes: &[u8], keep: bool) -> Self {
        Self::new(origin, reason, message, None, if keep { bytes.to_vec() } else { describe(bytes) })
    }

    /// The record headers: origin, message and reason.
    pub fn headers(&self) -> Vec<(String, Vec<u8>)> {
        let header = |name: &str, value: &str| (name.to_owned(), value.as_bytes().to_vec());
        vec![
            header("__connect.errors.topic", &self.origin.topic),
            header("__connect.errors.partition", &self.origin.partition.to_string()),
            header("__connect.errors.offset", &self.origin.offset.to_string()),
            header("__connect.errors.exception.message", &self.message),
            header("runwarden-reason", self.reason.as_str()),
        ]
    }
}

/// Describes bytes without showing them: `{"length":…,"sha256":"…"}`.
fn describe(bytes: &[u8]) -> Vec<u8> {
    let mut out = format!("{{\"length\":{},\"sha256\":\"", bytes.len());
    for byte in Sha256::digest(bytes) {
        // writing to a String cannot fail
        let _infallible = write!(out, "{byte:02x}");
    }
    out.push_str("\"}");
    out.into_bytes()
}

/// The longest prefix of at most `max` bytes that ends on a character boundary.
pub(super) fn cut(text: &str, max: usize) -> &str {
    if text.len() <= max {
        return text;
    }
    let mut end = max;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn headers_name_the_origin_and_the_reason() {
        let origin = Origin { input: 2, topic: Arc::from("runs.telemetry"), partition: 3, offset: 17 };
        let dead = DeadLetter::new(origin, Reason::MissingField, "é".repeat(400), None, Vec::new());
        assert_eq!(dead.message.len(), 512, "cut on a character boundary");
        let headers = dead.headers();
        assert_eq!(headers[0], ("__connect.errors.topic".to_owned(), b"runs.telemetry".to_vec()));
        assert_eq!(headers[2].1, b"17");
        assert_eq!(headers[4], ("runwarden-reason".to_owned(), b"missing_field".to_vec()));
    }

    #[test]
    fn a_cut_never_splits_a_character() {
        assert_eq!(cut("añb", 2), "a");
        assert_eq!(cut("añb", 3), "añ");
        assert_eq!(cut("abc", 3), "abc");
    }

    #[test]
    fn a_description_has_length_and_digest_only() {
        let text = String::from_utf8(describe(b"abc")).unwrap();
        assert_eq!(text, r#"{"length":3,"sha256":"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}"#);
    }
}
