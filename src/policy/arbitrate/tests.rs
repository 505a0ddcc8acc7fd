use super::super::testing::{metrics, run, snapshot};
use super::*;
use crate::policy::Scope;

/// `tenant/id precedence mode strategy` and a limit on run_tokens.
fn policy(id: &str, precedence: i64, mode: &str, strategy: &str, limit: &str) -> String {
    format!(
        "---\nid: {id}\nname: {id}\nenforcement_mode: {mode}\nprecedence: {precedence}\nconflict_strategy: {strategy}\n\
         limits:\n- {{id: l, limit_type: TOKENS_PER_RUN, metric: run_tokens, {limit}}}\n"
    )
}

fn limits(yaml: &str) -> LimitSet {
    snapshot(yaml).effective(&run(), Scope::Run, &metrics, None, &|_| true)
}

/// `policy mode enforcement on_breach max near_at`, one line a row.
fn shown(set: &LimitSet) -> Vec<String> {
    let mut shown: Vec<String> = set
        .limits
        .iter()
        .map(|l| format!("{} {} {} {} {} {}", l.policy_id, l.mode, l.enforcement, l.on_breach, l.max, l.near_at))
        .collect();
    shown.extend(set.ambiguous.iter().map(|a| format!("ambiguous {} {}", a.policy_id, a.enforcement)));
    shown
}

