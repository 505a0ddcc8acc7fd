//! Group keys as dense ids.
//!
//! A [`KeySet`] is shared by all queries with the same GROUP BY keys. Each distinct key gets an id; ids are freed when no store
//! holds state for them and may be reused from the next push on. A key is kept as bytes, which also name it in
//! checkpoints.

use std::hash::Hasher;
use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, StringBuilder, UInt32Array};
use datafusion::arrow::compute::take;
use datafusion::arrow::datatypes::DataType;
use datafusion::arrow::row::{RowConverter, RowParser, SortField};
use hashbrown::HashTable;
use rustc_hash::FxHasher;

use super::Error;
use super::time::NEVER;
use crate::clock::Micros;

/// No group.
pub(super) const NONE: u32 = u32::MAX;

/// How keys are written as bytes.
enum Codec {
    /// Text columns: per column a length (all ones: NULL) and the bytes. Cheaper than the row format, and the usual case.
    Texts(usize),
    /// Anything else, in Arrow's row format.
    Rows(RowConverter, RowParser),
}

/// The length that stands for NULL.
const NULL: u32 = u32::MAX;

impl Codec {
    fn new(types: &[DataType]) -> Result<Self, Error> {
        if types.iter().all(|t| *t == DataType::Utf8) {
            return Ok(Self::Texts(types.len()));
        }
        let converter = RowConverter::new(types.iter().map(|t| SortField::new(t.clone())).collect())?;
        let parser = converter.parser();
        Ok(Self::Rows(converter, parser))
    }

    /// Calls `f` with (row, key) for each needed row.
    fn encode(
        &self,
        columns: &[ArrayRef],
        needed: &[u32],
        rows: usize,
        mut f: impl FnMut(usize, &[u8]),
    ) -> Result<(), Error> {
        match self {
            Self::Texts(_) => {
                let texts = columns
                    .iter()
                    .map(|c| c.as_string_opt::<i32>().ok_or_else(|| Error::Input("a key column is not Utf8".into())))
                    .collect::<Result<Vec<_>, _>>()?;
                let mut key = Vec::with_capacity(128);
                for row in needed {
                    let row = *row as usize;
                    key.clear();
                    for text in &texts {
                        if text.is_null(row) {
                            key.extend_from_slice(&NULL.to_be_bytes());
                        } else {
                            let value = text.value(row).as_bytes();
                            key.extend_from_slice(&(value.len() as u32).to_be_bytes());
                            key.extend_from_slice(value);
                        }
                    }
                    f(row, &key);
                }
            }
            Self::Rows(converter, _) => {
                let keys = if needed.len() == rows {
                    converter.convert_columns(columns)?
                } else {
                    let at = UInt32Array::from(needed.to_vec());
                    let taken = columns.iter().map(|c| take(c, &at, None)).collect::<Result<Vec<_>, _>>()?;
                    converter.convert_columns(&taken)?
                };
                for (key, row) in keys.iter().zip(needed) {
                    f(*row as usize, key.as_ref());
                }
            }
        }
        Ok(())
    }

    /// The columns of some keys. Malformed bytes are an error or, in the row format, a panic.
    fn decode<'a>(&self, keys: impl Iterator<Item = &'a [u8]>) -> Result<Vec<ArrayRef>, Error> {
        match self {
            Self::Texts(columns) => {
                let mut out: Vec<StringBuilder> = (0..*columns).map(|_| StringBuilder::new()).collect();
                let broken = || Error::State("a group key".into());
                for mut key in keys {
                    for column in &mut out {
                        let (len, rest) = key.split_first_chunk::<4>().ok_or_else(broken)?;
                        key = rest;
                        let len = u32::from_be_bytes(*len);
                        if len == NULL {
                            column.append_null();
                            continue;
                        }
                        let (text, rest) = key.split_at_checked(len as usize).ok_or_else(broken)?;
                        column.append_value(std::str::from_utf8(text).map_err(|_| broken())?);
                        key = rest;
                    }
                    if !key.is_empty() {
                        return Err(broken());
                    }
                }
                Ok(out.into_iter().map(|mut c| Arc::new(c.finish()) as ArrayRef).collect())
            }
            Self::Rows(converter, parser) => Ok(converter.convert_rows(keys.map(|k| parser.parse(k)))?),
        }
    }
}

pub(super) struct KeySet {
    /// Indices into the engine's expressions, one per key column.
    pub(super) columns: Vec<usize>,
    codec: Codec,
    table: HashTable<u32>,
    hashes: Vec<u64>,
    keys: Vec<Box<[u8]>>,
    clocks: Vec<u32>,
    /// The time before which rows of the key need not be counted against its clock's most.
    fresh: Vec<Micros>,
    refs: Vec<u32>,
    free: Vec<u32>,
    cooling: Vec<u32>,
    /// Ids that may be without references: new ones and those released.
    candidates: Vec<u32>,
    bytes: usize,
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = FxHasher::default();
    hasher.write(bytes);
    hasher.finish()
}

