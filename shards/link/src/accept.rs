//! The connections that a port accepts: how many, how many of one address, and how long one may take to say what it wants.
//!
//! A connection that never speaks costs a file descriptor and memory for as long as it likes; enough of them, and nobody else
//! gets in. When descriptors run out, accepting waits: an accept that fails at once, again and again, would take a whole core.

use std::collections::HashMap;
use std::future::Future as _;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, Sleep, sleep};
use tokio_stream::Stream;
use tonic::transport::server::Connected;

use crate::said::Said;
use crate::tls::{Credentials, ProcessRole};
use crate::wire::{Opened, Tls, Wire};

/// With which an HTTP/2 connection begins.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Longest head of an HTTP/1.1 request, bytes.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// First and longest pause after accepting has failed for lack of something.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Bounds of a port.
#[derive(Debug, Clone, Copy)]
pub struct AcceptLimits {
    /// Connections at a time.
    pub connections_max: usize,
    /// Of those, of one address.
    pub per_address_max: usize,
    /// A connection that has not sent the beginning of HTTP/2, or the head of an HTTP/1.1 request, within this time is closed.
    pub opening_max: Duration,
    /// An HTTP/1.1 connection that is silent for so long is closed. (HTTP/2 has pings.)
    pub idle_max: Duration,
}

impl Default for AcceptLimits {
    fn default() -> Self {
        let connections_max = file_descriptors() / 2;
        Self {
            connections_max,
            per_address_max: connections_max.div_ceil(2),
            opening_max: Duration::from_secs(10),
            idle_max: Duration::from_secs(75),
        }
    }
}

/// How many file descriptors this process may have. Asks for as many as the system allows it.
fn file_descriptors() -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    /// More are not asked for: each connection takes memory as well.
    const ASKED_MAX: u64 = 131_072;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = maximum.unwrap_or(ASKED_MAX).min(ASKED_MAX);
    if current.is_some_and(|current| current < wanted) {
        // Whoever is refused lives with what it has.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum });
    }
    let current = getrlimit(Resource::Nofile).current.unwrap_or(ASKED_MAX);
    usize::try_from(current.min(ASKED_MAX)).unwrap_or(usize::MAX)
}

/// Counts the connections of a port. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct Connections {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    open: Mutex<Open>,
    refused: AtomicU64,
    /// Of refusals and failures.
    said: Said,
}

#[derive(Debug, Default)]
struct Open {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
}

impl Connections {
    /// Connections that are open now.
    pub fn open(&self) -> usize {
        self.shared.open.lock().all
    }

    /// Connections that were closed at once because there were too many.
    pub fn refused(&self) -> u64 {
        self.shared.refused.load(Ordering::Relaxed)
    }

    /// Counts one more, if there is room for it.
    fn enter(&self, address: IpAddr, limits: &AcceptLimits) -> Option<Place> {
        let mut open = self.shared.open.lock();
        let of_address = open.by_address.get(&address).copied().unwrap_or(0);
        if open.all >= limits.connections_max || of_address >= limits.per_address_max {
            self.shared.refused.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        open.all += 1;
        open.by_address.insert(address, of_address + 1);
        Some(Place { shared: Arc::clone(&self.shared), address })
    }
}

/// A connection's place in the count.
#[derive(Debug)]
struct Place {
    shared: Arc<Shared>,
    address: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.shared.open.lock();
        open.all -= 1;
        if let Some(count) = open.by_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                open.by_address.remove(&self.address);
            }
        }
    }
}

/// What a connection has said so far.
#[derive(Debug)]
enum Speech {
    /// Too little to tell.
    Beginning { head: Vec<u8>, until: Pin<Box<Sleep>> },
    /// HTTP/2: its pings tell whether somebody is there.
    Http2,
    /// HTTP/1.1: must go on speaking.
    Http1 { until: Pin<Box<Sleep>> },
}

impl Speech {
    /// Takes in what was read.
    fn heard(&mut self, bytes: &[u8], idle_max: Duration) {
        match self {
            Self::Beginning { head, .. } => {
                head.extend_from_slice(&bytes[..bytes.len().min(HEAD_BYTES_MAX)]);
                if head.starts_with(PREFACE) {
                    *self = Self::Http2;
                } else if !PREFACE.starts_with(head)
                    && (head.windows(4).any(|end| end == b"\r\n\r\n") || head.len() > HEAD_BYTES_MAX)
                {
                    // A head that is too long is refused by who reads it.
                    *self = Self::Http1 { until: Box::pin(sleep(idle_max)) };
                }
            }
            Self::Http1 { until } => until.as_mut().reset(Instant::now() + idle_max),
            Self::Http2 => {}
        }
    }

