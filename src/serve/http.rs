//! The HTTP server: `/metrics`, `/healthz`, `/readyz`, `/status.json`, the console at `/`, and `/api/v1`.
//!
//! Everything is a read but what [`commands`] lists; only what is below `/api/v1` and `/policy-layer` needs a token ([`super::access`]). It listens on loopback unless told otherwise. Bounded against any client:
//! [`MAX_CONNECTIONS`] at once (more wait in the listen queue), [`MAX_HEAD`] bytes of request head within [`HEAD_TIMEOUT`],
//! [`MAX_BODY`] bytes of body, and [`CONNECTION_LIFE`] for a connection whatever it does. With a certificate it speaks TLS ([`super::tls`]), and
//! nothing else.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Json, Router};
use chrono::{DateTime, SecondsFormat};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::clock::{Micros, SECOND, Wall};
use crate::metrics::labels::{AlertStatus, Effect, Input, Label as _, Role, SignalKind};
use crate::metrics::{self, Metrics};

use super::access::Access;
use super::api::{self, Peer};
use super::commands::{self, Commander};
use super::console;
use super::health::Health;
use super::levels::Levels;
use super::panels::{self, Panels};
use super::reads::events::News;
use super::reads::{self, explain::Explainer, simulate::Simulator};
use super::tables::Tables;
use super::tls::{self, Tls};
use super::verdicts::Verdicts;

/// Connections served at once.
pub const MAX_CONNECTIONS: usize = 128;
/// Of these, streams of events.
pub const MAX_STREAMS: usize = 64;
/// Bytes of request line and headers.
pub const MAX_HEAD: usize = 16 * 1024;
/// Headers of a request.
pub const MAX_HEADERS: usize = 64;
/// Bytes of request body, except for policies; only what writes reads one.
pub const MAX_BODY: u64 = commands::MAX_BYTES as u64;
/// A request head must be complete, and a kept-alive connection used again, within this time.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// A connection is closed after this time, so that a reader who never reads cannot hold it.
pub const CONNECTION_LIFE: Duration = Duration::from_secs(300);
/// After shutdown was asked for, open connections have this long to finish their response.
pub const DRAIN: Duration = Duration::from_secs(2);

/// What the routes read.
#[derive(Clone)]
pub struct Views {
    pub(super) health: Arc<Health>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) clock: fn() -> Wall,
    pub(super) access: Arc<Access>,
    pub(super) verdicts: Arc<Verdicts>,
    pub(super) levels: Arc<Levels>,
    /// What runwarden says, as tables; `None`: the role serve is off.
    pub(super) tables: Option<Tables>,
    /// What runwarden says, as it says it.
    pub(super) news: News,
    /// Explains decisions; `None`: nothing is explained.
    pub(super) explainer: Option<Explainer>,
    /// Says what policies would have done; `None`: nothing is simulated.
    pub(super) simulator: Option<Simulator>,
    /// Takes what is written; `None`: nothing is.
    pub(super) commander: Option<Arc<Commander>>,
    /// `None`: no role here watches them.
    pub(super) panels: Option<Arc<Panels>>,
    /// Places for who listens: the others are for who asks.
    pub(super) streams: Arc<Semaphore>,
    /// Whether somebody fills them.
    answers: bool,
    roles: Vec<Role>,
    /// Most bytes of a body that holds policies.
    pub(super) policy_bytes: usize,
}

impl Views {
    /// Views of a running process. `clock` is [`Wall::now`] outside tests.
    pub fn new(health: Arc<Health>, metrics: Arc<Metrics>, clock: fn() -> Wall) -> Self {
        let (access, verdicts, levels) = (Arc::default(), Arc::default(), Arc::default());
        let (streams, roles) = (Arc::new(Semaphore::new(MAX_STREAMS)), Role::ALL.to_vec());
        let (tables, news, commander, explainer) = (None, News::default(), None, None);
        Self {
            health,
            metrics,
            clock,
            access,
            verdicts,
            levels,
            tables,
            news,
            explainer,
            simulator: None,
            commander,
            panels: None,
            streams,
            answers: false,
            roles,
            policy_bytes: commands::MAX_POLICY,
        }
    }

