//! Sends signed commands and hears of their results: one thread for each, shared by all requests.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, oneshot};

use super::desk::{Begun, Desk, KEPT, Look, REUSED, Sent, digest};
use super::problem::Problem;
use super::rate::{Buckets, Rate};
use crate::clock::{Micros, Wall};
use crate::decide::commands::{Command, Keyring};
use crate::kafka::follow::Follower;
use crate::kafka::produce::Producer;
use crate::kafka::{ClientSettings, Error, Topics};
use crate::serve::access::Caller;

/// How long one look at the results may take: a shutdown is noticed after it.
const LOOK: Duration = Duration::from_millis(100);
/// Between attempts to reach the results.
const RETRY: Duration = Duration::from_secs(1);
/// How long the broker may take to confirm what was sent.
const DELIVERY: Duration = Duration::from_secs(3);
/// Most records that wait to be sent, and that are sent at once.
const QUEUE: usize = 256;
/// Results of what the core tells itself, which nobody asked for over HTTP.
const REPORTS: &str = "level.report";

/// The bounds of a commander.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// How long a request waits for its result.
    pub patience: Duration,
    /// How many may wait at once: of the connections there are the others are for reads.
    pub waiting: usize,
    /// How often one caller may write.
    pub rate: Rate,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { patience: Duration::from_secs(5), waiting: 48, rate: Rate::default() }
    }
}

/// A record to send, and who is told when the broker has it.
pub(super) struct Parcel {
    pub(super) topic: String,
    pub(super) key: String,
    pub(super) payload: Vec<u8>,
    pub(super) sent: oneshot::Sender<Result<(), String>>,
}

/// What the threads and the requests share.
#[derive(Default)]
pub(super) struct Shared {
    desk: Mutex<Desk>,
    stop: AtomicBool,
    /// Whether results are heard of.
    hears: AtomicBool,
}

impl Shared {
    pub(super) fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_hears(&self) {
        self.hears.store(true, Ordering::Release);
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}

/// What became of a command within the time that a request waits.
#[derive(Debug)]
pub(super) enum Told {
    /// Its result.
    Result(Arc<Value>),
    /// None yet.
    Pending,
}

/// Sends commands for requests.
pub struct Commander {
    pub(super) shared: Arc<Shared>,
    /// `None`: it ends.
    parcels: Option<SyncSender<Parcel>>,
    topics: Topics,
    keys: Arc<Keyring>,
    clock: fn() -> Wall,
    bounds: Bounds,
    places: Semaphore,
    buckets: Mutex<Buckets>,
    threads: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for Commander {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Commander").field("keys", &self.keys).field("bounds", &self.bounds).finish_non_exhaustive()
    }
}

impl Drop for Commander {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        drop(self.parcels.take());
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread that sends commands panicked");
            }
        }
    }
}

