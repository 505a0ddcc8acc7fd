-- POL-LIM-VIO-O5: What divergence was observed?
-- Violations of the last 24 hours where shadow and enforced limits disagree, without synthetic ones.
SELECT violation_id, tenant_id, policy_id, limit_id, limit_type, metric, kind, mode, scope_kind, scope_id, run_id, violation_type,
       source, severity, violation_kind, value, limit_value, utilization, overshoot, detected_at, is_synthetic
FROM violations
WHERE detected_at > now() - INTERVAL '24' HOUR AND violation_kind = 'DIVERGENCE' AND is_synthetic IS NOT TRUE
ORDER BY detected_at DESC, violation_id
