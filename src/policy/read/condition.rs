//! Conditions and actions: checked in structure, kept as written.

use serde_json::{Map as JsonMap, Value as Json};

use super::{Fields, MAX_SPAN, Reader, join, keys};
use crate::policy::condition::{ACTIONS, Action, Comparison, Condition, Junction};
use crate::policy::fault::{nearest, quoted};
use crate::policy::parameters::{self, Kind, Parameter};
use crate::policy::yaml::{Node, Value};

impl Reader<'_> {
    pub(super) fn condition_of(&mut self, map: &Fields<'_>) -> Option<Condition> {
        let node = map.get("condition")?;
        let mut parts = 0;
        self.condition(node, "condition", &mut parts)
    }

    /// Depth is bounded by the tree's, `parts` by `keys::MAX_CONDITION`.
    fn condition(&mut self, node: &Node, path: &str, parts: &mut usize) -> Option<Condition> {
        *parts += 1;
        if *parts > keys::MAX_CONDITION {
            if *parts == keys::MAX_CONDITION + 1 {
                self.fault(node.at, path, format!("a condition has at most {} parts", keys::MAX_CONDITION), None);
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
                let map = self.map(node, path, keys::SQL)?;
                let expression = self.expression(&map, "expression")?;
                Some(Condition::Sql { expression, label: None, place: map.value_place("expression") })
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
        let map = self.map(node, path, keys::COMPOSITE)?;
        if map.get("operator").is_none() {
            self.fault(map.at, &map.path("operator"), "is required".to_owned(), Some("AND, OR or NOT".to_owned()));
        }
        let operator = self.one_of(&map, "operator", Junction::TEXTS, Junction::parse);
        let items = self.list(&map, "conditions", keys::MAX_CONDITION);
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
        let map = self.map(node, path, keys::COMPARISON)?;
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
            place: map.value_place("field"),
        })
    }

    pub(super) fn actions(&mut self, map: &Fields<'_>) -> Vec<Action> {
        let mut actions = Vec::new();
        for (n, node) in self.list(map, "actions", keys::MAX_ACTIONS).iter().enumerate() {
            let Some(action) = self.map(node, &format!("actions[{n}]"), keys::ACTION) else { continue };
            let Some(kind) = self.action_type(&action) else { continue };
            actions.push(Action {
                action: kind.to_owned(),
                target: self.text(&action, "target").map(str::to_owned),
                reason: self.text(&action, "reason").map(str::to_owned),
                approval_required: self.boolean(&action, "approval_required").unwrap_or(false),
                parameters: match self.inner(&action, "parameters", &[]) {
                    Some(fields) => self.parameters(&fields, kind, &[]),
                    None => JsonMap::new(),
                },
            });
        }
        actions
    }

    /// The parameters of an action: each known, and what it may be. Keys of `own` are not parameters.
    pub fn parameters(&mut self, map: &Fields<'_>, action: &str, own: &[&str]) -> JsonMap<String, Json> {
        let known = parameters::of(action);
        let mut found = JsonMap::new();
        for entry in map.entries().iter().filter(|e| !own.contains(&e.key.as_str())) {
            if let Some(parameter) = known.iter().find(|p| p.name == entry.key) {
                if self.parameter(map, parameter) {
                    found.insert(entry.key.clone(), entry.node.to_json());
                }
                continue;
            }
            let names = || known.iter().map(|p| p.name).chain(own.iter().copied());
            let help = match nearest(&entry.key, names()) {
                Some(meant) => format!("did you mean `{meant}`?"),
                None if known.is_empty() => format!("{action} takes no parameters"),
                None => format!("{action} takes {}", known.iter().map(|p| p.name).collect::<Vec<_>>().join(" ")),
            };
            let key: String = entry.key.chars().take(64).collect();
            self.fault(entry.at, &map.path(&key), format!("is no parameter of {action}"), Some(help));
        }
        found
    }

    /// Whether a parameter is there and sound.
    fn parameter(&mut self, map: &Fields<'_>, parameter: &Parameter) -> bool {
        match parameter.kind {
            Kind::Text => self.id(map, parameter.name).is_some(),
            Kind::Texts => !self.ids(map, parameter.name).is_empty(),
            Kind::Whole { least } => self.whole(map, parameter.name, least, MAX_SPAN).is_some(),
            Kind::OneOf(texts) => {
                let Some(text) = self.id(map, parameter.name) else { return false };
                let known = texts.contains(&text);
                if !known {
                    let help = match nearest(text, texts.iter().copied()) {
                        Some(meant) => format!("did you mean {meant}?"),
                        None => format!("one of {}", texts.join(" ")),
                    };
                    let message = format!("{} is not known", quoted(text));
                    self.fault(map.place(parameter.name), &map.path(parameter.name), message, Some(help));
                }
                known
            }
        }
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
}
