//! The policy level as files (L2): the current state, the append-only log, the marker in a Markdown file, and what is left behind when
//! they cannot be written.
//!
//! Files are replaced whole: a temporary file in the same directory, `fsync`, `rename`. A write that fails is tried again after 1 s, 3 s
//! and 9 s. The disk and the pauses are handed in, so that tests need neither.

use std::fs;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::decide::records::PolicyLevel;

/// The current state, below the data directory.
pub const STATE: &str = "state/policy_state.json";
/// One line for each decision, below the data directory.
pub const LOG: &str = "state/policy_state_log.jsonl";
/// Pauses before a write is tried again.
pub const PAUSES: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(3), Duration::from_secs(9)];
/// Where the marker begins.
const MARKER: &str = "<!-- POLICY_ORCHESTRATION: ";
/// What is read of the log's end: more than a line.
const TAIL: u64 = 4_096;
/// Largest file that is read.
const MAX_FILE: u64 = 16 << 20;

/// Where files are written.
pub trait Disk: Send {
    /// A file, whole; `None`: there is none.
    ///
    /// # Errors
    /// It cannot be read, or is too large.
    fn read(&self, path: &Path) -> io::Result<Option<Vec<u8>>>;
    /// The last bytes of a file, at most so many; empty: there is none.
    ///
    /// # Errors
    /// It cannot be read.
    fn tail(&self, path: &Path, most: u64) -> io::Result<Vec<u8>>;
    /// Puts a file in its place at once, or leaves the old one.
    ///
    /// # Errors
    /// It cannot be written.
    fn replace(&self, path: &Path, content: &[u8]) -> io::Result<()>;
    /// Adds to the end of a file.
    ///
    /// # Errors
    /// It cannot be written.
    fn append(&self, path: &Path, content: &[u8]) -> io::Result<()>;
}

/// The file system.
pub struct FileSystem;

