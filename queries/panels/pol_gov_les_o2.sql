-- POL-GOV-LES-O2: What are the lesson statistics?
-- One row, always, without synthetic lessons. conversion_rate is the share of those that are done with that became a draft.
SELECT count(*)                                                            AS total_lessons,
       count(*) FILTER (WHERE status = 'pending')                          AS pending,
       count(*) FILTER (WHERE status = 'converted_to_draft')               AS converted_to_draft,
       count(*) FILTER (WHERE status = 'deferred')                         AS deferred,
       count(*) FILTER (WHERE status = 'dismissed')                        AS dismissed,
       count(*) FILTER (WHERE lesson_type = 'failure')                     AS failure,
       count(*) FILTER (WHERE lesson_type = 'near_threshold')              AS near_threshold,
       count(*) FILTER (WHERE lesson_type = 'critical_success')            AS critical_success,
       CAST(count(*) FILTER (WHERE status = 'converted_to_draft') AS DOUBLE)
           / nullif(count(*) FILTER (WHERE status IN ('converted_to_draft', 'dismissed')), 0) AS conversion_rate,
       max(created_at)                                                     AS last_created_at
FROM lessons_learned
WHERE is_synthetic IS NOT TRUE
