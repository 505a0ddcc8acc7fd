//! One JSON record to typed, borrowed fields: the hot path, without a value tree.
//!
//! Only syntax and types are judged here; ranges, enumerations and required fields are the decoder's. A known field that
//! appears twice is a fault (which of the two a sender meant is anybody's guess); fields nobody keeps are skipped unread.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::redact::Redactor;
use super::schema::{COLUMNS, col};
use super::time::parse_time;

/// Number of columns.
pub(super) const N: usize = col::ATTRIBUTES + 1;

/// How a column is read and checked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Kind {
    /// Event time.
    Time,
    /// A string: an id, an enumeration or text, told apart when it is checked.
    Text,
    /// A non-negative integer.
    Count,
    /// `DECIMAL(18, 9)`, not negative.
    Money,
    /// A number from 0 to this.
    Score(f64),
    /// A non-negative number.
    Duration,
    /// A boolean.
    Flag,
    /// An object, kept as canonical JSON.
    Object,
    /// Not read from records: we set it.
    Ours,
}

pub(super) const fn kind(column: usize) -> Kind {
    match column {
        col::EVENT_TIME => Kind::Time,
        col::IS_SYNTHETIC | col::TRUST_LOCKED => Kind::Flag,
        col::INPUT_TOKENS
        | col::OUTPUT_TOKENS
        | col::CACHED_TOKENS
        | col::REASONING_TOKENS
        | col::TOTAL_TOKENS
        | col::LATENCY_MS
        | col::CONSECUTIVE_ANOMALOUS_READINGS
        | col::CAPACITY
        | col::RECENT_RESPONSES => Kind::Count,
        col::COST_USD => Kind::Money,
        col::COST_PROVENANCE => Kind::Ours,
        col::RISK_SCORE | col::ANOMALY_SCORE => Kind::Score(1.0),
        col::INTEGRITY_SCORE | col::CONSENSUS_PCT | col::REPUTATION_SCORE => Kind::Score(100.0),
        col::RUNNING_DURATION_SECONDS | col::TIMEOUT_SECONDS => Kind::Duration,
        col::LABELS | col::ATTRIBUTES => Kind::Object,
        _ => Kind::Text,
    }
}

/// Column of a field name that records may carry.
pub(super) fn column(name: &str) -> Option<usize> {
    COLUMNS.iter().position(|(known, _)| *known == name).filter(|at| kind(*at) != Kind::Ours)
}

/// Rank of each column among those that are held alike, so that a parsed record stays small.
const SLOTS: [usize; N] = {
    let (mut slots, mut at) = ([0; N], 0);
    let (mut texts, mut counts, mut raws) = (0, 0, 0);
    while at < N {
        let next = match kind(at) {
            Kind::Text => &mut texts,
            Kind::Count => &mut counts,
            _ => &mut raws,
        };
        slots[at] = *next;
        *next += 1;
        at += 1;
    }
    slots
};

/// Columns for which `held` is true.
const fn ranks(texts: bool, counts: bool) -> usize {
    let (mut n, mut at) = (0, 0);
    while at < N {
        n += match kind(at) {
            Kind::Text => texts as usize,
            Kind::Count => counts as usize,
            _ => !(texts || counts) as usize,
        };
        at += 1;
    }
    n
}

const TEXTS: usize = ranks(true, false);
const COUNTS: usize = ranks(false, true);
/// Slots of columns that are neither text nor counts.
pub(super) const RAWS: usize = ranks(false, false);

/// Slot of a column that is neither text nor a count.
pub(super) const fn raw_slot(column: usize) -> usize {
    SLOTS[column]
}

