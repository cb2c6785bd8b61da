//! How many bytes of requests a gateway holds while calls wait or are under way: in all, of a region, of an address and of a
//! connection. Small requests are bounded by their number ([`crate::admission`]); what is larger must find room here before
//! anything else is done for it, so that nobody fills the memory before it is known who calls.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};

use parking_lot::Mutex;

/// Smaller requests are not counted.
const SMALL_BYTES: usize = 4 << 10;

/// Bounds of what is held, bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) all: usize,
    pub(crate) region: usize,
    pub(crate) address: usize,
    pub(crate) connection: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { all: 256 << 20, region: 128 << 20, address: 128 << 20, connection: 32 << 20 }
    }
}

#[derive(Default)]
struct Counts {
    all: usize,
    regions: HashMap<usize, usize>,
    addresses: HashMap<IpAddr, usize>,
    connections: HashMap<SocketAddr, usize>,
}

/// Counts the bytes of the requests that are held.
#[derive(Default)]
pub(crate) struct Budget {
    bounds: Bounds,
    held: Mutex<Counts>,
}

/// Bytes that are held; given back when dropped.
#[must_use]
pub(crate) struct Held<'a> {
    budget: &'a Budget,
    bytes: usize,
    region: Option<usize>,
    peer: Option<SocketAddr>,
}

impl Budget {
    /// Holds a request. `None` says that there is no room for it.
    pub(crate) fn hold(
        &self,
        bytes: usize,
        region: Option<usize>,
        peer: Option<SocketAddr>,
    ) -> Option<Held<'_>> {
        if bytes <= SMALL_BYTES {
            return Some(Held { budget: self, bytes: 0, region, peer });
        }
        let mut counts = self.held.lock();
        let of = |count: Option<&usize>| count.copied().unwrap_or(0) + bytes;
        let fits = counts.all + bytes <= self.bounds.all
            && region.is_none_or(|region| of(counts.regions.get(&region)) <= self.bounds.region)
            && peer.is_none_or(|peer| {
                of(counts.addresses.get(&peer.ip())) <= self.bounds.address
                    && of(counts.connections.get(&peer)) <= self.bounds.connection
            });
        if !fits {
            return None;
        }
        counts.all += bytes;
        if let Some(region) = region {
            *counts.regions.entry(region).or_default() += bytes;
        }
        if let Some(peer) = peer {
            *counts.addresses.entry(peer.ip()).or_default() += bytes;
            *counts.connections.entry(peer).or_default() += bytes;
        }
        Some(Held { budget: self, bytes, region, peer })
    }

    /// Bytes that are held now.
    #[cfg(test)]
    fn all(&self) -> usize {
        self.held.lock().all
    }
}

fn give_back<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: K, bytes: usize) {
    if let Some(count) = counts.get_mut(&key) {
        *count -= bytes;
        if *count == 0 {
            counts.remove(&key);
        }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if self.bytes == 0 {
            return;
        }
        let mut counts = self.budget.held.lock();
        counts.all -= self.bytes;
        if let Some(region) = self.region {
            give_back(&mut counts.regions, region, self.bytes);
        }
        if let Some(peer) = self.peer {
            give_back(&mut counts.addresses, peer.ip(), self.bytes);
            give_back(&mut counts.connections, peer, self.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn each_bound_is_kept_and_everything_is_given_back() {
        let bounds = Bounds { all: 100_000, region: 60_000, address: 50_000, connection: 30_000 };
        let budget = Budget { bounds, held: Mutex::default() };
        let peer = |host: u8, port: u16| Some(SocketAddr::from(([10, 0, 0, host], port)));
        let first = budget.hold(20_000, Some(0), peer(1, 1)).unwrap();
        assert!(budget.hold(20_000, Some(0), peer(1, 1)).is_none(), "the connection's bound");
        let second = budget.hold(20_000, Some(0), peer(1, 2)).unwrap();
        assert!(budget.hold(20_000, Some(0), peer(1, 3)).is_none(), "the address's bound");
        assert!(budget.hold(25_000, Some(0), peer(2, 1)).is_none(), "the region's bound");
        let third = budget.hold(25_000, Some(1), peer(2, 1)).unwrap();
        assert!(budget.hold(40_000, None, None).is_none(), "the bound of all");
        assert_eq!(budget.all(), 65_000);
        for _ in 0..10_000 {
            // A crowd of small ones is bounded elsewhere.
            let _small = budget.hold(SMALL_BYTES, Some(0), peer(1, 1)).unwrap();
        }
        drop((first, second, third));
        assert_eq!(budget.all(), 0);
        let counts = budget.held.lock();
        assert!(counts.regions.is_empty() && counts.addresses.is_empty() && counts.connections.is_empty());
    }
}
