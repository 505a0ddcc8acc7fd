//! Settings of the shell and the librdkafka properties that follow from them.
//!
//! Order of precedence: our defaults for a sidecar, then the user's `[kafka.client]` map, then what correctness needs. So a
//! user can size buffers and set up security, but cannot switch off read_committed or idempotence.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;

use super::errors::Error;
use super::refusal;
use super::topics::Topics;

/// After so long without traffic the transactional producer closes a connection, in milliseconds.
///
/// This ends a wait that librdkafka does not end (2.12.1; its issues 5456 and 5511): `send_offsets_to_transaction` asks for the
/// group's coordinator, and when that broker is dead and forgotten by the cluster, it is looked for again only when the
/// connection to some broker opens or closes. Nothing is sent meanwhile, so the others fall silent, close, and it looks again.
const LOOK_AGAIN_MS: &str = "6000";

/// What answers at the bootstrap address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BrokerKind {
    /// A real Kafka cluster.
    #[default]
    Real,
    /// librdkafka's in-process mock: it neither isolates transactions nor keeps their offsets, so the shell mirrors offsets
    /// by a plain commit and always uses the KIP-848 group protocol.
    Mock,
}

/// The consumer group protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GroupProtocol {
    /// Classic, with the cooperative-sticky assignor.
    #[default]
    Classic,
    /// KIP-848 (`group.protocol=consumer`).
    Consumer,
}

/// Where a telemetry partition starts that has no committed offset. Commands, outcomes and re-keyed records always start at
/// the earliest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StartAt {
    /// The oldest record there is.
    #[default]
    Earliest,
    /// Only what arrives from now on.
    Latest,
}

/// How to reach the brokers: shared by every client of the process.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClientSettings {
    /// Bootstrap addresses, `host:port,host:port`.
    pub brokers: String,
    /// What answers there.
    pub kind: BrokerKind,
    /// `[kafka.client]`: any librdkafka property (security, buffers, time-outs).
    pub properties: BTreeMap<String, String>,
}

impl ClientSettings {
    /// A real broker at these addresses, without further properties.
    pub fn new(brokers: impl Into<String>) -> Self {
        Self { brokers: brokers.into(), kind: BrokerKind::Real, properties: BTreeMap::new() }
    }

    /// Whether librdkafka takes the properties, as far as that shows without a broker.
    ///
    /// # Errors
    /// One that it does not know, a value that it does not take, or what this build has not.
    pub fn check(&self) -> Result<(), Error> {
        self.admin().create_native_config().map(drop).map_err(Error::settings)
    }

    /// `defaults`, then the user's properties, then `required`.
    fn config(&self, defaults: &[(&str, &str)], required: &[(&str, &str)]) -> ClientConfig {
        let mut config = ClientConfig::new();
        for (key, value) in defaults {
            config.set(*key, *value);
        }
        for (key, value) in &self.properties {
            config.set(key, value);
        }
        config.set("bootstrap.servers", &self.brokers);
        for (key, value) in required {
            config.set(*key, *value);
        }
        config
    }

    /// For the admin client and metadata.
    pub fn admin(&self) -> ClientConfig {
        self.config(&[("client.id", "runwarden-admin"), ("socket.nagle.disable", "true")], &[])
    }

    /// A consumer that reads assigned partitions and never joins or commits.
    pub fn reader(&self, group: &str, isolation: Isolation) -> ClientConfig {
        let mut config = self.config(
            &[
                ("client.id", "runwarden-reader"),
                ("queued.max.messages.kbytes", "16384"),
                ("queued.min.messages", "10000"),
                ("fetch.queue.backoff.ms", "20"),
                ("fetch.error.backoff.ms", "50"),
                ("socket.nagle.disable", "true"),
                ("reconnect.backoff.max.ms", "1000"),
            ],
            &[
                ("group.id", group),
                ("enable.auto.commit", "false"),
                ("enable.auto.offset.store", "false"),
                ("enable.partition.eof", "true"),
                ("auto.offset.reset", "error"),
                ("isolation.level", isolation.as_str()),
                ("fetch.wait.max.ms", "10"),
            ],
        );
        config.remove("group.instance.id");
        config.remove("group.protocol");
        config
    }

    /// An idempotent producer outside transactions.
    pub fn producer(&self) -> ClientConfig {
        self.config(
            &[
                ("client.id", "runwarden-producer"),
                ("linger.ms", "5"),
                ("batch.size", "1000000"),
                ("compression.type", "lz4"),
                ("queue.buffering.max.kbytes", "32768"),
                ("queue.buffering.max.messages", "100000"),
                ("message.max.bytes", LARGEST_RECORD),
                ("socket.nagle.disable", "true"),
                ("reconnect.backoff.max.ms", "1000"),
            ],
            &[("enable.idempotence", "true"), ("partitioner", "murmur2_random")],
        )
    }
}

