-- Near or past a limit? One row per result and effective limit of its scope (S1).
--
-- results: row, limit_set, metric, value            a window result that has reached its lowest NEAR line, or a final one
-- limits:  limit_set, metric, limit_no, near_at, max, near, policy_id, limit_id, mode, enforcement, on_breach
--
-- limit_set names the arbitration for one combination of agent, key, human, project, provider and tenant; it changes when a
-- new combination appears, not at each row. All quantities are DECIMAL(38,9), so the comparison is exact.
SELECT
    r.row,
    l.limit_no,
    CASE WHEN r.value >= l.max     THEN 'BREACH'
         WHEN r.value >= l.near_at THEN 'NEAR'
    END                                                              AS level,
    round(CAST(r.value AS DOUBLE) / CAST(l.max AS DOUBLE), 6)        AS utilization,
    CASE WHEN r.value > l.max THEN r.value - l.max END               AS overshoot
FROM results r
JOIN limits l ON l.limit_set = r.limit_set AND l.metric = r.metric
