//! `topics resize`: more partitions, with every tenant's state where its records will be.
//!
//! Works while no sidecar does ([`Hold`]). Restores every partition as a sidecar would, has the cores take their state apart by
//! tenant and put it together for the new partitions, and writes that as checkpoints: keys ahead, then the marks of all
//! partitions in one transaction. Only the checkpoint topic has grown by then, so no sidecar starts, because the counts of the
//! topics differ; then the others grow, telemetry last.
//!
//! Where it stopped is seen from the outside, so the same command goes on from any crash: marks that stand for the old count
//! mean that the state is still to be moved (what a dead attempt wrote ahead is above the marks and counts for nothing), marks
//! that stand for the new one that only topics may still have to grow.
//!
//! Committed offsets stay. What lies unread on old partitions, and what producers still send there, is re-keyed to its owner
//! by the sidecar that reads it; a new partition begins at its first record.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use rdkafka::{Offset, TopicPartitionList};

use super::checkpoint::{self, Checkpoint, Mark, Slots};
use super::client::ShellConfig;
use super::core::{Input, StateChange};
use super::errors::{Class, Error, classify};
use super::hold::{Hold, await_empty};
use super::partition::{INPUTS, Pending};
use super::provision::Broker;
use super::reader::{Ends, Next};
use super::restore::{self, Job, Outcome, Plan, Restored};
use super::shell::{CoreFactory, Ended, Shell};
use super::standing;
use super::status::{Observer, Status};
use super::transaction::{Failed, Outgoing, Place, Tag, Writer};

/// The slot of this command: its transactional id fences another resize of the same group.
const SLOT: &str = "resize";
const MAX_ATTEMPTS: u32 = 10;
/// New partitions take a moment to show on every broker.
const SHOWS_WITHIN: Duration = Duration::from_secs(30);

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    /// How many partitions there are to be.
    pub partitions: i32,
    /// Do everything but write.
    pub dry_run: bool,
    /// Go on with state that cannot be restored exactly.
    pub accept_loss: bool,
    /// Do not process what lies unread first.
    pub leave_backlog: bool,
}

/// What was done, or with `dry_run` would be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Partitions before and after.
    pub from: i32,
    /// See `from`.
    pub to: i32,
    /// The state was moved already, by a run that was broken off.
    pub moved_before: bool,
    /// Every topic had as many partitions already and the state stands for them.
    pub nothing_to_do: bool,
    /// State keys written.
    pub keys: u64,
    /// Keys that are on another partition now.
    pub keys_moved: u64,
    /// Bytes of keys and values written.
    pub bytes: u64,
    /// State keys of each partition.
    pub keys_of: Vec<u64>,
    /// Records that were unread on the old partitions.
    pub backlog: u64,
    /// Topics that grew.
    pub grown: Vec<String>,
    /// What was lost, as accepted.
    pub losses: Vec<String>,
}

/// Resizes. `say` is told of progress in words. Blocks.
///
/// # Errors
/// [`Error::Refused`] with what is in the way: fewer partitions, members in the group, state that is not whole.
/// [`Error::BrokenOff`] and whatever the broker says: the same command goes on.
pub fn resize(
    config: &ShellConfig,
    factory: CoreFactory,
    observer: Arc<dyn Observer>,
    order: Order,
    say: &dyn Fn(&str),
) -> Result<Report, Error> {
    let config = ShellConfig { slot: SLOT.to_owned(), static_membership: false, until_end: false, ..config.clone() };
    let readers = Ends::new(&config.client, &config.group)?;
    let broker = Broker::new(config.client.clone());
    let plan = Plan { config, factory, observer, status: Arc::new(Status::default()), tracer: None };
    Resize { plan, readers, broker, order, say }.run()
}

struct Resize<'a> {
    plan: Plan,
    readers: Ends,
    broker: Broker,
    order: Order,
    say: &'a dyn Fn(&str),
}

/// What is there.
struct Found {
    /// Partitions of each topic that must grow, telemetry last, checkpoints first.
    counts: Vec<(String, i32)>,
    /// The count that the state stands for.
    state: i32,
}

impl Found {
    fn telemetry(&self) -> i32 {
        self.counts.last().map_or(0, |(_, n)| *n)
    }
}

