//! Policy tests as files (X13): events, the policies they meet, and what must and must not be decided.
//!
//! ```yaml
//! name: A runaway loop is stopped at the step that crosses
//! policies: [../policies/runs.yaml]      # files or directories, relative to this file
//! each: {tenant_id: acme, run_id: r, event_type: run.step}      # fields of every event below unless it has its own
//! events:
//!   - {event_time: 2026-01-05T00:00:00Z, input_tokens: 150000}
//!   - {event_time: 2026-01-05T00:00:10Z, input_tokens: 60000}
//! telemetry: [more.jsonl]                # and, or instead, telemetry files, relative to this file
//! expect:                                # each entry is found: a decision with at least these fields
//!   signals:
//!     - {kind: BREACH, metric: run_tokens, scope: {kind: RUN, id: r}, value: 210000}
//!   interventions: []                    # an empty list: none at all
//! never:                                 # no entry is found
//!   shadow:
//!     - {after: {would: KILL}}
//! exactly: [signals]                     # of these there is nothing beside what is expected
//! ```

use std::collections::BTreeSet;

use serde_json::{Map, Value as Json};

use super::fault::Fault;
use super::read::{Fields, Reader};
use super::yaml::{self, Node, Value};

/// Most entries of any list of a case.
const MAX_ENTRIES: usize = 100_000;
/// Most files of a case.
const MAX_FILES: usize = 100;

/// What a decision is, as a list of a case names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum What {
    /// `signals.jsonl`
    Signals,
    /// `alerts.jsonl`
    Alerts,
    /// `interventions.jsonl`
    Interventions,
    /// `shadow.jsonl`
    Shadow,
    /// `lessons.jsonl`
    Lessons,
    /// `dead-letter.jsonl`
    DeadLetters,
}

impl What {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Signals, Self::Alerts, Self::Interventions, Self::Shadow, Self::Lessons, Self::DeadLetters];

    /// As the files name it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Signals => "signals",
            Self::Alerts => "alerts",
            Self::Interventions => "interventions",
            Self::Lessons => "lessons",
            Self::Shadow => "shadow",
            Self::DeadLetters => "dead_letters",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|what| what.as_str() == text)
    }
}

/// A decision that has, or must not have, at least these fields.
#[derive(Debug, Clone, PartialEq)]
pub struct Expected {
    /// What it is.
    pub what: What,
    /// Its line, from 1.
    pub line: u64,
    /// The fields; nested objects likewise.
    pub fields: Json,
}

/// One test.
#[derive(Debug, Clone, PartialEq)]
pub struct Case {
    /// What it shows.
    pub name: String,
    /// Its file.
    pub file: String,
    /// Its line, from 1.
    pub line: u64,
    /// Policy files and directories, relative to the file.
    pub policies: Vec<String>,
    /// Telemetry files, relative to the file.
    pub telemetry: Vec<String>,
    /// Events written here, whole.
    pub events: Vec<Json>,
    /// What must be found, each by another decision.
    pub expect: Vec<Expected>,
    /// What must not be found.
    pub never: Vec<Expected>,
    /// Of these there is nothing beside what is expected.
    pub exactly: BTreeSet<What>,
}

const KEYS: [&str; 8] = ["name", "policies", "telemetry", "each", "events", "expect", "never", "exactly"];

/// Reads the cases of a file, a document each; every fault of the file otherwise.
pub fn cases(file: &str, text: &str) -> Result<Vec<Case>, Vec<Fault>> {
    let mut faults = Vec::new();
    let documents = yaml::documents(file, text, &mut faults);
    let mut reader = Reader::new(file, faults);
    let mut cases = Vec::new();
    for (n, document) in documents.iter().enumerate() {
        if let Some(map) = reader.map(document, "", &KEYS) {
            cases.push(case(&mut reader, file, n + 1, document, &map));
        }
    }
    let faults = reader.into_faults();
    if faults.is_empty() { Ok(cases) } else { Err(faults) }
}

