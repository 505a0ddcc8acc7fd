//! `runwarden policy`, `proposal`, `override`: signs a command, sends it, waits for the answer, shows it; and lists what the policies
//! topic holds.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::cli::ordering::Orders;
use crate::cli::{
    Failure, OverrideAction, OverrideArguments, PolicyAction, PolicyArguments, ProposalAction, ProposalArguments,
    RespondAction, RespondArguments, SendArguments, keys, load,
};
use crate::clock::Wall;
use crate::config::Config;
use crate::decide::commands::{self, Command, SYSTEM, authority_name};
use crate::kafka::reader::read_topic;
use crate::serve::level::FileSystem;
use crate::serve::respond;

/// `runwarden policy`.
pub(super) fn policy(arguments: &PolicyArguments) -> Result<ExitCode, Failure> {
    let send = &arguments.send;
    let limit = |id: &str, limit: &str| json!({"tenant": send.tenant, "policy_id": id, "limit_id": limit, "reason": send.reason});
    let one = |id: &str| json!({"tenant": send.tenant, "policy_id": id, "reason": send.reason});
    let (kind, body) = match &arguments.action {
        PolicyAction::Create { file } => ("policy.create", written(file, send)?),
        PolicyAction::Update { file } => ("policy.update", written(file, send)?),
        PolicyAction::Delete { id } => ("policy.delete", one(id)),
        PolicyAction::Retire { id } => ("rule.retire", one(id)),
        PolicyAction::Enable { id, limit: l } => ("limit.enable", limit(id, l)),
        PolicyAction::Disable { id, limit: l } => ("limit.disable", limit(id, l)),
        PolicyAction::List => {
            return list(
                send,
                "policy",
                &["tenant_id", "policy_id", "version", "status", "enforcement_mode", "origin", "changed_by"],
            );
        }
        PolicyAction::Show { id } => return show(send, "policy", "policy_id", id),
        PolicyAction::Status => return status(send),
    };
    order(kind, body, send)
}

/// `runwarden proposal`.
pub(super) fn proposal(arguments: &ProposalArguments) -> Result<ExitCode, Failure> {
    let send = &arguments.send;
    let one = |id: &str| json!({"proposal_id": id, "reason": send.reason});
    let (kind, body) = match &arguments.action {
        ProposalAction::Create { file } => ("proposal.create", written(file, send)?),
        ProposalAction::Approve { id } => ("proposal.approve", one(id)),
        ProposalAction::Reject { id } => ("proposal.reject", one(id)),
        ProposalAction::List => {
            return list(
                send,
                "proposal",
                &["tenant_id", "policy_id", "status", "draft_version", "created_by", "proposal_id"],
            );
        }
        ProposalAction::Show { id } => return show(send, "version", "proposal_id", id),
    };
    order(kind, body, send)
}

/// `runwarden override`.
pub(super) fn overriding(arguments: &OverrideArguments) -> Result<ExitCode, Failure> {
    let send = &arguments.send;
    let (kind, body) = match &arguments.action {
        OverrideAction::Grant { policy, minutes, policy_tenant } => {
            let body = json!({
                "tenant": send.tenant, "policy_tenant": policy_tenant, "policy_id": policy, "minutes": minutes, "reason": send.reason,
            });
            ("override.grant", body)
        }
        OverrideAction::Revoke { id } => ("override.revoke", json!({"override_id": id, "reason": send.reason})),
        OverrideAction::List => {
            return list(
                send,
                "override",
                &["tenant_id", "policy_id", "status", "expires_at", "granted_by", "override_id"],
            );
        }
    };
    order(kind, body, send)
}

/// `runwarden respond`.
pub(super) fn respond(arguments: &RespondArguments) -> Result<ExitCode, Failure> {
    let send = &arguments.send;
    if let Some(file) = &arguments.undo {
        return undo(file, send);
    }
    let (kind, body) = match &arguments.action {
        Some(RespondAction::Brake { state }) => ("respond.brake", json!({"on": state == "on", "reason": send.reason})),
        Some(RespondAction::Unlock) => ("respond.unlock", json!({"reason": send.reason})),
        Some(RespondAction::ResetUnlocks) => ("respond.reset_unlocks", json!({"reason": send.reason})),
        None => {
            let body = json!({"apply": arguments.apply, "level": arguments.level, "reason": send.reason});
            ("respond.run", body)
        }
    };
    let answer = ask(kind, body, send, send.authority)?;
    let code = told(&answer, send.json);
    Ok(if answer["result"]["outcome"] == "BLOCKED" { ExitCode::from(1) } else { code })
}

