//! TLS for what listens: HTTP, OTLP and SQL. Versions 1.2 and 1.3, by rustls.
//!
//! The files are read at the start and again when they change, so that a certificate is renewed by replacing it: connections from then on
//! get the new one, those that are open keep the old. Files that cannot be used change nothing and are an error in the log. A connection has
//! [`HANDSHAKE`] to come to an understanding.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{InvalidMessage, RootCertStore, ServerConfig};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::clock::{Micros, SECOND, Wall};
use crate::config::{Named, Tls as Settings};

/// A handshake must be complete within this time.
pub const HANDSHAKE: Duration = Duration::from_secs(10);
/// How often the files are looked at.
const LOOK: Micros = 2 * SECOND;
/// Largest file, in bytes.
const MAX_FILE: u64 = 1 << 20;
/// Others than the owner and the group may read it.
const READ_BY_OTHERS: u32 = 0o004;

/// What is spoken within TLS (ALPN).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    /// HTTP/1.1.
    Http,
    /// The wire protocol of Postgres.
    Postgres,
}

impl Speaks {
    const fn protocol(self) -> &'static [u8] {
        match self {
            Self::Http => b"http/1.1",
            Self::Postgres => b"postgresql",
        }
    }
}

/// Why TLS cannot be spoken with the files that are configured. Never holds what is in them.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{setting}: {path} cannot be read; name a file that this user may read")]
    Read {
        /// The key that names it.
        setting: String,
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A file is larger than any that makes sense.
    #[error("{setting}: {path} has more than {MAX_FILE} bytes; name a PEM file of certificates or of one key")]
    TooLarge {
        /// The key that names it.
        setting: String,
        /// Which file.
        path: PathBuf,
    },
    /// There is no certificate in it.
    #[error(
        "{setting}: {path} holds no certificate; it must be PEM (-----BEGIN CERTIFICATE-----), the listener's own first, then those between \
         it and its authority"
    )]
    NoCertificate {
        /// The key that names it.
        setting: String,
        /// Which file.
        path: PathBuf,
    },
    /// There is no key in it that can be used.
    #[error(
        "{setting}: {path} holds no private key; it must be PEM (-----BEGIN PRIVATE KEY-----, also RSA or EC), not encrypted: \
         `openssl pkey -in FILE -out FILE` takes a password off"
    )]
    NoKey {
        /// The key that names it.
        setting: String,
        /// Which file.
        path: PathBuf,
    },
    /// A certificate and a key that do not go together, or that are of a kind that is not spoken.
    #[error(
        "{setting}: {path} cannot be used with the key {key}; name the key that the certificate was made for: RSA of 2,048 bits or more, \
         ECDSA on P-256 or P-384, or Ed25519"
    )]
    Unusable {
        /// The key that names the certificate.
        setting: String,
        /// Its file.
        path: PathBuf,
        /// The file of its key.
        key: PathBuf,
        /// What rustls says.
        source: Box<rustls::Error>,
    },
    /// Certificates by which clients cannot be told.
    #[error(
        "{setting}: {path} cannot be used to check clients; name the certificates of the authorities that sign theirs"
    )]
    ClientCa {
        /// The key that names it.
        setting: String,
        /// Which file.
        path: PathBuf,
        /// What rustls says.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// What tells one state of a file from another.
type Stamp = Option<(Option<SystemTime>, u64, u64)>;

struct State {
    config: Arc<ServerConfig>,
    /// Of the files that it was made of, or that could not be used.
    stamps: Vec<Stamp>,
    looked: Micros,
}

/// One listener's side of TLS.
pub struct Tls {
    settings: Settings,
    speaks: Speaks,
    clock: fn() -> Wall,
    state: Mutex<State>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Tls {
    /// With the certificate that is in the files now.
    ///
    /// # Errors
    /// A file that cannot be read or used.
    pub fn new(settings: Settings, speaks: Speaks, clock: fn() -> Wall) -> Result<Self, TlsError> {
        let (stamps, config) = (stamps(&settings), read(&settings, speaks)?);
        warn_of(&settings);
        let state = Mutex::new(State { config, stamps, looked: clock().0 });
        Ok(Self { settings, speaks, clock, state })
    }

    /// Comes to an understanding with a client, within [`HANDSHAKE`].
    ///
    /// # Errors
    /// It takes too long, speaks no TLS, or does not show the certificate that it must.
    pub async fn accept(&self, stream: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        let handshake = TlsAcceptor::from(self.config((self.clock)().0)).accept(stream);
        tokio::time::timeout(HANDSHAKE, handshake).await.map_err(|_| std::io::ErrorKind::TimedOut)?
    }

    /// What counts now.
    fn config(&self, now: Micros) -> Arc<ServerConfig> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // also when the clock was set back
        if now.saturating_sub(state.looked).saturating_abs() >= LOOK {
            state.looked = now;
            let stamps = stamps(&self.settings);
            if stamps != state.stamps {
                state.stamps = stamps;
                match read(&self.settings, self.speaks) {
                    Ok(config) => {
                        let cert = &self.settings.cert;
                        tracing::info!(setting = cert.setting, path = %cert.path.display(), "the certificate was renewed");
                        warn_of(&self.settings);
                        state.config = config;
                    }
                    Err(error) => {
                        let error: &dyn std::error::Error = &error;
                        tracing::error!(error, "the certificate that was there before stays");
                    }
                }
            }
        }
        Arc::clone(&state.config)
    }
}

/// Whether an error of [`Tls::accept`] says that a client spoke no TLS at all.
pub fn is_clear(error: &std::io::Error) -> bool {
    let said = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
    matches!(said, Some(rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType)))
}

