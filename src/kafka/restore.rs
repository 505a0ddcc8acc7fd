//! Brings a partition's core back: checkpoint, then the recorded steps up to the committed offsets.
//!
//! Order matters, because a dead owner's last transaction may still be on its way: committed offsets first (the broker holds
//! them back while a transaction with them is open), then the end of checkpoint and steps as a read_uncommitted reader sees it,
//! then wait until a read_committed one sees as far, then read. Runs on its own threads; the loop goes on with other partitions.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use rdkafka::Offset;
use rdkafka::error::KafkaError;
use rdkafka::message::Message;

use crate::clock::Wall;
use crate::traces::Tracer;

use super::checkpoint::{Assembly, Checkpoint, Mark, Slots};
use super::client::{ShellConfig, StartAt};
use super::core::{Core, CoreError, Input};
use super::errors::{Error, is_transient};
use super::partition::INPUTS;
use super::reader::{Ends, InputQueue, Next, OwnedRecord, RangeError};
use super::recorded::again;
use super::shell::CoreFactory;
use super::status::{Event, Observer, Status};
use super::steps::{self, Step};

const RETRY: Duration = Duration::from_millis(50);
const PROGRESS: Duration = Duration::from_secs(2);

/// A partition to restore.
pub(super) struct Job {
    pub(super) partition: i32,
    pub(super) partitions: i32,
    pub(super) cancel: Arc<AtomicBool>,
    /// Session of the loop; results of an older one are dropped.
    pub(super) session: u64,
    /// Whether the result is to name every key that the checkpoint holds.
    pub(super) keep_keys: bool,
}

/// A restored partition.
pub(super) struct Restored {
    pub(super) partition: i32,
    pub(super) core: Box<dyn Core>,
    pub(super) number: u64,
    pub(super) now: Wall,
    /// Next offset per input.
    pub(super) offsets: [i64; INPUTS],
    /// Until-end runs: where each input ends; the re-keyed one has no end of its own.
    pub(super) limits: [Option<i64>; INPUTS],
    pub(super) checkpoint: u64,
    pub(super) checkpoint_step: u64,
    pub(super) slots: Slots,
    pub(super) steps_from: i64,
    /// A checkpoint is to be written at once: history was lost, or none exists yet.
    pub(super) checkpoint_now: bool,
    /// What the checkpoint holds, where asked for.
    pub(super) keys: Vec<Vec<u8>>,
    /// What makes this less than the state there was: keys refused, history gone, steps that decided otherwise when run again.
    pub(super) faults: Vec<String>,
}

/// What became of a job.
pub(super) struct Outcome {
    pub(super) session: u64,
    pub(super) partition: i32,
    pub(super) cancel: Arc<AtomicBool>,
    /// `None`: cancelled.
    pub(super) result: Result<Option<Box<Restored>>, Error>,
}

/// What restores share.
pub(super) struct Plan {
    pub(super) config: ShellConfig,
    pub(super) factory: CoreFactory,
    pub(super) observer: Arc<dyn Observer>,
    pub(super) status: Arc<Status>,
    /// Takes the spans of steps; `None`: none is traced.
    pub(super) tracer: Option<Arc<Tracer>>,
}

/// Works off jobs until the sender is gone. Clients are kept while jobs keep coming.
pub(super) fn work(plan: &Plan, jobs: &Receiver<Job>, outcomes: &Sender<Outcome>, wake: &dyn Fn()) {
    let mut readers = None;
    loop {
        let job = match jobs.recv_timeout(Duration::from_secs(2)) {
            Ok(job) => job,
            Err(RecvTimeoutError::Timeout) => {
                readers = None;
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => return,
        };
        let Job { partition, session, .. } = job;
        let cancel = Arc::clone(&job.cancel);
        let attempt = catch_unwind(AssertUnwindSafe(|| {
            let readers = match &mut readers {
                Some(readers) => readers,
                none => none.insert(Ends::new(&plan.config.client, &plan.config.group)?),
            };
            Restore::new(plan, readers, &job).run()
        }));
        let result = match attempt {
            Ok(Ok(restored)) => Ok(Some(Box::new(restored))),
            Ok(Err(Stop::Cancelled)) => Ok(None),
            Ok(Err(Stop::Failed(error))) => Err(error),
            Err(_) => {
                let message = "the core panicked while being restored; the panic is in the log".to_owned();
                Err(Error::Core { partition, source: CoreError { context: "restore", message } })
            }
        };
        if outcomes.send(Outcome { session, partition, cancel, result }).is_err() {
            return;
        }
        wake();
    }
}

pub(super) enum Stop {
    Cancelled,
    Failed(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl From<Stop> for Error {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Cancelled => Self::BrokenOff("a restore was cancelled".into()),
            Stop::Failed(error) => error,
        }
    }
}

pub(super) struct Restore<'a> {
    pub(super) plan: &'a Plan,
    readers: &'a Ends,
    pub(super) job: &'a Job,
    started: Instant,
    keys: u64,
    bytes: u64,
    steps: u64,
    records: u64,
    faults: Vec<String>,
}

