-- POL-LIM-VIO-O3: What simulated incidents exist?
-- Violations of the last 24 hours under AUDIT or of synthetic runs: nothing was held to them.
SELECT violation_id, tenant_id, policy_id, limit_id, limit_type, metric, kind, mode, scope_kind, scope_id, run_id, violation_type,
       source, severity, violation_kind, value, limit_value, utilization, overshoot, detected_at, is_synthetic
FROM violations
WHERE detected_at > now() - INTERVAL '24' HOUR AND source = 'sim'
ORDER BY detected_at DESC, violation_id
