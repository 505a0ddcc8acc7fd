use super::super::routes_table;
use super::*;
use crate::decide::commands;
use crate::serve::access::Role;

fn acme() -> Caller {
    Caller { role: Role::Admin, ..Caller::new("ada", 4, "acme") }
}

fn everyone() -> Caller {
    Caller::new("root", 5, ALL)
}

fn route(method: &str, path: &str) -> &'static WriteRoute {
    routes_table().iter().find(|route| (route.method, route.path) == (method, path)).unwrap()
}

/// What becomes of a request in JSON; the path's id is `x`.
fn asked(route: &WriteRoute, caller: &Caller, query: &str, body: &str) -> Result<Order, Problem> {
    let uri: Uri = format!("{}?{query}", route.path.replace("{id}", "x")).parse().unwrap();
    let id = route.path.contains("{id}").then_some("x");
    order(route, caller, id, &uri, Some(Written::Json), body.as_bytes())
}

fn refused(route: &WriteRoute, query: &str, body: &str) -> (u16, String) {
    match asked(route, &acme(), query, body).unwrap_err() {
        Problem::Other { status, detail, .. } => (status.as_u16(), detail),
        Problem::Denied(why) => panic!("{why}"),
    }
}

#[test]
fn every_example_becomes_a_command_that_the_core_knows_with_the_path_s_id_in_it() {
    for route in routes_table() {
        let caller = everyone();
        let query = if route.whose == Whose::One || route.whose == Whose::OneOrAll { "tenant_id=acme" } else { "" };
        let example = route.example.replace("\"id\": \"planner-pace\"", "\"id\": \"x\"");
        let order = asked(route, &caller, query, &example).unwrap_or_else(|e| panic!("{}: {e}", route.path));
        let Some(kind) = route.command else { continue };
        let (writer, _) = commands::known(kind).unwrap_or_else(|| panic!("{kind} is no command"));
        let of_tenant = matches!(route.whose, Whose::One | Whose::OneOrAll);
        assert_eq!(writer == commands::Writer::Tenant, of_tenant, "{kind}");
        assert_eq!(order.tenant, if of_tenant { "acme" } else { ALL }, "{kind}");
        assert!(!route.path.contains("{id}") || route.id.is_some() || route.form == Form::Policy, "{kind}");
        if let Some(name) = route.id {
            assert_eq!(order.body[name], "x", "{kind}");
        }
        if route.form == Form::Policy {
            assert!(order.body["policy"]["limits"].is_array() && order.body["file"] == "request");
        }
        assert!(order.body.get("tenant_id").is_none() && order.body.get("authority").is_none(), "{kind}");
    }
}

#[test]
fn every_command_that_people_send_has_a_route() {
    let internal = ["policy_set.apply", "level.report", "respond.result"];
    for (kind, ..) in commands::COMMANDS {
        let routed = routes_table().iter().any(|route| route.command == Some(kind));
        assert_ne!(routed, internal.contains(&kind), "{kind}");
    }
}

