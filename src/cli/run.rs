//! `runwarden run`: the sidecar.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use crate::cli::delivering::{self, Delivering};
use crate::cli::edging::Edging;
use crate::cli::governing::SetFiles;
use crate::cli::keys::{self, Keys};
use crate::cli::load::{Loaded, Texts, Tuning};
use crate::cli::securing::Listening;
use crate::cli::service::{self, Deciding, Governance, Service, Signals};
use crate::cli::tabling::Tabling;
use crate::cli::verdicting::Answering;
use crate::cli::{Chain, Failure, RunArguments, leveled, load};
use crate::config::{Config, Role};
use crate::kafka::provision::{Broker, create_and_verify, verify};
use crate::kafka::{ClientSettings, Ended, Error, Topics};
use crate::pipeline::terms;
use crate::policy::Severity;

/// Between two attempts to make sure of the topics.
const AGAIN: Duration = Duration::from_secs(5);
/// How often the main thread looks for a signal.
const LOOK: Duration = Duration::from_millis(100);

/// Runs the subcommand.
pub(super) fn main(arguments: &RunArguments) -> Result<ExitCode, Failure> {
    let config = load::config(arguments.config.path())?;
    crate::logging::init(&config.log, std::env::var("RUST_LOG").ok().as_deref()).map_err(Failure::invalid)?;
    let core = config.roles.contains(&Role::Core);
    if arguments.until_end && !core {
        return Err(Failure::Invalid(
            "--until-end reads telemetry to its end, which is what the role core does: add \"core\" to [roles] enabled"
                .into(),
        ));
    }
    load::shell(&config).client.check().map_err(Failure::unreadable)?;
    let listener = service::secured(&config.http)?;
    let edging = if arguments.until_end { None } else { Edging::of(&config)? };
    let hash = format!("{:012x}", config.digest());
    if !core {
        return alone(&config, listener, edging, &hash);
    }
    let texts = load::texts(&config)?;
    let keys = Arc::new(keys::of(&config)?);
    let tuning = Tuning { keys: Arc::clone(&keys.ring), ..load::tuning(&config) };
    let mut loaded = load::build(&texts, tuning.clone())?;
    for finding in &loaded.findings {
        match finding.severity {
            Severity::Note => tracing::info!("{finding}"),
            Severity::Warning | Severity::Error => tracing::warn!("{finding}"),
        }
    }
    let mut shell = load::shell(&config);
    shell.until_end = arguments.until_end;
    let (client, topics) = (shell.client.clone(), shell.topics.clone());
    loaded.settings.event_clock = arguments.until_end;
    if arguments.until_end {
        loaded.settings.future_at = Some(crate::clock::Wall::now());
    }
    let signals = Signals::install()?;
    let policies = loaded.policies.policies().len();
    let follows = config.roles.contains(&Role::Serve) && !arguments.until_end;
    let level = follows.then(|| leveled::start(&config, shell.clone(), Arc::clone(&keys))).transpose()?;
    let answering = Answering::of(&config, Some(&keys))?.filter(|_| !arguments.until_end);
    let tabling = Tabling::of(&config, &keys).filter(|_| !arguments.until_end);
    let delivering = if arguments.until_end { None } else { Delivering::of(&config)? };
    for said in delivering::unrouted(&config, &loaded.policies).said() {
        tracing::warn!("{said}");
    }
    let governance = match arguments.until_end {
        true => Governance::Files,
        false => governance(&config, texts, tuning, keys, &loaded),
    };
    let traces = load::traces(&config, &shell);
    let deciding = Deciding { loaded, shell, governance, traces };
    let service = Service::start(Some(deciding), &config.roles, listener, &hash, answering, tabling)?;
    let edge = edging.map(|edging| edging.start(&service.metrics)).transpose()?;
    let delivered = delivering.map(|delivering| delivering.start(&service.metrics)).transpose()?;
    let sql = service.sql().map(tracing::field::display);
    let otlp = edge.as_ref().map(|edge| tracing::field::display(edge.address));
    tracing::info!(address = %service.address, sql, otlp, policies, roles = roles(&config), "runwarden is up");
    let refused = provision(&client, &topics)?;
    let outcome = loop {
        if let Ok(error) = refused.try_recv() {
            service.drain(config.kafka.drain_timeout).map_err(Failure::reach)?;
            return Err(Failure::reach(error));
        }
        if let Some(outcome) = service.wait(LOOK) {
            break outcome;
        }
        if signals.stop() {
            tracing::info!("draining");
            // what was sent here is on the topic before the partitions are given up
            drop(edge);
            break service.drain(config.kafka.drain_timeout);
        }
    };
    drop(level);
    drop(delivered);
    ended(outcome)
}

