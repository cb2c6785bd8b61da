//! The answering half of a link.
//!
//! Reading calls and packing replies happen in one place, the response stream itself, so that a stream
//! needs no task of its own. The handler is a plain function: it cannot await, so it can never stop the
//! reader; what it cannot take it refuses. When the caller does not read its replies, HTTP/2 flow control
//! stops this stream from being polled, and with it the reading of more calls.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use futures_util::Stream;
use parking_lot::Mutex;
use tonic::Status;

use crate::{Protocol, ServeOptions};

/// Messages that are read in a row before replies get their turn.
const READ_AHEAD_MESSAGES: usize = 8;

/// Decides what becomes of the calls of one stream.
pub trait Handler<P: Protocol>: Send + 'static {
    /// Takes calls. Each must be answered exactly once, now or later, through `replies` or a clone of it,
    /// with its own id. Must not block.
    fn on_calls(&mut self, calls: Vec<P::Call>, replies: &ReplySender<P>);

    /// Answers a call that exceeds the stream's bound: it must not be executed.
    fn refuse(&mut self, call: P::Call) -> P::Reply;
}

struct Outbox<P: Protocol> {
    replies: Vec<P::Reply>,
    /// Calls that were given to the handler and have no reply yet.
    outstanding: usize,
    writer: Option<Waker>,
    closed: bool,
}

/// Where replies to the calls of one stream go. Clones lead to the same stream.
pub struct ReplySender<P: Protocol> {
    outbox: Arc<Mutex<Outbox<P>>>,
}

impl<P: Protocol> Clone for ReplySender<P> {
    fn clone(&self) -> Self {
        Self { outbox: Arc::clone(&self.outbox) }
    }
}

impl<P: Protocol> std::fmt::Debug for ReplySender<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReplySender").field("outstanding", &self.outstanding()).finish()
    }
}

impl<P: Protocol> ReplySender<P> {
    /// Answers one call. Never blocks; a reply to a caller that has gone is dropped.
    pub fn send(&self, reply: P::Reply) {
        self.put(1, |replies| replies.push(reply));
    }

    /// Answers many calls with one wake-up.
    pub fn send_all(&self, batch: Vec<P::Reply>) {
        if !batch.is_empty() {
            self.put(batch.len(), |replies| replies.extend(batch));
        }
    }

    fn put(&self, count: usize, add: impl FnOnce(&mut Vec<P::Reply>)) {
        let writer = {
            let mut outbox = self.outbox.lock();
            outbox.outstanding = outbox.outstanding.saturating_sub(count);
            if outbox.closed {
                return;
            }
            add(&mut outbox.replies);
            outbox.writer.take()
        };
        if let Some(writer) = writer {
            writer.wake();
        }
    }

    /// Calls of this stream that have no reply yet.
    pub fn outstanding(&self) -> usize {
        self.outbox.lock().outstanding
    }

    /// Whether the caller has gone: nobody will read a reply.
    pub fn is_closed(&self) -> bool {
        self.outbox.lock().closed
    }
}

/// The replies of one stream, packed into messages; driving it also reads the calls.
pub struct ReplyStream<P: Protocol, S, H> {
    incoming: Option<S>,
    handler: H,
    replies: ReplySender<P>,
    options: ServeOptions,
}

/// Serves one stream of calls: return the result as the response stream of the gRPC method.
pub fn serve<P, S, H>(incoming: S, options: ServeOptions, handler: H) -> ReplyStream<P, S, H>
where
    P: Protocol,
    S: Stream<Item = Result<P::Request, Status>> + Send + Unpin + 'static,
    H: Handler<P>,
{
    let outbox = Outbox { replies: Vec::new(), outstanding: 0, writer: None, closed: false };
    ReplyStream {
        incoming: Some(incoming),
        handler,
        replies: ReplySender { outbox: Arc::new(Mutex::new(outbox)) },
        options,
    }
}

impl<P: Protocol, S, H> Unpin for ReplyStream<P, S, H> {}

impl<P: Protocol, S, H> Drop for ReplyStream<P, S, H> {
    fn drop(&mut self) {
        let mut outbox = self.replies.outbox.lock();
        outbox.closed = true;
        outbox.replies = Vec::new();
        outbox.writer = None;
    }
}

impl<P, S, H> ReplyStream<P, S, H>
where
    P: Protocol,
    S: Stream<Item = Result<P::Request, Status>> + Unpin,
    H: Handler<P>,
{
    fn take_calls(&mut self, mut calls: Vec<P::Call>) {
        let excess = {
            let mut outbox = self.replies.outbox.lock();
            let room = self.options.outstanding_max.saturating_sub(outbox.outstanding);
            let excess = if calls.len() > room { calls.split_off(room) } else { Vec::new() };
            outbox.outstanding += calls.len();
            excess
        };
        if !calls.is_empty() {
            self.handler.on_calls(calls, &self.replies);
        }
        if !excess.is_empty() {
            let refusals: Vec<P::Reply> = excess.into_iter().map(|call| self.handler.refuse(call)).collect();
            self.replies.outbox.lock().replies.extend(refusals);
        }
    }

    /// Reads what has arrived. `true` when there may be more at once.
    fn read(&mut self, context: &mut Context<'_>) -> Result<bool, Status> {
        for _ in 0..READ_AHEAD_MESSAGES {
            let Some(incoming) = &mut self.incoming else {
                return Ok(false);
            };
            match Pin::new(incoming).poll_next(context) {
                Poll::Ready(Some(Ok(request))) => self.take_calls(P::unpack_calls(request)),
                Poll::Ready(Some(Err(status))) => {
                    self.incoming = None;
                    return Err(status);
                }
                Poll::Ready(None) => self.incoming = None,
                Poll::Pending => return Ok(false),
            }
        }
        Ok(true)
    }

    /// As many replies as fit into one message.
    fn next_message(&self, outbox: &mut Outbox<P>) -> Option<P::Response> {
        if outbox.replies.is_empty() {
            return None;
        }
        let mut bytes = 0;
        let mut count = 0;
        for reply in outbox.replies.iter().take(self.options.message_replies_max) {
            bytes += P::reply_size(reply);
            if count > 0 && bytes > self.options.message_bytes_max {
                break;
            }
            count += 1;
        }
        let rest = outbox.replies.split_off(count);
        Some(P::pack_replies(std::mem::replace(&mut outbox.replies, rest)))
    }
}

impl<P, S, H> Stream for ReplyStream<P, S, H>
where
    P: Protocol,
    S: Stream<Item = Result<P::Request, Status>> + Unpin,
    H: Handler<P>,
{
    type Item = Result<P::Response, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let more = match self.read(context) {
            Ok(more) => more,
            Err(status) => {
                // The connection is broken or carries nonsense: there is nobody to answer.
                tracing::debug!(%status, "a stream of calls broke");
                return Poll::Ready(Some(Err(status)));
            }
        };
        let mut outbox = self.replies.outbox.lock();
        if let Some(message) = self.next_message(&mut outbox) {
            return Poll::Ready(Some(Ok(message)));
        }
        if self.incoming.is_none() && outbox.outstanding == 0 {
            return Poll::Ready(None);
        }
        match &mut outbox.writer {
            Some(writer) => writer.clone_from(context.waker()),
            none => *none = Some(context.waker().clone()),
        }
        drop(outbox);
        if more {
            context.waker().wake_by_ref();
        }
        Poll::Pending
    }
}
