//! TLS for what this process listens on, from the files that the configuration names.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::sync::Arc;

use crate::cli::{Chain, Failure};
use crate::clock::Wall;
use crate::config::{self, Config, Role};
use crate::serve::tls::{self, Speaks, Tls};

/// A socket that is open, and how TLS is spoken on it.
pub(super) struct Listening {
    /// The socket.
    pub(super) socket: TcpListener,
    /// `None`: everything is in clear.
    pub(super) tls: Option<Arc<Tls>>,
}

impl From<TcpListener> for Listening {
    fn from(socket: TcpListener) -> Self {
        Self { socket, tls: None }
    }
}

/// TLS as it is configured; `None`: not at all.
pub(super) fn tls(settings: Option<&config::Tls>, speaks: Speaks) -> Result<Option<Arc<Tls>>, Failure> {
    let tls = settings.map(|settings| Tls::new(settings.clone(), speaks, Wall::now)).transpose();
    Ok(tls.map_err(Failure::unreadable)?.map(Arc::new))
}

/// Looks at the files of everything that a process of this configuration listens on, and says what is unwise.
pub(super) fn checked(config: &Config) -> Result<BTreeSet<String>, Failure> {
    let listens = [
        (true, &config.http.tls),
        (config.roles.contains(&Role::Serve), &config.sql.tls),
        (config.roles.contains(&Role::Edge), &config.otlp.tls),
    ];
    let (mut unwise, mut wrong) = (BTreeSet::new(), BTreeSet::new());
    for settings in listens.into_iter().filter_map(|(listens, tls)| tls.as_ref().filter(|_| listens)) {
        match tls::check(settings) {
            Ok(said) => unwise.extend(said),
            Err(error) => drop(wrong.insert(Chain(&error).to_string())),
        }
    }
    if wrong.is_empty() { Ok(unwise) } else { Err(Failure::Invalid(Vec::from_iter(wrong).join("\n"))) }
}
