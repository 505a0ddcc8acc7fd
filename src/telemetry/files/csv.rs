//! CSV with a header of field names: each row becomes the flat JSON record. An empty cell is a missing field; `labels` and
//! `attributes` hold JSON text.
//!
//! A cell that does not look like its field's type becomes a JSON string, for the decoder to refuse.

use std::fs::File;
use std::io::BufReader;

use csv::{ByteRecord, ReaderBuilder};
use serde::de::IgnoredAny;

use super::{Error, Payload, Reader};
use crate::telemetry::encode::member;
use crate::telemetry::parse::{Kind, column, kind};
use crate::telemetry::redact::write_string;

/// Reads one file.
pub(super) struct Rows {
    reader: csv::Reader<BufReader<File>>,
    path: String,
    header: Vec<(String, Option<Kind>)>,
    row: ByteRecord,
    json: String,
    bad: Option<String>,
    line: u64,
}

impl Rows {
    pub(super) fn open(file: File, path: String) -> Result<Self, Error> {
        let mut reader = ReaderBuilder::new().flexible(true).from_reader(BufReader::with_capacity(1 << 18, file));
        let names = match reader.headers() {
            Ok(names) => names.clone(),
            Err(error) => return Err(refused(&path, error)),
        };
        let mut header: Vec<(String, Option<Kind>)> = Vec::with_capacity(names.len());
        for name in &names {
            let name = name.trim();
            if name.is_empty() || header.iter().any(|(known, _)| known == name) {
                let message = format!("the header's column {} is empty or named twice", header.len() + 1);
                return Err(Error::Format { path, message });
            }
            header.push((name.to_owned(), column(name).map(kind)));
        }
        if header.is_empty() {
            return Err(Error::Format { path, message: "it has no header line with field names".to_owned() });
        }
        Ok(Self { reader, path, header, row: ByteRecord::new(), json: String::new(), bad: None, line: 0 })
    }

    fn convert(&mut self) -> Result<(), String> {
        if self.row.len() != self.header.len() {
            return Err(format!("the row has {} cells, the header {}", self.row.len(), self.header.len()));
        }
        self.json.clear();
        self.json.push('{');
        for (cell, (name, kind)) in self.row.iter().zip(&self.header) {
            let text = str::from_utf8(cell).map_err(|_| "the row is not UTF-8".to_owned())?;
            if text.is_empty() {
                continue;
            }
            member(&mut self.json, name);
            match kind {
                Some(Kind::Count | Kind::Money | Kind::Score(_) | Kind::Duration | Kind::Time) if is_number(text) => {
                    self.json.push_str(text);
                }
                Some(Kind::Flag) if text.eq_ignore_ascii_case("true") => self.json.push_str("true"),
                Some(Kind::Flag) if text.eq_ignore_ascii_case("false") => self.json.push_str("false"),
                Some(Kind::Object) if serde_json::from_str::<IgnoredAny>(text).is_ok() => self.json.push_str(text),
                _ => write_string(&mut self.json, text),
            }
        }
        self.json.push('}');
        Ok(())
    }
}

fn is_number(text: &str) -> bool {
    text.starts_with(|c: char| c == '-' || c.is_ascii_digit()) && serde_json::from_str::<IgnoredAny>(text).is_ok()
}

fn refused(path: &str, error: csv::Error) -> Error {
    let path = path.to_owned();
    match error.into_kind() {
        csv::ErrorKind::Io(source) => Error::Read { path, source },
        csv::ErrorKind::Utf8 { .. } => Error::Format { path, message: "the header is not UTF-8".to_owned() },
        _ => Error::Format { path, message: "it is not CSV".to_owned() },
    }
}

impl Reader for Rows {
    fn advance(&mut self) -> Result<bool, Error> {
        match self.reader.read_byte_record(&mut self.row) {
            Ok(true) => {
                self.line = self.row.position().map_or(self.line + 1, csv::Position::line);
                self.bad = self.convert().err();
                Ok(true)
            }
            Ok(false) => Ok(false),
            Err(error) => Err(refused(&self.path, error)),
        }
    }

    fn line(&self) -> i64 {
        i64::try_from(self.line).unwrap_or(i64::MAX)
    }

    fn payload(&self) -> Payload<'_> {
        match &self.bad {
            Some(message) => Payload::Bad(message, self.row.as_slice()),
            None => Payload::Json(self.json.as_bytes()),
        }
    }

    fn bytes_read(&self) -> u64 {
        self.reader.position().byte()
    }
}
