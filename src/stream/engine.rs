//! The engine: several queries over one ordered input.
//!
//! A push evaluates every distinct expression once, interns the keys once per key set, walks the rows once for watermarks, and
//! hands each store its rows. A batch is processed whole and windows close at its end; it is cut only before a row that would
//! change a pane of a window which closed earlier in the batch, so results do not depend on how the input was cut.

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, RecordBatch, new_empty_array};
use datafusion::arrow::buffer::BooleanBuffer;
use datafusion::arrow::datatypes::{DataType, SchemaRef, TimestampMicrosecondType};
use datafusion::common::{Column, ScalarValue};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Literal;

use crate::clock::Micros;

use super::budget::{Budget, Dark, Span};
use super::emit::{Member, evaluate};
use super::keys::{KeySet, clock_text};
use super::output::{Late, NO_ROW, Output, QueryRows, QueryStats, Stats, Watch};
use super::panes::PaneStore;
use super::persist::{Layout, Restoring};
use super::pool::{Aggregate, Pool, boolean};
use super::query::{Expression, Query, fingerprint};
use super::sessions::{SessionStore, Shape};
use super::time::{Clocks, NEVER, closed_until};
use super::window::{FAR, Grid, Window};
use super::{Error, Settings};

/// Rough bytes of a row that a session keeps until the watermark has passed it.
const PENDING_ROW: usize = 64;

/// A batch as the stores see it. Per row unless said otherwise.
pub(super) struct Batch<'a> {
    pub(super) len: usize,
    /// The engine's expressions.
    pub(super) values: &'a [ArrayRef],
    pub(super) times: &'a [Micros],
    pub(super) clocks: &'a [u32],
    /// Watermark of the row's clock before the row.
    pub(super) before: &'a [Micros],
    /// Per clock: see `Clock::finished`.
    pub(super) finished: &'a [Micros],
    pub(super) positions: &'a [i64],
    /// Per key set: the row's group.
    pub(super) groups: &'a [Vec<u32>],
    pub(super) dark: Dark<'a>,
}

/// Rows that a store did not take, ascending.
#[derive(Debug, Clone, Default)]
pub(super) struct Missed {
    /// Too late for every window they would feed.
    pub(super) late: Vec<u32>,
    /// In no window, or feeding none.
    pub(super) unused: Vec<u32>,
}

/// How clocks moved in a sub-batch.
pub(super) struct Moves<'a> {
    moved: &'a [(u32, Vec<(Micros, u32)>)],
    finished: &'a [Micros],
    /// Per clock: the watermark after the sub-batch.
    now: &'a [Micros],
    all: bool,
    pub(super) dark: Dark<'a>,
}

impl Moves<'_> {
    pub(super) fn clocks(&self) -> impl Iterator<Item = u32> + '_ {
        self.moved.iter().map(|(clock, _)| *clock)
    }

    /// The clock's watermark after the sub-batch.
    pub(super) fn watermark(&self, clock: u32) -> Micros {
        self.now[clock as usize]
    }

    /// Windows of length `size` that end at or before this are closed now.
    pub(super) fn bound(&self, clock: u32, size: Micros) -> Micros {
        if self.all {
            return Micros::MAX - 1;
        }
        closed_until(self.now[clock as usize], self.finished[clock as usize], size)
    }

    /// Sessions that end at or before this are closed now.
    pub(super) fn session_bound(&self, clock: u32) -> Micros {
        if self.all { Micros::MAX - 1 } else { self.now[clock as usize] }
    }

    /// The row that moved the watermark to or past `end`.
    pub(super) fn row(&self, clock: u32, end: Micros) -> u32 {
        let steps = self.moved.binary_search_by_key(&clock, |(c, _)| *c).map_or(&[][..], |i| &self.moved[i].1);
        steps.get(steps.partition_point(|(w, _)| *w < end)).map_or(NO_ROW, |(_, row)| *row)
    }
}

/// State of the queries with one key set, window and filter.
pub(super) enum Store {
    Panes(Box<PaneStore>),
    Sessions(Box<SessionStore>),
}

