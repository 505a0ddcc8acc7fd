//! Correlated alerts (A1–A3): `queries/decide/correlation.sql` says which members belong together, this keeps the alerts.
//!
//! Members enter a session window per (tenant, correlation key) in the order in which they were decided, at the tenant's clock
//! of that moment (its highest event time so far), so they are never late and the result does not depend on batches. The
//! window decides membership only: an alert stays open while a member's level is up, and, with `keep-firing-for`, for so long
//! after; what is raised again meanwhile joins it, so that flapping is one alert.
//!
//! Every record goes out; one that is muted ([`mute`]) names what mutes it, and channels do not tell it. What a throttle holds back
//! is counted in the alert and shows with its next record.

mod member;
mod mute;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray, TimestampMicrosecondArray};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use serde::{Deserialize, Serialize};

use crate::clock::{Micros, SECOND, Wall};
use crate::decide::id;
use crate::decide::records::{Alert, AlertStatus, Severity};
use crate::policy::Silence;
use crate::stream::{self, Compiler, Engine, Output, Query, QueryRows, Settings, Watch};
use crate::telemetry::schema::TIME;

pub use self::member::{Member, Throttle};
use self::mute::Mutes;

/// Members and ids an alert lists; all are counted.
const LISTED: usize = 100;

/// In the order of the step: what raises, and what ends.
#[derive(Debug, Clone)]
pub enum Entry {
    /// Something to alert of.
    Member(Box<Member>),
    /// What a member called up has ended: a level as named by [`crate::decide::levels::cause`], an external alert.
    Down {
        /// Tenant.
        tenant: String,
        /// Its name.
        cause: String,
        /// The tenant's clock.
        clock: Micros,
    },
}

/// What a step's alerts are made under.
pub struct View<'a> {
    /// The step's clock.
    pub now: Wall,
    /// The silences in force.
    pub silences: &'a [Silence],
    /// How long an alert stays open after the last thing in it has ended, µs of the tenant's clock.
    pub keep_firing_for: Micros,
    /// Counts a record that a run caused, if it has caused fewer than so many; `false`: it has caused its most.
    pub told: &'a mut dyn FnMut(&str, &str, u32) -> bool,
}

/// One alert that is not resolved yet.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Open {
    /// As last published.
    pub record: Alert,
    /// Start of its session window.
    pub window_start: Micros,
    /// Whether more members may come.
    pub window_open: bool,
    /// Levels that are up.
    pub up: BTreeSet<String>,
    /// Tenant clock of the last record published.
    pub published_at: Micros,
    /// Until when some of those are up at the latest.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub until: BTreeMap<String, Micros>,
    /// Since when nothing in it is up and no more members may come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quiet_since: Option<Micros>,
    /// Policies of its members.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub policies: BTreeSet<String>,
    /// The runs of its members that have parents, and those.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ancestors: BTreeMap<String, Vec<String>>,
    /// Whether a member is of no run, or of one without a parent.
    #[serde(default)]
    pub stands_alone: bool,
}

/// (tenant, correlation key)
pub type Key = (String, String);

/// The alerts of one partition.
pub struct Correlation {
    engine: Engine,
    open: BTreeMap<Key, Vec<Open>>,
    /// (tenant, cause) → keys: which alerts a level's end concerns. Several when a run changed its agent between two signals.
    levels: BTreeMap<(String, String), BTreeSet<Key>>,
    mutes: Mutes,
    dirty: BTreeSet<Key>,
}

const MEMBER: [&str; 12] = [
    "tenant_id",
    "source",
    "kind",
    "severity",
    "policy_id",
    "limit_id",
    "metric",
    "scope_kind",
    "scope_id",
    "run_id",
    "agent_id",
    "title",
];

fn member_schema() -> SchemaRef {
    let mut fields = vec![Field::new("event_time", TIME, false)];
    fields.extend(MEMBER.iter().map(|n| Field::new(*n, DataType::Utf8, true)));
    Arc::new(Schema::new(fields))
}

fn settings() -> Settings {
    Settings { table: "members".into(), lateness: 0, all_finals: false, ..Settings::default() }
}

