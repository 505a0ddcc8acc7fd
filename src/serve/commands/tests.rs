use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;

use prometheus::Registry;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::*;
use crate::clock::{SECOND, Wall};
use crate::decide::commands::{Keyring, Received};
use crate::kafka::Topics;
use crate::metrics::Metrics;
use crate::serve::Health;
use crate::serve::access::{ALL, Access};

const T0: Wall = Wall(1_700_000_000 * SECOND);
const ACME: &str = "a token of acme's admin";
const VIEWER: &str = "a token of acme's viewer";
const OTHER: &str = "a token of the other's";
const EVERYONE: &str = "a token of everyone's";

fn t0() -> Wall {
    T0
}

fn ring() -> Arc<Keyring> {
    let mut ring = Keyring::default();
    ring.add("k", b"a secret of some length", 5);
    ring.sign_own_with("k");
    Arc::new(ring)
}

/// What the core would say: refused with the code that the reason names, nothing at all to `silence`, else accepted. A command
/// with an id that was answered before gets the same answer, another with that id none.
#[derive(Default)]
struct Core {
    answered: HashMap<String, (String, Value)>,
}

impl Core {
    fn answer(&mut self, received: &Received) -> Option<Value> {
        let command = &received.command;
        let reason = command.body["reason"].as_str().unwrap_or_default();
        if reason == "silence" {
            return None;
        }
        let (status, code) = match reason.strip_prefix("refuse ") {
            Some(code) => ("REFUSED", code.split(' ').next().unwrap_or_default()),
            None => ("ACCEPTED", "ok"),
        };
        let mut result = json!({
            "command_id": command.command_id, "type": command.kind, "status": status, "code": code, "reason": "in words",
            "result": null, "conflicts": [], "dependents": [], "required_authority": null,
            "given_authority": received.authority, "offset": self.answered.len(), "tenant_id": command.key(),
        });
        if code == "ok" {
            let id = &command.command_id;
            result["result"] = json!({
                "proposal_id": id, "override_id": id, "silence_id": id, "lesson_id": id, "intervention_id": id, "action_id": id,
                "asked": command.body, "principal": command.principal, "of": command.tenant_id,
            });
        }
        if code == "authority" {
            result["required_authority"] = json!(4);
        }
        if code == "conflict" {
            result["conflicts"] = json!([{"policy_a_id": "a"}]);
        }
        let known = self.answered.entry(command.command_id.clone());
        let (digest, first) = known.or_insert_with(|| (received.digest.clone(), result.clone()));
        if *digest == received.digest {
            return Some(first.clone());
        }
        result["status"] = json!("REFUSED");
        result["code"] = json!("id_reused");
        Some(result)
    }
}

struct Site {
    address: SocketAddr,
    records: std::sync::mpsc::Receiver<(String, String, Value)>,
    _stop: watch::Sender<bool>,
}

async fn site(bounds: Bounds) -> Site {
    let (commander, parcels) = Commander::unattended(&Topics::default(), ring(), t0, bounds);
    commander.shared.set_hears();
    let shared = Arc::clone(&commander.shared);
    let (sender, records) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let (ring, mut core) = (ring(), Core::default());
        while let Ok(parcel) = parcels.recv() {
            let record = serde_json::from_slice(&parcel.payload).unwrap();
            sender.send((parcel.topic.clone(), parcel.key, record)).unwrap();
            drop(parcel.sent.send(Ok(())));
            if parcel.topic == Topics::default().commands {
                let received = ring.read(&parcel.payload).unwrap();
                assert_eq!(received.unsigned, None);
                if let Some(result) = core.answer(&received) {
                    shared.desk().take(result, 100, T0.0);
                }
            }
        }
    });
    let access = Access::new(true)
        .with(ACME, Caller::new("ada", 4, "acme"))
        .with(VIEWER, Caller::new("vic", 1, "acme"))
        .with(OTHER, Caller::new("eve", 5, "other"))
        .with(EVERYONE, Caller::new("root", 5, ALL));
    let metrics = Arc::new(Metrics::register(&Registry::new(), &["run_tokens"]).unwrap());
    let views = Views::new(Arc::new(Health::new(T0)), metrics, t0).with_api(Arc::default(), Arc::default(), access);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(crate::serve::http::serve(listener, None, views.with_commander(Arc::new(commander)), stopped));
    Site { address, records, _stop: stop }
}

struct Answer {
    status: u16,
    head: String,
    body: Value,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .find_map(|line| line.split_once(": ").filter(|(n, _)| n.eq_ignore_ascii_case(name)))
            .map(|h| h.1)
    }
}

