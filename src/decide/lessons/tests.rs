//! Lessons by example, and the state machine against every step.

use super::*;

const HOUR: Micros = 3_600 * SECOND;

fn amount(text: &str) -> Amount {
    text.parse().unwrap()
}

fn near(band: &'static str, value: &str) -> Learned {
    Near {
        tenant: "acme",
        metric: "run_tokens",
        scope: ("RUN", "r"),
        run: Some("r"),
        limit: ("p", "l"),
        band,
        value: amount(value),
        max: amount("200000"),
        window: (0, HOUR),
        is_synthetic: false,
    }
    .learned()
}

fn group(band: &str) -> Group {
    Group { tenant: "acme".into(), kind: LessonType::NearThreshold, of: "run_tokens".into(), band: band.into() }
}

fn through_a_crash(mut lessons: Lessons) -> Lessons {
    lessons.mark_all_dirty();
    let mut back = Lessons::default();
    for (_, lesson) in lessons.take_changes() {
        back.restore(serde_json::from_str(&serde_json::to_string(lesson.unwrap()).unwrap()).unwrap());
    }
    for (group, seen) in lessons.take_groups() {
        back.restore_group(group, seen.unwrap());
    }
    back
}

#[test]
fn bands_are_exact_at_their_edges() {
    let of = |value: &str| band(amount(value), amount("200"));
    assert_eq!([of("169.999999999"), of("170"), of("179.999999999")], [None, Some("85-90"), Some("85-90")]);
    assert_eq!([of("180"), of("189.999999999"), of("190")], [Some("90-95"), Some("90-95"), Some("95-100")]);
    assert_eq!([of("199.999999999"), of("200"), of("0")], [Some("95-100"), None, None], "from 100 on it is a BREACH");
    assert_eq!(band(Amount(i128::MAX / 10 * 9), Amount(i128::MAX)), Some("90-95"), "also where products do not fit");
}

#[test]
fn a_near_threshold_has_the_pattern_of_the_contract() {
    let learned = near("90-95", "187000");
    let expected = json!({
        "metric": "run_tokens", "band": "90-95", "limit_id": "l", "utilization_percent": 93.5, "current_value": 187_000,
        "threshold_value": 200_000,
    });
    assert_eq!(learned.pattern, expected);
    assert_ne!(learned.source_event_id, near("95-100", "191000").source_event_id, "escalation stays visible");
}

#[test]
fn a_group_is_due_once_in_a_rolling_day_also_after_a_crash() {
    let mut lessons = Lessons::default();
    assert!(lessons.is_due(group("85-90"), 0));
    assert!(!lessons.is_due(group("85-90"), 24 * HOUR - 1));
    assert!(lessons.is_due(group("90-95"), 1), "another band is another group");
    lessons = through_a_crash(lessons);
    assert_eq!(lessons.seen(&group("85-90")), Some(&Seen { at: 0, repeats: 1 }));
    assert!(lessons.is_due(group("85-90"), 24 * HOUR));
    assert!(!lessons.is_due(group("85-90"), 23 * HOUR), "what comes late teaches nothing new");
    lessons.expire("acme", 100 * HOUR);
    assert!(lessons.seen(&group("85-90")).is_none());
}

#[test]
fn one_event_teaches_one_lesson_of_a_type() {
    let mut lessons = Lessons::default();
    assert!(lessons.record(near("85-90", "171000"), Wall(5)).is_some());
    lessons = through_a_crash(lessons);
    assert_eq!(lessons.record(near("85-90", "172000"), Wall(6)), None);
    assert_eq!(lessons.take_failed(), [0; 3], "that is no failure");
}

type Step = fn(&mut Lessons, &str) -> Result<Lesson, NotChanged>;

#[test]
fn every_step_but_those_of_the_rule_is_refused() {
    let (now, until) = (Wall(10), 20);
    let fresh = || {
        let mut lessons = Lessons::default();
        let id = lessons.record(near("85-90", "171000"), Wall(5)).unwrap().id;
        (lessons, id)
    };
    let steps: [(&str, Step); 4] = [
        ("convert", |l, id| l.convert("acme", id, "proposal", Wall(10))),
        ("defer", |l, id| l.defer("acme", id, 20, Wall(10))),
        ("dismiss", |l, id| l.dismiss("acme", id, "user:ada", "known", Wall(10))),
        ("reactivate", |l, id| l.reactivate("acme", id)),
    ];
    let mut allowed = Vec::new();
    for (first, one) in &steps {
        for (second, two) in &steps {
            let (mut lessons, id) = fresh();
            if one(&mut lessons, &id).is_ok() && two(&mut lessons, &id).is_ok() {
                allowed.push(format!("{first} {second}"));
            }
        }
    }
    assert_eq!(allowed, ["defer reactivate"], "converted and dismissed are for good");
    let (mut lessons, id) = fresh();
    assert_eq!(lessons.reactivate("acme", &id).unwrap_err(), NotChanged::Illegal(LessonStatus::Pending));
    assert_eq!(lessons.defer("acme", &id, now.0, now).unwrap_err(), NotChanged::Past);
    assert_eq!(lessons.dismiss("other", &id, "x", "y", now).unwrap_err(), NotChanged::Missing);
    lessons.defer("acme", &id, until, now).unwrap();
    lessons = through_a_crash(lessons);
    assert_eq!(lessons.next_due(), Some(until));
    assert!(lessons.pass(Wall(until - 1)).is_empty());
    let back = lessons.pass(Wall(until));
    assert_eq!((back.len(), back[0].status, back[0].revision), (1, LessonStatus::Pending, 3));
    assert_eq!(lessons.next_due(), None);
}

#[test]
fn a_full_tenant_forgets_what_is_done_with_and_counts_what_it_cannot_keep() {
    let mut lessons = Lessons::default();
    let learned = |n: usize| Learned { source_event_id: format!("e{n}"), ..near("85-90", "171000") };
    let first = lessons.record(learned(0), Wall(0)).unwrap().id;
    for n in 1..MOST {
        lessons.record(learned(n), Wall(1)).unwrap();
    }
    assert_eq!(lessons.record(learned(MOST), Wall(2)), None);
    assert_eq!(lessons.take_failed()[LessonType::NearThreshold as usize], 1);
    lessons.dismiss("acme", &first, "user:ada", "known", Wall(3)).unwrap();
    assert!(lessons.record(learned(MOST), Wall(4)).is_some());
    assert!(lessons.get("acme", &first).is_none() && lessons.len() == MOST);
    let other = Learned { tenant: "globex".into(), ..learned(0) };
    assert!(lessons.record(other, Wall(5)).is_some(), "another tenant has room");
}

#[test]
fn a_draft_carries_a_limit_from_the_data_and_the_reasoning() {
    let mut lessons = Lessons::default();
    let lesson = lessons.record(near("95-100", "196000"), Wall(0)).unwrap();
    let (policy, why) = draft(&lesson, Some(&Seen { at: 0, repeats: 37 }));
    assert_eq!(policy["limits"][0]["max"], json!(245_000), "196,000 stands at 80 % of it");
    assert_eq!((&policy["source"], &policy["enforcement_mode"]), (&json!("LEARNED"), &json!("AUDIT")));
    assert!(why.contains("37 more times within 24 hours") && why.contains("245000 instead of 200000"), "{why}");
    let parsed = crate::policy::parse("lesson", &policy.to_string());
    assert!(parsed.is_ok(), "{parsed:?}");
}
