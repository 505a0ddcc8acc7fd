//! OTLP over HTTP: `POST /v1/traces`, in protobuf or JSON, packed with gzip or not.
//!
//! A request is answered 200 when Kafka has acknowledged all of its events; whatever keeps that from happening is answered with a status
//! that says to try again. Metrics and logs are read, counted and not taken. `serve::http` bounds connections and heads.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use axum::routing::post;
use axum::{Extension, Router};

use super::answer::Answer;
use super::body::{Budget, Hold, Refused, gunzip, read};
use super::{Said, count, outgoing};
use crate::clock::Wall;
use crate::kafka::outbox::{Outbox, is_full};
use crate::metrics::Metrics;
use crate::metrics::labels::{Label as _, OtlpCode, OtlpSignal};
use crate::serve::access::{ALL, Access, Denied};
use crate::serve::api::Peer;
use crate::telemetry::otlp::{Encoding, Items, Mapper, Unreadable, items};

/// What is told of metrics and logs.
const NOT_TAKEN: &str = "runwarden takes spans only: export metrics and logs elsewhere, or not at all";

/// How long events may take to Kafka: clients give up after ten seconds, unless told otherwise.
pub const DELIVERED_WITHIN: Duration = Duration::from_secs(8);

/// Takes requests.
pub struct Receiver {
    mapper: Arc<Mapper>,
    outbox: Arc<Outbox>,
    topic: Arc<str>,
    access: Access,
    budget: Arc<Budget>,
    request_bytes: usize,
    metrics: Arc<Metrics>,
    said: Said,
    clock: fn() -> Wall,
}

/// A request, read.
struct Asked {
    encoding: Encoding,
    bytes: Vec<u8>,
    hold: Hold,
    /// The only tenant it may write for.
    whose: Option<String>,
}

impl Receiver {
    /// `request_bytes`: of a request, as sent and unpacked; `in_flight_bytes`: of all that are under way.
    pub fn new(
        mapper: Arc<Mapper>,
        outbox: Arc<Outbox>,
        topic: Arc<str>,
        access: Access,
        (request_bytes, in_flight_bytes): (usize, usize),
        metrics: Arc<Metrics>,
        clock: fn() -> Wall,
    ) -> Self {
        let budget = Budget::new(in_flight_bytes, metrics.otlp.in_flight.clone());
        Self { mapper, outbox, topic, access, budget, request_bytes, metrics, said: Said::default(), clock }
    }

    /// Its routes.
    pub fn routes(self) -> Router {
        Router::new()
            .route("/v1/traces", post(traces))
            .route("/v1/metrics", post(metrics))
            .route("/v1/logs", post(logs))
            .fallback(|state, headers| async {
                answer(state, headers, StatusCode::NOT_FOUND, "there is /v1/traces, /v1/metrics and /v1/logs")
            })
            .method_not_allowed_fallback(|state, headers| async {
                answer(state, headers, StatusCode::METHOD_NOT_ALLOWED, "OTLP is sent with POST")
            })
            .with_state(Arc::new(self))
    }

