//! Taking rows: a batch evaluated once, cut where a window that closed would change, and handed to each store.

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use datafusion::arrow::buffer::BooleanBuffer;
use datafusion::arrow::datatypes::TimestampMicrosecondType;

use crate::clock::Micros;
use crate::stream::Error;
use crate::stream::budget::Dark;
use crate::stream::emit::evaluate;
use crate::stream::keys::clock_text;
use crate::stream::output::{Late, Output, QueryRows, Watch};
use crate::stream::pool::boolean;
use crate::stream::time::{NEVER, closed_until};
use crate::stream::window::{FAR, Grid};

use super::{Batch, Engine, Missed, Moves, Store};

impl Engine {
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
}

/// Whether a row would change a pane of a window that closed after `since`.
fn changes_closed(grid: &Grid, time: Micros, before: Micros, since: Micros, finished: Micros) -> bool {
    let closed = closed_until(before, finished, grid.size);
    let Some(open) = grid.first_end(time, closed) else { return false };
    let Some(first) = grid.first_end(time, Micros::MIN) else { return false };
    first != open && open - grid.slide > closed_until(since, finished, grid.size)
}
