//! Limit sets: the arbitrated limits of each scope, interned, as the lookup table the threshold SQL joins on.
//!
//! A limit set is the arbitration for one combination of (snapshots at the binding moments; tenant, agent, key, human,
//! project, provider). Combinations with equal results share a number. Sets are derived from snapshots, never checkpointed.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash as _, Hasher as _};
use std::sync::Arc;

use datafusion::arrow::array::{
    ArrayRef, Decimal128Array, Float64Array, Int32Array, RecordBatch, StringArray, UInt32Array,
};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use hashbrown::HashMap;
use rustc_hash::{FxBuildHasher, FxHasher};

use crate::clock::Micros;
use crate::pipeline::runs::Run;
use crate::policy::{Ambiguity, BoundTerms, EffectiveLimit, LimitSet, Scope, Snapshot, Who, effective_run};

/// Combinations remembered before the memory of them starts over (the sets themselves stay).
const REMEMBERED: usize = 50_000;
/// Sets held before they are to be found anew; events choose the combinations, so their number has a bound.
const HELD: usize = 16_384;
/// Up to so many sets the whole lookup table is given; beyond, only what is asked for: nobody pays for others' sets.
const WHOLE: usize = 256;

/// Name, scope and place of a metric.
#[derive(Debug, Clone)]
pub struct MetricInfo {
    /// Name.
    pub name: String,
    /// What its groups are.
    pub scope: Scope,
}

/// The limits of one combination.
#[derive(Debug)]
pub struct Set {
    /// In deterministic order; the threshold SQL's `limit_no` is the index.
    pub limits: Vec<Arc<EffectiveLimit>>,
    /// Per metric (by index): the lowest NEAR line, in units of 1e-9, and how many limits it has.
    pub floors: Vec<Option<(i128, usize)>>,
    /// Per metric: half of the lowest limit, in units of 1e-9. Of lines the lowest NEAR line.
    pub halves: Vec<Option<i128>>,
    /// FAIL_CLOSED could not order these.
    pub ambiguous: Vec<Ambiguity>,
    /// It has floors only: those of every limit that may hold at some time.
    lines: bool,
}

/// A combination as a key: the scope kind, its ids, the snapshots, and which time-bound policies are active.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Combination {
    scope: Option<Scope>,
    tenant: Box<str>,
    ids: [Option<Arc<str>>; 5],
    snapshots: [Option<Arc<str>>; 2],
    active: Vec<u64>,
    lines: bool,
}

/// The limit sets of a partition.
pub struct LimitSets {
    metrics: Vec<MetricInfo>,
    by_name: BTreeMap<String, usize>,
    snapshots: BTreeMap<Arc<str>, Arc<Snapshot>>,
    current: Arc<Snapshot>,
    known: HashMap<Combination, u32, FxBuildHasher>,
    sets: Vec<Arc<Set>>,
    /// Sets by a hash of what they hold.
    by_content: HashMap<u64, Vec<u32>, FxBuildHasher>,
    /// How often the sets were dropped.
    generation: u64,
    lookup: Option<RecordBatch>,
}

/// Schema of the `limits` table of `queries/decide/thresholds.sql`.
pub fn lookup_schema() -> SchemaRef {
    let amount = DataType::Decimal128(38, 9);
    Arc::new(Schema::new(vec![
        Field::new("limit_set", DataType::UInt32, false),
        Field::new("metric", DataType::Utf8, false),
        Field::new("limit_no", DataType::Int32, false),
        Field::new("near_at", amount.clone(), false),
        Field::new("max", amount.clone(), false),
        Field::new("near", amount, false),
        Field::new("policy_id", DataType::Utf8, false),
        Field::new("limit_id", DataType::Utf8, false),
        Field::new("mode", DataType::Utf8, false),
        Field::new("enforcement", DataType::Utf8, false),
        Field::new("on_breach", DataType::Utf8, false),
        Field::new("near_forecast_minutes", DataType::Float64, true),
    ]))
}

impl LimitSets {
    /// For these metrics under `snapshot`.
    pub fn new(metrics: Vec<MetricInfo>, snapshot: Arc<Snapshot>) -> Self {
        let by_name = metrics.iter().enumerate().map(|(i, m)| (m.name.clone(), i)).collect();
        let snapshots = BTreeMap::from([(Arc::clone(snapshot.id()), Arc::clone(&snapshot))]);
        Self {
            metrics,
            by_name,
            snapshots,
            current: snapshot,
            known: HashMap::default(),
            sets: Vec::new(),
            by_content: HashMap::default(),
            generation: 0,
            lookup: None,
        }
    }

