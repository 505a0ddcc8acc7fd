//! SQL leaves: names become columns of the row, DataFusion plans the expression, and what must not be in a condition is refused.

use std::ops::ControlFlow;

use datafusion::arrow::datatypes::DataType;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchema, DataFusionError};
use datafusion::execution::SessionState;
use datafusion::logical_expr::{Expr, ExprSchemable, Operator, Volatility};
use datafusion::sql::sqlparser::ast::{Expr as Ast, ExprWithAlias, Ident, visit_expressions_mut};

use super::compile::column;
use super::fields::Input;
use super::{canonical, sql};

/// What values can be compared with each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Text,
    Number,
    Boolean,
    Time,
    Null,
    Other,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "a text",
            Self::Number => "a number",
            Self::Boolean => "a boolean",
            Self::Time => "a time",
            Self::Null => "nothing",
            Self::Other => "of another kind",
        }
    }
}

pub fn kind(data_type: &DataType) -> Kind {
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Kind::Text,
        DataType::Boolean => Kind::Boolean,
        DataType::Null => Kind::Null,
        DataType::Timestamp(..) | DataType::Date32 | DataType::Date64 => Kind::Time,
        other if other.is_numeric() => Kind::Number,
        _ => Kind::Other,
    }
}

/// Plans an expression over the row's columns; the error says what is wrong, and what would be right.
pub fn plan(
    state: &SessionState,
    schema: &DFSchema,
    expression: &str,
    inputs: &[Input],
) -> Result<Expr, (String, Option<String>)> {
    let mut ast = sql::parse(expression).map_err(|message| (message, None))?;
    let kinds = sql::fields(&ast).map_err(|(message, help)| (message, Some(help)))?;
    let visited = visit_expressions_mut(&mut ast, |part| {
        if let Some(name) = sql::name(part) {
            let full = canonical(&name);
            let attribute = kinds.get(&name).and_then(|(data_type, _)| data_type.clone()).unwrap_or(DataType::Utf8);
            let own = |i: &&Input| i.name == full && (!full.contains(".attributes.") || i.data_type == attribute);
            if let Some(input) = inputs.iter().find(own) {
                *part = Ast::Identifier(Ident::with_quote('"', column(input)));
            }
        }
        ControlFlow::<()>::Continue(())
    });
    debug_assert!(visited.is_continue(), "the visitor never breaks");
    let said = |e: DataFusionError| (e.find_root().strip_backtrace(), None);
    let expr =
        state.create_logical_expr_from_sql_expr(ExprWithAlias { expr: ast, alias: None }, schema).map_err(said)?;
    let mut wrong = None;
    let walked = expr.apply(|part| {
        wrong = refuse(part, schema);
        Ok(if wrong.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    });
    walked.map_err(said)?;
    match wrong {
        Some((message, help)) => Err((message, Some(help))),
        None => Ok(expr),
    }
}

/// What one part of an expression must not be.
fn refuse(part: &Expr, schema: &DFSchema) -> Option<(String, String)> {
    let differ = |a: &Expr, b: &Expr| {
        let (one, other) = (kind(&a.get_type(schema).ok()?), kind(&b.get_type(schema).ok()?));
        (one != other && one != Kind::Null && other != Kind::Null).then(|| {
            let message = format!("`{a}` is {}, and `{b}` is {}: nothing is converted", one.name(), other.name());
            (message, "compare like with like, or CAST one of them".to_owned())
        })
    };
    match part {
        Expr::BinaryExpr(binary) => match binary.op {
            Operator::Eq
            | Operator::NotEq
            | Operator::Lt
            | Operator::LtEq
            | Operator::Gt
            | Operator::GtEq
            | Operator::IsDistinctFrom
            | Operator::IsNotDistinctFrom => differ(&binary.left, &binary.right),
            Operator::Plus | Operator::Minus | Operator::Multiply | Operator::Divide | Operator::Modulo => {
                let text = |e: &Expr| e.get_type(schema).is_ok_and(|t| kind(&t) == Kind::Text);
                let found = [&binary.left, &binary.right].into_iter().find(|e| text(e));
                found.map(|e| (format!("`{e}` is a text, and does not compute"), "CAST it to a number".to_owned()))
            }
            _ => None,
        },
        Expr::InList(list) => list.list.iter().find_map(|item| differ(&list.expr, item)),
        Expr::Between(between) => differ(&between.expr, &between.low).or_else(|| differ(&between.expr, &between.high)),
        Expr::ScalarFunction(call) if call.func.signature().volatility != Volatility::Immutable => Some((
            format!("{}() gives another value each time", call.func.name()),
            "conditions depend on what events say only".to_owned(),
        )),
        Expr::AggregateFunction(_) | Expr::WindowFunction(_) => Some((
            format!("`{part}` is over many rows"),
            "write a metric under queries/metrics, and read run.utilization.<metric>".to_owned(),
        )),
        Expr::Placeholder(_) | Expr::Unnest(_) => {
            Some((format!("`{part}` has no meaning in a condition"), "write plain values".to_owned()))
        }
        _ => None,
    }
}
