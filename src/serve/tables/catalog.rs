//! What a session sees: each table as it stands when it is asked for, with what is sealed, and never a row of another tenant.
//!
//! This is the one place where tenants are kept apart for whoever reads (O7, V2): REST, panels and SQL all read through a session, and a
//! session knows tables only from here.

use std::fmt;
use std::sync::{Arc, Weak};

use async_trait::async_trait;
use datafusion::arrow::array::RecordBatch;
use datafusion::catalog::{SchemaProvider, TableProvider};
use datafusion::datasource::file_format::parquet::ParquetFormat;
use datafusion::datasource::listing::{ListingOptions, ListingTable, ListingTableConfig, ListingTableUrl};
use datafusion::datasource::{MemTable, ViewTable, provider_as_source};
use datafusion::error::Result;
use datafusion::execution::SessionState;
use datafusion::logical_expr::{Expr, LogicalPlanBuilder, col, lit};
use datafusion::scalar::ScalarValue;

use super::schema::{self, Table};
use super::store::Snapshot;
use super::views::VIEWS;
use super::{Inner, Scope};

/// The schema that everything is in.
pub(super) const SCHEMA: &str = "public";
/// The catalog that the schema is in.
pub(super) const CATALOG: &str = "datafusion";

/// The tables of a scope; with `views`, the views over them too.
pub(super) struct Scoped {
    pub(super) inner: Weak<Inner>,
    pub(super) scope: Scope,
    /// Plans the views: a session that sees the tables alone.
    pub(super) views: Option<SessionState>,
}

impl fmt::Debug for Scoped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tables of {:?}", self.scope)
    }
}

#[async_trait]
impl SchemaProvider for Scoped {
    fn table_names(&self) -> Vec<String> {
        let tables = schema::TABLES.iter().map(|table| table.name.to_owned());
        let more = self.inner.upgrade().map(|inner| inner.whole_names()).unwrap_or_default();
        let views = VIEWS.iter().filter(|_| self.views.is_some()).map(|(name, ..)| (*name).to_owned());
        tables.chain(more).chain(views).collect()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        let Some(inner) = self.inner.upgrade() else { return Ok(None) };
        if let Some(table) = schema::table(name) {
            return self.of_topic(table, &inner.snapshot(table)?).map(Some);
        }
        if let Some(whole) = inner.whole(name, &self.scope)? {
            return self.of_whole(whole).map(Some);
        }
        let view = VIEWS.iter().find(|(view, ..)| *view == name);
        match (view, &self.views) {
            (Some((_, sql, _)), Some(state)) => {
                let plan = state.create_logical_plan(sql).await?;
                Ok(Some(Arc::new(ViewTable::new(plan, None))))
            }
            _ => Ok(None),
        }
    }

    fn table_exist(&self, name: &str) -> bool {
        self.table_names().iter().any(|known| known == name)
    }
}

impl Scoped {
    /// A table that is read from a topic: what is sealed and what is in memory, as one.
    fn of_topic(&self, table: &'static Table, snapshot: &Snapshot) -> Result<Arc<dyn TableProvider>> {
        let memory = MemTable::try_new(table.schema(), vec![snapshot.batches.clone()])?;
        let mut plan = LogicalPlanBuilder::scan(table.name, provider_as_source(Arc::new(memory)), None)?;
        // files of which the same rows are left out are read as one
        for files in snapshot.files.chunk_by(|(_, a), (_, b)| a == b) {
            let urls = files.iter().map(|(path, _)| ListingTableUrl::parse(path.to_string_lossy()));
            let options = ListingOptions::new(Arc::new(ParquetFormat::default()));
            let config = ListingTableConfig::new_with_multi_paths(urls.collect::<Result<Vec<_>>>()?)
                .with_listing_options(options)
                .with_schema(table.schema());
            let sealed = ListingTable::try_new(config)?;
            let mut scan = LogicalPlanBuilder::scan(table.name, provider_as_source(Arc::new(sealed)), None)?;
            if let (Some((_, ids)), [id]) = (files.first().filter(|(_, ids)| !ids.is_empty()), table.id) {
                scan = scan.filter(col(*id).in_list(ids.iter().map(|id| lit(id.as_str())).collect(), true))?;
            }
            plan = plan.union(scan.build()?)?;
        }
        if let (Some(time), Some(cutoff)) = (table.time, snapshot.cutoff) {
            let cutoff = ScalarValue::TimestampMicrosecond(Some(cutoff), Some("UTC".into()));
            plan = plan.filter(col(time).gt_eq(Expr::Literal(cutoff, None)).or(col(time).is_null()))?;
        }
        if let Some(own) = self.own(table.shared) {
            plan = plan.filter(own)?;
        }
        Ok(Arc::new(ViewTable::new(plan.build()?, None)))
    }

    /// A table that is computed whole.
    fn of_whole(&self, batch: RecordBatch) -> Result<Arc<dyn TableProvider>> {
        let by_tenant = batch.schema().index_of("tenant_id").is_ok();
        let memory = MemTable::try_new(batch.schema(), vec![vec![batch]])?;
        let plan = LogicalPlanBuilder::scan("t", provider_as_source(Arc::new(memory)), None)?;
        let plan = match self.own(true) {
            Some(own) if by_tenant => plan.filter(own)?,
            _ => plan,
        };
        Ok(Arc::new(ViewTable::new(plan.build()?, None)))
    }

    /// Which rows are this scope's own; `None`: all.
    fn own(&self, shared: bool) -> Option<Expr> {
        let Scope::Tenant(tenant) = &self.scope else { return None };
        let own = col("tenant_id").eq(lit(&**tenant));
        Some(if shared { own.or(col("tenant_id").eq(lit("*"))) } else { own })
    }
}
