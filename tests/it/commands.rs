//! The command line on input that is not as it should be: what it says, what it writes, how it ends.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;

use crate::support::root;

/// A folder of its own, gone at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("runwarden-{}-{test}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    fn json(&self, name: &str) -> Vec<Value> {
        let text = fs::read_to_string(self.0.join(name)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap_or_default();
    }
}

fn runwarden(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_runwarden")).current_dir(root()).args(arguments).output().unwrap()
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn simulate(folder: &Folder, telemetry: &str) -> Output {
    let out = folder.0.join("out");
    let (out, telemetry) = (out.to_str().unwrap(), folder.0.join(telemetry));
    let telemetry = telemetry.to_str().unwrap();
    runwarden(&["simulate", "--policies", "config/policies", "--telemetry", telemetry, "--out", out])
}

#[test]
fn simulate_says_which_rows_of_a_csv_are_broken_and_how_many_rows_were_late() {
    let folder = Folder::new("csv");
    folder.write(
        "t.csv",
        "event_time,event_type,tenant_id,run_id,api_key_id,input_tokens\n\
         2026-01-01T00:00:30Z,run.step,acme,r,k,5\n\
         2026-01-01T00:10:00Z,run.step,acme\n\
         2026-01-01T00:10:00Z,run.step,acme,r,k,5\n\
         2026-01-01T00:00:31Z,run.step,acme,r,k,5\n",
    );
    let output = simulate(&folder, "t.csv");
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    let dead = folder.json("out/dead-letter.jsonl");
    assert_eq!(dead.len(), 1);
    assert_eq!(dead[0]["origin"]["line"], 3);
    assert_eq!(dead[0]["message"], "the row has 3 cells, the header 6");
    let summary: Value = serde_json::from_slice(&fs::read(folder.0.join("out/summary.json")).unwrap()).unwrap();
    assert_eq!(summary["late"]["api_key_requests_1m"], 1, "{summary}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("late rows         api_key_requests_1m 1"));
}

#[test]
fn a_file_that_cannot_be_read_says_why() {
    let folder = Folder::new("absent");
    let output = simulate(&folder, "absent.jsonl");
    assert_eq!(output.status.code(), Some(1));
    assert!(errors(&output).contains("No such file"), "{}", errors(&output));
}

#[test]
fn check_places_faults_of_every_query_and_reads_json_policies() {
    let folder = Folder::new("check");
    for kind in ["metrics", "decide"] {
        for entry in fs::read_dir(root().join("queries").join(kind)).unwrap() {
            let path = entry.unwrap().path();
            let name = format!("q/{kind}/{}", path.file_name().unwrap().to_str().unwrap());
            folder.write(&name, &fs::read_to_string(&path).unwrap());
        }
    }
    let change = |name: &str, from: &str, to: &str| {
        let text = fs::read_to_string(folder.0.join(name)).unwrap();
        assert!(text.contains(from), "{from}");
        folder.write(name, &text.replacen(from, to, 1));
    };
    let policy =
        r#"{"id": "p", "name": "P", "limits": [{"id": "l", "limit_type": "T", "metric": "run_tokens", "max": 1}]}"#;
    folder.write("p/a.json", policy);
    let [queries, policies] = ["q", "p"].map(|d| folder.0.join(d).display().to_string());
    let config = folder.write("c.toml", &format!("[paths]\nqueries = \"{queries}\"\npolicies = \"{policies}\"\n"));
    let check = || runwarden(&["check", "--config", config.to_str().unwrap()]);
    let output = check();
    assert!(String::from_utf8_lossy(&output.stdout).contains("14 metrics, 1 policies"), "{}", errors(&output));

    change("q/metrics/run_tokens.sql", "sum(total_tokens)", "sum(total_tokenz)");
    change("q/decide/thresholds.sql", "r.value >= l.max ", "r.valeu >= l.max ");
    change("q/decide/correlation.sql", "scope_kind ||", "scope_kindd ||");
    let output = check();
    assert_eq!(output.status.code(), Some(1));
    let said = errors(&output);
    for place in ["metrics/run_tokens.sql:7:12: ", "decide/thresholds.sql:24:", "decide/correlation.sql:8:36: "] {
        assert!(said.contains(&format!("{queries}/{place}")), "{place} in {said}");
    }
    assert!(!said.contains("there is no metric"), "the metric is there, it does not compile: {said}");
}
