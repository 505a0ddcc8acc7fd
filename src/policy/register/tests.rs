use super::*;
use crate::policy::testing::policies;
use proposals::About;
use proptest::prelude::*;

fn by(principal: &str, authority: u8) -> By {
    By {
        principal: principal.into(),
        authority,
        tenant: "*".into(),
        at: 1_700_000_000 * crate::clock::SECOND,
        reason: "because".into(),
        command_id: format!("c-{principal}-{authority}"),
    }
}

fn faults(policies: &[&Policy], _: &Terms) -> Vec<String> {
    let unknown = |p: &&&Policy| p.limits.iter().any(|l| &*l.metric == "unknown");
    policies.iter().filter(unknown).map(|p| format!("{}: unknown metric", p.id)).collect()
}

fn set(generation: u64, yaml: &str) -> SetOrder {
    SetOrder { generation, digest: format!("{yaml:?}"), policies: policies(yaml), terms: Terms::default() }
}

fn policy(id: &str, tenant: &str, max: u32) -> Policy {
    let yaml = format!(
        "{{id: {id}, name: {id}, tenant: '{tenant}', enforcement_mode: BLOCK, conflict_strategy: EXPLICIT_PRIORITY, \
         limits: [{{id: l, limit_type: T, metric: m, max: {max}}}]}}"
    );
    policies(&yaml).remove(0)
}

fn yaml(id: &str, max: u32) -> String {
    format!("{{id: {id}, name: {id}, limits: [{{id: l, limit_type: T, metric: m, max: {max}}}]}}")
}

/// A register with one policy from files, and a way to act on it.
struct Desk {
    register: Register,
}

impl Desk {
    fn new() -> Self {
        let mut desk = Self { register: Register::default() };
        desk.apply(set(1, &yaml("filed", 10))).unwrap();
        desk
    }

    fn apply(&mut self, set: SetOrder) -> Result<Effects, Refusal> {
        self.register.apply_set(set, &Order { by: &by("system:s", 5), faults: &faults })
    }

    fn act<T>(&mut self, by: &By, act: impl FnOnce(&mut Register, &Order<'_>) -> T) -> T {
        act(&mut self.register, &Order { by, faults: &faults })
    }

    fn propose(&mut self, policy: Policy, about: About, id: &str) -> Result<Effects, Refusal> {
        let by = By { command_id: id.into(), ..by("service:lessons", 3) };
        self.act(&by, |r, o| r.propose(policy, about, o))
    }

    fn approve(&mut self, id: &str) -> Result<Effects, Refusal> {
        self.act(&by("user:ada", 4), |r, o| r.approve(id, o))
    }

    fn mode_of(&self, tenant: &str, id: &str) -> Option<Status> {
        self.register.snapshot().unwrap().policy(tenant, id).map(|p| p.status)
    }
}

fn kinds(effects: &Effects) -> Vec<&'static str> {
    effects.acts.iter().map(|a| a.kind).collect()
}

#[test]
fn the_highest_generation_wins_and_the_same_with_another_digest_is_refused() {
    let mut desk = Desk::new();
    let first = Arc::clone(desk.register.snapshot().unwrap().id());
    assert_eq!(desk.apply(set(1, &yaml("filed", 11))).unwrap_err().code, "generation");
    assert_eq!(desk.apply(set(0, &yaml("filed", 11))).unwrap_err().code, "generation");
    assert_eq!(desk.register.snapshot().unwrap().id(), &first);
    let again = desk.apply(set(1, &yaml("filed", 10))).unwrap();
    assert!(again.activated.is_none() && again.acts.is_empty(), "the same set again is accepted and changes nothing");
    assert_eq!(again.changes.iter().map(|c| c.kind).collect::<Vec<_>>(), ["snapshot", "in-force"], "it is said again");
    let next = desk.apply(set(2, &yaml("filed", 11))).unwrap();
    assert_eq!(next.activated.unwrap().policy("*", "filed").unwrap().version, 2);
    assert_eq!(desk.register.revision(), 2);
}

