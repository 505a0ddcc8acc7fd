//! What holds for all policies, not only for those someone thought of.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::testing::{metrics, policies, run, snapshot};
use super::{Amount, EffectiveLimit, LimitSet, Mode, OnBreach, Policy, PolicySet, Scope, Snapshot, parse};

#[derive(Debug, Clone)]
struct Draft {
    mode: &'static str,
    strategy: &'static str,
    precedence: u8,
    tenant: &'static str,
    scope: &'static str,
    metric: &'static str,
    terms: &'static str,
    max: u16,
    near: u8,
    closed: bool,
}

impl Draft {
    fn yaml(&self, id: usize) -> String {
        format!(
            "---\nid: p{id}\nname: P\ntenant: '{}'\nenforcement_mode: {}\nconflict_strategy: {}\nprecedence: {}\nscope: {}\n\
             on_failure: {}\nlimits:\n- {{id: l, limit_type: X, metric: {}, max: {}.5, near: 0.{:02}, {}}}\n",
            self.tenant,
            self.mode,
            self.strategy,
            self.precedence,
            self.scope,
            if self.closed { "fail_closed" } else { "fail_open" },
            self.metric,
            self.max,
            self.near,
            self.terms
        )
    }
}

fn draft(strategies: &'static [&'static str], modes: &'static [&'static str]) -> impl Strategy<Value = Draft> {
    use prop::sample::select;
    let scopes: &[&str] =
        &["{}", "{who: AGENT, ids: [planner]}", "{who: API_KEY, ids: [k1, k2]}", "{who: AGENT, ids: [x]}"];
    let terms: &[&str] = &[
        "on_breach: PAUSE",
        "on_breach: STOP",
        "on_breach: KILL, cooldown_seconds: 9",
        "on_breach: none",
        "enforcement: REJECT, cooldown_seconds: 5",
        "enforcement: WARN",
        "near_forecast_minutes: 7",
    ];
    let tenants: &[&str] = &["*", "acme", "beta"];
    let names: &[&str] = &["run_tokens", "run_cost", "agent_tokens"];
    (
        (select(modes), select(strategies), 0..3_u8, select(tenants), select(scopes)),
        (select(names), select(terms), 0..4_u16, 1..100_u8, any::<bool>()),
    )
        .prop_map(|((mode, strategy, precedence, tenant, scope), (metric, terms, max, near, closed))| Draft {
            mode,
            strategy,
            precedence,
            tenant,
            scope,
            metric,
            terms,
            max,
            near,
            closed,
        })
}

const STRATEGIES: &[&str] = &["MOST_RESTRICTIVE", "EXPLICIT_PRIORITY", "FAIL_CLOSED"];
const MODES: &[&str] = &["BLOCK", "BLOCK", "BLOCK", "WARN", "AUDIT", "DISABLED"];

fn all_of(drafts: &[Draft]) -> String {
    drafts.iter().enumerate().map(|(id, draft)| draft.yaml(id)).collect()
}

fn held(snapshot: &Snapshot) -> LimitSet {
    snapshot.effective(&run(), Scope::Run, &metrics, None, &|_| true)
}

/// Enforced rows without the id of the snapshot, which changes with any policy.
fn enforced(set: &LimitSet) -> Vec<EffectiveLimit> {
    let rows = set.limits.iter().filter(|l| l.enforcing());
    rows.map(|l| EffectiveLimit { snapshot_id: "".into(), ..EffectiveLimit::clone(l) }).collect()
}

