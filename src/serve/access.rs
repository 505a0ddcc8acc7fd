//! Who may ask (O7): bearer tokens that carry authority and tenant, and callers from this host where that is configured.
//!
//! Tokens are kept and compared as SHA-256: what is held in memory opens nothing, and comparing takes no longer the more of it is right.
//! A caller without a token is an administrator of all tenants only where `[auth] loopback = "open"`, it comes from this host, and it
//! asks for this host by name: a page that a browser was made to load under another name gets nothing.
//!
//! A token that is none of these may be a JWT ([`Jwt`]): signed by an issuer whose keys are in a file.

mod jwt;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::http::{HeaderMap, header};
use sha2::{Digest, Sha256};

pub use jwt::{Jwt, JwtError};

use crate::decide::commands::{GUARDIAN, SYSTEM, WATCHDOG};

/// Every tenant.
pub const ALL: &str = "*";
/// What a token in the configuration begins with when it is given by its SHA-256.
const HASHED: &str = "sha256:";

/// What a caller may do here at all. What it may command is bounded by its authority besides, which the core judges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Reads.
    View,
    /// Acts on alerts, silences, lessons and interventions.
    Operate,
    /// Changes policies and limits, and what responds to the policy level.
    Admin,
}

impl Role {
    /// All of them, the least first.
    pub const ALL: [Self; 3] = [Self::View, Self::Operate, Self::Admin];

    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::View => "view",
            Self::Operate => "operate",
            Self::Admin => "admin",
        }
    }

    /// The role of this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == name)
    }

    /// The role of whom nothing else is said of than its authority.
    pub fn of_authority(authority: u8) -> Self {
        match authority {
            GUARDIAN.. => Self::Admin,
            WATCHDOG.. => Self::Operate,
            _ => Self::View,
        }
    }
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// As it appears in the audit.
    pub name: String,
    /// 1 (WORKER) to 5 (SYSTEM).
    pub authority: u8,
    /// `*`: all.
    pub tenant: String,
    /// What it may do here.
    pub role: Role,
}

impl Caller {
    /// Whom nothing else is said of than its authority: that gives its role.
    pub fn new(name: impl Into<String>, authority: u8, tenant: impl Into<String>) -> Self {
        Self { name: name.into(), authority, tenant: tenant.into(), role: Role::of_authority(authority) }
    }

    /// Whether it may do what takes a role.
    ///
    /// # Errors
    /// Its own role is a lower one.
    pub fn may(&self, required: Role) -> Result<(), Denied> {
        if self.role >= required { Ok(()) } else { Err(Denied::Role { required, given: self.role }) }
    }

    /// The tenant that is asked about: the caller's own, or the one it names if it may see all.
    ///
    /// # Errors
    /// It names another one, or none where it has to.
    pub fn tenant<'a>(&'a self, named: Option<&'a str>) -> Result<&'a str, Denied> {
        match named.filter(|named| !named.is_empty()) {
            None if self.tenant == ALL => Err(Denied::NoTenant),
            None => Ok(&self.tenant),
            Some(named) if self.tenant == ALL || self.tenant == named => Ok(named),
            Some(_) => Err(Denied::Tenant),
        }
    }

    /// Whether something of a tenant may be shown.
    pub fn sees(&self, tenant: &str) -> bool {
        self.tenant == ALL || self.tenant == tenant
    }
}

/// Why an answer is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// No token.
    #[error("a bearer token is needed: send `Authorization: Bearer …` with one of [[auth.tokens]]")]
    NoToken,
    /// Not one of ours.
    #[error("this token is not known")]
    Unknown,
    /// Open to this host, but asked for under another name.
    #[error("without a token this is open to this host only, asked for as localhost, 127.0.0.1 or [::1]")]
    Host,
    /// The token is of one tenant, and another was asked for.
    #[error("this token is of another tenant")]
    Tenant,
    /// The token is of all tenants, and none was named.
    #[error("this token is of all tenants: name one with ?tenant_id=")]
    NoTenant,
    /// A JWT that does not count.
    #[error("this token does not count: {0}")]
    Token(&'static str),
    /// The caller's role is too low.
    #[error("this takes the role {}, and the caller has {}", required.as_str(), given.as_str())]
    Role {
        /// What it takes.
        required: Role,
        /// What the caller has.
        given: Role,
    },
}

/// Who may ask.
#[derive(Debug, Clone, Default)]
pub struct Access {
    open: bool,
    tokens: Vec<([u8; 32], Caller)>,
    jwt: Option<Arc<Jwt>>,
}

