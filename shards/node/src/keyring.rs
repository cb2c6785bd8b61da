//! This node's part of the keyring: answers gateways and other nodes, and takes over what others have.
//!
//! Gateways put and erase keys on a majority of the nodes; each node asks all others from time to time what it has missed. A node
//! that may have missed what a majority has kept answers no question about a key before it has asked a majority of the others.

use std::time::Duration;

use tidewall_consensus::{FailStop, Peers, StorageFault};
use tidewall_env::tasks;
use tidewall_proto::internal::v1 as pb;
use tidewall_store::keyring::{Entry, KeyId, Keyring, KeyringError, PARTS};

use crate::space::Space;
use crate::standing::Standing;

/// How often a node asks the others what it has missed.
const ROUND: Duration = Duration::from_secs(20);
/// And as long as it may have missed anything.
const FIRST_ROUND: Duration = Duration::from_millis(200);
/// How long another node may take.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// The keyring of a running node; clones are the same.
#[derive(Clone)]
pub struct Keys {
    keyring: Keyring,
    space: Space,
    /// Told when the disk fails.
    fail_stop: FailStop,
}

fn refusal(kind: pb::KeyringRefusal, message: impl Into<String>) -> pb::KeyringResponse {
    pb::KeyringResponse { refusal: kind.into(), message: message.into(), ..Default::default() }
}

fn entry(message: &pb::KeyringEntry) -> Result<Entry, pb::KeyringResponse> {
    let wrapped = (!message.erased).then(|| message.wrapped.clone());
    Ok(Entry { id: id(&message.id)?, group: message.group, wrapped })
}

fn id(bytes: &[u8]) -> Result<KeyId, pb::KeyringResponse> {
    let why = "the id of a key has 16 bytes";
    bytes.try_into().map_err(|_| refusal(pb::KeyringRefusal::Invalid, why))
}

fn shown(entry: Entry) -> pb::KeyringEntry {
    let erased = entry.wrapped.is_none();
    pb::KeyringEntry {
        id: entry.id.to_vec(),
        group: entry.group,
        wrapped: entry.wrapped.unwrap_or_default(),
        erased,
    }
}

fn failed(error: KeyringError) -> pb::KeyringResponse {
    let kind = match error {
        KeyringError::Taken | KeyringError::Erased => pb::KeyringRefusal::Taken,
        KeyringError::Size(_) => pb::KeyringRefusal::Invalid,
        KeyringError::Io { .. } | KeyringError::Failed | KeyringError::Foreign(_) => {
            pb::KeyringRefusal::Unavailable
        }
    };
    refusal(kind, error.to_string())
}

impl Keys {
    /// The keyring of a node. Short of space it takes no new keys.
    pub fn new(keyring: Keyring, space: Space, fail_stop: FailStop) -> Self {
        Self { keyring, space, fail_stop }
    }

    /// A disk that fails stops the node, unless it is only full: then others have the key.
    fn failed(&self, error: KeyringError) -> pb::KeyringResponse {
        let ends = match &error {
            KeyringError::Io { source, .. } => source.kind() != std::io::ErrorKind::StorageFull,
            KeyringError::Failed => true,
            _ => false,
        };
        if ends {
            self.fail_stop.report(StorageFault::Disk(error.to_string()));
        }
        failed(error)
    }

    /// Answers a gateway or another node, where a disk holds nobody up.
    pub async fn answer(&self, request: pb::KeyringRequest) -> pb::KeyringResponse {
        let keys = self.clone();
        let answer =
            tasks::off_thread(move || keys.try_answer(request).unwrap_or_else(|refused| refused)).await;
        answer.unwrap_or_else(|why| refusal(pb::KeyringRefusal::Unavailable, why))
    }

