//! `runwarden simulate`: the core over recorded telemetry (P12).
//!
//! Writes one file per kind of record, even if empty, and a summary. Progress goes to standard error, the table to standard
//! output. Bad records go to `dead-letter.jsonl` and do not change the exit code.

pub(super) mod asked;
mod compare;
mod held;
mod source;
mod summary;
mod table;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufWriter, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use crate::cli::load;
use crate::cli::unmatched::{Looked, Policies};
use crate::cli::{Failure, SimulateArguments};
use crate::clock::Wall;
use crate::decide::records::{Decision, Place};
use crate::pipeline::Settings;
use crate::pipeline::simulate::{Report, Simulation};
use crate::telemetry::Decoder;
use crate::telemetry::files::Payload;

use self::held::{Orders, Standing};
pub(super) use self::source::Recorded;
use self::summary::Summary;

/// Records handed to the core at once.
const BATCH: usize = 8192;

/// Runs the subcommand.
pub(super) fn main(arguments: &SimulateArguments) -> Result<ExitCode, Failure> {
    let now = arguments.now.unwrap_or_else(Wall::now);
    fs::create_dir_all(&arguments.out)
        .map_err(|e| Failure::Reach(format!("cannot create {}: {e}", arguments.out.display())))?;
    let recorded = Recorded::of(arguments)?;
    let first = simulate(arguments, &recorded, &arguments.policies, now)?;
    let summary = Summary::of(&first);
    write(&arguments.out, &first)?;
    write_json(&arguments.out.join("summary.json"), &summary)?;
    let mut diff = None;
    if let Some(against) = &arguments.against {
        let second = simulate(arguments, &recorded, against, now)?;
        let said = compare::diff(&first, &summary, &second, &Summary::of(&second));
        write_json(&arguments.out.join("diff.json"), &said)?;
        diff = Some(said);
    }
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&summary).map_err(Failure::reach)?);
    } else {
        print!("{}", table::of(&summary));
        if let (Some(diff), Some(against)) = (diff, &arguments.against) {
            print!("\n{}", diff.table(&arguments.policies, against));
        }
    }
    if first.report.counts.decoded == 0 {
        return Err(Failure::Invalid(format!(
            "no valid row in {}; {} says why",
            recorded.name(),
            arguments.out.join("dead-letter.jsonl").display()
        )));
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) struct Done {
    report: Report,
    /// Where record n came from: file or topic, partition, line or offset.
    places: Vec<(u32, i32, i64)>,
    /// Names of the files, or of the topic.
    files: Vec<String>,
    from_topic: bool,
    /// The metrics, in the order of the counts.
    metrics: Vec<String>,
    /// Policies in force that matched nothing.
    unmatched: Policies,
    /// What orders there were, and what each would have held back.
    orders: Vec<Standing>,
}

impl Done {
    /// Rows that could be decoded.
    pub(super) fn decoded(&self) -> u64 {
        self.report.counts.decoded
    }

    /// Everything that was decided.
    pub(super) fn decisions(&self) -> &[Decision] {
        &self.report.decisions
    }
}

/// Runs the core over recorded telemetry under a set of policies.
pub(super) fn simulate(
    arguments: &SimulateArguments,
    recorded: &Recorded,
    policies: &Path,
    now: Wall,
) -> Result<Done, Failure> {
    let texts = load::Texts::read(&arguments.queries, policies, &arguments.prices)?;
    let mut settings = load::build(&texts, load::defaults())?.settings;
    settings.finals = true;
    settings.stream.all_finals = true;
    over(settings, recorded, &policies.display().to_string(), now, &AtomicBool::new(false))
}

