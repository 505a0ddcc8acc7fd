//! Every label value that is known when the program is compiled: closed enums, so no series can appear by surprise.

/// A closed set of label values.
pub trait Label: Copy + 'static {
    /// The label's name in exported text.
    const NAME: &'static str;
    /// All values, in the order of [`Label::index`].
    const ALL: &'static [Self];
    /// The exported value.
    fn as_str(self) -> &'static str;
    /// Position in [`Label::ALL`].
    fn index(self) -> usize;
    /// The value written `text`, ignoring ASCII case; `None` when there is none.
    fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|value| value.as_str().eq_ignore_ascii_case(text))
    }
}

macro_rules! labels {
    ($($(#[$meta:meta])* $name:ident $label:literal { $($variant:ident $text:literal),* $(,)? })*) => {$(
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name {
            $(#[doc = concat!("`", $text, "`")] $variant),*
        }

        impl Label for $name {
            const NAME: &'static str = $label;
            const ALL: &'static [Self] = &[$(Self::$variant),*];
            fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }
            fn index(self) -> usize {
                self as usize
            }
        }
    )*};
}

labels! {
    /// Input topics, by configuration key.
    Input "input" { Commands "commands", Outcomes "outcomes", Telemetry "telemetry", Repartition "repartition" }
    /// Output topics, by configuration key.
    Output "topic" {
        Signals "signals", Alerts "alerts", Interventions "interventions", Runs "runs", Lessons "lessons",
        Policies "policies", PolicyLevel "policy-level", Evaluations "evaluations", Audit "audit",
        CommandResults "command-results", Live "live", DeadLetter "dead-letter", Repartition "repartition",
        Commands "commands",
    }
    /// Why a record went to the dead-letter topic.
    DeadLetterReason "reason" {
        Decode "decode", MissingField "missing_field", OutOfRange "out_of_range", Future "future", Late "late",
        Oversize "oversize", MisroutedUnroutable "misrouted_unroutable",
    }
    /// Kinds of signals.
    SignalKind "kind" { Near "NEAR", Breach "BREACH", Resolved "RESOLVED" }
    /// Enforcement modes that evaluate anything.
    Mode "mode" { Block "BLOCK", Warn "WARN", Audit "AUDIT" }
    /// Types of interventions.
    InterventionType "type" {
        Pause "PAUSE", Resume "RESUME", Stop "STOP", Kill "KILL", AgentRestart "AGENT_RESTART",
        AgentQuarantine "AGENT_QUARANTINE", TeamRestart "TEAM_RESTART", TaskReassign "TASK_REASSIGN",
        PriorityOverride "PRIORITY_OVERRIDE", CancelTask "CANCEL_TASK", ReallocateCapacity "REALLOCATE_CAPACITY",
        Notify "NOTIFY",
    }
    /// Whether an intervention was issued or only said what BLOCK would have done.
    Effect "mode" { Enforced "enforced", Shadow "shadow" }
    /// What an alert record says of its alert.
    AlertStatus "status" { Open "OPEN", Updated "UPDATED", Resolved "RESOLVED" }
    /// What a lesson is about.
    LessonType "lesson_type" {
        Failure "failure", NearThreshold "near_threshold", CriticalSuccess "critical_success",
    }
    /// Why a tenant is blind.
    BlindCause "cause" { Lag "LAG", Silence "SILENCE", Late "LATE", Overflow "OVERFLOW" }
    /// What whoever asked about a run was told.
    Verdict "verdict" {
        Allow "allow", Queue "queue", Degrade "degrade", Reject "reject", Pause "pause", Stop "stop", Kill "kill",
    }
    /// Why a record of ours is in no table.
    Untabled "reason" { Unread "unread", Full "full" }
    /// Tables that are read from topics.
    TableName "table" {
        Signals "signals", Alerts "alerts", Interventions "interventions", Runs "runs", Lessons "lessons",
        Policies "policies", Limits "limits", Proposals "proposals", Versions "policy_versions",
        Overrides "overrides", Silences "silences", PolicyLevel "policy_level", Audit "audit",
        Evaluations "evaluations",
    }
    /// How a statement of SQL ended.
    SqlEnded "outcome" { Done "done", Refused "refused", Failed "failed", Stopped "stopped" }
    /// What became of who wanted to ask in SQL.
    SqlLogin "outcome" { Accepted "accepted", TurnedAway "turned_away", Denied "denied" }
    /// Statuses of answers to OTLP requests.
    OtlpCode "code" {
        Ok "200", BadRequest "400", Unauthorized "401", Forbidden "403", NotFound "404", Method "405", Timeout "408",
        TooLarge "413", Media "415", TooMany "429", Unavailable "503",
    }
    /// Why a span cannot become an event.
    SpanRejected "reason" { Id "id", Time "time", Tenant "tenant", OutOfRange "out_of_range" }
    /// What is sent as OTLP and not taken.
    OtlpSignal "signal" { Metrics "metrics", Logs "logs" }
    /// What became of a record of the collector's topic.
    BridgedOutcome "outcome" { Mapped "mapped", Dead "dead" }
    /// Why spans of a trace were dropped: no room in the queue, no answer, an answer that refuses all or some of them, a step that was not
    /// committed, too many in one trace, the end of the process.
    SpanDropped "cause" {
        Queue "queue", Unreachable "unreachable", Refused "refused", Rejected "rejected", Uncommitted "uncommitted",
        Bound "bound", Shutdown "shutdown",
    }
    /// What became of a command.
    CommandStatus "status" { Accepted "ACCEPTED", Refused "REFUSED" }
    /// What became of a set of files: `invalid` never left this process, `refused` by the writer.
    SetOutcome "outcome" { Accepted "accepted", Refused "refused", Invalid "invalid" }
    /// Parts a process may play.
    Role "role" { Edge "edge", Core "core", Serve "serve", Channels "channels" }
    /// How a transaction ended; `resent` counts uncommitted outputs that were sent again.
    TransactionOutcome "outcome" {
        Committed "committed", Aborted "aborted", Fenced "fenced", Resent "resent",
    }
}
