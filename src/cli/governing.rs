//! The terms in force, in this process: follows the policies topic, and offers the files of this sidecar to the writer.
//!
//! Only what stands on the topic is in force (*Files and the topic*, `policies.md`). The files enter as one `policy_set.apply`; they are
//! looked at again every two seconds, and a set that does not hold is refused here, whole, with its errors, while the old one stays.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use serde_json::{Value, json};

use crate::cli::keys::Keys;
use crate::cli::load::{Loaded, Texts, Tuning};
use crate::cli::metered::Counting;
use crate::cli::{Chain, Failure};
use crate::clock::Wall;
use crate::decide;
use crate::decide::commands::{Command, SYSTEM};
use crate::kafka::follow::Follower;
use crate::kafka::produce::Producer;
use crate::kafka::{ClientSettings, Error, ShellConfig, Topics};
use crate::metrics::Metrics;
use crate::metrics::labels::SetOutcome;
use crate::pipeline::terms::{self, IN_FORCE, Standing};
use crate::pipeline::{InForce, Settings};
use crate::policy::Terms;
use crate::serve::Health;

/// Reason code of `/readyz`: no terms are in force, or ours were refused.
const POLICIES: &str = "policies";
/// How long one look at the topic may take.
const LOOK: Duration = Duration::from_millis(20);
/// And where nobody waits for anything.
const IDLE: Duration = Duration::from_millis(250);
/// How often the files are looked at.
const FILES: Duration = Duration::from_secs(2);
/// After so long without an answer the same command is sent again.
const AGAIN: Duration = Duration::from_secs(10);
/// How long a look at what is in force may take in all.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between attempts to reach the topics.
const RETRY: Duration = Duration::from_millis(250);

/// What the partitions of this process work under.
#[derive(Default)]
pub(super) struct Governed {
    in_force: ArcSwapOption<InForce>,
    released: AtomicBool,
}

impl Governed {
    /// The terms in force.
    pub(super) fn in_force(&self) -> Option<Arc<InForce>> {
        self.in_force.load_full()
    }

    /// Whether telemetry may be taken: a set of our generation or a higher one is in force, or ours was refused and an older one
    /// goes on.
    pub(super) fn released(&self) -> bool {
        self.released.load(Ordering::Acquire)
    }
}

/// The terms that the policies topic says are in force; `None`: none, or there is no such topic.
pub(super) fn in_force_now(shell: &ShellConfig, tuning: &Tuning) -> Result<Option<InForce>, Failure> {
    let mut follower = match Follower::new(&shell.client, "runwarden-policies", &[&shell.topics.policies]) {
        Ok(follower) => follower,
        Err(Error::MissingTopic(_)) => return Ok(None),
        Err(error) => return Err(Failure::reach(error)),
    };
    let mut payload = None;
    let until = Instant::now() + PATIENCE;
    while !follower.caught_up() {
        if let Some(record) = follower.next(LOOK)
            && record.key.as_deref() == Some(IN_FORCE.as_bytes())
        {
            payload = record.payload;
        }
        if Instant::now() > until {
            return Err(Failure::Reach("the policies topic could not be read to its end".into()));
        }
    }
    let read = payload.map(|payload| InForce::read(&payload, [], tuning));
    Ok(read.transpose().map_err(Failure::unreadable)?.map(|(_, in_force)| in_force))
}

/// A set of files as it is sent.
pub(super) struct SetFiles {
    generation: u64,
    digest: String,
    policies: BTreeMap<String, String>,
    terms: Terms,
}

impl SetFiles {
    /// Of texts that were built to `loaded`. Policy files are named from `root` on.
    pub(super) fn new(texts: &Texts, root: &str, loaded: &Loaded) -> Self {
        let short = |name: &String| name.strip_prefix(root).unwrap_or(name).trim_start_matches('/').to_owned();
        let policies: BTreeMap<_, _> = texts.policies.iter().map(|(name, text)| (short(name), text.clone())).collect();
        let terms = (*loaded.settings.terms).clone();
        let digest = terms::set_digest(&policies, &terms);
        Self { generation: loaded.policies.generation(), digest, policies, terms }
    }

    fn body(&self) -> Value {
        json!({
            "generation": self.generation, "digest": self.digest, "policies": self.policies, "queries": self.terms.queries,
            "prices": self.terms.prices, "settings": self.terms.settings, "reason": "the files of this sidecar",
        })
    }
}

/// What is to be done about our own set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Todo {
    /// It, or a higher generation, is in force.
    Nothing,
    /// Offer it to the writer.
    Offer,
}

/// Generation 0 offers every changed digest; a counted generation is offered when it is not below what is in force, so that the
/// writer says what is wrong with one that was changed without counting up.
fn todo(generation: u64, digest: &str, standing: Option<&Standing>) -> Todo {
    match standing {
        None => Todo::Offer,
        Some(s) if s.digest == digest || s.generation > generation => Todo::Nothing,
        Some(_) => Todo::Offer,
    }
}

