//! The policy level as files (L2): the seed's tests of the orchestrator, with a disk that fails and pauses that take no time.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use runwarden::decide::records::PolicyLevel;
use runwarden::serve::level::{Disk, FileSystem, LOG, LevelFiles, STATE};
use serde_json::{Value, json};

use crate::level::{levels, sample_of};
use crate::support::desk::Desk;

/// A disk on which the first writes fail, or those of some files always.
pub struct Failing {
    pub left: Arc<AtomicUsize>,
    pub never: &'static str,
}

impl Failing {
    fn fails(&self, path: &Path) -> io::Result<()> {
        let left = self.left.load(Ordering::SeqCst);
        if left > 0 {
            self.left.store(left - 1, Ordering::SeqCst);
            return Err(io::Error::other("the disk is full"));
        }
        if !self.never.is_empty() && path.to_string_lossy().contains(self.never) {
            return Err(io::Error::other("the disk is full"));
        }
        Ok(())
    }
}

impl Disk for Failing {
    fn read(&self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        FileSystem.read(path)
    }
    fn tail(&self, path: &Path, most: u64) -> io::Result<Vec<u8>> {
        FileSystem.tail(path, most)
    }
    fn replace(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        self.fails(path).and_then(|()| FileSystem.replace(path, content))
    }
    fn append(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        self.fails(path).and_then(|()| FileSystem.append(path, content))
    }
}

struct Place {
    dir: tempfile::TempDir,
    pauses: Arc<Mutex<Vec<u64>>>,
}

impl Place {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), pauses: Arc::default() }
    }

    fn marker(&self) -> PathBuf {
        self.dir.path().join("audit_summary.md")
    }

    fn files(&self, disk: Box<dyn Disk>) -> LevelFiles {
        let pauses = Arc::clone(&self.pauses);
        let pause = move |wait: Duration| pauses.lock().unwrap().push(wait.as_secs());
        LevelFiles::new(self.dir.path(), Some(&self.marker()), disk, Box::new(pause))
    }

    fn failing(&self, left: usize, never: &'static str) -> LevelFiles {
        self.files(Box::new(Failing { left: Arc::new(AtomicUsize::new(left)), never }))
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.dir.path().join(name)).unwrap()
    }

    fn lines(&self) -> Vec<Value> {
        self.text(LOG).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Every file below the data directory.
    fn all(&self) -> Vec<String> {
        fn walk(path: &Path, found: &mut Vec<String>) {
            for entry in fs::read_dir(path).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() { walk(&path, found) } else { found.push(path.display().to_string()) }
            }
        }
        let mut found = Vec::new();
        walk(self.dir.path(), &mut found);
        found
    }
}

/// The records of all that these samples give, one after the other.
pub fn records(samples: &[Value]) -> Vec<PolicyLevel> {
    let mut desk = Desk::new("");
    let mut records = Vec::new();
    for (now, fields) in (0..).zip(samples) {
        let said = desk.telemetry(now, &[sample_of("*", now, fields.clone())]);
        records.extend(levels(&said, "*").into_iter().map(|record| serde_json::from_value(record).unwrap()));
    }
    records
}

fn two() -> Vec<PolicyLevel> {
    records(&[
        json!({"trust_locked": false, "integrity_score": 97.5, "consensus_pct": 95.0, "reputation_score": 85.0,
            "forecast_risk": "low", "recent_responses": 2}),
        json!({"consensus_pct": 88.0}),
    ])
}

#[test]
fn test_log_append_structure() {
    let place = Place::new();
    let files = place.files(Box::new(FileSystem));
    for record in two() {
        assert!(files.show(&record).unwrap());
    }
    let lines = place.lines();
    let first = json!({"timestamp": "2026-01-05T00:00:00.000000Z", "policy": "GREEN", "trust_locked": false, "integrity": 97.5,
        "consensus": 95.0, "reputation": 85.0, "forecast": "low", "responses": 2});
    assert_eq!((lines.len(), &lines[0], &lines[1]["policy"]), (2, &first, &json!("YELLOW")));
    let state: Value = serde_json::from_str(&place.text(STATE)).unwrap();
    assert_eq!(state, json!(two()[1]), "the same fields as the record");
}

#[test]
fn test_atomic_write_paths() {
    let place = Place::new();
    let files = place.failing(2, "");
    for record in two() {
        files.show(&record).unwrap();
    }
    let all = place.all();
    assert!(all.iter().all(|path| !path.ends_with(".tmp")), "{all:?}");
    assert_eq!(all.len(), 3, "{all:?}");
    // a folder in the place of the file: the rename fails, and no draft stays
    let path = place.dir.path().join("occupied");
    fs::create_dir_all(path.join("x")).unwrap();
    assert!(FileSystem.replace(&path, b"text").is_err());
    assert!(place.all().iter().all(|path| !path.ends_with(".tmp")));
}

