//! Decisions as records: JSON values, compacted or tenant keys, and CloudEvents in Kafka binary mode.
//!
//! The seven CloudEvents headers are written by hand (`ecosystem.md` §3): `ce_id` is unique per record, so it carries the
//! revision of what has a life.

use serde::Serialize;

use crate::clock::Wall;
use crate::decide::id::{part, rfc3339};
use crate::decide::records::{Decision, Live};
use crate::kafka::core::{CoreError, OutRecord, Topic};
use crate::telemetry::DeadLetter;

/// A decision as a record. `now` is the step's clock, `source` the CloudEvents source of this deployment.
pub fn record(decision: &Decision, now: Wall, source: &str) -> Result<OutRecord, CoreError> {
    match decision {
        Decision::Signal(s) => {
            let kind = format!("runwarden.signal.{}", s.kind.as_str().to_lowercase());
            let head = Head { id: s.signal_id.clone(), kind, time: s.decided_at, subject: &s.scope.id };
            event(Topic::Signals, &s.tenant_id, source, &head, &**s)
        }
        Decision::Alert(a) => {
            let kind = format!("runwarden.alert.{}", a.status.as_str().to_lowercase());
            let id = format!("{}/{}", a.alert_id, a.revision);
            event(Topic::Alerts, &a.tenant_id, source, &Head { id, kind, time: now.0, subject: &a.alert_id }, &**a)
        }
        Decision::Intervention(i) => {
            let id = format!("{}/{}", i.intervention_id, i.revision);
            let kind = format!("runwarden.intervention.{}", i.kind.to_lowercase());
            let time = if i.revision == 1 { i.created_at } else { now.0 };
            let head = Head { id, kind, time, subject: &i.target.id };
            event(Topic::Interventions, &i.tenant_id, source, &head, &**i)
        }
        Decision::Guardian(g) => {
            let head = Head { id: g.event_id.clone(), kind: g.event_type.clone(), time: g.at, subject: &g.event_id };
            event(Topic::Interventions, &g.tenant_id, source, &head, &g.payload)
        }
        Decision::Lesson(l) => {
            let key = format!("{}/{}", part(&l.tenant_id), part(&l.id));
            let id = format!("{}/{}", l.id, l.revision);
            let head =
                Head { id, kind: format!("runwarden.lesson.{}", l.status.as_str()), time: now.0, subject: &l.id };
            event(Topic::Lessons, &key, source, &head, &**l)
        }
        Decision::Run(r) => {
            let kind = format!("runwarden.run.{}", format!("{:?}", r.status).to_lowercase());
            let id = format!("{}/{}/{}", part(&r.tenant_id), part(&r.run_id), r.ended_at);
            event(Topic::Runs, &r.tenant_id, source, &Head { id, kind, time: r.ended_at, subject: &r.run_id }, &**r)
        }
        Decision::Audit(a) => {
            let kind = format!("runwarden.audit.{}", a.kind);
            let head = Head { id: a.audit_id.clone(), kind, time: a.at, subject: &a.subject.id };
            event(Topic::Audit, &a.tenant_id, source, &head, &**a)
        }
        Decision::CommandResult(r) => {
            let head = Head {
                id: format!("{}/{}", r.command_id, r.offset),
                kind: "runwarden.command.result".into(),
                time: now.0,
                subject: &r.command_id,
            };
            event(Topic::CommandResults, &r.tenant_id, source, &head, &**r)
        }
        Decision::Command(c) => {
            // it goes out signed; unsigned it is nothing
            let head = Head { id: c.command_id.clone(), kind: c.kind.clone(), time: now.0, subject: &c.command_id };
            event(Topic::Commands, c.key(), source, &head, &**c)
        }
        Decision::Policy(p) => {
            let id = p.id.iter().map(|p| part(p)).collect::<Vec<_>>().join("/");
            let key = format!("{}/{}/{id}", part(&p.tenant_id), p.kind);
            let happened = if p.record.is_some() { "changed" } else { "gone" };
            let kind = format!("runwarden.{}.{happened}", p.kind);
            let head = Head { id: format!("{key}/{}/{}", p.revision, now.0), kind, time: now.0, subject: &id };
            Ok(OutRecord {
                topic: Topic::Policies,
                partition: None,
                key: key.into_bytes(),
                payload: p.record.clone().map(String::into_bytes),
                headers: head.headers(source),
            })
        }
        Decision::Level(l) => {
            let key = part(&l.tenant_id);
            let id = format!("{key}/level/{}", l.revision);
            let kind = format!("runwarden.level.{}", l.policy.as_str().to_lowercase());
            event(
                Topic::PolicyLevel,
                &key,
                source,
                &Head { id, kind, time: l.evaluated_at, subject: &l.tenant_id },
                &**l,
            )
        }
        Decision::Response(r) => {
            let id = format!("{}/{}", r.response_id, r.revision);
            let head = Head { id, kind: "runwarden.response.planned".into(), time: now.0, subject: &r.response_id };
            event(Topic::PolicyLevel, RESPONSE_KEY, source, &head, &**r)
        }
        Decision::Evaluation(e) => {
            let id = format!("{}/{}", part(&e.tenant_id), rfc3339(e.minute));
            let head = Head { id, kind: "runwarden.evaluation.minute".into(), time: now.0, subject: &e.tenant_id };
            event(Topic::Evaluations, &e.tenant_id, source, &head, &**e)
        }
    }
}

