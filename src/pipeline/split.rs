//! A partition's state for another number of partitions: taken apart by tenant, and put together (`topics resize`).
//!
//! Every key but two kinds belongs to one tenant, which the key names, and goes where murmur2 places the tenant. Snapshots go
//! everywhere. The partition's own small state is merged: the latest clock; the snapshot in force if all had the same.
//!
//! What a number in the state meant on the old partition it still means on the new one: positions of rows keep naming their
//! partition ([`intake::moved`]), and the silence of a tenant is what it was ([`crate::pipeline::clocks::Clocks::restart`]).

use crate::decide::id::first_part;
use crate::kafka::core::{CoreError, StateChange};
use crate::pipeline::checkpoint::{
    ACTIVITY, ALERTS, ANSWERS, BREAKERS, CLOCKS, Changes, DEBOUNCE, DEDUP, ENTITIES, INTERVENTIONS, LESSONS, LEVELS,
    LIVE, MEMBERS, META, NOTES, OVERALL, REGISTER, ROLLUPS, RUNS, SIGHTS, SILENCES, SNAPSHOTS, STOPPED, TENANT_LEVELS,
    WINDOWS, from_json, raw_key, refuse,
};
use crate::pipeline::intake;
use crate::pipeline::partition::{Meta, Partition};
use crate::stream::StateRecord;
use crate::telemetry::{dedup, tenant_partition};

/// Whose a state key is.
#[derive(Debug, PartialEq, Eq)]
enum Owner {
    Tenant(String),
    Everyone,
}

/// Whose a key outside the windows is.
fn owner(key: &[u8]) -> Result<Owner, CoreError> {
    let Some((&tag, rest)) = key.split_first() else { return Err(refuse("an empty key")) };
    let tenant = match tag {
        DEDUP => dedup::tenant_of(rest).ok().map(Into::into),
        ALERTS | ANSWERS | INTERVENTIONS | LEVELS | LIVE | ENTITIES | RUNS | CLOCKS | STOPPED | LESSONS | DEBOUNCE
        | BREAKERS | ACTIVITY | NOTES | TENANT_LEVELS | SIGHTS | ROLLUPS => first_part(rest),
        SNAPSHOTS | SILENCES | META => return Ok(Owner::Everyone),
        // the one writer is the owner of `*`
        REGISTER | OVERALL => Some("*".to_owned()),
        other => return Err(refuse(format!("nobody knows whose state of the kind {:?} is", char::from(other)))),
    };
    tenant.map(Owner::Tenant).ok_or_else(|| refuse("a key that names no tenant"))
}

impl Partition {
    /// The whole state, for `partitions` partitions.
    pub(super) fn taken_apart(&mut self, partitions: i32) -> Result<Vec<Vec<StateChange>>, CoreError> {
        let own = self.own.partition;
        let count = usize::try_from(partitions).ok().filter(|n| *n > 0);
        let count = count.ok_or_else(|| refuse(format!("{partitions} partitions hold no state")))?;
        let place = |tenant: &str| usize::try_from(tenant_partition(tenant, partitions)).unwrap_or_default();
        self.engine.map_positions(|position| intake::moved(position, own));
        self.clocks.restart(&mut self.meta.end);
        self.all_dirty();
        let mut shares: Vec<Vec<StateChange>> = vec![Vec::new(); count];
        let mut windows = |tag, records: Vec<Vec<StateRecord>>| {
            for (share, records) in shares.iter_mut().zip(records) {
                let change = |(k, value): StateRecord| StateChange { key: raw_key(tag, &k), value: Some(value) };
                share.extend(records.into_iter().map(change));
            }
        };
        windows(WINDOWS, self.engine.split(count, place).map_err(|e| refuse(e.to_string()))?);
        windows(MEMBERS, self.correlation.split_windows(count, place).map_err(|e| refuse(e.to_string()))?);
        let mut others = Changes::default();
        self.other_changes(&mut others);
        for change in others.0.into_iter().filter(|change| change.value.is_some()) {
            match owner(&change.key)? {
                Owner::Tenant(tenant) => {
                    shares.get_mut(place(&tenant)).into_iter().for_each(|s| s.push(change.clone()))
                }
                Owner::Everyone => shares.iter_mut().for_each(|share| share.push(change.clone())),
            }
        }
        Ok(shares)
    }

    /// Takes back its shares of what several partitions took apart.
    pub(super) fn put_together(&mut self, shares: Vec<Vec<StateChange>>) -> Result<(), CoreError> {
        let mut metas = Vec::new();
        for StateChange { key, value } in shares.into_iter().flatten() {
            let Some(value) = value else { continue };
            if key.first() == Some(&META) {
                metas.push(from_json::<Meta>(&value)?);
            } else {
                self.take_back(&key, &value)?;
            }
        }
        if let Some(meta) = merge(metas) {
            self.meta = meta;
        }
        self.taken_back()?;
        self.all_dirty();
        Ok(())
    }
}

/// Partitions that have adopted different snapshots leave none in force: the first step then adopts the configured one, and
/// ends every level that it does not know, whichever was in force before.
fn merge(metas: Vec<Meta>) -> Option<Meta> {
    metas.into_iter().reduce(|a, b| {
        debug_assert_eq!(a.end, b.end, "both were restarted");
        let snapshot = if a.snapshot == b.snapshot { a.snapshot } else { String::new() };
        let revision = if snapshot.is_empty() { a.revision.min(b.revision) } else { a.revision.max(b.revision) };
        Meta { now: a.now.max(b.now), end: a.end, snapshot, revision, lag_looked: a.lag_looked.max(b.lag_looked) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::id::part;

    #[test]
    fn a_key_names_its_tenant_however_it_is_spelled() {
        for tenant in ["acme", "a/b", "a%2Fb", "ünï", " ", "C"] {
            for tag in [ALERTS, INTERVENTIONS, LEVELS, ENTITIES, RUNS, CLOCKS] {
                let key = raw_key(tag, [part(tenant), part("x/y")].join("/").as_bytes());
                assert_eq!(owner(&key).unwrap(), Owner::Tenant(tenant.into()));
            }
        }
        assert_eq!(owner(&raw_key(SNAPSHOTS, b"id")).unwrap(), Owner::Everyone);
        for unknown in [&b""[..], b"?x", b"D", b"R\xff"] {
            assert!(owner(unknown).is_err(), "{unknown:?}");
        }
    }

    #[test]
    fn partitions_that_disagree_on_the_snapshot_leave_the_first_step_to_adopt_one() {
        let meta = |now, snapshot: &str| Meta { now, snapshot: snapshot.into(), ..Meta::default() };
        let merged = merge(vec![meta(3, "a"), meta(7, "a"), meta(5, "a")]).unwrap();
        assert_eq!((merged.now, merged.snapshot.as_str()), (7, "a"));
        assert_eq!(merge(vec![meta(3, "a"), meta(7, "b"), meta(9, "b")]).unwrap().snapshot, "");
    }
}
