//! Where every metric is declared, built against a registry handed in.
//!
//! Invariants: names are `runwarden_<noun>_<unit>[_total]` in base units (seconds, bytes); labels come from the closed enums of
//! [`labels`], from configured metric names (bounded, the rest is `other`) or are partition numbers, so an id, a tenant or a
//! model name can never become a label; every counter stands at 0 for its known labels from the start. What is counted of
//! [`panels`] and [`otlp`] has the names of its own that operators know: `panel_…`, `otlp_…`.

pub mod channels;
pub mod family;
mod holdings;
pub mod http;
pub mod labels;
pub mod otlp;
pub mod panels;
pub mod traces;

pub use self::holdings::Held;

use std::sync::{Arc, Mutex, PoisonError};

use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, IntCounter, IntGauge, Opts, Registry, Result, TextEncoder,
};

use crate::clock::{Micros, SECOND};

use self::family::{
    AgesByPartition, CountersByMetric, Family, Family2, Gauges, GaugesByMetric, GaugesByPartition, Names,
};
use self::labels::{
    AlertStatus, BlindCause, CommandStatus, DeadLetterReason, Effect, Input, InterventionType, LessonType, Mode,
    Output, Role, SetOutcome, SignalKind, SqlEnded, SqlLogin, TableName, TransactionOutcome, Untabled, Verdict,
};

/// Upper bounds of latency buckets in seconds: 1 ms to 10 s, closest around the bars (20, 40 and 150 ms).
const LATENCY: &[f64] = &[0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Upper bounds of step duration buckets in seconds: a step is one poll batch.
const STEP: &[f64] = &[0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0];
/// Upper bounds of restore duration buckets in seconds: the bars are 5 s (same slot), 20 s (a million runs), 30 s (takeover).
const RESTORE: &[f64] = &[0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 300.0];

/// The version this binary was built as.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The source revision this binary was built from (`RUNWARDEN_GIT_SHA` at build time), `unknown` when it was not given.
pub fn revision() -> &'static str {
    option_env!("RUNWARDEN_GIT_SHA").unwrap_or("unknown")
}