#[test]
fn without_a_generation_a_changed_digest_is_accepted() {
    let mut register = Register::default();
    let by = by("system:s", 5);
    let order = Order { by: &by, faults: &faults };
    for (n, max) in [10, 11, 10].into_iter().enumerate() {
        let effects = register.apply_set(set(0, &yaml("filed", max)), &order).unwrap();
        assert_eq!(effects.activated.unwrap().policy("*", "filed").unwrap().version as usize, n + 1);
    }
}

#[test]
fn a_set_replaces_what_came_from_sets_and_leaves_what_was_approved() {
    let mut desk = Desk::new();
    desk.propose(policy("asked", "acme", 5), About::New, "p").unwrap();
    desk.approve("p").unwrap();
    let effects = desk.apply(set(2, &yaml("other", 10))).unwrap();
    let ids: Vec<_> = effects.activated.unwrap().policies().iter().map(|p| p.id.to_string()).collect();
    assert_eq!(ids, ["other", "asked"]);
    assert_eq!(
        desk.apply(set(3, "{id: asked, name: A, tenant: acme, limits: [{id: l, limit_type: T, metric: m, max: 1}]}"))
            .unwrap_err()
            .code,
        "clash"
    );
    let back = desk.apply(set(3, &yaml("filed", 10))).unwrap();
    assert_eq!(back.activated.unwrap().policy("*", "filed").unwrap().version, 2, "versions go on counting");
}

#[test]
fn a_set_with_faults_or_a_blocking_conflict_is_refused_whole() {
    let mut desk = Desk::new();
    let before = desk.register.snapshot().cloned();
    let refused =
        desk.apply(set(2, "{id: a, name: A, limits: [{id: l, limit_type: T, metric: unknown, max: 1}]}")).unwrap_err();
    assert_eq!((refused.code, refused.reason.as_str()), ("invalid", "a: unknown metric"));
    let two = SetOrder { policies: vec![policy("a", "*", 5), policy("b", "acme", 6)], ..set(2, &yaml("x", 1)) };
    let refused = desk.apply(two).unwrap_err();
    assert!(refused.code == "conflict" && refused.reason.contains("GOV-POL-001") && !refused.conflicts.is_empty());
    assert_eq!(desk.register.snapshot().cloned(), before);
}

#[test]
fn approving_activates_in_the_same_step_and_says_every_change() {
    let mut desk = Desk::new();
    let proposed = desk.propose(policy("asked", "acme", 5), About::New, "p").unwrap();
    assert!(proposed.activated.is_none(), "a draft is not in force");
    assert_eq!(kinds(&proposed), ["proposal.created"]);
    let approved = desk.approve("p").unwrap();
    assert_eq!(kinds(&approved), ["proposal.approved", "policy.activated"]);
    assert_eq!(desk.mode_of("acme", "asked"), Some(Status::Active));
    let said: Vec<(&str, String)> = approved.changes.iter().map(|c| (c.kind, c.id.join("/"))).collect();
    let snapshot = approved.activated.unwrap().id().to_string();
    let expected = [
        ("version", "p/1"),
        ("proposal", "p"),
        ("policy", "asked"),
        ("limit", "asked/l"),
        ("snapshot", &snapshot),
        ("in-force", "current"),
    ];
    let expected = expected.map(|(kind, id)| (kind, id.to_owned()));
    assert_eq!(said, expected);
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(approved.changes[1].record.as_ref().unwrap()).unwrap()["status"],
        "ACTIVE"
    );
    assert_eq!(desk.approve("p").unwrap_err().code, "not_a_draft");
}

#[test]
fn what_is_said_keeps_every_digit() {
    let mut desk = Desk::new();
    let exact = "123456789.123456789";
    let effects = desk.apply(set(2, &yaml("filed", 1).replace("max: 1}", &format!("max: {exact}}}")))).unwrap();
    for kind in ["policy", "limit", "in-force", "snapshot"] {
        let change = effects.changes.iter().find(|c| c.kind == kind).unwrap();
        assert!(change.record.as_ref().unwrap().contains(exact), "{kind}: {change:?}");
    }
    let in_force = effects.changes.iter().find(|c| c.kind == "in-force").unwrap().record.as_ref().unwrap();
    let whole: serde_json::Map<String, serde_json::Value> = serde_json::from_str(in_force).unwrap();
    assert_eq!(whole["revision"], 2);
}

