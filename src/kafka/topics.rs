//! Logical topics to real names, and how each must be set up.
//!
//! Plain data: creating and verifying is `provision`'s. Invariant: every topic of [`Topics::specs`] marked `co_partitioned`
//! has the partition count of telemetry, so that partition i of each meets at one owner.

use super::core::{Input, Topic};

const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// Real topic names, partition count and replication factor. The defaults are those of `contracts.md`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "each field is the topic of the same name in contracts.md")]
pub struct Topics {
    pub telemetry: String,
    pub commands: String,
    pub outcomes: String,
    pub signals: String,
    pub alerts: String,
    pub interventions: String,
    pub runs: String,
    pub lessons: String,
    pub policies: String,
    pub policy_level: String,
    pub evaluations: String,
    pub audit: String,
    pub command_results: String,
    pub live: String,
    pub dead_letter: String,
    pub repartition: String,
    pub steps: String,
    pub checkpoint: String,
    /// Partitions of the co-partitioned topics, and of output topics, when we create them.
    pub partitions: i32,
    /// Replication factor when we create topics; -1 takes the broker's default.
    pub replication: i32,
}

impl Default for Topics {
    fn default() -> Self {
        Self::with_prefix("")
    }
}

/// What happens to a topic's old records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cleanup {
    /// Deleted after so many days.
    Delete(u64),
    /// The latest record of each key stays.
    Compact,
    /// The latest record of each key stays, for so many days.
    CompactDelete(u64),
}

impl Cleanup {
    /// The value of `cleanup.policy`.
    pub const fn policy(self) -> &'static str {
        match self {
            Self::Delete(_) => "delete",
            Self::Compact => "compact",
            Self::CompactDelete(_) => "compact,delete",
        }
    }
}

/// One topic as it has to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicSpec<'a> {
    /// Key under `[topics]`.
    pub key: &'static str,
    /// Real name.
    pub name: &'a str,
    /// Clean-up policy and retention.
    pub cleanup: Cleanup,
    /// Whether its partition count must equal that of telemetry.
    pub co_partitioned: bool,
    /// Further topic settings used at creation.
    pub settings: Vec<(&'static str, String)>,
}

impl Topics {
    /// The default names, each after `prefix` (tests keep apart on one broker this way).
    pub fn with_prefix(prefix: &str) -> Self {
        let name = |name: &str| format!("{prefix}runwarden.{name}");
        Self {
            telemetry: format!("{prefix}runs.telemetry"),
            commands: name("commands"),
            outcomes: name("outcomes"),
            signals: name("signals"),
            alerts: name("alerts"),
            interventions: name("interventions"),
            runs: name("runs"),
            lessons: name("lessons"),
            policies: name("policies"),
            policy_level: name("policy-level"),
            evaluations: name("evaluations"),
            audit: name("audit"),
            command_results: name("command-results"),
            live: name("live"),
            dead_letter: name("dead-letter"),
            repartition: name("repartition"),
            steps: name("steps"),
            checkpoint: name("checkpoint"),
            partitions: 6,
            replication: -1,
        }
    }

    /// Real name of an input topic.
    pub fn input(&self, input: Input) -> &str {
        match input {
            Input::Commands => &self.commands,
            Input::Outcomes => &self.outcomes,
            Input::Telemetry => &self.telemetry,
            Input::Repartition => &self.repartition,
        }
    }

    /// Real name of an output topic.
    pub fn output(&self, topic: Topic) -> &str {
        match topic {
            Topic::Signals => &self.signals,
            Topic::Alerts => &self.alerts,
            Topic::Interventions => &self.interventions,
            Topic::Runs => &self.runs,
            Topic::Lessons => &self.lessons,
            Topic::Policies => &self.policies,
            Topic::PolicyLevel => &self.policy_level,
            Topic::Evaluations => &self.evaluations,
            Topic::Audit => &self.audit,
            Topic::CommandResults => &self.command_results,
            Topic::Live => &self.live,
            Topic::Commands => &self.commands,
            Topic::DeadLetter => &self.dead_letter,
            Topic::Repartition => &self.repartition,
        }
    }

