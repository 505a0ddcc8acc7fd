//! `runwarden simulate`: the core over recorded telemetry (P12).
//!
//! Writes one file per kind of record, even if empty, and a summary. Progress goes to standard error, the table to standard
//! output. Bad records go to `dead-letter.jsonl` and do not change the exit code.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::{Value, json};

use crate::cli::load::{self, Loaded};
use crate::cli::{Failure, SimulateArguments};
use crate::clock::Wall;
use crate::decide::records::{Decision, Kind, Place, Signal};
use crate::kafka::core::Input;
use crate::pipeline::simulate::{Report, Simulation};
use crate::policy::Amount;
use crate::telemetry::files::{Files, Payload};

/// Records handed to the core at once.
const BATCH: usize = 8192;

/// Runs the subcommand.
pub(super) fn main(arguments: &SimulateArguments) -> Result<ExitCode, Failure> {
    let now = arguments.now.unwrap_or_else(Wall::now);
    fs::create_dir_all(&arguments.out)
        .map_err(|e| Failure::Reach(format!("cannot create {}: {e}", arguments.out.display())))?;
    let first = simulate(arguments, &arguments.policies, now)?;
    let summary = write(&arguments.out, &first)?;
    if let Some(against) = &arguments.against {
        let second = simulate(arguments, against, now)?;
        let diff = diff(&first.report, &second.report);
        let path = arguments.out.join("diff.json");
        let text = serde_json::to_vec_pretty(&diff).map_err(Failure::reach)?;
        fs::write(&path, text).map_err(|e| Failure::Reach(format!("cannot write {}: {e}", path.display())))?;
    }
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&summary).map_err(Failure::reach)?);
    } else {
        print!("{}", table(&summary));
    }
    if first.report.counts.decoded == 0 {
        return Err(Failure::Invalid(format!(
            "no valid row in {}; {} says why",
            names(&arguments.telemetry),
            arguments.out.join("dead-letter.jsonl").display()
        )));
    }
    Ok(ExitCode::SUCCESS)
}

fn names(paths: &[PathBuf]) -> String {
    paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ")
}

struct Done {
    report: Report,
    /// Where record n came from.
    places: Vec<(u32, u64)>,
    files: Vec<String>,
    /// The metrics, in the order of the counts.
    metrics: Vec<String>,
}

fn simulate(arguments: &SimulateArguments, policies: &Path, now: Wall) -> Result<Done, Failure> {
    let texts = load::Texts::read(&arguments.queries, policies, &arguments.prices)?;
    let Loaded { mut settings, .. } = load::build(&texts, load::defaults())?;
    settings.finals = true;
    settings.stream.all_finals = true;
    settings.event_clock = true;
    settings.future_at = Some(now);
    let metrics = settings.metrics.iter().map(|m| m.name.clone()).collect();
    let mut simulation = Simulation::new(Arc::new(settings)).map_err(Failure::invalid)?;
    let limit = crate::config::Config::default().limits.record_bytes;
    let mut files = Files::open(&arguments.telemetry, Input::Telemetry as u8, limit).map_err(Failure::unreadable)?;
    let bar = progress(files.progress().1, &format!("simulating {}", policies.display()));
    let (mut places, mut batch) = (Vec::new(), Vec::<Vec<u8>>::with_capacity(BATCH));
    let mut names: Vec<Arc<str>> = Vec::new();
    // by the number of the record: what a reader could not make a record of is refused by the decoder, for this reason
    let mut faults: BTreeMap<usize, String> = BTreeMap::new();
    loop {
        let record = files.next().map_err(Failure::unreadable)?;
        let ended = record.is_none();
        if let Some(record) = record {
            let file = names.iter().position(|n| *n == record.origin.topic).unwrap_or_else(|| {
                names.push(Arc::clone(&record.origin.topic));
                names.len() - 1
            });
            if let Payload::Bad(message, _) = record.payload {
                faults.insert(places.len(), message.to_owned());
            }
            places.push((u32::try_from(file).unwrap_or(u32::MAX), u64::try_from(record.origin.offset).unwrap_or(0)));
            batch.push(match record.payload {
                Payload::Json(bytes) | Payload::Bad(_, bytes) => bytes.to_vec(),
            });
        }
        if batch.len() == BATCH || (ended && !batch.is_empty()) {
            simulation.push(batch.iter().map(Vec::as_slice)).map_err(Failure::invalid)?;
            bar.set_position(files.progress().0);
            batch.clear();
        }
        if ended {
            break;
        }
    }
    bar.finish_and_clear();
    let mut report = simulation.finish().map_err(Failure::invalid)?;
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    name_places(&mut report, &places, &names);
    for letter in &mut report.dead {
        if let Some(message) = usize::try_from(letter.origin.offset).ok().and_then(|n| faults.remove(&n)) {
            letter.message = message;
        }
    }
    Ok(Done { report, places, files: names, metrics })
}

/// A bar on a terminal, silence elsewhere.
pub(super) fn progress(total: u64, what: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(total).with_style(style).with_message(what.to_owned())
}

