//! Session windows and run windows of one key set, window and filter.
//!
//! Rows are placed one by one (`place`), in offset order and natively; states are computed once per sub-batch. An open session
//! keeps its contents as a sequence of items: states of rows the watermark has passed, then the raw rows still after it, in
//! (event time, arrival) order, so that an out-of-order row or a late-arriving marker can fold them again or split them. Beside
//! it stands `total`, the state of the whole sequence: a row in order only adds to it, and once every row is passed the
//! sequence becomes that one state for free. The sequence, and so every result, does not depend on how batches are cut.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef};
use datafusion::arrow::datatypes::DataType;
use datafusion::arrow::row::{RowConverter, RowParser, SortField};
use datafusion::common::ScalarValue;

use crate::clock::Micros;

use super::Error;
use super::checkpoint::Dirty;
use super::compact::Codec;
use super::emit::{self, Eval, Evals, Member, emit, taken};
use super::engine::{Batch, Moves};
use super::keys::{KeySet, NONE};
use super::output::{Empty, QueryRows, Trace};
use super::panes::by_group;
use super::pool::{Feed, NO_SLOT, NOTHING, Old, Pool, boolean};
use super::query::fingerprint;
use super::time::NEVER;

/// A sequence longer than this whose passed part is more than half is folded to one state.
const LONG: usize = 64;

/// A row of a session, or the state of several.
#[derive(Debug, Clone)]
pub(super) struct Item {
    /// Event time; of a state, its latest.
    pub(super) time: Micros,
    pub(super) position: i64,
    pub(super) content: Content,
}

/// What an item holds.
#[derive(Debug, Clone)]
pub(super) enum Content {
    /// A state slot, owned by this item.
    State(u32),
    /// A row that feeds nothing: it only holds the session open.
    Silent,
    /// A row of the current batch.
    New(u32),
    /// An older row: the store's argument columns in row format.
    Old(Arc<[u8]>),
}

/// An open session.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) start: Micros,
    pub(super) last: Micros,
    /// The last row is a marker: the session ends there.
    pub(super) marked: bool,
    /// State of all items; [`NO_SLOT`] while no row fed it. The slot may also be the only item's.
    pub(super) total: u32,
    pub(super) items: Vec<Item>,
    /// How many items the watermark had passed when last looked at.
    pub(super) sealed: usize,
    /// (stamp, index) of this sub-batch's work on it.
    work: (u32, u32),
}

impl Session {
    fn end(&self, gap: Micros) -> Micros {
        if self.marked { self.last } else { self.last.saturating_add(gap) }
    }

    fn seal(&mut self, watermark: Micros) {
        while self.items.get(self.sealed).is_some_and(|i| i.time <= watermark || matches!(i.content, Content::State(_)))
        {
            self.sealed += 1;
        }
    }

    /// Puts a row where it belongs: after what the watermark has passed, by time. Says where that is.
    fn insert(&mut self, item: Item, watermark: Micros) -> usize {
        self.seal(watermark);
        let at = if item.time <= watermark {
            self.sealed
        } else {
            self.sealed + self.items[self.sealed..].partition_point(|i| i.time <= item.time)
        };
        self.items.insert(at, item);
        self.seal(watermark);
        at
    }

    /// Whether the total is the settled state itself.
    fn settled(&self) -> bool {
        matches!(self.items.as_slice(), [Item { content: Content::State(slot), .. }] if *slot == self.total)
    }
}

/// Bounds of a closed session, kept one gap longer: a row that would join it is late.
#[derive(Debug, Clone, Copy)]
pub(super) struct Closed {
    pub(super) start: Micros,
    pub(super) last: Micros,
    pub(super) end: Micros,
    pub(super) marked: bool,
}

#[derive(Debug, Default)]
pub(super) struct Group {
    /// By start; they do not touch.
    pub(super) open: Vec<Session>,
    pub(super) closed: Vec<Closed>,
    timer: Option<Micros>,
    stamp: u32,
    /// Whether an entry in `unsettled` stands for this group.
    queued: bool,
}

impl Group {
    pub(super) fn holds_anything(&self) -> bool {
        !self.is_empty()
    }

    fn is_empty(&self) -> bool {
        self.open.is_empty() && self.closed.is_empty()
    }
}

/// What a sub-batch does to one session.
struct Work {
    group: u32,
    /// State before the sub-batch.
    read: u32,
    write: u32,
    refold: bool,
    /// The whole sequence is in a step.
    listed: bool,
    /// A row fed the session, or its rows were arranged anew.
    changed: bool,
    /// Local index in the append update.
    local: u32,
    last_row: u32,
    old_evidence: (i64, i64),
}

/// One row's effect, for traces.
struct Step {
    row: u32,
    group: u32,
    work: u32,
    window: (Micros, Micros),
    change: Change,
    fed: bool,
}

/// How a row changed its session's sequence.
enum Change {
    /// At the end, or anywhere when the order cannot be told from the states.
    Append,
    /// Into the middle, at an index.
    Insert(usize, Item),
    /// Anew: the whole sequence after the row.
    Whole(Vec<Item>),
}