impl Access {
    /// `open`: callers from this host need no token.
    pub fn new(open: bool) -> Self {
        Self { open, tokens: Vec::new(), jwt: None }
    }

    /// Tokens of an issuer count too.
    #[must_use]
    pub fn with_jwt(self, jwt: Jwt) -> Self {
        Self { jwt: Some(Arc::new(jwt)), ..self }
    }

    /// One more token, as text or as `sha256:` and its digest in hexadecimal.
    #[must_use]
    pub fn with(mut self, token: &str, caller: Caller) -> Self {
        let hashed = token.strip_prefix(HASHED).and_then(unhex);
        self.tokens.push((hashed.unwrap_or_else(|| digest(token)), caller));
        self
    }

    /// Who asks.
    ///
    /// # Errors
    /// Nobody that is known.
    pub fn caller(&self, peer: SocketAddr, headers: &HeaderMap) -> Result<Caller, Denied> {
        let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        if let Some(given) = given {
            let token = given.split_once(' ').filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
            let token = token.ok_or(Denied::NoToken)?.1.trim();
            return self.by_token(token);
        }
        let open = self.open_to(peer.ip()).ok_or(Denied::NoToken)?;
        let host = headers.get(header::HOST).and_then(|value| value.to_str().ok());
        if !host.is_some_and(names_this_host) {
            return Err(Denied::Host);
        }
        Ok(open)
    }

    /// Who sends telemetry: as [`Self::caller`], but from this host nobody needs a token.
    ///
    /// # Errors
    /// As [`Self::caller`].
    pub fn sender(&self, peer: SocketAddr, headers: &HeaderMap) -> Result<Caller, Denied> {
        if is_here(peer.ip()) && !headers.contains_key(header::AUTHORIZATION) {
            return Self::new(true).caller(peer, headers);
        }
        self.caller(peer, headers)
    }

    /// Whose token this is.
    ///
    /// # Errors
    /// It is not one of ours, or no longer.
    pub fn by_token(&self, token: &str) -> Result<Caller, Denied> {
        let sent = digest(token);
        if let Some((_, caller)) = self.tokens.iter().find(|(known, _)| *known == sent) {
            return Ok(caller.clone());
        }
        self.jwt.as_ref().map_or(Err(Denied::Unknown), |jwt| jwt.caller(token, sent))
    }

    /// Who asks without a token, if that is enough where it comes from.
    pub fn open_to(&self, peer: IpAddr) -> Option<Caller> {
        (self.open && is_here(peer)).then(|| Caller::new("loopback", SYSTEM, ALL))
    }
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let text = text.as_bytes();
    let mut bytes = [0; 32];
    if text.len() != 64 {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

fn is_here(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

fn names_this_host(host: &str) -> bool {
    if let Ok(address) = host.parse::<SocketAddr>() {
        return is_here(address.ip());
    }
    let name = host.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok()).map_or(host, |(name, _)| name);
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok_and(is_here)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn asked(access: &Access, peer: &str, authorization: Option<&str>, host: &str) -> Result<String, Denied> {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_str(host).unwrap());
        if let Some(authorization) = authorization {
            headers.insert(header::AUTHORIZATION, HeaderValue::from_str(authorization).unwrap());
        }
        access.caller(peer.parse().unwrap(), &headers).map(|caller| caller.name)
    }

    fn of(name: &str, tenant: &str) -> Caller {
        Caller::new(name, 1, tenant)
    }

    #[test]
    fn a_token_opens_and_nothing_like_it_does() {
        let hex: String = digest("another secret text").iter().map(|b| format!("{b:02x}")).collect();
        let access = Access::new(false)
            .with("a secret of some length", of("a", "acme"))
            .with(&format!("sha256:{hex}"), of("b", "*"));
        let from = |token: Option<&str>| asked(&access, "10.0.0.1:5", token, "x");
        assert_eq!(from(Some("Bearer a secret of some length")), Ok("a".into()));
        assert_eq!(from(Some("bearer another secret text")), Ok("b".into()));
        assert_eq!(from(Some("Bearer a secret of some lengt")), Err(Denied::Unknown));
        assert_eq!(from(Some(&format!("Bearer {hex}"))), Err(Denied::Unknown), "the digest opens nothing");
        assert_eq!(from(Some("Basic a secret of some length")), Err(Denied::NoToken));
        assert_eq!(asked(&access, "127.0.0.1:5", None, "localhost"), Err(Denied::NoToken));
    }

    #[test]
    fn without_a_token_only_this_host_and_only_by_its_name() {
        let access = Access::new(true).with("a secret of some length", of("a", "acme"));
        for host in ["localhost", "LOCALHOST:8080", "127.0.0.1", "127.0.0.1:8080", "[::1]:8080", "[::1]"] {
            assert_eq!(asked(&access, "127.0.0.1:5", None, host), Ok("loopback".into()), "{host}");
        }
        for host in ["evil.example", "localhost.evil.example:80", "10.0.0.1:8080", "", "127.0.0.1.evil.example"] {
            assert_eq!(asked(&access, "127.0.0.1:5", None, host), Err(Denied::Host), "{host}");
        }
        assert_eq!(asked(&access, "10.0.0.1:5", None, "localhost"), Err(Denied::NoToken));
        assert_eq!(asked(&access, "[::ffff:127.0.0.1]:5", None, "localhost"), Ok("loopback".into()));
        // who sends a wrong token is not let in as nobody
        assert_eq!(asked(&access, "127.0.0.1:5", Some("Bearer wrong"), "localhost"), Err(Denied::Unknown));
    }

    #[test]
    fn telemetry_from_this_host_needs_no_token_and_a_wrong_one_is_refused() {
        let access = Access::new(false).with("a secret of some length", of("a", "acme"));
        let sent = |peer: &str, host: &'static str, token: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_static(host));
            if let Some(token) = token {
                headers.insert(header::AUTHORIZATION, HeaderValue::from_static(token));
            }
            access.sender(peer.parse().unwrap(), &headers).map(|caller| caller.tenant)
        };
        assert_eq!(sent("127.0.0.1:5", "localhost:4318", None), Ok("*".into()));
        assert_eq!(sent("127.0.0.1:5", "localhost:4318", Some("Bearer a secret of some length")), Ok("acme".into()));
        assert_eq!(sent("127.0.0.1:5", "localhost:4318", Some("Bearer wrong")), Err(Denied::Unknown));
        assert_eq!(sent("127.0.0.1:5", "evil.example:4318", None), Err(Denied::Host));
        assert_eq!(sent("10.0.0.1:5", "localhost:4318", None), Err(Denied::NoToken));
    }