/// Faults kept for a report; all are told.
const MAX_FAULTS: usize = 20;

impl<'a> Restore<'a> {
    pub(super) fn new(plan: &'a Plan, readers: &'a Ends, job: &'a Job) -> Self {
        let (keys, bytes, steps, records) = Default::default();
        Self { plan, readers, job, started: Instant::now(), keys, bytes, steps, records, faults: Vec::new() }
    }

    fn fault(&mut self, fault: impl Into<String>) {
        if self.faults.len() < MAX_FAULTS {
            self.faults.push(fault.into());
        }
    }

    fn refuse(&mut self, reason: &str) {
        self.fault(format!("a key is refused: {reason}"));
        self.tell(Event::KeyRefused { partition: self.job.partition, reason });
    }

    fn run(mut self) -> Result<Restored, Stop> {
        let Self { plan, job, .. } = self;
        let topics = &plan.config.topics;
        let partition = job.partition;
        let names: [&str; INPUTS] = std::array::from_fn(|i| topics.input(Input::ALL[i]));
        let committed = self.retry("read committed offsets", |r| r.committed.committed(&names, partition))?;
        self.await_stable(&topics.checkpoint)?;
        let steps_end = self.await_stable(&topics.steps)?;
        let Checkpoint { mark, state, slots, broken } = self.read_checkpoint()?;
        self.check_count(mark.as_ref(), &committed)?;
        let mut core = (plan.factory)(partition, job.partitions).map_err(|source| Error::Core { partition, source })?;
        for (key, value) in &state {
            if let Err(error) = core.restore(key, value) {
                self.refuse(&error.to_string());
            }
        }
        for _key in &broken {
            self.refuse("parts of its value are missing");
        }
        let held = if job.keep_keys { state.into_keys().chain(broken).collect() } else { Vec::new() };
        if let Err(error) = core.restored() {
            self.refuse(&error.to_string());
        }

        let steps_from = mark.as_ref().map_or(0, |m| m.steps_from);
        let recorded = self.read_steps(mark.as_ref(), steps_from)?;
        let mut gone = None;
        let mut number = mark.as_ref().map_or(0, |m| m.step);
        let mut now = mark.as_ref().map_or(Wall(0), |m| Wall(m.now));
        let mut reached = mark.as_ref().map(|m| m.offsets);
        if let Err(reason) = self.replay(core.as_mut(), &recorded, &committed, &mut number, &mut now, &mut reached)? {
            gone = Some(reason);
        }
        let last = recorded.values().map(|(_, step)| (step.number, step.now)).next_back();
        number = number.max(last.map_or(0, |l| l.0));
        now = now.max(last.map_or(Wall(0), |l| l.1));

        let mut offsets = [0; INPUTS];
        let mut limits = [None; INPUTS];
        for (i, input) in Input::ALL.into_iter().enumerate() {
            let (low, high) = self.retry("read watermarks", |r| r.committed.watermarks(names[i], partition))?;
            let earliest = input != Input::Telemetry || plan.config.start == StartAt::Earliest;
            let known = committed.get(i).copied().flatten();
            let replayed = reached.map(|offsets| offsets[i]);
            offsets[i] = known.or(replayed).unwrap_or(if earliest { low } else { high });
            if let (Some(known), Some(replayed)) = (known, replayed)
                && known != replayed
            {
                gone.get_or_insert_with(|| {
                    format!("{} stands at offset {known}, the recorded steps end at {replayed}", names[i])
                });
            }
            // The re-keyed topic ends in the marker of our own last transaction, which retention deletes with the rest.
            let only_marker = input == Input::Repartition && offsets[i] + 1 == low;
            if offsets[i] < low && !only_marker {
                gone.get_or_insert_with(|| {
                    format!("{} begins at offset {low}, records from {} on were not processed", names[i], offsets[i])
                });
            }
            offsets[i] = offsets[i].max(low);
            if offsets[i] > high && known.is_some() {
                gone.get_or_insert_with(|| {
                    format!(
                        "{} ends at offset {high}, before the committed {}: was it recreated?",
                        names[i], offsets[i]
                    )
                });
                offsets[i] = low;
            }
            if plan.config.until_end && input != Input::Repartition {
                limits[i] = Some(high);
            }
        }
        if let Some(reason) = &gone {
            plan.status.counters.history_gone.add(1);
            self.tell(Event::HistoryGone { partition, reason });
            core.history_gone(reason);
            self.fault(format!("history is gone: {reason}"));
        }
        plan.status.counters.restores.add(1);
        let Self { keys, bytes, steps, records, started, .. } = self;
        let faults = std::mem::take(&mut self.faults);
        self.tell(Event::Restored { partition, keys, bytes, steps, records, took: started.elapsed() });
        Ok(Restored {
            partition,
            core,
            number,
            now,
            offsets,
            limits,
            checkpoint: mark.as_ref().map_or(0, |m| m.checkpoint),
            checkpoint_step: mark.as_ref().map_or(0, |m| m.step),
            slots,
            steps_from: steps_end,
            checkpoint_now: gone.is_some(),
            keys: held,
            faults,
        })
    }

