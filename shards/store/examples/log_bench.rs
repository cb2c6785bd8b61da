//! What the Raft log does per second on this machine's disk.
//!
//! `cargo run --release -p tidewall-store --example log_bench [DIRECTORY]`: each line is one load for two
//! seconds. A writer waits for its append before it sends the next, as a Raft group does. The directory
//! (a temporary one by default) should be on the disk that matters.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tidewall_env::disk::RealDisk;
use tidewall_store::log::{LogEntry, LogOptions, LogPosition, NodeLog};

const PAYLOAD_BYTES: usize = 256;
const LOAD: Duration = Duration::from_secs(2);

fn measure(directory: &std::path::Path, groups: u32, entries_per_append: u64) {
    let scratch = tempfile::tempdir_in(directory).unwrap();
    let disk = Arc::new(RealDisk::open(scratch.path()).unwrap());
    let (log, _) = NodeLog::open(disk, LogOptions::new([1; 16], 1)).unwrap();
    let started = Instant::now();
    let writers: Vec<_> = (0..groups)
        .map(|group| {
            let group = log.group(group);
            std::thread::spawn(move || {
                let payload = Bytes::from(vec![0x5a; PAYLOAD_BYTES]);
                let (sender, receiver) = mpsc::channel();
                let mut latencies = Vec::new();
                let mut next = 0;
                while started.elapsed() < LOAD {
                    let entries = (next..next + entries_per_append)
                        .map(|index| LogEntry {
                            position: LogPosition { term: 1, node: 1, index },
                            payload: payload.clone(),
                        })
                        .collect();
                    next += entries_per_append;
                    let sender = sender.clone();
                    let sent = Instant::now();
                    group.append(entries, Box::new(move |outcome| sender.send(outcome).unwrap()));
                    receiver.recv().unwrap().unwrap();
                    latencies.push(sent.elapsed());
                    if latencies.len() % 512 == 0 {
                        // As a node does behind its checkpoints: keep the log short.
                        let upto = LogPosition { term: 1, node: 1, index: next - 1 };
                        group.purge(upto, Box::new(|outcome| outcome.unwrap()));
                    }
                }
                latencies
            })
        })
        .collect();
    let mut latencies: Vec<Duration> =
        writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect();
    let seconds = started.elapsed().as_secs_f64();
    latencies.sort_unstable();
    let at = |share: usize| latencies[(latencies.len() * share / 100).min(latencies.len() - 1)];
    let appends = latencies.len() as f64 / seconds;
    println!(
        "{groups:>3} groups × {entries_per_append:>3} entries of {PAYLOAD_BYTES} B: {appends:>8.0} appends/s \
         {:>9.0} entries/s   p50 {:>7.3} ms   p99 {:>7.3} ms   max {:>7.3} ms",
        appends * entries_per_append as f64,
        at(50).as_secs_f64() * 1e3,
        at(99).as_secs_f64() * 1e3,
        at(100).as_secs_f64() * 1e3,
    );
    log.close().unwrap();
}

fn main() {
    let directory = std::env::args_os().nth(1).map_or_else(std::env::temp_dir, Into::into);
    println!("directory {}", directory.display());
    for (groups, entries) in [(1, 1), (12, 1), (12, 64)] {
        measure(&directory, groups, entries);
    }
}