/// Which records of open and aborted transactions a reader sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// Only committed ones.
    Committed,
    /// All.
    Uncommitted,
}

impl Isolation {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Committed => "read_committed",
            Self::Uncommitted => "read_uncommitted",
        }
    }
}

/// Everything the shell needs to know. [`ShellConfig::new`] gives the defaults.
#[derive(Debug, Clone)]
pub struct ShellConfig {
    /// Brokers and properties.
    pub client: ClientSettings,
    /// First part of the transactional id.
    pub app: String,
    /// Consumer group.
    pub group: String,
    /// This instance's name among those of the group; stable over restarts, unique among the living.
    pub slot: String,
    /// Whether to be a static member (`group.instance.id` = slot): restarts within the session time-out move no partitions.
    pub static_membership: bool,
    /// Group protocol on a real broker; the mock always uses KIP-848.
    pub group_protocol: GroupProtocol,
    /// Topic names.
    pub topics: Topics,
    /// Start of telemetry without committed offsets.
    pub start: StartAt,
    /// Longest time outputs stay uncommitted.
    pub commit_interval: Duration,
    /// Shortest time between two commits, however urgent.
    pub urgent_interval: Duration,
    /// Time between two checkpoints of a partition.
    pub checkpoint_interval: Duration,
    /// Checkpoint bytes of a partition in one transaction; a larger checkpoint goes ahead of its mark over several.
    pub checkpoint_chunk: usize,
    /// A transaction is committed early beyond so many output bytes.
    pub max_transaction_bytes: usize,
    /// A transaction is committed early beyond so many output records.
    pub max_transaction_records: usize,
    /// Most records of a partition in one step.
    pub max_step_records: usize,
    /// Most payload bytes of a partition in one step.
    pub max_step_bytes: usize,
    /// Least time between two steps of a partition, unless a step is full: small steps cost as much as large ones.
    pub step_linger: Duration,
    /// How long the broker lets a silent transaction live.
    pub transaction_timeout: Duration,
    /// Classic group session time-out.
    pub session_timeout: Duration,
    /// Prefetch over all partitions, KiB.
    pub prefetch_kbytes: usize,
    /// Threads that restore partitions.
    pub restore_threads: usize,
    /// Read to the end offsets taken at the start, finish every partition, exit.
    pub until_end: bool,
    /// Until-end runs: finishing closes every window. Without it the state stays as it is at the end.
    pub close_windows: bool,
}

impl ShellConfig {
    /// The defaults of a sidecar.
    pub fn new(client: ClientSettings, group: impl Into<String>, slot: impl Into<String>, topics: Topics) -> Self {
        Self {
            client,
            app: "runwarden".to_owned(),
            group: group.into(),
            slot: slot.into(),
            static_membership: false,
            group_protocol: GroupProtocol::Classic,
            topics,
            start: StartAt::Earliest,
            commit_interval: Duration::from_millis(100),
            urgent_interval: Duration::from_millis(20),
            checkpoint_interval: Duration::from_secs(5),
            checkpoint_chunk: 4 << 20,
            max_transaction_bytes: 8 << 20,
            max_transaction_records: 20_000,
            max_step_records: 8_192,
            max_step_bytes: 4 << 20,
            step_linger: Duration::from_millis(3),
            transaction_timeout: Duration::from_secs(10),
            session_timeout: Duration::from_secs(10),
            prefetch_kbytes: 16_384,
            restore_threads: 2,
            until_end: false,
            close_windows: true,
        }
    }

    /// `<app>-<group>-<slot>-0`.
    pub fn transactional_id(&self) -> String {
        format!("{}-{}-{}-0", self.app, self.group, self.slot)
    }

    pub(super) fn is_mock(&self) -> bool {
        self.client.kind == BrokerKind::Mock
    }

