//! Clocks: one watermark per distinct value of the clock column.
//!
//! A watermark is the highest event time seen so far, per record in offset order, minus the lateness; [`Clocks::advance`]
//! may move it further. It never moves back.

use hashbrown::HashMap;
use rustc_hash::FxBuildHasher;

use crate::clock::Micros;

/// Before all time: the watermark of a clock that has seen nothing.
pub(super) const NEVER: Micros = Micros::MIN;

#[derive(Debug, Clone)]
pub(super) struct Clock {
    pub(super) name: String,
    /// Highest event time seen; [`NEVER`] when none.
    pub(super) high: Micros,
    pub(super) watermark: Micros,
    /// Every window that starts at or before this was closed by `close_all`.
    pub(super) finished: Micros,
    pub(super) dirty: bool,
}

impl Clock {
    /// Windows of length `size` that end at or before this are closed.
    pub(super) fn closed_until(&self, size: Micros) -> Micros {
        closed_until(self.watermark, self.finished, size)
    }
}

/// See [`Clock::closed_until`].
pub(super) fn closed_until(watermark: Micros, finished: Micros, size: Micros) -> Micros {
    if finished == NEVER { watermark } else { watermark.max(finished.saturating_add(size)) }
}

#[derive(Debug, Default)]
pub(super) struct Clocks {
    pub(super) list: Vec<Clock>,
    by_name: HashMap<String, u32, FxBuildHasher>,
}

impl Clocks {
    /// The id of a clock, new if unknown.
    pub(super) fn id(&mut self, name: &str) -> u32 {
        if let Some(id) = self.by_name.get(name) {
            return *id;
        }
        let id = self.list.len() as u32;
        self.list.push(Clock { name: name.to_owned(), high: NEVER, watermark: NEVER, finished: NEVER, dirty: true });
        self.by_name.insert(name.to_owned(), id);
        id
    }

    pub(super) fn find(&self, name: &str) -> Option<u32> {
        self.by_name.get(name).copied()
    }
}
