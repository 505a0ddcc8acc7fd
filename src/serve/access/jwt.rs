//! Tokens that an issuer signs (JWT, RFC 7519): its public keys are in a file (JWKS, RFC 7517) that is read again when it changes.
//!
//! Which algorithm counts is what the key says, never what the token says; keys that both sides share (HS256 …) are none of ours. A
//! token names its key, its end and its tenant, or it does not count. What was found good is remembered for a short while, since
//! whoever asks for verdicts asks often; no longer than the keys it was found good with.

use std::collections::HashMap;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, crypto};
use serde_json::{Map, Value};

use super::{Caller, Denied, Role};
use crate::clock::{Micros, SECOND, Wall};
use crate::config::{Jwt as Settings, micros};
use crate::decide::commands::{SYSTEM, UNSIGNED, authority_name};

/// Longest token, in bytes.
pub const MAX_TOKEN: usize = 8 << 10;
/// Largest file of keys, in bytes.
const MAX_FILE: u64 = 256 << 10;
/// Most keys in it.
const MAX_KEYS: usize = 64;
/// Longest name, tenant and id of a key, in bytes.
const MAX_NAME: usize = 200;
/// How often the file is looked at.
const LOOK: Micros = 2 * SECOND;
/// How long a token that was found good is not looked at again.
const REMEMBERED: Micros = 60 * SECOND;
/// Most tokens remembered.
const MOST: usize = 1_024;
/// Bytes of the modulus of an RSA key, least and most: 2,048 and 4,096 bits.
const MODULUS: std::ops::RangeInclusive<usize> = 256..=512;
/// Bytes of a coordinate of a point on P-256 or Ed25519.
const COORDINATE: usize = 32;

/// Why the keys of an issuer cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JwtError {
    /// The file cannot be read.
    #[error("the keys of auth.jwt cannot be read from {path}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// It is no set of keys, or a larger one than is read.
    #[error("{path} is no JWKS of at most {MAX_FILE} bytes and {MAX_KEYS} keys")]
    NotKeys {
        /// Which file.
        path: PathBuf,
    },
    /// There is nothing in it that a token may be checked with.
    #[error("{path} has no key with a kid for RS256, PS256, ES256 or EdDSA")]
    Empty {
        /// Which file.
        path: PathBuf,
    },
}

/// A key, and what a token signed with it must be like.
struct Key {
    key: DecodingKey,
    validation: Validation,
}

/// What tells one state of a file from another.
type Stamp = (Option<SystemTime>, u64, u64);

struct State {
    keys: HashMap<String, Arc<Key>>,
    /// Of the file that the keys came from, or that could not be used.
    stamp: Option<Stamp>,
    looked: Micros,
    /// Counts the states of the file.
    revision: u64,
    good: HashMap<[u8; 32], (Caller, Micros)>,
}

/// Checks the tokens of one issuer.
pub struct Jwt {
    settings: Settings,
    clock: fn() -> Wall,
    state: Mutex<State>,
}

