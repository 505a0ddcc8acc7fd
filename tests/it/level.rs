//! The policy level in the core (L1): every row of the decision matrix, every boundary, ages, alerts, the level of all, and that
//! neither the cut of the batches nor a crash changes anything.

use std::sync::Arc;

use runwarden::cli::load;
use runwarden::kafka::core::{Input, Topic};
use runwarden::pipeline::terms::{Texts, Tuning};
use serde_json::{Value, json};

use crate::support::desk::{DAY, Desk, Said, event, on, step_of, tuning};

/// A sample of a tenant at `at` seconds after [`DAY`].
pub fn sample_of(tenant: &str, at: i64, fields: Value) -> Value {
    let mut sample = event(at, "governance.sample", fields);
    sample["tenant_id"] = tenant.into();
    sample
}

pub fn sample(at: i64, fields: Value) -> Value {
    sample_of("acme", at, fields)
}

/// The level records of a tenant.
pub fn levels(said: &[Said], tenant: &str) -> Vec<Value> {
    on(said, Topic::PolicyLevel).into_iter().filter(|r| r["tenant_id"] == tenant && r.get("policy").is_some()).collect()
}

/// Gives the core the commands it sent to itself, as the topic would; everything said, those of the commands' steps included.
pub fn loop_back(desk: &mut Desk, now: i64, mut said: Vec<Said>) -> Vec<Said> {
    let commands: Vec<Vec<u8>> =
        said.iter().filter(|s| s.0.topic == Topic::Commands).map(|s| s.0.payload.clone().unwrap()).collect();
    if !commands.is_empty() {
        said.extend(desk.step(now, Input::Commands, "*", &commands));
    }
    said
}

fn healthy() -> Value {
    json!({"trust_locked": false, "integrity_score": 97.5, "consensus_pct": 95.0, "reputation_score": 85.0,
        "forecast_risk": "low", "recent_responses": 2})
}

fn with(field: &str, value: impl Into<Value>) -> Value {
    let mut fields = healthy();
    fields[field] = value.into();
    fields
}

fn judged(fields: Value) -> Value {
    let mut desk = Desk::new("");
    levels(&desk.telemetry(0, &[sample(0, fields)]), "acme").remove(0)
}

fn level_of(fields: Value) -> String {
    judged(fields)["policy"].as_str().unwrap().to_owned()
}

#[test]
fn test_green_path() {
    let record = judged(healthy());
    assert_eq!((&record["policy"], &record["reasons"], &record["missing"]), (&json!("GREEN"), &json!([]), &json!([])));
    assert_eq!(record["inputs"], healthy());
    let thresholds = json!({"red_integrity": 90.0, "red_consensus": 85.0, "red_responses": 8, "yellow_integrity": 95.0,
        "yellow_consensus": 90.0, "yellow_reputation": 80.0, "yellow_responses": 4});
    assert_eq!(record["thresholds"], thresholds);
    assert_eq!(record["evaluated_at"], "2026-01-05T00:00:00.000000Z");
    assert_eq!((&record["tenant_id"], &record["revision"]), (&json!("acme"), &json!(1)));
}

#[test]
fn test_yellow_path_moderate_risk() {
    let all = json!({"integrity_score": 92, "consensus_pct": 88, "forecast_risk": "medium", "recent_responses": 5});
    let record = judged(all);
    assert_eq!(record["policy"], "YELLOW");
    assert_eq!(record["reasons"].as_array().unwrap().len(), 4, "{record}");
    assert_eq!(record["missing"], json!(["trust_locked", "reputation_score"]));
    for (field, value) in [
        ("integrity_score", json!(92)),
        ("consensus_pct", json!(88)),
        ("reputation_score", json!(79)),
        ("forecast_risk", json!("medium")),
        ("recent_responses", json!(5)),
    ] {
        let record = judged(with(field, value));
        assert_eq!(record["policy"], "YELLOW", "{field}");
        let reasons = record["reasons"].as_array().unwrap();
        assert!(
            reasons.len() == 1 && reasons[0].as_str().unwrap().starts_with(&format!("YELLOW: {field}")),
            "{record}"
        );
    }
}

