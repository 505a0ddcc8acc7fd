//! State taken apart by clock: the whole state of an engine, for several engines of the same queries.
//!
//! A group belongs to the clock in its key, so every record of a group or a clock goes where its clock goes. What describes the
//! records (layouts, counts) goes with them, once per share; counts of several shares add up when one engine restores them.

use std::collections::BTreeMap;

use super::engine::{Engine, Store};
use super::persist::{Out, RestoreError, clock_of, damaged};

/// A state record.
pub type StateRecord = (Vec<u8>, Vec<u8>);

/// Name of the record of counts.
const COUNTS: &[u8] = b"n";

/// The record of how many clocks there are, and how many records each store has.
pub(super) fn count_record(clocks: u64, stores: &[(u64, u64)]) -> Vec<u8> {
    let mut value = Out::new();
    value.u64(clocks);
    value.count(stores.len());
    for (print, stored) in stores {
        value.u64(*print);
        value.u64(*stored);
    }
    value.done(COUNTS)
}

impl Engine {
    /// The whole state in `shares`; `place` gives the share of a clock by its name. Records as [`Engine::take_changes`] gives
    /// them: an engine restores one share, or several in which no clock is twice.
    ///
    /// # Errors
    /// A record whose clock cannot be read, or a place that is not one of the shares.
    pub fn split(
        &mut self,
        shares: usize,
        place: impl Fn(&str) -> usize,
    ) -> Result<Vec<Vec<StateRecord>>, RestoreError> {
        self.mark_all_dirty();
        let mut out: Vec<Vec<StateRecord>> = vec![Vec::new(); shares];
        let mut layouts = Vec::new();
        let mut clocks = vec![0_u64; shares];
        let mut groups: Vec<BTreeMap<u64, u64>> = vec![BTreeMap::new(); shares];
        for (key, value) in self.take_changes() {
            let (Some(value), Some((&kind, rest))) = (value, key.split_first()) else { continue };
            let (name, print) = match kind {
                b'l' => {
                    layouts.push((key, value));
                    continue;
                }
                b'n' => continue,
                b'k' => {
                    let name = std::str::from_utf8(rest.get(12..).unwrap_or_default());
                    let to = place(name.map_err(|_| damaged("a clock name"))?);
                    out.get_mut(to).ok_or_else(|| damaged("a clock without a place"))?.push((key, value));
                    continue;
                }
                b'c' => (String::from_utf8(rest.to_vec()).map_err(|_| damaged("a clock name"))?, None),
                _ => {
                    let (print, group) = rest.split_first_chunk::<8>().ok_or_else(|| damaged("a key"))?;
                    let print = u64::from_be_bytes(*print);
                    (self.clock_name(print, group)?, Some(print))
                }
            };
            let to = place(&name);
            let share = out.get_mut(to).ok_or_else(|| damaged("a clock without a place"))?;
            match print {
                None => clocks[to] += 1,
                Some(print) => *groups[to].entry(print).or_default() += 1,
            }
            share.push((key, value));
        }
        for ((share, clocks), groups) in out.iter_mut().zip(clocks).zip(groups) {
            if !share.is_empty() {
                share.extend(layouts.iter().cloned());
                share.push((vec![b'n'], count_record(clocks, &groups.into_iter().collect::<Vec<_>>())));
            }
        }
        Ok(out)
    }

    /// The clock of a group, by its store and the rest of its record's key.
    fn clock_name(&self, print: u64, rest: &[u8]) -> Result<String, RestoreError> {
        let store = self.stores.iter().find(|s| s.fingerprint() == print).ok_or_else(|| damaged("an unknown store"))?;
        let set = store.key_set();
        let key = match store {
            Store::Panes(_) => rest.split_first_chunk::<8>().ok_or_else(|| damaged("a key"))?.1,
            Store::Sessions(_) => rest,
        };
        clock_of(&self.key_sets[set], self.clock_columns[set], key)
    }

    /// Replaces every position held as evidence. `map` must keep their order.
    pub fn map_positions(&mut self, map: impl Fn(i64) -> i64) {
        for store in &mut self.stores {
            match store {
                Store::Panes(s) => s.pool.map_evidence(&map),
                Store::Sessions(s) => {
                    s.pool.map_evidence(&map);
                    let sessions = s.groups.iter_mut().flat_map(|g| &mut g.open);
                    sessions.flat_map(|s| &mut s.items).for_each(|item| item.position = map(item.position));
                }
            }
        }
    }
}
