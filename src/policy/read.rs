//! From the YAML tree to policies: every fault of a file at once, each with key, place and what would be right.

use std::sync::Arc;

use serde_json::{Map as JsonMap, Value as Json};

use super::active::{Active, Day, Hours, parse_instant};
use super::amount::Amount;
use super::condition::{ACTIONS, Action, Comparison, Condition, Junction};
use super::fault::{Fault, nearest, quoted};
use super::guardian;
use super::model::{
    Alerts, Binding, Category, Enforcement, Limit, LimitStatus, Mode, Monitor, OnBreach, OnFailure, OverrideRule,
    Place, Policy, Rollback, RuleType, Source, Status, Strategy,
};
use super::scope::{Level, Selector, Subject};
use super::yaml::{self, Entry, Node, Value};

/// Faults reported of one file; the rest is counted.
const MAX_FAULTS: usize = 100;
/// Longest id, name of a metric, of a channel, of a model.
const MAX_ID: usize = 200;
/// Longest free text and expression.
const MAX_TEXT: usize = 4_096;
/// Most entries of a list of ids.
const MAX_IDS: usize = 10_000;
/// Most limits of one policy.
const MAX_LIMITS: usize = 256;
/// Deepest nesting and most parts of a condition.
const MAX_CONDITION: usize = 256;
/// Longest time a policy may state, in minutes or seconds: about 68 years in seconds.
const MAX_SPAN: i64 = i32::MAX as i64;

const POLICY_KEYS: &[&str] = &[
    "id",
    "name",
    "tenant",
    "status",
    "rule_type",
    "source",
    "enforcement_mode",
    "scope",
    "precedence",
    "conflict_strategy",
    "binding",
    "on_failure",
    "depends_on",
    "active",
    "limits",
    "condition",
    "actions",
    "min_authority",
    "monitor",
    "alerts",
    "override",
    "rollback",
];
const LIMIT_KEYS: &[&str] = &[
    "id",
    "limit_type",
    "category",
    "metric",
    "max",
    "near",
    "near_forecast_minutes",
    "status",
    "enforcement",
    "on_breach",
    "cooldown_seconds",
    "fallback_model",
];

/// Reads the policies of one file: YAML documents (JSON is YAML), each a policy or a guardian file (`policy: …`).
///
/// # Errors
/// Every fault of the file, in order of place; at most 100, and a last one that counts the rest.
///
/// ```
/// let faults = runwarden::policy::parse("p.yaml", "id: a\nname: A\nlimit: []\n").unwrap_err();
/// assert!(faults[0].to_string().starts_with("p.yaml:3:1: limit: unknown key"));
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
    faults.sort_by(|a, b| (a.line, a.column).cmp(&(b.line, b.column)));
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
pub(super) struct Reader<'f> {
    file: &'f str,
    faults: Vec<Fault>,
}

