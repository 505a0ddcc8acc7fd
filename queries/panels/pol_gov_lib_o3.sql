-- POL-GOV-LIB-O3: What active policies are adopted?
-- Rules that are in force.
SELECT rule_id, tenant_id, name, rule_type, source, status, enforcement_mode, scope, version, precedence, depends_on, origin,
       proposal_id, created_at, created_by
FROM policy_rules
WHERE status = 'ACTIVE'
ORDER BY tenant_id, rule_id
