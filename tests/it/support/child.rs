//! The toy sidecar as a child process, to be killed: this test binary runs itself again.

use std::fs::{self, File};
use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus::Registry;
use runwarden::config::Share;
use runwarden::kafka::resize::{Order, resize};
use runwarden::kafka::{ClientSettings, Ended, Event, GroupProtocol, Observer, Shell, ShellConfig, Topics};
use runwarden::metrics::Metrics;
use runwarden::traces::{self, Exporter, Tracer};
use serde::{Deserialize, Serialize};

use super::broker::signal;
use super::sidecar::{eventually, factory};
use super::toy::Toy;

const ORDERS: &str = "RUNWARDEN_TEST_CHILD";

/// What the child is to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Orders {
    pub brokers: String,
    pub prefix: String,
    pub group: String,
    pub slot: String,
    pub is_static: bool,
    pub consumer_protocol: bool,
    pub tick: Option<i64>,
    pub urgent: bool,
    pub checkpoint_ms: u64,
    /// Die without a word, in the so manieth step that has records and so many µs after it: while its transaction is open.
    pub die: Option<(u64, u64)>,
    /// See `Toy::placed`.
    pub placed: bool,
    /// Where spans of every step go.
    pub traces: Option<String>,
    /// Not a sidecar but a resize to so many partitions.
    pub resize: Option<i32>,
}

impl Orders {
    pub fn new(brokers: &str, topics: &Topics, slot: &str) -> Self {
        let prefix = topics.telemetry.strip_suffix("runs.telemetry").unwrap().to_owned();
        Self {
            brokers: brokers.to_owned(),
            group: format!("{prefix}group"),
            prefix,
            slot: slot.to_owned(),
            is_static: false,
            consumer_protocol: false,
            tick: Some(50_000),
            urgent: false,
            checkpoint_ms: 700,
            die: None,
            placed: false,
            traces: None,
            resize: None,
        }
    }

    pub fn config(&self) -> ShellConfig {
        let topics = Topics::with_prefix(&self.prefix);
        ShellConfig {
            static_membership: self.is_static,
            group_protocol: if self.consumer_protocol { GroupProtocol::Consumer } else { GroupProtocol::Classic },
            checkpoint_interval: Duration::from_millis(self.checkpoint_ms),
            // Small enough that every checkpoint takes several transactions.
            checkpoint_chunk: 60,
            session_timeout: Duration::from_secs(6),
            ..ShellConfig::new(ClientSettings::new(&self.brokers), &self.group, &self.slot, topics)
        }
    }

    fn tracer(&self) -> Option<(Arc<Tracer>, Exporter)> {
        let settings = traces::Settings {
            endpoint: self.traces.clone()?,
            headers: Vec::new(),
            timeout: Duration::from_secs(5),
            share: Share::WHOLE,
            decided_per_second: 0,
            group: self.group.clone(),
            topic: self.config().topics.telemetry,
            instance: self.slot.clone(),
        };
        let metrics = Metrics::register(&Registry::new(), &[]).unwrap();
        Some(traces::start(settings, Arc::new(metrics)).unwrap())
    }

    pub fn toy(&self) -> Toy {
        Toy { tick: self.tick, urgent: self.urgent, placed: self.placed, ..Toy::default() }
    }
}

/// Says on standard output what must not happen, and what the test waits for.
#[derive(Default)]
struct Teller {
    die: Option<(u64, u64)>,
    steps: AtomicU64,
}

impl Observer for Teller {
    fn on(&self, event: Event<'_>) {
        match event {
            Event::Stepped { records, .. } if records > 0 => {
                let step = self.steps.fetch_add(1, Ordering::Relaxed) + 1;
                if let Some((_, later)) = self.die.filter(|(at, _)| *at == step) {
                    std::thread::spawn(move || {
                        std::thread::sleep(Duration::from_micros(later));
                        std::process::abort();
                    });
                }
            }
            Event::Stepped { .. } | Event::Committed(_) => {}
            event => println!("{event:?}"),
        }
    }
}

/// Not a test of its own: the body of the child.
#[test]
fn toy_sidecar_child() {
    let Ok(orders) = std::env::var(ORDERS) else { return };
    let orders: Orders = serde_json::from_str(&orders).unwrap();
    if let Some(partitions) = orders.resize {
        let order = Order { partitions, dry_run: false, accept_loss: false, leave_backlog: false };
        let ended = resize(&orders.config(), factory(orders.toy()), Arc::new(Teller::default()), order, &|text| {
            println!("{text}")
        });
        println!("ended {ended:?}");
        std::process::exit(i32::from(ended.is_err()));
    }
    let (tracer, exporter) = orders.tracer().unzip();
    let teller = Arc::new(Teller { die: orders.die, ..Teller::default() });
    let shell = Shell::traced(orders.config(), factory(orders.toy()), teller, tracer);
    let handle = shell.handle();
    std::thread::spawn(move || {
        // The parent closes our standard input to ask for a drain, or because it died.
        let mut nothing = Vec::new();
        std::io::stdin().read_to_end(&mut nothing).unwrap();
        handle.drain(Duration::from_secs(10));
    });
    let ended = shell.run();
    drop(exporter);
    println!("ended {ended:?}");
    std::process::exit(i32::from(!matches!(ended, Ok(Ended::Drained))));
}

/// A running child.
pub struct SidecarChild {
    child: Child,
    output: PathBuf,
}

impl SidecarChild {
    pub fn start(orders: &Orders, dir: &tempfile::TempDir, n: usize) -> Self {
        let output = dir.path().join(format!("{}-{n}.out", orders.slot));
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "support::child::toy_sidecar_child", "--nocapture"])
            .env(ORDERS, serde_json::to_string(orders).unwrap())
            .stdin(Stdio::piped())
            .stdout(File::create(&output).unwrap())
            .stderr(Stdio::null())
            .spawn();
        Self { child: child.unwrap(), output }
    }

    /// What it said so far.
    pub fn said(&self) -> String {
        fs::read_to_string(&self.output).unwrap_or_default()
    }

    pub fn await_saying(&self, text: &str, within: Duration) {
        eventually(&format!("child says {text}; it said:\n{}", self.said()), within, || self.said().contains(text));
    }

    /// Waits until it has died by itself.
    pub fn mourn(mut self) -> String {
        // Waiting would close its standard input, and so ask for a drain.
        let open = self.child.stdin.take();
        let status = self.child.wait().unwrap();
        drop(open);
        assert!(status.code().is_none(), "it ended instead: {status}\n{}", self.said());
        self.said()
    }

    pub fn kill(mut self) -> String {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.said()
    }

    pub fn signal(&self, name: &str) {
        signal(&self.child, name);
    }

    /// Waits for its end; whether it was good, and what it said.
    pub fn end(mut self) -> (bool, String) {
        let status = self.child.wait().unwrap();
        (status.success(), self.said())
    }

    /// Whether it has not ended.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Asks for a drain; whether it was clean, and what it said.
    pub fn stop(mut self) -> (bool, String) {
        drop(self.child.stdin.take());
        let status = self.child.wait().unwrap();
        (status.success(), self.said())
    }
}

impl Drop for SidecarChild {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            self.child.kill().unwrap();
            self.child.wait().unwrap();
        }
    }
}
