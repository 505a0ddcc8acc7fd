//! What a set of policies costs: arbitrating the limits of a run, finding what conflicts and depends, and evaluating conditions
//! per event.
//!
//! `cargo bench --bench engines`; the bars are 100,000 runs a second under 1,000 policies of which 50 match, 1 ms at p99 (P13),
//! and the conflicts of 5,000 policies within 100 ms.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use datafusion::arrow::array::{ArrayRef, new_null_array};
use datafusion::arrow::datatypes::DataType;
use datafusion::common::ScalarValue;
use runwarden::policy::{
    BoundTerms, Conditions, Fields, Policy, Scope, Snapshot, Who, conflicts, conflicts_with, dependencies, dependents,
    effective_run, parse,
};
use runwarden::telemetry::schema::SCHEMA;

const POLICIES: usize = 5_000;

fn read(yaml: &str) -> Vec<Policy> {
    parse("bench.yaml", yaml).unwrap_or_else(|faults| {
        eprintln!("{}", faults.first().map(ToString::to_string).unwrap_or_default());
        Vec::new()
    })
}

/// `keys` of each policy by its number, with two limits.
fn set(keys: impl Fn(usize) -> String) -> Vec<Policy> {
    // a file holds at most so many values
    (0..POLICIES)
        .collect::<Vec<_>>()
        .chunks(1_000)
        .flat_map(|numbers| {
            let mut yaml = String::new();
            for n in numbers {
                let (max, cost) = (1_000 + n % 7, 1 + n % 5);
                write!(
                    yaml,
                    "---\nid: p{n:05}\nname: P{n}\n{}\nlimits:\n- {{id: a, limit_type: TOKENS_PER_RUN, metric: run_tokens, max: {max}}}\n\
                     - {{id: b, limit_type: COST_PER_RUN, metric: run_cost_usd, max: {cost}}}\n",
                    keys(*n)
                )
                .unwrap_or_default();
            }
            read(&yaml)
        })
        .collect()
}

fn engines(c: &mut Criterion) {
    let strategies = ["MOST_RESTRICTIVE", "EXPLICIT_PRIORITY", "FAIL_CLOSED"];
    let sets = [
        // 100 tenants of 50 agents, a policy for each agent, one in ten a shadow, nights and days
        (
            "agents of 100 tenants",
            set(|n| {
                let mode = if n % 10 == 0 { "AUDIT" } else { "BLOCK" };
                let time = ["null", "{hours: \"22:00-06:00\", timezone: Europe/Zurich}", "{days: [MON, TUE]}"][n % 3];
                let (tenant, agent) = (n % 100, n / 100);
                format!(
                    "tenant: t{tenant}\nenforcement_mode: {mode}\nactive: {time}\nscope: {{who: AGENT, ids: [a{agent}, b{agent}]}}"
                )
            }),
        ),
        // all meet all, and none contradicts
        ("one scope, alike", set(|_| "enforcement_mode: BLOCK\nconflict_strategy: MOST_RESTRICTIVE".to_owned())),
        // all meet all, and most pairs contradict
        (
            "one scope, at odds",
            set(|n| {
                let (mode, strategy) = (["BLOCK", "WARN", "AUDIT"][n % 3], strategies[n % 3]);
                format!("enforcement_mode: {mode}\nconflict_strategy: {strategy}\nprecedence: {}", n % 11)
            }),
        ),
        // 2,500 agents across 2,500 keys: all meet, none contradicts
        (
            "agents across keys",
            set(|n| {
                let (who, id) = (["AGENT", "API_KEY"][n % 2], n / 2);
                format!("enforcement_mode: BLOCK\nscope: {{who: {who}, ids: [x{id}]}}")
            }),
        ),
    ];
    let mut group = c.benchmark_group(format!("{POLICIES} policies"));
    group.sample_size(20);
    for (name, set) in &sets {
        let found = conflicts(set);
        println!("{name}: {} policies, {} conflicts, complete: {}", set.len(), found.conflicts.len(), found.complete);
        group.bench_function(format!("conflicts, {name}"), |b| b.iter(|| black_box(conflicts(black_box(set)))));
    }
    let [(name, first), ..] = &sets;
    if let Some(candidate) = first.get(POLICIES / 2) {
        group.bench_function(format!("conflicts with a candidate, {name}"), |b| {
            b.iter(|| black_box(conflicts_with(black_box(first), candidate)));
        });
        group.bench_function(format!("what blocks a deletion, {name}"), |b| {
            b.iter(|| black_box(dependents(black_box(first), &candidate.tenant, &candidate.id)));
        });
    }
    group.bench_function(format!("dependencies, {name}"), |b| b.iter(|| black_box(dependencies(black_box(first)))));
    group.finish();
}

