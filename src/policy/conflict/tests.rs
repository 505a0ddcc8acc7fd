use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::policy::testing::policies;
use crate::policy::{Amount, Limit, LimitStatus, OnFailure, Strategy as Arbitration};

fn policy(id: &str, keys: &str, limits: &[&str]) -> String {
    let limits: Vec<String> =
        limits.iter().enumerate().map(|(n, l)| format!("- {{id: l{n}, limit_type: X, {l}}}\n")).collect();
    format!("---\nid: {id}\nname: {id}\n{keys}\nlimits:\n{}", limits.concat())
}

/// `TYPE a b`, in the order given.
fn shown(yaml: &str) -> Vec<String> {
    let set = policies(yaml);
    let found = conflicts(&set);
    assert!(found.complete);
    for conflict in &found.conflicts {
        holds(&set, conflict);
    }
    found.conflicts.iter().map(|c| format!("{} {} {}", c.conflict_type, c.policy_a_id, c.policy_b_id)).collect()
}

/// The witness of a conflict is bound by both policies.
fn holds(set: &[Policy], conflict: &Conflict) {
    let who = conflict.witness.who();
    for (tenant, id) in
        [(&conflict.policy_a_tenant, &conflict.policy_a_id), (&conflict.policy_b_tenant, &conflict.policy_b_id)]
    {
        let policy = set.iter().find(|p| *p.tenant == **tenant && *p.id == **id).unwrap();
        assert!(policy.is_for_tenant(who.tenant) && policy.scope.matches(&who), "{id} binds {}", conflict.witness);
        assert!(
            policy.active.as_ref().is_none_or(|a| a.contains(conflict.witness.at.unwrap())),
            "{id} is active at {}",
            conflict.witness
        );
    }
}

#[test]
fn the_three_policies_of_the_seed_give_its_one_conflict_in_its_words() {
    let yaml = ["safety-baseline SAFETY BLOCK", "rate-limit-warning SAFETY DISABLED", "ethical-ai ETHICAL WARN"]
        .map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            let keys = format!("rule_type: {}\nenforcement_mode: {}\nscope: {{level: GLOBAL}}", words[1], words[2]);
            policy(words[0], &keys, &["metric: run_tokens, max: 1"])
        })
        .concat();
    assert_eq!(shown(&yaml), ["SCOPE_OVERLAP safety-baseline rate-limit-warning"]);
    let found = conflicts(&policies(&yaml));
    assert_eq!(found.unresolved_count, 0);
    let conflict = &found.conflicts[0];
    assert_eq!(conflict.severity, ConflictSeverity::Warning);
    assert_eq!(
        conflict.explanation,
        "Policy 'safety-baseline' blocks while 'rate-limit-warning' is disabled on same scope"
    );
    assert_eq!(conflict.recommended_action, "Align enforcement modes or narrow scopes");
    let json = serde_json::to_value(conflict).unwrap();
    assert_eq!(json["conflict_type"], "SCOPE_OVERLAP");
    assert_eq!(json["severity"], "WARNING");
    assert_eq!(json["witness"]["tenant_id"], "any");
    assert_eq!(conflicts(&[]), Conflicts { complete: true, ..Conflicts::default() });
}

