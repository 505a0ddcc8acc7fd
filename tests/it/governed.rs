//! The control contract through the shipped binary and a real broker: bound terms over kill -9, two callers at once, forged commands,
//! files that change. Needs a broker, see `support::broker`.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use runwarden::clock::Wall;
use runwarden::decide::id::rfc3339;
use runwarden::kafka::produce::Producer;
use serde_json::{Value, json};

use crate::end_to_end::{Running, Site};
use crate::support::sidecar::eventually;

const SOON: Duration = Duration::from_secs(20);

const KEYS: &str = "
[auth]
sign-with = \"main\"
[[auth.keys]]
id = \"main\"
secret = \"a secret that both sidecars know\"
";

/// A site whose sidecars share a key and whose files hold these policies.
fn site(test: &str, partitions: i32, policies: &str) -> Option<Site> {
    let site = Site::new(test, partitions, "")?;
    let config = fs::read_to_string(site.config()).unwrap() + KEYS;
    fs::write(site.config(), &config).unwrap();
    fs::write(site.dir.path().join("b.toml"), config.replace("slot = \"a\"", "slot = \"b\"")).unwrap();
    files(&site, policies);
    Some(site)
}

fn files(site: &Site, policies: &str) {
    // whole at once, as editors and config maps do it
    let (draft, place) = (site.dir.path().join("draft"), site.dir.path().join("policies/policies.yaml"));
    fs::write(&draft, policies).unwrap();
    fs::rename(draft, place).unwrap();
}

fn limit(max: u32) -> String {
    format!(
        "id: run\nname: Run\nenforcement_mode: BLOCK\nbinding: RUN_START\nlimits:\n- {{id: tokens, limit_type: T, metric: run_tokens, max: {max}}}\n"
    )
}

/// `policy status` as JSON; null before anything is in force.
fn status(site: &Site) -> Value {
    let (code, out, errors) = site.run(&["policy", "status", "--json", "--config"]);
    assert_eq!(code, Some(0), "{errors}");
    serde_json::from_str(&out).unwrap_or_default()
}

fn await_revision(site: &Site, revision: u64) -> Value {
    eventually(&format!("revision {revision} is in force"), SOON, || status(site)["revision"] == revision);
    status(site)
}

fn send(site: &Site, kind: &str, run: &str, tokens: i64) {
    let event = json!({
        "event_time": rfc3339(Wall::now().0), "event_type": kind, "tenant_id": "acme", "run_id": run, "input_tokens": tokens,
        "prompt": "a secret prompt",
    });
    let producer = Producer::new(&site.client).unwrap();
    producer.send(&site.topics.telemetry, b"acme", event.to_string().as_bytes()).unwrap();
    producer.flush(SOON).unwrap();
}

fn on(site: &Site, topic: &str) -> Vec<Value> {
    let records = site.read(topic).into_iter().filter_map(|r| r.payload);
    records.map(|p| serde_json::from_slice(&p).unwrap()).collect()
}

/// Signals of a run as (kind, snapshot, policy version).
fn signals(site: &Site, run: &str) -> Vec<(String, String, u64)> {
    let text = |v: &Value| v.as_str().unwrap().to_owned();
    let of = on(site, &site.topics.signals).into_iter().filter(|s| s["run_id"] == run);
    of.map(|s| (text(&s["kind"]), text(&s["snapshot_id"]), s["policy_version"].as_u64().unwrap())).collect()
}

fn ready(sidecar: &mut Running, partitions: i32) {
    sidecar.await_restored(partitions);
}

