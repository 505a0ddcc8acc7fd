//! From the first byte to a session: requests for encryption, requests to cancel, the log-in, and what a client is told at the begin.
//!
//! With a certificate, who asks for a session in clear gets none. To cancel is heard in clear too: that is how most clients send it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use pgwire::messages::response::{ReadyForQuery, TransactionStatus};
use pgwire::messages::startup::{
    Authentication, BackendKeyData, NegotiateProtocolVersion, ParameterStatus, SecretKey, Startup,
};
use pgwire::messages::{PgWireBackendMessage as Out, PgWireFrontendMessage as In, ProtocolVersion};

use super::cancel::Key;
use super::errors::{SqlError, WireError, fatal};
use super::session::Session;
use super::wire::{self, Reader, Writer};
use super::{DATABASE, Sql};
use crate::serve::access::Caller;
use crate::serve::tables::NOT_WHOLE;

/// Bytes of a message before the log-in.
const MAX_OPENING: usize = 10_000;
/// Requests before the one that counts.
const MAX_REQUESTS: usize = 4;

const CANCEL: u32 = 80_877_102;
const SSL: u32 = 80_877_103;
const GSS: u32 = 80_877_104;

/// Who has logged in.
pub(super) struct Opened {
    pub(super) session: Session,
    pub(super) key: Key,
}

/// Speaks with a client until it has logged in. None: it wants no session, or gets none and was told why.
pub(super) async fn open(
    sql: &Arc<Sql>,
    reader: &mut Reader,
    writer: &mut Writer,
    peer: IpAddr,
) -> Result<Option<Opened>, WireError> {
    let Some(startup) = first(sql, reader, writer).await? else { return Ok(None) };
    match admit(sql, startup, reader, writer, peer).await? {
        Ok(opened) => Ok(Some(opened)),
        Err((code, message)) => {
            writer.put(&Out::ErrorResponse(fatal(code, &message)))?;
            writer.close().await?;
            Ok(None)
        }
    }
}

/// Hears a client out without giving it a session: whether it asked for one. What it wants cancelled is.
pub(super) async fn hear(sql: &Sql, reader: &mut Reader, writer: &mut Writer) -> Result<bool, WireError> {
    Ok(first(sql, reader, writer).await?.is_some())
}

/// The message that asks for a session, over TLS where it is wanted and can be had. What is to be cancelled is.
async fn first(sql: &Sql, reader: &mut Reader, writer: &mut Writer) -> Result<Option<Startup>, WireError> {
    for _ in 0..MAX_REQUESTS {
        let Some(frame) = reader.opening(MAX_OPENING).await? else { return Ok(None) };
        let number = |at: usize| {
            let bytes = frame.get(at..at + 4).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
            bytes.map(u32::from_be_bytes)
        };
        match number(4) {
            Some(request @ (SSL | GSS)) => {
                let tls = sql.tls.as_ref().filter(|_| request == SSL && !reader.is_secured());
                writer.put_byte(if tls.is_some() { b'S' } else { b'N' });
                writer.flush().await?;
                if let Some(tls) = tls {
                    wire::secure(reader, writer, tls).await?;
                }
            }
            Some(CANCEL) => {
                if let (Some(id), Some(secret)) = (number(8), number(12)) {
                    sql.cancels.cancel(id.cast_signed(), secret.cast_signed());
                }
                return Ok(None);
            }
            _ => {
                return match wire::decode(&frame, true)? {
                    In::Startup(startup) => Ok(Some(startup)),
                    _ => Err(WireError::Protocol("a session was to be asked for".to_owned())),
                };
            }
        }
    }
    Err(WireError::Protocol("too many requests before a session".to_owned()))
}

