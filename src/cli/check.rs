//! `runwarden check`: compiles and validates everything, and says where it is wrong (W4, X2).

use std::process::ExitCode;

use crate::cli::load::{self, Loaded, Texts};
use crate::cli::{CheckArguments, Failure, delivering, paneled, securing};
use crate::clock::Wall;
use crate::config::Config;
use crate::kafka::Error;
use crate::policy::{Severity, schema_text};
use crate::serve::tables::{Bounds, Limits, Tables};

/// Runs the subcommand.
pub(super) fn main(arguments: &CheckArguments) -> Result<ExitCode, Failure> {
    if arguments.schema {
        print!("{}", schema_text());
        return Ok(ExitCode::SUCCESS);
    }
    let config = load::config(arguments.config.path())?;
    let texts = load::texts(&config)?;
    let loaded = load::build(&texts, load::tuning(&config))?;
    let empty = Tables::new(Bounds::default(), Limits::default(), Wall::now).map_err(Failure::reach)?;
    empty.filled();
    let panels = paneled::checked(&config, &empty)?;
    let unrouted = delivering::unrouted(&config, &loaded.policies);
    let unusable = delivering::unusable(&config);
    let mut unwise = securing::checked(&config)?;
    match load::shell(&config).client.check() {
        // what is checked here may be meant for another build
        Err(error @ Error::NeedsTls { .. }) => drop(unwise.insert(error.to_string())),
        taken => taken.map_err(Failure::unreadable)?,
    }
    let found = loaded.findings.iter().filter(|f| f.severity == Severity::Warning).count();
    let warnings = found + unrouted.said().len() + unusable.len() + unwise.len();
    for said in unrouted.said().iter().chain(&unusable).chain(&unwise) {
        println!("warning: {said}");
    }
    if let Some(said) = unrouted.note() {
        println!("note: {said}");
    }
    if let Some(said) = config.idle_process() {
        println!("note: {said}");
    }
    for finding in &loaded.findings {
        println!("{finding}");
    }
    if arguments.print {
        print(&config, &texts, &loaded);
    }
    for unused in &panels.unused {
        println!("note: {unused} is the query of no panel");
    }
    println!(
        "{} metrics, {} policies, {} panels, {} warnings; snapshot {}",
        loaded.settings.metrics.len(),
        loaded.policies.policies().len(),
        panels.registry.panels().len(),
        warnings,
        loaded.settings.snapshot.id()
    );
    if arguments.strict && warnings > 0 {
        return Err(Failure::Invalid(format!("{warnings} warnings, and --strict makes them errors")));
    }
    Ok(ExitCode::SUCCESS)
}

fn print(config: &Config, texts: &Texts, loaded: &Loaded) {
    println!("configuration {:012x}", config.digest());
    let idle = config.idle_roles();
    for role in &config.roles {
        let does = if idle.contains(role) { "nothing: no channel is configured" } else { role.does() };
        println!("role   {:<24} {does}", role.as_str());
    }
    for (metric, (file, _)) in loaded.settings.metrics.iter().zip(&texts.metrics) {
        let decides = if metric.query.early() {
            "at the row that crosses".to_owned()
        } else {
            format!("at close: {}", metric.query.why_not_early().unwrap_or("its value may fall"))
        };
        println!("metric {:<24} {:<12} {:<40} decides {decides}", metric.name, metric.scope.name(), file);
    }
    for policy in loaded.policies.policies() {
        for limit in &policy.limits {
            println!(
                "limit  {:<24} {:<12} {} ≤ {} (near {}), {} {}",
                format!("{}/{}", policy.id, limit.id),
                policy.enforcement_mode.as_str(),
                limit.metric,
                limit.max,
                limit.near,
                limit.enforcement.as_str(),
                limit.on_breach.as_str()
            );
        }
    }
}
