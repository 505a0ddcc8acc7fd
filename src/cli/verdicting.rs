//! What a process answers below `/api/v1`: who may ask, and the threads that follow interventions and signals, for verdicts about what others
//! own, and the policy level.
//!
//! The first two are followed from as far back as runs are remembered; until their ends were met once, whoever asks is told to ask again:
//! what is not known yet is not allowed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::cli::keys::Keys;
use crate::cli::{Chain, Failure, load};
use crate::clock::{Micros, Wall};
use crate::config::{Config, Loopback, Role, micros};
use crate::decide::commands::Keyring;
use crate::decide::records::{Intervention, PolicyLevel, Signal};
use crate::kafka::follow::Follower;
use crate::kafka::reader::OwnedRecord;
use crate::kafka::{ClientSettings, ShellConfig, Topics};
use crate::metrics::Metrics;
use crate::serve::Health;
use crate::serve::access::{self, Access, Caller, Jwt};
use crate::serve::api::VERDICTS;
use crate::serve::levels::Levels;
use crate::serve::verdicts::Verdicts;

/// How long one look at a topic may take: a shutdown is noticed after it.
const LOOK: Duration = Duration::from_millis(100);
/// Between attempts to reach a topic.
const RETRY: Duration = Duration::from_secs(1);
/// How often what is over is forgotten.
const SWEEP: Duration = Duration::from_secs(60);

/// Where verdicts come from, and who may ask for them.
pub(super) struct Answering {
    /// Who may ask.
    pub(super) access: Access,
    /// Where the topics are.
    pub(super) client: ClientSettings,
    /// Their names.
    pub(super) topics: Topics,
    /// How far back they are followed, and how long what holds is remembered, µs.
    pub(super) kept: Micros,
    /// What commands are signed with; `None`: the process takes none.
    pub(super) keys: Option<Arc<Keyring>>,
    /// Most bytes of a request that holds policies.
    pub(super) policy_bytes: usize,
}

impl Answering {
    /// Of a configuration; `None`: the process plays no role that answers. Only the role serve takes commands.
    pub(super) fn of(config: &Config, keys: Option<&Arc<Keys>>) -> Result<Option<Self>, Failure> {
        let answers = [Role::Edge, Role::Core, Role::Serve].iter().any(|role| config.roles.contains(role));
        if !answers {
            return Ok(None);
        }
        let ShellConfig { client, topics, .. } = load::shell(config);
        let keys = keys.filter(|_| config.roles.contains(&Role::Serve)).map(|keys| Arc::clone(&keys.ring));
        let kept = micros(config.limits.run_retention);
        let policy_bytes = config.limits.http_body_bytes;
        Ok(Some(Self { access: access(config)?, client, topics, kept, keys, policy_bytes }))
    }
}

/// `[auth]`.
pub(super) fn access(config: &Config) -> Result<Access, Failure> {
    let open = Access::new(config.auth.loopback == Loopback::Open);
    let access = config.auth.tokens.iter().fold(open, |access, token| {
        let caller = Caller::new(token.name.clone(), token.authority, token.tenant.clone());
        let role = token.role.as_deref().and_then(access::Role::parse).unwrap_or(caller.role);
        access.with(token.token.expose(), Caller { role, ..caller })
    });
    let Some(jwt) = &config.auth.jwt else { return Ok(access) };
    Ok(access.with_jwt(Jwt::new(jwt.clone(), Wall::now).map_err(Failure::unreadable)?))
}

/// The threads; they end when this is dropped.
pub(super) struct Following {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Drop for Following {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread that follows verdicts panicked");
            }
        }
    }
}

/// Takes a record; false: it cannot be read.
type Take = fn(&Known, &[u8], Wall) -> bool;

/// What is filled.
#[derive(Clone, Default)]
pub(super) struct Known {
    /// What holds which scope.
    pub(super) verdicts: Arc<Verdicts>,
    /// How tenants stand.
    pub(super) levels: Arc<Levels>,
}

/// Begins to follow.
pub(super) fn follow(
    answering: &Answering,
    known: &Known,
    metrics: &Arc<Metrics>,
    health: &Arc<Health>,
) -> Result<Following, Failure> {
    health.not_ready(VERDICTS, "interventions and signals are being read: verdicts are not known yet");
    let mut following = Following { stop: Arc::default(), threads: Vec::new() };
    let behind = Arc::new(AtomicUsize::new(2));
    let since = Some(Wall::now().0.saturating_sub(answering.kept) / 1_000);
    let Topics { interventions, signals, policy_level, .. } = &answering.topics;
    let follows: [(&str, &String, Option<i64>, Take); 3] = [
        ("follow-orders", interventions, since, take_intervention),
        ("follow-levels", signals, since, take_signal),
        // compacted: the latest of each tenant
        ("follow-standing", policy_level, None, take_level),
    ];
    for (name, topic, since, take) in follows {
        let thread = Thread {
            client: answering.client.clone(),
            topic: topic.clone(),
            kept: answering.kept,
            since,
            take,
            sweeps: topic == interventions,
            behind: Arc::clone(&behind),
            known: known.clone(),
            metrics: Arc::clone(metrics),
            health: Arc::clone(health),
            stop: Arc::clone(&following.stop),
            refused: 0,
        };
        let spawned = std::thread::Builder::new().name(name.into()).spawn(move || thread.run());
        following.threads.push(spawned.map_err(Failure::reach)?);
    }
    Ok(following)
}

