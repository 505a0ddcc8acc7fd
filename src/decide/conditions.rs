//! When the condition of a policy turns: evaluation over the entities that an event names, in the order of events.
//!
//! An event gives one row: the run, agent and task it names, each with its latest values; a run's and a task's agent, and a
//! task's run, are those last named with it when the event names none. An event that names an agent only also gives a row for
//! each of the agent's open tasks and runs. A condition is evaluated on the rows that have every entity it reads, under the
//! policies in force, judged by scope and active time; it is kept apart for each combination of those entities. Turning from
//! false or unknown to true is what counts, so the cut of the batches does not matter.

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Decimal128Array, Float64Array, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray, new_null_array,
};
use datafusion::arrow::datatypes::{DataType, Decimal128Type, Float64Type, Int64Type, TimestampMicrosecondType};
use datafusion::arrow::error::ArrowError;

use crate::clock::Micros;
use crate::decide::actions::Taken;
use crate::decide::entities::{Entities, Key, Said, Up, Value};
use crate::policy::{Compiled, Conditions, Entity as Kind, Fault, Fields, Input, Origin, Policy, Snapshot, Who};
use crate::telemetry::schema::col;

/// Most open tasks, and most open runs, of an agent that one event of the agent re-evaluates.
const MAX_OPEN: usize = 1_000;
/// Rows evaluated at once.
const ROWS: usize = 1_024;

/// Of agents and tasks what is known in any case: what a command about them is checked against (I3), and what the live topic says.
const KEPT: [&[(&str, usize, DataType)]; 3] = [
    &[],
    &[
        ("capacity", col::CAPACITY, DataType::Int64),
        ("team_id", col::TEAM_ID, DataType::Utf8),
        ("health_status", col::HEALTH_STATUS, DataType::Utf8),
        ("anomaly_score", col::ANOMALY_SCORE, DataType::Float64),
        ("consecutive_anomalous_readings", col::CONSECUTIVE_ANOMALOUS_READINGS, DataType::Int64),
    ],
    &[
        ("task_status", col::TASK_STATUS, DataType::Utf8),
        ("priority", col::PRIORITY, DataType::Utf8),
        ("running_duration_seconds", col::RUNNING_DURATION_SECONDS, DataType::Float64),
        ("timeout_seconds", col::TIMEOUT_SECONDS, DataType::Float64),
    ],
];

/// Project, agent, key, human and provider of a run.
pub type Identity = [Option<Arc<str>>; 5];

/// What turned, in the order of the events.
#[derive(Debug, Clone, PartialEq)]
pub enum Turn {
    /// To true.
    Up(Box<Taken>),
    /// From true; also when what it was about is forgotten, or its policy is no longer in force.
    Down {
        /// Tenant.
        tenant: Arc<str>,
        /// Tenant of the policy.
        policy_tenant: Arc<str>,
        /// The policy.
        policy_id: Arc<str>,
        /// Run, agent and task that the condition reads.
        about: [Option<Arc<str>>; 3],
        /// The row of the batch at which it turned.
        row: usize,
    },
}

impl Turn {
    /// The row of the batch at which it turned.
    pub fn row(&self) -> usize {
        match self {
            Self::Up(taken) => taken.row,
            Self::Down { row, .. } => *row,
        }
    }

    /// Whose it is.
    pub fn tenant(&self) -> &Arc<str> {
        match self {
            Self::Up(taken) => &taken.tenant,
            Self::Down { tenant, .. } => tenant,
        }
    }
}

/// A condition and its policy.
struct Watched {
    policy: Arc<Policy>,
    compiled: Compiled,
    /// Run, agent, task.
    reads: [bool; 3],
}

/// The conditions in force.
pub struct Watch {
    conditions: Conditions,
    watched: Vec<Watched>,
    /// Of run, agent, task: the fields that some condition reads.
    fields: [Vec<(Arc<str>, Origin, DataType)>; 3],
    /// Whether any condition reads of run, agent, task.
    reads: [bool; 3],
}

/// A row to evaluate.
struct Row {
    tenant: Arc<str>,
    row: usize,
    time: Micros,
    subjects: [Option<Arc<str>>; 3],
    team: Option<Arc<str>>,
    /// Conditions (by number) that are evaluated on it.
    of: Vec<usize>,
    /// One for each input.
    values: Vec<Option<Value>>,
}

const RUN: usize = 0;
const AGENT: usize = 1;
const TASK: usize = 2;

