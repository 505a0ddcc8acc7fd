//! From the SQL of Postgres to that of DataFusion.
//!
//! Queries over the catalog, as psql and drivers send them, are adapted with all that is known of them; a part that cannot be run may
//! become NULL then. Queries over our tables are never changed in what they say: what cannot be run is an error.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use datafusion::sql::sqlparser::ast::{
    Expr, ObjectName, Query, Statement, TableFactor, Value, Visit as _, VisitMut, Visitor, VisitorMut,
};
use datafusion_pg_catalog::pg_catalog::PG_CATALOG_TABLES;
use datafusion_pg_catalog::sql::PostgresCompatibilityParser;
use datafusion_pg_catalog::sql::rules::{
    AliasDuplicatedProjectionRewrite, CurrentUserVariableToSessionUserFunctionCall, FixArrayLiteral,
    FixVersionColumnName, PrependUnqualifiedPgTableName, ResolveUnqualifiedIdentifier, RewriteArrayAnyAllOperation,
    RewritePgCatalogOperator, RewriteRegCastToSubquery, SqlStatementRewriteRule, StripCallableQualifier, StripCollate,
};

use super::errors::SqlError;

/// The rules, made once.
#[derive(Debug)]
pub(super) struct Rewriter {
    catalog: PostgresCompatibilityParser,
    rules: Vec<Arc<dyn SqlStatementRewriteRule>>,
}

impl Rewriter {
    pub(super) fn new() -> Self {
        let rules: Vec<Arc<dyn SqlStatementRewriteRule>> = vec![
            Arc::new(AliasDuplicatedProjectionRewrite),
            Arc::new(ResolveUnqualifiedIdentifier),
            Arc::new(RewriteArrayAnyAllOperation),
            Arc::new(PrependUnqualifiedPgTableName),
            Arc::new(StripCallableQualifier),
            Arc::new(FixArrayLiteral),
            Arc::new(CurrentUserVariableToSessionUserFunctionCall),
            Arc::new(StripCollate),
            Arc::new(RewritePgCatalogOperator),
            Arc::new(RewriteRegCastToSubquery::new()),
            Arc::new(FixVersionColumnName),
        ];
        Self { catalog: PostgresCompatibilityParser::new(), rules }
    }

    /// A query as DataFusion plans it. `text`: what it was parsed from, if that held nothing else.
    pub(super) fn rewrite(&self, mut query: Statement, text: Option<&str>) -> Result<Statement, SqlError> {
        if is_of_catalog(&query) {
            let text = text.map_or_else(|| query.to_string(), str::to_owned);
            let mut all = self.catalog.parse(&text)?;
            return match (all.pop(), all.is_empty()) {
                (Some(Statement::Explain { statement, .. }), true) => Ok(*statement),
                (Some(statement), true) => Ok(statement),
                _ => Err(SqlError::Syntax("one statement was expected".to_owned())),
            };
        }
        if VisitMut::visit(&mut query, &mut SearchPath).is_break() {
            return Err(SqlError::Internal);
        }
        Ok(self.rules.iter().fold(query, |query, rule| rule.rewrite(query)))
    }
}

/// The parameters that are lists, as in `x = ANY($1)`: `$1` …
pub(super) fn lists(query: &Statement) -> BTreeSet<String> {
    let mut lists = Lists::default();
    // it never breaks off
    match query.visit(&mut lists) {
        ControlFlow::Continue(()) | ControlFlow::Break(()) => lists.0,
    }
}

#[derive(Default)]
struct Lists(BTreeSet<String>);

impl Visitor for Lists {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        if let Expr::AnyOp { right, .. } | Expr::AllOp { right, .. } = expr {
            let inner = if let Expr::Nested(inner) = &**right { inner } else { right };
            if let Expr::Value(value) = &**inner
                && let Value::Placeholder(name) = &value.value
            {
                self.0.insert(name.clone());
            }
        }
        ControlFlow::Continue(())
    }
}

