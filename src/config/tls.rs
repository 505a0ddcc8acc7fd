//! `tls-cert`, `tls-key` and `tls-client-ca` of a section that listens: where the files are. Nothing here opens them.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::reader::Section;

/// Where to listen, and whether over TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// The address.
    pub address: SocketAddr,
    /// `None`: in clear.
    pub tls: Option<Tls>,
}

/// The files of a listener that speaks TLS. They are PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// Its certificate, and those between it and its authority.
    pub cert: Named,
    /// The private key of that certificate.
    pub key: Named,
    /// Clients must show a certificate of one of these authorities; `None`: they need none.
    pub client_ca: Option<Named>,
}

/// A file, and the key of the configuration that names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// Such as `http.tls-cert`.
    pub setting: String,
    /// The file.
    pub path: PathBuf,
}

/// Where a section listens; what it does not say of TLS is as in `above`.
pub(super) fn listen(s: &mut Section<'_, '_>, default: SocketAddr, above: Option<&Tls>) -> Listen {
    Listen { address: s.address("listen", default), tls: tls(s, above) }
}

/// What a section says of TLS. What is absent is as in `above`; an empty certificate means none.
pub(super) fn tls(s: &mut Section<'_, '_>, above: Option<&Tls>) -> Option<Tls> {
    let [cert, key, client_ca] = ["tls-cert", "tls-key", "tls-client-ca"].map(|key| file(s, key));
    let pair = match (cert, key) {
        (Said::Nothing, Said::Nothing) => above.map(|tls| (tls.cert.clone(), tls.key.clone())),
        (Said::File(cert), Said::File(key)) => Some((cert, key)),
        (Said::File(_), _) => {
            s.refuse("tls-cert", "needs tls-key beside it, the file with the certificate's private key");
            return None;
        }
        (_, Said::File(_)) => {
            s.refuse("tls-key", "needs tls-cert beside it, the file with the key's certificate");
            return None;
        }
        _ => None,
    };
    let Some((cert, key)) = pair else {
        if matches!(client_ca, Said::File(_)) {
            s.refuse("tls-client-ca", "needs tls-cert and tls-key: without TLS no client shows a certificate");
        }
        return None;
    };
    let client_ca = match client_ca {
        Said::Nothing => above.and_then(|tls| tls.client_ca.clone()),
        Said::None => None,
        Said::File(file) => Some(file),
    };
    Some(Tls { cert, key, client_ca })
}

/// What is said of a file.
enum Said {
    Nothing,
    None,
    File(Named),
}

fn file(s: &mut Section<'_, '_>, key: &'static str) -> Said {
    match s.perhaps(key) {
        None => Said::Nothing,
        Some(None) => Said::None,
        Some(Some(path)) => Said::File(Named { setting: s.key(key), path: path.into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Config;

    fn read(text: &str) -> Config {
        Config::from_toml(text, "c.toml", []).unwrap()
    }

    fn refused(text: &str) -> String {
        Config::from_toml(text, "c.toml", [])
            .unwrap_err()
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("\n")
    }

    #[test]
    fn without_a_certificate_everything_is_in_clear() {
        let config = Config::default();
        assert_eq!((config.http.tls, config.sql.tls, config.otlp.tls), (None, None, None));
    }

    #[test]
    fn what_sql_and_otlp_do_not_say_is_as_http_says_it_and_an_empty_certificate_is_none() {
        let http = "[http]\ntls-cert = \"h.pem\"\ntls-key = \"h.key\"\ntls-client-ca = \"ca.pem\"\n";
        let config = read(http);
        let tls = config.http.tls.clone().unwrap();
        assert_eq!((tls.cert.setting.as_str(), tls.cert.path.to_str()), ("http.tls-cert", Some("h.pem")));
        assert_eq!((&config.sql.tls, &config.otlp.tls), (&Some(tls.clone()), &Some(tls.clone())));
        let config = read(&format!("{http}[sql]\ntls-cert = \"\"\n[otlp]\ntls-client-ca = \"\"\n"));
        assert_eq!(config.sql.tls, None);
        assert_eq!(config.otlp.tls.map(|otlp| (otlp.cert, otlp.client_ca)), Some((tls.cert, None)));
        let config = read(&format!("{http}[sql]\ntls-cert = \"s.pem\"\ntls-key = \"s.key\"\n"));
        let sql = config.sql.tls.unwrap();
        assert_eq!((sql.cert.setting.as_str(), sql.key.path.to_str()), ("sql.tls-cert", Some("s.key")));
        assert_eq!(sql.client_ca, tls.client_ca);
    }

    #[test]
    fn half_a_pair_is_refused_and_says_what_is_missing() {
        for (text, part) in [
            ("[http]\ntls-cert = \"c\"", "c.toml:2:12: http.tls-cert: needs tls-key"),
            ("[sql]\ntls-key = \"k\"", "sql.tls-key: needs tls-cert"),
            ("[otlp]\ntls-cert = \"c\"\ntls-key = \"\"", "otlp.tls-cert: needs tls-key"),
            ("[http]\ntls-client-ca = \"a\"", "http.tls-client-ca: needs tls-cert and tls-key"),
        ] {
            assert!(refused(text).contains(part), "{text}: {}", refused(text));
        }
        let text = "[http]\ntls-cert = \"h\"\ntls-key = \"k\"\n[sql]\ntls-cert = \"s\"";
        assert!(refused(text).contains("sql.tls-cert: needs tls-key"), "one of the pair is not as in [http]");
    }
}
