//! From conditions as written to physical expressions of DataFusion, compiled once for a set of policies, and their evaluation
//! over rows of entity state.
//!
//! A row is what is known of one run, agent and task at one event; its columns are the fields that any condition of the set
//! reads ([`Conditions::inputs`]). Logic is three-valued: a missing value makes a comparison unknown, AND, OR and NOT carry it on
//! as in SQL, and what is unknown never acts, unless the policy says `on_failure: fail_closed`. Texts and numbers are never
//! turned into each other: to compare them is an error.

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, AsArray, BooleanArray, RecordBatch, RecordBatchOptions};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::arrow::error::ArrowError;
use datafusion::common::{Column, DFSchema, ScalarValue};
use datafusion::execution::{SessionState, SessionStateBuilder};
use datafusion::functions::string::expr_fn::contains;
use datafusion::logical_expr::{Expr, ScalarUDF, lit};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::prelude::SessionConfig;
use serde_json::Value as Json;

use super::fields::{Entity, Fields, Input};
use super::matches::Matches;
use super::{Comparison, Condition, Junction, planned, sql};
use crate::policy::amount::Amount;
use crate::policy::fault::{Fault, quoted};
use crate::policy::model::{OnFailure, Place, Policy};

/// The value of a condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Truth {
    /// It does not hold.
    False,
    /// A value it needs is missing, or it cannot be computed.
    Unknown,
    /// It holds.
    True,
}

impl Truth {
    /// Whether actions follow: of what holds, and of what is unknown only under `fail_closed`.
    pub fn acts(self, on_failure: OnFailure) -> bool {
        match self {
            Self::True => true,
            Self::Unknown => on_failure == OnFailure::Closed,
            Self::False => false,
        }
    }
}

/// The compiled condition of one policy.
#[derive(Debug, Clone)]
pub struct Compiled {
    /// Tenant and id of the policy.
    pub policy: (Arc<str>, Arc<str>),
    /// Whose values it reads.
    pub reads: Vec<Entity>,
    /// The metrics whose utilization it reads.
    pub utilization: Vec<String>,
    /// That of the policy.
    pub on_failure: OnFailure,
    expression: Arc<dyn PhysicalExpr>,
}

/// The conditions of a set of policies, over one row of entity state.
#[derive(Debug, Clone)]
pub struct Conditions {
    inputs: Vec<Input>,
    schema: SchemaRef,
    compiled: Vec<Compiled>,
}

