//! Says whether a query's `value` can only rise while rows arrive, so that a result before the window's end is a lower
//! bound of the final one.
//!
//! Monotone are count, count(distinct), max, and sums of non-negative input, under `+`, `*` (of non-negative parts),
//! coalesce, greatest, numeric casts, non-negative literals, and CASE whose condition can only turn true. Anything
//! else is judged at the close. The answer is conservative: "no" costs speed, a wrong "yes" would raise a level that the
//! final result does not confirm.

use datafusion::arrow::datatypes::DataType;
use datafusion::common::ScalarValue;
use datafusion::logical_expr::expr::{AggregateFunction, BinaryExpr};
use datafusion::logical_expr::{Expr, Operator};

/// What is known of an expression over the aggregate's columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rising {
    /// Never negative.
    non_negative: bool,
}

/// Judges expressions over aggregate columns.
pub struct Judge<'a> {
    /// The aggregate behind each column of the aggregate's output; `None` for a grouping column.
    pub aggregates: Vec<Option<&'a AggregateFunction>>,
    /// Index of an aggregate output column.
    pub index: &'a dyn Fn(&datafusion::common::Column) -> Option<usize>,
    /// Input columns that are never negative.
    pub non_negative: &'a [String],
}

impl Judge<'_> {
    /// `Err(reason)` when `value` under `having` may fall, or appear and vanish.
    pub fn early(&self, value: &Expr, having: &[Expr]) -> Result<(), String> {
        self.rising(value)?;
        for predicate in having {
            if !self.turns_true(predicate) {
                return Err(format!("HAVING {predicate} may turn false again"));
            }
        }
        Ok(())
    }

    fn rising(&self, expr: &Expr) -> Result<Rising, String> {
        let no = |why: &str| Err(format!("{expr} {why}"));
        match expr {
            Expr::Alias(a) => self.rising(&a.expr),
            Expr::Literal(v, _) => Ok(Rising { non_negative: literal_non_negative(v) }),
            Expr::Column(c) => match (self.index)(c).map(|i| self.aggregates.get(i).copied().flatten()) {
                Some(Some(aggregate)) => self.aggregate(aggregate),
                // constant within a group
                Some(None) => Ok(Rising { non_negative: false }),
                None => no("is unknown here"),
            },
            Expr::Cast(c) => self.cast(&c.expr, c.field.data_type()),
            Expr::TryCast(c) => self.cast(&c.expr, c.field.data_type()),
            Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
                let (l, r) = (self.rising(left)?, self.rising(right));
                match op {
                    Operator::Plus => Ok(Rising { non_negative: l.non_negative && r?.non_negative }),
                    Operator::Multiply if l.non_negative && r.clone()?.non_negative => {
                        Ok(Rising { non_negative: true })
                    }
                    Operator::Multiply => no("multiplies by something that may be negative"),
                    Operator::Divide if positive(right) => Ok(l),
                    _ => no(&format!("uses {op}, under which it may fall")),
                }
            }
            Expr::ScalarFunction(f) => match (f.func.name(), f.args.as_slice()) {
                ("coalesce", [first, rest @ ..]) => {
                    let first = self.rising(first)?;
                    let fallback_is_floor =
                        rest.iter().all(|e| matches!(e, Expr::Literal(v, _) if is_zero(v)) || is_zero_cast(e));
                    if first.non_negative && fallback_is_floor {
                        Ok(first)
                    } else {
                        no("falls back to something that may be larger than the value")
                    }
                }
                ("greatest", args) => {
                    let parts = args.iter().map(|e| self.rising(e)).collect::<Result<Vec<_>, _>>()?;
                    Ok(Rising { non_negative: parts.iter().all(|p| p.non_negative) })
                }
                (name, _) => no(&format!("uses {name}(), of which that is not known")),
            },
            Expr::Case(case) if case.expr.is_none() => {
                // CASE WHEN <turns true> THEN <rising, >= 0> [ELSE 0 | NULL]
                let [(when, then)] = case.when_then_expr.as_slice() else {
                    return no("has more than one branch");
                };
                let then = self.rising(then)?;
                let floor = match case.else_expr.as_deref() {
                    None => true,
                    Some(Expr::Literal(v, _)) => v.is_null() || is_zero(v),
                    Some(other) => is_zero_cast(other),
                };
                if self.turns_true(when) && then.non_negative && floor {
                    Ok(then)
                } else {
                    no("may switch to a smaller branch")
                }
            }
            _ => no("is not known to rise only"),
        }
    }

    fn cast(&self, expr: &Expr, to: &DataType) -> Result<Rising, String> {
        if to.is_numeric() { self.rising(expr) } else { Err(format!("{expr} is cast to {to}")) }
    }

    fn aggregate(&self, f: &AggregateFunction) -> Result<Rising, String> {
        let name = f.func.name();
        let arg = f.params.args.first();
        let non_negative = arg.is_some_and(|e| self.input_non_negative(e));
        match name {
            "count" => Ok(Rising { non_negative: true }),
            "max" => Ok(Rising { non_negative }),
            "sum" if non_negative => Ok(Rising { non_negative: true }),
            "sum" => Err("sum() of a column that may be negative can fall".to_owned()),
            _ => Err(format!("{name}() can fall while rows arrive")),
        }
    }

    /// Whether a row-level expression is never negative.
    fn input_non_negative(&self, expr: &Expr) -> bool {
        match expr {
            Expr::Alias(a) => self.input_non_negative(&a.expr),
            Expr::Literal(v, _) => v.is_null() || literal_non_negative(v),
            Expr::Column(c) => self.non_negative.contains(&c.name),
            Expr::Cast(c) => c.field.data_type().is_numeric() && self.input_non_negative(&c.expr),
            Expr::TryCast(c) => c.field.data_type().is_numeric() && self.input_non_negative(&c.expr),
            Expr::BinaryExpr(BinaryExpr {
                left,
                op: Operator::Plus | Operator::Multiply | Operator::Divide,
                right,
            }) => self.input_non_negative(left) && self.input_non_negative(right),
            Expr::ScalarFunction(f) => match f.func.name() {
                "coalesce" | "greatest" | "least" => f.args.iter().all(|e| self.input_non_negative(e)),
                "abs" | "length" | "char_length" | "character_length" | "octet_length" => true,
                _ => false,
            },
            Expr::Case(case) => {
                case.when_then_expr.iter().all(|(_, then)| self.input_non_negative(then))
                    && case.else_expr.as_ref().is_none_or(|e| self.input_non_negative(e))
            }
            _ => false,
        }
    }

    /// Whether a predicate, once true, stays true while rows arrive.
    fn turns_true(&self, expr: &Expr) -> bool {
        match expr {
            Expr::Alias(a) => self.turns_true(&a.expr),
            Expr::IsNotNull(e) => matches!(e.as_ref(), Expr::Column(_)) && self.rising(e).is_ok(),
            Expr::BinaryExpr(BinaryExpr { left, op, right }) => match op {
                Operator::And | Operator::Or => self.turns_true(left) && self.turns_true(right),
                Operator::Gt | Operator::GtEq => self.rising(left).is_ok() && fixed(right),
                Operator::Lt | Operator::LtEq => fixed(left) && self.rising(right).is_ok(),
                _ => false,
            },
            Expr::Literal(ScalarValue::Boolean(Some(true)), _) => true,
            _ => false,
        }
    }
}

fn fixed(expr: &Expr) -> bool {
    match expr {
        Expr::Literal(..) => true,
        Expr::Cast(c) => fixed(&c.expr),
        _ => false,
    }
}

fn is_zero_cast(expr: &Expr) -> bool {
    match expr {
        Expr::Literal(v, _) => is_zero(v),
        Expr::Cast(c) => is_zero_cast(&c.expr),
        _ => false,
    }
}

fn sign(v: &ScalarValue) -> Option<f64> {
    match v.cast_to(&DataType::Float64) {
        Ok(ScalarValue::Float64(Some(f))) if v.data_type().is_numeric() && !f.is_nan() => Some(f),
        _ => None,
    }
}

fn literal_non_negative(v: &ScalarValue) -> bool {
    sign(v).is_some_and(|f| f >= 0.0)
}

fn positive(expr: &Expr) -> bool {
    match expr {
        Expr::Literal(v, _) => sign(v).is_some_and(|f| f > 0.0),
        Expr::Cast(c) => positive(&c.expr),
        _ => false,
    }
}

fn is_zero(v: &ScalarValue) -> bool {
    sign(v).is_some_and(|f| f == 0.0)
}
