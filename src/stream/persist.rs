//! State out and in: keyed records of what changed, and their way back.
//!
//! Keys: `p` store, pane start, key bytes · `s` store, key bytes · `c` clock name · `n` record counts. A value is
//! `[version][crc32 of the rest][body]`. A state is stored per aggregate fingerprint, so a store survives that one of its
//! queries is added or removed; records of stores that no query has any more are deleted by the next checkpoint. Malformed
//! bytes are an error: everything is decoded before anything is applied, and a panic of the row decoder is caught here.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, new_null_array};
use datafusion::arrow::row::{RowConverter, SortField};

use crate::clock::Micros;

use super::Error;
use super::engine::{Engine, Store};
use super::keys::{KeySet, clock_text};
use super::panes::{PaneStore, pane_key};
use super::pool::{NO_SLOT, Pool};
use super::query::fingerprint;
use super::sessions::{Closed, Content, Item, SessionStore, group_key};
use super::time::NEVER;

/// Layout of the records.
const VERSION: u8 = 1;

/// Why a checkpoint record was refused. The rest of the state stays usable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// Written by another layout version.
    #[error("a state record has layout version {0}, this program reads {VERSION}")]
    Version(u8),
    /// Bytes are missing or changed.
    #[error("a state record is damaged: {0}")]
    Damaged(String),
    /// The checkpoint lacks records.
    #[error("the checkpoint holds {found} of {expected} {what}")]
    Missing {
        /// What is missing.
        what: String,
        /// How many were restored.
        found: u64,
        /// How many were saved.
        expected: u64,
    },
}

fn damaged(what: impl Into<String>) -> RestoreError {
    RestoreError::Damaged(what.into())
}

/// Runs a decoder that may panic on malformed bytes.
fn guarded<T>(what: &str, decode: impl FnOnce() -> Result<T, Error>) -> Result<T, RestoreError> {
    match catch_unwind(AssertUnwindSafe(decode)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(e)) => Err(damaged(format!("{what}: {e}"))),
        Err(_) => Err(damaged(what)),
    }
}

/// Restored so far.
#[derive(Debug, Default)]
pub(super) struct Restoring {
    counts: Option<BTreeMap<u64, u64>>,
    found: BTreeMap<u64, u64>,
    clocks: u64,
    /// Per clock: query fingerprint → blind until.
    known: BTreeMap<u32, BTreeMap<u64, Micros>>,
    /// Records of unknown stores.
    foreign: Vec<Vec<u8>>,
}

struct Out(Vec<u8>);

impl Out {
    fn new() -> Self {
        Self(vec![0; 5])
    }
    fn u8(&mut self, v: u8) {
        self.0.push(v);
    }
    fn u32(&mut self, v: usize) {
        self.0.extend_from_slice(&u32::try_from(v).unwrap_or(u32::MAX).to_be_bytes());
    }
    fn u64(&mut self, v: u64) {
        self.0.extend_from_slice(&v.to_be_bytes());
    }
    fn i64(&mut self, v: i64) {
        self.0.extend_from_slice(&v.to_be_bytes());
    }
    fn bytes(&mut self, v: &[u8]) {
        self.u32(v.len());
        self.0.extend_from_slice(v);
    }
    fn done(mut self) -> Vec<u8> {
        self.0[0] = VERSION;
        let crc = crc32fast::hash(&self.0[5..]);
        self.0[1..5].copy_from_slice(&crc.to_be_bytes());
        self.0
    }
}

struct In<'a>(&'a [u8]);

