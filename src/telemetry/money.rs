//! Exact decimals: JSON number text to `DECIMAL(18, 9)` and back, without a binary float between.

/// Largest magnitude of `DECIMAL(18, 9)`, in units of 10⁻⁹.
pub(super) const MAX: i128 = 999_999_999_999_999_999;

/// Why a number is not money.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// Not a JSON number.
    NotANumber,
    /// Beyond `DECIMAL(18, 9)`.
    OutOfRange,
}

/// Reads a JSON number as units of 10⁻⁹; further digits are rounded half up (away from zero).
pub(super) fn parse(text: &str) -> Result<i128, Fault> {
    let (negative, rest) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (mantissa, exponent) = match rest.find(['e', 'E']) {
        Some(at) => (&rest[..at], exponent(&rest[at + 1..])?),
        None => (rest, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = || whole.bytes().chain(fraction.bytes());
    if whole.is_empty() || digits().any(|b| !b.is_ascii_digit()) {
        return Err(Fault::NotANumber);
    }
    // digits of `whole ++ fraction` before the last kept decimal
    let keep = i64::try_from(whole.len()).unwrap_or(i64::MAX).saturating_add(exponent).saturating_add(9);
    let mut value: i128 = 0;
    let mut position: i64 = 0;
    for b in digits() {
        let d = i128::from(b - b'0');
        if position < keep {
            value = value * 10 + d;
            if value > MAX {
                return Err(Fault::OutOfRange);
            }
        } else if position == keep && d >= 5 {
            value += 1;
        }
        position += 1;
    }
    while position < keep && value != 0 {
        value *= 10;
        position += 1;
        if value > MAX {
            return Err(Fault::OutOfRange);
        }
    }
    if value > MAX { Err(Fault::OutOfRange) } else { Ok(if negative { -value } else { value }) }
}

/// The exponent of a JSON number, saturating: what overflows `i32` is as large as any.
fn exponent(text: &str) -> Result<i64, Fault> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() || digits.bytes().any(|b| !b.is_ascii_digit()) {
        return Err(Fault::NotANumber);
    }
    let size = digits.parse::<i32>().map_or(i64::from(i32::MAX), i64::from);
    Ok(if text.starts_with('-') { -size } else { size })
}

/// Writes units of 10⁻⁹ as a JSON number without trailing zeros.
pub(super) fn format(value: i128) -> String {
    let sign = if value < 0 { "-" } else { "" };
    let (whole, fraction) = (value.unsigned_abs() / 1_000_000_000, value.unsigned_abs() % 1_000_000_000);
    if fraction == 0 {
        return format!("{sign}{whole}");
    }
    let text = format!("{sign}{whole}.{fraction:09}");
    text.trim_end_matches('0').to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_are_read_exactly() {
        for (text, want) in [
            ("0", Ok(0)),
            ("0.1", Ok(100_000_000)),
            ("1e-9", Ok(1)),
            ("1.5E+2", Ok(150_000_000_000)),
            ("0.0000000004", Ok(0)),
            ("0.0000000005", Ok(1)),
            ("0.00000000049999", Ok(0)),
            ("-0.0000000005", Ok(-1)),
            ("999999999.999999999", Ok(MAX)),
            ("999999999.9999999995", Err(Fault::OutOfRange)),
            ("1000000000", Err(Fault::OutOfRange)),
            ("1e400", Err(Fault::OutOfRange)),
            ("0e400", Ok(0)),
            ("1e-400", Ok(0)),
            ("1e99999999999999", Err(Fault::OutOfRange)),
            ("1e-99999999999999", Ok(0)),
            ("0.3000000000000000444089209850062616169452667236328125", Ok(300_000_000)),
            ("NaN", Err(Fault::NotANumber)),
            ("", Err(Fault::NotANumber)),
            ("-", Err(Fault::NotANumber)),
            ("1e", Err(Fault::NotANumber)),
            ("\"1\"", Err(Fault::NotANumber)),
        ] {
            assert_eq!(parse(text), want, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(value in -MAX..=MAX) {
            prop_assert_eq!(parse(&format(value)), Ok(value));
        }

        #[test]
        fn any_text_is_answered(text in "[-+0-9.eE]{0,40}") {
            let _answered = parse(&text);
        }
    }
}