/// Takes back, on this machine, what an undo record says; then the audit is told.
fn undo(file: &Path, send: &SendArguments) -> Result<ExitCode, Failure> {
    let undone = respond::undo(file, Wall::now().0, &FileSystem).map_err(Failure::unreadable)?;
    println!("{} of response {} is undone", undone.action, undone.response_id);
    let results = json!([{"action": undone.action, "undo": file.display().to_string()}]);
    let executor = send.user.clone().or_else(|| std::env::var("USER").ok()).filter(|user| !user.is_empty());
    let executor = executor.unwrap_or_else(|| "unknown".into());
    let body = json!({
        "response_id": undone.response_id, "state": "UNDONE", "executor": executor, "results": results,
        "reason": send.reason,
    });
    // what executes reports with the authority of the system, as far as the key lends it
    let answer = ask("respond.result", body, send, SYSTEM)?;
    Ok(told(&answer, send.json))
}

/// A policy as it is written in a file: the writer says faults by its name and lines.
fn written(file: &Path, send: &SendArguments) -> Result<Value, Failure> {
    let (name, text) = load::text(file)?;
    Ok(json!({"file": name, "policy": text, "reason": send.reason}))
}

pub(super) fn config(send: &SendArguments) -> Result<Config, Failure> {
    let config = load::config(send.config.path())?;
    if let Ok(filter) = std::env::var("RUST_LOG") {
        crate::logging::init(&config.log, Some(&filter)).map_err(Failure::invalid)?;
    }
    Ok(config)
}

/// A command to send.
#[derive(Debug, Clone)]
pub(super) struct Sent {
    /// Its type.
    pub(super) kind: &'static str,
    /// On whose behalf.
    pub(super) tenant: String,
    /// What is asked.
    pub(super) body: Value,
}

/// Sends a command and shows its answer.
pub(super) fn order(kind: &'static str, body: Value, send: &SendArguments) -> Result<ExitCode, Failure> {
    let of_tenant = commands::known(kind).is_some_and(|(writer, _)| writer == commands::Writer::Tenant);
    if of_tenant && send.tenant == "*" {
        return Err(Failure::Invalid("say whose it is: --tenant TENANT".into()));
    }
    let tenant = if of_tenant { send.tenant.clone() } else { send.on_behalf_of.clone() };
    let answers = send_all(&[Sent { kind, tenant, body }], send)?;
    Ok(answers.first().map_or(ExitCode::from(1), |answer| told(answer, send.json)))
}

/// Sends a command that concerns everyone, with an authority of its own, and waits for its answer.
fn ask(kind: &'static str, body: Value, send: &SendArguments, authority: u8) -> Result<Value, Failure> {
    let tenant = send.on_behalf_of.clone();
    Ok(send_with(&[Sent { kind, tenant, body }], send, authority)?.into_iter().next().unwrap_or_default())
}

/// Sends commands and waits for the answer of each, in their order.
pub(super) fn send_all(orders: &[Sent], send: &SendArguments) -> Result<Vec<Value>, Failure> {
    send_with(orders, send, send.authority)
}

