//! From files to the settings of a core: queries, policies, prices. Every fault of every file is collected and reported together.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::cli::Failure;
use crate::cli::unmatched::Policies;
use crate::clock::Micros;
use crate::config::{self, Config, micros};
use crate::decide::{self, correlation};
use crate::kafka::{ClientSettings, GroupProtocol, ShellConfig, Topics};
use crate::pipeline::partition::scope_of;
use crate::pipeline::{InputNames, Settings};
use crate::policy::{self, LimitStatus, Mode, PolicySet, Scope, Severity, Snapshot, Status};
use crate::stream;
use crate::telemetry::{self, Prices};

/// Deepest folder level read below a directory of queries or policies.
const MAX_DEPTH: usize = 4;
/// Largest query, policy or price file.
const MAX_FILE: u64 = 4 << 20;

/// A text file: (name as shown in errors, content).
pub type Text = (String, String);

/// The files a core is made from.
#[derive(Debug, Clone)]
pub struct Texts {
    /// `queries/metrics/*.sql`
    pub metrics: Vec<Text>,
    /// `queries/decide/thresholds.sql`
    pub thresholds: Text,
    /// `queries/decide/correlation.sql`
    pub correlation: Text,
    /// `config/policies/**/*.{yaml,yml,json}`
    pub policies: Vec<Text>,
    /// `config/prices.toml`; `None`: no price table
    pub prices: Option<Text>,
}

impl Texts {
    /// Reads them. `prices` may be missing: then cost is what events report, or unknown.
    pub fn read(queries: &Path, policies: &Path, prices: &Path) -> Result<Self, Failure> {
        let policies = directory(policies, &["yaml", "yml", "json"])?;
        Ok(Self { policies, ..Self::without_policies(queries, prices)? })
    }

    /// Queries and prices only.
    pub(super) fn without_policies(queries: &Path, prices: &Path) -> Result<Self, Failure> {
        Ok(Self {
            metrics: directory(&queries.join("metrics"), &["sql"])?,
            thresholds: file(&queries.join("decide/thresholds.sql"))?,
            correlation: file(&queries.join("decide/correlation.sql"))?,
            policies: Vec::new(),
            prices: if prices.exists() { Some(file(prices)?) } else { None },
        })
    }

    /// The shipped queries and prices with the demo's policies, compiled in: the demo needs no files.
    pub fn demo() -> Self {
        let owned = |(name, text): &(&str, &str)| ((*name).to_owned(), (*text).to_owned());
        Self {
            metrics: METRICS.iter().map(owned).collect(),
            thresholds: owned(&("queries/decide/thresholds.sql", include_str!("../../queries/decide/thresholds.sql"))),
            correlation: owned(&(
                "queries/decide/correlation.sql",
                include_str!("../../queries/decide/correlation.sql"),
            )),
            policies: crate::demo::policies::FILES.iter().map(owned).collect(),
            prices: Some(owned(&("config/prices.toml", include_str!("../../config/prices.toml")))),
        }
    }
}

macro_rules! shipped {
    ($($name:literal)*) => {
        &[$((
            concat!("queries/metrics/", $name, ".sql"),
            include_str!(concat!("../../queries/metrics/", $name, ".sql")),
        )),*]
    };
}

/// The default metrics.
const METRICS: &[(&str, &str)] = shipped!(
    "run_tokens" "run_cost_usd" "run_steps" "run_risk_max" "latency_p95_ms" "agent_tokens_1m" "agent_failures_5m"
    "agent_anomaly_max_5m" "api_key_requests_1m" "human_tokens_1d" "tenant_tokens_5m" "tenant_cost_usd_1d"
    "tenant_runs_1h" "provider_cost_usd_1h"
);

fn file(path: &Path) -> Result<Text, Failure> {
    let name = path.display().to_string();
    let failed = |e: std::io::Error| Failure::Invalid(format!("cannot read {name}: {e}"));
    let length = fs::metadata(path).map_err(failed)?.len();
    if length > MAX_FILE {
        return Err(Failure::Invalid(format!("{name} has {length} bytes; at most {MAX_FILE} are read")));
    }
    let text = fs::read_to_string(path).map_err(failed)?;
    Ok((name, text))
}