type Denial = (&'static str, String);

async fn admit(
    sql: &Arc<Sql>,
    startup: Startup,
    reader: &mut Reader,
    writer: &mut Writer,
    peer: IpAddr,
) -> Result<Result<Opened, Denial>, WireError> {
    if sql.tls.is_some() && !reader.is_secured() {
        return Ok(Err((
            "28000",
            "sessions are given over TLS only: connect with sslmode=require or stricter".to_owned(),
        )));
    }
    let mut asked = startup.parameters;
    let newest = ProtocolVersion::PROTOCOL3_0;
    if startup.protocol_number_major != newest.version_number().0 {
        return Ok(Err(("08P01", "this protocol is not spoken here: 3.0 is".to_owned())));
    }
    let unknown: Vec<String> = asked.keys().filter(|name| name.starts_with("_pq_.")).cloned().collect();
    asked.retain(|name, _| !name.starts_with("_pq_."));
    if startup.protocol_number_minor > newest.version_number().1 || !unknown.is_empty() {
        writer.put(&Out::NegotiateProtocolVersion(NegotiateProtocolVersion::new(newest.into(), unknown)))?;
    }
    let user = asked.remove("user").unwrap_or_default();
    if user.is_empty() {
        return Ok(Err(("28000", "no user name was given".to_owned())));
    }
    let database = asked.remove("database").unwrap_or_default();
    if !database.is_empty() && database != DATABASE {
        return Ok(Err(("3D000", format!("database \"{database}\" does not exist: the database is {DATABASE}"))));
    }
    if asked.remove("replication").is_some_and(|value| !["false", "off", "no", "0"].contains(&value.as_str())) {
        return Ok(Err(("0A000", "replication is not offered".to_owned())));
    }
    let caller = match sql.access.open_to(peer).filter(|_| user == DATABASE) {
        Some(caller) => caller,
        None => match password(sql, reader, writer, &user).await? {
            Ok(caller) => caller,
            Err(denial) => return Ok(Err(denial)),
        },
    };
    if !sql.tables.is_filled() {
        return Ok(Err(("57P03", NOT_WHOLE.to_owned())));
    }
    let mut session = Session::new(sql.clone(), user.clone(), &caller);
    if let Err(error) = configure(&mut session, asked) {
        return Ok(Err((error.code(), error.to_string())));
    }
    let key = match sql.cancels.register() {
        Ok(key) => key,
        Err(error) => {
            tracing::error!(%error, "no random number for a connection of SQL");
            return Ok(Err(("XX000", SqlError::Internal.to_string())));
        }
    };
    greet(writer, &session, &user, &key)?;
    writer.flush().await?;
    tracing::debug!(%peer, caller = caller.name, tenant = caller.tenant, "a session of SQL");
    Ok(Ok(Opened { session, key }))
}

/// Asks for a token as the password.
async fn password(
    sql: &Arc<Sql>,
    reader: &mut Reader,
    writer: &mut Writer,
    user: &str,
) -> Result<Result<Caller, Denial>, WireError> {
    writer.put(&Out::Authentication(Authentication::CleartextPassword))?;
    writer.flush().await?;
    // a client that has none to give goes away, and comes again with one
    let Some(message) = reader.message(MAX_OPENING).await? else {
        return Ok(Err(("28P01", "no password was given".to_owned())));
    };
    let In::PasswordMessageFamily(message) = message else {
        return Err(WireError::Protocol("a password was expected".to_owned()));
    };
    let password = message.into_password()?.password;
    match sql.access.by_token(&password) {
        Ok(caller) => Ok(Ok(caller)),
        Err(_) => {
            sql.counts.deny();
            Ok(Err((
                "28P01",
                format!("password authentication failed for user \"{user}\": the password is one of [[auth.tokens]]"),
            )))
        }
    }
}

/// Takes the settings that a client begins with, by themselves and in `options`.
fn configure(session: &mut Session, mut asked: BTreeMap<String, String>) -> Result<(), SqlError> {
    for (name, value) in options(&asked.remove("options").unwrap_or_default())? {
        session.set(&name, Some(&value))?;
    }
    for (name, value) in asked {
        session.set(&name, Some(&value))?;
    }
    Ok(())
}

/// `-c name=value` and `--name=value`; a space within a value stands behind a backslash.
fn options(text: &str) -> Result<Vec<(String, String)>, SqlError> {
    let (mut words, mut word, mut escaped) = (Vec::new(), String::new(), false);
    for c in text.chars() {
        match c {
            '\\' if !escaped => escaped = true,
            c if c.is_whitespace() && !escaped => {
                words.extend(Some(std::mem::take(&mut word)).filter(|word| !word.is_empty()))
            }
            c => {
                word.push(c);
                escaped = false;
            }
        }
    }
    words.extend(Some(word).filter(|word| !word.is_empty()));
    let wrong = || SqlError::BadParameter(format!("options are to be given as -c name=value, not as \"{text}\""));
    let (mut pairs, mut words) = (Vec::new(), words.into_iter());
    while let Some(word) = words.next() {
        let pair = match word.strip_prefix("--").or_else(|| word.strip_prefix("-c").filter(|rest| !rest.is_empty())) {
            Some(pair) => pair.to_owned(),
            None if word == "-c" => words.next().ok_or_else(wrong)?,
            None => return Err(wrong()),
        };
        let (name, value) = pair.split_once('=').ok_or_else(wrong)?;
        pairs.push((name.replace('-', "_"), value.to_owned()));
    }
    Ok(pairs)
}

fn greet(writer: &mut Writer, session: &Session, user: &str, key: &Key) -> Result<(), WireError> {
    writer.put(&Out::Authentication(Authentication::Ok))?;
    for (name, value) in session.settings().reported() {
        writer.put(&Out::ParameterStatus(ParameterStatus::new(name.to_owned(), value)))?;
    }
    writer.put(&Out::ParameterStatus(ParameterStatus::new("session_authorization".to_owned(), user.to_owned())))?;
    writer.put(&Out::BackendKeyData(BackendKeyData::new(key.id, SecretKey::I32(key.secret))))?;
    writer.put(&Out::ReadyForQuery(ReadyForQuery::new(TransactionStatus::Idle)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_as_postgres_reads_them() {
        let of = |text: &str| options(text).map_err(|error| error.code());
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(of(""), Ok(vec![]));
        assert_eq!(of("-c runwarden.tenant=acme"), Ok(vec![pair("runwarden.tenant", "acme")]));
        assert_eq!(
            of("-cstatement_timeout=5s  --search-path=a\\ b"),
            Ok(vec![pair("statement_timeout", "5s"), pair("search_path", "a b")])
        );
        assert_eq!((of("-c"), of("-c x"), of("geqo=off")), (Err("22023"), Err("22023"), Err("22023")));
    }
}
