//! SQL text → [`Query`].
//!
//! The analysed (not the optimised) plan is split at the windowed aggregate: optimising first would push
//! `HAVING window_end > x` below the aggregate, where it means something else, and turn a lone `count(distinct x)` into two
//! aggregates. Each half then becomes plain expressions (`flatten`), simplified one by one.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::{Column, DFSchema, DataFusionError, Result};
use datafusion::config::Dialect;
use datafusion::datasource::empty::EmptyTable;
use datafusion::execution::{SessionState, SessionStateBuilder};
use datafusion::logical_expr::expr::AggregateFunction;
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::utils::split_conjunction_owned;
use datafusion::logical_expr::{AggregateUDF, Expr, ExprSchemable};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::physical_expr::aggregate::LoweredAggregateBuilder;
use datafusion::physical_expr::{PhysicalExpr, create_physical_expr};
use datafusion::prelude::{SessionConfig, SessionContext};

use super::Settings;
use super::assign::WindowPlanner;
use super::flatten::{self, Flat};
use super::monotone::Judge;
use super::quantile::Quantile;
use super::query::{AggregateCall, Expression, GroupColumn, Query, fingerprint};
use super::reject::{Reject, reject};
use super::sql;

/// The engine's major version: state of another one is not read.
const ENGINE: &str = "datafusion-55";

/// Why a query does not compile, where, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{query}: {message}{}", self.place())]
pub struct CompileError {
    /// Name of the query.
    pub query: String,
    /// What is wrong.
    pub message: String,
    /// Line in the SQL text, from 1.
    pub line: Option<u64>,
    /// Column in that line, from 1.
    pub column: Option<u64>,
    /// FROM, WHERE, GROUP BY, …
    pub clause: Option<String>,
    /// The fix.
    pub help: Option<String>,
}

impl CompileError {
    fn place(&self) -> String {
        match (self.line, self.column, &self.clause) {
            (Some(line), Some(column), _) => format!(" (line {line}, column {column})"),
            (_, _, Some(clause)) => format!(" (in {clause})"),
            _ => String::new(),
        }
    }
}

/// Compiles SQL against one input schema.
#[derive(Debug, Clone)]
pub struct Compiler {
    state: Arc<SessionState>,
    schema: SchemaRef,
    base: Arc<DFSchema>,
    settings: Settings,
}

impl Compiler {
    /// A compiler for the table `settings.table` with columns `schema`.
    pub fn new(schema: SchemaRef, settings: &Settings) -> Self {
        let mut config = SessionConfig::new().with_target_partitions(1).with_information_schema(false);
        let options = config.options_mut();
        options.sql_parser.collect_spans = true;
        // one string type everywhere: keys and states must have the type they are restored with
        options.sql_parser.map_string_types_to_utf8view = false;
        let state = SessionStateBuilder::new().with_default_features().with_config(config).build();
        let context = SessionContext::new_with_state(state);
        context.register_udaf(AggregateUDF::from(Quantile::new()));
        let table = Arc::new(EmptyTable::new(Arc::clone(&schema)));
        let registered = context.register_table(settings.table.as_str(), table);
        debug_assert!(registered.is_ok(), "the catalog is empty");
        let planner_registered = context.register_relation_planner(Arc::new(WindowPlanner));
        debug_assert!(planner_registered.is_ok(), "the planner list is open");
        let base =
            DFSchema::try_from_qualified_schema(settings.table.as_str(), &schema).unwrap_or_else(|_| DFSchema::empty());
        Self { state: Arc::new(context.state()), schema, base: Arc::new(base), settings: settings.clone() }
    }

    /// Compiles one SELECT.
    ///
    /// # Errors
    /// When the text is not a windowed aggregation this engine can run; the error says where and what to write instead.
    #[expect(clippy::result_large_err, reason = "compiling is rare and its caller prints the whole error")]
    pub fn compile(&self, name: &str, sql: &str) -> Result<Query, CompileError> {
        self.build(name, sql).map_err(|e| explain(name, &e))
    }