#[test]
fn the_table_of_conflicts() {
    let block = "enforcement_mode: BLOCK\nrule_type: SAFETY";
    let first = |keys: &str| format!("{block}\nconflict_strategy: EXPLICIT_PRIORITY\n{keys}");
    let (small, large) = ("metric: run_tokens, max: 1", "metric: run_tokens, max: 2");
    let night = "active: {hours: \"22:00-06:00\"}";
    let two = |a: (&str, &str), b: (&str, &str)| shown(&[policy("a", a.0, &[a.1]), policy("b", b.0, &[b.1])].concat());
    let none = [""; 0];
    // thresholds
    let contradiction = ["THRESHOLD_CONTRADICTION a b"];
    assert_eq!(two((&first(""), small), (&first(""), large)), contradiction);
    assert_eq!(two((&first(""), small), (block, large)), contradiction, "the first by id has the strategy");
    assert_eq!(two((block, small), (&first(""), large)), none, "MOST_RESTRICTIVE orders them");
    assert_eq!(two((&first(""), small), (&first(""), small)), none, "the same max");
    assert_eq!(two((&first(""), small), (&first(""), "metric: run_cost, max: 2")), none, "another metric");
    assert_eq!(two((&first(""), small), (&first(""), "metric: run_tokens, max: 2, enforcement: REJECT")), none);
    assert_eq!(two((&first(""), small), (&first(""), "metric: run_tokens, max: 2, status: DISABLED")), none);
    assert_eq!(two((&first("tenant: x"), small), (&first("tenant: y"), large)), none, "they never meet");
    assert_eq!(two((&first("tenant: x"), small), (&first("scope: {level_ids: [x, y]}"), large)).len(), 1);
    assert_eq!(
        two(
            (&first("scope: {who: AGENT, ids: [p, q]}"), small),
            (&first("scope: {level: AGENT, level_ids: [q, r]}"), large)
        ),
        contradiction,
        "agent q is under both"
    );
    let shadow = |keys: &str| first(keys).replace("BLOCK", "AUDIT");
    assert_eq!(two((&shadow(""), small), (&shadow(""), large)), none, "shadows are each evaluated alone");
    // modes
    let overlap = ["SCOPE_OVERLAP a b"];
    assert_eq!(two((block, small), ("enforcement_mode: WARN\nrule_type: SAFETY", small)), overlap);
    assert_eq!(two((block, small), ("enforcement_mode: WARN", small)), none, "another rule type");
    assert_eq!(two((block, small), ("status: RETIRED\nrule_type: SAFETY", small)), none, "not in force");
    // times
    assert_eq!(
        two((&format!("{block}\n{night}"), small), (&format!("{block}\nactive: {{hours: \"05:00-07:00\"}}"), large)),
        ["TEMPORAL_CONFLICT a b"]
    );
    assert_eq!(
        two((&format!("{block}\n{night}"), small), (&format!("{block}\nactive: {{hours: \"06:00-07:00\"}}"), large)),
        none,
        "one after the other"
    );
    assert_eq!(two((&format!("{block}\n{night}"), small), (block, large)), none, "only one states when it is active");
    assert_eq!(
        two((&first(night), small), (&first("active: {hours: \"06:00-07:00\"}"), large)),
        none,
        "what is never active together contradicts nothing"
    );
    // precedence
    let overridden = ["PRIORITY_OVERRIDE a b"];
    assert_eq!(two((&first("precedence: 1"), small), (&first("precedence: 2"), large)), overridden);
    assert_eq!(two((&first("precedence: 1"), small), (&first("precedence: 2"), small)), overridden, "it never counts");
    assert_eq!(
        two((&first("precedence: 1\nscope: {who: AGENT, ids: [p]}"), small), (&first("precedence: 2"), small)),
        none,
        "elsewhere it counts, and says the same where both do"
    );
    assert_eq!(
        two((&first("precedence: 1\nscope: {who: AGENT, ids: [p]}"), large), (&first("precedence: 2"), small)),
        overridden
    );
    let restrictive = |keys: &str| format!("{block}\n{keys}");
    assert_eq!(two((&restrictive("precedence: 1"), small), (&restrictive("precedence: 2"), large)), overridden);
    assert_eq!(two((&restrictive("precedence: 1"), large), (&restrictive("precedence: 2"), small)), none);
}