fn send_with(orders: &[Sent], send: &SendArguments, authority: u8) -> Result<Vec<Value>, Failure> {
    let config = config(send)?;
    let keys = keys::of(&config)?;
    let shell = load::shell(&config);
    let user = send.user.clone().or_else(|| std::env::var("USER").ok()).filter(|u| !u.is_empty());
    let principal = format!("user:{}", user.unwrap_or_else(|| "unknown".into()));
    let command = |Sent { kind, tenant, body }: &Sent| Command {
        command_id: match (&send.command_id, orders.len()) {
            (Some(id), 1) => id.clone(),
            _ => uuid::Uuid::new_v4().to_string(),
        },
        kind: (*kind).to_owned(),
        tenant_id: tenant.clone(),
        principal: principal.clone(),
        authority,
        issued_at: Wall::now().0,
        body: body.clone(),
        key_id: None,
    };
    let commands: Vec<Command> = orders.iter().map(command).collect();
    let ids: Vec<String> = commands.iter().map(|command| command.command_id.clone()).collect();
    let courier = Orders { shell, keys: Arc::new(keys), reader: "runwarden-command" };
    let answers = courier.send_all(commands, send.wait)?.into_iter().zip(ids);
    let answered = answers.map(|(answer, id)| {
        answer.ok_or_else(|| {
            Failure::Reach(format!(
                "no answer to command {id} within {:?}: is a sidecar with the role core running? Sent again with --command-id {id} it \
                 counts once",
                send.wait
            ))
        })
    });
    answered.collect()
}

/// Shows an answer; the exit code is 0 when it was accepted, else 1.
fn told(answer: &Value, json: bool) -> ExitCode {
    if json {
        println!("{answer}");
    } else {
        print!("{}", answer_text(answer));
    }
    if answer["status"] == "ACCEPTED" { ExitCode::SUCCESS } else { ExitCode::from(1) }
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn answer_text(answer: &Value) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        // writing to a String cannot fail
        writeln!(text, "{name:<20} {}", value.replace('\n', &format!("\n{:<21}", ""))).unwrap_or_default();
    };
    line(&plain(&answer["status"]).to_lowercase(), &plain(&answer["type"]));
    if answer["status"] != "ACCEPTED" {
        line("code", &plain(&answer["code"]));
        line("reason", &plain(&answer["reason"]));
    }
    if let (Some(required), Some(given)) = (answer["required_authority"].as_u64(), answer["given_authority"].as_u64()) {
        let named = |level: u64| format!("{level} ({})", authority_name(u8::try_from(level).unwrap_or(u8::MAX)));
        line("authority", &format!("{} needed, {} given", named(required), named(given)));
    }
    for conflict in answer["conflicts"].as_array().into_iter().flatten() {
        let ids = format!("{} / {}", plain(&conflict["policy_a_id"]), plain(&conflict["policy_b_id"]));
        line("conflict", &format!("{} {ids}: {}", plain(&conflict["conflict_type"]), plain(&conflict["explanation"])));
        line("  do", &plain(&conflict["recommended_action"]));
    }
    for dependent in answer["dependents"].as_array().into_iter().flatten() {
        line("needed by", &format!("{}: {}", plain(&dependent["from_policy_id"]), plain(&dependent["explanation"])));
    }
    for (name, value) in answer["result"].as_object().into_iter().flatten() {
        match (name.as_str(), value) {
            ("conflicts", Value::Array(found)) => {
                for conflict in found {
                    let kind = format!("{} {}", plain(&conflict["severity"]), plain(&conflict["conflict_type"]));
                    line("if approved", &format!("{kind}: {}", plain(&conflict["explanation"])));
                }
            }
            _ => line(name, &plain(value)),
        }
    }
    text
}

/// The latest records of a kind on the policies topic, by key.
fn latest(send: &SendArguments, kind: &str) -> Result<Vec<Value>, Failure> {
    let config = config(send)?;
    let shell = load::shell(&config);
    let mut found = BTreeMap::new();
    for record in read_topic(&shell.client, &shell.topics.policies).map_err(Failure::reach)? {
        let key = String::from_utf8(record.key.unwrap_or_default()).unwrap_or_default();
        if key.split('/').nth(1) != Some(kind) {
            continue;
        }
        match record.payload.as_deref().and_then(|p| serde_json::from_slice::<Value>(p).ok()) {
            Some(value) => drop(found.insert(key, value)),
            None => drop(found.remove(&key)),
        }
    }
    let wanted =
        |value: &Value| send.tenant == "*" || value["tenant_id"].as_str().is_none_or(|t| t == send.tenant || t == "*");
    Ok(found.into_values().filter(wanted).collect())
}

/// The latest records of a kind on the policies topic.
pub(super) fn list(send: &SendArguments, kind: &str, columns: &[&str]) -> Result<ExitCode, Failure> {
    print(&latest(send, kind)?, columns, send);
    Ok(ExitCode::SUCCESS)
}

