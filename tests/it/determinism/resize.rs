//! Taking the state of some partitions apart and putting it together for more, anywhere in a stream, changes no decision.

use proptest::prelude::*;
use runwarden::clock::Wall;
use runwarden::kafka::core::{Core, Input, InputBatch, OutRecord, Record, StepInput, Topic};
use runwarden::pipeline::{Own, Partition};
use runwarden::telemetry::tenant_partition;

use super::{events, said, settings, shapes, whole};
use crate::support::{assert_same, cases};

fn partition(own: i32, of: i32) -> Partition {
    Partition::new(settings(), Own { partition: own, partitions: of }).unwrap()
}

proptest! {
    #![proptest_config(cases(12))]

    #[test]
    fn resizes_anywhere_change_nothing(
        shapes in shapes(),
        counts in (1i32..4, 1i32..3, 0i32..2),
        cuts in prop::collection::vec(1usize..30, 200),
        at in (any::<prop::sample::Index>(), any::<prop::sample::Index>()),
        leave in 0usize..12,
    ) {
        let rows = events(&shapes);
        let expected = whole(&rows, rows.len());
        let counts = [counts.0, counts.0 + counts.1, counts.0 + counts.1 + counts.2];
        let mut at = [at.0.index(rows.len()), at.1.index(rows.len())];
        at.sort_unstable();
        let ends = [at[0], at[1], rows.len()];
        let mut all = Vec::new();
        let mut cores: Vec<Partition> = (0..counts[0]).map(|p| partition(p, counts[0])).collect();
        let mut cuts = cuts.iter().cycle();
        let mut from = 0;
        for (resize, (count, end)) in counts.into_iter().zip(ends).enumerate() {
            if resize > 0 {
                cores = resized(cores, count);
                // what was left unread still lies where the old count placed it
                let left = end.min(from + leave);
                for (row, offset) in rows[from..left].iter().zip(from..) {
                    let lies = tenant_partition(&row.0, counts[resize - 1]);
                    all.extend(feed(&mut cores, lies, &[(row, offset)]));
                }
                from = left;
            }
            while from < end {
                let to = (from + cuts.next().unwrap()).min(end);
                for p in 0..count {
                    let ours: Vec<_> = rows[from..to].iter().zip(from..).filter(|(r, _)| tenant_partition(&r.0, count) == p).collect();
                    all.extend(feed(&mut cores, p, &ours));
                }
                from = to;
            }
        }
        for core in &mut cores {
            let input = StepInput { number: u64::MAX, now: Wall(0), inputs: vec![], replaying: false, finish: true };
            all.extend(core.step(&input).unwrap().records);
        }
        for record in all.iter().filter(|r| r.topic == Topic::Signals) {
            let signal: serde_json::Value = serde_json::from_slice(record.payload.as_deref().unwrap()).unwrap();
            for place in ["first", "last"].map(|end| &signal["evidence"][end]).into_iter().filter(|p| !p.is_null()) {
                let partition = i32::try_from(place["partition"].as_i64().unwrap()).unwrap();
                if place["topic"] != "runs.telemetry" {
                    continue;
                }
                let offset = place["offset"].as_u64().unwrap() as usize;
                let resizes = ends[..2].iter().filter(|end| offset >= **end).count();
                let tenant = signal["tenant_id"].as_str().unwrap();
                prop_assert_eq!(&rows[offset].0, tenant, "evidence names a row of its tenant");
                prop_assert_eq!(partition, tenant_partition(tenant, counts[resizes]), "and the partition it lay on");
            }
        }
        assert_same(&said(all), &expected, "after resizes");
    }
}

/// One step of a partition, and of those to which it re-keys.
fn feed(cores: &mut [Partition], partition: i32, rows: &[(&(String, Vec<u8>), usize)]) -> Vec<OutRecord> {
    if rows.is_empty() {
        return Vec::new();
    }
    let rows: Vec<_> = rows.iter().map(|(row, offset)| (*offset as i64, row.1.as_slice())).collect();
    let mut out = one_step(&mut cores[partition as usize], Input::Telemetry, &rows);
    let moved: Vec<OutRecord> = out.iter().filter(|r| r.topic == Topic::Repartition).cloned().collect();
    for record in moved {
        let to = record.partition.unwrap();
        out.extend(one_step(&mut cores[to as usize], Input::Repartition, &[(0, record.payload.as_deref().unwrap())]));
    }
    out
}

fn one_step(core: &mut Partition, input: Input, rows: &[(i64, &[u8])]) -> Vec<OutRecord> {
    let record = |&(offset, payload)| Record { offset, timestamp: 0, key: None, payload: Some(payload), headers: &[] };
    let records = rows.iter().map(record).collect();
    let inputs = vec![InputBatch { input, records, at_end: false }];
    core.step(&StepInput { number: 0, now: Wall(0), inputs, replaying: false, finish: false }).unwrap().records
}

/// The cores of `count` partitions with the state of these, by way of what a checkpoint holds.
fn resized(cores: Vec<Partition>, count: i32) -> Vec<Partition> {
    let mut shares: Vec<Vec<_>> = (0..count).map(|_| Vec::new()).collect();
    for mut core in cores {
        shares.iter_mut().zip(core.split(count).unwrap()).for_each(|(all, share)| all.push(share));
    }
    let join = |(p, shares): (i32, Vec<Vec<_>>)| {
        let mut joined = partition(p, count);
        joined.join(shares).unwrap();
        let mut read = partition(p, count);
        for change in joined.take_changes() {
            if let Some(value) = change.value {
                read.restore(&change.key, &value).unwrap();
            }
        }
        read.restored().unwrap();
        read
    };
    (0..count).zip(shares).map(join).collect()
}
