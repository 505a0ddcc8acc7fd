use std::fs;
use std::path::Path;

use super::*;

fn metrics() -> Vec<(String, Scope, bool)> {
    vec![
        ("run_tokens".into(), Scope::Run, true),
        ("latency_p95_ms".into(), Scope::Tenant, false),
        ("agent_failures_5m".into(), Scope::Agent, true),
    ]
}

fn policy(id: &str, keys: &str, limit: &str) -> String {
    format!("---\nid: {id}\nname: N\n{keys}\nlimits:\n- {{id: l, limit_type: X, max: 1, {limit}}}\n")
}

fn found(yaml: &str, strict: bool) -> Vec<String> {
    let set = PolicySet::from_files(&[("p.yaml".to_owned(), yaml.to_owned())]).unwrap();
    let all = check(&set, &metrics(), strict);
    all.iter().filter(|f| f.severity != Severity::Note).map(ToString::to_string).collect()
}

#[test]
fn what_never_counts_is_an_error() {
    for (keys, limit, expected) in [
        ("", "metric: run_token", "there is no metric `run_token` (did you mean `run_tokens`?)"),
        ("scope: {who: AGENT}", "metric: latency_p95_ms", "selects by agent_id, which groups of the TENANT metric"),
        ("scope: {level: PROJECT, level_ids: [p]}", "metric: agent_failures_5m", "selects by project_id"),
        (
            "tenant: acme\nscope: {level_ids: [beta]}",
            "metric: run_tokens",
            "its tenant `acme` is not among level_ids beta",
        ),
        ("scope: {level: AGENT, level_ids: [a], who: AGENT, ids: [b]}", "metric: run_tokens", "no agent_id is in both"),
        ("", "metric: run_tokens, status: DISABLED", "every limit is DISABLED"),
    ] {
        let findings = found(&policy("a", keys, limit), false);
        assert_eq!(findings.len(), 1, "{findings:#?}");
        assert!(findings[0].contains("error: ") && findings[0].contains(expected), "{expected}: {findings:#?}");
    }
    let empty = found("# nothing yet\n", false);
    assert_eq!(empty, ["p.yaml: error: the file governs nothing: no policy was read"]);
}

#[test]
fn what_is_probably_not_meant_is_a_warning_and_an_error_when_strict() {
    for (keys, limit, expected) in [
        ("status: RETIRED", "metric: run_tokens", "is RETIRED"),
        ("enforcement_mode: DISABLED", "metric: run_tokens", "is DISABLED"),
        ("enforcement_mode: BLOCK", "metric: run_tokens, on_breach: none", "blocks nothing"),
        ("", "metric: run_tokens, fallback_model: m", "fallback_model is for DEGRADE"),
        (
            "enforcement_mode: BLOCK",
            "metric: run_tokens}\n- {id: k, limit_type: X, max: 2, metric: run_tokens",
            "competes with another BLOCK limit",
        ),
    ] {
        let yaml = policy("a", keys, limit);
        let findings = found(&yaml, false);
        assert!(
            findings.len() == 1 && findings[0].contains("warning: ") && findings[0].contains(expected),
            "{findings:#?}"
        );
        assert!(found(&yaml, true)[0].contains("error: "));
    }
    assert_eq!(found(&policy("a", "enforcement_mode: BLOCK", "metric: run_tokens"), true), [""; 0]);
}

#[test]
fn an_ambiguity_that_can_arise_is_found_where_it_is_written() {
    let two = |a: &str, b: &str, max: u32| {
        let block = "enforcement_mode: BLOCK\nconflict_strategy: FAIL_CLOSED";
        let one = policy("a", &format!("{block}\n{a}"), "metric: run_tokens");
        let other =
            policy("b", &format!("{block}\n{b}"), "metric: run_tokens").replace("max: 1", &format!("max: {max}"));
        found(&format!("{one}{other}"), false)
    };
    let findings = two("", "", 2);
    assert_eq!(findings.len(), 1, "said once: {findings:?}");
    assert!(
        findings[0].starts_with("p.yaml:2:1: error: policy `a`: THRESHOLD_CONTRADICTION with `b` (p.yaml:10): ")
            && findings[0].contains("for example tenant any"),
        "{findings:?}"
    );
    assert!(two("", "", 1).is_empty(), "equal terms");
    let ordered = two("precedence: 1", "", 2);
    assert!(ordered.len() == 1 && ordered[0].contains("warning: policy `a`: PRIORITY_OVERRIDE"), "{ordered:?}");
    assert!(two("tenant: x", "tenant: y", 2).is_empty(), "never meet");
    assert!(two("scope: {who: AGENT, ids: [a]}", "scope: {who: AGENT, ids: [b]}", 2).is_empty(), "never meet");
    assert_eq!(
        two("scope: {who: AGENT, ids: [a]}", "scope: {who: API_KEY, ids: [k]}", 2).len(),
        1,
        "one run may have both"
    );
    assert!(two("active: {days: [MON]}", "active: {days: [TUE]}", 2).is_empty(), "never at the same time");
    let timed = two("active: {days: [MON]}", "active: {hours: \"09:00-10:00\"}", 2);
    assert!(timed.iter().any(|f| f.contains("error: ") && f.contains(", at 2026-01-05T09:00:00.000000Z")), "{timed:?}");
}

