//! Recorded telemetry: JSON Lines, CSV and Parquet files as one stream of records, merged by event time.
//!
//! A reader only brings records into the form a topic would carry; judging them is the [`Decoder`]'s. So a bad line costs a
//! line: it comes out as a dead letter whose topic is the file and whose offset is the line (the row for Parquet), from 1.
//!
//! One file keeps its own order. Several are merged: next is the record with the earliest event time among the files'
//! heads, the earlier named file on ties; a record whose time cannot be read goes with the one before it.
//! Files are streamed; a line longer than the record bound is skipped, not held.

mod csv;
mod lines;
mod parquet;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::value::RawValue;

use super::{Decoder, Origin, Pushed, Reason, parse_time};
use crate::clock::{Micros, Wall};

/// Why recorded telemetry cannot be read at all.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The extension names no known format.
    #[error("{path}: name it .jsonl, .ndjson or .json (one object a line), .csv or .parquet")]
    Extension {
        /// The file.
        path: String,
    },
    /// Opening or reading failed.
    #[error("{path}: cannot read it")]
    Read {
        /// The file.
        path: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// Not a readable CSV or Parquet file.
    #[error("{path}: {message}")]
    Format {
        /// The file.
        path: String,
        /// What is wrong.
        message: String,
    },
}

/// One record of a file.
#[derive(Debug)]
pub struct FileRecord<'a> {
    /// File and line.
    pub origin: Origin,
    /// What stands there.
    pub payload: Payload<'a>,
}

/// What stands on a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Payload<'a> {
    /// A record as a topic would carry it (or what claims to be one).
    Json(&'a [u8]),
    /// A line that is no record: why, and its bytes as far as known.
    Bad(&'a str, &'a [u8]),
}

impl FileRecord<'_> {
    /// Decodes the record: a row or a dead letter, as [`Decoder::push`].
    pub fn push(self, decoder: &mut Decoder, position: i64, now: Wall) -> Pushed {
        match self.payload {
            Payload::Json(bytes) => decoder.push(self.origin, position, Some(bytes), now),
            Payload::Bad(message, bytes) => decoder.reject(self.origin, Reason::Decode, message, bytes),
        }
    }
}

/// A file being read: `advance`, then look.
trait Reader: Send {
    /// Goes to the next record; false at the end.
    fn advance(&mut self) -> Result<bool, Error>;
    /// Line or row of the record, from 1.
    fn line(&self) -> i64;
    /// The record.
    fn payload(&self) -> Payload<'_>;
    /// Bytes of the file read so far, roughly.
    fn bytes_read(&self) -> u64;
}

struct Source {
    reader: Box<dyn Reader>,
    topic: Arc<str>,
    time: Micros,
    done: bool,
}

/// Several files as one stream of records.
pub struct Files {
    sources: Vec<Source>,
    input: u8,
    current: Option<usize>,
    total: u64,
}

impl Files {
    /// Opens the files, each by its extension. `input` becomes [`Origin::input`]; lines beyond `max_record_bytes` are
    /// skipped (the decoder, with the same bound, makes a dead letter of what is left of them).
    ///
    /// # Errors
    /// A file that cannot be opened, is of no known extension, or has no readable header.
    pub fn open(paths: &[PathBuf], input: u8, max_record_bytes: usize) -> Result<Self, Error> {
        let mut total = 0;
        let mut sources = Vec::with_capacity(paths.len());
        for path in paths {
            let name = path.display().to_string();
            let read = |source| Error::Read { path: name.clone(), source };
            let file = std::fs::File::open(path).map_err(read)?;
            let size = file.metadata().map_err(read)?.len();
            total += size;
            let reader: Box<dyn Reader> = match extension(path).as_deref() {
                Some("jsonl" | "ndjson" | "json") => Box::new(lines::Lines::new(file, name.clone(), max_record_bytes)),
                Some("csv") => Box::new(csv::Rows::open(file, name.clone())?),
                Some("parquet") => Box::new(parquet::Rows::open(file, name.clone(), size)?),
                _ => return Err(Error::Extension { path: name }),
            };
            sources.push(Source { reader, topic: name.into(), time: Micros::MIN, done: false });
        }
        let mut files = Self { sources, input, current: None, total };
        if files.sources.len() > 1 {
            for at in 0..files.sources.len() {
                files.step(at)?;
            }
        }
        Ok(files)
    }

    /// Bytes read and bytes in all, for a progress display.
    pub fn progress(&self) -> (u64, u64) {
        (self.sources.iter().map(|source| source.reader.bytes_read()).sum::<u64>().min(self.total), self.total)
    }

    /// The next record; `None` at the end. (Not an iterator: the record borrows the reader's buffer.)
    ///
    /// # Errors
    /// A file that cannot be read further.
    #[allow(clippy::should_implement_trait, reason = "items borrow from the reader")]
    pub fn next(&mut self) -> Result<Option<FileRecord<'_>>, Error> {
        match self.current {
            Some(last) => self.step(last)?,
            None if self.sources.len() == 1 => self.step(0)?,
            None => {}
        }
        let next = self
            .sources
            .iter()
            .enumerate()
            .filter(|(_, source)| !source.done)
            .min_by_key(|(at, source)| (source.time, *at))
            .map(|(at, _)| at);
        self.current = next;
        let Some(at) = next else { return Ok(None) };
        let source = &self.sources[at];
        let origin = Origin {
            input: self.input,
            topic: Arc::clone(&source.topic),
            partition: i32::try_from(at).unwrap_or(i32::MAX),
            offset: source.reader.line(),
        };
        Ok(Some(FileRecord { origin, payload: source.reader.payload() }))
    }

    fn step(&mut self, at: usize) -> Result<(), Error> {
        let merging = self.sources.len() > 1;
        let source = &mut self.sources[at];
        if source.done {
            return Ok(());
        }
        source.done = !source.reader.advance()?;
        if merging
            && !source.done
            && let Payload::Json(bytes) = source.reader.payload()
            && let Some(time) = event_time(bytes)
        {
            source.time = time;
        }
        Ok(())
    }
}

fn extension(path: &Path) -> Option<String> {
    path.extension().map(|extension| extension.to_string_lossy().to_ascii_lowercase())
}

/// The event time of a record, if it can be read at a glance.
pub fn event_time(record: &[u8]) -> Option<Micros> {
    #[derive(serde::Deserialize)]
    struct Glance<'a> {
        #[serde(borrow)]
        event_time: &'a RawValue,
    }
    let glance: Glance<'_> = serde_json::from_slice(record).ok()?;
    let text = glance.event_time.get();
    match text.strip_prefix('"').and_then(|text| text.strip_suffix('"')) {
        Some(time) => parse_time(time),
        None => text.parse::<i64>().ok()?.checked_mul(1_000),
    }
}

#[cfg(test)]
mod tests;
