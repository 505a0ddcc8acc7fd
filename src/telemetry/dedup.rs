//! Which events were counted before (T4): 8-byte hashes of `event_id`, per tenant, over an event-time horizon.
//!
//! An id is remembered from its first event until the tenant's watermark is a horizon past it: past the event's time, or past
//! the watermark at that moment if that was later, so that a late event sent twice counts once too. Ids are kept in buckets of
//! a sixteenth of the horizon, so one may be remembered that much longer, never shorter. Asking is per record and depends on
//! the records before only, not on how they were cut into batches.
//!
//! Bounds: `max_ids` over all tenants. Beyond it every tenant with more than its share forgets its oldest bucket: the horizon
//! of the busy shortens, counted, and that of the quiet does not. One id costs 9 bytes (and the table's slack).
//!
//! State leaves in chunks, one key per (tenant, bucket, chunk): each id is written once, each expired chunk deleted once.

use std::collections::BTreeMap;

use hashbrown::HashTable;
use rustc_hash::FxHashMap;

use super::murmur::murmur64;
use crate::clock::Micros;

/// Buckets in a horizon.
const BUCKETS: i64 = 16;
/// Buckets a tenant can have at once: as many as a byte tells apart.
const RING: i64 = 256;
/// Ids in one chunk: at most 64 KiB.
const CHUNK: usize = 8_192;
/// Layout of a chunk: this byte, CRC-32 of the rest, bucket width, hashes; all little-endian.
const VERSION: u8 = 1;
const HEADER: usize = 13;

/// A checkpointed key and its value; `None` deletes it.
pub type Change = (Vec<u8>, Option<Vec<u8>>);

/// Why a checkpointed chunk is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// Written by another version.
    #[error("a de-duplication chunk has version {0}, this is {VERSION}")]
    Version(u8),
    /// Not what was written.
    #[error("a de-duplication chunk is damaged")]
    Damaged,
}

/// The ids of one partition.
#[derive(Debug)]
pub struct Dedup {
    horizon: Micros,
    width: Micros,
    max_ids: usize,
    tenants: FxHashMap<Box<str>, Tenant>,
    ids: usize,
    forgotten: u64,
    /// Keys of chunks to delete.
    gone: Vec<Vec<u8>>,
    everything: bool,
}

#[derive(Debug, Default)]
struct Tenant {
    table: HashTable<Slot>,
    buckets: BTreeMap<i64, Bucket>,
}

#[derive(Debug, Default)]
struct Bucket {
    ids: usize,
    /// Chunks written so far.
    chunks: u32,
    /// Ids not written yet.
    fresh: Vec<u64>,
}

/// A hash and its bucket modulo [`RING`], unpadded.
#[derive(Debug, Clone, Copy)]
struct Slot([u8; 9]);

impl Slot {
    fn new(hash: u64, bucket: i64) -> Self {
        let mut bytes = [0; 9];
        bytes[..8].copy_from_slice(&hash.to_le_bytes());
        bytes[8] = ring(bucket);
        Self(bytes)
    }

    fn hash(&self) -> u64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.0[..8]);
        u64::from_le_bytes(bytes)
    }

    const fn ring(&self) -> u8 {
        self.0[8]
    }
}

fn ring(bucket: i64) -> u8 {
    bucket.rem_euclid(RING).to_le_bytes()[0]
}

impl Tenant {
    /// Adds an id; false if it is there.
    fn insert(&mut self, hash: u64, bucket: i64) -> bool {
        if self.table.find(hash, |slot| slot.hash() == hash).is_some() {
            return false;
        }
        self.table.insert_unique(hash, Slot::new(hash, bucket), Slot::hash);
        self.buckets.entry(bucket).or_default().ids += 1;
        true
    }

    fn ids(&self) -> usize {
        self.table.len()
    }

    /// Takes the buckets before `floor` out.
    fn drop_before(&mut self, floor: i64) -> BTreeMap<i64, Bucket> {
        match self.buckets.first_key_value() {
            Some((first, _)) if *first < floor => {}
            _ => return BTreeMap::new(),
        }
        let kept = self.buckets.split_off(&floor);
        let dropped = std::mem::replace(&mut self.buckets, kept);
        if self.buckets.is_empty() {
            self.table = HashTable::new();
            return dropped;
        }
        let mut dead = [false; 256];
        for bucket in dropped.keys() {
            dead[usize::from(ring(*bucket))] = true;
        }
        self.table.retain(|slot| !dead[usize::from(slot.ring())]);
        if self.table.capacity() > 64 && self.table.len() < self.table.capacity() / 4 {
            self.table.shrink_to(self.table.len() * 2, Slot::hash);
        }
        dropped
    }
}

impl Dedup {
    /// Remembers ids for `horizon` µs of event time (0: never), at most `max_ids` of them.
    pub fn new(horizon: Micros, max_ids: usize) -> Self {
        Self {
            horizon,
            width: (horizon / BUCKETS).max(1),
            max_ids,
            tenants: FxHashMap::default(),
            ids: 0,
            forgotten: 0,
            gone: Vec::new(),
            everything: true,
        }
    }