    /// The snapshot in force.
    pub fn current(&self) -> &Arc<Snapshot> {
        &self.current
    }

    /// A policy of some version, as a snapshot that is held has it: the one in force first.
    pub fn policy(&self, tenant: &str, id: &str, version: u32) -> Option<Arc<crate::policy::Policy>> {
        let held = std::iter::once(self.current()).chain(self.snapshots());
        let mut of = held.filter_map(|snapshot| snapshot.policy(tenant, id));
        of.find(|policy| policy.version == version).cloned()
    }

    /// The snapshots held, by id.
    pub fn snapshots(&self) -> impl Iterator<Item = &Arc<Snapshot>> {
        self.snapshots.values()
    }

    /// Holds a snapshot some run is bound to (after a restore).
    pub fn hold(&mut self, snapshot: Arc<Snapshot>) {
        self.snapshots.insert(Arc::clone(snapshot.id()), snapshot);
    }

    /// Puts `snapshot` in force; runs stay bound to those they were bound to.
    pub fn adopt(&mut self, snapshot: Arc<Snapshot>) {
        self.hold(Arc::clone(&snapshot));
        self.current = snapshot;
        self.start_over();
    }

    /// Whether there are so many sets that it is time to [`LimitSets::start_over`].
    pub fn crowded(&self) -> bool {
        self.sets.len() >= HELD
    }

    /// Drops every set: their numbers mean nothing any more, and must be forgotten by whoever remembers one.
    pub fn start_over(&mut self) {
        self.known.clear();
        self.sets.clear();
        self.by_content.clear();
        self.lookup = None;
        self.generation += 1;
    }

    /// Drops the snapshots that neither are in force nor in `used`; gives their ids.
    pub fn release(&mut self, used: &BTreeSet<Arc<str>>) -> Vec<Arc<str>> {
        let current = Arc::clone(self.current.id());
        let gone: Vec<Arc<str>> =
            self.snapshots.keys().filter(|id| ***id != *current && !used.contains(*id)).cloned().collect();
        for id in &gone {
            self.snapshots.remove(id);
        }
        gone
    }

    /// A set by its number.
    pub fn get(&self, number: u32) -> Option<&Arc<Set>> {
        self.sets.get(number as usize)
    }

    /// Every set since they were last dropped, by number, and how often that was.
    pub fn sets(&self) -> (&[Arc<Set>], u64) {
        (&self.sets, self.generation)
    }

    /// Whether a limit's being active depends on the time.
    pub fn timed(&self) -> bool {
        self.snapshots.values().any(|s| s.has_active_windows())
    }

    /// Whether FAIL_CLOSED may find limits that it cannot order.
    pub fn may_be_ambiguous(&self) -> bool {
        self.snapshots.values().any(|s| s.may_be_ambiguous())
    }