/// Compiles `queries/decide/correlation.sql`.
#[expect(clippy::result_large_err, reason = "compiling is rare and its caller prints the whole error")]
pub fn compile(sql: &str) -> Result<Arc<Query>, stream::CompileError> {
    let query = Compiler::new(member_schema(), &settings()).compile("correlation", sql)?;
    let schema = query.output_schema();
    for column in ["tenant_id", "correlation_key"] {
        if schema.field_with_name(column).is_err() {
            return Err(stream::CompileError {
                query: "queries/decide/correlation.sql".into(),
                message: format!("the output lacks the column {column}"),
                line: None,
                column: None,
                clause: Some("SELECT".into()),
                help: Some("select tenant_id, correlation_key, window_start, window_end".into()),
            });
        }
    }
    Ok(Arc::new(query))
}

/// Wants the history of every group, to learn which session each member fell into.
struct All;

impl Watch for All {
    fn select(&mut self, early: &[QueryRows]) -> Vec<(usize, usize)> {
        early.iter().enumerate().flat_map(|(i, q)| (0..q.rows.num_rows()).map(move |r| (i, r))).collect()
    }
}

impl Correlation {
    /// With no alert open.
    pub fn new(query: Arc<Query>) -> Result<Self, stream::Error> {
        let engine = Engine::new(vec![query], settings())?;
        Ok(Self {
            engine,
            open: BTreeMap::new(),
            levels: BTreeMap::new(),
            mutes: Mutes::default(),
            dirty: BTreeSet::new(),
        })
    }

    /// Takes a step's entries in order; then every tenant's clock moves to `clocks`, closing windows. Gives the alerts to
    /// publish, in order.
    pub fn step(
        &mut self,
        mut entries: Vec<Entry>,
        view: &mut View<'_>,
        clocks: impl Fn(&str) -> Option<Micros>,
        finish: bool,
    ) -> Result<Vec<Alert>, stream::Error> {
        if entries.is_empty() && self.open.is_empty() {
            return Ok(Vec::new());
        }
        self.never_behind(&mut entries);
        let mut alerts = Vec::new();
        let members: Vec<&Member> =
            entries.iter().filter_map(|e| if let Entry::Member(m) = e { Some(&**m) } else { None }).collect();
        let placed = self.place(&members)?;
        let (mut places, mut closed) = (placed.places.into_iter().zip(0u32..), placed.closed.into_iter().peekable());
        let mut entries = entries.into_iter().peekable();
        while let Some(entry) = entries.next() {
            match entry {
                Entry::Member(member) => {
                    let Some((place, at)) = places.next() else { continue };
                    if let Some((key, start)) = place {
                        self.pass(&key, member.clock, view, &mut alerts);
                        // a jump past the limit is one thing to tell, though the level rises twice
                        let jumps = matches!(entries.peek(), Some(Entry::Member(next))
                            if next.up.is_some() && next.up == member.up && next.row.is_some() && next.row == member.row);
                        self.join(*member, key, start, jumps, view, &mut alerts);
                    }
                    // what this member's clock closed, after its own effect
                    while let Some((_, key, window)) = closed.next_if(|c| c.0 <= at) {
                        self.close(key, window, view, &mut alerts);
                    }
                }
                Entry::Down { tenant, cause, clock } => self.down(tenant, cause, clock, view, &mut alerts),
            }
        }
        let tenants: BTreeSet<String> = self.open.keys().map(|(t, _)| t.clone()).collect();
        for tenant in tenants {
            if let Some(clock) = clocks(&tenant) {
                let output = self.engine.advance(&tenant, clock)?;
                for (_, key, window) in closes(&output) {
                    self.close(key, window, view, &mut alerts);
                }
                let keys: Vec<Key> =
                    self.open.range((tenant.clone(), String::new())..).map(|(key, _)| key.clone()).collect();
                for key in keys.iter().take_while(|(t, _)| *t == tenant) {
                    self.pass(key, clock, view, &mut alerts);
                }
            }
        }
        if finish {
            let output = self.engine.close_all()?;
            for (_, key, window) in closes(&output) {
                self.close(key, window, view, &mut alerts);
            }
            let keys: Vec<Key> = self.open.keys().cloned().collect();
            for key in keys {
                self.pass(&key, Micros::MAX, view, &mut alerts);
            }
        }
        self.remute(view, &mut alerts);
        Ok(alerts)
    }

