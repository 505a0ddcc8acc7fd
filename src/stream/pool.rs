//! Slots of aggregate state, and the three things done with them: update with rows, merge, evaluate.
//!
//! A slot is the state of all aggregates of a store for one (group, pane), one session, or one tree node. No accumulator
//! lives longer than a call: the touched slots' old state is merged into an empty accumulator first, then the rows are
//! applied in order, then the new state is taken out. That order is what makes results independent of how batches are cut.

use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, BooleanArray, UInt32Array, new_null_array};
use datafusion::arrow::compute::{and, interleave, take};
use datafusion::arrow::datatypes::DataType;
use datafusion::logical_expr::{EmitTo, GroupsAccumulator};
use datafusion::physical_expr::GroupsAccumulatorAdapter;
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;

use super::Error;
use super::columns::States;
use super::native::{Input, Native, Parts};
use super::query::{AggregateCall, fingerprint};

/// No slot.
pub(super) const NO_SLOT: u32 = u32::MAX;
/// A position range that nothing fed.
pub(super) const NOTHING: (i64, i64) = (i64::MAX, i64::MIN);

/// One aggregate of a store.
pub(super) struct Aggregate {
    pub(super) text: String,
    pub(super) fingerprint: u64,
    call: Arc<AggregateFunctionExpr>,
    arg_types: Vec<DataType>,
    /// Indices into the engine's expressions.
    pub(super) args: Vec<usize>,
    pub(super) filter: Option<usize>,
    accumulator: Box<dyn GroupsAccumulator>,
    pub(super) states: States,
    /// The value is the state itself.
    direct: bool,
    native: Option<Native>,
}

fn accumulator(call: &Arc<AggregateFunctionExpr>) -> Result<Box<dyn GroupsAccumulator>, Error> {
    if call.groups_accumulator_supported() {
        return Ok(call.create_groups_accumulator()?);
    }
    let call = Arc::clone(call);
    Ok(Box::new(GroupsAccumulatorAdapter::new(move || call.create_accumulator())))
}

impl Aggregate {
    pub(super) fn new(spec: &AggregateCall, args: Vec<usize>, filter: Option<usize>) -> Result<Self, Error> {
        let (call, text) = (&spec.call, spec.text.as_str());
        let types: Vec<DataType> = call.state_fields()?.iter().map(|f| f.data_type().clone()).collect();
        let plain = matches!(call.fun().name(), "sum" | "count" | "min" | "max") && !call.is_distinct();
        let direct = plain && types.len() == 1 && types[0] == *call.field().data_type();
        let arg_types: Vec<DataType> = spec.args.iter().map(|a| a.ty.clone()).collect();
        let native = Native::of(call.fun().name(), &arg_types, &types);
        Ok(Self {
            text: text.to_owned(),
            fingerprint: fingerprint([text]),
            call: Arc::clone(call),
            arg_types,
            args,
            filter,
            accumulator: accumulator(call)?,
            native: native.filter(|_| direct),
            states: States::new(types)?,
            direct,
        })
    }

    /// The state of a group that no row has fed, one row.
    fn empty(&self) -> Result<Vec<ArrayRef>, Error> {
        let mut fresh = accumulator(&self.call)?;
        let args: Vec<ArrayRef> = self.arg_types.iter().map(|t| new_null_array(t, 1)).collect();
        fresh.update_batch(&args, &[0], Some(&BooleanArray::from(vec![false])), 1)?;
        Ok(fresh.state(EmitTo::All)?)
    }
}

/// The states some slots had before an update: rows of `arrays` belong to the locals in `locals`, ascending.
pub(super) struct Old {
    locals: Vec<u32>,
    arrays: Vec<Vec<ArrayRef>>,
    /// Per aggregate, of which local the state was capped; empty when of none.
    capped: Vec<Vec<bool>>,
}

/// Rows to apply: `locals[i]` is the touched slot (index into read/write) that row `rows[i]` of the batch feeds.
pub(super) struct Feed<'a> {
    pub(super) rows: &'a [u32],
    pub(super) locals: &'a [usize],
    /// Rows of the batch.
    pub(super) len: usize,
    /// The engine's expressions over the batch.
    pub(super) values: &'a [ArrayRef],
}

pub(super) struct Pool {
    pub(super) aggregates: Vec<Aggregate>,
    evidence: Vec<(i64, i64)>,
    free: Vec<u32>,
    /// Slots the state columns have room for.
    capacity: usize,
    cap: usize,
    pub(super) capped: u64,
}

