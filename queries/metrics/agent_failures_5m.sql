-- metric: agent_failures_5m
-- scope: AGENT
-- emit: changes
-- unit: runs
-- description: Failed runs of an agent over five minutes.
SELECT tenant_id, agent_id, window_start, window_end,
       count(*) AS value
FROM hop(telemetry, event_time, INTERVAL '30 seconds', INTERVAL '5 minutes')
WHERE event_type = 'run.failed' AND agent_id IS NOT NULL
GROUP BY tenant_id, agent_id, window_start, window_end
