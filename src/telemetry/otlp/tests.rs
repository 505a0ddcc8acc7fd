use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, InstrumentationScope, KeyValue, KeyValueList};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::{Event, Link};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use proptest::prelude::*;
use prost::Message as _;
use serde_json::{Value, json};

use super::map::{AgentUsage, Mapper, Names, Settings};
use super::{Encoding, Items, Mapped, Rejected, Unreadable, items};
use crate::telemetry::redact::FORBIDDEN;

const START: u64 = 1_767_323_045_000_000_000;
const SECOND: u64 = 1_000_000_000;
const TRACE: [u8; 16] = [0xab; 16];

fn settings() -> Settings {
    Settings {
        names: Names::default(),
        default_tenant: "default".to_owned(),
        agent_usage: AgentUsage::Remote,
        root_is_run: true,
        spans: 1_000,
        attributes: vec!["service.name".to_owned(), "region".to_owned(), "prompt".to_owned()],
        forbidden: FORBIDDEN.iter().map(ToString::to_string).collect(),
        depth: 8,
    }
}

fn value(value: &Value) -> AnyValue {
    let inner = match value {
        Value::String(text) => Any::StringValue(text.clone()),
        Value::Bool(flag) => Any::BoolValue(*flag),
        Value::Number(n) => n.as_i64().map_or_else(|| Any::DoubleValue(n.as_f64().unwrap()), Any::IntValue),
        Value::Array(items) => Any::ArrayValue(ArrayValue { values: items.iter().map(self::value).collect() }),
        Value::Object(_) => Any::KvlistValue(KeyValueList { values: attributes(value) }),
        Value::Null => return AnyValue { value: None },
    };
    AnyValue { value: Some(inner) }
}

fn attributes(object: &Value) -> Vec<KeyValue> {
    let pair =
        |(key, v): (&String, &Value)| KeyValue { key: key.clone(), value: Some(value(v)), ..KeyValue::default() };
    object.as_object().unwrap().iter().map(pair).collect()
}

/// A span of a second that begins `id` seconds after the start. `parent` 0: a root.
fn span(id: u8, parent: u8, of: &Value) -> Span {
    let start = START + u64::from(id) * SECOND;
    Span {
        trace_id: TRACE.to_vec(),
        span_id: vec![id; 8],
        parent_span_id: if parent == 0 { Vec::new() } else { vec![parent; 8] },
        kind: 1,
        start_time_unix_nano: start,
        end_time_unix_nano: start + SECOND,
        attributes: attributes(of),
        ..Span::default()
    }
}

fn request(resource: &Value, spans: Vec<Span>) -> ExportTraceServiceRequest {
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(Resource { attributes: attributes(resource), ..Resource::default() }),
            scope_spans: vec![ScopeSpans { spans, ..ScopeSpans::default() }],
            ..ResourceSpans::default()
        }],
    }
}

fn map_with(settings: Settings, request: &ExportTraceServiceRequest, whose: Option<&str>) -> Mapped {
    let mapper = Mapper::new(settings);
    let mapped = mapper.map(&request.encode_to_vec(), Encoding::Proto, whose).unwrap();
    let json = serde_json::to_vec(request).unwrap();
    assert_eq!(mapper.map(&json, Encoding::Json, whose).as_ref(), Ok(&mapped), "both encodings say the same");
    mapped
}

fn map(spans: Vec<Span>) -> Mapped {
    map_with(settings(), &request(&json!({}), spans), None)
}

fn events(mapped: &Mapped) -> Vec<Value> {
    mapped.records.iter().map(|record| serde_json::from_slice(&record.value).unwrap()).collect()
}

fn kinds(mapped: &Mapped) -> Vec<String> {
    events(mapped).iter().map(|event| event["event_type"].as_str().unwrap().to_owned()).collect()
}

fn chat(input: i64, output: i64) -> Value {
    json!({"gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "gpt-4o",
        "gen_ai.usage.input_tokens": input, "gen_ai.usage.output_tokens": output})
}

fn with(mut base: Value, more: Value) -> Value {
    for (name, value) in more.as_object().unwrap() {
        base[name] = value.clone();
    }
    base
}

