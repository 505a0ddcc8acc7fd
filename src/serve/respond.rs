//! The response runner (L3): executes what the core has planned, and leaves previews, a log, undo records and reports of what was
//! blocked.
//!
//! What is done at which level, and whether it may be done, is decided by the core; here are the actions themselves. Those of a user are
//! programs with their arguments, without a shell, as this process's own configuration names them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::clock::rfc3339;
use crate::config::{Action, ActionKind, Respond};
use crate::decide::records::{PolicyLevel, ResponseOutcome, ResponsePlan};
use crate::serve::level::{Disk, LOG, STATE};
use crate::serve::tables::{SEALED, sealed};

/// What would be done, below the data directory.
pub const PREVIEW: &str = "state/policy_response_preview.json";
/// One line for each response that was applied, below the data directory.
pub const APPLIED: &str = "state/policy_response_log.jsonl";
/// Why a response was not applied, below the data directory.
pub const BLOCKED: &str = "reports/policy_response_blocked.json";
/// The mirror of the integrity anchor, below the data directory.
pub const MIRROR: &str = "mirrors/anchor_chain.json";
/// How often a program is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// Most texts of faults that are kept of one check.
const MAX_FAULTS: usize = 20;

/// What one action came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// Its name.
    pub action: String,
    /// Whether it did what it should.
    pub ok: bool,
    /// In words.
    pub detail: String,
    /// The undo record, if it changed something.
    pub undo: Option<String>,
}

/// How what was done is taken back: `state/policy_response_undo_*.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Undo {
    /// The response.
    pub response_id: String,
    /// The action.
    pub action: String,
    /// When it was done.
    pub at: String,
    /// What takes it back.
    pub how: How,
    /// When it was taken back.
    #[serde(default)]
    pub undone_at: Option<String>,
}

/// What takes an action back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum How {
    /// Puts the backup in the file's place.
    Restore {
        /// The file.
        file: PathBuf,
        /// What it was before.
        backup: PathBuf,
    },
    /// Removes the file, which was not there before.
    Remove {
        /// The file.
        file: PathBuf,
    },
    /// Runs a program.
    Run {
        /// Program and arguments.
        command: Vec<String>,
        /// How long it may take, seconds.
        timeout_seconds: u64,
    },
}

