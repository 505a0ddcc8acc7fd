//! From files to the settings of a core: queries, policies, prices. Every fault of every file is collected and reported together.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::cli::Failure;
use crate::cli::unmatched::Policies;
use crate::config::{self, Config, micros};
use crate::decide::blindness::Bounds;
use crate::decide::breaker::Share;
use crate::decide::commands::Keyring;
use crate::decide::interventions::Acting;
use crate::decide::level::{self, Leveling};
use crate::decide::records::{Level as PolicyLevel, LevelThresholds};
use crate::decide::respond::Responding;
use crate::kafka::{ClientSettings, GroupProtocol, ShellConfig, Topics};
use crate::pipeline::terms;
pub use crate::pipeline::terms::{Loaded, Text, Texts, Tuning};
use crate::pipeline::{Alerting, InputNames};
use crate::policy::{LimitStatus, Mode, Snapshot, Status};

/// Deepest folder level read below a directory of queries or policies.
const MAX_DEPTH: usize = 4;
/// Largest query, policy or price file.
const MAX_FILE: u64 = 4 << 20;

/// Reading [`Texts`] from where they are.
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
            // a folder of queries from before this one has none
            level: match queries.join("decide/level.sql") {
                path if path.exists() => file(&path)?,
                path => (path.display().to_string(), level::SHIPPED.to_owned()),
            },
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
            level: owned(&("queries/decide/level.sql", level::SHIPPED)),
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

/// A policy file that a command carries.
pub(super) fn text(path: &Path) -> Result<Text, Failure> {
    file(path)
}

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

/// All files below `path` with one of these extensions, in name order; what is hidden (`.name`) is left out.
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
        let entry = entry.map_err(failed)?;
        // a volume of Kubernetes keeps each file a second time below `..data`
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let entry = entry.path();
        let wanted = entry.extension().and_then(|e| e.to_str()).is_some_and(|e| extensions.contains(&e));
        if entry.is_dir() && depth < MAX_DEPTH {
            walk(&entry, extensions, depth + 1, found)?;
        } else if wanted && entry.is_file() {
            found.push(entry);
        }
    }
    Ok(())
}

/// The policies of a snapshot that should have an effect, by (tenant, id).
pub(super) fn in_force(snapshot: &Snapshot) -> Policies {
    let active = snapshot.policies().iter().filter(|p| {
        p.status == Status::Active
            && p.enforcement_mode != Mode::Disabled
            && p.limits.iter().any(|l| l.status == LimitStatus::Active)
    });
    active.map(|p| (p.tenant.clone(), p.id.clone())).collect()
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
        alerting: Alerting {
            keep_firing_for: micros(config.alerts.keep_firing_for),
            external_timeout: micros(config.alerts.external_timeout),
        },
        acting: Acting {
            approve_within: micros(config.interventions.approve_within),
            acknowledge_within: micros(config.interventions.acknowledge_within),
            complete_within: micros(config.interventions.complete_within),
            escalate: config.interventions.escalate,
            stop_grace: micros(config.limits.stop_grace),
            kept: micros(config.limits.tombstone_retention),
            cascade_depth: config.limits.cascade_depth,
            agents_kept: micros(config.limits.agent_retention),
        },
        blindness: Bounds {
            lag: micros(config.blindness.lag),
            silence: micros(config.blindness.silence),
            late_percent: config.blindness.late_percent,
            late_rows: config.blindness.late_rows,
        },
        breaker: Share { percent: config.breaker.percent, runs: config.breaker.runs },
        telemetry: config.decoder(Arc::default()),
        inputs: InputNames {
            telemetry: config.topics.telemetry.as_str().into(),
            repartition: config.topics.repartition.as_str().into(),
            outcomes: config.topics.outcomes.as_str().into(),
            commands: config.topics.commands.as_str().into(),
        },
        source: format!("urn:runwarden:{}", config.kafka.group),
        leveling: leveling(&config.level),
        responding: Responding {
            auto_apply: config.respond.auto_apply,
            max_responses: config.respond.max_responses,
            max_unlocks: config.respond.max_unlocks,
            actions: config.respond.actions.iter().map(|a| (a.name.clone(), level_of(a.level))).collect(),
        },
        keys: Arc::new(keyring(config)),
    }
}

fn level_of(level: config::ActionLevel) -> PolicyLevel {
    match level {
        config::ActionLevel::Red => PolicyLevel::Red,
        config::ActionLevel::Yellow => PolicyLevel::Yellow,
    }
}

/// `[level]`, as decisions depend on it.
fn leveling(level: &config::Level) -> Leveling {
    Leveling {
        thresholds: LevelThresholds {
            red_integrity: level.red_integrity.as_f64(),
            red_consensus: level.red_consensus.as_f64(),
            red_responses: level.red_responses.into(),
            yellow_integrity: level.yellow_integrity.as_f64(),
            yellow_consensus: level.yellow_consensus.as_f64(),
            yellow_reputation: level.yellow_reputation.as_f64(),
            yellow_responses: level.yellow_responses.into(),
        },
        max_age: micros(level.max_age),
    }
}

/// The keys of `[[auth.keys]]`.
pub(super) fn keyring(config: &Config) -> Keyring {
    let mut keys = Keyring::default();
    for key in &config.auth.keys {
        keys.add(key.id.clone(), key.secret.expose().as_bytes(), key.authority);
    }
    keys
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

/// What is traced of a shell's steps; `None`: nothing.
pub(super) fn traces(config: &Config, shell: &ShellConfig) -> Option<crate::traces::Settings> {
    let traces = &config.traces;
    Some(crate::traces::Settings {
        endpoint: traces.endpoint.clone()?,
        headers: traces.headers.clone(),
        timeout: traces.timeout,
        share: traces.sample,
        decided_per_second: traces.decided_per_second,
        group: shell.group.clone(),
        topic: shell.topics.telemetry.clone(),
        instance: shell.slot.clone(),
    })
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

/// Compiles everything. Every fault of every file is in the error.
pub fn build(texts: &Texts, tuning: Tuning) -> Result<Loaded, Failure> {
    terms::build(texts, tuning).map_err(|faults| {
        let lines: Vec<String> = faults.iter().map(|f| format!("  {f}")).collect();
        Failure::Invalid(format!("the configuration is refused:\n{}", lines.join("\n")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_that_users_actions_must_not_have_are_those_of_our_own() {
        let ours: Vec<&str> = crate::decide::respond::ACTIONS.iter().map(|(name, _)| *name).collect();
        assert_eq!(ours, config::OWN_ACTIONS);
    }

    #[cfg(unix)]
    #[test]
    fn a_mounted_volume_of_kubernetes_is_read_once() {
        let volume = tempfile::tempdir().unwrap();
        let version = volume.path().join("..2026_08_01_12_00_00.1");
        fs::create_dir(&version).unwrap();
        fs::write(version.join("runs.yaml"), "id: a").unwrap();
        std::os::unix::fs::symlink("..2026_08_01_12_00_00.1", volume.path().join("..data")).unwrap();
        std::os::unix::fs::symlink("..data/runs.yaml", volume.path().join("runs.yaml")).unwrap();
        let read = directory(volume.path(), &["yaml"]).unwrap();
        let [(name, text)] = read.as_slice() else { panic!("{read:?}") };
        assert_eq!((name.as_str(), text.as_str()), (volume.path().join("runs.yaml").to_str().unwrap(), "id: a"));
    }
}
