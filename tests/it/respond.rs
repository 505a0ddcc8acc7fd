//! Responses to the level of all (L3): the gates in the core, and the actions, files and undo of the runner.

use runwarden::decide::commands::Command;
use runwarden::kafka::core::{Input, Topic};
use runwarden::pipeline::terms::Tuning;
use serde_json::{Value, json};

use crate::level::{levels, sample_of};
use crate::support::desk::{DAY, Desk, Said, counted, on, tuning};

/// A desk at which all stand so, by samples under `*`.
fn standing(desk: &mut Desk, now: i64, fields: Value) -> Vec<Said> {
    desk.telemetry(now, &[sample_of("*", now, fields)])
}

fn red() -> Value {
    json!({"integrity_score": 10})
}

/// A signed command about all; its answer and everything said.
fn order(desk: &mut Desk, now: i64, id: &str, kind: &str, body: Value) -> (Value, Vec<Said>) {
    let command = Command {
        command_id: id.into(),
        kind: kind.into(),
        tenant_id: "*".into(),
        principal: "user:ada".into(),
        authority: 5,
        issued_at: (DAY + now) * 1_000_000,
        body,
        key_id: None,
    };
    let payload = tuning().keys.sign(command, "k").unwrap();
    let said = desk.step(now, Input::Commands, "*", &[payload]);
    (on(&said, Topic::CommandResults).pop().unwrap(), said)
}

/// The plans on the policy-level topic.
fn plans(said: &[Said]) -> Vec<Value> {
    let of = said.iter().filter(|s| s.0.topic == Topic::PolicyLevel && s.0.key == b"*/response");
    of.map(Said::value).collect()
}

fn audits(said: &[Said]) -> Vec<String> {
    on(said, Topic::Audit).iter().map(|v| v["kind"].as_str().unwrap().to_owned()).collect()
}

const RED_ACTIONS: [&str; 3] = ["full-integrity-check", "cold-storage-verification", "anchor-mirror"];

#[test]
fn a_change_of_the_level_of_all_is_previewed_and_applied_only_when_the_configuration_says_so() {
    let mut desk = Desk::new("");
    let said = standing(&mut desk, 0, red());
    let plan = plans(&said).remove(0);
    assert_eq!(
        (&plan["outcome"], &plan["actions"], &plan["level"]),
        (&json!("PREVIEW"), &json!(RED_ACTIONS), &json!("RED"))
    );
    assert_eq!((plan["principal"].as_str(), audits(&said)), (Some("system:core"), vec!["respond.planned".to_owned()]));
    assert!(plans(&standing(&mut desk, 1, json!({"integrity_score": 11}))).is_empty(), "the level did not change");
    let plan = plans(&standing(&mut desk, 2, json!({"integrity_score": 93}))).remove(0);
    assert_eq!(plan["actions"], json!(["integrity-schema-check", "state-schema-check"]));
    let mut responding = tuning().responding;
    responding.auto_apply = true;
    responding.actions = vec![("snapshot".into(), runwarden::decide::records::Level::Red)];
    let mut desk = Desk::tuned("", Tuning { responding, ..tuning() });
    let plan = plans(&standing(&mut desk, 0, red())).remove(0);
    assert_eq!((&plan["outcome"], plan["actions"].as_array().unwrap().len()), (&json!("APPLY"), 4));
    assert_eq!(plan["actions"][3], "snapshot");
}

#[test]
fn test_green_policy_no_op() {
    let mut desk = Desk::new("");
    standing(&mut desk, 0, json!({"integrity_score": 99}));
    order(&mut desk, 1, "b", "respond.brake", json!({"on": true}));
    for level in [Value::Null, json!("GREEN"), json!("UNKNOWN")] {
        let (answer, said) =
            order(&mut desk, 1, &format!("r-{level}"), "respond.run", json!({"apply": true, "level": level}));
        assert_eq!(answer["result"]["outcome"], "NOTHING", "{answer}");
        assert_eq!(plans(&said)[0]["actions"], json!([]));
    }
}

#[test]
fn test_dry_run_is_the_default_whatever_the_gates() {
    let mut desk = Desk::new("");
    standing(&mut desk, 0, json!({"trust_locked": true}));
    let (answer, said) = order(&mut desk, 1, "r", "respond.run", json!({}));
    assert_eq!(answer["result"]["outcome"], "PREVIEW");
    assert_eq!(plans(&said)[0]["blocked_by"], json!(["trust_locked: trust is locked (*)"]), "it says what would block");
    let (answer, _) = order(&mut desk, 1, "w", "respond.run", json!({"level": "MAUVE"}));
    assert_eq!(answer["code"], "level");
}

