//! Being the only member of the group, for work that nobody may do beside us (`topics resize`).
//!
//! A transaction that carries the group metadata of one generation is refused by the broker as soon as the group has another:
//! whoever joins meanwhile, whichever way, ends what we do instead of working beside it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerGroupMetadata};
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};

use super::client::{GroupProtocol, Isolation, ShellConfig};
use super::errors::{Error, is_stale_member, is_transient};
use super::group::{Change, Group};
use super::reader::Reader;

const LOOK: Duration = Duration::from_millis(200);
/// Beyond the session time-out: members that died are gone by then.
const PATIENCE: Duration = Duration::from_secs(10);
/// The session time-out of the newer protocol is the broker's; this is its default.
const BROKERS_SESSION: Duration = Duration::from_secs(45);

/// How long members may take to go.
fn patience(config: &ShellConfig) -> Duration {
    PATIENCE
        + match config.group_protocol {
            GroupProtocol::Classic => config.session_timeout,
            GroupProtocol::Consumer => config.session_timeout.max(BROKERS_SESSION),
        }
}

/// Waits until the group has no member; those that died or left without a word go with their session time-out.
///
/// # Errors
/// Members that stay.
pub(super) fn await_empty(config: &ShellConfig, partitions: i32, say: &dyn Fn(&str)) -> Result<(), Error> {
    let reader = Reader::new(&config.client, &config.group, Isolation::Committed)?;
    let deadline = Instant::now() + patience(config);
    let mut said = String::new();
    loop {
        let who = match who(&reader, config, partitions) {
            Ok(None) => return Ok(()),
            Ok(Some(who)) => who,
            Err(error) if is_transient(&error) => format!("the broker does not answer: {error}"),
            Err(error) => return Err(Error::broker(format!("cannot look at the group {}", config.group), error)),
        };
        if Instant::now() >= deadline {
            return Err(Error::Refused(format!(
                "the group {} is in use ({who}): stop every sidecar of it first; nothing was changed",
                config.group
            )));
        }
        if said != who {
            say(&format!("waiting until the group {} has no member: {who}", config.group));
            said = who;
        }
        std::thread::sleep(LOOK);
    }
}

/// Who is in the group, in words; `None`: nobody.
fn who(reader: &Reader, config: &ShellConfig, partitions: i32) -> Result<Option<String>, KafkaError> {
    let members = reader.members(&config.group)?;
    if !members.is_empty() {
        let names: Vec<String> = members.iter().take(5).map(|(client, host)| format!("{client} at {host}")).collect();
        let more = members.len().saturating_sub(names.len());
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        return Ok(Some(names.join(", ") + &more));
    }
    // Members of the newer protocol are not listed: ask by committing what is committed already.
    let telemetry = config.topics.telemetry.as_str();
    let Some(partition) = reader.first_committed(telemetry, partitions)? else { return Ok(None) };
    let Some(offset) = reader.committed(&[telemetry], partition)?.first().copied().flatten() else { return Ok(None) };
    match reader.commit_alone(telemetry, partition, offset) {
        Ok(()) => Ok(None),
        Err(error) if is_stale_member(&error) => Ok(Some("it has members, which are not listed".to_owned())),
        Err(error) => Err(error),
    }
}

/// See the module. Dropped: the group is left.
pub(super) struct Hold {
    /// Of the generation in which every partition is ours.
    pub(super) group: ConsumerGroupMetadata,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Hold {
    /// Joins and waits until all `partitions` of telemetry are ours.
    ///
    /// # Errors
    /// Another member keeps some.
    pub(super) fn take(config: &ShellConfig, partitions: i32) -> Result<Self, Error> {
        let refused = |reason: String| Error::Refused(format!("cannot become the only member of the group: {reason}"));
        let consumer: BaseConsumer<Group> =
            config.consumer(partitions).create_with_context(Group::default()).map_err(Error::settings)?;
        let topic = config.topics.telemetry.as_str();
        consumer.subscribe(&[topic]).map_err(|e| Error::broker("subscribe", e))?;
        let deadline = Instant::now() + patience(config);
        let mut owned = 0;
        while owned < partitions {
            if Instant::now() >= deadline {
                consumer.context().close();
                return Err(refused(format!(
                    "{owned} of {partitions} partitions of {topic} are ours after {:?}; stop every sidecar of {}",
                    patience(config),
                    config.group
                )));
            }
            if let Some(Err(error)) = consumer.poll(Duration::from_millis(50))
                && !is_transient(&error)
            {
                consumer.context().close();
                return Err(Error::broker("cannot join the group", error));
            }
            owned += answer(&consumer, topic)?;
        }
        let group = consumer.group_metadata().ok_or_else(|| refused("the client has no group".into()))?;
        let over = Arc::new(AtomicBool::new(false));
        let (stop, topic) = (Arc::clone(&over), topic.to_owned());
        let keep = move || {
            while !stop.load(Ordering::Acquire) {
                if let Some(Err(error)) = consumer.poll(Duration::from_millis(50)) {
                    tracing::debug!(%error, "holding the group");
                }
                // What the group decides now needs no reply but this: our next transaction fails.
                if let Err(error) = answer(&consumer, &topic) {
                    tracing::debug!(%error, "holding the group");
                }
            }
            consumer.context().close();
        };
        let thread = std::thread::Builder::new().name("hold".into()).spawn(keep).map_err(Error::Thread)?;
        Ok(Self { group, over, thread: Some(thread) })
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::debug!("the thread that held the group panicked");
        }
    }
}

/// Takes and gives up partitions as the group wants, reading none of them; by how many we have more.
fn answer(consumer: &BaseConsumer<Group>, topic: &str) -> Result<i32, Error> {
    let mut more = 0;
    while let Some(change) = consumer.context().next() {
        let (Change::Assign(partitions) | Change::Revoke { partitions, .. }) = &change;
        let count = i32::try_from(partitions.len()).unwrap_or(i32::MAX);
        let mut list = TopicPartitionList::new();
        let added = partitions.iter().try_for_each(|p| list.add_partition_offset(topic, *p, Offset::End));
        let outcome = added.and_then(|()| match change {
            Change::Assign(_) => {
                consumer.incremental_assign(&list)?;
                if count == 0 { Ok(()) } else { consumer.pause(&list) }
            }
            Change::Revoke { .. } => consumer.incremental_unassign(&list),
        });
        outcome.map_err(|e| Error::broker("cannot take partitions of the group", e))?;
        more += if matches!(change, Change::Assign(_)) { count } else { -count };
    }
    Ok(more)
}
