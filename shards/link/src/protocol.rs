//! What travels over a link: the trait that names the message types, and our two protocols.
//!
//! Nothing here looks at the meaning of a call.

use std::future::Future;
use std::pin::Pin;

use prost::Message as _;
use tidewall_proto::internal::v1 as pb;
use tonic::{Status, Streaming};

use crate::{CallStream, NodeChannel};

/// Largest stream message that either side of our protocols accepts, bytes. Links pack far less into one
/// message; this leaves room for one large call.
const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A future on the heap.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// The message types of one bidirectional stream and how to open it.
pub trait Protocol: Send + Sync + Sized + 'static {
    /// One call.
    type Call: Send + 'static;
    /// One reply.
    type Reply: Send + 'static;
    /// Stream message that carries calls.
    type Request: Send + Sync + 'static;
    /// Stream message that carries replies.
    type Response: Send + Sync + 'static;

    /// Writes the id that correlates a call with its reply.
    fn set_call_id(call: &mut Self::Call, id: u64);
    /// The id of a call; the server copies it into the reply.
    fn call_id(call: &Self::Call) -> u64;
    /// The id of the call that this replies to.
    fn reply_id(reply: &Self::Reply) -> u64;
    /// How many bytes a call takes on the wire, at least. Called once per call: must be cheap.
    fn call_size(call: &Self::Call) -> usize;
    /// How many bytes a reply takes on the wire, at least. Called once per reply: must be cheap.
    fn reply_size(reply: &Self::Reply) -> usize;
    /// Puts calls into a stream message.
    fn pack_calls(calls: Vec<Self::Call>) -> Self::Request;
    /// Takes the calls out of a stream message.
    fn unpack_calls(request: Self::Request) -> Vec<Self::Call>;
    /// Puts replies into a stream message.
    fn pack_replies(replies: Vec<Self::Reply>) -> Self::Response;
    /// Takes the replies out of a stream message.
    fn unpack_replies(response: Self::Response) -> Vec<Self::Reply>;
    /// Opens the stream. The server must answer with its response headers at once.
    fn open(
        channel: NodeChannel,
        calls: CallStream<Self>,
    ) -> BoxFuture<Result<Streaming<Self::Response>, Status>>;
}

/// `ShardService.Exchange`: gateways call shard groups.
#[derive(Debug, Clone, Copy)]
pub struct ExchangeProtocol;

impl Protocol for ExchangeProtocol {
    type Call = pb::Call;
    type Reply = pb::Reply;
    type Request = pb::ExchangeRequest;
    type Response = pb::ExchangeResponse;

    fn set_call_id(call: &mut Self::Call, id: u64) {
        call.id = id;
    }

    fn call_id(call: &Self::Call) -> u64 {
        call.id
    }

    fn reply_id(reply: &Self::Reply) -> u64 {
        reply.id
    }

    fn call_size(call: &Self::Call) -> usize {
        call.encoded_len()
    }

    fn reply_size(reply: &Self::Reply) -> usize {
        reply.encoded_len()
    }

    fn pack_calls(calls: Vec<Self::Call>) -> Self::Request {
        pb::ExchangeRequest { calls }
    }

    fn unpack_calls(request: Self::Request) -> Vec<Self::Call> {
        request.calls
    }

    fn pack_replies(replies: Vec<Self::Reply>) -> Self::Response {
        pb::ExchangeResponse { replies }
    }

    fn unpack_replies(response: Self::Response) -> Vec<Self::Reply> {
        response.replies
    }

    fn open(
        channel: NodeChannel,
        calls: CallStream<Self>,
    ) -> BoxFuture<Result<Streaming<Self::Response>, Status>> {
        Box::pin(async move {
            let mut client = pb::shard_service_client::ShardServiceClient::new(channel)
                .max_decoding_message_size(MESSAGE_BYTES_MAX)
                .max_encoding_message_size(MESSAGE_BYTES_MAX);
            Ok(client.exchange(calls).await?.into_inner())
        })
    }
}

/// `PeerService.Converse`: the replicas of shard groups call each other.
#[derive(Debug, Clone, Copy)]
pub struct PeerProtocol;

/// About the size of a Raft call without entries.
const RAFT_CALL_BYTES: usize = 96;
/// About the size of a Raft entry without its payload.
const RAFT_ENTRY_BYTES: usize = 24;

impl Protocol for PeerProtocol {
    type Call = pb::PeerCall;
    type Reply = pb::PeerReply;
    type Request = pb::ConverseRequest;
    type Response = pb::ConverseResponse;

    fn set_call_id(call: &mut Self::Call, id: u64) {
        call.id = id;
    }

    fn call_id(call: &Self::Call) -> u64 {
        call.id
    }

    fn reply_id(reply: &Self::Reply) -> u64 {
        reply.id
    }

    fn call_size(call: &Self::Call) -> usize {
        match &call.rpc {
            Some(pb::peer_call::Rpc::Append(append)) => {
                let entries = append.entries.iter().map(|entry| RAFT_ENTRY_BYTES + entry.payload.len());
                RAFT_CALL_BYTES + entries.sum::<usize>()
            }
            Some(pb::peer_call::Rpc::Deliver(deliver)) => RAFT_CALL_BYTES + deliver.delivery.len(),
            _ => RAFT_CALL_BYTES,
        }
    }

    fn reply_size(_: &Self::Reply) -> usize {
        RAFT_CALL_BYTES
    }

    fn pack_calls(calls: Vec<Self::Call>) -> Self::Request {
        pb::ConverseRequest { calls }
    }

    fn unpack_calls(request: Self::Request) -> Vec<Self::Call> {
        request.calls
    }

    fn pack_replies(replies: Vec<Self::Reply>) -> Self::Response {
        pb::ConverseResponse { replies }
    }

    fn unpack_replies(response: Self::Response) -> Vec<Self::Reply> {
        response.replies
    }

    fn open(
        channel: NodeChannel,
        calls: CallStream<Self>,
    ) -> BoxFuture<Result<Streaming<Self::Response>, Status>> {
        Box::pin(async move {
            let mut client = pb::peer_service_client::PeerServiceClient::new(channel)
                .max_decoding_message_size(MESSAGE_BYTES_MAX)
                .max_encoding_message_size(MESSAGE_BYTES_MAX);
            Ok(client.converse(calls).await?.into_inner())
        })
    }
}
