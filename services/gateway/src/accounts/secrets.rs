//! One secret of the cluster, and what is derived from it (HKDF, RFC 5869): a key for each purpose, so that none can be used for
//! another. All gateways derive the same: whoever repeats a call at another one gets the same answer.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::{digest, hkdf, hmac};
use tidewall_env::random;

/// First byte of what is encrypted, so that another way to do it can be told apart.
const SEALED_FORMAT: u8 = 1;

/// Something that was to be opened was changed, or belongs elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the ciphertext does not belong to this key and place")]
pub(crate) struct NotOpened;

/// What is derived from the secret of the cluster.
pub(crate) struct Secrets {
    emails: hmac::Key,
    fingerprints: hmac::Key,
    refresh: hmac::Key,
    salts: hmac::Key,
    wrapping: LessSafeKey,
    pepper: [u8; 32],
    webhooks: [u8; 32],
}

/// A refresh token, taken apart. Its text is the name of its session, its generation and its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RefreshToken<'a> {
    pub(crate) region: &'a str,
    pub(crate) account: &'a str,
    pub(crate) session: [u8; 16],
    pub(crate) generation: u64,
}

struct Bytes32;

impl hkdf::KeyType for Bytes32 {
    fn len(&self) -> usize {
        32
    }
}

fn aead_key(bytes: &[u8; 32]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, bytes).expect("a key of this cipher has 32 bytes"))
}

/// Encrypts under a key, bound to a place.
fn seal(key: &LessSafeKey, place: &[u8], plain: &[u8]) -> Vec<u8> {
    let nonce: [u8; NONCE_LEN] = random::secret();
    let mut sealed = vec![SEALED_FORMAT];
    sealed.extend_from_slice(&nonce);
    let mut bytes = plain.to_vec();
    key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(place), &mut bytes)
        .expect("far less than the cipher can take at once");
    sealed.extend_from_slice(&bytes);
    sealed
}

fn open(key: &LessSafeKey, place: &[u8], sealed: &[u8]) -> Result<Vec<u8>, NotOpened> {
    let (format, rest) = sealed.split_first().ok_or(NotOpened)?;
    let (nonce, bytes) = rest.split_first_chunk::<NONCE_LEN>().ok_or(NotOpened)?;
    if *format != SEALED_FORMAT {
        return Err(NotOpened);
    }
    let mut bytes = bytes.to_vec();
    let nonce = Nonce::assume_unique_for_key(*nonce);
    let plain = key.open_in_place(nonce, Aad::from(place), &mut bytes).map_err(|_| NotOpened)?;
    Ok(plain.to_vec())
}

impl Secrets {
    pub(crate) fn new(secret: &[u8; 32]) -> Self {
        let root = hkdf::Salt::new(hkdf::HKDF_SHA256, b"tidewall accounts v1").extract(secret);
        let derive = |purpose: &str| -> [u8; 32] {
            let mut key = [0; 32];
            root.expand(&[purpose.as_bytes()], Bytes32)
                .and_then(|okm| okm.fill(&mut key))
                .expect("one block of the hash is never too much");
            key
        };
        let mac = |purpose: &str| hmac::Key::new(hmac::HMAC_SHA256, &derive(purpose));
        Self {
            emails: mac("emails"),
            fingerprints: mac("fingerprints"),
            refresh: mac("refresh tokens"),
            salts: mac("salts"),
            wrapping: aead_key(&derive("wrapping")),
            pepper: derive("pepper"),
            webhooks: derive("webhooks"),
        }
    }

    /// What regions know an e-mail by, in its one spelling.
    pub(crate) fn email_hash(&self, normalised: &str) -> [u8; 32] {
        tag(&self.emails, normalised.as_bytes())
    }

    /// What guards a request id, of messages that carry secrets. Never 0.
    pub(crate) fn fingerprint(&self, method: &str, message: &[u8]) -> u64 {
        let mut context = hmac::Context::with_key(&self.fingerprints);
        context.update(&(method.len() as u64).to_le_bytes());
        context.update(method.as_bytes());
        context.update(message);
        let tag = context.sign();
        let head = tag.as_ref().first_chunk().copied().unwrap_or_default();
        u64::from_le_bytes(head).max(1)
    }

    /// A second id for a step before the one that a request asks for: the same for every copy of the request, at every gateway, and known
    /// to nobody else. Its time and form are those of the request's id.
    pub(crate) fn step_id(&self, request_id: &[u8], step: &str) -> Vec<u8> {
        let mut id = request_id.to_vec();
        // Time and version are in front; the variant is that of RFC 9562.
        let tail = (self.fingerprint(step, request_id) & (u64::MAX >> 2)) | 1 << 63;
        if let Some(last) = id.last_chunk_mut() {
            *last = tail.to_be_bytes();
        }
        id
    }

