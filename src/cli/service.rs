//! A sidecar in this process: HTTP, the shell's thread, and the signals that end it. What `run` and `demo` share.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Duration;

use prometheus::Registry;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::cli::Failure;
use crate::cli::metered::{Metered, Watching};
use crate::clock::Wall;
use crate::kafka::core::Core;
use crate::kafka::{CoreFactory, Ended, Error, Handle, Shell, ShellConfig};
use crate::metrics::Metrics;
use crate::pipeline::{Own, Partition, Settings};
use crate::serve::Health;
use crate::serve::http::{self, Views};

/// A running sidecar.
pub(super) struct Service {
    /// Its metrics.
    pub(super) metrics: Arc<Metrics>,
    /// Where HTTP listens, after port 0 became a real one.
    pub(super) address: SocketAddr,
    shell: Handle,
    ended: Receiver<Result<Ended, Error>>,
    http: Option<(watch::Sender<bool>, JoinHandle<()>)>,
}

impl Service {
    /// Starts everything.
    pub(super) fn start(
        settings: Arc<Settings>,
        shell: ShellConfig,
        listen: SocketAddr,
        config_hash: &str,
    ) -> Result<Self, Failure> {
        let names: Vec<String> = settings.metrics.iter().map(|m| m.name.clone()).collect();
        let labels: Vec<&str> = names.iter().map(String::as_str).collect();
        let metrics = Arc::new(Metrics::register(&Registry::new(), &labels).map_err(Failure::invalid)?);
        metrics.set_config_hash(config_hash);
        let health = Arc::new(Health::new(Wall::now()));
        let (address, http) = serve(listen, Views::new(Arc::clone(&health), Arc::clone(&metrics), Wall::now))?;
        let counted = Arc::clone(&metrics);
        let factory: CoreFactory = Arc::new(move |partition, partitions| {
            let core = Partition::new(Arc::clone(&settings), Own { partition, partitions })?;
            Ok(Box::new(Metered::new(core, Arc::clone(&counted), names.clone())) as Box<dyn Core>)
        });
        let observer = Arc::new(Watching::new(Arc::clone(&metrics), health));
        let shell = Shell::new(shell, factory, observer);
        let handle = shell.handle();
        let (sender, ended) = mpsc::channel();
        std::thread::Builder::new()
            .name("kafka".into())
            .spawn(move || {
                let outcome = shell.run();
                if sender.send(outcome).is_err() {
                    tracing::debug!("nobody waited for the shell's end");
                }
            })
            .map_err(Failure::reach)?;
        Ok(Self { metrics, address, shell: handle, ended, http: Some(http) })
    }

    /// Waits for the shell to end by itself, at most `within`. `None`: it goes on.
    pub(super) fn wait(&self, within: Duration) -> Option<Result<Ended, Error>> {
        match self.ended.recv_timeout(within) {
            Ok(outcome) => Some(outcome),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(Ok(Ended::Abandoned)),
        }
    }

    /// Asks the shell to commit, checkpoint and end, and waits for it.
    pub(super) fn drain(&self, within: Duration) -> Result<Ended, Error> {
        self.shell.drain(within);
        // the shell keeps its own deadline; the second on top is for its clients to close
        self.wait(within + Duration::from_secs(1)).unwrap_or(Ok(Ended::Abandoned))
    }

    /// The shell's status.
    pub(super) fn status(&self) -> Arc<crate::kafka::Status> {
        self.shell.status()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.http.take() {
            if stop.send(true).is_err() {
                tracing::debug!("HTTP had ended before");
            }
            if thread.join().is_err() {
                tracing::error!("the HTTP thread panicked");
            }
        }
    }
}

type Http = (watch::Sender<bool>, JoinHandle<()>);

fn serve(listen: SocketAddr, views: Views) -> Result<(SocketAddr, Http), Failure> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().thread_name("http").build();
    let runtime = runtime.map_err(Failure::reach)?;
    let listener = runtime
        .block_on(TcpListener::bind(listen))
        .map_err(|e| Failure::Reach(format!("cannot listen on {listen}: {e}; choose another with [http] listen")))?;
    let address = listener.local_addr().map_err(Failure::reach)?;
    let (stop, stopped) = watch::channel(false);
    let thread = std::thread::Builder::new()
        .name("http-main".into())
        .spawn(move || {
            if let Err(error) = runtime.block_on(http::serve(listener, views, stopped)) {
                tracing::error!(%error, "HTTP ended");
            }
        })
        .map_err(Failure::reach)?;
    Ok((address, (stop, thread)))
}

/// SIGINT and SIGTERM as a flag that counts.
pub(super) struct Signals(Arc<std::sync::atomic::AtomicUsize>);

impl Signals {
    /// Takes over SIGINT and SIGTERM; a third one ends the process at once.
    pub(super) fn install() -> Result<Self, Failure> {
        let count = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let mut signals = signal_hook::iterator::Signals::new([signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM])
            .map_err(Failure::reach)?;
        let counted = Arc::clone(&count);
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                for _ in signals.forever() {
                    if counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst) >= 2 {
                        std::process::exit(3);
                    }
                }
            })
            .map_err(Failure::reach)?;
        Ok(Self(count))
    }

    /// Whether one arrived.
    pub(super) fn stop(&self) -> bool {
        self.0.load(std::sync::atomic::Ordering::SeqCst) > 0
    }
}
