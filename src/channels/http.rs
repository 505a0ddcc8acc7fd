//! HTTP to receivers: no redirects, no proxy of the environment, bounded time and size, and no address that the configuration does not
//! allow. What is said of failures never holds an address or a body.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use ureq::http::Uri;
use ureq::tls::{RootCerts, TlsConfig};
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};
use ureq::{Agent, Error};

use super::secrets::Unusable;
use crate::clock::{SECOND, Wall};
use crate::config::Reach;

/// Of an answer so much is read.
const ANSWER: u64 = 1_024;

/// A client for one channel.
#[derive(Debug)]
pub struct Http {
    agent: Agent,
}

/// What was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// `Retry-After`.
    pub retry_after: Option<Duration>,
    /// The begin of the body.
    pub body: String,
}

impl Http {
    /// A client that trusts `ca` (PEM; `None`: those of the web) and connects within `reach`.
    ///
    /// # Errors
    /// No certificate in `ca`.
    pub fn new(timeout: Duration, reach: Reach, ca: Option<&[u8]>) -> Result<Self, Unusable> {
        let mut tls = TlsConfig::builder();
        if let Some(pem) = ca {
            tls = tls.root_certs(RootCerts::from(certificates(pem)?));
        }
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(None)
            .timeout_global(Some(timeout))
            .user_agent(concat!("runwarden/", env!("CARGO_PKG_VERSION")))
            .tls_config(tls.build())
            .build();
        let guard = Guard { reach, inner: DefaultResolver::default() };
        Ok(Self { agent: Agent::with_parts(config, DefaultConnector::default(), guard) })
    }