/// Tokens that count, over all steps.
fn tokens(mapped: &Mapped) -> i64 {
    let of = |event: &Value, name: &str| event[name].as_i64().unwrap_or_default();
    events(mapped).iter().map(|event| of(event, "input_tokens") + of(event, "output_tokens")).sum()
}

#[test]
fn a_call_is_a_step_with_its_tokens_and_whose_it_is() {
    let of = with(
        chat(120, 30),
        json!({"gen_ai.usage.cache_read.input_tokens": 100, "gen_ai.usage.reasoning.output_tokens": 20,
            "runwarden.tenant_id": "acme", "runwarden.run_id": "r-1", "runwarden.cost_usd": 0.0125, "gen_ai.agent.name": "planner",
            "region": "eu", "gen_ai.input.messages": "S"}),
    );
    let resource = json!({"runwarden.team_id": "t", "runwarden.tenant_id": "not this one", "service.name": "worker"});
    let mapped = map_with(settings(), &request(&resource, vec![span(2, 1, &of)]), None);
    assert_eq!((mapped.accepted, mapped.ignored, mapped.rejections()), (1, 0, 0));
    assert_eq!(mapped.records[0].tenant, "acme");
    let context = &mapped.records[0].context;
    assert!(context.starts_with("00-") && context.ends_with("-01") && context.len() == 55, "{context}");
    let expected = json!({
        "event_id": "abababababababababababababababab/0202020202020202/run.step", "event_time": "2026-01-02T03:04:08.000000Z",
        "event_type": "run.step", "tenant_id": "acme", "run_id": "r-1", "agent_id": "planner", "team_id": "t", "provider": "openai",
        "model": "gpt-4o", "input_tokens": 120, "output_tokens": 30, "cached_tokens": 100, "reasoning_tokens": 20,
        "cost_usd": 0.0125, "latency_ms": 1000, "attributes": {"region": "eu", "service.name": "worker"},
    });
    assert_eq!(events(&mapped), [expected]);
}

#[test]
fn the_three_dialects_say_the_same() {
    let newest = chat(7, 3);
    let older = json!({"gen_ai.operation.name": "chat", "gen_ai.system": "openai", "gen_ai.request.model": "gpt-4o",
        "gen_ai.usage.prompt_tokens": 7, "gen_ai.usage.completion_tokens": 3});
    // before operations had names
    let oldest = json!({"gen_ai.system": "openai", "gen_ai.request.model": "gpt-4o", "gen_ai.usage.prompt_tokens": 7,
        "gen_ai.usage.completion_tokens": 3});
    let of = |attributes: &Value| events(&map(vec![span(2, 1, attributes)]));
    assert_eq!(of(&newest), of(&older));
    assert_eq!(of(&newest), of(&oldest));
    for (old, new) in [("xai", "x_ai"), ("az.ai.openai", "azure.ai.openai"), ("gcp.gemini", "gcp.gemini")] {
        assert_eq!(of(&with(oldest.clone(), json!({"gen_ai.system": old})))[0]["provider"], new);
    }
}

#[test]
fn what_an_agent_sums_up_counts_once() {
    let agent = |kind: i32, parent: u8| {
        let usage = json!({"gen_ai.operation.name": "invoke_agent", "gen_ai.usage.input_tokens": 50, "gen_ai.usage.output_tokens": 5});
        Span { kind, ..span(1, parent, &usage) }
    };
    let calls = || vec![span(2, 1, &chat(20, 2)), span(3, 1, &chat(30, 3))];
    let all = |agent: Span| calls().into_iter().chain([agent]).collect::<Vec<_>>();
    assert_eq!(tokens(&map(all(agent(1, 0)))), 55);
    assert_eq!(tokens(&map(all(agent(1, 9)))), 55);
    let remote = map(vec![agent(3, 9)]);
    assert_eq!((tokens(&remote), kinds(&remote)), (55, vec!["run.step".to_owned()]), "its calls are made elsewhere");
    let never = Settings { agent_usage: AgentUsage::Never, ..settings() };
    assert_eq!(tokens(&map_with(never, &request(&json!({}), vec![agent(3, 9)]), None)), 0);
}

