//! Ids and times as they leave: UUIDv5 of what they identify, RFC 3339 with six decimals (`contracts.md`, *Rules for all JSON*).

use std::sync::LazyLock;

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use uuid::Uuid;

use crate::clock::Micros;

/// The namespace of every id: UUIDv5(URL namespace, `urn:runwarden`).
pub static NAMESPACE: LazyLock<Uuid> = LazyLock::new(|| Uuid::new_v5(&Uuid::NAMESPACE_URL, b"urn:runwarden"));

/// What parts may not contain unescaped: the separator, the escape itself, spaces and controls.
const PART: &AsciiSet = &CONTROLS.add(b'/').add(b'%').add(b' ').add(b'"').add(b'#').add(b'?');

/// Percent-encodes one part of an id or of a compacted key.
pub fn part(text: &str) -> String {
    utf8_percent_encode(text, PART).to_string()
}

/// The first of the parts that a key joins by `/`, decoded; `None` when it is not text.
pub fn first_part(key: &[u8]) -> Option<String> {
    let part = key.split(|byte| *byte == b'/').next()?;
    percent_encoding::percent_decode(part).decode_utf8().ok().map(Into::into)
}

/// The id of the thing these parts name.
///
/// ```
/// let a = runwarden::decide::of(&["acme", "a/b"]);
/// assert_ne!(a, runwarden::decide::of(&["acme", "a", "b"]), "parts are escaped before they are joined");
/// assert_eq!(a.len(), 36);
/// ```
pub fn of(parts: &[&str]) -> String {
    let joined = parts.iter().map(|p| part(p)).collect::<Vec<_>>().join("/");
    Uuid::new_v5(&NAMESPACE, joined.as_bytes()).to_string()
}

/// µs as RFC 3339, UTC, exactly six decimals, `Z`.
pub fn rfc3339(at: Micros) -> String {
    match chrono::DateTime::from_timestamp_micros(at) {
        Some(t) => t.format("%Y-%m-%dT%H:%M:%S%.6fZ").to_string(),
        None => at.to_string(),
    }
}

/// `#[serde(with = "time")]` for [`Micros`].
pub mod time {
    use serde::{Deserialize, Deserializer, Serializer, de};

    use super::{Micros, rfc3339};

    /// Writes RFC 3339.
    pub fn serialize<S: Serializer>(at: &Micros, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&rfc3339(*at))
    }

    /// Reads RFC 3339.
    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Micros, D::Error> {
        let text = String::deserialize(d)?;
        parse(&text).ok_or_else(|| de::Error::custom(format!("{text} is not an RFC 3339 time")))
    }

    pub(super) fn parse(text: &str) -> Option<Micros> {
        chrono::DateTime::parse_from_rfc3339(text).ok().map(|t| t.timestamp_micros()).or_else(|| text.parse().ok())
    }

    /// For `Option<Micros>`.
    pub mod option {
        use serde::{Deserialize, Deserializer, Serializer, de};

        use super::{Micros, parse, rfc3339};

        /// Writes RFC 3339 or null.
        pub fn serialize<S: Serializer>(at: &Option<Micros>, s: S) -> Result<S::Ok, S::Error> {
            match at {
                Some(at) => s.serialize_str(&rfc3339(*at)),
                None => s.serialize_none(),
            }
        }

        /// Reads RFC 3339 or null.
        pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Micros>, D::Error> {
            let Some(text) = Option::<String>::deserialize(d)? else { return Ok(None) };
            parse(&text).map(Some).ok_or_else(|| de::Error::custom(format!("{text} is not an RFC 3339 time")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_namespace_is_the_documented_one() {
        assert_eq!(*NAMESPACE, Uuid::new_v5(&Uuid::NAMESPACE_URL, b"urn:runwarden"));
    }

    #[test]
    fn times_have_six_decimals() {
        assert_eq!(rfc3339(1_700_000_000_000_001), "2023-11-14T22:13:20.000001Z");
        assert_eq!(rfc3339(-1), "1969-12-31T23:59:59.999999Z");
    }

    #[test]
    fn a_time_beyond_the_calendar_still_reads_back() {
        assert_eq!(time::parse(&rfc3339(i64::MAX)), Some(i64::MAX));
    }
}