    /// Posts JSON.
    ///
    /// # Errors
    /// Why there is no answer, without addresses.
    pub fn post(&self, url: &str, headers: &[(&str, &str)], body: &[u8], now: Wall) -> Result<Answer, String> {
        let mut request = self.agent.post(url).header("content-type", "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut response = request.send(body).map_err(|error| said(&error))?;
        let status = response.status().as_u16();
        let retry_after = response.headers().get("retry-after").and_then(|value| value.to_str().ok());
        let retry_after = retry_after.and_then(|value| wait(value, now));
        // a body that is too long or broken is none
        let body = response.body_mut().with_config().limit(ANSWER).read_to_string().unwrap_or_default();
        Ok(Answer { status, retry_after, body })
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<ureq::tls::Certificate<'static>>, Unusable> {
    let items: Result<Vec<_>, Error> = ureq::tls::parse_pem(pem).collect();
    let items = items.map_err(|_| Unusable::wrong("the ca-file", "is not PEM"))?;
    let found: Vec<_> = items
        .into_iter()
        .filter_map(|item| match item {
            ureq::tls::PemItem::Certificate(certificate) => Some(certificate),
            _ => None,
        })
        .collect();
    if found.is_empty() { Err(Unusable::wrong("the ca-file", "holds no certificate")) } else { Ok(found) }
}

/// `Retry-After`: seconds, or a date.
fn wait(value: &str, now: Wall) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse::<u32>() {
        return Some(Duration::from_secs(seconds.into()));
    }
    let at = chrono::DateTime::parse_from_rfc2822(value).ok()?.timestamp();
    u64::try_from(at.saturating_sub(now.0 / SECOND)).ok().map(Duration::from_secs)
}

fn said(error: &Error) -> String {
    match error {
        Error::Timeout(what) => format!("timed out ({what:?})"),
        Error::Io(error) => error.to_string(),
        Error::HostNotFound => "the host is not found".to_owned(),
        Error::Rustls(error) => format!("TLS: {error}"),
        Error::Tls(what) => format!("TLS: {what}"),
        Error::Protocol(_) => "the answer is not HTTP".to_owned(),
        Error::BadUri(_) | Error::Http(_) => "the address cannot be used".to_owned(),
        Error::ConnectionFailed => "cannot connect".to_owned(),
        _ => "the request failed".to_owned(),
    }
}

/// Resolves names, and drops the addresses that are out of reach: what is connected to is what was checked.
#[derive(Debug)]
struct Guard {
    reach: Reach,
    inner: DefaultResolver,
}

impl Resolver for Guard {
    fn resolve(
        &self,
        uri: &Uri,
        config: &ureq::config::Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, Error> {
        let found = self.inner.resolve(uri, config, timeout)?;
        let mut allowed = self.empty();
        for address in found.iter().filter(|address: &&SocketAddr| needed(address.ip()) <= self.reach) {
            allowed.push(*address);
        }
        if allowed.is_empty() {
            let what = "the address is not allowed: see reach in the channel's configuration";
            return Err(Error::Io(std::io::Error::new(std::io::ErrorKind::PermissionDenied, what)));
        }
        Ok(allowed)
    }
}

/// How far a channel must reach to connect there.
pub fn needed(ip: IpAddr) -> Reach {
    match ip {
        IpAddr::V4(ip) => needed_v4(ip),
        IpAddr::V6(ip) => {
            let s = ip.segments();
            // addresses that stand for others: mapped, compatible, NAT64, 6to4
            if let Some(v4) = ip.to_ipv4_mapped() {
                return needed_v4(v4);
            }
            let low = Ipv4Addr::from(u32::from(s[6]) << 16 | u32::from(s[7]));
            if s[..6] == [0x64, 0xff9b, 0, 0, 0, 0] {
                return needed_v4(low);
            }
            if s[0] == 0x2002 {
                return needed_v4(Ipv4Addr::from(u32::from(s[1]) << 16 | u32::from(s[2])));
            }
            if ip.is_loopback() {
                return Reach::Private;
            }
            // a cloud's metadata lives at fd00:ec2::254
            if ip.is_multicast() || s[0] & 0xffc0 == 0xfe80 || s[..6] == [0; 6] || (s[0] == 0xfd00 && s[1] == 0xec2) {
                return Reach::Any;
            }
            if s[0] & 0xfe00 == 0xfc00 { Reach::Private } else { Reach::Public }
        }
    }
}

fn needed_v4(ip: Ipv4Addr) -> Reach {
    let [a, b, c, _] = ip.octets();
    if ip.is_link_local() || a == 0 || a >= 224 || ip == Ipv4Addr::new(100, 100, 100, 200) {
        return Reach::Any;
    }
    let shared = a == 100 && (64..128).contains(&b);
    let special = (a, b, c) == (192, 0, 0) || (a == 198 && (b == 18 || b == 19));
    if ip.is_loopback() || ip.is_private() || shared || special { Reach::Private } else { Reach::Public }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_this_host_and_of_clouds_are_out_of_reach() {
        for (ip, reach) in [
            ("93.184.216.34", Reach::Public),
            ("2606:2800:220:1::1", Reach::Public),
            ("127.0.0.1", Reach::Private),
            ("10.1.2.3", Reach::Private),
            ("172.16.0.1", Reach::Private),
            ("192.168.1.1", Reach::Private),
            ("100.64.0.1", Reach::Private),
            ("::1", Reach::Private),
            ("fd12::1", Reach::Private),
            ("::ffff:10.0.0.1", Reach::Private),
            ("64:ff9b::a00:1", Reach::Private),
            ("169.254.169.254", Reach::Any),
            ("::ffff:169.254.169.254", Reach::Any),
            ("64:ff9b::a9fe:a9fe", Reach::Any),
            ("2002:a9fe:a9fe::1", Reach::Any),
            ("fe80::1", Reach::Any),
            ("fd00:ec2::254", Reach::Any),
            ("100.100.100.200", Reach::Any),
            ("0.0.0.0", Reach::Any),
            ("::", Reach::Any),
            ("255.255.255.255", Reach::Any),
            ("224.0.0.1", Reach::Any),
        ] {
            assert_eq!(needed(ip.parse().unwrap()), reach, "{ip}");
        }
    }

    #[test]
    fn what_is_out_of_reach_is_not_connected_to() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let http = Http::new(Duration::from_secs(5), Reach::Public, None).unwrap();
        for host in ["127.0.0.1", "localhost"] {
            let error = http.post(&format!("http://{host}:{port}/secret"), &[], b"{}", Wall(0)).unwrap_err();
            assert!(error.contains("not allowed") && !error.contains("secret"), "{error}");
        }
        listener.set_nonblocking(true).unwrap();
        assert!(listener.accept().is_err(), "nobody came");
    }

    #[test]
    fn a_receiver_says_when_it_wants_to_be_asked_again() {
        assert_eq!(wait(" 120", Wall(0)), Some(Duration::from_secs(120)));
        let now = Wall(1_445_412_470 * SECOND);
        assert_eq!(wait("Wed, 21 Oct 2015 07:28:00 GMT", now), Some(Duration::from_secs(10)));
        assert_eq!(wait("Wed, 21 Oct 2015 07:28:00 GMT", Wall(now.0 + 60 * SECOND)), None);
        assert_eq!(wait("soon", Wall(0)), None);
    }
}