    /// Bodies that hold policies may have so many bytes.
    #[must_use]
    pub fn with_policy_bytes(self, policy_bytes: usize) -> Self {
        Self { policy_bytes, ..self }
    }

    /// What is written becomes commands.
    #[must_use]
    pub fn with_commander(self, commander: Arc<Commander>) -> Self {
        Self { commander: Some(commander), ..self }
    }

    /// `/api/v1` answers, to whom `access` lets in, from verdicts and levels that somebody fills.
    #[must_use]
    pub fn with_api(self, verdicts: Arc<Verdicts>, levels: Arc<Levels>, access: Access) -> Self {
        Self { verdicts, levels, access: Arc::new(access), answers: true, ..self }
    }

    /// `/api/v1` shows tables that somebody fills, and what is told as it happens.
    #[must_use]
    pub fn with_tables(self, tables: Tables, news: News) -> Self {
        Self { tables: Some(tables), news, ..self }
    }

    /// Decisions are explained.
    #[must_use]
    pub fn with_explainer(self, explainer: Explainer) -> Self {
        Self { explainer: Some(explainer), ..self }
    }

    /// It is said what policies would have done.
    #[must_use]
    pub fn with_simulator(self, simulator: Simulator) -> Self {
        Self { simulator: Some(simulator), ..self }
    }

    /// Shows these panels below `/api/v1`.
    #[must_use]
    pub fn with_panels(self, panels: Arc<Panels>) -> Self {
        Self { panels: Some(panels), ..self }
    }

    /// Says that the process plays these roles only. Without serve the console is not there; what watches a process is.
    #[must_use]
    pub fn with_roles(self, roles: Vec<Role>) -> Self {
        Self { roles, ..self }
    }
}

/// Serves `views` on `listener` until `shutdown` becomes true (or its sender is gone); then stops accepting, lets responses
/// finish for at most [`DRAIN`], and returns.
///
/// # Errors
/// When the listener itself fails; a failing connection is only logged.
pub async fn serve(
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
    views: Views,
    shutdown: watch::Receiver<bool>,
) -> io::Result<()> {
    listen(listener, tls, routes(views), shutdown).await
}

/// Serves any routes like [`serve`], within the same bounds. Requests carry their [`Peer`]. `tls`: over that, and not otherwise.
///
/// # Errors
/// As [`serve`].
pub async fn listen(
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
    routes: Router,
    mut shutdown: watch::Receiver<bool>,
) -> io::Result<()> {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    let stopping = shutdown.clone();
    loop {
        let accepted = tokio::select! {
            // an error means the sender is gone: nobody could ask for a shutdown any more
            _ = shutdown.wait_for(|stop| *stop) => break,
            accepted = accept(&listener, &permits) => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let (stream, peer, permit) = accepted?;
        let (tls, routes, stopping) = (tls.clone(), routes.clone(), stopping.clone());
        connections.spawn(async move {
            match tls {
                None => connection(stream, peer, routes, stopping).await,
                Some(tls) => secured(&tls, stream, peer, routes, stopping).await,
            }
            drop(permit);
        });
    }
    drop(listener);
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN, drained).await.is_err() {
        tracing::warn!("connections were cut at shutdown");
    }
    Ok(())
}

