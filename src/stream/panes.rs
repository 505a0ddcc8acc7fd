//! Tumbling and hopping windows of one key set, window and filter.
//!
//! Rows feed panes of gcd(slide, size); a window is the union of its panes, merged in time order. A window of a group is
//! evaluated only where its contents change: where a pane enters, was touched late, or leaves. Invariant: a closed window is
//! never evaluated again, because closing is decided by the clock's watermark and not by what panes exist.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use datafusion::arrow::array::make_comparator;
use datafusion::arrow::array::{Array, ArrayRef};
use datafusion::arrow::compute::SortOptions;

use crate::clock::Micros;

use super::Error;
use super::emit::{self, Eval, Evals, Member, emit};
use super::engine::{Batch, Missed, Moves};
use super::keys::{KeySet, NONE};
use super::output::{Empty, NO_ROW, QueryRows, Trace};
use super::pool::{Feed, NO_SLOT, NOTHING, Old, Pool};
use super::time::closed_until;
use super::tree::{Jobs, LINEAR, Then, Tree, Work};
use super::window::{Grid, Near};

/// No timer.
const NO_TIME: Micros = Micros::MAX;

#[derive(Debug, Clone, Copy)]
struct Pane {
    start: Micros,
    slot: u32,
}

#[derive(Debug, Default)]
struct Group {
    /// By start, ascending.
    panes: Vec<Pane>,
    /// Window ends at which the contents change because a pane enters or was touched; ascending, distinct.
    changes: Vec<Micros>,
    /// The entry in the clock's heap that counts.
    timer: Option<Micros>,
    /// Made when a window first has many panes.
    tree: Option<Box<Tree>>,
}

/// The filled panes with start in [from, to).
fn range(panes: &[Pane], from: Micros, to: Micros) -> &[Pane] {
    let panes = &panes[panes.partition_point(|p| p.start < from)..];
    &panes[..panes.partition_point(|p| p.start < to)]
}

/// The panes of a group as they were at a row of the sub-batch: touched ones stand in scratch slots, or are not there yet.
struct AtRow<'a> {
    panes: &'a [Pane],
    pane: Micros,
    /// Per slot: (stamp, local).
    local: &'a [(u32, u32)],
    stamp: u32,
    temps: &'a [u32],
    filled: &'a [bool],
}

impl Then for AtRow<'_> {
    fn differs(&self, from: i64, to: i64) -> bool {
        range(self.panes, from * self.pane, to * self.pane).iter().any(|p| self.local[p.slot as usize].0 == self.stamp)
    }

    fn slot(&self, now: u32) -> Option<u32> {
        match self.local[now as usize] {
            (stamp, l) if stamp == self.stamp => self.filled[l as usize].then_some(self.temps[l as usize]),
            _ => Some(now),
        }
    }
}

/// What one sub-batch touched.
#[derive(Default)]
struct Touch {
    /// Per touched (group, pane).
    slots: Vec<u32>,
    read: Vec<u32>,
    groups: Vec<u32>,
    panes: Vec<Micros>,
    first_open: Vec<Micros>,
    last_row: Vec<u32>,
    old_evidence: Vec<(i64, i64)>,
    /// Per row.
    rows: Vec<u32>,
    locals: Vec<usize>,
    opens: Vec<Micros>,
    old: Option<Old>,
}

impl Touch {
    fn clear(&mut self) {
        self.slots.clear();
        self.read.clear();
        self.groups.clear();
        self.panes.clear();
        self.first_open.clear();
        self.last_row.clear();
        self.old_evidence.clear();
        self.rows.clear();
        self.locals.clear();
        self.opens.clear();
        self.old = None;
    }
}

/// What a close leaves to do after the results are out.
#[derive(Default)]
struct Closing {
    jobs: Jobs,
    ran_empty: Vec<Eval>,
    /// Slots of panes and of tree nodes to free.
    dropped: Vec<u32>,
    nodes: Vec<u32>,
}

