//! From the parameters of a request to a question, and from its answer to a page.
//!
//! Every value is a parameter of the question, never a part of its text; what is text comes from [`super::lists`] alone.

use std::collections::BTreeMap;

use datafusion::arrow::array::{AsArray as _, RecordBatch};
use datafusion::arrow::datatypes::Int64Type;
use datafusion::scalar::ScalarValue;
use serde_json::{Map, Value, json};

use super::lists::{Filter, How, List, Shape};
use crate::clock::{Micros, SECOND, Wall, rfc3339};
use crate::serve::tables::{QueryError, Scope, Tables, rows, schema};
use crate::telemetry::parse_time;

/// Most items of a page.
pub const MAX_LIMIT: u32 = 100;
/// Most items that may be passed over: pages are for people, and whoever wants everything asks in SQL.
pub const MAX_OFFSET: u32 = 100_000;
/// Longest value of a parameter, in bytes.
const MAX_VALUE: usize = 512;
/// Parameters of every list.
pub const COMMON: [(&str, &str); 4] = [
    ("tenant_id", "whose; for callers of all tenants"),
    ("limit", "items of a page, 1 to 100"),
    ("offset", "items to pass over"),
    ("after", "the `offset` of an answer to a write: what it did is seen"),
];

/// The parameters of a request, each once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Given(BTreeMap<String, String>);

impl Given {
    /// Reads them; `known` are all there are.
    ///
    /// # Errors
    /// In words.
    pub fn read(pairs: Vec<(String, String)>, known: &[&str]) -> Result<Self, String> {
        let mut given = BTreeMap::new();
        for (name, value) in pairs {
            if !known.contains(&name.as_str()) {
                let near = known.iter().find(|known| strsim::jaro_winkler(known, &name) > 0.85);
                let near = near.map(|near| format!(", did you mean {near}?")).unwrap_or_default();
                return Err(format!("there is no parameter {name:?}{near}; parameters are {}", known.join(" ")));
            }
            if value.len() > MAX_VALUE {
                return Err(format!("{name} has at most {MAX_VALUE} bytes"));
            }
            if given.insert(name.clone(), value).is_some() {
                return Err(format!("{name} is given twice"));
            }
        }
        Ok(Self(given))
    }

    /// A parameter that is there and not empty.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// A whole number within bounds.
    ///
    /// # Errors
    /// It is none, or outside.
    pub fn number(&self, name: &str, least: u32, most: u32) -> Result<Option<u32>, String> {
        let Some(text) = self.get(name) else { return Ok(None) };
        let number = text.parse().ok().filter(|number| (least..=most).contains(number));
        number.map(Some).ok_or_else(|| format!("{name} is a whole number of {least} to {most}, not {text:?}"))
    }

    /// True or false.
    ///
    /// # Errors
    /// It is neither.
    pub fn flag(&self, name: &str) -> Result<Option<bool>, String> {
        match self.get(name) {
            None => Ok(None),
            Some(text) if text.eq_ignore_ascii_case("true") => Ok(Some(true)),
            Some(text) if text.eq_ignore_ascii_case("false") => Ok(Some(false)),
            Some(text) => Err(format!("{name} is true or false, not {text:?}")),
        }
    }
}

/// The conditions of a question, and what they were made of.
#[derive(Debug, Default)]
pub struct Conditions {
    text: Vec<String>,
    /// The parameters of the question.
    pub values: Vec<ScalarValue>,
    /// What is shown as `filters_applied`.
    pub applied: Map<String, Value>,
}

/// A point in time as a parameter.
pub fn at(time: Micros) -> ScalarValue {
    ScalarValue::TimestampMicrosecond(Some(time), Some("UTC".into()))
}

impl Conditions {
    /// One more condition; `{}` is where the value goes.
    pub fn add(&mut self, text: &str, value: ScalarValue) {
        self.values.push(value);
        self.text.push(text.replace("{}", &format!("${}", self.values.len())));
    }

    /// One more condition without a value.
    pub fn only(&mut self, text: &str) {
        if !text.is_empty() {
            self.text.push(format!("({text})"));
        }
    }

    /// ` WHERE …`, or nothing.
    pub fn text(&self) -> String {
        if self.text.is_empty() { String::new() } else { format!(" WHERE {}", self.text.join(" AND ")) }
    }

