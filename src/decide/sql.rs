//! A decision written in SQL, prepared once and run on small batches many times.
//!
//! A [`Prepared`] statement reads from named slots. Running it puts a batch into each slot and executes the same physical
//! plan again, after `reset_plan_states`: without the reset a hash join keeps its first build side for ever and every
//! execution leaks its metrics. One partition, no spawned task: it runs on the calling thread, in or out of a runtime.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use datafusion::arrow::compute::concat_batches;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::arrow::record_batch::RecordBatch;
use datafusion::catalog::Session;
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result as DfResult, Statistics};
use datafusion::datasource::{TableProvider, TableType};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::Expr;
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{
    Boundedness, EmissionType, ReplaceChildrenOptions, SchedulingType, reset_plan_states,
};
use datafusion::physical_plan::memory::MemoryStream;
use datafusion::physical_plan::statistics::StatisticsArgs;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties, collect};
use datafusion::prelude::{SessionConfig, SessionContext};

use crate::stream;

/// Why a statement could not be prepared or run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The text does not compile against its slots.
    #[error(transparent)]
    Compile(Box<stream::CompileError>),
    /// The output lacks a column the caller reads, or has it with another type.
    #[error("{name} must give the columns {expected}; it gives {given}")]
    Output {
        /// Name of the statement.
        name: String,
        /// What is needed.
        expected: String,
        /// What there is.
        given: String,
    },
    /// It failed on data.
    #[error("{name} failed: {source}")]
    Run {
        /// Name of the statement.
        name: String,
        /// DataFusion's reason.
        #[source]
        source: Box<datafusion::error::DataFusionError>,
    },
}

/// A table the statement reads: its name, its schema, and whether it is the small side of joins.
pub struct Slot<'a> {
    /// Table name in the SQL text.
    pub name: &'a str,
    /// Schema of the batches put in.
    pub schema: SchemaRef,
    /// Lookup tables are built, streams are probed.
    pub lookup: bool,
}

type Content = Arc<Mutex<Option<RecordBatch>>>;

/// A compiled statement.
pub struct Prepared {
    name: String,
    slots: Vec<Content>,
    plan: Arc<dyn ExecutionPlan>,
    context: Arc<TaskContext>,
}

impl Prepared {
    /// Compiles `sql` over `slots`; `output` lists the columns the caller reads, each cast to the schema given.
    pub fn new(name: &str, sql: &str, slots: &[Slot<'_>], output: &SchemaRef) -> Result<Self, Error> {
        let fail = |error| Error::Compile(Box::new(stream::explain(name, &error)));
        let mut config = SessionConfig::new().with_target_partitions(1).with_batch_size(65_536);
        config.options_mut().sql_parser.collect_spans = true;
        let context = SessionContext::new_with_config(config);
        let mut contents = Vec::new();
        for slot in slots {
            let content = Content::default();
            contents.push(Arc::clone(&content));
            let table = SlotTable { schema: Arc::clone(&slot.schema), lookup: slot.lookup, content };
            context.register_table(slot.name, Arc::new(table)).map_err(fail)?;
        }
        let plan = futures::executor::block_on(tokio::task::unconstrained(async {
            let frame = context.sql(sql).await?;
            let given = frame.schema().clone();
            let mut columns = Vec::new();
            for field in output.fields() {
                let Ok(_) = given.index_of_column_by_name(None, field.name()).ok_or(()) else {
                    return Ok(Err(given));
                };
                let column = Expr::Column(datafusion::common::Column::from_name(field.name()));
                columns.push(datafusion::logical_expr::cast(column, field.data_type().clone()).alias(field.name()));
            }
            frame.select(columns)?.create_physical_plan().await.map(Ok)
        }))
        .map_err(fail)?
        .map_err(|given| Error::Output {
            name: name.into(),
            expected: names(output.fields().iter().map(|f| f.name().as_str())),
            given: names(given.fields().iter().map(|f| f.name().as_str())),
        })?;
        Ok(Self { name: name.into(), slots: contents, plan, context: context.task_ctx() })
    }

    /// Runs the statement on one batch per slot, in the order of the slots, and gives all rows as one batch.
    pub fn run(&mut self, inputs: Vec<RecordBatch>) -> Result<RecordBatch, Error> {
        let fail = |name: &str, source| Error::Run { name: name.into(), source: Box::new(source) };
        for (slot, batch) in self.slots.iter().zip(inputs) {
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(batch);
        }
        self.plan = reset_plan_states(Arc::clone(&self.plan)).map_err(|e| fail(&self.name, e))?;
        let task = collect(Arc::clone(&self.plan), Arc::clone(&self.context));
        let batches = futures::executor::block_on(tokio::task::unconstrained(task)).map_err(|e| fail(&self.name, e))?;
        concat_batches(&self.plan.schema(), &batches).map_err(|e| fail(&self.name, e.into()))
    }
}

fn names<'a>(fields: impl Iterator<Item = &'a str>) -> String {
    fields.collect::<Vec<_>>().join(", ")
}

#[derive(Debug)]
struct SlotTable {
    schema: SchemaRef,
    lookup: bool,
    content: Content,
}

