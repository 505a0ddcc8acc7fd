//! When a channel may try: rate, back-off and circuit. Pure: the time is given.
//!
//! After a failure the channel waits, twice as long each time and with jitter, or as long as the receiver asks. After so many in a row
//! its circuit is open: it rests, then tries one message (half open); if that is taken, the circuit is closed again.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

use crate::clock::{Micros, Wall};
use crate::config::{self, Channel};

/// The longest that a receiver is waited for at its own wish.
const PATIENCE: Duration = Duration::from_secs(3_600);

/// Where a circuit stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Circuit {
    /// Messages flow.
    Closed,
    /// None is tried.
    Open,
    /// One is tried.
    HalfOpen,
}

/// The pace of one channel.
#[derive(Debug)]
pub struct Pace {
    builder: ExponentialBuilder,
    backoff: ExponentialBackoff,
    /// Between two attempts.
    interval: Micros,
    failures_to_open: u32,
    pause: Micros,
    failures: u32,
    not_before: Wall,
}

impl Pace {
    /// Of a channel; `seed` is that of the jitter.
    pub fn new(channel: &Channel, seed: u64) -> Self {
        let builder = ExponentialBuilder::default()
            .with_min_delay(channel.backoff)
            .with_max_delay(channel.max_backoff)
            .without_max_times()
            .with_jitter()
            .with_jitter_seed(seed);
        let interval = match channel.per_minute {
            0 => 0,
            n => 60_000_000 / i64::from(n),
        };
        Self {
            builder,
            backoff: builder.build(),
            interval,
            failures_to_open: channel.circuit_failures,
            pause: config::micros(channel.circuit_pause),
            failures: 0,
            not_before: Wall(0),
        }
    }

    /// How long nothing may be tried from `now` on.
    pub fn wait(&self, now: Wall) -> Duration {
        Duration::from_micros(u64::try_from(self.not_before.0.saturating_sub(now.0)).unwrap_or(0))
    }

    /// Where the circuit stands.
    pub fn circuit(&self, now: Wall) -> Circuit {
        match self.failures >= self.failures_to_open {
            false => Circuit::Closed,
            true if self.wait(now).is_zero() => Circuit::HalfOpen,
            true => Circuit::Open,
        }
    }

    /// The receiver answered, whatever it thought of the message.
    pub fn answered(&mut self, now: Wall) {
        self.failures = 0;
        self.backoff = self.builder.build();
        self.not_before = Wall(now.0.saturating_add(self.interval));
    }

    /// An attempt failed that may succeed later.
    pub fn failed(&mut self, after: Option<Duration>, now: Wall) {
        self.failures = self.failures.saturating_add(1);
        let backoff = self.backoff.next().unwrap_or(PATIENCE);
        let mut wait = config::micros(backoff.max(after.unwrap_or_default().min(PATIENCE))).max(self.interval);
        if self.failures >= self.failures_to_open {
            wait = wait.max(self.pause);
        }
        self.not_before = Wall(now.0.saturating_add(wait));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::config::Config;

    use super::*;

    fn channel(settings: &str) -> Channel {
        let text = format!("[[channels.to]]\nname = \"ops\"\ntype = \"slack\"\nurl = \"https://e.com\"\n{settings}");
        Config::from_toml(&text, "c.toml", []).unwrap().channels.to.remove(0)
    }

    #[test]
    fn a_receiver_that_asks_to_be_left_alone_is() {
        let mut pace = Pace::new(&channel(""), 1);
        assert_eq!(pace.wait(Wall(0)), Duration::ZERO);
        pace.failed(Some(Duration::from_secs(90)), Wall(0));
        assert_eq!(pace.wait(Wall(0)), Duration::from_secs(90));
        pace.failed(Some(Duration::from_secs(1_000_000)), Wall(0));
        assert_eq!(pace.wait(Wall(0)), PATIENCE);
        pace.answered(Wall(0));
        assert_eq!(pace.wait(Wall(0)), Duration::from_secs(1), "60 a minute");
    }

    #[test]
    fn a_circuit_opens_probes_and_closes() {
        let mut pace = Pace::new(&channel("circuit-failures = 3\ncircuit-pause = \"10m\""), 1);
        let mut now = Wall(0);
        for _ in 0..3 {
            assert_eq!(pace.circuit(now), Circuit::Closed);
            pace.failed(None, now);
            now.0 += 1_000;
        }
        assert_eq!(pace.circuit(now), Circuit::Open);
        assert!(pace.wait(now) > Duration::from_secs(599));
        now.0 += 600_000_000;
        assert_eq!(pace.circuit(now), Circuit::HalfOpen);
        pace.failed(None, now);
        assert_eq!(pace.circuit(now), Circuit::Open);
        now.0 += 600_000_000;
        pace.answered(now);
        assert_eq!(pace.circuit(now), Circuit::Closed);
    }

    proptest! {
        /// Waits grow with failures, stay within twice the bound, and end with a success; the circuit is open exactly after so many.
        #[test]
        fn waits_are_bounded_and_the_circuit_counts(outcomes in prop::collection::vec(prop::bool::weighted(0.2), 1..60), seed: u64) {
            let channel = channel("circuit-failures = 4\ncircuit-pause = \"1s\"\nmax-backoff = \"1m\"");
            let mut pace = Pace::new(&channel, seed);
            let (mut now, mut row) = (Wall(0), 0_u32);
            for good in outcomes {
                now.0 += config::micros(pace.wait(now));
                prop_assert!(pace.circuit(now) != Circuit::Open, "its time has come");
                if good {
                    pace.answered(now);
                    row = 0;
                    prop_assert_eq!(pace.wait(now), Duration::from_secs(1));
                } else {
                    pace.failed(None, now);
                    row += 1;
                    let least = Duration::from_secs(1 << (row - 1).min(5)).min(Duration::from_secs(60));
                    prop_assert!(pace.wait(now) >= least && pace.wait(now) <= Duration::from_secs(120), "{row}: {:?}", pace.wait(now));
                }
                prop_assert_eq!(pace.circuit(now) == Circuit::Open, row >= 4);
            }
        }
    }
}
