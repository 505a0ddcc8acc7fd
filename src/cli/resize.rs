//! `runwarden topics resize`: the command around [`crate::kafka::resize`].

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use crate::cli::{Failure, ResizeArguments, governing, keys, load};
use crate::config::Config;
use crate::kafka::resize::{Order, Report, resize};
use crate::kafka::{CoreFactory, Error, Event, Observer};
use crate::pipeline::{Own, Partition};

/// Runs the subcommand.
pub(super) fn main(arguments: &ResizeArguments, config: &Config) -> Result<ExitCode, Failure> {
    if let Ok(filter) = std::env::var("RUST_LOG") {
        crate::logging::init(&config.log, Some(&filter)).map_err(Failure::invalid)?;
    }
    let loaded = load::build(&load::texts(config)?, load::tuning(config))?;
    let shell = load::shell(config);
    let keys = keys::of(config)?;
    let tuning = load::Tuning { keys: keys.ring, ..load::tuning(config) };
    // what is in force there, not what the files say by now
    let settings = match governing::in_force_now(&shell, &tuning)? {
        Some(in_force) => in_force.settings,
        None => Arc::new(loaded.settings),
    };
    let factory: CoreFactory = Arc::new(move |partition, partitions| {
        Ok(Box::new(Partition::new(Arc::clone(&settings), Own { partition, partitions })?))
    });
    let order = Order {
        partitions: arguments.partitions,
        dry_run: arguments.dry_run,
        accept_loss: arguments.accept_loss,
        leave_backlog: arguments.leave_backlog,
    };
    let begun = Instant::now();
    let say = |text: &str| eprintln!("[{:7.1} s] {text}", begun.elapsed().as_secs_f64());
    let report = resize(&shell, factory, Arc::new(Teller(begun)), order, &say).map_err(failure)?;
    print!("{}", summary(&report, order, &format!("{:.1} s", begun.elapsed().as_secs_f64())));
    Ok(ExitCode::SUCCESS)
}

fn failure(error: Error) -> Failure {
    match error {
        Error::Refused(_) | Error::Resized { .. } | Error::MissingTopic(_) => Failure::invalid(error),
        other => Failure::reach(other),
    }
}

/// Tells a person on standard error what matters of restores and of processing what is unread.
struct Teller(Instant);

impl Observer for Teller {
    fn on(&self, event: Event<'_>) {
        let text = match event {
            Event::RestoreProgress { partition, keys, steps } => {
                format!("partition {partition}: {keys} state records read, {steps} steps run again")
            }
            Event::Restored { partition, keys, steps, took, .. } => {
                format!("partition {partition}: restored from {keys} state records and {steps} steps in {took:.1?}")
            }
            Event::ReplayMismatch { partition, step, .. } => {
                format!("partition {partition}: step {step} decided otherwise when run again")
            }
            Event::HistoryGone { partition, reason } => format!("partition {partition}: history is gone: {reason}"),
            Event::KeyRefused { partition, reason } => {
                format!("partition {partition}: a state key is refused: {reason}")
            }
            Event::Waiting { reason, again: 0 } => format!("waiting for Kafka: {reason}"),
            Event::Rebuilding { reason, .. } => format!("rebuilding the Kafka clients: {reason}"),
            Event::Trouble { reason } => reason.to_owned(),
            _ => return,
        };
        eprintln!("[{:7.1} s] {text}", self.0.elapsed().as_secs_f64());
    }
}

/// The report as lines for people.
fn summary(report: &Report, order: Order, took: &str) -> String {
    let Report { from, to, .. } = report;
    if report.nothing_to_do {
        return format!("nothing to do: every topic has {to} partitions, and the state is theirs\n");
    }
    let mut lines = vec![("partitions", format!("{from} before, {to} after"))];
    if report.moved_before {
        lines[0].1 = format!("{to}");
        lines.push(("state", "was moved by an earlier run".to_owned()));
    } else {
        let of: Vec<String> = report.keys_of.iter().map(ToString::to_string).collect();
        lines.push(("state keys", format!("{}, {} on another partition", report.keys, report.keys_moved)));
        lines.push(("per partition", of.join(" ")));
        lines.push(("bytes", report.bytes.to_string()));
        let unread = match (report.backlog, order.dry_run || order.leave_backlog) {
            (0, _) => "0".to_owned(),
            (n, false) => format!("{n}, processed first"),
            (n, true) if order.dry_run && !order.leave_backlog => format!("{n}, to be processed first"),
            (n, true) => format!("{n}, left to the sidecars"),
        };
        lines.push(("unread records", unread));
    }
    lines.push(("topics grown", report.grown.join(" ")));
    lines.extend(report.losses.iter().map(|loss| ("accepted loss", loss.clone())));
    lines.push(("took", took.to_owned()));
    let mut text = String::new();
    if order.dry_run {
        text.push_str("dry run: nothing was changed; this is what would be\n");
    }
    text.extend(lines.iter().map(|(name, value)| format!("{name:<16}{value}\n")));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORDER: Order = Order { partitions: 5, dry_run: false, accept_loss: false, leave_backlog: false };

    #[test]
    fn the_summary_says_what_was_done() {
        let report = Report {
            from: 2,
            to: 5,
            keys: 30,
            keys_moved: 18,
            keys_of: vec![7, 6, 5, 8, 4],
            bytes: 4_096,
            backlog: 12,
            grown: vec!["runwarden.checkpoint".into(), "runs.telemetry".into()],
            ..Report::default()
        };
        let text = summary(&report, ORDER, "1.5 s");
        let expected = "\
partitions      2 before, 5 after
state keys      30, 18 on another partition
per partition   7 6 5 8 4
bytes           4096
unread records  12, processed first
topics grown    runwarden.checkpoint runs.telemetry
took            1.5 s
";
        assert_eq!(text, expected);
        let dry = summary(&report, Order { dry_run: true, ..ORDER }, "1.5 s");
        assert!(dry.starts_with("dry run") && dry.contains("12, to be processed first"), "{dry}");
        let left = summary(&report, Order { leave_backlog: true, ..ORDER }, "1.5 s");
        assert!(left.contains("12, left to the sidecars"), "{left}");
        let again = summary(&Report { from: 5, to: 5, nothing_to_do: true, ..Report::default() }, ORDER, "");
        assert!(again.starts_with("nothing to do"), "{again}");
    }
}
