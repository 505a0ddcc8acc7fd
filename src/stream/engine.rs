//! The engine: several queries over one ordered input.
//!
//! A push evaluates every distinct expression once, interns the keys once per key set, walks the rows once for watermarks, and
//! hands each store its rows. A batch is processed whole and windows close at its end; it is cut only before a row that would
//! change a pane of a window which closed earlier in the batch, so results do not depend on how the input was cut.

mod close;
mod push;

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, new_empty_array};
use datafusion::arrow::datatypes::{DataType, SchemaRef};
use datafusion::common::{Column, ScalarValue};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Literal;

use crate::clock::Micros;

use super::budget::{Budget, Dark, Span};
use super::emit::Member;
use super::keys::KeySet;
use super::output::{NO_ROW, Output, QueryStats, Stats};
use super::panes::PaneStore;
use super::persist::{Layout, Restoring};
use super::pool::{Aggregate, Pool};
use super::query::{Expression, Query, fingerprint};
use super::sessions::{SessionStore, Shape};
use super::time::{Clocks, NEVER, closed_until};
use super::window::{Grid, Window};
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
}
