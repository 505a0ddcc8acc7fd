//! Metric files: a header of `-- key: value` lines and one SELECT.
//!
//! The header says what the value means; the SELECT says how it is computed. No I/O here: names and texts come in, metrics
//! or errors with file and line go out.

use std::sync::Arc;

use super::compile::{CompileError, Compiler};
use super::query::Query;

/// What a metric is measured on. Its key column is among the output columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "named as in contracts.md")]
pub enum Scope {
    Run,
    Agent,
    ApiKey,
    HumanActor,
    Task,
    Project,
    Provider,
    Tenant,
}

impl Scope {
    /// All scopes.
    pub const ALL: [Self; 8] = [
        Self::Run,
        Self::Agent,
        Self::ApiKey,
        Self::HumanActor,
        Self::Task,
        Self::Project,
        Self::Provider,
        Self::Tenant,
    ];

    /// The name in JSON: `RUN`, `API_KEY`, …
    pub fn name(self) -> &'static str {
        match self {
            Self::Run => "RUN",
            Self::Agent => "AGENT",
            Self::ApiKey => "API_KEY",
            Self::HumanActor => "HUMAN_ACTOR",
            Self::Task => "TASK",
            Self::Project => "PROJECT",
            Self::Provider => "PROVIDER",
            Self::Tenant => "TENANT",
        }
    }

    /// The column that names one of them.
    pub fn key(self) -> &'static str {
        match self {
            Self::Run => "run_id",
            Self::Agent => "agent_id",
            Self::ApiKey => "api_key_id",
            Self::HumanActor => "human_actor_id",
            Self::Task => "task_id",
            Self::Project => "project_id",
            Self::Provider => "provider",
            Self::Tenant => "tenant_id",
        }
    }

    /// Reads a scope in any case.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.name().eq_ignore_ascii_case(text.trim()))
    }
}

/// When results are published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Emit {
    /// At every change, where the value only rises, and at the close.
    Changes,
    /// At the close.
    Final,
}

/// A metric: a compiled query and what it means.
#[derive(Debug, Clone)]
pub struct Metric {
    /// Unique name.
    pub name: String,
    /// What it is measured on.
    pub scope: Scope,
    /// When it is published.
    pub emit: Emit,
    /// Unit of `value`, as text.
    pub unit: String,
    /// One sentence.
    pub description: String,
    /// The whole file.
    pub sql: String,
    /// Name of the file.
    pub file: String,
    /// The compiled SELECT.
    pub query: Arc<Query>,
}

/// Why a metric file is not a metric.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{file}:{line}:{} {message}{}",
    self.column.map(|c| format!("{c}:")).unwrap_or_default(),
    self.help.as_ref().map(|h| format!(" ({h})")).unwrap_or_default()
)]
pub struct MetricError {
    /// Name of the file.
    pub file: String,
    /// Line in the file, from 1.
    pub line: u64,
    /// Column in that line, from 1, where the compiler says it.
    pub column: Option<u64>,
    /// What is wrong.
    pub message: String,
    /// The fix.
    pub help: Option<String>,
}

const KEYS: [&str; 5] = ["metric", "scope", "emit", "unit", "description"];

/// Reads metric files, given as (file name, text). Returns every metric that is well formed, in the order given, and every
/// fault. Two files with the same metric name are a fault of the later one.
pub fn parse_metrics<'a>(
    files: impl IntoIterator<Item = (&'a str, &'a str)>,
    compiler: &Compiler,
) -> (Vec<Metric>, Vec<MetricError>) {
    let (mut metrics, mut errors) = (Vec::<Metric>::new(), Vec::new());
    for (file, text) in files {
        match parse_metric(file, text, compiler) {
            Ok(metric) => match metrics.iter().find(|m| m.name == metric.name) {
                Some(other) => errors.push(MetricError {
                    file: file.to_owned(),
                    line: 1,
                    column: None,
                    message: format!("the metric {} is already defined in {}", metric.name, other.file),
                    help: Some("rename one of them".to_owned()),
                }),
                None => metrics.push(metric),
            },
            Err(mut faults) => errors.append(&mut faults),
        }
    }
    (metrics, errors)
}

