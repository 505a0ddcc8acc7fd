//! `docs/asyncapi.yaml` says of topics what is created: names, clean-up, retention, and which way records go.
//! `scripts/check-topics` holds its messages against records.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use runwarden::kafka::Topics;
use runwarden::kafka::core::{Input, Topic};
use serde_json::Value;

fn docs(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name))
        .unwrap_or_else(|e| panic!("docs/{name}: {e}"))
}

fn document() -> Value {
    serde_saphyr::from_str(&docs("asyncapi.yaml")).unwrap()
}

#[test]
fn channels_are_the_topics_as_they_are_created() {
    let (document, topics) = (document(), Topics::default());
    let channels = document["channels"].as_object().unwrap();
    let said: BTreeMap<&str, (&str, String, Option<String>)> = channels
        .iter()
        .map(|(key, channel)| {
            let kafka = &channel["bindings"]["kafka"];
            assert_eq!(kafka["topic"], channel["address"], "{key}");
            let config = &kafka["topicConfiguration"];
            let cleanup: Vec<&str> =
                config["cleanup.policy"].as_array().unwrap().iter().map(|c| c.as_str().unwrap()).collect();
            let retention = config["retention.ms"].as_u64().map(|ms| ms.to_string());
            (key.as_str(), (channel["address"].as_str().unwrap(), cleanup.join(","), retention))
        })
        .collect();
    let specs = topics.specs();
    let created = specs
        .iter()
        .map(|spec| {
            let retention = spec.config().into_iter().find(|(name, _)| *name == "retention.ms").map(|(_, ms)| ms);
            (spec.key, (spec.name, spec.cleanup.policy().to_owned(), retention))
        })
        .collect();
    assert_eq!(said, created);
}

#[test]
fn operations_go_the_way_that_records_go() {
    let (document, topics) = (document(), Topics::default());
    let channels = document["channels"].as_object().unwrap();
    let way = |action: &str| -> BTreeSet<&str> {
        let operations = document["operations"].as_object().unwrap().values().filter(|o| o["action"] == action);
        let channel =
            |o: &'_ Value| o["channel"]["$ref"].as_str().unwrap().trim_start_matches("#/channels/").to_owned();
        operations.map(|o| channels[&channel(o)]["address"].as_str().unwrap()).collect()
    };
    // what a process reads back of its own is told by steps and checkpoint
    let own = [topics.steps.as_str(), topics.checkpoint.as_str()];
    let received = Input::ALL.iter().map(|&i| topics.input(i)).chain(own).collect();
    let sent = Topic::ALL.iter().map(|&t| topics.output(t)).chain(own).collect();
    assert_eq!(way("receive"), received);
    assert_eq!(way("send"), sent);
}

#[test]
fn every_schema_is_there_and_is_used() {
    let document = document();
    let mut used = BTreeSet::new();
    for message in document["components"]["messages"].as_object().unwrap().values() {
        for part in ["payload", "headers"] {
            if let Some(reference) = message[part]["$ref"].as_str() {
                let name = reference.trim_start_matches("./");
                let schema: Value = serde_json::from_str(&docs(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
                assert_eq!(schema["$schema"], "http://json-schema.org/draft-07/schema#", "{name}");
                used.insert(name.to_owned());
            }
        }
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/schemas");
    let there: BTreeSet<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| format!("schemas/{}", entry.unwrap().file_name().to_str().unwrap()))
        .collect();
    assert_eq!(used, there);
}

#[test]
fn schemas_have_the_columns_of_the_tables() {
    for (table, name) in [
        ("signals", "signal"),
        ("alerts", "alert"),
        ("interventions", "intervention"),
        ("runs", "run"),
        ("lessons", "lesson"),
        ("audit", "audit"),
        ("evaluations", "evaluation"),
        ("policy_level", "policy-level"),
        ("policies", "policy"),
        ("limits", "policy-limit"),
        ("proposals", "policy-proposal"),
        ("overrides", "policy-override"),
        ("silences", "policy-silence"),
        ("policy_versions", "policy-version"),
        ("live_windows", "live-window"),
        ("agents", "live-agent"),
        ("tasks", "live-task"),
    ] {
        let schema: Value = serde_json::from_str(&docs(&format!("schemas/{name}.schema.json"))).unwrap();
        let table = runwarden::serve::tables::schema::table(table).unwrap();
        for column in table.columns {
            let mut place = &schema;
            for part in column.path.split('.') {
                // what is inside a policy is said by policy.schema.json
                if place["properties"].is_null() {
                    break;
                }
                place = &place["properties"][part];
                assert!(!place.is_null(), "{name}: {} is not in the schema", column.path);
            }
        }
    }
}