pub(super) struct SessionStore {
    gap: Micros,
    pub(super) key_set: usize,
    pub(super) fingerprint: u64,
    pub(super) members: Vec<Member>,
    pub(super) pool: Pool,
    /// Rows may be applied in any order: a row out of order needs no folding anew.
    commutes: bool,
    marker: Option<usize>,
    between: Vec<usize>,
    /// Expressions whose values pending rows keep, and their types.
    pub(super) arguments: Vec<usize>,
    pub(super) argument_types: Vec<DataType>,
    /// Fingerprint and written form of each argument.
    pub(super) argument_prints: Vec<(u64, u8)>,
    pub(super) codecs: Vec<Codec>,
    constants: Vec<(usize, ScalarValue)>,
    converter: RowConverter,
    parser: RowParser,
    pub(super) groups: Vec<Group>,
    pub(super) held: usize,
    pub(super) sessions: usize,
    timers: Vec<BinaryHeap<Reverse<(Micros, u32)>>>,
    unsettled: Vec<BinaryHeap<Reverse<(Micros, u32)>>>,
    stamp: u32,
    works: Vec<Work>,
    appended: Vec<(u32, u32)>,
    steps: Vec<Step>,
    touched: Vec<u32>,
    split: Vec<u32>,
    closing: Vec<(u32, Session, u32)>,
    drops: Vec<u32>,
    old: Option<Old>,
    pub(super) dirty: Dirty,
}

/// The parts of a new store that are not state.
pub(super) struct Shape {
    pub(super) gap: Micros,
    pub(super) key_set: usize,
    pub(super) fingerprint: u64,
    pub(super) marker: Option<usize>,
    pub(super) between: Vec<usize>,
    /// (expression, text, type)
    pub(super) arguments: Vec<(usize, String, DataType)>,
    /// Arguments that are the same for every row.
    pub(super) constants: Vec<(usize, ScalarValue)>,
}

impl SessionStore {
    pub(super) fn new(shape: Shape, members: Vec<Member>, pool: Pool) -> Result<Self, Error> {
        let codecs = shape.arguments.iter().map(|a| Codec::new(&a.2)).collect::<Result<Vec<_>, _>>()?;
        let argument_prints = shape
            .arguments
            .iter()
            .zip(&codecs)
            .map(|((_, text, ty), codec)| (fingerprint([text.as_str(), ty.to_string().as_str()]), codec.form()))
            .collect();
        let fields = shape.arguments.iter().map(|(_, _, ty)| SortField::new(ty.clone())).collect();
        let converter = RowConverter::new(fields)?;
        let parser = converter.parser();
        Ok(Self {
            gap: shape.gap,
            key_set: shape.key_set,
            fingerprint: shape.fingerprint,
            members,
            commutes: pool.commutes(),
            pool,
            marker: shape.marker,
            between: shape.between,
            constants: shape.constants,
            argument_types: shape.arguments.iter().map(|a| a.2.clone()).collect(),
            argument_prints,
            codecs,
            arguments: shape.arguments.into_iter().map(|a| a.0).collect(),
            converter,
            parser,
            groups: Vec::new(),
            held: 0,
            sessions: 0,
            timers: Vec::new(),
            unsettled: Vec::new(),
            stamp: 1,
            works: Vec::new(),
            appended: Vec::new(),
            steps: Vec::new(),
            touched: Vec::new(),
            split: Vec::new(),
            closing: Vec::new(),
            drops: Vec::new(),
            old: None,
            dirty: Dirty::default(),
        })
    }

    pub(super) fn gap(&self) -> Micros {
        self.gap
    }

    /// Applies rows (indices into the batch, ascending). `late` gets those that belong to no open session.
    pub(super) fn apply(
        &mut self,
        batch: &Batch<'_>,
        rows: &[u32],
        moves: &Moves<'_>,
        keys: &mut KeySet,
        late: &mut Vec<u32>,
    ) -> Result<(), Error> {
        let marker = self.marker.map(|m| boolean(&batch.values[m])).transpose()?;
        let masks = self.between.iter().map(|m| boolean(&batch.values[*m])).collect::<Result<Vec<_>, _>>()?;
        let log = self.members.iter().any(|m| m.query.early());
        let ids = &batch.groups[self.key_set];
        for row in rows {
            let at = *row as usize;
            let watermark = batch.before[at];
            self.due(batch.clocks[at], watermark, moves, keys);
            let fed = masks.iter().all(|m| m.is_valid(at) && m.value(at));
            let marks = marker.is_some_and(|m| m.is_valid(at) && m.value(at));
            let content = if fed { Content::New(*row) } else { Content::Silent };
            let item = Item { time: batch.times[at], position: batch.positions[at], content };
            if !self.place(ids[at], item, marks, *row, watermark, log, keys) && fed {
                late.push(*row);
            }
        }
        self.fold(batch)
    }

