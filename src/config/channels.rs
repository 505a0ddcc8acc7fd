//! `[channels]`: who is told of alerts, how, and of which.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use super::reader::Section;
use super::{DAY, Matcher, Secret, Template, millis, seconds};

/// `[channels]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Channels {
    /// The channels.
    pub to: Vec<Channel>,
}

/// What a channel speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChannelKind {
    /// Standard Webhooks.
    Webhook,
    /// An incoming webhook of Slack.
    Slack,
    /// SMTP.
    Email,
    /// PagerDuty Events v2.
    Pagerduty,
    /// Alertmanager, API v2.
    Alertmanager,
}

/// Every kind and its name.
pub const CHANNEL_KINDS: [(&str, ChannelKind); 5] = [
    ("webhook", ChannelKind::Webhook),
    ("slack", ChannelKind::Slack),
    ("email", ChannelKind::Email),
    ("pagerduty", ChannelKind::Pagerduty),
    ("alertmanager", ChannelKind::Alertmanager),
];

impl ChannelKind {
    /// The name in `type`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Webhook => "webhook",
            Self::Slack => "slack",
            Self::Email => "email",
            Self::Pagerduty => "pagerduty",
            Self::Alertmanager => "alertmanager",
        }
    }
}

/// Which addresses a channel may connect to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// Those of the Internet.
    Public,
    /// Also this host and private networks.
    Private,
    /// Also link-local ones, where clouds keep their credentials.
    Any,
}

/// Which updates of an alert are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Updates {
    /// None.
    None,
    /// Those that say something new: a higher severity, another kind of source.
    Escalations,
    /// All.
    All,
}

/// How a connection to a mail server is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MailSecurity {
    /// Begun in plain text, then TLS or nothing.
    Starttls,
    /// TLS from the start.
    Tls,
    /// None at all.
    None,
}

/// What only mail needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Email {
    /// The server.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// How it is reached.
    pub security: MailSecurity,
    /// Who logs in; the channel's secret is the password.
    pub username: Option<String>,
    /// Sender.
    pub from: String,
    /// Receivers.
    pub to: Vec<String>,
}

/// `[[channels.to]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Channel {
    /// Its name: policies may name it.
    pub name: String,
    /// What it speaks: policies may name that, too.
    pub kind: ChannelKind,
    /// Where to; every member of a cluster of Alertmanagers. Some are secrets.
    pub urls: Vec<Secret>,
    /// A file that holds the address.
    pub url_file: Option<PathBuf>,
    /// What signs (webhook: several, separated by spaces), the routing key (pagerduty), the bearer token (alertmanager) or the password (email).
    pub secret: Option<Secret>,
    /// A file that holds it.
    pub secret_file: Option<PathBuf>,
    /// Of a channel of the kind email.
    pub email: Option<Email>,
    /// Certificates to trust instead of those of the web, PEM.
    pub ca_file: Option<PathBuf>,
    /// Where it may connect to.
    pub reach: Reach,
    /// Every alert, not only those whose policies name the channel.
    pub takes_all: bool,
    /// Only alerts that are so bad: LOW MEDIUM HIGH CRITICAL.
    pub min_severity: &'static str,
    /// Only alerts of which all this holds.
    pub matchers: Vec<Matcher>,
    /// Whether an alert's end is told.
    pub send_resolved: bool,
    /// Which updates are told.
    pub send_updates: Updates,
    /// Whether alerts of made-up data are told.
    pub synthetic: bool,
    /// One line.
    pub title: Template,
    /// What follows it.
    pub text: Template,
    /// How long an attempt may take.
    pub timeout: Duration,
    /// Most messages a minute; 0: no bound.
    pub per_minute: u32,
    /// The first wait after a failure; it doubles.
    pub backoff: Duration,
    /// The longest wait.
    pub max_backoff: Duration,
    /// After so long nothing is tried any more.
    pub give_up_after: Duration,
    /// Failures in a row after which a channel rests.
    pub circuit_failures: u32,
    /// For so long.
    pub circuit_pause: Duration,
    /// Alertmanager: alerts that began so long ago are still known after a restart.
    pub look_back: Duration,
}

const SEVERITIES: [(&str, &str); 4] =
    [("LOW", "LOW"), ("MEDIUM", "MEDIUM"), ("HIGH", "HIGH"), ("CRITICAL", "CRITICAL")];
/// The title unless one is given.
const TITLE: &str = "[{{ status }}] {{ severity }}: {{ title }}";
/// The text unless one is given.
const TEXT: &str = "{{ description }}";
/// Most channels.
const MOST: usize = 50;

pub(super) fn channels(s: &mut Section<'_, '_>) -> Channels {
    let channels = Channels { to: s.entries("to", channel) };
    let names: BTreeSet<&str> = channels.to.iter().map(|c| c.name.as_str()).collect();
    if names.len() < channels.to.len() || channels.to.len() > MOST {
        s.refuse("to", format!("at most {MOST}, and their names must differ"));
    }
    channels
}

