//! The reference of the configuration: every key that is read, as Markdown and as JSON Schema.
//!
//! Keys, types, defaults and bounds are noted where they are read ([`super::reader`]); what they mean is said by the comments of the
//! shipped file, which stand beside the defaults. A test has it that every key has one.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use super::reader::write_duration;

/// The shipped file.
const SHIPPED: &str = include_str!("../../config/runwarden.toml");

/// What values a key takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A string.
    Text,
    /// Path of a file or a directory.
    Path,
    /// A string that never shows.
    Secret,
    /// Address and port.
    Address,
    /// true or false.
    Flag,
    /// An integer within bounds.
    Integer(i64, i64),
    /// A percentage with at most three decimals.
    Percent,
    /// A share with at most six decimals.
    Share,
    /// A duration within bounds.
    Duration(Duration, Duration),
    /// One of several names.
    Choice(Vec<String>),
    /// A list of strings.
    Texts,
    /// A list of names out of several.
    Choices(Vec<String>),
    /// A table of names and values.
    Map,
}

impl Kind {
    /// In words, for a cell of a table.
    fn words(&self) -> String {
        let names = |names: &[String]| names.iter().map(|name| format!("`\"{name}\"`")).collect::<Vec<_>>().join(", ");
        match self {
            Self::Text => "string".to_owned(),
            Self::Path => "path".to_owned(),
            Self::Secret => "secret".to_owned(),
            Self::Address => "address and port".to_owned(),
            Self::Flag => "true or false".to_owned(),
            Self::Integer(least, most) => format!("integer, {least} to {most}"),
            Self::Percent => "number, 0 to 100".to_owned(),
            Self::Share => "number, 0 to 1".to_owned(),
            Self::Duration(least, most) => {
                format!("duration, {} to {}", write_duration(*least), write_duration(*most))
            }
            Self::Choice(all) => names(all),
            Self::Texts => "list of strings".to_owned(),
            Self::Choices(all) => format!("list of {}", names(all)),
            Self::Map => "table".to_owned(),
        }
    }

    fn schema(&self) -> Value {
        match self {
            Self::Text | Self::Path | Self::Secret | Self::Address => json!({"type": "string"}),
            Self::Flag => json!({"type": "boolean"}),
            Self::Integer(least, most) => json!({"type": "integer", "minimum": least, "maximum": most}),
            Self::Percent => json!({"type": "number", "minimum": 0, "maximum": 100}),
            Self::Share => json!({"type": "number", "minimum": 0, "maximum": 1}),
            Self::Duration(..) => json!({"type": "string", "pattern": "^([0-9]+(ms|s|m|h|d))+$"}),
            Self::Choice(names) => json!({"type": "string", "enum": names}),
            Self::Texts => json!({"type": "array", "items": {"type": "string"}}),
            Self::Choices(names) => json!({"type": "array", "items": {"type": "string", "enum": names}}),
            Self::Map => json!({"type": "object"}),
        }
    }
}

/// How a section is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `[name]`
    Table,
    /// `[[name]]`, as often as there are entries.
    Array,
}

/// A key that was asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct Key {
    /// Its name in its section.
    pub name: &'static str,
    /// What values it takes.
    pub kind: Kind,
    /// What holds without it; `None`: nothing.
    pub default: Option<Value>,
    /// Whether its section is refused without it.
    pub required: bool,
    /// The variable that sets it; entries of arrays have none.
    pub variable: Option<String>,
    /// What it means.
    pub about: String,
}

/// A section that was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// Its dotted name.
    pub name: String,
    /// How it is written.
    pub form: Form,
    /// What it is for, where that is said.
    pub about: String,
    /// In the order of reading.
    pub keys: Vec<Key>,
}

/// Every section.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Reference(pub Vec<Part>);

impl Reference {
    /// Notes a section.
    pub(super) fn part(&mut self, name: &str, form: Form) {
        self.0.push(Part { name: name.to_owned(), form, about: String::new(), keys: Vec::new() });
    }

    /// Notes a key of a section that was noted.
    pub(super) fn key(&mut self, part: &str, key: Key) {
        if let Some(part) = self.0.iter_mut().find(|known| known.name == part) {
            part.keys.push(key);
        }
    }

    /// A key that was noted cannot be left out.
    pub(super) fn require(&mut self, part: &str, name: &str) {
        let part = self.0.iter_mut().find(|known| known.name == part);
        if let Some(key) = part.and_then(|part| part.keys.iter_mut().find(|key| key.name == name)) {
            key.required = true;
        }
    }

