//! `POST /api/v1/policies/simulate` (P12): what a set of policies would have done, beside what is in force, over what the telemetry topic
//! holds. Nothing is written and nothing is executed. It takes a core for a while, so there is one at a time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;
use axum::response::IntoResponse as _;
use axum::routing::post;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::{Answer, again};
use crate::clock::{SECOND, Wall};
use crate::serve::access::{ALL, Caller, Denied, Role};
use crate::serve::api::denied;
use crate::serve::http::{Views, problem, problem_with};

/// Most records of the topic that are read.
pub const MOST_RECORDS: u64 = 1_000_000;
/// Its path.
pub(in crate::serve) const PATH: &str = "/api/v1/policies/simulate";
/// How long it may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// Hours that are looked back on, if none are given, and at most.
const HOURS: (u32, u32) = (1, 168);
/// Most files of a set.
const MOST_FILES: usize = 1_000;

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// The texts of the policy files, by name.
    pub policies: BTreeMap<String, String>,
    /// Over the events of this tenant; `None`: of all.
    pub tenant: Option<String>,
    /// From here on, by the broker's time.
    pub since: Wall,
    /// Now.
    pub now: Wall,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unsimulated {
    /// The set does not hold.
    #[error("the set is refused: {}", .0.join("; "))]
    Refused(Vec<String>),
    /// The topic holds so many records since then.
    #[error(
        "the topic holds up to {0} records since then, and at most {MOST_RECORDS} are read here: ask for fewer hours, or use `runwarden simulate`"
    )]
    TooMuch(u64),
    /// The topics cannot be read, or it was given up.
    #[error("{0}")]
    Failed(String),
}

/// Simulates; gives up when the flag says so.
pub type Simulate = Arc<dyn Fn(&Asked, &AtomicBool) -> Result<Value, Unsimulated> + Send + Sync>;

/// Simulates one at a time.
#[derive(Clone)]
pub struct Simulator {
    simulate: Simulate,
    place: Arc<Semaphore>,
}

impl Simulator {
    /// By this.
    pub fn new(simulate: Simulate) -> Self {
        Self { simulate, place: Arc::new(Semaphore::new(1)) }
    }
}

/// A set: one text, or several by file name.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Policies {
    One(String),
    Files(BTreeMap<String, String>),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    policies: Policies,
    hours: Option<u32>,
    tenant_id: Option<String>,
}

pub(super) fn routes() -> Router<Views> {
    Router::new().route(PATH, post(simulate))
}

fn read(body: Body, caller: &Caller, now: Wall) -> Result<Asked, String> {
    let hours = body.hours.unwrap_or(HOURS.0);
    if !(1..=HOURS.1).contains(&hours) {
        return Err(format!("hours must be from 1 to {}", HOURS.1));
    }
    let policies = match body.policies {
        Policies::One(text) => BTreeMap::from([("policies.yaml".to_owned(), text)]),
        Policies::Files(files) => files,
    };
    if policies.is_empty() || policies.len() > MOST_FILES {
        return Err(format!("policies must be one text, or 1 to {MOST_FILES} texts by file name"));
    }
    let tenant = body.tenant_id.unwrap_or_else(|| caller.tenant.clone());
    let since = Wall(now.0 - i64::from(hours) * 3_600 * SECOND);
    Ok(Asked { policies, tenant: (tenant != ALL).then_some(tenant), since, now })
}

async fn simulate(State(views): State<Views>, caller: Caller, body: Result<Json<Body>, JsonRejection>) -> Answer {
    caller.may(Role::Operate).map_err(denied)?;
    let Json(body) = body.map_err(|wrong| problem(wrong.status(), &wrong.body_text()))?;
    let asked = read(body, &caller, (views.clock)()).map_err(|why| problem(StatusCode::UNPROCESSABLE_ENTITY, &why))?;
    if !caller.sees(asked.tenant.as_deref().unwrap_or(ALL)) {
        return Err(denied(Denied::Tenant));
    }
    let Some(simulator) = views.simulator.clone() else {
        return Err(problem(StatusCode::NOT_FOUND, "this process simulates nothing: ask one with the role serve"));
    };
    let Ok(place) = Arc::clone(&simulator.place).try_acquire_owned() else {
        return Err(again(StatusCode::SERVICE_UNAVAILABLE, "something else is being simulated: ask again", "5"));
    };
    let given_up = GivesUp::default();
    let flag = Arc::clone(&given_up.0);
    let task = tokio::task::spawn_blocking(move || {
        let _place = place;
        (simulator.simulate)(&asked, &flag)
    });
    match tokio::time::timeout(PATIENCE, task).await {
        Ok(Ok(Ok(answer))) => Ok(Json(answer).into_response()),
        Ok(Ok(Err(Unsimulated::Refused(faults)))) => {
            let why = "the set of policies is refused";
            Err(problem_with(StatusCode::UNPROCESSABLE_ENTITY, why, vec![("errors", json!(faults))]))
        }
        Ok(Ok(Err(error @ Unsimulated::TooMuch(_)))) => {
            Err(problem(StatusCode::UNPROCESSABLE_ENTITY, &error.to_string()))
        }
        Ok(Ok(Err(Unsimulated::Failed(why)))) => Err(again(StatusCode::SERVICE_UNAVAILABLE, &why, "5")),
        Ok(Err(error)) => {
            tracing::error!(%error, "a simulation failed");
            Err(problem(StatusCode::INTERNAL_SERVER_ERROR, "it could not be simulated; the log says why"))
        }
        Err(_) => Err(again(
            StatusCode::SERVICE_UNAVAILABLE,
            "it takes too long here: ask for fewer hours, or use `runwarden simulate`, which has no limit",
            "60",
        )),
    }
}

/// Whoever asked is gone, or has waited long enough: nobody wants the answer.
#[derive(Default)]
struct GivesUp(Arc<AtomicBool>);

impl Drop for GivesUp {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(text: &str) -> Result<Asked, String> {
        let body: Body = serde_json::from_str(text).map_err(|e| e.to_string())?;
        read(body, &Caller::new("ann", 4, "acme"), Wall(10 * 3_600 * SECOND))
    }

    #[test]
    fn one_text_or_several_files_are_asked_about_over_the_hours_and_the_tenant_of_who_asks() {
        let asked = body(r#"{"policies": "id: a", "hours": 3}"#).unwrap();
        assert_eq!(asked.policies, BTreeMap::from([("policies.yaml".to_owned(), "id: a".to_owned())]));
        assert_eq!((asked.tenant.as_deref(), asked.since), (Some("acme"), Wall(7 * 3_600 * SECOND)));
        let asked = body(r#"{"policies": {"a.yaml": "x", "b.yaml": "y"}, "tenant_id": "*"}"#).unwrap();
        assert_eq!((asked.policies.len(), asked.tenant), (2, None));
        for bad in [r#"{"policies": {}}"#, r#"{"policies": "x", "hours": 0}"#, r#"{"policies": "x", "hours": 169}"#] {
            assert!(body(bad).is_err(), "{bad}");
        }
        assert!(body(r#"{"policies": "x", "hour": 1}"#).unwrap_err().contains("hour"), "nothing is overlooked");
    }
}