fn channel(c: &mut Section<'_, '_>) -> Option<Channel> {
    use ChannelKind::{Alertmanager, Email as Mail, Pagerduty, Slack, Webhook};
    let name = c.required("name");
    let kinds = CHANNEL_KINDS.map(|(name, kind)| (name, Some(kind)));
    let kind = c.choice("type", None, &kinds);
    if let Some(name) = &name {
        let plain = |ch: char| ch.is_ascii_lowercase() || ch.is_ascii_digit() || matches!(ch, '-' | '_');
        if name.len() > 64 || !name.chars().all(plain) {
            c.refuse("name", "must be at most 64 of lower-case letters, digits, '-' and '_'");
        }
        let other = |(known, of): &(&str, ChannelKind)| known == name && Some(*of) != kind;
        if name == "ui" || CHANNEL_KINDS.iter().any(other) {
            c.refuse("name", "is the name of another type");
        }
    }
    let one = c.secret("url");
    let mut urls: Vec<Secret> = c.texts("urls", &[]).into_iter().map(Secret::new).collect();
    urls.extend(one);
    let url_file = c.optional_path("url-file");
    let secret = c.secret("secret");
    let secret_file = c.optional_path("secret-file");
    let (host, username, from) = (c.optional("host"), c.optional("username"), c.optional("from"));
    let security = [("starttls", MailSecurity::Starttls), ("tls", MailSecurity::Tls), ("none", MailSecurity::None)];
    let security = c.choice("security", MailSecurity::Starttls, &security);
    let port = c.number("port", if security == MailSecurity::Tls { 465 } else { 587 }, 1..=65_535_u16);
    let receivers = c.texts("to", &[]);
    let reach = if kind == Some(Alertmanager) { Reach::Private } else { Reach::Public };
    let reach =
        c.choice("reach", reach, &[("public", Reach::Public), ("private", Reach::Private), ("any", Reach::Any)]);
    let takes_all = c.choice("takes", false, &[("named", false), ("all", true)]);
    let min_severity = c.choice("min-severity", "LOW", &SEVERITIES);
    let matchers = c.texts("match", &[]).into_iter().filter_map(|text| match Matcher::parse(&text) {
        Ok(matcher) => Some(matcher),
        Err(error) => {
            c.refuse("match", error);
            None
        }
    });
    let matchers: Vec<Matcher> = matchers.collect();
    let send_resolved = c.flag("send-resolved", true);
    let updates = [("none", Updates::None), ("escalations", Updates::Escalations), ("all", Updates::All)];
    let send_updates = c.choice("send-updates", Updates::Escalations, &updates);
    let synthetic = c.flag("synthetic", false);
    let (title, text) = (template(c, "title", TITLE), template(c, "text", TEXT));
    let timeout = c.duration("timeout", seconds(10), millis(100)..=seconds(60));
    // Slack takes one a second
    let per_minute = c.number("per-minute", if kind == Some(Slack) { 60 } else { 600 }, 0..=60_000_u32);
    let backoff = c.duration("backoff", seconds(1), millis(10)..=seconds(600));
    let max_backoff = c.duration("max-backoff", seconds(300), millis(10)..=seconds(3_600));
    let give_up_after = c.duration("give-up-after", seconds(3_600), seconds(1)..=7 * DAY);
    let circuit_failures = c.number("circuit-failures", 5, 1..=1_000_u32);
    let circuit_pause = c.duration("circuit-pause", seconds(30), millis(10)..=seconds(3_600));
    let look_back = c.duration("look-back", DAY, seconds(60)..=30 * DAY);
    let ca_file = c.optional_path("ca-file");
    let (name, kind) = (name?, kind?);

    if max_backoff < backoff {
        c.refuse("max-backoff", "must not be below backoff");
    }
    for url in &urls {
        if let Err(wrong) = address(url.expose(), reach) {
            c.refuse(if kind == Alertmanager { "urls" } else { "url" }, wrong);
        }
    }
    if secret.is_some() && secret_file.is_some() {
        c.refuse("secret-file", "stands beside secret: one of them");
    }
    if url_file.is_some() && !urls.is_empty() {
        c.refuse("url-file", "stands beside url: one of them");
    }
    if urls.len() > if kind == Alertmanager { 16 } else { 1 } {
        c.refuse(
            "urls",
            "are for the members of a cluster of Alertmanagers, at most 16; another receiver is another channel",
        );
    }
    let has_secret = secret.is_some() || secret_file.is_some();
    match kind {
        Webhook | Slack | Alertmanager if urls.is_empty() && url_file.is_none() => {
            c.refuse("type", "needs a url or a url-file")
        }
        Webhook | Pagerduty if !has_secret => c.refuse("type", "needs a secret or a secret-file"),
        _ => {}
    }
    let email = match (kind, host, from) {
        (Mail, Some(host), Some(from)) if !receivers.is_empty() && receivers.len() <= 50 => {
            if username.is_some() && (!has_secret || security == MailSecurity::None) {
                c.refuse("username", "needs the password as secret or secret-file, and security that is not none");
            }
            Some(Email { host, port, security, username, from, to: receivers })
        }
        (Mail, ..) => {
            c.refuse("type", "needs host, from, and to with 1 to 50 receivers");
            None
        }
        _ => None,
    };
    Some(Channel {
        name,
        kind,
        urls,
        url_file,
        secret,
        secret_file,
        email,
        ca_file,
        reach,
        takes_all,
        min_severity,
        matchers,
        send_resolved,
        send_updates,
        synthetic,
        title,
        text,
        timeout,
        per_minute,
        backoff,
        max_backoff,
        give_up_after,
        circuit_failures,
        circuit_pause,
        look_back,
    })
}

