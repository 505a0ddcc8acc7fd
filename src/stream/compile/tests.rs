use super::*;
use crate::stream::Window;
use crate::telemetry::schema::SCHEMA;

#[expect(clippy::result_large_err, reason = "a test")]
fn compile(sql: &str) -> Result<Query, CompileError> {
    Compiler::new(Arc::clone(&SCHEMA), &Settings::default()).compile("q", sql)
}

const TUMBLE: &str = "tumble(telemetry, event_time, INTERVAL '1 minute')";

#[test]
fn what_has_no_meaning_over_windows_is_refused_with_its_own_message() {
    let by = "GROUP BY tenant_id, window_start, window_end";
    let select = "SELECT tenant_id, window_start, window_end, count(*) AS value FROM";
    let cases = [
        ("SELECT tenant_id, count(*) AS value FROM telemetry GROUP BY tenant_id".to_owned(), "no windowed aggregation"),
        (format!("SELECT tenant_id, window_start FROM {TUMBLE}"), "no windowed aggregation"),
        (
            format!("{select} {TUMBLE} GROUP BY window_start, window_end, tenant_id ORDER BY 1"),
            "ORDER BY has no meaning",
        ),
        (format!("{select} {TUMBLE} {by} LIMIT 3"), "LIMIT has no meaning"),
        (
            format!("SELECT tenant_id, count(*) AS value FROM {TUMBLE} GROUP BY tenant_id"),
            "window_start and window_end are missing",
        ),
        (format!("SELECT window_start, count(*) AS value FROM {TUMBLE} GROUP BY window_start"), "tenant_id is missing"),
        (
            format!("{select} {TUMBLE} WHERE window_end > TIMESTAMP '2026-01-01' {by}"),
            "WHERE on window_start or window_end",
        ),
        (
            format!(
                "SELECT tenant_id, window_start, max(window_end) AS value FROM {TUMBLE} GROUP BY tenant_id, window_start"
            ),
            "aggregates a window column",
        ),
        (format!("SELECT DISTINCT tenant_id, window_start FROM {TUMBLE} {by}"), "DISTINCT"),
        (format!("SELECT tenant_id, window_start, sum(count(*)) OVER () AS value FROM {TUMBLE} {by}"), "OVER (…)"),
        (
            format!(
                "SELECT tenant_id, window_start, count(*) AS value FROM {TUMBLE} GROUP BY ROLLUP (tenant_id, window_start)"
            ),
            "GROUPING SETS",
        ),
        (format!("{select} {TUMBLE} WHERE event_time < now() {by}"), "now() gives another result"),
        (format!("{select} tumble(telemetry, event_time, INTERVAL '1 month') {by}"), "no fixed length"),
        (format!("{select} tumble(telemetry, event_time, INTERVAL '0 seconds') {by}"), "longer than nothing"),
        (format!("{select} tumble(telemetry, event_time) {by}"), "was given 2 arguments"),
        (format!("{select} hop(telemetry, event_time, INTERVAL '7 seconds', INTERVAL '1 day') {by}"), "at most 10000"),
        (
            format!("{select} tumble(telemetry, to_timestamp_micros(latency_ms), INTERVAL '1 minute') {by}"),
            "windows are over event_time",
        ),
        (format!("{select} session(telemetry, event_time, INTERVAL '1 minute', 3) {by}"), "not a boolean"),
        (format!("{select} {TUMBLE} AS a JOIN telemetry b ON a.run_id = b.run_id {by}"), "joins are not supported"),
        (format!("{select} {TUMBLE} WHERE run_id IN (SELECT run_id FROM telemetry) {by}"), "subqueries"),
        (
            format!(
                "SELECT tenant_id, window_start, window_end, count(*) AS value FROM tumble((SELECT tenant_id, event_time, count(*) c FROM telemetry GROUP BY tenant_id, event_time), event_time, INTERVAL '1 minute') {by}"
            ),
            "aggregation below",
        ),
        ("DROP TABLE telemetry".to_owned(), "only SELECT"),
    ];
    for (sql, message) in cases {
        let error = compile(&sql).expect_err(&sql);
        assert!(error.message.contains(message), "{sql}\n{error:?}");
        assert!(error.help.is_some(), "{sql}\n{error:?}");
    }
}

#[test]
fn a_wrong_column_is_placed_in_the_text() {
    let error = compile(&format!(
        "SELECT tenant_id, window_start,\n sum(tokns) AS value FROM {TUMBLE}\n GROUP BY tenant_id, window_start"
    ))
    .unwrap_err();
    assert_eq!(error.line, Some(2), "{error:?}");
}

