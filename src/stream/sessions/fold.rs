//! Computes the totals of the sessions a sub-batch touched, and tidies their sequences for the next one.

use super::*;

impl SessionStore {
    /// Computes the totals of the sessions touched in this sub-batch.
    pub(super) fn fold(&mut self, batch: &Batch<'_>) -> Result<(), Error> {
        if self.works.is_empty() {
            return Ok(());
        }
        // appended rows of sessions that were folded anew later in the sub-batch are part of their sequence
        let (mut rows, mut locals, mut read, mut write) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut works_of: Vec<u32> = Vec::new();
        for (row, work) in std::mem::take(&mut self.appended) {
            if self.works[work as usize].refold {
                continue;
            }
            if self.works[work as usize].local == NONE {
                self.works[work as usize].local = works_of.len() as u32;
                works_of.push(work);
            }
            rows.push(row);
            locals.push(self.works[work as usize].local as usize);
        }
        let sessions = self.current();
        for work in &works_of {
            let Some(s) = find(&mut self.groups, &mut self.closing, &sessions, *work) else {
                return Err(Error::State("a session vanished within a batch".into()));
            };
            let w = &mut self.works[*work as usize];
            // a settled state is also an item: it stays as it is
            let fresh = s.total == NO_SLOT
                || s.items.iter().any(|i| matches!(i.content, Content::State(slot) if slot == s.total));
            w.write = if fresh { self.pool.alloc() } else { s.total };
            s.total = w.write;
            read.push(w.read);
            write.push(w.write);
            if w.read != w.write {
                self.pool.set_evidence(w.write, w.old_evidence);
            }
        }
        for (row, local) in rows.iter().zip(&locals) {
            let position = batch.positions[*row as usize];
            self.pool.witness(write[*local], (position, position));
        }
        if !rows.is_empty() {
            let keep = self.members.iter().any(|m| m.query.early());
            let feed = Feed { rows: &rows, locals: &locals, len: batch.len, values: batch.values };
            self.old = self.pool.update(&read, &write, &feed, keep)?;
        }
        self.refold_all(batch, &sessions)
    }

    pub(super) fn refold_all(&mut self, batch: &Batch<'_>, sessions: &[Place]) -> Result<(), Error> {
        let mut jobs: Vec<(u32, Vec<Item>)> = Vec::new();
        for work in 0..self.works.len() as u32 {
            if !self.works[work as usize].refold {
                continue;
            }
            // absorbed sessions have no place any more
            let Some(s) = find(&mut self.groups, &mut self.closing, sessions, work) else { continue };
            if s.total != NO_SLOT
                && !s.items.iter().any(|i| matches!(i.content, Content::State(slot) if slot == s.total))
            {
                self.drops.push(s.total);
            }
            if s.items.iter().all(|i| matches!(i.content, Content::Silent)) {
                s.total = NO_SLOT;
                continue;
            }
            s.total = self.pool.alloc();
            jobs.push((s.total, s.items.clone()));
        }
        self.refold(batch, jobs)
    }

