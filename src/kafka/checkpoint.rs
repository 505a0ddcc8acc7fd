//! The records of the checkpoint topic: state keys, in parts where large, and the mark that says what they stand for.
//!
//! Kafka keys: `[0] part:u16be core-key` for state, `[255]` for the mark. Values start with a layout byte; a state value
//! carries its checkpoint number and the number of its parts, the mark a checksum over its JSON. All records of a checkpoint
//! are in one transaction with the steps they follow, so a reader sees either all of them or none.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use crate::clock::Micros;

use super::core::{Input, StateChange};

const LAYOUT: u8 = 1;
const STATE: u8 = 0;
const MARK: u8 = 255;
const KEY_HEAD: usize = 3;
const VALUE_HEAD: usize = 11;
/// Largest piece of a value in one record: well under the brokers' default limit of 1 MiB.
const PART_BYTES: usize = 900_000;

/// A record of the checkpoint topic; `None` deletes the key.
pub type KeyValue = (Vec<u8>, Option<Vec<u8>>);

/// What a checkpoint stands for: the partition's state after step `step`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Number of the checkpoint, 1, 2, 3 … per partition.
    pub checkpoint: u64,
    /// Last step contained; 0 when none was taken yet.
    pub step: u64,
    /// Clock of that step, wall time in µs.
    pub now: Micros,
    /// Next offset per input, by `Input as usize`.
    pub offsets: [i64; Input::ALL.len()],
    /// Where on the steps topic later step records are to be looked for.
    pub steps_from: i64,
    /// Version of the core that wrote it.
    pub version: String,
}

/// Why a record could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Written by a newer program.
    #[error("layout {0} of a checkpoint record is unknown: written by a newer version")]
    Layout(u8),
    /// Cut short or damaged.
    #[error("a checkpoint record is damaged")]
    Damaged,
}

/// How many parts each value of more than one part has: kept so that a value that shrinks or goes leaves no stale part.
pub type Parts = HashMap<Vec<u8>, u16>;

/// Encodes changed keys as records of checkpoint number `checkpoint`.
pub fn encode(checkpoint: u64, changes: Vec<StateChange>, parts: &mut Parts) -> Vec<KeyValue> {
    let mut out = Vec::with_capacity(changes.len() + 1);
    for StateChange { key, value } in changes {
        let before = parts.remove(&key).unwrap_or(1);
        let now = value.as_ref().map_or(0, |v| part_count(v.len()));
        if let Some(value) = &value {
            for part in 0..now {
                let from = usize::from(part) * PART_BYTES;
                let piece = value.get(from..value.len().min(from + PART_BYTES)).unwrap_or_default();
                let mut bytes = Vec::with_capacity(VALUE_HEAD + piece.len());
                bytes.push(LAYOUT);
                bytes.extend_from_slice(&checkpoint.to_le_bytes());
                bytes.extend_from_slice(&now.to_le_bytes());
                bytes.extend_from_slice(piece);
                out.push((state_key(part, &key), Some(bytes)));
            }
        }
        out.extend((now..before).map(|part| (state_key(part, &key), None)));
        if now > 1 {
            parts.insert(key, now);
        }
    }
    out
}

/// Encodes the mark.
pub fn encode_mark(mark: &Mark) -> KeyValue {
    let json = serde_json::to_vec(mark).unwrap_or_default();
    let mut bytes = vec![LAYOUT];
    bytes.extend_from_slice(&crc32fast::hash(&json).to_le_bytes());
    bytes.extend_from_slice(&json);
    (vec![MARK], Some(bytes))
}

fn part_count(length: usize) -> u16 {
    u16::try_from(length.div_ceil(PART_BYTES).max(1)).unwrap_or(u16::MAX)
}

fn state_key(part: u16, key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(KEY_HEAD + key.len());
    out.push(STATE);
    out.extend_from_slice(&part.to_be_bytes());
    out.extend_from_slice(key);
    out
}

/// What a checkpoint partition holds, put together record by record.
#[derive(Debug, Default)]
pub struct Assembly {
    mark: Option<Mark>,
    pieces: BTreeMap<Vec<u8>, Pieces>,
}

#[derive(Debug, Default)]
struct Pieces {
    checkpoint: u64,
    parts: Vec<Option<Vec<u8>>>,
}

/// A whole checkpoint.
#[derive(Debug, Default)]
pub struct Checkpoint {
    /// The mark; `None` when there is no checkpoint.
    pub mark: Option<Mark>,
    /// State by key.
    pub state: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Parts of large values.
    pub parts: Parts,
    /// Keys with missing parts: cannot happen inside a transaction, refused if it does.
    pub broken: Vec<Vec<u8>>,
}