    /// Tells of alerts that are muted by something else now than when they were told last.
    fn remute(&mut self, view: &View<'_>, alerts: &mut Vec<Alert>) {
        let mut again = Vec::new();
        for (key, open) in &mut self.open {
            for alert in open.iter_mut().filter(|alert| mute::may_change(alert, view)) {
                let (silenced, inhibited) = self.mutes.of(alert, view);
                if alert.record.silenced_by != silenced || alert.record.inhibited_by != inhibited {
                    alert.record.revision += 1;
                    alert.record.status = AlertStatus::Updated;
                    (alert.record.silenced_by, alert.record.inhibited_by) = (silenced, inhibited);
                    again.push(alert.record.clone());
                    self.dirty.insert(key.clone());
                }
            }
        }
        alerts.extend(again);
    }

    /// An open alert raised to CRITICAL by who watches, with the reason; `None`: there is no such alert open.
    pub fn escalate(&mut self, tenant: &str, alert_id: &str, why: &str, view: &View<'_>) -> Option<(Severity, Alert)> {
        let mut of_tenant = self.open.range_mut((tenant.to_owned(), String::new())..);
        let (key, alert) = of_tenant
            .by_ref()
            .take_while(|((t, _), _)| t == tenant)
            .flat_map(|(key, open)| open.iter_mut().map(move |alert| (key, alert)))
            .find(|(_, alert)| alert.record.alert_id == alert_id)?;
        let before = alert.record.severity;
        alert.record.severity = Severity::Critical;
        alert.record.description = why.to_owned();
        alert.record.revision += 1;
        alert.record.status = AlertStatus::Updated;
        (alert.record.silenced_by, alert.record.inhibited_by) = self.mutes.of(alert, view);
        let record = alert.record.clone();
        self.dirty.insert(key.clone());
        Some((before, record))
    }

    /// An alert that is not resolved, by its id.
    pub fn get(&self, tenant: &str, alert_id: &str) -> Option<&Alert> {
        let of_tenant = self.open.range((tenant.to_owned(), String::new())..).take_while(|((t, _), _)| t == tenant);
        of_tenant.flat_map(|(_, open)| open).map(|o| &o.record).find(|a| a.alert_id == alert_id)
    }

    /// When a step without input would change what is muted.
    pub fn next_mute(&self, silences: &[Silence], now: Wall) -> Option<Micros> {
        let edges = silences.iter().flat_map(|s| [s.starts_at, s.ends_at]).filter(|at| *at > now.0).min();
        edges.filter(|_| !self.open.is_empty())
    }

    /// Sets members that are behind their tenant's clock here to it. A tenant that was silent has idled ahead of its own
    /// records; those that arrive after all are members of now, not late ones that no alert would show.
    fn never_behind(&self, entries: &mut [Entry]) {
        let mut reached: BTreeMap<String, Micros> = BTreeMap::new();
        for entry in entries {
            let Entry::Member(member) = entry else { continue };
            let tenant = &member.tenant;
            let before = reached.get(tenant).copied().or_else(|| self.engine.watermark(tenant));
            member.clock = before.map_or(member.clock, |before| member.clock.max(before));
            reached.insert(tenant.clone(), member.clock);
        }
    }

    /// Pushes the members through the session window.
    fn place(&mut self, members: &[&Member]) -> Result<Placed, stream::Error> {
        let mut places = vec![None; members.len()];
        if members.is_empty() {
            return Ok(Placed { places, closed: Vec::new() });
        }
        let positions: Vec<i64> = (0..).take(members.len()).collect();
        let output = self.engine.push(&batch(members)?, &positions, &mut All)?;
        for trace in &output.traces {
            let steps = &trace.steps;
            for row in 0..steps.rows.num_rows() {
                let (Some(&at), Some(&window)) = (steps.at.get(row), steps.window.get(row)) else { continue };
                let key = (text(&steps.rows, "tenant_id", row), text(&steps.rows, "correlation_key", row));
                if let Some(place) = places.get_mut(at as usize) {
                    *place = Some((key, window.0));
                }
            }
        }
        Ok(Placed { places, closed: closes(&output) })
    }

