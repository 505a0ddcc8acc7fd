//! A TOML document and the environment as one source of typed values that never stops at the first fault.
//!
//! A section asks for its keys by name, type, default and bounds. What it never asked for is an unknown key. Precedence:
//! 1. the environment, 2. the file, 3. the default. After a fault the default stands in, so that the reading goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Secret;
use super::fault::{Fault, nearest};
use super::reference::{Form, Key, Kind, Reference};

const PREFIX: &str = "RUNWARDEN_";

/// Reads one document.
pub(super) struct Reader<'t> {
    file: &'t str,
    text: &'t str,
    /// The whole environment.
    environment: BTreeMap<String, String>,
    /// Its `RUNWARDEN_SECTION__KEY` variables, without prefix.
    env: BTreeMap<String, String>,
    used: BTreeSet<String>,
    /// Every key asked for, dotted.
    pub(super) known: BTreeSet<String>,
    pub(super) faults: Vec<Fault>,
    /// What is asked for is noted here; `None`: nobody wants to know.
    pub(super) reference: Option<Reference>,
}

/// Where a value came from.
enum At {
    Byte(usize),
    Variable(String),
}

/// A value of the file, or a variable's text: what it means depends on what is asked for.
enum Found<'v> {
    File(&'v Spanned<DeValue<'v>>),
    Variable { name: String, text: String },
}

impl Found<'_> {
    fn at(&self) -> At {
        match self {
            Self::File(value) => At::Byte(value.span().start),
            Self::Variable { name, .. } => At::Variable(name.clone()),
        }
    }

    fn text(&self) -> Result<String, String> {
        let text = match self {
            Self::Variable { text, .. } => text.clone(),
            Self::File(value) => value.get_ref().as_str().ok_or("must be a string")?.to_owned(),
        };
        if text.is_empty() { Err("must not be empty".to_owned()) } else { Ok(text) }
    }

    fn is_empty(&self) -> bool {
        match self {
            Self::Variable { text, .. } => text.is_empty(),
            Self::File(value) => value.get_ref().as_str() == Some(""),
        }
    }

    fn flag(&self) -> Option<bool> {
        match self {
            Self::Variable { text, .. } => text.parse().ok(),
            Self::File(value) => value.get_ref().as_bool(),
        }
    }

    fn integer(&self) -> Option<i64> {
        match self {
            Self::Variable { text, .. } => text.parse().ok(),
            Self::File(value) => {
                let value = value.get_ref().as_integer()?;
                i64::from_str_radix(value.as_str(), value.radix()).ok()
            }
        }
    }

    /// A decimal number with at most so many decimals, in units of the last one.
    fn decimal(&self, most: u32) -> Option<u32> {
        let text = match self {
            Self::Variable { text, .. } => text.clone(),
            Self::File(value) => match value.get_ref().as_float() {
                Some(float) => float.as_str().to_owned(),
                None => self.integer()?.to_string(),
            },
        };
        let (whole, decimals) = text.split_once('.').unwrap_or((&text, ""));
        let places = usize::try_from(most).ok()?;
        if decimals.len() > places || !decimals.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let parts: u32 = format!("{decimals:0<places$}").parse().ok()?;
        whole.parse::<u32>().ok()?.checked_mul(10_u32.checked_pow(most)?)?.checked_add(parts)
    }

    /// An array of strings; in a variable, strings separated by commas.
    fn texts(&self) -> Result<Vec<String>, String> {
        let wrong = || "must be an array of strings".to_owned();
        match self {
            Self::Variable { text, .. } => {
                Ok(text.split(',').map(|item| item.trim().to_owned()).filter(|item| !item.is_empty()).collect())
            }
            Self::File(value) => {
                let items = value.get_ref().as_array().ok_or_else(wrong)?;
                items.iter().map(|item| item.get_ref().as_str().map(str::to_owned).ok_or_else(wrong)).collect()
            }
        }
    }
}

fn screaming(key: &str) -> String {
    key.chars().map(|c| if matches!(c, '-' | '.') { '_' } else { c.to_ascii_uppercase() }).collect()
}

