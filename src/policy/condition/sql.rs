//! The SQL of conditions: one boolean expression over `run.* agent.* task.*`, parsed by DataFusion's parser.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{Expr, visit_expressions};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::parser::Parser;
use datafusion::sql::sqlparser::tokenizer::Token;

use super::{Condition, UTILIZATION};

/// Deepest nesting of an expression.
const MAX_DEPTH: usize = 64;

/// Parses an expression; the error says what the parser expected, and where.
pub fn parse(text: &str) -> Result<Expr, String> {
    let dialect = GenericDialect {};
    let mut parser =
        Parser::new(&dialect).with_recursion_limit(MAX_DEPTH).try_with_sql(text).map_err(|e| said(&e.to_string()))?;
    let expr = parser.parse_expr().map_err(|e| said(&e.to_string()))?;
    let rest = parser.peek_token();
    if rest.token == Token::EOF {
        return Ok(expr);
    }
    let at = rest.span.start;
    Err(format!(
        "Expected: the end of the expression, found: {} at Line: {}, Column: {}",
        rest.token, at.line, at.column
    ))
}

fn said(message: &str) -> String {
    message.strip_prefix("sql parser error: ").unwrap_or(message).to_owned()
}

/// The dotted name of a column; `None` for any other expression.
pub fn name(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Identifier(ident) => Some(ident.value.clone()),
        Expr::CompoundIdentifier(parts) => Some(parts.iter().map(|p| p.value.as_str()).collect::<Vec<_>>().join(".")),
        _ => None,
    }
}

/// Every column an expression names, as written.
fn names(expr: &Expr) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    // the visitor never breaks
    let _: ControlFlow<()> = visit_expressions(expr, |part| {
        found.extend(name(part));
        ControlFlow::Continue(())
    });
    found
}

/// The metrics whose utilization a condition reads. SQL that does not parse reads nothing.
pub fn utilization(condition: &Condition) -> BTreeSet<String> {
    let metric = |name: &str| name.strip_prefix(UTILIZATION).map(str::to_owned);
    match condition {
        Condition::Composite { conditions, .. } => conditions.iter().flat_map(utilization).collect(),
        Condition::FieldComparison { field, .. } => metric(field).into_iter().collect(),
        Condition::Sql { expression, .. } => match parse(expression) {
            Ok(expr) => names(&expr).iter().filter_map(|n| metric(n)).collect(),
            Err(_) => BTreeSet::new(),
        },
    }
}