impl Conditions {
    /// Compiles the conditions of the policies that count. The faults are those of conditions that are left out.
    pub fn compile<'p>(policies: impl IntoIterator<Item = &'p Policy>, fields: &Fields) -> (Self, Vec<Fault>) {
        let mut faults = Vec::new();
        let mut sound = Vec::new();
        let mut inputs: BTreeMap<(String, String), Input> = BTreeMap::new();
        for policy in policies.into_iter().filter(|p| p.counts()) {
            let Some(condition) = &policy.condition else { continue };
            let mut reader = Reader { policy, fields, inputs: Vec::new(), faults: Vec::new() };
            reader.condition(condition);
            if reader.faults.is_empty() && reader.inputs.is_empty() {
                let message = "the condition reads no field of run, agent or task".to_owned();
                reader.fault(condition.place(), message, None);
            }
            if reader.faults.is_empty() {
                for input in &reader.inputs {
                    inputs.insert(key(input), input.clone());
                }
                sound.push((policy, condition, reader.inputs));
            }
            faults.append(&mut reader.faults);
        }
        let inputs: Vec<Input> = inputs.into_values().collect();
        let columns: Vec<Field> = inputs.iter().map(|i| Field::new(column(i), i.data_type.clone(), true)).collect();
        let schema = Arc::new(Schema::new(columns));
        let mut this = Self { inputs, schema, compiled: Vec::new() };
        if sound.is_empty() {
            return (this, faults);
        }
        let planner = match Planner::new(&this.schema) {
            Ok(planner) => planner,
            Err(message) => {
                faults.push(Fault::new("", Place::default(), "", message, None));
                return (this, faults);
            }
        };
        for (policy, condition, read) in sound {
            match planner.compile(condition, &read) {
                Ok(expression) => {
                    let reads = Entity::ALL.iter().copied().filter(|e| read.iter().any(|i| i.entity == *e)).collect();
                    let policy_key = (policy.tenant.clone(), policy.id.clone());
                    let utilization = sql::utilization(condition).into_iter().collect();
                    let on_failure = policy.on_failure;
                    this.compiled.push(Compiled { policy: policy_key, reads, utilization, on_failure, expression });
                }
                Err((at, message, help)) => {
                    let at = [at, condition.place(), policy.place].into_iter().find(|at| !at.is_unknown());
                    let at = at.unwrap_or_default();
                    faults.push(Fault::new(&policy.file, at, "condition", message, help));
                }
            }
        }
        (this, faults)
    }

    /// The fields that any of them reads, in the order of the columns of a row.
    pub fn inputs(&self) -> &[Input] {
        &self.inputs
    }

    /// The conditions, in the order of the policies.
    pub fn compiled(&self) -> &[Compiled] {
        &self.compiled
    }

    /// Rows from one column for each of [`Self::inputs`], of its type.
    ///
    /// # Errors
    /// When columns are of another number, type or length.
    pub fn rows(&self, columns: Vec<ArrayRef>, count: usize) -> Result<RecordBatch, ArrowError> {
        let options = RecordBatchOptions::new().with_row_count(Some(count));
        RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)
    }

    /// The value of a condition for each row. A row for which it cannot be computed (a division by zero) is unknown, and
    /// does not touch the others.
    pub fn evaluate(condition: &Compiled, rows: &RecordBatch) -> Vec<Truth> {
        if let Some(values) = condition.values(rows) {
            return values.iter().map(truth).collect();
        }
        let alone =
            |row: usize| condition.values(&rows.slice(row, 1)).and_then(|values| values.iter().next().flatten());
        (0..rows.num_rows()).map(|row| truth(alone(row))).collect()
    }
}

fn truth(value: Option<bool>) -> Truth {
    match value {
        Some(true) => Truth::True,
        Some(false) => Truth::False,
        None => Truth::Unknown,
    }
}

impl Compiled {
    fn values(&self, rows: &RecordBatch) -> Option<BooleanArray> {
        let values = self.expression.evaluate(rows).ok()?.into_array(rows.num_rows()).ok()?;
        values.as_boolean_opt().cloned()
    }
}

/// Inputs are told apart by name and, for attributes, by the type they are compared with.
fn key(input: &Input) -> (String, String) {
    (input.name.clone(), input.data_type.to_string())
}

/// The column of an input.
pub(super) fn column(input: &Input) -> String {
    match input.origin {
        super::fields::Origin::Attribute(_) => format!("{}:{}", input.name, input.data_type),
        _ => input.name.clone(),
    }
}

/// Finds the fields that a condition reads, and what is wrong with them.
struct Reader<'c> {
    policy: &'c Policy,
    fields: &'c Fields,
    inputs: Vec<Input>,
    faults: Vec<Fault>,
}

impl Reader<'_> {
    fn fault(&mut self, at: Place, message: String, help: Option<String>) {
        let at = if at == Place::default() { self.policy.place } else { at };
        self.faults.push(Fault::new(&self.policy.file, at, "condition", message, help));
    }

    fn condition(&mut self, condition: &Condition) {
        match condition {
            Condition::Composite { conditions, .. } => conditions.iter().for_each(|c| self.condition(c)),
            Condition::FieldComparison { field, operator, value, place } => {
                match self.fields.resolve(field, json_type(value).as_ref()) {
                    Ok(input) => {
                        if let Err(message) = comparable(&input, *operator, value) {
                            self.fault(*place, message, None);
                        }
                        self.inputs.push(input);
                    }
                    Err((message, help)) => self.fault(*place, message, Some(help)),
                }
            }
            Condition::Sql { expression, place, .. } => match sql::parse(expression) {
                Err(message) => self.fault(*place, format!("the SQL cannot be read: {message}"), None),
                Ok(parsed) => match sql::fields(&parsed) {
                    Err((message, help)) => self.fault(*place, message, Some(help)),
                    Ok(names) => {
                        for (name, (attribute, column)) in names {
                            match self.fields.resolve(&name, attribute.as_ref()) {
                                Ok(input) => self.inputs.push(input),
                                Err((message, help)) => {
                                    let message = format!("{message} (column {column} of the expression)");
                                    self.fault(*place, message, Some(help));
                                }
                            }
                        }
                    }
                },
            },
        }
    }
}

