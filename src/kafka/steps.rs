//! The record on the steps topic: which input each step of a transaction took and what it was not told by data.
//!
//! Compact binary, one record per partition and transaction. Together with the input topics it is enough to re-run any
//! stretch of history exactly. Layout (all integers LEB128 unless said otherwise):
//!
//! ```text
//! u8 layout = 1 | version length, bytes | steps
//! per step: number (first absolute, then difference) | now (first absolute, then difference)
//!         | u8 flags: bits 0-3 at_end per input, bit 4 finish, bits 5.. 0
//!         | per input: from (first absolute, then difference to the last `to`), length
//!         | digest, 8 bytes little endian
//! ```

use crate::clock::Wall;

use super::core::Input;

const LAYOUT: u8 = 1;
const FINISH: u8 = 1 << 4;
const INPUTS: usize = Input::ALL.len();

/// Offsets `[from, to)` of one input; empty when nothing was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Range {
    /// First offset the step could have read.
    pub from: i64,
    /// One past the last record read; equals `from` when none was.
    pub to: i64,
}

impl Range {
    /// Whether nothing was read.
    pub const fn is_empty(self) -> bool {
        self.from >= self.to
    }
}

/// One step as recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Step number of the partition.
    pub number: u64,
    /// The step's clock.
    pub now: Wall,
    /// Which inputs stood at their end, by `Input as usize`.
    pub at_end: [bool; INPUTS],
    /// What was read, by `Input as usize`.
    pub ranges: [Range; INPUTS],
    /// Whether it was the last step of an until-end run.
    pub finish: bool,
    /// Digest of the decisions.
    pub digest: u64,
}

/// The steps of one partition in one transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepsRecord {
    /// Version of the core that took them.
    pub version: String,
    /// The steps, ascending.
    pub steps: Vec<Step>,
}

/// Why a record is not one of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Written by a newer program.
    #[error("layout {0} of a step record is unknown: written by a newer version")]
    Layout(u8),
    /// Cut short or damaged.
    #[error("a step record is damaged at byte {0}")]
    Damaged(usize),
}

/// Encodes the steps of a transaction.
pub fn encode<'a>(version: &str, steps: impl IntoIterator<Item = &'a Step>) -> Vec<u8> {
    let mut out = vec![LAYOUT];
    put(&mut out, version.len() as u64);
    out.extend_from_slice(version.as_bytes());
    let (mut number, mut now, mut ends) = (0, 0, [0; INPUTS]);
    for step in steps {
        put(&mut out, step.number.wrapping_sub(number));
        put_signed(&mut out, step.now.0.wrapping_sub(now));
        let mut flags = if step.finish { FINISH } else { 0 };
        for (bit, &at_end) in step.at_end.iter().enumerate() {
            flags |= u8::from(at_end) << bit;
        }
        out.push(flags);
        for (range, end) in step.ranges.iter().zip(&mut ends) {
            put_signed(&mut out, range.from.wrapping_sub(*end));
            put(&mut out, range.to.saturating_sub(range.from).max(0).unsigned_abs());
            *end = range.to.max(range.from);
        }
        out.extend_from_slice(&step.digest.to_le_bytes());
        (number, now) = (step.number, step.now.0);
    }
    out
}

/// Decodes a record of the steps topic.
pub fn decode(bytes: &[u8]) -> Result<StepsRecord, DecodeError> {
    let mut input = Cursor { bytes, at: 0 };
    let layout = input.byte()?;
    if layout != LAYOUT {
        return Err(DecodeError::Layout(layout));
    }
    let length = usize::try_from(input.unsigned()?).map_err(|_| input.damaged())?;
    let version = std::str::from_utf8(input.take(length)?).map_err(|_| input.damaged())?.to_owned();
    let (mut number, mut now, mut ends) = (0_u64, 0_i64, [0_i64; INPUTS]);
    let mut steps = Vec::new();
    while input.at < bytes.len() {
        number = number.wrapping_add(input.unsigned()?);
        now = now.wrapping_add(input.signed()?);
        let flags = input.byte()?;
        if flags >> 5 != 0 {
            return Err(input.damaged());
        }
        let mut ranges = [Range::default(); INPUTS];
        for (range, end) in ranges.iter_mut().zip(&mut ends) {
            range.from = end.wrapping_add(input.signed()?);
            let length = i64::try_from(input.unsigned()?).map_err(|_| input.damaged())?;
            range.to = range.from.checked_add(length).ok_or_else(|| input.damaged())?;
            *end = range.to;
        }
        let digest = input.take(8)?.iter().rev().fold(0, |all, &byte| all << 8 | u64::from(byte));
        let at_end = std::array::from_fn(|bit| flags & (1 << bit) != 0);
        steps.push(Step { number, now: Wall(now), at_end, ranges, finish: flags & FINISH != 0, digest });
    }
    Ok(StepsRecord { version, steps })
}

fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_signed(out: &mut Vec<u8>, value: i64) {
    put(out, ((value << 1) ^ (value >> 63)) as u64);
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn damaged(&self) -> DecodeError {
        DecodeError::Damaged(self.at)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], DecodeError> {
        let end = self.at.checked_add(length).ok_or(DecodeError::Damaged(self.at))?;
        let taken = self.bytes.get(self.at..end).ok_or(DecodeError::Damaged(self.at))?;
        self.at = end;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, DecodeError> {
        Ok(self.take(1)?.first().copied().unwrap_or_default())
    }

    fn unsigned(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            if shift == 63 && byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.damaged())
    }

    fn signed(&mut self) -> Result<i64, DecodeError> {
        let raw = self.unsigned()?;
        Ok((raw >> 1) as i64 ^ -((raw & 1) as i64))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_step() -> impl Strategy<Value = Step> {
        let range = (0..i64::MAX / 4, 0..1_000_000_i64).prop_map(|(from, n)| Range { from, to: from + n });
        (
            any::<u64>(),
            any::<i64>(),
            any::<[bool; 4]>(),
            [range.clone(), range.clone(), range.clone(), range],
            any::<(bool, u64)>(),
        )
            .prop_map(|(number, now, at_end, ranges, (finish, digest))| Step {
                number,
                now: Wall(now),
                at_end,
                ranges,
                finish,
                digest,
            })
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(version in ".{0,20}", steps in prop::collection::vec(any_step(), 0..20)) {
            let record = decode(&encode(&version, &steps)).unwrap();
            prop_assert_eq!(record, StepsRecord { version, steps });
        }

        #[test]
        fn damaged_bytes_are_an_error_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _outcome = decode(&bytes);
            let mut ours = vec![LAYOUT];
            ours.extend(bytes);
            let _outcome = decode(&ours);
        }
    }

    #[test]
    fn a_typical_step_takes_few_bytes() {
        let step = |n: u64| Step {
            number: 1_000 + n,
            now: Wall(1_700_000_000_000_000 + i64::try_from(n).unwrap() * 4_000),
            at_end: [true, true, false, true],
            ranges: [
                Range::default(),
                Range::default(),
                Range { from: 100 * n as i64, to: 100 * n as i64 + 100 },
                Range::default(),
            ],
            finish: false,
            digest: n,
        };
        let steps: Vec<_> = (0..25).map(step).collect();
        assert!(encode("1.0", &steps).len() < 25 * 22 + 30, "steps must stay far below their input");
    }
}
