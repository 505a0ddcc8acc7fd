//! Reads a plan of filters and projections as expressions over its leaf.
//!
//! A windowed query is `table → window → filters and projections → aggregate → filters and projections`. Each half becomes
//! plain expressions over what it stands on (the table's columns; the aggregate's columns) by substituting projections into
//! each other. Nothing is optimised across the window or the aggregate: a predicate moved over either means something else.

use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, Result, TableReference};
use datafusion::logical_expr::{Aggregate, Expr, LogicalPlan, Volatility};

use super::assign::{END, START, WindowAssign};
use super::reject::reject;
use super::window::Window;

/// Qualifier of the two window columns in flattened expressions.
const WINDOW: &str = "__window";

/// A plan as expressions over its leaf.
pub struct Flat {
    /// One expression per output column.
    pub columns: Vec<Expr>,
    /// What a row must satisfy.
    pub filters: Vec<Expr>,
    /// The window node passed on the way, its expressions over the table, and the filters below it.
    pub window: Option<Assigned>,
}

/// What a window node says.
pub struct Assigned {
    /// The window.
    pub window: Window,
    /// Event time.
    pub time: Expr,
    /// Marker of a run window.
    pub marker: Option<Expr>,
    /// Filters between the table and the window.
    pub below: Vec<Expr>,
}

/// Everything below the aggregate, over the table's columns.
pub fn below(plan: &LogicalPlan) -> Result<Flat> {
    match plan {
        LogicalPlan::TableScan(scan) => Ok(Flat {
            columns: scan.projected_schema.columns().into_iter().map(Expr::Column).collect(),
            filters: scan.filters.clone(),
            window: None,
        }),
        LogicalPlan::Extension(extension) => {
            let Some(node) = extension.node.as_ref().as_any().downcast_ref::<WindowAssign>() else {
                return Err(unsupported(plan));
            };
            let mut flat = below(&node.input)?;
            if flat.window.is_some() {
                return Err(reject("FROM", "a window function over a window function", "use one window per query"));
            }
            let schema = node.input.schema();
            let time = over(&node.time, schema, &flat.columns)?;
            let marker = node.marker.as_ref().map(|m| over(m, schema, &flat.columns)).transpose()?;
            let below = std::mem::take(&mut flat.filters);
            flat.window = Some(Assigned { window: node.window, time, marker, below });
            for name in [START, END] {
                flat.columns.push(Expr::Column(Column::new(Some(TableReference::bare(WINDOW)), name)));
            }
            Ok(flat)
        }
        LogicalPlan::Projection(projection) => {
            let flat = below(&projection.input)?;
            project(&projection.expr, projection.input.schema(), flat)
        }
        LogicalPlan::Filter(filter) => {
            let mut flat = below(&filter.input)?;
            let predicate = over(&filter.predicate, filter.input.schema(), &flat.columns)?;
            if mentions_window(&predicate) {
                return Err(reject(
                    "WHERE",
                    "WHERE on window_start or window_end is not supported",
                    "put it in HAVING",
                ));
            }
            flat.filters.push(predicate);
            Ok(flat)
        }
        LogicalPlan::SubqueryAlias(alias) => below(&alias.input),
        LogicalPlan::Aggregate(_) => {
            Err(reject("GROUP BY", "an aggregation below a windowed aggregation", "aggregate once per query"))
        }
        other => Err(unsupported(other)),
    }
}

/// Everything above the aggregate, over the aggregate's columns, and the aggregate itself.
pub fn above(plan: &LogicalPlan) -> Result<(Flat, &Aggregate)> {
    match plan {
        LogicalPlan::Aggregate(aggregate) => {
            let columns = aggregate.schema.columns().into_iter().map(Expr::Column).collect();
            Ok((Flat { columns, filters: vec![], window: None }, aggregate))
        }
        LogicalPlan::Projection(projection) => {
            let (flat, aggregate) = above(&projection.input)?;
            Ok((project(&projection.expr, projection.input.schema(), flat)?, aggregate))
        }
        LogicalPlan::Filter(filter) => {
            let (mut flat, aggregate) = above(&filter.input)?;
            let predicate = over(&filter.predicate, filter.input.schema(), &flat.columns)?;
            flat.filters.push(predicate);
            Ok((flat, aggregate))
        }
        LogicalPlan::SubqueryAlias(alias) => above(&alias.input),
        LogicalPlan::TableScan(_) | LogicalPlan::Extension(_) | LogicalPlan::EmptyRelation(_) => Err(reject(
            "GROUP BY",
            "there is no windowed aggregation",
            "GROUP BY tenant_id, …, window_start, window_end over tumble(), hop() or session()",
        )),
        other => Err(unsupported(other)),
    }
}