/// What is wrong with the files of a listener, and what is unwise about them.
///
/// # Errors
/// A file that cannot be read or used.
pub fn check(settings: &Settings) -> Result<Option<String>, TlsError> {
    read(settings, Speaks::Http)?;
    Ok(unwise(settings))
}

/// A key that everybody on the host may read.
fn unwise(settings: &Settings) -> Option<String> {
    let Named { setting, path } = &settings.key;
    let mode = std::fs::metadata(path).ok()?.permissions().mode();
    let open = mode & READ_BY_OTHERS != 0;
    open.then(|| format!("{setting}: {} may be read by everybody on this host; chmod o-r it", path.display()))
}

fn warn_of(settings: &Settings) {
    if let Some(said) = unwise(settings) {
        tracing::warn!("{said}");
    }
}

fn stamps(settings: &Settings) -> Vec<Stamp> {
    let files = [Some(&settings.cert), Some(&settings.key), settings.client_ca.as_ref()];
    files.into_iter().flatten().map(|file| stamp(&file.path)).collect()
}

fn stamp(path: &Path) -> Stamp {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok(), metadata.len(), metadata.ino()))
}

fn read(settings: &Settings, speaks: Speaks) -> Result<Arc<ServerConfig>, TlsError> {
    let chain = certificates(&settings.cert)?;
    let key = private_key(&settings.key)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let unusable = |source: rustls::Error| TlsError::Unusable {
        setting: settings.cert.setting.clone(),
        path: settings.cert.path.clone(),
        key: settings.key.path.clone(),
        source: Box::new(source),
    };
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(unusable)?;
    let builder = match &settings.client_ca {
        None => builder.with_no_client_auth(),
        Some(file) => {
            let refused = |source: Box<dyn std::error::Error + Send + Sync>| TlsError::ClientCa {
                setting: file.setting.clone(),
                path: file.path.clone(),
                source,
            };
            let mut roots = RootCertStore::empty();
            for certificate in certificates(file)? {
                roots.add(certificate).map_err(|error| refused(error.into()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|error| refused(error.into()))?)
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(unusable)?;
    config.alpn_protocols = vec![speaks.protocol().to_vec()];
    Ok(Arc::new(config))
}

fn certificates(file: &Named) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bytes = bytes(file)?;
    let found: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(&bytes).collect();
    let none = || TlsError::NoCertificate { setting: file.setting.clone(), path: file.path.clone() };
    found.ok().filter(|found| !found.is_empty()).ok_or_else(none)
}

fn private_key(file: &Named) -> Result<PrivateKeyDer<'static>, TlsError> {
    let none = |_| TlsError::NoKey { setting: file.setting.clone(), path: file.path.clone() };
    PrivateKeyDer::from_pem_slice(&bytes(file)?).map_err(none)
}

fn bytes(file: &Named) -> Result<Vec<u8>, TlsError> {
    let failed = |source| TlsError::Read { setting: file.setting.clone(), path: file.path.clone(), source };
    let mut bytes = Vec::new();
    let opened = File::open(&file.path).map_err(failed)?;
    opened.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(TlsError::TooLarge { setting: file.setting.clone(), path: file.path.clone() });
    }
    Ok(bytes)
}
