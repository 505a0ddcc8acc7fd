//! The `runwarden` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    runwarden::cli::main()
}
