//! From evaluated states to result rows: HAVING and the output columns of each query.

use std::sync::Arc;

use datafusion::arrow::array::{
    Array, ArrayRef, BooleanArray, RecordBatch, RecordBatchOptions, TimestampMicrosecondArray, UInt32Array,
    new_null_array,
};
use datafusion::arrow::compute::{and, concat, prep_null_mask_filter, take, take_record_batch};
use datafusion::arrow::datatypes::{Field, Schema};
use datafusion::physical_expr::PhysicalExpr;

use crate::clock::Micros;

use super::Error;
use super::budget::Dark;
use super::keys::KeySet;
use super::output::{Empty, QueryRows};
use super::pool::{NOTHING, Pool, boolean};
use super::query::{GroupColumn, Query};
use super::time::NEVER;

/// A window to evaluate: the union of `parts[from..to]`, in time order.
#[derive(Debug, Clone, Copy)]
pub(super) struct Eval {
    pub(super) group: u32,
    pub(super) at: u32,
    pub(super) window: (Micros, Micros),
    pub(super) from: u32,
    pub(super) to: u32,
}

/// Windows to evaluate together.
#[derive(Debug, Default)]
pub(super) struct Evals {
    pub(super) list: Vec<Eval>,
    pub(super) parts: Vec<u32>,
}

impl Evals {
    pub(super) fn begin(&self) -> u32 {
        self.parts.len() as u32
    }

    /// Adds a window made of the parts pushed since `from`.
    pub(super) fn end(&mut self, group: u32, at: u32, window: (Micros, Micros), from: u32) {
        let to = self.parts.len() as u32;
        self.list.push(Eval { group, at, window, from, to });
    }

    /// Orders by (row, end, key): ids depend on what was freed when, keys do not.
    pub(super) fn sort(&mut self, keys: &KeySet) {
        self.list.sort_by(|a, b| {
            (a.at, a.window.1, a.window.0)
                .cmp(&(b.at, b.window.1, b.window.0))
                .then_with(|| keys.bytes_of(a.group).cmp(keys.bytes_of(b.group)))
        });
    }
}

/// A query within a store.
pub(super) struct Member {
    /// Index in the engine.
    pub(super) index: usize,
    pub(super) query: Arc<Query>,
    /// Where the query's keys are among the key set's.
    keys: Vec<usize>,
    /// Where the query's aggregates are among the store's.
    pub(super) aggregates: Vec<usize>,
    /// Per clock: windows that start at or before this may lack rows.
    pub(super) blind_until: Vec<Micros>,
}

impl Member {
    pub(super) fn new(index: usize, query: Arc<Query>, keys: Vec<usize>, aggregates: Vec<usize>) -> Self {
        Self { index, query, keys, aggregates, blind_until: Vec::new() }
    }
}

/// Rows of one query and which evaluated windows they are of.
pub(super) struct Emitted {
    pub(super) rows: QueryRows,
    /// For each row, its index in the evaluated list; `None`: all, in order.
    pub(super) kept: Option<Vec<u32>>,
}

