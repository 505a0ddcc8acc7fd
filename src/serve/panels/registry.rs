//! The registry of panels: `config/panels.yaml` as checked types. Every fault of the file is found in one pass, with line and column.

use std::collections::BTreeMap;
use std::path::{Component, Path};
use std::sync::Arc;
use std::time::Duration;

use crate::clock::{Micros, SECOND};
use crate::config::{read_duration, write_duration};
use crate::policy::{Fault, Keys, Node, Place, Reader, Value, documents, nearest, quoted};

/// Panels at most: their ids are labels of metrics.
pub const MAX_PANELS: usize = 200;
/// The folder of their queries, in the directory of queries.
pub(super) const FOLDER: &str = "panels";
/// Columns that a panel may name at most.
const MAX_COLUMNS: usize = 256;
/// Longest id, in bytes.
const MAX_ID: usize = 64;
/// Longest time that may be stated.
const MAX_SPAN: Duration = Duration::from_secs(366 * 86_400);
/// Faults that are told of one file; the rest is counted.
const MAX_FAULTS: usize = 100;

const TOP: &[&str] = &["defaults", "panels"];
const DEFAULTS: &[&str] = &["warmup", "alert_after", "alert_enabled"];
const PANEL: &[&str] = &["id", "question", "topic", "query", "endpoint", "capability", "columns", "invariant"];
const CAPABILITY: &[&str] = &["id", "status"];
const INVARIANT: &[&str] =
    &["min_rows", "min_value", "freshness", "while", "empty_since", "warmup", "alert_after", "alert_enabled"];
const MIN_VALUE: &[&str] = &["column", "value"];
const FRESHNESS: &[&str] = &["column", "within"];
/// What is known of a capability: stated, taken for granted, seen to work, to be given up.
const STATUSES: &[&str] = &["DECLARED", "ASSUMED", "OBSERVED", "TRUSTED", "DEPRECATED"];

/// A panel: a question, the SQL that answers it, and what must hold of the answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Panel {
    /// Unique, such as `POL-GOV-ACT-O4`.
    pub id: Arc<str>,
    /// What it answers.
    pub question: String,
    /// What it is about: `GOVERNANCE/ACTIVE`.
    pub topic: String,
    /// Its file, below the directory of queries.
    pub query: String,
    /// Where the same is read over HTTP, with its filters.
    pub endpoint: String,
    /// What it shows that runwarden can do.
    pub capability: Capability,
    /// Columns that its result must have.
    pub columns: Vec<String>,
    /// What must hold of its result.
    pub invariant: Invariant,
    /// Where it is written.
    pub place: Place,
}

/// A capability.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capability {
    /// Such as `policies.state`.
    pub id: String,
    /// DECLARED ASSUMED OBSERVED TRUSTED DEPRECATED
    pub status: String,
}

/// What must hold of a panel's result.
#[derive(Debug, Clone, PartialEq)]
pub struct Invariant {
    /// Fewer rows are EMPTY_PANEL.
    pub min_rows: u64,
    /// Of a panel that always gives one row: a lower value of this column is EMPTY_PANEL.
    pub min_value: Option<MinValue>,
    /// Older than this is STALE_PANEL.
    pub freshness: Option<Freshness>,
    /// A SELECT of one boolean: only while it is true is anything asked of rows, value and age.
    pub only_while: Option<String>,
    /// A SELECT of one time: since when the panel has been empty, as the tables know it.
    pub empty_since: Option<String>,
    /// Nothing is alerted of so long after the start of the process, or after the panel was added.
    pub warmup: Micros,
    /// Nothing is alerted of before it has been wrong for longer than this.
    pub alert_after: Micros,
    /// Whether alerts are raised at all.
    pub alert_enabled: bool,
}

/// The least value of a column.
#[derive(Debug, Clone, PartialEq)]
pub struct MinValue {
    /// Which column.
    pub column: String,
    /// The least value.
    pub value: f64,
}

/// How old the newest value of a column may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Freshness {
    /// Which column.
    pub column: String,
    /// How old.
    pub within: Micros,
}

/// Every panel, in the order of the file.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Registry {
    panels: Vec<Panel>,
}

impl Registry {
    /// Reads the text of a registry.
    ///
    /// # Errors
    /// Every fault of the file, in order of place; at most 100, and a last one that counts the rest.
    pub fn parse(file: &str, text: &str) -> Result<Self, Vec<Fault>> {
        let mut syntax = Vec::new();
        let documents = documents(file, text, &mut syntax);
        let mut read = Read { reader: Reader::new(file, syntax), defaults: Defaults::default() };
        let panels = read.registry(&documents);
        let mut faults = read.reader.into_faults();
        if faults.is_empty() {
            return Ok(Self { panels });
        }
        faults.sort_by_key(|fault| (fault.line, fault.column));
        if faults.len() > MAX_FAULTS {
            let more = faults.split_off(MAX_FAULTS).len();
            let at = faults.last().map_or_else(Place::default, |f| Place { line: f.line, column: f.column });
            faults.push(Fault::new(file, at, "", format!("and {more} more faults"), None));
        }
        Err(faults)
    }