fn case(reader: &mut Reader<'_>, file: &str, number: usize, document: &Node, map: &Fields<'_>) -> Case {
    let name = reader.text(map, "name").map_or_else(|| format!("case {number}"), str::to_owned);
    let policies = files(reader, map, "policies");
    if policies.is_empty() && map.get("policies").is_none() {
        let help = Some("say which files it is about, such as `policies: [../policies]`".to_owned());
        reader.fault(document.at, "policies", "a test needs policies".to_owned(), help);
    }
    let telemetry = files(reader, map, "telemetry");
    let each = match map.get("each").map(|node| (node, node.to_json())) {
        None => Map::new(),
        Some((_, Json::Object(fields))) => fields,
        Some((node, _)) => {
            reader.fault(node.at, "each", format!("expected a map of fields, found {}", node.kind()), None);
            Map::new()
        }
    };
    let mut events = Vec::new();
    for (n, node) in reader.list(map, "events", MAX_ENTRIES).iter().enumerate() {
        let Json::Object(own) = node.to_json() else {
            reader.fault(node.at, &format!("events[{n}]"), format!("expected an event, found {}", node.kind()), None);
            continue;
        };
        let mut event = each.clone();
        event.extend(own);
        events.push(Json::Object(event));
    }
    if events.is_empty() && telemetry.is_empty() {
        reader.fault(document.at, "events", "a test needs events, or telemetry files".to_owned(), None);
    }
    let mut exactly = BTreeSet::new();
    let expect = expectations(reader, map, "expect", Some(&mut exactly));
    let never = expectations(reader, map, "never", None);
    for (n, node) in reader.list(map, "exactly", MAX_FILES).iter().enumerate() {
        let text = if let Value::Text(text) = &node.value { text.as_str() } else { "" };
        match What::parse(text) {
            Some(what) => drop(exactly.insert(what)),
            None => {
                let help = Some(format!("one of {}", What::ALL.map(What::as_str).join(" ")));
                reader.fault(node.at, &format!("exactly[{n}]"), "unknown kind of decision".to_owned(), help);
            }
        }
    }
    if expect.is_empty() && never.is_empty() && exactly.is_empty() {
        let help = Some("write `expect`, `never` or `exactly`".to_owned());
        reader.fault(document.at, "expect", "a test that expects nothing cannot fail".to_owned(), help);
    }
    let (file, line) = (file.to_owned(), document.at.line);
    Case { name, file, line, policies, telemetry, events, expect, never, exactly }
}

/// A path or a list of them.
fn files(reader: &mut Reader<'_>, map: &Fields<'_>, key: &str) -> Vec<String> {
    match map.get(key).map(|node| &node.value) {
        Some(Value::Text(_)) => reader.text(map, key).map(str::to_owned).into_iter().collect(),
        _ => {
            let mut paths = Vec::new();
            for (n, node) in reader.list(map, key, MAX_FILES).iter().enumerate() {
                match &node.value {
                    Value::Text(path) if !path.trim().is_empty() => paths.push(path.clone()),
                    _ => reader.fault(node.at, &format!("{key}[{n}]"), "expected a path".to_owned(), None),
                }
            }
            paths
        }
    }
}

/// The lists under a key. An empty list there says that there is nothing of its kind at all, where `exactly` is given.
fn expectations(
    reader: &mut Reader<'_>,
    map: &Fields<'_>,
    key: &str,
    mut exactly: Option<&mut BTreeSet<What>>,
) -> Vec<Expected> {
    let mut all = Vec::new();
    let Some(lists) = reader.inner(map, key, &What::ALL.map(What::as_str)) else { return all };
    for what in What::ALL {
        let list = reader.list(&lists, what.as_str(), MAX_ENTRIES);
        if list.is_empty()
            && lists.get(what.as_str()).is_some()
            && let Some(exactly) = exactly.as_deref_mut()
        {
            exactly.insert(what);
        }
        for (n, node) in list.iter().enumerate() {
            match node.to_json() {
                Json::Object(fields) if !fields.is_empty() => {
                    all.push(Expected { what, line: node.at.line, fields: Json::Object(fields) });
                }
                _ => {
                    let path = format!("{key}.{}[{n}]", what.as_str());
                    let help = Some("write the fields it has, such as `{kind: BREACH}`".to_owned());
                    reader.fault(node.at, &path, "expected a map of fields".to_owned(), help);
                }
            }
        }
    }
    all
}