    async fn asked(&self, peer: Peer, request: Request) -> Result<Asked, Answer> {
        let headers = request.headers();
        let caller = self.access.sender(peer.0, headers).map_err(|why| {
            let status = match why {
                Denied::NoToken | Denied::Unknown | Denied::Token(_) => StatusCode::UNAUTHORIZED,
                Denied::Host | Denied::Tenant | Denied::NoTenant | Denied::Role { .. } => StatusCode::FORBIDDEN,
            };
            Answer::refused(status, why.to_string())
        })?;
        let encoding = encoding(headers).ok_or_else(|| {
            let why = "Content-Type is application/x-protobuf or application/json";
            Answer::refused(StatusCode::UNSUPPORTED_MEDIA_TYPE, why)
        })?;
        let packed = match headers.get(header::CONTENT_ENCODING).map(|value| value.as_bytes()) {
            None | Some(b"" | b"identity") => false,
            Some(b"gzip") => true,
            Some(_) => {
                return Err(Answer::refused(StatusCode::UNSUPPORTED_MEDIA_TYPE, "Content-Encoding is gzip or none"));
            }
        };
        let declared = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
        if declared.is_some_and(|bytes| bytes > self.request_bytes) {
            return Err(self.refused(Refused::TooLarge));
        }
        let mut hold = self.budget.hold();
        let bytes = read(request.into_body(), self.request_bytes, &mut hold).await.map_err(|why| self.refused(why))?;
        self.metrics.otlp.bytes.inc_by(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        let whose = (caller.tenant != ALL).then_some(caller.tenant);
        let most = self.request_bytes;
        let (bytes, hold) = match packed {
            false => (bytes, hold),
            true => off_the_path(move || {
                let unpacked = gunzip(&bytes, most, &mut hold)?;
                Ok::<_, Refused>((unpacked, hold))
            })
            .await?
            .map_err(|why| self.refused(why))?,
        };
        Ok(Asked { encoding, bytes, hold, whose })
    }

    fn refused(&self, why: Refused) -> Answer {
        match why {
            Refused::TooLarge => {
                let why = format!(
                    "the request has more than {} bytes ([otlp] request-bytes): export smaller batches",
                    self.request_bytes
                );
                Answer::refused(StatusCode::PAYLOAD_TOO_LARGE, why)
            }
            Refused::NoRoom => busy(),
            Refused::Slow => Answer::refused(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time"),
            Refused::Broken => Answer::refused(StatusCode::BAD_REQUEST, "the body broke off, or is not gzip"),
        }
    }

    async fn traces(&self, peer: Peer, request: Request) -> Answer {
        match self.take(peer, request).await {
            Ok(answer) | Err(answer) => answer,
        }
    }

    async fn take(&self, peer: Peer, request: Request) -> Result<Answer, Answer> {
        let Asked { encoding, bytes, mut hold, whose } = self.asked(peer, request).await?;
        let mapper = Arc::clone(&self.mapper);
        let mapped = off_the_path(move || mapper.map(&bytes, encoding, whose.as_deref())).await?;
        let mut mapped = mapped.map_err(|why| {
            let status = match why {
                Unreadable::TooMany(_) => StatusCode::PAYLOAD_TOO_LARGE,
                Unreadable::Proto | Unreadable::Json { .. } | Unreadable::Shape => StatusCode::BAD_REQUEST,
            };
            Answer::refused(status, why.to_string())
        })?;
        let records = outgoing(std::mem::take(&mut mapped.records), &self.topic);
        hold.grow(records.iter().map(|record| record.size()).sum()).map_err(|why| self.refused(why))?;
        if !records.is_empty() {
            // the client gets to know in time what became of it, and what it sends again counts once
            let wait = DELIVERED_WITHIN + Duration::from_secs(1);
            match tokio::time::timeout(wait, self.outbox.send(&records, hold)).await {
                Ok(Ok(Ok(()))) => {}
                Ok(Ok(Err(error))) if is_full(&error) => return Err(busy()),
                Ok(Ok(Err(error))) => {
                    if self.said.first("kafka") {
                        tracing::warn!(%error, source = ?std::error::Error::source(&error).map(ToString::to_string), "spans wait: Kafka does not take their events; this is said once");
                    }
                    return Err(unavailable());
                }
                Ok(Err(_)) | Err(_) => return Err(unavailable()),
            }
            self.metrics.otlp.events.inc_by(u64::try_from(records.len()).unwrap_or(u64::MAX));
        }
        count(&mapped, &self.metrics, &self.said);
        Ok(Answer::Taken { rejected: mapped.rejections(), called: "rejectedSpans", why: mapped.message() })
    }

    async fn not_taken(&self, peer: Peer, request: Request, what: Items) -> Answer {
        let (signal, called) = match what {
            Items::Metrics => (OtlpSignal::Metrics, "rejectedDataPoints"),
            Items::Logs => (OtlpSignal::Logs, "rejectedLogRecords"),
        };
        let asked = match self.asked(peer, request).await {
            Ok(asked) => asked,
            Err(answer) => return answer,
        };
        let (encoding, bytes) = (asked.encoding, asked.bytes);
        match off_the_path(move || items(&bytes, encoding, what)).await {
            Ok(Ok(rejected)) => {
                self.metrics.otlp.refused.get(signal).inc_by(rejected);
                if rejected > 0 && self.said.first(signal.as_str()) {
                    tracing::warn!(signal = signal.as_str(), "OTLP other than spans is not taken; this is said once");
                }
                Answer::Taken { rejected, called, why: NOT_TAKEN.to_owned() }
            }
            Ok(Err(why)) => Answer::refused(StatusCode::BAD_REQUEST, why.to_string()),
            Err(answer) => answer,
        }
    }

    /// Counts an answer and writes it.
    fn finish(&self, answer: &Answer, encoding: Option<Encoding>, asked: &HeaderMap, since: Option<Wall>) -> Response {
        if let Some(code) = OtlpCode::parse(answer.status().as_str()) {
            self.metrics.otlp.requests.get(code).inc();
        }
        if let Some(since) = since {
            Metrics::observe(&self.metrics.otlp.duration, (self.clock)().0.saturating_sub(since.0));
        }
        answer.response(encoding.unwrap_or(Encoding::Json), asked)
    }
}

fn busy() -> Answer {
    let why = "too much is under way ([otlp] in-flight-bytes): try again";
    Answer::refused(StatusCode::TOO_MANY_REQUESTS, why)
}

fn unavailable() -> Answer {
    Answer::refused(StatusCode::SERVICE_UNAVAILABLE, "Kafka has not acknowledged the events: try again")
}

/// Runs what takes long beside what answers.
async fn off_the_path<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Answer> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        tracing::error!(%error, "a request was not read to its end");
        unavailable()
    })
}

fn encoding(headers: &HeaderMap) -> Option<Encoding> {
    let given = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    let kind = given.split(';').next().unwrap_or_default().trim();
    if kind.eq_ignore_ascii_case("application/x-protobuf") {
        return Some(Encoding::Proto);
    }
    kind.eq_ignore_ascii_case("application/json").then_some(Encoding::Json)
}

type Shared = State<Arc<Receiver>>;

async fn traces(State(receiver): Shared, Extension(peer): Extension<Peer>, request: Request) -> Response {
    let (since, headers) = ((receiver.clock)(), request.headers().clone());
    let answer = receiver.traces(peer, request).await;
    receiver.finish(&answer, encoding(&headers), &headers, Some(since))
}

async fn metrics(State(receiver): Shared, Extension(peer): Extension<Peer>, request: Request) -> Response {
    let headers = request.headers().clone();
    let answer = receiver.not_taken(peer, request, Items::Metrics).await;
    receiver.finish(&answer, encoding(&headers), &headers, None)
}

async fn logs(State(receiver): Shared, Extension(peer): Extension<Peer>, request: Request) -> Response {
    let headers = request.headers().clone();
    let answer = receiver.not_taken(peer, request, Items::Logs).await;
    receiver.finish(&answer, encoding(&headers), &headers, None)
}

fn answer(State(receiver): Shared, headers: HeaderMap, status: StatusCode, why: &str) -> Response {
    receiver.finish(&Answer::refused(status, why), encoding(&headers), &headers, None)
}
