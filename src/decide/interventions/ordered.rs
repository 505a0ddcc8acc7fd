//! Interventions that the condition of a policy orders: of one kind on one target at most one is live, whoever asks for it.

use std::collections::BTreeSet;

use super::{Interventions, Live, Slot};
use crate::decide::records::Intervention;

impl Interventions {
    /// The intervention to publish, unless one of the kind is live on the target; then it is only asked for once more.
    pub fn order(&mut self, record: Intervention, cause: String) -> Option<Intervention> {
        let slot = Slot { tenant: record.tenant_id.clone(), kind: record.kind.clone(), target: record.target.clone() };
        self.dirty.insert(slot.clone());
        if let Some(live) = self.live.get_mut(&slot) {
            live.causes.insert(cause);
            return None;
        }
        self.by_id.insert(record.intervention_id.clone(), slot.clone());
        self.live.insert(slot, Live { record: record.clone(), causes: BTreeSet::from([cause]) });
        Some(record)
    }

    /// What asked for interventions does so no more: those that nothing else asks for are no longer live.
    pub fn withdraw(&mut self, tenant: &str, cause: &str) {
        let first = Slot {
            tenant: tenant.to_owned(),
            kind: String::new(),
            target: crate::decide::records::Subject { kind: String::new(), id: String::new() },
        };
        let of_tenant = self.live.range_mut(first..).take_while(|(slot, _)| slot.tenant == tenant);
        let touched: Vec<(Slot, bool)> = of_tenant
            .filter_map(|(slot, live)| live.causes.remove(cause).then(|| (slot.clone(), live.causes.is_empty())))
            .collect();
        for (slot, ended) in touched {
            if ended && let Some(live) = self.live.remove(&slot) {
                self.by_id.remove(&live.record.intervention_id);
            }
            self.dirty.insert(slot);
        }
    }
}
