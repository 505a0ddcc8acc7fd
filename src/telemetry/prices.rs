//! What tokens cost: a versioned table of exact (provider, model) names, from `config/prices.toml`.
//!
//! A model the table does not name has an unknown cost. Never zero, never the nearest name.

use std::sync::Arc;

use rustc_hash::FxHashMap;
use toml::Spanned;

use super::money;
use crate::clock::Micros;

/// Prices of one model from an instant on, in 10⁻⁹ USD per million tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Period {
    from: Micros,
    until: Micros,
    input: i128,
    output: i128,
    cached: i128,
    reasoning: i128,
}

/// Token counts of one event; `cached` is part of `input`, `reasoning` part of `output`. Absent counts are 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Input tokens, the cached ones included.
    pub input: i64,
    /// Output tokens, the reasoning ones included.
    pub output: i64,
    /// Input tokens read from a cache.
    pub cached: i64,
    /// Output tokens spent on reasoning.
    pub reasoning: i64,
}

/// A price table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prices {
    provenance: Arc<str>,
    models: FxHashMap<String, FxHashMap<String, Vec<Period>>>,
}

/// Why a price table is refused: where, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}:{column}: {message}")]
pub struct Fault {
    /// File as given.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Column, from 1.
    pub column: usize,
    /// What is wrong.
    pub message: String,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawTable {
    version: Spanned<String>,
    #[serde(default)]
    price: Vec<Spanned<RawPrice>>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawPrice {
    provider: String,
    model: String,
    input: Spanned<toml::Value>,
    output: Spanned<toml::Value>,
    cached: Option<Spanned<toml::Value>>,
    reasoning: Option<Spanned<toml::Value>>,
    from: Option<Spanned<toml::Value>>,
    until: Option<Spanned<toml::Value>>,
}

impl Prices {
    /// Reads a table: `version = "…"` and `[[price]]` entries with `provider`, `model`, `input`, `output` and optionally
    /// `cached` (else as input), `reasoning` (else as output), in USD per million tokens, and `from`, `until` (RFC 3339).
    ///
    /// # Errors
    /// Every fault that can be found at once, each with its line.
    pub fn from_toml(text: &str, file: &str) -> Result<Self, Vec<Fault>> {
        let fault = |at: usize, message: String| {
            let (line, column) = place(text, at);
            Fault { file: file.to_owned(), line, column, message }
        };
        let raw: RawTable = toml::from_str(text)
            .map_err(|e| vec![fault(e.span().map_or(0, |span| span.start), e.message().to_owned())])?;
        let mut faults = Vec::new();
        let version = raw.version.get_ref();
        if version.is_empty() || version.len() > 64 {
            faults.push(fault(raw.version.span().start, "version must have 1 to 64 bytes".to_owned()));
        }
        let mut models: FxHashMap<String, FxHashMap<String, Vec<Period>>> = FxHashMap::default();
        for entry in &raw.price {
            let at = entry.span().start;
            match period(entry.get_ref()) {
                Ok(new) => {
                    let RawPrice { provider, model, .. } = entry.get_ref();
                    let periods = models.entry(provider.clone()).or_default().entry(model.clone()).or_default();
                    if periods.iter().any(|old| new.from < old.until && old.from < new.until) {
                        faults.push(fault(at, format!("{provider}/{model} is priced twice for the same time")));
                    }
                    periods.push(new);
                }
                Err((span, message)) => faults.push(fault(span.unwrap_or(at), message)),
            }
        }
        if faults.is_empty() { Ok(Self { provenance: format!("table:{version}").into(), models }) } else { Err(faults) }
    }

    /// Number of (provider, model) pairs priced.
    pub fn len(&self) -> usize {
        self.models.values().map(FxHashMap::len).sum()
    }

    /// Whether nothing is priced.
    pub fn is_empty(&self) -> bool {
        self.models.is_empty()
    }

    /// `table:<version>`.
    pub(super) fn provenance(&self) -> &str {
        &self.provenance
    }

    /// Cost in 10⁻⁹ USD, rounded half up; `None` if the model has no price then. May exceed `DECIMAL(18, 9)`.
    /// Cached tokens beyond the input (or reasoning beyond the output) are priced as cached (reasoning).
    pub fn cost(&self, provider: &str, model: &str, at: Micros, usage: Usage) -> Option<i128> {
        let periods = self.models.get(provider)?.get(model)?;
        let price = periods.iter().find(|p| p.from <= at && at < p.until)?;
        let part = |whole: i64, part: i64| i128::from(whole).saturating_sub(i128::from(part)).max(0);
        let sum = part(usage.input, usage.cached) * price.input
            + i128::from(usage.cached) * price.cached
            + part(usage.output, usage.reasoning) * price.output
            + i128::from(usage.reasoning) * price.reasoning;
        Some((sum + 500_000) / 1_000_000)
    }
}

/// Line and column (in characters), from 1, of a byte position in a text.
pub(crate) fn place(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

/// Byte position of a fault in the file; that of its entry if absent.
type Place = Option<usize>;

fn period(raw: &RawPrice) -> Result<Period, (Place, String)> {
    if raw.provider.is_empty() || raw.model.is_empty() {
        return Err((None, "provider and model must not be empty".to_owned()));
    }
    let input = price("input", &raw.input)?;
    let output = price("output", &raw.output)?;
    let cached = raw.cached.as_ref().map_or(Ok(input), |value| price("cached", value))?;
    let reasoning = raw.reasoning.as_ref().map_or(Ok(output), |value| price("reasoning", value))?;
    let from = raw.from.as_ref().map_or(Ok(Micros::MIN), |value| instant("from", value))?;
    let until = raw.until.as_ref().map_or(Ok(Micros::MAX), |value| instant("until", value))?;
    if from >= until {
        return Err((raw.until.as_ref().map(|v| v.span().start), "until must be after from".to_owned()));
    }
    Ok(Period { from, until, input, output, cached, reasoning })
}

fn price(name: &str, value: &Spanned<toml::Value>) -> Result<i128, (Place, String)> {
    let text = match value.get_ref() {
        toml::Value::String(text) => text.clone(),
        // the shortest text that reads back as this float: what was written, for any price a person writes
        other @ (toml::Value::Float(_) | toml::Value::Integer(_)) => other.to_string(),
        _ => String::new(),
    };
    match money::parse(&text) {
        Ok(price) if price >= 0 => Ok(price),
        _ => Err((
            Some(value.span().start),
            format!("{name} must be USD per million tokens, from 0 to 999999999.999999999, such as 2.5 or \"2.5\""),
        )),
    }
}

fn instant(name: &str, value: &Spanned<toml::Value>) -> Result<Micros, (Place, String)> {
    let text = match value.get_ref() {
        toml::Value::String(text) => text.clone(),
        toml::Value::Datetime(at) => at.to_string(),
        _ => String::new(),
    };
    let midnight = format!("{text}T00:00:00Z");
    super::parse_time(&text).or_else(|| super::parse_time(&midnight)).ok_or_else(|| {
        (Some(value.span().start), format!("{name} must be a date or RFC 3339 with an offset, such as 2026-01-01"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = r#"
version = "2026-01"
[[price]]
provider = "azure"
model = "code-large"
input = 3.0
output = 15
cached = "0.30"
[[price]]
provider = "old"
model = "m"
input = 1
output = 1
until = 2026-01-01
[[price]]
provider = "old"
model = "m"
input = 2
output = 2
reasoning = 4
from = "2026-01-01T00:00:00Z"
"#;

    fn table() -> Prices {
        Prices::from_toml(TABLE, "prices.toml").unwrap()
    }

    #[test]
    fn each_part_has_its_price() {
        let usage = Usage { input: 1_000, output: 100, cached: 400, reasoning: 50 };
        // 600 × 3 + 400 × 0.30 + 100 × 15 = 3420 USD per million
        assert_eq!(table().cost("azure", "code-large", 0, usage), Some(3_420_000));
        assert_eq!(table().provenance(), "table:2026-01");
        assert_eq!(table().len(), 2);
    }

    #[test]
    fn names_are_exact_and_absence_is_not_zero() {
        assert_eq!(table().cost("azure", "Code-Large", 0, Usage::default()), None);
        assert_eq!(table().cost("openai", "code-large", 0, Usage::default()), None);
    }

    #[test]
    fn the_price_in_force_at_the_event_counts() {
        let change = super::super::parse_time("2026-01-01T00:00:00Z").unwrap();
        let usage = Usage { input: 1_000_000, reasoning: 0, ..Usage::default() };
        assert_eq!(table().cost("old", "m", change - 1, usage), Some(1_000_000_000));
        assert_eq!(table().cost("old", "m", change, usage), Some(2_000_000_000), "from is inclusive");
    }

    #[test]
    fn costs_are_rounded_half_up_at_nine_digits_and_never_overflow() {
        let table =
            Prices::from_toml("version='1'\n[[price]]\nprovider='p'\nmodel='m'\ninput='0.0005'\noutput=999999999", "f")
                .unwrap();
        let input = |input| table.cost("p", "m", 0, Usage { input, ..Usage::default() });
        assert_eq!(input(1), Some(1), "0.5 of the last digit");
        assert!(table.cost("p", "m", 0, Usage { output: i64::MAX, ..Usage::default() }).is_some());
    }

    #[test]
    fn faults_name_their_line_and_come_together() {
        let text = "version = \"1\"\n[[price]]\nprovider=\"a\"\nmodel=\"b\"\ninput=-1\noutput=1\n[[price]]\nprovider=\"a\"\nmodel=\"c\"\ninput=1\noutput=true\n";
        let faults = Prices::from_toml(text, "p.toml").unwrap_err();
        assert_eq!(faults.iter().map(|f| f.line).collect::<Vec<_>>(), [5, 11]);
        assert!(faults[0].to_string().starts_with("p.toml:5:7: input must be"), "{}", faults[0]);
        let faults = Prices::from_toml("version = \"1\"\nprices = 3", "p.toml").unwrap_err();
        assert_eq!(faults[0].line, 2, "an unknown key is a fault: {}", faults[0]);
    }

    #[test]
    fn overlapping_prices_of_one_model_are_refused() {
        let entry = "[[price]]\nprovider='a'\nmodel='b'\ninput=1\noutput=1\n";
        let faults = Prices::from_toml(&format!("version='1'\n{entry}{entry}"), "p").unwrap_err();
        assert!(faults[0].message.contains("twice"), "{}", faults[0]);
    }

    #[test]
    fn the_shipped_table_is_valid_and_prices_the_example_models() {
        let text = std::fs::read_to_string("config/prices.toml").unwrap();
        let table = Prices::from_toml(&text, "config/prices.toml").unwrap();
        for model in ["code-large", "chat-large"] {
            let at = super::super::parse_time("2023-11-16T18:00:00Z").unwrap();
            let usage = Usage { input: 1_000_000, output: 1_000_000, ..Usage::default() };
            assert_eq!(table.cost("azure", model, at, usage), Some(18_000_000_000), "3 + 15 USD");
        }
    }
}
