//! Figures of the channels, by `channel`: the names of the configuration, bounded like every configured name.

use std::sync::Arc;

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, Result,
};

use super::family::Names;

const LABEL: &str = "channel";
/// Upper bounds of delivery time buckets in seconds: most take milliseconds, those of a receiver that is down up to an hour.
const DELIVERY: &[f64] = &[0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3_600.0];
/// What may become of a message.
pub const OUTCOMES: [&str; 3] = ["DELIVERED", "GAVE_UP", "SUPPRESSED"];

/// What is counted of channels.
#[derive(Debug)]
pub struct Channels {
    names: Arc<Names>,
    deliveries: IntCounterVec,
    attempts: IntCounterVec,
    unread: IntCounterVec,
    muted: IntCounterVec,
    seconds: HistogramVec,
    queued: IntGaugeVec,
    open: IntGaugeVec,
    lag: IntGaugeVec,
}

/// The series of one channel.
#[derive(Debug, Clone)]
pub struct OfChannel {
    /// Messages settled, in the order of [`OUTCOMES`].
    pub deliveries: [IntCounter; 3],
    /// Attempts.
    pub attempts: IntCounter,
    /// Records of the alerts topic that are no alerts.
    pub unread: IntCounter,
    /// Records that nobody was told of because a silence or another alert mutes them.
    pub muted: IntCounter,
    /// From the broker's timestamp of the record to its delivery.
    pub seconds: Histogram,
    /// Messages that wait.
    pub queued: IntGauge,
    /// 1 while the circuit is open.
    pub open: IntGauge,
    /// Records behind what is settled.
    pub lag: IntGauge,
}

impl Channels {
    pub(super) fn register(registry: &Registry) -> Result<Self> {
        let counters = |name: &str, help: &str, labels: &[&str]| -> Result<IntCounterVec> {
            let vec = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(vec.clone()))?;
            Ok(vec)
        };
        let gauges = |name: &str, help: &str| -> Result<IntGaugeVec> {
            let vec = IntGaugeVec::new(Opts::new(name, help), &[LABEL])?;
            registry.register(Box::new(vec.clone()))?;
            Ok(vec)
        };
        let seconds = HistogramOpts::new(
            "runwarden_channel_delivery_seconds",
            "From the broker's timestamp of an alert's record to its delivery",
        );
        let seconds = HistogramVec::new(seconds.buckets(DELIVERY.to_vec()), &[LABEL])?;
        registry.register(Box::new(seconds.clone()))?;
        Ok(Self {
            names: Arc::default(),
            deliveries: counters("runwarden_channel_deliveries_total", "Messages settled", &[LABEL, "outcome"])?,
            attempts: counters("runwarden_channel_attempts_total", "Attempts to deliver", &[LABEL])?,
            unread: counters(
                "runwarden_channel_unread_records_total",
                "Records of the alerts topic that are no alerts",
                &[LABEL],
            )?,
            muted: counters("runwarden_channel_muted_records_total", "Records of muted alerts, not told", &[LABEL])?,
            seconds,
            queued: gauges("runwarden_channel_queued_messages", "Messages that wait for their delivery")?,
            open: gauges("runwarden_channel_circuit_open", "1 while a channel rests after failures")?,
            lag: gauges("runwarden_channel_lag_records", "Records of the alerts topic that are not settled")?,
        })
    }

    /// The series of a channel, at 0 when it is new.
    pub fn of(&self, channel: &str) -> OfChannel {
        self.names.admit(&[channel]);
        let label = self.names.label(channel);
        OfChannel {
            deliveries: OUTCOMES.map(|outcome| self.deliveries.with_label_values(&[label, outcome])),
            attempts: self.attempts.with_label_values(&[label]),
            unread: self.unread.with_label_values(&[label]),
            muted: self.muted.with_label_values(&[label]),
            seconds: self.seconds.with_label_values(&[label]),
            queued: self.queued.with_label_values(&[label]),
            open: self.open.with_label_values(&[label]),
            lag: self.lag.with_label_values(&[label]),
        }
    }
}
