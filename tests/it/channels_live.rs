//! Channels of the shipped binary against real receivers, on a real broker: webhooks that fail, one that is dead, a mail server with TLS,
//! an Alertmanager. Needs a broker, see `support::broker`; `RUNWARDEN_TEST_PYTHON` with aiosmtpd and standardwebhooks, and
//! `RUNWARDEN_TEST_ALERTMANAGER`, where they are to be had.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use runwarden::clock::{SECOND, Wall, rfc3339};
use runwarden::kafka::client::Isolation;
use runwarden::kafka::produce::{Producer, Send};
use runwarden::kafka::reader::Reader;
use serde_json::{Value, json};

use crate::end_to_end::{Running, Site};
use crate::support::sidecar::eventually;

const SOON: Duration = Duration::from_secs(60);
const PARTITIONS: i32 = 2;
const OLD: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
const NEW: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// A process that plays the role channels alone, with these `[[channels.to]]`, that stands at the end of the alerts.
fn started(test: &str, channels: &str) -> Option<(Site, Running)> {
    started_as(&["channels"], test, channels)
}

/// One that plays these roles.
fn started_as(roles: &[&str], test: &str, channels: &str) -> Option<(Site, Running)> {
    let site = Site::new(test, PARTITIONS, "")?;
    let config = fs::read_to_string(site.config()).unwrap();
    fs::write(site.config(), format!("[roles]\nenabled = {roles:?}\n{config}{channels}")).unwrap();
    let running = site.sidecar(1);
    for name in names(channels) {
        eventually(&format!("{name} has its place; it said:\n{}", running.said()), SOON, || {
            (0..PARTITIONS).all(|partition| position(&site, &name, partition).is_some())
        });
    }
    Some((site, running))
}

fn names(channels: &str) -> Vec<String> {
    let lines = channels.lines().filter_map(|line| line.strip_prefix("name = "));
    lines.map(|name| name.trim_matches('"').to_owned()).collect()
}

fn group(site: &Site, channel: &str) -> String {
    format!("{}-channel-{channel}", site.topics.telemetry.replace("runs.telemetry", "group"))
}

/// How many processes share a channel, once they agree; 0 until then.
fn members(site: &Site, channel: &str) -> usize {
    let client: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", &site.brokers).set("group.id", "looker-on").create().unwrap();
    let list = client.fetch_group_list(Some(&group(site, channel)), SOON).unwrap();
    list.groups().iter().filter(|group| group.state() == "Stable").map(|group| group.members().len()).sum()
}

fn position(site: &Site, channel: &str, partition: i32) -> Option<i64> {
    let group = group(site, channel);
    let reader = Reader::new(&site.client, &group, Isolation::Committed).unwrap();
    reader.committed(&[&site.topics.alerts], partition).ok()?[0]
}

fn alert(id: &str, revision: u64, status: &str) -> Value {
    let now = rfc3339(Wall::now().0);
    json!({
        "alert_id": id, "revision": revision, "status": status, "tenant_id": format!("t-{}", id.len() % 3), "correlation_key": id,
        "severity": "HIGH", "title": format!("alert {id}"), "description": "over <the> limit", "first_seen": now, "last_seen": now,
        "alert_count": 1, "suppressed_count": 0, "members": [], "members_total": 1, "runs": ["r-1"], "agents": [], "metrics": ["run_tokens"],
        "sources": ["signal"], "fingerprint": format!("f-{id}"), "resolve_reason": (status == "RESOLVED").then_some("fixed"),
        "current_value": 120, "minutes_to_limit": null, "channels": ["all-of-them"], "silenced_by": [], "inhibited_by": [],
        "is_synthetic": false,
    })
}

