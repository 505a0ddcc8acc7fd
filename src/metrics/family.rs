//! Families of one metric: series for every known label, present from the start.

use std::collections::BTreeSet;
use std::marker::PhantomData;
use std::sync::RwLock;

use prometheus::{GaugeVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, Result};

use crate::clock::Micros;

use super::labels::Label;
use super::seconds;

/// Label value for a name beyond [`MAX_NAMES`] or never configured.
pub const OTHER: &str = "other";
/// Most configured names a family keeps; later ones are counted under [`OTHER`].
pub const MAX_NAMES: usize = 1_000;

/// Counters over one closed label.
#[derive(Debug, Clone)]
pub struct Family<L> {
    counters: Vec<IntCounter>,
    label: PhantomData<L>,
}

impl<L: Label> Family<L> {
    pub(super) fn register(registry: &Registry, name: &str, help: &str) -> Result<Self> {
        let vec = IntCounterVec::new(Opts::new(name, help), &[L::NAME])?;
        registry.register(Box::new(vec.clone()))?;
        let counters = L::ALL.iter().map(|l| vec.with_label_values(&[l.as_str()])).collect();
        Ok(Self { counters, label: PhantomData })
    }

    /// The counter of one label value.
    pub fn get(&self, label: L) -> &IntCounter {
        &self.counters[label.index()]
    }

    /// Sum over all label values.
    pub fn total(&self) -> u64 {
        self.counters.iter().map(IntCounter::get).sum()
    }
}

/// Gauges over one closed label.
#[derive(Debug, Clone)]
pub struct Gauges<L> {
    gauges: Vec<IntGauge>,
    label: PhantomData<L>,
}

impl<L: Label> Gauges<L> {
    pub(super) fn register(registry: &Registry, name: &str, help: &str) -> Result<Self> {
        let vec = IntGaugeVec::new(Opts::new(name, help), &[L::NAME])?;
        registry.register(Box::new(vec.clone()))?;
        let gauges = L::ALL.iter().map(|l| vec.with_label_values(&[l.as_str()])).collect();
        Ok(Self { gauges, label: PhantomData })
    }

    /// The gauge of one label value.
    pub fn get(&self, label: L) -> &IntGauge {
        &self.gauges[label.index()]
    }
}

/// Counters over two closed labels.
#[derive(Debug, Clone)]
pub struct Family2<A, B> {
    counters: Vec<IntCounter>,
    labels: PhantomData<(A, B)>,
}

impl<A: Label, B: Label> Family2<A, B> {
    pub(super) fn register(registry: &Registry, name: &str, help: &str) -> Result<Self> {
        let vec = IntCounterVec::new(Opts::new(name, help), &[A::NAME, B::NAME])?;
        registry.register(Box::new(vec.clone()))?;
        let pairs = A::ALL.iter().flat_map(|a| B::ALL.iter().map(move |b| (a, b)));
        let counters = pairs.map(|(a, b)| vec.with_label_values(&[a.as_str(), b.as_str()])).collect();
        Ok(Self { counters, labels: PhantomData })
    }

    /// The counter of one pair of label values.
    pub fn get(&self, a: A, b: B) -> &IntCounter {
        &self.counters[a.index() * B::ALL.len() + b.index()]
    }

    /// Sum over the second label.
    pub fn total_of(&self, a: A) -> u64 {
        B::ALL.iter().map(|b| self.get(a, *b).get()).sum()
    }

    /// Sum over the first label.
    pub fn total_by(&self, b: B) -> u64 {
        A::ALL.iter().map(|a| self.get(*a, b).get()).sum()
    }
}

/// The configured names a `metric` label may take: at most [`MAX_NAMES`], all others are [`OTHER`].
#[derive(Debug, Default)]
pub(super) struct Names(RwLock<BTreeSet<String>>);

