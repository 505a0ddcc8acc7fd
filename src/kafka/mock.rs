//! The in-process Kafka of tests and the demo: librdkafka's mock cluster, held alive, with topics created on demand.
//!
//! It speaks the real protocol over loopback sockets but isolates no transactions, keeps none of their offsets and fences
//! nobody: the shell knows it by [`BrokerKind::Mock`] and mirrors offsets. Exactly-once is proven on a real broker only.

use rdkafka::ClientConfig;
use rdkafka::bindings;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, DefaultProducerContext, Producer};

use super::client::{BrokerKind, ClientSettings};
use super::errors::Error;
use super::provision::create_and_verify;
use super::topics::Topics;

/// How often group members report: joins and leaves take about this long.
const HEARTBEAT_MS: i32 = 100;
/// When a silent group member is dropped.
const SESSION_MS: i32 = 6_000;

/// A running mock cluster; gone when dropped.
pub struct Mock {
    owner: BaseProducer<DefaultProducerContext>,
    bootstrap: String,
}

impl Mock {
    /// Starts a cluster of one broker on a free loopback port.
    pub fn start() -> Result<Self, Error> {
        let mut config = ClientConfig::new();
        config.set("test.mock.num.brokers", "1").set("log_level", "3");
        let owner = BaseProducer::from_config_and_context(&config, DefaultProducerContext).map_err(Error::settings)?;
        let cluster = owner.client().mock_cluster().ok_or_else(missing)?;
        let bootstrap = cluster.bootstrap_servers();
        drop(cluster);
        quicken(&owner);
        Ok(Self { owner, bootstrap })
    }

    /// Starts a cluster with all topics, each with this many partitions.
    pub fn with_topics(topics: &Topics) -> Result<Self, Error> {
        let mock = Self::start()?;
        create_and_verify(&mock, topics)?;
        Ok(mock)
    }

    /// Bootstrap address.
    pub fn bootstrap(&self) -> &str {
        &self.bootstrap
    }

    /// Settings for clients of this cluster.
    pub fn settings(&self) -> ClientSettings {
        ClientSettings { kind: BrokerKind::Mock, ..ClientSettings::new(&self.bootstrap) }
    }

    /// Creates a topic; one that exists is an error.
    pub fn create_topic(&self, name: &str, partitions: i32) -> Result<(), Error> {
        let created = self.cluster()?.create_topic(name, partitions, 1);
        created.map_err(|e| Error::broker(format!("cannot create mock topic {name}"), e))
    }

    /// The cluster itself, to inject faults.
    pub fn cluster(&self) -> Result<MockCluster<'_, DefaultProducerContext>, Error> {
        self.owner.client().mock_cluster().ok_or_else(missing)
    }
}

fn missing() -> Error {
    Error::Unsupported("this librdkafka was built without its mock cluster".to_owned())
}

#[expect(unsafe_code, reason = "these two settings of the mock are not wrapped; the handle outlives both calls")]
fn quicken(owner: &BaseProducer<DefaultProducerContext>) {
    // SAFETY: the client is alive and was created with a mock cluster, whose handle is checked.
    unsafe {
        let cluster = bindings::rd_kafka_handle_mock_cluster(owner.client().native_ptr());
        if !cluster.is_null() {
            bindings::rd_kafka_mock_set_group_consumer_heartbeat_interval_ms(cluster, HEARTBEAT_MS);
            bindings::rd_kafka_mock_set_group_consumer_session_timeout_ms(cluster, SESSION_MS);
        }
    }
}