/// Runs the core over recorded telemetry under these settings, until somebody gives it up.
fn over(
    mut settings: Settings,
    recorded: &Recorded,
    policies: &str,
    now: Wall,
    given_up: &AtomicBool,
) -> Result<Done, Failure> {
    let heeded = || match given_up.load(Ordering::Relaxed) {
        true => Err(Failure::Reach("it was given up".into())),
        false => Ok(()),
    };
    let mut unmatched = load::in_force(&settings.snapshot);
    let mut looked = Looked::default();
    settings.event_clock = true;
    settings.future_at = Some(now);
    let metrics = settings.metrics.iter().map(|m| m.name.clone()).collect();
    let settings = Arc::new(settings);
    let mut simulation = Simulation::new(Arc::clone(&settings)).map_err(Failure::invalid)?;
    let limit = crate::config::Config::default().limits.record_bytes;
    let mut source = recorded.open(limit)?;
    let from_topic = matches!(recorded, Recorded::Topic(..));
    let bar = progress(source.progress().1, &format!("simulating {policies}"));
    let (mut places, mut batch) = (Vec::new(), Vec::<Vec<u8>>::with_capacity(BATCH));
    let mut names: Vec<Arc<str>> = Vec::new();
    // by the number of the record: what a reader could not make a record of is refused by the decoder, for this reason
    let mut faults: BTreeMap<usize, String> = BTreeMap::new();
    loop {
        let record = source.next()?;
        let ended = record.is_none();
        if let Some(record) = record {
            let file = names.iter().position(|n| *n == record.origin.topic).unwrap_or_else(|| {
                names.push(Arc::clone(&record.origin.topic));
                names.len() - 1
            });
            if let Payload::Bad(message, _) = record.payload {
                faults.insert(places.len(), message.to_owned());
            }
            let partition = if from_topic { record.origin.partition } else { 0 };
            places.push((u32::try_from(file).unwrap_or(u32::MAX), partition, record.origin.offset));
            batch.push(match record.payload {
                Payload::Json(bytes) | Payload::Bad(_, bytes) => bytes.to_vec(),
            });
        }
        if batch.len() == BATCH || (ended && !batch.is_empty()) {
            heeded()?;
            simulation.push(batch.iter().map(Vec::as_slice)).map_err(Failure::invalid)?;
            looked.look(simulation.limits(), &mut unmatched);
            bar.set_position(source.progress().0);
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
    heeded()?;
    let orders = held_back(recorded, &settings, now, Orders::of(&report.decisions))?;
    Ok(Done { report, places, files: names, from_topic, metrics, unmatched, orders })
}

/// Reads the telemetry once more for what the orders would have held back; not at all where there is none.
fn held_back(
    recorded: &Recorded,
    settings: &Settings,
    now: Wall,
    mut orders: Orders,
) -> Result<Vec<Standing>, Failure> {
    if orders.is_empty() {
        return Ok(Vec::new());
    }
    let mut source = recorded.open(settings.decoder.max_record_bytes)?;
    let bar = progress(source.progress().1, "what orders would have held back");
    let mut decoder = Decoder::new(Arc::clone(&settings.decoder));
    let mut count = 0_i64;
    while let Some(record) = source.next()? {
        record.push(&mut decoder, count, now);
        count += 1;
        if count % BATCH as i64 == 0 {
            orders.observe(&decoder.finish().batch);
            bar.set_position(source.progress().0);
        }
    }
    orders.observe(&decoder.finish().batch);
    bar.finish_and_clear();
    Ok(orders.into_all())
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

/// Replaces sequence numbers by file and line, or partition and offset, in the evidence.
fn name_places(report: &mut Report, places: &[(u32, i32, i64)], files: &[String]) {
    let name = |place: &mut Option<Place>| {
        let Some(place) = place else { return };
        let at = usize::try_from(place.offset).ok().and_then(|n| places.get(n));
        if let Some((file, partition, line)) = at {
            place.topic = files.get(*file as usize).cloned().unwrap_or_default();
            place.partition = *partition;
            place.offset = *line;
        }
    };
    for decision in &mut report.decisions {
        if let Decision::Signal(signal) = decision {
            name(&mut signal.evidence.first);
            name(&mut signal.evidence.last);
        }
    }
}

/// Writes the record files.
fn write(out: &Path, done: &Done) -> Result<(), Failure> {
    let report = &done.report;
    let mut lines: BTreeMap<&str, Vec<Vec<u8>>> = BTreeMap::new();
    for decision in &report.decisions {
        let (file, bytes) = match decision {
            Decision::Signal(s) => ("signals", serde_json::to_vec(&**s)),
            Decision::Alert(a) => ("alerts", serde_json::to_vec(&**a)),
            Decision::Intervention(i) => ("interventions", serde_json::to_vec(&**i)),
            Decision::Evaluation(e) => ("evaluations", serde_json::to_vec(&**e)),
            // the life of an intervention is in its own file
            Decision::Audit(a) if a.kind.starts_with("intervention.") => continue,
            Decision::Audit(a) => ("shadow", serde_json::to_vec(&**a)),
            Decision::Lesson(l) => ("lessons", serde_json::to_vec(&**l)),
            Decision::Command(_)
            | Decision::CommandResult(_)
            | Decision::Guardian(_)
            | Decision::Policy(_)
            | Decision::Run(_)
            | Decision::Level(_)
            | Decision::Response(_) => continue,
        };
        lines.entry(file).or_default().push(bytes.map_err(Failure::reach)?);
    }
    for letter in &report.dead {
        let (file, partition, line) =
            usize::try_from(letter.origin.offset).ok().and_then(|n| done.places.get(n)).copied().unwrap_or_default();
        let name = done.files.get(file as usize);
        let origin = match done.from_topic {
            true => json!({"topic": name, "partition": partition, "offset": line}),
            false => json!({"file": name, "line": line}),
        };
        let value = serde_json::from_slice::<Value>(&letter.value)
            .unwrap_or_else(|_| String::from_utf8_lossy(&letter.value).into_owned().into());
        let record = json!({
            "reason": letter.reason.as_str(), "message": letter.message, "origin": origin, "value": value,
        });
        lines.entry("dead-letter").or_default().push(serde_json::to_vec(&record).map_err(Failure::reach)?);
    }
    for window in &report.windows {
        lines.entry("windows").or_default().push(serde_json::to_vec(&window.to_json()).map_err(Failure::reach)?);
    }
    for name in ["windows", "signals", "alerts", "interventions", "shadow", "lessons", "evaluations", "dead-letter"] {
        write_lines(&out.join(format!("{name}.jsonl")), lines.get(name).map_or(&[][..], Vec::as_slice))?;
    }
    Ok(())
}

fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<(), Failure> {
    let text = serde_json::to_vec_pretty(value).map_err(Failure::reach)?;
    fs::write(path, text).map_err(|e| Failure::Reach(format!("cannot write {}: {e}", path.display())))
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
