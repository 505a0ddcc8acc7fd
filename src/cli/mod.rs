//! Subcommands: the only room that may know every other.
//!
//! Each subcommand is a file: it parses nothing (clap did), does its work through the other rooms, and gives an exit code:
//! 0 done; 1 invalid input; 2 usage; 3 could not reach or write.

mod acting;
mod backfill;
mod check;
mod commanding;
mod configuring;
mod delivering;
mod demo;
mod edging;
mod explain;
mod governing;
mod keys;
mod leveled;
pub mod load;
mod metered;
mod ordering;
mod paneled;
mod replay;
mod resize;
mod run;
mod securing;
mod service;
mod simulate;
mod tabling;
mod test;
mod topics;
mod unmatched;
mod verdicting;
mod watching;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Holds LLM runs within their limits: windowed SQL over run telemetry from Kafka, decided exactly once.
#[derive(Debug, Parser)]
#[command(
    name = "runwarden",
    version,
    about,
    max_term_width = 110,
    after_help = "\
Start here:
  runwarden demo                       see limits caught, with no broker and no set-up
  runwarden check                      compile every query and policy, and learn where they are wrong
  runwarden simulate --policies config/policies --telemetry events.jsonl --out out
                                       what these policies would have done on recorded telemetry
  runwarden run                        the sidecar itself, on the Kafka of config/runwarden.toml
  runwarden policy status              what is in force there, and since when"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The whole system in one process: a Kafka mock, traffic in which some runs misbehave, the sidecar, a live summary
    Demo(DemoArguments),
    /// The sidecar: consumes telemetry from Kafka, decides, publishes
    Run(RunArguments),
    /// Compiles and validates every query, policy and the configuration, and says where they are wrong
    Check(CheckArguments),
    /// The configuration: every key, with type, default, bounds, variable and meaning
    Config(ConfigArguments),
    /// What a policy set would have done on recorded telemetry; executes nothing
    Simulate(SimulateArguments),
    /// Runs policy tests: files of events and of what must and must not be decided about them
    Test(TestArguments),
    /// Produces recorded telemetry into a Kafka topic, at its own pace or faster
    Replay(ReplayArguments),
    /// Creates, describes or resizes the topics of the configuration
    Topics(TopicsArguments),
    /// Policies in force: what they are, drafts of new ones, limits on and off
    Policy(PolicyArguments),
    /// Proposals: drafts that a person approves or rejects
    Proposal(ProposalArguments),
    /// Overrides: a policy out of force for a tenant for some minutes
    Override(OverrideArguments),
    /// Interventions: what executors are told, approving and reverting it
    Intervention(acting::InterventionArguments),
    /// The guardian: cancels tasks, moves capacity, overrides priorities
    Guardian(acting::GuardianArguments),
    /// Silences: alerts that nobody is told of, for a while
    Silence(acting::SilenceArguments),
    /// Lessons: what failures, near misses and successes teach
    Lesson(acting::LessonArguments),
    /// Makes the lessons that recorded telemetry teaches
    Backfill(backfill::BackfillArguments),
    /// Responses to the policy level: previews what would be done; applies, undoes, brakes, unlocks
    Respond(RespondArguments),
    /// Channels: who is told of alerts, and whether that works
    Channel(ChannelArguments),
    /// Why something was decided: events, SQL, window, policies considered; and decides it again
    Explain(ExplainArguments),
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit codes: 0 delivered; 1 no such channel, unusable settings, or refused for good; 3 the receiver could not be reached now.")]
struct ChannelArguments {
    #[command(flatten)]
    config: ConfigArgument,
    #[command(subcommand)]
    action: ChannelAction,
}

