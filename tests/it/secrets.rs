//! No secret of a configuration is in anything that a process says, however much it is asked to say.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::certificates::Authority;
use crate::support::process::{Process, runwarden};
use crate::support::sidecar::eventually;

const SOON: Duration = Duration::from_secs(30);

/// Every key of the configuration that holds a secret, with one. Those in files and variables too.
fn secrets() -> BTreeMap<&'static str, &'static str> {
    BTreeMap::from([
        ("sasl.password", "hush-sasl-password-4711"),
        ("auth.tokens", "hush-bearer-token-4712"),
        ("auth.tokens, by a variable", "hush-variable-token-4713"),
        ("auth.keys", "hush-command-key-4714"),
        ("channels.to.url of a webhook", "hush-webhook-path-4715"),
        ("channels.to.secret of a webhook", "whsec_aHVzaC13ZWJob29rLXNlY3JldC00NzE2"),
        ("channels.to.url of slack", "hush-slack-path-4717"),
        ("channels.to.secret-file of pagerduty", "hushpagerdutyroutingkey000004718"),
        ("channels.to.secret of alertmanager", "hush-alertmanager-token-4719"),
        ("channels.to.secret of email", "hush-mail-password-4720"),
    ])
}

fn configured(dir: &Path) {
    let (here, s) = (dir.display(), secrets());
    fs::write(dir.join("pagerduty"), s["channels.to.secret-file of pagerduty"]).unwrap();
    let text = format!(
        r#"
[roles]
enabled = ["edge", "serve", "channels"]
[paths]
data = "{here}/data"
[kafka]
brokers = "127.0.0.1:1"
[kafka.client]
"security.protocol" = "SASL_PLAINTEXT"
"sasl.mechanism" = "PLAIN"
"sasl.username" = "runwarden"
"sasl.password" = "{}"
[http]
listen = "127.0.0.1:0"
[sql]
listen = "127.0.0.1:0"
tls-cert = "{here}/cert.pem"
tls-key = "{here}/key.pem"
[otlp]
listen = "127.0.0.1:0"
[[auth.tokens]]
name = "a"
token = "{}"
authority = "GUARDIAN"
tenant = "*"
[[auth.tokens]]
name = "b"
token = "env:HUSH"
authority = "WORKER"
tenant = "acme"
[[auth.keys]]
id = "main"
secret = "{}"
[[channels.to]]
name = "hook"
type = "webhook"
url = "https://hooks.example.com/{}"
secret = "{}"
[[channels.to]]
name = "chat"
type = "slack"
url = "https://hooks.example.com/services/{}"
[[channels.to]]
name = "page"
type = "pagerduty"
secret-file = "{here}/pagerduty"
[[channels.to]]
name = "manager"
type = "alertmanager"
urls = ["http://127.0.0.1:1"]
secret = "{}"
[[channels.to]]
name = "mail"
type = "email"
host = "127.0.0.1"
username = "runwarden"
secret = "{}"
from = "a@example.com"
to = ["b@example.com"]
[log]
level = "trace"
"#,
        s["sasl.password"],
        s["auth.tokens"],
        s["auth.keys"],
        s["channels.to.url of a webhook"],
        s["channels.to.secret of a webhook"],
        s["channels.to.url of slack"],
        s["channels.to.secret of alertmanager"],
        s["channels.to.secret of email"],
    );
    fs::write(dir.join("runwarden.toml"), text).unwrap();
}

/// What holds secrets by itself: the configuration's own files.
fn is_given(path: &Path) -> bool {
    ["runwarden.toml", "pagerduty", "key.pem", "cert.pem"].iter().any(|name| path.ends_with(name))
}

fn below(dir: &Path) -> Vec<PathBuf> {
    let (mut found, mut left) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(path) = left.pop() {
        if path.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if !is_given(&path) {
            found.push(path);
        }
    }
    found
}

fn http(port: u16, request: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn no_secret_of_the_configuration_is_said_at_any_level_of_the_log() {
    let dir = tempfile::tempdir().unwrap();
    Authority::new("ours").server().write(dir.path());
    configured(dir.path());
    let key = fs::read_to_string(dir.path().join("key.pem")).unwrap();
    let secrets = secrets();
    let mut all: Vec<(&str, &str)> = secrets.iter().map(|(of, secret)| (*of, *secret)).collect();
    all.extend(key.lines().filter(|line| line.len() > 20).map(|line| ("tls-key", line)));

    let mut said = Vec::new();
    for arguments in
        [&["check", "--print"][..], &["channel", "list"], &["topics", "describe"], &["channel", "test", "mail"]]
    {
        let mut command = runwarden(dir.path(), arguments);
        let output =
            command.env("HUSH", secrets["auth.tokens, by a variable"]).env("RUST_LOG", "trace").output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        assert!(!text.is_empty(), "{arguments:?}");
        said.push((arguments.join(" "), String::from_utf8_lossy(&text).into_owned()));
    }

    let environment = [("HUSH", secrets["auth.tokens, by a variable"]), ("RUST_LOG", "trace")];
    let process = Process::start_with(dir, &environment);
    let port = process.port("address");
    for token in [secrets["auth.tokens"], secrets["auth.tokens, by a variable"]] {
        for page in
            ["/status.json", "/metrics", "/api/v1/policies", "/api/v1/runs/r/verdict?tenant_id=acme", "/nothing"]
        {
            let text = http(
                port,
                &format!(
                    "GET {page} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n"
                ),
            );
            said.push((page.to_owned(), text));
        }
    }
    eventually("it tried to reach Kafka", SOON, || process.said().contains("127.0.0.1:1"));
    let log = process.said();
    assert!(log.contains("TRACE") && log.len() > 5_000, "{log}");
    for path in below(process.home()) {
        said.push((path.display().to_string(), String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned()));
    }
    for (place, text) in &said {
        for (of, secret) in &all {
            assert!(!text.contains(*secret), "{of} is in {place}");
        }
    }
}

#[test]
fn a_property_of_kafka_that_is_refused_does_not_show_its_value() {
    let dir = tempfile::tempdir().unwrap();
    for property in ["sasl.passwrod", "ssl.key.password", "socket.keepalive.enable"] {
        let text = format!("[kafka]\nbrokers = \"127.0.0.1:1\"\n[kafka.client]\n\"{property}\" = \"hush-4721\"\n");
        fs::write(dir.path().join("runwarden.toml"), text).unwrap();
        let output = runwarden(dir.path(), &["topics", "create"]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && !said.contains("hush-4721"), "{said}");
    }
}