/// All metrics of one process. Cheap to update from any thread; share it in an [`Arc`].
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    names: Arc<Names>,
    holdings: holdings::Holdings,
    config: GaugeVec,
    config_hash: Mutex<String>,

    /// Records consumed, by input topic.
    pub input_records: Family<Input>,
    /// Bytes consumed (keys and values), by input topic.
    pub input_bytes: Family<Input>,
    /// Telemetry records decoded into events.
    pub decoded: IntCounter,
    /// Records sent to the dead-letter topic, by reason.
    pub dead_letters: Family<DeadLetterReason>,
    /// Records found on a partition that is not their tenant's and re-keyed.
    pub rekeyed: IntCounter,
    /// Events whose id was seen within the horizon and which therefore did not count again.
    pub duplicates: IntCounter,
    /// Rows too late for at least one window, by metric.
    pub late_rows: CountersByMetric,
    /// Windows open now, by metric; set by [`Metrics::hold`].
    pub windows_open: GaugesByMetric,
    /// Windows closed with a final result, by metric.
    pub windows_closed: CountersByMetric,
    /// Early results given to the thresholds, by metric.
    pub early_results: CountersByMetric,
    /// Signals, by kind and enforcement mode.
    pub signals: Family2<SignalKind, Mode>,
    /// Interventions, by type and whether they were enforced or shadow.
    pub interventions: Family2<InterventionType, Effect>,
    /// Alert records, by status.
    pub alerts: Family<AlertStatus>,
    /// Records appended to the audit topic.
    pub audit: IntCounter,
    /// Events that no policy covered.
    pub uncovered_events: IntCounter,
    /// Policies in force that have matched nothing so far.
    pub unmatched_policies: IntGauge,
    /// Commands answered by the partitions of this process, by status.
    pub commands: Family<CommandStatus>,
    /// Lessons made, by type.
    pub lessons: Family<LessonType>,
    /// Lessons that could not be recorded, by type.
    pub lessons_failed: Family<LessonType>,
    /// Policies that the breaker put in shadow.
    pub breakers_tripped: IntCounter,
    /// Tenants that became blind, by cause.
    pub blindness: Family<BlindCause>,
    /// Tenants that are blind now, by cause; set by [`Metrics::hold`].
    pub blind_tenants: Gauges<BlindCause>,
    /// Verdicts given, by what they said.
    pub verdicts: Family<Verdict>,
    /// Scopes of which verdicts are known.
    pub verdict_scopes: IntGauge,
    /// Records about scopes beyond the most that are known.
    pub verdict_refused: IntCounter,
    /// Rows of tables that are in memory.
    pub table_rows: Gauges<TableName>,
    /// Records that are in no table.
    pub untabled: Family<Untabled>,
    /// Files of rows that are sealed.
    pub sealed_files: IntGauge,
    /// Their bytes.
    pub sealed_bytes: IntGauge,
    /// Times that rows could not be sealed.
    pub seal_failures: IntCounter,
    /// Connections of SQL now.
    pub sql_connections: IntGauge,
    /// Connections of SQL, by what became of them.
    pub sql_logins: Family<SqlLogin>,
    /// Statements of SQL, by how they ended.
    pub sql_statements: Family<SqlEnded>,
    /// Rows sent by SQL.
    pub sql_rows: IntCounter,
    /// What is counted of panels.
    pub panels: panels::Panels,
    /// What is counted of OTLP.
    pub otlp: otlp::Otlp,
    /// HTTP.
    pub http: http::Http,
    /// What is counted of channels.
    pub channels: channels::Channels,
    /// What is counted of traces.
    pub traces: traces::Traces,
    /// Sets of files that this process read, by what became of them.
    pub policy_sets: Family<SetOutcome>,
    /// Revision of the policies in force, as followed; 0 before any.
    pub policy_revision: IntGauge,
    /// Generation of the set in force, as followed.
    pub policy_generation: IntGauge,
    /// Records produced, by output topic.
    pub output_records: Family<Output>,
    /// From an event's time to the decision about it. See [`Metrics::observe`].
    pub event_to_decision: Histogram,
    /// From the broker's timestamp of a transaction's oldest record to its commit. See [`Metrics::observe`].
    pub event_to_commit: Histogram,
    /// Records of the telemetry topic not yet processed, by owned partition.
    pub lag: GaugesByPartition,
    /// By how much the last processed telemetry record of an owned partition is older than the newest; 0 at the end.
    pub lag_age: AgesByPartition,
    /// Oldest watermark among live tenants, as an age in seconds; set by [`Metrics::hold`].
    pub watermark_age: Gauge,
    /// Transactions, by outcome.
    pub transactions: Family<TransactionOutcome>,
    /// Steps (poll batches) processed, replay excluded.
    pub steps: IntCounter,
    /// Time a step took in the core, seconds.
    pub step_duration: Histogram,
    /// Time from assignment of a partition to its first new step, seconds.
    pub restore_duration: Histogram,
    /// Checkpoint records read back by restores.
    pub restored_records: IntCounter,
    /// Steps run again by restores.
    pub replayed_steps: IntCounter,
    /// Steps whose replayed decisions differ from the recorded ones (same core version): must stay 0.
    pub replay_mismatches: IntCounter,
    /// Recoveries that could not be exact, because recorded input or steps were gone: an alarm.
    pub history_gone: IntCounter,
    /// Checkpointed keys refused by a restore (another version, a damaged value); the rest stays usable.
    pub refused_keys: IntCounter,
    /// Partitions taken without notice; their uncommitted work was dropped unseen.
    pub lost_partitions: IntCounter,
    /// Checkpoints written.
    pub checkpoints: IntCounter,
    /// Records written to the checkpoint topic.
    pub checkpoint_records: IntCounter,
    /// Bytes written to the checkpoint topic (keys and values).
    pub checkpoint_bytes: IntCounter,
    /// Bytes written to the steps topic.
    pub step_bytes: IntCounter,
    /// Bytes of state held, all owned partitions; set by [`Metrics::hold`].
    pub state_bytes: IntGauge,
    /// Keys (runs, agents, windows …) live in the state, all owned partitions; set by [`Metrics::hold`].
    pub live_keys: IntGauge,
    /// Rows that some windows refused because their tenant has too many live keys.
    pub key_overflow_rows: IntCounter,
    /// Rows of windows on their way to a limit that the live topic does not show, because there are too many.
    pub live_unshown: IntCounter,
    /// Tenants that have too many live keys now, all owned partitions; set by [`Metrics::hold`].
    pub tenants_overflowed: IntGauge,
    /// Runs forgotten before their time because their tenant had too many.
    pub forgotten_runs: IntCounter,
    /// Event ids forgotten before their time because there were too many.
    pub forgotten_ids: IntCounter,
    /// 1 for each role this process plays, 0 for the others.
    pub roles: Gauges<Role>,
    /// Times the Kafka clients were rebuilt after a fatal error.
    pub restarts: IntCounter,
}

