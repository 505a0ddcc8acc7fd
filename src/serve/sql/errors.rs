//! What can go wrong, as a client is told: SQLSTATE and one line of text.
//!
//! What DataFusion says of a wrong query is passed on without its internals. What it says of our own trouble (files, bugs) is logged, and
//! the client is told only that there was trouble: such messages hold paths.

use std::io;

use datafusion::common::SchemaError;
use datafusion::error::DataFusionError;
use datafusion::sql::sqlparser::parser::ParserError;
use pgwire::error::{ErrorInfo, PgWireError};
use pgwire::messages::response::ErrorResponse;

use super::functions::UNKNOWN_SETTING;

/// Characters of a message at most.
const MAX_MESSAGE: usize = 1000;

/// The connection is of no more use.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("a message that cannot be understood: {0}")]
    Protocol(String),
    #[error("a message of {0} bytes: {1} is the most")]
    TooLarge(usize, usize),
}

impl From<PgWireError> for WireError {
    fn from(error: PgWireError) -> Self {
        match error {
            PgWireError::IoError(error) => Self::Io(error),
            error => Self::Protocol(error.to_string()),
        }
    }
}

/// Why a statement was not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum SqlError {
    #[error("cannot execute {0}: this server only reads")]
    ReadOnly(String),
    #[error("{0}")]
    NotAllowed(String),
    #[error("{0}")]
    NotSupported(String),
    #[error("{0}")]
    Syntax(String),
    #[error("{0}")]
    UnknownTable(String),
    #[error("{0}")]
    UnknownColumn(String),
    #[error("{0}")]
    UnknownFunction(String),
    #[error("{0}")]
    Ambiguous(String),
    /// The query cannot be planned, for another reason.
    #[error("{0}")]
    Invalid(String),
    /// It failed at a value.
    #[error("{0}")]
    Data(String),
    #[error("{0}")]
    BadParameter(String),
    #[error("unrecognized configuration parameter \"{0}\"")]
    UnknownSetting(String),
    #[error("{0}")]
    TooMuch(String),
    #[error("{0}")]
    TooComplex(String),
    #[error("out of memory for queries: {0}")]
    OutOfMemory(String),
    #[error("{0}")]
    TooMany(String),
    #[error("canceling statement due to statement timeout")]
    TimedOut,
    #[error("canceling statement due to user request")]
    Cancelled,
    #[error("current transaction is aborted, commands ignored until end of transaction block")]
    FailedTransaction,
    #[error("prepared statement \"{0}\" does not exist")]
    NoStatement(String),
    #[error("portal \"{0}\" does not exist")]
    NoPortal(String),
    #[error("{0}")]
    Protocol(String),
    #[error("the server could not answer; its log says why")]
    Internal,
}

impl SqlError {
    pub(super) fn code(&self) -> &'static str {
        match self {
            Self::ReadOnly(_) => "25006",
            Self::NotAllowed(_) => "42501",
            Self::NotSupported(_) => "0A000",
            Self::Syntax(_) => "42601",
            Self::UnknownTable(_) => "42P01",
            Self::UnknownColumn(_) => "42703",
            Self::UnknownFunction(_) => "42883",
            Self::Ambiguous(_) => "42702",
            Self::Invalid(_) => "42000",
            Self::Data(_) => "22000",
            Self::BadParameter(_) => "22023",
            Self::UnknownSetting(_) => "42704",
            Self::TooMuch(_) => "54000",
            Self::TooComplex(_) => "54001",
            Self::OutOfMemory(_) => "53200",
            Self::TooMany(_) => "53400",
            Self::TimedOut | Self::Cancelled => "57014",
            Self::FailedTransaction => "25P02",
            Self::NoStatement(_) => "26000",
            Self::NoPortal(_) => "34000",
            Self::Protocol(_) => "08P01",
            Self::Internal => "XX000",
        }
    }

    pub(super) fn response(&self) -> ErrorResponse {
        response("ERROR", self.code(), &self.to_string())
    }
}

/// An error that ends the connection.
pub(super) fn fatal(code: &str, message: &str) -> ErrorResponse {
    response("FATAL", code, message)
}

fn response(severity: &str, code: &str, message: &str) -> ErrorResponse {
    let mut info = ErrorInfo::new(severity.to_owned(), code.to_owned(), message.chars().take(MAX_MESSAGE).collect());
    info.severity_nonlocalized = Some(severity.to_owned());
    info.into()
}