#[test]
fn test_trust_lock_blocking() {
    let mut desk = Desk::new("");
    standing(&mut desk, 0, json!({"trust_locked": true}));
    let (answer, said) = order(&mut desk, 1, "r1", "respond.run", json!({"apply": true}));
    assert_eq!((&answer["result"]["outcome"], audits(&said)), (&json!("BLOCKED"), vec!["respond.blocked".to_owned()]));
    let (answer, _) = order(&mut desk, 2, "u0", "respond.unlock", json!({}));
    assert_eq!(answer["code"], "reason");
    let (answer, said) = order(&mut desk, 3, "u1", "respond.unlock", json!({"reason": "manual-override"}));
    assert_eq!((&answer["status"], &answer["result"]["unlocks_today"]), (&json!("ACCEPTED"), &json!(1)), "{answer}");
    assert_eq!(levels(&said, "*")[0]["policy"], "GREEN", "the lock was all that was wrong");
    assert!(audits(&said).contains(&"respond.unlocked".to_owned()));
    desk.crash();
    let (answer, _) = order(&mut desk, 4, "r2", "respond.run", json!({"apply": true, "level": "RED"}));
    assert_eq!(answer["result"]["outcome"], "APPLY");
    // an unchanged sample that says so locks again
    let said = standing(&mut desk, 5, json!({"trust_locked": true}));
    assert_eq!(levels(&said, "*")[0]["policy"], "RED");
    let (answer, _) = order(&mut desk, 6, "r3", "respond.run", json!({"apply": true}));
    assert_eq!(answer["result"]["outcome"], "BLOCKED");
}

#[test]
fn a_lock_of_a_tenant_is_lifted_until_a_later_sample_of_it_says_otherwise() {
    let mut desk = Desk::new("");
    let send = |desk: &mut Desk, now: i64, fields: Value| {
        let said = desk.telemetry(now, &[sample_of("b", now, fields)]);
        crate::level::loop_back(desk, now, said)
    };
    send(&mut desk, 0, json!({"trust_locked": true}));
    let (answer, said) = order(&mut desk, 1, "u", "respond.unlock", json!({"reason": "checked"}));
    assert_eq!(answer["result"]["tenants"], json!(["b"]), "{answer}");
    assert_eq!(levels(&said, "*")[0]["policy"], "GREEN");
    let said = send(&mut desk, 2, json!({"consensus_pct": 88}));
    assert_eq!(levels(&said, "*")[0]["policy"], "YELLOW", "a sample that says nothing of the lock keeps it lifted");
    let said = send(&mut desk, 3, json!({"trust_locked": true}));
    assert!(levels(&said, "b").is_empty(), "for the tenant nothing changed");
    assert_eq!(levels(&said, "*")[0]["policy"], "RED");
}

#[test]
fn test_safety_brake_blocking() {
    let mut desk = Desk::new("");
    standing(&mut desk, 0, red());
    let (answer, said) = order(&mut desk, 1, "b1", "respond.brake", json!({"on": true, "reason": "deploy"}));
    assert_eq!((&answer["status"], audits(&said)), (&json!("ACCEPTED"), vec!["respond.brake".to_owned()]));
    desk.crash();
    let (answer, _) = order(&mut desk, 2, "r1", "respond.run", json!({"apply": true}));
    assert_eq!(answer["result"]["blocked_by"], json!(["safety_brake: the safety brake is on"]));
    order(&mut desk, 3, "b2", "respond.brake", json!({"on": false}));
    let (answer, _) = order(&mut desk, 4, "r2", "respond.run", json!({"apply": true}));
    assert_eq!(answer["result"]["outcome"], "APPLY");
    let (answer, _) = order(&mut desk, 5, "b3", "respond.brake", json!({"on": "yes"}));
    assert_eq!(answer["code"], "body");
}

#[test]
fn test_rate_limit_blocking() {
    let mut desk = Desk::new("");
    standing(&mut desk, 0, red());
    let run = |n: i64| order(&mut desk, n, &format!("r{n}"), "respond.run", json!({"apply": true})).0;
    let answers: Vec<Value> = (0..10).map(run).collect();
    let outcomes = counted(answers.iter().map(|a| a["result"]["outcome"].to_string()));
    assert_eq!(outcomes, [("\"APPLY\"".to_owned(), 10)].into());
    desk.crash();
    let (answer, _) = order(&mut desk, 20, "r10", "respond.run", json!({"apply": true}));
    assert_eq!(answer["result"]["blocked_by"], json!(["rate_limit: 10 responses in 24 hours, at most 10"]));
    let (answer, _) = order(&mut desk, 24 * 3_600, "r11", "respond.run", json!({"apply": true}));
    assert_eq!(answer["result"]["outcome"], "APPLY", "the first is a day old");
}

