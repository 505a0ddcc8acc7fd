-- metric: tenant_tokens_5m
-- scope: TENANT
-- emit: changes
-- unit: tokens
-- description: Tokens used by a tenant over five minutes: the burn rate.
SELECT tenant_id, window_start, window_end,
       sum(total_tokens) AS value
FROM hop(telemetry, event_time, INTERVAL '10 seconds', INTERVAL '5 minutes')
WHERE event_type = 'run.step'
GROUP BY tenant_id, window_start, window_end
HAVING sum(total_tokens) IS NOT NULL