#[test]
fn test_audit_marker_idempotent() {
    let place = Place::new();
    fs::write(
        place.marker(),
        "# Audit\n<!-- POLICY_ORCHESTRATION: FAILED 2025-11-14T12:00:00+00:00 -->\nText.\n\
         <!-- POLICY_ORCHESTRATION: UPDATED 2025-11-14T12:00:00+00:00 policy=RED -->\nEnd",
    )
    .unwrap();
    let files = place.files(Box::new(FileSystem));
    let records = two();
    files.show(&records[0]).unwrap();
    let said = "# Audit\n<!-- POLICY_ORCHESTRATION: UPDATED 2026-01-05T00:00:00.000000Z policy=GREEN -->\nText.\nEnd";
    assert_eq!(place.text("audit_summary.md"), said, "replaced, and one is left");
    files.show(&records[1]).unwrap();
    let text = place.text("audit_summary.md");
    assert_eq!((text.matches("POLICY_ORCHESTRATION").count(), text.contains("policy=YELLOW")), (1, true), "{text}");
    fs::write(place.marker(), "no end of line").unwrap();
    let place = Place::new();
    place.files(Box::new(FileSystem)).show(&records[0]).unwrap();
    assert!(place.text("audit_summary.md").ends_with("policy=GREEN -->\n"), "a file that was not there is made");
}

/// The seed makes a fix branch in its repository; a sidecar leaves a bundle and raises an alert (L2).
#[test]
fn test_fix_branch_on_persistent_failure() {
    let place = Place::new();
    let record = two().remove(0);
    place.failing(3, "").show(&record).unwrap();
    assert_eq!(*place.pauses.lock().unwrap(), [1, 3, 9], "the fourth attempt succeeds");
    let place = Place::new();
    let trouble = place.failing(0, "policy_state").show(&record).unwrap_err();
    assert!(trouble.to_string().contains("the disk is full"), "{trouble}");
    assert_eq!(*place.pauses.lock().unwrap(), [1, 3, 9]);
    let bundle: Value = serde_json::from_slice(&fs::read(trouble.bundle.unwrap()).unwrap()).unwrap();
    assert_eq!((&bundle["record"], &bundle["attempts"]), (&json!(record), &json!(4)));
    let text = place.text("audit_summary.md");
    assert_eq!(text, "<!-- POLICY_ORCHESTRATION: FAILED 2026-01-05T00:00:00.000000Z -->\n");
    // once the disk is well again the next look writes what is missing
    assert!(place.files(Box::new(FileSystem)).show(&record).unwrap());
    assert_eq!(place.lines().len(), 1);
    let place = Place::new();
    let trouble = place.failing(100, "").show(&record).unwrap_err();
    assert!(trouble.bundle.is_none(), "as far as it can be written");
}

#[test]
fn a_restart_adds_no_line_twice_and_goes_on_after_what_is_shown() {
    let place = Place::new();
    let records = two();
    for _restart in 0..3 {
        let files = place.files(Box::new(FileSystem));
        for record in &records {
            files.show(record).unwrap();
        }
    }
    assert_eq!(place.lines().len(), 2);
    // died between the log and the state: the line is there already
    fs::remove_file(place.dir.path().join(STATE)).unwrap();
    assert!(place.files(Box::new(FileSystem)).show(&records[1]).unwrap());
    assert_eq!(place.lines().len(), 2);
    // died before the marker
    fs::remove_file(place.marker()).unwrap();
    assert!(!place.files(Box::new(FileSystem)).show(&records[1]).unwrap());
    assert!(place.text("audit_summary.md").contains("policy=YELLOW"));
    // died in the middle of a line
    fs::write(place.dir.path().join(LOG), "{\"timestamp\": \"20").unwrap();
    fs::remove_file(place.dir.path().join(STATE)).unwrap();
    place.files(Box::new(FileSystem)).show(&records[1]).unwrap();
    assert_eq!(place.text(LOG).lines().count(), 2, "what was cut short ends its line");
}

#[test]
fn test_full_integration_run() {
    let place = Place::new();
    let records = records(&[json!({"trust_locked": false, "integrity_score": 93.2, "consensus_pct": 87.0,
        "reputation_score": 78.0, "forecast_risk": "medium", "recent_responses": 5})]);
    place.files(Box::new(FileSystem)).show(&records[0]).unwrap();
    let state: Value = serde_json::from_str(&place.text(STATE)).unwrap();
    assert_eq!((&state["policy"], &state["tenant_id"]), (&json!("YELLOW"), &json!("*")));
    assert_eq!(state["reasons"].as_array().unwrap().len(), 5, "{state}");
    let fields: Vec<&String> = state.as_object().unwrap().keys().collect();
    let expected = ["evaluated_at", "inputs", "missing", "policy", "reasons", "revision", "tenant_id", "thresholds"];
    assert_eq!(fields, expected);
    assert_eq!(place.lines()[0]["policy"], "YELLOW");
    assert!(place.text("audit_summary.md").contains("UPDATED 2026-01-05T00:00:00.000000Z policy=YELLOW"));
}
