//! The certificates of a cluster: an authority for development, and what it issues to each process.
//!
//! ```text
//! DIR/tls/ca.pem       the authority, which every process of the cluster believes
//! DIR/tls/ca.key       its private key (mode 0600): whoever reads it can join the cluster
//! DIR/tls/NAME.pem     certificate of a process: node-1, gateway, operator
//! DIR/tls/NAME.key     its private key (mode 0600)
//! ```
//!
//! `up` makes the authority once and issues the rest at every start, so that they fit the addresses of the day. Where there is
//! `ca.pem` without `ca.key`, somebody else issues: then nothing is written, and the files have to be there, with the names that
//! [`ProcessRole::certified`] gives.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};
use tidewall_client::topology::{Node, Topology};
use tidewall_client::{Credentials, ProcessRole, TlsError};

use crate::keys;

/// Name of the files of what all gateways share.
pub const GATEWAY: &str = "gateway";
/// Name of the files of an operator's tools.
pub const OPERATOR: &str = "operator";

/// Name of the files of a node.
pub fn node(id: u64) -> String {
    format!("node-{id}")
}

/// Why certificates cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file could not be read or written.
    #[error(
        "cannot access {path}: {source}. `tidewall up` makes the certificates of its cluster in its data directory"
    )]
    Io {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file holds something else.
    #[error("{path} cannot be used: {message}")]
    Unusable {
        /// The file.
        path: String,
        /// What is wrong; never any content.
        message: String,
    },
    /// A certificate could not be made.
    #[error("cannot make a certificate: {0}")]
    Making(#[from] rcgen::Error),
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> CertificateError {
    move |source| CertificateError::Io { path: path.display().to_string(), source }
}

/// Reads what the process called `name` proves itself with.
///
/// # Errors
/// Which file is missing, or cannot be used.
pub fn load(directory: &Path, name: &str, cluster: [u8; 16]) -> Result<Credentials, CertificateError> {
    let read = |path: &PathBuf| std::fs::read(path).map_err(io(path));
    let [authority, chain, key] =
        ["ca.pem".to_owned(), format!("{name}.pem"), format!("{name}.key")].map(|file| directory.join(file));
    Credentials::from_pem(cluster, &read(&authority)?, &read(&chain)?, &read(&key)?).map_err(|error| {
        let path = if matches!(error, TlsError::Authority) { &authority } else { &chain };
        CertificateError::Unusable { path: path.display().to_string(), message: error.to_string() }
    })
}

/// Removes all certificates and keys, the authority's too: for a cluster that is to be another one.
///
/// # Errors
/// That they cannot be removed.
pub fn remove(directory: &Path) -> Result<(), CertificateError> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io(directory)(error)),
        _ => Ok(()),
    }
}

/// Issues certificates of one cluster. It has no `Debug`, so that its key cannot be printed by accident.
pub struct Authority {
    directory: PathBuf,
    cluster: [u8; 16],
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// The authority in a directory; made if there is none. `None` where somebody else issues.
    ///
    /// # Errors
    /// That it cannot be read or written.
    pub fn ensure(directory: &Path, cluster: [u8; 16]) -> Result<Option<Self>, CertificateError> {
        let (certificate, key_path) = (directory.join("ca.pem"), directory.join("ca.key"));
        keys::make_directory(directory).map_err(io(directory))?;
        let params = authority(cluster);
        let key = match std::fs::read_to_string(&key_path) {
            Ok(text) => KeyPair::from_pem(&text).map_err(|error| CertificateError::Unusable {
                path: key_path.display().to_string(),
                message: error.to_string(),
            })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && certificate.exists() => {
                return Ok(None);
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let key = KeyPair::generate()?;
                keys::write(&key_path, &key.serialize_pem(), 0o600).map_err(io(&key_path))?;
                key
            }
            Err(error) => return Err(io(&key_path)(error)),
        };
        if !certificate.exists() {
            let text = params.self_signed(&key)?.pem();
            keys::write(&certificate, &text, 0o644).map_err(io(&certificate))?;
        }
        Ok(Some(Self { directory: directory.to_owned(), cluster, issuer: Issuer::new(params, key) }))
    }

    /// Issues certificates to all processes of a cluster, and to an operator's tools. Returns what their files are called.
    ///
    /// # Errors
    /// See [`Authority::issue`].
    pub fn issue_all(&self, topology: &Topology) -> Result<Vec<String>, CertificateError> {
        let mut names = Vec::new();
        for of in &topology.nodes {
            self.issue_to_node(of)?;
            names.push(node(of.id));
        }
        for (name, role) in [(GATEWAY, ProcessRole::Gateway), (OPERATOR, ProcessRole::Operator)] {
            self.issue(name, role, &[])?;
            names.push(name.to_owned());
        }
        Ok(names)
    }

