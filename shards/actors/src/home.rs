//! Where the actors of a node live: on an arbiter's thread, or in the local tasks of whoever calls.
//!
//! A node starts its actors from handlers that run anywhere, so the one who wants an actor and the place where it
//! lives are two. **Never here:** what the actors do.

use actix::dev::channel;
use actix::prelude::*;
use tokio::sync::mpsc;

/// More than this never matters: each actor sets the capacity of its own mailbox when it starts.
const FIRST_CAPACITY: usize = 16;

/// A birth that is still to happen at home.
type Birth = Box<dyn FnOnce() + Send>;

/// Where actors live; clones are the same place.
#[derive(Clone)]
pub struct Home(Place);

#[derive(Clone)]
enum Place {
    Arbiter(ArbiterHandle),
    Local(mpsc::UnboundedSender<Birth>),
}

impl Home {
    /// On an arbiter's thread.
    pub fn arbiter(handle: ArbiterHandle) -> Self {
        Self(Place::Arbiter(handle))
    }

    /// In the caller's local tasks, without an actix system: for simulation on a single thread. The number of births
    /// that wait there is bounded by the number of actors.
    ///
    /// # Panics
    /// Outside of a `LocalSet`.
    pub fn local() -> Self {
        let (births, mut inbox) = mpsc::unbounded_channel::<Birth>();
        tokio::task::spawn_local(async move {
            while let Some(birth) = inbox.recv().await {
                birth();
            }
        });
        Self(Place::Local(births))
    }

    /// Starts an actor there. Messages to it wait until it lives.
    pub(crate) fn start<A>(&self, make: impl FnOnce() -> A + Send + 'static) -> Addr<A>
    where
        A: Actor<Context = Context<A>>,
    {
        match &self.0 {
            Place::Arbiter(handle) => A::start_in_arbiter(handle, move |_| make()),
            Place::Local(births) => {
                let (sender, receiver) = channel::channel(FIRST_CAPACITY);
                let birth = move || {
                    let context = Context::with_receiver(receiver);
                    tokio::task::spawn_local(context.into_future(make()));
                };
                // Without a home the node is going down: an address whose mailbox is closed.
                let _ = births.send(Box::new(birth));
                Addr::new(sender)
            }
        }
    }
}
