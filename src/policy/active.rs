//! When a policy holds: from, until, days of the week and hours in a time zone, judged on event time.

use chrono::{DateTime, Datelike, Timelike};
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};

use super::names::names;
use crate::clock::Micros;

names! {
    /// A day of the week.
    Day { Mon = "MON", Tue = "TUE", Wed = "WED", Thu = "THU", Fri = "FRI", Sat = "SAT", Sun = "SUN" }
}

/// Hours of the day in minutes; `from` ≥ `until` goes over midnight and belongs to the day on which it began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hours {
    /// First minute.
    pub from: u32,
    /// Minute after the last.
    pub until: u32,
}

impl Hours {
    /// Reads `22:00-06:00`.
    pub fn parse(text: &str) -> Option<Self> {
        let minute = |t: &str| -> Option<u32> {
            let (hour, minute) = t.trim().split_once(':')?;
            let (hour, minute): (u32, u32) = (hour.parse().ok()?, minute.parse().ok()?);
            (minute < 60 && (hour < 24 || (hour == 24 && minute == 0))).then_some(hour * 60 + minute)
        };
        let (from, until) = text.split_once('-')?;
        Some(Self { from: minute(from)?, until: minute(until)? })
    }
}

/// When a policy holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Active {
    /// First moment, µs.
    pub from: Option<Micros>,
    /// First moment after, µs.
    pub until: Option<Micros>,
    /// Days; empty: all.
    pub days: Vec<Day>,
    /// Hours; `None`: all.
    pub hours: Option<Hours>,
    /// Whose days and hours; IANA name.
    pub timezone: String,
}

impl Active {
    /// Whether it holds at `at`.
    pub fn at(&self, at: Micros) -> bool {
        if self.from.is_some_and(|from| at < from) || self.until.is_some_and(|until| at >= until) {
            return false;
        }
        if self.days.is_empty() && self.hours.is_none() {
            return true;
        }
        let Some(utc) = DateTime::from_timestamp_micros(at) else { return false };
        let zone: Tz = self.timezone.parse().unwrap_or(Tz::UTC);
        let local = utc.with_timezone(&zone);
        let day = |back: u32| {
            let index = (local.weekday().num_days_from_monday() + 7 - back) % 7;
            let day = Day::ALL[index as usize];
            self.days.is_empty() || self.days.contains(&day)
        };
        let minute = local.hour() * 60 + local.minute();
        match self.hours {
            None => day(0),
            Some(h) if h.from < h.until => day(0) && (h.from..h.until).contains(&minute),
            Some(h) => (minute >= h.from && day(0)) || (minute < h.until && day(1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Micros {
        DateTime::parse_from_rfc3339(text).unwrap().timestamp_micros()
    }

    #[test]
    fn hours_over_midnight_belong_to_the_day_on_which_they_began() {
        let active = Active {
            from: None,
            until: None,
            days: vec![Day::Mon],
            hours: Hours::parse("22:00-06:00"),
            timezone: "Europe/Zurich".into(),
        };
        // Monday 2026-01-05, Zurich is UTC+1
        assert!(active.at(at("2026-01-05T22:30:00+01:00")));
        assert!(active.at(at("2026-01-06T05:59:00+01:00")), "Tuesday morning is Monday's night");
        assert!(!active.at(at("2026-01-06T06:00:00+01:00")), "the end is exclusive");
        assert!(!active.at(at("2026-01-05T05:00:00+01:00")), "that was Sunday's night");
        assert!(!active.at(at("2026-01-06T22:30:00+01:00")));
    }

    #[test]
    fn from_is_inclusive_and_until_exclusive() {
        let active = Active { from: Some(10), until: Some(20), days: vec![], hours: None, timezone: "UTC".into() };
        assert_eq!([9, 10, 19, 20].map(|t| active.at(t)), [false, true, true, false]);
    }

    #[test]
    fn what_is_no_time_of_day_is_refused() {
        for bad in ["", "22", "25:00-06:00", "22:60-06:00", "a:b-c:d"] {
            assert_eq!(Hours::parse(bad), None, "{bad}");
        }
    }
}
