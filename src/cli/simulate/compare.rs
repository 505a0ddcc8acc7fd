//! `diff.json`: two policy sets over the same telemetry.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;
use serde_json::{Value, json};

use crate::decide::records::Decision;
use crate::policy::Amount;

use super::Done;
use super::held::{Order, Standing, Usage};
use super::summary::Summary;

/// Rows of each list that the table shows.
const SHOWN: usize = 10;

/// How the second set differs from the first.
#[derive(Debug, Serialize)]
pub(super) struct Diff {
    /// Signals and interventions, by what they are about.
    only_in_policies: Vec<Value>,
    only_in_against: Vec<Value>,
    in_both: usize,
    /// Targets held back by enforced orders of one set only, or of both at different times.
    orders: Orders,
    policies: Side,
    against: Side,
}

#[derive(Debug, Serialize)]
struct Orders {
    only_in_policies: Vec<Held>,
    only_in_against: Vec<Held>,
    /// The same target, another moment or another type.
    moved: Vec<Moved>,
    same: usize,
}

/// The first order on a target.
#[derive(Debug, Clone, Serialize)]
struct Held {
    tenant_id: String,
    target: crate::decide::records::Subject,
    #[serde(rename = "type")]
    kind: String,
    policy_id: String,
    at: String,
    held_back: Usage,
}

#[derive(Debug, Serialize)]
struct Moved {
    in_policies: Held,
    in_against: Held,
    /// By how much `--against` orders later, seconds of event time; negative: earlier.
    later_seconds: f64,
}

/// Figures of one set.
#[derive(Debug, Serialize)]
struct Side {
    signals: BTreeMap<String, u64>,
    interventions: BTreeMap<String, u64>,
    shadow: BTreeMap<String, u64>,
    held_runs: u64,
    held_back: Usage,
    shadow_held_back: Usage,
    uncovered_events: u64,
}

impl Side {
    fn of(summary: &Summary) -> Self {
        Self {
            signals: summary.signals.clone(),
            interventions: summary.interventions.clone(),
            shadow: summary.shadow.clone(),
            held_runs: summary.held_runs,
            held_back: summary.held_back,
            shadow_held_back: summary.shadow_held_back,
            uncovered_events: summary.uncovered_events,
        }
    }
}

type About = (String, String, String, String, String);

/// Signals and interventions by what they are about: what, kind, metric or policy, id, tenant.
fn about(done: &Done) -> BTreeSet<About> {
    let one = |d: &Decision| match d {
        Decision::Signal(s) => Some((
            "signal".into(),
            s.kind.as_str().to_owned(),
            s.metric.clone(),
            s.scope.id.clone(),
            s.tenant_id.clone(),
        )),
        Decision::Intervention(i) => {
            Some(("intervention".into(), i.kind.clone(), i.policy_id.clone(), i.target.id.clone(), i.tenant_id.clone()))
        }
        _ => None,
    };
    done.report.decisions.iter().filter_map(one).collect()
}

/// The first enforced order on each target.
fn firsts(done: &Done) -> BTreeMap<(&str, &str, &str), &Standing> {
    let mut firsts: BTreeMap<_, &Standing> = BTreeMap::new();
    for order in done.orders.iter().filter(|o| o.mode == Order::Enforced) {
        let first = firsts.entry((&*order.tenant_id, &*order.target.kind, &*order.target.id)).or_insert(order);
        if order.at < first.at {
            *first = order;
        }
    }
    firsts
}

fn held(order: &Standing) -> Held {
    Held {
        tenant_id: order.tenant_id.clone(),
        target: order.target.clone(),
        kind: order.kind.clone(),
        policy_id: order.policy_id.clone(),
        at: crate::decide::id::rfc3339(order.at),
        held_back: order.held_back,
    }
}

