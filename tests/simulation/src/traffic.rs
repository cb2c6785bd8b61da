//! What goes on at a gateway: it serves, and besides its buyers events are made, groups are watched and probed, lost
//! answers are asked for, and the end is gathered.
//!
//! A gateway that is started again begins with nothing but its topology file.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use tidewall_client::{ShardClient, ShardClientOptions, Topology};
use tidewall_gateway::{GatewayConfig, GatewayCore, LimitOptions};
use tokio::time::sleep;

use crate::api::{Api, accounts, public_key};
use crate::browser::{self, browse, watch_holds};
use crate::buyer::Buyer;
use crate::clients::{Clients, Orphan, ask, read_event, read_outcome, read_tickets, request_id};
use crate::history::{Ask, End, Saw, Told};
use crate::inject::gateway_ip;
use crate::listener::listen;
use crate::site::Storytellers;
use crate::way::{Request, Way};

/// Port for clients of a gateway.
const API_PORT: u16 = 7_100;

/// Events of each group.
pub const EVENTS: [&str; 2] = ["sale-a", "sale-b"];
/// Who makes the events.
pub const ORGANISER: &str = "organiser";
/// What the names of those end with who sell in batches.
pub const SELLER: &str = "-seller";
/// Pause before something is asked again.
const AGAIN_AFTER: Duration = Duration::from_millis(20);
/// How often somebody asks what has become of a request whose gateway has died, at most.
const INQUIRIES_MAX: u32 = 10;
/// Rows of five seats in the numbered tier.
pub const SEAT_ROWS: [&str; 4] = ["A", "B", "C", "D"];

/// The software of a gateway's host.
pub async fn live(clients: Clients) -> turmoil::Result {
    // The host's clock runs only within a step of the simulation.
    sleep(Duration::from_millis(1)).await;
    clients.lives.set(clients.lives.get() + 1);
    let topology = clients.file.read();
    let shards = ShardClient::new(Arc::new(topology.clone()), ShardClientOptions::default());
    let shards = Rc::new(shards);
    let adopting = Rc::clone(&shards);
    let follow = |adopt| clients.file.clone().follow(topology.clone(), adopt);
    tokio::task::spawn_local(follow(
        Box::new(move |topology: &Topology| adopting.adopt(topology)) as Box<dyn FnMut(&Topology)>
    ));
    let core = GatewayCore::new(gateway_config(&clients, &topology))?;
    tokio::task::spawn_local(follow(Box::new(core.adopting())));
    tokio::spawn(core.serve(clients.lines.listen(API_PORT).await?, std::future::pending()));
    let address = SocketAddr::new(gateway_ip(clients.number), API_PORT);
    let client = Rc::new(Api::new(address));
    tokio::task::spawn_local(Storytellers::new(clients.clone(), Rc::clone(&client)).live());
    for number in 0..clients.listeners.len() {
        tokio::task::spawn_local(listen(clients.clone(), Rc::clone(&client), number));
    }
    for salt in 1..=browser::AT_A_GATEWAY {
        tokio::task::spawn_local(browse(clients.clone(), Rc::clone(&client), salt));
    }
    tokio::task::spawn_local(watch_holds(clients.clone(), Rc::clone(&client)));
    let (api, shards) = (Way::Api(client), Way::Shards(shards));
    if clients.number == 1 {
        if !clients.control.ready.get() {
            tokio::task::spawn_local(prepare(clients.clone(), api.clone()));
        }
        tokio::task::spawn_local(finish(clients.clone(), api.clone()));
    }
    for group in 1..=clients.plan.regions {
        tokio::task::spawn_local(probe(clients.clone(), api.clone(), shards.clone(), group));
    }
    for (salt, way) in [(0, &api), (1 << 8, &shards)] {
        tokio::task::spawn_local(watch(clients.clone(), way.clone(), salt));
    }
    tokio::task::spawn_local(inquire(clients.clone(), api.clone(), shards.clone()));
    for number in 0..clients.plan.clients {
        let way = if number % 2 == 0 { &api } else { &shards };
        let buyer = Buyer::new(clients.clone(), way.clone(), number);
        tokio::task::spawn_local(buyer.live());
    }
    std::future::pending().await
}

fn gateway_config(clients: &Clients, topology: &Topology) -> GatewayConfig {
    let anywhere = SocketAddr::from(([0, 0, 0, 0], 0));
    let mut config = GatewayConfig::new(anywhere, Arc::new(topology.clone()), vec![public_key()]);
    // Some connections are renewed in the middle of a run.
    config.connection_age_min = Some(Duration::from_secs(2));
    config.accounts = Some(accounts());
    // Who was away for a moment is behind.
    config.changes_kept_bytes = 1;
    config.webhooks.outside = Some(Arc::new(clients.servers.clone()));
    if clients.plan.narrow {
        config.calls_max_per_region = 2;
        config.limit = LimitOptions { floor: 1, ceiling: 1, ..LimitOptions::default() };
    }
    config
}

/// Makes the events.
async fn prepare(clients: Clients, way: Way) {
    let mut random = StdRng::seed_from_u64(clients.plan.seed ^ 0x65_7665_6e74);
    for group in 1..=clients.plan.regions {
        for event in EVENTS {
            let create = Ask::Create {
                event: event.to_owned(),
                quota: random.random_range(4..=40),
                tiers: vec![
                    ("ga".to_owned(), random.random_range(10..=90), false),
                    ("seat".to_owned(), SEAT_ROWS.len() as u64 * 5, true),
                ],
            };
            let request = Request { group, principal: ORGANISER, id: request_id(&mut random) };
            let patience = Duration::from_secs(5);
            while !is_decided(&ask(&clients, &way, request, &create, patience).await) {
                sleep(AGAIN_AFTER).await;
            }
        }
    }
    clients.control.ready.set(true);
}

