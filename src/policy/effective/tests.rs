use super::super::active::parse_instant;
use super::super::testing::{metrics, policies, run, snapshot};
use super::*;

fn policy(id: &str, keys: &str, metric: &str, max: u32) -> String {
    format!(
        "---\nid: {id}\nname: {id}\nenforcement_mode: BLOCK\n{keys}\nlimits:\n\
         - {{id: l, limit_type: TOKENS_PER_RUN, metric: {metric}, max: {max}}}\n"
    )
}

fn ids(set: &LimitSet) -> Vec<String> {
    set.limits.iter().map(|l| l.policy_id.to_string()).collect()
}

/// Ids of the policies whose limits hold; each is on a metric of its own.
fn matched(yaml: &str, who: &Who<'_>, scope: Scope) -> Vec<String> {
    ids(&snapshot(yaml).effective(who, scope, &metrics, None, &|_| true))
}

#[test]
fn a_run_is_under_the_policies_that_select_it() {
    let cases = [
        ("p01", "", true),
        ("p02", "tenant: acme", true),
        ("p03", "tenant: beta", false),
        ("p04", "scope: {level: GLOBAL}", true),
        ("p05", "scope: {level_ids: [acme, zeta]}", true),
        ("p06", "scope: {level_ids: [zeta]}", false),
        ("p07", "scope: {who: AGENT, ids: [coder, planner]}", true),
        ("p08", "scope: {who: AGENT, ids: [coder]}", false),
        ("p09", "scope: {who: API_KEY, ids: [k1]}", true),
        ("p10", "scope: {who: HUMAN_ACTOR, ids: [bob]}", false),
        ("p11", "scope: {level: PROJECT, level_ids: [p1], who: AGENT}", true),
        ("p12", "scope: {level: PROVIDER, level_ids: [openai], who: HUMAN_ACTOR, ids: [ann]}", true),
        ("p13", "scope: {level: PROVIDER, level_ids: [other]}", false),
        ("p14", "status: RETIRED", false),
    ];
    let yaml: String = cases.iter().map(|(id, keys, _)| policy(id, keys, &format!("m_{id}"), 1)).collect();
    let expected: Vec<_> = cases.iter().filter(|c| c.2).map(|c| c.0).collect();
    assert_eq!(matched(&yaml, &run(), Scope::Run), expected);
    let bare = Who { tenant: "acme", ..Who::default() };
    assert_eq!(matched(&yaml, &bare, Scope::Run), ["p01", "p02", "p04", "p05"], "a key that is missing never matches");
}

#[test]
fn a_wider_metric_looks_at_the_keys_of_its_groups_only() {
    let yaml = [
        policy("all", "", "agent_all", 1),
        policy("planner", "scope: {who: AGENT, ids: [planner]}", "agent_planner", 1),
        policy("project", "scope: {level: PROJECT, level_ids: [p1]}", "agent_project", 1),
        policy("narrow", "scope: {who: AGENT, ids: [planner]}", "tenant_narrow", 1),
        policy("wide", "", "tenant_wide", 1),
        policy("run", "", "run_tokens", 1),
        policy("lost", "", "unknown", 1),
    ]
    .concat();
    assert_eq!(matched(&yaml, &run(), Scope::Agent), ["all", "planner"]);
    assert_eq!(matched(&yaml, &run(), Scope::Tenant), ["wide"]);
    assert_eq!(matched(&yaml, &run(), Scope::Run), ["run"]);
}

#[test]
fn active_time_is_judged_by_the_event_time_given() {
    let yaml = [
        policy("always", "", "m_a", 1),
        policy("night", "active: {hours: \"22:00-06:00\", timezone: Europe/Zurich}", "m_b", 1),
    ]
    .concat();
    let snapshot = snapshot(&yaml);
    let at = |text| parse_instant(text).unwrap();
    let held = |at| ids(&snapshot.effective(&run(), Scope::Run, &metrics, at, &|_| true));
    let (day, night) = (at("2026-01-05T12:00:00Z"), at("2026-01-05T21:00:00Z"));
    assert_eq!(held(Some(day)), ["always"]);
    assert_eq!(held(Some(night)), ["always", "night"]);
    assert_eq!(held(None), ["always", "night"], "without a time every policy is active");
    assert!(snapshot.has_active_windows());
    assert_ne!(snapshot.active_at(day), snapshot.active_at(night));
    assert_eq!(snapshot.active_at(night), snapshot.active_at(night + 1));
}

