//! What is written over HTTP: each request becomes a signed command, and its answer is the core's.
//!
//! Nothing is decided here. A request is checked for its form and for the caller's role and tenant, becomes a command of the caller's
//! authority, and waits for the result on its topic; whoever waits too long is told where to look later. An `Idempotency-Key` gives the
//! command its id, so that a repetition counts once, at whichever sidecar it arrives. [`routes_table`] lists every route.

mod answer;
mod commander;
mod desk;
mod problem;
mod rate;
mod request;
mod table;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, get, on};
use serde_json::{Value, json};

pub use answer::CODES;
pub use commander::{Bounds, Commander, CommanderError};
pub use rate::Rate;
pub use table::{COMMON, Field, Form, Kind, MAX_BYTES, MAX_POLICY, Whose, WriteRoute, routes_table};

use self::commander::Told;
use self::desk::Look;
use self::problem::Problem;
use self::request::Order;
use super::access::{Caller, Role};
use super::http::Views;
use crate::decide::commands::Command;

/// How long a body may take to arrive.
const ARRIVAL: Duration = Duration::from_secs(10);
/// What executors report.
const REPORTED: [&str; 3] = ["ACKNOWLEDGED", "SUCCEEDED", "FAILED"];

/// The routes that write, and where results are looked up.
pub fn routes() -> Router<Views> {
    let lookup = Router::new().route(&format!("{}/{{id}}", answer::COMMANDS), get(look_up));
    routes_table().iter().fold(lookup, |router, route| {
        let filter = match route.method {
            "PUT" => MethodFilter::PUT,
            "DELETE" => MethodFilter::DELETE,
            _ => MethodFilter::POST,
        };
        let handler = move |State(views): State<Views>, caller: Caller, id: Option<Path<String>>, request: Request| async move {
            write(route, &views, &caller, id.map(|Path(id)| id), request).await.unwrap_or_else(Problem::into_response)
        };
        router.route(route.path, on(filter, handler))
    })
}

/// Most bytes of the body of a request with this method and path, `policies` of one that holds policies; what is no write has none to speak of.
pub fn most_bytes(method: &Method, path: &str, policies: usize) -> usize {
    let long = match *method {
        Method::POST => matches!(path, "/api/v1/policies" | "/api/v1/policies/simulate" | "/api/v1/policy-proposals"),
        Method::PUT => path.starts_with("/api/v1/policies/"),
        _ => false,
    };
    if long { policies } else { MAX_BYTES }
}

fn commander(views: &Views) -> Result<&Arc<Commander>, Problem> {
    let none =
        || Problem::new(StatusCode::SERVICE_UNAVAILABLE, "this process takes no commands: ask one with the role serve");
    views.commander.as_ref().ok_or_else(none)
}

async fn write(
    route: &'static WriteRoute,
    views: &Views,
    caller: &Caller,
    id: Option<String>,
    request: Request,
) -> Result<Response, Problem> {
    let commander = commander(views)?;
    request::same_site(route, request.headers())?;
    caller.may(route.role)?;
    commander.admit(caller)?;
    let written = request::written(route, request.headers())?;
    let key = request::idempotency_key(request.headers())?;
    let (parts, body) = request.into_parts();
    let body = arrived(body, route.most_bytes(views.policy_bytes)).await?;
    let order = request::order(route, caller, id.as_deref(), &parts.uri, written, &body)?;
    match route.command {
        Some(kind) => command(route, kind, commander, caller, key.as_deref(), order).await,
        None => report(commander, caller, order).await,
    }
}

/// The body, whole.
async fn arrived(body: axum::body::Body, most: usize) -> Result<axum::body::Bytes, Problem> {
    let too_large = |_| {
        let why = format!("the body cannot be read, or has more than {most} bytes");
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, why)
    };
    let late = |_| Problem::new(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time");
    tokio::time::timeout(ARRIVAL, axum::body::to_bytes(body, most)).await.map_err(late)?.map_err(too_large)
}

async fn command(
    route: &WriteRoute,
    kind: &'static str,
    commander: &Commander,
    caller: &Caller,
    key: Option<&str>,
    order: Order,
) -> Result<Response, Problem> {
    let command_id = request::command_id(key, caller, &order.tenant, route);
    let command = Command {
        command_id: command_id.clone(),
        kind: kind.to_owned(),
        tenant_id: order.tenant,
        principal: format!("user:{}", caller.name),
        authority: order.authority,
        issued_at: commander.now(),
        body: order.body,
        key_id: None,
    };
    Ok(match commander.command(command, kind).await? {
        Told::Result(result) => answer::answer(route, &result),
        Told::Pending => answer::pending(&command_id, kind),
    })
}

async fn report(commander: &Commander, caller: &Caller, order: Order) -> Result<Response, Problem> {
    let Order { tenant, mut body, .. } = order;
    if !body.get("state").and_then(Value::as_str).is_some_and(|state| REPORTED.contains(&state)) {
        let why = format!("state must be one of {}", REPORTED.join(" "));
        return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, why).with("code", json!("body")));
    }
    if body.get("executor").is_none() {
        body["executor"] = json!(caller.name);
    }
    commander.report(&tenant, &body).await?;
    Ok(answer::reported(&body))
}

async fn look_up(State(views): State<Views>, caller: Caller, Path(id): Path<String>) -> Response {
    let found = caller.may(Role::View).map_err(Problem::from).and_then(|()| Ok(commander(&views)?.look(&id, &caller)));
    match found {
        Err(problem) => problem.into_response(),
        Ok(Look::Done(result)) => answer::looked_up(&result),
        Ok(Look::Pending(kind)) => answer::pending(&id, kind),
        Ok(Look::Nothing) => {
            let why = "nothing is known of such a command here: results are kept for an hour";
            Problem::new(StatusCode::NOT_FOUND, why).into_response()
        }
    }
}

#[cfg(test)]
mod tests;