    /// Whether it has been silent for too long.
    fn is_late(&mut self, context: &mut Context<'_>) -> bool {
        match self {
            Self::Beginning { until, .. } | Self::Http1 { until } => until.as_mut().poll(context).is_ready(),
            Self::Http2 => false,
        }
    }
}

/// Who is at the other end of a connection, as far as that is known. Every request that came over it carries this.
#[derive(Debug, Clone)]
pub struct ConnectedFrom {
    remote: Option<SocketAddr>,
    proven: Arc<OnceLock<ProcessRole>>,
}

impl ConnectedFrom {
    /// Its address.
    pub fn remote_addr(&self) -> Option<SocketAddr> {
        self.remote
    }

    /// The role that its certificate has proven.
    pub fn role(&self) -> Option<ProcessRole> {
        self.proven.get().copied()
    }
}

/// A connection that was accepted.
pub struct Accepted {
    wire: Wire,
    from: ConnectedFrom,
    speech: Speech,
    idle_max: Duration,
    place: Place,
}

impl Accepted {
    /// The connection, once it is known what it is. It may not take for ever to say so.
    fn poll_open(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Pin<&mut Opened>>> {
        match self.wire.poll_open(context, &self.from.proven) {
            Poll::Pending if self.speech.is_late(context) => Poll::Ready(Err(late())),
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(open)) => Poll::Ready(Ok(Pin::new(open))),
            Poll::Ready(Err(error)) => {
                if error.kind() == io::ErrorKind::InvalidData && self.place.shared.said.is_due() {
                    tracing::error!(address = %self.place.address, %error, "a connection was refused");
                }
                Poll::Ready(Err(error))
            }
        }
    }
}

fn late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the connection said nothing")
}

impl Connected for Accepted {
    type ConnectInfo = ConnectedFrom;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.from.clone()
    }
}

impl AsyncRead for Accepted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buffer.filled().len();
        match ready!(this.poll_open(context))?.poll_read(context, buffer) {
            Poll::Ready(read) => {
                let bytes = &buffer.filled()[before..];
                if !bytes.is_empty() {
                    this.speech.heard(bytes, this.idle_max);
                }
                Poll::Ready(read)
            }
            Poll::Pending if this.speech.is_late(context) => Poll::Ready(Err(late())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_open(context))?.poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_open(context))?.poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.wire {
            Wire::Open(open) => Pin::new(open).poll_shutdown(context),
            // It never said what it is: there is nothing to end.
            _ => Poll::Ready(Ok(())),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_open(context))?.poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        // HTTP/2 asks once, at the beginning, and would write the head and the body of each frame apart from then on. Both
        // kinds can, also while it is not known yet which one it is.
        true
    }
}

/// The connections of a port, as a stream that never ends and never fails.
pub struct Incoming<T> {
    listener: TcpListener,
    tune: T,
    limits: AcceptLimits,
    connections: Connections,
    tls: Option<Tls>,
    /// While accepting waits for something to be free again.
    pause: Option<Pin<Box<Sleep>>>,
    failures: u32,
}

/// Accepts connections within `limits`, counts them, and sets them up with `tune`.
pub fn accept<T: Fn(&TcpStream) -> io::Result<()> + Unpin>(
    listener: TcpListener,
    limits: AcceptLimits,
    connections: Connections,
    tune: T,
) -> Incoming<T> {
    Incoming { listener, tune, limits, connections, tls: None, pause: None, failures: 0 }
}

impl<T> Incoming<T> {
    /// Connections may be TLS from now on, if there are credentials; with `only`, all others are closed.
    #[must_use]
    pub fn with_tls(mut self, credentials: Option<&Credentials>, only: bool) -> Self {
        self.tls = credentials.map(|credentials| Tls { credentials: credentials.clone(), only });
        self
    }
}

impl<T: Fn(&TcpStream) -> io::Result<()> + Unpin> Stream for Incoming<T> {
    type Item = io::Result<Accepted>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(context));
                self.pause = None;
            }
            let (stream, peer) = match ready!(self.listener.poll_accept(context)) {
                Ok(accepted) => accepted,
                Err(error) if is_lack(&error) => {
                    let pause = PAUSE_MIN.saturating_mul(1 << self.failures.min(10)).min(PAUSE_MAX);
                    self.failures += 1;
                    if self.connections.shared.said.is_due() {
                        let open = self.connections.open();
                        tracing::error!(%error, open, "no connection can be accepted: raise the limit of open files");
                    }
                    self.pause = Some(Box::pin(sleep(pause)));
                    continue;
                }
                // The connection was gone before it was accepted.
                Err(_) => continue,
            };
            self.failures = 0;
            let Some(place) = self.connections.enter(peer.ip(), &self.limits) else {
                if self.connections.shared.said.is_due() {
                    let (address, open) = (peer.ip(), self.connections.open());
                    tracing::warn!(%address, open, "too many connections: new ones are closed at once");
                }
                continue;
            };
            if (self.tune)(&stream).is_err() {
                continue;
            }
            let until = Box::pin(sleep(self.limits.opening_max));
            let speech = Speech::Beginning { head: Vec::new(), until };
            let idle_max = self.limits.idle_max;
            let from = ConnectedFrom { remote: Some(peer), proven: Arc::default() };
            let wire = Wire::new(stream, self.tls.as_ref());
            return Poll::Ready(Some(Ok(Accepted { wire, from, speech, idle_max, place })));
        }
    }
}

