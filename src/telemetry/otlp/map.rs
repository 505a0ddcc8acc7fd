//! Spans to events: which span is what, whose it is, and what counts.
//!
//! **Tokens count once.** They count where a model is called: spans of the operations `chat`, `generate_content`, `text_completion` and
//! `embeddings`, and of operations not known here that report usage. What `invoke_agent` reports is the sum of the calls below it, which
//! have spans of their own; it counts only where the agent is remote (kind CLIENT), so that the calls are made, and traced, elsewhere
//! ([`AgentUsage`]). Where two instrumentations report one call, one span inside the other, the inner one counts, within a request.
//!
//! **A run** is a trace unless an attribute names it. Spans arrive when they end, so a run's `run.started` arrives with its
//! `run.completed` or `run.failed`, when the root span does; its steps are there before.

use std::fmt::Write as _;

use rustc_hash::{FxHashMap, FxHashSet};
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};

use super::names::{
    CACHE_READ, CACHE_WRITE, CURRENCY, ERROR, FIRST_CHUNK, INPUT, MODEL, OPERATION, OTHER, OUTPUT, Operation, PRICED,
    PROVIDER, REASONING,
};
use super::span::{Attributes, Found, Span, Wanted};
use super::{Encoding, Mapped, Record, Rejected, Unreadable, json, names, proto};
use crate::clock::Micros;
use crate::telemetry::decode::MAX_ID;
use crate::telemetry::encode::member;
use crate::telemetry::format_micros;
use crate::telemetry::redact::{Redactor, write_string};
use crate::telemetry::schema::{COLUMNS, col};

/// Kind CLIENT: what is called runs elsewhere.
const CLIENT: i64 = 3;
/// Longest way up from a span that is looked at.
const ANCESTORS: usize = 64;

/// Which attributes say whose a span is and what it cost: the first that is there, on the span, then on its resource.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is the column of the contract of the same name")]
pub struct Names {
    pub tenant: Vec<String>,
    pub project: Vec<String>,
    pub run: Vec<String>,
    pub parent_run: Vec<String>,
    pub task: Vec<String>,
    pub agent: Vec<String>,
    pub team: Vec<String>,
    pub api_key: Vec<String>,
    pub human: Vec<String>,
    pub cost: Vec<String>,
}

impl Default for Names {
    fn default() -> Self {
        let of = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        Self {
            tenant: of(&["runwarden.tenant_id"]),
            project: of(&["runwarden.project_id"]),
            run: of(&["runwarden.run_id"]),
            parent_run: of(&["runwarden.parent_run_id"]),
            task: of(&["runwarden.task_id"]),
            agent: of(&["runwarden.agent_id", "gen_ai.agent.id", "gen_ai.agent.name"]),
            team: of(&["runwarden.team_id"]),
            api_key: of(&["runwarden.api_key_id"]),
            human: of(&["runwarden.human_actor_id", "enduser.pseudo.id"]),
            cost: of(&["runwarden.cost_usd", PRICED]),
        }
    }
}

impl Names {
    /// All lists.
    pub fn lists(&self) -> [&Vec<String>; 10] {
        let Self { tenant, project, run, parent_run, task, agent, team, api_key, human, cost } = self;
        [tenant, project, run, parent_run, task, agent, team, api_key, human, cost]
    }
}

/// When the usage that an `invoke_agent` span reports counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AgentUsage {
    /// When the agent is remote: the span's kind is CLIENT.
    Remote,
    /// Never: remote agents send their own spans here.
    Never,
}

/// What a mapper is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Which attributes say whose a span is.
    pub names: Names,
    /// Tenant of spans that name none.
    pub default_tenant: String,
    /// See [`AgentUsage`].
    pub agent_usage: AgentUsage,
    /// Whether root spans start and end runs.
    pub root_is_run: bool,
    /// Most spans of a request.
    pub spans: usize,
    /// `[telemetry] attributes`: further attributes that are kept.
    pub attributes: Vec<String>,
    /// `[telemetry] forbidden`: what is never kept.
    pub forbidden: Vec<String>,
    /// Deepest nesting of kept attributes.
    pub depth: usize,
}

