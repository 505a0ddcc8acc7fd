//! The monitor at work (GOV-POL-003): every five minutes it looks at each panel over all tenants, and every two seconds at the files.
//!
//! Rounds are at multiples of the interval, so that all sidecars look at the same times. What cannot be sent is sent again with the next
//! round, in order, under the same ids.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::alert::{self, Sender};
use super::ask::{look, open_alerts};
use super::monitor::{AlertType, Event, Health, Seen, State, Terms};
use super::registry::{MAX_PANELS, Panel};
use super::{Panels, Reread};
use crate::clock::Wall;
use crate::decide::commands::Command;

/// Between two rounds.
pub const INTERVAL: Duration = Duration::from_secs(300);
/// How often the files are looked at.
pub const FILES: Duration = Duration::from_secs(2);
/// Commands that wait to be sent.
const WAITING: usize = 4 * MAX_PANELS;

/// How the monitor works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Between two rounds: [`INTERVAL`].
    pub interval: Duration,
    /// An alert that is up is said again after so long: half of `[alerts] external-timeout`, after which it would end by itself.
    pub renew: Duration,
    /// Who sends the commands, and whose the alerts are.
    pub sender: Sender,
}

/// The monitor of a process.
pub struct Monitor {
    panels: Arc<Panels>,
    settings: Settings,
    terms: Terms,
    waiting: VecDeque<Command>,
}

/// What a round found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Round {
    /// Panels looked at.
    pub panels: usize,
    /// Of these, healthy ones.
    pub healthy: usize,
    /// Wrong, in their warm-up or not for long enough.
    pub pending: usize,
    /// Wrong for long enough.
    pub unhealthy: usize,
    /// That could not be looked at.
    pub unknown: usize,
    /// Commands that were sent.
    pub sent: usize,
    /// Commands that wait.
    pub waiting: usize,
}

impl Monitor {
    /// Of a process that started at `started`.
    pub fn new(panels: Arc<Panels>, settings: Settings, started: Wall) -> Self {
        let terms = super::terms(started, &settings);
        tracing::info!(
            panels = panels.loaded().registry.panels().len(),
            interval_seconds = settings.interval.as_secs(),
            "GOV-POL-003_panel_invariant_scheduler_started"
        );
        Self { panels, settings, terms, waiting: VecDeque::new() }
    }

    /// Looks at every panel once and sends what follows of it.
    pub async fn round(&mut self, now: Wall, send: &mut (dyn FnMut(&Command) -> Result<(), String> + Send)) -> Round {
        let loaded = self.panels.loaded();
        let tables = Arc::clone(&self.panels.tables);
        let mut open = match open_alerts(tables.as_ref(), &self.settings.sender.tenant).await {
            Ok(open) => open,
            Err(error) => {
                tracing::warn!(%error, "GOV-POL-003_PANEL_CHECK_ERROR: the open alerts about panels are not known");
                Default::default()
            }
        };
        let mut round = Round::default();
        for panel in loaded.registry.panels() {
            let seen = look(tables.as_ref(), panel, loaded.sql(panel)).await;
            let open = open.remove(&*panel.id).unwrap_or_default();
            let mut state = self.panels.states().get(&panel.id).cloned().unwrap_or_else(|| State::new(now.0));
            say_error(panel, &state, &seen);
            let events = state.judge(panel, self.terms, now.0, &seen, &open);
            round.panels += 1;
            match state.health {
                Health::Healthy => round.healthy += 1,
                Health::WarmingUp | Health::Pending => round.pending += 1,
                Health::Unhealthy => round.unhealthy += 1,
                Health::Unknown => round.unknown += 1,
            }
            self.tell(panel, &state, &events);
            for event in events {
                self.order(&panel.id, Some(panel), event, now);
            }
            self.panels.states().insert(Arc::clone(&panel.id), state);
        }
        self.forget(now);
        self.panels.metrics.panels.checks.inc();
        round.sent = self.send(now, send);
        round.waiting = self.waiting.len();
        tracing::info!(
            panels = round.panels,
            healthy = round.healthy,
            pending = round.pending,
            unhealthy = round.unhealthy,
            unknown = round.unknown,
            commands_sent = round.sent,
            commands_waiting = round.waiting,
            "GOV-POL-003_PANEL_INVARIANT_CHECK"
        );
        round
    }