    /// Takes what sections and keys mean from the comments of the shipped file.
    pub(super) fn described(mut self) -> Self {
        let texts = texts(SHIPPED);
        for part in &mut self.0 {
            part.about = texts.get(&part.name).cloned().unwrap_or_default();
            for key in &mut part.keys {
                key.about = texts.get(&format!("{}.{}", part.name, key.name)).cloned().unwrap_or_default();
            }
        }
        self
    }

    /// As a page of the manual.
    pub fn markdown(&self) -> String {
        let mut out = String::from(
            "# Configuration reference\n\n\
             Every key: this page is what `runwarden config reference` prints, made from what the program reads and from the comments of \
             [`config/runwarden.toml`](../config/runwarden.toml). [configuration.md](configuration.md) says what wins, and what to think \
             about. `runwarden config reference --format json` prints the JSON Schema, which is \
             [configuration.schema.json](configuration.schema.json).\n\n\
             Durations are text such as `\"100ms\"`, `\"10s\"`, `\"1h30m\"`, `\"7d\"`. Lists in variables are separated by commas. A secret \
             `\"env:NAME\"` is taken from that variable.\n",
        );
        for part in self.0.iter().filter(|part| !part.keys.is_empty() || !part.about.is_empty()) {
            let heading = match part.form {
                Form::Table => format!("[{}]", part.name),
                Form::Array => format!("[[{}]]", part.name),
            };
            said(&mut out, format_args!("\n## `{heading}`\n"));
            if !part.about.is_empty() {
                said(&mut out, format_args!("\n{}\n", cell(&part.about)));
            }
            if part.keys.is_empty() {
                continue;
            }
            let variables = part.form == Form::Table;
            let (title, rule) = if variables { (" variable |", "---|") } else { ("", "") };
            said(&mut out, format_args!("\n| key | type | default |{title} meaning |\n|---|---|---|{rule}---|\n"));
            for key in &part.keys {
                let default = match (&key.default, key.required) {
                    (_, true) => "required".to_owned(),
                    (Some(default), _) => format!("`{}`", toml(default)),
                    (None, _) => String::new(),
                };
                let variable = match &key.variable {
                    Some(variable) => format!(" `{variable}` |"),
                    None if variables => " |".to_owned(),
                    None => String::new(),
                };
                let (kind, about) = (key.kind.words(), cell(&key.about));
                said(&mut out, format_args!("| `{}` | {kind} | {default} |{variable} {about} |\n", key.name));
            }
        }
        out
    }

    /// As JSON Schema, for editors and checks of TOML files.
    pub fn schema(&self) -> Value {
        let mut root = object("runwarden's configuration");
        for part in &self.0 {
            let mut schema = object(&part.about);
            let mut required = Vec::new();
            for key in &part.keys {
                let mut value = key.kind.schema();
                if let Some(map) = value.as_object_mut() {
                    map.insert("description".to_owned(), key.about.clone().into());
                    map.extend(key.default.clone().map(|default| ("default".to_owned(), default)));
                }
                if key.required {
                    required.push(key.name);
                }
                put(&mut schema, &[key.name], value);
            }
            if let Some(map) = schema.as_object_mut().filter(|_| !required.is_empty()) {
                map.insert("required".to_owned(), json!(required));
            }
            let value = match part.form {
                Form::Table => schema,
                Form::Array => json!({"type": "array", "items": schema}),
            };
            let path: Vec<&str> = part.name.split('.').collect();
            put(&mut root, &path, value);
        }
        if let Some(map) = root.as_object_mut() {
            map.insert("$schema".to_owned(), "http://json-schema.org/draft-07/schema#".into());
        }
        root
    }

    /// [`Reference::schema`] as a file.
    pub fn schema_text(&self) -> String {
        format!("{:#}\n", self.schema())
    }
}

fn object(about: &str) -> Value {
    let mut schema = json!({"type": "object", "properties": {}, "additionalProperties": false});
    if let Some(map) = schema.as_object_mut().filter(|_| !about.is_empty()) {
        map.insert("description".to_owned(), about.into());
    }
    schema
}

/// Puts a schema where a path of properties leads.
fn put(schema: &mut Value, path: &[&str], value: Value) {
    let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) else { return };
    match path {
        [] => {}
        [last] => {
            properties.insert((*last).to_owned(), value);
        }
        [first, rest @ ..] => {
            put(properties.entry((*first).to_owned()).or_insert_with(|| object("")), rest, value);
        }
    }
}

/// Writing to a text does not fail.
fn said(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).unwrap_or_default();
}

/// A text that does not end its cell, nor begin a tag.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('<', "&lt;")
}

