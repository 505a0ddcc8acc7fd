-- metric: agent_anomaly_max_5m
-- scope: AGENT
-- emit: changes
-- unit: score
-- description: Highest anomaly score an agent reported over five minutes.
SELECT tenant_id, agent_id, window_start, window_end,
       max(anomaly_score) AS value
FROM hop(telemetry, event_time, INTERVAL '30 seconds', INTERVAL '5 minutes')
WHERE event_type = 'agent.heartbeat' AND agent_id IS NOT NULL
GROUP BY tenant_id, agent_id, window_start, window_end
HAVING max(anomaly_score) IS NOT NULL