/// An offer that was answered.
struct Asked {
    digest: String,
    /// Revision in force then.
    revision: u64,
    accepted: bool,
}

impl Asked {
    /// A higher generation that was refused may do once something else is in force. Generation 0 is offered once: of two sidecars
    /// with other files the one that changed last wins, and neither goes on and on.
    fn ask_again(&self, set: &SetFiles, standing: Option<&Standing>) -> bool {
        let higher = standing.is_some_and(|s| set.generation > s.generation && s.revision != self.revision);
        self.digest != set.digest || (higher && !self.accepted)
    }
}

/// Everything the thread works with.
pub(super) struct Governor {
    pub(super) client: ClientSettings,
    pub(super) topics: Topics,
    pub(super) keys: Arc<Keys>,
    pub(super) slot: String,
    /// Made from the files: reused where the topic says the same.
    pub(super) own: Arc<Settings>,
    pub(super) tuning: Tuning,
    pub(super) set: SetFiles,
    /// Reads the files again; `None`: they never change.
    pub(super) reread: Option<Reread>,
    pub(super) governed: Arc<Governed>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) health: Arc<Health>,
    pub(super) counting: Arc<Counting>,
}

/// Reads and builds the files anew: what they say, and what they build to.
pub(super) type Reread = Box<dyn FnMut() -> Result<Option<(SetFiles, Settings)>, Failure> + Send>;

/// An offer that waits for its answer.
struct Offered {
    command_id: String,
    payload: Vec<u8>,
    answers: Follower,
    sent: Instant,
    producer: Producer,
}

impl Governor {
    /// Follows until `stop` says so.
    pub(super) fn run(mut self, stop: &AtomicBool) {
        self.health.not_ready(POLICIES, "no policies are in force yet");
        let mut said = String::new();
        let mut follower = loop {
            if stop.load(Ordering::Acquire) {
                return;
            }
            match Follower::new(&self.client, "runwarden-policies", &[&self.topics.policies]) {
                Ok(follower) => break follower,
                Err(error) => {
                    let error = error.to_string();
                    if error != said {
                        tracing::debug!(error, "cannot follow the policies yet");
                    }
                    said = error;
                    std::thread::sleep(RETRY);
                }
            }
        };
        let mut standing: Option<Standing> = None;
        let mut offered: Option<Offered> = None;
        let mut asked: Option<Asked> = None;
        let mut usable = true;
        let mut looked = Instant::now();
        while !stop.load(Ordering::Acquire) {
            // while somebody waits the answer's topic is looked at in between
            let look = if self.governed.released() && offered.is_none() { IDLE } else { LOOK };
            if let Some(record) = follower.next(look)
                && record.key.as_deref() == Some(IN_FORCE.as_bytes())
                && let Some(payload) = record.payload.as_deref()
            {
                let next = self.adopt(payload);
                usable = next.is_some();
                standing = next.or(standing);
            }
            if !follower.caught_up() {
                continue;
            }
            let revision = standing.as_ref().map_or(0, |s| s.revision);
            let todo = todo(self.set.generation, &self.set.digest, standing.as_ref());
            if todo == Todo::Nothing {
                offered = None;
                asked = None;
                self.release(standing.is_some(), usable);
            } else if let Some(waiting) = &mut offered {
                if let Some(answer) = waiting.answer(&self.topics.commands) {
                    let accepted = self.answered(&answer, standing.is_some());
                    asked = Some(Asked { digest: self.set.digest.clone(), revision, accepted });
                    offered = None;
                }
            } else if let Some(asked) = asked.as_ref().filter(|a| !a.ask_again(&self.set, standing.as_ref())) {
                if asked.accepted {
                    self.release(standing.is_some(), usable);
                }
            } else {
                match self.offer(revision) {
                    Ok(sent) => offered = Some(sent),
                    Err(error) => {
                        tracing::warn!(%error, "cannot offer the policies of this sidecar; trying again");
                        std::thread::sleep(RETRY);
                    }
                }
            }
            if looked.elapsed() >= FILES {
                looked = Instant::now();
                self.look_at_files();
            }
        }
    }

    /// There is something to work under, and nothing more to wait for.
    fn release(&self, governed: bool, usable: bool) {
        if governed && usable {
            self.governed.released.store(true, Ordering::Release);
            self.health.ready(POLICIES);
        }
    }