fn take_intervention(known: &Known, payload: &[u8], now: Wall) -> bool {
    serde_json::from_slice::<Intervention>(payload).map(|record| known.verdicts.intervention(&record, now)).is_ok()
}

fn take_signal(known: &Known, payload: &[u8], now: Wall) -> bool {
    serde_json::from_slice::<Signal>(payload).map(|signal| known.verdicts.signal(&signal, now)).is_ok()
}

fn take_level(known: &Known, payload: &[u8], _now: Wall) -> bool {
    serde_json::from_slice::<PolicyLevel>(payload).is_ok_and(|level| known.levels.take(level))
}

struct Thread {
    client: ClientSettings,
    topic: String,
    kept: Micros,
    /// From when on the topic is followed, ms; `None`: from its beginning, and no verdict waits for it.
    since: Option<i64>,
    take: Take,
    sweeps: bool,
    behind: Arc<AtomicUsize>,
    known: Known,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    stop: Arc<AtomicBool>,
    refused: u64,
}

impl Thread {
    fn run(mut self) {
        let Some(mut follower) = self.follower() else { return };
        let mut caught_up = false;
        let mut swept = Instant::now();
        let mut unread = 0_u64;
        while !self.stop.load(Ordering::Acquire) {
            if let Some(record) = follower.next(LOOK) {
                unread += u64::from(!self.record(&record, unread == 0));
            } else if self.sweeps {
                self.metrics.verdict_scopes.set(i64::try_from(self.known.verdicts.len()).unwrap_or(i64::MAX));
            }
            if !caught_up && follower.caught_up() {
                caught_up = true;
                if self.since.is_some() && self.behind.fetch_sub(1, Ordering::AcqRel) == 1 {
                    self.health.ready(VERDICTS);
                }
            }
            if self.sweeps && swept.elapsed() >= SWEEP {
                swept = Instant::now();
                self.sweep();
            }
        }
    }

    fn follower(&self) -> Option<Follower> {
        let name = "runwarden-answers";
        let start = || match self.since {
            Some(since) => Follower::since(&self.client, name, &self.topic, since),
            None => Follower::new(&self.client, name, &[&self.topic]),
        };
        let mut said = String::new();
        while !self.stop.load(Ordering::Acquire) {
            match start() {
                Ok(follower) => return Some(follower),
                Err(error) => {
                    let error = Chain(&error).to_string();
                    if error != said {
                        tracing::warn!(
                            error,
                            topic = self.topic,
                            "cannot follow a topic that answers need, trying again"
                        );
                        said = error;
                    }
                }
            }
            let until = Instant::now() + RETRY;
            while Instant::now() < until && !self.stop.load(Ordering::Acquire) {
                std::thread::sleep(LOOK.min(until.saturating_duration_since(Instant::now())));
            }
        }
        None
    }

    /// False: this version cannot read it. The guardian's events and the plans of responses are on the topics too, and answer nothing.
    fn record(&self, record: &OwnedRecord, first: bool) -> bool {
        let Some(payload) = record.payload.as_deref() else { return true };
        let kind = record.headers.iter().find(|(name, _)| name == "ce_type").map(|(_, value)| value.as_slice());
        if kind.is_some_and(|kind| kind.starts_with(b"guardian.") || kind.starts_with(b"runwarden.response.")) {
            return true;
        }
        let read = (self.take)(&self.known, payload, Wall::now());
        if !read && first {
            tracing::warn!(
                topic = self.topic,
                partition = record.partition,
                offset = record.offset,
                "a record cannot be read by this version: no answer follows from it"
            );
        }
        read
    }

    fn sweep(&mut self) {
        self.known.verdicts.sweep(Wall::now(), self.kept);
        let refused = self.known.verdicts.refused();
        if refused > self.refused {
            let more = refused - self.refused;
            tracing::warn!(more, "records of further scopes were not taken: too many scopes are held");
            self.metrics.verdict_refused.inc_by(more);
            self.refused = refused;
        }
    }
}
