//! The demo's traffic is what the decoder expects, and every reason and event type has the metric label it needs.

use std::sync::Arc;

use runwarden::clock::{SECOND, Wall};
use runwarden::demo::traffic::{Config, Traffic};
use runwarden::metrics::labels::{DeadLetterReason, Label};
use runwarden::telemetry::{Decoder, Origin, Reason, Settings};

const START: Wall = Wall(1_800_000_000 * SECOND);

#[test]
fn every_event_of_the_demo_decodes_and_only_the_buggy_producer_is_dead_lettered() {
    let mut traffic = Traffic::new(&Config::demo(START.0));
    let now = Wall(START.0 + 60 * SECOND);
    let mut events = traffic.until(now.0);
    events.extend(traffic.stop_run("acme-planner-loop-run-1", now.0));
    let mut decoder = Decoder::new(Arc::new(Settings::default()));
    for (at, event) in (0_i64..).zip(&events) {
        let origin = Origin { input: 2, topic: "runs.telemetry".into(), partition: 0, offset: at };
        decoder.push(origin, at, Some(event.payload.as_bytes()), now);
    }
    let decoded = decoder.finish();
    let dead: Vec<&str> = decoded.dead.iter().map(|d| d.reason.as_str()).collect();
    assert_eq!(dead, ["decode"; 8], "one at 7, 14 … 56 s");
    assert_eq!(decoded.batch.rows.num_rows(), events.len() - dead.len());
    assert_eq!(decoded.tally.dropped_fields, 0, "the demo sends nothing that is thrown away");
}

#[test]
fn every_dead_letter_reason_has_its_counter() {
    let reasons: Vec<&str> = Reason::ALL.iter().map(|r| r.as_str()).collect();
    let labels: Vec<&str> = DeadLetterReason::ALL.iter().map(|l| l.as_str()).collect();
    assert_eq!(reasons, labels);
}
