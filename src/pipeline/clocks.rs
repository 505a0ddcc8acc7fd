//! The clock of each tenant: its highest event time, and how it moves on when the tenant falls silent (T3, X10).
//!
//! A tenant that has been silent for the idle timeout while the consumer stood at the end of its input gets a watermark that
//! moves on by the wall time elapsed there. The wall time is relative, so replayed history behaves like live traffic.

use std::collections::BTreeSet;

use hashbrown::HashMap;
use rustc_hash::FxBuildHasher;
use serde::{Deserialize, Serialize};

use crate::clock::{Micros, SECOND, Wall};

/// What roll-ups are of.
pub(super) const MINUTE: Micros = 60 * SECOND;

/// One tenant's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clock {
    /// Highest event time so far, µs.
    pub highest: Micros,
    /// Reading of the partition's end clock at the tenant's last record, µs.
    pub heard: Micros,
    /// The minute that `rows` are of.
    #[serde(default)]
    minute: i64,
    /// Rows of this minute so far.
    #[serde(default)]
    rows: u32,
    /// Those that no policy covered.
    #[serde(default)]
    uncovered: u32,
    /// Rows of this step so far.
    #[serde(skip)]
    fresh: u32,
}

impl Clock {
    /// Takes the minute out that is over at `clock`, if it has rows.
    fn turn(&mut self, tenant: &str, clock: Micros) -> Option<Minute> {
        let minute = clock.div_euclid(MINUTE);
        if minute == self.minute {
            return None;
        }
        let (over, rows, uncovered) = (self.minute, self.rows, self.uncovered);
        (self.minute, self.rows, self.uncovered) = (minute, 0, 0);
        (rows > 0).then(|| Minute { tenant: tenant.into(), minute: over, rows, uncovered })
    }
}

/// What came of a tenant within one minute of its clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Minute {
    /// The tenant.
    pub tenant: Box<str>,
    /// Minutes since 1970.
    pub minute: i64,
    /// Rows.
    pub rows: u32,
    /// Those that no policy covered.
    pub uncovered: u32,
}

/// Wall time that passed while the consumer stood at the end of its input.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndClock {
    /// µs spent at the end so far.
    pub elapsed: Micros,
    /// Clock of the last step, when that step stood at the end.
    pub since: Option<Micros>,
}

impl EndClock {
    /// A step with clock `now` that stands at the end or not. True when a further whole second was spent there: as often as
    /// that, and no oftener however many steps there are, silent tenants are looked at.
    pub fn step(&mut self, now: Wall, at_end: bool) -> bool {
        let before = self.elapsed;
        if let Some(since) = self.since {
            self.elapsed += (now.0 - since).max(0);
        }
        self.since = at_end.then_some(now.0);
        self.elapsed / SECOND > before / SECOND
    }
}

/// The clocks of a partition's tenants.
#[derive(Debug, Default)]
pub struct Clocks {
    tenants: HashMap<Box<str>, Clock, FxBuildHasher>,
    dirty: BTreeSet<Box<str>>,
    /// Minutes that are over.
    over: Vec<Minute>,
    /// Tenants with rows in a minute that is not over.
    counting: usize,
}

impl Clocks {
    /// A record of `tenant` at `time`; gives the tenant's clock after it.
    pub fn hear(&mut self, tenant: &str, time: Micros, end: &EndClock) -> Micros {
        let clock = self.tenants.entry_ref(tenant).or_insert_with(|| Clock {
            highest: time,
            heard: end.elapsed,
            minute: time.div_euclid(MINUTE),
            rows: 0,
            uncovered: 0,
            fresh: 0,
        });
        clock.highest = clock.highest.max(time);
        clock.heard = end.elapsed;
        let over = clock.turn(tenant, clock.highest);
        self.counting -= usize::from(over.is_some());
        self.over.extend(over);
        self.counting += usize::from(clock.rows == 0);
        clock.rows = clock.rows.saturating_add(1);
        clock.fresh = clock.fresh.saturating_add(1);
        clock.highest
    }

    /// The last record that was heard of the tenant is of no policy.
    pub fn uncovered(&mut self, tenant: &str) {
        if let Some(clock) = self.tenants.get_mut(tenant) {
            clock.uncovered = clock.uncovered.saturating_add(1);
        }
    }

    /// The clock of a silent tenant has idled to `at`: its minute may be over.
    pub fn pass(&mut self, tenant: &str, at: Micros) {
        let Some(clock) = self.tenants.get_mut(tenant) else { return };
        let over = clock.turn(tenant, at.max(clock.highest));
        if over.is_some() {
            self.counting -= 1;
            self.over.extend(over);
            self.touch(tenant);
        }
    }

    /// Whether some tenant's minute waits to be over.
    pub const fn is_counting(&self) -> bool {
        self.counting > 0
    }

    /// Every minute is over.
    pub fn finish(&mut self) {
        let mut names: Vec<Box<str>> = self.tenants.keys().cloned().collect();
        names.sort_unstable();
        for tenant in names {
            self.pass(&tenant, Micros::MAX);
        }
    }

    /// The minutes that came to be over since the last call, in order.
    pub fn take_over(&mut self) -> Vec<Minute> {
        std::mem::take(&mut self.over)
    }

    /// Highest event time of the tenant.
    pub fn highest(&self, tenant: &str) -> Option<Micros> {
        self.tenants.get(tenant).map(|c| c.highest)
    }

    /// Highest event time of all tenants.
    pub fn latest(&self) -> Option<Micros> {
        self.tenants.values().map(|c| c.highest).max()
    }

