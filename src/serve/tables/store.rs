//! The tables of one topic: what is in memory, what is sealed, and how far the topic was read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use datafusion::arrow::array::{AsArray as _, BooleanArray, RecordBatch};
use datafusion::arrow::compute::{filter_record_batch, not};
use datafusion::arrow::error::ArrowError;
use serde_json::Value;

use super::graph::Graph;
use super::memory::{Memory, Put};
use super::schema::{Keeps, Source, TABLES, Table};
use super::sealed::{SealError, Sealed};
use crate::clock::Micros;

/// A record that lies on a topic.
#[derive(Debug, Clone, Copy)]
pub struct Record<'r> {
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
    /// Its key.
    pub key: Option<&'r [u8]>,
    /// `ce_type` of its headers.
    pub kind: Option<&'r [u8]>,
    /// Its value; `None`: a tombstone.
    pub payload: Option<&'r [u8]>,
}

/// What became of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// A table has changed.
    Row,
    /// It is of no table, such as the guardian's events.
    Other,
    /// This version cannot read it.
    Unread,
    /// There is no room for more keys.
    Full,
}

/// What a table holds at one moment.
#[derive(Debug, Clone, Default)]
pub(super) struct Snapshot {
    pub(super) batches: Vec<RecordBatch>,
    /// Files, and of each the ids that are left out.
    pub(super) files: Vec<(PathBuf, Vec<String>)>,
    /// Rows before it are not answered, µs.
    pub(super) cutoff: Option<Micros>,
}

/// Bounds of what is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Rows in memory of a table before they are sealed; without a directory the oldest go.
    pub rows: usize,
    /// Rows of a table that keeps the latest of each key of a compacted topic: further keys are not taken, and counted.
    pub keys: usize,
    /// How long rows of a topic are answered, µs; of the audit [`Self::audit`].
    pub kept: Micros,
    /// How long lines of the audit are answered, µs.
    pub audit: Micros,
    /// How long what is live is answered after it was last said, µs.
    pub live: Micros,
    /// Bytes of the files of a table.
    pub bytes: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        const DAY: Micros = 86_400 * crate::clock::SECOND;
        Self { rows: 20_000, keys: 200_000, kept: 30 * DAY, audit: 365 * DAY, live: DAY, bytes: 1 << 30 }
    }
}

/// The tables of one topic.
pub(super) struct Store {
    source: Source,
    tables: Vec<Memory>,
    names: Vec<&'static Table>,
    sealed: Option<Sealed>,
    next: BTreeMap<i32, i64>,
    bounds: Bounds,
    pub(super) graph: Graph,
}

impl Store {
    pub(super) fn new(source: Source, bounds: Bounds) -> Self {
        let names: Vec<&'static Table> = TABLES.iter().filter(|table| table.source == source).collect();
        let tables = names.iter().map(|table| Memory::new(table)).collect();
        Self { source, tables, names, sealed: None, next: BTreeMap::new(), bounds, graph: Graph::default() }
    }

    /// Takes up what is sealed in `dir`. By partition, where the topic is to be read from.
    pub(super) fn open(&mut self, dir: &Path, topic: &str, cluster: &str) -> Result<BTreeMap<i32, i64>, SealError> {
        let Some(table) = self.names.first().copied().filter(|_| !self.source.is_compacted()) else {
            return Ok(BTreeMap::new());
        };
        let (sealed, open) = Sealed::open(table, &dir.join(self.source.as_str()), topic, cluster)?;
        if let (Some(rows), Some(memory)) = (open, self.tables.first_mut()) {
            memory.adopt(rows)?;
        }
        self.next.clone_from(&sealed.manifest().next);
        self.sealed = Some(sealed);
        Ok(self.next.clone())
    }

    /// Forgets everything, sealed or not: the topic is read from its beginning.
    pub(super) fn restart(&mut self) -> Result<(), SealError> {
        if let Some(sealed) = &mut self.sealed {
            sealed.clear()?;
        }
        self.tables = self.names.iter().map(|table| Memory::new(table)).collect();
        self.next.clear();
        self.graph = Graph::default();
        Ok(())
    }

    /// Forgets what is in memory.
    pub(super) fn forget(&mut self) {
        self.tables = self.names.iter().map(|table| Memory::new(table)).collect();
        (self.sealed, self.graph) = (None, Graph::default());
        self.next.clear();
    }

