//! What is said when a tenant comes to hold too many live keys, and when it no longer does.
//!
//! Which rows are refused, and when that begins and ends, is decided by the windows (`stream`): it depends on the tenant's rows
//! only. Here it becomes one audit record each.

use crate::clock::Wall;
use crate::decide::id;
use crate::decide::records::{Audit, Subject};
use crate::stream::Overflow;

/// Authority of what the core says of itself (I2).
const SYSTEM: u8 = 5;

/// The audit record; `most` is `[limits] live-keys`.
pub fn audit(overflow: &Overflow, most: usize, now: Wall) -> Audit {
    let Overflow { clock: tenant, began, episode, keys, .. } = overflow;
    let state = if *began { "BEGAN" } else { "ENDED" };
    let reason = if *began {
        format!(
            "{tenant} has {keys} live keys, as many as are kept of a tenant: rows of further runs, agents and the like are not \
             counted, and its results are incomplete; raise [limits] live-keys, or find out who makes up ids"
        )
    } else {
        format!("{tenant} has {keys} live keys, so new ones are counted again; windows that were open may lack rows")
    };
    Audit {
        audit_id: id::of(&[tenant, "key_overflow", &episode.to_string(), state]),
        at: now.0,
        kind: "key_overflow".into(),
        tenant_id: tenant.clone(),
        principal: "runwarden".into(),
        authority: SYSTEM,
        subject: Subject { kind: "TENANT".into(), id: tenant.clone() },
        before: serde_json::Value::Null,
        after: serde_json::json!({ "state": state, "episode": episode, "live_keys": keys, "max_live_keys": most }),
        reason,
        refused: false,
    }
}