impl<'t> Reader<'t> {
    pub(super) fn new(file: &'t str, text: &'t str, env: impl IntoIterator<Item = (String, String)>) -> Self {
        let environment: BTreeMap<String, String> = env.into_iter().collect();
        let env = environment
            .iter()
            .filter_map(|(name, value)| Some((name.strip_prefix(PREFIX)?.to_owned(), value.clone())))
            .filter(|(name, _)| name.contains("__"))
            .collect();
        let (used, known, faults, reference) = Default::default();
        Self { file, text, environment, env, used, known, faults, reference }
    }

    pub(super) fn file(&self) -> &'t str {
        self.file
    }

    /// Runs `read` on one section.
    pub(super) fn section<'s, T>(
        &'s mut self,
        root: &'s DeTable<'t>,
        name: &'static str,
        read: impl FnOnce(&mut Section<'s, 't>) -> T,
    ) -> T {
        self.known.insert(name.to_owned());
        let table = match root.get(name).map(|value| (value.span().start, value.get_ref())) {
            Some((_, DeValue::Table(table))) => Some(table),
            Some((at, _)) => {
                let fault = Fault::at(self.file, self.text, at, name, format!("must be a section, [{name}]"));
                self.faults.push(fault);
                None
            }
            None => None,
        };
        self.note(name, Form::Table);
        let mut section = Section { reader: self, name: name.to_owned(), table, keys: Vec::new(), from_env: true };
        let value = read(&mut section);
        section.finish();
        value
    }

    fn note(&mut self, section: &str, form: Form) {
        if let Some(reference) = &mut self.reference {
            reference.part(section, form);
        }
    }

    /// Reports sections and variables nobody asked for.
    pub(super) fn finish(&mut self, root: &DeTable<'t>) {
        let sections: Vec<&str> = self.known.iter().filter(|key| !key.contains('.')).map(String::as_str).collect();
        let mut faults = Vec::new();
        for key in root.keys() {
            if !sections.contains(&key.get_ref().as_ref()) {
                let message = unknown("section", key.get_ref(), sections.iter().copied());
                faults.push(Fault::at(self.file, self.text, key.span().start, key.get_ref(), message));
            }
        }
        let variables: Vec<String> = self
            .known
            .iter()
            .filter_map(|key| key.rsplit_once('.'))
            .map(|(section, key)| format!("{PREFIX}{}__{}", screaming(section), screaming(key)))
            .collect();
        for name in self.env.keys().filter(|name| !self.used.contains(*name)) {
            let name = format!("{PREFIX}{name}");
            let message = unknown("variable", &name, variables.iter().map(String::as_str));
            faults.push(Fault::of(&name, "", message));
        }
        self.faults.extend(faults);
        self.faults.sort_by_key(|fault| (fault.line, fault.column));
    }
}

fn unknown<'a>(what: &str, name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    match nearest(name, known) {
        Some(near) => format!("unknown {what}; did you mean {near}?"),
        None => format!("unknown {what}"),
    }
}

/// One table while it is read.
pub(super) struct Section<'s, 't> {
    reader: &'s mut Reader<'t>,
    name: String,
    table: Option<&'s DeTable<'t>>,
    keys: Vec<&'static str>,
    /// Entries of arrays have no variables of their own.
    from_env: bool,
}

