use std::io::Write as _;

use ::parquet::arrow::ArrowWriter;
use datafusion::arrow::array::{
    ArrayRef, AsArray, Decimal128Array, Float64Array, Int32Array, MapBuilder, RecordBatch, StringArray, StringBuilder,
    TimestampNanosecondArray,
};
use datafusion::arrow::datatypes::{Decimal128Type, Int64Type, TimestampMicrosecondType};
use tempfile::TempDir;

use super::*;
use crate::telemetry::schema::col;
use crate::telemetry::{Decoded, Settings};

fn write(dir: &TempDir, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
    let path = dir.path().join(name);
    std::fs::File::create(&path).unwrap().write_all(text.as_ref()).unwrap();
    path
}

fn step(time: &str, run: &str) -> String {
    format!(r#"{{"event_time":"{time}","event_type":"run.step","tenant_id":"t","run_id":"{run}"}}"#) + "\n"
}

/// Decodes all of the files with small records allowed.
fn decode(paths: &[PathBuf]) -> Decoded {
    let settings = Settings { max_record_bytes: 400, attributes: vec!["region".to_owned()], ..Settings::default() };
    let mut decoder = Decoder::new(Arc::new(settings));
    let mut files = Files::open(paths, 2, 400).unwrap();
    let mut position = 0;
    while let Some(record) = files.next().unwrap() {
        record.push(&mut decoder, position, Wall(2_000_000_000_000_000));
        position += 1;
    }
    let (read, total) = files.progress();
    assert_eq!(read, total, "all is read at the end");
    decoder.finish()
}

fn texts(decoded: &Decoded, at: usize) -> Vec<String> {
    decoded.batch.rows.column(at).as_string::<i32>().iter().map(|v| v.unwrap_or("").to_owned()).collect()
}

#[test]
fn json_lines_decode_and_bad_lines_are_located() {
    let dir = TempDir::new().unwrap();
    let long = step("2026-01-01T00:00:02Z", &"x".repeat(1_000));
    let text = format!(
        "\u{feff}{}\r\n\n  \nnot json\n{long}{}",
        step("2026-01-01T00:00:00Z", "a").trim_end(),
        step("2026-01-01T00:00:03Z", "b").trim_end()
    );
    let path = write(&dir, "a.jsonl", text);
    let decoded = decode(std::slice::from_ref(&path));
    assert_eq!(texts(&decoded, col::RUN_ID), ["a", "b"], "the last line needs no newline");
    assert_eq!(decoded.batch.origins[1].offset, 6);
    let dead: Vec<_> = decoded.dead.iter().map(|d| (d.origin.offset, d.reason)).collect();
    assert_eq!(dead, [(4, Reason::Decode), (5, Reason::Oversize)]);
    assert_eq!(&*decoded.dead[0].origin.topic, path.display().to_string());
}

#[test]
fn several_files_are_merged_by_event_time_and_ties_go_to_the_earlier_file() {
    let dir = TempDir::new().unwrap();
    let at = |s: u32| format!("2026-01-01T00:00:{s:02}Z");
    let a = write(&dir, "a.jsonl", step(&at(1), "a1") + &step(&at(5), "a5") + &step(&at(6), "a6"));
    let csv = format!("event_time,event_type,tenant_id,run_id\n{},run.step,t,b2\n{},run.step,t,b5\n", at(2), at(5));
    let b = write(&dir, "b.csv", csv);
    let c = write(&dir, "c.ndjson", step(&at(3), "c3") + "broken\n" + &step(&at(7), "c7"));
    let decoded = decode(&[a, b, c]);
    assert_eq!(texts(&decoded, col::RUN_ID), ["a1", "b2", "c3", "a5", "b5", "a6", "c7"]);
    assert_eq!(decoded.batch.positions, [0, 1, 2, 4, 5, 6, 7], "the broken line stands behind the one before it");
    assert_eq!(decoded.dead[0].origin.partition, 2);
}

#[test]
fn csv_cells_take_the_types_of_their_fields() {
    let dir = TempDir::new().unwrap();
    let csv = "event_time,event_type,tenant_id,run_id,input_tokens,cost_usd,risk_score,is_synthetic,labels,attributes,other\n\
        1700000000000,run.step,t,007,12,0.10,0.5,TRUE,\"{\"\"a\"\":\"\"1\"\"}\",\"{\"\"region\"\":\"\"eu\"\"}\",zzz\n\
        2023-11-14T22:13:21Z,run.step,t,\"multi\nline\",,,,,,,\n\
        1700000002000,run.step,t,r,twelve,,,,,,\n\
        1700000003000,run.step,t\n\
        1700000004000,run.step,t,r,,,,maybe,,,\n\
        1700000005000,run.step,t,r,,,,,{,,\n";
    let decoded = decode(&[write(&dir, "a.csv", csv)]);
    assert_eq!(texts(&decoded, col::RUN_ID), ["007", "multi\nline"]);
    let rows = &decoded.batch.rows;
    assert_eq!(
        rows.column(col::EVENT_TIME).as_primitive::<TimestampMicrosecondType>().values()[..],
        [1_700_000_000_000_000, 1_700_000_001_000_000]
    );
    assert_eq!(rows.column(col::INPUT_TOKENS).as_primitive::<Int64Type>().value(0), 12);
    assert!(rows.column(col::INPUT_TOKENS).is_null(1), "an empty cell is missing");
    assert_eq!(rows.column(col::COST_USD).as_primitive::<Decimal128Type>().value(0), 100_000_000);
    assert!(rows.column(col::IS_SYNTHETIC).as_boolean().value(0));
    assert_eq!(texts(&decoded, col::LABELS)[0], r#"{"a":"1"}"#);
    assert_eq!(texts(&decoded, col::ATTRIBUTES)[0], r#"{"region":"eu"}"#);
    let dead: Vec<_> = decoded.dead.iter().map(|d| (d.origin.offset, d.message.as_str())).collect();
    assert_eq!(
        dead,
        [
            (5, "input_tokens must be an integer"),
            (6, "the row has 3 cells, the header 11"),
            (7, "is_synthetic must be true or false"),
            (8, "labels must be an object"),
        ]
    );
}

#[test]
fn parquet_rows_decode_whatever_their_physical_types() {
    let dir = TempDir::new().unwrap();
    let mut labels = MapBuilder::new(None, StringBuilder::new(), StringBuilder::new());
    labels.keys().append_value("k");
    labels.values().append_value("v");
    labels.append(true).unwrap();
    labels.append(false).unwrap();
    labels.append(false).unwrap();
    let times = TimestampNanosecondArray::from(vec![1_700_000_000_000_001_999, 1_700_000_001_000_000_000, 0]);
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("event_time", Arc::new(times.with_timezone("+02:00"))),
        ("event_type", Arc::new(StringArray::from(vec!["run.step", "run.step", "run.step"]))),
        ("tenant_id", Arc::new(StringArray::from(vec![Some("t"), Some("t"), None]))),
        ("input_tokens", Arc::new(Int32Array::from(vec![Some(5), None, None]))),
        (
            "cost_usd",
            Arc::new(Decimal128Array::from(vec![Some(125), None, None]).with_precision_and_scale(10, 2).unwrap()),
        ),
        ("risk_score", Arc::new(Float64Array::from(vec![Some(0.25), Some(f64::NAN), None]))),
        ("labels", Arc::new(labels.finish())),
        ("attributes", Arc::new(StringArray::from(vec![Some(r#"{"region":"eu"}"#), None, None]))),
    ];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let path = dir.path().join("a.parquet");
    let mut writer = ArrowWriter::try_new(std::fs::File::create(&path).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();

    let decoded = decode(&[path]);
    let rows = &decoded.batch.rows;
    assert_eq!(rows.num_rows(), 1);
    assert_eq!(
        rows.column(col::EVENT_TIME).as_primitive::<TimestampMicrosecondType>().value(0),
        1_700_000_000_000_001,
        "nanoseconds are truncated"
    );
    assert_eq!(rows.column(col::INPUT_TOKENS).as_primitive::<Int64Type>().value(0), 5);
    assert_eq!(rows.column(col::COST_USD).as_primitive::<Decimal128Type>().value(0), 1_250_000_000);
    assert_eq!(texts(&decoded, col::LABELS), [r#"{"k":"v"}"#]);
    assert_eq!(texts(&decoded, col::ATTRIBUTES), [r#"{"region":"eu"}"#]);
    let dead: Vec<_> = decoded.dead.iter().map(|d| (d.origin.offset, d.reason)).collect();
    assert_eq!(dead, [(2, Reason::Decode), (3, Reason::MissingField)], "NaN is no number");
}

#[test]
fn files_that_cannot_be_read_are_errors_with_their_name() {
    let dir = TempDir::new().unwrap();
    for (path, part) in [
        (dir.path().join("absent.jsonl"), "absent.jsonl: cannot read it"),
        (write(&dir, "a.txt", ""), "a.txt: name it .jsonl"),
        (write(&dir, "b.parquet", "no"), "b.parquet: it is not Parquet"),
        (write(&dir, "c.csv", ""), "c.csv: it has no header"),
        (write(&dir, "d.csv", "a,a\n"), "d.csv: the header's column 2"),
    ] {
        let error = Files::open(&[path], 2, 100).err().unwrap().to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn no_files_and_empty_files_end_at_once() {
    let dir = TempDir::new().unwrap();
    assert!(Files::open(&[], 2, 100).unwrap().next().unwrap().is_none());
    let decoded = decode(&[write(&dir, "a.jsonl", ""), write(&dir, "b.jsonl", "\n\n")]);
    assert_eq!(decoded.batch.rows.num_rows() + decoded.dead.len(), 0);
}