/// The typed fields of one record.
pub(super) struct Parsed<'a> {
    /// Bit per column that is present and not null.
    pub present: u64,
    /// Bit per column whose number does not fit 64 bits.
    pub beyond: u64,
    texts: [Option<Cow<'a, str>>; TEXTS],
    counts: [i64; COUNTS],
    raws: [Option<&'a RawValue>; RAWS],
    pub time: i64,
    pub flags: u64,
    /// Fields outside the contract that the allow-list keeps.
    pub extra: Vec<(&'a str, &'a RawValue)>,
    /// Fields dropped because nobody listed them.
    pub dropped: u64,
}

impl<'a> Parsed<'a> {
    /// Nothing yet.
    pub fn new() -> Self {
        Self {
            present: 0,
            beyond: 0,
            texts: [const { None }; TEXTS],
            counts: [0; COUNTS],
            raws: [None; RAWS],
            time: 0,
            flags: 0,
            extra: Vec::new(),
            dropped: 0,
        }
    }

    /// A `Text` column.
    pub fn text(&self, column: usize) -> Option<&str> {
        self.texts[SLOTS[column]].as_deref()
    }

    /// A `Count` column; 0 if absent.
    pub const fn count(&self, column: usize) -> i64 {
        self.counts[SLOTS[column]]
    }

    /// Sets a `Text` column that the record leaves out.
    pub fn default_text(&mut self, column: usize, text: String) {
        if self.present >> column & 1 == 0 {
            self.texts[SLOTS[column]] = Some(Cow::Owned(text));
            self.present |= 1 << column;
        }
    }

    /// Sets the event time where the record leaves it out.
    pub fn default_time(&mut self, time: i64) {
        if self.present >> col::EVENT_TIME & 1 == 0 {
            self.time = time;
            self.present |= 1 << col::EVENT_TIME;
        }
    }

    /// A `Money`, `Score` or `Duration` column as JSON number text; an `Object` as JSON.
    pub const fn raw(&self, column: usize) -> Option<&'a RawValue> {
        self.raws[SLOTS[column]]
    }
}

/// Why a record cannot be read. The text names field and place, never content.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unreadable {
    pub message: String,
    /// The number is JSON, only too large for any type of ours.
    pub out_of_range: bool,
}

/// Remembers the order in which records name their fields, so that most names are found with one comparison.
#[derive(Debug)]
pub(super) struct FieldOrder(Vec<u8>);

impl FieldOrder {
    pub fn new() -> Self {
        Self(Vec::with_capacity(N))
    }

    fn find(&mut self, at: usize, name: &str) -> Option<usize> {
        if let Some(guess) = self.0.get(at).map(|c| usize::from(*c))
            && COLUMNS[guess].0 == name
        {
            return Some(guess);
        }
        let found = column(name)?;
        if at < N {
            self.0.resize(self.0.len().max(at + 1), 0);
            self.0[at] = u8::try_from(found).unwrap_or(0);
        }
        Some(found)
    }
}

/// Reads one record into `parsed`, which is new. `ignored` has a bit per column that is dropped although the contract
/// knows it.
pub(super) fn record<'a>(
    text: &'a str,
    order: &mut FieldOrder,
    redactor: &'a Redactor,
    ignored: u64,
    parsed: &mut Parsed<'a>,
) -> Result<(), Unreadable> {
    let mut doing = Doing::Start;
    let mut de = serde_json::Deserializer::from_str(text);
    let visitor = Record { parsed, order, redactor, ignored, doing: &mut doing };
    de.deserialize_map(visitor).and_then(|()| de.end()).map_err(|error| explain(&error, doing))
}

/// What the parser was at when it stopped.
#[derive(Debug, Clone, Copy)]
enum Doing {
    Start,
    Column(usize),
    Twice(usize),
    Other,
}

fn explain(error: &serde_json::Error, doing: Doing) -> Unreadable {
    let fault = |message| Unreadable { message, out_of_range: false };
    if error.is_data() {
        return fault(match doing {
            Doing::Column(col::EVENT_TIME) => {
                "event_time is neither RFC 3339 with an offset nor integer epoch milliseconds".to_owned()
            }
            Doing::Column(at) => format!("{} must be {}", COLUMNS[at].0, wanted(at)),
            Doing::Twice(at) => format!("{} appears twice", COLUMNS[at].0),
            Doing::Start | Doing::Other => "the record is not a JSON object".to_owned(),
        });
    }
    // serde_json has no kind for it; its message holds nothing of the record
    let out_of_range = error.to_string().starts_with("number out of range");
    let (line, column) = (error.line(), error.column());
    let message = match doing {
        Doing::Column(at) if out_of_range => format!("{} is beyond 64 bits", COLUMNS[at].0),
        _ if error.is_eof() => format!("the JSON ends early, at line {line} column {column}"),
        _ => format!("not JSON at line {line} column {column}"),
    };
    Unreadable { message, out_of_range }
}

