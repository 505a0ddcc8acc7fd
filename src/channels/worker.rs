//! One channel at work: a thread, a consumer group, a queue.
//!
//! A position is committed when everything before it was delivered, or given up and recorded on the audit topic. While the receiver does
//! not answer, the thread goes on polling, so that it stays a member; a full queue pauses its partitions.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::pace::{Circuit, Pace};
use super::queue::{Item, MOST, Queue};
use super::record::{self, Outcome};
use super::route::{Route, Router};
use super::sender::Sender;
use super::{Attempt, Message};
use crate::clock::Wall;
use crate::config::{self, Channel};
use crate::decide::records::{Alert, AlertStatus, Audit};
use crate::kafka::produce::{Producer, Send};
use crate::kafka::reader::OwnedRecord;
use crate::kafka::subscribe::{Heard, Start, Subscriber, look_back};
use crate::kafka::{Error, ShellConfig};
use crate::metrics::channels::OfChannel;

/// Longest wait for a record: a shutdown is noticed after it.
const LOOK: Duration = Duration::from_millis(50);
/// Between two members, when one failed.
const AGAIN: Duration = Duration::from_secs(2);
/// How long the broker may take to confirm lines of the audit.
const CONFIRM: Duration = Duration::from_secs(10);
/// How often positions of records that need no delivery are committed.
const TIDY: Duration = Duration::from_secs(1);
/// How often what fires is looked at.
const BEAT: Duration = Duration::from_millis(500);
/// Records taken in between two attempts.
const BATCH: usize = 200;
/// The most alerts that are kept of a look back.
const LOOKED_BACK: usize = super::payload::alertmanager::MOST;

/// What one channel works with.
pub struct Worker {
    /// The channel.
    pub channel: Channel,
    /// How it is reached.
    pub sender: Sender,
    /// The process's own place in Kafka.
    pub shell: ShellConfig,
    /// Its figures.
    pub metrics: OfChannel,
    /// Set when it is to end.
    pub stop: Arc<AtomicBool>,
}

/// The group of a channel.
pub fn group(group: &str, channel: &str) -> String {
    format!("{group}-channel-{channel}")
}

impl Worker {
    /// Works until it is told to stop.
    pub fn run(self) {
        let Self { channel, mut sender, shell, metrics, stop } = self;
        let seed = Wall::now().0.unsigned_abs();
        let mut said = String::new();
        // these live on over members
        let mut pace = Pace::new(&channel, seed);
        let mut gone = false;
        while !stop.load(Ordering::Acquire) {
            let session = Session {
                channel: &channel,
                sender: &mut sender,
                shell: &shell,
                metrics: &metrics,
                stop: &stop,
                pace: &mut pace,
                // what is read again is decided again
                router: Router::new(&channel),
                gone: &mut gone,
                queue: Queue::default(),
                committed: BTreeMap::new(),
                lines: VecDeque::new(),
                said_unread: false,
                failing: false,
            };
            if let Err(error) = session.work() {
                let error = chain(&error);
                if error != said {
                    tracing::warn!(channel = channel.name, error, "alerts cannot be read or settled, trying again");
                    said = error;
                }
                let until = Instant::now() + AGAIN;
                while Instant::now() < until && !stop.load(Ordering::Acquire) {
                    std::thread::sleep(LOOK);
                }
            }
        }
        metrics.queued.set(0);
        metrics.lag.set(0);
    }
}

fn chain(error: &Error) -> String {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
    format!("{error}{cause}")
}

/// One membership.
struct Session<'a> {
    channel: &'a Channel,
    sender: &'a mut Sender,
    shell: &'a ShellConfig,
    metrics: &'a OfChannel,
    stop: &'a AtomicBool,
    pace: &'a mut Pace,
    router: Router,
    /// The receiver said that it is no more.
    gone: &'a mut bool,
    queue: Queue,
    committed: BTreeMap<i32, i64>,
    /// Of the audit, not confirmed yet.
    lines: VecDeque<Audit>,
    said_unread: bool,
    failing: bool,
}

