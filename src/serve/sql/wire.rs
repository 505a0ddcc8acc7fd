//! Messages of the Postgres protocol in and out, bounded before they are read.
//!
//! A message says how long it is, and it is refused before a byte of it is kept if that is more than the caller allows: little before
//! the log-in, [`super::MAX_SQL`] and somewhat more after it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use pgwire::messages::{DecodeContext, PgWireBackendMessage, PgWireFrontendMessage, ProtocolVersion};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio_rustls::server::TlsStream;

use super::errors::WireError;
use crate::serve::tls::Tls;

/// What is written is kept until it is so much, or until it is flushed.
const BUFFER: usize = 64 * 1024;
/// What is read at once beyond a message.
const AHEAD: usize = 8 * 1024;
/// What a client sends that leaves.
const TERMINATE: &[u8] = b"X\0\0\0\x04";
/// What a client may send while its statement runs; more waits.
const MAX_AHEAD: usize = 64 * 1024;

/// What a client's bytes come through.
#[derive(Debug)]
enum In {
    Clear(OwnedReadHalf),
    Secured(ReadHalf<TlsStream<TcpStream>>),
    /// The handshake came to nothing.
    Lost,
}

/// What bytes go to a client through.
#[derive(Debug)]
enum Out {
    Clear(OwnedWriteHalf),
    Secured(WriteHalf<TlsStream<TcpStream>>),
    /// The handshake came to nothing.
    Lost,
}

fn lost<T>() -> Poll<io::Result<T>> {
    Poll::Ready(Err(io::ErrorKind::NotConnected.into()))
}

impl AsyncRead for In {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Clear(half) => Pin::new(half).poll_read(cx, buffer),
            Self::Secured(half) => match ready!(Pin::new(half).poll_read(cx, buffer)) {
                // many leave without saying so in TLS: every message says itself how long it is
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Poll::Ready(Ok(())),
                read => Poll::Ready(read),
            },
            Self::Lost => lost(),
        }
    }
}

impl AsyncWrite for Out {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Clear(half) => Pin::new(half).poll_write(cx, bytes),
            Self::Secured(half) => Pin::new(half).poll_write(cx, bytes),
            Self::Lost => lost(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Clear(half) => Pin::new(half).poll_flush(cx),
            Self::Secured(half) => Pin::new(half).poll_flush(cx),
            Self::Lost => lost(),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Clear(half) => Pin::new(half).poll_shutdown(cx),
            Self::Secured(half) => Pin::new(half).poll_shutdown(cx),
            Self::Lost => lost(),
        }
    }
}

/// Goes on over TLS. What was sent in clear after the request for it does not count as said over it: it is refused.
pub(super) async fn secure(reader: &mut Reader, writer: &mut Writer, tls: &Tls) -> Result<(), WireError> {
    if !reader.held.is_empty() {
        return Err(WireError::Protocol("bytes in clear after a request for TLS".to_owned()));
    }
    let halves = (std::mem::replace(&mut reader.half, In::Lost), std::mem::replace(&mut writer.half, Out::Lost));
    let (In::Clear(read), Out::Clear(write)) = halves else {
        return Err(WireError::Protocol("a request for TLS over TLS".to_owned()));
    };
    let stream = tls.accept(read.reunite(write).map_err(io::Error::other)?).await?;
    let (read, write) = tokio::io::split(stream);
    (reader.half, writer.half) = (In::Secured(read), Out::Secured(write));
    Ok(())
}

/// What comes from the client.
#[derive(Debug)]
pub(super) struct Reader {
    half: In,
    /// What was read and not yet taken.
    held: Vec<u8>,
}

impl Reader {
    pub(super) fn new(half: OwnedReadHalf) -> Self {
        Self { half: In::Clear(half), held: Vec::new() }
    }

    /// Whether it comes over TLS.
    pub(super) fn is_secured(&self) -> bool {
        matches!(self.half, In::Secured(_))
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
        if self.held.is_empty() && self.more(AHEAD).await? == 0 {
            return Ok(None);
        }
        let head = before + 4;
        self.hold(head).await?;
        let mut length = [0; 4];
        length.copy_from_slice(&self.held[before..head]);
        let length = usize::try_from(i32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if length > most {
            return Err(WireError::TooLarge(length, most));
        }
        if length < 4 {
            return Err(WireError::Protocol("a length that does not count itself".to_owned()));
        }
        self.hold(before + length).await?;
        let rest = self.held.split_off(before + length);
        Ok(Some(std::mem::replace(&mut self.held, rest)))
    }

    /// Reads until so much is held. May be given up at any time: what was read is held.
    async fn hold(&mut self, bytes: usize) -> io::Result<()> {
        while let Some(missing) = bytes.checked_sub(self.held.len()).filter(|missing| *missing > 0) {
            if self.more(missing.max(AHEAD)).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }

    /// Reads once, no more than so much. 0: the client is gone.
    async fn more(&mut self, most: usize) -> io::Result<usize> {
        let room = most.min(BUFFER);
        self.held.reserve(room);
        (&mut self.half).take(room as u64).read_buf(&mut self.held).await
    }

    /// Ends when the client is gone or has taken leave. What it sends otherwise is held to be read.
    pub(super) async fn gone(&mut self) {
        loop {
            let before = self.held.len();
            if before >= MAX_AHEAD {
                return std::future::pending().await;
            }
            match self.more(AHEAD).await {
                Ok(0) | Err(_) => return,
                Ok(_) if &self.held[before..] == TERMINATE => return,
                Ok(_) => {}
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
    half: Out,
    pending: Vec<u8>,
    written: usize,
}

impl Writer {
    pub(super) fn new(half: OwnedWriteHalf) -> Self {
        Self { half: Out::Clear(half), pending: Vec::new(), written: 0 }
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
        self.half.flush().await?;
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