/// Maps requests. Has no state: one request gives the same events whenever it comes.
#[derive(Debug)]
pub struct Mapper {
    settings: Settings,
    redactor: Redactor,
    wanted: Wanted,
    /// Columns that are forbidden.
    hidden: u64,
}

/// Whose a span is.
struct Who {
    tenant: String,
    run: String,
    /// Nobody named it: it is the trace.
    run_is_trace: bool,
    rest: [(usize, Option<String>); 7],
}

/// Tokens of one call.
#[derive(Debug, Default, PartialEq, Eq)]
struct Usage {
    input: Option<i64>,
    output: Option<i64>,
    cached: Option<i64>,
    reasoning: Option<i64>,
}

/// An event under construction, and its place among the others.
struct Event {
    at: Micros,
    rank: u8,
    record: Record,
}

impl Mapper {
    /// Of some settings.
    pub fn new(settings: Settings) -> Self {
        let redactor = Redactor::new(
            settings.attributes.iter().map(String::as_str),
            settings.forbidden.iter().map(String::as_str),
            settings.depth,
        );
        let mut listed: Vec<&str> = names::all().collect();
        listed.extend(settings.names.lists().into_iter().flatten().chain(&settings.attributes).map(String::as_str));
        let wanted = Wanted::of(listed.into_iter().filter(|name| !redactor.forbids(name)));
        let required = [col::EVENT_TIME, col::EVENT_TYPE, col::TENANT_ID];
        let hidden = |at: &usize| !required.contains(at) && redactor.forbids(COLUMNS[*at].0);
        let hidden = (0..COLUMNS.len()).filter(hidden).fold(0, |bits, at| bits | 1_u64 << at);
        Self { settings, redactor, wanted, hidden }
    }

    /// The events of a request. `whose`: the only tenant it may write for, and that of spans that name none.
    ///
    /// # Errors
    /// It cannot be read, or holds too many spans.
    pub fn map(&self, request: &[u8], encoding: Encoding, whose: Option<&str>) -> Result<Mapped, Unreadable> {
        let found = match encoding {
            Encoding::Proto => proto::spans(request, &self.wanted, self.settings.spans),
            Encoding::Json => json::spans(request, &self.wanted, self.settings.spans),
        };
        Ok(self.events(&found?, whose))
    }

    fn events(&self, found: &Found, whose: Option<&str>) -> Mapped {
        let twice = reported_twice(found);
        // traces in which a model, a tool or an agent is called
        let traces: FxHashSet<&[u8]> = found
            .spans
            .iter()
            .filter(|(_, span)| span.attributes.speaks_of_models())
            .map(|(_, span)| span.trace.as_slice())
            .collect();
        let mut mapped = Mapped::default();
        let mut events = Vec::new();
        for (place, (resource, span)) in found.spans.iter().enumerate() {
            let operation = operation(span);
            let bound = operation != Operation::Unknown || traces.contains(span.trace.as_slice());
            if twice.contains(&place) || !bound {
                mapped.ignored += 1;
                continue;
            }
            match self.of_span(span, operation, &found.resources[*resource], whose) {
                Ok(some) if some.is_empty() => mapped.ignored += 1,
                Ok(some) => {
                    mapped.accepted += 1;
                    events.extend(some);
                }
                Err(why) => *mapped.rejected.entry(why).or_default() += 1,
            }
        }
        events.sort_by_key(|event| (event.at, event.rank));
        mapped.records = events.into_iter().map(|event| event.record).collect();
        mapped
    }

