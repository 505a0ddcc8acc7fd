//! Tables of whole sidecars on a real broker: two of them answer alike, one that lost its directory answers the same again, and SQL sees
//! what HTTP does.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use runwarden::clock::{Wall, rfc3339};
use serde_json::{Value, json};

use crate::end_to_end::{Running, Site};
use crate::rest_writes::send;
use crate::support::sidecar::eventually;
use crate::verdicts::get;

const SOON: Duration = Duration::from_secs(60);
const RUNS: usize = 40;
const POLICIES: &str = "
id: run
name: Run
enforcement_mode: BLOCK
limits:
- {id: tokens, limit_type: TOKENS_PER_RUN, metric: run_tokens, max: 100}
";
const TOKENS: &str = "
[[auth.tokens]]
name = \"everyone\"
token = \"a token of everyone's\"
tenant = \"*\"
role = \"operate\"
[[auth.tokens]]
name = \"other\"
token = \"a token of the other\"
tenant = \"other\"
role = \"operate\"
[limits]
table-rows = 20
";
const EVERYONE: &str = "a token of everyone's";

/// A site, and the configuration of a process beside its owner that reads alone.
fn site() -> Option<(Site, String)> {
    let site = Site::new("tables", 2, "")?;
    std::fs::write(site.dir.path().join("policies/policies.yaml"), POLICIES).unwrap();
    let config = std::fs::read_to_string(site.config()).unwrap();
    std::fs::write(site.config(), format!("{config}{TOKENS}")).unwrap();
    let reader = config.replace("slot = \"a\"", "slot = \"reader\"");
    let path = site.dir.path().join("reader.toml");
    std::fs::write(&path, format!("[roles]\nenabled = [\"serve\"]\n{reader}{TOKENS}")).unwrap();
    Some((site, path.display().to_string()))
}

fn items(running: &Running, path: &str) -> Vec<Value> {
    let (status, body) = get(running, path, Some(EVERYONE));
    if status == 200 { body["items"].as_array().unwrap().clone() } else { Vec::new() }
}

const LISTS: [&str; 9] = [
    "/api/v1/policies/violations?limit=100&hours=720",
    "/api/v1/alerts?limit=100",
    "/api/v1/interventions?limit=100",
    "/api/v1/policies/rules",
    "/api/v1/policies/limits",
    "/api/v1/lessons?limit=100",
    "/api/v1/live-windows?limit=100",
    "/api/v1/agents",
    "/api/v1/tasks",
];

fn lists(running: &Running) -> Vec<Vec<Value>> {
    LISTS.iter().map(|path| items(running, path)).collect()
}

/// What is sealed of the signals of a process.
fn sealed(site: &Site, slot: &str) -> PathBuf {
    site.dir.path().join("data/tables").join(slot).join("signals/manifest.json")
}

