//! Channels at work: a thread for each, `runwarden channel`, and what `check` says of them.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use serde_json::Value;

use crate::channels::route::names;
use crate::channels::secrets::{self, Unusable};
use crate::channels::sender::Sender;
use crate::channels::worker::Worker;
use crate::channels::{Attempt, Message};
use crate::cli::{Chain, ChannelAction, ChannelArguments, Failure, load};
use crate::clock::{Micros, Wall, rfc3339};
use crate::config::{CHANNEL_KINDS, Channel, ChannelKind, Config, Role};
use crate::decide::id;
use crate::kafka::ShellConfig;
use crate::metrics::Metrics;
use crate::policy::PolicySet;

/// The channels of a process, ready to work.
pub(super) struct Delivering {
    shell: ShellConfig,
    channels: Vec<(Channel, Sender)>,
}

/// The threads; they end when this is dropped, each after the attempt it is at.
pub(super) struct Delivered {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

fn sender(channel: &Channel) -> Result<Sender, Unusable> {
    Sender::new(channel, &secrets::read(channel)?)
}

fn cannot(channel: &Channel, error: &Unusable) -> String {
    format!("channel {} cannot be used: {}", channel.name, Chain(error))
}

impl Delivering {
    /// Of a configuration; `None`: the process does not play the role channels, or there are none.
    pub(super) fn of(config: &Config) -> Result<Option<Self>, Failure> {
        if !config.roles.contains(&Role::Channels) || config.channels.to.is_empty() {
            return Ok(None);
        }
        let one = |channel: &Channel| match sender(channel) {
            Ok(sender) => Ok((channel.clone(), sender)),
            Err(error) => Err(Failure::Invalid(cannot(channel, &error))),
        };
        let channels = config.channels.to.iter().map(one).collect::<Result<_, _>>()?;
        Ok(Some(Self { shell: load::shell(config), channels }))
    }

    /// Begins to deliver.
    pub(super) fn start(self, metrics: &Metrics) -> Result<Delivered, Failure> {
        let mut delivered = Delivered { stop: Arc::default(), threads: Vec::new() };
        for (channel, sender) in self.channels {
            let name = format!("to-{}", channel.name);
            tracing::info!(channel = channel.name, kind = channel.kind.as_str(), "alerts are delivered");
            let worker = Worker {
                sender,
                shell: self.shell.clone(),
                metrics: metrics.channels.of(&channel.name),
                stop: Arc::clone(&delivered.stop),
                channel,
            };
            let thread = std::thread::Builder::new().name(name).spawn(move || worker.run());
            delivered.threads.push(thread.map_err(Failure::reach)?);
        }
        Ok(delivered)
    }
}

impl Drop for Delivered {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("the thread of a channel panicked");
            }
        }
    }
}

/// Channels that policies name and that are nowhere configured (X2).
pub(super) struct Unrouted {
    /// By channel, the policies.
    names: BTreeMap<String, Vec<String>>,
    /// Nobody configured any.
    none: bool,
}

/// Finds them.
pub(super) fn unrouted(config: &Config, policies: &PolicySet) -> Unrouted {
    let mut unknown: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for policy in policies.policies() {
        let notified = policy.actions.iter().filter_map(|action| action.parameters.get("channels"));
        let notified = notified.filter_map(Value::as_array).flatten().filter_map(Value::as_str);
        for said in policy.alerts.channels.iter().map(String::as_str).chain(notified) {
            let known = said.eq_ignore_ascii_case("ui")
                || config.channels.to.iter().any(|channel| names(said, &channel.name, channel.kind));
            if !known {
                let of = unknown.entry(said.to_owned()).or_default();
                if !of.contains(&policy.id.to_string()) {
                    of.push(policy.id.to_string());
                }
            }
        }
    }
    Unrouted { names: unknown, none: config.channels.to.is_empty() }
}

impl Unrouted {
    /// One warning for each; none where no channel is configured at all.
    pub(super) fn said(&self) -> Vec<String> {
        if self.none {
            return Vec::new();
        }
        let kinds: Vec<&str> = CHANNEL_KINDS.iter().map(|(name, _)| *name).collect();
        let said = |(name, policies): (&String, &Vec<String>)| {
            let kind = if kinds.iter().any(|kind| kind.eq_ignore_ascii_case(name)) { "type" } else { "name" };
            format!(
                "policies {} alert {name}, and no channel has that {kind}: nobody is told there",
                policies.join(", ")
            )
        };
        self.names.iter().map(said).collect()
    }

    /// That policies name channels where none is configured.
    pub(super) fn note(&self) -> Option<String> {
        let names: Vec<&str> = self.names.keys().map(String::as_str).collect();
        (self.none && !names.is_empty())
            .then(|| format!("policies alert {}, and no channel is configured ([[channels.to]])", names.join(", ")))
    }
}

/// The channels that cannot be used here, and why.
pub(super) fn unusable(config: &Config) -> Vec<String> {
    let of = |channel: &Channel| sender(channel).err().map(|error| cannot(channel, &error));
    config.channels.to.iter().filter_map(of).collect()
}

