//! What each command takes in apply, at its largest and at an ordinary size.
//!
//! `cargo run --release -p tidewall-machine --example apply_bench`: for each command the median and the longest time of many runs on
//! one thread, in an event of 100,000 seats that is as scattered as one can be. Apply runs on the thread that serves Raft for all
//! regions: what takes long here holds up everybody.
#![allow(clippy::unwrap_used)]
#![expect(clippy::disallowed_types, clippy::disallowed_methods, reason = "it measures apply, from outside")]

use std::time::{Duration, Instant};

use prost::Message as _;
use tidewall_domain::Roles;
use tidewall_domain::feed::TELLS_CHANGES;
use tidewall_machine::{Answer, Command, Entry, Machine, Position, Stamp, SystemCommand};
use tidewall_messages::tickets::outcome::Result as Got;
use tidewall_messages::tickets::{self, Command as Ask, HoldView, PurchaseView, SeatRowSpec, TierSpec};

const T0: u64 = 1_700_000_000_000;
/// The most rows of seats that an event may have.
const SEAT_ROWS: u32 = 2_000;
const SEATS_A_ROW: u32 = 50;
/// How often each command is measured.
const RUNS: u64 = 200;

struct Bench {
    machine: Machine,
    index: u64,
    now_ms: u64,
}

impl Bench {
    fn command(&mut self, who: u64, op: Ask) -> Command {
        self.index += 1;
        let id = (u128::from(self.now_ms) << 80) | u128::from(self.index);
        let asked = Command::asking(&format!("buyer-{who}"), id, self.now_ms + 5_000, &op);
        Command { roles: Roles::OPERATOR, ..asked }
    }

    /// Applies one entry; what its commands got, and how long all of it took.
    fn entry(&mut self, commands: Vec<Command>) -> (Vec<Answer>, Duration) {
        let payload = Entry { stamp: Stamp::confirmed(self.now_ms), commands }.encode();
        let index = self.machine.head().applied.map_or(0, |at| at.index + 1);
        let began = Instant::now();
        let decisions = self.machine.apply(Position { term: 1, node: 1, index }, &payload).unwrap();
        let took = began.elapsed();
        (decisions.into_iter().map(|decision| decision.answer).collect(), took)
    }

    fn one(&mut self, who: u64, op: Ask) -> (Got, Duration) {
        let command = self.command(who, op);
        let (mut answers, took) = self.entry(vec![command]);
        match answers.remove(0) {
            Answer::Done { outcome, .. } => {
                (tickets::Outcome::decode(&outcome[..]).unwrap().result.unwrap(), took)
            }
            other => panic!("{other:?}"),
        }
    }
}

fn tier(id: &str, capacity: u64, rows: u32) -> TierSpec {
    let row = |row| SeatRowSpec { label: format!("R{row}"), seats: SEATS_A_ROW };
    let (display_name, currency) = (id.to_uppercase(), "EUR".into());
    tickets::TierSpec {
        tier_id: id.into(),
        display_name,
        capacity,
        currency_code: currency,
        price_minor_units: 4_200,
        seat_rows: (0..rows).map(row).collect(),
    }
}

fn create(event: &str) -> Ask {
    let tiers = vec![tier("vip", u64::from(SEAT_ROWS * SEATS_A_ROW), SEAT_ROWS), tier("ga", 1_000_000, 0)];
    let (event, display_name) = (event.to_owned(), event.to_uppercase());
    Ask::from(tickets::CreateEvent {
        event_id: event,
        display_name,
        quota_per_buyer: 100_000,
        tiers,
        ..Default::default()
    })
}

fn update(tiers: Option<Vec<TierSpec>>) -> Ask {
    let (event, display_name) = ("gala".to_owned(), Some("Ball".to_owned()));
    Ask::from(tickets::UpdateEvent {
        event_id: event,
        display_name,
        set_tiers: tiers.is_some(),
        tiers: tiers.unwrap_or_default(),
        ..Default::default()
    })
}

fn buy(tier: &str, quantity: u32, seats: Vec<String>) -> Ask {
    Ask::from(tickets::Buy {
        event_id: "gala".into(),
        tier_id: tier.into(),
        quantity,
        seats,
        buyer: String::new(),
    })
}

fn hold(tier: &str, quantity: u32, ttl_ms: u32) -> Ask {
    Ask::from(tickets::Hold {
        event_id: "gala".into(),
        tier_id: tier.into(),
        quantity,
        seats: vec![],
        ttl_ms,
    })
}

fn report(name: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let us = |time: Duration| time.as_nanos() as f64 / 1e3;
    println!("| {name} | {:.0} | {:.0} |", us(times[times.len() / 2]), us(times[times.len() - 1]));
}

