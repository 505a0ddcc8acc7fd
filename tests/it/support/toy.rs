//! A small deterministic core: numbers the records of each key, so that loss, duplication and lost state all show.
//!
//! For every telemetry record it writes `{key, n, seq}` to the signals topic, where `n` counts the key's records and `seq` is
//! the record's payload. Keys that begin with `move:` are re-keyed first. With ticks on, it also writes numbered alerts by
//! deadline.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};

use runwarden::clock::Wall;
use runwarden::kafka::core::{Core, CoreError, Input, OutRecord, Record, StateChange, StepInput, StepOutput, Topic};
use runwarden::telemetry::tenant_partition;
use serde::{Deserialize, Serialize};

/// Settings of the toy.
#[derive(Debug, Clone, Copy, Default)]
pub struct Toy {
    /// Write an alert every so many µs.
    pub tick: Option<i64>,
    /// Ask for an early commit with every record.
    pub urgent: bool,
    /// Count only, write nothing.
    pub quiet: bool,
    /// Pretend to be of another version.
    pub other_version: bool,
    /// A key's records belong where murmur2 places the key; others are re-keyed. Without it a key belongs where it is found.
    pub placed: bool,
    /// What is decided by, from outside: taken over at the next step that is not a replay.
    pub terms: Option<&'static AtomicU64>,
}

/// What the toy writes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Output {
    pub key: String,
    pub n: u64,
    pub seq: String,
}

struct State {
    toy: Toy,
    partition: i32,
    partitions: i32,
    counts: BTreeMap<String, u64>,
    ticks: u64,
    next_tick: Option<Wall>,
    finished: bool,
    terms: u64,
    taken_over: bool,
    dirty: BTreeSet<String>,
}

impl Toy {
    pub fn core(self, partition: i32, partitions: i32) -> Box<dyn Core> {
        Box::new(State {
            toy: self,
            partition,
            partitions,
            counts: BTreeMap::new(),
            ticks: 0,
            next_tick: None,
            finished: false,
            terms: 0,
            taken_over: false,
            dirty: BTreeSet::new(),
        })
    }
}

fn out(topic: Topic, key: &str, payload: Vec<u8>) -> OutRecord {
    OutRecord {
        topic,
        partition: None,
        key: key.into(),
        payload: Some(payload),
        headers: vec![("ce_id".into(), key.into())],
    }
}

impl State {
    fn count(&mut self, key: &str, record: &Record<'_>, outputs: &mut Vec<OutRecord>) {
        let n = self.counts.entry(key.to_owned()).or_default();
        *n += 1;
        let seq = String::from_utf8_lossy(record.payload.unwrap_or_default()).into_owned();
        let mut payload = serde_json::to_vec(&Output { key: key.to_owned(), n: *n, seq: seq.clone() }).unwrap();
        if seq.starts_with("huge") {
            payload = vec![b'x'; 3 << 20];
        }
        if !self.toy.quiet {
            outputs.push(out(Topic::Signals, key, payload));
        }
        self.dirty.insert(key.to_owned());
    }
}

impl Core for State {
    fn version(&self) -> &str {
        if self.toy.other_version { "toy-2" } else { "toy-1" }
    }