    fn filter(&mut self, filter: &Filter, given: &Given, now: Wall) -> Result<(), String> {
        let Filter { name, column, how, default } = *filter;
        let value = given.get(name).or(default);
        match how {
            How::Word(words) => {
                let Some(value) = value else { return Ok(()) };
                let word = words.iter().find(|word| word.eq_ignore_ascii_case(value));
                let word = word.ok_or_else(|| format!("{name} is one of {}, not {value:?}", words.join(" ")))?;
                self.add(&format!("{column} = {{}}"), ScalarValue::from(*word));
                self.applied.insert(name.to_owned(), json!(word));
            }
            How::Condition(words) => {
                let Some(value) = value else { return Ok(()) };
                let found = words.iter().find(|(word, _)| word.eq_ignore_ascii_case(value));
                let (word, condition) = found.ok_or_else(|| {
                    let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
                    format!("{name} is one of {}, not {value:?}", words.join(" "))
                })?;
                self.only(condition);
                self.applied.insert(name.to_owned(), json!(word));
            }
            How::Prefix => {
                let Some(value) = value else { return Ok(()) };
                let value = value.to_ascii_uppercase();
                match value.strip_suffix('*') {
                    Some(beginning) => self.add(&format!("starts_with({column}, {{}})"), ScalarValue::from(beginning)),
                    None => self.add(&format!("{column} = {{}}"), ScalarValue::from(value.as_str())),
                }
                self.applied.insert(name.to_owned(), json!(value));
            }
            How::Text => {
                let Some(value) = value else { return Ok(()) };
                self.add(&format!("{column} = {{}}"), ScalarValue::from(value));
                self.applied.insert(name.to_owned(), json!(value));
            }
            How::After | How::Before => {
                let Some(value) = value else { return Ok(()) };
                let time = time_of(value).ok_or_else(|| {
                    format!("{name} is a time as RFC 3339 with an offset, or milliseconds since 1970, not {value:?}")
                })?;
                let compare = if how == How::After { ">=" } else { "<" };
                self.add(&format!("{column} {compare} {{}}"), at(time));
                self.applied.insert(name.to_owned(), json!(rfc3339(time)));
            }
            How::Least => {
                let Some(value) = value else { return Ok(()) };
                let number: f64 = value
                    .parse()
                    .ok()
                    .filter(|number| (0.0..=1.0).contains(number))
                    .ok_or_else(|| format!("{name} is a number of 0 to 1, not {value:?}"))?;
                self.add(&format!("{column} >= {{}}"), ScalarValue::from(number));
                self.applied.insert(name.to_owned(), json!(number));
            }
            How::Hours(default) => {
                let Some(hours) = given.number(name, 1, 720)?.or(default) else { return Ok(()) };
                self.add(&format!("{column} >= {{}}"), at(now.0.saturating_sub(Micros::from(hours) * 3_600 * SECOND)));
                self.applied.insert(name.to_owned(), json!(hours));
            }
            How::Synthetic => {
                let include = given.flag(name)?.unwrap_or(false);
                if !include {
                    self.only(&format!("{column} IS NOT TRUE"));
                }
                self.applied.insert(name.to_owned(), json!(include));
            }
            How::Flag => {
                let Some(flag) = given.flag(name)? else { return Ok(()) };
                self.only(&format!("{column} IS {}", if flag { "TRUE" } else { "NOT TRUE" }));
                self.applied.insert(name.to_owned(), json!(flag));
            }
        }
        Ok(())
    }

    /// Those of a list.
    ///
    /// # Errors
    /// In words.
    pub fn of(list: &List, given: &Given, now: Wall) -> Result<Self, String> {
        let mut conditions = Self::default();
        conditions.only(list.only);
        for filter in list.filters {
            conditions.filter(filter, given, now)?;
        }
        Ok(conditions)
    }
}

/// A time as others give it.
fn time_of(text: &str) -> Option<Micros> {
    match text.parse::<i64>() {
        Ok(milliseconds) => milliseconds.checked_mul(1_000),
        Err(_) => parse_time(text),
    }
}

/// Which part of a list is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Items at most.
    pub limit: u32,
    /// Items to pass over.
    pub offset: u32,
}

impl Part {
    /// Of the parameters.
    ///
    /// # Errors
    /// In words.
    pub fn of(given: &Given, default: u32) -> Result<Self, String> {
        let limit = given.number("limit", 1, MAX_LIMIT)?.unwrap_or(default);
        let offset = given.number("offset", 0, MAX_OFFSET)?.unwrap_or(0);
        Ok(Self { limit, offset })
    }
}

/// Rows as items.
pub fn items(shape: Shape, batches: &[RecordBatch]) -> Vec<Value> {
    match shape {
        Shape::Record(name) => match schema::table(name) {
            Some(table) => rows::records(table, batches),
            None => rows::flat(batches),
        },
        Shape::Flat => rows::flat(batches),
    }
}

/// The one number that a question gives.
pub fn number(batches: &[RecordBatch]) -> i64 {
    let first = batches.iter().find(|batch| batch.num_rows() > 0);
    first.and_then(|batch| batch.column(0).as_primitive_opt::<Int64Type>().map(|n| n.value(0))).unwrap_or_default()
}

