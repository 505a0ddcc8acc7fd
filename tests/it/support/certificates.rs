//! Authorities and certificates, made for one test.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use runwarden::config::{Named, Tls as Files};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use ureq::Agent;
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig};

/// Who signs.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, PEM.
pub struct Pair {
    pub cert: String,
    pub key: String,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// For a server on this host.
    pub fn server(&self) -> Pair {
        self.sign(&["localhost", "127.0.0.1"], ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// For a client.
    pub fn client(&self) -> Pair {
        self.sign(&[], ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn sign(&self, names: &[&str], purpose: ExtendedKeyUsagePurpose) -> Pair {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.extended_key_usages = vec![purpose];
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.0).unwrap();
        Pair { cert: cert.pem(), key: key.serialize_pem() }
    }

    /// A client of HTTP that trusts nobody else, and shows what it is given.
    pub fn agent(&self, shows: Option<&Pair>) -> Agent {
        let root = Certificate::from_pem(self.pem().as_bytes()).unwrap();
        let mut tls = TlsConfig::builder().root_certs(RootCerts::from(vec![root]));
        if let Some(pair) = shows {
            let cert = Certificate::from_pem(pair.cert.as_bytes()).unwrap();
            let key = PrivateKey::from_pem(pair.key.as_bytes()).unwrap();
            tls = tls.client_cert(Some(ClientCert::new_with_certs(&[cert], key)));
        }
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .timeout_global(Some(Duration::from_secs(60)))
            .tls_config(tls.build());
        config.build().into()
    }

    pub fn roots(&self) -> rustls::RootCertStore {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem().as_bytes()).unwrap()).unwrap();
        roots
    }

    /// A client of anything, likewise.
    pub fn client_config(&self, shows: Option<&Pair>) -> Arc<rustls::ClientConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.unwrap().with_root_certificates(self.roots());
        Arc::new(match shows {
            None => config.with_no_client_auth(),
            Some(pair) => {
                let cert = CertificateDer::from_pem_slice(pair.cert.as_bytes()).unwrap();
                let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
                config.with_client_auth_cert(vec![cert], key).unwrap()
            }
        })
    }
}

impl Pair {
    /// As `cert.pem` and `key.pem` in a directory, in place of what was there.
    pub fn write(&self, dir: &Path) {
        replace(&dir.join("cert.pem"), &self.cert);
        replace(&dir.join("key.pem"), &self.key);
    }
}

/// Puts a file in place of another, at once, readable by its owner only.
pub fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new).unwrap();
    file.write_all(text.as_bytes()).unwrap();
    fs::rename(new, path).unwrap();
}

/// `cert.pem` and `key.pem` of a directory, as `[http]` would name them; clients must show a certificate of `client_ca`.
pub fn files(dir: &Path, client_ca: Option<&str>) -> Files {
    let named = |key: &str, file: &str| Named { setting: format!("http.{key}"), path: dir.join(file) };
    Files {
        cert: named("tls-cert", "cert.pem"),
        key: named("tls-key", "key.pem"),
        client_ca: client_ca.map(|file| named("tls-client-ca", file)),
    }
}
