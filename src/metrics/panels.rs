//! Figures of the panels (V4), by `panel_id`: the ids of the registry, bounded like every configured name.
//!
//! They keep the names that operators of panels know them by, without the prefix of the others.

use std::sync::Arc;

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, Result};

use super::family::Names;

const LABEL: &str = "panel_id";

/// What is counted of panels. An id that is in no registry counts under `other`.
#[derive(Debug)]
pub struct Panels {
    names: Arc<Names>,
    empty: IntCounterVec,
    stale: IntCounterVec,
    filter_break: IntCounterVec,
    health: IntGaugeVec,
    /// Rounds over all panels.
    pub checks: IntCounter,
}

impl Panels {
    pub(super) fn register(registry: &Registry) -> Result<Self> {
        let counters = |name: &str, help: &str| -> Result<IntCounterVec> {
            let vec = IntCounterVec::new(Opts::new(name, help), &[LABEL])?;
            registry.register(Box::new(vec.clone()))?;
            Ok(vec)
        };
        let health = Opts::new("panel_health_status", "1 while a panel's invariant holds, 0 while it does not");
        let health = IntGaugeVec::new(health, &[LABEL])?;
        registry.register(Box::new(health.clone()))?;
        let checks = IntCounter::new("runwarden_panel_checks_total", "Rounds of looking at every panel")?;
        registry.register(Box::new(checks.clone()))?;
        Ok(Self {
            names: Arc::default(),
            empty: counters("panel_empty_total", "Times a panel came to have too little in it, for too long")?,
            stale: counters("panel_stale_total", "Times a panel came to be too old, for too long")?,
            filter_break: counters("panel_filter_break_total", "Times a panel's query came to fail")?,
            health,
            checks,
        })
    }

    /// Starts the series of these panels: counters at 0, and healthy until something else is known. Ids stay once admitted.
    pub fn admit(&self, ids: &[&str]) {
        for id in self.names.admit(ids) {
            for counters in [&self.empty, &self.stale, &self.filter_break] {
                counters.with_label_values(&[id]).inc_by(0);
            }
        }
    }

    /// Times a panel was empty.
    pub fn empty(&self, panel: &str) -> IntCounter {
        self.empty.with_label_values(&[self.names.label(panel)])
    }

    /// Times it was stale.
    pub fn stale(&self, panel: &str) -> IntCounter {
        self.stale.with_label_values(&[self.names.label(panel)])
    }

    /// Times its query began to fail.
    pub fn filter_break(&self, panel: &str) -> IntCounter {
        self.filter_break.with_label_values(&[self.names.label(panel)])
    }

    /// 1 while it is healthy.
    pub fn health(&self, panel: &str) -> IntGauge {
        self.health.with_label_values(&[self.names.label(panel)])
    }

    /// A panel is no more: what counts of it stays, its health does not.
    pub fn forget(&self, panel: &str) {
        // one that was never looked at has no series
        self.health.remove_label_values(&[panel]).unwrap_or_default();
    }
}
