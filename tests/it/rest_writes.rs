//! Writes over HTTP of whole sidecars on a real broker: every route accepted and refused by the core itself, repeated at another sidecar,
//! looked up, and closed to whom it does not concern. Needs a broker, see `support::broker`.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use runwarden::clock::{Wall, rfc3339};
use runwarden::serve::commands::{Whose, routes_table};
use serde_json::{Value, json};

use crate::end_to_end::{Running, Site};
use crate::support::sidecar::eventually;

const SOON: Duration = Duration::from_secs(30);
const POLICIES: &str = "
id: run
name: Run
enforcement_mode: AUDIT
limits:
- {id: tokens, limit_type: TOKENS_PER_RUN, metric: run_tokens, max: 100000}
";
const TOKENS: &str = "
[auth]
loopback = \"token\"
[[auth.tokens]]
name = \"root\"
token = \"a token of everyone's\"
authority = \"SYSTEM\"
tenant = \"*\"
[[auth.tokens]]
name = \"ada\"
token = \"a token of acme's\"
authority = \"GUARDIAN\"
tenant = \"acme\"
[[auth.tokens]]
name = \"mo\"
token = \"a token of a monitor\"
authority = \"MONITOR\"
role = \"admin\"
tenant = \"acme\"
[[auth.tokens]]
name = \"eve\"
token = \"a token of the other\"
authority = \"SYSTEM\"
tenant = \"other\"
";
const ROOT: &str = "a token of everyone's";
const ADA: &str = "a token of acme's";
const MO: &str = "a token of a monitor";
const EVE: &str = "a token of the other";

pub struct Answer {
    pub status: u16,
    location: Option<String>,
    pub body: Value,
}

impl Answer {
    fn made(&self, name: &str) -> String {
        self.body["result"][name].as_str().unwrap_or_else(|| panic!("no {name} in {}", self.body)).to_owned()
    }
}

fn address(running: &Running) -> Option<String> {
    let said = running.said();
    said.split("address=").nth(1).and_then(|rest| rest.split_whitespace().next()).map(str::to_owned)
}

pub fn send(running: &Running, token: &str, (method, path): (&str, &str), more: &str, body: &str) -> Answer {
    eventually("it listens", SOON, || address(running).is_some());
    let mut stream = TcpStream::connect(address(running).unwrap()).unwrap();
    let media = if body.starts_with("id:") { "application/yaml" } else { "application/json" };
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Type: {media}\r\nContent-Length: {}\r\n\
         {more}Connection: close\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let location = head.lines().find_map(|line| line.strip_prefix("location: ")).map(str::to_owned);
    let body = serde_json::from_str(body).unwrap_or_else(|e| panic!("{e}: {text}"));
    Answer { status: head[9..12].parse().unwrap(), location, body }
}

/// Two sidecars, and which routes were accepted and refused.
struct Desk {
    owner: Running,
    beside: Running,
    keys: Cell<u32>,
    accepted: RefCell<BTreeSet<String>>,
    refused: RefCell<BTreeSet<String>>,
}

/// What is asked for: method, route, id of the path, body.
type Ask<'a> = (&'static str, &'static str, &'a str, Value);