impl Store {
    pub(super) fn key_set(&self) -> usize {
        match self {
            Self::Panes(s) => s.key_set,
            Self::Sessions(s) => s.key_set,
        }
    }

    pub(super) fn fingerprint(&self) -> u64 {
        match self {
            Self::Panes(s) => s.fingerprint,
            Self::Sessions(s) => s.fingerprint,
        }
    }

    pub(super) fn members_mut(&mut self) -> &mut [Member] {
        match self {
            Self::Panes(s) => &mut s.members,
            Self::Sessions(s) => &mut s.members,
        }
    }

    pub(super) fn members(&self) -> &[Member] {
        match self {
            Self::Panes(s) => &s.members,
            Self::Sessions(s) => &s.members,
        }
    }

    /// No row has state here longer than this after its time.
    fn hold(&self) -> Micros {
        match self {
            Self::Panes(s) if s.hop => s.grid.size.saturating_add(s.grid.slide),
            Self::Panes(s) => s.grid.size,
            Self::Sessions(s) => s.gap().saturating_mul(2),
        }
    }

    fn pool(&self) -> &Pool {
        match self {
            Self::Panes(s) => &s.pool,
            Self::Sessions(s) => &s.pool,
        }
    }

    /// (panes or open sessions, keys)
    fn open(&self) -> (usize, usize) {
        match self {
            Self::Panes(s) => (s.open, s.held),
            Self::Sessions(s) => (s.sessions, s.held),
        }
    }
}

/// Incremental state of several queries; one per input partition.
pub struct Engine {
    settings: Settings,
    queries: Vec<Arc<Query>>,
    schema: Option<SchemaRef>,
    expressions: Vec<Arc<dyn PhysicalExpr>>,
    pub(super) key_sets: Vec<KeySet>,
    /// Per key set: which of its columns is the clock.
    pub(super) clock_columns: Vec<usize>,
    pub(super) stores: Vec<Store>,
    /// Per key set: how long its keys live, and what names it among them; `None`: its keys are not counted.
    pub(super) spans: Vec<Option<(Span, u64)>>,
    pub(super) budget: Budget,
    /// Stands for the values of an empty batch.
    pub(super) blank: Vec<ArrayRef>,
    /// Per store: expressions a row must satisfy.
    filters: Vec<Vec<usize>>,
    /// Per query: its store.
    store_of: Vec<usize>,
    pub(super) clocks: Clocks,
    pub(super) restoring: Restoring,
    /// Per store: whether the checkpoint has its present layout.
    pub(super) layouts_saved: Vec<bool>,
    /// Per store: what its records hold, and the hash that names it.
    pub(super) layouts: Vec<(Layout, u32)>,
    null_time: u64,
    errors: u64,
    late: Vec<u64>,
}

impl Engine {
    /// An engine without state.
    ///
    /// # Errors
    /// When the queries were compiled against different inputs.
    pub fn new(queries: Vec<Arc<Query>>, settings: Settings) -> Result<Self, Error> {
        let schema = queries.first().map(|q| Arc::clone(&q.input));
        if queries.iter().any(|q| Some(&q.input) != schema.as_ref()) {
            return Err(Error::Input("the queries were compiled against different schemas".into()));
        }
        let mut engine = Self {
            late: vec![0; queries.len()],
            budget: Budget::new(settings.max_live_keys),
            spans: Vec::new(),
            settings,
            schema,
            expressions: Vec::new(),
            key_sets: Vec::new(),
            stores: Vec::new(),
            blank: Vec::new(),
            filters: Vec::new(),
            store_of: vec![0; queries.len()],
            clocks: Clocks::default(),
            restoring: Restoring::default(),
            layouts_saved: Vec::new(),
            layouts: Vec::new(),
            clock_columns: Vec::new(),
            null_time: 0,
            errors: 0,
            queries,
        };
        engine.build()?;
        Ok(engine)
    }

