//! One owned partition: its core, the queues of its inputs, and the work of its uncommitted steps.
//!
//! A step is cut here: what the queues hold, up to the bounds, in offset order per input. Invariant: `Feed::next` is one past
//! the last record the core has seen, and every range of a recorded step begins where the last one ended.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers, Message};

use crate::clock::Wall;
use crate::traces::Trace;

use super::checkpoint::{self, KeyValue, Mark, Slots};
use super::core::{Core, CoreError, Input, InputBatch, OutRecord, Record, StepInput};
use super::group::Group;
use super::reader::micros;
use super::steps::{Range, Step};
use super::trace::{Times, Traces, first_offsets};

pub(super) const INPUTS: usize = Input::ALL.len();
/// Least time between steps without input, so that a deadline that stays due cannot spin.
const IDLE_STEP_INTERVAL: Duration = Duration::from_millis(20);

/// An owned partition.
pub(super) enum Owned {
    /// Being restored elsewhere; nothing is read. The telemetry queue was split off when the partition was assigned.
    Restoring { cancel: Cancel, telemetry: PartitionQueue<Group> },
    /// Taking input.
    Active(Box<Active>),
}

/// Cancels a restore when dropped.
pub(super) struct Cancel(pub(super) Arc<AtomicBool>);

impl Drop for Cancel {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// One input of a partition.
pub(super) struct Feed {
    pub(super) queue: PartitionQueue<Group>,
    /// One past the last record given to the core.
    pub(super) next: i64,
    /// Whether the client reported the end after the last record.
    pub(super) at_end: bool,
    /// Until-end runs: records from here on are not ours.
    pub(super) limit: Option<i64>,
    /// Until-end runs: everything below the limit was read.
    pub(super) done: bool,
    /// Broker timestamp of the last record, µs.
    pub(super) last_timestamp: i64,
}

/// A partition that takes input.
pub(super) struct Active {
    pub(super) partition: i32,
    pub(super) core: Box<dyn Core>,
    /// By `Input as usize`.
    pub(super) feeds: [Feed; INPUTS],
    /// Number and clock of the last step.
    pub(super) number: u64,
    pub(super) now: Wall,
    pub(super) last_step: Instant,
    /// The ends told to the core with the last step.
    told_ends: [bool; INPUTS],
    pub(super) checkpoints: Checkpoints,
    pub(super) work: Work,
}

/// Where the partition's checkpoints stand.
pub(super) struct Checkpoints {
    /// Number of the last one.
    pub(super) number: u64,
    /// Last step it contains.
    pub(super) step: u64,
    pub(super) slots: Slots,
    pub(super) at: Instant,
    /// Captured and not yet wholly written.
    pub(super) pending: Option<Pending>,
    /// Where on the steps topic records after this session's start are to be looked for.
    pub(super) steps_from: i64,
    /// Bytes of the last one that was captured here.
    pub(super) bytes: usize,
    /// Bytes of input since then.
    pub(super) bytes_in: usize,
}

/// A checkpoint waits until so many times its bytes were read, so that it adds no more than a tenth to what Kafka takes …
const INPUT_PER_BYTE: usize = 10;
/// … and so many intervals at most, so that what has to be run again after a crash is bounded.
const MOST_INTERVALS: u32 = 6;

impl Checkpoints {
    /// In place of the step it contains: history was lost, and what there is has to be written at once.
    pub(super) const LOST: u64 = u64::MAX;

    /// Whether the next one is to be captured, by what was read and by time. What it stands for grows with what it costs: where little was
    /// written the least time between two is enough.
    pub(super) fn is_due(&self, interval: Duration) -> bool {
        let waited = self.at.elapsed();
        waited >= interval
            && (self.bytes_in >= self.bytes.saturating_mul(INPUT_PER_BYTE) || waited >= interval * MOST_INTERVALS)
    }
}

/// A checkpoint on its way to the topic, over as many transactions as its size takes.
pub(super) struct Pending {
    /// The step it stands for.
    pub(super) step: u64,
    pub(super) records: VecDeque<KeyValue>,
    pub(super) mark: KeyValue,
    /// Bytes of all its records.
    pub(super) bytes: usize,
}

impl Pending {
    /// `records` are to be written before `mark`.
    pub(super) fn new(step: u64, records: Vec<KeyValue>, mark: KeyValue) -> Self {
        let bytes = records.iter().map(|(key, value)| key.len() + value.as_ref().map_or(0, Vec::len)).sum();
        Self { step, records: records.into(), mark, bytes }
    }

