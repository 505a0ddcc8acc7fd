//! Random queries: windows × aggregates × keys × WHERE, FILTER, HAVING and expressions, in the forms they can be written in.

use proptest::prelude::*;

pub(super) const WINDOWS: [&str; 6] = [
    "tumble(telemetry, event_time, INTERVAL '10 seconds')",
    "tumble(telemetry, event_time, INTERVAL '7 seconds')",
    "hop(telemetry, event_time, INTERVAL '2 seconds', INTERVAL '10 seconds')",
    "hop(telemetry, event_time, INTERVAL '4 seconds', INTERVAL '10 seconds')",
    "hop(telemetry, event_time, INTERVAL '10 seconds', INTERVAL '4 seconds')",
    "hop(telemetry, event_time, INTERVAL '1 seconds', INTERVAL '90 seconds')",
];
pub(super) const SESSIONS: [&str; 4] = [
    "session(telemetry, event_time, INTERVAL '3 seconds')",
    "session(telemetry, event_time, INTERVAL '3 seconds', kind = 'end')",
    "session(telemetry, event_time, INTERVAL '20 seconds', kind = 'end')",
    "session(telemetry, event_time, INTERVAL '1 seconds', kind IN ('end', 'started'))",
];
pub(super) const VALUES: [&str; 16] = [
    "count(*)",
    "sum(n)",
    "sum(f)",
    "max(n)",
    "min(f)",
    "avg(n)",
    "count(distinct kind)",
    "count(distinct n)",
    "sum(n) FILTER (WHERE kind = 'step')",
    "median(f)",
    "approx_distinct(n)",
    "bool_or(n > 50)",
    "coalesce(sum(n), 0) + count(*) * 2",
    "quantile(f, 0.95)",
    // infinite where n is even
    "max((f + 1) / (n % 2))",
    "sum((f + 1) / (n % 2))",
];
pub(super) const WHERES: [&str; 4] = ["", "WHERE k IS NOT NULL", "WHERE kind = 'step' AND n > 10", "WHERE k <> 'k1'"];
pub(super) const KEYS: [&str; 3] = ["tenant_id", "tenant_id, k", "tenant_id, k, n % 3"];
pub(super) const HAVINGS: [&str; 7] = [
    "",
    "HAVING count(*) > 2",
    "HAVING sum(n) < 100",
    "HAVING window_end > TIMESTAMP '1970-01-01T00:00:20'",
    "HAVING window_start < TIMESTAMP '1970-01-01T00:00:10' OR max(n) > 60",
    "HAVING sum(n) IS NOT NULL AND count(k) >= 1",
    "HAVING max(n) - min(n) BETWEEN 5 AND 90",
];
pub(super) const ARGUMENTS: [&str; 8] = [
    "n",
    "f",
    "n * 2 - 3",
    "coalesce(n, 7)",
    "CASE WHEN kind = 'step' THEN n WHEN n > 50 THEN -1 END",
    "abs(n - 50) % 7",
    "CAST(f AS BIGINT) + 0",
    "f / 4 + n",
];
pub(super) const FILTERS: [&str; 6] = [
    "",
    " FILTER (WHERE kind = 'step')",
    " FILTER (WHERE n IS NULL OR n % 2 = 0)",
    " FILTER (WHERE k IN ('k0', 'k2') AND f < 100)",
    " FILTER (WHERE NOT (kind = 'end'))",
    " FILTER (WHERE length(kind) > 4 OR n BETWEEN 10 AND 20)",
];
pub(super) const FUNCTIONS: [&str; 9] = [
    "count(#)",
    "sum(#)",
    "min(#)",
    "max(#)",
    "avg(#)",
    "count(distinct #)",
    "stddev(#)",
    "median(#)",
    "quantile(CAST(# AS DOUBLE), 0.9)",
];
pub(super) const AROUND: [&str; 6] =
    ["#", "coalesce(#, 0)", "# + count(*)", "CASE WHEN count(*) > 3 THEN # END", "greatest(#, 5)", "round(# / 3)"];

