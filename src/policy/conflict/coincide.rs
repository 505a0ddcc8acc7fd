//! Whether two conditions can be true of one state.
//!
//! Comparisons of fields with values are compared; SQL is not. Conditions become alternatives of literals (NOT sinks to the
//! literals, which under three-valued logic is exact for *true*), and two alternatives exclude each other when two of their
//! literals on one field do.

use serde_json::Value as Json;

use crate::policy::condition::{Comparison, Condition, Junction, canonical};

/// Most alternatives of one condition that are compared.
const MAX_ALTERNATIVES: usize = 64;

/// Whether two conditions can be true of one state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Coincide {
    /// Never.
    Never,
    /// Nothing that can be compared excludes it.
    Maybe,
    /// They hold SQL, or too many alternatives.
    Incomparable,
}

/// A comparison, or a SQL expression (`None`), and whether it is negated.
#[derive(Clone, Copy)]
struct Literal<'c> {
    comparison: Option<(&'c str, Comparison, &'c Json)>,
    negated: bool,
}

/// Compares two conditions.
pub fn coincide(a: &Condition, b: &Condition) -> Coincide {
    let (Some(a), Some(b)) = (alternatives(a, false), alternatives(b, false)) else { return Coincide::Incomparable };
    let mut found = Coincide::Never;
    for one in &a {
        for other in &b {
            let literals: Vec<Literal<'_>> = one.iter().chain(other).copied().collect();
            if possible(&literals) {
                let sql = literals.iter().any(|l| l.comparison.is_none());
                found = found.max(if sql { Coincide::Incomparable } else { Coincide::Maybe });
            }
        }
    }
    found
}

/// The alternatives under which a condition is true (or false, when negated); `None` when there are too many.
fn alternatives(condition: &Condition, negated: bool) -> Option<Vec<Vec<Literal<'_>>>> {
    match condition {
        Condition::Sql { .. } => Some(vec![vec![Literal { comparison: None, negated }]]),
        Condition::FieldComparison { field, operator, value, .. } => {
            Some(vec![vec![Literal { comparison: Some((canonical(field), *operator, value)), negated }]])
        }
        Condition::Composite { operator: Junction::Not, conditions } => alternatives(conditions.first()?, !negated),
        Condition::Composite { operator, conditions } => {
            let any = (*operator == Junction::Or) != negated;
            let mut all: Vec<Vec<Literal<'_>>> = if any { Vec::new() } else { vec![Vec::new()] };
            for part in conditions {
                let more = alternatives(part, negated)?;
                if any {
                    all.extend(more);
                } else {
                    all = all.iter().flat_map(|one| more.iter().map(|other| [&one[..], other].concat())).collect();
                }
                if all.len() > MAX_ALTERNATIVES {
                    return None;
                }
            }
            Some(all)
        }
    }
}

