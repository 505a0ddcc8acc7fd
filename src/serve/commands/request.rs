//! What a request says, checked, and the body of the command made of it.

use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use serde_json::{Map, Value, json};

use super::problem::Problem;
use super::table::{COMMON, Field, Form, Kind, Whose, WriteRoute};
use crate::config::nearest;
use crate::decide::commands::{SYSTEM, UNSIGNED};
use crate::decide::id;
use crate::policy;
use crate::serve::access::{ALL, Caller, Denied};

/// Deepest nesting of a body.
const MAX_DEPTH: usize = 32;
/// Longest `Idempotency-Key`, in bytes.
const MAX_KEY: usize = 255;
/// Longest name of a tenant and longest id in a path, in bytes.
const MAX_NAME: usize = 256;
/// Longest id in a path.
const MAX_ID: usize = 512;
/// The header that makes a repetition safe.
const KEY: &str = "idempotency-key";
/// Name of the policy in what is wrong with it.
const FILE: &str = "request";
/// Commands in which the core keeps who initiated them; elsewhere it stands with the reason.
const INITIATED: [&str; 4] =
    ["intervention.create", "guardian.cancel_task", "guardian.reallocate", "guardian.override_priority"];

/// How a body is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Written {
    Json,
    Yaml,
}

/// What is to be sent.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Order {
    /// On whose behalf.
    pub(super) tenant: String,
    /// The lower of the caller's and the request's.
    pub(super) authority: u8,
    /// The command's, or the report's.
    pub(super) body: Value,
}

/// How the body is written; `None`: nothing says so.
pub(super) fn written(route: &WriteRoute, headers: &HeaderMap) -> Result<Option<Written>, Problem> {
    let Some(given) = headers.get(header::CONTENT_TYPE) else { return Ok(None) };
    let media = given.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let yaml = route.form == Form::Policy;
    match media.as_str() {
        "application/json" => Ok(Some(Written::Json)),
        "application/yaml" | "application/x-yaml" | "text/yaml" if yaml => Ok(Some(Written::Yaml)),
        _ => Err(no_media(yaml)),
    }
}

fn no_media(yaml: bool) -> Problem {
    let known = if yaml { "application/json or application/yaml" } else { "application/json" };
    Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, format!("send it with Content-Type: {known}"))
}

/// Refuses what a page of somewhere else made a browser send to a host that asks for no token.
pub(super) fn same_site(route: &WriteRoute, headers: &HeaderMap) -> Result<(), Problem> {
    if headers.contains_key(header::AUTHORIZATION) {
        return Ok(());
    }
    // a page cannot send these across sites unless it is allowed to, and nothing here allows it
    if !headers.contains_key(header::CONTENT_TYPE) {
        return Err(no_media(route.form == Form::Policy));
    }
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let ours = |origin: &HeaderValue| {
        let origin = origin.to_str().unwrap_or_default();
        origin.strip_prefix("http://").is_some_and(|rest| rest.eq_ignore_ascii_case(host))
    };
    if headers.get_all(header::ORIGIN).iter().all(ours) {
        return Ok(());
    }
    Err(Problem::new(StatusCode::FORBIDDEN, "without a token only pages of this host may write here"))
}

/// The `Idempotency-Key`: a quoted string (RFC 8941) or a bare word.
pub(super) fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let wrong = || {
        let form =
            format!("Idempotency-Key is given once, with 1 to {MAX_KEY} visible characters, in quotes or without");
        Problem::new(StatusCode::BAD_REQUEST, form)
    };
    let mut given = headers.get_all(KEY).iter();
    let Some(value) = given.next() else { return Ok(None) };
    let text = value.to_str().map_err(|_| wrong())?.trim();
    let key = match text.strip_prefix('"') {
        None => text.to_owned(),
        Some(rest) => {
            let inner = rest.strip_suffix('"').ok_or_else(wrong)?;
            let mut key = String::with_capacity(inner.len());
            let mut letters = inner.chars();
            while let Some(letter) = letters.next() {
                match letter {
                    '\\' => key.push(letters.next().filter(|c| matches!(c, '"' | '\\')).ok_or_else(wrong)?),
                    '"' => return Err(wrong()),
                    letter => key.push(letter),
                }
            }
            key
        }
    };
    let fits = !key.is_empty() && key.len() <= MAX_KEY && key.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    if fits && given.next().is_none() { Ok(Some(key)) } else { Err(wrong()) }
}

/// The id of a command: of a key the same at every sidecar, else another each time.
pub(super) fn command_id(key: Option<&str>, caller: &Caller, tenant: &str, route: &WriteRoute) -> String {
    match key {
        Some(key) => id::of(&["rest", &caller.name, tenant, route.kind(), key]),
        None => uuid::Uuid::new_v4().to_string(),
    }
}

