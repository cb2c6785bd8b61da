//! The calling half of a link.
//!
//! One task per link connects, reads replies and enforces deadlines. Calls need no task: they wait in a
//! queue that the transport drains whenever it can write, so that load makes messages larger, not more.
//! A call that has been handed to the transport counts as sent, whatever happens to it then.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_util::Stream;
use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use rand::Rng as _;
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep, sleep, sleep_until, timeout};
use tonic::Streaming;

use crate::pending::{Pending, Waiter};
use crate::{LinkError, LinkOptions, NodeChannel, Parties, Protocol, connect};

/// Deadlines are looked at no more often than this.
const SWEEP_INTERVAL_MIN: Duration = Duration::from_millis(5);
/// A connection that lived so long was a good one: the next attempt is made at once.
const GOOD_CONNECTION: Duration = Duration::from_secs(1);

/// State of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Being made for the first time, or again right after a good one broke: calls wait for it.
    Connecting,
    /// Up.
    Connected,
    /// The last attempt failed: calls are refused until one succeeds.
    Down,
}

struct State<P: Protocol> {
    phase: Phase,
    /// Counts the attempts to connect, so that the stream of an earlier one sends nothing more.
    epoch: u64,
    started: bool,
    queue: VecDeque<P::Call>,
    pending: Pending<P::Reply>,
    /// The transport, when it waits for something to send.
    writer: Option<Waker>,
    /// When deadlines must be looked at; never later than the earliest deadline.
    sweep_at: Option<Instant>,
    last_error: Option<String>,
}

struct Shared<P: Protocol> {
    state: Mutex<State<P>>,
    address: SocketAddr,
    parties: Parties,
    options: LinkOptions,
    /// The link's task.
    driver: AtomicWaker,
    /// `sweep_at` has become earlier.
    rearm: AtomicBool,
    closed: AtomicBool,
}

/// Ends the link's task when the last clone of the link goes.
struct Owner<P: Protocol>(Arc<Shared<P>>);

impl<P: Protocol> Drop for Owner<P> {
    fn drop(&mut self) {
        self.0.closed.store(true, Ordering::Release);
        self.0.driver.wake();
    }
}

/// A connection to one address that carries many calls at once. Clones share it; when the last one is
/// dropped, it is closed.
pub struct Link<P: Protocol> {
    owner: Arc<Owner<P>>,
}

impl<P: Protocol> Clone for Link<P> {
    fn clone(&self) -> Self {
        Self { owner: Arc::clone(&self.owner) }
    }
}

impl<P: Protocol> std::fmt::Debug for Link<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link")
            .field("address", &self.owner.0.address)
            .field("connected", &self.is_connected())
            .finish()
    }
}

impl<P: Protocol> Link<P> {
    /// A link that connects with its first call and stays connected from then on. Who answers there as anybody else is as good
    /// as nobody.
    pub fn connect_lazy(address: SocketAddr, parties: Parties, options: LinkOptions) -> Self {
        let state = State {
            phase: Phase::Connecting,
            epoch: 0,
            started: false,
            queue: VecDeque::new(),
            pending: Pending::new(options.pending_max),
            writer: None,
            sweep_at: None,
            last_error: None,
        };
        let shared = Shared {
            state: Mutex::new(state),
            address,
            parties,
            options,
            driver: AtomicWaker::new(),
            rearm: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        };
        Self { owner: Arc::new(Owner(Arc::new(shared))) }
    }

    /// Sends one call and waits for its reply; the call's id is overwritten. Dropping the future does not
    /// take the call back.
    ///
    /// # Errors
    /// See [`LinkError`], in particular [`LinkError::may_have_arrived`].
    ///
    /// # Panics
    /// The first call outside a tokio runtime.
    pub async fn call(&self, mut call: P::Call, deadline: Instant) -> Result<P::Reply, LinkError> {
        if deadline <= Instant::now() {
            return Err(LinkError::NotSent);
        }
        let shared = &self.owner.0;
        let (sender, receiver) = oneshot::channel();
        let mut earlier = false;
        let (writer, start) = {
            let mut state = shared.state.lock();
            if state.phase == Phase::Down {
                return Err(LinkError::Unreachable);
            }
            let id = state.pending.insert(sender, deadline).ok_or(LinkError::Full)?;
            P::set_call_id(&mut call, id);
            state.queue.push_back(call);
            if state.sweep_at.is_none_or(|at| deadline < at) {
                state.sweep_at = Some(deadline);
                earlier = true;
            }
            (state.writer.take(), !std::mem::replace(&mut state.started, true))
        };
        if start {
            let driver = Driver::new(Arc::clone(shared)).run();
            match &shared.options.runtime {
                Some(runtime) => drop(runtime.spawn(driver)),
                None => drop(tokio::spawn(driver)),
            }
        } else if earlier {
            shared.rearm.store(true, Ordering::Release);
            shared.driver.wake();
        }
        if let Some(writer) = writer {
            writer.wake();
        }
        // A dropped sender means that the runtime is going down with the link's task: nobody can say
        // what became of the call.
        receiver.await.unwrap_or(Err(LinkError::Broken))
    }