impl Pool {
    pub(super) fn new(aggregates: Vec<Aggregate>, cap: usize) -> Self {
        Self { aggregates, evidence: Vec::new(), free: Vec::new(), capacity: 0, cap, capped: 0 }
    }

    /// Whether rows may be applied in any order.
    pub(super) fn commutes(&self) -> bool {
        self.aggregates.iter().all(|a| a.native.is_some_and(Native::commutes))
    }

    pub(super) fn alloc(&mut self) -> u32 {
        if let Some(slot) = self.free.pop() {
            self.evidence[slot as usize] = NOTHING;
            return slot;
        }
        let slot = self.evidence.len() as u32;
        self.evidence.push(NOTHING);
        if self.evidence.len() > self.capacity {
            self.capacity = (self.capacity * 2).max(64);
            for aggregate in &mut self.aggregates {
                aggregate.states.resize(self.capacity);
            }
        }
        slot
    }

    pub(super) fn release(&mut self, slot: u32) {
        for aggregate in &mut self.aggregates {
            aggregate.states.clear(slot);
        }
        self.free.push(slot);
    }

    pub(super) fn size(&self) -> usize {
        self.evidence.capacity() * 16 + self.aggregates.iter().map(|a| a.states.size()).sum::<usize>()
    }

    pub(super) fn evidence(&self, slot: u32) -> (i64, i64) {
        self.evidence[slot as usize]
    }

    /// Replaces the positions of every slot that has some.
    pub(super) fn map_evidence(&mut self, map: impl Fn(i64) -> i64) {
        for e in self.evidence.iter_mut().filter(|e| **e != NOTHING) {
            *e = (map(e.0), map(e.1));
        }
    }

    pub(super) fn set_evidence(&mut self, slot: u32, evidence: (i64, i64)) {
        self.evidence[slot as usize] = evidence;
    }

    pub(super) fn witness(&mut self, slot: u32, (lo, hi): (i64, i64)) {
        let e = &mut self.evidence[slot as usize];
        *e = (e.0.min(lo), e.1.max(hi));
    }