/// Shows rows as a table, or each as a line of JSON.
pub(super) fn print(rows: &[Value], columns: &[&str], send: &SendArguments) {
    if send.json {
        rows.iter().for_each(|row| println!("{row}"));
    } else {
        print!("{}", table(rows, columns));
    }
}

fn table(rows: &[Value], columns: &[&str]) -> String {
    // a column may be a field of a field
    let cell = |row: &Value, column: &str| plain(column.split('.').fold(row, |value, name| &value[name]));
    let cells: Vec<Vec<String>> = rows.iter().map(|row| columns.iter().map(|c| cell(row, c)).collect()).collect();
    let width = |n: usize| cells.iter().map(|c| c[n].chars().count()).max().unwrap_or(0).max(columns[n].len());
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let line = |cells: &[String]| {
        let padded: Vec<String> = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        format!("{}\n", padded.join("  ").trim_end())
    };
    let head: Vec<String> = columns.iter().map(|c| (*c).to_owned()).collect();
    let mut text = line(&head);
    text.extend(cells.iter().map(|cells| line(cells)));
    if rows.is_empty() {
        text.push_str("(none)\n");
    }
    text
}

fn show(send: &SendArguments, kind: &str, field: &str, id: &str) -> Result<ExitCode, Failure> {
    show_one(latest(send, kind)?, field, id)
}

/// The rows with this id, whole.
pub(super) fn show_one(mut rows: Vec<Value>, field: &str, id: &str) -> Result<ExitCode, Failure> {
    rows.retain(|row| row[field] == *id);
    if rows.is_empty() {
        return Err(Failure::Invalid(format!("there is no {id} on the topic")));
    }
    for row in rows {
        println!("{}", serde_json::to_string_pretty(&row).unwrap_or_default());
    }
    Ok(ExitCode::SUCCESS)
}

fn status(send: &SendArguments) -> Result<ExitCode, Failure> {
    let rows = latest(send, "in-force")?;
    let Some(row) = rows.first() else {
        println!("no policies are in force yet");
        return Ok(ExitCode::SUCCESS);
    };
    let policies = row["snapshot"]["content"]["policies"].as_array().map_or(0, Vec::len);
    let suspended = row["snapshot"]["content"]["suspended"].as_array().map_or(0, Vec::len);
    if send.json {
        let mut row = row.clone();
        if let Some(fields) = row.as_object_mut() {
            fields.remove("snapshot");
            fields.insert("policies".into(), policies.into());
            fields.insert("suspended".into(), suspended.into());
        }
        println!("{row}");
        return Ok(ExitCode::SUCCESS);
    }
    for name in ["revision", "snapshot_id", "generation", "digest", "activated_at", "activated_by"] {
        println!("{name:<20} {}", plain(&row[name]));
    }
    println!("{:<20} {policies}\n{:<20} {suspended}", "policies", "overridden");
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_was_needed_and_given_and_what_contradicts() {
        let answer = json!({
            "status": "REFUSED", "type": "proposal.approve", "code": "conflict", "reason": "GOV-POL-001: no\nsecond line",
            "required_authority": 4, "given_authority": 1, "result": null,
            "conflicts": [{"conflict_type": "THRESHOLD_CONTRADICTION", "policy_a_id": "a", "policy_b_id": "b",
                "explanation": "5 and 6", "recommended_action": "choose"}],
            "dependents": [{"from_policy_id": "c", "explanation": "c needs it"}],
        });
        let expected = "\
refused              proposal.approve
code                 conflict
reason               GOV-POL-001: no
                     second line
authority            4 (GUARDIAN) needed, 1 (WORKER) given
conflict             THRESHOLD_CONTRADICTION a / b: 5 and 6
  do                 choose
needed by            c: c needs it
";
        assert_eq!(answer_text(&answer), expected);
    }

    #[test]
    fn a_table_is_as_wide_as_what_it_holds() {
        let rows = [json!({"a": "long value", "b": 1}), json!({"a": null, "b": "x"})];
        assert_eq!(table(&rows, &["a", "b"]), "a           b\nlong value  1\n-           x\n");
        assert_eq!(table(&[], &["a"]), "a\n(none)\n");
    }
}
