//! Alerts by example: what is told, what is held back, what mutes, and what a crash leaves.

use super::*;
use crate::decide::records::Subject;
use crate::policy::{Matcher, SilenceStatus};

const MINUTE: Micros = 60 * SECOND;
const T: &str = "acme";

struct Desk {
    correlation: Correlation,
    silences: Vec<Silence>,
    keep: Micros,
    told: BTreeMap<String, u32>,
    now: Micros,
}

fn query() -> Arc<Query> {
    compile(include_str!("../../../queries/decide/correlation.sql")).unwrap()
}

fn member(id: &str, run: &str, agent: &str, severity: Severity, at: Micros) -> Member {
    let scope = Subject { kind: "RUN".into(), id: run.into() };
    let member = Member::new("signal", "NEAR", id.into(), T, scope, at).saying(severity, id, "more");
    Member { agent_id: Some(agent.into()), up: Some(format!("level/{id}")), ..member }
}

fn down(id: &str, clock: Micros) -> Entry {
    Entry::Down { tenant: T.into(), cause: format!("level/{id}"), clock }
}

fn entry(member: Member) -> Entry {
    Entry::Member(Box::new(member))
}

impl Desk {
    fn new() -> Self {
        let correlation = Correlation::new(query()).unwrap();
        Self { correlation, silences: Vec::new(), keep: 0, told: BTreeMap::new(), now: 0 }
    }

    fn step(&mut self, entries: Vec<Entry>, clock: Micros) -> Vec<Alert> {
        let told = &mut self.told;
        let mut view = View {
            now: Wall(self.now),
            silences: &self.silences,
            keep_firing_for: self.keep,
            told: &mut |_, run, most| {
                let count = told.entry(run.to_owned()).or_default();
                *count += 1;
                *count <= most
            },
        };
        self.correlation.step(entries, &mut view, |_| Some(clock), false).unwrap()
    }

    fn crash(&mut self) {
        self.correlation.mark_all_dirty();
        let mut back = Correlation::new(query()).unwrap();
        for (key, value) in self.correlation.take_window_changes() {
            // what has ended is a tombstone, and not there when it comes back
            let Some(value) = value else { continue };
            back.restore_window(&key, &value).unwrap();
        }
        for (key, open) in self.correlation.take_changes() {
            let Some(open) = open else { continue };
            let text = serde_json::to_string(open).unwrap();
            back.restore(key, serde_json::from_str(&text).unwrap());
        }
        back.restored().unwrap();
        self.correlation = back;
    }
}

fn brief(alerts: &[Alert]) -> Vec<(AlertStatus, u64, u64)> {
    alerts.iter().map(|a| (a.status, a.alert_count, a.suppressed_count)).collect()
}

#[test]
fn a_jump_past_the_limit_is_told_once_at_the_higher_level() {
    let mut desk = Desk::new();
    let near = member("n", "r", "a", Severity::Medium, 0);
    let row = Some((7, (0, 60 * SECOND)));
    let near = Member { row, ..near };
    let breach = Member { up: near.up.clone(), row, ..member("b", "r", "a", Severity::High, 0) };
    let said = desk.step(vec![entry(near), entry(breach)], 0);
    assert_eq!(brief(&said), [(AlertStatus::Open, 2, 1)]);
    assert_eq!((said[0].severity, said[0].revision, said[0].members.len()), (Severity::High, 1, 2));
}

#[test]
fn updates_are_throttled_and_counted_and_a_worse_severity_is_told_at_once() {
    let mut desk = Desk::new();
    let at = |seconds, id: &str, severity| vec![entry(member(id, "r", "a", severity, seconds * SECOND))];
    assert_eq!(brief(&desk.step(at(0, "1", Severity::Medium), 0)), [(AlertStatus::Open, 1, 0)]);
    assert!(desk.step(at(10, "2", Severity::Medium), 10 * SECOND).is_empty());
    assert_eq!(brief(&desk.step(at(11, "3", Severity::High), 11 * SECOND)), [(AlertStatus::Updated, 3, 1)]);
    assert!(desk.step(at(40, "4", Severity::High), 40 * SECOND).is_empty());
    assert_eq!(brief(&desk.step(at(41, "5", Severity::High), 41 * SECOND)), [(AlertStatus::Updated, 5, 2)]);
}

#[test]
fn one_run_causes_no_more_records_than_its_policy_allows_and_what_is_held_back_is_counted() {
    let mut desk = Desk::new();
    let mut said = Vec::new();
    for n in 0..10 {
        let mut one = member(&n.to_string(), "r", "a", Severity::Medium, n * MINUTE);
        one.throttle.max_per_run = 3;
        said.extend(desk.step(vec![entry(one)], n * MINUTE));
    }
    assert_eq!(said.len(), 3, "{said:?}");
    let mut other = member("x", "s", "a", Severity::Medium, 10 * MINUTE);
    other.throttle.max_per_run = 3;
    let said = desk.step(vec![entry(other)], 10 * MINUTE);
    assert_eq!(brief(&said), [(AlertStatus::Updated, 11, 7)], "another run is told of, with what was held back");
}