    fn build(&mut self) -> Result<(), Error> {
        let mut by_text: BTreeMap<String, usize> = BTreeMap::new();
        let mut expressions = Vec::new();
        let mut register = |e: &Expression| {
            *by_text.entry(format!("{}\u{0}{}", e.text, e.ty)).or_insert_with(|| {
                expressions.push(Arc::clone(&e.physical));
                expressions.len() - 1
            })
        };
        let mut key_sets: Vec<Vec<Expression>> = Vec::new();
        let mut stores: Vec<(String, usize, Vec<usize>)> = Vec::new();
        for (index, query) in self.queries.iter().enumerate() {
            let mut keys = query.keys.clone();
            keys.sort_by(|a, b| a.text.cmp(&b.text));
            keys.dedup();
            let set = key_sets.iter().position(|k| *k == keys).unwrap_or_else(|| {
                key_sets.push(keys);
                key_sets.len() - 1
            });
            let texts = |list: &[Expression]| list.iter().map(|e| e.text.as_str()).collect::<Vec<_>>().join("\u{1}");
            // such a query looks at every window of a hop; it must not make others do so
            let every = query.window_dependent && query.window.is_hop();
            let identity = format!(
                "{set}\u{0}{every}\u{0}{:?}\u{0}{}\u{0}{}\u{0}{}",
                query.window,
                texts(&query.below),
                texts(&query.between),
                query.marker.as_ref().map_or("", |m| m.text.as_str()),
            );
            let store = stores.iter().position(|s| s.0 == identity).unwrap_or_else(|| {
                stores.push((identity, set, Vec::new()));
                stores.len() - 1
            });
            stores[store].2.push(index);
            self.store_of[index] = store;
        }
        let clock = Column::new(Some(self.settings.table.as_str()), self.settings.clock_column.as_str()).flat_name();
        for keys in &key_sets {
            let columns = keys.iter().map(&mut register).collect();
            let types: Vec<_> = keys.iter().map(|k| k.ty.clone()).collect();
            self.key_sets.push(KeySet::new(columns, &types)?);
            self.clock_columns.push(keys.iter().position(|k| k.text == clock).unwrap_or_default());
        }
        for (_, set, indices) in stores {
            let mut aggregates: Vec<Aggregate> = Vec::new();
            let mut members = Vec::new();
            for index in &indices {
                let query = &self.queries[*index];
                let mut places = Vec::new();
                for call in &query.aggregates {
                    let at = match aggregates.iter().position(|a| a.text == call.text) {
                        Some(at) => at,
                        None => {
                            let args = call.args.iter().map(&mut register).collect();
                            let filter = call.filter.as_ref().map(&mut register);
                            aggregates.push(Aggregate::new(call, args, filter)?);
                            aggregates.len() - 1
                        }
                    };
                    places.push(at);
                }
                let keys = query
                    .keys
                    .iter()
                    .map(|k| key_sets[set].iter().position(|other| other == k).unwrap_or_default())
                    .collect();
                members.push(Member::new(*index, Arc::clone(query), keys, places));
            }
            let first = &self.queries[indices[0]];
            let mut parts = vec!["datafusion-55".to_owned(), format!("{:?}", first.window)];
            parts.extend(key_sets[set].iter().map(|k| format!("key {} {}", k.text, k.ty)));
            parts.extend(first.marker.iter().map(|m| format!("marker {}", m.text)));
            parts.extend(first.below.iter().map(|m| format!("below {}", m.text)));
            parts.extend(first.between.iter().map(|m| format!("between {}", m.text)));
            if first.window_dependent && first.window.is_hop() {
                parts.push("every".to_owned());
            }
            let print = fingerprint(parts.iter().map(String::as_str));
            let pool = Pool::new(aggregates, self.settings.max_state_bytes_per_key);
            let store = match first.window {
                Window::Tumble { size } => Store::Panes(Box::new(PaneStore::new(
                    Grid::new(size, size),
                    set,
                    print,
                    members,
                    pool,
                    self.settings.all_finals,
                ))),
                Window::Hop { slide, size } => Store::Panes(Box::new(PaneStore::new(
                    Grid::new(slide, size),
                    set,
                    print,
                    members,
                    pool,
                    self.settings.all_finals,
                ))),
                Window::Session { gap } | Window::SessionUntil { gap } => {
                    let mut arguments: Vec<(usize, String, DataType)> = Vec::new();
                    let calls = indices.iter().flat_map(|i| &self.queries[*i].aggregates);
                    let mut constants: Vec<(usize, ScalarValue)> = Vec::new();
                    for e in calls.flat_map(|c| c.args.iter().chain(&c.filter)) {
                        let at = register(e);
                        if let Some(literal) = e.physical.downcast_ref::<Literal>() {
                            constants.push((at, literal.value().clone()));
                        } else if arguments.iter().all(|a| a.0 != at) {
                            arguments.push((at, e.text.clone(), e.ty.clone()));
                        }
                    }
                    // a row without any argument still needs something to be written as
                    if let Some(key) = key_sets[set].first().filter(|_| arguments.is_empty()) {
                        arguments.push((register(key), key.text.clone(), key.ty.clone()));
                    }
                    let shape = Shape {
                        gap,
                        most_pending: (self.settings.max_state_bytes_per_key / PENDING_ROW).max(16),
                        key_set: set,
                        fingerprint: print,
                        marker: first.marker.as_ref().map(&mut register),
                        between: first.between.iter().map(&mut register).collect(),
                        arguments,
                        constants,
                    };
                    Store::Sessions(Box::new(SessionStore::new(shape, members, pool)?))
                }
            };
            let session = first.window.is_session();
            let filters = first.below.iter().chain(first.between.iter().filter(|_| !session));
            self.filters.push(filters.map(&mut register).collect());
            let layout = store.layout();
            let hash = layout.hash();
            self.layouts.push((layout, hash));
            self.stores.push(store);
            self.layouts_saved.push(false);
        }
        for (set, keys) in key_sets.iter().enumerate() {
            let hold = self.stores.iter().filter(|s| s.key_set() == set).map(Store::hold).max();
            // there is one key of the clock alone, and it must not go blind because there are too many others
            let counted = keys.iter().any(|k| k.text != clock);
            let print = fingerprint(
                keys.iter()
                    .flat_map(|k| [k.text.clone(), k.ty.to_string()])
                    .collect::<Vec<_>>()
                    .iter()
                    .map(String::as_str),
            );
            self.spans.push(hold.filter(|_| counted).map(|hold| (Span::new(hold), print)));
        }
        self.blank = expressions.iter().map(|_| new_empty_array(&DataType::Null)).collect();
        self.expressions = expressions;
        Ok(())
    }