impl<'a> In<'a> {
    fn open(value: &'a [u8]) -> Result<Self, RestoreError> {
        let (head, body) = value.split_at_checked(5).ok_or_else(|| damaged("too short"))?;
        if crc32fast::hash(body).to_be_bytes() != head[1..5] {
            return Err(damaged("checksum"));
        }
        if head[0] != VERSION {
            return Err(RestoreError::Version(head[0]));
        }
        Ok(Self(body))
    }
    fn take(&mut self, n: usize) -> Result<&'a [u8], RestoreError> {
        let (head, rest) = self.0.split_at_checked(n).ok_or_else(|| damaged("too short"))?;
        self.0 = rest;
        Ok(head)
    }
    fn array<const N: usize>(&mut self) -> Result<[u8; N], RestoreError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }
    fn u8(&mut self) -> Result<u8, RestoreError> {
        Ok(self.array::<1>()?[0])
    }
    fn u32(&mut self) -> Result<usize, RestoreError> {
        Ok(u32::from_be_bytes(self.array()?) as usize)
    }
    fn u64(&mut self) -> Result<u64, RestoreError> {
        Ok(u64::from_be_bytes(self.array()?))
    }
    fn i64(&mut self) -> Result<i64, RestoreError> {
        Ok(i64::from_be_bytes(self.array()?))
    }
    fn bytes(&mut self) -> Result<&'a [u8], RestoreError> {
        let n = self.u32()?;
        self.take(n)
    }
}

/// The states of some slots, per slot and aggregate.
struct Encoded {
    fingerprints: Vec<u64>,
    states: Vec<Vec<Box<[u8]>>>,
}

impl Encoded {
    fn new(pool: &Pool, slots: &[u32]) -> Result<Self, Error> {
        Ok(Self {
            fingerprints: pool.aggregates.iter().map(|a| a.fingerprint).collect(),
            states: pool.aggregates.iter().map(|a| a.states.encode(slots)).collect::<Result<_, _>>()?,
        })
    }

    fn put(&self, out: &mut Out, pool: &Pool, slot: u32, row: usize) {
        let (lo, hi) = pool.evidence(slot);
        out.i64(lo);
        out.i64(hi);
        out.u32(self.fingerprints.len());
        for (a, print) in self.fingerprints.iter().enumerate() {
            out.u64(*print);
            out.u8(u8::from(pool.aggregates[a].states.is_capped(slot)));
            out.bytes(&self.states[a][row]);
        }
    }
}

/// A slot's state, decoded.
struct Decoded {
    evidence: (i64, i64),
    /// Per aggregate of the pool; `None`: not in the record.
    states: Vec<Option<(bool, Vec<ArrayRef>)>>,
}

impl Decoded {
    fn read(input: &mut In<'_>, pool: &Pool) -> Result<Self, RestoreError> {
        let evidence = (input.i64()?, input.i64()?);
        let count = input.u32()?;
        let mut states: Vec<Option<(bool, Vec<ArrayRef>)>> = pool.aggregates.iter().map(|_| None).collect();
        for _ in 0..count {
            let print = input.u64()?;
            let capped = input.u8()? != 0;
            let bytes = input.bytes()?;
            if let Some(a) = pool.aggregates.iter().position(|a| a.fingerprint == print) {
                states[a] =
                    Some((capped, guarded("an aggregate's state", || pool.aggregates[a].states.decode(bytes))?));
            }
        }
        Ok(Self { evidence, states })
    }

    fn apply(&self, pool: &mut Pool, slot: u32) -> Result<(), RestoreError> {
        pool.set_evidence(slot, self.evidence);
        for (a, state) in self.states.iter().enumerate() {
            let done = match state {
                Some((capped, arrays)) => {
                    let states = &mut pool.aggregates[a].states;
                    states.set_capped(slot, *capped);
                    states.scatter(&[slot], arrays)
                }
                None => pool.reset(a, slot),
            };
            done.map_err(|e| damaged(e.to_string()))?;
        }
        Ok(())
    }
}

fn clock_of(keys: &KeySet, clock_column: usize, key: &[u8]) -> Result<String, RestoreError> {
    guarded("a group key", || {
        let columns = keys.decode(key)?;
        Ok(clock_text(&columns[clock_column], 0)?.to_owned())
    })
}

