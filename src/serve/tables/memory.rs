//! The rows of a table that are in memory: appended, and of tables that keep the latest of each key, replaced.
//!
//! Rows lie in chunks. A row that was replaced is marked dead and left out of what is read; when most are, the chunks are made anew. Few
//! and large chunks: the newest ones are joined while they are of about the same size.

use std::sync::Arc;

use datafusion::arrow::array::{Array, AsArray as _, BooleanArray, RecordBatch};
use datafusion::arrow::compute::{concat_batches, filter_record_batch};
use datafusion::arrow::datatypes::TimestampMicrosecondType;
use datafusion::arrow::error::ArrowError;
use rustc_hash::FxHashMap;
use serde_json::Value;

use super::rows::{Rows, find};
use super::schema::{Keeps, Table};
use crate::clock::Micros;

/// Rows of a chunk that is not joined with others any more.
const FULL: usize = 8_192;
/// Dead rows below this are not worth making chunks anew.
const FEW: usize = 1_024;

/// What became of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Put {
    /// A row more.
    Added,
    /// It stands for one that was here.
    Replaced,
}

struct Chunk {
    batch: RecordBatch,
    /// Of tables that keep the latest: the key of each row.
    keys: Vec<Arc<str>>,
    alive: Vec<bool>,
    dead: usize,
    /// Without the dead.
    read: Option<RecordBatch>,
}

impl Chunk {
    fn new(batch: RecordBatch, keys: Vec<Arc<str>>, alive: Vec<bool>) -> Self {
        let dead = alive.iter().filter(|alive| !**alive).count();
        Self { batch, keys, alive, dead, read: None }
    }

    fn living(&mut self) -> Result<RecordBatch, ArrowError> {
        if self.dead == 0 {
            return Ok(self.batch.clone());
        }
        if self.read.is_none() {
            self.read = Some(filter_record_batch(&self.batch, &BooleanArray::from(self.alive.clone()))?);
        }
        Ok(self.read.clone().unwrap_or_else(|| self.batch.clone()))
    }
}

/// Where a row is: in which chunk, at which place. The chunk after the last is that of the rows that are not a batch yet.
type Place = (usize, usize);

/// The rows of one table.
pub(super) struct Memory {
    table: &'static Table,
    chunks: Vec<Chunk>,
    fresh: Rows,
    fresh_keys: Vec<Arc<str>>,
    fresh_alive: Vec<bool>,
    places: FxHashMap<Arc<str>, Place>,
    living: usize,
}

impl Memory {
    pub(super) fn new(table: &'static Table) -> Self {
        Self {
            table,
            chunks: Vec::new(),
            fresh: Rows::new(table),
            fresh_keys: Vec::new(),
            fresh_alive: Vec::new(),
            places: FxHashMap::default(),
            living: 0,
        }
    }

    /// Rows that are read.
    pub(super) fn len(&self) -> usize {
        self.living
    }

