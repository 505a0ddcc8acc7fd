//! Whom policies match: selectors, the scopes of metrics, and who a run or a group is (P1).

use serde::{Deserialize, Serialize};

use super::names::names;

names! {
    /// What the groups of a metric are.
    Scope {
        Run = "RUN", Agent = "AGENT", ApiKey = "API_KEY", HumanActor = "HUMAN_ACTOR", Task = "TASK", Project = "PROJECT",
        Provider = "PROVIDER", Tenant = "TENANT",
    }
}

impl Scope {
    /// The key field of telemetry and of window results.
    pub fn key_field(self) -> &'static str {
        match self {
            Self::Run => "run_id",
            Self::Agent => "agent_id",
            Self::ApiKey => "api_key_id",
            Self::HumanActor => "human_actor_id",
            Self::Task => "task_id",
            Self::Project => "project_id",
            Self::Provider => "provider",
            Self::Tenant => "tenant_id",
        }
    }
}

names! {
    /// At which level a policy selects.
    Level { Global = "GLOBAL", Tenant = "TENANT", Project = "PROJECT", Agent = "AGENT", Provider = "PROVIDER" }
}
names! {
    /// Whom a policy selects there.
    Subject { AllRuns = "ALL_RUNS", Agent = "AGENT", ApiKey = "API_KEY", HumanActor = "HUMAN_ACTOR" }
}

/// What a policy matches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selector {
    /// At which level.
    pub level: Level,
    /// Ids at that level; empty: all.
    pub level_ids: Vec<String>,
    /// Whom.
    pub who: Subject,
    /// Ids of those; empty: all.
    pub ids: Vec<String>,
}

impl Default for Selector {
    fn default() -> Self {
        Self { level: Level::Tenant, level_ids: Vec::new(), who: Subject::AllRuns, ids: Vec::new() }
    }
}

/// Who a run, or a group of a wider metric, is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Who<'a> {
    /// Tenant.
    pub tenant: &'a str,
    /// `project_id`
    pub project: Option<&'a str>,
    /// `agent_id`
    pub agent: Option<&'a str>,
    /// `api_key_id`
    pub api_key: Option<&'a str>,
    /// `human_actor_id`
    pub human: Option<&'a str>,
    /// `provider`
    pub provider: Option<&'a str>,
}

impl<'a> Who<'a> {
    /// A group of a metric of this scope: it has its own key and nothing else.
    pub fn of_group(scope: Scope, tenant: &'a str, id: &'a str) -> Self {
        let mut who = Self { tenant, ..Self::default() };
        match scope {
            Scope::Agent => who.agent = Some(id),
            Scope::ApiKey => who.api_key = Some(id),
            Scope::HumanActor => who.human = Some(id),
            Scope::Project => who.project = Some(id),
            Scope::Provider => who.provider = Some(id),
            Scope::Run | Scope::Task | Scope::Tenant => {}
        }
        who
    }
}

impl Selector {
    /// Whether it selects `who`, whose policy belongs to `tenant` (`*`: any).
    pub fn matches(&self, tenant: &str, who: &Who<'_>) -> bool {
        let among = |ids: &[String], id: Option<&str>| match id {
            Some(id) => ids.is_empty() || ids.iter().any(|i| i == id),
            None => false,
        };
        let level = match self.level {
            Level::Global => true,
            Level::Tenant => among(&self.level_ids, Some(who.tenant)),
            Level::Project => among(&self.level_ids, who.project),
            Level::Agent => among(&self.level_ids, who.agent),
            Level::Provider => among(&self.level_ids, who.provider),
        };
        let subject = match self.who {
            Subject::AllRuns => true,
            Subject::Agent => among(&self.ids, who.agent),
            Subject::ApiKey => among(&self.ids, who.api_key),
            Subject::HumanActor => among(&self.ids, who.human),
        };
        (tenant == "*" || tenant == who.tenant) && level && subject
    }

    /// The first key it needs that groups of `scope` do not have.
    pub fn lacks(&self, scope: Scope) -> Option<&'static str> {
        if scope == Scope::Run {
            return None;
        }
        let level = match self.level {
            Level::Global | Level::Tenant => None,
            Level::Project => Some(Scope::Project),
            Level::Agent => Some(Scope::Agent),
            Level::Provider => Some(Scope::Provider),
        };
        let subject = match self.who {
            Subject::AllRuns => None,
            Subject::Agent => Some(Scope::Agent),
            Subject::ApiKey => Some(Scope::ApiKey),
            Subject::HumanActor => Some(Scope::HumanActor),
        };
        level.into_iter().chain(subject).find(|needed| *needed != scope).map(Scope::key_field)
    }
}
