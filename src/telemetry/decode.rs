//! Records to rows: every record becomes exactly one row or one dead letter.
//!
//! A record is read ([`super::parse`]), checked as a whole, and only then appended, so a bad one leaves no trace in the
//! batch. What is checked, in this order: size, UTF-8, JSON and types, required fields, enumerations, ranges, the future.
//! Values are refused, never clamped.

use std::borrow::Cow;
use std::sync::Arc;

use datafusion::arrow::array::{
    ArrayBuilder, ArrayRef, BooleanBuilder, Decimal128Builder, Float64Builder, Int64Builder, RecordBatch,
    StringBuilder, TimestampMicrosecondBuilder, new_null_array,
};
use datafusion::arrow::datatypes::DataType;
use serde_json::value::RawValue;

use super::cloudevent;
use super::dead::{DeadLetter, Reason, cut};
use super::parse::{FieldOrder, Kind, N, Parsed, RAWS, column, kind, object, raw_slot, record, string};
use super::prices::{Prices, Usage};
use super::redact::{FORBIDDEN, Redactor, write_string};
use super::schema::{COLUMNS, MONEY, SCHEMA, TIME, col};
use super::{Batch, Origin, money};
use crate::clock::{Micros, SECOND, Wall};

/// Longest id (any string that is neither an enumeration nor cut), bytes.
pub const MAX_ID: usize = 256;
/// `error_message` and `title` are cut here, bytes.
pub const MAX_TEXT: usize = 512;

const EVENT_TYPES: &[&str] = &[
    "run.step",
    "run.started",
    "run.first_token",
    "run.completed",
    "run.failed",
    "agent.heartbeat",
    "task.updated",
    "alert.raised",
    "alert.cleared",
    "governance.sample",
];

/// The values of an enumeration, in the case they are kept in; input may have any case.
const fn enumeration(column: usize) -> Option<&'static [&'static str]> {
    match column {
        col::SEVERITY => Some(&["CRITICAL", "HIGH", "MEDIUM", "LOW", "NONE"]),
        col::HEALTH_STATUS => Some(&["healthy", "degraded", "failed", "unknown"]),
        col::TASK_STATUS => Some(&["pending", "running", "completed", "failed", "cancelled"]),
        col::PRIORITY => Some(&["CRITICAL", "HIGH", "MEDIUM", "LOW"]),
        col::FORECAST_RISK => Some(&["low", "medium", "high"]),
        _ => None,
    }
}

/// What a decoder is told. [`Settings::default`] keeps nothing beyond the contract and knows no prices.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Fields outside the contract, and members of `attributes`, that are kept.
    pub attributes: Vec<String>,
    /// Names never kept, even when listed in `attributes` (see [`super::redact`]). An optional column of the contract may
    /// be named too; the required ones may not (naming them has no effect).
    pub forbidden: Vec<String>,
    /// Largest record, bytes.
    pub max_record_bytes: usize,
    /// Deepest nesting of kept attributes.
    pub max_depth: usize,
    /// Keep undecodable bytes in dead letters instead of describing them.
    pub keep_undecodable: bool,
    /// How far ahead of `now` an event may be.
    pub future: Micros,
    /// Prices for events that do not report their cost.
    pub prices: Arc<Prices>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            attributes: Vec::new(),
            forbidden: FORBIDDEN.iter().map(ToString::to_string).collect(),
            max_record_bytes: 1 << 20,
            max_depth: 16,
            keep_undecodable: false,
            future: 300 * SECOND,
            prices: Arc::default(),
        }
    }
}

/// What became of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    /// It is this row of the batch under construction.
    Row(usize),
    /// It is this dead letter of those under construction.
    Dead(usize),
}

/// Content left out of rows, since the last `finish`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Fields, attributes and labels dropped: not listed, forbidden or too large.
    pub dropped_fields: u64,
    /// Texts cut to their bound.
    pub cut_texts: u64,
}

/// What [`Decoder::finish`] gives.
#[derive(Debug)]
pub struct Decoded {
    /// The rows.
    pub batch: Batch,
    /// The dead letters in the order of their records.
    pub dead: Vec<DeadLetter>,
    /// What was left out of the rows.
    pub tally: Tally,
}