#[test]
fn a_call_that_two_instrumentations_report_counts_once() {
    let mapped = map(vec![span(3, 2, &chat(20, 2)), span(2, 1, &chat(20, 2))]);
    assert_eq!((tokens(&mapped), mapped.accepted, mapped.ignored), (22, 1, 1));
    let embeddings = with(chat(5, 0), json!({"gen_ai.operation.name": "embeddings"}));
    assert_eq!(
        tokens(&map(vec![span(3, 2, &embeddings), span(2, 1, &chat(20, 2))])),
        27,
        "another operation is another call"
    );
    let circle = vec![span(2, 3, &chat(1, 0)), span(3, 2, &chat(1, 0))];
    assert!(map(circle).accepted <= 2, "a circle ends");
}

#[test]
fn parts_that_a_sender_left_out_of_the_whole_are_added() {
    let raw = with(
        chat(10, 5),
        json!({"gen_ai.usage.cache_read.input_tokens": 100, "gen_ai.usage.cache_creation.input_tokens": 30,
            "gen_ai.usage.reasoning.output_tokens": 7}),
    );
    let event = &events(&map(vec![span(2, 1, &raw)]))[0];
    assert_eq!((&event["input_tokens"], &event["cached_tokens"]), (&json!(140), &json!(100)));
    assert_eq!((&event["output_tokens"], &event["reasoning_tokens"]), (&json!(12), &json!(7)));
    let whole = with(
        chat(140, 5),
        json!({"gen_ai.usage.cache_read.input_tokens": 100, "gen_ai.usage.cache_write.input_tokens": 30}),
    );
    assert_eq!(events(&map(vec![span(2, 1, &whole)]))[0]["input_tokens"], 140);
}