/// Whether a query reads from `pg_catalog`, and from nothing that is ours.
fn is_of_catalog(query: &Statement) -> bool {
    let mut names = Names::default();
    if query.visit(&mut names).is_break() {
        return false;
    }
    let of = |name: &&String| name.starts_with("pg_catalog.") || PG_CATALOG_TABLES.contains(&name.as_str());
    let others = names.relations.iter().filter(|name| !of(name) && !name.starts_with("information_schema."));
    let ours = others.filter(|name| !names.own.contains(*name) && !names.functions.contains(*name)).count();
    ours == 0 && names.relations.iter().any(|name| of(&name))
}

#[derive(Default)]
struct Names {
    relations: BTreeSet<String>,
    /// Of WITH.
    own: BTreeSet<String>,
    functions: BTreeSet<String>,
}

fn lower(name: &ObjectName) -> String {
    name.to_string().to_lowercase()
}

impl Visitor for Names {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        let with = query.with.iter().flat_map(|with| &with.cte_tables);
        self.own.extend(with.map(|table| table.alias.name.value.to_lowercase()));
        ControlFlow::Continue(())
    }

    fn pre_visit_relation(&mut self, relation: &ObjectName) -> ControlFlow<()> {
        self.relations.insert(lower(relation));
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<()> {
        if let TableFactor::Table { name, args: Some(_), .. } | TableFactor::Function { name, .. } = factor {
            self.functions.insert(lower(name));
        }
        ControlFlow::Continue(())
    }
}

/// Grafana asks whether a schema is on the search path by a subquery that takes the setting apart. There is one schema on it.
struct SearchPath;

impl VisitorMut for SearchPath {
    type Break = ();

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        if let Expr::InSubquery { expr: inner, subquery, negated } = expr
            && subquery.to_string().contains("current_setting('search_path')")
        {
            let list = vec![Expr::Value(Value::SingleQuotedString("public".to_owned()).into())];
            *expr = Expr::InList { expr: inner.clone(), list, negated: *negated };
        }
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::sql::admit::{self, Admitted};

    fn rewritten(text: &str) -> String {
        match admit::read(text).unwrap().remove(0) {
            Admitted::Query(query) => Rewriter::new().rewrite(*query, Some(text)).unwrap().to_string(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_query_over_our_tables_keeps_its_subqueries_and_one_over_the_catalog_may_lose_them() {
        let text = "SELECT kind, (SELECT max(x.value) FROM runs x WHERE x.run_id = s.run_id AND x.value > s.value) FROM signals s";
        assert!(rewritten(text).contains("SELECT max(x.value)"), "{}", rewritten(text));
        let mixed = "SELECT (SELECT count(*) FROM pg_class c WHERE c.relname = s.kind) FROM signals s";
        assert!(rewritten(mixed).contains("SELECT count(*) FROM pg_catalog.pg_class"), "{}", rewritten(mixed));
        let catalog =
            "SELECT relname, (SELECT d.description FROM pg_description d WHERE d.objoid = c.oid) FROM pg_class c";
        assert!(rewritten(catalog).contains("NULL"), "{}", rewritten(catalog));
    }

    #[test]
    fn what_postgres_writes_otherwise_is_written_as_here() {
        assert!(rewritten("SELECT * FROM runs WHERE run_id = ANY($1)").contains("array_contains($1, run_id)"));
        assert!(rewritten("SELECT pg_catalog.version()").contains("version()"));
        assert!(rewritten("SELECT current_user").contains("session_user"));
        assert_eq!(rewritten("SELECT a COLLATE \"C\" FROM runs"), "SELECT a FROM runs");
        let path = "SELECT 1 FROM information_schema.tables WHERE table_schema IN (SELECT s FROM \
                    string_to_array(current_setting('search_path'),',') s)";
        assert!(rewritten(path).ends_with("table_schema IN ('public')"), "{}", rewritten(path));
    }
}
