use std::collections::{BTreeMap, BTreeSet};

use super::family::{MAX_NAMES, OTHER};
use super::labels::Label;
use super::*;

fn metrics(names: &[&str]) -> Metrics {
    Metrics::register(&Registry::new(), names).unwrap()
}

/// Samples of exported text: series to value.
fn samples(text: &str) -> BTreeMap<String, String> {
    let lines = text.lines().filter(|l| !l.starts_with('#'));
    lines.map(|l| l.rsplit_once(' ').map(|(k, v)| (k.to_owned(), v.to_owned())).unwrap()).collect()
}

#[test]
fn every_known_series_stands_at_zero_before_anything_happens() {
    let s = samples(&metrics(&["run_tokens"]).encode().unwrap());
    for series in [
        "runwarden_input_records_total{input=\"telemetry\"}",
        "runwarden_dead_letter_records_total{reason=\"misrouted_unroutable\"}",
        "runwarden_late_rows_total{metric=\"run_tokens\"}",
        "runwarden_open_windows{metric=\"run_tokens\"}",
        "runwarden_closed_windows_total{metric=\"run_tokens\"}",
        "runwarden_signals_total{kind=\"BREACH\",mode=\"AUDIT\"}",
        "runwarden_interventions_total{mode=\"shadow\",type=\"KILL\"}",
        "runwarden_alerts_total{status=\"UPDATED\"}",
        "runwarden_transactions_total{outcome=\"resent\"}",
        "runwarden_replay_mismatches_total",
        "runwarden_key_overflow_rows_total",
        "runwarden_live_unshown_rows_total",
        "runwarden_tenants_overflowed",
        "runwarden_role_enabled{role=\"core\"}",
        "runwarden_event_to_commit_seconds_count",
    ] {
        assert_eq!(s.get(series).map(String::as_str), Some("0"), "{series}");
    }
    assert_eq!(s["runwarden_up"], "1");
    assert_eq!(s.keys().filter(|k| k.starts_with("runwarden_signals_total")).count(), 9);
    assert_eq!(s.keys().filter(|k| k.starts_with("runwarden_interventions_total")).count(), 24);
}

#[test]
fn the_exported_text_of_a_few_updates_is_exact() {
    let m = metrics(&["run_tokens"]);
    m.input_records.get(Input::Telemetry).inc_by(5);
    m.dead_letters.get(DeadLetterReason::Future).inc();
    m.signals.get(SignalKind::Near, Mode::Block).inc_by(2);
    m.interventions.get(InterventionType::Stop, Effect::Enforced).inc();
    m.lag.set(3, 17);
    m.set_watermark_age(2_500_000);
    Metrics::observe(&m.event_to_decision, 4_000);
    Metrics::observe(&m.event_to_decision, -9);
    let s = samples(&m.encode().unwrap());
    assert_eq!(s["runwarden_input_records_total{input=\"telemetry\"}"], "5");
    assert_eq!(s["runwarden_dead_letter_records_total{reason=\"future\"}"], "1");
    assert_eq!(s["runwarden_signals_total{kind=\"NEAR\",mode=\"BLOCK\"}"], "2");
    assert_eq!(s["runwarden_interventions_total{mode=\"enforced\",type=\"STOP\"}"], "1");
    assert_eq!(s["runwarden_consumer_lag_records{partition=\"3\"}"], "17");
    assert_eq!(s["runwarden_watermark_age_seconds"], "2.5");
    assert_eq!(s["runwarden_event_to_decision_seconds_bucket{le=\"0.001\"}"], "1", "ahead of the clock is 0");
    assert_eq!(s["runwarden_event_to_decision_seconds_bucket{le=\"0.005\"}"], "2");
    assert_eq!(s["runwarden_event_to_decision_seconds_sum"], "0.004");
}

#[test]
fn names_follow_the_rules_and_every_metric_has_help() {
    let m = metrics(&["run_tokens"]);
    m.lag.set(0, 1);
    m.lag_age.set(0, 1);
    m.set_config_hash("abc");
    let text = m.encode().unwrap();
    let types: Vec<(&str, &str)> =
        text.lines().filter_map(|l| l.strip_prefix("# TYPE ")).filter_map(|l| l.split_once(' ')).collect();
    let help: BTreeSet<&str> =
        text.lines().filter_map(|l| l.strip_prefix("# HELP ")).filter_map(|l| l.split(' ').next()).collect();
    assert!(types.len() > 30, "all metrics are exported, got {}", types.len());
    for (name, kind) in types {
        assert!(["runwarden_", "panel_", "otlp_"].iter().any(|own| name.starts_with(own)), "{name}");
        assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
        assert_eq!(name.ends_with("_total"), kind == "counter", "{name} is a {kind}");
        assert!(kind != "histogram" || name.ends_with("_seconds"), "{name}: all our histograms are of time");
        assert!(!["_ms", "milliseconds", "_count", "_sum"].iter().any(|bad| name.contains(bad)), "{name}");
        assert!(help.contains(name), "{name} has no help");
    }
}

