//! Commands: what they look like, who may sign them, and with which authority they act (I2, P7; `contracts.md`, *Command*).
//!
//! `mac` is HMAC-SHA-256 (RFC 2104) over the other fields in canonical JSON (RFC 8785), in hexadecimal. A command without a valid one
//! acts with authority 1, whatever it claims. What is read is what was signed: both come from the same parsed value.

use std::collections::BTreeMap;
use std::fmt;

use hmac::{Hmac, Mac};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::clock::Micros;
use crate::decide::id::time;

/// Largest command: a set of policies, queries and prices (`max.message.bytes` of the topic).
pub const MAX_BYTES: usize = 16 << 20;
/// Longest `command_id`, `type`, `tenant_id`, `principal` and `key_id`.
const MAX_TEXT: usize = 256;

/// Authority of a command without a valid signature (WORKER).
pub const UNSIGNED: u8 = 1;
/// Least authority of who proposes (MONITOR).
pub const MONITOR: u8 = 3;
/// Least authority of who decides (GUARDIAN).
pub const GUARDIAN: u8 = 4;
/// Authority of what runwarden itself does (SYSTEM).
pub const SYSTEM: u8 = 5;

/// The name of an authority.
pub fn authority_name(level: u8) -> &'static str {
    match level {
        0 | 1 => "WORKER",
        2 => "WATCHDOG",
        MONITOR => "MONITOR",
        GUARDIAN => "GUARDIAN",
        _ => "SYSTEM",
    }
}

/// Authority of who watches over agents and may ask for help (WATCHDOG).
pub const WATCHDOG: u8 = 2;

/// Who applies a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writer {
    /// The one writer: the record's key is `*`.
    Everyone,
    /// The owner of the tenant: the record's key is the tenant.
    Tenant,
}

/// Every type of command: who applies it, and the least authority that may send one (I2). Where a policy asks for more
/// (`min_authority`, `override`), that is asked for too.
pub const COMMANDS: [(&str, Writer, u8); 35] = [
    ("policy_set.apply", Writer::Everyone, GUARDIAN),
    ("policy.create", Writer::Everyone, MONITOR),
    ("policy.update", Writer::Everyone, MONITOR),
    ("policy.delete", Writer::Everyone, GUARDIAN),
    ("proposal.create", Writer::Everyone, MONITOR),
    ("proposal.approve", Writer::Everyone, GUARDIAN),
    ("proposal.reject", Writer::Everyone, GUARDIAN),
    ("rule.retire", Writer::Everyone, GUARDIAN),
    ("limit.enable", Writer::Everyone, GUARDIAN),
    ("limit.disable", Writer::Everyone, GUARDIAN),
    // the policy says who; the default is GUARDIAN
    ("override.grant", Writer::Everyone, WATCHDOG),
    ("override.revoke", Writer::Everyone, WATCHDOG),
    ("silence.create", Writer::Everyone, MONITOR),
    ("silence.expire", Writer::Everyone, MONITOR),
    ("level.report", Writer::Everyone, SYSTEM),
    ("respond.run", Writer::Everyone, GUARDIAN),
    ("respond.result", Writer::Everyone, SYSTEM),
    ("respond.brake", Writer::Everyone, GUARDIAN),
    ("respond.unlock", Writer::Everyone, GUARDIAN),
    ("respond.reset_unlocks", Writer::Everyone, GUARDIAN),
    ("lesson.create", Writer::Tenant, MONITOR),
    ("lesson.convert", Writer::Tenant, MONITOR),
    ("lesson.defer", Writer::Tenant, MONITOR),
    ("lesson.dismiss", Writer::Tenant, MONITOR),
    ("lesson.reactivate", Writer::Tenant, MONITOR),
    ("intervention.create", Writer::Tenant, GUARDIAN),
    ("intervention.approve", Writer::Tenant, GUARDIAN),
    ("intervention.reject", Writer::Tenant, GUARDIAN),
    ("intervention.revert", Writer::Tenant, GUARDIAN),
    ("guardian.cancel_task", Writer::Tenant, GUARDIAN),
    ("guardian.reallocate", Writer::Tenant, GUARDIAN),
    ("guardian.override_priority", Writer::Tenant, GUARDIAN),
    ("guardian.escalate", Writer::Tenant, WATCHDOG),
    ("alert.raise", Writer::Tenant, MONITOR),
    ("alert.clear", Writer::Tenant, MONITOR),
];

