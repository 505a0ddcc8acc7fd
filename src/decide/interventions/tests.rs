//! The life of interventions, by example and against the state machine with random orders, reports, people, time and crashes.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::clock::SECOND;

const T: &str = "acme";

fn slot(kind: &str, run: &str) -> Slot {
    Slot { tenant: T.into(), kind: kind.into(), target: Subject { kind: "RUN".into(), id: run.into() } }
}

fn order(kind: &str, run: &str, identity: &str, now: Wall) -> Intervention {
    Order::of_policy(slot(kind, run), "p", identity, "because".into()).record(now)
}

fn at(seconds: i64) -> Wall {
    Wall((1_767_571_200 + seconds) * SECOND)
}

fn outcome(record: &Intervention, state: State) -> Outcome {
    Outcome {
        intervention_id: record.intervention_id.clone(),
        state,
        executor: Some("worker-1".into()),
        at: None,
        before: serde_json::Value::Null,
        after: serde_json::json!({"status": "stopped"}),
        message: None,
    }
}

fn actor() -> Actor<'static> {
    Actor { principal: "user:ada", authority: 4, reason: "so be it" }
}

fn never(_: &str, _: &str, _: Micros) -> bool {
    false
}

fn brief(said: &[Intervention]) -> Vec<(String, &'static str)> {
    said.iter().map(|r| (r.kind.clone(), r.state.as_str())).collect()
}

fn new() -> Interventions {
    Interventions::new(Acting::default(), true)
}

#[test]
fn a_deaf_worker_is_escalated_from_pause_to_stop_to_kill_and_each_names_what_it_replaces() {
    let mut all = new();
    let pause = all.order(order("PAUSE", "r", "x", at(0)), Some("level".into()), Care::default(), at(0));
    assert_eq!(brief(&pause), [("PAUSE".into(), "ISSUED")]);
    assert!(all.pass(at(29), &never).is_empty());
    let first = all.pass(at(30), &never);
    assert_eq!(brief(&first), [("PAUSE".into(), "TIMED_OUT"), ("STOP".into(), "ISSUED")]);
    assert_eq!(first[1].supersedes.as_ref(), Some(&pause[0].intervention_id));
    assert!(first[1].reason.contains("PAUSE was not acknowledged within 30 s"), "{}", first[1].reason);
    let second = all.pass(at(60), &never);
    assert_eq!(brief(&second), [("STOP".into(), "TIMED_OUT"), ("KILL".into(), "ISSUED")]);
    assert_eq!(brief(&all.pass(at(90), &never)), [("KILL".into(), "TIMED_OUT")]);
    assert!(all.is_empty() && all.stopped(T, "r").is_some(), "nothing harsher is left, and it is remembered");
}

#[test]
fn an_acknowledged_one_has_until_its_own_deadline_and_a_report_of_the_end_alone_counts_as_both() {
    let mut all = new();
    let stop = all.order(order("STOP", "r", "x", at(0)), None, Care::default(), at(0)).remove(0);
    assert_eq!(
        brief(&all.report(T, &outcome(&stop, State::Acknowledged), at(5)).unwrap()),
        [("STOP".into(), "ACKNOWLEDGED")]
    );
    assert!(all.pass(at(304), &never).is_empty());
    assert_eq!(brief(&all.pass(at(305), &never)), [("STOP".into(), "TIMED_OUT"), ("KILL".into(), "ISSUED")]);
    let mut all = new();
    let stop = all.order(order("STOP", "r", "x", at(0)), None, Care::default(), at(0)).remove(0);
    let said = all.report(T, &outcome(&stop, State::Succeeded), at(5)).unwrap();
    assert_eq!(brief(&said), [("STOP".into(), "ACKNOWLEDGED"), ("STOP".into(), "SUCCEEDED")]);
    assert_eq!((said[1].revision, said[1].executed_at), (3, Some(at(5).0)));
    assert!(all.report(T, &outcome(&stop, State::Failed), at(6)).unwrap_err().contains("SUCCEEDED"), "it has ended");
    assert!(all.report("other", &outcome(&stop, State::Failed), at(6)).is_err(), "another tenant knows nothing of it");
}

