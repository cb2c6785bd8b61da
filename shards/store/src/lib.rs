//! What a shard node keeps on its disk.
//!
//! * [`log`] — one checksummed, fdatasynced log for the Raft entries and votes of all groups of the node
//! * [`checkpoint`] — the rows of each group as of some index, so that the log can be purged
//! * [`keyring`] — the keys of persons, which must be in neither
//!
//! Nothing here knows openraft, tonic or actix, and nothing here decides what a row means.

pub mod checkpoint;
pub mod keyring;
pub mod log;