impl<'s, 't> Section<'s, 't> {
    pub(super) fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.name)
    }

    /// Notes a key, where somebody wants to know.
    fn note(&mut self, key: &'static str, kind: impl FnOnce() -> Kind, default: impl FnOnce() -> Option<Value>) {
        let Some(reference) = &mut self.reader.reference else { return };
        let (kind, default) = (kind(), default());
        let (section, name) = (screaming(&self.name), screaming(key));
        let variable = match kind {
            Kind::Map => format!("{PREFIX}{section}_{name}__NAME"),
            _ => format!("{PREFIX}{section}__{name}"),
        };
        let variable = self.from_env.then_some(variable);
        let key = Key { name: key, kind, default, required: false, variable, about: String::new() };
        reference.key(&self.name, key);
    }

    /// The key that was asked for last cannot be missing.
    fn require(&mut self, key: &'static str) {
        if let Some(reference) = &mut self.reader.reference {
            reference.require(&self.name, key);
        }
    }

    fn take(&mut self, key: &'static str) -> Option<Found<'s>> {
        self.keys.push(key);
        if self.from_env {
            self.reader.known.insert(self.key(key));
            let variable = format!("{}__{}", screaming(&self.name), screaming(key));
            if let Some(text) = self.reader.env.get(&variable) {
                let found = Found::Variable { name: format!("{PREFIX}{variable}"), text: text.clone() };
                self.reader.used.insert(variable);
                return Some(found);
            }
        }
        self.table?.get(key).map(Found::File)
    }

    fn fault(&mut self, at: &At, key: &str, message: impl Into<String>) {
        let key = self.key(key);
        let fault = match at {
            At::Byte(byte) => Fault::at(self.reader.file, self.reader.text, *byte, &key, message),
            At::Variable(name) => Fault::of(name, &key, message),
        };
        self.reader.faults.push(fault);
    }

    /// A fault of a value that was read; `key` must be a key of this section. Placed at the value.
    pub(super) fn refuse(&mut self, key: &'static str, message: impl Into<String>) {
        let variable = format!("{}__{}", screaming(&self.name), screaming(key));
        let at = if self.from_env && self.reader.env.contains_key(&variable) {
            At::Variable(format!("{PREFIX}{variable}"))
        } else {
            At::Byte(self.table.and_then(|table| table.get(key)).map_or(0, |value| value.span().start))
        };
        self.fault(&at, key, message);
    }

    fn read<T>(&mut self, key: &'static str, default: T, read: impl FnOnce(&Found<'s>) -> Result<T, String>) -> T {
        let Some(found) = self.take(key) else { return default };
        match read(&found) {
            Ok(value) => value,
            Err(message) => {
                self.fault(&found.at(), key, message);
                default
            }
        }
    }

    /// A string that is not empty.
    pub(super) fn text(&mut self, key: &'static str, default: &str) -> String {
        self.note(key, || Kind::Text, || Some(default.into()));
        self.plain(key, default)
    }

    fn plain(&mut self, key: &'static str, default: &str) -> String {
        self.read(key, default.to_owned(), Found::text)
    }

    /// A path.
    pub(super) fn path(&mut self, key: &'static str, default: &str) -> PathBuf {
        self.note(key, || Kind::Path, || Some(default.into()));
        self.plain(key, default).into()
    }

    fn given(&mut self, key: &'static str) -> Option<String> {
        self.read(key, None, |found| found.text().map(Some))
    }

    /// A string, or nothing.
    pub(super) fn optional(&mut self, key: &'static str) -> Option<String> {
        self.note(key, || Kind::Text, || None);
        self.given(key)
    }

    /// A path, or nothing.
    pub(super) fn optional_path(&mut self, key: &'static str) -> Option<PathBuf> {
        self.note(key, || Kind::Path, || None);
        self.given(key).map(PathBuf::from)
    }

    /// A string without which its section is none.
    pub(super) fn required(&mut self, key: &'static str) -> Option<String> {
        let text = self.optional(key);
        self.require(key);
        text
    }

    /// A path without which its section is none.
    pub(super) fn required_path(&mut self, key: &'static str) -> Option<PathBuf> {
        let path = self.optional_path(key);
        self.require(key);
        path
    }

    /// A secret without which its section is none.
    pub(super) fn required_secret(&mut self, key: &'static str) -> Option<Secret> {
        let secret = self.secret(key);
        self.require(key);
        secret
    }

    /// A string; empty, the default, is nothing.
    pub(super) fn or_none(&mut self, key: &'static str) -> Option<String> {
        self.note(key, || Kind::Text, || Some("".into()));
        self.read(key, None, |found| if found.is_empty() { Ok(None) } else { found.text().map(Some) })
    }

    /// A path, whether it is there, and whether it is empty.
    pub(super) fn perhaps(&mut self, key: &'static str) -> Option<Option<String>> {
        self.note(key, || Kind::Path, || Some("".into()));
        self.read(
            key,
            None,
            |found| if found.is_empty() { Ok(Some(None)) } else { found.text().map(|text| Some(Some(text))) },
        )
    }

    /// A secret, or nothing. `env:NAME` takes it from that variable.
    pub(super) fn secret(&mut self, key: &'static str) -> Option<Secret> {
        self.note(key, || Kind::Secret, || None);
        let text = self.given(key)?;
        let Some(name) = text.strip_prefix("env:") else { return Some(Secret::new(text)) };
        match self.reader.environment.get(name) {
            Some(value) if !value.is_empty() => Some(Secret::new(value.clone())),
            _ => {
                self.refuse(key, format!("the variable {name} is not set"));
                None
            }
        }
    }

    /// A string that parses as `T`.
    pub(super) fn address(&mut self, key: &'static str, default: SocketAddr) -> SocketAddr {
        self.note(key, || Kind::Address, || Some(default.to_string().into()));
        self.read(key, default, |found| {
            found.text()?.parse().map_err(|_| format!("must be an address and a port, such as \"{default}\""))
        })
    }

    /// true or false.
    pub(super) fn flag(&mut self, key: &'static str, default: bool) -> bool {
        self.note(key, || Kind::Flag, || Some(default.into()));
        self.read(key, default, |found| found.flag().ok_or_else(|| "must be true or false".to_owned()))
    }

    /// An integer within bounds.
    pub(super) fn number<T>(&mut self, key: &'static str, default: T, bounds: RangeInclusive<T>) -> T
    where
        T: TryFrom<i64> + PartialOrd + Display,
    {
        let whole = |value: &T| value.to_string().parse::<i64>().unwrap_or(i64::MAX);
        let kind = || Kind::Integer(whole(bounds.start()), whole(bounds.end()));
        self.note(key, kind, || Some(whole(&default).into()));
        self.read(key, default, |found| {
            let wrong = || format!("must be an integer from {} to {}", bounds.start(), bounds.end());
            let value = found.integer().and_then(|value| T::try_from(value).ok());
            value.filter(|value| bounds.contains(value)).ok_or_else(wrong)
        })
    }

    /// A percentage from 0 to 100 with at most three decimals.
    pub(super) fn percent(&mut self, key: &'static str, default: u32) -> super::Percent {
        self.note(key, || Kind::Percent, || Some(default.into()));
        self.read(key, super::Percent(default.saturating_mul(1_000)), |found| {
            let wrong = || "must be a number from 0 to 100, with at most three decimals".to_owned();
            found.decimal(3).filter(|value| *value <= 100_000).map(super::Percent).ok_or_else(wrong)
        })
    }

    /// A share from 0 to 1 with at most six decimals.
    pub(super) fn share(&mut self, key: &'static str, default: super::Share) -> super::Share {
        let whole = f64::from(super::Share::WHOLE.0);
        self.note(key, || Kind::Share, || Some(json!(f64::from(default.0) / whole)));
        self.read(key, default, |found| {
            let wrong = || "must be a number from 0 to 1, with at most six decimals".to_owned();
            found.decimal(6).map(super::Share).filter(|share| *share <= super::Share::WHOLE).ok_or_else(wrong)
        })
    }

    /// A duration such as "10s", "100ms", "5m", "24h", "7d" or "1h30m", within bounds.
    pub(super) fn duration(
        &mut self,
        key: &'static str,
        default: Duration,
        bounds: RangeInclusive<Duration>,
    ) -> Duration {
        let kind = || Kind::Duration(*bounds.start(), *bounds.end());
        self.note(key, kind, || Some(write_duration(default).into()));
        self.read(key, default, |found| {
            let range = || format!("from {} to {}", write_duration(*bounds.start()), write_duration(*bounds.end()));
            let value =
                found.text().ok().and_then(|text| read_duration(&text)).ok_or_else(|| {
                    format!("must be a duration {}, such as \"{}\"", range(), write_duration(default))
                })?;
            if bounds.contains(&value) { Ok(value) } else { Err(format!("must be {}", range())) }
        })
    }

    /// One of several names. With a default that has none it cannot be left out.
    pub(super) fn choice<T: Copy + PartialEq>(&mut self, key: &'static str, default: T, choices: &[(&str, T)]) -> T {
        let name = choices.iter().find(|(_, value)| *value == default).map(|(name, _)| *name);
        self.note(key, || Kind::Choice(names(choices)), || name.map(Value::from));
        if name.is_none() {
            self.require(key);
        }
        self.read(key, default, |found| pick(&found.text()?, choices))
    }

    /// An array of strings; in a variable also separated by commas.
    pub(super) fn texts(&mut self, key: &'static str, default: &[&str]) -> Vec<String> {
        self.note(key, || Kind::Texts, || Some(json!(default)));
        let default = default.iter().map(ToString::to_string).collect();
        self.read(key, default, Found::texts)
    }

    /// An array of names out of several, without repetition.
    pub(super) fn choices<T: Copy + Ord>(&mut self, key: &'static str, choices: &[(&str, T)]) -> BTreeSet<T> {
        self.note(key, || Kind::Choices(names(choices)), || Some(json!(names(choices))));
        let all = choices.iter().map(|(_, value)| *value).collect();
        self.read(key, all, |found| found.texts()?.iter().map(|name| pick(name, choices)).collect())
    }

    /// A table of strings, integers and booleans as strings. Nested tables are dotted names: `a.b = 1` and `"a.b" = 1` are
    /// the same. A variable `RUNWARDEN_<SECTION>_<KEY>__A_B` sets `a.b`.
    pub(super) fn map(&mut self, key: &'static str) -> BTreeMap<String, String> {
        self.note(key, || Kind::Map, || None);
        self.keys.push(key);
        let section = self.key(key);
        self.reader.known.insert(section.clone());
        let mut map = BTreeMap::new();
        if let Some(value) = self.table.and_then(|table| table.get(key)) {
            match value.get_ref() {
                DeValue::Table(table) => self.flatten(key, "", table, &mut map),
                _ => self.fault(&At::Byte(value.span().start), key, format!("must be a section, [{section}]")),
            }
        }
        let prefixes =
            [format!("{}__", screaming(&section)), format!("{}__{}__", screaming(&self.name), screaming(key))];
        for (name, value) in &self.reader.env {
            if let Some(rest) = prefixes.iter().find_map(|prefix| name.strip_prefix(prefix)) {
                self.reader.used.insert(name.clone());
                let named = map.keys().find(|known| screaming(known) == rest).cloned();
                map.insert(named.unwrap_or_else(|| rest.to_lowercase().replace('_', ".")), value.clone());
            }
        }
        map
    }

    fn flatten(&mut self, key: &str, prefix: &str, table: &DeTable<'t>, map: &mut BTreeMap<String, String>) {
        for (name, value) in table {
            let name = format!("{prefix}{}", name.get_ref());
            match value.get_ref() {
                DeValue::Table(table) => self.flatten(key, &format!("{name}."), table, map),
                DeValue::String(text) => {
                    map.insert(name, text.to_string());
                }
                DeValue::Integer(number) => {
                    map.insert(name, number.to_string());
                }
                DeValue::Float(number) => {
                    map.insert(name, number.to_string());
                }
                DeValue::Boolean(flag) => {
                    map.insert(name, flag.to_string());
                }
                DeValue::Datetime(_) | DeValue::Array(_) => {
                    let at = At::Byte(value.span().start);
                    self.fault(&at, &format!("{key}.{name}"), "must be a string, a number, true or false");
                }
            }
        }
    }

    /// A section within this one, which may be absent: `None`. One that is there and lacks a required key is a fault.
    pub(super) fn nested<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&mut Section<'_, 't>) -> Option<T>,
    ) -> Option<T> {
        self.keys.push(key);
        let name = self.key(key);
        self.reader.known.insert(name.clone());
        let found = self.table.and_then(|table| table.get(key));
        let table = match found.map(|value| (value.span().start, value.get_ref())) {
            Some((_, DeValue::Table(table))) => Some(table),
            Some((at, _)) => {
                self.fault(&At::Byte(at), key, format!("must be a section, [{name}]"));
                None
            }
            None => None,
        };
        self.reader.note(&name, Form::Table);
        let prefix = format!("{}__", screaming(&name));
        let there = table.is_some() || self.reader.env.keys().any(|variable| variable.starts_with(&prefix));
        let at = found.map_or(0, |value| value.span().start);
        let mut section =
            Section { reader: &mut *self.reader, name: name.clone(), table, keys: Vec::new(), from_env: true };
        let value = read(&mut section);
        section.finish();
        if there && value.is_none() {
            let (file, text) = (self.reader.file, self.reader.text);
            self.reader.faults.push(Fault::at(file, text, at, &name, "lacks a required key"));
        }
        value.filter(|_| there)
    }

    /// An array of tables, each read by `read`.
    pub(super) fn entries<T>(
        &mut self,
        key: &'static str,
        mut read: impl FnMut(&mut Section<'_, 't>) -> Option<T>,
    ) -> Vec<T> {
        self.keys.push(key);
        let path = self.key(key);
        self.reader.known.insert(path.clone());
        if self.reader.reference.is_some() {
            // an entry is read for what it asks for, whether or not there is one
            self.reader.note(&path, Form::Array);
            let (reader, name) = (&mut *self.reader, path.clone());
            read(&mut Section { reader, name, table: None, keys: Vec::new(), from_env: false });
        }
        let Some(value) = self.table.and_then(|table| table.get(key)) else { return Vec::new() };
        let wrong = format!("must be an array of sections, [[{path}]]");
        let DeValue::Array(entries) = value.get_ref() else {
            self.fault(&At::Byte(value.span().start), key, wrong);
            return Vec::new();
        };
        let mut out = Vec::new();
        for (i, entry) in entries.iter().enumerate() {
            let DeValue::Table(table) = entry.get_ref() else {
                self.fault(&At::Byte(entry.span().start), key, wrong.clone());
                continue;
            };
            let name = format!("{path}[{i}]");
            let mut section =
                Section { reader: &mut *self.reader, name, table: Some(table), keys: Vec::new(), from_env: false };
            let value = read(&mut section);
            section.finish();
            if value.is_none() {
                let (file, text) = (self.reader.file, self.reader.text);
                let at = entry.span().start;
                self.reader.faults.push(Fault::at(file, text, at, &format!("{path}[{i}]"), "lacks a required key"));
            }
            out.extend(value);
        }
        out
    }

    fn finish(self) {
        let Some(table) = self.table else { return };
        for key in table.keys() {
            let name: &str = key.get_ref();
            if !self.keys.contains(&name) {
                let message = unknown("key", name, self.keys.iter().copied());
                let (file, text) = (self.reader.file, self.reader.text);
                let fault = Fault::at(file, text, key.span().start, &self.key(name), message);
                self.reader.faults.push(fault);
            }
        }
    }
}