    /// New state of each slot = its items in order: states are merged, rows are applied.
    pub(super) fn refold(&mut self, batch: &Batch<'_>, mut jobs: Vec<(u32, Vec<Item>)>) -> Result<(), Error> {
        if jobs.is_empty() {
            return Ok(());
        }
        let mut new: Vec<u32> = jobs
            .iter()
            .flat_map(|(_, items)| items.iter())
            .filter_map(|i| if let Content::New(row) = i.content { Some(row) } else { None })
            .collect();
        new.sort_unstable();
        new.dedup();
        let bytes = self.encode(batch, &new)?;
        for (_, items) in &mut jobs {
            items.retain(|i| !matches!(i.content, Content::Silent));
            for item in items {
                if let Content::New(row) = item.content
                    && let Ok(at) = new.binary_search(&row)
                {
                    item.content = Content::Old(Arc::clone(&bytes[at]));
                }
            }
        }
        let mut next: Vec<usize> = vec![0; jobs.len()];
        let mut filled: Vec<bool> = vec![false; jobs.len()];
        loop {
            let (mut parts, mut of, mut write) = (Vec::new(), Vec::new(), Vec::new());
            for (j, (slot, items)) in jobs.iter().enumerate() {
                let run: Vec<u32> = items[next[j]..]
                    .iter()
                    .map_while(|i| if let Content::State(s) = i.content { Some(s) } else { None })
                    .collect();
                if run.is_empty() {
                    continue;
                }
                next[j] += run.len();
                if filled[j] {
                    parts.push(*slot);
                    of.push(write.len());
                }
                parts.extend(&run);
                of.extend(run.iter().map(|_| write.len()));
                filled[j] = true;
                write.push(*slot);
            }
            let merged = !write.is_empty();
            self.pool.merge(&parts, &of, &write)?;
            let (mut rows, mut locals, mut read, mut write) =
                (Vec::<Arc<[u8]>>::new(), Vec::new(), Vec::new(), Vec::new());
            for (j, (slot, items)) in jobs.iter().enumerate() {
                let from = rows.len();
                for item in &items[next[j]..] {
                    let Content::Old(bytes) = &item.content else { break };
                    rows.push(Arc::clone(bytes));
                    locals.push(write.len());
                    self.pool.witness(*slot, (item.position, item.position));
                }
                if rows.len() > from {
                    next[j] += rows.len() - from;
                    read.push(if filled[j] { *slot } else { NO_SLOT });
                    write.push(*slot);
                    filled[j] = true;
                }
            }
            if !write.is_empty() {
                self.update_old(batch, &rows, &locals, &read, &write)?;
            } else if !merged {
                return Ok(());
            }
        }
    }

    pub(super) fn update_old(
        &mut self,
        batch: &Batch<'_>,
        rows: &[Arc<[u8]>],
        locals: &[usize],
        read: &[u32],
        write: &[u32],
    ) -> Result<(), Error> {
        let columns = self.converter.convert_rows(rows.iter().map(|r| self.parser.parse(r)))?;
        let mut values: Vec<ArrayRef> = batch.values.to_vec();
        for (argument, column) in self.arguments.iter().zip(columns) {
            values[*argument] = column;
        }
        for (argument, value) in &self.constants {
            values[*argument] = value.to_array_of_size(rows.len())?;
        }
        let all: Vec<u32> = (0..rows.len() as u32).collect();
        let feed = Feed { rows: &all, locals, len: rows.len(), values: &values };
        self.pool.update(read, write, &feed, false)?;
        Ok(())
    }

    /// Rows of the batch as bytes.
    pub(super) fn encode(&self, batch: &Batch<'_>, rows: &[u32]) -> Result<Vec<Arc<[u8]>>, Error> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let columns = self.arguments.iter().map(|a| taken(&batch.values[*a], rows)).collect::<Result<Vec<_>, _>>()?;
        Ok(self.converter.convert_columns(&columns)?.iter().map(|r| Arc::from(r.as_ref())).collect())
    }

    /// Where each work's session is now.
    pub(super) fn current(&self) -> Vec<Place> {
        let mut places = vec![Place::Gone; self.works.len()];
        for group in &self.touched {
            for (i, s) in self.groups[*group as usize].open.iter().enumerate() {
                if s.work.0 == self.stamp {
                    places[s.work.1 as usize] = Place::Open(*group, i);
                }
            }
        }
        for (i, (_, s, _)) in self.closing.iter().enumerate() {
            if s.work.0 == self.stamp {
                places[s.work.1 as usize] = Place::Closing(i);
            }
        }
        places
    }

