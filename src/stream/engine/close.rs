//! Closing windows: at the end of a batch, when a clock moves on without rows, and at the end of everything.

use crate::clock::Micros;
use crate::stream::Error;
use crate::stream::budget::Dark;
use crate::stream::output::{NO_ROW, Output};

use super::{Batch, Engine, Moves, Store};

impl Engine {
    pub(super) fn close(&mut self, moves: &Moves<'_>, view: &Batch<'_>, out: &mut Output) -> Result<(), Error> {
        let (mut closed, mut empty) = (Vec::new(), Vec::new());
        for store in &mut self.stores {
            let keys = &mut self.key_sets[store.key_set()];
            let errors = &mut self.errors;
            match store {
                Store::Panes(s) => s.close(moves, keys, errors, &mut closed, &mut empty)?,
                Store::Sessions(s) => s.close(moves, view, keys, errors, &mut closed, &mut empty)?,
            }
        }
        closed.sort_by_key(|c| c.query);
        empty.sort_by_key(|e| e.query);
        out.closed.extend(closed);
        out.empty.extend(empty);
        Ok(())
    }

    /// Closes what a move without rows passes.
    pub(super) fn close_without_rows(
        &mut self,
        moved: &[(u32, Vec<(Micros, u32)>)],
        all: bool,
    ) -> Result<Output, Error> {
        let mut out = Output::default();
        let finished: Vec<Micros> = self.clocks.list.iter().map(|c| c.finished).collect();
        let now: Vec<Micros> =
            self.clocks.list.iter().map(|c| if all { c.watermark.max(c.high) } else { c.watermark }).collect();
        let blank = self.blank.clone();
        let dark_clocks = self.budget.dark().to_vec();
        let dark = Dark { rows: &[], clocks: &dark_clocks };
        let view = Batch {
            len: 0,
            values: &blank,
            times: &[],
            clocks: &[],
            before: &[],
            finished: &finished,
            positions: &[],
            groups: &[],
            dark,
        };
        let moves = Moves { moved, finished: &finished, now: &now, all, dark };
        self.close(&moves, &view, &mut out)?;
        self.sweep(&mut out);
        Ok(out)
    }

    /// Moves one clock's watermark forward (never back) and closes what it passes.
    pub fn advance(&mut self, clock: &str, watermark: Micros) -> Result<Output, Error> {
        for keys in &mut self.key_sets {
            keys.thaw();
        }
        let id = self.clocks.id(clock);
        let entry = &mut self.clocks.list[id as usize];
        if watermark <= entry.watermark {
            return Ok(Output::default());
        }
        entry.watermark = watermark;
        entry.dirty = true;
        // thousands of silent tenants are moved at every step: those with nothing due must cost next to nothing
        let entry = &*entry;
        let quiet = self.stores.iter().all(|store| match store {
            Store::Panes(s) => s.is_quiet(id, entry.closed_until(s.grid.size)),
            Store::Sessions(s) => s.is_quiet(id, watermark),
        });
        let turn = self.budget.look(id, watermark);
        let mut out = match quiet {
            true => Output::default(),
            false => self.close_without_rows(&[(id, vec![(watermark, NO_ROW)])], false)?,
        };
        out.overflows.extend(turn.map(|turn| self.overflow(id, turn, NO_ROW)));
        Ok(out)
    }

    /// Closes every window. Afterwards each watermark is the highest event time seen, and what was closed stays closed.
    pub fn close_all(&mut self) -> Result<Output, Error> {
        for keys in &mut self.key_sets {
            keys.thaw();
        }
        let moved: Vec<(u32, Vec<(Micros, u32)>)> =
            (0..self.clocks.list.len() as u32).map(|c| (c, Vec::new())).collect();
        let out = self.close_without_rows(&moved, true)?;
        for clock in &mut self.clocks.list {
            clock.watermark = clock.watermark.max(clock.high);
            clock.finished = clock.finished.max(clock.high);
            clock.dirty = true;
        }
        Ok(out)
    }

    pub(super) fn sweep(&mut self, out: &mut Output) {
        for (i, keys) in self.key_sets.iter_mut().enumerate() {
            out.freed.extend(keys.sweep().into_iter().map(|id| (i, id)));
        }
    }
}
