//! CloudEvents around telemetry, in Kafka's binary and structured modes: what the envelope says stands in for what the event leaves out.
//!
//! Binary mode shows in headers; structured mode in the header `content-type`, and where that is missing in the JSON itself, which is
//! looked at only when it is no event. Records without headers cost nothing.

use std::fmt::Write as _;

use sha2::{Digest, Sha256};

use super::decode::MAX_ID;
use super::parse::{object, string};
use super::time::parse_time;
use crate::clock::Micros;

/// What an envelope says of its event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Said {
    /// From source and id, which are unique together.
    pub id: Option<String>,
    pub time: Option<Micros>,
}

impl Said {
    fn new(source: Option<&str>, id: Option<&str>, time: Option<&str>) -> Self {
        let filled = |text: Option<&str>| text.filter(|text| !text.is_empty()).map(str::to_owned);
        // a source has no spaces
        let id = filled(source).zip(filled(id)).map(|(source, id)| bounded(format!("{source} {id}")));
        Self { id, time: time.and_then(parse_time) }
    }
}

/// An id that fits, or its digest.
fn bounded(id: String) -> String {
    if id.len() <= MAX_ID {
        return id;
    }
    Sha256::digest(id.as_bytes()).iter().fold(String::new(), |mut out, byte| {
        // writing to a String cannot fail
        let _infallible = write!(out, "{byte:02x}");
        out
    })
}

/// What headers say, and whether the value is the whole CloudEvent.
pub(super) fn of_headers(headers: &[(&str, &[u8])]) -> (Said, bool) {
    // of a header that is repeated the last one counts
    let of = |name: &str| {
        let found = headers.iter().rev().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.and_then(|(_, value)| std::str::from_utf8(value).ok())
    };
    let kind = of("content-type").map(|kind| kind.trim_start().as_bytes());
    const STRUCTURED: &[u8] = b"application/cloudevents";
    let structured =
        kind.and_then(|kind| kind.get(..STRUCTURED.len())).is_some_and(|kind| kind.eq_ignore_ascii_case(STRUCTURED));
    (Said::new(of("ce_source"), of("ce_id"), of("ce_time")), structured)
}

/// The event within a structured CloudEvent, and what is said of it. `None`: the text is no CloudEvent.
pub(super) fn opened(text: &str) -> Option<Result<(&str, Said), &'static str>> {
    let members = object(text)?;
    let of = |name: &str| members.iter().rev().find(|(known, _)| known == name).map(|(_, raw)| raw.get());
    of("specversion").and_then(string)?;
    let texts = ["source", "id", "time"].map(|name| of(name).and_then(string));
    let [source, id, time] = texts.each_ref().map(|text| text.as_deref());
    let data: Option<&str> = of("data").map(|data: &str| data.trim()).filter(|data| data.starts_with('{'));
    Some(match data {
        Some(data) => Ok((data, Said::new(source, id, time))),
        None => Err("the data of the CloudEvent is not a JSON object"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_say_id_and_time_and_the_last_of_a_name_counts() {
        let headers: [(&str, &[u8]); 6] = [
            ("ce_specversion", b"1.0"),
            ("ce_source", b"//first"),
            ("ce_source", b"//workers/1"),
            ("ce_id", b"e-7"),
            ("ce_time", b"2026-01-02T03:04:05Z"),
            ("content-type", b"application/json"),
        ];
        let said = Said { id: Some("//workers/1 e-7".into()), time: parse_time("2026-01-02T03:04:05Z") };
        assert_eq!(of_headers(&headers), (said, false));
        assert_eq!(of_headers(&[("traceparent", b"00-1")]), (Said::default(), false));
        assert_eq!(of_headers(&[("ce_id", b"only"), ("ce_source", b"\xff")]).0, Said::default(), "half of it is no id");
    }

    #[test]
    fn a_content_type_says_that_the_value_is_the_whole_event() {
        for kind in
            ["application/cloudevents+json; charset=UTF-8", "Application/CloudEvents+JSON", " application/cloudevents"]
        {
            assert!(of_headers(&[("Content-Type", kind.as_bytes())]).1, "{kind}");
        }
        for kind in ["application/json", "", "é", "application/cloudevent"] {
            assert!(!of_headers(&[("content-type", kind.as_bytes())]).1, "{kind}");
        }
    }

    #[test]
    fn an_envelope_is_opened_and_what_is_none_stays_closed() {
        let text = r#" {"specversion":"1.0","id":"e","source":"s","time":"2026-01-02T03:04:05Z","type":"t","data": {"a":1} } "#;
        let said = Said { id: Some("s e".into()), time: parse_time("2026-01-02T03:04:05Z") };
        assert_eq!(opened(text), Some(Ok((r#"{"a":1}"#, said))));
        assert_eq!(opened(r#"{"data":{"a":1}}"#), None);
        assert_eq!(opened("[1]"), None);
        for bad in [r#"{"specversion":"1.0"}"#, r#"{"specversion":"1.0","data":"x"}"#] {
            assert!(matches!(opened(bad), Some(Err(_))), "{bad}");
        }
    }

    #[test]
    fn a_long_id_becomes_its_digest() {
        let long = "s".repeat(300);
        let id = Said::new(Some(&long), Some("e"), None).id.unwrap();
        assert_eq!(id.len(), 64);
        assert_ne!(Some(id), Said::new(Some(&long), Some("f"), None).id);
    }
}
