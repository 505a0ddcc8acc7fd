//! What a process of the role serve does about the policy level (L2, L3): follows its topic, keeps the files of the data directory, and
//! executes responses.
//!
//! Every such process sees every plan. Previews and blocked plans are shown by all of them, each in its own data directory; a plan that is
//! to be applied is executed by the one whose claim (`respond.result`, state CLAIMED) the owner of `*` accepts. That needs no shared
//! disk, and a rebalance between plan and claim does no harm. One that died in between claims again under its slot after the restart.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::cli::keys::Keys;
use crate::cli::ordering::Orders;
use crate::cli::{Chain, Failure};
use crate::clock::{Wall, rfc3339};
use crate::config::{Config, Respond};
use crate::decide::commands::{Command, SYSTEM};
use crate::decide::level::OVERALL;
use crate::decide::records::{PolicyLevel, ResponseOutcome, ResponsePlan};
use crate::kafka::ShellConfig;
use crate::kafka::follow::Follower;
use crate::kafka::reader::OwnedRecord;
use crate::pipeline::encode::RESPONSE_KEY;
use crate::serve::level::{FileSystem, LevelFiles, Trouble};
use crate::serve::respond::Runner;

/// How long one look at the topic may take.
const LOOK: Duration = Duration::from_millis(250);
/// Between attempts to reach the topic.
const RETRY: Duration = Duration::from_secs(1);
/// Name of the alert about files that cannot be written.
const FINGERPRINT: &str = "policy-level-files";

/// The thread; ends when it is dropped.
pub(super) struct Keeping {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Keeping {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that keeps the policy level panicked");
        }
    }
}

/// Begins to follow the level.
pub(super) fn start(config: &Config, shell: ShellConfig, keys: Arc<Keys>) -> Result<Keeping, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    let keeper = Keeper {
        orders: Orders { shell, keys, reader: "runwarden-level-answers" },
        data: config.paths.data.clone(),
        respond: config.respond.clone(),
        files: files(config, Arc::clone(&stop)),
        troubled: false,
        handled: String::new(),
    };
    let stopped = Arc::clone(&stop);
    let thread = std::thread::Builder::new().name("level".into()).spawn(move || keeper.run(&stopped));
    Ok(Keeping { stop, thread: Some(thread.map_err(Failure::reach)?) })
}

fn files(config: &Config, stop: Arc<AtomicBool>) -> LevelFiles {
    // a drain does not wait for the pauses
    let pause = move |wait: Duration| {
        let until = Instant::now() + wait;
        while Instant::now() < until && !stop.load(Ordering::Acquire) {
            std::thread::sleep(LOOK.min(until.saturating_duration_since(Instant::now())));
        }
    };
    LevelFiles::new(&config.paths.data, config.level.marker_file.as_deref(), Box::new(FileSystem), Box::new(pause))
}

struct Keeper {
    orders: Orders,
    data: PathBuf,
    respond: Respond,
    files: LevelFiles,
    /// Whether an alert about the files was raised.
    troubled: bool,
    /// The plan that was handled last.
    handled: String,
}

/// What a record of the topic is to this process.
enum Seen {
    Level(Box<PolicyLevel>),
    Plan(Box<ResponsePlan>),
    Other,
}

fn seen(record: &OwnedRecord) -> Seen {
    let (Some(key), Some(payload)) = (record.key.as_deref(), record.payload.as_deref()) else { return Seen::Other };
    let parsed = if key == OVERALL.as_bytes() {
        serde_json::from_slice(payload).map(|level| Seen::Level(Box::new(level)))
    } else if key == RESPONSE_KEY.as_bytes() {
        serde_json::from_slice(payload).map(|plan| Seen::Plan(Box::new(plan)))
    } else {
        return Seen::Other;
    };
    parsed.unwrap_or_else(|_| {
        tracing::warn!("a record of the policy level topic cannot be read by this version");
        Seen::Other
    })
}