/// An aggregate of some expression under some filter, within some expression.
pub(super) fn value() -> impl Strategy<Value = String> {
    let made = (
        prop::sample::select(&FUNCTIONS[..]),
        prop::sample::select(&ARGUMENTS[..]),
        prop::sample::select(&FILTERS[..]),
        prop::sample::select(&AROUND[..]),
    )
        .prop_map(|(function, argument, filter, around)| {
            around.replace('#', &format!("{}{filter}", function.replace('#', argument)))
        });
    prop_oneof![prop::sample::select(&VALUES[..]).prop_map(str::to_owned), made]
}

pub(super) fn half(n: i64) -> String {
    format!("INTERVAL '{} milliseconds'", n * 500)
}

/// A tumble or hop: one of the known ones, or of any lengths, slides longer than the size and not dividing it among them.
pub(super) fn panes() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::sample::select(&WINDOWS[..]).prop_map(str::to_owned),
        (1i64..30).prop_map(|size| format!("tumble(#, event_time, {})", half(size))),
        (1i64..25, 1i64..50).prop_map(|(slide, size)| format!("hop(#, event_time, {}, {})", half(slide), half(size))),
    ]
}

/// A session or run window.
pub(super) fn sessions() -> impl Strategy<Value = String> {
    let markers = ["", ", kind = 'end'", ", kind IN ('end', 'started')", ", n > 90", ", n IS NULL"];
    prop_oneof![
        prop::sample::select(&SESSIONS[..]).prop_map(str::to_owned),
        (1i64..45, prop::sample::select(markers.to_vec()))
            .prop_map(|(gap, marker)| format!("session(#, event_time, {}{marker})", half(gap))),
    ]
}

pub(super) fn any_window() -> impl Strategy<Value = String> {
    prop_oneof![panes(), sessions()]
}

/// A query over a window (`#` stands for the table) in one of the forms it can be written in.
pub(super) fn sql(window: impl Strategy<Value = String>) -> impl Strategy<Value = String> {
    (
        window,
        prop::collection::vec(value(), 1..4),
        prop::sample::select(&WHERES[..]),
        prop::sample::select(&KEYS[..]),
        prop::sample::select(&HAVINGS[..]),
        0u8..5,
    )
        .prop_map(|(window, values, filter, keys, having, form)| {
            let extra: Vec<String> = values.iter().enumerate().skip(1).map(|(i, v)| format!(", {v} AS x{i}")).collect();
            let select = format!("SELECT {keys}, window_start, window_end, {} AS value{}", values[0], extra.concat());
            let group = format!("GROUP BY {keys}, window_start, window_end {having}");
            let window = window.replace("telemetry,", "#,");
            let plain = window.replace('#', "telemetry");
            match form {
                // below the window, where a session sees only what is left
                0 => {
                    let below = window.replace('#', &format!("(SELECT * FROM telemetry {filter})"));
                    format!("{select} FROM {below} {group}")
                }
                1 => format!("{select} FROM (SELECT * FROM {plain}) {filter} {group}"),
                2 => format!("WITH w AS (SELECT * FROM {plain} {filter}) {select} FROM w {group}"),
                // the sugar: the window in GROUP BY
                3 => {
                    let call = plain.replacen("telemetry, ", "", 1);
                    format!("{select} FROM telemetry {filter} GROUP BY {keys}, {call} {having}")
                }
                _ => format!("{select} FROM {plain} {filter} {group}"),
            }
        })
}

pub(super) const EXACT: [&str; 7] =
    ["count(*)", "sum(n)", "max(n)", "count(distinct n)", "sum(f)", "quantile(f, 0.5)", "coalesce(sum(n), 0) + 1"];

pub(super) fn exact_sql(window: impl Strategy<Value = String>) -> impl Strategy<Value = String> {
    (window, prop::sample::select(&EXACT[..]), prop::sample::select(&WHERES[..]), prop::sample::select(&KEYS[..2]), prop::sample::select(&HAVINGS[..4]))
        .prop_map(|(window, value, filter, keys, having)| {
            let window = window.replace('#', "telemetry");
            format!("SELECT {keys}, window_start, window_end, {value} AS value FROM {window} {filter} GROUP BY {keys}, window_start, window_end {having}")
        })
}
