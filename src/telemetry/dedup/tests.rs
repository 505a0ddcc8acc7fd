use proptest::prelude::*;

use super::*;

const H: Micros = 1_600; // buckets of 100

fn dedup() -> Dedup {
    Dedup::new(H, 1_000)
}

/// A new value from everything `old` ever wrote.
fn restored(store: &BTreeMap<Vec<u8>, Vec<u8>>, horizon: Micros, max_ids: usize) -> Dedup {
    let mut new = Dedup::new(horizon, max_ids);
    for (key, value) in store {
        new.restore(key, value).unwrap();
    }
    new
}

fn save(dedup: &mut Dedup, store: &mut BTreeMap<Vec<u8>, Vec<u8>>) {
    let changes = dedup.take_changes();
    assert!(changes.windows(2).all(|pair| pair[0].0 < pair[1].0), "keys are sorted and unique");
    for (key, value) in changes {
        match value {
            Some(value) => drop(store.insert(key, value)),
            None => drop(store.remove(&key)),
        }
    }
}

#[test]
fn an_id_counts_once_per_tenant_within_the_horizon() {
    let mut d = dedup();
    assert!(!d.seen("a", "1", 1_000, Micros::MIN));
    assert!(d.seen("a", "1", 1_000, 990));
    assert!(d.seen("a", "1", 1_500, 1_400), "the id counts, not the time");
    assert!(!d.seen("b", "1", 1_000, 990), "tenants are apart");
    assert!(!d.seen("a", "2", 1_000, 990));
    assert_eq!(d.len(), 3);
}

#[test]
fn an_id_is_forgotten_when_the_watermark_is_a_horizon_past_its_bucket() {
    let mut d = dedup();
    assert!(!d.seen("a", "1", 1_000, 0));
    assert!(d.seen("a", "1", 1_000, 1_000 + H + 99), "the bucket ends at 1100");
    assert!(!d.seen("a", "1", 1_000, 1_000 + H + 100));
}

#[test]
fn a_late_event_sent_twice_counts_once() {
    let mut d = dedup();
    assert!(!d.seen("a", "1", 5, 1_000_000));
    assert!(d.seen("a", "1", 5, 1_000_000 + H));
}

#[test]
fn a_horizon_of_zero_remembers_nothing() {
    let mut d = Dedup::new(0, 10);
    assert!(!d.seen("a", "1", 5, 0));
    assert!(!d.seen("a", "1", 5, 0));
    assert!(d.is_empty() && d.take_changes().is_empty());
}

#[test]
fn beyond_the_bound_the_busy_tenant_forgets_first_and_it_is_counted() {
    let mut d = Dedup::new(H, 100);
    for i in 0..10 {
        assert!(!d.seen("quiet", &i.to_string(), 0, Micros::MIN));
    }
    for i in 0..400 {
        d.seen("busy", &i.to_string(), i * 4, Micros::MIN);
        assert!(d.len() <= 100);
    }
    assert!(d.forgotten() >= 310);
    assert!((0..10).all(|i| d.seen("quiet", &i.to_string(), 0, Micros::MIN)), "the quiet keep their horizon");
    assert!(d.seen("busy", "399", 1_596, Micros::MIN), "the newest are remembered");
}

#[test]
fn times_further_apart_than_the_ring_forget_the_oldest() {
    let mut d = dedup();
    assert!(!d.seen("a", "old", 0, Micros::MIN));
    assert!(!d.seen("a", "new", 100 * RING, Micros::MIN));
    assert_eq!(d.forgotten(), 1);
    assert!(!d.seen("a", "old", 0, Micros::MIN), "too old to be kept");
    assert!(!d.seen("a", "old", 0, Micros::MIN));
    assert!(d.seen("a", "new", 100 * RING, Micros::MIN));
    for extreme in [Micros::MIN, Micros::MAX] {
        d.seen("a", "x", extreme, extreme);
    }
}

#[test]
fn silent_tenants_are_forgotten_when_their_watermark_moves() {
    let mut d = dedup();
    assert!(!d.seen("a", "1", 0, 0));
    d.expire("a", 10_000);
    assert!(d.is_empty() && d.tenants.is_empty());
}

#[test]
fn each_id_is_written_once_and_each_expired_chunk_deleted_once() {
    let mut d = dedup();
    for i in 0..3 {
        d.seen("a", &i.to_string(), 0, Micros::MIN);
    }
    let first = d.take_changes();
    assert_eq!(first.len(), 1);
    assert_eq!(first[0].1.as_ref().unwrap().len(), HEADER + 3 * 8);
    d.seen("a", "4", 10, Micros::MIN);
    let second = d.take_changes();
    assert_eq!(second[0].1.as_ref().unwrap().len(), HEADER + 8, "only the new one");
    assert_eq!(d.take_changes(), []);
    d.expire("a", 100_000);
    assert_eq!(d.take_changes(), [(first[0].0.clone(), None), (second[0].0.clone(), None)]);
    assert_eq!(d.take_changes(), []);
}

#[test]
fn large_buckets_are_written_in_bounded_chunks() {
    let mut d = Dedup::new(H, 100_000);
    for i in 0..20_000 {
        d.seen("a", &i.to_string(), 0, Micros::MIN);
    }
    let changes = d.take_changes();
    assert_eq!(changes.len(), 3);
    assert!(changes.iter().all(|(_, value)| value.as_ref().unwrap().len() <= HEADER + CHUNK * 8));
}