/// Compares two simulations.
pub(super) fn diff(first: &Done, one: &Summary, second: &Done, other: &Summary) -> Diff {
    let (a, b) = (about(first), about(second));
    let only = |x: &BTreeSet<About>, y: &BTreeSet<About>| -> Vec<Value> {
        let brief = |(what, kind, of, id, tenant): &About| json!({"what": what, "kind": kind, "of": of, "id": id, "tenant_id": tenant});
        x.difference(y).map(brief).collect()
    };
    let (x, y) = (firsts(first), firsts(second));
    let alone = |x: &BTreeMap<_, &Standing>, y: &BTreeMap<(&str, &str, &str), &Standing>| -> Vec<Held> {
        x.iter().filter(|(target, _)| !y.contains_key(*target)).map(|(_, order)| held(order)).collect()
    };
    let (mut moved, mut same) = (Vec::new(), 0);
    for (target, order) in &x {
        let Some(there) = y.get(target) else { continue };
        if order.at == there.at && order.kind == there.kind {
            same += 1;
        } else {
            let later_seconds = (there.at - order.at) as f64 / 1e6;
            moved.push(Moved { in_policies: held(order), in_against: held(there), later_seconds });
        }
    }
    Diff {
        only_in_policies: only(&a, &b),
        only_in_against: only(&b, &a),
        in_both: a.intersection(&b).count(),
        orders: Orders { only_in_policies: alone(&x, &y), only_in_against: alone(&y, &x), moved, same },
        policies: Side::of(one),
        against: Side::of(other),
    }
}

impl Diff {
    /// For people.
    pub(super) fn table(&self, policies: &Path, against: &Path) -> String {
        let mut text = String::new();
        let mut line = |what: &str, one: String, other: String| {
            // writing to a String cannot fail
            writeln!(text, "{what:<28}{one:>20}{other:>20}").unwrap_or_default();
        };
        let total = |counts: &BTreeMap<String, u64>| counts.values().sum::<u64>().to_string();
        let (a, b) = (&self.policies, &self.against);
        line("compared", short(policies), short(against));
        for kind in ["NEAR", "BREACH", "RESOLVED"] {
            let of = |side: &Side| side.signals.get(kind).copied().unwrap_or(0).to_string();
            line(kind, of(a), of(b));
        }
        line("interventions", total(&a.interventions), total(&b.interventions));
        line("shadow decisions", total(&a.shadow), total(&b.shadow));
        line("runs held", a.held_runs.to_string(), b.held_runs.to_string());
        line("steps held back", a.held_back.events.to_string(), b.held_back.events.to_string());
        line("tokens held back", a.held_back.tokens.to_string(), b.held_back.tokens.to_string());
        line("cost held back, USD", money(a.held_back.cost_usd), money(b.held_back.cost_usd));
        line("events without a policy", a.uncovered_events.to_string(), b.uncovered_events.to_string());
        let orders = &self.orders;
        for (what, list) in
            [("only the first holds", &orders.only_in_policies), ("only the second holds", &orders.only_in_against)]
        {
            if list.is_empty() {
                continue;
            }
            writeln!(text, "\n{what}: {}", list.len()).unwrap_or_default();
            for held in list.iter().take(SHOWN) {
                writeln!(text, "  {}", held.line()).unwrap_or_default();
            }
            more(&mut text, list.len());
        }
        if !orders.moved.is_empty() {
            writeln!(text, "\nboth hold, at different times or otherwise: {}", orders.moved.len()).unwrap_or_default();
            for moved in orders.moved.iter().take(SHOWN) {
                let Moved { in_policies, in_against, later_seconds } = moved;
                let when = match later_seconds {
                    s if *s > 0.0 => format!("{s:.1} s later"),
                    s if *s < 0.0 => format!("{:.1} s earlier", -s),
                    _ => "at the same time".to_owned(),
                };
                let kind = &in_against.kind;
                writeln!(text, "  {}; the second: {kind} {when}", in_policies.line()).unwrap_or_default();
            }
            more(&mut text, orders.moved.len());
        }
        text
    }
}

impl Held {
    fn line(&self) -> String {
        let Self { tenant_id, target, kind, policy_id, at, held_back } = self;
        format!(
            "{kind} {} {} of {tenant_id} at {at} ({policy_id}), {} tokens after it",
            target.kind, target.id, held_back.tokens
        )
    }
}

fn more(text: &mut String, all: usize) {
    if all > SHOWN {
        writeln!(text, "  and {} more, in diff.json", all - SHOWN).unwrap_or_default();
    }
}

fn short(path: &Path) -> String {
    let name = path.file_name().map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into_owned());
    name.chars().take(19).collect()
}

/// Dollars to the cent, rounded down.
pub(super) fn money(amount: Amount) -> String {
    let cents = amount.0 / 10_000_000;
    format!("{}.{:02}", cents / 100, cents % 100)
}
