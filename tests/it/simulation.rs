//! `runwarden simulate` as a report: what orders would have held back, which policies matched nothing, how two sets differ.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::support::{real_hour, root};

fn simulate(telemetry: &Path, policies: &Path, against: Option<&Path>, out: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_runwarden"));
    command.current_dir(root()).arg("simulate").arg("--policies").arg(policies).arg("--telemetry").arg(telemetry);
    if let Some(against) = against {
        command.arg("--against").arg(against);
    }
    let output = command.arg("--out").arg(out).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

const POLICIES: &str = "
id: run-budget
name: Budget of a run
enforcement_mode: BLOCK
limits:
  - {id: tokens, limit_type: TOKENS_PER_RUN, metric: run_tokens, max: 100, on_breach: STOP}
---
id: agent-pace
name: Pace of an agent
limits:
  - {id: minute, limit_type: TOKENS_PER_MINUTE, metric: agent_tokens_1m, max: 150, on_breach: PAUSE}
---
id: nobody
name: Of an agent that is not there
scope: {who: AGENT, ids: [ghost]}
limits:
  - {id: minute, limit_type: TOKENS_PER_MINUTE, metric: agent_tokens_1m, max: 1}
";

/// Steps of one agent: run `a` passes 100 tokens at its third step and goes on; the agent passes 150 in the first minute.
fn events() -> String {
    let step = |at: u32, run: &str, tokens: u32, cost: Option<f64>| {
        let time = format!("2026-01-05T00:{:02}:{:02}Z", at / 60, at % 60);
        let mut event = json!({"event_time": time, "event_type": "run.step", "tenant_id": "acme", "run_id": run,
            "agent_id": "x", "input_tokens": tokens});
        if let Some(cost) = cost {
            event["cost_usd"] = cost.into();
        }
        event.to_string()
    };
    let events = [
        step(0, "a", 50, Some(0.5)),
        step(10, "a", 35, Some(0.5)),
        step(20, "a", 20, Some(0.5)),
        // after the stop of the run, 10 s after NEAR
        step(30, "a", 30, Some(0.25)),
        // this one passes the agent's 150; what follows in its minute is under both orders, or the pause alone
        step(40, "b", 40, None),
        step(50, "a", 5, None),
        step(55, "b", 7, Some(0.125)),
        // the next minute: the pause is over, the stop is not
        step(65, "a", 3, Some(1.0)),
        step(66, "b", 3, Some(1.0)),
    ];
    events.join("\n")
}

#[test]
fn a_report_says_what_orders_would_have_held_back_and_which_policies_matched_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("p")).unwrap();
    fs::write(at("p/p.yaml"), POLICIES).unwrap();
    fs::write(at("t.jsonl"), events()).unwrap();
    let output = simulate(&at("t.jsonl"), &at("p"), None, &at("out"));
    let summary = json_of(&at("out/summary.json"));
    assert_eq!(summary["held_runs"], 1);
    let enforced = json!({"events": 3, "tokens": 38, "cost_usd": 1.25, "cost_unknown": 1});
    assert_eq!(summary["held_back"], enforced, "of run a, all that came after its third step");
    assert_eq!(summary["policies"]["run-budget"]["held_back"], enforced);
    let shadow = json!({"events": 2, "tokens": 12, "cost_usd": 0.125, "cost_unknown": 1});
    assert_eq!(summary["shadow_held_back"], shadow, "of the agent, the rest of the minute");
    assert_eq!(summary["policies"]["agent-pace"]["shadow_held_back"], shadow);
    let lead = json!({"levels": 1, "min": 10.0, "median": 10.0, "max": 10.0});
    assert_eq!(summary["policies"]["run-budget"]["lead_seconds"], lead);
    assert_eq!(summary["unmatched_policies"], json!(["nobody"]));
    let orders = summary["orders"].as_array().unwrap();
    let brief = |o: &Value| format!("{} {} {} {} {}", o["mode"], o["type"], o["target"]["id"], o["at"], o["until"]);
    assert_eq!(
        orders.iter().map(brief).collect::<Vec<_>>(),
        [
            r#""enforced" "STOP" "a" "2026-01-05T00:00:20.000000Z" null"#,
            r#""shadow" "PAUSE" "x" "2026-01-05T00:00:40.000000Z" "2026-01-05T00:01:00.000000Z""#,
        ]
    );
    let table = String::from_utf8_lossy(&output.stdout);
    for line in [
        "runs held         1",
        "held back         3 steps, 38 tokens, 1.25 USD (1 steps of unknown cost)",
        "matched nothing   nobody",
    ] {
        assert!(table.contains(line), "{line:?} is missing:\n{table}");
    }
}

