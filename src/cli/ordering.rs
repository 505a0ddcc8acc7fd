//! Commands of this process to the core: signed, sent, and answered.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cli::Chain;
use crate::cli::keys::Keys;
use crate::decide::commands::Command;
use crate::kafka::follow::Follower;
use crate::kafka::produce::Producer;
use crate::kafka::{Error, ShellConfig};

/// How long one look at the topic of answers may take.
const LOOK: Duration = Duration::from_millis(250);
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(15);

/// Sends commands.
pub(super) struct Orders {
    /// Where to.
    pub(super) shell: ShellConfig,
    /// Signed with what.
    pub(super) keys: Arc<Keys>,
    /// The name of the consumer that reads the answers.
    pub(super) reader: &'static str,
}

impl Orders {
    /// Sends a command and waits for its answer.
    pub(super) fn send(&self, command: Command) -> Result<Value, String> {
        let (command_id, kind) = (command.command_id.clone(), command.kind.clone());
        let send = || -> Result<(Follower, Producer), Error> {
            let key = command.key().to_owned();
            // the key was looked up when the keys were made
            let payload = self.keys.ring.sign(command.clone(), &self.keys.sign_with).unwrap_or_default();
            let topics = &self.shell.topics;
            let answers = Follower::from_now_on(&self.shell.client, self.reader, &topics.command_results)?;
            let producer = Producer::courier(&self.shell.client)?;
            producer.send(&topics.commands, key.as_bytes(), &payload)?;
            producer.flush(PATIENCE)?;
            Ok((answers, producer))
        };
        let (mut answers, _producer) = send().map_err(|error| Chain(&error).to_string())?;
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            let Some(record) = answers.next(LOOK) else { continue };
            let answer = record.payload.as_deref().and_then(|p| serde_json::from_slice::<Value>(p).ok());
            if let Some(answer) = answer.filter(|answer| answer["command_id"] == *command_id) {
                return Ok(answer);
            }
        }
        Err(format!("no answer to {kind} within {} s", PATIENCE.as_secs()))
    }
}