#[derive(Debug, Subcommand)]
enum ChannelAction {
    /// The channels of the configuration; never with addresses or secrets
    List,
    /// Sends a test alert, once, and says what came of it; where alerts are held open it is resolved at once
    Test {
        /// Its name
        name: String,
    },
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
The recorded steps that led to the decision are run again on an empty core, exactly as they were cut, under the terms of then.
Exit codes: 0 explained (also when telemetry, steps or terms have expired: it says so), 1 no such decision, or run again it comes out \
differently, 3 the broker could not be reached.")]
struct ExplainArguments {
    #[command(flatten)]
    config: ConfigArgument,
    /// Id of a signal, an intervention, an alert or an audit line
    id: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What every command that is sent needs.
#[derive(Debug, clap::Args)]
struct SendArguments {
    #[command(flatten)]
    config: ConfigArgument,
    /// Tenant of the policy, or whom the override is for; * is all
    #[arg(long, global = true, value_name = "TENANT", default_value = "*")]
    tenant: String,
    /// Why; kept on the audit topic
    #[arg(long, global = true, value_name = "TEXT", default_value = "")]
    reason: String,
    /// Who you are, as the audit names you (user:NAME); default: $USER
    #[arg(long = "as", global = true, value_name = "NAME")]
    user: Option<String>,
    /// The authority to act with: 1 WORKER, 2 WATCHDOG, 3 MONITOR, 4 GUARDIAN, 5 SYSTEM; never more than the key's
    #[arg(long, global = true, value_name = "LEVEL", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=5))]
    authority: u8,
    /// Act for one tenant only: nothing of others can be touched
    #[arg(long, global = true, value_name = "TENANT", default_value = "*")]
    on_behalf_of: String,
    /// How long to wait for the answer
    #[arg(long, global = true, value_name = "DURATION", value_parser = duration, default_value = "15s")]
    wait: std::time::Duration,
    /// Id of the command: sent again with the same id it counts once
    #[arg(long, global = true, value_name = "ID")]
    command_id: Option<String>,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
}

const SENDING: &str = "\
The command is signed with [auth] sign-with, or with the key that the sidecar made in its data directory, goes to the commands topic, \
and is answered by the one writer of policies.
Exit codes: 0 accepted, 1 refused (with the reason), 3 no answer.";

#[derive(Debug, clap::Args)]
#[command(after_help = SENDING)]
struct PolicyArguments {
    #[command(flatten)]
    send: SendArguments,
    #[command(subcommand)]
    action: PolicyAction,
}

#[derive(Debug, Subcommand)]
enum PolicyAction {
    /// What is in force: revision, snapshot, generation of the files
    Status,
    /// The policies that the register holds
    List,
    /// One policy, whole
    Show {
        /// Its id
        id: String,
    },
    /// Drafts a new policy: a proposal, which a person approves
    Create {
        /// A policy file with one policy
        file: PathBuf,
    },
    /// Drafts another version of a policy that is in force or drafted
    Update {
        /// A policy file with one policy
        file: PathBuf,
    },
    /// Deletes a policy that came from a proposal, unless others depend on it (GOV-POL-002)
    Delete {
        /// Its id
        id: String,
    },
    /// Takes a policy that came from a proposal out of force; it stays as RETIRED
    Retire {
        /// Its id
        id: String,
    },
    /// Puts a limit in force again
    Enable {
        /// Id of the policy
        id: String,
        /// Id of the limit
        limit: String,
    },
    /// Takes a limit out of force, whatever file or proposal it came from, until it is enabled
    Disable {
        /// Id of the policy
        id: String,
        /// Id of the limit
        limit: String,
    },
}

#[derive(Debug, clap::Args)]
#[command(after_help = SENDING)]
struct ProposalArguments {
    #[command(flatten)]
    send: SendArguments,
    #[command(subcommand)]
    action: ProposalAction,
}

#[derive(Debug, Subcommand)]
enum ProposalAction {
    /// Every proposal and where it stands
    List,
    /// The versions of a proposal, whole
    Show {
        /// Its id
        id: String,
    },
    /// Drafts a policy, new or another version
    Create {
        /// A policy file with one policy
        file: PathBuf,
    },
    /// Puts the draft in force, unless that would make a BLOCKING conflict (GOV-POL-001)
    Approve {
        /// Its id
        id: String,
    },
    /// Says no; --reason is required, and the draft is kept
    Reject {
        /// Its id
        id: String,
    },
}

#[derive(Debug, clap::Args)]
#[command(after_help = SENDING)]
struct OverrideArguments {
    #[command(flatten)]
    send: SendArguments,
    #[command(subcommand)]
    action: OverrideAction,
}

#[derive(Debug, Subcommand)]
enum OverrideAction {
    /// Every override of the last 60 days and where it stands
    List,
    /// Takes a policy out of force for --tenant; reaches runs that are bound to it already; --reason is required
    Grant {
        /// Id of the policy
        policy: String,
        /// For how long; the policy's own `override` bounds it
        #[arg(long)]
        minutes: u32,
        /// Tenant of the policy, where that is not --tenant; * is that of policies of all tenants
        #[arg(long, value_name = "TENANT", default_value = "*")]
        policy_tenant: String,
    },
    /// Ends an override before its time
    Revoke {
        /// Its id
        id: String,
    },
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Without an option: previews what would be done at the level of all as it is now. The core decides, a sidecar with the role serve executes, \
and its data directory holds the preview, the log, the undo records and the report of what was blocked (docs/level.md).
Exit codes: 0 accepted, 1 refused or blocked (with the reason), 3 no answer.")]
struct RespondArguments {
    #[command(flatten)]
    send: SendArguments,
    /// Respond to this level instead of that of all
    #[arg(long, value_name = "LEVEL", value_parser = ["RED", "YELLOW", "GREEN"], ignore_case = true)]
    level: Option<String>,
    /// Do it, if every gate is open
    #[arg(long)]
    apply: bool,
    /// Take back what an undo record (state/policy_response_undo_….json) says, here
    #[arg(long, value_name = "FILE", conflicts_with_all = ["apply", "level"])]
    undo: Option<PathBuf>,
    #[command(subcommand)]
    action: Option<RespondAction>,
}

#[derive(Debug, Subcommand)]
enum RespondAction {
    /// The safety brake: while it is on nothing is applied
    Brake {
        /// on or off
        #[arg(value_parser = ["on", "off"])]
        state: String,
    },
    /// Lifts the trust lock until a later sample says otherwise; --reason is required, 3 times a day
    Unlock,
    /// Lets the count of the day's unlocks begin anew
    ResetUnlocks,
}

/// `--config`, shared by the subcommands that read it.
#[derive(Debug, clap::Args)]
pub struct ConfigArgument {
    /// Configuration file; RUNWARDEN_SECTION__KEY in the environment overrides its keys
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        long_help = "Configuration file. Without it config/runwarden.toml is read if it exists, \
        else the defaults hold. RUNWARDEN_SECTION__KEY in the environment overrides its keys."
    )]
    config: Option<PathBuf>,
}

impl ConfigArgument {
    fn path(&self) -> Option<&std::path::Path> {
        self.config.as_deref()
    }
}

#[derive(Debug, clap::Args)]
struct DemoArguments {
    /// Stop by itself after this long (30s, 2m); without it: until Ctrl-C
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    length: Option<std::time::Duration>,
    /// HTTP listener of the demo; port 0 takes a free one. Default: 127.0.0.1:8080, or a free port where that is taken
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<std::net::SocketAddr>,
}

#[derive(Debug, clap::Args)]
struct RunArguments {
    #[command(flatten)]
    config: ConfigArgument,
    /// Read to the end offsets as they are now, close every window, commit, and exit
    #[arg(long)]
    until_end: bool,
}

#[derive(Debug, clap::Args)]
struct CheckArguments {
    #[command(flatten)]
    config: ConfigArgument,
    /// Warnings fail too
    #[arg(long)]
    strict: bool,
    /// Print the effective configuration, the metrics and the limits in force
    #[arg(long)]
    print: bool,
    /// Print the JSON Schema of policy files, and check nothing
    #[arg(long, conflicts_with_all = ["strict", "print"])]
    schema: bool,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
The file is --config FILE or config/runwarden.toml; RUNWARDEN_SECTION__KEY in the environment overrides its keys. Whether a file holds is \
told by `runwarden check`. An editor that knows TOML takes the schema: runwarden config reference --format json > runwarden.schema.json")]
struct ConfigArguments {
    #[command(subcommand)]
    action: ConfigAction,
}

#[derive(Debug, Subcommand)]
enum ConfigAction {
    /// Prints every key: as the page of the manual, or as the JSON Schema of configuration files
    Reference {
        /// How
        #[arg(long, value_enum, default_value = "markdown")]
        format: ConfigFormat,
    },
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum ConfigFormat {
    /// A page of Markdown
    Markdown,
    /// JSON Schema, draft 7
    Json,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
A test is a YAML document:
  name: A runaway loop is stopped
  policies: [../policies/runs.yaml]            files or directories, relative to the test's file
  each: {tenant_id: acme, run_id: r, event_type: run.step}
  events:
    - {event_time: 2026-01-05T00:00:00Z, input_tokens: 150000}
  expect:
    interventions: [{type: STOP, target: {kind: RUN, id: r}}]
  never:
    signals: [{scope: {id: other}}]
Exit codes: 0 all passed, 1 one failed or is refused.")]
struct TestArguments {
    /// Test files (.yaml), or one of them
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Metric queries
    #[arg(long, value_name = "DIR", default_value = "queries")]
    queries: PathBuf,
    /// Prices for events that report no cost
    #[arg(long, value_name = "FILE", default_value = "config/prices.toml")]
    prices: PathBuf,
    /// Print the outcomes as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct SimulateArguments {
    /// Policy files to put in force
    #[arg(long, value_name = "DIR")]
    policies: PathBuf,
    /// A second set to compare with; writes diff.json
    #[arg(long, value_name = "DIR")]
    against: Option<PathBuf>,
    /// Metric queries
    #[arg(long, value_name = "DIR", default_value = "queries")]
    queries: PathBuf,
    /// Telemetry files (.jsonl, .csv, .parquet); several are merged by event time
    #[arg(long, value_name = "FILE", num_args = 1.., required_unless_present = "from_topic", conflicts_with = "from_topic")]
    telemetry: Vec<PathBuf>,
    /// What the telemetry topic of the configuration holds now, instead of files
    #[arg(long)]
    from_topic: bool,
    /// With --from-topic: records from this time on (RFC 3339, the broker's timestamps)
    #[arg(long, value_name = "TIME", value_parser = instant, requires = "from_topic")]
    since: Option<crate::clock::Wall>,
    #[command(flatten)]
    config: ConfigArgument,
    /// Where the results go (created if missing)
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// What "too far in the future" compares with (RFC 3339); default: the start of the command
    #[arg(long, value_name = "TIME", value_parser = instant)]
    now: Option<crate::clock::Wall>,
    /// Prices for events that report no cost
    #[arg(long, value_name = "FILE", default_value = "config/prices.toml")]
    prices: PathBuf,
    /// Print the summary as JSON instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct ReplayArguments {
    /// Telemetry files (.jsonl, .csv, .parquet); several are merged by event time
    #[arg(long, value_name = "FILE", required = true, num_args = 1..)]
    telemetry: Vec<PathBuf>,
    /// Bootstrap servers
    #[arg(long, value_name = "HOST:PORT,…")]
    brokers: String,
    /// Topic to produce to
    #[arg(long)]
    topic: String,
    /// Times the recorded pace (1, 10, …), or max
    #[arg(long, value_name = "X|max", default_value = "max")]
    speed: replay::Speed,
    /// How records are keyed: by tenant (as the contract says), by run, or not at all
    #[arg(long, value_enum, default_value = "tenant")]
    key: replay::KeyBy,
}

#[derive(Debug, clap::Args)]
struct TopicsArguments {
    #[command(flatten)]
    config: ConfigArgument,
    #[command(subcommand)]
    action: TopicsAction,
}

#[derive(Debug, Subcommand)]
enum TopicsAction {
    /// Creates what is missing and verifies what is there
    Create,
    /// Shows partitions and settings of every topic
    Describe,
    /// Adds partitions and moves every tenant's state to where its records will be; offline, can be repeated
    #[command(long_about = "\
Adds partitions, so that more sidecars can share the work, and moves every tenant's state (windows, sessions, seen ids, levels, \
alerts, interventions, runs, clocks) to the partition where its records will be.

1. Stop every sidecar of the group. The command waits for members to leave, and refuses to begin beside a living one. A sidecar \
that is started meanwhile refuses to run, or is the reason for this command to stop; neither does harm.
2. Run it, with the configuration of the sidecars. It restores every partition as a sidecar would, processes what is unread as a \
sidecar would, writes the state for the new partitions in one go, and adds the partitions.
3. Start the sidecars.

Killed at any moment, it is run again with the same --partitions and goes on where it stopped; until then no sidecar starts. Producers \
may go on all the while: what they still send to a tenant's old partition is re-keyed to its owner, once. Kafka cannot take partitions \
away, so there is no way back. All state is held in memory meanwhile.

Exit codes: 0 done, or nothing to do; 1 refused, with the reason; 3 the broker could not be reached, or it was broken off.")]
    Resize(ResizeArguments),
}

#[derive(Debug, clap::Args)]
struct ResizeArguments {
    /// How many partitions there are to be: more than now
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..=10_000))]
    partitions: i32,
    /// Restore and split, say what would be done, change nothing
    #[arg(long)]
    dry_run: bool,
    /// Go on when the state cannot be restored exactly (history gone, unreadable keys), with what there is
    #[arg(long)]
    accept_loss: bool,
    /// Leave unread records to the sidecars. They are re-keyed then, after newer ones perhaps: more than `allowed-lateness`
    /// behind those, they count as late
    #[arg(long)]
    leave_backlog: bool,
}

/// Why a subcommand failed; its exit code.
#[derive(Debug)]
pub enum Failure {
    /// 1: unreadable file, no valid row, an error found by `check`.
    Invalid(String),
    /// 3: could not reach or write.
    Reach(String),
}

impl Failure {
    fn invalid(error: impl std::fmt::Display) -> Self {
        Self::Invalid(error.to_string())
    }