    /// Puts one row into a group's sessions; false when it is late.
    #[expect(clippy::too_many_arguments, reason = "a row and its circumstances")]
    fn place(
        &mut self,
        group: u32,
        item: Item,
        marks: bool,
        row: u32,
        watermark: Micros,
        log: bool,
        keys: &mut KeySet,
    ) -> bool {
        let (gap, time) = (self.gap, item.time);
        if watermark != NEVER && time <= watermark.saturating_sub(gap) {
            return false;
        }
        if self.groups.len() <= group as usize {
            self.groups.resize_with(group as usize + 1, Group::default);
        }
        let joins = |start: Micros, last: Micros, marked: bool| {
            if time > last {
                !marked && time - last < gap
            } else if time < start {
                !marks && start - time < gap
            } else {
                true
            }
        };
        let g = &self.groups[group as usize];
        if g.closed.iter().any(|c| joins(c.start, c.last, c.marked)) {
            return false;
        }
        let next = g.open.partition_point(|s| s.start <= time);
        let before = next.checked_sub(1).filter(|i| joins(g.open[*i].start, g.open[*i].last, g.open[*i].marked));
        let inside = before.is_some_and(|i| time <= g.open[i].last);
        let after = (!inside && next < g.open.len())
            .then_some(next)
            .filter(|i| joins(g.open[*i].start, g.open[*i].last, g.open[*i].marked));
        let end = match (before, after) {
            _ if marks => time,
            (_, Some(b)) => g.open[b].end(gap),
            (Some(a), None) if inside => g.open[a].end(gap),
            _ => time.saturating_add(gap),
        };
        if watermark != NEVER && end <= watermark {
            return false;
        }
        if g.is_empty() {
            keys.hold(group);
            self.held += 1;
        }
        self.touch_group(group);
        let fed = !matches!(item.content, Content::Silent);
        let copy = item.clone();
        // where the row went; `None`: the sequence was made anew
        let (place, at) = match (before, after) {
            (None, None) => {
                // nearly every key has one session: no room for more
                self.groups[group as usize].open.reserve_exact(1);
                let session = Session {
                    start: time,
                    last: time,
                    marked: marks,
                    total: NO_SLOT,
                    items: vec![item],
                    sealed: 0,
                    work: (0, 0),
                };
                self.groups[group as usize].open.insert(next, session);
                self.sessions += 1;
                (next, Some(0))
            }
            (Some(a), Some(b)) => {
                self.absorb(group, a, b, watermark);
                self.groups[group as usize].open[a].insert(item, watermark);
                (a, None)
            }
            (None, Some(b)) => {
                let s = &mut self.groups[group as usize].open[b];
                s.start = time;
                (b, Some(s.insert(item, watermark)))
            }
            (Some(a), None) => {
                let s = &mut self.groups[group as usize].open[a];
                if marks && time < s.last {
                    self.split_at(group, a, item, watermark, row, log);
                    (a, None)
                } else {
                    let at = s.insert(item, watermark);
                    s.last = s.last.max(time);
                    s.marked |= marks;
                    (a, Some(at))
                }
            }
        };
        let work = self.work(group, place, row);
        let s = &self.groups[group as usize].open[place];
        let window = (s.start, s.end(gap));
        let last = at.is_some_and(|at| at + 1 == s.items.len());
        let refold = at.is_none() || !(last || self.commutes);
        let w = &mut self.works[work as usize];
        let known = w.listed;
        if fed || refold {
            w.last_row = row;
            w.changed = true;
        }
        w.refold |= refold;
        w.listed |= refold;
        if !refold && fed {
            self.appended.push((row, work));
        }
        // a sequence made anew once in this sub-batch is followed row by row from then on
        if log && (fed || refold || known) {
            let change = match at {
                Some(at) if known => Change::Insert(at, copy),
                Some(_) if !refold => Change::Append,
                _ => Change::Whole(s.items.clone()),
            };
            self.steps.push(Step { row, group, work, window, change, fed: fed || refold });
        }
        self.arm(group, keys);
        true
    }

    fn touch_group(&mut self, group: u32) {
        let g = &mut self.groups[group as usize];
        if g.stamp != self.stamp {
            g.stamp = self.stamp;
            self.touched.push(group);
        }
        // also when already touched: the group may have been let go and taken up again in between
        self.dirty.touch(group);
    }

    /// This sub-batch's work on a session, begun if it is the first.
    fn work(&mut self, group: u32, place: usize, row: u32) -> u32 {
        let s = &mut self.groups[group as usize].open[place];
        if s.work.0 == self.stamp {
            return s.work.1;
        }
        let index = self.works.len() as u32;
        s.work = (self.stamp, index);
        let old_evidence = if s.total == NO_SLOT { NOTHING } else { self.pool.evidence(s.total) };
        self.works.push(Work {
            group,
            read: s.total,
            write: NO_SLOT,
            refold: false,
            changed: false,
            listed: false,
            local: NONE,
            last_row: row,
            old_evidence,
        });
        index
    }

    /// Merges session b into session a, its neighbour before it.
    fn absorb(&mut self, group: u32, a: usize, b: usize, watermark: Micros) {
        let late = self.groups[group as usize].open.remove(b);
        self.sessions -= 1;
        if late.work.0 == self.stamp {
            self.works[late.work.1 as usize].refold = true;
        }
        let shared = late.settled();
        if late.total != NO_SLOT && !shared {
            self.drops.push(late.total);
        }
        let early = &mut self.groups[group as usize].open[a];
        early.seal(watermark);
        // the total is no longer all there is; a state item keeps its own slot
        if early.items.len() == early.sealed {
            early.sealed += late.sealed;
        }
        early.items.extend(late.items);
        early.last = late.last;
        early.marked = late.marked;
        early.seal(watermark);
    }

