//! The keys of persons, as far as this gateway has used them lately. The keyring has them; here they are remembered for a minute, so
//! that an erased key is forgotten everywhere soon after.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tidewall_client::ShardClient;
use tokio::time::Instant;

use super::Secrets;
use super::secrets::PersonKey;
use crate::errors::ApiError;

/// How long a key is remembered.
const REMEMBERED: Duration = Duration::from_secs(60);
/// How many are.
const KEYS_MAX: usize = 16_384;

/// Id of a key.
pub(crate) type KeyId = [u8; 16];

/// Two generations: when the young one is full, or old, the old one is dropped.
#[derive(Default)]
struct Remembered {
    young: HashMap<KeyId, Arc<PersonKey>>,
    old: HashMap<KeyId, Arc<PersonKey>>,
    turned: Option<Instant>,
}

/// Keys that were used lately.
#[derive(Default)]
pub(crate) struct Persons(Mutex<Remembered>);

impl Persons {
    fn remembered(&self, id: &KeyId, now: Instant) -> Option<Arc<PersonKey>> {
        let mut keys = self.0.lock();
        let turned = *keys.turned.get_or_insert(now);
        // A key stays for half of the time at least, and for all of it at most.
        if now.saturating_duration_since(turned) >= REMEMBERED / 2 || keys.young.len() >= KEYS_MAX / 2 {
            let idle = now.saturating_duration_since(turned) >= REMEMBERED;
            keys.old = if idle { HashMap::new() } else { std::mem::take(&mut keys.young) };
            keys.young.clear();
            keys.turned = Some(now);
        }
        keys.young.get(id).or_else(|| keys.old.get(id)).cloned()
    }

    fn remember(&self, id: KeyId, key: &Arc<PersonKey>) {
        self.0.lock().young.insert(id, Arc::clone(key));
    }

    /// A person's key; `None` when it was erased.
    ///
    /// # Errors
    /// [`ApiError::Client`] when too few nodes answer.
    pub(crate) async fn key(
        &self,
        client: &ShardClient,
        secrets: &Secrets,
        group: u32,
        id: KeyId,
        deadline: Instant,
    ) -> Result<Option<Arc<PersonKey>>, ApiError> {
        if let Some(key) = self.remembered(&id, Instant::now()) {
            return Ok(Some(key));
        }
        let timeout = deadline.saturating_duration_since(Instant::now());
        let found = client.get_key(id, timeout).await.map_err(|error| ApiError::keyring(&error))?;
        let Some(wrapped) = found else { return Ok(None) };
        let key = secrets.unwrap(group, &id, &wrapped).map_err(|_| {
            ApiError::internal("a key of the keyring does not open: this gateway has another account key than the one that made it")
        })?;
        let key = Arc::new(key);
        self.remember(id, &key);
        Ok(Some(key))
    }

    /// Makes a key for a new person, kept by a majority of the nodes.
    ///
    /// # Errors
    /// [`ApiError::Client`] when too few nodes answer.
    pub(crate) async fn make(
        &self,
        client: &ShardClient,
        secrets: &Secrets,
        group: u32,
        deadline: Instant,
    ) -> Result<(KeyId, PersonKey), ApiError> {
        let (id, key): (KeyId, [u8; 32]) = (tidewall_env::random::secret(), tidewall_env::random::secret());
        let timeout = deadline.saturating_duration_since(Instant::now());
        let wrapped = secrets.wrap(group, &id, &key);
        client.put_key(group, id, wrapped, timeout).await.map_err(|error| ApiError::keyring(&error))?;
        Ok((id, PersonKey::new(id, &key)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_forgotten_after_a_minute_at_the_latest_and_there_are_not_too_many() {
        let persons = Persons::default();
        let began = Instant::now();
        let after = |seconds| began + Duration::from_secs(seconds);
        let key = Arc::new(PersonKey::new([1; 16], &[1; 32]));
        assert!(persons.remembered(&[1; 16], began).is_none());
        persons.remember([1; 16], &key);
        for seconds in [0, 29, 31, 59] {
            assert!(persons.remembered(&[1; 16], after(seconds)).is_some(), "{seconds}");
        }
        assert!(persons.remembered(&[1; 16], after(61)).is_none());
        persons.remember([1; 16], &key);
        assert!(persons.remembered(&[1; 16], after(600)).is_none(), "after a pause as well");
        for number in 0..50_000u32 {
            let id: KeyId = u128::from(number).to_be_bytes();
            let _ = persons.remembered(&id, after(601));
            persons.remember(id, &key);
        }
        let keys = persons.0.lock();
        assert!(keys.young.len() + keys.old.len() <= KEYS_MAX);
    }
}
