//! The configuration: typed, checked as a whole, immutable.
//!
//! Precedence: 1. the environment (`RUNWARDEN_SECTION__KEY`, `-` and `.` as `_`), 2. the TOML file, 3. the defaults. Every
//! fault is found in one pass and says where it is. Nothing here reads a file but [`Config::load`], and nothing here opens
//! one that the configuration names. Paths are relative to the working directory.
//!
//! `config/runwarden.toml` is the manual: every key with its default and, in the comment above it, its meaning. [`reference()`] puts
//! both together with what is read.

mod acting;
mod auth;
mod channels;
mod fault;
mod idle;
mod level;
mod matcher;
mod otlp;
mod reader;
mod reference;
mod secret;
mod template;
mod tls;
mod traces;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use toml::de::DeTable;

pub use self::acting::{Alerts, Blindness, Breaker, Interventions};
pub use self::auth::{Auth, Jwt, Key, Loopback, Token};
pub use self::channels::{
    CHANNEL_KINDS, Channel, ChannelKind, Channels, Email, MailSecurity, Reach, Updates, address as channel_address,
};
pub use self::fault::Fault;
pub(crate) use self::fault::nearest;
pub use self::level::{Action, ActionKind, ActionLevel, Level, OWN_ACTIONS, Percent, Respond};
pub use self::matcher::Matcher;
pub use self::otlp::Otlp;
use self::reader::{Reader, Section};
pub(crate) use self::reader::{read_duration, write_duration};
pub use self::reference::{Form, Key as ReferenceKey, Kind, Part, Reference};
pub use self::secret::Secret;
pub use self::template::{FIELDS, Template, cut};
pub use self::tls::{Listen, Named, Tls};
pub use self::traces::{Share, Traces};
use crate::telemetry::redact::{FORBIDDEN, Redactor};
use crate::telemetry::{Prices, Settings};

/// File read when none is named and it exists.
pub const DEFAULT_FILE: &str = "config/runwarden.toml";

/// The effective configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// What this process does.
    pub roles: BTreeSet<Role>,
    /// Where files are.
    pub paths: Paths,
    /// How to reach Kafka and how to work with it.
    pub kafka: Kafka,
    /// Topic names.
    pub topics: Topics,
    /// What is kept of telemetry.
    pub telemetry: Telemetry,
    /// Event time.
    pub time: Time,
    /// REST, metrics, console: where to listen.
    pub http: Listen,
    /// Postgres wire protocol: where to listen.
    pub sql: Listen,
    /// OTLP/HTTP.
    pub otlp: Otlp,
    /// Who may do what.
    pub auth: Auth,
    /// How alerts live.
    pub alerts: Alerts,
    /// Who is told of them.
    pub channels: Channels,
    /// How long interventions may take.
    pub interventions: Interventions,
    /// When a policy goes too far.
    pub breaker: Breaker,
    /// When a tenant is not seen any more.
    pub blindness: Blindness,
    /// When a tenant stands GREEN, YELLOW or RED.
    pub level: Level,
    /// What is done about it.
    pub respond: Respond,
    /// Bounds.
    pub limits: Limits,
    /// Logs.
    pub log: Log,
    /// Traces of steps.
    pub traces: Traces,
}

/// A part a process plays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Beside a worker: OTLP in, verdicts out.
    Edge,
    /// Owns partitions and decides.
    Core,
    /// Tables, REST, SQL, console.
    Serve,
    /// Alert delivery.
    Channels,
}

const ROLES: [(&str, Role); 4] =
    [("edge", Role::Edge), ("core", Role::Core), ("serve", Role::Serve), ("channels", Role::Channels)];

impl Role {
    /// The name in `[roles] enabled`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Edge => "edge",
            Self::Core => "core",
            Self::Serve => "serve",
            Self::Channels => "channels",
        }
    }

    /// What a process does in it, in words.
    pub const fn does(self) -> &'static str {
        match self {
            Self::Edge => "takes OTLP beside a worker and gives verdicts",
            Self::Core => "joins the consumer group, owns partitions, decides",
            Self::Serve => "serves the status page",
            Self::Channels => "delivers alerts",
        }
    }
}

/// `[paths]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// Directory of metric queries.
    pub queries: PathBuf,
    /// Directory of policies.
    pub policies: PathBuf,
    /// The panel registry.
    pub panels: PathBuf,
    /// The price table; none if that file is absent and not named.
    pub prices: PathBuf,
    /// Directory for state and report files.
    pub data: PathBuf,
}