/// One file, whatever its extension, or all files below a directory with one of these.
pub(super) fn files(path: &Path, extensions: &[&str]) -> Result<Vec<Text>, Failure> {
    if path.is_file() { Ok(vec![file(path)?]) } else { directory(path, extensions) }
}

/// All files below `path` with one of these extensions, in name order.
fn directory(path: &Path, extensions: &[&str]) -> Result<Vec<Text>, Failure> {
    let mut found = Vec::new();
    walk(path, extensions, 0, &mut found)?;
    found.sort();
    if found.is_empty() {
        let wanted = extensions.join(" or .");
        return Err(Failure::Invalid(format!("{} holds no .{wanted} file", path.display())));
    }
    found.iter().map(|p| file(p)).collect()
}

fn walk(path: &Path, extensions: &[&str], depth: usize, found: &mut Vec<PathBuf>) -> Result<(), Failure> {
    let failed = |e: std::io::Error| Failure::Invalid(format!("cannot read {}: {e}", path.display()));
    for entry in fs::read_dir(path).map_err(failed)? {
        let entry = entry.map_err(failed)?.path();
        let wanted = entry.extension().and_then(|e| e.to_str()).is_some_and(|e| extensions.contains(&e));
        if entry.is_dir() && depth < MAX_DEPTH {
            walk(&entry, extensions, depth + 1, found)?;
        } else if wanted && entry.is_file() {
            found.push(entry);
        }
    }
    Ok(())
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

impl Loaded {
    /// The policies that should have an effect, by (tenant, id).
    pub(super) fn in_force(&self) -> Policies {
        let active = self.policies.policies().iter().filter(|p| {
            p.status == Status::Active
                && p.enforcement_mode != Mode::Disabled
                && p.limits.iter().any(|l| l.status == LimitStatus::Active)
        });
        active.map(|p| (p.tenant.clone(), p.id.clone())).collect()
    }
}

/// Times and bounds, from the configuration.
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
    /// `[telemetry]` and bounds; prices are added
    pub telemetry: telemetry::Settings,
    /// `[topics]`
    pub inputs: InputNames,
    /// CloudEvents source.
    pub source: String,
}

/// The default configuration's.
pub fn defaults() -> Tuning {
    tuning(&Config::default())
}

/// Those of a configuration.
pub fn tuning(config: &Config) -> Tuning {
    Tuning {
        lateness: micros(config.time.allowed_lateness),
        idle_timeout: micros(config.time.idle_timeout),
        dedup: (micros(config.time.dedup_horizon), config.limits.dedup_ids),
        state_bytes: config.limits.list_state_bytes,
        live_keys: config.limits.live_keys,
        run_retention: micros(config.limits.run_retention),
        telemetry: config.decoder(Arc::default()),
        inputs: InputNames {
            telemetry: config.topics.telemetry.as_str().into(),
            repartition: config.topics.repartition.as_str().into(),
            outcomes: config.topics.outcomes.as_str().into(),
        },
        source: format!("urn:runwarden:{}", config.kafka.group),
    }
}

/// Reads the configuration file and the environment.
pub(super) fn config(path: Option<&Path>) -> Result<Config, Failure> {
    Config::load(path, std::env::vars()).map_err(|faults| {
        let lines: Vec<String> = faults.iter().map(|f| format!("  {f}")).collect();
        Failure::Invalid(format!("the configuration is refused:\n{}", lines.join("\n")))
    })
}

/// Reads the files that a configuration names.
pub(super) fn texts(config: &Config) -> Result<Texts, Failure> {
    Texts::read(&config.paths.queries, &config.paths.policies, &config.paths.prices)
}

