//! Ids of traces and spans: hashes of what they identify.

use std::fmt;

use sha2::{Digest, Sha256};

/// What makes a step the one it is. Taken again after a failure it has the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepKey<'a> {
    /// Consumer group.
    pub group: &'a str,
    /// Topic of the telemetry.
    pub topic: &'a str,
    /// Partition.
    pub partition: i32,
    /// Number of the step there.
    pub number: u64,
    /// First offset read of each input; `None` where nothing was read.
    pub offsets: &'a [Option<i64>],
}

/// Id of a trace, never all zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TraceId(pub [u8; 16]);

/// Id of a span, never all zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpanId(pub [u8; 8]);

impl TraceId {
    /// The id of a step's trace.
    pub fn of(step: &StepKey<'_>) -> Self {
        let mut hash = Sha256::new_with_prefix("runwarden step 1\0");
        for text in [step.group, step.topic] {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        }
        hash.update(step.partition.to_le_bytes());
        hash.update(step.number.to_le_bytes());
        for offset in step.offsets {
            hash.update(offset.unwrap_or(-1).to_le_bytes());
        }
        Self(first(&hash.finalize()))
    }

    /// The 56 bits that samplers of OpenTelemetry compare.
    pub fn randomness(self) -> u64 {
        self.0.iter().skip(9).fold(0, |bits, byte| bits << 8 | u64::from(*byte))
    }
}

impl SpanId {
    /// The id of the `n`th span of a name in a trace.
    pub fn of(trace: TraceId, name: &str, n: u32) -> Self {
        let mut hash = Sha256::new_with_prefix(trace.0);
        hash.update(name);
        hash.update(n.to_le_bytes());
        Self(first(&hash.finalize()))
    }
}

/// The first bytes of a hash; zeros, which would be no id, become another.
fn first<const N: usize>(hash: &[u8]) -> [u8; N] {
    let mut id: [u8; N] = std::array::from_fn(|i| hash.get(i).copied().unwrap_or_default());
    if id == [0; N] {
        id[N - 1] = 1;
    }
    id
}

fn hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: StepKey<'_> = StepKey {
        group: "g",
        topic: "runs.telemetry",
        partition: 3,
        number: 42,
        offsets: &[None, None, Some(1_000), None],
    };

    #[test]
    fn a_step_taken_again_has_the_same_ids_and_any_other_has_others() {
        let id = TraceId::of(&STEP);
        assert_eq!(id, TraceId::of(&StepKey { offsets: &[None, None, Some(1_000), None], ..STEP }));
        for other in [
            StepKey { group: "gr", topic: "uns.telemetry", ..STEP },
            StepKey { topic: "t", ..STEP },
            StepKey { partition: 4, ..STEP },
            StepKey { number: 43, ..STEP },
            StepKey { offsets: &[None, None, Some(1_001), None], ..STEP },
            StepKey { offsets: &[None, Some(1_000), None, None], ..STEP },
        ] {
            assert_ne!(id, TraceId::of(&other), "{other:?}");
        }
    }

    #[test]
    fn ids_never_change_since_they_stand_in_topics() {
        let id = TraceId::of(&STEP);
        assert_eq!(id.to_string().len(), 32);
        assert_eq!(SpanId::of(id, "a", 0).to_string().len(), 16);
        assert_ne!(SpanId::of(id, "a", 0), SpanId::of(id, "a", 1));
        assert_ne!(SpanId::of(id, "a", 0), SpanId::of(id, "b", 0));
        assert_eq!(id.to_string(), "4545d6c46ca309b943c1c629719f332e");
    }

    #[test]
    fn zeros_are_no_id() {
        assert_eq!(first::<8>(&[0; 32]), [0, 0, 0, 0, 0, 0, 0, 1]);
    }
}