    /// Whether this event was seen within the horizon; if not, it is now. `watermark` is the tenant's at this record
    /// (`Micros::MIN`: none yet) and must not go back.
    pub fn seen(&mut self, tenant: &str, event_id: &str, event_time: Micros, watermark: Micros) -> bool {
        if self.horizon <= 0 || self.max_ids == 0 {
            return false;
        }
        self.expire(tenant, watermark);
        let hash = murmur64(event_id.as_bytes());
        let bucket = event_time.max(watermark).div_euclid(self.width);
        if let Some(state) = self.tenants.get(tenant)
            && state.table.find(hash, |slot| slot.hash() == hash).is_some()
        {
            return true;
        }
        if !self.admit(tenant, bucket) {
            self.forgotten += 1;
            return false;
        }
        if let Some(state) = self.tenants.get_mut(tenant)
            && state.insert(hash, bucket)
        {
            self.ids += 1;
            if let Some(bucket) = state.buckets.get_mut(&bucket) {
                bucket.fresh.push(hash);
            }
        }
        while self.ids > self.max_ids {
            self.shorten();
        }
        false
    }

    /// Forgets what a tenant's watermark has left a horizon behind. [`Dedup::seen`] does so for its tenant; for a tenant that
    /// fell silent the caller does, wherever its watermark moves.
    pub fn expire(&mut self, tenant: &str, watermark: Micros) {
        let floor = watermark.saturating_sub(self.horizon).div_euclid(self.width);
        let Some(state) = self.tenants.get_mut(tenant) else { return };
        let dropped = state.drop_before(floor);
        if state.buckets.is_empty() {
            self.tenants.remove(tenant);
        }
        self.discard(tenant, dropped);
    }

    /// Ids remembered.
    pub const fn len(&self) -> usize {
        self.ids
    }

    /// Whether none is remembered.
    pub const fn is_empty(&self) -> bool {
        self.ids == 0
    }

    /// Ids forgotten before their time because of the bounds, since the start.
    pub const fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// Makes room for a bucket within the ring of its tenant, which it creates; false if the bucket is too old for it.
    fn admit(&mut self, tenant: &str, bucket: i64) -> bool {
        let Some(state) = self.tenants.get_mut(tenant) else {
            self.tenants.insert(tenant.into(), Tenant::default());
            return true;
        };
        let Some((newest, _)) = state.buckets.last_key_value() else { return true };
        let newest = *newest;
        if bucket > newest {
            let dropped = state.drop_before(bucket.saturating_sub(RING - 1));
            self.forgotten += self.discard(tenant, dropped);
        }
        bucket > newest.saturating_sub(RING)
    }

    /// Accounts for buckets taken out; returns how many ids they held.
    fn discard(&mut self, tenant: &str, dropped: BTreeMap<i64, Bucket>) -> u64 {
        let mut ids = 0;
        for (index, bucket) in dropped {
            ids += bucket.ids;
            self.gone.extend((0..bucket.chunks).map(|chunk| key(tenant, index, chunk)));
        }
        self.ids -= ids;
        ids as u64
    }

    /// Every tenant above its share forgets its oldest bucket. At least one is, so at least one id goes.
    fn shorten(&mut self) {
        let share = self.max_ids / self.tenants.len().max(1);
        let mut busy: Vec<Box<str>> =
            self.tenants.iter().filter(|(_, state)| state.ids() > share).map(|(name, _)| name.clone()).collect();
        busy.sort_unstable();
        for tenant in busy {
            let Some(state) = self.tenants.get_mut(&tenant) else { continue };
            let Some((oldest, _)) = state.buckets.first_key_value() else { continue };
            let dropped = state.drop_before(oldest.saturating_add(1));
            if state.buckets.is_empty() {
                self.tenants.remove(&tenant);
            }
            self.forgotten += self.discard(&tenant, dropped);
        }
    }

    /// What changed since the last call: new ids, and chunks that expired. Everything, once, for a new value and after
    /// [`Dedup::mark_all_dirty`]. Keys are unique and sorted.
    pub fn take_changes(&mut self) -> Vec<Change> {
        let mut changes: BTreeMap<Vec<u8>, Option<Vec<u8>>> = BTreeMap::new();
        for key in self.gone.drain(..) {
            changes.insert(key, None);
        }
        let everything = std::mem::take(&mut self.everything);
        for (tenant, state) in &mut self.tenants {
            if everything {
                state.gather(tenant, &mut changes);
            }
            for (index, bucket) in &mut state.buckets {
                for ids in bucket.fresh.chunks(CHUNK) {
                    changes.insert(key(tenant, *index, bucket.chunks), Some(chunk(self.width, ids)));
                    bucket.chunks += 1;
                }
                bucket.fresh = Vec::new();
            }
        }
        changes.into_iter().collect()
    }

    /// Makes the next [`Dedup::take_changes`] a full one.
    pub const fn mark_all_dirty(&mut self) {
        self.everything = true;
    }