    /// New state of `write[i]` = state of `read[i]` (empty if [`NO_SLOT`]) then the rows with local i, in order. Every local
    /// has a row. Evidence is the caller's. Returns the old states when asked for.
    ///
    /// Accumulators take it that each call mentions every group below the number of groups it is given, so groups with an
    /// old state are numbered first: merging mentions exactly those, updating mentions all.
    pub(super) fn update(
        &mut self,
        read: &[u32],
        write: &[u32],
        feed: &Feed<'_>,
        keep_old: bool,
    ) -> Result<Option<Old>, Error> {
        let groups = write.len();
        let given = write;
        let old_locals: Vec<u32> = (0..groups as u32).filter(|i| read[*i as usize] != NO_SLOT).collect();
        let held = old_locals.len();
        let old_slots: Vec<u32> = old_locals.iter().map(|i| read[*i as usize]).collect();
        let old_groups: Vec<usize> = (0..held).collect();
        let in_order = old_locals.last().is_none_or(|last| *last as usize == held - 1);
        let (mut write_to, mut places) = (Vec::new(), Vec::new());
        if !in_order {
            let mut place = vec![0usize; groups];
            write_to = vec![0u32; groups];
            let (mut next_old, mut next_new) = (0, held);
            for local in 0..groups {
                let next = if read[local] == NO_SLOT { &mut next_new } else { &mut next_old };
                place[local] = *next;
                write_to[*next] = write[local];
                *next += 1;
            }
            places = feed.locals.iter().map(|l| place[*l]).collect();
        }
        let write: &[u32] = if in_order { write } else { &write_to };
        let locals: &[usize] = if in_order { feed.locals } else { &places };

        let whole = feed.rows.len() == feed.len;
        let indices = UInt32Array::from(if whole { Vec::new() } else { feed.rows.to_vec() });
        let mut taken: Vec<Option<ArrayRef>> = vec![None; feed.values.len()];
        let mut fetch = |i: usize| -> Result<ArrayRef, Error> {
            if whole {
                return Ok(Arc::clone(&feed.values[i]));
            }
            if let Some(array) = &taken[i] {
                return Ok(Arc::clone(array));
            }
            let array = take(&feed.values[i], &indices, None)?;
            taken[i] = Some(Arc::clone(&array));
            Ok(array)
        };
        let cap = self.cap;
        let (mut saved, mut capped) = (Vec::new(), Vec::new());
        for aggregate in &mut self.aggregates {
            if keep_old {
                let flags = old_slots.iter().map(|s| aggregate.states.is_capped(*s));
                capped.push(if aggregate.states.any_capped() { flags.collect() } else { Vec::new() });
            }
            if let Some(op) = aggregate.native {
                if keep_old {
                    saved.push(aggregate.states.gather(&old_slots)?);
                }
                let filter = aggregate.filter.map(|f| boolean(&feed.values[f])).transpose()?;
                let input =
                    Input { rows: feed.rows, locals: feed.locals, arg: &feed.values[aggregate.args[0]], filter };
                if let Some(column) = aggregate.states.single_mut() {
                    op.update(&mut column.cells(), read, given, &input);
                }
                continue;
            }
            let args = aggregate.args.iter().map(|i| fetch(*i)).collect::<Result<Vec<_>, _>>()?;
            let filter = aggregate.filter.map(&mut fetch).transpose()?;
            let mut filter = filter.as_ref().map(boolean).transpose()?.cloned();
            let old = aggregate.states.gather(&old_slots)?;
            if aggregate.states.any_capped() {
                let open: BooleanArray = locals
                    .iter()
                    .map(|l| Some(old_slots.get(*l).is_none_or(|s| !aggregate.states.is_capped(*s))))
                    .collect();
                filter = Some(match filter {
                    Some(f) => and(&f, &open)?,
                    None => open,
                });
            }
            if held > 0 {
                aggregate.accumulator.merge_batch(&old, &old_groups, held)?;
            }
            aggregate.accumulator.update_batch(&args, locals, filter.as_ref(), groups)?;
            let mut new = aggregate.accumulator.state(EmitTo::All)?;
            let mut newly_capped = Vec::new();
            if aggregate.states.grows() {
                let sizes = aggregate.states.sizes(&new)?;
                let over: Vec<usize> = (0..groups)
                    .filter(|i| sizes[*i] > cap && old_slots.get(*i).is_none_or(|s| !aggregate.states.is_capped(*s)))
                    .collect();
                if !over.is_empty() {
                    let rows = Rows { locals, args: &args, filter: filter.as_ref() };
                    new = regrow(aggregate, &old, held, &rows, &over, &new, cap)?;
                    newly_capped = over;
                }
                for (r, w) in old_slots.iter().zip(write) {
                    if r != w {
                        let capped = aggregate.states.is_capped(*r);
                        aggregate.states.set_capped(*w, capped);
                    }
                }
            }
            aggregate.states.scatter(write, &new)?;
            for local in newly_capped {
                aggregate.states.set_capped(write[local], true);
                self.capped += 1;
            }
            if keep_old {
                saved.push(old);
            }
        }
        Ok(keep_old.then_some(Old { locals: old_locals, arrays: saved, capped }))
    }

    /// Gives `slot` the state a local had before an update; false when it had none.
    pub(super) fn revive(&mut self, old: &Old, local: usize, slot: u32) -> Result<bool, Error> {
        let Ok(row) = old.locals.binary_search(&(local as u32)) else {
            return Ok(false);
        };
        for ((aggregate, arrays), capped) in self.aggregates.iter_mut().zip(&old.arrays).zip(&old.capped) {
            let arrays: Vec<ArrayRef> = arrays.iter().map(|a| a.slice(row, 1)).collect();
            aggregate.states.scatter(&[slot], &arrays)?;
            aggregate.states.set_capped(slot, capped.get(row).copied().unwrap_or(false));
        }
        Ok(true)
    }

