-- How a tenant stands: GREEN, YELLOW or RED, from six inputs of governance.sample telemetry (L1).
--
-- inputs, one row:
--   trust_locked BOOLEAN, integrity_score, consensus_pct, reputation_score DOUBLE, forecast_risk VARCHAR (low medium high),
--   recent_responses BIGINT                         the latest of each; what is missing has its default
--   known BIGINT                                    how many of the six there are and not too old
--   red_integrity, red_consensus, yellow_integrity, yellow_consensus, yellow_reputation DOUBLE, red_responses, yellow_responses
--   BIGINT                                          the thresholds, [level] in the configuration
--
-- Gives level (RED YELLOW GREEN UNKNOWN) and reasons, separated by '; '. RED overrides YELLOW overrides GREEN; every reason that
-- holds is listed, the RED ones first.
SELECT
    CASE
        WHEN known = 0 THEN 'UNKNOWN'
        WHEN trust_locked
          OR integrity_score < red_integrity
          OR consensus_pct < red_consensus
          OR forecast_risk = 'high'
          OR recent_responses >= red_responses THEN 'RED'
        WHEN integrity_score < yellow_integrity
          OR consensus_pct < yellow_consensus
          OR reputation_score < yellow_reputation
          OR forecast_risk = 'medium'
          OR recent_responses >= yellow_responses THEN 'YELLOW'
        ELSE 'GREEN'
    END AS level,
    concat_ws('; ',
        CASE WHEN known = 0 THEN 'nothing is known: no input, or none that is recent' END,
        CASE WHEN trust_locked THEN 'RED: trust is locked' END,
        CASE WHEN integrity_score < red_integrity
             THEN 'RED: integrity_score ' || CAST(integrity_score AS VARCHAR) || ' is below ' || CAST(red_integrity AS VARCHAR) END,
        CASE WHEN consensus_pct < red_consensus
             THEN 'RED: consensus_pct ' || CAST(consensus_pct AS VARCHAR) || ' is below ' || CAST(red_consensus AS VARCHAR) END,
        CASE WHEN forecast_risk = 'high' THEN 'RED: forecast_risk is high' END,
        CASE WHEN recent_responses >= red_responses
             THEN 'RED: recent_responses ' || CAST(recent_responses AS VARCHAR) || ' has reached ' || CAST(red_responses AS VARCHAR) END,
        CASE WHEN integrity_score >= red_integrity AND integrity_score < yellow_integrity
             THEN 'YELLOW: integrity_score ' || CAST(integrity_score AS VARCHAR) || ' is below ' || CAST(yellow_integrity AS VARCHAR) END,
        CASE WHEN consensus_pct >= red_consensus AND consensus_pct < yellow_consensus
             THEN 'YELLOW: consensus_pct ' || CAST(consensus_pct AS VARCHAR) || ' is below ' || CAST(yellow_consensus AS VARCHAR) END,
        CASE WHEN reputation_score < yellow_reputation
             THEN 'YELLOW: reputation_score ' || CAST(reputation_score AS VARCHAR) || ' is below ' || CAST(yellow_reputation AS VARCHAR) END,
        CASE WHEN forecast_risk = 'medium' THEN 'YELLOW: forecast_risk is medium' END,
        CASE WHEN recent_responses >= yellow_responses AND recent_responses < red_responses
             THEN 'YELLOW: recent_responses ' || CAST(recent_responses AS VARCHAR) || ' has reached ' || CAST(yellow_responses AS VARCHAR) END
    ) AS reasons
FROM inputs