/// `[kafka]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kafka {
    /// Bootstrap servers, `host:port` separated by commas.
    pub brokers: String,
    /// Consumer group.
    pub group: String,
    /// This instance's name among those of the group, stable over restarts; the host name if absent.
    pub slot: Option<String>,
    /// Rebalance protocol.
    pub group_protocol: GroupProtocol,
    /// Longest time outputs stay uncommitted.
    pub commit_interval: Duration,
    /// Time between two checkpoints of a partition.
    pub checkpoint_interval: Duration,
    /// How long a shutdown may take to finish its work.
    pub drain_timeout: Duration,
    /// Any librdkafka property; values do not show in `Debug`, as some are secrets.
    pub client: BTreeMap<String, Secret>,
}

/// How a group shares its partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupProtocol {
    /// The classic protocol.
    Classic,
    /// KIP-848, of brokers from 4.0 on.
    Consumer,
}

/// `[topics]`: real names by configuration key.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "each name is that of the topic in contracts.md")]
pub struct Topics {
    pub telemetry: String,
    pub commands: String,
    pub outcomes: String,
    pub signals: String,
    pub alerts: String,
    pub interventions: String,
    pub runs: String,
    pub lessons: String,
    pub policies: String,
    pub policy_level: String,
    pub evaluations: String,
    pub audit: String,
    pub command_results: String,
    pub live: String,
    pub dead_letter: String,
    pub repartition: String,
    pub steps: String,
    pub checkpoint: String,
    /// Partitions of topics we create.
    pub partitions: i32,
    /// Replicas of topics we create; -1 is the broker's default.
    pub replication: i32,
}

/// `[telemetry]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Telemetry {
    /// Fields outside the contract, and members of `attributes`, that are kept.
    pub attributes: Vec<String>,
    /// Names never kept.
    pub forbidden: Vec<String>,
    /// Keep undecodable bytes in dead letters.
    pub keep_undecodable: bool,
}

/// `[time]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Time {
    /// How far a tenant's watermark stays behind its highest event time.
    pub allowed_lateness: Duration,
    /// Silence after which a tenant's watermark follows the wall clock.
    pub idle_timeout: Duration,
    /// How far ahead of the clock an event may be.
    pub future: Duration,
    /// How long an `event_id` counts once; zero never looks.
    pub dedup_horizon: Duration,
}

/// `[limits]`: every bound on what others send or make us keep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Largest telemetry record, bytes.
    pub record_bytes: usize,
    /// Deepest nesting of kept attributes.
    pub nesting_depth: usize,
    /// Live keys of a tenant, over all metrics.
    pub live_keys: usize,
    /// Remembered event ids of a partition.
    pub dedup_ids: usize,
    /// State of one list-like aggregate (array_agg, distinct), bytes.
    pub list_state_bytes: usize,
    /// Records in one step of a partition.
    pub step_records: usize,
    /// Payload bytes in one step of a partition.
    pub step_bytes: usize,
    /// Output bytes after which a transaction commits early.
    pub transaction_bytes: usize,
    /// Output records after which a transaction commits early.
    pub transaction_records: usize,
    /// How long a run is kept after its end or its last event.
    pub run_retention: Duration,
    /// How long agents and tasks are kept after their last event.
    pub agent_retention: Duration,
    /// How long it is remembered that a run was stopped.
    pub tombstone_retention: Duration,
    /// Time a stopped run has to fall silent.
    pub stop_grace: Duration,
    /// Depth to which stopping a run stops its children.
    pub cascade_depth: usize,
    /// Rows of a table in memory before they are sealed.
    pub table_rows: usize,
    /// Keys of a table of a compacted topic.
    pub table_keys: usize,
    /// Files that are sealed of a table, bytes.
    pub table_bytes: u64,
    /// How long a question may take.
    pub query_time: Duration,
    /// Memory of the questions that run, bytes.
    pub query_bytes: usize,
    /// Rows of an answer.
    pub query_rows: usize,
    /// Largest body of an HTTP request, bytes.
    pub http_body_bytes: usize,
}

/// `[log]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// Shape of a line.
    pub format: LogFormat,
    /// A level, or directives such as `info,rdkafka=warn`. `RUST_LOG` wins.
    pub level: String,
}

/// Shape of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Human,
    /// One JSON object a line.
    Json,
}

