//! The shell on a real Apache Kafka: what the mock cannot prove. Needs a broker, see `support::broker`.
//!
//! The long form of the crash test: `RUNWARDEN_KILL_ROUNDS=50 cargo test --test it kafka_real::kill -- --nocapture`.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rdkafka::Offset;
use runwarden::kafka::client::Isolation;
use runwarden::kafka::provision::{Broker as Admin, Provisioner, verify};
use runwarden::kafka::reader::{Next, Reader, read_topic};
use runwarden::kafka::resize::{Order, resize};
use runwarden::kafka::status::LogObserver;
use runwarden::kafka::{ClientSettings, Ended, Error, ShellConfig, Topics};

use crate::support::broker::{Broker, Cluster, fresh_topics, fresh_topics_replicated, shared, skipped};
use crate::support::child::{Orders, SidecarChild};
use crate::support::sidecar::{Sidecar, Traffic, eventually, factory};
use crate::support::toy::Toy;

const LONG: Duration = Duration::from_secs(90);

macro_rules! broker_or_skip {
    ($test:literal) => {
        match shared() {
            Some(brokers) => brokers,
            None => return skipped($test),
        }
    };
}

/// Reproducible "random" numbers.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }
}

fn rounds() -> usize {
    std::env::var("RUNWARDEN_KILL_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(6)
}

/// Nothing a sidecar says may tell of a determinism fault or of lost history.
fn assert_sound(said: &str) {
    for alarm in ["ReplayMismatch", "HistoryGone", "KeyRefused", "panicked"] {
        assert!(!said.contains(alarm), "{alarm} in:\n{said}");
    }
}

/// Every alert by deadline has its number once, without a gap.
fn assert_ticks(client: &ClientSettings, topics: &Topics) {
    let ticks = read_topic(client, &topics.alerts).unwrap();
    let ids: BTreeSet<_> = ticks.iter().map(|t| String::from_utf8(t.key.clone().unwrap()).unwrap()).collect();
    assert_eq!(ids.len(), ticks.len(), "deadlines fire once");
    for partition in 0..topics.partitions {
        let of: Vec<_> = ids.iter().filter(|id| id.starts_with(&format!("{partition}/"))).collect();
        assert!((1..=of.len()).all(|n| ids.contains(&format!("{partition}/{n}"))), "numbered without a gap");
    }
}

/// Sends in the background until told to stop.
fn with_load<T>(traffic: &mut Traffic, per_tick: usize, body: impl FnOnce() -> T) -> T {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stop = &stop;
        let load = scope.spawn(move || {
            let mut n = 0;
            while !stop.load(Ordering::Relaxed) {
                traffic.send(per_tick);
                traffic.send_one(&format!("move:m{}", n % 5), &n.to_string());
                n += 1;
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let guard = Stop(stop);
        let result = body();
        drop(guard);
        load.join().unwrap();
        result
    })
}

#[test]
fn kill_at_random_moments_loses_and_repeats_nothing() {
    let brokers = broker_or_skip!("kill_at_random_moments_loses_and_repeats_nothing");
    kill_at_random("kill", false, rounds(), &brokers);
}

#[test]
fn kill_of_a_static_kip_848_member_loses_and_repeats_nothing() {
    let brokers = broker_or_skip!("kill_of_a_static_kip_848_member_loses_and_repeats_nothing");
    kill_at_random("kill848", true, (rounds() / 3).max(2), &brokers);
}

fn kill_at_random(test: &str, consumer_protocol: bool, rounds: usize, brokers: &str) {
    let client = ClientSettings::new(brokers);
    let topics = fresh_topics(&client, test, 3);
    let mut traffic = Traffic::new(&client, &topics, 30);
    let dir = tempfile::tempdir().unwrap();
    let orders = Orders { is_static: true, consumer_protocol, ..Orders::new(brokers, &topics, "a") };
    let mut dice = Dice(7);
    let mut restarts = Vec::new();
    let last = with_load(&mut traffic, 20, || {
        let mut child = SidecarChild::start(&orders, &dir, 0);
        child.await_saying("Restored", LONG);
        for round in 1..=rounds {
            std::thread::sleep(Duration::from_millis(dice.roll(1_500)));
            assert_sound(&child.kill());
            let started = Instant::now();
            child = SidecarChild::start(&orders, &dir, round);
            // Every other time it dies while it restores.
            if dice.roll(3) > 0 {
                eventually("all restored", LONG, || child.said().matches("Restored").count() >= 3);
                restarts.push(started.elapsed());
            }
        }
        child
    });
    traffic.settle(&client, &topics, LONG);
    let (clean, said) = last.stop();
    assert!(clean, "{said}");
    assert_sound(&said);
    traffic.settle(&client, &topics, LONG);
    assert_ticks(&client, &topics);
    restarts.sort();
    println!("{} records, restart to all restored: {restarts:?}", traffic.total());
}

#[test]
fn death_between_produce_and_commit_loses_and_repeats_nothing() {
    let brokers = broker_or_skip!("death_between_produce_and_commit_loses_and_repeats_nothing");
    let client = ClientSettings::new(&brokers);
    let topics = fresh_topics(&client, "between", 3);
    let mut traffic = Traffic::new(&client, &topics, 30);
    let dir = tempfile::tempdir().unwrap();
    let orders = Orders { is_static: true, ..Orders::new(&brokers, &topics, "a") };
    let mut dice = Dice(5);
    let last = with_load(&mut traffic, 20, || {
        for round in 0..rounds() {
            // Outputs are sent with the step; the commit follows 100 ms after the first, and takes some ms.
            let die = Some((1 + dice.roll(20), dice.roll(if round % 2 == 0 { 1_000 } else { 110_000 })));
            assert_sound(&SidecarChild::start(&Orders { die, ..orders.clone() }, &dir, round).mourn());
        }
        SidecarChild::start(&orders, &dir, rounds())
    });
    traffic.settle(&client, &topics, LONG);
    let (clean, said) = last.stop();
    assert!(clean, "{said}");
    assert_sound(&said);
    traffic.settle(&client, &topics, LONG);
    assert_ticks(&client, &topics);
    let reader = Reader::new(&client, "test", Isolation::Uncommitted).unwrap();
    let mut written = 0;
    for partition in 0..topics.partitions {
        let all = reader.to_end(
            &topics.signals,
            partition,
            Offset::Beginning,
            || false,
            |_| {
                written += 1;
                Next::More
            },
        );
        all.unwrap();
    }
    let aborted = written - traffic.total();
    println!("{} deaths, {aborted} outputs in transactions that were never committed", rounds());
    assert!(aborted > 0, "no death fell between produce and commit");
}

fn scale_and_kill(test: &str, consumer_protocol: bool, brokers: &str) {
    let client = ClientSettings::new(brokers);
    let topics = fresh_topics(&client, test, 6);
    let mut traffic = Traffic::new(&client, &topics, 60);
    let dir = tempfile::tempdir().unwrap();
    let orders = |slot: &str| Orders { consumer_protocol, ..Orders::new(brokers, &topics, slot) };
    let mut dice = Dice(11);
    let last = with_load(&mut traffic, 20, || {
        let a = SidecarChild::start(&orders("a"), &dir, 0);
        a.await_saying("Restored", LONG);
        let b = SidecarChild::start(&orders("b"), &dir, 0);
        let mut c = SidecarChild::start(&orders("c"), &dir, 0);
        b.await_saying("Restored", LONG);
        c.await_saying("Restored", LONG);
        for round in 1..=(rounds() / 3).max(1) {
            std::thread::sleep(Duration::from_millis(500 + dice.roll(1_500)));
            assert_sound(&c.kill());
            c = SidecarChild::start(&orders("c"), &dir, round);
            c.await_saying("Restored", LONG);
        }
        let (clean, said) = a.stop();
        assert!(clean, "{said}");
        assert_sound(&said);
        std::thread::sleep(Duration::from_millis(dice.roll(2_000)));
        let (clean, said) = c.stop();
        assert!(clean, "{said}");
        assert_sound(&said);
        b
    });
    traffic.settle(&client, &topics, LONG);
    let (clean, said) = last.stop();
    assert!(clean, "{said}");
    assert_sound(&said);
    traffic.settle(&client, &topics, LONG);
    assert_ticks(&client, &topics);
}

#[test]
fn scaling_one_to_three_to_one_with_kills_classic() {
    let brokers = broker_or_skip!("scaling_one_to_three_to_one_with_kills_classic");
    scale_and_kill("classic", false, &brokers);
}

#[test]
fn scaling_one_to_three_to_one_with_kills_kip_848() {
    let brokers = broker_or_skip!("scaling_one_to_three_to_one_with_kills_kip_848");
    scale_and_kill("kip848", true, &brokers);
}

#[test]
fn a_stopped_sidecar_that_wakes_after_losing_its_partitions_cannot_write() {
    let brokers = broker_or_skip!("a_stopped_sidecar_that_wakes_after_losing_its_partitions_cannot_write");
    let client = ClientSettings::new(&brokers);
    let topics = fresh_topics(&client, "zombie", 2);
    let mut traffic = Traffic::new(&client, &topics, 10);
    let dir = tempfile::tempdir().unwrap();
    let orders = |slot: &str| Orders { urgent: true, ..Orders::new(&brokers, &topics, slot) };
    let (a, b) = with_load(&mut traffic, 20, || {
        let a = SidecarChild::start(&orders("a"), &dir, 0);
        eventually("a restored both", LONG, || a.said().matches("Restored").count() == 2);
        let b = SidecarChild::start(&orders("b"), &dir, 0);
        b.await_saying("Restored", LONG);
        std::thread::sleep(Duration::from_millis(500));
        a.signal("STOP");
        eventually("b takes over", LONG, || b.said().matches("Restored").count() == 2);
        std::thread::sleep(Duration::from_secs(2));
        a.signal("CONT");
        std::thread::sleep(Duration::from_secs(3));
        (a, b)
    });
    traffic.settle(&client, &topics, LONG);
    for child in [a, b] {
        let (clean, said) = child.stop();
        assert!(clean, "{said}");
        assert_sound(&said);
    }
    traffic.settle(&client, &topics, LONG);
    assert_ticks(&client, &topics);
}

#[test]
fn a_second_holder_of_a_slot_ends_one_of_them_with_its_name() {
    let brokers = broker_or_skip!("a_second_holder_of_a_slot_ends_one_of_them_with_its_name");
    let client = ClientSettings::new(&brokers);
    let topics = fresh_topics(&client, "slot", 2);
    let mut traffic = Traffic::new(&client, &topics, 10);
    let orders = Orders { tick: None, ..Orders::new(&brokers, &topics, "a") };
    let fenced = with_load(&mut traffic, 5, || {
        let first = Sidecar::start(orders.config(), Toy::default());
        eventually("first is ready", LONG, || first.status.ready());
        let second = Sidecar::start(orders.config(), Toy::default());
        eventually("one of them gives up", LONG, || !(first.is_running() && second.is_running()));
        let (ended, other) = if first.is_running() { (second, first) } else { (first, second) };
        let error = ended.join().unwrap_err();
        (error, other)
    });
    let (error, other) = fenced;
    assert!(matches!(&error, Error::FencedTwice { id } if id.ends_with("group-a-0")), "{error}");
    traffic.settle(&client, &topics, LONG);
    other.drain(LONG);
}

/// Brokers that a test is tried on: on a busy machine every third that is stopped or killed loses a transaction.
const BROKERS: usize = 8;

/// Runs `body` on a broker of its own; again on another when it was the broker that lost a transaction
/// ([`Broker::lost_markers`]). On a broker that kept its word a failure is a failure.
fn on_a_broker_of_its_own(test: &str, body: impl Fn(&mut Broker)) {
    for _ in 0..BROKERS {
        let Some(mut broker) = Broker::start() else { return skipped(test) };
        let outcome = catch_unwind(AssertUnwindSafe(|| body(&mut broker)));
        if !broker.lost_markers() {
            return outcome.unwrap_or_else(|panic| resume_unwind(panic));
        }
        println!("{test}: the broker ended a transaction without its markers; once more on another");
    }
    panic!("{test}: {BROKERS} brokers in a row ended a transaction without its markers");
}

#[test]
fn a_broker_restart_is_survived_without_a_sidecar_restart() {
    on_a_broker_of_its_own("a_broker_restart_is_survived_without_a_sidecar_restart", |broker| {
        let client = ClientSettings::new(broker.bootstrap());
        let topics = fresh_topics(&client, "restart", 3);
        let mut traffic = Traffic::new(&client, &topics, 10);
        let orders = Orders::new(&broker.bootstrap(), &topics, "a");
        let sidecar = Sidecar::start(orders.config(), orders.toy());
        eventually("ready", LONG, || sidecar.status.ready());
        with_load(&mut traffic, 10, || {
            for kill in [false, true] {
                std::thread::sleep(Duration::from_millis(800));
                if kill {
                    broker.kill()
                } else {
                    broker.stop()
                }
                std::thread::sleep(Duration::from_millis(500));
                broker.up();
                let before = sidecar.status.counters.records_in.get();
                let goes_on = || sidecar.status.counters.records_in.get() > before + 100;
                eventually("it goes on", LONG, || goes_on() || broker.lost_markers());
            }
        });
        if broker.lost_markers() {
            return;
        }
        traffic.settle(&client, &topics, LONG);
        assert!(sidecar.is_running());
        assert_sound(&sidecar.witness.events.lock().unwrap().join("\n"));
        assert_eq!(sidecar.drain(LONG), Ended::Drained);
        assert_ticks(&client, &topics);
    });
}

#[test]
fn an_outage_longer_than_the_transaction_time_out_ends_in_a_rebuild_and_loses_nothing() {
    let test = "an_outage_longer_than_the_transaction_time_out_ends_in_a_rebuild_and_loses_nothing";
    on_a_broker_of_its_own(test, |broker| {
        let client = ClientSettings::new(broker.bootstrap());
        let topics = fresh_topics(&client, "outage", 2);
        let mut traffic = Traffic::new(&client, &topics, 10);
        let orders = Orders::new(&broker.bootstrap(), &topics, "a");
        let config = ShellConfig { transaction_timeout: Duration::from_secs(3), ..orders.config() };
        let sidecar = Sidecar::start(config, orders.toy());
        traffic.send(500);
        traffic.settle(&client, &topics, LONG);
        broker.kill();
        std::thread::sleep(Duration::from_secs(6));
        broker.up();
        traffic.send(500);
        if broker.lost_markers() {
            return;
        }
        traffic.settle(&client, &topics, LONG);
        assert_sound(&sidecar.witness.events.lock().unwrap().join("\n"));
        assert_eq!(sidecar.drain(LONG), Ended::Drained);
        assert_ticks(&client, &topics);
    });
}

#[test]
fn one_of_three_brokers_killed_is_survived_without_a_sidecar_restart() {
    let Some(mut cluster) = Cluster::start() else {
        return skipped("one_of_three_brokers_killed_is_survived_without_a_sidecar_restart");
    };
    let client = ClientSettings::new(cluster.bootstrap());
    let topics = fresh_topics_replicated(&client, "three", 3, 3);
    let mut traffic = Traffic::new(&client, &topics, 10);
    let orders = Orders::new(cluster.bootstrap(), &topics, "a");
    let sidecar = Sidecar::start(orders.config(), orders.toy());
    eventually("ready", LONG, || sidecar.status.ready());
    with_load(&mut traffic, 5, || {
        for node in 1..=3 {
            std::thread::sleep(Duration::from_millis(500));
            eventually("the others can do without it", LONG, || cluster.behind().is_empty());
            let before = sidecar.status.counters.records_in.get();
            cluster.kill(node);
            eventually("it goes on", LONG, || sidecar.status.counters.records_in.get() > before + 100);
            cluster.up();
        }
    });
    traffic.settle(&client, &topics, LONG);
    assert!(sidecar.is_running());
    assert_sound(&sidecar.witness.events.lock().unwrap().join("\n"));
    assert_eq!(sidecar.drain(LONG), Ended::Drained);
    assert_ticks(&client, &topics);
}

#[test]
fn until_end_with_re_keyed_records_is_complete() {
    let brokers = broker_or_skip!("until_end_with_re_keyed_records_is_complete");
    let client = ClientSettings::new(&brokers);
    let topics = fresh_topics(&client, "untilend", 3);
    let mut traffic = Traffic::new(&client, &topics, 5);
    for n in 0..3_000 {
        let key = if n % 3 == 0 { format!("move:m{}", n % 7) } else { format!("k{}", n % 5) };
        traffic.send_one(&key, &n.to_string());
    }
    traffic.flush();
    let orders = Orders::new(&brokers, &topics, "a");
    let config = ShellConfig { until_end: true, ..orders.config() };
    assert_eq!(Sidecar::start(config, Toy::default()).join().unwrap(), Ended::Finished);
    traffic.check(&client, &topics).unwrap();
    assert_eq!(read_topic(&client, &topics.runs).unwrap().len(), 3);
}

#[test]
fn topics_are_created_with_their_settings_and_wrong_ones_are_refused() {
    let brokers = broker_or_skip!("topics_are_created_with_their_settings_and_wrong_ones_are_refused");
    let client = ClientSettings::new(&brokers);
    let topics = fresh_topics(&client, "provision", 3);
    let admin = Admin::new(client.clone());
    assert_eq!(verify(&admin, &topics).unwrap(), 3);
    let swapped = Topics { checkpoint: topics.steps.clone(), steps: topics.checkpoint.clone(), ..topics.clone() };
    let error = verify(&admin, &swapped).unwrap_err();
    assert!(matches!(&error, Error::Cleanup { .. }), "{error}");
    let five = fresh_topics(&client, "provision", 5);
    let mixed = Topics { commands: five.commands.clone(), ..topics };
    let error = verify(&admin, &mixed).unwrap_err().to_string();
    assert!(error.contains("has 5 partitions") && error.contains("has 3"), "{error}");
}

/// Partition counts of the topics that must agree.
fn joint_counts(client: &ClientSettings, topics: &Topics) -> BTreeSet<i32> {
    let counts = Admin::new(client.clone()).partition_counts().unwrap();
    topics.specs().iter().filter(|s| s.co_partitioned).map(|s| counts[s.name]).collect()
}

fn resize_with_kills(test: &str, consumer_protocol: bool, brokers: &str) {
    let client = ClientSettings::new(brokers);
    let topics = fresh_topics(&client, test, 2);
    let mut traffic = Traffic::new(&client, &topics, 200);
    let dir = tempfile::tempdir().unwrap();
    let orders = Orders { consumer_protocol, placed: true, tick: None, ..Orders::new(brokers, &topics, "a") };
    let order = Orders { resize: Some(5), ..orders.clone() };
    let first = SidecarChild::start(&orders, &dir, 0);
    traffic.send(3_000);
    traffic.settle(&client, &topics, LONG);
    assert_sound(&first.kill());
    traffic.send(1_000);
    let mut dice = Dice(5);
    let mut phases = BTreeSet::new();
    let mut kills = 0;
    let said = loop {
        let mut resize = SidecarChild::start(&order, &dir, 100 + kills);
        // Each dies a little after it got one phase further than the last.
        let until = [
            "restoring",
            "taking the state apart",
            "checkpoint: partitions become 5",
            "writing partition 2",
            "in force",
            "outcomes: partitions become 5",
        ];
        if let Some(text) = until.get(kills) {
            eventually("a resize gets there", LONG, || resize.said().contains(text) || !resize.is_running());
            std::thread::sleep(Duration::from_millis(dice.roll(30)));
            traffic.send(50);
            let said = resize.kill();
            assert_sound(&said);
            phases.extend(until.iter().filter(|text| said.contains(**text)).copied());
            kills += 1;
            continue;
        }
        let (good, said) = resize.end();
        assert!(good, "{said}");
        break said;
    };
    assert_eq!(joint_counts(&client, &topics), BTreeSet::from([5]), "{said}");
    println!("{kills} kills, in {phases:?}\n{said}");
    let (good, said) = SidecarChild::start(&order, &dir, 200).end();
    assert!(good && said.contains("nothing_to_do: true"), "{said}");
    traffic.send(1_000);
    let last = SidecarChild::start(&orders, &dir, 1);
    eventually("all restored", LONG, || last.said().matches("Restored").count() >= 5);
    traffic.send(1_000);
    eventually("all out", LONG, || traffic.seen(&client, &topics) >= traffic.total());
    let (clean, said) = last.stop();
    assert!(clean, "{said}");
    assert_sound(&said);
    traffic.check_orderless(&client, &topics).unwrap();
    // and once more from the new checkpoints alone
    let again = SidecarChild::start(&orders, &dir, 2);
    traffic.send(500);
    eventually("all out", LONG, || traffic.seen(&client, &topics) >= traffic.total());
    let (clean, said) = again.stop();
    assert!(clean, "{said}");
    assert_sound(&said);
    traffic.check_orderless(&client, &topics).unwrap();
}

#[test]
fn a_resize_killed_again_and_again_loses_and_repeats_nothing() {
    let brokers = broker_or_skip!("a_resize_killed_again_and_again_loses_and_repeats_nothing");
    resize_with_kills("resize", false, &brokers);
}

#[test]
fn a_resize_of_a_kip_848_group_killed_again_and_again_loses_and_repeats_nothing() {
    let brokers = broker_or_skip!("a_resize_of_a_kip_848_group_killed_again_and_again_loses_and_repeats_nothing");
    resize_with_kills("resize848", true, &brokers);
}

#[test]
fn a_resize_beside_a_sidecar_to_fewer_partitions_or_after_growth_by_hand_is_refused_or_heals() {
    let brokers =
        broker_or_skip!("a_resize_beside_a_sidecar_to_fewer_partitions_or_after_growth_by_hand_is_refused_or_heals");
    let client = ClientSettings::new(&brokers);
    let topics = fresh_topics(&client, "resize-refused", 2);
    let mut traffic = Traffic::new(&client, &topics, 50);
    let orders = Orders { placed: true, tick: None, ..Orders::new(&brokers, &topics, "a") };
    let run = |partitions, dry_run| {
        let order = Order { partitions, dry_run, accept_loss: false, leave_backlog: true };
        resize(&orders.config(), factory(orders.toy()), Arc::new(LogObserver), order, &|_| {})
    };
    let sidecar = Sidecar::start(orders.config(), orders.toy());
    traffic.send(500);
    traffic.settle(&client, &topics, LONG);
    let error = run(4, false).unwrap_err();
    assert!(matches!(&error, Error::Refused(why) if why.contains("in use")), "{error}");
    assert!(sidecar.status.ready() && !sidecar.witness.saw("Revoked"), "the sidecar was left alone");
    assert_eq!(sidecar.drain(LONG), Ended::Drained);
    let error = run(1, false).unwrap_err();
    assert!(matches!(&error, Error::Refused(why) if why.contains("cannot take any away")), "{error}");
    assert!(run(2, false).unwrap().nothing_to_do);
    let dry = run(4, true).unwrap();
    assert_eq!((dry.from, dry.to, dry.keys, joint_counts(&client, &topics)), (2, 4, 50, BTreeSet::from([2])));
    // grown by hand: sidecars refuse to take the state for theirs, and the command heals it
    let joint: Vec<String> = topics.specs().iter().filter(|s| s.co_partitioned).map(|s| s.name.to_owned()).collect();
    Admin::new(client.clone()).grow(&joint.iter().map(String::as_str).collect::<Vec<_>>(), 4, false).unwrap();
    traffic.send(500);
    let error = Sidecar::start(orders.config(), orders.toy()).join().unwrap_err();
    assert!(matches!(error, Error::Resized { partitions: 4, found: 2, .. }), "{error}");
    let report = run(4, false).unwrap();
    assert!(report.grown.is_empty() && report.keys == 50 && report.from == 2, "{report:?}");
    let sidecar = Sidecar::start(orders.config(), orders.toy());
    traffic.send(500);
    eventually("all out", LONG, || traffic.seen(&client, &topics) >= traffic.total());
    assert_sound(&sidecar.witness.events.lock().unwrap().join("\n"));
    sidecar.drain(LONG);
    traffic.check_orderless(&client, &topics).unwrap();
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted.get(sorted.len() * percent / 100).copied().unwrap_or_default()
}

/// `cargo test --test it kafka_real::figures -- --ignored --nocapture`: lower bounds in a debug build; asserts nothing.
#[test]
#[ignore = "prints measurements"]
fn figures() {
    let brokers = broker_or_skip!("figures");
    let client = ClientSettings::new(&brokers);
    for urgent in [false, true] {
        let topics = fresh_topics(&client, "latency", 6);
        let orders = Orders { urgent, tick: None, ..Orders::new(&brokers, &topics, "a") };
        let config = ShellConfig { checkpoint_chunk: 4 << 20, ..orders.config() };
        let sidecar = Sidecar::start(config, orders.toy());
        eventually("ready", LONG, || sidecar.status.ready());
        let mut traffic = Traffic::new(&client, &topics, 100);
        for _ in 0..1_000 {
            traffic.send(10);
            std::thread::sleep(Duration::from_millis(5));
        }
        traffic.settle(&client, &topics, LONG);
        let commits = std::mem::take(&mut *sidecar.witness.commits.lock().unwrap());
        let (mut took, mut age): (Vec<_>, Vec<_>) = commits.into_iter().unzip();
        took.sort();
        age.sort();
        println!(
            "urgent {urgent}: {} transactions, commit p50 {:?} p99 {:?}; oldest record to commit p50 {:?} p99 {:?}",
            took.len(),
            percentile(&took, 50),
            percentile(&took, 99),
            percentile(&age, 50),
            percentile(&age, 99)
        );
        sidecar.drain(LONG);
    }
    let topics = fresh_topics(&client, "throughput", 6);
    let producer = runwarden::kafka::produce::Producer::new(&client).unwrap();
    let payload = [b'x'; 350];
    let count = 1_000_000_u64;
    for n in 0..count {
        producer.send(&topics.telemetry, format!("k{}", n % 1_000).as_bytes(), &payload).unwrap();
    }
    producer.flush(LONG).unwrap();
    let orders = Orders { tick: None, ..Orders::new(&brokers, &topics, "a") };
    let config = ShellConfig { checkpoint_chunk: 4 << 20, ..orders.config() };
    let sidecar = Sidecar::start(config, Toy { quiet: true, ..Toy::default() });
    eventually("ready", LONG, || sidecar.status.ready());
    let started = Instant::now();
    eventually("all in", LONG, || sidecar.status.counters.records_in.get() == count);
    let seconds = started.elapsed().as_secs_f64();
    let counters = &sidecar.status.counters;
    println!(
        "throughput: {:.0} records/s, {} transactions, {} step bytes, {} checkpoint bytes for {} bytes in",
        count as f64 / seconds,
        counters.transactions_committed.get(),
        counters.step_bytes.get(),
        counters.checkpoint_bytes.get(),
        counters.bytes_in.get()
    );
    sidecar.drain(LONG);
}
