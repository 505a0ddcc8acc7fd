//! `/api/v1/openapi.json` (OpenAPI 3.1) and `/docs`: made from the lists, the tables and the routes that are served, so neither can say
//! something else than what is there.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Json, Router};
use datafusion::arrow::datatypes::DataType;
use serde_json::{Map, Value, json};

use super::ask::COMMON;
use super::lists::{Filter, How, LISTS, List, Shape};
use crate::metrics;
use crate::serve::commands::{COMMON as WRITTEN, Form, Kind as FieldKind, WriteRoute, routes_table};
use crate::serve::http::Views;
use crate::serve::tables::schema::{self, Kind, TABLES};
use crate::serve::tables::{Scope, Tables, VIEWS};

pub(super) fn routes() -> Router<Views> {
    Router::new().route("/api/v1/openapi.json", get(document)).route("/docs", get(page))
}

/// A read that is no list: its path, its parameters, what it is, and its answer's fields.
struct Read {
    path: &'static str,
    about: &'static str,
    parameters: &'static [(&'static str, &'static str)],
    fields: &'static [(&'static str, &'static str)],
}

const TENANT: (&str, &str) = ("tenant_id", "string");
const AFTER: (&str, &str) = ("after", "integer");
const HOURS: (&str, &str) = ("hours", "integer");

