//! The loop: poll, step, send, commit; and what it does when the group, the broker or the operator wants something else.
//!
//! One thread owns the consumer, the producer and every core. [`Shell::run`] rebuilds a `Session` whenever the clients
//! become unusable; a session's state is never carried over: it is restored from the broker, which holds the truth.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError};

use crate::clock::Wall;
use crate::traces::Tracer;

use super::client::ShellConfig;
use super::core::{Core, CoreError};
use super::errors::Error;
use super::restore::{self, Job, Outcome, Plan};
use super::session::{Failure, Session};
use super::status::{Event, Observer, Status};

/// Two fencings within this time mean two living holders of one transactional id.
const FENCED_TWICE: Duration = Duration::from_secs(30);

/// Makes the core of (partition, partitions). Called on restore threads.
pub type CoreFactory = Arc<dyn Fn(i32, i32) -> Result<Box<dyn Core>, CoreError> + Send + Sync>;

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Asked to: everything is committed and checkpointed.
    Drained,
    /// Asked to, but the deadline passed first: the broker aborts what was open, the next start repeats it.
    Abandoned,
    /// An until-end run is complete.
    Finished,
}

/// The exactly-once shell of one process.
pub struct Shell {
    plan: Arc<Plan>,
    control: Arc<Control>,
    woken: Receiver<()>,
}

/// Steers and watches a running shell from other threads.
#[derive(Clone)]
pub struct Handle(Arc<Control>);

pub(super) struct Control {
    stop: AtomicBool,
    deadline: Mutex<Option<Instant>>,
    wake: Sender<()>,
    status: Arc<Status>,
}

impl Control {
    pub(super) fn stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Whether a drain was asked for and its deadline has passed.
    pub(super) fn expired(&self) -> bool {
        let deadline = *self.deadline.lock().unwrap_or_else(PoisonError::into_inner);
        deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }

    /// What is left of the time for a drain; nothing when none was given.
    pub(super) fn left(&self) -> Duration {
        let deadline = *self.deadline.lock().unwrap_or_else(PoisonError::into_inner);
        deadline.map_or(Duration::ZERO, |deadline| deadline.saturating_duration_since(Instant::now()))
    }

    /// As [`Control::expired`], asked by calls that wait for the broker: the loop is alive meanwhile.
    pub(super) fn waited_out(&self) -> bool {
        self.status.heartbeat.store(Wall::now().0, Ordering::Relaxed);
        self.expired()
    }

    pub(super) fn wake(&self) {
        match self.wake.try_send(()) {
            // A waiting wake-up is as good as another.
            Ok(()) | Err(TrySendError::Full(()) | TrySendError::Disconnected(())) => {}
        }
    }
}

impl Handle {
    /// Asks the loop to commit, checkpoint and end, within `within`. Returns at once.
    pub fn drain(&self, within: Duration) {
        let deadline = Instant::now().checked_add(within);
        *self.0.deadline.lock().unwrap_or_else(PoisonError::into_inner) = deadline;
        self.0.stop.store(true, Ordering::Release);
        self.0.wake();
    }

    /// The shared status.
    pub fn status(&self) -> Arc<Status> {
        Arc::clone(&self.0.status)
    }
}

impl Shell {
    /// Prepares a shell; nothing is connected yet.
    pub fn new(config: ShellConfig, factory: CoreFactory, observer: Arc<dyn Observer>) -> Self {
        Self::traced(config, factory, observer, None)
    }

    /// As [`Shell::new`]; `tracer` decides which steps are traced.
    pub fn traced(
        config: ShellConfig,
        factory: CoreFactory,
        observer: Arc<dyn Observer>,
        tracer: Option<Arc<Tracer>>,
    ) -> Self {
        let (wake, woken) = crossbeam_channel::bounded(1);
        let status = Arc::new(Status::default());
        let control =
            Control { stop: AtomicBool::new(false), deadline: Mutex::new(None), wake, status: Arc::clone(&status) };
        Self { plan: Arc::new(Plan { config, factory, observer, status, tracer }), control: Arc::new(control), woken }
    }

    /// For draining and watching.
    pub fn handle(&self) -> Handle {
        Handle(Arc::clone(&self.control))
    }

    /// Runs until drained, finished or failed for good. Blocks; give it a thread of its own.
    ///
    /// # Errors
    /// Settings, missing rights, mismatching partition counts, a second holder of our slot, or a failing core. Broker
    /// trouble is waited out instead.
    pub fn run(self) -> Result<Ended, Error> {
        let (jobs, queue) = crossbeam_channel::unbounded::<Job>();
        let (done, outcomes) = crossbeam_channel::unbounded::<Outcome>();
        for n in 0..self.plan.config.restore_threads.max(1) {
            let (plan, control, queue, done) =
                (Arc::clone(&self.plan), Arc::clone(&self.control), queue.clone(), done.clone());
            std::thread::Builder::new()
                .name(format!("restore-{n}"))
                .spawn(move || restore::work(&plan, &queue, &done, &|| control.wake()))
                .map_err(Error::Thread)?;
        }
        drop((queue, done));
        let ended = self.sessions(&jobs, &outcomes);
        let status = &self.plan.status;
        status.ready.store(false, Ordering::Release);
        status.connected.store(false, Ordering::Release);
        status.owned.store(Arc::default());
        ended
    }

    fn sessions(&self, jobs: &Sender<Job>, outcomes: &Receiver<Outcome>) -> Result<Ended, Error> {
        let mut fenced_at: Option<Instant> = None;
        for id in 0.. {
            let mut session = None;
            let outcome = match Session::open(id, &self.plan, &self.control, &self.woken, jobs, outcomes) {
                Ok(Some(opened)) => session.insert(opened).run(),
                Ok(None) => return Ok(Ended::Drained),
                Err(failure) => Err(failure),
            };
            match outcome {
                Ok(ended) => return Ok(ended),
                Err(Failure::Stop(error)) => return Err(error),
                Err(Failure::Deadline) => return Ok(Ended::Abandoned),
                Err(Failure::Rebuild { reason, fenced }) => {
                    self.plan.observer.on(Event::Rebuilding { reason: &reason, fenced });
                    if fenced {
                        self.plan.status.counters.transactions_fenced.add(1);
                        if fenced_at.is_some_and(|at| at.elapsed() < FENCED_TWICE) {
                            return Err(Error::FencedTwice { id: self.plan.config.transactional_id() });
                        }
                        fenced_at = Some(Instant::now());
                    }
                    if self.control.stopping() && self.control.expired() {
                        return Ok(Ended::Abandoned);
                    }
                    drop(session);
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        }
        Ok(Ended::Abandoned)
    }
}
