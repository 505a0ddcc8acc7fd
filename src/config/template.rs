//! Texts of channels: plain text with `{{ field }}` placeholders out of a closed list, checked when the configuration is read.
//!
//! There is nothing else in it, no conditions, loops or calls: what comes out is bounded, and what an alert says is never read as a
//! template again.

use super::fault::nearest;

/// What a placeholder may name: fields of an alert.
pub const FIELDS: [&str; 18] = [
    "agents",
    "alert_count",
    "alert_id",
    "correlation_key",
    "current_value",
    "description",
    "first_seen",
    "last_seen",
    "metrics",
    "minutes_to_limit",
    "resolve_reason",
    "revision",
    "runs",
    "severity",
    "sources",
    "status",
    "tenant_id",
    "title",
];

/// Longest template, bytes.
const LONGEST: usize = 4_096;

/// A text with placeholders.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Template(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Field(&'static str),
}

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > LONGEST {
            return Err(format!("must have at most {LONGEST} bytes"));
        }
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("{{") {
            let (name, next) = after.split_once("}}").ok_or("lacks }} after {{")?;
            let name = name.trim();
            let field = FIELDS.iter().find(|field| **field == name).ok_or_else(|| match nearest(name, FIELDS) {
                Some(near) => format!("{{{{ {name} }}}} is no field; did you mean {near}?"),
                None => format!("{{{{ {name} }}}} is no field; there are {}", FIELDS.join(", ")),
            })?;
            parts.push(Part::Text(before.to_owned()));
            parts.push(Part::Field(field));
            rest = next;
        }
        parts.push(Part::Text(rest.to_owned()));
        parts.retain(|part| !matches!(part, Part::Text(text) if text.is_empty()));
        Ok(Self(parts))
    }

    /// The text, with `value` for each placeholder, of at most `most` characters.
    pub fn render(&self, value: impl Fn(&str) -> String, most: usize) -> String {
        let mut out = String::new();
        for part in &self.0 {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Field(name) => out.push_str(&value(name)),
            }
        }
        cut(&out, most)
    }
}

/// At most so many characters, the last of them … when something is missing.
pub fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_filled_in_once_and_the_text_is_bounded() {
        let template = Template::parse("[{{status}}] {{ title }} of {{ tenant_id }}").unwrap();
        let value = |name: &str| if name == "title" { "{{ severity }}".to_owned() } else { name.to_uppercase() };
        assert_eq!(template.render(value, 100), "[STATUS] {{ severity }} of TENANT_ID");
        assert_eq!(template.render(value, 10), "[STATUS] …");
        assert_eq!(Template::parse("plain").unwrap().render(|_| String::new(), 9), "plain");
    }

    #[test]
    fn what_is_no_field_is_refused() {
        for (text, part) in [
            ("{{ titel }}", "did you mean title"),
            ("{{ zzzzzzzz }}", "is no field"),
            ("{{ title", "lacks }}"),
            (&"x".repeat(5_000), "at most 4096"),
        ] {
            let error = Template::parse(text).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
