//! How tenants stand (L1), as last said on the policy-level topic: what the status card (L4) shows.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};

use serde_json::{Value, json};

use crate::decide::level::OVERALL;
use crate::decide::records::PolicyLevel;

/// Tenants held at most, beside `*`.
const MOST: usize = 100_000;

/// The latest level of each tenant; of `*`: of all.
#[derive(Debug, Default)]
pub struct Levels(RwLock<BTreeMap<String, PolicyLevel>>);

impl Levels {
    /// Takes a record; an older one changes nothing. False: it is of one tenant too many.
    pub fn take(&self, level: PolicyLevel) -> bool {
        // the map is whole whatever panicked elsewhere: an update is one insert
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let known = all.get(&level.tenant_id);
        if known.is_some_and(|known| (known.evaluated_at, known.revision) > (level.evaluated_at, level.revision)) {
            return true;
        }
        if known.is_none() && all.len() > MOST && level.tenant_id != OVERALL {
            return false;
        }
        all.insert(level.tenant_id.clone(), level);
        true
    }

    /// The latest level of a tenant, or what is said where none is known: UNKNOWN.
    pub fn of(&self, tenant: &str) -> Value {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let known = all.get(tenant).and_then(|level| serde_json::to_value(level).ok());
        known.unwrap_or_else(|| {
            json!({
                "policy": "UNKNOWN", "evaluated_at": null, "tenant_id": tenant, "inputs": null, "thresholds": null,
                "reasons": ["no governance sample was seen"], "missing": [], "revision": 0,
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::records::{Level, LevelInputs, LevelThresholds};

    fn level(tenant: &str, policy: Level, evaluated_at: i64, revision: u64) -> PolicyLevel {
        let (inputs, thresholds) = (LevelInputs::default(), LevelThresholds::default());
        let tenant_id = tenant.to_owned();
        PolicyLevel { policy, evaluated_at, tenant_id, inputs, thresholds, reasons: vec![], missing: vec![], revision }
    }

    #[test]
    fn the_latest_word_on_each_tenant_counts_and_none_is_unknown() {
        let levels = Levels::default();
        assert_eq!((&levels.of("*")["policy"], &levels.of("*")["revision"]), (&json!("UNKNOWN"), &json!(0)));
        assert!(levels.take(level("*", Level::Red, 5, 2)) && levels.take(level("acme", Level::Green, 4, 1)));
        assert!(levels.take(level("*", Level::Green, 4, 9)), "an older one is no trouble, and says nothing");
        assert_eq!((&levels.of("*")["policy"], &levels.of("acme")["policy"]), (&json!("RED"), &json!("GREEN")));
        assert!(levels.take(level("*", Level::Yellow, 6, 3)));
        assert_eq!(levels.of("*")["policy"], "YELLOW");
    }
}