    /// Puts what the topic says in the place from which the partitions take it; what could not be used is said, and `None`.
    fn adopt(&self, payload: &[u8]) -> Option<Standing> {
        let known = self.governed.in_force().map(|f| Arc::clone(&f.settings));
        match InForce::read(payload, known.into_iter().chain([Arc::clone(&self.own)]), &self.tuning) {
            Ok((standing, in_force)) => {
                let Standing { revision, generation, .. } = standing;
                let policies = in_force.snapshot.policies().len();
                tracing::info!(revision, generation, policies, snapshot = %in_force.snapshot.id(), "policies are in force");
                let names: Vec<&str> = in_force.settings.metrics.iter().map(|m| m.name.as_str()).collect();
                self.metrics.set_metric_names(&names);
                self.counting.expect(&in_force.snapshot);
                self.metrics.policy_revision.set(i64::try_from(revision).unwrap_or(i64::MAX));
                self.metrics.policy_generation.set(i64::try_from(generation).unwrap_or(i64::MAX));
                self.governed.in_force.store(Some(Arc::new(in_force)));
                Some(standing)
            }
            Err(error) => {
                let error = Chain(&error).to_string();
                tracing::error!(error, "the policies in force cannot be used here; the ones before stay");
                self.health.not_ready(POLICIES, format!("the policies in force cannot be used here: {error}"));
                None
            }
        }
    }

    fn offer(&self, revision: u64) -> Result<Offered, Error> {
        let SetFiles { generation, digest, .. } = &self.set;
        let command_id = decide::of(&["policy_set.apply", digest, &generation.to_string(), &revision.to_string()]);
        let command = Command {
            command_id: command_id.clone(),
            kind: "policy_set.apply".into(),
            tenant_id: "*".into(),
            principal: format!("system:files@{}", self.slot),
            authority: SYSTEM,
            issued_at: Wall::now().0,
            body: self.set.body(),
            key_id: None,
        };
        // the key was looked up when the keys were made
        let payload = self.keys.ring.sign(command, &self.keys.sign_with).unwrap_or_default();
        let answers = Follower::from_now_on(&self.client, "runwarden-answers", &self.topics.command_results)?;
        let producer = Producer::courier(&self.client)?;
        tracing::debug!(generation, digest, "offering the policies of this sidecar");
        producer.send(&self.topics.commands, b"*", &payload)?;
        Ok(Offered { command_id, payload, answers, sent: Instant::now(), producer })
    }

    /// Whether it was accepted. It is in force when the topic says so.
    fn answered(&self, answer: &Value, governed: bool) -> bool {
        if answer["status"] == "ACCEPTED" {
            self.metrics.policy_sets.get(SetOutcome::Accepted).inc();
            return true;
        }
        let reason = answer["reason"].as_str().unwrap_or_default();
        tracing::error!(
            code = answer["code"].as_str(),
            reason,
            "the policies of this sidecar were refused whole; what was in force before goes on"
        );
        self.metrics.policy_sets.get(SetOutcome::Refused).inc();
        self.health.not_ready(POLICIES, format!("the policies of this sidecar were refused: {reason}"));
        if governed {
            // rather the old terms than none
            self.governed.released.store(true, Ordering::Release);
        }
        false
    }

    fn look_at_files(&mut self) {
        let Some(reread) = &mut self.reread else { return };
        match reread() {
            Ok(None) => {}
            Ok(Some((set, settings))) => {
                if set.digest != self.set.digest {
                    tracing::info!(generation = set.generation, digest = set.digest, "the files have changed");
                    self.own = Arc::new(settings);
                    self.set = set;
                }
            }
            Err(Failure::Invalid(error) | Failure::Reach(error)) => {
                tracing::error!(error, "the changed files are refused whole; what was in force before goes on");
                self.metrics.policy_sets.get(SetOutcome::Invalid).inc();
            }
        }
    }
}

impl Offered {
    /// The answer, if it is there; sends the command again when it takes long.
    fn answer(&mut self, topic: &str) -> Option<Value> {
        while let Some(record) = self.answers.next(Duration::ZERO) {
            let answer = record.payload.as_deref().and_then(|p| serde_json::from_slice::<Value>(p).ok());
            if let Some(answer) = answer.filter(|a| a["command_id"] == *self.command_id) {
                return Some(answer);
            }
        }
        if self.sent.elapsed() >= AGAIN {
            self.sent = Instant::now();
            tracing::info!("the owner of the policies has not answered yet: asking again");
            // the same command: it counts once, however often it arrives
            if let Err(error) = self.producer.send(topic, b"*", &self.payload) {
                tracing::warn!(%error, "cannot ask again");
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_offered_unless_it_or_a_higher_generation_is_in_force() {
        let standing = |generation, digest: &str| Standing { revision: 1, generation, digest: digest.into() };
        assert_eq!(todo(0, "a", None), Todo::Offer);
        assert_eq!(todo(0, "a", Some(&standing(0, "a"))), Todo::Nothing);
        assert_eq!(todo(0, "a", Some(&standing(0, "b"))), Todo::Offer);
        assert_eq!(todo(2, "a", Some(&standing(1, "b"))), Todo::Offer);
        assert_eq!(todo(2, "a", Some(&standing(2, "b"))), Todo::Offer, "the writer says what is wrong");
        assert_eq!(todo(2, "a", Some(&standing(3, "b"))), Todo::Nothing);
    }
}