    /// Metrics and log lines of what follows of a look at a panel.
    fn tell(&self, panel: &Panel, state: &State, events: &[Event]) {
        let figures = &self.panels.metrics.panels;
        figures.health(&panel.id).set(i64::from(state.health != Health::Unhealthy));
        for event in events {
            match event {
                Event::Unhealthy(kind) => {
                    let counter = match kind {
                        AlertType::EmptyPanel => figures.empty(&panel.id),
                        AlertType::StalePanel => figures.stale(&panel.id),
                        AlertType::FilterBreak => figures.filter_break(&panel.id),
                    };
                    counter.inc();
                    tracing::warn!(
                        panel_id = %panel.id,
                        alert_type = kind.as_str(),
                        severity = kind.severity(),
                        question = panel.question,
                        rows = state.rows,
                        error = state.error,
                        alert_enabled = panel.invariant.alert_enabled,
                        "GOV-POL-003_PANEL_UNHEALTHY"
                    );
                }
                Event::Recovered(kind) => {
                    tracing::info!(panel_id = %panel.id, alert_type = kind.as_str(), "a panel is healthy again");
                }
                Event::Raise { .. } | Event::Renew { .. } | Event::Clear { .. } => {}
            }
        }
        let new = events.iter().any(|event| matches!(event, Event::Unhealthy(_)));
        if state.health == Health::Unhealthy && !new {
            let kind = state.wrong().map(|(kind, _)| kind.as_str());
            tracing::debug!(panel_id = %panel.id, alert_type = kind, rows = state.rows, "GOV-POL-003_PANEL_UNHEALTHY");
        }
    }

    fn order(&mut self, id: &str, panel: Option<&Panel>, event: Event, now: Wall) {
        let Some(command) = alert::command(&self.settings.sender, id, panel, event, now) else { return };
        if self.waiting.len() >= WAITING
            && let Some(dropped) = self.waiting.pop_front()
        {
            tracing::error!(
                command = dropped.command_id,
                kind = dropped.kind,
                "too many commands about panels wait: one is dropped"
            );
        }
        self.waiting.push_back(command);
    }

    /// Clears what is up of panels that the registry does not have any more.
    fn forget(&mut self, now: Wall) {
        let loaded = self.panels.loaded();
        let gone: Vec<(Arc<str>, State)> = {
            let mut states = self.panels.states();
            let known = |id: &Arc<str>| loaded.registry.panels().iter().any(|panel| panel.id == *id);
            let ids: Vec<Arc<str>> = states.keys().filter(|id| !known(id)).cloned().collect();
            ids.into_iter().filter_map(|id| states.remove_entry(&id)).collect()
        };
        for (id, state) in gone {
            self.panels.metrics.panels.forget(&id);
            if let Some(event) = state.end() {
                self.order(&id, None, event, now);
            }
        }
    }

    /// Sends what waits, in order, until something cannot be sent.
    fn send(&mut self, now: Wall, send: &mut (dyn FnMut(&Command) -> Result<(), String> + Send)) -> usize {
        let mut sent = 0;
        while let Some(command) = self.waiting.front_mut() {
            // one that had to wait is not too old to be taken
            command.issued_at = now.0;
            if let Err(error) = send(command) {
                tracing::warn!(
                    error,
                    waiting = self.waiting.len(),
                    "alerts about panels cannot be sent now: they wait"
                );
                break;
            }
            self.waiting.pop_front();
            sent += 1;
        }
        sent
    }
}

/// That a panel cannot be asked, or its query fails: once for each error.
fn say_error(panel: &Panel, state: &State, seen: &Seen) {
    let (Seen::Broken(error) | Seen::Unasked(error)) = seen else { return };
    if state.error.as_ref() == Some(error) {
        tracing::debug!(panel_id = %panel.id, error, "GOV-POL-003_PANEL_CHECK_ERROR");
    } else {
        tracing::warn!(panel_id = %panel.id, query = panel.query, error, "GOV-POL-003_PANEL_CHECK_ERROR");
    }
}

/// How long until the next multiple of the interval.
fn until_next(now: Wall, terms: Terms) -> Duration {
    let rest = terms.interval - now.0.rem_euclid(terms.interval);
    Duration::from_micros(u64::try_from(rest).unwrap_or_default())
}

/// Watches until `stop` says so: a round at once, then one at every multiple of the interval; the files in between.
pub async fn watch(
    mut monitor: Monitor,
    clock: fn() -> Wall,
    mut send: impl FnMut(&Command) -> Result<(), String> + Send,
    mut stop: watch::Receiver<bool>,
) {
    // an error means that the sender is gone: nobody could ask for an end any more
    let stopped = async move { stop.wait_for(|stop| *stop).await.is_ok() };
    tokio::pin!(stopped);
    let mut files = tokio::time::interval(FILES);
    files.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // the first round is when the tables are whole: before that there is nothing to be said
    while !monitor.panels.tables.is_whole() {
        tokio::select! {
            _ = &mut stopped => return,
            _ = files.tick() => {}
        }
    }
    monitor.round(clock(), &mut send).await;
    let mut next = Box::pin(tokio::time::sleep(until_next(clock(), monitor.terms)));
    loop {
        tokio::select! {
            _ = &mut stopped => return,
            () = &mut next => {
                monitor.round(clock(), &mut send).await;
                next = Box::pin(tokio::time::sleep(until_next(clock(), monitor.terms)));
            }
            _ = files.tick() => say_reread(&monitor.panels.reread(clock()).await),
        }
    }
}

fn say_reread(reread: &Reread) {
    match reread {
        Reread::Unchanged => {}
        Reread::Taken => tracing::info!("the panels have changed, and are in force"),
        Reread::Refused(faults) => {
            for fault in faults {
                tracing::error!(%fault, "the changed panels are refused whole; what was in force before goes on");
            }
        }
    }
}
