-- POL-GOV-LIB-O2: What ethical constraints exist?
-- Rules of the type ETHICAL, whatever their status.
SELECT rule_id, tenant_id, name, rule_type, source, status, enforcement_mode, scope, version, precedence, depends_on, origin,
       proposal_id, created_at, created_by
FROM policy_rules
WHERE rule_type = 'ETHICAL'
ORDER BY tenant_id, rule_id