impl Desk {
    fn of(token: &str, (method, route, id, body): &Ask<'_>) -> ((&'static str, String), String) {
        let known = routes_table().iter().find(|known| (known.method, known.path) == (*method, *route));
        let known = known.unwrap_or_else(|| panic!("{method} {route} is no route"));
        let whose = if token == ROOT && known.whose != Whose::All { "?tenant_id=acme" } else { "" };
        let body = match body {
            Value::String(text) => text.clone(),
            body => body.to_string(),
        };
        ((method, format!("{}{whose}", route.replace("{id}", id))), body)
    }

    /// Asks one sidecar, and the other with the same key: the same answer, which both can look up, and nobody else.
    fn accepts(&self, token: &str, ask: Ask<'_>) -> Answer {
        let ((method, path), body) = Self::of(token, &ask);
        self.keys.set(self.keys.get() + 1);
        let key = format!("Idempotency-Key: \"key {}\"\r\n", self.keys.get());
        let first = send(&self.owner, token, (method, &path), &key, &body);
        assert!(matches!(first.status, 200 | 201), "{method} {path}: {} {}", first.status, first.body);
        assert_eq!(first.status == 201, first.location.is_some(), "{method} {path}: {:?}", first.location);
        let again = send(&self.beside, token, (method, &path), &key, &body);
        assert_eq!((again.status, &again.body), (first.status, &first.body), "{method} {path}");
        let known = format!("/api/v1/commands/{}", first.body["command_id"].as_str().unwrap());
        for running in [&self.owner, &self.beside] {
            let found = send(running, token, ("GET", &known), "", "");
            assert_eq!((found.status, &found.body), (200, &first.body), "{method} {path}");
            assert_eq!(send(running, EVE, ("GET", &known), "", "").status, 404, "{method} {path}");
        }
        self.accepted.borrow_mut().insert(format!("{} {}", ask.0, ask.1));
        first
    }

    /// Asks for what is refused with this status and code.
    fn refuses(&self, token: &str, status: u16, code: &str, ask: Ask<'_>) -> Value {
        let ((method, path), body) = Self::of(token, &ask);
        let answer = send(&self.beside, token, (method, &path), "", &body);
        assert_eq!(
            (answer.status, answer.body["code"].as_str()),
            (status, Some(code)),
            "{method} {path}: {}",
            answer.body
        );
        self.refused.borrow_mut().insert(format!("{} {}", ask.0, ask.1));
        answer.body
    }
}

fn desk() -> Option<(Site, Desk)> {
    let site = Site::new("rest-writes", 2, "")?;
    std::fs::write(site.dir.path().join("policies/policies.yaml"), POLICIES).unwrap();
    let config = std::fs::read_to_string(site.config()).unwrap();
    std::fs::write(site.config(), format!("{config}{TOKENS}")).unwrap();
    let beside = config.replace("slot = \"a\"", "slot = \"b\"");
    let beside_file = site.dir.path().join("b.toml");
    std::fs::write(&beside_file, format!("[roles]\nenabled = [\"serve\"]\n{beside}{TOKENS}")).unwrap();
    let mut owner = site.sidecar(0);
    owner.await_restored(2);
    // after the owner: the key that both sign with is made once
    let beside = site.sidecar_of(&beside_file.display().to_string(), 1);
    let desk = Desk { owner, beside, keys: Cell::new(0), accepted: RefCell::default(), refused: RefCell::default() };
    for running in [&desk.owner, &desk.beside] {
        eventually("results are followed", SOON, || {
            let body = r#"{"fingerprint": "nothing"}"#;
            send(running, ADA, ("POST", "/api/v1/alerts/clear"), "", body).status == 200
        });
    }
    Some((site, desk))
}

fn telemetry(site: &Site) {
    let now = rfc3339(Wall::now().0);
    let of = |kind: &str, more: Value| {
        let mut event = json!({"event_time": now, "event_type": kind, "tenant_id": "acme"});
        event.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        event.to_string()
    };
    let run = |id: &str| of("run.step", json!({"run_id": id, "agent_id": "a-1", "input_tokens": 5}));
    let task = |id: &str| {
        of("task.updated", json!({"task_id": id, "agent_id": "a-1", "task_status": "running", "priority": "LOW"}))
    };
    let agent = |id: &str| of("agent.heartbeat", json!({"agent_id": id, "health_status": "healthy", "capacity": 4}));
    let lines = [run("r-1"), run("r-2"), task("t-1"), task("t-2"), agent("a-1"), agent("a-2")];
    site.feed_lines(&lines, Duration::ZERO);
    let sample = of("governance.sample", json!({"trust_locked": true, "integrity_score": 99}));
    site.feed_lines(&[sample], Duration::ZERO);
}

