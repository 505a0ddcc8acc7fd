//! The policy document: its keys, their defaults, and what must hold within one policy.

use std::sync::Arc;

use super::{Fields, MAX_SPAN, Reader, keys};
use crate::policy::active::{Active, Day, Hours, parse_instant};
use crate::policy::amount::Amount;
use crate::policy::fault::{nearest, quoted};
use crate::policy::model::{
    Alerts, Binding, Category, Enforcement, Limit, LimitStatus, Monitor, OnBreach, OnFailure, OverrideRule, Policy,
    Rollback, RuleType, Source, Status, Strategy,
};
use crate::policy::scope::{Level, Selector, Subject};
use crate::policy::yaml::{Node, Value};

impl Reader<'_> {
    pub(super) fn policy(&mut self, node: &Node) -> Option<Policy> {
        let map = self.map(node, "", keys::POLICY)?;
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
        let Some(scope) = self.inner(map, "scope", keys::SCOPE) else { return default };
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
        let active = self.inner(map, "active", keys::ACTIVE)?;
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
        for (n, node) in self.list(map, "limits", keys::MAX_LIMITS).iter().enumerate() {
            let Some(fields) = self.map(node, &format!("limits[{n}]"), keys::LIMIT) else { continue };
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

    fn monitor(&mut self, map: &Fields<'_>) -> Monitor {
        let Some(monitor) = self.inner(map, "monitor", keys::MONITOR) else { return Monitor::default() };
        Monitor {
            signals: self.ids(&monitor, "signals"),
            allow_prompt_logging: self.boolean(&monitor, "allow_prompt_logging").unwrap_or(false),
            allow_pii_capture: self.boolean(&monitor, "allow_pii_capture").unwrap_or(false),
        }
    }

    fn alerts(&mut self, map: &Fields<'_>) -> Alerts {
        let default = Alerts::default();
        let Some(alerts) = self.inner(map, "alerts", keys::ALERTS) else { return default };
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
        let Some(rule) = self.inner(map, "override", keys::OVERRIDE) else { return default };
        OverrideRule {
            min_authority: self.authority(&rule, "min_authority").unwrap_or(default.min_authority),
            max_minutes: self.small(&rule, "max_minutes", 1).unwrap_or(default.max_minutes),
        }
    }

    pub fn rollback(&mut self, map: &Fields<'_>) -> Rollback {
        let default = Rollback::default();
        let Some(rollback) = self.inner(map, "rollback", keys::ROLLBACK) else {
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
