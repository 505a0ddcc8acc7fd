//! Which statements are admitted: the only place that says so.
//!
//! What reads is admitted (SELECT, WITH, VALUES, EXPLAIN, SHOW), and what clients say about their session and transactions, which
//! changes nothing. All else is refused, wherever it stands in a statement. A text is measured before it is parsed, and its tree before it
//! is planned, so that neither the parser nor what comes after it meets what is deeper than a thread's stack, or takes the planner days: it
//! cannot be stopped while it plans.

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    BinaryOperator, Expr, Ident, ObjectName, Query, Reset, Select, Set, SetExpr, Statement, TableFactor, UtilityOption,
    Value, Visit as _, Visitor,
};
use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion::sql::sqlparser::parser::Parser;
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan, Tokenizer};

use super::MAX_SQL;
use super::errors::SqlError;

/// Statements of one text at most.
const MAX_STATEMENTS: usize = 100;
/// Parentheses and subqueries in one another at most.
const MAX_NESTING: usize = 50;
/// Words of one clause, lists aside, at most: what an expression is deep.
const MAX_CHAIN: usize = 1_000;
/// How deep an expression is at most. A step of a chain of AND and OR counts one, any other four: such chains are not walked deep.
const MAX_DEPTH: usize = 400;
/// Calls of functions in one another at most: the planner's work doubles with each.
const MAX_CALLS: usize = 10;
/// Queries in one another at most, likewise.
const MAX_QUERIES: usize = 8;
/// UNION, EXCEPT and INTERSECT in a row at most.
const MAX_SET_OPERATIONS: usize = 100;
/// Tables that a statement names at most, counted as often as they are named.
const MAX_RELATIONS: usize = 32;
/// Functions that stand where a table does.
const TABLE_FUNCTIONS: [&str; 6] =
    ["generate_series", "range", "unnest", "pg_get_keywords", "generate_subscripts", "string_to_array"];

/// Functions whose value is as large as one of their arguments says: no pool of memory counts it before it is there.
const UNBOUNDED: [&str; 10] = [
    "repeat",
    "lpad",
    "rpad",
    "array_repeat",
    "list_repeat",
    "array_resize",
    "list_resize",
    "generate_series",
    "gen_series",
    "range",
];

/// A statement that may be run.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Admitted {
    /// It reads.
    Query(Box<Statement>),
    /// How this query would be run.
    Explain(Box<Statement>),
    /// A setting, by its name in lower case; `all`.
    Show(String),
    /// A setting, and what it is set to; None: its default.
    Set(String, Option<String>),
    ResetAll,
    Begin,
    Commit,
    Rollback,
    RollbackTo,
    /// A prepared statement is not needed any more; None: none of them.
    Deallocate(Option<String>),
    DiscardAll,
    /// Accepted, and nothing is done; by its tag.
    Nothing(&'static str),
}

/// What a text holds, in order. None of it is run if one of it is refused.
pub(super) fn read(text: &str) -> Result<Vec<Admitted>, SqlError> {
    if text.len() > MAX_SQL {
        return Err(SqlError::TooMuch(format!("the statement is longer than {MAX_SQL} bytes")));
    }
    let dialect = PostgreSqlDialect {};
    let tokens =
        Tokenizer::new(&dialect, text).tokenize_with_location().map_err(|error| SqlError::Syntax(error.to_string()))?;
    measure(&tokens)?;
    let mut parser =
        Parser::new(&dialect).with_recursion_limit(MAX_NESTING).with_tokens_with_locations(abort_is_rollback(tokens));
    let statements = parser.parse_statements()?;
    if statements.len() > MAX_STATEMENTS {
        return Err(SqlError::TooComplex(format!("more than {MAX_STATEMENTS} statements at once")));
    }
    statements.into_iter().map(admit).collect()
}

