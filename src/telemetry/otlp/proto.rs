//! OTLP protobuf, field by field: what is not wanted is skipped unread.
//!
//! The generated types would build every empty message that a few bytes can name, a hundred times their size; here memory follows from
//! what is kept. The numbers are those of `opentelemetry/proto/trace/v1/trace.proto`; tests compare with the generated types.

use opentelemetry_proto::tonic::common::v1::AnyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use prost::Message as _;
use serde_json::Value;

use super::Unreadable;
use super::span::{Attributes, Found, MAX_VALUE, Span, Wanted};

/// The value of a field.
pub(super) enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message.
pub(super) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    pub fn of(message: &'a [u8]) -> Self {
        Self(message)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if *byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, bytes: u64) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(usize::try_from(bytes).ok()?)?;
        self.0 = rest;
        Some(taken)
    }

    fn field(&mut self) -> Option<(u64, Field<'a>)> {
        let tag = self.varint()?;
        let little = |bytes: &[u8]| bytes.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        let field = match tag & 7 {
            0 => Field::Number(self.varint()?),
            1 => Field::Number(little(self.take(8)?)),
            2 => {
                let length = self.varint()?;
                Field::Bytes(self.take(length)?)
            }
            5 => Field::Number(little(self.take(4)?)),
            _ => return None,
        };
        (tag >> 3 > 0).then_some((tag >> 3, field))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Field<'a>), Unreadable>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field.ok_or(Unreadable::Proto))
    }
}

/// Calls `each` with every message of a field.
pub(super) fn messages<'a>(
    message: &'a [u8],
    number: u64,
    mut each: impl FnMut(&'a [u8]) -> Result<(), Unreadable>,
) -> Result<(), Unreadable> {
    for field in Fields::of(message) {
        if let (found, Field::Bytes(bytes)) = field?
            && found == number
        {
            each(bytes)?;
        }
    }
    Ok(())
}

/// The spans of a request, or of the collector's `TracesData`, which is written alike.
pub(super) fn spans(request: &[u8], wanted: &Wanted, most: usize) -> Result<Found, Unreadable> {
    let mut found = Found::default();
    messages(request, 1, |resource_spans| {
        let mut shared = Attributes::default();
        messages(resource_spans, 1, |resource| messages(resource, 1, |pair| keep(pair, wanted, &mut shared)))?;
        found.resources.push(shared);
        messages(resource_spans, 2, |scope_spans| {
            messages(scope_spans, 2, |bytes| {
                if found.spans.len() == most {
                    return Err(Unreadable::TooMany(most));
                }
                found.spans.push((found.resources.len() - 1, span(bytes, wanted)?));
                Ok(())
            })
        })
    })?;
    Ok(found)
}

fn span(message: &[u8], wanted: &Wanted) -> Result<Span, Unreadable> {
    let mut span = Span::default();
    // longer than any id: nothing is gained by keeping it
    let id = |bytes: &[u8]| bytes.get(..17).unwrap_or(bytes).to_vec();
    for field in Fields::of(message) {
        match field? {
            (1, Field::Bytes(bytes)) => span.trace = id(bytes),
            (2, Field::Bytes(bytes)) => span.id = id(bytes),
            (4, Field::Bytes(bytes)) => span.parent = id(bytes),
            (6, Field::Number(kind)) => span.kind = i64::try_from(kind).unwrap_or_default(),
            (7, Field::Number(at)) => span.start = at,
            (8, Field::Number(at)) => span.end = at,
            (9, Field::Bytes(pair)) => keep(pair, wanted, &mut span.attributes)?,
            (15, Field::Bytes(status)) => {
                for field in Fields::of(status) {
                    if let (3, Field::Number(code)) = field? {
                        span.error = code == 2;
                    }
                }
            }
            _ => {}
        }
    }
    Ok(span)
}

/// Keeps a wanted attribute.
fn keep(pair: &[u8], wanted: &Wanted, attributes: &mut Attributes) -> Result<(), Unreadable> {
    let (mut key, mut value): (&[u8], Option<&[u8]>) = (&[], None);
    for field in Fields::of(pair) {
        match field? {
            (1, Field::Bytes(bytes)) => key = bytes,
            (2, Field::Bytes(bytes)) => value = Some(bytes),
            _ => {}
        }
    }
    let Some(name) = std::str::from_utf8(key).ok().and_then(|key| wanted.name(key)) else { return Ok(()) };
    let value = match value {
        Some(bytes) if bytes.len() <= MAX_VALUE => any(AnyValue::decode(bytes).map_err(|_| Unreadable::Proto)?),
        _ => Value::Null,
    };
    attributes.set(name, value);
    Ok(())
}

/// A value as JSON; bytes are no telemetry.
fn any(value: AnyValue) -> Value {
    match value.value {
        Some(Any::StringValue(text)) => text.into(),
        Some(Any::BoolValue(flag)) => flag.into(),
        Some(Any::IntValue(number)) => number.into(),
        Some(Any::DoubleValue(number)) => number.into(),
        Some(Any::ArrayValue(array)) => array.values.into_iter().map(any).collect(),
        Some(Any::KvlistValue(list)) => {
            let pairs = list.values.into_iter().map(|pair| (pair.key, pair.value.map_or(Value::Null, any)));
            Value::Object(pairs.collect())
        }
        Some(Any::BytesValue(_) | Any::StringValueStrindex(_)) | None => Value::Null,
    }
}
