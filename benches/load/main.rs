//! The shipped binary on a real Apache Kafka, measured from outside: `cargo bench --bench load -- [WHAT…]`.
//!
//! Each measurement is one of the bars: what was measured stands beside what it should be, a miss as a miss. The broker is one
//! that `scripts/kafka` starts in a temporary directory, or the one at `RUNWARDEN_TEST_BROKERS`. The sidecar is the binary of
//! this build, on the first core; broker and driver are on the others.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a bench that cannot go on should stop")]

mod measures;
mod reads;
#[path = "../reference/mod.rs"]
mod reference;
mod rig;
mod simulate;

use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use rig::{Broker, Row};

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// Size of the stripped release binary
    Size,
    /// One metric over the Azure hour, played many times: `simulate` on one core
    Simulate,
    /// Start to ready, with no state
    Start,
    /// Kafka to Kafka, exactly once, beside the plain consume rate
    Throughput,
    /// Event to committed intervention at 10,000 events/s; bytes of checkpoints and steps; memory
    Steady,
    /// kill -9 to the first decision: restart in the same slot, and the next owner
    Takeover,
    /// A million live runs: memory and restore
    Million,
    /// 200 panel requests a second beside 10,000 events/s
    Panels,
    /// A million violations of 30 days in the tables: reading them, and asking
    Violations,
}

/// Measures the shipped binary on a real Kafka against the bars.
#[derive(Debug, Parser)]
struct Arguments {
    /// What to measure; nothing: all of it, in this order
    what: Vec<What>,
    /// Also write the rows as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// A tenth of the work: to see that it runs, not to quote
    #[arg(long)]
    quick: bool,
    /// What cargo passes
    #[arg(long, hide = true)]
    bench: bool,
    /// What `cargo test --benches` passes
    #[arg(long, hide = true)]
    test: bool,
}

fn main() {
    if let Some(brokers) = rig::consume_orders() {
        return rig::consume(&brokers);
    }
    let arguments = Arguments::parse();
    if arguments.test {
        return;
    }
    let what = if arguments.what.is_empty() { What::value_variants().to_vec() } else { arguments.what };
    let broker = std::cell::OnceCell::new();
    let broker = || broker.get_or_init(Broker::start);
    let share = if arguments.quick { 10 } else { 1 };
    let mut rows: Vec<Row> = Vec::new();
    for what in what {
        eprintln!("== {what:?}");
        let measured = match what {
            What::Size => measures::size(),
            What::Simulate => simulate::simulate(40 / share),
            What::Start => measures::start(broker()),
            What::Throughput => measures::throughput(broker(), 3_000_000 / share),
            What::Steady => measures::steady(broker(), 90 / share as u64),
            What::Takeover => measures::takeover(broker()),
            What::Million => measures::million(broker(), 1_000_000 / share),
            What::Panels => reads::beside(broker(), 60 / share as u64),
            What::Violations => reads::month(broker(), 1_000_000 / share),
        };
        measured.iter().for_each(|row| eprintln!("   {row}"));
        rows.extend(measured);
    }
    println!("\n{:<58} {:>22} {:>14}", "what", "measured", "bar");
    rows.iter().for_each(|row| println!("{row}"));
    if let Some(file) = arguments.json {
        let rows: Vec<_> = rows.iter().map(Row::json).collect();
        std::fs::write(&file, serde_json::to_vec_pretty(&rows).unwrap()).unwrap();
    }
}
