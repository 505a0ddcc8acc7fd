//! Ids and times as they leave: UUIDv5 of what they identify, RFC 3339 with six decimals (`contracts.md`, *Rules for all JSON*).

use std::sync::LazyLock;

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use uuid::Uuid;

pub use crate::clock::{rfc3339, time};

/// The namespace of every id: UUIDv5(URL namespace, `urn:runwarden`).
pub static NAMESPACE: LazyLock<Uuid> = LazyLock::new(|| Uuid::new_v5(&Uuid::NAMESPACE_URL, b"urn:runwarden"));

/// What parts may not contain unescaped: the separator, the escape itself, spaces and controls.
const PART: &AsciiSet = &CONTROLS.add(b'/').add(b'%').add(b' ').add(b'"').add(b'#').add(b'?');

/// Percent-encodes one part of an id or of a compacted key.
pub fn part(text: &str) -> String {
    utf8_percent_encode(text, PART).to_string()
}

/// The first of the parts that a key joins by `/`, decoded; `None` when it is not text.
pub fn first_part(key: &[u8]) -> Option<String> {
    let part = key.split(|byte| *byte == b'/').next()?;
    percent_encoding::percent_decode(part).decode_utf8().ok().map(Into::into)
}

/// The id of the thing these parts name.
///
/// ```
/// let a = runwarden::decide::of(&["acme", "a/b"]);
/// assert_ne!(a, runwarden::decide::of(&["acme", "a", "b"]), "parts are escaped before they are joined");
/// assert_eq!(a.len(), 36);
/// ```
pub fn of(parts: &[&str]) -> String {
    let joined = parts.iter().map(|p| part(p)).collect::<Vec<_>>().join("/");
    Uuid::new_v5(&NAMESPACE, joined.as_bytes()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_namespace_is_the_documented_one() {
        assert_eq!(*NAMESPACE, Uuid::new_v5(&Uuid::NAMESPACE_URL, b"urn:runwarden"));
    }
}
