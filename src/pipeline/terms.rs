//! The terms that a core works under, from their texts: queries, policies, prices, decision settings.
//!
//! Pure: the same texts give the same terms on every sidecar, so the writer judges a set exactly as `check` does. Every fault of every
//! text is found in one pass.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::clock::Micros;
use crate::decide::blindness::Bounds;
use crate::decide::breaker::Share;
use crate::decide::commands::Keyring;
use crate::decide::interventions::Acting;
use crate::decide::level::Leveling;
use crate::decide::respond::Responding;
use crate::decide::{self, correlation};
use crate::pipeline::intake::InputNames;
use crate::pipeline::partition::{Alerting, InForce, Settings, scope_of};
use crate::policy::{self, Policy, PolicySet, Scope, Severity, Snapshot, Terms};
use crate::stream;
use crate::telemetry::{self, Prices};

/// A text file: (name as shown in errors, content).
pub type Text = (String, String);

/// The names under which a set carries the two queries that are no metrics.
const THRESHOLDS: &str = "decide/thresholds.sql";
const CORRELATION: &str = "decide/correlation.sql";
/// That of the policy level; a set that carries none works under the one that is shipped.
const LEVEL: &str = "decide/level.sql";

/// The texts a core is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Texts {
    /// `queries/metrics/*.sql`
    pub metrics: Vec<Text>,
    /// `queries/decide/thresholds.sql`
    pub thresholds: Text,
    /// `queries/decide/correlation.sql`
    pub correlation: Text,
    /// `queries/decide/level.sql`
    pub level: Text,
    /// `config/policies/**/*.{yaml,yml,json}`
    pub policies: Vec<Text>,
    /// `config/prices.toml`; `None`: no price table
    pub prices: Option<Text>,
}

impl Texts {
    /// Everything but the policies, as a set carries it: names do not depend on where the files lie.
    pub fn terms(&self, tuning: &Tuning) -> Terms {
        let mut queries = BTreeMap::new();
        for (name, text) in &self.metrics {
            let short = name.rsplit_once("metrics/").map_or(name.as_str(), |(_, rest)| rest);
            let short = format!("metrics/{short}");
            let key = if queries.contains_key(&short) { name.clone() } else { short };
            queries.insert(key, text.clone());
        }
        queries.insert(THRESHOLDS.to_owned(), self.thresholds.1.clone());
        queries.insert(CORRELATION.to_owned(), self.correlation.1.clone());
        queries.insert(LEVEL.to_owned(), self.level.1.clone());
        let prices = self.prices.as_ref().map(|(_, text)| text.clone()).unwrap_or_default();
        Terms { queries, prices, settings: tuning.decisive() }
    }

    /// The texts of terms, without policies.
    ///
    /// # Errors
    /// One of the two queries that every core needs is missing.
    pub fn of(terms: &Terms) -> Result<Self, String> {
        let needed = |name: &str| {
            let text = terms.queries.get(name).ok_or_else(|| format!("{name}: the set does not carry it"))?;
            Ok::<Text, String>((name.to_owned(), text.clone()))
        };
        let metric = |(name, _): &(&String, &String)| ![THRESHOLDS, CORRELATION, LEVEL].contains(&name.as_str());
        let owned = |(name, text): (&String, &String)| (name.clone(), text.clone());
        Ok(Self {
            metrics: terms.queries.iter().filter(metric).map(owned).collect(),
            thresholds: needed(THRESHOLDS)?,
            correlation: needed(CORRELATION)?,
            level: needed(LEVEL).unwrap_or_else(|_| (LEVEL.to_owned(), decide::level::SHIPPED.to_owned())),
            policies: Vec::new(),
            prices: (!terms.prices.is_empty()).then(|| ("prices".to_owned(), terms.prices.clone())),
        })
    }
}

/// SHA-256 over a set, in hexadecimal: what sidecars compare.
pub fn set_digest(policies: &BTreeMap<String, String>, terms: &Terms) -> String {
    let mut digest = Sha256::new();
    let mut take = |text: &str| {
        // lengths first, so that no two sets hash alike
        digest.update((text.len() as u64).to_be_bytes());
        digest.update(text.as_bytes());
    };
    for map in [policies, &terms.queries] {
        take(&map.len().to_string());
        map.iter().for_each(|(name, text)| [name, text].into_iter().for_each(|t| take(t)));
    }
    take(&terms.prices);
    take(&terms.settings);
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Key of the record of the policies topic that holds the terms in force whole.
pub const IN_FORCE: &str = "*/in-force/current";

/// What the record of the terms in force says of them.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Standing {
    /// How often the snapshot in force has changed.
    pub revision: u64,
    /// Generation of the set of files in it.
    pub generation: u64,
    /// That set's digest.
    pub digest: String,
}

