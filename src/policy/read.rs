//! From the YAML tree to policies: every fault of a file at once, each with key, place and what would be right.

use std::sync::Arc;

use super::amount::Amount;
use super::fault::{Fault, nearest, quoted};
use super::guardian;
use super::model::{Mode, Place, Policy};
use super::yaml::{self, Entry, Node, Value};

mod condition;
pub(super) mod keys;
mod policy;

/// Faults reported of one file; the rest is counted.
const MAX_FAULTS: usize = 100;
/// Longest id, name of a metric, of a channel, of a model.
pub(super) const MAX_ID: usize = 200;
/// Longest free text and expression.
pub(super) const MAX_TEXT: usize = 4_096;
/// Most entries of a list of ids.
pub(super) const MAX_IDS: usize = 10_000;
/// Longest time a policy may state, in minutes or seconds: about 68 years in seconds.
pub(super) const MAX_SPAN: i64 = i32::MAX as i64;

/// Reads the policies of one file: YAML documents (JSON is YAML), each a policy or a guardian file (`policy: …`).
///
/// # Errors
/// Every fault of the file, in order of place; at most 100, and a last one that counts the rest.
///
/// ```
/// let text = "id: a\nname: A\nlimit: 1\nlimits: [{id: l, limit_type: X, metric: m, max: 1}]\n";
/// let faults = runwarden::policy::parse("p.yaml", text).unwrap_err();
/// assert_eq!(faults[0].to_string(), "p.yaml:3:1: limit: unknown key (did you mean `limits`?)");
/// ```
pub fn parse(file: &str, text: &str) -> Result<Vec<Policy>, Vec<Fault>> {
    let (policies, faults) = parse_partly(file, text);
    if faults.is_empty() { Ok(policies) } else { Err(faults) }
}

/// The policies that can be read, and the faults of the others.
pub(super) fn parse_partly(file: &str, text: &str) -> (Vec<Policy>, Vec<Fault>) {
    let mut syntax = Vec::new();
    let documents = yaml::documents(file, text, &mut syntax);
    let mut reader = Reader { file, faults: syntax };
    let mut policies = Vec::new();
    for document in &documents {
        let before = reader.faults.len();
        let policy = match &document.value {
            Value::Map(entries) if entries.iter().any(|e| e.key == "policy") => guardian::read(&mut reader, document),
            _ => reader.policy(document),
        };
        if reader.faults.len() == before {
            policies.extend(policy);
        }
    }
    let mut faults = reader.faults;
    faults.sort_by_key(|f| (f.line, f.column));
    if faults.len() > MAX_FAULTS {
        let more = faults.split_off(MAX_FAULTS).len();
        let at = faults.last().map_or(Place::default(), |f| Place { line: f.line, column: f.column });
        faults.push(Fault::new(file, at, "", format!("and {more} more faults"), None));
    }
    (policies, faults)
}

/// Reads `generation` of a `set.yaml`; an empty file is generation 0.
pub(super) fn parse_generation(file: &str, text: &str) -> Result<u64, Vec<Fault>> {
    let mut faults = Vec::new();
    let documents = yaml::documents(file, text, &mut faults);
    let mut reader = Reader { file, faults };
    let mut generation = 0;
    if let Some(extra) = documents.get(1) {
        reader.fault(extra.at, "", "a set.yaml is one document".to_owned(), None);
    }
    if let Some(map) = documents.first().and_then(|d| reader.map(d, "", &["generation"])) {
        generation = reader.whole(&map, "generation", 0, i64::MAX).and_then(|g| u64::try_from(g).ok()).unwrap_or(0);
    }
    if reader.faults.is_empty() { Ok(generation) } else { Err(reader.faults) }
}

/// Collects faults while typed values are taken out of the tree. A getter gives `None` for an absent, null or faulty key;
/// the fault is then recorded, and the document is refused as a whole.
pub(crate) struct Reader<'f> {
    file: &'f str,
    faults: Vec<Fault>,
}

/// A map whose keys have been checked, and the path to it.
pub(crate) struct Fields<'n> {
    entries: &'n [Entry],
    pub at: Place,
    path: String,
}

impl<'n> Fields<'n> {
    pub fn path(&self, key: &str) -> String {
        join(&self.path, key)
    }