    fn join(
        &mut self,
        member: Member,
        key: Key,
        start: Micros,
        jumps: bool,
        view: &mut View<'_>,
        alerts: &mut Vec<Alert>,
    ) {
        self.dirty.insert(key.clone());
        let open = self.open.entry(key.clone()).or_default();
        // one that is kept open takes up what comes back
        let known = open.iter().position(|o| o.window_start == start || o.quiet_since.is_some());
        let first = known.is_none();
        let at = known.unwrap_or_else(|| {
            open.push(fresh(&key, &member, start));
            open.len() - 1
        });
        let Some(alert) = open.get_mut(at) else { return };
        let record = &mut alert.record;
        let (unsaid, worse) = (record.revision == 0, member.severity > record.severity);
        record.severity = record.severity.max(member.severity);
        let urgent = member.is_urgent;
        if worse || first || urgent {
            record.title.clone_from(&member.title);
        }
        record.description.clone_from(&member.description);
        record.first_seen = record.first_seen.min(member.event_time);
        record.last_seen = record.last_seen.max(member.event_time);
        record.alert_count += 1;
        record.members_total += 1;
        if record.members.len() < LISTED {
            record.members.push(member.id.clone());
        }
        if let Some(run) = &member.run_id
            && record.runs.len() < LISTED
            && record.runs.insert(run.clone())
        {
            self.mutes.covers(&key.0, run, &record.alert_id);
        }
        if let Some(agent) = &member.agent_id
            && record.agents.len() < LISTED
        {
            record.agents.insert(agent.clone());
        }
        if record.metrics.len() < LISTED {
            record.metrics.extend(member.metric.clone());
        }
        record.sources.insert(member.source.into());
        record.channels.extend(member.throttle.channels.iter().cloned());
        record.current_value = member.value;
        record.minutes_to_limit = member.minutes_to_limit;
        record.is_synthetic &= member.is_synthetic;
        if alert.policies.len() < LISTED {
            alert.policies.extend(member.policy_id.clone());
        }
        match &member.run_id {
            Some(run) if !member.ancestors.is_empty() && alert.ancestors.len() < LISTED => {
                alert.ancestors.insert(run.clone(), member.ancestors);
            }
            _ => alert.stands_alone = true,
        }
        alert.window_start = start;
        alert.window_open = true;
        alert.quiet_since = None;
        if let Some(up) = member.up {
            alert.until.remove(&up);
            alert.until.extend(member.up_until.map(|until| (up.clone(), until)));
            alert.up.insert(up.clone());
            self.levels.entry((key.0.clone(), up)).or_default().insert(key.clone());
        }
        let due = member.clock.saturating_sub(alert.published_at) >= member.throttle.min_interval;
        let tell = !jumps && (unsaid || worse || due || urgent);
        let allowed = |view: &mut View<'_>| match &member.run_id {
            Some(run) => (view.told)(&key.0, run, member.throttle.max_per_run) || unsaid || worse || urgent,
            None => true,
        };
        if tell && allowed(view) {
            alert.record.revision += 1;
            alert.record.status = if unsaid { AlertStatus::Open } else { AlertStatus::Updated };
            alert.published_at = member.clock;
            (alert.record.silenced_by, alert.record.inhibited_by) = self.mutes.of(alert, view);
            alerts.push(alert.record.clone());
        } else {
            alert.record.suppressed_count += 1;
        }
    }

    fn down(&mut self, tenant: String, cause: String, clock: Micros, view: &View<'_>, alerts: &mut Vec<Alert>) {
        for key in self.levels.remove(&(tenant, cause.clone())).unwrap_or_default() {
            self.dirty.insert(key.clone());
            if let Some(open) = self.open.get_mut(&key) {
                for alert in open.iter_mut() {
                    alert.up.remove(&cause);
                    alert.until.remove(&cause);
                }
            }
            self.resolve(&key, clock, view, alerts);
        }
    }

    fn close(&mut self, key: Key, window: (Micros, Micros), view: &View<'_>, alerts: &mut Vec<Alert>) {
        let Some(open) = self.open.get_mut(&key) else { return };
        for alert in open.iter_mut().filter(|a| a.window_start == window.0) {
            alert.window_open = false;
        }
        self.dirty.insert(key.clone());
        self.resolve(&key, window.1, view, alerts);
    }

    /// The tenant's clock has come to `clock`: what is up no longer than until then is down.
    fn pass(&mut self, key: &Key, clock: Micros, view: &View<'_>, alerts: &mut Vec<Alert>) {
        let Some(open) = self.open.get_mut(key) else { return };
        if open.iter().all(|a| a.until.is_empty() && a.quiet_since.is_none()) {
            return;
        }
        let mut over: Vec<(Micros, String)> = Vec::new();
        for alert in open.iter() {
            over.extend(alert.until.iter().filter(|(_, at)| **at <= clock).map(|(cause, at)| (*at, cause.clone())));
        }
        over.sort();
        for (at, cause) in over {
            self.down(key.0.clone(), cause, at, view, alerts);
        }
        self.resolve(key, clock, view, alerts);
    }

    /// Resolves what has nothing to stay open for at `clock`.
    fn resolve(&mut self, key: &Key, clock: Micros, view: &View<'_>, alerts: &mut Vec<Alert>) {
        let Some(open) = self.open.get_mut(key) else { return };
        let mut over = Vec::new();
        open.retain_mut(|alert| {
            if alert.window_open || !alert.up.is_empty() {
                return true;
            }
            let since = *alert.quiet_since.get_or_insert(clock);
            if since.saturating_add(view.keep_firing_for) > clock {
                return true;
            }
            alert.record.revision += 1;
            alert.record.status = AlertStatus::Resolved;
            alert.record.resolve_reason = Some("levels_ended".into());
            over.push(alert.record.clone());
            false
        });
        if open.is_empty() {
            self.open.remove(key);
        }
        if !over.is_empty() {
            self.dirty.insert(key.clone());
        }
        for record in over {
            self.mutes.ended(&record);
            // what nobody was told of need not be taken back
            if record.revision > 1 {
                alerts.push(record);
            }
        }
    }

    /// How many are open.
    pub fn len(&self) -> usize {
        self.open.values().map(Vec::len).sum()
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Keys changed since the last call, with their alerts; `None`: none is open any more.
    pub fn take_changes(&mut self) -> Vec<(Key, Option<&Vec<Open>>)> {
        let dirty = std::mem::take(&mut self.dirty);
        dirty
            .into_iter()
            .map(|k| {
                let open = self.open.get(&k);
                (k, open)
            })
            .collect()
    }

    /// State of the session windows changed since the last call.
    pub fn take_window_changes(&mut self) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
        self.engine.take_changes()
    }

    /// Makes the next `take_*changes` full ones.
    pub fn mark_all_dirty(&mut self) {
        self.engine.mark_all_dirty();
        self.dirty.extend(self.open.keys().cloned());
    }

    /// The whole state of the session windows in `shares`, by tenant.
    pub fn split_windows(
        &mut self,
        shares: usize,
        place: impl Fn(&str) -> usize,
    ) -> Result<Vec<Vec<stream::StateRecord>>, stream::RestoreError> {
        self.engine.split(shares, place)
    }

    /// Takes a key's alerts back.
    pub fn restore(&mut self, key: Key, open: Vec<Open>) {
        for alert in &open {
            for run in &alert.record.runs {
                self.mutes.covers(&key.0, run, &alert.record.alert_id);
            }
            for cause in &alert.up {
                self.levels.entry((key.0.clone(), cause.clone())).or_default().insert(key.clone());
            }
        }
        self.open.insert(key, open);
    }

    /// Takes window state back.
    pub fn restore_window(&mut self, key: &[u8], value: &[u8]) -> Result<(), stream::RestoreError> {
        self.engine.restore(key, value)
    }

    /// After the last restore.
    pub fn restored(&mut self) -> Result<(), stream::RestoreError> {
        self.engine.finish_restore()
    }
}

