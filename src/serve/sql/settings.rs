//! What a session may set, and what SHOW and `current_setting` answer.
//!
//! Three kinds: what we act upon (`runwarden.tenant`, `statement_timeout`), what is as it is (encoding, time zone, the forms of values:
//! setting them is accepted, for every driver does so, and changes nothing), and all else, which is only remembered.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::errors::SqlError;

/// What is as it is.
const FIXED: [(&str, &str); 24] = [
    ("server_version", super::SERVER_VERSION),
    ("server_version_num", super::SERVER_VERSION_NUM),
    ("server_encoding", "UTF8"),
    ("client_encoding", "UTF8"),
    ("datestyle", "ISO, MDY"),
    ("intervalstyle", "postgres"),
    ("timezone", "UTC"),
    ("integer_datetimes", "on"),
    ("standard_conforming_strings", "on"),
    ("is_superuser", "off"),
    ("in_hot_standby", "off"),
    ("transaction_read_only", "on"),
    ("default_transaction_read_only", "on"),
    ("transaction_isolation", "read committed"),
    ("default_transaction_isolation", "read committed"),
    ("search_path", "public"),
    ("bytea_output", "hex"),
    ("max_identifier_length", "63"),
    ("lc_collate", "C"),
    ("lc_ctype", "C"),
    ("lc_messages", "C"),
    ("ssl", "off"),
    ("wal_level", "replica"),
    ("session_replication_role", "origin"),
];
/// What a client is told at the begin, in the spelling of Postgres.
const REPORTED: [&str; 12] = [
    "server_version",
    "server_encoding",
    "client_encoding",
    "DateStyle",
    "IntervalStyle",
    "TimeZone",
    "integer_datetimes",
    "standard_conforming_strings",
    "is_superuser",
    "in_hot_standby",
    "default_transaction_read_only",
    "application_name",
];
/// Settings that are remembered at most, and bytes of a name and a value.
const MAX_SETTINGS: usize = 64;
const MAX_NAME: usize = 63;
const MAX_VALUE: usize = 1024;

/// The settings of a session.
#[derive(Debug, Default)]
pub(super) struct Settings(Mutex<BTreeMap<String, String>>);

/// Narrows a session to one tenant.
pub(super) const TENANT: &str = "runwarden.tenant";
const TIMEOUT: &str = "statement_timeout";

impl Settings {
    /// Sets one. None: to what it is at first.
    pub(super) fn set(&self, name: &str, value: Option<&str>) -> Result<(), SqlError> {
        let name = name.to_lowercase();
        let value = value.unwrap_or_default();
        if name.is_empty() || name.len() > MAX_NAME || value.len() > MAX_VALUE {
            return Err(SqlError::BadParameter("the name or the value of the setting is too long".to_owned()));
        }
        match name.as_str() {
            // all that we send is UTF-8
            "client_encoding"
                if !matches!(
                    value.to_lowercase().replace('-', "").as_str(),
                    "" | "utf8" | "unicode" | "auto" | "sql_ascii"
                ) =>
            {
                return Err(SqlError::BadParameter(format!("the encoding {value} is not offered: use UTF8")));
            }
            TIMEOUT => _ = timeout(value)?,
            _ => {}
        }
        if FIXED.iter().any(|(fixed, _)| *fixed == name) {
            return Ok(());
        }
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if value.is_empty() {
            all.remove(&name);
            return Ok(());
        }
        if all.len() >= MAX_SETTINGS && !all.contains_key(&name) {
            return Err(SqlError::TooMany(format!("more than {MAX_SETTINGS} settings in one session")));
        }
        all.insert(name, value.to_owned());
        Ok(())
    }