#[test]
fn nobody_but_a_person_with_the_authority_decides() {
    let mut desk = Desk::new();
    desk.propose(policy("asked", "acme", 5), About::New, "p").unwrap();
    for (principal, authority, code) in [
        ("service:bot", 5, "not_a_person"),
        ("system:runwarden", 5, "not_a_person"),
        ("user:", 5, "not_a_person"),
        ("user:ada", 3, "authority"),
    ] {
        let by = by(principal, authority);
        assert_eq!(desk.act(&by, |r, o| r.approve("p", o)).unwrap_err().code, code, "{principal}");
        assert_eq!(desk.act(&by, |r, o| r.reject("p", o)).unwrap_err().code, code, "{principal}");
    }
    let refused = desk.act(&by("user:ada", 3), |r, o| r.approve("p", o)).unwrap_err();
    assert_eq!((refused.required, refused.reason.as_str()), (Some(4), "this takes authority 4, and 3 was given"));
    let stranger = By { tenant: "other".into(), ..by("user:eve", 5) };
    assert_eq!(
        desk.act(&stranger, |r, o| r.approve("p", o)).unwrap_err().code,
        "not_found",
        "others' proposals are not there"
    );
    assert_eq!(
        desk.act(&stranger, |r, o| r.propose(policy("x", "acme", 1), About::Any, o)).unwrap_err().code,
        "tenant"
    );
    assert_eq!(desk.act(&stranger, |r, o| r.apply_set(set(9, &yaml("x", 1)), o)).unwrap_err().code, "tenant");
}

#[test]
fn of_two_conflicting_proposals_the_first_approved_wins_and_the_other_is_told_why() {
    let mut desk = Desk::new();
    desk.propose(policy("everywhere", "*", 5), About::New, "global").unwrap();
    desk.propose(policy("here", "acme", 6), About::New, "tenant").unwrap();
    desk.approve("tenant").unwrap();
    let refused = desk.approve("global").unwrap_err();
    assert_eq!(refused.code, "conflict");
    let conflict = &refused.conflicts[0];
    let ids = [conflict.policy_a_id.as_str(), conflict.policy_b_id.as_str()];
    assert!(ids.contains(&"here") && ids.contains(&"everywhere"));
    assert_eq!(
        desk.register.proposals()["global"].status,
        ProposalStatus::Draft,
        "it may be approved once the other is gone"
    );
    desk.act(&by("user:ada", 4), |r, o| r.delete("acme", "here", o)).unwrap();
    assert!(desk.approve("global").is_ok());
}

#[test]
fn a_rejected_draft_is_kept_and_the_version_in_force_stays() {
    let mut desk = Desk::new();
    desk.propose(policy("asked", "acme", 5), About::New, "p").unwrap();
    desk.approve("p").unwrap();
    assert_eq!(desk.propose(policy("asked", "acme", 7), About::New, "q").unwrap_err().code, "exists");
    desk.propose(policy("asked", "acme", 7), About::Known, "q").unwrap();
    let ada = by("user:ada", 4);
    assert_eq!(
        desk.act(&By { reason: String::new(), ..ada.clone() }, |r, o| r.reject("p", o)).unwrap_err().code,
        "reason"
    );
    let rejected = desk.act(&ada, |r, o| r.reject("p", o)).unwrap();
    assert!(rejected.activated.is_none());
    let versions: Vec<_> = desk.register.versions().values().map(|v| (v.version, v.is_current, v.status)).collect();
    assert_eq!(versions, [(1, true, ProposalStatus::Active), (2, false, ProposalStatus::Rejected)]);
    assert_eq!(desk.register.proposals()["p"].status, ProposalStatus::Active);
}

