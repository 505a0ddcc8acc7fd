//! State out and in: keyed records of what changed, and their way back.
//!
//! Keys: `p` store, pane start, key bytes · `s` store, key bytes · `l` store: what its records hold · `c` clock name · `n`
//! record counts · `k` live until, chunk, clock name: hashes of live keys. A value is `[version][crc32 of body and key][body]`. States are told apart by aggregate fingerprint, so a store
//! survives that one of its queries is added or removed; records of stores that no query has any more are deleted by the next checkpoint. Malformed
//! bytes are an error: everything is decoded before anything is applied, and a panic of the row decoder is caught here.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, new_null_array};

use crate::clock::Micros;

use super::Error;
use super::compact::{put_varint, skip, unzigzag, varint, zigzag};
use super::engine::{Engine, Store};
use super::keys::{KeySet, clock_text};
use super::panes::{PaneStore, pane_key};
use super::pool::{NO_SLOT, Pool};
use super::sessions::{Closed, Content, Item, SessionStore, group_key};
use super::split::count_record;
use super::time::NEVER;
use super::window::FAR;

/// Layout of the records.
const VERSION: u8 = 2;

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

pub(super) fn damaged(what: impl Into<String>) -> RestoreError {
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
    layouts: BTreeMap<(usize, u32), Layout>,
    /// (store, layout, rest of the key, body) of records in another layout than the present one.
    waiting: Vec<(usize, u32, Vec<u8>, Vec<u8>)>,
}

pub(super) struct Out(Vec<u8>);

impl Out {
    pub(super) fn new() -> Self {
        Self(vec![0; 5])
    }
    fn u8(&mut self, v: u8) {
        self.0.push(v);
    }
    fn u32(&mut self, v: u32) {
        self.0.extend_from_slice(&v.to_be_bytes());
    }
    pub(super) fn u64(&mut self, v: u64) {
        self.0.extend_from_slice(&v.to_be_bytes());
    }
    pub(super) fn count(&mut self, v: usize) {
        put_varint(&mut self.0, v as u64);
    }
    fn int(&mut self, v: i64) {
        put_varint(&mut self.0, zigzag(v));
    }
    /// The value of the record named `key`.
    pub(super) fn done(mut self, key: &[u8]) -> Vec<u8> {
        self.0[0] = VERSION;
        let crc = checksum(key, &self.0[5..]);
        self.0[1..5].copy_from_slice(&crc);
        self.0
    }
}

/// Over the name too: it says which group and pane the state is of.
fn checksum(key: &[u8], body: &[u8]) -> [u8; 4] {
    let mut crc = crc32fast::Hasher::new();
    crc.update(body);
    crc.update(key);
    crc.finalize().to_be_bytes()
}

/// Whether window arithmetic over a restored time cannot overflow.
fn near(time: Micros) -> Result<Micros, RestoreError> {
    if time.unsigned_abs() < FAR.unsigned_abs() * 2 { Ok(time) } else { Err(damaged("a time")) }
}

struct In<'a>(&'a [u8]);

impl<'a> In<'a> {
    fn open(key: &[u8], value: &'a [u8]) -> Result<Self, RestoreError> {
        let (head, body) = value.split_at_checked(5).ok_or_else(|| damaged("too short"))?;
        if head[0] != VERSION {
            return Err(RestoreError::Version(head[0]));
        }
        if checksum(key, body) != head[1..5] {
            return Err(damaged("checksum"));
        }
        Ok(Self(body))
    }
    fn array<const N: usize>(&mut self) -> Result<[u8; N], RestoreError> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or_else(|| damaged("too short"))?;
        self.0 = rest;
        Ok(*head)
    }
    fn u8(&mut self) -> Result<u8, RestoreError> {
        Ok(self.array::<1>()?[0])
    }
    fn u32(&mut self) -> Result<u32, RestoreError> {
        Ok(u32::from_be_bytes(self.array()?))
    }
    fn u64(&mut self) -> Result<u64, RestoreError> {
        Ok(u64::from_be_bytes(self.array()?))
    }
    fn count(&mut self) -> Result<usize, RestoreError> {
        varint(&mut self.0).and_then(|v| usize::try_from(v).ok()).ok_or_else(|| damaged("a count"))
    }
    fn int(&mut self) -> Result<i64, RestoreError> {
        varint(&mut self.0).map(unzigzag).ok_or_else(|| damaged("a number"))
    }
}

