//! Finds groups of policies that meet on a run, without asking each about each.
//!
//! Policies that are alike in what a rule compares and of one class form a *group*; no two of a group conflict. Groups stand in
//! *buckets*, outside of which nothing conflicts, and within a bucket in *lanes*: two groups of one lane do not conflict either.
//! Within a lane a group is posted under each id of each key it selects by, and among those that are free of each other key. A
//! look-up goes by the key under which the fewest are posted.

use std::hash::Hash;
use std::ops::ControlFlow;

use rustc_hash::FxHashMap;

use crate::policy::reach::Reach;
use crate::policy::scope::Key;

/// Lanes kept apart; with more, groups of one lane are visited and passed over.
const MAX_LANES: usize = 16;

/// A policy, and one of its limits or actions, by number.
pub type Member = (u32, u32);

/// Members that are alike.
pub struct Group<K> {
    pub class: u32,
    pub lane: i128,
    pub key: K,
    pub members: Vec<Member>,
}

struct Bucket<K> {
    groups: Vec<Group<K>>,
    numbers: FxHashMap<(u32, K), usize>,
}

/// Groups by bucket, in the order in which they were first seen.
pub struct Buckets<B, K> {
    buckets: Vec<Bucket<K>>,
    numbers: FxHashMap<B, usize>,
}

impl<B: Hash + Eq, K: Hash + Eq + Copy> Buckets<B, K> {
    pub fn new() -> Self {
        Self { buckets: Vec::new(), numbers: FxHashMap::default() }
    }

    /// Adds a member. `lane` must follow from `key`.
    pub fn add(&mut self, bucket: B, class: u32, lane: i128, key: K, member: Member) {
        let next = self.buckets.len();
        let number = *self.numbers.entry(bucket).or_insert(next);
        if number == next {
            self.buckets.push(Bucket { groups: Vec::new(), numbers: FxHashMap::default() });
        }
        let Some(bucket) = self.buckets.get_mut(number) else { return };
        let next = bucket.groups.len();
        let group = *bucket.numbers.entry((class, key)).or_insert(next);
        match bucket.groups.get_mut(group) {
            Some(group) => group.members.push(member),
            None => bucket.groups.push(Group { class, lane, key, members: vec![member] }),
        }
    }

    /// Leaves out buckets in which nothing can conflict.
    pub fn retain(&mut self, keep: impl Fn(&[Group<K>]) -> bool) {
        self.buckets.retain(|bucket| keep(&bucket.groups));
    }

    /// Visits each pair of groups of a bucket whose lanes differ and whose classes meet, once. With `only`, those of which one is
    /// of this class. Ends when a visit breaks.
    pub fn each_pair(
        &self,
        reaches: &[Reach<'_>],
        only: Option<u32>,
        mut visit: impl FnMut(&Group<K>, &Group<K>) -> ControlFlow<()>,
    ) {
        for bucket in &self.buckets {
            if visit_bucket(&bucket.groups, reaches, only, &mut visit).is_break() {
                return;
            }
        }
    }
}

fn visit_bucket<K>(
    groups: &[Group<K>],
    reaches: &[Reach<'_>],
    only: Option<u32>,
    visit: &mut impl FnMut(&Group<K>, &Group<K>) -> ControlFlow<()>,
) -> ControlFlow<()> {
    let mut lanes: Vec<(i128, Vec<u32>)> = Vec::new();
    for (number, group) in (0_u32..).zip(groups) {
        if let Some((_, members)) = lanes.iter_mut().find(|(lane, _)| *lane == group.lane) {
            members.push(number);
        } else if lanes.len() < MAX_LANES {
            lanes.push((group.lane, vec![number]));
        } else {
            // too many to keep apart
            lanes = vec![(0, (0_u32..).zip(groups).map(|(n, _)| n).collect())];
            break;
        }
    }
    if let [(_, members)] = &lanes[..]
        && members.iter().all(|n| groups.get(*n as usize).map(|g| g.lane) == groups.first().map(|g| g.lane))
    {
        return ControlFlow::Continue(());
    }
    let indexes: Vec<Index<'_, '_>> =
        lanes.iter().map(|(_, members)| Index::new(reaches, groups.iter().map(|g| g.class), members)).collect();
    let mut met = Vec::new();
    for (one, group) in (0_u32..).zip(groups) {
        if only.is_some_and(|only| group.class != only) {
            continue;
        }
        for ((lane, _), index) in lanes.iter().zip(&indexes) {
            if lanes.len() > 1 && *lane == group.lane {
                continue;
            }
            index.meeting(group.class, &mut met);
            for other in met.iter().filter(|other| only.is_some() || **other > one) {
                if let Some(other) = groups.get(*other as usize).filter(|g| g.lane != group.lane) {
                    // the candidate's own groups meet each other too, and are one policy
                    if only.is_none_or(|only| other.class != only) {
                        visit(group, other)?;
                    }
                }
            }
        }
    }
    ControlFlow::Continue(())
}

/// Groups by the ids they select.
struct Index<'r, 'p> {
    reaches: &'r [Reach<'p>],
    /// (number, class)
    all: Vec<(u32, u32)>,
    posted: [FxHashMap<&'p str, Vec<(u32, u32)>>; Key::COUNT],
    free: [Vec<(u32, u32)>; Key::COUNT],
}

impl<'r, 'p> Index<'r, 'p> {
    fn new(reaches: &'r [Reach<'p>], classes: impl Iterator<Item = u32>, members: &[u32]) -> Self {
        let classes: Vec<u32> = classes.collect();
        let all: Vec<(u32, u32)> =
            members.iter().filter_map(|n| classes.get(*n as usize).map(|class| (*n, *class))).collect();
        let mut index = Self { reaches, all, posted: Default::default(), free: Default::default() };
        for (number, class) in &index.all {
            let Some(reach) = reaches.get(*class as usize) else { continue };
            for key in Key::ALL {
                match reach.ids(key) {
                    None => index.free[key as usize].push((*number, *class)),
                    Some(ids) => {
                        for id in ids {
                            index.posted[key as usize].entry(id).or_default().push((*number, *class));
                        }
                    }
                }
            }
        }
        index
    }

    /// Fills `met` with the groups whose class meets this one.
    fn meeting(&self, class: u32, met: &mut Vec<u32>) {
        met.clear();
        let Some(reach) = self.reaches.get(class as usize) else { return };
        let posted = |key: Key| {
            let ids = reach.ids(key).into_iter().flatten();
            ids.filter_map(move |id| self.posted[key as usize].get(id)).flatten()
        };
        let cost = |key: &Key| {
            let ids = reach.ids(*key).into_iter().flatten();
            let posted: usize = ids.filter_map(|id| self.posted[*key as usize].get(id)).map(Vec::len).sum();
            self.free[*key as usize].len() + posted
        };
        let best = Key::ALL.into_iter().filter(|key| reach.ids(*key).is_some()).min_by_key(cost);
        let meets = |(number, other): &(u32, u32)| {
            let meets = *other == class || self.reaches.get(*other as usize).is_some_and(|o| reach.meets(o));
            meets.then_some(*number)
        };
        match best {
            None => met.extend(self.all.iter().filter_map(meets)),
            Some(key) => {
                met.extend(posted(key).chain(&self.free[key as usize]).filter_map(meets));
                if reach.ids(key).is_some_and(|ids| ids.len() > 1) {
                    met.sort_unstable();
                    met.dedup();
                }
            }
        }
    }
}
