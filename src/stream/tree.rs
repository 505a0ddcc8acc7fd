//! Merged states of aligned runs of panes, for windows of many panes.
//!
//! Node (level l, index i) is the fold, in time order, of the panes [i·4^l, (i+1)·4^l); level 0 is the panes themselves. Nodes
//! are derived: recomputed from their children when a pane below them was touched, never checkpointed. Which nodes a window
//! is made of depends only on its bounds and which panes exist, so the order of folding, and with it every bit of the result,
//! does too.

use std::collections::{BTreeMap, VecDeque};

use super::Error;
use super::pool::{NO_SLOT, Pool};

/// Windows with at most this many filled panes are folded pane by pane.
pub(super) const LINEAR: usize = 60;

/// log2 of the children of a node.
const BITS: u32 = 2;

/// The longest run of cells side by side; what lies further off is kept one by one. A window and the lateness fit; a group
/// whose events lie years apart must not cost the room between them.
const REACH: i64 = 1 << 15;

/// Enough levels for the most panes a window may have: 4^7 > 10,000.
const LEVELS: usize = 8;

#[derive(Debug, Clone, Copy)]
struct Cell {
    slot: u32,
    /// Whether any pane below is filled.
    filled: bool,
    /// Whether the slot holds the fold.
    fresh: bool,
}

const EMPTY: Cell = Cell { slot: NO_SLOT, filled: false, fresh: false };

/// The cells of one level: those from index `base` on, and those out of reach.
#[derive(Debug, Default)]
struct Level {
    base: i64,
    cells: VecDeque<Cell>,
    far: BTreeMap<i64, Cell>,
}

impl Level {
    fn get(&self, index: i64) -> Cell {
        let near = usize::try_from(index - self.base).ok().and_then(|at| self.cells.get(at));
        near.or_else(|| self.far.get(&index)).copied().unwrap_or(EMPTY)
    }

    /// Whether the cells from `base` on may grow to hold `index`.
    fn reaches(&self, index: i64) -> bool {
        let end = self.base + self.cells.len() as i64;
        self.cells.is_empty() || end.max(index + 1) - self.base.min(index) <= REACH
    }

    fn at(&mut self, index: i64) -> &mut Cell {
        if !self.reaches(index) || self.far.contains_key(&index) {
            return self.far.entry(index).or_insert(EMPTY);
        }
        self.near(index)
    }

    fn near(&mut self, index: i64) -> &mut Cell {
        if self.cells.is_empty() {
            self.base = index;
        }
        while index < self.base {
            self.cells.push_front(EMPTY);
            self.base -= 1;
        }
        let at = (index - self.base) as usize;
        if self.cells.len() <= at {
            self.cells.resize(at + 1, EMPTY);
        }
        &mut self.cells[at]
    }

    /// Takes in what has come within reach.
    fn gather(&mut self) {
        while let Some((&index, &cell)) = self.far.first_key_value() {
            if !self.reaches(index) {
                return;
            }
            self.far.pop_first();
            *self.near(index) = cell;
        }
    }
}

/// The panes and nodes of one group.
#[derive(Debug, Default)]
pub(super) struct Tree {
    levels: [Level; LEVELS],
}

/// Nodes to compute, by level: (slot, its parts).
#[derive(Debug, Default)]
pub(super) struct Jobs {
    levels: [Vec<(u32, [u32; 1 << BITS])>; LEVELS],
}

impl Jobs {
    /// Computes all nodes, children before parents.
    pub(super) fn run(&mut self, pool: &mut Pool) -> Result<(), Error> {
        for level in &mut self.levels {
            if level.is_empty() {
                continue;
            }
            let (mut parts, mut of, mut write) = (Vec::new(), Vec::new(), Vec::new());
            for (slot, children) in level.drain(..) {
                for child in children.into_iter().filter(|c| *c != NO_SLOT) {
                    parts.push(child);
                    of.push(write.len());
                }
                write.push(slot);
            }
            pool.merge(&parts, &of, &write)?;
        }
        Ok(())
    }
}

/// Panes that are to be read as they were earlier. Nodes over them are not kept.
pub(super) trait Then {
    /// Whether any pane in [from, to) differs from now.
    fn differs(&self, from: i64, to: i64) -> bool;
    /// The slot a pane had then; `None` when it was not filled.
    fn slot(&self, now: u32) -> Option<u32>;
}

/// What covering a window needs and leaves.
pub(super) struct Work<'a> {
    pub(super) pool: &'a mut Pool,
    /// Nodes to compute before the parts are read.
    pub(super) jobs: &'a mut Jobs,
    /// Slots that only this window needs.
    pub(super) scratch: &'a mut Vec<u32>,
}

impl Tree {
    /// A pane was filled or touched: the nodes above it are no longer right.
    pub(super) fn touch(&mut self, pane: i64, slot: u32) {
        *self.levels[0].at(pane) = Cell { slot, filled: true, fresh: true };
        for (i, level) in self.levels.iter_mut().enumerate().skip(1) {
            let cell = level.at(pane >> (BITS * i as u32));
            cell.filled = true;
            cell.fresh = false;
        }
    }

