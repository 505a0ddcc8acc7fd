//! The policy level (L1): how a tenant stands, from six inputs of its `governance.sample` telemetry.
//!
//! The rule is SQL (`queries/decide/level.sql`); here is what it is given and what is kept. Each input keeps its latest value by event
//! time. A value older than `[level] max-age` on the tenant's clock counts as missing, also when no sample comes any more. What is
//! missing has a default and is listed; when all six are missing the level is UNKNOWN.

use std::collections::BTreeSet;
use std::sync::Arc;

use datafusion::arrow::array::{Array, AsArray, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use hashbrown::HashMap;
use rustc_hash::FxBuildHasher;
use serde::{Deserialize, Serialize};

use crate::clock::{Micros, SECOND, Wall};
use crate::decide::records::{Level, LevelInputs, LevelThresholds, PolicyLevel};
use crate::decide::sql::{Error, Prepared, Slot};

/// The rule as shipped: what a set that carries none works under.
pub const SHIPPED: &str = include_str!("../../queries/decide/level.sql");

/// The tenant that means all.
pub const OVERALL: &str = "*";

/// The six inputs, in the order in which they are listed as missing.
pub const INPUTS: [&str; 6] =
    ["trust_locked", "integrity_score", "consensus_pct", "reputation_score", "forecast_risk", "recent_responses"];

/// Most reasons that are kept, and the longest, in characters.
const REASONS: (usize, usize) = (32, 256);

/// `[level]`, as far as decisions depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Leveling {
    /// The seven thresholds.
    pub thresholds: LevelThresholds,
    /// How old an input may be on its tenant's clock, µs.
    pub max_age: Micros,
}

impl Default for Leveling {
    fn default() -> Self {
        Self { thresholds: LevelThresholds::default(), max_age: 24 * 3_600 * SECOND }
    }
}

/// What one `governance.sample` says.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sample {
    /// Whether trust is locked.
    pub trust_locked: Option<bool>,
    /// 0 to 100.
    pub integrity_score: Option<f64>,
    /// 0 to 100.
    pub consensus_pct: Option<f64>,
    /// 0 to 100.
    pub reputation_score: Option<f64>,
    /// low, medium, high.
    pub forecast_risk: Option<String>,
    /// Responses of others; ours are not among them.
    pub recent_responses: Option<i64>,
}

/// A value and its event time.
type Held<T> = Option<(T, Micros)>;

/// The latest value of each input of a tenant, and what was last said of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TenantLevel {
    trust_locked: Held<bool>,
    integrity_score: Held<f64>,
    consensus_pct: Held<f64>,
    reputation_score: Held<f64>,
    forecast_risk: Held<String>,
    recent_responses: Held<i64>,
    /// How far its clock was when it was looked at last.
    clock: Micros,
    /// As last published.
    last: Option<PolicyLevel>,
    /// Fingerprint of the rule by which it was judged last.
    rule: u32,
}

fn take<T>(held: &mut Held<T>, value: Option<T>, at: Micros) {
    if let Some(value) = value
        && held.as_ref().is_none_or(|(_, known)| *known <= at)
    {
        *held = Some((value, at));
    }
}

impl TenantLevel {
    fn hear(&mut self, sample: Sample, at: Micros) {
        let Sample { trust_locked, integrity_score, consensus_pct, reputation_score, forecast_risk, recent_responses } =
            sample;
        take(&mut self.trust_locked, trust_locked, at);
        take(&mut self.integrity_score, integrity_score, at);
        take(&mut self.consensus_pct, consensus_pct, at);
        take(&mut self.reputation_score, reputation_score, at);
        take(&mut self.forecast_risk, forecast_risk, at);
        take(&mut self.recent_responses, recent_responses, at);
    }

    fn times(&self) -> [Option<Micros>; 6] {
        fn at<T>(held: &Held<T>) -> Option<Micros> {
            held.as_ref().map(|(_, at)| *at)
        }
        [
            at(&self.trust_locked),
            at(&self.integrity_score),
            at(&self.consensus_pct),
            at(&self.reputation_score),
            at(&self.forecast_risk),
            at(&self.recent_responses),
        ]
    }

    /// When the next input becomes too old: from which clock on.
    fn next_expiry(&self, max_age: Micros) -> Option<Micros> {
        let expiry = |at: Micros| at.saturating_add(max_age).saturating_add(1);
        self.times().into_iter().flatten().map(expiry).filter(|expiry| *expiry > self.clock).min()
    }