/// A partition to be written.
struct Target {
    number: u64,
    step: u64,
    offsets: [i64; INPUTS],
    steps_from: i64,
    slots: Slots,
    /// Keys its last checkpoint holds.
    keys: Vec<Vec<u8>>,
}

fn refused<T>(reason: impl Into<String>) -> Result<T, Error> {
    Err(Error::Refused(reason.into()))
}

impl Resize<'_> {
    fn run(&self) -> Result<Report, Error> {
        let to = self.order.partitions;
        if !self.order.dry_run {
            // Ends what an attempt that died left open: nothing of it can be read before.
            drop(self.writer()?);
        }
        // What is refused or done already is said without waiting for anybody.
        let found = self.survey()?;
        if found.state == to && found.counts.iter().all(|(_, n)| *n == to) {
            return Ok(Report { from: to, to, moved_before: true, nothing_to_do: true, ..Report::default() });
        }
        await_empty(&self.plan.config, found.telemetry(), self.say)?;
        let found = self.survey()?;
        let mut report = Report { from: found.state, to, ..Report::default() };
        let short: Vec<&str> = found.counts.iter().filter(|(_, n)| *n < to).map(|(name, _)| name.as_str()).collect();
        report.grown = short.iter().map(|name| (*name).to_owned()).collect();
        report.moved_before = found.state == to;
        if !short.is_empty() {
            // Rights and limits are found out before anything is written.
            self.broker.grow(&short, to, true)?;
        }
        if found.state != to {
            self.move_state(&found, &mut report)?;
        }
        if !self.order.dry_run {
            for topic in short {
                (self.say)(&format!("{topic}: partitions become {to}"));
                self.grow(topic)?;
            }
        }
        Ok(report)
    }

    /// The topics that must have equal counts, in the order in which they grow: checkpoints first, telemetry last.
    fn survey_counts(&self) -> Result<Vec<(String, i32)>, Error> {
        let topics = &self.plan.config.topics;
        let there = super::provision::Provisioner::partition_counts(&self.broker)?;
        let mut counts = Vec::new();
        for spec in topics.specs().iter().rev().filter(|spec| spec.co_partitioned) {
            let count = there.get(spec.name).ok_or_else(|| Error::MissingTopic(spec.name.to_owned()))?;
            counts.push((spec.name.to_owned(), *count));
        }
        Ok(counts)
    }

    /// Looks at topics and marks; refuses what is neither at rest nor a half-done resize to the same count.
    fn survey(&self) -> Result<Found, Error> {
        let to = self.order.partitions;
        let counts = self.survey_counts()?;
        let low = counts.iter().map(|(_, n)| *n).min().unwrap_or_default();
        let high = counts.iter().map(|(_, n)| *n).max().unwrap_or_default();
        let listed = || counts.iter().map(|(name, n)| format!("{name} {n}")).collect::<Vec<_>>().join(", ");
        if to < high && low == high {
            return refused(format!(
                "the topics have {high} partitions and Kafka cannot take any away: give --partitions a number above {high}"
            ));
        }
        if low != high && (to != high || counts.iter().any(|(_, n)| *n != low && *n != high)) {
            return refused(format!(
                "the topics have different partition counts ({}): only --partitions {high}, with every topic at {low} or {high}, \
                 can go on from there",
                listed()
            ));
        }
        if high < to {
            return Ok(Found { counts, state: high });
        }
        // The checkpoint topic comes first.
        let checkpoints = counts.first().map_or(0, |(_, n)| *n);
        let marks = self.marks(checkpoints)?;
        let known: BTreeSet<i32> = marks.iter().flatten().filter_map(|mark| mark.partitions).collect();
        let state = match (known.len(), known.first()) {
            (0, _) => low,
            (1, Some(&count)) => count,
            _ => {
                return refused(format!(
                    "the checkpoints stand for different partition counts ({known:?}): topics were grown by hand while sidecars \
                     ran; their state does not go together any more"
                ));
            }
        };
        if state > to || state < to && low != state && low != to {
            return refused(format!(
                "the state is that of {state} partitions and the topics have others ({}): nobody knows how they came to it",
                listed()
            ));
        }
        Ok(Found { counts, state })
    }

    fn job(&self, partition: i32, partitions: i32) -> Job {
        Job { partition, partitions, cancel: Arc::new(AtomicBool::new(false)), session: 0, keep_keys: true }
    }

    fn marks(&self, partitions: i32) -> Result<Vec<Option<Mark>>, Error> {
        let of = |partition| standing::mark_of(&self.plan, &self.readers, &self.job(partition, partitions));
        (0..partitions).map(of).collect()
    }

    /// Everything up to the marks.
    fn move_state(&self, found: &Found, report: &mut Report) -> Result<(), Error> {
        let Order { partitions: to, dry_run, leave_backlog, .. } = self.order;
        let config = &self.plan.config;
        let take = || if dry_run { Ok(None) } else { Hold::take(config, found.telemetry()).map(Some) };
        let mut hold = take()?;
        let mut old = self.restore(found.state, report)?;
        report.backlog = self.backlog(&old)?;
        // A half-done resize keeps sidecars, and this, from processing.
        let at_rest = found.counts.iter().all(|(_, n)| *n == found.state);
        if report.backlog > 0 && at_rest && !dry_run && !leave_backlog {
            (self.say)(&format!("processing {} records that are unread", report.backlog));
            drop((old, hold));
            self.catch_up()?;
            hold = take()?;
            old = self.restore(found.state, report)?;
        }
        (self.say)(&format!("taking the state apart for {to} partitions"));
        let now = old.iter().map(|restored| restored.now.0).max().unwrap_or_default();
        let mut shares: Vec<Vec<Vec<StateChange>>> = (0..to).map(|_| Vec::new()).collect();
        let mut targets = Vec::new();
        let mut held: Vec<BTreeSet<Vec<u8>>> = Vec::new();
        for restored in old {
            let partition = restored.partition;
            let Restored { mut core, checkpoint, number, offsets, steps_from, slots, keys, .. } = restored;
            let split = core.split(to).map_err(|source| Error::Core { partition, source })?;
            drop(core);
            shares.iter_mut().zip(split).for_each(|(all, share)| all.push(share));
            held.push(keys.iter().cloned().collect());
            targets.push(Target { number: checkpoint, step: number, offsets, steps_from, slots, keys });
        }
        let mut states = Vec::new();
        for (partition, shares) in (0..to).zip(shares) {
            let failed = |source| Error::Core { partition, source };
            let mut core = (self.plan.factory)(partition, to).map_err(failed)?;
            core.join(shares).map_err(failed)?;
            let mut changes = core.take_changes();
            changes.retain(|change| change.value.is_some());
            let before = usize::try_from(partition).ok().and_then(|p| held.get(p));
            let moved = changes.iter().filter(|c| before.is_none_or(|keys| !keys.contains(&c.key))).count();
            report.keys += changes.len() as u64;
            report.keys_moved += moved as u64;
            report.keys_of.push(changes.len() as u64);
            report.bytes += changes.iter().map(size).sum::<usize>() as u64;
            states.push((core.version().to_owned(), changes));
        }
        let Some(hold) = hold else { return Ok(()) };
        if let Some((name, _)) = found.counts.first().filter(|(_, n)| *n < to) {
            (self.say)(&format!("{name}: partitions become {to}"));
            self.grow(name)?;
        }
        for partition in found.state..to {
            targets.push(self.new_target(partition)?);
        }
        self.write(&hold, states, targets, (found.state, now))
    }

    /// Restores the partitions of a state, all of it or an explicit refusal.
    fn restore(&self, partitions: i32, report: &mut Report) -> Result<Vec<Restored>, Error> {
        (self.say)(&format!("restoring {partitions} partitions"));
        let (jobs, queue) = crossbeam_channel::unbounded::<Job>();
        let (done, outcomes) = crossbeam_channel::unbounded::<Outcome>();
        for partition in 0..partitions {
            if jobs.send(self.job(partition, partitions)).is_err() {
                return Err(Error::BrokenOff("the restore threads are gone".into()));
            }
        }
        drop(jobs);
        let plan = &self.plan;
        std::thread::scope(|scope| {
            for _ in 0..plan.config.restore_threads.max(1) {
                scope.spawn(|| restore::work(plan, &queue, &done, &|| {}));
            }
        });
        drop(done);
        let mut all = Vec::new();
        for outcome in outcomes {
            match outcome.result? {
                Some(restored) => all.push(*restored),
                None => return Err(Error::BrokenOff("a restore was cancelled".into())),
            }
        }
        all.sort_by_key(|restored| restored.partition);
        let fault =
            |r: &Restored| r.faults.iter().map(|f| format!("partition {}: {f}", r.partition)).collect::<Vec<_>>();
        report.losses = all.iter().flat_map(fault).collect();
        if !report.losses.is_empty() && !self.order.accept_loss {
            return refused(format!(
                "the state cannot be restored exactly; nothing was changed. --accept-loss goes on with what there is:\n  {}",
                report.losses.join("\n  ")
            ));
        }
        Ok(all)
    }

    /// Records that are unread on the old partitions.
    fn backlog(&self, old: &[Restored]) -> Result<u64, Error> {
        let topics = &self.plan.config.topics;
        let mut unread = 0;
        for restored in old {
            for (input, next) in Input::ALL.into_iter().zip(restored.offsets) {
                let (topic, partition) = (topics.input(input), restored.partition);
                let failed = |e| Error::broker(format!("cannot read {topic}, partition {partition}"), e);
                let (_, high) = self.readers.committed.watermarks(topic, partition).map_err(failed)?;
                if high <= next {
                    continue;
                }
                // Offsets count transaction markers too: look whether there is a record at all.
                let mut any = false;
                let looked = self.readers.committed.to_end(
                    topic,
                    partition,
                    Offset::Offset(next),
                    || false,
                    |_| {
                        any = true;
                        Next::Stop
                    },
                );
                looked.map_err(failed)?;
                unread += if any { (high - next).unsigned_abs() } else { 0 };
            }
        }
        Ok(unread)
    }

    /// Processes what there is as a sidecar would, so that nothing of it comes after what the new partitions get.
    fn catch_up(&self) -> Result<(), Error> {
        let config = ShellConfig { until_end: true, close_windows: false, ..self.plan.config.clone() };
        let shell = Shell::new(config, Arc::clone(&self.plan.factory), Arc::clone(&self.plan.observer));
        match shell.run()? {
            Ended::Finished => Ok(()),
            Ended::Drained | Ended::Abandoned => Err(Error::BrokenOff("what is unread was not processed".into())),
        }
    }

    fn grow(&self, topic: &str) -> Result<(), Error> {
        let to = self.order.partitions;
        let deadline = Instant::now() + SHOWS_WITHIN;
        let shown = || {
            let count = self.readers.committed.partitions(topic).unwrap_or_default();
            let reachable = |partition: i32| self.readers.uncommitted.watermarks(topic, partition).is_ok();
            count >= to && reachable(to - 1)
        };
        if self.readers.committed.partitions(topic).unwrap_or_default() < to {
            self.broker.grow(&[topic], to, false)?;
        }
        while !shown() {
            if Instant::now() >= deadline {
                return Err(Error::BrokenOff(format!("{topic} does not show {to} partitions")));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// A partition that has no state yet: what a dead attempt wrote ahead is known to the slots, and overwritten.
    fn new_target(&self, partition: i32) -> Result<Target, Error> {
        let job = self.job(partition, self.order.partitions);
        let Checkpoint { mark, slots, state, .. } = standing::checkpoint_of(&self.plan, &self.readers, &job)?;
        let mut offsets = [0; INPUTS];
        let topics = &self.plan.config.topics;
        for (offset, input) in offsets.iter_mut().zip(Input::ALL) {
            // Grown by hand, it may have records already, and lost the first of them.
            if let Ok((low, _)) = self.readers.committed.watermarks(topics.input(input), partition) {
                *offset = low.max(0);
            }
        }
        let number = mark.map_or(0, |mark| mark.checkpoint);
        Ok(Target { number, step: 0, offsets, steps_from: 0, slots, keys: state.into_keys().collect() })
    }

    /// Writes every partition's keys ahead, then all marks at once.
    fn write(
        &self,
        hold: &Hold,
        states: Vec<(String, Vec<StateChange>)>,
        targets: Vec<Target>,
        (old, now): (i32, i64),
    ) -> Result<(), Error> {
        let config = &self.plan.config;
        let mut writer = self.writer()?;
        let mut fence = TopicPartitionList::new();
        // Offsets that stay: a transaction carries some, because they are what the group checks membership by.
        for (partition, target) in (0..old).zip(&targets) {
            for (input, next) in Input::ALL.into_iter().zip(target.offsets) {
                let added = fence.add_partition_offset(config.topics.input(input), partition, Offset::Offset(next));
                added.map_err(|e| Error::broker("offsets", e))?;
            }
        }
        let mut marks = Vec::new();
        for ((partition, (version, mut changes)), target) in (0..).zip(states).zip(targets) {
            (self.say)(&format!("writing partition {partition}: {} keys", changes.len()));
            let Target { number, step, offsets, steps_from, mut slots, keys } = target;
            let kept: BTreeSet<Vec<u8>> = changes.iter().map(|change| change.key.clone()).collect();
            let gone = keys.into_iter().filter(|key| !kept.contains(key));
            changes.extend(gone.map(|key| StateChange { key, value: None }));
            drop(kept);
            let partitions = Some(self.order.partitions);
            let mark = Mark { checkpoint: number + 1, step, now, offsets, steps_from, version, partitions };
            let mark = checkpoint::encode_mark(&mark);
            let mut pending = Pending::new(step, slots.encode(number + 1, changes), mark.clone());
            while !pending.records.is_empty() {
                let mut chunk = pending.take(config.checkpoint_chunk);
                if pending.records.is_empty() {
                    chunk.pop(); // the mark: with those of all others
                }
                let chunk: Vec<_> = chunk.into_iter().map(|record| (partition, record)).collect();
                self.transact(&mut writer, hold, &fence, &chunk)?;
            }
            marks.push((partition, mark));
        }
        (self.say)("putting the new state in force");
        self.transact(&mut writer, hold, &fence, &marks)
    }

    fn writer(&self) -> Result<Writer, Error> {
        let writer = Writer::new(&self.plan.config.transactional_producer()).map_err(Error::settings)?;
        let deadline = Instant::now() + SHOWS_WITHIN;
        loop {
            match writer.init(Duration::from_secs(5)) {
                Ok(()) => return Ok(writer),
                Err(error) if classify(&error) == Class::Retry && Instant::now() < deadline => {}
                Err(error) => return Err(Error::broker("init transactions", error)),
            }
        }
    }

    /// One transaction; sent again when the broker wants that, given up when the group has another member.
    fn transact(
        &self,
        writer: &mut Writer,
        hold: &Hold,
        fence: &TopicPartitionList,
        records: &[(i32, checkpoint::KeyValue)],
    ) -> Result<(), Error> {
        let topic = self.plan.config.topics.checkpoint.as_str();
        let never = || false;
        let stop = |failed: Failed| match failed {
            Failed::Abort { stale: true, .. } => {
                Error::BrokenOff("a sidecar joined the group meanwhile; stop every sidecar".into())
            }
            Failed::Abort { reason, .. } | Failed::Rebuild { reason, fenced: false } => Error::BrokenOff(reason),
            Failed::Rebuild { fenced: true, .. } => Error::BrokenOff("another resize of the group has begun".into()),
            Failed::Denied(error) => Error::broker("transaction", error),
            Failed::Deadline => Error::BrokenOff("out of time".into()),
        };
        for attempt in 1.. {
            for (n, (partition, (key, value))) in records.iter().enumerate() {
                let tag = Tag { partition: *partition, place: Place::Checkpoint(n) };
                let payload = value.as_deref();
                let record = Outgoing { topic, partition: Some(*partition), key: Some(key), payload, headers: &[] };
                if writer.send(record, tag, &never).is_err() {
                    let bytes = payload.map_or(0, <[u8]>::len);
                    return Err(Error::InternalRecord { topic: topic.to_owned(), bytes });
                }
            }
            match writer.commit(fence, &hold.group, &never) {
                Ok(()) => break,
                Err(Failed::Abort { stale: false, reason }) if attempt < MAX_ATTEMPTS => {
                    tracing::warn!(reason, "transaction aborted, sending it again");
                    writer.abort(&never).map_err(stop)?;
                }
                Err(failed) => return Err(stop(failed)),
            }
        }
        Ok(())
    }
}

fn size(change: &StateChange) -> usize {
    change.key.len() + change.value.as_ref().map_or(0, Vec::len)
}