/// Why there is no commander.
#[derive(Debug, thiserror::Error)]
pub enum CommanderError {
    /// The client's settings.
    #[error("commands cannot be sent")]
    Kafka(#[from] Error),
    /// A thread.
    #[error("a thread for commands cannot be started")]
    Thread(#[from] std::io::Error),
}

impl Commander {
    /// Commands go to the topic of commands, signed with the own key of `keys`; `clock` is [`Wall::now`] outside tests.
    ///
    /// # Errors
    /// The client's settings are wrong, or there are no more threads. A broker that cannot be reached is waited for.
    pub fn start(
        client: &ClientSettings,
        topics: &Topics,
        keys: Arc<Keyring>,
        clock: fn() -> Wall,
    ) -> Result<Self, CommanderError> {
        let producer = Producer::courier(client)?;
        let (mut commander, parcels) = Self::unattended(topics, keys, clock, Bounds::default());
        let thread = |name: &str| std::thread::Builder::new().name(name.to_owned());
        commander.threads.push(thread("commands").spawn(move || deliver(&producer, &parcels))?);
        let (client, topic, shared) = (client.clone(), topics.command_results.clone(), Arc::clone(&commander.shared));
        commander.threads.push(thread("command-results").spawn(move || hear(&client, &topic, &shared, clock))?);
        Ok(commander)
    }

    /// One whose records somebody else sends.
    pub(super) fn unattended(
        topics: &Topics,
        keys: Arc<Keyring>,
        clock: fn() -> Wall,
        bounds: Bounds,
    ) -> (Self, Receiver<Parcel>) {
        let (sender, parcels) = mpsc::sync_channel(QUEUE);
        let commander = Self {
            shared: Arc::default(),
            parcels: Some(sender),
            topics: topics.clone(),
            keys,
            clock,
            bounds,
            places: Semaphore::new(bounds.waiting),
            buckets: Mutex::default(),
            threads: Vec::new(),
        };
        (commander, parcels)
    }

    /// Whether a caller may write now.
    pub(super) fn admit(&self, caller: &Caller) -> Result<(), Problem> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        buckets.take(&caller.name, self.bounds.rate, (self.clock)().0).map_err(|seconds| {
            let why = format!("{} writes too often; try again in {seconds} s", caller.name);
            Problem::new(StatusCode::TOO_MANY_REQUESTS, why).after(seconds)
        })
    }

    /// What is known of a command, as far as the caller may see it.
    pub(super) fn look(&self, id: &str, caller: &Caller) -> Look {
        self.shared.desk().look(id, caller)
    }

    /// Signs and sends a command, and waits for its result.
    pub(super) async fn command(&self, command: Command, kind: &'static str) -> Result<Told, Problem> {
        if !self.shared.hears.load(Ordering::Acquire) {
            return Err(unavailable("the topic of results is not followed yet: nothing was sent"));
        }
        let Ok(_place) = self.places.try_acquire() else {
            return Err(unavailable("too many wait for results already: nothing was sent"));
        };
        let (id, key) = (command.command_id.clone(), command.key().to_owned());
        let sent =
            Sent { kind, tenant: command.tenant_id.clone(), digest: digest(kind, &command.tenant_id, &command.body) };
        let payload = self.keys.sign_own(command);
        let payload = payload.ok_or_else(|| unavailable("this process has no key to sign with: nothing was sent"))?;
        let begun = self.shared.desk().begin(&id, sent, self.now());
        let mut waits = match begun {
            Begun::Known(result) => return Ok(Told::Result(result)),
            Begun::Reused => return Err(reused(&id)),
            Begun::Wait(waits) => waits,
        };
        let until = tokio::time::Instant::now() + self.bounds.patience;
        let topic = self.topics.commands.clone();
        tokio::select! {
            // a result says that it was sent, whatever the broker confirms
            biased;
            result = &mut waits => return Ok(result.map_or(Told::Pending, Told::Result)),
            sent = self.send(topic, key, payload) => sent.map_err(|why| why.with("command_id", json!(id)))?,
        }
        match tokio::time::timeout_at(until, waits).await {
            Ok(Ok(result)) => Ok(Told::Result(result)),
            // it was forgotten for others, or nobody has answered yet
            Ok(Err(_)) | Err(_) => Ok(Told::Pending),
        }
    }

    /// Sends a report of an executor.
    pub(super) async fn report(&self, tenant: &str, report: &Value) -> Result<(), Problem> {
        self.send(self.topics.outcomes.clone(), tenant.to_owned(), report.to_string().into_bytes()).await
    }

    /// Hands a record to the courier and waits until the broker has it.
    async fn send(&self, topic: String, key: String, payload: Vec<u8>) -> Result<(), Problem> {
        let (sent, confirmed) = oneshot::channel();
        let parcel = Parcel { topic, key, payload, sent };
        let handed = self.parcels.as_ref().map(|parcels| parcels.try_send(parcel));
        match handed {
            Some(Ok(())) => {}
            Some(Err(TrySendError::Full(_))) => return Err(unavailable("too much waits to be sent: nothing was sent")),
            Some(Err(TrySendError::Disconnected(_))) | None => {
                return Err(unavailable("this process is ending: nothing was sent"));
            }
        }
        let unsure = |why: &str| {
            let again =
                "it may have been sent all the same: repeat it with the same Idempotency-Key, and it counts once";
            unavailable(&format!("the broker did not confirm it ({why}); {again}"))
        };
        match tokio::time::timeout(self.bounds.patience, confirmed).await {
            Ok(Ok(Ok(()))) => Ok(()),
            Ok(Ok(Err(why))) => Err(unsure(&why)),
            Ok(Err(_)) => Err(unsure("this process is ending")),
            Err(_) => Err(unsure("it takes too long")),
        }
    }

    pub(super) fn now(&self) -> Micros {
        (self.clock)().0
    }
}

fn unavailable(why: &str) -> Problem {
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, why).after(1)
}

fn reused(id: &str) -> Problem {
    let why = "another request had this Idempotency-Key: give each its own";
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, why).with("code", json!(REUSED)).with("command_id", json!(id))
}

/// Sends what is handed in until nobody can hand in any more.
fn deliver(producer: &Producer, parcels: &Receiver<Parcel>) {
    while let Ok(first) = parcels.recv() {
        let batch: Vec<Parcel> = std::iter::once(first).chain(parcels.try_iter().take(QUEUE)).collect();
        let queued = batch.iter().try_for_each(|p| producer.send(&p.topic, p.key.as_bytes(), &p.payload));
        let outcome = queued.and_then(|()| producer.flush(DELIVERY)).map_err(|error| {
            tracing::warn!(%error, "commands could not be sent");
            error.to_string()
        });
        for parcel in batch {
            if parcel.sent.send(outcome.clone()).is_err() {
                tracing::trace!("who sent a command is gone");
            }
        }
    }
}

/// Follows the results until it is told to stop.
fn hear(client: &ClientSettings, topic: &str, shared: &Shared, clock: fn() -> Wall) {
    let mut said = String::new();
    let mut follower = loop {
        if shared.stopped() {
            return;
        }
        // what others were told lately is worth knowing too: they may repeat it here
        match Follower::since(client, "runwarden-command-results", topic, clock().0.saturating_sub(KEPT) / 1_000) {
            Ok(follower) => break follower,
            Err(error) => {
                let error = error.to_string();
                if error != said {
                    tracing::debug!(error, "cannot follow the results of commands yet");
                }
                said = error;
            }
        }
        let until = Instant::now() + RETRY;
        while Instant::now() < until && !shared.stopped() {
            std::thread::sleep(LOOK.min(until.saturating_duration_since(Instant::now())));
        }
    };
    shared.set_hears();
    while !shared.stopped() {
        let Some(payload) = follower.next(LOOK).and_then(|record| record.payload) else { continue };
        match serde_json::from_slice::<Value>(&payload) {
            Ok(result) if result.get("type").is_some_and(|kind| kind == REPORTS) => {}
            Ok(result) => shared.desk().take(result, payload.len(), clock().0),
            Err(_) => tracing::warn!(topic, "a result of a command cannot be read by this version"),
        }
    }
}
