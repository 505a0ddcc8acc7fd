//! Whether two active times have an instant in common, and whether one lies within the other.
//!
//! Within one time zone this is decided on the week: what two patterns of days and hours share is a matter of local minutes,
//! daylight saving or not. Across zones, and for spans shorter than a week, the beginnings of both are tried one by one
//! over a year and a week, in which every combination of the zones' offsets occurs.

use chrono::{DateTime, Datelike, Days, LocalResult, NaiveDate, NaiveDateTime, TimeDelta, TimeZone};

use crate::clock::Micros;

use super::{Active, Day, Hours};

/// Where a search begins that nothing bounds: 2026-01-01T00:00:00Z.
const REFERENCE: Micros = 1_767_225_600_000_000;
/// Days that are searched: a year, and a week for the pattern.
const SEARCHED: u64 = 373;
const DAY: Micros = 86_400_000_000;
/// Minutes of a week.
const WEEK: u32 = 7 * 1440;
/// Longest gap in local time, in minutes: Samoa skipped a day.
const MAX_GAP: i64 = 1440;

impl Active {
    /// An instant that is inside both, or inside the one that is given; `None` when there is none.
    pub(in crate::policy) fn common(one: Option<&Self>, other: Option<&Self>) -> Option<Micros> {
        let always = Self::default();
        one.unwrap_or(&always).meet(other.unwrap_or(&always))
    }

    fn meet(&self, other: &Self) -> Option<Micros> {
        if self.timezone == other.timezone && !overlap(&self.week(), &other.week()) {
            return None;
        }
        let span = Micros::try_from(SEARCHED).ok()?.saturating_mul(DAY);
        let until = match (self.until, other.until) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        let from = match (self.from, other.from) {
            (Some(a), Some(b)) => a.max(b),
            (a, b) => a.or(b).unwrap_or_else(|| until.map_or(REFERENCE, |u| u.saturating_sub(span).min(REFERENCE))),
        };
        let inside = |at: &Micros| *at >= from && self.contains(*at) && other.contains(*at);
        if inside(&from) {
            return Some(from);
        }
        let first = DateTime::from_timestamp_micros(from)?.date_naive().checked_sub_days(Days::new(2))?;
        for date in first.iter_days().take(usize::try_from(SEARCHED).ok()?) {
            let mut starts = self.starts(date);
            starts.extend(other.starts(date));
            starts.sort_unstable();
            if let Some(found) = starts.into_iter().find(inside) {
                return Some(found);
            }
            if until.is_some_and(|until| self.day_begins_after(date, until)) {
                break;
            }
        }
        None
    }

    /// Whether every instant of `other` is surely inside. `false` may be a lack of proof: zones are not compared.
    pub(in crate::policy) fn covers(&self, other: &Self) -> bool {
        let from = self.from.is_none_or(|mine| other.from.is_some_and(|from| from >= mine));
        let until = self.until.is_none_or(|mine| other.until.is_some_and(|until| until <= mine));
        if !from || !until {
            return false;
        }
        let (mine, theirs) = (self.week(), other.week());
        mine == [(0, WEEK)]
            || (self.timezone == other.timezone
                && theirs.iter().all(|(start, end)| mine.iter().any(|(s, e)| s <= start && end <= e)))
    }

    /// The minutes of the week, from Monday 00:00 local time, in order and merged.
    fn week(&self) -> Vec<(u32, u32)> {
        let Hours { start, end } = self.hours.unwrap_or(Hours { start: 0, end: 1440 });
        let length = if end > start { end - start } else { end + 1440 - start };
        let mut spans = Vec::new();
        for (n, _) in (0_u32..).zip(Day::ALL).filter(|(_, day)| self.days.is_empty() || self.days.contains(day)) {
            let begins = n * 1440 + start;
            let ends = begins + length;
            spans.push((begins, ends.min(WEEK)));
            if ends > WEEK {
                spans.push((0, ends - WEEK));
            }
        }
        spans.sort_unstable();
        let mut merged: Vec<(u32, u32)> = Vec::new();
        for (start, end) in spans {
            match merged.last_mut() {
                Some(last) if start <= last.1 => last.1 = last.1.max(end),
                _ => merged.push((start, end)),
            }
        }
        merged
    }

    /// The instants at which it begins on a local date.
    fn starts(&self, date: NaiveDate) -> Vec<Micros> {
        if !self.days.is_empty() && !self.days.contains(&Day::of(date.weekday())) {
            return Vec::new();
        }
        let minute = self.hours.map_or(0, |h| h.start);
        let Some(local) = date.and_hms_opt(minute / 60, minute % 60, 0) else { return Vec::new() };
        match self.timezone.from_local_datetime(&local) {
            LocalResult::Single(at) => vec![at.timestamp_micros()],
            LocalResult::Ambiguous(a, b) => vec![a.timestamp_micros(), b.timestamp_micros()],
            LocalResult::None => self.after_gap(local).into_iter().collect(),
        }
    }

    /// The first instant after the hole in local time in which `local` lies.
    fn after_gap(&self, local: NaiveDateTime) -> Option<Micros> {
        (1..=MAX_GAP).find_map(|minutes| {
            let later = local.checked_add_signed(TimeDelta::minutes(minutes))?;
            self.timezone.from_local_datetime(&later).earliest().map(|at| at.timestamp_micros())
        })
    }

    fn day_begins_after(&self, date: NaiveDate, instant: Micros) -> bool {
        let midnight = date.and_hms_opt(0, 0, 0).map(|t| t.and_utc().timestamp_micros());
        // two days: the other's zone may be a day behind
        midnight.is_some_and(|at| at.saturating_sub(2 * DAY) > instant)
    }
}

