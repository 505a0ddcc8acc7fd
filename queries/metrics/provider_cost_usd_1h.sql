-- metric: provider_cost_usd_1h
-- scope: PROVIDER
-- emit: changes
-- unit: USD
-- description: Cost of a tenant's steps at a provider in an hour.
SELECT tenant_id, provider, window_start, window_end,
       sum(cost_usd) AS value,
       CASE WHEN count(*) FILTER (WHERE cost_provenance = 'unknown') > 0 THEN 'unknown'
            WHEN count(*) FILTER (WHERE cost_provenance LIKE 'table%') > 0 THEN 'table'
            ELSE 'reported' END AS cost_provenance
FROM tumble(telemetry, event_time, INTERVAL '1 hour')
WHERE event_type = 'run.step' AND provider IS NOT NULL
GROUP BY tenant_id, provider, window_start, window_end
HAVING sum(cost_usd) IS NOT NULL
