//! JSON Lines: one record a line; empty lines are passed over, a byte order mark is dropped.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};

use super::{Error, Payload, Reader};

const BOM: &[u8] = b"\xef\xbb\xbf";

/// Reads one file.
pub(super) struct Lines {
    reader: BufReader<File>,
    path: String,
    max: usize,
    buffer: Vec<u8>,
    line: i64,
    read: u64,
}

impl Lines {
    pub(super) fn new(file: File, path: String, max: usize) -> Self {
        Self { reader: BufReader::with_capacity(1 << 18, file), path, max, buffer: Vec::new(), line: 0, read: 0 }
    }

    /// Reads one line of at most `max + 1` bytes into the buffer and passes over the rest of it; false at the end.
    fn line_in(&mut self) -> std::io::Result<bool> {
        self.buffer.clear();
        // room for the bound, a byte beyond it that tells, and "\r\n"
        let most = self.max.saturating_add(3) as u64;
        let mut read = self.reader.by_ref().take(most).read_until(b'\n', &mut self.buffer)?;
        if read == 0 {
            return Ok(false);
        }
        if read as u64 == most && self.buffer.last() != Some(&b'\n') {
            read += self.reader.skip_until(b'\n')?;
        }
        self.read += read as u64;
        self.line += 1;
        let end = self.buffer.trim_ascii_end().len();
        self.buffer.truncate(end);
        if self.line == 1 && self.buffer.starts_with(BOM) {
            self.buffer.drain(..BOM.len());
        }
        Ok(true)
    }
}

impl Reader for Lines {
    fn advance(&mut self) -> Result<bool, Error> {
        loop {
            match self.line_in() {
                Ok(true) if self.buffer.trim_ascii().is_empty() => {}
                Ok(more) => return Ok(more),
                Err(source) => return Err(Error::Read { path: self.path.clone(), source }),
            }
        }
    }

    fn line(&self) -> i64 {
        self.line
    }

    fn payload(&self) -> Payload<'_> {
        Payload::Json(&self.buffer)
    }

    fn bytes_read(&self) -> u64 {
        self.read
    }
}