/// Replaces sequence numbers by file and line in the evidence.
fn name_places(report: &mut Report, places: &[(u32, u64)], files: &[String]) {
    let name = |place: &mut Option<Place>| {
        let Some(place) = place else { return };
        let at = usize::try_from(place.offset).ok().and_then(|n| places.get(n));
        if let Some((file, line)) = at {
            place.topic = files.get(*file as usize).cloned().unwrap_or_default();
            place.offset = i64::try_from(*line).unwrap_or(i64::MAX);
        }
    };
    for decision in &mut report.decisions {
        if let Decision::Signal(signal) = decision {
            name(&mut signal.evidence.first);
            name(&mut signal.evidence.last);
        }
    }
}

/// What `summary.json` says.
#[derive(Debug, Serialize)]
struct Summary {
    events: u64,
    duplicates: u64,
    dead_letters: BTreeMap<String, u64>,
    windows: BTreeMap<String, u64>,
    late: BTreeMap<String, u64>,
    signals: BTreeMap<String, u64>,
    interventions: BTreeMap<String, u64>,
    shadow: BTreeMap<String, u64>,
    alerts: BTreeMap<String, u64>,
    uncovered_events: u64,
    policies: BTreeMap<String, PolicySummary>,
    stopped: Vec<Value>,
}

/// What one policy did.
#[derive(Debug, Default, Serialize)]
struct PolicySummary {
    near: u64,
    breach: u64,
    resolved: u64,
    interventions: u64,
    /// Median seconds between NEAR and BREACH of one level; null without a pair.
    lead_seconds: Option<f64>,
}

fn write(out: &Path, done: &Done) -> Result<Summary, Failure> {
    let report = &done.report;
    let mut counts: BTreeMap<&str, BTreeMap<String, u64>> = BTreeMap::new();
    let mut lines: BTreeMap<&str, Vec<Vec<u8>>> = BTreeMap::new();
    let mut policies: BTreeMap<String, PolicySummary> = BTreeMap::new();
    let mut stopped = Vec::new();
    for decision in &report.decisions {
        let (file, kind, bytes) = match decision {
            Decision::Signal(s) => {
                let policy = policies.entry(s.policy_id.clone()).or_default();
                match s.kind {
                    Kind::Near => policy.near += 1,
                    Kind::Breach => policy.breach += 1,
                    Kind::Resolved => policy.resolved += 1,
                }
                ("signals", s.kind.as_str().to_owned(), serde_json::to_vec(&**s))
            }
            Decision::Alert(a) => ("alerts", a.status.as_str().to_owned(), serde_json::to_vec(&**a)),
            Decision::Intervention(i) => {
                policies.entry(i.policy_id.clone()).or_default().interventions += 1;
                stopped.push(json!({
                    "at": crate::decide::id::rfc3339(i.created_at), "type": i.kind, "target": i.target, "reason": i.reason,
                }));
                ("interventions", i.kind.clone(), serde_json::to_vec(&**i))
            }
            Decision::Audit(a) => {
                let would = a.after.get("would").and_then(Value::as_str).unwrap_or(&a.kind).to_owned();
                ("shadow", would, serde_json::to_vec(&**a))
            }
            Decision::CommandResult(_) => continue,
        };
        lines.entry(file).or_default().push(bytes.map_err(Failure::reach)?);
        *counts.entry(file).or_default().entry(kind).or_default() += 1;
    }
    let mut dead_counts = BTreeMap::new();
    for letter in &report.dead {
        *dead_counts.entry(letter.reason.as_str().to_owned()).or_default() += 1;
        let (file, line) =
            usize::try_from(letter.origin.offset).ok().and_then(|n| done.places.get(n)).copied().unwrap_or_default();
        let value = serde_json::from_slice::<Value>(&letter.value)
            .unwrap_or_else(|_| String::from_utf8_lossy(&letter.value).into_owned().into());
        let record = json!({
            "reason": letter.reason.as_str(), "message": letter.message,
            "origin": {"file": done.files.get(file as usize), "line": line}, "value": value,
        });
        lines.entry("dead-letter").or_default().push(serde_json::to_vec(&record).map_err(Failure::reach)?);
    }
    let mut windows = BTreeMap::new();
    for window in &report.windows {
        *windows.entry(window.metric.clone()).or_default() += 1;
        lines.entry("windows").or_default().push(serde_json::to_vec(&window.to_json()).map_err(Failure::reach)?);
    }
    for (policy, seconds) in lead_times(report) {
        policies.entry(policy).or_default().lead_seconds = Some(seconds);
    }
    for name in ["windows", "signals", "alerts", "interventions", "shadow", "lessons", "dead-letter"] {
        write_lines(&out.join(format!("{name}.jsonl")), lines.get(name).map_or(&[][..], Vec::as_slice))?;
    }
    let mut take = |name: &str| counts.remove(name).unwrap_or_default();
    let summary = Summary {
        events: report.counts.decoded,
        duplicates: report.counts.duplicates,
        dead_letters: dead_counts,
        late: done.metrics.iter().cloned().zip(report.counts.late.iter().copied()).filter(|(_, n)| *n > 0).collect(),
        windows,
        signals: take("signals"),
        interventions: take("interventions"),
        shadow: take("shadow"),
        alerts: take("alerts"),
        uncovered_events: report.counts.uncovered,
        policies,
        stopped,
    };
    let text = serde_json::to_vec_pretty(&summary).map_err(Failure::reach)?;
    let path = out.join("summary.json");
    fs::write(&path, text).map_err(|e| Failure::Reach(format!("cannot write {}: {e}", path.display())))?;
    Ok(summary)
}

