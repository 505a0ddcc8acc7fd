//! What a row says beside the values it adds to windows: to be acted upon in the order of the rows.
//!
//! FAIL_CLOSED that cannot decide: a run bound to ambiguous terms is stopped at binding (*Arbitration*, `policies.md`). Looked at row by
//! row, since a policy that binds at EACH_STEP, or is active for a time only, may make terms ambiguous at any of them. What is
//! looked at is the run's own limits and those of every group it belongs to. Whether a run stands stopped is part of its state,
//! so one binding is one order, whatever the batch cuts and restarts.
//!
//! Beside it: a run that goes on though it was stopped, a child of a run that is held (X3), failures and external alerts (A1).

use datafusion::arrow::array::{Array, AsArray, RecordBatch};

use crate::clock::Micros;
use crate::decide::blindness::Turn as Sight;
use crate::decide::conditions::Turn;
use crate::decide::correlation::Member;
use crate::decide::id;
use crate::decide::level::Looked;
use crate::decide::records::{Severity, Subject};
use crate::pipeline::blinding::Failing;
use crate::pipeline::intake;
use crate::pipeline::limits::LimitSets;
use crate::pipeline::runs::{Run, Seen};
use crate::policy::{Ambiguity, Scope};
use crate::telemetry::schema::col;

/// What happened.
#[derive(Debug)]
pub enum What {
    /// The run must be stopped: its terms are ambiguous.
    Denied(Box<Ambiguity>),
    /// Nothing more to stop for that: the run ended, its terms are clear, or it is forgotten.
    Admitted,
    /// The run sends though it was stopped.
    Zombie,
    /// The run has a parent, and that is news.
    Child(Box<str>),
    /// Something to alert of.
    Alert(Box<Member>),
    /// A condition turned.
    Turned(Box<Turn>),
    /// A run failed.
    Failure(Box<Failure>),
    /// An external alert is cleared.
    Cleared(String),
    /// How the tenant stands is news.
    Level(Box<Looked>),
    /// How well the tenant is seen turns.
    Sight(Sight),
    /// The run begins, under a policy that fails closed.
    Began(Box<Failing>),
}

/// What a `run.failed` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The run's agent; empty: none.
    pub agent: String,
    /// As given; empty: none.
    pub severity: String,
    /// As given.
    pub code: Option<String>,
    /// As given, cut.
    pub message: Option<String>,
    /// Made up for a test.
    pub is_synthetic: bool,
    /// Of which scenario.
    pub scenario: Option<String>,
}

/// Reads a `run.failed`.
pub fn failure(batch: &RecordBatch, row: usize, agent: Option<&str>) -> Failure {
    let text = RowText(batch, row);
    let owned = |column| text.get(column).map(str::to_owned);
    let synthetic = batch.column(col::IS_SYNTHETIC).as_boolean();
    Failure {
        agent: agent.unwrap_or_default().to_owned(),
        severity: owned(col::SEVERITY).unwrap_or_default(),
        code: owned(col::ERROR_CODE),
        message: owned(col::ERROR_MESSAGE),
        is_synthetic: synthetic.is_valid(row) && synthetic.value(row),
        scenario: owned(col::SYNTHETIC_SCENARIO_ID),
    }
}

/// Something that a row says.
#[derive(Debug)]
pub struct Happening {
    /// The row.
    pub row: u32,
    /// Its tenant.
    pub tenant: Box<str>,
    /// Its run; empty: none.
    pub run: Box<str>,
    /// Its event time.
    pub time: Micros,
    /// What.
    pub what: What,
}