/// Decodes records one by one into a batch. Its only state is the batch under construction.
#[derive(Debug)]
pub struct Decoder {
    settings: Arc<Settings>,
    redactor: Redactor,
    ignored: u64,
    order: FieldOrder,
    columns: Vec<Column>,
    positions: Vec<i64>,
    origins: Vec<Origin>,
    dead: Vec<DeadLetter>,
    tally: Tally,
}

/// A fault found in a record that is JSON.
struct Fault {
    reason: Reason,
    message: String,
}

impl Fault {
    fn decode(message: impl Into<String>) -> Self {
        Self { reason: Reason::Decode, message: message.into() }
    }

    fn out_of_range(message: impl Into<String>) -> Self {
        Self { reason: Reason::OutOfRange, message: message.into() }
    }
}

/// What a record needs beyond its parsed fields to become a row.
struct Checked {
    event_type: &'static str,
    floats: [f64; RAWS],
    total_tokens: i64,
    cost: Option<i128>,
    provenance: Option<Provenance>,
    labels: Option<String>,
    attributes: Option<String>,
    dropped: u64,
}

impl Decoder {
    /// An empty decoder.
    pub fn new(settings: Arc<Settings>) -> Self {
        let redactor = Redactor::new(
            settings.attributes.iter().map(String::as_str),
            settings.forbidden.iter().map(String::as_str),
            settings.max_depth,
        );
        let required = [col::EVENT_TIME, col::EVENT_TYPE, col::TENANT_ID];
        let ignored = (0..N)
            .filter(|at| !required.contains(at) && redactor.forbids(COLUMNS[*at].0))
            .fold(0, |bits, at| bits | 1_u64 << at);
        Self {
            settings,
            redactor,
            ignored,
            order: FieldOrder::new(),
            columns: COLUMNS.iter().map(|(_, ty)| Column::new(ty)).collect(),
            positions: Vec::new(),
            origins: Vec::new(),
            dead: Vec::new(),
            tally: Tally::default(),
        }
    }

    /// Decodes one record. Every failure becomes a dead letter; `now` is the clock for `future`.
    pub fn push(&mut self, origin: Origin, position: i64, payload: Option<&[u8]>, now: Wall) -> Pushed {
        self.push_with(origin, position, payload, &[], now)
    }

    /// Decodes one record that has headers: it may be a CloudEvent ([`super::cloudevent`]).
    pub fn push_with(
        &mut self,
        origin: Origin,
        position: i64,
        payload: Option<&[u8]>,
        headers: &[(&str, &[u8])],
        now: Wall,
    ) -> Pushed {
        let Some(payload) = payload else {
            return self.reject(origin, Reason::Decode, "the record has no value", b"");
        };
        if payload.len() > self.settings.max_record_bytes {
            let message = format!("the record has more than {} bytes", self.settings.max_record_bytes);
            return self.reject(origin, Reason::Oversize, message, payload);
        }
        let Ok(text) = str::from_utf8(payload) else {
            return self.reject(origin, Reason::Decode, "the record is not UTF-8", payload);
        };
        let (said, whole) = if headers.is_empty() { Default::default() } else { cloudevent::of_headers(headers) };
        let mut event = text;
        let mut taken = if whole {
            Err(Fault::decode("the record is not a CloudEvent in JSON"))
        } else {
            self.row(text, &said, now)
        };
        if let Err(fault) = &taken
            && (whole || fault.reason == Reason::MissingField)
            && let Some(opened) = cloudevent::opened(text)
        {
            taken = opened.map_err(Fault::decode).and_then(|(data, said)| {
                event = data;
                self.row(data, &said, now)
            });
        }
        let fault = match taken {
            Ok(row) => {
                self.positions.push(position);
                self.origins.push(origin);
                return Pushed::Row(row);
            }
            Err(fault) => fault,
        };
        match self.redact(event) {
            Some((value, tenant)) => {
                self.dead.push(DeadLetter::new(origin, fault.reason, fault.message, tenant, value));
                Pushed::Dead(self.dead.len() - 1)
            }
            None => self.reject(origin, fault.reason, fault.message, payload),
        }
    }

