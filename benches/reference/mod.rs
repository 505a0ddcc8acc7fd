//! The reference job of the bars: 350-byte JSON events of 100 tenants and 10,000 live runs, 100 policies, the default metrics.

#![allow(dead_code, reason = "each bench uses its part")]

/// Tenants.
pub const TENANTS: usize = 100;
/// Live runs.
pub const RUNS: usize = 10_000;
/// Policies.
pub const POLICIES: usize = 100;
/// Tokens of a run above which it is stopped.
pub const MOST_TOKENS: u64 = 5_000_000;

/// Tenant of the n-th event.
pub fn tenant(n: usize) -> String {
    format!("tenant-{:03}", n * 7_919 % RUNS % TENANTS)
}

/// The n-th event, at `micros`: a step of one of the live runs, far below every limit.
pub fn event(n: usize, micros: i64) -> Vec<u8> {
    step(n, micros, &format!("run-{:05}", n * 7_919 % RUNS), n as u64 % 4_000)
}

/// The n-th event as the only step of a run of its own, `name`, that is past its limit at once.
pub fn hot(n: usize, micros: i64, name: &str) -> Vec<u8> {
    step(n, micros, name, MOST_TOKENS + 1_000_000)
}

/// A step of `run` by the n-th event's tenant, agent, key and person.
pub fn step(n: usize, micros: i64, run: &str, input_tokens: u64) -> Vec<u8> {
    let of = n * 7_919 % RUNS;
    let mut text = format!(
        r#"{{"event_id":"e-{n}-{micros}","event_time":"{}","event_type":"run.step","tenant_id":"{}","run_id":"{run}","agent_id":"agent-{:02}","api_key_id":"key-{:02}","human_actor_id":"user-{:02}","project_id":"project-{}","provider":"azure","model":"chat-large","input_tokens":{input_tokens},"output_tokens":{},"cost_usd":0.0{:04},"latency_ms":{}"#,
        runwarden::telemetry::format_micros(micros),
        tenant(n),
        of % 24,
        of % 8,
        of % 12,
        of % 3,
        n % 700,
        n % 9_999,
        20 + n % 9_000,
    );
    let pad = 350usize.saturating_sub(text.len() + 15);
    text.push_str(&format!(r#","error_code":"{}"}}"#, "x".repeat(pad)));
    text.into_bytes()
}

/// The policies: one that stops a run above [`MOST_TOKENS`], the rest far from what the traffic reaches.
pub fn policies() -> String {
    let metrics = ["run_tokens", "run_cost_usd", "run_steps", "agent_tokens_1m", "tenant_tokens_5m"];
    let one = |n: usize| {
        let (metric, max) = match n {
            0 => ("run_tokens", MOST_TOKENS),
            n => (metrics[n % metrics.len()], 900_000_000 + n as u64),
        };
        format!(
            "id: p{n}\nname: P{n}\nenforcement_mode: BLOCK\nlimits:\n  - {{id: l, limit_type: T, metric: {metric}, max: {max}}}\n"
        )
    };
    (0..POLICIES).map(one).collect::<Vec<_>>().join("---\n")
}