/// Waits for a free place first, so that a client beyond the limit stays in the listen queue.
async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> io::Result<(TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit)> {
    let permit = permits.clone().acquire_owned().await.map_err(io::Error::other)?;
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => return Ok((stream, peer, permit)),
            // the peer went away before it was accepted, or descriptors ran out: neither ends the server
            Err(error) if is_passing(&error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Whether a listener goes on after it.
pub(super) fn is_passing(error: &io::Error) -> bool {
    const EMFILE: i32 = 24;
    const ENFILE: i32 = 23;
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    ) || matches!(error.raw_os_error(), Some(EMFILE | ENFILE))
}

async fn secured(tls: &Tls, stream: TcpStream, peer: SocketAddr, routes: Router, mut stopping: watch::Receiver<bool>) {
    let accepted = tokio::select! {
        accepted = tls.accept(stream) => accepted,
        _ = stopping.wait_for(|stop| *stop) => return,
    };
    match accepted {
        Ok(stream) => connection(stream, peer, routes, stopping).await,
        Err(error) if tls::is_clear(&error) => {
            tracing::debug!(%peer, "closed: it spoke no TLS, and https is wanted here")
        }
        Err(error) => tracing::debug!(%peer, %error, "closed: no TLS came about"),
    }
}

async fn connection<S>(stream: S, peer: SocketAddr, routes: Router, mut stopping: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes.layer(Extension(Peer(peer)))));
    tokio::pin!(served);
    let stop = async { stopping.wait_for(|stop| *stop).await.is_ok() };
    let result = tokio::select! {
        result = &mut served => result,
        () = tokio::time::sleep(CONNECTION_LIFE) => return,
        _ = stop => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%peer, %error, "connection ended");
    }
}

fn routes(views: Views) -> Router {
    let router = if views.roles.contains(&Role::Serve) { served() } else { not_served() };
    let api = || api::routes().merge(reads::routes()).merge(commands::routes()).merge(panels::routes());
    let router = if views.answers { router.merge(api()) } else { router };
    router
        .route("/status.json", get(status))
        .route("/metrics", get(metrics_text))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .fallback(|| async { problem(StatusCode::NOT_FOUND, "there is no such page; / lists what there is") })
        .method_not_allowed_fallback(|| async {
            problem(StatusCode::METHOD_NOT_ALLOWED, "this is not done here: Allow says what is")
        })
        .layer(DefaultBodyLimit::max(views.policy_bytes))
        .layer(middleware::from_fn_with_state(views.clone(), guard))
        .with_state(views)
}

/// What the role serve adds.
fn served() -> Router<Views> {
    let page = Router::new().route("/", get(|| async { text("text/html; charset=utf-8", console::HTML) }));
    console::FILES
        .into_iter()
        .fold(page, |router, (path, kind, content)| router.route(path, get(move || async move { text(kind, content) })))
}

/// Where that role is off, its pages say so.
fn not_served() -> Router<Views> {
    const OFF: &str = "the role serve is off in this process, so it has no console; add \"serve\" to [roles] enabled to \
                       turn it on. /status.json, /metrics, /healthz and /readyz are here";
    let paths = console::FILES.map(|(path, ..)| path);
    paths
        .into_iter()
        .chain(["/"])
        .fold(Router::new(), |router, path| router.route(path, get(|| async { problem(StatusCode::NOT_FOUND, OFF) })))
}

/// Refuses oversized bodies, sets the headers every answer carries, and counts it.
async fn guard(State(views): State<Views>, request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let method = request.method().clone();
    let most = commands::most_bytes(request.method(), request.uri().path(), views.policy_bytes);
    let most = u64::try_from(most).unwrap_or(MAX_BODY);
    let declared =
        request.headers().get(header::CONTENT_LENGTH).map(|v| v.to_str().ok().and_then(|v| v.parse::<u64>().ok()));
    let mut response = match declared {
        Some(Some(bytes)) if bytes <= most => next.run(request).await,
        Some(_) => problem(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large for anything that is taken here"),
        None => next.run(request).await,
    };
    const ALWAYS: [(HeaderName, &str); 4] = [
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; frame-ancestors 'none'",
        ),
    ];
    for (name, value) in ALWAYS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    let route = route.as_ref().map(MatchedPath::as_str);
    views.metrics.http.answered(route, method.as_str(), response.status().as_u16(), begun.elapsed());
    response
}

fn text(content_type: &'static str, body: impl Into<Body>) -> Response {
    ([(header::CONTENT_TYPE, content_type)], body.into()).into_response()
}

