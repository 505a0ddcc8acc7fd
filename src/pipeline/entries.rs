//! What a step has for the alerts, and where the step stands while it finds it.

use std::sync::Arc;

use crate::clock::Micros;
use crate::decide::correlation::Entry;

/// The entries of a step, in order.
#[derive(Default)]
pub struct Entries {
    all: Vec<Entry>,
    /// The clock of the tenant whose row is being decided; `None`: none is.
    pub clock: Option<Micros>,
    /// The agent of the row's run, as it was at the row.
    pub agent: Option<Arc<str>>,
}

impl Entries {
    /// What follows is of a row.
    pub fn at(&mut self, clock: Option<Micros>, agent: Option<&Arc<str>>) {
        (self.clock, self.agent) = (clock, agent.cloned());
    }

    /// One more.
    pub fn push(&mut self, entry: Entry) {
        self.all.push(entry);
    }

    /// Several more.
    pub fn extend(&mut self, entries: impl IntoIterator<Item = Entry>) {
        self.all.extend(entries);
    }

    /// All of them.
    pub fn into_all(self) -> Vec<Entry> {
        self.all
    }
}
