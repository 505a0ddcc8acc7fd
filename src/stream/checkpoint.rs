//! What changed since the last checkpoint.

/// Changes of one store: slots touched, and names of those gone.
#[derive(Debug, Default)]
pub(super) struct Dirty {
    /// Per slot: 1 = in `list`, 2 = known to the checkpoint.
    flags: Vec<u8>,
    list: Vec<u32>,
    tombs: Vec<Vec<u8>>,
    stored: u64,
}

const TOUCHED: u8 = 1;
const STORED: u8 = 2;

impl Dirty {
    /// The slot's state changed.
    pub(super) fn touch(&mut self, slot: u32) {
        let at = slot as usize;
        if self.flags.len() <= at {
            self.flags.resize(at + 1, 0);
        }
        if self.flags[at] & TOUCHED == 0 {
            self.flags[at] |= TOUCHED;
            self.list.push(slot);
        }
    }

    /// The slot is freed; what a checkpoint knows of it must be deleted.
    pub(super) fn gone(&mut self, slot: u32, key: impl FnOnce() -> Vec<u8>) {
        if let Some(flags) = self.flags.get_mut(slot as usize) {
            if *flags & STORED != 0 {
                self.tombs.push(key());
                self.stored -= 1;
            }
            *flags = 0;
        }
    }

    /// The slot is as the checkpoint knows it.
    pub(super) fn stored(&mut self, slot: u32) {
        let at = slot as usize;
        if self.flags.len() <= at {
            self.flags.resize(at + 1, 0);
        }
        if self.flags[at] & STORED == 0 {
            self.flags[at] |= STORED;
            self.stored += 1;
        }
    }

    /// How many slots the checkpoint knows.
    pub(super) fn stored_now(&self) -> u64 {
        self.stored
    }

    /// The touched slots, ascending, and the deleted names; both are forgotten.
    pub(super) fn take(&mut self) -> (Vec<u32>, Vec<Vec<u8>>) {
        let mut list = std::mem::take(&mut self.list);
        list.sort_unstable();
        list.dedup();
        list.retain(|s| self.flags[*s as usize] & TOUCHED != 0);
        for slot in &list {
            let flags = &mut self.flags[*slot as usize];
            self.stored += u64::from(*flags & STORED == 0);
            *flags = STORED;
        }
        (list, std::mem::take(&mut self.tombs))
    }
}
