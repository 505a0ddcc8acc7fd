//! When a policy is in force: a span of time, days of the week and hours of the day in a time zone.
//!
//! Judged by event time, half-open throughout: `from` and the first minute belong, `until` and the last do not. Hours that
//! run over midnight belong to the day on which they begin: `days: [MON], hours: "22:00-06:00"` ends Tuesday at 06:00.

use chrono::{DateTime, Datelike, Days, NaiveDateTime, SecondsFormat, Timelike, Weekday};
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};

use crate::clock::Micros;

use super::names::names;

mod meet;

names! {
    /// A day of the week.
    #[allow(missing_docs, reason = "the days of the week")]
    Day { Mon = "MON", Tue = "TUE", Wed = "WED", Thu = "THU", Fri = "FRI", Sat = "SAT", Sun = "SUN" }
}

impl Day {
    fn of(day: Weekday) -> Self {
        match day {
            Weekday::Mon => Self::Mon,
            Weekday::Tue => Self::Tue,
            Weekday::Wed => Self::Wed,
            Weekday::Thu => Self::Thu,
            Weekday::Fri => Self::Fri,
            Weekday::Sat => Self::Sat,
            Weekday::Sun => Self::Sun,
        }
    }
}

/// Hours of the day, `[start, end)` in minutes after midnight; over midnight when `end < start`. Text: `22:00-06:00`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Hours {
    /// First minute, 0..1440.
    pub start: u32,
    /// First minute no longer inside, 1..=1440; never equal to `start`.
    pub end: u32,
}

impl Hours {
    /// Reads `HH:MM-HH:MM`; `24:00` may end a day.
    ///
    /// # Errors
    /// Says what is wrong, in words for the user.
    pub fn parse(text: &str) -> Result<Self, String> {
        let form = || format!("{} is not of the form \"22:00-06:00\"", super::fault::quoted(text));
        let (start, end) = text.split_once('-').ok_or_else(form)?;
        let (start, end) = (minutes(start).ok_or_else(form)?, minutes(end).ok_or_else(form)?);
        if start == 1440 {
            return Err("hours begin at 00:00, not at 24:00".to_owned());
        }
        if start == end {
            return Err("hours begin and end at the same minute; leave `hours` out for the whole day".to_owned());
        }
        // an end of 00:00 is the end of the day
        Ok(Self { start, end: if end == 0 { 1440 } else { end } })
    }
}

fn minutes(text: &str) -> Option<u32> {
    let (hour, minute) = text.trim().split_once(':')?;
    let part =
        |t: &str| (t.len() == 2 && t.bytes().all(|b| b.is_ascii_digit())).then(|| t.parse::<u32>().ok()).flatten();
    let (hour, minute) = (part(hour)?, part(minute)?);
    ((hour < 24 && minute < 60) || (hour == 24 && minute == 0)).then_some(hour * 60 + minute)
}

impl std::fmt::Display for Hours {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:02}:{:02}-{:02}:{:02}", self.start / 60, self.start % 60, self.end / 60, self.end % 60)
    }
}

impl TryFrom<String> for Hours {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text)
    }
}

impl From<Hours> for String {
    fn from(hours: Hours) -> Self {
        hours.to_string()
    }
}

/// The `active` of a policy. All stated parts must hold.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Active {
    /// First instant.
    #[serde(with = "instant", default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Micros>,
    /// First instant no longer inside.
    #[serde(with = "instant", default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Micros>,
    /// Days on which it is active, in order; empty: every day.
    #[serde(default)]
    pub days: Vec<Day>,
    /// Hours of the day; `None`: the whole day.
    #[serde(default)]
    pub hours: Option<Hours>,
    /// Zone in which days and hours are meant.
    #[serde(with = "zone", default = "utc")]
    pub timezone: Tz,
}

fn utc() -> Tz {
    Tz::UTC
}

impl Default for Active {
    fn default() -> Self {
        Self { from: None, until: None, days: Vec::new(), hours: None, timezone: Tz::UTC }
    }
}

