//! How long an account takes whose e-mail is claimed in another region, and how many there are a second: what two groups do together,
//! durable on both, without the hash of a password.
//!
//! `cargo run --release -p tidewall-gateway --example registrations -- DATA [SECONDS]`, beside a running `tidewall up --data DATA`: prints
//! latencies at several numbers of callers.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use prost::Message as _;
use tidewall_client::{Credentials, ShardClient, ShardClientOptions, Topology};
use tidewall_link::LinkOptions;
use tidewall_messages::accounts::{self as messages, ClaimingState, answer, outcome};
use tidewall_messages::{ModuleCommand as _, ModuleQuery as _};
use tidewall_proto::internal::v1 as pb;

const PATIENCE: Duration = Duration::from_secs(10);
const CALLERS: [usize; 4] = [1, 16, 128, 512];

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

fn client(data: &Path) -> ShardClient {
    let topology = Topology::load(&data.join("topology.json")).unwrap();
    let read = |name: &str| std::fs::read(data.join("tls").join(name)).unwrap();
    let cluster = topology.cluster_bytes().unwrap();
    let (authority, chain, key) = (read("ca.pem"), read("gateway.pem"), read("gateway.key"));
    let credentials = Some(Credentials::from_pem(cluster, &authority, &chain, &key).unwrap());
    let link = LinkOptions { credentials, ..LinkOptions::default() };
    ShardClient::new(Arc::new(topology), ShardClientOptions { link, ..Default::default() })
}

/// Registers somebody; how often it was asked whether that is done.
async fn register(client: &ShardClient, number: u64, home: u32, keeper: u32) -> u32 {
    let mut email = [0; 32];
    email[..16].copy_from_slice(&u128::from(now_ms()).to_be_bytes());
    email[16..24].copy_from_slice(&number.to_be_bytes());
    let ask = messages::Command::from(messages::Register {
        email_hash: email.to_vec(),
        key_id: vec![7; 16],
        credential: Some(messages::Credential { salt: vec![7; 16], hash: vec![7; 32], ..Default::default() }),
        region: "regions/bench".to_owned(),
        claim_group: keeper,
        ..Default::default()
    });
    let id = (u128::from(now_ms()) << 80) | (7 << 76) | (1 << 63) | u128::from(number);
    let command = pb::Command {
        principal: "bench".to_owned(),
        request_id: id.to_be_bytes().to_vec(),
        expires_at_ms: now_ms() + 10_000,
        module: messages::Command::MODULE.into(),
        payload: ask.encode_to_vec().into(),
        fingerprint: 1,
        ..Default::default()
    };
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let told = client.command(home, command, deadline).await.unwrap();
    let Some(pb::outcome::Result::Done(done)) = told.result else { panic!("{told:?}") };
    let Some(outcome::Result::Claiming(claiming)) = messages::Outcome::decode(done).unwrap().result else {
        panic!("it is not claimed")
    };
    let get = messages::Query::from(messages::GetClaiming { claim_id: claiming.claim_id });
    let (module, payload) = (messages::Query::MODULE.into(), get.encode_to_vec());
    let query = pb::Query { op: Some(pb::query::Op::Module(pb::ModuleQuery { module, payload })) };
    let mut pause = Duration::from_millis(2);
    for asked in 1.. {
        let answer = client.query(home, query.clone(), deadline).await.unwrap().result;
        let Some(pb::query_result::Result::Module(answer)) = answer else { panic!("{answer:?}") };
        match messages::Answer::decode(answer).unwrap().result {
            Some(answer::Result::Claiming(view)) if view.state() == ClaimingState::Open => {}
            Some(answer::Result::Claiming(view)) if view.state() == ClaimingState::Done => return asked,
            other => panic!("{other:?}"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 3 / 2).min(Duration::from_millis(200));
    }
    unreachable!("it is asked until the deadline")
}

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let data = arguments.next().expect("the data directory of a running cluster");
    let seconds = arguments.next().map_or(5, |text| text.parse().unwrap());
    let client = Arc::new(client(Path::new(&data)));
    let numbers = Arc::new(AtomicU64::new(0));
    println!(
        "{:>8} {:>10} {:>9} {:>9} {:>9} {:>6}",
        "callers", "accounts/s", "p50 ms", "p99 ms", "max ms", "asked"
    );
    for callers in CALLERS {
        let began = Instant::now();
        let until = began + Duration::from_secs(seconds);
        let tasks: Vec<_> = (0..callers)
            .map(|_| {
                let (client, numbers) = (Arc::clone(&client), Arc::clone(&numbers));
                tokio::spawn(async move {
                    let (mut took, mut asked) = (Vec::new(), 0);
                    while Instant::now() < until {
                        let begun = Instant::now();
                        asked += register(&client, numbers.fetch_add(1, Ordering::Relaxed), 1, 2).await;
                        took.push(begun.elapsed());
                    }
                    (took, asked)
                })
            })
            .collect();
        let (mut took, mut asked) = (Vec::new(), 0);
        for task in tasks {
            let (of_one, asked_by_one) = task.await.unwrap();
            took.extend(of_one);
            asked += asked_by_one;
        }
        let lasted = began.elapsed().as_secs_f64();
        took.sort_unstable();
        let at = |share: usize| took[(took.len() - 1) * share / 100].as_secs_f64() * 1e3;
        println!(
            "{callers:>8} {:>10.0} {:>9.1} {:>9.1} {:>9.1} {:>6.1}",
            took.len() as f64 / lasted,
            at(50),
            at(99),
            at(100),
            f64::from(asked) / took.len() as f64
        );
    }
}
