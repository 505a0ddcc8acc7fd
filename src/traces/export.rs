//! The thread that brings spans to a collector: OTLP over HTTP, protobuf, in batches.
//!
//! It alone waits for the collector. While it does, the queue takes so many traces and no more.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, select};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::InstrumentationScope;
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prost::Message as _;
use ureq::Agent;

use super::tracer::{Tracer, text};
use crate::config::{Secret, Share};
use crate::metrics::labels::{Label as _, SpanDropped};
use crate::metrics::{Metrics, VERSION};

/// Traces that wait for the thread.
const QUEUE: usize = 1_024;
/// Spans from which on a batch goes out at once.
const BATCH: usize = 512;
/// How long a batch waits for more.
const LINGER: Duration = Duration::from_millis(500);
/// How often a batch is sent before it is given up.
const ATTEMPTS: u32 = 4;
/// The first wait after a failure; it doubles.
const BACKOFF: Duration = Duration::from_millis(200);
/// The longest wait that a collector may ask for.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// Of an answer so much is read.
const ANSWER: u64 = 16_384;

/// What is traced, and where it goes.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where spans are posted to, such as `http://collector:4318/v1/traces`.
    pub endpoint: String,
    /// Headers of each request.
    pub headers: Vec<(String, Secret)>,
    /// How long a request may take.
    pub timeout: Duration,
    /// Which share of the steps is traced.
    pub share: Share,
    /// How many of the steps that decided something are traced in a second, whatever the share.
    pub decided_per_second: u32,
    /// Consumer group.
    pub group: String,
    /// Topic of the telemetry.
    pub topic: String,
    /// This process among those of the group.
    pub instance: String,
}

/// Starts the thread.
///
/// # Errors
/// There is no thread to be had.
pub fn start(settings: Settings, metrics: Arc<Metrics>) -> io::Result<(Arc<Tracer>, Exporter)> {
    let (queue, spans) = bounded(QUEUE);
    let (stop, stopped) = bounded(0);
    let names = (settings.group.clone(), settings.topic.clone());
    let tracer = Tracer::new(names, settings.share, settings.decided_per_second, queue, Arc::clone(&metrics));
    let agent = Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .proxy(None)
        .timeout_global(Some(settings.timeout))
        .user_agent(concat!("runwarden/", env!("CARGO_PKG_VERSION")))
        .build()
        .new_agent();
    let worker =
        Worker { resource: resource(&settings), settings, agent, spans, stopped, metrics, said: [false; CAUSES] };
    let thread = std::thread::Builder::new().name("traces".into()).spawn(move || worker.run())?;
    Ok((Arc::new(tracer), Exporter { stop: Some(stop), thread: Some(thread) }))
}

/// Ends the thread when it is dropped: what waits is sent once more, and no longer waited for than a request may take.
#[derive(Debug)]
pub struct Exporter {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Exporter {
    fn drop(&mut self) {
        drop(self.stop.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that exports traces panicked");
        }
    }
}

const CAUSES: usize = SpanDropped::ALL.len();

struct Worker {
    settings: Settings,
    resource: Resource,
    agent: Agent,
    spans: Receiver<Vec<Span>>,
    /// Closed when the process ends.
    stopped: Receiver<()>,
    metrics: Arc<Metrics>,
    /// Causes that were logged since spans were last taken.
    said: [bool; CAUSES],
}

/// Why a batch was not taken.
enum Failed {
    /// It may be taken later; so long is to be waited, if that was said.
    Later(String, Option<Duration>),
    /// It never will.
    Refused(String),
}

impl Worker {
    fn run(mut self) {
        loop {
            let (stopped, spans) = (&self.stopped, &self.spans);
            let first = select! {
                recv(spans) -> first => first.ok(),
                recv(stopped) -> _ => None,
            };
            let Some(first) = first else { break };
            let batch = self.gather(first);
            self.export(batch);
        }
        let rest: Vec<Span> = self.spans.try_iter().flatten().collect();
        if !rest.is_empty() {
            self.export(rest);
        }
    }

    /// Waits for more, but not long.
    fn gather(&self, mut batch: Vec<Span>) -> Vec<Span> {
        let until = Instant::now() + LINGER;
        while batch.len() < BATCH {
            let (stopped, spans) = (&self.stopped, &self.spans);
            let more = select! {
                recv(spans) -> more => more.ok(),
                recv(stopped) -> _ => None,
                default(until.saturating_duration_since(Instant::now())) => None,
            };
            let Some(more) = more else { break };
            batch.extend(more);
        }
        batch
    }