    /// New state of `write[i]` = the states of the parts with group i, merged in the order given. Evidence too.
    pub(super) fn merge(&mut self, parts: &[u32], groups: &[usize], write: &[u32]) -> Result<(), Error> {
        if write.is_empty() {
            return Ok(());
        }
        for aggregate in &mut self.aggregates {
            if let Some((op, column)) = aggregate.native.zip(aggregate.states.single_mut()) {
                column.merge_into(op, &Parts { slots: parts, groups }, write);
                continue;
            }
            aggregate.accumulator.merge_batch(&aggregate.states.gather(parts)?, groups, write.len())?;
            let new = aggregate.accumulator.state(EmitTo::All)?;
            if aggregate.states.any_capped() {
                for (part, group) in parts.iter().zip(groups) {
                    if aggregate.states.is_capped(*part) {
                        aggregate.states.set_capped(write[*group], true);
                    }
                }
            }
            aggregate.states.scatter(write, &new)?;
        }
        let mut evidence = vec![NOTHING; write.len()];
        for (part, group) in parts.iter().zip(groups) {
            let (lo, hi) = self.evidence[*part as usize];
            let e = &mut evidence[*group];
            *e = (e.0.min(lo), e.1.max(hi));
        }
        for (slot, e) in write.iter().zip(evidence) {
            self.evidence[*slot as usize] = e;
        }
        Ok(())
    }

    /// The value of aggregate `a` over each of `groups` unions of parts, merged in the order given. Every group has a part.
    pub(super) fn evaluate(&mut self, a: usize, parts: &[u32], of: &[usize], groups: usize) -> Result<ArrayRef, Error> {
        let aggregate = &mut self.aggregates[a];
        if aggregate.direct && parts.len() == groups {
            return Ok(aggregate.states.gather(parts)?.swap_remove(0));
        }
        if let Some((op, column)) = aggregate.native.zip(aggregate.states.single()) {
            return column.merged(op, &Parts { slots: parts, groups: of }, groups);
        }
        let states = aggregate.states.gather(parts)?;
        aggregate.accumulator.merge_batch(&states, of, groups)?;
        Ok(aggregate.accumulator.evaluate(EmitTo::All)?)
    }

    /// Gives `slot` the state of a group that no row has fed, for aggregate `a`.
    pub(super) fn reset(&mut self, a: usize, slot: u32) -> Result<(), Error> {
        let empty = self.aggregates[a].empty()?;
        self.aggregates[a].states.scatter(&[slot], &empty)
    }
}

/// The rows of an update, for one aggregate.
struct Rows<'a> {
    locals: &'a [usize],
    args: &'a [ArrayRef],
    filter: Option<&'a BooleanArray>,
}

/// Feeds the groups in `over` row by row, stopping each at the first row that takes its state past the cap: where a capped
/// state stops must not depend on how the batch was cut. Groups below `held` start from their row of `old`.
fn regrow(
    aggregate: &mut Aggregate,
    old: &[ArrayRef],
    held: usize,
    rows: &Rows<'_>,
    over: &[usize],
    new: &[ArrayRef],
    cap: usize,
) -> Result<Vec<ArrayRef>, Error> {
    let mut replaced: Vec<Vec<ArrayRef>> = Vec::with_capacity(over.len());
    for group in over {
        let mut state: Option<Vec<ArrayRef>> =
            (*group < held).then(|| old.iter().map(|a| a.slice(*group, 1)).collect());
        for (row, _) in rows.locals.iter().enumerate().filter(|(_, l)| *l == group) {
            if let Some(state) = &state {
                aggregate.accumulator.merge_batch(state, &[0], 1)?;
            }
            let one: Vec<ArrayRef> = rows.args.iter().map(|a| a.slice(row, 1)).collect();
            let keep = rows.filter.map(|f| f.slice(row, 1));
            aggregate.accumulator.update_batch(&one, &[0], keep.as_ref(), 1)?;
            let next = aggregate.accumulator.state(EmitTo::All)?;
            let full = aggregate.states.sizes(&next)?.first().is_some_and(|s| *s > cap);
            state = Some(next);
            if full {
                break;
            }
        }
        replaced.push(state.unwrap_or_else(|| new.iter().map(|a| a.slice(*group, 1)).collect()));
    }
    let mut out = Vec::with_capacity(new.len());
    for (column, array) in new.iter().enumerate() {
        let mut sources: Vec<&dyn Array> = vec![array.as_ref()];
        sources.extend(replaced.iter().map(|r| r[column].as_ref()));
        let picks: Vec<(usize, usize)> =
            (0..array.len()).map(|i| over.iter().position(|g| *g == i).map_or((0, i), |at| (at + 1, 0))).collect();
        out.push(interleave(&sources, &picks)?);
    }
    Ok(out)
}

pub(super) fn boolean(array: &ArrayRef) -> Result<&BooleanArray, Error> {
    use datafusion::arrow::array::AsArray;
    array.as_boolean_opt().ok_or_else(|| Error::Input("a condition is not boolean".into()))
}
