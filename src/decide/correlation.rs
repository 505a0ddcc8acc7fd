//! Correlated alerts (A1): `queries/decide/correlation.sql` says which members belong together, this keeps the alerts.
//!
//! Members enter a session window per (tenant, correlation key) in the order in which they were decided, at the tenant's clock
//! of that moment (its highest event time so far), so they are never late and the result does not depend on batches. The
//! window decides membership only: an alert stays open while a member's level is up.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray, TimestampMicrosecondArray};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use serde::{Deserialize, Serialize};

use crate::clock::{Micros, SECOND};
use crate::decide::id;
use crate::decide::records::{Alert, AlertStatus, Kind, Severity, Signal};
use crate::stream::{self, Compiler, Engine, Output, Query, QueryRows, Settings, Watch};
use crate::telemetry::schema::TIME;

/// Members and ids an alert lists; all are counted.
const LISTED: usize = 100;

/// What enters a correlated alert.
#[derive(Debug, Clone)]
pub struct Member {
    /// The signal.
    pub signal: Signal,
    /// Agent of the run or scope.
    pub agent_id: Option<String>,
    /// Channels of its policy.
    pub channels: Vec<String>,
    /// `min_alert_interval_seconds` of its policy.
    pub min_interval: Micros,
    /// The tenant's clock when it was decided.
    pub clock: Micros,
    /// The level it is of, as named by [`crate::decide::levels::cause`].
    pub level: String,
}

/// In the order of the step: what raises, and what ends.
#[derive(Debug, Clone)]
pub enum Entry {
    /// A NEAR or BREACH that alerts.
    Member(Box<Member>),
    /// A RESOLVED: (tenant, the level as named by [`crate::decide::levels::cause`]).
    Down(String, String),
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
}

/// (tenant, correlation key)
pub type Key = (String, String);

/// The alerts of one partition.
pub struct Correlation {
    engine: Engine,
    open: BTreeMap<Key, Vec<Open>>,
    /// (tenant, cause) → keys: which alerts a level's end concerns. Several when a run changed its agent between two signals.
    levels: BTreeMap<(String, String), BTreeSet<Key>>,
    dirty: BTreeSet<Key>,
}

