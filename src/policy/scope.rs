//! Who a policy is for, whose metric it is, and whether the two meet.

use serde::{Deserialize, Serialize};

use super::names::names;

names! {
    /// What one group of a metric stands for; also the `scope.kind` of a signal.
    Scope {
        /// One run.
        Run = "RUN",
        /// One agent of a tenant.
        Agent = "AGENT",
        /// One API key of a tenant.
        ApiKey = "API_KEY",
        /// One person of a tenant.
        HumanActor = "HUMAN_ACTOR",
        /// One task of a tenant.
        Task = "TASK",
        /// One project of a tenant.
        Project = "PROJECT",
        /// One provider as used by a tenant.
        Provider = "PROVIDER",
        /// A whole tenant.
        Tenant = "TENANT",
    }
}

names! {
    /// Where a policy stands: what `level_ids` name.
    Level {
        /// Everything.
        Global = "GLOBAL",
        /// Tenants.
        Tenant = "TENANT",
        /// Projects.
        Project = "PROJECT",
        /// Agents.
        Agent = "AGENT",
        /// Providers.
        Provider = "PROVIDER",
    }
}

names! {
    /// Whose runs a policy is about: what `ids` name.
    Subject {
        /// Every run.
        AllRuns = "ALL_RUNS",
        /// Runs of agents.
        Agent = "AGENT",
        /// Runs under API keys.
        ApiKey = "API_KEY",
        /// Runs on behalf of people.
        HumanActor = "HUMAN_ACTOR",
    }
}

/// A key of a run or of a group, by which policies select.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(usize)]
pub(super) enum Key {
    Tenant = 0,
    Project = 1,
    Agent = 2,
    Credential = 3,
    Human = 4,
    Provider = 5,
}

impl Key {
    pub const COUNT: usize = 6;
    pub const ALL: [Self; Self::COUNT] =
        [Self::Tenant, Self::Project, Self::Agent, Self::Credential, Self::Human, Self::Provider];

    /// The telemetry field that holds it.
    pub fn field(self) -> &'static str {
        match self {
            Self::Tenant => "tenant_id",
            Self::Project => "project_id",
            Self::Agent => "agent_id",
            Self::Credential => "api_key_id",
            Self::Human => "human_actor_id",
            Self::Provider => "provider",
        }
    }
}

impl Scope {
    /// The key field of telemetry and of window results.
    pub fn field(self) -> &'static str {
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

    /// Whether a group of this scope has the key. A run has them all.
    pub(super) fn has(self, key: Key) -> bool {
        match self {
            Self::Run => true,
            Self::Agent => matches!(key, Key::Tenant | Key::Agent),
            Self::ApiKey => matches!(key, Key::Tenant | Key::Credential),
            Self::HumanActor => matches!(key, Key::Tenant | Key::Human),
            Self::Project => matches!(key, Key::Tenant | Key::Project),
            Self::Provider => matches!(key, Key::Tenant | Key::Provider),
            Self::Task | Self::Tenant => key == Key::Tenant,
        }
    }
}

/// The keys of a run, or of a group of a wider metric (the others `None`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Who<'a> {
    /// `tenant_id`
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
    pub(super) fn key(&self, key: Key) -> Option<&'a str> {
        match key {
            Key::Tenant => Some(self.tenant),
            Key::Project => self.project,
            Key::Agent => self.agent,
            Key::Credential => self.api_key,
            Key::Human => self.human,
            Key::Provider => self.provider,
        }
    }

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

    /// Only the keys that a group of this scope has.
    #[must_use]
    pub fn within(&self, scope: Scope) -> Self {
        let keep = |key, value: Option<&'a str>| if scope.has(key) { value } else { None };
        Self {
            tenant: self.tenant,
            project: keep(Key::Project, self.project),
            agent: keep(Key::Agent, self.agent),
            api_key: keep(Key::Credential, self.api_key),
            human: keep(Key::Human, self.human),
            provider: keep(Key::Provider, self.provider),
        }
    }
}

/// The `scope` of a policy. Empty lists mean all ids, but a key that is selected on must be there: a policy for all agents
/// does not match a run without an agent.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Selector {
    /// What `level_ids` name.
    pub level: Level,
    /// Ids of that level, sorted; empty: all.
    pub level_ids: Vec<String>,
    /// What `ids` name.
    pub who: Subject,
    /// Ids of those, sorted; empty: all.
    pub ids: Vec<String>,
}

