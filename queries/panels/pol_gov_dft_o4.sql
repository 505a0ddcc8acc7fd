-- POL-GOV-DFT-O4: What policy conflicts exist?
-- Pairs of policies that contradict each other, those that block an activation first.
SELECT tenant_id, policy_a_id, policy_b_id, policy_a_name, policy_b_name, policy_a_tenant, policy_b_tenant, conflict_type, severity,
       explanation, recommended_action, detected_at
FROM conflicts
ORDER BY CASE severity WHEN 'BLOCKING' THEN 0 ELSE 1 END, policy_a_tenant, policy_a_id, policy_b_tenant, policy_b_id, conflict_type
