//! Waiting for delivery reports.
//!
//! rdkafka's `poll` with a time stays until that time is over, whatever arrives, and turns in circles for what is less than a millisecond of
//! it: on the core that the client's own threads need to send and to hear. So nothing here polls with a time: reports are served as they
//! are, and who has to wait for more sleeps.

use std::time::Duration;

use rdkafka::producer::{BaseProducer, Producer as _, ProducerContext};

/// Between two looks for reports: a fraction of what a broker takes.
const REST: Duration = Duration::from_micros(250);

/// Serves the reports that are there; how many records wait for theirs.
pub(super) fn serve<C: ProducerContext>(producer: &BaseProducer<C>) -> i32 {
    let mut left = producer.in_flight_count();
    loop {
        producer.poll(Duration::ZERO);
        let now = producer.in_flight_count();
        if now == 0 || now >= left {
            return now;
        }
        left = now;
    }
}

/// Gives the core up for a moment.
pub(super) fn rest() {
    std::thread::sleep(REST);
}

/// Waits until every record has its report, or `check` says why not.
pub(super) fn drain<C: ProducerContext, E>(
    producer: &BaseProducer<C>,
    mut check: impl FnMut() -> Result<(), E>,
) -> Result<(), E> {
    while serve(producer) > 0 {
        check()?;
        rest();
    }
    Ok(())
}