fn publish(site: &Site, alerts: &[Value]) {
    let producer = Producer::new(&site.client).unwrap();
    for alert in alerts {
        let id = format!("{}/{}", alert["alert_id"].as_str().unwrap(), alert["revision"]);
        let (payload, headers) = (alert.to_string(), [("ce_id", id.as_bytes())]);
        let key = alert["tenant_id"].as_str().unwrap().as_bytes();
        let (topic, payload) = (site.topics.alerts.as_str(), Some(payload.as_bytes()));
        producer.send_record(Send { topic, key: Some(key), payload, headers: &headers, ..Send::default() }).unwrap();
    }
    producer.flush(SOON).unwrap();
}

/// `after` of the lines of the audit about deliveries.
fn deliveries(site: &Site) -> Vec<Value> {
    let lines = site.read(&site.topics.audit).into_iter().filter_map(|record| record.payload);
    let lines = lines.map(|payload| serde_json::from_slice::<Value>(&payload).unwrap());
    lines.filter(|line| line["kind"] == "delivery").map(|line| line["after"].clone()).collect()
}

fn delivered(site: &Site, channel: &str, outcome: &str) -> usize {
    deliveries(site).iter().filter(|line| line["channel"] == channel && line["outcome"] == outcome).count()
}

/// One call of a receiver.
#[derive(Debug, Clone)]
struct Call {
    headers: BTreeMap<String, String>,
    body: String,
    at: Instant,
    answered: u16,
}

/// An HTTP receiver that answers as it is told: by the number of the call, from 0.
struct Receiver {
    url: String,
    calls: Arc<Mutex<Vec<Call>>>,
}

impl Receiver {
    fn new(answer: impl Fn(usize) -> u16 + std::marker::Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/hook/secret-path", listener.local_addr().unwrap());
        let calls = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&calls);
        std::thread::spawn(move || {
            for (n, stream) in listener.incoming().enumerate() {
                let Ok(stream) = stream else { return };
                // a caller that is killed leaves half a call
                let Some((headers, body)) = hear(&stream) else { continue };
                let answered = answer(n);
                seen.lock().unwrap().push(Call { headers, body, at: Instant::now(), answered });
                let answer = format!("HTTP/1.1 {answered} x\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok");
                let _sent = (&stream).write_all(answer.as_bytes());
            }
        });
        Self { url, calls }
    }

    fn taken(&self) -> Vec<Call> {
        self.calls.lock().unwrap().iter().filter(|call| call.answered < 300).cloned().collect()
    }

    /// The alerts whose state was taken.
    fn ids(&self) -> BTreeSet<String> {
        self.taken().iter().map(|call| call.headers["webhook-id"].clone()).collect()
    }
}

fn hear(stream: &TcpStream) -> Option<(BTreeMap<String, String>, String)> {
    let mut reader = BufReader::new(stream);
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
        let Some((name, value)) = line.trim().split_once(": ") else {
            if line.trim().is_empty() {
                break;
            }
            continue;
        };
        headers.insert(name.to_lowercase(), value.to_owned());
    }
    let mut body = vec![0; headers.get("content-length")?.parse().ok()?];
    reader.read_exact(&mut body).ok()?;
    Some((headers, String::from_utf8(body).ok()?))
}

fn webhook(name: &str, url: &str, more: &str) -> String {
    format!(
        "[[channels.to]]\nname = \"{name}\"\ntype = \"webhook\"\nurl = \"{url}\"\nsecret = \"{NEW} {OLD}\"\nreach = \"private\"\ntakes = \"all\"\nper-minute = 0\n\
         backoff = \"10ms\"\nmax-backoff = \"50ms\"\ncircuit-failures = 1000\n{more}\n"
    )
}

