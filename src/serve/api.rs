//! `/api/v1`: verdicts (I8), asked for and as a stream; how a tenant stands (L1, L4).

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::QueryRejection;
use axum::extract::{FromRequestParts, Path, Query, State};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use futures::Stream;
use serde::Deserialize;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::broadcast::error::RecvError;

use super::access::{Caller, Denied};
use super::http::{Views, problem, problem_with};
use super::verdicts::{MAX_ID, SCOPES};
use crate::metrics::labels::{self, Label as _};

/// Reason code of `/readyz`: interventions and signals have not been read to their end.
pub const VERDICTS: &str = "verdicts";
/// Between two signs of life on a stream.
const ALIVE: Duration = Duration::from_secs(15);

/// Where a request comes from.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

/// Whom a verdict is about, beside the run.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct About {
    tenant_id: Option<String>,
    agent_id: Option<String>,
    api_key_id: Option<String>,
    human_actor_id: Option<String>,
    project_id: Option<String>,
    provider: Option<String>,
}

/// Whose level is shown.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Whose {
    tenant_id: Option<String>,
}

/// Which verdicts a stream shows.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    tenant_id: Option<String>,
    run_id: Option<String>,
}

pub(super) fn routes() -> Router<Views> {
    Router::new()
        .route("/api/v1/runs/{id}/verdict", get(verdict))
        .route("/api/v1/verdicts", get(stream))
        .route("/api/v1/policy-level", get(level))
}

pub(super) fn denied(why: Denied) -> Response {
    let status = match why {
        Denied::NoToken | Denied::Unknown | Denied::Token(_) => StatusCode::UNAUTHORIZED,
        Denied::Host | Denied::Tenant | Denied::Role { .. } => StatusCode::FORBIDDEN,
        Denied::NoTenant => StatusCode::BAD_REQUEST,
    };
    let roles = match why {
        Denied::Role { required, given } => {
            vec![("required_role", required.as_str().into()), ("given_role", given.as_str().into())]
        }
        _ => Vec::new(),
    };
    let mut response = problem_with(status, &why.to_string(), roles);
    if status == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

impl FromRequestParts<Views> for Caller {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, views: &Views) -> Result<Self, Response> {
        // every connection says where it comes from; one that does not is from nowhere we know
        let peer = parts.extensions.get::<Peer>().ok_or_else(|| denied(Denied::NoToken))?;
        views.access.caller(peer.0, &parts.headers).map_err(denied)
    }
}

type Asked<T> = Result<Query<T>, QueryRejection>;

/// The parameters, of which `known` are all there are.
#[expect(clippy::result_large_err, reason = "an answer is what comes of a request either way, once")]
pub(super) fn parameters<T>(asked: Asked<T>, known: &str) -> Result<T, Response> {
    let wrong = |wrong: QueryRejection| {
        problem(StatusCode::BAD_REQUEST, &format!("{}; parameters are {known}", wrong.body_text()))
    };
    asked.map(|Query(given)| given).map_err(wrong)
}

async fn verdict(
    State(views): State<Views>,
    caller: Caller,
    Path(run): Path<String>,
    about: Asked<About>,
) -> Result<Response, Response> {
    let about = parameters(about, "tenant_id agent_id api_key_id human_actor_id project_id provider")?;
    let tenant = caller.tenant(about.tenant_id.as_deref()).map_err(denied)?;
    let About { agent_id, api_key_id, human_actor_id, project_id, provider, .. } = &about;
    let [agent, key, human, project, provider] = [agent_id, api_key_id, human_actor_id, project_id, provider];
    let ids: [Option<&str>; SCOPES.len()] = [
        Some(run.as_str()),
        agent.as_deref(),
        key.as_deref(),
        human.as_deref(),
        project.as_deref(),
        provider.as_deref(),
        Some(tenant),
    ];
    if ids.iter().flatten().any(|id| id.len() > MAX_ID) {
        return Err(problem(StatusCode::BAD_REQUEST, &format!("an id has at most {MAX_ID} bytes")));
    }
    // what has not been read yet is unknown, and unknown is not allow
    if let Some(why) = views.health.reason(VERDICTS) {
        let mut response = problem(StatusCode::SERVICE_UNAVAILABLE, &why);
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        return Err(response);
    }
    let answer = views.verdicts.ask(tenant, ids, (views.clock)());
    if let Some(label) = labels::Verdict::parse(answer.verdict.as_str()) {
        views.metrics.verdicts.get(label).inc();
    }
    Ok(Json(answer).into_response())
}

/// The level of a tenant: the caller's own, the one it names, or that of all.
async fn level(State(views): State<Views>, caller: Caller, whose: Asked<Whose>) -> Result<Response, Response> {
    let whose = parameters(whose, "tenant_id")?.tenant_id.filter(|tenant| !tenant.is_empty());
    let tenant = whose.as_deref().unwrap_or(&caller.tenant);
    if !caller.sees(tenant) {
        return Err(denied(Denied::Tenant));
    }
    Ok(Json(views.levels.of(tenant)).into_response())
}

async fn stream(State(views): State<Views>, caller: Caller, wanted: Asked<Wanted>) -> Result<Response, Response> {
    let wanted = parameters(wanted, "tenant_id run_id")?;
    if wanted.tenant_id.as_ref().is_some_and(|tenant| !caller.sees(tenant)) {
        return Err(denied(Denied::Tenant));
    }
    let Ok(place) = Arc::clone(&views.streams).try_acquire_owned() else {
        let mut response =
            problem(StatusCode::SERVICE_UNAVAILABLE, "too many listen already: ask, or listen elsewhere");
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("30"));
        return Err(response);
    };
    Ok(Sse::new(changes(&views, caller, wanted, place)).keep_alive(KeepAlive::new().interval(ALIVE)).into_response())
}

fn changes(
    views: &Views,
    caller: Caller,
    wanted: Wanted,
    place: OwnedSemaphorePermit,
) -> impl Stream<Item = Result<Event, Infallible>> + use<> {
    let state = (views.verdicts.listen(), caller, wanted, place);
    futures::stream::unfold(state, async |(mut news, caller, wanted, place)| {
        loop {
            let event = match news.recv().await {
                Ok(change) => {
                    let change: Arc<super::verdicts::Change> = change;
                    let tenant = wanted.tenant_id.as_ref().is_none_or(|tenant| *tenant == change.tenant_id);
                    let run = wanted.run_id.as_ref().is_none_or(|run| change.answer.run_id.as_ref() == Some(run));
                    if !(tenant && run && caller.sees(&change.tenant_id)) {
                        continue;
                    }
                    // the types of an answer have no map with other keys than texts: it can be written
                    let Ok(event) = Event::default().event("verdict").json_data(&*change) else { continue };
                    event
                }
                // whoever was too slow asks again about what it is about
                Err(RecvError::Lagged(missed)) => {
                    Event::default().event("missed").data(format!("{{\"changes\":{missed}}}"))
                }
                Err(RecvError::Closed) => return None,
            };
            return Some((Ok(event), (news, caller, wanted, place)));
        }
    })
}
