//! Figures of HTTP, by route: the patterns of the routes, so that no series can appear by surprise. All but those of `/metrics` are there from the
//! first request on.

use std::time::Duration;

use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry, Result};

use super::LATENCY;
use super::family::OTHER;

/// Methods that have series of their own.
const METHODS: [&str; 5] = ["GET", "HEAD", "POST", "PUT", "DELETE"];

/// What is counted of HTTP.
#[derive(Debug)]
pub struct Http {
    requests: IntCounterVec,
    duration: HistogramVec,
}

impl Http {
    pub(super) fn register(registry: &Registry) -> Result<Self> {
        let labels = ["route", "method", "status"];
        let requests =
            IntCounterVec::new(Opts::new("runwarden_http_requests_total", "HTTP requests answered"), &labels)?;
        let help = "Time until an HTTP request had its answer, before its body is sent";
        let options = HistogramOpts::new("runwarden_http_request_duration_seconds", help).buckets(LATENCY.to_vec());
        let duration = HistogramVec::new(options, &["route"])?;
        registry.register(Box::new(requests.clone()))?;
        registry.register(Box::new(duration.clone()))?;
        // there whatever a process does
        requests.with_label_values(&["/metrics", "GET", "200"]);
        duration.with_label_values(&["/metrics"]);
        Ok(Self { requests, duration })
    }

    /// Counts an answer. `route` is the pattern of a route; `None`: there is no such page.
    pub fn answered(&self, route: Option<&str>, method: &str, status: u16, took: Duration) {
        let route = route.unwrap_or(OTHER);
        let method = METHODS.into_iter().find(|known| *known == method).unwrap_or(OTHER);
        self.requests.with_label_values(&[route, method, &status.to_string()]).inc();
        self.duration.with_label_values(&[route]).observe(took.as_secs_f64());
    }
}
