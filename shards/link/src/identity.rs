//! Who stands at both ends of a call between processes of a cluster.
//!
//! An address is not an identity: ports and addresses are given to others, and a copied topology leads to the processes of
//! the original. Each call and each stream names the cluster, the node that it is for and the node that it is from; the
//! answer names who gave it. What does not match is refused on both sides before anything of it is read, and said in both
//! logs. Between nodes each side says as well which life of its data it is ([`Lives`]), so that a copy of a node's data, or an
//! older state of them, is refused.
//!
//! None of that holds against somebody who lies: certificates do ([`Credentials`](crate::Credentials)). A port of a cluster
//! with certificates serves calls between processes only to who has shown one.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http;
use tonic::transport::Channel;
use tower::{Layer, Service};

use crate::accept::ConnectedFrom;
use crate::guarded::guarded;
use crate::lives::{Claim, Lives, OpenStream, Refusal};
use crate::said::Said;
use crate::tls::ProcessRole;

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
/// The life of the data of a node that calls or answers.
const LIFE: &str = "tidewall-life";
/// In a refusal: the life of the caller, whose data are stale.
const STALE: &str = "tidewall-stale";
/// In a refusal: the life of the caller, which an earlier one of the same data keeps out.
const TOO_EARLY: &str = "tidewall-too-early";

/// Who calls whom.
#[derive(Debug, Clone)]
pub struct Parties {
    /// The cluster that both belong to.
    pub cluster: [u8; 16],
    /// The node that calls; `None` for a gateway or a tool.
    pub from: Option<Arc<Lives>>,
    /// The node that is called.
    pub to: u64,
    /// When it was last said what is wrong with who answers.
    said: Arc<Said>,
}

impl Parties {
    /// A call to a node of a cluster, from another one of its nodes or, with `None`, from a gateway or a tool. Clones say what
    /// is wrong once for all.
    pub fn new(cluster: [u8; 16], from: Option<Arc<Lives>>, to: u64) -> Self {
        Self { cluster, from, to, said: Arc::default() }
    }
}

fn text(cluster: [u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(cluster))
}

fn header(text: &str) -> http::HeaderValue {
    http::HeaderValue::from_str(text).expect("digits, letters and dots make a header")
}

/// The node that a call came from, as a [`NodeIdentity`] has let it in.
pub fn calling_node(headers: &http::HeaderMap) -> Option<u64> {
    headers.get(FROM)?.to_str().ok()?.parse().ok()
}

/// What a node says of its data.
fn claim(headers: &http::HeaderMap) -> Option<Claim> {
    Claim::parse(headers.get(LIFE)?.to_str().ok()?)
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
    from: Option<Caller>,
    said: Arc<Said>,
}

/// A node that calls.
#[derive(Debug)]
struct Caller {
    node_header: http::HeaderValue,
    lives: Arc<Lives>,
}

impl NodeChannel {
    /// Over this channel, which leads to `address`.
    pub fn new(channel: Channel, address: SocketAddr, parties: Parties) -> Self {
        let from = parties.from.map(|lives| Caller { node_header: lives.node().into(), lives });
        let shared = Expected {
            address,
            to: parties.to,
            cluster_header: header(&text(parties.cluster)),
            to_header: parties.to.into(),
            from,
            said: parties.said,
        };
        Self { channel, shared: Arc::new(shared) }
    }
}

