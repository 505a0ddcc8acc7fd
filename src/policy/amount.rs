//! Exact numbers of limits: 128-bit integers in units of 10⁻⁹.
//!
//! Read from the text of a number, never through a float, so `0.1` is one tenth and `near × max` is computed exactly.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

/// Units of one whole.
const ONE: i128 = 1_000_000_000;
/// Digits after the point.
const SCALE: i64 = 9;
/// First magnitude that does not fit DECIMAL(38, 9).
const BOUND: i128 = 10_i128.pow(38);
/// Longest text read as a number.
const MAX_TEXT: usize = 80;

/// An exact decimal number with nine digits after the point, as in DECIMAL(38, 9). The field is in units of 10⁻⁹.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Amount(pub i128);

/// Why a text is not an [`Amount`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AmountError {
    /// Not a decimal number.
    #[error("not a number")]
    NotANumber,
    /// More than nine digits after the point.
    #[error("finer than nine digits after the point")]
    TooFine,
    /// 10²⁹ or more.
    #[error("too large: at most 29 digits before the point")]
    TooLarge,
}

impl Amount {
    /// Zero.
    pub const ZERO: Self = Self(0);
    /// One: the ratio of 100 %.
    pub const ONE: Self = Self(ONE);

    /// A whole number.
    pub fn from_int(whole: i64) -> Self {
        Self(i128::from(whole) * ONE)
    }

    /// The closest float, for display and ratios only; never for decisions.
    #[expect(clippy::cast_precision_loss, reason = "display only")]
    pub fn to_f64(self) -> f64 {
        // through the text, so that 0.8 gives the float nearest to 0.8
        self.to_string().parse().unwrap_or(self.0 as f64 / ONE as f64)
    }

    /// The amount nearest to a float; `None` where it is no number or too large.
    pub fn from_f64(value: f64) -> Option<Self> {
        value.is_finite().then(|| format!("{value:.9}").parse().ok()).flatten()
    }

    /// `self ÷ whole`, rounded to nine digits; `None` for a zero whole. For display, never for decisions.
    pub fn ratio(self, whole: Self) -> Option<Self> {
        (whole.0 != 0).then(|| Self::from_f64(self.to_f64() / whole.to_f64())).flatten()
    }

    /// What is past `max`, if anything.
    pub fn over(self, max: Self) -> Option<Self> {
        (self > max).then(|| Self(self.0.saturating_sub(max.0)))
    }

    /// `ratio × self` as (floor, remainder in units of 10⁻¹⁸): an exact, comparable product. `ratio` must be in 0..=1 and
    /// `self` not negative, which [`super::parse`] guarantees for `near` and `max`.
    pub(super) fn product(self, ratio: Self) -> (i128, i128) {
        // self < 10³⁸ and ratio ≤ 10⁹ units: every intermediate stays below 10³⁸ + 10¹⁸
        let (high, low) = (self.0.div_euclid(ONE), self.0.rem_euclid(ONE));
        let fine = low.saturating_mul(ratio.0);
        (high.saturating_mul(ratio.0).saturating_add(fine.div_euclid(ONE)), fine.rem_euclid(ONE))
    }

    /// The smallest amount that is at least `ratio × self`: a value with nine digits reaches one exactly when it reaches
    /// the other. Same bounds as a limit: `ratio` in 0..=1, `self` not negative.
    ///
    /// ```
    /// use runwarden::policy::Amount;
    /// let max: Amount = "0.000000003".parse()?;
    /// assert_eq!(max.near_line("0.5".parse()?), "0.000000002".parse()?);
    /// # Ok::<(), runwarden::policy::AmountError>(())
    /// ```
    pub fn near_line(self, ratio: Self) -> Self {
        let (floor, rest) = self.product(ratio);
        Self(floor + i128::from(rest > 0))
    }
}

impl FromStr for Amount {
    type Err = AmountError;

    /// Reads `[+-]digits[.digits][e[+-]digits]` exactly.
    fn from_str(text: &str) -> Result<Self, AmountError> {
        if text.len() > MAX_TEXT {
            return Err(AmountError::TooLarge);
        }
        let (negative, body) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let (mantissa, exponent) = match body.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, exponent_of(exponent)?),
            None => (body, 0),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let digits = || whole.bytes().chain(fraction.bytes());
        if digits().next().is_none() || !digits().all(|b| b.is_ascii_digit()) {
            return Err(AmountError::NotANumber);
        }
        // value = digits × 10^shift units
        let shift = SCALE + exponent - i64::try_from(fraction.len()).map_err(|_| AmountError::TooLarge)?;
        let significant: Vec<u8> = digits().skip_while(|b| *b == b'0').collect();
        let kept = significant.len() - significant.iter().rev().take_while(|b| **b == b'0').count();
        if kept == 0 {
            return Ok(Self::ZERO);
        }
        let power = shift + i64::try_from(significant.len() - kept).map_err(|_| AmountError::TooLarge)?;
        if power < 0 {
            return Err(AmountError::TooFine);
        }
        let mut units: i128 = 0;
        for digit in &significant[..kept] {
            units = units
                .checked_mul(10)
                .and_then(|u| u.checked_add(i128::from(digit - b'0')))
                .ok_or(AmountError::TooLarge)?;
        }
        let power = u32::try_from(power).map_err(|_| AmountError::TooLarge)?;
        let units = 10_i128.checked_pow(power).and_then(|p| units.checked_mul(p)).ok_or(AmountError::TooLarge)?;
        if units >= BOUND {
            return Err(AmountError::TooLarge);
        }
        Ok(Self(if negative { -units } else { units }))
    }
}

