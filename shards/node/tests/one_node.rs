//! A cluster of one node over disks in memory, asked by the client of the shards: what its client port answers.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use tidewall_actors::Home;
use tidewall_client::topology::{Node, Region};
use tidewall_client::{ClientError, ShardClient, ShardClientOptions, Topology};
use tidewall_consensus::{FailStop, PeerServer, Peers, PeersConfig};
use tidewall_env::disk::MemoryDisk;
use tidewall_messages::{accounts, tickets};
use tidewall_node::assembly::{
    Front, LifeOfNode, LivesStore, Orders, Parts, Quarantine, RaftThreads, Replicas, Space, SteadyClock,
    load_rows, peer_service,
};
use tidewall_proto::internal::v1 as pb;
use tidewall_store::checkpoint::CheckpointWriter;
use tidewall_store::checkpoint::memory::MemoryCheckpoints;
use tidewall_store::keyring::Keyring;
use tidewall_store::log::{LogOptions, NodeLog};
use tokio::time::Instant;
use tokio_stream::StreamExt as _;
use tonic::transport::server::TcpIncoming;

const CLUSTER: [u8; 16] = [9; 16];
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs a test where actors can live.
fn run(test: impl Future<Output = ()>) {
    actix::System::new().block_on(async { tokio::time::timeout(3 * PATIENCE, test).await.expect("it ends") });
}

struct One {
    client: Arc<ShardClient>,
    front: Front,
    log: NodeLog,
    writer: CheckpointWriter,
    replicas: Replicas,
}

/// Two groups on one node, both led by it, in its main thread.
async fn start(directory: &Path) -> One {
    start_on(directory, RaftThreads::none()).await
}

async fn start_on(directory: &Path, threads: RaftThreads) -> One {
    start_as(directory, threads, tidewall_node::APPLY_VERSION).await
}