fn place(kind: Kind) -> usize {
    match kind {
        Kind::Run => RUN,
        Kind::Agent => AGENT,
        Kind::Task => TASK,
    }
}

/// The name of a field within its entity.
fn field(input: &Input) -> &str {
    input.name.split_once('.').map_or(input.name.as_str(), |(_, field)| field)
}

impl Watch {
    /// The conditions of a snapshot. The faults are of those that do not compile, which `check` refuses.
    pub fn new(snapshot: &Snapshot, fields: &Fields) -> (Self, Vec<Fault>) {
        let (conditions, faults) = Conditions::compile(snapshot.policies().iter().map(|p| &**p), fields);
        let watched: Vec<Watched> = conditions
            .compiled()
            .iter()
            .filter_map(|compiled| {
                let policy = Arc::clone(snapshot.policy(&compiled.policy.0, &compiled.policy.1)?);
                let reads = [Kind::Run, Kind::Agent, Kind::Task].map(|kind| compiled.reads.contains(&kind));
                Some(Watched { policy, compiled: compiled.clone(), reads })
            })
            .collect();
        let mut of_kind: [BTreeMap<Arc<str>, (Origin, DataType)>; 3] = Default::default();
        for input in conditions.inputs() {
            if !matches!(input.origin, Origin::Utilization(_)) {
                let value = (input.origin.clone(), input.data_type.clone());
                of_kind[place(input.entity)].insert(Arc::from(field(input)), value);
            }
        }
        let fields = of_kind.map(|of| of.into_iter().map(|(name, (origin, ty))| (name, origin, ty)).collect());
        let reads = [RUN, AGENT, TASK].map(|at| watched.iter().any(|w| w.reads[at]));
        (Self { conditions, watched, fields, reads }, faults)
    }

    /// Whether there is nothing to evaluate.
    pub fn is_empty(&self) -> bool {
        self.watched.is_empty()
    }

    /// Takes down what no condition in force keeps up any more.
    pub fn settle(&self, entities: &mut Entities) -> Vec<Turn> {
        let version = |up: &Up| {
            let own = self.watched.iter().find(|w| w.policy.tenant == up.policy_tenant && w.policy.id == up.policy_id);
            own.is_some_and(|w| w.policy.version == up.version)
        };
        let down = entities.take_down(version);
        if self.is_empty() {
            entities.clear(Kind::Run);
        }
        down.into_iter().map(|(key, up)| fallen(&key, &up, 0)).collect()
    }