/// Half of the event sold in hundreds, and every second ticket given back.
fn scatter(bench: &mut Bench) {
    for turn in 0..u64::from(SEAT_ROWS * SEATS_A_ROW / 200) {
        let (Got::Purchase(PurchaseView { first_number: first, .. }), _) =
            bench.one(turn, buy("vip", 100, vec![]))
        else {
            panic!("bought")
        };
        for number in (first..first + 100).step_by(2) {
            bench.one(
                turn,
                Ask::from(tickets::CancelTicket {
                    event_id: "gala".into(),
                    ticket_id: format!("vip-{number}"),
                }),
            );
        }
    }
}

fn main() {
    let mut bench = Bench { machine: Machine::new(), index: 0, now_ms: T0 };
    println!("| command | median µs | longest µs |\n|---|---|---|");
    let times = (0..20).map(|n| bench.one(0, create(&format!("show-{n}"))).1).collect();
    report("create an event of 2,000 rows of seats", times);
    bench.one(0, create("gala"));
    scatter(&mut bench);
    report("rename it", (0..20).map(|_| bench.one(0, update(None)).1).collect());
    for (name, tier, quantity) in [
        ("buy 1, lowest free seat", "vip", 1),
        ("buy 100, lowest free seats", "vip", 100),
        ("buy 1 without seats", "ga", 1),
        ("buy 100 without seats", "ga", 100),
    ] {
        let runs = if tier == "vip" { RUNS / 4 } else { RUNS };
        report(name, (0..runs).map(|who| bench.one(who, buy(tier, quantity, vec![])).1).collect());
    }
    let named = |row: u32| (1..=SEATS_A_ROW).map(|seat| format!("R{row}-{seat}")).collect();
    let times =
        (0..50).map(|n| bench.one(n, buy("vip", SEATS_A_ROW, named(SEAT_ROWS - 1 - n as u32))).1).collect();
    report("buy 50 named seats", times);
    let mut confirms = Vec::new();
    let mut releases = Vec::new();
    let mut holds = Vec::new();
    for who in 0..50 {
        for finish in [true, false] {
            let (Got::Hold(HoldView { hold_id: hold, .. }), took) = bench.one(who, hold("vip", 100, 60_000))
            else {
                panic!("held")
            };
            holds.push(took);
            let event = "gala".to_owned();
            match finish {
                true => confirms.push(
                    bench.one(who, Ask::from(tickets::ConfirmHold { event_id: event, hold_id: hold })).1,
                ),
                false => releases.push(
                    bench.one(who, Ask::from(tickets::ReleaseHold { event_id: event, hold_id: hold })).1,
                ),
            }
        }
    }
    report("hold 100 seats", holds);
    report("confirm 100 seats", confirms);
    report("release 100 seats", releases);
    let mut entries = Vec::new();
    for _ in 0..20 {
        let commands = (0..512).map(|who| bench.command(who, buy("ga", 1, vec![]))).collect();
        entries.push(bench.entry(commands).1);
    }
    report("an entry of 512 purchases", entries);
    for who in 0..4_000 {
        bench.one(10_000 + who, hold("ga", 1, 60_000));
    }
    bench.now_ms += 60_000;
    let tick = || vec![Command::system(SystemCommand::Tick)];
    report("an entry that ends 1,024 due holds", (0..3).map(|_| bench.entry(tick()).1).collect());
    // What is left of them.
    (0..3).for_each(|_| drop(bench.entry(tick())));
    for who in 0..2_000 {
        bench.one(20_000 + who, hold("ga", 1, 1_000));
    }
    let sold = RUNS + 100 * RUNS + 20 * 512;
    // Due, and not ended yet: the update has to end them.
    bench.now_ms += 1_000;
    let tiers = vec![tier("vip", u64::from(SEAT_ROWS * SEATS_A_ROW), SEAT_ROWS), tier("ga", sold + 500, 0)];
    report("an update that ends 1,500 due holds", vec![bench.one(0, update(Some(tiers))).1]);
    cost_of_telling();
}

/// The same purchases under the apply version that tells what happens and under the one before, in turns, with a feed that is full.
fn cost_of_telling() {
    let bench = |version| {
        let mut bench = Bench { machine: Machine::new(), index: 0, now_ms: T0 };
        bench.entry(vec![Command::system(SystemCommand::RaiseVersion(version))]);
        bench.one(0, create("gala"));
        bench
    };
    let mut benches = [bench(TELLS_CHANGES - 1), bench(TELLS_CHANGES)];
    let mut times: [Vec<Duration>; 2] = [Vec::new(), Vec::new()];
    for turn in 0..1_400 {
        for (bench, times) in benches.iter_mut().zip(&mut times) {
            let commands =
                (0..512).map(|who| bench.command(512 * turn + who, buy("ga", 1, vec![]))).collect();
            let took = bench.entry(commands).1;
            if turn >= 1_000 {
                times.push(took);
            }
        }
    }
    let [quiet, telling] = times;
    let of = |mut times: Vec<Duration>| {
        times.sort_unstable();
        times[times.len() / 2]
    };
    report("512 purchases, nothing told", quiet.clone());
    report("512 purchases, each told", telling.clone());
    println!("told to not told: {:.3}", of(telling).as_secs_f64() / of(quiet).as_secs_f64());
}
