//! The JSON Schema of policy files, made from what the reader itself goes by: the names of its enums, its tables of keys, its
//! bounds and defaults.
//!
//! It is not derived from the serde form of the types: that is the form in which snapshots are stored, where every field is
//! there and `version`, `file` and `place` are added, whereas a file leaves out what has a default. The schema is for editors
//! and other people's checks. It is never stricter than the reader; the reader also refuses what a schema cannot say
//! (a key that is there twice, ids that repeat, a span that ends before it begins).

use serde_json::{Map, Value as Json, json};

use super::active::Day;
use super::amount::Amount;
use super::condition::{ACTIONS, Comparison, Junction};
use super::guardian;
use super::model::{
    Alerts, Binding, Category, Enforcement, LimitStatus, Mode, OnBreach, OnFailure, OverrideRule, Rollback, RuleType,
    Source, Status, Strategy,
};
use super::parameters::{self, Parameter};
use super::read::keys;
use super::read::{MAX_ID, MAX_IDS, MAX_SPAN, MAX_TEXT};
use super::scope::{Level, Subject};

/// The schema of one document of a policy file (a policy or a guardian file), in JSON Schema 2020-12.
pub fn schema() -> Json {
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "runwarden policy",
        "description": "One document of a policy file: a policy, or a guardian file under the key `policy`.",
        "type": "object",
        "if": {"required": ["policy"]},
        "then": {"$ref": "#/$defs/guardian_file"},
        "else": {"$ref": "#/$defs/policy"},
        "$defs": {
            "policy": policy(),
            "limit": limit(),
            "condition": condition(),
            "action": action(),
            "guardian_file": guardian_file(),
        }
    })
}

/// The schema as it is shipped: indented, with a line feed at the end.
pub fn schema_text() -> String {
    // a tree of JSON values has text keys only, so writing it cannot fail
    let mut text = serde_json::to_string_pretty(&schema()).unwrap_or_default();
    text.push('\n');
    text
}

