//! Bodies of requests: bounded as sent and unpacked, and all of them together.

use std::io::Read as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Body;
use flate2::read::MultiGzDecoder;
use futures::StreamExt as _;
use prometheus::IntGauge;

/// A body must be complete within this time.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Unpacked at a time.
const CHUNK: usize = 64 << 10;

/// Why a body is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// Larger than a request may be.
    TooLarge,
    /// There is no room for it now.
    NoRoom,
    /// It did not arrive in time.
    Slow,
    /// It broke off, or is not what its encoding says.
    Broken,
}

/// Bytes that all requests together may hold.
#[derive(Debug)]
pub(super) struct Budget {
    used: AtomicUsize,
    most: usize,
    gauge: IntGauge,
}

impl Budget {
    pub fn new(most: usize, gauge: IntGauge) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), most, gauge })
    }

    /// Nothing yet, of this budget.
    pub fn hold(self: &Arc<Self>) -> Hold {
        Hold { budget: Arc::clone(self), bytes: 0 }
    }
}

/// A share of a budget, given back when dropped.
#[derive(Debug)]
pub(super) struct Hold {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Hold {
    /// Takes more, if there is so much left.
    pub fn grow(&mut self, bytes: usize) -> Result<(), Refused> {
        let room = |used: usize| used.checked_add(bytes).filter(|used| *used <= self.budget.most);
        self.budget.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, room).map_err(|_| Refused::NoRoom)?;
        self.bytes += bytes;
        self.budget.gauge.add(signed(bytes));
        Ok(())
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::AcqRel);
        self.budget.gauge.sub(signed(self.bytes));
    }
}

fn signed(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// Reads a body of at most `most` bytes.
pub(super) async fn read(body: Body, most: usize, hold: &mut Hold) -> Result<Vec<u8>, Refused> {
    let whole = async {
        let mut bytes = Vec::new();
        let mut chunks = body.into_data_stream();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|_| Refused::Broken)?;
            if bytes.len() + chunk.len() > most {
                return Err(Refused::TooLarge);
            }
            hold.grow(chunk.len())?;
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    };
    tokio::time::timeout(BODY_TIMEOUT, whole).await.unwrap_or(Err(Refused::Slow))
}

/// Unpacks at most `most` bytes.
pub(super) fn gunzip(packed: &[u8], most: usize, hold: &mut Hold) -> Result<Vec<u8>, Refused> {
    let mut decoder = MultiGzDecoder::new(packed);
    let (mut bytes, mut chunk) = (Vec::new(), vec![0; CHUNK]);
    loop {
        let read = decoder.read(&mut chunk).map_err(|_| Refused::Broken)?;
        if read == 0 {
            return Ok(bytes);
        }
        if bytes.len() + read > most {
            return Err(Refused::TooLarge);
        }
        hold.grow(read)?;
        bytes.extend_from_slice(&chunk[..read]);
    }
}
