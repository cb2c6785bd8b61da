//! Ports on this machine: whether one is free, and free ones chosen by the system.
//!
//! A port is held by a listener that never accepts until the process that shall own it is about to start,
//! so that two choices never collide. Between the two another program may still take it; that process then
//! fails to start, says so, and is started again.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, ToSocketAddrs as _};
use std::time::{Duration, Instant};

/// Ports that are kept from others until this is dropped.
#[derive(Debug, Default)]
pub struct Reservation {
    listeners: Vec<TcpListener>,
}

impl Reservation {
    /// Reserves exactly this address, waiting up to `patience` for it to become free. With port 0 the
    /// system chooses one. Returns the address that was reserved.
    pub fn exactly(&mut self, address: SocketAddr, patience: Duration) -> io::Result<SocketAddr> {
        let deadline = Instant::now() + patience;
        loop {
            match TcpListener::bind(address) {
                Ok(listener) => {
                    let address = listener.local_addr()?;
                    self.listeners.push(listener);
                    return Ok(address);
                }
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Reserves this address, or another port on the same host when it cannot be had.
    pub fn or_another(&mut self, address: SocketAddr, patience: Duration) -> io::Result<SocketAddr> {
        self.exactly(address, patience)
            .or_else(|_| self.exactly(SocketAddr::new(address.ip(), 0), Duration::ZERO))
    }
}

/// An address from the command line: `127.0.0.1:7400`, `[::1]:7400` or `localhost:7400`. Of the addresses of a host the first.
///
/// # Errors
/// What is wrong with it.
pub fn address(text: &str) -> Result<SocketAddr, String> {
    let found = text.to_socket_addrs().map_err(|error| error.to_string())?.next();
    found.ok_or_else(|| "the host has no address".to_owned())
}

/// An address on the loopback interface whose port the system shall choose.
pub fn any_loopback() -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0)
}

/// Where a client on this machine reaches a server that listens on `listen`: the loopback interface when it
/// listens on all of them.
pub fn reachable(listen: SocketAddr) -> SocketAddr {
    match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => {
            SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), listen.port())
        }
        IpAddr::V6(ip) if ip.is_unspecified() => {
            SocketAddr::new(IpAddr::V6(std::net::Ipv6Addr::LOCALHOST), listen.port())
        }
        _ => listen,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_reserved_port_is_nobody_elses() {
        let mut first = Reservation::default();
        let taken = first.exactly(any_loopback(), Duration::ZERO).unwrap();
        let mut second = Reservation::default();
        let error = second.exactly(taken, Duration::from_millis(60)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        let other = second.or_another(taken, Duration::ZERO).unwrap();
        assert_eq!(other.ip(), taken.ip());
        assert_ne!(other.port(), taken.port());
    }

    #[test]
    fn an_address_may_name_its_host() {
        assert_eq!(address("127.0.0.1:7").unwrap().to_string(), "127.0.0.1:7");
        assert_eq!(address("[::1]:7").unwrap().to_string(), "[::1]:7");
        assert!(address("localhost:7").unwrap().ip().is_loopback());
        for bad in ["localhost", "7", "", "127.0.0.1:70000"] {
            assert!(address(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_wildcard_is_reached_through_loopback() {
        assert_eq!(reachable("0.0.0.0:7".parse().unwrap()).to_string(), "127.0.0.1:7");
        assert_eq!(reachable("[::]:7".parse().unwrap()).to_string(), "[::1]:7");
        assert_eq!(reachable("10.1.2.3:7".parse().unwrap()).to_string(), "10.1.2.3:7");
    }
}
