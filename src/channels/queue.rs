//! What a channel still has to tell, in the order of the topic, and how far each partition is done. Pure.
//!
//! A position that may be committed is the first offset of its partition that is not settled: a crash repeats, and loses nothing.
//! While a channel is behind, an UPDATED that waits is superseded by whatever comes later of the same alert; OPEN and RESOLVED never are.

use std::collections::{BTreeMap, VecDeque};

use super::Message;
use crate::clock::Wall;
use crate::decide::records::AlertStatus;

/// Messages that wait; the topic keeps the others.
pub const MOST: usize = 1_000;

/// A message and what was tried.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// Partition of its record.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
    /// What is to be told.
    pub message: Message,
    /// When it came in here.
    pub since: Wall,
    /// Attempts so far.
    pub attempts: u32,
    /// Why the last one failed.
    pub last_error: Option<String>,
}

/// The messages of one channel.
#[derive(Debug, Default)]
pub struct Queue {
    items: VecDeque<Item>,
    /// By partition, one past the last record seen.
    next: BTreeMap<i32, i64>,
}

impl Queue {
    /// A partition is read from here on.
    pub fn begin(&mut self, partition: i32, from: i64) {
        self.next.insert(partition, from);
    }

    /// A record was seen, whether or not anything is told.
    pub fn seen(&mut self, partition: i32, offset: i64) {
        let next = self.next.entry(partition).or_insert(0);
        *next = (*next).max(offset + 1);
    }

    /// Takes a message; gives what it supersedes.
    pub fn push(&mut self, item: Item) -> Vec<Item> {
        self.seen(item.partition, item.offset);
        let (id, revision) = (&item.message.alert.alert_id, item.message.alert.revision);
        let is_superseded = |waiting: &Item| {
            let alert = &waiting.message.alert;
            alert.alert_id == *id && alert.status == AlertStatus::Updated && alert.revision < revision
        };
        let (superseded, kept) = std::mem::take(&mut self.items).into_iter().partition(is_superseded);
        self.items = kept;
        self.items.push_back(item);
        Vec::from(superseded)
    }

    /// The message whose turn it is.
    pub fn front(&mut self) -> Option<&mut Item> {
        self.items.front_mut()
    }

    /// It is settled.
    pub fn pop(&mut self) -> Option<Item> {
        self.items.pop_front()
    }

    /// A partition is another's now: what waits of it is told there.
    pub fn forget(&mut self, partition: i32) {
        self.items.retain(|item| item.partition != partition);
        self.next.remove(&partition);
    }

    /// Messages that wait.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Whether nothing more should be taken.
    pub fn is_full(&self) -> bool {
        self.items.len() >= MOST
    }

    /// By partition, the first offset that is not settled.
    pub fn positions(&self) -> BTreeMap<i32, i64> {
        let mut positions = self.next.clone();
        for item in &self.items {
            if let Some(position) = positions.get_mut(&item.partition) {
                *position = (*position).min(item.offset);
            }
        }
        positions
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::channels::examples::message;

    use super::*;

    fn item(offset: i64, id: &str, revision: u64, status: &str) -> Item {
        let message = message(id, revision, status, "HIGH");
        Item { partition: 0, offset, message, since: Wall(0), attempts: 0, last_error: None }
    }

    #[test]
    fn waiting_updates_collapse_and_neither_begin_nor_end_is_lost() {
        let mut queue = Queue::default();
        queue.begin(0, 10);
        assert!(queue.push(item(10, "a", 1, "OPEN")).is_empty());
        assert!(queue.push(item(11, "a", 2, "UPDATED")).is_empty());
        assert!(queue.push(item(12, "b", 1, "UPDATED")).is_empty());
        assert_eq!(queue.push(item(13, "a", 3, "UPDATED"))[0].offset, 11);
        assert_eq!(queue.push(item(14, "a", 4, "RESOLVED"))[0].offset, 13);
        let told: Vec<(i64, &str)> =
            queue.items.iter().map(|i| (i.offset, super::super::status(i.message.alert.status))).collect();
        assert_eq!(told, [(10, "OPEN"), (12, "UPDATED"), (14, "RESOLVED")]);
    }

    #[test]
    fn what_is_not_settled_is_not_committed() {
        let mut queue = Queue::default();
        queue.begin(0, 5);
        queue.begin(1, 7);
        queue.seen(0, 5);
        queue.push(item(6, "a", 1, "OPEN"));
        queue.seen(0, 9);
        assert_eq!(queue.positions(), [(0, 6), (1, 7)].into());
        queue.pop();
        assert_eq!(queue.positions(), [(0, 10), (1, 7)].into());
        queue.push(item(12, "b", 1, "OPEN"));
        queue.forget(0);
        assert!(queue.is_empty() && queue.positions() == [(1, 7)].into());
    }

    proptest! {
        /// Whatever comes and goes, a position never passes what is neither told nor superseded, and never goes back.
        #[test]
        fn positions_are_those_of_the_unsettled(steps in prop::collection::vec((0..4_u8, 0..3_u8, prop::bool::ANY), 1..80)) {
            let mut queue = Queue::default();
            queue.begin(0, 0);
            let (mut open, mut last, mut revisions) = (Vec::new(), 0, [0_u64; 4]);
            for (offset, (id, status, pop)) in steps.into_iter().enumerate() {
                let offset = i64::try_from(offset).unwrap();
                let revision = &mut revisions[usize::from(id)];
                *revision += 1;
                let status = ["OPEN", "UPDATED", "RESOLVED"][usize::from(status)];
                open.push(offset);
                for gone in queue.push(item(offset, &id.to_string(), *revision, status)) {
                    prop_assert!(gone.message.alert.status == AlertStatus::Updated);
                    open.retain(|o| *o != gone.offset);
                }
                if pop && let Some(done) = queue.pop() {
                    open.retain(|o| *o != done.offset);
                }
                let expected = open.iter().min().copied().unwrap_or(offset + 1);
                prop_assert_eq!(queue.positions()[&0], expected);
                prop_assert!(expected >= last);
                last = expected;
            }
        }
    }
}