/// As a build that supports no later apply version.
async fn start_as(directory: &Path, threads: RaftThreads, apply_version: u32) -> One {
    let client_port = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peer_port = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let node = Node {
        id: 1,
        address: client_port.local_addr().unwrap(),
        peer_address: peer_port.local_addr().unwrap(),
    };
    let region = |group: u32| Region { id: format!("r{group}"), display_name: format!("R{group}"), group };
    let topology = Topology::new(CLUSTER, vec![region(1), region(2)], vec![node]);
    let (log, _) = NodeLog::open(Arc::new(MemoryDisk::new()), LogOptions::new(CLUSTER, 1)).unwrap();
    let fail_stop = FailStop::new(|what| panic!("a disk in memory failed: {what:?}"));
    let life = LifeOfNode::begin(1, &log, LivesStore::in_memory(), &fail_stop).unwrap();
    let lives = Arc::clone(life.lives());
    let addresses = topology.nodes.iter().map(|node| (node.id, node.peer_address)).collect();
    let peers =
        Peers::new(PeersConfig { cluster: CLUSTER, lives: Arc::clone(&lives), credentials: None, addresses });
    let server = PeerServer::new(None, Arc::clone(&lives));
    tokio::spawn(
        tidewall_link::server_builder()
            .layer(tidewall_link::NodeIdentity::peer_port(CLUSTER, lives, false))
            .add_service(peer_service(server.clone()))
            .serve_with_incoming(TcpIncoming::from(peer_port)),
    );
    let mut store = MemoryCheckpoints::new();
    let rows = |group| load_rows(&mut store, &log, group, apply_version).unwrap();
    let machines: BTreeMap<u32, _> = [1, 2].map(rows).into_iter().zip(1..).map(|(m, g)| (g, m)).collect();
    let writer = CheckpointWriter::start(Box::new(store)).unwrap();
    let parts = Parts {
        node: 1,
        topology: topology.clone(),
        apply_version,
        clock: Arc::new(SteadyClock::new()),
        log: log.clone(),
        writer: writer.clone(),
        machines,
        quarantine: Quarantine::in_memory(),
        orders: Orders::new(directory),
        fresh: true,
        life,
        fail_stop,
        threads,
        keyring: Keyring::open(&MemoryDisk::new(), CLUSTER, 1, true).unwrap(),
        space: Space::unlimited(),
    };
    let replicas = Replicas::start(parts, &peers, &server).await;
    assert!(replicas.faults.is_empty(), "{:?}", replicas.faults);
    tokio::spawn(replicas.reporting(&peers));
    let front = replicas.front(Space::unlimited(), Home::arbiter(actix::Arbiter::current()));
    tokio::spawn(
        tidewall_link::server_builder()
            .layer(tidewall_link::NodeIdentity::client_port(CLUSTER, 1, false))
            .add_service(front.service())
            .serve_with_incoming(TcpIncoming::from(client_port)),
    );
    let client = Arc::new(ShardClient::new(Arc::new(topology), ShardClientOptions::default()));
    let deadline = Instant::now() + PATIENCE;
    while client.discover(PATIENCE).await > 0 {
        assert!(Instant::now() < deadline, "a group of one has no leader");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    One { client, front, log, writer, replicas }
}

/// A command of Ann.
fn command(n: u64, asked: impl Into<tickets::Command>) -> pb::Command {
    let now_ms = tidewall_env::clock::unix_ms();
    pb::Command {
        principal: "ann".into(),
        request_id: (u128::from(now_ms) << 80 | u128::from(n)).to_be_bytes().to_vec(),
        expires_at_ms: now_ms + 30_000,
        module: tickets::MODULE.into(),
        payload: asked.into().encode_to_vec().into(),
        fingerprint: n + 1,
        row: "gala".into(),
        ..Default::default()
    }
}

/// What the ticket module says it has done.
fn done(outcome: &pb::outcome::Result) -> Option<tickets::outcome::Result> {
    match outcome {
        pb::outcome::Result::Done(bytes) => tickets::Outcome::decode(&bytes[..]).unwrap().result,
        pb::outcome::Result::Rejection(_) => None,
    }
}

fn purchase(n: u64, quantity: u32) -> pb::Command {
    let (event_id, tier_id) = ("gala".into(), "ga".into());
    command(n, tickets::Buy { event_id, tier_id, quantity, ..Default::default() })
}

impl One {
    fn stop(self) {
        self.writer.stop();
        self.log.close().unwrap();
    }

    async fn state(&self) -> pb::GetNodeStateResponse {
        self.client.node_states(PATIENCE).await.remove(0).1.unwrap()
    }

    async fn ask(&self, command: pb::Command) -> pb::outcome::Result {
        self.client.command(1, command, Instant::now() + PATIENCE).await.unwrap().result.unwrap()
    }

    async fn buy(&self, n: u64, quantity: u32) {
        let sold = self.ask(purchase(n, quantity)).await;
        assert!(matches!(done(&sold), Some(tickets::outcome::Result::Purchase(_))), "{sold:?}");
    }

    async fn create(&self) {
        let tier = tickets::TierSpec {
            tier_id: "ga".into(),
            capacity: 9,
            currency_code: "EUR".into(),
            price_minor_units: 1,
            ..Default::default()
        };
        let create = tickets::CreateEvent {
            event_id: "gala".into(),
            display_name: "Gala".into(),
            quota_per_buyer: 9,
            tiers: vec![tier],
            ..Default::default()
        };
        let created = self.ask(command(0, create)).await;
        assert!(matches!(done(&created), Some(tickets::outcome::Result::Event(_))), "{created:?}");
    }

    async fn tickets(&self) -> usize {
        let list = tickets::ListTickets { event_id: "gala".into(), limit: 100, ..Default::default() };
        let payload = tickets::Query::from(list).encode_to_vec();
        let query = pb::ModuleQuery { module: tickets::MODULE.into(), payload };
        let query = pb::Query { op: Some(pb::query::Op::Module(query)) };
        let found = self.client.query(1, query, Instant::now() + PATIENCE).await.unwrap().result.unwrap();
        let pb::query_result::Result::Module(answer) = found else { panic!("{found:?}") };
        match tickets::Answer::decode(answer).unwrap().result {
            Some(tickets::answer::Result::Tickets(list)) => list.tickets.len(),
            other => panic!("{other:?}"),
        }
    }

    async fn import(&self, file: &[u8], replace: bool) -> pb::import_response::Result {
        let chunks: Vec<Bytes> = file.chunks(1_000).map(Bytes::copy_from_slice).collect();
        let importer = self.client.importer(1, PATIENCE).await.unwrap();
        let sent = importer.run(replace, "olga".into(), Box::pin(tokio_stream::iter(chunks)));
        sent.await.unwrap().result.unwrap()
    }
}

#[test]
fn a_node_says_how_it_is() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        let one = start(directory.path()).await;
        one.create().await;
        one.buy(1, 2).await;
        let state = one.state().await;
        assert_eq!((state.node, state.drained, state.clock_far), (1, false, false));
        assert_eq!(state.apply_version, tidewall_node::APPLY_VERSION);
        assert!(
            state.log_bytes > 0 && state.now_ms.abs_diff(tidewall_env::clock::unix_ms()) < 60_000,
            "{state:?}"
        );
        assert_eq!(state.groups.iter().map(|group| group.group).collect::<Vec<_>>(), [1, 2]);
        for group in &state.groups {
            assert_eq!((group.role.as_str(), group.leader_node, group.incarnation), ("leader", 1, 1));
            assert_eq!((&group.voters[..], group.digest.len(), group.fault.as_str()), (&[1][..], 16, ""));
            assert!(group.term > 0 && group.applied_index <= group.committed_index, "{group:?}");
        }
        let [sold, idle] = &state.groups[..] else { panic!() };
        assert!(sold.rows > idle.rows && sold.applied_index >= 2, "{sold:?} {idle:?}");
        assert!((one.front.metrics())().contains("tidewall_"));
        one.stop();
    });
}