#[test]
fn an_ambiguity_that_is_no_contradiction_of_maxima_is_found_too() {
    let keys = "enforcement_mode: BLOCK\nconflict_strategy: FAIL_CLOSED";
    let yaml = [
        policy("a", keys, "metric: run_tokens, on_breach: STOP"),
        policy("b", keys, "metric: run_tokens, on_breach: KILL"),
    ]
    .concat();
    let findings = found(&yaml, false);
    assert_eq!(findings.len(), 1);
    assert!(
        findings[0].starts_with("p.yaml:7:3: warning: ")
            && findings[0].contains("ambiguous under FAIL_CLOSED with b/l (p.yaml:14)"),
        "{findings:?}"
    );
}

#[test]
fn conflicts_that_warn_are_gathered_and_dependencies_are_checked() {
    let modes = ["BLOCK", "WARN", "WARN", "AUDIT", "WARN", "WARN", "WARN", "WARN"];
    let yaml: String = (0..)
        .zip(modes)
        .map(|(n, mode)| policy(&format!("p{n}"), &format!("enforcement_mode: {mode}"), "metric: run_tokens"))
        .collect();
    let findings = found(&yaml, false);
    let first = findings.iter().find(|f| f.starts_with("p.yaml:2:1: warning: ")).unwrap();
    assert!(
        first.contains("policy `p0`: SCOPE_OVERLAP with `p1`: Policy 'N' blocks while 'N' warns on same scope")
            && first.contains("; likewise with `p2` `p3` `p4` `p5` `p6` and 1 more (Align enforcement modes"),
        "{first}"
    );
    assert!(found(&yaml, true).iter().all(|f| f.contains("error: ")));
    let yaml = policy("a", "depends_on: [b]", "metric: run_tokens");
    let findings = found(&yaml, false);
    assert_eq!(findings.len(), 1);
    assert!(findings[0].contains("error: depends_on: policy `a`: depends on `b`, which is not there"), "{findings:?}");
}

#[test]
fn notes_say_what_is_good_to_know() {
    let yaml = format!(
        "{}---\nid: c\nname: C\ncondition: {{type: sql, expression: x}}\nactions: [{{type: notify}}]\n",
        policy("a", "", "metric: latency_p95_ms")
    );
    let set = PolicySet::from_files(&[("p.yaml".to_owned(), yaml)]).unwrap();
    let notes: Vec<String> = check(&set, &metrics(), true).iter().map(ToString::to_string).collect();
    for expected in [
        "decides at window close only: `latency_p95_ms` is not monotone",
        "no policy limits the metric `run_tokens`",
        "nothing is enforced: no policy is in BLOCK mode",
    ] {
        assert!(notes.iter().any(|n| n.contains("note: ") && n.contains(expected)), "{expected}: {notes:#?}");
    }
}

/// The shipped policies over the default metrics.
fn shipped() -> (PolicySet, Vec<(String, Scope, bool)>) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/policies");
    let mut files = Vec::new();
    for folder in [root.clone(), root.join("guardian")] {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                let name = path.strip_prefix(&root).unwrap().display().to_string();
                files.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    let defaults = [
        ("run_tokens", Scope::Run, true),
        ("run_cost_usd", Scope::Run, true),
        ("run_steps", Scope::Run, true),
        ("run_risk_max", Scope::Run, true),
        ("latency_p95_ms", Scope::Tenant, false),
        ("agent_tokens_1m", Scope::Agent, true),
        ("agent_failures_5m", Scope::Agent, true),
        ("agent_anomaly_max_5m", Scope::Agent, true),
        ("api_key_requests_1m", Scope::ApiKey, true),
        ("human_tokens_1d", Scope::HumanActor, true),
        ("tenant_tokens_5m", Scope::Tenant, true),
        ("tenant_cost_usd_1d", Scope::Tenant, true),
        ("tenant_runs_1h", Scope::Tenant, true),
        ("provider_cost_usd_1h", Scope::Provider, true),
    ];
    let metrics = defaults.map(|(name, scope, early)| (name.to_owned(), scope, early)).to_vec();
    let set = PolicySet::from_files(&files).unwrap_or_else(|f| panic!("{f:#?}"));
    (set, metrics)
}

#[test]
fn the_shipped_policies_are_sound_and_stop_nothing() {
    let (set, metrics) = shipped();
    let bad: Vec<String> =
        check(&set, &metrics, true).iter().filter(|f| f.severity != Severity::Note).map(ToString::to_string).collect();
    assert_eq!(bad, [""; 0]);
    assert!(set.policies().len() >= 7);
    for policy in set.policies() {
        assert_eq!(
            policy.enforcement_mode,
            Mode::Audit,
            "{}: nothing stops anything until someone turns it on",
            policy.id
        );
    }
    for id in ["emergency_cancellation", "resource_reallocation", "priority_override"] {
        assert!(set.policies().iter().any(|p| &*p.id == id && p.condition.is_some()), "{id}");
    }
}
