//! `runwarden replay`: recorded telemetry into a Kafka topic, at its own pace or faster.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::cli::simulate::progress;
use crate::cli::{Failure, ReplayArguments};
use crate::clock::Micros;
use crate::kafka::ClientSettings;
use crate::kafka::core::Input;
use crate::kafka::produce::{Producer, Send};
use crate::telemetry::files::{Files, Payload};
use crate::telemetry::parse_time;

/// What a record's key is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum KeyBy {
    /// `tenant_id`, as the contract says.
    Tenant,
    /// `run_id`: runwarden re-keys.
    Run,
    /// No key: spread over the partitions.
    None,
}

/// Times the recorded pace; `None`: as fast as it goes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Speed(Option<f64>);

impl std::str::FromStr for Speed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<f64>() {
            _ if text == "max" => Ok(Self(None)),
            Ok(speed) if speed > 0.0 && speed.is_finite() => Ok(Self(Some(speed))),
            _ => Err("give a number above 0, or max".into()),
        }
    }
}

/// Longest wait between two records, whatever gap the recording has.
const LONGEST_GAP: Duration = Duration::from_secs(60);

/// Runs the subcommand.
pub(super) fn main(arguments: &ReplayArguments) -> Result<ExitCode, Failure> {
    let Speed(speed) = arguments.speed;
    let limit = crate::config::Config::default().limits.record_bytes;
    let mut files = Files::open(&arguments.telemetry, Input::Telemetry as u8, limit).map_err(Failure::unreadable)?;
    let producer = Producer::new(&ClientSettings::new(arguments.brokers.clone())).map_err(Failure::reach)?;
    let bar = progress(files.progress().1, &format!("replaying into {}", arguments.topic));
    let (mut sent, mut pace) = (0u64, Pace { speed, start: None });
    while let Some(record) = files.next().map_err(Failure::unreadable)? {
        let (Payload::Json(payload) | Payload::Bad(_, payload)) = record.payload;
        let event: Option<serde_json::Value> = serde_json::from_slice(payload).ok();
        pace.wait(event.as_ref().and_then(time_of));
        let key = event.as_ref().and_then(|e| key_of(e, arguments.key));
        let record = Send { topic: &arguments.topic, key: key.as_deref(), payload: Some(payload), ..Send::default() };
        producer.send_record(record).map_err(Failure::reach)?;
        sent += 1;
        if sent % 1024 == 0 {
            bar.set_position(files.progress().0);
        }
    }
    producer.flush(Duration::from_secs(30)).map_err(Failure::reach)?;
    bar.finish_and_clear();
    println!("{sent} records into {} on {}", arguments.topic, arguments.brokers);
    Ok(ExitCode::SUCCESS)
}

/// Holds the recording's own distances between records, divided by the speed.
struct Pace {
    speed: Option<f64>,
    start: Option<(Instant, Micros)>,
}

impl Pace {
    fn wait(&mut self, time: Option<Micros>) {
        let (Some(speed), Some(time)) = (self.speed, time) else { return };
        let (begun, first) = *self.start.get_or_insert((Instant::now(), time));
        let micros = (time.saturating_sub(first)).max(0) as f64 / speed;
        let due = begun + Duration::from_secs_f64((micros / 1e6).min(1e9));
        let left = due.saturating_duration_since(Instant::now());
        if left > LONGEST_GAP {
            // a hole in the recording: go on as if it were a minute
            self.start = Some((Instant::now() + LONGEST_GAP, time));
        }
        std::thread::sleep(left.min(LONGEST_GAP));
    }
}

fn time_of(event: &serde_json::Value) -> Option<Micros> {
    match event.get("event_time")? {
        serde_json::Value::String(text) => parse_time(text),
        number => number.as_i64()?.checked_mul(1000),
    }
}

fn key_of(event: &serde_json::Value, by: KeyBy) -> Option<Vec<u8>> {
    let field = match by {
        KeyBy::Tenant => "tenant_id",
        KeyBy::Run => "run_id",
        KeyBy::None => return None,
    };
    Some(event.get(field)?.as_str()?.as_bytes().to_vec())
}