fn policy(id: &str, max: u32) -> Value {
    json!({
        "id": id, "name": id, "tenant": "acme", "enforcement_mode": "BLOCK", "conflict_strategy": "EXPLICIT_PRIORITY",
        "scope": {"level": "TENANT"}, "limits": [{"id": "l", "limit_type": "U", "metric": "run_steps", "max": max}],
    })
}

fn policies(desk: &Desk) {
    const PROPOSALS: &str = "/api/v1/policy-proposals";
    let decide = |what: &'static str, id: &str| ("POST", what, id.to_owned());
    let why = || json!({"reason": "reviewed"});
    let made = desk.accepts(ADA, ("POST", "/api/v1/policies", "", policy("p-1", 500)));
    let first = made.made("proposal_id");
    assert_eq!(made.location, Some(format!("{PROPOSALS}/{first}")));
    desk.refuses(ADA, 422, "exists", ("POST", "/api/v1/policies", "", policy("p-1", 500)));
    desk.accepts(ADA, ("PUT", "/api/v1/policies/{id}", "p-1", policy("p-1", 600)));
    desk.refuses(ADA, 404, "not_found", ("PUT", "/api/v1/policies/{id}", "p-9", policy("p-9", 600)));
    let yaml = "id: p-2\nname: P\ntenant: acme\nenforcement_mode: BLOCK\nconflict_strategy: EXPLICIT_PRIORITY\nscope: {level: TENANT}\n\
                limits: [{id: l, limit_type: U, metric: run_steps, max: 700}]\n";
    let second = desk.accepts(ADA, ("POST", PROPOSALS, "", json!(yaml))).made("proposal_id");
    let fault = desk.refuses(ADA, 422, "invalid", ("POST", PROPOSALS, "", json!("id: p-3\nnmae: P\n")));
    assert!(fault["detail"].as_str().unwrap().contains("request:2:1"), "{fault}");
    // a policy of somebody else's is not ours to propose
    let mut foreign = policy("p-4", 5);
    foreign["tenant"] = json!("other");
    desk.refuses(ADA, 403, "tenant", ("POST", "/api/v1/policies", "", foreign));
    let (method, approve, id) = decide("/api/v1/policy-proposals/{id}/approve", &first);
    let lacks = desk.refuses(MO, 403, "authority", (method, approve, &id, why()));
    assert_eq!((&lacks["required_authority"], &lacks["given_authority"]), (&json!(4), &json!(3)));
    let less = json!({"reason": "r", "authority": 2});
    assert_eq!(desk.refuses(ADA, 403, "authority", (method, approve, &id, less))["given_authority"], 2);
    desk.accepts(ADA, (method, approve, &id, why()));
    desk.refuses(ADA, 422, "not_a_draft", (method, approve, &id, why()));
    let conflict = desk.refuses(ADA, 409, "conflict", (method, approve, &second, why()));
    assert_eq!(conflict["conflicts"].as_array().map(Vec::len), Some(1), "{conflict}");
    let (method, reject, id) = decide("/api/v1/policy-proposals/{id}/reject", &second);
    desk.accepts(ADA, (method, reject, &id, why()));
    desk.refuses(ADA, 404, "not_found", (method, reject, "nothing", why()));
    let limit = |policy: &str| json!({"policy_id": policy, "reason": "tonight"});
    for path in ["/api/v1/policies/limits/{id}/disable", "/api/v1/policies/limits/{id}/enable"] {
        desk.accepts(ADA, ("POST", path, "l", limit("p-1")));
        // a policy of the files is everyone's: not there for one tenant, and there for who has them all
        desk.refuses(ADA, 404, "not_found", ("POST", path, "tokens", limit("run")));
    }
    let grant = |minutes: u32| json!({"policy_id": "p-1", "minutes": minutes, "reason": "tonight"});
    let granted = desk.accepts(ADA, ("POST", "/api/v1/policies/overrides", "", grant(5))).made("override_id");
    desk.refuses(ADA, 422, "minutes", ("POST", "/api/v1/policies/overrides", "", grant(100_000)));
    desk.accepts(ADA, ("POST", "/api/v1/policies/overrides/{id}/revoke", &granted, why()));
    desk.refuses(ADA, 404, "not_found", ("POST", "/api/v1/policies/overrides/{id}/revoke", &granted, why()));
    desk.accepts(ROOT, ("DELETE", "/api/v1/policies/rules/{id}", "p-1", why()));
    desk.refuses(ADA, 404, "not_found", ("DELETE", "/api/v1/policies/rules/{id}", "nothing", why()));
    desk.accepts(ADA, ("DELETE", "/api/v1/policies/{id}", "p-1", why()));
    desk.refuses(ADA, 404, "not_found", ("DELETE", "/api/v1/policies/{id}", "p-1", why()));
}