    /// The salt of whom there is not: what does not exist must take as long as what does.
    pub(crate) fn salt_of_nobody(&self, email: &[u8; 32]) -> [u8; 16] {
        let tag = tag(&self.salts, email);
        tag.first_chunk().copied().unwrap_or_default()
    }

    /// Of what the secrets of webhooks are derived.
    pub(crate) fn webhooks(&self) -> &[u8; 32] {
        &self.webhooks
    }

    /// What is added to all passwords, and in no database.
    pub(crate) fn pepper(&self) -> &[u8; 32] {
        &self.pepper
    }

    fn refresh_secret(&self, token: &RefreshToken<'_>) -> [u8; 32] {
        let RefreshToken { region, account, session, generation } = token;
        let mut context = hmac::Context::with_key(&self.refresh);
        for part in [region.as_bytes(), account.as_bytes(), session, &generation.to_be_bytes()] {
            context.update(&(part.len() as u64).to_le_bytes());
            context.update(part);
        }
        context.sign().as_ref().try_into().expect("SHA-256 has 32 bytes")
    }

    /// The text of a refresh token. Whoever makes the token of a session and generation makes this one: a lost answer can be given
    /// again, by any gateway, and nothing that is stored has it.
    pub(crate) fn refresh_token(&self, token: &RefreshToken<'_>) -> String {
        let secret = URL_SAFE_NO_PAD.encode(self.refresh_secret(token));
        let RefreshToken { region, account, session, generation } = token;
        let session = uuid::Uuid::from_bytes(*session).simple().to_string();
        format!("regions/{region}/accounts/{account}/sessions/{session}/{generation}/{secret}")
    }

    /// What regions know a refresh token by.
    pub(crate) fn refresh_hash(&self, token: &RefreshToken<'_>) -> [u8; 32] {
        let hash = digest::digest(&digest::SHA256, &self.refresh_secret(token));
        hash.as_ref().try_into().expect("SHA-256 has 32 bytes")
    }

    /// A refresh token that a gateway of this cluster made.
    pub(crate) fn parse_refresh_token<'a>(&self, text: &'a str) -> Option<RefreshToken<'a>> {
        let mut parts = text.split('/');
        let mut named = |name: &str| (parts.next() == Some(name)).then(|| parts.next()).flatten();
        let (region, account) = (named("regions")?, named("accounts")?);
        let session = uuid::Uuid::try_parse(named("sessions")?).ok()?.into_bytes();
        let (generation, secret) = (parts.next()?.parse().ok()?, parts.next()?);
        let token = RefreshToken { region, account, session, generation };
        let secret = URL_SAFE_NO_PAD.decode(secret).ok()?;
        let mut signed = Vec::new();
        for part in [region.as_bytes(), account.as_bytes(), &session, &generation.to_be_bytes()] {
            signed.extend_from_slice(&(part.len() as u64).to_le_bytes());
            signed.extend_from_slice(part);
        }
        // In constant time.
        hmac::verify(&self.refresh, &signed, &secret).ok()?;
        (parts.next().is_none() && self.refresh_token(&token) == text).then_some(token)
    }

    /// A person's key, for the keyring.
    pub(crate) fn wrap(&self, group: u32, id: &[u8; 16], key: &[u8; 32]) -> Vec<u8> {
        seal(&self.wrapping, &place(group, id), key)
    }

    /// A person's key, from the keyring.
    pub(crate) fn unwrap(&self, group: u32, id: &[u8; 16], wrapped: &[u8]) -> Result<PersonKey, NotOpened> {
        let key = open(&self.wrapping, &place(group, id), wrapped)?;
        Ok(PersonKey::new(*id, key.as_slice().try_into().map_err(|_| NotOpened)?))
    }
}

fn tag(key: &hmac::Key, bytes: &[u8]) -> [u8; 32] {
    hmac::sign(key, bytes).as_ref().try_into().expect("SHA-256 has 32 bytes")
}

fn place(group: u32, id: &[u8; 16]) -> Vec<u8> {
    [b"person".as_slice(), &group.to_be_bytes(), id].concat()
}

/// The key of a person: encrypts personal fields, each bound to its number.
pub(crate) struct PersonKey {
    id: [u8; 16],
    key: LessSafeKey,
}

impl PersonKey {
    pub(crate) fn new(id: [u8; 16], key: &[u8; 32]) -> Self {
        Self { id, key: aead_key(key) }
    }

    fn place(&self, field: u32) -> Vec<u8> {
        [b"field".as_slice(), &self.id, &field.to_be_bytes()].concat()
    }

    pub(crate) fn seal(&self, field: u32, text: &str) -> Vec<u8> {
        seal(&self.key, &self.place(field), text.as_bytes())
    }

    pub(crate) fn open(&self, field: u32, sealed: &[u8]) -> Result<String, NotOpened> {
        String::from_utf8(open(&self.key, &self.place(field), sealed)?).map_err(|_| NotOpened)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn token(session: u8, generation: u64) -> RefreshToken<'static> {
        RefreshToken { region: "north", account: "a7", session: [session; 16], generation }
    }