#[test]
fn explanations_say_who_prevails_and_what_to_do() {
    let keys = |precedence: u32| {
        format!("enforcement_mode: BLOCK\nconflict_strategy: EXPLICIT_PRIORITY\nprecedence: {precedence}")
    };
    let agent = "\nscope: {who: AGENT, ids: [planner]}";
    let yaml = [
        policy("all", &keys(200), &["metric: run_tokens, max: 100", "metric: run_cost, max: 5"]),
        policy(
            "planner",
            &format!("{}{agent}", keys(100)),
            &["metric: run_tokens, max: 900", "metric: run_cost, max: 9"],
        ),
        policy("same", &format!("{}{agent}", keys(100)), &["metric: run_tokens, max: 800"]),
    ]
    .concat();
    let found = conflicts(&policies(&yaml));
    let texts: Vec<_> = found.conflicts.iter().map(|c| (&*c.explanation, &*c.recommended_action)).collect();
    assert_eq!(
        texts[0].0,
        "Policies 'planner' and 'same' both BLOCK `run_tokens` (X) at precedence 100, with max 900 and 800, which \
         EXPLICIT_PRIORITY cannot order"
    );
    assert!(texts[0].1.contains("different precedences"));
    assert_eq!(
        texts[1].0,
        "Policy 'all' (precedence 200, max 100, STOP) contradicts 'planner' (precedence 100, max 900, STOP) on `run_tokens`: where \
         both bind, EXPLICIT_PRIORITY lets the latter decide; Policy 'all' (precedence 200, max 5, STOP) contradicts 'planner' \
         (precedence 100, max 9, STOP) on `run_cost`: where both bind, EXPLICIT_PRIORITY lets the latter decide"
    );
    assert_eq!(found.conflicts[0].witness.to_string(), "tenant any, agent planner");
    assert_eq!((found.conflicts.len(), found.unresolved_count), (3, 1));
}

#[test]
fn contrary_actions_conflict_unless_their_conditions_exclude_each_other() {
    let acting = |id: &str, condition: &str, action: &str, keys: &str| {
        format!(
            "---\nid: {id}\nname: {id}\nenforcement_mode: BLOCK\n{keys}\ncondition: {condition}\nactions: [{{{action}}}, {{type: notify}}]\n"
        )
    };
    let failed = "{type: field_comparison, field: task.status, operator: ==, value: failed}";
    let running = "{type: field_comparison, field: task.status, operator: ==, value: running}";
    let sql = "{type: sql, expression: \"task.status == 'running'\"}";
    let urgent = "type: override_priority, parameters: {new_priority: CRITICAL}";
    let slow = "type: override_priority, parameters: {new_priority: LOW}";
    let two = |a: (&str, &str), b: (&str, &str)| {
        let yaml = [acting("a", a.0, a.1, ""), acting("b", b.0, b.1, "precedence: 5")].concat();
        let found = shown(&yaml);
        let texts: Vec<String> = conflicts(&policies(&yaml)).conflicts.into_iter().map(|c| c.explanation).collect();
        (found, texts.concat())
    };
    let (found, text) = two((failed, urgent), (failed, slow));
    assert_eq!(found, ["PRIORITY_OVERRIDE b a"], "the lower precedence goes first");
    assert!(text.contains("both override_priority, with different parameters; both conditions can be true"), "{text}");
    assert!(two((failed, urgent), (running, slow)).0.is_empty(), "never both");
    assert!(two((failed, urgent), (failed, urgent)).0.is_empty(), "the same action");
    let (found, text) = two((failed, urgent), (sql, slow));
    assert!(found.len() == 1 && text.contains("cannot be compared (SQL"), "{text}");
    let (_, text) = two((failed, "type: resume_run"), (failed, "type: stop_run"));
    assert!(text.contains("would stop_run what 'a' would resume_run") || text.contains("would resume_run"), "{text}");
    assert!(
        two((failed, "type: pause_run"), (failed, "type: stop_run")).0.is_empty(),
        "the harsher is no contradiction"
    );
    let (a, b) = (
        "type: reassign_task, target: x, parameters: {to_agent_id: p}",
        "type: reassign_task, target: y, parameters: {to_agent_id: q}",
    );
    assert!(two((failed, a), (failed, b)).0.is_empty(), "other targets");
}

