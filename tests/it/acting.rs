//! Interventions in the core: the life cycle through commands, outcomes and time; stop means stopped (I1–I7, X3).

use runwarden::kafka::core::Topic;
use serde_json::{Value, json};

use crate::support::desk::{Desk, Said, acts, event, on, step_of};

const STOP: &str = "{id: run, name: Run, enforcement_mode: BLOCK, limits: [{id: tokens, limit_type: T, metric: run_tokens, max: 100}]}";
const PAUSE: &str = "{id: run, name: Run, enforcement_mode: BLOCK, rollback: {enabled: true, auto_rollback_after_minutes: 10}, \
                     limits: [{id: tokens, limit_type: T, metric: run_tokens, max: 100, on_breach: PAUSE}]}";

fn ids(said: &[Said], state: &str) -> Vec<String> {
    let interventions = on(said, Topic::Interventions);
    let of = interventions.iter().filter(|i| i["state"] == *state);
    of.map(|i| i["intervention_id"].as_str().unwrap().to_owned()).collect()
}

fn alerts(said: &[Said]) -> Vec<String> {
    let brief = |v: &Value| format!("{} {}", v["status"].as_str().unwrap(), v["title"].as_str().unwrap());
    on(said, Topic::Alerts).iter().map(brief).collect()
}

fn audits(said: &[Said]) -> Vec<String> {
    on(said, Topic::Audit).iter().map(|v| v["kind"].as_str().unwrap().to_owned()).collect()
}

/// A desk that knows two agents, a task and a run.
fn staffed() -> Desk {
    let mut desk = Desk::new("");
    let beat = |agent: &str, capacity: i64| {
        event(0, "agent.heartbeat", json!({"agent_id": agent, "capacity": capacity, "team_id": "crew"}))
    };
    let task = event(
        0,
        "task.updated",
        json!({"task_id": "t1", "agent_id": "a", "task_status": "running", "priority": "LOW"}),
    );
    desk.telemetry(0, &[beat("a", 5), beat("b", 1), task, step_of(0, "r", 1)]);
    desk
}

#[test]
fn a_breach_is_stopped_acknowledged_and_done_and_every_step_is_on_the_audit_topic() {
    let mut desk = Desk::new(STOP);
    let said = desk.telemetry(0, &[step_of(0, "r", 200)]);
    assert_eq!(acts(&said), ["STOP r ISSUED"]);
    let id = ids(&said, "ISSUED").remove(0);
    assert_eq!(acts(&desk.report(1, &id, "ACKNOWLEDGED")), ["STOP r ACKNOWLEDGED"]);
    let said = desk.report(2, &id, "SUCCEEDED");
    assert_eq!((acts(&said), audits(&said)), (vec!["STOP r SUCCEEDED".into()], vec!["intervention.succeeded".into()]));
    let said = desk.report(3, &id, "FAILED");
    assert_eq!(audits(&said), ["outcome"], "a report that fits nothing is kept");
    assert!(on(&said, Topic::Audit)[0]["reason"].as_str().unwrap().contains("SUCCEEDED: FAILED cannot follow"));
}

#[test]
fn a_deaf_worker_is_escalated_to_kill_by_the_step_clock_also_after_a_crash() {
    let mut desk = Desk::new(PAUSE);
    assert_eq!(acts(&desk.telemetry(0, &[step_of(0, "r", 200)])), ["PAUSE r ISSUED"]);
    desk.crash();
    let due = desk.core.deadline().unwrap().0;
    assert_eq!(due, (crate::support::desk::DAY + 30) * 1_000_000, "the process is woken for it");
    let said = desk.pass(30);
    assert_eq!(acts(&said), ["PAUSE r TIMED_OUT", "STOP r ISSUED"]);
    assert!(alerts(&said).iter().any(|a| a.ends_with("PAUSE of RUN r was not obeyed")), "{:?}", alerts(&said));
    desk.crash();
    assert_eq!(acts(&desk.pass(61)), ["STOP r TIMED_OUT", "KILL r ISSUED"]);
    let said = desk.pass(92);
    assert_eq!(acts(&said), ["KILL r TIMED_OUT"]);
    let critical = on(&said, Topic::Alerts);
    assert!(critical.iter().any(|a| a["severity"] == "CRITICAL"), "{critical:?}");
    assert_eq!(acts(&desk.telemetry(200, &[step_of(200, "r", 1)])), ["KILL r ISSUED"], "it goes on: once more");
}

