-- metric: latency_p95_ms
-- scope: TENANT
-- emit: final
-- unit: ms
-- description: 95th percentile of the latency of steps over five minutes, within 1 %; decided when the window closes.
SELECT tenant_id, window_start, window_end,
       quantile(latency_ms, 0.95) AS value,
       count(*) FILTER (WHERE is_synthetic IS NOT TRUE) = 0 AS is_synthetic
FROM hop(telemetry, event_time, INTERVAL '30 seconds', INTERVAL '5 minutes')
WHERE event_type = 'run.step'
GROUP BY tenant_id, window_start, window_end
HAVING quantile(latency_ms, 0.95) IS NOT NULL