/// Where members fell, and which sessions closed at which member.
struct Placed {
    /// (key, session start) of each member.
    places: Vec<Option<(Key, Micros)>>,
    /// (member, key, session), by member.
    closed: Vec<Closed>,
}

type Closed = (u32, Key, (Micros, Micros));

/// The sessions that closed, with or without a row (HAVING), by the member that closed them.
fn closes(output: &Output) -> Vec<Closed> {
    let of = |rows: &RecordBatch, at: &[u32], windows: &[(Micros, Micros)]| -> Vec<Closed> {
        let key = |row| (text(rows, "tenant_id", row), text(rows, "correlation_key", row));
        at.iter().zip(windows).enumerate().map(|(row, (at, window))| (*at, key(row), *window)).collect()
    };
    let mut all: Vec<Closed> = output.closed.iter().flat_map(|c| of(&c.rows, &c.at, &c.window)).collect();
    all.extend(output.empty.iter().flat_map(|e| of(&e.keys, &e.at, &e.window)));
    all.sort();
    all
}

fn fresh(key: &Key, member: &Member, start: Micros) -> Open {
    Open {
        record: Alert {
            alert_id: id::of(&[&key.0, &key.1, &member.id]),
            revision: 0,
            status: AlertStatus::Open,
            tenant_id: key.0.clone(),
            correlation_key: key.1.clone(),
            severity: member.severity,
            title: String::new(),
            description: String::new(),
            first_seen: member.event_time,
            last_seen: member.event_time,
            alert_count: 0,
            suppressed_count: 0,
            members: Vec::new(),
            members_total: 0,
            runs: BTreeSet::new(),
            agents: BTreeSet::new(),
            metrics: BTreeSet::new(),
            sources: BTreeSet::new(),
            fingerprint: id::of(&[&key.0, &key.1]),
            resolve_reason: None,
            current_value: None,
            minutes_to_limit: None,
            channels: BTreeSet::new(),
            silenced_by: Vec::new(),
            inhibited_by: Vec::new(),
            is_synthetic: true,
        },
        window_start: start,
        window_open: true,
        up: BTreeSet::new(),
        published_at: member.clock,
        until: BTreeMap::new(),
        quiet_since: None,
        policies: BTreeSet::new(),
        ancestors: BTreeMap::new(),
        stands_alone: false,
    }
}