#[test]
fn what_others_depend_on_is_not_deleted_and_what_is_in_files_is_changed_there() {
    let mut desk = Desk::new();
    desk.propose(policy("base", "acme", 5), About::New, "p").unwrap();
    desk.approve("p").unwrap();
    let needs = Policy {
        depends_on: vec!["base".into()],
        ..policies("{id: needs, name: N, tenant: acme, limits: [{id: l, limit_type: T, metric: m2, max: 1}]}").remove(0)
    };
    desk.propose(needs, About::New, "q").unwrap();
    desk.approve("q").unwrap();
    let ada = by("user:ada", 4);
    for act in [Register::delete, Register::retire] {
        let refused = desk.act(&ada, |r, o| act(r, "acme", "base", o)).unwrap_err();
        assert!(refused.code == "dependents" && refused.reason.contains("GOV-POL-002"));
        assert_eq!(refused.dependents[0].from_policy_id, "needs");
        assert_eq!(desk.act(&ada, |r, o| act(r, "*", "filed", o)).unwrap_err().code, "from_files");
    }
    desk.act(&ada, |r, o| r.retire("acme", "needs", o)).unwrap();
    assert_eq!(desk.mode_of("acme", "needs"), Some(Status::Retired));
    desk.act(&ada, |r, o| r.delete("acme", "base", o)).unwrap();
    assert_eq!(desk.mode_of("acme", "base"), None);
    assert_eq!(desk.register.proposals()["p"].status, ProposalStatus::Retired);
}

#[test]
fn a_limit_that_a_person_disabled_stays_so_under_new_files() {
    let mut desk = Desk::new();
    let off = desk.act(&by("user:ada", 4), |r, o| r.toggle(("*", "filed", "l"), LimitStatus::Disabled, o)).unwrap();
    assert_eq!(off.activated.unwrap().policy("*", "filed").unwrap().limits[0].status, LimitStatus::Disabled);
    let next = desk.apply(set(2, &yaml("filed", 99))).unwrap().activated.unwrap();
    let limit = &next.policy("*", "filed").unwrap().limits[0];
    assert_eq!((limit.status, limit.max.to_string().as_str()), (LimitStatus::Disabled, "99"));
    assert_eq!(
        desk.act(&by("user:ada", 4), |r, o| r.toggle(("*", "filed", "no"), LimitStatus::Active, o)).unwrap_err().code,
        "not_found"
    );
    assert_eq!(
        desk.act(&by("user:ada", 3), |r, o| r.toggle(("*", "filed", "l"), LimitStatus::Active, o)).unwrap_err().code,
        "authority"
    );
}

#[test]
fn an_override_holds_for_its_minutes_and_its_record_stays() {
    let mut desk = Desk::new();
    let ada = by("user:ada", 4);
    let grant = |tenant: &'static str, minutes| {
        move |r: &mut Register, o: &Order<'_>| r.grant(tenant, ("*", "filed"), minutes, o)
    };
    assert_eq!(desk.act(&by("user:ada", 3), grant("acme", 5)).unwrap_err().code, "authority");
    assert_eq!(desk.act(&ada, grant("acme", 61)).unwrap_err().code, "minutes");
    assert_eq!(desk.act(&ada, grant("acme", 0)).unwrap_err().code, "minutes");
    let granted = desk.act(&ada, grant("acme", 5)).unwrap();
    let snapshot = granted.activated.unwrap();
    assert!(snapshot.suspends("acme", "*", "filed") && !snapshot.suspends("other", "*", "filed"));
    assert_eq!(Snapshot::from_json(&snapshot.to_json()).unwrap(), *snapshot);
    let end = desk.register.next_end().unwrap();
    assert_eq!(end - ada.at, 300 * crate::clock::SECOND);
    assert_eq!(desk.register.expire(end - 1), Effects::default());
    let ended = desk.register.expire(end);
    assert_eq!(kinds(&ended), ["override.expired"]);
    assert!(!ended.activated.unwrap().suspends("acme", "*", "filed"));
    assert_eq!(desk.register.overrides().values().next().unwrap().status, OverrideStatus::Expired);
    let gone = desk.register.expire(end + ENDED_KEPT);
    assert!(
        desk.register.overrides().is_empty() && gone.changes.iter().any(|c| c.kind == "override" && c.record.is_none())
    );
    assert!(gone.changes.iter().any(|c| c.kind == "snapshot" && c.record.is_none()), "old snapshots go as well");
}