    /// Appends an event as a row, if it is one. What is `said` of it stands in for what it leaves out.
    fn row(&mut self, text: &str, said: &cloudevent::Said, now: Wall) -> Result<usize, Fault> {
        let mut parsed = Parsed::new();
        record(text, &mut self.order, &self.redactor, self.ignored, &mut parsed).map_err(|fault| Fault {
            reason: if fault.out_of_range { Reason::OutOfRange } else { Reason::Decode },
            message: fault.message,
        })?;
        if let Some(id) = said.id.as_ref().filter(|_| self.ignored >> col::EVENT_ID & 1 == 0) {
            parsed.default_text(col::EVENT_ID, id.clone());
        }
        if let Some(time) = said.time {
            parsed.default_time(time);
        }
        let checked = check(&parsed, &self.settings, &self.redactor, now)?;
        let row = self.positions.len();
        self.tally.dropped_fields += checked.dropped;
        let provenance = checked.provenance.map(|p| p.as_str(&self.settings.prices));
        append(&mut self.columns, &mut self.tally, row, &parsed, &checked, provenance);
        Ok(row)
    }

    /// Makes a record that cannot even be read as JSON a dead letter: its bytes are described, or kept if they are
    /// undecodable and the settings say so. For readers of files too, whose lines may be broken before decoding.
    pub fn reject(&mut self, origin: Origin, reason: Reason, message: impl Into<String>, bytes: &[u8]) -> Pushed {
        let keep = self.settings.keep_undecodable && reason != Reason::Oversize;
        self.dead.push(DeadLetter::of_bytes(origin, reason, message, bytes, keep));
        Pushed::Dead(self.dead.len() - 1)
    }

    /// Rows under construction.
    pub const fn rows(&self) -> usize {
        self.positions.len()
    }

    /// Takes what was decoded since the last call and starts anew.
    pub fn finish(&mut self) -> Decoded {
        let rows = self.positions.len();
        let arrays: Vec<ArrayRef> = self.columns.iter_mut().map(|column| column.finish(rows)).collect();
        #[expect(clippy::expect_used, reason = "one array per field, of its type, each padded to `rows`")]
        let rows = RecordBatch::try_new(Arc::clone(&SCHEMA), arrays).expect("arrays follow the schema");
        Decoded {
            batch: Batch {
                rows,
                positions: std::mem::take(&mut self.positions),
                origins: std::mem::take(&mut self.origins),
            },
            dead: std::mem::take(&mut self.dead),
            tally: std::mem::take(&mut self.tally),
        }
    }

    /// A bad record with nothing but what may be kept, and its tenant if that is a possible one; `None` if it is no JSON
    /// object. Known fields of a wrong type show their type only. Of fields that appear twice the last stays.
    fn redact(&self, text: &str) -> Option<(Vec<u8>, Option<String>)> {
        let members = object(text)?;
        let mut fields: Vec<Option<Cow<'_, str>>> = vec![None; N];
        let mut extra = Vec::new();
        let mut attributes = None;
        let mut tenant = None;
        for (name, raw) in &members {
            let Some(at) = column(name) else {
                if let Some(name) = self.redactor.kept_name(name) {
                    extra.push((name, *raw));
                }
                continue;
            };
            if self.ignored & 1 << at != 0 {
                continue;
            }
            match at {
                col::ATTRIBUTES => attributes = Some(*raw),
                col::LABELS => fields[at] = self.redactor.labels(raw, &mut 0).ok().flatten().map(Cow::Owned),
                _ => {
                    if at == col::TENANT_ID {
                        tenant = string(raw.get()).filter(|t| possible_tenant(t)).map(Cow::into_owned);
                    }
                    fields[at] = Some(show(at, raw));
                }
            }
        }
        let attributes = attributes.filter(|raw| raw.get().starts_with('{'));
        fields[col::ATTRIBUTES] = self.redactor.attributes(&extra, attributes, &mut 0).ok().flatten().map(Cow::Owned);
        let mut out = String::from("{");
        for (at, value) in fields.iter().enumerate() {
            if let Some(value) = value {
                super::encode::member(&mut out, COLUMNS[at].0);
                out.push_str(value);
            }
        }
        out.push('}');
        Some((out.into_bytes(), tenant))
    }
}

fn possible_tenant(tenant: &str) -> bool {
    !tenant.is_empty() && tenant != "*" && tenant.len() <= MAX_ID
}