type Changes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

impl PaneStore {
    fn changes(&mut self, keys: &KeySet, out: &mut Changes) -> Result<(), Error> {
        let (slots, tombs) = self.dirty.take();
        out.extend(tombs.into_iter().map(|key| (key, None)));
        let encoded = Encoded::new(&self.pool, &slots)?;
        for (row, slot) in slots.iter().enumerate() {
            let (group, start, changed) = self.owner[*slot as usize];
            let mut value = Out::new();
            value.i64(changed);
            encoded.put(&mut value, &self.pool, *slot, row);
            out.insert(pane_key(self.fingerprint, keys.bytes_of(group), start), Some(value.done()));
        }
        Ok(())
    }
}

impl SessionStore {
    fn argument_prints(&self) -> Vec<u64> {
        self.argument_texts
            .iter()
            .zip(&self.argument_types)
            .map(|(text, ty)| fingerprint([text.as_str(), ty.to_string().as_str()]))
            .collect()
    }

    fn argument_converters(&self) -> Result<Vec<RowConverter>, Error> {
        self.argument_types.iter().map(|ty| Ok(RowConverter::new(vec![SortField::new(ty.clone())])?)).collect()
    }

    fn changes(&mut self, keys: &KeySet, out: &mut Changes) -> Result<(), Error> {
        let (groups, tombs) = self.dirty.take();
        out.extend(tombs.into_iter().map(|key| (key, None)));
        let (mut slots, mut rows): (Vec<u32>, Vec<Arc<[u8]>>) = Default::default();
        for group in &groups {
            for item in self.groups[*group as usize].open.iter().flat_map(|s| &s.items) {
                match &item.content {
                    Content::State(slot) => slots.push(*slot),
                    Content::Old(bytes) => rows.push(Arc::clone(bytes)),
                    Content::Silent | Content::New(_) => {}
                }
            }
        }
        let encoded = Encoded::new(&self.pool, &slots)?;
        let prints = self.argument_prints();
        let columns = self
            .argument_columns(&rows)?
            .iter()
            .zip(self.argument_converters()?)
            .map(|(column, converter)| Ok(converter.convert_columns(std::slice::from_ref(column))?))
            .collect::<Result<Vec<_>, Error>>()?;
        let (mut slot_at, mut row_at) = (0, 0);
        for group in &groups {
            let g = &self.groups[*group as usize];
            let mut value = Out::new();
            value.u32(g.closed.len());
            for c in &g.closed {
                value.i64(c.start);
                value.i64(c.last);
                value.i64(c.end);
                value.u8(u8::from(c.marked));
            }
            value.u32(prints.len());
            prints.iter().for_each(|p| value.u64(*p));
            value.u32(g.open.len());
            for s in &g.open {
                value.i64(s.start);
                value.i64(s.last);
                value.u8(u8::from(s.marked));
                value.u32(s.sealed);
                value.u32(s.items.len());
                for item in &s.items {
                    value.i64(item.time);
                    value.i64(item.position);
                    match &item.content {
                        Content::State(slot) => {
                            value.u8(0);
                            encoded.put(&mut value, &self.pool, *slot, slot_at);
                            slot_at += 1;
                        }
                        Content::Silent | Content::New(_) => value.u8(1),
                        Content::Old(_) => {
                            value.u8(2);
                            for column in &columns {
                                value.bytes(column.row(row_at).as_ref());
                            }
                            row_at += 1;
                        }
                    }
                }
            }
            out.insert(group_key(self.fingerprint, keys.bytes_of(*group)), Some(value.done()));
        }
        Ok(())
    }

