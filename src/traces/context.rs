//! W3C Trace Context: what a producer says of the trace a record belongs to.

use super::id::{SpanId, TraceId};

/// Longest `tracestate` that is passed on; the recommendation asks for 512.
const LONGEST_STATE: usize = 512;

/// A place in somebody's trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Context {
    /// The trace.
    pub trace: TraceId,
    /// The span.
    pub span: SpanId,
    /// Whether its spans are recorded.
    pub sampled: bool,
    /// `tracestate` as it came; empty for none.
    pub state: String,
}

impl Context {
    /// Header with the ids.
    pub const PARENT: &'static str = "traceparent";
    /// Header with what systems add.
    pub const STATE: &'static str = "tracestate";

    /// Reads the two headers. `None`: there is no context, or it cannot be read, and then counts for nothing.
    pub fn parse(parent: &[u8], state: Option<&[u8]>) -> Option<Self> {
        let parent = std::str::from_utf8(parent).ok()?;
        let mut parts = parent.splitn(5, '-');
        let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let [version] = bytes::<1>(version)?;
        // version 0 has four parts; later ones may have more
        if version == 255 || (version == 0 && parts.next().is_some()) {
            return None;
        }
        let (trace, span, [flags]) = (bytes::<16>(trace)?, bytes::<8>(span)?, bytes::<1>(flags)?);
        if trace == [0; 16] || span == [0; 8] {
            return None;
        }
        let state =
            state.and_then(|state| std::str::from_utf8(state).ok()).filter(|state| state.len() <= LONGEST_STATE);
        let state = state.filter(|state| state.bytes().all(|byte| matches!(byte, b' '..=b'~' | b'\t')));
        let state = state.unwrap_or_default().to_owned();
        Some(Self { trace: TraceId(trace), span: SpanId(span), sampled: flags & 1 == 1, state })
    }

    /// The header with the ids.
    pub fn parent(&self) -> String {
        format!("00-{}-{}-{:02x}", self.trace, self.span, u8::from(self.sampled))
    }
}

/// Lower-case hexadecimal of exactly `N` bytes.
fn bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N || !digits.iter().all(|d| d.is_ascii_digit() || matches!(d, b'a'..=b'f')) {
        return None;
    }
    let mut out = [0; N];
    for (i, byte) in out.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * i..2 * i + 2)?, 16).ok()?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_context_is_read_and_written_as_the_recommendation_says() {
        let context = Context::parse(PARENT.as_bytes(), Some(b"vendor=1")).unwrap();
        assert_eq!(context.trace.to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(context.span.to_string(), "00f067aa0ba902b7");
        assert!(context.sampled && context.state == "vendor=1");
        assert_eq!(context.parent(), PARENT);
        let later = Context::parse(b"01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00-more", None).unwrap();
        assert!(!later.sampled);
    }

    #[test]
    fn what_is_no_context_counts_for_nothing() {
        for bad in [
            "",
            "00",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-4bf92f3577b34da6a3ce929d0e0e47é6-00f067aa0ba902b7-01",
        ] {
            assert_eq!(Context::parse(bad.as_bytes(), None), None, "{bad}");
        }
        assert_eq!(Context::parse(&[0xff; 55], None), None);
    }

    #[test]
    fn a_state_that_is_too_long_or_no_text_is_left_out() {
        for state in [vec![b'a'; 513], vec![0xff, 0xfe], b"a=1\nb=2".to_vec()] {
            assert_eq!(Context::parse(PARENT.as_bytes(), Some(&state)).unwrap().state, "");
        }
    }
}