    #[test]
    fn who_asks_by_other_means_than_http_is_known_by_the_token_or_by_where_it_comes_from() {
        let access = Access::new(true).with("a secret of some length", of("a", "acme"));
        assert_eq!(access.by_token("a secret of some length"), Ok(of("a", "acme")));
        let unknown = || Err(Denied::Unknown);
        assert_eq!((access.by_token("a secret of some lengt"), access.by_token("")), (unknown(), unknown()));
        let from = |access: &Access, ip: &str| access.open_to(ip.parse().unwrap()).map(|caller| caller.tenant);
        assert_eq!((from(&access, "127.0.0.1"), from(&access, "::1")), (Some("*".into()), Some("*".into())));
        assert_eq!((from(&access, "10.0.0.1"), from(&Access::new(false), "127.0.0.1")), (None, None));
    }

    #[test]
    fn a_token_of_one_tenant_shows_no_other() {
        let (one, all) = (of("a", "acme"), of("b", "*"));
        assert_eq!((one.tenant(None), one.tenant(Some("acme"))), (Ok("acme"), Ok("acme")));
        assert_eq!(one.tenant(Some("other")), Err(Denied::Tenant));
        assert_eq!((all.tenant(Some("other")), all.tenant(None)), (Ok("other"), Err(Denied::NoTenant)));
        assert!(one.sees("acme") && !one.sees("other") && !one.sees("*") && all.sees("other"));
    }

    #[test]
    fn a_role_follows_from_the_authority_and_bounds_what_one_may_do() {
        let role = |authority| Caller::new("a", authority, "acme").role;
        assert_eq!([1, 2, 3, 4, 5].map(role), [Role::View, Role::Operate, Role::Operate, Role::Admin, Role::Admin]);
        let may = |role, required| Caller { role, ..Caller::new("a", 1, "acme") }.may(required).is_ok();
        assert!(may(Role::Admin, Role::Admin) && may(Role::Admin, Role::View) && may(Role::View, Role::View));
        assert!(!may(Role::View, Role::Operate) && !may(Role::Operate, Role::Admin));
        assert!(Role::ALL.into_iter().all(|role| Role::parse(role.as_str()) == Some(role)));
    }

    #[test]
    fn who_needs_no_token_is_an_administrator() {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_static("localhost"));
        let caller = Access::new(true).caller("127.0.0.1:5".parse().unwrap(), &headers).unwrap();
        assert_eq!((caller.authority, caller.role, caller.tenant.as_str()), (5, Role::Admin, ALL));
    }
}
