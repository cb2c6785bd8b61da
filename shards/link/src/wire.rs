//! The bytes of a connection that was accepted: plain, or inside TLS once its first byte says so.
//!
//! One port serves both, so that probes and scrapers need no certificate. Who may call what is decided later, by the role
//! that the handshake has proven, or has not. **Never here:** how long a connection may take to say what it is.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use tokio::io::ReadBuf;
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tokio_rustls::{Accept, TlsAcceptor};
use tokio_util::either::Either;

use crate::tls::{Credentials, ProcessRole};

/// With which a TLS connection begins: the type of a handshake record. No text protocol does.
const HANDSHAKE: u8 = 0x16;

/// A connection that has said what it is.
pub(crate) type Opened = Either<TcpStream, Box<TlsStream<TcpStream>>>;

/// What a port makes of a connection that may be TLS.
#[derive(Clone)]
pub(crate) struct Tls {
    pub(crate) credentials: Credentials,
    /// Whatever is not is closed.
    pub(crate) only: bool,
}

pub(crate) enum Wire {
    Open(Opened),
    /// It has not spoken.
    Listening(TcpStream, Tls),
    /// It shakes hands.
    Shaking(Box<Accept<TcpStream>>, Credentials),
    /// It is gone, or changes.
    Closed,
}

impl Wire {
    /// Without `tls` it is what it is.
    pub(crate) fn new(stream: TcpStream, tls: Option<&Tls>) -> Self {
        match tls {
            None => Self::Open(Either::Left(stream)),
            Some(tls) => Self::Listening(stream, tls.clone()),
        }
    }

    /// The connection, once it is known what it is. `proven` then tells the role of who is there, if it has shown one.
    pub(crate) fn poll_open(
        &mut self,
        context: &mut Context<'_>,
        proven: &OnceLock<ProcessRole>,
    ) -> Poll<io::Result<&mut Opened>> {
        loop {
            *self = match self {
                Self::Open(_) => break,
                Self::Closed => return Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
                Self::Listening(stream, _) => {
                    let mut first = [0];
                    let mut buffer = ReadBuf::new(&mut first);
                    ready!(stream.poll_peek(context, &mut buffer))?;
                    let is_tls = buffer.filled().first() == Some(&HANDSHAKE);
                    let Self::Listening(stream, tls) = std::mem::replace(self, Self::Closed) else {
                        continue;
                    };
                    match (is_tls, tls.only) {
                        (true, _) => {
                            let accept =
                                TlsAcceptor::from(Arc::clone(&tls.credentials.server)).accept(stream);
                            Self::Shaking(Box::new(accept), tls.credentials)
                        }
                        (false, false) => Self::Open(Either::Left(stream)),
                        (false, true) => {
                            let why = "a connection is no TLS, on a port for nothing else";
                            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, why)));
                        }
                    }
                }
                Self::Shaking(accept, _) => {
                    let shaken = ready!(Pin::new(accept.as_mut()).poll(context));
                    let Self::Shaking(_, credentials) = std::mem::replace(self, Self::Closed) else {
                        continue;
                    };
                    let stream = shaken?;
                    if let Some(role) = credentials.role(stream.get_ref().1.peer_certificates()) {
                        // It is set once: this is the only handshake of the connection.
                        let _ = proven.set(role);
                    }
                    Self::Open(Either::Right(Box::new(stream)))
                }
            };
        }
        match self {
            Self::Open(open) => Poll::Ready(Ok(open)),
            _ => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }
}