fn exponent_of(text: &str) -> Result<i64, AmountError> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(AmountError::NotANumber);
    }
    // an absurd exponent is as large or as fine as any other absurd one
    let far = if text.starts_with('-') { i64::MIN } else { i64::MAX };
    Ok(text.parse::<i64>().unwrap_or(far).clamp(-1_000, 1_000))
}

impl fmt::Display for Amount {
    /// The shortest exact decimal: `200000`, `0.8`, `-1.5`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let units = self.0.unsigned_abs();
        let (whole, rest) = (units / ONE.unsigned_abs(), units % ONE.unsigned_abs());
        if rest == 0 {
            write!(f, "{sign}{whole}")
        } else {
            let fraction = format!("{rest:09}");
            write!(f, "{sign}{whole}.{}", fraction.trim_end_matches('0'))
        }
    }
}

impl fmt::Debug for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl Serialize for Amount {
    /// A JSON number with every digit (`serde_json` only).
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        RawValue::from_string(self.to_string()).map_err(serde::ser::Error::custom)?.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Amount {
    /// A JSON number, read from its digits (`serde_json` only).
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Box::<RawValue>::deserialize(deserializer)?.get().parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn amount(text: &str) -> Amount {
        text.parse().unwrap()
    }

    #[test]
    fn digits_are_read_exactly() {
        for (text, units) in [
            ("0", 0),
            ("-0.0", 0),
            ("0e99999999999999999999", 0),
            ("1", ONE),
            ("200000", 200_000 * ONE),
            ("0.80", 800_000_000),
            ("0.000000001", 1),
            ("0.1000000000000", 100_000_000),
            ("1.5e3", 1_500 * ONE),
            ("15E-1", 1_500_000_000),
            ("+2.", 2 * ONE),
            (".5", 500_000_000),
            ("-7", -7 * ONE),
        ] {
            assert_eq!(amount(text), Amount(units), "{text}");
        }
    }

    #[test]
    fn what_is_not_an_amount_says_why() {
        use AmountError::{NotANumber, TooFine, TooLarge};
        for (text, why) in [
            ("", NotANumber),
            ("-", NotANumber),
            (".", NotANumber),
            ("1.2.3", NotANumber),
            ("0x10", NotANumber),
            ("1_000", NotANumber),
            ("1e", NotANumber),
            ("1e+", NotANumber),
            ("1e5.5", NotANumber),
            ("inf", NotANumber),
            ("0.0000000001", TooFine),
            ("1e-10", TooFine),
            ("1e-99999999999999999999", TooFine),
            ("1e29", TooLarge),
            ("1e30", TooLarge),
            ("1e99999999999999999999", TooLarge),
            ("99999999999999999999999999999999999999", TooLarge),
        ] {
            assert_eq!(text.parse::<Amount>(), Err(why), "{text}");
        }
        assert_eq!(amount("99999999999999999999999999999.999999999").0, BOUND - 1, "the largest there is");
    }

    #[test]
    fn a_near_line_is_rounded_up_so_that_reaching_it_means_reaching_the_product() {
        assert_eq!(amount("200000").near_line(amount("0.8")), amount("160000"));
        assert_eq!(amount("3").near_line(amount("0.333333333")), amount("0.999999999"));
        assert_eq!(Amount(1).near_line(amount("0.1")), Amount(1));
        assert_eq!(Amount(BOUND - 1).near_line(Amount::ONE), Amount(BOUND - 1), "no overflow at the largest");
    }

    proptest! {
        #[test]
        fn text_round_trips(units in -(BOUND - 1)..BOUND) {
            let text = Amount(units).to_string();
            prop_assert_eq!(text.parse::<Amount>(), Ok(Amount(units)));
            let json = serde_json::to_string(&Amount(units)).unwrap();
            prop_assert_eq!(&json, &text);
            prop_assert_eq!(serde_json::from_str::<Amount>(&json).unwrap(), Amount(units));
        }

        #[test]
        fn reaching_the_near_line_is_reaching_the_exact_product(
            value in 0..10_i128.pow(20), max in 1..10_i128.pow(20), ratio in 1..=ONE
        ) {
            // 10²⁰ × 10⁹ fits, so the products can be compared directly
            let exact = value * ONE >= ratio * max;
            prop_assert_eq!(Amount(value) >= Amount(max).near_line(Amount(ratio)), exact);
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,100}") {
            let _parsed = text.parse::<Amount>();
        }
    }
}
