//! The same SQL text as a batch query: the oracle of the tests and the path of backfill.
//!
//! Windows are assigned here row by row in the plainest way, with no code of the streaming stores; everything else is
//! DataFusion's own optimiser and executor on the same plan.

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, RecordBatch, TimestampMicrosecondArray, UInt32Array};
use datafusion::arrow::compute::{concat_batches, take_record_batch};
use datafusion::arrow::datatypes::{Schema, TimestampMicrosecondType};
use datafusion::arrow::row::{RowConverter, SortField};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DataFusionError, Result, TableReference};
use datafusion::datasource::{MemTable, provider_as_source};
use datafusion::execution::SessionState;
use datafusion::logical_expr::{LogicalPlan, LogicalPlanBuilder};
use datafusion::physical_plan::collect;

use crate::clock::Micros;

use super::assign::WindowAssign;
use super::query::Query;
use super::window::Window;

impl Query {
    /// Runs the query over all of `batches` at once. The batches have the schema the query was compiled against; the result
    /// has one row per (key, window), in no particular order. Rows without a time belong to no window.
    pub async fn run_batch(&self, batches: Vec<RecordBatch>) -> Result<RecordBatch> {
        let input = concat_batches(&self.input, &batches)?;
        let state = self.state.as_ref();
        let plan = replace_table(self.plan.clone(), &self.table, &input)?;
        let mut node = None;
        plan.apply(|p| {
            if let LogicalPlan::Extension(e) = p
                && let Some(found) = e.node.as_ref().as_any().downcast_ref::<WindowAssign>()
            {
                node = Some(found.clone());
            }
            Ok(datafusion::common::tree_node::TreeNodeRecursion::Continue)
        })?;
        let node = node.ok_or_else(|| DataFusionError::Internal("no window node".into()))?;
        let below = execute(state, &node.input).await?;
        let assigned = self.assign(&node, &below)?;
        let scan = qualified_scan(&node, assigned)?;
        let plan = plan
            .transform_up(|p| match &p {
                LogicalPlan::Extension(_) => Ok(Transformed::yes(scan.clone())),
                _ => Ok(Transformed::no(p)),
            })?
            .data;
        let result = execute(state, &plan).await?;
        Ok(RecordBatch::try_new(Arc::clone(&self.output_schema), result.columns().to_vec())?)
    }

    fn assign(&self, node: &WindowAssign, rows: &RecordBatch) -> Result<RecordBatch> {
        let schema = node.input.schema();
        let time = self.state.create_physical_expr(node.time.clone(), schema)?;
        let times = time.evaluate(rows)?.into_array(rows.num_rows())?;
        let times = times.as_primitive::<TimestampMicrosecondType>();
        let (mut at, mut starts, mut ends): (Vec<u32>, Vec<Micros>, Vec<Micros>) = Default::default();
        let mut put = |row: usize, start: Micros, end: Micros| {
            at.push(u32::try_from(row).unwrap_or(u32::MAX));
            starts.push(start);
            ends.push(end);
        };
        match node.window {
            Window::Tumble { size } => list(times, size, size, &mut put),
            Window::Hop { slide, size } => list(times, slide, size, &mut put),
            Window::Session { gap } | Window::SessionUntil { gap } => {
                let marker = match &node.marker {
                    Some(m) => {
                        let values = self
                            .state
                            .create_physical_expr(m.clone(), schema)?
                            .evaluate(rows)?
                            .into_array(rows.num_rows())?;
                        let values = values.as_boolean().clone();
                        (0..rows.num_rows()).map(|i| values.is_valid(i) && values.value(i)).collect()
                    }
                    None => vec![false; rows.num_rows()],
                };
                let keys = self.key_bytes(rows)?;
                sessions(times, &keys, &marker, gap, &mut put);
            }
        }
        let taken = take_record_batch(rows, &UInt32Array::from(at))?;
        let mut columns: Vec<ArrayRef> = taken.columns().to_vec();
        columns.push(Arc::new(TimestampMicrosecondArray::from(starts)));
        columns.push(Arc::new(TimestampMicrosecondArray::from(ends)));
        let fields: Vec<_> = node.schema_fields();
        Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
    }