fn possible(literals: &[Literal<'_>]) -> bool {
    literals.iter().enumerate().all(|(n, a)| literals.iter().skip(n + 1).all(|b| !exclude(*a, *b)))
}

/// Whether two literals are never true together. `false` may be a lack of proof.
fn exclude(a: Literal<'_>, b: Literal<'_>) -> bool {
    let (Some((field, op_a, value_a)), Some((other, op_b, value_b))) = (a.comparison, b.comparison) else {
        return false;
    };
    if field != other {
        return false;
    }
    let exists = |op, negated: bool| (op == Comparison::Exists).then_some(!negated);
    match (exists(op_a, a.negated), exists(op_b, b.negated)) {
        (Some(a), Some(b)) => return a != b,
        // whatever else is true of a field, it is there
        (Some(there), None) | (None, Some(there)) => return !there,
        (None, None) => {}
    }
    let (op_a, op_b) = (effective(op_a, a.negated), effective(op_b, b.negated));
    match (op_a, op_b) {
        (None, _) | (_, None) => false,
        (Some(Op::Among), Some(_)) => members(value_a).all(|v| !satisfies(v, op_b, value_b)),
        (Some(_), Some(Op::Among)) => members(value_b).all(|v| !satisfies(v, op_a, value_a)),
        (Some(a @ (Op::Less | Op::AtMost)), Some(b @ (Op::More | Op::AtLeast))) => apart(value_b, b, value_a, a),
        (Some(a @ (Op::More | Op::AtLeast)), Some(b @ (Op::Less | Op::AtMost))) => apart(value_a, a, value_b, b),
        _ => false,
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Op {
    /// `==`, `in`, not `!=`
    Among,
    /// `!=`, not `==`, not `in`
    NotAmong,
    Less,
    AtMost,
    More,
    AtLeast,
}

/// The comparison with the negation worked in; `None` for those that are not compared.
fn effective(op: Comparison, negated: bool) -> Option<Op> {
    Some(match (op, negated) {
        (Comparison::Eq | Comparison::In, false) | (Comparison::Ne, true) => Op::Among,
        (Comparison::Eq | Comparison::In, true) | (Comparison::Ne, false) => Op::NotAmong,
        (Comparison::Lt, false) | (Comparison::Ge, true) => Op::Less,
        (Comparison::Le, false) | (Comparison::Gt, true) => Op::AtMost,
        (Comparison::Gt, false) | (Comparison::Le, true) => Op::More,
        (Comparison::Ge, false) | (Comparison::Lt, true) => Op::AtLeast,
        (Comparison::Contains | Comparison::Matches | Comparison::Exists, _) => return None,
    })
}

/// The values of a list, or the one value.
fn members(value: &Json) -> impl Iterator<Item = &Json> {
    let list = value.as_array().map(Vec::as_slice).unwrap_or_default();
    let one = if value.is_array() { None } else { Some(value) };
    list.iter().chain(one)
}

/// Whether a value can satisfy a comparison: values of different kinds are never equal, larger or smaller.
fn satisfies(value: &Json, op: Option<Op>, with: &Json) -> bool {
    let order = order(value, with);
    match op {
        None => true,
        Some(Op::Among) => members(with).any(|w| equal(value, w)),
        Some(Op::NotAmong) => !members(with).any(|w| equal(value, w)),
        Some(Op::Less) => order == Some(std::cmp::Ordering::Less),
        Some(Op::AtMost) => order.is_some_and(std::cmp::Ordering::is_le),
        Some(Op::More) => order == Some(std::cmp::Ordering::Greater),
        Some(Op::AtLeast) => order.is_some_and(std::cmp::Ordering::is_ge),
    }
}

fn equal(a: &Json, b: &Json) -> bool {
    a == b || order(a, b) == Some(std::cmp::Ordering::Equal)
}

fn order(a: &Json, b: &Json) -> Option<std::cmp::Ordering> {
    match (a, b) {
        (Json::Number(a), Json::Number(b)) => a.as_f64()?.partial_cmp(&b.as_f64()?),
        (Json::String(a), Json::String(b)) => Some(a.cmp(b)),
        (Json::Bool(a), Json::Bool(b)) => Some(a.cmp(b)),
        _ => None,
    }
}

/// Whether nothing is above `low` and below `high`.
fn apart(low: &Json, above: Op, high: &Json, below: Op) -> bool {
    let strict = above == Op::More || below == Op::Less;
    // values of different kinds bound different things, and no value is both
    order(low, high).is_none_or(|order| order.is_gt() || (strict && order.is_eq()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::testing::condition;

    #[test]
    fn comparisons_are_compared_and_sql_is_not() {
        let all = |parts: &[&str]| {
            let parts: Vec<String> = parts
                .iter()
                .map(|p| {
                    let mut words = p.splitn(3, ' ');
                    let (field, op) = (words.next().unwrap(), words.next().unwrap());
                    let value = words.next().map(|v| format!(", value: {v}")).unwrap_or_default();
                    format!("{{type: field_comparison, field: {field}, operator: '{op}'{value}}}")
                })
                .collect();
            format!("{{type: composite, operator: AND, conditions: [{}]}}", parts.join(", "))
        };
        let not = |inner: &str| format!("{{type: composite, operator: NOT, conditions: [{inner}]}}");
        let or = |a: &str, b: &str| format!("{{type: composite, operator: OR, conditions: [{a}, {b}]}}");
        let sql = "{type: sql, expression: 'run.cost_usd > 1'}".to_owned();
        use Coincide::{Incomparable, Maybe, Never};
        for (a, b, expected) in [
            (all(&["task.status == running"]), all(&["task.status == failed"]), Never),
            (all(&["task.status == running"]), all(&["task.task_status == failed"]), Never),
            (all(&["task.status == running"]), all(&["task.status != running"]), Never),
            (all(&["task.status == running"]), all(&["task.status in [pending, running]"]), Maybe),
            (all(&["task.status in [a, b]"]), all(&["task.status in [c, d]"]), Never),
            (all(&["agent.anomaly_score >= 0.8"]), all(&["agent.anomaly_score < 0.8"]), Never),
            (all(&["agent.anomaly_score >= 0.8"]), all(&["agent.anomaly_score <= 0.8"]), Maybe),
            (all(&["agent.anomaly_score > 0.8"]), all(&["agent.anomaly_score > 0.9"]), Maybe),
            (all(&["agent.capacity == 3"]), all(&["agent.capacity == 3.0"]), Maybe),
            (all(&["run.model exists"]), not(&all(&["run.model exists"])), Never),
            (all(&["run.model == a"]), not(&all(&["run.model exists"])), Never),
            (all(&["run.model contains a"]), all(&["run.model matches b"]), Maybe),
            (all(&["task.status == a"]), all(&["agent.capacity > 1"]), Maybe),
            (all(&["task.status == a"]), not(&or(&all(&["task.status == a"]), &all(&["agent.capacity > 1"]))), Never),
            (all(&["task.status == a"]), or(&all(&["task.status == b"]), &all(&["task.status == a"])), Maybe),
            (sql.clone(), all(&["task.status == a"]), Incomparable),
            (all(&["task.status == a"]), or(&all(&["task.status == b"]), &sql), Incomparable),
        ] {
            assert_eq!(coincide(&condition(&a), &condition(&b)), expected, "{a} {b}");
            assert_eq!(coincide(&condition(&b), &condition(&a)), expected, "{b} {a}");
        }
    }
}