impl Config {
    /// Reads the file at `path` (by default [`DEFAULT_FILE`], if it exists) and the environment.
    ///
    /// # Errors
    /// Every fault of both, or the one that kept the file from being read.
    pub fn load(path: Option<&Path>, env: impl IntoIterator<Item = (String, String)>) -> Result<Self, Vec<Fault>> {
        let (file, needed) = path.map_or((Path::new(DEFAULT_FILE), false), |path| (path, true));
        let name = file.display().to_string();
        let text = match std::fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !needed => String::new(),
            Err(error) => return Err(vec![Fault::of(&name, "", format!("cannot read it: {error}"))]),
        };
        Self::from_toml(&text, &name, env)
    }

    /// Checks a TOML text (named `file` in faults) and environment variables. Pure.
    ///
    /// # Errors
    /// Every fault, in the order of the file; those of variables first.
    pub fn from_toml(
        text: &str,
        file: &str,
        env: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, Vec<Fault>> {
        let (config, reader) = Self::read(text, file, env)?;
        if reader.faults.is_empty() { Ok(config) } else { Err(reader.faults) }
    }

    fn read<'t>(
        text: &'t str,
        file: &'t str,
        env: impl IntoIterator<Item = (String, String)>,
    ) -> Result<(Self, Reader<'t>), Vec<Fault>> {
        let (document, errors) = DeTable::parse_recoverable(text);
        if !errors.is_empty() {
            let fault = |e: &toml::de::Error| {
                Fault::at(file, text, e.span().map_or(0, |span| span.start), "", format!("not TOML: {}", e.message()))
            };
            return Err(errors.iter().map(fault).collect());
        }
        let mut r = Reader::new(file, text, env);
        let config = Self::sections(&mut r, document.get_ref());
        Ok((config, r))
    }

    /// Reads every section of a document.
    fn sections<'t>(r: &mut Reader<'t>, root: &DeTable<'t>) -> Self {
        let file = r.file();
        let http = r.section(root, "http", |s| tls::listen(s, loopback(8080), None));
        let above = http.tls.clone();
        let config = Self {
            roles: r.section(root, "roles", |s| {
                let roles = s.choices("enabled", &ROLES);
                if roles.is_empty() {
                    s.refuse("enabled", "must name at least one role");
                }
                roles
            }),
            paths: r.section(root, "paths", paths),
            kafka: r.section(root, "kafka", kafka),
            topics: r.section(root, "topics", topics),
            telemetry: r.section(root, "telemetry", telemetry),
            time: r.section(root, "time", time),
            http,
            sql: r.section(root, "sql", |s| tls::listen(s, loopback(5433), above.as_ref())),
            otlp: r.section(root, "otlp", |s| otlp::otlp(s, above.as_ref())),
            auth: r.section(root, "auth", auth::auth),
            alerts: r.section(root, "alerts", acting::alerts),
            channels: r.section(root, "channels", channels::channels),
            interventions: r.section(root, "interventions", acting::interventions),
            breaker: r.section(root, "breaker", acting::breaker),
            blindness: r.section(root, "blindness", acting::blindness),
            level: r.section(root, "level", level::level),
            respond: r.section(root, "respond", level::respond),
            limits: r.section(root, "limits", limits),
            log: r.section(root, "log", log),
            traces: r.section(root, "traces", traces::traces),
        };
        if let Some(name) = config.forbidden_names().first() {
            let message = format!("{name} is named under otlp and is never kept: it is among telemetry.forbidden");
            r.faults.push(Fault::of(file, "otlp", message));
        }
        if let Some(topic) = config.otlp.topic.as_ref().filter(|topic| config.topics.names().contains(&topic.as_str()))
        {
            r.faults.push(Fault::of(
                file,
                "otlp.topic",
                format!("{topic} is one of [topics]: it cannot hold spans too"),
            ));
        }
        if config.roles.contains(&Role::Edge) && config.traces.come_back(config.otlp.listen) {
            let message = "is where this process itself takes spans, [otlp] listen: name a collector's address";
            r.faults.push(Fault::of(file, "traces.endpoint", message));
        }
        r.finish(root);
        config
    }

    /// 48 bits of a hash over the effective configuration, secrets excluded: equal where configurations are. Fits a metric.
    pub fn digest(&self) -> u64 {
        let secret =
            |name: &str| ["password", "secret", "key", "token", "oauth", "jaas"].iter().any(|s| name.contains(s));
        let mut hash = Sha256::new_with_prefix(format!("{self:?}"));
        for (name, value) in self.kafka.client.iter().filter(|(name, _)| !secret(name)) {
            hash.update(format!("{name}={}\n", value.expose()));
        }
        hash.finalize().iter().take(6).fold(0, |sum, byte| sum << 8 | u64::from(*byte))
    }

    /// The decoder's settings as this configuration wants them.
    pub fn decoder(&self, prices: Arc<Prices>) -> Settings {
        Settings {
            attributes: self.telemetry.attributes.clone(),
            forbidden: self.telemetry.forbidden.clone(),
            max_record_bytes: self.limits.record_bytes,
            max_depth: self.limits.nesting_depth,
            keep_undecodable: self.telemetry.keep_undecodable,
            future: micros(self.time.future),
            prices,
        }
    }
}

