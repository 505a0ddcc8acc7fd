//! The response runner's actions, files and undo (L3): the seed's tests of it, on a real disk.

use std::fs;
use std::path::{Path, PathBuf};

use runwarden::clock::{Wall, rfc3339};
use runwarden::config::{Config, Respond};
use runwarden::decide::records::{Level, ResponsePlan};
use runwarden::decide::respond::{Cause, Responding, Responses};
use runwarden::serve::level::{FileSystem, LOG, LevelFiles, STATE};
use runwarden::serve::respond::{APPLIED, BLOCKED, Done, MIRROR, PREVIEW, Runner, UndoError, undo};
use runwarden::serve::tables::schema::Source;
use runwarden::serve::tables::{Bounds, Limits, Record, SEALED, Tables};
use serde_json::{Value, json};

use crate::level_files::records;

const AT: &str = "2026-01-05T00:00:00.000000Z";

struct Place {
    dir: tempfile::TempDir,
    settings: Respond,
    responding: Responding,
}

impl Place {
    /// `settings` is the text of `[respond]`, with DIR for the directory.
    fn new(settings: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let text = format!("[respond]\n{}", settings.replace("DIR", &dir.path().display().to_string()));
        let config = Config::from_toml(&text, "c.toml", []).unwrap_or_else(|e| panic!("{e:?}"));
        let responding = runwarden::cli::load::tuning(&config).responding;
        let place = Self { dir, settings: config.respond, responding };
        let files = LevelFiles::new(place.path(), None, Box::new(FileSystem), Box::new(|_| ()));
        files.show(&records(&[json!({"integrity_score": 10})])[0]).unwrap();
        place
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn plan(&self, level: Level, apply: bool, locked: &[&str]) -> ResponsePlan {
        let cause = Cause { id: "c-1", principal: "user:ada", reason: "drill" };
        Responses::default().plan(level, apply, locked, runwarden::clock::Wall(0), &self.responding, &cause)
    }

    fn runner(&self) -> Runner<'_> {
        Runner { data: self.path(), settings: &self.settings, disk: &FileSystem }
    }

    fn apply(&self, level: Level) -> Vec<Done> {
        self.runner().apply(&self.plan(level, true, &[]), AT)
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&fs::read(self.path().join(name)).unwrap()).unwrap()
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }
}

fn of<'a>(done: &'a [Done], action: &str) -> &'a Done {
    done.iter().find(|d| d.action == action).unwrap_or_else(|| panic!("{action}: {done:?}"))
}

#[test]
fn test_dry_run_preview_generation() {
    let place = Place::new("anchor-file = \"DIR/anchor.json\"\n");
    place.write("anchor.json", "[1]");
    let path = place.runner().show(&place.plan(Level::Red, false, &["acme"])).unwrap();
    assert_eq!(path, place.path().join(PREVIEW));
    let preview = place.json(PREVIEW);
    assert_eq!((&preview["outcome"], &preview["level"]), (&json!("PREVIEW"), &json!("RED")));
    assert_eq!(preview["actions"][2], json!({"name": "anchor-mirror", "kind": "reversible", "command": null}));
    assert_eq!(preview["blocked_by"], json!(["trust_locked: trust is locked (acme)"]));
    assert!(!place.path().join(MIRROR).exists() && !place.path().join(APPLIED).exists(), "nothing was done");
}

#[test]
fn test_audit_marker_on_blocked_execution() {
    let place = Place::new("");
    place.runner().show(&place.plan(Level::Red, true, &["acme"])).unwrap();
    let report = place.json(BLOCKED);
    assert_eq!((&report["outcome"], &report["reason"]), (&json!("BLOCKED"), &json!("drill")));
    assert_eq!(report["blocked_by"].as_array().unwrap().len(), 1);
    assert!(!place.path().join(PREVIEW).exists());
}

#[test]
fn test_apply_mode_subprocess_execution() {
    let settings = "\n[[respond.actions]]\nname = \"note\"\nlevel = \"YELLOW\"\ncommand = [\"touch\", \"DIR/a b\"]\n\
                    [[respond.actions]]\nname = \"fails\"\nlevel = \"YELLOW\"\ncommand = [\"false\"]\n\
                    [[respond.actions]]\nname = \"hangs\"\nlevel = \"YELLOW\"\ncommand = [\"sleep\", \"60\"]\ntimeout = \"1s\"\n\
                    [[respond.actions]]\nname = \"absent\"\nlevel = \"YELLOW\"\ncommand = [\"/no/such/program\"]\n";
    let place = Place::new(settings);
    let done = place.apply(Level::Yellow);
    assert!(of(&done, "note").ok && place.path().join("a b").exists(), "no shell takes the argument apart");
    assert!(!of(&done, "fails").ok && !of(&done, "absent").ok);
    assert!(of(&done, "hangs").detail.contains("longer than 1 s and was killed"), "{done:?}");
    let log: Value = serde_json::from_str(fs::read_to_string(place.path().join(APPLIED)).unwrap().trim()).unwrap();
    assert_eq!((&log["ok"], log["actions"].as_array().unwrap().len()), (&json!(false), 6));
    assert_eq!((&log["level"], &log["timestamp"]), (&json!("YELLOW"), &json!(AT)));
}

