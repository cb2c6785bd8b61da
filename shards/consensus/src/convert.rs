//! Between openraft's types, the log's, the machine's and the wire's. Nothing here decides anything.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use bytes::{BufMut, Bytes, BytesMut};
use openraft::EntryPayload;
use openraft::impls::BasicNode;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, TransferLeaderRequest, VoteRequest, VoteResponse,
};
use tidewall_machine::domain::codec::{DecodeError, Reader, Writer};
use tidewall_machine::{Head, Position};
use tidewall_proto::internal::v1 as pb;
use tidewall_store::log;

use crate::types::*;

pub fn log_id(term: u64, node: u64, index: u64) -> LogId {
    LogId { leader_id: LeaderId { term, node_id: node }, index }
}

pub fn log_position(id: &LogId) -> log::LogPosition {
    log::LogPosition { term: id.leader_id.term, node: id.leader_id.node_id, index: id.index }
}

pub fn from_log_position(at: log::LogPosition) -> LogId {
    log_id(at.term, at.node, at.index)
}

pub fn position(id: &LogId) -> Position {
    Position { term: id.leader_id.term, node: id.leader_id.node_id, index: id.index }
}

pub fn from_position(at: Position) -> LogId {
    log_id(at.term, at.node, at.index)
}

pub fn log_vote(vote: &Vote) -> log::Vote {
    log::Vote { term: vote.leader_id.term, node: vote.leader_id.node_id, committed: vote.committed }
}

pub fn vote(term: u64, node: u64, committed: bool) -> Vote {
    Vote { leader_id: LeaderId { term, node_id: node }, committed }
}

/// Encodes a membership canonically.
pub fn encode_membership(membership: &Membership, w: &mut Writer) {
    w.u64(membership.get_joint_config().len() as u64);
    for config in membership.get_joint_config() {
        w.u64(config.len() as u64);
        for node in config {
            w.u64(*node);
        }
    }
    let nodes: BTreeMap<&u64, &BasicNode> = membership.nodes().collect();
    w.u64(nodes.len() as u64);
    for (id, node) in nodes {
        w.u64(*id);
        w.str(&node.addr);
    }
}

pub fn decode_membership(r: &mut Reader<'_>) -> Result<Membership, DecodeError> {
    let configs = r.seq(|r| r.seq(Reader::u64).map(|nodes| nodes.into_iter().collect::<BTreeSet<u64>>()))?;
    let nodes = r.seq(|r| Ok((r.u64()?, BasicNode { addr: r.str()?.to_owned() })))?;
    let nodes: BTreeMap<u64, BasicNode> = nodes.into_iter().collect();
    Membership::new(configs, nodes).map_err(|_| DecodeError::Tag { what: "membership", tag: 0 })
}

/// The membership in force as the machine's head keeps it: where it was logged, and what it is.
pub fn encode_stored_membership(at: &LogId, membership: &Membership) -> Vec<u8> {
    let mut w = Writer::new();
    w.u64(at.leader_id.term);
    w.u64(at.leader_id.node_id);
    w.u64(at.index);
    encode_membership(membership, &mut w);
    w.into_bytes()
}

pub fn stored_membership(head: &Head) -> Result<StoredMembership, DecodeError> {
    if head.membership.is_empty() {
        return Ok(StoredMembership::default());
    }
    let mut r = Reader::new(&head.membership);
    let at = log_id(r.u64()?, r.u64()?, r.u64()?);
    let membership = decode_membership(&mut r)?;
    r.finish()?;
    Ok(StoredMembership::new(Some(at), membership))
}

pub fn snapshot_meta(head: &Head) -> Result<SnapshotMeta, DecodeError> {
    Ok(SnapshotMeta {
        last_log_id: head.applied.map(from_position),
        last_membership: stored_membership(head)?,
    })
}

pub fn encode_payload(entry: &RaftEntry) -> Bytes {
    match &entry.payload {
        EntryPayload::Blank => Bytes::from_static(&[KIND_BLANK]),
        EntryPayload::Normal(payload) => payload.0.clone(),
        EntryPayload::Membership(membership) => {
            let mut w = Writer::new();
            encode_membership(membership, &mut w);
            let mut bytes = BytesMut::with_capacity(1 + w.as_slice().len());
            bytes.put_u8(KIND_MEMBERSHIP);
            bytes.put_slice(w.as_slice());
            bytes.freeze()
        }
    }
}

