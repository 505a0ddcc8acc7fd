//! Log set-up: to standard error, for people or as JSON; the level from `RUST_LOG` or the configuration. What is logged while a step is
//! worked on carries its span: `step`, and `trace_id` where it is traced.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

use crate::clock::{Micros, Wall};
use crate::config::{Log, LogFormat};

/// Reads a level, or directives such as `info,rdkafka=warn`.
///
/// # Errors
/// Text that is neither.
pub fn filter(level: &str) -> Result<EnvFilter, ParseError> {
    EnvFilter::builder().parse(level)
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `RUST_LOG` or `[log] level` is no filter.
    #[error("{name} is neither a level nor directives such as \"info,rdkafka=warn\"")]
    Filter {
        /// The setting.
        name: &'static str,
        /// What the parser says.
        source: ParseError,
    },
    /// Logging was set up before.
    #[error("logging is already set up")]
    Twice,
}

/// Sets the process's logging up, once. `rust_log` is the value of `RUST_LOG`; it wins over the configuration.
///
/// # Errors
/// A filter that cannot be read, or a second call.
pub fn init(log: &Log, rust_log: Option<&str>) -> Result<(), Error> {
    let (name, level) = match rust_log {
        Some(level) if !level.is_empty() => ("RUST_LOG", level),
        _ => ("log.level", log.level.as_str()),
    };
    let filter = filter(level).map_err(|source| Error::Filter { name, source })?;
    let ansi = std::io::stderr().is_terminal();
    install(log.format, filter, ansi, BoxMakeWriter::new(std::io::stderr)).map_err(|_| Error::Twice)
}

type Installed = Result<(), Box<dyn std::error::Error + Send + Sync>>;

fn install(format: LogFormat, filter: EnvFilter, ansi: bool, writer: BoxMakeWriter) -> Installed {
    use tracing_subscriber::util::SubscriberInitExt as _;
    subscriber(format, filter, ansi, writer).try_init().map_err(Into::into)
}

fn subscriber(
    format: LogFormat,
    filter: EnvFilter,
    ansi: bool,
    writer: BoxMakeWriter,
) -> Box<dyn tracing::Subscriber + Send + Sync> {
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(ansi).with_writer(writer);
    match format {
        LogFormat::Human => Box::new(builder.finish()),
        LogFormat::Json => Box::new(builder.json().flatten_event(true).with_span_list(false).finish()),
    }
}

/// Says whether a recurring cause may be logged again, so that one broken producer does not fill the log.
#[derive(Debug)]
pub struct Limiter {
    interval: Micros,
    causes: Mutex<BTreeMap<&'static str, Cause>>,
}

#[derive(Debug)]
struct Cause {
    last: Wall,
    suppressed: u64,
}

impl Limiter {
    /// Allows each cause once per `interval` (µs).
    pub const fn new(interval: Micros) -> Self {
        Self { interval, causes: Mutex::new(BTreeMap::new()) }
    }

    /// `Some(n)` if `cause` may be logged now, `n` being how often it was held back since the last time; else `None`.
    pub fn allow(&self, cause: &'static str, now: Wall) -> Option<u64> {
        let mut causes = self.causes.lock().unwrap_or_else(PoisonError::into_inner);
        match causes.get_mut(cause) {
            Some(known) if now.0.saturating_sub(known.last.0) < self.interval => {
                known.suppressed += 1;
                None
            }
            Some(known) => {
                known.last = now;
                Some(std::mem::take(&mut known.suppressed))
            }
            None => {
                causes.insert(cause, Cause { last: now, suppressed: 0 });
                Some(0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, level: &str) -> String {
        let sink = Sink::default();
        let writer = sink.clone();
        let subscriber = subscriber(format, filter(level).unwrap(), false, BoxMakeWriter::new(move || writer.clone()));
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(partition = 3, "assigned");
            tracing::debug!("hidden");
        });
        let bytes = sink.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn json_lines_carry_fields_and_the_level_filters() {
        let line = logged(LogFormat::Json, "info");
        let json: serde_json::Value = serde_json::from_str(line.trim()).unwrap();
        assert_eq!(json["partition"], 3);
        assert_eq!(json["message"], "assigned");
        assert_eq!(json["level"], "INFO");
        assert_eq!(logged(LogFormat::Json, "warn"), "");
    }

    #[test]
    fn human_lines_are_plain_without_a_terminal() {
        let line = logged(LogFormat::Human, "info");
        assert!(line.contains("INFO") && line.contains("assigned partition=3") && !line.contains('\u{1b}'), "{line}");
        assert_eq!(line.lines().count(), 1);
    }

    /// Logs in a step, of which it becomes known that it is traced.
    fn in_a_step(format: LogFormat) -> String {
        let sink = Sink::default();
        let writer = sink.clone();
        let subscriber = subscriber(format, filter("warn").unwrap(), false, BoxMakeWriter::new(move || writer.clone()));
        tracing::subscriber::with_default(subscriber, || {
            let span = tracing::error_span!("step", step = "3/42", trace_id = tracing::field::Empty);
            span.in_scope(|| tracing::warn!(decision_id = "d-1", "first"));
            span.record("trace_id", "4bf9");
            span.in_scope(|| tracing::warn!("second"));
        });
        let bytes = sink.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn lines_of_a_step_carry_its_id_and_that_of_its_trace() {
        let lines = in_a_step(LogFormat::Json);
        let lines: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines[0]["span"], serde_json::json!({"name": "step", "step": "3/42"}));
        assert_eq!(lines[0]["decision_id"], "d-1");
        assert_eq!((&lines[1]["span"]["step"], &lines[1]["span"]["trace_id"]), (&"3/42".into(), &"4bf9".into()));
        let lines = in_a_step(LogFormat::Human);
        assert!(lines.contains("step{step=\"3/42\"") && lines.contains("trace_id=\"4bf9\"}"), "{lines}");
    }

    #[test]
    fn a_filter_that_is_none_is_refused() {
        assert!(filter("info,rdkafka=warn").is_ok());
        assert!(filter("rdkafka=loud").is_err());
        let log = Log { format: LogFormat::Human, level: "info".to_owned() };
        assert!(matches!(init(&log, Some("a=b=c")), Err(Error::Filter { name: "RUST_LOG", .. })));
    }

    #[test]
    fn a_cause_is_logged_once_per_interval_and_says_what_it_held_back() {
        let limiter = Limiter::new(10);
        assert_eq!(limiter.allow("a", Wall(0)), Some(0));
        assert_eq!(limiter.allow("a", Wall(9)), None);
        assert_eq!(limiter.allow("b", Wall(9)), Some(0), "causes are apart");
        assert_eq!(limiter.allow("a", Wall(10)), Some(1));
    }
}
