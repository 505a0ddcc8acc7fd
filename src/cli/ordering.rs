//! Commands of this process to the core: signed, sent, and answered.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cli::Failure;
use crate::cli::keys::Keys;
use crate::decide::commands::Command;
use crate::kafka::ShellConfig;
use crate::kafka::follow::Follower;
use crate::kafka::produce::Producer;

/// How long one look at the topic of answers may take.
const LOOK: Duration = Duration::from_millis(100);
/// How long the answer to a command of ours may take.
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
        let kind = command.kind.clone();
        let answers = self.send_all(vec![command], PATIENCE);
        let answers = answers.map_err(|(Failure::Invalid(error) | Failure::Reach(error))| error)?;
        let answer = answers.into_iter().next().flatten();
        answer.ok_or_else(|| format!("no answer to {kind} within {} s", PATIENCE.as_secs()))
    }

    /// Sends commands and waits for the answer of each, in their order; `None`: there was none within `patience`.
    pub(super) fn send_all(&self, commands: Vec<Command>, patience: Duration) -> Result<Vec<Option<Value>>, Failure> {
        let topics = &self.shell.topics;
        let answers = Follower::from_now_on(&self.shell.client, self.reader, &topics.command_results);
        let mut answers = answers.map_err(Failure::reach)?;
        let producer = Producer::courier(&self.shell.client).map_err(Failure::reach)?;
        let ids: Vec<String> = commands.iter().map(|command| command.command_id.clone()).collect();
        for command in commands {
            let key = command.key().to_owned();
            let Keys { ring, sign_with } = &*self.keys;
            let payload = ring.sign(command, sign_with);
            let payload = payload.ok_or_else(|| Failure::Invalid(format!("there is no key {sign_with}")))?;
            producer.send(&topics.commands, key.as_bytes(), &payload).map_err(Failure::reach)?;
        }
        producer.flush(patience).map_err(Failure::reach)?;
        let mut found = vec![None; ids.len()];
        let until = Instant::now() + patience;
        while found.iter().any(Option::is_none) && Instant::now() < until {
            let Some(record) = answers.next(LOOK) else { continue };
            let answer = record.payload.as_deref().and_then(|p| serde_json::from_slice::<Value>(p).ok());
            let Some(answer) = answer else { continue };
            for (place, _) in found.iter_mut().zip(&ids).filter(|(_, id)| answer["command_id"] == **id) {
                *place = Some(answer.clone());
            }
        }
        Ok(found)
    }
}