impl std::fmt::Debug for Jwt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Jwt").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Jwt {
    /// With the keys that the file holds now.
    ///
    /// # Errors
    /// There is no such file, or no key in it that can be used.
    pub fn new(settings: Settings, clock: fn() -> Wall) -> Result<Self, JwtError> {
        // process-wide: whoever came first chose the same, since there is no other in this build
        if crypto::rust_crypto::DEFAULT_PROVIDER.install_default().is_err() {
            tracing::trace!("the cryptography of tokens was chosen before");
        }
        let (stamp, keys) = (stamp(&settings.jwks), read(&settings)?);
        let state = State { keys, stamp, looked: clock().0, revision: 0, good: HashMap::new() };
        Ok(Self { settings, clock, state: Mutex::new(state) })
    }

    /// Whose token it is; `digest` is the token's.
    ///
    /// # Errors
    /// It does not count.
    pub(super) fn caller(&self, token: &str, digest: [u8; 32]) -> Result<Caller, Denied> {
        if token.len() > MAX_TOKEN {
            return Err(Denied::Token("it is too long"));
        }
        let now = (self.clock)().0;
        let (key, revision) = {
            let mut state = self.state(now);
            if let Some((caller, _)) = state.good.get(&digest).filter(|(_, until)| *until > now) {
                return Ok(caller.clone());
            }
            state.good.remove(&digest);
            let header = jsonwebtoken::decode_header(token).map_err(|_| Denied::Unknown)?;
            if header.extras.inner().contains_key("crit") {
                return Err(Denied::Token("it asks for extensions"));
            }
            let kid = header.kid.ok_or(Denied::Token("it names no key (kid)"))?;
            let key = state.keys.get(&kid).ok_or(Denied::Token("its key (kid) is not known"))?;
            (Arc::clone(key), state.revision)
        };
        let (caller, end) = self.check(token, &key, now)?;
        let mut state = self.state(now);
        if state.revision == revision {
            if state.good.len() >= MOST {
                state.good.retain(|_, (_, until)| *until > now);
            }
            if state.good.len() >= MOST {
                state.good.clear();
            }
            state.good.insert(digest, (caller.clone(), end.min(now.saturating_add(REMEMBERED))));
        }
        Ok(caller)
    }

    /// The caller, and until when the token counts.
    fn check(&self, token: &str, key: &Key, now: Micros) -> Result<(Caller, Micros), Denied> {
        use jsonwebtoken::errors::ErrorKind;
        let wrong = |error: jsonwebtoken::errors::Error| match error.kind() {
            ErrorKind::InvalidAlgorithm => Denied::Token("its algorithm is not that of its key"),
            ErrorKind::InvalidSignature => Denied::Token("its signature is wrong"),
            ErrorKind::InvalidIssuer => Denied::Token("it is of another issuer"),
            ErrorKind::InvalidAudience => Denied::Token("it is for another audience"),
            ErrorKind::MissingRequiredClaim(_) => Denied::Token("exp, iss or aud is missing"),
            _ => Denied::Token("it cannot be read"),
        };
        let claims =
            jsonwebtoken::decode::<Map<String, Value>>(token, &key.key, &key.validation).map_err(wrong)?.claims;
        let leeway = micros(self.settings.leeway);
        let end = instant(claims.get("exp")).ok_or(Denied::Token("exp is no time"))?.saturating_add(leeway);
        if end <= now {
            return Err(Denied::Token("it has expired"));
        }
        if let Some(begin) = claims.get("nbf").filter(|value| !value.is_null()) {
            let begin = instant(Some(begin)).ok_or(Denied::Token("nbf is no time"))?;
            if begin > now.saturating_add(leeway) {
                return Err(Denied::Token("it does not count yet"));
            }
        }
        Ok((self.caller_of(&claims)?, end))
    }

    fn caller_of(&self, claims: &Map<String, Value>) -> Result<Caller, Denied> {
        let claim = |name: &str| claims.get(name).filter(|value| !value.is_null());
        let text = |name: &str, wrong: &'static str| {
            let text = claim(name).and_then(Value::as_str).filter(|text| is_name(text));
            text.map(str::to_owned).ok_or(Denied::Token(wrong))
        };
        let tenant = text(&self.settings.tenant_claim, "its claim of a tenant is missing, or no name")?;
        let name = text(&self.settings.name_claim, "its claim of a name is missing, or no name")?;
        let authority = claim(&self.settings.authority_claim).map_or(Some(UNSIGNED), authority);
        let authority = authority.ok_or(Denied::Token("its claim of an authority is none"))?;
        let role = match claim(&self.settings.role_claim) {
            None => Role::of_authority(authority),
            Some(role) => role.as_str().and_then(Role::parse).ok_or(Denied::Token("its claim of a role is none"))?,
        };
        Ok(Caller { name, authority, tenant, role })
    }

    /// The state, with the keys that the file holds.
    fn state(&self, now: Micros) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // also when the clock was set back
        if now.saturating_sub(state.looked).saturating_abs() >= LOOK {
            state.looked = now;
            let stamp = stamp(&self.settings.jwks);
            if stamp != state.stamp {
                state.stamp = stamp;
                match read(&self.settings) {
                    Ok(keys) => {
                        tracing::info!(keys = keys.len(), "the keys of auth.jwt have changed");
                        state.keys = keys;
                        state.revision += 1;
                        state.good.clear();
                    }
                    Err(error) => {
                        let error: &dyn std::error::Error = &error;
                        tracing::error!(error, "the keys of auth.jwt that were known before stay");
                    }
                }
            }
        }
        state
    }
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_NAME && !text.chars().any(char::is_control)
}

