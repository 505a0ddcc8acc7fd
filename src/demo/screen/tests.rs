use super::*;

fn places() -> Places {
    Places {
        http: "http://127.0.0.1:8080".to_owned(),
        sql: "127.0.0.1:5433".to_owned(),
        otlp: "http://127.0.0.1:4318".to_owned(),
        brokers: "127.0.0.1:40001".to_owned(),
        note: None,
    }
}

fn line(sequence: u64, kind: Kind, who: &str, detail: &str) -> Line {
    Line { sequence, elapsed: 7_250_000, kind, who: who.to_owned(), detail: detail.to_owned() }
}

fn view() -> View {
    View {
        elapsed: 72_340_000,
        events_per_second: 91.6,
        runs_live: 27,
        runs_started: 140,
        runs_ended: 113,
        alerts_open: 2,
        decision_ms: Some((5.0, 20.0)),
        commit_ms: Some((60.0, f64::INFINITY)),
        counts: Counts {
            telemetry: 6_540,
            decoded: 6_530,
            dead_letters: 10,
            near: 4,
            breach: 3,
            resolved: 1,
            enforced: 2,
            shadow: 3,
            alerts_opened: 3,
            transactions: 700,
            ..Counts::default()
        },
        limits: vec![
            LimitRow {
                metric: "run_tokens".to_owned(),
                who: "acme-planner-loop-run-1".to_owned(),
                kind: Kind::Breach,
                mode: "BLOCK".to_owned(),
                value: 121_400.0,
                limit: 120_000.0,
                utilization: 1.0117,
            },
            LimitRow {
                metric: "run_cost_usd".to_owned(),
                who: "a-very-long-run-id-that-does-not-fit-the-column".to_owned(),
                kind: Kind::Near,
                mode: "BLOCK".to_owned(),
                value: 3.31,
                limit: 4.0,
                utilization: 0.8275,
            },
        ],
        lines: vec![
            line(1, Kind::Near, "acme-planner-loop-run-1", "run_tokens 97,600 of 120,000 (81 %) BLOCK"),
            line(2, Kind::Breach, "acme-planner-loop-run-1", "run_tokens 121,400 of 120,000 (101 %) BLOCK"),
            line(3, Kind::Intervention, "acme-planner-loop-run-1", "STOP ISSUED: run-token-ceiling"),
        ],
    }
}

#[test]
fn a_frame_is_exactly_this() {
    let frame = render(&view(), &places(), Style { width: 110, rows: 2, color: false });
    let expected = "\
runwarden demo · 1:12.3 · http://127.0.0.1:8080
traffic       92 events/s · 6540 in · 6530 decoded · 10 dead letters · 0 duplicates
runs          27 live · 140 started · 113 ended
decided        4 near · 3 breach · 1 resolved · 2 interventions · 3 shadow · 2 alerts open
latency   event → decision p50 ≤ 5 ms, p99 ≤ 20 ms · event → commit p50 ≤ 60 ms, p99 > 10 s · 700 transactions

limits near or breached
  BREACH   run_tokens             acme-planner-loop-run-1      ██████████  101 %  121,400 of 120,000 BLOCK
  NEAR     run_cost_usd           a-very-long-run-id-that-doe… ████████░░   83 %  3.31 of 4 BLOCK

what happened
   0:07.2 BREACH       acme-planner-loop-run-1      run_tokens 121,400 of 120,000 (101 %) BLOCK
   0:07.2 INTERVENTION acme-planner-loop-run-1      STOP ISSUED: run-token-ceiling
";
    assert_eq!(frame, expected);
}

#[test]
fn colours_change_nothing_but_the_colours() {
    let colored = render(&view(), &places(), Style::default());
    assert!(colored.contains("\u{1b}[31;1m  BREACH"));
    let mut plain = String::new();
    let mut rest = colored.as_str();
    while let Some(at) = rest.find('\u{1b}') {
        plain.push_str(&rest[..at]);
        rest = &rest[at + rest[at..].find('m').unwrap() + 1..];
    }
    plain.push_str(rest);
    assert_eq!(plain, render(&view(), &places(), Style { color: false, ..Style::default() }));
}

#[test]
fn no_line_is_wider_than_the_terminal() {
    let frame = render(&view(), &places(), Style { width: 40, rows: 12, color: false });
    assert!(frame.lines().all(|l| l.chars().count() <= 40), "{frame}");
}

#[test]
fn an_empty_view_is_a_quiet_one() {
    let frame = render(&View::default(), &places(), Style { color: false, ..Style::default() });
    assert!(frame.contains("none: everyone is within limits"));
    assert!(frame.contains("event → decision –"));
}

#[test]
fn a_log_gets_every_line_once_and_figures_every_five_seconds() {
    let mut written = Vec::new();
    let mut screen = Screen::new(&mut written, false, Style::default(), places());
    let mut now = view();
    now.elapsed = 4 * SECOND;
    screen.show(&now).unwrap();
    now.lines.push(line(4, Kind::DeadLetter, "runs.telemetry", "decode"));
    now.lines.remove(0);
    now.elapsed = 5 * SECOND;
    screen.show(&now).unwrap();
    now.elapsed = 9 * SECOND;
    screen.show(&now).unwrap();
    let log = String::from_utf8(written).unwrap();
    assert!(!log.contains('\u{1b}'), "no escape sequences outside a terminal");
    let kinds: Vec<&str> = log.lines().map(|l| l[8..].split("  ").next().unwrap().trim()).collect();
    assert_eq!(kinds.len(), 5, "{log}");
    assert_eq!(log.matches("STOP ISSUED").count(), 1);
    assert_eq!(log.matches(" DEAD LETTER ").count(), 1);
    assert_eq!(log.matches(" figures ").count(), 1);
}

#[test]
fn the_cursor_is_given_back_and_the_end_says_how_to_read_the_topics() {
    let mut written = Vec::new();
    let mut screen = Screen::new(&mut written, true, Style::default(), places());
    screen.open().unwrap();
    screen.show(&view()).unwrap();
    screen.close(&view()).unwrap();
    let text = String::from_utf8(written).unwrap();
    assert!(text.find("\u{1b}[?25l").unwrap() < text.find("\u{1b}[?25h").unwrap());
    assert!(text.contains("kcat -b 127.0.0.1:40001 -C -o beginning -u -t runwarden.signals"));
    assert!(text.contains("  NEAR / BREACH / RESOLVED signals               4 / 3 / 1\n"));
}