    /// Ends session a at a marker before its last row; the later rows become a session of their own.
    fn split_at(&mut self, group: u32, a: usize, marker: Item, watermark: Micros, row: u32, log: bool) {
        let gap = self.gap;
        let s = &mut self.groups[group as usize].open[a];
        s.seal(watermark);
        let at = s.sealed + s.items[s.sealed..].partition_point(|i| i.time <= marker.time);
        let rest: Vec<Item> = s.items.split_off(at);
        let time = marker.time;
        s.items.push(marker);
        let (last, marked) = (s.last, s.marked);
        s.last = time;
        s.marked = true;
        s.seal(watermark);
        let start = rest.first().map_or(last, |i| i.time);
        let session = Session { start, last, marked, total: NO_SLOT, items: rest, sealed: 0, work: (0, 0) };
        let window = (start, session.end(gap));
        let items = session.items.clone();
        self.groups[group as usize].open.insert(a + 1, session);
        self.sessions += 1;
        let work = self.work(group, a + 1, row);
        self.works[work as usize].refold = true;
        self.works[work as usize].changed = true;
        self.works[work as usize].last_row = row;
        if log {
            self.split.push(group);
            self.works[work as usize].listed = true;
            self.steps.push(Step { row, group, work, window, change: Change::Whole(items), fed: true });
        }
    }