fn batch(members: &[&Member]) -> Result<RecordBatch, stream::Error> {
    let times: TimestampMicrosecondArray = members.iter().map(|m| Some(m.clock)).collect::<Vec<_>>().into();
    let mut columns: Vec<ArrayRef> = vec![Arc::new(times)];
    for name in MEMBER {
        let column: StringArray = members.iter().map(|m| field(m, name)).collect();
        columns.push(Arc::new(column));
    }
    Ok(RecordBatch::try_new(member_schema(), columns).map_err(datafusion::error::DataFusionError::from)?)
}

fn field(member: &Member, name: &str) -> Option<String> {
    match name {
        "tenant_id" => Some(member.tenant.clone()),
        "source" => Some(member.source.into()),
        "kind" => Some(member.kind.clone()),
        "severity" => Some(member.severity.as_str().into()),
        "policy_id" => member.policy_id.clone(),
        "limit_id" => member.limit_id.clone(),
        "metric" => member.metric.clone(),
        "scope_kind" => Some(member.scope.kind.clone()),
        "scope_id" => Some(member.scope.id.clone()),
        "run_id" => member.run_id.clone(),
        "agent_id" => member.agent_id.clone(),
        "title" => Some(member.title.clone()),
        _ => None,
    }
}

fn text(rows: &RecordBatch, column: &str, row: usize) -> String {
    let Some(column) = rows.column_by_name(column) else { return String::new() };
    let Some(strings) = column.as_string_opt::<i32>() else { return String::new() };
    if strings.is_null(row) { String::new() } else { strings.value(row).to_owned() }
}

/// The throttle of a policy as event time.
pub fn interval(seconds: u64) -> Micros {
    i64::try_from(seconds).unwrap_or(i64::MAX).saturating_mul(SECOND)
}
