//! Policies for tests, from YAML.

use std::collections::BTreeMap;

use super::{Condition, Policy, Scope, Snapshot, Who, parse};

pub fn policies(yaml: &str) -> Vec<Policy> {
    parse("test.yaml", yaml)
        .unwrap_or_else(|faults| panic!("{}", faults.iter().map(|f| format!("{f}\n")).collect::<String>()))
}

pub fn snapshot(yaml: &str) -> Snapshot {
    Snapshot::new(policies(yaml), BTreeMap::new(), "", "")
}

/// Metrics are named by scope: `agent_tokens` is AGENT, others RUN; `unknown` is none.
pub fn metrics(name: &str) -> Option<Scope> {
    match name {
        "unknown" => None,
        _ if name.starts_with("agent_") => Some(Scope::Agent),
        _ if name.starts_with("tenant_") => Some(Scope::Tenant),
        _ if name.starts_with("api_key_") => Some(Scope::ApiKey),
        _ => Some(Scope::Run),
    }
}

pub fn run() -> Who<'static> {
    Who {
        tenant: "acme",
        project: Some("p1"),
        agent: Some("planner"),
        api_key: Some("k1"),
        human: Some("ann"),
        provider: Some("openai"),
    }
}

/// A condition from its YAML.
pub fn condition(yaml: &str) -> Condition {
    let text = format!("id: a\nname: A\ncondition: {yaml}\nactions: [{{type: notify}}]\n");
    policies(&text).remove(0).condition.unwrap()
}
