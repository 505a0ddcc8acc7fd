//! Blindness is a state (X5): where telemetry is missing, nobody may conclude from low figures that all is well.
//!
//! A tenant is blind while one of the [`Cause`]s holds. Its policies are UNKNOWN then: a person is told, and a policy that is
//! `fail_closed` lets no new run begin. What is looked at here is counts and times that the step was given; who is affected, and what
//! follows, is `pipeline`'s.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::clock::{Micros, SECOND};

/// The time in which late rows are counted.
const WITHIN: Micros = 60 * SECOND;

/// Why a tenant cannot be seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Cause {
    /// What is decided about was appended to the log too long ago, and newer records wait.
    Lag,
    /// Runs are under way and say nothing.
    Silence,
    /// Too large a share of its rows comes too late for every window.
    Late,
    /// It has too many live keys: rows of further ones are refused.
    Overflow,
}

impl Cause {
    /// Every cause.
    pub const ALL: [Self; 4] = [Self::Lag, Self::Silence, Self::Late, Self::Overflow];

    /// The JSON name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Lag => "LAG",
            Self::Silence => "SILENCE",
            Self::Late => "LATE",
            Self::Overflow => "OVERFLOW",
        }
    }
}

/// `[blindness]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bounds {
    /// Longest lag, µs; 0: never blind by it.
    pub lag: Micros,
    /// Longest silence of a tenant with runs under way, µs; 0: never blind by it.
    pub silence: Micros,
    /// More than so many percent of the rows within a minute are late; 0: never blind by it.
    pub late_percent: u32,
    /// And at least so many rows.
    pub late_rows: u32,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { lag: 60 * SECOND, silence: 600 * SECOND, late_percent: 10, late_rows: 20 }
    }
}

/// Rows since a late one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Counted {
    /// Until which clock of the tenant they are counted.
    until: Micros,
    rows: u64,
    late: u64,
}

/// What is known of how well a tenant is seen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sight {
    /// What makes it blind, and since when of the step's clock.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    causes: BTreeMap<Cause, Micros>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    counted: Option<Counted>,
    /// Its highest event time when it was last looked at in silence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    looked: Option<Micros>,
}

/// A cause that began or ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    /// Whose sight.
    pub tenant: Box<str>,
    /// What it is about.
    pub cause: Cause,
    /// Whether it began.
    pub began: bool,
    /// In words, with the figures.
    pub why: String,
}

/// How well the tenants of a partition are seen.
#[derive(Debug, Default)]
pub struct Sights {
    bounds: Bounds,
    tenants: BTreeMap<Box<str>, Sight>,
    dirty: BTreeSet<Box<str>>,
    /// Tenants that lag.
    lagging: usize,
    /// Tenants whose rows are being counted.
    counting: usize,
}