    /// Bytes of the chunks.
    pub(super) fn bytes(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.batch.get_array_memory_size()).sum()
    }

    /// The key of a record of a table that keeps the latest, and whose topic is not keyed by it.
    pub(super) fn key_of(table: &Table, record: &Value) -> String {
        let ids = table.id.iter().filter_map(|name| table.position(name)).map(|at| table.columns[at].path);
        let parts = std::iter::once("tenant_id").chain(ids).map(|path| match find(record, path) {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        });
        parts.collect::<Vec<_>>().join("\0")
    }

    /// Takes a record; `key`: of tables that keep the latest.
    pub(super) fn put(&mut self, key: Option<&str>, record: &Value) -> Result<Put, ArrowError> {
        let mut put = Put::Added;
        if self.table.keeps == Keeps::Latest {
            let key: Arc<str> = Arc::from(key.unwrap_or_default());
            if self.forget(&key) {
                put = Put::Replaced;
            }
            self.places.insert(Arc::clone(&key), (self.chunks.len(), self.fresh.len()));
            self.fresh_keys.push(key);
        }
        self.fresh.push(record);
        self.fresh_alive.push(true);
        self.living += 1;
        if self.fresh.len() >= FULL {
            self.settle()?;
        }
        Ok(put)
    }

    /// Takes a key away; false: there was none.
    pub(super) fn remove(&mut self, key: &str) -> bool {
        self.forget(key)
    }

    /// Takes away the rows whose time is before `cutoff`.
    pub(super) fn expire(&mut self, cutoff: Micros) -> Result<(), ArrowError> {
        let Some(time) = self.table.time else { return Ok(()) };
        self.settle()?;
        let mut old = Vec::new();
        for chunk in &self.chunks {
            let times = chunk.batch.column_by_name(time).and_then(|c| c.as_primitive_opt::<TimestampMicrosecondType>());
            let Some(times) = times else { continue };
            let is_old = |row: &usize| chunk.alive[*row] && times.is_valid(*row) && times.value(*row) < cutoff;
            old.extend((0..times.len()).filter(is_old).map(|row| Arc::clone(&chunk.keys[row])));
        }
        for key in old {
            self.forget(&key);
        }
        Ok(())
    }

    /// Whether there is a row of a key.
    pub(super) fn holds(&self, key: &str) -> bool {
        self.places.contains_key(key)
    }

    fn forget(&mut self, key: &str) -> bool {
        let Some((chunk, row)) = self.places.remove(key) else { return false };
        self.living -= 1;
        match self.chunks.get_mut(chunk) {
            Some(chunk) => {
                chunk.alive[row] = false;
                chunk.dead += 1;
                chunk.read = None;
            }
            None => self.fresh_alive[row] = false,
        }
        true
    }

    /// Makes a chunk of the newest rows.
    fn settle(&mut self) -> Result<(), ArrowError> {
        if self.fresh.len() == 0 {
            return Ok(());
        }
        let (keys, alive) = (std::mem::take(&mut self.fresh_keys), std::mem::take(&mut self.fresh_alive));
        self.chunks.push(Chunk::new(self.fresh.finish()?, keys, alive));
        while let [.., before, last] = self.chunks.as_slice()
            && before.alive.len() < FULL
            && before.alive.len() <= 2 * last.alive.len()
        {
            self.join_last_two()?;
        }
        let all: usize = self.chunks.iter().map(|chunk| chunk.alive.len()).sum();
        if all - self.living > FEW.max(self.living) {
            self.compact()?;
        }
        Ok(())
    }

    fn join_last_two(&mut self) -> Result<(), ArrowError> {
        let (Some(last), Some(before)) = (self.chunks.pop(), self.chunks.pop()) else { return Ok(()) };
        let batch = concat_batches(&self.table.schema(), [&before.batch, &last.batch])?;
        let shift = before.alive.len();
        let (mut keys, mut alive) = (before.keys, before.alive);
        for (row, key) in last.keys.iter().enumerate().filter(|(row, _)| last.alive[*row]) {
            self.places.insert(Arc::clone(key), (self.chunks.len(), shift + row));
        }
        keys.extend(last.keys);
        alive.extend(last.alive);
        self.chunks.push(Chunk::new(batch, keys, alive));
        Ok(())
    }

    /// Makes one chunk of what lives.
    fn compact(&mut self) -> Result<(), ArrowError> {
        let mut batches = Vec::with_capacity(self.chunks.len());
        let mut keys = Vec::with_capacity(self.living);
        for chunk in &mut self.chunks {
            batches.push(chunk.living()?);
            keys.extend(
                chunk.keys.iter().zip(&chunk.alive).filter(|(_, alive)| **alive).map(|(key, _)| Arc::clone(key)),
            );
        }
        let batch = concat_batches(&self.table.schema(), &batches)?;
        self.places = keys.iter().enumerate().map(|(row, key)| (Arc::clone(key), (0, row))).collect();
        let alive = vec![true; batch.num_rows()];
        self.chunks = vec![Chunk::new(batch, keys, alive)];
        Ok(())
    }

    /// What is here, as batches.
    pub(super) fn read(&mut self) -> Result<Vec<RecordBatch>, ArrowError> {
        self.settle()?;
        let living = self.chunks.iter_mut().filter(|chunk| chunk.dead < chunk.alive.len());
        living.map(Chunk::living).collect()
    }

    /// Takes everything out, as one batch.
    pub(super) fn drain(&mut self) -> Result<RecordBatch, ArrowError> {
        let batches = self.read()?;
        let batch = concat_batches(&self.table.schema(), &batches)?;
        *self = Self::new(self.table);
        Ok(batch)
    }

    /// Takes rows that were once here, each of a key of its own.
    pub(super) fn adopt(&mut self, batch: RecordBatch) -> Result<(), ArrowError> {
        self.settle()?;
        let rows = batch.num_rows();
        let mut keys = Vec::new();
        if self.table.keeps == Keeps::Latest {
            let names = std::iter::once("tenant_id").chain(self.table.id.iter().copied());
            let columns: Vec<_> = names.filter_map(|name| batch.column_by_name(name)).collect();
            for row in 0..rows {
                let part = |column: &&Arc<dyn Array>| match column.as_string_opt::<i32>() {
                    Some(texts) => texts.value(row).to_owned(),
                    None => super::rows::value("", column, row).to_string(),
                };
                let key: Arc<str> = Arc::from(columns.iter().map(part).collect::<Vec<_>>().join("\0"));
                self.places.insert(Arc::clone(&key), (self.chunks.len(), row));
                keys.push(key);
            }
        }
        self.living += rows;
        self.chunks.push(Chunk::new(batch, keys, vec![true; rows]));
        Ok(())
    }

    /// Drops the oldest rows until at most `most` are left, by whole chunks. How many went.
    pub(super) fn shorten(&mut self, most: usize) -> usize {
        let mut gone = 0;
        while self.living > most && self.chunks.len() > 1 {
            let oldest = self.chunks.remove(0);
            for (key, _) in oldest.keys.iter().zip(&oldest.alive).filter(|(_, alive)| **alive) {
                self.places.remove(key);
            }
            for (chunk, _) in self.places.values_mut() {
                *chunk -= 1;
            }
            let living = oldest.alive.len() - oldest.dead;
            self.living -= living;
            gone += living;
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde_json::json;

    use super::super::rows::records;
    use super::super::schema::table;
    use super::*;

    fn alert(id: u32, revision: u64) -> Value {
        json!({"alert_id": id.to_string(), "tenant_id": "acme", "revision": revision})
    }

    proptest! {
        #[test]
        fn whatever_is_put_removed_read_and_taken_out_the_latest_of_each_key_is_there(
            steps in proptest::collection::vec((0_u32..40, 0_u8..12), 0..400),
        ) {
            let alerts = table("alerts").unwrap();
            let mut memory = Memory::new(alerts);
            let mut expected: BTreeMap<String, u64> = BTreeMap::new();
            for (revision, (id, what)) in steps.into_iter().enumerate() {
                let revision = u64::try_from(revision).unwrap();
                let record = alert(id, revision);
                let key = Memory::key_of(alerts, &record);
                match what {
                    0 => {
                        let was = expected.remove(&id.to_string()).is_some();
                        prop_assert_eq!(memory.remove(&key), was);
                    }
                    1 => drop(memory.read().unwrap()),
                    2 => {
                        let batch = memory.drain().unwrap();
                        prop_assert_eq!(memory.len(), 0);
                        memory.adopt(batch).unwrap();
                    }
                    _ => {
                        let put = memory.put(Some(&key), &record).unwrap();
                        let was = expected.insert(id.to_string(), revision).is_some();
                        prop_assert_eq!(put == Put::Replaced, was);
                    }
                }
                prop_assert_eq!(memory.len(), expected.len());
            }
            let rows = records(alerts, &memory.read().unwrap());
            let found: BTreeMap<String, u64> = rows
                .iter()
                .map(|row| (row["alert_id"].as_str().unwrap().to_owned(), row["revision"].as_u64().unwrap()))
                .collect();
            prop_assert_eq!(rows.len(), found.len());
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn chunks_stay_few_however_often_they_are_read_and_the_dead_go() {
        let alerts = table("alerts").unwrap();
        let mut memory = Memory::new(alerts);
        for n in 0..20_000_u32 {
            let record = alert(n % 10, n.into());
            memory.put(Some(&Memory::key_of(alerts, &record)), &record).unwrap();
            if n % 7 == 0 {
                memory.read().unwrap();
            }
        }
        assert_eq!(memory.len(), 10);
        assert!(memory.chunks.len() < 12 && memory.chunks.iter().map(|c| c.alive.len()).sum::<usize>() < 4_096);
    }

    #[test]
    fn the_oldest_go_first_when_there_is_no_room() {
        let runs = table("runs").unwrap();
        let mut memory = Memory::new(runs);
        for n in 0..30_000 {
            memory.put(None, &json!({"run_id": n.to_string(), "tenant_id": "acme"})).unwrap();
        }
        assert!(memory.shorten(20_000) > 0);
        let rows = records(runs, &memory.read().unwrap());
        assert!(rows.len() <= 20_000 && rows.len() > 10_000);
        assert_eq!(rows.last().unwrap()["run_id"], "29999");
    }
}
