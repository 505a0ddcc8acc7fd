-- metric: api_key_requests_1m
-- scope: API_KEY
-- emit: changes
-- unit: requests
-- description: Steps made with an API key in a minute.
SELECT tenant_id, api_key_id, window_start, window_end,
       count(*) AS value
FROM tumble(telemetry, event_time, INTERVAL '1 minute')
WHERE event_type = 'run.step' AND api_key_id IS NOT NULL
GROUP BY tenant_id, api_key_id, window_start, window_end
