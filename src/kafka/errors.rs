//! What can go wrong at the broker, sorted by what has to be done about it.
//!
//! [`classify`] is the table of the transactional protocol: retry, abort, rebuild, or stop. Everything the shell does after a
//! failure follows from its [`Class`].

use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

use super::core::CoreError;
use super::refusal::{self, Refusal};

/// Why the shell (or a client helper) gave up. Retriable trouble is handled inside and never surfaces here.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A client could not be created: a bad property.
    #[error("Kafka client settings are not accepted: {0}")]
    Settings(#[source] KafkaError),
    /// Settings that need what this build was made without.
    #[error(
        "[kafka.client] {property} needs TLS or SCRAM, and this build of runwarden has neither: take one made with `--features tls`, such as the \
         image"
    )]
    NeedsTls {
        /// The property.
        property: String,
    },
    /// A call failed after the broker and this process did not come to an understanding.
    #[error(transparent)]
    Refusal(Box<Refused>),
    /// A call to the broker failed for good.
    #[error("{context}")]
    Broker {
        /// What was being done.
        context: String,
        /// The client's error.
        source: KafkaError,
    },
    /// Topics exist with partition counts that cannot work together.
    #[error(
        "topic {other} has {other_partitions} partitions but {telemetry} has {partitions}: they must be equal, because a tenant's records \
         of both must meet at one owner; run `runwarden topics resize` again if it was broken off, else recreate {other}"
    )]
    Partitions {
        /// The telemetry topic.
        telemetry: String,
        /// Its partitions.
        partitions: i32,
        /// The topic that differs.
        other: String,
        /// Its partitions.
        other_partitions: i32,
    },
    /// A topic has a clean-up policy that would lose what we keep in it.
    #[error(
        "topic {topic} has cleanup.policy={found}, it must be {wanted}: change it with kafka-configs or recreate it"
    )]
    Cleanup {
        /// Topic.
        topic: String,
        /// Its policy.
        found: String,
        /// The one it needs.
        wanted: &'static str,
    },
    /// A topic does not exist.
    #[error("topic {0} does not exist: create it with `runwarden topics create`")]
    MissingTopic(String),
    /// Another process holds the same transactional id.
    #[error(
        "transactional id {id} was taken over twice within 30 s: another sidecar runs with the same group and slot; give each its own \
         [kafka] slot"
    )]
    FencedTwice {
        /// The id.
        id: String,
    },
    /// The credentials do not allow what is needed. Never a dead letter, never a loop.
    #[error("not authorised: {context}")]
    Denied {
        /// What was being done.
        context: String,
        /// The client's error.
        source: KafkaError,
    },
    /// The core failed.
    #[error("partition {partition}: the core failed")]
    Core {
        /// Partition.
        partition: i32,
        /// Its error.
        source: CoreError,
    },
    /// The broker refuses our own internal records.
    #[error("topic {topic} refuses a record of {bytes} bytes: raise its max.message.bytes to at least 1048588")]
    InternalRecord {
        /// Topic.
        topic: String,
        /// Size of key and value.
        bytes: usize,
    },
    /// State that stands for another number of partitions than the topics have.
    #[error(
        "the state of partition {partition} is that of {found} partitions, but the topics have {partitions}: stop every sidecar \
         of the group, then run `runwarden topics resize --partitions {partitions}`"
    )]
    Resized {
        /// Partition.
        partition: i32,
        /// What the topics have.
        partitions: i32,
        /// What the state says.
        found: i32,
    },
    /// A resize that cannot be done as asked; nothing was changed by what was refused.
    #[error("{0}")]
    Refused(String),
    /// A resize that was broken off; the same command goes on where it stopped.
    #[error("broken off: {0}; run the same command again, it goes on from here")]
    BrokenOff(String),
    /// A setting only the mock takes was used on a real broker, or the other way round.
    #[error("{0}")]
    Unsupported(String),
    /// A thread could not be started.
    #[error("cannot start a thread")]
    Thread(#[source] std::io::Error),
}

