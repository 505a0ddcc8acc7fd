use proptest::prelude::*;

use super::*;
use crate::clock::SECOND;
use crate::serve::panels::registry::Registry;

const MINUTE: Micros = 60 * SECOND;
const TERMS: Terms = Terms { started: 0, interval: 5 * MINUTE, renew: 0 };

fn panel(invariant: &str) -> Panel {
    let text = format!(
        "panels: [{{id: P, question: q, topic: t, query: panels/p.sql, endpoint: /p, columns: [a], capability: \
         {{id: c, status: OBSERVED}}, invariant: {{{invariant}}}}}]"
    );
    Registry::parse("p.yaml", &text).unwrap().get("P").unwrap().clone()
}

fn rows(rows: u64) -> Seen {
    Seen::Answer(Answer { rows, active: true, ..Answer::default() })
}

/// Looks at minutes 0, 5, 10 …; gives each event with the minute it came at.
fn run(panel: &Panel, terms: Terms, looks: &[Seen]) -> (Vec<(i64, Event)>, State) {
    let mut state = State::new(0);
    let mut events = Vec::new();
    for (n, seen) in (0..).zip(looks) {
        let came = state.judge(panel, terms, n * 5 * MINUTE, seen, &Open::new());
        events.extend(came.into_iter().map(|event| (n * 5, event)));
    }
    (events, state)
}

fn of(looks: &[(Seen, usize)]) -> Vec<Seen> {
    looks.iter().flat_map(|(seen, times)| std::iter::repeat_n(seen.clone(), *times)).collect()
}

#[test]
fn an_empty_panel_is_alerted_of_once_after_its_time_and_cleared_once() {
    let panel = panel("min_rows: 1, warmup: 15m, alert_after: 60m, alert_enabled: true");
    let looks = of(&[(rows(1), 4), (rows(0), 20), (rows(1), 3)]);
    let (events, state) = run(&panel, TERMS, &looks);
    let (kind, first_seen) = (AlertType::EmptyPanel, 20 * MINUTE);
    assert_eq!(
        events,
        [
            (85, Event::Unhealthy(kind)),
            (85, Event::Raise { kind, first_seen }),
            (120, Event::Recovered(kind)),
            (120, Event::Clear { kind, first_seen }),
        ]
    );
    assert_eq!((state.health, state.wrong(), state.last_result), (Health::Healthy, None, Some(130 * MINUTE)));
}

#[test]
fn what_is_over_before_its_time_is_never_told() {
    let panel = panel("min_rows: 1, alert_after: 60m, alert_enabled: true");
    // 60 minutes are not more than 60 minutes
    let looks = of(&[(rows(1), 4), (rows(0), 13), (rows(1), 1), (rows(0), 12)]);
    let (events, state) = run(&panel, TERMS, &looks);
    assert_eq!((events, state.health), (vec![], Health::Pending));
}

#[test]
fn a_panel_without_alerts_is_unhealthy_and_silent() {
    let panel = panel("min_rows: 1, alert_after: 10m, warmup: 0");
    let (events, state) = run(&panel, TERMS, &of(&[(rows(0), 10)]));
    assert_eq!(events, [(15, Event::Unhealthy(AlertType::EmptyPanel))]);
    assert_eq!(state.health, Health::Unhealthy);
}

#[test]
fn a_query_that_fails_is_critical_and_does_not_wait() {
    let panel = panel("min_rows: 1, warmup: 15m, alert_after: 60m, alert_enabled: true");
    let broken = Seen::Broken("no column a".into());
    let (events, state) = run(&panel, TERMS, &of(&[(rows(1), 5), (broken.clone(), 3)]));
    let (kind, first_seen) = (AlertType::FilterBreak, 25 * MINUTE);
    assert_eq!(events, [(25, Event::Unhealthy(kind)), (25, Event::Raise { kind, first_seen })]);
    assert_eq!((kind.severity(), state.error.as_deref(), state.rows), ("CRITICAL", Some("no column a"), None));
    let (events, state) = run(&panel, TERMS, &of(&[(broken, 4)]));
    assert_eq!((events, state.health), (vec![], Health::WarmingUp), "not within the warm-up");
}

#[test]
fn the_value_of_a_panel_that_always_gives_a_row_counts_and_null_is_too_low() {
    let panel = panel("min_value: {column: a, value: 1}, warmup: 0, alert_after: 0, alert_enabled: true");
    let value = |value| Seen::Answer(Answer { rows: 1, value, active: true, ..Answer::default() });
    for (given, healthy) in [(Some(1.0), true), (Some(0.0), false), (None, false), (Some(7.5), true)] {
        let (_, state) = run(&panel, TERMS, &of(&[(value(given), 2)]));
        assert_eq!(state.health == Health::Healthy, healthy, "{given:?}");
    }
}