/// Who applies commands of a type, and the least authority that may send one; `None`: there is no such type.
pub fn known(kind: &str) -> Option<(Writer, u8)> {
    COMMANDS.iter().find(|(name, ..)| *name == kind).map(|(_, writer, authority)| (*writer, *authority))
}

/// A command as it is sent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Command {
    /// Unique; a second one with the same id gets the first one's answer.
    pub command_id: String,
    /// What is to be done, such as `proposal.approve`.
    #[serde(rename = "type")]
    pub kind: String,
    /// On whose behalf; `*` is all tenants.
    pub tenant_id: String,
    /// Who asks: `user:<name>`, `service:<name>` or `system:<name>`.
    pub principal: String,
    /// With which authority, 1 to 5.
    pub authority: u8,
    /// When it was asked.
    #[serde(with = "time")]
    pub issued_at: Micros,
    /// What is asked, by type.
    pub body: Value,
    /// The key that signed it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub key_id: Option<String>,
}

impl Command {
    /// The key of its record: of what concerns everyone `*`, else the tenant.
    pub fn key(&self) -> &str {
        match known(&self.kind) {
            Some((Writer::Tenant, _)) => &self.tenant_id,
            _ => "*",
        }
    }
}

/// A command as it was received.
#[derive(Debug, Clone, PartialEq)]
pub struct Received {
    /// Its fields.
    pub command: Command,
    /// With which authority it acts: the lower of its own and the key's, [`UNSIGNED`] without a valid signature.
    pub authority: u8,
    /// Why the signature does not count; `None`: it does.
    pub unsigned: Option<&'static str>,
    /// SHA-256 of its type, tenant and body, in hexadecimal: tells a repeated command from another with the same id. Who sent it when
    /// does not count, since several sidecars may send the same.
    pub digest: String,
}

/// Why bytes are no command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotACommand {
    /// Too many bytes.
    #[error("a command has at most {MAX_BYTES} bytes")]
    TooLarge,
    /// Not an object in JSON.
    #[error("a command is a JSON object")]
    NotJson,
    /// A field is missing or of another type. Never the parser's own words: they hold values.
    #[error("a command has command_id, type, tenant_id, principal, authority (1 to 5), issued_at (RFC 3339) and body")]
    Fields,
    /// A field is empty or too long.
    #[error("command_id, type, tenant_id and principal have 1 to {MAX_TEXT} bytes each, without control characters")]
    Text,
}

struct Signer {
    secret: Vec<u8>,
    authority: u8,
}

/// The keys that commands are signed and checked with. `Debug` names them and no more.
#[derive(Default)]
pub struct Keyring {
    keys: BTreeMap<String, Signer>,
    /// The key that this process signs its own commands with.
    own: Option<String>,
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.keys.keys()).finish()
    }
}

impl Keyring {
    /// Adds a key; what it signs has at most `authority`.
    pub fn add(&mut self, id: impl Into<String>, secret: &[u8], authority: u8) {
        self.keys.insert(id.into(), Signer { secret: secret.to_vec(), authority });
    }

    /// Whether there is a key of this id.
    pub fn holds(&self, id: &str) -> bool {
        self.keys.contains_key(id)
    }

    /// Chooses the key that this process signs its own commands with.
    pub fn sign_own_with(&mut self, id: &str) {
        self.own = Some(id.to_owned());
    }

    /// A command of this process, signed; `None`: it has no key, and nobody would believe it.
    pub fn sign_own(&self, command: Command) -> Option<Vec<u8>> {
        self.sign(command, self.own.as_deref()?)
    }

    /// The command as bytes, signed with `key`. `None`: there is no such key.
    pub fn sign(&self, mut command: Command, key: &str) -> Option<Vec<u8>> {
        let signer = self.keys.get(key)?;
        command.key_id = Some(key.to_owned());
        let Value::Object(mut fields) = serde_json::to_value(&command).ok()? else { return None };
        let mac = mac(&signer.secret, &canonical(&fields)?).finalize().into_bytes();
        fields.insert("mac".into(), hex(&mac).into());
        serde_json::to_vec(&fields).ok()
    }

