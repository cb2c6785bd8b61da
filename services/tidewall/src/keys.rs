//! The keys of a data directory, as PEM files: the development key pair `keys/dev.key` (PKCS #8, private, mode 0600) and
//! `keys/dev.pub` (what gateways check tokens against), and `keys/account.key` (mode 0600), the secret on which accounts hang.
//!
//! Whoever reads `dev.key` can mint any token of this cluster, and whoever reads `account.key` and a keyring can read what is personal:
//! their content never reaches a log, an error or a command line.

use std::fs::{DirBuilder, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use pem::{EncodeConfig, LineEnding, Pem};
use tidewall_gateway::auth;

/// DER in front of the 32 bytes of an Ed25519 public key (RFC 8410).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

const PRIVATE: &str = "PRIVATE KEY";
const PUBLIC: &str = "PUBLIC KEY";
const ACCOUNT: &str = "TIDEWALL ACCOUNT KEY";

/// Why a key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// There is no such file.
    #[error(
        "there is no key at {0}: `tidewall up` makes one in its data directory; name that with --data, or a key file with --key"
    )]
    Missing(String),
    /// The file could not be read or written.
    #[error("cannot access the key file {path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file holds no secret of accounts.
    #[error("{0} holds no usable account key: put the one back with which this cluster's accounts were made")]
    NoAccountKey(String),
    /// The file holds no usable key.
    #[error("{path} holds no usable Ed25519 key ({message})")]
    Invalid {
        /// The file.
        path: String,
        /// What is wrong; never any content.
        message: String,
    },
}

/// A private key, ready to mint tokens. It has no `Debug`, so that it cannot be printed by accident.
pub struct PrivateKey(Vec<u8>);

impl PrivateKey {
    /// The key as PKCS #8.
    pub fn pkcs8(&self) -> &[u8] {
        &self.0
    }
}

/// Path of the private key in a directory of keys.
pub fn private_path(directory: &Path) -> PathBuf {
    directory.join("dev.key")
}

/// Path of the public key in a directory of keys.
pub fn public_path(directory: &Path) -> PathBuf {
    directory.join("dev.pub")
}

/// Makes sure that a directory has a key pair and a secret of accounts, and returns the private key. What exists is
/// kept, and the public key is written again when it does not belong to the private one.
pub fn ensure(directory: &Path) -> Result<PrivateKey, KeyError> {
    let (private, public) = (private_path(directory), public_path(directory));
    let io = |path: &Path| {
        let path = path.display().to_string();
        move |source| KeyError::Io { path, source }
    };
    make_directory(directory).map_err(io(directory))?;
    let key = match load_private(&private) {
        Err(KeyError::Missing(_)) => {
            let pair = auth::generate_key().map_err(|e| KeyError::Invalid {
                path: private.display().to_string(),
                message: e.to_string(),
            })?;
            write(&private, &to_pem(PRIVATE, &pair.pkcs8), 0o600).map_err(io(&private))?;
            PrivateKey(pair.pkcs8)
        }
        other => other?,
    };
    let verifying = verifying_key(&private, &key)?;
    if load_public(&public).ok().as_deref() != Some(&[verifying]) {
        let spki = [&SPKI_PREFIX[..], &verifying[..]].concat();
        write(&public, &to_pem(PUBLIC, &spki), 0o644).map_err(io(&public))?;
    }
    ensure_account_key(directory)?;
    Ok(key)
}

/// Reads a private key.
pub fn load_private(path: &Path) -> Result<PrivateKey, KeyError> {
    let blocks = read(path, PRIVATE)?;
    let [pkcs8] = <[Vec<u8>; 1]>::try_from(blocks).map_err(|blocks: Vec<_>| KeyError::Invalid {
        path: path.display().to_string(),
        message: format!("{} blocks of {PRIVATE:?} where one is needed", blocks.len()),
    })?;
    let key = PrivateKey(pkcs8);
    verifying_key(path, &key)?;
    Ok(key)
}

/// Reads all public keys of a file; there is at least one. A file may list several while keys are exchanged.
pub fn load_public(path: &Path) -> Result<Vec<[u8; 32]>, KeyError> {
    let invalid = |message: String| KeyError::Invalid { path: path.display().to_string(), message };
    let blocks = read(path, PUBLIC)?;
    if blocks.is_empty() {
        return Err(invalid(format!("no block of {PUBLIC:?}")));
    }
    blocks
        .into_iter()
        .map(|der| {
            der.strip_prefix(&SPKI_PREFIX)
                .and_then(|key| <[u8; 32]>::try_from(key).ok())
                .ok_or_else(|| invalid("a public key that is not Ed25519".into()))
        })
        .collect()
}

/// Path of the secret of accounts in a directory of keys.
pub fn account_path(directory: &Path) -> PathBuf {
    directory.join("account.key")
}

/// Makes sure that a directory has a secret of accounts. One that is there is kept: with another, nobody could log in any more.
fn ensure_account_key(directory: &Path) -> Result<(), KeyError> {
    let path = account_path(directory);
    match load_account_key(&path) {
        Err(KeyError::Missing(_)) => {
            let secret: [u8; 32] = tidewall_env::random::secret();
            write(&path, &to_pem(ACCOUNT, &secret), 0o600)
                .map_err(|source| KeyError::Io { path: path.display().to_string(), source })
        }
        found => found.map(drop),
    }
}

/// Reads a secret of accounts.
pub fn load_account_key(path: &Path) -> Result<[u8; 32], KeyError> {
    let invalid = || KeyError::NoAccountKey(path.display().to_string());
    match read(path, ACCOUNT)
        .map_err(|error| match error {
            KeyError::Invalid { .. } => invalid(),
            error => error,
        })?
        .as_slice()
    {
        [secret] => secret.as_slice().try_into().map_err(|_| invalid()),
        _ => Err(invalid()),
    }
}

