//! What is fuzzed: every decoder of bytes that others wrote. Each function takes any bytes and must not panic.
//!
//! `fuzz_targets/` gives them to libFuzzer, `tests/it/fuzz.rs` to a plain mutation loop that needs no nightly toolchain.

#![allow(dead_code, reason = "each fuzz target uses one of them")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure here is a finding")]

use std::io::Write;
use std::sync::{Arc, OnceLock};

use runwarden::cli::load::{self, Texts};
use runwarden::clock::{SECOND, Wall};
use runwarden::decide::commands::{Command, Keyring};
use runwarden::kafka::core::{Core, Input, InputBatch, Record, StepInput, Topic};
use runwarden::pipeline::{Own, Partition, Settings};
use runwarden::policy;
use runwarden::telemetry::files::Files;
use runwarden::telemetry::otlp::{Encoding, Items, Mapper, items};
use runwarden::telemetry::{self, Decoder, Origin, redacted_json};

const NOW: Wall = Wall(2_000_000_000 * SECOND);
/// Largest record, bytes.
const LARGEST: usize = 4_096;

fn decoder() -> Decoder {
    Decoder::new(Arc::new(telemetry::Settings {
        attributes: ["region", "nested"].map(str::to_owned).to_vec(),
        max_record_bytes: LARGEST,
        ..telemetry::Settings::default()
    }))
}

fn origin(offset: i64) -> Origin {
    Origin { input: 2, topic: "t".into(), partition: 0, offset }
}

/// Records, one a line: each becomes one row or one dead letter, and a row is the same row after it was re-keyed.
pub fn json(data: &[u8]) {
    let mut decoder = decoder();
    let mut count = 0;
    for line in data.split(|b| *b == b'\n') {
        decoder.push(origin(count), count, Some(line), NOW);
        count += 1;
    }
    let decoded = decoder.finish();
    let rows = &decoded.batch.rows;
    assert_eq!(rows.num_rows() + decoded.dead.len(), count as usize, "one row or one dead letter each");
    for row in 0..rows.num_rows() {
        decoder.push(origin(0), 0, Some(&redacted_json(rows, row)), NOW);
    }
    let again = decoder.finish();
    assert!(again.dead.is_empty(), "a good row stays one: {:?}", again.dead);
    assert_eq!(again.batch.rows, *rows);
}

/// OTLP in either encoding: refused as a whole, or every span is accepted, ignored or rejected, and what is accepted is telemetry.
pub fn otlp(encoding: Encoding, data: &[u8]) {
    static MAPPER: OnceLock<Mapper> = OnceLock::new();
    let mapper = MAPPER.get_or_init(|| Mapper::new(runwarden::config::Config::default().mapping()));
    let _counted = (items(data, encoding, Items::Metrics), items(data, encoding, Items::Logs));
    let Ok(mapped) = mapper.map(data, encoding, None) else { return };
    let mut decoder = decoder();
    for record in &mapped.records {
        decoder.push(origin(0), 0, Some(&record.value), Wall(i64::MAX));
    }
    let decoded = decoder.finish();
    assert!(decoded.dead.is_empty(), "what is accepted is telemetry: {:?}", decoded.dead);
    assert!(mapped.accepted as usize <= mapped.records.len());
}

/// A file of recorded telemetry.
pub fn file(extension: &str, data: &[u8]) {
    let mut file = tempfile::Builder::new().suffix(&format!(".{extension}")).tempfile().expect("a temporary file");
    file.write_all(data).expect("room for it");
    let Ok(mut files) = Files::open(&[file.path().to_owned()], 2, LARGEST) else { return };
    let mut decoder = decoder();
    let mut count = 0;
    while let Ok(Some(record)) = files.next() {
        record.push(&mut decoder, count, NOW);
        count += 1;
        if count > 10_000 {
            return;
        }
    }
    let decoded = decoder.finish();
    assert_eq!(decoded.batch.rows.num_rows() + decoded.dead.len(), count as usize, "one row or one dead letter each");
}