#[test]
fn a_region_goes_back_to_a_file_and_only_when_that_is_asked_for() {
    run(async {
        use pb::import_response::Result as R;
        let directory = tempfile::tempdir().unwrap();
        let one = start(directory.path()).await;
        one.create().await;
        one.buy(1, 1).await;
        let mut parts = one.client.export(1, PATIENCE).await.unwrap();
        let mut file = Vec::new();
        while let Some(part) = parts.next().await {
            file.extend_from_slice(&part.unwrap().chunk);
        }
        one.buy(2, 3).await;
        assert_eq!(one.tickets().await, 4);
        let R::Rejection(no) = one.import(&file, false).await else { panic!("it replaced what is there") };
        assert_eq!(no.reason, "IMPORT_REFUSED");
        let mut broken = file.clone();
        let middle = broken.len() / 2;
        broken[middle] ^= 1;
        for bad in [&broken[..], &file[..file.len() - 1], b"nothing", b""] {
            let R::Rejection(no) = one.import(bad, true).await else {
                panic!("{} bytes were taken", bad.len())
            };
            assert_eq!((no.reason.as_str(), no.field.as_str()), ("BAD_SNAPSHOT", "chunk"));
        }
        assert_eq!(
            (one.tickets().await, one.state().await.groups[0].incarnation),
            (4, 1),
            "nothing has changed"
        );
        let R::Done(done) = one.import(&file, true).await else { panic!("it was not taken") };
        let state = one.state().await;
        assert_eq!((done.incarnation, state.groups[0].incarnation, state.groups[1].incarnation), (2, 2, 1));
        assert_eq!((one.tickets().await, done.digest.len()), (1, 16));
        // It is sold from there on, under numbers that nobody had.
        one.buy(3, 1).await;
        assert_eq!(one.tickets().await, 2);
        one.stop();
    });
}

/// Replicas of a build without a module would halt on a command of it.
#[test]
fn a_module_is_asked_nothing_before_all_members_have_the_build_for_it() {
    run(async {
        let attempt = |n| {
            let asked = accounts::Command::from(accounts::CountAttempt { email_hash: vec![7; 32] });
            let payload = asked.encode_to_vec().into();
            pb::Command { module: accounts::MODULE.into(), payload, ..purchase(n, 1) }
        };
        for (version, decides) in [(2, false), (tidewall_node::APPLY_VERSION, true)] {
            let directory = tempfile::tempdir().unwrap();
            let one = start_as(directory.path(), RaftThreads::none(), version).await;
            let raised = async {
                while one.state().await.groups[0].apply_version < version {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            tokio::time::timeout(PATIENCE, raised).await.unwrap();
            let patience = if decides { PATIENCE } else { Duration::from_secs(1) };
            match one.client.command(1, attempt(1), Instant::now() + patience).await {
                Ok(outcome) => assert!(decides && outcome.receipt.is_some(), "{outcome:?}"),
                Err(ClientError::Unavailable { why }) => assert!(!decides, "{why}"),
                other => panic!("{other:?}"),
            }
            one.create().await;
            one.stop();
        }
    });
}

#[test]
fn orders_that_cannot_be_carried_out_are_refused_and_change_nothing() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        let one = start(directory.path()).await;
        let invalid = |error: ClientError| match error {
            ClientError::Invalid(why) => why,
            other => panic!("{other:?}"),
        };
        let transfer =
            async |to| one.client.transfer_lead(1, to, "olga".into(), Duration::from_secs(3)).await;
        assert_eq!(transfer(1).await.unwrap().leader_node, 1);
        assert!(invalid(transfer(9).await.unwrap_err()).contains("does not vote"));
        let change = one.client.change_replicas(1, &[9], &[1], "olga", Duration::from_secs(3));
        let why = invalid(change.await.unwrap_err());
        assert!(why.contains('9'), "{why}");
        // Nobody can take the leads of the only node: it keeps them, and goes on.
        let drained = one.client.drain(1, true, "olga".into(), Duration::from_secs(2)).await.unwrap();
        assert_eq!((drained.moved, drained.kept), (vec![], vec![1, 2]));
        assert!(one.state().await.drained);
        one.create().await;
        one.client.drain(1, false, "olga".into(), Duration::from_secs(2)).await.unwrap();
        assert!(!one.state().await.drained);
        // A majority of one is alive.
        for dry_run in [true, false] {
            let request = pb::RecoverRequest { group: 1, dry_run, ..Default::default() };
            let found = one.client.recover(1, request, PATIENCE).await.unwrap();
            let refusal = found.refusal.unwrap();
            assert!(refusal.message.contains("has not lost its majority"), "{}", refusal.message);
            assert_eq!((found.node, found.incarnation, found.new_incarnation), (1, 1, 0));
        }
        let nobody =
            one.client.recover(1, pb::RecoverRequest { group: 7, ..Default::default() }, PATIENCE).await;
        assert!(matches!(nobody, Err(ClientError::Unavailable { .. })), "{nobody:?}");
        assert!(std::fs::read_dir(directory.path()).unwrap().next().is_none(), "no order was kept");
        one.stop();
    });
}

