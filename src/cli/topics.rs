//! `runwarden topics`: creates, verifies, describes and resizes the topics of the configuration.

use std::process::ExitCode;

use crate::cli::{Failure, TopicsAction, TopicsArguments, load, resize};
use crate::kafka::provision::{Broker, create_and_verify, describe};

/// Runs the subcommand.
pub(super) fn main(arguments: &TopicsArguments) -> Result<ExitCode, Failure> {
    let config = load::config(arguments.config.path())?;
    let shell = load::shell(&config);
    shell.client.check().map_err(Failure::unreadable)?;
    let broker = Broker::new(shell.client.clone());
    match &arguments.action {
        TopicsAction::Resize(order) => return resize::main(order, &config),
        TopicsAction::Create => {
            let partitions = create_and_verify(&broker, &shell.topics).map_err(Failure::reach)?;
            println!("{} topics are there; telemetry has {partitions} partitions", shell.topics.specs().len());
        }
        TopicsAction::Describe => {
            println!("{:<18}{:<32}{:>11}  {:<18}wanted", "key", "topic", "partitions", "cleanup.policy");
            for topic in describe(&broker, &shell.topics).map_err(Failure::reach)? {
                println!(
                    "{:<18}{:<32}{:>11}  {:<18}{}",
                    topic.key,
                    topic.name,
                    topic.partitions.map_or("missing".to_owned(), |p| p.to_string()),
                    topic.cleanup.unwrap_or_else(|| "-".into()),
                    topic.wanted
                );
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