/// A known field of a bad record as it may be shown.
fn show(at: usize, raw: &RawValue) -> Cow<'_, str> {
    let text = raw.get();
    let as_is = |fits: bool, or: &'static str| if fits { Cow::Borrowed(text) } else { Cow::Borrowed(or) };
    match text.as_bytes().first() {
        // where no free text belongs, only what looks like a time or a name is shown: it may be a prompt gone astray
        Some(b'"') if kind(at) == Kind::Time && !text.bytes().all(|b| b"\"0123456789TZtz:+-. ".contains(&b)) => {
            Cow::Borrowed("\"<string>\"")
        }
        Some(b'"')
            if (at == col::EVENT_TYPE || enumeration(at).is_some())
                && !text.bytes().all(|b| b.is_ascii_alphanumeric() || b"\"._-".contains(&b)) =>
        {
            Cow::Borrowed("\"<string>\"")
        }
        Some(b'"') if matches!(kind(at), Kind::Text | Kind::Time) => {
            let max = if matches!(at, col::ERROR_MESSAGE | col::TITLE) { MAX_TEXT } else { MAX_ID };
            let mut out = String::new();
            write_string(&mut out, cut(&string(text).unwrap_or_default(), max));
            Cow::Owned(out)
        }
        Some(b'"') => Cow::Borrowed("\"<string>\""),
        Some(b'{') => Cow::Borrowed("\"<object>\""),
        Some(b'[') => Cow::Borrowed("\"<array>\""),
        _ => as_is(text.len() <= 64, "\"<number>\""),
    }
}

fn check(parsed: &Parsed<'_>, settings: &Settings, redactor: &Redactor, now: Wall) -> Result<Checked, Fault> {
    let has = |at: usize| parsed.present >> at & 1 == 1;
    let text = |at: usize| parsed.text(at);

    // required
    for at in [col::EVENT_TIME, col::EVENT_TYPE, col::TENANT_ID] {
        if !has(at) || (at != col::EVENT_TIME && text(at) == Some("")) {
            return Err(Fault { reason: Reason::MissingField, message: format!("{} is required", COLUMNS[at].0) });
        }
    }

    // enumerations
    let event_type = EVENT_TYPES
        .iter()
        .find(|known| text(col::EVENT_TYPE) == Some(known))
        .ok_or_else(|| Fault::decode("event_type is none of the contract"))?;
    // of all tenants there are samples (L1), and nothing else
    if text(col::TENANT_ID) == Some("*") && *event_type != "governance.sample" {
        return Err(Fault::decode("tenant_id * is reserved"));
    }

    // ranges, and the free-form fields
    let mut floats = [0.0; RAWS];
    let mut reported = None;
    let mut bits = parsed.present;
    while bits != 0 {
        let at = bits.trailing_zeros() as usize;
        bits &= bits - 1;
        let name = COLUMNS[at].0;
        if parsed.beyond >> at & 1 == 1 {
            return Err(Fault::out_of_range(format!("{name} is beyond its type")));
        }
        let number = || parsed.raw(at).map_or("", RawValue::get);
        match kind(at) {
            Kind::Text => {
                let value = text(at).unwrap_or_default();
                if let Some(values) = enumeration(at) {
                    if !values.iter().any(|known| known.eq_ignore_ascii_case(value)) {
                        return Err(Fault::decode(format!("{name} is not one of {}", values.join(", "))));
                    }
                } else if value.len() > MAX_ID && !matches!(at, col::ERROR_MESSAGE | col::TITLE) {
                    return Err(Fault::out_of_range(format!("{name} has more than {MAX_ID} bytes")));
                }
            }
            Kind::Count if parsed.count(at) < 0 => return Err(Fault::out_of_range(format!("{name} is negative"))),
            Kind::Money => match money::parse(number()) {
                Ok(cost) if cost >= 0 => reported = Some(cost),
                Ok(_) => return Err(Fault::out_of_range(format!("{name} is negative"))),
                Err(_) => return Err(Fault::out_of_range(format!("{name} is beyond DECIMAL(18,9)"))),
            },
            Kind::Score(max) => {
                let value = number().parse::<f64>().unwrap_or(f64::NAN);
                if !(0.0..=max).contains(&value) {
                    return Err(Fault::out_of_range(format!("{name} is not from 0 to {max}")));
                }
                // -0 is 0
                floats[raw_slot(at)] = value + 0.0;
            }
            Kind::Duration => {
                let value = number().parse::<f64>().unwrap_or(f64::NAN);
                if !(value >= 0.0 && value.is_finite()) {
                    return Err(Fault::out_of_range(format!("{name} is negative or beyond its type")));
                }
                floats[raw_slot(at)] = value + 0.0;
            }
            Kind::Count | Kind::Time | Kind::Flag | Kind::Object | Kind::Ours => {}
        }
    }

    let total_tokens = parsed
        .count(col::INPUT_TOKENS)
        .checked_add(parsed.count(col::OUTPUT_TOKENS))
        .ok_or_else(|| Fault::out_of_range("input_tokens and output_tokens together are beyond 64 bits"))?;

    let mut dropped = parsed.dropped;
    let labels = match parsed.raw(col::LABELS) {
        Some(raw) => redactor.labels(raw, &mut dropped).map_err(Fault::decode)?,
        None => None,
    };
    let attributes = if parsed.extra.is_empty() && parsed.raw(col::ATTRIBUTES).is_none() {
        None
    } else {
        redactor.attributes(&parsed.extra, parsed.raw(col::ATTRIBUTES), &mut dropped).map_err(Fault::decode)?
    };

    let (cost, provenance) = cost(parsed, reported, *event_type == "run.step", &settings.prices)?;
    if parsed.time.saturating_sub(settings.future) > now.0 {
        return Err(Fault { reason: Reason::Future, message: "event_time is too far ahead of the clock".to_owned() });
    }
    Ok(Checked { event_type, floats, total_tokens, cost, provenance, labels, attributes, dropped })
}