pub(super) struct PaneStore {
    pub(super) grid: Grid,
    pub(super) hop: bool,
    /// Report every window, not only the first of a run of equal contents.
    every: bool,
    pub(super) key_set: usize,
    pub(super) fingerprint: u64,
    pub(super) members: Vec<Member>,
    pub(super) pool: Pool,
    groups: Vec<Group>,
    pub(super) held: usize,
    /// Filled panes.
    pub(super) open: usize,
    timers: Vec<BinaryHeap<Reverse<(Micros, u32)>>>,
    touch: Touch,
    /// Per slot: its place in `touch` when `stamp` is the current one.
    local: Vec<(u32, u32)>,
    stamp: u32,
    /// Per slot: (group, pane start), and the earliest window end whose contents its last touch changed.
    pub(super) owner: Vec<(u32, Micros, Micros)>,
    pub(super) dirty: super::checkpoint::Dirty,
    pub(super) partly_late: u64,
    pub(super) gap_rows: u64,
}

impl PaneStore {
    pub(super) fn new(
        grid: Grid,
        key_set: usize,
        fingerprint: u64,
        members: Vec<Member>,
        pool: Pool,
        all_finals: bool,
    ) -> Self {
        let every = all_finals || members.iter().any(|m| m.query.window_dependent);
        Self {
            grid,
            hop: grid.slide != grid.size,
            every,
            key_set,
            fingerprint,
            members,
            pool,
            groups: Vec::new(),
            held: 0,
            open: 0,
            timers: Vec::new(),
            touch: Touch::default(),
            local: Vec::new(),
            stamp: 0,
            owner: Vec::new(),
            dirty: super::checkpoint::Dirty::default(),
            partly_late: 0,
            gap_rows: 0,
        }
    }

    /// Applies rows (indices into the batch, ascending). `missed` gets those that belong to no open window.
    pub(super) fn apply(
        &mut self,
        batch: &Batch<'_>,
        rows: &[u32],
        keys: &mut KeySet,
        missed: &mut Missed,
    ) -> Result<(), Error> {
        self.touch.clear();
        self.stamp += 1;
        let ids = &batch.groups[self.key_set];
        let mut near = Near::NOWHERE;
        for row in rows {
            let at = *row as usize;
            let (group, time) = (ids[at], batch.times[at]);
            let clock = &batch.clocks[at];
            let closed = closed_until(batch.before[at], batch.finished[*clock as usize], self.grid.size);
            near.look(&self.grid, time);
            let Some(first) = near.first_end() else {
                self.gap_rows += 1;
                missed.unused.push(*row);
                continue;
            };
            let Some(open) = near.first_open(&self.grid, closed) else {
                missed.late.push(*row);
                continue;
            };
            self.partly_late += u64::from(first != open);
            let start = near.start;
            let local = self.touched(group, start, open, keys);
            let position = batch.positions[at];
            let slot = self.touch.slots[local];
            self.pool.witness(slot, (position, position));
            self.owner[slot as usize].2 = open;
            self.touch.last_row[local] = *row;
            self.touch.rows.push(*row);
            self.touch.locals.push(local);
            self.touch.opens.push(open);
        }
        if self.touch.rows.is_empty() {
            return Ok(());
        }
        let feed = Feed { rows: &self.touch.rows, locals: &self.touch.locals, len: batch.len, values: batch.values };
        let keep = self.members.iter().any(|m| m.query.early());
        self.touch.old = self.pool.update(&self.touch.read, &self.touch.slots, &feed, keep)?;
        for slot in &self.touch.slots {
            self.dirty.touch(*slot);
        }
        Ok(())
    }