fn overlap(one: &[(u32, u32)], other: &[(u32, u32)]) -> bool {
    one.iter().any(|(s, e)| other.iter().any(|(start, end)| s < end && start < e))
}

#[cfg(test)]
mod tests {
    use chrono_tz::Tz;
    use proptest::prelude::*;

    use super::super::parse_instant;
    use super::*;

    fn active(days: &[Day], hours: &str, timezone: Tz) -> Active {
        let hours = (!hours.is_empty()).then(|| Hours::parse(hours).unwrap());
        Active { days: days.to_vec(), hours, timezone, ..Active::default() }
    }

    #[test]
    fn patterns_meet_where_they_share_a_minute() {
        let utc = |days: &[Day], hours| active(days, hours, Tz::UTC);
        for (a, b, meets) in [
            (utc(&[Day::Mon], ""), utc(&[Day::Tue], ""), false),
            (utc(&[Day::Mon], "22:00-06:00"), utc(&[Day::Tue], "05:59-12:00"), true),
            (utc(&[Day::Mon], "22:00-06:00"), utc(&[Day::Tue], "06:00-12:00"), false),
            (utc(&[Day::Sun], "22:00-06:00"), utc(&[Day::Mon], "00:00-01:00"), true),
            (utc(&[], "09:00-17:00"), utc(&[], "17:00-18:00"), false),
            // an hour apart all year
            (active(&[], "09:00-10:00", Tz::Europe__Zurich), active(&[], "09:00-10:00", Tz::UTC), false),
            // 08:00 UTC in winter only
            (active(&[], "09:00-10:00", Tz::Europe__Zurich), active(&[], "08:00-08:30", Tz::UTC), true),
            (active(&[], "10:30-11:00", Tz::Europe__Zurich), active(&[], "08:00-09:00", Tz::UTC), true),
            // begins in the hole of the last Sunday of March
            (active(&[Day::Sun], "02:30-03:05", Tz::Europe__Zurich), active(&[], "01:00-01:01", Tz::UTC), true),
        ] {
            let found = Active::common(Some(&a), Some(&b));
            assert_eq!(found.is_some(), meets, "{a:?} {b:?}");
            assert_eq!(Active::common(Some(&b), Some(&a)).is_some(), meets, "either way");
            assert!(found.is_none_or(|at| a.contains(at) && b.contains(at)));
        }
    }

    #[test]
    fn spans_bound_the_search() {
        let at = |t| parse_instant(t);
        let monday = Active { from: at("2026-01-06T00:00:00Z"), days: vec![Day::Mon], ..Active::default() };
        let until = |t| Active { until: at(t), ..Active::default() };
        assert_eq!(Active::common(Some(&monday), None), at("2026-01-12T00:00:00Z"));
        assert_eq!(Active::common(Some(&monday), Some(&until("2026-01-12T00:00:00Z"))), None);
        assert!(Active::common(Some(&monday), Some(&until("2026-01-12T00:00:00.000001Z"))).is_some());
        assert!(Active::common(Some(&until("1970-01-02T00:00:00Z")), None).is_some(), "long past");
    }

    #[test]
    fn one_covers_another_when_nothing_of_it_is_outside() {
        let utc = |days: &[Day], hours| active(days, hours, Tz::UTC);
        let always = Active::default();
        assert!(always.covers(&utc(&[Day::Mon], "22:00-06:00")));
        assert!(utc(Day::ALL, "").covers(&always), "seven days are the week");
        assert!(utc(&[Day::Mon, Day::Tue], "").covers(&utc(&[Day::Mon], "22:00-06:00")));
        assert!(!utc(&[Day::Mon], "").covers(&utc(&[Day::Mon], "22:00-06:00")));
        assert!(!utc(&[], "09:00-17:00").covers(&active(&[], "10:00-11:00", Tz::Europe__Zurich)), "not compared");
        let from = Active { from: Some(5), ..Active::default() };
        assert!(!from.covers(&always) && from.covers(&Active { from: Some(6), ..Active::default() }));
    }

    fn any_active() -> impl Strategy<Value = Active> {
        use prop::sample::{select, subsequence};
        let zones = vec![Tz::UTC, Tz::Europe__Zurich, Tz::America__New_York, Tz::Asia__Kolkata];
        let hours = (0..24_u32, 0..4_u32, 1..24_u32);
        (
            subsequence(Day::ALL.to_vec(), 0..=7),
            prop::option::of(hours),
            select(zones),
            prop::option::of(0..20_i64),
            prop::option::of(0..20_i64),
        )
            .prop_map(|(days, hours, timezone, from, until)| {
                let hours = hours.map(|(hour, quarter, length)| {
                    let start = hour * 60 + quarter * 15;
                    let end = (start + length * 60) % 1440;
                    Hours { start, end: if end == 0 { 1440 } else { end } }
                });
                let half_days = |n: i64| REFERENCE + n * DAY / 2;
                Active { from: from.map(half_days), until: until.map(half_days), days, hours, timezone }
            })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(150))]

        #[test]
        fn what_is_found_is_inside_both_and_nothing_is_overlooked(a in any_active(), b in any_active()) {
            let found = Active::common(Some(&a), Some(&b));
            prop_assert!(found.is_none_or(|at| a.contains(at) && b.contains(at)));
            // every quarter of an hour of three weeks, into which all spans fall
            let quarter = 15 * 60_000_000;
            let some = (-7 * 96..21 * 96).map(|n| REFERENCE + n * quarter).find(|at| a.contains(*at) && b.contains(*at));
            prop_assert!(found.is_some() || some.is_none(), "overlooked {some:?}");
            if a.covers(&b) {
                let outside = (-7 * 96..21 * 96).map(|n| REFERENCE + n * quarter).find(|at| b.contains(*at) && !a.contains(*at));
                prop_assert_eq!(outside, None);
            }
        }
    }
}
