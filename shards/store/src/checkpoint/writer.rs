//! The thread that writes checkpoints, so that neither apply nor the log ever waits for sled. In a simulation there is no
//! thread: the store is written to when the simulated device comes to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;

use parking_lot::Mutex;
use tidewall_env::tasks::Later;
use tidewall_machine::Frozen;

use super::{CheckpointError, CheckpointStore, Generation};

/// Told when a generation was written.
pub type Written = Box<dyn FnOnce(Result<Generation, CheckpointError>) + Send>;

enum Job {
    Write { group: u32, frozen: Box<Frozen>, verify: bool, done: Written },
    Stop,
}

/// Handle of the checkpoint thread; clones share it.
#[derive(Clone)]
pub struct CheckpointWriter {
    to: To,
    disk_bytes: Arc<AtomicU64>,
}

#[derive(Clone)]
enum To {
    Thread { jobs: mpsc::Sender<Job>, thread: Arc<Mutex<Option<std::thread::JoinHandle<()>>>> },
    Device { worker: Arc<Mutex<Option<StoreWorker>>>, later: Later },
}

/// Whoever writes: the store and what is known of its size.
struct StoreWorker {
    store: Box<dyn CheckpointStore>,
    disk_bytes: Arc<AtomicU64>,
}

impl StoreWorker {
    fn write(&mut self, group: u32, frozen: Box<Frozen>, verify: bool, done: Written) {
        let mut result = self.store.write(group, &frozen);
        drop(frozen);
        if verify && result.is_ok() {
            result = self.store.verify().and(result);
        }
        self.disk_bytes.store(self.store.disk_bytes(), Ordering::Relaxed);
        done(result);
    }
}

impl CheckpointWriter {
    /// Starts the thread on a store.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn start(store: Box<dyn CheckpointStore>) -> std::io::Result<Self> {
        let (jobs, inbox) = mpsc::channel();
        let disk_bytes = Arc::new(AtomicU64::new(store.disk_bytes()));
        let mut worker = StoreWorker { store, disk_bytes: Arc::clone(&disk_bytes) };
        let run = move || {
            while let Ok(Job::Write { group, frozen, verify, done }) = inbox.recv() {
                worker.write(group, frozen, verify, done);
            }
        };
        let thread = std::thread::Builder::new().name("checkpoint".into()).spawn(run)?;
        let thread = Arc::new(Mutex::new(Some(thread)));
        Ok(Self { to: To::Thread { jobs, thread }, disk_bytes })
    }

    /// Without a thread: `later` comes to the store when it likes. For simulation on a single thread.
    pub fn without_thread(store: Box<dyn CheckpointStore>, later: Later) -> Self {
        let disk_bytes = Arc::new(AtomicU64::new(store.disk_bytes()));
        let worker = Arc::new(Mutex::new(Some(StoreWorker { store, disk_bytes: Arc::clone(&disk_bytes) })));
        Self { to: To::Device { worker, later }, disk_bytes }
    }

    /// Queues a freeze. With `verify`, everything written is read back from a store opened anew before `done` is told:
    /// only then may the log behind it go.
    pub fn write(&self, group: u32, frozen: Frozen, verify: bool, done: Written) {
        let frozen = Box::new(frozen);
        match &self.to {
            To::Thread { jobs, .. } => {
                let job = Job::Write { group, frozen, verify, done };
                if let Err(mpsc::SendError(Job::Write { done, .. })) = jobs.send(job) {
                    done(Err(stopped()));
                }
            }
            To::Device { worker, later } => {
                let worker = Arc::clone(worker);
                later.give(Box::new(move || match &mut *worker.lock() {
                    Some(worker) => worker.write(group, frozen, verify, done),
                    None => done(Err(stopped())),
                }));
            }
        }
    }

    /// Bytes of the store on disk, as of the last write.
    pub fn disk_bytes(&self) -> u64 {
        self.disk_bytes.load(Ordering::Relaxed)
    }

    /// Waits for what is queued and stops the thread. Without a thread, what is queued is refused.
    pub fn stop(&self) {
        match &self.to {
            To::Thread { jobs, thread } => {
                // A second stop finds nobody to tell and nobody to wait for.
                let _ = jobs.send(Job::Stop);
                if let Some(thread) = thread.lock().take()
                    && thread.join().is_err()
                {
                    tracing::error!("the checkpoint thread panicked");
                }
            }
            To::Device { worker, .. } => drop(worker.lock().take()),
        }
    }
}

fn stopped() -> CheckpointError {
    CheckpointError::Failed { doing: "queueing", what: "the checkpoint thread has stopped".into() }
}
