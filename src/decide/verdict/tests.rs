use serde_json::json;

use super::*;

const NOW: Micros = 1_000 * SECOND;

fn order(id: &str, revision: u64, kind: &str, target: (&str, &str), state: &str) -> Intervention {
    serde_json::from_value(json!({
        "intervention_id": id, "revision": revision, "state": state, "mode": "enforced", "type": kind,
        "target": {"kind": target.0, "id": target.1}, "parameters": {}, "tenant_id": "acme", "run_id": null, "policy_id": "p",
        "signal_id": "s1", "reason": "too much", "authority_level": 5, "initiated_by": "policy:p", "principal": "runwarden",
        "approval_required": false, "approved_by": null, "created_at": "1970-01-01T00:16:40Z", "issued_at": null, "deadline": null,
        "executed_at": null, "reverted_at": null, "reverted_by": null, "supersedes": null, "parent_intervention_id": null,
        "audit_log": {"before": null, "after": null, "parameters": {}, "results": null},
    }))
    .unwrap()
}

fn signal(id: &str, kind: &str, enforcement: &str, window_end: i64) -> Signal {
    let at = |seconds: i64| crate::clock::rfc3339(seconds * SECOND);
    serde_json::from_value(json!({
        "signal_id": id, "kind": kind, "mode": "BLOCK", "tenant_id": "acme", "policy_id": "p", "policy_version": 1, "snapshot_id": "x",
        "contributors": [], "limit_id": "l", "limit_type": "TOKENS_PER_MINUTE", "category": "RATE", "metric": "agent_tokens",
        "scope": {"kind": "AGENT", "id": "a"}, "run_id": null, "window_start": at(window_end - 60), "window_end": at(window_end),
        "value": 12, "limit": 10, "near": 0.8, "utilization": 1.2, "overshoot": 2, "minutes_to_limit": null, "raised_by": "value",
        "enforcement": enforcement, "on_breach": "none", "event_time": at(window_end - 30), "decided_at": at(window_end - 29), "lag_ms": 1,
        "cost_provenance": null, "fallback_model": "small", "reject_until": at(window_end),
        "violation": {"violation_type": "rate", "source": "runtime", "severity": 0.8, "violation_kind": "STANDARD"},
        "evidence": {"first": null, "last": null}, "complete": true, "is_synthetic": false,
    }))
    .unwrap()
}

fn verdict(holds: &Holds, now: Micros) -> &'static str {
    holds.worst(now).map_or("allow", |held| held.verdict.as_str())
}

#[test]
fn a_run_is_held_from_the_order_on_until_it_is_taken_back_and_by_the_harshest() {
    let run = ("RUN", "r");
    let mut holds = Holds::of("RUN");
    for (id, revision, kind, state, want) in [
        ("i1", 1, "PAUSE", "PROPOSED", "allow"),
        ("i1", 2, "PAUSE", "ISSUED", "pause"),
        ("i1", 3, "PAUSE", "TIMED_OUT", "pause"),
        ("i2", 1, "STOP", "ISSUED", "stop"),
        ("i3", 1, "NOTIFY", "ISSUED", "stop"),
        ("i2", 2, "STOP", "SUPERSEDED", "pause"),
        ("i4", 1, "KILL", "ISSUED", "kill"),
        ("i4", 2, "KILL", "FAILED", "kill"),
        ("i4", 3, "KILL", "REVERTED", "pause"),
        // what is older, or comes again, says nothing
        ("i4", 1, "KILL", "ISSUED", "pause"),
        ("i5", 1, "RESUME", "PROPOSED", "pause"),
        ("i5", 2, "RESUME", "ISSUED", "allow"),
        ("i1", 4, "PAUSE", "SUCCEEDED", "allow"),
        ("i6", 1, "PAUSE", "ISSUED", "pause"),
    ] {
        holds.intervention(&order(id, revision, kind, run, state), NOW);
        assert_eq!(verdict(&holds, NOW), want, "after {id} {kind} {state}");
    }
    let held = holds.worst(NOW).unwrap();
    assert_eq!((held.intervention_id.as_deref(), held.policy_id.as_str()), (Some("i6"), "p"));
}

#[test]
fn the_end_of_the_level_frees_a_wider_scope_in_whatever_order_records_come_but_no_run() {
    let breach = signal("s1", "BREACH", "BLOCK", 600);
    let resolved = signal("s9", "RESOLVED", "BLOCK", 600);
    let pause = order("i1", 1, "PAUSE", ("AGENT", "a"), "ISSUED");
    for end_first in [false, true] {
        let mut holds = Holds::of("AGENT");
        holds.signal(&breach, NOW);
        if end_first {
            holds.signal(&resolved, NOW);
        }
        holds.intervention(&pause, NOW);
        assert_eq!(verdict(&holds, NOW), if end_first { "allow" } else { "pause" });
        holds.signal(&resolved, NOW);
        holds.signal(&breach, NOW);
        assert_eq!(verdict(&holds, NOW), "allow", "a repeated BREACH raises nothing");
    }
    let mut holds = Holds::of("RUN");
    holds.signal(&breach, NOW);
    holds.intervention(&order("i1", 1, "STOP", ("RUN", "r"), "ISSUED"), NOW);
    holds.signal(&resolved, NOW);
    assert_eq!(verdict(&holds, NOW), "stop");
}

#[test]
fn new_work_is_held_back_until_the_level_and_its_cooldown_are_over() {
    for (enforcement, want) in [("REJECT", "reject"), ("QUEUE", "queue"), ("DEGRADE", "degrade"), ("WARN", "allow")] {
        let mut holds = Holds::of("AGENT");
        holds.signal(&signal("s1", "BREACH", enforcement, 1_060), NOW);
        assert_eq!(verdict(&holds, NOW), want);
        holds.signal(&signal("s0", "RESOLVED", enforcement, 1_000), NOW);
        assert_eq!(verdict(&holds, 1_061 * SECOND), want, "an earlier window ended, not this one");
        holds.signal(&signal("s9", "RESOLVED", enforcement, 1_060), NOW);
        assert_eq!(verdict(&holds, 1_059 * SECOND), want, "until it is said to be over");
        assert_eq!(verdict(&holds, 1_061 * SECOND), "allow");
    }
    let mut holds = Holds::of("AGENT");
    let shadow = Signal { mode: "AUDIT".into(), ..signal("s1", "BREACH", "REJECT", 1_060) };
    holds.signal(&shadow, NOW);
    assert_eq!(verdict(&holds, NOW), "allow", "a shadow holds nothing");
    let mut holds = Holds::of("AGENT");
    holds.signal(&signal("s1", "BREACH", "DEGRADE", 1_060), NOW);
    let held = holds.worst(NOW).unwrap();
    assert_eq!((held.retry_after(NOW), held.fallback_model.as_deref()), (Some(60), Some("small")));
}

#[test]
fn what_is_remembered_of_a_scope_has_a_bound_and_an_end() {
    let mut holds = Holds::of("AGENT");
    for n in 0..1_000 {
        holds.signal(&signal(&format!("s{n}"), "BREACH", "BLOCK", 600 + n), NOW);
    }
    assert_eq!(holds.levels.len(), REMEMBERED);
    assert!(holds.is_over(NOW + 10, NOW + 5, NOW - 5), "nothing holds it");
    holds.intervention(&order("i1", 1, "PAUSE", ("AGENT", "a"), "ISSUED"), NOW);
    assert!(!holds.is_over(NOW + 10, NOW + 5, NOW - 5));
    assert!(holds.is_over(NOW + 10, NOW + 5, NOW + 1), "too old");
}
