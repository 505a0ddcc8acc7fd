//! What the sessions say: early results, traces, and final results at the close.

use super::*;

impl SessionStore {
    /// Results of the touched sessions for queries whose value only rises.
    pub(in crate::stream) fn early(
        &mut self,
        keys: &KeySet,
        batch: &Batch<'_>,
        errors: &mut u64,
    ) -> Result<Vec<QueryRows>, Error> {
        let members: Vec<&Member> = self.members.iter().filter(|m| m.query.early()).collect();
        if self.works.is_empty() || members.is_empty() {
            return Ok(Vec::new());
        }
        let mut evals = Evals::default();
        for (work, place) in self.current().into_iter().enumerate() {
            let s = match place {
                Place::Open(group, i) => &self.groups[group as usize].open[i],
                Place::Closing(i) => &self.closing[i].1,
                Place::Gone => continue,
            };
            if s.total != NO_SLOT && self.works[work].changed {
                let w = &self.works[work];
                let from = evals.begin();
                evals.parts.push(s.total);
                evals.end(w.group, w.last_row, (s.start, s.end(self.gap)), from);
            }
        }
        Ok(emit(&mut self.pool, keys, &members, &evals, Some(batch.values), batch.dark, errors)?
            .into_iter()
            .map(|e| e.rows)
            .collect())
    }

    /// Groups whose sessions were split in the last sub-batch: an earlier value may have been higher.
    pub(in crate::stream) fn must_trace(&self) -> &[u32] {
        &self.split
    }

    /// The per-row history of some groups in the last sub-batch, for one member.
    pub(in crate::stream) fn trace(
        &mut self,
        member: usize,
        picks: &[u32],
        keys: &KeySet,
        batch: &Batch<'_>,
        errors: &mut u64,
    ) -> Result<Vec<Trace>, Error> {
        let mut rounds: Vec<Vec<usize>> = Vec::new();
        let mut seen: BTreeMap<u32, usize> = BTreeMap::new();
        for (i, step) in self.steps.iter().enumerate() {
            if picks.binary_search(&step.group).is_ok() {
                let round = seen.entry(step.group).or_default();
                if rounds.len() <= *round {
                    rounds.push(Vec::new());
                }
                rounds[*round].push(i);
                *round += 1;
            }
        }
        let steps = std::mem::take(&mut self.steps);
        let old = self.old.take();
        // what is done here again was counted
        let counted = self.pool.capped;
        // one scratch slot per work; absent until the first step
        let mut temps: BTreeMap<u32, (u32, bool)> = BTreeMap::new();
        // sequences followed row by row
        let mut lists: BTreeMap<u32, Vec<Item>> = BTreeMap::new();
        let mut results: Vec<QueryRows> = Vec::new();
        for round in rounds {
            let (mut rows, mut locals, mut read, mut write) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
            let mut jobs = Vec::new();
            let mut evals = Evals::default();
            for i in round {
                let step = &steps[i];
                let w = &self.works[step.work as usize];
                let (last_read, evidence, append) = (w.read, w.old_evidence, (!w.refold).then_some(w.local));
                let (slot, filled) = match temps.get(&step.work) {
                    Some(known) => *known,
                    None => {
                        let slot = self.pool.alloc();
                        let filled = match (append, &old) {
                            // its total was overwritten, unless it was written elsewhere
                            (Some(local), Some(old)) => self.pool.revive(old, local as usize, slot)?,
                            _ if last_read != NO_SLOT => {
                                self.pool.merge(&[last_read], &[0], &[slot])?;
                                true
                            }
                            _ => false,
                        };
                        self.pool.set_evidence(slot, evidence);
                        (slot, filled)
                    }
                };
                // following a sequence, the state is folded from it; else the row is added to the state
                let list = match &step.change {
                    Change::Append => None,
                    Change::Whole(items) => Some(items.clone()),
                    Change::Insert(at, item) => {
                        let mut items = lists.remove(&step.work).unwrap_or_default();
                        items.insert((*at).min(items.len()), item.clone());
                        Some(items)
                    }
                };
                match list {
                    Some(items) => {
                        let silent = items.iter().all(|i| matches!(i.content, Content::Silent));
                        self.pool.set_evidence(slot, NOTHING);
                        if !silent && step.fed {
                            jobs.push((slot, items.clone()));
                        }
                        lists.insert(step.work, items);
                        if silent || !step.fed {
                            temps.insert(step.work, (slot, false));
                            continue;
                        }
                    }
                    None => {
                        let position = batch.positions[step.row as usize];
                        self.pool.witness(slot, (position, position));
                        rows.push(step.row);
                        locals.push(write.len());
                        read.push(if filled { slot } else { NO_SLOT });
                        write.push(slot);
                    }
                }
                temps.insert(step.work, (slot, true));
                let from = evals.begin();
                evals.parts.push(slot);
                evals.end(step.group, step.row, step.window, from);
            }
            if !rows.is_empty() {
                let feed = Feed { rows: &rows, locals: &locals, len: batch.len, values: batch.values };
                self.pool.update(&read, &write, &feed, false)?;
            }
            self.refold(batch, jobs)?;
            let one = [&self.members[member]];
            results.extend(
                emit(&mut self.pool, keys, &one, &evals, Some(batch.values), batch.dark, errors)?
                    .into_iter()
                    .map(|e| e.rows),
            );
        }
        for (slot, _) in temps.into_values() {
            self.pool.release(slot);
        }
        self.steps = steps;
        self.old = old;
        self.pool.capped = counted;
        by_group(&results, picks)
    }

    /// Closes what the moved clocks have passed, and puts the touched sessions in order for the next sub-batch.
    pub(in crate::stream) fn close(
        &mut self,
        moves: &Moves<'_>,
        batch: &Batch<'_>,
        keys: &mut KeySet,
        errors: &mut u64,
        closed: &mut Vec<QueryRows>,
        empty: &mut Vec<Empty>,
    ) -> Result<(), Error> {
        for clock in moves.clocks() {
            self.due(clock, moves.session_bound(clock), moves, keys);
        }
        let mut evals = Evals::default();
        for (group, s, at) in &self.closing {
            if s.total != NO_SLOT {
                let from = evals.begin();
                evals.parts.push(s.total);
                evals.end(*group, *at, (s.start, s.end(self.gap)), from);
            }
        }
        evals.sort(keys);
        let members: Vec<&Member> = self.members.iter().collect();
        for (i, e) in emit(&mut self.pool, keys, &members, &evals, None, moves.dark, errors)?.into_iter().enumerate() {
            if let Some(kept) = &e.kept {
                let missing: Vec<Eval> = (0..evals.list.len())
                    .filter(|n| kept.binary_search(&(*n as u32)).is_err())
                    .map(|n| evals.list[n])
                    .collect();
                empty.extend(emit::empties(keys, members[i], &missing)?);
            }
            if !e.rows.at.is_empty() {
                closed.push(e.rows);
            }
        }
        for (_, s, _) in std::mem::take(&mut self.closing) {
            for slot in owned(&s) {
                self.pool.release(slot);
            }
        }
        self.tidy(batch, moves, keys)?;
        for slot in std::mem::take(&mut self.drops) {
            self.pool.release(slot);
        }
        self.works.clear();
        self.appended.clear();
        self.steps.clear();
        self.split.clear();
        self.touched.clear();
        self.old = None;
        self.stamp += 1;
        Ok(())
    }
}