/// Evaluates windows for some members of a store. With `values_at`, the engine's expressions over the batch, every window's
/// `at` is a row of its group.
pub(super) fn emit(
    pool: &mut Pool,
    keys: &KeySet,
    members: &[&Member],
    evals: &Evals,
    values_at: Option<&[ArrayRef]>,
    dark: Dark<'_>,
    errors: &mut u64,
) -> Result<Vec<Emitted>, Error> {
    let n = evals.list.len();
    if n == 0 || members.is_empty() {
        return Ok(Vec::new());
    }
    let ordered = evals.list.windows(2).all(|w| w[0].to == w[1].from) && evals.list[0].from == 0;
    let total = evals.list[n - 1].to as usize;
    let (mut parts, mut of) = (Vec::with_capacity(total), Vec::with_capacity(total));
    let mut evidence = Vec::with_capacity(n);
    for (i, eval) in evals.list.iter().enumerate() {
        let mut seen = NOTHING;
        for part in &evals.parts[eval.from as usize..eval.to as usize] {
            let (lo, hi) = pool.evidence(*part);
            seen = (seen.0.min(lo), seen.1.max(hi));
            of.push(i);
            if !ordered {
                parts.push(*part);
            }
        }
        evidence.push(seen);
    }
    let parts: &[u32] = if ordered { &evals.parts[..total] } else { &parts };
    let mut values: Vec<Option<ArrayRef>> = vec![None; pool.aggregates.len()];
    for member in members {
        for a in &member.aggregates {
            if values[*a].is_none() {
                values[*a] = Some(pool.evaluate(*a, parts, &of, n)?);
            }
        }
    }
    let capped: Vec<bool> = pool.aggregates.iter().map(|a| a.states.any_capped()).collect();
    let key_columns = match values_at {
        // the causing row has the key: copying it is cheaper than decoding
        Some(values) => {
            let rows = UInt32Array::from_iter_values(evals.list.iter().map(|e| e.at));
            keys.columns.iter().map(|c| Ok(take(&values[*c], &rows, None)?)).collect::<Result<Vec<_>, Error>>()?
        }
        None => keys.columns(evals.list.iter().map(|e| e.group))?,
    };
    let starts: ArrayRef = Arc::new(evals.list.iter().map(|e| Some(e.window.0)).collect::<TimestampMicrosecondArray>());
    let ends: ArrayRef = Arc::new(evals.list.iter().map(|e| Some(e.window.1)).collect::<TimestampMicrosecondArray>());

    let mut out = Vec::with_capacity(members.len());
    for member in members {
        let query = &member.query;
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(query.group_columns.len() + member.aggregates.len());
        for column in &query.group_columns {
            columns.push(match column {
                GroupColumn::Key(k) => Arc::clone(&key_columns[member.keys[*k]]),
                GroupColumn::Start => Arc::clone(&starts),
                GroupColumn::End => Arc::clone(&ends),
            });
        }
        columns.extend(member.aggregates.iter().filter_map(|a| values[*a].clone()));
        let options = RecordBatchOptions::new().with_row_count(Some(n));
        let mut batch = RecordBatch::try_new_with_options(Arc::clone(&query.aggregate_schema), columns, &options)?;
        let mut keep: Option<BooleanArray> = None;
        for predicate in &query.having {
            let mask = evaluate(predicate, &batch, errors)?;
            let mask = boolean(&mask)?;
            let mask = if mask.null_count() > 0 { prep_null_mask_filter(mask) } else { mask.clone() };
            keep = Some(match keep {
                Some(k) => and(&k, &mask)?,
                None => mask,
            });
        }
        let kept: Option<Vec<u32>> =
            keep.filter(|k| k.true_count() < n).map(|k| (0..n as u32).filter(|i| k.value(*i as usize)).collect());
        if let Some(kept) = &kept {
            batch = take_record_batch(&batch, &UInt32Array::from(kept.clone()))?;
        }
        let output = query.output.iter().map(|e| evaluate(e, &batch, errors)).collect::<Result<Vec<_>, _>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        let rows = RecordBatch::try_new_with_options(Arc::clone(&query.output_schema), output, &options)?;
        let picks: &mut dyn Iterator<Item = usize> = match &kept {
            Some(kept) => &mut kept.iter().map(|i| *i as usize),
            None => &mut (0..n),
        };
        let mut result = QueryRows {
            query: member.index,
            rows,
            at: Vec::with_capacity(batch.num_rows()),
            group: Vec::with_capacity(batch.num_rows()),
            window: Vec::with_capacity(batch.num_rows()),
            evidence: Vec::with_capacity(batch.num_rows()),
            complete: Vec::with_capacity(batch.num_rows()),
        };
        let any_capped = member.aggregates.iter().any(|a| capped[*a]);
        for i in picks {
            let eval = &evals.list[i];
            result.at.push(eval.at);
            result.group.push(eval.group);
            result.window.push(eval.window);
            result.evidence.push(evidence[i]);
            let clock = keys.clock(eval.group);
            let until = member.blind_until.get(clock as usize).copied().unwrap_or(NEVER);
            let blind = eval.window.0 <= until.max(dark.until(eval.at, clock)) && eval.window.0 != NEVER;
            let cut = any_capped
                && evals.parts[eval.from as usize..eval.to as usize]
                    .iter()
                    .any(|p| member.aggregates.iter().any(|a| pool.aggregates[*a].states.is_capped(*p)));
            result.complete.push(!blind && !cut);
        }
        out.push(Emitted { rows: result, kept });
    }
    Ok(out)
}

/// Windows without a row, for one query.
pub(super) fn empties(keys: &KeySet, member: &Member, windows: &[Eval]) -> Result<Option<Empty>, Error> {
    if windows.is_empty() {
        return Ok(None);
    }
    let all = keys.columns(windows.iter().map(|e| e.group))?;
    let columns: Vec<ArrayRef> = member.keys.iter().map(|k| Arc::clone(&all[*k])).collect();
    let fields: Vec<Field> = member
        .query
        .keys()
        .iter()
        .zip(&columns)
        .map(|(name, column)| Field::new(name, column.data_type().clone(), true))
        .collect();
    Ok(Some(Empty {
        query: member.index,
        keys: RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?,
        group: windows.iter().map(|e| e.group).collect(),
        window: windows.iter().map(|e| e.window).collect(),
        at: windows.iter().map(|e| e.at).collect(),
    }))
}

/// Some rows of a result.
pub(super) fn pick(rows: &QueryRows, which: &[u32]) -> Result<QueryRows, Error> {
    Ok(QueryRows {
        query: rows.query,
        rows: take_record_batch(&rows.rows, &UInt32Array::from(which.to_vec()))?,
        at: which.iter().map(|i| rows.at[*i as usize]).collect(),
        group: which.iter().map(|i| rows.group[*i as usize]).collect(),
        window: which.iter().map(|i| rows.window[*i as usize]).collect(),
        evidence: which.iter().map(|i| rows.evidence[*i as usize]).collect(),
        complete: which.iter().map(|i| rows.complete[*i as usize]).collect(),
    })
}

/// Evaluates an expression over a batch. Where it fails as a whole (division by zero, overflow), the rows are evaluated one
/// by one and those that fail are NULL and counted: a bad row must not stop the others.
pub(super) fn evaluate(expr: &Arc<dyn PhysicalExpr>, batch: &RecordBatch, errors: &mut u64) -> Result<ArrayRef, Error> {
    let rows = batch.num_rows();
    if let Ok(value) = expr.evaluate(batch).and_then(|v| v.into_array(rows)) {
        return Ok(value);
    }
    let ty = expr.data_type(batch.schema_ref())?;
    let mut pieces = Vec::with_capacity(rows);
    for row in 0..rows {
        let one = batch.slice(row, 1);
        pieces.push(expr.evaluate(&one).and_then(|v| v.into_array(1)).unwrap_or_else(|_| {
            *errors += 1;
            new_null_array(&ty, 1)
        }));
    }
    if pieces.is_empty() {
        return Ok(new_null_array(&ty, 0));
    }
    let pieces: Vec<&dyn Array> = pieces.iter().map(AsRef::as_ref).collect();
    Ok(concat(&pieces)?)
}

/// Some elements of an array.
pub(super) fn taken(array: &ArrayRef, rows: &[u32]) -> Result<ArrayRef, Error> {
    Ok(take(array, &UInt32Array::from(rows.to_vec()), None)?)
}