#[test]
fn test_undo_file_creation_for_reversible_actions() {
    let settings = "anchor-file = \"DIR/anchor.json\"\n[[respond.actions]]\nname = \"flag\"\nlevel = \"RED\"\n\
                    kind = \"reversible\"\ncommand = [\"touch\", \"DIR/flag\"]\nundo = [\"rm\", \"DIR/flag\"]\n";
    let place = Place::new(settings);
    place.write("anchor.json", r#"{"chain": [2]}"#);
    place.write(MIRROR, r#"{"chain": [1]}"#);
    let done = place.apply(Level::Red);
    assert!(done.iter().all(|d| d.ok), "{done:?}");
    assert_eq!(place.json(MIRROR), json!({"chain": [2]}));
    assert_eq!(of(&done, "cold-storage-verification").detail, "nothing sealed yet");
    let records: Vec<PathBuf> = done.iter().filter_map(|d| d.undo.as_ref().map(PathBuf::from)).collect();
    assert_eq!(records.len(), 2);
    for record in &records {
        let name = record.file_name().unwrap().to_str().unwrap();
        assert!(record.starts_with(place.path().join("state")) && name.starts_with("policy_response_undo_"), "{name}");
        undo(record, 0, &FileSystem).unwrap();
        assert!(matches!(undo(record, 0, &FileSystem), Err(UndoError::Already(_))), "once");
    }
    assert_eq!(place.json(MIRROR), json!({"chain": [1]}), "as it was");
    assert!(!place.path().join("flag").exists());
    let other = place.write("other.json", "{}");
    assert!(matches!(undo(&other, 0, &FileSystem), Err(UndoError::NotOne(..))));
    assert!(matches!(undo(&place.path().join("absent"), 0, &FileSystem), Err(UndoError::File(..))));
}

#[test]
fn cold_storage_is_verified_file_by_file_and_one_that_was_changed_is_named() {
    let place = Place::new("");
    let folder = place.path().join(SEALED).join("slot");
    let tables = Tables::new(Bounds::default(), Limits::default(), Wall::now).unwrap();
    tables.open(Source::Runs, &folder, "runs", "cluster").unwrap();
    let payload =
        format!("{{\"run_id\": \"r-1\", \"tenant_id\": \"acme\", \"ended_at\": {:?}}}", rfc3339(Wall::now().0));
    let payload = Some(payload.as_bytes());
    tables.take(Source::Runs, Record { partition: 0, offset: 0, key: None, kind: None, payload }).unwrap();
    assert!(tables.tidy(Source::Runs, true).unwrap());
    let verified = || of(&place.apply(Level::Red), "cold-storage-verification").clone();
    assert_eq!(verified().detail, "1 files of sealed tables are what was sealed");
    let file = folder.join("runs/000000000001.parquet");
    let mut bytes = fs::read(&file).unwrap();
    bytes[10] ^= 1;
    fs::write(&file, bytes).unwrap();
    let changed = verified();
    assert!(!changed.ok && changed.detail.contains("000000000001.parquet is not what was sealed"), "{changed:?}");
}

#[test]
fn a_mirror_that_was_not_there_is_removed_by_its_undo_and_one_that_is_right_is_left() {
    let place = Place::new("anchor-file = \"DIR/anchor.json\"\n");
    let done = place.apply(Level::Red);
    assert!(!of(&done, "anchor-mirror").ok, "there is no anchor");
    place.write("anchor.json", "not JSON");
    assert!(of(&place.apply(Level::Red), "anchor-mirror").detail.contains("is not JSON"));
    place.write("anchor.json", "[1]");
    let record = of(&place.apply(Level::Red), "anchor-mirror").undo.clone().unwrap();
    assert!(of(&place.apply(Level::Red), "anchor-mirror").undo.is_none(), "it is as the anchor is");
    undo(Path::new(&record), 0, &FileSystem).unwrap();
    assert!(!place.path().join(MIRROR).exists());
}

#[test]
fn yellow_checks_the_form_and_red_every_row_and_neither_changes_anything() {
    let place = Place::new("integrity-data = [\"DIR/a.csv\", \"DIR/b.json\"]\n");
    let check = |level, action: &str| of(&place.apply(level), action).clone();
    assert!(check(Level::Yellow, "integrity-schema-check").detail.contains("a.csv is missing"));
    place.write("a.csv", "timestamp,integrity_score\n2026-01-05,97.5\n2026-01-06,197.5\n");
    place.write("b.json", r#"[{"timestamp": "x", "integrity_score": 1}]"#);
    assert!(check(Level::Yellow, "integrity-schema-check").ok);
    let whole = check(Level::Red, "full-integrity-check");
    assert!(!whole.ok && whole.detail.contains("a.csv: row 2: integrity_score is not a number"), "{whole:?}");
    place.write("a.csv", "timestamp,integrity_score\n2026-01-05,97.5\n");
    let whole = check(Level::Red, "full-integrity-check");
    assert!(whole.ok && whole.detail.contains("2 rows"), "{whole:?}");
    place.write("b.json", r#"{"timestamp": "x"}"#);
    assert!(check(Level::Yellow, "integrity-schema-check").detail.contains("row 1 has no field integrity_score"));
    assert!(check(Level::Yellow, "state-schema-check").ok);
    place.write(LOG, "{\"timestamp\": 1}\n");
    assert!(check(Level::Yellow, "state-schema-check").detail.contains("a line without policy"));
    place.write(STATE, "{}");
    assert!(!check(Level::Yellow, "state-schema-check").ok);
}

#[test]
fn an_action_that_cannot_be_taken_back_is_refused_by_the_configuration() {
    for wrong in [
        "name = \"x\"\ncommand = [\"true\"]\nkind = \"reversible\"\n",
        "name = \"x\"\n",
        "name = \"anchor-mirror\"\ncommand = [\"true\"]\n",
        "name = \"a/b\"\ncommand = [\"true\"]\n",
        "name = \"x\"\nlevel = \"GREEN\"\ncommand = [\"true\"]\n",
    ] {
        let refused = Config::from_toml(&format!("[[respond.actions]]\n{wrong}"), "c.toml", []);
        assert!(refused.is_err(), "{wrong}");
    }
}