#[test]
fn test_red_path_critical_conditions() {
    for (field, value) in [
        ("trust_locked", json!(true)),
        ("integrity_score", json!(85)),
        ("consensus_pct", json!(80)),
        ("forecast_risk", json!("high")),
        ("recent_responses", json!(8)),
    ] {
        let record = judged(with(field, value));
        assert_eq!((&record["policy"], record["reasons"].as_array().unwrap().len()), (&json!("RED"), 1), "{record}");
    }
    let both = judged(json!({"trust_locked": true, "reputation_score": 10, "forecast_risk": "medium"}));
    assert_eq!(both["policy"], "RED", "RED overrides YELLOW");
    let reasons: Vec<&str> = both["reasons"].as_array().unwrap().iter().map(|r| r.as_str().unwrap()).collect();
    assert_eq!(
        reasons,
        ["RED: trust is locked", "YELLOW: reputation_score 10.0 is below 80.0", "YELLOW: forecast_risk is medium"]
    );
}

#[test]
fn every_boundary_is_on_the_side_that_the_matrix_says() {
    for (field, value, level) in [
        ("integrity_score", json!(89.999), "RED"),
        ("integrity_score", json!(90), "YELLOW"),
        ("integrity_score", json!(94.999), "YELLOW"),
        ("integrity_score", json!(95), "GREEN"),
        ("consensus_pct", json!(84.999), "RED"),
        ("consensus_pct", json!(85), "YELLOW"),
        ("consensus_pct", json!(89.999), "YELLOW"),
        ("consensus_pct", json!(90), "GREEN"),
        ("reputation_score", json!(0), "YELLOW"),
        ("reputation_score", json!(79.999), "YELLOW"),
        ("reputation_score", json!(80), "GREEN"),
        ("recent_responses", json!(3), "GREEN"),
        ("recent_responses", json!(4), "YELLOW"),
        ("recent_responses", json!(7), "YELLOW"),
        ("recent_responses", json!(8), "RED"),
        ("forecast_risk", json!("low"), "GREEN"),
        ("forecast_risk", json!("medium"), "YELLOW"),
        ("forecast_risk", json!("HIGH"), "RED"),
        ("trust_locked", json!(false), "GREEN"),
        ("trust_locked", json!(true), "RED"),
    ] {
        assert_eq!(level_of(with(field, value.clone())), level, "{field} {value}");
    }
}

#[test]
fn thresholds_are_configuration_and_a_set_carries_them() {
    let text = "[level]\nred-integrity = 50.5\nyellow-integrity = 60\n";
    let config = runwarden::config::Config::from_toml(text, "c.toml", []).unwrap();
    let tuned = load::tuning(&config);
    let carried = load::defaults().deciding(&tuned.decisive());
    assert_eq!(carried.leveling, tuned.leveling);
    let mut desk = Desk::tuned("", Tuning { leveling: carried.leveling, ..tuning() });
    let record = levels(&desk.telemetry(0, &[sample(0, with("integrity_score", 60))]), "acme").remove(0);
    assert_eq!((&record["policy"], &record["thresholds"]["red_integrity"]), (&json!("GREEN"), &json!(50.5)));
    for wrong in ["red-integrity = 101", "red-integrity = 1.2345", "yellow-consensus = 10", "yellow-responses = 9"] {
        let refused = runwarden::config::Config::from_toml(&format!("[level]\n{wrong}\n"), "c.toml", []);
        assert!(refused.is_err(), "{wrong}");
    }
}

