//! Mutual TLS between the processes of a cluster.
//!
//! A certificate names the cluster and the role of its holder, as one DNS name, and the hosts it may answer from. All
//! certificates of a cluster come from one authority of its own, and both ends show one: who has none can neither call a
//! node nor pass for one. What a certificate does not say is which node its holder is: that is checked with each call
//! ([`NodeIdentity`](crate::NodeIdentity)).
//!
//! Only TLS 1.3; sessions are never resumed, so that each connection is proven anew.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier, verify_server_name};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig,
    SignatureScheme,
};

/// What a process is in its cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProcessRole {
    /// A shard node.
    Node,
    /// A gateway.
    Gateway,
    /// A tool of an operator.
    Operator,
}

impl ProcessRole {
    /// All roles.
    pub const ALL: [Self; 3] = [Self::Node, Self::Gateway, Self::Operator];

    /// Its name in files and certificates.
    pub fn name(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Gateway => "gateway",
            Self::Operator => "operator",
        }
    }

    /// The DNS name in the certificate of who has this role in this cluster. Nobody resolves it.
    pub fn certified(self, cluster: [u8; 16]) -> String {
        format!("{}.{:032x}.tidewall.internal", self.name(), u128::from_be_bytes(cluster))
    }
}

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The authority's certificates are something else.
    #[error("no certificate of an authority in PEM form was found in it")]
    Authority,
    /// The process's own chain, or its key, is something else, or they do not fit.
    #[error("{0}")]
    Unusable(String),
}

impl From<Error> for TlsError {
    fn from(error: Error) -> Self {
        Self::Unusable(error.to_string())
    }
}

/// What a process proves itself with, and whom it believes. Clones are cheap.
#[derive(Clone)]
pub struct Credentials {
    pub(crate) client: Arc<ClientConfig>,
    pub(crate) server: Arc<ServerConfig>,
    names: Arc<RoleNames>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never any key.
        formatter.debug_struct("Credentials").finish_non_exhaustive()
    }
}

/// What certificates of a cluster call each role.
#[derive(Debug)]
struct RoleNames([(ProcessRole, ServerName<'static>); 3]);

impl RoleNames {
    fn new(cluster: [u8; 16]) -> Self {
        Self(ProcessRole::ALL.map(|role| {
            let name = ServerName::try_from(role.certified(cluster));
            (role, name.expect("letters, digits and dots make a name"))
        }))
    }

    fn of(&self, certificate: &CertificateDer<'_>) -> Option<ProcessRole> {
        let parsed = ParsedCertificate::try_from(certificate).ok()?;
        let has = |name| verify_server_name(&parsed, name).is_ok();
        self.0.iter().find(|(_, name)| has(name)).map(|(role, _)| *role)
    }
}

impl Credentials {
    /// From PEM: certificates of the cluster's authority, the process's own chain, and its private key.
    ///
    /// # Errors
    /// What is missing, or does not fit together.
    pub fn from_pem(cluster: [u8; 16], authority: &[u8], chain: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let names = Arc::new(RoleNames::new(cluster));
        let mut roots = RootCertStore::empty();
        for root in certificates(authority).ok_or(TlsError::Authority)? {
            roots.add(root).map_err(|_| TlsError::Authority)?;
        }
        let roots = Arc::new(roots);
        let unusable = |error: &dyn fmt::Display| TlsError::Unusable(error.to_string());
        let missing = |what| unusable(&format!("no {what} in PEM form was found, or it is broken"));
        let chain = certificates(chain).ok_or_else(|| missing("certificate"))?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| missing("private key"))?;

        let inner = WebPkiServerVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider));
        let inner = inner.build().map_err(|error| unusable(&error))?;
        own_certificate(&inner, &names, &chain)?;
        let verifier = NodeVerifier { inner, names: Arc::clone(&names) };
        let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_auth_cert(chain.clone(), key.clone_key())?;
        client.resumption = Resumption::disabled();
        client.alpn_protocols = vec![b"h2".to_vec()];

        let clients = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider));
        let clients = clients.build().map_err(|error| unusable(&error))?;
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(clients)
            .with_single_cert(chain, key)?;
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        server.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self { client: Arc::new(client), server: Arc::new(server), names })
    }

    /// What the holder of a verified certificate is in this cluster.
    pub(crate) fn role(&self, chain: Option<&[CertificateDer<'_>]>) -> Option<ProcessRole> {
        self.names.of(chain?.first()?)
    }
}

/// Whether a process can prove itself with this at all: nobody else would tell it why not.
fn own_certificate(
    verifier: &WebPkiServerVerifier,
    names: &RoleNames,
    chain: &[CertificateDer<'_>],
) -> Result<(), TlsError> {
    let role = chain.first().and_then(|own| names.of(own));
    let name = names.0.iter().find(|(of, _)| Some(*of) == role);
    let (Some((_, name)), Some((own, rest))) = (name, chain.split_first()) else {
        return Err(TlsError::Unusable("it is certified for another cluster, or for none".into()));
    };
    match verifier.verify_server_cert(own, rest, name, &[], UnixTime::now()) {
        Ok(_) => Ok(()),
        Err(error) => Err(TlsError::Unusable(format!("it is not of the authority in ca.pem: {error}"))),
    }
}

/// All certificates, if there are any and nothing is wrong with them.
fn certificates(pem: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    found.ok().filter(|found| !found.is_empty())
}

/// How a node at an address is called in the handshake: by its host.
pub(crate) fn host(address: SocketAddr) -> ServerName<'static> {
    ServerName::IpAddress(address.ip().into())
}

/// Believes who is certified as a node of the cluster, at the host that was called.
#[derive(Debug)]
struct NodeVerifier {
    inner: Arc<WebPkiServerVerifier>,
    names: Arc<RoleNames>,
}

impl ServerCertVerifier for NodeVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        host: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.inner.verify_server_cert(end_entity, intermediates, host, ocsp_response, now)?;
        match self.names.of(end_entity) {
            Some(ProcessRole::Node) => Ok(verified),
            other => {
                let is = other.map_or("nobody of this cluster", ProcessRole::name);
                Err(Error::General(format!(
                    "who answers there is certified as {is}, not as a node of this cluster"
                )))
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }

    fn root_hint_subjects(&self) -> Option<&[DistinguishedName]> {
        self.inner.root_hint_subjects()
    }
}
