//! The catalog that Postgres clients read: `pg_catalog` and `information_schema`.
//!
//! The tables of `pg_catalog` that never change are read once for all sessions. `information_schema` is DataFusion's, with the types of
//! columns in the words of Postgres, for query builders choose columns by them.

use std::sync::Arc;

use datafusion::catalog::information_schema::{
    INFORMATION_SCHEMA, INFORMATION_SCHEMA_TABLES, InformationSchemaProvider,
};
use datafusion::catalog::{MemorySchemaProvider, SchemaProvider as _};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::logical_expr::when;
use datafusion::prelude::{Expr, SessionContext, col, lit};
use datafusion_pg_catalog::pg_catalog::context::EmptyContextProvider;
use datafusion_pg_catalog::pg_catalog::generate_series_arg_coercion::CoerceIntArgsToBigInt;
use datafusion_pg_catalog::pg_catalog::oid_type_planner::PgOidTypePlanner;
use datafusion_pg_catalog::pg_catalog::{
    self as pg, PgCatalogSchemaProvider, PgCatalogStaticTables, array_bounds_udf, format_type, has_privilege_udf,
    pg_get_expr_udf, quote_ident_udf,
};

/// The catalog of a session that holds our tables.
const CATALOG: &str = "datafusion";
/// What a type of Arrow is called by Postgres. The first that a name begins with counts.
const TYPES: [(&str, &str); 13] = [
    ("Utf8", "text"),
    ("LargeUtf8", "text"),
    ("Boolean", "boolean"),
    ("Int64", "bigint"),
    ("UInt64", "numeric"),
    ("Int32", "integer"),
    ("Int16", "smallint"),
    ("Float64", "double precision"),
    ("Float32", "real"),
    ("Timestamp(s)", "timestamp without time zone"),
    ("Timestamp(ms)", "timestamp without time zone"),
    ("Timestamp(µs)", "timestamp without time zone"),
    ("Timestamp(ns)", "timestamp without time zone"),
];

/// Adds the catalog to a session.
///
/// # Errors
/// The session has not the catalog that it is to be added to.
pub(super) async fn install(context: &SessionContext, tables: &Arc<PgCatalogStaticTables>) -> Result<()> {
    let catalog = context.catalog(CATALOG).ok_or_else(|| DataFusionError::Internal(format!("no catalog {CATALOG}")))?;
    let list = context.state_ref().read().catalog_list().clone();
    let postgres = PgCatalogSchemaProvider::try_new(list.clone(), tables.clone(), EmptyContextProvider)?;
    catalog.register_schema("pg_catalog", Arc::new(postgres))?;
    functions(context, tables);
    {
        let state = context.state_ref();
        let mut state = state.write();
        let mut changed =
            SessionStateBuilder::new_from_existing(state.clone()).with_type_planner(Arc::new(PgOidTypePlanner)).build();
        // ours is registered below, as a schema like others
        changed.config_mut().options_mut().catalog.information_schema = false;
        *state = changed;
    }
    CoerceIntArgsToBigInt::widen(context);

    let information = MemorySchemaProvider::new();
    let source = InformationSchemaProvider::new(list);
    for name in INFORMATION_SCHEMA_TABLES {
        let Some(table) = source.table(name).await? else { continue };
        let table = if *name == "columns" { named_types(context, table)? } else { table };
        information.register_table((*name).to_owned(), table)?;
    }
    catalog.register_schema(INFORMATION_SCHEMA, Arc::new(information))?;
    Ok(())
}

fn named_types(
    context: &SessionContext,
    columns: Arc<dyn datafusion::catalog::TableProvider>,
) -> Result<Arc<dyn datafusion::catalog::TableProvider>> {
    let frame = context.read_table(columns)?;
    let named = |name: &str| -> Result<Expr> {
        let begins = |prefix: &str| datafusion::functions::string::expr_fn::starts_with(col("data_type"), lit(prefix));
        let zoned =
            begins("Timestamp(").and(datafusion::functions::string::expr_fn::contains(col("data_type"), lit("\"")));
        let mut cases = when(zoned, lit("timestamp with time zone"));
        for (prefix, postgres) in TYPES {
            cases = cases.when(begins(prefix), lit(postgres));
        }
        Ok(cases.otherwise(col("data_type"))?.alias(name))
    };
    let all: Vec<Expr> = frame
        .schema()
        .fields()
        .iter()
        .map(|field| if field.name() == "data_type" { named("data_type") } else { Ok(col(field.name())) })
        .collect::<Result<_>>()?;
    Ok(frame.select(all)?.into_view())
}

fn functions(context: &SessionContext, tables: &PgCatalogStaticTables) {
    context.register_udf(pg::create_current_database_udf(super::DATABASE));
    context.register_udf(pg::create_current_schema_udf());
    context.register_udf(pg::create_current_schemas_udf());
    for name in ["has_table_privilege", "has_schema_privilege", "has_database_privilege", "has_any_column_privilege"] {
        context.register_udf(has_privilege_udf::create_has_privilege_udf(name));
    }
    context.register_udf(pg::create_pg_table_is_visible());
    context.register_udf(format_type::create_format_type_udf());
    context.register_udtf("pg_get_keywords", tables.pg_get_keywords.clone());
    context.register_udf(pg_get_expr_udf::create_pg_get_expr_udf());
    context.register_udf(pg::create_pg_get_partkeydef_udf());
    context.register_udf(pg::create_pg_relation_is_publishable_udf());
    context.register_udf(pg::create_pg_get_statisticsobjdef_columns_udf());
    context.register_udf(pg::create_pg_encoding_to_char_udf());
    context.register_udf(pg::create_pg_backend_pid_udf());
    context.register_udf(pg::create_pg_relation_size_udf());
    context.register_udf(pg::create_pg_total_relation_size_udf());
    context.register_udf(pg::create_pg_stat_get_numscans());
    context.register_udf(pg::create_pg_get_constraintdef());
    context.register_udf(pg::create_pg_get_partition_ancestors_udf());
    context.register_udf(quote_ident_udf::create_quote_ident_udf());
    context.register_udf(quote_ident_udf::create_parse_ident_udf());
    context.register_udf(array_bounds_udf::create_array_upper_udf());
    context.register_udf(array_bounds_udf::create_array_lower_udf());
}
