//! `runwarden intervention`, `guardian`, `silence`, `lesson`: what people and agents ask for, one signed command each, and lists of
//! what the topics hold.

use std::collections::BTreeMap;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::commanding::{config, order, print, show_one};
use super::{Failure, SendArguments, load};
use crate::clock::{SECOND, Wall};
use crate::kafka::reader::read_topic;
use crate::kafka::{ShellConfig, Topics};

/// Interventions: what executors are told to do.
#[derive(Debug, Args)]
pub(super) struct InterventionArguments {
    #[command(flatten)]
    send: SendArguments,
    #[command(subcommand)]
    action: InterventionAction,
}

#[derive(Debug, Subcommand)]
enum InterventionAction {
    /// Every intervention of the last 30 days and where it stands
    List {
        /// Only those about which something is still to be done or decided
        #[arg(long)]
        pending: bool,
    },
    /// One intervention, whole
    Show {
        /// Its id
        id: String,
    },
    /// Orders one; --tenant and --reason are required
    Create {
        /// PAUSE RESUME STOP KILL AGENT_RESTART AGENT_QUARANTINE TEAM_RESTART TASK_REASSIGN PRIORITY_OVERRIDE CANCEL_TASK REALLOCATE_CAPACITY NOTIFY
        #[arg(value_name = "TYPE")]
        kind: String,
        /// RUN AGENT TASK TEAM API_KEY HUMAN_ACTOR PROJECT PROVIDER TENANT
        target_kind: String,
        /// Id of the target
        target: String,
        /// Parameters of the type, as a JSON object
        #[arg(long, value_name = "JSON", default_value = "{}")]
        parameters: String,
        /// Propose it only: somebody else must approve
        #[arg(long)]
        approval_required: bool,
    },
    /// Approves a proposed one: it is issued
    Approve {
        /// Its id
        id: String,
    },
    /// Rejects a proposed one; --reason is required
    Reject {
        /// Its id
        id: String,
    },
    /// Takes one back; what it paused is resumed, everything else is a mark. --reason is required
    Revert {
        /// Its id
        id: String,
    },
}

/// What the guardian may do (authority 4), and how a watchdog (2) calls it.
#[derive(Debug, Args)]
pub(super) struct GuardianArguments {
    #[command(flatten)]
    send: SendArguments,
    #[command(subcommand)]
    action: GuardianAction,
}

#[derive(Debug, Subcommand)]
enum GuardianAction {
    /// Cancels a task
    CancelTask {
        /// The task
        task: String,
    },
    /// Moves capacity from one agent to another
    Reallocate {
        /// From which agent
        from: String,
        /// To which agent
        to: String,
        /// How much
        capacity: u32,
    },
    /// Gives a task another priority
    OverridePriority {
        /// The task
        task: String,
        /// CRITICAL HIGH MEDIUM LOW
        priority: String,
    },
    /// Hands an open alert to the guardian: it becomes CRITICAL
    Escalate {
        /// The alert
        alert: String,
    },
}

/// Silences: alerts that nobody is told of, for a while. Interventions go on.
#[derive(Debug, Args)]
pub(super) struct SilenceArguments {
    #[command(flatten)]
    send: SendArguments,
    #[command(subcommand)]
    action: SilenceAction,
}

#[derive(Debug, Subcommand)]
enum SilenceAction {
    /// Every silence of the last 60 days and where it stands
    List,
    /// Mutes alerts of --tenant (* is all) that match all of these; --reason is required
    Create {
        /// NAME OPERATOR VALUE in one word, such as agent=planner or metric=~run_.*; operators = != =~ !~; names correlation_key fingerprint severity title source metric agent run policy
        #[arg(required = true, value_name = "MATCHER")]
        matchers: Vec<String>,
        /// For how long from now
        #[arg(long = "for", value_name = "DURATION", value_parser = super::duration)]
        lasts: std::time::Duration,
    },
    /// Ends a silence before its time
    Expire {
        /// Its id
        id: String,
    },
}

/// Lessons: what failures, near misses and successes teach.
#[derive(Debug, Args)]
pub(super) struct LessonArguments {
    #[command(flatten)]
    send: SendArguments,
    #[command(subcommand)]
    action: LessonAction,
}

