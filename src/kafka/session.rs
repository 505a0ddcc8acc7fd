//! One life of the clients: from joining the group to leaving it, or to the failure that makes a rebuild necessary.
//!
//! Invariants: what is uncommitted is kept until its commit is confirmed; a partition is answered for (committed and
//! checkpointed, or dropped) before it is unassigned; nothing is polled into a core that is not restored.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};

use crate::clock::Wall;

use super::client::ShellConfig;
use super::core::{Input, Topic};
use super::deadletter;
use super::errors::{Class, Error, classify, is_poison};
use super::group::{Change, Group, generation};
use super::partition::{
    Active, Bounds, Cancel, Checkpoints, Feed, INPUTS, Owned, Pending, StepFailed, StepKind, Stepped,
};
use super::reader::{Ends, Next};
use super::restore::{Job, Outcome, Plan, Restored};
use super::shell::{Control, Ended};
use super::status::{Committed, Event, Lag};
use super::transaction::{Failed, Outgoing, Place, Tag, Writer};
use super::waiting::{Waiting, await_topics};
use super::{checkpoint, steps};

/// Longest sleep of an idle loop.
const IDLE_WAIT: Duration = Duration::from_millis(10);
/// How often a member without partitions asks whether the group has answered.
const MEMBERSHIP_LOOK: Duration = Duration::from_millis(100);
/// Belonging to the group for so long without partitions means that there are none for us.
const MEMBERSHIP_SETTLED: Duration = Duration::from_secs(1);
/// Abortable failures in a row that are sent again before the clients are rebuilt.
const MAX_ATTEMPTS: u32 = 10;
/// The same while the group is rebalancing, when membership is stale.
const MAX_STALE_ATTEMPTS: u32 = 200;

/// Why a session ended before it should.
pub(super) enum Failure {
    /// The clients are unusable.
    Rebuild { reason: String, fenced: bool },
    /// Nothing can be done here.
    Stop(Error),
    /// The deadline of a drain passed.
    Deadline,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Stop(error)
    }
}

fn rebuild(context: &str, error: &KafkaError) -> Failure {
    Failure::Rebuild { reason: format!("{context}: {error}"), fenced: false }
}

/// Which partitions are checkpointed with a commit.
#[derive(Debug, Clone, Copy)]
enum Checkpointing<'a> {
    /// Those whose time has come.
    Due,
    /// These as well.
    These(&'a [i32]),
    /// All.
    All,
}

/// See the module.
pub(super) struct Session<'a> {
    id: u64,
    plan: &'a Plan,
    control: &'a Arc<Control>,
    woken: &'a Receiver<()>,
    jobs: &'a Sender<Job>,
    outcomes: &'a Receiver<Outcome>,
    owned: BTreeMap<i32, Owned>,
    writer: Writer,
    consumer: Arc<BaseConsumer<Group>>,
    partitions: i32,
    joined: bool,
    /// When the group was last asked whether we belong to it, and since when it says so.
    membership: (Instant, Option<Instant>),
    /// The first uncommitted step.
    opened: Option<Instant>,
    urgent: bool,
    open_bytes: usize,
    open_records: usize,
    last_commit: Instant,
    last_trouble: Option<Instant>,
    ends: Option<Ends>,
    end_checked: Instant,
}

impl<'a> Session<'a> {
    /// Connects, waiting for the broker and its topics. `None`: asked to stop meanwhile.
    pub(super) fn open(
        id: u64,
        plan: &'a Plan,
        control: &'a Arc<Control>,
        woken: &'a Receiver<()>,
        jobs: &'a Sender<Job>,
        outcomes: &'a Receiver<Outcome>,
    ) -> Result<Option<Self>, Failure> {
        let config = &plan.config;
        let status = &plan.status;
        status.ready.store(false, Ordering::Release);
        status.owned.store(Arc::default());
        let mut waiting = Waiting::new(plan);
        let Some(partitions) = await_topics(plan, control, woken, &mut waiting)? else { return Ok(None) };
        let writer = Writer::new(&config.transactional_producer()).map_err(Error::Settings)?;
        loop {
            if control.stopping() {
                return Ok(None);
            }
            match writer.init(Duration::from_secs(5)) {
                Ok(()) => break,
                Err(error) => match classify(&error) {
                    Class::Retry | Class::Abort => {
                        waiting.say(&format!("init transactions: {error}"));
                    }
                    Class::Denied => return Err(Error::broker("init transactions", error).into()),
                    Class::Fenced => return Err(Failure::Rebuild { reason: error.to_string(), fenced: true }),
                    Class::Fatal => return Err(rebuild("init transactions", &error)),
                },
            }
        }
        let mut consumer: BaseConsumer<Group> =
            config.consumer(partitions).create_with_context(Group::default()).map_err(Error::Settings)?;
        let wake = Arc::clone(control);
        consumer.set_nonempty_callback(move || wake.wake());
        consumer.subscribe(&[&config.topics.telemetry]).map_err(|e| Error::broker("subscribe", e))?;
        status.connected.store(true, Ordering::Release);
        plan.observer.on(Event::Connected);
        Ok(Some(Self {
            id,
            plan,
            control,
            woken,
            jobs,
            outcomes,
            owned: BTreeMap::new(),
            writer,
            consumer: Arc::new(consumer),
            partitions,
            joined: false,
            membership: (Instant::now(), None),
            opened: None,
            urgent: false,
            open_bytes: 0,
            open_records: 0,
            last_commit: Instant::now(),
            last_trouble: None,
            ends: None,
            end_checked: Instant::now(),
        }))
    }

