//! A [`Partition`] as the shell sees it: steps in, records and a digest out.

use crate::clock::Wall;
use crate::decide::commands::Command;
use crate::decide::records::{Decision, Kind};
use crate::kafka::core::{Core, CoreError, OutRecord, StateChange, StepInput, StepOutput, Topic};
use crate::pipeline::encode::{self, Digest, Head};
use crate::pipeline::partition::{Partition, Step};

/// Version of the deciding code. Digests of another version are not compared on replay.
const VERSION: &str = env!("CARGO_PKG_VERSION");

impl Partition {
    /// A step's records in the order in which they go out.
    pub fn encode(&self, step: &Step) -> Result<StepOutput, CoreError> {
        let source = &self.settings.source;
        let mut out = StepOutput::default();
        if let Some(snapshot) = &step.adopted {
            let id = format!("{}/{}/{}", snapshot.id(), self.own.partition, step.now.0);
            let head = Head { id, kind: "runwarden.snapshot.adopted".into(), time: step.now.0, subject: snapshot.id() };
            out.records.push(OutRecord {
                topic: Topic::Policies,
                partition: None,
                key: format!("*/snapshot/{}", snapshot.id()).into_bytes(),
                payload: Some(snapshot.to_json().into_bytes()),
                headers: head.headers(source),
            });
        }
        for decision in &step.decisions {
            out.urgent |= match decision {
                Decision::Signal(s) => s.kind == Kind::Breach,
                // whoever sent a command waits for its answer, and everyone for the terms
                Decision::Intervention(_) | Decision::Command(_) | Decision::CommandResult(_) | Decision::Policy(_) => {
                    true
                }
                _ => false,
            };
            out.records.push(encode::record(decision, step.now, source)?);
        }
        for dead in &step.dead {
            out.records.push(OutRecord {
                topic: Topic::DeadLetter,
                partition: None,
                key: dead.key.clone().or_else(|| dead.tenant_id.clone().map(String::into_bytes)).unwrap_or_default(),
                payload: Some(dead.value.clone()),
                headers: encode::dead_letter(dead, step.now, source),
            });
        }
        out.records.extend(step.rekeyed.iter().cloned());
        let mut digest = Digest::default();
        for record in &out.records {
            digest.record(record);
            out.bytes += record.key.len() + record.payload.as_ref().map_or(0, Vec::len);
        }
        out.digest = digest.finish();
        for live in &step.live {
            let record = encode::live(live, step.now, source);
            out.bytes += record.key.len() + record.payload.as_ref().map_or(0, Vec::len);
            out.records.push(record);
        }
        // a key may change, what is decided does not: the digest is over commands without their signatures
        let keys = &self.settings.tuning.keys;
        out.records.retain_mut(|record| {
            if record.topic != Topic::Commands {
                return true;
            }
            let command = record.payload.as_deref().and_then(|bytes| serde_json::from_slice::<Command>(bytes).ok());
            record.payload = command.and_then(|command| keys.sign_own(command));
            // without a key nobody would believe it; a process that only looks (`explain`) has none
            record.payload.is_some()
        });
        Ok(out)
    }
}

impl Core for Partition {
    fn version(&self) -> &str {
        VERSION
    }

    fn step(&mut self, input: &StepInput<'_>) -> Result<StepOutput, CoreError> {
        let step = self.advance(input)?;
        self.encode(&step)
    }

    fn take_changes(&mut self) -> Vec<StateChange> {
        self.changes()
    }

    fn mark_all_dirty(&mut self) {
        self.all_dirty();
    }

    fn wants_checkpoint(&self) -> bool {
        self.checkpoint_due
    }

    fn restore(&mut self, key: &[u8], value: &[u8]) -> Result<(), CoreError> {
        self.take_back(key, value)
    }

    fn restored(&mut self) -> Result<(), CoreError> {
        self.taken_back()
    }

    fn split(&mut self, partitions: i32) -> Result<Vec<Vec<StateChange>>, CoreError> {
        self.taken_apart(partitions)
    }

    fn join(&mut self, shares: Vec<Vec<StateChange>>) -> Result<(), CoreError> {
        self.put_together(shares)
    }

    fn next_deadline(&self) -> Option<Wall> {
        self.deadline()
    }
}