impl Keeper {
    fn run(mut self, stop: &AtomicBool) {
        let topic = self.orders.shell.topics.policy_level.clone();
        let mut follower = loop {
            if stop.load(Ordering::Acquire) {
                return;
            }
            match Follower::new(&self.orders.shell.client, "runwarden-level", &[&topic]) {
                Ok(follower) => break follower,
                Err(error) => {
                    tracing::debug!(%error, "cannot follow the policy level yet");
                    std::thread::sleep(RETRY);
                }
            }
        };
        let mut latest: Option<Box<ResponsePlan>> = None;
        while !stop.load(Ordering::Acquire) {
            if let Some(record) = follower.next(LOOK) {
                match seen(&record) {
                    Seen::Level(level) => self.show(&level),
                    Seen::Plan(plan) => latest = Some(plan),
                    Seen::Other => {}
                }
            }
            // of what was planned while this process was away only the latest counts
            if follower.caught_up()
                && let Some(plan) = latest.take()
                && self.handled != plan.response_id
            {
                self.handled.clone_from(&plan.response_id);
                self.handle(&plan);
            }
        }
    }

    fn show(&mut self, level: &PolicyLevel) {
        match self.files.show(level) {
            Ok(_) if self.troubled => {
                self.troubled = self.order("alert.clear", json!({"fingerprint": FINGERPRINT})).is_err();
            }
            Ok(_) => {}
            Err(trouble) => self.tell(&trouble),
        }
    }

    fn tell(&mut self, trouble: &Trouble) {
        let said = Chain(trouble).to_string();
        tracing::error!(error = said, bundle = ?trouble.bundle, "the files of the policy level could not be written");
        let body = json!({
            "fingerprint": FINGERPRINT, "severity": "HIGH", "title": "the files of the policy level cannot be written",
            "description": format!("{}: {said}", self.orders.shell.slot),
        });
        match self.order("alert.raise", body) {
            Ok(_) => self.troubled = true,
            Err(error) => tracing::error!(error, "and no alert could be raised about that"),
        }
    }

    fn handle(&self, plan: &ResponsePlan) {
        let runner = Runner { data: &self.data, settings: &self.respond, disk: &FileSystem };
        if plan.outcome != ResponseOutcome::Apply {
            match runner.show(plan) {
                Ok(path) => {
                    tracing::info!(path = %path.display(), level = plan.level.as_str(), "a response was planned")
                }
                Err(error) => tracing::error!(%error, "the plan of a response could not be shown"),
            }
            return;
        }
        let executor = self.orders.shell.slot.as_str();
        let report = |state: &str, results: Value| {
            let body = json!({
                "response_id": plan.response_id, "state": state, "executor": executor, "results": results,
                "reason": plan.reason,
            });
            self.order("respond.result", body)
        };
        match report("CLAIMED", Value::Null) {
            Ok(answer) if answer["status"] == "ACCEPTED" => {}
            Ok(answer) => {
                let reason = answer["reason"].as_str().unwrap_or_default();
                return tracing::info!(response = plan.response_id, reason, "a response is not for this process");
            }
            Err(error) => return tracing::error!(error, "a response could not be claimed"),
        }
        tracing::info!(response = plan.response_id, level = plan.level.as_str(), actions = ?plan.actions, "responding");
        let done = runner.apply(plan, &rfc3339(Wall::now().0));
        for failed in done.iter().filter(|done| !done.ok) {
            tracing::error!(action = failed.action, detail = failed.detail, "an action of a response failed");
        }
        let state = if done.iter().all(|done| done.ok) { "SUCCEEDED" } else { "FAILED" };
        if let Err(error) = report(state, json!(done)) {
            tracing::error!(error, "how a response ended could not be reported");
        }
    }

    /// Sends a command about all and waits for its answer.
    fn order(&self, kind: &str, body: Value) -> Result<Value, String> {
        self.orders.send(Command {
            command_id: uuid::Uuid::new_v4().to_string(),
            kind: kind.to_owned(),
            tenant_id: OVERALL.to_owned(),
            principal: format!("system:serve@{}", self.orders.shell.slot),
            authority: SYSTEM,
            issued_at: Wall::now().0,
            body,
            key_id: None,
        })
    }
}