    fn due_of(&self, group: &Group) -> Option<Micros> {
        let open = group.open.iter().map(|s| s.end(self.gap)).min();
        let closed = group.closed.iter().map(|c| c.end.saturating_add(self.gap)).min();
        match (open, closed) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    pub(super) fn arm(&mut self, group: u32, keys: &KeySet) {
        let due = self.due_of(&self.groups[group as usize]);
        let g = &mut self.groups[group as usize];
        if let Some(due) = due
            && g.timer.is_none_or(|t| due < t)
        {
            g.timer = Some(due);
            push(&mut self.timers, keys.clock(group), due, group);
        }
    }

    /// Takes out the sessions of a clock that end at or before `bound`, and forgets closed bounds one gap later.
    fn due(&mut self, clock: u32, bound: Micros, moves: &Moves<'_>, keys: &mut KeySet) {
        let Some(heap) = self.timers.get(clock as usize) else { return };
        if heap.peek().is_none_or(|Reverse((time, _))| *time > bound) {
            return;
        }
        let mut heap = std::mem::take(&mut self.timers[clock as usize]);
        while let Some(Reverse((time, group))) = heap.peek().copied() {
            if time > bound {
                break;
            }
            heap.pop();
            if self.groups[group as usize].timer != Some(time) {
                continue;
            }
            let gap = self.gap;
            let g = &mut self.groups[group as usize];
            g.timer = None;
            let mut at = 0;
            while at < g.open.len() {
                let end = g.open[at].end(gap);
                if end > bound {
                    at += 1;
                    continue;
                }
                let session = g.open.remove(at);
                self.sessions -= 1;
                g.closed.reserve_exact(1);
                g.closed.push(Closed { start: session.start, last: session.last, end, marked: session.marked });
                self.closing.push((group, session, moves.row(clock, end)));
                self.dirty.touch(group);
            }
            let until = moves.watermark(clock).min(bound);
            let known = g.closed.len();
            g.closed.retain(|c| c.end.saturating_add(gap) > until);
            if g.closed.len() != known {
                self.dirty.touch(group);
            }
            if g.is_empty() {
                g.queued = false;
                keys.release(group);
                self.held -= 1;
                let print = self.fingerprint;
                self.dirty.gone(group, || group_key(print, keys.bytes_of(group)));
            } else if let Some(due) = self.due_of(&self.groups[group as usize]) {
                // after close_all nothing is due again before the watermark it leaves
                self.groups[group as usize].timer = Some(due);
                if due > bound {
                    heap.push(Reverse((due, group)));
                } else {
                    self.timers[clock as usize].push(Reverse((due, group)));
                }
            }
        }
        heap.append(&mut self.timers[clock as usize]);
        self.timers[clock as usize] = heap;
    }

    /// Computes the totals of the sessions touched in this sub-batch.
    fn fold(&mut self, batch: &Batch<'_>) -> Result<(), Error> {
        if self.works.is_empty() {
            return Ok(());
        }
        // appended rows of sessions that were folded anew later in the sub-batch are part of their sequence
        let (mut rows, mut locals, mut read, mut write) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut works_of: Vec<u32> = Vec::new();
        for (row, work) in std::mem::take(&mut self.appended) {
            if self.works[work as usize].refold {
                continue;
            }
            if self.works[work as usize].local == NONE {
                self.works[work as usize].local = works_of.len() as u32;
                works_of.push(work);
            }
            rows.push(row);
            locals.push(self.works[work as usize].local as usize);
        }
        let sessions = self.current();
        for work in &works_of {
            let Some(s) = find(&mut self.groups, &mut self.closing, &sessions, *work) else {
                return Err(Error::State("a session vanished within a batch".into()));
            };
            let w = &mut self.works[*work as usize];
            // a settled state is also an item: it stays as it is
            let fresh = s.total == NO_SLOT
                || s.items.iter().any(|i| matches!(i.content, Content::State(slot) if slot == s.total));
            w.write = if fresh { self.pool.alloc() } else { s.total };
            s.total = w.write;
            read.push(w.read);
            write.push(w.write);
            if w.read != w.write {
                self.pool.set_evidence(w.write, w.old_evidence);
            }
        }
        for (row, local) in rows.iter().zip(&locals) {
            let position = batch.positions[*row as usize];
            self.pool.witness(write[*local], (position, position));
        }
        if !rows.is_empty() {
            let keep = self.members.iter().any(|m| m.query.early());
            let feed = Feed { rows: &rows, locals: &locals, len: batch.len, values: batch.values };
            self.old = self.pool.update(&read, &write, &feed, keep)?;
        }
        self.refold_all(batch, &sessions)
    }

    fn refold_all(&mut self, batch: &Batch<'_>, sessions: &[Place]) -> Result<(), Error> {
        let mut jobs: Vec<(u32, Vec<Item>)> = Vec::new();
        for work in 0..self.works.len() as u32 {
            if !self.works[work as usize].refold {
                continue;
            }
            // absorbed sessions have no place any more
            let Some(s) = find(&mut self.groups, &mut self.closing, sessions, work) else { continue };
            if s.total != NO_SLOT
                && !s.items.iter().any(|i| matches!(i.content, Content::State(slot) if slot == s.total))
            {
                self.drops.push(s.total);
            }
            if s.items.iter().all(|i| matches!(i.content, Content::Silent)) {
                s.total = NO_SLOT;
                continue;
            }
            s.total = self.pool.alloc();
            jobs.push((s.total, s.items.clone()));
        }
        self.refold(batch, jobs)
    }

    /// New state of each slot = its items in order: states are merged, rows are applied.
    fn refold(&mut self, batch: &Batch<'_>, mut jobs: Vec<(u32, Vec<Item>)>) -> Result<(), Error> {
        if jobs.is_empty() {
            return Ok(());
        }
        let mut new: Vec<u32> = jobs
            .iter()
            .flat_map(|(_, items)| items.iter())
            .filter_map(|i| if let Content::New(row) = i.content { Some(row) } else { None })
            .collect();
        new.sort_unstable();
        new.dedup();
        let bytes = self.encode(batch, &new)?;
        for (_, items) in &mut jobs {
            items.retain(|i| !matches!(i.content, Content::Silent));
            for item in items {
                if let Content::New(row) = item.content
                    && let Ok(at) = new.binary_search(&row)
                {
                    item.content = Content::Old(Arc::clone(&bytes[at]));
                }
            }
        }
        let mut next: Vec<usize> = vec![0; jobs.len()];
        let mut filled: Vec<bool> = vec![false; jobs.len()];
        loop {
            let (mut parts, mut of, mut write) = (Vec::new(), Vec::new(), Vec::new());
            for (j, (slot, items)) in jobs.iter().enumerate() {
                let run: Vec<u32> = items[next[j]..]
                    .iter()
                    .map_while(|i| if let Content::State(s) = i.content { Some(s) } else { None })
                    .collect();
                if run.is_empty() {
                    continue;
                }
                next[j] += run.len();
                if filled[j] {
                    parts.push(*slot);
                    of.push(write.len());
                }
                parts.extend(&run);
                of.extend(run.iter().map(|_| write.len()));
                filled[j] = true;
                write.push(*slot);
            }
            let merged = !write.is_empty();
            self.pool.merge(&parts, &of, &write)?;
            let (mut rows, mut locals, mut read, mut write) =
                (Vec::<Arc<[u8]>>::new(), Vec::new(), Vec::new(), Vec::new());
            for (j, (slot, items)) in jobs.iter().enumerate() {
                let from = rows.len();
                for item in &items[next[j]..] {
                    let Content::Old(bytes) = &item.content else { break };
                    rows.push(Arc::clone(bytes));
                    locals.push(write.len());
                    self.pool.witness(*slot, (item.position, item.position));
                }
                if rows.len() > from {
                    next[j] += rows.len() - from;
                    read.push(if filled[j] { *slot } else { NO_SLOT });
                    write.push(*slot);
                    filled[j] = true;
                }
            }
            if !write.is_empty() {
                self.update_old(batch, &rows, &locals, &read, &write)?;
            } else if !merged {
                return Ok(());
            }
        }
    }

    fn update_old(
        &mut self,
        batch: &Batch<'_>,
        rows: &[Arc<[u8]>],
        locals: &[usize],
        read: &[u32],
        write: &[u32],
    ) -> Result<(), Error> {
        let columns = self.converter.convert_rows(rows.iter().map(|r| self.parser.parse(r)))?;
        let mut values: Vec<ArrayRef> = batch.values.to_vec();
        for (argument, column) in self.arguments.iter().zip(columns) {
            values[*argument] = column;
        }
        for (argument, value) in &self.constants {
            values[*argument] = value.to_array_of_size(rows.len())?;
        }
        let all: Vec<u32> = (0..rows.len() as u32).collect();
        let feed = Feed { rows: &all, locals, len: rows.len(), values: &values };
        self.pool.update(read, write, &feed, false)?;
        Ok(())
    }

    /// Rows of the batch as bytes.
    fn encode(&self, batch: &Batch<'_>, rows: &[u32]) -> Result<Vec<Arc<[u8]>>, Error> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let columns = self.arguments.iter().map(|a| taken(&batch.values[*a], rows)).collect::<Result<Vec<_>, _>>()?;
        Ok(self.converter.convert_columns(&columns)?.iter().map(|r| Arc::from(r.as_ref())).collect())
    }

    /// Where each work's session is now.
    fn current(&self) -> Vec<Place> {
        let mut places = vec![Place::Gone; self.works.len()];
        for group in &self.touched {
            for (i, s) in self.groups[*group as usize].open.iter().enumerate() {
                if s.work.0 == self.stamp {
                    places[s.work.1 as usize] = Place::Open(*group, i);
                }
            }
        }
        for (i, (_, s, _)) in self.closing.iter().enumerate() {
            if s.work.0 == self.stamp {
                places[s.work.1 as usize] = Place::Closing(i);
            }
        }
        places
    }

    /// Results of the touched sessions for queries whose value only rises.
    pub(super) fn early(
        &mut self,
        keys: &KeySet,
        batch: &Batch<'_>,
        errors: &mut u64,
    ) -> Result<Vec<QueryRows>, Error> {
        let members: Vec<&Member> = self.members.iter().filter(|m| m.query.early()).collect();
        if self.works.is_empty() || members.is_empty() {
            return Ok(Vec::new());
        }
        let mut evals = Evals::default();
        for (work, place) in self.current().into_iter().enumerate() {
            let s = match place {
                Place::Open(group, i) => &self.groups[group as usize].open[i],
                Place::Closing(i) => &self.closing[i].1,
                Place::Gone => continue,
            };
            if s.total != NO_SLOT && self.works[work].changed {
                let w = &self.works[work];
                let from = evals.begin();
                evals.parts.push(s.total);
                evals.end(w.group, w.last_row, (s.start, s.end(self.gap)), from);
            }
        }
        Ok(emit(&mut self.pool, keys, &members, &evals, Some(batch.values), errors)?
            .into_iter()
            .map(|e| e.rows)
            .collect())
    }

    /// Groups whose sessions were split in the last sub-batch: an earlier value may have been higher.
    pub(super) fn must_trace(&self) -> &[u32] {
        &self.split
    }

    /// The per-row history of some groups in the last sub-batch, for one member.
    pub(super) fn trace(
        &mut self,
        member: usize,
        picks: &[u32],
        keys: &KeySet,
        batch: &Batch<'_>,
        errors: &mut u64,
    ) -> Result<Vec<Trace>, Error> {
        let mut rounds: Vec<Vec<usize>> = Vec::new();
        let mut seen: BTreeMap<u32, usize> = BTreeMap::new();
        for (i, step) in self.steps.iter().enumerate() {
            if picks.binary_search(&step.group).is_ok() {
                let round = seen.entry(step.group).or_default();
                if rounds.len() <= *round {
                    rounds.push(Vec::new());
                }
                rounds[*round].push(i);
                *round += 1;
            }
        }
        let steps = std::mem::take(&mut self.steps);
        let old = self.old.take();
        // one scratch slot per work; absent until the first step
        let mut temps: BTreeMap<u32, (u32, bool)> = BTreeMap::new();
        // sequences followed row by row
        let mut lists: BTreeMap<u32, Vec<Item>> = BTreeMap::new();
        let mut results: Vec<QueryRows> = Vec::new();
        for round in rounds {
            let (mut rows, mut locals, mut read, mut write) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
            let mut jobs = Vec::new();
            let mut evals = Evals::default();
            for i in round {
                let step = &steps[i];
                let w = &self.works[step.work as usize];
                let (last_read, evidence, append) = (w.read, w.old_evidence, (!w.refold).then_some(w.local));
                let (slot, filled) = match temps.get(&step.work) {
                    Some(known) => *known,
                    None => {
                        let slot = self.pool.alloc();
                        let filled = match (append, &old) {
                            // its total was overwritten, unless it was written elsewhere
                            (Some(local), Some(old)) => self.pool.revive(old, local as usize, slot)?,
                            _ if last_read != NO_SLOT => {
                                self.pool.merge(&[last_read], &[0], &[slot])?;
                                true
                            }
                            _ => false,
                        };
                        self.pool.set_evidence(slot, evidence);
                        (slot, filled)
                    }
                };
                // following a sequence, the state is folded from it; else the row is added to the state
                let list = match &step.change {
                    Change::Append => None,
                    Change::Whole(items) => Some(items.clone()),
                    Change::Insert(at, item) => {
                        let mut items = lists.remove(&step.work).unwrap_or_default();
                        items.insert((*at).min(items.len()), item.clone());
                        Some(items)
                    }
                };
                match list {
                    Some(items) => {
                        let silent = items.iter().all(|i| matches!(i.content, Content::Silent));
                        self.pool.set_evidence(slot, NOTHING);
                        if !silent && step.fed {
                            jobs.push((slot, items.clone()));
                        }
                        lists.insert(step.work, items);
                        if silent || !step.fed {
                            temps.insert(step.work, (slot, false));
                            continue;
                        }
                    }
                    None => {
                        let position = batch.positions[step.row as usize];
                        self.pool.witness(slot, (position, position));
                        rows.push(step.row);
                        locals.push(write.len());
                        read.push(if filled { slot } else { NO_SLOT });
                        write.push(slot);
                    }
                }
                temps.insert(step.work, (slot, true));
                let from = evals.begin();
                evals.parts.push(slot);
                evals.end(step.group, step.row, step.window, from);
            }
            if !rows.is_empty() {
                let feed = Feed { rows: &rows, locals: &locals, len: batch.len, values: batch.values };
                self.pool.update(&read, &write, &feed, false)?;
            }
            self.refold(batch, jobs)?;
            let one = [&self.members[member]];
            results.extend(
                emit(&mut self.pool, keys, &one, &evals, Some(batch.values), errors)?.into_iter().map(|e| e.rows),
            );
        }
        for (slot, _) in temps.into_values() {
            self.pool.release(slot);
        }
        self.steps = steps;
        self.old = old;
        by_group(&results, picks)
    }

    /// Closes what the moved clocks have passed, and puts the touched sessions in order for the next sub-batch.
    pub(super) fn close(
        &mut self,
        moves: &Moves<'_>,
        batch: &Batch<'_>,
        keys: &mut KeySet,
        errors: &mut u64,
        closed: &mut Vec<QueryRows>,
        empty: &mut Vec<Empty>,
    ) -> Result<(), Error> {
        for clock in moves.clocks() {
            self.due(clock, moves.session_bound(clock), moves, keys);
        }
        let mut evals = Evals::default();
        for (group, s, at) in &self.closing {
            if s.total != NO_SLOT {
                let from = evals.begin();
                evals.parts.push(s.total);
                evals.end(*group, *at, (s.start, s.end(self.gap)), from);
            }
        }
        evals.sort(keys);
        let members: Vec<&Member> = self.members.iter().collect();
        for (i, e) in emit(&mut self.pool, keys, &members, &evals, None, errors)?.into_iter().enumerate() {
            if let Some(kept) = &e.kept {
                let missing: Vec<Eval> = (0..evals.list.len())
                    .filter(|n| kept.binary_search(&(*n as u32)).is_err())
                    .map(|n| evals.list[n])
                    .collect();
                empty.extend(emit::empties(keys, members[i], &missing)?);
            }
            if !e.rows.at.is_empty() {
                closed.push(e.rows);
            }
        }
        for (_, s, _) in std::mem::take(&mut self.closing) {
            for slot in owned(&s) {
                self.pool.release(slot);
            }
        }
        self.tidy(batch, moves, keys)?;
        for slot in std::mem::take(&mut self.drops) {
            self.pool.release(slot);
        }
        self.works.clear();
        self.appended.clear();
        self.steps.clear();
        self.split.clear();
        self.touched.clear();
        self.old = None;
        self.stamp += 1;
        Ok(())
    }

    /// Settles what the watermark has passed and turns rows of the batch that stay pending into bytes.
    fn tidy(&mut self, batch: &Batch<'_>, moves: &Moves<'_>, keys: &KeySet) -> Result<(), Error> {
        for clock in moves.clocks() {
            let Some(heap) = self.unsettled.get_mut(clock as usize) else { continue };
            let bound = moves.watermark(clock);
            let mut due = Vec::new();
            while let Some(Reverse((time, group))) = heap.peek().copied() {
                if time > bound {
                    break;
                }
                heap.pop();
                due.push(group);
            }
            for group in due {
                let g = &mut self.groups[group as usize];
                g.queued = false;
                if !g.open.is_empty() && g.stamp != self.stamp {
                    g.stamp = self.stamp;
                    self.touched.push(group);
                }
            }
        }
        let mut pending: Vec<u32> = Vec::new();
        let mut long: Vec<(u32, usize)> = Vec::new();
        for group in &self.touched {
            let g = &mut self.groups[*group as usize];
            let clock = keys.clock(*group);
            let watermark = moves.watermark(clock);
            let mut wait: Option<Micros> = None;
            for (i, s) in g.open.iter_mut().enumerate() {
                s.seal(watermark);
                if s.sealed == s.items.len() {
                    settle(s, &mut self.drops);
                    continue;
                }
                wait = wait.max(Some(s.last));
                if s.items.len() > LONG && s.sealed * 2 > s.items.len() {
                    long.push((*group, i));
                }
                pending.extend(
                    s.items.iter().filter_map(|i| if let Content::New(row) = i.content { Some(row) } else { None }),
                );
            }
            if let Some(last) = wait
                && !g.queued
            {
                g.queued = true;
                push(&mut self.unsettled, clock, last, *group);
            }
        }
        pending.sort_unstable();
        pending.dedup();
        let bytes = self.encode(batch, &pending)?;
        for group in &self.touched {
            for s in &mut self.groups[*group as usize].open {
                for item in &mut s.items {
                    if let Content::New(row) = item.content
                        && let Ok(at) = pending.binary_search(&row)
                    {
                        item.content = Content::Old(Arc::clone(&bytes[at]));
                    }
                }
            }
        }
        self.shorten(batch, long)
    }

    /// Folds the passed part of long sequences to one state.
    fn shorten(&mut self, batch: &Batch<'_>, long: Vec<(u32, usize)>) -> Result<(), Error> {
        let mut jobs = Vec::new();
        for (group, i) in long {
            let s = &mut self.groups[group as usize].open[i];
            let rest = s.items.split_off(s.sealed);
            let passed = std::mem::replace(&mut s.items, rest);
            s.sealed = 0;
            let time = passed.last().map_or(s.start, |i| i.time);
            for item in &passed {
                if let Content::State(slot) = item.content
                    && slot != s.total
                {
                    self.drops.push(slot);
                }
            }
            if passed.iter().any(|i| !matches!(i.content, Content::Silent)) {
                let slot = self.pool.alloc();
                s.items.insert(0, Item { time, position: 0, content: Content::State(slot) });
                s.sealed = 1;
                jobs.push((slot, passed));
            }
        }
        self.refold(batch, jobs)
    }

    /// Takes back a group from a checkpoint.
    pub(super) fn restore_group(&mut self, group: u32, open: Vec<Session>, closed: Vec<Closed>, keys: &mut KeySet) {
        if self.groups.len() <= group as usize {
            self.groups.resize_with(group as usize + 1, Group::default);
        }
        let g = &mut self.groups[group as usize];
        if g.is_empty() && !(open.is_empty() && closed.is_empty()) {
            keys.hold(group);
            self.held += 1;
        }
        self.sessions += open.len();
        g.open = open;
        g.closed = closed;
        if !g.open.is_empty() {
            g.queued = true;
            let last = g.open.iter().map(|s| s.last).max().unwrap_or(0);
            push(&mut self.unsettled, keys.clock(group), last, group);
        }
        self.dirty.stored(group);
        self.arm(group, keys);
    }

    /// The row format of pending rows.
    pub(super) fn argument_columns(&self, rows: &[Arc<[u8]>]) -> Result<Vec<ArrayRef>, Error> {
        Ok(self.converter.convert_rows(rows.iter().map(|r| self.parser.parse(r)))?)
    }

    /// Pending rows from their columns.
    pub(super) fn argument_rows(&self, columns: &[ArrayRef]) -> Result<Vec<Arc<[u8]>>, Error> {
        Ok(self.converter.convert_columns(columns)?.iter().map(|r| Arc::from(r.as_ref())).collect())
    }

    /// A session as restored; its total is computed by [`SessionStore::retotal`].
    pub(super) fn restored(start: Micros, last: Micros, marked: bool, items: Vec<Item>, sealed: usize) -> Session {
        Session { start, last, marked, total: NO_SLOT, items, sealed, work: (0, 0) }
    }

    /// Computes the totals of restored sessions from their items.
    pub(super) fn retotal(&mut self, open: &mut [Session], values: &[ArrayRef]) -> Result<(), Error> {
        let mut jobs = Vec::new();
        for s in open {
            if let [Item { content: Content::State(slot), .. }] = s.items.as_slice() {
                s.total = *slot;
            } else if s.items.iter().any(|i| !matches!(i.content, Content::Silent)) {
                s.total = self.pool.alloc();
                jobs.push((s.total, s.items.clone()));
            }
        }
        let batch =
            Batch { len: 0, values, times: &[], clocks: &[], before: &[], finished: &[], positions: &[], groups: &[] };
        self.refold(&batch, jobs)
    }
}

/// Where a work's session is.
#[derive(Debug, Clone, Copy)]
enum Place {
    Open(u32, usize),
    Closing(usize),
    Gone,
}

fn find<'a>(
    groups: &'a mut [Group],
    closing: &'a mut [(u32, Session, u32)],
    places: &[Place],
    work: u32,
) -> Option<&'a mut Session> {
    match places[work as usize] {
        Place::Open(group, i) => groups[group as usize].open.get_mut(i),
        Place::Closing(i) => closing.get_mut(i).map(|c| &mut c.1),
        Place::Gone => None,
    }
}