#[test]
fn data_that_is_too_old_is_stale_since_it_became_so_and_no_data_is_not_stale() {
    let panel = panel("freshness: {column: a, within: 10m}, warmup: 0, alert_after: 10m, alert_enabled: true");
    let newest = |newest| Seen::Answer(Answer { rows: 1, newest, active: true, ..Answer::default() });
    let (events, _) = run(&panel, TERMS, &of(&[(newest(Some(3 * MINUTE)), 6)]));
    let (kind, first_seen) = (AlertType::StalePanel, 13 * MINUTE);
    assert_eq!(events, [(25, Event::Unhealthy(kind)), (25, Event::Raise { kind, first_seen })]);
    assert_eq!(run(&panel, TERMS, &of(&[(newest(None), 9)])).1.health, Health::Healthy);
}

#[test]
fn without_activity_nothing_is_asked_of_a_panel() {
    let panel = panel("min_rows: 1, while: SELECT true, warmup: 0, alert_after: 10m, alert_enabled: true");
    let quiet = Seen::Answer(Answer { active: false, ..Answer::default() });
    let (events, state) = run(&panel, TERMS, &of(&[(rows(0), 2), (quiet.clone(), 9)]));
    assert_eq!((events, state.health), (vec![], Health::Healthy));
    // and time without activity does not count
    assert_eq!(run(&panel, TERMS, &of(&[(quiet, 9), (rows(0), 3)])).0, []);
}

#[test]
fn what_the_tables_know_of_the_beginning_survives_a_restart() {
    let panel = panel("min_rows: 1, warmup: 15m, alert_after: 48h, alert_enabled: true");
    let since = -50 * 60 * MINUTE;
    let empty = Seen::Answer(Answer { active: true, empty_since: Some(since), ..Answer::default() });
    let (events, _) = run(&panel, TERMS, &of(&[(empty, 6)]));
    let kind = AlertType::EmptyPanel;
    assert_eq!(events, [(20, Event::Unhealthy(kind)), (20, Event::Raise { kind, first_seen: since })]);
}

#[test]
fn two_sidecars_that_look_at_about_the_same_times_name_the_same_episode() {
    let panel = panel("min_rows: 1, warmup: 0, alert_after: 10m, alert_enabled: true");
    let raised = |late: Micros| {
        let mut state = State::new(0);
        let looks = (0..9).flat_map(|n| state.judge(&panel, TERMS, n * 5 * MINUTE + late, &rows(0), &Open::new()));
        looks.into_iter().find(|event| matches!(event, Event::Raise { .. })).unwrap()
    };
    assert_eq!(raised(0), raised(17 * SECOND));
}

#[test]
fn a_panel_that_cannot_be_asked_keeps_its_state() {
    let panel = panel("min_rows: 1, warmup: 0, alert_after: 0, alert_enabled: true");
    let busy = Seen::Unasked("busy".into());
    let (events, state) = run(&panel, TERMS, &of(&[(rows(0), 2), (busy.clone(), 5), (rows(0), 2)]));
    assert_eq!(events.len(), 2, "raised once: {events:?}");
    assert_eq!(state.health, Health::Unhealthy);
    assert_eq!(run(&panel, TERMS, &of(&[(rows(1), 1), (busy, 1)])).1.health, Health::Unknown);
}

#[test]
fn an_alert_that_another_has_raised_is_not_raised_again_and_is_cleared() {
    let panel = panel("min_rows: 1, warmup: 0, alert_after: 0, alert_enabled: true");
    let (kind, at) = (AlertType::EmptyPanel, -3 * MINUTE);
    let open = Open::from([(kind, at)]);
    let mut state = State::new(0);
    let events = state.judge(&panel, TERMS, 5 * MINUTE, &rows(0), &open);
    assert_eq!(events, [Event::Unhealthy(kind)]);
    let events = state.judge(&panel, TERMS, 10 * MINUTE, &rows(1), &open);
    assert_eq!(events, [Event::Recovered(kind), Event::Clear { kind, first_seen: 5 * MINUTE }]);
    // its record stays open for some minutes: that is no reason to clear it again, or to keep silent about the next one
    assert_eq!(state.judge(&panel, TERMS, 15 * MINUTE, &rows(1), &open), []);
    let events = state.judge(&panel, TERMS, 20 * MINUTE, &rows(0), &open);
    assert_eq!(events, [Event::Unhealthy(kind), Event::Raise { kind, first_seen: 20 * MINUTE }]);
    // after a restart: found healthy, so what is open is cleared
    let mut fresh = State::new(0);
    assert_eq!(fresh.judge(&panel, TERMS, 0, &rows(1), &open), [Event::Clear { kind, first_seen: at }]);
}