/// A map whose keys have been checked, and the path to it.
pub(super) struct Fields<'n> {
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

    pub fn entries(&self) -> &'n [Entry] {
        self.entries
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
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

    pub fn mode(&mut self, map: &Fields<'_>) -> Mode {
        self.one_of(map, "enforcement_mode", Mode::TEXTS, Mode::parse).unwrap_or(Mode::Audit)
    }

    fn policy(&mut self, node: &Node) -> Option<Policy> {
        let map = self.map(node, "", POLICY_KEYS)?;
        let id = self.required(&map, "id");
        let name = self.required(&map, "name");
        let limits = self.limits(&map);
        let condition = self.condition_of(&map);
        let actions = self.actions(&map);
        let has = |key| map.get(key).is_some_and(|n| !matches!(&n.value, Value::List(l) if l.is_empty()));
        match (has("condition"), has("actions")) {
            (true, false) => self.fault(
                map.place("condition"),
                "condition",
                "a condition without `actions` does nothing".to_owned(),
                None,
            ),
            (false, true) => self.fault(
                map.place("actions"),
                "actions",
                "actions without a `condition` are never taken".to_owned(),
                None,
            ),
            (false, false) if !has("limits") => {
                let help = Some("give `limits`, or `condition` and `actions`".to_owned());
                self.fault(map.at, "", "the policy says nothing".to_owned(), help);
            }
            _ => {}
        }
        let policy = Policy {
            id: Arc::from(id.unwrap_or_default()),
            name: name.unwrap_or_default().to_owned(),
            tenant: Arc::from(self.id(&map, "tenant").unwrap_or("*")),
            version: 1,
            status: self.one_of(&map, "status", Status::TEXTS, Status::parse).unwrap_or(Status::Active),
            rule_type: self.one_of(&map, "rule_type", RuleType::TEXTS, RuleType::parse).unwrap_or(RuleType::System),
            source: self.one_of(&map, "source", Source::TEXTS, Source::parse).unwrap_or(Source::Manual),
            enforcement_mode: self.mode(&map),
            scope: self.selector(&map),
            precedence: self.whole(&map, "precedence", -MAX_SPAN, MAX_SPAN).unwrap_or(100),
            conflict_strategy: self
                .one_of(&map, "conflict_strategy", Strategy::TEXTS, Strategy::parse)
                .unwrap_or(Strategy::MostRestrictive),
            binding: self.one_of(&map, "binding", Binding::TEXTS, Binding::parse).unwrap_or(Binding::EachStep),
            on_failure: self.one_of(&map, "on_failure", OnFailure::TEXTS, OnFailure::parse).unwrap_or(OnFailure::Open),
            depends_on: self.sorted_ids(&map, "depends_on"),
            active: self.active(&map),
            limits,
            condition,
            actions,
            min_authority: self.authority(&map, "min_authority").unwrap_or(4),
            monitor: self.monitor(&map),
            alerts: self.alerts(&map),
            override_rule: self.override_rule(&map),
            rollback: self.rollback(&map),
            file: self.file(),
            place: map.at,
        };
        Some(policy)
    }

    fn selector(&mut self, map: &Fields<'_>) -> Selector {
        let default = Selector::default();
        let Some(scope) = self.inner(map, "scope", &["level", "level_ids", "who", "ids"]) else { return default };
        let selector = Selector {
            level: self.one_of(&scope, "level", Level::TEXTS, Level::parse).unwrap_or(default.level),
            level_ids: self.sorted_ids(&scope, "level_ids"),
            who: self.one_of(&scope, "who", Subject::TEXTS, Subject::parse).unwrap_or(default.who),
            ids: self.sorted_ids(&scope, "ids"),
        };
        if selector.who == Subject::AllRuns && !selector.ids.is_empty() {
            let help = Some("say whose they are: `who: AGENT`, API_KEY or HUMAN_ACTOR".to_owned());
            self.fault(scope.place("ids"), "scope.ids", "ALL_RUNS takes no ids".to_owned(), help);
        }
        if selector.level == Level::Global && !selector.level_ids.is_empty() {
            let help = Some("say what they are: `level: TENANT`, PROJECT, AGENT or PROVIDER".to_owned());
            self.fault(scope.place("level_ids"), "scope.level_ids", "GLOBAL takes no ids".to_owned(), help);
        }
        selector
    }

    fn active(&mut self, map: &Fields<'_>) -> Option<Active> {
        let active = self.inner(map, "active", &["from", "until", "days", "hours", "timezone"])?;
        let mut read = Active::default();
        for (key, slot) in [("from", &mut read.from), ("until", &mut read.until)] {
            if let Some(text) = self.id(&active, key) {
                *slot = parse_instant(text);
                if slot.is_none() {
                    let help = Some("as 2026-01-01T00:00:00Z".to_owned());
                    let message = format!("{} is not an RFC 3339 time with offset", quoted(text));
                    self.fault(active.place(key), &active.path(key), message, help);
                }
            }
        }
        if let (Some(from), Some(until)) = (read.from, read.until)
            && until <= from
        {
            let message = "ends before it begins: it is never active".to_owned();
            self.fault(active.place("until"), &active.path("until"), message, None);
        }
        for (n, node) in self.list(&active, "days", 7).iter().enumerate() {
            let path = format!("{}[{n}]", active.path("days"));
            read.days.extend(self.name(node, &path, Day::TEXTS, Day::parse));
        }
        read.days.sort_unstable();
        read.days.dedup();
        if let Some(text) = self.id(&active, "hours") {
            match Hours::parse(text) {
                Ok(hours) => read.hours = Some(hours),
                Err(message) => self.fault(active.place("hours"), &active.path("hours"), message, None),
            }
        }
        if let Some(text) = self.id(&active, "timezone") {
            match text.parse::<chrono_tz::Tz>() {
                Ok(zone) => read.timezone = zone,
                Err(_) => {
                    let names = chrono_tz::TZ_VARIANTS.iter().map(|z| z.name());
                    let help = match nearest(text, names) {
                        Some(meant) => format!("did you mean {meant}?"),
                        None => "an IANA name, as Europe/Zurich".to_owned(),
                    };
                    let message = format!("{} is not a time zone", quoted(text));
                    self.fault(active.place("timezone"), &active.path("timezone"), message, Some(help));
                }
            }
        }
        Some(read)
    }

    fn limits(&mut self, map: &Fields<'_>) -> Vec<Limit> {
        let mut limits: Vec<Limit> = Vec::new();
        for (n, node) in self.list(map, "limits", MAX_LIMITS).iter().enumerate() {
            let Some(fields) = self.map(node, &format!("limits[{n}]"), LIMIT_KEYS) else { continue };
            let Some(limit) = self.limit(&fields) else { continue };
            if limits.iter().any(|l| l.id == limit.id) {
                let message = format!("the limit id {} is there twice", quoted(&limit.id));
                self.fault(fields.place("id"), &fields.path("id"), message, None);
            }
            limits.push(limit);
        }
        limits
    }

    fn limit(&mut self, map: &Fields<'_>) -> Option<Limit> {
        let id = self.required(map, "id");
        let limit_type = self.required(map, "limit_type");
        let metric = self.required(map, "metric");
        if map.get("max").is_none() {
            self.fault(map.at, &map.path("max"), "is required".to_owned(), None);
        }
        let max = self.amount(map, "max");
        if max.is_some_and(|m| m <= Amount::ZERO) {
            let help = Some("to allow nothing, use the smallest amount above 0".to_owned());
            self.fault(map.place("max"), &map.path("max"), "must be above 0".to_owned(), help);
        }
        let near = self.amount(map, "near").unwrap_or(Amount(800_000_000));
        if near <= Amount::ZERO || near > Amount::ONE {
            let help = Some("a ratio: 0.80 is 80 %".to_owned());
            self.fault(map.place("near"), &map.path("near"), "must be above 0 and at most 1".to_owned(), help);
        }
        let enforcement =
            self.one_of(map, "enforcement", Enforcement::TEXTS, Enforcement::parse).unwrap_or(Enforcement::Block);
        let default = if enforcement == Enforcement::Block { OnBreach::Stop } else { OnBreach::None };
        let on_breach = self.one_of(map, "on_breach", OnBreach::TEXTS, OnBreach::parse).unwrap_or(default);
        if enforcement != Enforcement::Block && on_breach != OnBreach::None {
            let message = format!("{on_breach} needs `enforcement: BLOCK`, here it is {enforcement}");
            let help = Some("leave `on_breach` out, or block".to_owned());
            self.fault(map.place("on_breach"), &map.path("on_breach"), message, help);
        }
        let fallback_model = self.id(map, "fallback_model").map(Arc::from);
        if enforcement == Enforcement::Degrade && fallback_model.is_none() {
            let message = "DEGRADE needs the model to fall back to".to_owned();
            self.fault(map.at, &map.path("fallback_model"), message, None);
        }
        let cooldown = self.whole(map, "cooldown_seconds", 0, MAX_SPAN).and_then(|n| u64::try_from(n).ok());
        Some(Limit {
            id: Arc::from(id?),
            limit_type: Arc::from(limit_type?),
            category: self.one_of(map, "category", Category::TEXTS, Category::parse).unwrap_or(Category::Threshold),
            metric: Arc::from(metric?),
            max: max?,
            near,
            near_forecast_minutes: self.small(map, "near_forecast_minutes", 1),
            status: self.one_of(map, "status", LimitStatus::TEXTS, LimitStatus::parse).unwrap_or(LimitStatus::Active),
            enforcement,
            on_breach,
            cooldown_seconds: cooldown.unwrap_or(0),
            fallback_model,
            place: map.at,
        })
    }

    fn condition_of(&mut self, map: &Fields<'_>) -> Option<Condition> {
        let node = map.get("condition")?;
        let mut parts = 0;
        self.condition(node, "condition", &mut parts)
    }

    /// Depth is bounded by the tree's, `parts` by `MAX_CONDITION`.
    fn condition(&mut self, node: &Node, path: &str, parts: &mut usize) -> Option<Condition> {
        *parts += 1;
        if *parts > MAX_CONDITION {
            if *parts == MAX_CONDITION + 1 {
                self.fault(node.at, path, format!("a condition has at most {MAX_CONDITION} parts"), None);
            }
            return None;
        }
        let kinds = ["composite", "field_comparison", "sql"];
        let any = self.map(node, path, &[])?;
        if any.get("type").is_none() {
            self.fault(node.at, &join(path, "type"), "is required".to_owned(), Some(kinds.join(", ")));
            return None;
        }
        let kind = self
            .one_of(&any, "type", &kinds, |t| ["composite", "field_comparison", "sql"].iter().position(|k| *k == t))?;
        match kind {
            0 => self.composite(node, path, parts),
            1 => self.comparison(node, path),
            _ => {
                let map = self.map(node, path, &["type", "expression"])?;
                let expression = self.expression(&map, "expression")?;
                Some(Condition::Sql { expression, label: None })
            }
        }
    }

    /// A SQL expression that must be there.
    pub fn expression(&mut self, map: &Fields<'_>, key: &str) -> Option<String> {
        if map.get(key).is_none() {
            self.fault(map.at, &map.path(key), "is required".to_owned(), None);
        }
        self.text(map, key).map(str::to_owned)
    }

    fn composite(&mut self, node: &Node, path: &str, parts: &mut usize) -> Option<Condition> {
        let map = self.map(node, path, &["type", "operator", "conditions"])?;
        if map.get("operator").is_none() {
            self.fault(map.at, &map.path("operator"), "is required".to_owned(), Some("AND, OR or NOT".to_owned()));
        }
        let operator = self.one_of(&map, "operator", Junction::TEXTS, Junction::parse);
        let items = self.list(&map, "conditions", MAX_CONDITION);
        if items.is_empty() {
            self.fault(map.place("conditions"), &map.path("conditions"), "no conditions are given".to_owned(), None);
        } else if operator == Some(Junction::Not) && items.len() != 1 {
            let help = Some("put them under one AND or OR".to_owned());
            self.fault(map.place("conditions"), &map.path("conditions"), "NOT takes exactly one".to_owned(), help);
        }
        let mut conditions = Vec::new();
        for (n, item) in items.iter().enumerate() {
            conditions.extend(self.condition(item, &format!("{path}.conditions[{n}]"), parts));
        }
        Some(Condition::Composite { operator: operator?, conditions })
    }

    fn comparison(&mut self, node: &Node, path: &str) -> Option<Condition> {
        let map = self.map(node, path, &["type", "field", "operator", "value"])?;
        let field = self.required(&map, "field");
        if let Some(field) = field
            && !["run.", "agent.", "task."].iter().any(|p| field.strip_prefix(p).is_some_and(|rest| !rest.is_empty()))
        {
            let help = Some("as agent.anomaly_score".to_owned());
            let message = format!("{} is not a field of run, agent or task", quoted(field));
            self.fault(map.place("field"), &map.path("field"), message, help);
        }
        if map.get("operator").is_none() {
            self.fault(map.at, &map.path("operator"), "is required".to_owned(), Some(Comparison::TEXTS.join(" ")));
        }
        let operator = self.one_of(&map, "operator", Comparison::TEXTS, Comparison::parse)?;
        let value = map.get("value");
        let fits = match (operator, value.map(|v| &v.value)) {
            (Comparison::Exists, None) => Ok(()),
            (Comparison::Exists, Some(_)) => Err("`exists` takes no value"),
            (Comparison::In, Some(Value::List(_))) => Ok(()),
            (Comparison::In, _) => Err("`in` takes a list as its value"),
            (Comparison::Matches, Some(Value::Text(_))) => Ok(()),
            (Comparison::Matches, _) => Err("`matches` takes a regular expression in quotes as its value"),
            (_, Some(Value::Text(_) | Value::Number(_) | Value::Bool(_))) => Ok(()),
            (_, _) => Err("takes one text, number or boolean as its value"),
        };
        if let Err(message) = fits {
            self.fault(map.place("value"), &map.path("value"), message.to_owned(), None);
        }
        Some(Condition::FieldComparison {
            field: field?.to_owned(),
            operator,
            value: value.map_or(Json::Null, Node::to_json),
        })
    }

    fn actions(&mut self, map: &Fields<'_>) -> Vec<Action> {
        let mut actions = Vec::new();
        for (n, node) in self.list(map, "actions", MAX_LIMITS).iter().enumerate() {
            let known = ["type", "target", "reason", "approval_required", "parameters"];
            let Some(action) = self.map(node, &format!("actions[{n}]"), &known) else { continue };
            let Some(kind) = self.action_type(&action) else { continue };
            actions.push(Action {
                action: kind.to_owned(),
                target: self.text(&action, "target").map(str::to_owned),
                reason: self.text(&action, "reason").map(str::to_owned),
                approval_required: self.boolean(&action, "approval_required").unwrap_or(false),
                parameters: match self.inner(&action, "parameters", &[]) {
                    Some(fields) => fields.entries().iter().map(|e| (e.key.clone(), e.node.to_json())).collect(),
                    None => JsonMap::new(),
                },
            });
        }
        actions
    }

    /// The `type` of an action, one of the known names.
    pub fn action_type<'n>(&mut self, map: &Fields<'n>) -> Option<&'n str> {
        let kind = self.required(map, "type")?;
        if ACTIONS.contains(&kind) {
            return Some(kind);
        }
        let help = match nearest(kind, ACTIONS.iter().copied()) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => format!("one of {}", ACTIONS.join(" ")),
        };
        self.fault(map.place("type"), &map.path("type"), format!("{} is not an action", quoted(kind)), Some(help));
        None
    }

    fn monitor(&mut self, map: &Fields<'_>) -> Monitor {
        let known = ["signals", "allow_prompt_logging", "allow_pii_capture"];
        let Some(monitor) = self.inner(map, "monitor", &known) else { return Monitor::default() };
        Monitor {
            signals: self.ids(&monitor, "signals"),
            allow_prompt_logging: self.boolean(&monitor, "allow_prompt_logging").unwrap_or(false),
            allow_pii_capture: self.boolean(&monitor, "allow_pii_capture").unwrap_or(false),
        }
    }

    fn alerts(&mut self, map: &Fields<'_>) -> Alerts {
        let default = Alerts::default();
        let known = ["channels", "max_alerts_per_run", "min_alert_interval_seconds"];
        let Some(alerts) = self.inner(map, "alerts", &known) else { return default };
        let channels = if alerts.get("channels").is_some() { self.ids(&alerts, "channels") } else { default.channels };
        Alerts {
            channels,
            max_alerts_per_run: self.small(&alerts, "max_alerts_per_run", 0).unwrap_or(default.max_alerts_per_run),
            min_alert_interval_seconds: self
                .small(&alerts, "min_alert_interval_seconds", 0)
                .unwrap_or(default.min_alert_interval_seconds),
        }
    }

    fn override_rule(&mut self, map: &Fields<'_>) -> OverrideRule {
        let default = OverrideRule::default();
        let Some(rule) = self.inner(map, "override", &["min_authority", "max_minutes"]) else { return default };
        OverrideRule {
            min_authority: self.authority(&rule, "min_authority").unwrap_or(default.min_authority),
            max_minutes: self.small(&rule, "max_minutes", 1).unwrap_or(default.max_minutes),
        }
    }

    pub fn rollback(&mut self, map: &Fields<'_>) -> Rollback {
        let default = Rollback::default();
        let Some(rollback) = self.inner(map, "rollback", &["enabled", "auto_rollback_after_minutes"]) else {
            return default;
        };
        Rollback {
            enabled: self.boolean(&rollback, "enabled").unwrap_or(default.enabled),
            auto_rollback_after_minutes: self
                .small(&rollback, "auto_rollback_after_minutes", 1)
                .unwrap_or(default.auto_rollback_after_minutes),
        }
    }
}

#[cfg(test)]
mod tests;
