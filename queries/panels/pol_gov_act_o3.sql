-- POL-GOV-ACT-O3: What policy requests are pending?
-- Versions of proposals that wait for a person, the longest waiting first. A policy in force may have one too.
SELECT p.proposal_id                                               AS request_id,
       p.tenant_id,
       p.policy_id,
       p.status,
       p.draft_version,
       p.rationale,
       coalesce(v.created_by, p.created_by)                        AS requested_by,
       coalesce(v.created_at, p.created_at)                        AS requested_at
FROM policy_proposals p
LEFT JOIN policy_versions v ON v.proposal_id = p.proposal_id AND v.version = p.draft_version
WHERE p.draft_version IS NOT NULL
ORDER BY requested_at, request_id
