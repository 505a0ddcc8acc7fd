-- POL-GOV-LES-O5: What lessons were deferred or dismissed?
-- The deferred ones first, by when they come back; then what was dismissed, and why.
SELECT id, tenant_id, lesson_type, severity, title, status, deferred_until, dismissed_at, dismissed_by, dismissed_reason, created_at
FROM lessons_learned
WHERE status IN ('deferred', 'dismissed') AND is_synthetic IS NOT TRUE
ORDER BY status, deferred_until, dismissed_at DESC, id
