//! A session: whose rows it sees, its settings, and how its queries are planned and run.

use std::sync::Arc;

use datafusion::arrow::datatypes::Schema;
use datafusion::common::ParamValues;
use datafusion::execution::context::SQLOptions;
use datafusion::logical_expr::LogicalPlan;
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::Statement as Parsed;
use datafusion::sql::sqlparser::ast::Statement;
use pgwire::api::portal::Format;

use super::Sql;
use super::admit::Admitted;
use super::errors::SqlError;
use super::results::{Most, Rows};
use super::settings::{Settings, TENANT};
use super::{catalog, functions, results};
use crate::serve::access::{ALL, Caller};
use crate::serve::tables::Scope;

/// A session.
pub(super) struct Session {
    sql: Arc<Sql>,
    user: String,
    scope: Scope,
    settings: Arc<Settings>,
    /// Made at the first query.
    context: Option<SessionContext>,
}

/// A statement that has rows, planned.
#[derive(Debug, Clone)]
pub(super) enum Planned {
    Query(LogicalPlan),
    Explain(LogicalPlan),
    Show(String),
}

impl Planned {
    /// The columns of its rows.
    pub(super) fn schema(&self) -> Arc<Schema> {
        match self {
            Self::Query(plan) => plan.schema().inner().clone(),
            Self::Explain(_) => results::text_schema(&["QUERY PLAN"]),
            Self::Show(name) if name == "all" => results::text_schema(&["name", "setting"]),
            Self::Show(name) => results::text_schema(&[name]),
        }
    }

    /// What is said at its end.
    pub(super) fn tag(&self, rows: usize) -> String {
        match self {
            Self::Query(_) => format!("SELECT {rows}"),
            Self::Explain(_) => "EXPLAIN".to_owned(),
            Self::Show(_) => "SHOW".to_owned(),
        }
    }

    /// With values for `$1` and so on.
    pub(super) fn with(self, values: ParamValues) -> Result<Self, SqlError> {
        Ok(match self {
            Self::Query(plan) => Self::Query(plan.with_param_values(values)?),
            Self::Explain(plan) => Self::Explain(plan.with_param_values(values)?),
            Self::Show(name) => Self::Show(name),
        })
    }

    pub(super) fn plan(&self) -> Option<&LogicalPlan> {
        match self {
            Self::Query(plan) | Self::Explain(plan) => Some(plan),
            Self::Show(_) => None,
        }
    }
}

impl Session {
    pub(super) fn new(sql: Arc<Sql>, user: String, caller: &Caller) -> Self {
        let scope = if caller.tenant == ALL { Scope::All } else { Scope::Tenant(caller.tenant.as_str().into()) };
        Self { sql, user, scope, settings: Arc::default(), context: None }
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Sets one. The tenant can be narrowed, and never be widened again.
    pub(super) fn set(&mut self, name: &str, value: Option<&str>) -> Result<(), SqlError> {
        if !name.eq_ignore_ascii_case(TENANT) {
            return self.settings.set(name, value);
        }
        let named = value.unwrap_or_default();
        match (&self.scope, named) {
            (Scope::All, "" | ALL) => Ok(()),
            (Scope::All, named) => {
                self.settings.set(TENANT, Some(named))?;
                self.scope = Scope::Tenant(named.into());
                self.context = None;
                Ok(())
            }
            (Scope::Tenant(tenant), named) if **tenant == *named => self.settings.set(TENANT, Some(named)),
            (Scope::Tenant(tenant), _) => Err(SqlError::NotAllowed(format!(
                "this session sees tenant \"{tenant}\" only, and that cannot be widened"
            ))),
        }
    }

    async fn context(&mut self) -> Result<&SessionContext, SqlError> {
        if self.context.is_none() {
            let context = self.sql.tables.session(&self.scope).map_err(|error| {
                tracing::error!(%error, "a session of SQL cannot be made");
                SqlError::Internal
            })?;
            catalog::install(&context, &self.sql.catalog).await?;
            functions::install(&context, &self.user, self.settings.clone());
            self.context = Some(context);
        }
        self.context.as_ref().ok_or(SqlError::Internal)
    }

    /// Plans what has rows. `text`: what it was parsed from, if that held nothing else.
    pub(super) async fn plan(&mut self, statement: Admitted, text: Option<&str>) -> Result<Planned, SqlError> {
        match statement {
            Admitted::Query(query) => Ok(Planned::Query(self.logical(*query, text).await?)),
            Admitted::Explain(query) => Ok(Planned::Explain(self.logical(*query, None).await?)),
            Admitted::Show(name) if name == "all" => Ok(Planned::Show(name)),
            Admitted::Show(name) => match self.settings.get(&name) {
                Some(_) => Ok(Planned::Show(name)),
                None => Err(SqlError::UnknownSetting(name)),
            },
            _ => Err(SqlError::Internal),
        }
    }

    async fn logical(&mut self, query: Statement, text: Option<&str>) -> Result<LogicalPlan, SqlError> {
        let query = self.sql.rewriter.rewrite(query, text)?;
        let state = self.context().await?.state();
        let plan = state.statement_to_plan(Parsed::Statement(Box::new(query))).await?;
        // what is admitted is said elsewhere; this is a second wall
        SQLOptions::new()
            .with_allow_ddl(false)
            .with_allow_dml(false)
            .with_allow_statements(false)
            .verify_plan(&plan)?;
        Ok(plan)
    }

    /// Runs what was planned.
    pub(super) async fn run(&mut self, planned: Planned, format: &Format) -> Result<Rows, SqlError> {
        let most = Most { rows: self.sql.limits.rows, bytes: self.sql.limits.bytes };
        match planned {
            Planned::Query(plan) => {
                let frame = self.context().await?.execute_logical_plan(plan).await?;
                Rows::new(frame.execute_stream().await?, format, most)
            }
            Planned::Explain(plan) => {
                // the logical plan only: the physical one names files
                let plan = self.context().await?.state().optimize(&plan)?;
                let lines: Vec<_> =
                    plan.display_indent().to_string().lines().map(|line| vec![line.to_owned()]).collect();
                Rows::of_text(&["QUERY PLAN"], &lines, format, most)
            }
            Planned::Show(name) if name == "all" => {
                let rows: Vec<_> = self.settings.all().into_iter().map(|(name, value)| vec![name, value]).collect();
                Rows::of_text(&["name", "setting"], &rows, format, most)
            }
            Planned::Show(name) => {
                let value = self.settings.get(&name).ok_or_else(|| SqlError::UnknownSetting(name.clone()))?;
                Rows::of_text(&[&name], &[vec![value]], format, most)
            }
        }
    }
}
