-- Near or past a limit? One row per result and effective limit of its scope (S1, X6).
--
-- results: row, limit_set, metric, value            a window result that has reached its lowest line of interest, or a final one;
--          per_minute, minutes_left                 how fast it grew so far, and until its window ends; null: nothing to forecast
-- limits:  limit_set, metric, limit_no, near_at, max, near, policy_id, limit_id, mode, enforcement, on_breach,
--          near_forecast_minutes
--
-- limit_set names the arbitration for one combination of agent, key, human, project, provider and tenant; it changes when a
-- new combination appears, not at each row. All quantities are DECIMAL(38,9), so the comparison is exact. A limit that is
-- reached only after its window has ended is not forecast.
SELECT
    row,
    limit_no,
    CASE WHEN value >= max                              THEN 'BREACH'
         WHEN value >= near_at OR minutes <= forecast   THEN 'NEAR'
    END                                                              AS level,
    round(CAST(value AS DOUBLE) / CAST(max AS DOUBLE), 6)            AS utilization,
    CASE WHEN value > max THEN value - max END                       AS overshoot,
    minutes                                                          AS minutes_to_limit,
    CASE WHEN value < near_at AND minutes <= forecast THEN 'forecast' ELSE 'value' END AS raised_by
FROM (
    SELECT
        r.row, l.limit_no, r.value, l.max, l.near_at, l.near_forecast_minutes AS forecast,
        CASE WHEN r.value >= l.max THEN 0.0
             WHEN r.per_minute > 0
              AND (r.minutes_left IS NULL
                   OR CAST(l.max - r.value AS DOUBLE) / r.per_minute <= r.minutes_left)
             THEN CAST(l.max - r.value AS DOUBLE) / r.per_minute
        END AS minutes
    FROM results r
    JOIN limits l ON l.limit_set = r.limit_set AND l.metric = r.metric
)
