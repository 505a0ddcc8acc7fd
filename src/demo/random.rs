//! A small seeded generator (xorshift64*): the demo must not differ from one start to the next.

/// A deterministic stream of numbers.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The stream of a seed; different `stream` numbers give unrelated streams.
    pub fn new(seed: u64, stream: u64) -> Self {
        // one round of splitmix64, so that neighbouring seeds do not give neighbouring streams; xorshift must not start at 0
        let mut z = seed.wrapping_add(stream.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        Self((z ^ (z >> 31)) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 1
    }

    /// A number in `[low, high]`; `low` when the range is empty.
    #[allow(clippy::cast_possible_wrap, reason = "the top bit is never set")]
    pub fn between(&mut self, low: i64, high: i64) -> i64 {
        let span = high.saturating_sub(low).max(0).saturating_add(1);
        low + (self.next() as i64) % span
    }

    /// `middle` ± `percent` %.
    pub fn around(&mut self, middle: i64, percent: i64) -> i64 {
        let spread = middle / 100 * percent;
        self.between(middle - spread, middle + spread)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_numbers_and_another_stream_others() {
        let take = |seed, stream| {
            let mut r = Random::new(seed, stream);
            (0..8).map(|_| r.between(0, 1_000_000)).collect::<Vec<_>>()
        };
        assert_eq!(take(1, 1), take(1, 1));
        assert_ne!(take(1, 1), take(1, 2));
        assert_ne!(take(1, 1), take(2, 1));
    }

    #[test]
    fn numbers_stay_in_their_range_and_reach_its_ends() {
        let mut r = Random::new(7, 0);
        let drawn: Vec<i64> = (0..2_000).map(|_| r.between(-3, 3)).collect();
        assert_eq!((drawn.iter().min(), drawn.iter().max()), (Some(&-3), Some(&3)));
        assert_eq!(r.between(5, 5), 5);
        assert_eq!(r.between(5, 1), 5);
    }
}
