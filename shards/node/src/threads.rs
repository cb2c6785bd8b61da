//! The threads on which the groups of a node run: Raft and apply.
//!
//! A group stays on its thread, so that a long apply holds up only those that share it. Connections and the peer port are at home
//! elsewhere. **Never here:** what a group does.

use std::future::Future;
use std::io;
use std::sync::Arc;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// Where the groups of a node run. Clones are the same place; the threads end with the last one.
#[derive(Clone, Default)]
pub struct RaftThreads(Arc<Vec<RaftThread>>);

struct RaftThread {
    runtime: Handle,
    /// The thread ends when this is dropped.
    _alive: oneshot::Sender<()>,
}

impl RaftThreads {
    /// In the tasks of whoever starts them: for few cores, and for simulation.
    pub fn none() -> Self {
        Self::default()
    }

    /// So many threads; none with 0.
    ///
    /// # Errors
    /// What the system said.
    pub fn start(count: usize) -> io::Result<Self> {
        let threads: io::Result<Vec<RaftThread>> = (1..=count).map(RaftThread::start).collect();
        Ok(Self(Arc::new(threads?)))
    }

    /// Runs the beginning of a group on its thread; what it spawns stays there.
    ///
    /// # Errors
    /// It panicked.
    pub async fn begin<T: Send + 'static>(
        &self,
        group: u32,
        begins: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, String> {
        let at = (group as usize).checked_rem(self.0.len());
        match at.and_then(|at| self.0.get(at)) {
            Some(thread) => thread.runtime.spawn(begins).await.map_err(|error| error.to_string()),
            None => Ok(begins.await),
        }
    }
}

impl RaftThread {
    fn start(number: usize) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (alive, gone) = oneshot::channel::<()>();
        std::thread::Builder::new().name(format!("raft-{number}")).spawn(move || {
            // An error means that the other end was dropped, which is the sign to end.
            let _ = runtime.block_on(gone);
        })?;
        Ok(Self { runtime: handle, _alive: alive })
    }
}
