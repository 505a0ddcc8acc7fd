-- POL-GOV-ACT-O2: Policy proposal statistics?
-- One row, always. Of those that a person decided on, approval_rate is the share that came in force; null before any.
SELECT count(*)                                                    AS total_proposals,
       count(*) FILTER (WHERE status = 'DRAFT')                    AS drafts,
       count(*) FILTER (WHERE status = 'ACTIVE')                   AS active,
       count(*) FILTER (WHERE status = 'REJECTED')                 AS rejected,
       count(*) FILTER (WHERE status = 'RETIRED')                  AS retired,
       count(*) FILTER (WHERE draft_version IS NOT NULL)           AS waiting_for_review,
       CAST(count(*) FILTER (WHERE status IN ('ACTIVE', 'RETIRED')) AS DOUBLE)
           / nullif(count(*) FILTER (WHERE status <> 'DRAFT'), 0)  AS approval_rate,
       min(created_at) FILTER (WHERE draft_version IS NOT NULL)    AS oldest_waiting_since,
       max(created_at)                                             AS last_created_at
FROM policy_proposals