/// Where a cost is from.
#[derive(Debug, Clone, Copy)]
enum Provenance {
    Reported,
    Table,
    Unknown,
}

impl Provenance {
    fn as_str(self, prices: &Prices) -> &str {
        match self {
            Self::Reported => "reported",
            Self::Table => prices.provenance(),
            Self::Unknown => "unknown",
        }
    }
}

type Cost = (Option<i128>, Option<Provenance>);

/// Reported, else from the table, else unknown if there was usage; nothing for events without any.
fn cost(parsed: &Parsed<'_>, reported: Option<i128>, step: bool, prices: &Prices) -> Result<Cost, Fault> {
    const TOKENS: u64 = 1 << col::INPUT_TOKENS
        | 1 << col::OUTPUT_TOKENS
        | 1 << col::CACHED_TOKENS
        | 1 << col::REASONING_TOKENS
        | 1 << col::TOTAL_TOKENS;
    const PRICED: u64 = TOKENS & !(1 << col::TOTAL_TOKENS);
    if reported.is_some() {
        return Ok((reported, Some(Provenance::Reported)));
    }
    if parsed.present & TOKENS == 0 && !step {
        return Ok((None, None));
    }
    let unknown = Ok((None, Some(Provenance::Unknown)));
    let (Some(provider), Some(model)) = (parsed.text(col::PROVIDER), parsed.text(col::MODEL)) else {
        return unknown;
    };
    if parsed.present & PRICED == 0 {
        return unknown; // a total alone does not say which tokens they were
    }
    let usage = Usage {
        input: parsed.count(col::INPUT_TOKENS),
        output: parsed.count(col::OUTPUT_TOKENS),
        cached: parsed.count(col::CACHED_TOKENS),
        reasoning: parsed.count(col::REASONING_TOKENS),
    };
    match prices.cost(provider, model, parsed.time, usage) {
        Some(cost) if cost > money::MAX => Err(Fault::out_of_range("the cost of these tokens is beyond DECIMAL(18,9)")),
        Some(cost) => Ok((Some(cost), Some(Provenance::Table))),
        None => unknown,
    }
}

