//! One life of the clients: from joining the group to leaving it, or to the failure that makes a rebuild necessary. The loop is
//! here; what the group does is in `membership`, transactions are in `commit`, drains and runs to the end in `ending`.
//!
//! Invariants: what is uncommitted is kept until its commit is confirmed; a partition is answered for (committed and
//! checkpointed, or dropped) before it is unassigned; nothing is polled into a core that is not restored.

mod commit;
mod ending;
mod membership;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;

use crate::clock::Wall;

use super::client::ShellConfig;
use super::core::{Input, Topic};
use super::deadletter;
use super::errors::{Class, Error, classify};
use super::group::{Change, Group};
use super::partition::{Active, Bounds, Owned, StepFailed, StepKind, Stepped};
use super::reader::Ends;
use super::restore::{Job, Outcome, Plan};
use super::shell::{Control, Ended};
use super::status::{Event, Lag};
use super::trace::Traces;
use super::transaction::{Failed, Outgoing, Place, Tag, Writer};
use super::waiting::{Waiting, await_topics};

use self::commit::Checkpointing;
use self::membership::seek;

/// Longest sleep of an idle loop.
const IDLE_WAIT: Duration = Duration::from_millis(10);

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
    /// When a part of a checkpoint was last written.
    last_part: Instant,
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
        let writer = Writer::new(&config.transactional_producer()).map_err(Error::settings)?;
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
            config.consumer(partitions).create_with_context(Group::default()).map_err(Error::settings)?;
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
            last_part: Instant::now(),
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

    fn actives(&self) -> impl Iterator<Item = &Active> {
        self.owned.values().filter_map(|owned| match owned {
            Owned::Active(active) => Some(active.as_ref()),
            Owned::Restoring { .. } => None,
        })
    }

    /// Where steps are traced, if they are.
    fn traces(&self) -> Option<Traces<'a>> {
        let config = self.config();
        let traces = |tracer| Traces { tracer, topics: &config.topics, group: &config.group };
        self.plan.tracer.as_ref().map(traces)
    }

    /// Steps each partition that has something to do; whether any step was full, so that more is waiting.
    fn step_all(&mut self) -> Result<bool, Failure> {
        let config = self.config();
        let bounds = Bounds {
            records: config.max_step_records,
            bytes: config.max_step_bytes,
            linger: config.step_linger,
            traces: self.traces(),
        };
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

    fn step(&mut self, partition: i32, bounds: &Bounds<'_>, kind: StepKind) -> Result<bool, Failure> {
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
        let Stepped { records, urgent, bytes, took, full, span, traced } = stepped;
        self.plan.status.counters.steps.add(1);
        self.plan.observer.on(Event::Stepped { partition, records, took });
        self.opened.get_or_insert_with(Instant::now);
        self.urgent |= urgent;
        self.open_bytes += bytes;
        let sending = Instant::now();
        let sent = self.open_records;
        span.in_scope(|| self.send_outputs(partition))?;
        if traced
            && let Some(traces) = bounds.traces
            && let Some(Owned::Active(active)) = self.owned.get_mut(&partition)
            && let Some(trace) = active.work.traces.last_mut()
        {
            traces.produced(trace, partition, self.open_records - sent, (sending, Instant::now()));
        }
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

/// The topics a core can name exist as outputs.
const _: () = assert!(Topic::ALL.len() == 14);