pub fn decode_entry(id: LogId, payload: Bytes) -> Result<RaftEntry, DecodeError> {
    let payload = match payload.first() {
        Some(&KIND_BLANK) if payload.len() == 1 => EntryPayload::Blank,
        Some(&KIND_NORMAL) => EntryPayload::Normal(Payload(payload)),
        Some(&KIND_MEMBERSHIP) => {
            let mut r = Reader::new(&payload[1..]);
            let membership = decode_membership(&mut r)?;
            r.finish()?;
            EntryPayload::Membership(membership)
        }
        Some(tag) => return Err(DecodeError::Tag { what: "entry kind", tag: (*tag).into() }),
        None => return Err(DecodeError::Truncated),
    };
    Ok(RaftEntry { log_id: id, payload })
}

pub fn undecodable(id: &LogId, error: &DecodeError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("log entry {id} does not decode: {error}"))
}

pub fn pb_log_id(id: &LogId) -> pb::RaftLogId {
    pb::RaftLogId { term: id.leader_id.term, node: id.leader_id.node_id, index: id.index }
}

pub fn from_pb_log_id(id: &pb::RaftLogId) -> LogId {
    log_id(id.term, id.node, id.index)
}

pub fn pb_vote(vote: &Vote) -> pb::RaftVote {
    pb::RaftVote { term: vote.leader_id.term, node: vote.leader_id.node_id, committed: vote.committed }
}

pub fn from_pb_vote(vote_: &pb::RaftVote) -> Vote {
    vote(vote_.term, vote_.node, vote_.committed)
}

fn required<T>(value: Option<T>) -> Result<T, String> {
    value.ok_or_else(|| "a required field of a peer message is missing".to_owned())
}

pub fn pb_append(request: AppendEntriesRequest<Types>) -> pb::AppendEntries {
    let entries = request
        .entries
        .iter()
        .map(|entry| pb::RaftEntry { id: Some(pb_log_id(&entry.log_id)), payload: encode_payload(entry) });
    pb::AppendEntries {
        vote: Some(pb_vote(&request.vote)),
        previous: request.prev_log_id.as_ref().map(pb_log_id),
        entries: entries.collect(),
        committed: request.leader_commit.as_ref().map(pb_log_id),
    }
}

pub fn from_pb_append(message: pb::AppendEntries) -> Result<AppendEntriesRequest<Types>, String> {
    let entries = message.entries.into_iter().map(|entry| {
        let id = from_pb_log_id(&required(entry.id)?);
        decode_entry(id, entry.payload).map_err(|error| undecodable(&id, &error).to_string())
    });
    Ok(AppendEntriesRequest {
        vote: from_pb_vote(&required(message.vote)?),
        prev_log_id: message.previous.as_ref().map(from_pb_log_id),
        entries: entries.collect::<Result<_, String>>()?,
        leader_commit: message.committed.as_ref().map(from_pb_log_id),
    })
}

pub fn pb_append_reply(response: AppendEntriesResponse<Types>) -> pb::AppendReply {
    use pb::append_reply::Result as R;
    let result = match response {
        AppendEntriesResponse::Success => R::Success(pb::Empty {}),
        AppendEntriesResponse::PartialSuccess(id) => {
            R::Partial(pb::PartialSuccess { matching: id.as_ref().map(pb_log_id) })
        }
        AppendEntriesResponse::Conflict => R::Conflict(pb::Empty {}),
        AppendEntriesResponse::HigherVote(vote) => R::HigherVote(pb_vote(&vote)),
    };
    pb::AppendReply { result: Some(result) }
}

pub fn from_pb_append_reply(reply: pb::AppendReply) -> Result<AppendEntriesResponse<Types>, String> {
    use pb::append_reply::Result as R;
    Ok(match required(reply.result)? {
        R::Success(_) => AppendEntriesResponse::Success,
        R::Partial(partial) => {
            AppendEntriesResponse::PartialSuccess(partial.matching.as_ref().map(from_pb_log_id))
        }
        R::Conflict(_) => AppendEntriesResponse::Conflict,
        R::HigherVote(vote) => AppendEntriesResponse::HigherVote(from_pb_vote(&vote)),
    })
}

pub fn pb_vote_request(request: &VoteRequest<Types>) -> pb::RequestVote {
    pb::RequestVote {
        vote: Some(pb_vote(&request.vote)),
        last: request.last_log_id.as_ref().map(pb_log_id),
        leadership_transfer: request.leadership_transfer,
    }
}

