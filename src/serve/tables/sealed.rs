//! The rows of a table that are sealed: Parquet files in the data directory, and a manifest that says which of them count.
//!
//! A seal takes everything out of memory. What it wrote counts once the manifest that names it has its name, so a process that dies
//! meanwhile reads the topic again from where the last manifest ends. What may still change (an open alert) goes into a file of its own
//! that is read back at the start. A row that changes after it was sealed is *shadowed*: named in the manifest, and left out.
//!
//! Nothing here is the only copy: a directory that is lost, of another cluster, or of other columns is begun anew from the topic.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use datafusion::arrow::array::{AsArray as _, BooleanArray, RecordBatch};
use datafusion::arrow::compute::{concat_batches, filter_record_batch, max, min};
use datafusion::arrow::datatypes::TimestampMicrosecondType;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::schema::Table;
use crate::clock::Micros;

const MANIFEST: &str = "manifest.json";
/// Rows of a group: what lies outside the asked time is left out by groups.
const GROUP: usize = 16_384;
/// Most rows that may be shadowed: with more the directory is begun anew.
const SHADOWED: usize = 10_000;
/// So many small files in a row are made one.
const SMALL_FILES: usize = 8;
/// A file of fewer rows is small.
const SMALL: u64 = 100_000;

/// Why nothing could be sealed, or read back.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// A file.
    #[error("{}: {source}", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// What is in a file.
    #[error("{}: {source}", path.display())]
    Parquet {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: parquet::errors::ParquetError,
    },
    /// Rows.
    #[error(transparent)]
    Arrow(#[from] datafusion::arrow::error::ArrowError),
    /// The manifest.
    #[error("the manifest cannot be written: {0}")]
    Json(#[from] serde_json::Error),
}

/// A file of rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedFile {
    /// Its name in the directory.
    pub name: String,
    /// Its rows.
    pub rows: u64,
    /// Its bytes.
    pub bytes: u64,
    /// SHA-256 of its bytes, in hexadecimal.
    pub sha256: String,
    /// The earliest time in it, µs.
    pub from: Micros,
    /// The latest time in it, µs.
    pub until: Micros,
}

/// What counts.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Manifest {
    /// The topic.
    pub topic: String,
    /// The cluster it is on.
    pub cluster: String,
    /// SHA-256 of the columns: files of others are not read.
    pub columns: String,
    /// By partition, the first offset that is not in these files.
    pub next: BTreeMap<i32, i64>,
    /// The files, oldest first.
    pub files: Vec<SealedFile>,
    /// What may still change.
    pub open: Option<SealedFile>,
    /// Ids of rows that have changed since they were sealed, each with the number of files that had been made then: in those it is left out.
    pub shadowed: BTreeMap<String, u64>,
    /// Files made so far: names are not used twice.
    pub made: u64,
}

/// The sealed part of a table.
pub struct Sealed {
    table: &'static Table,
    dir: PathBuf,
    manifest: Manifest,
    /// Files that no longer count: a question may still read them. They go at the next seal.
    doomed: Vec<PathBuf>,
}

fn file_error(path: &Path) -> impl FnOnce(std::io::Error) -> SealError {
    let path = path.to_owned();
    |source| SealError::File { path, source }
}

fn parquet_error(path: &Path) -> impl FnOnce(parquet::errors::ParquetError) -> SealError {
    let path = path.to_owned();
    |source| SealError::Parquet { path, source }
}

