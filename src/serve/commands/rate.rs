//! How often a caller may write: a bucket of tokens for each.

use std::collections::HashMap;

use crate::clock::{Micros, SECOND};

/// Most callers known.
const MOST: usize = 10_000;

/// How many writes at once, and how many a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// At once.
    pub burst: u32,
    /// A second, after that.
    pub per_second: u32,
}

impl Default for Rate {
    fn default() -> Self {
        Self { burst: 60, per_second: 20 }
    }
}

/// The buckets. Each holds when it will be full: that is all there is to know.
#[derive(Debug, Default)]
pub(super) struct Buckets {
    full_at: HashMap<String, Micros>,
}

impl Buckets {
    /// Takes a token.
    ///
    /// # Errors
    /// There is none; in so many seconds there is one.
    pub(super) fn take(&mut self, caller: &str, rate: Rate, now: Micros) -> Result<(), u16> {
        let each = SECOND / i64::from(rate.per_second.max(1));
        let room = each.saturating_mul(i64::from(rate.burst.max(1)));
        if self.full_at.len() >= MOST && !self.full_at.contains_key(caller) {
            // one that is full is as good as none
            self.full_at.retain(|_, at| *at > now);
            if self.full_at.len() >= MOST {
                return Err(1);
            }
        }
        // a clock that was set back must not lock anybody out
        let full_at = self.full_at.get(caller).map_or(now, |at| (*at).clamp(now, now.saturating_add(room)));
        let next = full_at.saturating_add(each);
        let missing = next.saturating_sub(now.saturating_add(room));
        if missing > 0 {
            self.full_at.insert(caller.to_owned(), full_at);
            return Err(u16::try_from((missing + SECOND - 1) / SECOND).unwrap_or(u16::MAX));
        }
        self.full_at.insert(caller.to_owned(), next);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { burst: 3, per_second: 2 };

    #[test]
    fn a_burst_is_taken_at_once_and_then_so_many_a_second() {
        let mut buckets = Buckets::default();
        let mut taken = |now| (0..10).take_while(|_| buckets.take("a", RATE, now).is_ok()).count();
        assert_eq!((taken(0), taken(0), taken(SECOND / 2), taken(3 * SECOND / 2)), (3, 0, 1, 2));
        assert_eq!(taken(100 * SECOND), 3, "no more than the burst is saved up");
        assert_eq!(buckets.take("a", RATE, 100 * SECOND), Err(1));
        assert_eq!(buckets.take("b", RATE, 100 * SECOND), Ok(()), "another caller has its own");
    }

    #[test]
    fn a_clock_that_was_set_back_locks_nobody_out() {
        let mut buckets = Buckets::default();
        while buckets.take("a", RATE, 1_000 * SECOND).is_ok() {}
        assert!(buckets.take("a", RATE, 0).is_err());
        assert_eq!(buckets.take("a", RATE, SECOND / 2), Ok(()));
    }

    #[test]
    fn callers_are_bounded_and_those_at_rest_make_room() {
        let mut buckets = Buckets::default();
        for n in 0..MOST {
            buckets.take(&n.to_string(), RATE, 0).unwrap();
        }
        assert_eq!(buckets.take("one more", RATE, 0), Err(1));
        assert_eq!(buckets.take("one more", RATE, SECOND), Ok(()));
        assert_eq!(buckets.full_at.len(), 1);
    }
}