impl Names {
    /// Admits names up to the bound; a name once admitted stays.
    pub(super) fn admit<'a>(&self, names: &[&'a str]) -> Vec<&'a str> {
        let mut known = self.0.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut admitted = Vec::new();
        for name in names {
            if known.contains(*name) || known.len() < MAX_NAMES {
                known.insert((*name).to_owned());
                admitted.push(*name);
            }
        }
        admitted
    }

    pub(super) fn label<'a>(&self, name: &'a str) -> &'a str {
        let known = self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        if known.contains(name) { name } else { OTHER }
    }
}

/// Counters by configured metric name.
#[derive(Debug)]
pub struct CountersByMetric {
    vec: IntCounterVec,
    names: std::sync::Arc<Names>,
}

impl CountersByMetric {
    pub(super) fn register(r: &Registry, names: &std::sync::Arc<Names>, name: &str, help: &str) -> Result<Self> {
        let vec = IntCounterVec::new(Opts::new(name, help), &["metric"])?;
        r.register(Box::new(vec.clone()))?;
        Ok(Self { vec, names: names.clone() })
    }

    pub(super) fn start(&self, name: &str) {
        self.get(name).inc_by(0);
    }

    /// The counter of a metric; one that is not configured counts under `other`.
    pub fn get(&self, metric: &str) -> IntCounter {
        self.vec.with_label_values(&[self.names.label(metric)])
    }
}

/// Gauges by configured metric name.
#[derive(Debug)]
pub struct GaugesByMetric {
    vec: IntGaugeVec,
    names: std::sync::Arc<Names>,
}

impl GaugesByMetric {
    pub(super) fn register(r: &Registry, names: &std::sync::Arc<Names>, name: &str, help: &str) -> Result<Self> {
        let vec = IntGaugeVec::new(Opts::new(name, help), &["metric"])?;
        r.register(Box::new(vec.clone()))?;
        Ok(Self { vec, names: names.clone() })
    }

    pub(super) fn start(&self, name: &str) {
        self.get(name).add(0);
    }

    /// The gauge of a metric; one that is not configured is shown under `other`.
    pub fn get(&self, metric: &str) -> IntGauge {
        self.vec.with_label_values(&[self.names.label(metric)])
    }
}

/// Gauges by partition number, present only while the partition is owned.
#[derive(Debug)]
pub struct GaugesByPartition(IntGaugeVec);

impl GaugesByPartition {
    pub(super) fn register(registry: &Registry, name: &str, help: &str) -> Result<Self> {
        let vec = IntGaugeVec::new(Opts::new(name, help), &["partition"])?;
        registry.register(Box::new(vec.clone()))?;
        Ok(Self(vec))
    }

    /// Sets the value of an owned partition.
    pub fn set(&self, partition: i32, value: i64) {
        self.0.with_label_values(&[partition.to_string().as_str()]).set(value);
    }

    /// Drops the series of a partition given up.
    pub fn forget(&self, partition: i32) {
        // a partition that never reported has no series to drop
        self.0.remove_label_values(&[partition.to_string().as_str()]).unwrap_or_default();
    }
}

/// Ages in seconds by partition number, present only while the partition is owned.
#[derive(Debug)]
pub struct AgesByPartition(GaugeVec);

impl AgesByPartition {
    pub(super) fn register(registry: &Registry, name: &str, help: &str) -> Result<Self> {
        let vec = GaugeVec::new(Opts::new(name, help), &["partition"])?;
        registry.register(Box::new(vec.clone()))?;
        Ok(Self(vec))
    }

    /// Sets the age of an owned partition, from microseconds; below 0 counts as 0.
    pub fn set(&self, partition: i32, age: Micros) {
        self.0.with_label_values(&[partition.to_string().as_str()]).set(seconds(age.max(0)));
    }

    /// Drops the series of a partition given up.
    pub fn forget(&self, partition: i32) {
        // a partition that never reported has no series to drop
        self.0.remove_label_values(&[partition.to_string().as_str()]).unwrap_or_default();
    }
}