fn names<T>(choices: &[(&str, T)]) -> Vec<String> {
    choices.iter().map(|(name, _)| (*name).to_owned()).collect()
}

fn pick<T: Copy>(name: &str, choices: &[(&str, T)]) -> Result<T, String> {
    choices.iter().find(|(known, _)| *known == name).map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        match nearest(name, names.iter().copied()) {
            Some(near) => format!("did you mean {near}? It is one of {}", names.join(", ")),
            None => format!("must be one of {}", names.join(", ")),
        }
    })
}

const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Reads "10s", "100ms", "1h30m".
pub(crate) fn read_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut millis = 0_u64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let (_, size) = UNITS.iter().find(|(name, _)| *name == &rest[..unit])?;
        millis = millis.checked_add(number.checked_mul(*size)?)?;
        rest = &rest[unit..];
    }
    (!text.is_empty()).then(|| Duration::from_millis(millis))
}

pub(crate) fn write_duration(value: Duration) -> String {
    let millis = u64::try_from(value.as_millis()).unwrap_or(u64::MAX);
    let (name, size) = UNITS.iter().find(|(_, size)| millis >= *size && millis % size == 0).unwrap_or(&("s", 1_000));
    format!("{}{name}", millis / size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units_and_may_be_composed() {
        for (text, millis) in
            [("10s", 10_000), ("100ms", 100), ("5m", 300_000), ("24h", 86_400_000), ("7d", 604_800_000)]
        {
            assert_eq!(read_duration(text), Some(Duration::from_millis(millis)));
            let shortest = if text == "24h" { "1d" } else { text };
            assert_eq!(write_duration(Duration::from_millis(millis)), shortest);
        }
        assert_eq!(read_duration("1h30m"), Some(Duration::from_secs(5_400)));
        for bad in ["", "10", "s", "10 s", "-1s", "1.5s", "10x", "99999999999999999999s", "18446744073709551615d"] {
            assert_eq!(read_duration(bad), None, "{bad}");
        }
    }
}