#[test]
fn a_zombie_is_stopped_again_and_tells_and_its_end_does_not() {
    let mut desk = Desk::new(STOP);
    let said = desk.telemetry(0, &[step_of(0, "r", 200)]);
    desk.report(2, &ids(&said, "ISSUED")[0], "SUCCEEDED");
    assert!(acts(&desk.telemetry(20, &[step_of(20, "r", 1)])).is_empty(), "it has its time to fall silent");
    desk.crash();
    assert!(acts(&desk.telemetry(40, &[event(40, "run.failed", json!({"run_id": "r"}))])).is_empty());
    let said = desk.telemetry(41, &[step_of(41, "r", 1), step_of(42, "r", 1)]);
    assert_eq!(acts(&said), ["STOP r ISSUED"], "one at a time");
    assert!(alerts(&said).iter().any(|a| a.contains("goes on though it was stopped")), "{:?}", alerts(&said));
}

#[test]
fn children_of_a_stopped_parent_stop_those_that_run_and_those_that_come() {
    let mut desk = Desk::new(STOP);
    let child = |at, run: &str, parent: &str| event(at, "run.started", json!({"run_id": run, "parent_run_id": parent}));
    desk.telemetry(0, &[step_of(0, "p", 1), child(0, "c1", "p"), child(0, "c2", "c1"), child(0, "over", "p")]);
    desk.telemetry(1, &[event(1, "run.completed", json!({"run_id": "over"}))]);
    desk.crash();
    let said = desk.telemetry(2, &[step_of(2, "p", 200)]);
    assert_eq!(acts(&said), ["STOP p ISSUED", "STOP c1 ISSUED", "STOP c2 ISSUED"]);
    let interventions = on(&said, Topic::Interventions);
    assert_eq!(interventions[1]["parent_intervention_id"], interventions[0]["intervention_id"]);
    assert_eq!(interventions[2]["parent_intervention_id"], interventions[1]["intervention_id"]);
    assert_eq!(acts(&desk.telemetry(3, &[child(3, "late", "c2")])), ["STOP late ISSUED"]);
    let knot = [child(4, "x", "y"), child(4, "y", "x"), step_of(5, "x", 200)];
    assert_eq!(acts(&desk.telemetry(5, &knot)), ["STOP x ISSUED", "STOP y ISSUED"], "a cycle ends");
}

#[test]
fn what_rolls_back_by_itself_resumes_what_it_paused_and_the_children_with_it() {
    let mut desk = Desk::new(PAUSE);
    desk.telemetry(0, &[event(0, "run.started", json!({"run_id": "c", "parent_run_id": "p"}))]);
    let said = desk.telemetry(1, &[step_of(1, "p", 200)]);
    assert_eq!(acts(&said), ["PAUSE p ISSUED", "PAUSE c ISSUED"]);
    for id in ids(&said, "ISSUED") {
        desk.report(2, &id, "SUCCEEDED");
    }
    let said = desk.pass(602);
    assert_eq!(acts(&said), ["PAUSE p REVERTED", "RESUME p ISSUED", "RESUME c ISSUED"]);
    let resume = ids(&said, "ISSUED").remove(1);
    assert_eq!(
        acts(&desk.report(603, &resume, "SUCCEEDED")),
        ["RESUME c ACKNOWLEDGED", "RESUME c SUCCEEDED", "PAUSE c REVERTED"]
    );
}

#[test]
fn a_proposed_intervention_waits_for_a_person_who_is_known_by_name() {
    let policy = "{id: q, name: Q, enforcement_mode: BLOCK, min_authority: 4, condition: {type: sql, expression: \"agent.health_status = 'failed'\"}, \
                  actions: [{type: quarantine_agent, approval_required: true, reason: It failed}]}";
    let mut desk = Desk::new(policy);
    let said = desk.telemetry(0, &[event(0, "agent.heartbeat", json!({"agent_id": "a", "health_status": "failed"}))]);
    assert_eq!(acts(&said), ["AGENT_QUARANTINE a PROPOSED"]);
    let id = ids(&said, "PROPOSED").remove(0);
    let body = json!({"intervention_id": id, "reason": "it did"});
    let (answer, said) = desk.command_by(1, "intervention.approve", "system:robot", 5, body.clone());
    assert_eq!((&answer["code"], acts(&said).len()), (&json!("person"), 0));
    let (answer, said) = desk.command(2, "intervention.approve", 4, body.clone());
    assert_eq!((&answer["status"], acts(&said)), (&json!("ACCEPTED"), vec!["AGENT_QUARANTINE a ISSUED".to_owned()]));
    assert_eq!(on(&said, Topic::Interventions)[0]["approved_by"], "user:ada");
    let (answer, _) = desk.command(3, "intervention.approve", 4, body);
    assert_eq!(answer["code"], "state", "{answer}");
}