fn conditions(c: &mut Criterion) {
    let one = |n: usize, condition: &str| {
        format!("---\nid: p{n}\nname: P\ncondition: {condition}\nactions: [{{type: notify}}]\n")
    };
    let kinds = [
        "{type: field_comparison, field: agent.anomaly_score, operator: '>=', value: 0.8}",
        "{type: composite, operator: AND, conditions: [{type: field_comparison, field: agent.anomaly_score, operator: '>=', value: 0.8}, \
         {type: field_comparison, field: agent.consecutive_anomalous_readings, operator: '>=', value: 3}]}",
        "{type: sql, expression: \"task.running_duration > task.timeout_seconds * 2\"}",
        "{type: sql, expression: \"agent.health_status == 'failed' AND task.status == 'running'\"}",
        "{type: field_comparison, field: run.model, operator: matches, value: '^gpt-4'}",
    ];
    let yaml: String = (0..100).map(|n| one(n, kinds[n % kinds.len()])).collect();
    let policies = read(&yaml);
    let fields = Fields::new(Arc::clone(&SCHEMA), []);
    let (compiled, faults) = Conditions::compile(&policies, &fields);
    println!("{} conditions compiled, {} faults", compiled.compiled().len(), faults.len());
    let mut group = c.benchmark_group("100 conditions");
    for rows in [1_usize, 64, 1_024] {
        let columns: Vec<ArrayRef> = compiled
            .inputs()
            .iter()
            .map(|input| {
                let value = match &input.data_type {
                    DataType::Utf8 => ScalarValue::from("running"),
                    DataType::Int64 => ScalarValue::from(5_i64),
                    DataType::Float64 => ScalarValue::from(0.9),
                    other => return new_null_array(other, rows),
                };
                value.to_array_of_size(rows).unwrap_or_else(|_| new_null_array(&input.data_type, rows))
            })
            .collect();
        let Ok(batch) = compiled.rows(columns, rows) else { continue };
        group.throughput(Throughput::Elements((rows * compiled.compiled().len()) as u64));
        group.bench_function(format!("{rows} rows at once"), |b| {
            b.iter(|| {
                for condition in compiled.compiled() {
                    black_box(Conditions::evaluate(condition, &batch));
                }
            });
        });
    }
    group.finish();
}

/// Runs arbitrated one by one, nothing remembered: 1,000 policies of three limits, of which 50 match each run.
fn arbitration(_: &mut Criterion) {
    const RUNS: usize = 50_000;
    let policy = |n: usize| {
        let limits: String = ["run_tokens", "run_cost_usd", "run_steps"]
            .iter()
            .map(|metric| format!("- {{id: {metric}, limit_type: T, metric: {metric}, max: {}}}\n", 1_000 + n))
            .collect();
        let scope = format!("scope: {{who: AGENT, ids: [a{}]}}", n % 20);
        format!("---\nid: p{n:04}\nname: P{n}\nenforcement_mode: BLOCK\n{scope}\nlimits:\n{limits}")
    };
    let policies = read(&(0..1_000).map(policy).collect::<String>());
    let snapshot = Arc::new(Snapshot::new(policies, BTreeMap::new(), "", ""));
    let terms = BoundTerms {
        run_start: Some(Arc::clone(&snapshot)),
        first_token: Some(Arc::clone(&snapshot)),
        each_step: Arc::clone(&snapshot),
    };
    let scopes = |_: &str| Some(Scope::Run);
    let mut took = Vec::with_capacity(RUNS);
    let begun = Instant::now();
    for n in 0..RUNS {
        let agent = format!("a{}", n % 20);
        let who = Who {
            tenant: "t",
            project: Some("p"),
            agent: Some(&agent),
            api_key: Some("k"),
            human: Some("h"),
            provider: Some("o"),
        };
        let one = Instant::now();
        black_box(effective_run(&terms, &who, &scopes, None));
        took.push(one.elapsed());
    }
    let seconds = begun.elapsed().as_secs_f64();
    took.sort_unstable();
    let p99 = took.get(RUNS * 99 / 100).copied().unwrap_or_default();
    println!(
        "arbitration, 1,000 policies of which 50 match: {:.0} runs/s (bar 100,000), p99 {p99:?} (bar 1 ms)",
        RUNS as f64 / seconds
    );
}

criterion_group!(benches, arbitration, engines, conditions);
criterion_main!(benches);