    /// The key's value; null is absent.
    pub fn get(&self, key: &str) -> Option<&'n Node> {
        self.entries.iter().find(|e| e.key == key).map(|e| &e.node).filter(|n| n.value != Value::Null)
    }

    /// Where the key is, or the map if it is absent.
    pub fn place(&self, key: &str) -> Place {
        self.entries.iter().find(|e| e.key == key).map_or(self.at, |e| e.at)
    }

    /// Where the key's value is, or the map if it is absent.
    pub fn value_place(&self, key: &str) -> Place {
        self.get(key).map_or(self.at, |node| node.at)
    }

    pub fn entries(&self) -> &'n [Entry] {
        self.entries
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

impl<'f> Reader<'f> {
    /// Of a file, with what was found so far.
    pub fn new(file: &'f str, faults: Vec<Fault>) -> Self {
        Self { file, faults }
    }

    /// What was found.
    pub fn into_faults(self) -> Vec<Fault> {
        self.faults
    }
}

impl Reader<'_> {
    pub fn fault(&mut self, at: Place, path: &str, message: String, help: Option<String>) {
        self.faults.push(Fault::new(self.file, at, path, message, help));
    }

    pub fn file(&self) -> Arc<str> {
        Arc::from(self.file)
    }

    fn expected(&mut self, node: &Node, path: &str, what: &str) {
        self.fault(node.at, path, format!("expected {what}, found {}", node.kind()), None);
    }

    /// A map with only known keys, each once. An empty `known` allows every key.
    pub fn map<'n>(&mut self, node: &'n Node, path: &str, known: &[&str]) -> Option<Fields<'n>> {
        let Value::Map(entries) = &node.value else {
            self.expected(node, path, "a map of keys");
            return None;
        };
        let mut seen = std::collections::BTreeSet::new();
        for entry in entries {
            if !seen.insert(entry.key.as_str()) {
                self.fault(entry.at, &join(path, &entry.key), "the key is there twice".to_owned(), None);
            } else if !known.is_empty() && !known.contains(&entry.key.as_str()) {
                let help = match nearest(&entry.key, known.iter().copied()) {
                    Some(meant) => format!("did you mean `{meant}`?"),
                    None => format!("known are {}", known.join(" ")),
                };
                let key: String = entry.key.chars().take(64).collect();
                self.fault(entry.at, &join(path, &key), "unknown key".to_owned(), Some(help));
            }
        }
        Some(Fields { entries, at: node.at, path: path.to_owned() })
    }

    /// The map under a key.
    pub fn inner<'n>(&mut self, map: &Fields<'n>, key: &str, known: &[&str]) -> Option<Fields<'n>> {
        let path = map.path(key);
        map.get(key).and_then(|node| self.map(node, &path, known))
    }

    /// The entries of a list; an absent one is empty.
    pub fn list<'n>(&mut self, map: &Fields<'n>, key: &str, most: usize) -> &'n [Node] {
        match map.get(key) {
            None => &[],
            Some(Node { value: Value::List(items), .. }) if items.len() <= most => items,
            Some(node @ Node { value: Value::List(items), .. }) => {
                let message = format!("{} entries, at most {most} are read", items.len());
                self.fault(node.at, &map.path(key), message, None);
                &[]
            }
            Some(node) => {
                self.expected(node, &map.path(key), "a list");
                &[]
            }
        }
    }

    fn string<'n>(&mut self, node: &'n Node, path: &str, most: usize) -> Option<&'n str> {
        let text = match &node.value {
            Value::Text(text) => text,
            Value::Number(_) | Value::Bool(_) => {
                self.expected(node, path, "a text");
                if let Some(last) = self.faults.last_mut() {
                    last.help = Some("put it in quotes".to_owned());
                }
                return None;
            }
            _ => {
                self.expected(node, path, "a text");
                return None;
            }
        };
        if text.trim().is_empty() {
            self.fault(node.at, path, "the text is empty".to_owned(), None);
        } else if text.len() > most {
            self.fault(node.at, path, format!("{} bytes long, at most {most}", text.len()), None);
        } else if text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\t')) {
            self.fault(node.at, path, "holds control characters".to_owned(), None);
        } else {
            return Some(text);
        }
        None
    }

    pub fn text<'n>(&mut self, map: &Fields<'n>, key: &str) -> Option<&'n str> {
        map.get(key).and_then(|node| self.string(node, &map.path(key), MAX_TEXT))
    }

    pub fn id<'n>(&mut self, map: &Fields<'n>, key: &str) -> Option<&'n str> {
        map.get(key).and_then(|node| self.string(node, &map.path(key), MAX_ID))
    }

    /// A key that must be there.
    pub fn required<'n>(&mut self, map: &Fields<'n>, key: &str) -> Option<&'n str> {
        if map.get(key).is_none() {
            self.fault(map.at, &map.path(key), "is required".to_owned(), None);
            return None;
        }
        self.id(map, key)
    }

    pub fn ids(&mut self, map: &Fields<'_>, key: &str) -> Vec<String> {
        let mut ids = Vec::new();
        for (n, node) in self.list(map, key, MAX_IDS).iter().enumerate() {
            let path = format!("{}[{n}]", map.path(key));
            ids.extend(self.string(node, &path, MAX_ID).map(str::to_owned));
        }
        ids
    }

    fn sorted_ids(&mut self, map: &Fields<'_>, key: &str) -> Vec<String> {
        let mut ids = self.ids(map, key);
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    pub fn boolean(&mut self, map: &Fields<'_>, key: &str) -> Option<bool> {
        let node = map.get(key)?;
        if let Value::Bool(b) = node.value {
            return Some(b);
        }
        self.expected(node, &map.path(key), "true or false");
        None
    }

    /// A number, exactly.
    fn amount(&mut self, map: &Fields<'_>, key: &str) -> Option<Amount> {
        let node = map.get(key)?;
        let Value::Number(text) = &node.value else {
            self.expected(node, &map.path(key), "a number");
            return None;
        };
        match text.parse() {
            Ok(amount) => Some(amount),
            Err(error) => {
                self.fault(node.at, &map.path(key), format!("{} is {error}", quoted(text)), None);
                None
            }
        }
    }

    /// A whole number in `least..=most`.
    pub fn whole(&mut self, map: &Fields<'_>, key: &str, least: i64, most: i64) -> Option<i64> {
        let node = map.get(key)?;
        let path = map.path(key);
        let Value::Number(text) = &node.value else {
            self.expected(node, &path, "a whole number");
            return None;
        };
        match text.strip_prefix('+').unwrap_or(text).parse::<i64>() {
            Ok(n) if (least..=most).contains(&n) => Some(n),
            _ => {
                let help = Some(format!("a whole number from {least} to {most}"));
                self.fault(node.at, &path, format!("{} is out of range", quoted(text)), help);
                None
            }
        }
    }

    fn small(&mut self, map: &Fields<'_>, key: &str, least: i64) -> Option<u32> {
        self.whole(map, key, least, MAX_SPAN).and_then(|n| u32::try_from(n).ok())
    }

    pub fn authority(&mut self, map: &Fields<'_>, key: &str) -> Option<u8> {
        self.whole(map, key, 1, 5).and_then(|n| u8::try_from(n).ok())
    }

    fn one_of<T>(&mut self, map: &Fields<'_>, key: &str, texts: &[&str], parse: fn(&str) -> Option<T>) -> Option<T> {
        let node = map.get(key)?;
        let path = map.path(key);
        self.name(node, &path, texts, parse)
    }

    fn name<T>(&mut self, node: &Node, path: &str, texts: &[&str], parse: fn(&str) -> Option<T>) -> Option<T> {
        let text = self.string(node, path, MAX_ID)?;
        let value = parse(text);
        if value.is_none() {
            let help = match nearest(text, texts.iter().copied()) {
                Some(meant) => format!("did you mean {meant}?"),
                None => format!("one of {}", texts.join(" ")),
            };
            self.fault(node.at, path, format!("{} is not known", quoted(text)), Some(help));
        }
        value
    }

    /// `enforcement_mode`; AUDIT without it.
    pub fn mode(&mut self, map: &Fields<'_>) -> Mode {
        self.one_of(map, "enforcement_mode", Mode::TEXTS, Mode::parse).unwrap_or(Mode::Audit)
    }
}

#[cfg(test)]
mod tests;
