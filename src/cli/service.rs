//! A sidecar in this process: HTTP, the shell's thread, and the signals that end it. What `run` and `demo` share.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Duration;

use prometheus::Registry;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::cli::Failure;
use crate::cli::governing::{Governed, Governor, Reread, SetFiles};
use crate::cli::keys::Keys;
use crate::cli::load::Loaded;
use crate::cli::metered::{Counting, Metered};
use crate::cli::paneled;
use crate::cli::securing::{self, Listening};
use crate::cli::tabling::{self, Filling, Tabling};
use crate::cli::verdicting::{self, Answering, Following, Known};
use crate::cli::watching::{Sampler, Watching};
use crate::clock::Wall;
use crate::config::{Listen, Role};
use crate::kafka::core::Core;
use crate::kafka::{CoreFactory, Ended, Error, Handle, Shell, ShellConfig};
use crate::metrics::Metrics;
use crate::metrics::labels::{self, Label as _};
use crate::pipeline::{Own, Partition, terms};
use crate::serve::Health;
use crate::serve::commands::Commander;
use crate::serve::health::STARTING;
use crate::serve::http::{self, Views};
use crate::serve::panels::Panels;
use crate::serve::reads::events::News;
use crate::serve::tls::Speaks;
use crate::traces::{self, Exporter};

/// How often liveness and readiness follow the shell's status.
const BEAT: Duration = Duration::from_millis(100);
/// Lag and counters follow every so many beats.
const SAMPLE: u32 = 10;

/// A running sidecar.
pub(super) struct Service {
    /// Its metrics.
    pub(super) metrics: Arc<Metrics>,
    /// Where HTTP listens, after port 0 became a real one.
    pub(super) address: SocketAddr,
    /// `None`: another process plays the role core.
    shell: Option<Handle>,
    ended: Receiver<Result<Ended, Error>>,
    /// Keeps a process without a shell waiting instead of ended.
    _alone: Option<mpsc::Sender<Result<Ended, Error>>>,
    http: Option<Http>,
    sampler: Option<(mpsc::Sender<()>, JoinHandle<()>)>,
    governor: Option<(Arc<AtomicBool>, JoinHandle<()>)>,
    _following: Option<Following>,
    filling: Option<Filling>,
    _panels: Option<paneled::Watching>,
    /// What waits is sent when this goes, after the shell.
    _exporter: Option<Exporter>,
}

/// What a process that decides needs.
pub(super) struct Deciding {
    /// What it decides by.
    pub(super) loaded: Loaded,
    /// How it works with Kafka.
    pub(super) shell: ShellConfig,
    /// Whose terms it works under.
    pub(super) governance: Governance,
    /// What is traced, and where it goes; `None`: nothing.
    pub(super) traces: Option<traces::Settings>,
}

/// Whose terms a core works under.
pub(super) enum Governance {
    /// Those of the files it was started with (`--until-end`).
    Files,
    /// Those of the policies topic; the files are offered to it.
    Topic {
        /// To sign with, and to check with.
        keys: Arc<Keys>,
        /// The files.
        set: SetFiles,
        /// How they are read again.
        reread: Option<Reread>,
    },
}

fn govern(governor: Governor) -> Result<(Arc<AtomicBool>, JoinHandle<()>), Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let thread = std::thread::Builder::new().name("policies".into()).spawn(move || governor.run(&stopped));
    Ok((stop, thread.map_err(Failure::reach)?))
}

