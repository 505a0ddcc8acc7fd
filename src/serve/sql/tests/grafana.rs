//! What Grafana's PostgreSQL data source sends.

use super::client::{Answer, Client};
use super::{ALL, served};
use crate::serve::sql::Limits;

const FROM: &str = "2026-08-01T12:00:00Z";
const TO: &str = "2026-08-01T12:05:00.5Z";

async fn asked(sql: &str) -> Answer {
    let served = served(false, Limits::default()).await;
    let answer = Client::of(served.address, ALL).await.simple(sql).await;
    assert_eq!(answer.errors, [], "{sql}");
    assert!(answer.tags[0].starts_with("SELECT"), "{answer:?}");
    answer
}

#[tokio::test]
async fn the_macros_of_time_are_understood() {
    // $__timeFilter
    let filter = format!("SELECT signal_id FROM signals WHERE event_time BETWEEN '{FROM}' AND '{TO}' ORDER BY 1");
    assert_eq!(asked(&filter).await.first(), ["s-1", "s-2", "s-4"]);
    // on a column without a zone
    let naive = format!(
        "SELECT signal_id FROM (SELECT signal_id, event_time::timestamp AS at FROM signals) s WHERE at BETWEEN '{FROM}' AND '{TO}' ORDER BY 1"
    );
    assert_eq!(asked(&naive).await.first(), ["s-1", "s-2", "s-4"]);
    // $__timeFrom, $__timeTo
    let between = format!("SELECT count(*) FROM signals WHERE event_time >= '{FROM}' AND event_time < '{TO}'");
    assert_eq!(asked(&between).await.value(), "3");
    // $__time
    let time = asked("SELECT event_time AS \"time\", value FROM signals ORDER BY 1").await;
    assert_eq!(time.columns, [("time".to_owned(), 1184), ("value".to_owned(), 701)]);
    // $__timeEpoch
    let epoch = asked("SELECT extract(epoch from event_time) as \"time\" FROM signals WHERE signal_id = 's-1'").await;
    assert_eq!((epoch.columns[0].1, epoch.value()), (701, "1785585600.25"));
    // $__timeGroup, $__timeGroupAlias
    let group = format!(
        "SELECT floor(extract(epoch from event_time)/300)*300 AS \"time\", tenant_id AS metric, count(*) AS value FROM signals \
         WHERE event_time BETWEEN '{FROM}' AND '2026-08-01T13:00:00Z' GROUP BY 1, 2 ORDER BY 1, 2"
    );
    let group = asked(&group).await;
    assert_eq!(group.first(), ["1785585600.0", "1785585600.0", "1785585900.0"]);
    assert_eq!(group.columns[0], ("time".to_owned(), 701));
    // $__unixEpochFilter, $__unixEpochGroup
    let unix = "SELECT floor((extract(epoch from event_time))/60)*60 AS \"time\" FROM signals \
                WHERE extract(epoch from event_time) >= 1785585600 AND extract(epoch from event_time) <= 1785585660 GROUP BY 1 ORDER BY 1";
    assert_eq!(asked(unix).await.first(), ["1785585600.0", "1785585660.0"]);
}

#[tokio::test]
async fn its_health_check_and_its_probes_are_answered() {
    let served = served(false, Limits::default()).await;
    let mut client = Client::of(served.address, ALL).await;
    assert_eq!(client.simple("-- ping").await.empty, 1);
    assert_eq!(client.simple("SELECT current_setting('server_version_num')::int/100 as version").await.value(), "1600");
    let timescale = client.simple("SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'").await;
    assert_eq!((timescale.rows.len(), timescale.errors.len()), (0, 0));
}

/// Whether a schema is on the search path, in the words of Grafana.
const ON_PATH: &str = r#"
          quote_ident(table_schema) IN (
          SELECT
            CASE WHEN trim(s[i]) = '"$user"' THEN user ELSE trim(s[i]) END
          FROM
            generate_series(
              array_lower(string_to_array(current_setting('search_path'),','),1),
              array_upper(string_to_array(current_setting('search_path'),','),1)
            ) as i,
            string_to_array(current_setting('search_path'),',') s
          )"#;

#[tokio::test]
async fn its_query_builder_finds_schemas_tables_and_columns() {
    let schemas = "SELECT schema_name AS \"name\" FROM information_schema.schemata WHERE schema_name NOT IN \
                   ('information_schema', 'pg_catalog', 'pg_toast') ORDER BY schema_name";
    assert_eq!(asked(schemas).await.first(), ["public"]);
    let tables = format!(
        "SELECT CASE WHEN {ON_PATH} THEN quote_ident(table_name) ELSE quote_ident(table_schema) || '.' || quote_ident(table_name) \
         END AS \"table\" FROM information_schema.tables WHERE quote_ident(table_schema) NOT IN ('information_schema', 'pg_catalog') \
         ORDER BY CASE WHEN {ON_PATH} THEN 0 ELSE 1 END, 1"
    );
    let tables = asked(&tables).await;
    assert!(tables.first().contains(&"signals") && tables.first().contains(&"runs"), "{tables:?}");
    let of_schema = "SELECT quote_ident(table_name) AS \"table\" FROM information_schema.tables \
                     WHERE quote_ident(table_schema) = 'public' ORDER BY 1";
    assert!(asked(of_schema).await.first().contains(&"policy_level"));
    for name in ["signals", "public.signals"] {
        let columns = format!(
            "SELECT quote_ident(column_name) AS \"column\", data_type AS \"type\" FROM information_schema.columns WHERE \
             CASE WHEN array_length(parse_ident('{name}'),1) = 2 THEN quote_ident(table_schema) = (parse_ident('{name}'))[1] \
             AND quote_ident(table_name) = (parse_ident('{name}'))[2] ELSE quote_ident(table_name) = '{name}' AND {ON_PATH} END"
        );
        let columns = asked(&columns).await;
        let of = |column: &str| {
            let row = columns.rows.iter().find(|row| row[0].as_deref() == Some(column));
            row.and_then(|row| row[1].clone()).unwrap_or_default()
        };
        assert_eq!(
            (of("event_time"), of("value")),
            ("timestamp with time zone".to_owned(), "double precision".to_owned())
        );
        assert_eq!(
            (of("kind"), of("policy_version"), of("is_synthetic")),
            ("text".into(), "bigint".into(), "boolean".into())
        );
    }
}