pub fn from_pb_vote_request(message: pb::RequestVote) -> Result<VoteRequest<Types>, String> {
    let vote = from_pb_vote(&required(message.vote)?);
    let mut request = VoteRequest::new(vote, message.last.as_ref().map(from_pb_log_id));
    request.leadership_transfer = message.leadership_transfer;
    Ok(request)
}

pub fn pb_vote_reply(response: &VoteResponse<Types>) -> pb::VoteReply {
    pb::VoteReply {
        vote: Some(pb_vote(&response.vote)),
        granted: response.vote_granted,
        last: response.last_log_id.as_ref().map(pb_log_id),
    }
}

pub fn from_pb_vote_reply(reply: pb::VoteReply) -> Result<VoteResponse<Types>, String> {
    let vote = from_pb_vote(&required(reply.vote)?);
    Ok(VoteResponse::new(vote, reply.last.as_ref().map(from_pb_log_id), reply.granted))
}

pub fn pb_transfer(request: &TransferLeaderRequest<Types>) -> pb::TransferLeader {
    pb::TransferLeader {
        from: Some(pb_vote(request.from_leader())),
        to: *request.to_node_id(),
        last: request.last_log_id().map(pb_log_id),
    }
}

pub fn from_pb_transfer(message: &pb::TransferLeader) -> Result<TransferLeaderRequest<Types>, String> {
    let from = from_pb_vote(&required(message.from)?);
    Ok(TransferLeaderRequest::new(from, message.to, message.last.as_ref().map(from_pb_log_id)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn membership() -> Membership {
        let nodes = [1, 2, 3, 4].map(|id| (id, BasicNode { addr: format!("host-{id}:1") }));
        let configs = vec![BTreeSet::from([1, 2, 3]), BTreeSet::from([1, 2, 4])];
        Membership::new(configs, nodes.into_iter().collect::<BTreeMap<_, _>>()).unwrap()
    }

    #[test]
    fn every_kind_of_entry_comes_back_from_its_bytes() {
        let entry =
            tidewall_machine::Entry { stamp: tidewall_machine::Stamp::confirmed(7), commands: vec![] };
        let payloads = [
            EntryPayload::Blank,
            EntryPayload::Normal(Payload::new(&entry)),
            EntryPayload::Membership(membership()),
        ];
        for payload in payloads {
            let entry = RaftEntry { log_id: log_id(3, 2, 9), payload };
            assert_eq!(decode_entry(entry.log_id, encode_payload(&entry)).unwrap(), entry);
        }
        assert!(decode_entry(log_id(1, 1, 1), Bytes::from_static(&[9])).is_err());
        assert!(decode_entry(log_id(1, 1, 1), Bytes::new()).is_err());
    }

    #[test]
    fn a_stored_membership_comes_back() {
        let at = log_id(4, 1, 12);
        let bytes = encode_stored_membership(&at, &membership());
        let head = Head { membership: bytes, ..Head::default() };
        let stored = stored_membership(&head).unwrap();
        assert_eq!((stored.log_id(), stored.membership()), (&Some(at), &membership()));
        assert_eq!(stored_membership(&Head::default()).unwrap(), StoredMembership::default());
    }

    #[test]
    fn append_requests_and_replies_survive_the_wire() {
        let request = AppendEntriesRequest {
            vote: vote(5, 2, true),
            prev_log_id: Some(log_id(4, 1, 8)),
            entries: vec![RaftEntry { log_id: log_id(5, 2, 9), payload: EntryPayload::Blank }],
            leader_commit: None,
        };
        let back = from_pb_append(pb_append(request.clone())).unwrap();
        assert_eq!(
            (back.vote, back.prev_log_id, back.leader_commit),
            (request.vote, request.prev_log_id, None)
        );
        assert_eq!(back.entries, request.entries);
        for reply in [
            AppendEntriesResponse::Success,
            AppendEntriesResponse::PartialSuccess(None),
            AppendEntriesResponse::PartialSuccess(Some(log_id(1, 1, 1))),
            AppendEntriesResponse::Conflict,
            AppendEntriesResponse::HigherVote(vote(9, 3, false)),
        ] {
            assert_eq!(from_pb_append_reply(pb_append_reply(reply.clone())).unwrap(), reply);
        }
    }
}