    /// Takes a batch: the entities it names, and what turned. `clocks` is each row's tenant's highest event time at that row;
    /// `identity` of a run, if it is known.
    ///
    /// # Errors
    /// When rows cannot be put together, which the types exclude.
    pub fn observe(
        &self,
        batch: &RecordBatch,
        clocks: &[Micros],
        entities: &mut Entities,
        identity: &dyn Fn(&str, &str) -> Option<Identity>,
    ) -> Result<Vec<Turn>, ArrowError> {
        let mut turns = Vec::new();
        let text = |column: usize| batch.column(column).as_string::<i32>();
        let columns = [col::RUN_ID, col::AGENT_ID, col::TASK_ID].map(text);
        let rest = [col::PROJECT_ID, col::AGENT_ID, col::API_KEY_ID, col::HUMAN_ACTOR_ID, col::PROVIDER].map(text);
        let (tenants, types, status, teams) =
            (text(col::TENANT_ID), text(col::EVENT_TYPE), text(col::TASK_STATUS), text(col::TEAM_ID));
        let times = batch.column(col::EVENT_TIME).as_primitive::<TimestampMicrosecondType>();
        let attributes = self.fields.iter().flatten().any(|(_, origin, _)| matches!(origin, Origin::Attribute(_)));
        let mut pending: Vec<Row> = Vec::new();
        for row in 0..batch.num_rows() {
            let get = |column: &StringArray| column.is_valid(row).then(|| Arc::<str>::from(column.value(row)));
            let event = if types.is_valid(row) { types.value(row) } else { "" };
            let of_entity = matches!(event, "agent.heartbeat" | "task.updated");
            if self.is_empty() && !of_entity {
                continue;
            }
            let reads = [self.reads[RUN], self.reads[AGENT] || of_entity, self.reads[TASK] || of_entity];
            let tenant = tenants.value(row);
            let time = times.value(row);
            let clock = clocks.get(row).copied().unwrap_or(time);
            // what is pending was evaluated against what is forgotten now
            if entities.has_due(tenant, clock) {
                self.evaluate(std::mem::take(&mut pending), entities, &mut turns)?;
                turns.extend(entities.expire(tenant, clock).iter().map(|(key, up)| fallen(key, up, row)));
            }
            let named = columns.map(|column| if column.is_valid(row) { Some(column.value(row)) } else { None });
            if named.iter().zip(reads).all(|(id, reads)| id.is_none() || !reads) {
                continue;
            }
            let object = (attributes && batch.column(col::ATTRIBUTES).is_valid(row))
                .then(|| serde_json::from_str(text(col::ATTRIBUTES).value(row)).ok())
                .flatten();
            for kind in [Kind::Run, Kind::Agent, Kind::Task] {
                let Some(id) = named[place(kind)].filter(|_| reads[place(kind)]) else { continue };
                let open = match kind {
                    Kind::Run if matches!(event, "run.completed" | "run.failed") => Some(false),
                    Kind::Run if event == "run.started" => Some(true),
                    Kind::Task if status.is_valid(row) => {
                        Some(!matches!(status.value(row), "completed" | "failed" | "cancelled"))
                    }
                    _ => None,
                };
                let mut values = self.said(kind, batch, row, object.as_ref());
                for (name, column, data_type) in KEPT[place(kind)].iter().filter(|_| of_entity) {
                    let value = cell(batch.column(*column), data_type, row);
                    values.extend(value.map(|value| (Arc::from(*name), value)));
                }
                let run = named[RUN].filter(|_| kind == Kind::Task);
                let agent = named[AGENT].filter(|_| kind != Kind::Agent);
                entities.observe(tenant, kind, Said { id, time, values, open, run, agent });
            }
            if !self.concerned(named) {
                continue;
            }
            let (tenant, named): (Arc<str>, _) = (Arc::from(tenant), named.map(|id| id.map(Arc::from)));
            let own: Identity = rest.map(get);
            let team = get(teams);
            for (shape, subjects) in rows_of(&tenant, named, entities) {
                let mut of_run =
                    subjects[RUN].as_deref().and_then(|run| identity(&tenant, run)).unwrap_or_else(|| own.clone());
                if of_run[1].is_none() {
                    of_run[1].clone_from(&subjects[AGENT]);
                }
                let who = who(&tenant, &of_run);
                let applies = |w: &Watched| {
                    w.reads.iter().zip(&subjects).all(|(reads, id)| !reads || id.is_some())
                        && shape.concerns(w.reads)
                        && w.policy.is_for_tenant(&tenant)
                        && w.policy.scope.matches(&who)
                        && w.policy.active.as_ref().is_none_or(|active| active.contains(time))
                };
                let of: Vec<usize> = (0..self.watched.len()).filter(|n| applies(&self.watched[*n])).collect();
                if !of.is_empty() {
                    let values =
                        self.conditions.inputs().iter().map(|i| value(entities, &tenant, &subjects, i)).collect();
                    pending.push(Row { tenant: tenant.clone(), row, time, subjects, team: team.clone(), of, values });
                }
            }
            if pending.len() >= ROWS {
                self.evaluate(std::mem::take(&mut pending), entities, &mut turns)?;
            }
        }
        self.evaluate(pending, entities, &mut turns)?;
        Ok(turns)
    }

    /// Whether an event that names these can give a row that some condition is evaluated on.
    fn concerned(&self, named: [Option<&str>; 3]) -> bool {
        let [run, agent, task] = named.map(|id| id.is_some());
        // what is not named may be known: the run of a task, the agent of either; of an agent alone any open work
        let alone = agent && !run && !task;
        let possible = [run || task || alone, agent || run || task, task || alone];
        self.watched.iter().any(|w| w.reads.iter().zip(possible).all(|(reads, possible)| !reads || possible))
    }

    /// The fields of an entity that the row gives.
    fn said(
        &self,
        kind: Kind,
        batch: &RecordBatch,
        row: usize,
        attributes: Option<&serde_json::Map<String, serde_json::Value>>,
    ) -> Vec<(Arc<str>, Value)> {
        let each = self.fields[place(kind)].iter();
        each.filter_map(|(name, origin, data_type)| {
            let value = match origin {
                Origin::Column(column) => cell(batch.column(*column), data_type, row),
                Origin::Attribute(attribute) => match attributes?.get(attribute)? {
                    serde_json::Value::String(text) => Some(Value::Text(Arc::from(text.as_str()))),
                    serde_json::Value::Number(number) => number.as_f64().map(Value::Real),
                    serde_json::Value::Bool(truth) => Some(Value::Truth(*truth)),
                    _ => None,
                },
                Origin::Utilization(_) => None,
            };
            value.map(|value| (Arc::clone(name), value))
        })
        .collect()
    }