    /// Reads a command and judges its signature.
    ///
    /// # Errors
    /// When the bytes are no command.
    pub fn read(&self, payload: &[u8]) -> Result<Received, NotACommand> {
        if payload.len() > MAX_BYTES {
            return Err(NotACommand::TooLarge);
        }
        let Ok(Value::Object(mut fields)) = serde_json::from_slice(payload) else { return Err(NotACommand::NotJson) };
        let claimed = fields.remove("mac");
        let signed = canonical(&fields).ok_or(NotACommand::NotJson)?;
        let what: Map<String, Value> = ["type", "tenant_id", "body"]
            .into_iter()
            .filter_map(|name| Some((name.to_owned(), fields.get(name)?.clone())))
            .collect();
        let digest = hex(&Sha256::digest(canonical(&what).unwrap_or_default()));
        let command: Command = serde_json::from_value(Value::Object(fields)).map_err(|_| NotACommand::Fields)?;
        if !(UNSIGNED..=SYSTEM).contains(&command.authority) {
            return Err(NotACommand::Fields);
        }
        let text = |t: &String| !t.is_empty() && t.len() <= MAX_TEXT && !t.chars().any(char::is_control);
        let texts = [&command.command_id, &command.kind, &command.tenant_id, &command.principal];
        if !texts.into_iter().chain(&command.key_id).all(text) {
            return Err(NotACommand::Text);
        }
        let unsigned = self.judge(command.key_id.as_deref(), claimed.as_ref(), &signed);
        let (authority, unsigned) = match unsigned {
            Ok(limit) => (command.authority.min(limit), None),
            Err(why) => (UNSIGNED, Some(why)),
        };
        Ok(Received { command, authority, unsigned, digest })
    }

    /// The authority of the key that made this signature.
    fn judge(&self, key: Option<&str>, claimed: Option<&Value>, signed: &[u8]) -> Result<u8, &'static str> {
        let claimed = claimed.and_then(Value::as_str).ok_or("it has no mac")?;
        let key = key.ok_or("it has no key_id")?;
        let signer = self.keys.get(key).ok_or("its key_id is not one of [[auth.keys]]")?;
        let claimed = unhex(claimed).ok_or("its mac is not hexadecimal")?;
        // compares in constant time
        mac(&signer.secret, signed).verify_slice(&claimed).map_err(|_| "its mac is wrong")?;
        Ok(signer.authority)
    }
}

fn canonical(fields: &Map<String, Value>) -> Option<Vec<u8>> {
    serde_json_canonicalizer::to_vec(fields).ok()
}