impl Sights {
    /// Of tenants that are seen well.
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, ..Self::default() }
    }

    /// The bounds.
    pub const fn bounds(&self) -> &Bounds {
        &self.bounds
    }

    /// Why a tenant is not seen, by cause, and since when of the step's clock.
    pub fn blind(&self, tenant: &str) -> impl Iterator<Item = (Cause, Micros)> {
        self.tenants.get(tenant).into_iter().flat_map(|sight| &sight.causes).map(|(cause, since)| (*cause, *since))
    }

    /// Whether a tenant is blind for a cause.
    pub fn is(&self, tenant: &str, cause: Cause) -> bool {
        self.tenants.get(tenant).is_some_and(|sight| sight.causes.contains_key(&cause))
    }

    /// How many tenants are blind for each cause.
    pub fn count(&self) -> [u64; Cause::ALL.len()] {
        let of = |cause| self.tenants.values().filter(|sight| sight.causes.contains_key(&cause)).count() as u64;
        Cause::ALL.map(of)
    }

    /// What the lag that is known now says: `Some(true)`: whoever has runs under way is blind; `Some(false)`: those that were are no
    /// more. It ends at half its bound, so that a lag around the bound is told once.
    pub fn lags(&self, lag: Option<Micros>) -> Option<bool> {
        let (bound, lag) = (self.bounds.lag, lag?);
        if bound > 0 && lag > bound {
            return Some(true);
        }
        (self.lagging > 0 && (bound == 0 || lag <= bound / 2)).then_some(false)
    }

    /// Tenants that are blind by lag, in order.
    pub fn lagging(&self) -> Vec<Box<str>> {
        let lags = |sight: &Sight| sight.causes.contains_key(&Cause::Lag);
        self.tenants.iter().filter(|(_, sight)| lags(sight)).map(|(tenant, _)| tenant.clone()).collect()
    }

    /// Whether a silence of a tenant is news to be looked into: it is as long as the bound, and was not looked into.
    pub fn is_silent(&mut self, tenant: &str, highest: Micros, silent: Micros) -> bool {
        let bound = self.bounds.silence;
        if bound == 0 || silent < bound {
            return false;
        }
        if self.tenants.get(tenant).is_some_and(|sight| sight.looked == Some(highest)) {
            return false;
        }
        self.tenants.entry(tenant.into()).or_default().looked = Some(highest);
        self.dirty.insert(tenant.into());
        true
    }

    /// Whether any row must be given to [`Self::row`], late or not.
    pub const fn counts(&self) -> bool {
        self.counting > 0
    }

    /// Takes a row at its tenant's clock, in the order of the rows; `late`: no window took it. Rows count for a minute from a late
    /// one on, so the cut of batches changes nothing.
    pub fn row(&mut self, tenant: &str, clock: Micros, late: bool) -> Option<Turn> {
        let Bounds { late_percent: percent, late_rows: least, .. } = self.bounds;
        if percent == 0 || (!late && self.tenants.get(tenant).is_none_or(|sight| sight.counted.is_none())) {
            return None;
        }
        let sight = self.tenants.entry(tenant.into()).or_default();
        self.dirty.insert(tenant.into());
        let mut ended = None;
        if let Some(last) = sight.counted.filter(|counted| clock >= counted.until) {
            sight.counted = None;
            self.counting = self.counting.saturating_sub(1);
            if !is_too_much(&last, percent, least) && sight.causes.contains_key(&Cause::Late) {
                ended = Some(format!("{} of {} rows of a minute were late", last.late, last.rows));
            }
        }
        let blind = sight.causes.contains_key(&Cause::Late);
        if sight.counted.is_none() && (late || blind && ended.is_none()) {
            // while it is blind each minute counts: the one in which few rows are late ends it
            sight.counted = Some(Counted { until: clock.saturating_add(WITHIN), rows: 0, late: 0 });
            self.counting += 1;
        }
        let turn = |began, why| Turn { tenant: tenant.into(), cause: Cause::Late, began, why };
        let Some(counted) = &mut sight.counted else { return ended.map(|why| turn(false, why)) };
        counted.rows += 1;
        counted.late += u64::from(late);
        if let Some(why) = ended {
            return Some(turn(false, why));
        }
        (!blind && is_too_much(counted, percent, least)).then(|| {
            let Counted { rows, late, .. } = counted;
            turn(true, format!("{late} of {rows} rows since the first late one came too late for every window"))
        })
    }

    /// Notes that a cause began or ended at the step's clock `now`; false: it was so before.
    pub fn turn(&mut self, turn: &Turn, now: Micros) -> bool {
        let Turn { tenant, cause, began, .. } = turn;
        if *began == self.is(tenant, *cause) {
            return false;
        }
        let sight = self.tenants.entry(tenant.clone()).or_default();
        if *began {
            sight.causes.insert(*cause, now);
        } else {
            sight.causes.remove(cause);
        }
        if *cause == Cause::Lag {
            self.lagging = if *began { self.lagging + 1 } else { self.lagging.saturating_sub(1) };
        }
        if *sight == Sight::default() {
            self.tenants.remove(tenant);
        }
        self.dirty.insert(tenant.clone());
        true
    }

    /// Forgets what was looked into of a tenant that speaks again.
    pub fn speaks(&mut self, tenant: &str) {
        let Some(sight) = self.tenants.get_mut(tenant).filter(|sight| sight.looked.is_some()) else { return };
        sight.looked = None;
        if *sight == Sight::default() {
            self.tenants.remove(tenant);
        }
        self.dirty.insert(tenant.into());
    }

    /// What changed since the last call; `None`: nothing is to be known any more.
    pub fn take_changes(&mut self) -> Vec<(Box<str>, Option<&Sight>)> {
        let dirty = std::mem::take(&mut self.dirty);
        dirty.into_iter().map(|tenant| (tenant.clone(), self.tenants.get(&tenant))).collect()
    }

    /// Makes the next [`Self::take_changes`] a full one.
    pub fn mark_all_dirty(&mut self) {
        self.dirty.extend(self.tenants.keys().cloned());
    }

    /// Takes one back.
    pub fn restore(&mut self, tenant: Box<str>, sight: Sight) {
        self.lagging += usize::from(sight.causes.contains_key(&Cause::Lag));
        self.counting += usize::from(sight.counted.is_some());
        self.tenants.insert(tenant, sight);
    }
}