fn wanted(at: usize) -> &'static str {
    match kind(at) {
        Kind::Time => "a time",
        Kind::Text => "a string",
        Kind::Count => "an integer",
        Kind::Money | Kind::Score(_) | Kind::Duration => "a number",
        Kind::Flag => "true or false",
        Kind::Object => "an object",
        Kind::Ours => "absent",
    }
}

struct Record<'p, 'a> {
    parsed: &'p mut Parsed<'a>,
    order: &'p mut FieldOrder,
    redactor: &'a Redactor,
    ignored: u64,
    doing: &'p mut Doing,
}

impl<'a> Visitor<'a> for Record<'_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a telemetry event")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
        let Self { parsed, order, redactor, ignored, doing } = self;
        let mut seen = 0_u64;
        let mut at = 0;
        *doing = Doing::Other;
        while let Some(name) = map.next_key_seed(Name { order, at, redactor })? {
            at += 1;
            let column = match name {
                Field::Known(column) => column,
                Field::Listed(name) => {
                    parsed.extra.push((name, map.next_value()?));
                    continue;
                }
                Field::Unknown => {
                    parsed.dropped += 1;
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            let bit = 1_u64 << column;
            if seen & bit != 0 {
                *doing = Doing::Twice(column);
                return Err(A::Error::custom(""));
            }
            seen |= bit;
            if ignored & bit != 0 {
                parsed.dropped += 1;
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            *doing = Doing::Column(column);
            let present = match kind(column) {
                Kind::Text => {
                    let text = map.next_value_seed(Text)?;
                    let present = text.is_some();
                    parsed.texts[SLOTS[column]] = text;
                    present
                }
                Kind::Count => match map.next_value_seed(Integer)? {
                    Number::Is(value) => {
                        parsed.counts[SLOTS[column]] = value;
                        true
                    }
                    Number::Beyond => {
                        parsed.beyond |= bit;
                        true
                    }
                    Number::Null => false,
                },
                Kind::Time => match map.next_value_seed(Time)? {
                    Number::Is(value) => {
                        parsed.time = value;
                        true
                    }
                    Number::Beyond => {
                        parsed.beyond |= bit;
                        true
                    }
                    Number::Null => false,
                },
                Kind::Flag => match map.next_value::<Option<bool>>()? {
                    Some(value) => {
                        parsed.flags |= u64::from(value) << column;
                        true
                    }
                    None => false,
                },
                Kind::Money | Kind::Score(_) | Kind::Duration => {
                    let raw: &RawValue = map.next_value()?;
                    match raw.get().as_bytes().first() {
                        Some(b'n') => false,
                        Some(b'-' | b'0'..=b'9') => {
                            parsed.raws[SLOTS[column]] = Some(raw);
                            true
                        }
                        _ => return Err(A::Error::custom("")),
                    }
                }
                Kind::Object => {
                    let raw: &RawValue = map.next_value()?;
                    match raw.get().as_bytes().first() {
                        Some(b'n') => false,
                        Some(b'{') => {
                            parsed.raws[SLOTS[column]] = Some(raw);
                            true
                        }
                        _ => return Err(A::Error::custom("")),
                    }
                }
                Kind::Ours => false,
            };
            parsed.present |= u64::from(present) << column;
            *doing = Doing::Other;
        }
        Ok(())
    }
}

enum Field<'a> {
    Known(usize),
    Listed(&'a str),
    Unknown,
}

struct Name<'p, 'a> {
    order: &'p mut FieldOrder,
    at: usize,
    redactor: &'a Redactor,
}

impl<'a> DeserializeSeed<'a> for Name<'_, 'a> {
    type Value = Field<'a>;

    fn deserialize<D: Deserializer<'a>>(self, de: D) -> Result<Field<'a>, D::Error> {
        de.deserialize_str(self)
    }
}

impl<'a> Visitor<'a> for Name<'_, 'a> {
    type Value = Field<'a>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Field<'a>, E> {
        Ok(match self.order.find(self.at, name) {
            Some(column) => Field::Known(column),
            None => self.redactor.kept_name(name).map_or(Field::Unknown, Field::Listed),
        })
    }
}

struct Text;

impl<'a> DeserializeSeed<'a> for Text {
    type Value = Option<Cow<'a, str>>;

    fn deserialize<D: Deserializer<'a>>(self, de: D) -> Result<Self::Value, D::Error> {
        de.deserialize_any(self)
    }
}