#[test]
fn a_candidate_is_compared_with_all_others_and_takes_the_place_of_its_former_self() {
    let keys = "enforcement_mode: BLOCK\nconflict_strategy: FAIL_CLOSED";
    let limit = |max: u32| format!("metric: run_tokens, max: {max}");
    let active = policies(
        &[
            policy("a", keys, &[&limit(1)]),
            policy("b", "enforcement_mode: WARN", &[&limit(2)]),
            policy("c", "tenant: acme\nenforcement_mode: AUDIT\nrule_type: ETHICAL", &[&limit(2)]),
        ]
        .concat(),
    );
    let candidate = |id: &str, keys: &str, max: u32| policies(&policy(id, keys, &[&limit(max)])).remove(0);
    let types = |found: &Conflicts| found.conflicts.iter().map(|c| c.conflict_type).collect::<Vec<_>>();
    let found = conflicts_with(&active, &candidate("d", keys, 3));
    assert_eq!(types(&found), [ConflictType::ThresholdContradiction, ConflictType::ScopeOverlap]);
    assert_eq!(found.unresolved_count, 1);
    let found = conflicts_with(&active, &candidate("a", keys, 3));
    assert_eq!(types(&found), [ConflictType::ScopeOverlap], "not with what it replaces");
    let draft = candidate("e", &format!("{keys}\nscope: {{level_ids: [nobody]}}\ntenant: x"), 3);
    assert!(conflicts_with(&active, &draft).conflicts.is_empty(), "it binds nothing");
}

#[test]
fn the_number_of_conflicts_is_bounded_and_the_cut_is_said() {
    let modes = ["BLOCK", "WARN"];
    let yaml: String = (0..100)
        .map(|n| policy(&format!("p{n}"), &format!("enforcement_mode: {}", modes[n % 2]), &["metric: m, max: 1"]))
        .collect();
    let found = conflicts(&policies(&yaml));
    assert_eq!((found.conflicts.len(), found.complete), (MAX_CONFLICTS, false));
}

