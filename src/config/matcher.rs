//! Matchers of channels, as Alertmanager writes them: `severity=~"HIGH|CRITICAL"`, `tenant_id!=test`.

use regex::{Regex, RegexBuilder};

/// What a matcher may look at.
pub const MATCHED: [&str; 6] = ["agent", "correlation_key", "metric", "severity", "source", "tenant_id"];

/// Longest regular expression once compiled, bytes.
const COMPILED: usize = 1 << 20;

/// One condition on an alert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Matcher {
    /// One of [`MATCHED`].
    pub field: &'static str,
    /// `!=` and `!~`: no value may match.
    pub negated: bool,
    pattern: Pattern,
}

#[derive(Debug, Clone)]
enum Pattern {
    Equal(String),
    Regex(Regex),
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Equal(a), Self::Equal(b)) => a == b,
            (Self::Regex(a), Self::Regex(b)) => a.as_str() == b.as_str(),
            _ => false,
        }
    }
}

impl Eq for Pattern {}

impl Matcher {
    /// Reads one matcher.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no matcher: write field=value, !=, =~ or !~ with a field of {MATCHED:?}");
        let at = text.find(['=', '!']).ok_or_else(wrong)?;
        let (name, rest) = text.split_at(at);
        let operators = [("=~", false, true), ("!~", true, true), ("!=", true, false), ("=", false, false)];
        let (operator, negated, is_regex) =
            operators.into_iter().find(|(op, ..)| rest.starts_with(op)).ok_or_else(wrong)?;
        let field = MATCHED.into_iter().find(|field| *field == name.trim()).ok_or_else(wrong)?;
        let value = rest.get(operator.len()..).unwrap_or_default().trim();
        let value = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value);
        let pattern = if is_regex {
            // anchored, as Alertmanager does it
            let regex = RegexBuilder::new(&format!("^(?:{value})$")).size_limit(COMPILED).build();
            Pattern::Regex(regex.map_err(|e| format!("{value:?} is no regular expression: {e}"))?)
        } else {
            Pattern::Equal(value.to_owned())
        };
        Ok(Self { field, negated, pattern })
    }

    /// Whether an alert with these values of the field is meant.
    pub fn holds<'a>(&self, mut values: impl Iterator<Item = &'a str>) -> bool {
        let any = values.any(|value| match &self.pattern {
            Pattern::Equal(text) => text == value,
            Pattern::Regex(regex) => regex.is_match(value),
        });
        any != self.negated
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matchers_are_those_of_alertmanager() {
        let holds = |text: &str, values: &[&str]| Matcher::parse(text).unwrap().holds(values.iter().copied());
        assert!(holds("tenant_id = acme", &["acme"]) && !holds("tenant_id=acme", &["acme2"]));
        assert!(holds("severity=~\"HIGH|CRITICAL\"", &["HIGH"]) && !holds("severity=~HIGH", &["HIGHER"]));
        assert!(holds("metric!=run_tokens", &["run_cost"]) && !holds("metric!=run_tokens", &["a", "run_tokens"]));
        assert!(holds("metric!~run_.*", &[]) && !holds("metric=~.*", &[]));
    }

    #[test]
    fn what_is_no_matcher_is_refused() {
        for text in ["tenant", "color=red", "metric~x", "metric=~(", "=x"] {
            assert!(Matcher::parse(text).is_err(), "{text}");
        }
    }
}
