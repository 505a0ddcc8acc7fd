//! The extended protocol: prepared statements, their parameters, and portals.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use arrow_pg::datatypes::df::deserialize_parameters;
use arrow_pg::datatypes::into_pg_type;
use datafusion::arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::ParamValues;
use datafusion::scalar::ScalarValue;
use pgwire::api::Type;
use pgwire::api::portal::{Format, Portal as Bound};
use pgwire::api::stmt::StoredStatement;
use pgwire::messages::PgWireBackendMessage as Out;
use pgwire::messages::data::{NoData, ParameterDescription};
use pgwire::messages::extendedquery::{
    Bind, BindComplete, Close, CloseComplete, Describe, Execute, Parse, ParseComplete, PortalSuspended,
    TARGET_TYPE_BYTE_PORTAL, TARGET_TYPE_BYTE_STATEMENT,
};
use pgwire::messages::response::{EmptyQueryResponse, TransactionStatus};

use super::admit::{self, Admitted};
use super::connection::{Connection, Trouble, has_rows, place, send};
use super::errors::SqlError;
use super::results::{Rows, description, fields};
use super::rewrite;
use super::session::Planned;

/// Prepared statements and portals of a connection at most.
const MAX_STATEMENTS: usize = 256;
const MAX_PORTALS: usize = 64;
/// Parameters of a statement at most.
const MAX_PARAMETERS: usize = 1_000;

/// What a text became.
#[derive(Debug, Clone)]
enum What {
    /// There was no statement in it.
    Nothing,
    Quick(Admitted),
    Rows(Planned),
}

#[derive(Debug, Clone)]
struct Prepared {
    what: What,
    /// Of each parameter: the type that it is sent as, and the one that it becomes.
    parameters: Vec<(Type, DataType)>,
}

struct Portal {
    what: What,
    format: Format,
    /// Once begun.
    rows: Option<Rows>,
    done: bool,
}

/// What a connection has prepared.
#[derive(Default)]
pub(super) struct Store {
    statements: HashMap<String, Prepared>,
    portals: HashMap<String, Portal>,
}

impl Store {
    /// At Sync: portals live as long as their transaction, and outside of one no longer.
    pub(super) fn end_of_batch(&mut self, status: TransactionStatus) {
        if status != TransactionStatus::Transaction {
            self.portals.clear();
        }
    }

    /// Forgets a statement, or all of them.
    pub(super) fn forget(&mut self, name: Option<&str>) {
        match name {
            Some(name) => _ = self.statements.remove(name),
            None => self.statements.clear(),
        }
    }
}

impl Connection {
    pub(super) async fn parse(&mut self, message: Parse) -> Result<(), Trouble> {
        let name = message.name.unwrap_or_default();
        if self.store.statements.len() >= MAX_STATEMENTS && !self.store.statements.contains_key(&name) {
            return Err(SqlError::TooMany(format!("more than {MAX_STATEMENTS} prepared statements")).into());
        }
        if message.type_oids.len() > MAX_PARAMETERS {
            return Err(SqlError::TooMany(format!("more than {MAX_PARAMETERS} parameters")).into());
        }
        let mut statements = admit::read(&message.query)?;
        if statements.len() > 1 {
            return Err(SqlError::Syntax("cannot insert multiple commands into a prepared statement".to_owned()).into());
        }
        let (what, parameters) = match statements.pop() {
            None => (What::Nothing, Vec::new()),
            Some(statement) => {
                self.alive(&statement)?;
                if has_rows(&statement) {
                    let lists = match &statement {
                        Admitted::Query(query) | Admitted::Explain(query) => rewrite::lists(query),
                        _ => BTreeSet::new(),
                    };
                    let (watched, _, session, _) = self.watched();
                    let planned = session.plan(statement, Some(&message.query));
                    let planned = watched.during(async { Ok(planned.await?) }).await?;
                    let parameters = parameters(&planned, &message.type_oids, &lists)?;
                    // with values of these types: what comes of them is known before there are any
                    let empty = parameters.iter().map(|(_, becomes)| ScalarValue::try_from(becomes)).collect::<Result<
                        Vec<_>,
                        _,
                    >>(
                    )?;
                    let typed = if empty.is_empty() {
                        planned.clone()
                    } else {
                        planned.clone().with(ParamValues::from(empty))?
                    };
                    fields(&typed.schema(), &Format::UnifiedText)?;
                    (What::Rows(planned), parameters)
                } else {
                    (What::Quick(statement), Vec::new())
                }
            }
        };
        self.store.statements.insert(name, Prepared { what, parameters });
        Ok(self.writer.put(&Out::ParseComplete(ParseComplete::new()))?)
    }

