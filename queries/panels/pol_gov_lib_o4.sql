-- POL-GOV-LIB-O4: What guard policies exist?
-- Rules that come with the system.
SELECT rule_id, tenant_id, name, rule_type, source, status, enforcement_mode, scope, version, precedence, depends_on, origin,
       proposal_id, created_at, created_by
FROM policy_rules
WHERE source = 'SYSTEM'
ORDER BY tenant_id, rule_id