/// What is live as a record: a tombstone takes it off.
pub fn live(live: &Live, now: Wall, source: &str) -> OutRecord {
    let key = live.key();
    let happened = if live.record.is_some() { "changed" } else { "gone" };
    let kind = format!("runwarden.live.{}.{happened}", live.kind);
    let subject = live.id.last().map(String::as_str).unwrap_or_default();
    let headers = Head { id: format!("{key}/{}", now.0), kind, time: now.0, subject }.headers(source);
    let payload = live.record.clone().map(String::into_bytes);
    OutRecord { topic: Topic::Live, partition: None, key: key.into_bytes(), payload, headers }
}

/// Key under which the policy-level topic keeps the latest response: no tenant has it, since theirs are percent-encoded.
pub const RESPONSE_KEY: &str = "*/response";

/// What a CloudEvent says of itself.
pub struct Head<'a> {
    /// Unique per record.
    pub id: String,
    /// `runwarden.<what>.<happened>`
    pub kind: String,
    /// µs
    pub time: i64,
    /// What it is about.
    pub subject: &'a str,
}

/// A value as a CloudEvent in Kafka binary mode, keyed by `key`.
pub fn event(
    topic: Topic,
    key: &str,
    source: &str,
    head: &Head<'_>,
    value: &impl Serialize,
) -> Result<OutRecord, CoreError> {
    let payload = serde_json::to_vec(value)
        .map_err(|e| CoreError { context: "cannot encode a decision", message: e.to_string() })?;
    let headers = head.headers(source);
    Ok(OutRecord { topic, partition: None, key: key.as_bytes().to_vec(), payload: Some(payload), headers })
}

impl Head<'_> {
    /// The seven headers.
    pub fn headers(&self, source: &str) -> Vec<(String, Vec<u8>)> {
        vec![
            ("ce_id".to_owned(), self.id.clone().into_bytes()),
            ("ce_source".to_owned(), source.as_bytes().to_vec()),
            ("ce_type".to_owned(), self.kind.clone().into_bytes()),
            ("ce_specversion".to_owned(), b"1.0".to_vec()),
            ("ce_time".to_owned(), rfc3339(self.time).into_bytes()),
            ("ce_subject".to_owned(), part(self.subject).into_bytes()),
            ("content-type".to_owned(), b"application/json".to_vec()),
        ]
    }
}

/// The headers of a dead letter: where it came from and why, and those of a CloudEvent. An input record has one dead letter,
/// so its place names it.
pub fn dead_letter(dead: &DeadLetter, now: Wall, source: &str) -> Vec<(String, Vec<u8>)> {
    let place = format!("{}/{}/{}", part(&dead.origin.topic), dead.origin.partition, dead.origin.offset);
    let kind = format!("runwarden.dead-letter.{}", dead.reason.as_str());
    let mut headers = dead.headers();
    headers.extend(Head { id: place.clone(), kind, time: now.0, subject: &place }.headers(source));
    if serde_json::from_slice::<serde::de::IgnoredAny>(&dead.value).is_err() {
        // kept as it came (`[telemetry] keep-undecodable`)
        headers.retain(|(name, _)| name != "content-type");
        headers.push(("content-type".to_owned(), b"application/octet-stream".to_vec()));
    }
    headers
}

/// FNV-1a over what a step says: stable over versions of the standard library, cheap, and order-sensitive.
#[derive(Debug, Clone, Copy)]
pub struct Digest(u64);

impl Default for Digest {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Digest {
    /// Takes more bytes.
    pub fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    /// Takes a record.
    pub fn record(&mut self, record: &OutRecord) {
        self.write(&[record.topic as u8]);
        self.write(&record.partition.unwrap_or(-1).to_le_bytes());
        self.write(&record.key);
        self.write(record.payload.as_deref().unwrap_or_default());
    }

    /// The digest.
    pub fn finish(self) -> u64 {
        self.0
    }
}