#[test]
fn unlocks_of_a_day_are_counted_refused_and_begin_anew() {
    let mut desk = Desk::new("");
    let unlock = |desk: &mut Desk, now: i64| {
        standing(desk, now, json!({"trust_locked": true}));
        order(desk, now, &format!("u{now}"), "respond.unlock", json!({"reason": "checked"})).0
    };
    for now in 1..=3 {
        assert_eq!(unlock(&mut desk, now)["result"]["unlocks_today"], now, "{now}");
    }
    desk.crash();
    assert_eq!(unlock(&mut desk, 4)["code"], "too_many");
    let (answer, said) = order(&mut desk, 5, "z", "respond.reset_unlocks", json!({"reason": "on call"}));
    assert_eq!((&answer["status"], audits(&said)), (&json!("ACCEPTED"), vec!["respond.unlocks_reset".to_owned()]));
    assert_eq!(unlock(&mut desk, 6)["result"]["unlocks_today"], 1);
    assert_eq!(unlock(&mut desk, 24 * 3_600)["result"]["unlocks_today"], 1, "another day");
    let (answer, _) = order(&mut desk, 24 * 3_600 + 1, "n", "respond.unlock", json!({"reason": "again"}));
    assert_eq!(answer["code"], "state", "nothing is locked");
}

#[test]
fn gates_are_named_in_their_order() {
    let mut responding = tuning().responding;
    responding.max_responses = 0;
    let mut desk = Desk::tuned("", Tuning { responding, ..tuning() });
    standing(&mut desk, 0, json!({"trust_locked": true}));
    order(&mut desk, 1, "b", "respond.brake", json!({"on": true}));
    let (answer, _) = order(&mut desk, 2, "r", "respond.run", json!({"apply": true}));
    let names: Vec<&str> =
        answer["result"]["blocked_by"].as_array().unwrap().iter().map(|g| g.as_str().unwrap()).collect();
    let names: Vec<&str> = names.iter().map(|g| g.split(':').next().unwrap()).collect();
    assert_eq!(names, ["trust_locked", "safety_brake", "rate_limit"]);
    let mut responses = runwarden::decide::respond::Responses::default();
    let (now, mut settings) = (runwarden::clock::Wall(0), runwarden::decide::respond::Responding::default());
    for _ in 0..3 {
        responses.unlock(now, &settings).unwrap();
    }
    assert!(responses.closed(&[], now, &settings).is_empty());
    settings.max_unlocks = 2;
    assert_eq!(responses.closed(&[], now, &settings), ["manual_unlocks: 3 manual unlocks today, at most 2"]);
}

#[test]
fn one_process_claims_a_response_and_says_how_it_ended() {
    let mut desk = Desk::new("");
    standing(&mut desk, 0, red());
    let (answer, _) = order(&mut desk, 1, "r", "respond.run", json!({"apply": true}));
    let id = answer["result"]["response_id"].clone();
    let report = |desk: &mut Desk, n: i64, state: &str, executor: &str| {
        let body = json!({"response_id": id, "state": state, "executor": executor});
        order(desk, n, &format!("c{n}"), "respond.result", body).0
    };
    assert_eq!(report(&mut desk, 2, "CLAIMED", "one")["status"], "ACCEPTED");
    desk.crash();
    assert_eq!(report(&mut desk, 3, "CLAIMED", "two")["reason"], "one executes it");
    assert_eq!(report(&mut desk, 4, "SUCCEEDED", "two")["code"], "state");
    assert_eq!(report(&mut desk, 5, "SUCCEEDED", "one")["status"], "ACCEPTED");
    assert_eq!(report(&mut desk, 6, "CLAIMED", "one")["reason"], "it has ended");
    let body = json!({"response_id": "unheard-of", "state": "CLAIMED", "executor": "one"});
    assert_eq!(order(&mut desk, 7, "x", "respond.result", body).0["code"], "state");
}

#[test]
fn responses_take_the_authority_of_a_guardian() {
    let mut desk = Desk::new("");
    for kind in ["respond.run", "respond.brake", "respond.unlock", "respond.reset_unlocks"] {
        let (answer, _) = desk.command(0, kind, 3, json!({}));
        assert_eq!((&answer["code"], &answer["required_authority"]), (&json!("authority"), &json!(4)), "{kind}");
        let (answer, _) = desk.command(0, kind, 4, json!({"on": true, "reason": "x"}));
        assert_eq!(answer["code"], "tenant", "{kind}: who acts for one tenant does not act for all");
    }
}
