//! From YAML text to policies: every key known, every fault with its place, everything of a file reported at once.

use super::active::{Active, Day, Hours};
use super::amount::Amount;
use super::fault::{Fault, nearest, quoted};
use super::model::{
    Alerts, Binding, Category, Enforcement, Limit, LimitStatus, Mode, Monitor, OnBreach, OnFailure, OverrideRule, Place,
    Policy, Rollback, RuleType, Source, Status, Strategy,
};
use super::scope::{Level, Selector, Subject};
use super::yaml::{Entry, Node, Value, documents};

/// Longest id or name, bytes.
const MAX_TEXT: usize = 256;

/// Reads a file of one or more documents: policies, or guardian policies (`policy: {name, triggers, actions, …}`).
///
/// # Errors
/// Every fault of the file.
pub fn parse(file: &str, text: &str) -> Result<Vec<Policy>, Vec<Fault>> {
    let mut faults = Vec::new();
    let nodes = documents(file, text, &mut faults);
    let mut reader = Reader { file, faults };
    let policies: Vec<Policy> = nodes.iter().filter_map(|n| reader.document(n)).collect();
    if reader.faults.is_empty() { Ok(policies) } else { Err(reader.faults) }
}

struct Reader<'f> {
    file: &'f str,
    faults: Vec<Fault>,
}

/// The entries of a map that were not asked for yet.
struct Fields<'n> {
    at: Place,
    path: String,
    entries: Vec<&'n Entry>,
    known: Vec<&'static str>,
}

impl Fields<'_> {
    fn join(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }
}