    fn build(&self, name: &str, text: &str) -> Result<Query> {
        let mut statement = self.state.sql_to_statement(text, &Dialect::Generic)?;
        sql::prepare(&mut statement, &self.settings.table)?;
        let plan = ready(self.state.statement_to_plan(statement))?;
        let plan = self.state.analyzer().execute_and_check(plan, self.state.config_options(), |_, _| {})?;
        let (above, aggregate) = flatten::above(&plan)?;
        let below = flatten::below(&aggregate.input)?;
        let Some(assigned) = &below.window else {
            return Err(reject(
                "FROM",
                "there is no windowed aggregation",
                format!("select from tumble(), hop() or session() over `{}`", self.settings.table),
            ));
        };
        self.is_time_column(&assigned.time)?;

        let input_schema = aggregate.input.schema();
        let base = &self.base;
        let mut keys = Vec::new();
        let mut group_columns = Vec::new();
        for group in &aggregate.group_expr {
            if matches!(group, Expr::GroupingSet(_)) {
                return Err(reject("GROUP BY", "GROUPING SETS are not supported", "list plain columns"));
            }
            let expr = flatten::over(group, input_schema, &below.columns)?;
            match flatten::window_bound(&expr) {
                Some(true) => group_columns.push(GroupColumn::Start),
                Some(false) => group_columns.push(GroupColumn::End),
                None if flatten::mentions_window(&expr) => {
                    return Err(reject(
                        "GROUP BY",
                        format!("`{group}` computes with a window column"),
                        "group by window_start, window_end themselves",
                    ));
                }
                None => {
                    group_columns.push(GroupColumn::Key(keys.len()));
                    keys.push(self.expression(expr, base)?);
                }
            }
        }
        if !group_columns.iter().any(|c| matches!(c, GroupColumn::Start | GroupColumn::End)) {
            return Err(reject("GROUP BY", "window_start and window_end are missing", "add window_start, window_end"));
        }
        let clock = Column::new(Some(self.settings.table.as_str()), self.settings.clock_column.as_str()).flat_name();
        if !keys.iter().any(|k| k.text == clock) {
            return Err(reject(
                "GROUP BY",
                format!("{} is missing: each {0} has its own watermark", self.settings.clock_column),
                format!("add {}", self.settings.clock_column),
            ));
        }

        if let Some(key) = keys.iter().find(|k| matches!(k.ty, DataType::Dictionary(..))) {
            return Err(reject(
                "GROUP BY",
                format!("the key `{}` is a dictionary", key.text),
                "cast it to a plain type",
            ));
        }
        let aggregates = self.aggregates(&aggregate.aggr_expr, input_schema, &below)?;
        let aggregate_schema = Arc::new(aggregate.schema.as_arrow().clone());
        let key_only = |e: &Expr| e.column_refs().iter().all(|c| keys.iter().any(|k| k.text == c.flat_name()));
        let (mut below_filters, mut between) = (Vec::new(), Vec::new());
        let session = assigned.window.is_session();
        for filter in &assigned.below {
            below_filters.extend(split_conjunction_owned(filter.clone()));
        }
        for conjunct in below.filters.iter().flat_map(|f| split_conjunction_owned(f.clone())) {
            // under session() a predicate may sink only when it keeps or drops a key's sessions whole
            if !session || key_only(&conjunct) { below_filters.push(conjunct) } else { between.push(conjunct) }
        }
        let below_filters = self.conjuncts(below_filters)?;
        let between = self.conjuncts(between)?;
        let marker = assigned.marker.clone().map(|m| self.expression(m, base)).transpose()?;
        if marker.as_ref().is_some_and(|m| m.ty != DataType::Boolean) {
            return Err(reject(
                "FROM",
                "the marker of session() is not a boolean",
                "write a condition, such as event_type = 'run.completed'",
            ));
        }

        let post = Arc::clone(&aggregate.schema);
        let having = above.filters.iter().flat_map(|f| split_conjunction_owned(f.clone())).collect::<Vec<_>>();
        let having_physical = having.iter().map(|e| self.physical(e.clone(), &post)).collect::<Result<Vec<_>>>()?;
        let mut output = Vec::new();
        let mut fields = Vec::new();
        for (expr, (_, field)) in above.columns.iter().zip(plan.schema().iter()) {
            let physical = self.physical(expr.clone(), &post)?;
            let ty = physical.data_type(&aggregate_schema)?;
            fields.push(Field::new(field.name(), ty, true));
            output.push(physical);
        }
        let is_window = |c: &Column| {
            post.maybe_index_of_column(c)
                .and_then(|i| group_columns.get(i))
                .is_some_and(|g| !matches!(g, GroupColumn::Key(_)))
        };
        let reads_window = |e: &Expr| e.column_refs().iter().any(|c| is_window(c));
        let window_dependent = having.iter().any(reads_window)
            || above.columns.iter().any(|e| !matches!(e, Expr::Column(_)) && reads_window(e));

        let value = fields.iter().position(|f| f.name() == "value");
        let calls: Vec<Option<AggregateFunction>> = std::iter::repeat_n(None, group_columns.len())
            .chain(
                aggregate
                    .aggr_expr
                    .iter()
                    .map(|e| flatten::over(e, input_schema, &below.columns).ok().and_then(as_call)),
            )
            .collect();
        let judge = Judge {
            aggregates: calls.iter().map(Option::as_ref).collect(),
            index: &|c| post.maybe_index_of_column(c),
            non_negative: &self.settings.non_negative,
        };
        let not_early = match value {
            None => Some("it has no column named value".to_owned()),
            Some(_) if window_dependent => Some("HAVING or an output column computes with the window".to_owned()),
            Some(i) => judge.early(&above.columns[i], &having).err(),
        };
        let key_names = group_columns
            .iter()
            .enumerate()
            .filter_map(|(i, g)| matches!(g, GroupColumn::Key(_)).then_some(i))
            .map(|i| self.key_name(i, &above, &post, &fields, aggregate))
            .collect();

        let mut parts = vec![ENGINE.to_owned(), format!("{:?}", assigned.window)];
        parts.extend(keys.iter().map(|k| format!("key {} {}", k.text, k.ty)));
        parts.extend(marker.iter().map(|m| format!("marker {}", m.text)));
        parts.extend(below_filters.iter().map(|m| format!("below {}", m.text)));
        parts.extend(between.iter().map(|m| format!("between {}", m.text)));
        if window_dependent && assigned.window.is_hop() {
            // such a query has a store of its own, and loses its state with it
            parts.push("every".to_owned());
        }
        let mut texts: Vec<_> = aggregates.iter().map(|a| a.text.clone()).collect();
        texts.sort_unstable();
        parts.extend(texts);
        Ok(Query {
            name: name.to_owned(),
            sql: text.to_owned(),
            window: assigned.window,
            key_names,
            keys,
            group_columns,
            marker,
            below: below_filters,
            between,
            aggregates,
            aggregate_schema,
            having: having_physical,
            output,
            output_schema: Arc::new(Schema::new(fields)),
            value,
            not_early,
            window_dependent,
            fingerprint: fingerprint(parts.iter().map(String::as_str)),
            input: Arc::clone(&self.schema),
            table: self.settings.table.clone(),
            plan,
            state: Arc::clone(&self.state),
        })
    }