fn silences_and_alerts(site: &Site, desk: &Desk) {
    let silence = |name: &str| {
        let ends_at = rfc3339(Wall::now().0 + 3_600_000_000);
        json!({"matchers": [{"name": name, "operator": "=", "value": "a-1"}], "ends_at": ends_at, "comment": "migration"})
    };
    let first = desk.accepts(ADA, ("POST", "/api/v1/silences", "", silence("agent"))).made("silence_id");
    desk.refuses(ADA, 422, "matchers", ("POST", "/api/v1/silences", "", silence("colour")));
    desk.accepts(ADA, ("POST", "/api/v1/silences/{id}/expire", &first, json!({"comment": "done"})));
    desk.refuses(ADA, 404, "not_found", ("POST", "/api/v1/silences/{id}/expire", &first, json!({})));
    let second = desk.accepts(MO, ("POST", "/api/v1/silences", "", silence("agent"))).made("silence_id");
    desk.accepts(ADA, ("DELETE", "/api/v1/silences/{id}", &second, json!({})));
    desk.refuses(ADA, 404, "not_found", ("DELETE", "/api/v1/silences/{id}", &second, json!({})));
    let alert = |severity: &str| json!({"fingerprint": "disk", "severity": severity, "title": "the disk is full"});
    desk.accepts(ADA, ("POST", "/api/v1/alerts", "", alert("HIGH")));
    desk.refuses(ADA, 422, "severity", ("POST", "/api/v1/alerts", "", alert("LOUD")));
    let open = || {
        let alerts = site.read(&site.topics.alerts).into_iter().filter_map(|r| r.payload);
        let alerts = alerts.filter_map(|p| serde_json::from_slice::<Value>(&p).ok());
        alerts.filter(|a| a["title"] == "the disk is full").find_map(|a| a["alert_id"].as_str().map(str::to_owned))
    };
    eventually("the alert is open", SOON, || open().is_some());
    let escalate = |id: &str| json!({"alert_id": id, "reason": "it does not help", "initiated_by": "watchdog-1"});
    let escalated = desk.accepts(ADA, ("POST", "/api/v1/guardian/escalate", "", escalate(&open().unwrap())));
    assert_eq!(escalated.body["result"]["severity"], "CRITICAL");
    desk.refuses(ADA, 404, "not_found", ("POST", "/api/v1/guardian/escalate", "", escalate("nothing")));
    desk.accepts(ADA, ("POST", "/api/v1/alerts/clear", "", json!({"fingerprint": "disk"})));
    desk.refuses(ADA, 422, "body", ("POST", "/api/v1/alerts/clear", "", json!({})));
}

