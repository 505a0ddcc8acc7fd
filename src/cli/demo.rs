//! `runwarden demo`: the whole system in one process, with no broker and no set-up (O4).
//!
//! A Kafka mock, made-up traffic in which some runs misbehave, the sidecar itself, and a screen fed from the topics: what it
//! shows went through Kafka like anyone's.

use std::io::{ErrorKind, IsTerminal};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use crate::cli::edging::Edging;
use crate::cli::governing::SetFiles;
use crate::cli::service::{self, Deciding, Governance, Service, Signals};
use crate::cli::tabling::Tabling;
use crate::cli::verdicting::Answering;
use crate::cli::{DemoArguments, Failure, keys, load};
use crate::clock::Wall;
use crate::demo::feed::{Feed, Source};
use crate::demo::screen::{Places, Screen, Style};
use crate::demo::traffic::{self, Traffic};
use crate::kafka::follow::Follower;
use crate::kafka::produce::Producer;
use crate::kafka::reader::OwnedRecord;
use crate::kafka::{ClientSettings, Mock, ShellConfig, Topics};
use crate::serve::access::Access;

/// Partitions of the demo's topics: few, so that each stays under what the mock can hold.
const PARTITIONS: i32 = 2;
/// Pace of the screen.
const FRAME: Duration = Duration::from_millis(250);
/// Pace of the traffic.
const TICK: Duration = Duration::from_millis(20);
/// Where HTTP listens unless the user says otherwise or another program does already.
const PORT: u16 = 8080;
/// How long its policies may take to be in force.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long the sidecar may take to drain.
const DRAIN: Duration = Duration::from_secs(5);

/// Runs the subcommand.
pub(super) fn main(arguments: &DemoArguments) -> Result<ExitCode, Failure> {
    let log = crate::config::Log { format: crate::config::LogFormat::Human, level: "error".into() };
    crate::logging::init(&log, std::env::var("RUST_LOG").ok().as_deref()).map_err(Failure::invalid)?;
    let signals = Signals::install()?;
    let keys = Arc::new(keys::passing()?);
    let texts = load::Texts::demo();
    let tuning = load::Tuning { keys: Arc::clone(&keys.ring), ..load::defaults() };
    let loaded = load::build(&texts, tuning)?;
    let (ring, passing) = (Arc::clone(&keys.ring), Arc::clone(&keys));
    let governance = Governance::Topic { keys, set: SetFiles::new(&texts, "", &loaded), reread: None };
    let topics = Topics { partitions: PARTITIONS, replication: 1, ..Topics::default() };
    let mock = Mock::with_topics(&topics).map_err(Failure::reach)?;
    let client = mock.settings();
    let shell = ShellConfig::new(client.clone(), "runwarden", "demo", topics.clone());
    // whoever tries it out on this host needs no token
    let kept = 3_600 * crate::clock::SECOND;
    let access = Access::new(true);
    let (client_of, topics_of) = (client.clone(), topics.clone());
    let policy_bytes = crate::config::Config::default().limits.http_body_bytes;
    let answering = Answering { access, client: client_of, topics: topics_of, kept, keys: Some(ring), policy_bytes };
    let edging = Edging::passing(&client, &topics, answering.access.clone())?;
    let (listener, note) = listen(arguments.listen)?;
    let tabling = Tabling::passing(&shell, &passing);
    let service = Service::start(
        Some(Deciding { loaded, shell, governance, traces: None }),
        &crate::config::Config::default().roles,
        listener,
        "demo",
        Some(answering),
        Some(tabling),
    )?;
    let edge = edging.start(&service.metrics)?;
    let otlp = format!("http://{}", edge.address);
    let sql = service.sql().map(|address| address.to_string()).unwrap_or_default();
    let http = format!("http://{}", service.address);
    let places = Places { http, sql, otlp, brokers: mock.bootstrap().to_owned(), note };
    let terminal = std::io::stdout().is_terminal();
    let mut screen = Screen::new(std::io::stdout(), terminal, Style { color: terminal, ..Style::default() }, places);
    let started = Wall::now();
    let mut feed = Feed::new(started);
    let stop = Arc::new(AtomicBool::new(false));
    let arrived = follow(&client, &topics, &stop)?;
    // the workers begin when somebody judges them
    let patience = Instant::now() + PATIENCE;
    while service.metrics.policy_revision.get() == 0 && Instant::now() < patience && !signals.stop() {
        std::thread::sleep(TICK);
    }
    let producing = produce(&client, &topics, &stop)?;
    screen.open().map_err(Failure::reach)?;
    let until = arguments.length.map(|l| Instant::now() + l);
    let failed = loop {
        take(&arrived, &mut feed, Instant::now() + FRAME);
        let view = feed.view(Wall::now(), &service.metrics);
        screen.show(&view).map_err(Failure::reach)?;
        if signals.stop() || until.is_some_and(|u| Instant::now() >= u) {
            break None;
        }
        if let Some(outcome) = service.wait(Duration::ZERO) {
            break Some(outcome);
        }
    };
    stop.store(true, Ordering::Release);
    if producing.join().is_err() {
        return Err(Failure::Reach("the traffic ended in a panic".into()));
    }
    drop(edge);
    let outcome = failed.unwrap_or_else(|| service.drain(DRAIN));
    take(&arrived, &mut feed, Instant::now() + FRAME);
    screen.close(&feed.view(Wall::now(), &service.metrics)).map_err(Failure::reach)?;
    outcome.map_err(Failure::reach)?;
    Ok(ExitCode::SUCCESS)
}

