-- POL-GOV-DFT-O3: What is the current policy version?
-- Exactly one of each proposal.
SELECT proposal_id, tenant_id, policy_id, version, is_current, status, created_at, created_by, policy
FROM policy_versions
WHERE is_current
ORDER BY tenant_id, policy_id, proposal_id