impl Site {
    async fn send(&self, method: &str, path: &str, headers: &str, body: &str) -> Answer {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let length = body.len();
        let host = self.address;
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let (status, body) = (head[9..12].parse().unwrap(), serde_json::from_str(body).unwrap_or_default());
        Answer { status, head: head.to_owned(), body }
    }

    async fn by(&self, token: &str, method: &str, path: &str, more: &str, body: &str) -> Answer {
        let headers = format!("Authorization: Bearer {token}\r\nContent-Type: application/json\r\n{more}");
        self.send(method, path, &headers, body).await
    }

    async fn route(&self, token: &str, route: &WriteRoute, more: &str, reason: Option<&str>) -> Answer {
        let example = route.example.replace("\"id\": \"planner-pace\"", "\"id\": \"x\"");
        let (mut path, mut body) = (route.path.replace("{id}", "x"), example);
        if let Some(reason) = reason {
            match route.form {
                Form::Policy => path = format!("{path}?reason={}", reason.replace(' ', "%20")),
                Form::Fields(_) => {
                    let mut fields: Value = serde_json::from_str(&body).unwrap();
                    fields["reason"] = json!(reason);
                    body = fields.to_string();
                }
            }
        }
        self.by(token, route.method, &path, more, &body).await
    }
}

fn quick() -> Bounds {
    Bounds { patience: Duration::from_millis(50), rate: Rate { burst: 10_000, per_second: 1_000 }, ..Bounds::default() }
}

fn patient() -> Bounds {
    Bounds { patience: Duration::from_secs(60), ..quick() }
}

#[tokio::test]
async fn each_route_is_accepted_refused_and_repeated_and_its_result_is_looked_up() {
    let site = site(patient()).await;
    for route in routes_table().iter().filter(|route| route.command.is_some()) {
        let what = format!("{} {}", route.method, route.path);
        let token = if route.whose == Whose::All { EVERYONE } else { ACME };
        let key = format!("Idempotency-Key: \"{what}\"\r\n");
        let first = site.route(token, route, &key, None).await;
        assert_eq!(first.status, if route.makes.is_some() { 201 } else { 200 }, "{what}: {}", first.body);
        let (id, _) = (first.body["command_id"].as_str().unwrap(), assert_eq!(first.body["type"], route.kind()));
        let place = route.makes.map(|(_, path)| format!("{path}/{id}"));
        assert_eq!(first.header("location"), place.as_deref(), "{what}");
        let (topic, record_key, sent) = site.records.try_recv().unwrap();
        assert_eq!((topic, sent["type"].as_str().unwrap()), (Topics::default().commands, route.kind()));
        let of = if route.whose == Whose::All { ALL } else { "acme" };
        let everyone = matches!(route.whose, Whose::All | Whose::AnyOrAll);
        assert_eq!((sent["tenant_id"].as_str().unwrap(), record_key.as_str()), (of, if everyone { ALL } else { of }));
        assert_eq!(sent["principal"], if of == ALL { "user:root" } else { "user:ada" });
        let again = site.route(token, route, &key, None).await;
        assert_eq!((again.status, &again.body), (first.status, &first.body), "{what}");
        let reused = site.route(token, route, &key, Some("another reason")).await;
        assert_eq!((reused.status, &reused.body["code"]), (422, &json!("id_reused")), "{what}");
        let refused = site.route(token, route, "", Some("refuse not_found")).await;
        assert_eq!((refused.status, &refused.body["code"]), (404, &json!("not_found")), "{what}");
        let found = site.by(token, "GET", &format!("/api/v1/commands/{id}"), "", "").await;
        assert_eq!((found.status, &found.body), (200, &first.body), "{what}");
        let hidden = site.by(OTHER, "GET", &format!("/api/v1/commands/{id}"), "", "").await;
        assert_eq!(hidden.status, 404, "{what}");
        assert_eq!(site.records.try_iter().count(), 1, "the refused one: {what}");
    }
}

#[tokio::test]
async fn nobody_writes_without_a_token_a_role_or_the_tenant() {
    let site = site(patient()).await;
    for route in routes_table() {
        let what = format!("{} {}", route.method, route.path);
        let viewer = site.route(VIEWER, route, "", None).await;
        assert_eq!(viewer.status, 403, "{what}");
        assert_eq!(
            (&viewer.body["required_role"], &viewer.body["given_role"]),
            (&json!(route.role.as_str()), &json!("view"))
        );
        assert_eq!(site.route("a token of nobody's", route, "", None).await.status, 401, "{what}");
        let path = format!("{}?tenant_id=acme", route.path.replace("{id}", "x"));
        assert_eq!(site.by(OTHER, route.method, &path, "", route.example).await.status, 403, "{what}");
    }
    assert!(site.records.try_recv().is_err(), "nothing was sent");
}

