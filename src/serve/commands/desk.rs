//! The commands that were sent from here, the results that were read, and who waits for which. Bounded by count, bytes and age.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::sync::oneshot;

use crate::clock::{Micros, SECOND};
use crate::serve::access::{ALL, Caller};

/// How long a result is kept.
pub(super) const KEPT: Micros = 3_600 * SECOND;
/// Most commands known.
const MOST: usize = 10_000;
/// Most bytes of their results.
const MOST_BYTES: usize = 16 << 20;
/// The core's answer to a command whose id another one had.
pub(super) const REUSED: &str = "id_reused";

/// SHA-256 of what a command asks.
pub(super) type Digest = [u8; 32];

/// What tells a repeated command from another with its id, as the core tells them.
pub(super) fn digest(kind: &str, tenant: &str, body: &Value) -> Digest {
    let what = json!([kind, tenant, body]);
    Sha256::digest(serde_json_canonicalizer::to_vec(&what).unwrap_or_default()).into()
}

/// What was sent from here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sent {
    pub(super) kind: &'static str,
    pub(super) tenant: String,
    pub(super) digest: Digest,
}

#[derive(Default)]
struct Entry {
    sent: Option<Sent>,
    result: Option<Arc<Value>>,
    bytes: usize,
    waiting: Vec<oneshot::Sender<Arc<Value>>>,
}

/// How a command begins.
pub(super) enum Begun {
    /// It was answered.
    Known(Arc<Value>),
    /// It has to be sent, and its answer comes here.
    Wait(oneshot::Receiver<Arc<Value>>),
    /// Another command had its id.
    Reused,
}

/// What is known of a command.
#[derive(Debug, PartialEq)]
pub(super) enum Look {
    /// Nothing that the caller may see.
    Nothing,
    /// Its type; it is not answered yet.
    Pending(&'static str),
    /// Its result.
    Done(Arc<Value>),
}

#[derive(Default)]
pub(super) struct Desk {
    entries: HashMap<String, Entry>,
    order: VecDeque<(Micros, String)>,
    bytes: usize,
}

impl Desk {
    /// A command that is about to be sent.
    pub(super) fn begin(&mut self, id: &str, sent: Sent, now: Micros) -> Begun {
        self.sweep(now);
        let entry = self.entry(id, now);
        match (&entry.sent, &entry.result) {
            (Some(known), _) if known.digest != sent.digest => return Begun::Reused,
            (Some(_), Some(result)) => return Begun::Known(Arc::clone(result)),
            // a result of what another process sent under this id may be of another command: the core tells them apart
            _ => {}
        }
        entry.sent = Some(sent);
        let (waker, waits) = oneshot::channel();
        // who went away in between need not be kept
        entry.waiting.retain(|waker| !waker.is_closed());
        entry.waiting.push(waker);
        Begun::Wait(waits)
    }

    /// A result that was read; `bytes`: its size.
    pub(super) fn take(&mut self, result: Value, bytes: usize, now: Micros) {
        let Some(id) = result.get("command_id").and_then(Value::as_str).map(str::to_owned) else { return };
        self.sweep(now);
        let reused = result.get("code").is_some_and(|code| code == REUSED);
        let result = Arc::new(result);
        let entry = self.entry(&id, now);
        for waker in entry.waiting.drain(..) {
            if waker.send(Arc::clone(&result)).is_err() {
                tracing::trace!(id, "who waited for a command is gone");
            }
        }
        if reused {
            // the first command's answer stays, and what was sent from here was not that one
            entry.sent = None;
            return;
        }
        let before = std::mem::replace(&mut entry.bytes, bytes);
        entry.result = Some(result);
        self.bytes = self.bytes.saturating_sub(before).saturating_add(bytes);
    }

    /// What is known of a command, as far as the caller may see it.
    pub(super) fn look(&self, id: &str, caller: &Caller) -> Look {
        let Some(entry) = self.entries.get(id) else { return Look::Nothing };
        let sees = match (&entry.sent, &entry.result) {
            (Some(sent), _) => caller.sees(&sent.tenant),
            (None, Some(result)) => caller.sees(whose(result)),
            (None, None) => false,
        };
        match (&entry.result, &entry.sent) {
            _ if !sees => Look::Nothing,
            (Some(result), _) => Look::Done(Arc::clone(result)),
            (None, Some(sent)) => Look::Pending(sent.kind),
            (None, None) => Look::Nothing,
        }
    }

    fn entry(&mut self, id: &str, now: Micros) -> &mut Entry {
        if !self.entries.contains_key(id) {
            self.order.push_back((now, id.to_owned()));
        }
        self.entries.entry(id.to_owned()).or_default()
    }

