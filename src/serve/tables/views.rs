//! The views: tables under the seed's names, and what is read often enough to have a name. Each is one SELECT over the tables, so a view
//! sees what its session sees and nothing more.

/// A view: its name, its SQL, and what it is, for people. A view may stand on those before it.
pub static VIEWS: [(&str, &str, &str); 9] = [
    ("threshold_signals", "SELECT * FROM signals", "limits that were neared, breached, and no longer are: signals"),
    ("lessons_learned", "SELECT * FROM lessons", "lessons as they stand: lessons"),
    ("policy_override_records", "SELECT * FROM overrides", "overrides: policies out of force for a while"),
    ("policy_proposals", "SELECT * FROM proposals", "proposals of policies"),
    (
        "violations",
        "SELECT signal_id AS violation_id, tenant_id, policy_id, policy_version, limit_id, limit_type, category, metric, kind, mode,
                scope_kind, scope_id, run_id, violation_type, source, severity, violation_kind, value, limit_value, utilization,
                overshoot, event_time AS detected_at, decided_at, signal_id, is_synthetic
         FROM signals
         WHERE kind <> 'RESOLVED'",
        "signals as violations: NEAR and BREACH",
    ),
    (
        "policy_rules",
        "SELECT policy_id AS rule_id, tenant_id, name, rule_type, source, status, enforcement_mode, scope_level AS scope, version,
                precedence, depends_on, origin, proposal_id, changed_at AS created_at, changed_by AS created_by
         FROM policies",
        "policies as rules",
    ),
    // a limit without its policy would be a fault of the topic; it is shown all the same
    (
        "policy_limits",
        "SELECT l.limit_id, l.policy_id, p.name AS policy_name, l.tenant_id, l.limit_type, l.category, l.metric, l.max, l.near, l.status,
                l.enforcement, l.on_breach, l.cooldown_seconds, l.fallback_model, p.scope_level AS scope, p.status AS policy_status,
                p.changed_at AS created_at
         FROM limits l
         LEFT JOIN policies p ON p.tenant_id = l.tenant_id AND p.policy_id = l.policy_id",
        "limits, each with its policy",
    ),
    (
        "guardian_actions",
        "SELECT intervention_id AS id, tenant_id,
                CASE type WHEN 'CANCEL_TASK' THEN 'cancel_task'
                          WHEN 'REALLOCATE_CAPACITY' THEN 'reallocate_capacity'
                          ELSE 'override_priority' END AS action_type,
                target_id AS target_entity, authority_level, reason, initiated_by, approved_by, executed_at, reverted_at, audit_log,
                created_at, state
         FROM interventions
         WHERE type IN ('CANCEL_TASK', 'REALLOCATE_CAPACITY', 'PRIORITY_OVERRIDE')",
        "interventions of the guardian",
    ),
    // At one point in time a later window is newer; within one window its end is newer than its BREACH, and that newer than its NEAR.
    (
        "levels_up",
        "SELECT * EXCLUDE (newest)
         FROM (SELECT *, row_number() OVER (
                   PARTITION BY tenant_id, policy_id, limit_id, scope_kind, scope_id
                   ORDER BY event_time DESC, window_end DESC,
                            CASE kind WHEN 'RESOLVED' THEN 0 WHEN 'BREACH' THEN 1 ELSE 2 END, decided_at DESC) AS newest
               FROM signals
               WHERE window_end > now() - INTERVAL '1' DAY)
         WHERE newest = 1 AND kind <> 'RESOLVED'",
        "limits that are at NEAR or BREACH now: the newest signal of each",
    ),
];
