use datafusion::arrow::array::{Array, AsArray, RecordBatch};
use datafusion::arrow::datatypes::{Decimal128Type, Float64Type, Int64Type, TimestampMicrosecondType};
use proptest::prelude::*;

use super::*;
use crate::telemetry::redacted_json;

const NOW: Wall = Wall(1_800_000_000_000_000);
const SENTINEL: &str = "5ent1nel";

fn origin(offset: i64) -> Origin {
    Origin { input: 2, topic: Arc::from("runs.telemetry"), partition: 1, offset }
}

fn prices() -> Arc<Prices> {
    let text = "version='7'\n[[price]]\nprovider='azure'\nmodel='code'\ninput=3\noutput=15\ncached=0.3\n";
    Arc::new(Prices::from_toml(text, "p").unwrap())
}

fn settings() -> Settings {
    Settings {
        attributes: ["region", "zone", "nested", "prompt"].map(String::from).to_vec(),
        prices: prices(),
        ..Settings::default()
    }
}

fn decode_with(settings: Settings, records: &[&[u8]]) -> Decoded {
    let mut decoder = Decoder::new(Arc::new(settings));
    for (i, record) in records.iter().enumerate() {
        let i = i64::try_from(i).unwrap();
        decoder.push(origin(i), i * 10, Some(record), NOW);
    }
    decoder.finish()
}

fn decode(json: &str) -> Decoded {
    decode_with(settings(), &[json.as_bytes()])
}

