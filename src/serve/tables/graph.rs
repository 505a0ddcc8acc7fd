//! What contradicts what, and what depends on what, among the policies of the register (P9, P10): computed when policies have changed and
//! somebody asks, and shown as tables.

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, BooleanArray, RecordBatch, StringArray, TimestampMicrosecondArray};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use datafusion::arrow::error::ArrowError;

use crate::clock::Micros;
use crate::policy::{Conflict, Conflicts, Dependencies, DependencyEdge, Policy, conflicts, dependencies};
use crate::telemetry::parse_time;

/// The policies, and what follows from them.
#[derive(Default)]
pub struct Graph {
    /// By the key of its record: the policy, and when it came in force.
    policies: BTreeMap<String, (Arc<Policy>, Micros)>,
    known: Option<Arc<Known>>,
}

/// What follows from the policies.
pub struct Known {
    /// What contradicts what.
    pub conflicts: Conflicts,
    /// What depends on what.
    pub dependencies: Dependencies,
    /// When the newest policy came in force: what follows from it holds since then. µs.
    pub since: Micros,
    /// When each policy came in force, by tenant and id.
    pub changed: BTreeMap<(String, String), Micros>,
}

impl Graph {
    /// Takes a record of the policies topic; `key` is its key. False: it is not a policy that this version can read.
    pub fn put(&mut self, key: &str, record: &serde_json::Value) -> bool {
        self.known = None;
        let Ok(policy) = serde_json::from_value::<Policy>(record.clone()) else {
            self.policies.remove(key);
            return false;
        };
        let at = record["changed_at"].as_str().and_then(parse_time).unwrap_or_default();
        self.policies.insert(key.to_owned(), (Arc::new(policy), at));
        true
    }

    /// The policy of a key is gone.
    pub fn remove(&mut self, key: &str) {
        self.known = None;
        self.policies.remove(key);
    }

    /// What follows from the policies there are.
    pub fn known(&mut self) -> Arc<Known> {
        let policies = &self.policies;
        let known = self.known.get_or_insert_with(|| {
            let all = || policies.values().map(|(policy, _)| &**policy);
            Arc::new(Known {
                conflicts: conflicts(all()),
                dependencies: dependencies(all()),
                since: policies.values().map(|(_, at)| *at).max().unwrap_or_default(),
                changed: policies.values().map(|(p, at)| ((p.tenant.to_string(), p.id.to_string()), *at)).collect(),
            })
        });
        Arc::clone(known)
    }
}

impl Known {
    /// Since when a pair of policies has been in force together.
    pub fn together(&self, pairs: [(&str, &str); 2]) -> Micros {
        let at = |(tenant, id): (&str, &str)| self.changed.get(&(tenant.to_owned(), id.to_owned())).copied();
        pairs.into_iter().filter_map(at).max().unwrap_or(self.since)
    }
}

fn text(name: &str) -> Field {
    Field::new(name, DataType::Utf8, false)
}

fn texts<'t>(texts: impl Iterator<Item = &'t str>) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(texts))
}

/// The schema of `conflicts`.
pub fn conflicts_schema() -> SchemaRef {
    let names = [
        "tenant_id",
        "policy_a_id",
        "policy_b_id",
        "policy_a_name",
        "policy_b_name",
        "policy_a_tenant",
        "policy_b_tenant",
        "conflict_type",
        "severity",
        "explanation",
        "recommended_action",
    ];
    let time = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    let mut fields: Vec<Field> = names.into_iter().map(text).collect();
    fields.push(Field::new("detected_at", time, false));
    fields.push(Field::new("resolved", DataType::Boolean, false));
    Arc::new(Schema::new(fields))
}

/// `conflicts`: of the tenant of the one that is not everyone's.
///
/// # Errors
/// None that a batch of one's own columns has.
pub fn conflicts_batch(known: &Known) -> Result<RecordBatch, ArrowError> {
    let all = &known.conflicts.conflicts;
    let of = |c: fn(&Conflict) -> &str| texts(all.iter().map(c));
    let tenant =
        |c: &'_ Conflict| if c.policy_a_tenant == "*" { c.policy_b_tenant.clone() } else { c.policy_a_tenant.clone() };
    let tenants: Vec<String> = all.iter().map(tenant).collect();
    let at = all
        .iter()
        .map(|c| known.together([(&c.policy_a_tenant, &c.policy_a_id), (&c.policy_b_tenant, &c.policy_b_id)]));
    let columns: Vec<ArrayRef> = vec![
        texts(tenants.iter().map(String::as_str)),
        of(|c| &c.policy_a_id),
        of(|c| &c.policy_b_id),
        of(|c| &c.policy_a_name),
        of(|c| &c.policy_b_name),
        of(|c| &c.policy_a_tenant),
        of(|c| &c.policy_b_tenant),
        of(|c| c.conflict_type.as_str()),
        of(|c| c.severity.as_str()),
        of(|c| &c.explanation),
        of(|c| &c.recommended_action),
        Arc::new(TimestampMicrosecondArray::from_iter_values(at).with_timezone("UTC")),
        // what is no conflict any more is not there any more
        Arc::new(BooleanArray::from(vec![false; all.len()])),
    ];
    RecordBatch::try_new(conflicts_schema(), columns)
}

/// The schema of `dependencies`.
pub fn dependencies_schema() -> SchemaRef {
    let names =
        ["tenant_id", "from_policy_id", "to_policy_id", "from_tenant", "to_tenant", "dependency_type", "explanation"];
    Arc::new(Schema::new(names.into_iter().map(text).collect::<Vec<_>>()))
}

/// `dependencies`: of the tenant of the one that is not everyone's.
///
/// # Errors
/// None that a batch of one's own columns has.
pub fn dependencies_batch(known: &Known) -> Result<RecordBatch, ArrowError> {
    let all = &known.dependencies.edges;
    let of = |e: fn(&DependencyEdge) -> &str| texts(all.iter().map(e));
    let columns = vec![
        of(|e| if e.from_tenant == "*" { &e.to_tenant } else { &e.from_tenant }),
        of(|e| &e.from_policy_id),
        of(|e| &e.to_policy_id),
        of(|e| &e.from_tenant),
        of(|e| &e.to_tenant),
        of(|e| e.dependency_type.as_str()),
        of(|e| &e.explanation),
    ];
    RecordBatch::try_new(dependencies_schema(), columns)
}
