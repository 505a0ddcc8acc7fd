use axum::http::{HeaderMap, HeaderValue, header};
use jsonwebtoken::{EncodingKey, Header};
use serde_json::json;

use super::super::Access;
use super::*;

// made for these tests with openssl; they open nothing
const RSA: &[u8] = include_bytes!("rsa.der");
const EC: &[u8] = include_bytes!("ec.der");
const ED: &[u8] = include_bytes!("ed.der");

const T0: i64 = 1_700_000_000;

fn at(seconds: i64) -> Wall {
    Wall((T0 + seconds) * SECOND)
}

fn t0() -> Wall {
    at(0)
}

fn private(algorithm: Algorithm) -> EncodingKey {
    match algorithm {
        Algorithm::ES256 => EncodingKey::from_ec_der(EC),
        Algorithm::EdDSA => EncodingKey::from_ed_der(ED),
        Algorithm::HS256 => EncodingKey::from_secret(b"shared"),
        _ => EncodingKey::from_rsa_der(RSA),
    }
}

fn public(algorithm: Algorithm, kid: &str) -> Value {
    let mut jwk = Jwk::from_encoding_key(&private(algorithm), algorithm).unwrap();
    jwk.common.key_id = Some(kid.into());
    json!(jwk)
}

fn token_with(algorithm: Algorithm, kid: Option<&str>, claims: &Value) -> String {
    let header = Header { kid: kid.map(str::to_owned), ..Header::new(algorithm) };
    jsonwebtoken::encode(&header, claims, &private(algorithm)).unwrap()
}

fn claims() -> Value {
    json!({
        "iss": "https://issuer", "aud": "runwarden", "sub": "ada", "exp": T0 + 600, "tenant_id": "acme", "authority": "GUARDIAN",
    })
}

/// The claims with one changed; null takes it away.
fn but(name: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[name] = value;
    if claims[name].is_null() {
        claims.as_object_mut().unwrap().remove(name);
    }
    claims
}

struct Issuer {
    dir: tempfile::TempDir,
}

impl Issuer {
    fn new(keys: &[Value]) -> Self {
        let issuer = Self { dir: tempfile::tempdir().unwrap() };
        issuer.publish(keys);
        issuer
    }

    fn settings(&self) -> Settings {
        Settings {
            jwks: self.dir.path().join("jwks.json"),
            issuer: "https://issuer".into(),
            audience: "runwarden".into(),
            tenant_claim: "tenant_id".into(),
            authority_claim: "authority".into(),
            role_claim: "role".into(),
            name_claim: "sub".into(),
            leeway: std::time::Duration::from_secs(30),
        }
    }

    /// Whole at once, as those who rotate keys do it.
    fn publish(&self, keys: &[Value]) {
        let draft = self.dir.path().join("draft");
        std::fs::write(&draft, json!({"keys": keys}).to_string()).unwrap();
        std::fs::rename(draft, self.settings().jwks).unwrap();
    }

    fn access(&self, clock: fn() -> Wall) -> Access {
        Access::new(false).with_jwt(Jwt::new(self.settings(), clock).unwrap())
    }
}

fn ask(access: &Access, token: &str) -> Result<Caller, Denied> {
    let mut headers = HeaderMap::new();
    headers.insert(header::AUTHORIZATION, HeaderValue::from_str(&format!("Bearer {token}")).unwrap());
    access.caller("10.0.0.1:5".parse().unwrap(), &headers)
}

#[test]
fn each_algorithm_counts_with_the_key_that_says_so_and_with_no_other() {
    const ALL: [Algorithm; 4] = [Algorithm::RS256, Algorithm::PS256, Algorithm::ES256, Algorithm::EdDSA];
    for keyed in ALL {
        let access = Issuer::new(&[public(keyed, "k")]).access(t0);
        for signed in ALL {
            let found = ask(&access, &token_with(signed, Some("k"), &claims()));
            let caller = Caller { role: Role::Admin, ..Caller::new("ada", 4, "acme") };
            let wanted =
                if keyed == signed { Ok(caller) } else { Err(Denied::Token("its algorithm is not that of its key")) };
            assert_eq!(found, wanted, "{signed:?} with a key for {keyed:?}");
        }
        let shared = token_with(Algorithm::HS256, Some("k"), &claims());
        assert_eq!(ask(&access, &shared), Err(Denied::Token("its algorithm is not that of its key")));
    }
}