/// What a request asks for, or what is wrong with it.
pub(super) fn order(
    route: &WriteRoute,
    caller: &Caller,
    path_id: Option<&str>,
    uri: &Uri,
    written: Option<Written>,
    body: &[u8],
) -> Result<Order, Problem> {
    if path_id.is_some_and(|id| id.is_empty() || id.len() > MAX_ID || id.chars().any(char::is_control)) {
        return Err(unfit(format!("an id has 1 to {MAX_ID} bytes")));
    }
    let mut fields = queried(route, uri)?;
    if let Form::Fields(_) = route.form {
        for (name, value) in object(body, written)? {
            if fields.insert(name.clone(), value).is_some() {
                return Err(unfit(format!("{name} is in the query and in the body")));
            }
        }
    }
    // whose it is comes before what it is: who may not learns no more
    let tenant = tenant(route, caller, fields.get("tenant_id").and_then(Value::as_str))?;
    checked(route, &mut fields)?;
    fields.remove("tenant_id");
    let policy = (route.form == Form::Policy).then(|| policy_of(path_id, written, body)).transpose()?;
    let authority = match fields.remove("authority") {
        None => caller.authority,
        Some(given) => {
            let given = given.as_u64().and_then(|given| u8::try_from(given).ok());
            let given = given.filter(|given| (UNSIGNED..=SYSTEM).contains(given));
            given.ok_or_else(|| unfit("authority is a whole number from 1 to 5"))?.min(caller.authority)
        }
    };
    // a policy of somebody else cannot be overridden, even where the core would say that there is none
    let of = fields.get("policy_tenant").and_then(Value::as_str);
    if of.is_some_and(|of| of != ALL && !caller.sees(of)) {
        return Err(Denied::Tenant.into());
    }
    if let Some((name, id)) = route.id.zip(path_id) {
        fields.insert(name.to_owned(), id.into());
    }
    if let Some(policy) = policy {
        fields.insert("policy".into(), policy);
        fields.insert("file".into(), FILE.into());
    }
    initiate(route, &mut fields);
    Ok(Order { tenant, authority, body: Value::Object(fields) })
}

fn unfit(detail: impl Into<String>) -> Problem {
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail).with("code", json!("body"))
}

/// The tenant that a route acts for.
fn tenant(route: &WriteRoute, caller: &Caller, named: Option<&str>) -> Result<String, Problem> {
    if named.is_some_and(|named| named.len() > MAX_NAME || named.chars().any(char::is_control)) {
        return Err(unfit(format!("tenant_id has 1 to {MAX_NAME} bytes, without control characters")));
    }
    let all = caller.tenant == ALL && named.is_none_or(|named| named == ALL);
    match (route.whose, named) {
        (Whose::All, _) if all => Ok(ALL.to_owned()),
        (Whose::All, _) => Err(Denied::Tenant.into()),
        (Whose::AnyOrAll, None) => Ok(caller.tenant.clone()),
        (Whose::One, Some(ALL)) if all => Err(Denied::NoTenant.into()),
        _ => Ok(caller.tenant(named)?.to_owned()),
    }
}

/// Keeps who initiated it where people look for it.
fn initiate(route: &WriteRoute, fields: &mut Map<String, Value>) {
    if INITIATED.contains(&route.kind()) {
        return;
    }
    let text = |name: &str| fields.get(name).and_then(Value::as_str);
    let Some(by) = text("initiated_by") else { return };
    let name = if text("reason").is_some() { "reason" } else { "comment" };
    if let Some(why) = text(name) {
        let why = format!("{why} (initiated by {by})");
        fields.insert(name.to_owned(), why.into());
    }
}

/// What the query says.
fn queried(route: &WriteRoute, uri: &Uri) -> Result<Map<String, Value>, Problem> {
    let wrong = |_| Problem::new(StatusCode::BAD_REQUEST, "the query cannot be read");
    let pairs = axum::extract::Query::<Vec<(String, String)>>::try_from_uri(uri).map_err(wrong)?.0;
    let mut fields = Map::new();
    for (name, text) in pairs {
        let kind = known(route).find(|field| field.name == name).map(|field| field.kind);
        let value = match kind {
            None => return Err(Problem::new(StatusCode::BAD_REQUEST, unknown(route, &name))),
            Some(Kind::Text) => Value::String(text),
            Some(Kind::Time) => text.parse::<i64>().map_or(Value::String(text), Value::from),
            Some(_) => serde_json::from_str(&text).map_err(|_| unfit(format!("{name} cannot be read")))?,
        };
        if fields.insert(name.clone(), value).is_some() {
            return Err(Problem::new(StatusCode::BAD_REQUEST, format!("{name} is there twice")));
        }
    }
    Ok(fields)
}

