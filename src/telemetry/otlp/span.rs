//! A span with nothing but what is mapped.

use std::sync::Arc;

use rustc_hash::FxHashSet;
use serde_json::Value;

use super::names::{CACHE_READ, CACHE_WRITE, INPUT, OUTPUT, REASONING};

/// Longest value that is read, bytes as sent: a longer one is as if it were absent.
pub(super) const MAX_VALUE: usize = 64 << 10;

/// Names of the attributes that are read.
#[derive(Debug, Default)]
pub(super) struct Wanted(FxHashSet<Arc<str>>);

impl Wanted {
    pub fn of<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        Self(names.into_iter().map(Arc::from).collect())
    }

    /// The name, if it is wanted.
    pub fn name(&self, name: &str) -> Option<&Arc<str>> {
        self.0.get(name)
    }
}

/// Wanted attributes: at most one of each name, the last one sent.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Attributes(Vec<(Arc<str>, Value)>);

impl Attributes {
    pub fn set(&mut self, name: &Arc<str>, value: Value) {
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => *old = value,
            None => self.0.push((Arc::clone(name), value)),
        }
    }

    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.iter().find(|(known, _)| **known == *name).map(|(_, value)| value).filter(|value| !value.is_null())
    }

    /// A text that is not empty; a number as text.
    pub fn text(&self, name: &str) -> Option<String> {
        match self.get(name)? {
            Value::String(text) if !text.is_empty() => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        }
    }

    /// Whether any of the conventions' attributes is there.
    pub fn speaks_of_models(&self) -> bool {
        self.0.iter().any(|(name, _)| name.starts_with("gen_ai."))
    }

    /// Whether tokens are reported.
    pub fn has_usage(&self) -> bool {
        let lists = [INPUT, OUTPUT, CACHE_READ, CACHE_WRITE, REASONING];
        lists.into_iter().flatten().any(|name| self.get(name).is_some())
    }
}

/// One span.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Span {
    pub trace: Vec<u8>,
    pub id: Vec<u8>,
    /// Empty for a root.
    pub parent: Vec<u8>,
    /// Who called whom: 3 is CLIENT.
    pub kind: i64,
    /// Nanoseconds.
    pub start: u64,
    pub end: u64,
    /// Whether its status is ERROR.
    pub error: bool,
    pub attributes: Attributes,
}

/// Spans and what they share with those of their resource.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Found {
    pub resources: Vec<Attributes>,
    /// With the position of its resource.
    pub spans: Vec<(usize, Span)>,
}