/// `3` or `"MONITOR"`.
fn authority(value: &Value) -> Option<u8> {
    let mut levels = UNSIGNED..=SYSTEM;
    match value {
        Value::String(name) => levels.find(|level| authority_name(*level) == name),
        number => number.as_u64().and_then(|n| u8::try_from(n).ok()).filter(|level| levels.contains(level)),
    }
}

/// Seconds since 1970, with or without fractions.
fn instant(value: Option<&Value>) -> Option<Micros> {
    let value = value?;
    if let Some(whole) = value.as_i64() {
        return Some(whole.saturating_mul(SECOND));
    }
    #[expect(clippy::cast_possible_truncation, reason = "a float that is too large becomes the largest integer")]
    value.as_f64().map(|seconds| (seconds as Micros).saturating_mul(SECOND))
}

fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok(), metadata.len(), metadata.ino()))
}

fn read(settings: &Settings) -> Result<HashMap<String, Arc<Key>>, JwtError> {
    let path = || settings.jwks.clone();
    let failed = |source| JwtError::Read { path: path(), source };
    let not_keys = || JwtError::NotKeys { path: path() };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(&settings.jwks).map_err(failed)?;
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(failed)?;
    let set: Value = serde_json::from_slice(&bytes).map_err(|_| not_keys())?;
    let listed = set.get("keys").and_then(Value::as_array).ok_or_else(not_keys)?;
    if listed.len() > MAX_KEYS {
        return Err(not_keys());
    }
    let mut keys = HashMap::new();
    for (number, value) in listed.iter().enumerate() {
        match key(value, settings) {
            Ok((kid, key)) => drop(keys.insert(kid, Arc::new(key))),
            Err(why) => tracing::warn!(path = %settings.jwks.display(), number, why, "a key of auth.jwt is not used"),
        }
    }
    if keys.is_empty() { Err(JwtError::Empty { path: path() }) } else { Ok(keys) }
}

/// A key that can be used, and its id.
fn key(value: &Value, settings: &Settings) -> Result<(String, Key), &'static str> {
    let jwk: Jwk = serde_json::from_value(value.clone()).map_err(|_| "it is no key")?;
    let kid = jwk.common.key_id.clone().filter(|kid| is_name(kid)).ok_or("it has no kid")?;
    if jwk.common.public_key_use.as_ref().is_some_and(|purpose| *purpose != PublicKeyUse::Signature) {
        return Err("it is not for signatures");
    }
    let algorithm = match (&jwk.algorithm, jwk.common.key_algorithm) {
        (AlgorithmParameters::RSA(_), None | Some(KeyAlgorithm::RS256)) => Algorithm::RS256,
        (AlgorithmParameters::RSA(_), Some(KeyAlgorithm::PS256)) => Algorithm::PS256,
        (AlgorithmParameters::EllipticCurve(_), None | Some(KeyAlgorithm::ES256)) => Algorithm::ES256,
        (AlgorithmParameters::OctetKeyPair(_), None | Some(KeyAlgorithm::EdDSA)) => Algorithm::EdDSA,
        _ => return Err("it is for none of RS256, PS256, ES256, EdDSA"),
    };
    let sized = match &jwk.algorithm {
        AlgorithmParameters::RSA(rsa) => MODULUS.contains(&bytes(&rsa.n)) && (1..=8).contains(&bytes(&rsa.e)),
        AlgorithmParameters::EllipticCurve(point) => {
            point.curve == EllipticCurve::P256 && bytes(&point.x) == COORDINATE && bytes(&point.y) == COORDINATE
        }
        AlgorithmParameters::OctetKeyPair(pair) => pair.curve == EllipticCurve::Ed25519 && bytes(&pair.x) == COORDINATE,
        _ => false,
    };
    if !sized {
        return Err("its size or curve is not one that is used");
    }
    let key = DecodingKey::from_jwk(&jwk).map_err(|_| "it cannot be read")?;
    let mut validation = Validation::new(algorithm);
    validation.set_issuer(&[&settings.issuer]);
    validation.set_audience(&[&settings.audience]);
    validation.set_required_spec_claims(&["exp", "iss", "aud"]);
    // times are judged by this process's one clock
    validation.validate_exp = false;
    validation.validate_nbf = false;
    Ok((kid, Key { key, validation }))
}

/// How many bytes a base64url text without padding holds.
fn bytes(encoded: &str) -> usize {
    encoded.len() * 3 / 4
}

#[cfg(test)]
mod tests;
