-- POL-GOV-DFT-O1: What draft proposals exist?
-- Proposals that no version of is in force yet, each with the lesson it was made of, if it was made of one.
SELECT p.proposal_id, p.tenant_id, p.policy_id, p.status, p.rationale, p.created_at, p.created_by, p.draft_version, p.versions,
       l.id AS lesson_id, l.lesson_type
FROM policy_proposals p
LEFT JOIN lessons_learned l ON l.draft_proposal_id = p.proposal_id
WHERE p.status = 'DRAFT'
ORDER BY p.created_at DESC, p.proposal_id
