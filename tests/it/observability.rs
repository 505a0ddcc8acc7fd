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
    metrics.channels.of("ops");
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
    let of = |path: &str, prefix: &str| -> Vec<String> {
        let needle = format!("| `{prefix}");
        let manual = read(path);
        let names = manual.lines().filter_map(|l| l.strip_prefix(&needle)?.split('`').next());
        names.map(|n| format!("{prefix}{n}")).collect()
    };
    let listed: BTreeSet<String> =
        of("docs/operations.md", "runwarden_").into_iter().chain(of("docs/otlp.md", "otlp_")).collect();
    assert_eq!(listed, declared());
}

/// Every dashboard that is shipped, with its file.
fn dashboards() -> Vec<(String, Value)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("grafana/dashboards");
    let names = fs::read_dir(folder).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
    let paths: BTreeSet<String> = names.map(|name| format!("grafana/dashboards/{name}")).collect();
    let all = paths.into_iter().map(|path| (path.clone(), serde_json::from_str(&read(&path)).unwrap()));
    all.collect()
}

/// The panels of a dashboard.
fn panels(dashboard: &Value) -> &Vec<Value> {
    dashboard["panels"].as_array().unwrap()
}

#[test]
fn dashboards_and_alert_rules_ask_only_for_metrics_that_exist() {
    let declared = declared();
    let rules = ("config/prometheus-alerts.yml".to_owned(), read("config/prometheus-alerts.yml"));
    let asking = |(path, dashboard): (String, Value)| {
        let targets = panels(&dashboard).iter().flat_map(|panel| panel["targets"].as_array().unwrap());
        let asked: Vec<&str> = targets.filter_map(|target| target["expr"].as_str()).collect();
        (path, asked.join("\n"))
    };
    let mut asked_for = 0;
    for (path, text) in dashboards().into_iter().map(asking).chain([rules]) {
        let asked = named(&text);
        let unknown: Vec<&String> = asked.difference(&declared).collect();
        assert!(unknown.is_empty(), "{path} asks for {unknown:?}");
        asked_for += asked.len();
    }
    assert!(asked_for > 60, "{asked_for}");
}

#[test]
fn every_panel_has_a_title_a_description_and_a_provisioned_source() {
    let sources = ["prometheus", "sql"].map(|name| read(&format!("grafana/provisioning/datasources/{name}.yaml")));
    let provisioned = |source: &Value| {
        let line = format!("uid: {}\n", source["uid"].as_str().unwrap());
        let kind = format!("type: {}\n", source["type"].as_str().unwrap());
        sources.iter().any(|text| text.contains(&line) && text.contains(&kind))
    };
    let mut uids = BTreeSet::new();
    for (path, dashboard) in dashboards() {
        assert!(uids.insert(dashboard["uid"].as_str().unwrap().to_owned()), "{path}: its uid is taken");
        let (mut titles, mut ids) = (BTreeSet::new(), BTreeSet::new());
        for panel in panels(&dashboard) {
            let title = panel["title"].as_str().unwrap();
            assert!(titles.insert(title.to_owned()), "{path}: {title} twice");
            assert!(ids.insert(panel["id"].as_u64().unwrap()), "{path}: {title} has the id of another");
            assert!(!panel["description"].as_str().unwrap().is_empty(), "{path}: {title}");
            let targets = panel["targets"].as_array().unwrap();
            assert!(!targets.is_empty(), "{path}: {title} asks for nothing");
            for source in targets.iter().chain([panel]).map(|asks| &asks["datasource"]) {
                assert!(provisioned(source), "{path}: {title}");
            }
        }
        assert!(titles.len() > 7, "{path}");
    }
    assert!(uids.len() > 5, "{uids:?}");
}

#[test]
fn panels_in_sql_read_tables_that_exist_and_what_is_over_time_is_bounded_by_it() {
    // what the tables module makes of tables
    const VIEWS: [&str; 7] = [
        "guardian_actions",
        "lessons_learned",
        "levels_up",
        "panels",
        "policy_limits",
        "policy_override_records",
        "policy_rules",
    ];
    let schema = read("src/serve/tables/schema.rs");
    let mut asked = 0;
    for (path, dashboard) in dashboards() {
        for target in panels(&dashboard).iter().flat_map(|panel| panel["targets"].as_array().unwrap()) {
            let Some(sql) = target["rawSql"].as_str() else { continue };
            let words: Vec<&str> = sql.split_whitespace().collect();
            let mut tables = words.windows(2).filter(|two| ["FROM", "JOIN"].contains(&two[0])).map(|two| two[1]);
            // FROM of extract(epoch FROM …) is followed by what is no table
            let read = tables.all(|name| {
                name.contains('(')
                    || name.ends_with(')')
                    || VIEWS.contains(&name)
                    || schema.contains(&format!("name: \"{name}\","))
            });
            assert!(read, "{path}: {sql}");
            if target["format"] == "time_series" {
                assert!(sql.contains("$__timeGroupAlias(") && sql.contains("$__timeFilter("), "{path}: {sql}");
            }
            asked += 1;
        }
    }
    assert!(asked > 40, "{asked}");
}