/// A page: `{items, total, has_more}`.
///
/// # Errors
/// As [`Tables::query`].
pub async fn page(
    tables: &Tables,
    scope: &Scope,
    list: &List,
    conditions: &Conditions,
    part: Part,
) -> Result<Map<String, Value>, QueryError> {
    let (from, filter, order) = (list.from, conditions.text(), list.order);
    let Part { limit, offset } = part;
    let rows = format!("SELECT * FROM {from}{filter} ORDER BY {order} LIMIT {limit} OFFSET {offset}");
    let all = format!("SELECT count(*) FROM {from}{filter}");
    let rows = tables.query(scope, &rows, conditions.values.clone()).await?;
    let items = items(list.shape, &rows);
    let shown = i64::from(offset) + i64::try_from(items.len()).unwrap_or(i64::MAX);
    // the end of a list says how many there are
    let total = if items.len() < limit as usize && (offset == 0 || !items.is_empty()) {
        shown
    } else {
        number(&tables.query(scope, &all, conditions.values.clone()).await?)
    };
    let mut page = Map::new();
    page.insert("items".to_owned(), Value::Array(items));
    page.insert("total".to_owned(), json!(total));
    page.insert("has_more".to_owned(), json!(total > shown));
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::super::lists::LISTS;
    use super::*;

    fn given(pairs: &[(&str, &str)]) -> Given {
        let pairs: Vec<(String, String)> = pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        let known: Vec<String> = pairs.iter().map(|(name, _)| name.clone()).collect();
        Given::read(pairs, &known.iter().map(String::as_str).collect::<Vec<_>>()).unwrap()
    }

    fn list(path: &str) -> &'static List {
        LISTS.iter().find(|list| list.paths.contains(&path)).unwrap()
    }

    #[test]
    fn a_value_is_never_a_part_of_the_text_of_a_question() {
        let evil = "x' OR 1=1 --";
        for list in &LISTS {
            for filter in list.filters {
                let asked = Conditions::of(list, &given(&[(filter.name, evil)]), Wall(0));
                assert!(asked.is_err() || !asked.unwrap().text().contains("OR 1"), "{} {}", list.paths[0], filter.name);
            }
        }
    }

    #[test]
    fn words_are_taken_in_any_case_and_shown_as_they_are_written_and_others_are_refused() {
        let rules = list("/api/v1/policies/rules");
        let asked = Conditions::of(rules, &given(&[("rule_type", "safety")]), Wall(0)).unwrap();
        assert_eq!((asked.text().as_str(), &asked.applied["rule_type"]), (" WHERE rule_type = $1", &json!("SAFETY")));
        let error = Conditions::of(rules, &given(&[("status", "open")]), Wall(0)).unwrap_err();
        assert_eq!(error, "status is one of ACTIVE RETIRED, not \"open\"");
    }

    #[test]
    fn defaults_are_applied_and_shown() {
        let budgets = Conditions::of(list("/api/v1/policies/budgets"), &Given::default(), Wall(0)).unwrap();
        assert_eq!(budgets.text(), " WHERE (category = 'BUDGET') AND status = $1");
        assert_eq!(Value::Object(budgets.applied), json!({"status": "ACTIVE"}));
        let violations = Conditions::of(list("/api/v1/policies/violations"), &Given::default(), Wall(0)).unwrap();
        assert_eq!(Value::Object(violations.applied), json!({"hours": 24, "include_synthetic": false}));
    }

    #[test]
    fn a_star_at_the_end_means_a_beginning() {
        let limits = list("/api/v1/policies/limits");
        let asked = Conditions::of(limits, &given(&[("limit_type", "runs_*")]), Wall(0)).unwrap();
        assert_eq!(asked.text(), " WHERE starts_with(limit_type, $1)");
        assert_eq!(asked.values, [ScalarValue::from("RUNS_")]);
    }

    #[test]
    fn a_parameter_that_is_not_there_is_refused_with_the_nearest_that_is() {
        let read = |name: &str| Given::read(vec![(name.to_owned(), "1".to_owned())], &["limit", "offset"]);
        let said = "there is no parameter \"limits\", did you mean limit?; parameters are limit offset";
        assert_eq!(read("limits").unwrap_err(), said);
        assert!(Given::read(vec![("limit".into(), "1".into()), ("limit".into(), "2".into())], &["limit"]).is_err());
        for (value, fine) in [("1", true), ("100", true), ("0", false), ("101", false), ("-1", false), ("x", false)] {
            assert_eq!(Part::of(&given(&[("limit", value)]), 20).is_ok(), fine, "{value}");
        }
    }

    #[test]
    fn times_are_taken_as_rfc_3339_and_as_milliseconds() {
        assert_eq!(time_of("2026-01-01T00:00:00Z"), time_of("1767225600000"));
        assert_eq!(time_of("2026-01-01T01:00:00+01:00"), time_of("1767225600000"));
        assert_eq!((time_of("yesterday"), time_of("9223372036854775807")), (None, None));
    }
}
