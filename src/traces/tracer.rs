//! A step's trace while it is put together, and who decides that there is one.

use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Sender, TrySendError};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::{Link, SpanKind};

use super::context::Context;
use super::id::{SpanId, StepKey, TraceId};
use super::sample::{Rate, takes};
use crate::clock::Wall;
use crate::config::Share;
use crate::metrics::Metrics;
use crate::metrics::labels::SpanDropped;

/// Name of the span that the others of a step hang on.
const ROOT: &str = "runwarden.step";
/// Most contexts of producers that a step names; one poll may bring thousands of traces.
const MOST_LINKS: usize = 32;
/// Most spans of a trace: what is told beyond is dropped and counted.
const MOST_SPANS: usize = 64;
/// `flags` of a span: W3C's sampled bit.
const SAMPLED: u32 = 1;
/// `flags` of a link: it is known that its context came from elsewhere, and that it did.
const REMOTE: u32 = 0x300;

/// An attribute with a text.
pub fn text(key: &str, value: impl Into<String>) -> KeyValue {
    attribute(key, Value::StringValue(value.into()))
}

/// An attribute with an integer.
pub fn number(key: &str, value: i64) -> KeyValue {
    attribute(key, Value::IntValue(value))
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

/// What a span stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Work within the process.
    Internal,
    /// Messages taken.
    Consumer,
    /// Messages sent.
    Producer,
    /// Asking somebody and waiting for the answer.
    Client,
}

impl Kind {
    fn wire(self) -> i32 {
        let kind = match self {
            Self::Internal => SpanKind::Internal,
            Self::Consumer => SpanKind::Consumer,
            Self::Producer => SpanKind::Producer,
            Self::Client => SpanKind::Client,
        };
        kind.into()
    }
}

/// Decides which steps are traced, and takes their spans.
#[derive(Debug)]
pub struct Tracer {
    group: String,
    topic: String,
    share: Share,
    decided: Rate,
    queue: Sender<Vec<Span>>,
    metrics: Arc<Metrics>,
}

impl Tracer {
    /// Of the steps of `group` over `topic`: a share, and so many a second of those that decided something.
    pub(super) fn new(
        (group, topic): (String, String),
        share: Share,
        decided_per_second: u32,
        queue: Sender<Vec<Span>>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { group, topic, share, decided: Rate::new(decided_per_second, Instant::now()), queue, metrics }
    }

    /// A step of `partition` begins, whose clock is read now; nothing is traced yet.
    pub fn begin(&self, partition: i32, number: u64, offsets: &[Option<i64>], began: Instant) -> Candidate {
        let key = StepKey { group: &self.group, topic: &self.topic, partition, number, offsets };
        let trace = TraceId::of(&key);
        let ago = i64::try_from(began.elapsed().as_micros()).unwrap_or_default();
        let at = Wall::now().0.saturating_sub(ago);
        Candidate { trace, began, at: Wall(at), sampled: takes(self.share, trace) }
    }

    /// Whether one more step that decided something is traced in this second.
    pub fn takes_decided(&self) -> bool {
        self.decided.take(Instant::now())
    }

    fn send(&self, spans: Vec<Span>) {
        match self.queue.try_send(spans) {
            Ok(()) => {}
            Err(TrySendError::Full(spans)) => self.drop_spans(SpanDropped::Queue, spans.len()),
            Err(TrySendError::Disconnected(spans)) => self.drop_spans(SpanDropped::Shutdown, spans.len()),
        }
    }

    fn drop_spans(&self, cause: SpanDropped, spans: usize) {
        self.metrics.traces.dropped.get(cause).inc_by(u64::try_from(spans).unwrap_or(u64::MAX));
    }
}

/// A step that may be traced: it is known as soon as it begins whether its id says so, and later whether it decided something.
#[derive(Debug, Clone, Copy)]
pub struct Candidate {
    trace: TraceId,
    began: Instant,
    at: Wall,
    /// Whether it is traced by its id.
    pub sampled: bool,
}

