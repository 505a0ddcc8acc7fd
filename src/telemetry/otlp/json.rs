//! OTLP JSON, member by member: what is not wanted is skipped unread.
//!
//! Numbers of 64 bits come as strings or numbers, ids in any case, null is as absent, unknown members do not matter. The serde of the
//! generated types is stricter ("NaN", `"attributes": null` and an empty `arrayValue` cost it the whole request), and keeps everything.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer as _, Error as _, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use super::Unreadable;
use super::span::{Attributes, Found, MAX_VALUE, Span, Wanted};

type Raw<'a> = Option<&'a RawValue>;

macro_rules! message {
    ($($name:ident { $($field:ident)* })*) => {$(
        #[derive(Default, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        struct $name<'a> { $(#[serde(borrow)] $field: Raw<'a>),* }
    )*};
}

message! {
    Request { resource_spans }
    ResourceSpans { resource scope_spans }
    Resource { attributes }
    ScopeSpans { spans }
    Whole { trace_id span_id parent_span_id kind start_time_unix_nano end_time_unix_nano attributes status }
    Status { code }
    Pair { key value }
}

/// A message, or nothing where there is none.
fn message<'a, T: Deserialize<'a> + Default>(raw: Raw<'a>) -> Result<T, Unreadable> {
    let Some(raw) = raw.filter(|raw| raw.get() != "null") else { return Ok(T::default()) };
    // an array would do for a struct
    if !raw.get().starts_with('{') {
        return Err(Unreadable::Shape);
    }
    serde_json::from_str(raw.get()).map_err(|_| Unreadable::Shape)
}

/// Calls `each` with every element of an array, or of none where there is none.
pub(super) fn each<'a>(
    raw: Raw<'a>,
    mut each: impl FnMut(&'a RawValue) -> Result<(), Unreadable>,
) -> Result<(), Unreadable> {
    struct Elements<'f, F>(&'f mut F, &'f mut Option<Unreadable>);

    impl<'a, F: FnMut(&'a RawValue) -> Result<(), Unreadable>> Visitor<'a> for Elements<'_, F> {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an array")
        }

        fn visit_seq<A: SeqAccess<'a>>(self, mut array: A) -> Result<(), A::Error> {
            while let Some(element) = array.next_element::<&'a RawValue>()? {
                (self.0)(element).map_err(|why| {
                    *self.1 = Some(why);
                    A::Error::custom("")
                })?;
            }
            Ok(())
        }

        fn visit_unit<E>(self) -> Result<(), E> {
            Ok(())
        }
    }

    let Some(raw) = raw else { return Ok(()) };
    let mut why = None;
    let read = serde_json::Deserializer::from_str(raw.get()).deserialize_any(Elements(&mut each, &mut why));
    read.map_err(|_| why.unwrap_or(Unreadable::Shape))
}

/// The text of a request as JSON.
pub(super) fn request(bytes: &[u8]) -> Result<&RawValue, Unreadable> {
    let place = |error: serde_json::Error| Unreadable::Json { line: error.line(), column: error.column() };
    serde_json::from_slice(bytes).map_err(place)
}

/// The spans of a request.
pub(super) fn spans(bytes: &[u8], wanted: &Wanted, most: usize) -> Result<Found, Unreadable> {
    let mut found = Found::default();
    let all: Request<'_> = message(Some(request(bytes)?))?;
    each(all.resource_spans, |raw| {
        let all: ResourceSpans<'_> = message(Some(raw))?;
        let resource: Resource<'_> = message(all.resource)?;
        found.resources.push(attributes(resource.attributes, wanted)?);
        each(all.scope_spans, |raw| {
            let all: ScopeSpans<'_> = message(Some(raw))?;
            each(all.spans, |raw| {
                if found.spans.len() == most {
                    return Err(Unreadable::TooMany(most));
                }
                found.spans.push((found.resources.len() - 1, span(raw, wanted)?));
                Ok(())
            })
        })
    })?;
    Ok(found)
}

fn span(raw: &RawValue, wanted: &Wanted) -> Result<Span, Unreadable> {
    let all: Whole<'_> = message(Some(raw))?;
    let status: Status<'_> = message(all.status)?;
    Ok(Span {
        trace: id(all.trace_id),
        id: id(all.span_id),
        parent: id(all.parent_span_id),
        kind: number(all.kind).unwrap_or_default(),
        start: number(all.start_time_unix_nano).unwrap_or_default(),
        end: number(all.end_time_unix_nano).unwrap_or_default(),
        error: number(status.code) == Some(2_u64),
        attributes: attributes(all.attributes, wanted)?,
    })
}

fn attributes(raw: Raw<'_>, wanted: &Wanted) -> Result<Attributes, Unreadable> {
    let mut kept = Attributes::default();
    each(raw, |raw| {
        let pair: Pair<'_> = message(Some(raw))?;
        if let Some(name) = pair.key.and_then(text).and_then(|key| wanted.name(&key)) {
            let value = pair.value.filter(|raw| raw.get().len() <= MAX_VALUE);
            let value = value.and_then(|raw| serde_json::from_str(raw.get()).ok());
            kept.set(name, value.map_or(Value::Null, any));
        }
        Ok(())
    })?;
    Ok(kept)
}

fn text(raw: &RawValue) -> Option<Cow<'_, str>> {
    super::super::parse::string(raw.get())
}

/// Bytes of a hexadecimal text; none, and too many, are no id.
fn id(raw: Raw<'_>) -> Vec<u8> {
    let Some(text) = raw.and_then(text) else { return Vec::new() };
    let nibble = |b: &u8| char::from(*b).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let digits: Option<Vec<u8>> = text.as_bytes().iter().take(34).map(nibble).collect();
    let digits = digits.filter(|digits| digits.len().is_multiple_of(2)).unwrap_or_default();
    digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

/// A number, or a string that holds one.
fn number<T: std::str::FromStr>(raw: Raw<'_>) -> Option<T> {
    raw?.get().trim_matches('"').parse().ok()
}

/// What an `AnyValue` holds, as JSON; bytes are no telemetry.
fn any(value: Value) -> Value {
    let Value::Object(members) = value else { return Value::Null };
    let values = |value: Value| match value {
        Value::Object(mut list) => list.remove("values").filter(Value::is_array),
        _ => None,
    };
    for (name, value) in members {
        match (name.as_str(), value) {
            ("stringValue", text @ Value::String(_)) => return text,
            ("boolValue", flag @ Value::Bool(_)) => return flag,
            ("intValue", Value::String(text)) => return text.parse::<i64>().map_or(Value::Null, Value::from),
            ("doubleValue", Value::String(text)) => return text.parse::<f64>().map_or(Value::Null, Value::from),
            ("intValue" | "doubleValue", number @ Value::Number(_)) => return number,
            ("arrayValue", list) => {
                let Some(Value::Array(items)) = values(list) else { return Value::Array(Vec::new()) };
                return items.into_iter().map(any).collect();
            }
            ("kvlistValue", list) => {
                let Some(Value::Array(pairs)) = values(list) else { return Value::Object(serde_json::Map::new()) };
                let pair = |pair: Value| match pair {
                    Value::Object(mut pair) => {
                        let key = pair.remove("key")?.as_str()?.to_owned();
                        Some((key, pair.remove("value").map_or(Value::Null, any)))
                    }
                    _ => None,
                };
                return Value::Object(pairs.into_iter().filter_map(pair).collect());
            }
            _ => {}
        }
    }
    Value::Null
}
