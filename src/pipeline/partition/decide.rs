//! From what the windows gave to what is said: thresholds, levels, and what follows from a level.

use std::sync::Arc;

use crate::clock::Wall;
use crate::decide::breaker::Governed;
use crate::decide::correlation::{Entry, Member, Throttle};
use crate::decide::interventions::{Care, Interventions};
use crate::decide::levels::{self, Change, Judged, Observation};
use crate::decide::records::{Decision, Evidence, Kind, Place};
use crate::decide::signals::{self, Circumstance, Figures};
use crate::kafka::core::CoreError;
use crate::pipeline::entries::Entries;
use crate::pipeline::happenings::{Happening, What};
use crate::pipeline::judge::{self, Item};
use crate::pipeline::watch::Phase;
use crate::pipeline::{blinding, intake, overflow};
use crate::policy::{Mode, Scope};
use crate::stream::Output;

use super::around::Around;
use super::{Partition, Step, core_error};

impl Partition {
    /// Takes what the windows gave through the thresholds to the levels, and says what follows.
    pub(super) fn decide(
        &mut self,
        output: Output,
        around: &mut Around,
        step: &mut Step,
        entries: &mut Entries,
    ) -> Result<(), CoreError> {
        step.watch.enter(Phase::Decide);
        let failed = core_error("cannot decide");
        step.counts.overflow_rows += output.refused.len() as u64;
        for overflow in &output.overflows {
            let at = around.row_now.get(overflow.at as usize).map_or(around.now, |at| Wall(*at));
            let said = overflow::audit(overflow, self.settings.stream.max_live_keys, at);
            step.decisions.push(Decision::Audit(Box::new(said)));
            // at a row it is a happening of the row
            if around.batch.is_none() && !self.settings.event_clock {
                let clock = self.clocks.highest(&overflow.clock).unwrap_or(at.0);
                self.turn_sight(&blinding::refused(overflow), clock, at, step, entries);
            }
        }
        let mut items = Vec::new();
        for trace in &output.traces {
            judge::items(&trace.steps, trace.query, &self.plans[trace.query], false, &mut items)
                .map_err(|e| failed(&e))?;
        }
        for closed in &output.closed {
            let plan = &self.plans[closed.query];
            step.counts.closed[closed.query] += closed.rows.num_rows() as u64;
            judge::items(closed, closed.query, plan, true, &mut items).map_err(|e| failed(&e))?;
        }
        for empty in &output.empty {
            let whole = |tenant: &str, start, at| self.engine.whole(&output, empty.query, tenant, start, at);
            judge::empty_items(empty, empty.query, &self.plans[empty.query], whole, &mut items);
        }
        for item in items.iter().filter(|item| item.closed) {
            self.live.close(item.metric, &self.plans[item.metric], &item.tenant, &item.scope_id, item.window.1);
        }
        for (key_set, group) in &output.freed {
            self.groups.free(*key_set, *group);
        }
        if self.settings.finals {
            step.finals.extend(output.closed.into_iter().map(|c| (c.query, c.rows)));
        }
        for item in &mut items {
            item.limit_set = self.limit_set(item, around);
            if let (Some(plan), Some(at)) = (self.plans.get(item.metric), around.time(item)) {
                item.paced(plan, at);
            }
        }
        let mut ended = self.ended(&items, around);
        judge::keep_what_matters(&mut items, &self.plans, &self.limits, &self.levels);
        if items.is_empty() {
            self.end_runs(&mut ended, u32::MAX, around, step, entries);
            return Ok(());
        }
        items.sort_by(Item::order);
        judge::judge(&mut items, &self.plans, &mut self.limits, &mut self.thresholds).map_err(|e| failed(&e))?;
        for item in items {
            // what rows after its close say is not of it
            self.end_runs(&mut ended, item.at, around, step, entries);
            self.settle_happenings(item.at, around, step, entries);
            let plans = Arc::clone(&self.plans);
            let plan = &plans[item.metric];
            let agent = self.agent(plan.scope, &item, around);
            let seen = Observation {
                tenant: &item.tenant,
                metric: &plan.name,
                shape: plan.shape,
                scope_id: &item.scope_id,
                window: item.window,
                closed: item.closed,
                run_ended: self.run_ended(plan.scope, &item, around),
                complete: item.complete,
                agent: agent.as_deref(),
                is_synthetic: around.synthetic(&item),
                value: item.value,
                judged: item.judged.clone(),
            };
            entries.at(Some(around.clock(&item, &self.clocks)), around.agent_at(item.at));
            for change in self.levels.observe(&seen) {
                self.say(change, Some(&item), around, step, entries);
            }
            self.learn_near(&item, plan, around, step);
        }
        self.end_runs(&mut ended, u32::MAX, around, step, entries);
        Ok(())
    }

