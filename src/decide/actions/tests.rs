use super::*;
use crate::decide::records::InterventionState;
use crate::policy::{Mode, parse};

fn taken(actions: &str) -> Taken {
    let yaml =
        format!("id: p\nname: P\ncondition: {{type: sql, expression: 'task.capacity > 1'}}\nactions: [{actions}]\n");
    let policy = parse("test.yaml", &yaml).unwrap().remove(0);
    let id = |text: &str| Some(Arc::from(text));
    Taken {
        policy: Arc::new(policy),
        tenant: "acme".into(),
        subjects: [id("r1"), id("a1"), id("t1")],
        about: [None, None, id("t1")],
        team: None,
        row: 0,
        time: 1_767_225_600_000_000,
        unknown: false,
    }
}

#[test]
fn every_action_has_a_type_and_a_target_or_says_what_is_missing() {
    for (action, kind, target) in [
        ("type: pause_run", "PAUSE", "RUN r1"),
        ("type: resume_run", "RESUME", "RUN r1"),
        ("type: stop_run", "STOP", "RUN r1"),
        ("type: kill_run", "KILL", "RUN r1"),
        ("type: restart_agent", "AGENT_RESTART", "AGENT a1"),
        ("type: quarantine_agent, target: '${agent.id}'", "AGENT_QUARANTINE", "AGENT a1"),
        ("type: restart_team, target: blue", "TEAM_RESTART", "TEAM blue"),
        ("type: reassign_task, parameters: {to_agent_id: a2}", "TASK_REASSIGN", "TASK t1"),
        ("type: override_priority, target: 'x-${task.id}'", "PRIORITY_OVERRIDE", "TASK x-t1"),
        ("type: cancel_task", "CANCEL_TASK", "TASK t1"),
        ("type: reallocate_capacity", "REALLOCATE_CAPACITY", "AGENT a1"),
        ("type: notify, parameters: {channels: [slack]}", "NOTIFY", "TASK t1"),
    ] {
        let taken = taken(&format!("{{{action}}}"));
        let order = taken.order(&taken.policy.actions[0]).unwrap();
        assert_eq!(
            (order.kind, format!("{} {}", order.target.kind, order.target.id)),
            (kind, target.to_owned()),
            "{action}"
        );
    }
    let team = taken("{type: restart_team}");
    assert_eq!(team.order(&team.policy.actions[0]).unwrap_err(), "the event gives no team.id");
    let refused = team.impossible(0, &team.policy.actions[0], "the event gives no team.id", Wall(7));
    assert!(refused.refused && refused.reason.contains("TEAM_RESTART is not ordered: the event gives no team.id"));
    let odd = taken("{type: cancel_task, target: '${task.colour}'}");
    assert!(odd.order(&odd.policy.actions[0]).is_err());
}

#[test]
fn an_intervention_says_who_why_and_whether_a_person_must_approve() {
    let taken = taken(
        "{type: reallocate_capacity, reason: Critical work waits, approval_required: true, \
         parameters: {from_agent_id: '${agent.id}', capacity: 2}}, {type: cancel_task}",
    );
    let [first, second] = [0, 1].map(|n| taken.intervention(taken.order(&taken.policy.actions[n]).unwrap(), Wall(9)));
    assert_eq!((first.state, first.issued_at), (InterventionState::Proposed, None));
    assert_eq!(first.reason, "Critical work waits (policy p, TASK t1)");
    assert_eq!(first.parameters, json!({"from_agent_id": "a1", "capacity": 2}));
    assert_eq!((second.state, second.issued_at, second.authority_level), (InterventionState::Issued, Some(9), SYSTEM));
    assert_ne!(first.intervention_id, second.intervention_id);
    let later = Taken { time: taken.time + 1, ..taken.clone() };
    let again = later.intervention(later.order(&later.policy.actions[1]).unwrap(), Wall(9));
    assert_ne!(again.intervention_id, second.intervention_id, "another turn is another intervention");
}

#[test]
fn a_shadow_says_what_would_be_done_and_nothing_more() {
    let taken = taken("{type: cancel_task}, {type: restart_team}");
    assert_eq!(taken.policy.enforcement_mode, Mode::Audit);
    let shadows = taken.shadows(Wall(9));
    let [first, second] = &shadows[..] else { panic!("one for each action") };
    assert_eq!((&*first.kind, first.refused, &*first.subject.id), ("shadow_decision", false, "t1"));
    assert_eq!((&first.after["would"], &first.after["target"]["id"]), (&json!("CANCEL_TASK"), &json!("t1")));
    assert_eq!(second.after["impossible"], "the event gives no team.id");
    assert_ne!(first.audit_id, second.audit_id);
}