/// What the records of a store hold, in order: aggregates and argument columns by fingerprint. A record names it by its
/// hash; the list itself is one record of the store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Layout {
    aggregates: Vec<u64>,
    /// With the form of its values.
    arguments: Vec<(u64, u8)>,
}

impl Layout {
    pub(super) fn hash(&self) -> u32 {
        crc32fast::hash(&self.body().0)
    }

    fn body(&self) -> Out {
        let mut out = Out::new();
        out.count(self.aggregates.len());
        self.aggregates.iter().for_each(|print| out.u64(*print));
        out.count(self.arguments.len());
        for (print, form) in &self.arguments {
            out.u64(*print);
            out.u8(*form);
        }
        out
    }

    fn read(input: &mut In<'_>) -> Result<Self, RestoreError> {
        let mut layout = Self::default();
        for _ in 0..input.count()? {
            layout.aggregates.push(input.u64()?);
        }
        for _ in 0..input.count()? {
            layout.arguments.push((input.u64()?, input.u8()?));
        }
        Ok(layout)
    }
}

impl Store {
    pub(super) fn layout(&self) -> Layout {
        match self {
            Self::Panes(s) => Layout { aggregates: prints(&s.pool), arguments: Vec::new() },
            Self::Sessions(s) => Layout { aggregates: prints(&s.pool), arguments: s.argument_prints.clone() },
        }
    }

    fn layout_key(&self) -> Vec<u8> {
        let mut key = vec![b'l'];
        key.extend_from_slice(&self.fingerprint().to_be_bytes());
        key
    }
}

fn prints(pool: &Pool) -> Vec<u64> {
    pool.aggregates.iter().map(|a| a.fingerprint).collect()
}

/// The states of some slots as bytes: evidence, caps, every aggregate.
fn encode_slots(pool: &Pool, slots: &[u32]) -> Result<Vec<Vec<u8>>, Error> {
    let mut out: Vec<Vec<u8>> = vec![Vec::new(); slots.len()];
    for (slot, out) in slots.iter().zip(&mut out) {
        let (lo, hi) = pool.evidence(*slot);
        put_varint(out, zigzag(lo));
        put_varint(out, zigzag(hi.wrapping_sub(lo)));
        let capped: Vec<usize> =
            (0..pool.aggregates.len()).filter(|a| pool.aggregates[*a].states.is_capped(*slot)).collect();
        put_varint(out, capped.len() as u64);
        capped.into_iter().for_each(|a| put_varint(out, a as u64));
    }
    for aggregate in &pool.aggregates {
        let mut states: Vec<Vec<u8>> = vec![Vec::new(); slots.len()];
        aggregate.states.encode(slots, &mut states)?;
        for (state, out) in states.iter().zip(&mut out) {
            put_varint(out, state.len() as u64);
            out.extend_from_slice(state);
        }
    }
    Ok(out)
}

/// A slot's state, decoded.
struct Decoded {
    evidence: (i64, i64),
    /// Per aggregate of the pool; `None`: not in the record.
    states: Vec<Option<(bool, Vec<ArrayRef>)>>,
}