fn settings() -> Arc<Settings> {
    static SETTINGS: OnceLock<Arc<Settings>> = OnceLock::new();
    let make = || {
        let mut settings = load::build(&Texts::demo(), load::defaults()).expect("what is shipped is valid").settings;
        settings.event_clock = true;
        settings.future_at = Some(NOW);
        Arc::new(settings)
    };
    Arc::clone(SETTINGS.get_or_init(make))
}

fn partition() -> Partition {
    Partition::new(settings(), Own { partition: 0, partitions: 1 }).expect("what is shipped is valid")
}

fn step(core: &mut Partition, number: u64, payloads: &[Vec<u8>], finish: bool) -> Result<(), String> {
    let record = |(i, payload)| Record {
        offset: number as i64 * 1_000 + i as i64,
        timestamp: 0,
        key: None,
        payload: Some(payload),
        headers: &[],
    };
    let records = payloads.iter().map(Vec::as_slice).enumerate().map(record).collect();
    let inputs = vec![InputBatch { input: Input::Telemetry, records, at_end: false }];
    let input = StepInput { number, now: NOW, inputs, replaying: false, finish };
    core.step(&input).map(drop).map_err(|e| e.to_string())
}

fn events(from: usize, to: usize) -> Vec<Vec<u8>> {
    let event = |n: usize| {
        let kind = ["run.step", "run.step", "run.started", "run.failed", "agent.heartbeat"][n % 5];
        serde_json::json!({
            "event_id": format!("e{n}"), "event_time": 1_700_000_000_000_i64 + n as i64 * 900 - n as i64 % 7 * 1_000,
            "event_type": kind, "tenant_id": format!("t{}", n % 2), "run_id": format!("r{}", n % 6),
            "agent_id": format!("a{}", n % 3), "api_key_id": "k", "human_actor_id": "h", "provider": "p",
            "input_tokens": n * 997 % 50_000, "latency_ms": n * 31 % 9_000, "cost_usd": 0.5, "risk_score": 0.5,
            "anomaly_score": 0.9,
        })
        .to_string()
        .into_bytes()
    };
    (from..to).map(event).collect()
}

/// A file of policies: read, or every fault has its place in it, and what is read can be checked, apart and together.
pub fn policies(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let lines = text.lines().count() as u64;
    match policy::parse("p.yaml", &text) {
        Ok(policies) => {
            let _found = policy::conflicts(&policies);
            let _findings = policy::check_apart(&policy::PolicySet::of(policies), &[]);
        }
        Err(faults) => {
            assert!(!faults.is_empty(), "nothing is refused without a word");
            for fault in faults {
                assert!(!fault.message.is_empty() && fault.line <= lines + 1, "{fault}");
            }
        }
    }
}

/// Commands, one a line: each is answered once or is one dead letter. What is JSON is tried a second time with a good signature,
/// since only that reaches the writer.
pub fn commands(data: &[u8]) {
    thread_local! {
        static CORE: std::cell::RefCell<(Partition, u64)> = std::cell::RefCell::new((signed_partition(), 0));
    }
    let mut payloads = Vec::new();
    for (n, line) in data.split(|b| *b == b'\n').take(20).enumerate() {
        payloads.push(line.to_vec());
        let Ok(value) = serde_json::from_slice::<serde_json::Value>(line) else { continue };
        let text = |name: &str| value[name].as_str().map(str::to_owned);
        let command = Command {
            command_id: text("command_id").unwrap_or_else(|| format!("c{n}")),
            kind: text("type").unwrap_or_else(|| "proposal.create".into()),
            tenant_id: text("tenant_id").unwrap_or_else(|| "*".into()),
            principal: text("principal").unwrap_or_else(|| "user:ada".into()),
            authority: 5,
            issued_at: NOW.0,
            body: value["body"].clone(),
            key_id: None,
        };
        payloads.extend(ring().sign(command, "k"));
    }
    CORE.with_borrow_mut(|(core, number)| {
        *number += 1;
        let record = |(i, payload)| Record {
            offset: *number as i64 * 1_000 + i as i64,
            timestamp: 0,
            key: Some(b"*".as_slice()),
            payload: Some(payload),
            headers: &[],
        };
        let records = payloads.iter().map(Vec::as_slice).enumerate().map(record).collect();
        let inputs = vec![InputBatch { input: Input::Commands, records, at_end: false }];
        let input = StepInput { number: *number, now: NOW, inputs, replaying: false, finish: false };
        let said = core.step(&input).expect("no command stops a core").records;
        let on = |topic| said.iter().filter(|r| r.topic == topic).count();
        assert_eq!(on(Topic::CommandResults) + on(Topic::DeadLetter), payloads.len(), "one answer or dead letter each");
        if number.is_multiple_of(500) {
            (*core, *number) = (signed_partition(), 0);
        }
    });
}