#[test]
fn a_refused_guardian_call_says_what_was_needed_and_given_changes_nothing_and_is_audited() {
    let mut desk = staffed();
    let body = json!({"task_id": "t1", "reason": "stuck"});
    let (answer, said) = desk.command(1, "guardian.cancel_task", 3, body.clone());
    assert_eq!((&answer["status"], &answer["code"]), (&json!("REFUSED"), &json!("authority")), "{answer}");
    assert_eq!((&answer["required_authority"], &answer["given_authority"]), (&json!(4), &json!(3)));
    assert!(answer["reason"].as_str().unwrap().contains("takes authority 4, and 3 was given"));
    assert!(acts(&said).is_empty() && desk.core.deadline().is_none());
    let audit = on(&said, Topic::Audit).remove(0);
    assert_eq!((&audit["kind"], &audit["refused"]), (&json!("command.refused"), &json!(true)));
    assert_eq!((&audit["after"]["required_authority"], &audit["after"]["given_authority"]), (&json!(4), &json!(3)));
    let (answer, said) = desk.command(2, "guardian.cancel_task", 4, body);
    assert_eq!((&answer["status"], acts(&said)), (&json!("ACCEPTED"), vec!["CANCEL_TASK t1 ISSUED".to_owned()]));
}

#[test]
fn the_guardian_cancels_a_task_and_its_events_have_the_seeds_fields() {
    let mut desk = staffed();
    let body = json!({"task_id": "t1", "reason": "Agent failure", "initiated_by": "guardian-agent-1"});
    let (answer, said) = desk.command(1, "guardian.cancel_task", 4, body.clone());
    let id = answer["result"]["action_id"].as_str().unwrap().to_owned();
    let started = said.iter().find(|s| s.kind() == "guardian.intervention.started").unwrap().value();
    assert_eq!(
        (&started["action_type"], &started["task_id"], &started["reason"], &started["authority"]),
        (&json!("cancel_task"), &json!("t1"), &json!("Agent failure"), &json!(4))
    );
    let record = on(&said, Topic::Interventions).remove(0);
    assert_eq!((&record["initiated_by"], &record["principal"]), (&json!("guardian-agent-1"), &json!("user:ada")));
    assert_eq!(record["audit_log"]["before"], json!({"task_status": "running", "agent_id": "a"}));
    let (answer, _) = desk.command(2, "guardian.cancel_task", 4, body.clone());
    assert_eq!(answer["code"], "live", "no second one while one is live");
    let said = desk.report(3, &id, "SUCCEEDED");
    let completed = said.iter().find(|s| s.kind() == "guardian.intervention.completed").unwrap().value();
    assert_eq!((&completed["action_type"], &completed["target_entity"]), (&json!("cancel_task"), &json!("t1")));
    assert_eq!(completed["result"]["executor"], "worker-1");
    let refused = |desk: &mut Desk, body: Value| desk.command(4, "guardian.cancel_task", 4, body).0["code"].clone();
    assert_eq!(refused(&mut desk, json!({"task_id": "unheard-of", "reason": "x"})), "not_found");
    assert_eq!(refused(&mut desk, json!({"task_id": "t1"})), "reason");
    assert_eq!(refused(&mut desk, json!({"reason": "x"})), "body");
}

