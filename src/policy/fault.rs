//! One thing that is wrong in a policy file, where it is, and what would be right.

use std::fmt;

use super::model::Place;

/// Why a policy file is refused.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub struct Fault {
    /// File name as given by the caller.
    pub file: String,
    /// Line, from 1.
    pub line: u64,
    /// Column in characters, from 1.
    pub column: u64,
    /// The key, as `limits[0].max`; empty for the document itself.
    pub path: String,
    /// What is wrong.
    pub message: String,
    /// What would be right, when known.
    pub help: Option<String>,
}

impl Fault {
    /// A fault at a place of a file.
    pub(crate) fn new(file: &str, at: Place, path: &str, message: String, help: Option<String>) -> Self {
        Self { file: file.to_owned(), line: at.line, column: at.column, path: path.to_owned(), message, help }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: ", self.file, self.line, self.column)?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)?;
        match &self.help {
            Some(help) => write!(f, " ({help})"),
            None => Ok(()),
        }
    }
}

/// The candidate nearest to a misspelt word, if any is near enough to be meant.
pub(crate) fn nearest<'c>(word: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    /// Below this a suggestion misleads more than it helps.
    const LEAST: f64 = 0.7;
    let short: String = word.chars().take(64).collect::<String>().to_lowercase();
    candidates
        .into_iter()
        .map(|c| {
            let lower = c.to_lowercase();
            // a part of the word is as good a hint as its beginning: `closed` means `fail_closed`
            let part = short.len() >= 4 && lower.contains(&short);
            (strsim::jaro_winkler(&short, &lower).max(if part { LEAST } else { 0.0 }), c)
        })
        .filter(|(score, _)| *score >= LEAST)
        .max_by(|a, b| a.0.total_cmp(&b.0).then_with(|| b.1.cmp(a.1)))
        .map(|(_, c)| c)
}

/// A word from a file as it may appear in a message: quoted, at most 64 characters.
pub(crate) fn quoted(word: &str) -> String {
    let mut short: String = word.chars().take(64).collect();
    if short.len() < word.len() {
        short.push('…');
    }
    format!("`{short}`")
}