    pub(in crate::pipeline) fn limit_set(&mut self, item: &Item, around: &Around) -> u32 {
        let scope = self.plans[item.metric].scope;
        let timed = self.limits.timed();
        let row = if item.closed { None } else { around.time(item) };
        let at = timed.then(|| row.unwrap_or(item.window.1));
        if scope != Scope::Run {
            return self.limits.of_group(scope, &item.tenant, &item.scope_id, at);
        }
        if !item.closed
            && let Some(&set) = around.run_sets.get(item.at as usize)
        {
            return set;
        }
        match around.as_of(item).or_else(|| self.runs.get(&item.tenant, &item.scope_id)) {
            Some(run) => self.limits.of_run(&item.tenant, run, at),
            None => u32::MAX,
        }
    }

    /// Acts upon what rows say, up to a row: what the row's values decide comes after.
    pub(in crate::pipeline) fn settle_happenings(
        &mut self,
        until: u32,
        around: &mut Around,
        step: &mut Step,
        entries: &mut Entries,
    ) {
        while let Some(happening) = around.happenings.pop_front_if(|h| h.row <= until) {
            let Happening { row, tenant, run, time, what } = happening;
            let now = around.now_at(row);
            entries.at(Some(around.clock_at(row, time)), around.agent_at(row));
            match what {
                What::Sight(turn) => self.turn_sight(&turn, around.clock_at(row, time), now, step, entries),
                What::Began(failing) => {
                    let (active, clock) = (around.active_at(row), around.clock_at(row, time));
                    self.begin_run(&tenant, &run, (time, clock), &failing, active, now, step, entries);
                }
                What::Denied(why) => {
                    self.rollups.act(&tenant, around.clock_at(row, time), "STOP", true);
                    let said = self.interventions.deny(&tenant, &run, &why, time, now);
                    self.publish(said, now, step, entries);
                }
                What::Admitted => self.interventions.admit(&tenant, &run),
                What::Zombie => {
                    let said = self.interventions.stop_again(&tenant, &run, time, now);
                    self.tell_of_zombie(&said, around.clock_at(row, time), entries);
                    self.publish(said, now, step, entries);
                }
                What::Child(parent) => {
                    let said =
                        self.interventions.hold_child(&tenant, &parent, &run, self.runs.since(&tenant, &run), now);
                    self.publish(said, now, step, entries);
                }
                What::Alert(mut member) => {
                    member.clock = around.clock_at(row, time);
                    if let Some(run) = &member.run_id {
                        member.ancestors = self.runs.ancestors(&tenant, run, self.settings.acting.cascade_depth);
                    }
                    entries.push(Entry::Member(member));
                }
                What::Turned(turn) => self.act(vec![*turn], now, around, step, entries),
                What::Failure(failure) => self.learn_failure(&tenant, &run, time, &failure, now, step),
                What::Level(looked) => {
                    self.tell_level(*looked, around.clock_at(row, time), now, step, entries);
                }
                What::Cleared(cause) => {
                    let clock = around.clock_at(row, time);
                    entries.push(Entry::Down { tenant: tenant.into(), cause, clock });
                }
            }
        }
    }

    fn agent(&self, scope: Scope, item: &Item, around: &Around) -> Option<String> {
        match scope {
            Scope::Agent => Some(item.scope_id.to_string()),
            Scope::Run if !item.closed && (item.at as usize) < around.run_agents.len() => {
                around.run_agents[item.at as usize].as_deref().map(Into::into)
            }
            Scope::Run => {
                let run = around.as_of(item).or_else(|| self.runs.get(&item.tenant, &item.scope_id))?;
                run.fields.agent.as_deref().map(Into::into)
            }
            _ => None,
        }
    }

    fn run_ended(&self, scope: Scope, item: &Item, around: &Around) -> bool {
        if scope != Scope::Run || !item.closed {
            return false;
        }
        let run = around.as_of(item).or_else(|| self.runs.get(&item.tenant, &item.scope_id));
        run.is_some_and(|r| r.ends.contains(&item.window.1))
    }

    fn evidence(&self, item: &Item) -> Evidence {
        let place = |position| {
            let (partition, input, offset) = intake::place(position, self.own.partition)?;
            let topic = self.settings.inputs.of(input).to_string();
            Some(Place { topic, partition, offset })
        };
        Evidence { first: place(item.evidence.0), last: place(item.evidence.1) }
    }

