//! Tables in memory for tests: the schema of the real ones, the same views, rows from JSON.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::{
    ArrayRef, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::datasource::MemTable;
use datafusion::prelude::SessionContext;
use datafusion::scalar::ScalarValue;
use serde_json::{Value, json};

use super::ask::Ask;
use super::files::Source;
use crate::clock::{Micros, rfc3339};
use crate::serve::tables::graph::{conflicts_schema, dependencies_schema};
use crate::serve::tables::schema::TABLES;
use crate::serve::tables::{QueryError, Scope, VIEWS};

/// Tables in memory.
pub(super) struct Memory {
    schemas: Vec<SchemaRef>,
    names: Vec<&'static str>,
    rows: Vec<(&'static str, Value)>,
    /// Whether the topics were read to their ends.
    whole: bool,
}

/// Tables with these rows. Times are RFC 3339; what a row does not name is null.
pub(super) fn tables(rows: &[(&'static str, Value)]) -> Memory {
    let mut memory = Memory { schemas: Vec::new(), names: Vec::new(), rows: rows.to_vec(), whole: true };
    for table in &TABLES {
        memory.names.push(table.name);
        memory.schemas.push(table.schema());
    }
    // those that are made by code, beside those of topics
    for (name, schema) in [("conflicts", conflicts_schema()), ("dependencies", dependencies_schema())] {
        memory.names.push(name);
        memory.schemas.push(schema);
    }
    for (name, row) in &memory.rows {
        let at = memory.names.iter().position(|known| known == name).unwrap_or_else(|| panic!("no table {name}"));
        for key in row.as_object().unwrap().keys() {
            assert!(memory.schemas[at].field_with_name(key).is_ok(), "{name} has no column {key}");
        }
    }
    memory
}

fn array(kind: &DataType, values: Vec<Value>) -> ArrayRef {
    match kind {
        DataType::Utf8 => Arc::new(StringArray::from_iter(values.iter().map(Value::as_str))),
        DataType::Int64 => Arc::new(Int64Array::from_iter(values.iter().map(Value::as_i64))),
        DataType::Float64 => Arc::new(Float64Array::from_iter(values.iter().map(Value::as_f64))),
        DataType::Boolean => Arc::new(BooleanArray::from_iter(values.iter().map(Value::as_bool))),
        DataType::Timestamp(..) => {
            let micros = |text: &str| chrono::DateTime::parse_from_rfc3339(text).unwrap().timestamp_micros();
            let times: TimestampMicrosecondArray = values.iter().map(|value| value.as_str().map(micros)).collect();
            Arc::new(times.with_timezone("UTC"))
        }
        other => panic!("no column is {other}"),
    }
}

impl Memory {
    /// The same, before the topics were read to their ends.
    pub(super) fn not_whole(self) -> Self {
        Self { whole: false, ..self }
    }

    async fn session(&self, scope: &Scope) -> SessionContext {
        let session = SessionContext::new();
        for (name, schema) in self.names.iter().zip(&self.schemas) {
            let shared = TABLES.iter().find(|table| table.name == *name).is_none_or(|table| table.shared);
            let sees = |row: &Value| match scope {
                Scope::All => true,
                Scope::Tenant(tenant) => row["tenant_id"] == **tenant || (shared && row["tenant_id"] == "*"),
            };
            let rows = || self.rows.iter().filter(|(of, row)| of == name && sees(row)).map(|(_, row)| row);
            let columns = schema.fields().iter().map(|field| {
                let values = rows().map(|row| row.get(field.name()).cloned().unwrap_or_default()).collect();
                array(field.data_type(), values)
            });
            let fields: Vec<Field> = schema.fields().iter().map(|f| f.as_ref().clone().with_nullable(true)).collect();
            let schema = Arc::new(Schema::new(fields));
            let batch = RecordBatch::try_new(Arc::clone(&schema), columns.collect()).unwrap();
            // one row to a partition, so that an order that holds is one that was asked for
            let parts = (0..batch.num_rows()).map(|row| vec![batch.slice(row, 1)]).collect::<Vec<_>>();
            let parts = if parts.is_empty() { vec![vec![]] } else { parts };
            session.register_table(*name, Arc::new(MemTable::try_new(schema, parts).unwrap())).unwrap();
        }
        for (name, sql, _) in &VIEWS {
            session.sql(&format!("CREATE VIEW {name} AS {sql}")).await.unwrap();
        }
        session
    }
}

#[async_trait]
impl Ask for Memory {
    async fn query(
        &self,
        scope: &Scope,
        sql: &str,
        parameters: Vec<ScalarValue>,
    ) -> Result<Vec<RecordBatch>, QueryError> {
        let frame = self.session(scope).await.sql(sql).await.map_err(|error| QueryError::Invalid(error.to_string()))?;
        let frame = if parameters.is_empty() { frame } else { frame.with_param_values(parameters).unwrap() };
        frame.collect().await.map_err(|error| QueryError::Internal(error.to_string()))
    }

    fn is_whole(&self) -> bool {
        self.whole
    }

    async fn plan(&self, scope: &Scope, sql: &str) -> Result<SchemaRef, QueryError> {
        let frame = self.session(scope).await.sql(sql).await.map_err(|error| QueryError::Invalid(error.to_string()))?;
        Ok(Arc::clone(frame.schema().inner()))
    }
}

/// A registry and queries on disk, below a directory that goes with it.
pub(super) struct Folder(tempfile::TempDir);

impl Folder {
    /// Of panels: id, SQL, and what is in the invariant.
    pub(super) fn new(panels: &[(&str, &str, &str)]) -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        fs::create_dir_all(folder.path().join("queries/panels")).unwrap();
        folder.write(panels);
        folder
    }

    /// Writes these in place of what was there.
    pub(super) fn write(&self, panels: &[(&str, &str, &str)]) {
        let mut text = "panels:\n".to_owned();
        for (id, sql, invariant) in panels {
            let file = id.to_lowercase();
            fs::write(self.path().join(format!("queries/panels/{file}.sql")), sql).unwrap();
            text.push_str(&format!(
                "  - {{id: {id}, question: q, topic: T, query: panels/{file}.sql, endpoint: /x, columns: [signal_id], capability: \
                 {{id: c, status: OBSERVED}}, invariant: {{{invariant}}}}}\n"
            ));
        }
        fs::write(self.path().join("panels.yaml"), text).unwrap();
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        self.0.path()
    }

    /// To be read.
    pub(super) fn source(&self) -> Source {
        Source::Disk { registry: self.path().join("panels.yaml"), queries: self.path().join("queries") }
    }
}

/// A NEAR of a tenant that is `ago` µs old at `now`.
pub(super) fn signal(id: &str, tenant: &str, now: Micros, ago: Micros) -> (&'static str, Value) {
    let at = rfc3339(now - ago);
    ("signals", json!({"signal_id": id, "kind": "NEAR", "tenant_id": tenant, "event_time": at, "decided_at": at}))
}

/// The rows of a query as JSON objects, nulls left out, times as RFC 3339.
pub(super) fn rows(tables: &dyn Ask, scope: &Scope, sql: &str) -> Vec<Value> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let batches = runtime.block_on(tables.query(scope, sql, Vec::new())).unwrap();
    let mut objects: Vec<Value> = super::routes::objects(&batches);
    for object in objects.iter_mut().filter_map(Value::as_object_mut) {
        object.retain(|_, value| !value.is_null());
    }
    objects
}
