-- POL-LIM-THR-O4: What token quotas exist?
-- Limits of a type that begins with TOKENS_.
SELECT limit_id, tenant_id, policy_id, policy_name, limit_type, category, metric, max, near, status, enforcement, on_breach,
       cooldown_seconds, fallback_model, scope, policy_status, created_at
FROM policy_limits
WHERE starts_with(limit_type, 'TOKENS_')
ORDER BY tenant_id, policy_id, limit_id
