//! The secrets of a channel, out of the configuration or out of files: read once, at the start.

use std::path::Path;

use crate::config::{Channel, Secret, channel_address};

/// Longest file, bytes.
const LONGEST: u64 = 65_536;

/// Why a channel cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// A file cannot be read.
    #[error("cannot read {file}: {source}")]
    File {
        /// The file.
        file: String,
        /// Why not.
        source: std::io::Error,
    },
    /// Something is not what it has to be.
    #[error("{what} {wrong}")]
    Wrong {
        /// What, never with its value.
        what: &'static str,
        /// What is wrong with it.
        wrong: String,
    },
}

impl Unusable {
    pub(super) fn wrong(what: &'static str, wrong: impl Into<String>) -> Self {
        Self::Wrong { what, wrong: wrong.into() }
    }
}

/// What a channel needs that nobody may see.
#[derive(Debug, Clone, Default)]
pub struct Secrets {
    /// Addresses.
    pub urls: Vec<Secret>,
    /// Signing secrets, routing key, token or password; the newest first.
    pub secrets: Vec<Secret>,
    /// Certificates to trust, PEM.
    pub ca: Option<Vec<u8>>,
}

/// Reads what a channel names.
///
/// # Errors
/// A file that cannot be read, or holds what cannot be.
pub fn read(channel: &Channel) -> Result<Secrets, Unusable> {
    let mut urls = channel.urls.clone();
    if let Some(file) = &channel.url_file {
        let url = text(file)?;
        channel_address(&url, channel.reach).map_err(|wrong| Unusable::wrong("the address in url-file", wrong))?;
        urls.push(Secret::new(url));
    }
    let secret = match (&channel.secret, &channel.secret_file) {
        (Some(secret), _) => Some(secret.expose().to_owned()),
        (None, Some(file)) => Some(text(file)?),
        (None, None) => None,
    };
    let several = channel.kind == crate::config::ChannelKind::Webhook;
    let secrets = match secret {
        None => Vec::new(),
        Some(text) if several => text.split_whitespace().map(Secret::new).collect(),
        Some(text) => vec![Secret::new(text)],
    };
    let ca = channel.ca_file.as_deref().map(bytes).transpose()?;
    Ok(Secrets { urls, secrets, ca })
}

fn bytes(file: &Path) -> Result<Vec<u8>, Unusable> {
    use std::io::Read as _;
    let failed = |source| Unusable::File { file: file.display().to_string(), source };
    let mut bytes = Vec::new();
    std::fs::File::open(file).map_err(failed)?.take(LONGEST + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > LONGEST {
        return Err(failed(std::io::Error::other("it is too large")));
    }
    Ok(bytes)
}

fn text(file: &Path) -> Result<String, Unusable> {
    let wrong = |what: &str| Unusable::File {
        file: file.display().to_string(),
        source: std::io::Error::new(std::io::ErrorKind::InvalidData, what.to_owned()),
    };
    let text = String::from_utf8(bytes(file)?).map_err(|_| wrong("it is not text"))?;
    let text = text.trim();
    if text.is_empty() { Err(wrong("it is empty")) } else { Ok(text.to_owned()) }
}
