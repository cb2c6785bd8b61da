//! Whether this thread simulates a cluster, and then where its chance, time and connections come from.
//!
//! A simulation runs all of a cluster on one thread. What would make two runs differ (random numbers, threads of
//! their own, sockets of the operating system) asks here first. Outside of a simulation nothing here does anything.
//! **Never here:** what is simulated; only the one that runs the simulation knows that.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

/// The date of all HTTP responses, which nobody reads.
pub const DATE: &str = "Thu, 01 Jan 1970 00:00:00 GMT";

/// A connection, whatever it is made of.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// A connection that is being made.
pub type Connecting = Pin<Box<dyn Future<Output = io::Result<Box<dyn Connection>>> + Send>>;

/// What a simulation puts in the place of the world.
#[derive(Clone)]
pub struct World {
    /// Connects to an address of the simulated network.
    pub connect: Arc<dyn Fn(SocketAddr) -> Connecting>,
    /// Virtual time since the simulation began, for whoever runs at the moment.
    pub elapsed: fn() -> Duration,
    /// The right time of the simulated world, ms since 1970.
    pub unix_ms: fn() -> u64,
}

thread_local! {
    static ACTIVE: Cell<bool> = const { Cell::new(false) };
    static WORLD: RefCell<Option<World>> = const { RefCell::new(None) };
    static DRAWS: Cell<u64> = const { Cell::new(0) };
    static CHANCE: RefCell<Option<StdRng>> = const { RefCell::new(None) };
}

/// Ends the simulation of this thread when it goes.
#[derive(Debug)]
#[must_use = "the simulation ends when this goes"]
pub struct Guard(());

impl Drop for Guard {
    fn drop(&mut self) {
        ACTIVE.set(false);
        WORLD.with(|place| place.borrow_mut().take());
        CHANCE.with(|place| place.borrow_mut().take());
    }
}

/// From now on this thread simulates: all chance comes from `seed`, the rest from `world`.
pub fn enter(seed: u64, world: World) -> Guard {
    CHANCE.with(|place| *place.borrow_mut() = Some(StdRng::seed_from_u64(seed)));
    WORLD.with(|place| *place.borrow_mut() = Some(world));
    DRAWS.set(0);
    ACTIVE.set(true);
    Guard(())
}

/// Whether this thread simulates.
#[inline]
pub fn is_active() -> bool {
    ACTIVE.get()
}

/// Connects over the simulated network; `None` outside of a simulation.
pub fn connect(address: SocketAddr) -> Option<Connecting> {
    let world = WORLD.with(|place| place.borrow().clone())?;
    Some((world.connect)(address))
}

/// When the simulation began, on the clock of whoever runs at the moment; `None` outside of a simulation.
pub fn began() -> Option<Instant> {
    let elapsed = WORLD.with(|place| place.borrow().as_ref().map(|world| world.elapsed))?;
    Instant::now().checked_sub(elapsed())
}

/// The right time of the simulated world, ms since 1970; `None` outside of a simulation.
pub(crate) fn unix_ms() -> Option<u64> {
    WORLD.with(|place| place.borrow().as_ref().map(|world| world.unix_ms)).map(|now| now())
}

/// How often chance was asked since the simulation began: two runs that differ here differ.
pub fn draws() -> u64 {
    DRAWS.get()
}

/// Draws from the simulation's chance; `None` outside of a simulation.
pub(crate) fn draw<T>(from: impl FnOnce(&mut StdRng) -> T) -> Option<T> {
    if !is_active() {
        return None;
    }
    DRAWS.set(DRAWS.get() + 1);
    CHANCE.with(|place| place.borrow_mut().as_mut().map(from))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rand::Rng as _;

    fn world() -> World {
        let refuse = |_| -> Connecting { Box::pin(async { Err(io::ErrorKind::ConnectionRefused.into()) }) };
        World { connect: Arc::new(refuse), elapsed: || Duration::ZERO, unix_ms: || 7 }
    }

    fn numbers(seed: u64) -> Vec<u64> {
        let _simulated = enter(seed, world());
        (0..8).map(|_| crate::random::rng().random()).collect()
    }

    #[test]
    fn chance_comes_from_the_seed() {
        assert_eq!(numbers(7), numbers(7));
        assert_ne!(numbers(7), numbers(8));
    }

    #[test]
    fn a_simulation_ends_with_its_guard() {
        assert!(!is_active() && connect("127.0.0.1:1".parse().unwrap()).is_none() && began().is_none());
        let guard = enter(1, world());
        assert!(is_active() && connect("127.0.0.1:1".parse().unwrap()).is_some() && began().is_some());
        assert_eq!(crate::clock::unix_ms(), 7);
        drop(guard);
        assert!(!is_active() && draw(|_| ()).is_none() && unix_ms().is_none());
    }
}