/// Appends a checked record as row `row`.
fn append(
    columns: &mut [Column],
    tally: &mut Tally,
    row: usize,
    parsed: &Parsed<'_>,
    checked: &Checked,
    provenance: Option<&str>,
) {
    let mut bits = parsed.present;
    while bits != 0 {
        let at = bits.trailing_zeros() as usize;
        bits &= bits - 1;
        let column = &mut columns[at];
        match kind(at) {
            Kind::Time => column.time(row, parsed.time),
            Kind::Text => {
                let value = parsed.text(at).unwrap_or_default();
                if at == col::EVENT_TYPE {
                    column.text(row, checked.event_type);
                } else if matches!(at, col::ERROR_MESSAGE | col::TITLE) {
                    let kept = cut(value, MAX_TEXT);
                    tally.cut_texts += u64::from(kept.len() < value.len());
                    column.text(row, kept);
                } else {
                    let known = enumeration(at).and_then(|all| all.iter().find(|k| k.eq_ignore_ascii_case(value)));
                    column.text(row, known.map_or(value, |known| known));
                }
            }
            Kind::Count => column.count(row, parsed.count(at)),
            Kind::Score(_) | Kind::Duration => column.float(row, checked.floats[raw_slot(at)]),
            Kind::Flag => column.flag(row, parsed.flags >> at & 1 == 1),
            Kind::Money | Kind::Object | Kind::Ours => {}
        }
    }
    let has = |at: usize| parsed.present >> at & 1 == 1;
    if !has(col::TOTAL_TOKENS) && (has(col::INPUT_TOKENS) || has(col::OUTPUT_TOKENS)) {
        columns[col::TOTAL_TOKENS].count(row, checked.total_tokens);
    }
    if let Some(cost) = checked.cost {
        columns[col::COST_USD].money(row, cost);
    }
    if let Some(provenance) = provenance {
        columns[col::COST_PROVENANCE].text(row, provenance);
    }
    if let Some(labels) = &checked.labels {
        columns[col::LABELS].text(row, labels);
    }
    if let Some(attributes) = &checked.attributes {
        columns[col::ATTRIBUTES].text(row, attributes);
    }
}

/// A column under construction. Absent values cost nothing: nulls are filled in before the next value, or at the end.
#[derive(Debug)]
enum Column {
    Text(StringBuilder),
    Count(Int64Builder),
    Float(Float64Builder),
    Flag(BooleanBuilder),
    Money(Decimal128Builder),
    Time(TimestampMicrosecondBuilder),
}

macro_rules! appenders {
    ($($name:ident $variant:ident $ty:ty;)*) => {
        $(
            #[doc = concat!("Sets row `row` of a column of ", stringify!($variant), ".")]
            fn $name(&mut self, row: usize, value: $ty) {
                if let Self::$variant(builder) = self {
                    let missing = row.saturating_sub(builder.len());
                    if missing > 0 {
                        builder.append_nulls(missing);
                    }
                    builder.append_value(value);
                }
            }
        )*
    };
}

impl Column {
    fn new(ty: &DataType) -> Self {
        match ty {
            DataType::Int64 => Self::Count(Int64Builder::new()),
            DataType::Float64 => Self::Float(Float64Builder::new()),
            DataType::Boolean => Self::Flag(BooleanBuilder::new()),
            DataType::Decimal128(..) => Self::Money(Decimal128Builder::new().with_data_type(MONEY)),
            DataType::Timestamp(..) => Self::Time(TimestampMicrosecondBuilder::new().with_data_type(TIME)),
            _ => Self::Text(StringBuilder::new()),
        }
    }

    appenders! {
        text Text &str;
        count Count i64;
        float Float f64;
        flag Flag bool;
        money Money i128;
        time Time i64;
    }

    fn finish(&mut self, rows: usize) -> ArrayRef {
        macro_rules! finish {
            ($builder:ident, $ty:expr) => {{
                let have = $builder.len();
                if have == 0 {
                    return new_null_array(&$ty, rows);
                }
                if have < rows {
                    $builder.append_nulls(rows - have);
                }
                Arc::new($builder.finish())
            }};
        }
        match self {
            Self::Text(b) => finish!(b, DataType::Utf8),
            Self::Count(b) => finish!(b, DataType::Int64),
            Self::Float(b) => finish!(b, DataType::Float64),
            Self::Flag(b) => finish!(b, DataType::Boolean),
            Self::Money(b) => finish!(b, MONEY),
            Self::Time(b) => finish!(b, TIME),
        }
    }
}

#[cfg(test)]
mod tests;
