//! What may be kept of free-form fields: the allow-list, and the names that are never kept.
//!
//! A name is forbidden when any run of its dotted segments, counted from the root of the attributes, is a forbidden name;
//! so `prompt`, `llm.prompt`, `{"llm":{"prompt":…}}` and `prompt.text` all are. Case, `_`, `-` and spaces do not matter, so
//! neither do `userName` and `user_name`. A trailing `.*` says "and everything below", which any forbidden name does anyway.

use std::collections::{BTreeMap, BTreeSet};

use rustc_hash::FxHashSet;
use serde_json::value::RawValue;

use super::dead::cut;
use super::parse::{object, string};

/// Names of prompt content and personal data that are dropped wherever they appear. The default of `[telemetry] forbidden`.
pub const FORBIDDEN: &[&str] = &[
    "prompt",
    "prompts",
    "prompt_text",
    "user_prompt",
    "system_prompt",
    "message",
    "messages",
    "completion",
    "completions",
    "response_text",
    "input",
    "inputs",
    "output",
    "outputs",
    "content",
    "contents",
    "instructions",
    "tool_arguments",
    "tool_result",
    "gen_ai.input.messages",
    "gen_ai.output.messages",
    "gen_ai.system_instructions",
    "gen_ai.prompt",
    "gen_ai.completion",
    "gen_ai.tool.call.arguments",
    "gen_ai.tool.call.result",
    "gen_ai.tool.definitions",
    "gen_ai.retrieval.*",
    "gen_ai.evaluation.explanation",
    "email",
    "email_address",
    "phone",
    "phone_number",
    "user_name",
    "full_name",
    "first_name",
    "last_name",
    "address",
    "ip",
    "ip_address",
    "client_ip",
    "client.address",
    "enduser.id",
    "ssn",
    "date_of_birth",
    "password",
    "secret",
    "authorization",
    "api_key",
    "access_token",
];

/// Longest attribute value, bytes (of the text of a string, of the JSON of anything else).
pub(super) const MAX_ATTRIBUTE: usize = 256;
/// Most labels of one event.
pub(super) const MAX_LABELS: usize = 64;
/// Longest label value, bytes; longer ones are cut.
const MAX_LABEL: usize = 512;

/// Compiled allow-list and forbidden names.
#[derive(Debug, Clone)]
pub struct Redactor {
    allowed: BTreeSet<String>,
    forbidden: FxHashSet<String>,
    max_depth: usize,
}

/// Why free-form content makes a record dead. The text names the fault, never the content.
pub(super) type Fault = &'static str;

impl Redactor {
    /// From the names of `[telemetry] attributes` and `forbidden`, and the deepest nesting read. Names that are both are
    /// never kept.
    pub fn new<S: AsRef<str>>(
        attributes: impl IntoIterator<Item = S>,
        forbidden: impl IntoIterator<Item = S>,
        max_depth: usize,
    ) -> Self {
        let forbidden = forbidden.into_iter().map(|name| normal(name.as_ref())).collect();
        let mut redactor = Self { allowed: BTreeSet::new(), forbidden, max_depth };
        for name in attributes {
            if !redactor.forbids(name.as_ref()) {
                redactor.allowed.insert(name.as_ref().to_owned());
            }
        }
        redactor
    }

    /// Whether a dotted name, or anything it lies under, is forbidden.
    pub fn forbids(&self, path: &str) -> bool {
        let path = normal(path);
        let starts = std::iter::once(0).chain(path.match_indices('.').map(|(at, _)| at + 1));
        starts.clone().any(|start| {
            let ends = path[start..].match_indices('.').map(|(at, _)| start + at).chain(std::iter::once(path.len()));
            ends.into_iter().any(|end| self.forbidden.contains(&path[start..end]))
        })
    }

    /// The name, if fields of that name outside the contract are kept as attributes.
    pub(super) fn kept_name(&self, name: &str) -> Option<&str> {
        self.allowed.get(name).map(String::as_str)
    }

