//! The thread that writes checkpoints, so that neither apply nor the log ever waits for sled.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;

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
    jobs: mpsc::Sender<Job>,
    disk_bytes: Arc<AtomicU64>,
    thread: Arc<parking_lot::Mutex<Option<std::thread::JoinHandle<()>>>>,
}

impl CheckpointWriter {
    /// Starts the thread on a store.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn start(mut store: Box<dyn CheckpointStore>) -> std::io::Result<Self> {
        let (jobs, inbox) = mpsc::channel();
        let disk_bytes = Arc::new(AtomicU64::new(store.disk_bytes()));
        let gauge = Arc::clone(&disk_bytes);
        let run = move || {
            while let Ok(Job::Write { group, frozen, verify, done }) = inbox.recv() {
                let mut result = store.write(group, &frozen);
                drop(frozen);
                if verify && result.is_ok() {
                    result = store.verify().and(result);
                }
                gauge.store(store.disk_bytes(), Ordering::Relaxed);
                done(result);
            }
        };
        let thread = std::thread::Builder::new().name("checkpoint".into()).spawn(run)?;
        let thread = Arc::new(parking_lot::Mutex::new(Some(thread)));
        Ok(Self { jobs, disk_bytes, thread })
    }

    /// Queues a freeze. With `verify`, everything written is read back from a store opened anew before `done` is told:
    /// only then may the log behind it go.
    pub fn write(&self, group: u32, frozen: Frozen, verify: bool, done: Written) {
        let job = Job::Write { group, frozen: Box::new(frozen), verify, done };
        if let Err(mpsc::SendError(Job::Write { done, .. })) = self.jobs.send(job) {
            done(Err(CheckpointError::Failed {
                doing: "queueing",
                what: "the checkpoint thread has stopped".into(),
            }));
        }
    }

    /// Bytes of the store on disk, as of the last write.
    pub fn disk_bytes(&self) -> u64 {
        self.disk_bytes.load(Ordering::Relaxed)
    }

    /// Waits for what is queued and stops the thread.
    pub fn stop(&self) {
        // A second stop finds nobody to tell and nobody to wait for.
        let _ = self.jobs.send(Job::Stop);
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the checkpoint thread panicked");
        }
    }
}
