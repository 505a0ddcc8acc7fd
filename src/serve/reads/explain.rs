//! `/api/v1/explain/{id}` (X9): why something was decided, and whether it is decided again. It reads the topics and runs steps again, which
//! takes long, so there is one at a time.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::IntoResponse as _;
use axum::routing::get;
use axum::{Json, Router};
use datafusion::scalar::ScalarValue;
use serde_json::Value;
use tokio::sync::Semaphore;

use super::{Answer, Asked, again, asking, unanswered};
use crate::serve::access::Caller;
use crate::serve::http::{Views, problem};

/// How long it may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest id.
const MAX_ID: usize = 64;

/// Why there is no explanation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unexplained {
    /// There is no such decision on the topics.
    #[error("{0}")]
    Unknown(String),
    /// The topics cannot be read, or what is on them.
    #[error("{0}")]
    Failed(String),
}

/// Explains a decision by its id. It may take long.
pub type Explain = Arc<dyn Fn(&str) -> Result<Value, Unexplained> + Send + Sync>;

/// Explains one at a time.
#[derive(Clone)]
pub struct Explainer {
    explain: Explain,
    place: Arc<Semaphore>,
}

impl Explainer {
    /// By this.
    pub fn new(explain: Explain) -> Self {
        Self { explain, place: Arc::new(Semaphore::new(1)) }
    }
}

pub(super) fn routes() -> Router<Views> {
    Router::new().route("/api/v1/explain/{id}", get(explain))
}

/// A decision of whoever asks: looked for in the tables, so that nobody is told of another's, and nothing is searched for in vain.
const FOUND: &str = "SELECT tenant_id FROM signals WHERE signal_id = $1 UNION ALL \
                     SELECT tenant_id FROM interventions WHERE intervention_id = $1 UNION ALL \
                     SELECT tenant_id FROM alerts WHERE alert_id = $1 UNION ALL \
                     SELECT tenant_id FROM audit WHERE audit_id = $1";

async fn explain(State(views): State<Views>, caller: Caller, Path(id): Path<String>, asked: Asked) -> Answer {
    let asking = asking(&views, &caller, asked, &["tenant_id"]).await?;
    let unknown = || problem(StatusCode::NOT_FOUND, &format!("there is no decision {id:?} here, or it is too old"));
    let Some(explainer) = views.explainer.clone() else {
        return Err(problem(StatusCode::NOT_FOUND, "this process explains nothing: ask one with the role serve"));
    };
    if id.len() > MAX_ID {
        return Err(unknown());
    }
    let found = asking.flat(FOUND, vec![ScalarValue::from(id.as_str())]).await.map_err(|error| unanswered(&error))?;
    if found.is_empty() {
        return Err(unknown());
    }
    let Ok(place) = Arc::clone(&explainer.place).try_acquire_owned() else {
        return Err(again(StatusCode::SERVICE_UNAVAILABLE, "something else is being explained: ask again", "5"));
    };
    let name = id.clone();
    let task = tokio::task::spawn_blocking(move || {
        let _place = place;
        (explainer.explain)(&name)
    });
    match tokio::time::timeout(PATIENCE, task).await {
        Ok(Ok(Ok(explained))) => Ok(Json(explained).into_response()),
        Ok(Ok(Err(Unexplained::Unknown(why)))) => Err(problem(StatusCode::NOT_FOUND, &why)),
        Ok(Ok(Err(Unexplained::Failed(why)))) => Err(again(StatusCode::SERVICE_UNAVAILABLE, &why, "5")),
        Ok(Err(error)) => {
            tracing::error!(%error, id, "explaining a decision failed");
            Err(problem(StatusCode::INTERNAL_SERVER_ERROR, "it could not be explained; the log says why"))
        }
        Err(_) => Err(again(
            StatusCode::SERVICE_UNAVAILABLE,
            "it takes too long here: `runwarden explain` has no limit",
            "60",
        )),
    }
}
