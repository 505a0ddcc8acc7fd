//! What the state of a panel means (V3, GOV-POL-003): a pure function of the registry, the time, what was seen and what was known before.
//!
//! A panel is wrong in one way at a time: its query breaks, else it gives too little, else it is too old. When it becomes wrong an
//! *episode* begins; it is alerted of once, when the warm-up is over and it has lasted longer than `alert_after`, and cleared once, when
//! it is over. `first_seen` of an episode comes from the tables where they tell it, else from the round that saw it first; rounds of
//! several sidecars are at the same times, so they name the same episode, and their commands count as one.
//!
//! Zero rows never block a panel: nothing here is read where a panel is shown.

use std::collections::BTreeMap;

use super::registry::Panel;
use crate::clock::Micros;

/// What is wrong with a panel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AlertType {
    /// Fewer rows, or a lower value, than there must be.
    EmptyPanel,
    /// The newest of it is too old.
    StalePanel,
    /// Its query fails, or gives no such column any more.
    FilterBreak,
}

impl AlertType {
    /// Every type.
    pub const ALL: [Self; 3] = [Self::EmptyPanel, Self::StalePanel, Self::FilterBreak];

    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::EmptyPanel => "EMPTY_PANEL",
            Self::StalePanel => "STALE_PANEL",
            Self::FilterBreak => "FILTER_BREAK",
        }
    }

    /// How bad it is.
    pub fn severity(self) -> &'static str {
        match self {
            Self::EmptyPanel | Self::StalePanel => "WARNING",
            Self::FilterBreak => "CRITICAL",
        }
    }
}

/// How a panel is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Health {
    /// Not looked at yet, or it could not be.
    #[default]
    Unknown,
    /// Its invariant holds.
    Healthy,
    /// It does not, and the warm-up is not over.
    WarmingUp,
    /// It does not, but not for long enough.
    Pending,
    /// It does not.
    Unhealthy,
}

impl Health {
    /// Every state.
    pub const ALL: [Self; 5] = [Self::Unknown, Self::Healthy, Self::WarmingUp, Self::Pending, Self::Unhealthy];

    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "UNKNOWN",
            Self::Healthy => "HEALTHY",
            Self::WarmingUp => "WARMING_UP",
            Self::Pending => "PENDING",
            Self::Unhealthy => "UNHEALTHY",
        }
    }
}

/// What was seen of a panel.
#[derive(Debug, Clone, PartialEq)]
pub enum Seen {
    /// Its query gave this.
    Answer(Answer),
    /// Its query fails.
    Broken(String),
    /// It could not be asked just now, which says nothing of it.
    Unasked(String),
}

/// What a panel's query gave.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Answer {
    /// How many rows.
    pub rows: u64,
    /// The highest value of the column of `min_value`.
    pub value: Option<f64>,
    /// The newest of the column of `freshness`.
    pub newest: Option<Micros>,
    /// What `while` gave; true without it.
    pub active: bool,
    /// What `empty_since` gave.
    pub empty_since: Option<Micros>,
}

/// What stands on the alerts topic: of each type, since when an alert about the panel is open.
pub type Open = BTreeMap<AlertType, Micros>;

/// What follows of a look at a panel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// It has been wrong for long enough.
    Unhealthy(AlertType),
    /// What was said to be wrong is over.
    Recovered(AlertType),
    /// An alert is to be raised.
    Raise {
        /// Of what.
        kind: AlertType,
        /// Since when.
        first_seen: Micros,
    },
    /// An alert is still up, and is to be said again before it ends by itself.
    Renew {
        /// Of what.
        kind: AlertType,
        /// Since when.
        first_seen: Micros,
        /// Counts up.
        round: i64,
    },
    /// An alert is to be cleared.
    Clear {
        /// Of what.
        kind: AlertType,
        /// Since when.
        first_seen: Micros,
    },
}

/// What holds for every panel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// When the process started.
    pub started: Micros,
    /// Time between two rounds: what is seen is said to have begun with its round.
    pub interval: Micros,
    /// An alert that is up is said again after so long; 0: never.
    pub renew: Micros,
}

#[derive(Debug, Clone, PartialEq)]
struct Episode {
    kind: AlertType,
    first_seen: Micros,
    /// It has been said to be unhealthy.
    told: bool,
    /// An alert is up, with the round that said it last.
    raised: Option<i64>,
}

/// What is known of a panel.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct State {
    /// When it came into the registry, for its warm-up.
    pub added: Micros,
    /// How it is.
    pub health: Health,
    /// When it was looked at last.
    pub last_checked: Option<Micros>,
    /// How many rows it had then.
    pub rows: Option<u64>,
    /// When it last had any.
    pub last_result: Option<Micros>,
    /// Why it could not be asked, or what its query fails with.
    pub error: Option<String>,
    episode: Option<Episode>,
    /// Alerts that were cleared here and are still open on the topic: until their window is over.
    cleared: Open,
}

impl State {
    /// Of a panel that came into the registry at `added`.
    pub fn new(added: Micros) -> Self {
        Self { added, ..Self::default() }
    }

    /// What is wrong with it, whether for long enough or not.
    pub fn wrong(&self) -> Option<(AlertType, Micros)> {
        self.episode.as_ref().map(|episode| (episode.kind, episode.first_seen))
    }

