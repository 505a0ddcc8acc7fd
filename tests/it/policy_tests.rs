//! `runwarden test`: what it says of tests that pass, fail and are broken.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::support::root;

fn test(of: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_runwarden"));
    command.current_dir(root()).arg("test").arg(of).args(more).output().unwrap()
}

#[test]
fn the_shipped_policies_pass_their_tests() {
    let output = test(Path::new("config/tests"), &["--json"]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let outcomes: Vec<Value> = serde_json::from_str(&said).unwrap();
    assert!(outcomes.len() >= 4 && outcomes.iter().all(|o| o["passed"] == true), "{said}");
}

const CASES: &str = "name: Too much is expected
policies: p.yaml
each: {tenant_id: acme, run_id: r, event_type: run.step, event_time: 2026-01-05T00:00:00Z}
events:
  - {input_tokens: 90}
  - {input_tokens: 20}
expect:
  signals:
    - {kind: NEAR}
    - {kind: NEAR}
    - {kind: BREACH, value: 111, scope: {id: r}}
  alerts: []
never:
  interventions:
    - {type: STOP}
exactly: [signals]
---
name: All is as it should be
policies: p.yaml
events:
  - {event_time: 2026-01-05T00:00:00Z, event_type: run.step, tenant_id: acme, run_id: r, input_tokens: -1}
expect:
  dead_letters: [{reason: out_of_range}]
  signals: []
---
name: Its policies are broken
policies: broken.yaml
events: [{tenant_id: acme}]
exactly: [signals]
";

const GOLDEN: &str = include_str!("policy_tests/failure.txt");

#[test]
fn a_failure_says_what_was_expected_where_and_what_came_instead() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    let limit = "limits:\n  - {id: l, limit_type: T, metric: run_tokens, max: 100}\n";
    write("t.yaml", CASES);
    fs::create_dir(dir.path().join("none")).unwrap();
    write("p.yaml", &format!("id: p\nname: P\nenforcement_mode: BLOCK\n{limit}"));
    write("broken.yaml", &format!("id: p\nname: P\nenforcement: BLOCK\n{limit}"));
    let output = test(&dir.path().join("t.yaml"), &[]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stdout).unwrap().replace(&format!("{}/", dir.path().display()), "");
    assert_eq!(said, GOLDEN);
}

#[test]
fn tests_that_cannot_be_read_are_refused_with_their_places() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("t.yaml"), "name: x\npolicy: p.yaml\nevents: [{a: 1}]\nexpect: {signal: []}\n").unwrap();
    let output = test(dir.path(), &[]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    for part in
        ["t.yaml:2:1: policy: unknown key (did you mean `policies`?)", "t.yaml:4:10: expect.signal: unknown key"]
    {
        assert!(errors.contains(part), "{part:?} is missing: {errors}");
    }
    fs::remove_file(dir.path().join("t.yaml")).unwrap();
    let output = test(dir.path(), &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("holds no .yaml or .yml file"));
}
