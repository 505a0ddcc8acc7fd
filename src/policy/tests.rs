use proptest::prelude::*;

use super::*;

fn metrics(name: &str) -> Option<Scope> {
    match name {
        "run_tokens" => Some(Scope::Run),
        "agent_tokens_1m" => Some(Scope::Agent),
        "tenant_tokens_5m" => Some(Scope::Tenant),
        _ => None,
    }
}

fn policy(text: &str) -> Policy {
    parse("p.yaml", text).unwrap_or_else(|f| panic!("{f:?}")).remove(0)
}

fn limited(id: &str, precedence: i64, strategy: &str, mode: &str, enforcement: &str, on_breach: &str, max: u32) -> Policy {
    policy(&format!(
        "{{id: {id}, name: {id}, precedence: {precedence}, conflict_strategy: {strategy}, enforcement_mode: {mode}, \
         limits: [{{id: l, limit_type: TOKENS, metric: run_tokens, max: {max}, enforcement: {enforcement}, on_breach: {on_breach}}}]}}"
    ))
}

fn run_limits(policies: Vec<Policy>) -> LimitSet {
    let snapshot = std::sync::Arc::new(Snapshot::new(policies, vec![], String::new(), String::new()));
    let terms = BoundTerms {
        run_start: snapshot.clone(),
        first_token: snapshot.clone(),
        each_step: snapshot,
    };
    let who = Who { tenant: "acme", agent: Some("planner"), ..Who::default() };
    terms.effective(&who, &metrics, None)
}

#[test]
fn only_id_name_and_a_limit_are_needed_and_the_rest_has_its_default() {
    let p = policy("{id: a, name: A, limits: [{id: l, limit_type: T, metric: run_tokens, max: 10}]}");
    assert_eq!(p.enforcement_mode, Mode::Audit, "nothing is stopped until someone says so");
    assert_eq!((p.precedence, p.binding, p.on_failure), (100, Binding::EachStep, OnFailure::Open));
    let l = &p.limits[0];
    assert_eq!((l.near.to_string(), l.enforcement, l.on_breach), ("0.8".into(), Enforcement::Block, OnBreach::Stop));
    assert_eq!((l.category, p.alerts.min_alert_interval_seconds), (Category::Threshold, 30));
}

#[test]
fn every_fault_of_a_file_names_its_place_and_the_nearest_word() {
    let text = "id: a\nname: A\nenforcment_mode: BLOCK\nlimits:\n  - id: l\n    limit_type: T\n    metric: run_tokens\n    max: lots\n    enforcement: BLOK\n";
    let faults = parse("bad.yaml", text).unwrap_err();
    let shown: Vec<String> = faults.iter().map(ToString::to_string).collect();
    assert!(shown.iter().any(|f| f.starts_with("bad.yaml:3:1: unknown key") && f.contains("enforcement_mode")), "{shown:?}");
    assert!(shown.iter().any(|f| f.contains("limits[0].max") && f.contains("bad.yaml:8")), "{shown:?}");
    assert!(shown.iter().any(|f| f.contains("did you mean `BLOCK`")), "{shown:?}");
}

#[test]
fn the_guardian_file_of_the_seed_is_read() {
    let text = r#"
policy:
  name: "emergency_cancellation"
  min_authority: 4
  triggers:
    - type: "task_timeout"
      condition: "task.running_duration > task.timeout_seconds * 2"
  actions:
    - type: "cancel_task"
      auto_approve: true
    - type: "notify"
      channels: ["slack", "pagerduty"]
  rollback:
    enabled: true
    auto_rollback_after_minutes: 60
"#;
    let p = policy(text);
    assert_eq!((p.id.as_str(), p.actions.len(), p.rollback.enabled), ("emergency_cancellation", 2, true));
    assert_eq!(p.condition.unwrap()["operator"], "OR");
}