fn lessons(desk: &Desk) {
    let lesson =
        |kind: &str, of: &str| json!({"lesson_type": kind, "source_event_id": of, "title": "t", "description": "d"});
    let make = |of: &str| desk.accepts(ADA, ("POST", "/api/v1/lessons", "", lesson("failure", of))).made("lesson_id");
    let ids: Vec<String> = ["l-1", "l-2", "l-3", "l-4", "l-5", "l-6"].map(make).into();
    desk.refuses(ADA, 422, "lesson_type", ("POST", "/api/v1/lessons", "", lesson("rumour", "l-7")));
    let known = send(&desk.owner, ADA, ("POST", "/api/v1/lessons"), "", &lesson("failure", "l-1").to_string());
    assert_eq!((known.status, &known.body["result"]["exists"]), (200, &json!(true)), "what is known is not made");
    let until = json!({"defer_until": rfc3339(Wall::now().0 + 3_600_000_000)});
    let why = json!({"reason": "a single one"});
    let routes = [
        ("/api/v1/lessons/{id}/convert", 0, &json!({})),
        ("/policy-layer/lessons/{id}/convert", 1, &json!({})),
        ("/api/v1/lessons/{id}/defer", 2, &until),
        ("/policy-layer/lessons/{id}/defer", 3, &until),
        ("/api/v1/lessons/{id}/dismiss", 4, &why),
        ("/policy-layer/lessons/{id}/dismiss", 5, &why),
        ("/api/v1/lessons/{id}/reactivate", 2, &json!({})),
    ];
    for (route, lesson, body) in routes {
        desk.accepts(ADA, ("POST", route, &ids[lesson], body.clone()));
        desk.refuses(ADA, 404, "not_found", ("POST", route, "nothing", body.clone()));
    }
    desk.refuses(ADA, 422, "state", ("POST", "/api/v1/lessons/{id}/convert", &ids[0], json!({})));
}