    fn evaluate(&self, rows: Vec<Row>, entities: &mut Entities, turns: &mut Vec<Turn>) -> Result<(), ArrowError> {
        if rows.is_empty() {
            return Ok(());
        }
        let columns = (0..).zip(self.conditions.inputs()).map(|(n, input)| column(&rows, n, &input.data_type));
        let batch = self.conditions.rows(columns.collect::<Result<_, _>>()?, rows.len())?;
        let mut values: Vec<Option<Vec<crate::policy::Truth>>> = vec![None; self.watched.len()];
        for condition in rows.iter().flat_map(|row| &row.of) {
            if values[*condition].is_none() {
                values[*condition] = Some(Conditions::evaluate(&self.watched[*condition].compiled, &batch));
            }
        }
        for (n, row) in rows.into_iter().enumerate() {
            for condition in &row.of {
                let watched = &self.watched[*condition];
                let Some(truth) = values[*condition].as_ref().and_then(|v| v.get(n)) else { continue };
                self.turn(watched, &row, *truth, entities, turns);
            }
        }
        Ok(())
    }

    fn turn(
        &self,
        watched: &Watched,
        row: &Row,
        truth: crate::policy::Truth,
        entities: &mut Entities,
        turns: &mut Vec<Turn>,
    ) {
        let Watched { policy, compiled, reads } = watched;
        let mut about = row.subjects.clone();
        for (subject, reads) in about.iter_mut().zip(reads) {
            if !reads {
                *subject = None;
            }
        }
        let narrowest = [(Kind::Task, TASK), (Kind::Run, RUN), (Kind::Agent, AGENT)];
        let Some((kind, id)) = narrowest.into_iter().find_map(|(kind, at)| Some((kind, about[at].clone()?))) else {
            return;
        };
        let mut with = about.clone();
        with[place(kind)] = None;
        let up =
            Up { policy_tenant: policy.tenant.clone(), policy_id: policy.id.clone(), version: policy.version, with };
        let holds = truth.acts(compiled.on_failure);
        if !entities.note(&row.tenant, kind, &id, up, holds) {
            return;
        }
        turns.push(if holds {
            Turn::Up(Box::new(Taken {
                policy: Arc::clone(policy),
                tenant: row.tenant.clone(),
                subjects: row.subjects.clone(),
                about,
                team: row.team.clone(),
                row: row.row,
                time: row.time,
                unknown: truth != crate::policy::Truth::True,
            }))
        } else {
            let (policy_tenant, policy_id) = (policy.tenant.clone(), policy.id.clone());
            Turn::Down { tenant: row.tenant.clone(), policy_tenant, policy_id, about, row: row.row }
        });
    }
}

fn fallen((tenant, kind, id): &Key, up: &Up, row: usize) -> Turn {
    let mut about = up.with.clone();
    about[place(*kind)] = Some(Arc::from(&**id));
    Turn::Down {
        tenant: Arc::from(&**tenant),
        policy_tenant: up.policy_tenant.clone(),
        policy_id: up.policy_id.clone(),
        about,
        row,
    }
}

fn who<'a>(tenant: &'a str, [project, agent, api_key, human, provider]: &'a Identity) -> Who<'a> {
    Who {
        tenant,
        project: project.as_deref(),
        agent: agent.as_deref(),
        api_key: api_key.as_deref(),
        human: human.as_deref(),
        provider: provider.as_deref(),
    }
}

/// Why there is a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// The event names these.
    Named,
    /// The event names the agent alone, and this is a task it has open.
    OpenTask,
    /// Likewise a run.
    OpenRun,
}

impl Shape {
    /// Whether a condition that reads run, agent, task is evaluated on such a row: of open work only what the agent's new
    /// values can change, and a task's run with the task.
    fn concerns(self, [run, agent, task]: [bool; 3]) -> bool {
        match self {
            Self::Named => true,
            Self::OpenTask => agent && task,
            Self::OpenRun => agent && run && !task,
        }
    }
}

