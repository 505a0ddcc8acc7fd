//! What the shell tells others while it runs: a shared status, and events for logs and metrics.
//!
//! The loop writes, everybody reads; nothing here is asked back by the loop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::clock::Wall;

use super::core::{Input, Topic};

/// How far one input partition is behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lag {
    /// Which input.
    pub input: Input,
    /// Partition.
    pub partition: i32,
    /// Records between the last processed one and the last one a read_committed consumer may see (transaction markers
    /// count). Refreshed with the client's statistics, every few seconds.
    pub records: i64,
    /// 0 when the input stands at its end; otherwise the broker's clock minus the timestamp of the last processed record, µs.
    pub behind: i64,
}

/// Shared, lock-free view of a running shell.
#[derive(Debug, Default)]
pub struct Status {
    pub(super) connected: AtomicBool,
    pub(super) ready: AtomicBool,
    pub(super) owned: ArcSwap<Vec<i32>>,
    pub(super) lag: ArcSwap<Vec<Lag>>,
    pub(super) last_commit: AtomicI64,
    pub(super) heartbeat: AtomicI64,
    /// Counters since the start of the process.
    pub counters: Counters,
}

/// Monotone counters; read with [`Counter::get`].
#[derive(Debug, Default)]
#[allow(missing_docs, reason = "the names say what is counted")]
pub struct Counters {
    pub transactions_committed: Counter,
    pub transactions_aborted: Counter,
    pub transactions_fenced: Counter,
    pub steps: Counter,
    pub records_in: Counter,
    pub bytes_in: Counter,
    pub records_out: Counter,
    pub bytes_out: Counter,
    pub step_bytes: Counter,
    pub checkpoints: Counter,
    pub checkpoint_records: Counter,
    pub checkpoint_bytes: Counter,
    pub restores: Counter,
    pub replayed_steps: Counter,
    pub replay_mismatches: Counter,
    pub history_gone: Counter,
    pub dead_letters: Counter,
    pub partitions_lost: Counter,
}

/// A counter that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// The count so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }
}

impl Status {
    /// Whether the group has answered and every assigned partition is restored.
    pub fn ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// Whether the broker has been reached and the clients are set up.
    pub fn connected(&self) -> bool {
        self.connected.load(Ordering::Acquire)
    }

    /// Owned partitions, ascending; those still restoring are among them.
    pub fn owned(&self) -> Arc<Vec<i32>> {
        self.owned.load_full()
    }

    /// Lag per owned input partition.
    pub fn lag(&self) -> Arc<Vec<Lag>> {
        self.lag.load_full()
    }

    /// When the last transaction was committed; `None` before the first.
    pub fn last_commit(&self) -> Option<Wall> {
        Some(self.last_commit.load(Ordering::Relaxed)).filter(|&t| t != 0).map(Wall)
    }

    /// When the loop last went round: liveness is `now - heartbeat` under 30 s. `None` before the loop runs.
    pub fn heartbeat(&self) -> Option<Wall> {
        Some(self.heartbeat.load(Ordering::Relaxed)).filter(|&t| t != 0).map(Wall)
    }
}

/// One committed transaction.
#[derive(Debug, Clone, Copy, Default)]
pub struct Committed {
    /// Steps in it.
    pub steps: usize,
    /// Records consumed.
    pub records_in: usize,
    /// Records produced per topic, at `Topic as usize`; the shell's own records (steps, checkpoints) not counted.
    pub records_out: [u64; Topic::ALL.len()],
    /// Bytes of checkpoint records in it.
    pub checkpoint_bytes: usize,
    /// Whether a decision asked for an early commit.
    pub urgent: bool,
    /// Broker timestamps of the oldest and newest record consumed, µs; 0 when there was none.
    pub oldest: i64,
    /// See `oldest`.
    pub newest: i64,
    /// When the commit was confirmed; `at - oldest` bounds event-to-commit latency.
    pub at: Wall,
    /// From the first uncommitted step to the confirmation.
    pub open_for: Duration,
    /// From the last send to the confirmation.
    pub commit_took: Duration,
}