/// Why an undo record could not be executed.
#[derive(Debug, thiserror::Error)]
pub enum UndoError {
    /// It cannot be read or written.
    #[error("{0}: {1}")]
    File(PathBuf, #[source] std::io::Error),
    /// It is no undo record.
    #[error("{0} is no undo record")]
    NotOne(PathBuf, #[source] serde_json::Error),
    /// It was executed before.
    #[error("it was undone at {0} already")]
    Already(String),
    /// The program that takes it back failed.
    #[error("{0}")]
    Failed(String),
}

/// Executes responses under a data directory.
pub struct Runner<'a> {
    /// The data directory.
    pub data: &'a Path,
    /// `[respond]`
    pub settings: &'a Respond,
    /// Where files are.
    pub disk: &'a dyn Disk,
}

impl Runner<'_> {
    /// Shows a plan that is not applied: the preview, or the report of what blocked it.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn show(&self, plan: &ResponsePlan) -> std::io::Result<PathBuf> {
        let path = self.data.join(if plan.outcome == ResponseOutcome::Blocked { BLOCKED } else { PREVIEW });
        self.disk.replace(&path, &serde_json::to_vec_pretty(&self.described(plan))?)?;
        Ok(path)
    }

    fn described(&self, plan: &ResponsePlan) -> Value {
        let of = |name: &String| {
            let user = self.settings.actions.iter().find(|action| action.name == *name);
            let kind = match user.map(|action| action.kind) {
                Some(ActionKind::Reversible) => "reversible",
                None if name == "anchor-mirror" => "reversible",
                Some(ActionKind::ReadOnly) | None => "read-only",
            };
            json!({"name": name, "kind": kind, "command": user.map(|action| &action.command)})
        };
        let mut text = json!(plan);
        text["actions"] = plan.actions.iter().map(of).collect();
        text
    }

    /// Executes a plan, action by action; one that fails does not stop the next. `at` is when, as text.
    pub fn apply(&self, plan: &ResponsePlan, at: &str) -> Vec<Done> {
        let done: Vec<Done> = plan.actions.iter().map(|action| self.act(plan, action, at)).collect();
        let line = json!({
            "timestamp": at, "response_id": plan.response_id, "level": plan.level, "principal": plan.principal,
            "reason": plan.reason, "ok": done.iter().all(|d| d.ok), "actions": done,
        });
        if let Err(error) = self.disk.append(&self.data.join(APPLIED), format!("{line}\n").as_bytes()) {
            tracing::error!(%error, "the log of responses could not be written");
        }
        done
    }

    fn act(&self, plan: &ResponsePlan, action: &str, at: &str) -> Done {
        let checked = match action {
            "integrity-schema-check" => self.check_integrity(false),
            "full-integrity-check" => {
                let (data, state) = (self.check_integrity(true), self.check_state());
                data.and_then(|data| state.map(|state| format!("{data}; {state}")))
            }
            "state-schema-check" => self.check_state(),
            "cold-storage-verification" => self.verify_cold_storage(),
            "anchor-mirror" => return self.mirror(plan, at),
            name => return self.user(plan, name, at),
        };
        let (ok, detail) = checked.map_or_else(|why| (false, why), |said| (true, said));
        Done { action: action.to_owned(), ok, detail, undo: None }
    }

    /// Whether the integrity data is there and has its columns; `whole`: and whether every row holds what it should.
    fn check_integrity(&self, whole: bool) -> Result<String, String> {
        if self.settings.integrity_data.is_empty() {
            return Ok("no integrity data is named in [respond] integrity-data".to_owned());
        }
        let mut faults = Vec::new();
        let mut rows = 0;
        for path in &self.settings.integrity_data {
            let name = path.display();
            match self.disk.read(path) {
                Ok(None) => faults.push(format!("{name} is missing")),
                Err(error) => faults.push(format!("{name}: {error}")),
                Ok(Some(text)) => match integrity(path, &text, &self.settings.integrity_columns, whole) {
                    Ok(found) => rows += found,
                    Err(found) => faults.extend(found.into_iter().map(|fault| format!("{name}: {fault}"))),
                },
            }
        }
        match faults.is_empty() {
            true => Ok(format!("{} files of integrity data, {rows} rows", self.settings.integrity_data.len())),
            false => Err(listed(&faults)),
        }
    }

    /// Whether the state files are what they should be.
    fn check_state(&self) -> Result<String, String> {
        let state = match self.disk.read(&self.data.join(STATE)) {
            Ok(Some(text)) => {
                let level = serde_json::from_slice::<PolicyLevel>(&text);
                let level = level.map_err(|_| format!("{STATE} is not a level record"))?;
                format!("{STATE} shows {}", level.policy.as_str())
            }
            Ok(None) => return Err(format!("{STATE} is missing")),
            Err(error) => return Err(format!("{STATE}: {error}")),
        };
        let log = self.disk.tail(&self.data.join(LOG), 64 << 10).map_err(|error| format!("{LOG}: {error}"))?;
        let text = String::from_utf8_lossy(&log);
        // the first line may be cut
        let lines = text.lines().skip(usize::from(log.len() == 64 << 10)).filter(|line| !line.is_empty());
        let fields =
            ["timestamp", "policy", "trust_locked", "integrity", "consensus", "reputation", "forecast", "responses"];
        let mut count = 0;
        for line in lines {
            let value: Value =
                serde_json::from_str(line).map_err(|_| format!("{LOG} holds a line that is not JSON"))?;
            if let Some(missing) = fields.iter().find(|field| value.get(**field).is_none()) {
                return Err(format!("{LOG} holds a line without {missing}"));
            }
            count += 1;
        }
        Ok(format!("{state}, {count} recent lines in {LOG}"))
    }

    /// Whether every file of sealed tables is what its manifest says.
    fn verify_cold_storage(&self) -> Result<String, String> {
        let verify = || {
            let (mut files, mut faults) = (0, Vec::new());
            for slot in folders(&self.data.join(SEALED))? {
                for table in folders(&slot)? {
                    let (some, wrong) = sealed::verify(&table).map_err(|error| error.to_string())?;
                    files += some;
                    faults.extend(wrong);
                }
            }
            Ok::<_, String>((files, faults))
        };
        let (mut files, mut faults) = verify()?;
        if !faults.is_empty() {
            // a seal that came in between replaced files; what is still wrong is wrong
            (files, faults) = verify()?;
        }
        match (files, faults.is_empty()) {
            (0, true) => Ok("nothing sealed yet".to_owned()),
            (files, true) => Ok(format!("{files} files of sealed tables are what was sealed")),
            (_, false) => Err(listed(&faults)),
        }
    }

    /// Makes the mirror of the integrity anchor anew; the one before is the backup.
    fn mirror(&self, plan: &ResponsePlan, at: &str) -> Done {
        let done = |ok, detail: String, undo| Done { action: "anchor-mirror".to_owned(), ok, detail, undo };
        let Some(anchor) = &self.settings.anchor_file else {
            return done(true, "no anchor is named in [respond] anchor-file".to_owned(), None);
        };
        let mirror = self.data.join(MIRROR);
        let made = || -> Result<Option<String>, String> {
            let said = |path: &Path, e: std::io::Error| format!("{}: {e}", path.display());
            let text = self.disk.read(anchor).map_err(|e| said(anchor, e))?;
            let text = text.ok_or_else(|| format!("{} is missing", anchor.display()))?;
            serde_json::from_slice::<serde::de::IgnoredAny>(&text)
                .map_err(|_| format!("{} is not JSON", anchor.display()))?;
            let before = self.disk.read(&mirror).map_err(|e| said(&mirror, e))?;
            if before.as_ref() == Some(&text) {
                return Ok(None);
            }
            let how = match before {
                None => How::Remove { file: mirror.clone() },
                Some(before) => {
                    let backup = self.data.join(format!("{MIRROR}.{}.backup", plan.response_id));
                    self.disk.replace(&backup, &before).map_err(|e| said(&backup, e))?;
                    How::Restore { file: mirror.clone(), backup }
                }
            };
            // first how it is taken back, then what is done
            let undo = self.leave_undo(plan, "anchor-mirror", at, how).map_err(|e| format!("no undo record: {e}"))?;
            self.disk.replace(&mirror, &text).map_err(|e| said(&mirror, e))?;
            Ok(Some(undo))
        };
        match made() {
            Ok(Some(undo)) => done(true, format!("{MIRROR} was made anew"), Some(undo)),
            Ok(None) => done(true, format!("{MIRROR} is as the anchor is"), None),
            Err(why) => done(false, why, None),
        }
    }

    fn leave_undo(&self, plan: &ResponsePlan, action: &str, at: &str, how: How) -> std::io::Result<String> {
        let path = self.data.join(format!("state/policy_response_undo_{}_{action}.json", plan.response_id));
        let undo = Undo {
            response_id: plan.response_id.clone(),
            action: action.to_owned(),
            at: at.to_owned(),
            how,
            undone_at: None,
        };
        self.disk.replace(&path, &serde_json::to_vec_pretty(&undo)?)?;
        Ok(path.display().to_string())
    }

    fn user(&self, plan: &ResponsePlan, name: &str, at: &str) -> Done {
        let done = |ok, detail: String, undo| Done { action: name.to_owned(), ok, detail, undo };
        let Some(action) = self.settings.actions.iter().find(|action| action.name == name) else {
            return done(false, "the configuration of this process does not name it".to_owned(), None);
        };
        let Action { command, undo, timeout, .. } = action;
        let record = match action.kind {
            ActionKind::ReadOnly => None,
            ActionKind::Reversible => {
                let how = How::Run { command: undo.clone(), timeout_seconds: timeout.as_secs() };
                match self.leave_undo(plan, name, at, how) {
                    Ok(path) => Some(path),
                    Err(error) => return done(false, format!("not run: no undo record: {error}"), None),
                }
            }
        };
        match run(command, *timeout) {
            Ok(said) => done(true, said, record),
            // it may have done a part
            Err(why) => done(false, why, record),
        }
    }
}

