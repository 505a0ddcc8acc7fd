//! A worker that obeys: it sends the telemetry of its runs, follows the interventions, does what they say, and reports it.
//!
//! ```sh
//! cargo run --example worker -- --brokers localhost:9092 --tenant acme --runs 3
//! ```
//!
//! What a worker of one's own has to do is in [`Worker::obey`]: read `runwarden.interventions` as a read_committed consumer, act on
//! records whose `state` is ISSUED, once for each `intervention_id`, and report ACKNOWLEDGED and then SUCCEEDED or FAILED on
//! `runwarden.outcomes`, keyed by the tenant.
#![allow(clippy::disallowed_methods, reason = "an example outside the program: it has a clock of its own")]

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Parser;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use rdkafka::{ClientConfig, Message};
use serde_json::{Value, json};

/// How a worker takes orders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Manner {
    /// Does what it is told, and says so.
    Obedient,
    /// Hears nothing.
    Deaf,
    /// Says that it stopped, and goes on.
    Lying,
}

#[derive(Debug, Parser)]
struct Arguments {
    /// Bootstrap servers
    #[arg(long, default_value = "localhost:9092")]
    brokers: String,
    /// What the names of the topics begin with, before `runs.telemetry` and `runwarden.…`
    #[arg(long, default_value = "")]
    prefix: String,
    /// Tenant of the runs
    #[arg(long, default_value = "acme")]
    tenant: String,
    /// What the names of the runs begin with
    #[arg(long, default_value = "run")]
    run: String,
    /// How many runs, one after the other
    #[arg(long, default_value_t = 1)]
    runs: u32,
    /// Each run starts a child of its own
    #[arg(long)]
    child: bool,
    /// Tokens of a step
    #[arg(long, default_value_t = 40)]
    tokens: u64,
    /// Milliseconds between the steps of a run
    #[arg(long, default_value_t = 50)]
    pace: u64,
    /// Steps of a run that nobody stops
    #[arg(long, default_value_t = 200)]
    steps: u32,
    #[arg(long, value_enum, default_value_t = Manner::Obedient)]
    manner: Manner,
}

fn millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

struct Worker {
    arguments: Arguments,
    producer: ThreadedProducer<DefaultProducerContext>,
    consumer: BaseConsumer,
    /// Interventions dealt with: a record may be read twice.
    done: BTreeSet<String>,
    stopped: BTreeSet<String>,
    paused: BTreeSet<String>,
    /// When the latest step of a run was sent.
    sent: BTreeMap<String, Instant>,
    /// From the step that breached to the order, as this worker sees it.
    latencies: Vec<Duration>,
}