    fn try_answer(&self, request: pb::KeyringRequest) -> Result<pb::KeyringResponse, pb::KeyringResponse> {
        use pb::keyring_request::Op;
        let mut response = pb::KeyringResponse::default();
        match request.op {
            Some(Op::Put(_)) if self.space.is_low() => {
                let why = "this node's disk is nearly full: free space";
                return Err(refusal(pb::KeyringRefusal::Unavailable, why));
            }
            Some(Op::Put(put)) => self.keyring.put(entry(&put)?).map_err(|error| self.failed(error))?,
            Some(Op::Erase(erase)) => {
                self.keyring.erase(erase.group, id(&erase.id)?).map_err(|error| self.failed(error))?
            }
            Some(Op::Get(key)) => {
                if !self.keyring.is_complete() {
                    let why = "this node has not yet taken over the keys that others have";
                    return Err(refusal(pb::KeyringRefusal::Unavailable, why));
                }
                let found = self.keyring.get(&id(&key)?).map_err(|error| self.failed(error))?;
                response.entries.extend(found.map(shown));
            }
            Some(Op::Compare(_)) => {
                response.complete = self.keyring.is_complete();
                response.sums = self.keyring.sums().map_err(|error| self.failed(error))?;
            }
            Some(Op::Part(part)) => {
                let part = u8::try_from(part)
                    .map_err(|_| refusal(pb::KeyringRefusal::Invalid, format!("there are {PARTS} parts")))?;
                let found = self.keyring.part(part).map_err(|error| self.failed(error))?;
                response.entries.extend(found.into_iter().map(shown));
            }
            None => return Err(refusal(pb::KeyringRefusal::Invalid, "the request asks for nothing")),
        }
        Ok(response)
    }

    /// Takes over from the others what is missing here, again and again.
    pub(crate) async fn keep(&self, peers: &Peers, standing: &Standing) {
        loop {
            let complete = self.keyring.is_complete();
            tokio::time::sleep(if complete { ROUND } else { FIRST_ROUND }).await;
            let others = standing.others();
            let (mut answered, mut whole) = (0, 0);
            for node in &others {
                match self.take_over(peers, *node).await {
                    Ok((keys, is_complete)) => {
                        answered += 1;
                        whole += usize::from(is_complete);
                        if keys > 0 {
                            tracing::info!(node, keys, "keys taken over");
                        }
                    }
                    Err(why) => tracing::debug!(node, why, "the keyring cannot be compared"),
                }
            }
            // What a majority has kept, one of any majority of the others has, if this node has nothing; unless that has lost it as well.
            // All others together have whatever there is.
            if !complete && (2 * whole > others.len() || answered == others.len()) {
                let keyring = self.keyring.clone();
                match tasks::off_thread(move || keyring.set_complete()).await {
                    Ok(Ok(())) => tracing::info!(keys = self.keyring.len(), "the keyring is complete"),
                    Ok(Err(error)) => {
                        let why = self.failed(error).message;
                        tracing::error!(why, "the keyring cannot be made complete");
                    }
                    Err(why) => tracing::error!(why, "the keyring cannot be made complete"),
                }
            }
        }
    }

