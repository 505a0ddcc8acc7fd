-- metric: agent_tokens_1m
-- scope: AGENT
-- emit: changes
-- unit: tokens
-- description: Tokens used by an agent in a minute.
SELECT tenant_id, agent_id, window_start, window_end,
       sum(total_tokens) AS value
FROM tumble(telemetry, event_time, INTERVAL '1 minute')
WHERE event_type = 'run.step' AND agent_id IS NOT NULL
GROUP BY tenant_id, agent_id, window_start, window_end
HAVING sum(total_tokens) IS NOT NULL
