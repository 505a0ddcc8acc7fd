-- POL-GOV-DFT-O2: What policy versions exist?
-- Every version of every proposal, the newest of each first.
SELECT proposal_id, tenant_id, policy_id, version, is_current, status, created_at, created_by
FROM policy_versions
ORDER BY proposal_id, version DESC