    /// Takes over what one other node has; gives how many keys and tombstones that were, and whether that node is complete.
    async fn take_over(&self, peers: &Peers, node: u64) -> Result<(usize, bool), String> {
        use pb::keyring_request::Op;
        let ask = async |op| {
            let request = pb::KeyringRequest { op: Some(op) };
            let response = peers.keyring(node, request, ANSWER_MAX).await?;
            match response.refusal() {
                pb::KeyringRefusal::Unspecified => Ok(response),
                _ => Err(response.message),
            }
        };
        let pb::KeyringResponse { sums: theirs, complete, .. } =
            ask(Op::Compare(pb::KeyringCompare {})).await?;
        let own = self.keyring.sums().map_err(|error| self.failed(error).message)?;
        let mut taken = 0;
        for (part, _) in theirs.iter().zip(&own).enumerate().filter(|(_, (theirs, own))| theirs != own) {
            let entries = ask(Op::Part(part as u32)).await?.entries;
            let entries: Result<Vec<Entry>, _> = entries.iter().map(entry).collect();
            let entries = entries.map_err(|refused| refused.message)?;
            let keyring = self.keyring.clone();
            let merged = tasks::off_thread(move || keyring.merge(entries)).await?;
            taken += merged.map_err(|error| self.failed(error).message)?;
        }
        Ok((taken, complete))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tidewall_env::disk::MemoryDisk;

    use super::*;
    use crate::fake::{replicas, standing};

    fn keys(node: u64, first: bool) -> Keys {
        let fail_stop = FailStop::new(|fault| panic!("{fault:?}"));
        let keyring = Keyring::open(&MemoryDisk::new(), [1; 16], node, first).unwrap();
        Keys::new(keyring, Space::unlimited(), fail_stop)
    }

    fn ask(keys: &Keys, op: pb::keyring_request::Op) -> pb::KeyringResponse {
        keys.try_answer(pb::KeyringRequest { op: Some(op) }).unwrap_or_else(|refused| refused)
    }

    fn key(id: u8) -> pb::KeyringEntry {
        pb::KeyringEntry { id: vec![id; 16], group: 1, wrapped: vec![id; 60], erased: false }
    }

    use pb::keyring_request::Op;

    #[test]
    fn answers_say_what_is_kept_and_nonsense_is_refused() {
        let keys = keys(1, true);
        assert_eq!(ask(&keys, Op::Put(key(1))), pb::KeyringResponse::default());
        assert_eq!(ask(&keys, Op::Get(vec![1; 16])).entries, [key(1)]);
        assert!(ask(&keys, Op::Get(vec![2; 16])).entries.is_empty());
        let other = pb::KeyringEntry { wrapped: vec![9; 60], ..key(1) };
        assert_eq!(ask(&keys, Op::Put(other)).refusal(), pb::KeyringRefusal::Taken);
        assert_eq!(ask(&keys, Op::Erase(key(1))), pb::KeyringResponse::default());
        let erased = ask(&keys, Op::Get(vec![1; 16])).entries;
        assert!(erased[0].erased && erased[0].wrapped.is_empty());
        assert_eq!(ask(&keys, Op::Part(1)).entries, erased);
        keys.space.judge(0);
        assert_eq!(ask(&keys, Op::Put(key(7))).refusal(), pb::KeyringRefusal::Unavailable);
        assert_eq!(ask(&keys, Op::Erase(key(8))), pb::KeyringResponse::default(), "goes on on a full disk");
        keys.space.judge(u64::MAX);
        let nonsense = [Op::Get(vec![1]), Op::Part(256), Op::Put(pb::KeyringEntry::default())];
        for op in nonsense {
            assert_eq!(ask(&keys, op).refusal(), pb::KeyringRefusal::Invalid);
        }
        let nothing = keys.try_answer(pb::KeyringRequest { op: None }).unwrap_err();
        assert_eq!(nothing.refusal(), pb::KeyringRefusal::Invalid);
    }

    #[test]
    fn a_disk_that_fails_stops_the_node_and_a_full_one_does_not() {
        let disk = MemoryDisk::new();
        let told = std::sync::Arc::new(parking_lot::Mutex::new(Vec::new()));
        let telling = std::sync::Arc::clone(&told);
        let fail_stop = FailStop::new(move |fault| telling.lock().push(fault));
        let keyring = Keyring::open(&disk, [1; 16], 1, true).unwrap();
        let keys = Keys::new(keyring, Space::unlimited(), fail_stop);
        disk.set_capacity_bytes(Some(200));
        assert_eq!(ask(&keys, Op::Put(key(1))).refusal(), pb::KeyringRefusal::Unavailable);
        assert!(told.lock().is_empty());
        disk.set_capacity_bytes(None);
        disk.fail_syncs_after(0);
        assert_eq!(ask(&keys, Op::Put(key(1))).refusal(), pb::KeyringRefusal::Unavailable);
        assert!(matches!(told.lock().as_slice(), [StorageFault::Disk(_)]));
    }

    /// Node 2 begins with nothing, beside node 1 that has keys and tombstones.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_node_that_has_nothing_says_nothing_before_it_has_what_the_others_have() {
        let running = replicas(&[1, 2, 3]).await;
        let (one, two) = (keys(1, true), keys(2, false));
        assert_eq!(ask(&two, Op::Get(vec![1; 16])).refusal(), pb::KeyringRefusal::Unavailable);
        (1..=9).for_each(|id| drop(ask(&one, Op::Put(key(id)))));
        ask(&one, Op::Erase(key(3)));
        for (replica, keys) in [(0, one.clone()), (2, keys(3, true))] {
            running[replica].server.on_keyring(move |request| {
                let keys = keys.clone();
                Box::pin(async move { keys.answer(request).await })
            });
        }
        let (keeping, peers) = (two.clone(), running[1].peers.clone());
        let keep = tokio::spawn(async move { keeping.keep(&peers, &standing(2)).await });
        let complete = async {
            while ask(&two, Op::Get(vec![1; 16])).entries != [key(1)] {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), complete).await.unwrap();
        assert!(ask(&two, Op::Get(vec![3; 16])).entries[0].erased);
        assert_eq!(two.keyring.sums().unwrap(), one.keyring.sums().unwrap());
        keep.abort();
        for replica in running {
            replica.writer.stop();
            replica.log.close().unwrap();
        }
    }
}