/// The files of a configuration, offered to the policies topic, now and whenever they change.
fn governance(config: &Config, texts: Texts, tuning: Tuning, keys: Arc<Keys>, loaded: &Loaded) -> Governance {
    let root = config.paths.policies.display().to_string();
    let set = SetFiles::new(&texts, &root, loaded);
    let config = config.clone();
    let mut last = texts;
    let reread = move || {
        let texts = load::texts(&config)?;
        if texts == last {
            return Ok(None);
        }
        last = texts;
        let loaded = load::build(&last, tuning.clone())?;
        let set = SetFiles::new(&last, &root, &loaded);
        Ok(Some((set, terms::following(loaded.settings))))
    };
    Governance::Topic { keys, set, reread: Some(Box::new(reread)) }
}

/// A process without the role core: it owns nothing, joins no group and needs no broker.
fn alone(config: &Config, listener: Listening, edging: Option<Edging>, hash: &str) -> Result<ExitCode, Failure> {
    let signals = Signals::install()?;
    let follows = config.roles.contains(&Role::Serve);
    let keys = follows.then(|| keys::of(config)).transpose()?.map(Arc::new);
    let answering = Answering::of(config, keys.as_ref())?;
    let tabling = keys.as_ref().and_then(|keys| Tabling::of(config, keys));
    let _level = keys.map(|keys| leveled::start(config, load::shell(config), keys)).transpose()?;
    let delivering = Delivering::of(config)?;
    let service = Service::start(None, &config.roles, listener, hash, answering, tabling)?;
    let edge = edging.map(|edging| edging.start(&service.metrics)).transpose()?;
    let _delivered = delivering.map(|delivering| delivering.start(&service.metrics)).transpose()?;
    let sql = service.sql().map(tracing::field::display);
    let otlp = edge.as_ref().map(|edge| tracing::field::display(edge.address));
    tracing::info!(address = %service.address, sql, otlp, roles = roles(config), "runwarden is up, without the role core: it owns no partitions");
    if let Some(said) = config.idle_process() {
        tracing::warn!("{said}");
    }
    if config.traces.endpoint.is_some() {
        tracing::warn!("[traces] endpoint is set, and without the role core there are no steps to trace");
    }
    while !signals.stop() {
        std::thread::sleep(LOOK);
    }
    drop(edge);
    ended(service.drain(config.kafka.drain_timeout))
}

/// The roles as they are written in the configuration.
fn roles(config: &Config) -> String {
    config.roles.iter().map(|role| role.as_str()).collect::<Vec<_>>().join(" ")
}

/// Creates topics that are missing and verifies the others, while the shell waits for them. Gives what makes them unusable;
/// a broker that does not answer, or does not let us, is asked again.
fn provision(client: &ClientSettings, topics: &Topics) -> Result<Receiver<Error>, Failure> {
    let (sender, refused) = mpsc::channel();
    let (broker, topics) = (Broker::new(client.clone()), topics.clone());
    let work = move || {
        let mut said = String::new();
        loop {
            let outcome = match verify(&broker, &topics) {
                Err(Error::MissingTopic(_)) => create_and_verify(&broker, &topics),
                outcome => outcome,
            };
            match outcome {
                Ok(partitions) => return tracing::debug!(partitions, "topics are as they have to be"),
                Err(
                    error @ (Error::Partitions { .. }
                    | Error::Cleanup { .. }
                    | Error::Settings(_)
                    | Error::NeedsTls { .. }),
                ) => {
                    if sender.send(error).is_err() {
                        tracing::debug!("the process is ending");
                    }
                    return;
                }
                Err(error) => {
                    let error = Chain(&error).to_string();
                    // each cause once: the shell says that it waits
                    if error == said {
                        tracing::debug!(error, "cannot make sure of the topics, trying again");
                    } else {
                        tracing::warn!(error, "cannot make sure of the topics, trying again");
                    }
                    said = error;
                }
            }
            std::thread::sleep(AGAIN);
        }
    };
    std::thread::Builder::new().name("topics".into()).spawn(work).map_err(Failure::reach)?;
    Ok(refused)
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