#[test]
fn the_guardian_reallocates_only_capacity_that_is_there() {
    let mut desk = staffed();
    let move_it = |desk: &mut Desk, from: &str, to: &str, capacity: Value| {
        let body = json!({"from_agent_id": from, "to_agent_id": to, "capacity": capacity, "reason": "critical work"});
        desk.command(1, "guardian.reallocate", 4, body)
    };
    let code =
        |desk: &mut Desk, from: &str, to: &str, capacity: Value| move_it(desk, from, to, capacity).0["code"].clone();
    assert_eq!(code(&mut desk, "a", "b", json!(6)), "capacity", "more than it has");
    for wrong in [json!(0), json!(-1), json!(1.5), json!("2"), Value::Null] {
        assert_eq!(code(&mut desk, "a", "b", wrong.clone()), "capacity", "{wrong}");
    }
    assert_eq!(code(&mut desk, "nobody", "b", json!(1)), "not_found");
    assert_eq!(code(&mut desk, "a", "nobody", json!(1)), "not_found");
    assert_eq!(code(&mut desk, "a", "a", json!(1)), "parameters");
    let (answer, said) = move_it(&mut desk, "a", "b", json!(2));
    assert_eq!(answer["status"], "ACCEPTED", "{answer}");
    let record = on(&said, Topic::Interventions).remove(0);
    assert_eq!(record["audit_log"]["before"], json!({"from_capacity": 5, "to_capacity": 1}));
    let said = desk.report(2, answer["result"]["intervention_id"].as_str().unwrap(), "SUCCEEDED");
    let moved = said.iter().find(|s| s.kind() == "guardian.resource.reallocated").unwrap().value();
    assert_eq!(
        (&moved["from_agent_id"], &moved["to_agent_id"], &moved["capacity"]),
        (&json!("a"), &json!("b"), &json!(2))
    );
}

#[test]
fn the_guardian_overrides_a_priority_by_one_of_four() {
    let mut desk = staffed();
    let set = |desk: &mut Desk, priority: &str| {
        let body = json!({"task_id": "t1", "new_priority": priority, "reason": "incident"});
        desk.command(1, "guardian.override_priority", 4, body)
    };
    let (answer, _) = set(&mut desk, "URGENT");
    assert_eq!(answer["code"], "priority");
    assert!(answer["reason"].as_str().unwrap().contains("CRITICAL HIGH MEDIUM LOW"));
    let (answer, said) = set(&mut desk, "CRITICAL");
    assert_eq!(answer["status"], "ACCEPTED");
    let record = on(&said, Topic::Interventions).remove(0);
    assert_eq!(record["audit_log"]["before"], json!({"priority": "LOW"}));
    assert_eq!(record["parameters"], json!({"new_priority": "CRITICAL"}));
}

#[test]
fn reverting_marks_who_when_and_why_and_is_an_event() {
    let mut desk = staffed();
    let (answer, _) = desk.command(1, "guardian.cancel_task", 4, json!({"task_id": "t1", "reason": "stuck"}));
    let id = answer["result"]["intervention_id"].as_str().unwrap().to_owned();
    desk.report(2, &id, "SUCCEEDED");
    desk.crash();
    let (answer, _) = desk.command(3, "intervention.revert", 4, json!({"intervention_id": id}));
    assert_eq!(answer["code"], "reason");
    let (answer, said) =
        desk.command(4, "intervention.revert", 4, json!({"intervention_id": id, "reason": "Crisis resolved"}));
    assert_eq!((&answer["status"], acts(&said)), (&json!("ACCEPTED"), vec!["CANCEL_TASK t1 REVERTED".to_owned()]));
    let record = on(&said, Topic::Interventions).remove(0);
    assert_eq!((&record["reverted_by"], record["reverted_at"].is_string()), (&json!("user:ada"), true));
    let reverted = said.iter().find(|s| s.kind() == "guardian.intervention.reverted").unwrap().value();
    assert_eq!(
        (&reverted["action_id"], &reverted["reason"], &reverted["reverted_by"]),
        (&json!(id), &json!("Crisis resolved"), &json!("user:ada"))
    );
    let (answer, _) = desk.command(5, "intervention.revert", 4, json!({"intervention_id": id, "reason": "again"}));
    assert_eq!(answer["code"], "not_found");
}

#[test]
fn a_team_restarts_staggered_and_the_schedule_names_its_agents() {
    let mut desk = staffed();
    let body = json!({"type": "TEAM_RESTART", "target": {"kind": "TEAM", "id": "crew"}, "parameters": {"stagger_seconds": 20}, "reason": "x"});
    let (answer, said) = desk.command(1, "intervention.create", 4, body);
    assert_eq!(answer["status"], "ACCEPTED", "{answer}");
    let parameters = &on(&said, Topic::Interventions)[0]["parameters"];
    let schedule = json!([{"agent_id": "a", "after_seconds": 0}, {"agent_id": "b", "after_seconds": 20}]);
    assert_eq!((&parameters["stagger_seconds"], &parameters["schedule"]), (&json!(20), &schedule));
    let refused = |desk: &mut Desk, body: Value| desk.command(2, "intervention.create", 4, body).0["code"].clone();
    let of =
        |kind: &str, target: &str, id: &str| json!({"type": kind, "target": {"kind": target, "id": id}, "reason": "x"});
    assert_eq!(refused(&mut desk, of("TEAM_RESTART", "TEAM", "nobody")), "not_found");
    assert_eq!(refused(&mut desk, of("TEAM_RESTART", "AGENT", "a")), "target");
    assert_eq!(refused(&mut desk, of("EXPLODE", "AGENT", "a")), "type");
    assert_eq!(refused(&mut desk, of("STOP", "RUN", "unheard-of")), "not_found");
    assert_eq!(refused(&mut desk, of("STOP", "TENANT", "other")), "not_found");
}