    /// The place in `touch` of a (group, pane), found or made.
    fn touched(&mut self, group: u32, start: Micros, open: Micros, keys: &mut KeySet) -> usize {
        if self.groups.len() <= group as usize {
            self.groups.resize_with(group as usize + 1, Group::default);
        }
        let g = &mut self.groups[group as usize];
        let found = match g.panes.last() {
            Some(last) if last.start == start => Ok(g.panes.len() - 1),
            Some(last) if last.start < start => Err(g.panes.len()),
            None => Err(0),
            _ => g.panes.binary_search_by_key(&start, |p| p.start),
        };
        self.open += usize::from(found.is_err());
        let (slot, fresh) = match found {
            Ok(i) => (g.panes[i].slot, false),
            Err(i) => {
                if g.panes.is_empty() {
                    keys.hold(group);
                    self.held += 1;
                }
                let slot = self.pool.alloc();
                g.panes.insert(i, Pane { start, slot });
                if self.owner.len() <= slot as usize {
                    self.owner.resize(slot as usize + 1, (NONE, 0, 0));
                    self.local.resize(slot as usize + 1, (0, 0));
                }
                self.owner[slot as usize] = (group, start, open);
                (slot, true)
            }
        };
        let (stamp, local) = self.local[slot as usize];
        if stamp == self.stamp {
            // the first touch has the earliest open window, later ones may only add change points
            let local = local as usize;
            if open != self.touch.first_open[local] {
                self.change(group, open, keys);
            }
            return local;
        }
        if let Some(tree) = &mut self.groups[group as usize].tree {
            tree.touch(start.div_euclid(self.grid.pane), slot);
        }
        let local = self.touch.slots.len();
        self.local[slot as usize] = (self.stamp, local as u32);
        self.touch.slots.push(slot);
        self.touch.read.push(if fresh { NO_SLOT } else { slot });
        self.touch.groups.push(group);
        self.touch.panes.push(start);
        self.touch.first_open.push(open);
        self.touch.last_row.push(0);
        self.touch.old_evidence.push(if fresh { NOTHING } else { self.pool.evidence(slot) });
        self.change(group, open, keys);
        local
    }

    /// Notes that the contents of a group's window change at `end`.
    fn change(&mut self, group: u32, end: Micros, keys: &KeySet) {
        let g = &mut self.groups[group as usize];
        if let Err(i) = g.changes.binary_search(&end) {
            g.changes.insert(i, end);
        }
        self.arm(group, keys);
    }

