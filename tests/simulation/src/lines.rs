//! Connections over turmoil's network, which can be reset from outside.
//!
//! turmoil's TCP sends nothing twice: a segment that is lost leaves a gap behind which the connection stands still until
//! somebody notices the silence. What a network does more often, a reset in the middle of everything, is made here:
//! both ends see an error, and what was on its way is lost.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use futures_util::Stream;
use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use tidewall_env::simulation::{Connecting, Connection};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use turmoil::net::{TcpListener, TcpStream};

/// All connections of a simulated network; clones are the same.
#[derive(Clone, Default)]
pub struct Lines(Arc<Mutex<Vec<End>>>);

/// One end of a connection.
struct End {
    here: IpAddr,
    there: IpAddr,
    switch: Weak<Switch>,
}

/// Breaks one end of a connection.
#[derive(Default)]
struct Switch {
    off: AtomicBool,
    reader: AtomicWaker,
    writer: AtomicWaker,
}

impl Lines {
    /// Connects to an address.
    pub fn connect(&self, address: SocketAddr) -> Connecting {
        let lines = self.clone();
        Box::pin(async move {
            let stream = TcpStream::connect(address).await?;
            Ok(Box::new(lines.take(stream)?) as Box<dyn Connection>)
        })
    }

    /// The connections that arrive at a port of the host that runs at the moment.
    ///
    /// # Errors
    /// When the port is in use.
    pub async fn listen(&self, port: u16) -> io::Result<impl Stream<Item = io::Result<Line>> + Send + use<>> {
        let listener = TcpListener::bind(("0.0.0.0", port)).await?;
        Ok(futures_util::stream::unfold((listener, self.clone()), |(listener, lines)| async move {
            let accepted = listener.accept().await.and_then(|(stream, _)| lines.take(stream));
            Some((accepted, (listener, lines)))
        }))
    }

    /// Resets all connections between two hosts; how many ends there were.
    pub fn reset(&self, one: IpAddr, other: IpAddr) -> usize {
        let mut ends = self.0.lock();
        let (broken, whole) = std::mem::take(&mut *ends).into_iter().partition(|end: &End| {
            (end.here, end.there) == (one, other) || (end.here, end.there) == (other, one)
        });
        *ends = whole;
        drop(ends);
        let broken: Vec<End> = broken;
        let switches: Vec<Arc<Switch>> = broken.iter().filter_map(|end| end.switch.upgrade()).collect();
        for switch in &switches {
            switch.off.store(true, Ordering::Release);
            switch.reader.wake();
            switch.writer.wake();
        }
        switches.len()
    }

    fn take(&self, stream: TcpStream) -> io::Result<Line> {
        let (here, there) = (stream.local_addr()?.ip(), stream.peer_addr()?.ip());
        let switch = Arc::new(Switch::default());
        let mut ends = self.0.lock();
        ends.retain(|end| end.switch.strong_count() > 0);
        ends.push(End { here, there, switch: Arc::downgrade(&switch) });
        Ok(Line { stream, switch })
    }
}

/// One end of a connection, as the software on its host has it.
pub struct Line {
    stream: TcpStream,
    switch: Arc<Switch>,
}

impl Line {
    fn whole(&self, waker: &AtomicWaker, context: &Context<'_>) -> io::Result<()> {
        waker.register(context.waker());
        match self.switch.off.load(Ordering::Acquire) {
            true => Err(io::ErrorKind::ConnectionReset.into()),
            false => Ok(()),
        }
    }
}

impl tonic::transport::server::Connected for Line {
    type ConnectInfo = ();
    fn connect_info(&self) {}
}

impl AsyncRead for Line {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.whole(&self.switch.reader, context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Line {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.whole(&self.switch.writer, context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
