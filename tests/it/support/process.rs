//! The program itself, as a process.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::root;
use super::sidecar::eventually;

const SOON: Duration = Duration::from_secs(30);

/// `runwarden run` with the `runwarden.toml` of a directory; it is killed with this.
pub struct Process {
    child: Child,
    dir: tempfile::TempDir,
}

impl Process {
    pub fn start(dir: tempfile::TempDir) -> Self {
        Self::start_with(dir, &[])
    }

    /// With more in its environment.
    pub fn start_with(dir: tempfile::TempDir, environment: &[(&str, &str)]) -> Self {
        let log = fs::File::create(dir.path().join("log")).unwrap();
        let mut command = runwarden(dir.path(), &["run"]);
        let child =
            command.envs(environment.iter().copied()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        Self { child, dir }
    }

    pub fn home(&self) -> &Path {
        self.dir.path()
    }

    /// Its standard output and its log.
    pub fn said(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    /// Where it says that it listens.
    pub fn port(&self, what: &str) -> u16 {
        let needle = format!(" {what}=127.0.0.1:");
        let found = || {
            let said = self.said();
            said.split(&needle).nth(1).and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        };
        eventually("it listens", SOON, || found().is_some());
        found().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _status = self.child.wait();
    }
}

/// A subcommand with the `runwarden.toml` of a directory.
pub fn runwarden(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_runwarden"));
    let config = dir.join("runwarden.toml");
    command.args(arguments).arg("--config").arg(config).current_dir(root()).stdin(Stdio::null()).env("NO_COLOR", "1");
    command
}