/// Every item is passed: the total is all there is to keep.
fn settle(s: &mut Session, drops: &mut Vec<u32>) {
    if s.settled() {
        return;
    }
    for item in &s.items {
        if let Content::State(slot) = item.content
            && slot != s.total
        {
            drops.push(slot);
        }
    }
    s.items.clear();
    s.items.shrink_to(4);
    s.sealed = 0;
    if s.total != NO_SLOT {
        s.items.push(Item { time: s.last, position: 0, content: Content::State(s.total) });
        s.sealed = 1;
    }
}

/// Every slot a session owns, once.
fn owned(s: &Session) -> Vec<u32> {
    let mut slots: Vec<u32> =
        s.items.iter().filter_map(|i| if let Content::State(slot) = i.content { Some(slot) } else { None }).collect();
    if s.total != NO_SLOT && !slots.contains(&s.total) {
        slots.push(s.total);
    }
    slots
}

fn push(heaps: &mut Vec<BinaryHeap<Reverse<(Micros, u32)>>>, clock: u32, time: Micros, group: u32) {
    if heaps.len() <= clock as usize {
        heaps.resize_with(clock as usize + 1, BinaryHeap::new);
    }
    heaps[clock as usize].push(Reverse((time, group)));
}

/// Name of a group in a checkpoint.
pub(super) fn group_key(store: u64, key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(9 + key.len());
    out.push(b's');
    out.extend_from_slice(&store.to_be_bytes());
    out.extend_from_slice(key);
    out
}
