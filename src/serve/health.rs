//! Whether the process is alive, whether it is ready, and which partitions it owns.
//!
//! Alive: the loop has beaten within [`HEARTBEAT_LIMIT`]; it never depends on Kafka being reachable. Ready: nobody holds a
//! reason against it. A new [`Health`] is alive and not ready (`starting`).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::clock::{Micros, SECOND, Wall};

/// A loop that has not beaten for this long is taken for dead.
pub const HEARTBEAT_LIMIT: Micros = 30 * SECOND;

/// Reason code held from construction until [`Health::ready`] lifts it.
pub const STARTING: &str = "starting";

/// What the shell says of itself; shared by reference, updated from any thread.
#[derive(Debug)]
pub struct Health {
    started: Wall,
    heartbeat: AtomicI64,
    reasons: Mutex<BTreeMap<&'static str, String>>,
    partitions: Mutex<BTreeMap<i32, Owned>>,
}

/// An owned partition as last reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Owned {
    /// Telemetry records not yet processed; `None` until known.
    pub lag: Option<i64>,
    /// Whether its state is still being restored.
    pub restoring: bool,
}

impl Health {
    /// Alive as of `now` and not ready: `starting`.
    pub fn new(now: Wall) -> Self {
        let reasons = BTreeMap::from([(STARTING, "the process is starting".to_owned())]);
        Self {
            started: now,
            heartbeat: AtomicI64::new(now.0),
            reasons: Mutex::new(reasons),
            partitions: Mutex::new(BTreeMap::new()),
        }
    }

    /// When the process started.
    pub fn started(&self) -> Wall {
        self.started
    }

    /// The loop came round. Call at least every few seconds, also while restoring or waiting for a broker.
    pub fn beat(&self, now: Wall) {
        self.heartbeat.fetch_max(now.0, Ordering::Relaxed);
    }

    /// Microseconds since the last beat; 0 when the clock went backwards.
    pub fn heartbeat_age(&self, now: Wall) -> Micros {
        now.0.saturating_sub(self.heartbeat.load(Ordering::Relaxed)).max(0)
    }

    /// Whether the loop has beaten within [`HEARTBEAT_LIMIT`].
    pub fn alive(&self, now: Wall) -> bool {
        self.heartbeat_age(now) < HEARTBEAT_LIMIT
    }

    /// Holds a reason against readiness, replacing the text held under the same code.
    pub fn not_ready(&self, code: &'static str, detail: impl Into<String>) {
        lock(&self.reasons).insert(code, detail.into());
    }

    /// Lifts a reason; unknown codes are fine.
    pub fn ready(&self, code: &'static str) {
        lock(&self.reasons).remove(code);
    }

    /// Every reason against readiness, by code; empty means ready. A stalled loop is one.
    pub fn reasons(&self, now: Wall) -> BTreeMap<&'static str, String> {
        let mut reasons = lock(&self.reasons).clone();
        if !self.alive(now) {
            let age = self.heartbeat_age(now) / SECOND;
            reasons.insert("stalled", format!("the loop has not come round for {age} s"));
        }
        let restoring: Vec<String> =
            lock(&self.partitions).iter().filter(|(_, p)| p.restoring).map(|(n, _)| n.to_string()).collect();
        if !restoring.is_empty() {
            reasons.insert("restoring", format!("restoring the state of partition {}", restoring.join(", ")));
        }
        reasons
    }

    /// What is held against readiness under a code.
    pub fn reason(&self, code: &str) -> Option<String> {
        lock(&self.reasons).get(code).cloned()
    }

    /// Reports an owned partition.
    pub fn set_partition(&self, partition: i32, owned: Owned) {
        lock(&self.partitions).insert(partition, owned);
    }

    /// Changes what is known of a partition, if it is owned.
    pub fn update_partition(&self, partition: i32, change: impl FnOnce(&mut Owned)) {
        if let Some(owned) = lock(&self.partitions).get_mut(&partition) {
            change(owned);
        }
    }

    /// A partition was given up or lost.
    pub fn forget_partition(&self, partition: i32) {
        lock(&self.partitions).remove(&partition);
    }

    /// The owned partitions.
    pub fn partitions(&self) -> BTreeMap<i32, Owned> {
        lock(&self.partitions).clone()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // every update is a single insert, remove or assignment: the map is whole even after a panic elsewhere
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const T0: Wall = Wall(1_700_000_000 * SECOND);

    fn at(seconds: i64) -> Wall {
        Wall(T0.0 + seconds * SECOND)
    }

    #[test]
    fn a_new_process_is_alive_and_not_ready() {
        let health = Health::new(T0);
        assert!(health.alive(T0));
        assert_eq!(health.reasons(T0).keys().copied().collect::<Vec<_>>(), [STARTING]);
        health.ready(STARTING);
        assert!(health.reasons(T0).is_empty());
    }

    #[test]
    fn thirty_seconds_without_a_beat_is_dead_and_one_beat_revives() {
        let health = Health::new(T0);
        health.ready(STARTING);
        assert!(health.alive(Wall(T0.0 + HEARTBEAT_LIMIT - 1)));
        assert!(!health.alive(at(30)), "the limit itself is dead");
        assert_eq!(health.reasons(at(30)).keys().copied().collect::<Vec<_>>(), ["stalled"]);
        health.beat(at(31));
        assert!(health.alive(at(32)));
        assert!(health.reasons(at(32)).is_empty());
    }

    #[test]
    fn a_clock_that_goes_backwards_does_not_kill() {
        let health = Health::new(T0);
        health.beat(at(-100));
        assert_eq!(health.heartbeat_age(at(-100)), 0);
        assert_eq!(health.heartbeat_age(at(1)), SECOND);
    }

    #[test]
    fn a_restoring_partition_holds_readiness_until_it_is_done_or_given_up() {
        let health = Health::new(T0);
        health.ready(STARTING);
        health.set_partition(2, Owned { lag: None, restoring: true });
        health.set_partition(4, Owned { lag: Some(7), restoring: true });
        assert_eq!(health.reasons(T0)["restoring"], "restoring the state of partition 2, 4");
        health.set_partition(2, Owned { lag: Some(0), restoring: false });
        health.forget_partition(4);
        assert!(health.reasons(T0).is_empty());
        assert_eq!(health.partitions().len(), 1);
    }

    #[test]
    fn a_reason_is_replaced_by_its_code() {
        let health = Health::new(T0);
        health.not_ready("kafka", "localhost:9092 does not answer");
        health.not_ready("kafka", "localhost:9092 refuses");
        assert_eq!(health.reasons(T0)["kafka"], "localhost:9092 refuses");
        assert_eq!(health.reasons(T0).len(), 2, "starting is still held");
    }
}