#[test]
fn a_run_that_ended_by_itself_is_not_escalated() {
    let mut all = new();
    all.order(order("STOP", "r", "x", at(0)), None, Care::default(), at(0));
    assert_eq!(brief(&all.pass(at(30), &|_, run, _| run == "r")), [("STOP".into(), "SUPERSEDED")]);
}

#[test]
fn what_succeeded_stays_live_while_its_cause_holds_and_then_leaves_room_for_another() {
    let mut all = new();
    let stop = all.order(order("STOP", "r", "x", at(0)), Some("a".into()), Care::default(), at(0)).remove(0);
    assert!(all.order(order("STOP", "r", "y", at(1)), Some("b".into()), Care::default(), at(1)).is_empty());
    all.report(T, &outcome(&stop, State::Succeeded), at(2)).unwrap();
    all.release(T, "a");
    assert!(all.order(order("STOP", "r", "z", at(3)), Some("c".into()), Care::default(), at(3)).is_empty());
    all.release(T, "b");
    all.release(T, "c");
    assert_eq!(all.len(), 0);
    assert_eq!(all.order(order("STOP", "r", "z", at(4)), Some("d".into()), Care::default(), at(4)).len(), 1);
}

#[test]
fn the_end_of_a_level_does_not_lose_the_report_of_the_executor() {
    let mut all = new();
    let stop = all.order(order("STOP", "r", "x", at(0)), Some("a".into()), Care::default(), at(0)).remove(0);
    all.release(T, "a");
    assert!(all.report(T, &outcome(&stop, State::Succeeded), at(2)).is_ok());
}

#[test]
fn a_harsher_order_supersedes_a_milder_one_that_nobody_acknowledged() {
    let mut all = new();
    let pause = all.order(order("PAUSE", "r", "x", at(0)), None, Care::default(), at(0)).remove(0);
    let said = all.order(order("KILL", "r", "y", at(1)), None, Care::default(), at(1));
    assert_eq!(brief(&said), [("PAUSE".into(), "SUPERSEDED"), ("KILL".into(), "ISSUED")]);
    assert_eq!(said[1].supersedes.as_ref(), Some(&pause.intervention_id));
}

#[test]
fn a_person_approves_rejects_or_lets_expire_and_only_with_the_authority() {
    let mut all = new();
    let care = Care { min_authority: 4, rollback: None };
    let propose = |all: &mut Interventions, run: &str| {
        let mut record = order("AGENT_QUARANTINE", run, "x", at(0));
        record.state = State::Proposed;
        all.order(record, None, care, at(0)).remove(0)
    };
    let (a, b, c) = (propose(&mut all, "a"), propose(&mut all, "b"), propose(&mut all, "c"));
    let weak = Actor { authority: 3, ..actor() };
    assert_eq!(all.approve(T, &a.intervention_id, &weak, at(1)).unwrap_err(), NotDone::Authority(4));
    let said = all.approve(T, &a.intervention_id, &actor(), at(1)).unwrap();
    assert_eq!((said[0].state, said[0].approved_by.as_deref()), (State::Issued, Some("user:ada")));
    assert_eq!(all.approve(T, &a.intervention_id, &actor(), at(2)).unwrap_err(), NotDone::Illegal(State::Issued));
    assert_eq!(all.reject(T, &b.intervention_id, &actor(), at(2)).unwrap()[0].state, State::Rejected);
    assert_eq!(all.reject(T, &b.intervention_id, &actor(), at(2)).unwrap_err(), NotDone::Missing);
    assert!(all.report(T, &outcome(&c, State::Succeeded), at(3)).is_err(), "nobody executes what is not approved");
    let said = all.pass(at(3_600), &never);
    assert!(said.iter().any(|r| r.intervention_id == c.intervention_id && r.state == State::Expired));
}