impl Decoded {
    fn read(input: &mut In<'_>, layout: &Layout, pool: &Pool) -> Result<Self, RestoreError> {
        let lo = input.int()?;
        let evidence = (lo, lo.wrapping_add(input.int()?));
        let mut capped = Vec::new();
        for _ in 0..input.count()? {
            capped.push(input.count()?);
        }
        let mut states: Vec<Option<(bool, Vec<ArrayRef>)>> = pool.aggregates.iter().map(|_| None).collect();
        for (i, print) in layout.aggregates.iter().enumerate() {
            let n = input.count()?;
            let (mut bytes, rest) = input.0.split_at_checked(n).ok_or_else(|| damaged("too short"))?;
            input.0 = rest;
            if let Some(a) = pool.aggregates.iter().position(|a| a.fingerprint == *print) {
                let arrays = guarded("an aggregate's state", || Ok(pool.aggregates[a].states.decode(&mut bytes)))?;
                let arrays = arrays.filter(|_| bytes.is_empty()).ok_or_else(|| damaged("an aggregate's state"))?;
                states[a] = Some((capped.contains(&i), arrays));
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

pub(super) fn clock_of(keys: &KeySet, clock_column: usize, key: &[u8]) -> Result<String, RestoreError> {
    guarded("a group key", || {
        let columns = keys.decode(key)?;
        Ok(clock_text(&columns[clock_column], 0)?.to_owned())
    })
}

type Changes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

impl PaneStore {
    fn changes(&mut self, keys: &KeySet, layout: u32, out: &mut Changes) -> Result<(), Error> {
        let (slots, tombs) = self.dirty.take();
        out.extend(tombs.into_iter().map(|key| (key, None)));
        for (slot, state) in slots.iter().zip(encode_slots(&self.pool, &slots)?) {
            let (group, start, changed) = self.owner[*slot as usize];
            let mut value = Out::new();
            value.u32(layout);
            value.int(changed.wrapping_sub(start));
            value.0.extend_from_slice(&state);
            let key = pane_key(self.fingerprint, keys.bytes_of(group), start);
            let value = value.done(&key);
            out.insert(key, Some(value));
        }
        Ok(())
    }
}

impl SessionStore {
    fn changes(&mut self, keys: &KeySet, layout: u32, out: &mut Changes) -> Result<(), Error> {
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
        let mut states = encode_slots(&self.pool, &slots)?.into_iter();
        let mut arguments: Vec<Vec<u8>> = vec![Vec::new(); rows.len()];
        for (column, codec) in self.argument_columns(&rows)?.iter().zip(&self.codecs) {
            codec.put(column, &mut arguments)?;
        }
        let mut arguments = arguments.into_iter();
        for group in &groups {
            let g = &self.groups[*group as usize];
            let mut value = Out::new();
            value.u32(layout);
            value.count(usize::from(g.closed.is_some()));
            if let Some(c) = &g.closed {
                value.int(c.start);
                value.int(c.last.wrapping_sub(c.start));
                value.int(c.end.wrapping_sub(c.last));
                value.u8(u8::from(c.marked));
            }
            value.count(g.open.len());
            for s in &g.open {
                value.int(s.start);
                value.int(s.last.wrapping_sub(s.start));
                value.u8(u8::from(s.marked));
                value.count(s.sealed);
                value.count(s.items.len());
                let (mut time, mut position) = (s.start, 0i64);
                for item in &s.items {
                    value.u8(match &item.content {
                        Content::State(_) => 0,
                        Content::Silent | Content::New(_) => 1,
                        Content::Old(_) => 2,
                    });
                    value.int(item.time.wrapping_sub(time));
                    value.int(item.position.wrapping_sub(position));
                    (time, position) = (item.time, item.position);
                    match &item.content {
                        Content::State(_) => value.0.extend(states.next().unwrap_or_default()),
                        Content::Old(_) => value.0.extend(arguments.next().unwrap_or_default()),
                        Content::Silent | Content::New(_) => {}
                    }
                }
            }
            let key = group_key(self.fingerprint, keys.bytes_of(*group));
            let value = value.done(&key);
            out.insert(key, Some(value));
        }
        Ok(())
    }

    /// Decodes a group's record and takes it back.
    fn restore(
        &mut self,
        mut input: In<'_>,
        layout: &Layout,
        group: impl FnOnce() -> u32,
        keys: &mut KeySet,
        blank: &[ArrayRef],
    ) -> Result<(), RestoreError> {
        let mut closed: Option<Closed> = None;
        for _ in 0..input.count()? {
            let start = near(input.int()?)?;
            let last = near(start.wrapping_add(input.int()?))?;
            let end = near(last.wrapping_add(input.int()?))?;
            closed = Some(Closed { start, last, end, marked: input.u8()? != 0 }.and(closed));
        }
        let own = &self.argument_prints;
        let places: Vec<(Option<usize>, u8)> =
            layout.arguments.iter().map(|(print, form)| (own.iter().position(|o| o.0 == *print), *form)).collect();
        let mut sessions = Vec::new();
        let mut states: Vec<Decoded> = Vec::new();
        for _ in 0..input.count()? {
            let start = near(input.int()?)?;
            let last = near(start.wrapping_add(input.int()?))?;
            let (marked, sealed) = (input.u8()? != 0, input.count()?);
            let mut items = Vec::new();
            let (mut time, mut position) = (start, 0i64);
            for _ in 0..input.count()? {
                let kind = input.u8()?;
                time = near(time.wrapping_add(input.int()?))?;
                position = position.wrapping_add(input.int()?);
                let content = match kind {
                    0 => {
                        states.push(Decoded::read(&mut input, layout, &self.pool)?);
                        Content::State(NO_SLOT)
                    }
                    1 => Content::Silent,
                    2 => Content::Old(self.restore_row(&mut input, &places)?),
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
        guarded("a session", || self.retotal(&mut sessions, blank))?;
        let group = group();
        self.restore_group(group, sessions, closed, keys);
        Ok(())
    }

    fn restore_row(&self, input: &mut In<'_>, places: &[(Option<usize>, u8)]) -> Result<Arc<[u8]>, RestoreError> {
        let mut columns: Vec<ArrayRef> = self.argument_types.iter().map(|t| new_null_array(t, 1)).collect();
        for (place, form) in places {
            match place {
                Some(at) => {
                    let value = guarded("a pending row", || Ok(self.codecs[*at].get(&mut input.0)))?;
                    columns[*at] = value.ok_or_else(|| damaged("a pending row"))?;
                }
                None => skip(*form, &mut input.0).ok_or_else(|| damaged("a pending row"))?,
            }
        }
        let rows = self.argument_rows(&columns).map_err(|e| damaged(e.to_string()))?;
        rows.first().map(Arc::clone).ok_or_else(|| damaged("a pending row"))
    }
}

impl Engine {
    /// State changed since the last call, as opaque records; `None` deletes one. Ascending by key.
    pub fn take_changes(&mut self) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
        let mut out = Changes::new();
        for key in std::mem::take(&mut self.restoring.foreign) {
            out.insert(key, None);
        }
        for ((store, known), (layout, hash)) in self.stores.iter_mut().zip(&mut self.layouts_saved).zip(&self.layouts) {
            if !std::mem::replace(known, true) {
                let key = store.layout_key();
                let value = layout.body().done(&key);
                out.insert(key, Some(value));
            }
            let keys = &self.key_sets[store.key_set()];
            let done = match store {
                Store::Panes(s) => s.changes(keys, *hash, &mut out),
                Store::Sessions(s) => s.changes(keys, *hash, &mut out),
            };
            debug_assert!(done.is_ok(), "states are encoded by the types they have: {done:?}");
        }
        for (id, clock) in self.clocks.list.iter_mut().enumerate() {
            if !std::mem::take(&mut clock.dirty) || (clock.high == NEVER && clock.watermark == NEVER) {
                continue;
            }
            let mut value = Out::new();
            value.int(clock.high);
            value.int(clock.watermark);
            value.int(clock.finished);
            let mut blind: BTreeMap<u64, Micros> = BTreeMap::new();
            for member in self.stores.iter().flat_map(Store::members) {
                let until = member.blind_until.get(id).copied().unwrap_or(NEVER);
                let entry = blind.entry(member.query.fingerprint()).or_insert(until);
                *entry = (*entry).min(until);
            }
            value.count(blind.len());
            for (print, until) in blind {
                value.u64(print);
                value.int(until);
            }
            if let Some((over, refused_until, episodes)) = self.budget.standing(id as u32) {
                value.u8(u8::from(over));
                value.int(refused_until);
                value.u64(episodes);
            }
            let mut key = vec![b'c'];
            key.extend_from_slice(clock.name.as_bytes());
            let value = value.done(&key);
            out.insert(key, Some(value));
        }
        for (clock, until, chunk, hashes) in self.budget.take_changes() {
            let mut key = vec![b'k'];
            key.extend_from_slice(&until.to_be_bytes());
            key.extend_from_slice(&chunk.to_be_bytes());
            key.extend_from_slice(self.clocks.list[clock as usize].name.as_bytes());
            let value = (!hashes.is_empty()).then(|| {
                let mut value = Out::new();
                hashes.iter().for_each(|hash| value.u64(*hash));
                value.done(&key)
            });
            out.insert(key, value);
        }
        if !out.is_empty() {
            let clocks = self.clocks.list.iter().filter(|c| c.high != NEVER || c.watermark != NEVER).count();
            let stored = self.stores.iter().map(|store| match store {
                Store::Panes(s) => (s.fingerprint, s.dirty.stored_now()),
                Store::Sessions(s) => (s.fingerprint, s.dirty.stored_now()),
            });
            let counts = count_record(clocks as u64, &stored.collect::<Vec<_>>());
            out.insert(vec![b'n'], Some(counts));
        }
        out.into_iter().collect()
    }

    /// Makes the next [`Engine::take_changes`] a full one.
    pub fn mark_all_dirty(&mut self) {
        for at in 0..self.stores.len() {
            self.touch_all(at);
            self.layouts_saved[at] = false;
        }
        self.clocks.list.iter_mut().for_each(|c| c.dirty = true);
        self.budget.mark_all_dirty();
    }

    fn touch_all(&mut self, at: usize) {
        match &mut self.stores[at] {
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

    /// Takes back one record, in any order. Only before the first push; [`Engine::finish_restore`] comes after the last.
    ///
    /// # Errors
    /// When the bytes are not what was saved. The record then counts as missing.
    pub fn restore(&mut self, key: &[u8], value: &[u8]) -> Result<(), RestoreError> {
        let mut input = In::open(key, value)?;
        let (kind, rest) = key.split_first().ok_or_else(|| damaged("an empty key"))?;
        match kind {
            b'c' => {
                let name = std::str::from_utf8(rest).map_err(|_| damaged("a clock name"))?;
                let (high, watermark, finished) = (input.int()?, input.int()?, input.int()?);
                let mut known = BTreeMap::new();
                for _ in 0..input.count()? {
                    known.insert(input.u64()?, input.int()?);
                }
                let standing = match input.0 {
                    [] => None,
                    _ => Some((input.u8()? != 0, input.int()?, input.u64()?)),
                };
                let id = self.clocks.id(name);
                if let Some(standing) = standing {
                    self.budget.restore_standing(id, standing);
                }
                let clock = &mut self.clocks.list[id as usize];
                (clock.high, clock.watermark, clock.finished, clock.dirty) = (high, watermark, finished, false);
                self.restoring.known.insert(id, known);
                self.restoring.clocks += 1;
                Ok(())
            }
            b'k' => {
                let (until, rest) = rest.split_first_chunk::<8>().ok_or_else(|| damaged("a key"))?;
                let (chunk, name) = rest.split_first_chunk::<4>().ok_or_else(|| damaged("a key"))?;
                let name = std::str::from_utf8(name).map_err(|_| damaged("a clock name"))?;
                let (hashes, []) = input.0.as_chunks::<8>() else { return Err(damaged("hashes of keys")) };
                let hashes = hashes.iter().map(|h| u64::from_be_bytes(*h)).collect();
                let clock = self.clocks.id(name);
                self.budget.restore(clock, i64::from_be_bytes(*until), u32::from_be_bytes(*chunk), hashes);
                Ok(())
            }
            b'n' => {
                let mut counts = vec![(0, input.u64()?)];
                for _ in 0..input.count()? {
                    counts.push((input.u64()?, input.u64()?));
                }
                // shares of a state that was split each have theirs
                let sums = self.restoring.counts.get_or_insert_default();
                counts.into_iter().for_each(|(print, n)| *sums.entry(print).or_default() += n);
                Ok(())
            }
            b'p' | b's' | b'l' => {
                let (print, rest) = rest.split_first_chunk::<8>().ok_or_else(|| damaged("a key"))?;
                let print = u64::from_be_bytes(*print);
                let Some(at) = self.stores.iter().position(|s| s.fingerprint() == print) else {
                    self.restoring.foreign.push(key.to_vec());
                    return Ok(());
                };
                if *kind == b'l' {
                    let layout = Layout::read(&mut input)?;
                    self.layouts_saved[at] = layout == self.layouts[at].0;
                    self.restoring.layouts.insert((at, layout.hash()), layout);
                    return Ok(());
                }
                let hash = input.u32()?;
                if hash == self.layouts[at].1 {
                    let layout = std::mem::take(&mut self.layouts[at].0);
                    let done = self.restore_group(at, rest, input, &layout);
                    self.layouts[at].0 = layout;
                    done?;
                } else {
                    // of a time with other queries: its layout may come later
                    self.restoring.waiting.push((at, hash, rest.to_vec(), input.0.to_vec()));
                }
                *self.restoring.found.entry(print).or_default() += 1;
                Ok(())
            }
            _ => Err(damaged("an unknown kind of record")),
        }
    }

    fn restore_group(
        &mut self,
        at: usize,
        rest: &[u8],
        mut input: In<'_>,
        layout: &Layout,
    ) -> Result<(), RestoreError> {
        let set = self.stores[at].key_set();
        let clock_column = self.clock_columns[set];
        let keys = &mut self.key_sets[set];
        match &mut self.stores[at] {
            Store::Panes(store) => {
                let (start, key) = rest.split_first_chunk::<8>().ok_or_else(|| damaged("a key"))?;
                let start = near(i64::from_be_bytes(*start))?;
                let changed = near(start.wrapping_add(input.int()?))?;
                let state = Decoded::read(&mut input, layout, &store.pool)?;
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
                store.restore(input, layout, || group, keys, &self.blank)
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
        self.budget.restored();
        let mut missing = self.missing(&restoring);
        for (at, hash, key, body) in std::mem::take(&mut restoring.waiting) {
            let done = match restoring.layouts.get(&(at, hash)) {
                Some(layout) => {
                    // it is saved anew in the present layout
                    let layout = layout.clone();
                    self.restore_group(at, &key, In(&body), &layout)
                }
                None => Err(damaged("the layout of a record is not in the checkpoint")),
            };
            missing = missing.or(done.err());
        }
        for at in restoring.layouts.keys().map(|(at, _)| *at).filter(|at| !self.layouts_saved[*at]).collect::<Vec<_>>()
        {
            self.touch_all(at);
        }
        // a query that is gone must be unknown when it comes back: it missed what came in between
        let present: Vec<u64> = self.stores.iter().flat_map(Store::members).map(|m| m.query.fingerprint()).collect();
        for (id, known) in &restoring.known {
            self.clocks.list[*id as usize].dirty |= known.keys().any(|print| !present.contains(print));
        }
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