fn write_lines(path: &Path, lines: &[Vec<u8>]) -> Result<(), Failure> {
    let failed = |e: std::io::Error| Failure::Reach(format!("cannot write {}: {e}", path.display()));
    let mut file = BufWriter::new(fs::File::create(path).map_err(failed)?);
    for line in lines {
        file.write_all(line).map_err(failed)?;
        file.write_all(b"\n").map_err(failed)?;
    }
    file.flush().map_err(failed)
}

/// Median seconds by which NEAR came before BREACH, per policy.
fn lead_times(report: &Report) -> BTreeMap<String, f64> {
    let level = |s: &Signal| (s.policy_id.clone(), s.limit_id.clone(), s.tenant_id.clone(), s.scope.clone());
    let mut near = BTreeMap::new();
    let mut leads: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    for decision in &report.decisions {
        let Decision::Signal(s) = decision else { continue };
        match s.kind {
            Kind::Near => {
                near.insert(level(s), s.event_time);
            }
            Kind::Breach => {
                if let Some(at) = near.remove(&level(s)) {
                    leads.entry(s.policy_id.clone()).or_default().push(s.event_time - at);
                }
            }
            Kind::Resolved => {}
        }
    }
    leads
        .into_iter()
        .filter_map(|(policy, mut all)| {
            all.sort_unstable();
            all.get(all.len() / 2).map(|m| (policy, *m as f64 / 1e6))
        })
        .collect()
}

/// Signals and interventions that only one of the two sets gives, by what they are about.
fn diff(first: &Report, second: &Report) -> Value {
    type About = (String, String, String, String, String);
    let about = |report: &Report| -> BTreeMap<About, Option<Amount>> {
        let one = |d: &Decision| match d {
            Decision::Signal(s) => Some((
                (
                    "signal".into(),
                    s.kind.as_str().to_owned(),
                    s.metric.clone(),
                    s.scope.id.clone(),
                    s.tenant_id.clone(),
                ),
                s.value,
            )),
            Decision::Intervention(i) => Some((
                ("intervention".into(), i.kind.clone(), i.policy_id.clone(), i.target.id.clone(), i.tenant_id.clone()),
                None,
            )),
            _ => None,
        };
        report.decisions.iter().filter_map(one).collect()
    };
    let (a, b) = (about(first), about(second));
    let only = |x: &BTreeMap<About, _>, y: &BTreeMap<About, Option<Amount>>| -> Vec<Value> {
        x.keys()
            .filter(|k| !y.contains_key(*k))
            .collect::<BTreeSet<_>>()
            .into_iter()
            .map(|(what, kind, of, id, tenant)| json!({"what": what, "kind": kind, "of": of, "id": id, "tenant_id": tenant}))
            .collect()
    };
    let both = a.keys().filter(|k| b.contains_key(*k)).count();
    json!({ "only_in_policies": only(&a, &b), "only_in_against": only(&b, &a), "in_both": both })
}

fn table(summary: &Summary) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    let counts = |map: &BTreeMap<String, u64>| {
        let parts: Vec<String> = map.iter().map(|(k, v)| format!("{k} {v}")).collect();
        if parts.is_empty() { "none".to_owned() } else { parts.join(", ") }
    };
    let mut line = |name: &str, value: String| {
        // writing to a String cannot fail
        writeln!(text, "{name:<16}{value}").unwrap_or_default();
    };
    line("events", summary.events.to_string());
    line("duplicates", summary.duplicates.to_string());
    line("dead letters", counts(&summary.dead_letters));
    line("late rows", counts(&summary.late));
    line("windows", summary.windows.values().sum::<u64>().to_string());
    line("signals", counts(&summary.signals));
    line("alerts", counts(&summary.alerts));
    line("interventions", counts(&summary.interventions));
    line("shadow", counts(&summary.shadow));
    if !summary.policies.is_empty() {
        let width = summary.policies.keys().map(String::len).max().unwrap_or(0).max(6);
        writeln!(
            text,
            "\n{:<width$}  {:>6} {:>7} {:>9} {:>13} {:>12}",
            "policy", "NEAR", "BREACH", "RESOLVED", "interventions", "lead seconds"
        )
        .unwrap_or_default();
        for (id, p) in &summary.policies {
            let lead = p.lead_seconds.map_or("-".to_owned(), |s| format!("{s:.1}"));
            writeln!(
                text,
                "{id:<width$}  {:>6} {:>7} {:>9} {:>13} {lead:>12}",
                p.near, p.breach, p.resolved, p.interventions
            )
            .unwrap_or_default();
        }
    }
    text
}
