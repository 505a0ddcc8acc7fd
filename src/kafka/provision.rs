//! Creating and checking topics: through the admin API on a broker, through the mock's own call in process.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::client::{ClientSettings, Isolation, Logged};
use super::errors::Error;
use super::mock::Mock;
use super::reader::Reader;
use super::topics::{TopicSpec, Topics};

/// Makes topics exist.
pub trait Provisioner {
    /// Creates those that do not exist, leaves the others alone; the names created.
    fn create(&self, specs: &[TopicSpec<'_>], partitions: i32, replication: i32) -> Result<Vec<String>, Error>;
    /// Partition counts of all topics there are.
    fn partition_counts(&self) -> Result<BTreeMap<String, i32>, Error>;
    /// Clean-up policies of these topics, where known.
    fn cleanup_policies(&self, names: &[&str]) -> Result<BTreeMap<String, String>, Error>;
}

/// One line of [`describe`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// Key under `[topics]`.
    pub key: &'static str,
    /// Real name.
    pub name: String,
    /// Partitions; `None`: does not exist.
    pub partitions: Option<i32>,
    /// Its clean-up policy, where known.
    pub cleanup: Option<String>,
    /// The clean-up policy it should have.
    pub wanted: &'static str,
}

/// Creates what is missing and checks the whole: the partition count of telemetry.
///
/// # Errors
/// A broker that cannot be reached, partition counts or clean-up policies that cannot work.
pub fn create_and_verify(provisioner: &dyn Provisioner, topics: &Topics) -> Result<i32, Error> {
    // Existing telemetry decides how many partitions the topics that follow it get.
    let partitions = provisioner.partition_counts()?.get(&topics.telemetry).copied().unwrap_or(topics.partitions);
    let created = provisioner.create(&topics.specs(), partitions, topics.replication)?;
    if !created.is_empty() {
        tracing::info!(topics = ?created, partitions, "topics created");
    }
    // New topics take a moment to show on every broker.
    let deadline = Instant::now() + Duration::from_secs(15);
    loop {
        match verify(provisioner, topics) {
            Err(Error::MissingTopic(_)) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(100)),
            outcome => return outcome,
        }
    }
}

/// Checks existing topics: the partition count of telemetry.
///
/// # Errors
/// As [`create_and_verify`], and a missing topic.
pub fn verify(provisioner: &dyn Provisioner, topics: &Topics) -> Result<i32, Error> {
    let partitions = check(topics, &provisioner.partition_counts()?)?;
    let specs = topics.specs();
    let names: Vec<&str> = specs.iter().map(|spec| spec.name).collect();
    let found = provisioner.cleanup_policies(&names)?;
    for spec in &specs {
        let Some(policy) = found.get(spec.name) else { continue };
        let has = |part: &str| policy.split(',').any(|p| p.trim() == part);
        let wanted = spec.cleanup.policy();
        // Losing state is an error; keeping more or longer than asked for is the owner's choice.
        if wanted == "compact" && (has("delete") || !has("compact")) || wanted == "delete" && has("compact") {
            return Err(Error::Cleanup { topic: spec.name.to_owned(), found: policy.clone(), wanted });
        }
    }
    Ok(partitions)
}

/// All topics as they are.
pub fn describe(provisioner: &dyn Provisioner, topics: &Topics) -> Result<Vec<Described>, Error> {
    let counts = provisioner.partition_counts()?;
    let specs = topics.specs();
    let existing: Vec<&str> = specs.iter().map(|s| s.name).filter(|name| counts.contains_key(*name)).collect();
    let policies = provisioner.cleanup_policies(&existing)?;
    let line = |spec: &TopicSpec<'_>| Described {
        key: spec.key,
        name: spec.name.to_owned(),
        partitions: counts.get(spec.name).copied(),
        cleanup: policies.get(spec.name).cloned(),
        wanted: spec.cleanup.policy(),
    };
    Ok(specs.iter().map(line).collect())
}

/// The partition count of telemetry, when every topic exists and the co-partitioned ones agree.
pub(super) fn check(topics: &Topics, counts: &BTreeMap<String, i32>) -> Result<i32, Error> {
    let count = |name: &str| counts.get(name).copied().ok_or_else(|| Error::MissingTopic(name.to_owned()));
    let partitions = count(&topics.telemetry)?;
    for spec in topics.specs() {
        let other = count(spec.name)?;
        if spec.co_partitioned && other != partitions {
            return Err(Error::Partitions {
                telemetry: topics.telemetry.clone(),
                partitions,
                other: spec.name.to_owned(),
                other_partitions: other,
            });
        }
    }
    Ok(partitions)
}

/// Topics of a real broker.
pub struct Broker {
    client: ClientSettings,
}

impl Broker {
    /// For the broker at these settings.
    pub const fn new(client: ClientSettings) -> Self {
        Self { client }
    }