    fn export(&mut self, spans: Vec<Span>) {
        let count = u64::try_from(spans.len()).unwrap_or(u64::MAX);
        let scope = InstrumentationScope {
            name: "runwarden".to_owned(),
            version: VERSION.to_owned(),
            ..InstrumentationScope::default()
        };
        let spans = ScopeSpans { scope: Some(scope), spans, ..ScopeSpans::default() };
        let spans = ResourceSpans {
            resource: Some(self.resource.clone()),
            scope_spans: vec![spans],
            ..ResourceSpans::default()
        };
        let body = ExportTraceServiceRequest { resource_spans: vec![spans] }.encode_to_vec();
        let mut wait = BACKOFF;
        for attempt in 1..=ATTEMPTS {
            match self.post(&body) {
                Ok(rejected) => {
                    let rejected = rejected.min(count);
                    self.metrics.traces.exported.inc_by(count - rejected);
                    if rejected > 0 {
                        self.lose(SpanDropped::Rejected, rejected, "the collector took only a part of them");
                    } else {
                        self.said = [false; CAUSES];
                    }
                    return;
                }
                Err(Failed::Refused(why)) => return self.lose(SpanDropped::Refused, count, &why),
                Err(Failed::Later(why, asked)) => {
                    let pause = asked.unwrap_or(wait).min(LONGEST_WAIT);
                    wait = wait.saturating_mul(2);
                    let ends =
                        attempt == ATTEMPTS || self.stopped.recv_timeout(pause) == Err(RecvTimeoutError::Disconnected);
                    if ends {
                        return self.lose(SpanDropped::Unreachable, count, &why);
                    }
                }
            }
        }
    }

    /// Counts spans that are lost; why, once until spans are taken again.
    fn lose(&mut self, cause: SpanDropped, count: u64, why: &str) {
        self.metrics.traces.dropped.get(cause).inc_by(count);
        if let Some(said) = self.said.get_mut(cause.index())
            && !std::mem::replace(said, true)
        {
            tracing::warn!(
                cause = cause.as_str(),
                why,
                "spans of traces are dropped; processing goes on, runwarden_trace_spans_dropped_total counts them"
            );
        }
    }

    /// Posts a batch; how many of its spans were rejected. What is said of failures holds neither the address nor the body.
    fn post(&self, body: &[u8]) -> Result<u64, Failed> {
        let mut request = self.agent.post(&self.settings.endpoint).header("content-type", "application/x-protobuf");
        for (name, value) in &self.settings.headers {
            request = request.header(name, value.expose());
        }
        let mut response = request.send(body).map_err(|error| Failed::Later(said(&error), None))?;
        let status = response.status().as_u16();
        if !response.status().is_success() {
            let why = format!("the collector answers {status}");
            let asked =
                response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.trim().parse().ok());
            // those that OTLP calls retryable
            return Err(match status {
                429 | 502..=504 => Failed::Later(why, asked.map(Duration::from_secs)),
                _ => Failed::Refused(why),
            });
        }
        // an answer that cannot be read rejects nothing
        let answer = response.body_mut().with_config().limit(ANSWER).read_to_vec().unwrap_or_default();
        let answer = ExportTraceServiceResponse::decode(answer.as_slice()).unwrap_or_default();
        let rejected = answer.partial_success.map_or(0, |partial| partial.rejected_spans);
        Ok(u64::try_from(rejected).unwrap_or_default())
    }
}

fn resource(settings: &Settings) -> Resource {
    let attributes = vec![
        text("service.name", "runwarden"),
        text("service.namespace", settings.group.clone()),
        text("service.instance.id", settings.instance.clone()),
        text("service.version", VERSION),
    ];
    Resource { attributes, ..Resource::default() }
}

