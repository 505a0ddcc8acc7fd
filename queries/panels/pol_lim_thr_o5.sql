-- POL-LIM-THR-O5: What cooldowns are configured?
-- Limits of the type COOLDOWN.
SELECT limit_id, tenant_id, policy_id, policy_name, limit_type, category, metric, max, near, status, enforcement, on_breach,
       cooldown_seconds, fallback_model, scope, policy_status, created_at
FROM policy_limits
WHERE limit_type = 'COOLDOWN'
ORDER BY tenant_id, policy_id, limit_id
