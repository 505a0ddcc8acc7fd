//! The SQL of conditions: one boolean expression over `run.* agent.* task.*`, parsed by DataFusion's parser.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use datafusion::arrow::datatypes::DataType;
use datafusion::sql::sqlparser::ast::{BinaryOperator, Expr, Spanned, UnaryOperator, Value, visit_expressions};
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
    Err(format!("expected the end of the expression, found {} at Line: {}, Column: {}", rest.token, at.line, at.column))
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

/// Names, with the type of the literals they are compared with and the column in the expression.
pub type Named = BTreeMap<String, (Option<DataType>, u64)>;

/// The columns an expression names, as written: of each the type of the literals it is compared with, if any, and where in the
/// expression it stands first, from 1.
///
/// # Errors
/// What is no plain expression, or compares one name with literals of two types; and what to do.
pub fn fields(expr: &Expr) -> Result<Named, (String, String)> {
    let mut found = Named::new();
    let wrong = visit_expressions(expr, |part| {
        if matches!(part, Expr::Subquery(_) | Expr::InSubquery { .. } | Expr::Exists { .. }) {
            let help = "a condition sees one run, agent and task; write a metric, and read run.utilization.<metric>";
            return ControlFlow::Break(("a query within a condition".to_owned(), help.to_owned()));
        }
        if let Some(name) = name(part) {
            found.entry(name).or_insert((None, part.span().start.column));
        }
        for (name, data_type) in compared(part) {
            let (known, _) = found.entry(name.clone()).or_insert((None, 1));
            match known {
                Some(known) if *known != data_type => {
                    let message = format!("{name} is compared with {known} here and {data_type} there");
                    return ControlFlow::Break((message, "compare it with one type only".to_owned()));
                }
                _ => *known = Some(data_type),
            }
        }
        ControlFlow::Continue(())
    });
    match wrong {
        ControlFlow::Break(wrong) => Err(wrong),
        ControlFlow::Continue(()) => Ok(found),
    }
}

/// The names that an expression itself compares with literals, and the type of those.
fn compared(expr: &Expr) -> Vec<(String, DataType)> {
    let pair = |a: &Expr, b: &Expr| Some((name(a)?, literal(b)?));
    match expr {
        Expr::BinaryOp { left, op, right } if is_comparison(op) => {
            pair(left, right).or_else(|| pair(right, left)).into_iter().collect()
        }
        Expr::InList { expr, list, .. } => list.iter().filter_map(|item| pair(expr, item)).collect(),
        Expr::Between { expr, low, high, .. } => {
            [low, high].into_iter().filter_map(|bound| pair(expr, bound)).collect()
        }
        _ => Vec::new(),
    }
}

fn is_comparison(op: &BinaryOperator) -> bool {
    use BinaryOperator::{Eq, Gt, GtEq, Lt, LtEq, NotEq};
    matches!(op, Eq | NotEq | Lt | LtEq | Gt | GtEq)
}

fn literal(expr: &Expr) -> Option<DataType> {
    match expr {
        Expr::Value(value) => match &value.value {
            Value::Number(..) => Some(DataType::Float64),
            Value::Boolean(_) => Some(DataType::Boolean),
            Value::SingleQuotedString(_) => Some(DataType::Utf8),
            _ => None,
        },
        Expr::UnaryOp { op: UnaryOperator::Minus | UnaryOperator::Plus, expr } => literal(expr),
        Expr::Nested(inner) => literal(inner),
        _ => None,
    }
}

/// The metrics whose utilization a condition reads. SQL that does not parse reads nothing.
pub fn utilization(condition: &Condition) -> BTreeSet<String> {
    let metric = |name: &str| name.strip_prefix(UTILIZATION).map(str::to_owned);
    match condition {
        Condition::Composite { conditions, .. } => conditions.iter().flat_map(utilization).collect(),
        Condition::FieldComparison { field, .. } => metric(field).into_iter().collect(),
        Condition::Sql { expression, .. } => {
            let names = parse(expression).ok().and_then(|expr| fields(&expr).ok()).unwrap_or_default();
            names.keys().filter_map(|n| metric(n)).collect()
        }
    }
}
