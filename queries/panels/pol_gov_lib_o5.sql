-- POL-GOV-LIB-O5: What temporal policies exist?
-- Rules of the type TEMPORAL, whatever their status.
SELECT rule_id, tenant_id, name, rule_type, source, status, enforcement_mode, scope, version, precedence, depends_on, origin,
       proposal_id, created_at, created_by
FROM policy_rules
WHERE rule_type = 'TEMPORAL'
ORDER BY tenant_id, rule_id