    /// Decodes a group's record and takes it back.
    fn restore(
        &mut self,
        body: In<'_>,
        group: impl FnOnce() -> u32,
        keys: &mut KeySet,
        blank: &[ArrayRef],
    ) -> Result<(), RestoreError> {
        let mut input = body;
        let mut closed = Vec::new();
        for _ in 0..input.u32()? {
            closed.push(Closed {
                start: input.i64()?,
                last: input.i64()?,
                end: input.i64()?,
                marked: input.u8()? != 0,
            });
        }
        let mut prints = Vec::new();
        for _ in 0..input.u32()? {
            prints.push(input.u64()?);
        }
        let own = self.argument_prints();
        let places: Vec<Option<usize>> = prints.iter().map(|p| own.iter().position(|o| o == p)).collect();
        let converters = self.argument_converters().map_err(|e| damaged(e.to_string()))?;
        let mut sessions = Vec::new();
        let mut states: Vec<Decoded> = Vec::new();
        for _ in 0..input.u32()? {
            let (start, last, marked, sealed) = (input.i64()?, input.i64()?, input.u8()? != 0, input.u32()?);
            let mut items = Vec::new();
            for _ in 0..input.u32()? {
                let (time, position) = (input.i64()?, input.i64()?);
                let content = match input.u8()? {
                    0 => {
                        states.push(Decoded::read(&mut input, &self.pool)?);
                        Content::State(NO_SLOT)
                    }
                    1 => Content::Silent,
                    2 => {
                        let mut columns: Vec<ArrayRef> =
                            self.argument_types.iter().map(|t| new_null_array(t, 1)).collect();
                        for place in &places {
                            let bytes = input.bytes()?;
                            if let Some(at) = place {
                                columns[*at] = guarded("a pending row", || {
                                    let parser = converters[*at].parser();
                                    Ok(converters[*at].convert_rows([parser.parse(bytes)])?.swap_remove(0))
                                })?;
                            }
                        }
                        let rows = self.argument_rows(&columns).map_err(|e| damaged(e.to_string()))?;
                        Content::Old(rows.first().map(Arc::clone).ok_or_else(|| damaged("a pending row"))?)
                    }
                    _ => return Err(damaged("an item")),
                };
                items.push(Item { time, position, content });
            }
            if sealed > items.len() || start > last {
                return Err(damaged("a session"));
            }
            sessions.push(Self::restored(start, last, marked, items, sealed));
        }
        if !input.0.is_empty() {
            return Err(damaged("trailing bytes"));
        }
        let mut states = states.into_iter();
        for item in sessions.iter_mut().flat_map(|s| &mut s.items) {
            if matches!(item.content, Content::State(_))
                && let Some(state) = states.next()
            {
                let slot = self.pool.alloc();
                state.apply(&mut self.pool, slot)?;
                item.content = Content::State(slot);
            }
        }
        self.retotal(&mut sessions, blank).map_err(|e| damaged(e.to_string()))?;
        let group = group();
        self.restore_group(group, sessions, closed, keys);
        Ok(())
    }
}

