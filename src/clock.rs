//! The only clock: everything else gets the time as an argument.
//!
//! Two kinds of time exist and are never mixed. *Event time* comes from records and is an `i64` of microseconds since the
//! Unix epoch, UTC. *Wall time* is read here, at the edge, and travels inward as [`Wall`].

use std::time::{SystemTime, UNIX_EPOCH};

/// Event time: microseconds since the Unix epoch, UTC. The engine's unit; finer digits are truncated.
pub type Micros = i64;

/// One second in [`Micros`].
pub const SECOND: Micros = 1_000_000;

/// Wall time, microseconds since the Unix epoch, as read at the edge of the process (or recorded by a step).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Wall(pub Micros);

impl Wall {
    /// Reads the system clock. Times before 1970 read as 0.
    #[allow(clippy::disallowed_methods, reason = "this is the one place that asks the clock")]
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
    }
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

    /// For what others send: RFC 3339 with an offset, or an integer of epoch milliseconds; null is none.
    pub mod given {
        use serde::{Deserialize, Deserializer, de};

        use super::{Micros, parse};

        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Given {
            Millis(i64),
            Text(String),
        }

        /// Reads either.
        pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Micros>, D::Error> {
            let wrong = || de::Error::custom("a time is RFC 3339 with an offset, or an integer of epoch milliseconds");
            match Option::<Given>::deserialize(d)? {
                None => Ok(None),
                Some(Given::Millis(millis)) => millis.checked_mul(1_000).map(Some).ok_or_else(wrong),
                Some(Given::Text(text)) => parse(&text).map(Some).ok_or_else(wrong),
            }
        }
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
    fn times_have_six_decimals() {
        assert_eq!(rfc3339(1_700_000_000_000_001), "2023-11-14T22:13:20.000001Z");
        assert_eq!(rfc3339(-1), "1969-12-31T23:59:59.999999Z");
    }

    #[test]
    fn a_time_beyond_the_calendar_still_reads_back() {
        assert_eq!(time::parse(&rfc3339(i64::MAX)), Some(i64::MAX));
    }
}