    /// Forgets panes before `pane` and nodes that reach before it: no later window holds them whole. The nodes' slots go to
    /// `drops`.
    pub(super) fn forget_before(&mut self, pane: i64, drops: &mut Vec<u32>) {
        for (i, level) in self.levels.iter_mut().enumerate() {
            let mut drop = |cell: Option<Cell>| {
                drops.extend(cell.map(|c| c.slot).filter(|slot| i > 0 && *slot != NO_SLOT));
            };
            let before = |index: i64| index << (BITS * i as u32) < pane;
            while !level.cells.is_empty() && before(level.base) {
                drop(level.cells.pop_front());
                level.base += 1;
            }
            while level.far.first_key_value().is_some_and(|(index, _)| before(*index)) {
                drop(level.far.pop_first().map(|(_, cell)| cell));
            }
            level.gather();
        }
    }

    /// Every slot the nodes own.
    pub(super) fn into_slots(self) -> impl Iterator<Item = u32> {
        let cells = self.levels.into_iter().skip(1).flat_map(|l| l.cells.into_iter().chain(l.far.into_values()));
        cells.map(|c| c.slot).filter(|s| *s != NO_SLOT)
    }

    /// Pushes the parts of the window [from, to), in time order.
    pub(super) fn cover(
        &mut self,
        (from, to): (i64, i64),
        then: Option<&dyn Then>,
        work: &mut Work<'_>,
        out: &mut Vec<u32>,
    ) {
        let mut at = from;
        while at < to {
            // the largest aligned node that starts here and ends within the window
            let mut level = 0;
            while level + 1 < LEVELS {
                let size = 1i64 << (BITS * (level as u32 + 1));
                if at & (size - 1) != 0 || at + size > to {
                    break;
                }
                level += 1;
            }
            out.extend(self.node(level, at >> (BITS * level as u32), then, work));
            at += 1 << (BITS * level as u32);
        }
    }

    /// The slot of a node, to be computed if it is not right; `None` when no pane below it is filled.
    fn node(&mut self, level: usize, index: i64, then: Option<&dyn Then>, work: &mut Work<'_>) -> Option<u32> {
        let cell = self.levels[level].get(index);
        if !cell.filled {
            return None;
        }
        if level == 0 {
            return then.map_or(Some(cell.slot), |t| t.slot(cell.slot));
        }
        let bits = BITS * level as u32;
        let then = then.filter(|t| t.differs(index << bits, (index + 1) << bits));
        if then.is_none() && cell.fresh {
            return Some(cell.slot);
        }
        let mut parts = [NO_SLOT; 1 << BITS];
        for (i, part) in parts.iter_mut().enumerate() {
            if let Some(slot) = self.node(level - 1, (index << BITS) + i as i64, then, work) {
                *part = slot;
            }
        }
        if parts.iter().all(|p| *p == NO_SLOT) {
            return None;
        }
        let slot = if then.is_some() {
            let slot = work.pool.alloc();
            work.scratch.push(slot);
            slot
        } else {
            let cell = self.levels[level].at(index);
            if cell.slot == NO_SLOT {
                cell.slot = work.pool.alloc();
            }
            cell.fresh = true;
            cell.slot
        };
        work.jobs.levels[level].push((slot, parts));
        Some(slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cells(tree: &Tree) -> usize {
        tree.levels.iter().map(|l| l.cells.len() + l.far.len()).sum()
    }

    #[test]
    fn panes_years_apart_cost_no_room_between_them() {
        let mut tree = Tree::default();
        let second_of_2026 = 1_795_000_000;
        let panes: Vec<i64> =
            (0..100).chain(second_of_2026..second_of_2026 + 100).chain([-second_of_2026, second_of_2026 / 2]).collect();
        for (slot, pane) in panes.iter().enumerate() {
            tree.touch(*pane, slot as u32);
        }
        assert!(cells(&tree) < 2_000, "{} cells for {} panes", cells(&tree), panes.len());
        for (slot, pane) in panes.iter().enumerate() {
            let cell = tree.levels[0].get(*pane);
            assert!(cell.filled && cell.slot == slot as u32, "{pane}");
            assert!(tree.levels[LEVELS - 1].get(*pane >> (BITS * (LEVELS as u32 - 1))).filled, "{pane}");
        }
        // once the old ones are forgotten, the new ones stand side by side
        tree.forget_before(second_of_2026, &mut Vec::new());
        assert!(tree.levels.iter().all(|l| l.far.is_empty()));
        assert_eq!(tree.levels[0].cells.len(), 100);
        tree.touch(second_of_2026 + 100, 7);
        assert_eq!(tree.levels[0].get(second_of_2026 + 100).slot, 7);
        tree.forget_before(second_of_2026 + 1_000, &mut Vec::new());
        assert_eq!(cells(&tree), 0);
    }
}
