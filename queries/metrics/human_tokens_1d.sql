-- metric: human_tokens_1d
-- scope: HUMAN_ACTOR
-- emit: changes
-- unit: tokens
-- description: Tokens used on behalf of a person in a day.
SELECT tenant_id, human_actor_id, window_start, window_end,
       sum(total_tokens) AS value
FROM tumble(telemetry, event_time, INTERVAL '1 day')
WHERE event_type = 'run.step' AND human_actor_id IS NOT NULL
GROUP BY tenant_id, human_actor_id, window_start, window_end
HAVING sum(total_tokens) IS NOT NULL
