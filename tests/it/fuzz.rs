//! Random damage to what decoders read, without a nightly toolchain: the functions of `fuzz/targets.rs`, which cargo-fuzz drives
//! too.
//!
//! For five minutes on each: `RUNWARDEN_FUZZ_SECONDS=300 cargo test --test it fuzz -- --nocapture`. Another
//! `RUNWARDEN_FUZZ_SEED` gives other damage. An input that panics is written to `target/fuzz-<name>.bin`.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use datafusion::arrow::array::{
    ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use prost::Message as _;
use runwarden::telemetry::otlp::Encoding;

#[path = "../../fuzz/targets.rs"]
mod targets;

struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.roll() % n.max(1) as u64) as usize
    }
}

/// What decoders trip over.
const WORDS: &[&[u8]] = &[
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b"\\",
    b"\\u0000",
    b"\\ud800",
    b":",
    b",",
    b"null",
    b"true",
    b"-",
    b"1e999",
    b"-0",
    b"0.1e-400",
    b"9223372036854775807",
    b"-9223372036854775808",
    b"18446744073709551616",
    b"99999999999999999999999999.999999999999",
    b"\xff\xfe",
    b"\xc3",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"\r\n",
    b"\n",
    b"\"\"",
    b"2026-01-02T03:04:05Z",
    b"+262142-12-31T23:59:60Z",
    b"event_time",
    b"tenant_id",
    b"attributes",
    b"labels",
    b"prompt",
    b"cost_usd",
    b"run.step",
    b"PAR1",
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01",
];

fn damage(dice: &mut Dice, bytes: &mut Vec<u8>, seeds: &[Vec<u8>]) {
    for _ in 0..=dice.below(6) {
        let at = dice.below(bytes.len() + 1);
        let most = 1 << dice.below(8);
        let len = dice.below(most).min(bytes.len() - at);
        match dice.below(8) {
            0 if at < bytes.len() => bytes[at] ^= 1 << dice.below(8),
            1 if at < bytes.len() => bytes[at] = dice.roll() as u8,
            2 => drop(bytes.drain(at..at + len)),
            3 => {
                let copy = bytes[at..at + len].to_vec();
                let to = dice.below(bytes.len() + 1);
                bytes.splice(to..to, copy);
            }
            4 => {
                let word = WORDS[dice.below(WORDS.len())];
                let over = if dice.below(2) == 0 { word.len().min(bytes.len() - at) } else { 0 };
                bytes.splice(at..at + over, word.iter().copied());
            }
            5 => {
                let other = &seeds[dice.below(seeds.len())];
                let from = dice.below(other.len() + 1);
                let part = &other[from..(from + len).min(other.len())];
                bytes.splice(at..at + len, part.iter().copied());
            }
            6 if dice.below(4) == 0 => bytes.truncate(at),
            _ => {
                let more = (0..dice.below(5)).map(|_| dice.roll() as u8).collect::<Vec<_>>();
                bytes.splice(at..at, more);
            }
        }
    }
    bytes.truncate(1 << 16);
}

/// Gives `target` damaged seeds, `RUNWARDEN_FUZZ_SECONDS` long or `few` of them.
fn fuzz(name: &str, few: u64, seeds: &[Vec<u8>], target: impl Fn(&[u8])) {
    let number = |name: &str| std::env::var(name).ok().and_then(|n| n.parse::<u64>().ok());
    let until = number("RUNWARDEN_FUZZ_SECONDS").map(|s| Instant::now() + Duration::from_secs(s));
    let mut dice = Dice(number("RUNWARDEN_FUZZ_SEED").unwrap_or(1));
    seeds.iter().for_each(|seed| target(seed));
    let mut tried = 0_u64;
    while until.map_or(tried < few, |until| Instant::now() < until) {
        let mut bytes = seeds[dice.below(seeds.len())].clone();
        damage(&mut dice, &mut bytes, seeds);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| target(&bytes))) {
            let path = crate::support::root().join(format!("target/fuzz-{name}.bin"));
            std::fs::write(&path, &bytes).unwrap();
            eprintln!(
                "fuzz {name}: input {tried} panicked, see {}: {}",
                path.display(),
                String::from_utf8_lossy(&bytes)
            );
            resume_unwind(panic);
        }
        tried += 1;
    }
    println!("fuzz {name}: {tried} damaged inputs, no panic");
}

