//! Who stands at both ends of a call between processes of a cluster.
//!
//! An address is not an identity: ports and addresses are given to others, and a copied topology leads to the processes of
//! the original. Each call and each stream names the cluster, the node that it is for and the node that it is from; the
//! answer names who gave it. What does not match is refused on both sides before anything of it is read, and said in both
//! logs.
//!
//! It never proves anything against somebody who lies: that takes certificates.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http;
use tonic::transport::Channel;
use tower::{Layer, Service};

/// The services between processes; what else a port serves (health, metrics) is for everybody.
const INTERNAL: &str = "/tidewall.internal.";
/// Cluster of the caller and of who answers, 32 hexadecimal digits.
const CLUSTER: &str = "tidewall-cluster";
/// The node that a call is for.
const TO: &str = "tidewall-to";
/// The node that a call is from; left out by gateways and tools.
const FROM: &str = "tidewall-from";
/// The node that answers.
const NODE: &str = "tidewall-node";
/// A mismatch is logged once in this time: whoever is wrong goes on trying.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// Who calls whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parties {
    /// The cluster that both belong to.
    pub cluster: [u8; 16],
    /// The node that calls; `None` for a gateway or a tool.
    pub from: Option<u64>,
    /// The node that is called.
    pub to: u64,
}

fn text(cluster: [u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(cluster))
}

/// A connection to a node whose identity is checked with every answer.
#[derive(Debug, Clone)]
pub struct NodeChannel {
    channel: Channel,
    shared: Arc<Expected>,
}

#[derive(Debug)]
struct Expected {
    address: SocketAddr,
    to: u64,
    cluster_header: http::HeaderValue,
    to_header: http::HeaderValue,
    from_header: Option<http::HeaderValue>,
    said: Said,
}

/// When a mismatch was logged last.
#[derive(Debug, Default)]
struct Said(Mutex<Option<Instant>>);

impl Said {
    fn say(&self, what: &str) {
        let mut last = self.0.lock();
        if last.is_none_or(|at| at.elapsed() >= SAY_EVERY) {
            *last = Some(Instant::now());
            tracing::error!("{what}");
        }
    }
}

impl NodeChannel {
    /// Over this channel, which leads to `address`.
    pub fn new(channel: Channel, address: SocketAddr, parties: Parties) -> Self {
        let cluster = http::HeaderValue::from_str(&text(parties.cluster));
        let shared = Expected {
            address,
            to: parties.to,
            cluster_header: cluster.expect("hexadecimal digits make a header"),
            to_header: parties.to.into(),
            from_header: parties.from.map(Into::into),
            said: Said::default(),
        };
        Self { channel, shared: Arc::new(shared) }
    }
}

impl Expected {
    /// Why an answer must not be read.
    fn objection(&self, headers: &http::HeaderMap) -> Option<String> {
        let found = (headers.get(CLUSTER), headers.get(NODE));
        if found == (Some(&self.cluster_header), Some(&self.to_header)) {
            return None;
        }
        let word = |value: Option<&http::HeaderValue>| {
            value.and_then(|value| value.to_str().ok()).unwrap_or("unknown").to_owned()
        };
        Some(format!(
            "the process at {} is node {} of cluster {}, not node {} of cluster {}: look at the topology and at who has that \
             address now",
            self.address,
            word(found.1),
            word(found.0),
            self.to,
            word(Some(&self.cluster_header)),
        ))
    }
}

impl Service<http::Request<Body>> for NodeChannel {
    type Response = http::Response<Body>;
    type Error = tonic::transport::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.channel.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let shared = Arc::clone(&self.shared);
        let headers = request.headers_mut();
        headers.insert(CLUSTER, shared.cluster_header.clone());
        headers.insert(TO, shared.to_header.clone());
        if let Some(from) = &shared.from_header {
            headers.insert(FROM, from.clone());
        }
        let answer = self.channel.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            Ok(match shared.objection(answer.headers()) {
                None => answer,
                Some(objection) => {
                    shared.said.say(&objection);
                    // Who names itself has refused the call as well; what somebody else has made of it nobody knows.
                    match answer.headers().contains_key(NODE) {
                        true => Status::failed_precondition(objection).into_http(),
                        false => Status::unknown(objection).into_http(),
                    }
                }
            })
        })
    }
}

