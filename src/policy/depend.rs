//! Which policy needs which (P10), as a graph: nodes are policies, an edge runs from a policy to the one it depends on.
//!
//! EXPLICIT is what `depends_on` says. IMPLICIT_LIMIT: a condition reads `run.utilization.<metric>` that another policy limits,
//! where both can bind one run. IMPLICIT_SCOPE chains the neighbours of one scope (equal tenant and `scope`), ordered by
//! rule type, enforcement mode and id, each by its text, so that n policies give n − 1 edges. The first two block deletion
//! (GOV-POL-002); the third only orders.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::condition::sql;
use super::fault::{Fault, nearest, quoted};
use super::model::{LimitStatus, Mode, Policy, RuleType, Status};
use super::names::names;
use super::reach::Reach;
use super::scope::{Level, Subject};

mod cycle;

/// Most edges of one graph; with more, [`Dependencies::complete`] is false.
const MAX_EDGES: usize = 100_000;

names! {
    /// Why one policy depends on another.
    DependencyKind {
        /// `depends_on` names it.
        Explicit = "EXPLICIT",
        /// It comes next in the order of one scope.
        ImplicitScope = "IMPLICIT_SCOPE",
        /// A condition reads the utilization of a metric that it limits.
        ImplicitLimit = "IMPLICIT_LIMIT",
    }
}

impl DependencyKind {
    /// Whether what is depended on may not be deleted.
    pub fn blocks_deletion(self) -> bool {
        self != Self::ImplicitScope
    }
}

/// One dependency.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct DependencyEdge {
    /// Tenant of the policy that depends.
    pub from_tenant: String,
    /// The policy that depends.
    pub from_policy_id: String,
    /// Tenant of the policy depended on.
    pub to_tenant: String,
    /// The policy depended on.
    pub to_policy_id: String,
    /// Why.
    pub dependency_type: DependencyKind,
    /// Why, in words.
    pub explanation: String,
}

/// The other end of an edge.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Relation {
    /// Its tenant.
    pub tenant: String,
    /// Its id.
    pub policy_id: String,
    /// Its name.
    pub policy_name: String,
    /// Why.
    pub dependency_type: DependencyKind,
}

/// A policy in the graph.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DependencyNode {
    /// Unique within its tenant.
    pub id: String,
    /// Its tenant, or `*`.
    pub tenant: String,
    /// For people.
    pub name: String,
    /// What kind of rule.
    pub rule_type: RuleType,
    /// The level of its scope.
    pub scope: Level,
    /// Whether it counts.
    pub status: Status,
    /// How far it may go.
    pub enforcement_mode: Mode,
    /// What it depends on.
    pub depends_on: Vec<Relation>,
    /// What depends on it.
    pub required_by: Vec<Relation>,
}

/// The graph. Nodes by tenant and id, edges by both ends.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Dependencies {
    /// Every policy.
    pub nodes: Vec<DependencyNode>,
    /// At most 100,000.
    pub edges: Vec<DependencyEdge>,
    /// Whether these are all edges.
    pub complete: bool,
}

/// The graph of a set of policies, those that are retired as nodes without implicit edges.
pub fn dependencies<'p>(policies: impl IntoIterator<Item = &'p Policy>) -> Dependencies {
    let graph = Graph::new(policies.into_iter().collect());
    let mut edges = Vec::new();
    let mut complete = true;
    let every = (0..graph.policies.len()).flat_map(|n| graph.explicit(n).chain(graph.by_limit(n)));
    for edge in every.chain(graph.by_scope()) {
        if edges.len() >= MAX_EDGES {
            complete = false;
            break;
        }
        edges.push(edge);
    }
    edges.sort_unstable();
    let mut nodes: Vec<DependencyNode> = graph.policies.iter().map(|p| node(p)).collect();
    for (from, to, kind) in &edges {
        let relation = |n: usize| {
            graph.policies.get(n).map(|p| Relation {
                tenant: p.tenant.to_string(),
                policy_id: p.id.to_string(),
                policy_name: p.name.clone(),
                dependency_type: kind.0,
            })
        };
        if let Some(node) = nodes.get_mut(*from) {
            node.depends_on.extend(relation(*to));
        }
        if let Some(node) = nodes.get_mut(*to) {
            node.required_by.extend(relation(*from));
        }
    }
    let edges = edges.into_iter().filter_map(|(from, to, (kind, why))| graph.edge(from, to, kind, why)).collect();
    Dependencies { nodes, edges, complete }
}

