//! The guardian files of the seed: `policy: {name, min_authority, triggers, actions, rollback}`.
//!
//! Its id is its name, its triggers are OR-ed, `auto_approve: false` means approval is required, and further keys of an
//! action (`channels` of a `notify`) become its parameters. `tenant` and `enforcement_mode` may be given as in any policy;
//! without the latter it is in AUDIT.

use std::sync::Arc;

use super::condition::{Action, Condition, Junction};
use super::model::{Alerts, Binding, Monitor, OnFailure, OverrideRule, Policy, RuleType, Source, Status, Strategy};
use super::read::Reader;
use super::scope::Selector;
use super::yaml::Node;

/// Most triggers, and most actions, of one file.
pub(super) const MAX_ENTRIES: usize = 64;
/// The keys under `policy`.
pub(super) const POLICY_KEYS: &[&str] =
    &["name", "tenant", "enforcement_mode", "min_authority", "triggers", "actions", "rollback"];
/// The keys of a trigger.
pub(super) const TRIGGER_KEYS: &[&str] = &["type", "condition"];

/// Reads one guardian document; faults go to the reader.
pub(super) fn read(reader: &mut Reader<'_>, document: &Node) -> Option<Policy> {
    let outer = reader.map(document, "", &["policy"])?;
    let map = reader.inner(&outer, "policy", POLICY_KEYS)?;
    let name = reader.required(&map, "name");

    let mut triggers = Vec::new();
    for (n, node) in reader.list(&map, "triggers", MAX_ENTRIES).iter().enumerate() {
        let path = format!("{}[{n}]", map.path("triggers"));
        let Some(trigger) = reader.map(node, &path, TRIGGER_KEYS) else { continue };
        let label = reader.id(&trigger, "type").map(str::to_owned);
        let place = trigger.value_place("condition");
        let expression = reader.expression(&trigger, "condition");
        triggers.extend(expression.map(|expression| Condition::Sql { expression, label, place }));
    }
    let mut actions = Vec::new();
    for (n, node) in reader.list(&map, "actions", MAX_ENTRIES).iter().enumerate() {
        let Some(action) = reader.map(node, &format!("{}[{n}]", map.path("actions")), &[]) else { continue };
        let Some(kind) = reader.action_type(&action) else { continue };
        let own = ["type", "auto_approve", "target", "reason"];
        actions.push(Action {
            action: kind.to_owned(),
            target: reader.text(&action, "target").map(str::to_owned),
            reason: reader.text(&action, "reason").map(str::to_owned),
            approval_required: !reader.boolean(&action, "auto_approve").unwrap_or(true),
            parameters: reader.parameters(&action, kind, &own),
        });
    }
    for (key, empty) in [("triggers", triggers.is_empty()), ("actions", actions.is_empty())] {
        if empty && map.get(key).is_none_or(|n| n.value == super::yaml::Value::List(Vec::new())) {
            reader.fault(map.place(key), &map.path(key), "at least one is required".to_owned(), None);
        }
    }
    let enforcement_mode = reader.mode(&map);
    let tenant = Arc::from(reader.id(&map, "tenant").unwrap_or("*"));
    let min_authority = reader.authority(&map, "min_authority").unwrap_or(4);
    let rollback = reader.rollback(&map);
    Some(Policy {
        id: Arc::from(name?),
        name: name?.to_owned(),
        tenant,
        version: 1,
        status: Status::Active,
        rule_type: RuleType::System,
        source: Source::Manual,
        enforcement_mode,
        scope: Selector::default(),
        precedence: 100,
        conflict_strategy: Strategy::MostRestrictive,
        binding: Binding::EachStep,
        on_failure: OnFailure::Open,
        depends_on: Vec::new(),
        active: None,
        limits: Vec::new(),
        condition: Some(Condition::Composite { operator: Junction::Or, conditions: triggers }),
        actions,
        min_authority,
        monitor: Monitor::default(),
        alerts: Alerts::default(),
        override_rule: OverrideRule::default(),
        rollback,
        file: reader.file(),
        place: map.at,
    })
}