    fn config(&self) -> &'a ShellConfig {
        &self.plan.config
    }

    /// The loop.
    pub(super) fn run(&mut self) -> Result<Ended, Failure> {
        loop {
            self.plan.status.heartbeat.store(Wall::now().0, Ordering::Relaxed);
            if self.control.stopping() {
                self.catch_up()?;
                self.commit(Checkpointing::All)?;
                return Ok(Ended::Drained);
            }
            self.poll_group()?;
            self.serve_changes()?;
            self.look_for_membership();
            self.serve_restored()?;
            let busy = self.step_all()?;
            self.writer.poll();
            if self.commit_due() {
                self.commit(Checkpointing::Due)?;
            }
            self.report_lag();
            if self.config().until_end && !busy && self.at_the_end()? {
                if self.config().close_windows {
                    self.finish()?;
                } else {
                    self.commit(Checkpointing::All)?;
                }
                return Ok(Ended::Finished);
            }
            if !busy {
                self.wait();
            }
        }
    }

    /// Before a drain's last commit: takes what is there already, for a quarter of the time a drain has, so that whoever follows
    /// has only to take what arrived since.
    fn catch_up(&mut self) -> Result<(), Failure> {
        let until = Instant::now() + self.control.left() / 4;
        let mut behind: Vec<i32> = self.actives().map(|active| active.partition).collect();
        while Instant::now() < until {
            self.plan.status.heartbeat.store(Wall::now().0, Ordering::Relaxed);
            self.poll_group()?;
            self.serve_changes()?;
            let busy = self.step_all()?;
            self.writer.poll();
            let at_end = |active: &Active| active.feeds.iter().all(|feed| feed.at_end);
            behind.retain(|partition| match self.owned.get(partition) {
                Some(Owned::Active(active)) => !at_end(active),
                Some(Owned::Restoring { .. }) | None => false,
            });
            if behind.is_empty() {
                break;
            }
            if !busy {
                self.wait();
            }
        }
        Ok(())
    }

    fn wait(&self) {
        let mut wait = IDLE_WAIT;
        if let Some(opened) = self.opened {
            let interval = if self.urgent {
                self.config().urgent_interval.saturating_sub(self.last_commit.elapsed())
            } else {
                self.config().commit_interval.saturating_sub(opened.elapsed())
            };
            wait = wait.min(interval);
        }
        // A partition that stepped just now looks again when its linger is over, whether or not more arrives.
        let linger = self.config().step_linger;
        let rest = self.actives().filter_map(|active| linger.checked_sub(active.last_step.elapsed())).min();
        wait = wait.min(rest.unwrap_or(wait)).max(Duration::from_micros(200));
        match self.woken.recv_timeout(wait) {
            // Woken or timed out: the loop looks at everything either way.
            Ok(()) | Err(_) => {}
        }
    }

    /// Serves the consumer's own queue: group events, errors. Messages arrive on the partitions' queues.
    fn poll_group(&mut self) -> Result<(), Failure> {
        let consumer = Arc::clone(&self.consumer);
        while let Some(event) = consumer.poll(Duration::ZERO) {
            match event {
                Ok(message) => self.stray(message.topic(), message.partition(), message.offset())?,
                Err(KafkaError::PartitionEOF(_)) => {}
                Err(error @ KafkaError::MessageConsumptionFatal(_)) => return Err(rebuild("consumer", &error)),
                Err(error) if classify(&error) == Class::Denied => return Err(Error::broker("consume", error).into()),
                Err(error) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown) => {
                    self.plan.status.connected.store(false, Ordering::Release);
                }
                Err(error) => self.trouble(&error.to_string()),
            }
        }
        Ok(())
    }

    /// A message outside its partition's queue: the queue was split too late. Read it again in order.
    fn stray(&mut self, topic: &str, partition: i32, offset: i64) -> Result<(), Failure> {
        let Some(Owned::Active(active)) = self.owned.get(&partition) else { return Ok(()) };
        let topics = &self.config().topics;
        let Some(input) = Input::ALL.into_iter().find(|&input| topics.input(input) == topic) else { return Ok(()) };
        let next = active.feeds[input as usize].next;
        if offset >= next {
            seek(&self.consumer, topic, partition, next).map_err(|e| rebuild("seek", &e))?;
        }
        Ok(())
    }

    fn serve_changes(&mut self) -> Result<(), Failure> {
        while let Some(change) = self.consumer.context().next() {
            match change {
                Change::Assign(partitions) => self.assigned(&partitions)?,
                Change::Revoke { partitions, lost } => self.revoked(&partitions, lost)?,
            }
            self.publish_owned();
        }
        Ok(())
    }

    /// A member that gets no partition may never hear so: belonging for a while without any is an answer too.
    fn look_for_membership(&mut self) {
        let (looked, since) = &mut self.membership;
        if self.joined || looked.elapsed() < MEMBERSHIP_LOOK {
            return;
        }
        *looked = Instant::now();
        if generation(&self.consumer) <= 0 {
            *since = None;
        } else if since.get_or_insert(*looked).elapsed() >= MEMBERSHIP_SETTLED {
            self.joined = true;
            self.publish_owned();
        }
    }

    fn assigned(&mut self, partitions: &[i32]) -> Result<(), Failure> {
        let topic = &self.config().topics.telemetry;
        if let Some(partition) = partitions.iter().find(|p| **p >= self.partitions) {
            let reason = format!("{topic} has grown: partition {partition} is new");
            return Err(Failure::Rebuild { reason, fenced: false });
        }
        let mut list = TopicPartitionList::new();
        for &partition in partitions {
            let telemetry = self.split(topic, partition)?;
            list.add_partition_offset(topic, partition, Offset::Beginning).map_err(|e| rebuild("assign", &e))?;
            let cancel = Arc::new(AtomicBool::new(false));
            let job = Job {
                partition,
                partitions: self.partitions,
                cancel: Arc::clone(&cancel),
                session: self.id,
                keep_keys: false,
            };
            self.owned.insert(partition, Owned::Restoring { cancel: Cancel(cancel), telemetry });
            if self.jobs.send(job).is_err() {
                return Err(Failure::Rebuild { reason: "the restore threads are gone".into(), fenced: false });
            }
        }
        self.consumer.incremental_assign(&list).map_err(|e| rebuild("assign", &e))?;
        if !partitions.is_empty() {
            self.consumer.pause(&list).map_err(|e| rebuild("pause", &e))?;
            self.plan.observer.on(Event::Assigned(partitions));
        }
        self.joined = true;
        Ok(())
    }

    fn split(&self, topic: &str, partition: i32) -> Result<PartitionQueue<Group>, Failure> {
        let mut queue = self.consumer.split_partition_queue(topic, partition).ok_or_else(|| Failure::Rebuild {
            reason: format!("no queue for {topic}, partition {partition}"),
            fenced: false,
        })?;
        let control = Arc::clone(self.control);
        queue.set_nonempty_callback(move || control.wake());
        Ok(queue)
    }

    fn revoked(&mut self, partitions: &[i32], lost: bool) -> Result<(), Failure> {
        let settled = if lost {
            self.plan.status.counters.partitions_lost.add(partitions.len() as u64);
            self.drop_work(partitions)
        } else {
            self.commit(Checkpointing::These(partitions))
        };
        // The group waits for this answer whatever came of the commit; closing the consumer would wait for it forever.
        self.unassign(partitions)?;
        settled?;
        self.plan.observer.on(Event::Revoked { partitions, lost });
        Ok(())
    }

    /// Drops the partitions' state and gives them back to the group.
    fn unassign(&mut self, partitions: &[i32]) -> Result<(), Failure> {
        let topics = &self.config().topics;
        let mut list = TopicPartitionList::new();
        for &partition in partitions {
            match self.owned.remove(&partition) {
                None => {}
                Some(Owned::Restoring { .. }) => {
                    list.add_partition(&topics.telemetry, partition);
                }
                Some(Owned::Active(_)) => {
                    for input in Input::ALL {
                        list.add_partition(topics.input(input), partition);
                    }
                }
            }
        }
        self.consumer.incremental_unassign(&list).map_err(|e| rebuild("unassign", &e))
    }

    /// Forgets uncommitted work of partitions that belong to others now; what remains is sent again.
    fn drop_work(&mut self, partitions: &[i32]) -> Result<(), Failure> {
        if self.writer.is_open() {
            self.abort("partitions were lost")?;
        }
        for partition in partitions {
            if let Some(Owned::Active(active)) = self.owned.get_mut(partition) {
                active.work = Default::default();
            }
        }
        if self.actives().all(|active| active.work.is_empty()) {
            self.reset_open();
        }
        Ok(())
    }

    fn serve_restored(&mut self) -> Result<(), Failure> {
        while let Ok(Outcome { session, partition, cancel, result }) = self.outcomes.try_recv() {
            if session != self.id || cancel.load(Ordering::Acquire) {
                continue;
            }
            match result {
                Ok(Some(restored)) => self.activate(*restored)?,
                Ok(None) => {}
                Err(Error::Broker { context, source }) => {
                    return Err(rebuild(&format!("restore of partition {partition}: {context}"), &source));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn activate(&mut self, restored: Restored) -> Result<(), Failure> {
        let partition = restored.partition;
        let Some(Owned::Restoring { telemetry, cancel }) = self.owned.remove(&partition) else { return Ok(()) };
        drop(cancel);
        let topics = &self.config().topics;
        let mut list = TopicPartitionList::new();
        let mut queues = Vec::with_capacity(INPUTS);
        let mut telemetry = Some(telemetry);
        for (i, input) in Input::ALL.into_iter().enumerate() {
            if input == Input::Telemetry
                && let Some(queue) = telemetry.take()
            {
                queues.push(queue);
                continue;
            }
            queues.push(self.split(topics.input(input), partition)?);
            list.add_partition_offset(topics.input(input), partition, Offset::Offset(restored.offsets[i]))
                .map_err(|e| rebuild("assign", &e))?;
        }
        let mut feeds =
            queues.into_iter().enumerate().map(|(i, q)| Feed::new(q, restored.offsets[i], restored.limits[i]));
        let (Some(a), Some(b), Some(c), Some(d)) = (feeds.next(), feeds.next(), feeds.next(), feeds.next()) else {
            return Ok(());
        };
        self.consumer.incremental_assign(&list).map_err(|e| rebuild("assign", &e))?;
        let start = restored.offsets[Input::Telemetry as usize];
        let mut own = TopicPartitionList::new();
        own.add_partition(&topics.telemetry, partition);
        // Resume before seek: a seek on a paused partition does not wake the fetcher.
        self.consumer.resume(&own).map_err(|e| rebuild("resume", &e))?;
        seek(&self.consumer, &topics.telemetry, partition, start).map_err(|e| rebuild("seek", &e))?;
        let interval = self.config().checkpoint_interval;
        let share = interval * partition.unsigned_abs() / self.partitions.unsigned_abs().max(1);
        let now = Instant::now();
        let at = if restored.checkpoint_now { now.checked_sub(interval) } else { now.checked_sub(share) };
        let checkpoints = Checkpoints {
            number: restored.checkpoint,
            step: if restored.checkpoint_now { u64::MAX } else { restored.checkpoint_step },
            slots: restored.slots,
            at: at.unwrap_or(now),
            pending: None,
            steps_from: restored.steps_from,
        };
        let active = Active::new(partition, restored.core, [a, b, c, d], (restored.number, restored.now), checkpoints);
        self.owned.insert(partition, Owned::Active(Box::new(active)));
        self.publish_owned();
        Ok(())
    }

    fn actives(&self) -> impl Iterator<Item = &Active> {
        self.owned.values().filter_map(|owned| match owned {
            Owned::Active(active) => Some(active.as_ref()),
            Owned::Restoring { .. } => None,
        })
    }

    /// Steps each partition that has something to do; whether any step was full, so that more is waiting.
    fn step_all(&mut self) -> Result<bool, Failure> {
        let config = self.config();
        let bounds =
            Bounds { records: config.max_step_records, bytes: config.max_step_bytes, linger: config.step_linger };
        let partitions: Vec<i32> = self.owned.keys().copied().collect();
        let mut busy = false;
        for partition in partitions {
            busy |= self.step(partition, &bounds, StepKind::Normal)?;
            if self.commit_due() {
                self.commit(Checkpointing::Due)?;
            }
        }
        Ok(busy)
    }

    fn step(&mut self, partition: i32, bounds: &Bounds, kind: StepKind) -> Result<bool, Failure> {
        // many partitions with full steps may take a while, and the loop is alive
        self.plan.status.heartbeat.store(Wall::now().0, Ordering::Relaxed);
        let Some(Owned::Active(active)) = self.owned.get_mut(&partition) else { return Ok(false) };
        let mut troubles = Vec::new();
        let outcome = active.step(Wall::now(), bounds, kind, &mut |error| troubles.push(error.to_string()));
        for trouble in troubles {
            self.trouble(&trouble);
        }
        let stepped = match outcome {
            Ok(None) => return Ok(false),
            Ok(Some(stepped)) => stepped,
            Err(StepFailed::Core(source)) => return Err(Error::Core { partition, source }.into()),
            Err(StepFailed::Gone(reason)) => return Err(Failure::Rebuild { reason, fenced: false }),
        };
        let Stepped { records, urgent, bytes, took, full } = stepped;
        self.plan.status.counters.steps.add(1);
        self.plan.observer.on(Event::Stepped { partition, records, took });
        self.opened.get_or_insert_with(Instant::now);
        self.urgent |= urgent;
        self.open_bytes += bytes;
        self.send_outputs(partition)?;
        Ok(full)
    }

    /// Hands a partition's new outputs to the client. Records it can never take become dead letters.
    fn send_outputs(&mut self, partition: i32) -> Result<(), Failure> {
        let topics = &self.plan.config.topics;
        let Some(Owned::Active(active)) = self.owned.get_mut(&partition) else { return Ok(()) };
        let work = &mut active.work;
        let expired = || self.control.waited_out();
        while let Some(output) = work.outputs.get(work.sent) {
            let tag = Tag { partition, place: Place::Output(work.sent) };
            let alone = work.suspects.contains(&work.sent);
            if alone {
                self.writer.drain(&expired).map_err(failure)?;
            }
            let outgoing = Outgoing {
                topic: topics.output(output.topic),
                partition: output.partition,
                key: Some(&output.key),
                payload: output.payload.as_deref(),
                headers: &output.headers,
            };
            match self.writer.send(outgoing, tag, &expired) {
                Ok(()) => work.sent += 1,
                Err(code) => {
                    let letter = deadletter::refused(topics, output, &code.to_string());
                    let Some(letter) = letter else {
                        let topic = topics.dead_letter.clone();
                        let bytes = super::partition::size(output);
                        return Err(Error::InternalRecord { topic, bytes }.into());
                    };
                    deadletter::report(self.plan, output, &code.to_string());
                    work.outputs[work.sent] = letter;
                    continue;
                }
            }
            self.open_records += 1;
            if alone {
                self.writer.drain(&expired).map_err(failure)?;
            }
        }
        Ok(())
    }

    fn commit_due(&self) -> bool {
        let config = self.config();
        if self.writer.has_failed() {
            return true;
        }
        match self.opened {
            Some(opened) => {
                opened.elapsed() >= config.commit_interval
                    || self.urgent && self.last_commit.elapsed() >= config.urgent_interval
                    || self.open_bytes >= config.max_transaction_bytes
                    || self.open_records >= config.max_transaction_records
            }
            None => self.actives().any(|active| checkpoint_due(active, config.checkpoint_interval)),
        }
    }

    /// Commits everything uncommitted, with checkpoints as asked; sends it again after abortable failures.
    fn commit(&mut self, which: Checkpointing<'_>) -> Result<(), Failure> {
        self.prepare(which);
        let mut attempts = 0;
        loop {
            let offsets = self.offsets().map_err(|e| rebuild("offsets", &e))?;
            if offsets.count() == 0 {
                self.reset_open();
                return Ok(());
            }
            let started = Instant::now();
            self.send_all()?;
            let Some(group) = self.consumer.group_metadata() else {
                return Err(Failure::Rebuild { reason: "the consumer has no group".into(), fenced: false });
            };
            let control = Arc::clone(self.control);
            match self.writer.commit(&offsets, &group, &|| control.waited_out()) {
                Ok(()) => {
                    if self.config().is_mock() {
                        self.mirror(&offsets);
                    }
                    self.committed(started);
                    return Ok(());
                }
                Err(Failed::Abort { reason, stale }) => {
                    attempts += 1;
                    let limit = if stale { MAX_STALE_ATTEMPTS } else { MAX_ATTEMPTS };
                    let failures = self.abort(&reason)?;
                    if attempts > limit {
                        return Err(Failure::Rebuild { reason, fenced: false });
                    }
                    self.isolate(&failures)?;
                    std::thread::sleep(Duration::from_millis(
                        if stale { 20 } else { 10 } * u64::from(attempts.min(10)),
                    ));
                    self.poll_group()?;
                    if self.consumer.context().has_lost() {
                        self.serve_lost()?;
                    }
                    if self.control.expired() {
                        return Err(Failure::Deadline);
                    }
                }
                Err(failed) => return Err(failure(failed)),
            }
        }
    }

    /// Answers changes up to the loss of partitions. A revocation before it is moot: its owner is another by now.
    fn serve_lost(&mut self) -> Result<(), Failure> {
        while self.consumer.context().has_lost() {
            match self.consumer.context().next() {
                Some(Change::Assign(partitions)) => self.assigned(&partitions)?,
                Some(Change::Revoke { partitions, .. }) => self.revoked(&partitions, true)?,
                None => break,
            }
        }
        self.publish_owned();
        Ok(())
    }

    fn abort(&mut self, reason: &str) -> Result<Vec<(Tag, RDKafkaErrorCode)>, Failure> {
        self.plan.status.counters.transactions_aborted.add(1);
        self.plan.observer.on(Event::Aborted { reason });
        let control = Arc::clone(self.control);
        let failures = self.writer.abort(&|| control.waited_out()).map_err(failure)?;
        self.open_records = 0;
        for owned in self.owned.values_mut() {
            if let Owned::Active(active) = owned {
                active.work.sent = 0;
            }
        }
        Ok(failures)
    }

    /// Encodes step records and checkpoints of what is about to be committed.
    fn prepare(&mut self, which: Checkpointing<'_>) {
        let (interval, chunk) = (self.config().checkpoint_interval, self.config().checkpoint_chunk);
        let partitions = self.partitions;
        for owned in self.owned.values_mut() {
            let Owned::Active(active) = owned else { continue };
            let version = active.core.version().to_owned();
            let offsets = active.offsets();
            if active.work.step_record.is_none() && !active.work.steps.is_empty() {
                active.work.step_record = Some(steps::encode(&version, &active.work.steps));
            }
            let news = active.checkpoints.step != active.number;
            let wanted = match which {
                Checkpointing::All => news,
                Checkpointing::These(partitions) => news && partitions.contains(&active.partition),
                Checkpointing::Due => false,
            };
            let forced = wanted;
            if active.checkpoints.pending.is_none() && (forced || checkpoint_due(active, interval)) {
                let Checkpoints { number, slots, steps_from, pending, .. } = &mut active.checkpoints;
                let changes = active.core.take_changes();
                let mark = checkpoint::Mark {
                    checkpoint: *number + 1,
                    step: active.number,
                    now: active.now.0,
                    offsets,
                    steps_from: self.writer.steps_offset(active.partition).unwrap_or(*steps_from),
                    version,
                    partitions: Some(partitions),
                };
                *pending = Some(Pending {
                    step: active.number,
                    records: slots.encode(*number + 1, changes).into(),
                    mark: checkpoint::encode_mark(&mark),
                });
            }
            if let Some(pending) = &mut active.checkpoints.pending
                && active.work.checkpoint.is_none()
            {
                active.work.checkpoint = Some(pending.take(if forced { usize::MAX } else { chunk }));
            }
        }
    }

    /// Next offsets of every input of every partition with work: also when a step read nothing, because offsets are what
    /// the group checks membership by.
    fn offsets(&self) -> Result<TopicPartitionList, KafkaError> {
        let topics = &self.config().topics;
        let mut list = TopicPartitionList::new();
        for active in self.actives().filter(|active| !active.work.is_empty()) {
            for (input, next) in Input::ALL.into_iter().zip(active.offsets()) {
                list.add_partition_offset(topics.input(input), active.partition, Offset::Offset(next))?;
            }
        }
        Ok(list)
    }

    fn send_all(&mut self) -> Result<(), Failure> {
        let partitions: Vec<i32> = self.owned.keys().copied().collect();
        for partition in partitions {
            self.send_outputs(partition)?;
            let topics = &self.plan.config.topics;
            let Some(Owned::Active(active)) = self.owned.get(&partition) else { continue };
            let step_record = active.work.step_record.iter().map(|bytes| Outgoing {
                topic: &topics.steps,
                partition: Some(partition),
                key: None,
                payload: Some(bytes),
                headers: &[],
            });
            let checkpoint = active.work.checkpoint.iter().flatten().map(|(key, value)| Outgoing {
                topic: &topics.checkpoint,
                partition: Some(partition),
                key: Some(key),
                payload: value.as_deref(),
                headers: &[],
            });
            let step_record = step_record.map(|r| (Place::Steps, r));
            let checkpoint = checkpoint.enumerate().map(|(n, r)| (Place::Checkpoint(n), r));
            for (place, outgoing) in step_record.chain(checkpoint) {
                let expired = || self.control.waited_out();
                if self.writer.send(outgoing, Tag { partition, place }, &expired).is_err() {
                    let bytes = outgoing.payload.map_or(0, <[u8]>::len);
                    return Err(Error::InternalRecord { topic: outgoing.topic.to_owned(), bytes }.into());
                }
            }
        }
        Ok(())
    }

    /// Finds the records at fault: one that failed among others is sent alone next time, one that fails alone becomes a
    /// dead letter.
    fn isolate(&mut self, failures: &[(Tag, RDKafkaErrorCode)]) -> Result<(), Failure> {
        let topics = &self.plan.config.topics;
        for (tag, code) in failures.iter().filter(|(_, code)| is_poison(*code)) {
            let Some(Owned::Active(active)) = self.owned.get_mut(&tag.partition) else { continue };
            let Place::Output(n) = tag.place else {
                let topic = if tag.place == Place::Steps { &topics.steps } else { &topics.checkpoint };
                return Err(Error::InternalRecord { topic: topic.clone(), bytes: 0 }.into());
            };
            if failures.len() > 1 && active.work.suspects.insert(n) {
                continue;
            }
            let Some(output) = active.work.outputs.get_mut(n) else { continue };
            let Some(letter) = deadletter::refused(topics, output, &code.to_string()) else {
                let bytes = super::partition::size(output);
                return Err(Error::InternalRecord { topic: topics.dead_letter.clone(), bytes }.into());
            };
            deadletter::report(self.plan, output, &code.to_string());
            *output = letter;
            active.work.suspects.remove(&n);
        }
        Ok(())
    }

    /// The mock keeps no transactional offsets: commit the same ones plainly.
    fn mirror(&mut self, offsets: &TopicPartitionList) {
        for _ in 0..3 {
            match self.consumer.commit(offsets, CommitMode::Sync) {
                Ok(()) => return,
                Err(error) => self.trouble(&format!("mirror of offsets: {error}")),
            }
        }
    }

    fn committed(&mut self, started: Instant) {
        let status = &self.plan.status;
        let at = Wall::now();
        let mut event = Committed {
            urgent: self.urgent,
            at,
            open_for: self.opened.unwrap_or(started).elapsed(),
            commit_took: started.elapsed(),
            ..Committed::default()
        };
        let counters = &status.counters;
        for owned in self.owned.values_mut() {
            let Owned::Active(active) = owned else { continue };
            let work = std::mem::take(&mut active.work);
            event.steps += work.steps.len();
            event.records_in += work.records_in;
            if work.oldest != 0 {
                event.oldest = if event.oldest == 0 { work.oldest } else { event.oldest.min(work.oldest) };
                event.newest = event.newest.max(work.newest);
            }
            for output in &work.outputs {
                event.records_out[output.topic as usize] += 1;
                counters.bytes_out.add(super::partition::size(output) as u64);
            }
            counters.records_out.add(work.outputs.len() as u64);
            counters.bytes_in.add(work.bytes_in as u64);
            counters.step_bytes.add(work.step_record.map_or(0, |r| r.len()) as u64);
            if let Some(records) = work.checkpoint {
                let bytes: usize = records.iter().map(|(k, v)| k.len() + v.as_ref().map_or(0, Vec::len)).sum();
                event.checkpoint_bytes += bytes;
                counters.checkpoint_records.add(records.len() as u64);
                let checkpoints = &mut active.checkpoints;
                if let Some(whole) = checkpoints.pending.take_if(|pending| pending.records.is_empty()) {
                    counters.checkpoints.add(1);
                    checkpoints.number += 1;
                    checkpoints.step = whole.step;
                    checkpoints.at = Instant::now();
                }
            }
        }
        counters.checkpoint_bytes.add(event.checkpoint_bytes as u64);
        counters.records_in.add(event.records_in as u64);
        counters.transactions_committed.add(1);
        status.last_commit.store(at.0, Ordering::Relaxed);
        status.connected.store(true, Ordering::Release);
        self.plan.observer.on(Event::Committed(&event));
        self.reset_open();
        self.last_commit = Instant::now();
    }

    fn reset_open(&mut self) {
        self.opened = None;
        self.urgent = false;
        self.open_bytes = 0;
        self.open_records = 0;
    }

    /// Until-end runs: whether every partition is ours and everything there was at the start, and everything re-keyed
    /// since, is processed and committed.
    fn at_the_end(&mut self) -> Result<bool, Failure> {
        let repartition = Input::Repartition as usize;
        let total = usize::try_from(self.partitions).unwrap_or_default();
        let read = |active: &Active| {
            Input::ALL.iter().all(|&input| {
                let feed = &active.feeds[input as usize];
                if input == Input::Repartition { feed.at_end } else { feed.done }
            })
        };
        if self.actives().filter(|active| read(active)).count() < total {
            return Ok(false);
        }
        if self.opened.is_some() {
            self.commit(Checkpointing::Due)?;
        }
        if self.end_checked.elapsed() < Duration::from_millis(20) {
            return Ok(false);
        }
        self.end_checked = Instant::now();
        let config = self.config();
        let ends = match self.ends.take() {
            Some(ends) => ends,
            None => Ends::new(&config.client, &config.group)?,
        };
        let looked = self.actives().try_fold(false, |rest, active| {
            Ok(rest || self.has_re_keyed(&ends, active.partition, active.feeds[repartition].next)?)
        });
        self.ends = Some(ends);
        let rest = looked.map_err(|e: KafkaError| rebuild("look for re-keyed records", &e))?;
        Ok(!rest && !self.control.stopping())
    }

    /// Whether re-keyed records from `next` on wait for a partition, or may: their transaction is committed, but its marker
    /// is not written yet.
    fn has_re_keyed(&self, ends: &Ends, partition: i32, next: i64) -> Result<bool, KafkaError> {
        let topic = &self.config().topics.repartition;
        let written = ends.written(topic, partition)?;
        if written <= next {
            return Ok(false);
        }
        if ends.stable(topic, partition)? < written {
            return Ok(true);
        }
        let mut found = false;
        ends.committed.to_end(
            topic,
            partition,
            Offset::Offset(next),
            || self.control.stopping(),
            |_| {
                found = true;
                Next::Stop
            },
        )?;
        Ok(found)
    }

    fn finish(&mut self) -> Result<(), Failure> {
        let bounds = Bounds { records: 0, bytes: 0, linger: Duration::ZERO };
        let partitions: Vec<i32> = self.owned.keys().copied().collect();
        for partition in partitions {
            self.step(partition, &bounds, StepKind::Finish)?;
        }
        self.commit(Checkpointing::All)
    }

    fn publish_owned(&self) {
        let status = &self.plan.status;
        status.owned.store(Arc::new(self.owned.keys().copied().collect()));
        let restored = self.owned.values().all(|owned| matches!(owned, Owned::Active(_)));
        status.ready.store(self.joined && restored, Ordering::Release);
    }

    fn report_lag(&self) {
        let Some(ends) = self.consumer.context().take_ends() else { return };
        let now = Wall::now().0;
        let mut all = Vec::new();
        for active in self.actives() {
            for input in Input::ALL {
                let feed = &active.feeds[input as usize];
                let topic = self.config().topics.input(input).to_owned();
                let end = ends.get(&(topic, active.partition)).copied().unwrap_or(feed.next);
                let records = if feed.at_end { 0 } else { (end - feed.next).max(0) };
                let known = records > 0 && feed.last_timestamp > 0;
                let behind = if known { (now - feed.last_timestamp).max(0) } else { 0 };
                all.push(Lag { input, partition: active.partition, records, behind });
            }
        }
        self.plan.status.lag.store(Arc::new(all));
    }

    fn trouble(&mut self, reason: &str) {
        if self.last_trouble.is_none_or(|at| at.elapsed() > Duration::from_secs(1)) {
            self.last_trouble = Some(Instant::now());
            self.plan.observer.on(Event::Trouble { reason });
        }
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        // Changes noted but not answered would keep the consumer from closing.
        while let Some(change) = self.consumer.context().next() {
            let answered = match change {
                Change::Assign(_) => {
                    self.consumer.incremental_assign(&TopicPartitionList::new()).map_err(|e| rebuild("close", &e))
                }
                Change::Revoke { partitions, .. } => self.unassign(&partitions),
            };
            if let Err(Failure::Rebuild { reason, .. }) = answered {
                tracing::debug!(reason, "closing");
            }
        }
        self.consumer.context().close();
        self.owned.clear();
    }
}

fn failure(failed: Failed) -> Failure {
    match failed {
        Failed::Abort { reason, .. } => Failure::Rebuild { reason, fenced: false },
        Failed::Rebuild { reason, fenced } => Failure::Rebuild { reason, fenced },
        Failed::Denied(error) => Failure::Stop(Error::broker("transaction", error)),
        Failed::Deadline => Failure::Deadline,
    }
}

fn checkpoint_due(active: &Active, interval: Duration) -> bool {
    let Checkpoints { pending, step, .. } = &active.checkpoints;
    pending.is_some()
        || *step != active.number && (active.checkpoints.at.elapsed() >= interval || active.core.wants_checkpoint())
}

fn seek(consumer: &BaseConsumer<Group>, topic: &str, partition: i32, offset: i64) -> Result<(), KafkaError> {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, partition, Offset::Offset(offset))?;
    let done = consumer.seek_partitions(list, Duration::from_secs(10))?;
    done.elements().iter().try_for_each(|element| element.error())
}

/// The topics a core can name exist as outputs.
const _: () = assert!(Topic::ALL.len() == 13);
