//! What is wrong with a request, as `application/problem+json` (RFC 9457).

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::Value;

use crate::serve::access::Denied;
use crate::serve::api::denied;
use crate::serve::http::problem_with;

/// What is wrong.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub(super) enum Problem {
    /// Who asks may not.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// Anything else.
    #[error("{detail}")]
    Other {
        /// Of the answer.
        status: StatusCode,
        /// In words.
        detail: String,
        /// Members beside those that every problem has.
        members: Vec<(&'static str, Value)>,
        /// When to come again, in seconds.
        again: Option<u16>,
    },
}

impl Problem {
    pub(super) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self::Other { status, detail: detail.into(), members: Vec::new(), again: None }
    }

    /// With a member of its own.
    #[must_use]
    pub(super) fn with(mut self, name: &'static str, value: Value) -> Self {
        if let Self::Other { members, .. } = &mut self {
            members.push((name, value));
        }
        self
    }

    /// That says when to come again.
    #[must_use]
    pub(super) fn after(mut self, seconds: u16) -> Self {
        if let Self::Other { again, .. } = &mut self {
            *again = Some(seconds);
        }
        self
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        match self {
            Self::Denied(why) => denied(why),
            Self::Other { status, detail, members, again } => {
                let mut response = problem_with(status, &detail, members);
                if let Some(seconds) = again {
                    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
                }
                response
            }
        }
    }
}
