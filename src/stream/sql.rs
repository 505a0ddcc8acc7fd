//! The pass over the syntax tree before planning.
//!
//! Rewrites the GROUP BY sugar to table functions, wraps the bare table name inside a table function (DataFusion collects
//! table names before planning and would not find it), and refuses clauses that have no meaning over windows. What needs
//! resolved columns is refused later, in `flatten` and `compile`.

use datafusion::common::Result;
use datafusion::sql::parser::Statement as DfStatement;
use datafusion::sql::sqlparser::ast::{
    Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, GroupByExpr, Ident, ObjectName, Query, Select,
    SetExpr, Statement, TableFactor, TableFunctionArgs,
};
use datafusion::sql::sqlparser::{dialect::GenericDialect, parser::Parser};

use super::assign::{END, FUNCTIONS, START};
use super::reject::reject;

/// Rewrites `statement` in place. `table` is the name of the input.
pub fn prepare(statement: &mut DfStatement, table: &str) -> Result<()> {
    let DfStatement::Statement(statement) = statement else {
        return Err(reject("SELECT", "only SELECT is allowed here", "write one SELECT statement"));
    };
    let Statement::Query(query) = statement.as_mut() else {
        return Err(reject("SELECT", "only SELECT is allowed here", "write one SELECT statement"));
    };
    query_in_place(query, table)
}

fn query_in_place(query: &mut Query, table: &str) -> Result<()> {
    if query.order_by.is_some() {
        return Err(reject("ORDER BY", "ORDER BY has no meaning over an endless stream", "remove it"));
    }
    if query.limit_clause.is_some() || query.fetch.is_some() {
        return Err(reject("LIMIT", "LIMIT has no meaning over an endless stream", "remove it"));
    }
    if let Some(with) = &mut query.with {
        if with.recursive {
            return Err(reject("WITH", "recursive queries are not supported", "remove RECURSIVE"));
        }
        for cte in &mut with.cte_tables {
            query_in_place(&mut cte.query, table)?;
        }
    }
    match query.body.as_mut() {
        SetExpr::Select(select) => select_in_place(select, table),
        SetExpr::Query(inner) => query_in_place(inner, table),
        _ => Err(reject("SELECT", "UNION, VALUES and the like are not supported", "write one query per metric")),
    }
}

fn select_in_place(select: &mut Select, table: &str) -> Result<()> {
    if select.distinct.is_some() {
        return Err(reject("SELECT", "SELECT DISTINCT is not supported", "group by the columns instead"));
    }
    if select.qualify.is_some() {
        return Err(reject("QUALIFY", "QUALIFY is not supported", "use HAVING"));
    }
    let group_has_window = sugar(select)?;
    if let Some((function, args)) = group_has_window {
        wrap_source(select, &function, args, table)?;
    }
    for source in &mut select.from {
        if !source.joins.is_empty() {
            return Err(reject(
                "FROM",
                "joins are not supported in a windowed query",
                "select from one window function over the telemetry",
            ));
        }
        match &mut source.relation {
            TableFactor::Derived { subquery, .. } => query_in_place(subquery, table)?,
            TableFactor::Table { name, args: Some(args), .. } if is_window(name) => {
                if let Some(FunctionArg::Unnamed(FunctionArgExpr::Expr(first))) = args.args.first_mut() {
                    match first {
                        Expr::Identifier(ident) => *first = subquery_of(&ident.to_string())?,
                        Expr::CompoundIdentifier(parts) => {
                            let name: Vec<_> = parts.iter().map(ToString::to_string).collect();
                            *first = subquery_of(&name.join("."))?;
                        }
                        Expr::Subquery(inner) => query_in_place(inner, table)?,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// Takes a window function out of GROUP BY and leaves the two window columns there.
fn sugar(select: &mut Select) -> Result<Option<(ObjectName, Vec<FunctionArg>)>> {
    let GroupByExpr::Expressions(exprs, modifiers) = &mut select.group_by else {
        return Err(reject("GROUP BY", "GROUP BY ALL is not supported", "list the columns"));
    };
    if !modifiers.is_empty() {
        return Err(reject("GROUP BY", "ROLLUP, CUBE and TOTALS are not supported", "list plain columns"));
    }
    let mut found = None;
    let mut out = Vec::with_capacity(exprs.len() + 1);
    for expr in exprs.drain(..) {
        match expr {
            Expr::GroupingSets(_) | Expr::Rollup(_) | Expr::Cube(_) => {
                return Err(reject(
                    "GROUP BY",
                    "GROUPING SETS, ROLLUP and CUBE are not supported",
                    "list plain columns",
                ));
            }
            Expr::Function(Function { name, args: FunctionArguments::List(list), .. }) if is_window(&name) => {
                if found.is_some() {
                    return Err(reject("GROUP BY", "two window functions in one GROUP BY", "keep one"));
                }
                found = Some((name, list.args));
                out.push(Expr::Identifier(Ident::new(START)));
                out.push(Expr::Identifier(Ident::new(END)));
            }
            other => out.push(other),
        }
    }
    *exprs = out;
    Ok(found)
}

fn wrap_source(select: &mut Select, function: &ObjectName, args: Vec<FunctionArg>, table: &str) -> Result<()> {
    let help = "write FROM telemetry, or use the window function in FROM";
    let [source] = select.from.as_mut_slice() else {
        return Err(reject("FROM", "a window in GROUP BY needs exactly one table in FROM", help));
    };
    let first = match &source.relation {
        TableFactor::Table { name, args: None, .. } => subquery_of(&name.to_string())?,
        TableFactor::Derived { subquery, .. } => Expr::Subquery(subquery.clone()),
        _ => return Err(reject("FROM", format!("a window in GROUP BY needs the table `{table}` in FROM"), help)),
    };
    let mut all = vec![FunctionArg::Unnamed(FunctionArgExpr::Expr(first))];
    all.extend(args);
    let alias = match &source.relation {
        TableFactor::Table { alias, .. } | TableFactor::Derived { alias, .. } => alias.clone(),
        _ => None,
    };
    source.relation = TableFactor::Table {
        name: function.clone(),
        alias,
        args: Some(TableFunctionArgs { args: all, settings: None }),
        with_hints: vec![],
        version: None,
        with_ordinality: false,
        partitions: vec![],
        json_path: None,
        sample: None,
        index_hints: vec![],
    };
    Ok(())
}

fn is_window(name: &ObjectName) -> bool {
    FUNCTIONS.contains(&name.to_string().to_ascii_lowercase().as_str())
}

fn subquery_of(name: &str) -> Result<Expr> {
    let text = format!("(SELECT * FROM {name})");
    let parsed = Parser::new(&GenericDialect {}).try_with_sql(&text).and_then(|mut p| p.parse_expr());
    parsed.map_err(|e| reject("FROM", format!("`{name}` is not a table name: {e}"), "name the telemetry table"))
}
