//! Orders to recover a group by force: written while the node runs, carried out when it starts the next time.
//!
//! An order names the incarnation that it begins, so that it is carried out once, however often the node crashes on the
//! way. It is taken only when the fence is up: every replica that follows the topology refuses older incarnations
//! from then on. See `tidewall_consensus::recovery` for what is kept and what is lost.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tidewall_consensus::recovery::{Recovery, RecoveryError, recover};
use tidewall_machine::Machine;
use tidewall_store::checkpoint::CheckpointStore;
use tidewall_store::log::NodeLog;

use crate::files;

/// An order, as it lies in the node's directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// The group.
    pub group: u32,
    /// The incarnation that begins.
    pub incarnation: u64,
    /// Who gave it.
    pub principal: String,
    /// When, Unix milliseconds.
    pub given_ms: u64,
}

/// The replica that goes on, if there is an order.
#[derive(Debug, Clone)]
pub struct Survivor {
    /// Its node.
    pub node: u64,
    /// Its peer address.
    pub address: String,
    /// The group.
    pub group: u32,
    /// Lowest incarnation of the group that may serve.
    pub fence: u64,
}

/// Of the order for a group.
fn name(group: u32) -> String {
    format!("group-{group}.json")
}

/// Where orders are kept until they are carried out, and remembered afterwards.
#[derive(Debug, Clone)]
pub struct Orders {
    directory: PathBuf,
}

impl Orders {
    /// Of a node's data directory.
    pub fn new(data_dir: &Path) -> Self {
        Self { directory: data_dir.join("recover") }
    }

    fn path(&self, group: u32) -> PathBuf {
        self.directory.join(name(group))
    }

    /// Keeps an order; it survives a power cut.
    ///
    /// # Errors
    /// What the system said.
    pub fn give(&self, order: &Order) -> std::io::Result<()> {
        files::replace_below(&self.directory, &name(order.group), &serde_json::to_vec_pretty(order)?)
    }

    /// The order for a group, if there is one.
    ///
    /// # Errors
    /// Why the file cannot be read.
    pub fn find(&self, group: u32) -> std::io::Result<Option<Order>> {
        match std::fs::read(self.path(group)) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Carries out the order for a group, if there is one and no later recovery has raised the `fence` since, and
    /// remembers that it was.
    ///
    /// # Errors
    /// Why it was not carried out; the order stands.
    pub fn carry_out(
        &self,
        recovered: Survivor,
        log: &NodeLog,
        store: &mut dyn CheckpointStore,
        machine: Machine,
    ) -> Result<Machine, RecoveryError> {
        let Survivor { node, address, group, fence } = recovered;
        let unreadable = |error: std::io::Error| {
            RecoveryError::Unusable(format!("the recovery order of group {group} cannot be read: {error}"))
        };
        let Some(order) = self.find(group).map_err(unreadable)? else { return Ok(machine) };
        if order.incarnation < fence {
            // Another replica was ordered to go on since: two must never do.
            tracing::warn!(?order, fence, "an order to recover was superseded: it is not carried out");
            self.put_aside(&order, "superseded")?;
            return Ok(machine);
        }
        tracing::warn!(?order, "a forced recovery was ordered");
        let recovery = Recovery { group, node, address, incarnation: order.incarnation };
        let machine = recover(&recovery, &log.group(group), store, machine)?;
        self.put_aside(&order, "done")?;
        Ok(machine)
    }

    /// Keeps an order as a record of who gave it.
    fn put_aside(&self, order: &Order, why: &str) -> Result<(), RecoveryError> {
        let record = format!("group-{}-incarnation-{}.{why}", order.group, order.incarnation);
        std::fs::rename(self.path(order.group), self.directory.join(record))
            .and_then(|()| files::sync_directory(&self.directory))
            .map_err(|error| {
                RecoveryError::Unusable(format!(
                    "the recovery order of group {} cannot be put aside: {error}",
                    order.group
                ))
            })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use tidewall_env::disk::MemoryDisk;
    use tidewall_store::checkpoint::memory::MemoryCheckpoints;
    use tidewall_store::log::LogOptions;

    use super::*;

    #[test]
    fn orders_are_kept_and_damaged_ones_are_not_obeyed() {
        let directory = tempfile::tempdir().unwrap();
        let orders = Orders::new(directory.path());
        assert_eq!(orders.find(2).unwrap(), None);
        let order = Order { group: 2, incarnation: 5, principal: "ann".into(), given_ms: 7 };
        orders.give(&order).unwrap();
        assert_eq!(Orders::new(directory.path()).find(2).unwrap(), Some(order));
        std::fs::write(orders.path(2), "{").unwrap();
        assert!(orders.find(2).is_err());
    }

    #[test]
    fn an_order_that_another_recovery_has_overtaken_is_put_aside_and_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let orders = Orders::new(directory.path());
        let (log, _) = NodeLog::open(Arc::new(MemoryDisk::new()), LogOptions::new([7; 16], 1)).unwrap();
        let mut store = MemoryCheckpoints::new();
        let kept = |order: &str| {
            let found = std::fs::read_dir(orders.path(2).parent().unwrap()).unwrap();
            found.map(|entry| entry.unwrap().file_name()).any(|name| name.to_string_lossy().contains(order))
        };
        let mut carry_out = |fence| {
            orders.give(&Order { group: 2, incarnation: 5, principal: "ann".into(), given_ms: 7 }).unwrap();
            let survivor = Survivor { node: 1, address: "127.0.0.1:1".into(), group: 2, fence };
            orders.carry_out(survivor, &log, &mut store, Machine::new())
        };
        let machine = carry_out(6).unwrap();
        assert_eq!((machine.incarnation(), orders.find(2).unwrap()), (1, None));
        assert!(kept("incarnation-5.superseded"));
        std::fs::remove_dir_all(orders.path(2).parent().unwrap()).unwrap();
        // Whatever comes of it: it is obeyed.
        let _ = carry_out(5);
        assert!(!kept("superseded"));
        log.close().unwrap();
    }
}
