//! What the shell asks of a deterministic core: one value per partition, stepped by poll batches.
//!
//! A core is a pure function of (state, input): no I/O, no clock, no randomness. The live loop, recovery by replay,
//! `simulate` and the tests call the same [`Core::step`].
//!
//! There is no undo: the outputs of an uncommitted step are kept by the shell until their transaction commits, and an aborted
//! transaction is sent again from them. State is dropped (and restored) only when the partition itself is lost.

use std::time::Instant;

use crate::clock::{Micros, Wall};

/// The input topics of a partition, in the order a step processes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Input {
    /// `runwarden.commands`
    Commands = 0,
    /// `runwarden.outcomes`
    Outcomes = 1,
    /// `runs.telemetry`: own telemetry, as producers placed it
    Telemetry = 2,
    /// `runwarden.repartition`: telemetry re-keyed to its tenant's partition
    Repartition = 3,
}

impl Input {
    /// All inputs in processing order.
    pub const ALL: [Self; 4] = [Self::Commands, Self::Outcomes, Self::Telemetry, Self::Repartition];

    /// The key under `[topics]` in the configuration; also the metric label.
    pub const fn key(self) -> &'static str {
        match self {
            Self::Commands => "commands",
            Self::Outcomes => "outcomes",
            Self::Telemetry => "telemetry",
            Self::Repartition => "repartition",
        }
    }
}

/// The topics a core writes; names come from `[topics]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "each is the topic of the same name in contracts.md")]
pub enum Topic {
    Signals,
    Alerts,
    Interventions,
    Runs,
    Lessons,
    Policies,
    PolicyLevel,
    Evaluations,
    Audit,
    CommandResults,
    Live,
    DeadLetter,
    Repartition,
    Commands,
}

impl Topic {
    /// All topics a core writes; `Topic as usize` is the position here.
    pub const ALL: [Self; 14] = [
        Self::Signals,
        Self::Alerts,
        Self::Interventions,
        Self::Runs,
        Self::Lessons,
        Self::Policies,
        Self::PolicyLevel,
        Self::Evaluations,
        Self::Audit,
        Self::CommandResults,
        Self::Live,
        Self::DeadLetter,
        Self::Repartition,
        Self::Commands,
    ];

    /// The key under `[topics]` in the configuration; also the metric label.
    pub const fn key(self) -> &'static str {
        match self {
            Self::Signals => "signals",
            Self::Alerts => "alerts",
            Self::Interventions => "interventions",
            Self::Runs => "runs",
            Self::Lessons => "lessons",
            Self::Policies => "policies",
            Self::PolicyLevel => "policy-level",
            Self::Evaluations => "evaluations",
            Self::Audit => "audit",
            Self::CommandResults => "command-results",
            Self::Live => "live",
            Self::DeadLetter => "dead-letter",
            Self::Repartition => "repartition",
            Self::Commands => "commands",
        }
    }
}

/// One consumed record, borrowed from the client's buffer (or from a file).
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// Offset in its input partition.
    pub offset: i64,
    /// The broker's timestamp (log append or create time), µs; 0 when there is none.
    pub timestamp: i64,
    /// Record key.
    pub key: Option<&'a [u8]>,
    /// Record value; `None` is a tombstone.
    pub payload: Option<&'a [u8]>,
    /// Header names and values. Re-keyed records carry their origin here.
    pub headers: &'a [(&'a str, &'a [u8])],
}

/// The records of one input partition in a step: consecutive offsets as delivered (gaps are transaction markers).
#[derive(Debug)]
pub struct InputBatch<'a> {
    /// Which input.
    pub input: Input,
    /// The records in offset order.
    pub records: Vec<Record<'a>>,
    /// Whether this input stood at its end offset when the step was cut.
    pub at_end: bool,
}

/// One step: a poll batch and what the core is not told by data.
#[derive(Debug)]
pub struct StepInput<'a> {
    /// Step number of this partition, 1, 2, 3 …
    pub number: u64,
    /// The step's clock: never before the last step's.
    pub now: Wall,
    /// One entry per input that has records or whose `at_end` is known; in [`Input`] order.
    pub inputs: Vec<InputBatch<'a>>,
    /// A recorded step is run again (recovery, `explain`): outputs are discarded, no new snapshot is adopted.
    pub replaying: bool,
    /// The last step of `simulate` and `run --until-end`: watermarks go to infinity, every window closes.
    pub finish: bool,
}