impl Reader<'_> {
    fn fault(&mut self, at: Place, path: &str, message: impl Into<String>, help: Option<String>) {
        self.faults.push(Fault::new(self.file, at, path, message.into(), help));
    }

    fn fields<'n>(&mut self, node: &'n Node, path: &str) -> Option<Fields<'n>> {
        let Value::Map(entries) = &node.value else {
            self.fault(node.at, path, format!("expected a map, found {}", node.kind()), None);
            return None;
        };
        for (i, entry) in entries.iter().enumerate() {
            if entries[..i].iter().any(|e| e.key == entry.key) {
                self.fault(entry.at, path, format!("{} stands twice", quoted(&entry.key)), None);
            }
        }
        Some(Fields { at: node.at, path: path.to_owned(), entries: entries.iter().collect(), known: Vec::new() })
    }

    /// Takes a key; null counts as absent.
    fn take<'n>(&mut self, f: &mut Fields<'n>, key: &'static str) -> Option<&'n Node> {
        f.known.push(key);
        let at = f.entries.iter().position(|e| e.key == key)?;
        let entry = f.entries.remove(at);
        (entry.node.value != Value::Null).then_some(&entry.node)
    }

    /// What is left is unknown.
    fn done(&mut self, f: Fields<'_>) {
        for entry in &f.entries {
            if f.known.contains(&entry.key.as_str()) {
                continue;
            }
            let help = nearest(&entry.key, f.known.iter().copied()).map(|n| format!("did you mean `{n}`?"));
            let help = help.or_else(|| Some(format!("known keys: {}", f.known.join(", "))));
            self.fault(entry.at, &f.path, format!("unknown key {}", quoted(&entry.key)), help);
        }
    }

    fn text(&mut self, f: &mut Fields<'_>, key: &'static str) -> Option<String> {
        let node = self.take(f, key)?;
        let path = f.join(key);
        let text = match &node.value {
            Value::Text(t) | Value::Number(t) => t.clone(),
            _ => {
                self.fault(node.at, &path, format!("expected a text, found {}", node.kind()), None);
                return None;
            }
        };
        if text.is_empty() || text.len() > MAX_TEXT {
            self.fault(node.at, &path, format!("must have 1 to {MAX_TEXT} bytes"), None);
            return None;
        }
        Some(text)
    }

    fn needed(&mut self, f: &mut Fields<'_>, key: &'static str) -> String {
        let missing = !f.entries.iter().any(|e| e.key == key && e.node.value != Value::Null);
        if missing {
            let (at, path) = (f.at, f.path.clone());
            self.fault(at, &path, format!("`{key}` is missing"), None);
        }
        self.text(f, key).unwrap_or_default()
    }

    fn word<T: Copy>(
        &mut self,
        f: &mut Fields<'_>,
        key: &'static str,
        parse: fn(&str) -> Option<T>,
        words: &[&str],
    ) -> Option<T> {
        let node = self.take(f, key)?;
        let path = f.join(key);
        let text = match &node.value {
            Value::Text(t) => t.as_str(),
            _ => "",
        };
        let found = parse(text);
        if found.is_none() {
            let help = nearest(text, words.iter().copied()).map(|n| format!("did you mean `{n}`?"));
            let help = help.or_else(|| Some(format!("one of {}", words.join(", "))));
            self.fault(node.at, &path, format!("{} is none of the known values", quoted(text)), help);
        }
        found
    }

    fn flag(&mut self, f: &mut Fields<'_>, key: &'static str, default: bool) -> bool {
        let Some(node) = self.take(f, key) else { return default };
        if let Value::Bool(b) = node.value {
            return b;
        }
        let path = f.join(key);
        self.fault(node.at, &path, format!("expected true or false, found {}", node.kind()), None);
        default
    }

    fn whole(&mut self, f: &mut Fields<'_>, key: &'static str, default: i64, least: i64, most: i64) -> i64 {
        let Some(node) = self.take(f, key) else { return default };
        if let Value::Number(t) = &node.value
            && let Ok(n) = t.parse::<i64>()
            && (least..=most).contains(&n)
        {
            return n;
        }
        let path = f.join(key);
        self.fault(node.at, &path, format!("must be a whole number from {least} to {most}"), None);
        default
    }

    fn unsigned(&mut self, f: &mut Fields<'_>, key: &'static str, default: u64) -> u64 {
        let whole = self.whole(f, key, i64::try_from(default).unwrap_or(i64::MAX), 0, 1_000_000_000);
        u64::try_from(whole).unwrap_or(default)
    }

    fn authority(&mut self, f: &mut Fields<'_>, default: u8) -> u8 {
        u8::try_from(self.whole(f, "min_authority", i64::from(default), 1, 5)).unwrap_or(default)
    }

    fn amount(&mut self, f: &mut Fields<'_>, key: &'static str) -> Option<(Amount, Place)> {
        let node = self.take(f, key)?;
        let path = f.join(key);
        let Value::Number(t) = &node.value else {
            self.fault(node.at, &path, format!("expected a number, found {}", node.kind()), None);
            return None;
        };
        match t.parse::<Amount>() {
            Ok(amount) => Some((amount, node.at)),
            Err(e) => {
                self.fault(node.at, &path, e.to_string(), None);
                None
            }
        }
    }

    fn texts(&mut self, f: &mut Fields<'_>, key: &'static str) -> Option<Vec<String>> {
        let node = self.take(f, key)?;
        let path = f.join(key);
        let Value::List(items) = &node.value else {
            self.fault(node.at, &path, format!("expected a list, found {}", node.kind()), None);
            return None;
        };
        let mut all = Vec::new();
        for item in items {
            match &item.value {
                Value::Text(t) | Value::Number(t) if t.len() <= MAX_TEXT => all.push(t.clone()),
                _ => self.fault(item.at, &path, format!("expected texts, found {}", item.kind()), None),
            }
        }
        Some(all)
    }

    fn document(&mut self, node: &Node) -> Option<Policy> {
        if let Value::Map(entries) = &node.value
            && entries.len() == 1
            && entries[0].key == "policy"
        {
            return self.guardian(&entries[0].node);
        }
        let mut f = self.fields(node, "")?;
        let before = self.faults.len();
        let id = self.needed(&mut f, "id");
        let name = self.needed(&mut f, "name");
        let tenant = self.text(&mut f, "tenant").unwrap_or_else(|| "*".into());
        let limits = self.limits(&mut f);
        let condition = self.take(&mut f, "condition").map(|n| self.condition(n, "condition", 0));
        let actions = self.actions(&mut f);
        if limits.is_empty() && (condition.is_none() || actions.is_empty()) && self.faults.len() == before {
            self.fault(node.at, "", "a policy needs `limits`, or `condition` and `actions`", None);
        }
        let policy = Policy {
            id,
            name,
            tenant,
            version: 1,
            status: self.word(&mut f, "status", Status::parse, Status::TEXTS).unwrap_or(Status::Active),
            rule_type: self.word(&mut f, "rule_type", RuleType::parse, RuleType::TEXTS).unwrap_or(RuleType::System),
            source: self.word(&mut f, "source", Source::parse, Source::TEXTS).unwrap_or(Source::Manual),
            enforcement_mode: self.word(&mut f, "enforcement_mode", Mode::parse, Mode::TEXTS).unwrap_or(Mode::Audit),
            scope: self.scope(&mut f),
            precedence: self.whole(&mut f, "precedence", 100, -1_000_000, 1_000_000),
            conflict_strategy: self
                .word(&mut f, "conflict_strategy", Strategy::parse, Strategy::TEXTS)
                .unwrap_or(Strategy::MostRestrictive),
            binding: self.word(&mut f, "binding", Binding::parse, Binding::TEXTS).unwrap_or(Binding::EachStep),
            on_failure: self.word(&mut f, "on_failure", OnFailure::parse, OnFailure::TEXTS).unwrap_or(OnFailure::Open),
            depends_on: self.texts(&mut f, "depends_on").unwrap_or_default(),
            active: self.active(&mut f),
            limits,
            condition,
            actions,
            min_authority: self.authority(&mut f, 4),
            monitor: self.monitor(&mut f),
            alerts: self.alerts(&mut f),
            overrides: self.overrides(&mut f),
            rollback: self.rollback(&mut f),
            file: self.file.to_owned(),
            place: node.at,
        };
        self.done(f);
        Some(policy)
    }

    /// The guardian form of the seed: id = name, triggers are OR-ed, `auto_approve: false` requires approval.
    fn guardian(&mut self, node: &Node) -> Option<Policy> {
        let mut f = self.fields(node, "policy")?;
        let name = self.needed(&mut f, "name");
        let min_authority = self.authority(&mut f, 4);
        let mut conditions = Vec::new();
        match self.take(&mut f, "triggers").map(|n| (n, &n.value)) {
            Some((_, Value::List(items))) => {
                for item in items {
                    let Some(mut t) = self.fields(item, "policy.triggers") else { continue };
                    let kind = self.text(&mut t, "type");
                    let sql = self.needed(&mut t, "condition");
                    self.done(t);
                    conditions.push(serde_json::json!({ "type": "sql", "expression": sql, "trigger": kind }));
                }
            }
            _ => self.fault(node.at, "policy", "`triggers` must be a list", None),
        }
        let actions = self.actions(&mut f);
        let rollback = self.rollback(&mut f);
        self.done(f);
        Some(Policy {
            id: name.clone(),
            name,
            tenant: "*".into(),
            version: 1,
            status: Status::Active,
            rule_type: RuleType::Safety,
            source: Source::Manual,
            enforcement_mode: Mode::Audit,
            scope: Selector::default(),
            precedence: 100,
            conflict_strategy: Strategy::MostRestrictive,
            binding: Binding::EachStep,
            on_failure: OnFailure::Open,
            depends_on: Vec::new(),
            active: None,
            limits: Vec::new(),
            condition: Some(serde_json::json!({ "type": "composite", "operator": "OR", "conditions": conditions })),
            actions,
            min_authority,
            monitor: Monitor::default(),
            alerts: Alerts::default(),
            overrides: OverrideRule::default(),
            rollback,
            file: self.file.to_owned(),
            place: node.at,
        })
    }

    fn limits(&mut self, f: &mut Fields<'_>) -> Vec<Limit> {
        let Some(node) = self.take(f, "limits") else { return Vec::new() };
        let Value::List(items) = &node.value else {
            self.fault(node.at, "limits", format!("expected a list, found {}", node.kind()), None);
            return Vec::new();
        };
        let mut all: Vec<Limit> = Vec::new();
        for (i, item) in items.iter().enumerate() {
            let Some(limit) = self.limit(item, &format!("limits[{i}]")) else { continue };
            if all.iter().any(|l| l.id == limit.id) {
                self.fault(item.at, &format!("limits[{i}]"), format!("the id {} stands twice", quoted(&limit.id)), None);
            }
            all.push(limit);
        }
        all
    }

    fn limit(&mut self, node: &Node, path: &str) -> Option<Limit> {
        let mut f = self.fields(node, path)?;
        let id = self.needed(&mut f, "id");
        let metric = self.needed(&mut f, "metric");
        let limit_type = self.needed(&mut f, "limit_type");
        let max = match self.amount(&mut f, "max") {
            Some((max, at)) if max <= Amount::ZERO => {
                self.fault(at, &format!("{path}.max"), "must be above 0", None);
                max
            }
            Some((max, _)) => max,
            None => {
                self.fault(node.at, path, "`max` is missing or no number", None);
                Amount::ONE
            }
        };
        let near = match self.amount(&mut f, "near") {
            Some((near, at)) if near <= Amount::ZERO || near > Amount::ONE => {
                let help = Some("write a share such as 0.8".to_owned());
                self.fault(at, &format!("{path}.near"), "must be above 0 and at most 1", help);
                Amount::ONE
            }
            Some((near, _)) => near,
            None => Amount(800_000_000),
        };
        let enforcement =
            self.word(&mut f, "enforcement", Enforcement::parse, Enforcement::TEXTS).unwrap_or(Enforcement::Block);
        let default = if enforcement == Enforcement::Block { OnBreach::Stop } else { OnBreach::None };
        let forecast = self.whole(&mut f, "near_forecast_minutes", 0, 0, 1_000_000);
        let limit = Limit {
            id,
            limit_type,
            category: self.word(&mut f, "category", Category::parse, Category::TEXTS).unwrap_or(Category::Threshold),
            metric,
            max,
            near,
            near_forecast_minutes: u64::try_from(forecast).ok().filter(|m| *m > 0),
            status: self.word(&mut f, "status", LimitStatus::parse, LimitStatus::TEXTS).unwrap_or(LimitStatus::Active),
            enforcement,
            on_breach: self.word(&mut f, "on_breach", OnBreach::parse, OnBreach::TEXTS).unwrap_or(default),
            cooldown_seconds: self.unsigned(&mut f, "cooldown_seconds", 0),
            fallback_model: self.text(&mut f, "fallback_model"),
            place: node.at,
        };
        self.done(f);
        Some(limit)
    }

    fn scope(&mut self, f: &mut Fields<'_>) -> Selector {
        let Some(node) = self.take(f, "scope") else { return Selector::default() };
        let Some(mut s) = self.fields(node, "scope") else { return Selector::default() };
        let scope = Selector {
            level: self.word(&mut s, "level", Level::parse, Level::TEXTS).unwrap_or(Level::Tenant),
            level_ids: self.texts(&mut s, "level_ids").unwrap_or_default(),
            who: self.word(&mut s, "who", Subject::parse, Subject::TEXTS).unwrap_or(Subject::AllRuns),
            ids: self.texts(&mut s, "ids").unwrap_or_default(),
        };
        self.done(s);
        scope
    }

    fn active(&mut self, f: &mut Fields<'_>) -> Option<Active> {
        let node = self.take(f, "active")?;
        let mut a = self.fields(node, "active")?;
        let from = self.time(&mut a, "from");
        let until = self.time(&mut a, "until");
        let mut days = Vec::new();
        for text in self.texts(&mut a, "days").unwrap_or_default() {
            match Day::parse(&text) {
                Some(day) => days.push(day),
                None => {
                    let help = Some(format!("one of {}", Day::TEXTS.join(", ")));
                    self.fault(node.at, "active.days", format!("{} is no day", quoted(&text)), help);
                }
            }
        }
        let hours = self.text(&mut a, "hours").and_then(|text| {
            let hours = Hours::parse(&text);
            if hours.is_none() {
                let help = Some("write them like \"22:00-06:00\"".to_owned());
                self.fault(node.at, "active.hours", format!("{} are no hours", quoted(&text)), help);
            }
            hours
        });
        let timezone = self.text(&mut a, "timezone").unwrap_or_else(|| "UTC".into());
        if timezone.parse::<chrono_tz::Tz>().is_err() {
            let help = Some("write an IANA name such as Europe/Zurich".to_owned());
            self.fault(node.at, "active.timezone", format!("{} is no time zone", quoted(&timezone)), help);
        }
        self.done(a);
        Some(Active { from, until, days, hours, timezone })
    }

    fn time(&mut self, f: &mut Fields<'_>, key: &'static str) -> Option<i64> {
        let at = f.at;
        let path = f.join(key);
        let text = self.text(f, key)?;
        let parsed = chrono::DateTime::parse_from_rfc3339(&text).ok();
        if parsed.is_none() {
            let help = Some("write it like 2026-01-31T12:00:00Z".to_owned());
            self.fault(at, &path, format!("{} is no RFC 3339 time", quoted(&text)), help);
        }
        parsed.map(|t| t.timestamp_micros())
    }

    fn monitor(&mut self, f: &mut Fields<'_>) -> Monitor {
        let Some(node) = self.take(f, "monitor") else { return Monitor::default() };
        let Some(mut m) = self.fields(node, "monitor") else { return Monitor::default() };
        let monitor = Monitor {
            signals: self.texts(&mut m, "signals").unwrap_or_default(),
            allow_prompt_logging: self.flag(&mut m, "allow_prompt_logging", false),
            allow_pii_capture: self.flag(&mut m, "allow_pii_capture", false),
        };
        self.done(m);
        monitor
    }

    fn alerts(&mut self, f: &mut Fields<'_>) -> Alerts {
        let defaults = Alerts::default();
        let Some(node) = self.take(f, "alerts") else { return defaults };
        let Some(mut a) = self.fields(node, "alerts") else { return defaults };
        let alerts = Alerts {
            channels: self.texts(&mut a, "channels").unwrap_or(defaults.channels),
            max_alerts_per_run: self.unsigned(&mut a, "max_alerts_per_run", defaults.max_alerts_per_run),
            min_alert_interval_seconds: self.unsigned(
                &mut a,
                "min_alert_interval_seconds",
                defaults.min_alert_interval_seconds,
            ),
        };
        self.done(a);
        alerts
    }

    fn overrides(&mut self, f: &mut Fields<'_>) -> OverrideRule {
        let defaults = OverrideRule::default();
        let Some(node) = self.take(f, "override") else { return defaults };
        let Some(mut o) = self.fields(node, "override") else { return defaults };
        let rule = OverrideRule {
            min_authority: self.authority(&mut o, defaults.min_authority),
            max_minutes: self.unsigned(&mut o, "max_minutes", defaults.max_minutes),
        };
        self.done(o);
        rule
    }

    fn rollback(&mut self, f: &mut Fields<'_>) -> Rollback {
        let defaults = Rollback::default();
        let Some(node) = self.take(f, "rollback") else { return defaults };
        let Some(mut r) = self.fields(node, "rollback") else { return defaults };
        let rollback = Rollback {
            enabled: self.flag(&mut r, "enabled", defaults.enabled),
            auto_rollback_after_minutes: self.unsigned(
                &mut r,
                "auto_rollback_after_minutes",
                defaults.auto_rollback_after_minutes,
            ),
        };
        self.done(r);
        rollback
    }

    /// A condition's structure is checked; its meaning is not judged here.
    fn condition(&mut self, node: &Node, path: &str, depth: usize) -> serde_json::Value {
        if let Some(mut f) = self.fields(node, path) {
            let kind = self.needed(&mut f, "type");
            match kind.as_str() {
                "composite" => {
                    const OPERATORS: &[&str] = &["AND", "OR", "NOT"];
                    let parse = |t: &str| OPERATORS.iter().find(|o| **o == t).copied();
                    self.word(&mut f, "operator", parse, OPERATORS);
                    match self.take(&mut f, "conditions").map(|n| &n.value) {
                        Some(Value::List(items)) if !items.is_empty() && depth < 16 => {
                            for (i, item) in items.iter().enumerate() {
                                self.condition(item, &format!("{path}.conditions[{i}]"), depth + 1);
                            }
                        }
                        _ => self.fault(node.at, path, "`conditions` must be a list of at least one condition", None),
                    }
                }
                "field_comparison" => {
                    const OPERATORS: &[&str] =
                        &["==", "!=", "<", "<=", ">", ">=", "in", "contains", "matches", "exists"];
                    self.needed(&mut f, "field");
                    let parse = |t: &str| OPERATORS.iter().find(|o| **o == t).copied();
                    self.word(&mut f, "operator", parse, OPERATORS);
                    self.take(&mut f, "value");
                }
                "sql" => {
                    self.needed(&mut f, "expression");
                }
                other => {
                    let help = Some("one of composite, field_comparison, sql".to_owned());
                    self.fault(node.at, path, format!("{} is no kind of condition", quoted(other)), help);
                    return serde_json::Value::Null;
                }
            }
            self.done(f);
        }
        node.to_json()
    }

    fn actions(&mut self, f: &mut Fields<'_>) -> Vec<serde_json::Value> {
        let path = f.join("actions");
        let Some(node) = self.take(f, "actions") else { return Vec::new() };
        let Value::List(items) = &node.value else {
            self.fault(node.at, &path, format!("expected a list, found {}", node.kind()), None);
            return Vec::new();
        };
        let mut all = Vec::new();
        for (i, item) in items.iter().enumerate() {
            let Some(mut a) = self.fields(item, &format!("{path}[{i}]")) else { continue };
            self.needed(&mut a, "type");
            for key in ["target", "reason"] {
                self.text(&mut a, key);
            }
            for key in ["approval_required", "auto_approve"] {
                self.flag(&mut a, key, false);
            }
            self.texts(&mut a, "channels");
            self.take(&mut a, "parameters");
            self.done(a);
            all.push(item.to_json());
        }
        all
    }
}