#[test]
fn the_table_of_strategies() {
    let (strict, loose) = ("max: 100, near: 0.9, on_breach: PAUSE", "max: 200, near: 0.4, on_breach: KILL");
    type Row<'a> = (&'a str, [(&'a str, i64, &'a str, &'a str); 2], &'a [&'a str]);
    let table: &[Row<'_>] = &[
        (
            "each part from whichever has it",
            [("MOST_RESTRICTIVE", 1, "BLOCK", strict), ("MOST_RESTRICTIVE", 2, "BLOCK", loose)],
            &["a BLOCK BLOCK KILL 100 80"],
        ),
        (
            "precedence does not matter to it",
            [("MOST_RESTRICTIVE", 2, "BLOCK", strict), ("MOST_RESTRICTIVE", 1, "BLOCK", loose)],
            &["a BLOCK BLOCK KILL 100 80"],
        ),
        (
            "the strategy is the foremost's",
            [("EXPLICIT_PRIORITY", 2, "BLOCK", strict), ("MOST_RESTRICTIVE", 1, "BLOCK", loose)],
            &["a BLOCK BLOCK KILL 100 80"],
        ),
        (
            "lowest precedence, whole",
            [("MOST_RESTRICTIVE", 2, "BLOCK", strict), ("EXPLICIT_PRIORITY", 1, "BLOCK", loose)],
            &["b BLOCK BLOCK KILL 200 80"],
        ),
        (
            "lowest precedence, whole, the other way",
            [("EXPLICIT_PRIORITY", 1, "BLOCK", strict), ("MOST_RESTRICTIVE", 2, "BLOCK", loose)],
            &["a BLOCK BLOCK PAUSE 100 90"],
        ),
        (
            "equal precedence: smallest max, whole",
            [("EXPLICIT_PRIORITY", 1, "BLOCK", loose), ("FAIL_CLOSED", 1, "BLOCK", strict)],
            &["b BLOCK BLOCK PAUSE 100 90"],
        ),
        (
            "FAIL_CLOSED orders by precedence",
            [("FAIL_CLOSED", 1, "BLOCK", loose), ("MOST_RESTRICTIVE", 2, "BLOCK", strict)],
            &["a BLOCK BLOCK KILL 200 80"],
        ),
        (
            "FAIL_CLOSED, equal precedence, other terms",
            [("FAIL_CLOSED", 1, "BLOCK", loose), ("MOST_RESTRICTIVE", 1, "BLOCK", strict)],
            &["ambiguous a BLOCK"],
        ),
        (
            "FAIL_CLOSED, equal terms are no ambiguity",
            [("FAIL_CLOSED", 1, "BLOCK", strict), ("MOST_RESTRICTIVE", 1, "BLOCK", strict)],
            &["a BLOCK BLOCK PAUSE 100 90"],
        ),
        (
            "the tie of strategies goes to the first id",
            [("MOST_RESTRICTIVE", 1, "BLOCK", strict), ("FAIL_CLOSED", 1, "BLOCK", loose)],
            &["a BLOCK BLOCK KILL 100 80"],
        ),
        (
            "AUDIT never competes",
            [("FAIL_CLOSED", 1, "BLOCK", loose), ("FAIL_CLOSED", 1, "AUDIT", strict)],
            &["a BLOCK BLOCK KILL 200 80", "b AUDIT BLOCK PAUSE 100 90"],
        ),
        (
            "WARN never competes",
            [("FAIL_CLOSED", 1, "WARN", strict), ("FAIL_CLOSED", 1, "BLOCK", loose)],
            &["b BLOCK BLOCK KILL 200 80", "a WARN BLOCK PAUSE 100 90"],
        ),
        (
            "DISABLED is not evaluated",
            [("FAIL_CLOSED", 1, "DISABLED", strict), ("FAIL_CLOSED", 1, "BLOCK", loose)],
            &["b BLOCK BLOCK KILL 200 80"],
        ),
        (
            "kinds of enforcement do not compete",
            [
                ("FAIL_CLOSED", 1, "BLOCK", "max: 1, enforcement: REJECT"),
                ("FAIL_CLOSED", 1, "BLOCK", "max: 2, enforcement: QUEUE"),
            ],
            &["a BLOCK REJECT none 1 0.8", "b BLOCK QUEUE none 2 1.6"],
        ),
        (
            "WARN and ALERT are evaluated alone",
            [
                ("FAIL_CLOSED", 1, "BLOCK", "max: 1, enforcement: WARN"),
                ("FAIL_CLOSED", 1, "BLOCK", "max: 2, enforcement: WARN"),
            ],
            &["a BLOCK WARN none 1 0.8", "b BLOCK WARN none 2 1.6"],
        ),
        (
            "BLOCK without an action has no effect and is alone",
            [("FAIL_CLOSED", 1, "BLOCK", "max: 1, on_breach: none"), ("FAIL_CLOSED", 1, "BLOCK", loose)],
            &["a BLOCK BLOCK none 1 0.8", "b BLOCK BLOCK KILL 200 80"],
        ),
        (
            "REJECTs compete with each other",
            [
                ("MOST_RESTRICTIVE", 1, "BLOCK", "max: 3, enforcement: REJECT"),
                ("FAIL_CLOSED", 2, "BLOCK", "max: 2, near: 1, enforcement: REJECT"),
            ],
            &["b BLOCK REJECT none 2 2"],
        ),
        (
            "another model to fall back to is another action",
            [
                ("FAIL_CLOSED", 1, "BLOCK", "max: 2, enforcement: DEGRADE, fallback_model: m"),
                ("FAIL_CLOSED", 1, "BLOCK", "max: 2, enforcement: DEGRADE, fallback_model: n"),
            ],
            &["ambiguous a DEGRADE"],
        ),
    ];
    for (claim, [(sa, pa, ma, la), (sb, pb, mb, lb)], expected) in table {
        let (a, b) = (policy("a", *pa, ma, sa, la), policy("b", *pb, mb, sb, lb));
        assert_eq!(shown(&limits(&format!("{a}{b}"))), *expected, "{claim}");
        assert_eq!(shown(&limits(&format!("{b}{a}"))), *expected, "{claim}, in the other order");
    }
}

#[test]
fn a_result_names_who_gave_what_and_why_the_others_lost() {
    let yaml = [
        policy("a", 1, "BLOCK", "MOST_RESTRICTIVE", "max: 100, near: 0.9, on_breach: PAUSE"),
        policy("b", 2, "BLOCK", "MOST_RESTRICTIVE", "max: 200, near: 0.4, on_breach: KILL, cooldown_seconds: 60"),
        policy("c", 3, "BLOCK", "MOST_RESTRICTIVE", "max: 300, on_breach: STOP"),
    ]
    .concat();
    let set = limits(&yaml);
    let row = &set.limits[0];
    let gave: Vec<_> = row.contributors.iter().map(|c| (&*c.policy_id, c.gave.as_slice())).collect();
    assert_eq!(gave, [("a", &["max"][..]), ("b", &["near", "action", "cooldown_seconds"])]);
    let outcomes: Vec<_> = row.considered.iter().map(|c| (&*c.policy_id, c.outcome)).collect();
    assert_eq!(outcomes, [("a", Outcome::Won), ("b", Outcome::Won), ("c", Outcome::Lost)]);
    assert!(row.considered[2].why.contains("max 100 of a"), "{}", row.considered[2].why);
    assert_eq!((row.near, row.cooldown_seconds), ("0.4".parse().unwrap(), 60), "near is that of who gave the line");
}

#[test]
fn ties_go_by_precedence_then_tenant_then_id() {
    let with_tenant = |text: String, tenant: &str| format!("{text}tenant: {tenant}\n");
    let yaml = [
        with_tenant(policy("z", 1, "BLOCK", "MOST_RESTRICTIVE", "max: 5"), "'*'"),
        with_tenant(policy("a", 1, "BLOCK", "MOST_RESTRICTIVE", "max: 5"), "acme"),
        policy("b", 0, "BLOCK", "MOST_RESTRICTIVE", "max: 6"),
    ]
    .concat();
    let set = limits(&yaml);
    let considered: Vec<_> = set.limits[0].considered.iter().map(|c| &*c.policy_id).collect();
    assert_eq!(considered, ["b", "z", "a"], "`*` sorts before names");
    assert_eq!(&*set.limits[0].policy_id, "z", "of equal maxima the first by tenant");
}

#[test]
fn near_lines_are_compared_exactly() {
    // the products differ by 10⁻¹⁸ only, and both round up to 1
    let yaml = [
        policy("a", 1, "BLOCK", "MOST_RESTRICTIVE", "max: 3.000000003, near: 0.333333333"),
        policy("b", 2, "BLOCK", "MOST_RESTRICTIVE", "max: 3, near: 0.333333333"),
    ]
    .concat();
    let set = limits(&yaml);
    assert_eq!(set.limits[0].contributors[0].policy_id.as_ref(), "a");
    assert_eq!(set.limits[0].near_at, "0.999999999".parse().unwrap());
    let near = set.limits[0].contributors.iter().find(|c| c.gave.contains(&"near")).unwrap();
    assert_eq!(&*near.policy_id, "b");
}

#[test]
fn an_ambiguity_names_what_differs() {
    let yaml = [
        policy("a", 1, "BLOCK", "FAIL_CLOSED", "max: 1"),
        policy("b", 1, "BLOCK", "FAIL_CLOSED", "max: 2"),
        policy("c", 2, "BLOCK", "FAIL_CLOSED", "max: 3"),
    ]
    .concat();
    let set = limits(&yaml);
    assert!(set.limits.is_empty(), "no signal comes of it");
    let found = &set.ambiguous[0];
    assert_eq!(
        found.why,
        "FAIL_CLOSED: at precedence 1 a/l (max 1, near 0.8, STOP) and b/l (max 2, near 0.8, STOP) differ"
    );
    assert_eq!(found.considered.len(), 3);
}

/// Every combination of strategy × overlap × mode × mode × enforcement × enforcement × precedence, against the rules said
/// plainly for two policies and one run.
#[test]
fn every_combination_of_strategy_overlap_mode_and_enforcement() {
    use crate::policy::testing::policies;
    use crate::policy::{Selector, Snapshot, Subject};

    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Overlap {
        Same,
        Narrower,
        Apart,
    }
    let base = policies(
        &[
            policy("a", 1, "BLOCK", "MOST_RESTRICTIVE", "max: 200, near: 0.5"),
            policy("b", 1, "BLOCK", "MOST_RESTRICTIVE", "max: 100, near: 0.9"),
        ]
        .concat(),
    );
    let agent = |id: &str| Selector { who: Subject::Agent, ids: vec![id.to_owned()], ..Selector::default() };
    let effect = |mode: Mode, enforcement: Enforcement| {
        mode == Mode::Block && !matches!(enforcement, Enforcement::Warn | Enforcement::Alert)
    };
    let mut combinations = 0;
    for strategy in Strategy::ALL {
        for overlap in [Overlap::Same, Overlap::Narrower, Overlap::Apart] {
            for (mode_a, mode_b) in Mode::ALL.iter().flat_map(|a| Mode::ALL.iter().map(move |b| (*a, *b))) {
                for (kind_a, kind_b) in
                    Enforcement::ALL.iter().flat_map(|a| Enforcement::ALL.iter().map(move |b| (*a, *b)))
                {
                    for later in [0, 1] {
                        combinations += 1;
                        let mut two = base.clone();
                        for (n, (mode, kind)) in [(mode_a, kind_a), (mode_b, kind_b)].into_iter().enumerate() {
                            two[n].conflict_strategy = *strategy;
                            two[n].enforcement_mode = mode;
                            two[n].limits[0].enforcement = kind;
                            two[n].limits[0].on_breach =
                                if kind == Enforcement::Block { OnBreach::Stop } else { OnBreach::None };
                        }
                        two[1].precedence += later;
                        match overlap {
                            Overlap::Same => {}
                            Overlap::Narrower => two[1].scope = agent("planner"),
                            Overlap::Apart => two[1].scope = agent("nobody"),
                        }
                        let set = Snapshot::new(two, Default::default(), "", "").effective(
                            &run(),
                            Scope::Run,
                            &metrics,
                            None,
                            &|_| true,
                        );
                        let mut found: Vec<(String, String, String)> = set
                            .limits
                            .iter()
                            .map(|l| (l.policy_id.to_string(), l.max.to_string(), l.near_at.to_string()))
                            .collect();
                        found.sort();

                        let counts = |mode| mode != Mode::Disabled;
                        let (there_a, there_b) = (counts(mode_a), counts(mode_b) && overlap != Overlap::Apart);
                        let row = |id: &str, max: u32, near: u32| (id.to_owned(), max.to_string(), near.to_string());
                        let (alone_a, alone_b) = (row("a", 200, 100), row("b", 100, 90));
                        let compete =
                            there_a && there_b && kind_a == kind_b && effect(mode_a, kind_a) && effect(mode_b, kind_b);
                        let (expected, ambiguous) = match (compete, strategy) {
                            (false, _) => {
                                let a = there_a.then(|| alone_a.clone());
                                (a.into_iter().chain(there_b.then(|| alone_b.clone())).collect::<Vec<_>>(), 0)
                            }
                            (true, Strategy::MostRestrictive) => (vec![row("b", 100, 90)], 0),
                            (true, Strategy::ExplicitPriority) if later == 0 => (vec![alone_b.clone()], 0),
                            (true, Strategy::FailClosed) if later == 0 => (Vec::new(), 1),
                            (true, _) => (vec![alone_a.clone()], 0),
                        };
                        assert_eq!(
                            (found, set.ambiguous.len()),
                            (expected, ambiguous),
                            "{strategy} {overlap:?} {mode_a}/{kind_a} {mode_b}/{kind_b} {later}"
                        );
                    }
                }
            }
        }
    }
    assert_eq!(combinations, 3 * 3 * 16 * 36 * 2);
}