fn known(route: &WriteRoute) -> impl Iterator<Item = &'static Field> + use<> {
    route.own_fields().iter().chain(&COMMON)
}

fn unknown(route: &WriteRoute, name: &str) -> String {
    let shown: String = name.chars().take(64).collect();
    match nearest(name, known(route).map(|field| field.name)) {
        Some(near) => format!("{shown:?} is not known here; did you mean {near}?"),
        None => {
            let mut names: Vec<&str> = known(route).map(|field| field.name).collect();
            names.sort_unstable();
            names.dedup();
            format!("{shown:?} is not known here; there are {}", names.join(" "))
        }
    }
}

/// Refuses fields that are unknown, missing or of another type. Null is absent.
fn checked(route: &WriteRoute, fields: &mut Map<String, Value>) -> Result<(), Problem> {
    fields.retain(|_, value| !value.is_null());
    for (name, value) in &*fields {
        let field = known(route).find(|field| field.name == *name).ok_or_else(|| unfit(unknown(route, name)))?;
        let fits = match field.kind {
            Kind::Text => value.as_str().is_some_and(|text| !text.is_empty()),
            Kind::Whole => value.as_i64().is_some(),
            Kind::Flag => value.is_boolean(),
            Kind::Object => value.is_object(),
            Kind::List => value.is_array(),
            Kind::Time => value.is_string() || value.as_i64().is_some(),
            Kind::Any => true,
        };
        if !fits {
            return Err(unfit(format!("{name} must be {}", field.kind.as_str())));
        }
    }
    let missing = route.own_fields().iter().find(|field| field.required && !fields.contains_key(field.name));
    match missing {
        Some(field) => Err(unfit(format!("{} is missing: {}", field.name, field.about))),
        None => Ok(()),
    }
}

/// An object in JSON; nothing at all is an empty one.
fn object(body: &[u8], written: Option<Written>) -> Result<Map<String, Value>, Problem> {
    if body.is_empty() {
        return Ok(Map::new());
    }
    match json(body, written)? {
        Value::Object(fields) => Ok(fields),
        _ => Err(Problem::new(StatusCode::BAD_REQUEST, "the body must be an object in JSON")),
    }
}

fn json(body: &[u8], written: Option<Written>) -> Result<Value, Problem> {
    if written != Some(Written::Json) {
        return Err(no_media(false));
    }
    if depth(body) > MAX_DEPTH {
        return Err(Problem::new(StatusCode::BAD_REQUEST, format!("the body is nested deeper than {MAX_DEPTH}")));
    }
    // the place, never the parser's own words: they hold values
    serde_json::from_slice(body).map_err(|e| {
        let place = format!("the body is not JSON: look at line {}, column {}", e.line(), e.column());
        Problem::new(StatusCode::BAD_REQUEST, place)
    })
}

/// How deep the brackets of a text in JSON are nested.
fn depth(text: &[u8]) -> usize {
    let (mut depth, mut deepest, mut quoted, mut escaped) = (0_usize, 0, false, false);
    for byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'[' | b'{' if !quoted => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' if !quoted => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// The policy of a body, as the core takes it. Its faults are the core's to name; that it is another one than the path says is ours.
fn policy_of(path_id: Option<&str>, written: Option<Written>, body: &[u8]) -> Result<Value, Problem> {
    let policy = match written {
        Some(Written::Json) => match (json(body, written)?, path_id) {
            (Value::Object(mut fields), Some(id)) if !fields.contains_key("policy") => {
                fields.entry("id").or_insert_with(|| id.into());
                Value::Object(fields)
            }
            (policy @ Value::Object(_), _) => policy,
            _ => return Err(Problem::new(StatusCode::BAD_REQUEST, "the body must be one policy, an object in JSON")),
        },
        Some(Written::Yaml) => {
            let wrong = |_| Problem::new(StatusCode::BAD_REQUEST, "the body is not UTF-8");
            Value::String(std::str::from_utf8(body).map_err(wrong)?.to_owned())
        }
        None => return Err(no_media(true)),
    };
    if let Some(id) = path_id {
        let text = match &policy {
            Value::String(text) => text.clone(),
            object => object.to_string(),
        };
        let other = policy::parse(FILE, &text).ok().into_iter().flatten().find(|policy| *policy.id != *id);
        if let Some(other) = other {
            return Err(unfit(format!("the path names policy {id}, the body {}", other.id)));
        }
    }
    Ok(policy)
}

#[cfg(test)]
mod tests;