    /// The allow-listed parts of unknown fields and of `attributes` as canonical JSON text (sorted names); `None` if nothing
    /// is left. A member of `attributes` wins over a top-level field of the same name. Counts what was dropped or cut.
    pub(super) fn attributes(
        &self,
        extra: &[(&str, &RawValue)],
        attributes: Option<&RawValue>,
        lost: &mut u64,
    ) -> Result<Option<String>, Fault> {
        let mut kept: BTreeMap<String, String> = BTreeMap::new();
        for (name, raw) in extra {
            self.keep(name, raw, &mut kept, lost)?;
        }
        if let Some(raw) = attributes {
            let members = object(raw.get()).ok_or("attributes is not an object")?;
            for (name, raw) in &members {
                if self.kept_name(name).is_some() {
                    self.keep(name, raw, &mut kept, lost)?;
                } else {
                    *lost += 1;
                }
            }
        }
        Ok((!kept.is_empty()).then(|| write_object(&kept)))
    }

    fn keep(
        &self,
        name: &str,
        raw: &RawValue,
        kept: &mut BTreeMap<String, String>,
        lost: &mut u64,
    ) -> Result<(), Fault> {
        match self.clean(raw.get(), name, 1)? {
            Some(text) if text.starts_with('"') || text.len() <= MAX_ATTRIBUTE => {
                kept.insert(name.to_owned(), text);
            }
            Some(_) => *lost += 1,
            None => {}
        }
        Ok(())
    }

    /// A value without forbidden members, strings cut; `None` for null.
    fn clean(&self, raw: &str, path: &str, depth: usize) -> Result<Option<String>, Fault> {
        if depth > self.max_depth {
            return Err("attributes are nested too deeply");
        }
        match raw.as_bytes().first() {
            Some(b'n') | None => Ok(None),
            Some(b'"') => {
                let text = string(raw).ok_or("attributes hold a string that is not one")?;
                let mut out = String::new();
                write_string(&mut out, cut(&text, MAX_ATTRIBUTE));
                Ok(Some(out))
            }
            Some(b'{') => {
                let mut kept = BTreeMap::new();
                for (name, value) in object(raw).ok_or("attributes hold an object that is not one")? {
                    let path = format!("{path}.{name}");
                    if self.forbids(&path) {
                        continue;
                    }
                    match self.clean(value.get(), &path, depth + 1)? {
                        Some(text) => {
                            kept.insert(name.into_owned(), text);
                        }
                        // a later null takes an earlier value of the same name back: the last one wins
                        None => {
                            kept.remove(name.as_ref());
                        }
                    }
                }
                Ok(Some(write_object(&kept)))
            }
            Some(b'[') => {
                let items: Vec<&RawValue> =
                    serde_json::from_str(raw).map_err(|_| "attributes hold an array that is not one")?;
                let mut out = String::from("[");
                for (i, item) in items.iter().enumerate() {
                    if i > 0 {
                        out.push(',');
                    }
                    out.push_str(self.clean(item.get(), path, depth + 1)?.as_deref().unwrap_or("null"));
                }
                out.push(']');
                Ok(Some(out))
            }
            Some(_) => Ok(Some(raw.to_owned())),
        }
    }

    /// Labels as canonical JSON text: strings only, forbidden names dropped, values cut; `None` if nothing is left.
    pub(super) fn labels(&self, raw: &RawValue, lost: &mut u64) -> Result<Option<String>, Fault> {
        let members = object(raw.get()).ok_or("labels is not an object")?;
        let mut kept = BTreeMap::new();
        for (name, value) in members {
            if name.len() > MAX_ATTRIBUTE || self.forbids(&name) {
                *lost += 1;
            } else if value.get() == "null" {
                kept.remove(name.as_ref());
            } else {
                let text = string(value.get()).ok_or("labels hold something else than strings")?;
                let mut out = String::new();
                write_string(&mut out, cut(&text, MAX_LABEL));
                kept.insert(name.into_owned(), out);
            }
        }
        if kept.len() > MAX_LABELS {
            return Err("labels has more than 64 members");
        }
        Ok((!kept.is_empty()).then(|| write_object(&kept)))
    }
}

/// Lower case without `_`, `-` and spaces, and without a trailing `.*`.
fn normal(name: &str) -> String {
    let name = name.strip_suffix(".*").unwrap_or(name);
    name.chars().filter(|c| !matches!(c, '_' | '-' | ' ')).flat_map(char::to_lowercase).collect()
}