    fn is_time_column(&self, time: &Expr) -> Result<()> {
        match time {
            Expr::Column(c) if c.name == self.settings.time_column => Ok(()),
            other => Err(reject(
                "FROM",
                format!("windows are over {}, not `{other}`", self.settings.time_column),
                format!("write {}", self.settings.time_column),
            )),
        }
    }

    fn key_name(
        &self,
        column: usize,
        above: &Flat,
        post: &DFSchema,
        fields: &[Field],
        aggregate: &datafusion::logical_expr::Aggregate,
    ) -> String {
        above
            .columns
            .iter()
            .position(|e| matches!(e, Expr::Column(c) if post.maybe_index_of_column(c) == Some(column)))
            .map_or_else(|| aggregate.schema.field(column).name().clone(), |i| fields[i].name().clone())
    }

    fn aggregates(&self, exprs: &[Expr], input: &DFSchema, below: &Flat) -> Result<Vec<AggregateCall>> {
        let mut calls = Vec::with_capacity(exprs.len());
        for original in exprs {
            let expr = flatten::over(original, input, &below.columns)?;
            if flatten::mentions_window(&expr) {
                return Err(reject(
                    "SELECT",
                    format!("`{original}` aggregates a window column"),
                    "use the window columns outside aggregates",
                ));
            }
            let Some(mut call) = as_call(expr) else {
                return Err(reject("SELECT", format!("`{original}` is not an aggregate"), "use count, sum, max, …"));
            };
            for arg in &mut call.params.args {
                *arg = self.simplify(arg.clone(), &self.base)?;
            }
            if let Some(filter) = call.params.filter.take() {
                call.params.filter = Some(Box::new(self.simplify(*filter, &self.base)?));
            }
            for sort in &mut call.params.order_by {
                sort.expr = self.simplify(sort.expr.clone(), &self.base)?;
            }
            let filter = call.params.filter.as_deref().map(|f| self.lowered(f, &self.base)).transpose()?;
            let mut args = Vec::new();
            for arg in call.params.args.iter().chain(call.params.order_by.iter().map(|s| &s.expr)) {
                args.push(self.lowered(arg, &self.base)?);
            }
            let expr = Expr::AggregateFunction(call);
            let planning = PhysicalPlanningContext::default();
            let lowered =
                LoweredAggregateBuilder::new(&expr, &self.base, &self.schema, self.state.execution_props(), &planning)
                    .build()?;
            let call = lowered.aggregate;
            let states: Vec<_> = call.state_fields()?.iter().map(|f| f.data_type().to_string()).collect();
            let types: Vec<_> = args.iter().map(|a| a.ty.to_string()).collect();
            let text = format!("{expr} args=[{}] state=[{}]", types.join(","), states.join(","));
            calls.push(AggregateCall { call, args, filter, text });
        }
        Ok(calls)
    }