/// The rules once more, said plainly: each policy against each other.
fn naive(set: &[Policy]) -> BTreeSet<(ConflictType, String, String)> {
    let key = |p: &Policy| (p.tenant.to_string(), p.id.to_string());
    let runs = |p: &Policy| -> Vec<[Option<&'static str>; 6]> {
        let tenants = [Some("acme"), Some("beta"), Some("any")];
        let mut all = Vec::new();
        for tenant in tenants {
            for project in [None, Some("p1"), Some("p2")] {
                for agent in [None, Some("a1"), Some("a2"), Some("a3")] {
                    for api_key in [None, Some("k1"), Some("k2")] {
                        let run = [tenant, project, agent, api_key, None, None];
                        if binds(p, &run) {
                            all.push(run);
                        }
                    }
                }
            }
        }
        all
    };
    fn binds(p: &Policy, run: &[Option<&'static str>; 6]) -> bool {
        let [tenant, project, agent, api_key, human, provider] = *run;
        let who = crate::policy::Who { tenant: tenant.unwrap(), project, agent, api_key, human, provider };
        p.is_for_tenant(who.tenant) && p.scope.matches(&who)
    }
    let hours: Vec<Micros> = (-8 * 24..8 * 24).map(|h| 1_767_225_600_000_000 + h * 3_600_000_000).collect();
    let active = |p: &Policy, at: &Micros| p.active.as_ref().is_none_or(|a| a.contains(*at));
    let limits = |p: &Policy| -> Vec<Limit> {
        let counts = p.counts();
        p.limits.iter().filter(|l| counts && l.status == LimitStatus::Active).cloned().collect()
    };
    let near = |l: &Limit| Amount(l.max.0 / 1_000_000_000 * l.near.0);
    let mut found = BTreeSet::new();
    for a in set.iter().filter(|p| p.status == crate::policy::Status::Active) {
        let runs_of_a = runs(a);
        for b in set.iter().filter(|p| p.status == crate::policy::Status::Active && key(p) > key(a)) {
            let meet =
                runs_of_a.iter().any(|run| binds(b, run)) && hours.iter().any(|at| active(a, at) && active(b, at));
            if !meet {
                continue;
            }
            let mut add = |of, first: &Policy, second: &Policy| {
                found.insert((
                    of,
                    format!("{}/{}", first.tenant, first.id),
                    format!("{}/{}", second.tenant, second.id),
                ));
            };
            let (strict, lax) = if a.enforcement_mode <= b.enforcement_mode { (a, b) } else { (b, a) };
            let modes_differ = a.enforcement_mode != b.enforcement_mode;
            if a.rule_type == b.rule_type && modes_differ {
                add(ConflictType::ScopeOverlap, strict, lax);
            }
            let terms = |p: &Policy, metric: &str| {
                let mut t: Vec<_> = limits(p)
                    .iter()
                    .filter(|l| *l.metric == *metric)
                    .map(|l| (l.enforcement, l.max, l.near, l.on_breach))
                    .collect();
                t.sort();
                t
            };
            let limits_differ = limits(a).iter().any(|l| {
                let (one, other) = (terms(a, &l.metric), terms(b, &l.metric));
                !other.is_empty() && one != other
            });
            if a.active.is_some() && b.active.is_some() && (modes_differ || limits_differ) {
                add(ConflictType::TemporalConflict, strict, lax);
            }
            let covers = |first: &Policy, later: &Policy| {
                runs(later).iter().all(|run| binds(first, run))
                    && hours.iter().all(|at| !active(later, at) || active(first, at))
            };
            for one in limits(a).iter().filter(|l| a.enforces(l)) {
                for other in limits(b).iter().filter(|l| b.enforces(l)) {
                    if one.metric != other.metric || one.enforcement != other.enforcement {
                        continue;
                    }
                    if a.precedence == b.precedence {
                        let ordered = a.conflict_strategy == Arbitration::MostRestrictive;
                        if one.limit_type == other.limit_type && one.max != other.max && !ordered {
                            add(ConflictType::ThresholdContradiction, a, b);
                        }
                        continue;
                    }
                    let ((first, f), (later, l)) =
                        if a.precedence < b.precedence { ((a, one), (b, other)) } else { ((b, other), (a, one)) };
                    let closed = |p: &Policy| p.on_failure == OnFailure::Closed;
                    let conflict = if first.conflict_strategy == Arbitration::MostRestrictive {
                        f.max <= l.max
                            && near(f) <= near(l)
                            && f.on_breach >= l.on_breach
                            && closed(first) >= closed(later)
                            && covers(first, later)
                    } else {
                        (f.max, f.near, f.on_breach) != (l.max, l.near, l.on_breach) || covers(first, later)
                    };
                    if conflict {
                        add(ConflictType::PriorityOverride, first, later);
                    }
                }
            }
        }
    }
    found
}

fn any_policy() -> impl Strategy<Value = String> {
    use prop::sample::select;
    let limit = (
        select(&["m", "n"][..]),
        select(&["X", "Y"][..]),
        1..4_u8,
        select(&["0.5", "1"][..]),
        select(
            &["on_breach: STOP", "on_breach: KILL", "enforcement: REJECT", "enforcement: WARN", "status: DISABLED"][..],
        ),
    )
        .prop_map(|(metric, kind, max, near, more)| {
            format!("limit_type: {kind}, metric: {metric}, max: {max}, near: {near}, {more}")
        });
    let scopes: &[&str] = &[
        "{}",
        "{level: GLOBAL}",
        "{level_ids: [acme, beta]}",
        "{level: PROJECT}",
        "{level: PROJECT, level_ids: [p1]}",
        "{who: AGENT, ids: [a1, a2]}",
        "{who: AGENT, ids: [a2, a3]}",
        "{who: AGENT}",
        "{level: AGENT, level_ids: [a1], who: AGENT, ids: [a2]}",
        "{level: AGENT, level_ids: [a1, a2], who: API_KEY, ids: [k1]}",
        "{who: API_KEY, ids: [k1, k2]}",
    ];
    let times: &[&str] = &[
        "null",
        "null",
        "{days: [MON, TUE]}",
        "{days: [TUE, WED]}",
        "{hours: \"09:00-17:00\"}",
        "{hours: \"10:00-12:00\"}",
        "{from: 2026-01-03T00:00:00Z}",
        "{until: 2026-01-03T00:00:00Z}",
    ];
    (
        (select(&["*", "acme", "beta"][..]), select(scopes), select(times)),
        select(&["BLOCK", "BLOCK", "BLOCK", "WARN", "AUDIT", "DISABLED"][..]),
        select(&["SAFETY", "ETHICAL"][..]),
        select(&["MOST_RESTRICTIVE", "EXPLICIT_PRIORITY", "FAIL_CLOSED"][..]),
        (1..4_u8, select(&["fail_open", "fail_closed"][..]), select(&["ACTIVE", "ACTIVE", "ACTIVE", "RETIRED"][..])),
        prop::collection::vec(limit, 1..3),
    )
        .prop_map(|((tenant, scope, time), mode, kind, strategy, (precedence, failure, status), limits)| {
            let limits: String = limits.iter().enumerate().map(|(n, l)| format!("- {{id: l{n}, {l}}}\n")).collect();
            format!(
                "tenant: '{tenant}'\nscope: {scope}\nactive: {time}\nenforcement_mode: {mode}\nrule_type: {kind}\n\
                 conflict_strategy: {strategy}\nprecedence: {precedence}\non_failure: {failure}\nstatus: {status}\nlimits:\n{limits}"
            )
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]

    #[test]
    fn the_index_finds_what_asking_each_about_each_finds(drafts in prop::collection::vec(any_policy(), 2..24)) {
        let yaml: String = drafts.iter().enumerate().map(|(n, d)| format!("---\nid: p{n:02}\nname: P{n}\n{d}")).collect();
        let set = policies(&yaml);
        let found = conflicts(&set);
        prop_assert!(found.complete);
        let pairs: BTreeSet<_> = found.conflicts.iter()
            .map(|c| (c.conflict_type, format!("{}/{}", c.policy_a_tenant, c.policy_a_id), format!("{}/{}", c.policy_b_tenant, c.policy_b_id)))
            .collect();
        prop_assert_eq!(pairs.len(), found.conflicts.len(), "at most one of a type for each pair");
        prop_assert_eq!(&pairs, &naive(&set));
        found.conflicts.iter().for_each(|c| holds(&set, c));
        prop_assert_eq!(found.unresolved_count, found.conflicts.iter().filter(|c| c.severity == ConflictSeverity::Blocking).count());

        // in any order, and of each candidate exactly its own
        let mut turned = set.clone();
        turned.reverse();
        prop_assert_eq!(&conflicts(&turned), &found);
        for candidate in set.iter().filter(|p| p.status == crate::policy::Status::Active) {
            let of_it = |c: &&Conflict| {
                (&*c.policy_a_tenant, &*c.policy_a_id) == (&*candidate.tenant, &*candidate.id)
                    || (&*c.policy_b_tenant, &*c.policy_b_id) == (&*candidate.tenant, &*candidate.id)
            };
            let expected: Vec<&Conflict> = found.conflicts.iter().filter(of_it).collect();
            let own = conflicts_with(&set, candidate);
            prop_assert_eq!(own.conflicts.iter().collect::<Vec<_>>(), expected);
        }
    }
}