#[test]
fn labels_are_only_the_closed_ones() {
    let m = metrics(&["run_tokens"]);
    m.lag.set(0, 1);
    m.lag_age.set(0, 1);
    m.set_config_hash("abc");
    let allowed: BTreeSet<&str> = [
        "input",
        "topic",
        "reason",
        "lesson_type",
        "kind",
        "mode",
        "type",
        "status",
        "outcome",
        "metric",
        "role",
        "cause",
        "verdict",
        "table",
        "partition",
        "route",
        "method",
        "panel_id",
        "channel",
        "code",
        "signal",
        "le",
        "hash",
        "version",
        "revision",
    ]
    .into();
    for family in m.registry.gather() {
        for metric in family.get_metric() {
            for label in metric.get_label() {
                assert!(allowed.contains(label.name()), "{} of {}", label.name(), family.name());
            }
        }
    }
}

#[test]
fn an_unconfigured_name_is_counted_under_other() {
    let m = metrics(&["run_tokens"]);
    m.late_rows.get("run-4711").inc();
    m.late_rows.get("run-4712").inc();
    let s = samples(&m.encode().unwrap());
    assert_eq!(s[&format!("runwarden_late_rows_total{{metric=\"{OTHER}\"}}")], "2");
    assert!(!s.keys().any(|k| k.contains("4711")), "a free name never becomes a label");
}

#[test]
fn configured_names_are_bounded_and_stay_after_a_reload() {
    let m = metrics(&["first"]);
    let many: Vec<String> = (0..MAX_NAMES + 50).map(|i| format!("m{i:04}")).collect();
    m.set_metric_names(&many.iter().map(String::as_str).collect::<Vec<_>>());
    m.late_rows.get("first").inc();
    m.late_rows.get(&many[MAX_NAMES + 49]).inc();
    let s = samples(&m.encode().unwrap());
    assert_eq!(s["runwarden_late_rows_total{metric=\"first\"}"], "1");
    assert_eq!(s["runwarden_late_rows_total{metric=\"other\"}"], "1");
    assert_eq!(s.keys().filter(|k| k.starts_with("runwarden_late_rows_total")).count(), MAX_NAMES + 1);
}

#[test]
fn panels_stand_at_zero_under_their_own_names_and_no_other_id_becomes_a_label() {
    let m = metrics(&[]);
    m.panels.admit(&["POL-GOV-ACT-O4"]);
    m.panels.health("POL-GOV-ACT-O4").set(1);
    m.panels.empty("POL-9999").inc();
    let s = samples(&m.encode().unwrap());
    for name in ["panel_empty_total", "panel_stale_total", "panel_filter_break_total"] {
        assert_eq!(s[&format!("{name}{{panel_id=\"POL-GOV-ACT-O4\"}}")], "0");
    }
    assert_eq!(s["panel_health_status{panel_id=\"POL-GOV-ACT-O4\"}"], "1");
    assert_eq!(s[&format!("panel_empty_total{{panel_id=\"{OTHER}\"}}")], "1");
    m.panels.forget("POL-GOV-ACT-O4");
    assert!(!m.encode().unwrap().contains("panel_health_status{"), "of a panel that is no more nothing is claimed");
}

#[test]
fn a_partition_given_up_leaves_no_series() {
    let m = metrics(&[]);
    m.lag.set(1, 5);
    m.lag.set(2, 6);
    m.lag_age.set(1, 1_500_000);
    m.lag_age.set(2, -7);
    m.lag.forget(1);
    m.lag.forget(9);
    m.lag_age.forget(1);
    m.lag_age.forget(9);
    let s = samples(&m.encode().unwrap());
    assert!(!s.keys().any(|k| k.contains("{partition=\"1\"}")));
    assert_eq!(s["runwarden_consumer_lag_seconds{partition=\"2\"}"], "0");
    assert_eq!(s["runwarden_consumer_lag_records{partition=\"2\"}"], "6");
}

#[test]
fn one_config_hash_is_shown_at_a_time() {
    let m = metrics(&[]);
    m.set_config_hash("aa");
    m.set_config_hash("bb");
    let s = samples(&m.encode().unwrap());
    let shown: Vec<&String> = s.keys().filter(|k| k.starts_with("runwarden_config_info")).collect();
    assert_eq!(shown, ["runwarden_config_info{hash=\"bb\"}"]);
    assert_eq!(m.config_hash(), "bb");
}

#[test]
fn registering_twice_in_one_registry_is_refused() {
    let registry = Registry::new();
    let first = Metrics::register(&registry, &[]);
    assert!(first.is_ok());
    assert!(Metrics::register(&registry, &[]).is_err());
}

#[test]
fn label_text_reads_back_as_itself() {
    fn all<L: Label + PartialEq + std::fmt::Debug>() {
        for (i, label) in L::ALL.iter().enumerate() {
            assert_eq!(label.index(), i);
            assert_eq!(L::parse(label.as_str()), Some(*label));
        }
        assert_eq!(L::parse("nothing of the kind"), None);
    }
    all::<Input>();
    all::<Output>();
    all::<DeadLetterReason>();
    all::<SignalKind>();
    all::<Mode>();
    all::<InterventionType>();
    all::<Effect>();
    all::<AlertStatus>();
    all::<TransactionOutcome>();
    assert_eq!(DeadLetterReason::parse("LATE"), Some(DeadLetterReason::Late));
}
