//! Mail over SMTP. Blocking, one connection per mail.

use std::time::Duration;

use lettre::message::{Mailbox, Message as Letter, header};
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Certificate, CertificateStore, Tls, TlsParameters};
use lettre::{SmtpTransport, Transport as _};

use super::Attempt;
use super::payload::email::Mail;
use super::secrets::{Secrets, Unusable};
use crate::config::{Email, MailSecurity};

/// A mail server and who writes to whom.
pub struct Mailer {
    transport: SmtpTransport,
    from: Mailbox,
    to: Vec<Mailbox>,
}

impl Mailer {
    /// Of a channel.
    ///
    /// # Errors
    /// An address or a certificate that is none.
    pub fn new(email: &Email, secrets: &Secrets, timeout: Duration) -> Result<Self, Unusable> {
        let mailbox = |text: &String| {
            text.parse::<Mailbox>().map_err(|e| Unusable::wrong("an address", format!("{text:?} is none: {e}")))
        };
        let tls = || -> Result<TlsParameters, Unusable> {
            let wrong = |e: lettre::transport::smtp::Error| Unusable::wrong("TLS", format!("cannot be set up: {e}"));
            let mut builder = TlsParameters::builder(email.host.clone());
            if let Some(pem) = &secrets.ca {
                builder = builder.certificate_store(CertificateStore::None);
                builder = builder.add_root_certificate(Certificate::from_pem(pem).map_err(wrong)?);
            }
            builder.build().map_err(wrong)
        };
        let tls = match email.security {
            MailSecurity::Starttls => Tls::Required(tls()?),
            MailSecurity::Tls => Tls::Wrapper(tls()?),
            MailSecurity::None => Tls::None,
        };
        let mut builder =
            SmtpTransport::builder_dangerous(&email.host).port(email.port).tls(tls).timeout(Some(timeout));
        if let (Some(user), Some(password)) = (&email.username, secrets.secrets.first()) {
            builder = builder.credentials(Credentials::new(user.clone(), password.expose().to_owned()));
        }
        let to = email.to.iter().map(mailbox).collect::<Result<_, _>>()?;
        Ok(Self { transport: builder.build(), from: mailbox(&email.from)?, to })
    }

    /// Sends one.
    pub fn send(&self, mail: Mail) -> Attempt {
        let mut letter = Letter::builder()
            .from(self.from.clone())
            .subject(mail.subject)
            .message_id(Some(mail.message_id))
            .references(mail.thread.clone())
            .in_reply_to(mail.thread)
            .header(header::ContentType::TEXT_PLAIN);
        for to in &self.to {
            letter = letter.to(to.clone());
        }
        let letter = match letter.body(mail.body) {
            Ok(letter) => letter,
            Err(error) => return Attempt::Never(format!("no mail can be made of it: {error}")),
        };
        match self.transport.send(&letter) {
            Ok(_) => Attempt::Done,
            // what a server says may repeat what it was given, so only its code is told
            Err(error) => match error.status() {
                Some(code) if error.is_permanent() && !is_of_login(u16::from(code)) => {
                    Attempt::Never(format!("the server refuses it ({code})"))
                }
                Some(code) => Attempt::Later { why: format!("the server said {code}"), after: None },
                None if error.is_timeout() => Attempt::Later { why: "timed out".to_owned(), after: None },
                None => Attempt::Later { why: said(&error), after: None },
            },
        }
    }
}

/// A password that is wrong today may be set right while alerts wait.
const fn is_of_login(code: u16) -> bool {
    matches!(code, 530 | 534 | 535 | 538)
}

fn said(error: &lettre::transport::smtp::Error) -> String {
    let cause = std::error::Error::source(error).map(ToString::to_string);
    cause.unwrap_or_else(|| error.to_string())
}
