//! The policy level and a response through the shipped binary and a real broker: samples in, files and an undo out. Needs a broker, see
//! `support::broker`.

use std::fs;
use std::time::Duration;

use runwarden::clock::Wall;
use runwarden::decide::id::rfc3339;
use runwarden::kafka::produce::Producer;
use serde_json::{Value, json};

use crate::end_to_end::Site;
use crate::support::sidecar::eventually;

const SOON: Duration = Duration::from_secs(30);
const TOKEN: &str = "a token of everyone's";

fn send(site: &Site, fields: Value) {
    let mut event =
        json!({"event_time": rfc3339(Wall::now().0), "event_type": "governance.sample", "tenant_id": "acme"});
    event.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    let producer = Producer::new(&site.client).unwrap();
    producer.send(&site.topics.telemetry, b"acme", event.to_string().as_bytes()).unwrap();
    producer.flush(SOON).unwrap();
}

#[test]
fn a_red_level_is_shown_in_files_responded_to_once_and_undone() {
    let Some(site) = Site::new("level", 3, "") else { return };
    let at = |name: &str| site.dir.path().join(name);
    fs::write(at("anchor.json"), "[1]").unwrap();
    let more = format!(
        "[[auth.tokens]]\nname = \"all\"\ntoken = {TOKEN:?}\ntenant = \"*\"\n[level]\nmarker-file = {:?}\n[respond]\nanchor-file = {:?}\n",
        at("audit_summary.md").display().to_string(),
        at("anchor.json").display().to_string()
    );
    let config = fs::read_to_string(site.config()).unwrap() + &more;
    fs::write(site.config(), config).unwrap();
    let running = site.sidecar(0);
    let read = |name: &str| -> Value {
        fs::read(at(name)).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
    };
    send(&site, json!({"integrity_score": 10}));
    eventually("the level of all is shown", SOON, || read("data/state/policy_state.json")["policy"] == "RED");
    let level = || crate::verdicts::get(&running, "/api/v1/policy-level", Some(TOKEN)).1;
    eventually("it is shown over HTTP", SOON, || level()["policy"] == "RED");
    assert_eq!((&level()["tenant_id"], &level()["inputs"]["integrity_score"]), (&json!("*"), &json!(10.0)));
    eventually("a response is previewed", SOON, || {
        read("data/state/policy_response_preview.json")["outcome"] == "PREVIEW"
    });
    let (code, out, errors) = site.run(&["respond", "--apply", "--reason", "drill", "--config"]);
    assert_eq!(code, Some(0), "{out}{errors}");
    eventually("it is applied", SOON, || at("data/state/policy_response_log.jsonl").exists());
    assert_eq!(read("data/mirrors/anchor_chain.json"), json!([1]));
    let undo = fs::read_dir(at("data/state")).unwrap().map(|e| e.unwrap().path());
    let undo = undo.into_iter().find(|p| p.to_string_lossy().contains("policy_response_undo_")).unwrap();
    let (code, out, errors) = site.run(&["respond", "--undo", undo.to_str().unwrap(), "--config"]);
    assert_eq!(code, Some(0), "{out}{errors}");
    assert!(!at("data/mirrors/anchor_chain.json").exists());
    let (code, ..) = site.run(&["respond", "brake", "on", "--config"]);
    assert_eq!(code, Some(0));
    let (code, out, _) = site.run(&["respond", "--apply", "--config"]);
    assert!(code == Some(1) && out.contains("safety_brake"), "{out}");
    eventually("the report of it is left", SOON, || at("data/reports/policy_response_blocked.json").exists());
    drop(running);
    let lines = || fs::read_to_string(at("data/state/policy_state_log.jsonl")).unwrap_or_default().lines().count();
    let before = lines();
    let running = site.sidecar(1);
    send(&site, json!({"integrity_score": 99}));
    eventually("it is GREEN again", SOON, || read("data/state/policy_state.json")["policy"] == "GREEN");
    assert_eq!(lines(), before + 1, "no line twice after a restart");
    let marker = || fs::read_to_string(at("audit_summary.md")).unwrap_or_default();
    eventually("the marker says so", SOON, || marker().contains("policy=GREEN"));
    drop(running);
}
