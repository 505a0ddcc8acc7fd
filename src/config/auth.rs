//! `[auth]`: who may ask and write over HTTP, and the keys of commands.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use super::reader::Section;
use super::{Secret, seconds};

/// `[auth]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Auth {
    /// What callers from this host need.
    pub loopback: Loopback,
    /// Bearer tokens.
    pub tokens: Vec<Token>,
    /// Keys that sign and check commands.
    pub keys: Vec<Key>,
    /// Id of the key that REST and the command line sign with.
    pub sign_with: Option<String>,
    /// Tokens of an issuer; `None`: they do not count.
    pub jwt: Option<Jwt>,
}

/// `[auth.jwt]`: whose tokens count, and what they say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Jwt {
    /// File with the issuer's public keys, a JWKS.
    pub jwks: PathBuf,
    /// Who signs: `iss`.
    pub issuer: String,
    /// For whom: `aud`.
    pub audience: String,
    /// Name of the claim that holds the tenant.
    pub tenant_claim: String,
    /// Name of the claim that holds the authority.
    pub authority_claim: String,
    /// Name of the claim that holds the role.
    pub role_claim: String,
    /// Name of the claim that holds the caller's name.
    pub name_claim: String,
    /// By how much clocks may differ.
    pub leeway: Duration,
}

/// What callers from this host need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loopback {
    /// Nothing: they are administrators of all tenants.
    Open,
    /// A token, as everybody.
    Token,
}

/// A bearer token and what it is good for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// Name of the principal, as it appears in the audit.
    pub name: String,
    /// The token.
    pub token: Secret,
    /// Authority, 1 (WORKER) to 5 (SYSTEM).
    pub authority: u8,
    /// `view`, `operate` or `admin`; `None`: as its authority says.
    pub role: Option<String>,
    /// Its tenant; `*` is all.
    pub tenant: String,
}

/// A command-signing key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// `key_id` of commands.
    pub id: String,
    /// The shared secret.
    pub secret: Secret,
    /// What it signs has at most this authority, 1 (WORKER) to 5 (SYSTEM).
    pub authority: u8,
}

pub(super) fn auth(s: &mut Section<'_, '_>) -> Auth {
    const AUTHORITY: [(&str, u8); 5] = [("WORKER", 1), ("WATCHDOG", 2), ("MONITOR", 3), ("GUARDIAN", 4), ("SYSTEM", 5)];
    const ACCESS: [&str; 3] = ["view", "operate", "admin"];
    /// It stands in commands, which have bounds of their own.
    const LONGEST: usize = 200;
    /// Shorter ones can be guessed.
    const LEAST: usize = 16;
    let auth = Auth {
        loopback: s.choice("loopback", Loopback::Token, &[("token", Loopback::Token), ("open", Loopback::Open)]),
        tokens: s.entries("tokens", |t| {
            let (name, token) = (t.required("name"), t.required_secret("token"));
            if name.as_ref().is_some_and(|name| name.len() > LONGEST || name.chars().any(char::is_control)) {
                t.refuse("name", format!("must have at most {LONGEST} bytes, without control characters"));
            }
            let authority = t.choice("authority", 1, &AUTHORITY);
            let role = t.optional("role");
            if role.as_ref().is_some_and(|role| !ACCESS.contains(&role.as_str())) {
                t.refuse("role", format!("must be one of {}", ACCESS.join(", ")));
            }
            let tenant = t.required("tenant");
            if token.as_ref().is_some_and(|token| token.expose().len() < LEAST) {
                t.refuse("token", format!("must have at least {LEAST} bytes"));
            }
            Some(Token { name: name?, token: token?, authority, role, tenant: tenant? })
        }),
        keys: s.entries("keys", |k| {
            let (id, secret) = (k.required("id"), k.required_secret("secret"));
            if secret.as_ref().is_some_and(|secret| secret.expose().len() < LEAST) {
                k.refuse("secret", format!("must have at least {LEAST} bytes"));
            }
            let authority = k.choice("authority", 5, &AUTHORITY);
            Some(Key { id: id?, secret: secret?, authority })
        }),
        sign_with: s.optional("sign-with"),
        jwt: s.nested("jwt", jwt),
    };
    if let Some(id) = &auth.sign_with
        && !auth.keys.iter().any(|key| key.id == *id)
    {
        s.refuse("sign-with", "must be the id of one of auth.keys");
    }
    let distinct = |values: Vec<&str>| values.iter().collect::<BTreeSet<_>>().len() == values.len();
    if !distinct(auth.tokens.iter().map(|t| t.name.as_str()).collect()) {
        s.refuse("tokens", "names must differ");
    }
    if !distinct(auth.tokens.iter().map(|t| t.token.expose()).collect()) {
        s.refuse("tokens", "tokens must differ");
    }
    if !distinct(auth.keys.iter().map(|k| k.id.as_str()).collect()) {
        s.refuse("keys", "ids must differ");
    }
    auth
}

fn jwt(s: &mut Section<'_, '_>) -> Option<Jwt> {
    let jwks = s.required_path("jwks");
    let [issuer, audience] = ["issuer", "audience"].map(|key| s.required(key));
    let claims = [
        ("tenant-claim", "tenant_id"),
        ("authority-claim", "authority"),
        ("role-claim", "role"),
        ("name-claim", "sub"),
    ];
    let [tenant_claim, authority_claim, role_claim, name_claim] = claims.map(|(key, default)| s.text(key, default));
    let leeway = s.duration("leeway", seconds(60), Duration::ZERO..=seconds(600));
    let (jwks, issuer, audience) = (jwks?, issuer?, audience?);
    Some(Jwt { jwks, issuer, audience, tenant_claim, authority_claim, role_claim, name_claim, leeway })
}
