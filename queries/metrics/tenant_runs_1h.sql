-- metric: tenant_runs_1h
-- scope: TENANT
-- emit: changes
-- unit: runs
-- description: Runs a tenant started in an hour.
SELECT tenant_id, window_start, window_end,
       count(*) AS value
FROM tumble(telemetry, event_time, INTERVAL '1 hour')
WHERE event_type = 'run.started'
GROUP BY tenant_id, window_start, window_end