    /// The queries, in the order of their indices.
    pub fn queries(&self) -> &[Arc<Query>] {
        &self.queries
    }

    /// The key set of a query: queries with equal keys share one, and its group ids.
    pub fn key_set(&self, query: usize) -> usize {
        self.stores[self.store_of[query]].key_set()
    }

    /// Takes rows in offset order. `positions[i]` is an opaque place of row i, for evidence.
    ///
    /// # Errors
    /// When the batch has another schema, or an aggregate fails; the engine is then not usable any more.
    pub fn push(&mut self, batch: &RecordBatch, positions: &[i64], watch: &mut dyn Watch) -> Result<Output, Error> {
        let mut out = Output::default();
        let rows = batch.num_rows();
        if positions.len() != rows {
            return Err(Error::Input(format!("{} positions for {rows} rows", positions.len())));
        }
        if self.schema.as_ref().is_some_and(|s| s.fields() != batch.schema_ref().fields()) {
            return Err(Error::Input("the batch has another schema than the queries were compiled against".into()));
        }
        for keys in &mut self.key_sets {
            keys.thaw();
        }
        if rows == 0 {
            return Ok(out);
        }
        let (times, valid) = self.times(batch)?;
        let clocks = self.clock_ids(batch)?;
        let (mut before, mut after) = (vec![NEVER; rows], vec![NEVER; rows]);
        let mut begin: Vec<Micros> = self.clocks.list.iter().map(|c| c.watermark).collect();
        for row in 0..rows {
            let clock = &mut self.clocks.list[clocks[row] as usize];
            before[row] = clock.watermark;
            if valid[row] && times[row] > clock.high {
                clock.high = times[row];
                clock.watermark = clock.watermark.max(times[row].saturating_sub(self.settings.lateness));
                clock.dirty = true;
            }
            after[row] = clock.watermark;
            if !valid[row] {
                out.null_time.push(row as u32);
            }
        }
        self.null_time += out.null_time.len() as u64;
        let finished: Vec<Micros> = self.clocks.list.iter().map(|c| c.finished).collect();

        let values =
            self.expressions.iter().map(|e| evaluate(e, batch, &mut self.errors)).collect::<Result<Vec<_>, _>>()?;
        let mut selected = self.select(&values, &valid)?;
        let mut groups = Vec::with_capacity(self.key_sets.len());
        for (i, keys) in self.key_sets.iter_mut().enumerate() {
            let mut needed = vec![false; rows];
            for (store, rows) in self.stores.iter().zip(&selected) {
                if store.key_set() == i {
                    rows.iter().for_each(|r| needed[*r as usize] = true);
                }
            }
            let needed: Vec<u32> = (0..rows as u32).filter(|r| needed[*r as usize]).collect();
            let columns: Vec<ArrayRef> = keys.columns.iter().map(|c| Arc::clone(&values[*c])).collect();
            groups.push(keys.intern(&columns, &needed, &clocks, rows)?);
        }
        let dark_rows = self.admit(&mut selected, &groups, &times, &before, &clocks, &mut out);
        let dark_clocks = self.budget.dark().to_vec();
        let dark = Dark { rows: &dark_rows, clocks: &dark_clocks };
        let view = Batch {
            len: rows,
            values: &values,
            times: &times,
            clocks: &clocks,
            before: &before,
            finished: &finished,
            positions,
            groups: &groups,
            dark,
        };

        let grids: Vec<Grid> = self
            .stores
            .iter()
            .filter_map(|s| match s {
                Store::Panes(panes) if panes.hop => Some(panes.grid),
                _ => None,
            })
            .collect();
        let mut missed = vec![Missed::default(); self.stores.len()];
        let mut place_of = vec![0usize; self.clocks.list.len()];
        let mut from = 0;
        while from < rows {
            let mut to = from;
            let mut moved: Vec<(u32, Vec<(Micros, u32)>)> = Vec::new();
            while to < rows {
                let clock = clocks[to];
                if to > from && valid[to] && times[to] <= before[to] {
                    let since = begin[clock as usize];
                    let fin = finished[clock as usize];
                    if grids.iter().any(|g| changes_closed(g, times[to], before[to], since, fin)) {
                        break;
                    }
                }
                if after[to] != before[to] {
                    let place = &mut place_of[clock as usize];
                    if moved.get(*place).is_none_or(|(c, _)| *c != clock) {
                        *place = moved.len();
                        moved.push((clock, Vec::new()));
                    }
                    moved[*place].1.push((after[to], to as u32));
                }
                to += 1;
            }
            moved.sort_unstable_by_key(|(clock, _)| *clock);
            for (clock, steps) in &moved {
                if let Some((watermark, _)) = steps.last() {
                    begin[*clock as usize] = *watermark;
                }
            }
            let moves = Moves { moved: &moved, finished: &finished, now: &begin, all: false, dark };
            self.sub_batch(&view, &selected, from..to, &moves, watch, &mut missed, &mut out)?;
            from = to;
        }
        self.report_late(&selected, &missed, &mut out);
        self.sweep(&mut out);
        out.dark = dark_rows;
        Ok(out)
    }