/// Executes an undo record, once.
///
/// # Errors
/// It cannot be read, was executed before, or what takes the action back failed.
pub fn undo(path: &Path, at: i64, disk: &dyn Disk) -> Result<Undo, UndoError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |error| UndoError::File(path, error)
    };
    let text = disk.read(path).map_err(failed(path))?;
    let text = text.ok_or_else(|| UndoError::File(path.to_owned(), std::io::ErrorKind::NotFound.into()))?;
    let mut undo: Undo = serde_json::from_slice(&text).map_err(|e| UndoError::NotOne(path.to_owned(), e))?;
    if let Some(at) = undo.undone_at {
        return Err(UndoError::Already(at));
    }
    match &undo.how {
        How::Restore { file, backup } => {
            let before = disk.read(backup).map_err(failed(backup))?;
            let before = before.ok_or_else(|| UndoError::File(backup.clone(), std::io::ErrorKind::NotFound.into()))?;
            disk.replace(file, &before).map_err(failed(file))?;
        }
        How::Remove { file } => match std::fs::remove_file(file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(file)(error)),
            _ => {}
        },
        How::Run { command, timeout_seconds } => {
            run(command, Duration::from_secs(*timeout_seconds)).map_err(UndoError::Failed)?;
        }
    }
    undo.undone_at = Some(rfc3339(at));
    let text = serde_json::to_vec_pretty(&undo).map_err(|e| UndoError::NotOne(path.to_owned(), e))?;
    disk.replace(path, &text).map_err(failed(path))?;
    Ok(undo)
}