impl Default for Selector {
    fn default() -> Self {
        Self { level: Level::Tenant, level_ids: Vec::new(), who: Subject::AllRuns, ids: Vec::new() }
    }
}

impl Selector {
    /// The key the level selects on.
    pub(super) fn level_key(&self) -> Option<Key> {
        match self.level {
            Level::Global => None,
            Level::Tenant => Some(Key::Tenant),
            Level::Project => Some(Key::Project),
            Level::Agent => Some(Key::Agent),
            Level::Provider => Some(Key::Provider),
        }
    }

    /// The key `who` selects on.
    pub(super) fn who_key(&self) -> Option<Key> {
        match self.who {
            Subject::AllRuns => None,
            Subject::Agent => Some(Key::Agent),
            Subject::ApiKey => Some(Key::Credential),
            Subject::HumanActor => Some(Key::Human),
        }
    }

    /// Both conditions: a key and the ids it may have (empty: any).
    pub(super) fn conditions(&self) -> [Option<(Key, &[String])>; 2] {
        [self.who_key().map(|k| (k, &*self.ids)), self.level_key().map(|k| (k, &*self.level_ids))]
    }

    /// Whether a run or group with these keys is meant. The policy's tenant is not looked at.
    pub fn matches(&self, who: &Who<'_>) -> bool {
        self.conditions().into_iter().flatten().all(|(key, ids)| {
            who.key(key).is_some_and(|id| ids.is_empty() || ids.binary_search_by(|i| i.as_str().cmp(id)).is_ok())
        })
    }

    /// The first selected key that groups of the scope do not have.
    pub(super) fn beyond(&self, scope: Scope) -> Option<Key> {
        self.conditions().into_iter().flatten().map(|(key, _)| key).find(|key| !scope.has(*key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selector(level: Level, level_ids: &[&str], who: Subject, ids: &[&str]) -> Selector {
        let own = |l: &[&str]| l.iter().map(|s| (*s).to_owned()).collect();
        Selector { level, level_ids: own(level_ids), who, ids: own(ids) }
    }

    #[test]
    fn both_conditions_must_hold_and_a_missing_key_never_matches() {
        let run = Who { tenant: "acme", project: Some("p1"), agent: Some("planner"), ..Who::default() };
        for (level, level_ids, who, ids, expected) in [
            (Level::Global, &[][..], Subject::AllRuns, &[][..], true),
            (Level::Tenant, &[], Subject::AllRuns, &[], true),
            (Level::Tenant, &["acme", "beta"], Subject::AllRuns, &[], true),
            (Level::Tenant, &["beta"], Subject::AllRuns, &[], false),
            (Level::Project, &["p1"], Subject::Agent, &["planner"], true),
            (Level::Project, &["p2"], Subject::Agent, &["planner"], false),
            (Level::Project, &["p1"], Subject::Agent, &["coder"], false),
            (Level::Agent, &["planner"], Subject::AllRuns, &[], true),
            (Level::Tenant, &[], Subject::Agent, &[], true),
            (Level::Tenant, &[], Subject::ApiKey, &[], false),
            (Level::Provider, &[], Subject::AllRuns, &[], false),
        ] {
            let s = selector(level, level_ids, who, ids);
            assert_eq!(s.matches(&run), expected, "{s:?}");
        }
    }

    #[test]
    fn a_group_has_only_its_own_keys() {
        let run = Who { tenant: "t", project: Some("p"), agent: Some("a"), provider: Some("x"), ..Who::default() };
        assert_eq!(run.within(Scope::Run), run);
        assert_eq!(run.within(Scope::Agent), Who { tenant: "t", agent: Some("a"), ..Who::default() });
        assert_eq!(run.within(Scope::Tenant), Who { tenant: "t", ..Who::default() });
        let narrow = selector(Level::Tenant, &[], Subject::Agent, &["a"]);
        assert_eq!(narrow.beyond(Scope::Tenant), Some(Key::Agent));
        assert_eq!(narrow.beyond(Scope::Agent), None);
        assert_eq!(narrow.beyond(Scope::Run), None);
    }
}
