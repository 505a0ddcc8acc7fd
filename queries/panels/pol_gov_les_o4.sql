-- POL-GOV-LES-O4: What lessons were converted, and what became of their drafts?
-- Lessons that became a proposal, and how that stands; null: the proposal is not there yet.
SELECT l.id, l.tenant_id, l.lesson_type, l.title, l.converted_at, l.draft_proposal_id, p.policy_id, p.status AS proposal_status,
       p.decided_at, p.decided_by
FROM lessons_learned l
LEFT JOIN policy_proposals p ON p.proposal_id = l.draft_proposal_id
WHERE l.status = 'converted_to_draft' AND l.is_synthetic IS NOT TRUE
ORDER BY l.converted_at DESC, l.id
