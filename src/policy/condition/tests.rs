use std::sync::Arc;

use datafusion::arrow::array::ArrayRef;
use datafusion::arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use datafusion::common::ScalarValue;
use proptest::prelude::*;

use super::*;
use crate::policy::testing::policies;
use crate::policy::{OnFailure, Policy};

fn fields() -> Fields {
    let column = |name: &str, data_type| Field::new(name, data_type, true);
    let schema = Schema::new(vec![
        column("run_id", DataType::Utf8),
        column("agent_id", DataType::Utf8),
        column("task_id", DataType::Utf8),
        column("model", DataType::Utf8),
        column("total_tokens", DataType::Int64),
        column("cost_usd", DataType::Decimal128(18, 9)),
        column("anomaly_score", DataType::Float64),
        column("consecutive_anomalous_readings", DataType::Int64),
        column("capacity", DataType::Int64),
        column("health_status", DataType::Utf8),
        column("task_status", DataType::Utf8),
        column("priority", DataType::Utf8),
        column("running_duration_seconds", DataType::Float64),
        column("timeout_seconds", DataType::Float64),
        column("is_synthetic", DataType::Boolean),
        column("event_time", DataType::Timestamp(TimeUnit::Microsecond, None)),
        column("attributes", DataType::Utf8),
    ]);
    Fields::new(Arc::new(schema), ["run_tokens".to_owned()])
}

fn policy(condition: &str) -> Vec<Policy> {
    policies(&format!("id: a\nname: A\ncondition: {condition}\nactions: [{{type: notify}}]\n"))
}

/// What a row says: `field=value`, numbers and booleans bare, texts in quotes.
fn rows(conditions: &Conditions, rows: &[&[(&str, &str)]]) -> datafusion::arrow::array::RecordBatch {
    let columns: Vec<ArrayRef> = conditions
        .inputs()
        .iter()
        .map(|input| {
            let scalar = |row: &&[(&str, &str)]| {
                let text = row.iter().find(|(name, _)| canonical(name) == input.name).map(|(_, value)| *value);
                let whole = || text.map(|t| t.parse::<i64>().unwrap());
                match &input.data_type {
                    DataType::Utf8 => ScalarValue::Utf8(text.map(str::to_owned)),
                    DataType::Int64 => ScalarValue::Int64(whole()),
                    DataType::Float64 => ScalarValue::Float64(text.map(|t| t.parse().unwrap())),
                    DataType::Boolean => ScalarValue::Boolean(text.map(|t| t == "true")),
                    DataType::Decimal128(..) => {
                        let units = text.map(|t| t.parse::<crate::policy::Amount>().unwrap().0);
                        ScalarValue::Decimal128(units, 18, 9)
                    }
                    DataType::Timestamp(..) => ScalarValue::TimestampMicrosecond(whole(), None),
                    other => panic!("{other}"),
                }
            };
            ScalarValue::iter_to_array(rows.iter().map(scalar)).unwrap()
        })
        .collect();
    conditions.rows(columns, rows.len()).unwrap()
}

fn value(condition: &str, row: &[(&str, &str)]) -> Truth {
    let policies = policy(condition);
    let (conditions, faults) = Conditions::compile(&policies, &fields());
    assert_eq!(faults, [], "{condition}");
    Conditions::evaluate(&conditions.compiled()[0], &rows(&conditions, &[row]))[0]
}

fn faults(condition: &str) -> Vec<String> {
    let policies = policy(condition);
    let (conditions, faults) = Conditions::compile(&policies, &fields());
    assert!(conditions.compiled().is_empty());
    faults.iter().map(ToString::to_string).collect()
}