/// Why the record of the terms in force cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum UnusableTerms {
    /// Not the JSON of such a record.
    #[error("not the JSON of terms in force")]
    Json(#[from] serde_json::Error),
    /// Its snapshot is none.
    #[error(transparent)]
    Snapshot(#[from] policy::SnapshotError),
    /// Its queries or prices do not hold in this version.
    #[error("they do not compile here: {0}")]
    Faults(String),
}

impl InForce {
    /// Reads the record under [`IN_FORCE`]. Settings among `known` that were made from the same terms are taken, others are made.
    ///
    /// # Errors
    /// The record is not ours, was changed, or holds what this version cannot compile.
    pub fn read(
        payload: &[u8],
        known: impl IntoIterator<Item = Arc<Settings>>,
        tuning: &Tuning,
    ) -> Result<(Standing, Self), UnusableTerms> {
        #[derive(Deserialize)]
        struct Of<'a> {
            #[serde(borrow)]
            snapshot: &'a serde_json::value::RawValue,
            #[serde(default)]
            silences: Vec<policy::Silence>,
        }
        let standing: Standing = serde_json::from_slice(payload)?;
        let of: Of<'_> = serde_json::from_slice(payload)?;
        let snapshot = Snapshot::from_json(of.snapshot.get())?;
        let terms = Terms {
            queries: snapshot.metrics().clone(),
            prices: snapshot.prices().to_owned(),
            settings: snapshot.settings().to_owned(),
        };
        let settings = match known.into_iter().find(|s| s.follows && *s.terms == terms) {
            Some(settings) => settings,
            None => {
                let texts = Texts::of(&terms).map_err(UnusableTerms::Faults)?;
                let loaded = build(&texts, tuning.clone().deciding(&terms.settings));
                let loaded = loaded.map_err(|faults| UnusableTerms::Faults(faults.join("; ")))?;
                Arc::new(following(loaded.settings))
            }
        };
        let revision = standing.revision;
        Ok((standing, Self { revision, snapshot: Arc::new(snapshot), settings, silences: Arc::new(of.silences) }))
    }
}

/// Settings that count for nothing until something is in force.
pub fn following(settings: Settings) -> Settings {
    let terms = &settings.terms;
    let empty = Snapshot::new(Vec::new(), terms.queries.clone(), &terms.prices, &terms.settings);
    Settings { follows: true, snapshot: Arc::new(empty), ..settings }
}

/// What `build` gives.
pub struct Loaded {
    /// For the cores.
    pub settings: Settings,
    /// The policies.
    pub policies: PolicySet,
    /// What `check` has to say, worst first; without errors.
    pub findings: Vec<policy::Finding>,
}

/// Times and bounds, from the configuration.
#[derive(Clone)]
pub struct Tuning {
    /// `[time] allowed-lateness`
    pub lateness: Micros,
    /// `[time] idle-timeout`
    pub idle_timeout: Micros,
    /// `[time] dedup-horizon` and `[limits] dedup-ids`
    pub dedup: (Micros, usize),
    /// `[limits] list-state-bytes`
    pub state_bytes: usize,
    /// `[limits] live-keys`
    pub live_keys: usize,
    /// `[limits] run-retention`
    pub run_retention: Micros,
    /// `[alerts]`
    pub alerting: Alerting,
    /// `[interventions]`, and the bounds of what is remembered of them.
    pub acting: Acting,
    /// `[breaker]`
    pub breaker: Share,
    /// `[blindness]`
    pub blindness: Bounds,
    /// `[telemetry]` and bounds; prices are added
    pub telemetry: telemetry::Settings,
    /// `[topics]`
    pub inputs: InputNames,
    /// CloudEvents source.
    pub source: String,
    /// `[level]`
    pub leveling: Leveling,
    /// `[respond]`
    pub responding: Responding,
    /// Keys of `[[auth.keys]]`.
    pub keys: Arc<Keyring>,
}

/// The settings that decisions depend on, as a set carries them; µs.
#[derive(Debug, Serialize, Deserialize)]
struct Decisive {
    allowed_lateness_us: Micros,
    idle_timeout_us: Micros,
    dedup_horizon_us: Micros,
    dedup_ids: usize,
    #[serde(default)]
    alerting: Alerting,
    #[serde(default)]
    acting: Acting,
    #[serde(default)]
    breaker: Share,
    #[serde(default)]
    blindness: Bounds,
    #[serde(default)]
    leveling: Leveling,
    #[serde(default)]
    responding: Responding,
}

