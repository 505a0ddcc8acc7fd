//! How many keys one clock may hold, and what is said where it holds too many.
//!
//! A key counts as live from its first row until the watermark has left behind everything that row can have state in: the
//! longest of its windows after the row's time, rounded up by at most an eighth of that. So it depends on rows and watermarks
//! alone, never on what was already closed when a batch came, and no more keys have state than are counted. A clock that holds
//! its most takes no further key: such a row is refused by the windows with that key, and counted. From then on the clock is
//! *over*: until few enough are left, its results say that they may lack rows, and so do those of windows that were open then.
//! Keys that are the clock alone are never refused: there is one of each.
//!
//! Kept per live key: an 8-byte hash and a time. Checkpointed in chunks of hashes under the time they are live until; a hash
//! that lives on is written again under a later time, and a chunk is deleted when its time has come.

use std::collections::BTreeMap;

use hashbrown::HashTable;
use sha2::{Digest, Sha256};

use crate::clock::Micros;

use super::time::NEVER;

/// A key is counted again this many times within its span, as long as it has rows.
const SHARES: i64 = 8;
/// Hashes in one checkpoint record.
const CHUNK: usize = 64;
/// A clock is over until a quarter of its most is free.
const FREE: usize = 4;

/// How long the keys of a key set live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    hold: Micros,
    width: Micros,
}

impl Span {
    /// No row has state in these windows longer than `hold` after its time.
    pub(super) fn new(hold: Micros) -> Self {
        Self { hold, width: (hold / SHARES).max(1) }
    }

    /// The time before which further rows of a key need not be counted, and the watermark at which the key is no longer live.
    fn of(self, time: Micros, watermark: Micros) -> (Micros, Micros) {
        let bucket = time.max(watermark).div_euclid(self.width);
        let end = bucket.saturating_add(1).saturating_mul(self.width);
        (end, end.saturating_add(self.hold))
    }
}

/// The hash that stands for a key of a key set.
pub(super) fn hash(key_set: u64, key: &[u8]) -> u64 {
    let digest = Sha256::new().chain_update(key_set.to_be_bytes()).chain_update(key).finalize();
    digest.first_chunk::<8>().map_or(0, |first| u64::from_be_bytes(*first))
}

/// Until when the windows of a clock may lack rows, as results see it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Dark<'a> {
    /// By row of the batch; empty when it does not change within the batch.
    pub(super) rows: &'a [Micros],
    /// By clock.
    pub(super) clocks: &'a [Micros],
}

impl Dark<'_> {
    /// Windows of this clock that start at or before the time may lack rows; `at` is the row that causes the result.
    pub(super) fn until(&self, at: u32, clock: u32) -> Micros {
        let row = self.rows.get(at as usize).or_else(|| self.clocks.get(clock as usize));
        row.copied().unwrap_or(NEVER)
    }
}

#[derive(Debug, Clone, Copy)]
struct Live {
    hash: u64,
    until: Micros,
}

/// What the checkpoint holds under one time.
#[derive(Debug, Default)]
struct Saved {
    /// Chunks that are full and written.
    full: u32,
    /// The chunk after them, and whether the checkpoint knows it.
    open: Vec<u64>,
    partial: bool,
    dirty: bool,
}

/// The keys of one clock.
#[derive(Debug)]
struct Account {
    live: HashTable<Live>,
    /// Each live key once, under a time at or before the one it is live until.
    due: BTreeMap<Micros, Vec<u64>>,
    saved: BTreeMap<Micros, Saved>,
    /// Checkpointed chunks that are no longer true.
    gone: Vec<(Micros, u32)>,
    /// The checkpoint is to be written anew.
    anew: bool,
    over: bool,
    refused_until: Micros,
    episodes: u64,
}

impl Default for Account {
    fn default() -> Self {
        Self {
            live: HashTable::new(),
            due: BTreeMap::new(),
            saved: BTreeMap::new(),
            gone: Vec::new(),
            anew: false,
            over: false,
            refused_until: NEVER,
            episodes: 0,
        }
    }
}

impl Account {
    fn note(&mut self, hash: u64, until: Micros) {
        let saved = self.saved.entry(until).or_default();
        saved.open.push(hash);
        saved.dirty = true;
    }