fn interventions(site: &Site, desk: &Desk) {
    const ALL: &str = "/api/v1/interventions";
    let order = |run: &str| json!({"type": "PAUSE", "target": {"kind": "RUN", "id": run}, "approval_required": true, "reason": "it loops"});
    let why = || json!({"reason": "reviewed"});
    let first = desk.accepts(ADA, ("POST", ALL, "", order("r-1"))).made("intervention_id");
    let second = desk.accepts(ADA, ("POST", ALL, "", order("r-2"))).made("intervention_id");
    desk.refuses(ADA, 404, "not_found", ("POST", ALL, "", order("r-9")));
    let [approve, reject] = ["/api/v1/interventions/{id}/approve", "/api/v1/interventions/{id}/reject"];
    desk.accepts(ADA, ("POST", approve, &first, why()));
    desk.refuses(ADA, 422, "state", ("POST", approve, &first, why()));
    desk.accepts(ADA, ("POST", reject, &second, why()));
    // one that is done with is remembered no longer
    desk.refuses(ADA, 404, "not_found", ("POST", reject, &second, why()));
    let path = format!("/api/v1/interventions/{first}/outcome");
    let told = send(&desk.beside, ADA, ("POST", &path), "", r#"{"state": "ACKNOWLEDGED", "executor": "worker-1"}"#);
    assert_eq!((told.status, &told.body["status"]), (202, &json!("SENT")), "{}", told.body);
    desk.accepted.borrow_mut().insert("POST /api/v1/interventions/{id}/outcome".into());
    desk.refuses(ADA, 422, "body", ("POST", "/api/v1/interventions/{id}/outcome", &first, json!({"state": "DONE"})));
    eventually("the report has become a state", SOON, || {
        let records = site.read(&site.topics.interventions).into_iter().filter_map(|r| r.payload);
        let mut records = records.filter_map(|p| serde_json::from_slice::<Value>(&p).ok());
        records.any(|r| r["intervention_id"] == *first && r["state"] == "ACKNOWLEDGED")
    });
    desk.accepts(ADA, ("POST", "/api/v1/interventions/{id}/revert", &first, why()));
    desk.refuses(ADA, 404, "not_found", ("POST", "/api/v1/interventions/{id}/revert", "nothing", why()));
    let cancel = |task: &str| json!({"task_id": task, "reason": "agent failure", "initiated_by": "guardian-agent-1", "authority": 4});
    let route = "/api/v1/guardian/intervention/cancel-task";
    let action = desk.accepts(ADA, ("POST", route, "", cancel("t-1"))).made("action_id");
    desk.refuses(ADA, 422, "live", ("POST", route, "", cancel("t-1")));
    let body = json!({"reason": "the crisis is over", "initiated_by": "guardian-agent-1"});
    desk.accepts(ADA, ("POST", "/api/v1/guardian/actions/{id}/revert", &action, body.clone()));
    desk.refuses(ADA, 404, "not_found", ("POST", "/api/v1/guardian/actions/{id}/revert", "nothing", body));
    let move_ = |capacity: u32| json!({"from_agent_id": "a-1", "to_agent_id": "a-2", "capacity": capacity, "reason": "a critical task waits"});
    let route = "/api/v1/guardian/intervention/reallocate";
    desk.accepts(ADA, ("POST", route, "", move_(2)));
    desk.refuses(ADA, 422, "capacity", ("POST", route, "", move_(9)));
    let priority = |new: &str| json!({"task_id": "t-2", "new_priority": new, "reason": "a production incident"});
    let route = "/api/v1/guardian/intervention/override-priority";
    desk.accepts(ADA, ("POST", route, "", priority("CRITICAL")));
    desk.refuses(ADA, 422, "priority", ("POST", route, "", priority("NOW")));
}

fn responses(desk: &Desk) {
    let why = || json!({"reason": "a rehearsal"});
    desk.accepts(ROOT, ("POST", "/api/v1/respond/run", "", json!({"level": "YELLOW", "reason": "a rehearsal"})));
    desk.refuses(ROOT, 422, "level", ("POST", "/api/v1/respond/run", "", json!({"level": "PINK"})));
    desk.accepts(ROOT, ("POST", "/api/v1/respond/brake", "", json!({"on": true, "reason": "tonight"})));
    desk.refuses(ROOT, 422, "body", ("POST", "/api/v1/respond/brake", "", json!({"on": "yes"})));
    desk.accepts(ROOT, ("POST", "/api/v1/respond/unlock", "", why()));
    desk.refuses(ROOT, 422, "state", ("POST", "/api/v1/respond/unlock", "", why()));
    desk.accepts(ROOT, ("POST", "/api/v1/respond/reset-unlocks", "", why()));
    let less = json!({"reason": "r", "authority": 3});
    desk.refuses(ROOT, 403, "authority", ("POST", "/api/v1/respond/reset-unlocks", "", less));
}

#[test]
fn every_write_is_the_core_s_to_accept_or_refuse_counts_once_and_concerns_its_tenant_only() {
    let Some((site, desk)) = desk() else { return };
    telemetry(&site);
    eventually("telemetry is known", SOON, || {
        let (_, body) = crate::verdicts::get(&desk.owner, "/api/v1/policy-level?tenant_id=*", Some(ROOT));
        body["inputs"]["trust_locked"] == true
    });
    policies(&desk);
    silences_and_alerts(&site, &desk);
    lessons(&desk);
    interventions(&site, &desk);
    responses(&desk);
    let all: BTreeSet<String> = routes_table().iter().map(|route| format!("{} {}", route.method, route.path)).collect();
    assert_eq!(*desk.accepted.borrow(), all, "each route was accepted");
    assert_eq!(*desk.refused.borrow(), all, "each route was refused");
    for route in routes_table() {
        let path = format!("{}?tenant_id=acme", route.path.replace("{id}", "x"));
        let answer = send(&desk.owner, EVE, (route.method, &path), "", route.example);
        assert_eq!(answer.status, 403, "{} {}: {}", route.method, route.path, answer.body);
    }
    // who asks under its own name finds nothing of another's
    let mine = json!({"reason": "r"}).to_string();
    assert_eq!(send(&desk.owner, EVE, ("DELETE", "/api/v1/policies/p-1"), "", &mine).status, 404);
    // the same key for something else
    let key = "Idempotency-Key: key 1\r\n";
    let body = policy("p-5", 5).to_string();
    let reused = send(&desk.beside, ADA, ("POST", "/api/v1/policies"), key, &body);
    assert_eq!((reused.status, &reused.body["code"]), (422, &json!("id_reused")), "{}", reused.body);
    desk.beside.terminate();
    desk.owner.terminate();
}