    /// Tenants silent for `timeout` at the end, with the event time their clock has idled to, in tenant order.
    pub fn idle(&self, timeout: Micros, end: &EndClock) -> Vec<(Box<str>, Micros)> {
        let mut idle: Vec<_> = self
            .tenants
            .iter()
            .filter_map(|(tenant, clock)| {
                let silent = end.elapsed - clock.heard;
                (silent >= timeout).then(|| (tenant.clone(), clock.highest.saturating_add(silent)))
            })
            .collect();
        idle.sort_unstable();
        idle
    }

    /// Wall time at which the tenant's clock, while it is silent, will have idled to `at`. `None`: the consumer is not at the end.
    pub fn idles_to(&self, tenant: &str, at: Micros, timeout: Micros, end: &EndClock) -> Option<Micros> {
        let clock = self.tenants.get(tenant)?;
        let silent = at.saturating_sub(clock.highest).max(timeout);
        let more = clock.heard.saturating_add(silent).saturating_sub(end.elapsed);
        // silent tenants are looked at once a second
        end.since.map(|since| since.saturating_add(more.max(SECOND)))
    }

    /// Every tenant, in order.
    pub fn tenants(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.tenants.keys().map(|t| &**t).collect();
        names.sort_unstable();
        names
    }

    /// Rows of the tenant since the last call.
    pub fn take_fresh(&mut self, tenant: &str) -> u32 {
        self.tenants.get_mut(tenant).map_or(0, |clock| std::mem::take(&mut clock.fresh))
    }

    /// Notes that the tenants' clocks changed in this step (all that were heard).
    pub fn touch(&mut self, tenant: &str) {
        if !self.dirty.contains(tenant) {
            self.dirty.insert(tenant.into());
        }
    }

    /// Clocks changed since the last call.
    pub fn take_changes(&mut self) -> Vec<(Box<str>, Clock)> {
        let dirty = std::mem::take(&mut self.dirty);
        dirty.into_iter().filter_map(|t| self.tenants.get(&t).map(|c| (t.clone(), *c))).collect()
    }

    /// Makes the next [`Self::take_changes`] a full one.
    pub fn mark_all_dirty(&mut self) {
        self.dirty.extend(self.tenants.keys().cloned());
    }

    /// Lets the end clock begin anew at 0 and not at the end, and every tenant keep the silence it had: readings of several
    /// partitions then go together.
    pub fn restart(&mut self, end: &mut EndClock) {
        for (tenant, clock) in &mut self.tenants {
            clock.heard -= end.elapsed;
            self.dirty.insert(tenant.clone());
        }
        *end = EndClock::default();
    }

    /// Takes a clock back.
    pub fn restore(&mut self, tenant: &str, clock: Clock) {
        self.counting += usize::from(clock.rows > 0);
        let before = self.tenants.insert(tenant.into(), clock);
        self.counting -= usize::from(before.is_some_and(|before| before.rows > 0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restarted_end_clock_keeps_every_silence_and_counts_none_for_the_time_away() {
        let (mut end, mut clocks) = (EndClock { elapsed: 100 * SECOND, since: None }, Clocks::default());
        end.step(Wall(0), true);
        clocks.hear("a", 1000 * SECOND, &end);
        end.step(Wall(20 * SECOND), true);
        clocks.restart(&mut end);
        assert_eq!(clocks.idle(20 * SECOND, &end), vec![("a".into(), 1020 * SECOND)]);
        end.step(Wall(500 * SECOND), true);
        end.step(Wall(515 * SECOND), true);
        assert_eq!(clocks.idle(30 * SECOND, &end), vec![("a".into(), 1035 * SECOND)]);
    }

    #[test]
    fn a_minute_waits_until_the_clock_passes_it_and_after_a_restart_too() {
        let (end, mut clocks) = (EndClock::default(), Clocks::default());
        assert!(!clocks.is_counting());
        clocks.hear("a", 30 * SECOND, &end);
        clocks.hear("b", 45 * SECOND, &end);
        clocks.hear("a", 61 * SECOND, &end);
        clocks.pass("b", 50 * SECOND);
        assert!(clocks.is_counting());
        clocks.pass("a", 120 * SECOND);
        assert!(clocks.is_counting(), "that of b is not over");
        let mut again = Clocks::default();
        for (tenant, clock) in clocks.take_changes().into_iter().chain([("b".into(), clocks.tenants["b"])]) {
            again.restore(&tenant, clock);
            again.restore(&tenant, clock);
        }
        assert!(again.is_counting());
        for mut clocks in [clocks, again] {
            clocks.pass("b", 60 * SECOND);
            assert!(!clocks.is_counting());
            clocks.pass("b", 600 * SECOND);
            clocks.hear("b", 600 * SECOND, &end);
            assert!(clocks.is_counting());
        }
    }

    #[test]
    fn only_time_at_the_end_makes_a_tenant_idle() {
        let (mut end, mut clocks) = (EndClock::default(), Clocks::default());
        end.step(Wall(0), false);
        clocks.hear("a", 1000 * SECOND, &end);
        end.step(Wall(600 * SECOND), false);
        assert!(clocks.idle(30 * SECOND, &end).is_empty(), "ten minutes of catching up are not silence");
        end.step(Wall(601 * SECOND), true);
        end.step(Wall(640 * SECOND), true);
        assert_eq!(clocks.idle(30 * SECOND, &end), vec![("a".into(), 1039 * SECOND)]);
        clocks.hear("a", 1001 * SECOND, &end);
        assert!(clocks.idle(30 * SECOND, &end).is_empty());
    }
}