    /// Forgets what is too old, and the oldest of what is too much.
    fn sweep(&mut self, now: Micros) {
        while let Some((at, _)) = self.order.front()
            && (at.saturating_add(KEPT) <= now || self.entries.len() >= MOST || self.bytes > MOST_BYTES)
        {
            let gone = self.order.pop_front().and_then(|(_, id)| self.entries.remove(&id));
            self.bytes = self.bytes.saturating_sub(gone.map_or(0, |entry| entry.bytes));
        }
    }
}

/// Whose a result is, where another process sent the command: the record's key, or of what concerns everyone what was made of it.
fn whose(result: &Value) -> &str {
    let text = |pointer: &str| result.pointer(pointer).and_then(Value::as_str);
    match text("/tenant_id") {
        Some(tenant) if tenant != ALL => tenant,
        _ => text("/result/tenant_id").unwrap_or(ALL),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(tenant: &str, body: Value) -> Sent {
        Sent { kind: "limit.enable", tenant: tenant.into(), digest: digest("limit.enable", tenant, &body) }
    }

    fn result(id: &str, code: &str) -> Value {
        json!({"command_id": id, "code": code, "tenant_id": "*", "result": {"tenant_id": "acme"}})
    }

    fn waits(begun: Begun) -> oneshot::Receiver<Arc<Value>> {
        match begun {
            Begun::Wait(waits) => waits,
            Begun::Known(result) => panic!("known: {result}"),
            Begun::Reused => panic!("reused"),
        }
    }

    #[test]
    fn everyone_who_waits_for_a_command_gets_its_answer_and_who_repeats_it_too() {
        let mut desk = Desk::default();
        let mut first = waits(desk.begin("c", sent("acme", json!({"a": 1, "b": 2})), 0));
        let mut second = waits(desk.begin("c", sent("acme", json!({"b": 2, "a": 1})), 0));
        assert!(first.try_recv().is_err());
        desk.take(result("c", "ok"), 10, 0);
        assert_eq!(first.try_recv().unwrap()["code"], "ok");
        assert_eq!(second.try_recv().unwrap()["code"], "ok");
        assert!(matches!(desk.begin("c", sent("acme", json!({"b": 2, "a": 1})), 0), Begun::Known(_)));
        assert!(matches!(desk.begin("c", sent("acme", json!({"a": 2})), 0), Begun::Reused));
        assert!(matches!(desk.begin("c", sent("other", json!({"a": 1, "b": 2})), 0), Begun::Reused));
    }

    #[test]
    fn whether_a_result_of_another_process_is_ours_the_core_says() {
        let mut desk = Desk::default();
        desk.take(result("c", "ok"), 10, 0);
        let mut asked = waits(desk.begin("c", sent("acme", json!({})), 0));
        desk.take(result("c", REUSED), 10, 0);
        assert_eq!(asked.try_recv().unwrap()["code"], REUSED);
        let Look::Done(kept) = desk.look("c", &Caller::new("a", 1, ALL)) else { panic!("it is known") };
        assert_eq!(kept["code"], "ok", "the first one's answer stays");
        let mut again = waits(desk.begin("c", sent("acme", json!({})), 0));
        desk.take(result("c", "ok"), 10, 0);
        assert_eq!(again.try_recv().unwrap()["code"], "ok");
    }

    #[test]
    fn a_result_is_shown_to_its_tenant_only() {
        let mut desk = Desk::default();
        let [acme, other, all] = ["acme", "other", ALL].map(|tenant| Caller::new("a", 1, tenant));
        drop(waits(desk.begin("sent", sent("acme", json!({})), 0)));
        assert_eq!(desk.look("sent", &acme), Look::Pending("limit.enable"));
        assert_eq!(desk.look("sent", &other), Look::Nothing);
        desk.take(result("sent", "ok"), 10, 0);
        desk.take(result("foreign", "ok"), 10, 0);
        desk.take(json!({"command_id": "refused", "code": "conflict", "tenant_id": "*", "result": null}), 10, 0);
        desk.take(json!({"command_id": "of-acme", "code": "ok", "tenant_id": "acme", "result": null}), 10, 0);
        for (id, of_acme) in [("sent", true), ("foreign", true), ("refused", false), ("of-acme", true), ("none", false)]
        {
            assert_eq!(matches!(desk.look(id, &acme), Look::Done(_)), of_acme, "{id}");
            assert_eq!(desk.look(id, &other), Look::Nothing, "{id}");
            assert_eq!(matches!(desk.look(id, &all), Look::Done(_)), id != "none", "{id}");
        }
    }

    #[test]
    fn what_is_kept_is_bounded_by_age_count_and_bytes() {
        let all = Caller::new("a", 1, ALL);
        let mut desk = Desk::default();
        desk.take(result("old", "ok"), 10, 0);
        desk.take(result("young", "ok"), 10, KEPT - 1);
        desk.take(result("new", "ok"), 10, KEPT);
        assert_eq!(desk.look("old", &all), Look::Nothing);
        assert!(matches!(desk.look("young", &all), Look::Done(_)));
        let mut desk = Desk::default();
        (0..MOST + 5).for_each(|n| desk.take(result(&n.to_string(), "ok"), 1, 0));
        assert_eq!((desk.entries.len(), desk.order.len(), desk.bytes), (MOST, MOST, MOST));
        let mut desk = Desk::default();
        (0..5).for_each(|n| desk.take(result(&n.to_string(), "ok"), MOST_BYTES / 2, 0));
        assert!(desk.bytes <= MOST_BYTES * 3 / 2 && desk.entries.len() == 3, "{}", desk.entries.len());
        // the same one again is held once
        (0..9).for_each(|_| desk.take(result("4", "ok"), MOST_BYTES / 2, 0));
        assert!(desk.bytes <= MOST_BYTES * 3 / 2);
    }
}