    /// The events of one span. None: it says nothing of runs.
    fn of_span(
        &self,
        span: &Span,
        operation: Operation,
        resource: &Attributes,
        whose: Option<&str>,
    ) -> Result<Vec<Event>, Rejected> {
        let remote = span.kind == CLIENT && self.settings.agent_usage == AgentUsage::Remote;
        let step = match operation {
            Operation::Inference | Operation::Tool => true,
            Operation::Agent => remote && span.attributes.has_usage(),
            Operation::Quiet | Operation::Unknown => false,
        };
        let root = span.parent.is_empty() && self.settings.root_is_run;
        if !step && !root {
            return Ok(Vec::new());
        }
        if !is_id(&span.trace, 16) || !is_id(&span.id, 8) || !(span.parent.is_empty() || is_id(&span.parent, 8)) {
            return Err(Rejected::Id);
        }
        if span.start == 0 || span.end < span.start {
            return Err(Rejected::Time);
        }
        let who = self.who(span, resource, whose)?;
        let (start, end) = (micros(span.start), micros(span.end));
        let latency = i64::try_from((span.end - span.start) / 1_000_000).unwrap_or(i64::MAX);
        let failure = failure(span);
        let mut events = Vec::new();
        let mut event = |rank: u8, at: Micros, kind: &str, more: &dyn Fn(&mut Writer)| {
            let mut out = Writer { out: String::from("{"), hidden: self.hidden };
            let id = format!("{}/{}/{kind}", hex(&span.trace), hex(&span.id));
            out.text(col::EVENT_ID, Some(&id));
            out.text(col::EVENT_TIME, Some(&format_micros(at)));
            out.text(col::EVENT_TYPE, Some(kind));
            out.text(col::TENANT_ID, Some(&who.tenant));
            out.text(col::RUN_ID, Some(&who.run));
            for (column, value) in &who.rest {
                out.text(*column, value.as_deref());
            }
            more(&mut out);
            out.json(col::ATTRIBUTES, self.kept(&span.attributes, resource).as_deref());
            out.out.push('}');
            let (tenant, value) = (who.tenant.clone(), out.out.into_bytes());
            let context = format!("00-{}-{}-01", hex(&span.trace), hex(&span.id));
            events.push(Event { at, rank, record: Record { tenant, value, context } });
        };
        // a call that is a trace of its own is a run of its own, unless something names the run it belongs to
        let run = root && (!matches!(operation, Operation::Inference | Operation::Tool) || who.run_is_trace);
        if run {
            event(0, start, "run.started", &|_| {});
        }
        if step {
            let usage = if operation == Operation::Tool { Usage::default() } else { usage(&span.attributes)? };
            let cost = self.cost(span, operation)?;
            let [provider, model] = [PROVIDER, MODEL].map(|names| first(&span.attributes, names));
            let model = bounded(model)?;
            let provider = bounded(provider)?.map(|name| names::provider(&name).to_owned());
            let wait = span.attributes.get(FIRST_CHUNK).and_then(Value::as_f64).filter(|seconds| *seconds >= 0.0);
            if let Some(wait) = wait {
                #[expect(clippy::cast_possible_truncation, reason = "a float beyond the range becomes its end")]
                let at = start.saturating_add((wait * 1e6) as i64).min(end);
                event(1, at, "run.first_token", &|_| {});
            }
            event(2, end, "run.step", &|out| {
                out.text(col::PROVIDER, provider.as_deref());
                out.text(col::MODEL, model.as_deref());
                out.number(col::INPUT_TOKENS, usage.input);
                out.number(col::OUTPUT_TOKENS, usage.output);
                out.number(col::CACHED_TOKENS, usage.cached);
                out.number(col::REASONING_TOKENS, usage.reasoning);
                out.json(col::COST_USD, cost.as_deref());
                out.number(col::LATENCY_MS, Some(latency));
                out.text(col::ERROR_CODE, failure.as_deref());
            });
        }
        if run {
            let kind = if failure.is_some() { "run.failed" } else { "run.completed" };
            event(3, end, kind, &|out| {
                out.number(col::LATENCY_MS, Some(latency));
                out.text(col::ERROR_CODE, failure.as_deref());
            });
        }
        Ok(events)
    }