/// The Arrow type of a value, of a list that of its first.
fn json_type(value: &Json) -> Option<DataType> {
    match value {
        Json::String(_) => Some(DataType::Utf8),
        Json::Number(_) => Some(DataType::Float64),
        Json::Bool(_) => Some(DataType::Boolean),
        Json::Array(items) => json_type(items.first()?),
        Json::Null | Json::Object(_) => None,
    }
}

/// Whether a field can be compared so.
fn comparable(input: &Input, operator: Comparison, value: &Json) -> Result<(), String> {
    let field = planned::kind(&input.data_type);
    let text_only = matches!(operator, Comparison::Contains | Comparison::Matches);
    if text_only && field != planned::Kind::Text {
        return Err(format!("`{operator}` is for texts, and {} is {}", quoted(&input.name), field.name()));
    }
    if let (Comparison::Matches, Json::String(pattern)) = (operator, value) {
        Matches::new(pattern).map_err(|why| format!("{} is not a regular expression: {why}", quoted(pattern)))?;
    }
    let values: Vec<&Json> = match value {
        Json::Array(items) => items.iter().collect(),
        Json::Null => Vec::new(),
        one => vec![one],
    };
    for value in values {
        let given = json_type(value).map_or(planned::Kind::Other, |t| planned::kind(&t));
        // an instant is written as a text
        let instant = field == planned::Kind::Time && given == planned::Kind::Text;
        if instant && literal(&input.data_type, value).is_none() {
            return Err(format!("{value} is not an RFC 3339 time with offset"));
        }
        if given != field && !instant {
            return Err(format!(
                "{} is {}, and {value} is {}: nothing is converted",
                quoted(&input.name),
                field.name(),
                given.name()
            ));
        }
    }
    Ok(())
}

/// The value in the type of the field; exact for money.
fn literal(data_type: &DataType, value: &Json) -> Option<ScalarValue> {
    Some(match (value, data_type) {
        (Json::Bool(b), _) => ScalarValue::from(*b),
        (Json::String(text), DataType::Timestamp(unit, zone)) => {
            let micros = crate::policy::active::parse_instant(text)?;
            debug_assert_eq!(*unit, datafusion::arrow::datatypes::TimeUnit::Microsecond);
            ScalarValue::TimestampMicrosecond(Some(micros), zone.clone())
        }
        (Json::String(text), _) => ScalarValue::from(text.as_str()),
        (Json::Number(number), DataType::Decimal128(..)) => {
            let amount: Amount = number.to_string().parse().ok()?;
            ScalarValue::Decimal128(Some(amount.0), 38, 9)
        }
        (Json::Number(number), _) => match number.as_i64() {
            Some(whole) if data_type.is_integer() => ScalarValue::from(whole),
            _ => ScalarValue::from(number.as_f64()?),
        },
        (Json::Null | Json::Array(_) | Json::Object(_), _) => return None,
    })
}

/// A fault of a part: its place, what is wrong, and what would be right.
type Wrong = (Place, String, Option<String>);

/// Compiles conditions over one row.
struct Planner {
    state: SessionState,
    schema: DFSchema,
    arrow: SchemaRef,
}