#[derive(Debug, Subcommand)]
enum LessonAction {
    /// The lessons and where they stand
    List {
        /// pending converted_to_draft deferred dismissed
        #[arg(long)]
        status: Option<String>,
        /// failure near_threshold critical_success
        #[arg(long = "type", value_name = "TYPE")]
        kind: Option<String>,
        /// Also those of made-up data
        #[arg(long)]
        include_synthetic: bool,
    },
    /// How many there are, by type and status
    Stats,
    /// One lesson, whole
    Show {
        /// Its id
        id: String,
    },
    /// Makes a draft proposal of a pending one, with a limit from the data
    Convert {
        /// Its id
        id: String,
    },
    /// Puts a pending one off
    Defer {
        /// Its id
        id: String,
        /// For how long from now; it then comes back by itself
        #[arg(long = "for", value_name = "DURATION", value_parser = super::duration)]
        lasts: std::time::Duration,
    },
    /// Nothing will be made of a pending one; --reason is required
    Dismiss {
        /// Its id
        id: String,
    },
    /// Brings a deferred one back now
    Reactivate {
        /// Its id
        id: String,
    },
}

/// `runwarden intervention`.
pub(super) fn intervention(arguments: &InterventionArguments) -> Result<ExitCode, Failure> {
    let send = &arguments.send;
    let one = |id: &str| json!({"intervention_id": id, "reason": send.reason});
    let topic = |t: &Topics| t.interventions.clone();
    match &arguments.action {
        InterventionAction::List { pending } => {
            let mut rows = latest(send, topic, "intervention_id")?;
            let waits = |row: &Value| matches!(row["state"].as_str(), Some("PROPOSED" | "ISSUED" | "ACKNOWLEDGED"));
            rows.retain(|row| !pending || waits(row));
            print(
                &rows,
                &["tenant_id", "type", "target.kind", "target.id", "state", "deadline", "intervention_id"],
                send,
            );
            Ok(ExitCode::SUCCESS)
        }
        InterventionAction::Show { id } => show_one(latest(send, topic, "intervention_id")?, "intervention_id", id),
        InterventionAction::Create { kind, target_kind, target, parameters, approval_required } => {
            let parameters: Value =
                serde_json::from_str(parameters).ok().filter(Value::is_object).ok_or_else(|| {
                    Failure::Invalid("--parameters must be a JSON object, such as {\"to_agent_id\": \"b\"}".into())
                })?;
            let body = json!({
                "type": kind.to_uppercase(), "target": {"kind": target_kind.to_uppercase(), "id": target}, "parameters": parameters,
                "approval_required": approval_required, "reason": send.reason,
            });
            order("intervention.create", body, send)
        }
        InterventionAction::Approve { id } => order("intervention.approve", one(id), send),
        InterventionAction::Reject { id } => order("intervention.reject", one(id), send),
        InterventionAction::Revert { id } => order("intervention.revert", one(id), send),
    }
}

/// `runwarden guardian`.
pub(super) fn guardian(arguments: &GuardianArguments) -> Result<ExitCode, Failure> {
    let (send, reason) = (&arguments.send, &arguments.send.reason);
    match &arguments.action {
        GuardianAction::CancelTask { task } => {
            order("guardian.cancel_task", json!({"task_id": task, "reason": reason}), send)
        }
        GuardianAction::Reallocate { from, to, capacity } => {
            let body = json!({"from_agent_id": from, "to_agent_id": to, "capacity": capacity, "reason": reason});
            order("guardian.reallocate", body, send)
        }
        GuardianAction::OverridePriority { task, priority } => {
            let body = json!({"task_id": task, "new_priority": priority.to_uppercase(), "reason": reason});
            order("guardian.override_priority", body, send)
        }
        GuardianAction::Escalate { alert } => {
            order("guardian.escalate", json!({"alert_id": alert, "reason": reason}), send)
        }
    }
}

/// `runwarden silence`.
pub(super) fn silence(arguments: &SilenceArguments) -> Result<ExitCode, Failure> {
    let send = &arguments.send;
    match &arguments.action {
        SilenceAction::List => super::commanding::list(
            send,
            "silence",
            &["tenant_id", "status", "starts_at", "ends_at", "author", "comment", "silence_id"],
        ),
        SilenceAction::Create { matchers, lasts } => {
            let matchers = matchers.iter().map(|m| matcher(m)).collect::<Result<Vec<_>, _>>()?;
            let ends_at = crate::clock::rfc3339(after(*lasts));
            let body = json!({"tenant": send.tenant, "matchers": matchers, "ends_at": ends_at, "comment": send.reason});
            order("silence.create", body, send)
        }
        SilenceAction::Expire { id } => {
            order("silence.expire", json!({"silence_id": id, "comment": send.reason}), send)
        }
    }
}