/// The dependencies that forbid deleting a policy (GOV-POL-002): every EXPLICIT and IMPLICIT_LIMIT edge that ends at it, by
/// where it begins. Empty: it may be deleted. What is retired depends on nothing.
pub fn dependents<'p>(policies: impl IntoIterator<Item = &'p Policy>, tenant: &str, id: &str) -> Vec<DependencyEdge> {
    let graph = Graph::new(policies.into_iter().collect());
    let Some(wanted) = graph.numbers.get(&(tenant, id)).copied() else { return Vec::new() };
    let every = (0..graph.policies.len()).flat_map(|n| graph.explicit(n).chain(graph.by_limit_on(n, wanted)));
    let mut ending: Vec<_> = every.filter(|(_, to, _)| *to == wanted).collect();
    ending.sort_unstable();
    ending.into_iter().filter_map(|(from, to, (kind, why))| graph.edge(from, to, kind, why)).collect()
}

/// What is wrong with the `depends_on` of a set: what is not there, what is retired, and what depends on itself. Faults stand
/// where the policy does.
pub fn dependency_faults<'p>(policies: impl IntoIterator<Item = &'p Policy>) -> Vec<Fault> {
    let graph = Graph::new(policies.into_iter().collect());
    let mut faults = Vec::new();
    for policy in graph.policies.iter().filter(|p| p.status == Status::Active) {
        for id in &policy.depends_on {
            let (message, help) = match graph.resolve(policy, id).and_then(|n| graph.policies.get(n)) {
                None => {
                    let same = |p: &&&Policy| p.is_for_tenant(&policy.tenant) && p.id != policy.id;
                    let help = match nearest(id, graph.policies.iter().filter(same).map(|p| &*p.id)) {
                        Some(meant) => format!("did you mean `{meant}`?"),
                        None if &*policy.tenant == "*" => "a policy of all tenants depends on such only".to_owned(),
                        None => format!("neither tenant {} nor `*` has it", quoted(&policy.tenant)),
                    };
                    (format!("depends on {}, which is not there", quoted(id)), help)
                }
                Some(target) if target.status == Status::Retired => (
                    format!("depends on {}, which is RETIRED", quoted(id)),
                    "put it in force, or drop it from `depends_on`".to_owned(),
                ),
                Some(_) => continue,
            };
            let message = format!("policy {}: {message}", quoted(&policy.id));
            faults.push(Fault::new(&policy.file, policy.place, "depends_on", message, Some(help)));
        }
    }
    let targets: Vec<Vec<usize>> =
        (0..graph.policies.len()).map(|n| graph.explicit(n).map(|(_, to, _)| to).collect()).collect();
    for cycle in cycle::find(&targets) {
        let ids: Vec<&str> = cycle.iter().filter_map(|n| graph.policies.get(*n)).map(|p| &*p.id).collect();
        let (Some(policy), Some(first)) = (cycle.first().and_then(|n| graph.policies.get(*n)), ids.first()) else {
            continue;
        };
        let round = ids.iter().chain([first]).copied().collect::<Vec<_>>().join(" → ");
        let message = format!("policy {}: depends on itself: {round}", quoted(&policy.id));
        let help = Some("drop one of them from a `depends_on`".to_owned());
        faults.push(Fault::new(&policy.file, policy.place, "depends_on", message, help));
    }
    faults.sort();
    faults
}

fn node(policy: &Policy) -> DependencyNode {
    DependencyNode {
        id: policy.id.to_string(),
        tenant: policy.tenant.to_string(),
        name: policy.name.clone(),
        rule_type: policy.rule_type,
        scope: policy.scope.level,
        status: policy.status,
        enforcement_mode: policy.enforcement_mode,
        depends_on: Vec::new(),
        required_by: Vec::new(),
    }
}

/// An edge by numbers, with its kind and explanation.
type Edge = (usize, usize, (DependencyKind, String));

struct Graph<'p> {
    /// By tenant and id.
    policies: Vec<&'p Policy>,
    numbers: BTreeMap<(&'p str, &'p str), usize>,
    reaches: Vec<Option<Reach<'p>>>,
    /// Metrics whose utilization the condition reads.
    reads: Vec<BTreeSet<String>>,
    /// Policies by metric they limit.
    limiting: BTreeMap<&'p str, Vec<usize>>,
}

impl<'p> Graph<'p> {
    fn new(mut policies: Vec<&'p Policy>) -> Self {
        policies.sort_by(|a, b| (&a.tenant, &a.id).cmp(&(&b.tenant, &b.id)));
        policies.dedup_by(|b, a| a.tenant == b.tenant && a.id == b.id);
        let mut limiting: BTreeMap<&'p str, Vec<usize>> = BTreeMap::new();
        for (n, policy) in policies.iter().enumerate().filter(|(_, p)| p.counts()) {
            for limit in policy.limits.iter().filter(|l| l.status == LimitStatus::Active) {
                let numbers = limiting.entry(&limit.metric).or_default();
                if numbers.last() != Some(&n) {
                    numbers.push(n);
                }
            }
        }
        Self {
            numbers: policies.iter().enumerate().map(|(n, p)| ((&*p.tenant, &*p.id), n)).collect(),
            reaches: policies.iter().map(|p| Reach::of(p)).collect(),
            reads: policies.iter().map(|p| p.condition.as_ref().map(sql::utilization).unwrap_or_default()).collect(),
            limiting,
            policies,
        }
    }