#[test]
fn reverting_a_pause_resumes_it_and_the_resume_ends_it() {
    let mut all = new();
    let pause = all.order(order("PAUSE", "r", "x", at(0)), None, Care::default(), at(0)).remove(0);
    all.report(T, &outcome(&pause, State::Succeeded), at(1)).unwrap();
    let said = all.revert(T, &pause.intervention_id, &actor(), at(2)).unwrap();
    assert_eq!(brief(&said), [("PAUSE".into(), "REVERTED"), ("RESUME".into(), "ISSUED")]);
    assert_eq!((said[0].reverted_by.as_deref(), said[0].reverted_at), (Some("user:ada"), Some(at(2).0)));
    let stop = all.order(order("STOP", "s", "x", at(0)), None, Care::default(), at(0)).remove(0);
    all.report(T, &outcome(&stop, State::Succeeded), at(1)).unwrap();
    assert!(all.stopped(T, "s").is_some());
    assert_eq!(brief(&all.revert(T, &stop.intervention_id, &actor(), at(2)).unwrap()), [("STOP".into(), "REVERTED")]);
    assert!(all.stopped(T, "s").is_none(), "what was taken back stops nothing any more");
}

#[test]
fn auto_rollback_reverts_after_the_policys_minutes() {
    let mut all = new();
    let care = Care { min_authority: 0, rollback: Some(60 * MINUTE) };
    let pause = all.order(order("PAUSE", "r", "x", at(0)), Some("level".into()), care, at(0)).remove(0);
    all.report(T, &outcome(&pause, State::Succeeded), at(10)).unwrap();
    assert!(all.pass(at(3_609), &never).is_empty());
    let said = all.pass(at(3_610), &never);
    assert_eq!(brief(&said), [("PAUSE".into(), "REVERTED"), ("RESUME".into(), "ISSUED")]);
    assert_eq!(said[0].reverted_by.as_deref(), Some("system:runwarden"));
}

#[test]
fn a_zombie_is_stopped_again_one_at_a_time_and_only_after_the_grace() {
    let mut all = new();
    let stop = all.order(order("STOP", "r", "x", at(0)), Some("level".into()), Care::default(), at(0)).remove(0);
    let done = Outcome { at: Some(at(2).0), ..outcome(&stop, State::Succeeded) };
    all.report(T, &done, at(4)).unwrap();
    assert!(!all.is_zombie(T, "r", at(32).0) && all.is_zombie(T, "r", at(33).0) && !all.is_zombie(T, "s", at(99).0));
    let again = all.stop_again(T, "r", at(33).0, at(34));
    assert_eq!(brief(&again), [("STOP".into(), "ISSUED")]);
    assert_ne!(again[0].intervention_id, stop.intervention_id);
    assert!(all.stop_again(T, "r", at(40).0, at(41)).is_empty(), "while it is being stopped");
    all.report(T, &outcome(&again[0], State::Succeeded), at(50)).unwrap();
    assert!(all.stop_again(T, "r", at(79).0, at(79)).is_empty(), "a new grace");
    assert_eq!(all.stop_again(T, "r", at(81).0, at(81)).len(), 1);
}

#[test]
fn a_child_that_appears_under_a_held_parent_is_held_alike() {
    let mut all = new();
    let stop = all.order(order("STOP", "r", "x", at(0)), None, Care::default(), at(0)).remove(0);
    let child = all.hold_child(T, "r", "c", 0, at(1));
    assert_eq!(brief(&child), [("STOP".into(), "ISSUED")]);
    assert_eq!(child[0].parent_intervention_id.as_ref(), Some(&stop.intervention_id));
    assert_eq!(all.cascade(&stop, "c", 0, at(1)), [], "the same child is not stopped twice");
    assert!(all.hold_child(T, "free", "d", 0, at(1)).is_empty());
}

#[test]
fn a_notify_is_done_when_it_is_told() {
    let said = new().order(order("NOTIFY", "r", "x", at(0)), None, Care::default(), at(0));
    let states: Vec<State> = said.iter().map(|r| r.state).collect();
    assert_eq!(states, [State::Issued, State::Acknowledged, State::Succeeded]);
}