impl Metrics {
    /// Declares every metric in `registry`, with series at 0 for all known labels and for the configured `metrics` names.
    ///
    /// # Errors
    /// When the registry already holds a metric of the same name.
    pub fn register(registry: &Registry, metrics: &[&str]) -> Result<Self> {
        let r = registry;
        let names = Arc::new(Names::default());
        let n = &names;
        let built = Self {
            registry: registry.clone(),
            holdings: holdings::Holdings::default(),
            config: gauge_vec(
                r,
                "runwarden_config_info",
                "Always 1; the hash of the configuration in force",
                &["hash"],
            )?,
            config_hash: Mutex::new(String::new()),
            input_records: Family::register(r, "runwarden_input_records_total", "Records consumed")?,
            input_bytes: Family::register(r, "runwarden_input_bytes_total", "Bytes consumed, keys and values")?,
            decoded: counter(r, "runwarden_decoded_records_total", "Telemetry records decoded into events")?,
            dead_letters: Family::register(
                r,
                "runwarden_dead_letter_records_total",
                "Records sent to the dead-letter topic",
            )?,
            rekeyed: counter(r, "runwarden_rekeyed_records_total", "Records re-keyed to their tenant's partition")?,
            duplicates: counter(r, "runwarden_duplicate_records_total", "Events not counted again")?,
            late_rows: CountersByMetric::register(
                r,
                n,
                "runwarden_late_rows_total",
                "Rows too late for at least one window",
            )?,
            windows_open: GaugesByMetric::register(r, n, "runwarden_open_windows", "Windows open now")?,
            windows_closed: CountersByMetric::register(
                r,
                n,
                "runwarden_closed_windows_total",
                "Windows closed with a final result",
            )?,
            early_results: CountersByMetric::register(
                r,
                n,
                "runwarden_early_results_total",
                "Results given before their window closed",
            )?,
            signals: Family2::register(r, "runwarden_signals_total", "Signals: near, breach and resolved")?,
            interventions: Family2::register(r, "runwarden_interventions_total", "Interventions issued or shadowed")?,
            alerts: Family::register(r, "runwarden_alerts_total", "Alert records")?,
            audit: counter(r, "runwarden_audit_records_total", "Records appended to the audit topic")?,
            uncovered_events: counter(r, "runwarden_uncovered_events_total", "Events that no policy covered")?,
            unmatched_policies: gauge(
                r,
                "runwarden_unmatched_policies",
                "Policies in force that have matched nothing so far",
            )?,
            commands: Family::register(r, "runwarden_commands_total", "Commands answered")?,
            lessons: Family::register(r, "runwarden_lessons_total", "Lessons made")?,
            lessons_failed: Family::register(
                r,
                "runwarden_lessons_creation_failed_total",
                "Lessons that could not be recorded",
            )?,
            breakers_tripped: counter(r, "runwarden_breakers_tripped_total", "Policies put in shadow by the breaker")?,
            blindness: Family::register(
                r,
                "runwarden_blindness_total",
                "Times a tenant became blind: its policies are UNKNOWN",
            )?,
            blind_tenants: Gauges::register(r, "runwarden_blind_tenants", "Tenants that are blind now")?,
            verdicts: Family::register(r, "runwarden_verdicts_total", "Verdicts given")?,
            verdict_scopes: gauge(r, "runwarden_verdict_scopes", "Scopes of which verdicts are known")?,
            verdict_refused: counter(
                r,
                "runwarden_verdict_refused_total",
                "Records about scopes beyond the most that are known",
            )?,
            table_rows: Gauges::register(r, "runwarden_table_rows", "Rows of tables in memory")?,
            untabled: Family::register(r, "runwarden_untabled_total", "Records that are in no table")?,
            sealed_files: gauge(r, "runwarden_sealed_files", "Files of rows that are sealed")?,
            sealed_bytes: gauge(r, "runwarden_sealed_bytes", "Bytes of the files of rows that are sealed")?,
            seal_failures: counter(r, "runwarden_seal_failures_total", "Times that rows could not be sealed")?,
            sql_connections: gauge(r, "runwarden_sql_connections", "Connections of SQL now")?,
            sql_logins: Family::register(r, "runwarden_sql_logins_total", "Connections of SQL")?,
            sql_statements: Family::register(r, "runwarden_sql_statements_total", "Statements of SQL")?,
            sql_rows: counter(r, "runwarden_sql_rows_total", "Rows sent by SQL")?,
            panels: panels::Panels::register(r)?,
            otlp: otlp::Otlp::register(r)?,
            http: http::Http::register(r)?,
            channels: channels::Channels::register(r)?,
            traces: traces::Traces::register(r)?,
            policy_sets: Family::register(r, "runwarden_policy_sets_total", "Sets of files read by this process")?,
            policy_revision: gauge(r, "runwarden_policy_revision", "Revision of the policies in force, 0 before any")?,
            policy_generation: gauge(r, "runwarden_policy_generation", "Generation of the set of files in force")?,
            output_records: Family::register(r, "runwarden_output_records_total", "Records produced")?,
            event_to_decision: histogram(
                r,
                "runwarden_event_to_decision_seconds",
                "From the event's time to the decision about it",
                LATENCY,
            )?,
            event_to_commit: histogram(
                r,
                "runwarden_event_to_commit_seconds",
                "From the broker's timestamp of a transaction's oldest record to its commit",
                LATENCY,
            )?,
            lag: GaugesByPartition::register(
                r,
                "runwarden_consumer_lag_records",
                "Telemetry records not yet processed, by owned partition",
            )?,
            lag_age: AgesByPartition::register(
                r,
                "runwarden_consumer_lag_seconds",
                "Broker's clock minus the time of the last processed record, 0 at the end, by owned partition",
            )?,
            watermark_age: float_gauge(
                r,
                "runwarden_watermark_age_seconds",
                "Age of the oldest watermark among live tenants",
            )?,
            transactions: Family::register(r, "runwarden_transactions_total", "Transactions")?,
            steps: counter(r, "runwarden_steps_total", "Steps (poll batches) processed")?,
            step_duration: histogram(r, "runwarden_step_duration_seconds", "Time a step took in the core", STEP)?,
            restore_duration: histogram(
                r,
                "runwarden_restore_duration_seconds",
                "From assignment of a partition to its first new step",
                RESTORE,
            )?,
            restored_records: counter(r, "runwarden_restored_records_total", "Checkpoint records read back")?,
            replayed_steps: counter(r, "runwarden_replayed_steps_total", "Steps run again by restores")?,
            replay_mismatches: counter(
                r,
                "runwarden_replay_mismatches_total",
                "Replayed steps whose decisions differ from the recorded ones",
            )?,
            history_gone: counter(
                r,
                "runwarden_inexact_restores_total",
                "Restores that could not be exact because recorded history was gone",
            )?,
            refused_keys: counter(r, "runwarden_refused_state_keys_total", "Checkpointed keys refused by a restore")?,
            lost_partitions: counter(r, "runwarden_lost_partitions_total", "Partitions taken without notice")?,
            checkpoints: counter(r, "runwarden_checkpoints_total", "Checkpoints written")?,
            checkpoint_records: counter(r, "runwarden_checkpoint_records_total", "Checkpoint records written")?,
            checkpoint_bytes: counter(r, "runwarden_checkpoint_bytes_total", "Checkpoint bytes written")?,
            step_bytes: counter(r, "runwarden_step_record_bytes_total", "Bytes of step records written")?,
            state_bytes: gauge(r, "runwarden_state_bytes", "State held by the owned partitions")?,
            live_keys: gauge(r, "runwarden_live_keys", "Keys live in the state of the owned partitions")?,
            key_overflow_rows: counter(
                r,
                "runwarden_key_overflow_rows_total",
                "Rows refused by some windows because their tenant has too many live keys",
            )?,
            live_unshown: counter(
                r,
                "runwarden_live_unshown_rows_total",
                "Rows of windows on their way to a limit that runwarden.live does not show, because there are too many",
            )?,
            tenants_overflowed: gauge(r, "runwarden_tenants_overflowed", "Tenants that have too many live keys now")?,
            forgotten_runs: counter(
                r,
                "runwarden_forgotten_runs_total",
                "Runs forgotten before their time because their tenant had too many",
            )?,
            forgotten_ids: counter(
                r,
                "runwarden_forgotten_event_ids_total",
                "Event ids forgotten before their time because there were too many",
            )?,
            roles: Gauges::register(
                r,
                "runwarden_role_enabled",
                "1 for each role this process plays, 0 for the others",
            )?,
            restarts: counter(
                r,
                "runwarden_client_restarts_total",
                "Times the Kafka clients were rebuilt after a fatal error",
            )?,
            names,
        };
        gauge(r, "runwarden_up", "Always 1 while the process runs")?.set(1);
        gauge_vec(r, "runwarden_build_info", "Always 1; what this binary was built from", &["version", "revision"])?
            .with_label_values(&[VERSION, revision()])
            .set(1.0);
        built.set_metric_names(metrics);
        Ok(built)
    }

