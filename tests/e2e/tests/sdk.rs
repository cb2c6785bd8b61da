//! The client library for users, and the retry policy for other languages, against the real binary while its
//! processes die. Neither caller may see an error: a call has 10 s, which is longer than any failover takes.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use tidewall_e2e::audit::{Answer, Attempt, audit};
use tidewall_e2e::client::{Session, event_of, region_of, tier};
use tidewall_e2e::cluster::{Cluster, Kind, Options};
use tidewall_sdk::{Client, FileJournal, FileJournalOptions, MemoryJournal, StaticToken, api};
use tokio::sync::{Mutex, MutexGuard};

/// Buyers at once.
const BUYERS: usize = 8;
/// Kills of the node that leads the sale's region.
const KILLS: usize = 3;
/// How long the sale or the cluster may stand still before the test gives up. What is normal is some seconds;
/// the bound only has to be longer than a busy machine needs.
const PATIENCE: Duration = Duration::from_secs(120);

/// One cluster at a time: the machine that tests them may be small.
async fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::const_new(());
    ALONE.lock().await
}

/// Process id of the node that leads a region.
async fn leader_of(cluster: &Cluster, region: &str) -> u32 {
    let operator = cluster.session("e2e-operator", &["operator"]).unwrap();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let statuses = operator.region_statuses().await.unwrap();
        let node = statuses.iter().find(|status| status.name == region).unwrap().leader_node.to_string();
        let leads = |id: &u32| {
            let command = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
            let words: Vec<_> = command.split(|byte| *byte == 0).collect();
            words.windows(2).any(|pair| pair[0] == b"--node" && pair[1] == node.as_bytes())
        };
        let shards = cluster.processes().into_iter().filter(|(kind, _)| *kind == Kind::Shard);
        if let Some(id) = shards.map(|(_, id)| id).find(leads) {
            return id;
        }
        assert!(Instant::now() < deadline, "no process of node {node}, which leads {region}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until so many purchases more were made.
async fn progress(made: &AtomicUsize, more: usize, cluster: &Cluster) {
    let (goal, deadline) = (made.load(Ordering::Relaxed) + more, Instant::now() + PATIENCE);
    while made.load(Ordering::Relaxed) < goal {
        assert!(Instant::now() < deadline, "the sale stands still\n{}", cluster.log_tail());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Buys until told to stop, and returns what it was told and the errors that it saw. What was bought is there at once, whichever
/// replica is asked.
async fn buy_on(
    name: String,
    client: Client,
    event: String,
    stop: Arc<AtomicBool>,
    made: Arc<AtomicUsize>,
) -> (Vec<Attempt>, Vec<String>) {
    let (mut history, mut errors) = (Vec::new(), Vec::new());
    while !stop.load(Ordering::Relaxed) {
        let request = api::BuyTicketsRequest {
            parent: event.clone(),
            tier_id: "ga".into(),
            quantity: 1,
            ..Default::default()
        };
        let (request_id, answer) = match client.buy_tickets(request).await {
            Ok(done) => {
                made.fetch_add(1, Ordering::Relaxed);
                let tickets = done.answer.purchase.unwrap().tickets;
                let get = api::GetTicketRequest {
                    name: tickets[0].clone(),
                    consistency: api::ReadConsistency::Session.into(),
                    ..Default::default()
                };
                if let Err(error) = client.get_ticket(get).await {
                    errors.push(format!("{name} does not see {}: {error}", tickets[0]));
                }
                (done.request_id, Answer::Bought(tickets))
            }
            Err(error) => {
                errors.push(format!("{name}: {error}"));
                let id = error.request_id().expect("an id is made before anything can fail");
                let unknown = matches!(error, tidewall_sdk::Error::Unknown { .. });
                (id, if unknown { Answer::Unknown } else { Answer::Refused })
            }
        };
        let request_id = request_id.to_string();
        history.push(Attempt { buyer: name.clone(), request_id, tier: "ga".into(), quantity: 1, answer });
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    (history, errors)
}

#[tokio::test(flavor = "multi_thread")]
async fn buyers_see_no_error_while_nodes_and_a_gateway_are_killed() {
    let _alone = alone().await;
    let mut cluster = Cluster::start(Options { gateways: 2, ..Options::default() }).await.unwrap();
    let gateways: Vec<_> = cluster.endpoints().gateways.iter().map(|gateway| gateway.url.clone()).collect();
    let journals = tempfile::tempdir().unwrap();
    let organiser = Client::connect(
        gateways,
        StaticToken::new(cluster.token("olga", &["organiser"]).unwrap()),
        tidewall_sdk::Options::default(),
    )
    .unwrap();
    let region = organiser.regions().await.unwrap().swap_remove(0).name;
    let request = api::CreateEventRequest {
        parent: region.clone(),
        event: Some(event_of(vec![tier("ga", 1_000_000)])),
        ..Default::default()
    };
    let event = organiser.create_event(request).await.unwrap().answer.event.unwrap().name;

    let (stop, made) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut buyers = Vec::new();
    let mut clients = Vec::new();
    for number in 0..BUYERS {
        let name = format!("buyer-{number}");
        let token = StaticToken::new(cluster.token(&name, &[]).unwrap());
        let journal = FileJournal::open(journals.path().join(&name), FileJournalOptions::default()).unwrap();
        let client = organiser.of_principal(token, journal);
        clients.push(client.clone());
        buyers.push(tokio::spawn(buy_on(name, client, event.clone(), stop.clone(), made.clone())));
    }
    for kill in 1..=KILLS {
        progress(&made, 200, &cluster).await;
        let id = leader_of(&cluster, &region).await;
        cluster.kill(id).unwrap();
        // The sale goes on before the cluster is whole again.
        progress(&made, 50, &cluster).await;
        cluster
            .wait_settled(PATIENCE)
            .await
            .unwrap_or_else(|error| panic!("kill {kill} of {KILLS}: {error:#}"));
    }
    // Answers are lost with a gateway: their ids must be asked for at the other one.
    let gateway = cluster.processes().into_iter().find(|(kind, _)| *kind == Kind::Gateway).unwrap().1;
    cluster.kill(gateway).unwrap();
    progress(&made, 200, &cluster).await;
    cluster.wait_settled(PATIENCE).await.unwrap();

    stop.store(true, Ordering::Relaxed);
    let (mut history, mut errors) = (Vec::new(), Vec::new());
    for buyer in buyers {
        let (told, seen) = buyer.await.unwrap();
        history.extend(told);
        errors.extend(seen);
    }
    assert_eq!(errors, Vec::<String>::new(), "{}", cluster.log_tail());
    for client in clients {
        assert_eq!(client.unfinished(), [], "all outcomes are known");
    }
    let row = organiser
        .get_event(api::GetEventRequest { name: event.clone(), ..Default::default() })
        .await
        .unwrap();
    let tickets = organiser.all_tickets(&event, "*").await.unwrap();
    let wrong = audit(&history, &row.event.unwrap(), &tickets);
    assert!(wrong.is_empty(), "{:#?}\n{}", &wrong[..wrong.len().min(20)], cluster.log_tail());
    println!("{KILLS} leaders and a gateway killed, {} purchases, no error, audit ok", history.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_client_leaves_open_and_sells_in_bulk_is_what_the_region_says() {
    let _alone = alone().await;
    let cluster = Cluster::start(Options::default()).await.unwrap();
    let gateways = [cluster.endpoints().gateways[0].url.clone()];
    let token = |user: &str, roles: &[&str]| StaticToken::new(cluster.token(user, roles).unwrap());
    let options = tidewall_sdk::Options { deadline: Duration::from_secs(60), ..Default::default() };
    let organiser = Client::connect(gateways, token("olga", &["organiser"]), options).unwrap();
    let region = organiser.regions().await.unwrap().swap_remove(0).name;
    let request = api::CreateEventRequest {
        parent: region,
        event: Some(event_of(vec![tier("ga", 10)])),
        ..Default::default()
    };
    let event = organiser.create_event(request).await.unwrap().answer.event.unwrap().name;

    // A call that is dropped right after it was sent: what became of it can be asked for.
    let alice = organiser.of_principal(token("alice", &[]), MemoryJournal::default());
    let buy = |tier_id: &str, quantity| api::BuyTicketsRequest {
        parent: event.clone(),
        tier_id: tier_id.into(),
        quantity,
        ..Default::default()
    };
    let mut call = tokio::spawn({
        let (alice, request) = (alice.clone(), buy("ga", 2));
        async move { alice.buy_tickets(request).await }
    });
    let deadline = Instant::now() + PATIENCE;
    while alice.unfinished().is_empty() && !call.is_finished() {
        assert!(Instant::now() < deadline, "the call neither began nor ended");
        tokio::task::yield_now().await;
    }
    call.abort();
    match (&mut call).await {
        Ok(done) => assert_eq!(done.unwrap().answer.purchase.unwrap().tickets.len(), 2),
        Err(_) => {
            let sent = alice.unfinished().swap_remove(0);
            let resolution = alice.resolve(sent.request_id).await.unwrap();
            println!("dropped, then {resolution:?}");
            // Going on with the same id executes it at most once, whatever had become of it.
            let request = api::BuyTicketsRequest { request_id: sent.request_id.to_string(), ..buy("ga", 2) };
            assert_eq!(alice.buy_tickets(request).await.unwrap().answer.purchase.unwrap().tickets.len(), 2);
        }
    }
    let hold = api::HoldTicketsRequest {
        parent: event.clone(),
        tier_id: "ga".into(),
        quantity: 1,
        ..Default::default()
    };
    let held = alice.hold_tickets(hold.clone()).await.unwrap().answer.hold.unwrap().name;
    let confirm = api::ConfirmHoldRequest { name: held, ..Default::default() };
    let ticket = alice.confirm_hold(confirm).await.unwrap().answer.purchase.unwrap().tickets.swap_remove(0);
    let held = alice.hold_tickets(hold).await.unwrap().answer.hold.unwrap().name;
    alice.release_hold(api::ReleaseHoldRequest { name: held, ..Default::default() }).await.unwrap();
    alice.cancel_ticket(api::CancelTicketRequest { name: ticket, ..Default::default() }).await.unwrap();
    assert_eq!(alice.unfinished(), []);

    let seller = organiser.of_principal(token("sally", &["seller"]), MemoryJournal::default());
    let purchase = |number: usize| api::BatchPurchase {
        buyer: format!("guest-{number}"),
        tier_id: if number == 3 { "none".into() } else { "ga".into() },
        quantity: 1,
        request_id: String::new(),
    };
    let batch =
        api::BatchBuyTicketsRequest { parent: event.clone(), purchases: (0..4).map(purchase).collect() };
    let items = seller.batch_buy_tickets(batch).await.unwrap();
    assert!(items[..3].iter().all(|item| item.result.is_ok()), "{items:?}");
    let no = items[3].result.as_ref().unwrap_err();
    assert_eq!(no.reason(), Some(&tidewall_sdk::Reason::TierNotFound));

    let no = alice.buy_tickets(buy("ga", 100)).await.unwrap_err();
    assert!(matches!(&no, tidewall_sdk::Error::Decided { .. }), "{no:?}");
    assert_eq!(no.reason(), Some(&tidewall_sdk::Reason::SoldOut));
    let wrong = alice.buy_tickets(buy("ga", -1)).await.unwrap_err();
    assert_eq!(wrong.failure().unwrap().fields[0].field, "quantity");
    let row = alice
        .get_event(api::GetEventRequest { name: event, ..Default::default() })
        .await
        .unwrap()
        .event
        .unwrap();
    let tier = &row.tiers[0];
    assert_eq!((tier.free, tier.held, tier.sold), (5, 0, 5));
}

/// A script that runs beside the test and ends with it.
struct Script {
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
}

impl Script {
    fn start(mut command: Command) -> Self {
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn();
        let mut child = spawned.unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (send, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, input, lines }
    }

    /// The tickets of so many lines, or of all that come until it ends.
    fn bought(&mut self, count: usize) -> Vec<String> {
        let mut tickets = Vec::new();
        while tickets.len() < count {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) => tickets.extend(line.strip_prefix("bought ").map(str::to_owned)),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("the script says nothing for {PATIENCE:?}"),
            }
        }
        tickets
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_python_client_with_the_published_retry_policy_buys_through_a_killed_leader() {
    let _alone = alone().await;
    let cluster = Cluster::start(Options::default()).await.unwrap();
    let organiser = cluster.session("olga", &["organiser"]).unwrap();
    let region = organiser.region_names().await.unwrap().swap_remove(0);
    let event = organiser.create_event(&region, event_of(vec![tier("ga", 100_000)])).await.unwrap().name;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut command = Command::new("python3");
    command
        .env("PYTHONPATH", root.join("target/python"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("TOKEN", cluster.token("guido", &[]).unwrap())
        .arg(root.join("tests/e2e/python/service_config.py"))
        .args(["--target", cluster.endpoints().gateways[0].url.trim_start_matches("http://")])
        .args(["--event", &event]);
    let mut script = Script::start(command);
    let mut bought = script.bought(20);
    assert_eq!(
        bought.len(),
        20,
        "the script ended early; its messages are above (./test installs its packages)"
    );
    let leader = leader_of(&cluster, region_of(&event)).await;
    cluster.kill(leader).unwrap();
    bought.extend(script.bought(40));
    script.input.write_all(b"stop\n").unwrap();
    bought.extend(script.bought(usize::MAX));
    let status = script.child.wait().unwrap();
    assert!(status.success(), "{status}: an error reached the caller; see above\n{}", cluster.log_tail());
    assert!(bought.len() >= 60, "{}", bought.len());
    assert_sold(&organiser, &event, &bought).await;
}

/// What the script was told is what the region holds.
async fn assert_sold(organiser: &Session, event: &str, bought: &[String]) {
    let told: BTreeSet<&str> = bought.iter().map(String::as_str).collect();
    assert_eq!(told.len(), bought.len(), "a ticket was sold twice");
    let tickets = organiser.tickets_of(event, "*").await.unwrap();
    let held: BTreeSet<&str> = tickets.iter().map(|ticket| ticket.name.as_str()).collect();
    assert_eq!(told, held);
}