    /// Takes one checkpointed chunk back. A chunk written under another horizon is taken over into today's buckets.
    ///
    /// # Errors
    /// Another version's or a damaged chunk; the rest stays usable.
    pub fn restore(&mut self, key: &[u8], value: &[u8]) -> Result<(), RestoreError> {
        let (tenant, index, number) = split_key(key).ok_or(RestoreError::Damaged)?;
        let (width, hashes) = split_chunk(value)?;
        self.everything = false;
        if self.horizon <= 0 || self.max_ids == 0 {
            self.gone.push(key.to_vec());
            return Ok(());
        }
        let same = width == self.width;
        let bucket = if same {
            index
        } else {
            // its newest instant: remembered longer rather than shorter
            self.gone.push(key.to_vec());
            index.saturating_add(1).saturating_mul(width).saturating_sub(1).div_euclid(self.width)
        };
        if !self.admit(tenant, bucket) {
            self.forgotten += (hashes.len() / 8) as u64;
            self.gone.push(key.to_vec());
            return Ok(());
        }
        let Some(state) = self.tenants.get_mut(tenant) else { return Ok(()) };
        for bytes in hashes.chunks_exact(8) {
            let mut hash = [0; 8];
            hash.copy_from_slice(bytes);
            let hash = u64::from_le_bytes(hash);
            if state.insert(hash, bucket) {
                self.ids += 1;
                if !same && let Some(bucket) = state.buckets.get_mut(&bucket) {
                    bucket.fresh.push(hash);
                }
            }
        }
        if same && let Some(bucket) = state.buckets.get_mut(&bucket) {
            bucket.chunks = bucket.chunks.max(number.saturating_add(1));
        }
        Ok(())
    }
}

impl Tenant {
    /// Makes every id fresh again and deletes the chunks written so far (those written anew overwrite their deletion).
    fn gather(&mut self, tenant: &str, changes: &mut BTreeMap<Vec<u8>, Option<Vec<u8>>>) {
        let mut by_ring: FxHashMap<u8, &mut Bucket> = FxHashMap::default();
        for (index, bucket) in &mut self.buckets {
            for chunk in 0..bucket.chunks {
                changes.insert(key(tenant, *index, chunk), None);
            }
            bucket.chunks = 0;
            bucket.fresh = Vec::with_capacity(bucket.ids);
            by_ring.insert(ring(*index), bucket);
        }
        for slot in &self.table {
            if let Some(bucket) = by_ring.get_mut(&slot.ring()) {
                bucket.fresh.push(slot.hash());
            }
        }
        for bucket in by_ring.into_values() {
            bucket.fresh.sort_unstable();
        }
    }
}

/// The tenant of a checkpointed chunk, by its key.
///
/// # Errors
/// A key that is not one of ours.
pub fn tenant_of(key: &[u8]) -> Result<&str, RestoreError> {
    split_key(key).map(|(tenant, ..)| tenant).ok_or(RestoreError::Damaged)
}

/// Tenant, bucket (order-preserving), chunk.
fn key(tenant: &str, bucket: i64, chunk: u32) -> Vec<u8> {
    let mut key = Vec::with_capacity(tenant.len() + 12);
    key.extend_from_slice(tenant.as_bytes());
    key.extend_from_slice(&(bucket ^ i64::MIN).to_be_bytes());
    key.extend_from_slice(&chunk.to_be_bytes());
    key
}

fn split_key(key: &[u8]) -> Option<(&str, i64, u32)> {
    let (rest, chunk) = key.split_last_chunk::<4>()?;
    let (tenant, bucket) = rest.split_last_chunk::<8>()?;
    Some((str::from_utf8(tenant).ok()?, i64::from_be_bytes(*bucket) ^ i64::MIN, u32::from_be_bytes(*chunk)))
}

fn chunk(width: Micros, hashes: &[u64]) -> Vec<u8> {
    let mut out = vec![VERSION, 0, 0, 0, 0];
    out.extend_from_slice(&width.to_le_bytes());
    for hash in hashes {
        out.extend_from_slice(&hash.to_le_bytes());
    }
    let crc = crc32fast::hash(&out[5..]);
    out[1..5].copy_from_slice(&crc.to_le_bytes());
    out
}

fn split_chunk(value: &[u8]) -> Result<(Micros, &[u8]), RestoreError> {
    let version = *value.first().ok_or(RestoreError::Damaged)?;
    if version != VERSION {
        return Err(RestoreError::Version(version));
    }
    let (crc, rest) = value[1..].split_first_chunk::<4>().ok_or(RestoreError::Damaged)?;
    let (width, hashes) = rest.split_first_chunk::<8>().ok_or(RestoreError::Damaged)?;
    let width = Micros::from_le_bytes(*width);
    let whole = value.len() >= HEADER && hashes.len().is_multiple_of(8) && width > 0;
    if !whole || crc32fast::hash(rest) != u32::from_le_bytes(*crc) {
        return Err(RestoreError::Damaged);
    }
    Ok((width, hashes))
}

#[cfg(test)]
mod tests;