/// The rows of an event: what it names, completed; and the open work of an agent that is named alone.
fn rows_of(tenant: &str, named: [Option<Arc<str>>; 3], entities: &Entities) -> Vec<(Shape, [Option<Arc<str>>; 3])> {
    let completed = |[run, agent, task]: [Option<Arc<str>>; 3]| {
        let of_task = task.as_ref().and_then(|task| entities.get(tenant, Kind::Task, task));
        let run = run.or_else(|| of_task.and_then(|t| t.run.clone()));
        let of_run = run.as_ref().and_then(|run| entities.get(tenant, Kind::Run, run));
        let agent =
            agent.or_else(|| of_task.and_then(|t| t.agent.clone())).or_else(|| of_run.and_then(|r| r.agent.clone()));
        [run, agent, task]
    };
    let [run, agent, task] = &named;
    let mut rows = vec![(Shape::Named, completed(named.clone()))];
    if let (None, Some(agent), None) = (run, agent, task) {
        let open = |kind| entities.open_of(tenant, agent, kind).take(MAX_OPEN);
        let own = || Some(Arc::clone(agent));
        rows.extend(open(Kind::Task).map(|task| (Shape::OpenTask, completed([None, own(), Some(Arc::from(task))]))));
        rows.extend(open(Kind::Run).map(|run| (Shape::OpenRun, [Some(Arc::from(run)), own(), None])));
    }
    rows
}

fn value(entities: &Entities, tenant: &str, subjects: &[Option<Arc<str>>; 3], input: &Input) -> Option<Value> {
    let id = subjects[place(input.entity)].as_ref()?;
    let entity = entities.get(tenant, input.entity, id)?;
    entity.values.get(field(input)).map(|(_, value)| value.clone())
}

/// One value of a column of telemetry.
fn cell(column: &ArrayRef, data_type: &DataType, row: usize) -> Option<Value> {
    if column.is_null(row) {
        return None;
    }
    Some(match data_type {
        DataType::Utf8 => Value::Text(Arc::from(column.as_string_opt::<i32>()?.value(row))),
        DataType::Int64 => Value::Whole(column.as_primitive_opt::<Int64Type>()?.value(row)),
        DataType::Float64 => Value::Real(column.as_primitive_opt::<Float64Type>()?.value(row)),
        DataType::Boolean => Value::Truth(column.as_boolean_opt()?.value(row)),
        DataType::Decimal128(..) => Value::Money(column.as_primitive_opt::<Decimal128Type>()?.value(row)),
        DataType::Timestamp(..) => Value::Time(column.as_primitive_opt::<TimestampMicrosecondType>()?.value(row)),
        _ => return None,
    })
}

/// The column of an input over the rows; a value of another type is missing.
fn column(rows: &[Row], n: usize, data_type: &DataType) -> Result<ArrayRef, ArrowError> {
    let values = || rows.iter().map(|row| row.values.get(n).and_then(Option::as_ref));
    Ok(match data_type {
        DataType::Utf8 => {
            let texts = values().map(|v| if let Some(Value::Text(text)) = v { Some(&**text) } else { None });
            Arc::new(texts.collect::<StringArray>())
        }
        DataType::Int64 => {
            let numbers = values().map(|v| if let Some(Value::Whole(n)) = v { Some(*n) } else { None });
            Arc::new(numbers.collect::<Int64Array>())
        }
        DataType::Float64 => {
            let numbers = values().map(|v| if let Some(Value::Real(n)) = v { Some(*n) } else { None });
            Arc::new(numbers.collect::<Float64Array>())
        }
        DataType::Boolean => {
            let truths = values().map(|v| if let Some(Value::Truth(b)) = v { Some(*b) } else { None });
            Arc::new(truths.collect::<BooleanArray>())
        }
        DataType::Decimal128(precision, scale) => {
            let units = values().map(|v| if let Some(Value::Money(units)) = v { Some(*units) } else { None });
            Arc::new(units.collect::<Decimal128Array>().with_precision_and_scale(*precision, *scale)?)
        }
        DataType::Timestamp(..) => {
            let times = values().map(|v| if let Some(Value::Time(at)) = v { Some(*at) } else { None });
            Arc::new(times.collect::<TimestampMicrosecondArray>())
        }
        other => new_null_array(other, rows.len()),
    })
}

#[cfg(test)]
mod tests;