#[test]
fn arbitration_follows_the_table() {
    let most = |mode: &str, e: &str, b: &str, max| limited(&format!("p{max}"), 100, "MOST_RESTRICTIVE", mode, e, b, max);
    // the smallest max and the harshest action, each from whichever policy has it
    let set = run_limits(vec![most("BLOCK", "BLOCK", "PAUSE", 10), most("BLOCK", "BLOCK", "KILL", 20)]);
    assert_eq!(set.limits.len(), 1);
    let l = &set.limits[0];
    assert_eq!((l.max, l.on_breach, l.policy_id.as_str()), (Amount::from_int(10), OnBreach::Kill, "p10"));
    assert_eq!(l.contributors.len(), 2, "{:?}", l.contributors);
    // kinds of enforcement do not compete
    let set = run_limits(vec![most("BLOCK", "BLOCK", "STOP", 10), most("BLOCK", "REJECT", "none", 20)]);
    assert_eq!(set.limits.len(), 2);
    // AUDIT, WARN and limits without an effect are evaluated alone
    for (mode, enforcement) in [("AUDIT", "BLOCK"), ("WARN", "BLOCK"), ("BLOCK", "ALERT")] {
        let set = run_limits(vec![most("BLOCK", "BLOCK", "STOP", 10), most(mode, enforcement, "none", 5)]);
        let enforced = set.limits.iter().find(|l| l.intervenes()).unwrap();
        assert_eq!((set.limits.len(), enforced.max), (2, Amount::from_int(10)), "{mode} {enforcement}");
    }
    // DISABLED is nothing
    assert!(run_limits(vec![most("DISABLED", "BLOCK", "STOP", 10)]).limits.is_empty());
    // the lowest precedence wins whole
    let explicit = |p, max| limited(&format!("e{max}"), p, "EXPLICIT_PRIORITY", "BLOCK", "BLOCK", "STOP", max);
    assert_eq!(run_limits(vec![explicit(5, 90), explicit(9, 10)]).limits[0].max, Amount::from_int(90));
    assert_eq!(run_limits(vec![explicit(5, 90), explicit(5, 10)]).limits[0].max, Amount::from_int(10), "equal: smallest");
    // FAIL_CLOSED stops on ambiguity
    let closed = |p, max| limited(&format!("c{max}"), p, "FAIL_CLOSED", "BLOCK", "BLOCK", "STOP", max);
    let set = run_limits(vec![closed(5, 90), closed(5, 10)]);
    assert!(set.limits.is_empty() && set.ambiguous[0].policies == ["c10", "c90"], "{set:?}");
    assert!(run_limits(vec![closed(5, 90), closed(6, 10)]).ambiguous.is_empty());
}

#[test]
fn wider_metrics_take_policies_that_match_their_own_key() {
    let p = policy(
        "{id: a, name: A, scope: {who: AGENT, ids: [planner]}, limits: [{id: l, limit_type: T, metric: agent_tokens_1m, max: 1}]}",
    );
    let snapshot = Snapshot::new(vec![p], vec![], String::new(), String::new());
    let of = |id| snapshot.effective(&Who::of_group(Scope::Agent, "acme", id), Scope::Agent, &metrics, None).limits.len();
    assert_eq!((of("planner"), of("coder")), (1, 0));
}

#[test]
fn a_run_keeps_the_terms_of_its_binding_moment() {
    let with = |binding: &str, max: u32| {
        let p = policy(&format!(
            "{{id: a, name: A, binding: {binding}, limits: [{{id: l, limit_type: T, metric: run_tokens, max: {max}}}]}}"
        ));
        std::sync::Arc::new(Snapshot::new(vec![p], vec![], String::new(), String::new()))
    };
    let max = |binding| {
        let (then, now) = (with(binding, 1), with(binding, 2));
        let terms = BoundTerms { run_start: then.clone(), first_token: then, each_step: now };
        terms.effective(&Who { tenant: "t", ..Who::default() }, &metrics, None).limits[0].max
    };
    assert_eq!(max("RUN_START"), Amount::from_int(1));
    assert_eq!(max("FIRST_TOKEN"), Amount::from_int(1));
    assert_eq!(max("EACH_STEP"), Amount::from_int(2));
}

