-- POL-LIM-THR-O2: What budgets are configured?
-- Limits of the category BUDGET that are on: what may be spent, not what was.
SELECT limit_id, tenant_id, policy_id, policy_name, limit_type, category, metric, max, near, status, enforcement, on_breach,
       cooldown_seconds, fallback_model, scope, policy_status, created_at
FROM policy_limits
WHERE category = 'BUDGET' AND status = 'ACTIVE'
ORDER BY tenant_id, policy_id, limit_id
