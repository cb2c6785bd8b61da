//! Work that must not hold up the thread it is asked for on: on threads of its own, in a simulation on the only one.
//!
//! Nothing here decides an order between pieces of work, except that [`Later`] keeps its own.

use std::fmt;
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::simulation;

/// Runs work that takes long on a thread where it holds nobody up, and waits for it.
///
/// # Errors
/// The text of its panic, or that the runtime is going down.
pub async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    if simulation::is_active() {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())
}

/// Drops something large where it holds nobody up.
pub fn drop_off_thread(large: impl Send + 'static) {
    if !simulation::is_active() {
        tokio::task::spawn_blocking(move || drop(large));
    }
}

/// Makes items on a thread of its own, as fast as the receiver takes them. `make` gives each item to the function that
/// it gets, and stops when that answers `false`: the receiver has gone.
pub fn produce<T: Send + 'static>(
    into: mpsc::Sender<T>,
    make: impl FnOnce(&mut dyn FnMut(T) -> bool) + Send + 'static,
) {
    if simulation::is_active() {
        let mut items = Vec::new();
        make(&mut |item| {
            items.push(item);
            true
        });
        tokio::spawn(async move {
            for item in items {
                if into.send(item).await.is_err() {
                    return;
                }
            }
        });
    } else {
        tokio::task::spawn_blocking(move || make(&mut |item| into.blocking_send(item).is_ok()));
    }
}

/// A piece of work.
pub type Work = Box<dyn FnOnce() + Send>;

/// Does work some time later, in the order in which it was given: a device that is slow without a thread of its own.
#[derive(Clone)]
pub struct Later(Arc<dyn Fn(Work) + Send + Sync>);

impl Later {
    /// Calls `take` with each piece of work, which must be done, in order, unless the machine dies before.
    pub fn new(take: impl Fn(Work) + Send + Sync + 'static) -> Self {
        Self(Arc::new(take))
    }

    /// Gives it a piece of work. Never runs it before it returns unless `take` does.
    pub fn give(&self, work: Work) {
        (self.0)(work);
    }
}

impl fmt::Debug for Later {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Later")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn work_comes_back_and_a_panic_is_an_error() {
        assert_eq!(off_thread(|| 7).await, Ok(7));
        assert!(off_thread(|| panic!("no")).await.is_err());
    }

    #[tokio::test]
    async fn what_is_made_arrives_in_order_and_making_stops_with_the_receiver() {
        let (into, mut from) = mpsc::channel(1);
        produce(into, |give| {
            for number in 0.. {
                if !give(number) {
                    return;
                }
            }
        });
        for expected in 0..10 {
            assert_eq!(from.recv().await, Some(expected));
        }
    }
}