fn said(error: &ureq::Error) -> String {
    match error {
        ureq::Error::Timeout(what) => format!("timed out ({what:?})"),
        ureq::Error::Io(error) => error.to_string(),
        ureq::Error::HostNotFound => "the host is not found".to_owned(),
        ureq::Error::Rustls(error) => format!("TLS: {error}"),
        ureq::Error::ConnectionFailed => "cannot connect".to_owned(),
        ureq::Error::Protocol(_) => "the answer is not HTTP".to_owned(),
        _ => "the request failed".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::TcpListener;

    use prometheus::Registry;

    use super::*;

    /// Answers one request after the other with `answers`, and gives heads and bodies.
    fn collector(answers: Vec<&'static str>) -> (String, Receiver<(String, Vec<u8>)>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}/v1/traces", listener.local_addr().unwrap());
        let (sender, requests) = crossbeam_channel::unbounded();
        std::thread::spawn(move || {
            for answer in answers {
                let (stream, _) = listener.accept().unwrap();
                let mut reader = BufReader::new(stream);
                let mut head = String::new();
                while !head.ends_with("\r\n\r\n") {
                    assert!(reader.read_line(&mut head).unwrap() > 0, "{head}");
                }
                let length =
                    head.to_lowercase().split("content-length: ").nth(1).unwrap().lines().next().unwrap().parse();
                let mut body = vec![0; length.unwrap()];
                reader.read_exact(&mut body).unwrap();
                let answer = format!("HTTP/1.1 {answer}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                reader.get_mut().write_all(answer.as_bytes()).unwrap();
                sender.send((head, body)).unwrap();
            }
        });
        (endpoint, requests)
    }

    fn settings(endpoint: &str) -> Settings {
        Settings {
            endpoint: endpoint.to_owned(),
            headers: vec![("authorization".to_owned(), Secret::new("Bearer hush"))],
            timeout: Duration::from_secs(5),
            share: Share::WHOLE,
            decided_per_second: 0,
            group: "g".to_owned(),
            topic: "t".to_owned(),
            instance: "a".to_owned(),
        }
    }

    fn metrics() -> Arc<Metrics> {
        Arc::new(Metrics::register(&Registry::new(), &[]).unwrap())
    }

    fn one(tracer: &Arc<Tracer>) {
        let began = Instant::now();
        let mut trace = tracer.begin(0, 1, &[], began).open(tracer);
        trace.child("part", super::super::Kind::Internal, (began, began), Vec::new());
        trace.finish(began);
    }

    #[test]
    fn a_collector_that_is_busy_is_asked_again_and_gets_resource_and_headers() {
        let (endpoint, requests) = collector(vec!["503 Busy\r\nretry-after: 0", "200 OK"]);
        let metrics = metrics();
        let (tracer, exporter) = start(settings(&endpoint), Arc::clone(&metrics)).unwrap();
        one(&tracer);
        let (first, second) = (requests.recv().unwrap(), requests.recv().unwrap());
        drop(exporter);
        assert!(
            first.0.contains("authorization: Bearer hush") && first.0.contains("application/x-protobuf"),
            "{}",
            first.0
        );
        assert_eq!(first.1, second.1);
        let sent = ExportTraceServiceRequest::decode(first.1.as_slice()).unwrap();
        let resource = sent.resource_spans[0].resource.clone().unwrap();
        assert!(resource.attributes.contains(&text("service.name", "runwarden")));
        assert_eq!(sent.resource_spans[0].scope_spans[0].spans.len(), 2);
        assert_eq!(metrics.traces.exported.get(), 2);
        assert_eq!(metrics.traces.dropped.total(), 0);
    }

    #[test]
    fn what_a_collector_refuses_is_not_sent_again() {
        let (endpoint, requests) = collector(vec!["400 Bad Request"]);
        let metrics = metrics();
        let (tracer, exporter) = start(settings(&endpoint), Arc::clone(&metrics)).unwrap();
        one(&tracer);
        requests.recv().unwrap();
        drop(exporter);
        assert_eq!(metrics.traces.dropped.get(SpanDropped::Refused).get(), 2);
    }

    #[test]
    fn what_waits_at_the_end_is_sent_and_a_collector_that_is_away_holds_nobody_up() {
        let (endpoint, requests) = collector(vec!["200 OK"]);
        let metrics_of_first = metrics();
        let (tracer, exporter) = start(settings(&endpoint), Arc::clone(&metrics_of_first)).unwrap();
        (0..10).for_each(|_| one(&tracer));
        drop(exporter);
        assert!(requests.try_recv().is_ok());
        assert_eq!(metrics_of_first.traces.exported.get(), 20);

        // nobody listens on the port any more
        let away = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let metrics = metrics();
        let (tracer, exporter) = start(settings(&format!("http://{away}/v1/traces")), Arc::clone(&metrics)).unwrap();
        one(&tracer);
        let ends = Instant::now();
        drop(exporter);
        assert!(ends.elapsed() < Duration::from_secs(5));
        assert_eq!(metrics.traces.dropped.get(SpanDropped::Unreachable).get(), 2);
    }
}