    pub(super) async fn bind(&mut self, message: &Bind) -> Result<(), Trouble> {
        let name = message.statement_name.clone().unwrap_or_default();
        let portal = message.portal_name.clone().unwrap_or_default();
        let prepared = self.store.statements.get(&name).ok_or_else(|| SqlError::NoStatement(name.clone()))?;
        if self.store.portals.len() >= MAX_PORTALS && !self.store.portals.contains_key(&portal) {
            return Err(SqlError::TooMany(format!("more than {MAX_PORTALS} portals")).into());
        }
        let (given, needed) = (message.parameters.len(), prepared.parameters.len());
        if given != needed {
            let text = format!(
                "bind message supplies {given} parameters, but prepared statement \"{name}\" requires {needed}"
            );
            return Err(SqlError::Protocol(text).into());
        }
        check_formats(&message.parameter_format_codes, given, "parameter")?;
        let types = prepared.parameters.iter().map(|(sent, _)| Some(sent.clone())).collect();
        let bound = Bound::try_new(message, Arc::new(StoredStatement::new(name, (), types))).map_err(SqlError::from)?;
        let what = match prepared.what.clone() {
            What::Rows(planned) => {
                let becomes: Vec<_> = prepared.parameters.iter().map(|(_, becomes)| Some(becomes)).collect();
                let values = deserialize_parameters(&bound, &becomes).map_err(SqlError::from)?;
                What::Rows(if needed == 0 { planned } else { planned.with(values)? })
            }
            other => other,
        };
        let columns = if let What::Rows(planned) = &what { planned.schema().fields().len() } else { 0 };
        check_formats(&message.result_column_format_codes, columns, "result")?;
        let format = bound.result_column_format;
        self.store.portals.insert(portal, Portal { what, format, rows: None, done: false });
        Ok(self.writer.put(&Out::BindComplete(BindComplete::new()))?)
    }

    pub(super) fn describe(&mut self, message: &Describe) -> Result<(), Trouble> {
        let name = message.name.clone().unwrap_or_default();
        let (what, format) = match message.target_type {
            TARGET_TYPE_BYTE_STATEMENT => {
                let prepared = self.store.statements.get(&name).ok_or_else(|| SqlError::NoStatement(name.clone()))?;
                let types = prepared.parameters.iter().map(|(sent, _)| sent.oid()).collect();
                self.writer.put(&Out::ParameterDescription(ParameterDescription::new(types)))?;
                let empty = prepared.parameters.iter().map(|(_, becomes)| ScalarValue::try_from(becomes));
                let empty = empty.collect::<Result<Vec<_>, _>>()?;
                let what = match prepared.what.clone() {
                    What::Rows(planned) if !empty.is_empty() => What::Rows(planned.with(ParamValues::from(empty))?),
                    other => other,
                };
                (what, Format::UnifiedText)
            }
            TARGET_TYPE_BYTE_PORTAL => {
                let portal = self.store.portals.get(&name).ok_or_else(|| SqlError::NoPortal(name.clone()))?;
                (portal.what.clone(), portal.format.clone())
            }
            other => return Err(SqlError::Protocol(format!("there is nothing of kind {other} to describe")).into()),
        };
        let told = match what {
            What::Rows(planned) => Out::RowDescription(description(&fields(&planned.schema(), &format)?)),
            What::Nothing | What::Quick(_) => Out::NoData(NoData::new()),
        };
        Ok(self.writer.put(&told)?)
    }

    pub(super) async fn execute(&mut self, message: &Execute) -> Result<(), Trouble> {
        let name = message.name.clone().unwrap_or_default();
        // none, and fewer than none, mean all
        let most = usize::try_from(message.max_rows).ok().filter(|most| *most > 0).unwrap_or(usize::MAX);
        let portal = self.store.portals.get(&name).ok_or_else(|| SqlError::NoPortal(name.clone()))?;
        match portal.what.clone() {
            What::Nothing => Ok(self.writer.put(&Out::EmptyQueryResponse(EmptyQueryResponse::new()))?),
            What::Quick(statement) => {
                self.alive(&statement)?;
                let tag = self.quick(statement)?;
                self.complete(tag)
            }
            What::Rows(planned) => {
                if self.status == TransactionStatus::Error {
                    return Err(SqlError::FailedTransaction.into());
                }
                let sql = self.sql.clone();
                let (watched, writer, session, store) = self.watched();
                let portal = store.portals.get_mut(&name).ok_or_else(|| SqlError::NoPortal(name.clone()))?;
                let described = planned.clone();
                let work = async {
                    if portal.done {
                        return Ok((0, false));
                    }
                    let _place = place(&sql).await?;
                    if portal.rows.is_none() {
                        let rows = session.run(planned.clone(), &portal.format).await?;
                        same_types(&rows, &planned, &portal.format)?;
                        portal.rows = Some(rows);
                    }
                    let Some(rows) = &mut portal.rows else { return Err(SqlError::Internal.into()) };
                    let (sent, more) = send(rows, writer, most, &sql.counts).await?;
                    if !more {
                        (portal.rows, portal.done) = (None, true);
                    }
                    Ok((sent, more))
                };
                match watched.during(work).await {
                    Ok((_, true)) => Ok(self.writer.put(&Out::PortalSuspended(PortalSuspended::new()))?),
                    Ok((sent, false)) => self.complete(described.tag(sent)),
                    Err(trouble) => {
                        self.store.portals.remove(&name);
                        Err(trouble)
                    }
                }
            }
        }
    }