#[test]
fn in_a_simulation_nothing_times_out() {
    let mut all = Interventions::new(Acting::default(), false);
    let stop = all.order(order("STOP", "r", "x", at(0)), None, Care::default(), at(0)).remove(0);
    assert_eq!((stop.deadline, all.next_due()), (None, None));
    assert!(all.pass(at(100_000), &never).is_empty());
}

/// What may happen.
#[derive(Debug, Clone)]
enum Op {
    Order { kind: usize, run: u8, cause: Option<u8>, proposed: bool, rollback: bool },
    Report { nth: usize, state: usize },
    Approve(usize),
    Reject(usize),
    Revert(usize),
    Release(u8),
    Wait(i64),
    Telemetry(u8),
    Child { parent: u8, child: u8 },
    Crash,
}

const KINDS: [&str; 6] = ["PAUSE", "RESUME", "STOP", "KILL", "AGENT_RESTART", "NOTIFY"];

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0..KINDS.len(), 0u8..3, proptest::option::of(0u8..4), proptest::bool::weighted(0.2), any::<bool>())
            .prop_map(|(kind, run, cause, proposed, rollback)| Op::Order { kind, run, cause, proposed, rollback }),
        4 => (any::<prop::sample::Index>(), 0usize..3).prop_map(|(n, state)| Op::Report { nth: n.index(64), state }),
        1 => any::<prop::sample::Index>().prop_map(|n| Op::Approve(n.index(64))),
        1 => any::<prop::sample::Index>().prop_map(|n| Op::Reject(n.index(64))),
        1 => any::<prop::sample::Index>().prop_map(|n| Op::Revert(n.index(64))),
        2 => (0u8..4).prop_map(Op::Release),
        3 => prop_oneof![1i64..40, 100i64..400, Just(3_600), Just(700_000)].prop_map(Op::Wait),
        2 => (0u8..3).prop_map(Op::Telemetry),
        1 => (0u8..3, 0u8..3).prop_map(|(parent, child)| Op::Child { parent, child }),
        2 => Just(Op::Crash),
    ]
}

/// State goes out and comes back as through a checkpoint.
fn through_a_crash(mut all: Interventions) -> Interventions {
    all.mark_all_dirty();
    let mut back = new();
    let text = |value: &dyn erased::Ser| value.text();
    for (slot, live) in all.take_changes() {
        // what has ended is a tombstone, and not there when it comes back
        let Some(live) = live else { continue };
        let (slot, live) = (text(&slot), text(live));
        back.restore(serde_json::from_str(&slot).unwrap(), serde_json::from_str(&live).unwrap());
    }
    for (key, mark) in all.take_stopped() {
        let Some(mark) = mark else { continue };
        back.restore_stopped(key, serde_json::from_str(&text(mark)).unwrap());
    }
    back
}

mod erased {
    pub trait Ser {
        fn text(&self) -> String;
    }

    impl<T: serde::Serialize> Ser for T {
        fn text(&self) -> String {
            serde_json::to_string(self).unwrap()
        }
    }
}

/// What was said so far, held against the rules.
#[derive(Default)]
struct Judge {
    last: BTreeMap<String, Intervention>,
}

impl Judge {
    fn take(&mut self, said: &[Intervention]) -> Result<(), TestCaseError> {
        for record in said {
            match self.last.get(&record.intervention_id) {
                None => {
                    prop_assert_eq!(record.revision, 1);
                    prop_assert!(matches!(record.state, State::Proposed | State::Issued), "{:?}", record.state);
                }
                Some(before) => {
                    prop_assert_eq!(record.revision, before.revision + 1);
                    prop_assert!(life::legal(before.state, record.state), "{:?} → {:?}", before.state, record.state);
                }
            }
            self.last.insert(record.intervention_id.clone(), record.clone());
        }
        let mut pending: BTreeMap<(String, Subject), usize> = BTreeMap::new();
        for record in self.last.values().filter(|r| life::is_pending(r.state)) {
            *pending.entry((record.kind.clone(), record.target.clone())).or_default() += 1;
        }
        prop_assert!(pending.values().all(|n| *n == 1), "at most one live of a kind on a target: {:?}", pending);
        Ok(())
    }