#[test]
fn an_override_is_revoked_once() {
    let mut desk = Desk::new();
    let ada = by("user:ada", 4);
    desk.act(&ada, |r, o| r.grant("*", ("*", "filed"), 5, o)).unwrap();
    let id = ada.command_id.clone();
    assert_eq!(desk.act(&by("user:ada", 3), |r, o| r.revoke(&id, o)).unwrap_err().code, "authority");
    assert_eq!(kinds(&desk.act(&ada, |r, o| r.revoke(&id, o)).unwrap()), ["override.revoked"]);
    assert_eq!(desk.act(&ada, |r, o| r.revoke(&id, o)).unwrap_err().code, "not_found");
}

/// One random act.
fn random(desk: &mut Desk, n: usize, act: u8, which: u8, max: u32) {
    let ada = By { command_id: format!("c{n}"), ..by("user:ada", 5) };
    let id = ["a", "b", "filed"][usize::from(which % 3)];
    let tenant = ["*", "acme"][usize::from(which / 3 % 2)];
    let proposals: Vec<String> = desk.register.proposals().keys().cloned().collect();
    let proposal = proposals.get(usize::from(which) % proposals.len().max(1)).cloned().unwrap_or_default();
    let _any = match act {
        0 => desk.act(&ada, |r, o| r.propose(policy(id, tenant, max), About::Any, o)),
        1 => desk.act(&ada, |r, o| r.approve(&proposal, o)),
        2 => desk.act(&ada, |r, o| r.reject(&proposal, o)),
        3 => desk.act(&ada, |r, o| r.delete(tenant, id, o)),
        4 => desk.act(&ada, |r, o| r.retire(tenant, id, o)),
        5 => desk.act(&ada, |r, o| r.toggle((tenant, id, "l"), LimitStatus::ALL[max as usize % 2], o)),
        6 => desk.act(&ada, |r, o| r.grant("acme", (tenant, id), 5, o)),
        7 => Ok(desk.register.expire(ada.at + i64::from(max) * 100 * crate::clock::SECOND)),
        _ => desk.apply(set(u64::from(max), &yaml(id, max))),
    };
}

proptest! {
    #[test]
    fn whatever_is_done_nothing_conflicts_versions_have_one_current_and_all_of_it_is_restored(
        acts in proptest::collection::vec((0u8..9, any::<u8>(), 1u32..8), 1..40)
    ) {
        let mut desk = Desk::new();
        let mut kept = BTreeMap::new();
        for (n, (act, which, max)) in acts.into_iter().enumerate() {
            random(&mut desk, n, act, which, max);
            let snapshot = desk.register.snapshot().unwrap();
            let found = crate::policy::conflicts(snapshot.policies().iter().map(|p| &**p));
            prop_assert_eq!(found.unresolved_count, 0, "GOV-POL-001");
            for (id, proposal) in desk.register.proposals() {
                let of = desk.register.versions().values().filter(|v| v.proposal_id == *id && v.is_current);
                prop_assert_eq!(of.map(|v| v.version).collect::<Vec<_>>(), vec![proposal.current_version]);
            }
            for (name, item) in desk.register.take_changes() {
                match item {
                    Some(item) => drop(kept.insert(name, item)),
                    None => drop(kept.remove(&name)),
                }
            }
        }
        let mut again = Register::default();
        kept.into_values().for_each(|item| again.restore(item));
        again.restored();
        let told = |r: &mut Register| { r.mark_all_dirty(); format!("{:?}", r.take_changes()) };
        prop_assert_eq!(again.snapshot(), desk.register.snapshot());
        prop_assert_eq!(again.revision(), desk.register.revision());
        prop_assert_eq!(told(&mut again), told(&mut desk.register));
    }
}
