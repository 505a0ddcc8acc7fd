//! The breaker in a step: asked before a run is held, and mended when somebody has changed what tripped it.

use serde_json::json;

use crate::clock::{Micros, Wall};
use crate::decide::breaker::{Governed, Verdict};
use crate::decide::commands::SYSTEM;
use crate::decide::correlation::{Entry, Member};
use crate::decide::id;
use crate::decide::records::{Audit, Decision, Severity, Subject};
use crate::pipeline::entries::Entries;
use crate::pipeline::partition::{Partition, Step};
use crate::policy::{Mode, Snapshot};

fn cause(policy: &Governed) -> String {
    ["breaker", &policy.policy_tenant, &policy.policy_id].map(id::part).join("/")
}

impl Partition {
    /// Whether a policy may hold a run at event time `at`, when so many of its tenant are active; what is no run is not counted.
    pub(super) fn may_hold(
        &mut self,
        policy: &Governed,
        target: &Subject,
        (at, active): (Micros, usize),
        now: Wall,
        step: &mut Step,
        entries: &mut Entries,
    ) -> bool {
        if target.kind != "RUN" {
            return true;
        }
        match self.breakers.ask(policy, &target.id, at, active) {
            Verdict::Go => true,
            Verdict::Tripped => false,
            Verdict::Trips { held, active } => {
                let Governed { tenant, policy_id, .. } = policy;
                let title = format!("policy {policy_id} would hold most runs of {tenant}: it is in shadow now");
                let why = format!(
                    "It would hold {held} of {active} runs within a minute. Those it held before stay held; look at the policy, its \
                     metric and the prices, and change what is wrong: then it is in force again."
                );
                let name = id::of(&[tenant, &cause(policy), &id::rfc3339(at)]);
                let scope = Subject { kind: "POLICY".into(), id: policy_id.clone() };
                let clock = entries.clock.unwrap_or(at);
                let member = Member::new("breaker", "TRIPPED", name.clone(), tenant, scope.clone(), clock);
                let mut member = member.saying(Severity::Critical, &title, &why);
                member.policy_id = Some(policy_id.clone());
                member.is_urgent = true;
                member.up = Some(cause(policy));
                entries.push(Entry::Member(Box::new(member)));
                step.decisions.push(Decision::Audit(Box::new(Audit {
                    audit_id: name,
                    at: now.0,
                    kind: "breaker.tripped".into(),
                    tenant_id: tenant.clone(),
                    principal: "system:runwarden".into(),
                    authority: SYSTEM,
                    subject: scope,
                    before: json!({"mode": "BLOCK"}),
                    after: json!({"mode": "AUDIT", "would_hold": held, "of": active}),
                    reason: title,
                    refused: false,
                })));
                false
            }
        }
    }

    /// Another snapshot is in force: breakers of policies that have changed, or whose prices or queries have, are mended.
    pub(super) fn mend_breakers(
        &mut self,
        before: &Snapshot,
        after: &Snapshot,
        now: Wall,
        step: &mut Step,
        entries: &mut Entries,
    ) {
        if !after.policies().iter().any(|p| p.counts() && p.enforcement_mode == Mode::Block) {
            self.activity.clear();
        }
        let all = before.prices() != after.prices() || before.metrics() != after.metrics();
        let version =
            |s: &Snapshot, p: &Governed| s.policy(&p.policy_tenant, &p.policy_id).map(|policy| policy.version);
        let changed = |p: &Governed| all || version(before, p) != version(after, p);
        for policy in self.breakers.reset(changed) {
            let clock = self.clocks.highest(&policy.tenant).unwrap_or(now.0);
            entries.push(Entry::Down { tenant: policy.tenant.clone(), cause: cause(&policy), clock });
            step.decisions.push(Decision::Audit(Box::new(Audit {
                audit_id: id::of(&[&policy.tenant, &cause(&policy), "mended", after.id()]),
                at: now.0,
                kind: "breaker.mended".into(),
                tenant_id: policy.tenant.clone(),
                principal: "system:runwarden".into(),
                authority: SYSTEM,
                subject: Subject { kind: "POLICY".into(), id: policy.policy_id.clone() },
                before: json!({"mode": "AUDIT"}),
                after: json!({"mode": "BLOCK"}),
                reason: "the policy, the prices or the queries have changed".into(),
                refused: false,
            })));
        }
    }
}