    /// Rows in memory, by table.
    pub(super) fn rows(&self) -> impl Iterator<Item = (&'static Table, usize, usize)> + '_ {
        self.names.iter().zip(&self.tables).map(|(table, memory)| (*table, memory.len(), memory.bytes()))
    }

    /// Files and bytes that are sealed.
    pub(super) fn sealed(&self) -> (usize, u64) {
        let files = self.sealed.iter().flat_map(|sealed| &sealed.manifest().files);
        files.fold((0, 0), |(count, bytes), file| (count + 1, bytes + file.bytes))
    }

    /// Takes a record.
    pub(super) fn take(&mut self, record: Record<'_>) -> Result<Taken, SealError> {
        // what was sealed is not taken twice
        let next = self.next.entry(record.partition).or_default();
        if record.offset < *next {
            return Ok(Taken::Other);
        }
        *next = record.offset + 1;
        if record.kind.is_some_and(|kind| kind.starts_with(b"guardian.") || kind.starts_with(b"runwarden.response.")) {
            return Ok(Taken::Other);
        }
        let key = record.key.and_then(|key| std::str::from_utf8(key).ok()).unwrap_or_default();
        let part = key.split('/').nth(1);
        let at = self.names.iter().position(|table| table.part.is_none() || table.part == part);
        let Some((table, memory)) = at.map(|at| (self.names[at], &mut self.tables[at])) else {
            return Ok(Taken::Other);
        };
        let Some(payload) = record.payload else {
            memory.remove(key);
            if table.name == "policies" {
                self.graph.remove(key);
            }
            return Ok(Taken::Row);
        };
        let Ok(value) = serde_json::from_slice::<Value>(payload) else { return Ok(Taken::Unread) };
        if table.keeps == Keeps::Every {
            memory.put(None, &value)?;
            return Ok(Taken::Row);
        }
        if self.source.is_compacted() {
            if memory.len() >= self.bounds.keys && !memory.holds(key) {
                return Ok(Taken::Full);
            }
            memory.put(Some(key), &value)?;
            let read = table.name != "policies" || self.graph.put(key, &value);
            return Ok(if read { Taken::Row } else { Taken::Unread });
        }
        let own = Memory::key_of(table, &value);
        let put = memory.put(Some(&own), &value)?;
        let changed = put == Put::Added && value["revision"].as_u64().is_some_and(|revision| revision > 1);
        // what is not in memory was sealed, or is older than anything that is answered
        if changed
            && let Some(sealed) = &mut self.sealed
            && let [id] = table.id
            && let Some(id) = value[*id].as_str()
            && !sealed.shadow(id)
        {
            tracing::warn!(table = table.name, "too many sealed rows have changed: the topic is read again");
            self.restart()?;
        }
        Ok(Taken::Row)
    }

    /// What a table holds.
    pub(super) fn snapshot(&mut self, table: &Table, now: Micros) -> Result<Snapshot, ArrowError> {
        let Some(at) = self.names.iter().position(|known| known.name == table.name) else {
            return Ok(Snapshot::default());
        };
        let ages = !self.source.is_compacted() || self.source == Source::Live;
        let cutoff = ages.then(|| now.saturating_sub(self.kept()));
        let batches = self.tables[at].read()?;
        let Some(sealed) = &self.sealed else { return Ok(Snapshot { batches, cutoff, ..Snapshot::default() }) };
        Ok(Snapshot { batches, files: sealed.files(), cutoff })
    }

    fn kept(&self) -> Micros {
        match self.source {
            Source::Audit => self.bounds.audit,
            Source::Live => self.bounds.live,
            _ => self.bounds.kept,
        }
    }

    /// Seals what is in memory when it is enough, or when `all`; without a directory the oldest rows go. True: something was sealed.
    pub(super) fn tidy(&mut self, now: Micros, all: bool) -> Result<bool, SealError> {
        let cutoff = now.saturating_sub(self.kept());
        if self.source == Source::Live {
            // as the topic does
            self.tables.iter_mut().try_for_each(|memory| memory.expire(cutoff))?;
        }
        if self.source.is_compacted() {
            return Ok(false);
        }
        let (Some(table), Some(memory)) = (self.names.first(), self.tables.first_mut()) else { return Ok(false) };
        let Some(sealed) = &mut self.sealed else {
            memory.shorten(self.bounds.rows);
            return Ok(false);
        };
        if memory.len() == 0 || !(all || memory.len() >= self.bounds.rows) {
            return Ok(false);
        }
        let batches = memory.read()?;
        let rows = datafusion::arrow::compute::concat_batches(&table.schema(), &batches)?;
        let ended = ended(table, &rows);
        let open = filter_record_batch(&rows, &not(&ended)?)?;
        let ended = filter_record_batch(&rows, &ended)?;
        // so many are open that sealing the few others would be done again and again
        if !all && ended.num_rows() < self.bounds.rows / 4 {
            return Ok(false);
        }
        sealed.seal(&ended, &open, &self.next, cutoff, self.bounds.bytes)?;
        memory.drain()?;
        if open.num_rows() > 0 {
            memory.adopt(open)?;
        }
        Ok(true)
    }
}

/// Which rows will, as a rule, not change any more.
fn ended(table: &Table, rows: &RecordBatch) -> BooleanArray {
    let (column, over): (_, &[&str]) = match table.name {
        "alerts" => ("status", &["RESOLVED"]),
        "interventions" => {
            ("state", &["SUCCEEDED", "FAILED", "TIMED_OUT", "REJECTED", "EXPIRED", "SUPERSEDED", "REVERTED"])
        }
        _ => return BooleanArray::from(vec![true; rows.num_rows()]),
    };
    let Some(texts) = rows.column_by_name(column).and_then(|column| column.as_string_opt::<i32>()) else {
        return BooleanArray::from(vec![true; rows.num_rows()]);
    };
    texts.iter().map(|text| Some(text.is_some_and(|text| over.contains(&text)))).collect()
}