impl Worker {
    fn new(arguments: Arguments) -> Result<Self, Box<dyn Error>> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &arguments.brokers);
        let producer = config
            .clone()
            .set("enable.idempotence", "true")
            .set("linger.ms", "1")
            // the partitioner of Java clients: a tenant's records then lie where their owner reads them
            .set("partitioner", "murmur2_random")
            .create()?;
        let consumer: BaseConsumer = config
            // every worker reads all interventions, from now on
            .set("group.id", format!("worker-{}-{}", std::process::id(), millis()))
            .set("auto.offset.reset", "latest")
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_committed")
            .create()?;
        let topic = format!("{}runwarden.interventions", arguments.prefix);
        let metadata = consumer.fetch_metadata(Some(&topic), Duration::from_secs(10))?;
        let mut assignment = rdkafka::TopicPartitionList::new();
        for partition in metadata.topics().iter().flat_map(|t| t.partitions()) {
            let (_, end) = consumer.fetch_watermarks(&topic, partition.id(), Duration::from_secs(10))?;
            assignment.add_partition_offset(&topic, partition.id(), rdkafka::Offset::Offset(end))?;
        }
        consumer.assign(&assignment)?;
        Ok(Self {
            arguments,
            producer,
            consumer,
            done: BTreeSet::new(),
            stopped: BTreeSet::new(),
            paused: BTreeSet::new(),
            sent: BTreeMap::new(),
            latencies: Vec::new(),
        })
    }

    fn send(&self, topic: &str, value: &Value) -> Result<(), Box<dyn Error>> {
        let topic = format!("{}{topic}", self.arguments.prefix);
        let payload = value.to_string();
        let record = BaseRecord::to(&topic).key(&self.arguments.tenant).payload(&payload);
        self.producer.send(record).map_err(|(error, _)| error)?;
        Ok(())
    }

    fn telemetry(&mut self, kind: &str, run: &str, parent: Option<&str>, tokens: u64) -> Result<(), Box<dyn Error>> {
        let mut event = json!({
            "event_id": format!("{run}-{}-{kind}-{}", millis(), self.sent.len()), "event_time": millis(), "event_type": kind,
            "tenant_id": self.arguments.tenant, "run_id": run, "agent_id": format!("{}-agent", self.arguments.run),
        });
        if kind == "run.step" {
            event["input_tokens"] = tokens.into();
        }
        if let Some(parent) = parent {
            event["parent_run_id"] = parent.into();
        }
        self.sent.insert(run.to_owned(), Instant::now());
        self.send("runs.telemetry", &event)
    }

    fn report(&self, order: &Value, state: &str, message: &str) -> Result<(), Box<dyn Error>> {
        let outcome = json!({
            "intervention_id": order["intervention_id"], "state": state, "executor": format!("{}-worker", self.arguments.run),
            "at": millis(), "message": message,
        });
        self.send("runwarden.outcomes", &outcome)
    }

    /// Reads what came in, and does it.
    fn obey(&mut self, wait: Duration) -> Result<(), Box<dyn Error>> {
        let until = Instant::now() + wait;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let Some(message) = self.consumer.poll(left) else { return Ok(()) };
            let message = message?;
            let order: Value = match message.payload().map(serde_json::from_slice) {
                Some(Ok(order)) => order,
                _ => continue,
            };
            let text = |pointer: &str| order.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
            let (run, id, kind) = (text("/target/id"), text("/intervention_id"), text("/type"));
            let ours = text("/tenant_id") == self.arguments.tenant && text("/target/kind") == "RUN";
            if !ours || text("/state") != "ISSUED" || !run.starts_with(&self.arguments.run) {
                continue;
            }
            if self.arguments.manner == Manner::Deaf || !self.done.insert(id) {
                continue;
            }
            self.latencies.extend(self.sent.get(&run).map(Instant::elapsed));
            println!("{kind} {run}: {}", text("/reason"));
            self.report(&order, "ACKNOWLEDGED", "on it")?;
            let goes_on = self.arguments.manner == Manner::Lying;
            match kind.as_str() {
                "PAUSE" => drop(self.paused.insert(run.clone())),
                "RESUME" => drop(self.paused.remove(&run)),
                "STOP" | "KILL" if !goes_on => {
                    self.stopped.insert(run.clone());
                    self.telemetry("run.failed", &run, None, 0)?;
                }
                _ => {}
            }
            self.report(&order, "SUCCEEDED", "done")?;
        }
    }

    fn work(&mut self, run: &str) -> Result<(), Box<dyn Error>> {
        let child = format!("{run}-child");
        let pace = Duration::from_millis(self.arguments.pace);
        let tokens = self.arguments.tokens;
        self.telemetry("run.started", run, None, 0)?;
        if self.arguments.child {
            self.telemetry("run.started", &child, Some(run), 0)?;
        }
        for _ in 0..self.arguments.steps {
            if self.stopped.contains(run) && (!self.arguments.child || self.stopped.contains(&child)) {
                return Ok(());
            }
            if !self.paused.contains(run) && !self.stopped.contains(run) {
                self.telemetry("run.step", run, None, tokens)?;
            }
            self.obey(pace)?;
        }
        self.telemetry("run.completed", run, None, 0)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut worker = Worker::new(Arguments::parse())?;
    for n in 0..worker.arguments.runs {
        let run = format!("{}-{n}", worker.arguments.run);
        worker.work(&run)?;
    }
    worker.producer.flush(Duration::from_secs(10))?;
    let mut all = std::mem::take(&mut worker.latencies);
    all.sort();
    let at = |percent: usize| {
        all.get((all.len() * percent / 100).min(all.len().saturating_sub(1))).map_or(0, Duration::as_millis)
    };
    println!("stopped {} of {} runs", worker.stopped.len(), worker.arguments.runs);
    println!("latest step to order: p50 {} ms, p99 {} ms over {}", at(50), at(99), all.len());
    Ok(())
}