/// `application/problem+json` (RFC 9457).
pub(super) fn problem(status: StatusCode, detail: &str) -> Response {
    problem_with(status, detail, Vec::new())
}

/// The same with members of its own.
pub(super) fn problem_with(status: StatusCode, detail: &str, members: Vec<(&str, Value)>) -> Response {
    let title = status.canonical_reason().unwrap_or("error");
    let mut body = json!({"type": "about:blank", "title": title, "status": status.as_u16(), "detail": detail});
    for (name, value) in members {
        body[name] = value;
    }
    (status, [(header::CONTENT_TYPE, "application/problem+json")], body.to_string()).into_response()
}

async fn metrics_text(State(views): State<Views>, method: Method) -> Response {
    if method == Method::HEAD {
        return text("text/plain; version=0.0.4; charset=utf-8", Body::empty());
    }
    match views.metrics.encode() {
        Ok(body) => text("text/plain; version=0.0.4; charset=utf-8", body),
        Err(error) => {
            tracing::error!(%error, "metrics cannot be encoded");
            problem(StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be encoded; the log says why")
        }
    }
}

async fn healthz(State(views): State<Views>) -> Response {
    let now = (views.clock)();
    let alive = views.health.alive(now);
    let body = json!({
        "status": if alive { "ok" } else { "stalled" },
        "heartbeat_age_seconds": seconds(views.health.heartbeat_age(now)),
    });
    (if alive { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, Json(body)).into_response()
}

async fn readyz(State(views): State<Views>) -> Response {
    let reasons = views.health.reasons((views.clock)());
    let status = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({"ready": reasons.is_empty(), "reasons": reasons}))).into_response()
}

async fn status(State(views): State<Views>) -> Response {
    Json(status_of(&views)).into_response()
}

fn status_of(views: &Views) -> Value {
    let now = (views.clock)();
    let (health, m) = (&views.health, &views.metrics);
    let reasons = health.reasons(now);
    let partitions = health.partitions();
    let started = health.started();
    json!({
        "service": "runwarden",
        "version": metrics::VERSION,
        "revision": metrics::revision(),
        "config_hash": m.config_hash(),
        "roles": views.roles.iter().map(|role| role.as_str()).collect::<Vec<_>>(),
        "started_at": DateTime::from_timestamp_micros(started.0).map(|t| t.to_rfc3339_opts(SecondsFormat::Micros, true)),
        "uptime_seconds": seconds(now.0.saturating_sub(started.0).max(0)),
        "heartbeat_age_seconds": seconds(health.heartbeat_age(now)),
        "alive": health.alive(now),
        "ready": reasons.is_empty(),
        "reasons": reasons,
        "lag": partitions.values().map(|p| p.lag).sum::<Option<i64>>(),
        "partitions": partitions.iter()
            .map(|(n, p)| json!({"partition": n, "lag": p.lag, "restoring": p.restoring}))
            .collect::<Vec<_>>(),
        "counts": {
            "records_in": m.input_records.total(),
            "telemetry_in": m.input_records.get(Input::Telemetry).get(),
            "decoded": m.decoded.get(),
            "dead_letters": m.dead_letters.total(),
            "duplicates": m.duplicates.get(),
            "signals_near": m.signals.total_of(SignalKind::Near),
            "signals_breach": m.signals.total_of(SignalKind::Breach),
            "signals_resolved": m.signals.total_of(SignalKind::Resolved),
            "interventions_enforced": m.interventions.total_by(Effect::Enforced),
            "interventions_shadow": m.interventions.total_by(Effect::Shadow),
            "alerts_opened": m.alerts.get(AlertStatus::Open).get(),
            "alerts_resolved": m.alerts.get(AlertStatus::Resolved).get(),
            "events_no_policy_covered": m.uncovered_events.get(),
        },
    })
}

#[allow(clippy::cast_precision_loss, reason = "ages stay far below 2^53 µs")]
fn seconds(duration: Micros) -> f64 {
    duration as f64 / SECOND as f64
}

#[cfg(test)]
mod tests;