    /// The next records up to `bytes`; with the last ones comes the mark.
    pub(super) fn take(&mut self, bytes: usize) -> Vec<KeyValue> {
        let mut taken = Vec::new();
        let mut size = 0;
        while size < bytes
            && let Some((key, value)) = self.records.pop_front()
        {
            size += key.len() + value.as_ref().map_or(0, Vec::len);
            taken.push((key, value));
        }
        if self.records.is_empty() {
            taken.push(self.mark.clone());
        }
        taken
    }
}

/// What uncommitted steps gave; kept until their transaction is committed.
#[derive(Default)]
pub(super) struct Work {
    pub(super) outputs: Vec<OutRecord>,
    pub(super) steps: Vec<Step>,
    pub(super) records_in: usize,
    pub(super) bytes_in: usize,
    pub(super) oldest: i64,
    pub(super) newest: i64,
    /// Encoded when the commit begins; the same bytes are sent again after an abort.
    pub(super) step_record: Option<Vec<u8>>,
    pub(super) checkpoint: Option<Vec<KeyValue>>,
    /// How many of `outputs` were handed to the client in the open transaction.
    pub(super) sent: usize,
    /// Outputs that failed among others: sent alone next time, dead letters if they fail again.
    pub(super) suspects: BTreeSet<usize>,
    /// Of those steps that are traced.
    pub(super) traces: Vec<Trace>,
}

impl Work {
    pub(super) fn is_empty(&self) -> bool {
        self.steps.is_empty() && self.checkpoint.is_none()
    }
}

/// What a step did, for the loop.
pub(super) struct Stepped {
    pub(super) records: usize,
    pub(super) urgent: bool,
    pub(super) bytes: usize,
    pub(super) took: Duration,
    /// A bound was hit: more is waiting.
    pub(super) full: bool,
    /// What is logged of the step carries its id.
    pub(super) span: tracing::Span,
    /// Its trace is the last of the work's.
    pub(super) traced: bool,
}

/// Why a step could not be cut or taken.
pub(super) enum StepFailed {
    Core(CoreError),
    /// An input lost records under us.
    Gone(String),
}

/// Bounds of one step, and where it is traced.
pub(super) struct Bounds<'a> {
    pub(super) records: usize,
    pub(super) bytes: usize,
    pub(super) linger: Duration,
    pub(super) traces: Option<Traces<'a>>,
}

impl Active {
    pub(super) fn new(
        partition: i32,
        core: Box<dyn Core>,
        feeds: [Feed; INPUTS],
        (number, now): (u64, Wall),
        checkpoints: Checkpoints,
    ) -> Self {
        Self {
            partition,
            core,
            feeds,
            number,
            now,
            last_step: Instant::now(),
            told_ends: [false; INPUTS],
            checkpoints,
            work: Work::default(),
        }
    }

    pub(super) fn offsets(&self) -> [i64; INPUTS] {
        std::array::from_fn(|i| self.feeds[i].next)
    }

    /// Whether the state has to be on the topic with the last step: replaying steps from the checkpoint before would not give it.
    pub(super) fn owes_checkpoint(&self) -> bool {
        self.checkpoints.step == Checkpoints::LOST || self.core.wants_checkpoint()
    }