const MEMBER: [&str; 11] = [
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
        Ok(Self { engine, open: BTreeMap::new(), levels: BTreeMap::new(), dirty: BTreeSet::new() })
    }

    /// Takes a step's entries in order; then every tenant's clock moves to `clocks`, closing windows. Gives the alerts to
    /// publish, in order.
    pub fn step(
        &mut self,
        mut entries: Vec<Entry>,
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
        for entry in entries {
            match entry {
                Entry::Member(member) => {
                    let Some((place, at)) = places.next() else { continue };
                    if let Some((key, start)) = place {
                        self.join(*member, key, start, &mut alerts);
                    }
                    // what this member's clock closed, after its own effect
                    while let Some((_, key, start)) = closed.next_if(|c| c.0 <= at) {
                        self.close(key, start, &mut alerts);
                    }
                }
                Entry::Down(tenant, cause) => self.down(tenant, cause, &mut alerts),
            }
        }
        let tenants: BTreeSet<String> = self.open.keys().map(|(t, _)| t.clone()).collect();
        for tenant in tenants {
            if let Some(clock) = clocks(&tenant) {
                let output = self.engine.advance(&tenant, clock)?;
                for (_, key, start) in closes(&output) {
                    self.close(key, start, &mut alerts);
                }
            }
        }
        if finish {
            let output = self.engine.close_all()?;
            for (_, key, start) in closes(&output) {
                self.close(key, start, &mut alerts);
            }
        }
        Ok(alerts)
    }

    /// Sets members that are behind their tenant's clock here to it. A tenant that was silent has idled ahead of its own
    /// records; those that arrive after all are members of now, not late ones that no alert would show.
    fn never_behind(&self, entries: &mut [Entry]) {
        let mut reached: BTreeMap<String, Micros> = BTreeMap::new();
        for entry in entries {
            let Entry::Member(member) = entry else { continue };
            let tenant = &member.signal.tenant_id;
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

    fn join(&mut self, member: Member, key: Key, start: Micros, alerts: &mut Vec<Alert>) {
        let signal = &member.signal;
        let severity = severity(signal);
        let level = member.level.clone();
        self.dirty.insert(key.clone());
        let open = self.open.entry(key.clone()).or_default();
        let known = open.iter().position(|o| o.window_start == start);
        let first = known.is_none();
        let at = known.unwrap_or_else(|| {
            open.push(fresh(&key, &member, start));
            open.len() - 1
        });
        let Some(alert) = open.get_mut(at) else { return };
        let record = &mut alert.record;
        let worse = severity > record.severity;
        record.severity = record.severity.max(severity);
        if worse || first {
            record.title = title(signal);
        }
        record.description = crate::decide::interventions::reason(signal);
        record.first_seen = record.first_seen.min(signal.event_time);
        record.last_seen = record.last_seen.max(signal.event_time);
        record.alert_count += 1;
        record.members_total += 1;
        if record.members.len() < LISTED {
            record.members.push(signal.signal_id.clone());
        }
        if let Some(run) = &signal.run_id
            && record.runs.len() < LISTED
        {
            record.runs.insert(run.clone());
        }
        if let Some(agent) = &member.agent_id
            && record.agents.len() < LISTED
        {
            record.agents.insert(agent.clone());
        }
        record.metrics.insert(signal.metric.clone());
        record.sources.insert("signal".into());
        record.channels.extend(member.channels.iter().cloned());
        record.current_value = signal.value;
        record.minutes_to_limit = signal.minutes_to_limit;
        record.is_synthetic &= signal.is_synthetic;
        alert.up.insert(level.clone());
        self.levels.entry((key.0.clone(), level)).or_default().insert(key);
        let due = member.clock.saturating_sub(alert.published_at) >= member.min_interval;
        if first || worse || due {
            record.revision += 1;
            record.status = if first { AlertStatus::Open } else { AlertStatus::Updated };
            alert.published_at = member.clock;
            alerts.push(record.clone());
        } else {
            record.suppressed_count += 1;
        }
    }

    fn down(&mut self, tenant: String, cause: String, alerts: &mut Vec<Alert>) {
        for key in self.levels.remove(&(tenant, cause.clone())).unwrap_or_default() {
            self.dirty.insert(key.clone());
            if let Some(open) = self.open.get_mut(&key) {
                for alert in open.iter_mut() {
                    alert.up.remove(&cause);
                }
            }
            self.resolve(&key, alerts);
        }
    }

    fn close(&mut self, key: Key, start: Micros, alerts: &mut Vec<Alert>) {
        let Some(open) = self.open.get_mut(&key) else { return };
        for alert in open.iter_mut().filter(|a| a.window_start == start) {
            alert.window_open = false;
        }
        self.dirty.insert(key.clone());
        self.resolve(&key, alerts);
    }

    fn resolve(&mut self, key: &Key, alerts: &mut Vec<Alert>) {
        let Some(open) = self.open.get_mut(key) else { return };
        open.retain_mut(|alert| {
            if alert.window_open || !alert.up.is_empty() {
                return true;
            }
            alert.record.revision += 1;
            alert.record.status = AlertStatus::Resolved;
            alert.record.resolve_reason = Some("levels_ended".into());
            alerts.push(alert.record.clone());
            false
        });
        if open.is_empty() {
            self.open.remove(key);
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
    /// (member, key, session start), by member.
    closed: Vec<Closed>,
}

type Closed = (u32, Key, Micros);

/// The sessions that closed, with or without a row (HAVING), by the member that closed them.
fn closes(output: &Output) -> Vec<Closed> {
    let of = |rows: &RecordBatch, at: &[u32], windows: &[(Micros, Micros)]| -> Vec<Closed> {
        let key = |row| (text(rows, "tenant_id", row), text(rows, "correlation_key", row));
        at.iter().zip(windows).enumerate().map(|(row, (at, window))| (*at, key(row), window.0)).collect()
    };
    let mut all: Vec<Closed> = output.closed.iter().flat_map(|c| of(&c.rows, &c.at, &c.window)).collect();
    all.extend(output.empty.iter().flat_map(|e| of(&e.keys, &e.at, &e.window)));
    all.sort();
    all
}

fn fresh(key: &Key, member: &Member, start: Micros) -> Open {
    let signal = &member.signal;
    Open {
        record: Alert {
            alert_id: id::of(&[&key.0, &key.1, &signal.signal_id]),
            revision: 0,
            status: AlertStatus::Open,
            tenant_id: key.0.clone(),
            correlation_key: key.1.clone(),
            severity: severity(signal),
            title: String::new(),
            description: String::new(),
            first_seen: signal.event_time,
            last_seen: signal.event_time,
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
    }
}

fn severity(signal: &Signal) -> Severity {
    match signal.kind {
        Kind::Breach if signal.mode == "BLOCK" && signal.on_breach == "KILL" => Severity::Critical,
        Kind::Breach => Severity::High,
        Kind::Near | Kind::Resolved => Severity::Medium,
    }
}

fn title(signal: &Signal) -> String {
    let what = if signal.kind == Kind::Breach { "past" } else { "near" };
    format!("{} {} is {what} its limit on {}", signal.scope.kind, signal.scope.id, signal.metric)
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
    let signal = &member.signal;
    match name {
        "tenant_id" => Some(signal.tenant_id.clone()),
        "source" => Some("signal".into()),
        "kind" => Some(signal.kind.as_str().into()),
        "severity" => serde_json::to_value(severity(signal)).ok()?.as_str().map(Into::into),
        "policy_id" => Some(signal.policy_id.clone()),
        "limit_id" => Some(signal.limit_id.clone()),
        "metric" => Some(signal.metric.clone()),
        "scope_kind" => Some(signal.scope.kind.clone()),
        "scope_id" => Some(signal.scope.id.clone()),
        "run_id" => signal.run_id.clone(),
        "agent_id" => member.agent_id.clone(),
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