fn matching(policy: &Policy) -> bool {
    policy.counts() && policy.is_for_tenant("acme") && policy.scope.matches(&run())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn the_order_and_cut_of_files_do_not_matter(
        drafts in prop::collection::vec(draft(STRATEGIES, MODES), 1..12).prop_map(|d| d.into_iter().enumerate().collect::<Vec<_>>()),
        shuffled in any::<prop::sample::Index>(), files in 1..4_usize,
    ) {
        let cut = |order: &[(usize, Draft)]| {
            let mut texts = vec![String::new(); files];
            for (n, (id, draft)) in order.iter().enumerate() {
                texts[n % files].push_str(&draft.yaml(*id));
            }
            let named: Vec<(String, String)> = texts.into_iter().enumerate().map(|(n, t)| (format!("f{n}.yaml"), t)).collect();
            Snapshot::new(PolicySet::from_files(&named).unwrap().into_policies(), BTreeMap::new(), "", "")
        };
        let mut turned = drafts.clone();
        turned.rotate_left(shuffled.index(drafts.len()));
        let (one, two) = (cut(&drafts), cut(&turned));
        prop_assert_eq!(one.id(), two.id());
        prop_assert_eq!(held(&one), held(&two));
    }

    #[test]
    fn most_restrictive_is_never_laxer_than_any_limit_in_it(
        drafts in prop::collection::vec(draft(&["MOST_RESTRICTIVE"], MODES), 1..12)
    ) {
        let set = snapshot(&all_of(&drafts));
        let rows = held(&set);
        prop_assert!(rows.ambiguous.is_empty());
        for policy in set.policies().iter().filter(|p| matching(p)) {
            for limit in policy.limits.iter().filter(|l| policy.enforces(l) && metrics(&l.metric) == Some(Scope::Run)) {
                let of_kind: Vec<_> = rows.limits.iter()
                    .filter(|r| r.enforcing() && r.metric == limit.metric && r.enforcement == limit.enforcement).collect();
                prop_assert_eq!(of_kind.len(), 1);
                let row = of_kind[0];
                prop_assert!(row.max <= limit.max && row.near_at <= limit.max.near_line(limit.near));
                prop_assert!(row.near_at <= row.max && row.on_breach >= limit.on_breach);
                prop_assert!(row.cooldown_seconds >= limit.cooldown_seconds);
                prop_assert!(row.near_forecast_minutes >= limit.near_forecast_minutes);
                prop_assert!(row.fail_closed || policy.on_failure == super::OnFailure::Open);
                prop_assert!(row.considered.iter().any(|c| c.policy_id == policy.id));
            }
        }
    }

    #[test]
    fn shadows_never_change_what_is_enforced(drafts in prop::collection::vec(draft(STRATEGIES, MODES), 1..12)) {
        let whole = snapshot(&all_of(&drafts));
        let enforcing: Vec<Policy> =
            whole.policies().iter().filter(|p| p.enforcement_mode == Mode::Block).map(|p| (**p).clone()).collect();
        let bare = Snapshot::new(enforcing, BTreeMap::new(), "", "");
        prop_assert_eq!(enforced(&held(&whole)), enforced(&held(&bare)));
        let why = |set: &LimitSet| set.ambiguous.iter().map(|a| a.why.clone()).collect::<Vec<_>>();
        prop_assert_eq!(why(&held(&whole)), why(&held(&bare)));
    }

    #[test]
    fn the_index_finds_exactly_what_asking_each_policy_finds(
        drafts in prop::collection::vec(draft(&["EXPLICIT_PRIORITY"], MODES), 1..12)
    ) {
        let set = snapshot(&all_of(&drafts));
        let mut expected: Vec<&str> = set.policies().iter()
            .filter(|p| matching(p) && metrics(&p.limits[0].metric) == Some(Scope::Run)).map(|p| &*p.id).collect();
        let rows = held(&set);
        let mut found: Vec<&str> = rows.limits.iter().flat_map(|l| l.considered.iter().map(|c| &*c.policy_id)).collect();
        expected.sort_unstable();
        found.sort_unstable();
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn no_row_lies_under_its_floor(drafts in prop::collection::vec(draft(STRATEGIES, MODES), 1..12)) {
        let set = snapshot(&all_of(&drafts));
        let floors = set.floors(&run(), Scope::Run, &metrics);
        for row in held(&set).limits {
            let floor = floors.get(&row.metric).copied().unwrap_or(Amount(i128::MAX));
            prop_assert!(row.near_at >= floor, "{} under {}", row.near_at, floor);
        }
    }

    #[test]
    fn a_snapshot_survives_its_json(
        drafts in prop::collection::vec(draft(STRATEGIES, MODES), 0..8), prices in "\\PC{0,40}", settings in "\\PC{0,40}",
        texts in prop::collection::btree_map("[a-z_]{1,8}", "\\PC{0,40}", 0..4),
    ) {
        let one = Snapshot::new(policies(&all_of(&drafts)), texts, &prices, &settings);
        let json = one.to_json();
        let two = Snapshot::from_json(&json).unwrap();
        prop_assert_eq!(two.to_json(), json);
        prop_assert_eq!(held(&two), held(&one));
        prop_assert_eq!(two, one);
    }

    #[test]
    fn broken_text_is_a_fault_never_a_panic(
        drafts in prop::collection::vec(draft(STRATEGIES, MODES), 1..4),
        edits in prop::collection::vec((any::<prop::sample::Index>(), prop::sample::select(
            vec!["", ":", "\t", "- ", "[", "}", "&a ", "*a", "|\n", "---\n", "\"", "'", "!!x ", "\u{0}", "é", "1e999", "%", "? "]
        )), 1..20),
    ) {
        let mut chars: Vec<char> = all_of(&drafts).chars().collect();
        for (at, text) in edits {
            let at = at.index(chars.len());
            chars.splice(at..=at, text.chars());
            if chars.is_empty() { chars.push('a'); }
        }
        let text: String = chars.into_iter().collect();
        if let Err(faults) = parse("broken.yaml", &text) {
            prop_assert!(!faults.is_empty());
            prop_assert!(faults.iter().all(|f| f.line > 0 && f.column > 0), "{faults:?}");
        }
    }

    #[test]
    fn any_text_is_survived(text in "\\PC{0,200}") {
        let _parsed = parse("any.yaml", &text);
    }
}

#[test]
fn a_changed_snapshot_is_refused() {
    let one = snapshot(&all_of(&[]));
    let json = one.to_json().replace("\"prices\":\"\"", "\"prices\":\"free\"");
    let error = Snapshot::from_json(&json).unwrap_err().to_string();
    assert!(error.contains("changed after it was written"), "{error}");
    assert!(Snapshot::from_json("{}").is_err());
    assert_eq!(OnBreach::ALL.iter().max(), Some(&OnBreach::Kill), "harsher is later");
}

#[test]
fn equal_content_has_the_equal_id_and_other_content_another() {
    let yaml = "id: a\nname: A\nlimits: [{id: l, limit_type: X, metric: m, max: 1}]\n";
    let id = |yaml: &str, metric: &str, prices: &str| {
        let texts = BTreeMap::from([("m".to_owned(), metric.to_owned())]);
        Snapshot::new(policies(yaml), texts, prices, "s").id().to_string()
    };
    let first = id(yaml, "SELECT 1", "p");
    assert_eq!(id(&format!("# moved\n\n{yaml}"), "SELECT 1", "p"), first, "where it is written is not content");
    assert_eq!(id(&yaml.replace("max: 1", "max: 1.0"), "SELECT 1", "p"), first, "nor is how a number is written");
    assert_ne!(id(&yaml.replace("max: 1", "max: 2"), "SELECT 1", "p"), first);
    assert_ne!(id(yaml, "SELECT 2", "p"), first);
    assert_ne!(id(yaml, "SELECT 1", "q"), first);
}