/// The reads that are no lists.
const READS: [Read; 18] = [
    Read {
        path: "/api/v1/policies/state",
        about: "how much there is of everything, and what waits (panel ACT-O4)",
        parameters: &[TENANT, AFTER],
        fields: &[
            ("total_policies", "integer"),
            ("active_policies", "integer"),
            ("drafts_pending_review", "integer"),
            ("conflicts_detected", "integer"),
            ("violations_24h", "integer"),
            ("lessons_pending_action", "integer"),
            ("last_updated", "string?"),
        ],
    },
    Read {
        path: "/api/v1/policies/metrics",
        about: "what policies did (panel ACT-O5)",
        parameters: &[TENANT, AFTER, HOURS],
        fields: &[
            ("total_evaluations", "integer"),
            ("total_blocks", "integer"),
            ("total_allows", "integer"),
            ("block_rate", "number"),
            ("avg_evaluation_ms", "number"),
            ("violations_by_type", "object"),
            ("evaluations_by_action", "object"),
            ("events_no_policy_covered", "integer"),
            ("window_hours", "integer"),
        ],
    },
    Read {
        path: "/api/v1/policies/conflicts",
        about: "what contradicts what (P9, panel DFT-O4)",
        parameters: &[TENANT, AFTER, ("include_resolved", "boolean"), ("severity", "string")],
        fields: &[
            ("items", "array"),
            ("total", "integer"),
            ("unresolved_count", "integer"),
            ("complete", "boolean"),
            ("filters_applied", "object"),
        ],
    },
    Read {
        path: "/api/v1/policies/dependencies",
        about: "what depends on what (P10, panel DFT-O5)",
        parameters: &[TENANT, AFTER],
        fields: &[("nodes", "array"), ("edges", "array"), ("computed_at", "string"), ("complete", "boolean")],
    },
    Read {
        path: "/api/v1/policies/rules/{id}/evidence",
        about: "what a rule led to",
        parameters: &[TENANT, AFTER, HOURS],
        fields: &[
            ("rule", "object"),
            ("hours", "integer"),
            ("summary", "array"),
            ("violations", "array"),
            ("interventions", "array"),
            ("audit", "array"),
            ("snapshots", "array"),
        ],
    },
    Read {
        path: "/api/v1/policies/limits/{id}/evidence",
        about: "how often a limit was neared and breached",
        parameters: &[TENANT, AFTER, HOURS, ("policy_id", "string"), ("limit", "integer"), ("offset", "integer")],
        fields: &[
            ("limit", "object"),
            ("summary", "array"),
            ("items", "array"),
            ("total", "integer"),
            ("has_more", "boolean"),
            ("filters_applied", "object"),
        ],
    },
    Read {
        path: "/api/v1/policy-proposals/{id}/versions",
        about: "the versions of a proposal (panel DFT-O2)",
        parameters: &[TENANT, AFTER, ("is_current", "boolean"), ("limit", "integer"), ("offset", "integer")],
        fields: &[("items", "array"), ("total", "integer"), ("has_more", "boolean"), ("filters_applied", "object")],
    },
    Read {
        path: "/api/v1/policy-proposals/stats/summary",
        about: "how many proposals there are, and what became of them (panel ACT-O2)",
        parameters: &[TENANT, AFTER],
        fields: &[
            ("total", "integer"),
            ("by_status", "object"),
            ("reviewed", "integer"),
            ("pending", "integer"),
            ("approval_rate", "number?"),
            ("oldest_pending_at", "string?"),
        ],
    },
    Read {
        path: "/api/v1/lessons/stats",
        about: "how many lessons there are of what (panel LES-O2); also below /api/v1/policies and /policy-layer",
        parameters: &[TENANT, AFTER, ("include_synthetic", "boolean")],
        fields: &[("total", "integer"), ("by_type", "object"), ("by_status", "object"), ("by_severity", "object")],
    },
    Read {
        path: "/api/v1/policy-level",
        about: "how a tenant stands, or all (L1, L4)",
        parameters: &[TENANT],
        fields: &[
            ("policy", "string"),
            ("evaluated_at", "string?"),
            ("tenant_id", "string"),
            ("inputs", "object?"),
            ("thresholds", "object?"),
            ("reasons", "array"),
            ("missing", "array"),
            ("revision", "integer"),
        ],
    },
    Read {
        path: "/api/v1/runs/{id}/verdict",
        about: "whether a run may go on (I8)",
        parameters: &[
            TENANT,
            ("agent_id", "string"),
            ("api_key_id", "string"),
            ("human_actor_id", "string"),
            ("project_id", "string"),
            ("provider", "string"),
        ],
        fields: &[("run_id", "string?"), ("verdict", "string"), ("decided_at", "string?")],
    },
    Read {
        path: "/api/v1/panels",
        about: "the panels, and how each is (V1, V3)",
        parameters: &[
            TENANT,
            ("topic", "string"),
            ("health", "string"),
            ("alert_enabled", "boolean"),
            ("limit", "integer"),
            ("offset", "integer"),
        ],
        fields: &[("items", "array"), ("total", "integer"), ("has_more", "boolean"), ("filters_applied", "object")],
    },
    Read {
        path: "/api/v1/panels/{id}",
        about: "one panel: its SQL, its invariant, and its last check",
        parameters: &[],
        fields: &[("panel_id", "string"), ("question", "string"), ("health", "string"), ("sql", "string")],
    },
    Read {
        path: "/api/v1/panels/{id}/rows",
        about: "what a panel answers",
        parameters: &[TENANT, ("limit", "integer"), ("offset", "integer")],
        fields: &[("items", "array"), ("total", "integer"), ("has_more", "boolean"), ("filters_applied", "object")],
    },
    Read {
        path: "/api/v1/explain/{id}",
        about: "why something was decided, and whether it is decided again (X9)",
        parameters: &[TENANT],
        fields: &[
            ("what", "string"),
            ("decision", "object"),
            ("signal", "object?"),
            ("sql", "string?"),
            ("policy", "object?"),
            ("considered", "array"),
            ("events", "object"),
            ("again", "object"),
        ],
    },
    Read {
        path: "/api/v1/commands/{id}",
        about: "what became of a command",
        parameters: &[TENANT],
        fields: &[("command_id", "string"), ("status", "string"), ("code", "string"), ("reason", "string")],
    },
    Read {
        path: "/api/v1/verdicts",
        about: "verdicts as they change, as server-sent events",
        parameters: &[TENANT, ("run_id", "string")],
        fields: &[],
    },
    Read {
        path: "/api/v1/events",
        about: "what runwarden says, as it says it: server-sent events alert, intervention, signal, lesson, policy_level",
        parameters: &[TENANT, ("kind", "string")],
        fields: &[],
    },
];

