//! Workers that are told to stop, through the shipped binary and a real broker (X3): one that obeys, one that is deaf, one that lies,
//! and one written in Python. Needs a broker, see `support::broker`; the last also confluent-kafka (`RUNWARDEN_TEST_PYTHON`).

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::end_to_end::Site;
use crate::support::root;
use crate::support::sidecar::eventually;

const SOON: Duration = Duration::from_secs(30);
const POLICY: &str = "id: run\nname: Run\nenforcement_mode: BLOCK\nlimits:\n- {id: tokens, limit_type: TOKENS_PER_RUN, metric: run_tokens, max: 100}\n";

/// A site with a policy that stops runs, where who is deaf is so after two seconds.
fn site(test: &str) -> Option<Site> {
    let site = Site::new(test, 2, "")?;
    fs::write(site.dir.path().join("policies/policies.yaml"), POLICY).unwrap();
    let config = fs::read_to_string(site.config()).unwrap();
    let config = config.replace("acknowledge-within = \"24h\"", "acknowledge-within = \"2s\"");
    fs::write(site.config(), config + "[limits]\nstop-grace = \"1s\"\n").unwrap();
    Some(site)
}

/// The example beside this test binary: `cargo test` builds both.
fn worker(site: &Site, arguments: &[&str]) -> Command {
    let here = std::env::current_exe().unwrap();
    let built: PathBuf = here.ancestors().nth(2).unwrap().join("examples/worker");
    let mut command = Command::new(built);
    with_site(&mut command, site, arguments);
    command
}

fn with_site(command: &mut Command, site: &Site, arguments: &[&str]) {
    let prefix = site.topics.telemetry.strip_suffix("runs.telemetry").unwrap();
    command.args(["--brokers", &site.brokers, "--prefix", prefix]).args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
}

fn said(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// `TYPE target STATE` of the interventions, in order.
fn acts(site: &Site) -> Vec<String> {
    let values = site.read(&site.topics.interventions).into_iter().filter_map(|r| r.payload);
    let values = values.filter_map(|p| serde_json::from_slice::<Value>(&p).ok());
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    values.map(|v| format!("{} {} {}", text(&v["type"]), text(&v["target"]["id"]), text(&v["state"]))).collect()
}

fn of<'a>(acts: &'a [String], run: &str) -> Vec<&'a str> {
    let needle = format!(" {run} ");
    acts.iter().filter(|a| a.contains(&needle)).map(String::as_str).collect()
}

#[test]
fn a_worker_that_obeys_is_stopped_acknowledges_and_reports_and_so_is_its_child() {
    let Some(site) = site("obedient") else { return };
    let mut running = site.sidecar(1);
    running.await_restored(2);
    let output = worker(&site, &["--run", "good", "--runs", "20", "--child"]).output().unwrap();
    let text = said(&output);
    assert!(text.contains("stopped 40 of 20 runs"), "each with its child: {text}");
    eventually("every outcome has become a state", SOON, || {
        acts(&site).iter().filter(|a| a.ends_with("SUCCEEDED")).count() == 40
    });
    let all = acts(&site);
    for run in ["good-0", "good-19", "good-7-child"] {
        let expected = ["ISSUED", "ACKNOWLEDGED", "SUCCEEDED"].map(|state| format!("STOP {run} {state}"));
        assert_eq!(of(&all, run), expected, "{all:?}");
    }
    let figures = text.lines().find(|l| l.contains("p50")).unwrap();
    println!("{figures}");
    running.terminate();
}

#[test]
fn a_deaf_worker_is_escalated_to_kill() {
    let Some(site) = site("deaf") else { return };
    let mut running = site.sidecar(1);
    running.await_restored(2);
    let mut child = worker(&site, &["--run", "deaf", "--manner", "deaf", "--steps", "600"]).spawn().unwrap();
    eventually("the deaf worker's run is to be killed", SOON, || {
        acts(&site).contains(&"KILL deaf-0 ISSUED".to_owned())
    });
    let all = acts(&site);
    assert_eq!(of(&all, "deaf-0")[..3], ["STOP deaf-0 ISSUED", "STOP deaf-0 TIMED_OUT", "KILL deaf-0 ISSUED"]);
    eventually("a person is told that nobody obeys", SOON, || {
        let alerts = site.read(&site.topics.alerts).into_iter().filter_map(|r| r.payload);
        alerts.into_iter().any(|p| String::from_utf8_lossy(&p).contains("KILL of RUN deaf-0 was not obeyed"))
    });
    child.kill().unwrap();
    child.wait().unwrap();
    running.terminate();
}

#[test]
fn a_run_that_goes_on_though_it_was_stopped_is_stopped_again_and_somebody_is_told() {
    let Some(site) = site("lying") else { return };
    let mut running = site.sidecar(1);
    running.await_restored(2);
    let mut child = worker(&site, &["--run", "liar", "--manner", "lying", "--steps", "600"]).spawn().unwrap();
    eventually("it is stopped a second time", SOON, || {
        acts(&site).iter().filter(|a| *a == "STOP liar-0 ISSUED").count() >= 2
    });
    eventually("a person is told", SOON, || {
        let alerts = site.read(&site.topics.alerts).into_iter().filter_map(|r| r.payload);
        alerts.into_iter().any(|p| String::from_utf8_lossy(&p).contains("RUN liar-0 goes on though it was stopped"))
    });
    child.kill().unwrap();
    child.wait().unwrap();
    running.terminate();
}

#[test]
fn the_worker_in_python_obeys_too() {
    let python = std::env::var("RUNWARDEN_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
    let has = Command::new(&python).args(["-c", "import confluent_kafka"]).output();
    if !has.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: {python} has no confluent-kafka (RUNWARDEN_TEST_PYTHON names one that has)");
        return;
    }
    let Some(site) = site("python") else { return };
    let mut running = site.sidecar(1);
    running.await_restored(2);
    let mut command = Command::new(python);
    command.arg(root().join("examples/worker.py"));
    with_site(&mut command, &site, &["--run", "py", "--runs", "5"]);
    let text = said(&command.output().unwrap());
    assert!(text.contains("stopped 5 of 5 runs"), "{text}");
    eventually("its outcomes have become states", SOON, || {
        acts(&site).iter().filter(|a| a.ends_with("SUCCEEDED")).count() == 5
    });
    running.terminate();
}