    /// Gives these topics `partitions` partitions, or with `only_validate` asks whether they could be.
    ///
    /// # Errors
    /// A topic that has as many already, rights, a broker that cannot be reached.
    pub fn grow(&self, topics: &[&str], partitions: i32, only_validate: bool) -> Result<(), Error> {
        let count = usize::try_from(partitions).unwrap_or_default();
        let wanted: Vec<_> = topics.iter().map(|topic| NewPartitions::new(topic, count)).collect();
        let results = self.admin("cannot add partitions", async |admin, _| {
            let options = AdminOptions::new()
                .request_timeout(Some(Duration::from_secs(30)))
                .operation_timeout(Some(Duration::from_secs(30)))
                .validate_only(only_validate);
            admin.create_partitions(&wanted, &options).await
        })?;
        for result in results {
            if let Err((topic, code)) = result {
                return Err(Error::broker(format!("cannot add partitions to {topic}"), KafkaError::AdminOp(code)));
            }
        }
        Ok(())
    }

    /// Runs an admin call on a thread of its own: the caller may be inside an async runtime.
    fn admin<T: Send>(
        &self,
        context: &str,
        call: impl AsyncFnOnce(&AdminClient<Logged>, &AdminOptions) -> Result<T, KafkaError> + Send,
    ) -> Result<T, Error> {
        let run = || {
            let admin: AdminClient<Logged> =
                self.client.admin().create_with_context(Logged).map_err(Error::settings)?;
            let options = AdminOptions::new()
                .request_timeout(Some(Duration::from_secs(30)))
                .operation_timeout(Some(Duration::from_secs(30)));
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(Error::Thread)?;
            runtime.block_on(call(&admin, &options)).map_err(|error| Error::broker(context, error))
        };
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().spawn_scoped(scope, run).map_err(Error::Thread)?;
            thread.join().unwrap_or_else(|_| Err(Error::Unsupported(format!("{context}: the admin thread panicked"))))
        })
    }
}

impl Provisioner for Broker {
    fn create(&self, specs: &[TopicSpec<'_>], partitions: i32, replication: i32) -> Result<Vec<String>, Error> {
        let configs: Vec<_> = specs.iter().map(TopicSpec::config).collect();
        let topics: Vec<NewTopic<'_>> = specs
            .iter()
            .zip(&configs)
            .map(|(spec, config)| {
                let topic = NewTopic::new(spec.name, partitions, TopicReplication::Fixed(replication));
                config.iter().fold(topic, |topic, (key, value)| topic.set(key, value))
            })
            .collect();
        let results =
            self.admin("cannot create topics", async |admin, options| admin.create_topics(&topics, options).await)?;
        let mut created = Vec::new();
        for result in results {
            match result {
                Ok(name) => created.push(name),
                Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((name, code)) => {
                    return Err(Error::broker(format!("cannot create topic {name}"), KafkaError::AdminOp(code)));
                }
            }
        }
        Ok(created)
    }

    fn partition_counts(&self) -> Result<BTreeMap<String, i32>, Error> {
        let reader = Reader::new(&self.client, "runwarden-admin", Isolation::Committed)?;
        reader.partition_counts().map_err(|e| Error::broker("cannot read metadata", e))
    }

    fn cleanup_policies(&self, names: &[&str]) -> Result<BTreeMap<String, String>, Error> {
        let resources: Vec<_> = names.iter().map(|name| ResourceSpecifier::Topic(name)).collect();
        let described = self.admin("cannot read topic settings", async |admin, options| {
            admin.describe_configs(&resources, options).await
        })?;
        let mut policies = BTreeMap::new();
        for (name, resource) in names.iter().zip(described) {
            let policy = resource.ok().and_then(|r| r.get("cleanup.policy").and_then(|entry| entry.value.clone()));
            if let Some(policy) = policy {
                policies.insert((*name).to_owned(), policy);
            }
        }
        Ok(policies)
    }
}

impl Provisioner for Mock {
    fn create(&self, specs: &[TopicSpec<'_>], partitions: i32, _replication: i32) -> Result<Vec<String>, Error> {
        let counts = self.partition_counts()?;
        let missing = specs.iter().filter(|spec| !counts.contains_key(spec.name));
        missing
            .map(|spec| {
                self.create_topic(spec.name, partitions)?;
                Ok(spec.name.to_owned())
            })
            .collect()
    }

    fn partition_counts(&self) -> Result<BTreeMap<String, i32>, Error> {
        let reader = Reader::new(&self.settings(), "runwarden-admin", Isolation::Committed)?;
        reader.partition_counts().map_err(|e| Error::broker("cannot read metadata", e))
    }

    fn cleanup_policies(&self, _names: &[&str]) -> Result<BTreeMap<String, String>, Error> {
        Ok(BTreeMap::new())
    }
}
