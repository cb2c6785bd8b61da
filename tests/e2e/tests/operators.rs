//! What operators do to a running cluster: move leads, drain nodes, replace nodes, and force a failover after a majority
//! was lost. Clients go on buying meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;
use tidewall_e2e::audit::{Answer, Attempt, audit};
use tidewall_e2e::client::{Session, buy_request, event_of, request_id, retried, tier};
use tidewall_e2e::cluster::{self, Cluster, Kind, Options};
use tonic::Code;

use crate::alone;

/// How long anything here may take that is normally done in seconds.
const PATIENCE: Duration = Duration::from_secs(120);
/// Buyers at once.
const BUYERS: usize = 4;

/// Runs a command of the binary on the cluster's data, as an operator would.
fn command(cluster: &Cluster, arguments: &[&str]) -> (i32, String, String) {
    let data = cluster.data().to_str().unwrap().to_owned();
    let mut all = arguments.to_vec();
    all.extend(["--data", &data, "-o", "json"]);
    let output = cluster::run(&all, PATIENCE).unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

/// As [`command`]; it must succeed and print JSON.
fn done(cluster: &Cluster, arguments: &[&str]) -> Value {
    let (code, out, err) = command(cluster, arguments);
    assert_eq!(code, 0, "{arguments:?}: {err}\n{}", cluster.log_tail());
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {out}"))
}

/// Buys until told to stop, each purchase in one call with a normal deadline: what the gateway cannot hide is an error.
async fn buy_once_each(
    name: String,
    session: Session,
    event: String,
    stop: Arc<AtomicBool>,
) -> (Vec<Attempt>, Vec<String>) {
    let (mut history, mut errors) = (Vec::new(), Vec::new());
    while !stop.load(Ordering::Relaxed) {
        let id = request_id();
        let mut request = session.request(buy_request(&event, "ga", 1, &id));
        request.set_timeout(Duration::from_secs(10));
        let answer = match session.tickets().buy_tickets(request).await {
            Ok(response) => Answer::Bought(response.into_inner().purchase.unwrap().tickets),
            Err(status) if status.code() == Code::FailedPrecondition => Answer::Refused,
            Err(status) => {
                errors.push(format!("{status:?}"));
                Answer::Unknown
            }
        };
        history.push(Attempt { buyer: name.clone(), request_id: id, tier: "ga".into(), quantity: 1, answer });
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    (history, errors)
}

/// A sale that goes on in the background.
struct Sale {
    event: String,
    organiser: Session,
    stop: Arc<AtomicBool>,
    buyers: Vec<tokio::task::JoinHandle<(Vec<Attempt>, Vec<String>)>>,
}

impl Sale {
    async fn begin(cluster: &Cluster, region: &str) -> Self {
        let organiser = cluster.session("olga", &["organiser"]).unwrap();
        let event = organiser.create_event(region, event_of(vec![tier("ga", 1_000_000)])).await.unwrap().name;
        let stop = Arc::new(AtomicBool::new(false));
        let buyers = (0..BUYERS)
            .map(|number| {
                let name = format!("buyer-{number}");
                let session = cluster.session(&name, &[]).unwrap();
                tokio::spawn(buy_once_each(name, session, event.clone(), Arc::clone(&stop)))
            })
            .collect();
        Self { event, organiser, stop, buyers }
    }

    /// Ends the sale; no call may have failed, and the books must be right. Returns how many bought.
    async fn end(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        let (mut history, mut errors) = (Vec::new(), Vec::new());
        for buyer in self.buyers {
            let (attempts, failed) = buyer.await.unwrap();
            history.extend(attempts);
            errors.extend(failed);
        }
        assert!(errors.is_empty(), "{} of {} calls failed: {:#?}", errors.len(), history.len(), &errors[..1]);
        let row = self.organiser.event(&self.event).await.unwrap();
        let tickets = self.organiser.tickets_of(&self.event, "*").await.unwrap();
        let wrong = audit(&history, &row, &tickets);
        assert!(wrong.is_empty(), "{wrong:#?}");
        history.iter().filter(|attempt| matches!(attempt.answer, Answer::Bought(_))).count()
    }
}

/// Node that leads a region.
fn leader(cluster: &Cluster, region: &str) -> u64 {
    done(cluster, &["region", "status", region])["leader_node"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn leads_move_as_ordered_and_no_call_fails() {
    let _alone = alone().await;
    let cluster = Cluster::start(Options::default()).await.unwrap();
    let region = "regions/north";
    let sale = Sale::begin(&cluster, region).await;
    for round in 0..6 {
        let to = leader(&cluster, region) % 3 + 1;
        let answer =
            done(&cluster, &["region", "transfer-leader", region, "--to", &to.to_string(), "--wait"]);
        assert_eq!(answer["leader_node"], to, "round {round}: {answer}");
        assert_eq!(leader(&cluster, region), to);
    }
    // Bad orders change nothing and say why.
    let before = leader(&cluster, region);
    let (code, _, err) = command(&cluster, &["region", "transfer-leader", region, "--to", "9"]);
    assert!(code == 4 && err.contains("no node 9"), "{code}: {err}");
    let (code, _, err) = command(&cluster, &["node", "drain", "9"]);
    assert!(code == 4 && err.contains("no node 9"), "{code}: {err}");
    assert_eq!(leader(&cluster, region), before);

    // A drained node leads nothing, and does not get anything back.
    for node in 1..=3_u64 {
        let drained = done(&cluster, &["node", "drain", &node.to_string()]);
        assert_eq!(drained["kept"].as_array().unwrap().len(), 0, "{drained}");
        let nodes = done(&cluster, &["node", "list"]);
        let found = nodes["nodes"].as_array().unwrap().iter().find(|found| found["node"] == node).unwrap();
        assert!(found["drained"] == true && found["leads"].as_array().unwrap().is_empty(), "{found}");
        let refused = command(
            &cluster,
            &["region", "transfer-leader", region, "--to", &node.to_string(), "--timeout", "5s"],
        );
        assert!(refused.0 == 4 && refused.2.contains("takes no leads"), "{refused:?}");
        done(&cluster, &["node", "undrain", &node.to_string()]);
    }

    // SIGTERM hands the leads over first; the supervisor starts the node again.
    let mut cluster = cluster;
    for (kind, id) in cluster.processes() {
        if kind == Kind::Shard {
            let pid = rustix::process::Pid::from_raw(id as i32).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
            let gone = tokio::time::Instant::now() + PATIENCE;
            while cluster.processes().iter().any(|(_, other)| *other == id) {
                assert!(tokio::time::Instant::now() < gone, "process {id} ignores SIGTERM");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            cluster.wait_settled(PATIENCE).await.unwrap();
        }
    }
    assert!(sale.end().await > 100);
    cluster.stop().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_replaced_under_a_new_id_while_clients_buy() {
    let _alone = alone().await;
    let mut cluster = Cluster::start(Options::default()).await.unwrap();
    let region = "regions/north";
    let sale = Sale::begin(&cluster, region).await;
    let (code, _, err) = command(&cluster, &["node", "replace", "9"]);
    assert!(code == 2 && err.contains("no node 9"), "{code}: {err}");
    // The leader of the sale's region, so that the lead has to move as well.
    let old = leader(&cluster, region);
    let replaced = done(&cluster, &["node", "replace", &old.to_string()]);
    assert_eq!(replaced["added"], serde_json::json!([4]));
    let regions = replaced["regions"].as_array().unwrap();
    assert_eq!(regions.len(), 12);
    for voters in regions.iter().map(|region| region["voters"].as_array().unwrap()) {
        assert!(
            voters.contains(&4.into()) && !voters.contains(&old.into()) && voters.len() == 3,
            "{voters:?}"
        );
    }
    // Its process goes, and the rest is whole.
    let gone = tokio::time::Instant::now() + PATIENCE;
    while cluster.settled().await.is_err() || cluster.endpoints().nodes.iter().any(|node| node.id == old) {
        assert!(tokio::time::Instant::now() < gone, "{:?}\n{}", cluster.endpoints(), cluster.log_tail());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(sale.end().await > 10);
    // And it is so after a restart, too.
    cluster.stop().unwrap();
    cluster.restart().await.unwrap();
    let nodes = done(&cluster, &["node", "list"]);
    let ids: Vec<_> = nodes["nodes"].as_array().unwrap().iter().map(|node| node["node"].clone()).collect();
    assert!(ids.contains(&4.into()) && !ids.contains(&old.into()) && ids.len() == 3, "{ids:?}");
    cluster.stop().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_that_lost_its_majority_goes_on_by_force() {
    let _alone = alone().await;
    let mut cluster = Cluster::start(Options::default()).await.unwrap();
    let region = "regions/north";
    let organiser = cluster.session("olga", &["organiser"]).unwrap();
    let event = organiser.create_event(region, event_of(vec![tier("ga", 1_000)])).await.unwrap().name;
    let buyer = cluster.session("bea", &[]).unwrap();
    let mut bought = Vec::new();
    for _ in 0..10 {
        let id = request_id();
        bought.push((id.clone(), buyer.buy(&event, "ga", 1, &id).await.unwrap()));
    }
    let (code, _, err) = command(&cluster, &["region", "failover", region, "--dry-run"]);
    assert!(code == 4 && err.contains("has not lost its majority"), "{code}: {err}");

    // Two nodes lose their disks while everything is down.
    cluster.stop().unwrap();
    for node in [2, 3] {
        std::fs::remove_dir_all(cluster.data().join(format!("node-{node}"))).unwrap();
    }
    cluster.restart_unsettled().await.unwrap();
    let found = {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let (code, out, err) = command(&cluster, &["region", "failover", region, "--dry-run"]);
            if code == 0 {
                break serde_json::from_str::<Value>(&out).unwrap();
            }
            assert!(tokio::time::Instant::now() < deadline, "{code}: {err}\n{}", cluster.log_tail());
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    assert_eq!(
        (&found["node"], &found["done"], &found["incarnation"]),
        (&1.into(), &false.into(), &1.into())
    );
    let without_yes = command(&cluster, &["region", "failover", region]);
    assert!(without_yes.0 == 2 && without_yes.2.contains("--yes"), "{without_yes:?}");

    let answer = done(&cluster, &["region", "failover", region, "--yes"]);
    let began = answer["new_incarnation"].as_u64().unwrap();
    assert!(answer["done"] == true && began > 1, "{answer}");
    // The gateway has another port now.
    let buyer = cluster.session("bea", &[]).unwrap();
    // Everything that the survivor had is there, under the same request ids; new purchases go on.
    for (id, purchase) in &bought {
        let again = retried(async || buyer.buy(&event, "ga", 1, id).await).await.unwrap();
        assert_eq!(again.purchase, purchase.purchase, "request {id} was decided twice");
    }
    let mut sold = std::collections::BTreeSet::new();
    for _ in 0..5 {
        let new = request_id();
        let purchase = retried(async || buyer.buy(&event, "ga", 2, &new).await).await.unwrap();
        sold.extend(purchase.purchase.unwrap().tickets);
    }
    assert_eq!(sold.len(), 10, "{sold:?}");
    let status = done(&cluster, &["region", "status", region]);
    assert_eq!((&status["leader_node"], &status["incarnation"]), (&1.into(), &began.into()));
    // Other regions have lost their majority as well, and were not touched.
    let statuses = done(&cluster, &["region", "list"]);
    let other = statuses["regions"].as_array().unwrap().iter().find(|other| other["name"] != region).unwrap();
    assert_eq!((&other["incarnation"], &other["leader_node"]), (&1.into(), &0.into()), "{other}");
    let orders = std::fs::read_dir(cluster.data().join("node-1").join("recover")).unwrap();
    let records: Vec<_> = orders.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(records, [format!("group-1-incarnation-{began}.done")], "who did it is remembered");
    cluster.stop().unwrap();
}

/// The process of a shard node.
fn process_of(cluster: &Cluster, node: u64) -> rustix::process::Pid {
    let wanted = format!("--node\0{node}\0");
    let runs = |(_, id): &(Kind, u32)| {
        let command = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&command).contains(&wanted)
    };
    let (_, id) = cluster.processes().into_iter().find(runs).unwrap();
    rustix::process::Pid::from_raw(id as i32).unwrap()
}

/// A change of members that could not be finished would leave the region without anybody who decides.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_not_removed_while_the_rest_has_no_majority() {
    let _alone = alone().await;
    let cluster = Cluster::start(Options::default()).await.unwrap();
    let (code, _, err) = command(&cluster, &["node", "remove", "99"]);
    assert!(code == 2 && err.contains("no node 99; it has 1, 2, 3"), "{code}: {err}");

    let third = process_of(&cluster, 3);
    rustix::process::kill_process(third, rustix::process::Signal::STOP).unwrap();
    // Until the others take it for down, and have its leads.
    tokio::time::sleep(Duration::from_secs(7)).await;
    let refused = command(&cluster, &["node", "remove", "2", "--timeout", "30s"]);
    let organiser = cluster.session("olga", &["organiser"]).unwrap();
    let region = organiser.region_names().await.unwrap().swap_remove(0);
    let created = organiser.create_event(&region, event_of(vec![tier("ga", 5)])).await;
    rustix::process::kill_process(third, rustix::process::Signal::CONT).unwrap();
    assert!(refused.0 == 4 && refused.2.contains("3 is down"), "{refused:?}");
    created.expect("the region decides as before");
    let nodes = done(&cluster, &["node", "list"]);
    assert_eq!(nodes["nodes"].as_array().unwrap().len(), 3, "{nodes}");
}