    /// With what caused it.
    fn unreadable(error: impl std::error::Error) -> Self {
        Self::Invalid(Chain(&error).to_string())
    }

    fn reach(error: impl std::error::Error) -> Self {
        Self::Reach(Chain(&error).to_string())
    }
}

/// An error with what caused it, each said once.
struct Chain<'a>(&'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut said = self.0.to_string();
        let mut cause = self.0.source();
        while let Some(error) = cause {
            let text = error.to_string();
            if !said.contains(&text) {
                said = format!("{said}: {text}");
            }
            cause = error.source();
        }
        f.write_str(&said)
    }
}

fn duration(text: &str) -> Result<std::time::Duration, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let scale = match unit {
        "" | "s" => 1_000,
        "ms" => 1,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(format!("{text}: write a duration like 30s, 2m or 1h")),
    };
    let number: u64 = number.parse().map_err(|_| format!("{text}: write a duration like 30s, 2m or 1h"))?;
    Ok(std::time::Duration::from_millis(number.saturating_mul(scale)))
}

fn instant(text: &str) -> Result<crate::clock::Wall, String> {
    let at = chrono::DateTime::parse_from_rfc3339(text)
        .map_err(|e| format!("{e}; write a time like 2026-01-31T12:00:00Z"))?;
    Ok(crate::clock::Wall(at.timestamp_micros()))
}