fn python(module: &str) -> Option<String> {
    let python = std::env::var("RUNWARDEN_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
    let has = Command::new(&python).args(["-c", &format!("import {module}")]).output();
    if has.is_ok_and(|output| output.status.success()) {
        return Some(python);
    }
    eprintln!("skipped: {python} has no {module} (RUNWARDEN_TEST_PYTHON names one that has)");
    None
}

/// What the reference library for Python says of signatures.
fn verify(calls: &[Call]) {
    let Some(python) = python("standardwebhooks") else { return };
    const SCRIPT: &str = "
import json, sys
from standardwebhooks.webhooks import Webhook
calls = json.load(sys.stdin)
for secret in sys.argv[1:]:
    for call in calls:
        Webhook(secret).verify(call['body'].encode(), call['headers'])
try:
    Webhook(sys.argv[1]).verify((calls[0]['body'] + ' ').encode(), calls[0]['headers'])
except Exception:
    print(len(calls))
";
    let mut child = Command::new(python)
        .args(["-c", SCRIPT, NEW, OLD])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let calls: Vec<Value> = calls.iter().map(|call| json!({"headers": call.headers, "body": call.body})).collect();
    child.stdin.take().unwrap().write_all(Value::from(calls.clone()).to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), calls.len().to_string());
}

#[test]
fn a_receiver_that_fails_half_its_calls_gets_every_alert_and_dead_ones_delay_nobody() {
    let flaky = Receiver::new(|n| if n % 2 == 0 { 503 } else { 204 });
    let quick = Receiver::new(|_| 200);
    // takes connections and never answers
    let hole = TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let channels = webhook("flaky", &flaky.url, "")
        + &webhook("quick", &quick.url, "")
        + &webhook("hole", &format!("http://{}/", hole.local_addr().unwrap()), "timeout = \"1s\"")
        + &webhook("dead", &format!("http://{closed}/"), "give-up-after = \"1s\"");
    let Some((site, running)) = started("channels-half", &channels) else { return };
    let ids: Vec<String> = (0..40).map(|n| format!("a-{}", "x".repeat(n % 3) + &n.to_string())).collect();
    let begun = Instant::now();
    publish(&site, &ids.iter().map(|id| alert(id, 1, "OPEN")).collect::<Vec<_>>());
    let expected: BTreeSet<String> = ids.iter().map(|id| format!("{id}/1")).collect();
    eventually("the quick one has all", SOON, || quick.ids() == expected);
    let last = quick.taken().iter().map(|call| call.at).max().unwrap();
    assert!(last - begun < Duration::from_secs(10), "beside dead channels it took {:?}", last - begun);
    eventually("the one that fails half has all", SOON, || flaky.ids() == expected);
    assert!(flaky.calls.lock().unwrap().len() >= 2 * ids.len(), "it failed half");
    verify(&flaky.taken());
    let body: Value = serde_json::from_str(&quick.taken()[0].body).unwrap();
    assert_eq!((&body["type"], &body["data"]["severity"]), (&json!("runwarden.alert.open"), &json!("HIGH")));
    eventually("the dead one gave up, and it is recorded", SOON, || delivered(&site, "dead", "GAVE_UP") == ids.len());
    eventually("deliveries are recorded", SOON, || {
        delivered(&site, "quick", "DELIVERED") == ids.len() && delivered(&site, "flaky", "DELIVERED") == ids.len()
    });
    let lines = deliveries(&site);
    let flaky_line = lines.iter().find(|line| line["channel"] == "flaky").unwrap();
    assert!(flaky_line["attempts"].as_u64().unwrap() >= 1 && flaky_line["latency_ms"].as_i64().unwrap() >= 0);
    let dead_line = lines.iter().find(|line| line["channel"] == "dead").unwrap();
    assert!(dead_line["error"].as_str().unwrap().contains("refused"), "{dead_line}");
    assert_eq!(delivered(&site, "hole", "DELIVERED"), 0);
    let said = running.said() + &lines.iter().map(ToString::to_string).collect::<String>();
    assert!(!said.contains("secret-path") && !said.contains("whsec_"), "no secret is told");
    running.terminate();
}

