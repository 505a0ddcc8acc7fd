//! `runwarden test`: policy tests as files, run on the core (X13).
//!
//! Nothing depends on the clock of the machine, so a test that passes today passes tomorrow.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::cli::load::{self, Text, Texts};
use crate::cli::{Failure, TestArguments};
use crate::clock::Wall;
use crate::decide::records::Decision;
use crate::kafka::core::Input;
use crate::pipeline::simulate::{Report, Simulation};
use crate::policy::{self, Case, Expected, What};
use crate::telemetry::files::{Files, Payload};

/// Longest decision shown in a failure, characters.
const SHOWN: usize = 400;

/// A case and what is wrong with it; nothing: it passed.
struct Outcome {
    case: Case,
    faults: Vec<String>,
}

/// Runs the subcommand.
pub(super) fn main(arguments: &TestArguments) -> Result<ExitCode, Failure> {
    let files = load::files(&arguments.dir, &["yaml", "yml"])?;
    let base = Texts::without_policies(&arguments.queries, &arguments.prices)?;
    let mut cases = Vec::new();
    let mut refused = String::new();
    for (name, text) in &files {
        match policy::cases(name, text) {
            Ok(found) => cases.extend(found),
            // writing to a String cannot fail
            Err(faults) => faults.iter().for_each(|f| writeln!(refused, "  {f}").unwrap_or_default()),
        }
    }
    if !refused.is_empty() {
        return Err(Failure::Invalid(format!("tests are refused:\n{}", refused.trim_end())));
    }
    let mut outcomes = Vec::new();
    for case in cases {
        let faults = match run(&case, &base) {
            Ok(report) => judge(&case, &said(&report)),
            Err(Failure::Invalid(why)) => vec![format!("{}:{}: {why}", case.file, case.line)],
            Err(other) => return Err(other),
        };
        if !arguments.json {
            print!("{}", text(&case, &faults));
        }
        outcomes.push(Outcome { case, faults });
    }
    let failed = outcomes.iter().filter(|o| !o.faults.is_empty()).count();
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&machine(&outcomes)).map_err(Failure::reach)?);
    } else {
        println!("\n{} passed, {failed} failed", outcomes.len() - failed);
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn text(case: &Case, faults: &[String]) -> String {
    let mut text =
        format!("{} {}:{} {}\n", if faults.is_empty() { "ok  " } else { "FAIL" }, case.file, case.line, case.name);
    for fault in faults {
        // writing to a String cannot fail
        writeln!(text, "     {}", fault.replace('\n', "\n     ")).unwrap_or_default();
    }
    text
}

fn machine(outcomes: &[Outcome]) -> Value {
    let one = |o: &Outcome| json!({"file": o.case.file, "line": o.case.line, "name": o.case.name, "passed": o.faults.is_empty(), "faults": o.faults});
    Value::Array(outcomes.iter().map(one).collect())
}

/// What the core says of the case's events under its policies.
fn run(case: &Case, base: &Texts) -> Result<Report, Failure> {
    let beside = |path: &String| Path::new(&case.file).parent().unwrap_or(Path::new("")).join(path);
    let mut policies: Vec<Text> = Vec::new();
    for path in case.policies.iter().map(beside) {
        policies.extend(load::files(&path, &["yaml", "yml", "json"])?);
    }
    policies.sort();
    policies.dedup();
    let mut settings = load::build(&Texts { policies, ..base.clone() }, load::defaults())?.settings;
    settings.event_clock = true;
    settings.future_at = Some(Wall(i64::MAX));
    let limit = settings.decoder.max_record_bytes;
    let mut simulation = Simulation::new(Arc::new(settings)).map_err(Failure::invalid)?;
    let telemetry: Vec<PathBuf> = case.telemetry.iter().map(beside).collect();
    if !telemetry.is_empty() {
        let mut files = Files::open(&telemetry, Input::Telemetry as u8, limit).map_err(Failure::unreadable)?;
        while let Some(record) = files.next().map_err(Failure::unreadable)? {
            let (Payload::Json(payload) | Payload::Bad(_, payload)) = record.payload;
            simulation.push([payload]).map_err(Failure::invalid)?;
        }
    }
    let events: Vec<Vec<u8>> = case.events.iter().map(|event| event.to_string().into_bytes()).collect();
    simulation.push(events.iter().map(Vec::as_slice)).map_err(Failure::invalid)?;
    simulation.finish().map_err(Failure::invalid)
}

/// The decisions and dead letters of a report, as JSON.
fn said(report: &Report) -> Vec<(What, Value)> {
    let one = |decision: &Decision| {
        let (what, value) = match decision {
            Decision::Signal(s) => (What::Signals, serde_json::to_value(&**s)),
            Decision::Alert(a) => (What::Alerts, serde_json::to_value(&**a)),
            Decision::Intervention(i) => (What::Interventions, serde_json::to_value(&**i)),
            Decision::Audit(a) if a.kind.starts_with("intervention.") => return None,
            Decision::Audit(a) => (What::Shadow, serde_json::to_value(&**a)),
            Decision::Lesson(l) => (What::Lessons, serde_json::to_value(&**l)),
            Decision::Command(_)
            | Decision::CommandResult(_)
            | Decision::Guardian(_)
            | Decision::Policy(_)
            | Decision::Run(_)
            | Decision::Level(_)
            | Decision::Response(_)
            | Decision::Evaluation(_) => return None,
        };
        Some((what, value.unwrap_or_default()))
    };
    let letter = |l: &crate::telemetry::DeadLetter| {
        (What::DeadLetters, json!({"reason": l.reason.as_str(), "message": l.message, "tenant_id": l.tenant_id}))
    };
    report.decisions.iter().filter_map(one).chain(report.dead.iter().map(letter)).collect()
}

/// What is wrong. Every expectation takes a decision of its own: the first that has its fields, those with fewer candidates
/// first, so that a vague one leaves to a precise one what only that can take.
fn judge(case: &Case, said: &[(What, Value)]) -> Vec<String> {
    let matching = |e: &Expected| -> Vec<usize> {
        let all = said.iter().enumerate().filter(|(_, (what, _))| *what == e.what);
        all.filter(|(_, (_, given))| policy::differences(&e.fields, given).is_empty()).map(|(n, _)| n).collect()
    };
    let mut faults = Vec::new();
    let mut wanted: Vec<(&Expected, Vec<usize>)> = case.expect.iter().map(|e| (e, matching(e))).collect();
    wanted.sort_by_key(|(e, candidates)| (candidates.len(), e.line));
    let mut taken = vec![false; said.len()];
    for (expected, candidates) in wanted {
        match candidates.iter().find(|n| !taken[**n]) {
            Some(n) => taken[*n] = true,
            None if candidates.is_empty() => faults.push((expected.line, missing(case, expected, said))),
            None => faults
                .push((expected.line, format!("{}: there are only {} such", brief(case, expected), candidates.len()))),
        }
    }
    for expected in &case.never {
        for n in matching(expected) {
            faults.push((
                expected.line,
                format!("{}: must not be, but is: {}", brief(case, expected), told(expected.what, &said[n].1)),
            ));
        }
    }
    for ((what, given), taken) in said.iter().zip(&taken) {
        if case.exactly.contains(what) && !taken {
            let text = format!(
                "{}:{}: {} beside what is expected: {}",
                case.file,
                case.line,
                what.as_str(),
                told(*what, given)
            );
            faults.push((u64::MAX, text));
        }
    }
    faults.sort();
    faults.into_iter().map(|(_, text)| text).collect()
}

fn brief(case: &Case, expected: &Expected) -> String {
    format!("{}:{}: {} {}", case.file, expected.line, expected.what.as_str(), cut(&expected.fields))
}

fn missing(case: &Case, expected: &Expected, said: &[(What, Value)]) -> String {
    let given: Vec<&Value> = said.iter().filter(|(what, _)| *what == expected.what).map(|(_, v)| v).collect();
    let nearest = given.iter().map(|v| policy::differences(&expected.fields, v)).min_by_key(Vec::len);
    let brief = brief(case, expected);
    match nearest {
        None => format!("{brief}: there are no {} at all", expected.what.as_str()),
        Some(differences) => {
            let list: Vec<String> = differences.iter().map(|(path, v)| format!("{path} {}", cut(v))).collect();
            format!(
                "{brief}: not among {} {}; the nearest has {}",
                given.len(),
                expected.what.as_str(),
                list.join(", ")
            )
        }
    }
}

/// The fields by which a decision is known.
fn told(what: What, given: &Value) -> String {
    let fields: &[&str] = match what {
        What::Signals => &["kind", "mode", "metric", "scope", "value", "limit", "event_time", "reason"],
        What::Alerts => &["status", "severity", "title", "last_seen"],
        What::Interventions => &["type", "state", "target", "policy_id", "created_at", "reason"],
        What::Shadow => &["kind", "subject", "after", "reason"],
        What::Lessons => &["lesson_type", "severity", "title", "detected_pattern"],
        What::DeadLetters => &["reason", "message", "tenant_id"],
    };
    let known = fields.iter().filter_map(|f| Some(((*f).to_owned(), given.get(*f).filter(|v| !v.is_null())?.clone())));
    let mut known: serde_json::Map<String, Value> = known.collect();
    if let (What::Shadow, Some(after)) = (what, known.get_mut("after").and_then(Value::as_object_mut)) {
        after.remove("signal_id");
    }
    cut(&Value::Object(known))
}

fn cut(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= SHOWN {
        return text;
    }
    text.chars().take(SHOWN).chain("…".chars()).collect()
}