/// The shell's settings as a configuration wants them.
pub(super) fn shell(config: &Config) -> ShellConfig {
    let (k, t, l) = (&config.kafka, &config.topics, &config.limits);
    let mut client = ClientSettings::new(k.brokers.clone());
    client.properties = k.client.iter().map(|(name, value)| (name.clone(), value.expose().to_owned())).collect();
    let topics = Topics {
        telemetry: t.telemetry.clone(),
        commands: t.commands.clone(),
        outcomes: t.outcomes.clone(),
        signals: t.signals.clone(),
        alerts: t.alerts.clone(),
        interventions: t.interventions.clone(),
        runs: t.runs.clone(),
        lessons: t.lessons.clone(),
        policies: t.policies.clone(),
        policy_level: t.policy_level.clone(),
        evaluations: t.evaluations.clone(),
        audit: t.audit.clone(),
        command_results: t.command_results.clone(),
        live: t.live.clone(),
        dead_letter: t.dead_letter.clone(),
        repartition: t.repartition.clone(),
        steps: t.steps.clone(),
        checkpoint: t.checkpoint.clone(),
        partitions: t.partitions,
        replication: t.replication,
    };
    let slot = k.slot.clone().unwrap_or_else(host_name);
    let mut shell = ShellConfig::new(client, k.group.clone(), slot, topics);
    shell.static_membership = k.slot.is_some();
    shell.group_protocol = match k.group_protocol {
        config::GroupProtocol::Classic => GroupProtocol::Classic,
        config::GroupProtocol::Consumer => GroupProtocol::Consumer,
    };
    shell.commit_interval = k.commit_interval;
    shell.checkpoint_interval = k.checkpoint_interval;
    shell.max_step_records = l.step_records;
    shell.max_step_bytes = l.step_bytes;
    shell.max_transaction_bytes = l.transaction_bytes;
    shell.max_transaction_records = l.transaction_records;
    shell
}

/// Stable over restarts of a container or pod, unless it gets another name.
fn host_name() -> String {
    let read = |path: &str| fs::read_to_string(path).ok().map(|n| n.trim().to_owned()).filter(|n| !n.is_empty());
    std::env::var("HOSTNAME")
        .ok()
        .filter(|n| !n.is_empty())
        .or_else(|| read("/etc/hostname"))
        .unwrap_or_else(|| "0".into())
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

/// Compiles everything. Every fault of every file is in the error.
pub fn build(texts: &Texts, tuning: Tuning) -> Result<Loaded, Failure> {
    let mut faults = String::new();
    let mut fault = |f: &dyn std::fmt::Display| {
        // writing to a String cannot fail
        writeln!(faults, "  {f}").unwrap_or_default();
    };
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
        let mut known: Vec<(String, Scope, bool)> = metrics
            .iter()
            .map(|m: &Arc<stream::Metric>| (m.name.clone(), scope_of(m.scope), m.query.early()))
            .collect();
        // one that does not compile is said above; that its limits name nothing would mislead
        let declared: Vec<_> = texts.metrics.iter().filter_map(|(_, text)| declared(text)).collect();
        known.extend(declared.into_iter().filter(|d| metrics.iter().all(|m| m.name != d.0)));
        findings = policy::check(set, &known, false);
        let names = metrics.iter().map(|m| m.name.clone());
        let fields = policy::Fields::new(Arc::clone(&telemetry::schema::SCHEMA), names);
        findings.extend(policy::check_conditions(set, &fields));
        findings.sort();
        findings.iter().filter(|f| f.severity == Severity::Error).for_each(|f| fault(f));
    }
    let (Some(policies), Some(correlation), true) = (policies, members, faults.is_empty()) else {
        return Err(Failure::Invalid(format!("the configuration is refused:\n{}", faults.trim_end())));
    };
    let price_text = texts.prices.as_ref().map(|(_, t)| t.as_str()).unwrap_or_default();
    let snapshot = Snapshot::new(
        policies.policies().to_vec(),
        texts.metrics.iter().chain([&texts.thresholds, &texts.correlation]).cloned().collect(),
        price_text,
        &format!("{:?}", (tuning.lateness, tuning.idle_timeout, tuning.dedup)),
    );
    let telemetry = telemetry::Settings { prices: Arc::new(prices), ..tuning.telemetry };
    let settings = Settings {
        metrics,
        thresholds: texts.thresholds.1.clone(),
        correlation,
        snapshot: Arc::new(snapshot),
        stream,
        decoder: Arc::new(telemetry),
        dedup: tuning.dedup,
        run_retention: tuning.run_retention,
        idle_timeout: tuning.idle_timeout,
        inputs: tuning.inputs,
        source: tuning.source,
        finals: false,
        event_clock: false,
        future_at: None,
    };
    Ok(Loaded { settings, policies, findings })
}