impl Candidate {
    /// The id of its trace.
    pub const fn trace(&self) -> TraceId {
        self.trace
    }

    /// It is traced.
    pub fn open(self, tracer: &Arc<Tracer>) -> Trace {
        let root = SpanId::of(self.trace, ROOT, 0);
        Trace {
            tracer: Arc::clone(tracer),
            candidate: self,
            root,
            about: Vec::new(),
            links: Vec::new(),
            spans: Vec::new(),
        }
    }
}

/// The trace of a step. One that is not finished counts as dropped: its step was not committed, and will be taken again.
#[derive(Debug)]
pub struct Trace {
    tracer: Arc<Tracer>,
    candidate: Candidate,
    root: SpanId,
    about: Vec<KeyValue>,
    links: Vec<Link>,
    spans: Vec<Span>,
}

impl Trace {
    /// The context of a span that is there or will be, for records that belong to it.
    pub fn context(&self, name: &str) -> Context {
        let trace = self.candidate.trace;
        Context { trace, span: SpanId::of(trace, name, 0), sampled: true, state: String::new() }
    }

    /// Says something of the step.
    pub fn about(&mut self, attribute: KeyValue) {
        self.about.push(attribute);
    }

    /// Whether no further link is taken.
    pub fn linked_out(&self) -> bool {
        self.links.len() >= MOST_LINKS
    }

    /// The step took a record that belongs to somebody's trace. Named once each, up to a bound.
    pub fn link(&mut self, context: Context) {
        let known = |link: &Link| link.trace_id == context.trace.0 && link.span_id == context.span.0;
        if !self.linked_out() && !self.links.iter().any(known) {
            self.links.push(Link {
                trace_id: context.trace.0.to_vec(),
                span_id: context.span.0.to_vec(),
                trace_state: context.state,
                flags: REMOTE | u32::from(context.sampled),
                ..Link::default()
            });
        }
    }

    /// A part of the step, from when to when.
    pub fn child(&mut self, name: &str, kind: Kind, (from, to): (Instant, Instant), attributes: Vec<KeyValue>) {
        if self.spans.len() + 1 >= MOST_SPANS {
            self.tracer.drop_spans(SpanDropped::Bound, 1);
            return;
        }
        let n = u32::try_from(self.spans.iter().filter(|span| span.name == name).count()).unwrap_or(u32::MAX);
        let span = self.span(name, n, kind, (from, to), attributes);
        self.spans.push(Span { parent_span_id: self.root.0.to_vec(), ..span });
    }

    /// The step is committed.
    pub fn finish(mut self, at: Instant) {
        let about = std::mem::take(&mut self.about);
        let root = self.span(ROOT, 0, Kind::Internal, (self.candidate.began, at), about);
        let mut spans = vec![Span { links: std::mem::take(&mut self.links), ..root }];
        spans.append(&mut self.spans);
        self.tracer.send(spans);
    }

    fn span(&self, name: &str, n: u32, kind: Kind, (from, to): (Instant, Instant), attributes: Vec<KeyValue>) -> Span {
        let trace = self.candidate.trace;
        Span {
            trace_id: trace.0.to_vec(),
            span_id: SpanId::of(trace, name, n).0.to_vec(),
            flags: SAMPLED,
            name: name.to_owned(),
            kind: kind.wire(),
            start_time_unix_nano: self.nanos(from),
            end_time_unix_nano: self.nanos(to.max(from)),
            attributes,
            ..Span::default()
        }
    }