    /// Whether the stream is open now.
    pub fn is_connected(&self) -> bool {
        self.owner.0.state.lock().phase == Phase::Connected
    }

    /// Why the last connection broke or could not be made; `None` while connected.
    pub fn last_error(&self) -> Option<String> {
        self.owner.0.state.lock().last_error.clone()
    }

    /// Where the link leads.
    pub fn address(&self) -> SocketAddr {
        self.owner.0.address
    }
}

/// The calls of a link as the stream of messages that the transport sends.
pub struct CallStream<P: Protocol> {
    shared: Arc<Shared<P>>,
    epoch: u64,
}

impl<P: Protocol> Stream for CallStream<P> {
    type Item = P::Request;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<P::Request>> {
        let mut guard = self.shared.state.lock();
        let state = &mut *guard;
        if state.epoch != self.epoch {
            return Poll::Ready(None);
        }
        // Nothing is written before the server has accepted the stream: what fails until then provably
        // never arrived.
        if state.phase == Phase::Connected {
            let options = &self.shared.options;
            let mut calls = Vec::with_capacity(state.queue.len().min(options.message_calls_max));
            let mut bytes = 0;
            while let Some(call) = state.queue.front() {
                let size = P::call_size(call);
                let full =
                    calls.len() >= options.message_calls_max || bytes + size > options.message_bytes_max;
                if full && !calls.is_empty() {
                    break;
                }
                let Some(call) = state.queue.pop_front() else {
                    break;
                };
                if state.pending.mark_sent(P::call_id(&call)) {
                    bytes += size;
                    calls.push(call);
                }
            }
            if !calls.is_empty() {
                return Poll::Ready(Some(P::pack_calls(calls)));
            }
        }
        match &mut state.writer {
            Some(writer) => writer.clone_from(context.waker()),
            none => *none = Some(context.waker().clone()),
        }
        Poll::Pending
    }
}

/// The task of a link.
struct Driver<P: Protocol> {
    shared: Arc<Shared<P>>,
    timer: Pin<Box<Sleep>>,
    armed: bool,
}

impl<P: Protocol> Driver<P> {
    fn new(shared: Arc<Shared<P>>) -> Self {
        shared.rearm.store(true, Ordering::Release);
        Self { shared, timer: Box::pin(sleep(Duration::ZERO)), armed: false }
    }

    async fn run(mut self) {
        self.connect_again_and_again().await;
        self.fail_all(Phase::Down, LinkError::NotSent, Some("the link was closed".into()));
    }

    /// Returns when the link is closed.
    async fn connect_again_and_again(&mut self) {
        let mut failures = 0;
        loop {
            let epoch = {
                let mut state = self.shared.state.lock();
                state.epoch += 1;
                state.epoch
            };
            let opening = open(Arc::clone(&self.shared), epoch);
            let Some(opened) = self.attend(opening).await else {
                return;
            };
            match opened {
                Ok(stream) => {
                    let since = Instant::now();
                    self.connected();
                    let Some(why) = self.read(stream).await else {
                        return;
                    };
                    let good = since.elapsed() >= GOOD_CONNECTION;
                    tracing::info!(address = %self.shared.address, why, "link broke");
                    failures = if good { 0 } else { failures + 1 };
                    let next = if good { Phase::Connecting } else { Phase::Down };
                    self.fail_all(next, LinkError::NotSent, Some(why));
                }
                Err(why) => {
                    tracing::debug!(address = %self.shared.address, why, "cannot connect");
                    failures += 1;
                    self.fail_all(Phase::Down, LinkError::Unreachable, Some(why));
                }
            }
            let pause = backoff(failures, &self.shared.options);
            if self.attend(sleep(pause)).await.is_none() {
                return;
            }
        }
    }

    fn connected(&mut self) {
        let writer = {
            let mut state = self.shared.state.lock();
            state.phase = Phase::Connected;
            state.last_error = None;
            state.writer.take()
        };
        if let Some(writer) = writer {
            writer.wake();
        }
    }