    fn expire(&mut self, watermark: Micros) {
        while let Some(entry) = self.due.first_entry()
            && *entry.key() <= watermark
        {
            for hash in entry.remove() {
                let Ok(entry) = self.live.find_entry(hash, |l| l.hash == hash) else { continue };
                let until = entry.get().until;
                if until <= watermark {
                    entry.remove();
                } else {
                    self.due.entry(until).or_default().push(hash);
                }
            }
        }
        while let Some(entry) = self.saved.first_entry()
            && *entry.key() <= watermark
        {
            let (until, saved) = entry.remove_entry();
            let chunks = saved.full + u32::from(saved.partial);
            self.gone.extend((0..chunks).map(|chunk| (until, chunk)));
        }
        if self.live.capacity() > 64 && self.live.len() < self.live.capacity() / 8 {
            self.live.shrink_to(self.live.len() * 2, |l| l.hash);
        }
    }

    /// Writes again what is live, and nothing else.
    fn regroup(&mut self) {
        let mut open: BTreeMap<Micros, Vec<u64>> = BTreeMap::new();
        for live in &self.live {
            open.entry(live.until).or_default().push(live.hash);
        }
        for (until, old) in std::mem::take(&mut self.saved) {
            let new = open.get(&until).map_or(0, |o| o.len().div_ceil(CHUNK));
            let old = old.full + u32::from(old.partial);
            self.gone.extend((u32::try_from(new).unwrap_or(u32::MAX)..old).map(|chunk| (until, chunk)));
        }
        for (until, mut open) in open {
            open.sort_unstable();
            self.saved.insert(until, Saved { full: 0, open, partial: false, dirty: true });
        }
    }
}

/// A change of a clock's standing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Turn {
    pub(super) began: bool,
    pub(super) episode: u64,
    pub(super) keys: usize,
}

/// The live keys of all clocks.
#[derive(Debug)]
pub(super) struct Budget {
    most: usize,
    accounts: Vec<Account>,
    /// By clock, as [`Dark::clocks`]; empty as long as nothing was refused.
    dark: Vec<Micros>,
    over: usize,
    refused: u64,
}

impl Budget {
    /// At most `most` keys a clock; `usize::MAX`: nobody counts.
    pub(super) fn new(most: usize) -> Self {
        Self { most, accounts: Vec::new(), dark: Vec::new(), over: 0, refused: 0 }
    }

    pub(super) fn counts(&self) -> bool {
        self.most < usize::MAX
    }

    /// Whether any clock is over.
    pub(super) fn any_over(&self) -> bool {
        self.over > 0
    }

    /// How many clocks are over, and how many rows were refused, ever.
    pub(super) fn figures(&self) -> (usize, u64) {
        (self.over, self.refused)
    }

    /// Whether `more` keys of a clock surely fit.
    pub(super) fn fits(&self, clock: u32, more: usize) -> bool {
        self.accounts.get(clock as usize).map_or(0, |a| a.live.len()).saturating_add(more) <= self.most
    }

    pub(super) fn dark(&self) -> &[Micros] {
        &self.dark
    }

    /// As [`Dark::clocks`], of one clock.
    pub(super) fn dark_of(&self, clock: u32) -> Micros {
        self.dark.get(clock as usize).copied().unwrap_or(NEVER)
    }

    fn account(&mut self, clock: u32) -> &mut Account {
        let at = clock as usize;
        if self.accounts.len() <= at {
            self.accounts.resize_with(at + 1, Account::default);
        }
        &mut self.accounts[at]
    }

    /// Counts a row of a key. Gives the time before which further rows of it need not be counted, or `None` when the clock
    /// holds too many to take it. A row that came too late to have state anywhere counts for nothing.
    pub(super) fn take(
        &mut self,
        clock: u32,
        hash: u64,
        span: Span,
        time: Micros,
        watermark: Micros,
    ) -> Option<Micros> {
        if watermark != NEVER && time.saturating_add(span.hold) <= watermark {
            return Some(NEVER);
        }
        let (end, until) = span.of(time, watermark);
        let most = self.most;
        let account = self.account(clock);
        account.expire(watermark);
        if let Some(live) = account.live.find_mut(hash, |l| l.hash == hash) {
            if until > live.until {
                live.until = until;
                account.note(hash, until);
            }
            return Some(end);
        }
        if account.live.len() >= most {
            return None;
        }
        account.live.insert_unique(hash, Live { hash, until }, |l| l.hash);
        account.due.entry(until).or_default().push(hash);
        account.note(hash, until);
        Some(end)
    }