    fn who(&self, span: &Span, resource: &Attributes, whose: Option<&str>) -> Result<Who, Rejected> {
        let of = |names: &[String]| bounded(first(&span.attributes, names).or_else(|| first(resource, names)));
        let n = &self.settings.names;
        let tenant = match (of(&n.tenant).map_err(|_| Rejected::Tenant)?, whose) {
            (Some(named), Some(whose)) if named != whose => return Err(Rejected::Tenant),
            (Some(named), _) => named,
            (None, Some(whose)) => whose.to_owned(),
            (None, None) => self.settings.default_tenant.clone(),
        };
        // all tenants are none
        if tenant == "*" {
            return Err(Rejected::Tenant);
        }
        let run = of(&n.run)?;
        Ok(Who {
            tenant,
            run_is_trace: run.is_none(),
            run: run.unwrap_or_else(|| hex(&span.trace)),
            rest: [
                (col::PROJECT_ID, of(&n.project)?),
                (col::PARENT_RUN_ID, of(&n.parent_run)?),
                (col::TASK_ID, of(&n.task)?),
                (col::AGENT_ID, of(&n.agent)?),
                (col::TEAM_ID, of(&n.team)?),
                (col::API_KEY_ID, of(&n.api_key)?),
                (col::HUMAN_ACTOR_ID, of(&n.human)?),
            ],
        })
    }

    /// What the sender says it cost, in USD. A tool call costs no tokens: unless it says otherwise its cost is 0, or it would make that
    /// of its whole run unknown.
    fn cost(&self, span: &Span, operation: Operation) -> Result<Option<String>, Rejected> {
        let dollars = |name: &str| {
            name != PRICED || span.attributes.text(CURRENCY.0).is_none_or(|currency| currency == CURRENCY.1)
        };
        let named = self.settings.names.cost.iter().filter(|name| dollars(name));
        let Some(cost) = named.into_iter().find_map(|name| span.attributes.get(name)) else {
            return Ok((operation == Operation::Tool).then(|| "0".to_owned()));
        };
        let cost = cost.as_f64().or_else(|| cost.as_str()?.parse().ok());
        // the range of DECIMAL(18,9)
        let cost = cost.filter(|cost| (0.0..1e9).contains(cost)).ok_or(Rejected::OutOfRange)?;
        Ok(Some(format!("{cost:.9}")))
    }

    /// Listed attributes, of the span before those of its resource, as `attributes` of the event.
    fn kept(&self, span: &Attributes, resource: &Attributes) -> Option<String> {
        let listed =
            self.settings.attributes.iter().filter_map(|name| Some((name, span.get(name).or(resource.get(name))?)));
        let listed: Vec<(&str, Box<RawValue>)> =
            listed.filter_map(|(name, value)| Some((name.as_str(), to_raw_value(value).ok()?))).collect();
        let mut kept = String::from("{");
        for (name, raw) in &listed {
            // one that is nested too deeply costs itself, not the others
            if let Ok(Some(one)) = self.redactor.attributes(&[(name, raw)], None, &mut 0) {
                let inner = &one[1..one.len() - 1];
                if kept.len() > 1 {
                    kept.push(',');
                }
                kept.push_str(inner);
            }
        }
        kept.push('}');
        (kept.len() > 2).then_some(kept)
    }
}

/// Writes the members of an event, without those that are forbidden.
struct Writer {
    out: String,
    hidden: u64,
}

impl Writer {
    fn shows(&mut self, column: usize) -> bool {
        let shows = self.hidden >> column & 1 == 0;
        if shows {
            member(&mut self.out, COLUMNS[column].0);
        }
        shows
    }

    fn text(&mut self, column: usize, value: Option<&str>) {
        if let Some(value) = value
            && self.shows(column)
        {
            write_string(&mut self.out, value);
        }
    }

    fn number(&mut self, column: usize, value: Option<i64>) {
        self.json(column, value.map(|value| value.to_string()).as_deref());
    }

    fn json(&mut self, column: usize, value: Option<&str>) {
        if let Some(value) = value
            && self.shows(column)
        {
            self.out.push_str(value);
        }
    }
}

/// What a span is: as its operation says; one without, or with one that is not known, calls a model if it reports usage or names a
/// provider and a model.
fn operation(span: &Span) -> Operation {
    let a = &span.attributes;
    let known = a.text(OPERATION).map_or(Operation::Unknown, |name| names::operation(&name));
    let calls = || a.has_usage() || (first(a, PROVIDER).is_some() && first(a, MODEL).is_some());
    if known == Operation::Unknown && calls() { Operation::Inference } else { known }
}