/// Refuses what would become a tree too deep. An expression is as deep as the words between two commas of its level, and what stands in
/// parentheses is deeper than what it stands in.
fn measure(tokens: &[TokenWithSpan]) -> Result<(), SqlError> {
    let too_complex = |what: &str| Err(SqlError::TooComplex(format!("the statement is nested too deeply: {what}")));
    let (mut deep, mut outer) = (0_usize, Vec::new());
    // where the list that we are in began
    let mut base = 0;
    for token in tokens {
        match token.token {
            Token::Whitespace(_) => {}
            Token::LParen | Token::LBracket | Token::LBrace => {
                outer.push((deep, base));
                base = deep;
            }
            Token::RParen | Token::RBracket | Token::RBrace => {
                // one too many is the parser's to say
                (deep, base) = outer.pop().unwrap_or((deep, base));
                deep += 1;
            }
            Token::Comma => deep = base,
            Token::SemiColon => (deep, base) = (0, 0),
            _ => deep += 1,
        }
        if deep > MAX_CHAIN {
            return too_complex(
                "one expression of more than 1000 words; a list (IN (…), ANY) is not limited in this way",
            );
        }
        if outer.len() > 2 * MAX_NESTING {
            return too_complex("too many parentheses");
        }
    }
    Ok(())
}

/// ABORT is ROLLBACK to Postgres, and unknown to the parser.
fn abort_is_rollback(mut tokens: Vec<TokenWithSpan>) -> Vec<TokenWithSpan> {
    let mut begins = true;
    for token in &mut tokens {
        match &token.token {
            Token::Word(word) if begins && word.quote_style.is_none() && word.value.eq_ignore_ascii_case("abort") => {
                token.token = Token::make_keyword("ROLLBACK");
                begins = false;
            }
            Token::Whitespace(_) => {}
            other => begins = *other == Token::SemiColon,
        }
    }
    tokens
}

fn admit(statement: Statement) -> Result<Admitted, SqlError> {
    Ok(match statement {
        Statement::Query(_) => {
            reads_only(&statement)?;
            Admitted::Query(Box::new(statement))
        }
        Statement::Explain { analyze, statement, options, format, .. } => {
            let options = options.unwrap_or_default();
            if analyze || options.iter().any(|option| is_on(option, "analyze")) {
                return Err(SqlError::NotAllowed("EXPLAIN ANALYZE is not admitted here: it runs the query".to_owned()));
            }
            if format.is_some() || options.iter().any(is_other_format) {
                return Err(SqlError::NotSupported("EXPLAIN answers in text only".to_owned()));
            }
            if !matches!(*statement, Statement::Query(_)) {
                return Err(refusal(&statement));
            }
            reads_only(&statement)?;
            Admitted::Explain(statement)
        }
        Statement::ShowVariable { variable } => Admitted::Show(setting(&variable)),
        Statement::Set(set) => admit_set(set)?,
        Statement::Reset(reset) => match reset.reset {
            Reset::ALL => Admitted::ResetAll,
            Reset::ConfigurationParameter(name) => Admitted::Set(name_of(&name), None),
        },
        Statement::StartTransaction { statements, .. } if statements.is_empty() => Admitted::Begin,
        Statement::Commit { .. } => Admitted::Commit,
        Statement::Rollback { savepoint: None, .. } => Admitted::Rollback,
        Statement::Rollback { .. } => Admitted::RollbackTo,
        Statement::Savepoint { .. } => Admitted::Nothing("SAVEPOINT"),
        Statement::ReleaseSavepoint { .. } => Admitted::Nothing("RELEASE"),
        Statement::Deallocate { name, .. } if name.quote_style.is_none() && name.value.eq_ignore_ascii_case("all") => {
            Admitted::Deallocate(None)
        }
        Statement::Deallocate { name, .. } => Admitted::Deallocate(Some(name.value)),
        Statement::Discard { .. } => Admitted::DiscardAll,
        other => return Err(refusal(&other)),
    })
}

fn admit_set(set: Set) -> Result<Admitted, SqlError> {
    Ok(match set {
        Set::SingleAssignment { variable, values, .. } => Admitted::Set(name_of(&variable), value_of(&values)),
        Set::SetTimeZone { value, .. } => Admitted::Set("timezone".to_owned(), value_of(&[value])),
        Set::SetNames { charset_name, .. } => Admitted::Set("client_encoding".to_owned(), Some(charset_name.value)),
        Set::SetNamesDefault {} => Admitted::Set("client_encoding".to_owned(), None),
        Set::SetTransaction { snapshot: None, .. } => Admitted::Nothing("SET"),
        other => return Err(SqlError::NotAllowed(format!("{other} is not admitted here"))),
    })
}