    /// A row at `time` was refused: from here on the clock is over. Says so when it was not.
    pub(super) fn refuse(&mut self, clock: u32, time: Micros) -> Option<Turn> {
        self.refused += 1;
        let account = self.account(clock);
        account.refused_until = account.refused_until.max(time);
        let keys = account.live.len();
        let turn = (!account.over).then(|| {
            account.over = true;
            account.episodes += 1;
            Turn { began: true, episode: account.episodes, keys }
        });
        self.over += usize::from(turn.is_some());
        self.show(clock);
        turn
    }

    /// Looks at a clock at its watermark: says so when it is not over any more.
    pub(super) fn look(&mut self, clock: u32, watermark: Micros) -> Option<Turn> {
        let enough = self.most.saturating_sub((self.most / FREE).max(1));
        let account = self.accounts.get_mut(clock as usize)?;
        account.expire(watermark);
        if !account.over || account.live.len() > enough {
            return None;
        }
        account.over = false;
        let turn = Turn { began: false, episode: account.episodes, keys: account.live.len() };
        self.over -= 1;
        self.show(clock);
        Some(turn)
    }

    fn show(&mut self, clock: u32) {
        let at = clock as usize;
        if self.dark.len() <= at {
            self.dark.resize(at + 1, NEVER);
        }
        if let Some(account) = self.accounts.get(at) {
            self.dark[at] = if account.over { Micros::MAX } else { account.refused_until };
        }
    }

    /// Whether the clock is over, until when its windows may lack rows, and how often it was over; `None`: it never was.
    pub(super) fn standing(&self, clock: u32) -> Option<(bool, Micros, u64)> {
        let account = self.accounts.get(clock as usize).filter(|a| a.episodes > 0)?;
        Some((account.over, account.refused_until, account.episodes))
    }

    /// Takes a clock's standing back.
    pub(super) fn restore_standing(&mut self, clock: u32, (over, refused_until, episodes): (bool, Micros, u64)) {
        let account = self.account(clock);
        let was = std::mem::replace(&mut account.over, over);
        (account.refused_until, account.episodes) = (refused_until, episodes);
        self.over = self.over + usize::from(over) - usize::from(was);
        self.show(clock);
    }

    /// Checkpoint records changed since the last call: (clock, live until, chunk, hashes); without hashes: to be deleted.
    pub(super) fn take_changes(&mut self) -> Vec<(u32, Micros, u32, Vec<u64>)> {
        let mut out = Vec::new();
        for (clock, account) in (0u32..).zip(&mut self.accounts) {
            if std::mem::take(&mut account.anew) {
                account.regroup();
            }
            out.extend(
                std::mem::take(&mut account.gone).into_iter().map(|(until, chunk)| (clock, until, chunk, vec![])),
            );
            for (until, saved) in &mut account.saved {
                if !std::mem::take(&mut saved.dirty) {
                    continue;
                }
                while saved.open.len() >= CHUNK {
                    let rest = saved.open.split_off(CHUNK);
                    out.push((clock, *until, saved.full, std::mem::replace(&mut saved.open, rest)));
                    saved.full += 1;
                    saved.partial = false;
                }
                if !saved.open.is_empty() {
                    saved.partial = true;
                    out.push((clock, *until, saved.full, saved.open.clone()));
                }
            }
        }
        out
    }

    /// Makes the next [`Budget::take_changes`] a full one.
    pub(super) fn mark_all_dirty(&mut self) {
        self.accounts.iter_mut().for_each(|a| a.anew = true);
    }

    /// Takes a checkpoint record back.
    pub(super) fn restore(&mut self, clock: u32, until: Micros, chunk: u32, hashes: Vec<u64>) {
        let account = self.account(clock);
        for hash in &hashes {
            match account.live.find_mut(*hash, |l| l.hash == *hash) {
                Some(live) => live.until = live.until.max(until),
                None => {
                    account.live.insert_unique(*hash, Live { hash: *hash, until }, |l| l.hash);
                }
            }
        }
        let saved = account.saved.entry(until).or_default();
        if hashes.len() < CHUNK {
            saved.open = hashes;
            saved.partial = true;
            saved.full = saved.full.max(chunk);
        } else {
            saved.full = saved.full.max(chunk + 1);
        }
    }

    /// After the last [`Budget::restore`].
    pub(super) fn restored(&mut self) {
        for account in &mut self.accounts {
            account.due.clear();
            for live in &account.live {
                account.due.entry(live.until).or_default().push(live.hash);
            }
        }
    }