#[test]
fn a_root_starts_and_ends_its_run() {
    let agent = json!({"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "planner"});
    let tool = json!({"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "search"});
    let mut root = span(1, 0, &agent);
    root.end_time_unix_nano = START + 60 * SECOND;
    let mapped = map(vec![span(3, 1, &chat(1, 1)), span(4, 1, &tool), root.clone()]);
    let all = events(&mapped);
    assert_eq!(kinds(&mapped), ["run.started", "run.step", "run.step", "run.completed"]);
    assert_eq!(all[0]["event_time"], "2026-01-02T03:04:06.000000Z", "at its beginning");
    assert_eq!(all[3]["event_time"], "2026-01-02T03:05:05.000000Z", "at its end");
    assert!(all.iter().all(|event| event["run_id"] == "ab".repeat(16)));
    let used = all[2].as_object().unwrap();
    assert_eq!((&used["cost_usd"], &used["latency_ms"]), (&json!(0), &json!(1000)), "a tool uses no tokens");
    assert!(!used.contains_key("input_tokens"));
    root.status = Some(Status { code: 2, message: "S".into() });
    let failed = map(vec![root.clone()]);
    assert_eq!(kinds(&failed), ["run.started", "run.failed"]);
    assert_eq!(events(&failed)[1]["error_code"], "_OTHER");
    let quiet = map_with(Settings { root_is_run: false, ..settings() }, &request(&json!({}), vec![root]), None);
    assert_eq!((quiet.records.len(), quiet.ignored), (0, 1));
}

#[test]
fn what_else_is_traced_starts_no_runs() {
    let http = json!({"http.request.method": "POST"});
    assert_eq!(map(vec![span(1, 0, &http)]).ignored, 1);
    let above = Span { end_time_unix_nano: START + 60 * SECOND, ..span(1, 0, &http) };
    let served = map(vec![span(2, 1, &chat(1, 1)), above]);
    assert_eq!(kinds(&served), ["run.started", "run.step", "run.completed"], "a root above a call is its run");
    let quiet = json!({"gen_ai.operation.name": "retrieval", "gen_ai.usage.input_tokens": 5});
    assert_eq!(map(vec![span(2, 1, &quiet)]).ignored, 1);
    let alone = map(vec![span(1, 0, &chat(1, 1))]);
    assert_eq!(kinds(&alone), ["run.started", "run.step", "run.completed"], "a call that is a trace of its own");
    let named = map(vec![span(1, 0, &with(chat(1, 1), json!({"runwarden.run_id": "r"})))]);
    assert_eq!(kinds(&named), ["run.step"], "a call of a run that has others");
}

#[test]
fn a_failed_call_and_its_first_token_are_told() {
    let of = with(chat(1, 0), json!({"error.type": "rate_limit", "gen_ai.response.time_to_first_chunk": 0.25}));
    let mapped = map(vec![span(2, 1, &of)]);
    let all = events(&mapped);
    assert_eq!(kinds(&mapped), ["run.first_token", "run.step"]);
    assert_eq!(
        (&all[0]["event_time"], &all[1]["error_code"]),
        (&json!("2026-01-02T03:04:07.250000Z"), &json!("rate_limit"))
    );
}

#[test]
fn a_cost_counts_in_dollars_only() {
    let cost = |more: Value| events(&map(vec![span(2, 1, &with(chat(1, 1), more))]))[0]["cost_usd"].clone();
    assert_eq!(cost(json!({"gen_ai.usage.cost.amount": "0.5", "gen_ai.usage.cost.currency": "USD"})), 0.5);
    assert_eq!(cost(json!({"gen_ai.usage.cost.amount": 0.5, "gen_ai.usage.cost.currency": "CHF"})), Value::Null);
    assert_eq!(cost(json!({"runwarden.cost_usd": 2, "gen_ai.usage.cost.amount": 0.5})), 2.0);
}

#[test]
fn a_bad_span_is_rejected_with_its_reason_and_the_others_are_taken() {
    let bad = |change: &dyn Fn(&mut Span)| {
        let mut span = span(2, 1, &chat(1, 1));
        change(&mut span);
        let mapped = map(vec![span, self::span(3, 1, &chat(1, 1))]);
        assert_eq!(mapped.accepted, 1);
        mapped.rejected.into_keys().collect::<Vec<_>>()
    };
    assert_eq!(bad(&|s| s.trace_id = vec![1; 15]), [Rejected::Id]);
    assert_eq!(bad(&|s| s.span_id = vec![0; 8]), [Rejected::Id]);
    assert_eq!(bad(&|s| s.parent_span_id = vec![1; 9]), [Rejected::Id]);
    assert_eq!(bad(&|s| s.end_time_unix_nano = s.start_time_unix_nano - 1), [Rejected::Time]);
    assert_eq!(bad(&|s| s.start_time_unix_nano = 0), [Rejected::Time]);
    for attribute in [
        json!({"gen_ai.usage.input_tokens": -1}),
        json!({"gen_ai.usage.input_tokens": "many"}),
        json!({"gen_ai.usage.input_tokens": 1.5}),
        json!({"gen_ai.usage.cache_read.input_tokens": i64::MAX, "gen_ai.usage.cache_creation.input_tokens": 1}),
        json!({"runwarden.cost_usd": -0.1}),
        json!({"runwarden.run_id": "r".repeat(257)}),
        json!({"gen_ai.request.model": "m".repeat(257)}),
    ] {
        assert_eq!(bad(&|s| s.attributes.extend(attributes(&attribute))), [Rejected::OutOfRange], "{attribute}");
    }
    assert_eq!(bad(&|s| s.attributes.extend(attributes(&json!({"runwarden.tenant_id": "*"})))), [Rejected::Tenant]);
}

#[test]
fn a_token_writes_for_its_tenant_only() {
    let of = |tenant: Option<&str>| {
        let more = tenant.map_or(json!({}), |tenant| json!({"runwarden.tenant_id": tenant}));
        map_with(settings(), &request(&json!({}), vec![span(2, 1, &with(chat(1, 1), more))]), Some("acme"))
    };
    assert_eq!(of(None).records[0].tenant, "acme", "not the default tenant");
    assert_eq!(of(Some("acme")).accepted, 1);
    assert_eq!(of(Some("globex")).rejected.into_iter().collect::<Vec<_>>(), [(Rejected::Tenant, 1)]);
    assert!(of(Some("globex")).records.is_empty() && of(Some("globex")).message().contains("token"));
}

#[test]
fn a_forbidden_column_does_not_leave() {
    let mut settings = settings();
    settings.forbidden.push("human_actor_id".into());
    let of = with(chat(1, 1), json!({"enduser.pseudo.id": "someone", "prompt": "S"}));
    let seen = events(&map_with(self::settings(), &request(&json!({}), vec![span(2, 1, &of)]), None));
    assert_eq!((&seen[0]["human_actor_id"], &seen[0]["attributes"]), (&json!("someone"), &Value::Null));
    let hidden = events(&map_with(settings, &request(&json!({}), vec![span(2, 1, &of)]), None));
    assert_eq!(hidden[0]["human_actor_id"], Value::Null);
}

#[test]
fn more_spans_than_a_request_may_have_are_refused_before_they_are_read() {
    let spans = |n: u8| request(&json!({}), (1..=n).map(|id| span(id, 0, &json!({}))).collect());
    let mapper = Mapper::new(Settings { spans: 3, ..settings() });
    let of = |request: &ExportTraceServiceRequest| {
        let proto = mapper.map(&request.encode_to_vec(), Encoding::Proto, None);
        assert_eq!(proto, mapper.map(&serde_json::to_vec(request).unwrap(), Encoding::Json, None));
        proto.err()
    };
    assert_eq!((of(&spans(3)), of(&spans(4))), (None, Some(Unreadable::TooMany(3))));
}

#[test]
fn json_may_be_written_as_the_specification_allows() {
    let mapper = Mapper::new(settings());
    let request = |span: &str| {
        format!(r#"{{"resourceSpans":[{{"scopeSpans":[{{"spans":[{span}],"x":1}}],"resource":null}}],"later":[{{}}]}}"#)
    };
    let of = |span: &str| mapper.map(request(span).as_bytes(), Encoding::Json, None);
    let plain = of(r#"{"traceId":"5b8efff798038103d269b633813fc60c","spanId":"eee19b7ec3c1b174","parentSpanId":"eee19b7ec3c1b173",
        "startTimeUnixNano":"1544712660000000000","endTimeUnixNano":"1544712661000000000","kind":2,"status":{},
        "attributes":[{"key":"gen_ai.operation.name","value":{"stringValue":"chat"}},{"key":"gen_ai.usage.input_tokens","value":{"intValue":"7"}},
            {"key":"gen_ai.usage.output_tokens","value":{"intValue":3}}]}"#)
    .unwrap();
    assert_eq!(tokens(&plain), 10);
    let other = of(
        r#"{"attributes":[{"value":{"doubleValue":7.0},"key":"gen_ai.usage.input_tokens"},{"value":{"intValue":3,"x":{}},"key":"gen_ai.usage.output_tokens"},
            {"key":"gen_ai.operation.name","value":{"stringValue":"chat"}},{"key":"nan","value":{"doubleValue":"NaN"}},{"key":"e","value":{"arrayValue":{}}},
            {"key":"region","value":null},{"key":null},{}],
        "spanId":"EEE19B7EC3C1B174","traceId":"5B8EFFF798038103D269B633813FC60C","parentSpanId":"eee19b7ec3c1b173","unknown":[1],
        "startTimeUnixNano":1544712660000000000,"endTimeUnixNano":1544712661000000000,"status":null,"events":null}"#,
    );
    assert_eq!(other.unwrap(), plain);
    for (text, at) in [("", (1, 0)), ("{\n]", (2, 1))] {
        let refused = mapper.map(text.as_bytes(), Encoding::Json, None);
        assert_eq!(refused, Err(Unreadable::Json { line: at.0, column: at.1 }), "{text}");
    }
    for text in ["[]", r#"{"resourceSpans":3}"#, r#"{"resourceSpans":[3]}"#, r#"{"resourceSpans":[[]]}"#] {
        assert_eq!(mapper.map(text.as_bytes(), Encoding::Json, None), Err(Unreadable::Shape), "{text}");
    }
    assert_eq!(of(r#"{"traceId":"zz","spanId":"1","attributes":[{"key":"gen_ai.operation.name","value":{"stringValue":"chat"}}]}"#).unwrap().rejections(), 1);
}

#[test]
fn an_empty_request_is_a_success() {
    let mapper = Mapper::new(settings());
    assert_eq!(mapper.map(b"", Encoding::Proto, None), Ok(Mapped::default()));
    assert_eq!(mapper.map(b"{}", Encoding::Json, None), Ok(Mapped::default()));
    assert_eq!(mapper.map(b"\xff", Encoding::Proto, None), Err(Unreadable::Proto));
}

#[test]
fn metrics_and_logs_are_counted() {
    let metrics = r#"{"resourceMetrics":[{"scopeMetrics":[{"metrics":[{"sum":{"dataPoints":[{},{}]}},{"gauge":{"dataPoints":[{}]}},{"name":"x"}]}]}]}"#;
    let logs = r#"{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"body":{"stringValue":"S"}},{}]},{}]},{}]}"#;
    assert_eq!(items(metrics.as_bytes(), Encoding::Json, Items::Metrics), Ok(3));
    assert_eq!(items(logs.as_bytes(), Encoding::Json, Items::Logs), Ok(2));
    // logs have the numbers of spans down to the record
    let proto = request(&json!({}), vec![Span::default(), Span::default()]).encode_to_vec();
    assert_eq!(items(&proto, Encoding::Proto, Items::Logs), Ok(2));
    // a gauge with two points: metric { gauge (5) { data_points (1) ×2 } }
    let metric = [0x2a, 4, 0x0a, 0, 0x0a, 0];
    let proto = [&[0x0a, 10, 0x12, 8, 0x12, 6][..], &metric].concat();
    assert_eq!(items(&proto, Encoding::Proto, Items::Metrics), Ok(2));
    assert_eq!(items(b"\xff", Encoding::Proto, Items::Logs), Err(Unreadable::Proto));
}

/// Names whose values are to be kept, and others.
const NAMES: &[&str] = &[
    "gen_ai.operation.name",
    "gen_ai.provider.name",
    "gen_ai.system",
    "gen_ai.request.model",
    "gen_ai.usage.input_tokens",
    "gen_ai.usage.completion_tokens",
    "gen_ai.usage.cache_read.input_tokens",
    "error.type",
    "runwarden.tenant_id",
    "runwarden.run_id",
    "runwarden.cost_usd",
    "gen_ai.agent.id",
    "region",
    "service.name",
    "gen_ai.response.time_to_first_chunk",
    "enduser.pseudo.id",
];
/// What must not travel stands in all of these.
const SECRETS: &[&str] = &[
    "gen_ai.input.messages",
    "gen_ai.output.messages",
    "gen_ai.prompt",
    "gen_ai.completion",
    "gen_ai.tool.call.arguments",
    "gen_ai.tool.call.result",
    "gen_ai.system_instructions",
    "prompt",
    "user.email",
    "whatever",
    "gen_ai.tool.name",
    "enduser.id",
];
const SENTINEL: &str = "SENTINEL";

fn some_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        prop_oneof!["chat", "invoke_agent", "execute_tool", "embeddings", "x"].prop_map(Value::from),
        "[a-z\"\\\\\n]{0,8}".prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (0_i64..1_000).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        Just(json!([1, "a", {"b": [null]}])),
        Just(Value::Null),
    ]
}

prop_compose! {
    fn some_span()(
        wanted in prop::collection::vec((prop::sample::select(NAMES), some_value()), 0..8),
        secret in prop::collection::vec(prop::sample::select(SECRETS), 0..4),
        ids in (prop::sample::select(vec![0_usize, 8, 16, 20]), 0_u8..4, 0_u8..4),
        times in (any::<u64>(), any::<u64>(), any::<bool>()),
        kind in 0..6,
        code in 0..4,
    ) -> Span {
        let sentinel = || Some(value(&json!({"deep": [SENTINEL], SENTINEL: SENTINEL})));
        let text = || Some(AnyValue { value: Some(Any::StringValue(SENTINEL.into())) });
        let pair = |key: &str, value| KeyValue { key: key.into(), value, ..KeyValue::default() };
        let mut attributes: Vec<KeyValue> = wanted.iter().map(|(name, v)| pair(name, Some(value(v)))).collect();
        attributes.extend(secret.iter().enumerate().map(|(i, name)| pair(name, if i % 2 == 0 { text() } else { sentinel() })));
        let (width, id, parent) = ids;
        let (a, b, ordered) = times;
        Span {
            trace_id: if width == 16 { TRACE.to_vec() } else { vec![1; width] },
            span_id: vec![id; 8],
            parent_span_id: if parent == 0 { Vec::new() } else { vec![parent; 8] },
            trace_state: SENTINEL.into(),
            name: SENTINEL.into(),
            kind,
            start_time_unix_nano: if ordered { a.min(b) } else { a },
            end_time_unix_nano: if ordered { a.max(b) } else { b },
            attributes,
            events: vec![Event { name: SENTINEL.into(), attributes: vec![pair("gen_ai.prompt", text()), pair("region", text())], ..Event::default() }],
            links: vec![Link { trace_state: SENTINEL.into(), attributes: vec![pair("region", text())], ..Link::default() }],
            status: Some(Status { code, message: SENTINEL.into() }),
            ..Span::default()
        }
    }
}

fn whole(spans: Vec<Span>) -> ExportTraceServiceRequest {
    let mut request = request(&json!({"service.name": "worker", "host.name": SENTINEL}), spans);
    let scope =
        InstrumentationScope { name: SENTINEL.into(), version: SENTINEL.into(), ..InstrumentationScope::default() };
    request.resource_spans[0].scope_spans[0].scope = Some(scope);
    request.resource_spans[0].schema_url = SENTINEL.into();
    request
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn nothing_but_what_is_listed_comes_out_and_all_of_it_is_telemetry(spans in prop::collection::vec(some_span(), 0..8)) {
        let request = whole(spans);
        let sent = request.resource_spans[0].scope_spans[0].spans.len() as u64;
        let mapped = Mapper::new(settings()).map(&request.encode_to_vec(), Encoding::Proto, None).unwrap();
        prop_assert_eq!(mapped.accepted + mapped.ignored + mapped.rejections(), sent, "each span is one of the three");
        let mut decoder = crate::telemetry::Decoder::new(std::sync::Arc::new(crate::telemetry::Settings {
            attributes: settings().attributes, ..crate::telemetry::Settings::default()
        }));
        for record in &mapped.records {
            let text = String::from_utf8(record.value.clone()).unwrap();
            prop_assert!(!text.contains(SENTINEL), "{}", text);
            let origin = crate::telemetry::Origin { input: 2, topic: "t".into(), partition: 0, offset: 0 };
            decoder.push(origin, 0, Some(&record.value), crate::clock::Wall(i64::MAX));
        }
        let decoded = decoder.finish();
        prop_assert!(decoded.dead.is_empty(), "{:?}", decoded.dead);
        prop_assert_eq!(decoded.batch.rows.num_rows(), mapped.records.len());
        prop_assert!(!mapped.message().contains(SENTINEL));
    }

    #[test]
    fn both_encodings_give_the_same(spans in prop::collection::vec(some_span(), 0..6)) {
        // JSON has no number for these
        let finite = |span: &Span| !span.attributes.iter().any(|a| matches!(a.value.as_ref().and_then(|v| v.value.as_ref()), Some(Any::DoubleValue(d)) if !d.is_finite()));
        let request = whole(spans.into_iter().filter(finite).collect());
        let mapper = Mapper::new(settings());
        let proto = mapper.map(&request.encode_to_vec(), Encoding::Proto, None);
        prop_assert_eq!(mapper.map(&serde_json::to_vec(&request).unwrap(), Encoding::Json, None), proto);
    }

    #[test]
    fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mapper = Mapper::new(settings());
        for encoding in [Encoding::Proto, Encoding::Json] {
            let _answered = mapper.map(&bytes, encoding, None);
            let _counted = (items(&bytes, encoding, Items::Metrics), items(&bytes, encoding, Items::Logs));
        }
    }
}

/// One request of each dialect, and the events that come of it. `RUNWARDEN_GOLDEN=write` writes the latter anew.
#[test]
fn an_example_of_each_dialect_gives_the_events_that_are_written_down() {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/otlp");
    let mapper = Mapper::new(crate::config::Config::default().mapping());
    for dialect in ["v1.36", "v1.41.1", "genai-dev"] {
        let request = std::fs::read(directory.join(format!("{dialect}.json"))).unwrap();
        let mapped = mapper.map(&request, Encoding::Json, None).unwrap();
        let lines: Vec<&str> =
            mapped.records.iter().map(|record| std::str::from_utf8(&record.value).unwrap()).collect();
        let (written, text) = (directory.join(format!("{dialect}.jsonl")), lines.join("\n") + "\n");
        if std::env::var_os("RUNWARDEN_GOLDEN").is_some_and(|what| what == "write") {
            std::fs::write(&written, &text).unwrap();
        }
        assert_eq!(text, std::fs::read_to_string(&written).unwrap(), "{dialect}");
        assert_eq!(mapped.rejections(), 0);
        assert!(!text.contains("must not travel"));
    }
}