/// Parses the command line, runs the subcommand and returns its exit code (0 done, 1 invalid input, 2 usage, 3 could not
/// reach or write).
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match arguments.command {
        Command::Demo(a) => demo::main(&a),
        Command::Run(a) => run::main(&a),
        Command::Check(a) => check::main(&a),
        Command::Config(a) => configuring::main(&a.action),
        Command::Simulate(a) => simulate::main(&a),
        Command::Test(a) => test::main(&a),
        Command::Replay(a) => replay::main(&a),
        Command::Topics(a) => topics::main(&a),
        Command::Policy(a) => commanding::policy(&a),
        Command::Proposal(a) => commanding::proposal(&a),
        Command::Override(a) => commanding::overriding(&a),
        Command::Intervention(a) => acting::intervention(&a),
        Command::Guardian(a) => acting::guardian(&a),
        Command::Silence(a) => acting::silence(&a),
        Command::Lesson(a) => acting::lesson(&a),
        Command::Backfill(a) => backfill::main(&a),
        Command::Respond(a) => commanding::respond(&a),
        Command::Channel(a) => delivering::main(&a),
        Command::Explain(a) => explain::main(&a),
    };
    match result {
        Ok(code) => code,
        Err(Failure::Invalid(message)) => {
            eprintln!("error: {message}");
            ExitCode::from(1)
        }
        Err(Failure::Reach(message)) => {
            eprintln!("error: {message}");
            ExitCode::from(3)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn the_configuration_may_stand_before_or_after_the_action() {
        for line in [["topics", "--config", "f.toml", "create"], ["topics", "create", "--config", "f.toml"]] {
            let parsed = Arguments::try_parse_from(["runwarden"].iter().chain(&line)).unwrap();
            let Command::Topics(topics) = parsed.command else { panic!("{parsed:?}") };
            assert_eq!(topics.config.path(), Some(std::path::Path::new("f.toml")));
        }
    }

    #[test]
    fn simulate_needs_policies_telemetry_and_a_place_for_results() {
        assert!(Arguments::try_parse_from(["runwarden", "simulate", "--policies", "p"]).is_err());
        let line = ["runwarden", "simulate", "--policies", "p", "--telemetry", "a.jsonl", "b.csv", "--out", "o"];
        assert!(Arguments::try_parse_from(line).is_ok());
    }

    #[test]
    fn a_value_that_cannot_be_meant_is_a_fault_of_usage() {
        let simulate =
            |now| ["runwarden", "simulate", "--policies", "p", "--telemetry", "a", "--out", "o", "--now", now];
        let replay = |x| ["runwarden", "replay", "--telemetry", "a", "--brokers", "b", "--topic", "t", "--speed", x];
        for line in [simulate("yesterday"), replay("fast"), replay("0"), replay("-1"), replay("inf")] {
            let error = Arguments::try_parse_from(line).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{error}");
        }
        for line in [simulate("2026-01-31T12:00:00+01:00"), replay("max"), replay("2.5")] {
            assert!(Arguments::try_parse_from(line).is_ok(), "{line:?}");
        }
    }
}