fn lines() -> Vec<Vec<u8>> {
    let whole = r#"{"event_id":"e1","event_time":"2026-01-02T03:04:05.678901Z","event_type":"run.step","tenant_id":"t1","run_id":"r","agent_id":"a","task_id":"k","project_id":"p","api_key_id":"key","human_actor_id":"h","provider":"openai","model":"gpt","input_tokens":12,"output_tokens":3,"cached_tokens":1,"cost_usd":0.001250000,"latency_ms":87,"risk_score":0.25,"anomaly_score":1.0,"labels":{"team":"x","n":"1"},"attributes":{"region":"eu","nested":{"a":[1,2,{"b":null}]}},"is_synthetic":false,"error_message":"\u00e9\n","prompt":"secret"}"#;
    let small = r#"{"event_time":1767323045678,"event_type":"agent.heartbeat","tenant_id":"t","agent_id":"a","health_status":"healthy","consecutive_anomalous_readings":3,"capacity":10}"#;
    let task = r#"{"event_time":1767323045678,"event_type":"task.updated","tenant_id":"t","task_id":"k","task_status":"RUNNING","priority":"HIGH","running_duration_seconds":12.5,"timeout_seconds":1e3,"severity":"critical","title":"x"}"#;
    vec![whole.into(), small.into(), task.into(), [whole, small, task].join("\n").into_bytes()]
}

#[test]
fn damaged_records_are_rows_or_dead_letters() {
    fuzz("json", 2_000, &lines(), targets::json);
}

#[test]
fn damaged_json_lines_are_read_to_their_end() {
    fuzz("jsonl", 400, &lines(), |data| targets::file("jsonl", data));
}

#[test]
fn damaged_csv_is_read_or_refused() {
    let csv = "event_time,event_type,tenant_id,run_id,input_tokens,cost_usd,labels,attributes,error_message\n\
        2026-01-02T03:04:05Z,run.step,t,r,12,0.5,\"{\"\"a\"\":\"\"b\"\"}\",\"{\"\"region\"\":\"\"eu\"\"}\",\"two\nlines\"\n\
        1767323045678,run.failed,t,r,,,,,\"quoted \"\" quote\"\n";
    let odd = "\u{feff}tenant_id;event_time\r\n";
    fuzz("csv", 400, &[csv.into(), odd.into()], |data| targets::file("csv", data));
}

fn parquet_file(compression: Compression, dictionary: bool) -> Vec<u8> {
    let rows = 40_i64;
    let columns: Vec<(&str, ArrayRef)> = vec![
        (
            "event_time",
            Arc::new((0..rows).map(|i| Some(1_767_323_045_000_000 + i)).collect::<TimestampMicrosecondArray>()),
        ),
        (
            "event_type",
            Arc::new(
                (0..rows).map(|i| Some(if i % 9 == 0 { "run.failed" } else { "run.step" })).collect::<StringArray>(),
            ),
        ),
        ("tenant_id", Arc::new((0..rows).map(|i| Some(format!("t{}", i % 3))).collect::<StringArray>())),
        ("run_id", Arc::new((0..rows).map(|i| (i % 5 != 0).then(|| format!("r{i}"))).collect::<StringArray>())),
        ("input_tokens", Arc::new((0..rows).map(Some).collect::<Int64Array>())),
        ("risk_score", Arc::new((0..rows).map(|i| (i % 2 == 0).then_some(0.5)).collect::<Float64Array>())),
    ];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let properties =
        WriterProperties::builder().set_compression(compression).set_dictionary_enabled(dictionary).build();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    bytes
}

#[test]
fn damaged_parquet_is_read_or_refused() {
    let seeds = [
        parquet_file(Compression::UNCOMPRESSED, false),
        parquet_file(Compression::SNAPPY, true),
        parquet_file(Compression::ZSTD(ZstdLevel::default()), true),
    ];
    fuzz("parquet", 400, &seeds, |data| targets::file("parquet", data));
}

/// A request with an agent, a call and a tool, whose texts are long enough to be cut and changed.
fn export() -> serde_json::Value {
    let span = |id: u8, parent: &str, operation: &str, more: &str| {
        format!(
            r#"{{"traceId":"5b8efff798038103d269b633813fc60c","spanId":"{id:016x}","parentSpanId":"{parent}","traceState":"","name":"n","kind":3,
            "startTimeUnixNano":"1767323045000000000","endTimeUnixNano":"1767323046000000000","status":{{"code":2,"message":"m"}},"events":[{{"timeUnixNano":"1","name":"e"}}],
            "attributes":[{{"key":"gen_ai.operation.name","value":{{"stringValue":"{operation}"}}}}{more}]}}"#
        )
    };
    let usage = r#",{"key":"gen_ai.usage.input_tokens","value":{"intValue":"12"}},{"key":"gen_ai.usage.output_tokens","value":{"doubleValue":3.0}},
        {"key":"gen_ai.usage.cache_read.input_tokens","value":{"intValue":"4"}},{"key":"runwarden.cost_usd","value":{"stringValue":"0.25"}},
        {"key":"region","value":{"arrayValue":{"values":[{"boolValue":true},{"kvlistValue":{"values":[{"key":"a","value":{"bytesValue":"AAE="}}]}}]}}}"#;
    let (agent, call, tool) = (
        span(1, "", "invoke_agent", ""),
        span(2, "0000000000000001", "chat", usage),
        span(3, "0000000000000001", "execute_tool", ""),
    );
    let resource = r#"{"attributes":[{"key":"runwarden.tenant_id","value":{"stringValue":"acme"}}]}"#;
    let text = format!(
        r#"{{"resourceSpans":[{{"resource":{resource},"scopeSpans":[{{"scope":{{"name":"s"}},"spans":[{call},{tool},{agent}]}}]}}]}}"#
    );
    serde_json::from_str(&text).unwrap()
}

