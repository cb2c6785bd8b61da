//! A cluster and its copies: an older state of one node is refused, a copy of all of it is made another cluster, and who has
//! no certificate reaches no node.

use std::path::Path;
use std::time::Duration;

use tidewall_e2e::client::retried;
use tidewall_e2e::cluster::{Cluster, Kind, Options, run};
use tidewall_proto::internal::v1::GetNodeStateRequest;
use tidewall_proto::internal::v1::shard_service_client::ShardServiceClient;
use tokio::time::{Instant, sleep};
use tonic::Code;

use crate::alone;
use crate::restart::{sell, verify};

/// Bounded, so that a fault fails instead of hanging.
const PATIENCE: Duration = Duration::from_secs(30);

fn copy(from: &Path, to: &Path) {
    let [from, to] = [from, to].map(|path| path.display().to_string());
    let copied = std::process::Command::new("cp").args(["-a", &from, &to]).status().unwrap();
    assert!(copied.success());
}

/// Runs a copy of node 2 at other addresses, beside it. It must end by itself.
fn twin(data: &Path, parent: &Path) -> std::process::Output {
    let topology = std::fs::read_to_string(data.join("topology.json")).unwrap();
    let mut topology: serde_json::Value = serde_json::from_str(&topology).unwrap();
    let holders: Vec<_> = (0..2).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    for (name, holder) in ["address", "peer_address"].iter().zip(&holders) {
        topology["nodes"][1][name] = holder.local_addr().unwrap().to_string().into();
    }
    drop(holders);
    let changed = parent.join("topology.json");
    std::fs::write(&changed, topology.to_string()).unwrap();
    copy(&data.join("node-2"), &parent.join("twin"));
    let [place, changed, tls] =
        [parent.join("twin"), changed, data.join("tls")].map(|path| path.display().to_string());
    let arguments =
        ["serve", "shard", "--node", "2", "--data", &place, "--topology", &changed, "--tls", &tls];
    run(&arguments, PATIENCE).unwrap()
}

