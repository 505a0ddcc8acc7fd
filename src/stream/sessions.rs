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

use crate::stream::Error;
use crate::stream::budget::Dark;
use crate::stream::checkpoint::Dirty;
use crate::stream::compact::Codec;
use crate::stream::emit::{self, Eval, Evals, Member, emit, taken};
use crate::stream::engine::{Batch, Missed, Moves};
use crate::stream::keys::{KeySet, NONE};
use crate::stream::output::{Empty, QueryRows, Trace};
use crate::stream::panes::by_group;
use crate::stream::pool::{Feed, NO_SLOT, NOTHING, Old, Pool, boolean};
use crate::stream::query::fingerprint;
use crate::stream::time::NEVER;

mod fold;
mod place;
mod report;

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

    /// Puts a row where it belongs: after what the watermark has passed, by time. Says where that is. Of more than `most` rows
    /// after the watermark, the first half is taken as passed: no row may come between them any more, and no marker.
    fn insert(&mut self, item: Item, watermark: Micros, most: usize) -> usize {
        self.seal(watermark);
        let pending = self.items.len() - self.sealed;
        if pending >= most {
            self.sealed += pending.div_ceil(2);
        }
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

/// Bounds of the closed sessions of a key, kept one gap longer: a row that would join one is late. One span stands for all of
/// them: whatever lies between two closed sessions would itself end before the watermark, so it is late too. A run that ends
/// again and again must not leave a trail.
#[derive(Debug, Clone, Copy)]
pub(super) struct Closed {
    pub(super) start: Micros,
    pub(super) last: Micros,
    pub(super) end: Micros,
    /// The last of them ended at a marker.
    pub(super) marked: bool,
}

impl Closed {
    /// Both, as one span.
    pub(super) fn and(self, other: Option<Self>) -> Self {
        let Some(other) = other else { return self };
        let later = if other.last > self.last { other } else { self };
        Self { start: self.start.min(other.start), ..later }
    }
}

#[derive(Debug, Default)]
pub(super) struct Group {
    /// By start; they do not touch.
    pub(super) open: Vec<Session>,
    pub(super) closed: Option<Closed>,
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
        self.open.is_empty() && self.closed.is_none()
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
    /// The most rows after the watermark that a session keeps apart.
    most_pending: usize,
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
    pub(super) most_pending: usize,
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
            most_pending: shape.most_pending,
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

    /// Whether nothing of a clock is due, nor to be settled, up to `watermark`.
    pub(super) fn is_quiet(&self, clock: u32, watermark: Micros) -> bool {
        [&self.timers, &self.unsettled].iter().all(|heaps| {
            let next = heaps.get(clock as usize).and_then(BinaryHeap::peek);
            next.is_none_or(|Reverse((time, _))| *time > watermark)
        })
    }

    /// Applies rows (indices into the batch, ascending). `missed` gets those that belong to no open session.
    pub(super) fn apply(
        &mut self,
        batch: &Batch<'_>,
        rows: &[u32],
        moves: &Moves<'_>,
        keys: &mut KeySet,
        missed: &mut Missed,
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
            if !self.place(ids[at], item, marks, *row, watermark, log, keys) {
                let place = if fed { &mut missed.late } else { &mut missed.unused };
                place.push(*row);
            }
        }
        self.fold(batch)
    }

    /// Takes back a group from a checkpoint.
    pub(super) fn restore_group(&mut self, group: u32, open: Vec<Session>, closed: Option<Closed>, keys: &mut KeySet) {
        if self.groups.len() <= group as usize {
            self.groups.resize_with(group as usize + 1, Group::default);
        }
        let g = &mut self.groups[group as usize];
        if g.is_empty() && !(open.is_empty() && closed.is_none()) {
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