#[test]
fn the_rule_is_sql_and_one_that_does_not_hold_is_refused_or_unknown() {
    let under = |rule: &str| {
        let texts = Texts { level: ("level.sql".into(), rule.into()), ..Texts::demo() };
        load::build(&Texts { policies: Vec::new(), ..texts }, tuning())
    };
    assert!(under("SELECT 'GREEN' AS level FROM inputs").is_err(), "no reasons");
    assert!(under("SELECT nothing AS level, '' AS reasons FROM inputs").is_err());
    let mut rule = runwarden::decide::level::prepare("SELECT 'MAUVE' AS level, '' AS reasons FROM inputs").unwrap();
    let inputs = runwarden::decide::records::LevelInputs::default();
    let (level, reasons) = runwarden::decide::level::judge(&mut rule, &inputs, 0, &Default::default());
    assert_eq!(level.as_str(), "UNKNOWN");
    assert!(reasons[0].contains("MAUVE is no level"), "{reasons:?}");
}

#[test]
fn each_input_keeps_its_latest_value_by_event_time() {
    let mut desk = Desk::new("");
    desk.telemetry(0, &[sample(100, json!({"integrity_score": 80}))]);
    let said = desk.telemetry(1, &[sample(50, json!({"integrity_score": 99, "consensus_pct": 88}))]);
    let record = levels(&said, "acme").remove(0);
    assert_eq!((&record["policy"], &record["inputs"]["integrity_score"]), (&json!("RED"), &json!(80.0)));
    assert_eq!(record["inputs"]["consensus_pct"], 88.0);
    let said = desk.telemetry(2, &[sample(101, json!({"integrity_score": 99}))]);
    assert_eq!(levels(&said, "acme")[0]["policy"], "YELLOW");
    let said = desk.telemetry(3, &[sample(102, json!({"integrity_score": 99}))]);
    assert!(levels(&said, "acme").is_empty(), "nothing differs from the last record");
}

#[test]
fn an_input_that_is_too_old_is_missing_and_without_any_the_level_is_unknown() {
    let hour = 3_600;
    let mut desk = Desk::new("");
    desk.telemetry(0, &[sample(0, json!({"integrity_score": 80})), sample(hour, json!({"consensus_pct": 95}))]);
    let said = desk.telemetry(24 * hour, &[step_of(24 * hour, "r", 1)]);
    assert!(levels(&said, "acme").is_empty(), "exactly as old as it may be");
    let said = desk.telemetry(24 * hour + 1, &[step_of(24 * hour + 1, "r", 1)]);
    let record = levels(&said, "acme").remove(0);
    assert_eq!(record["policy"], "GREEN", "the old score counts no longer");
    assert_eq!(record["missing"].as_array().unwrap().len(), 5);
    desk.crash();
    // in silence its clock idles on
    desk.at_end = true;
    desk.pass(24 * hour + 2);
    let due = desk.core.deadline().unwrap().0 / 1_000_000 - DAY;
    assert!(due <= 25 * hour + 3, "the process is woken for it: {due}");
    let said = desk.pass(25 * hour + 10);
    let record = levels(&said, "acme").remove(0);
    assert_eq!((&record["policy"], record["missing"].as_array().unwrap().len()), (&json!("UNKNOWN"), 6));
    let alerts = on(&said, Topic::Alerts);
    assert!(alerts.iter().any(|a| a["severity"] == "MEDIUM" && a["title"].as_str().unwrap().contains("UNKNOWN")));
}

#[test]
fn a_sample_that_says_nothing_and_one_that_is_made_up() {
    assert_eq!(level_of(json!({})), "UNKNOWN");
    let mut desk = Desk::new("");
    let said = desk.telemetry(0, &[sample(0, json!({"trust_locked": true, "is_synthetic": true}))]);
    assert!(levels(&said, "acme").is_empty());
}

