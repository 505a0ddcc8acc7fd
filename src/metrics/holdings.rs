//! Gauges about state, summed over the owned partitions: each partition reports its own share, and one that is given up
//! takes its share away.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::clock::Micros;

use super::Metrics;
use super::labels::{BlindCause, Label as _};

/// What one partition holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Held {
    /// Live keys.
    pub keys: u64,
    /// Bytes of state.
    pub state_bytes: u64,
    /// Tenants with too many live keys.
    pub overflowed: u64,
    /// Tenants that are blind, in the order of the causes.
    pub blind: [u64; BlindCause::ALL.len()],
    /// Open windows by metric name.
    pub open_windows: Vec<(String, u64)>,
    /// Age of the oldest watermark among its live tenants, µs; `None` without tenants.
    pub watermark_age: Option<Micros>,
}

/// The shares of all owned partitions.
#[derive(Debug, Default)]
pub(super) struct Holdings(Mutex<BTreeMap<i32, Held>>);

impl Holdings {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<i32, Held>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Metrics {
    /// Reports what an owned partition holds, in place of what it held before.
    pub fn hold(&self, partition: i32, held: Held) {
        let mut all = self.holdings.lock();
        all.insert(partition, held);
        self.show(&all);
    }

    /// Takes away what a partition held that is owned no longer, and its lag.
    pub fn release(&self, partition: i32) {
        let mut all = self.holdings.lock();
        if let Some(gone) = all.remove(&partition) {
            // metrics that no other partition reports would keep their last value
            for (name, _) in &gone.open_windows {
                self.windows_open.get(name).set(0);
            }
        }
        self.show(&all);
        self.lag.forget(partition);
        self.lag_age.forget(partition);
    }

    fn show(&self, all: &BTreeMap<i32, Held>) {
        self.live_keys.set(gauge(all.values().map(|h| h.keys).sum()));
        self.state_bytes.set(gauge(all.values().map(|h| h.state_bytes).sum()));
        self.tenants_overflowed.set(gauge(all.values().map(|h| h.overflowed).sum()));
        for (index, cause) in BlindCause::ALL.iter().enumerate() {
            let blind = all.values().filter_map(|h| h.blind.get(index)).sum();
            self.blind_tenants.get(*cause).set(gauge(blind));
        }
        let mut windows: BTreeMap<&str, u64> = BTreeMap::new();
        for (name, open) in all.values().flat_map(|h| &h.open_windows) {
            *windows.entry(name).or_default() += open;
        }
        for (name, open) in windows {
            self.windows_open.get(name).set(gauge(open));
        }
        self.set_watermark_age(all.values().filter_map(|h| h.watermark_age).max().unwrap_or(0));
    }
}

fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use prometheus::Registry;

    use super::*;

    fn held(keys: u64, open: u64, age: Option<Micros>) -> Held {
        Held {
            keys,
            state_bytes: keys * 100,
            overflowed: keys / 3,
            blind: [keys, 0, 1, 0],
            open_windows: vec![("run_tokens".to_owned(), open)],
            watermark_age: age,
        }
    }

    fn shown(m: &Metrics) -> (i64, i64, i64, f64) {
        (m.live_keys.get(), m.state_bytes.get(), m.windows_open.get("run_tokens").get(), m.watermark_age.get())
    }

    #[test]
    fn partitions_add_up_and_the_oldest_watermark_counts() {
        let m = Metrics::register(&Registry::new(), &["run_tokens"]).unwrap();
        m.hold(0, held(3, 2, Some(1_000_000)));
        m.hold(1, held(4, 5, Some(9_000_000)));
        assert_eq!(shown(&m), (7, 700, 7, 9.0));
        assert_eq!(m.tenants_overflowed.get(), 2);
        let blind = BlindCause::ALL.iter().map(|cause| m.blind_tenants.get(*cause).get());
        assert_eq!(blind.collect::<Vec<_>>(), [7, 0, 2, 0]);
        m.hold(1, held(1, 1, None));
        assert_eq!(shown(&m), (4, 400, 3, 1.0), "a report replaces the one before");
    }

    #[test]
    fn a_partition_given_up_takes_its_share_and_its_lag_away() {
        let m = Metrics::register(&Registry::new(), &["run_tokens"]).unwrap();
        m.hold(0, held(3, 2, Some(1_000_000)));
        m.hold(1, held(4, 5, None));
        m.lag.set(1, 77);
        m.release(1);
        assert_eq!(shown(&m), (3, 300, 2, 1.0));
        assert!(!m.encode().unwrap().contains("partition=\"1\""));
        m.release(0);
        m.release(0);
        assert_eq!(shown(&m), (0, 0, 0, 0.0));
        assert_eq!(m.tenants_overflowed.get(), 0);
    }
}
