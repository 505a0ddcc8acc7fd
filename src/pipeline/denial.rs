//! FAIL_CLOSED that cannot decide: a run bound to ambiguous terms is stopped at binding (*Arbitration*, `policies.md`).
//!
//! Looked at row by row, since a policy that binds at EACH_STEP, or is active for a time only, may make terms ambiguous at any
//! of them. What is looked at is the run's own limits and those of every group it belongs to. Whether a run stands stopped
//! is part of its state, so one binding is one order, whatever the batch cuts and restarts.

use crate::clock::Micros;
use crate::pipeline::limits::LimitSets;
use crate::pipeline::runs::{Run, Seen};
use crate::policy::{Ambiguity, Scope};

/// What a row changes about a run.
#[derive(Debug)]
pub struct Denial {
    /// The row.
    pub row: u32,
    /// Tenant of the run.
    pub tenant: Box<str>,
    /// The run.
    pub run: Box<str>,
    /// Event time of the row.
    pub time: Micros,
    /// Why it must be stopped; `None`: nothing more to stop, the run ended or its terms are clear.
    pub why: Option<Box<Ambiguity>>,
}

/// Looks at one row of a run and notes in the run where it stands.
pub fn judge(row: u32, seen: &Seen<'_>, run: &mut Run, limits: &mut LimitSets) -> Option<Denial> {
    let ended = run.ends.last().is_some_and(|end| *end >= seen.time);
    let why = if ended { None } else { ambiguity(seen, run, limits) };
    if why.is_some() == run.denied {
        return None;
    }
    run.denied = why.is_some();
    Some(Denial { row, tenant: seen.tenant.into(), run: seen.run.into(), time: seen.time, why: why.map(Box::new) })
}

fn ambiguity(seen: &Seen<'_>, run: &Run, limits: &mut LimitSets) -> Option<Ambiguity> {
    let at = limits.timed().then_some(seen.time);
    let number = limits.of_run(seen.tenant, run, at);
    let first = |limits: &LimitSets, number| limits.get(number).and_then(|set| set.ambiguous.first().cloned());
    first(limits, number).or_else(|| {
        let groups = run.fields.groups();
        let wider = groups.iter().filter_map(|(scope, id)| Some((*scope, id.as_deref()?)));
        [(Scope::Tenant, seen.tenant)].into_iter().chain(wider).find_map(|(scope, id)| {
            let number = limits.of_group(scope, seen.tenant, id, at);
            first(limits, number)
        })
    })
}