impl From<ParserError> for SqlError {
    fn from(error: ParserError) -> Self {
        match error {
            ParserError::TokenizerError(text) | ParserError::ParserError(text) => Self::Syntax(text),
            ParserError::RecursionLimitExceeded => Self::TooComplex("the statement is nested too deeply".to_owned()),
        }
    }
}

impl From<DataFusionError> for SqlError {
    fn from(error: DataFusionError) -> Self {
        match error.find_root() {
            DataFusionError::SQL(parser, _) => (**parser).clone().into(),
            DataFusionError::SchemaError(schema, _) => {
                let text = clean(&schema.to_string());
                match **schema {
                    SchemaError::FieldNotFound { .. } => Self::UnknownColumn(text),
                    SchemaError::AmbiguousReference { .. } => Self::Ambiguous(text),
                    _ => Self::Invalid(text),
                }
            }
            DataFusionError::Plan(text) => planned(text),
            DataFusionError::NotImplemented(text) => Self::NotSupported(clean(text)),
            DataFusionError::Execution(text) => match text.strip_prefix(UNKNOWN_SETTING) {
                Some(name) => Self::UnknownSetting(clean(name).trim_matches('"').to_owned()),
                None => Self::Data(clean(text)),
            },
            DataFusionError::ArrowError(arrow, _) => Self::Data(clean(&arrow.to_string())),
            DataFusionError::ResourcesExhausted(text) => Self::OutOfMemory(first_line(text)),
            DataFusionError::Collection(errors) if !errors.is_empty() => {
                // the first of several mistakes of the same query; they are not `Clone`
                Self::Invalid(clean(&errors[0].strip_backtrace()))
            }
            other => {
                tracing::error!(error = %other, "a query over SQL failed");
                Self::Internal
            }
        }
    }
}

fn planned(text: &str) -> SqlError {
    let text = clean(text);
    if let Some(name) = text.strip_prefix("table '").and_then(|rest| rest.strip_suffix("' not found")) {
        let name = name.strip_prefix("datafusion.").unwrap_or(name);
        return SqlError::UnknownTable(format!("relation \"{}\" does not exist", name.trim_start_matches("public.")));
    }
    if text.starts_with("Invalid function")
        || text.contains("Failed to coerce arguments")
        || text.starts_with("table function")
    {
        return SqlError::UnknownFunction(text);
    }
    SqlError::Invalid(text)
}

/// Without a backtrace, and in one line.
fn clean(text: &str) -> String {
    let text = text.split("\n\nbacktrace:").next().unwrap_or(text);
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn first_line(text: &str) -> String {
    clean(text.lines().next().unwrap_or(text))
}

impl From<PgWireError> for SqlError {
    fn from(error: PgWireError) -> Self {
        let info = ErrorInfo::from(error);
        match info.code.as_str() {
            "22023" => Self::BadParameter(info.message),
            "22P02" => Self::Data(info.message),
            _ if info.message.starts_with("Unsupported") => Self::NotSupported(info.message),
            _ => Self::Data(info.message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_our_own_trouble_stay_in_the_log() {
        let hidden = [
            DataFusionError::IoError(io::Error::other("/data/segments/0001.parquet: no such file")),
            DataFusionError::External("/data/segments/0001.parquet".into()),
            DataFusionError::Internal("assertion in /build/src/x.rs".into()),
        ];
        for error in hidden {
            let told = SqlError::from(error.context("reading"));
            assert_eq!((told.code(), told.to_string().contains('/')), ("XX000", false));
        }
    }

    #[test]
    fn a_wrong_query_is_told_by_its_code() {
        let of = |text: &str| SqlError::from(DataFusionError::Plan(text.to_owned()));
        let unknown = of("table 'datafusion.public.nothing' not found");
        assert_eq!((unknown.code(), unknown.to_string().as_str()), ("42P01", "relation \"nothing\" does not exist"));
        assert_eq!(of("Invalid function 'x'.\nDid you mean 'y'?").code(), "42883");
        assert_eq!(of("anything else").code(), "42000");
        assert_eq!(
            SqlError::from(DataFusionError::Execution("Cast error\n\nbacktrace:   0: std".into())).to_string(),
            "Cast error"
        );
        assert_eq!(SqlError::from(ParserError::RecursionLimitExceeded).code(), "54001");
    }
}
