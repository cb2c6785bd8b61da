//! Tokens that were verified before, so that a signature is checked once per token and not once per call. The
//! whole token is compared, never only its hash; expiry is the reader's business.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::sync::Arc;

use parking_lot::Mutex;

use super::Principal;

const SHARDS: usize = 16;

/// Two generations: what is used moves to the young one; when that is full the old one is dropped, so
/// that evicting costs nothing per call.
#[derive(Default)]
struct Shard {
    young: HashMap<Box<str>, Arc<Principal>>,
    old: HashMap<Box<str>, Arc<Principal>>,
}

/// A bounded set of verified tokens.
pub(crate) struct TokenCache {
    shards: Vec<Mutex<Shard>>,
    hasher: RandomState,
    generation_max: usize,
}

impl TokenCache {
    /// Remembers at most about `entries` tokens.
    pub(crate) fn new(entries: usize) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            generation_max: (entries / SHARDS / 2).max(1),
        }
    }

    fn shard(&self, token: &str) -> &Mutex<Shard> {
        // Keyed by a random seed: nobody can aim tokens at one shard.
        &self.shards[self.hasher.hash_one(token) as usize % SHARDS]
    }

    pub(crate) fn get(&self, token: &str) -> Option<Arc<Principal>> {
        let mut shard = self.shard(token).lock();
        if let Some(principal) = shard.young.get(token) {
            return Some(Arc::clone(principal));
        }
        let (token, principal) = shard.old.remove_entry(token)?;
        let found = Arc::clone(&principal);
        self.add(&mut shard, token, principal);
        Some(found)
    }

    pub(crate) fn put(&self, token: &str, principal: &Arc<Principal>) {
        let mut shard = self.shard(token).lock();
        shard.old.remove(token);
        self.add(&mut shard, token.into(), Arc::clone(principal));
    }

    fn add(&self, shard: &mut Shard, token: Box<str>, principal: Arc<Principal>) {
        if shard.young.len() >= self.generation_max && !shard.young.contains_key(&token) {
            shard.old = std::mem::take(&mut shard.young);
        }
        shard.young.insert(token, principal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn principal(name: &str) -> Arc<Principal> {
        Arc::new(Principal { subject: name.into(), roles: 0, expires_at_s: 0.0, session: None })
    }

    #[test]
    fn the_number_of_tokens_is_bounded_and_used_ones_stay() {
        let cache = TokenCache::new(320);
        cache.put("kept", &principal("kept"));
        for number in 0..10_000 {
            cache.put(&format!("token-{number}"), &principal("x"));
            assert!(cache.get("kept").is_some(), "used between any two others");
        }
        let count = |shard: &Mutex<Shard>| {
            let shard = shard.lock();
            shard.young.len() + shard.old.len()
        };
        let held: usize = cache.shards.iter().map(count).sum();
        assert!(held <= 320, "{held}");
        assert!(cache.get("token-0").is_none());
        assert!(cache.get("token-9999").is_some());
    }
}