impl Active {
    /// Whether the instant is inside.
    pub fn contains(&self, at: Micros) -> bool {
        if self.from.is_some_and(|from| at < from) || self.until.is_some_and(|until| at >= until) {
            return false;
        }
        if self.days.is_empty() && self.hours.is_none() {
            return true;
        }
        // beyond chrono's calendar (year 262142) no day or hour is known
        let Some(instant) = DateTime::from_timestamp_micros(at) else { return false };
        let local: NaiveDateTime = instant.with_timezone(&self.timezone).naive_local();
        let minute = local.hour() * 60 + local.minute();
        let began_yesterday = match self.hours {
            None => false,
            Some(Hours { start, end }) if start < end => {
                if minute < start || minute >= end {
                    return false;
                }
                false
            }
            Some(Hours { start, end }) => {
                if minute >= end && minute < start {
                    return false;
                }
                minute < end
            }
        };
        let day = if began_yesterday { local.date().checked_sub_days(Days::new(1)) } else { Some(local.date()) };
        self.days.is_empty() || day.is_some_and(|d| self.days.contains(&Day::of(d.weekday())))
    }
}

/// Reads an RFC 3339 time with offset. Digits finer than a microsecond are dropped.
pub(super) fn parse_instant(text: &str) -> Option<Micros> {
    DateTime::parse_from_rfc3339(text).ok().map(|t| t.timestamp_micros())
}

pub(super) fn format_instant(at: Micros) -> String {
    DateTime::from_timestamp_micros(at)
        .map_or_else(|| at.to_string(), |t| t.to_rfc3339_opts(SecondsFormat::Micros, true))
}

pub(super) mod instant {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use crate::clock::Micros;

    #[expect(clippy::ref_option, reason = "the shape serde asks for")]
    pub fn serialize<S: Serializer>(at: &Option<Micros>, s: S) -> Result<S::Ok, S::Error> {
        match at {
            Some(at) => s.serialize_str(&super::format_instant(*at)),
            None => s.serialize_none(),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Micros>, D::Error> {
        Option::<String>::deserialize(d)?
            .map(|text| {
                super::parse_instant(&text).ok_or_else(|| D::Error::custom(format!("`{text}` is not RFC 3339")))
            })
            .transpose()
    }
}

mod zone {
    use chrono_tz::Tz;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(zone: &Tz, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(zone.name())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Tz, D::Error> {
        String::deserialize(d)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Micros {
        parse_instant(text).unwrap()
    }

    #[test]
    fn from_is_inside_and_until_is_not() {
        let active = Active {
            from: Some(at("2026-01-01T00:00:00Z")),
            until: Some(at("2026-02-01T00:00:00Z")),
            ..Active::default()
        };
        assert!(!active.contains(at("2025-12-31T23:59:59.999999Z")));
        assert!(active.contains(at("2026-01-01T00:00:00Z")));
        assert!(active.contains(at("2026-01-31T23:59:59.999999Z")));
        assert!(!active.contains(at("2026-02-01T00:00:00Z")));
    }

    #[test]
    fn hours_over_midnight_belong_to_the_day_they_begin_on() {
        // 2026-01-05 is a Monday; Zurich is UTC+1 in January
        let active = Active {
            days: vec![Day::Mon],
            hours: Some(Hours::parse("22:00-06:00").unwrap()),
            timezone: Tz::Europe__Zurich,
            ..Active::default()
        };
        for (when, expected) in [
            ("2026-01-05T20:59:59Z", false),
            ("2026-01-05T21:00:00Z", true),
            ("2026-01-06T04:59:59Z", true),
            ("2026-01-06T05:00:00Z", false),
            ("2026-01-05T00:00:00Z", false), // Monday 01:00, but the night of Sunday
            ("2026-01-06T21:00:00Z", false), // Tuesday's night
        ] {
            assert_eq!(active.contains(at(when)), expected, "{when}");
        }
    }

    #[test]
    fn hours_follow_daylight_saving() {
        let active = Active {
            hours: Some(Hours::parse("09:00-17:00").unwrap()),
            timezone: Tz::Europe__Zurich,
            ..Active::default()
        };
        assert!(!active.contains(at("2026-01-15T07:30:00Z")), "08:30 in winter");
        assert!(active.contains(at("2026-07-15T07:30:00Z")), "09:30 in summer");
    }

    #[test]
    fn hours_are_read_strictly_and_written_back() {
        for good in ["22:00-06:00", "00:00-24:00", "09:30-17:05"] {
            assert_eq!(Hours::parse(good).unwrap().to_string(), good);
        }
        assert_eq!(Hours::parse("22:00-00:00").unwrap(), Hours { start: 1320, end: 1440 });
        for bad in
            ["", "9:00-17:00", "09:00", "25:00-26:00", "09:60-10:00", "24:00-01:00", "09:00-09:00", "ab:cd-ef:gh"]
        {
            assert!(Hours::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn no_instant_panics() {
        let active = Active { days: vec![Day::Mon], ..Active::default() };
        assert!(!active.contains(Micros::MIN) && !active.contains(Micros::MAX));
    }
}