/// Reads one metric file.
///
/// # Errors
/// Every fault found: unknown or missing header keys, values outside their set, SQL that does not compile, missing columns.
pub fn parse_metric(file: &str, text: &str, compiler: &Compiler) -> Result<Metric, Vec<MetricError>> {
    let fault = |line: usize, message: String, help: Option<String>| MetricError {
        file: file.to_owned(),
        line: line as u64,
        column: None,
        message,
        help,
    };
    let mut faults = Vec::new();
    let mut values: [Option<(usize, &str)>; 5] = [None; 5];
    let mut end = 0;
    for (n, line) in text.lines().enumerate() {
        let trimmed = line.trim();
        if trimmed.is_empty() {
            end = n + 1;
            continue;
        }
        let Some(comment) = trimmed.strip_prefix("--") else { break };
        end = n + 1;
        let Some((key, value)) = comment.split_once(':') else { continue };
        let (key, value) = (key.trim(), value.trim());
        match KEYS.iter().position(|k| *k == key) {
            Some(i) if values[i].is_some() => faults.push(fault(n + 1, format!("`{key}` is given twice"), None)),
            Some(_) if value.is_empty() => faults.push(fault(n + 1, format!("`{key}` is empty"), None)),
            Some(i) => values[i] = Some((n + 1, value)),
            None if key.contains(' ') => {}
            None => {
                let near = KEYS
                    .iter()
                    .map(|k| (strsim::jaro_winkler(k, key), k))
                    .filter(|(score, _)| *score > 0.7)
                    .max_by(|a, b| a.0.total_cmp(&b.0));
                let help = match near {
                    Some((_, k)) => format!("did you mean `{k}`?"),
                    None => format!("known keys are {}", KEYS.join(", ")),
                };
                faults.push(fault(n + 1, format!("unknown header key `{key}`"), Some(help)));
            }
        }
    }
    for (key, value) in KEYS.iter().zip(&values) {
        if value.is_none() {
            faults.push(fault(1, format!("the header line `-- {key}: …` is missing"), None));
        }
    }
    let scope = values[1].and_then(|(line, v)| {
        let scope = Scope::parse(v);
        if scope.is_none() {
            let known: Vec<_> = Scope::ALL.iter().map(|s| s.name()).collect();
            faults.push(fault(line, format!("unknown scope `{v}`"), Some(format!("one of {}", known.join(", ")))));
        }
        scope
    });
    let emit = values[2].and_then(|(line, v)| match v {
        "changes" => Some(Emit::Changes),
        "final" => Some(Emit::Final),
        _ => {
            faults.push(fault(line, format!("unknown emit `{v}`"), Some("changes or final".to_owned())));
            None
        }
    });
    let name = values[0].map_or(file, |(_, v)| v);
    if !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
        faults.push(fault(
            values[0].map_or(1, |v| v.0),
            format!("`{name}` is not a metric name"),
            Some("letters, digits and _".to_owned()),
        ));
    }
    let query = match compiler.compile(name, text) {
        Ok(query) => Some(Arc::new(query)),
        Err(CompileError { message, line, column, help, .. }) => {
            faults.push(MetricError { column, ..fault(line.map_or(end + 1, |l| l as usize), message, help) });
            None
        }
    };
    if let (Some(query), Some(scope)) = (&query, scope) {
        for column in ["tenant_id", scope.key(), "window_start", "window_end", "value"] {
            if query.output_schema().index_of(column).is_err() {
                faults.push(fault(
                    end + 1,
                    format!("the output column {column} is missing"),
                    Some(format!("add {column} to SELECT")),
                ));
            }
        }
        if !query.keys().iter().any(|k| k == scope.key()) {
            faults.push(fault(
                end + 1,
                format!("{} is not a GROUP BY key, though the scope is {}", scope.key(), scope.name()),
                None,
            ));
        }
        if let Some(value) = query.value_column()
            && !query.output_schema().field(value).data_type().is_numeric()
        {
            faults.push(fault(end + 1, "the column value is not a number".to_owned(), None));
        }
    }
    match (query, scope, emit, values) {
        (Some(query), Some(scope), Some(emit), [Some(_), _, _, Some(unit), Some(description)]) if faults.is_empty() => {
            Ok(Metric {
                name: name.to_owned(),
                scope,
                emit,
                unit: unit.1.to_owned(),
                description: description.1.to_owned(),
                sql: text.to_owned(),
                file: file.to_owned(),
                query,
            })
        }
        _ => Err(faults),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::Settings;
    use crate::telemetry::schema::SCHEMA;

    const GOOD: &str = "-- metric: m\n-- scope: TENANT\n-- emit: final\n-- unit: runs\n-- description: d\nSELECT tenant_id, \
                        window_start, window_end, count(*) AS value FROM tumble(telemetry, event_time, INTERVAL '1 minute') \
                        GROUP BY tenant_id, window_start, window_end";

    fn compiler() -> Compiler {
        Compiler::new(Arc::clone(&SCHEMA), &Settings::default())
    }

    #[test]
    fn the_default_metrics_compile_and_decide_early_except_the_quantile() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/queries/metrics");
        let mut files: Vec<(String, String)> = std::fs::read_dir(dir)
            .unwrap()
            .map(|e| e.unwrap().path())
            .map(|p| (p.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read_to_string(&p).unwrap()))
            .collect();
        files.sort();
        let (metrics, errors) = parse_metrics(files.iter().map(|(f, t)| (f.as_str(), t.as_str())), &compiler());
        assert_eq!(errors, vec![]);
        assert_eq!(metrics.len(), 14);
        for metric in &metrics {
            assert_eq!(format!("{}.sql", metric.name), metric.file);
            assert_eq!(
                metric.query.early(),
                metric.name != "latency_p95_ms",
                "{}: {:?}",
                metric.name,
                metric.query.why_not_early()
            );
            assert_eq!(metric.emit == Emit::Final, metric.name == "latency_p95_ms");
        }
    }

    #[test]
    fn faults_name_file_line_and_the_nearest_key() {
        let text = GOOD.replace("-- emit", "-- emitt");
        let faults = parse_metric("m.sql", &text, &compiler()).unwrap_err();
        assert_eq!(faults[0].line, 3);
        assert_eq!(faults[0].help.as_deref(), Some("did you mean `emit`?"));
        assert!(faults.iter().any(|f| f.message.contains("-- emit: …` is missing")), "{faults:?}");
    }

    #[test]
    fn the_scope_needs_its_key_column() {
        assert!(parse_metric("m.sql", GOOD, &compiler()).is_ok());
        let faults = parse_metric("m.sql", &GOOD.replace("TENANT", "RUN"), &compiler()).unwrap_err();
        assert!(faults.iter().any(|f| f.message.contains("run_id")), "{faults:?}");
    }

    #[test]
    fn queries_and_engines_move_between_threads() {
        fn moves<T: Send>() {}
        fn shared<T: Send + Sync>() {}
        moves::<crate::stream::Engine>();
        shared::<Compiler>();
        shared::<Metric>();
    }

    #[test]
    fn a_syntax_error_is_placed_in_the_file() {
        let faults =
            parse_metric("m.sql", &GOOD.replace("SELECT tenant_id,", "SELECT tenant_id,,"), &compiler()).unwrap_err();
        assert_eq!(faults[0].line, 6, "{faults:?}");
        let faults = parse_metric("m.sql", &GOOD.replace("count(*)", "sum(tokenz)"), &compiler()).unwrap_err();
        let at = GOOD.lines().last().unwrap().find("count(*)").unwrap() + 1 + "sum(".len();
        assert_eq!((faults[0].line, faults[0].column), (6, Some(at as u64)), "{faults:?}");
        assert!(faults[0].to_string().starts_with(&format!("m.sql:6:{at}: ")), "{}", faults[0]);
    }
}