#[test]
fn a_change_of_level_is_an_alert_that_is_up_until_green() {
    let mut desk = Desk::new("");
    let brief = |said: &[Said]| -> Vec<String> {
        let one = |a: &Value| format!("{} {}", a["status"].as_str().unwrap(), a["severity"].as_str().unwrap());
        on(said, Topic::Alerts).iter().map(one).collect()
    };
    assert!(brief(&desk.telemetry(0, &[sample(0, healthy())])).is_empty());
    let said = desk.telemetry(1, &[sample(1, with("consensus_pct", 88))]);
    assert_eq!(brief(&said), ["OPEN MEDIUM"]);
    assert_eq!(on(&said, Topic::Alerts)[0]["sources"], json!(["level"]));
    assert_eq!(brief(&desk.telemetry(2, &[sample(2, with("trust_locked", true))])), ["UPDATED CRITICAL"]);
    assert!(brief(&desk.telemetry(900, &[step_of(900, "r", 1)])).is_empty(), "the level is up");
    desk.crash();
    let mut said = desk.telemetry(901, &[sample(901, healthy())]);
    said.extend(desk.telemetry(1_800, &[step_of(1_800, "r", 1)]));
    assert!(brief(&said).iter().any(|a| a.starts_with("RESOLVED")), "{:?}", brief(&said));
}

#[test]
fn the_level_of_all_is_that_of_the_worst_tenant_or_of_samples_of_all() {
    let mut desk = Desk::new("");
    let said = desk.telemetry(0, &[sample_of("a", 0, healthy()), sample_of("b", 0, json!({}))]);
    let said = loop_back(&mut desk, 0, said);
    let last = levels(&said, "*").pop().unwrap();
    assert_eq!(last["policy"], "UNKNOWN", "GREEN does not hide what is not known");
    let said = desk.telemetry(1, &[sample_of("c", 1, with("consensus_pct", 88))]);
    let said = loop_back(&mut desk, 1, said);
    assert_eq!(levels(&said, "*")[0]["policy"], "YELLOW");
    let said = desk.telemetry(2, &[sample_of("a", 2, with("integrity_score", 10))]);
    let said = loop_back(&mut desk, 2, said);
    let worst = levels(&said, "*").remove(0);
    assert_eq!(worst["policy"], "RED");
    assert_eq!(worst["reasons"], json!(["a: RED: integrity_score 10.0 is below 90.0"]));
    desk.crash();
    let said = desk.telemetry(3, &[sample_of("*", 3, healthy())]);
    assert_eq!(levels(&said, "*")[0]["policy"], "GREEN", "samples of all go before");
    let said = desk.telemetry(4, &[sample_of("b", 4, with("trust_locked", true))]);
    let said = loop_back(&mut desk, 4, said);
    assert!(levels(&said, "*").is_empty());
    let key = said.iter().find(|s| s.0.topic == Topic::PolicyLevel).unwrap().0.key.clone();
    assert_eq!(key, b"b");
}

#[test]
fn a_report_is_signed_derived_from_what_it_says_and_counts_once() {
    let mut desk = Desk::new("");
    let said = desk.telemetry(0, &[sample(0, with("trust_locked", true))]);
    let command = said.iter().find(|s| s.0.topic == Topic::Commands).unwrap();
    assert_eq!(command.0.key, b"*");
    let value = command.value();
    assert_eq!((&value["type"], &value["principal"]), (&json!("level.report"), &json!("system:core")));
    let payload = command.0.payload.clone().unwrap();
    let again = Desk::new("").telemetry(0, &[sample(0, with("trust_locked", true))]);
    let again = again.iter().find(|s| s.0.topic == Topic::Commands).unwrap().0.payload.clone();
    assert_eq!(again.as_ref(), Some(&payload), "a replay sends the same");
    let first = desk.step(1, Input::Commands, "*", std::slice::from_ref(&payload));
    assert_eq!(
        (on(&first, Topic::CommandResults)[0]["status"].as_str(), levels(&first, "*").len()),
        (Some("ACCEPTED"), 1)
    );
    let second = desk.step(2, Input::Commands, "*", &[payload]);
    assert!(levels(&second, "*").is_empty() && on(&second, Topic::Audit).is_empty(), "it counts once");
    // who has no right to report is refused
    let mut forged = value.clone();
    forged["body"]["level"]["policy"] = "GREEN".into();
    let said = desk.step(3, Input::Commands, "*", &[forged.to_string().into_bytes()]);
    assert_eq!(on(&said, Topic::CommandResults)[0]["code"], "authority");
}

