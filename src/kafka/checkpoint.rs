//! The records of the checkpoint topic: state keys, in parts where large, and the mark that says what they stand for.
//!
//! A checkpoint may be too large for one transaction, so its keys are written ahead, over several, and count only once the
//! mark is there. Every key therefore has two slots: a new version goes into the slot that does not hold the version that
//! counts. A reader takes each key's newest version not above the mark; what a dead writer wrote ahead is above it.
//!
//! Kafka keys: `slot part:u16be core-key` (slot 0 or 1) for state, `[255]` for the mark. Values start with a layout byte; a
//! state value carries its checkpoint number and the number of its parts (0: the key is deleted), the mark a checksum over its
//! JSON. A deleted key's records are removed with the checkpoint after the one that deleted it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use serde::{Deserialize, Serialize};

use crate::clock::Micros;

use super::core::{Input, StateChange};

const LAYOUT: u8 = 1;
const SLOTS: usize = 2;
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
    /// Of how many partitions this is one; `None` in marks of programs that did not say. State of another number of partitions
    /// is never taken for ours: most tenants' state would be missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partitions: Option<i32>,
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

/// Where the version that counts of each key lies. Kept by the writer, found again by the reader.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Slots {
    /// Hashes of the keys whose version that counts is in slot 1.
    second: HashSet<u64>,
    /// Parts of values of more than one part, so that a value that shrinks or goes leaves no stale part.
    parts: HashMap<(u8, Vec<u8>), u16>,
    /// Deleted by the last checkpoint: to be removed with the next.
    buried: HashSet<Vec<u8>>,
    /// Slots a dead writer wrote ahead of a mark that never came: to be removed before the next mark makes them count.
    strays: Vec<(u8, Vec<u8>)>,
}

impl Slots {
    /// Encodes changed keys as records of checkpoint number `checkpoint`, to be written before its mark, in any number of
    /// transactions. The next call must wait for that mark.
    pub fn encode(&mut self, checkpoint: u64, changes: Vec<StateChange>) -> Vec<KeyValue> {
        let mut out = Vec::with_capacity(changes.len() + 1);
        let mut buried: Vec<_> = std::mem::take(&mut self.buried).into_iter().collect();
        buried.sort_unstable();
        let looked_for = !buried.is_empty();
        let changed: HashSet<&[u8]> = changes.iter().filter(|_| looked_for).map(|c| c.key.as_slice()).collect();
        for key in buried {
            if changed.contains(key.as_slice()) {
                continue;
            }
            // The old value goes before the word that it is deleted.
            let current = u8::from(self.second.contains(&hash(&key)));
            for slot in [1 - current, current] {
                let parts = self.parts.remove(&(slot, key.clone())).unwrap_or(1);
                out.extend((0..parts).map(|part| (state_key(slot, part, &key), None)));
            }
            self.second.remove(&hash(&key));
        }
        drop(changed);
        let mut strays: BTreeSet<_> = std::mem::take(&mut self.strays).into_iter().collect();
        for StateChange { key, value } in changes {
            let slot = self.flip(&key);
            let stray = (slot, key);
            strays.remove(&stray);
            let (slot, key) = stray;
            let before = self.parts.remove(&(slot, key.clone())).unwrap_or(1);
            let count = value.as_ref().map_or(0, |v| part_count(v.len()));
            let value = value.unwrap_or_default();
            // Stale parts go first: whoever finds only some of these records still sees how many parts there may be.
            out.extend((count.max(1)..before).map(|part| (state_key(slot, part, &key), None)));
            for part in 0..count.max(1) {
                let from = usize::from(part) * PART_BYTES;
                let piece = value.get(from..value.len().min(from + PART_BYTES)).unwrap_or_default();
                let mut bytes = Vec::with_capacity(VALUE_HEAD + piece.len());
                bytes.push(LAYOUT);
                bytes.extend_from_slice(&checkpoint.to_le_bytes());
                bytes.extend_from_slice(&count.to_le_bytes());
                bytes.extend_from_slice(piece);
                out.push((state_key(slot, part, &key), Some(bytes)));
            }
            if count == 0 {
                self.buried.insert(key);
            } else if count > 1 {
                self.parts.insert((slot, key), count);
            }
        }
        for (slot, key) in strays {
            let parts = self.parts.remove(&(slot, key.clone())).unwrap_or(1);
            out.extend((0..parts).map(|part| (state_key(slot, part, &key), None)));
        }
        out
    }

