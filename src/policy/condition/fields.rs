//! What conditions may read: the latest telemetry values of a run, an agent and a task, their attributes, and how far a run has
//! used up what a metric allows.

use std::collections::BTreeSet;

use datafusion::arrow::datatypes::{DataType, SchemaRef};

use super::{ALIASES, UTILIZATION, canonical};
use crate::policy::fault::{nearest, quoted};
use crate::policy::names::names;

names! {
    /// Whose values a field gives.
    Entity {
        /// The run an event names.
        Run = "run",
        /// The agent.
        Agent = "agent",
        /// The task.
        Task = "task",
    }
}

/// Where the values of a field come from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// A column of telemetry, by position.
    Column(usize),
    /// An entry of `attributes`, by name.
    Attribute(String),
    /// The utilization of a metric: value ÷ max of the tightest limit, 1 at the limit.
    Utilization(String),
}

/// One field that a condition reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    /// Its full name, as `run.model`.
    pub name: String,
    /// Whose it is.
    pub entity: Entity,
    /// Where its values come from.
    pub origin: Origin,
    /// The Arrow type of its values. Of an attribute: the type it is compared with; values of another type count as missing.
    pub data_type: DataType,
}

/// The fields there are.
#[derive(Debug, Clone)]
pub struct Fields {
    schema: SchemaRef,
    metrics: BTreeSet<String>,
}

impl Fields {
    /// The columns of telemetry, and the names of the metrics.
    pub fn new(schema: SchemaRef, metrics: impl IntoIterator<Item = String>) -> Self {
        Self { schema, metrics: metrics.into_iter().collect() }
    }

    /// The field of a name or alias. `attribute` is the type that an attribute is compared with.
    ///
    /// # Errors
    /// What is wrong, and what may be meant.
    pub(super) fn resolve(&self, name: &str, attribute: Option<&DataType>) -> Result<Input, (String, String)> {
        let full = canonical(name);
        let (prefix, rest) = full.split_once('.').unwrap_or((full, ""));
        let unknown = || format!("there is no field {}", quoted(name));
        let Some(entity) = Entity::parse(prefix) else {
            let help = match self.nearest(name) {
                Some(meant) => format!("did you mean `{meant}`?"),
                None => "fields begin with run., agent. or task.; texts stand in single quotes".to_owned(),
            };
            return Err((unknown(), help));
        };
        let (origin, data_type) = if let Some(attribute_name) = rest.strip_prefix("attributes.") {
            let data_type = attribute.cloned().unwrap_or(DataType::Utf8);
            (Origin::Attribute(attribute_name.to_owned()), data_type)
        } else if let Some(metric) = full.strip_prefix(UTILIZATION) {
            if !self.metrics.contains(metric) {
                let help = match nearest(metric, self.metrics.iter().map(String::as_str)) {
                    Some(meant) => format!("did you mean `{UTILIZATION}{meant}`?"),
                    None => "metrics are the files under queries/metrics".to_owned(),
                };
                return Err((format!("there is no metric {}", quoted(metric)), help));
            }
            (Origin::Utilization(metric.to_owned()), DataType::Float64)
        } else {
            match self.schema.column_with_name(rest) {
                // these hold JSON text, of which the entries are read
                Some((_, field)) if matches!(field.name().as_str(), "attributes" | "labels") => {
                    return Err((
                        format!("{} is no single value", quoted(name)),
                        format!("as `{prefix}.attributes.name`"),
                    ));
                }
                Some((at, field)) => (Origin::Column(at), field.data_type().clone()),
                None => {
                    let help = match self.nearest(name) {
                        Some(meant) => format!("did you mean `{meant}`?"),
                        None => format!(
                            "as `{prefix}.total_tokens`; what telemetry does not name is under `{prefix}.attributes.`"
                        ),
                    };
                    return Err((unknown(), help));
                }
            }
        };
        Ok(Input { name: full.to_owned(), entity, origin, data_type })
    }

    fn nearest(&self, name: &str) -> Option<String> {
        let (prefix, _) = name.split_once('.').unwrap_or((name, ""));
        let entities = Entity::ALL.iter().filter(|e| Entity::parse(prefix).is_none_or(|own| own == **e));
        let columns = entities.flat_map(|e| self.schema.fields().iter().map(move |f| format!("{e}.{}", f.name())));
        let aliases = ALIASES.iter().map(|(alias, _)| (*alias).to_owned());
        let all: Vec<String> = columns.chain(aliases).collect();
        nearest(name, all.iter().map(String::as_str)).map(str::to_owned)
    }
}