    fn inputs(&self, max_age: Micros) -> (LevelInputs, Vec<String>) {
        let oldest = self.clock.saturating_sub(max_age);
        fn get<T: Clone>(held: &Held<T>, oldest: Micros) -> Option<T> {
            held.as_ref().filter(|(_, at)| *at >= oldest).map(|(value, _)| value.clone())
        }
        let default = LevelInputs::default();
        let inputs = LevelInputs {
            trust_locked: get(&self.trust_locked, oldest).unwrap_or(default.trust_locked),
            integrity_score: get(&self.integrity_score, oldest).unwrap_or(default.integrity_score),
            consensus_pct: get(&self.consensus_pct, oldest).unwrap_or(default.consensus_pct),
            reputation_score: get(&self.reputation_score, oldest).unwrap_or(default.reputation_score),
            forecast_risk: get(&self.forecast_risk, oldest).unwrap_or(default.forecast_risk),
            recent_responses: get(&self.recent_responses, oldest).unwrap_or(default.recent_responses),
        };
        let named = INPUTS.iter().zip(self.times());
        let missing = named.filter(|(_, at)| at.is_none_or(|at| at < oldest)).map(|(name, _)| (*name).to_owned());
        (inputs, missing.collect())
    }
}

/// What looking at a tenant gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Looked {
    /// How it stands.
    pub record: PolicyLevel,
    /// The level before; `None`: there was none.
    pub before: Option<Level>,
    /// Whether the record differs from the last one, and is to be published.
    pub changed: bool,
    /// Event time of the latest word on the trust lock.
    pub trust_at: Option<Micros>,
}

fn schema() -> SchemaRef {
    let number = |name: &str| Field::new(name, DataType::Float64, true);
    let whole = |name: &str| Field::new(name, DataType::Int64, true);
    Arc::new(Schema::new(vec![
        Field::new("trust_locked", DataType::Boolean, true),
        number("integrity_score"),
        number("consensus_pct"),
        number("reputation_score"),
        Field::new("forecast_risk", DataType::Utf8, true),
        whole("recent_responses"),
        whole("known"),
        number("red_integrity"),
        number("red_consensus"),
        whole("red_responses"),
        number("yellow_integrity"),
        number("yellow_consensus"),
        number("yellow_reputation"),
        whole("yellow_responses"),
    ]))
}

/// Compiles the rule.
///
/// # Errors
/// It does not compile over its one row, or does not give `level` and `reasons`.
pub fn prepare(sql: &str) -> Result<Prepared, Error> {
    let slots = [Slot { name: "inputs", schema: schema(), lookup: false }];
    let output =
        Schema::new(vec![Field::new("level", DataType::Utf8, true), Field::new("reasons", DataType::Utf8, true)]);
    Prepared::new("queries/decide/level.sql", sql, &slots, &Arc::new(output))
}

/// What the rule says of inputs. A rule that fails, or gives no level, is UNKNOWN and says why: blindness is a state.
pub fn judge(
    rule: &mut Prepared,
    inputs: &LevelInputs,
    missing: usize,
    thresholds: &LevelThresholds,
) -> (Level, Vec<String>) {
    match run(rule, inputs, missing, thresholds) {
        Ok(said) => said,
        Err(why) => (Level::Unknown, vec![cut(&format!("the rule gave no level: {why}"))]),
    }
}

fn cut(text: &str) -> String {
    text.chars().take(REASONS.1).collect()
}

fn run(
    rule: &mut Prepared,
    inputs: &LevelInputs,
    missing: usize,
    t: &LevelThresholds,
) -> Result<(Level, Vec<String>), String> {
    let known = i64::try_from(INPUTS.len().saturating_sub(missing)).unwrap_or_default();
    let number = |value: f64| Arc::new(Float64Array::from(vec![value])) as _;
    let whole = |value: i64| Arc::new(Int64Array::from(vec![value])) as _;
    let row = RecordBatch::try_new(
        schema(),
        vec![
            Arc::new(BooleanArray::from(vec![inputs.trust_locked])) as _,
            number(inputs.integrity_score),
            number(inputs.consensus_pct),
            number(inputs.reputation_score),
            Arc::new(StringArray::from(vec![inputs.forecast_risk.as_str()])) as _,
            whole(inputs.recent_responses),
            whole(known),
            number(t.red_integrity),
            number(t.red_consensus),
            whole(t.red_responses),
            number(t.yellow_integrity),
            number(t.yellow_consensus),
            number(t.yellow_reputation),
            whole(t.yellow_responses),
        ],
    );
    let given = rule.run(vec![row.map_err(|e| e.to_string())?]).map_err(|e| e.to_string())?;
    let text = |column: usize| {
        let column = given.columns().get(column).and_then(|c| c.as_string_opt::<i32>());
        column.filter(|c| c.len() == 1 && c.is_valid(0)).map(|c| c.value(0))
    };
    let level = text(0).ok_or("it must give one row with a level")?;
    let level = Level::parse(level).ok_or_else(|| format!("{level} is no level: RED YELLOW GREEN UNKNOWN"))?;
    let reasons = text(1).unwrap_or_default().split("; ").filter(|reason| !reason.is_empty());
    Ok((level, reasons.take(REASONS.0).map(cut).collect()))
}

