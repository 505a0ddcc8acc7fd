//! What the role edge runs beside verdicts: the OTLP receiver, and the bridge from a collector's topic.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::watch;

use crate::cli::securing::{self, Listening};
use crate::cli::{Failure, load, verdicting};
use crate::clock::Wall;
use crate::config::{Config, Role};
use crate::edge::receiver::DELIVERED_WITHIN;
use crate::edge::{Bridge, Receiver};
use crate::kafka::outbox::Outbox;
use crate::kafka::{ClientSettings, Topics};
use crate::metrics::Metrics;
use crate::serve::access::Access;
use crate::serve::http;
use crate::serve::tls::Speaks;
use crate::telemetry::otlp::Mapper;

/// How long the last events may take to be delivered.
const FLUSH: Duration = Duration::from_secs(2);
/// Requests that are unpacked and read at once.
const READERS: usize = 2;

/// Where spans come from and go to.
pub(super) struct Edging {
    config: Config,
    client: ClientSettings,
    topics: Topics,
    access: Access,
    listening: Listening,
}

impl Edging {
    /// Of a configuration, with its address taken; `None`: the process does not play the role edge.
    pub(super) fn of(config: &Config) -> Result<Option<Self>, Failure> {
        if !config.roles.contains(&Role::Edge) {
            return Ok(None);
        }
        let shell = load::shell(config);
        let access = verdicting::access(config)?;
        let address = config.otlp.listen;
        let listener = TcpListener::bind(address).map_err(|e| {
            Failure::Reach(format!("cannot listen on {address} for OTLP: {e}; choose another with [otlp] listen"))
        })?;
        let tls = securing::tls(config.otlp.tls.as_ref(), Speaks::Http)?;
        let (client, topics, listening) = (shell.client, shell.topics, Listening { socket: listener, tls });
        Ok(Some(Self { config: config.clone(), client, topics, access, listening }))
    }

    /// With defaults, on the usual port or, where that is taken, on a free one.
    pub(super) fn passing(client: &ClientSettings, topics: &Topics, access: Access) -> Result<Self, Failure> {
        let config = Config::default();
        let address = config.otlp.listen;
        let listener = match TcpListener::bind(address) {
            Err(error) if error.kind() == ErrorKind::AddrInUse => TcpListener::bind((address.ip(), 0)),
            bound => bound,
        };
        let listening = listener.map_err(Failure::reach)?.into();
        Ok(Self { config, client: client.clone(), topics: topics.clone(), access, listening })
    }

    /// Begins to take spans.
    pub(super) fn start(self, metrics: &Arc<Metrics>) -> Result<Edge, Failure> {
        let Self { config, client, topics, access, listening } = self;
        let address = listening.socket.local_addr().map_err(Failure::reach)?;
        let mapper = Arc::new(Mapper::new(config.mapping()));
        let outbox = Arc::new(Outbox::new(&client, DELIVERED_WITHIN).map_err(Failure::reach)?);
        let telemetry: Arc<str> = topics.telemetry.as_str().into();
        let receiver = Receiver::new(
            Arc::clone(&mapper),
            Arc::clone(&outbox),
            Arc::clone(&telemetry),
            access,
            (config.otlp.request_bytes, config.otlp.in_flight_bytes),
            Arc::clone(metrics),
            Wall::now,
        );
        let stopped = Arc::new(AtomicBool::new(false));
        let mut edge = Edge { address, outbox: Arc::clone(&outbox), stop: None, stopped, threads: Vec::new() };
        edge.listen(listening, receiver)?;
        if let Some(topic) = config.otlp.topic.clone() {
            let shell = load::shell(&config);
            let bridge = Bridge {
                shell,
                group: format!("{}-otlp", config.kafka.group),
                topic,
                encoding: config.otlp.encoding,
                mapper,
                outbox,
                telemetry,
                dead_letter: topics.dead_letter.as_str().into(),
                keep_undecodable: config.telemetry.keep_undecodable,
                source: format!("urn:runwarden:{}", config.kafka.group),
                metrics: Arc::clone(metrics),
            };
            let stopped = Arc::clone(&edge.stopped);
            let thread = std::thread::Builder::new().name("otlp-bridge".into()).spawn(move || bridge.run(&stopped));
            edge.threads.push(thread.map_err(Failure::reach)?);
        }
        Ok(edge)
    }
}

/// The threads; they end, what is under way first, when this is dropped.
pub(super) struct Edge {
    /// Where OTLP is taken.
    pub(super) address: SocketAddr,
    outbox: Arc<Outbox>,
    stop: Option<watch::Sender<bool>>,
    stopped: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Edge {
    fn listen(&mut self, listening: Listening, receiver: Receiver) -> Result<(), Failure> {
        let Listening { socket: listener, tls } = listening;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(READERS)
            .enable_all()
            .thread_name("otlp")
            .build();
        let runtime = runtime.map_err(Failure::reach)?;
        listener.set_nonblocking(true).map_err(Failure::reach)?;
        let listener = {
            let _inside = runtime.enter();
            tokio::net::TcpListener::from_std(listener).map_err(Failure::reach)?
        };
        let (stop, stopping) = watch::channel(false);
        let body = move || {
            if let Err(error) = runtime.block_on(http::listen(listener, tls, receiver.routes(), stopping)) {
                tracing::error!(%error, "OTLP is no longer taken");
            }
            runtime.shutdown_background();
        };
        let thread = std::thread::Builder::new().name("otlp-main".into()).spawn(body).map_err(Failure::reach)?;
        self.stop = Some(stop);
        self.threads.push(thread);
        Ok(())
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Release);
        if self.stop.take().is_some_and(|stop| stop.send(true).is_err()) {
            tracing::debug!("OTLP had ended before");
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread that takes spans panicked");
            }
        }
        if let Err(error) = self.outbox.flush(FLUSH) {
            tracing::warn!(%error, "events of spans were not delivered; who sent them was not told otherwise, and sends them again");
        }
    }
}