/// What failed, and of what.
#[derive(Debug, thiserror::Error)]
#[error("{context}: {refusal} (librdkafka: {said})")]
pub struct Refused {
    /// What was being done.
    pub context: String,
    /// Who refuses what, and what to do.
    pub refusal: Refusal,
    /// librdkafka's words for it.
    pub said: String,
    /// The call's own error.
    pub source: KafkaError,
}

impl Error {
    pub(crate) fn broker(context: impl Into<String>, source: KafkaError) -> Self {
        let context = context.into();
        match (classify(&source), unreached(&source).then(refusal::recent).flatten()) {
            (Class::Denied, _) => Self::Denied { context, source },
            (_, Some((refusal, said))) => Self::Refusal(Box::new(Refused { context, refusal, said, source })),
            _ => Self::Broker { context, source },
        }
    }

    /// A client that cannot be made. The value of a property is not said: it may be a secret.
    pub(crate) fn settings(source: KafkaError) -> Self {
        match source {
            KafkaError::ClientConfig(_, said, property, _) if said.contains("not available at build time") => {
                Self::NeedsTls { property }
            }
            KafkaError::ClientConfig(code, said, property, _) => {
                Self::Settings(KafkaError::ClientConfig(code, said, property, String::new()))
            }
            source => Self::Settings(source),
        }
    }
}

/// What to do about a failed call of the transactional protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Call the same function again.
    Retry,
    /// Abort the transaction and send it again.
    Abort,
    /// A newer holder of our transactional id exists, or the coordinator gave up on us: rebuild, and count.
    Fenced,
    /// The producer is unusable, or we broke the protocol: rebuild.
    Fatal,
    /// Not authorised: stop.
    Denied,
}

/// Sorts a client error. Unknown errors are fatal: rebuilding re-reads the truth from the broker.
pub fn classify(error: &KafkaError) -> Class {
    if let Some(code) = error.rdkafka_error_code()
        && denied(code)
    {
        return Class::Denied;
    }
    match error {
        KafkaError::Transaction(e) if e.is_fatal() => match e.code() {
            Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch => Class::Fenced,
            _ => Class::Fatal,
        },
        KafkaError::Transaction(e) if e.txn_requires_abort() => Class::Abort,
        KafkaError::Transaction(e) if e.is_retriable() => Class::Retry,
        KafkaError::Flush(_) => Class::Retry,
        _ => Class::Fatal,
    }
}

/// Whether no broker was there to answer, as far as the call knows.
fn unreached(error: &KafkaError) -> bool {
    let code = error.rdkafka_error_code();
    matches!(
        code,
        Some(
            Code::BrokerTransportFailure
                | Code::AllBrokersDown
                | Code::OperationTimedOut
                | Code::MessageTimedOut
                | Code::Authentication
                | Code::SSL
                | Code::Resolve
        )
    )
}

/// What was refused, where a call failed of that: for reasons of not being ready.
pub(super) fn why(error: &KafkaError) -> String {
    match unreached(error).then(refusal::recent).flatten() {
        Some((refusal, _)) => format!("{error}: {refusal}"),
        None => error.to_string(),
    }
}

const fn denied(code: Code) -> bool {
    matches!(
        code,
        Code::TopicAuthorizationFailed
            | Code::GroupAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::TransactionalIdAuthorizationFailed
    )
}

/// Whether a failed call came from being outside the group's current generation: the partitions are probably lost.
pub fn is_stale_member(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            Code::IllegalGeneration
                | Code::UnknownMemberId
                | Code::StaleMemberEpoch
                | Code::FencedMemberEpoch
                | Code::FencedInstanceId
                | Code::RebalanceInProgress
        )
    )
}

/// Whether one record alone is at fault, so that sending it again can never work.
pub const fn is_poison(code: Code) -> bool {
    matches!(
        code,
        Code::MessageSizeTooLarge | Code::InvalidRecord | Code::InvalidMessage | Code::UnsupportedForMessageFormat
    )
}

/// Whether the same call may work later: the broker is away, starting, or moving a coordinator.
pub fn is_transient(error: &KafkaError) -> bool {
    let Some(code) = error.rdkafka_error_code() else { return false };
    !denied(code)
        && !matches!(code, Code::InvalidArgument | Code::UnsupportedSASLMechanism | Code::SaslAuthenticationFailed)
}
