//! What is wrong with a configuration, where, and what was probably meant.

use std::fmt;

use crate::telemetry::prices::place;

/// One fault. Displayed as `file:line:column: key: message`, or `variable: key: message` for the environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The file, or the environment variable.
    pub file: String,
    /// Line, from 1; 0 if the fault has no place in a file.
    pub line: usize,
    /// Column in characters, from 1; 0 if the fault has no place in a file.
    pub column: usize,
    /// Dotted key, such as `time.allowed-lateness`; empty for the file as a whole.
    pub key: String,
    /// What is wrong and what to write instead.
    pub message: String,
}

impl Fault {
    /// A fault at a byte of the file's text.
    pub(super) fn at(file: &str, text: &str, byte: usize, key: &str, message: impl Into<String>) -> Self {
        let (line, column) = place(text, byte);
        Self { file: file.to_owned(), line, column, key: key.to_owned(), message: message.into() }
    }

    /// A fault without a place: of a variable, or of a file that cannot be read.
    pub(super) fn of(file: &str, key: &str, message: impl Into<String>) -> Self {
        Self { file: file.to_owned(), line: 0, column: 0, key: key.to_owned(), message: message.into() }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}", self.message)
    }
}

impl std::error::Error for Fault {}

/// The known name nearest to an unknown one, if any is near enough to be what was meant.
pub(crate) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len() / 4)
        .min()
        .map(|(_, candidate)| candidate)
}