#[test]
fn a_caller_of_one_tenant_acts_for_no_other_whatever_the_route() {
    for route in routes_table() {
        for named in ["other", ALL] {
            let query = format!("tenant_id={named}");
            let denied = asked(route, &acme(), &query, route.example);
            assert_eq!(denied, Err(Denied::Tenant.into()), "{} {named}", route.path);
            if route.form != Form::Policy {
                let mut body: Map<String, Value> = serde_json::from_str(route.example).unwrap();
                body.insert("tenant_id".into(), named.into());
                let denied = asked(route, &acme(), "", &Value::Object(body).to_string());
                assert_eq!(denied, Err(Denied::Tenant.into()), "{} {named}", route.path);
            }
        }
        let example = route.example.replace("\"id\": \"planner-pace\"", "\"id\": \"x\"");
        match (route.whose, asked(route, &acme(), "", &example)) {
            (Whose::All, denied) => assert_eq!(denied, Err(Denied::Tenant.into()), "{}", route.path),
            (_, order) => assert_eq!(order.unwrap().tenant, "acme", "{}", route.path),
        }
    }
    let overrides = route("POST", "/api/v1/policies/overrides");
    let of =
        |tenant: &str| format!(r#"{{"policy_id": "p", "policy_tenant": "{tenant}", "minutes": 5, "reason": "r"}}"#);
    assert_eq!(asked(overrides, &acme(), "", &of("other")), Err(Denied::Tenant.into()));
    assert!(asked(overrides, &acme(), "", &of(ALL)).is_ok() && asked(overrides, &acme(), "", &of("acme")).is_ok());
}

#[test]
fn a_caller_of_all_tenants_names_the_one_it_acts_for() {
    let lessons = route("POST", "/api/v1/lessons/{id}/convert");
    assert_eq!(asked(lessons, &everyone(), "", ""), Err(Denied::NoTenant.into()));
    assert_eq!(asked(lessons, &everyone(), "tenant_id=*", ""), Err(Denied::NoTenant.into()));
    assert_eq!(asked(lessons, &everyone(), "tenant_id=acme", "").unwrap().tenant, "acme");
    let alerts = route("POST", "/api/v1/alerts/clear");
    assert_eq!(asked(alerts, &everyone(), "", r#"{"fingerprint": "f"}"#), Err(Denied::NoTenant.into()));
    assert_eq!(asked(alerts, &everyone(), "tenant_id=*", r#"{"fingerprint": "f"}"#).unwrap().tenant, ALL);
}

#[test]
fn the_authority_is_the_lower_of_the_caller_s_and_the_request_s() {
    let cancel = route("POST", "/api/v1/guardian/intervention/cancel-task");
    let authority = |given: &str| {
        let body = format!(r#"{{"task_id": "t", "reason": "r", "authority": {given}}}"#);
        asked(cancel, &acme(), "", &body).map(|order| order.authority)
    };
    assert_eq!(["1", "3", "4", "5", "null"].map(|given| authority(given).unwrap()), [1, 3, 4, 4, 4]);
    for wrong in ["0", "6", "-1", "2.5", "\"GUARDIAN\""] {
        assert!(authority(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn what_is_unknown_missing_or_of_another_kind_is_named() {
    let cancel = route("POST", "/api/v1/guardian/intervention/cancel-task");
    let of = |body: &str| refused(cancel, "", body);
    assert_eq!(of(r#"{"taskid": "t"}"#), (422, "\"taskid\" is not known here; did you mean task_id?".into()));
    assert!(of(r#"{"zebra": 1}"#).1.contains("there are authority initiated_by reason task_id tenant_id"));
    assert_eq!(of(r#"{"task_id": "t"}"#), (422, "reason is missing: why; it stands in the audit".into()));
    assert_eq!(of(r#"{"task_id": null, "reason": "r"}"#).1, "task_id is missing: the task");
    assert_eq!(of(r#"{"task_id": "", "reason": "r"}"#).1, "task_id must be a text");
    assert_eq!(of(r#"{"task_id": 7, "reason": "r"}"#).1, "task_id must be a text");
    assert_eq!(of("[]"), (400, "the body must be an object in JSON".into()));
    assert_eq!(of("{\n \"task_id\": secret}"), (400, "the body is not JSON: look at line 2, column 13".into()));
    assert_eq!(of(&"[".repeat(MAX_DEPTH + 1)), (400, "the body is nested deeper than 32".into()));
    assert_eq!(
        refused(cancel, "reason=r", r#"{"task_id": "t", "reason": "r"}"#).1,
        "reason is in the query and in the body"
    );
    assert_eq!(refused(cancel, "reason=r&reason=s", "{}").1, "reason is there twice");
    assert_eq!(refused(cancel, "resaon=r", "{}"), (400, "\"resaon\" is not known here; did you mean reason?".into()));
    let enable = route("POST", "/api/v1/policies/limits/{id}/enable");
    let order = asked(enable, &acme(), "policy_id=p&authority=3", "").unwrap();
    assert_eq!((order.authority, order.body), (3, json!({"policy_id": "p", "limit_id": "x"})));
    let brake = route("POST", "/api/v1/respond/brake");
    assert_eq!(asked(brake, &everyone(), "on=true", "").unwrap().body, json!({"on": true}));
}

#[test]
fn brackets_within_texts_are_no_nesting() {
    assert_eq!(depth(br#"{"a": "[[[[{{{{", "b": ["\"[["]}"#), 2);
    assert_eq!((depth(b""), depth(b"]]]][["), depth(b"{{}{}}")), (0, 2, 2));
}

#[test]
fn who_initiated_it_is_kept_where_people_look() {
    let cancel = route("POST", "/api/v1/guardian/intervention/cancel-task");
    let order = asked(cancel, &acme(), "", cancel.example).unwrap();
    assert_eq!(order.body["initiated_by"], "guardian-agent-1");
    assert_eq!(order.body["reason"], "agent failure during a critical operation");
    let revert = route("POST", "/api/v1/guardian/actions/{id}/revert");
    let order = asked(revert, &acme(), "", revert.example).unwrap();
    assert_eq!(order.body["reason"], "the crisis is over (initiated by guardian-agent-1)");
    // a name is no reason
    let approve = route("POST", "/api/v1/interventions/{id}/approve");
    let order = asked(approve, &acme(), "", r#"{"initiated_by": "bob"}"#).unwrap();
    assert_eq!(order.body.get("reason"), None);
}

#[test]
fn a_policy_is_taken_as_it_is_written_and_belongs_to_its_path() {
    let update = route("PUT", "/api/v1/policies/{id}");
    let put = |written, body: &str| {
        let uri: Uri = "/api/v1/policies/a?reason=why".parse().unwrap();
        order(update, &acme(), Some("a"), &uri, written, body.as_bytes())
    };
    let yaml = "id: a\nname: A\nlimits: [{id: l, limit_type: X, metric: run_steps, max: 1}]\n";
    let order = put(Some(Written::Yaml), yaml).unwrap();
    assert_eq!(order.body, json!({"policy": yaml, "file": "request", "reason": "why"}));
    let json = r#"{"name": "A", "limits": [{"id": "l", "limit_type": "X", "metric": "run_steps", "max": 1}]}"#;
    assert_eq!(put(Some(Written::Json), json).unwrap().body["policy"]["id"], "a");
    for other in [yaml.replace("id: a", "id: b"), json.replace(r#"{"name""#, r#"{"id": "b", "name""#)] {
        let written = if other.starts_with('{') { Written::Json } else { Written::Yaml };
        let why = put(Some(written), &other).unwrap_err().to_string();
        assert_eq!(why, "the path names policy a, the body b");
    }
    // what is wrong with it the core says, by line and column
    assert!(put(Some(Written::Yaml), "id: [").is_ok());
    assert!(put(Some(Written::Json), "[]").is_err() && put(None, yaml).is_err());
    let uri: Uri = "/api/v1/policies/a".parse().unwrap();
    assert!(super::order(update, &acme(), Some("a"), &uri, Some(Written::Yaml), b"\xff").is_err());
}

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers.append(*name, HeaderValue::from_str(value).unwrap());
    }
    headers
}

#[test]
fn an_idempotency_key_is_a_quoted_string_or_a_bare_word() {
    let key = |given: &str| idempotency_key(&headers(&[(KEY, given)]));
    for (given, wanted) in [("\"abc\"", "abc"), ("abc", "abc"), (r#""a\"b\\c""#, r#"a"b\c"#), ("\"a b\"", "a b")] {
        assert_eq!(key(given), Ok(Some(wanted.to_owned())), "{given}");
    }
    let (long, longer) = ("x".repeat(MAX_KEY), "x".repeat(MAX_KEY + 1));
    assert_eq!(key(&long), Ok(Some(long.clone())));
    for wrong in ["", "\"\"", "\"abc", r#""a\bc""#, r#""a"b""#, "\"a\\\"", &longer, "a\tb"] {
        assert!(key(wrong).is_err(), "{wrong:?}");
    }
    assert!(idempotency_key(&headers(&[(KEY, "a"), (KEY, "b")])).is_err());
    assert_eq!(idempotency_key(&HeaderMap::new()), Ok(None));
}

#[test]
fn the_id_of_a_command_follows_from_the_key_the_caller_the_tenant_and_what_is_asked() {
    let (create, reject) = (route("POST", "/api/v1/policies"), route("POST", "/api/v1/policy-proposals/{id}/reject"));
    let id = |key, caller: &Caller, tenant, route| command_id(Some(key), caller, tenant, route);
    let first = id("k", &acme(), "acme", create);
    assert_eq!(first, id("k", &acme(), "acme", create));
    let others = [
        id("l", &acme(), "acme", create),
        id("k", &everyone(), "acme", create),
        id("k", &acme(), ALL, create),
        id("k", &acme(), "acme", reject),
    ];
    assert!(others.iter().all(|other| *other != first));
    // a route and its alias are the same
    let [one, alias] =
        ["/api/v1", "/policy-layer"].map(|root| route("POST", &format!("{root}/lessons/{{id}}/convert")));
    assert_eq!(id("k", &acme(), "acme", one), id("k", &acme(), "acme", alias));
    assert_ne!(command_id(None, &acme(), "acme", create), command_id(None, &acme(), "acme", create));
}

#[test]
fn without_a_token_a_page_of_somewhere_else_writes_nothing() {
    let cancel = route("POST", "/api/v1/guardian/intervention/cancel-task");
    let ok = |pairs: &[(&'static str, &str)]| same_site(cancel, &headers(pairs)).is_ok();
    let (host, json) = (("host", "localhost:8080"), ("content-type", "application/json"));
    assert!(ok(&[host, json]), "curl");
    assert!(ok(&[host, json, ("origin", "http://localhost:8080")]), "its own page");
    for origin in ["http://evil.example", "null", "http://localhost:9999", "https://localhost:8080", "http://localhost"]
    {
        assert!(!ok(&[host, json, ("origin", origin)]), "{origin}");
        assert!(
            ok(&[host, ("authorization", "Bearer x"), ("origin", origin)]),
            "a token is nothing a page has: {origin}"
        );
    }
    assert!(!ok(&[host]), "a form without a type");
}

#[test]
fn only_known_content_types_are_read_and_yaml_only_as_a_policy() {
    let (create, cancel) = (route("POST", "/api/v1/policies"), route("POST", "/api/v1/guardian/escalate"));
    let of = |route, media: &str| written(route, &headers(&[("content-type", media)]));
    assert_eq!(of(create, "application/yaml"), Ok(Some(Written::Yaml)));
    assert_eq!(of(create, "Application/JSON; charset=utf-8"), Ok(Some(Written::Json)));
    assert_eq!(of(cancel, "application/json"), Ok(Some(Written::Json)));
    assert!(of(cancel, "application/yaml").is_err() && of(create, "text/plain").is_err());
    assert!(of(cancel, "application/x-www-form-urlencoded").is_err());
    assert_eq!(written(cancel, &HeaderMap::new()), Ok(None));
    assert!(object(b"{}", None).is_err(), "a body of no known kind");
}
