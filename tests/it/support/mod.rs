//! What several behaviour tests need: the shipped queries, real telemetry, and settings of a core.

pub mod broker;
pub mod certificates;
pub mod child;
pub mod collector;
pub mod desk;
pub mod process;
pub mod sidecar;
pub mod toy;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};

use proptest::prelude::ProptestConfig;
use runwarden::cli::load::{self, Text, Texts};
use runwarden::decide::records::Decision;
use runwarden::pipeline::Settings;

/// Settings of a property test: `default` cases, or as many as `PROPTEST_CASES` says.
pub fn cases(default: u32) -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(default);
    ProptestConfig { cases, max_shrink_iters: 200, ..ProptestConfig::default() }
}

/// The project's root.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// An hour of real LLM traffic as telemetry, one JSON event a line; `None` (said on standard error) where the data is absent.
pub fn real_hour() -> Option<&'static [String]> {
    static HOUR: OnceLock<Option<Vec<String>>> = OnceLock::new();
    HOUR.get_or_init(|| {
        let shared = root().join("../shared");
        let tool = shared.join("tools/azure_telemetry.py");
        let files: Vec<PathBuf> =
            ["conv", "code"].iter().map(|n| shared.join(format!("data/azure-llm-2023-{n}.csv"))).collect();
        if !tool.exists() || !files.iter().all(|f| f.exists()) {
            eprintln!("skipped: the real traces are not beside the project (../shared)");
            return None;
        }
        let output = Command::new("python3").arg(&tool).args(&files).output();
        match output {
            Ok(output) if output.status.success() => {
                Some(String::from_utf8(output.stdout).unwrap().lines().map(Into::into).collect())
            }
            other => {
                eprintln!("skipped: python3 cannot turn the traces into telemetry: {other:?}");
                None
            }
        }
    })
    .as_deref()
}

/// The shipped queries and prices with these policies.
pub fn texts(policies: &[(&str, &str)]) -> Texts {
    let owned = |p: &(&str, &str)| -> Text { (p.0.to_owned(), p.1.to_owned()) };
    Texts { policies: policies.iter().map(owned).collect(), ..Texts::demo() }
}

/// Settings of a simulation that reports every final window.
pub fn simulation(policies: &[(&str, &str)]) -> Arc<Settings> {
    let mut settings = load::build(&texts(policies), load::defaults()).unwrap_or_else(|e| panic!("{e:?}")).settings;
    settings.finals = true;
    settings.stream.all_finals = true;
    settings.event_clock = true;
    settings.future_at = Some(runwarden::clock::Wall(i64::MAX));
    Arc::new(settings)
}

/// What must be equal however the same decision came about: kind, id, scope, value.
pub fn essence(decision: &Decision) -> Option<String> {
    match decision {
        Decision::Signal(s) => Some(format!(
            "signal {} {} {} {} {}:{} {:?} {:?} {:?}",
            s.signal_id,
            s.kind.as_str(),
            s.mode,
            s.metric,
            s.scope.kind,
            s.scope.id,
            s.value,
            s.overshoot,
            s.reason
        )),
        Decision::Intervention(i) => Some(format!(
            "intervention {} {} {}:{} {:?} {}",
            i.intervention_id, i.kind, i.target.kind, i.target.id, i.signal_id, i.reason
        )),
        Decision::Alert(a) => Some(format!(
            "alert {} {} {} {} {} {}",
            a.alert_id,
            a.revision,
            a.status.as_str(),
            a.correlation_key,
            a.alert_count,
            a.members_total
        )),
        Decision::Audit(a) => Some(format!("audit {} {} {}", a.audit_id, a.kind, a.reason)),
        Decision::Lesson(l) => Some(format!("lesson {} {} {}", l.id, l.lesson_type.as_str(), l.detected_pattern)),
        Decision::Run(r) => {
            Some(format!("run {} {:?} {} {:?} {:?}", r.run_id, r.status, r.ended_at, r.metrics, r.signals))
        }
        Decision::Command(_) | Decision::CommandResult(_) | Decision::Guardian(_) | Decision::Policy(_) => None,
        Decision::Evaluation(e) => Some(format!("evaluation {e:?}")),
        Decision::Level(_) | Decision::Response(_) => None,
    }
}

/// The essences in order of text.
pub fn essences<'a>(decisions: impl IntoIterator<Item = &'a Decision>) -> Vec<String> {
    let mut all: Vec<String> = decisions.into_iter().filter_map(essence).collect();
    all.sort_unstable();
    all
}

/// Policies that the real hour trips: two run limits that stop, one agent limit that pauses, one tenant limit that warns, one in
/// shadow.
pub const REAL_POLICIES: &[(&str, &str)] = &[(
    "policies.yaml",
    r#"
id: run-ceiling
name: Run token ceiling
enforcement_mode: BLOCK
limits:
  - {id: run-tokens, limit_type: TOKENS_PER_RUN, category: BUDGET, metric: run_tokens, max: 40000, enforcement: BLOCK, on_breach: STOP}
  - {id: run-cost, limit_type: COST_PER_RUN, category: BUDGET, metric: run_cost_usd, max: 0.25, enforcement: BLOCK, on_breach: KILL}
---
id: agent-rate
name: Agent token rate
enforcement_mode: BLOCK
limits:
  - {id: agent-tokens, limit_type: TOKENS_PER_MINUTE, category: RATE, metric: agent_tokens_1m, max: 60000, enforcement: BLOCK, on_breach: PAUSE}
---
id: tenant-burn
name: Tenant burn rate
enforcement_mode: WARN
limits:
  - {id: burn, limit_type: TOKENS_PER_5M, category: RATE, metric: tenant_tokens_5m, max: 2500000}
  - {id: p95, limit_type: LATENCY, metric: latency_p95_ms, max: 20000}
---
id: shadow-steps
name: Steps of a run, in shadow
limits:
  - {id: steps, limit_type: RUNS_STEPS, metric: run_steps, max: 30, enforcement: BLOCK, on_breach: STOP}
"#,
)];

/// Settings of a core over these texts, with the default configuration.
pub fn load_settings(texts: &Texts) -> Settings {
    load::build(texts, load::defaults()).unwrap_or_else(|e| panic!("{e:?}")).settings
}

/// Fails with the first differences of two sorted lists, not with the lists.
pub fn assert_same(given: &[String], expected: &[String], what: &str) {
    let only = |a: &[String], b: &[String]| -> Vec<String> {
        a.iter().filter(|x| b.binary_search(x).is_err()).take(5).cloned().collect()
    };
    let (more, less) = (only(given, expected), only(expected, given));
    assert!(
        more.is_empty() && less.is_empty() && given.len() == expected.len(),
        "{what}: {} given, {} expected; only given: {more:#?}; only expected: {less:#?}",
        given.len(),
        expected.len()
    );
}