    /// Admits configured metric names (also after a reload) and starts their series at 0. Names stay once admitted; beyond
    /// [`family::MAX_NAMES`] they are counted under [`family::OTHER`].
    pub fn set_metric_names(&self, metrics: &[&str]) {
        for name in self.names.admit(metrics) {
            self.late_rows.start(name);
            self.windows_open.start(name);
            self.windows_closed.start(name);
            self.early_results.start(name);
        }
    }

    /// Shows the hash of the configuration in force in place of the one before.
    pub fn set_config_hash(&self, hash: &str) {
        let mut current = self.config_hash.lock().unwrap_or_else(PoisonError::into_inner);
        self.config.reset();
        self.config.with_label_values(&[hash]).set(1.0);
        hash.clone_into(&mut current);
    }

    /// The hash set last, empty before the first.
    pub fn config_hash(&self) -> String {
        self.config_hash.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Records a duration in microseconds in a histogram of seconds. An event ahead of the clock counts as 0.
    pub fn observe(histogram: &Histogram, duration: Micros) {
        histogram.observe(seconds(duration.max(0)));
    }

    /// Sets the watermark age from microseconds.
    pub fn set_watermark_age(&self, age: Micros) {
        self.watermark_age.set(seconds(age.max(0)));
    }

    /// Everything in the registry as Prometheus text (format 0.0.4).
    ///
    /// # Errors
    /// When a collector gives an inconsistent family.
    pub fn encode(&self) -> Result<String> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

#[allow(clippy::cast_precision_loss, reason = "durations stay far below 2^53 µs (285 years)")]
fn seconds(duration: Micros) -> f64 {
    duration as f64 / SECOND as f64
}

fn counter(registry: &Registry, name: &str, help: &str) -> Result<IntCounter> {
    let metric = IntCounter::new(name, help)?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn gauge(registry: &Registry, name: &str, help: &str) -> Result<IntGauge> {
    let metric = IntGauge::new(name, help)?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn float_gauge(registry: &Registry, name: &str, help: &str) -> Result<Gauge> {
    let metric = Gauge::new(name, help)?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn gauge_vec(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> Result<GaugeVec> {
    let metric = GaugeVec::new(Opts::new(name, help), labels)?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn histogram(registry: &Registry, name: &str, help: &str, buckets: &[f64]) -> Result<Histogram> {
    let metric = Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec()))?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

#[cfg(test)]
mod tests;
