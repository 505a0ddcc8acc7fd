-- Which alerts belong together (A1): alerts of a tenant with one correlation key, each within 5 minutes of the last.
--
-- members: event_time, tenant_id, source, kind, severity, policy_id, limit_id, metric, scope_kind, scope_id, run_id, agent_id
--
-- Everything one agent's runs do wrong is one alert; what concerns no agent is grouped by whom it concerns.
SELECT
    tenant_id,
    coalesce('AGENT:' || agent_id, scope_kind || ':' || scope_id) AS correlation_key,
    window_start,
    window_end,
    count(*)                                                      AS value
FROM session(members, event_time, INTERVAL '5 minutes')
GROUP BY tenant_id, coalesce('AGENT:' || agent_id, scope_kind || ':' || scope_id), window_start, window_end
