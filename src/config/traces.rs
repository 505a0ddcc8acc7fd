//! `[traces]`: which steps are traced, and where their spans go.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::reader::Section;
use super::{Secret, millis, seconds};

/// A share from 0 to 1, in millionths, so that configurations compare exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share(pub u32);

impl Share {
    /// All.
    pub const WHOLE: Self = Self(1_000_000);
}

/// `[traces]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traces {
    /// Where spans are posted to; `None`: nothing is traced.
    pub endpoint: Option<String>,
    /// Which share of the steps is traced.
    pub sample: Share,
    /// How many of the steps that decided something are traced in a second, whatever the share.
    pub decided_per_second: u32,
    /// Headers of each request.
    pub headers: Vec<(String, Secret)>,
    /// How long a request may take.
    pub timeout: Duration,
}

pub(super) fn traces(s: &mut Section<'_, '_>) -> Traces {
    let given = s.or_none("endpoint");
    let endpoint = given.filter(|endpoint| match address(endpoint) {
        Ok(()) => true,
        Err(wrong) => {
            s.refuse("endpoint", wrong);
            false
        }
    });
    let sample = s.share("sample", Share(10_000));
    let decided_per_second = s.number("decided-per-second", 10, 0..=1_000);
    let headers = match s.secret("headers").map(|text| pairs(text.expose())) {
        Some(Ok(headers)) => headers,
        Some(Err(wrong)) => {
            s.refuse("headers", wrong);
            Vec::new()
        }
        None => Vec::new(),
    };
    let timeout = s.duration("timeout", seconds(10), millis(100)..=seconds(60));
    Traces { endpoint, sample, decided_per_second, headers, timeout }
}

fn address(url: &str) -> Result<(), &'static str> {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    let rest = rest.ok_or("must begin with http:// or https://, such as \"http://collector:4318/v1/traces\"")?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    if host.is_empty() || host.contains('@') || url.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err("must be an address without user, spaces or control characters");
    }
    if path.is_empty() {
        return Err("must have a path: of collectors it is /v1/traces");
    }
    Ok(())
}

impl Traces {
    /// Whether spans would come back to where this process itself takes them.
    pub(super) fn come_back(&self, listen: SocketAddr) -> bool {
        let Some(endpoint) = &self.endpoint else { return false };
        let (rest, usual) = match endpoint.strip_prefix("https://") {
            Some(rest) => (rest, 443),
            None => (endpoint.strip_prefix("http://").unwrap_or(endpoint), 80),
        };
        let authority = rest.split('/').next().unwrap_or_default();
        let parts = authority.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
        let (host, port) = parts.unwrap_or((authority, usual));
        let own = listen.ip();
        let here = match host.trim_matches(['[', ']']).parse::<IpAddr>() {
            Ok(ip) => ip == own || own.is_unspecified() && ip.is_loopback(),
            Err(_) => host == "localhost" && (own.is_unspecified() || own.is_loopback()),
        };
        here && port == listen.port()
    }
}

/// `name=value,name=value`, values percent-encoded: what `OTEL_EXPORTER_OTLP_HEADERS` holds.
fn pairs(text: &str) -> Result<Vec<(String, Secret)>, &'static str> {
    let pair = |pair: &str| {
        let (name, value) = pair.split_once('=').ok_or("must be name=value, several separated by commas")?;
        let (name, value) = (name.trim().to_ascii_lowercase(), value.trim());
        let token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
        if name.is_empty() || !name.chars().all(token) {
            return Err("has a name that no header can have");
        }
        let value = percent_encoding::percent_decode_str(value).decode_utf8();
        let value = value.ok().filter(|value| value.bytes().all(|byte| matches!(byte, b' '..=b'~')));
        Ok((name, Secret::new(value.ok_or("has a value that no header can have")?.into_owned())))
    };
    text.split(',').map(str::trim).filter(|text| !text.is_empty()).map(pair).collect()
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    use super::*;

    fn read(text: &str) -> Result<Traces, Vec<String>> {
        let config = Config::from_toml(&format!("[traces]\n{text}"), "c.toml", []);
        config.map(|config| config.traces).map_err(|faults| faults.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn nothing_is_traced_unless_there_is_somewhere_to_send_it() {
        let traces = read("").unwrap();
        assert_eq!((traces.endpoint, traces.sample, traces.decided_per_second), (None, Share(10_000), 10));
        assert_eq!(read("endpoint = \"\"").unwrap().endpoint, None);
    }

    #[test]
    fn a_share_is_read_exactly() {
        for (text, share) in [("0", 0), ("1", 1_000_000), ("0.5", 500_000), ("0.000001", 1), ("1.0", 1_000_000)] {
            assert_eq!(read(&format!("sample = {text}")).unwrap().sample, Share(share), "{text}");
        }
        for text in ["1.1", "-0.1", "0.0000001", "\"much\"", "2"] {
            assert!(read(&format!("sample = {text}")).unwrap_err()[0].contains("from 0 to 1"), "{text}");
        }
    }

    #[test]
    fn headers_are_those_of_opentelemetry_and_do_not_show() {
        let text = "headers = \"env:HEADERS\"";
        let env = [("HEADERS".to_owned(), "Authorization=Bearer%20hush, x-tenant = acme".to_owned())];
        let config = Config::from_toml(&format!("[traces]\n{text}"), "c.toml", env).unwrap();
        let headers: Vec<_> = config.traces.headers.iter().map(|(n, v)| (n.as_str(), v.expose())).collect();
        assert_eq!(headers, [("authorization", "Bearer hush"), ("x-tenant", "acme")]);
        assert!(!format!("{config:?}").contains("hush"));
        for (bad, part) in [("hush", "name=value"), ("a b=hush", "no header"), ("a=hush%0A", "no header")] {
            let faults = read(&format!("headers = \"{bad}\"")).unwrap_err();
            assert!(faults[0].contains(part) && !faults[0].contains("hush"), "{faults:?}");
        }
    }

    #[test]
    fn spans_do_not_come_back_to_who_sends_them() {
        let everywhere = "\n[otlp]\nlisten = \"[::]:4318\"";
        for (own, more) in [("localhost", ""), ("127.0.0.1", ""), ("[::1]", everywhere), ("localhost", everywhere)] {
            let faults = read(&format!("endpoint = \"http://{own}:4318/v1/traces\"{more}")).unwrap_err();
            assert!(faults[0].contains("[otlp] listen"), "{faults:?}");
        }
        assert!(read("endpoint = \"http://localhost:14318/v1/traces\"").is_ok());
        assert!(read("endpoint = \"http://localhost:4318/v1/traces\"\n[otlp]\nlisten = \"127.0.0.1:14318\"").is_ok());
        assert!(read("endpoint = \"http://localhost:4318/v1/traces\"\n[roles]\nenabled = [\"core\"]").is_ok());
    }

    #[test]
    fn an_endpoint_is_an_address_with_a_path() {
        assert!(read("endpoint = \"https://c.example:4318/v1/traces\"").is_ok());
        for (bad, part) in [
            ("localhost:4318", "must begin with"),
            ("http://localhost:4318", "/v1/traces"),
            ("http:///v1/traces", "without user"),
            ("http://u:p@c/v1/traces", "without user"),
        ] {
            assert!(read(&format!("endpoint = \"{bad}\"")).unwrap_err()[0].contains(part), "{bad}");
        }
    }
}