    /// A change of a level as decisions: the signal, and what follows from it.
    pub(super) fn say(
        &mut self,
        change: Change,
        item: Option<&Item>,
        around: &Around,
        step: &mut Step,
        entries: &mut Entries,
    ) {
        let (line, up) = match &change {
            Change::Raised { line, .. } => (line, None),
            Change::Ended { line, up, .. } => (line, Some(up)),
        };
        let plan = self.plans.iter().find(|p| p.name == line.metric);
        let window = item.map(|i| i.window).or(up.map(|u| u.window)).unwrap_or_default();
        let crossing = item.filter(|i| !i.closed).and_then(|i| around.time(i));
        let at = Circumstance {
            scope: plan.map_or(Scope::Tenant, |p| p.scope),
            window,
            event_time: crossing.unwrap_or(window.1),
            now: around.now(item),
            evidence: item.map_or(Evidence { first: None, last: None }, |i| self.evidence(i)),
            cost_provenance: item.and_then(|i| i.cost_provenance.clone()),
            complete: item.is_none_or(|i| i.complete),
            is_synthetic: item.is_some_and(|i| around.synthetic(i)),
            anomaly: plan.is_some_and(|p| p.anomaly),
            diverges: match (&change, item) {
                (Change::Raised { judged, .. }, Some(item)) => diverges(judged, &item.judged),
                _ => false,
            },
        };
        match change {
            Change::Raised { line, began, kind, judged } => {
                let level = levels::cause(&line, began);
                let figures = Figures {
                    value: item.and_then(|i| i.value),
                    utilization: judged.utilization,
                    overshoot: judged.overshoot,
                    minutes_to_limit: judged.minutes_to_limit,
                    forecast: judged.forecast,
                };
                let signal = signals::raised(&line, kind, &judged.limit, figures, &at);
                if let Some(run) = &signal.run_id {
                    self.notes.signal(&signal.tenant_id, run, kind == Kind::Breach);
                }
                if kind == Kind::Breach {
                    let governed = Governed {
                        tenant: line.tenant.clone(),
                        policy_tenant: line.policy_tenant.clone(),
                        policy_id: line.policy_id.clone(),
                    };
                    let active = item.map_or(0, |item| around.active_at(item.at));
                    let holds = judged.limit.intervenes();
                    let clock = item.map_or(at.event_time, |item| around.clock(item, &self.clocks));
                    let action = judged.limit.on_breach.as_str();
                    if holds && !self.may_hold(&governed, &signal.scope, (at.event_time, active), at.now, step, entries)
                    {
                        let mut shadow = Interventions::shadow(&signal, at.now);
                        shadow.after["breaker"] = true.into();
                        self.rollups.act(&line.tenant, clock, "AUDIT", false);
                        step.decisions.push(Decision::Audit(Box::new(shadow)));
                    } else if holds {
                        self.rollups.act(&line.tenant, clock, action, true);
                        let policy = self.limits.policy(&line.policy_tenant, &line.policy_id, line.policy_version);
                        let care = policy.map(|p| Care::of(&p)).unwrap_or_default();
                        let said = self.interventions.issue(&signal, level.clone(), care, at.now);
                        self.publish(said, at.now, step, entries);
                    } else if judged.limit.mode == Mode::Audit {
                        self.rollups.act(&line.tenant, clock, "AUDIT", false);
                        let shadow = Interventions::shadow(&signal, at.now);
                        step.decisions.push(Decision::Audit(Box::new(shadow)));
                    } else if judged.limit.holds_back() {
                        self.rollups.act(&line.tenant, clock, judged.limit.enforcement.as_str(), true);
                    } else {
                        self.rollups.act(&line.tenant, clock, "WARN", false);
                    }
                }
                if judged.limit.mode != Mode::Audit {
                    let (agent_id, clock) = match item {
                        Some(i) => (self.agent(at.scope, i, around), around.clock(i, &self.clocks)),
                        None => (None, at.event_time),
                    };
                    let throttle = Throttle::of(&judged.limit.alerts);
                    let mut member = Member::of_signal(&signal, level, clock, throttle);
                    member.agent_id = agent_id;
                    // not where its evidence ends: of re-keyed and own rows in one window that is not the row that crossed
                    member.row = item.map(|i| (i.at, i.window));
                    if let Some(run) = &member.run_id {
                        let depth = self.settings.acting.cascade_depth;
                        member.ancestors = self.runs.ancestors(&member.tenant, run, depth);
                    }
                    entries.push(Entry::Member(Box::new(member)));
                }
                step.decisions.push(Decision::Signal(Box::new(signal)));
            }
            Change::Ended { line, up, reason } => {
                let value = item.and_then(|i| i.value);
                let utilization = value.and_then(|v| v.ratio(up.limit.max));
                let overshoot = value.and_then(|v| v.over(up.limit.max));
                let figures = Figures { value, utilization, overshoot, minutes_to_limit: None, forecast: false };
                let signal = signals::resolved(&line, &up, reason, figures, &at);
                for began in &up.began {
                    let level = levels::cause(&line, *began);
                    self.interventions.release(&line.tenant, &level);
                    if up.limit.mode != Mode::Audit {
                        let clock = item.map_or(at.event_time, |i| around.clock(i, &self.clocks));
                        entries.push(Entry::Down { tenant: line.tenant.clone(), cause: level, clock });
                    }
                }
                step.decisions.push(Decision::Signal(Box::new(signal)));
            }
        }
    }
}

/// Whether a shadow limit stands at another level than what is enforced on the same metric and scope.
fn diverges(shadow: &Judged, all: &[Judged]) -> bool {
    if shadow.limit.mode != Mode::Audit {
        return false;
    }
    let enforced = all.iter().filter(|j| j.limit.enforcing()).map(|j| j.level).max();
    enforced.is_some_and(|level| level != shadow.level)
}
