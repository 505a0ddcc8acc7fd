//! What becomes of a record the broker can never take: a described dead letter in its place, in the same transaction.

use sha2::{Digest, Sha256};

use super::core::{OutRecord, Topic};
use super::partition::size;
use super::restore::Plan;
use super::status::Event;
use super::topics::Topics;

/// Longest key kept.
const MAX_KEY: usize = 1024;

/// The dead letter for a refused record: where it was meant to go, how large it was, its hash; never its content. `None`
/// when the refused record is a dead letter already.
pub(super) fn refused(topics: &Topics, record: &OutRecord, reason: &str) -> Option<OutRecord> {
    if record.topic == Topic::DeadLetter {
        return None;
    }
    let target = topics.output(record.topic);
    let payload = record.payload.as_deref().unwrap_or_default();
    let hash: String = Sha256::digest(payload).iter().map(|byte| format!("{byte:02x}")).collect();
    let id = record.headers.iter().find(|(key, _)| key == "ce_id").map(|(_, value)| String::from_utf8_lossy(value));
    let value = serde_json::json!({ "topic": target, "bytes": size(record), "sha256": hash, "ce_id": id });
    let mut headers = vec![
        ("__connect.errors.topic".to_owned(), target.as_bytes().to_vec()),
        ("__connect.errors.exception.message".to_owned(), reason.as_bytes().to_vec()),
        ("runwarden-reason".to_owned(), b"oversize".to_vec()),
    ];
    if let Some(id) = &id {
        // the refused record's CloudEvent, under an id and a type of its own
        let kept = |(name, _): &&(String, Vec<u8>)| matches!(&**name, "ce_source" | "ce_specversion" | "ce_time");
        headers.extend(record.headers.iter().filter(kept).cloned());
        headers.extend([
            ("ce_id".to_owned(), format!("refused/{id}").into_bytes()),
            ("ce_type".to_owned(), b"runwarden.dead-letter.oversize".to_vec()),
            ("ce_subject".to_owned(), id.as_bytes().to_vec()),
            ("content-type".to_owned(), b"application/json".to_vec()),
        ]);
    }
    let key = if record.key.len() <= MAX_KEY { record.key.clone() } else { Vec::new() };
    Some(OutRecord {
        topic: Topic::DeadLetter,
        partition: None,
        key,
        payload: Some(value.to_string().into_bytes()),
        headers,
    })
}

/// Counts and tells.
pub(super) fn report(plan: &Plan, record: &OutRecord, reason: &str) {
    plan.status.counters.dead_letters.add(1);
    let topic = plan.config.topics.output(record.topic);
    plan.observer.on(Event::DeadLettered { topic, bytes: size(record), reason });
}