    /// Captures the state after the last step as the next checkpoint, to be written from now on. `steps_offset`: where on the steps topic
    /// this session's last record lies.
    pub(super) fn capture(&mut self, partitions: i32, steps_offset: Option<i64>) {
        let offsets = self.offsets();
        let Checkpoints { number, slots, steps_from, pending, bytes, bytes_in, .. } = &mut self.checkpoints;
        let mark = Mark {
            checkpoint: *number + 1,
            step: self.number,
            now: self.now.0,
            offsets,
            steps_from: steps_offset.unwrap_or(*steps_from),
            version: self.core.version().to_owned(),
            partitions: Some(partitions),
        };
        let records = slots.encode(*number + 1, self.core.take_changes());
        let next = pending.insert(Pending::new(self.number, records, checkpoint::encode_mark(&mark)));
        (*bytes, *bytes_in) = (next.bytes, 0);
    }

    /// What is left of a checkpoint of an earlier step, to be written before another in one transaction.
    pub(super) fn end_pending(&mut self) -> Vec<KeyValue> {
        let number = self.number;
        let Some(mut before) = self.checkpoints.pending.take_if(|pending| pending.step != number) else {
            return Vec::new();
        };
        self.checkpoints.number += 1;
        before.take(usize::MAX)
    }

    /// Reads what is there and steps the core, if there is anything to do.
    pub(super) fn step(
        &mut self,
        clock: Wall,
        bounds: &Bounds<'_>,
        kind: StepKind,
        trouble: &mut dyn FnMut(&KafkaError),
    ) -> Result<Option<Stepped>, StepFailed> {
        if kind == StepKind::Normal && self.last_step.elapsed() < bounds.linger {
            return Ok(None);
        }
        let Self { core, feeds, .. } = self;
        let traces = bounds.traces.map(|traces| (traces, Instant::now()));
        let mut gathered: [Gathered<'_>; INPUTS] = Default::default();
        let (mut room, mut bytes) = (bounds.records, bounds.bytes);
        let mut full = false;
        if kind == StepKind::Normal {
            let open = if core.takes_telemetry() { INPUTS } else { Input::Commands as usize + 1 };
            for (feed, gathered) in feeds.iter().zip(&mut gathered).take(open) {
                full |= feed.gather(gathered, &mut room, &mut bytes, trouble).map_err(StepFailed::Gone)?;
            }
        }
        let ends: [bool; INPUTS] =
            std::array::from_fn(|i| gathered[i].end.unwrap_or(feeds[i].at_end && gathered[i].messages.is_empty()));
        let records: usize = gathered.iter().map(|g| g.messages.len()).sum();
        let now = self.now.max(clock);
        let due = match core.next_deadline() {
            Some(deadline) => {
                (deadline <= now || ends != self.told_ends) && self.last_step.elapsed() >= IDLE_STEP_INTERVAL
            }
            None => false,
        };
        if records == 0 && !due && kind == StepKind::Normal {
            update(feeds, &gathered_ends(&gathered), &ends);
            return Ok(None);
        }
        let started = Instant::now();
        let number = self.number + 1;
        let messages = gathered.each_ref().map(|g| g.messages.as_slice());
        let candidate = traces.map(|(traces, polled)| {
            (traces, polled, traces.tracer.begin(self.partition, number, &first_offsets(messages), polled))
        });
        let span = log_span(self.partition, number);
        if let Some((.., candidate)) = candidate.as_ref().filter(|(.., candidate)| candidate.sampled) {
            span.record("trace_id", tracing::field::display(candidate.trace()));
        }
        let mut ranges = [Range::default(); INPUTS];
        let mut work_bytes = 0;
        let mut output = {
            let headers: Vec<HeaderLists<'_>> = gathered.iter().map(Gathered::headers).collect();
            let inputs =
                Input::ALL.iter().zip(&gathered).zip(&headers).zip(ends).map(|(((input, g), headers), at_end)| {
                    let records = g.messages.iter().enumerate().map(|(i, message)| Record {
                        offset: message.offset(),
                        timestamp: micros(message),
                        key: message.key(),
                        payload: message.payload(),
                        headers: headers.get(i).map_or(&[], Vec::as_slice),
                    });
                    InputBatch { input: *input, records: records.collect(), at_end }
                });
            let input =
                StepInput { number, now, inputs: inputs.collect(), replaying: false, finish: kind == StepKind::Finish };
            span.in_scope(|| core.step(&input)).map_err(StepFailed::Core)?
        };
        for (i, g) in gathered.iter().enumerate() {
            let from = feeds[i].next;
            let to = g.messages.last().map_or(from, |last| last.offset() + 1);
            ranges[i] = Range { from, to };
            for message in &g.messages {
                work_bytes += message.payload_len() + message.key_len();
            }
            if let (Some(first), Some(last)) = (g.messages.first(), g.messages.last()) {
                let (first, last) = (micros(first), micros(last));
                let work = &mut self.work;
                work.oldest = if work.oldest == 0 { first } else { work.oldest.min(first) };
                work.newest = work.newest.max(last);
            }
        }
        let step = Step { number, now, at_end: ends, ranges, finish: kind == StepKind::Finish, digest: output.digest };
        let trace = candidate.filter(|(traces, _, candidate)| traces.takes(candidate, &output));
        let trace = trace.map(|(traces, polled, candidate)| {
            span.record("trace_id", tracing::field::display(candidate.trace()));
            let times = Times { polled, started, ended: Instant::now() };
            traces.open(candidate, (self.partition, &step), messages, times, &mut output)
        });
        span.in_scope(|| core.tell());
        let last_times: [Option<i64>; INPUTS] = std::array::from_fn(|i| gathered[i].messages.last().map(micros));
        let reached = gathered_ends(&gathered);
        drop(gathered);
        update(feeds, &reached, &ends);
        for (i, feed) in feeds.iter_mut().enumerate() {
            feed.next = ranges[i].to;
            feed.last_timestamp = last_times[i].unwrap_or(feed.last_timestamp);
        }
        self.number = number;
        self.now = now;
        self.told_ends = ends;
        self.last_step = Instant::now();
        self.work.steps.push(step);
        self.work.records_in += records;
        self.work.bytes_in += work_bytes;
        self.checkpoints.bytes_in += work_bytes;
        let bytes = output.bytes.max(output.records.iter().map(size).sum());
        self.work.outputs.extend(output.records);
        let traced = trace.is_some();
        self.work.traces.extend(trace);
        Ok(Some(Stepped { records, urgent: output.urgent, bytes, took: started.elapsed(), full, span, traced }))
    }
}

/// What is logged while a step is worked on carries its id, and that of its trace once there is one. Of the highest level, so that it
/// stands on every line that is logged.
fn log_span(partition: i32, number: u64) -> tracing::Span {
    tracing::error_span!("step", step = %format_args!("{partition}/{number}"), trace_id = tracing::field::Empty)
}

/// Why a step is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StepKind {
    /// Input or a deadline.
    Normal,
    /// The last one of an until-end run; reads nothing.
    Finish,
}