impl Planner {
    fn new(schema: &SchemaRef) -> Result<Self, String> {
        let mut config = SessionConfig::new().with_target_partitions(1).with_information_schema(false);
        config.options_mut().sql_parser.map_string_types_to_utf8view = false;
        let state = SessionStateBuilder::new().with_default_features().with_config(config).build();
        let schema_of = DFSchema::try_from(Arc::clone(schema)).map_err(|e| e.strip_backtrace())?;
        Ok(Self { state, schema: schema_of, arrow: Arc::clone(schema) })
    }

    fn compile(&self, condition: &Condition, inputs: &[Input]) -> Result<Arc<dyn PhysicalExpr>, Wrong> {
        let wrong = |message: String| (Place::default(), message, None);
        let logical = self.logical(condition, inputs)?;
        let physical =
            self.state.create_physical_expr(logical, &self.schema).map_err(|e| wrong(e.strip_backtrace()))?;
        let data_type = physical.data_type(&self.arrow).map_err(|e| wrong(e.strip_backtrace()))?;
        if data_type != DataType::Boolean {
            return Err(wrong(format!("the condition is {}, not true or false", planned::kind(&data_type).name())));
        }
        // what fails for every row, such as a broken pattern, fails for one without values
        let columns = self.arrow.fields().iter().map(|f| datafusion::arrow::array::new_null_array(f.data_type(), 1));
        let options = RecordBatchOptions::new().with_row_count(Some(1));
        let empty = RecordBatch::try_new_with_options(Arc::clone(&self.arrow), columns.collect(), &options);
        let empty = empty.map_err(|e| wrong(e.to_string()))?;
        physical.evaluate(&empty).map_err(|e| wrong(e.strip_backtrace()))?;
        Ok(physical)
    }

    fn logical(&self, condition: &Condition, inputs: &[Input]) -> Result<Expr, Wrong> {
        match condition {
            Condition::Composite { operator, conditions } => {
                let parts = conditions.iter().map(|c| self.logical(c, inputs)).collect::<Result<Vec<_>, _>>()?;
                Ok(match operator {
                    Junction::And => parts.into_iter().reduce(Expr::and).unwrap_or_else(|| lit(true)),
                    Junction::Or => parts.into_iter().reduce(Expr::or).unwrap_or_else(|| lit(false)),
                    Junction::Not => !parts.into_iter().next().unwrap_or_else(|| lit(true)),
                })
            }
            Condition::FieldComparison { field, operator, value, place } => {
                let name = super::canonical(field);
                let wanted = json_type(value);
                let input = inputs.iter().find(|i| {
                    i.name == name
                        && (!matches!(i.origin, super::fields::Origin::Attribute(_))
                            || wanted.as_ref().is_none_or(|wanted| *wanted == i.data_type))
                });
                let wrong = || (*place, format!("{} cannot be compared with {value}", quoted(field)), None);
                let input = input.ok_or_else(wrong)?;
                compare(input, *operator, value).ok_or_else(wrong)
            }
            Condition::Sql { expression, place, .. } => planned::plan(&self.state, &self.schema, expression, inputs)
                .map_err(|(message, help)| (*place, message, help)),
        }
    }
}

fn compare(input: &Input, operator: Comparison, value: &Json) -> Option<Expr> {
    let field = Expr::Column(Column::new_unqualified(column(input)));
    let one = || literal(&input.data_type, value).map(lit);
    Some(match operator {
        Comparison::Eq => field.eq(one()?),
        Comparison::Ne => field.not_eq(one()?),
        Comparison::Lt => field.lt(one()?),
        Comparison::Le => field.lt_eq(one()?),
        Comparison::Gt => field.gt(one()?),
        Comparison::Ge => field.gt_eq(one()?),
        Comparison::In => {
            let items = value.as_array()?.iter().map(|v| literal(&input.data_type, v).map(lit));
            field.in_list(items.collect::<Option<Vec<_>>>()?, false)
        }
        Comparison::Contains => contains(field, one()?),
        Comparison::Matches => ScalarUDF::new_from_impl(Matches::new(value.as_str()?).ok()?).call(vec![field]),
        Comparison::Exists => field.is_not_null(),
    })
}
