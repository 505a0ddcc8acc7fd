//! The examples of the manual are real: SQL compiles, and what is listed is what ships.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use runwarden::stream::{Compiler, Metric, Settings, parse_metric, parse_metrics};
use runwarden::telemetry::schema::SCHEMA;

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// The fenced blocks of a language in a Markdown file.
fn blocks(path: &str, language: &str) -> Vec<String> {
    let text = read(path);
    let opening = format!("```{language}\n");
    text.split(&opening).skip(1).map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
}

fn compiler() -> Compiler {
    Compiler::new(SCHEMA.clone(), &Settings::default())
}

#[test]
fn every_sql_example_compiles() {
    let compiler = compiler();
    let mut metrics = 0;
    for path in ["README.md", "docs/metrics.md"] {
        for sql in blocks(path, "sql") {
            if sql.starts_with("--") {
                parse_metric(path, &sql, &compiler).unwrap_or_else(|e| panic!("{path}: {e:?}\n{sql}"));
                metrics += 1;
            } else {
                compiler.compile(path, &sql).unwrap_or_else(|e| panic!("{path}: {e}\n{sql}"));
            }
        }
    }
    assert_eq!(metrics, 2, "one whole file in the README and one in the manual");
}

#[test]
fn every_policy_example_is_accepted() {
    let (mut examples, mut tests) = (0, 0);
    for path in ["README.md", "docs/policies.md"] {
        for block in blocks(path, "yaml") {
            if block.contains("\nexpect:") {
                let cases = runwarden::policy::cases(path, &block);
                tests += cases.unwrap_or_else(|e| panic!("{path}: {e:?}\n{block}")).len();
                continue;
            }
            let texts = crate::support::texts(&[("example.yaml", &block)]);
            let loaded = runwarden::cli::load::build(&texts, runwarden::cli::load::defaults());
            loaded.unwrap_or_else(|e| panic!("{path}: {e:?}\n{block}"));
            examples += 1;
        }
    }
    assert!(examples >= 2 && tests == 1, "{examples} examples, {tests} tests of policies");
}

#[test]
fn the_window_in_group_by_means_the_same() {
    let sugar = "SELECT tenant_id, agent_id, window_start, window_end, count(*) AS value FROM telemetry \
                 GROUP BY tenant_id, agent_id, tumble(event_time, INTERVAL '1 minute')";
    let plain = "SELECT tenant_id, agent_id, window_start, window_end, count(*) AS value \
                 FROM tumble(telemetry, event_time, INTERVAL '1 minute') \
                 GROUP BY tenant_id, agent_id, window_start, window_end";
    let (sugar, plain) = (compiler().compile("a", sugar).unwrap(), compiler().compile("b", plain).unwrap());
    assert_eq!(sugar.window(), plain.window());
}

#[test]
fn what_the_manual_says_is_refused_is_refused() {
    let from = "FROM tumble(telemetry, event_time, INTERVAL '1 minute')";
    let group = "GROUP BY tenant_id, window_start, window_end";
    let select = "SELECT tenant_id, window_start, window_end, count(*) AS value";
    for sql in [
        "SELECT tenant_id, count(*) AS value FROM telemetry GROUP BY tenant_id".to_owned(),
        format!("{select} {from} GROUP BY window_start, window_end"),
        format!("{select} {from} {group} ORDER BY value"),
        format!("{select} {from} {group} LIMIT 1"),
        format!("SELECT DISTINCT tenant_id, window_start, window_end, count(*) AS value {from} {group}"),
        format!("SELECT tenant_id, window_start, window_end, row_number() OVER () AS value {from} {group}"),
        format!("{select} {from} GROUP BY GROUPING SETS ((tenant_id, window_start, window_end))"),
        format!("{select} {from} WHERE window_end > TIMESTAMP '2026-01-01T00:00:00' {group}"),
        format!("{select} {from} WHERE event_time > now() {group}"),
        format!("{select} FROM tumble(telemetry, event_time, INTERVAL '1 month') {group}"),
        format!("{select} FROM hop(telemetry, event_time, INTERVAL '7 milliseconds', INTERVAL '1 day') {group}"),
        format!("{select} {from} {group} UNION ALL {select} {from} {group}"),
    ] {
        let refused = compiler().compile("example", &sql);
        assert!(refused.is_err(), "accepted: {sql}");
    }
}

