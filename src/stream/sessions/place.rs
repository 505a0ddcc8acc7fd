//! Puts rows into sessions, one by one in offset order: joins, merges, splits, lateness, and what the watermark closes.

use super::*;

impl SessionStore {
    /// Puts one row into a group's sessions; false when it is late.
    #[expect(clippy::too_many_arguments, reason = "a row and its circumstances")]
    pub(super) fn place(
        &mut self,
        group: u32,
        item: Item,
        marks: bool,
        row: u32,
        watermark: Micros,
        log: bool,
        keys: &mut KeySet,
    ) -> bool {
        let (gap, time, most) = (self.gap, item.time, self.most_pending);
        if watermark != NEVER && time <= watermark.saturating_sub(gap) {
            return false;
        }
        if self.groups.len() <= group as usize {
            self.groups.resize_with(group as usize + 1, Group::default);
        }
        let joins = |start: Micros, last: Micros, marked: bool| {
            if time > last {
                !marked && time - last < gap
            } else if time < start {
                !marks && start - time < gap
            } else {
                true
            }
        };
        let g = &self.groups[group as usize];
        if g.closed.is_some_and(|c| joins(c.start, c.last, c.marked)) {
            return false;
        }
        let next = g.open.partition_point(|s| s.start <= time);
        let before = next.checked_sub(1).filter(|i| joins(g.open[*i].start, g.open[*i].last, g.open[*i].marked));
        let inside = before.is_some_and(|i| time <= g.open[i].last);
        let after = (!inside && next < g.open.len())
            .then_some(next)
            .filter(|i| joins(g.open[*i].start, g.open[*i].last, g.open[*i].marked));
        let end = match (before, after) {
            _ if marks => time,
            (_, Some(b)) => g.open[b].end(gap),
            (Some(a), None) if inside => g.open[a].end(gap),
            _ => time.saturating_add(gap),
        };
        if watermark != NEVER && end <= watermark {
            return false;
        }
        if g.is_empty() {
            keys.hold(group);
            self.held += 1;
        }
        self.touch_group(group);
        let fed = !matches!(item.content, Content::Silent);
        let copy = item.clone();
        // where the row went; `None`: the sequence was made anew
        let (place, at) = match (before, after) {
            (None, None) => {
                // nearly every key has one session: no room for more
                self.groups[group as usize].open.reserve_exact(1);
                let session = Session {
                    start: time,
                    last: time,
                    marked: marks,
                    total: NO_SLOT,
                    items: vec![item],
                    sealed: 0,
                    work: (0, 0),
                };
                self.groups[group as usize].open.insert(next, session);
                self.sessions += 1;
                (next, Some(0))
            }
            (Some(a), Some(b)) => {
                self.absorb(group, a, b, watermark);
                self.groups[group as usize].open[a].insert(item, watermark, most);
                (a, None)
            }
            (None, Some(b)) => {
                let s = &mut self.groups[group as usize].open[b];
                s.start = time;
                (b, Some(s.insert(item, watermark, most)))
            }
            (Some(a), None) => {
                let s = &mut self.groups[group as usize].open[a];
                if marks && time < s.last {
                    self.split_at(group, a, item, watermark, row, log);
                    (a, None)
                } else {
                    let at = s.insert(item, watermark, most);
                    s.last = s.last.max(time);
                    s.marked |= marks;
                    (a, Some(at))
                }
            }
        };
        let work = self.work(group, place, row);
        let s = &self.groups[group as usize].open[place];
        let window = (s.start, s.end(gap));
        let last = at.is_some_and(|at| at + 1 == s.items.len());
        let refold = at.is_none() || !(last || self.commutes);
        let w = &mut self.works[work as usize];
        let known = w.listed;
        if fed || refold {
            w.last_row = row;
            w.changed = true;
        }
        w.refold |= refold;
        w.listed |= refold;
        if !refold && fed {
            self.appended.push((row, work));
        }
        // a sequence made anew once in this sub-batch is followed row by row from then on
        if log && (fed || refold || known) {
            let change = match at {
                Some(at) if known => Change::Insert(at, copy),
                Some(_) if !refold => Change::Append,
                _ => Change::Whole(s.items.clone()),
            };
            self.steps.push(Step { row, group, work, window, change, fed: fed || refold });
        }
        self.arm(group, keys);
        true
    }

    pub(super) fn touch_group(&mut self, group: u32) {
        let g = &mut self.groups[group as usize];
        if g.stamp != self.stamp {
            g.stamp = self.stamp;
            self.touched.push(group);
        }
        // also when already touched: the group may have been let go and taken up again in between
        self.dirty.touch(group);
    }

    /// This sub-batch's work on a session, begun if it is the first.
    pub(super) fn work(&mut self, group: u32, place: usize, row: u32) -> u32 {
        let s = &mut self.groups[group as usize].open[place];
        if s.work.0 == self.stamp {
            return s.work.1;
        }
        let index = self.works.len() as u32;
        s.work = (self.stamp, index);
        let old_evidence = if s.total == NO_SLOT { NOTHING } else { self.pool.evidence(s.total) };
        self.works.push(Work {
            group,
            read: s.total,
            write: NO_SLOT,
            refold: false,
            changed: false,
            listed: false,
            local: NONE,
            last_row: row,
            old_evidence,
        });
        index
    }