fn setting(words: &[Ident]) -> String {
    let words: Vec<String> = words.iter().map(|word| word.value.to_lowercase()).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["time", "zone"] => "timezone".to_owned(),
        ["transaction", "isolation", "level"] => "transaction_isolation".to_owned(),
        ["session", "authorization"] => "session_authorization".to_owned(),
        _ => words.join("."),
    }
}

fn name_of(name: &ObjectName) -> String {
    let parts = name.0.iter().map(|part| part.as_ident().map_or_else(|| part.to_string(), |ident| ident.value.clone()));
    parts.collect::<Vec<_>>().join(".").to_lowercase()
}

/// None: DEFAULT.
fn value_of(values: &[Expr]) -> Option<String> {
    if let [Expr::Identifier(word)] = values
        && word.quote_style.is_none()
        && word.value.eq_ignore_ascii_case("default")
    {
        return None;
    }
    let texts = values.iter().map(|value| match value {
        Expr::Value(value) => match &value.value {
            Value::SingleQuotedString(text) => text.clone(),
            other => other.to_string(),
        },
        Expr::Identifier(word) => word.value.clone(),
        other => other.to_string(),
    });
    Some(texts.collect::<Vec<_>>().join(", "))
}

fn is_on(option: &UtilityOption, name: &str) -> bool {
    let off = |arg: &Expr| ["false", "off", "0"].contains(&arg.to_string().to_lowercase().as_str());
    option.name.value.eq_ignore_ascii_case(name) && !option.arg.as_ref().is_some_and(off)
}

fn is_other_format(option: &UtilityOption) -> bool {
    let text = |arg: &Expr| arg.to_string().eq_ignore_ascii_case("text");
    option.name.value.eq_ignore_ascii_case("format") && !option.arg.as_ref().is_some_and(text)
}

/// Looks through all of a query, however deep, for what does more than read.
fn reads_only(query: &Statement) -> Result<(), SqlError> {
    let mut look = Look::default();
    match query.visit(&mut look) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(error) => Err(error),
    }
}

#[derive(Default)]
struct Look {
    inside: bool,
    relations: usize,
    // how deep we are
    depth: usize,
    calls: usize,
    queries: usize,
}

fn too_deep(what: &str, most: usize) -> ControlFlow<SqlError> {
    ControlFlow::Break(SqlError::TooComplex(format!("the statement is nested too deeply: more than {most} {what}")))
}

/// What an expression adds to the depth, and whether it calls a function.
fn weight(expr: &Expr) -> (usize, bool) {
    let chain = matches!(expr, Expr::BinaryOp { op: BinaryOperator::And | BinaryOperator::Or, .. });
    (if chain { 1 } else { 4 }, matches!(expr, Expr::Function(_)))
}

impl Visitor for Look {
    type Break = SqlError;

