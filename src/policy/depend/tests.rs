use super::*;
use crate::policy::testing::policies;

fn policy(id: &str, keys: &str) -> String {
    format!("---\nid: {id}\nname: {id}\nlimits: [{{id: l, limit_type: X, metric: m, max: 1}}]\n{keys}\n")
}

/// `from → to KIND`
fn edges(yaml: &str) -> Vec<String> {
    let graph = dependencies(&policies(yaml));
    assert!(graph.complete);
    graph.edges.iter().map(|e| format!("{} → {} {}", e.from_policy_id, e.to_policy_id, e.dependency_type)).collect()
}

#[test]
fn the_three_policies_of_the_seed_give_its_two_edges() {
    let yaml = ["safety-baseline SAFETY BLOCK", "rate-limit-warning SAFETY DISABLED", "ethical-ai ETHICAL WARN"]
        .map(|line| {
            let mut words = line.split(' ');
            let (id, kind, mode) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
            policy(id, &format!("rule_type: {kind}\nenforcement_mode: {mode}\nscope: {{level: GLOBAL}}"))
        })
        .concat();
    assert_eq!(
        edges(&yaml),
        ["ethical-ai → safety-baseline IMPLICIT_SCOPE", "safety-baseline → rate-limit-warning IMPLICIT_SCOPE"]
    );
    let graph = dependencies(&policies(&yaml));
    assert_eq!(graph.nodes.len(), 3);
    assert_eq!(graph.edges[0].explanation, "Both policies share scope 'GLOBAL'");
    let baseline = graph.nodes.iter().find(|n| n.id == "safety-baseline").unwrap();
    assert_eq!((baseline.scope, baseline.depends_on.len(), baseline.required_by.len()), (Level::Global, 1, 1));
    assert_eq!(baseline.depends_on[0].policy_id, "rate-limit-warning");
    assert_eq!(baseline.required_by[0].policy_id, "ethical-ai");
    assert!(dependents(&policies(&yaml), "*", "safety-baseline").is_empty(), "an order blocks nothing");
    assert_eq!(dependencies(&[]), Dependencies { complete: true, ..Dependencies::default() });
}

#[test]
fn n_policies_of_one_scope_give_n_less_one_edges_and_other_scopes_are_apart() {
    let one: String = (0..40).map(|n| policy(&format!("p{n}"), "")).collect();
    let other: String = (0..5).map(|n| policy(&format!("q{n}"), "scope: {who: AGENT, ids: [a]}")).collect();
    let third: String = (0..3).map(|n| policy(&format!("r{n}"), "tenant: acme")).collect();
    assert_eq!(edges(&format!("{one}{other}{third}")).len(), 39 + 4 + 2);
    assert_eq!(edges(&format!("{}{}", policy("a", "status: RETIRED"), policy("b", ""))), [""; 0]);
}

#[test]
fn what_depends_on_says_is_resolved_in_the_tenant_and_then_in_all() {
    let yaml = [
        policy("base", "scope: {who: AGENT}"),
        policy("base", "tenant: acme\nscope: {who: API_KEY}"),
        policy("own", "tenant: acme\ndepends_on: [base]"),
        policy("other", "tenant: beta\ndepends_on: [base]"),
    ]
    .concat();
    let set = policies(&yaml);
    let graph = dependencies(&set);
    let ends: Vec<_> = graph.edges.iter().map(|e| (&*e.from_policy_id, &*e.to_tenant)).collect();
    assert_eq!(ends, [("own", "acme"), ("other", "*")]);
    let blocking = dependents(&set, "*", "base");
    assert_eq!(blocking.len(), 1);
    assert_eq!((&*blocking[0].from_tenant, &*blocking[0].from_policy_id), ("beta", "other"));
    assert!(dependents(&set, "*", "nothing").is_empty());
}

#[test]
fn reading_a_utilization_depends_on_who_limits_it() {
    let reader = |id: &str, condition: &str, keys: &str| {
        format!(
            "---\nid: {id}\nname: {id}\nscope: {{who: HUMAN_ACTOR}}\ncondition: {condition}\nactions: [{{type: notify}}]\n{keys}\n"
        )
    };
    let yaml = [
        policy("limits-m", "tenant: acme"),
        policy("limits-m-of-beta", "tenant: beta"),
        policy("off", "tenant: acme\nenforcement_mode: DISABLED\nscope: {who: AGENT}"),
        reader("sql", "{type: sql, expression: 'run.cost_usd > 1 AND run.utilization.m > 0.5'}", "tenant: acme"),
        reader(
            "field",
            "{type: field_comparison, field: run.utilization.m, operator: '>', value: 0.9}",
            "tenant: beta",
        ),
        reader("none", "{type: sql, expression: 'run.utilization.n > 1'}", "tenant: gamma"),
    ]
    .concat();
    let found = edges(&yaml);
    assert_eq!(found, ["sql → limits-m IMPLICIT_LIMIT", "field → limits-m-of-beta IMPLICIT_LIMIT"]);
    let blocking = dependents(&policies(&yaml), "acme", "limits-m");
    assert_eq!(blocking[0].explanation, "a condition of 'sql' reads run.utilization.m");
}

#[test]
fn what_is_missing_retired_or_goes_round_is_a_fault_with_its_place() {
    let faults = |yaml: &str| dependency_faults(&policies(yaml)).iter().map(ToString::to_string).collect::<Vec<_>>();
    let yaml = [policy("first", ""), policy("second", "depends_on: [frist]")].concat();
    let found = faults(&yaml);
    assert_eq!(found.len(), 1);
    assert!(found[0].starts_with("test.yaml:7:1: depends_on: policy `second`: depends on `frist`, which is not there"));
    assert!(found[0].ends_with("(did you mean `first`?)"), "{found:?}");
    let yaml = [policy("first", "status: RETIRED"), policy("second", "depends_on: [first]")].concat();
    assert!(faults(&yaml)[0].contains("which is RETIRED"));
    let yaml =
        [policy("a", "depends_on: [b]"), policy("b", "depends_on: [c]"), policy("c", "depends_on: [a]")].concat();
    let found = faults(&yaml);
    assert!(found.len() == 1 && found[0].contains("policy `a`: depends on itself: a → b → c → a"), "{found:?}");
    assert!(faults(&policy("a", "depends_on: [a]"))[0].contains("a → a"));
    let all = [policy("a", "depends_on: [b]"), policy("b", "tenant: acme")].concat();
    assert!(faults(&all)[0].contains("a policy of all tenants depends on such only"));
    assert_eq!(faults(&[policy("a", ""), policy("b", "depends_on: [a]")].concat()), [""; 0]);
}