/// Waits until a log says something.
async fn logs(path: &Path, what: &str) {
    let began = Instant::now();
    loop {
        let text = std::fs::read_to_string(path).unwrap();
        if text.contains(what) {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "{what:?} is not in {}: {text}", path.display());
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_an_older_state_is_refused_and_loses_nothing() {
    let _alone = alone().await;
    let parent = tempfile::tempdir().unwrap();
    let data = parent.path().join("data");
    let mut cluster =
        Cluster::start(Options { data: Some(data.clone()), ..Options::default() }).await.unwrap();
    let mut sales = sell(&cluster).await;
    // As a snapshot of a volume is taken: while the node runs.
    let older = parent.path().join("older");
    copy(&data.join("node-2"), &older);
    let twin = twin(&data, parent.path());
    let told = String::from_utf8_lossy(&twin.stderr);
    // Whether anything was written since it was made decides which of the two it is.
    match twin.status.code() {
        Some(5) => assert!(told.contains("another process runs as this node"), "{told}"),
        Some(71) => assert!(told.contains("an older state"), "{told}"),
        other => panic!("{other:?}: {told}"),
    }
    sales.extend(sell(&cluster).await);
    assert!(cluster.stop().unwrap().success());
    std::fs::rename(data.join("node-2"), parent.path().join("last")).unwrap();
    copy(&older, &data.join("node-2"));
    cluster.restart_unsettled().await.unwrap();
    logs(&data.join("logs/node-2.log"), "copy or an older state").await;
    // The others have what was acknowledged, and go on.
    let organiser = cluster.session("olga", &["organiser"]).unwrap();
    retried(async || organiser.event(&sales[0].0).await).await.unwrap();
    verify(&cluster, &sales).await;
    sales.extend(sell(&cluster).await);
    assert!(cluster.stop().unwrap().success());
    assert!(data.join("node-2/stale").exists());
    // Its last state is welcome.
    std::fs::remove_dir_all(data.join("node-2")).unwrap();
    std::fs::rename(parent.path().join("last"), data.join("node-2")).unwrap();
    cluster.restart().await.unwrap();
    verify(&cluster, &sales).await;
    assert_eq!(cluster.processes().len(), 4, "a gateway and three nodes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_of_a_cluster_has_its_data_and_is_another_one() {
    let _alone = alone().await;
    let parent = tempfile::tempdir().unwrap();
    let (data, trial) = (parent.path().join("data"), parent.path().join("trial"));
    let mut cluster =
        Cluster::start(Options { data: Some(data.clone()), ..Options::default() }).await.unwrap();
    let sales = sell(&cluster).await;
    let place = |path: &Path| path.display().to_string();
    let fork =
        |path: &Path| run(&["cluster", "fork", "--data", &place(path), "-o", "json"], PATIENCE).unwrap();
    assert_eq!(fork(&data).status.code(), Some(5), "a cluster that runs is not forked");
    assert!(cluster.stop().unwrap().success());
    copy(&data, &trial);
    let forked = fork(&trial);
    assert!(forked.status.success(), "{forked:?}");
    let told: serde_json::Value = serde_json::from_slice(&forked.stdout).unwrap();
    assert_ne!(told["was"], told["cluster"]);
    // Both at once; each has everything.
    let mut other =
        Cluster::start(Options { data: Some(trial.clone()), ..Options::default() }).await.unwrap();
    cluster.restart().await.unwrap();
    verify(&other, &sales).await;
    verify(&cluster, &sales).await;
    assert!(other.stop().unwrap().success());
    // A node of the original is none of the fork's.
    std::fs::remove_dir_all(trial.join("node-3")).unwrap();
    assert!(cluster.stop().unwrap().success());
    copy(&data.join("node-3"), &trial.join("node-3"));
    other.restart_unsettled().await.unwrap();
    logs(&trial.join("logs/node-3.log"), "belongs to node 3 of cluster").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_answer_nobody_without_a_certificate() {
    let cluster = crate::shared().await;
    for node in &cluster.endpoints().nodes {
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", node.address)).unwrap();
        let mut client = ShardServiceClient::new(endpoint.connect().await.unwrap());
        let refusal = client.get_node_state(GetNodeStateRequest {}).await.unwrap_err();
        assert_eq!(refusal.code(), Code::FailedPrecondition, "{refusal:?}");
        assert!(refusal.message().contains("nobody of this cluster"), "{refusal:?}");
        // What probes and scrapers ask is no secret.
        let metrics = get(&format!("http://{}/metrics", node.address)).await;
        assert!(metrics.contains("tidewall_"), "{metrics}");
    }
}

/// A node is alive while its process runs, and ready while it does its part: not while a majority is away.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_says_whether_it_lives_and_whether_it_does_its_part() {
    let _alone = alone().await;
    let cluster = Cluster::start(Options::default()).await.unwrap();
    let node = cluster.endpoints().nodes[0].clone();
    let page = async |path: &str| get(&format!("http://{}/{path}", node.address)).await;
    let eventually = async |path: &str, beginning: &str| {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let answer = page(path).await;
            if answer.starts_with(beginning) {
                return answer;
            }
            assert!(tokio::time::Instant::now() < deadline, "/{path} is not {beginning}: {answer}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    eventually("readyz", "HTTP/1.1 200").await;
    let shards = cluster.processes().into_iter().filter(|(kind, _)| *kind == Kind::Shard);
    // The node that is asked goes on.
    let others: Vec<u32> = shards.map(|(_, id)| id).filter(|id| node_of(*id) != node.id).collect();
    assert_eq!(others.len(), 2);
    others.iter().for_each(|id| cluster.pause(*id).unwrap());
    let answer = eventually("readyz", "HTTP/1.1 503").await;
    assert!(answer.contains("no leader that is heard"), "{answer}");
    assert!(page("healthz").await.starts_with("HTTP/1.1 503"));
    assert!(page("livez").await.starts_with("HTTP/1.1 200"));
    others.iter().for_each(|id| cluster.resume(*id).unwrap());
    eventually("readyz", "HTTP/1.1 200").await;
    let metrics = page("metrics").await;
    for line in
        ["text/plain; version=0.0.4", "# TYPE process_cpu_seconds_total counter", "tidewall_node_leads{"]
    {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
}

/// Id of the node that a process is.
fn node_of(process: u32) -> u64 {
    let command = std::fs::read(format!("/proc/{process}/cmdline")).unwrap();
    let words: Vec<String> =
        command.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
    let at = words.iter().position(|word| word == "--node").unwrap();
    words[at + 1].parse().unwrap()
}

/// The body of an HTTP/1.1 answer.
async fn get(url: &str) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let (host, path) = url.trim_start_matches("http://").split_once('/').unwrap();
    let mut stream = tokio::net::TcpStream::connect(host).await.unwrap();
    let request = format!("GET /{path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}