/// Whether an address can be one; it is not said again, since it may be a secret.
pub fn address(url: &str, reach: Reach) -> Result<(), &'static str> {
    let secured = url.strip_prefix("https://");
    let rest = secured.or_else(|| url.strip_prefix("http://")).ok_or("must begin with https:// or http://")?;
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if host.is_empty() || host.contains('@') || url.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err("must be an address without user, spaces or control characters");
    }
    if secured.is_none() && reach == Reach::Public {
        return Err("must begin with https://, unless reach is \"private\" or \"any\"");
    }
    Ok(())
}

fn template(c: &mut Section<'_, '_>, key: &'static str, default: &str) -> Template {
    let text = c.text(key, default);
    match Template::parse(&text) {
        Ok(template) => template,
        Err(error) => {
            c.refuse(key, error);
            Template::parse(default).unwrap_or_default()
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    use super::*;

    fn faults(text: &str) -> Vec<String> {
        let read = Config::from_toml(&format!("[[channels.to]]\n{text}"), "c.toml", []);
        read.map(|_| Vec::new()).unwrap_or_else(|faults| faults.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_channel_needs_what_its_type_needs() {
        let webhook = "name = \"ops\"\ntype = \"webhook\"\nurl = \"https://e.com/h\"\nsecret = \"whsec_abc\"\n";
        assert_eq!(faults(webhook), Vec::<String>::new());
        for (text, part) in [
            ("name = \"a\"", "lacks a required key"),
            ("name = \"a\"\ntype = \"slak\"", "did you mean slack"),
            ("name = \"a\"\ntype = \"slack\"", "needs a url"),
            ("name = \"a\"\ntype = \"webhook\"\nurl = \"https://e.com\"", "needs a secret"),
            ("name = \"a\"\ntype = \"email\"\nhost = \"h\"", "needs host, from, and to"),
            ("name = \"a\"\ntype = \"slack\"\nurl = \"http://e.com\"", "must begin with https://"),
            ("name = \"a\"\ntype = \"slack\"\nurl = \"https://u:p@e.com\"", "without user"),
            ("name = \"email\"\ntype = \"slack\"\nurl = \"https://e.com\"", "name of another type"),
            ("name = \"A b\"\ntype = \"slack\"\nurl = \"https://e.com\"", "lower-case"),
            (&format!("{webhook}title = \"{{{{ titel }}}}\""), "did you mean title"),
            (&format!("{webhook}match = [\"color=red\"]"), "is no matcher"),
            (&format!("{webhook}secret-file = \"f\""), "one of them"),
            (&format!("{webhook}colour = 1"), "unknown key"),
            (&format!("{webhook}[[channels.to]]\n{webhook}"), "names must differ"),
        ] {
            let faults = faults(text);
            assert!(faults.iter().any(|fault| fault.contains(part)), "{text} gave {faults:?}");
        }
    }

    #[test]
    fn neither_addresses_nor_secrets_show() {
        let text = "[[channels.to]]\nname = \"a\"\ntype = \"webhook\"\nurl = \"env:URL\"\nsecret = \"whsec_hush\"\n";
        let env = [("URL".to_owned(), "https://e.com/services/hush".to_owned())];
        let config = Config::from_toml(text, "c.toml", env).unwrap();
        assert!(!format!("{config:?}").contains("hush"));
        assert_eq!(config.channels.to[0].urls[0].expose(), "https://e.com/services/hush");
    }

    #[test]
    fn slack_takes_one_a_second_and_alertmanager_is_near() {
        let text = "[[channels.to]]\nname = \"slack\"\ntype = \"slack\"\nurl = \"https://e.com\"\n\
                    [[channels.to]]\nname = \"am\"\ntype = \"alertmanager\"\nurls = [\"http://am:9093\", \"http://am2:9093\"]\n";
        let config = Config::from_toml(text, "c.toml", []).unwrap();
        let [slack, am] = config.channels.to.as_slice() else { panic!() };
        assert_eq!((slack.per_minute, slack.reach, am.reach, am.urls.len()), (60, Reach::Public, Reach::Private, 2));
    }
}