    /// Whether any policy limits a metric of one of these groups.
    pub fn cover<'g>(&mut self, tenant: &str, groups: impl IntoIterator<Item = (Scope, &'g str)>) -> bool {
        let mut governed = |scope, id: &str| {
            let number = self.of_group(scope, tenant, id, None);
            self.get(number).is_some_and(|set| !set.limits.is_empty() || !set.ambiguous.is_empty())
        };
        governed(Scope::Tenant, tenant) || groups.into_iter().any(|(scope, id)| governed(scope, id))
    }

    /// The limit set of a run's bound terms; `at` judges active times.
    pub fn of_run(&mut self, tenant: &str, run: &Run, at: Option<Micros>) -> u32 {
        let f = &run.fields;
        let (start, first) = (self.bound(&run.run_start), self.bound(&run.first_token));
        let active = [&start, &first, &self.current].iter().flat_map(|s| active(s, at)).collect();
        let combination = Combination {
            scope: None,
            tenant: tenant.into(),
            ids: [f.project.clone(), f.agent.clone(), f.api_key.clone(), f.human.clone(), f.provider.clone()],
            snapshots: [Some(Arc::clone(&run.run_start)), Some(Arc::clone(&run.first_token))],
            active,
            lines: false,
        };
        if let Some(&number) = self.known.get(&combination) {
            return number;
        }
        let terms =
            BoundTerms { run_start: Some(start), first_token: Some(first), each_step: Arc::clone(&self.current) };
        let who = Who {
            tenant,
            project: f.project.as_deref(),
            agent: f.agent.as_deref(),
            api_key: f.api_key.as_deref(),
            human: f.human.as_deref(),
            provider: f.provider.as_deref(),
        };
        let scopes = |name: &str| self.by_name.get(name).and_then(|i| self.metrics.get(*i)).map(|m| m.scope);
        let set = effective_run(&terms, &who, &scopes, at);
        self.intern(combination, set)
    }

    /// The limit set of a wider group: policies that match the group's own key, over the snapshot in force.
    pub fn of_group(&mut self, scope: Scope, tenant: &str, id: &str, at: Option<Micros>) -> u32 {
        let who = Who::of_group(scope, tenant, id);
        let own = |v: Option<&str>| v.map(Arc::from);
        let combination = Combination {
            scope: Some(scope),
            tenant: tenant.into(),
            ids: [own(who.project), own(who.agent), own(who.api_key), own(who.human), own(who.provider)],
            snapshots: [None, None],
            active: active(&self.current, at),
            lines: false,
        };
        if let Some(&number) = self.known.get(&combination) {
            return number;
        }
        let scopes = |name: &str| self.by_name.get(name).and_then(|i| self.metrics.get(*i)).map(|m| m.scope);
        let set = self.current.effective(&who, scope, &scopes, at, &|_| true);
        self.intern(combination, set)
    }

    /// A set of NEAR lines alone, lower than none that may ever hold for the run, whatever is active when and what wins then.
    pub fn lines_of_run(&mut self, tenant: &str, run: &Run) -> u32 {
        let f = &run.fields;
        let combination = Combination {
            scope: None,
            tenant: tenant.into(),
            ids: [f.project.clone(), f.agent.clone(), f.api_key.clone(), f.human.clone(), f.provider.clone()],
            snapshots: [Some(Arc::clone(&run.run_start)), Some(Arc::clone(&run.first_token))],
            active: Vec::new(),
            lines: true,
        };
        if let Some(&number) = self.known.get(&combination) {
            return number;
        }
        let who = Who {
            tenant,
            project: f.project.as_deref(),
            agent: f.agent.as_deref(),
            api_key: f.api_key.as_deref(),
            human: f.human.as_deref(),
            provider: f.provider.as_deref(),
        };
        let snapshots = [self.bound(&run.run_start), self.bound(&run.first_token), Arc::clone(&self.current)];
        self.intern_lines(combination, &snapshots, &who, Scope::Run)
    }

    /// Likewise for a wider group.
    pub fn lines_of_group(&mut self, scope: Scope, tenant: &str, id: &str) -> u32 {
        let who = Who::of_group(scope, tenant, id);
        let own = |v: Option<&str>| v.map(Arc::from);
        let combination = Combination {
            scope: Some(scope),
            tenant: tenant.into(),
            ids: [own(who.project), own(who.agent), own(who.api_key), own(who.human), own(who.provider)],
            snapshots: [None, None],
            active: Vec::new(),
            lines: true,
        };
        if let Some(&number) = self.known.get(&combination) {
            return number;
        }
        let current = [Arc::clone(&self.current)];
        self.intern_lines(combination, &current, &who, scope)
    }

    fn intern_lines(
        &mut self,
        combination: Combination,
        snapshots: &[Arc<Snapshot>],
        who: &Who<'_>,
        scope: Scope,
    ) -> u32 {
        let scopes = |name: &str| self.by_name.get(name).and_then(|i| self.metrics.get(*i)).map(|m| m.scope);
        let mut floors: Vec<Option<(i128, usize)>> = vec![None; self.metrics.len()];
        for (metric, line) in snapshots.iter().flat_map(|s| s.floors(who, scope, &scopes)) {
            let Some(floor) = self.by_name.get(&*metric).and_then(|i| floors.get_mut(*i)) else { continue };
            *floor = Some(floor.map_or((line.0, 1), |(low, count)| (low.min(line.0), count + 1)));
        }
        let mut hasher = FxHasher::default();
        floors.hash(&mut hasher);
        let alike = self.by_content.entry(hasher.finish()).or_default();
        let same = alike
            .iter()
            .copied()
            .find(|number| self.sets.get(*number as usize).is_some_and(|s| s.lines && s.floors == floors));
        let number = same.unwrap_or_else(|| {
            let halves = floors.iter().map(|floor| floor.map(|(low, _)| low)).collect();
            self.sets.push(Arc::new(Set { limits: Vec::new(), floors, halves, ambiguous: Vec::new(), lines: true }));
            let number = u32::try_from(self.sets.len() - 1).unwrap_or(u32::MAX);
            alike.push(number);
            number
        });
        self.remember(combination, number)
    }

    /// The `limits` table: at least the rows of the sets `used`.
    pub fn lookup(
        &mut self,
        used: impl Iterator<Item = u32>,
    ) -> Result<RecordBatch, datafusion::arrow::error::ArrowError> {
        if let Some(batch) = &self.lookup {
            return Ok(batch.clone());
        }
        let whole = self.sets.len() <= WHOLE;
        let used: BTreeSet<u32> = if whole { (0..self.sets.len() as u32).collect() } else { used.collect() };
        let rows: Vec<(u32, i32, &EffectiveLimit)> = used
            .into_iter()
            .filter_map(|number| Some((number, self.sets.get(number as usize)?)))
            .flat_map(|(n, s)| (0i32..).zip(&s.limits).map(move |(i, l)| (n, i, &**l)))
            .collect();
        let amounts = |f: fn(&EffectiveLimit) -> i128| -> Result<ArrayRef, _> {
            let values: Decimal128Array = rows.iter().map(|r| Some(f(r.2))).collect();
            Ok::<ArrayRef, datafusion::arrow::error::ArrowError>(Arc::new(values.with_precision_and_scale(38, 9)?))
        };
        let texts = |f: fn(&EffectiveLimit) -> &str| -> ArrayRef {
            Arc::new(rows.iter().map(|r| Some(f(r.2))).collect::<StringArray>())
        };
        let batch = RecordBatch::try_new(
            lookup_schema(),
            vec![
                Arc::new(rows.iter().map(|r| Some(r.0)).collect::<UInt32Array>()),
                texts(|l| &l.metric),
                Arc::new(rows.iter().map(|r| Some(r.1)).collect::<Int32Array>()),
                amounts(|l| l.near_at.0)?,
                amounts(|l| l.max.0)?,
                amounts(|l| l.near.0)?,
                texts(|l| &l.policy_id),
                texts(|l| &l.limit_id),
                texts(|l| l.mode.as_str()),
                texts(|l| l.enforcement.as_str()),
                texts(|l| l.on_breach.as_str()),
                Arc::new(rows.iter().map(|r| r.2.near_forecast_minutes.map(f64::from)).collect::<Float64Array>()),
            ],
        )?;
        if whole {
            self.lookup = Some(batch.clone());
        }
        Ok(batch)
    }

    fn bound(&self, id: &Arc<str>) -> Arc<Snapshot> {
        Arc::clone(self.snapshots.get(id).unwrap_or(&self.current))
    }

    fn intern(&mut self, combination: Combination, set: LimitSet) -> u32 {
        let limits: Vec<Arc<EffectiveLimit>> = set.limits;
        let content = content(&limits);
        let alike = self.by_content.entry(content).or_default();
        let same = alike.iter().copied().find(|number| {
            self.sets
                .get(*number as usize)
                .is_some_and(|s| !s.lines && s.limits == limits && s.ambiguous == set.ambiguous)
        });
        let number = same.unwrap_or_else(|| {
            let mut floors = vec![None; self.metrics.len()];
            let mut halves: Vec<Option<i128>> = vec![None; self.metrics.len()];
            for limit in &limits {
                let Some(&metric) = self.by_name.get(&*limit.metric) else { continue };
                let Some(floor) = floors.get_mut(metric) else { continue };
                let (low, count) = floor.unwrap_or((i128::MAX, 0));
                *floor = Some((low.min(limit.floor().0), count + 1));
                if let Some(half) = halves.get_mut(metric) {
                    let own = limit.max.0 / 2;
                    *half = Some(half.map_or(own, |low| low.min(own)));
                }
            }
            self.sets.push(Arc::new(Set { limits, floors, halves, ambiguous: set.ambiguous, lines: false }));
            self.lookup = None;
            let number = u32::try_from(self.sets.len() - 1).unwrap_or(u32::MAX);
            alike.push(number);
            number
        });
        self.remember(combination, number)
    }

    fn remember(&mut self, combination: Combination, number: u32) -> u32 {
        if self.known.len() >= REMEMBERED {
            self.known.clear();
        }
        self.known.insert(combination, number);
        number
    }
}