    /// A moment on the clock that the step began by, ns since the epoch.
    fn nanos(&self, at: Instant) -> u64 {
        let began = u64::try_from(self.candidate.at.0).unwrap_or_default().saturating_mul(1_000);
        let since = at.saturating_duration_since(self.candidate.began).as_nanos();
        began.saturating_add(u64::try_from(since).unwrap_or(u64::MAX))
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        if !self.spans.is_empty() {
            self.tracer.drop_spans(SpanDropped::Uncommitted, self.spans.len() + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prometheus::Registry;

    use super::*;

    fn tracer(room: usize) -> (Arc<Tracer>, crossbeam_channel::Receiver<Vec<Span>>, Arc<Metrics>) {
        let metrics = Arc::new(Metrics::register(&Registry::new(), &[]).unwrap());
        let (queue, spans) = crossbeam_channel::bounded(room);
        let names = ("g".to_owned(), "t".to_owned());
        (Arc::new(Tracer::new(names, Share::WHOLE, 1, queue, Arc::clone(&metrics))), spans, metrics)
    }

    fn dropped(metrics: &Metrics, cause: SpanDropped) -> u64 {
        metrics.traces.dropped.get(cause).get()
    }

    fn context(n: u8) -> Context {
        Context { trace: TraceId([n; 16]), span: SpanId([n; 8]), sampled: true, state: String::new() }
    }

    #[test]
    fn the_parts_of_a_step_hang_on_its_root_and_keep_their_times() {
        let (tracer, spans, _) = tracer(1);
        let began = Instant::now();
        let mut trace = tracer.begin(3, 42, &[None, Some(7)], began).open(&tracer);
        let after = |ms| began + Duration::from_millis(ms);
        trace.about(number("runwarden.events", 2));
        for ms in [1, 5] {
            trace.child("part", Kind::Internal, (after(ms), after(ms + 2)), vec![text("a", "b")]);
        }
        trace.link(context(1));
        trace.link(context(1));
        let said = trace.context("part");
        trace.finish(after(10));
        let spans = spans.recv().unwrap();
        let [root, first, second] = spans.as_slice() else { panic!("{spans:?}") };
        assert_eq!((root.name.as_str(), root.parent_span_id.len(), root.links.len()), ("runwarden.step", 0, 1));
        assert_eq!(root.end_time_unix_nano - root.start_time_unix_nano, 10_000_000);
        assert!([first, second].iter().all(|s| s.parent_span_id == root.span_id && s.trace_id == root.trace_id));
        assert_eq!(first.start_time_unix_nano - root.start_time_unix_nano, 1_000_000);
        assert_eq!(second.end_time_unix_nano - second.start_time_unix_nano, 2_000_000);
        assert!(first.span_id != second.span_id && first.span_id == said.span.0);
        assert_eq!(root.links[0].flags, 0x301);
    }

    #[test]
    fn links_and_spans_are_bounded() {
        let (tracer, spans, metrics) = tracer(1);
        let began = Instant::now();
        let mut trace = tracer.begin(0, 1, &[], began).open(&tracer);
        (0..200).for_each(|n| trace.link(context(n)));
        (0..200).for_each(|_| trace.child("part", Kind::Internal, (began, began), Vec::new()));
        trace.finish(began);
        let spans = spans.recv().unwrap();
        assert_eq!((spans.len(), spans[0].links.len()), (MOST_SPANS, MOST_LINKS));
        assert_eq!(dropped(&metrics, SpanDropped::Bound), 200 - (MOST_SPANS as u64 - 1));
    }

    #[test]
    fn a_full_queue_and_a_step_that_is_not_committed_cost_spans_and_are_counted() {
        let (tracer, spans, metrics) = tracer(1);
        let began = Instant::now();
        let trace = |number| {
            let mut trace = tracer.begin(0, number, &[], began).open(&tracer);
            trace.child("part", Kind::Internal, (began, began), Vec::new());
            trace
        };
        trace(1).finish(began);
        trace(2).finish(began);
        assert_eq!(dropped(&metrics, SpanDropped::Queue), 2);
        drop(trace(3));
        assert_eq!(dropped(&metrics, SpanDropped::Uncommitted), 2);
        drop(spans);
        trace(4).finish(began);
        assert_eq!(dropped(&metrics, SpanDropped::Shutdown), 2);
    }
}