#[test]
fn a_snapshot_reads_back_equal_and_a_changed_one_is_refused() {
    let snapshot = Snapshot::new(vec![limited("a", 1, "FAIL_CLOSED", "BLOCK", "BLOCK", "STOP", 3)], vec![], "p".into(), "s".into());
    let text = snapshot.to_json();
    let mut again = Snapshot::from_json(&text).unwrap();
    assert_eq!(again.id(), snapshot.id());
    assert_eq!(again.to_json(), text);
    again = Snapshot::from_json(&text).unwrap();
    assert_eq!(again.policies().len(), 1);
    let forged = text.replace("\"max\":3", "\"max\":4");
    assert!(matches!(Snapshot::from_json(&forged), Err(SnapshotError::Content { .. })));
}

#[test]
fn check_finds_what_governs_nothing() {
    let known = vec![("run_tokens".to_owned(), Scope::Run, true), ("tenant_tokens_5m".to_owned(), Scope::Tenant, false)];
    let of = |text: &str| -> Vec<String> {
        let set = PolicySet::new(&[("f.yaml".to_owned(), text.to_owned())]).unwrap();
        check(&set, &known).iter().map(ToString::to_string).collect()
    };
    let unknown = of("{id: a, name: A, limits: [{id: l, limit_type: T, metric: run_token, max: 1}]}");
    assert!(unknown[0].starts_with("error: f.yaml:1") && unknown[0].contains("did you mean `run_tokens`"), "{unknown:?}");
    let narrow = of("{id: a, name: A, scope: {who: AGENT}, limits: [{id: l, limit_type: T, metric: tenant_tokens_5m, max: 1}]}");
    assert!(narrow[0].contains("selects by agent_id"), "{narrow:?}");
    let off = of("{id: a, name: A, status: RETIRED, limits: [{id: l, limit_type: T, metric: run_tokens, max: 1}]}");
    assert!(off[0].starts_with("warning") && off[0].contains("governs nothing"), "{off:?}");
    let empty = of("# nothing\n");
    assert!(empty.iter().any(|f| f.contains("holds no policy")), "{empty:?}");
}

proptest! {
    #[test]
    fn most_restrictive_is_order_independent_and_never_laxer_than_any(
        maxes in prop::collection::vec((1u32..50, 0usize..3, 0i64..3), 1..6),
        seed in any::<u64>(),
    ) {
        let actions = ["PAUSE", "STOP", "KILL"];
        let mut policies: Vec<Policy> = maxes
            .iter()
            .enumerate()
            .map(|(i, (max, a, p))| limited(&format!("p{i}"), *p, "MOST_RESTRICTIVE", "BLOCK", "BLOCK", actions[*a], *max))
            .collect();
        let first = run_limits(policies.clone());
        let len = policies.len();
        policies.rotate_left((seed % len as u64) as usize);
        policies.reverse();
        let second = run_limits(policies.clone());
        let strip = |s: &LimitSet| -> Vec<(Amount, Amount, OnBreach, String)> {
            s.limits.iter().map(|l| (l.max, l.near_at, l.on_breach, l.policy_id.clone())).collect()
        };
        prop_assert_eq!(strip(&first), strip(&second));
        for p in &policies {
            prop_assert!(first.limits[0].max <= p.limits[0].max && first.limits[0].on_breach >= p.limits[0].on_breach);
        }
    }

    #[test]
    fn audit_policies_change_no_enforced_limit(max in 1u32..50, other in 1u32..50) {
        let enforced = limited("a", 1, "MOST_RESTRICTIVE", "BLOCK", "BLOCK", "STOP", max);
        let shadow = limited("b", 0, "EXPLICIT_PRIORITY", "AUDIT", "BLOCK", "KILL", other);
        let alone = run_limits(vec![enforced.clone()]);
        let both = run_limits(vec![enforced, shadow]);
        let strip = |s: &LimitSet| -> Vec<_> {
            s.limits.iter().filter(|l| l.mode == Mode::Block).map(|l| (l.max, l.on_breach, l.near_at)).collect()
        };
        prop_assert_eq!(strip(&alone), strip(&both));
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in "[a-z:{}\\[\\]\\-& *\\n'\"0-9.,]{0,200}") {
        drop(parse("x.yaml", &text));
        drop(parse("x.yaml", &format!("id: a\nname: A\nlimits:\n{text}")));
    }
}