    /// All to what they are at first, but the tenant.
    pub(super) fn reset(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|name, _| name == TENANT);
    }

    /// What one is.
    pub(super) fn get(&self, name: &str) -> Option<String> {
        let name = name.to_lowercase();
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = all.get(&name) {
            return Some(value.clone());
        }
        let fixed = FIXED.iter().find(|(fixed, _)| *fixed == name).map(|(_, value)| (*value).to_owned());
        fixed.or_else(|| match name.as_str() {
            TENANT | "application_name" => Some(String::new()),
            TIMEOUT | "lock_timeout" | "idle_in_transaction_session_timeout" => Some("0".to_owned()),
            "extra_float_digits" => Some("1".to_owned()),
            _ => None,
        })
    }

    /// All that are known, by name.
    pub(super) fn all(&self) -> BTreeMap<String, String> {
        let mut all: BTreeMap<_, _> =
            FIXED.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        all.extend(self.0.lock().unwrap_or_else(PoisonError::into_inner).clone());
        all
    }

    /// What a client is told at the begin.
    pub(super) fn reported(&self) -> impl Iterator<Item = (&'static str, String)> {
        REPORTED.iter().map(|name| (*name, self.get(name).unwrap_or_default()))
    }

    /// How a client is told that one has changed, if it is told.
    pub(super) fn is_reported(name: &str) -> Option<&'static str> {
        REPORTED.into_iter().find(|reported| reported.eq_ignore_ascii_case(name))
    }

    /// How long a statement may take: what the session set, if that is less than what it may.
    pub(super) fn timeout(&self, most: Duration) -> Duration {
        let set = self.get(TIMEOUT).and_then(|value| timeout(&value).ok()).flatten();
        set.map_or(most, |set| set.min(most))
    }
}

/// A number of milliseconds, or a number and a unit. None: no limit of its own.
fn timeout(value: &str) -> Result<Option<Duration>, SqlError> {
    let value = value.trim();
    let (number, unit) = value.split_at(value.find(|c: char| !c.is_ascii_digit()).unwrap_or(value.len()));
    let milliseconds = match unit.trim() {
        "" | "ms" => 1,
        "s" => 1_000,
        "min" => 60_000,
        "h" => 3_600_000,
        _ => 0,
    };
    let number = if value.is_empty() { Some(0) } else { number.parse::<u64>().ok() };
    match number.filter(|_| milliseconds > 0) {
        Some(0) => Ok(None),
        Some(number) => Ok(Some(Duration::from_millis(number.saturating_mul(milliseconds)))),
        None => Err(SqlError::BadParameter(format!("invalid value for parameter \"{TIMEOUT}\": \"{value}\""))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_as_it_is_stays_so_and_the_rest_is_remembered() {
        let settings = Settings::default();
        settings.set("TimeZone", Some("Europe/Berlin")).unwrap();
        settings.set("search_path", Some("other")).unwrap();
        settings.set("Application_Name", Some("psql")).unwrap();
        assert_eq!(
            (settings.get("timezone").as_deref(), settings.get("SEARCH_PATH").as_deref()),
            (Some("UTC"), Some("public"))
        );
        assert_eq!(settings.get("application_name").as_deref(), Some("psql"));
        assert_eq!(settings.get("nothing.like_it"), None);
        settings.reset();
        assert_eq!(settings.get("application_name").as_deref(), Some(""));
        assert_eq!(settings.set("client_encoding", Some("LATIN1")).map_err(|e| e.code()), Err("22023"));
        assert_eq!(settings.set("client_encoding", Some("UTF-8")), Ok(()));
    }

    #[test]
    fn a_session_shortens_the_time_limit_and_does_not_lengthen_it() {
        let (settings, most) = (Settings::default(), Duration::from_secs(30));
        let of = |value: &str| settings.set(TIMEOUT, Some(value)).map(|()| settings.timeout(most));
        assert_eq!(of("5000"), Ok(Duration::from_secs(5)));
        assert_eq!((of("250ms"), of("2s")), (Ok(Duration::from_millis(250)), Ok(Duration::from_secs(2))));
        assert_eq!((of("0"), of("1h"), of("99999999999999999s")), (Ok(most), Ok(most), Ok(most)));
        assert_eq!(
            (of("soon").map_err(|e| e.code()), of("5 days").map_err(|e| e.code())),
            (Err("22023"), Err("22023"))
        );
    }

    #[test]
    fn a_session_does_not_remember_without_end() {
        let settings = Settings::default();
        let results: Vec<_> =
            (0..MAX_SETTINGS + 1).map(|n| settings.set(&format!("my.setting{n}"), Some("x"))).collect();
        assert!(results[..MAX_SETTINGS].iter().all(Result::is_ok));
        assert_eq!(results[MAX_SETTINGS].as_ref().map_err(SqlError::code), Err("53400"));
        assert_eq!(settings.set("a", Some(&"x".repeat(2000))).map_err(|e| e.code()), Err("22023"));
    }
}