/// Runs `runwarden channel`.
pub(super) fn main(arguments: &ChannelArguments) -> Result<ExitCode, Failure> {
    let config = load::config(arguments.config.path())?;
    match &arguments.action {
        ChannelAction::List => {
            println!("{:<24} {:<14} {:<8} {:<10} resolved  updates", "name", "type", "takes", "severity");
            for channel in &config.channels.to {
                let takes = if channel.takes_all { "all" } else { "named" };
                let resolved = if channel.send_resolved { "yes" } else { "no" };
                let updates = format!("{:?}", channel.send_updates).to_lowercase();
                let (kind, floor) = (channel.kind.as_str(), channel.min_severity);
                println!("{:<24} {kind:<14} {takes:<8} {floor:<10} {resolved:<9} {updates}", channel.name);
            }
            println!("{:<24} {:<14} {:<8} {:<10} {:<9} all", "ui", "ui", "all", "LOW", "yes");
            Ok(ExitCode::SUCCESS)
        }
        ChannelAction::Test { name } => test(&config, name),
    }
}

fn test(config: &Config, name: &str) -> Result<ExitCode, Failure> {
    if name == "ui" {
        println!("ui: the event stream of the console; there is nothing to deliver");
        return Ok(ExitCode::SUCCESS);
    }
    let channel = config.channels.to.iter().find(|channel| channel.name == name).ok_or_else(|| {
        let known: Vec<&str> = config.channels.to.iter().map(|channel| channel.name.as_str()).collect();
        Failure::Invalid(format!("no channel is named {name}; configured: {}", known.join(", ")))
    })?;
    let mut sender = sender(channel).map_err(|error| Failure::Invalid(cannot(channel, &error)))?;
    let now = Wall::now();
    // where an alert stays until it is resolved, the test does not
    let held = matches!(channel.kind, ChannelKind::Pagerduty | ChannelKind::Alertmanager);
    let states = [(1, "OPEN"), (2, "RESOLVED")];
    for (revision, status) in states.into_iter().take(if held { 2 } else { 1 }) {
        let message =
            example(name, now.0, revision, status).ok_or_else(|| Failure::invalid("no test alert can be made"))?;
        match sender.send(0, &message, Wall::now()) {
            Attempt::Done => println!("{name}: {status} delivered"),
            Attempt::Later { why, .. } => return Err(Failure::Reach(format!("{name}: {status} not delivered: {why}"))),
            Attempt::Never(why) => return Err(Failure::Invalid(format!("{name}: {status} refused: {why}"))),
            Attempt::Gone => return Err(Failure::Invalid(format!("{name}: the receiver is gone (410)"))),
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A test alert.
fn example(channel: &str, now: Micros, revision: u64, status: &str) -> Option<Message> {
    let alert_id = id::of(&["*", "channel-test", channel, &now.to_string()]);
    let alert = serde_json::json!({
        "alert_id": alert_id, "revision": revision, "status": status, "tenant_id": "runwarden", "correlation_key": "TEST",
        "severity": "LOW", "title": format!("Test of channel {channel}"),
        "description": "Sent by `runwarden channel test`: nothing is wrong.", "first_seen": rfc3339(now), "last_seen": rfc3339(now),
        "alert_count": 1, "suppressed_count": 0, "members": [], "members_total": 1, "runs": [], "agents": [], "metrics": [],
        "sources": ["test"], "fingerprint": id::of(&["*", "channel-test", channel]),
        "resolve_reason": (status == "RESOLVED").then_some("fixed"), "current_value": null, "minutes_to_limit": null,
        "channels": [channel], "silenced_by": [], "inhibited_by": [], "is_synthetic": true,
    });
    Message::read(None, Some(alert.to_string().as_bytes()), now)
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICIES: &str = "
id: run
name: Run
alerts: {channels: [ui, SLACK, ops]}
limits:
- {id: tokens, limit_type: TOKENS_PER_RUN, metric: run_tokens, max: 100}
condition: {type: field_comparison, field: agent.anomaly_score, operator: \">=\", value: 0.8}
actions:
- {type: notify, target: \"${run.id}\", reason: r, parameters: {channels: [pagerduty, ops]}}
";

    fn found(channels: &str) -> Unrouted {
        let config = Config::from_toml(channels, "c.toml", []).unwrap();
        let set = PolicySet::from_files(&[("p.yaml".to_owned(), POLICIES.to_owned())]).unwrap();
        unrouted(&config, &set)
    }

    #[test]
    fn a_policy_that_names_a_channel_nobody_configured_is_found() {
        let ops = "[[channels.to]]\nname = \"ops\"\ntype = \"slack\"\nurl = \"https://e.com\"\n";
        let said = found(ops).said();
        assert_eq!(said, ["policies run alert pagerduty, and no channel has that type: nobody is told there"]);
        let none = found("");
        assert!(none.said().is_empty() && none.note().is_some_and(|said| said.contains("SLACK, ops, pagerduty")));
    }

    #[test]
    fn a_test_alert_is_one_that_channels_can_tell() {
        let message = example("ops", 1_767_571_200_000_000, 2, "RESOLVED").unwrap();
        assert!(message.is_end() && message.alert.title.contains("ops"));
    }
}