/// The spans of calls that another span inside reports too: the same operation, with usage, below it in the same request.
fn reported_twice(found: &Found) -> FxHashSet<usize> {
    let calls = |span: &Span| operation(span) == Operation::Inference && span.attributes.has_usage();
    let mut twice = FxHashSet::default();
    let inner = || found.spans.iter().filter(|(_, span)| calls(span) && !span.parent.is_empty());
    if inner().next().is_none() {
        return twice;
    }
    let places: FxHashMap<(&[u8], &[u8]), usize> =
        found.spans.iter().enumerate().map(|(at, (_, s))| ((s.trace.as_slice(), s.id.as_slice()), at)).collect();
    for (_, span) in inner() {
        let mut above = span.parent.as_slice();
        for _ in 0..ANCESTORS {
            let Some(at) = places.get(&(span.trace.as_slice(), above)) else { break };
            let outer = &found.spans[*at].1;
            if outer.id == span.id {
                break;
            }
            if calls(outer) && outer.attributes.text(OPERATION) == span.attributes.text(OPERATION) {
                twice.insert(*at);
            }
            above = &outer.parent;
        }
    }
    twice
}

/// Reported tokens. What is cached is part of the input, and what was reasoned part of the output: where the part is larger than the whole,
/// the sender left it out of the whole, as some providers do.
fn usage(attributes: &Attributes) -> Result<Usage, Rejected> {
    let of = |names: &[&str]| match names.iter().find_map(|name| attributes.get(name)) {
        None => Ok(None),
        Some(value) => count(value).map(Some),
    };
    let (input, output) = (of(INPUT)?, of(OUTPUT)?);
    let (cached, written, reasoning) = (of(CACHE_READ)?, of(CACHE_WRITE)?, of(REASONING)?);
    let whole = |whole: Option<i64>, part: i64| match whole {
        Some(whole) if part > whole => whole.checked_add(part).map(Some).ok_or(Rejected::OutOfRange),
        None if part > 0 => Ok(Some(part)),
        whole => Ok(whole),
    };
    let beside = cached.unwrap_or_default().checked_add(written.unwrap_or_default()).ok_or(Rejected::OutOfRange)?;
    Ok(Usage { input: whole(input, beside)?, output: whole(output, reasoning.unwrap_or_default())?, cached, reasoning })
}

/// A count: an integer, however it is written.
fn count(value: &Value) -> Result<i64, Rejected> {
    let float = |value: f64| {
        #[expect(clippy::cast_possible_truncation, reason = "integral and below 2^53")]
        (value.fract() == 0.0 && value.abs() < 9e15).then_some(value as i64)
    };
    let number = match value {
        Value::Number(number) => number.as_i64().or_else(|| float(number.as_f64()?)),
        Value::String(text) => text.parse().ok(),
        _ => None,
    };
    number.filter(|n| *n >= 0).ok_or(Rejected::OutOfRange)
}

/// What went wrong, if anything did.
fn failure(span: &Span) -> Option<String> {
    let kind = span.attributes.text(ERROR);
    (span.error || kind.is_some()).then(|| kind.filter(|kind| kind.len() <= MAX_ID).unwrap_or_else(|| OTHER.to_owned()))
}

fn first<S: AsRef<str>>(attributes: &Attributes, names: &[S]) -> Option<String> {
    names.iter().find_map(|name| attributes.text(name.as_ref()))
}

fn bounded(id: Option<String>) -> Result<Option<String>, Rejected> {
    if id.as_ref().is_some_and(|id| id.len() > MAX_ID) { Err(Rejected::OutOfRange) } else { Ok(id) }
}

fn is_id(id: &[u8], bytes: usize) -> bool {
    id.len() == bytes && id.iter().any(|byte| *byte != 0)
}

fn micros(nanos: u64) -> Micros {
    i64::try_from(nanos / 1_000).unwrap_or(i64::MAX)
}

fn hex(id: &[u8]) -> String {
    id.iter().fold(String::with_capacity(2 * id.len()), |mut out, byte| {
        // writing to a String cannot fail
        let _infallible = write!(out, "{byte:02x}");
        out
    })
}