/// Lets a port of a node answer only what is meant for it, and say who it is.
#[derive(Debug, Clone)]
pub struct NodeIdentity {
    shared: Arc<Own>,
}

#[derive(Debug)]
struct Own {
    node: u64,
    cluster_header: http::HeaderValue,
    node_header: http::HeaderValue,
    said: Said,
}

impl NodeIdentity {
    /// Of this node in this cluster.
    pub fn new(cluster: [u8; 16], node: u64) -> Self {
        let cluster = http::HeaderValue::from_str(&text(cluster));
        let cluster_header = cluster.expect("hexadecimal digits make a header");
        Self {
            shared: Arc::new(Own { node, cluster_header, node_header: node.into(), said: Said::default() }),
        }
    }
}

impl Own {
    /// Why a call must not be read.
    fn objection(&self, headers: &http::HeaderMap) -> Option<String> {
        let word = |name: &str| {
            headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("unknown").to_owned()
        };
        if headers.get(CLUSTER) != Some(&self.cluster_header) || headers.get(TO) != Some(&self.node_header) {
            return Some(format!(
                "a call for node {} of cluster {} came to node {} of cluster {} and was refused: look at the topology that \
                 the caller follows",
                word(TO),
                word(CLUSTER),
                self.node,
                self.cluster_header.to_str().unwrap_or_default(),
            ));
        }
        if headers.get(FROM) == Some(&self.node_header) {
            return Some(format!(
                "another process calls itself node {} of this cluster and was refused: a copy of this node's data is in \
                 use; stop it and give it a new id",
                self.node
            ));
        }
        None
    }
}

impl<S> Layer<S> for NodeIdentity {
    type Service = Identified<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Identified { inner, shared: Arc::clone(&self.shared) }
    }
}

/// A service behind a [`NodeIdentity`].
#[derive(Debug, Clone)]
pub struct Identified<S> {
    inner: S,
    shared: Arc<Own>,
}

impl<S, B> Service<http::Request<B>> for Identified<S>
where
    S: Service<http::Request<B>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        if !request.uri().path().starts_with(INTERNAL) {
            return Box::pin(self.inner.call(request));
        }
        let shared = Arc::clone(&self.shared);
        let identify = move |mut answer: http::Response<Body>| {
            answer.headers_mut().insert(CLUSTER, shared.cluster_header.clone());
            answer.headers_mut().insert(NODE, shared.node_header.clone());
            answer
        };
        if let Some(objection) = self.shared.objection(request.headers()) {
            self.shared.said.say(&objection);
            let refusal = identify(Status::failed_precondition(objection).into_http());
            return Box::pin(std::future::ready(Ok(refusal)));
        }
        let answer = self.inner.call(request);
        Box::pin(async move { answer.await.map(identify) })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const CLUSTER_ID: [u8; 16] = [7; 16];

    fn headers(pairs: &[(&'static str, &str)]) -> http::HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap()))
            .collect()
    }

    #[test]
    fn a_node_answers_only_what_is_meant_for_it() {
        let own = NodeIdentity::new(CLUSTER_ID, 2).shared;
        let (ours, other) = (text(CLUSTER_ID), text([8; 16]));
        assert_eq!(own.objection(&headers(&[(CLUSTER, &ours), (TO, "2")])), None);
        assert_eq!(own.objection(&headers(&[(CLUSTER, &ours), (TO, "2"), (FROM, "1")])), None);
        for (refused, why) in [
            (&[(CLUSTER, other.as_str()), (TO, "2")][..], other.as_str()),
            (&[(CLUSTER, &ours), (TO, "3")], "node 3"),
            (&[(CLUSTER, &ours)], "unknown"),
            (&[(TO, "2")], "unknown"),
            (&[], "unknown"),
            (&[(CLUSTER, &ours), (TO, "2"), (FROM, "2")], "another process"),
        ] {
            let objection = own.objection(&headers(refused));
            assert!(objection.as_ref().is_some_and(|said| said.contains(why)), "{refused:?}: {objection:?}");
        }
    }
}