/// Looks at one row of a run and notes in the run where it stands.
pub fn judge(row: u32, seen: &Seen<'_>, run: &mut Run, limits: &mut LimitSets) -> Option<Happening> {
    let ended = run.ends.last().is_some_and(|end| *end >= seen.time);
    let why = if ended { None } else { ambiguity(seen, run, limits) };
    if why.is_some() == run.denied {
        return None;
    }
    run.denied = why.is_some();
    let what = why.map_or(What::Admitted, |why| What::Denied(Box::new(why)));
    Some(Happening { row, tenant: seen.tenant.into(), run: seen.run.into(), time: seen.time, what })
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

/// What rows of a type may say here: the others need not be looked at.
pub fn may_alert(event_type: &str) -> bool {
    matches!(event_type, "run.failed" | "alert.raised" | "alert.cleared")
}

/// What `up` an external alert has, by its fingerprint or, without one, source and id.
fn external(row: &RowText<'_>) -> String {
    let name = row.get(col::FINGERPRINT).map_or_else(
        || format!("{}/{}", row.get(col::SOURCE).unwrap_or_default(), row.get(col::ALERT_ID).unwrap_or_default()),
        str::to_owned,
    );
    format!("external/{}", id::part(&name))
}

struct RowText<'a>(&'a RecordBatch, usize);

impl<'a> RowText<'a> {
    fn get(&self, column: usize) -> Option<&'a str> {
        intake::get(self.0.column(column).as_string(), self.1).filter(|text| !text.is_empty())
    }
}

/// What a failure or an external alert says (A1). `None`: nothing to alert of.
pub fn alert(batch: &RecordBatch, row: usize, time: Micros, timeout: Micros) -> Option<What> {
    let text = RowText(batch, row);
    let event_type = text.get(col::EVENT_TYPE)?;
    let tenant = text.get(col::TENANT_ID)?;
    if event_type == "alert.cleared" {
        return Some(What::Cleared(external(&text)));
    }
    let given = text.get(col::SEVERITY).unwrap_or_default();
    let failed = event_type == "run.failed";
    // NONE says in so many words that it is no failure to tell of
    let severity = match Severity::parse(given) {
        Some(severity) => severity,
        None if given.eq_ignore_ascii_case("NONE") => return None,
        None => Severity::Medium,
    };
    let own = text.get(if failed { col::EVENT_ID } else { col::ALERT_ID }).or_else(|| text.get(col::EVENT_ID));
    let named = |kind: &str, column| text.get(column).map(|id| Subject { kind: kind.into(), id: id.into() });
    let scope = named("RUN", col::RUN_ID)
        .or_else(|| named("TASK", col::TASK_ID))
        .or_else(|| named("AGENT", col::AGENT_ID))
        .or_else(|| named("ALERT", col::FINGERPRINT))
        .or_else(|| named("SOURCE", col::SOURCE))
        .unwrap_or_else(|| Subject { kind: "TENANT".into(), id: tenant.into() });
    let own = own.map_or_else(|| format!("{}:{}", scope.kind, scope.id), str::to_owned);
    let id = id::of(&[tenant, event_type, &own, &id::rfc3339(time)]);
    let (source, kind) = if failed { ("failure", "FAILED") } else { ("external", "RAISED") };
    let code = text.get(col::ERROR_CODE).map(|code| format!(" ({code})")).unwrap_or_default();
    let title = match text.get(col::TITLE) {
        Some(title) => title.to_owned(),
        None if failed => format!("{} {} failed{code}", scope.kind, scope.id),
        None => format!("an alert of {}", text.get(col::SOURCE).unwrap_or("another system")),
    };
    let description = text.get(col::ERROR_MESSAGE).map_or_else(|| title.clone(), |m| format!("{title}: {m}"));
    let synthetic = batch.column(col::IS_SYNTHETIC).as_boolean();
    let mut member = Member::new(source, kind, id, tenant, scope, time).saying(severity, &title, &description);
    member.run_id = text.get(col::RUN_ID).map(str::to_owned);
    member.agent_id = text.get(col::AGENT_ID).map(str::to_owned);
    member.is_synthetic = synthetic.is_valid(row) && synthetic.value(row);
    if !failed {
        member.up = Some(external(&text));
        member.up_until = Some(time.saturating_add(timeout));
    }
    Some(What::Alert(Box::new(member)))
}