/// The levels of a partition's tenants.
pub struct Levels {
    settings: Leveling,
    rule: Prepared,
    fingerprint: u32,
    tenants: HashMap<Box<str>, TenantLevel, FxBuildHasher>,
    dirty: BTreeSet<Box<str>>,
}

impl Levels {
    /// Of no tenant yet.
    ///
    /// # Errors
    /// The rule does not compile.
    pub fn new(settings: Leveling, rule: &str) -> Result<Self, Error> {
        let fingerprint = crc32fast::hash(rule.as_bytes());
        Ok(Self { settings, rule: prepare(rule)?, fingerprint, tenants: HashMap::default(), dirty: BTreeSet::new() })
    }

    /// Whether an input of the tenant becomes too old by this clock.
    pub fn is_due(&self, tenant: &str, clock: Micros) -> bool {
        // most partitions have no samples: their rows pay nothing for this
        if self.tenants.is_empty() {
            return false;
        }
        self.expiry(tenant).is_some_and(|expiry| expiry <= clock)
    }

    /// From which clock on an input of the tenant is too old.
    pub fn expiry(&self, tenant: &str) -> Option<Micros> {
        self.tenants.get(tenant)?.next_expiry(self.settings.max_age)
    }

    /// The tenants with an input that will be too old some time, and from which clock on.
    pub fn expiries(&self) -> impl Iterator<Item = (&str, Micros)> {
        let expiry = |level: &TenantLevel| level.next_expiry(self.settings.max_age);
        self.tenants.iter().filter_map(move |(tenant, level)| Some((&**tenant, expiry(level)?)))
    }

    /// Takes a sample at its event time, or only the tenant's clock; says how it stands. `None`: nothing is known of the tenant.
    pub fn look(&mut self, tenant: &str, sample: Option<(Sample, Micros)>, clock: Micros, now: Wall) -> Option<Looked> {
        if sample.is_none() && !self.tenants.contains_key(tenant) {
            return None;
        }
        let settings = self.settings;
        let known = self.tenants.entry_ref(tenant).or_default();
        self.dirty.insert(tenant.into());
        if let Some((sample, at)) = sample {
            known.hear(sample, at);
        }
        known.clock = known.clock.max(clock);
        let (inputs, missing) = known.inputs(settings.max_age);
        let trust_at = known.trust_locked.map(|(_, at)| at);
        let before = known.last.as_ref().map(|last| last.policy);
        if let Some(last) = &known.last
            && known.rule == self.fingerprint
            && (&last.inputs, &last.missing, &last.thresholds) == (&inputs, &missing, &settings.thresholds)
        {
            return Some(Looked { record: last.clone(), before, changed: false, trust_at });
        }
        let (policy, reasons) = judge(&mut self.rule, &inputs, missing.len(), &settings.thresholds);
        known.rule = self.fingerprint;
        let record = PolicyLevel {
            policy,
            evaluated_at: now.0,
            tenant_id: tenant.to_owned(),
            inputs,
            thresholds: settings.thresholds,
            reasons,
            missing,
            revision: known.last.as_ref().map_or(1, |last| last.revision + 1),
        };
        let said = |l: &PolicyLevel| (l.policy, l.inputs.clone(), l.thresholds, l.reasons.clone(), l.missing.clone());
        if let Some(last) = known.last.as_ref().filter(|last| said(last) == said(&record)) {
            return Some(Looked { record: last.clone(), before, changed: false, trust_at });
        }
        known.last = Some(record.clone());
        Some(Looked { record, before, changed: true, trust_at })
    }

    /// How these inputs would stand.
    pub fn judge(&mut self, inputs: &LevelInputs, missing: usize) -> (Level, Vec<String>) {
        judge(&mut self.rule, inputs, missing, &self.settings.thresholds)
    }

    /// The tenants that changed since the last call.
    pub fn take_changes(&mut self) -> Vec<(Box<str>, &TenantLevel)> {
        let dirty = std::mem::take(&mut self.dirty);
        let tenants = &self.tenants;
        dirty.into_iter().filter_map(|tenant| tenants.get(&tenant).map(|level| (tenant, level))).collect()
    }

    /// Makes the next [`Self::take_changes`] a full one.
    pub fn mark_all_dirty(&mut self) {
        self.dirty.extend(self.tenants.keys().cloned());
    }

    /// Takes a tenant back.
    pub fn restore(&mut self, tenant: &str, level: TenantLevel) {
        self.tenants.insert(tenant.into(), level);
    }
}
