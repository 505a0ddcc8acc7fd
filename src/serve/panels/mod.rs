//! Panels (V1, V3, V4): questions with SQL as answers, and the monitor that sees when an answer is missing.
//!
//! The registry (`config/panels.yaml`) names them; each has one SQL file below `queries/panels`, over the tables of [`super::tables`]. The
//! [`monitor`] decides what their state means, [`watch`] looks at them every few minutes. Whoever reads a panel reads the tables: no state of
//! the monitor blocks that.

pub mod alert;
mod answers;
pub mod ask;
mod check;
pub mod files;
pub mod monitor;
pub mod registry;
mod routes;
mod table;
pub mod watch;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use datafusion::arrow::array::RecordBatch;

use crate::clock::{Micros, Wall};
use crate::metrics::Metrics;
use crate::policy::Fault;
use crate::serve::tables::Scope;

use self::answers::Answers;
use self::ask::Ask;
use self::files::{Loaded, Source, Stamp};
use self::monitor::{AlertType, Health, State, Terms};
use self::registry::Panel;

pub(super) use self::routes::routes;

/// The panels of a process: the registry in force, and how each panel is.
pub struct Panels {
    source: Source,
    tables: Arc<dyn Ask>,
    metrics: Arc<Metrics>,
    loaded: ArcSwap<Loaded>,
    /// When the files were changed last, of those that were looked at last.
    stamp: Mutex<Stamp>,
    states: Mutex<BTreeMap<Arc<str>, State>>,
    /// What was answered a moment ago.
    answers: Answers,
}

/// What a second look at the files came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reread {
    /// They have not changed.
    Unchanged,
    /// They are in force.
    Taken,
    /// They do not hold, and what was in force before goes on.
    Refused(Vec<Fault>),
}

/// A panel and how it is.
#[derive(Debug, Clone)]
pub struct Shown {
    /// Its definition.
    pub panel: Panel,
    /// Its state.
    pub state: State,
}

impl Panels {
    /// Reads the files. What they say is not held against the tables yet: [`check`].
    ///
    /// # Errors
    /// Every fault of every file.
    pub fn load(source: Source, tables: Arc<dyn Ask>, metrics: Arc<Metrics>, now: Wall) -> Result<Self, Vec<Fault>> {
        // before they are read: what changes in between is seen by the next look
        let stamp = Mutex::new(source.stamp());
        let loaded = source.load()?;
        let panels = Self {
            source,
            tables,
            metrics,
            loaded: ArcSwap::default(),
            stamp,
            states: Mutex::default(),
            answers: Answers::default(),
        };
        panels.take(loaded, now.0);
        Ok(panels)
    }

    /// What is in force.
    pub fn loaded(&self) -> Arc<Loaded> {
        self.loaded.load_full()
    }

    /// Looks at the files again, which is cheap while they have not changed. Changed ones are taken whole, if they hold against the
    /// tables too, or not at all.
    pub async fn reread(&self, now: Wall) -> Reread {
        let stamp = self.source.stamp();
        {
            let mut last = self.stamp.lock().unwrap_or_else(PoisonError::into_inner);
            if *last == stamp {
                return Reread::Unchanged;
            }
            *last = stamp;
        }
        let loaded = match planned(&self.source, self.tables.as_ref()).await {
            Ok(loaded) if loaded == **self.loaded.load() => return Reread::Unchanged,
            Ok(loaded) => loaded,
            Err(faults) => return Reread::Refused(faults),
        };
        self.take(loaded, now.0);
        Reread::Taken
    }

    /// Puts what was read in force. States of panels that are no more stay until the next round, which clears what is up of them.
    fn take(&self, loaded: Loaded, now: Micros) {
        let ids: Vec<&str> = loaded.registry.panels().iter().map(|panel| &*panel.id).collect();
        self.metrics.panels.admit(&ids);
        let mut states = self.states();
        for panel in loaded.registry.panels() {
            states.entry(Arc::clone(&panel.id)).or_insert_with(|| {
                // until something else is known
                self.metrics.panels.health(&panel.id).set(1);
                State::new(now)
            });
        }
        drop(states);
        self.loaded.store(Arc::new(loaded));
    }

    /// A map of states is whole whatever panicked elsewhere: a change is one insert.
    fn states(&self) -> std::sync::MutexGuard<'_, BTreeMap<Arc<str>, State>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A panel and how it is.
    pub fn get(&self, id: &str) -> Option<Shown> {
        let loaded = self.loaded.load();
        let panel = loaded.registry.get(id)?.clone();
        let state = self.states().get(&panel.id).cloned().unwrap_or_default();
        Some(Shown { panel, state })
    }

    /// Every panel and how it is, in the order of the registry.
    pub fn list(&self) -> Vec<Shown> {
        let (loaded, states) = (self.loaded.load(), self.states());
        let shown =
            |panel: &Panel| Shown { panel: panel.clone(), state: states.get(&panel.id).cloned().unwrap_or_default() };
        loaded.registry.panels().iter().map(shown).collect()
    }

    /// The table `panels`, as who sees all tenants sees it.
    pub fn batch(&self) -> RecordBatch {
        table::batch(&self.list())
    }

    /// Makes the table `panels` whenever it is asked for. It does not keep the panels, which keep the tables.
    pub fn table(self: &Arc<Self>) -> impl Fn(&Scope) -> RecordBatch + Send + Sync + use<> {
        let panels = Arc::downgrade(self);
        move |scope| panels.upgrade().map_or_else(|| table::batch(&[]), |panels| panels.batch_for(scope))
    }

    /// The table `panels` as a scope sees it: figures over all tenants are no business of one.
    pub fn batch_for(&self, scope: &Scope) -> RecordBatch {
        let mut panels = self.list();
        if *scope != Scope::All {
            for shown in &mut panels {
                (shown.state.rows, shown.state.last_result) = (None, None);
            }
        }
        table::batch(&panels)
    }
}

impl Shown {
    /// What is wrong with it, if anything is.
    pub fn alert_type(&self) -> Option<AlertType> {
        self.state.wrong().map(|(kind, _)| kind)
    }

    /// How it is.
    pub fn health(&self) -> Health {
        self.state.health
    }
}

/// Reads panels, holds them against tables without rows and runs them there, without putting them in force: for `check`.
///
/// # Errors
/// Every fault: of the files; where these are whole, of what the tables say to them; where they plan, of running them.
pub async fn check(source: &Source, tables: &dyn Ask) -> Result<Loaded, Vec<Fault>> {
    let loaded = planned(source, tables).await?;
    let failures = check::failures(tables, &loaded).await;
    if failures.is_empty() { Ok(loaded) } else { Err(failures) }
}

async fn planned(source: &Source, tables: &dyn Ask) -> Result<Loaded, Vec<Fault>> {
    let loaded = source.load()?;
    let faults = check::faults(tables, &loaded).await;
    if faults.is_empty() { Ok(loaded) } else { Err(faults) }
}

/// What a fresh process begins with.
fn terms(started: Wall, settings: &watch::Settings) -> Terms {
    let micros = |span: std::time::Duration| Micros::try_from(span.as_micros()).unwrap_or(Micros::MAX);
    Terms { started: started.0, interval: micros(settings.interval).max(1), renew: micros(settings.renew) }
}

#[cfg(test)]
mod golden;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
