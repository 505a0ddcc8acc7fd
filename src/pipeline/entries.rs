//! What a step has for the alerts, in the order of the rows that caused it.
//!
//! Conditions are looked at after all windows of a batch; sorted by row, what both have to say does not depend on how a poll cut the
//! batches.

use std::sync::Arc;

use crate::clock::Micros;
use crate::decide::correlation::Entry;

/// The entries of a step.
#[derive(Default)]
pub struct Entries {
    all: Vec<(u32, Entry)>,
    /// The row that is being decided.
    row: u32,
    /// Its tenant's clock; `None`: no row is being decided.
    pub clock: Option<Micros>,
    /// The agent of its run, as it was at the row.
    pub agent: Option<Arc<str>>,
}

impl Entries {
    /// What follows is of this row.
    pub fn at(&mut self, row: u32, clock: Option<Micros>, agent: Option<&Arc<str>>) {
        (self.row, self.clock, self.agent) = (row, clock, agent.cloned());
    }

    /// One more.
    pub fn push(&mut self, entry: Entry) {
        self.all.push((self.row, entry));
    }

    /// Several more.
    pub fn extend(&mut self, entries: impl IntoIterator<Item = Entry>) {
        entries.into_iter().for_each(|entry| self.push(entry));
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Puts those from the one at `from` on in the order of their rows.
    pub fn sort(&mut self, from: usize) {
        self.all[from..].sort_by_key(|(row, _)| *row);
        self.at(0, None, None);
    }

    /// All of them, in order.
    pub fn into_all(self) -> Vec<Entry> {
        self.all.into_iter().map(|(_, entry)| entry).collect()
    }
}