fn write_object(members: &BTreeMap<String, String>) -> String {
    let mut out = String::from("{");
    for (i, (name, value)) in members.iter().enumerate() {
        if i > 0 {
            out.push(',');
        }
        write_string(&mut out, name);
        out.push(':');
        out.push_str(value);
    }
    out.push('}');
    out
}

/// Appends a JSON string.
pub(super) fn write_string(out: &mut String, text: &str) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    out.push('"');
    let mut done = 0;
    for (at, byte) in text.bytes().enumerate() {
        let short = match byte {
            b'"' => "\\\"",
            b'\\' => "\\\\",
            b'\n' => "\\n",
            b'\r' => "\\r",
            b'\t' => "\\t",
            0..=0x1f => "",
            _ => continue,
        };
        out.push_str(&text[done..at]);
        if short.is_empty() {
            out.push_str("\\u00");
            out.push(char::from(HEX[usize::from(byte >> 4)]));
            out.push(char::from(HEX[usize::from(byte & 15)]));
        } else {
            out.push_str(short);
        }
        done = at + 1;
    }
    out.push_str(&text[done..]);
    out.push('"');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn redactor(allowed: &[&str]) -> Redactor {
        Redactor::new(allowed.iter().copied(), FORBIDDEN.iter().copied(), 8)
    }

    fn attributes(allowed: &[&str], json: &str) -> Result<Option<String>, Fault> {
        let raw: &RawValue = serde_json::from_str(json).unwrap();
        redactor(allowed).attributes(&[], Some(raw), &mut 0)
    }

    #[test]
    fn forbidden_names_match_in_any_dress_and_at_any_depth() {
        let r = redactor(&[]);
        for name in [
            "prompt",
            "Prompt",
            "llm.prompt",
            "prompt.text",
            "systemPrompt",
            "system-prompt",
            "user_name",
            "userName",
            "gen_ai.input.messages",
            "gen_ai.retrieval.documents",
            "gen_ai.retrieval",
            "a.gen_ai.tool.call.arguments.0",
            "http.client.ip",
            "EMAIL",
        ] {
            assert!(r.forbids(name), "{name}");
        }
        for name in ["prompt_tokens", "input_tokens", "region", "content_type", "shipment", "tip", "gen_ai.usage"] {
            assert!(!r.forbids(name), "{name}");
        }
    }

    #[test]
    fn only_listed_attributes_stay_and_forbidden_members_go_at_any_depth() {
        let json =
            r#"{"region":"eu","other":"x","deep":{"a":[{"prompt":"S","b":1}],"gen_ai":{"prompt":"S"}},"prompt":"S"}"#;
        let got = attributes(&["region", "deep", "prompt"], json).unwrap().unwrap();
        assert_eq!(got, r#"{"deep":{"a":[{"b":1}],"gen_ai":{}},"region":"eu"}"#);
    }

    #[test]
    fn long_strings_are_cut_and_large_structures_dropped() {
        let long = "é".repeat(200);
        let json = format!(r#"{{"s":"{long}","l":["{long}","{long}"]}}"#);
        let got = attributes(&["s", "l"], &json).unwrap().unwrap();
        assert_eq!(got, format!(r#"{{"s":"{}"}}"#, "é".repeat(128)));
    }

    #[test]
    fn deep_nesting_is_refused_not_followed() {
        let json = format!(r#"{{"a":{}1{}}}"#, "[".repeat(100), "]".repeat(100));
        assert_eq!(attributes(&["a"], &json), Err("attributes are nested too deeply"));
    }

    #[test]
    fn labels_are_strings() {
        let r = redactor(&[]);
        let labels = |json: &str| r.labels(serde_json::from_str(json).unwrap(), &mut 0);
        assert_eq!(labels(r#"{"b":"2","a":"1","email":"S","n":null}"#), Ok(Some(r#"{"a":"1","b":"2"}"#.to_owned())));
        assert_eq!(labels(r#"{"a":1}"#), Err("labels hold something else than strings"));
        assert_eq!(labels("[]"), Err("labels is not an object"));
        assert_eq!(labels("{}"), Ok(None));
    }

    proptest! {
        #[test]
        fn written_strings_are_the_json_of_the_text(text in ".*") {
            let mut out = String::new();
            write_string(&mut out, &text);
            prop_assert_eq!(serde_json::from_str::<String>(&out).unwrap(), text);
        }
    }
}