impl<'a> Visitor<'a> for Text {
    type Value = Option<Cow<'a, str>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_borrowed_str<E>(self, text: &'a str) -> Result<Self::Value, E> {
        Ok(Some(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Some(Cow::Owned(text.to_owned())))
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }
}

enum Number {
    Is(i64),
    Beyond,
    Null,
}

/// 2⁶³ as a float: the first integer beyond 64 signed bits.
const BEYOND: f64 = 9_223_372_036_854_775_808.0;

#[allow(clippy::cast_possible_truncation, reason = "the value is integral and within i64")]
fn integral(value: f64) -> Option<Number> {
    if value.abs() >= BEYOND {
        Some(Number::Beyond)
    } else if value.fract() == 0.0 {
        Some(Number::Is(value as i64))
    } else {
        None
    }
}

struct Integer;

impl<'a> DeserializeSeed<'a> for Integer {
    type Value = Number;

    fn deserialize<D: Deserializer<'a>>(self, de: D) -> Result<Number, D::Error> {
        de.deserialize_any(self)
    }
}

impl Visitor<'_> for Integer {
    type Value = Number;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an integer")
    }

    fn visit_u64<E>(self, value: u64) -> Result<Number, E> {
        Ok(i64::try_from(value).map_or(Number::Beyond, Number::Is))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Number, E> {
        Ok(Number::Is(value))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Number, E> {
        integral(value).ok_or_else(|| E::custom(""))
    }

    fn visit_unit<E>(self) -> Result<Number, E> {
        Ok(Number::Null)
    }
}

struct Time;

impl<'a> DeserializeSeed<'a> for Time {
    type Value = Number;

    fn deserialize<D: Deserializer<'a>>(self, de: D) -> Result<Number, D::Error> {
        de.deserialize_any(self)
    }
}

fn millis(value: i64) -> Number {
    value.checked_mul(1_000).filter(|at| super::time::RANGE.contains(at)).map_or(Number::Beyond, Number::Is)
}

impl Visitor<'_> for Time {
    type Value = Number;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a time")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Number, E> {
        parse_time(text).map(Number::Is).ok_or_else(|| E::custom(""))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Number, E> {
        Ok(i64::try_from(value).map_or(Number::Beyond, millis))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Number, E> {
        Ok(millis(value))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Number, E> {
        match integral(value) {
            Some(Number::Is(value)) => Ok(millis(value)),
            Some(other) => Ok(other),
            None => Err(E::custom("")),
        }
    }

    fn visit_unit<E>(self) -> Result<Number, E> {
        Ok(Number::Null)
    }
}

/// The text of a JSON string.
pub(super) fn string(raw: &str) -> Option<Cow<'_, str>> {
    let mut de = serde_json::Deserializer::from_str(raw);
    Text.deserialize(&mut de).ok().flatten()
}

/// The members of a JSON object, unread, in their order.
pub(super) fn object(raw: &str) -> Option<Vec<(Cow<'_, str>, &RawValue)>> {
    let mut de = serde_json::Deserializer::from_str(raw);
    let members = de.deserialize_map(Members).ok()?;
    de.end().ok()?;
    Some(members)
}

struct Members;

impl<'a> Visitor<'a> for Members {
    type Value = Vec<(Cow<'a, str>, &'a RawValue)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Vec::new();
        while let Some(name) = map.next_key_seed(Text)? {
            members.push((name.unwrap_or_default(), map.next_value()?));
        }
        Ok(members)
    }
}
