//! Verdicts (I8) of whole sidecars on a real broker: at the owner, at a process that owns nothing, and as a stream. Who may ask (O7).

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use runwarden::clock::{Wall, rfc3339};
use serde_json::{Value, json};

use crate::end_to_end::{Running, Site};
use crate::support::sidecar::eventually;

const SOON: Duration = Duration::from_secs(30);
const POLICIES: &str = "
id: run
name: Run
enforcement_mode: BLOCK
limits:
- {id: tokens, limit_type: TOKENS_PER_RUN, metric: run_tokens, max: 100}
---
id: agent
name: Agent
enforcement_mode: BLOCK
limits:
- {id: steps, limit_type: TOKENS_PER_MINUTE, category: RATE, metric: agent_tokens_1m, max: 1000, enforcement: REJECT, cooldown_seconds: 600}
";
const TOKENS: &str = "
[[auth.tokens]]
name = \"everyone\"
token = \"a token of everyone's\"
tenant = \"*\"
[[auth.tokens]]
name = \"acme\"
token = \"a token of acme alone\"
tenant = \"acme\"
[[auth.tokens]]
name = \"other\"
token = \"a token of the other\"
tenant = \"other\"
";
const EVERYONE: &str = "a token of everyone's";
const ACME: &str = "a token of acme alone";
const OTHER: &str = "a token of the other";

fn connect(running: &Running, path: &str, token: Option<&str>) -> TcpStream {
    let address = || {
        let said = running.said();
        said.split("address=").nth(1).and_then(|rest| rest.split_whitespace().next()).map(str::to_owned)
    };
    eventually("it listens", SOON, || address().is_some());
    let address = address().unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    let token = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n{token}Connection: close\r\n\r\n").unwrap();
    stream
}

pub fn get(running: &Running, path: &str, token: Option<&str>) -> (u16, Value) {
    let mut text = String::new();
    connect(running, path, token).read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head[9..12].parse().unwrap(), serde_json::from_str(body).unwrap_or_else(|e| panic!("{e}: {text}")))
}

fn verdict(running: &Running, path: &str, token: &str) -> String {
    let (status, body) = get(running, path, Some(token));
    if status == 200 { body["verdict"].as_str().unwrap().to_owned() } else { format!("{status} {}", body["detail"]) }
}

/// A site with two partitions, and the configuration of a process beside it that owns nothing.
fn site() -> Option<(Site, String)> {
    let site = Site::new("verdicts", 2, "")?;
    std::fs::write(site.dir.path().join("policies/policies.yaml"), POLICIES).unwrap();
    let config = std::fs::read_to_string(site.config()).unwrap();
    std::fs::write(site.config(), format!("{config}{TOKENS}")).unwrap();
    let edge = config.replace("slot = \"a\"", "slot = \"edge\"");
    std::fs::write(site.dir.path().join("edge.toml"), format!("[roles]\nenabled = [\"edge\"]\n{edge}{TOKENS}"))
        .unwrap();
    let edge = site.dir.path().join("edge.toml").display().to_string();
    Some((site, edge))
}

fn step(run: &str, agent: &str, tokens: i64) -> String {
    let now = rfc3339(Wall::now().0);
    json!({
        "event_time": now, "event_type": "run.step", "tenant_id": "acme", "run_id": run, "agent_id": agent, "input_tokens": tokens,
    })
    .to_string()
}

#[test]
fn a_verdict_is_the_same_at_the_owner_and_at_the_edge_and_for_nobody_else_s_token() {
    let Some((site, edge)) = site() else { return };
    let mut owner = site.sidecar(0);
    owner.await_restored(2);
    let edge = site.sidecar_of(&edge, 1);
    for running in [&owner, &edge] {
        eventually("verdicts are known", SOON, || {
            verdict(running, "/api/v1/runs/r-1/verdict?tenant_id=acme", EVERYONE) == "allow"
        });
    }
    // who listens at the edge hears of it
    let heard = BufReader::new(connect(&edge, "/api/v1/verdicts?run_id=r-1", Some(ACME)));
    let (sender, changes) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in heard.lines().map_while(Result::ok) {
            if let Some(data) = line.strip_prefix("data: ") {
                let change: Value = serde_json::from_str(data).unwrap();
                if sender.send(change).is_err() {
                    break;
                }
            }
        }
    });
    let begun = Instant::now();
    site.feed_lines(&[step("r-1", "a-1", 90), step("r-1", "a-1", 60), step("r-2", "a-1", 5)], Duration::ZERO);
    let path = "/api/v1/runs/r-1/verdict?tenant_id=acme&agent_id=a-1";
    eventually("the owner says stop", SOON, || verdict(&owner, path, EVERYONE) == "stop");
    let at_owner = begun.elapsed();
    eventually("the edge says stop", SOON, || verdict(&edge, path, EVERYONE) == "stop");
    let at_edge = begun.elapsed();
    println!("event produced to verdict over HTTP: owner {at_owner:?}, edge {at_edge:?} (debug build, polled)");
    let change = changes.recv_timeout(SOON).unwrap();
    assert_eq!(
        (&change["tenant_id"], &change["run_id"], &change["verdict"]),
        (&json!("acme"), &json!("r-1"), &json!("stop"))
    );
    let (status, body) = get(&owner, path, Some(ACME));
    assert_eq!(status, 200);
    assert_eq!(
        (&body["run_id"], &body["policy_id"], &body["scope"]),
        (&json!("r-1"), &json!("run"), &json!({"kind": "RUN", "id": "r-1"}))
    );
    assert!(body["intervention_id"].is_string() && body["signal_id"].is_string() && body["decided_at"].is_string());
    assert_eq!(verdict(&owner, "/api/v1/runs/r-2/verdict", ACME), "allow");
    // a limit that rejects new work of an agent
    site.feed_lines(&[step("r-3", "a-2", 1), step("r-4", "a-2", 1_200)], Duration::ZERO);
    let path = "/api/v1/runs/r-3/verdict?agent_id=a-2";
    for running in [&owner, &edge] {
        eventually("reject", SOON, || verdict(running, path, ACME) == "reject");
    }
    let (_, body) = get(&edge, path, Some(ACME));
    let again = body["retry_after_seconds"].as_i64().unwrap();
    assert!((1..=660).contains(&again), "{body}");
    // nobody sees what is another's
    let of = |path: &str, token| get(&owner, path, token).0;
    let path = "/api/v1/runs/r-1/verdict";
    assert_eq!((of(path, None), of(path, Some("a token of nobody"))), (401, 401));
    assert_eq!(verdict(&owner, path, OTHER), "allow", "the other tenant's run of that name");
    assert_eq!(of("/api/v1/runs/r-1/verdict?tenant_id=acme", Some(OTHER)), 403);
    assert_eq!(of(path, Some(EVERYONE)), 400, "a tenant must be named");
    assert_eq!(of("/api/v1/runs/r-1/verdict?agent=a-1", Some(ACME)), 400, "an unknown parameter");
    assert_eq!(of(&format!("/api/v1/runs/{}/verdict", "x".repeat(2_000)), Some(ACME)), 400);
    assert_eq!(of("/api/v1/verdicts?tenant_id=acme", Some(OTHER)), 403);
    // a restart forgets nothing
    owner.terminate();
    let mut owner = site.sidecar(2);
    owner.await_restored(2);
    let path = "/api/v1/runs/r-1/verdict";
    eventually("it still says stop", SOON, || verdict(&owner, path, ACME) == "stop");
    edge.terminate();
    owner.terminate();
}