/// A record to be produced in the step's transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutRecord {
    /// Where to.
    pub topic: Topic,
    /// Explicit partition (re-keyed records); otherwise placed by murmur2 of the key.
    pub partition: Option<i32>,
    /// Record key.
    pub key: Vec<u8>,
    /// Value; `None` is a tombstone.
    pub payload: Option<Vec<u8>>,
    /// Headers in order.
    pub headers: Vec<(String, Vec<u8>)>,
}

/// What a step gave.
#[derive(Debug, Default)]
pub struct StepOutput {
    /// Records to produce, in order.
    pub records: Vec<OutRecord>,
    /// Digest of the step's decisions; measured times are not in it. Recorded on `runwarden.steps`, compared on replay.
    pub digest: u64,
    /// Commit at once (a BREACH or an intervention is among the decisions).
    pub urgent: bool,
    /// Rough bytes the decisions will take, for the size bound of a transaction.
    pub bytes: usize,
    /// Parts of the step as whoever wraps the core measured them, for traces; a core measures nothing.
    pub parts: Vec<Part>,
    /// What a trace says of the step.
    pub facts: Vec<(&'static str, Fact)>,
}

/// A measured part of a step.
#[derive(Debug, Clone, Copy)]
pub struct Part {
    /// Its name.
    pub name: &'static str,
    /// When it began.
    pub from: Instant,
    /// When it ended.
    pub to: Instant,
}

/// Something a trace says of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fact {
    /// How many.
    Count(u64),
    /// When, µs.
    Time(Micros),
}

/// One checkpointed key of a partition's state. `value: None` deletes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateChange {
    /// Unique within the partition; never empty (the empty key is the shell's mark).
    pub key: Vec<u8>,
    /// Versioned, checksummed bytes.
    pub value: Option<Vec<u8>>,
}

/// Why a core stopped. Nothing a record contains may cause one: bad records are dead letters.
#[derive(Debug, thiserror::Error)]
#[error("{context}: {message}")]
pub struct CoreError {
    /// What was being done.
    pub context: &'static str,
    /// What went wrong.
    pub message: String,
}

/// A partition's deterministic state.
pub trait Core: Send {
    /// Version of the code that decides; another version's digests are not compared.
    fn version(&self) -> &str;
    /// Processes one step.
    fn step(&mut self, input: &StepInput<'_>) -> Result<StepOutput, CoreError>;
    /// Called once after each live step: says in the log and in metrics what was decided. What is logged here carries the step's
    /// id, and that of its trace.
    fn tell(&mut self) {}
    /// State changed since the last call (everything, once, after `mark_all_dirty` or for a new core).
    fn take_changes(&mut self) -> Vec<StateChange>;
    /// Makes the next [`Core::take_changes`] a full one.
    fn mark_all_dirty(&mut self);
    /// Whether the last step took over something that is in no input (a snapshot was adopted): a replay would not, so a checkpoint has to
    /// be committed with the step.
    fn wants_checkpoint(&self) -> bool {
        false
    }
    /// Takes one checkpointed key back. Unknown or older versions are counted and refused, never misread; a refused key
    /// leaves the rest usable.
    fn restore(&mut self, key: &[u8], value: &[u8]) -> Result<(), CoreError>;
    /// Called once after the last `restore` and before the first `step`. An error says that something is missing: it is
    /// counted like a refused key, and the core goes on with the rest.
    fn restored(&mut self) -> Result<(), CoreError>;
    /// The steps between the restored checkpoint and the offsets to go on from cannot be re-run (their input or record is
    /// gone): called once, after the replay gave up and before the next live step. What was missed makes results incomplete.
    fn history_gone(&mut self, _reason: &str) {}
    /// The whole state, taken apart for `partitions` partitions (`topics resize`): share p is what partition p is to hold of it.
    /// Ends the use of this core, which must be restored. What is of no single partition may be in every share.
    ///
    /// # Errors
    /// A state key of which it is not known where it belongs.
    fn split(&mut self, partitions: i32) -> Result<Vec<Vec<StateChange>>, CoreError>;
    /// Takes back, in a new core, its shares of several cores' [`Core::split`]; in place of [`Core::restore`] and
    /// [`Core::restored`]. The next [`Core::take_changes`] is a full one.
    ///
    /// # Errors
    /// A key that is refused or missing: the state would not be whole.
    fn join(&mut self, shares: Vec<Vec<StateChange>>) -> Result<(), CoreError>;
    /// Whether the core can take telemetry and outcomes now. While it cannot, steps bring it commands only, and the rest waits
    /// in Kafka.
    fn takes_telemetry(&self) -> bool {
        true
    }
    /// Earliest wall time at which a step without input would do something (idle tenants, deadlines); `None`: never.
    fn next_deadline(&self) -> Option<Wall>;
}
