//! What is wrong with storage under a whole node, and what is done then: the node ends. It must not go on with data of which
//! nobody knows whether they are there.

use std::sync::Arc;

use tidewall_store::checkpoint::CheckpointError;
use tidewall_store::log::LogError;

/// What is wrong under a node that must end, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StorageFault {
    /// The disk answered with an error: what it holds is unknown until it was checked and read anew.
    Disk(String),
    /// What was read back is not what had been written, or not the last of it: nothing in it can be trusted, however often it
    /// is read.
    Damage(String),
    /// Another process runs on the same data, or on a copy of them.
    InUse(String),
}

impl std::fmt::Display for StorageFault {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Disk(what) => write!(formatter, "storage has failed: {what}"),
            Self::Damage(what) => write!(formatter, "the data cannot be used: {what}"),
            Self::InUse(what) => formatter.write_str(what),
        }
    }
}

/// What to do when storage has failed under the whole node: the process ends with a code of its own. The first
/// report counts.
#[derive(Clone)]
pub struct FailStop {
    report: Arc<dyn Fn(StorageFault) + Send + Sync>,
}

impl FailStop {
    /// Calls `report` with what has failed.
    pub fn new(report: impl Fn(StorageFault) + Send + Sync + 'static) -> Self {
        Self { report: Arc::new(report) }
    }

    /// Reports what is wrong from outside of log and checkpoints.
    pub fn report(&self, fault: StorageFault) {
        (self.report)(fault);
    }

    pub(crate) fn log_failed(&self, error: &LogError) {
        match error {
            // A log that was closed is a node that is stopping.
            LogError::Closed => {}
            LogError::Corrupt { .. } => (self.report)(StorageFault::Damage(error.to_string())),
            _ => (self.report)(StorageFault::Disk(error.to_string())),
        }
    }

    pub(crate) fn checkpoint_failed(&self, error: &CheckpointError) {
        (self.report)(match error {
            CheckpointError::Failed { .. } => StorageFault::Disk(error.to_string()),
            _ => StorageFault::Damage(error.to_string()),
        });
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;

    #[test]
    fn damage_is_told_from_a_failing_disk() {
        let faults = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&faults);
        let stop = FailStop::new(move |fault| seen.lock().push(fault));
        let what = String::new;
        stop.log_failed(&LogError::Closed);
        stop.log_failed(&LogError::Corrupt { segment: 1, offset: 2, what: what(), advice: "" });
        stop.log_failed(&LogError::DiskFull { operation: what() });
        stop.checkpoint_failed(&CheckpointError::Failed { doing: "syncing", what: what() });
        stop.checkpoint_failed(&CheckpointError::Corrupt { doing: "verifying", what: what() });
        stop.checkpoint_failed(&CheckpointError::Damaged { group: 1, what: what() });
        let damage = |fault: &StorageFault| matches!(fault, StorageFault::Damage(_));
        assert_eq!(faults.lock().iter().map(damage).collect::<Vec<_>>(), [true, false, false, true, true]);
    }
}