    /// Every topic with its set-up, telemetry first.
    pub fn specs(&self) -> Vec<TopicSpec<'_>> {
        let plain = |key, name, cleanup| TopicSpec { key, name, cleanup, co_partitioned: false, settings: Vec::new() };
        let joint = |key, name, cleanup| TopicSpec { co_partitioned: true, ..plain(key, name, cleanup) };
        // a set of policies and queries, and the snapshot it gives, is one record
        let large = || vec![("max.message.bytes", (17_u32 << 20).to_string())];
        let compacting = || {
            vec![
                ("segment.ms", (10 * 60 * 1000_u64).to_string()),
                ("min.cleanable.dirty.ratio", "0.2".to_owned()),
                ("delete.retention.ms", DAY_MS.to_string()),
            ]
        };
        // the lag of what is decided about is told by the broker's clock (X5), not by what producers say
        let appended = || vec![("message.timestamp.type", "LogAppendTime".to_owned())];
        vec![
            TopicSpec { settings: appended(), ..joint("telemetry", &self.telemetry, Cleanup::Delete(7)) },
            TopicSpec { settings: large(), ..joint("commands", &self.commands, Cleanup::Delete(7)) },
            joint("outcomes", &self.outcomes, Cleanup::Delete(7)),
            TopicSpec {
                settings: [appended(), large()].concat(),
                ..joint("repartition", &self.repartition, Cleanup::Delete(7))
            },
            joint("steps", &self.steps, Cleanup::Delete(30)),
            TopicSpec {
                settings: [compacting(), large()].concat(),
                ..joint("checkpoint", &self.checkpoint, Cleanup::Compact)
            },
            plain("signals", &self.signals, Cleanup::Delete(30)),
            plain("alerts", &self.alerts, Cleanup::Delete(30)),
            plain("interventions", &self.interventions, Cleanup::Delete(30)),
            plain("runs", &self.runs, Cleanup::Delete(30)),
            plain("lessons", &self.lessons, Cleanup::Compact),
            TopicSpec { settings: large(), ..plain("policies", &self.policies, Cleanup::Compact) },
            plain("policy-level", &self.policy_level, Cleanup::CompactDelete(30)),
            plain("evaluations", &self.evaluations, Cleanup::Delete(30)),
            plain("audit", &self.audit, Cleanup::Delete(365)),
            plain("command-results", &self.command_results, Cleanup::Delete(1)),
            plain("live", &self.live, Cleanup::CompactDelete(1)),
            plain("dead-letter", &self.dead_letter, Cleanup::Delete(7)),
        ]
    }
}

impl TopicSpec<'_> {
    /// Settings for creation: clean-up policy, retention and the further ones.
    pub fn config(&self) -> Vec<(&'static str, String)> {
        let mut config = vec![("cleanup.policy", self.cleanup.policy().to_owned())];
        if let Cleanup::Delete(days) | Cleanup::CompactDelete(days) = self.cleanup {
            config.push(("retention.ms", (days * DAY_MS).to_string()));
        }
        config.extend(self.settings.iter().cloned());
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_output_and_input_is_among_the_specs_once() {
        let topics = Topics::with_prefix("t-");
        let specs = topics.specs();
        let count = |name: &str| specs.iter().filter(|s| s.name == name).count();
        assert!(Topic::ALL.iter().all(|&t| count(topics.output(t)) == 1));
        assert!(Input::ALL.iter().all(|&i| count(topics.input(i)) == 1));
        assert_eq!(specs.len(), 18);
    }

    #[test]
    fn a_topic_indexes_its_place() {
        assert!(Topic::ALL.iter().enumerate().all(|(i, &t)| t as usize == i));
        assert!(Input::ALL.iter().enumerate().all(|(i, &t)| t as usize == i));
    }
}
