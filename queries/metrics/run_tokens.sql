-- metric: run_tokens
-- scope: RUN
-- emit: changes
-- unit: tokens
-- description: Tokens used by the steps of a run.
SELECT tenant_id, run_id, window_start, window_end,
       sum(total_tokens) FILTER (WHERE event_type = 'run.step') AS value
FROM session(telemetry, event_time, INTERVAL '24 hours', event_type IN ('run.completed', 'run.failed'))
WHERE run_id IS NOT NULL
GROUP BY tenant_id, run_id, window_start, window_end
HAVING sum(total_tokens) FILTER (WHERE event_type = 'run.step') IS NOT NULL