    fn conjuncts(&self, exprs: Vec<Expr>) -> Result<Vec<Expression>> {
        let mut out = exprs.into_iter().map(|e| self.expression(e, &self.base)).collect::<Result<Vec<_>>>()?;
        out.retain(|e| e.text != "Boolean(true)");
        out.sort_by(|a, b| a.text.cmp(&b.text));
        out.dedup();
        Ok(out)
    }

    fn simplify(&self, expr: Expr, schema: &Arc<DFSchema>) -> Result<Expr> {
        let context = SimplifyContext::builder()
            .with_schema(Arc::clone(schema))
            .with_config_options(Arc::clone(self.state.config_options()))
            .build();
        ExprSimplifier::new(context).simplify(expr)
    }

    fn expression(&self, expr: Expr, schema: &Arc<DFSchema>) -> Result<Expression> {
        let expr = self.simplify(expr, schema)?;
        self.lowered(&expr, schema)
    }

    fn lowered(&self, expr: &Expr, schema: &Arc<DFSchema>) -> Result<Expression> {
        let planning = PhysicalPlanningContext::default();
        let physical = create_physical_expr(expr, schema, self.state.execution_props(), &planning)?;
        Ok(Expression { physical, text: expr.to_string(), ty: expr.get_type(schema)? })
    }

    fn physical(&self, expr: Expr, schema: &Arc<DFSchema>) -> Result<Arc<dyn PhysicalExpr>> {
        let expr = self.simplify(expr, schema)?;
        create_physical_expr(&expr, schema, self.state.execution_props(), &PhysicalPlanningContext::default())
    }
}

fn as_call(expr: Expr) -> Option<AggregateFunction> {
    match expr {
        Expr::AggregateFunction(f) => Some(f),
        Expr::Alias(a) => as_call(*a.expr),
        _ => None,
    }
}

/// Resolves a planning future. The catalog is in memory, so it never waits.
fn ready<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    let mut future = pin!(future);
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => result,
        Poll::Pending => Err(DataFusionError::Internal("planning waited for something".into())),
    }
}

/// What DataFusion says of a text that does not compile: the message, the place and the fix where it knows them.
pub fn explain(query: &str, error: &DataFusionError) -> CompileError {
    let mut out = CompileError {
        query: query.to_owned(),
        message: String::new(),
        line: None,
        column: None,
        clause: None,
        help: None,
    };
    if let Some(diagnostic) = error.diagnostic() {
        if let Some(span) = diagnostic.span {
            out.line = Some(span.start.line);
            out.column = Some(span.start.column);
        }
        out.help = diagnostic.helps.first().map(|h| h.message.clone());
    }
    let root = error.find_root();
    if let DataFusionError::External(inner) = root
        && let Some(reject) = inner.downcast_ref::<Reject>()
    {
        out.message = reject.message.clone();
        out.clause = Some(reject.clause.to_owned());
        out.help = Some(reject.help.clone());
        return out;
    }
    out.message = root.strip_backtrace();
    if out.message.contains("duplicate unqualified field name") {
        // names leave casts out
        out.help.get_or_insert_with(|| {
            "two aggregates differ by a CAST only, or two columns have one name: write the CAST as part of an expression, \
             such as CAST(x AS BIGINT) + 0, or give one column an alias"
                .to_owned()
        });
    }
    if out.line.is_none()
        && let Some((_, place)) = out.message.rsplit_once("at Line: ")
        && let Some((line, rest)) = place.split_once(", Column: ")
    {
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        out.line = line.trim().parse().ok();
        out.column = digits.parse().ok();
    }
    out
}

#[cfg(test)]
mod tests;