impl Expected {
    /// What to keep while an answer is read, between nodes, or why it must not be.
    fn judge(&self, headers: &http::HeaderMap) -> Result<Option<OpenStream>, Objection> {
        let found = (headers.get(CLUSTER), headers.get(NODE));
        if found == (Some(&self.cluster_header), Some(&self.to_header)) {
            let Some(caller) = &self.from else { return Ok(None) };
            let claim = claim(headers).ok_or_else(|| {
                format!("node {} at {} does not say which life of its data it is", self.to, self.address)
            })?;
            // Before what it says is believed.
            let open = caller.lives.meet(self.to, claim).map_err(|refusal| Objection {
                why: refusal.to_string(),
                passes: matches!(refusal, Refusal::NotYet(_)),
                life: None,
            })?;
            let own = caller.lives.own().to_string();
            let says = |name| headers.get(name).is_some_and(|life| life.as_bytes() == own.as_bytes());
            if says(STALE) {
                let why =
                    format!("node {} refuses this node's data: they are a copy or an older state", self.to);
                caller.lives.refused(&why);
                // Whoever is told that ends the process, and says so.
                return Err(Objection { passes: true, ..why.into() });
            }
            let awaited = says(TOO_EARLY);
            caller.lives.awaited_by(self.to, awaited);
            if awaited {
                // As after every quick restart: a node that starts waits, and says so when it has waited for too long.
                let why =
                    format!("node {} is connected to another process that runs on this node's data", self.to);
                return Err(Objection { passes: true, ..why.into() });
            }
            return Ok(Some(open));
        }
        let word = |value: Option<&http::HeaderValue>| {
            value.and_then(|value| value.to_str().ok()).unwrap_or("unknown").to_owned()
        };
        let why = format!(
            "the process at {} is node {} of cluster {}, not node {} of cluster {}: look at the topology and at who has that \
             address now",
            self.address,
            word(found.1),
            word(found.0),
            self.to,
            word(Some(&self.cluster_header)),
        );
        Err(why.into())
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
        if let Some(caller) = &shared.from {
            headers.insert(FROM, caller.node_header.clone());
            headers.insert(LIFE, header(&caller.lives.claim().to_string()));
        }
        let answer = self.channel.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            Ok(match shared.judge(answer.headers()) {
                Ok(None) => answer,
                Ok(Some(open)) => answer.map(|body| guarded(body, open)),
                Err(Objection { why, passes, .. }) => {
                    if !passes && shared.said.is_due() {
                        tracing::error!("{why}");
                    }
                    // Who names itself has refused the call as well; what somebody else has made of it nobody knows.
                    match answer.headers().contains_key(NODE) {
                        true => Status::failed_precondition(why).into_http(),
                        false => Status::unknown(why).into_http(),
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
    /// On the port for other nodes.
    lives: Option<Arc<Lives>>,
    /// Who may call, by certificate.
    certified: Option<&'static [ProcessRole]>,
    said: Said,
}

/// Why a call, or an answer, must not be read.
#[derive(Debug)]
struct Objection {
    why: String,
    /// It is nothing that anybody has to look after.
    passes: bool,
    /// What tells the caller that it is its life that was refused, and which one.
    life: Option<(&'static str, http::HeaderValue)>,
}

impl From<String> for Objection {
    fn from(why: String) -> Self {
        Self { why, passes: false, life: None }
    }
}

impl NodeIdentity {
    /// Of the port for gateways and operators of this node of this cluster. With certificates, only who has shown one may call.
    pub fn client_port(cluster: [u8; 16], node: u64, certified: bool) -> Self {
        Self::new(cluster, node, None, certified.then_some(&ProcessRole::ALL))
    }

    /// Of the port for the other nodes.
    pub fn peer_port(cluster: [u8; 16], lives: Arc<Lives>, certified: bool) -> Self {
        Self::new(cluster, lives.node(), Some(lives), certified.then_some(&[ProcessRole::Node]))
    }

    fn new(
        cluster: [u8; 16],
        node: u64,
        lives: Option<Arc<Lives>>,
        certified: Option<&'static [ProcessRole]>,
    ) -> Self {
        let cluster_header = header(&text(cluster));
        let shared =
            Own { node, cluster_header, node_header: node.into(), lives, certified, said: Said::default() };
        Self { shared: Arc::new(shared) }
    }
}

impl Own {
    /// What to keep while a call is answered, between nodes, or why it must not be.
    fn judge(
        &self,
        headers: &http::HeaderMap,
        role: Option<ProcessRole>,
    ) -> Result<Option<OpenStream>, Objection> {
        if let Some(roles) = self.certified
            && !role.is_some_and(|role| roles.contains(&role))
        {
            let is = role.map_or("nobody of this cluster", ProcessRole::name);
            let why =
                format!("node {} was called by who is certified as {is}, and refused the call", self.node);
            return Err(why.into());
        }
        let word = |name: &str| {
            headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("unknown").to_owned()
        };
        if headers.get(CLUSTER) != Some(&self.cluster_header) || headers.get(TO) != Some(&self.node_header) {
            let why = format!(
                "a call for node {} of cluster {} came to node {} of cluster {} and was refused: look at the topology that \
                 the caller follows",
                word(TO),
                word(CLUSTER),
                self.node,
                self.cluster_header.to_str().unwrap_or_default(),
            );
            return Err(why.into());
        }
        if headers.get(FROM) == Some(&self.node_header) {
            let why = format!(
                "another process calls itself node {} of this cluster and was refused: a copy of this node's data is in \
                 use; stop it and give it a new id",
                self.node
            );
            return Err(why.into());
        }
        let Some(lives) = &self.lives else { return Ok(None) };
        let Some((from, claim)) = calling_node(headers).zip(claim(headers)) else {
            let why = format!(
                "node {} was called by who does not say which node it is, on the port for nodes",
                self.node
            );
            return Err(why.into());
        };
        lives.meet(from, claim).map(Some).map_err(|refusal| {
            let life = || header(&claim.life.to_string());
            let life = match &refusal {
                Refusal::Stale(_) => Some((STALE, life())),
                Refusal::TooEarly(_) | Refusal::NotYet(_) => Some((TOO_EARLY, life())),
                Refusal::WentBack(_) => None,
            };
            let passes = matches!(refusal, Refusal::NotYet(_));
            Objection { why: refusal.to_string(), passes, life }
        })
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
            if let Some(lives) = &shared.lives {
                answer.headers_mut().insert(LIFE, header(&lives.claim().to_string()));
            }
            answer
        };
        let role = request.extensions().get::<ConnectedFrom>().and_then(ConnectedFrom::role);
        let open = match self.shared.judge(request.headers(), role) {
            Ok(open) => open,
            Err(Objection { why, passes, life }) => {
                if !passes && self.shared.said.is_due() {
                    tracing::error!("{why}");
                }
                let mut refusal = identify(Status::failed_precondition(why).into_http());
                if let Some((name, life)) = life {
                    refusal.headers_mut().insert(name, life);
                }
                return Box::pin(std::future::ready(Ok(refusal)));
            }
        };
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = identify(answer.await?);
            Ok(match open {
                None => answer,
                // As long as the answer is a stream, too.
                Some(open) => answer.map(|body| guarded(body, open)),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::lives::Life;
    use parking_lot::Mutex;
    use std::collections::BTreeMap;

    const CLUSTER_ID: [u8; 16] = [7; 16];

    fn headers(pairs: &[(&'static str, &str)]) -> http::HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap()))
            .collect()
    }

    const LIFE_1: Life = Life { id: 1, began_at: 0 };

    fn claim_of(life: Life, reached: u64) -> String {
        Claim { life, reached }.to_string()
    }

    fn lives(node: u64) -> Arc<Lives> {
        Arc::new(Lives::idle(node))
    }

    #[test]
    fn a_node_answers_only_what_is_meant_for_it() {
        let own = NodeIdentity::client_port(CLUSTER_ID, 2, false).shared;
        let (ours, other) = (text(CLUSTER_ID), text([8; 16]));
        assert!(own.judge(&headers(&[(CLUSTER, &ours), (TO, "2")]), None).is_ok());
        assert!(own.judge(&headers(&[(CLUSTER, &ours), (TO, "2"), (FROM, "1")]), None).is_ok());
        for (refused, why) in [
            (&[(CLUSTER, other.as_str()), (TO, "2")][..], other.as_str()),
            (&[(CLUSTER, &ours), (TO, "3")], "node 3"),
            (&[(CLUSTER, &ours)], "unknown"),
            (&[(TO, "2")], "unknown"),
            (&[], "unknown"),
            (&[(CLUSTER, &ours), (TO, "2"), (FROM, "2")], "another process"),
        ] {
            let objection = own.judge(&headers(refused), None).unwrap_err();
            assert!(objection.why.contains(why), "{refused:?}: {objection:?}");
        }
    }

    #[test]
    fn the_port_for_nodes_wants_to_know_which_life_calls() {
        let known = lives(2);
        let own = NodeIdentity::peer_port(CLUSTER_ID, Arc::clone(&known), false).shared;
        let ours = text(CLUSTER_ID);
        let call = |from: &[(&'static str, &str)]| {
            let all: Vec<_> =
                [(CLUSTER, ours.as_str()), (TO, "2")].into_iter().chain(from.iter().copied()).collect();
            own.judge(&headers(&all), None).map_err(|objection| objection.life.map(|(name, _)| name))
        };
        assert_eq!(call(&[]).unwrap_err(), None);
        assert_eq!(call(&[(FROM, "1")]).unwrap_err(), None);
        assert_eq!(call(&[(FROM, "1"), (LIFE, "x")]).unwrap_err(), None);
        let stream = call(&[(FROM, "1"), (LIFE, &claim_of(LIFE_1, 40))]).unwrap();
        let later = |began_at| claim_of(Life { id: 7, began_at }, began_at + 1);
        assert_eq!(call(&[(FROM, "1"), (LIFE, &later(39))]).unwrap_err(), Some(STALE));
        assert_eq!(call(&[(FROM, "1"), (LIFE, &later(40))]).unwrap_err(), Some(TOO_EARLY));
        drop(stream);
        assert_eq!(call(&[(FROM, "1"), (LIFE, &claim_of(LIFE_1, 39))]).unwrap_err(), None, "it went back");
        assert!(call(&[(FROM, "1"), (LIFE, &later(40))]).is_ok());
        assert_eq!(call(&[(FROM, "1"), (LIFE, &claim_of(LIFE_1, 40))]).unwrap_err(), Some(STALE));
    }

    #[test]
    fn with_certificates_the_role_decides_who_may_call() {
        let (ours, claim) = (text(CLUSTER_ID), claim_of(LIFE_1, 1));
        let call = headers(&[(CLUSTER, &ours), (TO, "2"), (FROM, "1"), (LIFE, &claim)]);
        let client = NodeIdentity::client_port(CLUSTER_ID, 2, true).shared;
        let peer = NodeIdentity::peer_port(CLUSTER_ID, lives(2), true).shared;
        for (role, clients, peers) in [
            (None, false, false),
            (Some(ProcessRole::Gateway), true, false),
            (Some(ProcessRole::Operator), true, false),
            (Some(ProcessRole::Node), true, true),
        ] {
            assert_eq!(client.judge(&call, role).is_ok(), clients, "{role:?}");
            assert_eq!(peer.judge(&call, role).is_ok(), peers, "{role:?}");
        }
    }

    #[test]
    fn an_answer_is_read_only_from_who_was_called_and_in_its_last_life() {
        let channel = || tonic::transport::Endpoint::from_static("http://127.0.0.1:1").connect_lazy();
        let address = "127.0.0.1:1".parse().unwrap();
        let told = Arc::new(Mutex::new(None));
        let teller = Arc::clone(&told);
        let own = Life { id: 2, began_at: 5 };
        let tell = move |why: &str| *teller.lock() = Some(why.to_owned());
        let known = Arc::new(Lives::new(2, own, BTreeMap::new(), || 0, tell));
        let parties = Parties::new(CLUSTER_ID, Some(Arc::clone(&known)), 1);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _entered = runtime.enter();
        let expected = NodeChannel::new(channel(), address, parties).shared;
        let ours = text(CLUSTER_ID);
        let (claim, stranger) = (claim_of(LIFE_1, 50), Life { id: 9, began_at: 1 }.to_string());
        let copy = claim_of(Life { id: 3, began_at: 49 }, 50);
        let answer = |more: &[(&'static str, &str)]| {
            let all: Vec<_> =
                [(CLUSTER, ours.as_str()), (NODE, "1")].into_iter().chain(more.iter().copied()).collect();
            expected.judge(&headers(&all)).map(|open| open.is_some()).map_err(|objection| objection.why)
        };
        assert!(answer(&[]).is_err());
        assert_eq!(answer(&[(LIFE, &claim)]), Ok(true));
        assert!(answer(&[(LIFE, &copy)]).is_err());
        assert_eq!(answer(&[(LIFE, &claim), (STALE, &stranger)]), Ok(true), "another one was meant");
        assert!(answer(&[(LIFE, &copy), (STALE, &own.to_string())]).is_err());
        assert!(told.lock().is_none(), "a copy has nothing to say about others");
        assert!(answer(&[(LIFE, &claim), (TOO_EARLY, &own.to_string())]).is_err());
        assert!(known.is_awaited_by(1));
        assert_eq!(answer(&[(LIFE, &claim)]), Ok(true));
        assert!(!known.is_awaited_by(1));
        assert!(answer(&[(LIFE, &claim), (STALE, &own.to_string())]).is_err());
        assert!(told.lock().as_ref().is_some_and(|why| why.contains("copy")), "{told:?}");
    }
}