#[expect(clippy::expect_used, reason = "HMAC takes keys of every length (RFC 2104)")]
fn mac(secret: &[u8], text: &[u8]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("any length");
    mac.update(text);
    mac
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) || text.len() > 128 {
        return None;
    }
    text.as_bytes()
        .chunks(2)
        .map(|pair| std::str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok()))
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn ring() -> Keyring {
        let mut ring = Keyring::default();
        ring.add("k1", b"a secret of some length", SYSTEM);
        ring.add("weak", b"another secret, lower", MONITOR);
        ring
    }

    fn command(authority: u8) -> Command {
        Command {
            command_id: "c-1".into(),
            kind: "proposal.approve".into(),
            tenant_id: "acme".into(),
            principal: "user:ada".into(),
            authority,
            issued_at: 1_700_000_000_000_000,
            body: json!({"proposal_id": "p", "b": 1.5, "a": [null, "ü", 10_000_000_000_u64]}),
            key_id: None,
        }
    }

    #[test]
    fn a_signature_counts_whatever_the_order_and_the_spaces() {
        let signed = ring().sign(command(4), "k1").unwrap();
        let received = ring().read(&signed).unwrap();
        assert_eq!((received.authority, received.unsigned), (4, None));
        let fields: BTreeMap<String, Value> = serde_json::from_slice(&signed).unwrap();
        let turned: Vec<String> = fields.iter().rev().map(|(k, v)| format!(" {:?} :\n{v}", k)).collect();
        let again = ring().read(format!("{{{}}}", turned.join(",")).as_bytes()).unwrap();
        assert_eq!(again, received);
    }

    #[test]
    fn the_mac_is_the_one_that_another_program_computes() {
        // python3: hmac.new(b"a secret of some length", json.dumps(fields, sort_keys=True, separators=(",", ":"),
        // ensure_ascii=False).encode(), "sha256").hexdigest()
        let signed = ring().sign(command(4), "k1").unwrap();
        let fields: Value = serde_json::from_slice(&signed).unwrap();
        assert_eq!(fields["mac"], "510483e1dfddd7552e788b15d3f381b3bdfbee73fcd37256edf609df0e4d883d");
    }

    #[test]
    fn without_a_valid_mac_the_authority_is_one_whatever_is_claimed() {
        let signed = ring().sign(command(5), "k1").unwrap();
        let fields: Map<String, Value> = serde_json::from_slice(&signed).unwrap();
        let judged = |change: &dyn Fn(&mut Map<String, Value>)| {
            let mut forged = fields.clone();
            change(&mut forged);
            let received = ring().read(&serde_json::to_vec(&forged).unwrap()).unwrap();
            (received.authority, received.unsigned.is_some())
        };
        assert_eq!(judged(&|_| ()), (5, false));
        assert_eq!(judged(&|f| drop(f.remove("mac"))), (1, true));
        assert_eq!(judged(&|f| drop(f.remove("key_id"))), (1, true));
        assert_eq!(judged(&|f| drop(f.insert("key_id".into(), "k2".into()))), (1, true));
        assert_eq!(judged(&|f| drop(f.insert("mac".into(), "00".into()))), (1, true));
        assert_eq!(judged(&|f| drop(f.insert("mac".into(), "xyz".into()))), (1, true));
        assert_eq!(judged(&|f| drop(f.insert("mac".into(), json!(7)))), (1, true));
        assert_eq!(judged(&|f| drop(f.insert("tenant_id".into(), "other".into()))), (1, true));
        assert_eq!(judged(&|f| drop(f.insert("extra".into(), 1.into()))), (1, true), "every field is signed");
    }

    #[test]
    fn a_key_lends_no_more_than_its_own_authority() {
        let read = |authority, key| ring().read(&ring().sign(command(authority), key).unwrap()).unwrap().authority;
        assert_eq!((read(5, "k1"), read(5, "weak"), read(2, "weak")), (5, 3, 2));
        assert!(ring().sign(command(5), "nobody's").is_none());
    }

    #[test]
    fn what_is_no_command_is_refused_without_showing_it() {
        let refused = |text: &str| ring().read(text.as_bytes()).unwrap_err();
        assert_eq!(refused("secret"), NotACommand::NotJson);
        assert_eq!(refused("[]"), NotACommand::NotJson);
        assert_eq!(refused("{}"), NotACommand::Fields);
        let with = |name: &str, value: Value| {
            let mut fields = serde_json::to_value(command(4)).unwrap();
            fields[name] = value;
            refused(&fields.to_string())
        };
        assert_eq!(with("authority", json!(0)), NotACommand::Fields);
        assert_eq!(with("authority", json!(6)), NotACommand::Fields);
        assert_eq!(with("issued_at", json!("yesterday")), NotACommand::Fields);
        assert_eq!(with("command_id", json!("")), NotACommand::Text);
        assert_eq!(with("principal", json!("a\u{7}")), NotACommand::Text);
        assert_eq!(with("principal", json!("p".repeat(MAX_TEXT + 1))), NotACommand::Text);
    }

    #[test]
    fn secrets_do_not_show() {
        assert_eq!(format!("{:?}", ring()), r#"{"k1", "weak"}"#);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _any = ring().read(&bytes);
        }

        #[test]
        fn a_changed_byte_never_acts_with_more_than_the_unsigned_authority(at in 0usize..400, bit in 0u8..8) {
            let mut signed = ring().sign(command(5), "k1").unwrap();
            let at = at % signed.len();
            signed[at] ^= 1 << bit;
            if let Ok(received) = ring().read(&signed) {
                let same = received.command == ring().read(&ring().sign(command(5), "k1").unwrap()).unwrap().command;
                prop_assert!(received.authority == UNSIGNED || same, "{}", String::from_utf8_lossy(&signed));
            }
        }
    }
}