fn is_too_much(counted: &Counted, percent: u32, least: u32) -> bool {
    counted.late >= u64::from(least)
        && counted.late.saturating_mul(100) > counted.rows.saturating_mul(u64::from(percent))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes rows, one every `pace`, of which every `n`th is late; gives the turns with the number of their row.
    fn rows(sights: &mut Sights, count: usize, pace: Micros, from: Micros, nth: usize) -> Vec<(usize, bool)> {
        (0..count)
            .filter_map(|n| {
                let at = from + pace * i64::try_from(n).unwrap();
                let turn = sights.row("t", at, nth > 0 && n % nth == 0)?;
                assert!(sights.turn(&turn, at), "it is news");
                Some((n, turn.began))
            })
            .collect()
    }

    #[test]
    fn few_late_rows_are_no_blindness_and_many_are_from_the_row_that_is_too_much() {
        let mut sights = Sights::default();
        assert!(rows(&mut sights, 1_000, SECOND / 10, 0, 20).is_empty(), "5 % are not more than 10 %");
        let mut sights = Sights::default();
        assert!(rows(&mut sights, 19, SECOND, 0, 1).is_empty(), "19 rows are too few to judge by");
        let mut sights = Sights::default();
        assert_eq!(rows(&mut sights, 59, SECOND, 0, 2), [(38, true)], "the twentieth late one of 39");
        assert!(sights.is("t", Cause::Late));
    }

    #[test]
    fn it_ends_after_a_minute_in_which_few_rows_are_late_also_after_a_crash() {
        let mut sights = Sights::default();
        assert_eq!(rows(&mut sights, 60, SECOND, 0, 1), [(19, true)]);
        sights.mark_all_dirty();
        let mut back = Sights::default();
        for (tenant, sight) in sights.take_changes() {
            let text = serde_json::to_string(sight.unwrap()).unwrap();
            back.restore(tenant, serde_json::from_str(&text).unwrap());
        }
        assert!(back.counts() && back.is("t", Cause::Late));
        // from second 60 a minute is counted in which no row is late; its first row after is at 120
        assert_eq!(rows(&mut back, 200, SECOND, 60 * SECOND, 0), [(60, false)]);
        assert!(!back.counts());
        assert_eq!(back.take_changes().len(), 1);
        assert!(back.tenants.is_empty(), "nothing is kept of who is seen well");
    }

    #[test]
    fn a_lag_is_told_once_and_ends_at_half_its_bound() {
        let mut sights = Sights::default();
        let lag = |began| Turn { tenant: "t".into(), cause: Cause::Lag, began, why: String::new() };
        assert_eq!([sights.lags(None), sights.lags(Some(60 * SECOND)), sights.lags(Some(0))], [None; 3]);
        assert_eq!(sights.lags(Some(61 * SECOND)), Some(true));
        assert!(sights.turn(&lag(true), 5) && !sights.turn(&lag(true), 6));
        assert_eq!(sights.lags(Some(99 * SECOND)), Some(true), "for those that come to have runs under way");
        assert_eq!([sights.lags(Some(31 * SECOND)), sights.lags(None)], [None; 2]);
        assert_eq!(sights.lags(Some(30 * SECOND)), Some(false));
        assert_eq!(
            (sights.lagging(), sights.blind("t").collect::<Vec<_>>()),
            (vec!["t".into()], vec![(Cause::Lag, 5)])
        );
        assert!(sights.turn(&lag(false), 7) && sights.lagging().is_empty());
        assert_eq!(Sights::new(Bounds { lag: 0, ..Bounds::default() }).lags(Some(Micros::MAX)), None, "switched off");
    }

    #[test]
    fn a_silence_is_looked_into_once() {
        let mut sights = Sights::default();
        assert!(!sights.is_silent("t", 7, 599 * SECOND));
        assert!(sights.is_silent("t", 7, 600 * SECOND) && !sights.is_silent("t", 7, 601 * SECOND));
        sights.speaks("t");
        assert!(sights.tenants.is_empty() && sights.is_silent("t", 9, 600 * SECOND));
        let off = Bounds { silence: 0, late_percent: 0, ..Bounds::default() };
        let mut off = Sights::new(off);
        assert!(!off.is_silent("t", 7, Micros::MAX) && rows(&mut off, 99, SECOND, 0, 1).is_empty());
    }
}
