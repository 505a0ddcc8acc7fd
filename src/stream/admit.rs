//! Which rows of a batch are taken: those whose keys their clocks have room for (`budget`).
//!
//! Nearly always there is room for every key of a batch; then only keys not counted lately cost anything. Where there may not
//! be, rows are looked at one by one, in their order.

use std::collections::BTreeMap;

use crate::clock::Micros;

use super::budget::{Turn, hash};
use super::engine::Engine;
use super::keys::NONE;
use super::output::{Output, Overflow};

impl Engine {
    /// Counts the rows' keys against what their clocks may hold, in the order of the rows, and takes those that are refused from
    /// `selected`. Gives, by row, until when the windows of its clock may lack rows; nothing when that does not change.
    pub(super) fn admit(
        &mut self,
        selected: &mut [Vec<u32>],
        groups: &[Vec<u32>],
        times: &[Micros],
        before: &[Micros],
        clocks: &[u32],
        out: &mut Output,
    ) -> Vec<Micros> {
        if !self.budget.counts() {
            return Vec::new();
        }
        let mut fresh: Vec<(u32, u32)> = Vec::new();
        for ((set, ids), keys) in (0u32..).zip(groups).zip(&self.key_sets) {
            if self.spans[set as usize].is_some() {
                let counts = |(row, id): (usize, &u32)| *id != NONE && keys.fresh(*id) <= times[row].max(before[row]);
                fresh.extend(ids.iter().enumerate().filter(|r| counts(*r)).map(|(row, _)| (row as u32, set)));
            }
        }
        let mut wanted: BTreeMap<u32, usize> = BTreeMap::new();
        for (row, _) in &fresh {
            *wanted.entry(clocks[*row as usize]).or_default() += 1;
        }
        let tight = self.budget.any_over() || wanted.iter().any(|(clock, more)| !self.budget.fits(*clock, *more));
        if !tight {
            for (row, set) in fresh {
                self.count(row, set, groups, times, before, clocks);
            }
            return Vec::new();
        }
        fresh.sort_unstable();
        let mut fresh = fresh.into_iter().peekable();
        let mut refused: Vec<Vec<u32>> = vec![Vec::new(); groups.len()];
        let mut dark = Vec::with_capacity(times.len());
        for row in 0..times.len() as u32 {
            let (at, clock) = (row as usize, clocks[row as usize]);
            let mut turns = Vec::from_iter(self.budget.look(clock, before[at]));
            while let Some((_, set)) = fresh.next_if(|f| f.0 == row) {
                if !self.count(row, set, groups, times, before, clocks) {
                    refused[set as usize].push(row);
                    turns.extend(self.budget.refuse(clock, times[at]));
                    self.clocks.list[clock as usize].dirty = true;
                    if out.refused.last() != Some(&row) {
                        out.refused.push(row);
                    }
                }
            }
            for turn in turns {
                self.clocks.list[clock as usize].dirty = true;
                out.overflows.push(self.overflow(clock, turn, row));
            }
            dark.push(self.budget.dark_of(clock));
        }
        for (rows, store) in selected.iter_mut().zip(&self.stores) {
            let gone = &refused[store.key_set()];
            if !gone.is_empty() {
                rows.retain(|row| gone.binary_search(row).is_err());
            }
        }
        dark
    }

    /// Counts one row's key; false when its clock holds too many.
    fn count(
        &mut self,
        row: u32,
        set: u32,
        groups: &[Vec<u32>],
        times: &[Micros],
        before: &[Micros],
        clocks: &[u32],
    ) -> bool {
        let (at, set) = (row as usize, set as usize);
        let (id, keys) = (groups[set][at], &mut self.key_sets[set]);
        let Some((span, print)) = self.spans[set] else { return true };
        if keys.fresh(id) > times[at].max(before[at]) {
            return true;
        }
        let taken = self.budget.take(clocks[at], hash(print, keys.bytes_of(id)), span, times[at], before[at]);
        if let Some(until) = taken {
            keys.set_fresh(id, until.max(keys.fresh(id)));
        }
        taken.is_some()
    }

    /// What is said of it.
    pub(super) fn overflow(&self, clock: u32, turn: Turn, at: u32) -> Overflow {
        let Turn { began, episode, keys } = turn;
        Overflow { clock: self.clocks.list[clock as usize].name.clone(), began, episode, keys, at }
    }
}
