-- metric: run_risk_max
-- scope: RUN
-- emit: changes
-- unit: score
-- description: Highest risk score of a step of a run.
SELECT tenant_id, run_id, window_start, window_end,
       max(risk_score) FILTER (WHERE event_type = 'run.step') AS value
FROM session(telemetry, event_time, INTERVAL '24 hours', event_type IN ('run.completed', 'run.failed'))
WHERE run_id IS NOT NULL
GROUP BY tenant_id, run_id, window_start, window_end
HAVING max(risk_score) FILTER (WHERE event_type = 'run.step') IS NOT NULL
