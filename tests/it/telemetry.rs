//! Recorded telemetry through the shipped configuration: nothing lost, nothing twice, nothing forbidden.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use datafusion::arrow::array::AsArray;
use datafusion::arrow::compute::sum;
use datafusion::arrow::datatypes::{Decimal128Type, Int64Type};
use runwarden::clock::Wall;
use runwarden::config::Config;
use runwarden::telemetry::files::Files;
use runwarden::telemetry::schema::col;
use runwarden::telemetry::{Decoded, Decoder, Prices, parse_time, redacted_json, tenant_partition};

const NOW: Wall = Wall(2_000_000_000_000_000);

fn decoder() -> Decoder {
    let config =
        Config::load(Some(Path::new("config/runwarden.toml")), []).expect("the shipped configuration is valid");
    let text = std::fs::read_to_string(&config.paths.prices).expect("the shipped prices exist");
    let prices = Prices::from_toml(&text, "config/prices.toml").expect("the shipped prices are valid");
    Decoder::new(Arc::new(config.decoder(Arc::new(prices))))
}

fn decode_files(paths: &[PathBuf]) -> Decoded {
    let mut decoder = decoder();
    let mut files = Files::open(paths, 2, 1 << 20).expect("files open");
    let mut position = 0;
    while let Some(record) = files.next().expect("files read") {
        record.push(&mut decoder, position, NOW);
        position += 1;
    }
    decoder.finish()
}

#[test]
fn the_azure_trace_is_priced_to_the_token_and_survives_re_keying() {
    let trace = Path::new("../shared/data/azure-llm-2023-code.csv");
    let Ok(text) = std::fs::read_to_string(trace) else {
        eprintln!("skipped: {} is absent", trace.display());
        return;
    };
    let mut lines = String::new();
    let (mut input, mut output, mut events) = (0, 0, 0);
    for (i, row) in text.lines().skip(1).enumerate() {
        let mut cells = row.split(',');
        let (time, context, generated) = (cells.next().unwrap(), cells.next().unwrap(), cells.next().unwrap());
        let (context, generated) = (context.parse::<i64>().unwrap(), generated.trim().parse::<i64>().unwrap());
        (input, output, events) = (input + context, output + generated, events + 1);
        writeln!(
            lines,
            r#"{{"event_id":"e{i}","event_time":"{}Z","event_type":"run.step","tenant_id":"code","run_id":"r{}","provider":"azure","model":"code-large","input_tokens":{context},"output_tokens":{generated},"prompt":"never kept"}}"#,
            time.replace(' ', "T"),
            i % 50
        )
        .unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("code.jsonl");
    std::fs::write(&path, lines).unwrap();

    let decoded = decode_files(&[path]);
    assert_eq!(decoded.dead, []);
    let rows = &decoded.batch.rows;
    assert_eq!(rows.num_rows(), events);
    assert_eq!(decoded.tally.dropped_fields, events as u64, "every prompt was dropped and counted");
    let tokens = |at| sum(rows.column(at).as_primitive::<Int64Type>());
    assert_eq!(tokens(col::TOTAL_TOKENS), Some(input + output));
    let cost = sum(rows.column(col::COST_USD).as_primitive::<Decimal128Type>());
    assert_eq!(cost, Some(i128::from(3_000 * input + 15_000 * output)), "3 and 15 USD per million, in 10⁻⁹ USD");

    let mut again = decoder();
    for (row, origin) in decoded.batch.origins.iter().enumerate() {
        again.push(origin.clone(), decoded.batch.positions[row], Some(&redacted_json(rows, row)), NOW);
    }
    assert_eq!(again.finish().batch.rows, *rows);
}

#[test]
fn every_line_of_every_file_becomes_a_row_or_a_located_dead_letter() {
    let dir = tempfile::tempdir().unwrap();
    let good = |at: i64| format!(r#"{{"event_time":{at},"event_type":"agent.heartbeat","tenant_id":"t"}}"#);
    let a = dir.path().join("a.jsonl");
    std::fs::write(&a, [good(1), "{".to_owned(), good(3), r#"{"event_time":4}"#.to_owned()].join("\n")).unwrap();
    let b = dir.path().join("b.csv");
    std::fs::write(&b, "event_time,event_type,tenant_id\n2,agent.heartbeat,t\n5,agent.asleep,t\n").unwrap();
    let decoded = decode_files(&[a, b]);
    let rows: Vec<_> = decoded.batch.origins.iter().map(|o| (o.partition, o.offset)).collect();
    assert_eq!(rows, [(0, 1), (1, 2), (0, 3)]);
    let mut dead: Vec<_> =
        decoded.dead.iter().map(|d| (d.origin.partition, d.origin.offset, d.reason.as_str())).collect();
    dead.sort_unstable();
    assert_eq!(dead, [(0, 2, "decode"), (0, 4, "missing_field"), (1, 3, "decode")]);
}

#[test]
fn times_and_partitions_are_those_other_clients_compute() {
    assert_eq!(parse_time("2023-11-16T18:17:03.9799600Z"), Some(1_700_158_623_979_960));
    assert_eq!(tenant_partition("foobar", 1_000), (-790_332_482 & 0x7fff_ffff) % 1_000);
}