#[test]
fn the_default_metrics_listed_are_those_that_ship() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("queries/metrics");
    let files: BTreeMap<String, String> = fs::read_dir(directory)
        .unwrap()
        .map(|e| e.unwrap().path())
        .map(|p| (p.file_name().unwrap().to_str().unwrap().to_owned(), fs::read_to_string(&p).unwrap()))
        .collect();
    let (metrics, errors): (Vec<Metric>, _) =
        parse_metrics(files.iter().map(|(name, text)| (name.as_str(), text.as_str())), &compiler());
    assert!(errors.is_empty(), "{errors:?}");
    let manual = read("docs/metrics.md");
    let table = manual.split("## The default metrics").nth(1).unwrap();
    let scopes: BTreeMap<&str, &str> = [
        ("run", "RUN"),
        ("agent", "AGENT"),
        ("API key", "API_KEY"),
        ("person", "HUMAN_ACTOR"),
        ("provider", "PROVIDER"),
        ("tenant", "TENANT"),
    ]
    .into();
    let listed: BTreeMap<String, String> = table
        .lines()
        .filter_map(|l| l.strip_prefix("| `"))
        .map(|l| (l.split('`').next().unwrap().to_owned(), scopes[l.split(" | ").nth(1).unwrap()].to_owned()))
        .collect();
    let shipped: BTreeMap<String, String> =
        metrics.iter().map(|m| (m.name.clone(), m.scope.name().to_owned())).collect();
    assert_eq!(listed, shipped);
}

/// (section.key, default) of every line `#key = value` of the shipped configuration.
fn shipped_keys() -> BTreeMap<String, String> {
    let text = read("config/runwarden.toml");
    let mut section = "";
    let mut found = BTreeMap::new();
    for line in text.lines() {
        // an example of a section is one too
        if let Some(name) = line.strip_prefix('#').unwrap_or(line).strip_prefix('[') {
            section = name.trim_matches(['[', ']']);
        } else if let Some((key, value)) = line.strip_prefix('#').and_then(|l| l.split_once(" = ")) {
            let is_key = key.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
            if is_key {
                found.insert(format!("{section}.{key}"), value.to_owned());
            }
        }
    }
    found
}

#[test]
fn the_defaults_in_the_manual_are_those_of_the_shipped_configuration() {
    let shipped = shipped_keys();
    let mut rows = 0;
    for line in read("docs/configuration.md").lines() {
        let Some((key, rest)) = line.strip_prefix("| `").and_then(|l| l.split_once("` | ")) else { continue };
        let default = rest.split(" | ").next().unwrap();
        rows += 1;
        let known = shipped.get(key).unwrap_or_else(|| panic!("{key} does not exist"));
        if key != "kafka.slot" {
            assert_eq!(default.trim_matches('`'), known, "{key}");
        }
    }
    assert!(rows > 25, "{rows} rows");
}

#[test]
fn the_reference_of_the_configuration_is_what_is_read() {
    let reference = runwarden::config::reference();
    for (path, made, format) in [
        ("docs/configuration-reference.md", reference.markdown(), "markdown"),
        ("docs/configuration.schema.json", reference.schema_text(), "json"),
    ] {
        let renew = format!("cargo run -- config reference --format {format} > {path}");
        assert!(read(path) == made, "{path} is not what is read; renew it: {renew}");
    }
}

#[test]
fn the_shipped_configuration_is_the_defaults() {
    let uncommented: String = read("config/runwarden.toml")
        .lines()
        .filter(|l| l.starts_with('[') || !l.starts_with('#'))
        .map(|l| format!("{l}\n"))
        .collect();
    let config = runwarden::config::Config::from_toml(&uncommented, "config/runwarden.toml", []).unwrap();
    assert_eq!(config, runwarden::config::Config::default());
}