    /// Every panel, in the order of the file.
    pub fn panels(&self) -> &[Panel] {
        &self.panels
    }

    /// The panel of an id, whatever its case.
    pub fn get(&self, id: &str) -> Option<&Panel> {
        self.panels.iter().find(|panel| panel.id.eq_ignore_ascii_case(id))
    }
}

/// What holds for every panel that says nothing else.
struct Defaults {
    warmup: Micros,
    alert_after: Micros,
    alert_enabled: bool,
}

impl Default for Defaults {
    fn default() -> Self {
        Self { warmup: 900 * SECOND, alert_after: 3_600 * SECOND, alert_enabled: false }
    }
}

struct Read<'f> {
    reader: Reader<'f>,
    defaults: Defaults,
}

impl Read<'_> {
    fn registry(&mut self, documents: &[Node]) -> Vec<Panel> {
        let nowhere = Place { line: 1, column: 1 };
        let Some(document) = documents.first() else {
            self.reader.fault(
                nowhere,
                "",
                "there is no panel in it".to_owned(),
                Some("list them under `panels`".into()),
            );
            return Vec::new();
        };
        if let Some(second) = documents.get(1) {
            self.reader.fault(second.at, "", "a registry of panels is one document".to_owned(), None);
        }
        let Some(top) = self.reader.map(document, "", TOP) else { return Vec::new() };
        if let Some(defaults) = self.reader.inner(&top, "defaults", DEFAULTS) {
            self.defaults = Defaults {
                warmup: self.span(&defaults, "warmup").unwrap_or(self.defaults.warmup),
                alert_after: self.span(&defaults, "alert_after").unwrap_or(self.defaults.alert_after),
                alert_enabled: self.reader.boolean(&defaults, "alert_enabled").unwrap_or(self.defaults.alert_enabled),
            };
        }
        let listed = self.reader.list(&top, "panels", MAX_PANELS);
        if top.get("panels").is_none_or(|node| node.value == Value::List(Vec::new())) {
            self.reader.fault(top.place("panels"), "panels", "there is no panel in it".to_owned(), None);
        }
        let mut seen: BTreeMap<String, u64> = BTreeMap::new();
        let mut panels = Vec::new();
        for (n, node) in listed.iter().enumerate() {
            let Some(panel) = self.panel(node, &format!("panels[{n}]")) else { continue };
            if let Some(line) = seen.insert(panel.id.to_ascii_uppercase(), panel.place.line) {
                let message = format!("the id {} is there already, in line {line}", panel.id);
                self.reader.fault(panel.place, &format!("panels[{n}].id"), message, None);
            }
            panels.push(panel);
        }
        panels
    }

    fn panel(&mut self, node: &Node, path: &str) -> Option<Panel> {
        let map = self.reader.map(node, path, PANEL)?;
        let id = self.id(&map);
        let [question, topic, endpoint] =
            ["question", "topic", "endpoint"].map(|key| self.reader.required(&map, key).map(str::to_owned));
        let query = self.query(&map);
        let capability = self.capability(&map);
        let columns = self.columns(&map);
        let invariant = self.invariant(&map);
        if let Some(endpoint) = endpoint.as_deref().filter(|endpoint| !endpoint.starts_with('/')) {
            let message = format!("{} does not begin with /", quoted(endpoint));
            self.reader.fault(map.value_place("endpoint"), &map.path("endpoint"), message, None);
        }
        Some(Panel {
            id: id?,
            question: question?,
            topic: topic?,
            query: query?,
            endpoint: endpoint?,
            capability: capability?,
            columns,
            invariant: invariant?,
            place: node.at,
        })
    }

    /// Letters, digits and hyphens, since it becomes a label, a part of an address and of ids.
    fn id(&mut self, map: &Keys<'_>) -> Option<Arc<str>> {
        let id = self.reader.required(map, "id")?;
        let fits = id.len() <= MAX_ID && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if fits {
            return Some(Arc::from(id));
        }
        let message = format!("{} is no id of a panel", quoted(id));
        let help = format!("letters, digits and hyphens, at most {MAX_ID}");
        self.reader.fault(map.value_place("id"), &map.path("id"), message, Some(help));
        None
    }

    /// A file of the folder of panels, and nowhere else.
    fn query(&mut self, map: &Keys<'_>) -> Option<String> {
        let query = self.reader.required(map, "query")?;
        let path = Path::new(query);
        let parts: Vec<Component<'_>> = path.components().collect();
        let within = matches!(parts[..], [Component::Normal(folder), Component::Normal(_)] if folder == FOLDER);
        if within && path.extension().is_some_and(|extension| extension == "sql") {
            return Some(query.to_owned());
        }
        let message = format!("{} is no query of a panel", quoted(query));
        let help = format!("a .sql file of the folder {FOLDER} in the directory of queries, such as {FOLDER}/mine.sql");
        self.reader.fault(map.value_place("query"), &map.path("query"), message, Some(help));
        None
    }

    fn capability(&mut self, map: &Keys<'_>) -> Option<Capability> {
        if map.get("capability").is_none() {
            self.reader.fault(map.at, &map.path("capability"), "is required".to_owned(), None);
        }
        let inner = self.reader.inner(map, "capability", CAPABILITY)?;
        let id = self.reader.required(&inner, "id").map(str::to_owned);
        let status = self.reader.required(&inner, "status")?;
        let known = STATUSES.iter().find(|known| known.eq_ignore_ascii_case(status));
        if known.is_none() {
            let help = match nearest(status, STATUSES.iter().copied()) {
                Some(meant) => format!("did you mean {meant}?"),
                None => format!("one of {}", STATUSES.join(" ")),
            };
            let message = format!("{} is not known", quoted(status));
            self.reader.fault(inner.value_place("status"), &inner.path("status"), message, Some(help));
        }
        Some(Capability { id: id?, status: (*known?).to_owned() })
    }

    fn columns(&mut self, map: &Keys<'_>) -> Vec<String> {
        if map.get("columns").is_none() {
            let help = Some("the columns that whoever reads the panel relies on".to_owned());
            self.reader.fault(map.at, &map.path("columns"), "is required".to_owned(), help);
        }
        let columns = self.reader.ids(map, "columns");
        if columns.len() > MAX_COLUMNS {
            let message = format!("{} columns, at most {MAX_COLUMNS} are read", columns.len());
            self.reader.fault(map.value_place("columns"), &map.path("columns"), message, None);
        }
        columns
    }

    fn invariant(&mut self, map: &Keys<'_>) -> Option<Invariant> {
        if map.get("invariant").is_none() {
            let help = Some("`min_rows: 0` asks for nothing".to_owned());
            self.reader.fault(map.at, &map.path("invariant"), "is required".to_owned(), help);
        }
        let inner = self.reader.inner(map, "invariant", INVARIANT)?;
        let min_rows = self.reader.whole(&inner, "min_rows", 0, i64::from(u32::MAX));
        let min_value = self.reader.inner(&inner, "min_value", MIN_VALUE).and_then(|min| self.min_value(&min));
        let freshness = self.reader.inner(&inner, "freshness", FRESHNESS).and_then(|fresh| {
            let column = self.reader.required(&fresh, "column").map(str::to_owned);
            let within = self.span(&fresh, "within");
            if fresh.get("within").is_none() {
                self.reader.fault(fresh.at, &fresh.path("within"), "is required".to_owned(), None);
            }
            Some(Freshness { column: column?, within: within? })
        });
        let only_while = self.reader.text(&inner, "while").map(str::to_owned);
        let empty_since = self.reader.text(&inner, "empty_since").map(str::to_owned);
        let invariant = Invariant {
            // of a panel that always gives a row, its value counts
            min_rows: u64::try_from(min_rows.unwrap_or_default()).unwrap_or_default(),
            min_value,
            freshness,
            only_while,
            empty_since,
            warmup: self.span(&inner, "warmup").unwrap_or(self.defaults.warmup),
            alert_after: self.span(&inner, "alert_after").unwrap_or(self.defaults.alert_after),
            alert_enabled: self.reader.boolean(&inner, "alert_enabled").unwrap_or(self.defaults.alert_enabled),
        };
        let asks = invariant.min_rows > 0 || invariant.min_value.is_some() || invariant.freshness.is_some();
        if invariant.alert_enabled && !asks {
            let message = "alerts are on, and nothing is asked of rows, value or age".to_owned();
            let help = Some("state min_rows, min_value or freshness".to_owned());
            self.reader.fault(inner.place("alert_enabled"), &inner.path("alert_enabled"), message, help);
        }
        Some(invariant)
    }

    fn min_value(&mut self, map: &Keys<'_>) -> Option<MinValue> {
        let column = self.reader.required(map, "column").map(str::to_owned);
        let value = map.get("value").filter(|node| matches!(node.value, Value::Number(_)));
        let value = value.and_then(|node| node.to_json().as_f64()).filter(|value| value.is_finite());
        if value.is_none() {
            let message = "must be a number".to_owned();
            self.reader.fault(map.value_place("value"), &map.path("value"), message, None);
        }
        Some(MinValue { column: column?, value: value? })
    }

    /// A time such as 60m, in µs.
    fn span(&mut self, map: &Keys<'_>, key: &str) -> Option<Micros> {
        let node = map.get(key)?;
        let text = match &node.value {
            Value::Text(text) => read_duration(text),
            // 0 needs no unit
            Value::Number(text) if text == "0" => Some(Duration::ZERO),
            _ => None,
        };
        let span = text.filter(|span| *span <= MAX_SPAN).and_then(|span| Micros::try_from(span.as_micros()).ok());
        if span.is_none() {
            let message = format!("must be a time of at most {}, such as \"60m\"", write_duration(MAX_SPAN));
            self.reader.fault(node.at, &map.path(key), message, None);
        }
        span
    }
}

#[cfg(test)]
mod tests;