/// A property: its name and its schema.
type Property = (&'static str, Json);

/// An object of exactly these keys; every key that is not required may be null, which means absent.
fn object(keys: &[&str], required: &[&str], properties: Vec<Property>) -> Json {
    debug_assert!(
        keys.len() == properties.len() && properties.iter().all(|(key, _)| keys.contains(key)),
        "the reader's keys {keys:?}, and no others"
    );
    let properties: Map<String, Json> = properties
        .into_iter()
        .map(|(key, of)| (key.to_owned(), if required.contains(&key) { of } else { optional(of) }))
        .collect();
    json!({"type": "object", "additionalProperties": false, "required": required, "properties": properties})
}

/// The same, or null.
fn optional(mut of: Json) -> Json {
    if let Some(values) = of.get_mut("enum").and_then(Json::as_array_mut) {
        values.push(Json::Null);
    } else if let Some(kind) = of.get_mut("type") {
        *kind = json!([kind.take(), "null"]);
    } else if let Some(object) = of.as_object_mut() {
        // a reference
        let described = ["description", "default"].map(|key| object.remove(key).map(|value| (key.to_owned(), value)));
        let mut either = json!({"anyOf": [of, {"type": "null"}]});
        if let Some(object) = either.as_object_mut() {
            object.extend(described.into_iter().flatten());
        }
        return either;
    }
    of
}

fn with(mut of: Json, key: &str, value: Json) -> Json {
    if let Some(object) = of.as_object_mut() {
        object.insert(key.to_owned(), value);
    }
    of
}

fn said(of: Json, description: &str) -> Json {
    with(of, "description", Json::from(description))
}

fn default(of: Json, value: impl Into<Json>) -> Json {
    with(of, "default", value.into())
}

fn one_of(texts: &[&str]) -> Json {
    json!({"enum": texts})
}

/// A text that is not blank.
fn text(most: usize) -> Json {
    json!({"type": "string", "minLength": 1, "maxLength": most, "pattern": "\\S"})
}

fn id() -> Json {
    text(MAX_ID)
}

fn ids() -> Json {
    json!({"type": "array", "maxItems": MAX_IDS, "items": id()})
}

fn whole(least: i64, most: i64) -> Json {
    json!({"type": "integer", "minimum": least, "maximum": most})
}

fn boolean() -> Json {
    json!({"type": "boolean"})
}

fn list(most: usize, items: Json) -> Json {
    json!({"type": "array", "maxItems": most, "items": items})
}

fn mode() -> Json {
    let of = default(one_of(Mode::TEXTS), Mode::Audit.as_str());
    said(of, "How far it may go. AUDIT: nothing is stopped until someone says so")
}

fn policy() -> Json {
    let (alerts, rule) = (Alerts::default(), OverrideRule::default());
    let authority = |value: u8| default(whole(1, 5), value);
    let properties = vec![
        ("id", said(id(), "Unique within the tenant; versions count up by themselves")),
        ("name", said(id(), "For people")),
        ("tenant", said(default(id(), "*"), "A tenant, or `*`: every tenant separately")),
        ("status", default(one_of(Status::TEXTS), Status::Active.as_str())),
        ("rule_type", default(one_of(RuleType::TEXTS), RuleType::System.as_str())),
        ("source", default(one_of(Source::TEXTS), Source::Manual.as_str())),
        ("enforcement_mode", mode()),
        ("scope", said(scope(), "Who it is for")),
        ("precedence", said(default(whole(-MAX_SPAN, MAX_SPAN), 100), "Lower wins under EXPLICIT_PRIORITY")),
        ("conflict_strategy", default(one_of(Strategy::TEXTS), Strategy::MostRestrictive.as_str())),
        ("binding", said(default(one_of(Binding::TEXTS), Binding::EachStep.as_str()), "When a run takes its terms")),
        ("on_failure", default(one_of(OnFailure::TEXTS), OnFailure::Open.as_str())),
        ("depends_on", said(ids(), "Ids of policies it needs")),
        ("active", said(active(), "When it is in force; absent: always")),
        ("limits", list(keys::MAX_LIMITS, json!({"$ref": "#/$defs/limit"}))),
        ("condition", said(json!({"$ref": "#/$defs/condition"}), "When it turns to true, the actions are taken")),
        ("actions", list(keys::MAX_ACTIONS, json!({"$ref": "#/$defs/action"}))),
        ("min_authority", authority(4)),
        (
            "monitor",
            object(
                keys::MONITOR,
                &[],
                vec![
                    ("signals", ids()),
                    ("allow_prompt_logging", default(boolean(), false)),
                    ("allow_pii_capture", default(boolean(), false)),
                ],
            ),
        ),
        (
            "alerts",
            object(
                keys::ALERTS,
                &[],
                vec![
                    ("channels", default(ids(), alerts.channels)),
                    ("max_alerts_per_run", default(whole(0, MAX_SPAN), alerts.max_alerts_per_run)),
                    ("min_alert_interval_seconds", default(whole(0, MAX_SPAN), alerts.min_alert_interval_seconds)),
                ],
            ),
        ),
        (
            "override",
            object(
                keys::OVERRIDE,
                &[],
                vec![
                    ("min_authority", authority(rule.min_authority)),
                    ("max_minutes", default(whole(1, MAX_SPAN), rule.max_minutes)),
                ],
            ),
        ),
        ("rollback", rollback()),
    ];
    let mut of = object(keys::POLICY, &["id", "name"], properties);
    let acts = json!({"required": ["actions"], "properties": {"actions": {"type": "array", "minItems": 1}}});
    let says = json!({
        "required": ["limits"],
        "properties": {"limits": {"type": "array", "minItems": 1}, "actions": {"maxItems": 0}}
    });
    of = with(of, "if", json!({"required": ["condition"], "properties": {"condition": {"type": "object"}}}));
    with(with(of, "then", acts), "else", says)
}

fn scope() -> Json {
    object(
        keys::SCOPE,
        &[],
        vec![
            ("level", said(default(one_of(Level::TEXTS), Level::Tenant.as_str()), "What level_ids name")),
            ("level_ids", said(ids(), "Empty: all")),
            ("who", said(default(one_of(Subject::TEXTS), Subject::AllRuns.as_str()), "What ids name")),
            ("ids", said(ids(), "Empty: all")),
        ],
    )
}

fn active() -> Json {
    let instant = || with(id(), "format", json!("date-time"));
    let hours = with(
        text(MAX_ID),
        "pattern",
        json!("^\\s*([01][0-9]|2[0-3]):[0-5][0-9]\\s*-\\s*(([01][0-9]|2[0-3]):[0-5][0-9]|24:00)\\s*$"),
    );
    object(
        keys::ACTIVE,
        &[],
        vec![
            ("from", said(instant(), "First instant")),
            ("until", said(instant(), "First instant no longer inside")),
            ("days", list(7, one_of(Day::TEXTS))),
            ("hours", said(hours, "As 22:00-06:00; over midnight they belong to the day on which they begin")),
            ("timezone", said(default(id(), "UTC"), "An IANA name, as Europe/Zurich")),
        ],
    )
}

fn limit() -> Json {
    let mut of = object(
        keys::LIMIT,
        &["id", "limit_type", "metric", "max"],
        vec![
            ("id", said(id(), "Unique within the policy")),
            ("limit_type", said(id(), "RUNS_* TOKENS_* COST_* RISK_CEILING COOLDOWN, or a name of your own")),
            ("category", default(one_of(Category::TEXTS), Category::Threshold.as_str())),
            ("metric", said(id(), "The name of a metric query")),
            (
                "max",
                said(json!({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1e29}), "BREACH from here"),
            ),
            (
                "near",
                default(json!({"type": "number", "exclusiveMinimum": 0, "maximum": 1}), Amount(800_000_000).to_f64()),
            ),
            ("near_forecast_minutes", said(whole(1, MAX_SPAN), "NEAR also when the forecast reaches max so soon")),
            ("status", default(one_of(LimitStatus::TEXTS), LimitStatus::Active.as_str())),
            ("enforcement", default(one_of(Enforcement::TEXTS), Enforcement::Block.as_str())),
            ("on_breach", said(one_of(OnBreach::TEXTS), "Default STOP with BLOCK, none otherwise")),
            ("cooldown_seconds", default(whole(0, MAX_SPAN), 0)),
            ("fallback_model", said(id(), "For DEGRADE")),
        ],
    );
    of = with(of, "if", json!({"required": ["enforcement"], "properties": {"enforcement": {"const": "DEGRADE"}}}));
    with(of, "then", json!({"required": ["fallback_model"], "properties": {"fallback_model": {"type": "string"}}}))
}

fn condition() -> Json {
    let kind = |kind: &str| json!({"const": kind});
    let composite = object(
        keys::COMPOSITE,
        &["type", "operator", "conditions"],
        vec![
            ("type", kind("composite")),
            ("operator", one_of(Junction::TEXTS)),
            ("conditions", with(list(keys::MAX_CONDITION, json!({"$ref": "#/$defs/condition"})), "minItems", json!(1))),
        ],
    );
    let mut comparison = object(
        keys::COMPARISON,
        &["type", "field", "operator"],
        vec![
            ("type", kind("field_comparison")),
            ("field", with(text(MAX_ID), "pattern", json!("^(run|agent|task)\\."))),
            ("operator", one_of(Comparison::TEXTS)),
            ("value", json!({"description": "One text, number or boolean; a list for `in`; nothing for `exists`"})),
        ],
    );
    let when = |operators: &[&str], value: Json, required: &[&str]| {
        json!({
            "if": {"properties": {"operator": {"enum": operators}}},
            "then": {"required": required, "properties": {"value": value}}
        })
    };
    let plain: Vec<&str> =
        Comparison::TEXTS.iter().copied().filter(|t| !["in", "matches", "exists"].contains(t)).collect();
    comparison = with(
        comparison,
        "allOf",
        json!([
            when(&["in"], json!({"type": "array"}), &["value"]),
            when(&["matches"], json!({"type": "string"}), &["value"]),
            when(&["exists"], json!({"type": "null"}), &[]),
            when(&plain, json!({"type": ["string", "number", "boolean"]}), &["value"]),
        ]),
    );
    let sql = object(
        keys::SQL,
        &["type", "expression"],
        vec![
            ("type", kind("sql")),
            ("expression", said(text(MAX_TEXT), "A boolean SQL expression over run.* agent.* task.*")),
        ],
    );
    json!({"oneOf": [composite, comparison, sql]})
}

/// The `then` of each type of action: what its parameters may be.
fn parameters_by_type(at: impl Fn(Json) -> Json) -> Json {
    let each = ACTIONS.iter().map(|action| {
        let properties: Map<String, Json> =
            parameters::of(action).iter().map(|p| (p.name.to_owned(), optional(parameter(p)))).collect();
        json!({
            "if": {"properties": {"type": {"const": action}}, "required": ["type"]},
            "then": at(json!({"additionalProperties": false, "properties": properties}))
        })
    });
    each.collect()
}

fn parameter(parameter: &Parameter) -> Json {
    match parameter.kind {
        parameters::Kind::Text => id(),
        parameters::Kind::Texts => ids(),
        parameters::Kind::Whole { least } => whole(least, MAX_SPAN),
        parameters::Kind::OneOf(texts) => one_of(texts),
    }
}

fn action() -> Json {
    let of = object(
        keys::ACTION,
        &["type"],
        vec![
            ("type", one_of(ACTIONS)),
            ("target", said(text(MAX_TEXT), "Template of the target's id, as ${agent.id}")),
            ("reason", text(MAX_TEXT)),
            ("approval_required", default(boolean(), false)),
            ("parameters", json!({"type": "object"})),
        ],
    );
    with(of, "allOf", parameters_by_type(|allowed| json!({"properties": {"parameters": allowed}})))
}

fn rollback() -> Json {
    let rollback = Rollback::default();
    object(
        keys::ROLLBACK,
        &[],
        vec![
            ("enabled", default(boolean(), rollback.enabled)),
            ("auto_rollback_after_minutes", default(whole(1, MAX_SPAN), rollback.auto_rollback_after_minutes)),
        ],
    )
}

fn guardian_file() -> Json {
    let trigger = object(
        guardian::TRIGGER_KEYS,
        &["condition"],
        vec![("type", id()), ("condition", said(text(MAX_TEXT), "A boolean SQL expression"))],
    );
    let own = |allowed: Json| {
        let mut properties = allowed.get("properties").and_then(Json::as_object).cloned().unwrap_or_default();
        properties.extend([
            ("type".to_owned(), json!(true)),
            ("auto_approve".to_owned(), optional(boolean())),
            ("target".to_owned(), optional(text(MAX_TEXT))),
            ("reason".to_owned(), optional(text(MAX_TEXT))),
        ]);
        json!({"additionalProperties": false, "properties": properties})
    };
    let action = json!({
        "type": "object",
        "required": ["type"],
        "properties": {"type": one_of(ACTIONS)},
        "allOf": parameters_by_type(own)
    });
    let listed = |items: Json| with(list(guardian::MAX_ENTRIES, items), "minItems", json!(1));
    let policy = object(
        guardian::POLICY_KEYS,
        &["name", "triggers", "actions"],
        vec![
            ("name", said(id(), "Its id, too")),
            ("tenant", default(id(), "*")),
            ("enforcement_mode", mode()),
            ("min_authority", default(whole(1, 5), 4)),
            ("triggers", said(listed(trigger), "Any of them")),
            ("actions", listed(action)),
            ("rollback", rollback()),
        ],
    );
    json!({"type": "object", "additionalProperties": false, "required": ["policy"], "properties": {"policy": policy}})
}

#[cfg(test)]
mod tests;
