//! Where the telemetry of a simulation comes from: files, or what a topic holds. Both can be read again.

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Arc;

use crate::cli::{Failure, SimulateArguments, load};
use crate::kafka::ClientSettings;
use crate::kafka::core::Input;
use crate::kafka::history::{History, Records};
use crate::kafka::reader::OwnedRecord;
use crate::telemetry::Origin;
use crate::telemetry::files::{FileRecord, Files, Payload, event_time};

/// Recorded telemetry.
pub(in crate::cli) enum Recorded {
    Files(Vec<PathBuf>),
    /// Of one tenant, or of all.
    Topic(History, Option<String>),
}

impl Recorded {
    /// As the arguments say.
    pub(in crate::cli) fn of(arguments: &SimulateArguments) -> Result<Self, Failure> {
        if !arguments.from_topic {
            return Ok(Self::Files(arguments.telemetry.clone()));
        }
        let config = load::config(arguments.config.path())?;
        let client: ClientSettings = load::shell(&config).client;
        let since = arguments.since.map(|since| since.0);
        History::find(&client, &config.topics.telemetry, since)
            .map(|history| Self::Topic(history, None))
            .map_err(Failure::reach)
    }

    /// For messages.
    pub(in crate::cli) fn name(&self) -> String {
        match self {
            Self::Files(paths) => paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", "),
            Self::Topic(history, _) => format!("topic {}", history.topic()),
        }
    }

    /// Reads it from the beginning.
    pub(super) fn open(&self, record_bytes: usize) -> Result<Source, Failure> {
        Ok(match self {
            Self::Files(paths) => {
                let files = Files::open(paths, Input::Telemetry as u8, record_bytes).map_err(Failure::unreadable)?;
                Source::Files(files)
            }
            Self::Topic(history, tenant) => Source::Topic {
                records: history.read(event_time).map_err(Failure::reach)?,
                span: history.span(),
                last: None,
                topic: history.topic().into(),
                tenant: tenant.as_deref().map(Into::into),
            },
        })
    }
}

/// Recorded telemetry being read.
pub(super) enum Source {
    Files(Files),
    Topic { records: Records, span: u64, last: Option<OwnedRecord>, topic: Arc<str>, tenant: Option<Box<str>> },
}

impl Source {
    /// How far, and how much there is: bytes of files, offsets of a topic.
    pub(super) fn progress(&self) -> (u64, u64) {
        match self {
            Self::Files(files) => files.progress(),
            Self::Topic { records, span, .. } => (records.passed(), *span),
        }
    }

    /// The next record; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<FileRecord<'_>>, Failure> {
        match self {
            Self::Files(files) => files.next().map_err(Failure::unreadable),
            Self::Topic { records, last, topic, tenant, .. } => {
                loop {
                    *last = records.next().map_err(Failure::reach)?;
                    let (Some(tenant), Some(record)) = (&tenant, &last) else { break };
                    if record.payload.as_deref().is_some_and(|payload| is_of(payload, tenant)) {
                        break;
                    }
                }
                Ok(last.as_ref().map(|record| FileRecord {
                    origin: Origin {
                        input: Input::Telemetry as u8,
                        topic: Arc::clone(topic),
                        partition: record.partition,
                        offset: record.offset,
                    },
                    payload: match &record.payload {
                        Some(bytes) => Payload::Json(bytes),
                        None => Payload::Bad("the record has no value", b""),
                    },
                }))
            }
        }
    }
}

/// Whether an event is a tenant's. What cannot be read is nobody's.
fn is_of(payload: &[u8], tenant: &str) -> bool {
    #[derive(serde::Deserialize)]
    struct Glance<'a> {
        #[serde(borrow)]
        tenant_id: Cow<'a, str>,
    }
    serde_json::from_slice::<Glance<'_>>(payload).is_ok_and(|glance| glance.tenant_id == tenant)
}
