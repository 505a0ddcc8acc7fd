//! Tables with a few rows of two tenants.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::clock::Wall;
use crate::serve::tables::schema::Source;
use crate::serve::tables::{Bounds, Limits, Record, Tables};
use crate::telemetry::parse_time;

/// 12:10:00 of 2026-08-01.
fn then() -> Wall {
    Wall(parse_time("2026-08-01T12:10:00Z").unwrap())
}

/// Three signals of acme at 12:00:00, 12:00:30 and 12:06:00 of 2026-08-01, one of globex at 12:01:00, and one run of each.
pub(super) fn with_rows() -> Arc<Tables> {
    let signal = |id: &str, tenant: &str, kind: &str, run: &str, value: f64, at: &str| {
        json!({"signal_id": id, "tenant_id": tenant, "kind": kind, "run_id": run, "value": value, "limit": 100.0,
               "policy_id": "p-1", "policy_version": 3, "event_time": at, "is_synthetic": false})
    };
    let signals = [
        signal("s-1", "acme", "NEAR", "r-1", 82.5, "2026-08-01T12:00:00.250000Z"),
        signal("s-2", "acme", "BREACH", "r-1", 101.0, "2026-08-01T12:00:30Z"),
        signal("s-3", "acme", "RESOLVED", "r-1", 12.0, "2026-08-01T12:06:00Z"),
        signal("s-4", "globex", "BREACH", "r-2", 140.0, "2026-08-01T12:01:00Z"),
    ];
    let run = |id: &str, tenant: &str| json!({"run_id": id, "tenant_id": tenant});
    let runs = [run("r-1", "acme"), run("r-2", "globex")];
    let tables = Tables::new(Bounds::default(), Limits::default(), then).unwrap();
    let put = |source, records: &[Value]| {
        for (offset, record) in records.iter().enumerate() {
            let (offset, payload) = (i64::try_from(offset).unwrap(), record.to_string());
            let record = Record { partition: 0, offset, key: None, kind: None, payload: Some(payload.as_bytes()) };
            tables.take(source, record).unwrap();
        }
    };
    put(Source::Signals, &signals);
    put(Source::Runs, &runs);
    tables.filled();
    Arc::new(tables)
}
