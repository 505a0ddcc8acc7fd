-- POL-GOV-DFT-O5: What policy dependencies exist?
-- Which policy needs which, and why.
SELECT tenant_id, from_policy_id, to_policy_id, from_tenant, to_tenant, dependency_type, explanation
FROM dependencies
ORDER BY from_tenant, from_policy_id, to_tenant, to_policy_id, dependency_type
