//! The keys of policy files and the bounds of their lists: one table for the reader and the schema.

/// Most limits of one policy.
pub const MAX_LIMITS: usize = 256;
/// Deepest nesting and most parts of a condition.
pub const MAX_CONDITION: usize = 256;
/// Most actions of one policy.
pub const MAX_ACTIONS: usize = 64;

/// A policy.
pub const POLICY: &[&str] = &[
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
/// One of `limits`.
pub const LIMIT: &[&str] = &[
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
/// `scope`
pub const SCOPE: &[&str] = &["level", "level_ids", "who", "ids"];
/// `active`
pub const ACTIVE: &[&str] = &["from", "until", "days", "hours", "timezone"];
/// `monitor`
pub const MONITOR: &[&str] = &["signals", "allow_prompt_logging", "allow_pii_capture"];
/// `alerts`
pub const ALERTS: &[&str] = &["channels", "max_alerts_per_run", "min_alert_interval_seconds"];
/// `override`
pub const OVERRIDE: &[&str] = &["min_authority", "max_minutes"];
/// `rollback`
pub const ROLLBACK: &[&str] = &["enabled", "auto_rollback_after_minutes"];
/// A condition of type composite.
pub const COMPOSITE: &[&str] = &["type", "operator", "conditions"];
/// A condition of type `field_comparison`.
pub const COMPARISON: &[&str] = &["type", "field", "operator", "value"];
/// A condition of type sql.
pub const SQL: &[&str] = &["type", "expression"];
/// One of `actions`.
pub const ACTION: &[&str] = &["type", "target", "reason", "approval_required", "parameters"];
