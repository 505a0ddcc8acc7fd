//! The verdicts of this process (I8): what holds each scope, in a map that many readers and few writers share.
//!
//! Fed by the owner before its decisions are committed, and by following interventions and signals for what others own. A look-up is
//! one map access for each scope asked about: no lock is held over more than one of them, and nothing of the core is touched.

use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::DashMap;
use rustc_hash::FxBuildHasher;
use serde::Serialize;
use tokio::sync::broadcast;

use crate::clock::{Micros, SECOND, Wall};
use crate::decide::id::time;
use crate::decide::records::{Intervention, Signal, Subject};
use crate::decide::verdict::{Held, Holds, Verdict};

/// Changes kept for a listener that is slow; one that is slower is told how many it missed.
const NEWS: usize = 4_096;
/// Scopes held at most.
pub const MOST: usize = 2_000_000;
/// What no longer holds is remembered so long, so that a late record of it says nothing.
const QUIET: Micros = 600 * SECOND;
/// Longest id that is looked for, in bytes; no scope has a longer one.
pub const MAX_ID: usize = 1_024;

/// The scopes that a run may be asked about under, as records name them; the run itself comes first.
pub const SCOPES: [&str; 7] = ["RUN", "AGENT", "API_KEY", "HUMAN_ACTOR", "PROJECT", "PROVIDER", "TENANT"];

/// What whoever asks is told (`contracts.md`, *Verdict*).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Answer {
    /// The run asked about; null when it was not about one.
    pub run_id: Option<String>,
    /// allow queue degrade reject pause stop kill
    pub verdict: Verdict,
    /// In words; empty with allow.
    pub reason: String,
    /// Which of the scopes is held.
    pub scope: Option<Subject>,
    /// The policy.
    pub policy_id: Option<String>,
    /// The BREACH.
    pub signal_id: Option<String>,
    /// The intervention.
    pub intervention_id: Option<String>,
    /// When to ask again, where that is known.
    pub retry_after_seconds: Option<i64>,
    /// For degrade.
    pub fallback_model: Option<String>,
    /// When it was decided.
    #[serde(with = "time::option")]
    pub decided_at: Option<Micros>,
}

/// A change of what holds a scope.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Change {
    /// Whose.
    pub tenant_id: String,
    /// What holds it now.
    #[serde(flatten)]
    pub answer: Answer,
}

/// What holds which scope.
#[derive(Debug)]
pub struct Verdicts {
    scopes: DashMap<Box<str>, Holds, FxBuildHasher>,
    news: broadcast::Sender<std::sync::Arc<Change>>,
    refused: AtomicU64,
}

impl Default for Verdicts {
    fn default() -> Self {
        let news = broadcast::channel(NEWS).0;
        Self { scopes: DashMap::with_hasher(FxBuildHasher), news, refused: AtomicU64::new(0) }
    }
}

/// The key of a scope. The length of the tenant keeps tenants apart whatever their names hold.
fn key(buffer: &mut String, tenant: &str, kind: &str, id: &str) {
    use std::fmt::Write as _;
    buffer.clear();
    // writing to a string cannot fail
    let _ok = write!(buffer, "{}:{tenant}{kind}:{id}", tenant.len());
}

fn answer(scope: Option<(&str, &str)>, run: Option<&str>, held: Option<&Held>, now: Micros) -> Answer {
    Answer {
        run_id: run.map(str::to_owned),
        verdict: held.map_or(Verdict::Allow, |held| held.verdict),
        reason: held.map(|held| held.reason.clone()).unwrap_or_default(),
        scope: scope.map(|(kind, id)| Subject { kind: kind.to_owned(), id: id.to_owned() }),
        policy_id: held.map(|held| held.policy_id.clone()).filter(|id| !id.is_empty()),
        signal_id: held.and_then(|held| held.signal_id.clone()),
        intervention_id: held.and_then(|held| held.intervention_id.clone()),
        retry_after_seconds: held.and_then(|held| held.retry_after(now)),
        fallback_model: held.and_then(|held| held.fallback_model.clone()),
        decided_at: held.map(|held| held.decided_at),
    }
}