/// Takes the address asked for; without one the usual port, or a free one and a word about it.
fn listen(address: Option<SocketAddr>) -> Result<(TcpListener, Option<String>), Failure> {
    if let Some(address) = address {
        return Ok((service::listen(address)?, None));
    }
    match TcpListener::bind((Ipv4Addr::LOCALHOST, PORT)) {
        Ok(listener) => Ok((listener, None)),
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            let note = format!("port {PORT} is taken, so this listens on a free one; --listen chooses");
            Ok((service::listen((Ipv4Addr::LOCALHOST, 0).into())?, Some(note)))
        }
        Err(error) => {
            Err(Failure::Reach(format!("cannot listen on port {PORT}: {error}; choose another with --listen")))
        }
    }
}

type Arrived = (Source, OwnedRecord, Wall);

/// Feeds what arrives until then. Topics arrive in any order, so within a frame causes come before what follows from them.
fn take(arrived: &Receiver<Arrived>, feed: &mut Feed, until: Instant) {
    let mut frame = Vec::new();
    while let Ok(arrival) = arrived.recv_timeout(until.saturating_duration_since(Instant::now())) {
        frame.push(arrival);
    }
    frame.sort_by_key(|(source, ..)| match source {
        Source::Telemetry | Source::DeadLetter => 0,
        Source::Signals => 1,
        Source::Interventions => 2,
        Source::Alerts => 3,
    });
    for (source, record, at) in frame {
        let reason = record.headers.iter().find(|(name, _)| name == "runwarden-reason");
        let reason = reason.map(|(_, value)| String::from_utf8_lossy(value).into_owned());
        feed.record(source, record.payload.as_deref().unwrap_or_default(), reason.as_deref(), at);
    }
}

