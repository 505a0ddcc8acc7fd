//! Subcommands: the only room that may know every other.

use std::process::ExitCode;

/// Parses the command line, runs the subcommand and returns its exit code (0 done, 1 invalid input, 2 usage, 3 could not
/// reach or write).
pub fn main() -> ExitCode {
    ExitCode::SUCCESS
}