    /// Issues a certificate to a node, for the hosts where the topology says it is.
    ///
    /// # Errors
    /// See [`Authority::issue`].
    pub fn issue_to_node(&self, of: &Node) -> Result<(), CertificateError> {
        let hosts = BTreeSet::from([of.address.ip(), of.peer_address.ip()]);
        self.issue(&node(of.id), ProcessRole::Node, &hosts.into_iter().collect::<Vec<_>>())
    }

    /// Issues a new certificate and key, in files called `name`.
    ///
    /// # Errors
    /// That they cannot be made or written.
    fn issue(&self, name: &str, role: ProcessRole, hosts: &[IpAddr]) -> Result<(), CertificateError> {
        let mut names = vec![role.certified(self.cluster)];
        names.extend(hosts.iter().map(IpAddr::to_string));
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name = called(&format!("Tidewall {name}"));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let (chain, secret) = (format!("{name}.pem"), format!("{name}.key"));
        for (file, text, mode) in [(secret, key.serialize_pem(), 0o600), (chain, certificate.pem(), 0o644)] {
            let path = self.directory.join(file);
            keys::write(&path, &text, mode).map_err(io(&path))?;
        }
        Ok(())
    }
}

/// The same each time for a cluster, so that only the key has to be kept.
fn authority(cluster: [u8; 16]) -> CertificateParams {
    let mut params = CertificateParams::default();
    let id = u128::from_be_bytes(cluster);
    params.distinguished_name = called(&format!("Tidewall development authority of cluster {id:032x}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn called(name: &str) -> DistinguishedName {
    let mut called = DistinguishedName::new();
    called.push(DnType::CommonName, name);
    called
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const CLUSTER: [u8; 16] = [7; 16];

    #[test]
    fn an_authority_is_made_once_and_its_keys_are_secret() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("tls");
        Authority::ensure(&directory, CLUSTER).unwrap();
        let before = std::fs::read(directory.join("ca.pem")).unwrap();
        let authority = Authority::ensure(&directory, CLUSTER).unwrap().unwrap();
        authority.issue("node-1", ProcessRole::Node, &[[127, 0, 0, 1].into()]).unwrap();
        assert_eq!(std::fs::read(directory.join("ca.pem")).unwrap(), before);
        load(&directory, "node-1", CLUSTER).unwrap();
        let mode = |file: &str| std::fs::metadata(directory.join(file)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("ca.key"), mode("node-1.key")), (0o600, 0o600));
        let directory_mode = std::fs::metadata(&directory).unwrap().permissions().mode() & 0o777;
        assert_eq!(directory_mode, 0o700);
    }

    #[test]
    fn somebody_elses_authority_is_not_replaced_and_another_clusters_is_noticed() {
        let parent = tempfile::tempdir().unwrap();
        let authority = Authority::ensure(parent.path(), CLUSTER).unwrap().unwrap();
        authority.issue(GATEWAY, ProcessRole::Gateway, &[]).unwrap();
        let other = Authority::ensure(parent.path(), [8; 16]).unwrap().unwrap();
        other.issue(OPERATOR, ProcessRole::Operator, &[]).unwrap();
        let error = load(parent.path(), OPERATOR, [8; 16]).unwrap_err().to_string();
        assert!(error.contains("not of the authority"), "{error}");
        std::fs::remove_file(parent.path().join("ca.key")).unwrap();
        assert!(Authority::ensure(parent.path(), CLUSTER).unwrap().is_none());
        load(parent.path(), GATEWAY, CLUSTER).unwrap();
        std::fs::write(parent.path().join("ca.key"), "secret").unwrap();
        let error = Authority::ensure(parent.path(), CLUSTER).err().unwrap().to_string();
        assert!(error.contains("ca.key") && !error.contains("secret"), "{error}");
    }

    #[test]
    fn what_is_missing_or_damaged_is_named() {
        let parent = tempfile::tempdir().unwrap();
        let authority = Authority::ensure(parent.path(), CLUSTER).unwrap().unwrap();
        let error = load(parent.path(), GATEWAY, CLUSTER).unwrap_err().to_string();
        assert!(error.contains("gateway.pem") && error.contains("tidewall up"), "{error}");
        authority.issue(GATEWAY, ProcessRole::Gateway, &[]).unwrap();
        authority.issue(OPERATOR, ProcessRole::Operator, &[]).unwrap();
        load(parent.path(), GATEWAY, CLUSTER).unwrap();
        std::fs::copy(parent.path().join("operator.key"), parent.path().join("gateway.key")).unwrap();
        let error = load(parent.path(), GATEWAY, CLUSTER).unwrap_err().to_string();
        assert!(error.contains("gateway.pem"), "{error}");
        std::fs::write(parent.path().join("ca.pem"), "rubbish").unwrap();
        let error = load(parent.path(), OPERATOR, CLUSTER).unwrap_err().to_string();
        assert!(error.contains("ca.pem"), "{error}");
    }
}
