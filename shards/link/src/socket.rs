//! The sockets under links: nothing waits in them to be joined with more, and a connection whose packets are lost is given
//! up soon.
//!
//! The kernel sends a lost packet again after 0.2, 0.6, 1.4, 3, 6 and 13 s: a connection that a short disturbance hit can be
//! silent long after the network has healed, while a new one would work at once. And a node that hears nothing, but is
//! heard, would go on sending heartbeats until the window of the other side is full, and keep it from electing.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;
use tokio_stream::Stream;
use tokio_util::either::Either;

use crate::accept::{AcceptLimits, Accepted, Connections, accept};
use crate::tls::Credentials;

/// A connection breaks when what it has sent was not acknowledged for so long. The kernel acknowledges, not the process: a
/// busy or stopped peer does not count, until it has left a whole window unread.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_millis(1_500);

/// A connection that was made: without TLS, or with it.
pub(crate) type Dialled = Either<TcpStream, Box<TlsStream<TcpStream>>>;

/// Connects.
pub(crate) async fn dial(address: SocketAddr) -> io::Result<TcpStream> {
    tuned(TcpStream::connect(address).await?)
}

/// The connections that a node's port accepts, for
/// [`serve_with_incoming`](tonic::transport::server::Router::serve_with_incoming). The server's own settings do not reach
/// connections that it is handed: without these, Nagle's algorithm and delayed acknowledgements would hold replies back for
/// 40 ms. With credentials they may be TLS, and with `tls_only` they must be.
pub fn incoming(
    listener: TcpListener,
    limits: AcceptLimits,
    connections: Connections,
    credentials: Option<&Credentials>,
    tls_only: bool,
) -> impl Stream<Item = io::Result<Accepted>> + Send + Unpin + use<> {
    accept(listener, limits, connections, tune).with_tls(credentials, tls_only)
}

fn tuned(stream: TcpStream) -> io::Result<TcpStream> {
    tune(&stream)?;
    Ok(stream)
}

fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let limit_ms = u32::try_from(UNACKNOWLEDGED_MAX.as_millis()).unwrap_or(u32::MAX);
    rustix::net::sockopt::set_tcp_user_timeout(stream, limit_ms)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn both_ends_give_up_what_is_not_acknowledged_and_send_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (dialled, accepted) = tokio::join!(dial(address), listener.accept());
        for stream in [dialled.unwrap(), tuned(accepted.unwrap().0).unwrap()] {
            assert!(stream.nodelay().unwrap());
            assert_eq!(rustix::net::sockopt::tcp_user_timeout(&stream).unwrap(), 1_500);
        }
    }
}