    #[test]
    fn gateways_with_one_secret_derive_the_same_and_others_do_not() {
        let (one, same, other) = (Secrets::new(&[1; 32]), Secrets::new(&[1; 32]), Secrets::new(&[2; 32]));
        assert_eq!(one.email_hash("ann@example.org"), same.email_hash("ann@example.org"));
        assert_ne!(one.email_hash("ann@example.org"), other.email_hash("ann@example.org"));
        assert_ne!(one.email_hash("ann@example.org"), one.email_hash("bob@example.org"));
        assert_eq!(one.fingerprint("LogIn", b"x"), same.fingerprint("LogIn", b"x"));
        assert_ne!(one.fingerprint("LogIn", b"x"), other.fingerprint("LogIn", b"x"));
        assert_ne!(one.fingerprint("LogIn", b"x"), one.fingerprint("Register", b"x"));
        assert_eq!(one.salt_of_nobody(&[7; 32]), same.salt_of_nobody(&[7; 32]));
        assert_ne!(one.pepper(), other.pepper());
        assert_eq!(one.refresh_token(&token(1, 1)), same.refresh_token(&token(1, 1)));
    }

    #[test]
    fn the_id_of_a_step_is_another_one_of_the_same_time_and_form() {
        let (one, other) = (Secrets::new(&[1; 32]), Secrets::new(&[2; 32]));
        let id = uuid::Uuid::now_v7();
        let step = uuid::Uuid::from_slice(&one.step_id(id.as_bytes(), "attempt")).unwrap();
        assert_ne!(step, id);
        assert_eq!((step.get_version_num(), step.get_variant()), (7, uuid::Variant::RFC4122));
        assert_eq!(step.get_timestamp(), id.get_timestamp());
        assert_eq!(one.step_id(id.as_bytes(), "attempt"), step.as_bytes(), "for every copy the same");
        assert_ne!(one.step_id(id.as_bytes(), "other"), step.as_bytes());
        assert_ne!(other.step_id(id.as_bytes(), "attempt"), step.as_bytes(), "nobody can compute it");
    }

    #[test]
    fn a_refresh_token_has_one_spelling_and_cannot_be_made_up() {
        let secrets = Secrets::new(&[1; 32]);
        let text = secrets.refresh_token(&token(1, 3));
        assert_eq!(secrets.parse_refresh_token(&text), Some(token(1, 3)));
        assert_ne!(secrets.refresh_hash(&token(1, 3)), secrets.refresh_hash(&token(1, 4)));
        assert!(Secrets::new(&[2; 32]).parse_refresh_token(&text).is_none());
        let session = "01010101010101010101010101010101";
        for changed in [
            text.replace("/3/", "/4/"),
            text.replace("/3/", "/03/"),
            text.replace("a7", "a8"),
            text.replace("north", "south"),
            text.replace(session, &session.replace("0101", "0102")),
            text.replace(session, "01010101-0101-0101-0101-010101010101"),
            format!("{text}/"),
            format!("{text}="),
            text[..text.len() - 1].to_owned(),
            String::new(),
            "regions/north/accounts/a7".to_owned(),
        ] {
            assert!(secrets.parse_refresh_token(&changed).is_none(), "{changed}");
        }
    }

    #[test]
    fn what_is_encrypted_opens_only_where_it_belongs() {
        let secrets = Secrets::new(&[1; 32]);
        let wrapped = secrets.wrap(3, &[9; 16], &[5; 32]);
        assert!(!wrapped.windows(8).any(|window| window == [5; 8]));
        assert_ne!(wrapped, secrets.wrap(3, &[9; 16], &[5; 32]), "never twice the same");
        let key = secrets.unwrap(3, &[9; 16], &wrapped).unwrap();
        let sealed = key.seal(2, "Ann");
        assert_eq!(PersonKey::new([9; 16], &[5; 32]).open(2, &sealed).unwrap(), "Ann");
        assert!(key.open(3, &sealed).is_err(), "in another field");
        assert!(PersonKey::new([8; 16], &[5; 32]).open(2, &sealed).is_err(), "of somebody else");
        assert!(PersonKey::new([9; 16], &[6; 32]).open(2, &sealed).is_err());
        for (group, id) in [(4, [9; 16]), (3, [8; 16])] {
            assert!(secrets.unwrap(group, &id, &wrapped).is_err());
        }
        assert!(Secrets::new(&[2; 32]).unwrap(3, &[9; 16], &wrapped).is_err());
        for at in 0..wrapped.len() {
            let mut changed = wrapped.clone();
            changed[at] ^= 1;
            assert!(secrets.unwrap(3, &[9; 16], &changed).is_err(), "{at}");
            assert!(secrets.unwrap(3, &[9; 16], &wrapped[..at]).is_err(), "{at}");
        }
    }
}