/// `expr` over `schema`, with each column replaced by what `columns` says about it.
pub fn over(expr: &Expr, schema: &DFSchema, columns: &[Expr]) -> Result<Expr> {
    check_plain(expr)?;
    let expr = expr.clone().unalias_nested().data;
    expr.transform_up(|e| match &e {
        Expr::Column(column) => Ok(Transformed::yes(columns[schema.index_of_column(column)?].clone())),
        _ => Ok(Transformed::no(e)),
    })
    .map(|t| t.data)
}

fn project(exprs: &[Expr], schema: &DFSchema, flat: Flat) -> Result<Flat> {
    let columns = exprs.iter().map(|e| over(e, schema, &flat.columns)).collect::<Result<Vec<_>>>()?;
    Ok(Flat { columns, ..flat })
}

/// Whether `expr` reads a window column, and which if it is nothing else.
pub fn mentions_window(expr: &Expr) -> bool {
    expr.column_refs().iter().any(|c| is_window_column(c))
}

/// `Some(true)` for `window_start`, `Some(false)` for `window_end`, else `None`.
pub fn window_bound(expr: &Expr) -> Option<bool> {
    match expr {
        Expr::Column(c) if is_window_column(c) => Some(c.name == START),
        _ => None,
    }
}

fn is_window_column(column: &Column) -> bool {
    column.relation.as_ref().is_some_and(|r| r.table() == WINDOW)
}

/// Refuses what has no fixed meaning per row.
fn check_plain(expr: &Expr) -> Result<()> {
    let mut bad = None;
    expr.apply(|e| {
        match e {
            Expr::ScalarFunction(f) if f.func.signature().volatility != Volatility::Immutable => {
                bad = Some(reject(
                    "SELECT",
                    format!("{}() gives another result at each call; a replay could not repeat it", f.func.name()),
                    "use event_time or the window columns",
                ));
            }
            Expr::WindowFunction(_) => {
                bad = Some(reject("SELECT", "OVER (…) is not supported", "use a window function in FROM"));
            }
            Expr::ScalarSubquery(_)
            | Expr::InSubquery(_)
            | Expr::Exists(_)
            | Expr::SetComparison(_)
            | Expr::OuterReferenceColumn(..) => {
                bad = Some(reject("SELECT", "subqueries in expressions are not supported", "write literals"));
            }
            Expr::Placeholder(_) => bad = Some(reject("SELECT", "parameters are not supported", "write literals")),
            _ => {}
        }
        Ok(if bad.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })?;
    bad.map_or(Ok(()), Err)
}

fn unsupported(plan: &LogicalPlan) -> datafusion::common::DataFusionError {
    let (clause, message, help) = match plan {
        LogicalPlan::Sort(_) => ("ORDER BY", "ORDER BY has no meaning over an endless stream".to_owned(), "remove it"),
        LogicalPlan::Limit(_) => ("LIMIT", "LIMIT has no meaning over an endless stream".to_owned(), "remove it"),
        LogicalPlan::Window(_) => ("SELECT", "OVER (…) is not supported".to_owned(), "use a window function in FROM"),
        LogicalPlan::Distinct(_) => ("SELECT", "DISTINCT is not supported".to_owned(), "group by the columns instead"),
        LogicalPlan::Join(_) => {
            ("FROM", "joins are not supported".to_owned(), "select from one window function over the telemetry")
        }
        LogicalPlan::Union(_) => ("SELECT", "UNION is not supported".to_owned(), "write one query per metric"),
        other => {
            let shown = other.display().to_string();
            let kind = shown.split([':', ' ']).next().unwrap_or_default().to_owned();
            (
                "FROM",
                format!("{kind} is not supported in a windowed query"),
                "select from one window function over the telemetry",
            )
        }
    };
    reject(clause, message, help)
}