    /// Makes the key's other slot the one that counts.
    fn flip(&mut self, key: &[u8]) -> u8 {
        let hash = hash(key);
        if self.second.remove(&hash) {
            return 0;
        }
        self.second.insert(hash);
        1
    }
}

/// The same in every process: only in memory, but readers and writers of one process must agree.
fn hash(key: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish()
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

fn state_key(slot: u8, part: u16, key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(KEY_HEAD + key.len());
    out.push(slot);
    out.extend_from_slice(&part.to_be_bytes());
    out.extend_from_slice(key);
    out
}

/// What a checkpoint partition holds, put together record by record.
#[derive(Debug, Default)]
pub struct Assembly {
    mark: Option<Mark>,
    versions: BTreeMap<Vec<u8>, [Option<Version>; SLOTS]>,
}

/// What one slot of a key holds.
#[derive(Debug)]
struct Version {
    checkpoint: u64,
    /// Empty: deleted.
    parts: Vec<Option<Vec<u8>>>,
}

/// A whole checkpoint.
#[derive(Debug, Default)]
pub struct Checkpoint {
    /// The mark; `None` when there is no checkpoint.
    pub mark: Option<Mark>,
    /// State by key.
    pub state: BTreeMap<Vec<u8>, Vec<u8>>,
    /// For the next writer.
    pub slots: Slots,
    /// Keys with missing parts: cannot happen as written, refused if it does.
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
            Some(&slot) if usize::from(slot) < SLOTS => self.add_state(usize::from(slot), key, value),
            _ => Err(DecodeError::Damaged),
        }
    }

    fn add_state(&mut self, slot: usize, key: &[u8], value: Option<&[u8]>) -> Result<(), DecodeError> {
        let (Some(&[_, high, low]), Some(core_key)) = (key.first_chunk::<KEY_HEAD>(), key.get(KEY_HEAD..)) else {
            return Err(DecodeError::Damaged);
        };
        let part = usize::from(u16::from_be_bytes([high, low]));
        let Some(value) = value else {
            if let Some(versions) = self.versions.get_mut(core_key) {
                if let Some(version) = &mut versions[slot] {
                    if let Some(piece) = version.parts.get_mut(part) {
                        *piece = None;
                    }
                    if version.parts.iter().all(Option::is_none) {
                        versions[slot] = None;
                    }
                }
                if versions.iter().all(Option::is_none) {
                    self.versions.remove(core_key);
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
        if part >= count.max(1) {
            return Err(DecodeError::Damaged);
        }
        let held = &mut self.versions.entry(core_key.to_vec()).or_default()[slot];
        let version = match held {
            Some(version) if version.checkpoint == checkpoint && version.parts.len() == count => version,
            other => other.insert(Version { checkpoint, parts: vec![None; count] }),
        };
        if let Some(piece) = version.parts.get_mut(part) {
            *piece = Some(bytes.to_vec());
        }
        Ok(())
    }

    /// The mark as far as read.
    pub fn mark(&self) -> Option<&Mark> {
        self.mark.as_ref()
    }

    /// Whether the record is a mark, by its key.
    pub fn is_mark(key: &[u8]) -> bool {
        key.first() == Some(&MARK)
    }

    /// The checkpoint as the last record leaves it.
    pub fn finish(self) -> Checkpoint {
        let mut whole = Checkpoint { mark: self.mark, ..Checkpoint::default() };
        let last = whole.mark.as_ref().map_or(0, |mark| mark.checkpoint);
        for (key, versions) in self.versions {
            for (slot, version) in (0_u8..).zip(&versions) {
                let parts = version.as_ref().and_then(|v| u16::try_from(v.parts.len()).ok()).unwrap_or_default();
                if parts > 1 {
                    whole.slots.parts.insert((slot, key.clone()), parts);
                }
            }
            let held = (0_u8..).zip(versions).filter_map(|(slot, version)| Some((slot, version?)));
            let (valid, strays): (Vec<_>, Vec<_>) = held.partition(|(_, version)| version.checkpoint <= last);
            whole.slots.strays.extend(strays.into_iter().map(|(slot, _)| (slot, key.clone())));
            let newest = valid.into_iter().max_by_key(|(_, version)| version.checkpoint);
            let Some((slot, Version { parts, .. })) = newest else { continue };
            if slot == 1 {
                whole.slots.second.insert(hash(&key));
            }
            if parts.is_empty() {
                whole.slots.buried.insert(key);
                continue;
            }
            let mut pieces = parts.into_iter();
            let value = match (pieces.len(), pieces.next()) {
                (1, Some(only)) => only,
                (_, first) => first.into_iter().chain(pieces).collect::<Option<Vec<_>>>().map(|all| all.concat()),
            };
            match value {
                Some(value) => drop(whole.state.insert(key, value)),
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
        let mark = Mark { partitions: Some(4), ..mark(3) };
        let (key, value) = encode_mark(&mark);
        assert_eq!(read(&[(key.clone(), value.clone())]).mark, Some(mark));
        let mut damaged = value.unwrap();
        damaged[10] ^= 1;
        assert_eq!(Assembly::default().add(&key, Some(&damaged)), Err(DecodeError::Damaged));
        damaged[0] = 2;
        assert_eq!(Assembly::default().add(&key, Some(&damaged)), Err(DecodeError::Layout(2)));
    }

    type Round = Vec<(u8, Option<usize>)>;

    fn rounds() -> impl Strategy<Value = Vec<Round>> {
        let size = prop_oneof![0..50_usize, Just(PART_BYTES), Just(PART_BYTES + 1), Just(3 * PART_BYTES - 1)];
        prop::collection::vec(prop::collection::vec((0..4_u8, prop::option::of(size)), 0..4), 0..6)
    }

    fn mark(checkpoint: u64) -> Mark {
        Mark {
            checkpoint,
            step: 9,
            now: 5,
            offsets: [1, 2, 3, -1],
            steps_from: 7,
            version: "0.1".into(),
            partitions: None,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]

        /// Each round a writer goes on; where `dies` says so it dies after writing only part of a checkpoint ahead, and the
        /// next one begins from what a reader finds.
        #[test]
        fn state_is_that_of_the_last_mark_through_deaths_and_compaction(
            rounds in rounds(), dies in prop::collection::vec(prop::option::of(0..6_usize), 6), compact in any::<bool>(),
        ) {
            let (mut log, mut model) = (Vec::new(), BTreeMap::new());
            let (mut slots, mut number) = (Slots::default(), 0);
            for (round, dies) in rounds.iter().zip(dies) {
                let changes: BTreeMap<_, _> = round.iter().copied().collect();
                let changes: Vec<_> = changes.into_iter().map(|(k, v)| change(&format!("k{k}"), v)).collect();
                let records = slots.encode(number + 1, changes.clone());
                if let Some(ahead) = dies {
                    log.extend(records.into_iter().take(ahead));
                    if compact {
                        log = compacted(&log);
                    }
                    let whole = read(&log);
                    slots = whole.slots;
                    continue;
                }
                log.extend(records);
                number += 1;
                log.push(encode_mark(&mark(number)));
                for StateChange { key, value } in changes {
                    match value {
                        Some(value) => drop(model.insert(key, value)),
                        None => drop(model.remove(&key)),
                    }
                }
                let whole = read(&compacted(&log));
                prop_assert!(whole.broken.is_empty());
                prop_assert!(whole.state == model, "after compaction");
            }
            let whole = read(&log);
            prop_assert!(whole.broken.is_empty());
            prop_assert!(whole.state == model);
        }
    }

    #[test]
    fn a_mark_of_a_program_that_did_not_say_of_how_many_partitions_it_is_reads_as_such() {
        let json = br#"{"checkpoint":3,"step":9,"now":5,"offsets":[1,2,3,-1],"steps_from":7,"version":"0.1"}"#;
        let mut value = vec![LAYOUT];
        value.extend_from_slice(&crc32fast::hash(json).to_le_bytes());
        value.extend_from_slice(json);
        assert_eq!(decode_mark(&value), Ok(mark(3)));
    }

    #[test]
    fn deleted_keys_leave_nothing_behind() {
        let (mut slots, mut log) = (Slots::default(), Vec::new());
        let rounds =
            [vec![change("a", Some(2 * PART_BYTES))], vec![change("a", Some(3))], vec![change("a", None)], vec![]];
        for (number, changes) in (1..).zip(rounds) {
            log.extend(slots.encode(number, changes));
            log.push(encode_mark(&mark(number)));
        }
        let rest: Vec<_> = compacted(&log).into_iter().filter(|(_, value)| value.is_some()).collect();
        assert_eq!(rest.len(), 1, "only the mark");
        assert_eq!(slots, Slots::default());
    }
}