    fn step(&mut self, input: &StepInput<'_>) -> Result<StepOutput, CoreError> {
        let mut outputs = Vec::new();
        let terms = self.toy.terms.map_or(0, |terms| terms.load(Ordering::SeqCst));
        if !input.replaying && terms != self.terms {
            (self.terms, self.taken_over) = (terms, true);
            self.dirty.insert("\u{1}terms".into());
        }
        for batch in &input.inputs {
            for record in &batch.records {
                let key = String::from_utf8_lossy(record.key.unwrap_or_default()).into_owned();
                let owner = tenant_partition(&key, self.partitions);
                if self.toy.placed && owner != self.partition {
                    outputs.push(OutRecord {
                        topic: Topic::Repartition,
                        partition: Some(owner),
                        key: key.into(),
                        payload: record.payload.map(Into::into),
                        headers: vec![("origin".into(), self.partition.to_string().into_bytes())],
                    });
                    continue;
                }
                match (batch.input, key.strip_prefix("move:")) {
                    (Input::Telemetry, Some(real)) => {
                        let partition = (real.len() as i32 + self.partition + 1) % self.partitions;
                        outputs.push(OutRecord {
                            topic: Topic::Repartition,
                            partition: Some(partition),
                            key: real.into(),
                            payload: record.payload.map(Into::into),
                            headers: vec![("origin".into(), self.partition.to_string().into_bytes())],
                        });
                    }
                    (Input::Repartition, _) => {
                        assert!(record.headers.iter().any(|(name, _)| *name == "origin"), "headers must survive");
                        self.count(&key, record, &mut outputs);
                    }
                    _ => self.count(&key, record, &mut outputs),
                }
            }
        }
        if let Some(every) = self.toy.tick {
            if self.next_tick.is_none() {
                self.next_tick = Some(Wall(input.now.0 + every));
                // state from now on: a checkpoint before the first tick without it would let replayed steps tick at other times
                self.dirty.insert("\u{1}ticks".into());
            }
            if self.next_tick.is_some_and(|due| due <= input.now) {
                self.ticks += 1;
                let id = format!("{}/{}", self.partition, self.ticks);
                outputs.push(out(Topic::Alerts, &id, id.clone().into_bytes()));
                self.next_tick = Some(Wall(input.now.0 + every));
                self.dirty.insert("\u{1}ticks".into());
            }
        }
        if input.finish {
            self.finished = true;
            let id = format!("{}/finish", self.partition);
            outputs.push(out(Topic::Runs, &id, id.clone().into_bytes()));
        }
        let mut digest = self.terms;
        for output in &outputs {
            for byte in output.key.iter().chain(output.payload.as_deref().unwrap_or_default()) {
                digest = (digest ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
            }
        }
        let urgent = self.toy.urgent && !outputs.is_empty();
        Ok(StepOutput { urgent, digest, records: outputs, ..StepOutput::default() })
    }

    fn take_changes(&mut self) -> Vec<StateChange> {
        let value = |key: &str| match key {
            "\u{1}ticks" => format!("{} {}", self.ticks, self.next_tick.map_or(0, |t| t.0)),
            "\u{1}terms" => self.terms.to_string(),
            key => self.counts[key].to_string(),
        };
        let changes =
            self.dirty.iter().map(|key| StateChange { key: key.clone().into(), value: Some(value(key).into()) });
        let changes = changes.collect();
        self.dirty.clear();
        self.taken_over = false;
        changes
    }

    fn wants_checkpoint(&self) -> bool {
        self.taken_over
    }

    fn mark_all_dirty(&mut self) {
        self.dirty.extend(self.counts.keys().cloned());
        if self.next_tick.is_some() {
            self.dirty.insert("\u{1}ticks".into());
        }
        if self.terms > 0 {
            self.dirty.insert("\u{1}terms".into());
        }
    }

    fn split(&mut self, partitions: i32) -> Result<Vec<Vec<StateChange>>, CoreError> {
        self.mark_all_dirty();
        let mut shares = vec![Vec::new(); partitions as usize];
        for change in self.take_changes() {
            // ticks are the partition's own
            let key = std::str::from_utf8(&change.key).unwrap();
            let to = if key.starts_with('\u{1}') { self.partition } else { tenant_partition(key, partitions) };
            shares[to as usize].push(change);
        }
        Ok(shares)
    }

    fn join(&mut self, shares: Vec<Vec<StateChange>>) -> Result<(), CoreError> {
        for change in shares.into_iter().flatten() {
            let key = String::from_utf8(change.key.clone()).unwrap();
            assert!(!self.counts.contains_key(&key), "{key} was on two partitions");
            self.restore(&change.key, &change.value.unwrap())?;
        }
        self.mark_all_dirty();
        Ok(())
    }

    fn restore(&mut self, key: &[u8], value: &[u8]) -> Result<(), CoreError> {
        let value = std::str::from_utf8(value).unwrap();
        match std::str::from_utf8(key).unwrap() {
            "\u{1}ticks" => {
                let (ticks, next) = value.split_once(' ').unwrap();
                self.ticks = ticks.parse().unwrap();
                self.next_tick = Some(Wall(next.parse().unwrap()));
            }
            "\u{1}terms" => self.terms = value.parse().unwrap(),
            key => drop(self.counts.insert(key.to_owned(), value.parse().unwrap())),
        }
        Ok(())
    }

    fn restored(&mut self) -> Result<(), CoreError> {
        Ok(())
    }

    fn next_deadline(&self) -> Option<Wall> {
        self.toy.tick.map(|_| self.next_tick.unwrap_or(Wall(0)))
    }
}