#[test]
fn every_comparison_means_what_it_says_and_what_is_missing_is_unknown() {
    use Truth::{False, True, Unknown};
    for (field, operator, given, row, expected) in [
        ("run.model", "==", "gpt", Some("gpt"), True),
        ("run.model", "==", "gpt", Some("GPT"), False),
        ("run.model", "==", "gpt", None, Unknown),
        ("run.model", "!=", "gpt", Some("claude"), True),
        ("run.model", "!=", "gpt", None, Unknown),
        ("run.total_tokens", "<", "10", Some("9"), True),
        ("run.total_tokens", "<", "10", Some("10"), False),
        ("run.total_tokens", "<=", "10", Some("10"), True),
        ("run.total_tokens", ">", "9.5", Some("10"), True),
        ("run.total_tokens", "==", "9.5", Some("9"), False),
        ("run.cost_usd", ">=", "0.1", Some("0.1"), True),
        ("run.cost_usd", ">", "0.1", Some("0.100000001"), True),
        ("run.is_synthetic", "==", "true", Some("true"), True),
        ("run.event_time", ">", "2026-01-01T00:00:00Z", Some("1767225600000001"), True),
        ("run.model", "in", "[gpt, claude]", Some("claude"), True),
        ("run.model", "in", "[gpt, claude]", Some("llama"), False),
        ("run.model", "in", "[gpt]", None, Unknown),
        ("run.model", "contains", "pt-4", Some("gpt-4o"), True),
        ("run.model", "contains", "'%'", Some("gpt-4o"), False),
        ("run.model", "contains", "x", None, Unknown),
        ("run.model", "matches", "'^gpt-\\d'", Some("gpt-4o"), True),
        ("run.model", "matches", "'4o$'", Some("gpt-4o"), True),
        ("run.model", "matches", "'^4o'", Some("gpt-4o"), False),
        ("run.model", "matches", "x", None, Unknown),
        ("run.model", "exists", "", Some("gpt"), True),
        ("run.model", "exists", "", None, False),
        ("agent.id", "==", "planner", Some("planner"), True),
        ("task.running_duration", ">", "5", Some("6"), True),
        ("run.utilization.run_tokens", ">=", "0.9", Some("0.95"), True),
        ("run.attributes.tier", "==", "gold", Some("gold"), True),
        ("run.attributes.retries", ">", "3", Some("4"), True),
        ("run.attributes.retries", "exists", "", None, False),
    ] {
        let given = if given.is_empty() { String::new() } else { format!(", value: {given}") };
        let condition = format!("{{type: field_comparison, field: {field}, operator: '{operator}'{given}}}");
        let row: Vec<(&str, &str)> = row.map(|value| (field, value)).into_iter().collect();
        assert_eq!(value(&condition, &row), expected, "{condition} {row:?}");
    }
}

#[test]
fn the_triggers_of_the_guardian_files_are_evaluated_as_written() {
    use Truth::{False, True, Unknown};
    let sql = |text: &str| format!("{{type: sql, expression: \"{text}\"}}");
    let timeout = sql("task.running_duration > task.timeout_seconds * 2");
    let failure = sql("agent.health_status == 'failed' AND task.status == 'running'");
    for (condition, row, expected) in [
        (&timeout, &[("task.running_duration", "121"), ("task.timeout_seconds", "60")][..], True),
        (&timeout, &[("task.running_duration", "120"), ("task.timeout_seconds", "60")], False),
        (&timeout, &[("task.running_duration", "121")], Unknown),
        (&failure, &[("agent.health_status", "failed"), ("task.status", "running")], True),
        (&failure, &[("agent.health_status", "failed")], Unknown),
        (&failure, &[("agent.health_status", "healthy")], False),
    ] {
        assert_eq!(value(condition, row), expected, "{condition} {row:?}");
    }
    let files = ["emergency", "resource_reallocation", "priority_override"].map(|name| {
        let path = format!("{}/config/policies/guardian/{name}.yaml", env!("CARGO_MANIFEST_DIR"));
        policies(&std::fs::read_to_string(path).unwrap())
    });
    let all = files.concat();
    let (conditions, faults) = Conditions::compile(&all, &fields());
    assert_eq!(faults, []);
    assert_eq!(conditions.compiled().len(), 3);
    assert_eq!(conditions.compiled()[0].reads, [Entity::Agent, Entity::Task]);
}

#[test]
fn logic_is_three_valued() {
    use Truth::{False, True, Unknown};
    let (yes, no, unknown) = ("run.total_tokens > 0", "run.total_tokens > 9", "run.cost_usd > 0");
    let row = [("run.total_tokens", "5")];
    let table = [
        ("AND", yes, yes, True),
        ("AND", yes, no, False),
        ("AND", yes, unknown, Unknown),
        ("AND", no, unknown, False),
        ("OR", no, no, False),
        ("OR", yes, unknown, True),
        ("OR", no, unknown, Unknown),
    ];
    for (operator, a, b, expected) in table {
        assert_eq!(value(&format!("{{type: sql, expression: '{a} {operator} {b}'}}"), &row), expected);
        let parts = [a, b].map(|part| {
            let (field, number) = part.split_once(" > ").unwrap();
            format!("{{type: field_comparison, field: {field}, operator: '>', value: {number}}}")
        });
        let all = format!("{{type: composite, operator: {operator}, conditions: [{}]}}", parts.join(", "));
        assert_eq!(value(&all, &row), expected, "{all}");
        let not = format!("{{type: composite, operator: NOT, conditions: [{all}]}}");
        let negated = match expected {
            True => False,
            False => True,
            Unknown => Unknown,
        };
        assert_eq!(value(&not, &row), negated, "{not}");
    }
    assert!(!Unknown.acts(OnFailure::Open) && Unknown.acts(OnFailure::Closed));
    assert!(True.acts(OnFailure::Open) && !False.acts(OnFailure::Closed));
}