fn verifying_key(path: &Path, key: &PrivateKey) -> Result<[u8; 32], KeyError> {
    auth::public_key_of(key.pkcs8())
        .map_err(|e| KeyError::Invalid { path: path.display().to_string(), message: e.to_string() })
}

/// Makes a directory that only its owner can look into, unless it is there.
pub(crate) fn make_directory(directory: &Path) -> std::io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

/// Writes a file so that a crash leaves the old one or the new one.
pub(crate) fn write(path: &Path, text: &str, mode: u32) -> std::io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    // A leftover could have another mode.
    match std::fs::remove_file(&temporary) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    // Whoever goes on with a key relies on it to be there after a power cut.
    match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(parent) => std::fs::File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

fn read(path: &Path, label: &str) -> Result<Vec<Vec<u8>>, KeyError> {
    let name = || path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => KeyError::Missing(name()),
        _ => KeyError::Io { path: name(), source },
    })?;
    from_pem(label, &text).ok_or_else(|| KeyError::Invalid { path: name(), message: "not a PEM file".into() })
}

fn to_pem(label: &str, der: &[u8]) -> String {
    let lines = EncodeConfig::new().set_line_ending(LineEnding::LF);
    pem::encode_config(&Pem::new(label, der), lines)
}

/// All blocks with this label; `None` when the text is not well-formed.
fn from_pem(label: &str, text: &str) -> Option<Vec<Vec<u8>>> {
    let blocks = pem::parse_many(text).ok()?;
    // What begins and does not end is passed over by the parser: half of a key would be none.
    if blocks.len() != text.matches("-----BEGIN ").count() {
        return None;
    }
    Some(blocks.into_iter().filter(|block| block.tag() == label).map(Pem::into_contents).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_pair_is_made_once_and_kept() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("keys");
        let first = ensure(&directory).unwrap();
        let public = load_public(&public_path(&directory)).unwrap();
        assert_eq!(public.len(), 1);
        assert_eq!(public[0], verifying_key(Path::new("x"), &first).unwrap());
        assert_eq!(ensure(&directory).unwrap().pkcs8(), first.pkcs8());
        let mode = std::fs::metadata(private_path(&directory)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 3);
    }

    #[test]
    fn a_lost_or_foreign_public_key_is_written_again() {
        let parent = tempfile::tempdir().unwrap();
        let (one, two) = (parent.path().join("1"), parent.path().join("2"));
        ensure(&one).unwrap();
        ensure(&two).unwrap();
        let expected = load_public(&public_path(&one)).unwrap();
        std::fs::copy(public_path(&two), public_path(&one)).unwrap();
        ensure(&one).unwrap();
        assert_eq!(load_public(&public_path(&one)).unwrap(), expected);
        std::fs::remove_file(public_path(&one)).unwrap();
        ensure(&one).unwrap();
        assert_eq!(load_public(&public_path(&one)).unwrap(), expected);
    }

    #[test]
    fn several_public_keys_may_share_a_file() {
        let parent = tempfile::tempdir().unwrap();
        let mut text = String::new();
        for name in ["1", "2"] {
            ensure(&parent.path().join(name)).unwrap();
            text += &std::fs::read_to_string(public_path(&parent.path().join(name))).unwrap();
        }
        let path = parent.path().join("both.pub");
        std::fs::write(&path, text).unwrap();
        let keys = load_public(&path).unwrap();
        assert_eq!(keys.len(), 2);
        assert_ne!(keys[0], keys[1]);
    }

    #[test]
    fn a_secret_of_accounts_is_made_once_and_kept_also_when_it_is_damaged() {
        let parent = tempfile::tempdir().unwrap();
        let path = account_path(parent.path());
        assert!(matches!(load_account_key(&path), Err(KeyError::Missing(_))));
        ensure_account_key(parent.path()).unwrap();
        let first = load_account_key(&path).unwrap();
        ensure_account_key(parent.path()).unwrap();
        assert_eq!(load_account_key(&path).unwrap(), first);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        for text in ["", "secret", &to_pem(ACCOUNT, b"short"), &to_pem(PUBLIC, &first)] {
            std::fs::write(&path, text).unwrap();
            let message = ensure_account_key(parent.path()).unwrap_err().to_string();
            assert!(message.contains("put the one back"), "{message}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
    }

    #[test]
    fn a_key_that_is_cut_off_is_not_passed_over() {
        let whole = to_pem(PUBLIC, b"x");
        assert_eq!(from_pem(PUBLIC, &whole).unwrap(), [b"x"]);
        assert!(from_pem(PUBLIC, &format!("{whole}-----BEGIN PUBLIC KEY-----\nAAAA\n")).is_none());
    }

    #[test]
    fn damaged_and_missing_files_are_refused_and_kept() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("dev.key");
        let message = load_private(&path).err().unwrap().to_string();
        assert!(message.contains("tidewall up") && message.contains("--key"), "{message}");
        for text in [
            "",
            "secret",
            "-----BEGIN PRIVATE KEY-----\nAAAA",
            &to_pem(PRIVATE, b"short"),
            &to_pem(PUBLIC, b"x"),
        ] {
            std::fs::write(&path, text).unwrap();
            let message = load_private(&path).err().unwrap().to_string();
            assert!(message.contains("no usable"), "{message}");
            assert!(!message.contains("secret") && !message.contains("AAAA"));
            assert!(ensure(parent.path()).is_err());
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
            assert!(load_public(&path).is_err());
        }
    }
}