#[test]
fn an_alert_resolves_when_its_window_is_over_and_nothing_is_up_and_that_survives_a_crash() {
    for crash in [false, true] {
        let mut desk = Desk::new();
        let again = |desk: &mut Desk| {
            if crash {
                desk.crash()
            }
        };
        desk.step(vec![entry(member("1", "r", "a", Severity::Medium, 0))], 0);
        again(&mut desk);
        assert!(desk.step(vec![down("1", MINUTE)], MINUTE).is_empty(), "more may come");
        again(&mut desk);
        let said = desk.step(Vec::new(), 5 * MINUTE);
        assert_eq!(brief(&said), [(AlertStatus::Resolved, 1, 0)]);
        again(&mut desk);
        assert!(desk.correlation.is_empty());
    }
}

#[test]
fn what_flaps_is_one_alert_when_it_is_kept_firing() {
    for (keep, alerts) in [(0, 3), (20 * MINUTE, 1)] {
        let mut desk = Desk::new();
        desk.keep = keep;
        let mut ids = BTreeSet::new();
        for n in 0..3 {
            let start = n * 10 * MINUTE;
            let one = member(&n.to_string(), "r", "a", Severity::Medium, start);
            let said = desk.step(vec![entry(one), down(&n.to_string(), start)], start);
            ids.extend(said.into_iter().map(|a| a.alert_id));
            desk.crash();
            ids.extend(desk.step(Vec::new(), start + 6 * MINUTE).into_iter().map(|a| a.alert_id));
        }
        assert_eq!(ids.len(), alerts, "kept firing for {keep}");
        let said = desk.step(Vec::new(), 100 * MINUTE);
        assert!(desk.correlation.is_empty(), "{said:?}");
    }
}

#[test]
fn an_external_alert_is_up_until_it_is_cleared_or_its_time_is_over() {
    let mut desk = Desk::new();
    let one = Member { up_until: Some(60 * MINUTE), ..member("1", "r", "a", Severity::High, 0) };
    desk.step(vec![entry(one)], 0);
    assert!(desk.step(Vec::new(), 59 * MINUTE).is_empty(), "nobody cleared it");
    desk.crash();
    assert_eq!(brief(&desk.step(Vec::new(), 60 * MINUTE)), [(AlertStatus::Resolved, 1, 0)]);
}

#[test]
fn a_silence_mutes_while_it_holds_and_names_itself() {
    let mut desk = Desk::new();
    let matchers: Vec<Matcher> =
        serde_json::from_str(r#"[{"name": "agent", "operator": "=~", "value": "plan.*"}]"#).unwrap();
    desk.silences = vec![Silence {
        silence_id: "s".into(),
        revision: 1,
        tenant_id: "*".into(),
        status: SilenceStatus::Active,
        matchers,
        author: "user:ada".into(),
        comment: "migration".into(),
        starts_at: 0,
        ends_at: 100,
        ended_by: None,
    }];
    let said = desk.step(
        vec![
            entry(member("1", "r", "planner", Severity::Medium, 0)),
            entry(member("2", "s", "coder", Severity::Medium, 0)),
        ],
        0,
    );
    assert_eq!((&said[0].silenced_by, &said[1].silenced_by), (&vec!["s".to_owned()], &Vec::new()));
    assert_eq!(desk.correlation.next_mute(&desk.silences, Wall(0)), Some(100));
    desk.now = 100;
    desk.crash();
    let said = desk.step(Vec::new(), 0);
    assert_eq!(brief(&said), [(AlertStatus::Updated, 1, 0)]);
    assert!(said[0].silenced_by.is_empty(), "it is told of when the silence is over");
    assert!(desk.step(Vec::new(), 0).is_empty());
}

#[test]
fn the_alert_of_a_parent_run_mutes_those_of_its_children_only() {
    let mut desk = Desk::new();
    let parent = desk.step(vec![entry(member("1", "parent", "a", Severity::High, 0))], 0).remove(0);
    let child =
        Member { ancestors: vec!["mid".into(), "parent".into()], ..member("2", "child", "b", Severity::High, 0) };
    let said = desk.step(vec![entry(child)], 0);
    assert_eq!(said[0].inhibited_by, std::slice::from_ref(&parent.alert_id));
    let stranger = desk.step(vec![entry(member("3", "other", "b", Severity::Critical, SECOND))], SECOND);
    assert!(stranger[0].inhibited_by.is_empty(), "somebody else's run is in it now");
    let child = Member { ancestors: vec!["parent".into()], ..member("4", "child", "c", Severity::High, 0) };
    assert_eq!(desk.step(vec![entry(child)], SECOND)[0].inhibited_by, std::slice::from_ref(&parent.alert_id));
    desk.crash();
    let said = desk.step(vec![down("1", MINUTE)], 6 * MINUTE);
    let of = |id: &str| said.iter().find(|a| a.correlation_key == id).unwrap();
    assert_eq!(of("AGENT:a").status, AlertStatus::Resolved);
    assert_eq!((of("AGENT:c").status, of("AGENT:c").inhibited_by.len()), (AlertStatus::Updated, 0));
}

#[test]
fn who_watches_may_escalate_an_open_alert() {
    let mut desk = Desk::new();
    let open = desk.step(vec![entry(member("1", "r", "a", Severity::Medium, 0))], 0).remove(0);
    let view = View { now: Wall(0), silences: &[], keep_firing_for: 0, told: &mut |_, _, _| true };
    let (before, after) = desk.correlation.escalate(T, &open.alert_id, "tried thrice", &view).unwrap();
    assert_eq!((before, after.severity, after.revision), (Severity::Medium, Severity::Critical, 2));
    assert!(desk.correlation.escalate("other", &open.alert_id, "", &view).is_none(), "of another tenant");
}