impl Disk for FileSystem {
    fn read(&self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        match fs::metadata(path) {
            Ok(found) if found.len() > MAX_FILE => Err(io::Error::other(format!("it has {} bytes", found.len()))),
            Ok(_) => fs::read(path).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn tail(&self, path: &Path, most: u64) -> io::Result<Vec<u8>> {
        let mut file = match fs::File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let length = file.metadata()?.len();
        file.seek(io::SeekFrom::Start(length.saturating_sub(most)))?;
        let mut end = Vec::new();
        file.take(most).read_to_end(&mut end)?;
        Ok(end)
    }

    fn replace(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(folder)?;
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let draft = folder.join(format!(".{name}.{}.tmp", std::process::id()));
        let written = fs::File::create(&draft)
            .and_then(|mut file| file.write_all(content).and_then(|()| file.sync_all()))
            .and_then(|()| fs::rename(&draft, path))
            // the name is safe when its directory is
            .and_then(|()| fs::File::open(folder)?.sync_all());
        if written.is_err() && draft.exists() {
            fs::remove_file(&draft)?;
        }
        written
    }

    fn append(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let mut file = fs::OpenOptions::new().create(true).append(true).open(path)?;
        file.write_all(content)?;
        file.sync_all()
    }
}

/// Waits between two attempts.
pub type Pause = Box<dyn Fn(Duration) + Send>;

/// Why files could not be written, after every attempt.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {path}: {error}")]
pub struct Trouble {
    /// The file.
    pub path: String,
    /// The last error.
    #[source]
    pub error: io::Error,
    /// The bundle that was left, if one could be.
    pub bundle: Option<PathBuf>,
}

/// The files of a data directory.
pub struct LevelFiles {
    data: PathBuf,
    marker: Option<PathBuf>,
    disk: Box<dyn Disk>,
    pause: Pause,
}

impl LevelFiles {
    /// Below `data`; with the marker in `marker`, if there is one.
    pub fn new(data: &Path, marker: Option<&Path>, disk: Box<dyn Disk>, pause: Pause) -> Self {
        Self { data: data.to_owned(), marker: marker.map(Path::to_owned), disk, pause }
    }

    /// Shows how all stand. `false`: that, or something later, is shown already, as after a restart.
    ///
    /// # Errors
    /// A write failed four times; a bundle lies under `reports/`, as far as that could be written, and the marker says FAILED.
    pub fn show(&self, level: &PolicyLevel) -> Result<bool, Trouble> {
        let (shown, this) = (self.shown(), (level.revision, level.evaluated_at));
        let written = match shown {
            Some(shown) if shown > this => return Ok(false),
            // the process may have died before the marker
            Some(shown) if shown == this => self.write_marker(level),
            _ => self.write(level),
        };
        written.map_err(|(path, error)| self.give_up(level, &path, error)).map(|()| shown != Some(this))
    }

    /// Revision and time of what the state file shows.
    fn shown(&self) -> Option<(u64, i64)> {
        let text = self.disk.read(&self.data.join(STATE)).ok()??;
        let shown: PolicyLevel = serde_json::from_slice(&text).ok()?;
        Some((shown.revision, shown.evaluated_at))
    }

    fn write(&self, level: &PolicyLevel) -> Result<(), (PathBuf, io::Error)> {
        let (state, log) = (self.data.join(STATE), self.data.join(LOG));
        let line = log_line(level).to_string();
        // the log first, once: a state file names what is in the log, and a line that is there already is not added again
        self.again(&log, || {
            let known = self.disk.tail(&log, TAIL)?;
            if known.split(|b| *b == b'\n').rev().find(|l| !l.is_empty()) == Some(line.as_bytes()) {
                return Ok(());
            }
            // what a crash cut short ends here
            let begin = if known.is_empty() || known.ends_with(b"\n") { "" } else { "\n" };
            self.disk.append(&log, format!("{begin}{line}\n").as_bytes())
        })?;
        let text = serde_json::to_vec_pretty(level).map_err(|e| (state.clone(), e.into()))?;
        self.again(&state, || self.disk.replace(&state, &text))?;
        self.write_marker(level)
    }

    fn write_marker(&self, level: &PolicyLevel) -> Result<(), (PathBuf, io::Error)> {
        let said = format!("UPDATED {} policy={}", crate::clock::rfc3339(level.evaluated_at), level.policy.as_str());
        match &self.marker {
            Some(marker) => self.again(marker, || self.mark(marker, &said)),
            None => Ok(()),
        }
    }

    fn again(&self, path: &Path, work: impl Fn() -> io::Result<()>) -> Result<(), (PathBuf, io::Error)> {
        let mut pauses = PAUSES.iter();
        loop {
            match (work(), pauses.next()) {
                (Ok(()), _) => return Ok(()),
                (Err(error), Some(pause)) => {
                    tracing::warn!(%error, path = %path.display(), ?pause, "cannot write; trying again");
                    (self.pause)(*pause);
                }
                (Err(error), None) => return Err((path.to_owned(), error)),
            }
        }
    }

    /// Puts the one marker in its place: another is replaced, none is added at the end.
    fn mark(&self, path: &Path, said: &str) -> io::Result<()> {
        let text = self.disk.read(path)?.unwrap_or_default();
        let text = String::from_utf8(text).map_err(|_| io::Error::other("it is not UTF-8"))?;
        let marked = marked(&text, said);
        if marked == text { Ok(()) } else { self.disk.replace(path, marked.as_bytes()) }
    }

    fn give_up(&self, level: &PolicyLevel, path: &Path, error: io::Error) -> Trouble {
        let at = crate::clock::rfc3339(level.evaluated_at);
        let report = json!({
            "failed": path.display().to_string(), "error": error.to_string(), "at": at, "attempts": PAUSES.len() + 1,
            "record": level, "log_line": log_line(level),
        });
        let name = at.replace(':', "-");
        let bundle = self.data.join(format!("reports/policy_level_failed_{name}.json"));
        let left = self.disk.replace(&bundle, report.to_string().as_bytes());
        if let Err(error) = &left {
            tracing::error!(%error, path = %bundle.display(), "the report of that could not be left either");
        }
        if let Some(marker) = &self.marker
            && let Err(error) = self.mark(marker, &format!("FAILED {at}"))
        {
            tracing::error!(%error, path = %marker.display(), "the marker could not be set");
        }
        Trouble { path: path.display().to_string(), error, bundle: left.is_ok().then_some(bundle) }
    }
}

/// The line of a decision in the log.
fn log_line(level: &PolicyLevel) -> Value {
    let inputs = &level.inputs;
    json!({
        "timestamp": crate::clock::rfc3339(level.evaluated_at), "policy": level.policy, "trust_locked": inputs.trust_locked,
        "integrity": inputs.integrity_score, "consensus": inputs.consensus_pct, "reputation": inputs.reputation_score,
        "forecast": inputs.forecast_risk, "responses": inputs.recent_responses,
    })
}

/// A text with the marker in place of the one it has, or behind its end; whatever the number of markers, one is left.
fn marked(text: &str, said: &str) -> String {
    let marker = format!("{MARKER}{said} -->");
    let mut out = String::with_capacity(text.len() + marker.len() + 1);
    let (mut rest, mut placed) = (text, false);
    while let Some(at) = rest.find(MARKER) {
        let (before, from) = rest.split_at(at);
        let Some(end) = from.find("-->") else { break };
        out.push_str(before);
        rest = from.get(end + 3..).unwrap_or_default();
        if placed {
            rest = rest.strip_prefix('\n').unwrap_or(rest);
        } else {
            out.push_str(&marker);
            placed = true;
        }
    }
    out.push_str(rest);
    if !placed {
        if !out.is_empty() && !out.ends_with('\n') {
            out.push('\n');
        }
        out.push_str(&marker);
        out.push('\n');
    }
    out
}