impl Service {
    /// Starts everything: HTTP on `listener`, then, given a `core`, the shell; `governance` says whose terms it works under. `roles`
    /// is what is said to be played; without serve there is no console. `answering`: verdicts are given;
    /// `tabling`: tables are shown.
    pub(super) fn start(
        core: Option<Deciding>,
        roles: &BTreeSet<Role>,
        listener: impl Into<Listening>,
        config_hash: &str,
        answering: Option<Answering>,
        tabling: Option<Tabling>,
    ) -> Result<Self, Failure> {
        let queries = core.iter().flat_map(|core| &core.loaded.settings.metrics);
        let names: Vec<String> = queries.map(|m| m.name.clone()).collect();
        let queries: Vec<&str> = names.iter().map(String::as_str).collect();
        let metrics = Arc::new(Metrics::register(&Registry::new(), &queries).map_err(Failure::invalid)?);
        metrics.set_config_hash(config_hash);
        let roles: Vec<labels::Role> = roles.iter().filter_map(|role| labels::Role::parse(role.as_str())).collect();
        for role in &roles {
            metrics.roles.get(*role).set(1);
        }
        let health = Arc::new(Health::new(Wall::now()));
        let views = Views::new(Arc::clone(&health), Arc::clone(&metrics), Wall::now).with_roles(roles);
        let known = Known::default();
        let following = answering.as_ref().map(|answering| verdicting::follow(answering, &known, &metrics, &health));
        let following = following.transpose()?;
        let answers = following.is_some();
        let access = Arc::new(answering.as_ref().map(|answering| answering.access.clone()).unwrap_or_default());
        let views = match answering {
            Some(Answering { access, client, topics, keys, policy_bytes, .. }) => {
                let views = views.with_api(Arc::clone(&known.verdicts), Arc::clone(&known.levels), access);
                let views = views.with_policy_bytes(policy_bytes);
                let commander = keys.map(|ring| Commander::start(&client, &topics, ring, Wall::now));
                match commander.transpose().map_err(Failure::reach)? {
                    Some(commander) => views.with_commander(Arc::new(commander)),
                    None => views,
                }
            }
            None => views,
        };
        let news = News::default();
        let mut filling = None;
        let mut watching = None;
        let views = match tabling {
            None => views,
            Some(tabling) => {
                let (explainer, shell, keys) =
                    (tabling.explainer.clone(), tabling.shell.clone(), Arc::clone(&tabling.keys));
                let simulator = tabling.simulator.clone();
                let (source, renew) = (tabling.panels.clone(), tabling.renew);
                let (tables, fills) = tabling::fill(tabling, news.clone(), access, &metrics)?;
                filling = Some(fills);
                let ask = Arc::new(tables.clone());
                let panels = Panels::load(source, ask, Arc::clone(&metrics), Wall::now());
                let panels = Arc::new(panels.map_err(|faults| paneled::refused(&faults))?);
                tables.add("panels", Box::new(panels.table()));
                watching = Some(paneled::start(Arc::clone(&panels), renew, shell, keys)?);
                views.with_tables(tables, news).with_explainer(explainer).with_simulator(simulator).with_panels(panels)
            }
        };
        let (address, http) = serve(listener.into(), views)?;
        let (sender, ended) = mpsc::channel();
        let Some(Deciding { loaded, shell, governance, traces }) = core else {
            health.ready(STARTING);
            let sampler = Some(sample(move |_| health.beat(Wall::now()))?);
            let http = Some(http);
            return Ok(Self {
                metrics,
                address,
                shell: None,
                ended,
                _alone: Some(sender),
                http,
                sampler,
                governor: None,
                _following: following,
                filling,
                _panels: watching,
                _exporter: None,
            });
        };
        let traced = traces.map(|traces| traces::start(traces, Arc::clone(&metrics))).transpose();
        let (tracer, exporter) = traced.map_err(Failure::reach)?.unzip();
        let counting =
            Counting::new(Arc::clone(&metrics), &loaded.settings.snapshot, answers.then_some(known.verdicts));
        let counting = Arc::new(counting.measuring(tracer.is_some()));
        let (settings, governed, governor) = match governance {
            Governance::Files => (Arc::new(loaded.settings), None, None),
            Governance::Topic { keys, set, reread } => {
                let own = Arc::new(terms::following(loaded.settings));
                let governed = Arc::new(Governed::default());
                let governor = Governor {
                    client: shell.client.clone(),
                    topics: shell.topics.clone(),
                    keys,
                    slot: shell.slot.clone(),
                    tuning: (*own.tuning).clone(),
                    own: Arc::clone(&own),
                    set,
                    reread,
                    governed: Arc::clone(&governed),
                    metrics: Arc::clone(&metrics),
                    health: Arc::clone(&health),
                    counting: Arc::clone(&counting),
                };
                (own, Some(governed), Some(govern(governor)?))
            }
        };
        let factory: CoreFactory = Arc::new(move |partition, partitions| {
            // the terms in force now, if they are known: those the state was kept under, most of the time
            let known = governed.as_ref().and_then(|g| g.in_force()).map(|f| Arc::clone(&f.settings));
            let settings = known.unwrap_or_else(|| Arc::clone(&settings));
            let core = Partition::new(settings, Own { partition, partitions })?;
            Ok(Box::new(Metered::new(partition, core, Arc::clone(&counting), governed.clone())) as Box<dyn Core>)
        });
        let observer = Arc::new(Watching::new(Arc::clone(&metrics), Arc::clone(&health)));
        let shell = Shell::traced(shell, factory, observer, tracer);
        let handle = shell.handle();
        let mut sampler = Sampler::new(handle.status(), Arc::clone(&metrics), health);
        let sampler = sample(move |beat| {
            sampler.beat();
            if beat.is_multiple_of(SAMPLE) {
                sampler.sample();
            }
        })?;
        std::thread::Builder::new()
            .name("kafka".into())
            .spawn(move || {
                let outcome = shell.run();
                if sender.send(outcome).is_err() {
                    tracing::debug!("nobody waited for the shell's end");
                }
            })
            .map_err(Failure::reach)?;
        let (http, sampler) = (Some(http), Some(sampler));
        Ok(Self {
            metrics,
            address,
            shell: Some(handle),
            ended,
            _alone: None,
            http,
            sampler,
            governor,
            _following: following,
            filling,
            _panels: watching,
            _exporter: exporter,
        })
    }

