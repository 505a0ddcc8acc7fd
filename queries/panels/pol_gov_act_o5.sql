-- POL-GOV-ACT-O5: What are the policy layer metrics?
-- One row, always, over the last 24 hours; last_evaluation_at over all that is kept. The two by_… columns are objects in JSON.
WITH recent AS (
    SELECT * FROM evaluations WHERE minute > now() - INTERVAL '24' HOUR
),
totals AS (
    SELECT coalesce(sum(evaluations), 0)   AS total_evaluations,
           coalesce(sum(blocks), 0)        AS total_blocks,
           coalesce(sum(allows), 0)        AS total_allows,
           coalesce(sum(time_spent_us), 0) AS time_spent_us
    FROM recent
),
actions AS (
    -- by_action is an object of counts: "STOP":2,"WARN":1
    SELECT split_part(pair, ':', 1) AS action, sum(CAST(split_part(pair, ':', 2) AS BIGINT)) AS times
    FROM (SELECT unnest(string_to_array(replace(btrim(by_action, '{} '), ' ', ''), ',')) AS pair FROM recent)
    WHERE pair <> ''
    GROUP BY split_part(pair, ':', 1)
),
types AS (
    SELECT violation_type, count(*) AS times
    FROM violations
    WHERE detected_at > now() - INTERVAL '24' HOUR AND is_synthetic IS NOT TRUE AND violation_type IS NOT NULL
    GROUP BY violation_type
)
SELECT total_evaluations,
       total_blocks,
       total_allows,
       coalesce(CAST(total_blocks AS DOUBLE) / nullif(total_evaluations, 0), 0.0)             AS block_rate,
       coalesce(CAST(time_spent_us AS DOUBLE) / 1000 / nullif(total_evaluations, 0), 0.0)     AS avg_evaluation_ms,
       (SELECT '{' || coalesce(string_agg('"' || violation_type || '":' || CAST(times AS VARCHAR), ',' ORDER BY violation_type), '') || '}'
        FROM types)                                                                           AS violations_by_type,
       (SELECT '{' || coalesce(string_agg(action || ':' || CAST(times AS VARCHAR), ',' ORDER BY action), '') || '}'
        FROM actions)                                                                         AS evaluations_by_action,
       24                                                                                     AS window_hours,
       (SELECT max(minute) FROM evaluations)                                                  AS last_evaluation_at
FROM totals