    /// Waits until a read_committed reader sees as far as anything was written; the end.
    pub(super) fn await_stable(&mut self, topic: &str) -> Result<i64, Stop> {
        let partition = self.job.partition;
        let written = self.retry("read watermarks", |r| r.written(topic, partition))?;
        let mut alarm = Alarm::new(self.plan);
        loop {
            let stable = self.retry("read watermarks", |r| r.stable(topic, partition))?;
            if stable >= written {
                return Ok(written);
            }
            if alarm.rings() {
                let reason = format!(
                    "partition {partition} waits for an open transaction on {topic}: stable to {stable}, written to {written}; \
                     a hanging transaction can be ended with kafka-transactions.sh"
                );
                self.tell(Event::Trouble { reason: &reason });
            }
            self.pause()?;
        }
    }

    pub(super) fn read_checkpoint(&mut self) -> Result<Checkpoint, Stop> {
        let topic = self.plan.config.topics.checkpoint.as_str();
        let mut assembly = Assembly::default();
        let mut refused = 0_u64;
        let (mut keys, mut bytes) = (0, 0);
        self.read(topic, Offset::Beginning, |key, value| {
            keys += 1;
            bytes += (key.len() + value.map_or(0, <[u8]>::len)) as u64;
            if assembly.add(key, value).is_err() {
                refused += 1;
            }
        })?;
        (self.keys, self.bytes) = (keys, bytes);
        if refused > 0 {
            let reason = format!("{refused} checkpoint records are damaged or of an unknown layout");
            self.refuse(&reason);
        }
        Ok(assembly.finish())
    }

    /// Recorded steps after the mark, by number: the last record of a number counts.
    fn read_steps(&mut self, mark: Option<&Mark>, from: i64) -> Result<BTreeMap<u64, (Arc<str>, Step)>, Stop> {
        let topic = self.plan.config.topics.steps.as_str();
        let partition = self.job.partition;
        let (low, high) = self.retry("read watermarks", |r| r.committed.watermarks(topic, partition))?;
        let after = mark.map_or(0, |m| m.step);
        let mut recorded = BTreeMap::new();
        let mut damaged = None;
        self.read(topic, Offset::Offset(from.clamp(low, high.max(low))), |_, value| {
            match value.map(steps::decode) {
                Some(Ok(record)) => {
                    let version: Arc<str> = record.version.into();
                    let steps = record.steps.into_iter().filter(|step| step.number > after);
                    recorded.extend(steps.map(|step| (step.number, (Arc::clone(&version), step))));
                }
                Some(Err(error)) => damaged = Some(error),
                None => {}
            };
        })?;
        if let Some(error) = damaged {
            self.refuse(&error.to_string());
        }
        Ok(recorded)
    }

