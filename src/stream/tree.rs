//! Merged states of aligned runs of panes, for windows of many panes.
//!
//! Node (level l, index i) is the fold, in time order, of the panes [i·4^l, (i+1)·4^l). Nodes are derived: recomputed from
//! their children when a pane below them was touched, never checkpointed. Which nodes a window is made of depends only on its
//! bounds and which panes exist, so the order of folding, and with it every bit of the result, does too.

use std::collections::BTreeMap;

use super::pool::Pool;

/// Windows with at most this many filled panes are folded pane by pane.
pub(super) const LINEAR: usize = 60;

/// log2 of the children of a node.
const BITS: u32 = 2;

/// Enough levels for the most panes a window may have: 4^7 > 10,000.
pub(super) const LEVELS: u32 = 7;

#[derive(Debug)]
struct Node {
    slot: u32,
    fresh: bool,
}

/// The nodes of one group, one map per level from 1 up, by index.
#[derive(Debug, Default)]
pub(super) struct Tree {
    levels: Vec<BTreeMap<i64, Node>>,
}

/// Nodes to compute, by level: (slot, its parts).
#[derive(Debug, Default)]
pub(super) struct Jobs {
    levels: Vec<Vec<(u32, Vec<u32>)>>,
}

impl Jobs {
    fn add(&mut self, level: u32, slot: u32, parts: Vec<u32>) {
        let at = level as usize;
        if self.levels.len() <= at {
            self.levels.resize_with(at + 1, Vec::new);
        }
        self.levels[at].push((slot, parts));
    }

    /// Computes all nodes, children before parents.
    pub(super) fn run(&mut self, pool: &mut Pool) -> Result<(), super::Error> {
        for level in std::mem::take(&mut self.levels) {
            let (mut parts, mut of, mut write) = (Vec::new(), Vec::new(), Vec::new());
            for (slot, children) in level {
                of.extend(children.iter().map(|_| write.len()));
                parts.extend(children);
                write.push(slot);
            }
            pool.merge(&parts, &of, &write)?;
        }
        Ok(())
    }
}

/// The filled panes of a group: (pane number, slot), ascending.
pub(super) trait Panes {
    /// Slots of the panes in [from, to), ascending.
    fn slots(&self, from: i64, to: i64, out: &mut Vec<u32>);
    /// Whether any pane in [from, to) is filled.
    fn any(&self, from: i64, to: i64) -> bool;
    /// Whether [from, to) holds a pane that is to be read as it was earlier: nodes over it are not kept.
    fn differs(&self, from: i64, to: i64) -> bool;
}

impl Tree {
    /// A pane was touched: the nodes above it are no longer right.
    pub(super) fn touch(&mut self, pane: i64) {
        for (i, level) in self.levels.iter_mut().enumerate() {
            if let Some(node) = level.get_mut(&(pane >> (BITS * (i as u32 + 1)))) {
                node.fresh = false;
            }
        }
    }

    /// Forgets nodes that reach before `pane`: no later window holds them whole. Their slots go to `drops`.
    pub(super) fn forget_before(&mut self, pane: i64, drops: &mut Vec<u32>) {
        for (i, level) in self.levels.iter_mut().enumerate() {
            let bits = BITS * (i as u32 + 1);
            while let Some(first) = level.first_entry() {
                if *first.key() << bits >= pane {
                    break;
                }
                drops.push(first.remove().slot);
            }
        }
    }

    /// Every slot the tree owns.
    pub(super) fn into_slots(self) -> impl Iterator<Item = u32> {
        self.levels.into_iter().flat_map(|l| l.into_values().map(|n| n.slot))
    }

    /// Pushes the parts of the window [from, to), in time order; nodes to compute first go to `jobs`, slots that only this
    /// window needs to `scratch`.
    pub(super) fn cover(
        &mut self,
        (from, to): (i64, i64),
        panes: &dyn Panes,
        pool: &mut Pool,
        jobs: &mut Jobs,
        scratch: &mut Vec<u32>,
        out: &mut Vec<u32>,
    ) {
        let mut at = from;
        while at < to {
            // the largest aligned node that starts here and ends within the window
            let mut level = 0;
            while level < LEVELS
                && at & ((1 << (BITS * (level + 1))) - 1) == 0
                && at + (1 << (BITS * (level + 1))) <= to
            {
                level += 1;
            }
            let next = at + (1 << (BITS * level));
            if panes.any(at, next) {
                if level == 0 {
                    panes.slots(at, next, out);
                } else {
                    out.push(self.node(level, at >> (BITS * level), panes, pool, jobs, scratch));
                }
            }
            at = next;
        }
    }

    /// The slot of a node that holds at least one pane, to be computed by `jobs` if it is not right.
    fn node(
        &mut self,
        level: u32,
        index: i64,
        panes: &dyn Panes,
        pool: &mut Pool,
        jobs: &mut Jobs,
        scratch: &mut Vec<u32>,
    ) -> u32 {
        let (from, to) = (index << (BITS * level), (index + 1) << (BITS * level));
        let apart = panes.differs(from, to);
        while self.levels.len() < level as usize {
            self.levels.push(BTreeMap::new());
        }
        if !apart
            && let Some(node) = self.levels[level as usize - 1].get(&index)
            && node.fresh
        {
            return node.slot;
        }
        let mut parts = Vec::new();
        if level == 1 {
            panes.slots(from, to, &mut parts);
        } else {
            for child in index << BITS..(index + 1) << BITS {
                let (from, to) = (child << (BITS * (level - 1)), (child + 1) << (BITS * (level - 1)));
                if panes.any(from, to) {
                    parts.push(self.node(level - 1, child, panes, pool, jobs, scratch));
                }
            }
        }
        let slot = if apart {
            let slot = pool.alloc();
            scratch.push(slot);
            slot
        } else {
            let node = self.levels[level as usize - 1]
                .entry(index)
                .or_insert_with(|| Node { slot: pool.alloc(), fresh: true });
            node.fresh = true;
            node.slot
        };
        jobs.add(level, slot, parts);
        slot
    }
}