impl Tuning {
    /// The settings that decisions depend on, as a set carries them.
    pub fn decisive(&self) -> String {
        let decisive = Decisive {
            allowed_lateness_us: self.lateness,
            idle_timeout_us: self.idle_timeout,
            dedup_horizon_us: self.dedup.0,
            dedup_ids: self.dedup.1,
            alerting: self.alerting,
            acting: self.acting,
            breaker: self.breaker,
            blindness: self.blindness,
            leveling: self.leveling,
            responding: self.responding.clone(),
        };
        serde_json::to_string(&decisive).unwrap_or_default()
    }

    /// These, with the settings that a set carries in place of our own. What is no such text changes nothing.
    #[must_use]
    pub fn deciding(mut self, settings: &str) -> Self {
        if let Ok(set) = serde_json::from_str::<Decisive>(settings) {
            self.lateness = set.allowed_lateness_us;
            self.idle_timeout = set.idle_timeout_us;
            self.dedup = (set.dedup_horizon_us, set.dedup_ids);
            (self.alerting, self.acting, self.breaker) = (set.alerting, set.acting, set.breaker);
            self.blindness = set.blindness;
            (self.leveling, self.responding) = (set.leveling, set.responding);
        }
        self
    }
}

/// What the header of a metric file declares, whether or not the rest compiles.
fn declared(text: &str) -> Option<(String, Scope, bool)> {
    let value = |key: &str| {
        let line = text.lines().map(str::trim).find_map(|l| l.strip_prefix("--")?.trim().strip_prefix(key));
        line.map(|rest| rest.trim().to_owned())
    };
    Some((value("metric:")?, scope_of(stream::Scope::parse(&value("scope:")?)?), true))
}

/// A fault of a SQL file with its place: the compiler's, or where the name it does not know stands.
fn placed((file, text): &Text, error: &stream::CompileError) -> String {
    let place = match (error.line, error.column, &error.clause, unknown_name(text, &error.message)) {
        (Some(line), Some(column), ..) => format!(":{line}:{column}"),
        (.., Some((line, column))) => format!(":{line}:{column}"),
        (_, _, Some(clause), None) => format!(", {clause}"),
        _ => String::new(),
    };
    let help = error.help.as_ref().map(|help| format!(" ({help})")).unwrap_or_default();
    format!("{file}{place}: {}{help}", error.message)
}

/// Line and column of the first use of the field that a message says is unknown: of fields inside functions the compiler
/// does not say where they are.
fn unknown_name(text: &str, message: &str) -> Option<(usize, usize)> {
    let (_, rest) = message.split_once("No field named ")?;
    let end = rest.find(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | '.' | '"'))).unwrap_or(rest.len());
    let name = rest.get(..end)?.trim_end_matches('.').replace('"', "");
    if name.is_empty() {
        return None;
    }
    let mut lines = text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("--"));
    lines.find_map(|(n, line)| line.find(&name).map(|at| (n + 1, line[..at].chars().count() + 1)))
}

/// A metric as policies are checked against it: name, scope, whether early results can raise.
type Known = (String, Scope, bool);

/// What is to be said of policies beside what `check` found.
fn with_conditions(mut findings: Vec<policy::Finding>, set: &PolicySet, known: &[Known]) -> Vec<policy::Finding> {
    let names = known.iter().map(|k| k.0.clone());
    let fields = policy::Fields::new(Arc::clone(&telemetry::schema::SCHEMA), names);
    findings.extend(policy::check_conditions(set, &fields));
    findings.sort();
    findings
}

/// The metrics of terms, or what is wrong with them.
type Compiled = Result<Vec<Known>, Vec<String>>;

/// Judges policies under the terms of a register; remembers the last terms, which seldom change.
#[derive(Default)]
pub struct Judge {
    last: Option<(Terms, Compiled)>,
}

impl Judge {
    /// The faults of the terms, or of these policies under them, in words.
    pub fn faults(&mut self, policies: &[&Policy], terms: &Terms, tuning: &Tuning) -> Vec<String> {
        if self.last.as_ref().is_none_or(|(of, _)| of != terms) {
            let known = Texts::of(terms).map_err(|fault| vec![fault]).and_then(|texts| {
                let loaded = build(&texts, tuning.clone().deciding(&terms.settings))?;
                let known = |m: &Arc<stream::Metric>| (m.name.clone(), scope_of(m.scope), m.query.early());
                Ok(loaded.settings.metrics.iter().map(known).collect())
            });
            self.last = Some((terms.clone(), known));
        }
        match &self.last {
            Some((_, Ok(known))) => {
                let set = PolicySet::of(policies.iter().map(|p| (*p).clone()));
                let findings = with_conditions(policy::check_apart(&set, known), &set, known).into_iter();
                findings.filter(|f| f.severity == Severity::Error).map(|f| f.to_string()).collect()
            }
            Some((_, Err(faults))) => faults.clone(),
            None => Vec::new(),
        }
    }
}

