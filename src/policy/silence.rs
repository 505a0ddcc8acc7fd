//! Silences (A3): who may not be told of what, for how long. They mute the notice of an alert, never an intervention.

use std::sync::OnceLock;

use regex::Regex;
use serde::{Deserialize, Serialize};

use crate::clock::{Micros, time};

/// What a matcher may look at, in an alert.
pub const MATCHED: [&str; 9] =
    ["correlation_key", "fingerprint", "severity", "title", "source", "metric", "agent", "run", "policy"];
/// Most matchers of a silence.
const MOST: usize = 20;
/// Longest value of a matcher, in bytes.
const LONGEST: usize = 512;
/// Largest compiled expression, in bytes.
const COMPILED: usize = 64 << 10;

/// How a matcher compares (the operators of Alertmanager).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Compare {
    /// One of the values equals.
    #[serde(rename = "=")]
    Is,
    /// None of the values equals.
    #[serde(rename = "!=")]
    IsNot,
    /// A regular expression matches one of the values whole.
    #[serde(rename = "=~")]
    Matches,
    /// A regular expression matches none of the values whole.
    #[serde(rename = "!~")]
    MatchesNot,
}

/// One condition of a silence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Matcher {
    /// One of [`MATCHED`].
    pub name: String,
    /// `=` `!=` `=~` `!~`
    pub operator: Compare,
    /// A value, or an expression.
    pub value: String,
    /// The expression, once it was needed.
    #[serde(skip)]
    compiled: Compiled,
}

/// An expression that is compiled once. It follows from the value, so any two are equal.
#[derive(Debug, Clone, Default)]
struct Compiled(OnceLock<Option<Regex>>);

impl PartialEq for Compiled {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Compiled {}

/// What became of a silence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum SilenceStatus {
    /// It holds from its start to its end.
    Active,
    /// Its time is over, or someone ended it.
    Expired,
}

/// A silence, as it stands on the policies topic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Silence {
    /// The id of the command that made it.
    pub silence_id: String,
    /// 1, 2, 3 …
    pub revision: u64,
    /// Whose alerts; `*`: everyone's.
    pub tenant_id: String,
    /// ACTIVE EXPIRED
    pub status: SilenceStatus,
    /// All must hold.
    pub matchers: Vec<Matcher>,
    /// Who made it.
    pub author: String,
    /// Why.
    pub comment: String,
    /// From when it holds.
    #[serde(with = "time")]
    pub starts_at: Micros,
    /// Until when.
    #[serde(with = "time")]
    pub ends_at: Micros,
    /// Who ended it, if not time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_by: Option<String>,
}

impl Matcher {
    fn expression(&self) -> Option<&Regex> {
        let compile = || regex::RegexBuilder::new(&format!("^(?:{})$", self.value)).size_limit(COMPILED).build().ok();
        self.compiled.0.get_or_init(compile).as_ref()
    }

    /// What is wrong with it, in words.
    pub fn fault(&self) -> Option<String> {
        if !MATCHED.contains(&self.name.as_str()) {
            return Some(format!("{} is nothing a silence can look at: {}", self.name, MATCHED.join(" ")));
        }
        if self.value.len() > LONGEST {
            return Some(format!("the value for {} is longer than {LONGEST} bytes", self.name));
        }
        let expression = matches!(self.operator, Compare::Matches | Compare::MatchesNot);
        (expression && self.expression().is_none())
            .then(|| format!("{:?} is no regular expression, or too large a one", self.value))
    }

    fn holds(&self, values: &[&str]) -> bool {
        let any = match self.operator {
            Compare::Is | Compare::IsNot => values.contains(&self.value.as_str()),
            // one that does not compile was refused when it was made
            Compare::Matches | Compare::MatchesNot => {
                self.expression().is_some_and(|expression| values.iter().any(|value| expression.is_match(value)))
            }
        };
        any == matches!(self.operator, Compare::Is | Compare::Matches)
    }
}

impl Silence {
    /// What is wrong with its matchers, in words.
    pub fn fault(matchers: &[Matcher]) -> Option<String> {
        match matchers.len() {
            0 => Some("a silence without matchers would mute everything: give at least one".into()),
            1..=MOST => matchers.iter().find_map(Matcher::fault),
            _ => Some(format!("a silence has at most {MOST} matchers")),
        }
    }

    /// Whether it holds at an instant.
    pub fn holds(&self, at: Micros) -> bool {
        self.status == SilenceStatus::Active && self.starts_at <= at && at < self.ends_at
    }

    /// Whether it is for alerts of a tenant.
    pub fn is_for(&self, tenant: &str) -> bool {
        self.tenant_id == "*" || self.tenant_id == tenant
    }

    /// Whether all matchers hold; `values` gives what an alert has under a name.
    pub fn matches<'a>(&self, values: &dyn Fn(&str) -> Vec<&'a str>) -> bool {
        self.matchers.iter().all(|matcher| matcher.holds(&values(&matcher.name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matcher(name: &str, operator: Compare, value: &str) -> Matcher {
        Matcher { name: name.into(), operator, value: value.into(), compiled: Compiled::default() }
    }

    #[test]
    fn operators_compare_as_in_alertmanager() {
        let holds = |operator, value: &str| matcher("agent", operator, value).holds(&["planner", "coder"]);
        assert!(holds(Compare::Is, "coder") && !holds(Compare::Is, "cod"));
        assert!(!holds(Compare::IsNot, "coder") && holds(Compare::IsNot, "x"));
        assert!(holds(Compare::Matches, "plan.*") && !holds(Compare::Matches, "plan"), "the whole value");
        assert!(!holds(Compare::MatchesNot, "c.+") && holds(Compare::MatchesNot, "c"));
    }

    #[test]
    fn what_could_never_match_or_would_match_everything_is_refused() {
        assert!(Silence::fault(&[]).unwrap().contains("mute everything"));
        assert!(matcher("agents", Compare::Is, "x").fault().unwrap().contains("correlation_key"));
        assert!(matcher("agent", Compare::Matches, "(").fault().is_some());
        assert!(matcher("agent", Compare::Matches, "(a{1000}){1000}").fault().is_some());
        assert!(matcher("agent", Compare::Is, &"x".repeat(600)).fault().is_some());
        let many = vec![matcher("agent", Compare::Is, "x"); 21];
        assert!(Silence::fault(&many).is_some() && Silence::fault(&many[..20]).is_none());
    }
}