    /// Hands replies to their callers until the stream ends; returns why, or `None` when closed.
    async fn read(&mut self, mut stream: Streaming<P::Response>) -> Option<String> {
        loop {
            let replies = match self.attend(stream.message()).await? {
                Ok(Some(response)) => P::unpack_replies(response),
                Ok(None) => return Some("the other side ended the stream".into()),
                Err(status) => return Some(describe(&status)),
            };
            let mut answered: Vec<(Waiter<P::Reply>, P::Reply)> = Vec::with_capacity(replies.len());
            {
                let mut state = self.shared.state.lock();
                for reply in replies {
                    if let Some(waiter) = state.pending.take(P::reply_id(&reply)) {
                        answered.push((waiter, reply));
                    }
                }
            }
            for (waiter, reply) in answered {
                // The caller may have gone.
                let _ = waiter.sender.send(Ok(reply));
            }
        }
    }

    /// Waits for something while enforcing deadlines; `None` when the link was closed.
    async fn attend<F: Future>(&mut self, future: F) -> Option<F::Output> {
        let mut future = pin!(future);
        poll_fn(|context| {
            self.shared.driver.register(context.waker());
            if self.shared.closed.load(Ordering::Acquire) {
                return Poll::Ready(None);
            }
            if self.shared.rearm.swap(false, Ordering::AcqRel) {
                self.arm();
            }
            while self.armed && self.timer.as_mut().poll(context).is_ready() {
                self.sweep();
            }
            future.as_mut().poll(context).map(Some)
        })
        .await
    }

    fn arm(&mut self) {
        let at = self.shared.state.lock().sweep_at;
        self.armed = at.is_some();
        if let Some(at) = at {
            self.timer.set(sleep_until(at));
        }
    }

    fn sweep(&mut self) {
        let now = Instant::now();
        let expired = {
            let mut state = self.shared.state.lock();
            let (expired, earliest) = state.pending.expire(now);
            state.sweep_at = earliest.map(|at| at.max(now + SWEEP_INTERVAL_MIN));
            expired
        };
        for waiter in expired {
            waiter.fail(LinkError::Deadline, LinkError::NotSent);
        }
        self.arm();
    }

    /// Ends all waits; what had been sent is [`LinkError::Broken`], the rest is `unsent`.
    fn fail_all(&mut self, phase: Phase, unsent: LinkError, why: Option<String>) {
        let (waiters, writer) = {
            let mut state = self.shared.state.lock();
            state.phase = phase;
            // The stream of this epoch sends nothing more.
            state.epoch += 1;
            state.last_error = why;
            state.queue.clear();
            state.sweep_at = None;
            (state.pending.drain(), state.writer.take())
        };
        self.armed = false;
        for waiter in waiters {
            waiter.fail(LinkError::Broken, unsent);
        }
        if let Some(writer) = writer {
            writer.wake();
        }
    }
}

/// Connects and opens the stream.
async fn open<P: Protocol>(shared: Arc<Shared<P>>, epoch: u64) -> Result<Streaming<P::Response>, String> {
    let limit = shared.options.connect_timeout;
    let opening = async {
        let channel = connect(shared.address, limit, shared.options.credentials.as_ref()).await;
        let channel = channel.map_err(|error| describe(&error))?;
        let channel = NodeChannel::new(channel, shared.address, shared.parties.clone());
        P::open(channel, CallStream { shared, epoch }).await.map_err(|status| describe(&status))
    };
    match timeout(limit * 2, opening).await {
        Ok(opened) => opened,
        Err(_) => Err(format!("the stream was not open after {} ms", (limit * 2).as_millis())),
    }
}

/// An error with its causes: the outermost of a transport error says nothing.
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// Pause before the next attempt after so many failures in a row: none, then doubling, jittered by half.
fn backoff(failures: u32, options: &LinkOptions) -> Duration {
    if failures == 0 {
        return Duration::ZERO;
    }
    let full = options.backoff_min.saturating_mul(1 << (failures - 1).min(16)).min(options.backoff_max);
    full.mul_f64(tidewall_env::random::rng().random_range(0.5..=1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_limit() {
        let options = LinkOptions::default();
        assert_eq!(backoff(0, &options), Duration::ZERO);
        for (failures, full_ms) in [(1, 50), (2, 100), (4, 400), (6, 1000), (60, 1000)] {
            let pause = backoff(failures, &options).as_millis();
            assert!((full_ms / 2..=full_ms).contains(&pause), "{failures}: {pause}");
        }
    }
}