/// Whether the log has decided it: a gateway cannot say that by itself.
fn is_decided(end: &End) -> bool {
    matches!(end, End::Told(Told { receipt: Some(_), .. }))
}

/// Shows that a group decides again, through this gateway, and that the client of the shards beside it, whom nothing but its
/// own calls tells who leads, can read it.
async fn probe(clients: Clients, api: Way, shards: Way, group: u32) {
    while !clients.control.probe.get() {
        sleep(Duration::from_millis(10)).await;
    }
    let salt = clients.number as u64 | u64::from(group) << 8;
    let mut random = StdRng::seed_from_u64(clients.plan.seed ^ 0x70_726f_6265 ^ salt);
    let cancel = Ask::Cancel { event: EVENTS[0].to_owned(), ticket: "ga-999999".to_owned() };
    let (name, patience) = (format!("g{}-probe", clients.number), Duration::from_secs(5));
    let request = Request { group, principal: &name, id: request_id(&mut random) };
    let (mut decided, mut read) = (false, false);
    while !(decided && read) {
        // A group that has halted for good never answers.
        if clients.control.stop.get() {
            return;
        }
        if decided {
            read = read_event(&clients, &shards, group, EVENTS[0], patience).await.is_some();
        } else {
            decided = is_decided(&ask(&clients, &api, request, &cancel, patience).await);
        }
        sleep(AGAIN_AFTER).await;
    }
    clients.control.probed.borrow_mut().insert((clients.number, group));
}

/// The clients of a gateway that has died ask here what has become of their requests, and then repeat what was not
/// decided.
async fn inquire(clients: Clients, api: Way, shards: Way) {
    let patience = Duration::from_secs(3);
    while !clients.control.stop.get() {
        let elsewhere = |orphan: &&Orphan| orphan.gateway != clients.number;
        let orphan = clients.control.orphans.borrow().iter().find(elsewhere).cloned();
        let Some(Orphan { through, group, principal, request_id, ask: what, .. }) = orphan else {
            sleep(Duration::from_millis(20)).await;
            continue;
        };
        // A request is repeated as it was.
        let way = if through { &api } else { &shards };
        for _ in 0..INQUIRIES_MAX {
            let request = Request { group, principal: &principal, id: request_id };
            let saw = read_outcome(&clients, way, request, patience).await;
            let end = match saw {
                Some(Saw::Outcome { told: None, .. }) => {
                    Some(ask(&clients, way, request, &what, patience).await)
                }
                Some(_) => None,
                None => Some(End::NotDecided),
            };
            if !matches!(end, Some(End::NotDecided)) {
                break;
            }
            sleep(AGAIN_AFTER).await;
        }
        // Only now: had this gateway died as well, the other one would have asked.
        clients.control.orphans.borrow_mut().retain(|orphan| orphan.request_id != request_id);
    }
}

/// Somebody who only looks, all the time: the one who would notice that a lead was lost and reads go on.
async fn watch(clients: Clients, way: Way, salt: u64) {
    let mut random = StdRng::seed_from_u64(clients.plan.seed ^ 0x77_6174_6368 ^ clients.number as u64 ^ salt);
    while !clients.control.stop.get() {
        sleep(Duration::from_millis(random.random_range(5..=60))).await;
        if clients.control.ready.get() {
            let group = random.random_range(1..=clients.plan.regions);
            let event = EVENTS.choose(&mut random).unwrap_or(&EVENTS[0]);
            read_event(&clients, &way, group, event, Duration::from_millis(400)).await;
        }
    }
}

/// Gathers the end, when nothing else is under way any more.
async fn finish(clients: Clients, way: Way) {
    while !clients.control.finish.get() {
        sleep(Duration::from_millis(10)).await;
    }
    let patience = Duration::from_secs(5);
    let mut keys = clients.history.borrow().keys();
    let halted = clients.control.halted.borrow().clone();
    keys.retain(|(group, ..)| !halted.contains(group));
    // A batch at a time: each read costs a round trip.
    for batch in keys.chunks(64) {
        let reads = batch.iter().map(|(group, principal, id)| {
            let (clients, way) = (&clients, &way);
            async move {
                let read = async || {
                    let request = Request { group: *group, principal, id: *id };
                    match read_outcome(clients, way, request, patience).await? {
                        Saw::Outcome { key, told } => Some(((*group, key), told)),
                        Saw::Event { .. } => None,
                    }
                };
                insist(read).await
            }
        });
        let found = futures_util::future::join_all(reads).await;
        clients.history.borrow_mut().at_end.outcomes.extend(found);
    }
    for group in (1..=clients.plan.regions).filter(|group| !halted.contains(group)) {
        for event in EVENTS {
            let tiers = insist(async || match read_event(&clients, &way, group, event, patience).await? {
                Saw::Event { tiers, .. } => Some(tiers),
                Saw::Outcome { .. } => None,
            });
            let tiers = tiers.await;
            let tickets = insist(async || read_tickets(&clients, &way, group, event, patience).await).await;
            let mut history = clients.history.borrow_mut();
            history.at_end.events.insert((group, event.to_owned()), tiers);
            history.at_end.tickets.insert((group, event.to_owned()), tickets);
        }
    }
    clients.control.finished.set(true);
}

/// Reads until there is an answer; a gateway that lets few calls in refuses some.
async fn insist<T>(mut read: impl AsyncFnMut() -> Option<T>) -> T {
    loop {
        if let Some(answer) = read().await {
            return answer;
        }
        sleep(AGAIN_AFTER).await;
    }
}