#[test]
fn two_sidecars_answer_alike_and_one_that_lost_its_directory_answers_the_same_again() {
    let Some((site, reader_config)) = site() else { return };
    let mut owner = site.sidecar(0);
    owner.await_restored(2);
    let reader = site.sidecar_of(&reader_config, 1);
    let step = |n: usize| {
        let (now, run) = (rfc3339(Wall::now().0), format!("r-{n}"));
        json!({"event_time": now, "event_type": "run.step", "tenant_id": "acme", "run_id": run, "input_tokens": 150})
            .to_string()
    };
    let said = |kind: &str, fields: &str| {
        format!(
            "{{\"event_time\": \"{}\", \"event_type\": \"{kind}\", \"tenant_id\": \"acme\", {fields}}}",
            rfc3339(Wall::now().0)
        )
    };
    let beat = said("agent.heartbeat", "\"agent_id\": \"a\", \"health_status\": \"healthy\"");
    let task = said("task.updated", "\"agent_id\": \"a\", \"task_id\": \"t\", \"task_status\": \"running\"");
    site.feed_lines(&(0..RUNS).map(step).chain([beat, task]).collect::<Vec<_>>(), Duration::ZERO);
    // a NEAR and a BREACH of each run
    eventually("the owner shows all of it", SOON, || items(&owner, LISTS[0]).len() == 2 * RUNS);
    eventually("both answer alike", SOON, || {
        let known = lists(&owner);
        let live = [known[6].len(), known[7].len(), known[8].len()];
        known[2].len() == RUNS && live == [RUNS, 1, 1] && known == lists(&reader)
    });
    eventually("both have sealed", SOON, || sealed(&site, "a").exists() && sealed(&site, "reader").exists());
    let before = lists(&reader);
    assert_eq!(before, lists(&owner), "what is sealed and what is in memory are one");
    reader.terminate();
    // a restart reads on from what is sealed, and one without its directory reads everything again
    for lost in [false, true] {
        if lost {
            std::fs::remove_dir_all(site.dir.path().join("data/tables/reader")).unwrap();
        }
        let again = site.sidecar_of(&reader_config, if lost { 3 } else { 2 });
        eventually("it answers the same", SOON, || lists(&again) == before);
        again.terminate();
    }
    let (status, body) = get(&owner, "/api/v1/policies/violations", Some("a token of the other"));
    assert_eq!((status, &body["total"]), (200, &json!(0)), "nobody sees what is another's");
    let window = &items(&owner, LISTS[6])[0];
    assert_eq!((&window["utilization"], &window["level"]), (&json!(1.5), &json!("BREACH")));
    simulate(&owner);
    ask_in_sql(&owner);
    owner.terminate();
}

/// A set that allows twice as much beside the one in force, over what the topic holds.
fn simulate(running: &Running) {
    let path = ("POST", "/api/v1/policies/simulate");
    let ask = |token: &str, policies: Value| send(running, token, path, "", &json!({"policies": policies}).to_string());
    let lenient = json!({"run.yaml": POLICIES.replace("max: 100", "max: 200")});
    let answer = ask(EVERYONE, lenient.clone());
    assert_eq!(answer.status, 200, "{}", answer.body);
    let (candidate, in_force) = (&answer.body["policies"], &answer.body["in_force"]);
    assert_eq!((&candidate["events"], &in_force["events"]), (&json!(RUNS + 2), &json!(RUNS + 2)));
    assert_eq!((&candidate["signals"]["BREACH"], &in_force["signals"]["BREACH"]), (&json!(null), &json!(RUNS)));
    assert_eq!(answer.body["diff"]["orders"]["only_in_against"].as_array().unwrap().len(), RUNS);
    let other = ask("a token of the other", lenient);
    assert_eq!((other.status, &other.body["policies"]["events"]), (200, &json!(0)), "another's events are not read");
    let refused = ask(EVERYONE, json!(POLICIES.replace("run_tokens", "no_such_metric")));
    assert_eq!(refused.status, 422);
    assert!(refused.body["errors"].to_string().contains("no_such_metric"), "{}", refused.body);
}

/// psql, where it is.
fn ask_in_sql(running: &Running) {
    let said = running.said();
    let address = said.split("sql=").nth(1).and_then(|rest| rest.split_whitespace().next()).unwrap().to_owned();
    let psql = std::env::var("RUNWARDEN_TEST_PSQL").unwrap_or_else(|_| "psql".to_owned());
    let ask = |token: &str, sql: &str| {
        let url = format!("postgres://runwarden@{address}/runwarden");
        Command::new(&psql).env("PGPASSWORD", token).args(["-At", "-d", &url, "-c", sql]).output()
    };
    let count = "SELECT count(*) FROM violations";
    let Ok(all) = ask(EVERYONE, count) else {
        println!("skipped: SQL from outside ({psql} is not there)");
        return;
    };
    let text = |output: &std::process::Output| String::from_utf8_lossy(&output.stdout).trim().to_owned();
    assert_eq!(text(&all), (2 * RUNS).to_string(), "{}", String::from_utf8_lossy(&all.stderr));
    assert_eq!(text(&ask("a token of the other", count).unwrap()), "0");
    assert!(!ask("a token of nobody", count).unwrap().status.success());
    let refused = ask(EVERYONE, "DELETE FROM signals").unwrap();
    assert!(String::from_utf8_lossy(&refused.stderr).contains("only reads"), "{refused:?}");
}