impl Session<'_> {
    fn work(mut self) -> Result<(), Error> {
        let group = group(&self.shell.group, &self.channel.name);
        let producer = Producer::new(&self.shell.client)?;
        self.sender.clear();
        let mut subscriber = Subscriber::new(self.shell, &group, &self.shell.topics.alerts, Start::End)?;
        let (mut tidied, mut beat) = (Instant::now(), Instant::now());
        while !self.stop.load(Ordering::Acquire) {
            self.listen(&mut subscriber, &producer)?;
            subscriber.pause(self.queue.is_full())?;
            let settled = self.attempt();
            if beat.elapsed() >= BEAT {
                beat = Instant::now();
                self.refresh();
            }
            if settled || tidied.elapsed() >= TIDY {
                tidied = Instant::now();
                self.settle(&subscriber, &producer)?;
                self.show(&mut subscriber);
            }
        }
        self.settle(&subscriber, &producer)
    }

    /// Takes in what the group and the topic have to say.
    fn listen(&mut self, subscriber: &mut Subscriber, producer: &Producer) -> Result<(), Error> {
        let busy = !self.queue.is_empty() && (*self.gone || self.pace.wait(Wall::now()).is_zero());
        let mut wait = if busy { Duration::ZERO } else { LOOK };
        if !self.queue.is_empty() {
            wait = wait.min(self.pace.wait(Wall::now()));
        }
        for _ in 0..BATCH {
            match subscriber.next(wait)? {
                None => break,
                Some(Heard::Record(record)) => self.record(&record),
                Some(Heard::Assigned { partition, from }) => {
                    self.queue.begin(partition, from);
                    self.committed.insert(partition, from);
                    self.recall(partition, from);
                }
                Some(Heard::Revoked { partitions, lost }) => {
                    if !lost && let Err(error) = self.settle(subscriber, producer) {
                        tracing::debug!(error = chain(&error), "what is not committed is told again");
                    }
                    for partition in &partitions {
                        self.queue.forget(*partition);
                        self.committed.remove(partition);
                        self.sender.forget(*partition);
                    }
                    if !partitions.is_empty() {
                        self.router = Router::new(self.channel);
                    }
                    subscriber.release(&partitions)?;
                }
            }
            if self.queue.is_full() {
                break;
            }
            wait = Duration::ZERO;
        }
        Ok(())
    }

    fn record(&mut self, record: &OwnedRecord) {
        self.queue.seen(record.partition, record.offset);
        let id = record.headers.iter().find(|(name, _)| name == "ce_id").map(|(_, value)| value.as_slice());
        let Some(message) = Message::read(id, record.payload.as_deref(), record.timestamp) else {
            self.metrics.unread.inc();
            if !self.said_unread {
                self.said_unread = true;
                let (partition, offset) = (record.partition, record.offset);
                tracing::warn!(
                    channel = self.channel.name,
                    partition,
                    offset,
                    "a record on the alerts topic is no alert: it is passed over"
                );
            }
            return;
        };
        match self.router.route(&message.alert) {
            Route::Other | Route::Old => {}
            Route::Muted => self.metrics.muted.inc(),
            Route::Tell => {
                let (partition, offset, since) = (record.partition, record.offset, Wall::now());
                let item = Item { partition, offset, message, since, attempts: 0, last_error: None };
                for superseded in self.queue.push(item) {
                    self.done(&superseded, Outcome::Suppressed);
                }
            }
        }
    }

    /// What was told of a partition before it came here and has not ended.
    fn recall(&mut self, partition: i32, to: i64) {
        if !self.sender.remembers() {
            return;
        }
        let since = Wall::now().0.saturating_sub(config::micros(self.channel.look_back)) / 1_000;
        let mut open: BTreeMap<String, Alert> = BTreeMap::new();
        let topic = &self.shell.topics.alerts;
        let seen = look_back(&self.shell.client, topic, (partition, to), since, |record| {
            if let Some(Message { alert, .. }) = Message::read(None, record.payload.as_deref(), 0) {
                let told = self.router.is_ours(&alert) && !super::route::is_muted(&alert);
                if alert.status == AlertStatus::Resolved {
                    open.remove(&alert.alert_id);
                } else if told && (open.len() < LOOKED_BACK || open.contains_key(&alert.alert_id)) {
                    open.insert(alert.alert_id.clone(), alert);
                }
            }
            !self.stop.load(Ordering::Acquire)
        });
        if let Err(error) = seen {
            let error = chain(&error);
            tracing::warn!(
                channel = self.channel.name,
                error,
                "it is not known what fires: alerts of before may end there by themselves"
            );
        }
        for alert in open.values() {
            self.sender.recall(partition, alert, Wall::now());
        }
    }

    /// One attempt, if it is time; whether something is settled.
    fn attempt(&mut self) -> bool {
        if *self.gone {
            // nobody is there to be told
            let mut settled = false;
            while let Some(mut item) = self.queue.pop() {
                item.last_error.get_or_insert_with(|| "the receiver is gone (410)".to_owned());
                self.done(&item, Outcome::GaveUp);
                settled = true;
            }
            return settled;
        }
        let now = Wall::now();
        if !self.pace.wait(now).is_zero() {
            return false;
        }
        let Some(item) = self.queue.front() else { return false };
        item.attempts += 1;
        self.metrics.attempts.inc();
        let attempt = self.sender.send(item.partition, &item.message, now);
        let now = Wall::now();
        let outcome = match attempt {
            Attempt::Done => {
                self.pace.answered(now);
                Outcome::Delivered
            }
            Attempt::Never(why) => {
                self.pace.answered(now);
                tracing::warn!(
                    channel = self.channel.name,
                    alert = item.message.alert.alert_id,
                    why,
                    "an alert was refused"
                );
                item.last_error = Some(why);
                Outcome::GaveUp
            }
            Attempt::Gone => {
                *self.gone = true;
                tracing::error!(
                    channel = self.channel.name,
                    "the receiver is gone (410): nothing is delivered there until this process is started again"
                );
                item.last_error = Some("the receiver is gone (410)".to_owned());
                Outcome::GaveUp
            }
            Attempt::Later { why, after } => {
                self.pace.failed(after, now);
                if !self.failing {
                    self.failing = true;
                    tracing::warn!(channel = self.channel.name, why, "an alert was not delivered, trying again");
                }
                item.last_error = Some(why);
                let age = now.0.saturating_sub(item.since.0);
                if age < config::micros(self.channel.give_up_after) {
                    return false;
                }
                Outcome::GaveUp
            }
        };
        if outcome == Outcome::Delivered && self.failing {
            self.failing = false;
            tracing::info!(channel = self.channel.name, "alerts are delivered again");
        }
        if let Some(item) = self.queue.pop() {
            self.done(&item, outcome);
        }
        true
    }

    fn done(&mut self, item: &Item, outcome: Outcome) {
        let now = Wall::now();
        self.metrics.deliveries[outcome as usize].inc();
        if outcome == Outcome::Delivered {
            self.metrics.seconds.observe(now.0.saturating_sub(item.message.at).max(0) as f64 / 1e6);
        }
        let kind = self.channel.kind.as_str();
        self.lines.push_back(record::audit(&self.channel.name, kind, item, outcome, now));
    }

    fn refresh(&mut self) {
        let now = Wall::now();
        if self.pace.circuit(now) == Circuit::Open {
            return;
        }
        match self.sender.refresh(now) {
            Some(Attempt::Later { why, .. } | Attempt::Never(why)) if !self.failing => {
                self.failing = true;
                tracing::warn!(channel = self.channel.name, why, "what fires was not posted again, trying again");
            }
            Some(Attempt::Done) => self.failing = false,
            _ => {}
        }
    }

    /// Records what came of messages, then commits how far everything is settled.
    fn settle(&mut self, subscriber: &Subscriber, producer: &Producer) -> Result<(), Error> {
        let topic = &self.shell.topics.audit;
        let source = format!("urn:runwarden:{}", self.shell.group);
        for line in &self.lines {
            let Ok(payload) = serde_json::to_vec(line) else { continue };
            let headers = record::headers(line, &source);
            let headers: Vec<(&str, &[u8])> = headers.iter().map(|(name, value)| (*name, value.as_slice())).collect();
            let (key, payload) = (Some(line.tenant_id.as_bytes()), Some(payload.as_slice()));
            producer.send_record(Send { topic, key, payload, headers: &headers, ..Send::default() })?;
        }
        if !self.lines.is_empty() {
            producer.flush(CONFIRM)?;
            self.lines.clear();
        }
        let positions = self.queue.positions();
        if positions != self.committed {
            subscriber.commit(&positions)?;
            self.committed = positions;
        }
        Ok(())
    }

    fn show(&self, subscriber: &mut Subscriber) {
        self.metrics.queued.set(i64::try_from(self.queue.len()).unwrap_or(MOST as i64));
        let rests = *self.gone || self.pace.circuit(Wall::now()) != Circuit::Closed;
        self.metrics.open.set(i64::from(rests));
        self.metrics.lag.set(subscriber.lag(&self.queue.positions()));
    }
}
