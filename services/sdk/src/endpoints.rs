//! The gateways of a client and a connection to each. A connection that looks broken is replaced and its gateway
//! rests for a moment; any gateway will do for any call, because gateways keep no state. Nothing here sends a
//! request or decides whether one may be sent again.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};

use crate::error::ConnectError;
use crate::options::Options;

/// A gateway that failed is not the first choice for so long, doubled with each further failure.
const REST_FIRST: Duration = Duration::from_millis(250);
const REST_MAX: Duration = Duration::from_secs(5);
/// Requests that may wait for a connection's task.
const BUFFERED_REQUESTS: usize = 4096;

/// The gateways.
#[derive(Debug)]
pub(crate) struct Endpoints {
    gateways: Vec<Gateway>,
    /// Calls take turns, so that all gateways get their share.
    turn: AtomicUsize,
}

#[derive(Debug)]
struct Gateway {
    address: String,
    endpoint: Endpoint,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    channel: Channel,
    /// Raised with each replacement: a late report about an old connection must not harm the new one.
    generation: u64,
    failures: u32,
    resting_until: Option<Instant>,
}

/// A connection to use for one attempt.
#[derive(Debug, Clone)]
pub(crate) struct Picked {
    pub(crate) index: usize,
    pub(crate) channel: Channel,
    generation: u64,
}

impl Endpoints {
    /// Prepares a connection to each gateway; the first call on it makes it. Needs a tokio runtime.
    pub(crate) fn new(addresses: &[String], options: &Options) -> Result<Self, ConnectError> {
        if addresses.is_empty() {
            return Err(ConnectError::NoEndpoint);
        }
        let mut gateways: Vec<Gateway> = Vec::new();
        for address in addresses {
            let endpoint = parse(address, options)?;
            // Named twice, it is still one gateway.
            if gateways.iter().all(|gateway| gateway.endpoint.uri() != endpoint.uri()) {
                let channel = endpoint.connect_lazy();
                let state = State { channel, generation: 0, failures: 0, resting_until: None };
                gateways.push(Gateway { address: address.clone(), endpoint, state: Mutex::new(state) });
            }
        }
        Ok(Self { gateways, turn: AtomicUsize::new(rand::random_range(0..addresses.len())) })
    }

    /// A connection, preferably to a gateway that is not among `tried` and does not rest.
    pub(crate) fn pick(&self, tried: &BTreeSet<usize>) -> Picked {
        let now = Instant::now();
        let count = self.gateways.len();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let in_turn = (0..count).map(|step| turn.wrapping_add(step) % count);
        let index = in_turn
            .min_by_key(|index| {
                let resting = self.gateways[*index].state.lock().resting_until;
                (tried.contains(index), resting.filter(|until| *until > now))
            })
            .expect("there is at least one gateway, it was checked at the start");
        let state = self.gateways[index].state.lock();
        Picked { index, channel: state.channel.clone(), generation: state.generation }
    }

    /// The address of a gateway.
    pub(crate) fn address(&self, picked: &Picked) -> &str {
        &self.gateways[picked.index].address
    }

    /// How many gateways there are.
    pub(crate) fn count(&self) -> usize {
        self.gateways.len()
    }

    /// The gateway answered, whatever it said.
    pub(crate) fn answered(&self, picked: &Picked) {
        let mut state = self.gateways[picked.index].state.lock();
        if state.generation == picked.generation {
            (state.failures, state.resting_until) = (0, None);
        }
    }

    /// The connection or the gateway failed: the next call gets another connection. Calls that are still
    /// running on the old one keep it.
    pub(crate) fn failed(&self, picked: &Picked) {
        let gateway = &self.gateways[picked.index];
        let mut state = gateway.state.lock();
        if state.generation == picked.generation {
            let rest = REST_FIRST.saturating_mul(1u32.checked_shl(state.failures).unwrap_or(u32::MAX));
            state.channel = gateway.endpoint.connect_lazy();
            state.generation += 1;
            state.failures = state.failures.saturating_add(1);
            state.resting_until = Some(Instant::now() + rest.min(REST_MAX));
        }
    }
}