impl Default for Config {
    #[expect(clippy::expect_used, reason = "defaults have no faults; a test says so")]
    fn default() -> Self {
        Self::from_toml("", "defaults", []).expect("defaults are valid")
    }
}

/// Every key that is read, and what it means.
pub fn reference() -> Reference {
    let mut reader = Reader::new("reference", "", []);
    reader.reference = Some(Reference::default());
    // a document without anything has required keys missing, and that is no matter here
    Config::sections(&mut reader, &DeTable::new());
    reader.reference.unwrap_or_default().described()
}

/// A duration in the engine's unit; what does not fit is as long as can be.
pub fn micros(duration: Duration) -> crate::clock::Micros {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

const DAY: Duration = Duration::from_secs(86_400);
const YEAR: Duration = Duration::from_secs(365 * 86_400);

const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

const fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn paths(s: &mut Section<'_, '_>) -> Paths {
    Paths {
        queries: s.path("queries", "queries"),
        policies: s.path("policies", "config/policies"),
        panels: s.path("panels", "config/panels.yaml"),
        prices: s.path("prices", "config/prices.toml"),
        data: s.path("data", "data"),
    }
}

fn kafka(s: &mut Section<'_, '_>) -> Kafka {
    let kafka = Kafka {
        brokers: s.text("brokers", "localhost:9092"),
        group: s.text("group", "runwarden"),
        slot: s.optional("slot"),
        group_protocol: s.choice(
            "group-protocol",
            GroupProtocol::Classic,
            &[("classic", GroupProtocol::Classic), ("consumer", GroupProtocol::Consumer)],
        ),
        commit_interval: s.duration("commit-interval", millis(100), millis(10)..=seconds(60)),
        checkpoint_interval: s.duration("checkpoint-interval", seconds(5), millis(100)..=seconds(3_600)),
        drain_timeout: s.duration("drain-timeout", seconds(5), millis(100)..=seconds(3_600)),
        client: s.map("client").into_iter().map(|(name, value)| (name, Secret::new(value))).collect(),
    };
    let host_port = |broker: &str| {
        broker.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
    };
    if !kafka.brokers.split(',').all(|broker| host_port(broker.trim())) {
        s.refuse("brokers", "must be host:port, several separated by commas");
    }
    if kafka.client.contains_key("bootstrap.servers") {
        s.refuse("client", "bootstrap.servers belongs in kafka.brokers");
    }
    if kafka.client.contains_key("group.id") {
        s.refuse("client", "group.id belongs in kafka.group");
    }
    kafka
}

fn topics(s: &mut Section<'_, '_>) -> Topics {
    let mut names: BTreeMap<String, &'static str> = BTreeMap::new();
    let mut name = |s: &mut Section<'_, '_>, key: &'static str, default: &str| {
        let name = s.text(key, default);
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if name.len() > 249 || !name.chars().all(legal) || name == "." || name == ".." {
            s.refuse(key, "must be a topic name: at most 249 of letters, digits, '.', '_' and '-'");
        }
        if let Some(other) = names.insert(name.clone(), key) {
            s.refuse(key, format!("must differ from topics.{other}"));
        }
        name
    };
    Topics {
        telemetry: name(s, "telemetry", "runs.telemetry"),
        commands: name(s, "commands", "runwarden.commands"),
        outcomes: name(s, "outcomes", "runwarden.outcomes"),
        signals: name(s, "signals", "runwarden.signals"),
        alerts: name(s, "alerts", "runwarden.alerts"),
        interventions: name(s, "interventions", "runwarden.interventions"),
        runs: name(s, "runs", "runwarden.runs"),
        lessons: name(s, "lessons", "runwarden.lessons"),
        policies: name(s, "policies", "runwarden.policies"),
        policy_level: name(s, "policy-level", "runwarden.policy-level"),
        evaluations: name(s, "evaluations", "runwarden.evaluations"),
        audit: name(s, "audit", "runwarden.audit"),
        command_results: name(s, "command-results", "runwarden.command-results"),
        live: name(s, "live", "runwarden.live"),
        dead_letter: name(s, "dead-letter", "runwarden.dead-letter"),
        repartition: name(s, "repartition", "runwarden.repartition"),
        steps: name(s, "steps", "runwarden.steps"),
        checkpoint: name(s, "checkpoint", "runwarden.checkpoint"),
        partitions: s.number("partitions", 6, 1..=10_000),
        replication: match s.number("replication", -1, -1..=100) {
            0 => {
                s.refuse("replication", "must be -1 (the broker's default) or at least 1");
                -1
            }
            n => n,
        },
    }
}

