//! The telemetry event as an Arrow schema: one flat row per record (`contracts.md`, *Telemetry event*).
//!
//! Strings are `Utf8`, integers `Int64`, scores `Float64`, money `Decimal128(18, 9)`, time `Timestamp(Microsecond)` in UTC
//! without a zone. Absent and null are the same. `labels` and `attributes` hold JSON text.

use std::sync::{Arc, LazyLock};

use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};

/// Type of every time column: microseconds, UTC.
pub const TIME: DataType = DataType::Timestamp(TimeUnit::Microsecond, None);
/// Type of money.
pub const MONEY: DataType = DataType::Decimal128(18, 9);

macro_rules! columns {
    ($($konst:ident $name:literal $ty:expr;)*) => {
        /// Column positions in [`SCHEMA`].
        pub mod col {
            #[allow(non_camel_case_types, clippy::upper_case_acronyms)]
            #[repr(usize)]
            enum At { $($konst),* }
            $(#[doc = concat!("`", $name, "`")] pub const $konst: usize = At::$konst as usize;)*
        }
        /// Every column in order: (name, type).
        pub static COLUMNS: &[(&str, DataType)] = &[$(($name, $ty)),*];
    };
}

columns! {
    EVENT_ID "event_id" DataType::Utf8;
    EVENT_TIME "event_time" TIME;
    EVENT_TYPE "event_type" DataType::Utf8;
    TENANT_ID "tenant_id" DataType::Utf8;
    PROJECT_ID "project_id" DataType::Utf8;
    IS_SYNTHETIC "is_synthetic" DataType::Boolean;
    SYNTHETIC_SCENARIO_ID "synthetic_scenario_id" DataType::Utf8;
    RUN_ID "run_id" DataType::Utf8;
    PARENT_RUN_ID "parent_run_id" DataType::Utf8;
    TASK_ID "task_id" DataType::Utf8;
    AGENT_ID "agent_id" DataType::Utf8;
    TEAM_ID "team_id" DataType::Utf8;
    API_KEY_ID "api_key_id" DataType::Utf8;
    HUMAN_ACTOR_ID "human_actor_id" DataType::Utf8;
    PROVIDER "provider" DataType::Utf8;
    MODEL "model" DataType::Utf8;
    INPUT_TOKENS "input_tokens" DataType::Int64;
    OUTPUT_TOKENS "output_tokens" DataType::Int64;
    CACHED_TOKENS "cached_tokens" DataType::Int64;
    REASONING_TOKENS "reasoning_tokens" DataType::Int64;
    TOTAL_TOKENS "total_tokens" DataType::Int64;
    COST_USD "cost_usd" MONEY;
    // reported, table:<version> or unknown; null when the event has no usage at all (X7)
    COST_PROVENANCE "cost_provenance" DataType::Utf8;
    LATENCY_MS "latency_ms" DataType::Int64;
    RISK_SCORE "risk_score" DataType::Float64;
    SEVERITY "severity" DataType::Utf8;
    ERROR_CODE "error_code" DataType::Utf8;
    ERROR_MESSAGE "error_message" DataType::Utf8;
    HEALTH_STATUS "health_status" DataType::Utf8;
    ANOMALY_SCORE "anomaly_score" DataType::Float64;
    CONSECUTIVE_ANOMALOUS_READINGS "consecutive_anomalous_readings" DataType::Int64;
    CAPACITY "capacity" DataType::Int64;
    TASK_STATUS "task_status" DataType::Utf8;
    RUNNING_DURATION_SECONDS "running_duration_seconds" DataType::Float64;
    TIMEOUT_SECONDS "timeout_seconds" DataType::Float64;
    PRIORITY "priority" DataType::Utf8;
    ALERT_ID "alert_id" DataType::Utf8;
    SOURCE "source" DataType::Utf8;
    TITLE "title" DataType::Utf8;
    FINGERPRINT "fingerprint" DataType::Utf8;
    LABELS "labels" DataType::Utf8;
    TRUST_LOCKED "trust_locked" DataType::Boolean;
    INTEGRITY_SCORE "integrity_score" DataType::Float64;
    CONSENSUS_PCT "consensus_pct" DataType::Float64;
    REPUTATION_SCORE "reputation_score" DataType::Float64;
    FORECAST_RISK "forecast_risk" DataType::Utf8;
    RECENT_RESPONSES "recent_responses" DataType::Int64;
    ATTRIBUTES "attributes" DataType::Utf8;
}

/// The schema of [`super::Batch::rows`]; every field is nullable.
pub static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(COLUMNS.iter().map(|(name, ty)| Field::new(*name, ty.clone(), true)).collect::<Vec<_>>()))
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_and_names_agree() {
        assert_eq!(SCHEMA.field(col::EVENT_TIME).name(), "event_time");
        assert_eq!(SCHEMA.field(col::ATTRIBUTES).name(), "attributes");
        assert_eq!(SCHEMA.fields().len(), col::ATTRIBUTES + 1);
    }
}