fn columns_of(table: &Table) -> String {
    let text: Vec<String> = table.columns.iter().map(|c| format!("{}:{}:{:?}", c.name, c.path, c.kind)).collect();
    hex(&Sha256::digest(text.join("\n").as_bytes()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Sealed {
    /// What a directory holds of a topic, and the rows that may still change. What does not fit is removed, and why is said.
    ///
    /// # Errors
    /// The directory cannot be made, or what is in it cannot be removed.
    pub fn open(
        table: &'static Table,
        dir: &Path,
        topic: &str,
        cluster: &str,
    ) -> Result<(Self, Option<RecordBatch>), SealError> {
        fs::create_dir_all(dir).map_err(file_error(dir))?;
        let fresh = Manifest {
            topic: topic.to_owned(),
            cluster: cluster.to_owned(),
            columns: columns_of(table),
            ..Manifest::default()
        };
        let mut sealed = Self { table, dir: dir.to_owned(), manifest: fresh, doomed: Vec::new() };
        let mut open = None;
        match sealed.read_back() {
            Ok(found) => open = found,
            Err(why) => {
                tracing::warn!(table = table.name, why, "what is sealed is not used: it is read from the topic again");
                sealed.clear()?;
            }
        }
        sealed.remove_strangers()?;
        Ok((sealed, open))
    }

    /// The manifest, if it is of this topic and its files are there.
    fn read_back(&mut self) -> Result<Option<RecordBatch>, String> {
        let path = self.dir.join(MANIFEST);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e.to_string()),
        };
        let found: Manifest = serde_json::from_slice(&text).map_err(|e| format!("{}: {e}", path.display()))?;
        let mine = &self.manifest;
        if (&found.topic, &found.cluster) != (&mine.topic, &mine.cluster) {
            return Err(format!("it is of topic {} on cluster {}", found.topic, found.cluster));
        }
        if found.columns != mine.columns {
            return Err("it has other columns".to_owned());
        }
        for file in found.files.iter().chain(&found.open) {
            let path = self.dir.join(&file.name);
            let bytes = fs::metadata(&path).map_err(|e| format!("{}: {e}", path.display()))?.len();
            if bytes != file.bytes {
                return Err(format!("{} has {bytes} bytes, not {}", path.display(), file.bytes));
            }
        }
        let open = match &found.open {
            Some(file) => Some(read(self.table, &self.dir.join(&file.name)).map_err(|e| e.to_string())?),
            None => None,
        };
        self.manifest = found;
        Ok(open)
    }

    /// Begins anew.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub fn clear(&mut self) -> Result<(), SealError> {
        let Manifest { topic, cluster, columns, made, .. } = std::mem::take(&mut self.manifest);
        self.manifest = Manifest { topic, cluster, columns, made, ..Manifest::default() };
        let path = self.dir.join(MANIFEST);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(file_error(&path)(e)),
            _ => self.remove_strangers(),
        }
    }

    /// Removes files that the manifest does not name: of a seal that did not come to its end.
    fn remove_strangers(&self) -> Result<(), SealError> {
        let known: BTreeSet<&str> =
            self.manifest.files.iter().chain(&self.manifest.open).map(|file| file.name.as_str()).collect();
        for entry in fs::read_dir(&self.dir).map_err(file_error(&self.dir))? {
            let entry = entry.map_err(file_error(&self.dir))?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let ours = name.ends_with(".parquet") || name.ends_with(".tmp");
            if ours && !known.contains(&*name) && !self.doomed.contains(&entry.path()) {
                fs::remove_file(entry.path()).map_err(file_error(&entry.path()))?;
            }
        }
        Ok(())
    }

    /// What counts.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Where the files are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Says that a sealed row has changed; false: there are too many of these, begin anew.
    pub fn shadow(&mut self, id: &str) -> bool {
        if self.manifest.files.is_empty() {
            return true;
        }
        self.manifest.shadowed.insert(id.to_owned(), self.manifest.made);
        self.manifest.shadowed.len() <= SHADOWED
    }

    /// The files, and of each the ids that are left out.
    pub fn files(&self) -> Vec<(PathBuf, Vec<String>)> {
        let of = |file: &SealedFile| (self.dir.join(&file.name), shadows(&self.manifest, file));
        self.manifest.files.iter().map(of).collect()
    }

    /// Seals `ended`, and puts `open` aside; from `next` on the topic is read after a restart. Files that are older than `cutoff` (µs), or
    /// too many for `most_bytes`, go.
    ///
    /// # Errors
    /// Something cannot be written: the manifest before still counts.
    pub fn seal(
        &mut self,
        ended: &RecordBatch,
        open: &RecordBatch,
        next: &BTreeMap<i32, i64>,
        cutoff: Micros,
        most_bytes: u64,
    ) -> Result<(), SealError> {
        let doomed = std::mem::take(&mut self.doomed);
        let mut manifest = self.manifest.clone();
        if ended.num_rows() > 0 {
            let file = self.write(&mut manifest, ended)?;
            manifest.files.push(file);
        }
        let mut over: Vec<SealedFile> = Vec::new();
        over.extend(manifest.open.take());
        if open.num_rows() > 0 {
            manifest.open = Some(self.write(&mut manifest, open)?);
        }
        self.join(&mut manifest, &mut over)?;
        let total = |files: &[SealedFile]| files.iter().map(|file| file.bytes).sum::<u64>();
        while manifest.files.first().is_some_and(|oldest| oldest.until < cutoff)
            || (manifest.files.len() > 1 && total(&manifest.files) > most_bytes)
        {
            over.push(manifest.files.remove(0));
        }
        // what lay in files that are gone needs no shadow
        let oldest = manifest.files.first().map_or(u64::MAX, SealedFile::number);
        manifest.shadowed.retain(|_, made| *made >= oldest);
        manifest.next.clone_from(next);
        self.publish(manifest)?;
        self.doomed = over.iter().map(|file| self.dir.join(&file.name)).collect();
        for path in doomed {
            match fs::remove_file(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    tracing::warn!(file = %path.display(), error = %e, "a file that no longer counts cannot be removed");
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Makes one file of many small ones.
    fn join(&self, manifest: &mut Manifest, over: &mut Vec<SealedFile>) -> Result<(), SealError> {
        let small = manifest.files.iter().rev().take_while(|file| file.rows < SMALL).count();
        if small < SMALL_FILES {
            return Ok(());
        }
        let parts = manifest.files.split_off(manifest.files.len() - small);
        let batches = parts.iter().map(|file| {
            let batch = read(self.table, &self.dir.join(&file.name))?;
            without(self.table, batch, &shadows(manifest, file))
        });
        let batches = batches.collect::<Result<Vec<_>, _>>()?;
        let whole = concat_batches(&self.table.schema(), &batches)?;
        let file = self.write(manifest, &whole)?;
        manifest.files.push(file);
        over.extend(parts);
        Ok(())
    }

    fn publish(&mut self, manifest: Manifest) -> Result<(), SealError> {
        let path = self.dir.join(MANIFEST);
        let draft = self.dir.join(format!("{MANIFEST}.tmp"));
        let text = serde_json::to_vec_pretty(&manifest)?;
        let write = || {
            let mut file = File::create(&draft)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&draft, &path)?;
            File::open(&self.dir)?.sync_all()
        };
        write().map_err(file_error(&path))?;
        self.manifest = manifest;
        Ok(())
    }

    fn write(&self, manifest: &mut Manifest, batch: &RecordBatch) -> Result<SealedFile, SealError> {
        manifest.made += 1;
        let name = format!("{:012}.parquet", manifest.made);
        let path = self.dir.join(&name);
        let level = ZstdLevel::try_new(1).map_err(parquet_error(&path))?;
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(level))
            .set_max_row_group_row_count(Some(GROUP))
            .build();
        let mut writer =
            ArrowWriter::try_new(Vec::new(), self.table.schema(), Some(properties)).map_err(parquet_error(&path))?;
        writer.write(batch).map_err(parquet_error(&path))?;
        let bytes = writer.into_inner().map_err(parquet_error(&path))?;
        let save = || {
            let mut file = File::create(&path)?;
            file.write_all(&bytes)?;
            file.sync_all()
        };
        save().map_err(file_error(&path))?;
        let times = self.table.time.and_then(|time| batch.column_by_name(time));
        let times = times.and_then(|column| column.as_primitive_opt::<TimestampMicrosecondType>());
        Ok(SealedFile {
            name,
            rows: u64::try_from(batch.num_rows()).unwrap_or(u64::MAX),
            bytes: u64::try_from(bytes.len()).unwrap_or(u64::MAX),
            sha256: hex(&Sha256::digest(&bytes)),
            from: times.and_then(min).unwrap_or(Micros::MIN),
            until: times.and_then(max).unwrap_or(Micros::MAX),
        })
    }
}

