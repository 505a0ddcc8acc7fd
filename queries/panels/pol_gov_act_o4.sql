-- POL-GOV-ACT-O4: What is the policy layer state?
-- One row, always. last_updated is the newest change of a policy, a proposal or a lesson, or the newest violation.
SELECT (SELECT count(*) FROM policy_rules)                                            AS total_policies,
       (SELECT count(*) FROM policy_rules WHERE status = 'ACTIVE')                    AS active_policies,
       (SELECT count(*) FROM policy_proposals WHERE draft_version IS NOT NULL)        AS drafts_pending_review,
       (SELECT count(*) FROM conflicts)                                               AS conflicts_detected,
       (SELECT count(*) FROM violations
        WHERE detected_at > now() - INTERVAL '24' HOUR AND is_synthetic IS NOT TRUE)  AS violations_24h,
       (SELECT count(*) FROM lessons_learned
        WHERE status = 'pending' AND is_synthetic IS NOT TRUE)                        AS lessons_pending_action,
       (SELECT max(at)
        FROM (SELECT max(created_at) AS at FROM policy_rules
              UNION ALL SELECT max(coalesce(decided_at, created_at)) FROM policy_proposals
              UNION ALL SELECT max(decided_at) FROM violations
              UNION ALL SELECT max(coalesce(converted_at, dismissed_at, created_at)) FROM lessons_learned)) AS last_updated