    pub(super) fn close(&mut self, message: &Close) -> Result<(), Trouble> {
        let name = message.name.clone().unwrap_or_default();
        match message.target_type {
            TARGET_TYPE_BYTE_STATEMENT => _ = self.store.statements.remove(&name),
            TARGET_TYPE_BYTE_PORTAL => _ = self.store.portals.remove(&name),
            other => return Err(SqlError::Protocol(format!("there is nothing of kind {other} to close")).into()),
        }
        Ok(self.writer.put(&Out::CloseComplete(CloseComplete::new()))?)
    }
}

/// One format for all, or one for each, or none.
fn check_formats(codes: &[i16], of: usize, what: &str) -> Result<(), SqlError> {
    if codes.len() > 1 && codes.len() != of {
        return Err(SqlError::Protocol(format!("bind message has {} {what} formats but there are {of}", codes.len())));
    }
    if codes.iter().any(|code| !(0..=1).contains(code)) {
        return Err(SqlError::BadParameter("a format is 0 (text) or 1 (binary)".to_owned()));
    }
    Ok(())
}

/// What a client was told of the columns is what it gets.
fn same_types(rows: &Rows, planned: &Planned, format: &Format) -> Result<(), SqlError> {
    let told = fields(&planned.schema(), format)?;
    if told.iter().map(|field| field.datatype()).eq(rows.fields().iter().map(|field| field.datatype())) {
        return Ok(());
    }
    Err(SqlError::NotSupported(
        "the types of the columns depend on the parameters: give them by a cast, as in $1::text".to_owned(),
    ))
}

/// The types of `$1` and so on: what the client says, else what the query asks for, else text.
fn parameters(planned: &Planned, told: &[u32], lists: &BTreeSet<String>) -> Result<Vec<(Type, DataType)>, SqlError> {
    let asked = planned.plan().map(|plan| plan.get_parameter_types()).transpose()?.unwrap_or_default();
    let numbers = asked.keys().map(|name| name.trim_start_matches('$').parse::<usize>());
    let named = numbers.collect::<Result<Vec<_>, _>>();
    let most = named
        .map_err(|_| SqlError::Syntax("parameters are written as $1, $2 …".to_owned()))?
        .into_iter()
        .max()
        .unwrap_or(0);
    if most > MAX_PARAMETERS {
        return Err(SqlError::TooMany(format!("more than {MAX_PARAMETERS} parameters")));
    }
    let of = |n: usize| {
        let name = format!("${}", n + 1);
        let asked = asked.get(&name).cloned().flatten();
        let asked = if lists.contains(&name) { Some(list(DataType::Utf8)) } else { asked };
        match told.get(n).copied().filter(|oid| *oid != 0).and_then(Type::from_oid) {
            Some(sent) => Ok((sent.clone(), becomes(&sent, asked))),
            None => {
                let asked = asked.filter(|asked| *asked != DataType::Null).unwrap_or(DataType::Utf8);
                Ok((into_pg_type(&asked)?, asked))
            }
        }
    };
    (0..most.max(told.len())).map(of).collect()
}

/// What a value that the client sends as this type becomes: numbers in their widest form, and times with their zone. The query may make
/// something else of it.
fn becomes(sent: &Type, asked: Option<DataType>) -> DataType {
    match *sent {
        Type::INT2 | Type::INT4 | Type::INT8 => DataType::Int64,
        Type::FLOAT4 | Type::FLOAT8 | Type::NUMERIC => DataType::Float64,
        Type::TIMESTAMPTZ => DataType::Timestamp(TimeUnit::Microsecond, Some(Arc::from("UTC"))),
        Type::TIMESTAMP => DataType::Timestamp(TimeUnit::Microsecond, None),
        Type::BOOL => DataType::Boolean,
        Type::DATE => DataType::Date32,
        Type::TEXT_ARRAY | Type::VARCHAR_ARRAY => list(DataType::Utf8),
        Type::INT2_ARRAY => list(DataType::Int16),
        Type::INT4_ARRAY => list(DataType::Int32),
        Type::INT8_ARRAY => list(DataType::Int64),
        Type::FLOAT8_ARRAY => list(DataType::Float64),
        Type::TEXT | Type::VARCHAR => DataType::Utf8,
        _ => asked.filter(|asked| *asked != DataType::Null).unwrap_or(DataType::Utf8),
    }
}

fn list(of: DataType) -> DataType {
    DataType::new_list(of, true)
}