    /// The GROUP BY keys of each row as comparable bytes. Keys are over the table's columns, so they are evaluated there.
    fn key_bytes(&self, rows: &RecordBatch) -> Result<Vec<Vec<u8>>> {
        // the rows below a session have the table's columns in their order when nothing was projected in between
        let named: Vec<ArrayRef> = self
            .input
            .fields()
            .iter()
            .map(|f| match rows.schema().index_of(f.name()) {
                Ok(i) => Arc::clone(rows.column(i)),
                Err(_) => datafusion::arrow::array::new_null_array(f.data_type(), rows.num_rows()),
            })
            .collect();
        let table = RecordBatch::try_new(Arc::clone(&self.input), named)?;
        let keys = self
            .keys
            .iter()
            .map(|k| k.physical.evaluate(&table)?.into_array(table.num_rows()))
            .collect::<Result<Vec<_>>>()?;
        let converter = RowConverter::new(self.keys.iter().map(|k| SortField::new(k.ty.clone())).collect())?;
        let rows = converter.convert_columns(&keys)?;
        Ok(rows.iter().map(|r| r.as_ref().to_vec()).collect())
    }
}

impl WindowAssign {
    fn schema_fields(&self) -> Vec<datafusion::arrow::datatypes::FieldRef> {
        use datafusion::logical_expr::UserDefinedLogicalNodeCore;
        self.schema().fields().iter().map(Arc::clone).collect()
    }
}

fn list(
    times: &datafusion::arrow::array::PrimitiveArray<TimestampMicrosecondType>,
    slide: Micros,
    size: Micros,
    put: &mut impl FnMut(usize, Micros, Micros),
) {
    for (row, time) in times.iter().enumerate() {
        let Some(time) = time else { continue };
        let mut start = time.div_euclid(slide) * slide;
        while start > time - size {
            put(row, start, start + size);
            start -= slide;
        }
    }
}

fn sessions(
    times: &datafusion::arrow::array::PrimitiveArray<TimestampMicrosecondType>,
    keys: &[Vec<u8>],
    marker: &[bool],
    gap: Micros,
    put: &mut impl FnMut(usize, Micros, Micros),
) {
    let mut by_key: BTreeMap<&[u8], Vec<(Micros, usize)>> = BTreeMap::new();
    for (row, time) in times.iter().enumerate() {
        if let Some(time) = time {
            by_key.entry(&keys[row]).or_default().push((time, row));
        }
    }
    for rows in by_key.values_mut() {
        rows.sort_unstable();
        let mut from = 0;
        while from < rows.len() {
            let mut to = from + 1;
            let mut marked = marker[rows[from].1];
            while to < rows.len() {
                let (previous, next) = (rows[to - 1].0, rows[to].0);
                if next - previous >= gap || (marked && next > previous) {
                    break;
                }
                marked |= marker[rows[to].1];
                to += 1;
            }
            let last = rows[to - 1].0;
            let end = if marked { last } else { last + gap };
            for (_, row) in &rows[from..to] {
                put(*row, rows[from].0, end);
            }
            from = to;
        }
    }
}

async fn execute(state: &SessionState, plan: &LogicalPlan) -> Result<RecordBatch> {
    let physical = state.create_physical_plan(plan).await?;
    let schema = physical.schema();
    let batches = collect(physical, state.task_ctx()).await?;
    Ok(concat_batches(&schema, &batches)?)
}

fn replace_table(plan: LogicalPlan, table: &str, rows: &RecordBatch) -> Result<LogicalPlan> {
    plan.transform_up_with_subqueries(|p| {
        let LogicalPlan::TableScan(scan) = &p else { return Ok(Transformed::no(p)) };
        if scan.table_name.table() != table {
            return Ok(Transformed::no(p));
        }
        let provider = MemTable::try_new(rows.schema(), vec![vec![rows.clone()]])?;
        let built = LogicalPlanBuilder::scan(
            scan.table_name.clone(),
            provider_as_source(Arc::new(provider)),
            scan.projection.clone(),
        )?;
        Ok(Transformed::yes(built.build()?))
    })
    .map(|t| t.data)
}

/// A scan of `rows` whose columns have the qualifiers of the window node.
fn qualified_scan(node: &WindowAssign, rows: RecordBatch) -> Result<LogicalPlan> {
    use datafusion::logical_expr::UserDefinedLogicalNodeCore;
    let qualifier: Option<TableReference> = node.schema().iter().next().and_then(|(q, _)| q.cloned());
    let provider = MemTable::try_new(rows.schema(), vec![vec![rows]])?;
    let name = qualifier.unwrap_or_else(|| TableReference::bare("windowed"));
    LogicalPlanBuilder::scan(name, provider_as_source(Arc::new(provider)), None)?.build()
}
