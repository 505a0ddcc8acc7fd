//! What a traced step says of itself: spans as the shell measured them, with the attributes that OpenTelemetry has for messages.

use std::sync::Arc;
use std::time::Instant;

use opentelemetry_proto::tonic::common::v1::KeyValue;
use rdkafka::message::{BorrowedMessage, Headers, Message};

use crate::clock::rfc3339;
use crate::traces::{Candidate, Context, Kind, Trace, Tracer, number, text};

use super::core::{Fact, Input, OutRecord, StepOutput, Topic};
use super::partition::INPUTS;
use super::steps::Step;
use super::topics::Topics;

const CONSUME: &str = "runwarden.consume";
/// The step in a core that nobody measured the parts of.
const CORE: &str = "runwarden.core";
const PRODUCE: &str = "runwarden.produce";
const COMMIT: &str = "runwarden.commit";

/// Where steps are traced.
#[derive(Clone, Copy)]
pub(super) struct Traces<'a> {
    pub(super) tracer: &'a Arc<Tracer>,
    pub(super) topics: &'a Topics,
    pub(super) group: &'a str,
}

/// When the parts of a step were, as the shell sees it.
#[derive(Clone, Copy)]
pub(super) struct Times {
    /// Polling began.
    pub(super) polled: Instant,
    /// The core began.
    pub(super) started: Instant,
    /// The core ended.
    pub(super) ended: Instant,
}

/// First offset of each input.
pub(super) fn first_offsets(messages: [&[BorrowedMessage<'_>]; INPUTS]) -> [Option<i64>; INPUTS] {
    messages.map(|messages| messages.first().map(Message::offset))
}

impl Traces<'_> {
    /// Whether a step that is taken is traced.
    pub(super) fn takes(&self, candidate: &Candidate, output: &StepOutput) -> bool {
        candidate.sampled || output.urgent && self.tracer.takes_decided()
    }

    fn messaging(&self, operation: &str, kind: &str, partition: i32) -> Vec<KeyValue> {
        vec![
            text("messaging.system", "kafka"),
            text("messaging.operation.name", operation),
            text("messaging.operation.type", kind),
            text("messaging.destination.name", self.topics.telemetry.clone()),
            text("messaging.destination.partition.id", partition.to_string()),
            text("messaging.consumer.group.name", self.group),
        ]
    }

    /// The trace of a step that was taken; what it decided gets its context.
    pub(super) fn open(
        &self,
        candidate: Candidate,
        (partition, step): (i32, &Step),
        messages: [&[BorrowedMessage<'_>]; INPUTS],
        times: Times,
        output: &mut StepOutput,
    ) -> Trace {
        let mut trace = candidate.open(self.tracer);
        let records: usize = messages.iter().map(|messages| messages.len()).sum();
        for attribute in self.messaging("process", "process", partition) {
            trace.about(attribute);
        }
        trace.about(text("runwarden.step", format!("{partition}/{}", step.number)));
        trace.about(text("runwarden.clock", rfc3339(step.now.0)));
        trace.about(number("runwarden.events", int(records)));
        trace.about(number("runwarden.records", int(output.records.len())));
        for (input, range) in Input::ALL.into_iter().zip(step.ranges).filter(|(_, range)| !range.is_empty()) {
            trace
                .about(text(&format!("runwarden.offsets.{}", input.key()), format!("{}-{}", range.from, range.to - 1)));
        }
        for (name, fact) in &output.facts {
            trace.about(match *fact {
                Fact::Count(count) => number(name, i64::try_from(count).unwrap_or(i64::MAX)),
                Fact::Time(at) => text(name, rfc3339(at)),
            });
        }
        let mut consume = self.messaging("poll", "receive", partition);
        consume.push(number("messaging.batch.message_count", int(records)));
        if let Some(first) = messages.get(Input::Telemetry as usize).and_then(|messages| messages.first()) {
            consume.push(number("messaging.kafka.offset", first.offset()));
        }
        trace.child(CONSUME, Kind::Consumer, (times.polled, times.started), consume);
        if output.parts.is_empty() {
            trace.child(CORE, Kind::Internal, (times.started, times.ended), Vec::new());
        }
        for part in &output.parts {
            trace.child(&format!("runwarden.{}", part.name), Kind::Internal, (part.from, part.to), Vec::new());
        }
        link(&mut trace, messages);
        mark(&trace, &mut output.records);
        trace
    }

    /// The outputs were handed to the client.
    pub(super) fn produced(&self, trace: &mut Trace, partition: i32, records: usize, times: (Instant, Instant)) {
        // to many topics, so without a destination
        let mut attributes = self.messaging("send", "send", partition);
        attributes.retain(|a| !a.key.starts_with("messaging.destination") && !a.key.starts_with("messaging.consumer"));
        attributes.push(number("messaging.batch.message_count", int(records)));
        trace.child(PRODUCE, Kind::Producer, times, attributes);
    }

    /// The transaction of a step is committed, after so many attempts; it had so many steps.
    pub(super) fn committed(
        &self,
        mut trace: Trace,
        partition: i32,
        (attempts, steps): (u32, usize),
        times: (Instant, Instant),
    ) {
        let mut attributes = self.messaging("commit", "settle", partition);
        attributes.push(number("runwarden.transaction.attempts", attempts.into()));
        attributes.push(number("runwarden.transaction.steps", int(steps)));
        trace.child(COMMIT, Kind::Client, times, attributes);
        trace.finish(times.1);
    }
}

fn int(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Links the step with the traces that its records belong to.
fn link(trace: &mut Trace, messages: [&[BorrowedMessage<'_>]; INPUTS]) {
    for headers in messages.into_iter().flatten().filter_map(Message::headers) {
        if trace.linked_out() {
            return;
        }
        let value = |name: &str| headers.iter().find(|header| header.key == name).and_then(|header| header.value);
        let context = value(Context::PARENT).and_then(|parent| Context::parse(parent, value(Context::STATE)));
        if let Some(context) = context {
            trace.link(context);
        }
    }
}

/// Gives what tells others of a decision the context of the step. Its ids are those of the step, so a record that is sent again has the
/// same; the digest of the step does not look at headers.
fn mark(trace: &Trace, records: &mut [OutRecord]) {
    let told = |record: &&mut OutRecord| matches!(record.topic, Topic::Signals | Topic::Alerts | Topic::Interventions);
    for record in records.iter_mut().filter(told) {
        record.headers.push((Context::PARENT.to_owned(), trace.context(PRODUCE).parent().into_bytes()));
    }
}