#[test]
fn each_command_of_a_batch_gets_its_answer_in_its_place() {
    run(async {
        use pb::batch_item::Result as Item;
        let directory = tempfile::tempdir().unwrap();
        let one = start(directory.path()).await;
        one.create().await;
        let batch = async |commands| {
            let batch = pb::CommandBatch { commands };
            let answer = one.client.batch(1, batch, Instant::now() + PATIENCE).await.unwrap();
            answer.items.into_iter().map(|item| item.result.unwrap()).collect::<Vec<_>>()
        };
        assert!(batch(Vec::new()).await.is_empty());
        let bad = pb::Command { request_id: vec![1], ..purchase(3, 1) };
        let items = batch(vec![purchase(1, 2), bad, purchase(2, 99), purchase(4, 3)]).await;
        let [Item::Outcome(first), Item::Refusal(bad), Item::Outcome(no), Item::Outcome(last)] = &items[..]
        else {
            panic!("{items:?}")
        };
        assert!(bad.message.contains("request id"), "{bad:?}");
        assert!(matches!(&no.result, Some(pb::outcome::Result::Rejection(_))), "{no:?}");
        assert!(no.receipt.is_some(), "a seller who repeats the batch would buy it");
        for (outcome, count) in [(first, 2), (last, 3)] {
            match outcome.result.as_ref().and_then(done) {
                Some(tickets::outcome::Result::Purchase(sold)) => assert_eq!(sold.count, count),
                other => panic!("{other:?}"),
            }
            assert!(outcome.receipt.is_some());
        }
        assert_eq!(one.tickets().await, 5);
        one.stop();
    });
}

/// What holds one group's rows up holds up no other group, where each has a thread.
#[test]
fn a_long_apply_in_one_group_delays_no_other() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        let one = start_on(directory.path(), RaftThreads::start(2).unwrap()).await;
        one.create().await;
        one.buy(1, 1).await;
        let (release, held) = std::sync::mpsc::channel::<()>();
        let (begun, begins) = tokio::sync::oneshot::channel();
        let rows = one.replicas.rows[&1].clone();
        // A reader that does not let go: apply waits for it, as it would take long by itself.
        let reader = std::thread::spawn(move || {
            rows.read(|_| {
                begun.send(()).unwrap();
                let _ = held.recv_timeout(PATIENCE);
            });
        });
        begins.await.unwrap();
        let client = Arc::clone(&one.client);
        let stuck =
            tokio::spawn(async move { client.command(1, purchase(2, 1), Instant::now() + PATIENCE).await });
        let create = tickets::CreateEvent {
            event_id: "other".into(),
            display_name: "Other".into(),
            quota_per_buyer: 9,
            tiers: vec![tickets::TierSpec { tier_id: "ga".into(), capacity: 9, ..Default::default() }],
            ..Default::default()
        };
        let decided = one.client.command(2, command(3, create), Instant::now() + PATIENCE).await.unwrap();
        assert!(done(&decided.result.unwrap()).is_some());
        assert!(!stuck.is_finished(), "group 1 was not held up at all");
        release.send(()).unwrap();
        assert!(stuck.await.unwrap().is_ok());
        reader.join().unwrap();
        one.stop();
    });
}
