//! RFC 3339 in and out, in microseconds: a fixed-position parser (about four times as fast as a general one).
//!
//! Accepted: `YYYY-MM-DD(T|t|space)HH:MM:SS[.digits](Z|z|±HH:MM)`. Digits beyond microseconds are truncated. A leap second
//! (`:60`) is the first microseconds of the next minute, as chrono counts it.

use crate::clock::Micros;

const fn digit(b: u8) -> Option<i64> {
    if b.is_ascii_digit() { Some((b - b'0') as i64) } else { None }
}

fn two(b: &[u8], at: usize) -> Option<i64> {
    Some(digit(*b.get(at)?)? * 10 + digit(*b.get(at + 1)?)?)
}

const fn leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

const fn month_days(year: i64, month: i64) -> i64 {
    match month {
        2 if leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since 1970-01-01 of a proleptic Gregorian date (Howard Hinnant's `days_from_civil`).
const fn days(year: i64, month: i64, day: i64) -> i64 {
    let y = if month <= 2 { year - 1 } else { year };
    let era = y.div_euclid(400);
    let yoe = y.rem_euclid(400);
    let doy = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let doe = yoe * 365 + yoe / 4 - yoe / 100 + doy;
    era * 146_097 + doe - 719_468
}

/// Epoch microseconds of an RFC 3339 time with an offset; `None` if it is not one.
pub fn parse_time(text: &str) -> Option<Micros> {
    let b = text.as_bytes();
    let year = two(b, 0)? * 100 + two(b, 2)?;
    let (month, day) = (two(b, 5)?, two(b, 8)?);
    let (hour, minute, second) = (two(b, 11)?, two(b, 14)?, two(b, 17)?);
    let separators =
        b[4] == b'-' && b[7] == b'-' && matches!(b[10], b'T' | b't' | b' ') && b[13] == b':' && b[16] == b':';
    let in_range = (1..=12).contains(&month)
        && day >= 1
        && day <= month_days(year, month)
        && hour < 24
        && minute < 60
        && second <= 60;
    if !separators || !in_range {
        return None;
    }
    let mut at = 19;
    let mut fraction = 0;
    if b.get(at) == Some(&b'.') {
        at += 1;
        let start = at;
        let mut scale = 100_000;
        while let Some(d) = b.get(at).copied().and_then(digit) {
            fraction += d * scale;
            scale /= 10;
            at += 1;
        }
        if at == start {
            return None;
        }
    }
    let offset = match *b.get(at)? {
        b'Z' | b'z' if b.len() == at + 1 => 0,
        sign @ (b'+' | b'-') if b.len() == at + 6 && b[at + 3] == b':' => {
            let (hours, minutes) = (two(b, at + 1)?, two(b, at + 4)?);
            if hours > 23 || minutes > 59 {
                return None;
            }
            (hours * 60 + minutes) * if sign == b'-' { -60 } else { 60 }
        }
        _ => return None,
    };
    let seconds = days(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second - offset;
    Some(seconds * 1_000_000 + fraction)
}

/// Earliest and latest event time believed to be one: years 0000 to 9999, as RFC 3339 can write them.
pub(super) const RANGE: std::ops::RangeInclusive<Micros> = -62_167_219_200_000_000..=253_402_300_799_999_999;

/// RFC 3339, UTC, exactly six decimals, `Z`. Outside the years 0000 to 9999 the nearest representable time is written.
pub fn format_micros(at: Micros) -> String {
    let at = at.clamp(*RANGE.start(), *RANGE.end());
    let (seconds, micros) = (at.div_euclid(1_000_000), at.rem_euclid(1_000_000));
    let (day, of_day) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // civil_from_days, the inverse of `days`
    let z = day + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1_460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + i64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{:02}T{:02}:{:02}:{:02}.{micros:06}Z",
        doy - (153 * mp + 2) / 5 + 1,
        of_day / 3_600,
        of_day / 60 % 60,
        of_day % 60
    )
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, SecondsFormat};
    use proptest::prelude::*;

    use super::*;

    fn chrono_micros(text: &str) -> Option<i64> {
        DateTime::parse_from_rfc3339(text).ok().map(|t| t.timestamp_micros())
    }

    #[test]
    fn boundaries_agree_with_chrono() {
        for text in [
            "1970-01-01T00:00:00Z",
            "2024-02-29T23:59:59.999999Z",
            "2023-02-29T00:00:00Z",
            "1900-02-29T00:00:00Z",
            "2000-02-29T00:00:00Z",
            "2024-12-31T23:59:60Z",
            "2024-01-01T24:00:00Z",
            "2024-13-01T00:00:00Z",
            "2024-00-10T00:00:00Z",
            "2024-01-00T00:00:00Z",
            "2024-06-01t12:30:15.5z",
            "2024-06-01T12:30:15.123456789+05:30",
            "2024-06-01T12:30:15-23:59",
            "2024-06-01T12:30:15+24:00",
            "0000-01-01T00:00:00Z",
            "9999-12-31T23:59:59.999999Z",
            "2024-06-01T12:30:15",
            "2024-06-01T12:30:15.Z",
            "2024-06-01T12:30Z",
            "",
        ] {
            assert_eq!(parse_time(text), chrono_micros(text), "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_time_chrono_writes_is_read_the_same(
            micros in RANGE, offset in -86_399_i32 / 60..86_399 / 60, digits in 0_usize..4
        ) {
            let zone = chrono::FixedOffset::east_opt(offset * 60).unwrap();
            let at = DateTime::from_timestamp_micros(micros).unwrap().with_timezone(&zone);
            let form = [SecondsFormat::Secs, SecondsFormat::Millis, SecondsFormat::Micros, SecondsFormat::Nanos][digits];
            let text = at.to_rfc3339_opts(form, true);
            prop_assume!(text.len() >= 20 && text.as_bytes()[4] == b'-' && !text.starts_with(['+', '-']));
            prop_assert_eq!(parse_time(&text), chrono_micros(&text), "{}", text);
        }

        #[test]
        fn what_we_write_we_read(micros in RANGE) {
            prop_assert_eq!(parse_time(&format_micros(micros)), Some(micros));
            let theirs = DateTime::from_timestamp_micros(micros).unwrap().to_rfc3339_opts(SecondsFormat::Micros, true);
            prop_assert_eq!(format_micros(micros), theirs);
        }

        #[test]
        fn whatever_we_accept_chrono_reads_the_same(text in "[0-9tTzZ:.+ -]{15,32}") {
            if let Some(micros) = parse_time(&text) {
                prop_assert_eq!(Some(micros), chrono_micros(&text));
            }
        }

        #[test]
        fn any_text_is_answered(text in ".*") {
            let _answered = parse_time(&text);
        }
    }
}
