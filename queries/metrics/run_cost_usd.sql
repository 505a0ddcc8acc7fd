-- metric: run_cost_usd
-- scope: RUN
-- emit: changes
-- unit: USD
-- description: Cost of the steps of a run.
SELECT tenant_id, run_id, window_start, window_end,
       sum(cost_usd) FILTER (WHERE event_type = 'run.step') AS value,
       CASE WHEN count(*) FILTER (WHERE event_type = 'run.step' AND cost_provenance = 'unknown') > 0 THEN 'unknown'
            WHEN count(*) FILTER (WHERE event_type = 'run.step' AND cost_provenance LIKE 'table%') > 0 THEN 'table'
            ELSE 'reported' END AS cost_provenance
FROM session(telemetry, event_time, INTERVAL '24 hours', event_type IN ('run.completed', 'run.failed'))
WHERE run_id IS NOT NULL
GROUP BY tenant_id, run_id, window_start, window_end
HAVING sum(cost_usd) FILTER (WHERE event_type = 'run.step') IS NOT NULL
