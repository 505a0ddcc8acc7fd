//! What OTLP clients are told, in the encoding they asked in.

use std::io::Write as _;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use flate2::Compression;
use flate2::write::GzEncoder;
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTracePartialSuccess, ExportTraceServiceResponse};
use prost::Message;
use serde_json::json;

use crate::telemetry::otlp::Encoding;

/// `google.rpc.Status`, without details.
#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
}

/// An answer under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// Taken, but for so many; what they are called in JSON; why.
    Taken { rejected: u64, called: &'static str, why: String },
    /// Not taken.
    Refused { status: StatusCode, why: String },
}

impl Answer {
    pub fn refused(status: StatusCode, why: impl Into<String>) -> Self {
        Self::Refused { status, why: why.into() }
    }

    pub fn status(&self) -> StatusCode {
        match self {
            Self::Taken { .. } => StatusCode::OK,
            Self::Refused { status, .. } => *status,
        }
    }

    /// Written out; packed for a client that takes it so.
    pub fn response(&self, encoding: Encoding, asked: &HeaderMap) -> Response {
        let body = match encoding {
            Encoding::Proto => self.proto(),
            Encoding::Json => self.json().to_string().into_bytes(),
        };
        let kind = match encoding {
            Encoding::Proto => "application/x-protobuf",
            Encoding::Json => "application/json",
        };
        let packed = takes_gzip(asked).then(|| pack(&body)).flatten();
        let is_packed = packed.is_some();
        let mut response = (self.status(), Body::from(packed.unwrap_or(body))).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        if is_packed {
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        if matches!(self.status(), StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if self.status() == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }

    fn proto(&self) -> Vec<u8> {
        match self {
            // those of metrics and logs have the same fields
            Self::Taken { rejected, why, .. } => {
                let partial = ExportTracePartialSuccess {
                    rejected_spans: i64::try_from(*rejected).unwrap_or(i64::MAX),
                    error_message: why.clone(),
                };
                ExportTraceServiceResponse { partial_success: (*rejected > 0).then_some(partial) }.encode_to_vec()
            }
            Self::Refused { status, why } => Status { code: code(*status), message: why.clone() }.encode_to_vec(),
        }
    }

    fn json(&self) -> serde_json::Value {
        match self {
            Self::Taken { rejected: 0, .. } => json!({}),
            Self::Taken { rejected, called, why } => {
                json!({"partialSuccess": {*called: rejected.to_string(), "errorMessage": why}})
            }
            Self::Refused { status, why } => json!({"code": code(*status), "message": why}),
        }
    }
}

/// The code of gRPC that a status stands for.
fn code(status: StatusCode) -> i32 {
    match status {
        StatusCode::UNAUTHORIZED => 16,
        StatusCode::FORBIDDEN => 7,
        StatusCode::NOT_FOUND => 5,
        StatusCode::METHOD_NOT_ALLOWED => 12,
        StatusCode::REQUEST_TIMEOUT => 4,
        StatusCode::PAYLOAD_TOO_LARGE | StatusCode::TOO_MANY_REQUESTS => 8,
        StatusCode::SERVICE_UNAVAILABLE => 14,
        _ => 3,
    }
}

fn takes_gzip(headers: &HeaderMap) -> bool {
    let listed = headers.get_all(header::ACCEPT_ENCODING).into_iter().filter_map(|value| value.to_str().ok());
    let wants = |item: &str| {
        let (name, weight) = item.split_once(';').unwrap_or((item, ""));
        let weight = weight.trim().strip_prefix("q=").map_or(1.0, |q| q.trim().parse().unwrap_or(0.0));
        matches!(name.trim(), "gzip" | "*") && weight > 0.0
    };
    listed.flat_map(|list| list.split(',')).any(wants)
}

fn pack(body: &[u8]) -> Option<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(body).ok()?;
    encoder.finish().ok()
}