fn telemetry(s: &mut Section<'_, '_>) -> Telemetry {
    let telemetry = Telemetry {
        attributes: s.texts("attributes", &[]),
        forbidden: s.texts("forbidden", FORBIDDEN),
        keep_undecodable: s.flag("keep-undecodable", false),
    };
    let redactor = Redactor::new([], telemetry.forbidden.iter().map(String::as_str), 1);
    for name in &telemetry.attributes {
        if redactor.forbids(name) {
            s.refuse("attributes", format!("{name} is never kept: it is among telemetry.forbidden"));
        }
    }
    for required in ["event_time", "event_type", "tenant_id"] {
        if redactor.forbids(required) {
            s.refuse("forbidden", format!("{required} is required and cannot be forbidden"));
        }
    }
    telemetry
}

fn time(s: &mut Section<'_, '_>) -> Time {
    Time {
        allowed_lateness: s.duration("allowed-lateness", seconds(10), Duration::ZERO..=DAY),
        idle_timeout: s.duration("idle-timeout", seconds(30), seconds(1)..=DAY),
        future: s.duration("future", seconds(300), Duration::ZERO..=DAY),
        dedup_horizon: s.duration("dedup-horizon", seconds(300), Duration::ZERO..=DAY),
    }
}

fn limits(s: &mut Section<'_, '_>) -> Limits {
    const MIB: usize = 1 << 20;
    Limits {
        record_bytes: s.number("record-bytes", MIB, 1_024..=64 * MIB),
        nesting_depth: s.number("nesting-depth", 16, 1..=100),
        live_keys: s.number("live-keys", 1_000_000, 1..=100_000_000),
        dedup_ids: s.number("dedup-ids", 4_000_000, 1_000..=1_000_000_000),
        list_state_bytes: s.number("list-state-bytes", 65_536, 1_024..=64 * MIB),
        step_records: s.number("step-records", 8_192, 1..=1_000_000),
        step_bytes: s.number("step-bytes", 4 * MIB, 1_024..=1_024 * MIB),
        transaction_bytes: s.number("transaction-bytes", 8 * MIB, 1_024..=1_024 * MIB),
        transaction_records: s.number("transaction-records", 20_000, 1..=10_000_000),
        run_retention: s.duration("run-retention", DAY, seconds(60)..=YEAR),
        agent_retention: s.duration("agent-retention", 7 * DAY, seconds(60)..=YEAR),
        tombstone_retention: s.duration("tombstone-retention", 7 * DAY, seconds(60)..=YEAR),
        stop_grace: s.duration("stop-grace", seconds(30), Duration::ZERO..=DAY),
        cascade_depth: s.number("cascade-depth", 16, 1..=1_000),
        table_rows: s.number("table-rows", 20_000, 10..=10_000_000),
        table_keys: s.number("table-keys", 200_000, 1_000..=100_000_000),
        table_bytes: s.number("table-bytes", 1 << 30, 1 << 20..=1 << 40),
        query_time: s.duration("query-time", seconds(10), seconds(1)..=seconds(600)),
        query_bytes: s.number("query-bytes", 128 * MIB, MIB..=64 * 1_024 * MIB),
        query_rows: s.number("query-rows", 100_000, 100..=10_000_000),
        http_body_bytes: s.number("http-body-bytes", MIB, 1_024..=16 * MIB),
    }
}

fn log(s: &mut Section<'_, '_>) -> Log {
    let log = Log {
        format: s.choice("format", LogFormat::Human, &[("human", LogFormat::Human), ("json", LogFormat::Json)]),
        level: s.text("level", "info"),
    };
    if let Err(error) = crate::logging::filter(&log.level) {
        s.refuse("level", format!("must be a level or directives such as \"info,rdkafka=warn\": {error}"));
    }
    log
}

/// A possible tenant: not empty, not the reserved `*`, at most 256 bytes.
fn tenant(s: &mut Section<'_, '_>, key: &'static str, default: &str) -> String {
    let tenant = s.text(key, default);
    if tenant == "*" || tenant.len() > 256 {
        s.refuse(key, "must be one tenant, of at most 256 bytes");
    }
    tenant
}

#[cfg(test)]
mod tests;