fn typed(name: &str) -> Value {
    match name.strip_suffix('?') {
        Some(name) => json!({"type": [name, "null"]}),
        None => json!({"type": name}),
    }
}

fn of_kind(kind: Kind) -> Value {
    match kind {
        Kind::Text => typed("string?"),
        Kind::Time => json!({"type": ["string", "null"], "format": "date-time"}),
        Kind::Number => typed("number?"),
        Kind::Count => typed("integer?"),
        Kind::Flag => typed("boolean?"),
        // an object, a list, or null
        Kind::Json => json!({}),
    }
}

fn of_type(data_type: &DataType) -> Value {
    match data_type {
        DataType::Boolean => of_kind(Kind::Flag),
        DataType::Timestamp(..) => of_kind(Kind::Time),
        t if t.is_integer() => of_kind(Kind::Count),
        t if t.is_numeric() => of_kind(Kind::Number),
        _ => of_kind(Kind::Text),
    }
}

fn object(properties: Map<String, Value>) -> Value {
    let required: Vec<&String> = properties.keys().collect();
    json!({"type": "object", "required": required, "properties": properties})
}

/// The schema of the records of a table.
fn record(table: &schema::Table) -> Value {
    let mut flat: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    let mut properties = Map::new();
    for column in table.columns {
        let mut shape = of_kind(column.kind);
        shape["description"] = json!(column.about);
        match column.path.split_once('.') {
            None => drop(properties.insert(column.path.to_owned(), shape)),
            Some((outer, inner)) => drop(flat.entry(outer).or_default().insert(inner.to_owned(), shape)),
        }
    }
    for (name, inner) in flat {
        properties.insert(name.to_owned(), object(inner));
    }
    object(properties)
}

/// The schema of the rows of a view.
async fn view(tables: &Tables, name: &str) -> Value {
    let Ok(columns) = tables.plan(&Scope::All, &format!("SELECT * FROM {name}")).await else { return json!({}) };
    let json_names = |name: &str| TABLES.iter().flat_map(|t| t.columns).any(|c| c.kind == Kind::Json && c.name == name);
    let shape = |name: &str, t: &DataType| if json_names(name) { of_kind(Kind::Json) } else { of_type(t) };
    object(columns.fields().iter().map(|f| (f.name().clone(), shape(f.name(), f.data_type()))).collect())
}

fn parameter(name: &str, about: &str, schema: Value) -> Value {
    json!({"name": name, "in": "query", "required": false, "description": about, "schema": schema})
}

fn of_filter(filter: &Filter) -> Value {
    let words = |words: &[&str]| json!({"type": "string", "enum": words});
    let (about, mut shape) = match filter.how {
        How::Word(known) => ("one of these, in any case", words(known)),
        How::Condition(known) => {
            ("one of these, in any case", words(&known.iter().map(|(word, _)| *word).collect::<Vec<_>>()))
        }
        How::Prefix => ("this, or with * at its end what begins so", json!({"type": "string"})),
        How::Text => ("this", json!({"type": "string"})),
        How::After => ("at this time or later", json!({"type": "string", "format": "date-time"})),
        How::Before => ("before this time", json!({"type": "string", "format": "date-time"})),
        How::Least => ("this or more", json!({"type": "number", "minimum": 0, "maximum": 1})),
        How::Hours(default) => {
            ("the last so many hours", json!({"type": "integer", "minimum": 1, "maximum": 720, "default": default}))
        }
        How::Synthetic => ("what is made up too", json!({"type": "boolean", "default": false})),
        How::Flag => ("true or false", json!({"type": "boolean"})),
    };
    if let Some(default) = filter.default {
        shape["default"] = json!(default);
    }
    parameter(filter.name, about, shape)
}

