//! The log on a disk that crashes, lies and decays; here is what the tests share.
#![allow(clippy::unwrap_used)]

mod against_model;
mod contract;
mod damage;
mod failures;
mod writing;

use std::sync::{Arc, mpsc};

use bytes::Bytes;
use tidewall_env::disk::{Disk, MemoryDisk};

use super::*;

const CLUSTER: [u8; 16] = *b"a test's cluster";

fn options() -> LogOptions {
    LogOptions { segment_bytes: 2_048, cache_bytes: 300, inline: true, ..LogOptions::new(CLUSTER, 1) }
}

fn open(disk: &MemoryDisk) -> Result<(NodeLog, RecoveryReport), LogError> {
    NodeLog::open(Arc::new(disk.clone()), options())
}

fn threaded(disk: impl Disk, segment_bytes: u64) -> NodeLog {
    let options = LogOptions { inline: false, segment_bytes, ..options() };
    NodeLog::open(Arc::new(disk), options).unwrap().0
}

fn position(index: u64) -> LogPosition {
    LogPosition { term: 1, node: 1, index }
}

fn entry(index: u64, payload: &str) -> LogEntry {
    LogEntry { position: position(index), payload: Bytes::copy_from_slice(payload.as_bytes()) }
}

fn entries(indices: std::ops::Range<u64>) -> Vec<LogEntry> {
    indices.map(|index| entry(index, &format!("entry {index}"))).collect()
}

/// A `done` that must be called with `Ok`, and by the time the test looks.
fn ok() -> Done {
    Box::new(|outcome| outcome.unwrap())
}

/// A `done` and where its outcome arrives.
fn outcome() -> (Done, mpsc::Receiver<Result<(), LogError>>) {
    let (sender, receiver) = mpsc::channel();
    (Box::new(move |outcome| sender.send(outcome).unwrap()), receiver)
}

fn all(group: &GroupLog) -> Vec<LogEntry> {
    group.read(0, u64::MAX, usize::MAX).unwrap()
}

fn segment_files(disk: &dyn Disk) -> Vec<String> {
    disk.list().unwrap().into_iter().filter(|name| segment::number(name).is_some()).collect()
}

fn file_bytes(disk: &dyn Disk, name: &str) -> Vec<u8> {
    let file = disk.open(name).unwrap();
    let mut bytes = vec![0; usize::try_from(file.len().unwrap()).unwrap()];
    file.read_exact_at(0, &mut bytes).unwrap();
    bytes
}

/// Where each record of a segment starts, and where the last one ends, found without the sequence numbers.
fn record_offsets(bytes: &[u8], number: u64) -> Vec<usize> {
    let seed = options().identity().seed(number);
    let mut offsets = vec![usize::try_from(segment::RECORDS_AT).unwrap()];
    while let Ok(record) =
        record::decode(&bytes[*offsets.last().unwrap()..], seed, *offsets.last().unwrap() as u64)
    {
        offsets.push(offsets.last().unwrap() + record.bytes);
    }
    offsets
}