fn ring() -> Keyring {
    let mut keys = Keyring::default();
    keys.add("k", b"a key for fuzzing", 5);
    keys
}

/// A partition that knows the key and has the demo's policies in force.
fn signed_partition() -> Partition {
    static SETTINGS: OnceLock<Arc<Settings>> = OnceLock::new();
    let make = || {
        let tuning = load::Tuning { keys: Arc::new(ring()), ..load::defaults() };
        Arc::new(load::build(&Texts::demo(), tuning).expect("what is shipped is valid").settings)
    };
    let settings = Arc::clone(SETTINGS.get_or_init(make));
    Partition::new(settings, Own { partition: 0, partitions: 1 }).expect("what is shipped is valid")
}

/// What a partition checkpoints after some events.
pub fn checkpoint() -> &'static [(Vec<u8>, Vec<u8>)] {
    static SAVED: OnceLock<Vec<(Vec<u8>, Vec<u8>)>> = OnceLock::new();
    SAVED.get_or_init(|| {
        let mut core = partition();
        step(&mut core, 1, &events(0, 120), false).expect("good events");
        core.take_changes().into_iter().filter_map(|c| Some((c.key, c.value?))).collect()
    })
}

/// Makes a changed value one that its checksum does not give away.
fn reseal(key: &[u8], value: &mut [u8]) {
    let Some((head, body)) = value.split_at_mut_checked(5) else { return };
    let mut crc = crc32fast::Hasher::new();
    crc.update(body);
    if matches!(key.first(), Some(b'W' | b'C')) {
        // windows: over the name too
        crc.update(&key[1..]);
        head[1..].copy_from_slice(&crc.finalize().to_be_bytes());
    } else {
        head[1..].copy_from_slice(&crc.finalize().to_le_bytes());
    }
}

/// Checkpointed state with one record changed: `[record: 2][flags][edits: place, byte …]`. Flag 1: under a checksum that
/// fits; 2: cut at the first place; 4: the name is changed, not the value. Whatever is taken back must not panic, then or in
/// the steps after it.
pub fn state(data: &[u8]) {
    let saved = checkpoint();
    let Some((&[a, b, flags], edits)) = data.split_first_chunk::<3>() else { return };
    let changed = usize::from(u16::from_le_bytes([a, b])) % saved.len();
    let (mut key, mut value) = saved[changed].clone();
    let target = if flags & 4 == 4 { &mut key } else { &mut value };
    for (i, edit) in edits.chunks_exact(3).enumerate() {
        let at = usize::from(u16::from_le_bytes([edit[0], edit[1]])) % target.len().max(1);
        if i == 0 && flags & 2 == 2 {
            target.truncate(at);
        } else if let Some(byte) = target.get_mut(at) {
            *byte = edit[2];
        }
    }
    if flags & 1 == 1 {
        reseal(&key, &mut value);
    }
    let mut core = partition();
    for (i, (k, v)) in saved.iter().enumerate() {
        let (k, v) = if i == changed { (&key, &value) } else { (k, v) };
        if core.restore(k, v).is_err() && i != changed {
            assert!(flags & 1 == 1, "an untouched record is refused only after a changed one was believed");
        }
    }
    // refused or not, it goes on
    let _refused = core.restored();
    if step(&mut core, 2, &events(120, 160), false).is_ok() {
        core.take_changes();
        let _stopped = step(&mut core, 3, &[], true);
    }
}