#[test]
fn killed_in_the_middle_it_tells_again_and_loses_none() {
    let slow = Receiver::new(|_| {
        std::thread::sleep(Duration::from_millis(5));
        200
    });
    let Some((site, running)) = started("channels-kill", &webhook("slow", &slow.url, "")) else { return };
    let ids: Vec<String> = (0..300).map(|n| format!("k-{}", "x".repeat(n % 3) + &n.to_string())).collect();
    publish(&site, &ids.iter().map(|id| alert(id, 1, "OPEN")).collect::<Vec<_>>());
    eventually("some are told", SOON, || slow.ids().len() > 20);
    running.kill();
    let told = slow.ids().len();
    assert!(told < ids.len(), "it was killed in the middle");
    // written while nobody is there: a new member does not begin at the end
    publish(&site, &[alert("late", 1, "OPEN")]);
    let running = site.sidecar(2);
    eventually(&format!("every alert is told; it said:\n{}", running.said()), SOON, || {
        slow.ids().len() == ids.len() + 1
    });
    running.terminate();
    let running = site.sidecar(3);
    publish(&site, &[alert("last", 1, "OPEN")]);
    eventually("what is new is told", SOON, || slow.ids().contains("last/1"));
    let repeated = slow.taken().len() - slow.ids().len();
    assert!(repeated <= 2, "{repeated} were told again after one kill and one clean end");
    running.terminate();
}

#[test]
fn what_runs_do_reaches_a_channel_of_the_process_that_judges_them() {
    let receiver = Receiver::new(|_| 200);
    let channels = webhook("hook", &receiver.url, "");
    let Some((site, mut running)) = started_as(&["core", "channels"], "channels-core", &channels) else { return };
    running.await_restored(PARTITIONS);
    site.feed_lines(&site.lines[..2_000], Duration::ZERO);
    let opened = || -> BTreeSet<String> {
        let alerts = site.read(&site.topics.alerts).into_iter().filter_map(|record| record.payload);
        let alerts = alerts.map(|payload| serde_json::from_slice::<Value>(&payload).unwrap());
        let first = alerts.filter(|alert| alert["revision"] == 1 && alert["status"] == "OPEN");
        first.map(|alert| format!("{}/1", alert["alert_id"].as_str().unwrap())).collect()
    };
    eventually(&format!("alerts are raised; it said:\n{}", running.said()), SOON, || opened().len() > 3);
    eventually("each is told", SOON, || receiver.ids().is_superset(&opened()));
    let taken = receiver.taken();
    let body: Value = serde_json::from_str(&taken[0].body).unwrap();
    assert!(body["data"]["tenant_id"].as_str().unwrap().starts_with("co"), "{body}");
    eventually("and recorded", SOON, || delivered(&site, "hook", "DELIVERED") >= opened().len());
    running.terminate();
}

#[test]
fn processes_that_come_and_go_share_a_channel_and_lose_nothing() {
    let slow = Receiver::new(|_| {
        std::thread::sleep(Duration::from_millis(5));
        200
    });
    let Some((site, first)) = started("channels-share", &webhook("slow", &slow.url, "")) else { return };
    let config = fs::read_to_string(site.config()).unwrap();
    let other = site.dir.path().join("other.toml");
    fs::write(&other, config.replace("slot = \"a\"", "slot = \"b\"")).unwrap();
    let batch = |name: &str| -> Vec<String> {
        let ids: Vec<_> = (0..150).map(|n| format!("{name}-{}", "x".repeat(n % 3) + &n.to_string())).collect();
        publish(&site, &ids.iter().map(|id| alert(id, 1, "OPEN")).collect::<Vec<_>>());
        ids
    };
    let mut ids = batch("one");
    eventually("some are told", SOON, || slow.ids().len() > 20);
    let second = site.sidecar_of(&other.display().to_string(), 2);
    ids.extend(batch("both"));
    eventually("the second has its share", SOON, || members(&site, "slow") == 2);
    ids.extend(batch("later"));
    eventually("most are told", SOON, || slow.ids().len() > 300);
    first.terminate();
    ids.extend(batch("last"));
    eventually("the second has all", SOON, || members(&site, "slow") == 1);
    let all: BTreeSet<String> = ids.iter().map(|id| format!("{id}/1")).collect();
    eventually(&format!("all are told; the second said:\n{}", second.said()), SOON, || slow.ids() == all);
    let repeated = slow.taken().len() - all.len();
    println!("{} told, {repeated} of them twice", all.len());
    assert!(repeated <= 2 * PARTITIONS as usize, "{repeated} were told twice, and everyone came and went in order");
    second.terminate();
}