#[test]
fn a_watchdog_escalates_an_alert_that_it_could_not_remedy() {
    let mut desk = staffed();
    let failed =
        event(1, "run.failed", json!({"run_id": "r", "agent_id": "a", "severity": "MEDIUM", "event_id": "e1"}));
    let opened = on(&desk.telemetry(1, &[failed]), Topic::Alerts).remove(0);
    assert_eq!((&opened["severity"], &opened["sources"]), (&json!("MEDIUM"), &json!(["failure"])));
    let body = json!({"alert_id": opened["alert_id"], "reason": "Automated remediation failed 3 times"});
    let (answer, _) = desk.command_by(2, "guardian.escalate", "service:watchdog", 1, body.clone());
    assert_eq!((&answer["code"], &answer["required_authority"]), (&json!("authority"), &json!(2)));
    let (answer, said) = desk.command_by(3, "guardian.escalate", "service:watchdog", 2, body);
    assert_eq!(answer["status"], "ACCEPTED", "{answer}");
    let alert = on(&said, Topic::Alerts).remove(0);
    assert_eq!((&alert["severity"], &alert["revision"]), (&json!("CRITICAL"), &json!(2)));
    assert!(alert["description"].as_str().unwrap().contains("Automated remediation failed 3 times"));
    assert_eq!(audits(&said), ["guardian.escalated"]);
}

#[test]
fn a_command_of_one_tenant_is_answered_once_and_not_under_another_key() {
    let mut desk = staffed();
    let (answer, _) = desk.command(1, "policy.delete", 4, json!({"policy_id": "p", "reason": "x"}));
    assert_eq!(answer["code"], "not_found", "policies are keyed `*`: {answer}");
    let (answer, said) = desk.command(2, "guardian.cancel_task", 4, json!({"task_id": "t1", "reason": "stuck"}));
    assert_eq!((&answer["status"], acts(&said).len()), (&json!("ACCEPTED"), 1));
}

#[test]
fn a_wrong_price_does_not_stop_the_fleet_the_breaker_drops_the_policy_to_shadow_and_pages() {
    let policy = "{id: budget, name: Budget, enforcement_mode: BLOCK, limits: [{id: usd, limit_type: COST_PER_RUN, metric: run_cost_usd, max: 1}]}";
    let mut desk = Desk::new(policy);
    let step = |at: i64, run: usize, cost: f64| {
        event(at, "run.step", json!({"run_id": format!("r{run}"), "agent_id": format!("a{run}"), "cost_usd": cost}))
    };
    let healthy: Vec<Value> = (0..40).map(|run| step(0, run, 0.001)).collect();
    assert!(acts(&desk.telemetry(0, &healthy)).is_empty());
    // a thousandfold: every run would be stopped
    let mut said = Vec::new();
    for run in 0..40 {
        said.extend(desk.telemetry(10, &[step(10, run, 1.0)]));
        if run == 7 {
            desk.crash();
        }
    }
    let stopped = acts(&said).iter().filter(|a| a.ends_with("ISSUED")).count();
    assert_eq!(stopped, 20, "half of forty, and not one more");
    let pages: Vec<Value> =
        on(&said, Topic::Alerts).into_iter().filter(|a| a["sources"] == json!(["breaker"])).collect();
    assert_eq!((pages.len(), &pages[0]["severity"]), (1, &json!("CRITICAL")));
    let shadows = on(&said, Topic::Audit).into_iter().filter(|a| a["after"]["breaker"] == true).count();
    assert_eq!(shadows, 20, "what it would have done is said");
    assert_eq!(on(&said, Topic::Signals).iter().filter(|s| s["kind"] == "BREACH").count(), 40, "the evidence is whole");
    println!("runs stopped: {stopped} of 40");
}
