//! Messages of the Postgres protocol in and out, bounded before they are read.
//!
//! A message says how long it is, and it is refused before a byte of it is kept if that is more than the caller allows: little before
//! the log-in, [`super::MAX_SQL`] and somewhat more after it.

use std::io;

use pgwire::messages::{DecodeContext, PgWireBackendMessage, PgWireFrontendMessage, ProtocolVersion};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::errors::WireError;

/// What is written is kept until it is so much, or until it is flushed.
const BUFFER: usize = 64 * 1024;
/// What a client sends that leaves.
const TERMINATE: &[u8] = b"X\0\0\0\x04";
/// How often a client is looked at while its statement runs.
const GLANCE: std::time::Duration = std::time::Duration::from_millis(250);

/// What comes from the client.
#[derive(Debug)]
pub(super) struct Reader(BufReader<OwnedReadHalf>);

impl Reader {
    pub(super) fn new(half: OwnedReadHalf) -> Self {
        Self(BufReader::new(half))
    }

    /// A message of the begin, which has no type: its whole frame. None: the client is gone.
    pub(super) async fn opening(&mut self, most: usize) -> Result<Option<Vec<u8>>, WireError> {
        self.frame(0, most).await
    }

    /// The next message. None: the client is gone.
    pub(super) async fn message(&mut self, most: usize) -> Result<Option<PgWireFrontendMessage>, WireError> {
        let Some(frame) = self.frame(1, most).await? else { return Ok(None) };
        decode(&frame, false).map(Some)
    }

    async fn frame(&mut self, before: usize, most: usize) -> Result<Option<Vec<u8>>, WireError> {
        let mut frame = vec![0; before + 4];
        let begun = self.0.read(&mut frame).await?;
        if begun == 0 {
            return Ok(None);
        }
        self.0.read_exact(&mut frame[begun..]).await?;
        let mut length = [0; 4];
        length.copy_from_slice(&frame[before..]);
        let length = usize::try_from(i32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if length > most {
            return Err(WireError::TooLarge(length, most));
        }
        if length < 4 {
            return Err(WireError::Protocol("a length that does not count itself".to_owned()));
        }
        frame.resize(before + length, 0);
        self.0.read_exact(&mut frame[before + 4..]).await?;
        Ok(Some(frame))
    }

    /// Ends when the client is gone or has taken leave. What it sends otherwise stays to be read.
    pub(super) async fn gone(&mut self) {
        loop {
            let mut next = [0; TERMINATE.len() + 1];
            match self.0.get_mut().peek(&mut next).await {
                Ok(0) | Err(_) => return,
                Ok(n) if &next[..n] == TERMINATE => return,
                // something waits to be read after this statement: whether the end follows it is seen by looking again
                Ok(_) => tokio::time::sleep(GLANCE).await,
            }
        }
    }
}

/// One message from its whole frame.
pub(super) fn decode(frame: &[u8], opening: bool) -> Result<PgWireFrontendMessage, WireError> {
    let mut context = DecodeContext::new(ProtocolVersion::PROTOCOL3_0);
    context.awaiting_frontend_ssl = false;
    context.awaiting_frontend_startup = opening;
    let message = PgWireFrontendMessage::decode(&mut frame.into(), &context)?;
    message.ok_or_else(|| WireError::Protocol("a message that ends too early".to_owned()))
}

/// What goes to the client.
#[derive(Debug)]
pub(super) struct Writer {
    half: OwnedWriteHalf,
    pending: Vec<u8>,
    written: usize,
}

impl Writer {
    pub(super) fn new(half: OwnedWriteHalf) -> Self {
        Self { half, pending: Vec::new(), written: 0 }
    }

    /// Adds a message to what is to be sent.
    pub(super) fn put(&mut self, message: &PgWireBackendMessage) -> Result<(), WireError> {
        let mut bytes = Default::default();
        message.encode(&mut bytes)?;
        self.pending.extend_from_slice(&bytes);
        Ok(())
    }

    /// One byte that is no message: the answer to a request for encryption.
    pub(super) fn put_byte(&mut self, byte: u8) {
        self.pending.push(byte);
    }

    /// Sends if there is much to send. May be given up at any time: what was sent is not sent again.
    pub(super) async fn make_room(&mut self) -> io::Result<()> {
        if self.pending.len() - self.written >= BUFFER { self.flush().await } else { Ok(()) }
    }

    /// Sends all. May be given up at any time: what was sent is not sent again.
    pub(super) async fn flush(&mut self) -> io::Result<()> {
        while self.written < self.pending.len() {
            let sent = self.half.write(&self.pending[self.written..]).await?;
            if sent == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.written += sent;
        }
        self.pending.clear();
        self.written = 0;
        Ok(())
    }

    /// Says that nothing more comes.
    pub(super) async fn close(&mut self) -> io::Result<()> {
        self.flush().await?;
        self.half.shutdown().await
    }
}
