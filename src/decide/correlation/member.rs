//! What enters a correlated alert (A1): signals, failures, external alerts, level changes, panel alerts, and what runwarden itself
//! has to say.

use crate::clock::Micros;
use crate::decide::interventions;
use crate::decide::records::{Kind, Severity, Signal, Subject};
use crate::policy::{Alerts, Amount};

/// Longest text of a member, in characters.
const TEXT: usize = 512;

/// How often an alert may be updated on behalf of a policy (A2), and where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Throttle {
    /// Channels.
    pub channels: Vec<String>,
    /// Least time between two records of one alert, µs of the tenant's clock.
    pub min_interval: Micros,
    /// Most records that one run may cause.
    pub max_per_run: u32,
}

impl Throttle {
    /// Of a policy's `alerts`.
    pub fn of(alerts: &Alerts) -> Self {
        Self {
            channels: alerts.channels.clone(),
            min_interval: super::interval(alerts.min_alert_interval_seconds.into()),
            max_per_run: alerts.max_alerts_per_run,
        }
    }
}

impl Default for Throttle {
    fn default() -> Self {
        Self::of(&Alerts::default())
    }
}

/// What enters a correlated alert.
#[derive(Debug, Clone)]
pub struct Member {
    /// Its id: of the signal, the event, the intervention.
    pub id: String,
    /// Tenant.
    pub tenant: String,
    /// `signal failure external level panel intervention breaker blindness`
    pub source: &'static str,
    /// NEAR BREACH FAILED RAISED …
    pub kind: String,
    /// How bad it is.
    pub severity: Severity,
    /// One line for people.
    pub title: String,
    /// In words, with the figures.
    pub description: String,
    /// The policy it is of.
    pub policy_id: Option<String>,
    /// The limit it is of.
    pub limit_id: Option<String>,
    /// The metric it is of.
    pub metric: Option<String>,
    /// Whom it is about.
    pub scope: Subject,
    /// Its run.
    pub run_id: Option<String>,
    /// The run's parent, that one's parent, and so on.
    pub ancestors: Vec<String>,
    /// Agent of the run or scope.
    pub agent_id: Option<String>,
    /// Event time.
    pub event_time: Micros,
    /// The tenant's clock when it was decided.
    pub clock: Micros,
    /// What is up from here on until an [`super::Entry::Down`] of the same name: a level, an external alert. `None`: it only happened.
    pub up: Option<String>,
    /// Until when that is up at the latest, of the tenant's clock.
    pub up_until: Option<Micros>,
    /// The value of the metric.
    pub value: Option<Amount>,
    /// Forecast.
    pub minutes_to_limit: Option<f64>,
    /// The row of its step at which it was decided, and the window.
    pub row: Option<(u32, (Micros, Micros))>,
    /// Made up for a test.
    pub is_synthetic: bool,
    /// It is told at once, whatever was told before.
    pub is_urgent: bool,
    /// How often, and where.
    pub throttle: Throttle,
}

impl Member {
    /// Something that happened to `scope`, in words.
    pub fn new(source: &'static str, kind: &str, id: String, tenant: &str, scope: Subject, at: Micros) -> Self {
        Self {
            id,
            tenant: tenant.to_owned(),
            source,
            kind: kind.to_owned(),
            severity: Severity::Medium,
            title: String::new(),
            description: String::new(),
            policy_id: None,
            limit_id: None,
            metric: None,
            run_id: (scope.kind == "RUN").then(|| scope.id.clone()),
            ancestors: Vec::new(),
            agent_id: (scope.kind == "AGENT").then(|| scope.id.clone()),
            scope,
            event_time: at,
            clock: at,
            up: None,
            up_until: None,
            value: None,
            minutes_to_limit: None,
            row: None,
            is_synthetic: false,
            is_urgent: false,
            throttle: Throttle::default(),
        }
    }

    /// What it says: one line, and more.
    #[must_use]
    pub fn saying(self, severity: Severity, title: &str, description: &str) -> Self {
        let cut = |text: &str| text.chars().take(TEXT).collect();
        Self { severity, title: cut(title), description: cut(description), ..self }
    }

    /// A NEAR or BREACH whose limit alerts; `level` names the level it is of ([`crate::decide::levels::cause`]).
    pub fn of_signal(signal: &Signal, level: String, clock: Micros, throttle: Throttle) -> Self {
        let what = if signal.kind == Kind::Breach { "past" } else { "near" };
        let severity = match signal.kind {
            Kind::Breach if signal.mode == "BLOCK" && signal.on_breach == "KILL" => Severity::Critical,
            Kind::Breach => Severity::High,
            Kind::Near | Kind::Resolved => Severity::Medium,
        };
        let title = format!("{} {} is {what} its limit on {}", signal.scope.kind, signal.scope.id, signal.metric);
        let (id, scope) = (signal.signal_id.clone(), signal.scope.clone());
        let kind = signal.kind.as_str();
        Self {
            policy_id: Some(signal.policy_id.clone()),
            limit_id: Some(signal.limit_id.clone()),
            metric: Some(signal.metric.clone()),
            run_id: signal.run_id.clone(),
            clock,
            up: Some(level),
            value: signal.value,
            minutes_to_limit: signal.minutes_to_limit,
            row: None,
            is_synthetic: signal.is_synthetic,
            throttle,
            ..Self::new("signal", kind, id, &signal.tenant_id, scope, signal.event_time).saying(
                severity,
                &title,
                &interventions::reason(signal),
            )
        }
    }
}
