//! `runwarden backfill`: the lessons that recorded telemetry teaches, made in the running system (E6).
//!
//! The telemetry goes through the very core that decides live, under the policies of the configuration; each lesson found is one signed
//! command. A lesson that is known already is not made twice, so a backfill may be repeated.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::commanding::{Sent, config, send_all};
use super::simulate::{Recorded, progress, simulate};
use super::{ConfigArgument, Failure, SendArguments, SimulateArguments};
use crate::clock::Wall;
use crate::decide::records::Decision;

/// Commands under way at once.
const AT_ONCE: usize = 500;

#[derive(Debug, Args)]
#[command(after_help = "\
Near thresholds, failures and quick successes of the files become lessons of their tenants, as they would have been live.
Exit codes: 0 all were made or known, 1 some were refused or nothing could be read, 3 the broker or the owner did not answer.")]
pub(super) struct BackfillArguments {
    #[command(flatten)]
    send: SendArguments,
    /// Telemetry files (.jsonl, .csv, .parquet); several are merged by event time
    #[arg(long, value_name = "FILE", required = true, num_args = 1..)]
    telemetry: Vec<PathBuf>,
    /// Only say what would be made
    #[arg(long)]
    dry_run: bool,
}

/// Runs the subcommand.
pub(super) fn main(arguments: &BackfillArguments) -> Result<ExitCode, Failure> {
    let send = &arguments.send;
    let paths = config(send)?.paths;
    let simulated = SimulateArguments {
        policies: paths.policies.clone(),
        against: None,
        queries: paths.queries,
        telemetry: arguments.telemetry.clone(),
        from_topic: false,
        since: None,
        config: ConfigArgument { config: send.config.path().map(PathBuf::from) },
        out: PathBuf::new(),
        now: None,
        prices: paths.prices,
        json: false,
    };
    let recorded = Recorded::of(&simulated)?;
    let done = simulate(&simulated, &recorded, &paths.policies, Wall::now())?;
    if done.decoded() == 0 {
        return Err(Failure::Invalid(format!("no valid row in {}", recorded.name())));
    }
    let mut orders = Vec::new();
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for decision in done.decisions() {
        let Decision::Lesson(lesson) = decision else { continue };
        if send.tenant != "*" && send.tenant != lesson.tenant_id {
            continue;
        }
        *counts.entry(lesson.lesson_type.as_str()).or_default() += 1;
        let body = json!({
            "lesson_type": lesson.lesson_type, "source_event_id": lesson.source_event_id,
            "source_event_type": lesson.source_event_type, "source_run_id": lesson.source_run_id, "severity": lesson.severity,
            "title": lesson.title, "description": lesson.description, "proposed_action": lesson.proposed_action,
            "detected_pattern": lesson.detected_pattern, "is_synthetic": lesson.is_synthetic,
            "synthetic_scenario_id": lesson.synthetic_scenario_id, "reason": send.reason,
        });
        orders.push(Sent { kind: "lesson.create", tenant: lesson.tenant_id.clone(), body });
    }
    for (kind, count) in &counts {
        println!("{kind:<18}{count}");
    }
    if arguments.dry_run {
        return Ok(ExitCode::SUCCESS);
    }
    let (mut made, mut known, mut refused) = (0_u64, 0_u64, 0_u64);
    let bar = progress(orders.len() as u64, "making lessons");
    for chunk in orders.chunks(AT_ONCE) {
        for answer in send_all(chunk, send)? {
            match (answer["status"] == "ACCEPTED", answer["result"]["exists"] == true) {
                (true, false) => made += 1,
                (true, true) => known += 1,
                (false, _) => {
                    refused += 1;
                    eprintln!("refused: {}: {}", answer["code"], answer["reason"]);
                }
            }
        }
        bar.inc(chunk.len() as u64);
    }
    bar.finish_and_clear();
    println!("{:<18}{made}\n{:<18}{known}\n{:<18}{refused}", "made", "known before", "refused");
    Ok(if refused == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) })
}