    fn read(&self, topic: &str, from: Offset, each: impl FnMut(&[u8], Option<&[u8]>)) -> Result<(), Stop> {
        self.read_of(topic, self.job.partition, from, each)
    }

    pub(super) fn read_of(
        &self,
        topic: &str,
        partition: i32,
        from: Offset,
        mut each: impl FnMut(&[u8], Option<&[u8]>),
    ) -> Result<(), Stop> {
        let (low, high) = self.retry("read watermarks", |r| r.committed.watermarks(topic, partition))?;
        if low >= high {
            return Ok(());
        }
        let mut tick = Instant::now();
        let mut count = 0;
        let outcome = self.readers.committed.to_end(
            topic,
            partition,
            from,
            || self.cancelled(),
            |message| {
                each(message.key().unwrap_or_default(), message.payload());
                count += 1;
                if tick.elapsed() > PROGRESS {
                    tick = Instant::now();
                    self.tell(Event::RestoreProgress { partition, keys: count, steps: 0 });
                }
                if self.cancelled() { Next::Stop } else { Next::More }
            },
        );
        if self.cancelled() {
            return Err(Stop::Cancelled);
        }
        outcome
            .map_err(|error| Stop::Failed(Error::broker(format!("cannot read {topic}, partition {partition}"), error)))
    }

    /// Re-runs recorded steps. `Ok(Err(reason))`: history ends before the committed offsets.
    fn replay(
        &mut self,
        core: &mut dyn Core,
        recorded: &BTreeMap<u64, (Arc<str>, Step)>,
        committed: &[Option<i64>],
        number: &mut u64,
        now: &mut Wall,
        reached: &mut Option<[i64; INPUTS]>,
    ) -> Result<Result<(), String>, Stop> {
        let partition = self.job.partition;
        let topics = &self.plan.config.topics;
        let names: [&str; INPUTS] = std::array::from_fn(|i| topics.input(Input::ALL[i]));
        let within = |step: &Step| {
            step.ranges.iter().zip(committed).all(|(range, known)| known.is_none_or(|known| range.to <= known))
        };
        let steps: Vec<_> = recorded.values().take_while(|(_, step)| within(step)).collect();
        let Some((_, first)) = steps.first() else { return Ok(Ok(())) };
        if first.number != *number + 1 {
            return Ok(Err(format!("step records {} to {} are gone", *number + 1, first.number - 1)));
        }
        let starts: [i64; INPUTS] = std::array::from_fn(|i| first.ranges[i].from);
        if reached.is_some_and(|offsets| offsets != starts) {
            return Ok(Err("the recorded steps do not begin where the checkpoint ends".to_owned()));
        }
        for (i, name) in names.iter().enumerate() {
            let needed = steps.iter().map(|(_, step)| step.ranges[i]).find(|range| !range.is_empty());
            let (low, _) = self.retry("read watermarks", |r| r.committed.watermarks(name, partition))?;
            if needed.is_some_and(|range| range.from < low) {
                return Ok(Err(format!("{name} begins at offset {low}, the recorded steps need older records")));
            }
        }
        let read: Vec<usize> =
            (0..INPUTS).filter(|&i| steps.iter().any(|(_, step)| !step.ranges[i].is_empty())).collect();
        let inputs: Vec<_> = read.iter().map(|&i| (names[i], partition, starts[i])).collect();
        let reader = &self.readers.committed;
        let opened = reader.open(&inputs).map_err(|e| Error::broker("cannot re-read input", e))?;
        let mut queues: [Option<InputQueue>; INPUTS] = Default::default();
        for (i, queue) in read.iter().zip(opened) {
            queues[*i] = Some(queue);
        }
        let mut outcome = Ok(());
        let mut tick = Instant::now();
        for (version, step) in steps {
            match self.replay_step(core, version, step, &mut queues)? {
                Ok(()) => {
                    *number = step.number;
                    *now = step.now;
                    *reached = Some(std::array::from_fn(|i| step.ranges[i].to));
                }
                Err(reason) => {
                    outcome = Err(reason);
                    break;
                }
            }
            if tick.elapsed() > PROGRESS {
                tick = Instant::now();
                self.tell(Event::RestoreProgress { partition, keys: self.keys, steps: self.steps });
            }
        }
        drop(queues);
        if let Err(error) = reader.close() {
            tracing::debug!(%error, "closing restored inputs");
        }
        Ok(outcome)
    }

