//! What is written about the metrics (manual, dashboard, alert rules) names metrics that exist, and all of them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use prometheus::Registry;
use runwarden::metrics::Metrics;
use serde_json::Value;

/// Names of all declared metrics.
fn declared() -> BTreeSet<String> {
    let metrics = Metrics::register(&Registry::new(), &["run_tokens"]).unwrap();
    metrics.lag.set(0, 0);
    metrics.lag_age.set(0, 0);
    metrics.set_config_hash("hash");
    let text = metrics.encode().unwrap();
    text.lines().filter_map(|l| l.strip_prefix("# TYPE ")?.split(' ').next().map(str::to_owned)).collect()
}

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Metric names in a text, histograms' `_bucket`, `_sum` and `_count` reduced to the metric.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let names = words.filter(|w| w.starts_with("runwarden_"));
    names
        .map(|n| ["_bucket", "_sum", "_count"].iter().find_map(|suffix| n.strip_suffix(suffix)).unwrap_or(n).to_owned())
        .collect()
}

#[test]
fn the_manual_lists_exactly_the_metrics_that_exist() {
    let manual = read("docs/operations.md");
    let listed: BTreeSet<String> = manual
        .lines()
        .filter_map(|l| l.strip_prefix("| `runwarden_")?.split('`').next())
        .map(|n| format!("runwarden_{n}"))
        .collect();
    assert_eq!(listed, declared());
}

#[test]
fn dashboard_and_alert_rules_ask_only_for_metrics_that_exist() {
    let declared = declared();
    for path in ["grafana/dashboards/runwarden.json", "config/prometheus-alerts.yml"] {
        let asked = named(&read(path));
        assert!(!asked.is_empty(), "{path} asks for nothing");
        let unknown: Vec<&String> = asked.difference(&declared).collect();
        assert!(unknown.is_empty(), "{path} asks for {unknown:?}");
    }
}

#[test]
fn every_panel_has_a_title_a_description_and_the_provisioned_source() {
    let dashboard: Value = serde_json::from_str(&read("grafana/dashboards/runwarden.json")).unwrap();
    let source = read("grafana/provisioning/datasources/prometheus.yaml");
    let mut titles = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        assert!(titles.insert(title.to_owned()), "{title} twice");
        assert!(!panel["description"].as_str().unwrap().is_empty(), "{title}");
        assert!(source.contains(&format!("uid: {}\n", panel["datasource"]["uid"].as_str().unwrap())), "{title}");
    }
    assert!(titles.len() > 15);
}
