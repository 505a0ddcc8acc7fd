//! `runwarden config`: what can be configured.

use std::process::ExitCode;

use crate::cli::{ConfigAction, ConfigFormat, Failure};
use crate::config;

/// Runs the subcommand.
pub(super) fn main(action: &ConfigAction) -> Result<ExitCode, Failure> {
    let ConfigAction::Reference { format } = action;
    let reference = config::reference();
    match format {
        ConfigFormat::Markdown => print!("{}", reference.markdown()),
        ConfigFormat::Json => print!("{}", reference.schema_text()),
    }
    Ok(ExitCode::SUCCESS)
}