/// A value of the sidecar's own metrics.
fn metric(sidecar: &Running, name: &str) -> Option<f64> {
    let said = sidecar.said();
    let address = said.split("address=").nth(1)?.split_whitespace().next()?.to_owned();
    let mut stream = TcpStream::connect(address).ok()?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

#[test]
fn bound_terms_survive_a_policy_change_and_kill_minus_nine() {
    let Some(site) = site("bound", 2, &limit(1_000)) else { return };
    let mut sidecar = site.sidecar(0);
    ready(&mut sidecar, 2);
    let first = await_revision(&site, 1);
    send(&site, "run.started", "old", 0);
    send(&site, "run.step", "witness", 2_000);
    eventually("the run is seen", SOON, || signals(&site, "witness").len() == 2);
    files(&site, &limit(100_000));
    let second = await_revision(&site, 2);
    assert_ne!(first["snapshot_id"], second["snapshot_id"]);
    sidecar.kill();
    let mut sidecar = site.sidecar(1);
    ready(&mut sidecar, 2);
    send(&site, "run.step", "new", 2_000);
    send(&site, "run.step", "old", 2_000);
    eventually("the old run breaches", SOON, || signals(&site, "old").len() == 2);
    let id = first["snapshot_id"].as_str().unwrap().to_owned();
    let expected = ["NEAR", "BREACH"].map(|kind| (kind.to_owned(), id.clone(), 1));
    assert_eq!(signals(&site, "old"), expected, "under the terms of its start");
    assert_eq!(signals(&site, "new"), [], "under the terms of now");
    let stops = on(&site, &site.topics.interventions);
    let of_old: Vec<&Value> = stops.iter().filter(|i| i["run_id"] == "old").collect();
    assert!(of_old.len() == 1 && of_old[0]["type"] == "STOP", "{stops:?}");
    assert_eq!(status(&site)["revision"], 2, "a restart puts nothing in force anew");
    sidecar.terminate();
}

fn proposal(site: &Site, id: &str, tenant: &str, max: u32) -> String {
    let level = if tenant == "*" { "GLOBAL" } else { "TENANT" };
    let policy = format!(
        "id: {id}\nname: {id}\ntenant: '{tenant}'\nenforcement_mode: BLOCK\nconflict_strategy: EXPLICIT_PRIORITY\nscope: {{level: {level}}}\n\
         limits:\n- {{id: l, limit_type: U, metric: run_steps, max: {max}}}\n"
    );
    let file = format!("{id}.proposal.yaml");
    fs::write(site.dir.path().join(&file), policy).unwrap();
    let (code, out, errors) =
        site.run(&["proposal", "create", &file, "--json", "--reason", "a test", "--as", "ada", "--config"]);
    assert_eq!(code, Some(0), "{out} {errors}");
    let answer: Value = serde_json::from_str(&out).unwrap();
    answer["result"]["proposal_id"].as_str().unwrap().to_owned()
}

/// Approves through the sidecar of this configuration.
fn approve(site: &Site, config: &str, id: &str, who: &str) -> Child {
    let arguments = ["proposal", "approve", id, "--json", "--reason", "needed", "--as", who, "--config", config];
    site.command(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn of_two_conflicting_proposals_approved_at_once_through_two_sidecars_exactly_one_wins() {
    let Some(site) = site("both", 4, &limit(1_000)) else { return };
    let log = site.dir.path().join("run-b.log");
    let mut a = site.sidecar(0);
    let mut b = site
        .command(&["run", "--config", "b.toml"])
        .stdout(Stdio::null())
        .stderr(fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    await_revision(&site, 1);
    eventually("both own partitions", SOON, || fs::read_to_string(&log).unwrap().contains("partition restored"));
    ready(&mut a, 2);
    let (global, tenant) = (proposal(&site, "everywhere", "*", 5), proposal(&site, "here", "acme", 6));
    let callers = [approve(&site, "runwarden.toml", &global, "ada"), approve(&site, "b.toml", &tenant, "bob")];
    let answers: Vec<(Option<i32>, Value)> = callers
        .into_iter()
        .map(|child| {
            let output = child.wait_with_output().unwrap();
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            (output.status.code(), serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {errors}")))
        })
        .collect();
    let (won, lost): (Vec<_>, Vec<_>) = answers.iter().partition(|(code, _)| *code == Some(0));
    assert!(won.len() == 1 && lost.len() == 1, "{answers:?}");
    let (code, lost) = lost[0];
    assert_eq!((*code, &lost["code"]), (Some(1), &json!("conflict")));
    assert!(lost["reason"].as_str().unwrap().contains("GOV-POL-001"), "{lost}");
    assert_eq!(lost["conflicts"][0]["conflict_type"], "THRESHOLD_CONTRADICTION");
    await_revision(&site, 2);
    let (code, out, _) = site.run(&["proposal", "list", "--json", "--config"]);
    assert_eq!(code, Some(0));
    let states: BTreeMap<String, usize> = out.lines().fold(BTreeMap::new(), |mut all, line| {
        let row: Value = serde_json::from_str(line).unwrap();
        *all.entry(row["status"].as_str().unwrap().to_owned()).or_default() += 1;
        all
    });
    assert_eq!(states, BTreeMap::from([("ACTIVE".to_owned(), 1), ("DRAFT".to_owned(), 1)]));
    crate::support::broker::signal(&b, "TERM");
    assert!(b.wait().unwrap().success());
    a.terminate();
}

#[test]
fn a_forged_command_changes_nothing_and_stands_on_the_audit_topic() {
    let Some(site) = site("forged", 2, &limit(1_000)) else { return };
    let mut sidecar = site.sidecar(0);
    ready(&mut sidecar, 2);
    let before = await_revision(&site, 1);
    let producer = Producer::new(&site.client).unwrap();
    for (n, mac) in [None, Some("00"), Some("not hexadecimal")].into_iter().enumerate() {
        let forged = json!({
            "command_id": format!("forged-{n}"), "type": "limit.disable", "tenant_id": "*", "principal": "user:eve", "authority": 5,
            "issued_at": rfc3339(Wall::now().0), "body": {"tenant": "*", "policy_id": "run", "limit_id": "tokens"},
            "key_id": "main", "mac": mac,
        });
        producer.send(&site.topics.commands, b"*", forged.to_string().as_bytes()).unwrap();
    }
    producer.send(&site.topics.commands, b"*", b"this is no command").unwrap();
    producer.flush(SOON).unwrap();
    let refusals = || -> Vec<Value> {
        on(&site, &site.topics.audit).into_iter().filter(|a| a["kind"] == "command.refused").collect()
    };
    eventually("the refusals are on the audit topic", SOON, || refusals().len() == 3);
    for audit in refusals() {
        assert_eq!((&audit["principal"], &audit["authority"]), (&json!("unverified:user:eve"), &json!(1)));
        assert_eq!((&audit["after"]["claimed_authority"], &audit["refused"]), (&json!(5), &json!(true)));
    }
    let answers: Vec<Value> = on(&site, &site.topics.command_results);
    let forged = answers.iter().filter(|a| a["command_id"].as_str().unwrap().starts_with("forged-"));
    assert!(forged.clone().count() == 3 && forged.clone().all(|a| a["code"] == "authority"));
    eventually("what is no command is a dead letter", SOON, || site.read(&site.topics.dead_letter).len() == 1);
    assert_eq!(status(&site), before);
    send(&site, "run.step", "r", 2_000);
    eventually("the limit is in force", SOON, || signals(&site, "r").len() == 2);
    sidecar.terminate();
}

#[test]
fn files_that_change_are_put_in_force_and_those_that_do_not_hold_are_refused_whole() {
    let Some(site) = site("reload", 2, &limit(1_000)) else { return };
    let mut sidecar = site.sidecar(0);
    ready(&mut sidecar, 2);
    await_revision(&site, 1);
    send(&site, "run.step", "r", 600);
    files(&site, &limit(1_000).replace("run_tokens", "run_tokns"));
    eventually("the fault is said", SOON, || sidecar.said().contains("policies.yaml:6:"));
    assert!(sidecar.said().contains("refused whole"));
    assert_eq!(metric(&sidecar, "runwarden_policy_sets_total{outcome=\"invalid\"}"), Some(1.0));
    assert_eq!(status(&site)["revision"], 1, "the old ones stay");
    files(&site, &limit(500));
    await_revision(&site, 2);
    eventually("the sidecar follows", SOON, || metric(&sidecar, "runwarden_policy_revision") == Some(2.0));
    send(&site, "run.step", "fresh", 600);
    eventually("the new limit is in force", SOON, || signals(&site, "fresh").len() == 2);
    // the run that began under the old terms has its 600 tokens still, and keeps those terms
    send(&site, "run.step", "r", 300);
    eventually("the old run nears its own limit", SOON, || signals(&site, "r").len() == 1);
    drop(sidecar);
}

/// Retention, at once: every record of a topic is gone.
fn forget(site: &Site, topic: &str) {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", &site.client.brokers).create().unwrap();
    let mut list = TopicPartitionList::new();
    for partition in 0..site.topics.partitions {
        list.add_partition_offset(topic, partition, Offset::End).unwrap();
    }
    futures::executor::block_on(admin.delete_records(&list, &AdminOptions::new())).unwrap();
}

#[test]
fn a_decision_is_explained_and_decided_again_from_its_recorded_steps() {
    let Some(site) = site("explain", 2, &limit(1_000)) else { return };
    let mut sidecar = site.sidecar(0);
    ready(&mut sidecar, 2);
    await_revision(&site, 1);
    for n in 0..20 {
        send(&site, "run.step", "other", n);
        send(&site, "run.step", "r", 60);
    }
    eventually("the run breaches", SOON, || signals(&site, "r").len() == 2);
    let explain = |id: &str, more: &[&str]| site.run(&[&["explain", id], more, &["--config"]].concat());
    for (topic, field, what) in [
        (&site.topics.signals, "signal_id", "signal"),
        (&site.topics.interventions, "intervention_id", "intervention"),
        (&site.topics.alerts, "alert_id", "alert"),
    ] {
        let id = on(&site, topic).last().unwrap()[field].as_str().unwrap().to_owned();
        let (code, out, errors) = explain(&id, &["--json"]);
        assert_eq!(code, Some(0), "{what}: {out}\n{errors}");
        let told: Value = serde_json::from_str(&out).unwrap();
        assert_eq!((&told["what"], &told["again"]["same"]), (&json!(what), &json!(true)), "{told}");
        assert!(told["sql"].as_str().unwrap().contains("metric: run_tokens"));
        assert_eq!(told["policy"]["id"], "run");
        let most = told["events"]["count"].as_u64().unwrap();
        assert!((14..=17).contains(&most), "those of the run up to the crossing: {most}");
    }
    let breach = on(&site, &site.topics.signals).into_iter().find(|s| s["kind"] == "BREACH").unwrap();
    let (_, out, _) = explain(breach["signal_id"].as_str().unwrap(), &[]);
    assert!(!out.contains("secret"), "prompts are not shown");
    for part in [
        "BREACH run_tokens of RUN r, tenant acme: 1020 of 1000",
        "policy run version 1",
        "run again     the same",
        "… ",
    ] {
        assert!(out.contains(part), "{part} in\n{out}");
    }
    let (code, _, errors) = explain("00000000-0000-0000-0000-000000000000", &[]);
    assert!(code == Some(1) && errors.contains("unknown, or expired"), "{errors}");
    forget(&site, &site.topics.telemetry);
    let (code, out, errors) = explain(breach["signal_id"].as_str().unwrap(), &[]);
    assert!(code == Some(0) && out.contains("not possible: expired"), "{out}{errors}");
    sidecar.terminate();
}