    fn edge(&self, from: usize, to: usize, kind: DependencyKind, explanation: String) -> Option<DependencyEdge> {
        let (from, to) = (self.policies.get(from)?, self.policies.get(to)?);
        Some(DependencyEdge {
            from_tenant: from.tenant.to_string(),
            from_policy_id: from.id.to_string(),
            to_tenant: to.tenant.to_string(),
            to_policy_id: to.id.to_string(),
            dependency_type: kind,
            explanation,
        })
    }

    /// An id of `depends_on` means a policy of the same tenant, or else one of all tenants.
    fn resolve(&self, policy: &Policy, id: &str) -> Option<usize> {
        [&*policy.tenant, "*"].into_iter().find_map(|tenant| self.numbers.get(&(tenant, id)).copied())
    }

    fn is_active(&self, n: usize) -> bool {
        self.policies.get(n).is_some_and(|p| p.status == Status::Active)
    }

    fn explicit(&self, n: usize) -> impl Iterator<Item = Edge> + '_ {
        let policy = self.policies.get(n).filter(|p| p.status == Status::Active);
        policy.into_iter().flat_map(move |policy| {
            policy.depends_on.iter().filter_map(move |id| {
                let to = self.resolve(policy, id)?;
                Some((n, to, (DependencyKind::Explicit, format!("'{}' names it in depends_on", policy.name))))
            })
        })
    }

    fn by_limit(&self, n: usize) -> impl Iterator<Item = Edge> + '_ {
        let metrics = self.reads.get(n).filter(|_| self.is_active(n)).into_iter().flatten();
        metrics.flat_map(move |metric| {
            let limiting = self.limiting.get(metric.as_str()).into_iter().flatten();
            limiting.filter_map(move |to| self.limit_edge(n, *to, metric))
        })
    }

    fn by_limit_on(&self, n: usize, to: usize) -> impl Iterator<Item = Edge> + '_ {
        let metrics = self.reads.get(n).filter(|_| self.is_active(n)).into_iter().flatten();
        let limits = move |metric: &&String| {
            self.limiting.get(metric.as_str()).is_some_and(|numbers| numbers.binary_search(&to).is_ok())
        };
        metrics.filter(limits).filter_map(move |metric| self.limit_edge(n, to, metric))
    }

    fn limit_edge(&self, from: usize, to: usize, metric: &str) -> Option<Edge> {
        let reach = |n: usize| self.reaches.get(n)?.as_ref();
        let meet = from != to && reach(from).zip(reach(to)).is_some_and(|(a, b)| a.meets(b));
        let why = || {
            format!(
                "a condition of '{}' reads run.utilization.{metric}",
                self.policies.get(from).map_or("", |p| &p.name)
            )
        };
        meet.then(|| (from, to, (DependencyKind::ImplicitLimit, why())))
    }

    fn by_scope(&self) -> impl Iterator<Item = Edge> + '_ {
        let mut scopes: BTreeMap<_, Vec<usize>> = BTreeMap::new();
        for (n, policy) in self.policies.iter().enumerate().filter(|(_, p)| p.status == Status::Active) {
            let s = &policy.scope;
            scopes.entry((&policy.tenant, s.level, &s.level_ids, s.who, &s.ids)).or_default().push(n);
        }
        scopes.into_values().flat_map(move |mut members| {
            let order = |n: &usize| {
                self.policies.get(*n).map(|p| (p.rule_type.as_str(), p.enforcement_mode.as_str(), p.id.clone()))
            };
            members.sort_by_key(order);
            let chain: Vec<Edge> = members
                .windows(2)
                .filter_map(|pair| {
                    let [from, to] = pair else { return None };
                    let scope = self.policies.get(*from).map(|p| scope_text(p)).unwrap_or_default();
                    let why = format!("Both policies share scope '{scope}'");
                    Some((*from, *to, (DependencyKind::ImplicitScope, why)))
                })
                .collect();
            chain
        })
    }
}

/// `GLOBAL`, `TENANT acme`, `PROJECT p1, AGENT planner`
fn scope_text(policy: &Policy) -> String {
    /// Ids shown of each list.
    const SHOWN: usize = 3;
    let named = |text: &str, ids: &[String]| {
        let mut named = text.to_owned();
        for id in ids.iter().take(SHOWN) {
            named.push(' ');
            named.push_str(id);
        }
        if ids.len() > SHOWN {
            named.push_str(" …");
        }
        named
    };
    let scope = &policy.scope;
    let mut text = named(scope.level.as_str(), &scope.level_ids);
    if scope.who != Subject::AllRuns {
        text = format!("{text}, {}", named(scope.who.as_str(), &scope.ids));
    }
    if &*policy.tenant != "*" {
        text = format!("{text} of tenant {}", policy.tenant);
    }
    text
}

#[cfg(test)]
mod tests;