    #[expect(clippy::too_many_arguments, reason = "one step of push")]
    fn sub_batch(
        &mut self,
        view: &Batch<'_>,
        selected: &[Vec<u32>],
        range: std::ops::Range<usize>,
        moves: &Moves<'_>,
        watch: &mut dyn Watch,
        missed: &mut [Missed],
        out: &mut Output,
    ) -> Result<(), Error> {
        for (i, store) in self.stores.iter_mut().enumerate() {
            let rows = &selected[i];
            let rows = &rows[rows.partition_point(|r| (*r as usize) < range.start)
                ..rows.partition_point(|r| (*r as usize) < range.end)];
            let keys = &mut self.key_sets[store.key_set()];
            match store {
                Store::Panes(s) => s.apply(view, rows, keys, &mut missed[i])?,
                Store::Sessions(s) => s.apply(view, rows, moves, keys, &mut missed[i])?,
            }
        }
        let mut early: Vec<QueryRows> = Vec::new();
        let mut wanted: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
        for store in &mut self.stores {
            let keys = &self.key_sets[store.key_set()];
            match store {
                Store::Panes(s) => early.extend(s.early(keys, view, &mut self.errors)?),
                Store::Sessions(s) => {
                    early.extend(s.early(keys, view, &mut self.errors)?);
                    for member in s.members.iter().filter(|m| m.query.early() && !s.must_trace().is_empty()) {
                        wanted.entry(member.index).or_default().extend(s.must_trace());
                    }
                }
            }
        }
        early.sort_by_key(|e| e.query);
        if !early.is_empty() {
            for (entry, row) in watch.select(&early) {
                if let Some(rows) = early.get(entry)
                    && let Some(group) = rows.group.get(row)
                {
                    wanted.entry(rows.query).or_default().push(*group);
                }
            }
        }
        for (query, mut picks) in wanted {
            picks.sort_unstable();
            picks.dedup();
            let store = &mut self.stores[self.store_of[query]];
            let Some(member) = store.members().iter().position(|m| m.index == query) else { continue };
            let keys = &self.key_sets[store.key_set()];
            let errors = &mut self.errors;
            out.traces.extend(match store {
                Store::Panes(s) => s.trace(member, &picks, keys, view, errors)?,
                Store::Sessions(s) => s.trace(member, &picks, keys, view, errors)?,
            });
        }
        out.early.extend(early);
        self.close(moves, view, out)
    }