/// Compiles everything. Every fault of every text is in the error, in words.
///
/// # Errors
/// Any fault: a set is taken whole or not at all.
pub fn build(texts: &Texts, tuning: Tuning) -> Result<Loaded, Vec<String>> {
    let mut faults = Vec::new();
    let mut fault = |f: &dyn std::fmt::Display| faults.push(f.to_string());
    let stream = stream::Settings {
        lateness: tuning.lateness,
        max_state_bytes_per_key: tuning.state_bytes,
        max_live_keys: tuning.live_keys,
        ..stream::Settings::default()
    };
    let compiler = stream::Compiler::new(Arc::clone(&telemetry::schema::SCHEMA), &stream);
    let (metrics, errors) =
        stream::parse_metrics(texts.metrics.iter().map(|(n, t)| (n.as_str(), t.as_str())), &compiler);
    errors.iter().for_each(|e| fault(e));
    let metrics: Vec<Arc<stream::Metric>> = metrics.into_iter().map(Arc::new).collect();
    match crate::pipeline::judge::prepare(&texts.thresholds.1) {
        Err(decide::sql::Error::Compile(e)) => fault(&placed(&texts.thresholds, &e)),
        Err(e) => fault(&format!("{}: {e}", texts.thresholds.0)),
        Ok(_) => {}
    }
    match decide::level::prepare(&texts.level.1) {
        Err(decide::sql::Error::Compile(e)) => fault(&placed(&texts.level, &e)),
        Err(e) => fault(&format!("{}: {e}", texts.level.0)),
        Ok(_) => {}
    }
    let members = correlation::compile(&texts.correlation.1);
    let members = members.map_err(|e| fault(&placed(&texts.correlation, &e))).ok();
    let prices = match &texts.prices {
        None => Prices::default(),
        Some((name, text)) => match Prices::from_toml(text, name) {
            Ok(prices) => prices,
            Err(errors) => {
                errors.iter().for_each(|e| fault(e));
                Prices::default()
            }
        },
    };
    let policies = match PolicySet::from_files(&texts.policies) {
        Ok(set) => Some(set),
        Err(errors) => {
            errors.iter().for_each(|e| fault(e));
            None
        }
    };
    let mut findings = Vec::new();
    if let Some(set) = &policies {
        let mut known: Vec<Known> = metrics
            .iter()
            .map(|m: &Arc<stream::Metric>| (m.name.clone(), scope_of(m.scope), m.query.early()))
            .collect();
        // one that does not compile is said above; that its limits name nothing would mislead
        let declared: Vec<_> = texts.metrics.iter().filter_map(|(_, text)| declared(text)).collect();
        known.extend(declared.into_iter().filter(|d| metrics.iter().all(|m| m.name != d.0)));
        findings = with_conditions(policy::check(set, &known, false), set, &known);
        findings.iter().filter(|f| f.severity == Severity::Error).for_each(|f| fault(f));
    }
    let (Some(policies), Some(correlation), true) = (policies, members, faults.is_empty()) else {
        return Err(faults);
    };
    let terms = texts.terms(&tuning);
    let snapshot = Snapshot::new(policies.policies().to_vec(), terms.queries.clone(), &terms.prices, &terms.settings);
    let shape = terms.clone();
    let control = Arc::new(tuning.clone());
    let telemetry = telemetry::Settings { prices: Arc::new(prices), ..tuning.telemetry };
    let settings = Settings {
        metrics,
        thresholds: texts.thresholds.1.clone(),
        level: texts.level.1.clone(),
        correlation,
        snapshot: Arc::new(snapshot),
        terms: Arc::new(shape),
        tuning: control,
        follows: false,
        stream,
        decoder: Arc::new(telemetry),
        dedup: tuning.dedup,
        run_retention: tuning.run_retention,
        idle_timeout: tuning.idle_timeout,
        alerting: tuning.alerting,
        acting: tuning.acting,
        breaker: tuning.breaker,
        blindness: tuning.blindness,
        inputs: tuning.inputs,
        source: tuning.source,
        finals: false,
        event_clock: false,
        future_at: None,
    };
    Ok(Loaded { settings, policies, findings })
}