/// Reads the topics the screen shows, as they grow.
fn follow(client: &ClientSettings, topics: &Topics, stop: &Arc<AtomicBool>) -> Result<Receiver<Arrived>, Failure> {
    let sources = [
        (Source::Telemetry, topics.telemetry.clone()),
        (Source::Signals, topics.signals.clone()),
        (Source::Alerts, topics.alerts.clone()),
        (Source::Interventions, topics.interventions.clone()),
        (Source::DeadLetter, topics.dead_letter.clone()),
    ];
    let names: Vec<&str> = sources.iter().map(|(_, name)| name.as_str()).collect();
    let mut follower = Follower::new(client, "runwarden-demo-screen", &names).map_err(Failure::reach)?;
    let (sender, receiver) = mpsc::channel();
    let stop = Arc::clone(stop);
    spawn("screen", move || {
        let mut idle = 0;
        // what the drain still writes is shown too
        while !stop.load(Ordering::Acquire) || idle < 20 {
            let Some(record) = follower.next(Duration::from_millis(100)) else {
                idle += 1;
                continue;
            };
            idle = 0;
            let Some((source, _)) = sources.iter().find(|(_, name)| *name == record.topic) else { continue };
            if sender.send((*source, record, Wall::now())).is_err() {
                break;
            }
        }
    })?;
    Ok(receiver)
}

/// Produces the traffic, and does as an executor does: what is ordered is done and reported.
fn produce(
    client: &ClientSettings,
    topics: &Topics,
    stop: &Arc<AtomicBool>,
) -> Result<std::thread::JoinHandle<()>, Failure> {
    let producer = Producer::new(client).map_err(Failure::reach)?;
    let mut orders =
        Follower::new(client, "runwarden-demo-worker", &[&topics.interventions]).map_err(Failure::reach)?;
    let worker = Worker { producer, telemetry: topics.telemetry.clone(), outcomes: topics.outcomes.clone() };
    let stop = Arc::clone(stop);
    spawn("traffic", move || {
        let mut traffic = Traffic::new(&traffic::Config::demo(Wall::now().0));
        while !stop.load(Ordering::Acquire) {
            // waiting for the next order is the pace
            if let Some(order) = orders.next(TICK) {
                worker.obey(&order, &mut traffic);
            }
            for event in traffic.until(Wall::now().0) {
                worker.send(&worker.telemetry, &event.tenant, &event.payload);
            }
        }
        if let Err(error) = worker.producer.flush(DRAIN) {
            tracing::warn!(%error, "the last events of the demo were not produced");
        }
    })
}

struct Worker {
    producer: Producer,
    telemetry: String,
    outcomes: String,
}

impl Worker {
    fn obey(&self, order: &OwnedRecord, traffic: &mut Traffic) {
        let order = order.payload.as_deref().and_then(|p| serde_json::from_slice::<serde_json::Value>(p).ok());
        let text = |pointer: &str| order.as_ref()?.pointer(pointer)?.as_str();
        let (Some(kind), Some(target), Some(who)) = (text("/type"), text("/target/kind"), text("/target/id")) else {
            return;
        };
        if text("/state") != Some("ISSUED") {
            return;
        }
        let now = Wall::now();
        let (done, last) = match (kind, target) {
            ("STOP" | "KILL", "RUN") => {
                let last = traffic.stop_run(who, now.0);
                (last.is_some(), last)
            }
            ("PAUSE", "AGENT") => (traffic.pause_agent(who, now.0), None),
            _ => (false, None),
        };
        if let (true, Some(id), Some(tenant)) = (done, text("/intervention_id"), text("/tenant_id")) {
            let outcome = serde_json::json!({
                "intervention_id": id, "state": "SUCCEEDED", "executor": "demo-worker",
                "at": crate::telemetry::format_micros(now.0),
            });
            self.send(&self.outcomes, tenant, &outcome.to_string());
        }
        if let Some(event) = last {
            self.send(&self.telemetry, &event.tenant, &event.payload);
        }
    }

    fn send(&self, topic: &str, tenant: &str, payload: &str) {
        if let Err(error) = self.producer.send(topic, tenant.as_bytes(), payload.as_bytes()) {
            tracing::warn!(%error, "an event of the demo was not produced");
        }
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<std::thread::JoinHandle<()>, Failure> {
    std::thread::Builder::new().name(name.into()).spawn(body).map_err(Failure::reach)
}