/// Whether accepting failed because something has run out.
fn is_lack(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let lacks = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    error.raw_os_error().is_some_and(|code| lacks.iter().any(|lack| lack.raw_os_error() == code))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio_stream::StreamExt as _;

    const SOON: Duration = Duration::from_millis(300);
    const PATIENCE: Duration = Duration::from_secs(20);

    async fn port(limits: AcceptLimits) -> (SocketAddr, Connections) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Connections::default();
        let mut incoming = accept(listener, limits, connections.clone(), |_: &TcpStream| Ok(()));
        // Reads all that comes, and says one letter for each piece, as long as the connection may live.
        tokio::spawn(async move {
            while let Some(Ok(mut accepted)) = incoming.next().await {
                tokio::spawn(async move {
                    let mut piece = [0; 256];
                    while let Ok(1..) = accepted.read(&mut piece).await {
                        accepted.write_all(b".").await.unwrap();
                    }
                });
            }
        });
        (address, connections)
    }

    fn limits() -> AcceptLimits {
        AcceptLimits { connections_max: 4, per_address_max: 3, opening_max: SOON, idle_max: SOON }
    }

    /// Whether the other side has closed the connection, once it has said what it had to.
    async fn is_closed(stream: &mut TcpStream) -> bool {
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
        ended.is_ok_and(|read| read.is_ok() || rest.len() < 3)
    }

    #[tokio::test]
    async fn who_says_nothing_or_stops_in_the_beginning_is_sent_away() {
        for beginning in [&b""[..], &PREFACE[..5], &PREFACE[..23], b"GET /metrics HTTP/1.1\r\nhost: x\r\n"] {
            let (address, connections) = port(limits()).await;
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(beginning).await.unwrap();
            assert!(is_closed(&mut stream).await, "{:?}", String::from_utf8_lossy(beginning));
            assert_eq!(connections.open(), 0);
        }
    }

    #[tokio::test]
    async fn who_has_begun_http_2_stays_also_when_its_beginning_came_in_pieces() {
        let (address, connections) = port(limits()).await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        for piece in PREFACE.chunks(5) {
            stream.write_all(piece).await.unwrap();
            stream.flush().await.unwrap();
            assert_eq!(stream.read_u8().await.unwrap(), b'.');
        }
        tokio::time::sleep(SOON * 3).await;
        stream.write_all(b"x").await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'.');
        assert_eq!(connections.open(), 1);
    }

    #[tokio::test]
    async fn http_1_stays_while_it_goes_on_speaking() {
        let (address, _) = port(limits()).await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        for _ in 0..4 {
            stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
            assert_eq!(stream.read_u8().await.unwrap(), b'.');
            tokio::time::sleep(SOON / 3).await;
        }
        assert!(is_closed(&mut stream).await);
    }

    #[tokio::test]
    async fn there_is_room_for_so_many_of_an_address_and_it_comes_back() {
        let (address, connections) = port(AcceptLimits { opening_max: PATIENCE, ..limits() }).await;
        let mut streams = Vec::new();
        for _ in 0..4 {
            streams.push(TcpStream::connect(address).await.unwrap());
        }
        let mut fourth = streams.pop().unwrap();
        assert!(is_closed(&mut fourth).await);
        assert_eq!((connections.open(), connections.refused()), (3, 1));
        drop(streams);
        while connections.open() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let mut again = TcpStream::connect(address).await.unwrap();
        again.write_all(PREFACE).await.unwrap();
        assert_eq!(again.read_u8().await.unwrap(), b'.');
    }

    #[test]
    fn what_has_run_out_is_told_from_connections_that_are_gone() {
        let of = |errno: rustix::io::Errno| is_lack(&io::Error::from_raw_os_error(errno.raw_os_error()));
        assert!(of(rustix::io::Errno::MFILE) && of(rustix::io::Errno::NFILE));
        assert!(!of(rustix::io::Errno::CONNABORTED));
    }
}