    /// The panel is no more: what is up of it is cleared.
    pub fn end(self) -> Option<Event> {
        let episode = self.episode.filter(|episode| episode.raised.is_some())?;
        Some(Event::Clear { kind: episode.kind, first_seen: episode.first_seen })
    }

    /// Judges what was seen of its panel at `now`.
    pub fn judge(&mut self, panel: &Panel, terms: Terms, now: Micros, seen: &Seen, open: &Open) -> Vec<Event> {
        self.last_checked = Some(now);
        let wrong = match seen {
            Seen::Unasked(why) => {
                self.error = Some(why.clone());
                if self.episode.is_none() {
                    self.health = Health::Unknown;
                }
                return Vec::new();
            }
            Seen::Broken(why) => {
                (self.error, self.rows) = (Some(why.clone()), None);
                Some((AlertType::FilterBreak, None))
            }
            Seen::Answer(answer) => {
                (self.error, self.rows) = (None, Some(answer.rows));
                if answer.rows > 0 {
                    self.last_result = Some(now);
                }
                violation(panel, answer, now)
            }
        };
        let mut events = Vec::new();
        self.close(wrong.map(|(kind, _)| kind), &mut events);
        if let Some((kind, since)) = wrong {
            let round = now - now.rem_euclid(terms.interval.max(1));
            // what the tables say of the future is not known yet
            let first_seen = since.filter(|since| *since <= now).unwrap_or(round);
            self.episode.get_or_insert(Episode { kind, first_seen, told: false, raised: None });
            self.open(panel, terms, now, open, &mut events);
        } else {
            self.health = Health::Healthy;
        }
        self.clear(panel.invariant.alert_enabled, open, &mut events);
        events
    }

    /// Ends an episode that is over.
    fn close(&mut self, wrong: Option<AlertType>, events: &mut Vec<Event>) {
        let Some(episode) = self.episode.take_if(|episode| Some(episode.kind) != wrong) else { return };
        if episode.told {
            events.push(Event::Recovered(episode.kind));
        }
        if episode.raised.is_some() {
            events.push(Event::Clear { kind: episode.kind, first_seen: episode.first_seen });
        }
    }

    /// Says of the episode what is due.
    fn open(&mut self, panel: &Panel, terms: Terms, now: Micros, open: &Open, events: &mut Vec<Event>) {
        let Some(episode) = &mut self.episode else { return };
        let invariant = &panel.invariant;
        if now <= self.added.max(terms.started).saturating_add(invariant.warmup) {
            self.health = Health::WarmingUp;
            return;
        }
        let lasted = now.saturating_sub(episode.first_seen);
        // a query does not mend itself
        let patience = if episode.kind == AlertType::FilterBreak { 0 } else { invariant.alert_after };
        if !episode.told && patience > 0 && lasted <= patience {
            self.health = Health::Pending;
            return;
        }
        self.health = Health::Unhealthy;
        if !episode.told {
            episode.told = true;
            events.push(Event::Unhealthy(episode.kind));
        }
        if !invariant.alert_enabled {
            return;
        }
        let (kind, round) = (episode.kind, if terms.renew > 0 { lasted / terms.renew } else { 0 });
        match episode.raised {
            None => {
                // another sidecar, or this one before it was restarted, has said it
                if open.get(&kind).is_none_or(|at| self.cleared.get(&kind) == Some(at)) {
                    events.push(Event::Raise { kind, first_seen: episode.first_seen });
                }
                episode.raised = Some(round);
            }
            Some(said) if round > said => {
                episode.raised = Some(round);
                events.push(Event::Renew { kind, first_seen: episode.first_seen, round });
            }
            Some(_) => {}
        }
    }

    /// Clears what is open on the topic and does not hold, each once.
    fn clear(&mut self, enabled: bool, open: &Open, events: &mut Vec<Event>) {
        if !enabled
            && let Some(episode) = &mut self.episode
            && episode.raised.take().is_some()
        {
            events.push(Event::Clear { kind: episode.kind, first_seen: episode.first_seen });
        }
        let holds = self.episode.as_ref().filter(|_| enabled).map(|episode| episode.kind);
        for (kind, at) in open.iter().filter(|(kind, _)| Some(**kind) != holds) {
            let by_us =
                events.iter().any(|event| matches!(event, Event::Clear { kind: cleared, .. } if cleared == kind));
            if !by_us && self.cleared.get(kind) != Some(at) {
                events.push(Event::Clear { kind: *kind, first_seen: *at });
            }
            self.cleared.insert(*kind, *at);
        }
        self.cleared.retain(|kind, at| open.get(kind) == Some(at));
    }
}

/// What of the invariant does not hold, and since when, where the tables tell.
fn violation(panel: &Panel, answer: &Answer, now: Micros) -> Option<(AlertType, Option<Micros>)> {
    let invariant = &panel.invariant;
    if !answer.active {
        return None;
    }
    let too_low = |least: f64| answer.value.is_none_or(|value| value < least);
    if answer.rows < invariant.min_rows || invariant.min_value.as_ref().is_some_and(|min| too_low(min.value)) {
        return Some((AlertType::EmptyPanel, answer.empty_since));
    }
    let due = answer.newest?.saturating_add(invariant.freshness.as_ref()?.within);
    (due < now).then_some((AlertType::StalePanel, Some(due)))
}

#[cfg(test)]
mod tests;