fn common(list: &List) -> impl Iterator<Item = Value> {
    let limit = list.limit;
    COMMON.iter().map(move |(name, about)| {
        let shape = match *name {
            "limit" => json!({"type": "integer", "minimum": 1, "maximum": 100, "default": limit}),
            "tenant_id" => json!({"type": "string"}),
            _ => json!({"type": "integer", "minimum": 0}),
        };
        parameter(name, about, shape)
    })
}

fn in_path() -> Value {
    json!({"name": "id", "in": "path", "required": true, "schema": {"type": "string"}})
}

fn problems(statuses: &[(&str, &str)]) -> Map<String, Value> {
    let body = json!({"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}});
    statuses
        .iter()
        .map(|(status, about)| ((*status).to_owned(), json!({"description": about, "content": body})))
        .collect()
}

const REFUSALS: [(&str, &str); 6] = [
    ("400", "a parameter is wrong: the detail says which"),
    ("401", "a bearer token is needed"),
    ("403", "the token is of another tenant, or may not do this"),
    ("404", "there is no such thing, or not in this process"),
    ("409", "there are several: name the tenant or the policy too"),
    ("503", "ask again: the tables are still being read, or too many ask"),
];

fn operation(about: &str, id: &str, parameters: Vec<Value>, schema: Value, media: &str) -> Value {
    let mut responses = problems(&REFUSALS);
    responses.insert("200".to_owned(), json!({"description": about, "content": {media: {"schema": schema}}}));
    json!({"get": {"summary": about, "operationId": id, "parameters": parameters, "responses": responses}})
}

/// A route that writes.
fn write(route: &WriteRoute) -> Value {
    let kind = |kind: FieldKind| match kind {
        FieldKind::Text => json!({"type": "string", "minLength": 1}),
        FieldKind::Whole => json!({"type": "integer"}),
        FieldKind::Flag => json!({"type": "boolean"}),
        FieldKind::Object => json!({"type": "object"}),
        FieldKind::List => json!({"type": "array"}),
        FieldKind::Time => json!({"type": ["string", "integer"]}),
        FieldKind::Any => json!({}),
    };
    let schema = match route.form {
        Form::Policy => json!({"type": "object", "description": "one policy, as in a file"}),
        Form::Fields(fields) => {
            let all = fields.iter().chain(&WRITTEN);
            let properties: Map<String, Value> = all
                .map(|field| {
                    let mut shape = kind(field.kind);
                    shape["description"] = json!(field.about);
                    (field.name.to_owned(), shape)
                })
                .collect();
            let required: Vec<&str> = fields.iter().filter(|f| f.required).map(|f| f.name).collect();
            json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
        }
    };
    let example = serde_json::from_str(route.example).unwrap_or(Value::Null);
    let mut responses = problems(&REFUSALS);
    responses.extend(problems(&[
        ("413", "the body is too large"),
        ("415", "the body is of another type"),
        ("422", "the core refused it: code and detail say why"),
        ("429", "too many writes: come again later"),
    ]));
    let result = json!({"type": "object", "required": ["command_id"], "properties": {
        "command_id": {"type": "string"}, "status": {"type": "string"}, "code": {"type": "string"}, "offset": {"type": ["integer", "null"]},
    }});
    let content = json!({"application/json": {"schema": result}});
    let fine = if route.makes.is_some() { "201" } else { "200" };
    responses.insert(fine.to_owned(), json!({"description": "done", "content": content}));
    responses.insert(
        "202".to_owned(),
        json!({"description": "sent, and not decided yet: see Location", "content": content}),
    );
    let key = json!({"name": "Idempotency-Key", "in": "header", "required": false, "schema": {"type": "string"},
        "description": "a repetition with the same key counts once"});
    let mut parameters = vec![key, parameter("tenant_id", COMMON[0].1, json!({"type": "string"}))];
    if route.path.contains("{id}") {
        parameters.push(in_path());
    }
    json!({
        "summary": route.about,
        "description": format!("Role {}; command {}.", route.role.as_str(), route.command.unwrap_or("none: a report")),
        "operationId": format!("{}_{}", route.method.to_lowercase(), identifier(route.path).trim_start_matches("get_")),
        "parameters": parameters,
        "requestBody": {"required": route.method != "DELETE", "content": {"application/json": {"schema": schema, "example": example}}},
        "responses": responses,
    })
}

/// What is asked of the simulation: a read with a body.
fn simulated() -> Value {
    let files =
        json!({"type": "object", "additionalProperties": {"type": "string"}, "description": "texts by file name"});
    let schema = json!({"type": "object", "required": ["policies"], "additionalProperties": false, "properties": {
        "policies": {"oneOf": [{"type": "string", "description": "the text of a policy file"}, files]},
        "hours": {"type": "integer", "minimum": 1, "maximum": 168, "default": 1, "description": "how far it looks back"},
        "tenant_id": {"type": "string", "description": "whose events"},
    }});
    let fields = ["policies", "in_force", "diff"].map(|name| (name.to_owned(), json!({"type": "object"})));
    let mut properties: Map<String, Value> = fields.into_iter().collect();
    for (name, kind) in
        [("since", "string"), ("until", "string"), ("tenant_id", "string?"), ("snapshot_in_force", "string")]
    {
        properties.insert(name.to_owned(), typed(kind));
    }
    properties
        .insert("shortened".to_owned(), json!({"type": "boolean", "description": "lists were cut to 100 entries"}));
    let mut responses = problems(&REFUSALS);
    responses.extend(problems(&[
        ("413", "the body is too large"),
        ("415", "the body is of another type"),
        ("422", "the set is refused: `errors` says why; or it is too much"),
    ]));
    let content = json!({"application/json": {"schema": object(properties)}});
    responses.insert("200".to_owned(), json!({"description": "both, and how they differ", "content": content}));
    let example = json!({"policies": "id: run\nname: Run\nenforcement_mode: BLOCK\nlimits:\n  - {id: tokens, limit_type: TOKENS_PER_RUN, metric: run_tokens, max: 50000}\n", "hours": 1});
    json!({
        "summary": "what a set of policies would have done, beside what is in force (P12)",
        "description": "Role operate; nothing is written.",
        "operationId": "post_api_v1_policies_simulate",
        "requestBody": {"required": true, "content": {"application/json": {"schema": schema, "example": example}}},
        "responses": responses,
    })
}

fn identifier(path: &str) -> String {
    let name = path.trim_start_matches('/').replace(['/', '-', '{', '}'], "_");
    format!("get_{}", name.trim_end_matches('_'))
}

/// The document.
async fn made(tables: Option<&Tables>) -> Value {
    let mut paths = Map::new();
    let mut schemas = Map::new();
    schemas.insert(
        "Problem".to_owned(),
        json!({"type": "object", "required": ["title", "status", "detail"], "properties": {
            "type": {"type": "string"}, "title": {"type": "string"}, "status": {"type": "integer"},
            "detail": {"type": "string"}, "code": {"type": "string"},
        }}),
    );
    for table in &TABLES {
        schemas.insert(table.name.to_owned(), record(table));
    }
    if let Some(tables) = tables {
        let flat = LISTS.iter().filter(|list| list.shape == Shape::Flat).map(|list| list.from);
        for name in VIEWS.iter().map(|(name, ..)| *name).chain(flat) {
            schemas.insert(name.to_owned(), view(tables, name).await);
        }
    }
    for list in &LISTS {
        let item = match list.shape {
            Shape::Record(name) => name,
            Shape::Flat => list.from,
        };
        let item = json!({"$ref": format!("#/components/schemas/{item}")});
        let page = json!({
            "type": "object", "required": ["items", "total", "has_more", "filters_applied"],
            "properties": {
                "items": {"type": "array", "items": item}, "total": {"type": "integer"}, "has_more": {"type": "boolean"},
                "filters_applied": {"type": "object"},
            },
        });
        for path in list.paths {
            let parameters = list.filters.iter().map(of_filter).chain(common(list)).collect();
            let many = operation(list.about, &identifier(path), parameters, page.clone(), "application/json");
            paths.insert((*path).to_owned(), many);
            if !list.id.is_empty() {
                let path = format!("{path}/{{id}}");
                let about = format!("one of them, by {}", list.id);
                let parameters = vec![
                    in_path(),
                    parameter("tenant_id", COMMON[0].1, json!({"type": "string"})),
                    parameter("after", COMMON[3].1, json!({"type": "integer", "minimum": 0})),
                ];
                let one = operation(&about, &identifier(&path), parameters, item.clone(), "application/json");
                paths.insert(path, one);
            }
        }
    }
    for read in &READS {
        let id = read.path.contains("{id}").then(in_path);
        let parameters = read.parameters.iter().map(|(name, kind)| parameter(name, "", typed(kind)));
        let (schema, media) = if read.fields.is_empty() {
            (json!({"type": "string"}), "text/event-stream")
        } else {
            (
                object(read.fields.iter().map(|(name, kind)| ((*name).to_owned(), typed(kind))).collect()),
                "application/json",
            )
        };
        let parameters = id.into_iter().chain(parameters).collect();
        paths.insert(read.path.to_owned(), operation(read.about, &identifier(read.path), parameters, schema, media));
    }
    paths.insert(super::simulate::PATH.to_owned(), json!({"post": simulated()}));
    for route in routes_table() {
        let entry = paths.entry(route.path.to_owned()).or_insert_with(|| json!({}));
        entry[route.method.to_lowercase()] = write(route);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "runwarden", "version": metrics::VERSION,
            "description": "What runwarden knows, and who may change what is in force. Reads see the caller's tenant; writes are commands.",
        },
        "security": [{"token": []}],
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
    })
}