/// The folders in a folder; none where it is not there.
fn folders(path: &Path) -> Result<Vec<PathBuf>, String> {
    let said = |error: std::io::Error| format!("{}: {error}", path.display());
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(said(error)),
    };
    let paths: Result<Vec<PathBuf>, std::io::Error> = entries.map(|entry| entry.map(|entry| entry.path())).collect();
    let mut paths = paths.map_err(said)?;
    paths.retain(|path| path.is_dir());
    paths.sort();
    Ok(paths)
}

fn listed(faults: &[String]) -> String {
    let more = faults.len().saturating_sub(MAX_FAULTS);
    let shown = faults.iter().take(MAX_FAULTS).cloned().collect::<Vec<_>>().join("; ");
    if more > 0 { format!("{shown}; and {more} more") } else { shown }
}

/// Rows of a file of integrity data, or what is wrong with it.
fn integrity(path: &Path, text: &[u8], columns: &[String], whole: bool) -> Result<usize, Vec<String>> {
    let is_csv = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("csv"));
    let mut faults = Vec::new();
    let mut rows = 0;
    if is_csv {
        let mut reader = csv::Reader::from_reader(text);
        let headers = reader.headers().map_err(|e| vec![e.to_string()])?.clone();
        let missing = |column: &&String| !headers.iter().any(|header| header.trim() == column.as_str());
        faults.extend(columns.iter().filter(missing).map(|column| format!("has no column {column}")));
        if whole {
            for record in reader.records() {
                match record {
                    Ok(record) => {
                        rows += 1;
                        let named = headers.iter().zip(record.iter());
                        faults.extend(named.filter_map(|(name, value)| score(name.trim(), value.parse().ok(), rows)));
                    }
                    Err(error) => faults.push(error.to_string()),
                }
            }
        }
    } else {
        let value: Value = serde_json::from_slice(text).map_err(|_| vec!["is not JSON".to_owned()])?;
        let all = match &value {
            Value::Array(all) => all.iter().collect(),
            one => vec![one],
        };
        for object in all {
            rows += 1;
            let missing = |column: &&String| object.get(column.as_str()).is_none();
            faults.extend(columns.iter().filter(missing).map(|column| format!("row {rows} has no field {column}")));
            if whole && let Some(fields) = object.as_object() {
                faults.extend(fields.iter().filter_map(|(name, value)| score(name, value.as_f64(), rows)));
            }
        }
    }
    if faults.is_empty() { Ok(rows) } else { Err(faults) }
}

/// What is wrong with a score, from 0 to 100; other columns hold what they hold.
fn score(name: &str, value: Option<f64>, row: usize) -> Option<String> {
    let wrong = name == "integrity_score" && !value.is_some_and(|value| (0.0..=100.0).contains(&value));
    wrong.then(|| format!("row {row}: integrity_score is not a number from 0 to 100"))
}

/// Runs a program, without a shell and without input; one that takes too long is killed.
fn run(command: &[String], timeout: Duration) -> Result<String, String> {
    let (program, arguments) = command.split_first().ok_or("there is no program")?;
    let child =
        Command::new(program).args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let mut child = child.map_err(|error| format!("{program}: {error}"))?;
    let until = Instant::now() + timeout;
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(format!("{program} ended well")),
            Ok(Some(status)) => return Err(format!("{program}: {status}")),
            Ok(None) if Instant::now() < until => std::thread::sleep(LOOK),
            Ok(None) => {
                let ended = child.kill().and_then(|()| child.wait());
                let how = ended.map_or_else(|e| format!("and could not be killed: {e}"), |_| "and was killed".into());
                return Err(format!("{program} took longer than {} s {how}", timeout.as_secs()));
            }
            Err(error) => return Err(format!("{program}: {error}")),
        }
    }
}