/// A valid event with these members added.
fn event(more: &str) -> String {
    let comma = if more.is_empty() { "" } else { "," };
    format!(r#"{{"event_time":"2026-01-02T03:04:05.678901Z","event_type":"run.step","tenant_id":"t1"{comma}{more}}}"#)
}

fn row(more: &str) -> RecordBatch {
    let decoded = decode(&event(more));
    assert_eq!(decoded.dead, [], "{more}");
    decoded.batch.rows
}

fn text(rows: &RecordBatch, at: usize) -> Option<&str> {
    let array = rows.column(at).as_string::<i32>();
    array.is_valid(0).then(|| array.value(0))
}

fn count(rows: &RecordBatch, at: usize) -> Option<i64> {
    let array = rows.column(at).as_primitive::<Int64Type>();
    array.is_valid(0).then(|| array.value(0))
}

fn money(rows: &RecordBatch) -> (Option<i128>, Option<&str>) {
    let array = rows.column(col::COST_USD).as_primitive::<Decimal128Type>();
    (array.is_valid(0).then(|| array.value(0)), text(rows, col::COST_PROVENANCE))
}

fn fault(json: &str) -> (Reason, String) {
    let decoded = decode(json);
    assert_eq!(decoded.batch.rows.num_rows(), 0, "no partial row: {json}");
    let [dead] = &decoded.dead[..] else { panic!("one dead letter: {json}") };
    (dead.reason, dead.message.clone())
}

#[test]
fn a_full_event_fills_its_columns() {
    let rows =
        row(r#""event_id":"e1","run_id":"r","agent_id":"a\u0041","input_tokens":10,"output_tokens":5,"latency_ms":7,
           "risk_score":0.25,"severity":"high","health_status":"HEALTHY","is_synthetic":true,"labels":{"b":"2","a":"1"},
           "attributes":{"region":"eu","unlisted":1},"zone":3,"running_duration_seconds":1.5,"error_message":null"#);
    assert_eq!(rows.schema(), *SCHEMA);
    assert_eq!(text(&rows, col::AGENT_ID), Some("aA"), "escapes are read");
    assert_eq!(rows.column(col::EVENT_TIME).as_primitive::<TimestampMicrosecondType>().value(0), 1_767_323_045_678_901);
    assert_eq!(count(&rows, col::TOTAL_TOKENS), Some(15));
    assert_eq!(text(&rows, col::SEVERITY), Some("HIGH"));
    assert_eq!(text(&rows, col::HEALTH_STATUS), Some("healthy"));
    assert!(rows.column(col::IS_SYNTHETIC).as_boolean().value(0));
    assert_eq!(text(&rows, col::LABELS), Some(r#"{"a":"1","b":"2"}"#));
    assert_eq!(text(&rows, col::ATTRIBUTES), Some(r#"{"region":"eu","zone":3}"#));
    assert!((rows.column(col::RISK_SCORE).as_primitive::<Float64Type>().value(0) - 0.25).abs() < f64::EPSILON);
    assert_eq!(text(&rows, col::ERROR_MESSAGE), None, "null is absent");
}

#[test]
fn total_tokens_default_to_the_halves_there_are() {
    assert_eq!(count(&row(r#""input_tokens":3"#), col::TOTAL_TOKENS), Some(3));
    assert_eq!(count(&row(r#""output_tokens":4"#), col::TOTAL_TOKENS), Some(4));
    assert_eq!(count(&row(r#""input_tokens":3,"output_tokens":4,"total_tokens":9"#), col::TOTAL_TOKENS), Some(9));
    assert_eq!(count(&row(r#""cached_tokens":4"#), col::TOTAL_TOKENS), None);
}

#[test]
fn cost_is_reported_priced_or_unknown_never_zero() {
    assert_eq!(money(&row(r#""cost_usd":0.1"#)), (Some(100_000_000), Some("reported")));
    assert_eq!(money(&row(r#""cost_usd":0"#)), (Some(0), Some("reported")), "a reported zero is one");
    let azure = r#""provider":"azure","model":"code","#;
    assert_eq!(
        money(&row(&format!(r#"{azure}"input_tokens":1000,"cached_tokens":500,"output_tokens":10"#))),
        (Some(1_800_000), Some("table:7"))
    );
    assert_eq!(money(&row(&format!(r#"{azure}"total_tokens":1000"#))), (None, Some("unknown")), "which tokens?");
    assert_eq!(money(&row(r#""provider":"azure","model":"Code","input_tokens":1"#)), (None, Some("unknown")));
    assert_eq!(money(&row("")), (None, Some("unknown")), "a step has usage, even if it does not say so");
    let beat = r#"{"event_time":0,"event_type":"agent.heartbeat","tenant_id":"t"}"#;
    assert_eq!(money(&decode(beat).batch.rows), (None, None));
}

#[test]
fn times_are_text_with_an_offset_or_epoch_milliseconds() {
    let at = |time: &str| {
        let decoded = decode(&format!(r#"{{"event_time":{time},"event_type":"run.step","tenant_id":"t"}}"#));
        decoded.batch.rows.column(col::EVENT_TIME).as_primitive::<TimestampMicrosecondType>().values().first().copied()
    };
    assert_eq!(at("1700000000123"), Some(1_700_000_000_123_000));
    assert_eq!(at("1700000000123.0"), Some(1_700_000_000_123_000));
    assert_eq!(at(r#""2023-11-14T23:13:20.1239999+01:00""#), Some(1_700_000_000_123_999), "finer digits are truncated");
    for bad in [r#""2023-11-14T22:13:20""#, r#""now""#, "1.5", "true", "[]", r#""""#] {
        assert_eq!(at(bad), None, "{bad}");
    }
}

#[test]
fn every_fault_has_its_reason() {
    let id = "x".repeat(257);
    for (json, reason) in [
        ("", Reason::Decode),
        ("{", Reason::Decode),
        ("[1]", Reason::Decode),
        ("null", Reason::Decode),
        ("{} {}", Reason::Decode),
        ("{}", Reason::MissingField),
        (r#"{"event_time":1,"event_type":"run.step"}"#, Reason::MissingField),
        (r#"{"event_time":1,"event_type":"run.step","tenant_id":""}"#, Reason::MissingField),
        (r#"{"event_time":null,"event_type":"run.step","tenant_id":"t"}"#, Reason::MissingField),
        (r#"{"event_time":1,"event_type":"run.stopped","tenant_id":"t"}"#, Reason::Decode),
        (r#"{"event_time":1,"event_type":"run.step","tenant_id":"*"}"#, Reason::Decode),
        (r#"{"event_time":1e300,"event_type":"run.step","tenant_id":"t"}"#, Reason::OutOfRange),
        (r#"{"event_time":999999999999999,"event_type":"run.step","tenant_id":"t"}"#, Reason::OutOfRange),
        (&event(r#""run_id":5"#), Reason::Decode),
        (&event(r#""run_id":"a","run_id":"b""#), Reason::Decode),
        (&event(&format!(r#""run_id":"{id}""#)), Reason::OutOfRange),
        (&event(r#""input_tokens":-1"#), Reason::OutOfRange),
        (&event(r#""input_tokens":9223372036854775808"#), Reason::OutOfRange),
        (&event(r#""input_tokens":99999999999999999999999999"#), Reason::OutOfRange),
        (&event(r#""input_tokens":1e400"#), Reason::OutOfRange),
        (&event(r#""input_tokens":1.5"#), Reason::Decode),
        (&event(r#""input_tokens":"12""#), Reason::Decode),
        (&event(r#""input_tokens":9223372036854775807,"output_tokens":1"#), Reason::OutOfRange),
        (&event(r#""cost_usd":-0.1"#), Reason::OutOfRange),
        (&event(r#""cost_usd":1000000000"#), Reason::OutOfRange),
        (&event(r#""cost_usd":"NaN""#), Reason::Decode),
        (&event(r#""risk_score":1.0001"#), Reason::OutOfRange),
        (&event(r#""risk_score":NaN"#), Reason::Decode),
        (&event(r#""risk_score":"NaN""#), Reason::Decode),
        (&event(r#""risk_score":1e400"#), Reason::OutOfRange),
        (&event(r#""consensus_pct":100.5"#), Reason::OutOfRange),
        (&event(r#""latency_ms":-5"#), Reason::OutOfRange),
        (&event(r#""timeout_seconds":-0.5"#), Reason::OutOfRange),
        (&event(r#""timeout_seconds":1e999"#), Reason::OutOfRange),
        (&event(r#""severity":"URGENT""#), Reason::Decode),
        (&event(r#""task_status":"gone""#), Reason::Decode),
        (&event(r#""is_synthetic":"yes""#), Reason::Decode),
        (&event(r#""labels":[1]"#), Reason::Decode),
        (&event(r#""labels":{"a":1}"#), Reason::Decode),
        (&event(r#""attributes":"x""#), Reason::Decode),
    ] {
        assert_eq!(fault(json).0, reason, "{json}");
    }
}

#[test]
fn the_contracts_bounds_are_inclusive() {
    let id = "x".repeat(256);
    row(&format!(
        r#""run_id":"{id}","risk_score":1,"anomaly_score":0,"consensus_pct":100,"input_tokens":9223372036854775807"#
    ));
    let rows = row(&format!(r#""error_message":"{}""#, "é".repeat(300)));
    assert_eq!(text(&rows, col::ERROR_MESSAGE).unwrap().len(), 512);
}

#[test]
fn the_future_begins_after_the_bound() {
    let mut decoder = Decoder::new(Arc::new(settings()));
    let at = |micros: i64| {
        let time = crate::telemetry::format_micros(micros);
        format!(r#"{{"event_time":"{time}","event_type":"run.step","tenant_id":"t"}}"#)
    };
    let edge = NOW.0 + 300 * SECOND;
    assert_eq!(decoder.push(origin(0), 0, Some(at(edge).as_bytes()), NOW), Pushed::Row(0));
    assert_eq!(decoder.push(origin(1), 1, Some(at(edge + 1).as_bytes()), NOW), Pushed::Dead(0));
    let decoded = decoder.finish();
    assert_eq!(decoded.dead[0].reason, Reason::Future);
    assert_eq!(decoded.dead[0].tenant_id.as_deref(), Some("t"));
}

#[test]
fn oversize_and_unreadable_bytes_are_described_unless_kept() {
    let settings = |keep| Settings { max_record_bytes: 50, keep_undecodable: keep, ..Settings::default() };
    let long = event("");
    let records: [&[u8]; 2] = [long.as_bytes(), b"\xff\xfe"];
    let decoded = decode_with(settings(false), &records);
    assert_eq!(decoded.dead[0].reason, Reason::Oversize);
    assert!(decoded.dead[0].value.starts_with(br#"{"length":"#));
    assert_eq!(decoded.dead[1].reason, Reason::Decode);
    assert!(decoded.dead[1].value.starts_with(br#"{"length":2,"sha256":""#));
    let decoded = decode_with(settings(true), &records);
    assert!(decoded.dead[0].value.starts_with(br#"{"length":"#), "what is too large is never kept");
    assert_eq!(decoded.dead[1].value, b"\xff\xfe");
}

#[test]
fn a_dead_letter_keeps_what_may_be_kept() {
    let decoded = decode(&event(r#""run_id":"r","input_tokens":-1,"prompt":"S","zone":"z","model":{"a":"S"},"x":"S""#));
    let dead = &decoded.dead[0];
    assert_eq!(dead.tenant_id.as_deref(), Some("t1"));
    assert_eq!(
        String::from_utf8_lossy(&dead.value),
        r#"{"event_time":"2026-01-02T03:04:05.678901Z","event_type":"run.step","tenant_id":"t1","run_id":"r","model":"<object>","input_tokens":-1,"attributes":{"zone":"z"}}"#
    );
    assert_eq!(dead.message, "model must be a string");
}

#[test]
fn tombstones_and_positions_are_accounted_for() {
    let mut decoder = Decoder::new(Arc::new(settings()));
    assert_eq!(decoder.push(origin(5), 50, None, NOW), Pushed::Dead(0));
    assert_eq!(decoder.push(origin(6), 60, Some(event("").as_bytes()), NOW), Pushed::Row(0));
    assert_eq!(decoder.rows(), 1);
    let decoded = decoder.finish();
    assert_eq!(decoded.batch.positions, [60]);
    assert_eq!(decoded.batch.origins, [origin(6)]);
    assert_eq!(decoded.dead[0].origin, origin(5));
    let empty = decoder.finish();
    assert_eq!(empty.batch.rows.num_rows(), 0, "finish starts anew");
}

#[test]
fn what_is_left_out_is_counted() {
    let decoded = decode(&event(&format!(r#""a":1,"b":{{}},"attributes":{{"c":1}},"title":"{}""#, "x".repeat(600))));
    assert_eq!(decoded.tally, Tally { dropped_fields: 3, cut_texts: 1 });
}

#[test]
fn a_forbidden_optional_column_is_dropped() {
    let mut settings = settings();
    settings.forbidden.extend(["human_actor_id".to_owned(), "tenant_id".to_owned()]);
    let json = event(r#""human_actor_id":"jane""#);
    let rows = decode_with(settings, &[json.as_bytes()]).batch.rows;
    assert_eq!(text(&rows, col::HUMAN_ACTOR_ID), None);
    assert_eq!(text(&rows, col::TENANT_ID), Some("t1"), "a required one cannot be");
}

#[test]
fn a_sentinel_in_forbidden_and_unknown_fields_appears_nowhere() {
    let names = FORBIDDEN.iter().map(|name| name.trim_end_matches(".*")).chain(["unknown", SENTINEL]);
    for name in names {
        let planted = [
            format!(r#""{name}":"{SENTINEL}""#),
            format!(r#""{name}":{{"text":"{SENTINEL}"}}"#),
            format!(r#""attributes":{{"{name}":"{SENTINEL}"}}"#),
            format!(r#""nested":{{"ok":1,"{name}":["{SENTINEL}"]}}"#),
            format!(r#""attributes":{{"nested":[{{"{name}":"{SENTINEL}"}}]}}"#),
        ];
        for (i, planted) in planted.iter().enumerate() {
            // unknown names within an allow-listed structure belong to what the user listed
            if i >= 3 && (name == "unknown" || name == SENTINEL) {
                continue;
            }
            for more in
                ["", r#","input_tokens":-1"#, r#","risk_score":"x""#, r#","run_id":"a","run_id":"b""#, ",broken"]
            {
                let json = event(&format!("{planted}{more}"));
                let decoded = decode(&json);
                let all = format!("{:?} {:?}", decoded.batch.rows, decoded.dead);
                let values: String =
                    decoded.dead.iter().map(|d| String::from_utf8_lossy(&d.value).into_owned()).collect();
                assert!(!all.contains(SENTINEL) && !values.contains(SENTINEL), "{json} left {all} {values}");
            }
        }
    }
    for wrong in ["input_tokens", "cost_usd", "risk_score", "labels", "attributes", "is_synthetic"] {
        let decoded = decode(&event(&format!(r#""{wrong}":"{SENTINEL}""#)));
        let dead = &decoded.dead[0];
        let value = String::from_utf8_lossy(&dead.value);
        assert!(!value.contains(SENTINEL) && !dead.message.contains(SENTINEL), "{wrong}: {value} {}", dead.message);
    }
}

fn arbitrary_event() -> impl Strategy<Value = String> {
    let texts = proptest::collection::btree_map(
        prop_oneof![
            Just("event_id"),
            Just("run_id"),
            Just("agent_id"),
            Just("model"),
            Just("provider"),
            Just("error_message"),
            Just("title"),
            Just("source"),
            Just("project_id")
        ],
        ".{0,40}",
        0..9,
    );
    let counts = proptest::collection::btree_map(
        prop_oneof![
            Just("input_tokens"),
            Just("output_tokens"),
            Just("cached_tokens"),
            Just("latency_ms"),
            Just("capacity"),
            Just("recent_responses")
        ],
        0..i64::MAX / 4,
        0..6,
    );
    let scores = proptest::collection::btree_map(
        prop_oneof![Just("risk_score"), Just("anomaly_score"), Just("reputation_score"), Just("timeout_seconds")],
        0.0..1.0_f64,
        0..4,
    );
    let rest = (
        proptest::option::of(0..999_999_999_999_999_999_i128),
        proptest::option::of(proptest::collection::btree_map(".{0,8}", ".{0,20}", 0..4)),
        proptest::option::of(proptest::collection::btree_map("region|zone|other", ".{0,20}", 0..4)),
        0..NOW.0,
    );
    (texts, counts, scores, rest).prop_map(|(texts, counts, scores, (cost, labels, attributes, at))| {
        let mut map = serde_json::Map::new();
        map.insert("event_time".into(), crate::telemetry::format_micros(at).into());
        map.insert("event_type".into(), "run.step".into());
        map.insert("tenant_id".into(), "tenant".into());
        map.extend(texts.into_iter().map(|(k, v)| (k.to_owned(), v.into())));
        map.extend(counts.into_iter().map(|(k, v)| (k.to_owned(), v.into())));
        map.extend(scores.into_iter().map(|(k, v)| (k.to_owned(), v.into())));
        if let Some(labels) = labels {
            map.insert("labels".into(), serde_json::to_value(labels).unwrap());
        }
        if let Some(attributes) = attributes {
            map.insert("attributes".into(), serde_json::to_value(attributes).unwrap());
        }
        let mut text = serde_json::Value::Object(map).to_string();
        if let Some(cost) = cost {
            text.insert_str(1, &format!("\"cost_usd\":{},", crate::telemetry::money::format(cost)));
        }
        text
    })
}

proptest! {
    #[test]
    fn a_row_written_back_decodes_to_the_same_row(json in arbitrary_event()) {
        let first = decode(&json);
        prop_assert_eq!(&first.dead, &[], "{}", json);
        let again = decode_with(settings(), &[&redacted_json(&first.batch.rows, 0)]);
        prop_assert_eq!(&again.dead, &[]);
        prop_assert_eq!(first.batch.rows, again.batch.rows);
    }

    #[test]
    fn good_records_decode_whatever_is_between_them(
        bad in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..60), 0..6),
        cuts in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        depth in 0_usize..3_000,
    ) {
        let good = event(r#""run_id":"r","input_tokens":5,"attributes":{"nested":{"a":[1,2]}},"labels":{"a":"b"}"#);
        let mut records: Vec<Vec<u8>> = Vec::new();
        for noise in bad {
            records.push(good.clone().into_bytes());
            records.push(noise);
        }
        for (at, byte) in cuts {
            let mut mutated = good.clone().into_bytes();
            let at = at.index(mutated.len());
            mutated[at] = byte;
            records.push(mutated);
            records.push(good.clone().into_bytes()[..at].to_vec());
            records.push(good.clone().into_bytes());
        }
        for open in ["[", "{\"a\":"] {
            for field in ["attributes", "nested", "x", "labels", "run_id", "cost_usd"] {
                records.push(event(&format!("\"{field}\":{}", open.repeat(depth))).into_bytes());
                let closed = "[".repeat(depth) + &"]".repeat(depth);
                records.push(event(&format!("\"{field}\":{{\"nested\":{closed}}}")).into_bytes());
            }
        }
        let decoded = decode_with(settings(), &records.iter().map(Vec::as_slice).collect::<Vec<_>>());
        prop_assert_eq!(decoded.batch.rows.num_rows() + decoded.dead.len(), records.len(), "one of both, each");
        let good_ones = records.iter().filter(|r| r.as_slice() == good.as_bytes()).count();
        prop_assert!(decoded.batch.rows.num_rows() >= good_ones);
        for (row, origin) in decoded.batch.origins.iter().enumerate() {
            prop_assert_eq!(decoded.batch.positions[row], origin.offset * 10);
        }
    }
}

fn of_headers(headers: &[(&str, &str)], payload: &str) -> Decoded {
    let mut decoder = Decoder::new(Arc::new(settings()));
    let headers: Vec<(&str, &[u8])> = headers.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
    decoder.push_with(origin(0), 0, Some(payload.as_bytes()), &headers, NOW);
    decoder.finish()
}

#[test]
fn a_cloud_event_in_binary_mode_lends_its_id_and_time() {
    let headers =
        [("ce_specversion", "1.0"), ("ce_id", "7"), ("ce_source", "//w"), ("ce_time", "2026-01-02T03:04:05Z")];
    let bare = r#"{"event_type":"run.step","tenant_id":"t"}"#;
    let decoded = of_headers(&headers, bare);
    assert!(decoded.dead.is_empty(), "{:?}", decoded.dead);
    let row = |decoded: &Decoded| String::from_utf8(crate::telemetry::redacted_json(&decoded.batch.rows, 0)).unwrap();
    let lent =
        r#"{"event_id":"//w 7","event_time":"2026-01-02T03:04:05.000000Z","event_type":"run.step","tenant_id":"t"}"#;
    assert_eq!(row(&decoded), lent);
    let own =
        r#"{"event_id":"mine","event_time":"2026-01-01T00:00:00.000000Z","event_type":"run.step","tenant_id":"t"}"#;
    assert_eq!(row(&of_headers(&headers, own)), own, "what the event says itself stands");
    assert_eq!(of_headers(&headers[..3], bare).dead[0].reason, Reason::MissingField);
}

#[test]
fn a_cloud_event_in_structured_mode_is_opened_with_and_without_its_header() {
    let event = r#"{"specversion":"1.0","id":"7","source":"//w","type":"t","time":"2026-01-02T03:04:05Z","data":{"event_type":"run.step","tenant_id":"t","prompt":"S"}}"#;
    for headers in [&[("content-type", "application/cloudevents+json")][..], &[]] {
        let decoded = of_headers(headers, event);
        assert!(decoded.dead.is_empty(), "{:?}", decoded.dead);
        let row = String::from_utf8(crate::telemetry::redacted_json(&decoded.batch.rows, 0)).unwrap();
        assert_eq!(
            row,
            r#"{"event_id":"//w 7","event_time":"2026-01-02T03:04:05.000000Z","event_type":"run.step","tenant_id":"t"}"#
        );
    }
    let bad = event.replace("run.step", "run.stepped");
    let dead = &of_headers(&[], &bad).dead[0];
    assert_eq!((dead.reason, dead.tenant_id.as_deref()), (Reason::Decode, Some("t")));
    assert!(!String::from_utf8_lossy(&dead.value).contains('S'), "what is within is redacted too");
    let announced = of_headers(&[("content-type", "application/cloudevents+json")], r#"{"event_type":"run.step"}"#);
    assert_eq!(announced.dead[0].reason, Reason::Decode, "what is announced must be one");
}