#[test]
fn updates_collapse_while_a_channel_is_behind_and_the_end_is_told() {
    let down = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let is_down = Arc::clone(&down);
    let receiver = Receiver::new(move |_| if is_down.load(std::sync::atomic::Ordering::SeqCst) { 500 } else { 200 });
    let channels = webhook("behind", &receiver.url, "send-updates = \"all\"");
    let Some((site, running)) = started("channels-behind", &channels) else { return };
    let states = [(1, "OPEN"), (2, "UPDATED"), (3, "UPDATED"), (4, "UPDATED"), (5, "RESOLVED")];
    publish(&site, &states.map(|(revision, status)| alert("b", revision, status)));
    eventually("what is superseded is recorded", SOON, || delivered(&site, "behind", "SUPPRESSED") == 3);
    down.store(false, std::sync::atomic::Ordering::SeqCst);
    eventually("begin and end are told", SOON, || receiver.ids().len() == 2);
    let told: Vec<String> = receiver.taken().iter().map(|call| call.headers["webhook-id"].clone()).collect();
    assert_eq!(told, ["b/1", "b/5"]);
    running.terminate();
}

/// A child that ends with the test.
struct Ending(Child);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

const MAIL_SERVER: &str = "
import json, socket, ssl, sys
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult
class Handler:
    async def handle_DATA(self, server, session, envelope):
        said = {'from': envelope.mail_from, 'to': envelope.rcpt_tos, 'data': envelope.content.decode(), 'tls': session.ssl is not None,
                'user': (session.auth_data or b'').decode() if isinstance(session.auth_data, bytes) else session.auth_data}
        print(json.dumps(said), flush=True)
        return '250 OK'
def login(server, session, envelope, mechanism, data):
    good = data.login == b'warden' and data.password == b'open sesame'
    return AuthResult(success=good, auth_data=data.login.decode() if good else None)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1], sys.argv[2])
with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
controller = Controller(Handler(), hostname='127.0.0.1', port=port, ready_timeout=60, tls_context=context, require_starttls=True, authenticator=login,
                        auth_required=True)
controller.start()
print(port, flush=True)
sys.stdin.read()
";

#[test]
fn a_mail_server_with_tls_gets_mail_from_who_knows_the_password() {
    let Some(python) = python("aiosmtpd") else { return };
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout", &at("key.pem"), "-out", &at("cert.pem")])
        .output();
    if !made.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: openssl makes no certificate here");
        return;
    }
    fs::write(at("password"), "open sesame\n").unwrap();
    let mut server = Command::new(python);
    server.args(["-c", MAIL_SERVER, &at("cert.pem"), &at("key.pem")]);
    server.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = Ending(server.spawn().unwrap());
    let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines().map(Result::unwrap);
    let port = lines.next().unwrap();
    let channels = format!(
        "[[channels.to]]\nname = \"mail\"\ntype = \"email\"\nhost = \"localhost\"\nport = {port}\nusername = \"warden\"\n\
         secret-file = \"{}\"\nca-file = \"{}\"\nfrom = \"runwarden <warden@example.com>\"\nto = [\"ops@example.com\", \"Ada <ada@example.com>\"]\n\
         takes = \"all\"\n",
        at("password"),
        at("cert.pem"),
    );
    let Some((site, running)) = started("channels-mail", &channels) else { return };
    let mut injected = alert("m", 1, "OPEN");
    injected["title"] = json!("over\r\nBcc: everyone@example.com");
    publish(&site, &[injected]);
    eventually(&format!("it is delivered; it said:\n{}", running.said()), SOON, || {
        delivered(&site, "mail", "DELIVERED") == 1
    });
    let mail: Value = serde_json::from_str(&lines.next().unwrap()).unwrap();
    assert_eq!(
        (&mail["from"], &mail["tls"], &mail["user"]),
        (&json!("warden@example.com"), &json!(true), &json!("warden"))
    );
    assert_eq!(mail["to"], json!(["ops@example.com", "ada@example.com"]));
    let data = mail["data"].as_str().unwrap();
    assert!(data.contains("Message-ID: <m.1@runwarden.invalid>") && data.contains("over <the> limit"), "{data}");
    assert!(
        data.contains("Subject: [OPEN] HIGH: over  Bcc: everyone@example.com") && !data.contains("\nBcc:"),
        "{data}"
    );
    let test = site.command(&["channel", "test", "mail", "--config"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&test.stdout), "mail: OPEN delivered\n", "{test:?}");
    running.terminate();
}