    fn replay_step(
        &mut self,
        core: &mut dyn Core,
        version: &str,
        step: &Step,
        queues: &mut [Option<InputQueue>; INPUTS],
    ) -> Result<Result<(), String>, Stop> {
        let partition = self.job.partition;
        let mut records: [Vec<OwnedRecord>; INPUTS] = Default::default();
        for (i, range) in step.ranges.iter().enumerate().filter(|(_, range)| !range.is_empty()) {
            let Some(queue) = &mut queues[i] else { continue };
            records[i] = match queue.until(range.to, &self.readers.committed, || self.cancelled()) {
                Ok(records) => records,
                Err(RangeError::Cancelled) => return Err(Stop::Cancelled),
                Err(RangeError::Gone) => {
                    let name = self.plan.config.topics.input(Input::ALL[i]);
                    return Ok(Err(format!(
                        "{name}: records of step {} ({} to {}) are gone",
                        step.number, range.from, range.to
                    )));
                }
                Err(RangeError::Client(error)) => return Err(Error::broker("cannot re-read input", error).into()),
            };
            self.records += records[i].len() as u64;
        }
        let output = again(step, std::array::from_fn(|i| records[i].as_slice()), true, |input| core.step(input));
        let output = output.map_err(|source| Error::Core { partition, source })?;
        self.steps += 1;
        self.plan.status.counters.replayed_steps.add(1);
        if version == core.version() && output.digest != step.digest {
            self.plan.status.counters.replay_mismatches.add(1);
            self.fault(format!("step {} decided otherwise when run again", step.number));
            self.tell(Event::ReplayMismatch {
                partition,
                step: step.number,
                recorded: step.digest,
                replayed: output.digest,
            });
        }
        Ok(Ok(()))
    }

    fn cancelled(&self) -> bool {
        self.job.cancel.load(Ordering::Acquire)
    }

    fn tell(&self, event: Event<'_>) {
        self.plan.observer.on(event);
    }

    fn pause(&self) -> Result<(), Stop> {
        if self.cancelled() {
            return Err(Stop::Cancelled);
        }
        std::thread::sleep(RETRY);
        Ok(())
    }

    /// Calls until it works; a broker that is away is waited for.
    pub(super) fn retry<T>(&self, what: &str, call: impl Fn(&Ends) -> Result<T, KafkaError>) -> Result<T, Stop> {
        let mut alarm = Alarm::new(self.plan);
        loop {
            match call(self.readers) {
                Ok(value) => return Ok(value),
                Err(error) if is_transient(&error) => {
                    if alarm.rings() {
                        let partition = self.job.partition;
                        let reason = format!("partition {partition} still cannot {what}: {error}");
                        self.tell(Event::Trouble { reason: &reason });
                    }
                    self.pause()?;
                }
                Err(error) => {
                    let context = format!("partition {}: cannot {what}", self.job.partition);
                    return Err(Error::broker(context, error).into());
                }
            }
        }
    }
}

/// Rings when something takes longer than any transaction of a dead owner can, then every while.
struct Alarm {
    at: Instant,
}

impl Alarm {
    fn new(plan: &Plan) -> Self {
        Self { at: Instant::now() + plan.config.transaction_timeout + Duration::from_secs(20) }
    }

    fn rings(&mut self) -> bool {
        let now = Instant::now();
        let rings = now >= self.at;
        if rings {
            self.at = now + Duration::from_secs(30);
        }
        rings
    }
}