    /// Where SQL is answered; `None`: nowhere.
    pub(super) fn sql(&self) -> Option<SocketAddr> {
        self.filling.as_ref().map(|filling| filling.sql)
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
        let Some(shell) = &self.shell else { return Ok(Ended::Drained) };
        shell.drain(within);
        // the shell keeps its own deadline; the second on top is for its clients to close
        self.wait(within + Duration::from_secs(1)).unwrap_or(Ok(Ended::Abandoned))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // the sampler ends when its sender is gone
        let sampler = self.sampler.take().map(|(stop, thread)| {
            drop(stop);
            thread
        });
        let http = self.http.take().map(|(stop, thread)| {
            if stop.send(true).is_err() {
                tracing::debug!("HTTP had ended before");
            }
            thread
        });
        let governor = self.governor.take().map(|(stop, thread)| {
            stop.store(true, Ordering::Release);
            thread
        });
        for thread in [sampler, http, governor].into_iter().flatten() {
            if thread.join().is_err() {
                tracing::error!("a thread of the service panicked");
            }
        }
    }
}

/// Calls `look` with 0, 1, 2 … at every beat until the sender is gone.
fn sample(mut look: impl FnMut(u32) + Send + 'static) -> Result<(mpsc::Sender<()>, JoinHandle<()>), Failure> {
    let (stop, stopped) = mpsc::channel();
    let thread = std::thread::Builder::new()
        .name("sampler".into())
        .spawn(move || {
            for beat in 0u32.. {
                look(beat);
                if stopped.recv_timeout(BEAT) != Err(RecvTimeoutError::Timeout) {
                    break;
                }
            }
        })
        .map_err(Failure::reach)?;
    Ok((stop, thread))
}

type Http = (watch::Sender<bool>, JoinHandle<()>);

/// Takes the address for HTTP, and reads what it speaks TLS with.
pub(super) fn secured(listen: &Listen) -> Result<Listening, Failure> {
    let tls = securing::tls(listen.tls.as_ref(), Speaks::Http)?;
    Ok(Listening { socket: self::listen(listen.address)?, tls })
}

/// Takes an address for HTTP.
pub(super) fn listen(address: SocketAddr) -> Result<std::net::TcpListener, Failure> {
    std::net::TcpListener::bind(address)
        .map_err(|e| Failure::Reach(format!("cannot listen on {address}: {e}; choose another with [http] listen")))
}

fn serve(listening: Listening, views: Views) -> Result<(SocketAddr, Http), Failure> {
    let Listening { socket: listener, tls } = listening;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().thread_name("http").build();
    let runtime = runtime.map_err(Failure::reach)?;
    listener.set_nonblocking(true).map_err(Failure::reach)?;
    let address = listener.local_addr().map_err(Failure::reach)?;
    let listener = {
        let _inside = runtime.enter();
        TcpListener::from_std(listener).map_err(Failure::reach)?
    };
    let (stop, stopped) = watch::channel(false);
    let thread = std::thread::Builder::new()
        .name("http-main".into())
        .spawn(move || {
            if let Err(error) = runtime.block_on(http::serve(listener, tls, views, stopped)) {
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
        let mut signals =
            signal_hook::iterator::Signals::new([signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM])
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

#[cfg(test)]
mod tests;