    fn close(&mut self, moves: &Moves<'_>, view: &Batch<'_>, out: &mut Output) -> Result<(), Error> {
        let (mut closed, mut empty) = (Vec::new(), Vec::new());
        for store in &mut self.stores {
            let keys = &mut self.key_sets[store.key_set()];
            let errors = &mut self.errors;
            match store {
                Store::Panes(s) => s.close(moves, keys, errors, &mut closed, &mut empty)?,
                Store::Sessions(s) => s.close(moves, view, keys, errors, &mut closed, &mut empty)?,
            }
        }
        closed.sort_by_key(|c| c.query);
        empty.sort_by_key(|e| e.query);
        out.closed.extend(closed);
        out.empty.extend(empty);
        Ok(())
    }

    /// Closes what a move without rows passes.
    fn close_without_rows(&mut self, moved: &[(u32, Vec<(Micros, u32)>)], all: bool) -> Result<Output, Error> {
        let mut out = Output::default();
        let finished: Vec<Micros> = self.clocks.list.iter().map(|c| c.finished).collect();
        let now: Vec<Micros> =
            self.clocks.list.iter().map(|c| if all { c.watermark.max(c.high) } else { c.watermark }).collect();
        let blank = self.blank.clone();
        let dark_clocks = self.budget.dark().to_vec();
        let dark = Dark { rows: &[], clocks: &dark_clocks };
        let view = Batch {
            len: 0,
            values: &blank,
            times: &[],
            clocks: &[],
            before: &[],
            finished: &finished,
            positions: &[],
            groups: &[],
            dark,
        };
        let moves = Moves { moved, finished: &finished, now: &now, all, dark };
        self.close(&moves, &view, &mut out)?;
        self.sweep(&mut out);
        Ok(out)
    }

