//! The panels in a process of the role serve: their files, the thread of the monitor, and the commands it sends.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::watch;

use crate::cli::Failure;
use crate::cli::keys::Keys;
use crate::cli::ordering::Orders;
use crate::clock::Wall;
use crate::config::Config;
use crate::decide::commands::Command;
use crate::kafka::ShellConfig;
use crate::policy::Fault;
use crate::serve::panels::alert::{Sender, TENANT};
use crate::serve::panels::ask::Ask;
use crate::serve::panels::files::{Loaded, Source};
use crate::serve::panels::watch::{INTERVAL, Monitor, Settings};
use crate::serve::panels::{self, Panels};

/// The thread; ends when it is dropped.
pub(super) struct Watching {
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Watching {
    fn drop(&mut self) {
        if self.stop.send(true).is_err() {
            tracing::debug!("the monitor of the panels had ended before");
        }
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the monitor of the panels panicked");
        }
    }
}

/// Where a configuration has its panels.
pub(super) fn source(config: &Config) -> Source {
    let panels = &config.paths.panels;
    // nobody has to write a registry, or queries for that of a working directory: those that runwarden is shipped with do
    let whole = panels.exists() && config.paths.queries.join("panels").exists();
    if *panels == Config::default().paths.panels && !whole {
        return Source::Shipped;
    }
    Source::Disk { registry: config.paths.panels.clone(), queries: config.paths.queries.clone() }
}

/// Every fault as text, one a line.
pub(super) fn refused(faults: &[Fault]) -> Failure {
    Failure::Invalid(faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
}

/// For `check`: the panels of a configuration, held against tables of the schema that may be empty.
pub(super) fn checked(config: &Config, tables: &dyn Ask) -> Result<Loaded, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(Failure::reach)?;
    runtime.block_on(panels::check(&source(config), tables)).map_err(|faults| refused(&faults))
}

/// Begins to watch.
pub(super) fn start(
    panels: Arc<Panels>,
    renew: Duration,
    shell: ShellConfig,
    keys: Arc<Keys>,
) -> Result<Watching, Failure> {
    let sender = Sender { principal: format!("system:serve@{}", shell.slot), tenant: TENANT.to_owned() };
    // an alert that nobody says again ends by itself
    let settings = Settings { interval: INTERVAL, renew, sender };
    let orders = Orders { shell, keys, reader: "runwarden-panel-answers" };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::reach)?;
    let (stop, stopped) = watch::channel(false);
    let work = move || {
        let monitor = Monitor::new(panels, settings, Wall::now());
        runtime.block_on(panels::watch::watch(monitor, Wall::now, |command| send(&orders, command), stopped));
    };
    let thread = std::thread::Builder::new().name("panels".into()).spawn(work).map_err(Failure::reach)?;
    Ok(Watching { stop, thread: Some(thread) })
}

/// Sends a command. One that is refused is not sent again: it would be refused again.
fn send(orders: &Orders, command: &Command) -> Result<(), String> {
    let answer = orders.send(command.clone())?;
    if answer["status"] != "ACCEPTED" {
        let reason = answer["reason"].as_str().unwrap_or_default();
        tracing::error!(
            command = command.command_id,
            kind = command.kind,
            reason,
            "an alert about a panel was refused"
        );
    }
    Ok(())
}
