//! How much memory the rows of a large group take, and how long what walks over all of them takes: a freeze, which apply waits
//! for, a snapshot, a start from one.
//!
//! `cargo run --release -p tidewall-machine --example size_bench [TICKETS]`: sells so many tickets of one event, ten a purchase, to
//! 200,000 buyers.
#![allow(clippy::unwrap_used)]
#![expect(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "it measures the machine, from outside"
)]

use std::time::{Duration, Instant};

use tidewall_domain::Roles;
use tidewall_machine::{APPLY_VERSION, Command, Entry, Machine, Position, Stamp, SystemCommand, snapshot};
use tidewall_messages::tickets::{self, Command as Ask, TierSpec};

const T0: u64 = 1_700_000_000_000;
const TICKETS: u64 = 10_000_000;
const BUYERS: u64 = 200_000;
/// Tickets of a purchase.
const QUANTITY: u64 = 10;
/// Commands of an entry.
const COMMANDS: u64 = 256;
/// Bytes of a page of memory.
const PAGE: u64 = 4_096;

/// Memory of this process that is there, MiB.
fn resident_mib() -> f64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
    (pages * PAGE) as f64 / f64::from(1 << 20)
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let began = Instant::now();
    let result = work();
    (result, began.elapsed())
}

struct Log {
    machine: Machine,
    index: u64,
    commands: u64,
}

impl Log {
    fn entry(&mut self, commands: Vec<Command>) {
        let payload = Entry { stamp: Stamp::confirmed(T0 + self.index), commands }.encode();
        self.machine.apply(Position { term: 1, node: 1, index: self.index }, &payload).unwrap();
        self.index += 1;
    }

    fn command(&mut self, who: u64, op: &Ask) -> Command {
        self.commands += 1;
        let now_ms = T0 + self.index;
        let id = (u128::from(now_ms) << 80) | u128::from(self.commands);
        let asked = Command::asking(&format!("buyer-{who}"), id, now_ms + 5_000, op);
        Command { roles: Roles::OPERATOR, ..asked }
    }
}

fn main() {
    let tickets: u64 = std::env::args().nth(1).map_or(TICKETS, |tickets| tickets.parse().unwrap());
    let mut log = Log { machine: Machine::new(), index: 0, commands: 0 };
    for version in 2..=APPLY_VERSION {
        log.entry(vec![Command::system(SystemCommand::RaiseVersion(version))]);
    }
    let create = Ask::from(tickets::CreateEvent {
        event_id: "gala".into(),
        display_name: "Gala".into(),
        quota_per_buyer: 100_000,
        tiers: vec![TierSpec {
            tier_id: "ga".into(),
            display_name: "GA".into(),
            capacity: tickets.max(1),
            currency_code: "EUR".into(),
            price_minor_units: 4_200,
            seat_rows: vec![],
        }],
        ..Default::default()
    });
    let create = log.command(0, &create);
    log.entry(vec![create]);
    let empty = resident_mib();
    let buy = Ask::from(tickets::Buy {
        event_id: "gala".into(),
        tier_id: "ga".into(),
        quantity: QUANTITY as u32,
        seats: vec![],
        buyer: String::new(),
    });
    let purchases = tickets / QUANTITY;
    let ((), took) = timed(|| {
        for first in (0..purchases).step_by(COMMANDS as usize) {
            let last = purchases.min(first + COMMANDS);
            let commands = (first..last).map(|number| log.command(number % BUYERS, &buy)).collect();
            log.entry(commands);
        }
    });
    let full = resident_mib();
    let Log { mut machine, .. } = log;
    let rows = machine.rows();
    println!(
        "{tickets} tickets of {purchases} purchases, {rows} rows in all, applied in {:.1} s",
        took.as_secs_f64()
    );
    let bytes = (full - empty) * f64::from(1 << 20);
    println!(
        "{:.0} MiB: {:.0} bytes a ticket, {:.0} a purchase of {QUANTITY}",
        full - empty,
        bytes / tickets as f64,
        bytes / purchases as f64
    );
    let (frozen, took) = timed(|| machine.freeze());
    println!(
        "freeze of everything that has changed since the beginning: apply waits {:.1} ms",
        took.as_secs_f64() * 1e3
    );
    drop(frozen);
    let (frozen, took) = timed(|| machine.freeze_all());
    println!("freeze of everything there is: apply waits {:.1} ms", took.as_secs_f64() * 1e3);
    let (parts, took) = timed(|| snapshot::encode(&frozen).collect::<Vec<Vec<u8>>>());
    let size: usize = parts.iter().map(Vec::len).sum();
    println!("snapshot: {:.0} MiB in {:.1} s", size as f64 / f64::from(1 << 20), took.as_secs_f64());
    drop(frozen);
    drop(machine);
    let (loaded, took) = timed(|| {
        let mut reader = snapshot::Parser::new();
        parts.iter().for_each(|part| reader.push(part).unwrap());
        reader.finish().unwrap()
    });
    println!("rows from the snapshot, on one thread: {:.1} s", took.as_secs_f64());
    drop(loaded);
}