    /// Settles what the watermark has passed and turns rows of the batch that stay pending into bytes.
    pub(super) fn tidy(&mut self, batch: &Batch<'_>, moves: &Moves<'_>, keys: &KeySet) -> Result<(), Error> {
        for clock in moves.clocks() {
            let Some(heap) = self.unsettled.get_mut(clock as usize) else { continue };
            let bound = moves.watermark(clock);
            let mut due = Vec::new();
            while let Some(Reverse((time, group))) = heap.peek().copied() {
                if time > bound {
                    break;
                }
                heap.pop();
                due.push(group);
            }
            for group in due {
                let g = &mut self.groups[group as usize];
                g.queued = false;
                if !g.open.is_empty() && g.stamp != self.stamp {
                    g.stamp = self.stamp;
                    self.touched.push(group);
                }
            }
        }
        let mut pending: Vec<u32> = Vec::new();
        let mut long: Vec<(u32, usize)> = Vec::new();
        for group in &self.touched {
            let g = &mut self.groups[*group as usize];
            let clock = keys.clock(*group);
            let watermark = moves.watermark(clock);
            let mut wait: Option<Micros> = None;
            for (i, s) in g.open.iter_mut().enumerate() {
                s.seal(watermark);
                if s.sealed == s.items.len() {
                    settle(s, &mut self.drops);
                    continue;
                }
                wait = wait.max(Some(s.last));
                if s.items.len() > LONG && s.sealed * 2 > s.items.len() {
                    long.push((*group, i));
                }
                pending.extend(
                    s.items.iter().filter_map(|i| if let Content::New(row) = i.content { Some(row) } else { None }),
                );
            }
            if let Some(last) = wait
                && !g.queued
            {
                g.queued = true;
                push(&mut self.unsettled, clock, last, *group);
            }
        }
        pending.sort_unstable();
        pending.dedup();
        let bytes = self.encode(batch, &pending)?;
        for group in &self.touched {
            for s in &mut self.groups[*group as usize].open {
                for item in &mut s.items {
                    if let Content::New(row) = item.content
                        && let Ok(at) = pending.binary_search(&row)
                    {
                        item.content = Content::Old(Arc::clone(&bytes[at]));
                    }
                }
            }
        }
        self.shorten(batch, long)
    }

    /// Folds the passed part of long sequences to one state.
    pub(super) fn shorten(&mut self, batch: &Batch<'_>, long: Vec<(u32, usize)>) -> Result<(), Error> {
        let mut jobs = Vec::new();
        for (group, i) in long {
            let s = &mut self.groups[group as usize].open[i];
            let rest = s.items.split_off(s.sealed);
            let passed = std::mem::replace(&mut s.items, rest);
            s.sealed = 0;
            let time = passed.last().map_or(s.start, |i| i.time);
            for item in &passed {
                if let Content::State(slot) = item.content
                    && slot != s.total
                {
                    self.drops.push(slot);
                }
            }
            if passed.iter().any(|i| !matches!(i.content, Content::Silent)) {
                let slot = self.pool.alloc();
                s.items.insert(0, Item { time, position: 0, content: Content::State(slot) });
                s.sealed = 1;
                jobs.push((slot, passed));
            }
        }
        self.refold(batch, jobs)
    }

    /// Computes the totals of restored sessions from their items.
    pub(in crate::stream) fn retotal(&mut self, open: &mut [Session], values: &[ArrayRef]) -> Result<(), Error> {
        let mut jobs = Vec::new();
        for s in open {
            if let [Item { content: Content::State(slot), .. }] = s.items.as_slice() {
                s.total = *slot;
            } else if s.items.iter().any(|i| !matches!(i.content, Content::Silent)) {
                s.total = self.pool.alloc();
                jobs.push((s.total, s.items.clone()));
            }
        }
        let batch = Batch {
            len: 0,
            values,
            times: &[],
            clocks: &[],
            before: &[],
            finished: &[],
            positions: &[],
            groups: &[],
            dark: Dark::default(),
        };
        self.refold(&batch, jobs)
    }
}