/// Size of an output as it counts against the bounds.
pub(super) fn size(record: &OutRecord) -> usize {
    let headers: usize = record.headers.iter().map(|(key, value)| key.len() + value.len()).sum();
    record.key.len() + record.payload.as_ref().map_or(0, Vec::len) + headers
}

/// Headers of each record of a batch; empty when no record has any.
pub(super) type HeaderLists<'a> = Vec<Vec<(&'a str, &'a [u8])>>;

/// What one queue gave.
#[derive(Default)]
struct Gathered<'a> {
    messages: Vec<BorrowedMessage<'a>>,
    /// `Some` when the end was reached or left.
    end: Option<bool>,
    done: bool,
}

impl Gathered<'_> {
    fn headers(&self) -> HeaderLists<'_> {
        if self.messages.iter().all(|m| m.headers().is_none()) {
            return Vec::new();
        }
        let pairs = self.messages.iter().map(|message| {
            let headers = message.headers().into_iter().flat_map(Headers::iter);
            headers.map(|h| (h.key, h.value.unwrap_or_default())).collect()
        });
        pairs.collect()
    }
}

fn gathered_ends(gathered: &[Gathered<'_>; INPUTS]) -> [bool; INPUTS] {
    std::array::from_fn(|i| gathered[i].done)
}

fn update(feeds: &mut [Feed; INPUTS], done: &[bool; INPUTS], ends: &[bool; INPUTS]) {
    for (i, feed) in feeds.iter_mut().enumerate() {
        feed.done |= done[i];
        feed.at_end = ends[i];
    }
}

impl Feed {
    pub(super) fn new(queue: PartitionQueue<Group>, next: i64, limit: Option<i64>) -> Self {
        let done = limit.is_some_and(|limit| next >= limit);
        Self { queue, next, at_end: false, limit, done, last_timestamp: 0 }
    }

    /// Moves what the queue holds into `into`; whether a bound was hit.
    fn gather<'q>(
        &'q self,
        into: &mut Gathered<'q>,
        room: &mut usize,
        bytes: &mut usize,
        trouble: &mut dyn FnMut(&KafkaError),
    ) -> Result<bool, String> {
        if self.done {
            into.end = Some(true);
            return Ok(false);
        }
        loop {
            if *room == 0 || *bytes == 0 {
                return Ok(true);
            }
            match self.queue.poll(Duration::ZERO) {
                None => return Ok(false),
                Some(Ok(message)) if message.offset() < self.next => {}
                Some(Ok(message)) if self.limit.is_some_and(|limit| message.offset() >= limit) => {
                    into.end = Some(true);
                    into.done = true;
                    return Ok(false);
                }
                Some(Ok(message)) => {
                    *room -= 1;
                    *bytes = bytes.saturating_sub(message.payload_len() + message.key_len() + 1);
                    into.messages.push(message);
                    into.end = Some(false);
                }
                Some(Err(KafkaError::PartitionEOF(_))) => {
                    into.end = Some(true);
                    if self.limit.is_some() {
                        into.done = true;
                        return Ok(false);
                    }
                }
                Some(Err(error)) => match error.rdkafka_error_code() {
                    Some(RDKafkaErrorCode::OffsetOutOfRange | RDKafkaErrorCode::AutoOffsetReset) => {
                        return Err(error.to_string());
                    }
                    _ => trouble(&error),
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(5);

    fn waited(seconds: u64, bytes: usize, bytes_in: usize) -> Checkpoints {
        let at = Instant::now().checked_sub(Duration::from_secs(seconds)).unwrap();
        let slots = Slots::default();
        Checkpoints { number: 1, step: 1, slots, at, pending: None, steps_from: 0, bytes, bytes_in }
    }

    #[test]
    fn a_checkpoint_waits_for_ten_times_its_bytes_of_input_and_six_intervals_at_most() {
        assert!(!waited(4, 0, 1 << 30).is_due(INTERVAL), "never before its interval");
        assert!(waited(5, 0, 0).is_due(INTERVAL), "the first of a session");
        assert!(!waited(29, 1_000, 9_999).is_due(INTERVAL));
        assert!(waited(5, 1_000, 10_000).is_due(INTERVAL));
        assert!(waited(30, 1_000, 0).is_due(INTERVAL));
        assert!(!waited(5, usize::MAX, 10_000).is_due(INTERVAL), "no overflow");
    }

    #[test]
    fn parts_hold_every_record_once_and_the_mark_comes_last() {
        let record = |n: u8| (vec![n; 10], Some(vec![n; 90]));
        let mark = (vec![255], Some(vec![0]));
        let mut pending = Pending::new(7, (0..5).map(record).collect(), mark.clone());
        assert_eq!(pending.bytes, 500);
        let parts: Vec<Vec<KeyValue>> = (0..3).map(|_| pending.take(150)).collect();
        assert_eq!(parts.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2, 2]);
        assert_eq!(parts.concat(), (0..5).map(record).chain([mark]).collect::<Vec<_>>());
    }
}
