//! Conditions through the whole core: what turns becomes interventions under BLOCK and shadow decisions under AUDIT, whatever the
//! batch cuts.

use std::fs;

use runwarden::decide::records::{Audit, Decision, Intervention, InterventionState};
use runwarden::pipeline::simulate::{Report, Simulation};

use crate::support::{essences, root, simulation};

/// An event `seconds` after the start of 2026.
fn event(seconds: i64, kind: &str, keys: serde_json::Value) -> String {
    let mut event = serde_json::json!({
        "event_time": 1_767_225_600_000_i64 + seconds * 1_000, "event_type": kind, "tenant_id": "acme",
    });
    event.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    event.to_string()
}

fn simulate(policies: &[(&str, &str)], events: &[String], batch: usize) -> Report {
    let mut simulation = Simulation::new(simulation(policies)).unwrap();
    for chunk in events.chunks(batch) {
        simulation.push(chunk.iter().map(String::as_bytes)).unwrap();
    }
    simulation.finish().unwrap()
}

fn interventions(report: &Report) -> Vec<&Intervention> {
    let first = |d: &Decision| matches!(d, Decision::Intervention(i) if i.revision == 1);
    let all = report.decisions.iter().filter(|d| first(d));
    all.filter_map(|d| if let Decision::Intervention(i) = d { Some(&**i) } else { None }).collect()
}

/// Without the life of interventions.
fn audits(report: &Report) -> Vec<&Audit> {
    let other = |a: &&Audit| !a.kind.starts_with("intervention.");
    report
        .decisions
        .iter()
        .filter_map(|d| if let Decision::Audit(a) = d { Some(&**a) } else { None })
        .filter(other)
        .collect()
}

fn crisis() -> Vec<String> {
    let task = |seconds, id: &str, status: &str, running: f64| {
        let keys = serde_json::json!({
            "task_id": id, "agent_id": "a1", "task_status": status, "running_duration_seconds": running, "timeout_seconds": 60,
            "priority": "HIGH",
        });
        event(seconds, "task.updated", keys)
    };
    let beat = |seconds, health: &str| {
        event(seconds, "agent.heartbeat", serde_json::json!({"agent_id": "a1", "health_status": health, "capacity": 2}))
    };
    vec![
        task(0, "t1", "running", 5.0),
        task(1, "t2", "running", 50.0),
        beat(2, "healthy"),
        beat(3, "failed"),
        beat(4, "failed"),
        task(5, "t1", "cancelled", 8.0),
        task(6, "t3", "running", 130.0),
        beat(7, "healthy"),
    ]
}

#[test]
fn the_guardian_files_act_once_they_are_turned_on_and_only_say_so_before() {
    let guardian = ["emergency", "priority_override", "resource_reallocation"].map(|name| {
        let text = fs::read_to_string(root().join(format!("config/policies/guardian/{name}.yaml"))).unwrap();
        (format!("{name}.yaml"), text)
    });
    let shadow: Vec<(&str, &str)> = guardian.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    let report = simulate(&shadow, &crisis(), 100);
    assert!(interventions(&report).is_empty(), "in AUDIT nothing is ordered");
    let mut would: Vec<String> = audits(&report)
        .iter()
        .map(|a| format!("{} {} {}", a.kind, a.after["would"].as_str().unwrap(), a.subject.id))
        .collect();
    would.sort();
    let lines =
        |kind: &str, tasks: &[&str]| tasks.iter().map(|t| format!("shadow_decision {kind} {t}")).collect::<Vec<_>>();
    let mut expected = lines("CANCEL_TASK", &["t1", "t2", "t3"]);
    // emergency_cancellation and priority_override both tell people
    expected.extend(lines("NOTIFY", &["t1", "t2", "t2", "t3", "t3"]));
    expected.extend(lines("PRIORITY_OVERRIDE", &["t2", "t3"]));
    assert_eq!(would, expected);

    let on: Vec<(String, String)> = guardian
        .iter()
        .map(|(name, text)| {
            (name.clone(), text.replace("  min_authority", "  enforcement_mode: BLOCK\n  min_authority"))
        })
        .collect();
    let on: Vec<(&str, &str)> = on.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    let report = simulate(&on, &crisis(), 100);
    let mut ordered: Vec<String> = interventions(&report)
        .iter()
        .map(|i| format!("{} {} {}:{} {:?}", i.policy_id, i.kind, i.target.kind, i.target.id, i.state))
        .collect();
    ordered.sort();
    assert_eq!(
        ordered,
        [
            "emergency_cancellation CANCEL_TASK TASK:t1 Issued",
            "emergency_cancellation CANCEL_TASK TASK:t2 Issued",
            "emergency_cancellation CANCEL_TASK TASK:t3 Issued",
            "emergency_cancellation NOTIFY TASK:t1 Issued",
            "emergency_cancellation NOTIFY TASK:t3 Issued",
            "priority_override NOTIFY TASK:t2 Issued",
            "priority_override PRIORITY_OVERRIDE TASK:t2 Proposed",
            "priority_override PRIORITY_OVERRIDE TASK:t3 Proposed",
        ],
        "of one kind on one target one is live: who asks first orders it"
    );
    assert!(audits(&report).is_empty());
    for batch in [1, 3] {
        assert_eq!(
            essences(&simulate(&on, &crisis(), batch).decisions),
            essences(&report.decisions),
            "the cut of batches changes nothing"
        );
    }
}

#[test]
fn what_no_event_gives_is_said_and_the_other_actions_are_taken() {
    let policy = "id: p\nname: P\nenforcement_mode: BLOCK\n\
                  condition: {type: field_comparison, field: agent.health_status, operator: ==, value: failed}\n\
                  actions: [{type: restart_team}, {type: quarantine_agent, target: '${agent.id}', approval_required: true, reason: Failed}]\n";
    let report = simulate(&[("p.yaml", policy)], &crisis(), 100);
    let [quarantine] = &interventions(&report)[..] else { panic!("one") };
    assert_eq!(
        (&*quarantine.kind, quarantine.state, &*quarantine.target.id, &*quarantine.reason),
        ("AGENT_QUARANTINE", InterventionState::Proposed, "a1", "Failed (policy p, AGENT a1)")
    );
    let [impossible] = &audits(&report)[..] else { panic!("one") };
    assert!(
        impossible.refused && impossible.reason.starts_with("TEAM_RESTART is not ordered: the event gives no team.id")
    );
}