impl Engine {
    /// State changed since the last call, as opaque records; `None` deletes one. Ascending by key.
    pub fn take_changes(&mut self) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
        let mut out = Changes::new();
        for key in std::mem::take(&mut self.restoring.foreign) {
            out.insert(key, None);
        }
        for store in &mut self.stores {
            let keys = &self.key_sets[store.key_set()];
            let done = match store {
                Store::Panes(s) => s.changes(keys, &mut out),
                Store::Sessions(s) => s.changes(keys, &mut out),
            };
            debug_assert!(done.is_ok(), "states are encoded by the types they have: {done:?}");
        }
        for (id, clock) in self.clocks.list.iter_mut().enumerate() {
            if !std::mem::take(&mut clock.dirty) || (clock.high == NEVER && clock.watermark == NEVER) {
                continue;
            }
            let mut value = Out::new();
            value.i64(clock.high);
            value.i64(clock.watermark);
            value.i64(clock.finished);
            let mut blind: BTreeMap<u64, Micros> = BTreeMap::new();
            for member in self.stores.iter().flat_map(Store::members) {
                let until = member.blind_until.get(id).copied().unwrap_or(NEVER);
                let entry = blind.entry(member.query.fingerprint()).or_insert(until);
                *entry = (*entry).min(until);
            }
            value.u32(blind.len());
            for (print, until) in blind {
                value.u64(print);
                value.i64(until);
            }
            let mut key = vec![b'c'];
            key.extend_from_slice(clock.name.as_bytes());
            out.insert(key, Some(value.done()));
        }
        if !out.is_empty() {
            let mut value = Out::new();
            let clocks = self.clocks.list.iter().filter(|c| c.high != NEVER || c.watermark != NEVER).count();
            value.u64(clocks as u64);
            value.u32(self.stores.len());
            for store in &self.stores {
                let (print, stored) = match store {
                    Store::Panes(s) => (s.fingerprint, s.dirty.stored_now()),
                    Store::Sessions(s) => (s.fingerprint, s.dirty.stored_now()),
                };
                value.u64(print);
                value.u64(stored);
            }
            out.insert(vec![b'n'], Some(value.done()));
        }
        out.into_iter().collect()
    }

    /// Makes the next [`Engine::take_changes`] a full one.
    pub fn mark_all_dirty(&mut self) {
        for store in &mut self.stores {
            match store {
                Store::Panes(s) => s.live_slots().into_iter().for_each(|slot| s.dirty.touch(slot)),
                Store::Sessions(s) => {
                    for group in 0..s.groups.len() as u32 {
                        if s.groups[group as usize].holds_anything() {
                            s.dirty.touch(group);
                        }
                    }
                }
            }
        }
        self.clocks.list.iter_mut().for_each(|c| c.dirty = true);
    }

    /// Takes back one record, in any order. Only before the first push; [`Engine::finish_restore`] comes after the last.
    ///
    /// # Errors
    /// When the bytes are not what was saved. The record then counts as missing.
    pub fn restore(&mut self, key: &[u8], value: &[u8]) -> Result<(), RestoreError> {
        let mut input = In::open(value)?;
        let (kind, rest) = key.split_first().ok_or_else(|| damaged("an empty key"))?;
        match kind {
            b'c' => {
                let name = std::str::from_utf8(rest).map_err(|_| damaged("a clock name"))?;
                let (high, watermark, finished) = (input.i64()?, input.i64()?, input.i64()?);
                let mut known = BTreeMap::new();
                for _ in 0..input.u32()? {
                    known.insert(input.u64()?, input.i64()?);
                }
                let id = self.clocks.id(name);
                let clock = &mut self.clocks.list[id as usize];
                (clock.high, clock.watermark, clock.finished, clock.dirty) = (high, watermark, finished, false);
                self.restoring.known.insert(id, known);
                self.restoring.clocks += 1;
                Ok(())
            }
            b'n' => {
                let clocks = input.u64()?;
                let mut counts = BTreeMap::from([(0, clocks)]);
                for _ in 0..input.u32()? {
                    counts.insert(input.u64()?, input.u64()?);
                }
                self.restoring.counts = Some(counts);
                Ok(())
            }
            b'p' | b's' => {
                let (print, rest) = rest.split_at_checked(8).ok_or_else(|| damaged("a key"))?;
                let mut bytes = [0; 8];
                bytes.copy_from_slice(print);
                let print = u64::from_be_bytes(bytes);
                let Some(at) = self.stores.iter().position(|s| s.fingerprint() == print) else {
                    self.restoring.foreign.push(key.to_vec());
                    return Ok(());
                };
                self.restore_group(at, rest, input)?;
                *self.restoring.found.entry(print).or_default() += 1;
                Ok(())
            }
            _ => Err(damaged("an unknown kind of record")),
        }
    }

    fn restore_group(&mut self, at: usize, rest: &[u8], mut input: In<'_>) -> Result<(), RestoreError> {
        let set = self.stores[at].key_set();
        let clock_column = self.clock_columns[set];
        let keys = &mut self.key_sets[set];
        match &mut self.stores[at] {
            Store::Panes(store) => {
                let (start, key) = rest.split_at_checked(8).ok_or_else(|| damaged("a key"))?;
                let mut bytes = [0; 8];
                bytes.copy_from_slice(start);
                let start = i64::from_be_bytes(bytes);
                let changed = input.i64()?;
                let state = Decoded::read(&mut input, &store.pool)?;
                if !input.0.is_empty() || store.grid.last_end(start).is_none() || store.grid.pane_of(start) != start {
                    return Err(damaged("a pane"));
                }
                let clock = self.clocks.id(&clock_of(keys, clock_column, key)?);
                let group = keys.id(key, clock);
                let slot = store.restore_pane(group, start, changed, keys);
                store.dirty.stored(slot);
                state.apply(&mut store.pool, slot)
            }
            Store::Sessions(store) => {
                let clock = self.clocks.id(&clock_of(keys, clock_column, rest)?);
                let group = keys.id(rest, clock);
                store.restore(input, || group, keys, &self.blank)
            }
        }
    }

    /// After the last [`Engine::restore`]: queries that the checkpoint does not know start empty and say so.
    ///
    /// # Errors
    /// When records are missing. The engine is usable; what is missing is lost, and every open window says it is incomplete.
    pub fn finish_restore(&mut self) -> Result<(), RestoreError> {
        let mut restoring = std::mem::take(&mut self.restoring);
        self.restoring.foreign = std::mem::take(&mut restoring.foreign);
        let missing = self.missing(&restoring);
        let clocks = self.clocks.list.len();
        for store in &mut self.stores {
            let gap = match store {
                Store::Panes(_) => 0,
                Store::Sessions(s) => s.gap(),
            };
            let prints: Vec<u64> = store.members().iter().map(|m| m.query.fingerprint()).collect();
            for (i, print) in prints.iter().enumerate() {
                let mut blind = vec![NEVER; clocks];
                for (id, clock) in self.clocks.list.iter_mut().enumerate() {
                    let known = restoring.known.get(&(id as u32));
                    // another query kept the sessions' bounds: then their starts are known
                    let bounds = known.is_some_and(|k| prints.iter().any(|p| k.contains_key(p)));
                    let since = clock.high.saturating_add(if bounds { 0 } else { gap });
                    blind[id] = match known.and_then(|k| k.get(print)) {
                        Some(until) if missing.is_none() => *until,
                        Some(until) => (*until).max(since),
                        None => since,
                    };
                    clock.dirty |= known.is_none_or(|k| !k.contains_key(print)) && clock.high != NEVER;
                }
                store.members_mut()[i].blind_until = blind;
            }
            let keys = &self.key_sets[store.key_set()];
            if let Store::Panes(s) = store {
                let list = &self.clocks.list;
                s.finish_restore(keys, |clock, size| list[clock as usize].closed_until(size));
            }
        }
        missing.map_or(Ok(()), Err)
    }

    fn missing(&self, restoring: &Restoring) -> Option<RestoreError> {
        let missing = |what: String, found: u64, expected: u64| Some(RestoreError::Missing { what, found, expected });
        let anything = restoring.clocks > 0 || !restoring.found.is_empty();
        let Some(counts) = &restoring.counts else {
            return if anything { missing("count records".into(), 0, 1) } else { None };
        };
        for (print, expected) in counts {
            let found = if *print == 0 { restoring.clocks } else { restoring.found.get(print).copied().unwrap_or(0) };
            let known = *print == 0 || self.stores.iter().any(|s| s.fingerprint() == *print);
            if known && found != *expected {
                let what = if *print == 0 { "clocks".to_owned() } else { format!("groups of store {print:016x}") };
                return missing(what, found, *expected);
            }
        }
        None
    }
}