impl SealedFile {
    /// Its number: files that were made later have higher ones.
    fn number(&self) -> u64 {
        self.name.split('.').next().and_then(|number| number.parse().ok()).unwrap_or_default()
    }
}

/// The ids that are left out of a file.
fn shadows(manifest: &Manifest, file: &SealedFile) -> Vec<String> {
    let number = file.number();
    manifest.shadowed.iter().filter(|(_, made)| number <= **made).map(|(id, _)| id.clone()).collect()
}

/// Rows without those of these ids.
fn without(table: &Table, batch: RecordBatch, ids: &[String]) -> Result<RecordBatch, SealError> {
    let column = table.id.first().and_then(|id| batch.column_by_name(id)).and_then(|c| c.as_string_opt::<i32>());
    let Some(column) = column.filter(|_| !ids.is_empty()) else { return Ok(batch) };
    let ids: BTreeSet<&str> = ids.iter().map(String::as_str).collect();
    let keep: BooleanArray = column.iter().map(|id| Some(id.is_none_or(|id| !ids.contains(id)))).collect();
    Ok(filter_record_batch(&batch, &keep)?)
}

fn read(table: &Table, path: &Path) -> Result<RecordBatch, SealError> {
    let file = File::open(path).map_err(file_error(path))?;
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).map_err(parquet_error(path))?;
    let reader = reader.build().map_err(parquet_error(path))?;
    let schema = table.schema();
    let batches = reader.collect::<Result<Vec<_>, _>>()?;
    let batches = batches.into_iter().map(|batch| RecordBatch::try_new(Arc::clone(&schema), batch.columns().to_vec()));
    Ok(concat_batches(&schema, &batches.collect::<Result<Vec<_>, _>>()?)?)
}

/// What is wrong with the sealed files of a directory: every file that a manifest names is there, whole, and what it was.
///
/// # Errors
/// The manifest cannot be read.
pub fn verify(dir: &Path) -> Result<(usize, Vec<String>), SealError> {
    let path = dir.join(MANIFEST);
    let manifest: Manifest = match fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text)?,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok((0, Vec::new())),
        Err(e) => return Err(file_error(&path)(e)),
    };
    let mut faults = Vec::new();
    let mut files = 0;
    for file in manifest.files.iter().chain(&manifest.open) {
        files += 1;
        let path = dir.join(&file.name);
        match fs::read(&path) {
            Ok(bytes) if hex(&Sha256::digest(&bytes)) == file.sha256 => {}
            Ok(_) => faults.push(format!("{} is not what was sealed", path.display())),
            Err(e) => faults.push(format!("{}: {e}", path.display())),
        }
    }
    Ok((files, faults))
}
