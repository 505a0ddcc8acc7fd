//! The keys that commands are signed with: those of the configuration, or one of this machine.
//!
//! Without `[[auth.keys]]` a key is made once and kept in the data directory, readable by its owner only, so that one sidecar and the
//! commands given beside it work without set-up. Sidecars on several machines share keys by configuration.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::cli::{Failure, load};
use crate::config::Config;
use crate::decide::commands::{Keyring, SYSTEM};

/// Name of the file in the data directory.
const FILE: &str = "command-key";

/// Keys, and the id of the one to sign with.
#[derive(Debug)]
pub(super) struct Keys {
    /// All of them.
    pub(super) ring: Arc<Keyring>,
    /// `[auth] sign-with`, or the first, or this machine's.
    pub(super) sign_with: String,
}

/// The keys of a configuration; makes this machine's when there are none.
pub(super) fn of(config: &Config) -> Result<Keys, Failure> {
    let ring = load::keyring(config);
    if let Some(id) = config.auth.sign_with.clone().or_else(|| config.auth.keys.first().map(|key| key.id.clone())) {
        let mut ring = ring;
        ring.sign_own_with(&id);
        return Ok(Keys { ring: Arc::new(ring), sign_with: id });
    }
    let secret = local(&config.paths.data)?;
    Ok(keys_of(ring, &secret))
}

/// Keys that live as long as the process.
pub(super) fn passing() -> Result<Keys, Failure> {
    Ok(keys_of(Keyring::default(), &fresh()?))
}

fn keys_of(mut ring: Keyring, secret: &str) -> Keys {
    let name: String = Sha256::digest(secret.as_bytes()).iter().take(4).map(|b| format!("{b:02x}")).collect();
    let id = format!("local-{name}");
    ring.add(id.clone(), secret.as_bytes(), SYSTEM);
    ring.sign_own_with(&id);
    Keys { ring: Arc::new(ring), sign_with: id }
}

fn fresh() -> Result<String, Failure> {
    let mut bytes = [0_u8; 32];
    getrandom::fill(&mut bytes).map_err(|e| Failure::Reach(format!("no random numbers for a key: {e}")))?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

/// The secret in the data directory. Two processes that start at once agree on one: whoever makes the file first wins.
fn local(data: &Path) -> Result<String, Failure> {
    let path = data.join(FILE);
    let failed = |what: &str, e: std::io::Error| {
        Failure::Reach(format!("cannot {what} {}: {e}; or configure a key under [[auth.keys]]", path.display()))
    };
    let read = || fs::read_to_string(&path).map(|text| text.trim().to_owned());
    match read() {
        Ok(secret) if secret.len() >= 16 => return Ok(secret),
        Ok(_) => {
            return Err(Failure::Invalid(format!("{} holds no key of at least 16 bytes; delete it", path.display())));
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(failed("read", e)),
    }
    fs::create_dir_all(data).map_err(|e| failed("create the folder of", e))?;
    let secret = fresh()?;
    // whole before it has its name
    let draft = data.join(format!("{FILE}.{}", std::process::id()));
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&draft)
        .map_err(|e| failed("write", e))?;
    file.write_all(secret.as_bytes()).and_then(|()| file.sync_all()).map_err(|e| failed("write", e))?;
    let linked = fs::hard_link(&draft, &path);
    let removed = fs::remove_file(&draft);
    match linked {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(failed("write", e)),
        _ => removed.map_err(|e| failed("write", e))?,
    }
    read().map_err(|e| failed("read", e))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn without_configured_keys_one_is_made_once_and_is_its_owners_only() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.paths.data = dir.path().join("deep/data");
        let (first, second) = (of(&config).unwrap(), of(&config).unwrap());
        assert_eq!(first.sign_with, second.sign_with);
        assert!(first.ring.holds(&first.sign_with));
        let path = config.paths.data.join(FILE);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(&config.paths.data).unwrap().count(), 1, "no draft is left");
        fs::write(&path, "short").unwrap();
        assert!(matches!(of(&config), Err(Failure::Invalid(_))));
    }

    #[test]
    fn configured_keys_come_first() {
        let text = "[auth]\nsign-with = \"b\"\n[[auth.keys]]\nid = \"a\"\nsecret = \"0123456789abcdef\"\n\
                    [[auth.keys]]\nid = \"b\"\nsecret = \"fedcba9876543210\"\nauthority = \"MONITOR\"\n";
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.toml");
        fs::write(&file, text).unwrap();
        let config = Config::load(Some(&file), std::iter::empty()).unwrap();
        let keys = of(&config).unwrap();
        assert_eq!(keys.sign_with, "b");
        assert!(keys.ring.holds("a"));
        assert!(!Path::new("data/command-key").exists() || !config.auth.keys.is_empty());
    }

    #[test]
    fn every_passing_key_is_another() {
        assert_ne!(passing().unwrap().sign_with, passing().unwrap().sign_with);
    }
}