#[test]
fn a_token_without_signature_or_with_a_changed_one_does_not_count() {
    let issuer = Issuer::new(&[public(Algorithm::EdDSA, "k")]);
    let access = issuer.access(t0);
    let good = token_with(Algorithm::EdDSA, Some("k"), &claims());
    let other = token_with(Algorithm::EdDSA, Some("k"), &but("tenant_id", json!("other")));
    let parts: Vec<&str> = good.split('.').collect();
    let forged = format!("{}.{}.{}", parts[0], other.split('.').nth(1).unwrap(), parts[2]);
    assert_eq!(ask(&access, &forged), Err(Denied::Token("its signature is wrong")));
    // {"alg":"none","kid":"k"}
    let none = format!("eyJhbGciOiJub25lIiwia2lkIjoiayJ9.{}.", parts[1]);
    assert_eq!(ask(&access, &none), Err(Denied::Unknown));
    assert_eq!(ask(&access, &format!("{}.{}.", parts[0], parts[1])), Err(Denied::Token("its signature is wrong")));
    assert_eq!(ask(&access, "no.jwt.at all"), Err(Denied::Unknown));
    assert_eq!(ask(&access, &"x".repeat(MAX_TOKEN + 1)), Err(Denied::Token("it is too long")));
    assert!(ask(&access, &good).is_ok());
}

#[test]
fn what_a_token_must_say_is_asked_for() {
    let issuer = Issuer::new(&[public(Algorithm::ES256, "k")]);
    let access = issuer.access(t0);
    let refused = |claims: &Value| match ask(&access, &token_with(Algorithm::ES256, Some("k"), claims)) {
        Err(Denied::Token(why)) => why,
        other => panic!("{claims}: {other:?}"),
    };
    for (name, value, wanted) in [
        ("exp", Value::Null, "exp, iss or aud is missing"),
        ("iss", Value::Null, "exp, iss or aud is missing"),
        ("aud", Value::Null, "exp, iss or aud is missing"),
        ("iss", json!("https://another"), "it is of another issuer"),
        ("aud", json!(["another"]), "it is for another audience"),
        ("exp", json!(T0 - 30), "it has expired"),
        ("nbf", json!(T0 + 31), "it does not count yet"),
        ("nbf", json!("soon"), "nbf is no time"),
        ("tenant_id", Value::Null, "its claim of a tenant is missing, or no name"),
        ("tenant_id", json!(""), "its claim of a tenant is missing, or no name"),
        ("tenant_id", json!(["acme"]), "its claim of a tenant is missing, or no name"),
        ("sub", Value::Null, "its claim of a name is missing, or no name"),
        ("sub", json!("a\nb"), "its claim of a name is missing, or no name"),
        ("authority", json!(6), "its claim of an authority is none"),
        ("authority", json!("GOD"), "its claim of an authority is none"),
        ("role", json!("root"), "its claim of a role is none"),
    ] {
        assert_eq!(refused(&but(name, value)), wanted, "{name}");
    }
    let taken = |claims: &Value| ask(&access, &token_with(Algorithm::ES256, Some("k"), claims)).unwrap();
    assert_eq!(taken(&but("authority", Value::Null)), Caller::new("ada", 1, "acme"));
    assert_eq!(taken(&but("authority", json!(3))), Caller::new("ada", 3, "acme"));
    assert_eq!(taken(&but("role", json!("view"))), Caller { role: Role::View, ..Caller::new("ada", 4, "acme") });
    assert!(taken(&but("aud", json!(["another", "runwarden"]))).authority == 4);
    assert!(taken(&but("exp", json!(T0 - 29))).authority == 4, "clocks differ a little");
    assert!(taken(&but("exp", json!(1e18))).authority == 4, "an end that never comes");
}

#[test]
fn a_key_that_is_not_known_or_not_named_opens_nothing() {
    let access = Issuer::new(&[public(Algorithm::EdDSA, "k")]).access(t0);
    let of = |kid| ask(&access, &token_with(Algorithm::EdDSA, kid, &claims()));
    assert_eq!(of(Some("another")), Err(Denied::Token("its key (kid) is not known")));
    assert_eq!(of(None), Err(Denied::Token("it names no key (kid)")));
}