fn parse(address: &str, options: &Options) -> Result<Endpoint, ConnectError> {
    let refuse = |why: &str| ConnectError::Endpoint { endpoint: address.to_owned(), why: why.to_owned() };
    let endpoint = Endpoint::from_shared(address.to_owned()).map_err(|error| {
        let cause = std::error::Error::source(&error).map_or(error.to_string(), ToString::to_string);
        refuse(&cause)
    })?;
    match endpoint.uri().scheme_str() {
        Some("http") => {}
        Some("https") => return Err(refuse("gateways do not speak TLS yet")),
        _ => return Err(refuse("it must begin with http://")),
    }
    Ok(endpoint
        .tcp_nodelay(true)
        .connect_timeout(options.connect_timeout)
        .http2_keep_alive_interval(options.keepalive_interval)
        .keep_alive_timeout(options.keepalive_timeout)
        .keep_alive_while_idle(true)
        .buffer_size(BUFFERED_REQUESTS))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn endpoints(count: usize) -> Endpoints {
        let addresses: Vec<_> = (1..=count).map(|port| format!("http://127.0.0.1:{port}")).collect();
        Endpoints::new(&addresses, &Options::default()).unwrap()
    }

    #[tokio::test]
    async fn calls_take_turns() {
        let endpoints = endpoints(3);
        let picked: BTreeSet<_> = (0..3).map(|_| endpoints.pick(&BTreeSet::new()).index).collect();
        assert_eq!(picked, BTreeSet::from([0, 1, 2]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_gateway_that_failed_rests_longer_each_time_and_comes_back() {
        let endpoints = endpoints(2);
        let none = BTreeSet::new();
        let first = endpoints.pick(&none);
        endpoints.failed(&first);
        let rested = |endpoints: &Endpoints| {
            (0..4).map(|_| endpoints.pick(&none).index).filter(|index| *index == first.index).count()
        };
        assert_eq!(rested(&endpoints), 0);
        tokio::time::advance(Duration::from_millis(251)).await;
        assert_eq!(rested(&endpoints), 2);
        let again = (0..2).map(|_| endpoints.pick(&none)).find(|picked| picked.index == first.index).unwrap();
        endpoints.failed(&again);
        // The second report about the same connection is about the one that is gone.
        endpoints.failed(&again);
        tokio::time::advance(Duration::from_millis(251)).await;
        assert_eq!(rested(&endpoints), 0);
        tokio::time::advance(Duration::from_millis(250)).await;
        assert_eq!(rested(&endpoints), 2);
    }

    #[tokio::test]
    async fn one_that_was_not_tried_comes_first_and_when_all_rest_one_is_taken_all_the_same() {
        let endpoints = endpoints(2);
        let first = endpoints.pick(&BTreeSet::new());
        let tried = BTreeSet::from([first.index]);
        let other = endpoints.pick(&tried);
        assert_ne!(other.index, first.index);
        endpoints.failed(&other);
        // Resting, but not tried in this call.
        assert_eq!(endpoints.pick(&tried).index, other.index);
        endpoints.failed(&first);
        assert_eq!(endpoints.count(), 2);
        endpoints.pick(&BTreeSet::from([0, 1]));
    }

    #[tokio::test]
    async fn an_answer_ends_the_rest() {
        let endpoints = endpoints(2);
        let first = endpoints.pick(&BTreeSet::new());
        endpoints.failed(&first);
        let tried = BTreeSet::from([1 - first.index]);
        let renewed = endpoints.pick(&tried);
        assert_eq!(renewed.index, first.index);
        endpoints.answered(&renewed);
        assert!((0..2).any(|_| endpoints.pick(&BTreeSet::new()).index == first.index));
    }

    #[tokio::test]
    async fn addresses_that_cannot_work_are_refused() {
        let options = Options::default();
        assert!(matches!(Endpoints::new(&[], &options), Err(ConnectError::NoEndpoint)));
        for (wrong, part) in
            [("https://a:1", "TLS"), ("127.0.0.1:7400", ""), ("a b", ""), ("ftp://a", "http://")]
        {
            let error = Endpoints::new(&[wrong.to_owned()], &options).unwrap_err().to_string();
            assert!(error.contains(wrong) && error.contains(part), "{error}");
        }
        let twice = ["http://127.0.0.1:1".to_owned(), "http://127.0.0.1:1".to_owned()];
        assert_eq!(Endpoints::new(&twice, &options).unwrap().count(), 1);
    }
}
