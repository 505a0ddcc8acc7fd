//! `runwarden run`: the sidecar.

use std::process::ExitCode;
use std::time::Duration;

use crate::cli::service::{self, Service, Signals};
use crate::cli::{Failure, RunArguments, load};
use crate::kafka::{Ended, Error};

/// How often the main thread looks for a signal.
const LOOK: Duration = Duration::from_millis(100);

/// Runs the subcommand.
pub(super) fn main(arguments: &RunArguments) -> Result<ExitCode, Failure> {
    let config = load::config(arguments.config.path())?;
    crate::logging::init(&config.log, std::env::var("RUST_LOG").ok().as_deref()).map_err(Failure::invalid)?;
    let texts = load::texts(&config)?;
    let mut loaded = load::build(&texts, load::tuning(&config))?;
    for finding in &loaded.findings {
        tracing::warn!("{finding}");
    }
    let mut shell = load::shell(&config);
    shell.until_end = arguments.until_end;
    loaded.settings.event_clock = arguments.until_end;
    if arguments.until_end {
        loaded.settings.future_at = Some(crate::clock::Wall::now());
    }
    let signals = Signals::install()?;
    let policies = loaded.policies.policies().len();
    let service = Service::start(loaded, shell, service::listen(config.http)?, &format!("{:012x}", config.digest()))?;
    tracing::info!(address = %service.address, policies, "runwarden is up");
    let outcome = loop {
        if let Some(outcome) = service.wait(LOOK) {
            break outcome;
        }
        if signals.stop() {
            tracing::info!("draining");
            break service.drain(config.kafka.drain_timeout);
        }
    };
    ended(outcome)
}

fn ended(outcome: Result<Ended, Error>) -> Result<ExitCode, Failure> {
    match outcome {
        Ok(Ended::Drained | Ended::Finished) => Ok(ExitCode::SUCCESS),
        Ok(Ended::Abandoned) => Err(Failure::Reach(
            "the drain deadline passed before everything was committed; the next start repeats what was open".into(),
        )),
        Err(error) => Err(Failure::reach(error)),
    }
}