#[test]
fn each_policy_counts_once_from_its_own_binding_moment() {
    let keys = |binding: &str| format!("binding: {binding}");
    let at = |start: &str, first: &str, step: &str, max: u32| {
        let yaml = [
            policy("start", &keys(start), "m_a", max),
            policy("token", &keys(first), "m_b", max),
            policy("step", &keys(step), "m_c", max),
        ]
        .concat();
        Arc::new(snapshot(&yaml))
    };
    let usual = |max| at("RUN_START", "FIRST_TOKEN", "EACH_STEP", max);
    let held = |terms: &BoundTerms| -> Vec<(String, String)> {
        let set = effective_run(terms, &run(), &metrics, None);
        set.limits.iter().map(|l| (l.policy_id.to_string(), l.max.to_string())).collect()
    };
    let own = |rows: &[(&str, &str)]| -> Vec<(String, String)> {
        rows.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
    };

    let mut terms = BoundTerms { run_start: None, first_token: None, each_step: usual(3) };
    assert_eq!(held(&terms), own(&[("step", "3")]));
    terms.run_start = Some(usual(1));
    assert_eq!(held(&terms), own(&[("start", "1"), ("step", "3")]));
    terms.first_token = Some(usual(2));
    assert_eq!(held(&terms), own(&[("start", "1"), ("token", "2"), ("step", "3")]));

    terms.each_step = at("EACH_STEP", "EACH_STEP", "EACH_STEP", 9);
    assert_eq!(held(&terms), own(&[("start", "1"), ("token", "2"), ("step", "9")]), "a bound run keeps its terms");
    terms.each_step = Arc::new(snapshot(&policy("other", "", "m_d", 4)));
    assert_eq!(held(&terms), own(&[("start", "1"), ("token", "2"), ("other", "4")]), "even when the policy is gone");
}

#[test]
fn limits_of_several_snapshots_are_arbitrated_together() {
    let old = Arc::new(snapshot(&policy("start", "binding: RUN_START", "run_tokens", 100)));
    let new = Arc::new(snapshot(&policy("step", "", "run_tokens", 50)));
    let terms = BoundTerms { run_start: Some(old), first_token: None, each_step: new.clone() };
    let set = effective_run(&terms, &run(), &metrics, None);
    assert_eq!(ids(&set), ["step"]);
    assert_eq!(set.limits[0].considered.len(), 2);
    assert_eq!(set.limits[0].snapshot_id, *new.id());
}

#[test]
fn a_floor_is_the_least_near_line_and_zero_under_a_forecast() {
    let shadow = policy("b", "", "run_tokens", 50).replace("BLOCK", "AUDIT");
    let yaml = [
        policy("a", "active: {days: [MON]}", "run_tokens", 100),
        shadow,
        policy("c", "", "run_cost", 10).replace("max: 10", "max: 10, near_forecast_minutes: 5"),
        policy("d", "tenant: beta", "run_tokens", 1),
    ]
    .concat();
    let floors = snapshot(&yaml).floors(&run(), Scope::Run, &metrics);
    assert_eq!(floors.get("run_tokens").unwrap().to_string(), "40");
    assert_eq!(floors.get("run_cost").unwrap().to_string(), "0");
    assert_eq!(floors.len(), 2);
}

#[test]
fn a_filter_decides_which_policies_count() {
    let yaml = [policy("a", "", "m_a", 1), policy("b", "", "m_b", 1)].concat();
    let set = snapshot(&yaml).effective(&run(), Scope::Run, &metrics, None, &|p| &*p.id == "b");
    assert_eq!(ids(&set), ["b"]);
}

#[test]
fn one_index_entry_per_id_does_not_count_a_policy_twice() {
    let yaml = policy("a", "scope: {level: AGENT, level_ids: [planner, coder], who: AGENT, ids: [planner]}", "m_a", 1);
    assert_eq!(matched(&yaml, &run(), Scope::Run), ["a"]);
    assert_eq!(policies(&yaml).len(), 1);
}
