//! The keyring of the cluster: each key on a majority of the nodes.
//!
//! A key is put under a random id and never changed, and a tombstone wins over it, so that no log is needed: what a majority has
//! kept, some node of every other majority knows. Who asks a majority therefore sees every key that was kept, and every erasure
//! that was acknowledged. **Never here:** what is in a key.

use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tidewall_mutant::{Mutant, active};
use tidewall_proto::internal::v1 as pb;
use tidewall_proto::internal::v1::keyring_request::Op;

use crate::ShardClient;

/// Why the keyring gave no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyringError {
    /// Too few nodes answered. A key that was to be put or erased may be, on some.
    #[error("only {answered} of {nodes} nodes answered for the keyring: {why}")]
    Unavailable {
        /// Nodes that did.
        answered: usize,
        /// Nodes that there are.
        nodes: usize,
        /// What one of the others said.
        why: String,
    },
    /// A majority knows neither the key nor its erasure.
    #[error("a majority of the nodes has lost this key: if one of the others has it, let it come back")]
    Missing,
    /// The id has another key, or was erased.
    #[error("the id of this key is taken: make another one")]
    Taken,
    /// A node calls the request senseless.
    #[error("the keyring refuses the request: {0}")]
    Invalid(String),
}

impl ShardClient {
    /// Keeps a wrapped key on a majority of the nodes, durably.
    ///
    /// # Errors
    /// See [`KeyringError`].
    pub async fn put_key(
        &self,
        group: u32,
        id: [u8; 16],
        wrapped: Vec<u8>,
        timeout: Duration,
    ) -> Result<(), KeyringError> {
        let entry = pb::KeyringEntry { id: id.to_vec(), group, wrapped, erased: false };
        self.majority(Op::Put(entry), timeout).await.map(drop)
    }

    /// Erases a key on a majority of the nodes, durably. The others learn of it from those.
    ///
    /// # Errors
    /// See [`KeyringError`].
    pub async fn erase_key(&self, group: u32, id: [u8; 16], timeout: Duration) -> Result<(), KeyringError> {
        let entry = pb::KeyringEntry { id: id.to_vec(), group, ..Default::default() };
        self.majority(Op::Erase(entry), timeout).await.map(drop)
    }

    /// The wrapped key with an id; `None` when it was erased. That there never was one is an error: who asks has seen it in use.
    ///
    /// # Errors
    /// See [`KeyringError`].
    pub async fn get_key(&self, id: [u8; 16], timeout: Duration) -> Result<Option<Vec<u8>>, KeyringError> {
        let entries = self.majority(Op::Get(id.to_vec()), timeout).await?;
        if entries.iter().any(|entry| entry.erased) {
            return Ok(None);
        }
        entries.into_iter().next().map(|entry| Some(entry.wrapped)).ok_or(KeyringError::Missing)
    }

    /// Asks all nodes, and waits until a majority has answered: gives what they know.
    async fn majority(&self, op: Op, timeout: Duration) -> Result<Vec<pb::KeyringEntry>, KeyringError> {
        let mut present = self.nodes.present();
        if active(Mutant::KeyOnOneNode) && matches!(op, Op::Put(_)) {
            present.truncate(1);
        }
        let nodes = present.len();
        let mut asked: FuturesUnordered<_> = present
            .iter()
            .map(|(position, node)| {
                let mut client = self.node_client(*position);
                let request = pb::KeyringRequest { op: Some(op.clone()) };
                let id = node.id;
                async move {
                    match tokio::time::timeout(timeout, client.keyring(request)).await {
                        Ok(Ok(response)) => Ok(response.into_inner()),
                        Ok(Err(status)) => Err(format!("node {id}: {}", status.message())),
                        Err(_) => Err(format!("node {id}: no answer in time")),
                    }
                }
            })
            .collect();
        let (mut answered, mut entries, mut why) = (0, Vec::new(), "no node was asked".to_owned());
        while let Some(answer) = asked.next().await {
            let response = match answer {
                Ok(response) => response,
                Err(error) => {
                    why = error;
                    continue;
                }
            };
            match response.refusal() {
                pb::KeyringRefusal::Unspecified => {
                    answered += 1;
                    entries.extend(response.entries);
                    if 2 * answered > nodes {
                        return Ok(entries);
                    }
                }
                pb::KeyringRefusal::Taken => return Err(KeyringError::Taken),
                pb::KeyringRefusal::Invalid => return Err(KeyringError::Invalid(response.message)),
                pb::KeyringRefusal::Unavailable => why = response.message,
            }
        }
        Err(KeyringError::Unavailable { answered, nodes, why })
    }
}
