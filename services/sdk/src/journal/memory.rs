//! A journal that lasts as long as the process. It must never be chosen where a crash may not lose the ids of
//! requests under way.

use std::collections::BTreeMap;

use async_trait::async_trait;
use parking_lot::Mutex;

use super::{JournalError, OPEN_MAX_DEFAULT, RequestJournal, Sent};
use crate::RequestId;

/// Keeps requests in memory: they survive lost answers and dropped calls, not the end of the process.
#[derive(Debug)]
pub struct MemoryJournal {
    open: Mutex<BTreeMap<RequestId, Sent>>,
    max: usize,
}

impl MemoryJournal {
    /// A journal for at most this many requests without a known outcome.
    pub fn new(open_max: usize) -> Self {
        Self { open: Mutex::default(), max: open_max }
    }
}

impl Default for MemoryJournal {
    /// Room for 100,000 requests.
    fn default() -> Self {
        Self::new(OPEN_MAX_DEFAULT)
    }
}

#[async_trait]
impl RequestJournal for MemoryJournal {
    async fn begin(&self, requests: &[Sent]) -> Result<(), JournalError> {
        let mut open = self.open.lock();
        let new = requests.iter().filter(|sent| !open.contains_key(&sent.request_id)).count();
        if open.len() + new > self.max {
            return Err(JournalError::Full { open: open.len(), max: self.max });
        }
        for sent in requests {
            let merged = sent.merged(open.get(&sent.request_id));
            open.insert(sent.request_id, merged);
        }
        Ok(())
    }

    fn end(&self, request_ids: &[RequestId]) {
        let mut open = self.open.lock();
        for id in request_ids {
            open.remove(id);
        }
    }

    fn unfinished(&self) -> Vec<Sent> {
        self.open.lock().values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn sent(resource: &str) -> Sent {
        let request_id = RequestId::fresh();
        Sent { request_id, method: "m".into(), resource: resource.into(), expires_at_unix_ms: 1 }
    }

    #[tokio::test]
    async fn it_holds_what_has_begun_and_not_ended_and_no_more_than_it_may() {
        let journal = MemoryJournal::new(2);
        let (first, second) = (sent("regions/a"), sent("regions/b"));
        journal.begin(&[first.clone(), second.clone()]).await.unwrap();
        let refused = journal.begin(&[sent("regions/c")]).await.unwrap_err();
        assert!(matches!(refused, JournalError::Full { open: 2, max: 2 }));
        // The same id again needs no more room.
        let later = Sent { expires_at_unix_ms: 9, ..first.clone() };
        journal.begin(std::slice::from_ref(&later)).await.unwrap();
        assert_eq!(journal.unfinished(), [later.clone(), second.clone()]);
        // A shorter second call does not make a copy of the first one void.
        journal.begin(std::slice::from_ref(&first)).await.unwrap();
        assert_eq!(journal.unfinished(), [later, second.clone()]);
        journal.end(&[first.request_id]);
        assert_eq!(journal.unfinished(), [second]);
        journal.begin(&[sent("regions/c")]).await.unwrap();
    }
}