    fn pre_visit_statement(&mut self, statement: &Statement) -> ControlFlow<SqlError> {
        // the query itself is one; one within it is not
        if std::mem::replace(&mut self.inside, true) {
            ControlFlow::Break(refusal(statement))
        } else {
            ControlFlow::Continue(())
        }
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<SqlError> {
        if let Expr::Function(function) = expr
            && UNBOUNDED.contains(&last_of(&function.name).as_str())
        {
            let text =
                format!("the function {} is not admitted here: its value can be larger than memory", function.name);
            return ControlFlow::Break(SqlError::NotAllowed(text));
        }
        let (depth, calls) = weight(expr);
        self.depth += depth;
        self.calls += usize::from(calls);
        match self {
            Self { depth, .. } if *depth > MAX_DEPTH => too_deep("operators in one another", MAX_DEPTH / 4),
            Self { calls, .. } if *calls > MAX_CALLS => too_deep("functions in one another", MAX_CALLS),
            _ => ControlFlow::Continue(()),
        }
    }

    fn post_visit_expr(&mut self, expr: &Expr) -> ControlFlow<SqlError> {
        let (depth, calls) = weight(expr);
        self.depth -= depth;
        self.calls -= usize::from(calls);
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _: &Query) -> ControlFlow<SqlError> {
        self.queries -= 1;
        ControlFlow::Continue(())
    }

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<SqlError> {
        self.queries += 1;
        if self.queries > MAX_QUERIES {
            return too_deep("queries in one another", MAX_QUERIES);
        }
        let (mut body, mut row) = (&*query.body, 0);
        while let SetExpr::SetOperation { left, .. } = body {
            (body, row) = (left, row + 1);
        }
        if row > MAX_SET_OPERATIONS {
            return too_deep("set operations in a row", MAX_SET_OPERATIONS);
        }
        if !query.locks.is_empty() {
            return ControlFlow::Break(SqlError::ReadOnly("SELECT FOR UPDATE or SHARE".to_owned()));
        }
        if query.for_clause.is_some()
            || query.settings.is_some()
            || query.format_clause.is_some()
            || !query.pipe_operators.is_empty()
        {
            return ControlFlow::Break(SqlError::NotAllowed("this is not a query of Postgres".to_owned()));
        }
        match &*query.body {
            SetExpr::Insert(statement)
            | SetExpr::Update(statement)
            | SetExpr::Delete(statement)
            | SetExpr::Merge(statement) => ControlFlow::Break(refusal(statement)),
            _ => ControlFlow::Continue(()),
        }
    }

    fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<SqlError> {
        if select.into.is_some() {
            return ControlFlow::Break(SqlError::ReadOnly("SELECT INTO".to_owned()));
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_relation(&mut self, relation: &ObjectName) -> ControlFlow<SqlError> {
        self.relations += 1;
        if self.relations > MAX_RELATIONS {
            return ControlFlow::Break(SqlError::TooComplex(format!(
                "the statement names more than {MAX_RELATIONS} tables"
            )));
        }
        let quoted = |part: &Ident| part.quote_style == Some('\'') || part.value.contains(['/', '\\']);
        if relation.0.iter().any(|part| part.as_ident().is_some_and(quoted)) {
            return ControlFlow::Break(SqlError::NotAllowed(format!(
                "{relation} is not a table; files are not read here"
            )));
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<SqlError> {
        let called = match factor {
            TableFactor::Table { name, args: Some(_), .. } | TableFactor::Function { name, .. } => last_of(name),
            TableFactor::TableFunction { expr, .. } => expr.to_string(),
            TableFactor::Table { args: None, .. }
            | TableFactor::Derived { .. }
            | TableFactor::UNNEST { .. }
            | TableFactor::NestedJoin { .. } => return ControlFlow::Continue(()),
            other => return ControlFlow::Break(SqlError::NotAllowed(format!("{other} is not admitted here"))),
        };
        if TABLE_FUNCTIONS.contains(&called.as_str()) {
            return ControlFlow::Continue(());
        }
        ControlFlow::Break(SqlError::NotAllowed(format!(
            "the function {called} is not admitted in the place of a table"
        )))
    }
}

fn last_of(name: &ObjectName) -> String {
    name.0.last().and_then(|part| part.as_ident()).map(|ident| ident.value.to_lowercase()).unwrap_or_default()
}

fn refusal(statement: &Statement) -> SqlError {
    let text = statement.to_string();
    let mut words = text.split(|c: char| !c.is_ascii_alphabetic()).filter(|word| !word.is_empty());
    let first = words.next().unwrap_or("this").to_uppercase();
    match first.as_str() {
        "CREATE" | "DROP" | "ALTER" => {
            let second = words.next().unwrap_or_default().to_uppercase();
            SqlError::ReadOnly(format!("{first} {second}"))
        }
        "INSERT" | "UPDATE" | "DELETE" | "MERGE" | "TRUNCATE" | "COPY" | "GRANT" | "REVOKE" | "COMMENT" | "VACUUM"
        | "ANALYZE" | "REPLACE" | "LOCK" | "WITH" => SqlError::ReadOnly(first),
        "DECLARE" | "FETCH" | "CLOSE" | "PREPARE" | "EXECUTE" => SqlError::NotSupported(format!(
            "{first} is not supported; the extended protocol has prepared statements and portals"
        )),
        _ => SqlError::NotAllowed(format!("{first} is not admitted here")),
    }
}

#[cfg(test)]
mod tests;
