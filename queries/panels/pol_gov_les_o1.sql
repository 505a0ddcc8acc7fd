-- POL-GOV-LES-O1: What lessons are pending?
-- Lessons that wait for a person, the newest first, without synthetic ones.
SELECT id, tenant_id, lesson_type, severity, source_event_id, source_event_type, source_run_id, title, proposed_action, status, created_at
FROM lessons_learned
WHERE status = 'pending' AND is_synthetic IS NOT TRUE
ORDER BY created_at DESC, id