impl Assembly {
    /// Takes the next record of the partition, in offset order.
    pub fn add(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<(), DecodeError> {
        match key.first() {
            Some(&MARK) => {
                self.mark = value.map(decode_mark).transpose()?;
                Ok(())
            }
            Some(&STATE) => self.add_state(key, value),
            _ => Err(DecodeError::Damaged),
        }
    }

    fn add_state(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<(), DecodeError> {
        let (Some(&[_, high, low]), Some(core_key)) = (key.first_chunk::<KEY_HEAD>(), key.get(KEY_HEAD..)) else {
            return Err(DecodeError::Damaged);
        };
        let part = usize::from(u16::from_be_bytes([high, low]));
        let Some(value) = value else {
            if let Some(pieces) = self.pieces.get_mut(core_key) {
                if let Some(piece) = pieces.parts.get_mut(part) {
                    *piece = None;
                }
                if pieces.parts.iter().all(Option::is_none) {
                    self.pieces.remove(core_key);
                }
            }
            return Ok(());
        };
        let (&layout, rest) = value.split_first().ok_or(DecodeError::Damaged)?;
        if layout != LAYOUT {
            return Err(DecodeError::Layout(layout));
        }
        let (checkpoint, rest) = rest.split_first_chunk::<8>().ok_or(DecodeError::Damaged)?;
        let (count, bytes) = rest.split_first_chunk::<2>().ok_or(DecodeError::Damaged)?;
        let (checkpoint, count) = (u64::from_le_bytes(*checkpoint), usize::from(u16::from_le_bytes(*count)));
        if part >= count {
            return Err(DecodeError::Damaged);
        }
        let pieces = self.pieces.entry(core_key.to_vec()).or_default();
        if pieces.checkpoint != checkpoint || pieces.parts.len() != count {
            *pieces = Pieces { checkpoint, parts: vec![None; count] };
        }
        if let Some(piece) = pieces.parts.get_mut(part) {
            *piece = Some(bytes.to_vec());
        }
        Ok(())
    }

    /// The checkpoint as the last record leaves it.
    pub fn finish(self) -> Checkpoint {
        let mut whole = Checkpoint { mark: self.mark, ..Checkpoint::default() };
        for (key, Pieces { parts, .. }) in self.pieces {
            let count = parts.len();
            let mut pieces = parts.into_iter();
            let value = match (count, pieces.next()) {
                (1, Some(first)) => first,
                (_, first) => first.into_iter().chain(pieces).collect::<Option<Vec<_>>>().map(|all| all.concat()),
            };
            match value {
                Some(value) => {
                    if let Some(count) = u16::try_from(count).ok().filter(|&n| n > 1) {
                        whole.parts.insert(key.clone(), count);
                    }
                    whole.state.insert(key, value);
                }
                None => whole.broken.push(key),
            }
        }
        whole
    }
}

fn decode_mark(value: &[u8]) -> Result<Mark, DecodeError> {
    let (&layout, rest) = value.split_first().ok_or(DecodeError::Damaged)?;
    if layout != LAYOUT {
        return Err(DecodeError::Layout(layout));
    }
    let (sum, json) = rest.split_first_chunk::<4>().ok_or(DecodeError::Damaged)?;
    if crc32fast::hash(json) != u32::from_le_bytes(*sum) {
        return Err(DecodeError::Damaged);
    }
    serde_json::from_slice(json).map_err(|_| DecodeError::Damaged)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn change(key: &str, value: Option<usize>) -> StateChange {
        StateChange { key: key.into(), value: value.map(|n| (0..n).map(|i| (i % 251) as u8).collect()) }
    }

    fn read(log: &[KeyValue]) -> Checkpoint {
        let mut assembly = Assembly::default();
        for (key, value) in log {
            assembly.add(key, value.as_deref()).unwrap();
        }
        assembly.finish()
    }

    /// What compaction may leave of a log: the last record of each key.
    fn compacted(log: &[KeyValue]) -> Vec<KeyValue> {
        let last = |i: usize| log.iter().skip(i + 1).all(|(key, _)| *key != log[i].0);
        (0..log.len()).filter(|&i| last(i)).map(|i| log[i].clone()).collect()
    }

    #[test]
    fn the_mark_survives_and_a_damaged_one_is_refused() {
        let mark =
            Mark { checkpoint: 3, step: 9, now: 5, offsets: [1, 2, 3, -1], steps_from: 7, version: "0.1".into() };
        let (key, value) = encode_mark(&mark);
        assert_eq!(read(&[(key.clone(), value.clone())]).mark, Some(mark));
        let mut damaged = value.unwrap();
        damaged[10] ^= 1;
        assert_eq!(Assembly::default().add(&key, Some(&damaged)), Err(DecodeError::Damaged));
        damaged[0] = 2;
        assert_eq!(Assembly::default().add(&key, Some(&damaged)), Err(DecodeError::Layout(2)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn state_is_what_the_last_changes_say_also_after_compaction(
            rounds in prop::collection::vec(prop::collection::vec((0..4_u8, prop::option::of(
                prop_oneof![0..50_usize, Just(PART_BYTES), Just(PART_BYTES + 1), Just(3 * PART_BYTES - 1)])), 0..4), 0..6)
        ) {
            let (mut log, mut parts, mut model) = (Vec::new(), Parts::new(), BTreeMap::new());
            for (n, round) in rounds.iter().enumerate() {
                let changes: BTreeMap<_, _> = round.iter().copied().collect();
                let changes: Vec<_> = changes.into_iter().map(|(k, v)| change(&format!("k{k}"), v)).collect();
                for StateChange { key, value } in &changes {
                    match value {
                        Some(value) => drop(model.insert(key.clone(), value.clone())),
                        None => drop(model.remove(key)),
                    }
                }
                log.extend(encode(n as u64 + 1, changes, &mut parts));
            }
            for log in [log.clone(), compacted(&log)] {
                let whole = read(&log);
                prop_assert!(whole.broken.is_empty());
                prop_assert!(whole.state == model);
                prop_assert_eq!(&whole.parts, &parts);
            }
        }
    }
}