#[test]
fn an_alert_that_lasts_is_renewed_before_it_ends_by_itself() {
    let panel = panel("min_rows: 1, warmup: 0, alert_after: 0, alert_enabled: true");
    let (events, _) = run(&panel, Terms { renew: 20 * MINUTE, ..TERMS }, &of(&[(rows(0), 10)]));
    let (kind, first_seen) = (AlertType::EmptyPanel, 0);
    let renewed: Vec<_> = events.into_iter().filter(|(_, event)| matches!(event, Event::Renew { .. })).collect();
    assert_eq!(
        renewed,
        [(20, Event::Renew { kind, first_seen, round: 1 }), (40, Event::Renew { kind, first_seen, round: 2 })]
    );
}

#[test]
fn turning_alerts_off_and_removing_a_panel_clear_what_is_up() {
    let on = panel("min_rows: 1, warmup: 0, alert_after: 0, alert_enabled: true");
    let off = panel("min_rows: 1, warmup: 0, alert_after: 0, alert_enabled: false");
    let clear = Event::Clear { kind: AlertType::EmptyPanel, first_seen: 0 };
    let (_, mut state) = run(&on, TERMS, &of(&[(rows(0), 2)]));
    assert_eq!(state.clone().end(), Some(clear));
    assert_eq!(state.judge(&off, TERMS, 10 * MINUTE, &rows(0), &Open::new()), [clear]);
    assert_eq!(state.end(), None);
}

/// What may be seen, one in three of them wrong.
fn seen() -> impl Strategy<Value = Seen> {
    let answer =
        |rows, newest, active| Seen::Answer(Answer { rows, newest: Some(newest), active, ..Answer::default() });
    prop_oneof![
        4 => (0..3_u64, 0..300 * MINUTE, any::<bool>()).prop_map(move |(rows, newest, active)| answer(rows, newest, active)),
        4 => Just(answer(2, Micros::MAX / 2, true)),
        3 => Just(answer(0, Micros::MAX / 2, true)),
        1 => Just(Seen::Broken("broken".into())),
        1 => Just(Seen::Unasked("busy".into())),
    ]
}

proptest! {
    #[test]
    fn never_within_the_warm_up_never_when_off_once_up_and_once_down(
        looks in proptest::collection::vec((seen(), 1..6_usize), 1..40),
        warmup in 0..60_i64, after in 0..60_i64, enabled: bool, started in 0..100_i64, added in 0..100_i64,
    ) {
        let panel = panel(&format!(
            "min_rows: 1, freshness: {{column: a, within: 30m}}, while: SELECT true, warmup: {warmup}m, alert_after: {after}m, \
             alert_enabled: {enabled}"
        ));
        let terms = Terms { started: started * MINUTE, ..TERMS };
        let (mut state, mut open) = (State::new(added * MINUTE), Open::new());
        let begin = started.max(added) * MINUTE;
        for (n, seen) in (0..).zip(of(&looks)) {
            let now = begin + n * 5 * MINUTE;
            let before = open.clone();
            let events = state.judge(&panel, terms, now, &seen, &open);
            for event in &events {
                match event {
                    Event::Raise { kind, first_seen } => {
                        prop_assert!(enabled, "alerts are off");
                        prop_assert!(now > begin + warmup * MINUTE, "within the warm-up");
                        prop_assert!(*first_seen <= now);
                        if *kind != AlertType::FilterBreak && after > 0 {
                            prop_assert!(now - first_seen > after * MINUTE, "before its time");
                        }
                        prop_assert!(open.insert(*kind, *first_seen).is_none(), "raised twice");
                    }
                    Event::Clear { kind, .. } => prop_assert!(open.remove(kind).is_some(), "cleared, and not up"),
                    Event::Renew { .. } => prop_assert!(false, "nothing is renewed here"),
                    Event::Unhealthy(_) | Event::Recovered(_) => {}
                }
            }
            prop_assert!(open.len() <= 1, "wrong in one way at a time");
            if matches!(seen, Seen::Unasked(_)) {
                prop_assert_eq!(&open, &before);
            } else if state.health == Health::Healthy {
                prop_assert!(open.is_empty(), "healthy, and an alert is up");
            }
            prop_assert_eq!(enabled && state.health == Health::Unhealthy, !open.is_empty());
        }
    }
}