/// A value as TOML writes it.
fn toml(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("[{}]", items.iter().map(toml).collect::<Vec<_>>().join(", ")),
        other => other.to_string(),
    }
}

/// What the comments of a configuration file say of sections and keys. A comment is of the settings below it, up to the next comment; one
/// right above a section is of the section. Where a key stands twice, the first counts.
fn texts(file: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let (mut section, mut said, mut open) = (String::new(), String::new(), false);
    for line in file.lines() {
        let bare = line.strip_prefix('#').unwrap_or(line);
        if line.is_empty() {
            (said, open) = (String::new(), false);
        } else if let Some(header) = bare.strip_prefix('[').filter(|_| bare.ends_with(']') && !bare.contains('"')) {
            section = header.trim_matches(['[', ']']).to_owned();
            let about = std::mem::take(&mut said);
            found.entry(section.clone()).or_insert(about);
            open = false;
        } else if let Some(text) = line.strip_prefix("# ").filter(|text| !text.starts_with(' ')) {
            // the first line after settings begins another comment
            if !open {
                said.clear();
            }
            open = true;
            let space = if said.is_empty() { "" } else { " " };
            said.extend([space, text]);
        } else {
            open = false;
            if let Some((key, _)) = bare.split_once(" = ").filter(|(key, _)| !key.starts_with([' ', '"'])) {
                found.entry(format!("{section}.{key}")).or_insert_with(|| said.clone());
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::reference;

    #[test]
    fn every_key_and_every_list_of_sections_says_what_it_means() {
        let reference = reference();
        let bare: Vec<String> = reference
            .0
            .iter()
            .flat_map(|part| part.keys.iter().map(move |key| (part, key)))
            .filter(|(_, key)| key.about.is_empty())
            .map(|(part, key)| format!("{}.{}", part.name, key.name))
            .collect();
        assert!(bare.is_empty(), "write a comment above these keys in config/runwarden.toml: {bare:#?}");
        let arrays = reference.0.iter().filter(|part| part.form == Form::Array);
        let bare: Vec<&String> = arrays.filter(|part| part.about.is_empty()).map(|part| &part.name).collect();
        assert!(bare.is_empty(), "write a comment above these sections in config/runwarden.toml: {bare:#?}");
    }

    #[test]
    fn every_key_of_the_shipped_file_is_one_that_is_read() {
        let reference = reference();
        let known: Vec<String> = reference
            .0
            .iter()
            .flat_map(|part| part.keys.iter().map(move |key| format!("{}.{}", part.name, key.name)))
            .chain(reference.0.iter().map(|part| part.name.clone()))
            .collect();
        for name in texts(SHIPPED).keys() {
            assert!(known.contains(name), "{name}");
        }
    }

    #[test]
    fn a_comment_is_of_what_stands_below_it() {
        let file = "# of the file\n\n# of a\n[a]\n# one\n# and two\n#x = 1\n#y = 2\n# three\n#z = [\n#    \"1\",\n#]\n\n\
                    # of b\n#[[a.b]]\n#x = 1\n[c]\n\"q.r\" = 1\n";
        let texts = texts(file);
        let of = |name: &str| texts[name].as_str();
        assert_eq!((of("a"), of("a.x"), of("a.y"), of("a.z")), ("of a", "one and two", "one and two", "three"));
        assert_eq!((of("a.b"), of("a.b.x"), of("c")), ("of b", "", ""));
        assert_eq!(texts.len(), 7);
    }

    #[test]
    fn kinds_defaults_bounds_and_variables_are_those_that_are_read() {
        let reference = reference();
        let key = |part: &str, name: &str| {
            let part = reference.0.iter().find(|known| known.name == part).unwrap();
            part.keys.iter().find(|key| key.name == name).unwrap().clone()
        };
        let partitions = key("topics", "partitions");
        assert_eq!((partitions.kind, partitions.default), (Kind::Integer(1, 10_000), Some(json!(6))));
        assert_eq!(partitions.variable.as_deref(), Some("RUNWARDEN_TOPICS__PARTITIONS"));
        assert_eq!(key("auth.jwt", "issuer").variable.as_deref(), Some("RUNWARDEN_AUTH_JWT__ISSUER"));
        let kind = key("channels.to", "type");
        assert!(kind.required && kind.variable.is_none(), "{kind:?}");
        assert_eq!(key("time", "future").default, Some(json!("5m")));
        assert_eq!(key("traces", "sample").default, Some(json!(0.01)));
        assert_eq!(key("kafka", "slot").default, None);
        assert!(key("auth.tokens", "token").required && key("auth.tokens", "token").kind == Kind::Secret);
    }
}