#[test]
fn what_cannot_be_a_condition_is_refused_with_place_and_help() {
    let compare = |field: &str, operator: &str, value: &str| {
        format!("{{type: field_comparison, field: {field}, operator: '{operator}', value: {value}}}")
    };
    let sql = |text: &str| format!("{{type: sql, expression: \"{text}\"}}");
    for (condition, expected) in [
        (compare("agent.anomaly", ">", "1"), "there is no field `agent.anomaly` (did you mean `agent.anomaly_score`?)"),
        (compare("run.utilization.run_token", ">", "1"), "did you mean `run.utilization.run_tokens`?"),
        (compare("run.model", "==", "5"), "`run.model` is a text, and 5 is a number: nothing is converted"),
        (compare("run.total_tokens", "==", "'5'"), "is a number, and \"5\" is a text"),
        (compare("run.total_tokens", "in", "[1, a]"), "is a number, and \"a\" is a text"),
        (compare("run.total_tokens", "contains", "a"), "`contains` is for texts"),
        (compare("run.model", "matches", "'(a'"), "is not a regular expression: unclosed group"),
        (compare("run.model", "matches", "'(a{1000}){1000}'"), "is too large once compiled"),
        (compare("run.event_time", ">", "yesterday"), "is not an RFC 3339 time"),
        (
            sql("task.runing_duration > 5"),
            "`task.runing_duration` (column 1 of the expression) (did you mean `task.runn",
        ),
        (sql("duration > 5"), "there is no field `duration` (column 1 of the expression)"),
        (sql("run.model = 5"), "nothing is converted"),
        (sql("run.model + 1 > 5"), "`run.model` is a text, and does not compute"),
        (sql("run.total_tokens"), "the condition is a number, not true or false"),
        (sql("run.total_tokens >"), "the SQL cannot be read"),
        (sql("run.total_tokens > 1; DROP TABLE x"), "expected the end of the expression"),
        (sql("run.total_tokens > (SELECT 1)"), "a query within a condition"),
        (sql("EXISTS (SELECT 1)"), "a query within a condition"),
        (sql("run.event_time > now()"), "now() gives another value each time"),
        (sql("random() > run.total_tokens"), "random() gives another value each time"),
        (sql("1 = 1"), "the condition reads no field"),
        (sql("max(run.total_tokens) > 5"), "is over many rows"),
        (sql("nothing(run.model)"), "nothing"),
        (sql("run.attributes > 'a'"), "is no single value"),
        (sql("run.attributes.x > 1 OR run.attributes.x = 'a'"), "is compared with"),
        (sql("run.model ~ '('"), "condition: "),
    ] {
        let found = faults(&condition);
        assert_eq!(found.len(), 1, "{condition}: {found:#?}");
        assert!(found[0].starts_with("test.yaml:3:") && found[0].contains(expected), "{condition}: {found:#?}");
    }
    let deep = format!("{}run.total_tokens > 1{}", "(".repeat(300), ")".repeat(300));
    assert!(faults(&sql(&deep))[0].contains("cannot be read"));
}

#[test]
fn a_row_that_cannot_be_computed_is_unknown_and_leaves_the_others_alone() {
    let policies = policy("{type: sql, expression: '100 / run.total_tokens > 10'}");
    let (conditions, _) = Conditions::compile(&policies, &fields());
    let batch = rows(
        &conditions,
        &[&[("run.total_tokens", "5")], &[("run.total_tokens", "0")], &[("run.total_tokens", "50")], &[]],
    );
    let values = Conditions::evaluate(&conditions.compiled()[0], &batch);
    assert_eq!(values, [Truth::True, Truth::Unknown, Truth::False, Truth::Unknown]);
}

#[test]
fn a_bad_condition_does_not_hide_the_good_ones_and_what_does_not_count_is_not_compiled() {
    let one = |id: &str, sql: &str, keys: &str| {
        format!(
            "---\nid: {id}\nname: A\ncondition: {{type: sql, expression: '{sql}'}}\nactions: [{{type: notify}}]\n{keys}\n"
        )
    };
    let all = policies(
        &[
            one("a", "run.total_tokens > 1", ""),
            one("b", "run.nothing > 1", ""),
            one("c", "task.priority = ''HIGH''", "on_failure: fail_closed"),
            one("d", "run.nothing > 1", "status: RETIRED"),
        ]
        .concat(),
    );
    let (conditions, faults) = Conditions::compile(&all, &fields());
    assert_eq!(faults.len(), 1);
    assert_eq!((faults[0].line, &*faults[0].path), (10, "condition"));
    let ids: Vec<_> = conditions.compiled().iter().map(|c| (&*c.policy.1, c.on_failure)).collect();
    assert_eq!(ids, [("a", OnFailure::Open), ("c", OnFailure::Closed)]);
    let inputs: Vec<_> = conditions.inputs().iter().map(|i| &*i.name).collect();
    assert_eq!(inputs, ["run.total_tokens", "task.priority"]);
    let (none, _) = Conditions::compile(&[], &fields());
    assert_eq!(none.rows(Vec::new(), 2).unwrap().num_rows(), 2);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_expression_panics(text in "[a-z0-9_.'()<>=+*/ %~-]{0,60}") {
        let text = text.replace('\'', "''");
        let policies = policy(&format!("{{type: sql, expression: 'x{text}'}}"));
        let _compiled = Conditions::compile(&policies, &fields());
    }
}