#[test]
fn two_sets_are_compared_by_whom_they_hold_and_when() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for (set, max) in [("one", "max: 100"), ("two", "max: 60")] {
        fs::create_dir(at(set)).unwrap();
        fs::write(at(set).join("p.yaml"), POLICIES.replace("max: 100", max)).unwrap();
    }
    let enforced =
        POLICIES.replace("max: 100", "max: 60").replace("name: Pace of an agent", "name: P\nenforcement_mode: BLOCK");
    fs::write(at("two/p.yaml"), enforced).unwrap();
    fs::write(at("t.jsonl"), events()).unwrap();
    let output = simulate(&at("t.jsonl"), &at("one"), Some(&at("two")), &at("out"));
    let diff = json_of(&at("out/diff.json"));
    let orders = &diff["orders"];
    assert_eq!((&orders["only_in_policies"], &orders["same"]), (&json!([]), &json!(0)));
    assert_eq!(orders["only_in_against"][0]["target"], json!({"kind": "AGENT", "id": "x"}));
    assert_eq!(orders["moved"][0]["in_against"]["target"], json!({"kind": "RUN", "id": "a"}));
    assert_eq!(orders["moved"][0]["later_seconds"], -10.0);
    // the stop came a step earlier, and the pause now holds back a step of b that no stop does
    assert_eq!(diff["against"]["held_back"]["tokens"], 20 + 38 + 7);
    let table = String::from_utf8_lossy(&output.stdout);
    assert!(table.contains("the second: STOP 10.0 s earlier"), "{table}");
}

/// What a plain fold over the events says of the manual's two limits.
#[derive(Debug, Default, PartialEq)]
struct Folded {
    stopped_runs: u64,
    stopped_tokens: i64,
    stopped_steps: u64,
    pauses: u64,
    paused_tokens: i64,
}

fn fold(lines: &[String], run_max: i64, agent_max: i64) -> Folded {
    let mut folded = Folded::default();
    // tokens so far, and the time of the row that crossed
    let mut runs: BTreeMap<String, (i64, Option<i64>)> = BTreeMap::new();
    let mut agents: BTreeMap<(String, i64), (i64, Option<i64>)> = BTreeMap::new();
    for line in lines {
        let event: Value = serde_json::from_str(line).unwrap();
        if event["event_type"] != "run.step" {
            continue;
        }
        let text = |name: &str| event[name].as_str().unwrap().to_owned();
        let time = runwarden::telemetry::parse_time(&text("event_time")).unwrap();
        let tokens = event["input_tokens"].as_i64().unwrap() + event["output_tokens"].as_i64().unwrap();
        let pass = |(sum, crossed): &mut (i64, Option<i64>), max: i64| {
            let after = crossed.is_some_and(|at| time > at);
            *sum += tokens;
            let now = *sum >= max && crossed.is_none();
            if now {
                *crossed = Some(time);
            }
            (now, after)
        };
        let (now, after) = pass(runs.entry(text("tenant_id") + "/" + &text("run_id")).or_default(), run_max);
        folded.stopped_runs += u64::from(now);
        if after {
            folded.stopped_tokens += tokens;
            folded.stopped_steps += 1;
        }
        let minute = time.div_euclid(60_000_000);
        let agent = text("tenant_id") + "/" + &text("agent_id");
        let (now, after) = pass(agents.entry((agent, minute)).or_default(), agent_max);
        folded.pauses += u64::from(now);
        folded.paused_tokens += if after { tokens } else { 0 };
    }
    folded
}

#[test]
fn the_manuals_report_on_the_real_hour_is_what_is_said_and_what_a_plain_fold_finds() {
    let Some(lines) = real_hour() else { return };
    let dir = tempfile::tempdir().unwrap();
    let telemetry = dir.path().join("hour.jsonl");
    fs::write(&telemetry, lines.join("\n")).unwrap();
    let examples = root().join("docs/examples");
    let (lenient, strict) = (examples.join("lenient"), examples.join("strict"));
    let output = simulate(&telemetry, &lenient, Some(&strict), dir.path());
    let said = String::from_utf8(output.stdout).unwrap();
    let manual = fs::read_to_string(root().join("docs/simulation.md")).unwrap();
    for line in said.lines() {
        assert!(manual.contains(line), "docs/simulation.md does not show {line:?} of\n{said}");
    }
    let (summary, diff) = (json_of(&dir.path().join("summary.json")), json_of(&dir.path().join("diff.json")));
    let folded = fold(lines, 60_000, 60_000);
    let of = |policy: &str, what: &str, field: &str| summary["policies"][policy][what][field].as_i64().unwrap();
    let found = Folded {
        stopped_runs: summary["held_runs"].as_u64().unwrap(),
        stopped_tokens: of("run-budget", "held_back", "tokens"),
        stopped_steps: u64::try_from(of("run-budget", "held_back", "events")).unwrap(),
        pauses: summary["policies"]["agent-pace"]["shadow"].as_u64().unwrap(),
        paused_tokens: of("agent-pace", "shadow_held_back", "tokens"),
    };
    assert_eq!(found, folded);
    let strict = fold(lines, 40_000, 60_000);
    assert_eq!(diff["against"]["held_runs"], strict.stopped_runs);
    assert_eq!(diff["against"]["interventions"]["PAUSE"], strict.pauses);
    assert!(strict.stopped_tokens <= diff["against"]["held_back"]["tokens"].as_i64().unwrap());
}
