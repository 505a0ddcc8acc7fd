//! Window arithmetic: which windows and panes hold an instant.
//!
//! Pure integers. Windows are aligned to the Unix epoch in UTC and half open: a tumble of 60 s holds 12:00:00 and not
//! 12:01:00. All divisions are Euclidean, so times before 1970 behave like times after it.

use crate::clock::Micros;

/// Event times beyond this many microseconds from the epoch (about 73,000 years) are treated as missing, so that window
/// arithmetic cannot overflow.
pub const FAR: Micros = 1 << 61;

/// The most panes one window may have; a query beyond it is refused when compiled.
pub const MAX_PANES: i64 = 10_000;

/// The window of a query. All lengths are microseconds and greater than zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Window {
    /// Windows of `size` side by side.
    Tumble {
        /// Length.
        size: Micros,
    },
    /// Windows of `size`, one starting every `slide`.
    Hop {
        /// Distance between two starts.
        slide: Micros,
        /// Length.
        size: Micros,
    },
    /// Rows of a key less than `gap` apart; ends at the last row + `gap`.
    Session {
        /// Silence that ends the session.
        gap: Micros,
    },
    /// A session that also ends at a row whose marker expression is true (a run window).
    SessionUntil {
        /// Silence that ends the session.
        gap: Micros,
    },
}

impl Window {
    /// Whether this is one of the two session windows.
    pub fn is_session(&self) -> bool {
        matches!(self, Self::Session { .. } | Self::SessionUntil { .. })
    }

    /// Whether windows of one key overlap.
    pub fn is_hop(&self) -> bool {
        matches!(self, Self::Hop { .. })
    }
}

/// A tumble or hop as panes: windows start at multiples of `slide`, last `size`, and are tiled by panes of `pane`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    /// Distance between two starts.
    pub slide: Micros,
    /// Length of a window.
    pub size: Micros,
    /// Length of a pane: gcd(slide, size).
    pub pane: Micros,
}

impl Grid {
    /// The grid of a hop; a tumble has `slide == size`.
    pub fn new(slide: Micros, size: Micros) -> Self {
        let (mut a, mut b) = (slide, size);
        while b != 0 {
            (a, b) = (b, a % b);
        }
        Self { slide, size, pane: a }
    }

    /// Start of the pane that holds `t`.
    pub fn pane_of(&self, t: Micros) -> Micros {
        t.div_euclid(self.pane) * self.pane
    }

    /// End of the latest window that holds `t`; `None` when `t` falls into a gap between windows (slide > size).
    pub fn last_end(&self, t: Micros) -> Option<Micros> {
        let start = t.div_euclid(self.slide) * self.slide;
        (t < start + self.size).then_some(start + self.size)
    }

    /// End of the earliest window that holds `t` and ends after `after`; `None` when there is none.
    pub fn first_end(&self, t: Micros, after: Micros) -> Option<Micros> {
        let last = self.last_end(t)?;
        let floor = t.max(after);
        if last <= floor {
            return None;
        }
        Some(last - (last - floor - 1).div_euclid(self.slide) * self.slide)
    }
}

/// What [`Grid`] says about the pane of the last row asked about: neighbours in the input are mostly of one pane.
#[derive(Debug, Clone, Copy)]
pub struct Near {
    /// Start of the pane.
    pub start: Micros,
    end: Micros,
    first: Option<Micros>,
}

impl Near {
    /// Knows nothing yet.
    pub const NOWHERE: Self = Self { start: 1, end: 0, first: None };

    /// Moves to the pane of `t`.
    pub fn look(&mut self, grid: &Grid, t: Micros) {
        if t < self.start || t >= self.end {
            let start = grid.pane_of(t);
            *self = Self { start, end: start + grid.pane, first: grid.first_end(start, Micros::MIN) };
        }
    }

    /// End of the earliest window that holds the pane; `None` in a gap between windows.
    pub fn first_end(&self) -> Option<Micros> {
        self.first
    }

    /// [`Grid::first_end`] of any instant of the pane.
    pub fn first_open(&self, grid: &Grid, after: Micros) -> Option<Micros> {
        match self.first {
            Some(first) if first > after => Some(first),
            _ => grid.first_end(self.start, after),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slow(grid: &Grid, t: Micros) -> Vec<Micros> {
        let mut ends = Vec::new();
        let mut start = t.div_euclid(grid.slide) * grid.slide;
        while start > t - grid.size {
            ends.push(start + grid.size);
            start -= grid.slide;
        }
        ends.reverse();
        ends
    }

    #[test]
    fn ends_agree_with_listing_every_window_also_before_1970() {
        for (slide, size) in [(5, 5), (4, 10), (10, 4), (1, 7), (10, 30), (7, 60)] {
            let grid = Grid::new(slide, size);
            for t in -70..70 {
                let ends = slow(&grid, t);
                assert_eq!(grid.last_end(t), ends.last().copied(), "{grid:?} t={t}");
                for after in -80..80 {
                    let want = ends.iter().copied().find(|end| *end > after);
                    assert_eq!(grid.first_end(t, after), want, "{grid:?} t={t} after={after}");
                    let mut near = Near::NOWHERE;
                    near.look(&grid, t);
                    assert_eq!((near.first_open(&grid, after), near.first_end()), (want, ends.first().copied()));
                }
                let pane = grid.pane_of(t);
                assert!(pane <= t && t < pane + grid.pane);
                assert_eq!(slow(&grid, pane), ends, "every row of a pane is in the same windows");
            }
        }
    }
}