    /// Rough bytes held.
    pub(super) fn size(&self) -> usize {
        self.accounts.iter().map(|a| a.live.capacity() * 17 + a.live.len() * 16 + 160).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const SPAN: Micros = 800;

    fn span() -> Span {
        Span::new(SPAN)
    }

    /// What a checkpoint topic would hold.
    type Store = BTreeMap<(u32, Micros, u32), Vec<u64>>;

    fn save(budget: &mut Budget, store: &mut Store) {
        for (clock, until, chunk, hashes) in budget.take_changes() {
            if hashes.is_empty() {
                store.remove(&(clock, until, chunk));
            } else {
                store.insert((clock, until, chunk), hashes);
            }
        }
    }

    fn load(store: &Store, most: usize, old: &Budget) -> Budget {
        let mut budget = Budget::new(most);
        for ((clock, until, chunk), hashes) in store {
            budget.restore(*clock, *until, *chunk, hashes.clone());
        }
        for clock in 0..old.accounts.len() as u32 {
            if let Some(standing) = old.standing(clock) {
                budget.restore_standing(clock, standing);
            }
        }
        budget.restored();
        budget
    }

    #[test]
    fn a_key_is_live_for_its_span_and_little_longer() {
        let mut b = Budget::new(1);
        assert!(b.take(0, 1, span(), 1_000, 900).is_some());
        assert_eq!(b.take(0, 2, span(), 1_000, 900), None, "one is the most");
        assert_eq!(b.take(1, 2, span(), 1_000, 900), Some(1_100), "another clock has its own");
        assert_eq!(b.take(0, 2, span(), 1_900, 1_800), None, "its span is not over");
        assert!(b.take(0, 2, span(), 2_000, 1_900).is_some(), "an eighth of the span after it");
        assert_eq!(b.take(0, 3, span(), 1_000, 1_900), Some(NEVER), "too late to have state: not counted, not refused");
    }

    #[test]
    fn a_clock_is_over_from_the_first_refusal_until_a_quarter_is_free() {
        let mut b = Budget::new(4);
        for (hash, time) in [(1, 0), (2, 400), (3, 800), (4, 1_000)] {
            assert!(b.take(0, hash, span(), time, 0).is_some());
        }
        assert_eq!(b.take(0, 5, span(), 850, 0), None);
        let began = Turn { began: true, episode: 1, keys: 4 };
        assert_eq!((b.refuse(0, 850), b.refuse(0, 820)), (Some(began), None), "said once");
        assert_eq!(b.dark_of(0), Micros::MAX);
        assert_eq!(b.look(0, 899), None);
        assert_eq!(b.look(0, 900), Some(Turn { began: false, episode: 1, keys: 3 }), "the first has gone");
        assert_eq!(b.dark_of(0), 850, "windows open at the refusal lack a row");
        assert_eq!(b.figures(), (0, 2));
    }

    proptest! {
        #[test]
        fn a_restore_anywhere_and_a_full_checkpoint_change_no_answer(
            rows in prop::collection::vec((0u64..40, 0i64..60, 0i64..300), 1..300),
            acts in prop::collection::vec(0u8..6, 300),
        ) {
            let (mut plain, mut stored) = (Budget::new(12), Budget::new(12));
            let mut store = Store::new();
            let (mut high, mut watermark) = (0, NEVER);
            for ((key, later, behind), act) in rows.into_iter().zip(acts) {
                high += later;
                let (time, hash) = (high - behind, hash(7, &key.to_be_bytes()));
                let mut answers = Vec::new();
                for b in [&mut plain, &mut stored] {
                    let left = b.look(0, watermark);
                    let taken = b.take(0, hash, span(), time, watermark);
                    let turn = taken.is_none().then(|| b.refuse(0, time));
                    answers.push((left, taken, turn, b.dark_of(0)));
                }
                prop_assert_eq!(&answers[0], &answers[1]);
                watermark = watermark.max(high - 50);
                if act == 0 {
                    stored.mark_all_dirty();
                }
                if act <= 2 {
                    save(&mut stored, &mut store);
                    let again = load(&store, 12, &stored);
                    let of = |b: &Budget| b.accounts[0].live.iter().map(|l| (l.hash, l.until)).collect::<BTreeSet<_>>();
                    prop_assert_eq!(of(&again), of(&stored));
                    if act == 2 {
                        stored = again;
                    }
                }
            }
            stored.look(0, watermark);
            save(&mut stored, &mut store);
            prop_assert!(store.keys().all(|(_, until, _)| *until > watermark), "old chunks are deleted");
        }
    }
}