    /// Moves one clock's watermark forward (never back) and closes what it passes.
    pub fn advance(&mut self, clock: &str, watermark: Micros) -> Result<Output, Error> {
        for keys in &mut self.key_sets {
            keys.thaw();
        }
        let id = self.clocks.id(clock);
        let entry = &mut self.clocks.list[id as usize];
        if watermark <= entry.watermark {
            return Ok(Output::default());
        }
        entry.watermark = watermark;
        entry.dirty = true;
        // thousands of silent tenants are moved at every step: those with nothing due must cost next to nothing
        let entry = &*entry;
        let quiet = self.stores.iter().all(|store| match store {
            Store::Panes(s) => s.is_quiet(id, entry.closed_until(s.grid.size)),
            Store::Sessions(s) => s.is_quiet(id, watermark),
        });
        let turn = self.budget.look(id, watermark);
        let mut out = match quiet {
            true => Output::default(),
            false => self.close_without_rows(&[(id, vec![(watermark, NO_ROW)])], false)?,
        };
        out.overflows.extend(turn.map(|turn| self.overflow(id, turn, NO_ROW)));
        Ok(out)
    }

    /// Closes every window. Afterwards each watermark is the highest event time seen, and what was closed stays closed.
    pub fn close_all(&mut self) -> Result<Output, Error> {
        for keys in &mut self.key_sets {
            keys.thaw();
        }
        let moved: Vec<(u32, Vec<(Micros, u32)>)> =
            (0..self.clocks.list.len() as u32).map(|c| (c, Vec::new())).collect();
        let out = self.close_without_rows(&moved, true)?;
        for clock in &mut self.clocks.list {
            clock.watermark = clock.watermark.max(clock.high);
            clock.finished = clock.finished.max(clock.high);
            clock.dirty = true;
        }
        Ok(out)
    }

    /// The watermark of a clock; `None` when it has seen nothing.
    pub fn watermark(&self, clock: &str) -> Option<Micros> {
        let id = self.clocks.find(clock)?;
        Some(self.clocks.list[id as usize].watermark).filter(|w| *w != NEVER)
    }

    /// Whether a window of `query` that starts at `start` sees every row of its time on this clock: not so when the query was
    /// added while it was open.
    pub fn whole(&self, output: &Output, query: usize, clock: &str, start: Micros, at: u32) -> bool {
        let Some(id) = self.clocks.find(clock) else { return true };
        let member = self.stores[self.store_of[query]].members().iter().find(|m| m.index == query);
        let blind = member.and_then(|m| m.blind_until.get(id as usize)).copied().unwrap_or(NEVER);
        let dark = output.dark.get(at as usize).copied().unwrap_or_else(|| self.budget.dark_of(id));
        start > blind.max(dark)
    }

    /// Every clock that has seen something: name, watermark, highest event time; in order of first sight.
    pub fn watermarks(&self) -> impl Iterator<Item = (&str, Micros, Micros)> {
        self.clocks.list.iter().filter(|c| c.watermark != NEVER).map(|c| (c.name.as_str(), c.watermark, c.high))
    }

    /// Whether any window holds state.
    pub fn is_open(&self) -> bool {
        self.stores.iter().any(|s| s.open().0 > 0)
    }

    /// Sizes and counts.
    pub fn stats(&self) -> Stats {
        let mut stats = Stats {
            keys: self.key_sets.iter().map(KeySet::len).sum(),
            state_bytes: self.key_sets.iter().map(KeySet::size).sum::<usize>() + self.budget.size(),
            overflowing: self.budget.figures().0,
            refused: self.budget.figures().1,
            null_time: self.null_time,
            expression_errors: self.errors,
            ..Stats::default()
        };
        for store in &self.stores {
            stats.state_bytes += store.pool().size();
            stats.capped += store.pool().capped;
            if let Store::Panes(panes) = store {
                stats.partly_late += panes.partly_late;
                stats.gap_rows += panes.gap_rows;
            }
        }
        for (i, query) in self.queries.iter().enumerate() {
            let store = &self.stores[self.store_of[i]];
            stats.queries.push(QueryStats {
                name: query.name().to_owned(),
                open: store.open().0,
                keys: store.open().1,
                late: self.late[i],
            });
        }
        stats
    }