async fn document(State(views): State<Views>) -> Response {
    Json(made(views.tables.as_ref()).await).into_response()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// The same for people.
async fn page(State(views): State<Views>) -> Response {
    let document = made(views.tables.as_ref()).await;
    let mut rows = String::new();
    for (path, methods) in document["paths"].as_object().into_iter().flatten() {
        for (method, operation) in methods.as_object().into_iter().flatten() {
            let names = operation["parameters"].as_array().into_iter().flatten();
            let names: Vec<&str> = names.filter(|p| p["in"] == "query").filter_map(|p| p["name"].as_str()).collect();
            rows.push_str(&format!(
                "<tr><td><code>{} {}</code></td><td>{}</td><td>{}</td></tr>\n",
                method.to_uppercase(),
                escaped(path),
                escaped(operation["summary"].as_str().unwrap_or_default()),
                escaped(&names.join(" ")),
            ));
        }
    }
    let html = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width, \
         initial-scale=1\"><title>runwarden: the API</title><link rel=\"stylesheet\" href=\"/console/console.css\"></head>\n<body><main>\
         <h1>The API</h1><p>For programs: <a href=\"/api/v1/openapi.json\">/api/v1/openapi.json</a> (OpenAPI 3.1). Back to \
         <a href=\"/\">the console</a>.</p>\n<table><thead><tr><th scope=\"col\">route</th><th scope=\"col\">what</th>\
         <th scope=\"col\">parameters</th></tr></thead><tbody>\n{rows}</tbody></table></main></body></html>\n"
    );
    ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], html).into_response()
}

#[cfg(test)]
pub(super) async fn for_tests(tables: &Tables) -> Value {
    made(Some(tables)).await
}