    /// Merges session b into session a, its neighbour before it.
    pub(super) fn absorb(&mut self, group: u32, a: usize, b: usize, watermark: Micros) {
        let late = self.groups[group as usize].open.remove(b);
        self.sessions -= 1;
        if late.work.0 == self.stamp {
            self.works[late.work.1 as usize].refold = true;
        }
        let shared = late.settled();
        if late.total != NO_SLOT && !shared {
            self.drops.push(late.total);
        }
        let early = &mut self.groups[group as usize].open[a];
        early.seal(watermark);
        // the total is no longer all there is; a state item keeps its own slot
        if early.items.len() == early.sealed {
            early.sealed += late.sealed;
        }
        early.items.extend(late.items);
        early.last = late.last;
        early.marked = late.marked;
        early.seal(watermark);
    }

    /// Ends session a at a marker before its last row; the later rows become a session of their own.
    pub(super) fn split_at(&mut self, group: u32, a: usize, marker: Item, watermark: Micros, row: u32, log: bool) {
        let gap = self.gap;
        let s = &mut self.groups[group as usize].open[a];
        s.seal(watermark);
        let at = s.sealed + s.items[s.sealed..].partition_point(|i| i.time <= marker.time);
        let rest: Vec<Item> = s.items.split_off(at);
        let time = marker.time;
        s.items.push(marker);
        let (last, marked) = (s.last, s.marked);
        s.last = time;
        s.marked = true;
        s.seal(watermark);
        let start = rest.first().map_or(last, |i| i.time);
        let session = Session { start, last, marked, total: NO_SLOT, items: rest, sealed: 0, work: (0, 0) };
        let window = (start, session.end(gap));
        let items = session.items.clone();
        self.groups[group as usize].open.insert(a + 1, session);
        self.sessions += 1;
        let work = self.work(group, a + 1, row);
        self.works[work as usize].refold = true;
        self.works[work as usize].changed = true;
        self.works[work as usize].last_row = row;
        if log {
            self.split.push(group);
            self.works[work as usize].listed = true;
            self.steps.push(Step { row, group, work, window, change: Change::Whole(items), fed: true });
        }
    }

    pub(super) fn due_of(&self, group: &Group) -> Option<Micros> {
        // sessions end in the order in which they start
        let open = group.open.first().map(|s| s.end(self.gap));
        let closed = group.closed.map(|c| c.end.saturating_add(self.gap));
        match (open, closed) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    pub(in crate::stream) fn arm(&mut self, group: u32, keys: &KeySet) {
        let due = self.due_of(&self.groups[group as usize]);
        let g = &mut self.groups[group as usize];
        if let Some(due) = due
            && g.timer.is_none_or(|t| due < t)
        {
            g.timer = Some(due);
            push(&mut self.timers, keys.clock(group), due, group);
        }
    }

    /// Takes out the sessions of a clock that end at or before `bound`, and forgets closed bounds one gap later.
    pub(super) fn due(&mut self, clock: u32, bound: Micros, moves: &Moves<'_>, keys: &mut KeySet) {
        let Some(heap) = self.timers.get(clock as usize) else { return };
        if heap.peek().is_none_or(|Reverse((time, _))| *time > bound) {
            return;
        }
        let mut heap = std::mem::take(&mut self.timers[clock as usize]);
        while let Some(Reverse((time, group))) = heap.peek().copied() {
            if time > bound {
                break;
            }
            heap.pop();
            if self.groups[group as usize].timer != Some(time) {
                continue;
            }
            let gap = self.gap;
            let g = &mut self.groups[group as usize];
            g.timer = None;
            let passed = g.open.partition_point(|s| s.end(gap) <= bound);
            for session in g.open.drain(..passed) {
                let end = session.end(gap);
                let bounds = Closed { start: session.start, last: session.last, end, marked: session.marked };
                g.closed = Some(bounds.and(g.closed));
                self.sessions -= 1;
                self.closing.push((group, session, moves.row(clock, end)));
                self.dirty.touch(group);
            }
            let until = moves.watermark(clock).min(bound);
            if g.closed.is_some_and(|c| c.end.saturating_add(gap) <= until) {
                g.closed = None;
                self.dirty.touch(group);
            }
            if g.is_empty() {
                g.queued = false;
                keys.release(group);
                self.held -= 1;
                let print = self.fingerprint;
                self.dirty.gone(group, || group_key(print, keys.bytes_of(group)));
            } else if let Some(due) = self.due_of(&self.groups[group as usize]) {
                // after close_all nothing is due again before the watermark it leaves
                self.groups[group as usize].timer = Some(due);
                if due > bound {
                    heap.push(Reverse((due, group)));
                } else {
                    self.timers[clock as usize].push(Reverse((due, group)));
                }
            }
        }
        heap.append(&mut self.timers[clock as usize]);
        self.timers[clock as usize] = heap;
    }
}
