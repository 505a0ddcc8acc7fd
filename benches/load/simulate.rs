//! `runwarden simulate` of one metric, from files, on one core.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::rig::{self, Bar, CORE, Row};

/// Name, bar in events/s, window and value.
const METRICS: [(&str, f64, &str); 3] = [
    ("tumble 1 min by agent", 1_000_000.0, "tumble(telemetry, event_time, INTERVAL '1 minute')"),
    ("hop 10 s, 5 min by agent", 600_000.0, "hop(telemetry, event_time, INTERVAL '10 seconds', INTERVAL '5 minutes')"),
    (
        "run window",
        600_000.0,
        "session(telemetry, event_time, INTERVAL '24 hours', event_type IN ('run.completed', 'run.failed'))",
    ),
];

fn query(window: &str) -> String {
    let (scope, key, filter, value) = if window.starts_with("session") {
        ("RUN", "run_id", "run_id IS NOT NULL", "sum(total_tokens) FILTER (WHERE event_type = 'run.step')")
    } else {
        ("AGENT", "agent_id", "event_type = 'run.step' AND agent_id IS NOT NULL", "sum(total_tokens)")
    };
    format!(
        "-- metric: measured\n-- scope: {scope}\n-- emit: changes\n-- unit: tokens\n-- description: Tokens.\nSELECT tenant_id, {key}, \
         window_start, window_end, {value} AS value\nFROM {window}\nWHERE {filter}\nGROUP BY tenant_id, {key}, window_start, \
         window_end\n"
    )
}

/// The hour of the Azure traces so many times as JSON Lines, or why not.
fn telemetry(dir: &Path, repeat: usize) -> Result<PathBuf, String> {
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared");
    let file = dir.join("telemetry.jsonl");
    let mut command = Command::new("python3");
    command.arg(shared.join("tools/azure_telemetry.py")).args(["--repeat", &repeat.to_string()]);
    command.args(["conv", "code"].map(|n| shared.join(format!("data/azure-llm-2023-{n}.csv"))));
    let out = File::create(&file).map_err(|e| e.to_string())?;
    match command.stdout(Stdio::from(out)).status() {
        Ok(status) if status.success() => Ok(file),
        other => Err(format!("the real traces are not beside the project (../shared): {other:?}")),
    }
}

/// Whole processes: reading, decoding, windows, and the files that are written.
pub fn simulate(repeat: usize) -> Vec<Row> {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let telemetry = match telemetry(dir.path(), repeat.max(1)) {
        Ok(file) => file,
        Err(why) => {
            eprintln!("   skipped: {why}");
            return Vec::new();
        }
    };
    let events = fs::read(&telemetry).unwrap().iter().filter(|b| **b == b'\n').count();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    fs::create_dir_all(at("policies")).unwrap();
    let policy = "id: p\nname: P\nlimits:\n  - {id: l, limit_type: T, metric: measured, max: 900000000000}\n";
    fs::write(at("policies/p.yaml"), policy).unwrap();
    let measure = |(name, bar, window): (&str, f64, &str)| {
        let queries = at("queries");
        fs::create_dir_all(queries.join("metrics")).unwrap();
        fs::create_dir_all(queries.join("decide")).unwrap();
        for file in ["decide/thresholds.sql", "decide/correlation.sql"] {
            fs::copy(root.join("queries").join(file), queries.join(file)).unwrap();
        }
        fs::write(queries.join("metrics/measured.sql"), query(window)).unwrap();
        let begun = Instant::now();
        let out = Command::new("taskset")
            .args(["-c", CORE])
            .arg(rig::binary())
            .args(["simulate", "--policies"])
            .arg(at("policies"))
            .arg("--queries")
            .arg(&queries)
            .arg("--telemetry")
            .arg(&telemetry)
            .arg("--out")
            .arg(at("out"))
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        Row::new(
            format!("simulate, {name}, one core"),
            events as f64 / begun.elapsed().as_secs_f64(),
            "events/s",
            Some((Bar::Least, bar)),
        )
    };
    METRICS.into_iter().map(measure).collect()
}