/// What happened. Borrowed: an observer copies what it keeps.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The broker cannot be reached or lacks a topic; tried again, after up to five seconds.
    Waiting {
        /// Why.
        reason: &'a str,
        /// How many times it was waited for that reason before.
        again: u32,
    },
    /// Clients are set up and the group is being joined.
    Connected,
    /// Partitions were assigned; restoring begins.
    Assigned(&'a [i32]),
    /// Partitions were given up (committed and checkpointed first) or lost (dropped unseen).
    Revoked {
        /// Which.
        partitions: &'a [i32],
        /// Whether they were taken without notice.
        lost: bool,
    },
    /// A restore goes on.
    RestoreProgress {
        /// Partition.
        partition: i32,
        /// Checkpoint keys read.
        keys: u64,
        /// Steps re-run.
        steps: u64,
    },
    /// A partition is restored and takes input.
    Restored {
        /// Partition.
        partition: i32,
        /// Checkpoint keys taken back.
        keys: u64,
        /// Checkpoint bytes read.
        bytes: u64,
        /// Steps re-run.
        steps: u64,
        /// Records re-read for them.
        records: u64,
        /// How long it took.
        took: Duration,
    },
    /// A re-run step decided otherwise than recorded, by the same core version: an alarm.
    ReplayMismatch {
        /// Partition.
        partition: i32,
        /// Step number.
        step: u64,
        /// Digest on record.
        recorded: u64,
        /// Digest now.
        replayed: u64,
    },
    /// Input, step records or offsets needed for an exact recovery are gone; the partition goes on from the checkpoint.
    HistoryGone {
        /// Partition.
        partition: i32,
        /// What is gone.
        reason: &'a str,
    },
    /// A checkpointed key was refused by the core; the rest stays usable.
    KeyRefused {
        /// Partition.
        partition: i32,
        /// Why.
        reason: &'a str,
    },
    /// A step was processed (not yet committed).
    Stepped {
        /// Partition.
        partition: i32,
        /// Records in it.
        records: usize,
        /// Time in the core.
        took: Duration,
    },
    /// A transaction was committed.
    Committed(&'a Committed),
    /// A transaction was aborted and will be sent again.
    Aborted {
        /// Why.
        reason: &'a str,
    },
    /// The clients are rebuilt and all state restored.
    Rebuilding {
        /// Why.
        reason: &'a str,
        /// Whether a newer holder of our transactional id was the reason.
        fenced: bool,
    },
    /// A record the broker can never take went to the dead letters, described.
    DeadLettered {
        /// Where it was meant to go.
        topic: &'a str,
        /// Its size.
        bytes: usize,
        /// Why.
        reason: &'a str,
    },
    /// Trouble that was coped with.
    Trouble {
        /// What.
        reason: &'a str,
    },
}

/// Receives events on the loop's thread: return quickly.
pub trait Observer: Send + Sync {
    /// Called for each event.
    fn on(&self, event: Event<'_>);
}

/// Logs what a person should see; metrics observers wrap or replace it.
#[derive(Debug, Default, Clone, Copy)]
pub struct LogObserver;

impl Observer for LogObserver {
    fn on(&self, event: Event<'_>) {
        match event {
            // each cause once, and again ever more rarely
            Event::Waiting { reason, again } if again == 0 || again >= 16 && again.is_power_of_two() => {
                tracing::warn!(reason, again, "waiting for Kafka");
            }
            Event::Waiting { reason, .. } => tracing::debug!(reason, "waiting for Kafka"),
            Event::Connected => tracing::info!("connected to Kafka"),
            Event::Assigned(partitions) => tracing::info!(?partitions, "partitions assigned"),
            Event::Revoked { partitions, lost } => tracing::info!(?partitions, lost, "partitions given up"),
            Event::RestoreProgress { partition, keys, steps } => {
                tracing::info!(partition, keys, steps, "restoring");
            }
            Event::Restored { partition, keys, bytes, steps, records, took } => {
                tracing::info!(partition, keys, bytes, steps, records, took_ms = millis(took), "partition restored");
            }
            Event::ReplayMismatch { partition, step, recorded, replayed } => {
                tracing::error!(partition, step, recorded, replayed, "a re-run step decided otherwise than recorded");
            }
            Event::HistoryGone { partition, reason } => {
                tracing::error!(partition, reason, "history needed for an exact recovery is gone");
            }
            Event::KeyRefused { partition, reason } => {
                tracing::warn!(partition, reason, "a checkpointed key was refused");
            }
            Event::Aborted { reason } => tracing::warn!(reason, "transaction aborted, sending it again"),
            Event::Rebuilding { reason, fenced } => tracing::warn!(reason, fenced, "rebuilding the Kafka clients"),
            Event::DeadLettered { topic, bytes, reason } => {
                tracing::warn!(topic, bytes, reason, "a record went to the dead letters");
            }
            Event::Trouble { reason } => tracing::warn!(reason, "Kafka trouble"),
            Event::Stepped { .. } | Event::Committed(_) => {}
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