#[test]
fn damaged_and_foreign_chunks_are_refused_and_the_rest_stays_usable() {
    let mut d = dedup();
    d.seen("a", "1", 0, Micros::MIN);
    let (key, value) = d.take_changes().remove(0);
    let value = value.unwrap();
    let mut new = dedup();
    for at in 0..value.len() {
        let mut bad = value.clone();
        bad[at] ^= 0x40;
        assert!(new.restore(&key, &bad).is_err(), "byte {at}");
        assert!(new.restore(&key, &value[..at]).is_err(), "cut at {at}");
    }
    assert_eq!(new.restore(&key, &[7, 0]), Err(RestoreError::Version(7)));
    assert_eq!(new.restore(b"short", &value), Err(RestoreError::Damaged));
    new.restore(&key, &value).unwrap();
    assert!(new.seen("a", "1", 0, Micros::MIN));
}

#[test]
fn a_changed_horizon_takes_the_old_ids_over_and_replaces_their_keys() {
    let (mut d, mut store) = (dedup(), BTreeMap::new());
    d.seen("a", "1", 1_000, Micros::MIN);
    save(&mut d, &mut store);
    let old = store.clone();
    let mut new = restored(&store, 10 * H, 1_000);
    assert!(new.seen("a", "1", 1_000, 1_000 + 10 * H));
    save(&mut new, &mut store);
    assert_eq!(store.len(), 1);
    assert!(store.keys().all(|key| !old.contains_key(key)));
    assert!(restored(&store, 10 * H, 1_000).seen("a", "1", 1_000, 1_000));
}

#[test]
fn a_much_shorter_horizon_keeps_the_newest_of_the_old_ids() {
    let (mut d, mut store) = (dedup(), BTreeMap::new());
    for i in 0..16 {
        d.seen("a", &i.to_string(), i * 100, Micros::MIN);
    }
    save(&mut d, &mut store);
    let mut new = restored(&store, 16, 1_000);
    assert!(new.seen("a", "15", 1_500, 1_500));
    assert!(!new.seen("a", "0", 0, Micros::MIN));
    assert!(new.forgotten() > 0);
    new.expire("a", 1_000_000);
    assert!(new.is_empty());
    save(&mut new, &mut store);
    assert!(store.is_empty(), "no key of the old layout stays");
}

#[derive(Debug, Clone)]
enum Op {
    Event { tenant: u8, id: u8, ahead: i64, step: i64 },
    Expire { tenant: u8 },
    Save,
    SaveAll,
    Restart,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        20 => (0..3_u8, any::<u8>(), -500..800_i64, 0..60_i64)
            .prop_map(|(tenant, id, ahead, step)| Op::Event { tenant, id, ahead, step }),
        1 => (0..3_u8).prop_map(|tenant| Op::Expire { tenant }),
        2 => Just(Op::Save),
        1 => Just(Op::SaveAll),
        1 => Just(Op::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Without bounds in play the answers are those of the definition; checkpoints and restarts change nothing.
    #[test]
    fn answers_are_those_of_the_definition_whatever_is_saved_and_restored(ops in proptest::collection::vec(op(), 1..400)) {
        let mut d = Dedup::new(H, 1_000_000);
        let mut store = BTreeMap::new();
        let mut marks = [0_i64; 3];
        // (tenant, id) → end of the bucket it was remembered in
        let mut model: BTreeMap<(u8, u8), i64> = BTreeMap::new();
        for op in ops {
            match op {
                Op::Event { tenant, id, ahead, step } => {
                    let mark = &mut marks[usize::from(tenant)];
                    *mark += step;
                    let live = model.get(&(tenant, id)).is_some_and(|end| *end > *mark - H);
                    let time = *mark + ahead;
                    prop_assert_eq!(d.seen(&tenant.to_string(), &id.to_string(), time, *mark), live);
                    if !live {
                        model.insert((tenant, id), (time.max(*mark).div_euclid(100) + 1) * 100);
                    }
                }
                Op::Expire { tenant } => d.expire(&tenant.to_string(), marks[usize::from(tenant)]),
                Op::Save => save(&mut d, &mut store),
                Op::SaveAll => {
                    d.mark_all_dirty();
                    save(&mut d, &mut store);
                    let again = restored(&store, H, 1_000_000);
                    prop_assert_eq!(again.len(), d.len(), "a full save leaves no stale key");
                }
                Op::Restart => {
                    save(&mut d, &mut store);
                    d = restored(&store, H, 1_000_000);
                }
            }
        }
    }

    /// With the bound in play, a restart after a save still changes no answer.
    #[test]
    fn a_restart_at_the_bound_changes_no_answer(ops in proptest::collection::vec(op(), 1..400)) {
        let (mut a, mut b) = (Dedup::new(H, 40), Dedup::new(H, 40));
        let mut store = BTreeMap::new();
        let mut marks = [0_i64; 3];
        for op in ops {
            match op {
                Op::Event { tenant, id, ahead, step } => {
                    let mark = &mut marks[usize::from(tenant)];
                    *mark += step;
                    let (name, id) = (tenant.to_string(), id.to_string());
                    prop_assert_eq!(a.seen(&name, &id, *mark + ahead, *mark), b.seen(&name, &id, *mark + ahead, *mark));
                    prop_assert_eq!(a.len(), b.len());
                }
                Op::Expire { tenant } => {
                    a.expire(&tenant.to_string(), marks[usize::from(tenant)]);
                    b.expire(&tenant.to_string(), marks[usize::from(tenant)]);
                }
                Op::Save | Op::SaveAll => save(&mut b, &mut store),
                Op::Restart => {
                    save(&mut b, &mut store);
                    b = restored(&store, H, 40);
                }
            }
        }
    }
}