#[async_trait]
impl TableProvider for SlotTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Temporary
    }

    async fn scan(
        &self,
        _state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> DfResult<Arc<dyn ExecutionPlan>> {
        let schema = match projection {
            Some(p) => Arc::new(self.schema.project(p)?),
            None => Arc::clone(&self.schema),
        };
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&schema)),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Incremental,
            Boundedness::Bounded,
        )
        .with_scheduling_type(SchedulingType::Cooperative);
        Ok(Arc::new(SlotExec {
            content: Arc::clone(&self.content),
            projection: projection.cloned(),
            lookup: self.lookup,
            properties: Arc::new(properties),
        }))
    }
}

#[derive(Debug)]
struct SlotExec {
    content: Content,
    projection: Option<Vec<usize>>,
    lookup: bool,
    properties: Arc<PlanProperties>,
}

impl DisplayAs for SlotExec {
    fn fmt_as(&self, _t: DisplayFormatType, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SlotExec: lookup={}", self.lookup)
    }
}

impl ExecutionPlan for SlotExec {
    fn name(&self) -> &'static str {
        "SlotExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![]
    }

    fn apply_expressions(
        &self,
        _f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> DfResult<TreeNodeRecursion>,
    ) -> DfResult<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        _: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> DfResult<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn with_new_children(self: Arc<Self>, _: Vec<Arc<dyn ExecutionPlan>>) -> DfResult<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, _partition: usize, _context: Arc<TaskContext>) -> DfResult<SendableRecordBatchStream> {
        let batch = self.content.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let batches = batch.map(|b| match &self.projection {
            Some(p) => b.project(p),
            None => Ok(b),
        });
        let batches: Vec<RecordBatch> = batches.transpose()?.into_iter().collect();
        Ok(Box::pin(MemoryStream::try_new(
            batches,
            Arc::clone(self.properties.equivalence_properties().schema()),
            None,
        )?))
    }

    fn statistics_from_inputs(&self, _input: &[Arc<Statistics>], _args: &StatisticsArgs) -> DfResult<Arc<Statistics>> {
        let mut statistics = Statistics::new_unknown(self.properties.equivalence_properties().schema());
        statistics.num_rows = Precision::Inexact(if self.lookup { 1 } else { 1 << 40 });
        statistics.total_byte_size = Precision::Inexact(if self.lookup { 1 } else { 1 << 40 });
        Ok(Arc::new(statistics))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::arrow::array::{Int64Array, RecordBatch};
    use datafusion::arrow::datatypes::{DataType, Field, Schema};

    fn schema(names: &[&str]) -> SchemaRef {
        Arc::new(Schema::new(names.iter().map(|n| Field::new(*n, DataType::Int64, true)).collect::<Vec<_>>()))
    }

    fn batch(s: &SchemaRef, columns: &[&[i64]]) -> RecordBatch {
        RecordBatch::try_new(
            Arc::clone(s),
            columns.iter().map(|c| Arc::new(Int64Array::from(c.to_vec())) as _).collect(),
        )
        .unwrap()
    }

    #[test]
    fn a_join_sees_new_rows_on_both_sides_at_every_run() {
        let (l, r) = (schema(&["k", "v"]), schema(&["k", "max"]));
        let slots = [
            Slot { name: "results", schema: Arc::clone(&l), lookup: false },
            Slot { name: "limits", schema: Arc::clone(&r), lookup: true },
        ];
        let sql = "SELECT v, max FROM results JOIN limits USING (k) WHERE v >= max";
        let mut p = Prepared::new("t", sql, &slots, &schema(&["v", "max"])).unwrap();
        let first = p.run(vec![batch(&l, &[&[1, 2], &[10, 20]]), batch(&r, &[&[1, 2], &[10, 30]])]).unwrap();
        assert_eq!(first.num_rows(), 1);
        let second = p.run(vec![batch(&l, &[&[2, 2], &[31, 32]]), batch(&r, &[&[2], &[31]])]).unwrap();
        assert_eq!(second.num_rows(), 2, "the second run must not see the first run's build side");
        assert_eq!(second.schema().field(0).name(), "v");
    }

    #[test]
    fn what_does_not_compile_says_where() {
        let slots = [Slot { name: "results", schema: schema(&["k"]), lookup: false }];
        for (sql, line, column) in [("SELECT k\nFROM results WHERE kk > 1", 2, 20), ("SELECT k,,\nFROM results", 1, 10)]
        {
            let error = Prepared::new("x.sql", sql, &slots, &schema(&["k"])).err().unwrap();
            let Error::Compile(error) = error else { panic!("{error}") };
            assert_eq!((error.line, error.column), (Some(line), Some(column)), "{error}");
        }
    }

    #[test]
    fn a_missing_output_column_is_named() {
        let l = schema(&["k"]);
        let slots = [Slot { name: "results", schema: Arc::clone(&l), lookup: false }];
        let error = Prepared::new("x.sql", "SELECT k FROM results", &slots, &schema(&["level"])).err().unwrap();
        assert!(error.to_string().contains("level"), "{error}");
    }
}