/// `runwarden lesson`.
pub(super) fn lesson(arguments: &LessonArguments) -> Result<ExitCode, Failure> {
    let send = &arguments.send;
    let one = |id: &str| json!({"lesson_id": id, "reason": send.reason});
    let topic = |t: &Topics| t.lessons.clone();
    match &arguments.action {
        LessonAction::List { status, kind, include_synthetic } => {
            let mut rows = latest(send, topic, "id")?;
            let is = |row: &Value, name: &str, wanted: &Option<String>| {
                wanted.as_ref().is_none_or(|w| row[name].as_str().is_some_and(|v| v.eq_ignore_ascii_case(w)))
            };
            rows.retain(|row| is(row, "status", status) && is(row, "lesson_type", kind));
            rows.retain(|row| *include_synthetic || row["is_synthetic"] != true);
            print(&rows, &["tenant_id", "lesson_type", "severity", "status", "title", "id"], send);
            Ok(ExitCode::SUCCESS)
        }
        LessonAction::Stats => {
            let mut counts: BTreeMap<(String, String), u64> = BTreeMap::new();
            for row in latest(send, topic, "id")?.iter().filter(|row| row["is_synthetic"] != true) {
                let text = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
                *counts.entry((text("lesson_type"), text("status"))).or_default() += 1;
            }
            let row = |((kind, status), count)| json!({"lesson_type": kind, "status": status, "count": count});
            let rows: Vec<Value> = counts.into_iter().map(row).collect();
            print(&rows, &["lesson_type", "status", "count"], send);
            Ok(ExitCode::SUCCESS)
        }
        LessonAction::Show { id } => show_one(latest(send, topic, "id")?, "id", id),
        LessonAction::Convert { id } => order("lesson.convert", one(id), send),
        LessonAction::Defer { id, lasts } => {
            let body =
                json!({"lesson_id": id, "defer_until": crate::clock::rfc3339(after(*lasts)), "reason": send.reason});
            order("lesson.defer", body, send)
        }
        LessonAction::Dismiss { id } => order("lesson.dismiss", one(id), send),
        LessonAction::Reactivate { id } => order("lesson.reactivate", one(id), send),
    }
}

fn after(lasts: std::time::Duration) -> i64 {
    let micros = i64::try_from(lasts.as_secs()).unwrap_or(i64::MAX).saturating_mul(SECOND);
    Wall::now().0.saturating_add(micros)
}

/// `agent=planner` as a matcher.
fn matcher(text: &str) -> Result<Value, Failure> {
    let at = text.find(['=', '!']).unwrap_or(text.len());
    let (name, rest) = text.split_at(at);
    let found = ["=~", "!~", "!=", "="].into_iter().find_map(|op| Some((op, rest.strip_prefix(op)?)));
    match found {
        Some((operator, value)) if !name.is_empty() => {
            Ok(json!({"name": name.trim(), "operator": operator, "value": value.trim_matches('"')}))
        }
        _ => Err(Failure::Invalid(format!("{text:?} is no matcher: write NAME OPERATOR VALUE, such as agent=planner"))),
    }
}

/// The latest record of each id on a topic, those of --tenant.
fn latest(send: &SendArguments, topic: impl Fn(&Topics) -> String, id: &str) -> Result<Vec<Value>, Failure> {
    let config = config(send)?;
    let ShellConfig { client, topics, .. } = load::shell(&config);
    let mut found: BTreeMap<(String, String), Value> = BTreeMap::new();
    for record in read_topic(&client, &topic(&topics)).map_err(Failure::reach)? {
        let Some(value) = record.payload.as_deref().and_then(|p| serde_json::from_slice::<Value>(p).ok()) else {
            continue;
        };
        let text = |name: &str| value[name].as_str().map(str::to_owned);
        // the guardian's events are no interventions
        if let (Some(tenant), Some(own), true) = (text("tenant_id"), text(id), value["revision"].is_u64())
            && (send.tenant == "*" || send.tenant == tenant)
        {
            found.insert((tenant, own), value);
        }
    }
    Ok(found.into_values().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matchers_are_written_in_one_word() {
        let of = |text: &str| matcher(text).unwrap();
        assert_eq!(of("agent=planner"), json!({"name": "agent", "operator": "=", "value": "planner"}));
        assert_eq!(of("metric=~run_.*"), json!({"name": "metric", "operator": "=~", "value": "run_.*"}));
        assert_eq!(of("severity!=\"LOW\""), json!({"name": "severity", "operator": "!=", "value": "LOW"}));
        assert_eq!(of("title!~a=b"), json!({"name": "title", "operator": "!~", "value": "a=b"}));
        assert!(matcher("agent").is_err() && matcher("=x").is_err());
    }
}
