-- POL-GOV-LES-O3: What does a lesson say?
-- Every lesson in full, the newest first, without synthetic ones.
SELECT id, tenant_id, lesson_type, severity, source_event_id, source_event_type, source_run_id, title, description, proposed_action,
       detected_pattern, status, draft_proposal_id, created_at, converted_at, deferred_until, dismissed_at, dismissed_by,
       dismissed_reason
FROM lessons_learned
WHERE is_synthetic IS NOT TRUE
ORDER BY created_at DESC, id