#[tokio::test]
async fn an_executor_s_report_goes_to_the_outcomes_under_its_tenant() {
    let site = site(patient()).await;
    let answer = site.by(ACME, "POST", "/api/v1/interventions/i-1/outcome", "", r#"{"state": "SUCCEEDED"}"#).await;
    assert_eq!((answer.status, answer.header("location")), (202, Some("/api/v1/interventions/i-1")));
    let record = json!({"intervention_id": "i-1", "state": "SUCCEEDED", "executor": "ada"});
    assert_eq!(site.records.try_recv().unwrap(), (Topics::default().outcomes, "acme".into(), record));
    let wrong = site.by(ACME, "POST", "/api/v1/interventions/i-1/outcome", "", r#"{"state": "DONE"}"#).await;
    assert_eq!(
        (wrong.status, &wrong.body["detail"]),
        (422, &json!("state must be one of ACKNOWLEDGED SUCCEEDED FAILED"))
    );
}

#[tokio::test]
async fn who_gets_no_answer_in_time_is_told_where_to_look() {
    let site = site(quick()).await;
    let path = "/api/v1/policy-proposals/p/approve";
    let answer = site.by(ACME, "POST", path, "Idempotency-Key: k\r\n", r#"{"reason": "silence"}"#).await;
    assert_eq!((answer.status, &answer.body["status"]), (202, &json!("PENDING")));
    let place = answer.header("location").unwrap().to_owned();
    assert_eq!(place, format!("/api/v1/commands/{}", answer.body["command_id"].as_str().unwrap()));
    assert_eq!(site.by(ACME, "GET", &place, "", "").await.status, 202);
    assert_eq!(site.by(OTHER, "GET", &place, "", "").await.status, 404);
    // the same key with something else is told from it before anybody has answered
    let other = site.by(ACME, "POST", path, "Idempotency-Key: k\r\n", r#"{"reason": "silence too"}"#).await;
    assert_eq!((other.status, &other.body["code"]), (422, &json!("id_reused")));
}

#[tokio::test]
async fn refusals_say_what_was_needed_and_what_stands_against_it() {
    let site = site(patient()).await;
    let refused = async |code: &str| {
        let body = format!(r#"{{"reason": "refuse {code}", "authority": 2}}"#);
        let answer = site.by(ACME, "POST", "/api/v1/policy-proposals/p/approve", "", &body).await;
        assert_eq!(answer.header("content-type"), Some("application/problem+json"));
        (answer.status, answer.body)
    };
    let (status, body) = refused("authority").await;
    assert_eq!((status, &body["required_authority"], &body["given_authority"]), (403, &json!(4), &json!(2)));
    assert_eq!(
        (&body["status"], &body["type"], &body["command"]),
        (&json!(403), &json!("about:blank"), &json!("proposal.approve"))
    );
    let (status, body) = refused("conflict").await;
    assert_eq!((status, &body["conflicts"]), (409, &json!([{"policy_a_id": "a"}])));
    for (code, wanted) in CODES.into_iter().filter(|(code, _)| *code != "ok") {
        let (status, body) = refused(code).await;
        assert_eq!((status, &body["code"]), (wanted.as_u16(), &json!(code)));
    }
    assert_eq!(refused("a_code_of_later").await.0, 422);
}

#[test]
fn every_code_of_the_code_base_has_its_status() {
    fn sources(dir: &std::path::Path, found: &mut String) {
        for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
            match entry.path() {
                path if path.is_dir() => sources(&path, found),
                path if path.extension().is_some_and(|e| e == "rs") => {
                    *found += &std::fs::read_to_string(path).unwrap()
                }
                _ => {}
            }
        }
    }
    let mut text = String::new();
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    ["pipeline", "policy", "decide"].iter().for_each(|room| sources(&root.join(room), &mut text));
    let pattern = regex::Regex::new(r#"Refusal::new\(\s*"([a-z_]+)""#).unwrap();
    let used: BTreeSet<&str> = pattern.captures_iter(&text).map(|found| found.get(1).unwrap().as_str()).collect();
    let listed: BTreeSet<&str> = CODES.iter().map(|(code, _)| *code).filter(|code| *code != "ok").collect();
    assert_eq!(used, listed);
}

#[tokio::test]
async fn this_host_writes_without_a_token_and_no_page_of_another_does() {
    let site = site(patient()).await;
    let (path, body) = ("/api/v1/alerts/clear?tenant_id=acme", r#"{"fingerprint": "f"}"#);
    let json = "Content-Type: application/json\r\n";
    assert_eq!(site.send("POST", path, json, body).await.status, 200);
    assert_eq!(site.records.try_recv().unwrap().2["principal"], "user:loopback");
    for (headers, wanted) in [
        ("", 415),
        ("Content-Type: text/plain\r\n", 415),
        (&*format!("{json}Origin: http://evil.example\r\n"), 403),
        (&*format!("{json}Origin: null\r\n"), 403),
    ] {
        assert_eq!(site.send("POST", path, headers, body).await.status, wanted, "{headers}");
    }
    assert!(site.records.try_recv().is_err(), "nothing was sent");
}

#[tokio::test]
async fn a_body_is_bounded_and_a_policy_may_be_longer() {
    let site = site(patient()).await;
    let long = |bytes: usize| format!(r#"{{"fingerprint": "{}"}}"#, "x".repeat(bytes));
    let status = async |path: &str, body: String| site.by(ACME, "POST", path, "", &body).await.status;
    assert_eq!(status("/api/v1/alerts/clear", long(MAX_BYTES - 100)).await, 200);
    assert_eq!(status("/api/v1/alerts/clear", long(MAX_BYTES)).await, 413);
    assert_eq!(status("/api/v1/policies", long(MAX_BYTES)).await, 201);
    assert_eq!(status("/api/v1/policies", long(MAX_POLICY)).await, 413);
    // one that does not say how long it is
    let chunk = format!("{:x}\r\n{}\r\n0\r\n\r\n", MAX_BYTES + 1, "x".repeat(MAX_BYTES + 1));
    let mut stream = TcpStream::connect(site.address).await.unwrap();
    let head = format!(
        "POST /api/v1/alerts/clear HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\
         Authorization: Bearer {ACME}\r\nContent-Type: application/json\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    // the server may have answered and closed before it was given everything
    let _sent = stream.write_all(chunk.as_bytes()).await;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 413");
    assert_eq!(most_bytes(&Method::GET, "/api/v1/policies", MAX_POLICY), MAX_BYTES);
}

#[tokio::test]
async fn who_writes_too_often_and_who_comes_when_too_many_wait_is_sent_away() {
    let rate = Rate { burst: 2, per_second: 1 };
    let busy = site(Bounds { rate, ..patient() }).await;
    let clear = async |site: &Site, token| {
        site.by(token, "POST", "/api/v1/alerts/clear?tenant_id=acme", "", r#"{"fingerprint": "f"}"#).await
    };
    assert_eq!((clear(&busy, ACME).await.status, clear(&busy, ACME).await.status), (200, 200));
    let third = clear(&busy, ACME).await;
    assert_eq!((third.status, third.header("retry-after")), (429, Some("1")));
    assert_eq!(clear(&busy, EVERYONE).await.status, 200, "another caller");
    let full = site(Bounds { waiting: 0, ..patient() }).await;
    let sent_away = clear(&full, ACME).await;
    assert_eq!((sent_away.status, sent_away.header("retry-after")), (503, Some("1")));
    assert!(full.records.try_recv().is_err());
}

#[tokio::test]
async fn a_command_that_cannot_be_sent_or_heard_of_is_not_taken_for_done() {
    let (commander, parcels) = Commander::unattended(&Topics::default(), ring(), t0, patient());
    let command = || Command {
        command_id: "c".into(),
        kind: "alert.clear".into(),
        tenant_id: "acme".into(),
        principal: "user:ada".into(),
        authority: 4,
        issued_at: T0.0,
        body: json!({"fingerprint": "f"}),
        key_id: None,
    };
    let deaf = commander.command(command(), "alert.clear").await.unwrap_err();
    assert!(deaf.to_string().contains("nothing was sent") && parcels.try_recv().is_err(), "{deaf}");
    commander.shared.set_hears();
    let failing = std::thread::spawn(move || drop(parcels.recv().unwrap().sent.send(Err("no leader".into()))));
    let unsure = commander.command(command(), "alert.clear").await.unwrap_err();
    assert!(unsure.to_string().contains("no leader") && unsure.to_string().contains("may have been sent"), "{unsure}");
    failing.join().unwrap();
    let ending = commander.command(command(), "alert.clear").await.unwrap_err();
    assert!(ending.to_string().contains("nothing was sent"), "{ending}");
    let keyless = Commander::unattended(&Topics::default(), Arc::default(), t0, patient()).0;
    keyless.shared.set_hears();
    assert!(keyless.command(command(), "alert.clear").await.unwrap_err().to_string().contains("no key"));
}