/// Equal for equal limits; tells nearly all others apart.
fn content(limits: &[Arc<EffectiveLimit>]) -> u64 {
    let mut hasher = FxHasher::default();
    for l in limits {
        (&l.metric, &l.policy_tenant, &l.policy_id, &l.limit_id, l.policy_version, &l.snapshot_id).hash(&mut hasher);
        (l.max.0, l.near_at.0).hash(&mut hasher);
    }
    hasher.finish()
}

fn active(snapshot: &Snapshot, at: Option<Micros>) -> Vec<u64> {
    at.map(|at| snapshot.active_at(at)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One policy for each of `count` agents, and one for all runs.
    fn sets(count: usize) -> LimitSets {
        let mut yaml =
            "id: all\nname: All\nlimits:\n  - {id: t, limit_type: TOKENS_PER_RUN, metric: run_tokens, max: 9}\n"
                .to_owned();
        for n in 0..count {
            yaml += &format!(
                "---\nid: p{n}\nname: P\nscope: {{who: AGENT, ids: [a{n}]}}\nlimits:\n  - {{id: m, limit_type: \
                 TOKENS_PER_MINUTE, metric: agent_tokens, max: {}}}\n",
                n + 1
            );
        }
        let policies = crate::policy::parse("p.yaml", &yaml).unwrap();
        let snapshot = Snapshot::new(policies, BTreeMap::new(), "", "");
        let metric = |name: &str, scope| MetricInfo { name: name.into(), scope };
        LimitSets::new(vec![metric("agent_tokens", Scope::Agent), metric("run_tokens", Scope::Run)], Arc::new(snapshot))
    }

    fn numbers(batch: &RecordBatch) -> BTreeSet<u32> {
        let column = batch.column(0).as_any().downcast_ref::<UInt32Array>().unwrap();
        column.values().iter().copied().collect()
    }

    #[test]
    fn equal_limits_share_a_number_and_others_do_not() {
        let mut sets = sets(2);
        let of = |sets: &mut LimitSets, tenant: &str, agent: &str| sets.of_group(Scope::Agent, tenant, agent, None);
        let first = of(&mut sets, "t", "a0");
        assert_eq!(of(&mut sets, "t", "a0"), first);
        assert_eq!(of(&mut sets, "other", "a0"), first, "the same limits, whoever's they are");
        let second = of(&mut sets, "t", "a1");
        assert_ne!(second, first);
        let none = of(&mut sets, "t", "stranger");
        assert_eq!(sets.get(none).map(|s| s.limits.len()), Some(0));
        assert_eq!(
            numbers(&sets.lookup([first].into_iter()).unwrap()),
            [first, second].into(),
            "few sets: the whole table"
        );
    }

    #[test]
    fn beyond_a_few_sets_the_table_holds_what_is_asked_for() {
        let mut sets = sets(WHOLE + 10);
        let all: Vec<u32> = (0..WHOLE + 10).map(|n| sets.of_group(Scope::Agent, "t", &format!("a{n}"), None)).collect();
        let table = sets.lookup([all[3], all[200], all[3], u32::MAX].into_iter()).unwrap();
        assert_eq!((numbers(&table), table.num_rows()), ([all[3], all[200]].into(), 2));
        assert_eq!(
            numbers(&sets.lookup([all[4]].into_iter()).unwrap()),
            [all[4]].into(),
            "nothing is left of the last"
        );
    }

    #[test]
    fn after_starting_over_sets_are_found_anew() {
        let mut sets = sets(3);
        let generation = sets.sets().1;
        let old = sets.of_group(Scope::Agent, "t", "a2", None);
        let limits = sets.get(old).unwrap().limits.clone();
        assert!(!sets.crowded());
        sets.start_over();
        assert!(sets.get(old).is_none() && sets.sets().1 > generation);
        let new = sets.of_group(Scope::Agent, "t", "a2", None);
        assert_eq!(sets.get(new).unwrap().limits, limits);
    }
}
