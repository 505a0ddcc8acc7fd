//! Which steps are traced: a share by their ids, and those that decided something, up to a bounded rate.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::id::TraceId;
use crate::config::Share;

/// Range of [`TraceId::randomness`].
const RANGE: u64 = 1 << 56;

/// Whether a trace is in a share. OpenTelemetry's consistent sampling: a larger share has all traces of a smaller one, and any other
/// sampler that follows it agrees.
pub(super) fn takes(share: Share, trace: TraceId) -> bool {
    let rejected = u64::from(Share::WHOLE.0.saturating_sub(share.0));
    let threshold = u128::from(rejected) * u128::from(RANGE) / u128::from(Share::WHOLE.0);
    u128::from(trace.randomness()) >= threshold
}

/// So many a second, and a second's worth at once.
#[derive(Debug)]
pub(super) struct Rate {
    per_second: f64,
    /// What is left, and since when.
    left: Mutex<(f64, Instant)>,
}

impl Rate {
    pub(super) fn new(per_second: u32, now: Instant) -> Self {
        let per_second = f64::from(per_second);
        Self { per_second, left: Mutex::new((per_second, now)) }
    }

    /// Takes one, if one is left.
    pub(super) fn take(&self, now: Instant) -> bool {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let since = now.saturating_duration_since(left.1).as_secs_f64();
        let full = (left.0 + since * self.per_second).min(self.per_second);
        let taken = full >= 1.0;
        *left = (if taken { full - 1.0 } else { full }, now.max(left.1));
        taken
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::id::StepKey;
    use super::*;

    fn traces(n: u64) -> impl Iterator<Item = TraceId> {
        (0..n).map(|number| TraceId::of(&StepKey { group: "g", topic: "t", partition: 0, number, offsets: &[] }))
    }

    #[test]
    fn none_all_and_about_the_share_are_taken() {
        assert!(traces(1_000).all(|id| !takes(Share(0), id)));
        assert!(traces(1_000).all(|id| takes(Share::WHOLE, id)));
        assert!(!takes(Share(0), TraceId([255; 16])) && takes(Share::WHOLE, TraceId([0; 16])));
        let taken = traces(10_000).filter(|id| takes(Share(100_000), *id)).count();
        assert!((900..1_100).contains(&taken), "{taken}");
    }

    #[test]
    fn a_larger_share_has_what_a_smaller_one_has() {
        assert!(traces(5_000).all(|id| !takes(Share(10_000), id) || takes(Share(50_000), id)));
    }

    #[test]
    fn a_rate_is_kept_over_time_and_nothing_is_saved_up() {
        let start = Instant::now();
        let rate = Rate::new(10, start);
        let taken = |at: Duration| (0..50).filter(|_| rate.take(start + at)).count();
        assert_eq!(taken(Duration::ZERO), 10);
        assert_eq!(taken(Duration::from_millis(250)), 2);
        assert_eq!(taken(Duration::from_secs(60)), 10);
        assert_eq!((0..50).filter(|_| Rate::new(0, start).take(start)).count(), 0);
    }
}