#[test]
fn keys_that_are_weak_shared_or_for_something_else_are_not_used() {
    let refused = |key: Value| {
        let issuer = Issuer::new(&[key]);
        Jwt::new(issuer.settings(), t0).map(|_| ()).unwrap_err().to_string()
    };
    let but = |algorithm, name: &str, value: Value| {
        let mut key = public(algorithm, "k");
        key[name] = value;
        key
    };
    for key in [
        json!({"kty": "oct", "kid": "k", "alg": "HS256", "k": "c2hhcmVk"}),
        but(Algorithm::RS256, "n", json!("AQAB")),
        but(Algorithm::RS256, "use", json!("enc")),
        but(Algorithm::RS256, "alg", json!("RS512")),
        but(Algorithm::RS256, "kid", Value::Null),
        but(Algorithm::EdDSA, "x", json!("AQAB")),
        but(Algorithm::EdDSA, "alg", json!("HS256")),
        but(Algorithm::ES256, "crv", json!("P-384")),
        json!({"kty": "dog"}),
    ] {
        assert!(refused(key.clone()).contains("has no key"), "{key}");
    }
    let issuer = Issuer::new(&[]);
    assert!(matches!(Jwt::new(issuer.settings(), t0), Err(JwtError::Empty { .. })));
    std::fs::write(issuer.settings().jwks, "no JSON").unwrap();
    assert!(matches!(Jwt::new(issuer.settings(), t0), Err(JwtError::NotKeys { .. })));
    issuer.publish(&vec![public(Algorithm::EdDSA, "k"); MAX_KEYS + 1]);
    assert!(matches!(Jwt::new(issuer.settings(), t0), Err(JwtError::NotKeys { .. })));
    std::fs::write(issuer.settings().jwks, vec![b' '; usize::try_from(MAX_FILE).unwrap() + 9]).unwrap();
    assert!(matches!(Jwt::new(issuer.settings(), t0), Err(JwtError::NotKeys { .. })));
    std::fs::remove_file(issuer.settings().jwks).unwrap();
    assert!(matches!(Jwt::new(issuer.settings(), t0), Err(JwtError::Read { .. })));
}

#[test]
fn a_key_that_was_taken_back_opens_nothing_though_its_tokens_were_remembered() {
    use std::sync::atomic::{AtomicI64, Ordering};
    static NOW: AtomicI64 = AtomicI64::new(0);
    let clock = || at(NOW.load(Ordering::SeqCst));
    let issuer = Issuer::new(&[public(Algorithm::EdDSA, "old")]);
    let access = issuer.access(clock);
    let (old, new) =
        (token_with(Algorithm::EdDSA, Some("old"), &claims()), token_with(Algorithm::ES256, Some("new"), &claims()));
    assert!(ask(&access, &old).is_ok() && ask(&access, &new).is_err());
    // a file that cannot be used changes nothing
    std::fs::write(issuer.settings().jwks, "half of a fi").unwrap();
    NOW.store(3, Ordering::SeqCst);
    assert!(ask(&access, &old).is_ok());
    issuer.publish(&[public(Algorithm::ES256, "new")]);
    NOW.store(6, Ordering::SeqCst);
    assert_eq!(ask(&access, &old), Err(Denied::Token("its key (kid) is not known")));
    assert!(ask(&access, &new).is_ok());
    // what is remembered ends with the token
    NOW.store(600 + 30, Ordering::SeqCst);
    assert_eq!(ask(&access, &new), Err(Denied::Token("it has expired")));
}

#[test]
fn what_is_remembered_is_bounded() {
    let issuer = Issuer::new(&[public(Algorithm::EdDSA, "k")]);
    let jwt = Jwt::new(issuer.settings(), t0).unwrap();
    for n in 0..MOST + 10 {
        let token = token_with(Algorithm::EdDSA, Some("k"), &but("sub", json!(format!("u{n}"))));
        assert!(jwt.caller(&token, super::super::digest(&token)).is_ok());
    }
    let held = jwt.state.lock().unwrap().good.len();
    assert!((1..=MOST).contains(&held), "{held}");
}
