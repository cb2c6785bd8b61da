//! What goes on at a gateway besides its buyers: events are made, groups are watched and probed, lost answers are asked
//! for, and the end is gathered.
//!
//! A gateway that is started again begins with nothing but its topology file.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use tidewall_client::{ShardClient, ShardClientOptions};
use tokio::time::sleep;

use crate::buyer::Buyer;
use crate::convert;
use crate::desk::{Desk, Orphan, ask, read, read_event, read_outcome, request_id};
use crate::history::{Ask, End, Saw};

/// Events of each group.
pub const EVENTS: [&str; 2] = ["sale-a", "sale-b"];
/// Who makes the events.
const ORGANISER: &str = "organiser";
/// Rows of five seats in the numbered tier.
pub const SEAT_ROWS: [&str; 4] = ["A", "B", "C", "D"];

/// The software of a gateway's host.
pub async fn live(desk: Desk) -> turmoil::Result {
    // The host's clock runs only within a step of the simulation.
    sleep(Duration::from_millis(1)).await;
    desk.lives.set(desk.lives.get() + 1);
    let topology = desk.file.read();
    let shards = Rc::new(ShardClient::new(Arc::new(topology.clone()), ShardClientOptions::default()));
    let adopting = Rc::clone(&shards);
    tokio::task::spawn_local(desk.file.clone().follow(topology, move |topology| adopting.adopt(topology)));
    if desk.number == 1 {
        if !desk.control.ready.get() {
            tokio::task::spawn_local(prepare(desk.clone(), Rc::clone(&shards)));
        }
        tokio::task::spawn_local(finish(desk.clone(), Rc::clone(&shards)));
    }
    for group in 1..=desk.plan.regions {
        tokio::task::spawn_local(probe(desk.clone(), Rc::clone(&shards), group));
    }
    tokio::task::spawn_local(watch(desk.clone(), Rc::clone(&shards)));
    tokio::task::spawn_local(inquire(desk.clone(), Rc::clone(&shards)));
    for number in 0..desk.plan.clients {
        let buyer = Buyer::new(desk.clone(), Rc::clone(&shards), number);
        tokio::task::spawn_local(buyer.live());
    }
    std::future::pending().await
}

/// Makes the events.
async fn prepare(desk: Desk, shards: Rc<ShardClient>) {
    let mut random = StdRng::seed_from_u64(desk.plan.seed ^ 0x65_7665_6e74);
    for group in 1..=desk.plan.regions {
        for event in EVENTS {
            let create = Ask::Create {
                event: event.to_owned(),
                quota: random.random_range(4..=40),
                tiers: vec![
                    ("ga".to_owned(), random.random_range(10..=90), false),
                    ("seat".to_owned(), SEAT_ROWS.len() as u64 * 5, true),
                ],
            };
            let id = request_id(&mut random);
            let patience = Duration::from_secs(5);
            while !matches!(
                ask(&desk, &shards, ORGANISER, group, id, &create, patience).await,
                Some(End::Told(_))
            ) {}
        }
    }
    desk.control.ready.set(true);
}

/// Shows that a group decides again, seen from this gateway.
async fn probe(desk: Desk, shards: Rc<ShardClient>, group: u32) {
    while !desk.control.probe.get() {
        sleep(Duration::from_millis(10)).await;
    }
    let salt = desk.number as u64 | u64::from(group) << 8;
    let mut random = StdRng::seed_from_u64(desk.plan.seed ^ 0x70_726f_6265 ^ salt);
    let cancel = Ask::Cancel { event: EVENTS[0].to_owned(), ticket: "ga-999999".to_owned() };
    let (name, patience) = (format!("g{}-probe", desk.number), Duration::from_secs(5));
    let (mut decided, mut read) = (false, false);
    while !(decided && read) {
        // A group that has halted for good never answers.
        if desk.control.stop.get() {
            return;
        }
        if decided {
            read = read_event(&desk, &shards, group, EVENTS[0], patience).await.is_some();
        } else {
            let id = request_id(&mut random);
            let end = ask(&desk, &shards, &name, group, id, &cancel, patience).await;
            decided = matches!(end, Some(End::Told(_)));
        }
    }
    desk.control.probed.borrow_mut().insert((desk.number, group));
}

/// The clients of a gateway that has died ask here what has become of their requests, and then repeat what was not
/// decided.
async fn inquire(desk: Desk, shards: Rc<ShardClient>) {
    let patience = Duration::from_secs(3);
    while !desk.control.stop.get() {
        let elsewhere = |orphan: &&Orphan| orphan.gateway != desk.number;
        let orphan = desk.control.orphans.borrow().iter().find(elsewhere).cloned();
        let Some(Orphan { group, principal, request_id, ask: what, .. }) = orphan else {
            sleep(Duration::from_millis(20)).await;
            continue;
        };
        let saw = read_outcome(&desk, &shards, group, &principal, request_id, patience).await;
        if let Some(Saw::Outcome { told: None, .. }) = saw {
            ask(&desk, &shards, &principal, group, request_id, &what, patience).await;
        }
        // Only now: had this gateway died as well, the other one would have asked.
        desk.control.orphans.borrow_mut().retain(|orphan| orphan.request_id != request_id);
    }
}

/// Somebody who only looks, all the time: the one who would notice that a lead was lost and reads go on.
async fn watch(desk: Desk, shards: Rc<ShardClient>) {
    let mut random = StdRng::seed_from_u64(desk.plan.seed ^ 0x77_6174_6368 ^ desk.number as u64);
    while !desk.control.stop.get() {
        sleep(Duration::from_millis(random.random_range(5..=60))).await;
        if desk.control.ready.get() {
            let group = random.random_range(1..=desk.plan.regions);
            let event = EVENTS.choose(&mut random).unwrap_or(&EVENTS[0]);
            read_event(&desk, &shards, group, event, Duration::from_millis(400)).await;
        }
    }
}

/// Gathers the end, when nothing else is under way any more.
async fn finish(desk: Desk, shards: Rc<ShardClient>) {
    while !desk.control.finish.get() {
        sleep(Duration::from_millis(10)).await;
    }
    let patience = Duration::from_secs(5);
    let mut keys = desk.history.borrow().keys();
    let halted = desk.control.halted.borrow().clone();
    keys.retain(|(group, ..)| !halted.contains(group));
    // A batch at a time: each read costs a round trip.
    for batch in keys.chunks(64) {
        let reads = batch.iter().map(|(group, principal, id)| {
            let (desk, shards) = (&desk, &shards);
            async move {
                loop {
                    let saw = read_outcome(desk, shards, *group, principal, *id, patience).await;
                    if let Some(Saw::Outcome { key, told }) = saw {
                        break ((*group, key), told);
                    }
                }
            }
        });
        let found = futures_util::future::join_all(reads).await;
        desk.history.borrow_mut().at_end.outcomes.extend(found);
    }
    for group in (1..=desk.plan.regions).filter(|group| !halted.contains(group)) {
        for event in EVENTS {
            let tiers = loop {
                if let Some(Saw::Event { tiers, .. }) =
                    read_event(&desk, &shards, group, event, patience).await
                {
                    break tiers;
                }
            };
            let tickets = loop {
                if let Some(result) =
                    read(&desk, &shards, group, convert::tickets_query(event), patience).await
                {
                    break convert::tickets(&result);
                }
            };
            let mut history = desk.history.borrow_mut();
            history.at_end.events.insert((group, event.to_owned()), tiers);
            history.at_end.tickets.insert((group, event.to_owned()), tickets);
        }
    }
    desk.control.finished.set(true);
}