    fn deadlines(&self, now: Wall, next: Option<Micros>) -> Result<(), TestCaseError> {
        for record in self.last.values().filter(|r| life::is_pending(r.state)) {
            let deadline = record.deadline.expect("what is pending has a deadline");
            prop_assert!(deadline > now.0, "lost: {:?}", record);
            prop_assert!(next.is_some_and(|next| next <= deadline), "nobody would wake for {:?}", record);
        }
        Ok(())
    }

    fn nth(&self, nth: usize) -> Option<Intervention> {
        self.last.values().nth(nth % self.last.len().max(1)).cloned()
    }
}

fn apply(all: &mut Interventions, judge: &Judge, number: usize, op: &Op, now: Wall) -> Vec<Intervention> {
    let run = |n: u8| format!("r{n}");
    match op {
        Op::Order { kind, run: n, cause, proposed, rollback } => {
            let mut record = order(KINDS[*kind], &run(*n), &number.to_string(), now);
            if *proposed {
                (record.state, record.issued_at) = (State::Proposed, None);
            }
            let care = Care { min_authority: 4, rollback: rollback.then_some(60 * MINUTE) };
            all.order(record, cause.map(|cause| format!("cause-{cause}")), care, now)
        }
        Op::Report { nth, state } => {
            let state = [State::Acknowledged, State::Succeeded, State::Failed][*state];
            let of = judge.nth(*nth);
            of.map(|of| all.report(T, &outcome(&of, state), now).unwrap_or_default()).unwrap_or_default()
        }
        Op::Approve(nth) => {
            let of = judge.nth(*nth);
            of.and_then(|of| all.approve(T, &of.intervention_id, &actor(), now).ok()).unwrap_or_default()
        }
        Op::Reject(nth) => {
            let of = judge.nth(*nth);
            of.and_then(|of| all.reject(T, &of.intervention_id, &actor(), now).ok()).unwrap_or_default()
        }
        Op::Revert(nth) => {
            let of = judge.nth(*nth);
            of.and_then(|of| all.revert(T, &of.intervention_id, &actor(), now).ok()).unwrap_or_default()
        }
        Op::Release(cause) => {
            all.release(T, &format!("cause-{cause}"));
            Vec::new()
        }
        Op::Telemetry(n) => all.stop_again(T, &run(*n), now.0, now),
        Op::Child { parent, child } => all.hold_child(T, &run(*parent), &run(*child), now.0, now),
        Op::Wait(_) | Op::Crash => Vec::new(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// No illegal step, no lost deadline, at most one live of a kind on a target; and a crash changes nothing.
    #[test]
    fn whatever_happens_the_state_machine_holds(ops in proptest::collection::vec(op(), 1..60)) {
        let (mut all, mut crashing) = (new(), new());
        let mut judge = Judge::default();
        let mut seconds = 0;
        for (number, op) in ops.iter().enumerate() {
            seconds += if let Op::Wait(wait) = op { *wait } else { 1 };
            let now = at(seconds);
            if matches!(op, Op::Crash) {
                crashing = through_a_crash(crashing);
            }
            // the order of a step: what is reported, then what is due, then what telemetry says
            let (mut said, mut other) = (Vec::new(), Vec::new());
            let telemetry = matches!(op, Op::Telemetry(_) | Op::Child { .. } | Op::Order { .. });
            for late in [false, true] {
                if late == telemetry {
                    said.extend(apply(&mut all, &judge, number, op, now));
                    other.extend(apply(&mut crashing, &judge, number, op, now));
                }
                if !late {
                    said.extend(all.pass(now, &never));
                    other.extend(crashing.pass(now, &never));
                }
            }
            prop_assert_eq!(&said, &other, "after {:?}", op);
            judge.take(&said)?;
            judge.deadlines(now, all.next_due())?;
        }
    }
}