/// The fields of `expected` that `given` does not have, as paths with what it has instead; none: it matches. Numbers are
/// compared as numbers.
pub fn differences(expected: &Json, given: &Json) -> Vec<(String, Json)> {
    let mut all = Vec::new();
    differ(expected, given, "", &mut all);
    all
}

fn differ(expected: &Json, given: &Json, path: &str, all: &mut Vec<(String, Json)>) {
    match (expected, given) {
        (Json::Object(fields), Json::Object(there)) => {
            for (key, value) in fields {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                differ(value, there.get(key).unwrap_or(&Json::Null), &path, all);
            }
        }
        (Json::Number(a), Json::Number(b)) if a == b || a.as_f64() == b.as_f64() => {}
        (a, b) if a == b => {}
        _ => all.push((path.to_owned(), given.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const WHOLE: &str = "
name: A loop
policies: p.yaml
each: {tenant_id: acme, event_type: run.step}
events:
  - {event_time: 2026-01-05T00:00:00Z, input_tokens: 5}
  - {event_time: 2026-01-05T00:00:01Z, event_type: run.completed}
expect:
  signals: [{kind: NEAR}]
  interventions: []
never: {shadow: [{after: {would: KILL}}]}
exactly: [alerts]
";

    #[test]
    fn a_case_is_read_with_its_lines_and_the_fields_of_each_event() {
        let cases = cases("t.yaml", WHOLE).unwrap();
        let [case] = cases.as_slice() else { panic!("{cases:?}") };
        assert_eq!((&*case.name, case.line, &*case.policies), ("A loop", 2, &["p.yaml".to_owned()][..]));
        assert_eq!(case.events[0]["tenant_id"], "acme");
        assert_eq!(case.events[1]["event_type"], "run.completed", "its own field counts");
        let signal = Expected { what: What::Signals, line: 9, fields: json!({"kind": "NEAR"}) };
        assert_eq!(case.expect, [signal]);
        assert_eq!((case.never.len(), case.never[0].what), (1, What::Shadow));
        assert_eq!(case.exactly, BTreeSet::from([What::Interventions, What::Alerts]));
    }

    #[test]
    fn mistakes_are_refused_where_they_are() {
        let faults =
            |text: &str| cases("t.yaml", text).unwrap_err().iter().map(ToString::to_string).collect::<Vec<_>>();
        let broken =
            WHOLE.replace("kind: NEAR", "").replace("never: {shadow", "never: {shadows").replace("[alerts]", "[alert]");
        let said = faults(&broken);
        assert_eq!(said.len(), 3, "{said:?}");
        assert!(said.iter().any(|f| f.starts_with("t.yaml:9:13: expect.signals[0]: expected a map")), "{said:?}");
        assert!(said.iter().any(|f| f.contains("did you mean `shadow`?")), "{said:?}");
        assert!(said.iter().any(|f| f.starts_with("t.yaml:12:11: exactly[0]: unknown kind")), "{said:?}");
        let said = faults("name: x\npolicies: p\nevents: [{a: 1}]\n");
        assert!(said[0].contains("a test that expects nothing cannot fail"), "{said:?}");
        assert!(faults("name: x\nexpect: {signals: []}\n").len() == 2, "no policies, no events");
    }

    #[test]
    fn a_decision_matches_when_it_has_at_least_the_fields() {
        let given = json!({"kind": "BREACH", "value": 210000.0, "scope": {"kind": "RUN", "id": "r"}, "more": [1]});
        assert_eq!(differences(&json!({"value": 210000, "scope": {"id": "r"}}), &given), []);
        let other = differences(&json!({"kind": "NEAR", "scope": {"id": "s"}, "absent": 1}), &given);
        let expected = [("absent", Json::Null), ("kind", json!("BREACH")), ("scope.id", json!("r"))];
        assert_eq!(other, expected.map(|(path, value)| (path.to_owned(), value)));
        assert_eq!(differences(&json!({"absent": null, "more": [1]}), &given), [], "absent and null are the same");
    }
}