#[test]
fn damaged_spans_in_json_are_refused_or_telemetry() {
    fuzz("otlp_json", 1_000, &[export().to_string().into_bytes()], |data| targets::otlp(Encoding::Json, data));
}

#[test]
fn damaged_spans_in_protobuf_are_refused_or_telemetry() {
    let request: ExportTraceServiceRequest = serde_json::from_value(export()).unwrap();
    fuzz("otlp_proto", 2_000, &[request.encode_to_vec()], |data| targets::otlp(Encoding::Proto, data));
}

#[test]
fn damaged_policies_are_read_or_each_fault_has_its_place() {
    let files = ["runs.yaml", "tenants.yaml", "agents.yaml", "guardian/emergency.yaml"];
    let folder = crate::support::root().join("config/policies");
    let seeds: Vec<Vec<u8>> = files.iter().filter_map(|file| std::fs::read(folder.join(file)).ok()).collect();
    assert!(seeds.len() >= 3, "what is shipped is there");
    fuzz("policies", 300, &seeds, targets::policies);
}

#[test]
fn damaged_commands_are_answered_or_dead_letters() {
    let policy = r#"{"id":"p","name":"P","tenant":"acme","enforcement_mode":"BLOCK","limits":[{"id":"l","limit_type":"T","metric":"run_tokens","max":5.5}],"active":{"hours":"22:00-06:00","timezone":"Europe/Zurich"}}"#;
    let lines = [
        format!(r#"{{"type":"proposal.create","body":{{"policy":{policy},"reason":"r"}}}}"#),
        r#"{"type":"policy.update","body":{"file":"p.yaml","policy":"id: p\nname: P\ncondition: {type: sql, expression: \"run.cost_usd > 1\"}\nactions: [{type: stop_run}]\n"}}"#.to_owned(),
        r#"{"type":"proposal.approve","body":{"proposal_id":"c0","reason":"yes"}}"#.to_owned(),
        r#"{"type":"override.grant","body":{"tenant":"acme","policy_id":"run-token-ceiling","minutes":30,"reason":"r"}}"#.to_owned(),
        r#"{"type":"limit.disable","tenant_id":"*","body":{"policy_id":"run-token-ceiling","limit_id":"run-tokens"}}"#.to_owned(),
        r#"{"type":"policy_set.apply","body":{"generation":0,"digest":"d","policies":{"a.yaml":"id: a"},"queries":{"metrics/a.sql":"SELECT 1"},"prices":"","settings":"{}"}}"#.to_owned(),
        r#"{"command_id":"c-9","type":"rule.retire","tenant_id":"acme","principal":"user:eve","authority":5,"issued_at":"2033-05-18T03:33:20Z","body":{"policy_id":"p"},"key_id":"k","mac":"00ff"}"#.to_owned(),
    ];
    let mut seeds: Vec<Vec<u8>> = lines.iter().map(|l| l.clone().into_bytes()).collect();
    seeds.push(lines.join("\n").into_bytes());
    fuzz("commands", 300, &seeds, targets::commands);
}

#[test]
fn damaged_state_is_refused_or_goes_on() {
    let saved = targets::checkpoint().len();
    assert!(saved > 50, "{saved} records");
    let seeds: Vec<Vec<u8>> = (0..saved as u16)
        .flat_map(|record| {
            [0_u8, 1, 1, 1, 2, 3, 4, 5].map(|flags| [&record.to_le_bytes()[..], &[flags, 9, 0, 255]].concat())
        })
        .collect();
    let some: Vec<Vec<u8>> = seeds
        .iter()
        .step_by(if std::env::var_os("RUNWARDEN_FUZZ_SECONDS").is_some() { 1 } else { 97 })
        .cloned()
        .collect();
    fuzz("state", 12, &some, targets::state);
}
