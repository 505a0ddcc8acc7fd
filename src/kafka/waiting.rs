//! Waiting for the broker and its topics: with growing pauses, each cause told from the next.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

use super::client::Isolation;
use super::errors::{Error, is_transient, why};
use super::provision;
use super::reader::Reader;
use super::restore::Plan;
use super::session::Failure;
use super::shell::Control;
use super::status::Event;

/// First and longest pause between two looks for the broker and its topics.
const WAIT_FIRST: Duration = Duration::from_millis(250);
const WAIT_MOST: Duration = Duration::from_secs(5);
/// Reasons for waiting that are told apart.
const REASONS: usize = 16;

/// What is waited for, so that one cause is told from the next.
pub(super) struct Waiting<'a> {
    plan: &'a Plan,
    /// How often each reason was given; errors of one cause may alternate.
    said: BTreeMap<String, u32>,
    times: u32,
}

impl<'a> Waiting<'a> {
    pub(super) fn new(plan: &'a Plan) -> Self {
        Self { plan, said: BTreeMap::new(), times: 0 }
    }

    /// Says why, and gives how long to wait: from a quarter of a second up to five.
    pub(super) fn say(&mut self, reason: &str) -> Duration {
        if self.said.len() >= REASONS {
            self.said.clear();
        }
        let again = self.said.entry(reason.to_owned()).or_default();
        self.plan.observer.on(Event::Waiting { reason, again: *again });
        *again = again.saturating_add(1);
        let wait = WAIT_FIRST.saturating_mul(1 << self.times.min(8)).min(WAIT_MOST);
        self.times = self.times.saturating_add(1);
        wait
    }
}

/// Waits until the broker answers and every topic is there; the partition count. `None`: asked to stop.
pub(super) fn await_topics(
    plan: &Plan,
    control: &Control,
    woken: &Receiver<()>,
    waiting: &mut Waiting<'_>,
) -> Result<Option<i32>, Failure> {
    let topics = &plan.config.topics;
    let reader = Reader::new(&plan.config.client, &plan.config.group, Isolation::Committed)?;
    loop {
        if control.stopping() {
            return Ok(None);
        }
        let reason = match reader.partition_counts() {
            Ok(counts) => match provision::check(topics, &counts) {
                Ok(partitions) => return Ok(Some(partitions)),
                Err(missing @ Error::MissingTopic(_)) => missing.to_string(),
                Err(error) => return Err(error.into()),
            },
            Err(error) if is_transient(&error) => format!("{}: {}", plan.config.client.brokers, why(&error)),
            Err(error) => return Err(Error::broker("cannot read metadata", error).into()),
        };
        plan.status.connected.store(false, Ordering::Release);
        let until = Instant::now() + waiting.say(&reason);
        while Instant::now() < until && !control.stopping() {
            // Only a stop request ends the wait early.
            if woken.recv_timeout(Duration::from_millis(100)).is_ok() && control.stopping() {
                break;
            }
        }
    }
}
