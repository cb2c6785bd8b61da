//! SIGKILL of any process in the middle of a sale loses no acknowledged purchase and sells nothing twice.
//!
//! `TIDEWALL_KILLS=20` sets the number of kills (5 when unset), `TIDEWALL_SEED=n` chooses the victims.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tidewall_e2e::audit::{Answer, Attempt, audit};
use tidewall_e2e::client::{Session, buy_request, event_of, is_retryable, request_id, tier};
use tidewall_e2e::cluster::{Cluster, Kind, Options};
use tidewall_proto::json::from_json;
use tidewall_sdk::api;
use tidewall_workloads::server::{Arrived, Conduct, Server};
use tonic::Code;

use crate::alone;

/// Buyers at once.
const BUYERS: usize = 12;

/// Capacity of the tier that must sell out while processes die.
const SCARCE: i64 = 400;

/// How long a kill may take to be healed before the next. What is normal is under ten seconds; the bound
/// only has to be longer than any busy machine needs.
const HEALED_WITHIN: Duration = Duration::from_secs(120);

fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(value) => value.parse().unwrap_or_else(|_| panic!("{name}={value} is not a number")),
        Err(_) => default,
    }
}

/// Buys until told to stop; every request is repeated under its id until it has an answer, and all are in
/// the history that it returns.
async fn buy_on(
    name: String,
    session: Session,
    event: String,
    seed: u64,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicUsize>,
) -> Vec<Attempt> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut history = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let scarce = rng.random_ratio(1, 10);
        let tier = if scarce { "scarce" } else { "ga" };
        let quantity = rng.random_range(1..=3);
        let id = request_id();
        let mut attempts = 0;
        let answer = loop {
            attempts += 1;
            let mut request = session.request(buy_request(&event, tier, quantity, &id));
            request.set_timeout(Duration::from_secs(5));
            match session.tickets().buy_tickets(request).await {
                Ok(response) => {
                    acknowledged.fetch_add(1, Ordering::Relaxed);
                    let purchase = response.into_inner().purchase.expect("a success carries its purchase");
                    break Answer::Bought(purchase.tickets);
                }
                Err(status) if status.code() == Code::FailedPrecondition => break Answer::Refused,
                Err(status) => {
                    assert!(is_retryable(&status), "{name} got an answer that no kill explains: {status:?}");
                    if attempts > 600 {
                        break Answer::Unknown;
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        };
        history.push(Attempt {
            buyer: name.clone(),
            request_id: id,
            tier: tier.into(),
            quantity: quantity as usize,
            answer,
        });
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    history
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_in_the_middle_of_a_sale_lose_nothing_and_sell_nothing_twice() {
    let _alone = alone().await;
    let kills = setting("TIDEWALL_KILLS", 5);
    let seed = setting("TIDEWALL_SEED", 7);
    let mut rng = StdRng::seed_from_u64(seed);
    let environment = vec![("TIDEWALL_WEBHOOK_ALLOW".to_owned(), "127.0.0.0/8".to_owned())];
    let mut cluster = Cluster::start(Options { environment, ..Options::default() }).await.unwrap();
    let organiser = cluster.session("olga", &["organiser"]).unwrap();
    let regions = organiser.region_names().await.unwrap();
    let region = &regions[rng.random_range(0..regions.len())];
    let tiers = vec![tier("ga", 5_000_000), tier("scarce", SCARCE)];
    let event = organiser.create_event(region, event_of(tiers)).await.unwrap().name;

    let token = cluster.token("olga", &["organiser"]).unwrap();
    let options = tidewall_sdk::Options { deadline: HEALED_WITHIN, ..Default::default() };
    let gateways: Vec<_> = cluster.endpoints().gateways.iter().map(|gateway| gateway.url.clone()).collect();
    let client =
        tidewall_sdk::Client::connect(gateways, tidewall_sdk::StaticToken::new(token), options).unwrap();
    let mut watch = client.watch(api::WatchRequest { parent: event.clone(), ..Default::default() });
    watch.next().await.unwrap();

    let conduct = Conduct { fails_every: 20, ..Conduct::default() };
    let server = Server::start(Ipv4Addr::LOCALHOST.into(), conduct).await.unwrap();
    let url = server.url("hooks");
    let webhook = api::Webhook { url: url.clone(), event: event.clone(), ..Default::default() };
    let create = api::CreateWebhookRequest {
        parent: region.clone(),
        webhook: Some(webhook),
        request_id: request_id(),
    };
    let made = organiser.webhooks().create_webhook(organiser.request(create)).await.unwrap().into_inner();
    assert!(made.secret.starts_with("whsec_"));

    let stop = Arc::new(AtomicBool::new(false));
    let acknowledged = Arc::new(AtomicUsize::new(0));
    let buyers: Vec<_> = (0..BUYERS)
        .map(|number| {
            let name = format!("buyer-{number}");
            let session = cluster.session(&name, &[]).unwrap();
            let seed = seed.wrapping_mul(1000) + number as u64;
            tokio::spawn(buy_on(name, session, event.clone(), seed, stop.clone(), acknowledged.clone()))
        })
        .collect();

    let mut killed_of = std::collections::BTreeMap::new();
    for number in 1..=kills {
        // The sale is really going on when the fault comes.
        let before = acknowledged.load(Ordering::Relaxed);
        let deadline = tokio::time::Instant::now() + HEALED_WITHIN;
        while acknowledged.load(Ordering::Relaxed) < before + 200 {
            assert!(tokio::time::Instant::now() < deadline, "the sale stands still\n{}", cluster.log_tail());
            tokio::time::sleep(Duration::from_millis(rng.random_range(5..50))).await;
        }
        let processes = cluster.processes();
        // The first two kills see to it that even a short run hits a node and the gateway.
        let candidates: Vec<_> = match number {
            1 => processes.iter().filter(|(kind, _)| *kind == Kind::Shard).collect(),
            2 => processes.iter().filter(|(kind, _)| *kind == Kind::Gateway).collect(),
            _ => processes.iter().collect(),
        };
        let &&(kind, id) = &candidates[rng.random_range(0..candidates.len())];
        cluster.kill(id).unwrap();
        *killed_of.entry(kind).or_insert(0) += 1;
        // Until the supervisor has noticed, the table may still list the dead one as running.
        cluster.wait_settled(HEALED_WITHIN).await.unwrap_or_else(|error| {
            panic!("kill {number} of {kills} ({kind:?} {id}, seed {seed}): {error:#}")
        });
        assert!(!cluster.processes().iter().any(|(_, other)| *other == id), "process {id} survived SIGKILL");
    }

    stop.store(true, Ordering::Relaxed);
    let mut history = Vec::new();
    for buyer in buyers {
        history.extend(buyer.await.unwrap());
    }
    let row = organiser.event(&event).await.unwrap();
    let tickets = organiser.tickets_of(&event, "*").await.unwrap();
    let wrong = audit(&history, &row, &tickets);
    assert!(
        wrong.is_empty(),
        "seed {seed}, {} requests: {:#?}\n{}",
        history.len(),
        &wrong[..wrong.len().min(20)],
        cluster.log_tail()
    );
    let bought = history.iter().filter(|attempt| matches!(attempt.answer, Answer::Bought(_))).count();
    assert!(bought as u64 >= 200 * kills, "only {bought} purchases in {kills} kills test nothing");
    // Who has watched all the while was told each ticket once.
    let sold: BTreeSet<String> = tickets.iter().map(|ticket| ticket.name.clone()).collect();
    let mut told = BTreeSet::new();
    while told.len() < sold.len() {
        for change in watch.next().await.unwrap().changes {
            let Some(api::change::What::Purchase(purchase)) = change.what else { panic!("{change:?}") };
            for ticket in purchase.tickets {
                assert!(sold.contains(&ticket), "{ticket} was told and not sold");
                assert!(told.insert(ticket.clone()), "{ticket} was told twice");
            }
        }
    }
    // And so was the organiser's server, which fails now and then.
    let deadline = tokio::time::Instant::now() + HEALED_WITHIN;
    let mut bodies = BTreeMap::new();
    let delivered = loop {
        for Arrived { id, body, .. } in server.take(&url) {
            let before = bodies.insert(id, body.clone());
            assert!(before.is_none_or(|before| before == body), "two bodies under one id: {body}");
        }
        let mut delivered = Vec::new();
        for body in bodies.values() {
            let delivery: api::WebhookDelivery = from_json("WebhookDelivery", body).unwrap();
            assert_eq!(delivery.missed, None, "{body}");
            for change in delivery.changes {
                if let Some(api::change::What::Purchase(purchase)) = change.what {
                    delivered.extend(purchase.tickets);
                }
            }
        }
        if delivered.len() >= sold.len() {
            break delivered;
        }
        if tokio::time::Instant::now() > deadline {
            panic!("{} of {} tickets were delivered\n{}", delivered.len(), sold.len(), cluster.log_tail());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert_eq!(delivered.len(), sold.len(), "a ticket was delivered under two ids");
    assert_eq!(BTreeSet::from_iter(delivered), sold);
    // All replicas hold the same rows at the end.
    let operator = cluster.session("e2e-operator", &["operator"]).unwrap();
    let deadline = tokio::time::Instant::now() + HEALED_WITHIN;
    loop {
        let statuses = operator.region_statuses().await.unwrap();
        let status = statuses.iter().find(|status| status.name == *region).unwrap();
        let first = (&status.replicas[0].digest, status.replicas[0].applied_index);
        if status.replicas.iter().all(|replica| (&replica.digest, replica.applied_index) == first) {
            break;
        }
        let same_index = status.replicas.iter().all(|replica| replica.applied_index == first.1);
        assert!(!same_index, "replicas differ at one index: {status:#?}");
        assert!(tokio::time::Instant::now() < deadline, "a replica does not catch up: {status:#?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    println!("{kills} kills ({killed_of:?}), {} requests, {bought} purchases, audit ok", history.len());
}