    /// The group consumer. `partitions`: of telemetry, to share the prefetch among their queues.
    pub(super) fn consumer(&self, partitions: i32) -> ClientConfig {
        let shares = usize::try_from(partitions).unwrap_or(1).max(1);
        let prefetch = (self.prefetch_kbytes / shares).max(512).to_string();
        let session = self.session_timeout.as_millis().to_string();
        let heartbeat = (self.session_timeout.as_millis() / 4).max(100).to_string();
        let wait = if self.is_mock() { "5" } else { "100" };
        let mut config = self.client.config(
            &[
                ("client.id", &format!("{}-{}", self.app, self.slot)),
                ("queued.max.messages.kbytes", &prefetch),
                ("queued.min.messages", "10000"),
                ("fetch.queue.backoff.ms", "20"),
                ("fetch.error.backoff.ms", "100"),
                ("fetch.wait.max.ms", wait),
                ("fetch.min.bytes", "1"),
                ("socket.nagle.disable", "true"),
                ("reconnect.backoff.max.ms", "1000"),
                ("statistics.interval.ms", "2000"),
            ],
            &[
                ("group.id", &self.group),
                ("enable.auto.commit", "false"),
                ("enable.auto.offset.store", "false"),
                ("isolation.level", "read_committed"),
                ("auto.offset.reset", "error"),
                ("enable.partition.eof", "true"),
            ],
        );
        if self.is_mock() {
            config.set("fetch.wait.max.ms", wait);
        }
        if self.is_mock() || self.group_protocol == GroupProtocol::Consumer {
            config.set("group.protocol", "consumer");
            for classic_only in ["session.timeout.ms", "heartbeat.interval.ms", "partition.assignment.strategy"] {
                config.remove(classic_only);
            }
        } else {
            config.set("group.protocol", "classic");
            config.set("partition.assignment.strategy", "cooperative-sticky");
            config.set("session.timeout.ms", session);
            config.set("heartbeat.interval.ms", heartbeat);
        }
        if self.static_membership {
            config.set("group.instance.id", &self.slot);
        }
        config
    }

    /// The transactional producer.
    pub(super) fn transactional_producer(&self) -> ClientConfig {
        let timeout = self.transaction_timeout.as_millis().to_string();
        let mut config = self.client.config(
            &[
                ("client.id", &format!("{}-{}", self.app, self.slot)),
                ("linger.ms", "2"),
                ("batch.size", "1000000"),
                ("compression.type", "lz4"),
                ("queue.buffering.max.kbytes", "32768"),
                ("queue.buffering.max.messages", "100000"),
                ("message.max.bytes", LARGEST_RECORD),
                ("socket.nagle.disable", "true"),
                ("reconnect.backoff.max.ms", "1000"),
            ],
            &[
                ("transactional.id", &self.transactional_id()),
                ("transaction.timeout.ms", &timeout),
                ("connections.max.idle.ms", LOOK_AGAIN_MS),
                ("enable.idempotence", "true"),
                ("partitioner", "murmur2_random"),
            ],
        );
        config.remove("message.timeout.ms");
        config
    }
}

/// Largest record that may be sent: a set of policies and queries (16 MiB and room for what is around it). Topics that take less
/// refuse what is larger themselves.
const LARGEST_RECORD: &str = "17825792";

/// Passes librdkafka's own lines on to `tracing`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Logged;

impl ClientContext for Logged {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log_line(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", %error, reason, "client error");
    }
}

impl rdkafka::consumer::ConsumerContext for Logged {}

pub(super) fn log_line(level: RDKafkaLogLevel, facility: &str, message: &str) {
    match refusal::hear(message) {
        Some((refusal, true)) => return tracing::warn!(target: "librdkafka", facility, "{refusal}; {message}"),
        Some((_, false)) => return tracing::debug!(target: "librdkafka", facility, "{message}"),
        None => {}
    }
    match level {
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical | RDKafkaLogLevel::Error => {
            tracing::warn!(target: "librdkafka", facility, "{message}");
        }
        RDKafkaLogLevel::Warning | RDKafkaLogLevel::Notice => {
            tracing::info!(target: "librdkafka", facility, "{message}");
        }
        RDKafkaLogLevel::Info | RDKafkaLogLevel::Debug => {
            tracing::debug!(target: "librdkafka", facility, "{message}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_size_buffers_but_cannot_switch_off_correctness() {
        let mut client = ClientSettings::new("b:9092");
        client.properties.insert("isolation.level".into(), "read_uncommitted".into());
        client.properties.insert("queued.min.messages".into(), "7".into());
        client.properties.insert("enable.idempotence".into(), "false".into());
        let config = ShellConfig::new(client, "g", "a", Topics::default());
        let consumer = config.consumer(6);
        assert_eq!(consumer.get("isolation.level"), Some("read_committed"));
        assert_eq!(consumer.get("queued.min.messages"), Some("7"));
        assert_eq!(config.transactional_producer().get("enable.idempotence"), Some("true"));
        assert_eq!(config.transactional_producer().get("transactional.id"), Some("runwarden-g-a-0"));
    }
}
