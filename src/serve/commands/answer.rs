//! What the core answered, as HTTP says it.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use super::problem::Problem;
use super::table::WriteRoute;
use crate::decide::id;

/// Where commands are looked up.
pub(super) const COMMANDS: &str = "/api/v1/commands";
/// How long who is told to look again waits, in seconds.
const AGAIN: u16 = 1;

/// Every code of a refusal and the status that says it: 403 is about who, 404 about what is not there, 409 about what stands against it,
/// and all else is 422.
pub const CODES: [(&str, StatusCode); 40] = [
    ("authority", StatusCode::FORBIDDEN),
    ("not_a_person", StatusCode::FORBIDDEN),
    ("person", StatusCode::FORBIDDEN),
    ("tenant", StatusCode::FORBIDDEN),
    ("not_found", StatusCode::NOT_FOUND),
    ("conflict", StatusCode::CONFLICT),
    ("dependents", StatusCode::CONFLICT),
    ("body", StatusCode::UNPROCESSABLE_ENTITY),
    ("capacity", StatusCode::UNPROCESSABLE_ENTITY),
    ("clash", StatusCode::UNPROCESSABLE_ENTITY),
    ("comment", StatusCode::UNPROCESSABLE_ENTITY),
    ("defer_until", StatusCode::UNPROCESSABLE_ENTITY),
    ("detected_pattern", StatusCode::UNPROCESSABLE_ENTITY),
    ("digest", StatusCode::UNPROCESSABLE_ENTITY),
    ("ends_at", StatusCode::UNPROCESSABLE_ENTITY),
    ("exists", StatusCode::UNPROCESSABLE_ENTITY),
    ("from_files", StatusCode::UNPROCESSABLE_ENTITY),
    ("future", StatusCode::UNPROCESSABLE_ENTITY),
    ("generation", StatusCode::UNPROCESSABLE_ENTITY),
    ("id_reused", StatusCode::UNPROCESSABLE_ENTITY),
    ("invalid", StatusCode::UNPROCESSABLE_ENTITY),
    ("key", StatusCode::UNPROCESSABLE_ENTITY),
    ("lesson_type", StatusCode::UNPROCESSABLE_ENTITY),
    ("level", StatusCode::UNPROCESSABLE_ENTITY),
    ("live", StatusCode::UNPROCESSABLE_ENTITY),
    ("matchers", StatusCode::UNPROCESSABLE_ENTITY),
    ("minutes", StatusCode::UNPROCESSABLE_ENTITY),
    ("not_a_draft", StatusCode::UNPROCESSABLE_ENTITY),
    ("parameters", StatusCode::UNPROCESSABLE_ENTITY),
    ("priority", StatusCode::UNPROCESSABLE_ENTITY),
    ("reason", StatusCode::UNPROCESSABLE_ENTITY),
    ("severity", StatusCode::UNPROCESSABLE_ENTITY),
    ("source_event_type", StatusCode::UNPROCESSABLE_ENTITY),
    ("stale", StatusCode::UNPROCESSABLE_ENTITY),
    ("state", StatusCode::UNPROCESSABLE_ENTITY),
    ("target", StatusCode::UNPROCESSABLE_ENTITY),
    ("too_many", StatusCode::UNPROCESSABLE_ENTITY),
    ("type", StatusCode::UNPROCESSABLE_ENTITY),
    ("unknown_command", StatusCode::UNPROCESSABLE_ENTITY),
    ("ok", StatusCode::OK),
];

/// The status of a code; one of a later version is as what cannot be done.
fn status(code: &str) -> StatusCode {
    let known = CODES.iter().find(|(known, _)| *known == code);
    known.map_or(StatusCode::UNPROCESSABLE_ENTITY, |(_, status)| *status)
}

/// A result, to whoever asked for it.
pub(super) fn answer(route: &WriteRoute, result: &Value) -> Response {
    if result.get("status").is_some_and(|status| status == "ACCEPTED") {
        accepted(route, result)
    } else {
        refused(result)
    }
}

fn accepted(route: &WriteRoute, result: &Value) -> Response {
    let what = result.get("result").unwrap_or(&Value::Null);
    // what was there before was not made
    let made = route.makes.filter(|_| what.get("exists").is_none_or(|exists| *exists != true));
    let place = made.and_then(|(member, path)| Some(format!("{path}/{}", id::part(what.get(member)?.as_str()?))));
    let status = if place.is_some() { StatusCode::CREATED } else { StatusCode::OK };
    let mut response = (status, Json(shown(result))).into_response();
    locate(&mut response, place.as_deref());
    response
}

/// A result, to whoever looks it up.
pub(super) fn looked_up(result: &Value) -> Response {
    Json(shown(result)).into_response()
}

/// The members of a result that say something.
fn shown(result: &Value) -> Value {
    let says = |value: &Value| !(value.is_null() || *value == json!([]) || *value == json!(""));
    let fields = result.as_object().into_iter().flatten();
    Value::Object(fields.filter(|(_, value)| says(value)).map(|(name, value)| (name.clone(), value.clone())).collect())
}

fn refused(result: &Value) -> Response {
    let Value::Object(mut shown) = shown(result) else { return Problem::new(status(""), "").into_response() };
    let text = |shown: &mut Map<String, Value>, name: &str| match shown.remove(name) {
        Some(Value::String(text)) => text,
        _ => String::new(),
    };
    let (code, detail) = (text(&mut shown, "code"), text(&mut shown, "reason"));
    let mut problem = Problem::new(status(&code), detail).with("code", json!(code));
    // `type` and `status` of a problem are its own
    for (theirs, ours) in [
        ("type", "command"),
        ("command_id", "command_id"),
        ("offset", "offset"),
        ("required_authority", "required_authority"),
        ("given_authority", "given_authority"),
        ("conflicts", "conflicts"),
        ("dependents", "dependents"),
    ] {
        if let Some(value) = shown.remove(theirs) {
            problem = problem.with(ours, value);
        }
    }
    problem.into_response()
}

/// A command that nobody has answered yet.
pub(super) fn pending(id: &str, kind: &str) -> Response {
    let body = json!({"command_id": id, "type": kind, "status": "PENDING"});
    let mut response = (StatusCode::ACCEPTED, Json(body)).into_response();
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(AGAIN));
    locate(&mut response, Some(&format!("{COMMANDS}/{}", id::part(id))));
    response
}

/// A report of an executor that is on its way.
pub(super) fn reported(report: &Value) -> Response {
    let id = report.get("intervention_id").and_then(Value::as_str).unwrap_or_default();
    let body = json!({"intervention_id": id, "state": report.get("state"), "status": "SENT"});
    let mut response = (StatusCode::ACCEPTED, Json(body)).into_response();
    locate(&mut response, Some(&format!("/api/v1/interventions/{}", id::part(id))));
    response
}

fn locate(response: &mut Response, place: Option<&str>) {
    if let Some(place) = place.and_then(|place| HeaderValue::from_str(place).ok()) {
        response.headers_mut().insert(header::LOCATION, place);
    }
}