    fn times(&self, batch: &RecordBatch) -> Result<(Vec<Micros>, Vec<bool>), Error> {
        let column = batch
            .column_by_name(&self.settings.time_column)
            .and_then(|c| c.as_primitive_opt::<TimestampMicrosecondType>())
            .ok_or_else(|| Error::Input(format!("{} is not a timestamp in microseconds", self.settings.time_column)))?;
        let times: Vec<Micros> = column.values().to_vec();
        let valid =
            (0..times.len()).map(|i| column.is_valid(i) && times[i].unsigned_abs() < FAR.unsigned_abs()).collect();
        Ok((times, valid))
    }

    fn clock_ids(&mut self, batch: &RecordBatch) -> Result<Vec<u32>, Error> {
        let column = batch
            .column_by_name(&self.settings.clock_column)
            .ok_or_else(|| Error::Input(format!("there is no column {}", self.settings.clock_column)))?;
        let mut ids: Vec<u32> = Vec::with_capacity(batch.num_rows());
        for row in 0..batch.num_rows() {
            let name = clock_text(column, row)?;
            // neighbours often share a clock
            let id = match ids.last() {
                Some(last) if self.clocks.list[*last as usize].name == name => *last,
                _ => self.clocks.id(name),
            };
            ids.push(id);
        }
        Ok(ids)
    }

    /// Per store, the rows its filters keep.
    fn select(&self, values: &[ArrayRef], valid: &[bool]) -> Result<Vec<Vec<u32>>, Error> {
        let valid = BooleanBuffer::from(valid);
        let mut masks: BTreeMap<usize, BooleanBuffer> = BTreeMap::new();
        for filter in self.filters.iter().flatten() {
            if !masks.contains_key(filter) {
                let array = boolean(&values[*filter])?;
                let mask = match array.nulls() {
                    Some(nulls) => array.values() & nulls.inner(),
                    None => array.values().clone(),
                };
                masks.insert(*filter, mask);
            }
        }
        let keep = |filters: &Vec<usize>| {
            let mask = filters.iter().filter_map(|f| masks.get(f)).fold(valid.clone(), |all, mask| &all & mask);
            mask.set_indices().map(|row| row as u32).collect()
        };
        Ok(self.filters.iter().map(keep).collect())
    }

    fn report_late(&mut self, selected: &[Vec<u32>], missed: &[Missed], out: &mut Output) {
        let mut by_row: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for (store, missed) in missed.iter().enumerate() {
            for row in &missed.late {
                by_row.entry(*row).or_default().push(store);
            }
        }
        for (row, stores) in by_row {
            let mut queries: Vec<u16> =
                stores.iter().flat_map(|s| self.stores[*s].members().iter().map(|m| m.index as u16)).collect();
            queries.sort_unstable();
            for query in &queries {
                self.late[*query as usize] += 1;
            }
            let took = |(rows, missed): (&Vec<u32>, &Missed)| {
                [&missed.late, &missed.unused].iter().all(|m| m.binary_search(&row).is_err())
                    && rows.binary_search(&row).is_ok()
            };
            let everywhere = !selected.iter().zip(missed).any(took);
            out.late.push(Late { row, queries, everywhere });
        }
    }

    fn sweep(&mut self, out: &mut Output) {
        for (i, keys) in self.key_sets.iter_mut().enumerate() {
            out.freed.extend(keys.sweep().into_iter().map(|id| (i, id)));
        }
    }
}

/// Whether a row would change a pane of a window that closed after `since`.
fn changes_closed(grid: &Grid, time: Micros, before: Micros, since: Micros, finished: Micros) -> bool {
    let closed = closed_until(before, finished, grid.size);
    let Some(open) = grid.first_end(time, closed) else { return false };
    let Some(first) = grid.first_end(time, Micros::MIN) else { return false };
    first != open && open - grid.slide > closed_until(since, finished, grid.size)
}
