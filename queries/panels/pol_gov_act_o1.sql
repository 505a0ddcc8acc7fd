-- POL-GOV-ACT-O1: What policy proposals exist?
-- Every proposal as it stands, the newest first.
SELECT proposal_id, tenant_id, policy_id, status, rationale, created_at, created_by, decided_at, decided_by, decision_reason,
       draft_version, current_version, versions
FROM policy_proposals
ORDER BY created_at DESC, proposal_id