impl Verdicts {
    /// Takes a record of an intervention.
    pub fn intervention(&self, record: &Intervention, now: Wall) {
        if Holds::concerns(record) {
            self.change(&record.tenant_id, &record.target, now, |holds| holds.intervention(record, now.0));
        }
    }

    /// Takes a signal.
    pub fn signal(&self, signal: &Signal, now: Wall) {
        use crate::decide::records::Kind;
        match signal.kind {
            Kind::Near => return,
            // the end of what is not known here ends nothing
            Kind::Resolved => {
                let mut name = String::new();
                key(&mut name, &signal.tenant_id, &signal.scope.kind, &signal.scope.id);
                if !self.scopes.contains_key(name.as_str()) {
                    return;
                }
            }
            Kind::Breach => {}
        }
        self.change(&signal.tenant_id, &signal.scope, now, |holds| holds.signal(signal, now.0));
    }

    fn change(&self, tenant: &str, scope: &Subject, now: Wall, change: impl FnOnce(&mut Holds)) {
        let mut name = String::new();
        key(&mut name, tenant, &scope.kind, &scope.id);
        if self.scopes.len() >= MOST && !self.scopes.contains_key(name.as_str()) {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let mut entry = self.scopes.entry(name.into_boxed_str()).or_insert_with(|| Holds::of(&scope.kind));
        let before = entry.worst(now.0).cloned();
        change(&mut entry);
        let after = entry.worst(now.0);
        if before.as_ref() == after || self.news.receiver_count() == 0 {
            return;
        }
        let run = (scope.kind == "RUN").then_some(scope.id.as_str());
        let answer = answer(Some((&scope.kind, &scope.id)), run, after, now.0);
        let change = Change { tenant_id: tenant.to_owned(), answer };
        drop(entry);
        if self.news.send(std::sync::Arc::new(change)).is_err() {
            tracing::trace!("whoever listened is gone");
        }
    }

    /// The harshest verdict over these scopes of a tenant, given in the order of [`SCOPES`]; `None` and empty ids are not asked about.
    pub fn ask(&self, tenant: &str, ids: [Option<&str>; SCOPES.len()], now: Wall) -> Answer {
        let mut name = String::with_capacity(96);
        let mut worst: Option<(usize, &str, Held)> = None;
        for (index, (kind, id)) in SCOPES.iter().zip(ids).enumerate() {
            let Some(id) = id.filter(|id| !id.is_empty() && id.len() <= MAX_ID) else { continue };
            key(&mut name, tenant, kind, id);
            let Some(holds) = self.scopes.get(name.as_str()) else { continue };
            let Some(held) = holds.worst(now.0) else { continue };
            if worst.as_ref().is_none_or(|(_, _, known)| held.verdict > known.verdict) {
                worst = Some((index, id, held.clone()));
            }
        }
        let run = ids.first().copied().flatten();
        match worst {
            Some((index, id, held)) => answer(SCOPES.get(index).map(|kind| (*kind, id)), run, Some(&held), now.0),
            None => answer(None, run, None, now.0),
        }
    }

    /// Changes from here on.
    pub fn listen(&self) -> broadcast::Receiver<std::sync::Arc<Change>> {
        self.news.subscribe()
    }

    /// How many scopes are known, held or not.
    pub fn len(&self) -> usize {
        self.scopes.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.scopes.is_empty()
    }

    /// Records that were not taken because there are too many scopes, since the start.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Forgets what need not be known any more; `kept`: how long what still holds is remembered after the last word about it, µs.
    pub fn sweep(&self, now: Wall, kept: Micros) {
        let (quiet, forgotten) = (now.0.saturating_sub(QUIET), now.0.saturating_sub(kept));
        self.scopes.retain(|_, holds| !holds.is_over(now.0, quiet, forgotten));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: Wall = Wall(1_000 * SECOND);

    fn order(tenant: &str, kind: &str, target: (&str, &str), revision: u64, state: &str) -> Intervention {
        serde_json::from_value(json!({
            "intervention_id": format!("{kind}-{}", target.1), "revision": revision, "state": state, "mode": "enforced", "type": kind,
            "target": {"kind": target.0, "id": target.1}, "parameters": {}, "tenant_id": tenant, "run_id": null, "policy_id": "p",
            "signal_id": null, "reason": "too much", "authority_level": 5, "initiated_by": "policy:p", "principal": "runwarden",
            "approval_required": false, "approved_by": null, "created_at": "1970-01-01T00:16:40Z", "issued_at": null, "deadline": null,
            "executed_at": null, "reverted_at": null, "reverted_by": null, "supersedes": null, "parent_intervention_id": null,
            "audit_log": {"before": null, "after": null, "parameters": {}, "results": null},
        }))
        .unwrap()
    }

    fn ask(verdicts: &Verdicts, tenant: &str, run: &str, agent: Option<&str>) -> Answer {
        verdicts.ask(tenant, [Some(run), agent, None, None, None, None, Some(tenant)], NOW)
    }

    #[test]
    fn the_harshest_scope_counts_and_is_named() {
        let verdicts = Verdicts::default();
        assert_eq!(ask(&verdicts, "acme", "r", Some("a")).verdict, Verdict::Allow);
        verdicts.intervention(&order("acme", "PAUSE", ("TENANT", "acme"), 1, "ISSUED"), NOW);
        verdicts.intervention(&order("acme", "STOP", ("AGENT", "a"), 1, "ISSUED"), NOW);
        let held = ask(&verdicts, "acme", "r", Some("a"));
        assert_eq!((held.verdict, held.run_id.as_deref()), (Verdict::Stop, Some("r")));
        assert_eq!(held.scope, Some(Subject { kind: "AGENT".into(), id: "a".into() }));
        assert_eq!(ask(&verdicts, "acme", "r", Some("b")).verdict, Verdict::Pause, "of the tenant");
        assert_eq!(ask(&verdicts, "acme", "r", None).verdict, Verdict::Pause);
        assert_eq!(ask(&verdicts, "other", "r", Some("a")).verdict, Verdict::Allow, "another tenant's agent");
    }

    #[test]
    fn no_name_of_a_tenant_reaches_into_another() {
        let verdicts = Verdicts::default();
        verdicts.intervention(&order("a", "STOP", ("RUN", "x"), 1, "ISSUED"), NOW);
        for (tenant, run) in [("aRUN:x", ""), ("aRUN", ":x"), ("", "aRUN:x"), ("1:a", "x"), ("a", "RUN:x")] {
            assert_eq!(ask(&verdicts, tenant, run, None).verdict, Verdict::Allow, "{tenant} {run}");
        }
        assert_eq!(ask(&verdicts, "a", "x", None).verdict, Verdict::Stop);
    }

    #[test]
    fn who_listens_hears_each_change_once_and_what_is_over_is_forgotten() {
        let verdicts = Verdicts::default();
        let mut heard = verdicts.listen();
        for state in ["ISSUED", "ACKNOWLEDGED", "REVERTED"] {
            let revision = ["ISSUED", "ACKNOWLEDGED", "REVERTED"].iter().position(|s| *s == state).unwrap() as u64 + 1;
            verdicts.intervention(&order("acme", "STOP", ("RUN", "r"), revision, state), NOW);
        }
        verdicts.intervention(&order("acme", "NOTIFY", ("RUN", "r"), 1, "ISSUED"), NOW);
        let news: Vec<Verdict> = std::iter::from_fn(|| heard.try_recv().ok().map(|c| c.answer.verdict)).collect();
        assert_eq!(news, [Verdict::Stop, Verdict::Allow]);
        verdicts.sweep(Wall(NOW.0 + QUIET), 3_600 * SECOND);
        assert_eq!(verdicts.len(), 1, "a late record of it must still say nothing");
        verdicts.sweep(Wall(NOW.0 + QUIET + 1), 3_600 * SECOND);
        assert!(verdicts.is_empty());
        verdicts.intervention(&order("acme", "STOP", ("RUN", "r"), 1, "ISSUED"), NOW);
        verdicts.sweep(Wall(NOW.0 + 3_600 * SECOND), 3_600 * SECOND);
        assert_eq!(verdicts.len(), 1, "what holds stays");
        verdicts.sweep(Wall(NOW.0 + 3_600 * SECOND + 1), 3_600 * SECOND);
        assert!(verdicts.is_empty());
    }
}