#[test]
fn the_group_by_form_means_the_table_function_form() {
    let long = compile(
        "SELECT tenant_id, run_id, window_start, window_end, sum(total_tokens) AS value FROM hop(telemetry, event_time, \
         INTERVAL '10 seconds', INTERVAL '5 minutes') GROUP BY tenant_id, run_id, window_start, window_end",
    )
    .unwrap();
    let short = compile(
        "SELECT tenant_id, run_id, window_start, window_end, sum(total_tokens) AS value FROM telemetry \
         GROUP BY tenant_id, run_id, hop(event_time, INTERVAL '10 seconds', INTERVAL '5 minutes')",
    )
    .unwrap();
    assert_eq!(long.fingerprint(), short.fingerprint());
    assert_eq!(*short.window(), Window::Hop { slide: 10_000_000, size: 300_000_000 });
    assert_eq!(short.keys(), ["tenant_id", "run_id"]);
}

#[test]
fn having_on_the_window_stays_above_the_aggregate_and_a_lone_distinct_stays_one_aggregate() {
    let query = compile(&format!(
        "SELECT tenant_id, window_start, window_end, count(distinct run_id) AS value FROM {TUMBLE} \
         GROUP BY tenant_id, window_start, window_end HAVING window_end > TIMESTAMP '2026-01-01'"
    ))
    .unwrap();
    assert_eq!((query.having.len(), query.aggregates.len()), (1, 1));
    assert!(query.below.is_empty() && query.between.is_empty());
    assert!(query.aggregates[0].call.is_distinct());
}

#[test]
fn under_a_session_only_predicates_over_keys_sink() {
    let query = compile(
        "SELECT tenant_id, run_id, window_start, window_end, count(*) AS value FROM session(telemetry, event_time, INTERVAL '1 hour') \
         WHERE run_id IS NOT NULL AND event_type = 'run.step' GROUP BY tenant_id, run_id, window_start, window_end",
    )
    .unwrap();
    assert_eq!((query.below.len(), query.between.len()), (1, 1));
    assert!(query.between[0].text.contains("event_type"));
}

#[test]
fn values_that_may_fall_are_not_early() {
    let why = |value: &str, having: &str| {
        let sql = format!(
            "SELECT tenant_id, window_start, window_end, {value} AS value FROM {TUMBLE} GROUP BY tenant_id, window_start, window_end {having}"
        );
        compile(&sql).unwrap().why_not_early().map(str::to_owned)
    };
    for value in [
        "count(*)",
        "count(distinct run_id)",
        "max(risk_score)",
        "sum(cost_usd)",
        "sum(total_tokens) + count(*) * 2",
        "coalesce(sum(total_tokens), 0)",
        "sum(CASE WHEN event_type = 'run.step' THEN total_tokens ELSE 0 END)",
        "CAST(sum(total_tokens) AS DOUBLE) / 1000",
        "CASE WHEN count(*) > 3 THEN sum(total_tokens) ELSE 0 END",
    ] {
        assert_eq!(why(value, ""), None, "{value}");
    }
    for value in [
        "min(latency_ms)",
        "avg(latency_ms)",
        "sum(latency_ms - 5)",
        "-count(*)",
        "count(*) - sum(total_tokens)",
        "quantile(latency_ms, 0.95)",
        "coalesce(max(risk_score), 1)",
        "sum(latency_ms) / count(*)",
        "CASE WHEN count(*) < 3 THEN sum(total_tokens) ELSE 0 END",
    ] {
        assert!(why(value, "").is_some(), "{value}");
    }
    assert_eq!(why("count(*)", "HAVING count(*) > 2 AND sum(total_tokens) IS NOT NULL"), None);
    assert!(why("count(*)", "HAVING avg(latency_ms) > 2").is_some());
    assert!(why("count(*)", "HAVING count(*) < 9").is_some());
}

#[test]
fn another_alias_or_having_keeps_the_fingerprint_and_another_filter_does_not() {
    let print = |rest: &str| {
        compile(&format!(
            "SELECT tenant_id, window_start, window_end, {rest} GROUP BY tenant_id, window_start, window_end"
        ))
        .unwrap()
        .fingerprint()
    };
    let base = print(&format!("sum(total_tokens) AS value FROM {TUMBLE}"));
    assert_eq!(base, print(&format!("sum(total_tokens) AS tokens FROM {TUMBLE}")));
    assert_ne!(base, print(&format!("sum(total_tokens) AS value FROM {TUMBLE} WHERE event_type = 'run.step'")));
    assert_ne!(base, print(&format!("max(total_tokens) AS value FROM {TUMBLE}")));
}