impl KeySet {
    pub(super) fn new(columns: Vec<usize>, types: &[DataType]) -> Result<Self, Error> {
        Ok(Self {
            columns,
            codec: Codec::new(types)?,
            table: HashTable::new(),
            hashes: Vec::new(),
            keys: Vec::new(),
            clocks: Vec::new(),
            fresh: Vec::new(),
            refs: Vec::new(),
            free: Vec::new(),
            cooling: Vec::new(),
            candidates: Vec::new(),
            bytes: 0,
        })
    }

    /// The id of each needed row's key ([`NONE`] for other rows). New keys belong to the row's clock.
    pub(super) fn intern(
        &mut self,
        columns: &[ArrayRef],
        needed: &[u32],
        clocks: &[u32],
        rows: usize,
    ) -> Result<Vec<u32>, Error> {
        let mut out = vec![NONE; rows];
        if needed.is_empty() {
            return Ok(out);
        }
        let codec = std::mem::replace(&mut self.codec, Codec::Texts(0));
        let done = codec.encode(columns, needed, rows, |row, key| out[row] = self.id(key, clocks[row]));
        self.codec = codec;
        done.map(|()| out)
    }

    /// The id of a key given as bytes, new if unknown.
    pub(super) fn id(&mut self, key: &[u8], clock: u32) -> u32 {
        let h = hash(key);
        let (keys, hashes) = (&mut self.keys, &mut self.hashes);
        if let Some(id) = self.table.find(h, |id| *keys[*id as usize] == *key) {
            return *id;
        }
        let owned: Box<[u8]> = key.into();
        self.bytes += owned.len();
        let id = match self.free.pop() {
            Some(id) => {
                keys[id as usize] = owned;
                hashes[id as usize] = h;
                self.clocks[id as usize] = clock;
                self.fresh[id as usize] = NEVER;
                id
            }
            None => {
                keys.push(owned);
                hashes.push(h);
                self.clocks.push(clock);
                self.fresh.push(NEVER);
                self.refs.push(0);
                (keys.len() - 1) as u32
            }
        };
        self.table.insert_unique(h, id, |id| hashes[*id as usize]);
        self.candidates.push(id);
        id
    }

    pub(super) fn clock(&self, id: u32) -> u32 {
        self.clocks[id as usize]
    }

    pub(super) fn fresh(&self, id: u32) -> Micros {
        self.fresh[id as usize]
    }

    pub(super) fn set_fresh(&mut self, id: u32, until: Micros) {
        self.fresh[id as usize] = until;
    }

    pub(super) fn bytes_of(&self, id: u32) -> &[u8] {
        &self.keys[id as usize]
    }

    /// A store now holds state for the key.
    pub(super) fn hold(&mut self, id: u32) {
        self.refs[id as usize] += 1;
    }

    /// A store holds no more state for the key.
    pub(super) fn release(&mut self, id: u32) {
        let refs = &mut self.refs[id as usize];
        *refs = refs.saturating_sub(1);
        if *refs == 0 {
            self.candidates.push(id);
        }
    }

    /// Ids without references, forgotten now and reusable after [`KeySet::thaw`].
    pub(super) fn sweep(&mut self) -> Vec<u32> {
        let mut gone = Vec::new();
        let mut candidates = std::mem::take(&mut self.candidates);
        candidates.sort_unstable();
        candidates.dedup();
        for id in candidates {
            let at = id as usize;
            if self.refs[at] > 0 {
                continue;
            }
            if let Ok(entry) = self.table.find_entry(self.hashes[at], |other| *other == id) {
                entry.remove();
                self.bytes -= self.keys[at].len();
                self.keys[at] = Box::default();
                gone.push(id);
            }
        }
        self.cooling.extend_from_slice(&gone);
        gone
    }

    /// Makes ids freed by earlier calls usable again.
    pub(super) fn thaw(&mut self) {
        self.free.append(&mut self.cooling);
    }

    /// The key columns of some ids.
    pub(super) fn columns(&self, ids: impl Iterator<Item = u32>) -> Result<Vec<ArrayRef>, Error> {
        self.codec.decode(ids.map(|id| &*self.keys[id as usize]))
    }

    /// Decodes one key given as bytes. May panic on malformed bytes: the caller catches.
    pub(super) fn decode(&self, key: &[u8]) -> Result<Vec<ArrayRef>, Error> {
        self.codec.decode(std::iter::once(key))
    }

    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    pub(super) fn size(&self) -> usize {
        self.bytes + self.keys.capacity() * 40 + self.table.capacity() * 5
    }
}

/// The text of row `row` of the clock column; NULL reads as the empty text.
pub(super) fn clock_text(array: &ArrayRef, row: usize) -> Result<&str, Error> {
    let strings = array.as_string_opt::<i32>().ok_or_else(|| Error::Input("the clock column is not Utf8".into()))?;
    Ok(if strings.is_null(row) { "" } else { strings.value(row) })
}