    /// When a group must be looked at next.
    fn due(&self, group: &Group) -> Option<Micros> {
        let change = group.changes.first().copied();
        if !self.hop {
            return change;
        }
        let leave = group
            .panes
            .first()
            .and_then(|p| self.grid.last_end(p.start))
            .map(|end| end.saturating_add(self.grid.slide));
        match (change, leave) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    fn arm(&mut self, group: u32, keys: &KeySet) {
        let due = self.due(&self.groups[group as usize]);
        let g = &mut self.groups[group as usize];
        if due == g.timer {
            return;
        }
        // an entry that is too early is looked at and set again; only an earlier one must be pushed now
        if let Some(due) = due
            && g.timer.is_none_or(|t| due < t)
        {
            g.timer = Some(due);
            let clock = keys.clock(group) as usize;
            if self.timers.len() <= clock {
                self.timers.resize_with(clock + 1, BinaryHeap::new);
            }
            self.timers[clock].push(Reverse((due, group)));
        }
    }

    /// Pushes the parts of a window of a group, in time order. Tree nodes among them are computed by `jobs`.
    fn parts(&mut self, group: u32, (start, end): (Micros, Micros), jobs: &mut Jobs, out: &mut Vec<u32>) {
        let g = &mut self.groups[group as usize];
        let panes = range(&g.panes, start, end);
        if panes.len() <= LINEAR {
            out.extend(panes.iter().map(|p| p.slot));
            return;
        }
        let mut work = Work { pool: &mut self.pool, jobs, scratch: &mut Vec::new() };
        let tree = g.tree.get_or_insert_with(|| planted(&g.panes, self.grid.pane));
        tree.cover((start.div_euclid(self.grid.pane), end.div_euclid(self.grid.pane)), None, &mut work, out);
    }

    /// Results of the touched groups for queries whose value only rises.
    pub(super) fn early(
        &mut self,
        keys: &KeySet,
        batch: &Batch<'_>,
        errors: &mut u64,
    ) -> Result<Vec<QueryRows>, Error> {
        if self.touch.slots.is_empty() || !self.members.iter().any(|m| m.query.early()) {
            return Ok(Vec::new());
        }
        let mut evals = Evals::default();
        if self.hop {
            let mut jobs = Jobs::default();
            self.candidates(&mut jobs, &mut evals);
            jobs.run(&mut self.pool)?;
        } else {
            for (i, slot) in self.touch.slots.iter().enumerate() {
                let from = evals.begin();
                evals.parts.push(*slot);
                let start = self.touch.panes[i];
                evals.end(self.touch.groups[i], self.touch.last_row[i], (start, start + self.grid.size), from);
            }
        }
        let members: Vec<&Member> = self.members.iter().filter(|m| m.query.early()).collect();
        let emitted = emit(&mut self.pool, keys, &members, &evals, Some(batch.values), batch.dark, errors)?;
        if !self.hop {
            return Ok(emitted.into_iter().map(|e| e.rows).collect());
        }
        emitted.into_iter().zip(&members).map(|(e, m)| largest(e.rows, m.query.value)).collect()
    }

    /// The windows among which the largest value of each touched group is: of those that hold a touched row and were open
    /// at it, the oldest for each set of newer panes it can include. A younger window with the same newer panes holds less.
    fn candidates(&mut self, jobs: &mut Jobs, evals: &mut Evals) {
        let mut order: Vec<usize> = (0..self.touch.slots.len()).collect();
        order.sort_by_key(|i| (self.touch.groups[*i], *i));
        // keep the order of first touch among groups
        let mut ranges: Vec<(usize, usize)> = Vec::new();
        let mut from = 0;
        while from < order.len() {
            let group = self.touch.groups[order[from]];
            let mut to = from;
            while to < order.len() && self.touch.groups[order[to]] == group {
                to += 1;
            }
            ranges.push((from, to));
            from = to;
        }
        ranges.sort_by_key(|(from, _)| order[*from]);
        let mut ends: Vec<Micros> = Vec::new();
        for (from, to) in ranges {
            let group = self.touch.groups[order[from]];
            let panes = &self.groups[group as usize].panes;
            ends.clear();
            let mut at = 0;
            for i in &order[from..to] {
                at = at.max(self.touch.last_row[*i]);
                let pane = self.touch.panes[*i];
                let Some(limit) = self.grid.last_end(pane) else { continue };
                let index = panes.partition_point(|p| p.start < pane);
                for newer in &panes[index..] {
                    let enters = self.grid.first_end(newer.start, Micros::MIN).unwrap_or(NO_TIME);
                    let end = enters.max(self.touch.first_open[*i]);
                    if end > limit {
                        break;
                    }
                    ends.push(end);
                }
            }
            ends.sort_unstable();
            ends.dedup();
            for end in &ends {
                let from = evals.begin();
                let window = (*end - self.grid.size, *end);
                self.parts(group, window, jobs, &mut evals.parts);
                evals.end(group, at, window, from);
            }
        }
    }

    /// The per-row history of some groups in the last sub-batch, for one member. `picks` are (group) ids.
    pub(super) fn trace(
        &mut self,
        member: usize,
        picks: &[u32],
        keys: &KeySet,
        batch: &Batch<'_>,
        errors: &mut u64,
    ) -> Result<Vec<Trace>, Error> {
        let mut steps: Vec<(u32, usize)> = Vec::new();
        let mut temps: Vec<u32> = vec![NO_SLOT; self.touch.slots.len()];
        let Some(old) = self.touch.old.take() else { return Ok(Vec::new()) };
        // what is done here again was counted
        let counted = self.pool.capped;
        // whether the temp of a local has state yet
        let mut filled = vec![false; self.touch.slots.len()];
        for local in 0..self.touch.slots.len() {
            if picks.contains(&self.touch.groups[local]) {
                let slot = self.pool.alloc();
                temps[local] = slot;
                filled[local] = self.pool.revive(&old, local, slot)?;
                self.pool.set_evidence(slot, self.touch.old_evidence[local]);
            }
        }
        self.touch.old = Some(old);
        for (i, local) in self.touch.locals.iter().enumerate() {
            if temps[*local] != NO_SLOT {
                steps.push((self.touch.groups[*local], i));
            }
        }
        // the j-th row of every group goes in round j: rows of one group must not share an update
        steps.sort_by_key(|(group, i)| (*group, *i));
        let mut rounds: Vec<Vec<usize>> = Vec::new();
        let (mut last, mut round) = (NONE, 0);
        for (group, i) in steps {
            round = if group == last { round + 1 } else { 0 };
            last = group;
            if rounds.len() <= round {
                rounds.push(Vec::new());
            }
            rounds[round].push(i);
        }
        let mut results: Vec<QueryRows> = Vec::new();
        for round in rounds {
            let (mut rows, mut locals, mut slots, mut read) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
            let mut order = round.clone();
            order.sort_unstable();
            for (n, i) in order.iter().enumerate() {
                let local = self.touch.locals[*i];
                rows.push(self.touch.rows[*i]);
                locals.push(n);
                slots.push(temps[local]);
                read.push(if filled[local] { temps[local] } else { NO_SLOT });
                filled[local] = true;
                let position = batch.positions[self.touch.rows[*i] as usize];
                self.pool.witness(temps[local], (position, position));
            }
            let feed = Feed { rows: &rows, locals: &locals, len: batch.len, values: batch.values };
            self.pool.update(&read, &slots, &feed, false)?;
            let mut evals = Evals::default();
            let (mut jobs, mut scratch) = (Jobs::default(), Vec::new());
            for i in order {
                let local = self.touch.locals[i];
                let (group, pane, row) = (self.touch.groups[local], self.touch.panes[local], self.touch.rows[i]);
                let Some(limit) = self.grid.last_end(pane) else { continue };
                let mut tree = self.groups[group as usize].tree.take();
                let pane_size = self.grid.pane;
                let panes = &self.groups[group as usize].panes;
                let then = AtRow {
                    panes,
                    pane: pane_size,
                    local: &self.local,
                    stamp: self.stamp,
                    temps: &temps,
                    filled: &filled,
                };
                let mut end = self.touch.opens[i];
                while end <= limit {
                    let window = (end - self.grid.size, end);
                    let from = evals.begin();
                    evals.parts.extend(range(panes, window.0, end).iter().filter_map(|p| then.slot(p.slot)));
                    if evals.parts.len() - from as usize > LINEAR {
                        evals.parts.truncate(from as usize);
                        let tree = tree.get_or_insert_with(|| planted(panes, pane_size));
                        let mut work = Work { pool: &mut self.pool, jobs: &mut jobs, scratch: &mut scratch };
                        let bounds = (window.0.div_euclid(pane_size), end.div_euclid(pane_size));
                        tree.cover(bounds, Some(&then), &mut work, &mut evals.parts);
                    }
                    evals.end(group, row, window, from);
                    end += self.grid.slide;
                }
                self.groups[group as usize].tree = tree;
            }
            jobs.run(&mut self.pool)?;
            let one = [&self.members[member]];
            results.extend(
                emit(&mut self.pool, keys, &one, &evals, Some(batch.values), batch.dark, errors)?
                    .into_iter()
                    .map(|e| e.rows),
            );
            scratch.into_iter().for_each(|slot| self.pool.release(slot));
        }
        for slot in temps.into_iter().filter(|s| *s != NO_SLOT) {
            self.pool.release(slot);
        }
        self.pool.capped = counted;
        by_group(&results, picks)
    }

    /// Whether nothing of a clock is due up to `bound`.
    pub(super) fn is_quiet(&self, clock: u32, bound: Micros) -> bool {
        let next = self.timers.get(clock as usize).and_then(BinaryHeap::peek);
        next.is_none_or(|Reverse((time, _))| *time > bound)
    }

    /// Closes what the moved clocks have passed.
    pub(super) fn close(
        &mut self,
        moves: &Moves<'_>,
        keys: &mut KeySet,
        errors: &mut u64,
        closed: &mut Vec<QueryRows>,
        empty: &mut Vec<Empty>,
    ) -> Result<(), Error> {
        let mut evals = Evals::default();
        let mut closing = Closing::default();
        for clock in moves.clocks() {
            let Some(mut heap) = self.timers.get_mut(clock as usize).map(std::mem::take) else { continue };
            let bound = moves.bound(clock, self.grid.size);
            while let Some(Reverse((time, group))) = heap.peek().copied() {
                if time > bound {
                    break;
                }
                heap.pop();
                if self.groups.get(group as usize).and_then(|g| g.timer) != Some(time) {
                    continue;
                }
                self.groups[group as usize].timer = None;
                let mut next = Some(time);
                while let Some(end) = next {
                    if end > bound {
                        break;
                    }
                    next = self.close_one(group, end, moves.row(clock, end), &mut evals, &mut closing);
                }
                if self.groups[group as usize].panes.is_empty() {
                    let g = &mut self.groups[group as usize];
                    g.changes = Vec::new();
                    closing.nodes.extend(g.tree.take().into_iter().flat_map(|t| t.into_slots()));
                    keys.release(group);
                    self.held -= 1;
                } else if let Some(next) = next {
                    self.groups[group as usize].timer = Some(next);
                    heap.push(Reverse((next, group)));
                }
            }
            self.timers[clock as usize] = heap;
        }
        closing.jobs.run(&mut self.pool)?;
        evals.sort(keys);
        let members: Vec<&Member> = self.members.iter().collect();
        let emitted = emit(&mut self.pool, keys, &members, &evals, None, moves.dark, errors)?;
        let mut missing: Vec<Vec<Eval>> = vec![closing.ran_empty; self.members.len()];
        for (i, e) in emitted.into_iter().enumerate() {
            if let Some(kept) = &e.kept {
                let mut kept = kept.iter().peekable();
                for (n, eval) in evals.list.iter().enumerate() {
                    if kept.next_if(|k| **k == n as u32).is_none() {
                        missing[i].push(*eval);
                    }
                }
            }
            if !e.rows.at.is_empty() {
                closed.push(e.rows);
            }
        }
        for (member, list) in self.members.iter().zip(missing) {
            let mut sorted = Evals { list, parts: Vec::new() };
            sorted.sort(keys);
            empty.extend(emit::empties(keys, member, &sorted.list)?);
        }
        closing.nodes.into_iter().for_each(|slot| self.pool.release(slot));
        for slot in closing.dropped {
            let (group, start, _) = self.owner[slot as usize];
            self.dirty.gone(slot, || pane_key(self.fingerprint, keys.bytes_of(group), start));
            self.pool.release(slot);
            self.open -= 1;
        }
        Ok(())
    }

    /// Evaluates one window end of a group and says when to look again.
    fn close_one(
        &mut self,
        group: u32,
        end: Micros,
        at: u32,
        evals: &mut Evals,
        closing: &mut Closing,
    ) -> Option<Micros> {
        let window = (end - self.grid.size, end);
        let g = &mut self.groups[group as usize];
        let passed = g.changes.partition_point(|c| *c <= end);
        g.changes.drain(..passed);
        let gone = g.panes.partition_point(|p| p.start < window.0);
        closing.dropped.extend(g.panes.drain(..gone).map(|p| p.slot));
        if let Some(tree) = &mut g.tree {
            tree.forget_before(window.0.div_euclid(self.grid.pane), &mut closing.nodes);
        }
        let from = evals.begin();
        self.parts(group, window, &mut closing.jobs, &mut evals.parts);
        let filled = evals.parts.len() > from as usize;
        if filled {
            evals.end(group, at, window, from);
        } else {
            closing.ran_empty.push(Eval { group, at, window, from: 0, to: 0 });
        }
        if !self.hop {
            let g = &mut self.groups[group as usize];
            let closed = g.panes.partition_point(|p| p.start < end);
            closing.dropped.extend(g.panes.drain(..closed).map(|p| p.slot));
        }
        let due = self.due(&self.groups[group as usize]);
        if self.every && self.hop && filled {
            Some(due.map_or(end + self.grid.slide, |d| d.min(end + self.grid.slide)))
        } else {
            due
        }
    }

    /// Every slot that holds a pane.
    pub(super) fn live_slots(&self) -> Vec<u32> {
        self.groups.iter().flat_map(|g| g.panes.iter().map(|p| p.slot)).collect()
    }

    /// Takes back a pane; its state is filled in by the caller.
    pub(super) fn restore_pane(&mut self, group: u32, start: Micros, changed: Micros, keys: &mut KeySet) -> u32 {
        self.stamp += 1;
        let local = self.touched(group, start, changed, keys);
        let slot = self.touch.slots[local];
        self.touch.clear();
        slot
    }

    /// After the last pane was restored: forgets change points that closed before, then arms every group.
    pub(super) fn finish_restore(&mut self, keys: &KeySet, closed: impl Fn(u32, Micros) -> Micros) {
        for heap in &mut self.timers {
            heap.clear();
        }
        let (every, hop) = (self.every, self.hop);
        for group in 0..self.groups.len() as u32 {
            let g = &mut self.groups[group as usize];
            g.timer = None;
            if g.panes.is_empty() {
                continue;
            }
            let bound = closed(keys.clock(group), self.grid.size);
            g.changes.retain(|c| *c > bound);
            if every && hop {
                // every window is looked at; when none of the oldest pane's is open, the next one is where it leaves
                let first = g.panes.first().and_then(|p| self.grid.first_end(p.start, bound));
                if let Some(first) = first
                    && let Err(i) = g.changes.binary_search(&first)
                {
                    g.changes.insert(i, first);
                }
            }
            self.arm(group, keys);
        }
    }
}

/// The tree over some panes.
fn planted(panes: &[Pane], pane: Micros) -> Box<Tree> {
    let mut tree = Box::<Tree>::default();
    for p in panes {
        tree.touch(p.start.div_euclid(pane), p.slot);
    }
    tree
}

/// Name of a pane in a checkpoint.
pub(super) fn pane_key(store: u64, key: &[u8], start: Micros) -> Vec<u8> {
    let mut out = Vec::with_capacity(17 + key.len());
    out.push(b'p');
    out.extend_from_slice(&store.to_be_bytes());
    out.extend_from_slice(&start.to_be_bytes());
    out.extend_from_slice(key);
    out
}

/// Keeps, per group, the row with the largest value; the earliest end on ties.
fn largest(rows: QueryRows, value: Option<usize>) -> Result<QueryRows, Error> {
    if rows.group.windows(2).all(|w| w[0] != w[1]) {
        return Ok(rows);
    }
    let Some(value) = value else { return Ok(rows) };
    let column: &ArrayRef = rows.rows.column(value);
    let compare = make_comparator(column, column, SortOptions { descending: false, nulls_first: true })?;
    let mut keep: Vec<u32> = Vec::new();
    for i in 0..column.len() {
        match keep.last_mut() {
            Some(best) if rows.group[*best as usize] == rows.group[i] => {
                if compare(i, *best as usize).is_gt() {
                    *best = i as u32;
                }
            }
            _ => keep.push(i as u32),
        }
    }
    emit::pick(&rows, &keep)
}

/// One trace per picked group from results of several rounds.
pub(super) fn by_group(results: &[QueryRows], picks: &[u32]) -> Result<Vec<Trace>, Error> {
    let Some(first) = results.first() else { return Ok(Vec::new()) };
    let mut all = QueryRows {
        query: first.query,
        rows: datafusion::arrow::compute::concat_batches(first.rows.schema_ref(), results.iter().map(|r| &r.rows))?,
        at: Vec::new(),
        group: Vec::new(),
        window: Vec::new(),
        evidence: Vec::new(),
        complete: Vec::new(),
    };
    for r in results {
        all.at.extend_from_slice(&r.at);
        all.group.extend_from_slice(&r.group);
        all.window.extend_from_slice(&r.window);
        all.evidence.extend_from_slice(&r.evidence);
        all.complete.extend_from_slice(&r.complete);
    }
    let mut order: Vec<u32> = (0..all.at.len() as u32).filter(|i| all.at[*i as usize] != NO_ROW).collect();
    order.sort_by_key(|i| (all.group[*i as usize], all.at[*i as usize], all.window[*i as usize].1));
    let mut traces = Vec::new();
    for group in picks {
        let from = order.partition_point(|i| all.group[*i as usize] < *group);
        let to = order.partition_point(|i| all.group[*i as usize] <= *group);
        if from < to {
            traces.push(Trace { query: all.query, group: *group, steps: emit::pick(&all, &order[from..to])? });
        }
    }
    Ok(traces)
}