#[test]
fn without_a_key_nothing_is_reported_and_the_digest_does_not_depend_on_the_key() {
    let mut desk = Desk::tuned("", Tuning { keys: Arc::default(), ..tuning() });
    let said = desk.telemetry(0, &[sample(0, with("trust_locked", true))]);
    assert!(said.iter().all(|s| s.0.topic != Topic::Commands) && levels(&said, "acme").len() == 1);
}

/// A stream of two tenants' samples among other rows.
fn stream() -> Vec<Value> {
    let mut rows = Vec::new();
    for n in 0..40_i64 {
        let tenant = if n % 3 == 0 { "b" } else { "acme" };
        let fields = match n % 5 {
            0 => json!({"integrity_score": 80 + n % 20}),
            1 => json!({"consensus_pct": 84 + n % 9}),
            2 => json!({"trust_locked": n % 4 == 0}),
            3 => json!({"forecast_risk": (["low", "medium", "high"][usize::try_from(n % 3).unwrap()])}),
            _ => json!({"recent_responses": n % 10}),
        };
        rows.push(sample_of(tenant, n * 10 - (n % 7) * 9, fields));
        rows.push(step_of(n * 10, "r", 1));
    }
    // far enough for the first values to age
    rows.push(step_of(24 * 3_600 + 200, "r", 1));
    rows
}

fn told(said: &[Said]) -> Vec<String> {
    let mut all: Vec<String> = said
        .iter()
        .filter(|s| matches!(s.0.topic, Topic::PolicyLevel | Topic::Commands))
        .map(|s| format!("{:?} {}", s.0.topic, s.value()))
        .collect();
    let brief = |a: Value| format!("alert {} {} {} {}", a["alert_id"], a["revision"], a["severity"], a["alert_count"]);
    all.extend(on(said, Topic::Alerts).into_iter().map(brief));
    all.sort_unstable();
    all
}

#[test]
fn the_cut_of_the_batches_and_a_crash_change_nothing() {
    let rows = stream();
    let whole = told(&Desk::new("").telemetry(0, &rows));
    assert!(whole.len() > 30, "{}", whole.len());
    for cut in [1, 2, 7, 33] {
        for crash in [false, true] {
            let mut desk = Desk::new("");
            let mut said = Vec::new();
            for batch in rows.chunks(cut) {
                said.extend(desk.telemetry(0, batch));
                if crash {
                    desk.crash();
                }
            }
            let levels = |all: &[String]| all.iter().filter(|t| !t.starts_with("alert")).cloned().collect::<Vec<_>>();
            assert_eq!(levels(&told(&said)), levels(&whole), "cut {cut}, crash {crash}");
        }
    }
}

#[test]
fn an_older_set_without_the_rule_works_under_the_shipped_one() {
    let mut terms = Texts::demo().terms(&tuning());
    assert!(terms.queries.remove("decide/level.sql").is_some());
    let texts = Texts::of(&terms).unwrap();
    assert_eq!(texts.level.1, runwarden::decide::level::SHIPPED);
    assert_eq!(texts.metrics.len(), Texts::demo().metrics.len(), "it is no metric");
    let old = r#"{"allowed_lateness_us":1,"idle_timeout_us":2,"dedup_horizon_us":3,"dedup_ids":4}"#;
    assert_eq!(load::defaults().deciding(old).leveling, Arc::new(load::defaults()).leveling);
}