fn alertmanager() -> Option<String> {
    let given = std::env::var("RUNWARDEN_TEST_ALERTMANAGER").unwrap_or_else(|_| "prometheus-alertmanager".into());
    if Command::new(&given).arg("--version").output().is_ok_and(|output| output.status.success()) {
        return Some(given);
    }
    eprintln!("skipped: {given} is not there (RUNWARDEN_TEST_ALERTMANAGER names an Alertmanager)");
    None
}

fn fetch(port: u16, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nhost: localhost\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned())
}

#[test]
fn an_alertmanager_shows_an_alert_until_it_ends_also_after_a_restart() {
    let Some(binary) = alertmanager() else { return };
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("alertmanager.yml");
    fs::write(&config, "route: {receiver: none}\nreceivers: [{name: none}]\n").unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let child = Command::new(binary)
        .arg(format!("--config.file={}", config.display()))
        .arg(format!("--storage.path={}", dir.path().display()))
        .arg(format!("--web.listen-address=127.0.0.1:{port}"))
        .arg("--cluster.listen-address=")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let _child = Ending(child.unwrap());
    eventually("Alertmanager is there", SOON, || fetch(port, "/-/ready").is_some());
    let dead = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let channels = format!(
        "[[channels.to]]\nname = \"am\"\ntype = \"alertmanager\"\nurls = [\"http://127.0.0.1:{dead}\", \"http://127.0.0.1:{port}/\"]\ntakes = \"all\"\n"
    );
    let Some((site, running)) = started("channels-am", &channels) else { return };
    let shown = || -> Vec<Value> {
        let body = fetch(port, "/api/v2/alerts?active=true").unwrap_or_default();
        serde_json::from_str(&body).unwrap_or_default()
    };
    let stays = alert("stays", 1, "OPEN");
    publish(&site, &[alert("ends", 1, "OPEN"), stays]);
    eventually(&format!("both are shown; it said:\n{}", running.said()), SOON, || shown().len() == 2);
    let ends = shown().into_iter().find(|one| one["labels"]["fingerprint"] == "f-ends").unwrap();
    assert_eq!(
        ends["labels"],
        json!({"alertname": "RunwardenAlert", "tenant_id": "t-1", "fingerprint": "f-ends", "severity": "high"})
    );
    assert_eq!(ends["annotations"]["runs"], "r-1");
    publish(&site, &[alert("ends", 2, "RESOLVED")]);
    eventually("one has ended", SOON, || shown().len() == 1);
    running.terminate();
    let until = |value: &Value| value["endsAt"].as_str().unwrap().to_owned();
    let before = until(&shown()[0]);
    let running = site.sidecar(2);
    // nothing new is said of it: what fires is known again, and lasts longer
    eventually(&format!("it is posted again; it said:\n{}", running.said()), SOON, || {
        shown().first().is_some_and(|one| until(one) > before)
    });
    assert!(shown()[0]["labels"]["fingerprint"] == "f-stays" && before > rfc3339(Wall::now().0 + 60 * SECOND));
    running.terminate();
}
