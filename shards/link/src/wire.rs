//! The bytes of a connection that was accepted: plain, or inside TLS once its first byte says so.
//!
//! One port serves both, so that probes and scrapers need no certificate. Who may call what is decided later, by the role
//! that the handshake has proven, or has not.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tokio_rustls::{Accept, TlsAcceptor};

use crate::tls::{Credentials, ProcessRole};

/// With which a TLS connection begins: the type of a handshake record. No text protocol does.
const HANDSHAKE: u8 = 0x16;

pub(crate) enum Wire {
    Plain(TcpStream),
    Secure(Box<TlsStream<TcpStream>>),
    /// It has not said what it is, or is shaking hands. `None` only while it changes.
    Opening(Option<Opening>),
}

pub(crate) struct Opening {
    step: Step,
    credentials: Credentials,
    proven: Arc<OnceLock<ProcessRole>>,
    tls_only: bool,
}

enum Step {
    Listening(TcpStream),
    Shaking(Box<Accept<TcpStream>>),
}

impl Wire {
    /// With credentials it may become TLS; `proven` then tells the role of who is there.
    pub(crate) fn new(
        stream: TcpStream,
        credentials: Option<&Credentials>,
        proven: &Arc<OnceLock<ProcessRole>>,
        tls_only: bool,
    ) -> Self {
        match credentials {
            None => Self::Plain(stream),
            Some(credentials) => Self::Opening(Some(Opening {
                step: Step::Listening(stream),
                credentials: credentials.clone(),
                proven: Arc::clone(proven),
                tls_only,
            })),
        }
    }

    /// Goes on until it is known what the connection is.
    pub(crate) fn poll_opened(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let Self::Opening(slot) = self else { return Poll::Ready(Ok(())) };
            let gone = || io::Error::from(io::ErrorKind::NotConnected);
            let opening = slot.as_mut().ok_or_else(gone)?;
            match &mut opening.step {
                Step::Listening(stream) => {
                    let mut first = [0];
                    let mut buffer = ReadBuf::new(&mut first);
                    ready!(stream.poll_peek(context, &mut buffer))?;
                    let is_tls = buffer.filled().first() == Some(&HANDSHAKE);
                    let Some(Opening { step: Step::Listening(stream), credentials, proven, tls_only }) =
                        slot.take()
                    else {
                        return Poll::Ready(Err(gone()));
                    };
                    if is_tls {
                        let accept = TlsAcceptor::from(Arc::clone(&credentials.server)).accept(stream);
                        let step = Step::Shaking(Box::new(accept));
                        *self = Self::Opening(Some(Opening { step, credentials, proven, tls_only }));
                    } else if tls_only {
                        return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "it is no TLS")));
                    } else {
                        *self = Self::Plain(stream);
                    }
                }
                Step::Shaking(accept) => {
                    let shaken = ready!(Pin::new(accept.as_mut()).poll(context));
                    let Some(opening) = slot.take() else { return Poll::Ready(Err(gone())) };
                    let stream = shaken?;
                    if let Some(role) = opening.credentials.role(stream.get_ref().1.peer_certificates()) {
                        // It is set once: this is the only handshake of the connection.
                        let _ = opening.proven.set(role);
                    }
                    *self = Self::Secure(Box::new(stream));
                }
            }
        }
    }
}

/// What is the same for both, once it is open.
macro_rules! opened {
    ($wire:expr, $stream:ident => $do:expr) => {
        match $wire {
            Wire::Plain($stream) => $do,
            Wire::Secure($stream) => $do,
            Wire::Opening(_) => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    };
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_opened(context))?;
        opened!(&mut *self, stream => Pin::new(stream).poll_read(context, buffer))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_opened(context))?;
        opened!(&mut *self, stream => Pin::new(stream).poll_write(context, bytes))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_opened(context))?;
        opened!(&mut *self, stream => Pin::new(stream).poll_flush(context))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A connection that never said what it is has nothing to end.
        match &mut *self {
            Self::Opening(_) => Poll::Ready(Ok(())),
            other => opened!(other, stream => Pin::new(stream).poll_shutdown(context)),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_opened(context))?;
        opened!(&mut *self, stream => Pin::new(stream).poll_write_vectored(context, parts))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Secure(stream) => stream.is_write_vectored(),
            // HTTP/2 asks once, at the beginning, and would write the head and the body of each frame apart from then on.
            Self::Opening(_) => true,
        }
    }
}
